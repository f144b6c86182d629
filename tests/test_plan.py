"""Plans: whatever the tiling and the region, what they paint is the crop of a level painted frame by frame.

From the metadata to the array, without a source: instances, pyramid, plan and stitching together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from headers import dataset, frame_group, sparse, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb import stitch
from wsiweb.colour import paint
from wsiweb.errors import MetadataError, RegionError
from wsiweb.geometry import Rectangle
from wsiweb.metadata import Instance
from wsiweb.plan import ReadPlan, RegionPlanner, check_region
from wsiweb.pyramid import Level, Pyramid, build_pyramids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headers import Dataset

Array = npt.NDArray[Any]
Frames = list[tuple[int, int]]
"""Top left corner of each frame, in the order of frame numbers."""


@dataclass(frozen=True, slots=True)
class Slide:
    """Headers, and where all frames lie by optical path and focal plane."""

    headers: list[Dataset]
    size: tuple[int, int]
    tile: tuple[int, int]
    frames: dict[tuple[str, float], list[tuple[tuple[int, int], tuple[int, int]]]]
    """(key, corner) of each frame, in the order of drawing: a key is (instance index, frame index)."""

    def pixels(self, key: tuple[int, int]) -> Array:
        """Return the decoded tile of a frame: no two pixels of the slide are alike, and none is 0."""
        count = self.tile[0] * self.tile[1]
        ordinal = sum(self.frames_of(header) for header in self.headers[: key[0]]) + key[1]
        return np.arange(1 + ordinal * count, 1 + (ordinal + 1) * count, dtype=np.uint16).reshape(self.tile[::-1])

    @staticmethod
    def frames_of(header: Dataset) -> int:
        return int(header["00280008"]["Value"][0])

    def painted(self, channel: tuple[str, float]) -> tuple[Array, Array]:
        """Paint the whole level naively; return its pixels, and how many frames show at each."""
        margin = 64
        width, height = self.size
        canvas = np.zeros((height + 2 * margin, width + 2 * margin), np.uint16)
        depth = np.zeros_like(canvas)
        for key, (x, y) in self.frames[channel]:
            place = np.s_[margin + y : margin + y + self.tile[1], margin + x : margin + x + self.tile[0]]
            canvas[place] = self.pixels(key)
            depth[place] += 1
        inside = np.s_[margin : margin + height, margin : margin + width]
        return canvas[inside], depth[inside]

    def pyramid(self, report: Callable[[str], None] = pytest.fail) -> Pyramid:
        instances = [Instance.from_json(header) for header in self.headers]
        (pyramid,) = build_pyramids([one for one in instances if one is not None], mpp=None, report=report)
        return pyramid


def split(draw: st.DrawFn, count: int) -> list[int]:
    """Cut frames into the parts of a concatenation; return where each begins."""
    return [0, *sorted(draw(st.sets(st.integers(1, count - 1), max_size=3)))] if count > 1 else [0]


sides = st.integers(1, 24)
tile_sides = st.integers(3, 9)


@st.composite
def full_slides(draw: st.DrawFn) -> Slide:
    """TILED_FULL, in one instance or in parts listed in any order, with any paths and planes."""
    size, tile = draw(st.tuples(sides, sides)), draw(st.tuples(tile_sides, tile_sides))
    corners = [(x, y) for y in range(0, size[1], tile[1]) for x in range(0, size[0], tile[0])]
    paths, planes = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    channels = [(f"p{path}", 1.5 * plane) for path in range(paths) for plane in range(planes)]
    count = len(corners) * len(channels)
    starts = split(draw, count)
    headers = [
        volume(
            SOPInstanceUID=f"1.2.{number}",
            TotalPixelMatrixColumns=size[0],
            TotalPixelMatrixRows=size[1],
            Columns=tile[0],
            Rows=tile[1],
            NumberOfFrames=stop - start,
            TotalPixelMatrixFocalPlanes=planes,
            OpticalPathSequence=[dataset(OpticalPathIdentifier=f"p{path}") for path in range(paths)],
            SharedFunctionalGroupsSequence=[
                dataset(PixelMeasuresSequence=[dataset(PixelSpacing=[0.0005, 0.0005], SpacingBetweenSlices=0.0015)])
            ],
            ConcatenationUID="1.9.9" if len(starts) > 1 else None,
            ConcatenationFrameOffsetNumber=start if len(starts) > 1 else None,
        )
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], count], strict=True))
    ]
    order = draw(st.permutations(range(len(headers))))
    key_of = {
        starts[part] + n: (position, n)
        for position, part in enumerate(order)
        for n in range(Slide.frames_of(headers[part]))
    }
    frames = {
        channel: [(key_of[number * len(corners) + n], corner) for n, corner in enumerate(corners)]
        for number, channel in enumerate(channels)
    }
    return Slide([headers[part] for part in order], size, tile, frames)


@st.composite
def sparse_slides(draw: st.DrawFn) -> Slide:
    """TILED_SPARSE: on a grid or anywhere, overlapping, twice, not at all; in one instance or in parts."""
    size, tile = draw(st.tuples(sides, sides)), draw(st.tuples(tile_sides, tile_sides))
    grid = [(x, y) for y in range(0, size[1], tile[1]) for x in range(0, size[0], tile[0])]
    anywhere = st.tuples(st.integers(-12, 30), st.integers(-12, 30))
    corners = draw(st.lists(st.sampled_from(grid) | anywhere if draw(st.booleans()) else st.sampled_from(grid),
                            min_size=1, max_size=20))  # fmt: skip
    channels = draw(st.lists(st.sampled_from([("A", 0.0), ("B", 0.0), ("A", 2.5)]), min_size=len(corners),
                             max_size=len(corners)))  # fmt: skip
    starts = split(draw, len(corners))
    headers = []
    frames: dict[tuple[str, float], list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(corners)], strict=True)):
        members = list(zip(corners[start:stop], channels[start:stop], strict=True))
        header = sparse(
            corners[start:stop],
            SOPInstanceUID=f"1.2.{number}",
            TotalPixelMatrixColumns=size[0],
            TotalPixelMatrixRows=size[1],
            Columns=tile[0],
            Rows=tile[1],
            OpticalPathSequence=[dataset(OpticalPathIdentifier=path) for path in "AB"],
            ConcatenationUID="1.9.9" if len(starts) > 1 else None,
            ConcatenationFrameOffsetNumber=start if len(starts) > 1 else None,
        )
        header["52009230"]["Value"] = [frame_group(*corner, path=path, z_um=z) for corner, (path, z) in members]
        headers.append(header)
        for n, (corner, channel) in enumerate(members):
            frames.setdefault(channel, []).append(((number, n), corner))
    return Slide(headers, size, tile, frames)


def coverage(plan: ReadPlan) -> Array:
    """Count how often a plan writes each pixel of its output."""
    counts = np.zeros(plan.shape[:2], int)
    for row in range(len(plan.keys)):
        _, _, tx, ty, w, h = plan.place(row)
        assert min(tx, ty) >= 0
        assert min(w, h) > 0
        assert tx + w <= plan.shape[1]
        assert ty + h <= plan.shape[0]
        counts[ty : ty + h, tx : tx + w] += 1
    return counts


def crop(level: Array, region: Rectangle) -> Array:
    """Cut a region out, with zeros outside of the level."""
    rows, columns = np.arange(region.y, region.bottom), np.arange(region.x, region.right)
    seen = ((rows >= 0) & (rows < level.shape[0]))[:, None] & ((columns >= 0) & (columns < level.shape[1]))
    pixels = level[np.clip(rows, 0, level.shape[0] - 1)][:, np.clip(columns, 0, level.shape[1] - 1)]
    return np.where(seen, pixels, 0)


regions = st.builds(Rectangle, st.integers(-8, 26), st.integers(-8, 26), st.integers(1, 40), st.integers(1, 40))


def check(slide: Slide, region: Rectangle, *, exactly_once: bool) -> None:
    pyramid = slide.pyramid()
    (level,) = pyramid.levels
    assert set(pyramid.channels) == {(0, *channel) for channel in slide.frames}
    for channel, frames in slide.frames.items():
        plan = RegionPlanner(level, [pyramid.channels[0, *channel]], stacked=False).plan(region)
        corner_of = dict(frames)
        assert len(set(plan.keys)) == len(plan.keys)
        inside = region.intersection(level.bounds)
        touching = {k for k, corner in frames if not Rectangle(*corner, *slide.tile).intersection(inside).empty}
        last = {corner: key for key, corner in frames}
        assert set(plan.keys) == {key for key in touching if last[corner_of[key]] == key}
        pixels, depth = slide.painted(channel)
        counts = coverage(plan)
        assert ((counts > 0) == (crop(depth, region) > 0)).all()
        if exactly_once or not plan.ordered:
            assert counts.max() <= 1
        assert not plan.covered or (counts == 1).all()
        if not plan.ordered and (counts == 1).all():
            assert plan.covered  # else the background would be painted for nothing
        for row, key in enumerate(plan.keys):
            x, y = corner_of[key]
            visible = min(slide.tile[0], slide.size[0] - x), min(slide.tile[1], slide.size[1] - y)
            assert plan.visible(row) == visible
        array = np.empty(plan.shape, plan.dtype)
        if not plan.covered:
            paint(array, plan.background)
        assert (array.shape, array.dtype.name) == ((region.h, region.w), "uint16")
        rows = range(len(plan.keys)) if plan.ordered else reversed(range(len(plan.keys)))
        for row in rows:
            stitch.paste(array, slide.pixels(plan.keys[row]), plan, row)
        np.testing.assert_array_equal(array, crop(pixels, region))


@given(full_slides(), regions)
@settings(max_examples=150, deadline=None)
def test_full_regions_are_crops(slide: Slide, region: Rectangle) -> None:
    check(slide, region, exactly_once=True)


@given(sparse_slides(), regions)
@settings(max_examples=300, deadline=None)
def test_sparse_regions_are_crops(slide: Slide, region: Rectangle) -> None:
    """The higher frame number wins, across the parts of a concatenation too."""
    check(slide, region, exactly_once=False)


def test_an_overlap_does_not_make_up_for_a_gap() -> None:
    """Two tiles of 6 x 5 have as many pixels as the level of 12 x 5, and leave 3 columns of it bare."""
    corners = [(0, 0), (3, 0)]
    header = sparse(corners, Columns=6, Rows=5, TotalPixelMatrixColumns=12, TotalPixelMatrixRows=5)
    pyramid = Slide([header], (12, 5), (6, 5), {}).pyramid()
    channel = pyramid.channel(0, None, None)
    plan = RegionPlanner(pyramid.levels[0], [channel], stacked=False).plan(Rectangle(0, 0, 12, 5))
    assert (plan.area, plan.ordered, plan.covered) == (60, True, False)


@given(full_slides(), regions)
@settings(max_examples=50, deadline=None)
def test_stacked_channels(slide: Slide, region: Rectangle) -> None:
    pyramid = slide.pyramid()
    (level,) = pyramid.levels
    names = [channel for channel in slide.frames if channel[1] == 0.0]
    plan = RegionPlanner(level, [pyramid.channels[0, *name] for name in names], stacked=True).plan(region)
    array = np.empty(plan.shape, plan.dtype)
    if not plan.covered:
        paint(array, plan.background)
    assert array.shape == (region.h, region.w, len(names))
    assert plan.covered == level.bounds.contains(region)
    for row, key in enumerate(plan.keys):
        stitch.paste(array, slide.pixels(key), plan, row)
    for number, name in enumerate(names):
        np.testing.assert_array_equal(array[..., number], crop(slide.painted(name)[0], region))


@given(st.integers(1, 11), st.integers(1, 11), regions)
@settings(max_examples=80, deadline=None)
def test_a_missing_part_costs_only_what_it_held(first_end: int, second_start: int, region: Rectangle) -> None:
    """4 x 3 tiles of 6 x 5 in two parts with a gap between them, or the end missing; the rest still reads."""
    first_end, second_start = sorted((first_end, second_start))
    common = {"Columns": 6, "Rows": 5, "TotalPixelMatrixColumns": 23, "TotalPixelMatrixRows": 14}
    headers = [
        volume(**common, SOPInstanceUID=f"1.2.{start}", NumberOfFrames=count, ConcatenationUID="1.9.9",
               ConcatenationFrameOffsetNumber=start)
        for start, count in ((0, first_end), (second_start, 11 - second_start)) if count
    ]  # fmt: skip
    corners = [(x, y) for y in (0, 5, 10) for x in (0, 6, 12, 18)]
    held = set(range(first_end)) | set(range(second_start, 11))
    pyramid = Slide(headers, (23, 14), (6, 5), {}).pyramid()
    level, channel = pyramid.levels[0], pyramid.channel(0, None, None)
    inside = region.intersection(level.bounds)
    needed = {n for n, corner in enumerate(corners) if not Rectangle(*corner, 6, 5).intersection(inside).empty}
    if needed <= held:
        assert len(RegionPlanner(level, [channel], stacked=False).plan(region).keys) == len(needed)
    else:
        with pytest.raises(MetadataError, match=rf"^Frame {min(needed - held) + 1} of concatenation 1\.9\.9"):
            RegionPlanner(level, [channel], stacked=False).plan(region)


@pytest.mark.parametrize(("offsets", "counts"), [((0, 5), (6, 6)), ((0, 0), (12, 12)), ((0, 6), (6, 7)), ((1,), (12,))])
def test_parts_that_overlap_or_exceed_the_matrix_are_refused(offsets: Sequence[int], counts: Sequence[int]) -> None:
    headers = [
        volume(SOPInstanceUID=f"1.2.{n}", NumberOfFrames=count, ConcatenationUID="1.9.9",
               ConcatenationFrameOffsetNumber=offset)
        for n, (offset, count) in enumerate(zip(offsets, counts, strict=True))
    ]  # fmt: skip
    with pytest.raises(MetadataError, match=r"1\.2\.\d"):
        Slide(headers, (250, 140), (64, 48), {}).pyramid()


def test_planes_that_nothing_tells_apart_do_not_hide_each_other() -> None:
    """Two planes without SpacingBetweenSlices: the first is shown, which is said; never the last."""
    header, problems = volume(TotalPixelMatrixFocalPlanes=2, NumberOfFrames=24), list[str]()
    pyramid = Slide([header], (250, 140), (64, 48), {}).pyramid(problems.append)
    assert ["2 focal planes" in problem for problem in problems] == [True]
    plan = RegionPlanner(pyramid.levels[0], [pyramid.channel(0, None, 0.0)], stacked=False).plan(
        Rectangle(0, 0, 64, 48)
    )
    assert plan.keys == [(0, 0)]


def level_of(width: int, height: int) -> Level:
    header = volume(Columns=width, Rows=height, TotalPixelMatrixColumns=width, TotalPixelMatrixRows=height,
                    NumberOfFrames=1)  # fmt: skip
    return Slide([header], (width, height), (width, height), {}).pyramid().levels[0]


@given(regions, st.integers(1, 24), st.integers(1, 24))
@settings(max_examples=150, deadline=None)
def test_only_regions_that_touch_pass(region: Rectangle, width: int, height: int) -> None:
    bounds = level_of(width, height).bounds
    if -region.w < region.x < width and -region.h < region.y < height:
        check_region(region, bounds, where="Level 0", itemsize=2, max_region_bytes=1 << 20)
    else:
        with pytest.raises(RegionError, match=re.escape(f"{width} x {height} pixels; the region {region} lies")):
            check_region(region, bounds, where="Level 0", itemsize=2, max_region_bytes=1 << 20)


@pytest.mark.parametrize(("w", "h"), [(0, 5), (5, 0), (-1, 5), (5, -1), (0, 0)])
def test_a_region_has_pixels(w: int, h: int) -> None:
    with pytest.raises(RegionError, match=rf"at least one pixel; {w} x {h}"):
        check_region(Rectangle(0, 0, w, h), Rectangle(0, 0, 9, 9), where="Level 0", itemsize=1, max_region_bytes=100)


def test_the_bound_on_memory_is_sharp() -> None:
    bounds, region = Rectangle(0, 0, 10**6, 10**6), Rectangle(5, 5, 100, 50)
    check_region(region, bounds, where="Level 2", itemsize=3, max_region_bytes=15_000)
    with pytest.raises(RegionError, match=r"level 2 would need 15,000 bytes; max_region_bytes is 14,999"):
        check_region(region, bounds, where="Level 2", itemsize=3, max_region_bytes=14_999)


def test_colour_has_three_samples_and_its_background() -> None:
    header = volume(
        SamplesPerPixel=3, PhotometricInterpretation="RGB", BitsAllocated=8, BitsStored=8,
        RecommendedAbsentPixelCIELabValue=[0, 32_896, 32_896],
    )  # fmt: skip
    pyramid = Slide([header], (250, 140), (64, 48), {}).pyramid()
    plan = RegionPlanner(pyramid.levels[0], [pyramid.channel(0, None, None)], stacked=False).plan(
        Rectangle(-5, 0, 10, 7)
    )
    assert (plan.shape, plan.dtype.name) == ((7, 10, 3), "uint8")
    assert (plan.background, plan.output_bytes) == ((0, 0, 0), 210)
    assert not plan.covered
