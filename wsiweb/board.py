"""The arrays that are on their way, and who waits for which tile.

Makes no threads and knows no source. Whichever thread has a tile paints it, so that a caller is woken once for an
array, and not for each tile.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from wsiweb import stitch
from wsiweb.cache import AbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from wsiweb.frames import FrameKey
    from wsiweb.memory import ArrayPool
    from wsiweb.plan import ReadPlan

    Pixels = npt.NDArray[Any]


@dataclass(slots=True, eq=False)
class Job:
    """One array to make, and how far that has come."""

    plan: ReadPlan
    n_bytes: int
    """That it takes up, before ``finish`` or after it, whichever is more."""
    finish: Callable[[Pixels], Pixels] | None = None
    """Makes what is handed out of what was painted; called in a decode thread."""
    error: BaseException | None = None
    """Why it will not be whole."""
    waiting: dict[FrameKey, int] = field(init=False)
    """Rows of the plan whose tile has not come yet."""
    unpainted: int = field(init=False)
    """Rows that are not painted yet."""
    out: Pixels | None = None
    """Where it is wanted, once its turn has come; None has an array made."""
    array: Pixels | None = None
    """What is painted, then what is handed out."""
    done: bool = False
    held: dict[int, Pixels] = field(default_factory=dict)
    """Tiles of a plan whose order of drawing matters, by row, until all are there."""
    foreseen: bool = False
    """Whether its turn to be fetched has not come."""
    borrowed: bool = False
    """Whether its array was begun all the same, and takes up room of the lender's beside that of ``out``."""

    def __post_init__(self) -> None:
        self.unpainted = len(self.plan.keys)
        self.waiting = dict(zip(self.plan.keys, range(self.unpainted), strict=True))

    def visible(self, keys: Iterable[FrameKey]) -> dict[FrameKey, tuple[int, int]]:
        """Return what must be there of each tile that has not come: a read that was stopped may still bring some."""
        rows = ((key, self.waiting.get(key)) for key in keys)
        return {key: self.plan.visible(row) for key, row in rows if row is not None}


class Lender(Protocol):
    """Has memory that nobody needs at once."""

    def lend(self, n_bytes: int, /) -> bool:
        """Give up so much; False, and nothing, where too little is left."""
        ...

    def give_back(self, n_bytes: int, /) -> None:
        """Hear that it is free again."""
        ...


class Board:
    """The plans that are on their way, and who waits for which tile. Shared by all threads that produce tiles.

    Does not know the stream: one that nobody iterates over any more is collected, and stops the work.

    Parameters
    ----------
    memory
        Where arrays come from.
    lender
        Of the room for the arrays of plans that are only foreseen.
    alone
        Whether there is one array, which its owner may keep for long.
    """

    def __init__(self, memory: ArrayPool, lender: Lender, *, alone: bool) -> None:
        self._memory = memory
        self._lender = lender
        self._borrowed_bytes = 0
        self._alone = alone
        self.awaited: Job | None = None
        """For which the caller sleeps: it is woken for no other that is whole."""
        self.events: queue.SimpleQueue[FrameKey | None] = queue.SimpleQueue()
        """What wakes the caller: the key of a tile that was abandoned; None where an array is painted, or will not be,
        or its reader is being closed."""
        self._closed = False
        self._lock = threading.RLock()  # a stream may be collected, and closed, anywhere
        self._wanted_by: defaultdict[FrameKey, dict[Job, None]] = defaultdict(dict)  # in order
        self._asked: set[FrameKey] = set()

    def foresee(self, job: Job) -> bool:
        """Note what a plan will need whose turn has not come. Whether some of it is on its way now.

        Tiles that come for others are painted into its array as well, while there is room: a tile that plans far
        apart show is decoded once, and need not be kept in between.
        """
        with self._lock:
            job.foreseen = True
            for key in job.plan.keys:
                self._wanted_by[key][job] = None
            return not self._asked.isdisjoint(job.plan.keys)

    def enlist(self, job: Job) -> list[FrameKey]:
        """Note what a plan needs, now that its turn has come; return the tiles that nobody was asked for yet."""
        new = []
        with self._lock:
            for key in job.waiting:
                self._wanted_by[key][job] = None
                if key not in self._asked:
                    self._asked.add(key)
                    new.append(key)
            job.foreseen = False
            if job.out is None:
                self._settle(job)
        return new

    def asked(self) -> list[FrameKey]:
        """Return the tiles that were asked for and have not come yet."""
        with self._lock:
            return list(self._asked)

    @property
    def tiles_awaited(self) -> int:
        """How many tiles were asked for and have not come yet."""
        return len(self._asked)

    def wanted_by(self, key: FrameKey) -> Job | None:
        """Return a plan that waits for a tile, which is to be asked for again; None, if there is none any more."""
        with self._lock:
            found = next((job for job in self._wanted_by.get(key, ()) if not job.foreseen), None)
            if found is None:
                self._asked.discard(key)
            return found

    def drop(self, job: Job) -> None:
        """Forget a plan: nothing more is painted for it."""
        with self._lock:
            for key in job.waiting:
                jobs = self._wanted_by.get(key)
                if jobs is not None:
                    jobs.pop(job, None)
                    if not jobs:
                        del self._wanted_by[key]
            self._settle(job)

    def close(self) -> None:
        """Forget all plans, for good."""
        with self._lock:
            self._closed = True
            self._wanted_by.clear()
            self._asked.clear()
            self._lender.give_back(self._borrowed_bytes)
            self._borrowed_bytes = 0

    def _settle(self, job: Job) -> None:
        """Give back the room that a plan has borrowed."""
        if job.borrowed and not self._closed:
            job.borrowed = False
            self._borrowed_bytes -= job.n_bytes
            self._lender.give_back(job.n_bytes)

    def fail(self, key: FrameKey, error: BaseException) -> None:
        """Hear that a tile will not come, and let the caller know. From any thread."""
        if isinstance(error, AbandonedError):
            self.events.put(key)
            return
        with self._lock:
            self._asked.discard(key)
            for job in self._wanted_by.pop(key, ()):
                if not job.foreseen:  # else it asks again, when its turn comes
                    job.error = error
        self.events.put(None)

    def take(self, tiles: Sequence[tuple[FrameKey, Pixels]]) -> None:
        """Paint tiles into all arrays that show them. From any thread."""
        places = []
        with self._lock:
            for key, tile in tiles:
                self._asked.discard(key)
                for job in self._wanted_by.pop(key, ()):
                    if job.foreseen and not self._has_room(job):
                        continue
                    row = job.waiting.pop(key)
                    if job.plan.ordered:
                        job.held[row] = tile
                    places.append((job, row, tile))
        for job, row, tile in places:
            try:
                if not job.plan.ordered:
                    stitch.paste(self.array_of(job), tile, job.plan, row)
                elif not job.waiting:
                    self._paint_held(job, self.array_of(job))
            except BaseException as error:  # noqa: BLE001  (a MemoryError, say: it is the caller's)
                self._fail_job(job, error)
        whole = []
        with self._lock:
            for job, _, _ in places:
                job.unpainted -= 1
                if job.unpainted == 0 and job.error is None:
                    whole.append(job)
        for job in whole:
            self.complete(job)

    def _fail_job(self, job: Job, error: BaseException) -> None:
        """Leave an error to who wants the array; a Ctrl-C is this thread's as well."""
        job.error = error
        self.events.put(None)
        if not isinstance(error, Exception):
            raise error

    def _has_room(self, job: Job) -> bool:
        """Have room for the array of a plan that is only foreseen."""
        was_open = not self._closed
        if not job.borrowed and was_open and self._lender.lend(job.n_bytes):
            if self._closed:  # meanwhile, by the garbage collector
                self._lender.give_back(job.n_bytes)
                return False
            job.borrowed = True
            self._borrowed_bytes += job.n_bytes
        return job.borrowed

    def array_of(self, job: Job) -> Pixels:
        """Return the array of a plan; made with the first tile, so that memory just let go by others serves again."""
        if job.array is None:
            array = job.out
            if array is None:
                kept = self._alone and job.finish is None
                empty = self._memory.alone if kept else self._memory.empty
                array = empty(job.plan.shape, job.plan.dtype)
            with self._lock:
                if job.array is None:  # else another thread was faster
                    job.array = array
        return job.array

    def hand_out(self, job: Job) -> Pixels:
        """Return the array of a plan that is done, where it is wanted."""
        array, job.array = self.array_of(job), None
        if job.out is not None and job.out is not array:  # it was begun before its turn
            job.out[...] = array
            array = job.out
        with self._lock:
            self._settle(job)
        return array

    def _paint_held(self, job: Job, array: Pixels) -> None:
        with self._lock:
            held, job.held = job.held, {}
        for row in sorted(held):
            stitch.paste(array, held[row], job.plan, row)

    def complete(self, job: Job) -> None:
        """Finish what is painted, and wake the caller."""
        try:
            if job.finish is not None:
                job.array = job.finish(self.array_of(job))
            job.done = True
        except BaseException as error:  # noqa: BLE001  (it is the caller's, not this thread's)
            self._fail_job(job, error)
        if job is self.awaited:
            self.events.put(None)
