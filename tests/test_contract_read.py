"""Reading: every kind of slide, from a folder and over HTTP, pixel by pixel against the truth."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import oracle
import pytest
from faults import Fault
from kinds import KINDS
from PIL import Image
from synthetic import make_slide, srgb_profile

from wsiweb import ReadOptions, RegionError, WsiWebError, stitch

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener, SlideMaker
    from faults import Request
    from pydicom import Dataset
    from synthetic import PlaneKey, SyntheticSlide

    from wsiweb import Slide

Box = tuple[int, int, int, int]


def boxes(size: tuple[int, int], tile_size: tuple[int, int]) -> list[Box]:
    """Return rectangles that matter: whole, tile borders, corners, beyond each edge; and some at random."""
    (w, h), (tile_w, tile_h) = size, tile_size
    chosen = [
        (0, 0, w, h),
        (0, 0, 1, 1),
        (w - 1, h - 1, 1, 1),
        (0, 0, tile_w, tile_h),
        (tile_w - 1, tile_h - 1, 2, 2),
        (tile_w, 0, tile_w, 2 * tile_h),
        (w - 20, h - 20, 50, 60),
        (-15, -7, 40, 30),
        (w - 1, -30, 31, 31),
        (-9, h - 1, 10, 5),
        (-40, -30, w + 90, h + 70),
        (-1, h // 2, w + 2, 1),
    ]
    rng = np.random.default_rng(w * h)
    for _ in range(12):
        x, y = int(rng.integers(-30, w)), int(rng.integers(-30, h))
        chosen.append((x, y, int(rng.integers(1, w)), int(rng.integers(1, h))))
    return [b for b in chosen if b[0] < w and b[1] < h and b[0] + b[2] > 0 and b[1] + b[3] > 0]


def assert_reads(slide: Slide, truth: SyntheticSlide, level: int, box: Box, key: PlaneKey | None = None) -> None:
    where: dict[str, Any] = {} if key is None else {"optical_path": key[0], "focal_plane": key[1]}
    result = slide.read_region(level, *box, **where)
    expected = truth.truth(level, *box, key)
    np.testing.assert_array_equal(result, expected, err_msg=f"level {level}, {box}, {key}")
    assert result.dtype == expected.dtype
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert result.flags.owndata  # what is kept of it holds nothing else


@pytest.mark.parametrize("kind", KINDS)
def test_regions_equal_the_truth(open_slide: Opener, synthetic: SlideMaker, kind: str) -> None:
    truth = synthetic(kind)
    slide = open_slide(truth)
    assert [level.size for level in slide.levels] == [level.size for level in truth.levels]
    default = (slide.optical_paths[0], truth.default_key[1])
    assert default[0] == truth.default_key[0] or kind == "spread"  # there, instances have no order
    for index, level in enumerate(truth.levels):
        for box in boxes(level.size, level.tile_size):
            assert_reads(slide, truth, index, box, default)
        result = slide.read_region(index, 5, 6, 30, 20)
        np.testing.assert_array_equal(result, truth.truth(index, 5, 6, 30, 20, default))


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if "optical_paths" in v or "focal_planes" in v])
def test_every_optical_path_and_focal_plane(open_slide: Opener, synthetic: SlideMaker, kind: str) -> None:
    truth = synthetic(kind)
    slide = open_slide(truth)
    keys = list(truth.levels[0].pixels)
    paths = list(dict.fromkeys(path for path, _ in keys))
    if kind == "spread":  # instances have no order
        assert set(slide.optical_paths) == set(paths)
    else:
        assert slide.optical_paths == tuple(paths)
    assert slide.focal_planes == pytest.approx(tuple(sorted({plane for _, plane in keys})))
    for index in range(len(truth.levels)):
        for key in keys:
            assert_reads(slide, truth, index, (30, 40, 100, 70), key)


def test_all_optical_paths_are_stacked(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("paths")
    result = open_slide(truth).read_region(0, -5, 20, 90, 70, optical_path="all")
    planes = [truth.truth(0, -5, 20, 90, 70, (path, 0.0)) for path in ("DAPI", "FITC", "1")]
    np.testing.assert_array_equal(result, np.stack(planes, axis=-1))
    assert result.dtype == np.uint16
    assert result.flags.c_contiguous


def test_results_belong_to_the_caller(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    slide = open_slide(truth)
    one_tile = (0, 0, *truth.levels[0].tile_size)
    for box in (one_tile, (10, 10, 200, 200)):
        slide.read_region(0, *box)[:] = 0
        assert_reads(slide, truth, 0, box)
        for image in slide.read_regions(0, [box, box]):
            image[:] = 0
        assert_reads(slide, truth, 0, box)


@pytest.mark.parametrize("kind", ["rgb", "sparse-holes", "mono16"])
def test_regions_come_in_order(open_slide: Opener, synthetic: SlideMaker, kind: str) -> None:
    truth = synthetic(kind)
    slide = open_slide(truth)
    asked = [*reversed(boxes(truth.levels[1].size, truth.levels[1].tile_size)), (5, 5, 9, 9), (5, 5, 9, 9)]
    results = list(slide.read_regions(1, asked))
    assert len(results) == len(asked)
    for box, result in zip(asked, results, strict=True):
        np.testing.assert_array_equal(result, truth.truth(1, *box), err_msg=str(box))
    assert list(slide.read_regions(1, [])) == []


def test_a_region_that_is_there_does_not_wait_for_those_behind_it(open_web: Opener, synthetic: SlideMaker) -> None:
    """The server answers for the others only when the first has been handed out."""
    truth = synthetic("rgb")
    slide = open_web(truth, options=ReadOptions(frames_per_request=1))
    handed_out, in_time = threading.Event(), []

    def hold(request: Request) -> Fault | None:
        if request.frame_numbers == (1,):
            return Fault(latency_seconds=0.3)  # the reader waits by then
        if request.kind == "frames":
            in_time.append(handed_out.wait(20))
        return None

    open_web.servers[-1].fault = hold
    regions = slide.read_regions(0, [(0, 0, 5, 5), *((x, 100, 5, 5) for x in range(0, 700, 50))])
    first = next(regions)
    handed_out.set()
    np.testing.assert_array_equal(first, truth.truth(0, 0, 0, 5, 5))
    assert len(list(regions)) == 14
    assert in_time
    assert all(in_time)


WRONG: dict[str, tuple[int, Box, dict[str, Any]]] = {
    "negative level": (-1, (0, 0, 9, 9), {}),
    "no such level": (3, (0, 0, 9, 9), {}),
    "no width": (0, (0, 0, 0, 9), {}),
    "negative height": (0, (0, 0, 9, -1), {}),
    "right of the level": (0, (700, 0, 9, 9), {}),
    "below the level": (0, (0, 530, 9, 9), {}),
    "left of the level": (0, (-9, 0, 9, 9), {}),
    "above the level": (0, (0, -9, 9, 9), {}),
    "no such optical path": (0, (0, 0, 9, 9), {"optical_path": "nowhere"}),
    "no such focal plane": (0, (0, 0, 9, 9), {"focal_plane": 7.5}),
    "optical paths as an array": (0, (0, 0, 9, 9), {"optical_path": np.array(["1", "2"])}),
    "conversions as an array": (0, (0, 0, 9, 9), {"icc": np.array([1, 2])}),
    "focal plane beyond floats": (0, (0, 0, 9, 9), {"focal_plane": 10**400}),
    "over max_region_bytes": (0, (0, 0, 300, 200), {}),
    "huge": (0, (0, 0, 1 << 40, 1 << 40), {}),
}


@pytest.mark.parametrize("regions", [None, 5])
def test_regions_that_are_no_sequence(open_slide: Opener, synthetic: SlideMaker, regions: Any) -> None:
    with pytest.raises(RegionError, match=r"\(x, y, w, h\)"):
        open_slide(synthetic("rgb")).read_regions(0, regions)


@pytest.mark.parametrize("case", WRONG)
def test_impossible_regions_are_refused_without_a_request(open_slide: Opener, synthetic: SlideMaker, case: str) -> None:
    slide = open_slide(synthetic("rgb"), options=ReadOptions(max_region_bytes=179_999))
    level, box, where = WRONG[case]
    before = open_slide.requests()
    with pytest.raises(RegionError) as caught:
        slide.read_region(level, *box, **where)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, WsiWebError)
    assert len(str(caught.value)) > 20
    if not where:
        with pytest.raises(RegionError):
            list(slide.read_regions(level, [(0, 0, 9, 9), box]))
    assert open_slide.requests() == before


def test_max_region_bytes_is_inclusive(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("rgb"), options=ReadOptions(max_region_bytes=180_000))
    assert slide.read_region(0, 0, 0, 300, 200).nbytes == 180_000


@pytest.mark.parametrize(
    ("cielab", "rgb"),
    [
        ((0, 32896, 32896), (0, 0, 0)),
        ((65535, 32896, 32896), (255, 255, 255)),
        ((35579, 53652, 50858), (255, 0, 0)),
        ((65535, 0, 0), (255, 255, 255)),  # slides of IDC: a* and b* written as if 0 were neutral
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_background_is_the_recommended_one(
    open_slide: Opener, tmp_path: Path, cielab: tuple[int, ...], rgb: tuple[int, ...]
) -> None:
    """RecommendedAbsentPixelCIELabValue: 0..65535 is L* 0..100, a* and b* -128..127, under D50."""

    def declare(dataset: Dataset) -> None:
        dataset.RecommendedAbsentPixelCIELabValue = list(cielab)

    truth = make_slide(tmp_path, tiling="sparse", missing={0: {(1, 1)}}, change=declare)
    result = open_slide(truth).read_region(0, -10, 0, 138, 96)
    assert np.abs(result[:, :10].astype(int) - rgb).max() <= 3  # beyond the edge
    assert np.abs(result[48:96, 74:138].astype(int) - rgb).max() <= 3  # the hole
    np.testing.assert_array_equal(result[:48, 10:], truth.truth(0, 0, 0, 128, 48))


@pytest.mark.parametrize("content", ["mono8", "mono16"])
def test_monochrome1_is_inverted(open_slide: Opener, tmp_path: Path, content: Any) -> None:
    def declare(dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"

    truth = make_slide(tmp_path, content=content, change=declare)
    stored = truth.truth(0, 3, 4, 300, 200)
    np.testing.assert_array_equal(open_slide(truth).read_region(0, 3, 4, 300, 200), np.iinfo(stored.dtype).max - stored)


def test_the_later_of_overlapping_frames_wins(open_slide: Opener, tmp_path: Path) -> None:
    def displace(dataset: Dataset) -> None:
        for n, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            position = groups.PlanePositionSlideSequence[0]
            column = position.ColumnPositionInTotalImagePixelMatrix
            position.ColumnPositionInTotalImagePixelMatrix = max(1, column - n % 23)
            position.RowPositionInTotalImagePixelMatrix += n % 5

    truth = make_slide(tmp_path, sizes=((300, 200),), tiling="sparse", change=displace)
    expected = oracle.stitch(truth.files[0])
    slide = open_slide(truth)
    np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), expected)
    np.testing.assert_array_equal(slide.read_region(0, 60, 45, 9, 7), expected[45:52, 60:69])


def test_thumbnail_fits_and_never_enlarges(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("exact"))
    for max_size in (512, 200, 100, 31):
        height, width = slide.thumbnail(max_size).shape[:2]
        assert width == max_size
        assert height == pytest.approx(max_size * 512 / 768, abs=1)
    assert slide.thumbnail().shape == (512, 768, 3)
    assert slide.thumbnail(max_size=5000).shape == slide.thumbnail(max_size=10**400).shape == (512, 768, 3)


def test_a_thumbnail_is_bound_as_regions_are(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("rgb"), options=ReadOptions(max_region_bytes=3 * 70 * 53))
    assert slide.thumbnail(70).shape == (53, 70, 3)
    before = open_slide.requests()
    with pytest.raises(RegionError, match="max_region_bytes"):
        slide.thumbnail(71)
    assert open_slide.requests() == before


def test_thumbnail_shows_the_slide(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("exact")
    result = open_slide(truth).thumbnail(192)
    np.testing.assert_array_equal(result, truth.truth(2, 0, 0, 192, 128))


def test_associated_images_are_fetched_when_asked_for(open_slide: Opener, tmp_path: Path) -> None:
    truth = make_slide(tmp_path, associated=("label", "overview", "thumbnail"))
    slide = open_slide(truth)
    before = open_slide.requests()
    images = slide.associated_images
    assert set(images) == {"label", "overview", "thumbnail"}
    assert len(images) == 3
    assert "label" in images
    assert images == slide.associated_images != truth.associated
    assert len({images, slide.associated_images}) == 1
    assert open_slide.requests() == before
    assert images != open_slide(truth).associated_images
    for kind, expected in truth.associated.items():
        np.testing.assert_array_equal(images[kind], expected)
    assert [level.size for level in slide.levels] == [level.size for level in truth.levels]


def test_absent_associated_images_are_no_keys(open_slide: Opener, synthetic: SlideMaker) -> None:
    images = open_slide(synthetic("rgb")).associated_images
    assert dict(images) == {}
    with pytest.raises(KeyError):
        images["label"]


def test_icc_profile_is_applied_only_on_demand(open_slide: Opener, tmp_path: Path) -> None:
    """The profile exchanges red and blue, so the conversion to sRGB must exchange the channels."""
    profile = srgb_profile(swapped=True)
    truth = make_slide(tmp_path, icc_profile=profile)
    slide = open_slide(truth)
    assert slide.icc_profile is not None
    assert slide.icc_profile.rstrip(b"\0") == profile.rstrip(b"\0")
    assert_reads(slide, truth, 0, (10, 20, 300, 200))
    converted = slide.read_region(0, 10, 20, 300, 200, icc="srgb").astype(int)
    assert np.abs(converted - truth.truth(0, 10, 20, 300, 200)[..., ::-1]).max() <= 2


@pytest.mark.parametrize("band_bytes", [10_000, 4 << 20])
def test_the_background_is_srgb_already(
    open_slide: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, band_bytes: int
) -> None:
    """It comes from a CIELab value: outside and in holes it is not converted (PS3.3 C.8.12.4)."""

    monkeypatch.setattr("wsiweb.regions._BAND_BYTES", band_bytes)

    def recommend(dataset: Dataset) -> None:
        dataset.RecommendedAbsentPixelCIELabValue = [40000, 50000, 35000]

    truth = make_slide(
        tmp_path, icc_profile=srgb_profile(swapped=True), change=recommend, tiling="sparse", tile_size=(64, 48),
        missing={0: {(1, 1)}},
    )  # fmt: skip
    slide = open_slide(truth)
    background = slide.read_region(0, -1, -1, 2, 2)[0, 0]
    assert background[0] != background[2]
    box = (-10, -20, 300, 200)
    shown = np.zeros((200, 300), bool)
    shown[20:, 10:] = True
    shown[20 + 48 : 20 + 96, 10 + 64 : 10 + 128] = False
    plain, converted = slide.read_region(0, *box), slide.read_region(0, *box, icc="srgb")
    assert (plain[~shown] == background).all()
    assert (converted[~shown] == background).all()
    assert np.abs(converted[shown].astype(int) - plain[shown][:, ::-1]).max() <= 2
    slide.export_png(tmp_path / "region.png", 0, *box, icc="srgb")
    with Image.open(tmp_path / "region.png") as image:
        np.testing.assert_array_equal(np.asarray(image), converted)
    assert slide.mpp is not None
    reduced = slide.read_region_mpp(slide.mpp[0] * 1.6, -5, -5, 100, 100, icc="srgb")
    assert (reduced[:5] == background).all()
    assert (reduced[5 + 30 : 5 + 60, 5 + 40 : 5 + 80] == background).all()
    assert (reduced[5 + 31 : 5 + 59, 5 + 81] != background).any(axis=-1).all()


def test_a_slide_without_profile_says_so(open_slide: Opener, synthetic: SlideMaker) -> None:
    assert open_slide(synthetic("rgb")).icc_profile is None


def test_a_closed_slide_says_so(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("rgb"))
    slide.read_region(0, 0, 0, 9, 9)
    slide.close()
    slide.close()
    with pytest.raises(WsiWebError, match="closed"):
        slide.read_region(0, 0, 0, 9, 9)


def test_tiny_caches_change_no_pixel(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("jpeg")
    for cache_bytes in (0, 1, 20_000):
        options = ReadOptions(tile_cache_bytes=cache_bytes, frame_cache_bytes=cache_bytes, readahead_bytes=cache_bytes)
        slide = open_slide(truth, options=options)
        for _ in range(2):
            assert_reads(slide, truth, 0, (0, 0, 700, 530))
        for box, image in zip([(9, 9, 99, 99)] * 3, slide.read_regions(0, [(9, 9, 99, 99)] * 3), strict=True):
            np.testing.assert_array_equal(image, truth.truth(0, *box))


def test_one_connection_and_one_decoder_are_enough(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("jpeg")
    options = ReadOptions(max_connections=1, decode_threads=1, frames_per_request=1)
    assert_reads(open_slide(truth, options=options), truth, 0, (0, 0, 700, 200))


@pytest.mark.parametrize("many", [False, True])
def test_no_memory_for_a_tile(
    open_slide: Opener, synthetic: SlideMaker, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:  # fmt: skip
    """In a decode thread, where it is nobody's: the caller has it, and does not wait until the deadline."""
    truth = synthetic("rgb")
    slide = open_slide(truth, options=ReadOptions(deadline_seconds=20))

    def full(*_: object) -> None:
        raise MemoryError("no room")

    regions = [(0, 0, 300, 200), (100, 0, 90, 90)]
    with monkeypatch.context() as patched:
        patched.setattr(stitch, "paste", full)
        with pytest.raises(MemoryError, match="no room"):
            next(slide.read_regions(0, regions if many else regions[:1]))
    assert_reads(slide, truth, 0, (0, 0, 300, 200))
