"""From checked regions of a view to arrays: plan, read, resample, convert. The way all reading goes."""

from __future__ import annotations

import functools
import operator
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsiweb import icc, stitch
from wsiweb.board import Job
from wsiweb.cache import Keep
from wsiweb.colour import paint
from wsiweb.errors import MetadataError, RegionError
from wsiweb.geometry import Rectangle
from wsiweb.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from wsiweb.memory import Empty
    from wsiweb.plan import RegionPlanner
    from wsiweb.reader import Reader
    from wsiweb.resolution import View

    Pixels = npt.NDArray[Any]

Region = tuple[int, int, int, int]
"""(x, y, w, h)."""
_CONVERTED_ROWS = 256
_BAND_BYTES = 4 << 20
"""Of a level's pixels that are resampled by one thread; others go on meanwhile."""


@dataclass(slots=True, eq=False)
class _Bands:
    """The array of a region that is resampled in bands, each in a decode thread; made with the first that comes."""

    view: View
    region: Rectangle
    background: tuple[int, ...]
    empty: Empty
    """Makes the array."""
    scratch: Empty
    """Makes arrays for intermediate sums."""
    array: Pixels | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, band: Rectangle, pixels: Pixels) -> Pixels:
        """Fill the rows of a band from the level's pixels; return the whole region."""
        region = self.region
        with self.lock:
            if self.array is None:
                self.array = self.empty((region.h, region.w, *pixels.shape[2:]), pixels.dtype)
            array = self.array
        rows = array[band.y - region.y : band.bottom - region.y]
        if pixels.size:
            self.view.resample(pixels, band, self.background, rows, self.scratch)
        else:  # no frame shows anything of it
            paint(rows, self.background)
        return array


class RegionArrays:
    """An iterator over the pixels of regions in order, fetched and decoded ahead.

    Parameters
    ----------
    reader
        Runs the plans.
    view, regions
        What to read: rectangles that touch the view.
    planner
        Of the view's level.
    outs
        Arrays to fill and yield, one a region; None makes new ones.
    profile
        ICC profile to convert from to sRGB, or None.
    ahead_bytes, keep, single
        As for ``Stream``.
    """

    def __init__(
        self,
        reader: Reader,
        view: View,
        regions: Iterable[Rectangle],
        planner: RegionPlanner,
        *,
        outs: Iterable[Pixels] | None = None,
        profile: bytes | None = None,
        ahead_bytes: int | None = None,
        keep: Keep = Keep.YES,
        single: bool = True,
    ) -> None:
        self._reader = reader
        self._profile = profile
        outs = iter(outs) if outs is not None else None
        direct = not view.resampled  # a level's own pixels go straight where they belong
        self._targets = None if direct else outs
        self._view, self._planner = view, planner
        drawn: deque[tuple[Rectangle, int]] = deque()  # what was planned and is not read yet, of how many bands

        def planned(source: Rectangle, region: Rectangle, finish: Callable[..., Pixels] | None = None) -> Job:
            n_bytes = max(planner.bytes_of(source), planner.bytes_of(region))
            try:
                plan = planner.plan(source)
                # A resampled background is background, however large.
                return Job(plan if plan.keys or finish is None else planner.nothing(), n_bytes, finish)
            except MetadataError as error:  # it is that of this region, and not of those that are read meanwhile
                return Job(planner.nothing(), n_bytes, error=error.with_traceback(None))

        def jobs() -> Iterator[Job]:
            for region in regions:
                if not view.resampled:
                    drawn.append((region, 1))
                    yield planned(region, region)
                    continue
                bands = _bands(view, region)
                drawn.append((region, len(bands)))
                empty = reader.memory.alone if single else reader.memory.empty
                whole = _Bands(view, region, planner.background, empty, reader.memory.empty)
                for band in bands:
                    yield planned(view.source_of(band), band, functools.partial(whole.finish, band))

        self._drawn = drawn
        self._stream = Stream(
            reader, jobs(), outs=outs if direct else None, ahead_bytes=ahead_bytes, keep=keep, single=single
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Pixels:
        outcome = self.outcome()
        if isinstance(outcome, BaseException):
            self.close()
            raise outcome
        return outcome

    def only(self) -> Pixels:
        """Return the only region, and end: an iterator that is left to be collected would swallow a Ctrl-C."""
        try:
            return next(self)
        finally:
            self.close()

    def outcome(self) -> Pixels | BaseException:
        """Return the next region, or why it cannot be read; those behind it can. Else as ``next``."""
        array = self._stream.outcome()  # when it is known of how many bands
        region, left = self._drawn.popleft()
        left -= 1
        target = None if self._targets is None else next(self._targets)
        while left and not isinstance(array, BaseException):
            array = self._stream.outcome()
            left -= 1
        if isinstance(array, BaseException):
            self._stream.skip(left)
            return array
        if target is not None:
            target[...] = array
            array = target
        return self._in_srgb(array, region, self._profile) if self._profile else array

    def _in_srgb(self, array: Pixels, region: Rectangle, profile: bytes) -> Pixels:
        """Convert in place; the background is sRGB as it is."""
        _to_srgb(self._reader, array, profile)
        for band in _bands(self._view, region):  # so that the masks stay small
            mask = _bare(self._view, band, self._planner)
            if mask is not None:
                array[band.y - region.y : band.bottom - region.y][mask] = self._planner.background
        return array

    def start(self) -> None:
        """Begin to fetch ahead, before the first region is asked for."""
        self._stream.start()

    def close(self) -> None:
        """Stop at once; closing again does nothing."""
        self._stream.close()


def _to_srgb(reader: Reader, array: Pixels, profile: bytes) -> Pixels:
    """Convert in place, blocks of rows on the decode threads."""
    blocks = [array[top : top + _CONVERTED_ROWS] for top in range(0, len(array), _CONVERTED_ROWS)]
    for _ in reader.map_ordered(lambda block: icc.to_srgb(block, profile), blocks):
        pass
    return array


def _bare(view: View, region: Rectangle, planner: RegionPlanner) -> npt.NDArray[np.bool_] | None:
    """Return where a region shows nothing but background, or None where frames show everywhere."""
    plan = planner.plan(view.source_of(region))
    if plan.covered and view.bounds.contains(region):
        return None
    mask = stitch.bare(plan)
    if view.resampled:
        mask, of_level = np.empty((region.h, region.w), np.uint8), mask
        view.resample(of_level, region, (255,), mask)
    return np.equal(mask, 255)


def integer(value: Any, name: str) -> int:
    """Return an integer of any kind as int, or raise ``RegionError``."""
    try:
        return operator.index(value)
    except TypeError:
        raise RegionError(f"{name} is an integer, not {value!r}.") from None


def rectangle(region: Region) -> Rectangle:
    """Return ``(x, y, w, h)`` as a rectangle, or raise ``RegionError``."""
    try:
        x, y, w, h = region
    except (TypeError, ValueError):
        raise RegionError(f"A region is (x, y, w, h), not {region!r}.") from None
    return Rectangle(integer(x, "x"), integer(y, "y"), integer(w, "w"), integer(h, "h"))


def _bands(view: View, region: Rectangle) -> list[Rectangle]:
    """Cut a region into bands whose source fits into memory."""
    row_bytes = region.w * view.scale[0] * view.scale[1] * view.level.dtype.itemsize * 3
    rows = max(int(_BAND_BYTES // row_bytes), 1)
    inside = region.intersection(view.bounds)
    if inside.h <= rows:
        return [region]
    bands = []
    top = region.y
    while top < region.bottom:
        bottom = min(max(top, inside.y) + rows, region.bottom)
        if bottom >= inside.bottom:
            bottom = region.bottom
        bands.append(Rectangle(region.x, top, region.w, bottom - top))
        top = bottom
    return bands
