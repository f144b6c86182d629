"""Write PNG files band by band, with memory that does not grow with the image.

This module knows bytes, not slides: it makes no threads, opens no files, interlaces nothing and converts
no colours.

Compression is cut into segments of about a megabyte, each filtered and deflated on its own and ended on
a byte boundary, so that an injected ``map_ordered`` may run them at the same time. Segments start at fixed
rows, whatever the bands and the threads. Segments are not primed with the 32 kB before them, which would save
less than 0.1 % of tissue.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from wsiweb.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Rows: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

DEFAULT_COMPRESSION = 1
"""Favours speed: an eighth of the time of zlib's level 6 with one filter, at 1.02 to 1.07 x its size on tissue."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ZLIB_HEADER = b"\x78\x01"  # deflate with a 32 kB window, "fastest"
_LAST_BLOCK = b"\x03\x00"  # an empty final block: the segments before it need not know which is the last
_LARGEST_INTEGER = 2**31 - 1  # of PNG's 4-byte unsigned integers
_ADLER_BASE = 65521
_SEGMENT_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16  # at least, so that the segments of blank images share one
_PROBE_BYTES = 1 << 15
_PROBE_TOLERANCE = 1.1
_PLAIN_SHARE = 0.05
"""Of its bytes, that blank glass shrinks to at most; tissue never does."""
_NOISY_SHARE = 0.5
"""Of its bytes, to which drawings shrink and tissue does not: zlib, which is slow, is not tried on that."""
_REPETITIVE_LEVEL = 6

_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)  # the filter types of PNG, 9.2


class OrderedMap(Protocol):
    """What ``map`` does, perhaps on several threads: results in the order of the items."""

    def __call__(self, function: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterable[_Result]:
        """Return ``function(item)`` for each item, in order."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one value of ``compression`` is carried out."""

    filters: tuple[int, ...]
    """Filter types that each row chooses from."""
    level: int
    """Of the deflate."""
    fast: bool
    """Whether ISA-L deflates, or zlib."""


_ALL_FILTERS = (_UP, _SUB, _AVERAGE, _PAETH)
_RECIPES = {
    1: _Recipe((_UP,), 1, fast=True),
    2: _Recipe((_UP, _SUB), 2, fast=True),
    3: _Recipe(_ALL_FILTERS, 3, fast=True),
    **{level: _Recipe(_ALL_FILTERS, level, fast=False) for level in range(4, 10)},
}


@dataclass(frozen=True, slots=True)
class _Segment:
    """Rows to compress on their own."""

    rows: _Rows
    """``(n, width)`` or ``(n, width, 3)``."""
    above: _Rows
    """The one row before them; zeros above the image."""


@dataclass(frozen=True, slots=True)
class _Deflated:
    """A segment as raw deflate blocks, ended on a byte boundary."""

    data: bytes
    """The blocks."""
    adler: int
    """Adler-32 of what they hold."""
    size_bytes: int
    """Length of what they hold."""


class PngWriter:
    """Write a PNG from bands of rows, with memory bounded by a band.

    Parameters
    ----------
    stream
        Open for writing bytes; it is never read, sought or closed.
    width, height
        Size in pixels.
    channels
        1 for greyscale, 3 for RGB.
    bits
        8 or 16 a sample.
    compression
        From 1 (fast) to 9 (small); `DEFAULT_COMPRESSION` says what to use.
    icc_profile
        Embedded as it is. A profile for another number of channels than the image has is left out, since PNG
        forbids it (11.3.2.3).
    pixels_per_metre
        Density along x and y, from 1 to 2**31 - 1, or None where unknown.
    map_ordered
        Carries out the compression of the segments of a band; None compresses one after the other.

    Raises
    ------
    RegionError
        The parameters describe an image that PNG cannot hold.
    """

    def __init__(
        self,
        stream: BinaryIO,
        width: int,
        height: int,
        *,
        channels: int,
        bits: int,
        compression: int,
        icc_profile: bytes | None,
        pixels_per_metre: tuple[int, int] | None,
        map_ordered: OrderedMap | None = None,
    ) -> None:
        if not (1 <= width <= _LARGEST_INTEGER and 1 <= height <= _LARGEST_INTEGER):
            raise RegionError(f"A PNG has 1 to {_LARGEST_INTEGER} rows and columns, not {width} x {height}.")
        if compression not in _RECIPES:
            raise RegionError(f"compression goes from 1 (fast) to 9 (small); {compression!r} is neither.")

        self._stream = stream
        self._height = height
        self._rows_taken = 0
        self._rows_pending = 0
        self._closed = False
        self._adler = zlib.adler32(b"")
        self._map_ordered: OrderedMap = map if map_ordered is None else map_ordered
        self._deflate = partial(_deflate_segment, _RECIPES[compression], channels * bits // 8)

        row_shape = (width,) if channels == 1 else (width, channels)
        rows_per_segment = min(height, max(1, _SEGMENT_BYTES // (width * channels * bits // 8)))
        pending_shape = (rows_per_segment, *row_shape)
        self._pending: _Rows = np.zeros(pending_shape, np.uint8) if bits == 8 else np.zeros(pending_shape, np.uint16)
        self._above: _Rows = self._pending[0].copy()

        stream.write(_SIGNATURE)
        colour_type = 0 if channels == 1 else 2
        self._write_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        if icc_profile and icc_profile[16:20] != (b"RGB " if channels == 1 else b"GRAY"):
            self._write_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
        if pixels_per_metre:
            self._write_chunk(b"pHYs", struct.pack(">IIB", *pixels_per_metre, 1))
        self._unwritten = bytearray(_ZLIB_HEADER)

    def write_rows(self, rows: _Rows) -> None:
        """Append rows to the image.

        Parameters
        ----------
        rows
            ``(n, width, 3)`` or ``(n, width)``, of any n, uint8 or uint16 as ``bits`` said. The caller may
            change them as soon as this returns.

        Raises
        ------
        RegionError
            The rows have another shape or type than the image, are more than it has, or come after ``close``.
        """
        pending, row_shape = self._pending, self._pending.shape[1:]
        if self._closed:
            raise RegionError("The PNG is closed; no rows can follow.")
        if rows.shape[1:] != row_shape or rows.ndim != pending.ndim or rows.dtype != pending.dtype:
            raise RegionError(
                f"Rows of this PNG are (n, {', '.join(map(str, row_shape))}) {pending.dtype}, "
                f"not {rows.shape} {rows.dtype}."
            )
        if self._rows_taken + len(rows) > self._height:
            raise RegionError(
                f"The PNG has {self._height} rows; {self._rows_taken} came and {len(rows)} more do not fit."
            )

        taken = min(len(rows), len(pending) - self._rows_pending)
        pending[self._rows_pending : self._rows_pending + taken] = rows[:taken]
        if self._rows_pending + taken < len(pending):
            self._rows_pending += taken
        else:
            whole = taken + (len(rows) - taken) // len(pending) * len(pending)
            starts = range(taken, whole, len(pending))
            segments = [_Segment(pending, self._above)]
            segments += [_Segment(rows[start : start + len(pending)], rows[start - 1]) for start in starts]
            self._write_segments(segments)
            self._above = segments[-1].rows[-1].copy()
            self._rows_pending = len(rows) - whole
            pending[: self._rows_pending] = rows[whole:]
        self._rows_taken += len(rows)

    def close(self) -> None:
        """Finish the file; the stream stays open. Closing again does nothing.

        Raises
        ------
        RegionError
            Rows are missing; what was written is not a valid PNG.
        """
        if self._closed:
            return
        if self._rows_taken < self._height:
            raise RegionError(
                f"The PNG has {self._height} rows, but only {self._rows_taken} were written; it is unusable."
            )
        if self._rows_pending:
            self._write_segments([_Segment(self._pending[: self._rows_pending], self._above)])
        self._write_chunk(b"IDAT", self._unwritten + _LAST_BLOCK + self._adler.to_bytes(4, "big"))
        self._write_chunk(b"IEND", b"")
        self._closed = True

    def _write_segments(self, segments: list[_Segment]) -> None:
        for deflated in self._map_ordered(self._deflate, segments):
            self._unwritten += deflated.data
            if len(self._unwritten) >= _CHUNK_BYTES:
                self._write_chunk(b"IDAT", self._unwritten)
                self._unwritten.clear()
            self._adler = adler32_combine(self._adler, deflated.adler, deflated.size_bytes)

    def _write_chunk(self, kind: bytes, data: bytes | bytearray) -> None:
        checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
        self._stream.write(struct.pack(">I4s", len(data), kind))
        self._stream.write(data)
        self._stream.write(struct.pack(">I", checksum))


def adler32_combine(first: int, second: int, second_size_bytes: int) -> int:
    """Return the Adler-32 of two byte strings that follow each other, from those of both (RFC 1950, 8.2).

    Parameters
    ----------
    first, second
        Adler-32 of each.
    second_size_bytes
        Length of the second.
    """
    first_sum, second_sum = first & 0xFFFF, second & 0xFFFF
    low = (first_sum + second_sum - 1) % _ADLER_BASE
    high = ((first >> 16) + (second >> 16) + second_size_bytes * (first_sum - 1)) % _ADLER_BASE
    return high << 16 | low


def _deflate_segment(recipe: _Recipe, pixel_bytes: int, segment: _Segment) -> _Deflated:
    filtered = _filter_rows(segment, recipe.filters, pixel_bytes).reshape(-1).data
    if not recipe.fast:
        data = _deflate_well(filtered, recipe.level)
    elif _is_repetitive(filtered):
        data = _deflate_well(filtered, _REPETITIVE_LEVEL)
    else:
        data = _deflate_fast(filtered, recipe.level)
    return _Deflated(data, isal_zlib.adler32(filtered), filtered.nbytes)


def _deflate_fast(data: memoryview, level: int) -> bytes:
    """Return raw deflate blocks that end on a byte boundary and are not the last."""
    compressor = isal_zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _deflate_well(data: memoryview, level: int) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_FILTERED)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _is_repetitive(data: memoryview) -> bool:
    """Tell whether zlib finds much more to save, as in blank glass and drawings; the middle of the data tells."""
    start = max(0, (data.nbytes - _PROBE_BYTES) // 2)
    probe = data[start : start + _PROBE_BYTES]
    size_bytes = len(_deflate_fast(probe, 1))
    if size_bytes > _NOISY_SHARE * probe.nbytes:
        return False
    return size_bytes < _PLAIN_SHARE * probe.nbytes or size_bytes > _PROBE_TOLERANCE * len(zlib.compress(probe, 1))


def _filter_rows(segment: _Segment, filters: tuple[int, ...], pixel_bytes: int) -> _Bytes:
    """Return the rows as PNG stores them, ``(n, 1 + row bytes)``: the filter type and the filtered bytes."""
    rows, above = _stored_bytes(segment.rows), _stored_bytes(segment.above[np.newaxis])
    stored = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    kinds, body = stored[:, 0], stored[:, 1:]
    kinds[:] = filters[0]
    if filters == (_UP,):
        np.subtract(rows[:1], above, out=body[:1])
        np.subtract(rows[1:], rows[:-1], out=body[1:])
    else:
        above = np.concatenate([above, rows[:-1]])
        residuals = [_residual(kind, rows, above, pixel_bytes) for kind in filters]
        body[:] = residuals[0]
        chosen = np.argmin([_cost(residual) for residual in residuals], axis=0)
        for candidate in range(1, len(filters)):
            mine = chosen == candidate
            kinds[mine], body[mine] = filters[candidate], residuals[candidate][mine]
    blank = rows[:, 0] == 0
    blank[blank] = ~rows[blank].any(axis=1)  # type and bytes all 0 join blank rows into one run, a third smaller
    stored[blank] = _NONE
    return stored


def _stored_bytes(rows: _Rows) -> _Bytes:
    """Return ``(n, row bytes)``, 16-bit samples big-endian as PNG has them."""
    big_endian = rows.astype(rows.dtype.newbyteorder(">"), copy=False)
    return big_endian.reshape(len(rows), -1).view(np.uint8)


def _cost(residual: _Bytes) -> npt.NDArray[np.uint32]:
    """Return each row's sum of the absolute values of its bytes as signed numbers (PNG 12.7)."""
    magnitude = np.abs(residual.view(np.int8)).view(np.uint8)  # -128 stays -128, which is 128 again
    total: npt.NDArray[np.uint32] = magnitude.sum(axis=1, dtype=np.uint32)
    return total


def _residual(kind: int, rows: _Bytes, above: _Bytes, pixel_bytes: int) -> _Bytes:
    """Return the rows less what the filter predicts from their neighbours (PNG 9.2), modulo 256."""
    if kind == _UP:
        return rows - above
    left = _shifted(rows, pixel_bytes)
    if kind == _SUB:
        return rows - left
    if kind == _AVERAGE:
        return rows - ((left & above) + ((left ^ above) >> 1))  # floor of the mean without leaving 8 bits
    return rows - _paeth(left, above, _shifted(above, pixel_bytes))


def _shifted(rows: _Bytes, pixel_bytes: int) -> _Bytes:
    shifted = np.zeros_like(rows)
    shifted[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    return shifted


def _paeth(left: _Bytes, above: _Bytes, above_left: _Bytes) -> _Bytes:
    """Return whichever is nearest to ``left + above - above_left``, at a tie the first of them (PNG 9.4)."""
    from_left = above.astype(np.int16) - above_left
    from_above = left.astype(np.int16) - above_left
    from_above_left = np.abs(from_left + from_above)
    from_left, from_above = np.abs(from_left), np.abs(from_above)
    nearest = np.where(from_above <= from_above_left, above, above_left)
    return np.where((from_left <= from_above) & (from_left <= from_above_left), left, nearest)
