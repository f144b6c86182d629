"""Resample arrays to any scale: reduce by area weighting, enlarge bilinearly. Pure; knows no levels and no mpp.

Both are separable weighted sums, of source rows and then of source columns: products with a matrix that has weights
along its diagonal only, of which small blocks are multiplied. The work goes in tiles, so that temporary memory stays
at a few megabytes. What a pixel becomes depends neither on the tiles nor, but for rounding at ties, on where the
source array was cut out.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from wsiweb.blockmean import reduce_blocks, sum_type
from wsiweb.errors import RegionError

if TYPE_CHECKING:
    from wsiweb.memory import Empty

_Sample = TypeVar("_Sample", np.uint8, np.uint16)
_Float: TypeAlias = npt.NDArray[np.floating[Any]]
_Index: TypeAlias = npt.NDArray[np.intp]

_GRID = 2.0**24  # of edges in a pixel: float noise of the caller falls away
_TILE_ROWS, _TILE_SAMPLES = 512, 2048  # of the source, about
_ONE_THREAD = 200_000  # multiplications in a product up to which OpenBLAS starts no threads of its own


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


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The output pixels of one axis, several neighbours at a time: a product of matrices makes them."""

    count: int
    """Output pixels of a block; the last one may have some that nobody wants."""
    span: int
    """Source pixels of a block."""
    weights: _Float
    """``(blocks, count, span)``: shares in an output pixel, which come to 1."""
    pixels: _Index
    """``(blocks, span)``: which source pixels."""


def resample_array(
    source: npt.NDArray[_Sample],
    *,
    out: npt.NDArray[_Sample],
    origin: tuple[float, float],
    scale: tuple[float, float],
    bilinear: tuple[bool, bool],
    scratch: Empty,
) -> None:
    """Resample to any scale, each axis in its own way; rounded half up.

    Output pixel (i, j) lies on the source rectangle from ``origin + (i, j) * scale`` to
    ``origin + (i + 1, j + 1) * scale``. By area weighting it is the mean of that, whose border pixels count by the
    share that is covered; parts outside the source are left out of the mean, so that nothing bleeds in at the border
    of a slide. Bilinearly it is what lies at its centre, between the centres of source pixels, of which the first is
    at (0.5, 0.5); beyond the outermost centres the border pixels go on.

    Parameters
    ----------
    source
        ``(rows, columns, 3)`` or ``(rows, columns)``, uint8 or uint16; at least one pixel.
    out
        Filled: ``(h, w, 3)`` or ``(h, w)`` of the source's type.
    origin
        Top left corner (x, y) of the output, in pixels of ``source``.
    scale
        Source pixels for each output pixel, (x, y).
    bilinear
        Which axes, (x, y), are interpolated: those that are enlarged. The others are weighted by area.
    scratch
        Makes arrays for intermediate sums, as ``numpy.empty`` does.

    Raises
    ------
    RegionError
        An output pixel that is weighted by area lies outside the source.
    """
    height, width = out.shape[:2]
    whole_x = _whole(origin[0], scale[0], width, source.shape[1])
    whole_y = _whole(origin[1], scale[1], height, source.shape[0])
    wide = sum_type(source.dtype, whole_x[1] * whole_y[1]) if whole_x and whole_y else None
    if whole_x and whole_y and wide is not None:
        blocks = np.atleast_3d(source[whole_y[0] :, whole_x[0] :])
        reduce_blocks(blocks, (whole_x[1], whole_y[1]), np.atleast_3d(out), wide, scratch)
        return
    rows = _taps(origin[1], scale[1], height, source.shape[0], "rows", bilinear=bilinear[1])
    columns = _taps(origin[0], scale[0], width, source.shape[1], "columns", bilinear=bilinear[0])
    _resample(source, rows, columns, scale, out, scratch)


def _taps(origin: float, scale: float, count: int, available: int, axis: str, *, bilinear: bool) -> _Taps:
    if bilinear:
        return _bilinear_taps(origin, scale, count, available)
    return _area_taps(origin, scale, count, available, axis)


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


def _whole(origin: float, scale: float, count: int, available: int) -> tuple[int, int] | None:
    """Return first source pixel and factor of an axis whose output pixels are made of whole ones; else None."""
    start, factor = round(origin), round(scale)
    exact = abs(origin - start) + abs(scale - factor) * count < 0.5 / _GRID  # so that all edges are whole on the grid
    return (start, factor) if exact and start >= 0 < factor and start + count * factor <= available else None


def _bilinear_taps(origin: float, scale: float, count: int, available: int) -> _Taps:
    centres = np.rint((origin + (np.arange(count) + 0.5) * scale - 0.5) * _GRID) / _GRID
    centres = np.clip(centres, 0, available - 1)
    first = centres.astype(np.intp)
    share = centres - first
    return _Taps(first, np.minimum(first + 1, available - 1), 1 - share, share, np.ones(count))


def _resample(
    source: npt.NDArray[_Sample],
    rows: _Taps,
    columns: _Taps,
    scale: tuple[float, float],
    out: npt.NDArray[_Sample],
    scratch: Empty,
) -> None:
    samples = source[0, 0].size
    # float32 holds means of 8-bit samples to less than the bias, which takes ties up in spite of rounding
    precision: type[np.floating[Any]]
    precision, bias = (np.float32, 2.0**-13) if source.dtype == np.uint8 else (np.float64, 2.0**-24)
    down = _blocks(rows, _per_block(scale[1]), len(source), precision)
    across = _blocks(columns, _per_block(scale[0]), source.shape[1], precision)
    mixing = _of_interleaved(across.weights, samples)
    span, step = mixing.shape[1:]
    runs, starts = sliding_window_view(source.reshape(len(source), -1), span, axis=1), across.pixels[:, 0] * samples
    tiles_down = _tiles(down, _TILE_ROWS / max(scale[1], 1))
    tile_columns = min(_TILE_SAMPLES, _ONE_THREAD / down.weights[0].size) / samples
    tiles_across = _tiles(across, tile_columns / max(scale[0], 1))
    # Memory for one tile serves for all: new memory would cost as much as the sums.
    most_down, most_across = tiles_down[0].stop, tiles_across[0].stop
    tile_memory = scratch((most_down * down.span * most_across * span,), precision)
    summed_memory = scratch((most_down * down.count * most_across * span,), precision)
    means_memory = scratch((most_down * down.count * most_across * step,), precision)
    for y, x in itertools.product(tiles_down, tiles_across):
        # Few calls, each for all blocks: threads hand the interpreter over at each of them.
        part = runs[down.pixels[y].reshape(-1, 1), starts[x]]
        tile = _shaped(tile_memory, y.stop - y.start, down.span, part[0].size)
        tile[...] = part.reshape(tile.shape)
        summed = _shaped(summed_memory, y.stop - y.start, down.count, part[0].size)
        np.matmul(down.weights[y], tile, out=summed)
        lines = summed.reshape(-1, x.stop - x.start, span)
        mixed = _shaped(means_memory, *lines.shape[:2], step)
        np.matmul(lines.swapaxes(0, 1), mixing[x], out=mixed.swapaxes(0, 1))
        target = out[y.start * down.count :, x.start * across.count :][: len(lines), : len(mixing[x]) * across.count]
        means = mixed.reshape(len(mixed), -1, *out.shape[2:])[: len(target), : target.shape[1]]
        np.add(means, 0.5 + bias, out=target, casting="unsafe")


def _shaped(memory: _Float, *shape: int) -> _Float:
    return memory[: math.prod(shape)].reshape(shape)


def _per_block(scale: float) -> int:
    """Return how many output pixels are made by one product: more would mostly multiply zeros."""
    return 8 if scale <= 2.5 else 4 if scale <= 16 else 2


def _tiles(blocks: _Blocks, outputs: float) -> list[slice]:
    """Part the blocks of one axis into runs that make about so many output pixels; the first is the longest."""
    step, last = max(int(outputs) // blocks.count, 1), len(blocks.pixels)
    return [slice(n, min(n + step, last)) for n in range(0, last, step)]


def _blocks(taps: _Taps, count: int, available: int, precision: type[np.floating[Any]]) -> _Blocks:
    outputs = len(taps.first)
    block, row = np.divmod(np.arange(outputs), count)
    begin = taps.first[::count]
    span = int((taps.last[np.minimum(np.arange(count, outputs + count, count), outputs) - 1] - begin).max()) + 1
    begin = np.minimum(begin, available - span)
    first, last, offset = taps.first - begin[block], taps.last - begin[block], np.arange(span)
    weights = np.zeros((len(begin), count, span), precision)
    between = (offset > first[:, np.newaxis]) & (offset < last[:, np.newaxis])
    weights[block, row] = between / taps.total[:, np.newaxis]
    weights[block, row, first] = taps.first_weight / taps.total
    weights[block, row, last] += (taps.last_weight / taps.total).astype(precision)
    return _Blocks(count, span, weights, begin[:, np.newaxis] + offset)


def _of_interleaved(weights: _Float, samples: int) -> _Float:
    """Return the weights, transposed, of rows in which the samples of a pixel lie side by side."""
    blocks, count, span = weights.shape
    mixing = np.zeros((blocks, span, samples, count, samples), weights.dtype)
    for sample in range(samples):
        mixing[:, :, sample, :, sample] = weights.swapaxes(1, 2)
    return mixing.reshape(blocks, span * samples, count * samples)
