"""Run read plans: claim, fetch, decode, stitch. **The only module that makes threads.**

Fetch threads take frames from the source as they arrive and hand them to decode threads; decoded tiles go to the
cache, and from there to every caller who waits. Pool threads never wait for one another, only callers do, so nothing
can deadlock. The caller's own thread paints tiles into its array, in the order in which they come.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from wsiweb import stitch
from wsiweb.batch import MAX_FRAMES, Batch, batch_frames
from wsiweb.cache import ByteCache, SingleFlightCache
from wsiweb.codecs import TruncatedFrameError, decode
from wsiweb.errors import DecodeError, SourceTimeoutError, UnsupportedError, WsiWebError
from wsiweb.sources.base import Cancellation, EncodedFrame, FrameBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from wsiweb.metadata import Instance
    from wsiweb.options import ReadOptions
    from wsiweb.plan import FrameKey, ReadPlan
    from wsiweb.sources.base import FrameSource

    Pixels = npt.NDArray[Any]
    Event = tuple[FrameKey, Pixels | None, BaseException | None]

_FRAME_OVERHEAD_BYTES = 200
"""Of an encoded frame in the cache, beside its data."""


class _AbandonedError(Exception):
    """Who was to produce a tile has been cancelled: whoever still waits for it claims it anew."""


class ClosedError(WsiWebError):
    """The slide is closed."""


@dataclass(slots=True, eq=False)
class _Job:
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


class Reader:
    """Reads the frames of one slide in one process. Safe to share between threads."""

    def __init__(self, source: FrameSource, instances: Sequence[Instance], options: ReadOptions) -> None:
        self.source = source
        self.options = options
        self.stats = source.stats
        self.process_id = os.getpid()
        self._instances = instances
        self._closed = False
        self._lock = threading.RLock()  # a stream may be collected, and closed, anywhere
        self._active: set[Cancellation] = set()
        self._tiles: SingleFlightCache[FrameKey, Pixels] = SingleFlightCache(
            options.tile_cache_bytes, lambda tile: tile.nbytes
        )
        self._frames: ByteCache[FrameKey, EncodedFrame] = ByteCache(
            options.frame_cache_bytes if source.remote else 0,
            lambda frame: len(frame.data) + _FRAME_OVERHEAD_BYTES,
        )
        # Executors start their threads on demand: a slide that is only looked at has none.
        self._fetchers = ThreadPoolExecutor(options.max_connections, "wsiweb-fetch")
        self._decoders = ThreadPoolExecutor(options.decode_thread_count, "wsiweb-decode")

    def read(self, plan: ReadPlan) -> Pixels:
        """Run one plan and return its array, which belongs to the caller."""
        stream = self.stream([(plan, None)])
        try:
            return next(stream)
        finally:
            stream.close()

    def stream(self, plans: Iterable[tuple[ReadPlan, Pixels | None]]) -> _Stream:
        """Run many plans, each into the array given with it or a new one; iterates over the arrays in order.

        Plans are drawn, and frames fetched and decoded, ahead of the consumer within ``readahead_bytes``.
        """
        return _Stream(self, plans)

    def close(self) -> None:
        """Stop all reads, in whatever thread, and release threads, sockets and files."""
        with self._lock:
            self._closed = True
            active = list(self._active)
        for cancellation in active:
            cancellation.cancel()
        self._fetchers.shutdown(wait=True)
        self._decoders.shutdown(wait=True)
        self.source.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def check_open(self) -> None:
        """Raise ``ClosedError`` after ``close``."""
        if self._closed:
            raise ClosedError("This slide is closed; open it again to read.")

    # The parts that a stream uses -----------------------------------------------------------------

    def begin(self) -> Cancellation:
        """Register a read, so that ``close`` can stop it."""
        cancellation = Cancellation()
        with self._lock:
            self.check_open()
            self._active.add(cancellation)
        return cancellation

    def end(self, cancellation: Cancellation) -> None:
        """Stop what is still under way for a read."""
        cancellation.cancel()
        with self._lock:
            self._active.discard(cancellation)

    def claim(
        self, keys: Iterable[FrameKey], events: queue.SimpleQueue[Event]
    ) -> tuple[dict[FrameKey, Pixels], list[FrameKey]]:
        """Return the tiles that are there, and the keys that the caller must ``start``; events tell of the rest."""
        claim = self._tiles.claim(keys, lambda *event: events.put(event))
        return claim.hits, claim.ours

    def start(self, wanted: dict[FrameKey, tuple[int, int]], cancellation: Cancellation) -> None:
        """Produce tiles: decode what is cached encoded, fetch the rest in batches.

        ``wanted`` gives, for each key, what of the tile must be there (see ``codecs.decode``).
        """
        missing = []
        for key, visible in wanted.items():
            frame = self._frames.get(key)
            if frame is None:
                missing.append(key)
            else:
                self.stats.add(frame_hits=1)
                self._submit(self._decoders, self._decode, key, frame, visible, cancellation, keys=(key,))
        batches = batch_frames(
            missing,
            connections=self.options.max_connections,
            frames_per_request=self.options.frames_per_request,
        )
        for batch in batches:
            keys = [(batch.instance_index, frame_index) for frame_index in batch.frame_indices]
            self._submit(
                self._fetchers, self._fetch, batch, {key: wanted[key] for key in keys}, cancellation, keys=keys
            )

    def _submit(
        self, pool: ThreadPoolExecutor, work: Callable[..., None], *arguments: Any, keys: Iterable[FrameKey]
    ) -> None:
        try:
            pool.submit(work, *arguments)
        except RuntimeError:  # the pool is shut: somebody closed the slide meanwhile
            self._abandon(keys)

    def _abandon(self, keys: Iterable[FrameKey]) -> None:
        for key in keys:
            self._tiles.fail(key, _AbandonedError())

    def _fetch(
        self,
        batch: Batch,
        wanted: dict[FrameKey, tuple[int, int]],
        cancellation: Cancellation,
        *,
        again: bool = False,
    ) -> None:
        """Fetch one batch; runs in a fetch thread. Every key is handed on, failed or abandoned."""
        instance = self._instances[batch.instance_index]
        left = dict(wanted)
        try:
            if cancellation.cancelled:
                return
            numbers = tuple(frame_index + 1 for frame_index in batch.frame_indices)
            request = FrameBatch(instance.address, numbers, instance.transfer_syntax_uid)
            for frame in self.source.fetch(request, cancellation):
                key = (batch.instance_index, frame.frame_number - 1)
                visible = left.pop(key)
                self.stats.add(frames=1)
                self._frames.put(key, frame)
                self._submit(
                    self._decoders, self._decode, key, frame, visible, cancellation, again, keys=(key,)
                )
        except Exception as error:  # noqa: BLE001  (whatever it is, those who wait must hear of it)
            if not cancellation.cancelled:
                for key in left:
                    self._tiles.fail(key, error)
                left.clear()
        finally:
            self._abandon(left)

    def _decode(
        self,
        key: FrameKey,
        frame: EncodedFrame,
        visible: tuple[int, int],
        cancellation: Cancellation,
        again: bool = False,  # noqa: FBT001, FBT002  (passed through an executor)
    ) -> None:
        """Decode one frame; runs in a decode thread. The key is resolved, failed, abandoned or fetched again."""
        if cancellation.cancelled:
            self._abandon((key,))
            return
        instance_index, frame_index = key
        instance = self._instances[instance_index]
        try:
            tile = decode(
                frame, instance.pixels, transfer_syntax_uid=instance.transfer_syntax_uid, visible=visible
            )
        except TruncatedFrameError as error:
            self._frames.discard(key)
            if self.source.remote and not again:  # it may have been damaged on its way: ask once more
                self.stats.add(retries=1)
                batch = Batch(instance_index, (frame_index,))
                self._submit(self._fetchers, self._fetch_again, batch, {key: visible}, cancellation, keys=(key,))
                return
            self._tiles.fail(key, _located(error, instance, frame_index))
        except (DecodeError, UnsupportedError) as error:
            self._frames.discard(key)
            self._tiles.fail(key, _located(error, instance, frame_index))
        except BaseException as error:  # noqa: BLE001  (a MemoryError, say: the caller shall have it)
            self._tiles.fail(key, error)
        else:
            self.stats.add(decoded=1)
            tile.flags.writeable = False  # shared from now on
            self._tiles.resolve(key, tile)

    def _fetch_again(
        self, batch: Batch, wanted: dict[FrameKey, tuple[int, int]], cancellation: Cancellation
    ) -> None:
        self._fetch(batch, wanted, cancellation, again=True)


def _located(error: WsiWebError, instance: Instance, frame_index: int) -> WsiWebError:
    """Say of which frame an error of the decoder speaks."""
    kind = UnsupportedError if isinstance(error, UnsupportedError) else DecodeError
    located = kind(f"Frame {frame_index + 1} of instance {instance.address.instance_uid}: {error}")
    located.__cause__ = error
    return located


class _Stream:
    """An iterator over the arrays of many plans, in order; reads ahead within the budget."""

    def __init__(self, reader: Reader, plans: Iterable[tuple[ReadPlan, Pixels | None]]) -> None:
        self._reader = reader
        self._plans: Iterator[tuple[ReadPlan, Pixels | None]] = iter(plans)
        self._exhausted = False
        self._cancellation = reader.begin()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._jobs: deque[_Job] = deque()
        self._ahead_bytes = 0
        self._wanted_by: dict[FrameKey, list[_Job]] = {}

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
        self._reader.end(self._cancellation)
        self._jobs.clear()
        self._exhausted = True

    def __del__(self) -> None:
        # In a forked child the parent's locks may be held for ever.
        if hasattr(self, "_cancellation") and self._reader.process_id == os.getpid():
            self.close()

    def _fill(self) -> None:
        """Plan ahead while the budget lasts, and start what has to be produced, in lots worth a request."""
        budget = self._reader.options.readahead_bytes
        if self._exhausted or (self._jobs and self._ahead_bytes > budget * 3 // 4):
            return
        lot = self._reader.options.max_connections * MAX_FRAMES
        wanted: dict[FrameKey, tuple[int, int]] = {}
        while not self._exhausted and (not self._jobs or self._ahead_bytes < budget):
            item = next(self._plans, None)
            if item is None:
                self._exhausted = True
                break
            wanted.update(self._admit(*item))
            if len(wanted) >= lot:
                self._reader.start(wanted, self._cancellation)
                wanted = {}
        self._reader.start(wanted, self._cancellation)

    def _admit(self, plan: ReadPlan, out: Pixels | None) -> dict[FrameKey, tuple[int, int]]:
        """Take up one plan; returns the keys that it must produce itself."""
        job = _Job(plan, stitch.canvas(plan, out), {key: row for row, key in enumerate(plan.keys)})
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
        for key, tile in hits.items():
            self._deliver(key, tile)
        visible = plan.placements.visible
        return {key: visible[job.waiting[key]] for key in ours}

    def _deliver(self, key: FrameKey, tile: Pixels) -> None:
        for job in self._wanted_by.pop(key):
            job.take(key, tile)

    def _wait_for(self, job: _Job) -> None:
        deadline = time.monotonic() + self._reader.options.deadline_seconds
        while job.waiting:
            try:
                key, tile, error = self._events.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise self._late(job) from None
            if tile is not None:
                self._deliver(key, tile)
            elif isinstance(error, _AbandonedError):
                self._reclaim(key)
            elif error is not None:
                raise error

    def _late(self, job: _Job) -> SourceTimeoutError:
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
            self._reader.start({key: job.plan.placements.visible[job.waiting[key]]}, self._cancellation)


