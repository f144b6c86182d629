"""Which images belong to one pyramid. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsiweb.images import ChannelKey, Image
    from wsiweb.metadata import Instance

LEVELS_APART = 1.5
"""Factor by which a resolution may differ from what the size of its level says, before it is not believed."""


def pyramids_apart(images: list[Image], *, several_series: bool) -> list[list[Image]]:
    """Return the images of each pyramid.

    Extended depth of field, Pyramid UID, else frame of reference tell pyramids apart; then extents and origins that
    are not of one picture; and where two images claim the same place, what else differs between them.
    """
    return [
        pyramid
        for declared in _declared_apart(images, several_series=several_series)
        for near in _far_apart(declared)
        for pyramid in _without_conflicts(near)
    ]


def _declared_apart(images: list[Image], *, several_series: bool) -> list[list[Image]]:
    """Group images by what they declare: extended depth of field, Pyramid UID, else frame of reference."""
    leads = [image.lead for image in images]
    frames_of_reference = [lead.frame_of_reference_uid for lead in leads]
    telling = len(set(frames_of_reference)) < len(images)  # one for each image says nothing
    places = [
        (lead.extended_depth_of_field, uid if telling else None)
        for lead, uid in zip(leads, frames_of_reference, strict=True)
    ]
    uids: defaultdict[tuple[bool, str | None], set[str]] = defaultdict(set)
    for lead, place in zip(leads, places, strict=True):
        uids[place].update(filter(None, [lead.pyramid_uid]))
    groups: defaultdict[tuple[bool, str | None], list[Image]] = defaultdict(list)
    for image, place in zip(images, places, strict=True):
        extended, uid = place
        # An image that names no pyramid may be of the only one that is named there.
        uid = image.lead.pyramid_uid or (next(iter(uids[place])) if len(uids[place]) == 1 else uid)
        groups[extended, None if several_series else uid].append(image)
    return list(groups.values())


def _far_apart(images: list[Image]) -> list[list[Image]]:
    """Tell apart what shows more of the glass or less, or lies farther from each other than half the size of both.

    Levels of one pyramid may differ by some pixels of the coarser one, and converters write origins carelessly.
    """
    clusters: list[list[Image]] = []
    for image in sorted(images, key=lambda image: (-image.size[0] * image.size[1], image.lead.address.instance_uid)):
        home = next((cluster for cluster in clusters if any(_near(one.lead, image.lead) for one in cluster)), None)
        if home is None:
            clusters.append([image])
        else:
            home.append(image)
    return clusters


def _near(first: Instance, second: Instance) -> bool:
    if first.pyramid_uid is not None and first.pyramid_uid == second.pyramid_uid:  # which goes before geometry
        return True
    if first.mpp is None or second.mpp is None:
        return True
    if not _same_extent(first, second, first.mpp, second.mpp):
        return False
    if first.origin_mm is None or second.origin_mm is None:
        return True
    extents = [
        min(i.matrix_width * mpp[0], i.matrix_height * mpp[1]) / 1000
        for i, mpp in ((first, first.mpp), (second, second.mpp))
    ]
    return math.dist(first.origin_mm, second.origin_mm) <= max(extents) / 2


def _same_extent(
    base: Instance, other: Instance, base_mpp: tuple[float, float], other_mpp: tuple[float, float]
) -> bool:
    """Whether an image may be a level below another: by its own resolution, or by one that is a copy of the other's."""
    base_size, size = (base.matrix_width, base.matrix_height), (other.matrix_width, other.matrix_height)
    tile_size = other.pixels.columns, other.pixels.rows
    expected = [side * of_base / own for side, of_base, own in zip(base_size, base_mpp, other_mpp, strict=True)]
    # The smallest levels are rounded by a pixel, and some are filled up to whole tiles.
    room = [max(side * LEVELS_APART, side + tile) for side, tile in zip(expected, tile_size, strict=True)]
    least = [side / LEVELS_APART - 1 for side in expected]
    if all(low <= side <= high for low, side, high in zip(least, size, room, strict=True)):
        return True
    copied = all(abs(own / of_base - 1) < 0.01 for own, of_base in zip(other_mpp, base_mpp, strict=True))
    narrow, wide = sorted(side / of_base for side, of_base in zip(size, base_size, strict=True))
    return (copied or _same_origin(base, other, base_mpp)) and wide - narrow <= max(narrow / 50, 2 / min(base_size))


def _same_origin(base: Instance, other: Instance, base_mpp: tuple[float, float]) -> bool:
    """Whether two images begin at one place: what has the shape of the other as well is no region of it.

    It is a level whose resolution is wrong.
    """
    if base.origin_mm is None or other.origin_mm is None:
        return False
    extent_mm = max(base.matrix_width * base_mpp[0], base.matrix_height * base_mpp[1]) / 1000
    return math.dist(base.origin_mm, other.origin_mm) <= extent_mm / 100


def _without_conflicts(images: list[Image]) -> list[list[Image]]:
    """Split images of which two claim the same channel of the same level, as two scans of one place do."""
    if not _conflict(images):
        return [images]
    # If nothing tells them apart: the first of each by UID, the second of each, and so on.
    layers: list[list[Image]] = []
    for image in sorted(images, key=lambda image: image.lead.address.instance_uid):
        layer = next((layer for layer in layers if not _conflict([*layer, image])), None)
        if layer is None:
            layers.append([image])
        else:
            layer.append(image)
    for name in ("acquisition_datetime", "origin_mm", "frame_of_reference_uid", "pyramid_uid"):
        groups: defaultdict[object, list[Image]] = defaultdict(list)
        for image in images:
            groups[getattr(image.lead, name)].append(image)
        # What each level has of its own does not tell pyramids apart.
        few = 1 < len(groups) <= max(len(layers), len(images) // 2)
        if few and not any(map(_conflict, groups.values())):
            return list(groups.values())
    return layers


def _conflict(images: list[Image]) -> bool:
    """Whether two images cannot be of one pyramid."""
    claimed: defaultdict[ChannelKey, dict[tuple[int, int], Image]] = defaultdict(dict)
    for image in images:
        for key in image.channels:
            if any(_rivals(image, other) for other in claimed[key].values()):
                return True
            claimed[key][image.size] = image
    return False


def _rivals(first: Image, second: Image) -> bool:
    """Whether two images of a channel claim the same place: in one level, or at one resolution, as a rescan does."""
    if first.size == second.size:
        return not (first.sparse and second.sparse)
    a, b = first.lead, second.lead
    if a.mpp is None or b.mpp is None or (a.pyramid_uid is not None and a.pyramid_uid == b.pyramid_uid):
        return False
    same_mpp = all(abs(x / y - 1) < 1e-3 for x, y in zip(a.mpp, b.mpp, strict=True))
    return same_mpp and all(
        1 / LEVELS_APART < x / y < LEVELS_APART for x, y in zip(first.size, second.size, strict=True)
    )
