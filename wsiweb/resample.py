"""Resample arrays to any scale: reduce by area weighting, enlarge bilinearly. Pure; knows no levels and no mpp.

Both are separable sums of source rows, then of source columns. The work goes in tiles that are transposed in
between, so that either sum adds long contiguous rows, and temporary memory stays at a few megabytes. What a pixel
becomes depends neither on the tiles nor, but for rounding at ties, on where the source array was cut out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from wsiweb.errors import RegionError

_Sample = TypeVar("_Sample", np.uint8, np.uint16)
_Float: TypeAlias = npt.NDArray[np.floating[Any]]
_Index: TypeAlias = npt.NDArray[np.intp]

_GRID = 2.0**24  # of edges in a pixel: weights on it are exact in float32, and float noise of the caller falls away
_TILE_ROWS, _TILE_COLUMNS = 96, 1024  # at most, of source and output
_PADDING = 16  # keeps rows off power-of-two distances, at which a transposition misses the cache


@dataclass(frozen=True, slots=True)
class _Taps:
    """How the output pixels of one axis are made of source pixels; arrays with one element an output pixel."""

    first: _Index
    """First source pixel of the sum."""
    last: _Index
    """Last one; all between them count with weight 1."""
    first_weight: npt.NDArray[np.float64]
    last_weight: npt.NDArray[np.float64]
    """0 where the last is the first."""
    total: npt.NDArray[np.float64]
    """Sum of all weights, to divide by."""

    def part(self, start: int, stop: int) -> _Taps:
        """Return the taps of the output pixels from ``start`` to before ``stop``, relative to the first pixel."""
        base = self.first[start]
        return _Taps(
            self.first[start:stop] - base,
            self.last[start:stop] - base,
            self.first_weight[start:stop],
            self.last_weight[start:stop],
            self.total[start:stop],
        )


def reduce_area(
    source: npt.NDArray[_Sample],
    *,
    origin: tuple[float, float],
    scale: tuple[float, float],
    size: tuple[int, int],
) -> npt.NDArray[_Sample]:
    """Reduce by area weighting.

    Output pixel (i, j) is the mean over the source rectangle from ``origin + (i, j) * scale`` to
    ``origin + (i + 1, j + 1) * scale``, whose border pixels count by the share that is covered. Parts outside the
    source are left out of the mean, so that nothing bleeds in at the border of a slide.

    Parameters
    ----------
    source
        ``(rows, columns, 3)`` or ``(rows, columns)``, uint8 or uint16.
    origin
        Top left corner (x, y) of the output, in pixels of ``source``.
    scale
        Source pixels for each output pixel, (x, y).
    size
        (w, h) of the output.

    Returns
    -------
    ``(h, w, 3)`` or ``(h, w)`` of the source's type, rounded half up; C-contiguous.

    Raises
    ------
    RegionError
        An output pixel lies outside the source, or there is nothing to make.
    """
    _check(source, origin, scale, size)
    rows = _area_taps(origin[1], scale[1], size[1], source.shape[0], "rows")
    columns = _area_taps(origin[0], scale[0], size[0], source.shape[1], "columns")
    return _resample(source, rows, columns, scale)


def enlarge_bilinear(
    source: npt.NDArray[_Sample],
    *,
    origin: tuple[float, float],
    scale: tuple[float, float],
    size: tuple[int, int],
) -> npt.NDArray[_Sample]:
    """Enlarge by bilinear interpolation between the centres of source pixels.

    The centre of output pixel (i, j) lies at ``origin + (i + 0.5, j + 0.5) * scale``; the centre of the first
    source pixel at (0.5, 0.5). Beyond the outermost centres the border pixels go on.

    Parameters
    ----------
    source
        ``(rows, columns, 3)`` or ``(rows, columns)``, uint8 or uint16.
    origin
        Top left corner (x, y) of the output, in pixels of ``source``.
    scale
        Source pixels for each output pixel, (x, y); less than 1.
    size
        (w, h) of the output.

    Returns
    -------
    ``(h, w, 3)`` or ``(h, w)`` of the source's type, rounded half up; C-contiguous.

    Raises
    ------
    RegionError
        There is nothing to make.
    """
    _check(source, origin, scale, size)
    rows = _bilinear_taps(origin[1], scale[1], size[1], source.shape[0])
    columns = _bilinear_taps(origin[0], scale[0], size[0], source.shape[1])
    return _resample(source, rows, columns, scale)


def _check(
    source: npt.NDArray[Any], origin: tuple[float, float], scale: tuple[float, float], size: tuple[int, int]
) -> None:
    if source.ndim not in {2, 3} or 0 in source.shape or source.dtype.name not in {"uint8", "uint16"}:
        raise RegionError(
            f"Only (rows, columns[, samples]) of uint8 or uint16 with at least one pixel can be resampled, "
            f"not {source.shape} {source.dtype}."
        )
    if min(size) < 1:
        raise RegionError(f"An image has at least one pixel; {size[0]} x {size[1]} were asked for.")
    if not (all(map(math.isfinite, (*origin, *scale))) and min(scale) > 0):
        raise RegionError(f"Scale must be positive and the origin finite, not {scale} and {origin}.")


def _area_taps(origin: float, scale: float, count: int, available: int, axis: str) -> _Taps:
    edges = np.clip(np.rint((origin + np.arange(count + 1) * scale) * _GRID) / _GRID, 0, available)
    total = np.diff(edges)
    if not total.all():
        raise RegionError(
            f"Output {axis} from {int(np.argmin(total > 0))} lie outside the source's {available} {axis}; "
            f"ask for what touches it."
        )
    pixel = np.minimum(edges.astype(np.intp), available - 1)
    share = edges - pixel  # of the pixel that an edge cuts, on the near side
    first, last = pixel[:-1], pixel[1:]
    single = first == last
    return _Taps(first, last, np.where(single, total, 1 - share[:-1]), np.where(single, 0, share[1:]), total)


def _bilinear_taps(origin: float, scale: float, count: int, available: int) -> _Taps:
    centres = np.rint((origin + (np.arange(count) + 0.5) * scale - 0.5) * _GRID) / _GRID
    centres = np.clip(centres, 0, available - 1)
    first = centres.astype(np.intp)
    share = centres - first
    return _Taps(first, np.minimum(first + 1, available - 1), 1 - share, share, np.ones(count))


def _resample(
    source: npt.NDArray[_Sample], rows: _Taps, columns: _Taps, scale: tuple[float, float]
) -> npt.NDArray[_Sample]:
    height, width, samples = len(rows.first), len(columns.first), source[0, 0].size
    result = np.empty((height, width, *source.shape[2:]), source.dtype)
    flat_result = result.reshape(height, width * samples)
    # float32 holds means of 8-bit samples to less than the bias, which takes ties up in spite of rounding
    precision: type[np.floating[Any]]
    precision, bias = (np.float32, 2.0**-13) if source.dtype == np.uint8 else (np.float64, 2.0**-24)
    step_y = max(1, int(_TILE_ROWS / max(scale[1], 1)))
    step_x = max(1, int(_TILE_COLUMNS / max(scale[0], 1)))
    for top in range(0, height, step_y):
        bottom = min(top + step_y, height)
        source_rows = slice(rows.first[top], rows.last[bottom - 1] + 1)
        row_part = rows.part(top, bottom)
        for left in range(0, width, step_x):
            right = min(left + step_x, width)
            source_columns = slice(columns.first[left], columns.last[right - 1] + 1)
            tile: _Float = source[source_rows, source_columns].astype(precision, order="C")
            summed = _sum_rows(tile.reshape(len(tile), -1), row_part)
            turned = np.ascontiguousarray(summed.T).reshape(tile.shape[1], -1)
            means = _sum_rows(turned, columns.part(left, right))
            means += 0.5 + bias
            levels = np.ascontiguousarray(means).astype(source.dtype).reshape(-1, bottom - top)
            flat_result[top:bottom, left * samples : right * samples] = levels.T
    return result


def _sum_rows(source: _Float, taps: _Taps) -> _Float:
    """Return the weighted means of rows of a 2-D array; in padded memory, made to be transposed."""
    first_weight, last_weight, reciprocal = (
        weight.astype(source.dtype)[:, np.newaxis] for weight in (taps.first_weight, taps.last_weight, 1 / taps.total)
    )
    width = source.shape[1]
    means: _Float = np.empty((len(taps.first), width + _PADDING), source.dtype)[:, :width]
    np.multiply(source.take(taps.first, axis=0), first_weight, out=means)
    if last_weight.any():
        means += source.take(taps.last, axis=0) * last_weight
    between = taps.last - taps.first - 1
    for offset in range(1, int(between.max()) + 1):
        if (between >= offset).all():
            means += source.take(taps.first + offset, axis=0)
        else:
            some = np.flatnonzero(between >= offset)
            means[some] += source.take(taps.first[some] + offset, axis=0)
    means *= reciprocal
    return means
