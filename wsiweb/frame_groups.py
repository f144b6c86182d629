"""Per-frame functional groups as they are usually written in DICOM JSON: of each, only what places the frame.

What has another form is refused, and then read by ``frame_positions``. To be imported where there are many frames.
"""

from __future__ import annotations

import msgspec

from wsiweb.dicomjson import TAGS


def _tags(**keywords: str) -> dict[str, str]:
    return {name: TAGS[keyword] for name, keyword in keywords.items()}


class _Integer(msgspec.Struct, gc=False):
    Value: tuple[int]


class _Number(msgspec.Struct, gc=False):
    Value: tuple[float]


class _Text(msgspec.Struct, gc=False):
    Value: tuple[str]


_PLANE = _tags(
    x="ColumnPositionInTotalImagePixelMatrix",
    y="RowPositionInTotalImagePixelMatrix",
    z="ZOffsetInSlideCoordinateSystem",
)


class _Plane(msgspec.Struct, gc=False, rename=_PLANE):
    x: _Integer
    y: _Integer
    z: _Number | None = None


class _Planes(msgspec.Struct, gc=False):
    Value: tuple[_Plane]


class _Path(msgspec.Struct, gc=False, rename=_tags(identifier="OpticalPathIdentifier")):
    identifier: _Text


class _Paths(msgspec.Struct, gc=False):
    Value: tuple[_Path]


_GROUP = _tags(planes="PlanePositionSlideSequence", paths="OpticalPathIdentificationSequence")


class Group(msgspec.Struct, gc=False, rename=_GROUP):
    """The group of one frame."""

    planes: _Planes
    paths: _Paths | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(list[Group])


def decode(text: msgspec.Raw) -> list[Group]:
    """Return the groups.

    Raises
    ------
    ValueError
        One of them is written otherwise.
    """
    return _DECODER.decode(text)
