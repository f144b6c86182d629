"""PALETTE COLOR: lookup tables from indices to RGB (PS3.3 C.7.6.3.1.5, C.7.9)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import MetadataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.dicomjson import Attributes

_MAX_ENTRIES = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """One lookup table for all three colours."""

    first: int
    """Index that the first entry is for; smaller ones take the first entry, larger ones than the last the last."""
    colours: npt.NDArray[np.uint8]
    """``(n, 3)`` RGB."""

    def apply(self, indices: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Turn ``(h, w)`` indices into ``(h, w, 3)`` RGB."""
        rows = indices.astype(np.int32) - self.first if self.first else indices
        coloured: npt.NDArray[np.uint8] = np.take(self.colours, rows, axis=0, mode="clip")
        return coloured


def read_palette(attributes: Attributes) -> Palette:
    """Return the palette of an image.

    Raises
    ------
    MetadataError
        A table is missing, or is not what its descriptor says.
    """
    tables, first = [], 0
    for colour in ("Red", "Green", "Blue"):
        descriptor = [int(number) for number in attributes.numbers(f"{colour}PaletteColorLookupTableDescriptor")]
        if len(descriptor) != 3:
            raise MetadataError(f"{colour}PaletteColorLookupTableDescriptor has {len(descriptor)} values, not 3.")
        entries = descriptor[0] % _MAX_ENTRIES or _MAX_ENTRIES
        first, bits = descriptor[1], descriptor[2]
        if not -32_768 <= first <= 65_535:  # SS or US
            raise MetadataError(f"{colour}PaletteColorLookupTableDescriptor begins at {first:g}.")
        plain = attributes.binary(f"{colour}PaletteColorLookupTableData")
        segmented = attributes.binary(f"Segmented{colour}PaletteColorLookupTableData")
        value = plain or segmented
        if value is None or value.inline is None:
            raise MetadataError(f"{colour}PaletteColorLookupTableData are missing.")
        table = _unsegmented(value.inline, entries, bits) if plain is None else _table(value.inline, entries)
        tables.append((table >> (8 if bits > 8 else 0)).astype(np.uint8))
    if len({len(table) for table in tables}) != 1:
        raise MetadataError(
            f"The tables of RedPaletteColorLookupTableData and its siblings differ in length: "
            f"{[len(table) for table in tables]}."
        )
    return Palette(first, np.stack(tables, axis=1))


def _table(data: bytes, entries: int) -> npt.NDArray[np.uint16]:
    """Entries are words, or bytes where there are no more bytes than entries."""
    dtype = np.dtype("<u2") if len(data) >= 2 * entries else np.dtype("u1")
    if len(data) < entries * dtype.itemsize:
        raise MetadataError(f"a palette has {len(data)} bytes for {entries} entries.")
    return np.frombuffer(data, dtype, entries).astype(np.uint16)


def _unsegmented(data: bytes, entries: int, bits: int) -> npt.NDArray[np.uint16]:
    """Return the entries that segments stand for: segments of words, or of bytes where entries have 8 bits."""
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2")
    if bits > 8:
        return _expanded(words, entries)
    with contextlib.suppress(MetadataError):  # some write words all the same; bytes make no sense as such
        return _expanded(words, entries)
    return _expanded(np.frombuffer(data, "u1"), entries)


def _expanded(units: npt.NDArray[Any], entries: int) -> npt.NDArray[np.uint16]:
    """Expand segments (PS3.3 C.7.9.2): discrete values, linear ramps, repetitions of earlier segments."""
    table: list[int] = []
    _expand(units, 0, None, table, entries)
    if len(table) != entries:
        raise MetadataError(f"a segmented palette expands to {len(table)} entries, not {entries}.")
    return np.array(table, np.uint16)


def _expand(units: npt.NDArray[Any], position: int, count: int | None, table: list[int], entries: int) -> None:
    """Append ``count`` segments (or all) from ``position``."""
    done, end, offset_units = 0, len(units), 4 // units.itemsize
    while position + 1 < end and (count is None or done < count) and len(table) <= entries:
        kind, length = units[position : position + 2].tolist()
        position += 2
        if length == 0:  # repeated, such would take for ever
            raise MetadataError("a segmented palette has a segment without length.")
        if kind == 0:
            table.extend(units[position : position + length].tolist())
            position += length
        elif kind == 1 and table and position < end:
            target, start = int(units[position]), table[-1]
            table.extend(round(start + (target - start) * step / length) for step in range(1, length + 1))
            position += 1
        elif kind == 2 and position + offset_units <= end and count is None:
            offset = int.from_bytes(units[position : position + offset_units].tobytes(), "little") // units.itemsize
            _expand(units, offset, length, table, entries)
            position += offset_units
        else:
            raise MetadataError(f"a segmented palette has a segment of kind {kind}.")
        done += 1
