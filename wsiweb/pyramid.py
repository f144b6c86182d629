"""From instances to pyramids: levels by size, and in each the channels, by optical path and focal plane.

Pure: neither pixels nor requests.
"""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wsiweb.errors import MetadataError, RegionError
from wsiweb.geometry import Rectangle
from wsiweb.grouping import LEVELS_APART, pyramids_apart
from wsiweb.images import Channel, Image, background_of, images_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from wsiweb.dicomjson import BinaryValue
    from wsiweb.metadata import Instance

_LONGEST_NUMBER = 16
"""Digits of an identifier that is ordered as a number: all that SH has room for (PS3.5 6.2)."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a pyramid.

    Attributes
    ----------
    index
        Position in ``slide.levels``; 0 is the finest.
    width, height
        Total pixel matrix columns and rows.
    downsample
        Relative to level 0; the mean of both axes where they differ by rounding.
    mpp
        (x, y) in µm a pixel, or None where the slide does not tell.
    mpp_source
        What ``mpp`` was taken from: PixelSpacing, the imaged volume, the ratio to another level, or the user's word.
    base_size
        (w, h) of level 0.
    tile_size
        (w, h) of a frame.
    shape
        Of the level as an array: ``(h, w, 3)`` for colour, ``(h, w)`` for monochrome.
    dtype
        uint8, or uint16 for monochrome of more than 8 bits.
    """

    index: int
    width: int
    height: int
    downsample: float
    mpp: tuple[float, float] | None
    mpp_source: str | None
    base_size: tuple[int, int]
    tile_size: tuple[int, int]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> tuple[int, int]:
        """(w, h) in pixels."""
        return self.width, self.height

    @property
    def bounds(self) -> Rectangle:
        """The whole level."""
        return Rectangle(0, 0, self.width, self.height)


@dataclass(frozen=True, slots=True, eq=False)
class Pyramid:
    """The levels that belong together."""

    uid: str | None
    """Pyramid UID (0008,0019)."""
    lead_uid: str
    """SOP Instance UID of (the first part of) level 0."""
    extended_depth_of_field: bool
    levels: tuple[Level, ...]
    optical_paths: tuple[str, ...]
    """Identifiers, in the order of OpticalPathSequence."""
    focal_planes: tuple[float, ...]
    """z offsets in µm, rising."""
    channels: dict[tuple[int, str, float], Channel]
    """By level index, optical path and focal plane; those of the finest level first."""

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
        if not isinstance(path, str) or path not in self.optical_paths:
            known = ", ".join(map(repr, self.optical_paths))
            raise RegionError(f"There is no optical path {optical_path!r:.80}; this slide has {known}.")
        plane = self.default_focal_plane if focal_plane is None else self._nearest_plane(focal_plane)
        channel = self.channels.get((level, path, plane))
        if channel is None and focal_plane is None:  # a level that lacks the default still has something to show
            channel = self._next_best(level, path, plane) or (
                None if optical_path is not None else self._next_best(level, None, plane)
            )
        if channel is None:
            raise RegionError(f"Level {level} has no optical path {path!r} in the focal plane at {plane} µm.")
        return channel

    def _next_best(self, level: int, optical_path: str | None, focal_plane: float) -> Channel | None:
        """Return what a level has of an optical path (or, where None, of its first) that is nearest to a plane."""
        of_level = [(path, plane) for index, path, plane in self.channels if index == level]
        wanted = optical_path or next((path for path, _ in of_level), None)
        planes = [plane for path, plane in of_level if path == wanted]
        nearest = min(planes, key=lambda plane: (abs(plane - focal_plane), plane), default=None)
        return None if wanted is None or nearest is None else self.channels[level, wanted, nearest]

    def icc_profile(self, optical_path: str) -> BinaryValue | None:
        """Return where the profile of an optical path is, of the finest level that has one."""
        return next(
            (c.icc_profile for (_, path, _), c in self.channels.items() if path == optical_path and c.icc_profile), None
        )

    def _nearest_plane(self, focal_plane: Any) -> float:
        try:
            wish = float(focal_plane) if isinstance(focal_plane, numbers.Real) else math.nan
        except OverflowError:
            wish = math.inf
        nearest = min(self.focal_planes, key=lambda plane: abs(plane - wish))
        if not abs(nearest - wish) <= 1e-3:
            planes = ", ".join(map(str, self.focal_planes))
            raise RegionError(f"There is no focal plane at {focal_plane!r:.80} µm; this slide has {planes}.")
        return nearest


def build_pyramids(
    instances: Sequence[Instance], *, mpp: tuple[float, float] | None, report: Callable[[str], None]
) -> tuple[Pyramid, ...]:
    """Make pyramids of the VOLUME instances, the default one first; see ``grouping`` for what belongs to which.

    Series that were opened as one are channels of one pyramid.

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
    problems: list[str] = []
    images = images_of(instances, problems)
    if not images:
        raise MetadataError(" ".join(problems) or "There is no VOLUME image.")
    for problem in problems:
        report(f"{problem} This image is left out.")
    alike = [image.lead for image in images if image.planes_alike]
    if alike:
        report(
            f"Instance {alike[0].address.instance_uid} has {alike[0].number_of_focal_planes} focal planes, and no "
            f"SpacingBetweenSlices that tells them apart: only the first is read."
        )
    series = list(dict.fromkeys(instance.address.series_uid for instance in instances if instance.flavor == "VOLUME"))
    if len(series) > 1:
        images = _distinct_paths(images, series)
    pyramids = [
        _pyramid(pyramid_images, series, mpp)
        for pyramid_images in pyramids_apart(images, several_series=len(series) > 1)
    ]
    # The contract's default: the largest level 0, without extended depth of field first, then the lowest UID.
    pyramids.sort(
        key=lambda p: (-p.levels[0].width * p.levels[0].height, p.extended_depth_of_field, p.uid or "", p.lead_uid)
    )
    return tuple(pyramids)


def single_image(instance: Instance, instance_index: int) -> tuple[Level, Channel]:
    """Return a label, overview or thumbnail as a level of its own, with its first channel."""
    image = Image.build([instance], [instance_index])
    return _level([image], 0, instance, instance.mpp, None), next(iter(image.channels.values()))


def _distinct_paths(images: list[Image], series: list[str]) -> list[Image]:
    """Give optical paths of different series different names, where they have the same."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        for path, _ in image.channels:
            owners[path].add(image.lead.address.series_uid)
    renamed = []
    for image in images:
        position = series.index(image.lead.address.series_uid) + 1
        channels = {
            (path if len(owners[path]) == 1 else f"{position}:{path}", plane): channel
            for (path, plane), channel in image.channels.items()
        }
        renamed.append(replace(image, channels=channels))
    return renamed


def _pyramid(images: list[Image], series: list[str], mpp: tuple[float, float] | None) -> Pyramid:
    by_size: defaultdict[tuple[int, int], list[Image]] = defaultdict(list)
    for image in sorted(images, key=lambda image: _path_order(image, 0, series)):
        by_size[image.size].append(image)
    sizes = sorted(by_size, key=lambda size: (-size[0] * size[1], -size[0]))
    base = by_size[sizes[0]][0].lead
    levels: list[Level] = []
    channels: dict[tuple[int, str, float], Channel] = {}
    ranks: dict[str, tuple[int, tuple[object, ...]]] = {}
    for index, size in enumerate(sizes):
        group = by_size[size]
        base_mpp = levels[0].mpp if levels else mpp or _base_mpp(images, base)
        levels.append(_level(group, index, base, base_mpp, mpp))
        for image in group:
            for (path, plane), channel in image.channels.items():
                rank = index, _path_order(image, channel.path_position, series)
                ranks[path] = min(ranks.get(path, rank), rank)  # as the finest level has it
                key = index, path, plane
                before = channels.get(key, replace(channel, tiles=()))
                channels[key] = replace(
                    channel,
                    tiles=before.tiles + channel.tiles,
                    # What only level 0 says of absent pixels holds for all levels.
                    background=background_of(image.lead, base.absent_pixel_cielab),
                    icc_profile=before.icc_profile or channel.icc_profile,
                )
    return Pyramid(
        uid=next((image.lead.pyramid_uid for image in images if image.lead.pyramid_uid), None),
        lead_uid=base.address.instance_uid,
        extended_depth_of_field=base.extended_depth_of_field,
        levels=tuple(levels),
        optical_paths=tuple(sorted(ranks, key=lambda path: ranks[path][1])),
        focal_planes=tuple(sorted({plane for _, _, plane in channels})),
        channels=channels,
    )


def _base_mpp(images: list[Image], base: Instance) -> tuple[float, float] | None:
    """Work out the resolution of level 0 from that of the largest level that tells its own."""
    telling = [image.lead for image in images if image.lead.mpp is not None]
    lead = max(telling, key=lambda lead: lead.matrix_width * lead.matrix_height, default=None)
    if lead is None or lead.mpp is None:
        return None
    return (
        lead.mpp[0] * lead.matrix_width / base.matrix_width,
        lead.mpp[1] * lead.matrix_height / base.matrix_height,
    )


def _path_order(image: Image, position: int, series: list[str]) -> tuple[object, ...]:
    """Order optical paths: by series, then as OpticalPathSequence has them.

    Where each instance declares but its own, by the first that it declares, numbers by value.
    """
    address, identifier = image.lead.address, image.lead.optical_paths[0].identifier
    number = int(identifier) if identifier.isdecimal() and len(identifier) <= _LONGEST_NUMBER else -1
    return series.index(address.series_uid), position, number, identifier, address.instance_uid


def _level(
    group: list[Image],
    index: int,
    base: Instance,
    base_mpp: tuple[float, float] | None,
    stated_mpp: tuple[float, float] | None,
) -> Level:
    lead = group[0].lead
    width, height = group[0].size
    ratios = base.matrix_width / width, base.matrix_height / height
    mpp, source = _level_mpp([image.lead for image in group], base, ratios, base_mpp, stated=stated_mpp is not None)
    return Level(
        index=index,
        width=width,
        height=height,
        downsample=(ratios[0] + ratios[1]) / 2,
        mpp=mpp,
        mpp_source=source,
        base_size=(base.matrix_width, base.matrix_height),
        tile_size=(lead.pixels.columns, lead.pixels.rows),
        shape=(height, width, 3) if lead.pixels.colour else (height, width),
        dtype=lead.pixels.dtype,
    )


def _level_mpp(
    leads: list[Instance],
    base: Instance,
    ratios: tuple[float, float],
    base_mpp: tuple[float, float] | None,
    *,
    stated: bool,
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the resolution of a level, and what it was taken from."""
    own_mpp, source = next(((lead.mpp, lead.mpp_source) for lead in leads if lead.mpp is not None), (None, None))
    if own_mpp is not None and base.mpp is not None and _copied(own_mpp, base.mpp, ratios):
        own_mpp = None
    if own_mpp is not None and not stated:
        return own_mpp, source
    if base_mpp is None:
        return None, None
    if own_mpp is not None and base.mpp is not None:  # keep the ratio, correct the scale
        ratios = own_mpp[0] / base.mpp[0], own_mpp[1] / base.mpp[1]
    return (base_mpp[0] * ratios[0], base_mpp[1] * ratios[1]), "stated" if stated else "the ratio to another level"


def _copied(own_mpp: tuple[float, float], base_mpp: tuple[float, float], ratios: tuple[float, float]) -> bool:
    """Whether a level has the resolution of another one's size, as where all of them carry that of level 0."""
    shares = [own / (base * ratio) for own, base, ratio in zip(own_mpp, base_mpp, ratios, strict=True)]
    return not all(1 / LEVELS_APART < share < LEVELS_APART for share in shares)
