"""Frame indexes: which frames of which instances show a part of a level, and where each lies.

Pure; a lookup costs what it finds, never what the level holds. One index covers one optical path and one focal plane of
one level. What is found are plain tuples: most regions show a dozen tiles, for which numpy takes ten times as long.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wsiweb.errors import MetadataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.geometry import Rectangle

    Integers = npt.NDArray[np.int64]


FrameKey = tuple[int, int]
"""(instance index, frame index) within a slide: what caches and requests are keyed by."""
Box = tuple[int, int, int, int]
"""(x, y, width, height) of a tile, in pixels of the level."""
Tiles = tuple[list[FrameKey], list[Box]]
"""Each frame and where it lies, in the order in which they are to be drawn."""
_EMPTY_PLACES = 16
"""For each frame of a grid that is looked up as one, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """Tiles of one size in columns, one row a tile, in the order in which they are to be drawn."""

    instance_index: Integers
    """Which of the slide's instances."""
    frame_index: Integers
    """0-based frame within that instance."""
    x: Integers
    """Left edge in pixels of the level."""
    y: Integers
    """Top edge in pixels of the level."""

    def __len__(self) -> int:
        return len(self.frame_index)

    @staticmethod
    def concatenate(tables: list[TileTable]) -> TileTable:
        """Return all rows of all tables, in order."""
        names = ("instance_index", "frame_index", "x", "y")
        return TileTable(*(np.concatenate([getattr(table, name) for table in tables]) for name in names))


class TileIndex(Protocol):
    """Finds the tiles of one level, optical path and focal plane."""

    @property
    def overlapping(self) -> bool:
        """Whether tiles may overlap, so that the order of drawing matters."""
        ...

    @property
    def gapless(self) -> bool:
        """Whether there is a tile everywhere."""
        ...

    def tiles_in(self, region: Rectangle) -> Tiles:
        """Return the tiles that share a pixel with ``region``, which lies within the level."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Concatenation:
    """Numbers frames across the instances of a concatenation (PS3.3 C.7.6.16.2.2.4), or in a lone one."""

    instance_indices: tuple[int, ...]
    """The members, by rising offset."""
    offsets: tuple[int, ...]
    """ConcatenationFrameOffsetNumber of each."""
    counts: tuple[int, ...]
    """NumberOfFrames of each."""
    name: str
    """What to call it in a message."""

    def run(self, start: int, stop: int) -> list[FrameKey]:
        """Return instance and frame index of the 0-based frames from ``start`` up to ``stop`` of the whole.

        Raises
        ------
        MetadataError
            A frame is in none of the parts.
        """
        keys: list[FrameKey] = []
        while start < stop:
            part = bisect_right(self.offsets, start) - 1
            offset = self.offsets[part]
            end = offset + self.counts[part]
            if part < 0 or start >= end:
                raise MetadataError(
                    f"Frame {start + 1} of {self.name} is in none of the instances of the series: "
                    f"they hold {sum(self.counts)} frames from offsets {list(self.offsets)}. "
                    f"A part of a concatenation is missing, or NumberOfFrames is wrong."
                )
            instance_index = self.instance_indices[part]
            keys += [(instance_index, frame) for frame in range(start - offset, min(end, stop) - offset)]
            start = end
        return keys


@dataclass(frozen=True, slots=True, eq=False)
class FullTileIndex:
    """TILED_FULL (PS3.3 C.7.6.17.3): frames run along columns, rows, focal planes, optical paths."""

    tile_width: int
    tile_height: int
    grid_columns: int
    """Tiles in a row of the level."""
    first_frame: int
    """0-based number of this plane's and path's first frame in the concatenation."""
    frames: Concatenation
    overlapping: bool = False
    gapless: bool = True

    def tiles_in(self, region: Rectangle) -> Tiles:
        """Return the tiles that share a pixel with ``region``, which lies within the level."""
        width, height = self.tile_width, self.tile_height
        first, last = region.x // width, (region.right - 1) // width
        lefts = range(first * width, last * width + 1, width)
        keys: list[FrameKey] = []
        boxes: list[Box] = []
        for row in range(region.y // height, (region.bottom - 1) // height + 1):
            frame = self.first_frame + row * self.grid_columns
            keys += self.frames.run(frame + first, frame + last + 1)
            boxes += [(left, row * height, width, height) for left in lefts]
        return keys, boxes


def sparse_index(tiles: TileTable, tile_size: tuple[int, int], level_width: int) -> TileIndex:
    """Index frames of which each has a position of its own (TILED_SPARSE, PS3.3 C.7.6.17.3), in rising order."""
    tiles = _without_covered(tiles)
    width, height = tile_size
    if len(tiles) == 0 or ((tiles.x - tiles.x[:1]) % width).any() or ((tiles.y - tiles.y[:1]) % height).any():
        return SparseTileIndex(tiles, tile_size, level_width)
    origin = int(tiles.x.min()), int(tiles.y.min())
    columns, rows = (tiles.x - origin[0]) // width, (tiles.y - origin[1]) // height
    across, down = int(columns.max()) + 1, int(rows.max()) + 1
    if across * down > _EMPTY_PLACES * len(tiles):
        return SparseTileIndex(tiles, tile_size, level_width, overlapping=False)
    grid = np.full((down, across), -1)
    grid[rows, columns] = np.arange(len(tiles))
    return GridTileIndex(tiles, tile_size, origin, grid)


@dataclass(frozen=True, slots=True, eq=False)
class GridTileIndex:
    """TILED_SPARSE on a grid that is not mostly empty: looked up there."""

    tiles: TileTable
    tile_size: tuple[int, int]
    origin: tuple[int, int]
    """(x, y) of the grid in the level."""
    grid: npt.NDArray[np.intp]
    """Which of the tiles lies there, by row and column; -1 where none does."""
    overlapping: bool = False
    gapless: bool = False

    def tiles_in(self, region: Rectangle) -> Tiles:
        """Return the tiles that share a pixel with ``region``, which lies within the level."""
        (width, height), (x, y) = self.tile_size, self.origin
        columns = slice(max((region.x - x) // width, 0), max((region.right - 1 - x) // width + 1, 0))
        rows = slice(max((region.y - y) // height, 0), max((region.bottom - 1 - y) // height + 1, 0))
        found = self.grid[rows, columns].ravel()
        tiles = _rows(self.tiles, np.sort(found[found >= 0]))
        keys = zip(tiles.instance_index.tolist(), tiles.frame_index.tolist(), strict=True)
        boxes = zip(tiles.x.tolist(), tiles.y.tolist(), repeat(width), repeat(height))
        return list(keys), list(boxes)


class SparseTileIndex:
    """TILED_SPARSE off any grid, or with little on it.

    Frames are sorted into buckets of one tile's size by their top left corner. A region then needs the buckets
    that it touches and one more to the left and above, a run of sorted keys for each row of buckets.
    """

    __slots__ = ("_buckets_across", "_key", "_rank", "_tiles", "overlapping", "tile_height", "tile_width")
    gapless = False

    def __init__(
        self, tiles: TileTable, tile_size: tuple[int, int], level_width: int, *, overlapping: bool = True
    ) -> None:
        """Index ``tiles``, in rising frame order, no two at one place."""
        self.tile_width, self.tile_height = tile_size
        # One more bucket on each side, for tiles that begin left of the level or end right of it.
        self._buckets_across = level_width // self.tile_width + 3
        key = self._bucket_key(tiles.x // self.tile_width, tiles.y // self.tile_height)
        order = np.argsort(key)
        self._key = key[order]
        self._rank = order  # the place in drawing order
        self._tiles = _rows(tiles, order)
        self.overlapping = overlapping

    def _bucket_key(self, column: Integers, row: Integers) -> Integers:
        return row * self._buckets_across + np.clip(column + 1, 0, self._buckets_across - 1)

    def tiles_in(self, region: Rectangle) -> Tiles:
        """Return the tiles that share a pixel with ``region``, which lies within the level."""
        rows = np.arange(region.y // self.tile_height - 1, (region.bottom - 1) // self.tile_height + 1)
        first = self._bucket_key(np.full_like(rows, region.x // self.tile_width - 1), rows)
        last = self._bucket_key(np.full_like(rows, (region.right - 1) // self.tile_width), rows)
        starts = np.searchsorted(self._key, first, side="left")
        stops = np.searchsorted(self._key, last, side="right")
        found = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        tiles = _rows(self._tiles, found)
        touching = (
            (tiles.x < region.right)
            & (tiles.x + self.tile_width > region.x)
            & (tiles.y < region.bottom)
            & (tiles.y + self.tile_height > region.y)
        )
        # Where frames overlap, the higher frame number wins: it is drawn later.
        shown = np.flatnonzero(touching)
        tiles = _rows(tiles, shown[np.argsort(self._rank[found[shown]])])
        keys = zip(tiles.instance_index.tolist(), tiles.frame_index.tolist(), strict=True)
        boxes = zip(tiles.x.tolist(), tiles.y.tolist(), repeat(self.tile_width), repeat(self.tile_height))
        return list(keys), list(boxes)


def _without_covered(tiles: TileTable) -> TileTable:
    """Drop frames that a later one at the very same place hides."""
    order = np.lexsort((tiles.x, tiles.y))  # stable: of those at one place, the last stays the last
    moved = (np.diff(tiles.x[order]) != 0) | (np.diff(tiles.y[order]) != 0)
    return _rows(tiles, np.sort(order[np.append(moved, True)]))


def _rows(tiles: TileTable, rows: npt.NDArray[np.intp]) -> TileTable:
    return TileTable(
        tiles.instance_index[rows],
        tiles.frame_index[rows],
        tiles.x[rows],
        tiles.y[rows],
    )
