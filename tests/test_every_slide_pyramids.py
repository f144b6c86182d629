"""Several pyramids in one series: told apart, stable, and with the default that the contract documents."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kinds_writer import KEY, SIZE, add_level, assert_reads, blank, images_for, new_slide, store
from pydicom.uid import generate_uid
from synthetic import SyntheticSlide, pattern, srgb_profile

from wsiweb import RegionError, Slide, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from conftest import Opener
    from pydicom import Dataset

LARGE = (SIZE, (75, 55))
SMALL = ((120, 90), (60, 45))


def add_pyramid(
    slide: SyntheticSlide,
    sizes: Sequence[tuple[int, int]],
    change: Callable[[Dataset], None],
    *,
    salt: int,
    names: Sequence[str] = ("a", "b"),
    base_mpp: float = 0.5,
) -> SyntheticSlide:
    """Write a pyramid into a slide's series; returns it as a slide of its own."""
    pyramid = SyntheticSlide(slide.folder, slide.study_uid, slide.series_uid)
    for n, (size, name) in enumerate(zip(sizes, names, strict=False)):
        mpp = (base_mpp * sizes[0][0] / size[0], base_mpp * sizes[0][1] / size[1])
        ds = blank(slide, size, mpp=mpp)
        change(ds)
        add_level(pyramid, ds, {KEY: pattern("rgb", *size, salt=salt + 5 * n)}, name=name, mpp=mpp)
    return pyramid


def with_attributes(**attributes: object) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)

    return change


def moved_to(x_mm: float, y_mm: float) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        origin = ds.TotalPixelMatrixOriginSequence[0]
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = x_mm, y_mm

    return change


def assert_pyramids(open_slide: Opener, expected: Sequence[SyntheticSlide]) -> None:
    """The pyramids are those, in that order; the first is open unless another is asked for."""
    with open_slide(expected[0]) as opened:
        assert len(opened.pyramids) == len(expected)
        assert_reads(opened, expected[0])
    for index, pyramid in enumerate(expected):
        with open_slide(pyramid, pyramid=index) as opened:
            assert_reads(opened, pyramid)


@pytest.mark.parametrize("sizes", [(LARGE, SMALL), (SMALL, LARGE)])
def test_pyramid_uids(tmp_path: Path, open_slide: Opener, sizes: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    """The default is the one with the largest level 0, whatever its UID; each is reached by its UID as well."""
    slide = new_slide(tmp_path)
    uids = sorted(generate_uid() for _ in sizes)
    pyramids = [
        add_pyramid(slide, size, with_attributes(PyramidUID=uid), salt=20 * n, names=(f"{n}", f"{9 - n}"))
        for n, (size, uid) in enumerate(zip(sizes, uids, strict=True))
    ]
    by_size = sorted(zip(pyramids, uids, strict=True), key=lambda item: -item[0].levels[0].size[0])
    assert_pyramids(open_slide, [pyramid for pyramid, _ in by_size])
    for pyramid, uid in by_size:
        opened = open_slide(pyramid, pyramid=uid)
        assert_reads(opened, pyramid)
        assert [p.uid for p in opened.pyramids] == [uid for _, uid in by_size]
    for wrong in (2, -1, generate_uid()):
        with pytest.raises(WsiWebError, match=uids[0]):
            open_slide(slide, pyramid=wrong)


@pytest.mark.parametrize("swapped", [False, True])
def test_of_equal_sizes_the_lowest_uid_is_the_default(tmp_path: Path, open_slide: Opener, swapped: bool) -> None:
    slide = new_slide(tmp_path)
    uids = ["1.2.3.4.5", "1.2.3.4.6"]
    pyramids = {
        uid: add_pyramid(slide, LARGE, with_attributes(PyramidUID=uid), salt=20 * n, names=(f"{n}", f"{9 - n}"))
        for n, uid in enumerate(reversed(uids) if swapped else uids)
    }
    assert_pyramids(open_slide, [pyramids[uid] for uid in uids])


def test_extended_depth_of_field_comes_after(tmp_path: Path, open_slide: Opener) -> None:
    """At the same size; even where its UID is lower. It never mixes with the planes that it was made of."""
    slide = new_slide(tmp_path)
    first = {"PyramidUID": "1.2.3.1", "ExtendedDepthOfField": "YES", "NumberOfFocalPlanes": 5}
    extended = add_pyramid(slide, LARGE, with_attributes(**first), salt=0)
    plain = add_pyramid(slide, LARGE, with_attributes(PyramidUID="1.2.3.2", ExtendedDepthOfField="NO"), salt=30)
    assert_pyramids(open_slide, [plain, extended])


def test_extended_depth_of_field_without_pyramid_uid(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    extended = add_pyramid(slide, LARGE, with_attributes(ExtendedDepthOfField="YES"), salt=0)
    plain = add_pyramid(slide, LARGE, with_attributes(ExtendedDepthOfField="NO"), salt=30)
    assert_pyramids(open_slide, [plain, extended])


def test_a_larger_extended_depth_of_field_is_the_default(tmp_path: Path, open_slide: Opener) -> None:
    """Size goes first."""
    slide = new_slide(tmp_path)
    extended = add_pyramid(slide, LARGE, with_attributes(ExtendedDepthOfField="YES"), salt=0)
    plain = add_pyramid(slide, SMALL, with_attributes(ExtendedDepthOfField="NO"), salt=30)
    assert_pyramids(open_slide, [extended, plain])


def test_frames_of_reference(tmp_path: Path, open_slide: Opener) -> None:
    """Without Pyramid UIDs: what lies in another coordinate system is another picture."""
    slide = new_slide(tmp_path)
    small = add_pyramid(slide, SMALL, with_attributes(FrameOfReferenceUID=generate_uid()), salt=0)
    large = add_pyramid(slide, LARGE, with_attributes(FrameOfReferenceUID=generate_uid()), salt=30)
    assert_pyramids(open_slide, [large, small])


def test_a_pyramid_uid_goes_before_the_frame_of_reference(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    frames_of_reference = iter([generate_uid(), generate_uid()])

    def change(ds: Dataset) -> None:
        ds.PyramidUID, ds.FrameOfReferenceUID = "1.2.3.4", next(frames_of_reference)

    assert_pyramids(open_slide, [add_pyramid(slide, LARGE, change, salt=0)])


def test_two_pieces_of_tissue_on_one_glass(tmp_path: Path, open_slide: Opener) -> None:
    """Same frame of reference, no Pyramid UID, same sizes, origins 10 mm apart (the images are 0.075 mm wide)."""
    slide = new_slide(tmp_path)
    first = add_pyramid(slide, LARGE, moved_to(20, 40), salt=0, names=("a", "d"))
    second = add_pyramid(slide, SMALL, moved_to(30, 40), salt=30, names=("c", "b"))
    assert_pyramids(open_slide, [first, second])


@pytest.mark.parametrize(
    ("size", "mpp", "origin_mm"),
    [
        ((60, 50), 0.25, (20.005, 40.005)),  # at high power, within the other
        ((60, 50), 0.5, (20.0, 40.0)),
        ((30, 110), 0.5, (19.98, 40.0)),  # beside it
        ((40, 40), 8.0, None),  # all of the glass
    ],
)
def test_a_scan_of_another_region_is_no_level(
    tmp_path: Path, open_slide: Opener, size: tuple[int, int], mpp: float, origin_mm: tuple[float, float] | None
) -> None:
    """What shows more of the glass, or less, by its own resolution, keeps that and is a pyramid of its own."""
    slide = new_slide(tmp_path)
    whole = add_pyramid(slide, LARGE, moved_to(20, 40), salt=0)
    region = SyntheticSlide(slide.folder, slide.study_uid, slide.series_uid)
    ds = blank(slide, size, tile_size=(16, 16), mpp=(mpp, mpp))
    if origin_mm is None:
        del ds.TotalPixelMatrixOriginSequence
    else:
        moved_to(*origin_mm)(ds)
    add_level(region, ds, {KEY: pattern("rgb", *size, salt=50)}, name="c")
    assert_pyramids(open_slide, [whole, region])
    with open_slide(region, pyramid=1) as opened:
        assert opened.mpp == pytest.approx((mpp, mpp))


@pytest.mark.parametrize("sizes", [(SIZE, (75, 55), (16, 16)), (SIZE, (75, 55), (3, 2), (1, 1))])
def test_small_levels_that_are_filled_up_or_rounded(
    tmp_path: Path, open_slide: Opener, sizes: tuple[tuple[int, int], ...]
) -> None:
    """Some scanners fill levels up to whole tiles, and converters halve until a pixel is left."""
    slide = new_slide(tmp_path)
    pyramid = SyntheticSlide(slide.folder, slide.study_uid, slide.series_uid)
    for n, size in enumerate(sizes):
        factor = 2 ** (150 // size[0]).bit_length() / 2
        ds = blank(slide, size, tile_size=(16, 16), mpp=(0.5 * factor, 0.5 * factor))
        add_level(pyramid, ds, {KEY: pattern("rgb", *size, salt=n)})
    assert_pyramids(open_slide, [pyramid])


@pytest.mark.parametrize("names", [("abc", "def"), ("adf", "bce")])
def test_a_rescan_of_another_size_is_not_mixed_in(tmp_path: Path, open_slide: Opener, names: tuple[str, str]) -> None:
    """Two images of a channel at one resolution, and of nearly one size, are no two levels."""
    slide = new_slide(tmp_path)
    scans = [
        add_pyramid(
            slide,
            [(side_x >> n, side_y >> n) for n in range(3)],
            with_attributes(AcquisitionDateTime=f"2024010{scan + 1}120000"),
            salt=30 * scan,
            names=names[scan],
        )
        for scan, (side_x, side_y) in enumerate([(208, 148), (200, 140)])
    ]
    assert_pyramids(open_slide, scans)


@pytest.mark.parametrize("levels", [{0}, {1}, {0, 2}])
def test_a_pyramid_uid_on_some_levels(tmp_path: Path, open_slide: Opener, levels: set[int]) -> None:
    """The others are of the only pyramid in their frame of reference; unless they are another scan."""
    slide, numbers = new_slide(tmp_path), itertools.count()

    def change(ds: Dataset) -> None:
        if next(numbers) in levels:
            ds.PyramidUID = "1.2.3.4"

    pyramid = add_pyramid(slide, (SIZE, (75, 55), (38, 28)), change, salt=0, names=("b", "a", "c"))
    assert_pyramids(open_slide, [pyramid])
    assert open_slide(slide).pyramids[0].uid == "1.2.3.4"


@pytest.mark.parametrize("sizes", [LARGE, SMALL])
def test_a_scan_without_a_pyramid_uid_beside_one_with(
    tmp_path: Path, open_slide: Opener, sizes: tuple[tuple[int, int], ...]
) -> None:
    slide = new_slide(tmp_path)
    first = add_pyramid(slide, LARGE, with_attributes(PyramidUID="1.2.3.4"), salt=0, names=("a", "d"))
    second = add_pyramid(slide, sizes, lambda _: None, salt=30, names=("c", "b"))
    with open_slide(slide) as opened:
        second_leads = opened.pyramids[0].lead_uid == second.levels[0].instance_uids[0]
    assert_pyramids(open_slide, [second, first] if second_leads else [first, second])


@pytest.mark.parametrize("named", [0, 1])
def test_a_frame_of_reference_for_each_level(tmp_path: Path, open_slide: Opener, named: int) -> None:
    """It tells no levels apart."""
    slide, numbers = new_slide(tmp_path), itertools.count()

    def change(ds: Dataset) -> None:
        ds.FrameOfReferenceUID = generate_uid()
        if next(numbers) < named:
            ds.PyramidUID = "1.2.3.4"

    assert_pyramids(open_slide, [add_pyramid(slide, (SIZE, (75, 55), (38, 28)), change, salt=0, names="abc")])


def test_careless_origins_keep_levels_together(tmp_path: Path, open_slide: Opener) -> None:
    """Converters round origins, or take the middle of the first pixel: some pixels of the coarser level."""
    slide = new_slide(tmp_path)
    origins = itertools.count()

    def change(ds: Dataset) -> None:
        moved_to(20 + 0.002 * next(origins), 40)(ds)

    assert_pyramids(open_slide, [add_pyramid(slide, LARGE, change, salt=0)])


SPACINGS = {
    "of the level before": (0.5, 0.5, 1.0, 1.0),
    "one wrong constant": (0.5, 10.0, 10.0, 10.0),
    "level 0's is ten times too large": (5.0, 1.0, 2.0, 4.0),
    "the last is nominal": (0.5, 1.0, 2.0, 10.0),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_levels_whose_spacing_is_wrong(tmp_path: Path, open_slide: Opener, name: str) -> None:
    """They begin where level 0 does, and have its shape: no scan of another region has both."""
    slide, sizes = new_slide(tmp_path), ((960, 640), (480, 320), (240, 160), (120, 80))
    spacings = iter(SPACINGS[name])

    def change(ds: Dataset) -> None:
        mpp = next(spacings)
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [mpp / 1000, mpp / 1000]
        moved_to(20, 40)(ds)

    add_pyramid(slide, sizes, change, salt=0, names="abcd")
    with open_slide(slide) as opened:
        assert [level.size for level in opened.levels] == list(sizes)


@pytest.mark.parametrize("named", [True, False])
def test_pyramids_of_series_that_are_opened_as_one(tmp_path: Path, named: bool) -> None:
    """Each series has UIDs of its own for them, which then tell nothing apart that belongs together."""
    first, sizes = new_slide(tmp_path), (LARGE, SMALL)
    both = [first, SyntheticSlide(first.folder, first.study_uid, generate_uid())]
    for n, slide in enumerate(both):
        for place, of_place in enumerate(sizes):
            uid = {"PyramidUID": f"1.2.{n}.{place}"} if named else {}

            def change(ds: Dataset, uid: dict[str, str] = uid, x: int = 20 + 30 * place) -> None:
                with_attributes(FrameOfReferenceUID="1.2.3", **uid)(ds)
                moved_to(x, 40)(ds)

            add_pyramid(slide, of_place, change, salt=40 * n + 20 * place, names=(f"{n}{place}a", f"{n}{place}b"))
    with Slide.open(first.folder, series_uid=[slide.series_uid for slide in both]) as opened:
        assert [[level.size for level in pyramid.levels] for pyramid in opened.pyramids] == [list(one) for one in sizes]
        assert [len(pyramid.optical_paths) for pyramid in opened.pyramids] == [2, 2]


def test_one_pyramid_uid_and_origins_apart(tmp_path: Path, open_slide: Opener) -> None:
    """What the slide declares one pyramid is one, however far apart its levels claim to lie."""
    slide = new_slide(tmp_path)
    origins = itertools.count(20)

    def change(ds: Dataset) -> None:
        ds.PyramidUID = "1.2.3.4"
        moved_to(next(origins), 40)(ds)

    assert_pyramids(open_slide, [add_pyramid(slide, LARGE, change, salt=0)])


@pytest.mark.parametrize("names", [("ab", "cd"), ("cd", "ab"), ("ad", "bc"), ("ad", "cb")])
@pytest.mark.parametrize("dated", [True, False])
def test_two_scans_of_the_same_size_never_mix(
    tmp_path: Path, open_slide: Opener, names: tuple[str, str], dated: bool
) -> None:
    """Neither the order of instances decides what is shown, nor do levels of different scans get together."""
    slide = new_slide(tmp_path)
    scans = [
        add_pyramid(
            slide,
            LARGE,
            with_attributes(AcquisitionDateTime=f"2024010{n + 1}120000") if dated else moved_to(20 + 0.001 * n, 40),
            salt=30 * n,
            names=name,
        )
        for n, name in enumerate(names)
    ]
    scans.sort(key=lambda scan: scan.levels[0].instance_uids[0])
    assert_pyramids(open_slide, scans)


@pytest.mark.parametrize("what", ["times", "origins", "frames of reference"])
def test_a_level_that_is_there_twice_breaks_up_no_pyramid(tmp_path: Path, open_slide: Opener, what: str) -> None:
    """Each instance has a time of its own, say: that tells no scans apart."""
    slide, numbers = new_slide(tmp_path), itertools.count()

    def change(ds: Dataset) -> None:
        n = next(numbers)
        if what == "times":
            ds.AcquisitionDateTime = f"2024010112000{n}"
        elif what == "origins":
            moved_to(20 + 0.0001 * n, 40)(ds)
        else:
            ds.PyramidUID, ds.FrameOfReferenceUID = "1.2.3.4", generate_uid()

    whole = add_pyramid(slide, (SIZE, (75, 55), (38, 28)), change, salt=0, names=("a", "b", "c"))
    again = add_pyramid(slide, ((75, 55),), change, salt=50, names=("d",), base_mpp=1.0)
    # Which of the two is a level of the pyramid, the lower UID says.
    pair = whole.levels[1], again.levels[0]
    whole.levels[1], again.levels[0] = sorted(pair, key=lambda level: level.instance_uids[0])
    assert_pyramids(open_slide, [whole, again])


def test_scans_that_nothing_tells_apart(tmp_path: Path, open_slide: Opener) -> None:
    """Both are there, no level shows both, and it is the same every time."""
    slide = new_slide(tmp_path)
    images = [images_for([KEY], salt=n)[KEY] for n in range(2)]
    uids = [add_level(slide, blank(slide, content="mono8"), {KEY: image}) for image in images]
    expected = [image for _, image in sorted(zip(uids, images, strict=True), key=lambda item: item[0])]
    for index, image in enumerate(expected):
        opened = open_slide(slide, pyramid=index)
        assert len(opened.pyramids) == 2
        assert (opened.read_region(0, 0, 0, *SIZE) == image).all()


def test_paths_of_a_pyramid_are_those_of_the_one_that_is_open(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    truths = []
    for n, (size, keys) in enumerate(((SIZE, [("A", 0.0), ("A", 2.0)]), ((120, 90), [("B", 5.0), ("C", 5.0)]))):
        truth = SyntheticSlide(slide.folder, slide.study_uid, slide.series_uid)
        ds = blank(slide, size, content="mono8", keys=keys)
        ds.PyramidUID = f"1.2.3.{n}"
        ds.OpticalPathSequence[0].ObjectiveLensPower = 20 + n
        add_level(truth, ds, images_for(keys, size, salt=5 * n))
        truths.append(truth)
    for index, (paths, planes) in enumerate(((("A",), (0.0, 2.0)), (("B", "C"), (5.0,)))):
        opened = open_slide(truths[index], pyramid=index)
        assert (opened.optical_paths, opened.focal_planes) == (paths, planes)
        assert opened.properties["objective_power"] == 20 + index
        assert_reads(opened, truths[index])


def test_a_pyramid_has_a_thumbnail_and_a_profile_of_its_own(tmp_path: Path, open_slide: Opener) -> None:
    """And none of another scan's; a thumbnail that names no pyramid shows the default one."""
    slide = new_slide(tmp_path)
    uids, shown = ("1.2.3.1", "1.2.3.2", "1.2.3.3"), []
    for n, (uid, profile) in enumerate(zip(uids, (srgb_profile(swapped=True), None, srgb_profile()), strict=True)):

        def change(ds: Dataset, uid: str = uid, profile: bytes | None = profile) -> None:
            ds.PyramidUID = uid
            if profile is not None:
                ds.OpticalPathSequence[0].ICCProfile = profile

        sizes = ((160 - 20 * n, 120 - 15 * n), (80 - 10 * n, 60 - 8 * n))
        add_pyramid(slide, sizes, change, salt=20 * n, names=(f"{n}a", f"{n}b"))
        if n < 2:
            picture = pattern("rgb", 40, 30, salt=200 + n)
            shown.append(picture)
            ds = blank(slide, (40, 30), tile_size=(40, 30), flavor="THUMBNAIL")
            if n == 1:
                ds.PyramidUID = uid
            store(slide, ds, [picture.tobytes()], name=f"thumbnail-{n}")
    for n, profile in enumerate((srgb_profile(swapped=True), None, srgb_profile())):
        with open_slide(slide, pyramid=n) as opened:
            assert (opened.icc_profile is None) == (profile is None)
            images = opened.associated_images
            assert ("thumbnail" in images) == (n < 2)
            if n < 2:
                np.testing.assert_array_equal(images["thumbnail"], shown[n])
                np.testing.assert_array_equal(opened.thumbnail(40), shown[n])
            else:
                requests = opened.stats.frames
                opened.thumbnail(40)
                assert opened.stats.frames > requests  # of a level


def test_levels_of_a_pyramid_that_is_not_open(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    add_pyramid(slide, LARGE, with_attributes(PyramidUID="1.2.3.1"), salt=0, names=("a", "b"))
    add_pyramid(slide, SMALL, with_attributes(PyramidUID="1.2.3.2"), salt=30, names=("c", "d"))
    with open_slide(slide) as opened:
        own, other = (pyramid.levels[1] for pyramid in opened.pyramids)
        np.testing.assert_array_equal(opened.read_region(own, 0, 0, 9, 9), opened.read_region(1, 0, 0, 9, 9))
        with pytest.raises(RegionError, match="pyramid"):
            opened.read_region(other, 0, 0, 9, 9)
