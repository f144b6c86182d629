"""The transfer syntaxes of DICOM (PS3.5 10, PS3.6 A-1) that whole slides come in, and those that are not read."""

from __future__ import annotations

from typing import NamedTuple


class _Syntax(NamedTuple):
    name: str
    media_type: str | None = None
    """Of compressed frames (PS3.18 Table 8.7.3-5)."""
    lossy: bool = False
    """Whether it may lose something."""


IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
RLE_MEDIA_TYPE = "image/dicom-rle"

_READABLE = {
    IMPLICIT_LITTLE_ENDIAN: _Syntax("Implicit VR Little Endian"),
    EXPLICIT_LITTLE_ENDIAN: _Syntax("Explicit VR Little Endian"),
    DEFLATED: _Syntax("Deflated Explicit VR Little Endian"),
    EXPLICIT_BIG_ENDIAN: _Syntax("Explicit VR Big Endian"),
    "1.2.840.10008.1.2.4.50": _Syntax("JPEG Baseline", "image/jpeg", lossy=True),
    "1.2.840.10008.1.2.4.51": _Syntax("JPEG Extended", "image/jpeg", lossy=True),
    "1.2.840.10008.1.2.4.57": _Syntax("JPEG Lossless", "image/jpeg"),
    "1.2.840.10008.1.2.4.70": _Syntax("JPEG Lossless SV1", "image/jpeg"),
    "1.2.840.10008.1.2.4.80": _Syntax("JPEG-LS Lossless", "image/jls"),
    "1.2.840.10008.1.2.4.81": _Syntax("JPEG-LS Near Lossless", "image/jls", lossy=True),
    "1.2.840.10008.1.2.4.90": _Syntax("JPEG 2000 Lossless", "image/jp2"),
    "1.2.840.10008.1.2.4.91": _Syntax("JPEG 2000", "image/jp2", lossy=True),
    "1.2.840.10008.1.2.4.110": _Syntax("JPEG XL Lossless", "image/jxl"),
    "1.2.840.10008.1.2.4.111": _Syntax("JPEG XL JPEG Recompression", "image/jxl", lossy=True),
    "1.2.840.10008.1.2.4.112": _Syntax("JPEG XL", "image/jxl", lossy=True),
    "1.2.840.10008.1.2.4.201": _Syntax("HTJ2K Lossless", "image/jphc"),
    "1.2.840.10008.1.2.4.202": _Syntax("HTJ2K Lossless RPCL", "image/jphc"),
    "1.2.840.10008.1.2.4.203": _Syntax("HTJ2K", "image/jphc", lossy=True),
    RLE: _Syntax("RLE Lossless", RLE_MEDIA_TYPE),
}
NATIVE = frozenset(uid for uid, syntax in _READABLE.items() if syntax.media_type is None)
"""Those that do not compress frames."""


def readable(uid: str) -> bool:
    """Whether frames of this transfer syntax are read."""
    return uid in _READABLE


def name(uid: str) -> str:
    """Return the name and the UID, for messages."""
    return f"{_READABLE[uid].name} ({uid})" if uid in _READABLE else uid


def media_type(uid: str) -> str | None:
    """Return the media type of compressed frames; None for native ones, and for those that are not read."""
    return _READABLE[uid].media_type if uid in _READABLE else None


def lossless(uid: str) -> bool:
    """Whether frames of this transfer syntax cannot have lost anything by it."""
    return uid in _READABLE and not _READABLE[uid].lossy
