"""Edits of JPEG markers: files that say less, more or something else about their colours than they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Segment = tuple[int, bytes]
"""Marker and body, without the length."""

SOF0, SOS, APP0, APP14 = 0xC0, 0xDA, 0xE0, 0xEE


def split(data: bytes) -> tuple[list[Segment], bytes]:
    """Return the segments between SOI and the first scan, and all from the scan on."""
    segments, position = [], 2
    while data[position + 1] != SOS:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append((data[position + 1], data[position + 4 : position + 2 + length]))
        position += 2 + length
    return segments, data[position:]


def join(segments: Iterable[Segment], scan: bytes) -> bytes:
    heads = b"".join(bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in segments)
    return b"\xff\xd8" + heads + scan


def silent(data: bytes) -> bytes:
    """Take out APP0 (JFIF) and APP14 (Adobe)."""
    segments, scan = split(data)
    return join([segment for segment in segments if segment[0] not in (APP0, APP14)], scan)


def with_ids(data: bytes, ids: bytes) -> bytes:
    """Name the components otherwise, in SOF and SOS."""
    segments, scan = split(data)
    changed = []
    for marker, body in segments:
        new = bytearray(body)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            new[6::3] = ids
        changed.append((marker, bytes(new)))
    head = bytearray(scan)
    head[5 : 5 + 2 * len(ids) : 2] = ids
    return join(changed, bytes(head))


def with_adobe(data: bytes, transform: int, *, late: bool = False) -> bytes:
    """Add APP14 with a transform: 0 for RGB, 1 for YCbCr; ``late`` puts it right before the scan."""
    segments, scan = split(data)
    segments = [segment for segment in segments if segment[0] != APP14]
    adobe = APP14, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, transform])
    return join([*segments, adobe] if late else [adobe, *segments], scan)


def with_size(data: bytes, width: int, height: int) -> bytes:
    """State another size in SOF."""
    segments, scan = split(data)
    stated = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    frame_headers = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)
    return join([(m, b[:1] + stated + b[5:] if m in frame_headers else b) for m, b in segments], scan)
