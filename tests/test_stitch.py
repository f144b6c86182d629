"""Stitching: each tile's part where the plan says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.geometry import Rectangle
from wsiweb.plan import ReadPlan
from wsiweb.stitch import paste

Array = npt.NDArray[Any]
TILE = 8, 6
LEVEL = 40, 30


def plan_of(
    shape: tuple[int, ...],
    corners: list[tuple[int, int]],
    *,
    channel_of: list[int] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> ReadPlan:
    x, y = origin
    return ReadPlan(
        shape=shape,
        dtype=np.dtype(np.uint8),
        background=(0,),
        keys=[(0, number) for number in range(len(corners))],
        boxes=[(*corner, *TILE) for corner in corners],
        channel_of=channel_of,
        origin=origin,
        inside=(max(x, 0), max(y, 0), min(x + shape[1], LEVEL[0]), min(y + shape[0], LEVEL[1])),
        level_size=LEVEL,
        covered=False,
        ordered=True,
    )


@given(st.data(), st.integers(-5, 30), st.integers(-5, 25), st.sampled_from(["gray", "colour", "stacked"]))
@settings(max_examples=150, deadline=None)
def test_each_pixel_comes_from_the_last_tile_there(data: st.DataObject, x: int, y: int, kind: str) -> None:
    """Tiles of 8 x 6 anywhere around an output of 15 x 11, which may begin left of the level or end right of it."""
    near = st.tuples(st.integers(max(x, 0) - 7, x + 14), st.integers(max(y, 0) - 5, y + 10))
    corners = data.draw(st.lists(near, min_size=1, max_size=6))
    shown = Rectangle(x, y, 15, 11).intersection(Rectangle(0, 0, *LEVEL))
    corners = [corner for corner in corners if not Rectangle(*corner, *TILE).intersection(shown).empty]
    channels = data.draw(st.lists(st.integers(0, 1), min_size=len(corners), max_size=len(corners)))
    shape: tuple[int, ...] = {"gray": (11, 15), "colour": (11, 15, 3), "stacked": (11, 15, 2)}[kind]
    plan = plan_of(shape, corners, channel_of=channels if kind == "stacked" else None, origin=(x, y))
    rng = np.random.default_rng(5)
    tiles = [rng.integers(0, 256, (6, 8, 3) if kind == "colour" else (6, 8), np.uint8) for _ in corners]
    expected = np.full(shape, 9, np.uint8)
    for (cx, cy), channel, tile in zip(corners, channels, tiles, strict=True):
        for dy, dx in np.ndindex(6, 8):
            if 0 <= cx + dx < LEVEL[0] and 0 <= cy + dy < LEVEL[1]:
                row, column = cy + dy - y, cx + dx - x
                if 0 <= row < 11 and 0 <= column < 15:
                    expected[(row, column, channel) if kind == "stacked" else (row, column)] = tile[dy, dx]
    array = np.full(shape, 9, np.uint8)
    for number, tile in enumerate(tiles):
        before = tile.copy()
        tile.flags.writeable = False  # as tiles from the cache are
        paste(array, tile, plan, number)
        np.testing.assert_array_equal(tile, before)
    np.testing.assert_array_equal(array, expected)
