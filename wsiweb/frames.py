"""Frame indexes: which frames of which instances show a part of a level, and where each lies.

Pure arrays; a lookup costs what it finds, never what the level holds. One index covers one optical path
and one focal plane of one level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wsiweb.errors import MetadataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.geometry import Rectangle

    Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """Tiles in columns, one row a tile, in the order in which they are to be drawn."""

    instance_index: Integers
    """Which of the slide's instances."""
    frame_index: Integers
    """0-based frame within that instance."""
    x: Integers
    """Left edge in pixels of the level."""
    y: Integers
    """Top edge in pixels of the level."""
    tile_width: Integers
    tile_height: Integers

    def __len__(self) -> int:
        return len(self.frame_index)

    @staticmethod
    def concatenate(tables: list[TileTable]) -> TileTable:
        """Return all rows of all tables, in order."""
        if len(tables) == 1:
            return tables[0]
        if not tables:
            return TileTable(*(np.empty(0, np.int64) for _ in range(6)))
        names = ("instance_index", "frame_index", "x", "y", "tile_width", "tile_height")
        return TileTable(*(np.concatenate([getattr(table, name) for table in tables]) for name in names))


class TileIndex(Protocol):
    """Finds the tiles of one level, optical path and focal plane."""

    @property
    def overlapping(self) -> bool:
        """Whether tiles may overlap, so that the order of drawing matters."""
        ...

    def tiles_in(self, region: Rectangle) -> TileTable:
        """Return the tiles that share a pixel with ``region``, which lies within the level."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Concatenation:
    """Numbers frames across the instances of a concatenation (PS3.3 C.7.6.16.2.2.4), or in a lone one."""

    instance_indices: Integers
    """The members, by rising offset."""
    offsets: Integers
    """ConcatenationFrameOffsetNumber of each."""
    counts: Integers
    """NumberOfFrames of each."""
    name: str
    """What to call it in a message."""

    def locate(self, frame: Integers) -> tuple[Integers, Integers]:
        """Return instance index and frame index of 0-based frames of the whole concatenation.

        Raises
        ------
        MetadataError
            A frame is in none of the parts.
        """
        if len(self.offsets) == 1:
            part = np.zeros_like(frame)
        else:
            part = np.maximum(np.searchsorted(self.offsets, frame, side="right") - 1, 0)
        within = frame - self.offsets[part]
        lost = (within < 0) | (within >= self.counts[part])
        if lost.any():
            raise MetadataError(
                f"Frame {int(frame[lost][0]) + 1} of {self.name} is in none of the instances of the series: "
                f"they hold {int(self.counts.sum())} frames from offsets {self.offsets.tolist()}. "
                f"A part of a concatenation is missing, or NumberOfFrames is wrong."
            )
        return self.instance_indices[part], within


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

    def tiles_in(self, region: Rectangle) -> TileTable:
        """Return the tiles that share a pixel with ``region``, which lies within the level."""
        columns = np.arange(region.x // self.tile_width, -(-region.right // self.tile_width))
        rows = np.arange(region.y // self.tile_height, -(-region.bottom // self.tile_height))
        frame = (self.first_frame + rows[:, None] * self.grid_columns + columns).ravel()
        instance_index, frame_index = self.frames.locate(frame)
        return TileTable(
            instance_index=instance_index,
            frame_index=frame_index,
            x=np.tile(columns * self.tile_width, len(rows)),
            y=np.repeat(rows * self.tile_height, len(columns)),
            tile_width=np.full(len(frame), self.tile_width),
            tile_height=np.full(len(frame), self.tile_height),
        )


class SparseTileIndex:
    """TILED_SPARSE: every frame has a position of its own, on a grid or off it (PS3.3 C.7.6.17.3).

    Frames are sorted into buckets of one tile's size by their top left corner. A region then needs the buckets
    that it touches and one more to the left and above, a run of sorted keys for each row of buckets.
    """

    __slots__ = ("_buckets_across", "_key", "_rank", "_tiles", "overlapping", "tile_height", "tile_width")

    def __init__(self, tiles: TileTable, level_width: int) -> None:
        """Index ``tiles``, all of one size, in rising frame order."""
        self.tile_width = int(tiles.tile_width[0])
        self.tile_height = int(tiles.tile_height[0])
        # One more bucket on each side, for tiles that begin left of the level or end right of it.
        self._buckets_across = level_width // self.tile_width + 3
        tiles = _without_covered(tiles)
        key = self._bucket_key(tiles.x // self.tile_width, tiles.y // self.tile_height)
        order = np.argsort(key, kind="stable")
        self._key = key[order]
        self._rank = order  # the place in drawing order
        self._tiles = _rows(tiles, order)
        on_grid = (
            not ((tiles.x - tiles.x[:1]) % self.tile_width).any()
            and not ((tiles.y - tiles.y[:1]) % self.tile_height).any()
        )
        self.overlapping = not on_grid

    def _bucket_key(self, column: Integers, row: Integers) -> Integers:
        return row * self._buckets_across + np.clip(column + 1, 0, self._buckets_across - 1)

    def tiles_in(self, region: Rectangle) -> TileTable:
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
        return _rows(tiles, shown[np.argsort(self._rank[found[shown]])])


def _without_covered(tiles: TileTable) -> TileTable:
    """Drop frames that a later one at the very same place hides."""
    _, last = np.unique(np.stack([tiles.x, tiles.y])[:, ::-1], axis=1, return_index=True)
    return _rows(tiles, np.sort(len(tiles) - 1 - last))


def _rows(tiles: TileTable, rows: npt.NDArray[np.intp]) -> TileTable:
    return TileTable(
        tiles.instance_index[rows],
        tiles.frame_index[rows],
        tiles.x[rows],
        tiles.y[rows],
        tiles.tile_width[rows],
        tiles.tile_height[rows],
    )
