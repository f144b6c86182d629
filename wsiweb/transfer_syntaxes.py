"""The transfer syntaxes of DICOM (PS3.5 10, PS3.6 A-1) that whole slides come in, and those that are not read."""

from __future__ import annotations

_READABLE = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near Lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "HTJ2K Lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K Lossless RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}
_MEDIA_TYPES = {"4.5": "image/jpeg", "4.7": "image/jpeg", "4.8": "image/jls", "4.9": "image/jp2", "4.1": "image/jxl",
                "4.2": "image/jphc", "5": "image/dicom-rle"}  # fmt: skip
_LOSSY = frozenset({"4.50", "4.51", "4.81", "4.91", "4.111", "4.112", "4.203"})


def readable(uid: str) -> bool:
    """Whether frames of this transfer syntax are read."""
    return uid in _READABLE


def name(uid: str) -> str:
    """Return the name and the UID, for messages."""
    return f"{_READABLE[uid]} ({uid})" if uid in _READABLE else uid


def media_type(uid: str) -> str | None:
    """Return the media type of compressed frames (PS3.18 Table 8.7.3-5); None for native ones."""
    tail = uid.removeprefix("1.2.840.10008.1.2.")
    return next((kind for start, kind in _MEDIA_TYPES.items() if tail.startswith(start)), None)


def lossless(uid: str) -> bool:
    """Whether frames of this transfer syntax cannot have lost anything by it."""
    return uid in _READABLE and uid.removeprefix("1.2.840.10008.1.2.") not in _LOSSY
