"""Optical paths and focal planes: in one instance, in several, in several series; from files and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from kinds_writer import (
    KEY,
    SIZE,
    TILE,
    add_level,
    assert_image,
    assert_reads,
    assert_same,
    blank,
    frames_of,
    images_for,
    new_slide,
    note_level,
    open_series,
    place_frames,
    store,
)
from pydicom.uid import generate_uid
from synthetic import pattern, srgb_profile

from wsiweb import MetadataWarning, ReadOptions, RegionError, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array, Content, PlaneKey, SyntheticSlide

Layout = Literal["together", "apart"]
SIZES = (SIZE, (75, 55))


def channel_slide(folder: Path, paths: Sequence[str], planes: Sequence[float], layout: Layout) -> SyntheticSlide:
    """Write a slide of uint16 channels: all of a level in one instance, or one instance for each."""
    slide = new_slide(folder)
    keys = [(path, plane) for path in paths for plane in planes]
    for n, size in enumerate(SIZES):
        images = images_for(keys, size, "mono16", salt=20 * n)
        mpp = (0.5 * SIZE[0] / size[0], 0.5 * SIZE[1] / size[1])
        for group in [keys] if layout == "together" else [[key] for key in reversed(keys)]:
            ds = blank(slide, size, content="mono16", keys=group, mpp=mpp)
            frames = [frame for key in group for frame in frames_of(images[key])]
            store(slide, ds, frames, name=f"{n}")
        note_level(slide, ds, images, [], mpp=mpp)
    return slide


def stacked(images: dict[PlaneKey, Array], paths: Sequence[str], plane: float) -> Array:
    return np.stack([images[path, plane] for path in paths], axis=-1)


@pytest.mark.parametrize("layout", ["together", "apart"])
def test_all_paths_and_planes(tmp_path: Path, open_slide: Opener, layout: Layout) -> None:
    slide = channel_slide(tmp_path, ("1", "2", "10"), (0.0, 1.5, 3.0), layout)
    opened = open_slide(slide)
    assert opened.optical_paths == ("1", "2", "10")
    assert opened.focal_planes == (0.0, 1.5, 3.0)
    assert opened.dtype == np.uint16
    assert_reads(opened, slide)
    for index, level in enumerate(slide.levels):
        assert_image(opened, index, level.pixels["1", 1.5])
        assert_image(opened, index, level.pixels["10", 1.5], optical_path="10")
        assert_image(opened, index, level.pixels["1", 3.0], focal_plane=3.0)


@pytest.mark.parametrize("layout", ["together", "apart"])
def test_all_stacks_channels(tmp_path: Path, open_slide: Opener, layout: Layout) -> None:
    slide = channel_slide(tmp_path, ("A", "B"), (0.0, 2.0, 4.0), layout)
    opened = open_slide(slide)
    expected = stacked(slide.levels[0].pixels, ("A", "B"), 2.0)
    assert_image(opened, 0, expected, optical_path="all")
    assert_image(opened, 1, stacked(slide.levels[1].pixels, ("A", "B"), 4.0), optical_path="all", focal_plane=4.0)
    over = opened.read_region(0, -7, -5, 40, 30, optical_path="all")
    assert over.flags.c_contiguous
    assert over.shape == (30, 40, 2)
    assert not over[:5].any()
    assert not over[:, :7].any()
    np.testing.assert_array_equal(over[5:, 7:], expected[:25, :33])
    regions = [(0, 0, 20, 20), (100, 60, 70, 70)]
    for (x, y, w, h), read in zip(regions, opened.read_regions(0, regions, optical_path="all"), strict=True):
        inside = expected[y : y + h, x : x + w]
        np.testing.assert_array_equal(read[: inside.shape[0], : inside.shape[1]], inside)
    assert opened.read_region_mpp(0.8, 0, 0, 20, 20, optical_path="all").shape == (20, 20, 2)


def test_all_of_one_path_has_one_channel(tmp_path: Path, open_slide: Opener) -> None:
    slide = channel_slide(tmp_path, ("A",), (0.0,), "together")
    image = slide.levels[0].pixels["A", 0.0]
    assert_same(open_slide(slide).read_region(0, 0, 0, *SIZE, optical_path="all"), image[..., None])


@pytest.mark.parametrize("layout", ["together", "apart"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("declared", [("B", "A", "C"), ("C", "B", "A")])
def test_paths_are_in_the_order_of_their_sequence(
    tmp_path: Path, open_slide: Opener, layout: Layout, sparse: bool, declared: tuple[str, ...]
) -> None:
    """Whichever has the first frame, or the lowest UID; the first is the default. What is not in it comes last."""
    slide = new_slide(tmp_path)
    shown = ("A", "C", "B", "0") if sparse else declared if layout == "together" else ("A", "C", "B")
    images = images_for([(path, 0.0) for path in shown], TILE, "mono8")
    for group in [shown] if layout == "together" else [(path,) for path in shown]:
        ds = blank(slide, TILE, content="mono8", keys=[(path, 0.0) for path in declared])
        if sparse:
            place_frames(ds, [((0, 0), (path, 0.0)) for path in group])
        elif layout == "apart":
            # Of TILED_FULL the sequence is that of the frames, so that it starts with the instance's own.
            ds.OpticalPathSequence = [item for item in ds.OpticalPathSequence if item.OpticalPathIdentifier == group[0]]
            ds.NumberOfOpticalPaths = 1
        store(slide, ds, [images[path, 0.0].tobytes() for path in group], name="".join(group))
    opened = open_slide(slide)
    expected = (*declared, "0") if sparse else declared if layout == "together" else ("A", "B", "C")
    assert opened.optical_paths == expected
    assert_image(opened, 0, images[expected[0], 0.0])
    assert_image(opened, 0, np.stack([images[path, 0.0] for path in expected], axis=-1), optical_path="all")


@pytest.mark.parametrize(
    ("character_set", "paths"),
    [
        (None, ("B", "A")),
        ("ISO_IR 192", ("δ-catenin", "β-catenin")),
        ("ISO_IR 126", ("δ-catenin", "β-catenin")),
        ("GB18030", ("染色", "对照")),
        (["", "ISO 2022 IR 87"], ("染色", "対照")),
    ],
)
def test_paths_are_named_in_the_character_set(
    tmp_path: Path, open_slide: Opener, character_set: str | list[str] | None, paths: tuple[str, ...]
) -> None:
    """Of the dataset (PS3.3 C.12.1.1.2), with which the frames' own groups are written too."""
    slide = new_slide(tmp_path)
    images = images_for([(path, 0.0) for path in paths], TILE, "mono8")
    ds = blank(slide, TILE, content="mono8", keys=list(images))
    if character_set is not None:
        ds.SpecificCharacterSet = character_set
    ds.OpticalPathSequence[0].ICCProfile = srgb_profile()
    place_frames(ds, [((0, 0), key) for key in images])
    store(slide, ds, [image.tobytes() for image in images.values()], name="0")
    opened = open_slide(slide)
    assert opened.optical_paths == paths
    assert opened.icc_profile == srgb_profile()
    assert_image(opened, 0, images[paths[1], 0.0], optical_path=paths[1])


def test_the_order_is_that_of_the_finest_level(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    for size, order in zip(SIZES, (("B", "A"), ("A", "B")), strict=True):
        keys = [(path, 0.0) for path in order]
        ds = blank(slide, size, content="mono8", keys=keys, mpp=(0.5 * SIZE[0] / size[0], 0.5 * SIZE[1] / size[1]))
        add_level(slide, ds, images_for(keys, size, "mono8"), name=order[0])
    opened = open_slide(slide)
    assert opened.optical_paths == ("B", "A")
    assert_image(opened, 0, slide.levels[0].pixels["B", 0.0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("identifiers", [("DAPI", "FITC"), ("1", "1")])
def test_a_series_for_each_channel(
    tmp_path: Path, open_slide: Opener, reverse: bool, identifiers: tuple[str, str]
) -> None:
    """IDC's multiplex slides; their identifiers may be the same. The order is that of ``series_uid``."""
    slide = new_slide(tmp_path)
    series, images = [slide.series_uid, generate_uid()], []
    for n, uid in enumerate(series):
        slide.series_uid = uid
        key, frame_of_reference = (identifiers[n], 0.0), generate_uid()
        for m, size in enumerate(SIZES):
            ds = blank(slide, size, content="mono16", keys=[key], mpp=(0.5 * (m + 1), 0.5 * (m + 1)))
            ds.FrameOfReferenceUID = frame_of_reference
            add_level(slide, ds, {key: pattern("mono16", *size, salt=7 * n + m)})
        images.append(slide.levels[-2].pixels[key])
    if reverse:
        series, images = series[::-1], images[::-1]
    opened = open_series(open_slide, slide, series)
    assert len(set(opened.optical_paths)) == 2
    assert len(opened.levels) == 2
    for path, image in zip(opened.optical_paths, images, strict=True):
        assert_image(opened, 0, image, optical_path=path)
    assert_image(opened, 0, images[0])
    assert_image(opened, 0, np.stack(images, axis=-1), optical_path="all")


@pytest.mark.parametrize(
    ("planes", "default"),
    [
        ((-2.0, -1.0, 0.0, 1.0, 2.0), 0.0),
        ((10.0, 20.0, 30.0), 20.0),
        ((0.0, 1.5), 0.0),
        ((0.0, 1.0, 2.0, 3.0), 1.0),
        ((-3.0, -1.5), -3.0),
    ],
)
@pytest.mark.parametrize("layout", ["together", "apart"])
def test_default_plane(
    tmp_path: Path, open_slide: Opener, planes: tuple[float, ...], default: float, layout: Layout
) -> None:
    """Nearest the middle of the lowest and the highest; the lower at a tie."""
    slide = channel_slide(tmp_path, ("1",), planes, layout)
    opened = open_slide(slide)
    assert opened.focal_planes == planes
    assert_image(opened, 0, slide.levels[0].pixels["1", default])


@pytest.mark.parametrize(
    ("planes", "default"), [((0.0, 1.0, 10.0), 1.0), ((0.0, 4.0, 6.0, 10.0), 4.0), ((0.0, 9.0, 9.5, 10.0), 9.0)]
)
@pytest.mark.parametrize("sparse", [True, False])
def test_default_plane_at_uneven_spacing(
    tmp_path: Path, open_slide: Opener, planes: tuple[float, ...], default: float, sparse: bool
) -> None:
    """The middle is that of the range, not of the list."""
    keys = [("1", plane) for plane in planes]
    images = images_for(keys)
    slide = new_slide(tmp_path)
    if sparse:
        ds = blank(slide, content="mono8", keys=keys)
        places = [(x, y) for y in (0, 48, 96) for x in (0, 64, 128)]
        place_frames(ds, [(place, key) for key in keys for place in places])
        store(slide, ds, [frame for key in keys for frame in frames_of(images[key])])
    else:
        for key in keys:
            store(slide, blank(slide, content="mono8", keys=[key]), frames_of(images[key]))
    note_level(slide, blank(slide), images, [])
    opened = open_slide(slide)
    assert opened.focal_planes == planes
    assert_image(opened, 0, images["1", default])
    assert_reads(opened, slide)


@pytest.mark.parametrize("where", ["origin", "shared", "nowhere"])
def test_where_the_first_plane_is_stated(tmp_path: Path, open_slide: Opener, where: str) -> None:
    """ZOffsetInSlideCoordinateSystem (µm), else 0, plus multiples of SpacingBetweenSlices (mm)."""
    slide = new_slide(tmp_path)
    first = 0.0 if where == "nowhere" else 12.5
    keys = [("1", first + 2.5 * n) for n in range(3)]
    ds = blank(slide, content="mono8", keys=keys)
    origin = ds.TotalPixelMatrixOriginSequence[0]
    if where == "shared":
        plane = type(ds)()
        plane.ZOffsetInSlideCoordinateSystem = first
        ds.SharedFunctionalGroupsSequence[0].PlanePositionSlideSequence = [plane]
    if where != "origin":
        del origin.ZOffsetInSlideCoordinateSystem
    add_level(slide, ds, images_for(keys))
    opened = open_slide(slide)
    assert opened.focal_planes == pytest.approx(tuple(plane for _, plane in keys))
    for key, image in slide.levels[0].pixels.items():
        assert_image(opened, 0, image, focal_plane=key[1])


def test_planes_of_level_0_only(tmp_path: Path, open_slide: Opener) -> None:
    """A z-stack whose coarser levels have one plane: they read by default; a plane they lack does not exist there."""
    slide = new_slide(tmp_path)
    keys = [("1", float(plane)) for plane in range(5)]
    stack, single = images_for(keys), images_for(keys[:1], SIZES[1], salt=30)
    add_level(slide, blank(slide, content="mono8", keys=keys), stack)
    add_level(slide, blank(slide, SIZES[1], content="mono8", keys=keys[:1], mpp=(1.0, 1.0)), single)
    opened = open_slide(slide)
    assert_image(opened, 0, stack[keys[2]])
    assert_image(opened, 1, single[keys[0]])
    assert_image(opened, 1, single[keys[0]], focal_plane=0.0)
    requests = open_slide.requests()
    with pytest.raises(RegionError):
        opened.read_region(1, 0, 0, 5, 5, focal_plane=4.0)
    assert open_slide.requests() == requests


def test_a_level_without_the_default_plane_shows_the_nearest(tmp_path: Path, open_slide: Opener) -> None:
    """Of the path that is asked for; who names a plane gets that one, or an error."""
    slide = new_slide(tmp_path)
    fine = [(path, plane) for path in "ab" for plane in (0.0, 2.0, 4.0, 6.0, 8.0)]
    coarse = [(path, plane) for path in "ab" for plane in (0.0, 3.0, 6.0)]
    for size, keys, salt in ((SIZE, fine, 0), ((75, 55), coarse, 40)):
        add_level(slide, blank(slide, size, content="mono8", keys=keys), images_for(keys, size, salt=salt))
    opened, images = open_slide(slide), slide.levels[1].pixels
    assert_image(opened, 1, images["a", 3.0])
    assert_image(opened, 1, images["b", 3.0], optical_path="b")
    assert_image(opened, 1, stacked(images, ("a", "b"), 3.0), optical_path="all")
    with pytest.raises(RegionError, match="focal plane"):
        opened.read_region(1, 0, 0, 9, 9, focal_plane=4.0)


def test_channels_that_do_not_exist(tmp_path: Path, open_slide: Opener) -> None:
    slide = channel_slide(tmp_path, ("A", "B"), (0.0, 2.0), "together")
    opened = open_slide(slide)
    requests = open_slide.requests()
    wrong: list[dict[str, Any]] = [
        {"optical_path": "C"},
        {"optical_path": ""},
        {"focal_plane": 1.0},
        {"focal_plane": float("nan")},
        {"focal_plane": 2.1, "optical_path": "all"},
    ]
    for channel in wrong:
        with pytest.raises(RegionError):
            opened.read_region(0, 0, 0, 5, 5, **channel)
    assert open_slide.requests() == requests


@pytest.mark.parametrize("count", [None, 3])
def test_paths_that_are_not_described(tmp_path: Path, open_slide: Opener, count: int | None) -> None:
    """OpticalPathSequence absent: as many as NumberOfOpticalPaths says, else one."""
    slide = new_slide(tmp_path)
    keys = [(f"{n}", 0.0) for n in range(count or 1)]
    ds = blank(slide, content="mono8", keys=keys)
    del ds.OpticalPathSequence
    ds.NumberOfOpticalPaths = count
    images = images_for(keys)
    add_level(slide, ds, images)
    opened = open_slide(slide)
    assert len(opened.optical_paths) == len(keys)
    for path, image in zip(opened.optical_paths, images.values(), strict=True):
        assert_image(opened, 0, image, optical_path=path)


def test_channels_of_different_depths(tmp_path: Path, open_slide: Opener) -> None:
    """Together they are as deep as the deepest, also where that is counted beforehand."""
    slide, paths = new_slide(tmp_path), ("a", "b")
    series = [slide.series_uid, generate_uid()]
    contents: tuple[Content, Content] = "mono8", "mono16"
    images = [pattern(content, *SIZE, salt=7) for content in contents]
    for uid, path, content, image in zip(series, paths, contents, images, strict=True):
        slide.series_uid = uid
        add_level(slide, blank(slide, content=content, keys=[(path, 0.0)]), {(path, 0.0): image})
    opened = open_series(open_slide, slide, series, options=ReadOptions(max_region_bytes=40 * 30 * 2 * 2))
    region = opened.read_region(0, 0, 0, 40, 30, optical_path="all")
    np.testing.assert_array_equal(region, np.stack([image[:30, :40] for image in images], axis=-1))
    with pytest.raises(RegionError, match="max_region_bytes"):
        opened.read_region(0, 0, 0, 40, 31, optical_path="all")


def test_colour_cannot_be_stacked(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    add_level(slide, blank(slide), {KEY: pattern("rgb", *SIZE, salt=1)})
    with pytest.raises(WsiWebError):
        open_slide(slide).read_region(0, 0, 0, 5, 5, optical_path="all")


@pytest.mark.parametrize(
    ("path", "content", "taken"), [("A", "mono16", True), ("B", "mono16", False), ("A", "mono8", False)]
)
def test_the_thumbnail_is_of_the_default_path(
    tmp_path: Path, open_slide: Opener, path: str, content: Content, taken: bool
) -> None:
    """And as deep as the levels are; a stored one of another path, or of 8 bits, does not serve."""
    slide = new_slide(tmp_path)
    for name in ("A", "B"):
        ds = blank(slide, content="mono16", keys=[(name, 0.0)])
        add_level(slide, ds, images_for([(name, 0.0)], SIZE, "mono16", salt=ord(name)), name=name)
    picture = pattern(content, 75, 55, salt=9)
    ds = blank(slide, (75, 55), tile_size=(75, 55), content=content, keys=[(path, 0.0)], flavor="THUMBNAIL")
    store(slide, ds, [picture.tobytes()], name="0")
    opened = open_slide(slide)
    assert opened.optical_paths == ("A", "B")
    shown = opened.thumbnail(75)
    assert shown.dtype == np.uint16
    assert np.array_equal(shown, picture) == taken


def test_planes_that_nothing_tells_apart(tmp_path: Path, open_slide: Opener) -> None:
    """TILED_FULL has no other place for their distance than SpacingBetweenSlices; that planes are hidden is said."""
    slide, keys = new_slide(tmp_path), [("1", plane) for plane in (0.0, 1.0, 2.0)]
    images = images_for(keys)
    for n, size in enumerate(SIZES):
        ds = blank(slide, size, content="mono8", keys=keys, mpp=(0.5 * (n + 1), 0.5 * (n + 1)))
        del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        add_level(slide, ds, images if n == 0 else images_for(keys, size))
    with pytest.warns(MetadataWarning, match=r"3 focal planes.*SpacingBetweenSlices") as warned:
        opened = open_slide(slide)
    assert len(warned) == 1
    assert opened.focal_planes == (0.0,)
    assert_image(opened, 0, images["1", 0.0])
