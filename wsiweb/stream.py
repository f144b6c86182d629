"""The caller's side of reading: draw plans ahead within a budget, hand arrays out in order.

Makes no threads and knows no source: a ``Reader`` produces the tiles. Whichever of its threads has one paints it, so
that the caller is woken once for an array, and not for each tile.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsiweb import stitch
from wsiweb.cache import AbandonedError, Keep
from wsiweb.errors import SourceTimeoutError, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from wsiweb.memory import ArrayPool
    from wsiweb.plan import FrameKey, ReadPlan
    from wsiweb.reader import Reader

    Pixels = npt.NDArray[Any]


_MANY_FRAMES = 1 << 16
_WORTH_THREADS_BYTES = 4 << 20
"""Of a region whose tiles are there: then several threads copy them sooner than one."""
_TOGETHER, _TOGETHER_SECONDS = 8, 0.003
"""A caller who must wait waits for so many arrays, if they come so soon: woken for each, it would take turns with the
threads that make them."""
_NAP_SECONDS = 0.5
"""A Ctrl-C that comes just before a thread falls asleep does not wake it; it is heeded with the next nap."""


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """What wakes a caller: an array is painted or will not be, its reader is being closed, or a tile was abandoned."""

    abandoned: FrameKey | None = None


@dataclass(slots=True, eq=False)
class Read:
    """One array to make."""

    plan: ReadPlan
    out: Pixels | None = None
    """What to paint; None has it made."""
    finish: Callable[[Pixels], Pixels] | None = None
    """Makes what is handed out of what was painted; called in a decode thread."""


@dataclass(slots=True, eq=False)
class Job:
    """One array on its way."""

    plan: ReadPlan
    array: Pixels | None
    """What is painted, then what is handed out."""
    finish: Callable[[Pixels], Pixels] | None
    waiting: dict[FrameKey, int]
    """Rows of the plan whose tile has not come yet."""
    unpainted: int
    """Rows that are not painted yet."""
    done: bool = False
    error: BaseException | None = None
    """Why it will not be whole."""
    held: dict[int, Pixels] = field(default_factory=dict)
    """Tiles of a plan whose order of drawing matters, by row, until all are there."""


class Board:
    """The plans that are on their way, and who waits for which tile. Shared by all threads that produce tiles.

    Does not know the stream: one that nobody iterates over any more is collected, and stops the work.
    """

    def __init__(self, memory: ArrayPool, *, alone: bool) -> None:
        self._memory = memory
        self._alone = alone
        self.awaited: Job | None = None
        """For which the caller sleeps: it is woken for no other that is whole."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wanted_by: dict[FrameKey, list[Job]] = {}

    def enlist(self, job: Job) -> list[FrameKey]:
        """Note what a plan needs; return the tiles that no plan before it waits for."""
        new = []
        with self._lock:
            for key in job.plan.keys:
                others = self._wanted_by.get(key)
                if others is None:
                    self._wanted_by[key] = [job]
                    new.append(key)
                else:
                    others.append(job)
        return new

    @property
    def tiles_awaited(self) -> int:
        """How many tiles have not come yet."""
        return len(self._wanted_by)

    def wanted_by(self, key: FrameKey) -> Job | None:
        """Return a plan that waits for a tile."""
        with self._lock:
            return next(iter(self._wanted_by.get(key, ())), None)

    def clear(self) -> None:
        """Forget all plans."""
        with self._lock:
            self._wanted_by.clear()

    def fail(self, key: FrameKey, error: BaseException) -> None:
        """Hear that a tile will not come, and let the caller know. From any thread."""
        if isinstance(error, AbandonedError):
            self.events.put(Event(abandoned=key))
            return
        with self._lock:
            for job in self._wanted_by.pop(key, ()):
                job.error = error
        self.events.put(Event())

    def take(self, tiles: Sequence[tuple[FrameKey, Pixels]]) -> None:
        """Paint tiles into all arrays that show them. From any thread."""
        places = []
        with self._lock:
            for key, tile in tiles:
                for job in self._wanted_by.pop(key, ()):
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
                job.error = error
                self.events.put(Event())
        whole = []
        with self._lock:
            for job, _, _ in places:
                job.unpainted -= 1
                if job.unpainted == 0 and job.error is None:
                    whole.append(job)
        for job in whole:
            self.complete(job)

    def array_of(self, job: Job) -> Pixels:
        """Return the array of a plan; made with the first tile, so that memory just let go by others serves again."""
        if job.array is None:
            with self._lock:
                if job.array is None:
                    # One array alone, kept by its owner, would hold the slab of many.
                    empty = np.empty if self._alone and job.finish is None else self._memory.empty
                    job.array = empty(job.plan.shape, job.plan.dtype)
        return job.array

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
            job.error = error
        if job is self.awaited:
            self.events.put(Event())


class Stream:
    """An iterator over the arrays of many plans, in order; see ``Reader.stream``."""

    def __init__(self, reader: Reader, reads: Iterable[Read], budget_bytes: int, *, keep: Keep) -> None:
        self._reader = reader
        self._reads: Iterator[Read] = iter(reads)
        self._budget_bytes = budget_bytes
        self._exhausted = False
        self._errand = reader.begin(keep)
        self._board = Board(reader.memory, alone=keep is Keep.YES)
        events = self._board.events  # and not self, which would keep an abandoned iterator alive
        self._errand.cancellation.on_cancel(lambda: events.put(Event()))
        self._jobs: deque[Job] = deque()
        self._ahead_bytes = 0
        self._claimed: dict[FrameKey, tuple[int, int]] = {}  # but not started yet
        self._lot_tiles = 0

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
        return self._board.array_of(job)

    def start(self) -> None:
        """Plan and fetch ahead, without waiting for anything."""
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop at once: nothing more is fetched or decoded for this iterator."""
        self._reader.end(self._errand)
        self._reader.abandon(self._claimed)
        self._claimed = {}
        self._jobs.clear()
        self._board.clear()
        self._exhausted = True

    def __del__(self) -> None:
        # In a forked child the parent's locks may be held for ever.
        if hasattr(self, "_claimed") and self._reader.process_id == os.getpid():
            self.close()

    def _fill(self) -> None:
        """Plan ahead while the budget lasts, and start what has to be produced, in lots that keep all connections busy.

        Two lots are under way: planning more costs time and memory, and brings nothing sooner.
        """
        if self._exhausted:
            return
        if self._jobs and (self._ahead_bytes > self._budget_bytes // 2 or self._board.tiles_awaited > self._lot_tiles):
            return
        advice = self._reader.advise(_MANY_FRAMES)
        self._lot_tiles = lot = advice.requests * advice.max_frames
        while not self._jobs or (self._ahead_bytes < self._budget_bytes and self._board.tiles_awaited < 2 * lot):
            read = next(self._reads, None)
            if read is None:
                self._exhausted = True
                break
            self._admit(read)
            if len(self._claimed) >= lot:
                self._start()
        self._start()

    def _start(self) -> None:
        claimed, self._claimed = self._claimed, {}
        if claimed:
            self._reader.start(claimed, self._errand)

    def _admit(self, read: Read) -> None:
        """Take up one plan, and claim the tiles that no plan before it wants."""
        plan = read.plan
        count = len(plan.keys)
        job = Job(plan, read.out, read.finish, dict(zip(plan.keys, range(count), strict=True)), count)
        if not plan.covered:
            stitch.fill(self._board.array_of(job), plan)
        self._jobs.append(job)
        self._ahead_bytes += plan.output_bytes
        new = self._board.enlist(job)
        claim = self._reader.claim(new, self._board)
        misses = len(new) - len(claim.hits)
        self._reader.stats.add(tile_hits=len(plan.keys) - misses, tile_misses=misses)
        for key in claim.ours:  # which nobody else can produce, so that they still wait
            self._claimed[key] = plan.visible(job.waiting[key])
        if claim.hits:
            self._paint(list(claim.hits.items()), job)
        if not plan.keys:
            self._board.complete(job)

    def _paint(self, hits: list[tuple[FrameKey, Pixels]], job: Job) -> None:
        """Paint tiles that were there; in the decode threads, where that is more work than waking them."""
        if job.finish is None and job.plan.output_bytes < _WORTH_THREADS_BYTES:
            self._board.take(hits)
            return
        share = max(-(-len(hits) // self._reader.options.decode_thread_count), 1)
        for start in range(0, len(hits), share):
            self._reader.soon(functools.partial(self._board.take, hits[start : start + share]))

    def _wait_for(self, job: Job) -> None:
        if not job.done:
            start_seconds = time.monotonic()
            later = self._jobs[min(_TOGETHER, len(self._jobs)) - 1]
            self._sleep_until(later, start_seconds + _TOGETHER_SECONDS)
            self._sleep_until(job, start_seconds + self._reader.options.deadline_seconds)
            self._board.awaited = None  # its array is the consumer's from now on
        if job.error is not None:
            raise job.error
        if not job.done:
            raise self._late(job)

    def _sleep_until(self, job: Job, deadline: float) -> None:
        """Sleep until an array is whole or will not be, or time is up."""
        self._board.awaited = job
        while not job.done and job.error is None:
            left = deadline - time.monotonic()
            try:
                event = self._board.events.get(timeout=min(max(left, 0), _NAP_SECONDS))
            except queue.Empty:
                if left <= _NAP_SECONDS:
                    return
                continue
            if event.abandoned is not None:
                self._reclaim(event.abandoned)
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
        claim = self._reader.claim([key], self._board)
        self._board.take(list(claim.hits.items()))
        job = self._board.wanted_by(key) if claim.ours else None
        if job is not None:
            self._reader.start({key: job.plan.visible(job.waiting[key])}, self._errand)
