"""Walk the last data elements of a Part 10 file: per-frame functional groups, and where the pixel data begin.

pydicom reads the header before them. It would make some ten objects for each frame here, seconds for a sparse slide,
of which reading needs four numbers (PS3.5 7 has the encoding).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsiweb.errors import MetadataError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

PER_FRAME_GROUPS = 0x52009230
PIXEL_DATA = 0x7FE00010
EXTENDED_OFFSET_TABLE = 0x7FE00001
_PIXEL_DATA_OF_ANY_KIND = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SEQUENCES = frozenset({0x0048021A, 0x00480207, 0x00289110})
"""Plane Position (Slide), Optical Path Identification, Pixel Measures."""
_VALUES = {
    0x0048021E: "SL",  # ColumnPositionInTotalImagePixelMatrix
    0x0048021F: "SL",  # RowPositionInTotalImagePixelMatrix
    0x0040072A: "DS",  # XOffsetInSlideCoordinateSystem
    0x0040073A: "DS",  # YOffsetInSlideCoordinateSystem
    0x0040074A: "DS",  # ZOffsetInSlideCoordinateSystem
    0x00480106: "SH",  # OpticalPathIdentifier
    0x00280030: "DS",  # PixelSpacing
    0x00180088: "DS",  # SpacingBetweenSlices
}
_NUMBERS = {"SS": "h", "US": "H", "SL": "i", "UL": "I", "SV": "q", "UV": "Q", "FL": "f", "FD": "d"}
_VRS = {vr.encode(): vr for vr in (*_NUMBERS, "DS", "IS", "CS", "LO", "SH", "LT", "ST", "UC", "UT")}
"""In which such values are understood, whichever they should have."""
_NAMES = {tag: f"{tag:08X}" for tag in (*_SEQUENCES, *_VALUES)}
_MAX_DEPTH = 16
_SHORT_BYTES, _MANY_VALUES = 64, 1 << 16
"""Of a value that is remembered, and of them."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands after the header."""

    frame_groups: list[dict[str, Any]] | None
    """Items of PerFrameFunctionalGroupsSequence in the DICOM JSON model; of each only what places the frame."""
    extended_offsets: tuple[int, int] | None
    """Offset and length of the value of the Extended Offset Table."""
    pixel_tag: int | None
    """Which kind of pixel data there is."""
    pixel_start: int
    """Offset of its value."""
    pixel_length: int
    """As declared; 0xFFFFFFFF is encapsulated."""
    pixel_big_endian_words: bool = False
    """Whether it is made of 16-bit words (VR OW), of which the high byte comes first."""


def read_tail(
    data: bytes | mmap.mmap, position: int, *, implicit: bool, big_endian: bool, decode: Callable[[bytes], str]
) -> Tail:
    """Walk over the elements from ``position`` to the pixel data.

    Parameters
    ----------
    data
        The file: bytes, or a memory map.
    position
        Of the first element.
    implicit, big_endian
        Encoding of the transfer syntax.
    decode
        Decodes text in the character set of the dataset.

    Raises
    ------
    MetadataError
        The elements are malformed or cut short.
    """
    walker = _Walker(data, implicit=implicit, big_endian=big_endian, decode=decode)
    groups: list[dict[str, Any]] | None = None
    table: tuple[int, int] | None = None
    try:
        while position + 8 <= len(data):
            tag, length, value, within = walker.header(position)
            if tag in _PIXEL_DATA_OF_ANY_KIND:
                return Tail(
                    groups, table, tag, value, length, big_endian and data[position + 4 : position + 6] == b"OW"
                )
            if tag == EXTENDED_OFFSET_TABLE:
                table = value, length
            if tag == PER_FRAME_GROUPS:
                groups, position = within.items(value, length, depth=0)
            elif length == UNDEFINED_LENGTH:
                position = within.items(value, length, depth=0)[1]
            else:
                position = value + length
    except (struct.error, IndexError) as error:
        raise MetadataError(f"its data elements are cut short at byte {position:,}") from error
    return Tail(groups, table, None, position, 0)


def meta_end(data: bytes, position: int) -> int:
    """Return where the File Meta Information ends that begins at ``position`` (PS3.10 7.1), whatever length it says."""
    walker = _Walker(data, implicit=False, big_endian=False)
    while position + 12 <= len(data) and data[position : position + 2] == b"\2\0":
        _, length, value, _ = walker.header(position)
        position = value + length
    return position


def read_items(data: bytes, *, implicit: bool) -> list[dict[str, Any]]:
    """Return the items of a sequence's value, little endian, as ``Tail.frame_groups`` has them.

    Raises
    ------
    MetadataError, struct.error, IndexError
        It is no such value.
    """
    start = 0
    walker = _Walker(data, implicit=implicit, big_endian=False)
    if data[4:6] == b"SQ" or int.from_bytes(data[:2], "little") == PER_FRAME_GROUPS >> 16:
        _, _, start, _ = walker.header(0)  # the whole element was sent, and not its value alone
    return walker.items(start, len(data) - start, depth=0)[0]


def _latin_1(data: bytes) -> str:
    return data.decode("latin-1")


class _Walker:
    """Reads elements of one encoding."""

    def __init__(
        self,
        data: bytes | mmap.mmap,
        *,
        implicit: bool,
        big_endian: bool,
        decode: Callable[[bytes], str] = _latin_1,
    ) -> None:
        order = ">" if big_endian else "<"
        self._data: Any = data
        self._implicit = implicit
        self._decode = decode
        self._head = struct.Struct(f"{order}HHI")
        self._short = struct.Struct(f"{order}H")
        self._long = struct.Struct(f"{order}I")
        self._order = order
        self._known: dict[tuple[str, bytes], dict[str, Any]] = {}
        # For sequences of unknown VR (PS3.5 6.2.2).
        self._unknown = None if implicit else _Walker(data, implicit=True, big_endian=False, decode=decode)

    def header(self, position: int) -> tuple[int, int, int, _Walker]:
        """Return tag, length, offset of the value, and what reads its items where it is a sequence."""
        data = self._data
        group, element, length = self._head.unpack_from(data, position)
        tag = group << 16 | element
        if self._implicit or group == 0xFFFE:
            return tag, length, position + 8, self
        vr = data[position + 4 : position + 6]
        if vr in _LONG_VRS:
            within = (vr == b"UN" and self._unknown) or self
            return tag, self._long.unpack_from(data, position + 8)[0], position + 12, within
        return tag, self._short.unpack_from(data, position + 6)[0], position + 8, self

    def items(self, position: int, length: int, depth: int) -> tuple[list[dict[str, Any]], int]:
        """Return the items of a sequence, and the offset after it."""
        if depth > _MAX_DEPTH:
            raise MetadataError("its sequences are nested too deeply")
        found: list[dict[str, Any]] = []
        end = len(self._data) if length == UNDEFINED_LENGTH else position + length
        while position < end:
            tag, item_length, position, _ = self.header(position)
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise MetadataError(f"a sequence has something else than items at byte {position:,}")
            item, position = self._item(position, item_length, depth)
            found.append(item)
        else:
            _check_delimited(length)
        return found, position

    def _item(self, position: int, length: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        end = len(self._data) if length == UNDEFINED_LENGTH else position + length
        while position < end:
            start = position
            tag, value_length, value, within = self.header(start)
            if tag == _ITEM_END:
                return found, value
            if tag in _SEQUENCES:
                items, position = within.items(value, value_length, depth + 1)
                found[_NAMES[tag]] = {"vr": "SQ", "Value": items}
            elif value_length == UNDEFINED_LENGTH:
                position = within.items(value, value_length, depth + 1)[1]
            else:
                position = value + value_length
                if tag in _VALUES:
                    found[_NAMES[tag]] = self._value(self._vr(tag, start), value, value_length)
        _check_delimited(length)
        return found, position

    def _vr(self, tag: int, position: int) -> str:
        """Return the VR of an element: that of the file, where it tells, and not what it should be."""
        stored = b"UN" if self._implicit else self._data[position + 4 : position + 6]
        vr = _VALUES[tag] if stored == b"UN" else _VRS.get(stored)
        if vr is None:
            raise MetadataError(f"element {tag:08X} has the VR {_latin_1(stored)!r}, where {_VALUES[tag]} is expected")
        return vr

    def _value(self, vr: str, position: int, length: int) -> dict[str, Any]:
        """Return an element; frames say the same again and again, which is read, and held, once."""
        data: bytes = self._data[position : position + length]
        known = self._known.get((vr, data))
        if known is None:
            known = {"vr": vr, "Value": self._values(vr, data, length)}
            if length <= _SHORT_BYTES and len(self._known) < _MANY_VALUES:
                self._known[vr, data] = known
        return known

    def _values(self, vr: str, data: bytes, length: int) -> list[Any]:
        if (code := _NUMBERS.get(vr)) is not None:  # whose count is that of the length, however much there is
            return list(struct.unpack_from(f"{self._order}{length // struct.calcsize(code)}{code}", data))
        if vr in ("DS", "IS"):
            return [_number(value) for value in _latin_1(data).strip(" \0").split("\\")]
        return list(self._decode(data).strip(" \0").split("\\"))


def _check_delimited(length: int) -> None:
    if length == UNDEFINED_LENGTH:
        raise MetadataError("a sequence is cut short: its delimiter is missing")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # whoever needs it says what is wrong
