"""Measure how fast one slide reads from where it is: the work behind ``wsiweb bench``, for users' own reports.

Every step begins with empty caches and connections of its own, at places drawn from a seed, and is cut to what is left
of a budget of bytes and seconds. Compares with nobody: the repository's ``benchmarks`` does that.
"""

from __future__ import annotations

import collections
import copy
import math
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import wsiweb
from wsiweb.codecs import decode
from wsiweb.errors import SourceTimeoutError
from wsiweb.options import ReadOptions
from wsiweb.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wsiweb.pyramid import Level
    from wsiweb.regions import Region
    from wsiweb.sources.base import (
        Advice,
        Cancellation,
        EncodedFrame,
        FrameBatch,
        Frames,
        FrameSource,
        JsonDataset,
        Preview,
    )
    from wsiweb.stats import ReadStats

    Pixels = npt.NDArray[Any]

REGION_SIDES = (1024, 4096)
RANDOM_PATCHES = 200
GRID_PATCHES = 1000
BATCH_PATCHES = 64
_SAMPLED_FRAMES = 256
"""Of each step, decoded again to know what decoding alone would take."""
_MANY = 1e6
_SHARE = 0.6
"""Of what is left of the budget, that one step may plan to use: estimates err, and others come after it."""


@dataclass(frozen=True, slots=True)
class BenchStep:
    """What one kind of reading took."""

    name: str
    seconds: float
    first_seconds: float | None
    """Until the first of several patches; None where there is one result."""
    patches: int
    """Read; 0 where there are none."""
    megapixels: float
    requests: int
    frames: int
    """Fetched."""
    bytes: int
    """Received."""
    decode_seconds: float | None
    """What decoding the fetched frames takes on all decode threads, from memory; None where nothing was fetched."""

    @property
    def patches_per_second(self) -> float | None:
        """None where no patches were read."""
        return self.patches / self.seconds if self.patches else None

    @property
    def requests_per_patch(self) -> float | None:
        """None where no patches were read."""
        return self.requests / self.patches if self.patches else None

    @property
    def decode_ratio(self) -> float | None:
        """How many times as long as decoding alone it took; 1 is the floor where the cores are the limit."""
        return self.seconds / self.decode_seconds if self.decode_seconds else None


@dataclass(slots=True)
class BenchReport:
    """All steps, and what they depend on."""

    slide: dict[str, Any]
    machine: dict[str, Any]
    options: dict[str, Any]
    steps: list[BenchStep] = field(default_factory=list)
    stopped: str | None = None
    """Why steps are missing, if some are."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        derived = ("patches_per_second", "requests_per_patch", "decode_ratio")
        steps = [{**asdict(step), **{name: getattr(step, name) for name in derived}} for step in self.steps]
        return {**asdict(self), "steps": steps}


@dataclass(slots=True)
class _Budget:
    """What may still be spent."""

    bytes: float
    deadline: float
    """Of ``time.monotonic``."""
    frame_bytes: float = 0.0
    """Mean size of a frame in the step where they were largest: glass is small, tissue is not."""
    frame_seconds: float = 0.0
    """Mean time a frame took in the last large step."""

    def spent(self, step: BenchStep) -> None:
        """Note what a step took, and learn from it what the next one may take."""
        self.bytes -= step.bytes
        if step.frames:
            self.frame_bytes = max(self.frame_bytes, step.bytes / step.frames)
            self.frame_seconds = step.seconds / step.frames

    @property
    def seconds(self) -> float:
        return self.deadline - time.monotonic()

    def frames(self) -> int:
        """Return about how many frames the next step may fetch."""
        by_bytes = self.bytes * _SHARE / self.frame_bytes if self.frame_bytes else _MANY  # local files count none
        by_time = self.seconds * _SHARE / self.frame_seconds if self.frame_seconds else _MANY
        return max(int(min(by_bytes, by_time)), 1)


@dataclass(slots=True, eq=False)
class _RecordingSource:
    """A source that keeps some of the frames that it hands out, with the batch that asked for them."""

    inner: FrameSource
    sample: list[tuple[FrameBatch, EncodedFrame]] = field(default_factory=list)

    @property
    def remote(self) -> bool:
        return self.inner.remote

    @property
    def stats(self) -> ReadStats:
        return self.inner.stats

    @property
    def credentials(self) -> Mapping[str, object]:
        return self.inner.credentials

    def advise(self, frames: int, reads: int) -> Advice:
        return self.inner.advise(frames, reads)

    def metadata(self) -> list[JsonDataset]:
        return self.inner.metadata()

    def fetch(self, batch: FrameBatch, cancellation: Cancellation, preview: Preview | None = None) -> Iterator[Frames]:
        for frames in self.inner.fetch(batch, cancellation, preview):
            room = max(_SAMPLED_FRAMES - len(self.sample), 0)
            self.sample += [(batch, frame) for frame in frames[:room]]
            yield frames

    def fetch_bulk(self, uri: str, whole: Callable[[bytes], bool] = bool) -> bytes:
        return self.inner.fetch_bulk(uri, whole)

    def close(self) -> None:
        self.inner.close()


def run_bench(
    place: str,
    *,
    level: int = 0,
    patch_size: int = 256,
    megabytes: float = 200.0,
    seconds: float = 60.0,
    seed: int = 1,
    options: ReadOptions | None = None,
    on_step: Callable[[BenchStep], None] | None = None,
    **connection: Any,
) -> BenchReport:
    """Open a slide, read it in several ways, and report.

    Parameters
    ----------
    place, connection
        As for ``Slide.open``.
    level
        That is read.
    patch_size
        Side of the square patches in pixels.
    megabytes, seconds
        About what may be received, and how long it may take; steps are made smaller to keep to it.
    seed
        Of the places.
    options
        How to read.
    on_step
        Called with each step as it is done.

    Raises
    ------
    RegionError
        There is no such level.
    WsiWebError
        Whatever reading raises; running out of time is no error, but stated in the report.
    """
    options = options or ReadOptions()
    budget = _Budget(megabytes * 1e6, time.monotonic() + seconds)
    started = time.perf_counter()
    with Slide.open(place, options=options, **connection) as slide:  # imports what is imported late
        opened = [_opened("first open", started, slide)]
    started = time.perf_counter()
    with Slide.open(place, options=options, **connection) as slide:
        opened.append(_opened("open", started, slide))
        chosen = slide._level(level)  # noqa: SLF001  (refuses what is not there as reading does)
        report = BenchReport(_described(slide, chosen), _machine(options), asdict(options))

        def done(step: BenchStep) -> None:
            budget.spent(step)
            report.steps.append(step)
            if on_step:
                on_step(step)

        for step in opened:
            done(step)
        try:
            for step in _steps(slide, chosen, patch_size, budget, np.random.default_rng(seed)):
                done(step)
                if budget.bytes <= 0 or budget.seconds <= 0:
                    report.stopped = "the budget was spent"
                    break
        except SourceTimeoutError as error:
            report.stopped = str(error)
    return report


def _opened(name: str, started: float, slide: Slide) -> BenchStep:
    seconds, stats = time.perf_counter() - started, slide.stats
    return BenchStep(name, seconds, None, 0, 0.0, stats.requests, 0, stats.bytes, None)


def _steps(
    slide: Slide, level: Level, patch_size: int, budget: _Budget, rng: np.random.Generator
) -> Iterator[BenchStep]:
    """Read in one way after the other; each draws its own places."""
    tile_w, tile_h = level.tile_size
    with _fresh(slide, budget) as copied:
        yield copied.region(level, _places(level, (1, 1), 1, rng)[0], "first pixel")
    for side in REGION_SIDES:
        fitting = math.isqrt(budget.frames() * tile_w * tile_h)
        w, h = min(side, fitting, level.width), min(side, fitting, level.height)
        region = _places(level, (w, h), 1, rng)[0]
        with _fresh(slide, budget) as copied:
            yield copied.region(level, region, f"{w} x {h}")
            if side == REGION_SIDES[-1]:
                yield copied.region(level, region, f"{w} x {h} again")
    size = min(patch_size, level.width), min(patch_size, level.height)
    frames_per_patch = (size[0] / tile_w + 1) * (size[1] / tile_h + 1)
    count = max(min(RANDOM_PATCHES, int(budget.frames() / frames_per_patch)), 1)
    regions = _places(level, size, count, rng)
    with _fresh(slide, budget) as copied:
        arrays = copied.slide.read_regions(level, regions)
        yield copied.patches((array[None] for array in arrays), f"{count} at random")
    with _fresh(slide, budget) as copied:
        plan = copied.slide.patches(size, level=level.index)
        across = max(level.width // size[0], 1)
        frames_per_patch = size[0] / tile_w * (size[1] / tile_h + min(GRID_PATCHES / across, 1))
        count = max(min(GRID_PATCHES, len(plan), int(budget.frames() / frames_per_patch)), 1)
        start = max(min(len(plan) // 2 // across * across, len(plan) - count), 0)
        batches = plan[start : start + count].batches(BATCH_PATCHES)
        yield copied.patches((batch.images for batch in batches), f"{count} of a grid")


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """A slide with empty caches, and connections and counters of its own."""

    slide: Slide
    source: _RecordingSource

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.slide.close()

    def region(self, level: Level, region: Region, name: str) -> BenchStep:
        """Time one region."""
        before = self.slide.stats.as_dict()
        started = time.perf_counter()
        pixels = self.slide.read_region(level, *region)
        seconds = time.perf_counter() - started
        return self._step(name, seconds, None, 0, pixels.shape[0] * pixels.shape[1], before)

    def patches(self, batches: Iterator[Pixels], name: str) -> BenchStep:
        """Time many patches, which come as arrays of ``(n, h, w, ...)``."""
        before = self.slide.stats.as_dict()
        started, first_seconds = time.perf_counter(), 0.0
        patches = pixels = 0
        for batch in batches:
            first_seconds = first_seconds or time.perf_counter() - started
            patches += len(batch)
            pixels += math.prod(batch.shape[:3])
        seconds = time.perf_counter() - started
        return self._step(name, seconds, first_seconds, patches, pixels, before)

    def _step(
        self, name: str, seconds: float, first: float | None, patches: int, pixels: int, before: dict[str, int]
    ) -> BenchStep:
        cost = {key: count - before[key] for key, count in self.slide.stats.as_dict().items()}
        fetched = cost["frames"]
        decode_seconds = self._decode_seconds() * fetched if fetched else None
        return BenchStep(
            name, seconds, first, patches, pixels / 1e6, cost["requests"], fetched, cost["bytes"], decode_seconds
        )

    def _decode_seconds(self) -> float:
        """Return what decoding takes a frame, on all decode threads, by the frames that the source has kept."""
        instances = {instance.address: instance for instance in self.slide._content.instances}  # noqa: SLF001
        sample, threads = self.source.sample, self.slide.options.decode_thread_count

        def decode_some(part: Sequence[tuple[FrameBatch, EncodedFrame]]) -> None:
            for batch, frame in part:
                instance = instances[batch.address]
                decode(frame, instance.pixels, transfer_syntax_uid=instance.transfer_syntax_uid, visible=(1, 1))

        parts = [sample[start::threads] for start in range(threads)]
        started = time.perf_counter()
        collections.deque(self.slide._reader.map_ordered(decode_some, parts), maxlen=0)  # noqa: SLF001
        seconds = time.perf_counter() - started
        return seconds / len(sample) * min(threads, len(sample)) / threads


def _fresh(slide: Slide, budget: _Budget) -> _Copy:
    """Return a copy of the slide, as a forked process makes it, with what is left of the time."""
    source = _RecordingSource(copy.copy(slide._reader.source))  # noqa: SLF001
    options = replace(slide.options, deadline_seconds=max(budget.seconds, 1.0))
    return _Copy(Slide(slide._content, source, options, slide._pyramid_index), source)  # noqa: SLF001


def _places(level: Level, size: tuple[int, int], count: int, rng: np.random.Generator) -> list[Region]:
    """Return rectangles anywhere inside the level."""
    free = level.width - size[0] + 1, level.height - size[1] + 1
    return [(x, y, *size) for x, y in rng.integers(0, free, (count, 2)).tolist()]


def _described(slide: Slide, level: Level) -> dict[str, Any]:
    """Return what of a slide bears on its speed; nothing that identifies a patient."""
    read = {"level": level.index, "level_size": level.size, "tile_size": level.tile_size}
    syntaxes = sorted({uid for one in slide._content.instances if (uid := one.transfer_syntax_uid)})  # noqa: SLF001
    return {"size": slide.size, "levels": len(slide.levels), **read, "transfer_syntaxes": syntaxes}


def _machine(options: ReadOptions) -> dict[str, Any]:
    return {
        "wsiweb": wsiweb.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "decode_threads": options.decode_thread_count,
    }
