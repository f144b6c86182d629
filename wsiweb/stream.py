"""The caller's side of reading: draw plans ahead within a budget, hand arrays out in order.

Makes no threads and knows no source: a ``Reader`` produces the tiles, its threads paint them on the ``Board``.
"""

from __future__ import annotations

import functools
import os
import queue
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from wsiweb.board import Board
from wsiweb.colour import paint
from wsiweb.errors import SourceTimeoutError, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from wsiweb.board import Job
    from wsiweb.cache import Keep
    from wsiweb.frames import FrameKey
    from wsiweb.reader import Reader

    Pixels = npt.NDArray[Any]


_MANY_FRAMES = 1 << 16
_WORTH_THREADS_BYTES = 4 << 20
"""Of a region whose tiles are there: then several threads copy them sooner than one."""
_TOGETHER, _TOGETHER_SECONDS = 8, 0.003
"""A caller who must wait waits for so many arrays, if they come so soon: woken for each, it would take turns with the
threads that make them."""
_FORESEEN_PLANS = 4096
"""That are drawn before their turn, at most."""
_FORESIGHT = 2
"""Their arrays may be so many times as large as the tile cache, whose room those take that are begun: not all are."""
_FORESEEN_A_TURN, _FORESEEN_A_WAIT = 2, 128
"""So many are drawn with each array that is handed out, and at least so many while one is waited for."""
_BARREN_PLANS = 64
"""So many after each other that share no tile with what is on its way: then there is no use in more."""
_NAP_SECONDS = 0.5
"""A Ctrl-C that comes just before a thread falls asleep does not wake it; it is heeded with the next nap."""


class Stream:
    """The arrays of many plans, in order.

    Plans are drawn, and frames fetched and decoded, ahead of the consumer. The caches are read in any case.

    Parameters
    ----------
    reader
        Produces the tiles.
    jobs
        The plans.
    outs
        Arrays to paint and hand out, one a plan, each drawn in its turn; None makes new ones.
    ahead_bytes
        Of arrays that the consumer has not taken yet; None takes ``ReadOptions.readahead_bytes``.
    keep
        What becomes of the tiles that are decoded.
    single
        Whether all is of one region.
    """

    def __init__(
        self,
        reader: Reader,
        jobs: Iterable[Job],
        *,
        outs: Iterable[Pixels] | None,
        ahead_bytes: int | None,
        keep: Keep,
        single: bool,
    ) -> None:
        self._reader = reader
        self._drawn: Iterator[Job] = iter(jobs)
        self._outs = None if outs is None else iter(outs)
        self._budget_bytes = reader.options.readahead_bytes if ahead_bytes is None else ahead_bytes
        self._exhausted = self._closed = False
        self._board = Board(reader.memory, reader.tiles, alone=single)
        self._errand = reader.begin(self._board, keep, single=single)
        events = self._board.events  # and not self, which would keep an abandoned iterator alive
        self._errand.cancellation.on_cancel(lambda: events.put(None))
        self._jobs: deque[Job] = deque()
        self._ahead_bytes = 0
        self._foreseen: deque[Job] = deque()
        self._foreseen_bytes = 0
        self._barren = 0
        self._foresight_bytes = _FORESIGHT * reader.options.tile_cache_bytes
        self._claimed: dict[FrameKey, tuple[int, int]] = {}  # but not started yet
        self._lot_tiles = 0

    def outcome(self) -> Pixels | BaseException:
        """Return the next array, or why there is none; the iteration goes on behind it.

        Raises
        ------
        StopIteration
            There is no further plan.
        WsiWebError
            The iteration has ended, for all arrays: it was stopped, or the slide was closed.
        """
        if self._reader.process_id != os.getpid():
            raise WsiWebError("An iteration that began before a fork cannot go on in the child; begin it anew.")
        try:
            self._fill()
            if not self._jobs:
                raise StopIteration  # noqa: TRY301
            job = self._jobs[0]
            for _ in range(_FORESEEN_A_TURN):
                self._foresee()
            self._wait_for(job)
            self._jobs.popleft()
        except BaseException as error:
            self._end_with(error)
            raise
        self._ahead_bytes -= job.n_bytes
        if job.done:
            return self._board.hand_out(job)
        self._board.drop(job)
        return job.error if job.error is not None else self._late(job)

    def skip(self, count: int) -> None:
        """Leave out the next arrays."""
        for _ in range(count):
            if self._jobs:
                job = self._jobs.popleft()
                self._ahead_bytes -= job.n_bytes
                self._board.drop(job)
            elif (ahead := self._next_in_turn()) is not None:
                self._board.drop(ahead)

    def start(self) -> None:
        """Plan and fetch ahead, without waiting for anything."""
        try:
            self._fill()
        except BaseException as error:
            self._end_with(error)
            raise

    def close(self) -> None:
        """Stop at once: nothing more is fetched or decoded for this iterator."""
        self._exhausted = True
        self._reader.end(self._errand)
        self._claimed = {}
        # Whatever a Ctrl-C has cut short: what is asked for here, and by nobody before, nobody else would produce.
        self._reader.tiles.forsake(self._board.asked(), self._board)
        self._jobs.clear()
        self._foreseen.clear()
        self._board.close()
        self._closed = True

    def _end_with(self, error: BaseException) -> None:
        """Close, and say so where another thread has, which empties the queues."""
        closed = self._errand.cancellation.cancelled
        self.close()
        if closed and isinstance(error, IndexError):
            raise _closed_elsewhere() from error

    def __del__(self) -> None:
        # In a forked child the parent's locks may be held for ever.
        if hasattr(self, "_claimed") and not self._closed and self._reader.process_id == os.getpid():
            self.close()

    def _fill(self) -> None:
        """Plan ahead while the budget lasts, and start what has to be produced, in lots that keep all connections busy.

        Two lots are under way: planning more costs time and memory, and brings nothing sooner.
        """
        if self._exhausted and not self._foreseen:
            return
        if self._jobs and (self._ahead_bytes > self._budget_bytes // 2 or self._board.tiles_awaited > self._lot_tiles):
            return
        advice = self._reader.advise(_MANY_FRAMES)
        self._lot_tiles = lot = advice.requests * advice.max_frames
        while not self._jobs or (self._ahead_bytes < self._budget_bytes and self._board.tiles_awaited < 2 * lot):
            job = self._next_in_turn()
            if job is None:
                break
            self._admit(job)
            if len(self._claimed) >= lot:
                self._start()
        self._start()

    def _start(self) -> None:
        claimed, self._claimed = self._claimed, {}
        if claimed:
            self._reader.start(claimed, self._errand)

    def _draw(self) -> Job | None:
        """Return the next plan, or None after the last."""
        job = None if self._exhausted else next(self._drawn, None)
        self._exhausted = job is None
        return job

    def _foresee(self) -> bool:
        """Draw a plan before its turn; see ``Board.foresee``. False where that is far enough ahead."""
        most = _FORESEEN_PLANS if self._barren < _BARREN_PLANS else _BARREN_PLANS
        if self._foreseen_bytes >= self._foresight_bytes or len(self._foreseen) >= most:
            return False
        job = self._draw()
        if job is None:
            return False
        self._foreseen.append(job)
        self._foreseen_bytes += job.n_bytes
        # What is covered has nothing to be painted first, and needs no order.
        shares = job.plan.covered and self._board.foresee(job)
        self._barren = 0 if shares else self._barren + 1
        return True

    def _next_in_turn(self) -> Job | None:
        if not self._foreseen:
            return self._draw()
        job = self._foreseen.popleft()
        self._foreseen_bytes -= job.n_bytes
        return job

    def _admit(self, job: Job) -> None:
        """Take up one plan, and claim the tiles that no plan before it wants."""
        plan = job.plan
        job.out = None if self._outs is None else next(self._outs)
        if not plan.covered:
            paint(self._board.array_of(job), plan.background)
        self._jobs.append(job)
        self._ahead_bytes += job.n_bytes
        new = self._board.enlist(job)
        claim = self._reader.tiles.claim(new, self._board)
        misses = len(new) - len(claim.hits)
        self._reader.stats.add(tile_hits=len(plan.keys) - misses, tile_misses=misses)
        self._claimed.update(job.visible(claim.ours))
        if claim.hits:
            self._paint(list(claim.hits.items()), job)
        if not plan.keys and job.error is None:
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
            self._use_wait_for(job)
            later = self._jobs[min(_TOGETHER, len(self._jobs)) - 1]
            self._sleep_until(later, start_seconds + _TOGETHER_SECONDS)
            self._sleep_until(job, start_seconds + self._reader.options.deadline_seconds)
            self._board.awaited = None  # its array is the consumer's from now on

    def _use_wait_for(self, job: Job) -> None:
        """Look ahead; not for long once tiles come, whose threads need the interpreter."""
        awaited, drawn = self._board.tiles_awaited, 0
        while not job.done and job.error is None and self._foresee():
            drawn += 1
            if drawn >= _FORESEEN_A_WAIT and self._board.tiles_awaited < awaited:
                return

    def _sleep_until(self, job: Job, deadline: float) -> None:
        """Sleep until an array is whole or will not be, or time is up."""
        self._board.awaited = job
        while not job.done and job.error is None:
            left = deadline - time.monotonic()
            try:
                abandoned = self._board.events.get(timeout=min(max(left, 0), _NAP_SECONDS))
            except queue.Empty:
                if left <= _NAP_SECONDS:
                    return
                continue
            if abandoned is not None:
                self._reclaim(abandoned)
            else:
                self._reader.check_open()
                if self._errand.cancellation.cancelled:
                    raise _closed_elsewhere()

    def _late(self, job: Job) -> SourceTimeoutError:
        late = list(job.waiting)  # tiles may yet come
        numbers = tuple(sorted(frame_index + 1 for _, frame_index in late))
        instances = ", ".join(sorted({self._reader.instance_uid(key) for key in late}))
        return SourceTimeoutError(
            f"{len(numbers)} of {len(job.plan.keys)} frames of a region, of instance {instances}, did not arrive "
            f"within {self._reader.options.deadline_seconds:g} s. Read less at a time, or raise "
            f"ReadOptions.deadline_seconds.",
            frame_numbers=numbers,
        )

    def _reclaim(self, key: FrameKey) -> None:
        """Another read was to produce this tile and was stopped: produce it here."""
        self._reader.check_open()
        job = self._board.wanted_by(key)
        if job is None:
            return
        claim = self._reader.tiles.claim([key], self._board)
        self._board.take(list(claim.hits.items()))
        self._claimed.update(job.visible(claim.ours))
        self._start()


def _closed_elsewhere() -> WsiWebError:
    return WsiWebError("This iteration was closed, in another thread or as the program ends, while it was waited for.")
