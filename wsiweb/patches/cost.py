"""How many frames patches touch. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsiweb.patches.layout import Integers
    from wsiweb.resolution import View


def count_tiles(view: View, size: tuple[int, int], positions: Iterable[tuple[Integers, Integers]]) -> int:
    """Count the tiles of the level's grid that patches touch, each once.

    Every patch adds a rectangle of tiles by its four corners, which cancel where it touches none; sums along both axes
    tell which tiles have any.
    """
    level = view.level
    tile_w, tile_h = level.tile_size
    columns, rows = -(-level.width // tile_w), -(-level.height // tile_h)
    corners = np.zeros((rows + 1, columns + 1), np.int64)
    for x, y in positions:
        left, right = _tiles(x, size[0], view.scale[0], view.margins[0], tile_w, level.width)
        top, bottom = _tiles(y, size[1], view.scale[1], view.margins[1], tile_h, level.height)
        np.add.at(corners, (top, left), 1)
        np.add.at(corners, (bottom, right), 1)
        np.add.at(corners, (top, right), -1)
        np.add.at(corners, (bottom, left), -1)
    return int(np.count_nonzero(corners.cumsum(0).cumsum(1)[:-1, :-1]))


def _tiles(start: Integers, size: int, scale: float, margin: int, tile: int, extent: int) -> tuple[Integers, Integers]:
    """Return the first tile along an axis that each patch touches, and the one behind the last; equal where none."""
    first = np.clip(np.floor(start * scale + 1e-6).astype(np.int64) - margin, 0, extent)
    end = np.clip(np.ceil((start + size) * scale - 1e-6).astype(np.int64) + margin, 0, extent)
    return first // tile, np.where(end > first, -(-end // tile), first // tile)
