"""Where each frame lies, from the per-frame functional groups of one instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.dicomjson import TAGS, Attributes
from wsiweb.errors import MetadataError
from wsiweb.jsontext import UnreadItems, collection_paused

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_POSITION = 1 << 40
_GROUPS = "PerFrameFunctionalGroupsSequence"
_NAN = float("nan")
_Z_IN_LOWER_CASE = TAGS["ZOffsetInSlideCoordinateSystem"].lower().encode()
"""Of the tags whose absence is usual, the only one that could be."""


@dataclass(frozen=True, slots=True, eq=False)
class FramePositions:
    """Where each frame lies (Plane Position (Slide) macro, PS3.3 C.8.12.6.1), in columns of one row a frame."""

    x: npt.NDArray[np.int64]
    """Left edge in the total pixel matrix, 0-based."""
    y: npt.NDArray[np.int64]
    """Top edge in the total pixel matrix, 0-based."""
    z_um: npt.NDArray[np.float64]
    """ZOffsetInSlideCoordinateSystem in µm; NaN where unsaid."""
    path_code: npt.NDArray[np.int64]
    """Which of ``path_identifiers``."""
    path_identifiers: tuple[str | None, ...]
    """Identifiers of optical paths; None where unsaid."""


def read_positions(attributes: Attributes, shared: Attributes, number_of_frames: int) -> FramePositions | None:
    """Read the position of each frame; None where the instance does not give any.

    Raises
    ------
    MetadataError
        They are not as many as the frames, or are malformed.
    """
    unread = attributes.unread_items(_GROUPS)
    with collection_paused():
        positions = None if unread is None else _usual_positions(unread, shared, number_of_frames)
        return positions or _positions(attributes.raw_items(_GROUPS), shared, number_of_frames)


def _usual_positions(unread: UnreadItems, shared: Attributes, number_of_frames: int) -> FramePositions | None:
    """Read what is written as usual, without making objects of all the rest; None where anything is not."""
    from wsiweb import frame_groups  # noqa: PLC0415  (msgspec is for many frames)

    try:
        groups = frame_groups.decode(unread.text)
    except (ValueError, RecursionError):  # who reads it leniently says what is wrong, if anything is
        return None
    if not groups or len(groups) != number_of_frames:
        return None
    shared_path = _shared_path(shared)
    planes = [group.planes.Value[0] for group in groups]
    xs, ys = [plane.x.Value[0] - 1 for plane in planes], [plane.y.Value[0] - 1 for plane in planes]
    if any(plane.z is None for plane in planes) and _Z_IN_LOWER_CASE in bytes(unread.text):
        return None
    zs = [_NAN if plane.z is None else plane.z.Value[0] for plane in planes]
    paths = [group.paths.Value[0].identifier.Value[0] if group.paths else shared_path for group in groups]
    code_of = {path: code for code, path in enumerate(dict.fromkeys(paths))}
    return _columns(xs, ys, zs, [code_of[path] for path in paths], tuple(code_of))


def _shared_path(shared: Attributes) -> str | None:
    return shared.first_item("OpticalPathIdentificationSequence").string("OpticalPathIdentifier")


def _positions(per_frame: list[dict[str, Any]], shared: Attributes, number_of_frames: int) -> FramePositions | None:
    """Walk the per-frame groups; about a microsecond a frame where they are written as usual."""
    if not per_frame and number_of_frames == 1:
        per_frame = [{}]
    if not per_frame:
        return None
    if len(per_frame) != number_of_frames:
        raise MetadataError(f"there are {len(per_frame)} per-frame groups for {number_of_frames} frames.")
    shared_plane = shared.first_item("PlanePositionSlideSequence")
    shared_path = _shared_path(shared)
    plane_tag, path_tag = TAGS["PlanePositionSlideSequence"], TAGS["OpticalPathIdentificationSequence"]
    x_tag, y_tag = (TAGS[f"{axis}PositionInTotalImagePixelMatrix"] for axis in ("Column", "Row"))
    z_tag, identifier_tag = TAGS["ZOffsetInSlideCoordinateSystem"], TAGS["OpticalPathIdentifier"]
    xs, ys, zs, codes = [], [], [], []
    code_of: dict[str | None, int] = {}
    for frame_index, item in enumerate(per_frame):
        try:
            plane = item[plane_tag]["Value"][0]
            x, y = plane[x_tag]["Value"][0], plane[y_tag]["Value"][0]
            z = plane[z_tag]["Value"][0]
        except (KeyError, IndexError, TypeError):
            x = y = z = None
        if type(x) is not int or type(y) is not int or type(z) not in (int, float):
            x, y, z = _plane_position(Attributes(item), shared_plane)
            if x is None or y is None:
                if frame_index == 0:  # this instance has no positions at all
                    return None
                raise MetadataError(f"frame {frame_index + 1} has no position in the total pixel matrix.")
        xs.append(x - 1)
        ys.append(y - 1)
        zs.append(z)
        path = _path_identifier(item, path_tag, identifier_tag) if path_tag in item else shared_path
        code = code_of.get(path)
        if code is None:
            code = code_of[path] = len(code_of)
        codes.append(code)
    return _columns(xs, ys, zs, codes, tuple(code_of))


def _columns(
    xs: list[int], ys: list[int], zs: list[float], codes: list[int], identifiers: tuple[str | None, ...]
) -> FramePositions:
    try:
        x_array, y_array, z_array = np.array(xs, np.int64), np.array(ys, np.int64), np.array(zs, np.float64)
    except (OverflowError, ValueError):
        raise MetadataError("the position of a frame is beyond all numbers.") from None
    if max(abs(x_array).max(), abs(y_array).max()) > MAX_POSITION or (abs(z_array) > MAX_POSITION).any():
        raise MetadataError("the position of a frame is beyond all slides.")
    stripped = tuple(None if identifier is None else identifier.strip(" \0") for identifier in identifiers)
    return FramePositions(x_array, y_array, z_array, np.array(codes, np.int64), stripped)


def _path_identifier(item: dict[str, Any], path_tag: str, identifier_tag: str) -> str | None:
    try:
        values = item[path_tag]["Value"][0][identifier_tag]["Value"]
        if type(values) is list and type(values[0]) is str:
            return values[0]
    except (KeyError, IndexError, TypeError):
        pass
    return Attributes(item).first_item("OpticalPathIdentificationSequence").string("OpticalPathIdentifier")


def _plane_position(item: Attributes, shared_plane: Attributes) -> tuple[int | None, int | None, float]:
    """Read one position in whatever form it was sent."""
    plane = item.first_item("PlanePositionSlideSequence")
    column, row = "ColumnPositionInTotalImagePixelMatrix", "RowPositionInTotalImagePixelMatrix"
    if plane.integer(column) is None:
        plane = shared_plane
    z = plane.number("ZOffsetInSlideCoordinateSystem")
    return plane.integer(column), plane.integer(row), float("nan") if z is None else z
