"""Resampling against exact references: interpolated integral images, the lerp of four neighbours, fractions."""

from __future__ import annotations

import functools
import itertools
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsiweb import blockmean, resample
from wsiweb.errors import RegionError
from wsiweb.resample import resample_array

Array = npt.NDArray[Any]
Pair = tuple[float, float]


def resampled(
    source: Array, *, origin: Pair, scale: Pair, size: tuple[int, int], bilinear: tuple[bool, bool],
    out: Array | None = None,
) -> Array:  # fmt: skip
    result: Array = np.empty((size[1], size[0], *source.shape[2:]), source.dtype) if out is None else out
    resample_array(source, out=result, origin=origin, scale=scale, bilinear=bilinear, scratch=np.empty)
    return result


reduce_area = functools.partial(resampled, bilinear=(False, False))
enlarge_bilinear = functools.partial(resampled, bilinear=(True, True))


def noise(*shape: int, dtype: npt.DTypeLike = np.uint8, seed: int = 0) -> Array:
    top = np.iinfo(np.dtype(dtype)).max
    pixels: Array = np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)
    return pixels


def integral_means(source: Array, origin: float, scale: float, count: int) -> Array:
    """Means along the first axis: differences of the linearly interpolated integral."""
    integral = np.concatenate([np.zeros((1, *source.shape[1:])), np.cumsum(source, axis=0, dtype=np.float64)])
    edges = np.clip(origin + np.arange(count + 1) * scale, 0, len(source))
    flat = integral.reshape(len(integral), -1)
    at_edges = np.stack([np.interp(edges, np.arange(len(integral)), column) for column in flat.T], axis=1)
    means = np.diff(at_edges, axis=0) / np.diff(edges)[:, np.newaxis]
    reshaped: Array = means.reshape(count, *source.shape[1:])
    return reshaped


def reference_reduction(source: Array, origin: Pair, scale: Pair, size: tuple[int, int]) -> Array:
    rows = integral_means(source, origin[1], scale[1], size[1])
    return integral_means(rows.swapaxes(0, 1), origin[0], scale[0], size[0]).swapaxes(0, 1)


def reference_enlargement(source: Array, origin: Pair, scale: Pair, size: tuple[int, int]) -> Array:
    x, y = (
        np.clip(origin[axis] + (np.arange(size[axis]) + 0.5) * scale[axis] - 0.5, 0, source.shape[1 - axis] - 1)
        for axis in (0, 1)
    )
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, source.shape[1] - 1), np.minimum(y0 + 1, source.shape[0] - 1)
    u, v = (x - x0).reshape(1, -1), (y - y0).reshape(-1, 1)
    if source.ndim == 3:
        u, v = u[..., np.newaxis], v[..., np.newaxis]
    top = source[np.ix_(y0, x0)] * (1 - u) + source[np.ix_(y0, x1)] * u
    bottom = source[np.ix_(y1, x0)] * (1 - u) + source[np.ix_(y1, x1)] * u
    return np.asarray(top * (1 - v) + bottom * v)


def assert_rounded(result: Array, exact: Array, *, dtype: npt.DTypeLike) -> None:
    """Each level is the exact mean rounded, but for means within a hundredth of a level of a tie."""
    assert result.shape == exact.shape
    assert result.dtype == dtype
    assert result.flags.c_contiguous
    assert result.flags.owndata or result.base is None
    assert np.abs(result - exact).max() <= 0.51


@st.composite
def cases(draw: st.DrawFn, scales: st.SearchStrategy[float]) -> tuple[Array, Pair, Pair, tuple[int, int]]:
    shape: tuple[int, ...] = (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
    if draw(st.booleans()):
        shape = (*shape, 3)
    source = noise(*shape, dtype=draw(st.sampled_from([np.uint8, np.uint16])), seed=draw(st.integers(0, 9)))
    scale = (draw(scales), draw(scales))
    origin = (draw(st.floats(-3, 60)), draw(st.floats(-3, 60)))
    return source, origin, scale, (draw(st.integers(1, 40)), draw(st.integers(1, 40)))


def covered(origin: float, scale: float, count: int, available: int) -> bool:
    edges = np.clip(origin + np.arange(count + 1) * scale, 0, available)
    return bool((np.diff(edges) > 1e-3).all())


@settings(max_examples=300, deadline=None)
@given(case=cases(st.one_of(st.floats(0.98, 70), st.sampled_from([1.0, 1.5, 2.0, 3.0, 8.0]))), tile=st.integers(1, 9))
def test_reduction_is_the_mean_over_area(case: tuple[Array, Pair, Pair, tuple[int, int]], tile: int) -> None:
    source, origin, scale, (w, h) = case
    rows, columns = source.shape[:2]
    w = max(1, min(w, int((columns - origin[0]) / scale[0])))
    h = max(1, min(h, int((rows - origin[1]) / scale[1])))
    assume(covered(origin[0], scale[0], w, columns))
    assume(covered(origin[1], scale[1], h, rows))
    with pytest.MonkeyPatch.context() as patch:
        result = reduce_area(source, origin=origin, scale=scale, size=(w, h))
        patch.setattr(resample, "_TILE_ROWS", tile)
        patch.setattr(resample, "_TILE_SAMPLES", 3 * (10 - tile))
        in_tiles = reduce_area(source, origin=origin, scale=scale, size=(w, h))
    assert_rounded(result, reference_reduction(source, origin, scale, (w, h)), dtype=source.dtype)
    np.testing.assert_array_equal(in_tiles, result)


@settings(max_examples=200, deadline=None)
@given(case=cases(st.floats(0.02, 0.999)), tile=st.integers(1, 9))
def test_enlargement_interpolates_between_centres(case: tuple[Array, Pair, Pair, tuple[int, int]], tile: int) -> None:
    source, origin, scale, size = case
    with pytest.MonkeyPatch.context() as patch:
        result = enlarge_bilinear(source, origin=origin, scale=scale, size=size)
        patch.setattr(resample, "_TILE_ROWS", tile)
        patch.setattr(resample, "_TILE_SAMPLES", 3 * (10 - tile))
        in_tiles = enlarge_bilinear(source, origin=origin, scale=scale, size=size)
    assert_rounded(result, reference_enlargement(source, origin, scale, size), dtype=source.dtype)
    np.testing.assert_array_equal(in_tiles, result)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [1.0, 1.13, 1.87, 2.0, 5.5, 16.0, 63.7])
def test_nearly_all_levels_equal_the_exact_mean(scale: float, dtype: npt.DTypeLike) -> None:
    source = noise(700, 900, 3, dtype=dtype)
    size = (int(900 / scale), int(700 / scale))
    expected = np.floor(reference_reduction(source, (0.0, 0.0), (scale, scale), size) + 0.5)
    result = reduce_area(source, origin=(0.0, 0.0), scale=(scale, scale), size=size)
    assert np.abs(result - expected).max() <= 1
    assert (result == expected).mean() > 0.999


@given(
    factors=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    origin=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    samples=st.sampled_from([(), (3,)]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    darkest=st.sampled_from([0.0, 0.99, 1.0]),
    at_once=st.sampled_from([1, 300, 1 << 19]),
)
@settings(deadline=None)
def test_whole_factors_average_blocks_and_round_half_up(
    factors: tuple[int, int], size: tuple[int, int], origin: tuple[int, int], samples: tuple[int, ...],
    dtype: npt.DTypeLike, darkest: float, at_once: int,
) -> None:  # fmt: skip
    (across, down), (w, h), (x, y) = factors, size, origin
    most = np.iinfo(np.dtype(dtype)).max  # sums of the brightest are where types run over
    values = np.random.default_rng(1).integers(
        int(darkest * most), most + 1, (y + h * down + 2, x + w * across + 1, *samples)
    )
    source = values.astype(dtype)
    cut = values[y : y + h * down, x : x + w * across]
    sums = cut.reshape(h, down, w, across, *samples).sum(axis=(1, 3), dtype=np.int64)
    expected = (2 * sums + down * across) // (2 * down * across)
    room = np.zeros((h + 1, w + 1, *samples), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockmean, "_AT_ONCE_BYTES", at_once)
        result = reduce_area(source, origin=origin, scale=factors, size=size)
        reduce_area(source, origin=origin, scale=factors, size=size, out=room[1:, :-1])
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(room[1:, :-1], expected)
    assert not room[0].any()
    assert not room[:, -1].any()


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_almost_whole_scales_are_what_they_are(scale: float) -> None:
    """Floating point noise is no scale; a shift of one pixel over the width is."""
    source, size = noise(3000, 30, 1), (9, 900)
    noisy = reduce_area(source, origin=(1e-12, -1e-12), scale=(scale + 1e-13, scale - 1e-13), size=size)
    np.testing.assert_array_equal(noisy, reduce_area(source, origin=(0, 0), scale=(scale, scale), size=size))
    shifted = (0.0, 0.0), (scale, scale + 1 / 900)
    assert_rounded(
        reduce_area(source, origin=shifted[0], scale=shifted[1], size=size),
        reference_reduction(source, *shifted, size), dtype=np.uint8,
    )  # fmt: skip


def test_half_is_rounded_up_where_weights_are_fractions() -> None:
    """Fractions decide, for a scale of 8 / 5, whose means hit ties."""
    source = noise(80, 1)
    expected = []
    for low, high in itertools.pairwise(Fraction(8, 5) * k for k in range(51)):
        shares = [max(Fraction(0), min(high, Fraction(i + 1)) - max(low, Fraction(i))) for i in range(80)]
        mean = sum((share * int(source[i, 0]) for i, share in enumerate(shares)), Fraction(0)) / (high - low)
        expected.append(int(mean + Fraction(1, 2)))
    result = reduce_area(source, origin=(0, 0), scale=(1, 1.6), size=(1, 50))
    np.testing.assert_array_equal(result[:, 0], expected)


def test_scale_1_copies_and_the_result_is_the_callers() -> None:
    source = noise(150, 1300, 3)
    result = reduce_area(source, origin=(20, 10), scale=(1, 1), size=(1200, 130))
    np.testing.assert_array_equal(result, source[10:140, 20:1220])
    before = source.copy()
    result[:] = 0
    np.testing.assert_array_equal(source, before)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("scale", [0.98, 1.0, 1.87, 17.3])
def test_white_stays_white_and_nothing_bleeds_in_at_the_border(scale: float, dtype: npt.DTypeLike, top: int) -> None:
    source = np.full((90, 70, 3), top, dtype)
    size = (int(70 / scale) + 1, int(90 / scale) + 1)
    result = reduce_area(source, origin=(-0.4 * scale, -0.6 * scale), scale=(scale, scale), size=size)
    assert (result == top).all()


@pytest.mark.parametrize(
    ("dtype", "pixels"), [(np.uint8, 256), (np.uint8, 257), (np.uint16, 65_536), (np.uint16, 65_537)]
)
def test_the_largest_sums_of_a_type_hold(dtype: type[np.unsignedinteger[Any]], pixels: int) -> None:
    """One more white pixel, and half of the divisor for rounding would be too much."""
    white = np.full((1, 2 * pixels), np.iinfo(dtype).max, dtype)
    result = reduce_area(white, origin=(0, 0), scale=(pixels, 1), size=(2, 1))
    np.testing.assert_array_equal(result, white[:, :2])


def test_a_window_equals_the_crop_of_the_whole() -> None:
    scale = (1.87, 2.31)
    source = noise(500, 600, 3)
    whole = reduce_area(source, origin=(0, 0), scale=scale, size=(320, 216))
    left, top = int(100 * scale[0]), int(50 * scale[1])
    part = reduce_area(
        source[top:, left:],
        origin=(100 * scale[0] - left, 50 * scale[1] - top),
        scale=scale,
        size=(120, 80),
    )
    np.testing.assert_array_equal(part, whole[50:130, 100:220])


def test_weights_do_not_depend_on_where_the_source_was_cut() -> None:
    scale = 1.87  # far from the origin, float noise would move every edge
    whole = resample._area_taps(0.0, scale, 50_000, 93_500, "columns")
    for start in range(0, 49_000, 4999):
        left = int(start * scale)
        part = resample._area_taps(start * scale - left, scale, 1000, 93_500 - left, "columns")
        for name in ("first_weight", "last_weight", "total"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[start : start + 1000])
        np.testing.assert_array_equal(part.first + left, whole.first[start : start + 1000])


def test_views_resample_like_copies() -> None:
    source = noise(300, 400, 3)[::2, ::-1]
    view, copy = (
        reduce_area(pixels, origin=(0.5, 0.25), scale=(1.3, 1.7), size=(200, 80)) for pixels in (source, source.copy())
    )
    np.testing.assert_array_equal(view, copy)


@pytest.mark.parametrize("scale", [0.3, 1.87, 31.0])
def test_temporary_memory_is_a_few_megabytes(scale: float) -> None:
    source = np.zeros((2500, 3000, 3), np.uint8)
    size = (int(1500 / scale) or 1, int(1250 / scale) or 1)
    work = enlarge_bilinear if scale < 1 else reduce_area
    tracemalloc.start()
    result = work(source, origin=(0, 0), scale=(scale, scale), size=size)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes - result.nbytes < 12_000_000


def test_enlarging_keeps_the_border_flat() -> None:
    source = np.array([[0, 100]], np.uint8)
    result = enlarge_bilinear(source, origin=(0, 0), scale=(0.25, 0.5), size=(8, 2))
    np.testing.assert_array_equal(result, [[0, 0, 13, 38, 63, 88, 100, 100]] * 2)


@pytest.mark.parametrize(
    ("origin", "size"), [((0.0, 0.0), (6, 4)), ((-5.0, 0.0), (3, 3)), ((0.0, 8.0), (1, 1)), ((0.0, 0.0), (5, 6))]
)
def test_pixels_without_any_source_are_refused(origin: Pair, size: tuple[int, int]) -> None:
    with pytest.raises(RegionError, match="lie outside the source's"):
        reduce_area(noise(8, 10), origin=origin, scale=(2, 2), size=size)
