"""The caller's side of reading: draw plans ahead within a budget, paint tiles as they come, hand arrays out in order.

Makes no threads and knows no source: a ``Reader`` produces the tiles and tells of them through a queue.
"""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from wsiweb import stitch
from wsiweb.cache import AbandonedError
from wsiweb.errors import SourceTimeoutError, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from wsiweb.plan import FrameKey, ReadPlan
    from wsiweb.reader import Reader

    Pixels = npt.NDArray[Any]
    Event = tuple[FrameKey, Pixels | None, BaseException | None]


_MANY_FRAMES = 1 << 16
_STOPPED: Event = ((-1, -1), None, None)
"""Wakes a caller whose reader is being closed, while the fetch thread may still wait for the server."""


@dataclass(slots=True, eq=False)
class Job:
    """One plan on its way."""

    plan: ReadPlan
    array: Pixels
    waiting: dict[FrameKey, int]
    """Rows of the plan whose tile has not come yet."""
    held: dict[int, Pixels] = field(default_factory=dict)
    """Tiles of a plan whose order of drawing matters, by row, until all are there."""

    def take(self, key: FrameKey, tile: Pixels) -> None:
        """Paint one tile."""
        row = self.waiting.pop(key)
        if not self.plan.ordered:
            stitch.paste(self.array, tile, self.plan, row)
            return
        self.held[row] = tile
        if not self.waiting:
            for row in sorted(self.held):
                stitch.paste(self.array, self.held[row], self.plan, row)
            self.held.clear()


class Stream:
    """An iterator over the arrays of many plans, in order; see ``Reader.stream``."""

    def __init__(
        self, reader: Reader, plans: Iterable[tuple[ReadPlan, Pixels | None]], budget_bytes: int, *, keep: bool
    ) -> None:
        self._reader = reader
        self._plans: Iterator[tuple[ReadPlan, Pixels | None]] = iter(plans)
        self._budget_bytes = budget_bytes
        self._exhausted = False
        self._errand = reader.begin(keep=keep)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        events = self._events  # and not self, which would keep an abandoned iterator alive
        self._errand.cancellation.on_cancel(lambda: events.put(_STOPPED))
        self._jobs: deque[Job] = deque()
        self._ahead_bytes = 0
        self._wanted_by: dict[FrameKey, list[Job]] = {}
        self._claimed: dict[FrameKey, tuple[int, int]] = {}  # but not started yet

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Pixels:
        if self._reader.process_id != os.getpid():
            raise WsiWebError("An iteration that began before a fork cannot go on in the child; begin it anew.")
        try:
            self._fill()
            if not self._jobs:
                raise StopIteration  # noqa: TRY301
            job = self._jobs[0]
            self._wait_for(job)
        except BaseException:
            self.close()
            raise
        self._jobs.popleft()
        self._ahead_bytes -= job.plan.output_bytes
        return job.array

    def close(self) -> None:
        """Stop at once: nothing more is fetched or decoded for this iterator."""
        self._reader.end(self._errand)
        self._reader.abandon(self._claimed)
        self._claimed = {}
        self._jobs.clear()
        self._exhausted = True

    def __del__(self) -> None:
        # In a forked child the parent's locks may be held for ever.
        if hasattr(self, "_claimed") and self._reader.process_id == os.getpid():
            self.close()

    def _fill(self) -> None:
        """Plan ahead while the budget lasts, and start what has to be produced, in lots worth a request."""
        if self._exhausted or (self._jobs and self._ahead_bytes > self._budget_bytes * 3 // 4):
            return
        advice = self._reader.advise(_MANY_FRAMES)
        lot = advice.requests * advice.max_frames
        while not self._exhausted and (not self._jobs or self._ahead_bytes < self._budget_bytes):
            item = next(self._plans, None)
            if item is None:
                self._exhausted = True
            else:
                self._admit(*item)
            if len(self._claimed) >= lot:
                self._start()
        self._start()

    def _start(self) -> None:
        claimed, self._claimed = self._claimed, {}
        self._reader.start(claimed, self._errand)

    def _admit(self, plan: ReadPlan, out: Pixels | None) -> None:
        """Take up one plan, and claim the tiles that no plan before it wants."""
        job = Job(plan, stitch.canvas(plan, out), {key: row for row, key in enumerate(plan.keys)})
        self._jobs.append(job)
        self._ahead_bytes += plan.output_bytes
        new = []
        for key in plan.keys:
            others = self._wanted_by.get(key)
            if others is None:
                self._wanted_by[key] = [job]
                new.append(key)
            else:
                others.append(job)
        hits, ours = self._reader.claim(new, self._events)
        self._reader.stats.add(tile_hits=len(plan.keys) - len(new) + len(hits), tile_misses=len(new) - len(hits))
        visible = plan.placements.visible
        self._claimed.update((key, visible[job.waiting[key]]) for key in ours)
        for key, tile in hits.items():
            self._deliver(key, tile)

    def _deliver(self, key: FrameKey, tile: Pixels) -> None:
        for job in self._wanted_by.pop(key):
            job.take(key, tile)

    def _wait_for(self, job: Job) -> None:
        deadline = time.monotonic() + self._reader.options.deadline_seconds
        while job.waiting:
            try:
                key, tile, error = self._events.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise self._late(job) from None
            if tile is not None:
                self._deliver(key, tile)
            elif isinstance(error, AbandonedError):
                self._reclaim(key)
            elif error is not None:
                raise error
            else:
                self._reader.check_open()

    def _late(self, job: Job) -> SourceTimeoutError:
        numbers = tuple(sorted(frame_index + 1 for _, frame_index in job.waiting))
        return SourceTimeoutError(
            f"{len(numbers)} of {len(job.plan.keys)} frames of a region did not arrive within "
            f"{self._reader.options.deadline_seconds:g} s. Read less at a time, or raise "
            f"ReadOptions.deadline_seconds.",
            frame_numbers=numbers,
        )

    def _reclaim(self, key: FrameKey) -> None:
        """Another read was to produce this tile and was stopped: produce it here."""
        self._reader.check_open()
        hits, ours = self._reader.claim([key], self._events)
        for hit, tile in hits.items():
            self._deliver(hit, tile)
        job = self._wanted_by[key][0] if ours else None
        if job is not None:
            self._reader.start({key: job.plan.placements.visible[job.waiting[key]]}, self._errand)
