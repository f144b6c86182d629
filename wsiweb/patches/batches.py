"""Read a plan in batches, ahead of the consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsiweb.errors import WsiWebError
from wsiweb.patches.values import PatchBatch, SkippedPatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from wsiweb.patches.plan import PatchPlan

AHEAD_BATCHES = 4
"""From so many batches before the end of a plan on, the next is fetched as well."""


class Batches:
    """An iterator over the batches of a plan; see ``PatchPlan.batches``. Closing it stops the work."""

    def __init__(self, plan: PatchPlan, n: int, *, skip: bool) -> None:
        self.skipped: list[SkippedPatch] = []
        """Patches that could not be read, so far."""
        self._plan = plan
        self._n = n
        self._skip = skip
        self._pending: list[npt.NDArray[Any]] = []
        self._done = 0
        self._images = plan._images(_targets(plan, n, self._pending))  # noqa: SLF001

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PatchBatch:
        plan = self._plan
        for start in range(self._done, len(plan), self._n):
            stop = min(start + self._n, len(plan))
            try:
                kept = [place - start for place in range(start, stop) if self._read(place)]
            except BaseException:
                self.close()
                raise
            self._done = stop
            images = self._pending.pop(0)
            if len(kept) == stop - start:
                return plan._batch(slice(start, stop), images)  # noqa: SLF001
            if kept:
                return plan._batch(np.array(kept, np.int64) + start, images[kept])  # noqa: SLF001
        raise StopIteration

    def _read(self, place: int) -> bool:
        """Read one patch into its place; False where it is skipped."""
        outcome = self._images.outcome()
        if not isinstance(outcome, BaseException):
            return True
        if not (self._skip and isinstance(outcome, WsiWebError)):
            raise outcome
        # Its traceback holds what its threads were at.
        self.skipped.append(SkippedPatch(int(self._plan.index[place]), outcome.with_traceback(None)))
        return False

    @property
    def left(self) -> int:
        """Patches that were not returned yet."""
        return len(self._plan) - self._done

    def start(self) -> None:
        """Begin to fetch ahead, before the first batch is asked for."""
        self._images.start()

    def close(self) -> None:
        """Stop fetching and decoding ahead."""
        self._done = len(self._plan)
        self._images.close()


def _targets(plan: PatchPlan, n: int, pending: list[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Yield the arrays that patches are read into; batches of them are appended to ``pending``.

    Knows no iterator: one that is let go is gone at once, and stops the work, only if nothing it holds refers to it.
    """
    for begin in range(0, len(plan), n):
        pending.append(np.empty((min(n, len(plan) - begin), *plan.shape), plan.dtype))
        yield from pending[-1]


def chained(plans: Sequence[PatchPlan], n: int) -> Iterator[tuple[int, PatchBatch]]:
    """Yield the batches of one plan after the other, with the number of the plan.

    The next plan begins to fetch before the last batches of this one are taken, so that nobody waits in between.
    """
    waiting = [plan.batches(n) for plan in plans]
    try:
        for number, batches in enumerate(waiting):
            started = False
            for batch in batches:
                if not started and batches.left <= AHEAD_BATCHES * n and number + 1 < len(waiting):
                    waiting[number + 1].start()
                    started = True
                yield number, batch
    finally:
        for batches in waiting:
            batches.close()


def together(plans: Sequence[tuple[int, PatchPlan]]) -> Iterator[tuple[int, PatchBatch]]:
    """Yield each numbered plan, of at least one patch, as one batch; all are fetched at the same time."""
    waiting = [(number, plan.batches(len(plan))) for number, plan in plans]
    try:
        for _, batches in waiting:
            batches.start()
        for number, batches in waiting:
            yield number, next(batches)
    finally:
        for _, batches in waiting:
            batches.close()
