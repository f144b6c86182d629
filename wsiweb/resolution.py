"""Resolutions between levels: which level a wish is read from, and how its pixels map. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.colour import paint
from wsiweb.errors import MetadataError, RegionError
from wsiweb.geometry import Rectangle
from wsiweb.resample import resample_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from wsiweb.memory import Empty
    from wsiweb.pyramid import Level

    Pixels = npt.NDArray[Any]

TOLERANCE = 0.01
"""Resolutions that differ by no more are the same."""
_WITHIN = TOLERANCE + 1e-9
"""The same, with room for what floating point numbers lose."""
_ROUNDING = 1e-6
_TO_ENLARGE = "Ask for that or coarser, or pass upsample=True (--upsample on the command line) to enlarge it."


@dataclass(frozen=True, slots=True)
class View:
    """A level as it is, or a virtual one that is resampled from it."""

    level: Level
    """That pixels are read from."""
    width: int
    height: int
    scale: tuple[float, float]
    """Pixels of ``level`` for each of the view's, (x, y); (1, 1) is the level itself."""
    mpp: tuple[float, float] | None
    """Of the view."""

    @property
    def bounds(self) -> Rectangle:
        """All of the view."""
        return Rectangle(0, 0, self.width, self.height)

    @property
    def name(self) -> str:
        """For messages."""
        if not self.resampled:
            return f"Level {self.level.index}"
        return f"The slide at {self.mpp[0]:g} µm a pixel" if self.mpp else "The reduced slide"

    @property
    def resampled(self) -> bool:
        """Whether pixels differ from the level's."""
        return self.scale != (1.0, 1.0)

    @property
    def base_scale(self) -> tuple[float, float]:
        """Pixels of level 0 for each of the view's, (x, y)."""
        level = self.level
        return self.scale[0] * level.base_size[0] / level.width, self.scale[1] * level.base_size[1] / level.height

    @property
    def enlarged(self) -> tuple[bool, bool]:
        """Whether the level is enlarged along (x, y): bilinearly. Otherwise it is reduced, by area."""
        return self.scale[0] < 1 - TOLERANCE, self.scale[1] < 1 - TOLERANCE

    @property
    def margins(self) -> tuple[int, int]:
        """Pixels of the level, along (x, y), around those that a region shows, which it is made from as well."""
        return int(self.enlarged[0]), int(self.enlarged[1])  # a bilinear pixel looks at its neighbours

    def source_of(self, region: Rectangle) -> Rectangle:
        """Return what of the level a region of the view is made from."""
        if not self.resampled:
            return region
        inside = region.intersection(self.bounds)
        if inside.empty:
            return inside
        (sx, sy), (mx, my) = self.scale, self.margins
        x, y = math.floor(inside.x * sx + _ROUNDING) - mx, math.floor(inside.y * sy + _ROUNDING) - my
        right = math.ceil(inside.right * sx - _ROUNDING) + mx
        bottom = math.ceil(inside.bottom * sy - _ROUNDING) + my
        return Rectangle(x, y, max(right - x, 1), max(bottom - y, 1)).intersection(self.level.bounds)

    def resample(
        self, pixels: Pixels, region: Rectangle, background: tuple[int, ...], out: Pixels, scratch: Empty = np.empty
    ) -> None:
        """Make a region of a view that is resampled, in ``out``, from the pixels of ``source_of(region)``.

        ``scratch`` makes arrays for intermediate sums.
        """
        source, inside = self.source_of(region), region.intersection(self.bounds)
        if inside != region:
            paint(out, background)
        if inside.empty:
            return
        dx, dy = inside.x - region.x, inside.y - region.y
        resample_array(
            pixels,
            origin=(inside.x * self.scale[0] - source.x, inside.y * self.scale[1] - source.y),
            scale=self.scale,
            bilinear=self.enlarged,
            out=out[dy : dy + inside.h, dx : dx + inside.w],
            scratch=scratch,
        )


def view_of_level(level: Level) -> View:
    """Return a level as a view of itself."""
    return View(level, level.width, level.height, (1.0, 1.0), level.mpp)


def view_at_mpp(levels: Sequence[Level], mpp: float, *, upsample: bool) -> View:
    """Return the virtual level with square pixels of ``mpp`` µm.

    Raises
    ------
    MetadataError
        The slide does not tell its resolution.
    RegionError
        ``mpp`` is no positive number, or finer than level 0 and ``upsample`` is not allowed.
    """
    base_mpp = _mpp(levels[0])
    mpp = positive(mpp, "mpp")
    known = [level for level in levels if level.mpp is not None]
    same = _same(known, lambda level: tuple(mpp / axis for axis in _mpp(level)))
    if same is not None:
        return view_of_level(same)
    finest = min(base_mpp)
    if mpp < finest * (1 - _WITHIN) and not upsample:
        raise RegionError(
            f"{mpp:g} µm a pixel is finer than the slide's {base_mpp[0]:g} x {base_mpp[1]:g}. {_TO_ENLARGE}"
        )
    level = level_for_mpp(levels, mpp)
    level_mpp = _mpp(level)
    width, scale_x = _axis(levels[0].width * base_mpp[0] / mpp, mpp / level_mpp[0], level.width)
    height, scale_y = _axis(levels[0].height * base_mpp[1] / mpp, mpp / level_mpp[1], level.height)
    return View(level, width, height, (scale_x, scale_y), (mpp, mpp))


def _axis(extent: float, scale: float, level_side: int) -> tuple[int, float]:
    """Return the side of a view and its scale along one axis.

    Where a level's spacing and its size contradict each other so far that the view would reach beyond the level, the
    size is right.
    """
    side = max(math.floor(extent + _ROUNDING), 1)
    fits = (side - 1) * scale < level_side - min(scale, level_side) / 2
    return side, scale if fits else level_side / extent


def view_at_downsample(levels: Sequence[Level], downsample: float, *, upsample: bool) -> View:
    """Return the virtual level of so many level-0 pixels for each of its own; errors as ``view_at_mpp``."""
    downsample = positive(downsample, "downsample")
    same = _same(levels, lambda level: tuple(downsample / axis for axis in _downsamples(level)))
    if same is not None:
        return view_of_level(same)
    if downsample < 1 - _WITHIN and not upsample:
        raise RegionError(f"A downsample of {downsample:g} is finer than level 0. {_TO_ENLARGE}")
    base, level = levels[0], level_for_downsample(levels, downsample)
    return View(
        level=level,
        width=max(math.floor(base.width / downsample + _ROUNDING), 1),
        height=max(math.floor(base.height / downsample + _ROUNDING), 1),
        scale=(downsample * level.width / base.width, downsample * level.height / base.height),
        mpp=None if base.mpp is None else (base.mpp[0] * downsample, base.mpp[1] * downsample),
    )


def view_at_magnification(
    levels: Sequence[Level], magnification: float, power: float | None, *, upsample: bool
) -> View:
    """Return the virtual level of a magnification: by the objective's power, else at 10 µm a pixel for 1x.

    Errors are those of ``view_at_mpp``.
    """
    magnification = positive(magnification, "magnification")
    try:
        if power:
            return view_at_downsample(levels, power / magnification, upsample=upsample)
        return view_at_mpp(levels, 10 / magnification, upsample=upsample)
    except RegionError as error:
        stated = f", where the slide states {power:g}" if power else ""
        raise RegionError(f"At a magnification of {magnification:g}{stated}: {error}") from error


def level_for_mpp(levels: Sequence[Level], mpp: float) -> Level:
    """Return the coarsest level at least as fine as ``mpp`` in both axes, within 1 %; level 0 where none is."""
    positive(mpp, "mpp")
    _mpp(levels[0])
    fine = [level for level in levels if level.mpp is not None and max(level.mpp) <= mpp * (1 + _WITHIN)]
    return fine[-1] if fine else levels[0]


def level_for_downsample(levels: Sequence[Level], downsample: float) -> Level:
    """Return the coarsest level whose downsample is at most this in both axes, within 1 %; level 0 where none is."""
    positive(downsample, "downsample")
    fine = [level for level in levels if max(_downsamples(level)) <= downsample * (1 + _WITHIN)]
    return fine[-1] if fine else levels[0]


def _same(levels: Sequence[Level], ratios: Callable[[Level], tuple[float, ...]]) -> Level | None:
    """Return the level nearest to a ratio of 1 that is within the tolerance in every axis."""
    distances = [(max(abs(ratio - 1) for ratio in ratios(level)), level) for level in levels]
    distance, level = min(distances, key=lambda pair: pair[0])
    return level if distance <= _WITHIN else None


def _downsamples(level: Level) -> tuple[float, float]:
    """Return the downsample along each axis, (x, y)."""
    return level.base_size[0] / level.width, level.base_size[1] / level.height


def _mpp(level: Level) -> tuple[float, float]:
    if level.mpp is None:
        raise MetadataError(
            "The slide does not tell its resolution (no PixelSpacing, no ImagedVolumeWidth). Read by level=, or state "
            "it: Slide.open(..., mpp=0.25)."
        )
    return level.mpp


def positive(value: Any, name: str) -> float:
    """Return a number of any kind as float, or raise ``RegionError`` where it is not above 0, or not finite."""
    try:
        number = float(value) if isinstance(value, (int, float, np.floating, np.integer)) else math.nan
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise RegionError(f"{name} is a positive number, not {value!r:.80}.")
    return number
