"""Resolutions between levels: which level is read, how large a virtual level is, and that all of it can be read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsiweb.errors import MetadataError, RegionError
from wsiweb.geometry import Rectangle
from wsiweb.pyramid import Level
from wsiweb.resolution import (
    View,
    level_for_downsample,
    level_for_mpp,
    view_at_downsample,
    view_at_magnification,
    view_at_mpp,
    view_of_level,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Mpp = tuple[float, float]
BAD_NUMBERS: list[Any] = [0, -1, math.nan, math.inf, -math.inf, None, "0.5", 1j, [1]]


def level(index: int, size: tuple[int, int], base: tuple[int, int], mpp: Mpp | None) -> Level:
    return Level(
        index=index, width=size[0], height=size[1], downsample=(base[0] / size[0] + base[1] / size[1]) / 2, mpp=mpp,
        mpp_source=None, base_size=base, tile_size=(16, 16), shape=size[::-1], dtype=np.dtype(np.uint8),
    )  # fmt: skip


def levels(base: tuple[int, int], factors: tuple[float, ...], mpp: Mpp | None = (0.5, 0.5)) -> list[Level]:
    """Return levels reduced by ``factors``, rounded down, of which each tells the mpp that its size gives."""
    made = []
    for index, factor in enumerate(factors):
        size = max(int(base[0] / factor), 1), max(int(base[1] / factor), 1)
        own = None if mpp is None else (mpp[0] * base[0] / size[0], mpp[1] * base[1] / size[1])
        made.append(level(index, size, base, own))
    return made


PYRAMID = levels((4000, 2000), (1, 4, 16))
"""0.5, 2 and 8 µm a pixel."""

pyramids = st.builds(
    levels,
    st.tuples(st.integers(40, 3000), st.integers(40, 3000)),
    st.sampled_from([(1,), (1, 2, 4, 8), (1, 4, 16), (1, 3, 9), (1, 2.2, 7.7)]),
    st.tuples(st.floats(0.2, 1.0), st.just(1.0)).map(lambda pair: (pair[0], pair[0] * pair[1])),
)


# Which level ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mpp", "index"), [
    (0.1, 0), (0.5, 0), (1.97, 0), (1.981, 1), (2.0, 1), (7.9, 1), (7.92, 1), (7.93, 2), (8, 2), (1e9, 2),
])  # fmt: skip
def test_level_for_mpp(mpp: float, index: int) -> None:
    """Never coarser than asked for, but for 1 %: 2 / 1.01 = 1.9802, 8 / 1.01 = 7.9208."""
    assert level_for_mpp(PYRAMID, mpp).index == index


@pytest.mark.parametrize(("downsample", "index"), [
    (0.5, 0), (1, 0), (3.96, 0), (3.961, 1), (4, 1), (15.84, 1), (15.842, 2), (16, 2), (1e6, 2), (np.float32(4), 1),
    (np.int64(16), 2),
])  # fmt: skip
def test_level_for_downsample(downsample: float, index: int) -> None:
    assert level_for_downsample(PYRAMID, downsample).index == index


def test_both_axes_are_fine_enough() -> None:
    base = (1000, 1000)
    anisotropic = [level(0, base, base, (0.5, 0.5)), level(1, (500, 250), base, (1.0, 2.0))]
    assert [level_for_mpp(anisotropic, mpp).index for mpp in (0.5, 1.0, 1.9, 2.0)] == [0, 0, 0, 1]


def test_levels_without_resolution_are_passed_over() -> None:
    base = (1000, 1000)
    partly = [
        level(0, base, base, (0.5, 0.5)),
        level(1, (500, 500), base, None),
        level(2, (250, 250), base, (2.0, 2.0)),
    ]
    assert [level_for_mpp(partly, mpp).index for mpp in (1.0, 2.0)] == [0, 2]


@given(pyramids, st.floats(0.05, 50))
@settings(max_examples=200, deadline=None)
def test_the_coarsest_that_is_fine_enough(made: list[Level], mpp: float) -> None:
    chosen = level_for_mpp(made, mpp)
    for one in made:
        assert one.mpp is not None
        fine = max(one.mpp) <= mpp * 1.01
        assume(abs(max(one.mpp) - mpp * 1.01) > 1e-6)
        assert not fine or one.index <= chosen.index
        assert one is not chosen or fine or chosen.index == 0


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("ask", [
    lambda value: level_for_mpp(PYRAMID, value),
    lambda value: level_for_downsample(PYRAMID, value),
    lambda value: view_at_mpp(PYRAMID, value, upsample=True),
    lambda value: view_at_downsample(PYRAMID, value, upsample=True),
])  # fmt: skip
def test_only_positive_numbers(ask: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(RegionError, match="is a positive number, not"):
        ask(value)


def test_without_resolution_the_error_names_the_way_out() -> None:
    unknown = levels((400, 300), (1, 2), None)
    for ask in (lambda: level_for_mpp(unknown, 1.0), lambda: view_at_mpp(unknown, 1.0, upsample=False)):
        with pytest.raises(MetadataError, match=r"level=.*Slide\.open\(\.\.\., mpp="):
            ask()
    assert level_for_downsample(unknown, 2).index == 1
    assert view_at_downsample(unknown, 3, upsample=False).mpp is None


# Virtual levels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mpp", "index"), [
    (0.5, 0), (0.4951, 0), (0.49503, 0), (0.5049, 0), (0.50505, None), (1.979, None), (1.981, 1), (2.0199, 1),
    (2.0202, None), (2.03, None), (7.93, 2), (8.07, 2), (8.09, None),
])  # fmt: skip
def test_within_one_percent_it_is_the_level(mpp: float, index: int | None) -> None:
    """One percent of the level's."""
    view = view_at_mpp(PYRAMID, mpp, upsample=False)
    assert view.resampled == (index is None)
    if index is not None:
        assert view == view_of_level(PYRAMID[index])
        assert (view.name, view.scale, view.mpp) == (f"Level {index}", (1.0, 1.0), PYRAMID[index].mpp)


def test_both_axes_of_a_downsample_count() -> None:
    made = [level(0, (200, 200), (200, 200), None), level(1, (100, 80), (200, 200), None)]
    for downsample in (2.0, 2.25, 2.4, 2.47):
        assert level_for_downsample(made, downsample).index == 0
        assert view_at_downsample(made, downsample, upsample=False).level.index == 0
    assert level_for_downsample(made, 2.5).index == 1
    assert view_at_downsample(made, 2.25, upsample=False).scale == (2.25, 2.25)


def test_both_axes_are_within_one_percent() -> None:
    base = (1000, 1000)
    made = [level(0, base, base, (0.5, 0.5)), level(1, (500, 490), base, (1.0, 1.02))]
    assert view_at_mpp(made, 1.0, upsample=False).resampled
    assert view_at_mpp(made, 1.01, upsample=False) == view_of_level(made[1])


def test_the_nearest_of_two_levels_within_one_percent() -> None:
    base = (10_000, 10_000)
    made = [level(0, base, base, (0.5, 0.5)), level(1, (9_930, 9_930), base, (0.5035, 0.5035))]
    assert view_at_mpp(made, 0.503, upsample=False).level.index == 1
    assert view_at_mpp(made, 0.5005, upsample=False).level.index == 0


@given(pyramids, st.floats(0.3, 30))
@settings(max_examples=200, deadline=None)
def test_virtual_sizes(made: list[Level], mpp: float) -> None:
    """floor(level-0 size x level-0 mpp / mpp); square pixels, made from the level that level_for_mpp names."""
    base = made[0]
    assert base.mpp is not None
    assume(mpp >= min(base.mpp) * 0.99)
    view = view_at_mpp(made, mpp, upsample=False)
    if not view.resampled:
        return
    assert view.level == level_for_mpp(made, mpp)
    assert view.mpp == (mpp, mpp)
    for size, whole, axis in ((view.width, base.width, base.mpp[0]), (view.height, base.height, base.mpp[1])):
        exact = whole * axis / mpp
        assert size == max(math.floor(exact), 1) or abs(exact - round(exact)) < 1e-5
    assert view.level.mpp is not None
    assert view.scale == pytest.approx((mpp / view.level.mpp[0], mpp / view.level.mpp[1]))
    assert view.base_scale == pytest.approx((mpp / base.mpp[0], mpp / base.mpp[1]), rel=0.03)


@given(pyramids, st.floats(1, 40))
@settings(max_examples=100, deadline=None)
def test_virtual_sizes_by_downsample(made: list[Level], downsample: float) -> None:
    view = view_at_downsample(made, downsample, upsample=False)
    if view.resampled:
        assert view.level == level_for_downsample(made, downsample)
        assert view.base_scale == pytest.approx((downsample, downsample))
        exact = made[0].width / downsample, made[0].height / downsample
        assert (view.width, view.height) == tuple(max(math.floor(side + 1e-6), 1) for side in exact)


def test_sizes_that_come_out_even_lose_no_pixel() -> None:
    """3000 * 0.499 / 1.497 is 1000, and a little less in binary: rounding down alone would lose a column."""
    view = view_at_mpp(levels((3000, 3000), (1,), (0.499, 0.499)), 1.497, upsample=False)
    assert (view.width, view.height) == (1000, 1000)


def test_a_view_has_a_pixel_at_least() -> None:
    for view in (view_at_downsample(PYRAMID, 1e9, upsample=False), view_at_mpp(PYRAMID, 1e9, upsample=False)):
        assert (view.width, view.height) == (1, 1)


@pytest.mark.parametrize(("power", "mpp"), [(20, 1.0), (40, 2.0), (None, 1.0), (0, 1.0)])
def test_a_magnification_is_that_of_the_objective(power: float | None, mpp: float) -> None:
    """Which goes before the resolution, where the two disagree; 10 x has 1 µm a pixel where none is stated."""
    view = view_at_magnification(PYRAMID, 10, power, upsample=False)
    assert view.mpp == (mpp, mpp)


def test_an_axis_within_one_percent_is_not_interpolated() -> None:
    scales = [(1.005, 2.0), (0.995, 2.0), (0.98, 2.0), (2.0, 0.5)]
    enlarged = [View(PYRAMID[0], 100, 100, scale, None).enlarged for scale in scales]
    assert enlarged == [(False, False), (False, False), (True, False), (False, True)]


@pytest.mark.parametrize(("ask", "value"), [(view_at_mpp, 0.25), (view_at_downsample, 0.5)])
def test_finer_than_the_slide_must_be_allowed(ask: Callable[..., View], value: float) -> None:
    with pytest.raises(RegionError, match="finer than"):
        ask(PYRAMID, value, upsample=False)
    view = ask(PYRAMID, value, upsample=True)
    assert (view.level.index, view.width, view.height, view.scale) == (0, 8000, 4000, (0.5, 0.5))


# Reading them -----------------------------------------------------------------------------------------------


def pixels_of(one: Level) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[: one.height, : one.width]
    return np.asarray((5 * x + 3 * y + x * y // 40) % 256, np.uint8)


def cut(image: npt.NDArray[Any], region: Rectangle) -> npt.NDArray[Any]:
    return image[region.y : region.bottom, region.x : region.right]


def resampled(view: View, image: npt.NDArray[Any], region: Rectangle, background: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a region of a view; every pixel of ``out`` is written, and nothing else of the array that it lies in.

    Nor does what was in memory before show.
    """
    results = []
    for undefined in (0, 255):
        around = np.full((region.h + 2, region.w + 3, *image.shape[2:]), undefined, image.dtype)
        out = around[1:-1, 1:-2]
        view.resample(
            cut(image, view.source_of(region)),
            region,
            background,
            out,
            lambda shape, dtype: np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 99, dtype),
        )
        results.append(out.copy())
        out[...] = undefined
        assert (around == undefined).all()
    np.testing.assert_array_equal(results[0], results[1])
    return results[0]


@st.composite
def views_and_regions(draw: st.DrawFn) -> tuple[View, Rectangle]:
    base = draw(st.tuples(st.integers(5, 90), st.integers(5, 90)))
    mpp = draw(st.sampled_from([(0.5, 0.5), (0.5, 2.0), (1.5, 0.5)]))
    made = levels(base, draw(st.sampled_from([(1,), (1, 2, 4), (1, 3)])), mpp)
    view = view_at_mpp(made, draw(st.floats(0.2, 6)), upsample=True)
    x, y = draw(st.integers(-5, view.width - 1)), draw(st.integers(-5, view.height - 1))
    region = Rectangle(x, y, draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    assume(not region.intersection(view.bounds).empty)
    return view, region


@given(views_and_regions())
@settings(max_examples=200, deadline=None)
def test_a_region_is_the_crop_of_the_whole(case: tuple[View, Rectangle]) -> None:
    """However it was cut out, but for rounding at ties; outside of the view there is background."""
    view, region = case
    image, background = pixels_of(view.level), (7,)
    source = view.source_of(region)
    if not view.resampled:
        assert source == region
        return
    assert view.level.bounds.contains(source)
    result = resampled(view, image, region, background)
    whole = resampled(view, image, view.bounds, background)
    inside = region.intersection(view.bounds)
    shown = cut(result, inside.shifted(-region.x, -region.y))
    assert np.abs(shown.astype(int) - cut(whole, inside)).max() <= 1
    outside = np.ones(result.shape, bool)
    cut(outside, inside.shifted(-region.x, -region.y))[...] = False
    assert (result[outside] == 7).all()


@given(views_and_regions())
@settings(max_examples=100, deadline=None)
def test_a_region_reads_no_more_than_it_shows(case: tuple[View, Rectangle]) -> None:
    view, region = case
    if not view.resampled:
        return
    source, inside = view.source_of(region), region.intersection(view.bounds)
    margins = [2 + 2 * (scale < 1) for scale in view.scale]  # an axis that is reduced needs no neighbours
    assert source.w <= inside.w * view.scale[0] + margins[0]
    assert source.h <= inside.h * view.scale[1] + margins[1]


@given(st.floats(-0.01, 0.01), st.sampled_from([2, 4, 16]), st.floats(1.02, 3), st.integers(200, 3000))
@settings(max_examples=200, deadline=None)
def test_all_of_a_view_can_be_read_whatever_the_level_claims(
    error: float, factor: int, ratio: float, width: int
) -> None:
    """PixelSpacing is rounded, so that a level's mpp and its size disagree a little: the last column reads too."""
    base = width * factor, 160
    coarse_mpp = 0.5 * factor * (1 + error)
    made = [level(0, base, base, (0.5, 0.5)), level(1, (width, 160 // factor), base, (coarse_mpp, coarse_mpp))]
    view = view_at_mpp(made, coarse_mpp * ratio, upsample=False)
    assert view.level.index == 1
    last = Rectangle(view.width - 1, view.height - 1, 1, 1)
    source = view.source_of(last)
    assert view.level.bounds.contains(source)
    assert not source.empty
    resampled(view, pixels_of(view.level), last, (7,))


def test_outside_of_the_view_is_background() -> None:
    view = view_at_mpp(PYRAMID, 3.0, upsample=False)
    region = Rectangle(-10, -10, 5, 4)
    assert view.source_of(region).empty
    result = resampled(view, np.empty((0, 0, 3), np.uint8), region, (1, 2, 3))
    assert (result == (1, 2, 3)).all()


def test_names_for_messages() -> None:
    assert view_at_mpp(PYRAMID, 3.0, upsample=False).name == "The slide at 3 µm a pixel"
    assert view_at_downsample(levels((400, 300), (1,), None), 3, upsample=False).name == "The reduced slide"
