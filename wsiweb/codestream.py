"""What the head and the tail of a code stream say, read without decoding it.

The code stream knows its own size, depth and colour space; the metadata are often wrong about the last
(slides whose JPEGs are declared RGB and are not, and the reverse).
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Coding(enum.Enum):
    """How a frame is encoded, by its magic number."""

    JPEG = "JPEG"
    JPEG_LOSSLESS = "JPEG lossless"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"
    JPEG_XL = "JPEG XL"


@dataclass(frozen=True, slots=True)
class Codestream:
    """The header of a code stream."""

    coding: Coding
    width: int | None = None
    """None where the header does not tell."""
    height: int | None = None
    components: int | None = None
    bits: int | None = None
    """Of a sample; told for JPEG only."""
    colour_transformed: bool | None = None
    """Whether components are YCbCr (JPEG) or a multiple component transform was used (JPEG 2000). None: unsaid."""
    holds_jpeg: bool = False
    """Whether it is a JPEG, recompressed without loss as JPEG XL."""


_PADDING = b"\x00\xff "
"""What stands behind end markers to fill up; zero by the standard (PS3.5 A.4)."""
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SOF_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC5, 0xC6, 0xC9, 0xCA, 0xCD, 0xCE}) | _SOF_LOSSLESS
_SOF_JPEG_LS = 0xF7
_HEAD_BYTES = 4096
"""Within which the start of scan is looked for; a longer head is walked each time."""
_JPEGXL_HEAD_BYTES = 14
"""Have the size in them, whatever it is."""
_STANDALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
"""Without a length; 00 says that the FF before it is no marker's."""


def inspect(data: bytes) -> Codestream | None:
    """Return what the code stream says of itself, or None where the bytes are none that is known."""
    if data[:3] == b"\xff\xd8\xff":
        return _inspect_jpeg(data)
    if data[:4] == b"\xff\x4f\xff\x51":
        return _inspect_jpeg2000(data)
    if data[:12] == _JP2_SIGNATURE:
        start, _ = _jpeg2000_codestream(data)
        return _inspect_jpeg2000(data[start : start + 4096])
    if data[:2] == b"\xff\x0a":
        return _inspect_jpegxl(data)
    if data[:12] == b"\x00\x00\x00\x0cJXL \r\n\x87\n":
        return _inspect_jpegxl_boxes(data)
    return None


def complete(data: bytes) -> bool:
    """Whether a JPEG or JPEG 2000 code stream ends with its end marker, padding aside.

    A JPEG cut short decodes to a whole image with a grey rest and without any error: this is the only guard.
    """
    if data[:12] == _JP2_SIGNATURE:
        start, stop = _jpeg2000_codestream(data)
        return stop <= len(data) and ended(data[start:stop])
    if data[:2] not in (b"\xff\xd8", b"\xff\x4f"):
        return True
    return ended(data)


def ended(tail: bytes) -> bool:
    """Whether these bytes, the last of some, end with the end marker of JPEG and JPEG 2000, padding aside."""
    return tail.rstrip(_PADDING).endswith(b"\xff\xd9")


def jpeg_head(data: bytes) -> bytes | None:
    """Return a JPEG up to its start of scan; None where that is not soon, or the bytes are no JPEG."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    stop = data.find(b"\xff\xda", 2, _HEAD_BYTES)
    head = data[: stop + 2]
    # Where a segment holds these two bytes by chance, the walk ends beyond them.
    return head if stop > 0 and _walk_jpeg_head(head)[1] == stop else None


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box, and where its content begins and ends (ITU-T T.800 I.4, ISO/IEC 18181-2 9)."""
    position = 0
    while position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        start = position + 8
        if size == 1:
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), position + 16
        yield kind, start, position + size if size else len(data)
        if size < 8:  # the last box, or nonsense
            return
        position += size


def _jpeg2000_codestream(data: bytes) -> tuple[int, int]:
    """Return where the code stream lies within a JP2 file."""
    for kind, start, stop in _boxes(data):
        if kind == b"jp2c":
            return start, stop
    return len(data), len(data) + 1  # there is none: incomplete


def _inspect_jpeg(data: bytes) -> Codestream:
    """Read the head, which is mostly that of the frame before."""
    head = jpeg_head(data)
    return _walk_jpeg(data)[0] if head is None else _walk_jpeg_head(head)[0]


def _walk_jpeg(data: bytes) -> tuple[Codestream, int]:
    """Walk the markers up to the start of scan (ITU-T T.81 B.1); return where that is, too.

    What stands between segments is skipped as libjpeg skips it, or the decoder would see a size that was not checked.
    """
    position, end = 2, len(data)
    frame: tuple[Coding, int, int, int, bytes] | None = None
    adobe_transform: int | None = None
    jfif = False
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= end:
        marker = data[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker in _SOF or marker == _SOF_JPEG_LS:
            if len(body) < 6:
                break
            coding = Coding.JPEG_LOSSLESS if marker in _SOF_LOSSLESS else Coding.JPEG
            coding = Coding.JPEG_LS if marker == _SOF_JPEG_LS else coding
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            frame = coding, width, height, body[0], body[6:]
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe_transform = body[11]
        elif marker == 0xE0 and body[:5] == b"JFIF\x00":
            jfif = True
        elif marker in (0xDA, 0xD9):
            break
        position += 2 + length
    if frame is None:
        return Codestream(Coding.JPEG), position
    coding, width, height, bits, components = frame
    count = len(components) // 3
    transformed = None
    if count == 3:
        transformed = _is_ycbcr(adobe_transform, jfif=jfif, components=components)
    return Codestream(coding, width, height, count, bits, transformed), position


_walk_jpeg_head = functools.lru_cache(maxsize=64)(_walk_jpeg)


def _is_ycbcr(adobe_transform: int | None, *, jfif: bool, components: bytes) -> bool | None:
    """Say whether a JPEG of three components is YCbCr, by the surest sign that it carries."""
    if adobe_transform is not None:
        return adobe_transform != 0
    if jfif:
        return True
    if components[0::3] == b"RGB":
        return False
    if len(set(components[1::3])) > 1:  # subsampled chroma makes sense for YCbCr only
        return True
    return None


def _inspect_jpeg2000(data: bytes) -> Codestream:
    """Read SIZ and COD (ITU-T T.800 A.5.1, A.6.1)."""
    number = int.from_bytes
    position, end = 2, len(data)
    width = height = components = None
    transformed = None
    while position + 4 <= end and data[position] == 0xFF:
        marker, length = data[position + 1], number(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker == 0x51 and len(body) >= 36:
            width = number(body[2:6], "big") - number(body[10:14], "big")
            height = number(body[6:10], "big") - number(body[14:18], "big")
            components = number(body[34:36], "big")
        elif marker == 0x52 and len(body) >= 5:
            transformed = body[4] == 1
        elif marker in (0x90, 0x93, 0xD9):  # the first tile part: the main header is over
            break
        position += 2 + length
    return Codestream(Coding.JPEG_2000, width, height, components, colour_transformed=transformed)


def _inspect_jpegxl_boxes(data: bytes) -> Codestream:
    """Find the head of the code stream, which may be in parts, and whether it is a recompressed JPEG."""
    holds_jpeg, head = False, b""
    for kind, start, stop in _boxes(data):
        if kind == b"jbrd":
            holds_jpeg = True
        elif kind in (b"jxlc", b"jxlp"):
            begin = start + (4 if kind == b"jxlp" else 0)
            head += data[begin : min(stop, begin + _JPEGXL_HEAD_BYTES)]
            if kind == b"jxlc" or len(head) >= _JPEGXL_HEAD_BYTES:
                break
    return replace(_inspect_jpegxl(head), holds_jpeg=holds_jpeg)


def _inspect_jpegxl(data: bytes) -> Codestream:
    """Read SizeHeader (ISO/IEC 18181-1 D.2): fields of bits, least significant first."""
    bits = int.from_bytes(data[2:_JPEGXL_HEAD_BYTES], "little")
    if len(data) < _JPEGXL_HEAD_BYTES:
        return Codestream(Coding.JPEG_XL)

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    numerator, denominator = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    width = side() if ratio == 0 else height * numerator // denominator
    return Codestream(Coding.JPEG_XL, width, height)
