"""``plan_read``: a region becomes the minimal set of frames and the place where each lands. Pure.

Plans are columns, not objects: a band of a large slide has tens of thousands of tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.frames import TileTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.geometry import Rectangle
    from wsiweb.images import Channel
    from wsiweb.pyramid import Level

FrameKey = tuple[int, int]
"""(instance index, frame index) within a slide: what caches and requests are keyed by."""


@dataclass(frozen=True, slots=True, eq=False)
class Placements:
    """Where each frame's pixels go, in columns of one row a frame; drawn in this order."""

    source_x: list[int]
    """Left edge of the part to copy, in pixels of the tile."""
    source_y: list[int]
    target_x: list[int]
    """Left edge of the part to fill, in pixels of the output."""
    target_y: list[int]
    width: list[int]
    height: list[int]
    visible: list[tuple[int, int]]
    """(width, height) of the tile's part inside the level: what a cropped edge tile must have."""
    channel: list[int]
    """Index along the output's last axis, where channels are stacked."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """Everything that it takes to read one region."""

    shape: tuple[int, ...]
    """Of the output: ``(h, w, 3)``, ``(h, w)``, or ``(h, w, c)`` where channels are stacked."""
    dtype: np.dtype[Any]
    background: tuple[int, ...]
    """Value of what no frame shows, one a sample (or a stacked channel)."""
    stacked: bool
    """Whether the last axis is optical paths."""
    keys: list[FrameKey]
    """The frames needed, each once."""
    placements: Placements
    """One row for each key."""
    covered: bool
    """Whether frames fill every pixel, so that the background need not be painted."""
    ordered: bool
    """Whether frames may overlap: then a later one is drawn over an earlier one."""

    @property
    def output_bytes(self) -> int:
        """Size of the output."""
        return math.prod(self.shape) * self.dtype.itemsize


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


def plan_read(level: Level, channels: Sequence[Channel], region: Rectangle, *, stacked: bool) -> ReadPlan:
    """Plan to read ``region`` of ``level``.

    Parameters
    ----------
    level
        Gives the bounds; parts of the region outside become background.
    channels
        The one to read; several where ``stacked``.
    region
        In pixels of the level.
    stacked
        Whether each (monochrome) channel becomes one index of the last axis.

    Raises
    ------
    MetadataError
        A frame that the region needs is in none of the slide's instances.
    """
    inside = region.intersection(level.bounds)
    tables = [[index.tiles_in(inside) for index in channel.tiles] for channel in channels if not inside.empty]
    flat = [table for group in tables for table in group]
    tiles = TileTable.concatenate(flat)
    x0 = np.maximum(tiles.x, inside.x)
    y0 = np.maximum(tiles.y, inside.y)
    width = np.minimum(tiles.x + tiles.tile_width, inside.right) - x0
    height = np.minimum(tiles.y + tiles.tile_height, inside.bottom) - y0
    ordered = any(len(channel.tiles) > 1 or channel.tiles[0].overlapping for channel in channels)
    covered = not ordered and int((width * height).sum()) == region.w * region.h * len(channels)
    visible_width = np.minimum(tiles.tile_width, level.width - tiles.x)
    visible_height = np.minimum(tiles.tile_height, level.height - tiles.y)
    lead = channels[0]
    shape: tuple[int, ...] = (region.h, region.w)
    if stacked:
        shape += (len(channels),)
    elif lead.colour:
        shape += (3,)
    background = tuple(channel.background[0] for channel in channels) if stacked else lead.background
    return ReadPlan(
        shape=shape,
        dtype=np.result_type(*(channel.dtype for channel in channels)),
        background=background,
        stacked=stacked,
        keys=list(zip(tiles.instance_index.tolist(), tiles.frame_index.tolist(), strict=True)),
        placements=Placements(
            source_x=(x0 - tiles.x).tolist(),
            source_y=(y0 - tiles.y).tolist(),
            target_x=(x0 - region.x).tolist(),
            target_y=(y0 - region.y).tolist(),
            width=width.tolist(),
            height=height.tolist(),
            visible=list(zip(visible_width.tolist(), visible_height.tolist(), strict=True)),
            channel=[n for n, group in enumerate(tables) for table in group for _ in range(len(table))],
        ),
        covered=covered,
        ordered=ordered,
    )
