"""Frame indexes against a walk over all frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.errors import MetadataError
from wsiweb.frames import Concatenation, FullTileIndex, GridTileIndex, TileIndex, Tiles, TileTable, sparse_index
from wsiweb.geometry import Rectangle

Row = tuple[int, int, int, int]
"""(instance index, frame index, x, y)."""


def rows_of(tiles: Tiles, size: tuple[int, int]) -> list[Row]:
    keys, boxes = tiles
    assert all(box[2:] == size for box in boxes)
    return [(*key, *box[:2]) for key, box in zip(keys, boxes, strict=True)]


def whole(frames: int) -> Concatenation:
    return concatenation((0, frames))


def concatenation(*parts: tuple[int, int]) -> Concatenation:
    """Number instances of (offset, frames), which are the slide's instances from 5 on."""
    return Concatenation(
        instance_indices=tuple(range(5, 5 + len(parts))),
        offsets=tuple(offset for offset, _ in parts),
        counts=tuple(frames for _, frames in parts),
        name="concatenation 1.2",
    )


def table(corners: list[tuple[int, int]]) -> TileTable:
    x, y = np.array(corners, np.int64).reshape(-1, 2).T
    return TileTable(np.zeros(len(corners), np.int64), np.arange(len(corners)), x, y)


@dataclass(frozen=True, slots=True)
class Case:
    """A level, its tile size and a region of it."""

    level: tuple[int, int]
    tile: tuple[int, int]
    region: Rectangle

    def touches(self, x: int, y: int) -> bool:
        return not Rectangle(x, y, *self.tile).intersection(self.region).empty


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sides = st.integers(1, 40)
    level, tile = draw(st.tuples(sides, sides)), draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    x, y = draw(st.integers(0, level[0] - 1)), draw(st.integers(0, level[1] - 1))
    w, h = draw(st.integers(1, level[0] - x)), draw(st.integers(1, level[1] - y))
    return Case(level, tile, Rectangle(x, y, w, h))


@given(cases(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_full_finds_the_tiles_of_a_region(case: Case, planes_before: int) -> None:
    (tile_w, tile_h), (width, height) = case.tile, case.level
    corners = [(x, y) for y in range(0, height, tile_h) for x in range(0, width, tile_w)]
    first = planes_before * len(corners)
    index: TileIndex = FullTileIndex(tile_w, tile_h, -(-width // tile_w), first, whole(first + len(corners)))
    expected = [(5, first + n, x, y) for n, (x, y) in enumerate(corners) if case.touches(x, y)]
    assert rows_of(index.tiles_in(case.region), case.tile) == expected
    assert not index.overlapping


@given(cases(), st.data())
@settings(max_examples=300, deadline=None)
def test_sparse_finds_the_tiles_of_a_region(case: Case, data: st.DataObject) -> None:
    """Anywhere, also off the level; of frames at one place only the last; in rising frame order."""
    places = st.tuples(st.integers(-30, 60), st.integers(-30, 60))
    corners = data.draw(st.lists(places, min_size=1, max_size=25))
    corners += data.draw(st.lists(st.sampled_from(corners), max_size=4))
    last = {corner: n for n, corner in enumerate(corners)}
    index = sparse_index(table(corners), case.tile, case.level[0])
    expected = [(0, n, x, y) for n, (x, y) in enumerate(corners) if last[x, y] == n and case.touches(x, y)]
    assert rows_of(index.tiles_in(case.region), case.tile) == expected
    tile_w, tile_h = case.tile
    pairs = [(a, b) for a in last for b in last if a < b]
    overlapping = any(abs(a[0] - b[0]) < tile_w and abs(a[1] - b[1]) < tile_h for a, b in pairs)
    assert index.overlapping or not overlapping


@given(cases(), st.tuples(st.integers(-9, 9), st.integers(-9, 9)), st.data())
@settings(max_examples=300, deadline=None)
def test_a_grid_finds_the_tiles_of_a_region(case: Case, origin: tuple[int, int], data: st.DataObject) -> None:
    """Wherever it begins, with holes, in any order of frames."""
    across, down = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    everywhere = [
        (origin[0] + column * case.tile[0], origin[1] + row * case.tile[1])
        for column in range(across) for row in range(down)
    ]  # fmt: skip
    corners = data.draw(st.lists(st.sampled_from(everywhere), min_size=max(len(everywhere) // 8, 1), unique=True))
    index = sparse_index(table(corners), case.tile, case.level[0])
    assert isinstance(index, GridTileIndex)
    expected = [(0, n, x, y) for n, (x, y) in enumerate(corners) if case.touches(x, y)]
    assert rows_of(index.tiles_in(case.region), case.tile) == expected


@pytest.mark.parametrize("origin", [(0, 0), (-3, 5)])
def test_a_sparse_grid_does_not_overlap(origin: tuple[int, int]) -> None:
    """It may be drawn as tiles come."""
    corners = [(origin[0] + 8 * column, origin[1] + 6 * row) for column in (3, 0, 1) for row in (2, 0)]
    assert not sparse_index(table(corners), (8, 6), 40).overlapping
    assert sparse_index(table([*corners, (1, 0)]), (8, 6), 40).overlapping


@pytest.mark.parametrize("far", [(2**24 - 256, 0), (2**24 - 1, 2**40), (0, 2**40), (2**40, 2**40)])
def test_a_frame_at_the_end_of_the_world_hides_none(far: tuple[int, int]) -> None:
    """Products of such numbers would run over."""
    xs, ys = (np.array([0, end, 0], np.int64) for end in far)
    xs[2] = 512
    tiles = TileTable(np.zeros(3, np.int64), np.arange(3), xs, ys)
    index = sparse_index(tiles, (256, 256), 1024)
    assert index.tiles_in(Rectangle(0, 0, 256, 256))[0] == [(0, 0)]
    assert index.tiles_in(Rectangle(512, 0, 256, 256))[0] == [(0, 2)]


def test_numbers_beyond_32_bits() -> None:
    """98,816 x 199,168 pixels, a recorded slide, in tiles of one pixel."""
    index = FullTileIndex(1, 1, 98_816, 0, whole(98_816 * 199_168))
    assert rows_of(index.tiles_in(Rectangle(98_815, 199_167, 1, 1)), (1, 1)) == [
        (5, 98_816 * 199_168 - 1, 98_815, 199_167),
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_frames_are_numbered_across_the_parts(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    """Each part is (gap before it, frames); a frame in a gap is in no instance (PS3.3 C.7.6.16.2.2.4)."""
    place_of: dict[int, tuple[int, int]] = {}
    placed = []
    offset = 0
    for member, (gap, count) in enumerate(parts):
        offset += gap
        placed.append((offset, count))
        place_of.update((offset + n, (5 + member, n)) for n in range(count))
        offset += count
    frames = concatenation(*placed)
    start = data.draw(st.integers(0, offset + 2))
    stop = data.draw(st.integers(start, offset + 3))
    lost = [n for n in range(start, stop) if n not in place_of]
    if lost:
        with pytest.raises(MetadataError, match=rf"^Frame {lost[0] + 1} of concatenation 1\.2 is in none"):
            frames.run(start, stop)
    else:
        assert frames.run(start, stop) == [place_of[n] for n in range(start, stop)]
