"""Resolutions: levels found by mpp and downsample, and the virtual levels between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import oracle
import pytest
from synthetic import make_slide

from wsiweb import MetadataError, RegionError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener, SlideMaker
    from pydicom import Dataset


@pytest.mark.parametrize(
    ("mpp", "index"),
    [
        (0.1, 0),
        (0.5, 0),
        (0.985, 0),
        (0.991, 1),
        (1.0, 1),
        (1.5, 1),
        (1.979, 1),
        (1.99, 2),
        (80, 2),
    ],
)
def test_level_for_mpp(open_slide: Opener, synthetic: SlideMaker, mpp: float, index: int) -> None:
    """Levels have 0.5, 1 and 2 micrometres a pixel; 1 % of tolerance."""
    slide = open_slide(synthetic("exact"))
    assert slide.level_for_mpp(mpp) == slide.levels[index]


@pytest.mark.parametrize(
    ("downsample", "index"),
    [(0.3, 0), (1, 0), (1.9, 0), (1.985, 1), (2, 1), (3.9, 1), (3.97, 2), (4, 2), (99, 2)],
)
def test_level_for_downsample(open_slide: Opener, synthetic: SlideMaker, downsample: float, index: int) -> None:
    slide = open_slide(synthetic("exact"))
    assert slide.level_for_downsample(downsample).index == index


@pytest.mark.parametrize(("mpp", "level"), [(0.5, 0), (0.4955, 0), (1.0, 1), (1.009, 1), (1.985, 2)])
def test_an_mpp_within_one_percent_is_that_level(
    open_slide: Opener, synthetic: SlideMaker, mpp: float, level: int
) -> None:
    truth = synthetic("exact")
    result = open_slide(truth).read_region_mpp(mpp, 30, 20, 100, 90)
    np.testing.assert_array_equal(result, truth.truth(level, 30, 20, 100, 90))


@pytest.mark.parametrize(
    ("kind", "mpp", "level"),
    [("exact", 0.75, 0), ("exact", 0.6, 0), ("exact", 1.37, 1), ("exact", 8.0, 2), ("mono16-exact", 0.8, 0)],
)
def test_virtual_levels_are_reduced_by_area(
    open_slide: Opener, synthetic: SlideMaker, kind: str, mpp: float, level: int
) -> None:
    truth = synthetic("exact") if kind == "exact" else synthetic("exact", content="mono16")
    slide = open_slide(truth)
    w, h = int(768 * 0.5 / mpp + 1e-9), int(512 * 0.5 / mpp + 1e-9)
    scale = mpp / truth.levels[level].mpp[0]
    whole = oracle.reduce_by_area(next(iter(truth.levels[level].pixels.values())), scale, scale, w, h)
    for x, y, box_w, box_h in ((0, 0, w, h), (w // 3, h // 4, w // 2, h // 3), (w - 5, h - 7, 5, 7)):
        result = slide.read_region_mpp(mpp, x, y, box_w, box_h)
        expected = whole[y : y + box_h, x : x + box_w]
        assert result.shape == expected.shape
        assert result.dtype == truth.truth(0, 0, 0, 1, 1).dtype
        assert np.abs(result - expected).max() <= 1


def test_pixels_are_square_where_the_level_is_not(open_slide: Opener, tmp_path: Path) -> None:
    """A level of 0.5 x 1 micrometres: read at 1 it is halved along x only."""
    truth = make_slide(tmp_path, sizes=((600, 400), (600, 200)))
    slide = open_slide(truth)
    assert slide.levels[1].mpp == pytest.approx((0.5, 1.0))
    result = slide.read_region_mpp(1.0, 0, 0, 300, 200)
    expected = oracle.reduce_by_area(truth.levels[1].pixels["1", 0.0], 2, 1, 300, 200)
    assert np.abs(result - expected).max() <= 1


def test_each_axis_is_reduced_or_enlarged_by_itself(open_slide: Opener, tmp_path: Path) -> None:
    """Of 0.1 x 0.5 micrometres, read at 0.4: each pixel is the mean of four along x, between two along y."""

    def stretch(dataset: Dataset) -> None:
        dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = 600 * 0.1 / 1000, 400 * 0.5 / 1000
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.5 / 1000, 0.1 / 1000]

    truth = make_slide(tmp_path, content="mono8", sizes=((600, 400),), change=stretch)
    slide = open_slide(truth)
    assert slide.mpp == (0.1, 0.5)
    means = truth.levels[0].pixels[truth.default_key].reshape(400, 150, 4).mean(axis=2)
    centres = (np.arange(500) + 0.5) * 0.8 - 0.5
    expected = np.stack([np.interp(centres, np.arange(400), column) for column in means.T], axis=1)
    for x, y, w, h in ((0, 0, 150, 500), (16, 60, 16, 70)):
        result = slide.read_region_mpp(0.4, x, y, w, h)
        assert np.abs(result - expected[y : y + h, x : x + w]).max() <= 1


def test_virtual_levels_end_where_the_slide_ends(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("exact"))
    before = open_slide.requests()
    with pytest.raises(RegionError):
        slide.read_region_mpp(0.75, 512, 0, 10, 10)  # 768 x 512 at 0.5 is 512 x 341 at 0.75
    with pytest.raises(RegionError):
        slide.read_region_mpp(0.75, 0, 341, 10, 10)
    with pytest.raises(RegionError):
        slide.read_region_mpp(0.75, 0, 0, 0, 10)
    assert open_slide.requests() == before
    result = slide.read_region_mpp(0.75, 502, -4, 20, 20)
    assert (result[:, 10:] == 255).all()
    assert (result[:4] == 255).all()
    assert (result[4:, :10] != 255).any()


def test_finer_than_the_slide_needs_upsample(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("exact"))
    before = open_slide.requests()
    with pytest.raises(RegionError, match="upsample"):
        slide.read_region_mpp(0.25, 0, 0, 100, 100)
    assert open_slide.requests() == before


def test_upsampling_is_bilinear(open_slide: Opener, synthetic: SlideMaker) -> None:
    """Red rises by one a pixel to the right, green downwards; both must rise by halves at twice the size."""
    slide = open_slide(synthetic("exact"))
    result = slide.read_region_mpp(0.25, 20, 40, 200, 100, upsample=True)
    y, x = np.mgrid[40:140, 20:220]
    assert result.shape == (100, 200, 3)
    assert np.abs(result[..., 0] - ((x + 0.5) / 2 - 0.5)).max() <= 1
    assert np.abs(result[..., 1] - ((y + 0.5) / 2 - 0.5)).max() <= 1


def test_without_resolution_the_error_names_the_way_out(open_slide: Opener, tmp_path: Path) -> None:
    truth = make_slide(tmp_path, mpp=None)
    slide = open_slide(truth)
    assert slide.mpp is None
    assert all(level.mpp is None for level in slide.levels)
    before = open_slide.requests()
    for read in (lambda: slide.read_region_mpp(1.0, 0, 0, 9, 9), lambda: slide.level_for_mpp(1.0)):
        with pytest.raises(MetadataError, match=r"mpp="):
            read()
    assert open_slide.requests() == before
    np.testing.assert_array_equal(slide.read_region(0, 0, 0, 99, 99), truth.truth(0, 0, 0, 99, 99))


def test_the_resolution_can_be_stated(open_slide: Opener, tmp_path: Path) -> None:
    truth = make_slide(tmp_path, mpp=None)
    slide = open_slide(truth, mpp=0.25)
    assert slide.mpp == pytest.approx((0.25, 0.25))
    assert slide.levels[1].mpp == pytest.approx((0.5, 0.5))
    result = slide.read_region_mpp(0.5, 10, 10, 50, 40)
    np.testing.assert_array_equal(result, truth.truth(1, 10, 10, 50, 40))
