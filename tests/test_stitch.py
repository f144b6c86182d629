"""Stitching: the background where nothing is drawn, and each tile's part where the plan says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.plan import Placements, ReadPlan
from wsiweb.stitch import canvas, paste

Array = npt.NDArray[Any]
Place = tuple[int, int, int, int, int, int, int]
"""Source x, y; target x, y; width, height; channel."""


def plan_of(
    shape: tuple[int, ...], places: list[Place], *, background: tuple[int, ...] = (0,), dtype: str = "u1",
    covered: bool = False, stacked: bool = False,
) -> ReadPlan:  # fmt: skip
    sx, sy, tx, ty, w, h, channel = ([place[column] for place in places] for column in range(7))
    placements = Placements(sx, sy, tx, ty, w, h, [(0, 0)] * len(places), channel)
    keys = [(0, number) for number in range(len(places))]
    return ReadPlan(shape, np.dtype(dtype), background, stacked, keys, placements, covered, ordered=True)


@pytest.mark.parametrize(("shape", "dtype", "background"), [
    ((3, 4, 3), "u1", (250, 3, 77)),
    ((3, 4), "u1", (9,)),
    ((3, 4), "u2", (60_000,)),
    ((3, 4, 2), "u2", (5, 700)),
])  # fmt: skip
def test_gaps_show_the_background(shape: tuple[int, ...], dtype: str, background: tuple[int, ...]) -> None:
    array = canvas(plan_of(shape, [], background=background, dtype=dtype, stacked=shape[-1] == 2))
    assert (array.shape, array.dtype.str[1:]) == (shape, dtype)
    assert array.flags.c_contiguous
    assert {tuple(np.atleast_1d(pixel).tolist()) for row in array for pixel in row} == {background}


def test_an_array_that_is_given_is_filled() -> None:
    out = np.zeros((8, 5), np.uint8)[2:6]
    array = canvas(plan_of((4, 5), [], background=(7,)), out)
    assert array is out
    assert (out == 7).all()


def test_what_frames_cover_is_not_painted_first() -> None:
    out = np.arange(20, dtype=np.uint8).reshape(4, 5)
    canvas(plan_of((4, 5), [], background=(7,), covered=True), out)
    np.testing.assert_array_equal(out, np.arange(20).reshape(4, 5))


@st.composite
def places(draw: st.DrawFn, channels: int) -> list[Place]:
    """Parts of 8 x 6 tiles on an output of 15 x 11."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        w, h = draw(st.integers(1, 8)), draw(st.integers(1, 6))
        source = draw(st.integers(0, 8 - w)), draw(st.integers(0, 6 - h))
        target = draw(st.integers(0, 15 - w)), draw(st.integers(0, 11 - h))
        found.append((*source, *target, w, h, draw(st.integers(0, channels - 1))))
    return found


@given(places(2), st.sampled_from(["gray", "colour", "stacked"]))
@settings(max_examples=100, deadline=None)
def test_each_pixel_comes_from_the_last_tile_there(parts: list[Place], kind: str) -> None:
    shape: tuple[int, ...] = {"gray": (11, 15), "colour": (11, 15, 3), "stacked": (11, 15, 2)}[kind]
    plan = plan_of(shape, parts, background=(9,) * (shape[2] if len(shape) == 3 else 1), stacked=kind == "stacked")
    rng = np.random.default_rng(5)
    tiles = [rng.integers(0, 256, (6, 8, 3) if kind == "colour" else (6, 8), np.uint8) for _ in parts]
    expected = np.full(shape, 9, np.uint8)
    for (sx, sy, tx, ty, w, h, channel), tile in zip(parts, tiles, strict=True):
        for dy in range(h):
            for dx in range(w):
                where = (ty + dy, tx + dx, channel) if kind == "stacked" else (ty + dy, tx + dx)
                expected[where] = tile[sy + dy, sx + dx]
    array = canvas(plan)
    for row, tile in enumerate(tiles):
        before = tile.copy()
        tile.flags.writeable = False  # as tiles from the cache are
        paste(array, tile, plan, row)
        np.testing.assert_array_equal(tile, before)
    np.testing.assert_array_equal(array, expected)
