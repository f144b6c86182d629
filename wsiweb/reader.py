"""Run read plans: claim, fetch, decode, stitch.

Fetch threads take frames from the source as they arrive and hand them to decode threads; decoded tiles go to the
cache, and are painted into the arrays of all callers who wait for them. Pool threads never wait for one another, only
callers do, so nothing can deadlock.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import threading
import time
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from wsiweb.batch import Batch, batch_frames
from wsiweb.cache import AbandonedError, ByteCache, Keep, SingleFlightCache
from wsiweb.codecs import FrameDecoder, TruncatedFrameError
from wsiweb.errors import DecodeError, ProtocolError, SourceError, SourceTimeoutError, UnsupportedError, WsiWebError
from wsiweb.guesses import Allowance, Guesses
from wsiweb.memory import IDLE_BYTES, ArrayPool
from wsiweb.sources.base import MODERATE_CONNECTIONS, Advice, Cancellation, EncodedFrame
from wsiweb.workers import Workers, alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from wsiweb.board import Board
    from wsiweb.frames import FrameKey
    from wsiweb.metadata import Instance
    from wsiweb.options import ReadOptions
    from wsiweb.sources.base import FrameSource

    Pixels = npt.NDArray[Any]

Arrived = tuple["Task", EncodedFrame]
Decoded = tuple["Task", EncodedFrame, "Pixels | BaseException"]
Lot = TypeVar("Lot", Arrived, Decoded)
Item = TypeVar("Item")
Result = TypeVar("Result")

_CLOSING_SECONDS = 1.0
"""How long ``close`` waits for fetch threads, which mostly stop at once."""
_EARLY_BYTES = 64 << 20
"""Of tiles decoded before it is certain which they are; they wait for the end of an answer."""
_FRAME_OVERHEAD_BYTES = 200
"""Of an encoded frame in the cache, beside its data."""
_LOT_FRAMES, _LOT_SECONDS = 4, 0.002
"""Decoded by one thread before it hands them on, at most: to hand each on by itself would be more work."""
_DECODED_A_LOT = 8
"""That one thread puts into their places at a time."""
_LOTS_A_THREAD = 8
"""Into which a batch is divided at the least, so that no thread is left with more than its share."""
_FULL_READERS = 4
"""So many may have filled their caches; if all of a process hold more than that, those at rest let go of theirs."""
_LOOK_SECONDS = 0.05
"""After which it is looked how much that is: of hundreds of readers, that takes as long as a small read."""


class ClosedError(WsiWebError):
    """The slide is closed."""


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """One read under way."""

    board: Board
    """Who claimed its tiles."""
    cancellation: Cancellation
    keep: Keep
    """What becomes of the tiles that it decodes."""
    single: bool
    """Whether it is of one region."""


@dataclass(slots=True, eq=False)
class Task:
    """One tile to produce."""

    key: FrameKey
    visible: tuple[int, int]
    """What of the tile must be there; see ``codecs.decode``."""
    errand: Errand
    rank: int
    """By which what was wanted first is fetched and decoded first."""
    again: bool = False
    """Whether its frame has come once, and was no good."""
    spared: bool = False
    """Whether a request that asked for it has failed once, for others."""


class Reader:
    """Reads the frames of one slide in one process. Safe to share between threads."""

    def __init__(self, source: FrameSource, instances: Sequence[Instance], options: ReadOptions) -> None:
        self.source = source
        self.options = options
        self.stats = source.stats
        self.process_id = os.getpid()
        self.memory = ArrayPool()
        self._instances = instances
        self._frame_decoders = [
            FrameDecoder(instance.pixels, instance.transfer_syntax_uid, self.memory.empty) for instance in instances
        ]
        self._closed = False
        self._lock = threading.RLock()  # a stream may be collected, and closed, anywhere
        self._active: set[Errand] = set()
        self.tiles: SingleFlightCache[FrameKey, Pixels] = SingleFlightCache(
            options.tile_cache_bytes, lambda tile: tile.nbytes
        )
        self._frames: ByteCache[FrameKey, EncodedFrame] = ByteCache(
            options.frame_cache_bytes if source.remote else 0,
            lambda frame: len(frame.data) + _FRAME_OVERHEAD_BYTES,
        )
        # Threads are started on demand: a slide that is only looked at has none.
        self._fetchers = Workers(options.max_connections, "wsiweb-fetch")
        self._decoders = Workers(options.decode_thread_count, "wsiweb-decode")
        self._frame_seconds = _LOT_SECONDS / _LOT_FRAMES  # that the last frames took to decode
        self._reads = 1  # under way, when it was last counted
        self._early = Allowance(_EARLY_BYTES)
        self._ranks = itertools.count()
        self._used_seconds = 0.0  # when a read began last
        _ALL.add(self)

    def stop(self) -> None:
        """Stop all reads that are under way, in whatever thread; others may follow."""
        for errand in tuple(self._active):
            errand.cancellation.cancel()

    def rest(self) -> None:
        """Let go of what is kept in memory, until it is read again."""
        self.tiles.clear()
        self._frames.clear()
        self.memory.collect(most_idle_bytes=0)

    @property
    def cached_bytes(self) -> int:
        """Of the tiles and frames that are kept, and of memory for others."""
        return self.tiles.n_bytes + self._frames.n_bytes + self.memory.idle_bytes

    @property
    def budget_bytes(self) -> int:
        """Of what ``cached_bytes`` says."""
        return self.options.tile_cache_bytes + self.options.frame_cache_bytes + IDLE_BYTES

    def close(self) -> None:
        """Stop all reads, and release threads, sockets, files and memory."""
        with self._lock:
            self._closed = True
        self.stop()
        # A thread that waits for a connection cannot be woken; it ends with its timeout, and nobody waits for it.
        self._fetchers.close(_CLOSING_SECONDS)
        self._decoders.close()
        self.source.close()
        self.tiles.clear()
        self._frames.clear()
        self.memory.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def check_open(self) -> None:
        """Raise ``ClosedError`` after ``close``."""
        if self._closed:
            raise ClosedError("This slide is closed; open it again to read.")

    def map_ordered(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Do what ``map`` does, on the decode threads."""
        try:
            return self._decoders.map(function, items)
        except RuntimeError as error:
            raise self._no_thread(error) from error

    def instance_uid(self, key: FrameKey) -> str:
        """Return the SOP Instance UID of a frame."""
        return self._instances[key[0]].address.instance_uid

    def encoded(self, key: FrameKey, instance: Instance) -> bytes:
        """Return a frame as it is stored: of the cache, where it has just been read, else fetched by itself."""
        frame = self._frames.get(key)
        if frame is None:
            self.check_open()
            ((frame,),) = self.source.fetch(instance.batch((key[1] + 1,)), Cancellation())
        return frame.data

    def soon(self, job: Callable[[], None]) -> None:
        """Have something done that raises nothing, in a decode thread."""
        try:
            self._decoders.add(job)
        except RuntimeError as error:
            raise self._no_thread(error) from error

    def _no_thread(self, error: RuntimeError) -> WsiWebError:
        """Say why a thread that was asked for is not there."""
        if self._closed:
            return ClosedError("This slide was closed while it was being read.")
        return WsiWebError(
            f"No thread can be started to read with ({error}). Read before the program ends, and raise the limits of "
            f"processes and threads (ulimit -u, or the container's pids) where they are used up."
        )

    # The parts that a stream uses -----------------------------------------------------------------

    def begin(self, board: Board, keep: Keep, *, single: bool) -> Errand:
        """Register a read, so that ``close`` can stop it."""
        errand = Errand(board, Cancellation(), keep, single)
        with self._lock:
            self.check_open()
            self._active.add(errand)
        self._used_seconds = time.monotonic()
        _make_room(self._used_seconds)
        return errand

    def end(self, errand: Errand) -> None:
        """Stop what is still under way for a read."""
        errand.cancellation.cancel()
        with self._lock:
            self._active.discard(errand)

    def start(self, wanted: dict[FrameKey, tuple[int, int]], errand: Errand) -> None:
        """Produce tiles: decode what is cached encoded, fetch the rest in batches.

        ``wanted`` gives, for each key, what of the tile must be there (see ``codecs.decode``).
        """
        left = set(wanted)
        rank = next(self._ranks)
        try:
            missing = []
            there: list[Arrived] = []
            for key, visible in wanted.items():
                frame = self._frames.get(key)
                if frame is None:
                    missing.append(key)
                else:
                    there.append((Task(key, visible, errand, rank), frame))
            self.stats.add(frame_hits=len(there))
            left.difference_update(task.key for task, _ in there)
            self._submit_lots(self._decode, there, self._lot_frames(len(there)))
            advice = self.advise(len(missing))
            self._let_fetch(advice)
            for batch in batch_frames(missing, requests=advice.requests, max_frames=advice.max_frames):
                keys = [(batch.instance_index, frame_index) for frame_index in batch.frame_indices]
                left.difference_update(keys)
                rank = next(self._ranks)
                self._submit_fetch(batch, [Task(key, wanted[key], errand, rank) for key in keys])
        finally:  # a Ctrl-C in between must leave nobody waiting
            self.tiles.forsake(left, errand.board)

    def _submit_fetch(self, batch: Batch, tasks: list[Task]) -> None:
        try:
            self._fetchers.add(functools.partial(self._fetch, batch, tasks), tasks[0].rank)
        except RuntimeError as error:
            self._give_up((task.key for task in tasks), error)

    def _submit_lots(self, work: Callable[[list[Lot]], None], frames: list[Lot], lot_frames: int) -> None:
        """Have frames of one rank worked on in decode threads, so many at a time."""
        if not frames:
            return
        lots = (frames[first : first + lot_frames] for first in range(0, len(frames), lot_frames))
        try:
            self._decoders.add_all([functools.partial(work, lot) for lot in lots], frames[0][0].rank)
        except RuntimeError as error:
            self._give_up((frame[0].key for frame in frames), error)

    def _lot_frames(self, frames: int) -> int:
        """Return how many of so many frames, which come together, one thread decodes at a time."""
        most = min(int(_LOT_SECONDS / self._frame_seconds), _LOT_FRAMES)
        frames *= self._reads  # about so many come for others
        return max(min(frames // (_LOTS_A_THREAD * self.options.decode_thread_count), most), 1)

    def advise(self, frames: int) -> Advice:
        """Return how so many frames of one read are asked for: as the source would have it, within the options."""
        self._reads = max(sum(errand.board.tiles_awaited > 0 for errand in tuple(self._active)), 1)
        advice = self.source.advise(frames, self._reads)
        cap = self.options.frames_per_request
        most = advice.max_frames if cap is None else min(advice.max_frames, cap)
        limit = self.options.max_connections
        return Advice(min(advice.requests, limit), most, min(advice.connections, limit))

    def _let_fetch(self, advice: Advice) -> None:
        """Have as many threads fetch as there are connections; no fewer than usual, since who backs off has none."""
        self._fetchers.allow(max(advice.connections, min(MODERATE_CONNECTIONS, self.options.max_connections)))

    def _give_up(self, keys: Iterable[FrameKey], error: RuntimeError) -> None:
        """Tell those who wait for tiles that nobody can produce them."""
        failure = self._no_thread(error)
        for key in keys:
            self.tiles.fail(key, failure)

    def _fetch(self, batch: Batch, tasks: list[Task]) -> None:
        """Fetch one batch, of one errand; runs in a fetch thread. Every key is handed on, failed or abandoned."""
        instance, errand, again = self._instances[batch.instance_index], tasks[0].errand, tasks[0].again
        left = {task.key[1] + 1: task for task in tasks}
        numbers = tuple(left)
        task_of = dict(left)
        guesses = Guesses(
            lambda frame: self._attempt(task_of[frame.frame_number], frame),
            self._decoders.add_spare,
            self._early,
            instance.frame_bytes,
        )
        try:
            if errand.cancellation.cancelled:
                return
            for frames in self.source.fetch(instance.batch(numbers, fresh=again), errand.cancellation, guesses.preview):
                arrived = [(left[frame.frame_number], frame) for frame in frames]
                self._take_in(arrived, guesses, self._lot_frames(len(tasks)))
                for frame in frames:
                    del left[frame.frame_number]
            self._let_fetch(self.advise(1))  # by what has been seen since
        except Exception as error:  # noqa: BLE001  (whatever it is, those who wait must hear of it)
            if not errand.cancellation.cancelled:
                self._fail(batch, left, error, progress=len(left) < len(tasks))
                left.clear()
        finally:
            guesses.close()
            self.tiles.forsake([task.key for task in left.values()], errand.board)

    def _take_in(self, arrived: list[Arrived], guesses: Guesses[Pixels | BaseException], lot_frames: int) -> None:
        """Note frames that have come, and have them decoded where that has not begun."""
        from_disk = sum(frame.from_disk for _, frame in arrived)
        n_bytes = sum(len(frame.data) for _, frame in arrived)
        self.stats.add(frames=len(arrived) - from_disk, disk_hits=from_disk, frame_bytes=n_bytes)
        self._frames.put((task.key, frame) for task, frame in arrived)
        done, rest = guesses.confirm(arrived, self._conclude_one)
        self._submit_lots(self._conclude, done, _DECODED_A_LOT)  # not here: the next request would wait for it
        self._submit_lots(self._decode, rest, lot_frames)

    def _fail(self, batch: Batch, left: dict[int, Task], error: Exception, *, progress: bool) -> None:
        """Fail the frames that an error speaks of; a pass over many regions asks again for those that go with them.

        Once, where the service broke off: if none of those comes either, it is not about single frames.
        """
        named = error.frame_numbers if isinstance(error, SourceError) else ()
        blamed = left.keys() & set(named) or set(left)
        broke_off = isinstance(error, SourceTimeoutError) or type(error) is ProtocolError
        if broke_off and not progress and all(task.spared for task in left.values()):
            blamed = set(left)
        for number in blamed:
            self.tiles.fail(left[number].key, error)
        others = [task for number, task in left.items() if number not in blamed]
        if others and others[0].errand.single:  # the region has failed; somebody else may want them
            self.tiles.forsake([task.key for task in others], others[0].errand.board)
        elif others:
            for task in others:
                task.spared = True
            self._submit_fetch(Batch(batch.instance_index, tuple(task.key[1] for task in others)), others)

    def _decode(self, lot: list[Arrived]) -> None:
        """Decode frames of one errand; runs in a decode thread."""
        began_seconds = time.monotonic()
        outcomes = [(task, frame, self._attempt(task, frame)) for task, frame in lot]
        self._frame_seconds = max(time.monotonic() - began_seconds, 1e-6) / len(lot)
        self._conclude(outcomes)

    def _attempt(self, task: Task, frame: EncodedFrame) -> Pixels | BaseException:
        if task.errand.cancellation.cancelled:
            return AbandonedError()
        try:
            return self._frame_decoders[task.key[0]].decode(frame, task.visible)
        except BaseException as error:  # noqa: BLE001  (a MemoryError, say: the caller shall have it)
            return error

    def _conclude_one(self, task: Task, frame: EncodedFrame, outcome: Pixels | BaseException) -> None:
        self._conclude([(task, frame, outcome)])

    def _conclude(self, outcomes: Sequence[Decoded]) -> None:
        """Resolve, fail or abandon keys of one errand by what decoding their frames has come to."""
        tiles = []
        for task, frame, outcome in outcomes:
            if isinstance(outcome, BaseException):
                self._conclude_failure(task, frame, outcome)
            else:
                outcome.flags.writeable = False  # shared from now on
                tiles.append((task.key, outcome))
        if tiles:
            self.stats.add(decoded=len(tiles))
            self.tiles.resolve(tiles, outcomes[0][0].errand.keep)

    def _conclude_failure(self, task: Task, frame: EncodedFrame, error: BaseException) -> None:
        """Fail or abandon a key whose frame did not decode, or have the frame fetched again."""
        key = task.key
        if isinstance(error, AbandonedError):
            self.tiles.forsake([key], task.errand.board)
            return
        if not isinstance(error, (DecodeError, UnsupportedError)):
            self.tiles.fail(key, error)
            return
        self._frames.discard(key)
        # It may have been damaged on its way, or be a copy of what the origin has mended: ask once more.
        doubtful = frame.from_disk or (isinstance(error, TruncatedFrameError) and self.source.remote)
        if doubtful and not task.again:
            self.stats.add(retries=1)
            self._submit_fetch(Batch(key[0], (key[1],)), [replace(task, again=True)])
            return
        self.tiles.fail(key, _located(error, self._instances[key[0]], key[1]))


_ALL: weakref.WeakSet[Reader] = weakref.WeakSet()


@atexit.register
def _stop() -> None:
    """Give up what nobody can take any more: a service that asks for patience would keep the program from ending."""
    for reader in alive(_ALL):
        if reader.process_id == os.getpid():
            reader.stop()


_looked_seconds = 0.0


def _make_room(now: float) -> None:
    """Have readers at rest let go of their caches, those first that were used least recently.

    Each has a budget of its own, and whoever trains on hundreds of slides has hundreds of readers.
    """
    global _looked_seconds  # noqa: PLW0603
    if len(_ALL) <= _FULL_READERS or now - _looked_seconds < _LOOK_SECONDS:
        return
    _looked_seconds = now
    process_id = os.getpid()  # the locks of others may be held for ever
    readers = [reader for reader in alive(_ALL) if reader.process_id == process_id and not reader.closed]
    excess_bytes = sum(reader.cached_bytes for reader in readers)
    excess_bytes -= sum(sorted(reader.budget_bytes for reader in readers)[-_FULL_READERS:])
    if excess_bytes <= 0:
        return
    for reader in sorted(readers, key=lambda reader: reader._used_seconds):  # noqa: SLF001
        if excess_bytes > 0 and not reader._active:  # noqa: SLF001
            excess_bytes -= reader.cached_bytes
            reader.rest()


def _located(error: WsiWebError, instance: Instance, frame_index: int) -> WsiWebError:
    """Say of which frame an error of the decoder speaks."""
    kind = UnsupportedError if isinstance(error, UnsupportedError) else DecodeError
    located = kind(
        f"Frame {frame_index + 1} of instance {instance.address.instance_uid}: {error} Other frames can be read; have "
        f"this one stored anew, or read around it."
    )
    located.__cause__ = error
    return located
