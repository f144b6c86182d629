"""``RegionPlanner``: a region becomes the minimal set of frames and the place where each lands. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.frames import Box, FrameKey
    from wsiweb.geometry import Rectangle
    from wsiweb.images import Channel
    from wsiweb.pyramid import Level


@dataclass(slots=True, eq=False)
class ReadPlan:
    """Everything that it takes to read one region."""

    shape: tuple[int, ...]
    """Of the output: ``(h, w, 3)``, ``(h, w)``, or ``(h, w, c)`` where channels are stacked."""
    dtype: np.dtype[Any]
    background: tuple[int, ...]
    """Value of what no frame shows, one a sample (or a stacked channel)."""
    keys: list[FrameKey]
    """The frames needed, each once, in the order in which they are drawn."""
    boxes: list[Box]
    """Where each lies in the level."""
    channel_of: list[int] | None
    """Index of each along the output's last axis, where that is optical paths."""
    origin: tuple[int, int]
    """(x, y) of the output in the level."""
    inside: tuple[int, int, int, int]
    """(left, top, right, bottom) of the region's part inside the level."""
    level_size: tuple[int, int]
    covered: bool
    """Whether frames fill every pixel, so that the background need not be painted."""
    ordered: bool
    """Whether frames may overlap: then a later one is drawn over an earlier one."""

    @property
    def output_bytes(self) -> int:
        """Size of the output."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def area(self) -> int:
        """Pixels that frames fill; those of overlapping ones count for each."""
        return sum(math.prod(self.place(row)[4:]) for row in range(len(self.keys)))

    def visible(self, row: int) -> tuple[int, int]:
        """Return (width, height) of a tile's part inside the level: what a cropped edge tile must have."""
        x, y, width, height = self.boxes[row]
        return min(width, self.level_size[0] - x), min(height, self.level_size[1] - y)

    def place(self, row: int) -> tuple[int, int, int, int, int, int]:
        """Return (x, y) of the part to copy in a tile, (x, y) of the part to fill in the output, width and height."""
        x, y, width, height = self.boxes[row]
        left, top, right, bottom = self.inside
        x0, y0 = max(x, left), max(y, top)
        x1, y1 = min(x + width, right), min(y + height, bottom)
        return x0 - x, y0 - y, x0 - self.origin[0], y0 - self.origin[1], x1 - x0, y1 - y0


def check_region(region: Rectangle, bounds: Rectangle, *, where: str, itemsize: int, max_region_bytes: int) -> None:
    """Refuse a region that is empty, outside of ``bounds`` or too large; ``where`` names what has the bounds.

    Raises
    ------
    RegionError
        Says which, with the numbers.
    """
    if region.w <= 0 or region.h <= 0:
        raise RegionError(f"A region has at least one pixel; {region.w} x {region.h} was asked for.")
    if region.intersection(bounds).empty:
        raise RegionError(f"{where} has {bounds.w} x {bounds.h} pixels; the region {region} lies outside.")
    needed = region.w * region.h * itemsize
    if needed > max_region_bytes:
        raise RegionError(
            f"The region {region} of {where.lower()} would need {needed:,} bytes; max_region_bytes is "
            f"{max_region_bytes:,}. Read it in parts, take a coarser level, or raise ReadOptions.max_region_bytes."
        )


class RegionPlanner:
    """Plans to read regions of one level; what they have in common is looked up once.

    Parameters
    ----------
    level
        Gives the bounds; parts of a region outside become background.
    channels
        The one to read; several where ``stacked``.
    stacked
        Whether each (monochrome) channel becomes one index of the last axis.
    """

    def __init__(self, level: Level, channels: Sequence[Channel], *, stacked: bool) -> None:
        self._size = level.size
        self._bounds = level.bounds
        self._indexes = [(number, index) for number, channel in enumerate(channels) for index in channel.tiles]
        indexes = [index for _, index in self._indexes]
        self._ordered = len(indexes) > len(channels) or any(index.overlapping for index in indexes)
        self._gapless = all(index.gapless for index in indexes)
        self._stacked = stacked
        self._channels = len(channels)
        self.lead = lead = channels[0]
        """The first of them."""
        self._last_axis: tuple[int, ...] = (3,) if lead.colour else ()
        if stacked:
            self._last_axis = (len(channels),)
        self._dtype = lead.dtype if len(channels) == 1 else np.result_type(*(channel.dtype for channel in channels))
        self.pixel_bytes = math.prod(self._last_axis) * self._dtype.itemsize
        """Of the output."""
        self.background = tuple(channel.background[0] for channel in channels) if stacked else lead.background
        """Value of what no frame shows, one a sample (or a stacked channel)."""

    def bytes_of(self, region: Rectangle) -> int:
        """Return the size of a region's array."""
        return region.w * region.h * self.pixel_bytes

    def nothing(self) -> ReadPlan:
        """Plan to read nothing: what stands for a region that cannot be planned."""
        return ReadPlan(
            shape=(0, 0, *self._last_axis),
            dtype=self._dtype,
            background=self.background,
            keys=[],
            boxes=[],
            channel_of=None,
            origin=(0, 0),
            inside=(0, 0, 0, 0),
            level_size=self._size,
            covered=True,
            ordered=False,
        )

    def plan(self, region: Rectangle) -> ReadPlan:
        """Plan to read ``region``, in pixels of the level.

        Raises
        ------
        MetadataError
            A frame that the region needs is in none of the slide's instances.
        """
        inside = region.intersection(self._bounds)
        keys: list[FrameKey] = []
        boxes: list[Box] = []
        channel_of: list[int] = []
        for number, index in self._indexes if not inside.empty else ():
            found, places = index.tiles_in(inside)
            keys += found
            boxes += places
            channel_of += repeat(number, len(found))
        plan = ReadPlan(
            shape=(region.h, region.w, *self._last_axis),
            dtype=self._dtype,
            background=self.background,
            keys=keys,
            boxes=boxes,
            channel_of=channel_of if self._stacked else None,
            origin=(region.x, region.y),
            inside=(inside.x, inside.y, inside.right, inside.bottom),
            level_size=self._size,
            covered=self._gapless and not self._ordered and self._bounds.contains(region),
            ordered=self._ordered,
        )
        if not self._ordered and not plan.covered:
            plan.covered = plan.area == region.w * region.h * self._channels
        return plan
