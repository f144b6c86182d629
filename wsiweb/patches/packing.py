"""Columns of plans as few bytes, for pickles. Pure."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Packed = tuple[str, bytes]
"""Kind of the numbers, and compressed bytes."""
_LEVEL = 6


def pack(column: npt.NDArray[Any]) -> Packed:
    """Compress a column: integers by their differences, which are mostly small; the bytes of each worth together."""
    if column.dtype.kind != "i":
        return "<f8", _pressed(column.astype("<f8"))
    steps = np.asarray(np.diff(column, prepend=column.dtype.type(0)), np.int64)
    return "<i8", _pressed(((steps << 1) ^ (steps >> 63)).astype("<i8"))  # small ones have no high bytes, either sign


def unpack(packed: Packed) -> npt.NDArray[Any]:
    """Return the column as int64 or float64."""
    kind, data = packed
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(8, -1)
    values = np.ascontiguousarray(planes.T).reshape(-1).view(kind)
    if kind != "<i8":
        return values.astype(np.float64)
    return np.cumsum((values >> 1) ^ -(values & 1), dtype=np.int64)


def _pressed(values: npt.NDArray[Any]) -> bytes:
    return zlib.compress(values.view(np.uint8).reshape(-1, 8).T.tobytes(), _LEVEL)
