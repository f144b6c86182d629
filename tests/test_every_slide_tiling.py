"""Tiling: where each frame lies in its level (PS3.3 C.7.6.17.3, C.8.12.6.1), from files and over HTTP."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kinds_writer import (
    KEY,
    SIZE,
    TILE,
    add_level,
    assert_reads,
    blank,
    empty_canvas,
    frames_of,
    images_for,
    new_slide,
    note_level,
    paint,
    place_frames,
    position_item,
    store,
)
from pydicom import Dataset
from synthetic import POISON, pattern

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array, SyntheticSlide

OFF_GRID = ((0, 0), (50, 7), (13, 40), (90, 61), (31, 33), (100, 0), (86, 62))
"""Positions that overlap each other, off any grid, some reaching over the edge."""


def tile_image(salt: int) -> Array:
    return pattern("rgb", *TILE, salt=salt)


def sparse_slide(folder: Path, places: list[tuple[int, int]], *, declared: bool = True) -> SyntheticSlide:
    """Frames drawn in their order: where they overlap, the higher number wins."""
    slide = new_slide(folder)
    ds = blank(slide)
    place_frames(ds, [(place, KEY) for place in places], declared=declared)
    tiles = [tile_image(5 * n) for n in range(len(places))]
    canvas = empty_canvas()
    for place, tile in zip(places, tiles, strict=True):
        paint(canvas, place, tile)
    note_level(slide, ds, {KEY: canvas}, [store(slide, ds, [tile.tobytes() for tile in tiles])])
    return slide


def test_full_order_is_columns_rows_planes_paths(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    keys = [(path, plane) for path in ("B", "A", "C") for plane in (-3.0, 0.0, 3.0)]
    add_level(slide, blank(slide, content="mono8", keys=keys), images_for(keys))
    opened = open_slide(slide)
    assert (opened.optical_paths, opened.focal_planes) == (("B", "A", "C"), (-3.0, 0.0, 3.0))
    assert_reads(opened, slide)


@pytest.mark.parametrize("declared", [True, False])
def test_positions_off_the_grid_and_overlapping(tmp_path: Path, open_slide: Opener, declared: bool) -> None:
    slide = sparse_slide(tmp_path, list(OFF_GRID), declared=declared)
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("seed", range(3))
def test_any_positions_whatever(tmp_path: Path, open_slide: Opener, seed: int) -> None:
    rng = random.Random(seed)
    slide = sparse_slide(tmp_path, [(rng.randrange(SIZE[0]), rng.randrange(SIZE[1])) for _ in range(25)])
    opened = open_slide(slide)
    assert_reads(opened, slide)
    for _ in range(20):
        x, y = rng.randrange(-20, SIZE[0]), rng.randrange(-20, SIZE[1])
        w, h = rng.randrange(21, 80), rng.randrange(21, 80)
        np.testing.assert_array_equal(opened.read_region(0, x, y, w, h), slide.truth(0, x, y, w, h))


def test_the_later_of_two_frames_at_one_place_is_shown(tmp_path: Path, open_slide: Opener) -> None:
    slide = sparse_slide(tmp_path, [(0, 0), (64, 0), (0, 0), (64, 48), (0, 0), (64, 0)])
    opened = open_slide(slide)
    assert_reads(opened, slide)
    np.testing.assert_array_equal(opened.read_region(0, 0, 0, *TILE), tile_image(20))


def test_a_grid_that_does_not_begin_at_the_origin(tmp_path: Path, open_slide: Opener) -> None:
    slide = sparse_slide(tmp_path, [(x, y) for y in (11, 59) for x in (7, 71)][::-1])
    assert_reads(open_slide(slide), slide)


def test_each_frame_says_its_plane_and_path(tmp_path: Path, open_slide: Opener) -> None:
    """Frames in no order at all, planes at no even spacing, one channel with a hole."""
    slide = new_slide(tmp_path)
    keys = [(path, plane) for path in ("x", "y") for plane in (0.0, 1.0, 7.5)]
    ds = blank(slide, content="mono8", keys=keys)
    images = images_for(keys)
    entries = []
    for key in keys:
        canvas = empty_canvas(content="mono8")
        for number, data in enumerate(frames_of(images[key])):
            if (key, number) == (("y", 1.0), 4):
                continue
            place = number % 3 * TILE[0], number // 3 * TILE[1]
            entries.append((place, key, data))
            paint(canvas, place, np.frombuffer(data, np.uint8).reshape(TILE[::-1]))
        images[key] = canvas
    random.Random(5).shuffle(entries)
    place_frames(ds, [(place, key) for place, key, _ in entries])
    note_level(slide, ds, images, [store(slide, ds, [data for _, _, data in entries])])
    opened = open_slide(slide)
    assert opened.focal_planes == (0.0, 1.0, 7.5)
    assert_reads(opened, slide)


def test_path_shared_by_all_frames(tmp_path: Path, open_slide: Opener) -> None:
    """OpticalPathIdentificationSequence may stand in the shared functional groups."""
    slide = new_slide(tmp_path)
    key = ("DAPI", 0.0)
    ds = blank(slide, content="mono8", keys=[key])
    item = Dataset()
    item.OpticalPathIdentifier = "DAPI"
    ds.SharedFunctionalGroupsSequence[0].OpticalPathIdentificationSequence = [item]
    image = images_for([key])[key]
    places = [(x, y) for y in range(0, SIZE[1], TILE[1]) for x in range(0, SIZE[0], TILE[0])]
    place_frames(ds, [(place, None) for place in reversed(places)])
    note_level(slide, ds, {key: image}, [store(slide, ds, frames_of(image)[::-1])])
    opened = open_slide(slide)
    assert opened.optical_paths == ("DAPI",)
    assert_reads(opened, slide)


@pytest.mark.parametrize(
    ("organization", "where"),
    [
        ("TILED_SPARSE", "frame"),
        ("TILED_SPARSE", "shared"),
        ("TILED_FULL", "shared"),
        ("TILED_FULL", "nowhere"),
        (None, "frame"),
        (None, "shared"),
        (None, "nowhere"),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
def test_single_frame(tmp_path: Path, open_slide: Opener, where: str, organization: str | None, counted: bool) -> None:
    slide = new_slide(tmp_path)
    image = pattern("rgb", 40, 30, salt=3)
    ds = blank(slide, image.shape[1::-1])
    if organization is None:
        del ds.DimensionOrganizationType
    else:
        ds.DimensionOrganizationType = organization
    if not counted:
        del ds.NumberOfFrames
    groups = Dataset()
    groups.PlanePositionSlideSequence = [position_item((0, 0), 0.0)]
    if where == "frame":
        ds.PerFrameFunctionalGroupsSequence = [groups]
    elif where == "shared":
        ds.SharedFunctionalGroupsSequence[0].PlanePositionSlideSequence = groups.PlanePositionSlideSequence
    add_level(slide, ds, {KEY: image})
    assert_reads(open_slide(slide), slide)


def test_a_lone_frame_in_a_larger_matrix(tmp_path: Path, open_slide: Opener) -> None:
    slide = sparse_slide(tmp_path, [(40, 30)])
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("size", [(24, 18), (64, 48), (1, 1), (65, 1), (1, 49)])
@pytest.mark.parametrize("organized", [True, False])
def test_tile_larger_than_the_matrix(
    tmp_path: Path, open_slide: Opener, size: tuple[int, int], organized: bool
) -> None:
    """What a frame holds outside of the matrix never shows."""
    slide = new_slide(tmp_path)
    ds = blank(slide, size)
    if not organized:
        del ds.DimensionOrganizationType
    add_level(slide, ds, {KEY: pattern("rgb", *size, salt=4)})
    opened = open_slide(slide)
    assert_reads(opened, slide)
    around = opened.read_region(0, -5, -5, size[0] + 90, size[1] + 90)
    assert (around[:, size[0] + 5 :] == 255).all()
    assert (around[size[1] + 5 :] == 255).all()
    assert (around[:5] == 255).all()
    assert POISON != 255


def test_each_level_has_its_own_tile_size(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    sizes = ((300, 220), TILE), ((150, 110), (277, 370)), ((75, 55), (30, 16)), ((2, 1), (1, 1))
    for n, (size, tile_size) in enumerate(sizes):
        mpp = (150 / size[0], 110 / size[1])
        ds = blank(slide, size, tile_size=tile_size, mpp=mpp)
        add_level(slide, ds, {KEY: pattern("rgb", *size, salt=n)}, name=f"level-{n}", mpp=mpp)
    assert_reads(open_slide(slide), slide)


def test_per_frame_groups_of_a_full_slide_say_nothing_new(tmp_path: Path, open_slide: Opener) -> None:
    """TILED_FULL decides: positions, if present, are redundant, and need not be complete (C.7.6.17.3)."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(9)]
    add_level(slide, ds, {KEY: pattern("rgb", *SIZE, salt=1)})
    assert_reads(open_slide(slide), slide)


def test_raster_order_where_nothing_is_declared_and_the_count_fits(tmp_path: Path, open_slide: Opener) -> None:
    """No DimensionOrganizationType and no positions: columns, rows, planes, paths."""
    slide = new_slide(tmp_path)
    keys = [(path, 0.0) for path in ("a", "b")]
    ds = blank(slide, content="mono8", keys=keys)
    del ds.DimensionOrganizationType
    add_level(slide, ds, images_for(keys))
    assert_reads(open_slide(slide), slide)
