"""Levels: sizes, ratios and resolutions of every kind, from files and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from kinds_writer import (
    KEY,
    SIZE,
    TILE,
    add_level,
    assert_image,
    assert_reads,
    blank,
    empty_canvas,
    frames_of,
    images_for,
    new_slide,
    note_level,
    paint,
    place_frames,
    store,
)
from synthetic import make_slide, pattern

from wsiweb import MetadataError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener
    from pydicom import Dataset
    from synthetic import SyntheticSlide

SIZES = ((300, 220), (150, 110), (75, 55))


def write_levels(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES) -> tuple[SyntheticSlide, list[Dataset]]:
    """Return a slide without levels, and a dataset for each size."""
    slide = new_slide(folder)
    base = sizes[0]
    datasets = [blank(slide, size, mpp=(0.5 * base[0] / size[0], 0.25 * base[1] / size[1])) for size in sizes]
    return slide, datasets


def store_levels(slide: SyntheticSlide, datasets: list[Dataset]) -> None:
    """Store the smallest first."""
    for n, ds in enumerate(datasets):
        image = pattern("rgb", ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows, salt=3 * n)
        add_level(slide, ds, {KEY: image}, name=f"{9 - n}")


def drop_spacing(ds: Dataset, *, volume: bool) -> None:
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    if volume:
        del ds.ImagedVolumeWidth, ds.ImagedVolumeHeight


@pytest.mark.parametrize(
    "sizes",
    [
        ((300, 220), (201, 147), (170, 125), (169, 124), (33, 24)),
        ((299, 221), (74, 55), (18, 13)),
        ((300, 220), (100, 73), (33, 24), (11, 8), (3, 2), (1, 1)),
        ((300, 40), (150, 20), (37, 5), (1, 1)),
        ((300, 220), (300, 110), (150, 110)),
        ((256, 192), (192, 256)),
    ],
)
def test_any_ratio(tmp_path: Path, open_slide: Opener, sizes: tuple[tuple[int, int], ...]) -> None:
    slide, datasets = write_levels(tmp_path, sizes)
    store_levels(slide, datasets)
    opened = open_slide(slide)
    assert_reads(opened, slide)
    assert [level.index for level in opened.levels] == list(range(len(sizes)))
    for level in opened.levels:
        ratios = sorted((sizes[0][0] / level.width, sizes[0][1] / level.height))
        assert ratios[0] <= level.downsample <= ratios[1]
        assert level.mpp == pytest.approx((0.5 * sizes[0][0] / level.width, 0.25 * sizes[0][1] / level.height))


def test_spacing_is_row_then_column(tmp_path: Path, open_slide: Opener) -> None:
    """PixelSpacing is (y, x) in mm, ``mpp`` is (x, y) in µm; which level is fine enough takes both axes."""
    slide, datasets = write_levels(tmp_path)
    for ds, (row, column) in zip(
        datasets, (("0.0005", "0.00025"), ("0.001", "0.0005"), ("0.002", "0.001")), strict=True
    ):
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [row, column]
        del ds.ImagedVolumeWidth, ds.ImagedVolumeHeight
    store_levels(slide, datasets)
    opened = open_slide(slide)
    assert [level.mpp for level in opened.levels] == [
        pytest.approx((0.25, 0.5)),
        pytest.approx((0.5, 1.0)),
        pytest.approx((1.0, 2.0)),
    ]
    assert opened.mpp == opened.levels[0].mpp
    assert [opened.level_for_mpp(mpp).index for mpp in (0.3, 0.5, 0.98, 1.0, 1.9, 2.0)] == [0, 0, 0, 1, 1, 2]


def test_spacing_goes_before_the_imaged_volume(tmp_path: Path, open_slide: Opener) -> None:
    slide, datasets = write_levels(tmp_path)
    for ds in datasets:
        ds.ImagedVolumeWidth = ds.ImagedVolumeHeight = 99.0
    store_levels(slide, datasets)
    assert open_slide(slide).mpp == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("volume", [True, False])
def test_spacing_missing_at_a_level(tmp_path: Path, open_slide: Opener, level: int, volume: bool) -> None:
    """It is derived from the imaged volume, else from the size and another level's; and that is said."""
    slide, datasets = write_levels(tmp_path)
    drop_spacing(datasets[level], volume=not volume)
    store_levels(slide, datasets)
    opened = open_slide(slide)
    assert_reads(opened, slide)
    for n in range(3):
        assert opened.levels[n].mpp == pytest.approx((0.5 * 2**n, 0.25 * 2**n))
    sources = [opened.levels[n].mpp_source for n in range(3)]
    others = {sources[n] for n in range(3) if n != level}
    assert len(others) == 1
    assert sources[level] not in others


def test_spacing_copied_from_level_0_is_not_believed(tmp_path: Path, open_slide: Opener) -> None:
    """Of a level four times smaller, the ratio of sizes tells."""
    slide, datasets = write_levels(tmp_path)
    for ds in datasets:
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.00025, 0.0005]
    store_levels(slide, datasets)
    opened = open_slide(slide)
    for level, factor in zip(opened.levels, (1, 2, 4), strict=True):
        assert level.mpp == pytest.approx((0.5 * factor, 0.25 * factor), rel=0.01)
    assert opened.levels[2].mpp_source == "the ratio to another level"
    assert opened.level_for_mpp(2.1).index == 2
    assert [level.mpp for level in open_slide(slide, mpp=0.1).levels][2] == pytest.approx((0.4, 0.4), rel=0.01)


def test_measures_per_frame(tmp_path: Path, open_slide: Opener) -> None:
    slide, (ds, *_) = write_levels(tmp_path, SIZES[1:2])
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    del ds.ImagedVolumeWidth, ds.ImagedVolumeHeight
    place_frames(ds, [((x, y), KEY) for y in (0, 48, 96) for x in (0, 64, 128)])
    for groups in ds.PerFrameFunctionalGroupsSequence:
        groups.PixelMeasuresSequence = measures
    store_levels(slide, [ds])
    opened = open_slide(slide)
    assert_reads(opened, slide)
    assert opened.mpp == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("spacing", [None, ["0", "0"], ["0.0005"]])
def test_no_resolution_at_all(tmp_path: Path, open_slide: Opener, spacing: list[str] | None) -> None:
    """Only what needs it fails, and names the ways out."""
    slide, datasets = write_levels(tmp_path)
    for ds in datasets:
        drop_spacing(ds, volume=True)
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = spacing
    store_levels(slide, datasets)
    opened = open_slide(slide)
    assert_reads(opened, slide)
    assert [level.mpp for level in opened.levels] == [None] * 3
    assert opened.level_for_downsample(2.1).index == 1
    for ask in (opened.level_for_mpp, lambda mpp: opened.read_region_mpp(mpp, 0, 0, 10, 10)):
        with pytest.raises(MetadataError, match=r"(?s)(?=.*level=)(?=.*mpp=)"):
            ask(0.5)
    stated = open_slide(slide, mpp=(0.5, 0.25))
    for n, level in enumerate(stated.levels):
        assert level.mpp == pytest.approx((0.5 * 2**n, 0.25 * 2**n))


def test_regions_of_one_level_in_several_sparse_instances(tmp_path: Path, open_slide: Opener) -> None:
    """Each holds other tiles of the same total pixel matrix: one level, not three pyramids."""
    slide = new_slide(tmp_path)
    image, canvas = pattern("rgb", *SIZE, salt=5), empty_canvas()
    raw = frames_of(image)
    for part, numbers in enumerate(((0, 1), (4,), (8, 5, 7))):
        ds = blank(slide)
        places = [(number % 3 * TILE[0], number // 3 * TILE[1]) for number in numbers]
        place_frames(ds, [(place, KEY) for place in places])
        store(slide, ds, [raw[number] for number in numbers], name=f"{part}")
        for place, number in zip(places, numbers, strict=True):
            paint(canvas, place, np.frombuffer(raw[number], np.uint8).reshape(TILE[1], TILE[0], 3))
    note_level(slide, ds, {KEY: canvas}, [])
    opened = open_slide(slide)
    assert len(opened.pyramids) == 1
    assert_reads(opened, slide)


def test_paths_and_planes_of_one_level_in_several_instances(tmp_path: Path, open_slide: Opener) -> None:
    """One instance a plane, at a spacing that only the positions tell; other tile sizes are no obstacle."""
    slide = new_slide(tmp_path)
    keys = [(path, plane) for path in ("B", "A") for plane in (-4.0, 1.0, 30.0)]
    for n, size in enumerate((SIZE, (75, 55))):
        images = images_for(keys, size, salt=10 * n)
        for m, key in enumerate(keys):
            tile_size = (64 - 16 * (m % 2), 48)
            ds = blank(slide, size, tile_size=tile_size, content="mono8", keys=[key], mpp=(n + 1.0, n + 1.0))
            store(slide, ds, frames_of(images[key], tile_size))
        note_level(slide, blank(slide, size), images, [])
    opened = open_slide(slide)
    assert [level.size for level in opened.levels] == [SIZE, (75, 55)]
    assert opened.focal_planes == (-4.0, 1.0, 30.0)
    assert sorted(opened.optical_paths) == ["A", "B"]
    for index, level in enumerate(slide.levels):
        for (path, plane), image in level.pixels.items():
            assert_image(opened, index, image, optical_path=path, focal_plane=plane)


def test_a_level_of_another_kind_of_pixels(tmp_path: Path, open_slide: Opener) -> None:
    """Monochrome below colour: ``levels`` says so, and each reads as what it is."""
    slide, datasets = write_levels(tmp_path, SIZES[:2])
    store_levels(slide, datasets)
    add_level(slide, blank(slide, SIZES[2], content="mono8", mpp=(2.0, 1.0)), images_for([KEY], SIZES[2]))
    opened = open_slide(slide)
    assert [level.shape for level in opened.levels] == [(220, 300, 3), (110, 150, 3), (55, 75)]
    assert_reads(opened, slide)


def test_the_same_instance_twice_in_a_folder(tmp_path: Path, open_slide: Opener) -> None:
    slide = make_slide(tmp_path, sizes=SIZES)
    for file in slide.files:
        (file.parent / f"copy-of-{file.name}").write_bytes(file.read_bytes())
    (tmp_path / "notes.txt").write_text("not DICOM")
    opened = open_slide(slide)
    assert len(opened.pyramids) == 1
    assert_reads(opened, slide)
