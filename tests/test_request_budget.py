"""The exact number of requests and frames that each kind of read may cost."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import slowed
from synthetic import srgb_profile

from wsiweb import ReadOptions, RegionError, Slide, reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Opener, SlideMaker
    from synthetic import SyntheticSlide

URL_LIMIT = 4096


@pytest.fixture(scope="module")
def big(synthetic: SlideMaker) -> SyntheticSlide:
    """17 x 17 tiles of 256 pixels, and a level above them."""
    return synthetic("jpeg-mono8", sizes=((4200, 4150), (1050, 1037)), tile_size=(256, 256))


@pytest.fixture
def server(big: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(big.folder) as server:
        yield server


@pytest.fixture
def slide(server: DICOMwebServer, big: SyntheticSlide) -> Iterator[Slide]:
    with Slide.open(server.series_url(big.study_uid, big.series_uid)) as slide:
        yield slide


def assert_asked_once(server: DICOMwebServer, truth: SyntheticSlide, *boxes: tuple[int, int, int, int]) -> None:
    """Assert that the frames under the boxes (level 0, TILED_FULL) were asked for once, and no other."""
    columns = -(-truth.levels[0].size[0] // truth.levels[0].tile_size[0])
    tiles = set().union(*(truth.tiles(0, *box) for box in boxes))
    uid = truth.levels[0].instance_uids[0]
    assert server.frames_asked() == {(uid, 1 + column + row * columns): 1 for column, row in tiles}


def test_opening_is_one_request(server: DICOMwebServer, slide: Slide) -> None:
    assert [request.kind for request in server.requests] == ["metadata"]
    assert slide.stats.requests == 1


def test_opening_by_series_uid_looks_the_study_up(server: DICOMwebServer, big: SyntheticSlide) -> None:
    with Slide.open(server.url, series_uid=big.series_uid) as slide:
        assert [request.kind for request in server.requests] == ["search", "metadata"]
        assert slide.study_uid == big.study_uid
        assert slide.stats.requests == 2


def test_a_cold_region_fetches_each_frame_once(server: DICOMwebServer, slide: Slide, big: SyntheticSlide) -> None:
    box = (100, 50, 4096, 4096)
    np.testing.assert_array_equal(slide.read_region(0, *box), big.truth(0, *box))
    assert_asked_once(server, big, box)
    assert server.count("frames") < 289 / 4  # batches
    host = server.url.removesuffix("/dicom-web")
    assert all(len(host + request.path) < URL_LIMIT for request in server.requests)
    assert all(sorted(set(r.frame_numbers)) == list(r.frame_numbers) for r in server.requests)
    assert slide.stats.requests == server.count()
    assert slide.stats.frames == 289
    assert slide.stats.retries == 0


def test_a_repeat_costs_nothing(server: DICOMwebServer, slide: Slide) -> None:
    slide.read_region(0, 0, 0, 2000, 2000)
    server.forget()
    slide.read_region(0, 0, 0, 2000, 2000)
    slide.read_region(0, 700, 800, 333, 444)
    list(slide.read_regions(0, [(0, 0, 256, 256), (1000, 1000, 1000, 1000)]))
    assert server.count() == 0
    assert slide.stats.tile_hits > 0


@pytest.mark.parametrize("scale", [1, 2.1])
def test_a_region_that_the_cache_cannot_hold_drives_nothing_out(
    server: DICOMwebServer, big: SyntheticSlide, scale: float
) -> None:
    options = ReadOptions(tile_cache_bytes=100 * 256 * 256)
    with Slide.open(server.series_url(big.study_uid, big.series_uid), options=options) as slide:
        slide.read_region(0, 0, 0, 500, 500)
        assert slide.mpp is not None
        side = int(2800 / scale)  # 121 tiles and more of level 0, which is monochrome
        slide.read_region_mpp(slide.mpp[0] * scale, int(1000 / scale), int(1000 / scale), side, side)
        decoded = slide.stats.decoded
        slide.read_region(0, 0, 0, 500, 500)
        assert slide.stats.decoded == decoded


def test_encoded_frames_are_kept_behind_the_tiles(server: DICOMwebServer, big: SyntheticSlide) -> None:
    url = server.series_url(big.study_uid, big.series_uid)
    with Slide.open(url, options=ReadOptions(tile_cache_bytes=0)) as slide:
        slide.read_region(0, 0, 0, 2000, 2000)
        server.forget()
        slide.read_region(0, 0, 0, 2000, 2000)
        assert server.count() == 0


def test_a_neighbour_costs_only_what_is_new(server: DICOMwebServer, slide: Slide, big: SyntheticSlide) -> None:
    first, second = (0, 0, 1000, 1000), (700, 700, 1000, 1000)
    slide.read_region(0, *first)
    slide.read_region(0, *second)
    assert_asked_once(server, big, first, second)


@pytest.mark.parametrize("box", [(255, 255, 1, 1), (255, 255, 2, 2), (256, 512, 256, 256), (-500, 4100, 600, 900)])
def test_only_frames_that_touch_are_fetched(
    server: DICOMwebServer, slide: Slide, big: SyntheticSlide, box: tuple[int, int, int, int]
) -> None:
    slide.read_region(0, *box)
    assert_asked_once(server, big, box)


def test_a_few_frames_are_one_request(server: DICOMwebServer, slide: Slide) -> None:
    slide.read_region(0, 100, 100, 256, 256)
    assert server.count("frames") == 1
    assert server.requests[-1].frame_numbers == (1, 2, 18, 19)


def test_eight_threads_on_one_region_ask_once(server: DICOMwebServer, slide: Slide, big: SyntheticSlide) -> None:
    server.fault = slowed(0.05)
    box = (300, 300, 1500, 1500)
    start = threading.Barrier(8)

    def read(_: int) -> None:
        start.wait()
        np.testing.assert_array_equal(slide.read_region(0, *box), big.truth(0, *box))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(8)))
    assert_asked_once(server, big, box)


def test_threads_on_overlapping_regions_ask_once(server: DICOMwebServer, slide: Slide, big: SyntheticSlide) -> None:
    server.fault = slowed(0.02)
    boxes = [(n * 130, n * 90, 1200, 1100) for n in range(8)]

    def read(box: tuple[int, int, int, int]) -> None:
        np.testing.assert_array_equal(slide.read_region(0, *box), big.truth(0, *box))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, boxes))
    assert_asked_once(server, big, *boxes)


def test_regions_share_their_frames(server: DICOMwebServer, slide: Slide, big: SyntheticSlide) -> None:
    boxes = [(x, y, 400, 400) for y in range(0, 1600, 200) for x in range(0, 1600, 200)]
    for box, image in zip(boxes, slide.read_regions(0, boxes), strict=True):
        np.testing.assert_array_equal(image, big.truth(0, *box))
    assert_asked_once(server, big, *boxes)
    assert server.count("frames") <= len(boxes) / 2  # fetched together, not region by region


def test_regions_are_not_fetched_far_ahead(server: DICOMwebServer, big: SyntheticSlide) -> None:
    options = ReadOptions(readahead_bytes=1 << 20)  # four regions of a quarter of that
    url = server.series_url(big.study_uid, big.series_uid)
    with Slide.open(url, options=options) as slide:
        regions = iter(
            slide.read_regions(0, [(x, y, 512, 512) for y in range(0, 4096, 512) for x in range(0, 4096, 512)])
        )
        next(regions)
        assert sum(server.frames_asked().values()) < 256 / 2
        del regions


def test_max_connections_is_kept(server: DICOMwebServer, big: SyntheticSlide) -> None:
    server.fault = slowed(0.02)
    options = ReadOptions(max_connections=3, frames_per_request=5)
    with Slide.open(server.series_url(big.study_uid, big.series_uid), options=options) as slide:
        slide.read_region(0, 0, 0, 3000, 2000)
    assert max(request.concurrent for request in server.requests) <= 3
    assert max(len(request.frame_numbers) for request in server.requests) <= 5


def test_wrong_regions_cost_nothing(server: DICOMwebServer, slide: Slide) -> None:
    server.forget()
    for box in ((5000, 0, 9, 9), (0, 0, 0, 0), (-9, -9, 9, 9)):
        with pytest.raises(RegionError):
            slide.read_region(0, *box)
    assert server.count() == 0


def test_holes_of_a_sparse_level_are_not_asked_for(open_web: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("sparse-holes")
    slide = open_web(truth)
    slide.read_region(0, 0, 0, 700, 530)
    asked = open_web.servers[0].frames_asked()
    assert len(asked) == 132 - 3
    assert set(asked.values()) == {1}
    open_web.servers[0].forget()
    assert (slide.read_region(0, 70, 50, 20, 20) == 255).all()  # wholly inside the hole
    assert open_web.requests() == 0


def test_an_array_of_channels_costs_each_channel_once(open_web: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("paths")
    slide = open_web(truth)
    slide.read_region(0, 0, 0, 128, 96, optical_path="all")
    asked = open_web.servers[0].frames_asked()
    assert len(asked) == 3 * 4
    assert set(asked.values()) == {1}


def test_the_icc_profile_and_the_label_are_fetched_once(open_web: Opener, synthetic: SlideMaker) -> None:
    profile = srgb_profile()
    slide = open_web(synthetic("rgb", icc_profile=profile, associated=("label",)))
    server = open_web.servers[0]
    assert server.count() == 1
    assert [slide.icc_profile, slide.icc_profile] == [profile, profile]
    assert server.count("bulk") == 1
    assert slide.associated_images["label"].shape == (60, 90, 3)
    assert server.count("frames") == 1


def test_many_slides_hold_no_more_than_a_few(
    server: DICOMwebServer, big: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a budget of its own, and training has hundreds of slides: those that are not being read let go."""
    monkeypatch.setattr(reader, "_ALL", weakref.WeakSet())  # without the slides of other tests
    monkeypatch.setattr(reader, "_LOOK_SECONDS", 0)
    monkeypatch.setattr(reader, "IDLE_BYTES", 0)
    region, n_bytes = (0, 0, 0, 2048, 2048), 2048**2
    options = ReadOptions(tile_cache_bytes=n_bytes + (1 << 20), frame_cache_bytes=0)
    where = server.series_url(big.study_uid, big.series_uid)
    with ExitStack() as stack:
        slides = [stack.enter_context(Slide.open(where, options=options)) for _ in range(9)]
        iteration = slides[0].read_regions(0, [(0, 0, 300, 300), (2048, 2048, 300, 300)])
        next(iteration)
        for slide in slides:
            np.testing.assert_array_equal(slide.read_region(*region), big.truth(*region))
        held = [slide._reader.cached_bytes for slide in slides]
        assert held[0] >= n_bytes  # it is being read
        assert 3 * n_bytes <= sum(held) <= 6 * n_bytes
        before = slides[-1].stats.requests, slides[1].stats.requests
        for slide in (slides[-1], slides[1]):
            np.testing.assert_array_equal(slide.read_region(*region), big.truth(*region))
        assert slides[-1].stats.requests == before[0]  # it was read last
        assert slides[1].stats.requests > before[1]
        np.testing.assert_array_equal(next(iteration), big.truth(0, 2048, 2048, 300, 300))
