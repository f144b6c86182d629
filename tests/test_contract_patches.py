"""Grids of patches: how many, where, and that each is what ``read_region`` returns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wsiweb import MetadataError, RegionError

if TYPE_CHECKING:
    from conftest import Opener, SlideMaker

    from wsiweb import Slide

EDGES = ("drop", "pad", "shift")


def expected_positions(extent: int, size: int, stride: int, edge: str) -> list[int]:
    """Return the grid along one axis by the contract's formulas."""
    if edge == "drop":
        return [n * stride for n in range(math.floor((extent - size) / stride) + 1)] if extent >= size else []
    count = math.ceil(max(extent - size, 0) / stride) + 1
    places = [n * stride for n in range(count)]
    if edge == "shift" and extent >= size:
        places[-1] = min(places[-1], extent - size)
    return places


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    ("level", "size", "stride"),
    [
        (0, 64, None),
        (0, 100, None),
        (0, 97, 33),
        (1, 64, 100),
        (1, 50, (17, 60)),
        (2, 132, None),
        (2, 200, None),
        (0, 700, 1),
    ],
)
def test_grids_follow_the_formulas(
    open_web: Opener, synthetic: SlideMaker, level: int, size: int, stride: Any, edge: Any
) -> None:
    """Levels have 700 x 530, 350 x 265 and 175 x 132 pixels. Nothing is fetched."""
    slide = open_web(synthetic("rgb"))
    before = open_web.requests()
    patches = slide.patches(size, level=level, stride=stride, edge=edge)
    stride_x, stride_y = stride if isinstance(stride, tuple) else (stride or size, stride or size)
    w, h = slide.levels[level].size
    columns = expected_positions(w, size, stride_x, edge)
    rows = expected_positions(h, size, stride_y, edge)
    assert len(patches) == len(columns) * len(rows)
    assert open_web.requests() == before
    if 0 < len(patches) <= 200:
        found = [(patch.x, patch.y) for patch in patches]
        assert found == [(x, y) for y in rows for x in columns]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    ("kind", "level", "size", "stride"),
    [("jpeg", 0, 150, 120), ("mono16", 1, 100, 90), ("sparse-holes", 2, 140, None)],
)
def test_patches_are_regions(
    open_slide: Opener, synthetic: SlideMaker, kind: str, level: int, size: int, stride: Any, edge: Any
) -> None:
    truth = synthetic(kind)
    patches = open_slide(truth).patches(size, level=level, stride=stride, edge=edge)
    for index, patch in enumerate(patches):
        np.testing.assert_array_equal(patch.image, truth.truth(level, patch.x, patch.y, size, size))
        assert patch.index == index
        assert patch.level == level
        assert patch.mpp == pytest.approx(truth.levels[level].mpp)
        assert math.isnan(patch.tissue)
        assert patch.image.flags.writeable
        patch.image[:] = 0


def test_positions_for_other_tools_are_level_0_pixels(open_slide: Opener, synthetic: SlideMaker) -> None:
    for patch in open_slide(synthetic("exact")).patches(64, level=2):
        assert (patch.x_base, patch.y_base) == (4 * patch.x, 4 * patch.y)
        assert patch.x == round(patch.x)


def test_batches(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    patches = open_slide(truth).patches(64, level=1)
    assert len(patches) == 5 * 4
    batches = list(patches.batches(8))
    assert [batch.images.shape for batch in batches] == [(8, 64, 64, 3), (8, 64, 64, 3), (4, 64, 64, 3)]
    n = 0
    for batch in batches:
        assert batch.images.dtype == np.uint8
        assert batch.images.flags.c_contiguous
        for image, x, y, x_base, y_base in zip(batch.images, batch.x, batch.y, batch.x_base, batch.y_base, strict=True):
            np.testing.assert_array_equal(image, truth.truth(1, int(x), int(y), 64, 64))
            patch = patches[n]
            assert (x, y, x_base, y_base) == (patch.x, patch.y, patch.x_base, patch.y_base)
            n += 1
        assert list(batch.index) == list(range(n - len(batch.images), n))
    with pytest.raises(ValueError, match="0"):
        list(patches.batches(0))


def test_indexing_reads_and_slicing_plans(open_web: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    patches = open_web(truth).patches(100, level=0)
    assert len(patches) == 7 * 5
    before = open_web.requests()
    part = patches[10:20]
    assert len(part) == 10
    assert len(patches[30:99]) == 5
    assert len(patches[::4]) == 9
    assert len(part[2:4]) == 2
    assert open_web.requests() == before
    assert [patch.index for patch in part] == list(range(10, 20))
    assert [patch.index for patch in part[2:4]] == [12, 13]
    for index in (0, 10, -1, 34, -35):
        patch = patches[index]
        assert patch.index == index % 35
        assert (patch.x, patch.y) == (index % 35 % 7 * 100, index % 35 // 7 * 100)
        np.testing.assert_array_equal(patch.image, truth.truth(0, patch.x, patch.y, 100, 100))
    np.testing.assert_array_equal(part[3].image, patches[13].image)
    for index in (35, -36):
        with pytest.raises(IndexError):
            patches[index]


def test_iterating_twice_gives_the_same(open_slide: Opener, synthetic: SlideMaker) -> None:
    patches = open_slide(synthetic("rgb")).patches(128, level=1)
    first = [patch.image for patch in patches]
    for image, patch in zip(first, patches, strict=True):
        np.testing.assert_array_equal(image, patch.image)


@pytest.mark.parametrize(("mpp", "size"), [(1.0, 64), (0.75, 100), (1.3, 50), (8.0, 16)])
def test_patches_at_an_mpp(open_slide: Opener, synthetic: SlideMaker, mpp: float, size: int) -> None:
    slide = open_slide(synthetic("exact"))
    patches = slide.patches(size, mpp=mpp, edge="pad")
    w, h = int(768 * 0.5 / mpp + 1e-9), int(512 * 0.5 / mpp + 1e-9)
    assert len(patches) == len(expected_positions(w, size, size, "pad")) * len(expected_positions(h, size, size, "pad"))
    for patch in patches:
        assert patch.mpp == pytest.approx((mpp, mpp), rel=0.01)
        assert patch.x_base == pytest.approx(patch.x * mpp / 0.5, abs=1)
        assert patch.y_base == pytest.approx(patch.y * mpp / 0.5, abs=1)
        np.testing.assert_array_equal(patch.image, slide.read_region_mpp(mpp, patch.x, patch.y, size, size))


def test_magnification_is_relative_to_the_objective(open_slide: Opener, synthetic: SlideMaker) -> None:
    """The slide states 20x: 10x is a downsample of 2, whatever the mpp."""
    slide = open_slide(synthetic("exact"))
    at_level, at_power = slide.patches(100, level=1), slide.patches(100, magnification=10)
    assert len(at_level) == len(at_power) == 3 * 2
    for one, other in zip(at_level, at_power, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_a_magnification_beyond_the_objective_is_named(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("exact"))
    with pytest.raises(RegionError, match=r"magnification of 40, .* states 20: .* upsample=True"):
        slide.patches(100, magnification=40)
    assert slide.patches(100, magnification=40, upsample=True).mpp == (0.25, 0.25)


def test_one_resolution_at_most(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("exact"))
    wrong: list[dict[str, Any]] = [
        {"level": 0, "mpp": 0.5},
        {"level": 0, "magnification": 20},
        {"mpp": 0.5, "magnification": 20},
        {"level": 3},
        {"level": -1},
        {"mpp": 0.2},
    ]
    for kwargs in wrong:
        with pytest.raises(RegionError):
            slide.patches(64, **kwargs)
    assert len(slide.patches(64)) == len(slide.patches(64, level=0))


def test_an_mpp_needs_a_resolution(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("rgb", mpp=None))
    with pytest.raises(MetadataError, match="level="):
        slide.patches(64, mpp=0.5)


def positions(slide: Slide, *args: Any, **kwargs: Any) -> list[tuple[int, int]]:
    return [(patch.x, patch.y) for patch in slide.patches(*args, **kwargs)]


@pytest.mark.parametrize("edge", EDGES)
def test_a_region_of_interest_is_in_level_0_pixels(open_slide: Opener, synthetic: SlideMaker, edge: Any) -> None:
    """At level 1 (downsample 2) the grid starts at the top left of the halved rectangle."""
    slide = open_slide(synthetic("exact"))
    found = positions(slide, 50, level=1, roi=(100, 60, 240, 320), edge=edge)
    columns = [50 + x for x in expected_positions(120, 50, 50, edge)]
    rows = [30 + y for y in expected_positions(160, 50, 50, edge)]
    assert found == [(x, y) for y in rows for x in columns]


def test_several_regions_of_interest(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("exact"))
    one, other = (0, 0, 130, 70), (400, 300, 200, 64)
    found = positions(slide, 64, roi=[one, other])
    assert found == [(0, 0), (64, 0), (400, 300), (464, 300), (528, 300)]


def test_overlapping_patches_fetch_each_frame_once(open_web: Opener, synthetic: SlideMaker) -> None:
    slide = open_web(synthetic("jpeg"))
    for _ in slide.patches(100, level=0, stride=50, edge="pad"):
        pass
    asked = open_web.servers[0].frames_asked()
    assert len(asked) == 132
    assert set(asked.values()) == {1}
