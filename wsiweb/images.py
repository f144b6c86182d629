"""From instances to whole images: one instance, or all parts of a concatenation, split into channels.

A channel is what one optical path shows in one focal plane. The differences between tilings end here, in frame indexes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsiweb.colour import cielab_to_srgb
from wsiweb.errors import MetadataError
from wsiweb.frames import Concatenation, FullTileIndex, TileIndex, TileTable, sparse_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsiweb.dicomjson import BinaryValue
    from wsiweb.metadata import Instance

ChannelKey = tuple[str, float]
"""(optical path, focal plane in µm)."""


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """What one optical path shows of one level in one focal plane."""

    tiles: tuple[TileIndex, ...]
    """Usually one; several where instances share the channel."""
    colour: bool
    dtype: np.dtype[Any]
    background: tuple[int, ...]
    """Colour of what the slide does not have, one value a sample."""
    path_position: int
    """Of the optical path in OpticalPathSequence; behind all of them where it is not in there."""
    icc_profile: BinaryValue | None
    """Where the profile of its colours is; None where the image tells none."""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A whole image, or what there is of it."""

    lead: Instance
    """The first part."""
    channels: dict[ChannelKey, Channel]
    sparse: bool
    """Whether its frames have positions of their own: several such images may share a level."""

    @property
    def size(self) -> tuple[int, int]:
        """(w, h) of the total pixel matrix."""
        return self.lead.matrix_width, self.lead.matrix_height

    @property
    def planes_alike(self) -> bool:
        """Whether nothing tells its focal planes apart, so that the first stands for all."""
        return not self.sparse and self.lead.number_of_focal_planes > 1 and not self.lead.plane_spacing_um

    @classmethod
    def build(cls, parts: Sequence[Instance], members: Sequence[int]) -> Self:
        """Make an image of its parts.

        Parameters
        ----------
        parts
            Instances of one concatenation by rising offset, or a single one.
        members
            Their places among the slide's instances.

        Raises
        ------
        MetadataError
            They do not fit together, or their frames do not fit their size.
        """
        lead = parts[0]
        for part in parts[1:]:
            _check_together(lead, part)
        sparse = lead.organization != "TILED_FULL" and all(part.positions is not None for part in parts)
        if lead.organization == "TILED_SPARSE" and not sparse and lead.flavor == "VOLUME":
            raise MetadataError(
                f"Instance {lead.address.instance_uid} is TILED_SPARSE, but its metadata lack the position of each "
                f"frame (PerFrameFunctionalGroupsSequence). Some stores leave large sequences out: Google's does in "
                f"v1, and refers to them in v1beta1."
            )
        indexes = _sparse_channels(parts, members) if sparse else _full_channels(parts, members)
        background = background_of(lead, None)
        declared = list(dict.fromkeys(path.identifier for part in parts for path in part.optical_paths))
        profiles = {
            path.identifier: path.icc_profile for part in parts for path in part.optical_paths if path.icc_profile
        }
        channels = {
            (path, plane): Channel(
                (index,), lead.pixels.colour, lead.pixels.dtype, background,
                path_position=declared.index(path) if path in declared else len(declared),
                icc_profile=profiles.get(path),
            )
            for (path, plane), index in indexes.items()
        }  # fmt: skip
        return cls(lead, channels, sparse)


def images_of(instances: Sequence[Instance], problems: list[str]) -> list[Image]:
    """Return the VOLUME images of a slide; what is wrong with others is added to ``problems``."""
    images = []
    for members in _concatenations(instances):
        try:
            images.append(Image.build([instances[member] for member in members], members))
        except MetadataError as error:
            problems.append(str(error))
    return images


def _concatenations(instances: Sequence[Instance]) -> Iterator[list[int]]:
    """Group the VOLUME instances by ConcatenationUID, parts by rising offset (PS3.3 C.7.6.16.2.2.4)."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        if instance.flavor == "VOLUME":
            groups[instance.concatenation_uid or instance.address.instance_uid].append(position)
    for members in groups.values():
        yield sorted(members, key=lambda member: instances[member].concatenation_offset)


def _check_together(lead: Instance, part: Instance) -> None:
    for name, of_lead, of_part in (
        ("size", (lead.matrix_width, lead.matrix_height), (part.matrix_width, part.matrix_height)),
        ("size of frames", (lead.pixels.columns, lead.pixels.rows), (part.pixels.columns, part.pixels.rows)),
        ("kind of pixels", (lead.pixels.colour, lead.pixels.dtype), (part.pixels.colour, part.pixels.dtype)),
    ):
        if of_lead != of_part:
            raise MetadataError(
                f"Instances {lead.address.instance_uid} and {part.address.instance_uid} are parts of one "
                f"concatenation, but differ in their {name}: {of_lead} and {of_part}."
            )


def _full_channels(parts: Sequence[Instance], members: Sequence[int]) -> dict[ChannelKey, TileIndex]:
    """Split TILED_FULL, or frames in plain raster order, into optical paths and focal planes (C.7.6.17.3)."""
    lead = parts[0]
    pixels, planes, paths = lead.pixels, lead.number_of_focal_planes, lead.optical_paths
    columns, rows = -(-lead.matrix_width // pixels.columns), -(-lead.matrix_height // pixels.rows)
    if lead.flavor != "VOLUME":  # a label may declare the paths of its slide, and has one picture all the same
        planes, paths = 1, paths[: max(lead.number_of_frames // (columns * rows), 1)]
    expected = columns * rows * planes * len(paths)
    concatenated = lead.concatenation_uid is not None and lead.flavor == "VOLUME"
    # Outside of a concatenation the offset means nothing, whatever it says.
    offsets = [part.concatenation_offset if concatenated else 0 for part in parts]
    ends = [offset + part.number_of_frames for offset, part in zip(offsets, parts, strict=True)]
    if max(ends) > expected or (ends[0] < expected and not concatenated):
        worst = parts[ends.index(max(ends))].address.instance_uid
        names = f"instance {worst}" if worst == lead.address.instance_uid else (
            f"instance {worst} (after {lead.address.instance_uid} in a concatenation)"
        )  # fmt: skip
        raise MetadataError(
            f"{max(ends)} frames, the last of {names}, do not fit {columns} x {rows} tiles, {planes} focal planes and "
            f"{len(paths)} optical paths."
        )
    for before, after, end, offset in zip(parts, parts[1:], ends, offsets[1:], strict=False):
        if offset < end:
            raise MetadataError(
                f"Instances {before.address.instance_uid} and {after.address.instance_uid} are parts of one "
                f"concatenation, and overlap: the first ends with frame {end}, the second begins with {offset + 1}."
            )
    frames = Concatenation(
        instance_indices=tuple(members),
        offsets=tuple(offsets),
        counts=tuple(part.number_of_frames for part in parts),
        name=f"concatenation {lead.concatenation_uid}" if concatenated else f"instance {lead.address.instance_uid}",
    )
    indexes: dict[ChannelKey, TileIndex] = {}
    for path_position, path in enumerate(paths):
        for plane in range(planes):
            index = FullTileIndex(
                tile_width=pixels.columns,
                tile_height=pixels.rows,
                grid_columns=columns,
                first_frame=(path_position * planes + plane) * columns * rows,
                frames=frames,
            )
            # Where nothing tells planes apart, they have one key, and the first stands for all.
            indexes.setdefault((path.identifier, plane_key(lead.first_plane_um + plane * lead.plane_spacing_um)), index)
    return indexes


def _sparse_channels(parts: Sequence[Instance], members: Sequence[int]) -> dict[ChannelKey, TileIndex]:
    """Split frames with positions by the optical path and focal plane that each declares."""
    lead = parts[0]
    rows: defaultdict[ChannelKey, list[TileTable]] = defaultdict(list)
    for part, member in zip(parts, members, strict=True):
        positions = part.positions
        if positions is None:
            continue
        planes = np.where(np.isnan(positions.z_um), part.first_plane_um, positions.z_um)
        # Pairs as complex numbers: numpy sorts those many times sooner than columns of an array.
        pairs, pair_of_frame = np.unique(positions.path_code + 1j * np.rint(planes * 1000), return_inverse=True)
        for pair, (code, plane_nm) in enumerate(zip(pairs.real.tolist(), pairs.imag.tolist(), strict=True)):
            path = positions.path_identifiers[int(code)] or lead.optical_paths[0].identifier
            frame_index = np.flatnonzero(pair_of_frame == pair)
            count = len(frame_index)
            rows[path, plane_key(plane_nm / 1000)].append(
                TileTable(
                    instance_index=np.full(count, member),
                    frame_index=frame_index,
                    x=positions.x[frame_index],
                    y=positions.y[frame_index],
                )
            )
    size = lead.pixels.columns, lead.pixels.rows
    return {key: sparse_index(TileTable.concatenate(tables), size, lead.matrix_width) for key, tables in rows.items()}


def plane_key(plane_um: float) -> float:
    """Round a focal plane to the nanometre, so that levels agree on it."""
    return round(plane_um, 3) + 0.0  # + 0.0 turns -0.0 into 0.0


def background_of(instance: Instance, default_cielab: tuple[int, int, int] | None) -> tuple[int, ...]:
    """RecommendedAbsentPixelCIELabValue, else white for colour and 0 for monochrome (PS3.3 C.8.12.4)."""
    if not instance.pixels.colour:
        return (0,)
    cielab = instance.absent_pixel_cielab or default_cielab
    return (255, 255, 255) if cielab is None else cielab_to_srgb(cielab)
