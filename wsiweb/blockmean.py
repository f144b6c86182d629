"""Means of whole blocks of pixels: what area weighting comes to where the scale is a whole number. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from wsiweb.memory import Empty

    Pixels = npt.NDArray[Any]

_AT_ONCE_BYTES = 1 << 19
"""Of sums that are held at a time: they stay in a core's cache."""


def sum_type(dtype: np.dtype[Any], pixels: int) -> npt.DTypeLike | None:
    """Return the smallest type that holds the sum of so many samples, rounded up by half of them; None if none does."""
    most = np.iinfo(dtype).max * pixels + pixels // 2
    return next((wide for wide in (np.uint16, np.uint32) if most <= np.iinfo(wide).max), None)


def reduce_blocks(source: Pixels, factors: tuple[int, int], out: Pixels, wide: npt.DTypeLike, scratch: Empty) -> None:
    """Fill ``out`` with the means of blocks of ``source``, rounded half up.

    Parameters
    ----------
    source, out
        ``(rows, columns, samples)`` of one type; of ``source``, as many pixels are used as there are blocks.
    factors
        Pixels of a block, (x, y).
    wide
        The type of sums; see ``sum_type``.
    scratch
        Makes arrays, as ``numpy.empty`` does.
    """
    across, down = factors
    height, width, samples = out.shape
    source = source[: height * down, : width * across]
    at_once = min(max(_AT_ONCE_BYTES // (source[0].size * np.dtype(wide).itemsize), 1), height)
    lines_memory = scratch((at_once, width * across, samples), wide)
    sums_memory = scratch((at_once, width, samples), wide)
    for top in range(0, height, at_once):
        band = source[top * down : (top + at_once) * down]
        lines, sums = lines_memory[: len(band) // down], sums_memory[: len(band) // down]
        lines[...] = band[::down]
        for row in range(1, down):
            lines += band[row::down]
        for sample in range(samples):  # by itself: numpy is slow where the last axis is short
            column = sums[..., sample]
            column[...] = lines[:, ::across, sample]
            for n in range(1, across):
                column += lines[:, n::across, sample]
        sums += across * down // 2
        sums //= across * down
        out[top : top + len(sums)] = sums
