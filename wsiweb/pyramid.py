"""From instances to pyramids: levels by size, and in each a frame index for every optical path and focal plane.

Pure. Neither pixels nor requests: the differences between tilings, concatenations and channels end here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.colour import cielab_to_srgb
from wsiweb.errors import MetadataError, RegionError
from wsiweb.frames import Concatenation, FullTileIndex, SparseTileIndex, TileIndex, TileTable
from wsiweb.geometry import Rectangle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from wsiweb.metadata import Instance


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a pyramid."""

    index: int
    """Position in ``slide.levels``; 0 is the finest."""
    width: int
    """Total pixel matrix columns."""
    height: int
    """Total pixel matrix rows."""
    downsample: float
    """Relative to level 0; the mean of both axes where they differ by rounding."""
    mpp: tuple[float, float] | None
    """Micrometres a pixel, (x, y), or None where the slide does not tell."""
    base_size: tuple[int, int]
    """(w, h) of level 0."""
    tile_size: tuple[int, int]
    """Size of a frame, (w, h)."""
    shape: tuple[int, ...]
    """Of the level as an array: ``(h, w, 3)`` for colour, ``(h, w)`` for monochrome."""
    dtype: np.dtype[Any]
    """uint8, or uint16 for monochrome of more than 8 bits."""

    @property
    def size(self) -> tuple[int, int]:
        """(w, h) in pixels."""
        return self.width, self.height

    @property
    def bounds(self) -> Rectangle:
        """The whole level."""
        return Rectangle(0, 0, self.width, self.height)


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """What one optical path shows of one level in one focal plane."""

    tiles: tuple[TileIndex, ...]
    """Usually one; several where instances of different tilings share the channel."""
    colour: bool
    dtype: np.dtype[Any]
    background: tuple[int, ...]
    """Colour of what the slide does not have, one value a sample."""


@dataclass(frozen=True, slots=True, eq=False)
class Pyramid:
    """The levels that belong together."""

    uid: str | None
    """Pyramid UID (0008,0019)."""
    extended_depth_of_field: bool
    levels: tuple[Level, ...]
    optical_paths: tuple[str, ...]
    """Identifiers, in the order of OpticalPathSequence."""
    focal_planes: tuple[float, ...]
    """z offsets in µm, rising."""
    channels: dict[tuple[int, str, float], Channel]
    """By level index, optical path and focal plane."""

    @property
    def default_focal_plane(self) -> float:
        """The plane nearest the middle of the lowest and the highest; the lower at a tie."""
        middle = (self.focal_planes[0] + self.focal_planes[-1]) / 2
        return min(self.focal_planes, key=lambda plane: (abs(plane - middle), plane))

    def channel(self, level: int, optical_path: str | None, focal_plane: float | None) -> Channel:
        """Look up a channel; None takes the default.

        Raises
        ------
        RegionError
            There is no such optical path or focal plane, or not on this level.
        """
        path = self.optical_paths[0] if optical_path is None else optical_path
        if path not in self.optical_paths:
            raise RegionError(
                f"There is no optical path {optical_path!r}; this slide has {', '.join(map(repr, self.optical_paths))}."
            )
        plane = self.default_focal_plane if focal_plane is None else self._nearest_plane(focal_plane)
        channel = self.channels.get((level, path, plane))
        if channel is None and optical_path is None and focal_plane is None:
            # A level that lacks the default still has something to show.
            channel = next((value for key, value in self.channels.items() if key[0] == level), None)
        if channel is None:
            raise RegionError(f"Level {level} has no optical path {path!r} in the focal plane at {plane} µm.")
        return channel

    def _nearest_plane(self, focal_plane: float) -> float:
        nearest = min(self.focal_planes, key=lambda plane: abs(plane - focal_plane))
        if not abs(nearest - focal_plane) <= 1e-3:
            raise RegionError(
                f"There is no focal plane at {focal_plane} µm; this slide has {', '.join(map(str, self.focal_planes))}."
            )
        return nearest


def build_pyramids(
    instances: Sequence[Instance], *, mpp: tuple[float, float] | None, report: Callable[[str], None]
) -> tuple[Pyramid, ...]:
    """Sort the VOLUME instances into pyramids, the default one first.

    Parameters
    ----------
    instances
        Of the slide; a Channel's tiles refer to them by position.
    mpp
        The user's word on the resolution of level 0, (x, y) in µm; None trusts the metadata.
    report
        Called with each problem that costs an instance but not the slide.

    Raises
    ------
    MetadataError
        No pyramid is left.
    """
    groups: defaultdict[tuple[bool, str], list[_Image]] = defaultdict(list)
    problems = []
    for members in _concatenations(instances):
        lead = instances[members[0]]
        try:
            image = _Image.build([instances[member] for member in members], members)
        except MetadataError as error:
            problems.append(str(error))
            continue
        groups[lead.extended_depth_of_field, lead.pyramid_uid or lead.frame_of_reference_uid or ""].append(image)
    pyramids = [_pyramid(images, mpp) for images in groups.values()]
    if not pyramids:
        raise MetadataError(" ".join(problems) or "There is no VOLUME image.")
    for problem in problems:
        report(f"{problem} This level is left out.")
    # The contract's default: the largest level 0, without extended depth of field first, then the lowest UID.
    pyramids.sort(key=lambda p: (-p.levels[0].width * p.levels[0].height, p.extended_depth_of_field, p.uid or ""))
    return tuple(pyramids)


def single_image(instance: Instance, instance_index: int) -> tuple[Level, Channel]:
    """Return a label, overview or thumbnail as a level of its own, with its first channel."""
    image = _Image.build([instance], [instance_index])
    return _level([image], index=0, base=None, mpp=instance.mpp), next(iter(image.channels.values()))


def _concatenations(instances: Sequence[Instance]) -> Iterable[list[int]]:
    """Group the VOLUME instances by ConcatenationUID, parts by rising offset."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        if instance.flavor == "VOLUME":
            groups[instance.concatenation_uid or instance.address.instance_uid].append(position)
    for members in groups.values():
        yield sorted(members, key=lambda member: instances[member].concatenation_offset)


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """A whole image: one instance, or all parts of a concatenation."""

    lead: Instance
    channels: dict[tuple[str, float], Channel]
    """By optical path and focal plane in µm."""

    @classmethod
    def build(cls, parts: list[Instance], members: list[int]) -> _Image:
        lead = parts[0]
        for part in parts:
            shape = (part.matrix_width, part.matrix_height, part.pixels.columns, part.pixels.rows)
            if shape != (lead.matrix_width, lead.matrix_height, lead.pixels.columns, lead.pixels.rows):
                raise MetadataError(
                    f"Instances {lead.address.instance_uid} and {part.address.instance_uid} are parts of one "
                    f"concatenation but differ in their size."
                )
        sparse = lead.organization != "TILED_FULL" and all(part.positions is not None for part in parts)
        if lead.organization == "TILED_SPARSE" and not sparse:
            raise MetadataError(
                f"Instance {lead.address.instance_uid} is TILED_SPARSE, but its metadata lack the position of each "
                f"frame (PerFrameFunctionalGroupsSequence). Some stores leave out large sequences; Google's does "
                f"in v1 and not in v1beta1."
            )
        tiles = _sparse_channels(parts, members) if sparse else _full_channels(parts, members)
        pixels = lead.pixels
        background = _background(lead)
        channels = {key: Channel((index,), pixels.colour, pixels.dtype, background) for key, index in tiles.items()}
        return cls(lead, channels)


def _full_channels(parts: list[Instance], members: list[int]) -> dict[tuple[str, float], TileIndex]:
    """Split TILED_FULL, or frames in plain raster order, into optical paths and focal planes."""
    lead = parts[0]
    pixels = lead.pixels
    columns = -(-lead.matrix_width // pixels.columns)
    rows = -(-lead.matrix_height // pixels.rows)
    planes, paths = lead.number_of_focal_planes, len(lead.optical_paths)
    expected = columns * rows * planes * paths
    name = f"instance {lead.address.instance_uid}"
    last = max(part.concatenation_offset + part.number_of_frames for part in parts)
    concatenated = lead.concatenation_uid is not None
    if last > expected or (last < expected and not concatenated):
        raise MetadataError(
            f"The {last} frames of {name} do not fit its {columns} x {rows} tiles, {planes} focal planes and "
            f"{paths} optical paths."
        )
    if concatenated:
        name = f"concatenation {lead.concatenation_uid}"
    frames = Concatenation(
        instance_indices=np.array(members, np.int64),
        # Outside a concatenation the offset means nothing, whatever it says.
        offsets=np.array([part.concatenation_offset if concatenated else 0 for part in parts], np.int64),
        counts=np.array([part.number_of_frames for part in parts], np.int64),
        name=name,
    )
    indexes: dict[tuple[str, float], TileIndex] = {
        (path.identifier, _plane_key(lead.first_plane_um + plane * lead.plane_spacing_um)): FullTileIndex(
            tile_width=pixels.columns,
            tile_height=pixels.rows,
            grid_columns=columns,
            first_frame=(path_position * planes + plane) * columns * rows,
            frames=frames,
        )
        for path_position, path in enumerate(lead.optical_paths)
        for plane in range(planes)
    }
    return indexes


def _sparse_channels(parts: list[Instance], members: list[int]) -> dict[tuple[str, float], TileIndex]:
    """Split frames with positions by the optical path and focal plane that each declares."""
    lead = parts[0]
    rows: defaultdict[tuple[str, float], list[TileTable]] = defaultdict(list)
    for part, member in zip(parts, members, strict=True):
        positions = part.positions
        if positions is None:
            continue
        planes = np.where(np.isnan(positions.z_um), part.first_plane_um, positions.z_um)
        pairs, pair_of_frame = np.unique(
            np.stack([positions.path_code, np.rint(planes * 1000)]), axis=1, return_inverse=True
        )
        for pair, (code, plane_nm) in enumerate(pairs.T.tolist()):
            path = positions.path_identifiers[int(code)] or lead.optical_paths[0].identifier
            frame_index = np.flatnonzero(pair_of_frame.ravel() == pair)
            count = len(frame_index)
            rows[path, _plane_key(plane_nm / 1000)].append(
                TileTable(
                    instance_index=np.full(count, member),
                    frame_index=frame_index,
                    x=positions.x[frame_index],
                    y=positions.y[frame_index],
                    tile_width=np.full(count, lead.pixels.columns),
                    tile_height=np.full(count, lead.pixels.rows),
                )
            )
    return {key: SparseTileIndex(TileTable.concatenate(tables), lead.matrix_width) for key, tables in rows.items()}


def _plane_key(plane_um: float) -> float:
    return round(plane_um, 3) + 0.0  # + 0.0 turns -0.0 into 0.0


def _background(instance: Instance) -> tuple[int, ...]:
    """RecommendedAbsentPixelCIELabValue, else white for colour and 0 for monochrome (PS3.3 C.8.12.4)."""
    if not instance.pixels.colour:
        return (0,)
    if instance.absent_pixel_cielab is not None:
        return cielab_to_srgb(instance.absent_pixel_cielab)
    return (255, 255, 255)


def _pyramid(images: list[_Image], mpp: tuple[float, float] | None) -> Pyramid:
    by_size: defaultdict[tuple[int, int], list[_Image]] = defaultdict(list)
    for image in sorted(images, key=lambda image: image.lead.address.instance_uid):
        by_size[image.lead.matrix_width, image.lead.matrix_height].append(image)
    sizes = sorted(by_size, key=lambda size: (-size[0] * size[1], -size[0]))
    base = by_size[sizes[0]][0].lead
    base_mpp = mpp or next((image.lead.mpp for image in by_size[sizes[0]] if image.lead.mpp), None)
    levels: list[Level] = []
    channels: dict[tuple[int, str, float], Channel] = {}
    paths: dict[str, None] = {}
    for index, size in enumerate(sizes):
        group = by_size[size]
        levels.append(_level(group, index=index, base=base, mpp=_level_mpp(group, base, base_mpp, stated=mpp)))
        for image in group:
            paths.update(dict.fromkeys(path.identifier for path in image.lead.optical_paths))
            for (path_identifier, plane), channel in image.channels.items():
                paths.setdefault(path_identifier)
                channels.setdefault((index, path_identifier, plane), channel)
    used = {path for _, path, _ in channels}
    return Pyramid(
        uid=base.pyramid_uid,
        extended_depth_of_field=base.extended_depth_of_field,
        levels=tuple(levels),
        optical_paths=tuple(path for path in paths if path in used),
        focal_planes=tuple(sorted({plane for _, _, plane in channels})),
        channels=channels,
    )


def _level_mpp(
    group: list[_Image],
    base: Instance,
    base_mpp: tuple[float, float] | None,
    *,
    stated: tuple[float, float] | None,
) -> tuple[float, float] | None:
    own = next((image.lead.mpp for image in group if image.lead.mpp), None)
    if own is not None and stated is None:
        return own
    if base_mpp is None:
        return None
    lead = group[0].lead
    if own is not None and base.mpp is not None:  # keep the metadata's ratio, correct its scale
        ratio = own[0] / base.mpp[0], own[1] / base.mpp[1]
    else:
        ratio = base.matrix_width / lead.matrix_width, base.matrix_height / lead.matrix_height
    return base_mpp[0] * ratio[0], base_mpp[1] * ratio[1]


def _level(group: list[_Image], *, index: int, base: Instance | None, mpp: tuple[float, float] | None) -> Level:
    lead = group[0].lead
    width, height = lead.matrix_width, lead.matrix_height
    base = lead if base is None else base
    downsample = (base.matrix_width / width + base.matrix_height / height) / 2
    return Level(
        index=index,
        width=width,
        height=height,
        downsample=downsample,
        mpp=mpp,
        base_size=(base.matrix_width, base.matrix_height),
        tile_size=(lead.pixels.columns, lead.pixels.rows),
        shape=(height, width, 3) if lead.pixels.colour else (height, width),
        dtype=lead.pixels.dtype,
    )
