"""A slide's disk cache: later processes read without requests, and nothing that happens to it breaks a read."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import pickle
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from dicomweb_server import DICOMwebServer
from faults import Fault, every, quota_page
from synthetic import make_slide, srgb_profile

from wsiweb import AuthenticationError, DecodeError, ReadOptions, Slide, SlideNotFoundError, SourceError, jsontext
from wsiweb.sources.base import Cancellation, EncodedFrame, FrameBatch, Frames, InstanceAddress
from wsiweb.sources.disk import DiskCache, DiskCachedSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.queues import Queue
    from pathlib import Path

    from conftest import SlideMaker
    from faults import Request
    from synthetic import SyntheticSlide

BOX = (30, 20, 300, 200)
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def options(folder: Path) -> ReadOptions:
    return ReadOptions(disk_cache=folder, max_attempts=2, timeout_seconds=5.0)


@pytest.fixture
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


@pytest.fixture
def url(server: DICOMwebServer, truth: SyntheticSlide) -> str:
    return server.series_url(truth.study_uid, truth.series_uid)


def assert_right(slide: Slide, truth: SyntheticSlide, box: tuple[int, int, int, int] = BOX) -> None:
    np.testing.assert_array_equal(slide.read_region(0, *box), truth.truth(0, *box))


def everything(slide: Slide) -> list[Any]:
    """Return all pixels of all levels, and the profile."""
    return [*(slide.read_region(level, 0, 0, *level.size) for level in slide.levels), slide.icc_profile]


def down(_: Request) -> Fault:
    return Fault(status=503, body=b"down for maintenance")


# Without requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "jpeg2000-mono16", "rgb", "sparse-holes", "profile"])
def test_later_slides_read_with_the_server_gone(synthetic: SlideMaker, options: ReadOptions, kind: str) -> None:
    profile = srgb_profile(swapped=True)
    truth = synthetic("rgb", icc_profile=profile) if kind == "profile" else synthetic(kind)
    with DICOMwebServer(truth.folder) as server:
        url = server.series_url(truth.study_uid, truth.series_uid)
        with Slide.open(url, options=options) as slide:
            first = everything(slide)
            assert slide.stats.requests == server.count() > 0
            assert slide.stats.disk_hits == 0
            frames = slide.stats.frames
    with Slide.open(url, options=options) as slide:
        again = everything(slide)
        regions = list(slide.read_regions(0, [BOX, (0, 0, 10, 10), BOX]))
        slide.thumbnail(100)
        assert slide.stats.requests == slide.stats.frames == slide.stats.bytes == 0
        assert slide.stats.disk_hits == frames
        assert slide.levels[0].size == truth.levels[0].size
    np.testing.assert_array_equal(regions[2], truth.truth(0, *BOX))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again[0], truth.truth(0, 0, 0, *truth.levels[0].size))
    assert again[-1] == (profile if kind == "profile" else None)


@pytest.mark.parametrize("kind", ["sparse-holes", "sparse-paths-and-planes"])
def test_long_metadata_are_kept_as_they_came(
    synthetic: SlideMaker, options: ReadOptions, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the groups of frames stay text until they are needed, nothing is missing from what is kept."""
    truth = synthetic(kind)
    with DICOMwebServer(truth.folder) as server:
        url = server.series_url(truth.study_uid, truth.series_uid)
        with Slide.open(url) as slide:
            expected = everything(slide)
        monkeypatch.setattr(jsontext, "_LONG_BYTES", 0)
        with Slide.open(url, options=options) as slide:
            long = everything(slide)
    with Slide.open(url, options=options) as slide:
        kept = everything(slide)
        assert slide.stats.requests == 0
    for one, other, third in zip(expected, long, kept, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)


@pytest.mark.parametrize("named", ["study_uid", "series_uid"])
def test_searches_are_kept(server: DICOMwebServer, truth: SyntheticSlide, options: ReadOptions, named: str) -> None:
    for instance in server.instances:
        instance.metadata["00080060"] = {"vr": "CS", "Value": ["SM"]}
    for _ in range(2):
        with Slide.open(server.url, options=options, **{named: getattr(truth, named)}) as slide:
            assert (slide.study_uid, slide.series_uid) == (truth.study_uid, truth.series_uid)
            assert_right(slide, truth)
        server.fault = down
    assert slide.stats.requests == 0


@pytest.mark.parametrize("image_type", [["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], ["ORIGINAL", "PRIMARY"]], ids=len)
def test_bulk_data_that_opening_needs_are_kept(
    synthetic: SlideMaker, options: ReadOptions, image_type: list[str]
) -> None:
    """Also where size alone tells that an image is a level."""
    from pydicom import Dataset  # noqa: PLC0415
    from pydicom.filebase import DicomBytesIO  # noqa: PLC0415
    from pydicom.filewriter import write_sequence  # noqa: PLC0415

    truth = synthetic("sparse")
    with DICOMwebServer(truth.folder) as server:
        for instance in server.instances:
            groups = Dataset.from_json(json.dumps({"52009230": instance.metadata["52009230"]}))
            buffer = DicomBytesIO()
            buffer.is_little_endian, buffer.is_implicit_VR = True, False
            write_sequence(buffer, groups["PerFrameFunctionalGroupsSequence"], ["utf-8"])
            instance.bulk["groups"] = buffer.getvalue()
            instance.metadata["00080008"] = {"vr": "CS", "Value": image_type}
            uri = f"{server.series_url(truth.study_uid, truth.series_uid)}/instances/{instance.uid('SOPInstanceUID')}"
            instance.metadata["52009230"] = {"vr": "SQ", "BulkDataURI": f"{uri}/bulkdata/groups"}
        url = server.series_url(truth.study_uid, truth.series_uid)
        with Slide.open(url, options=options) as slide:
            assert server.count("bulk") > 0
            assert_right(slide, truth)
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
        assert slide.stats.requests == 0


def test_what_is_missing_is_asked_for_and_nothing_else(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, options: ReadOptions
) -> None:
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth, (0, 0, 200, 100))
    before = server.frames_asked()
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth, (0, 0, 300, 300))
        assert slide.stats.disk_hits == len(before)
    assert set(server.frames_asked().values()) == {1}
    tiles = truth.tiles(0, 0, 0, 300, 300)
    assert len(server.frames_asked()) == len(tiles)


def test_a_client_object_is_kept_by_its_address(
    server: DICOMwebServer, truth: SyntheticSlide, options: ReadOptions
) -> None:
    class OwnClient(DICOMwebClient):
        def _http_get(self, *args: Any, **kwargs: Any) -> Any:
            return super()._http_get(*args, **kwargs)

    for requests in (2, 0):
        client = OwnClient(server.url)
        with Slide.open(client, study_uid=truth.study_uid, series_uid=truth.series_uid, options=options) as slide:
            assert_right(slide, truth, (0, 0, 10, 10))
            assert slide.stats.requests == requests


def test_local_slides_have_none(truth: SyntheticSlide, folder: Path, options: ReadOptions) -> None:
    with Slide.open(truth.folder, options=options) as slide:
        assert_right(slide, truth)
    assert not folder.exists()


# Never the wrong pixels ---------------------------------------------------------------------------


def test_slides_do_not_mix(tmp_path: Path, options: ReadOptions) -> None:
    """Two series of one server, and a server that has other pixels under the same UIDs."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = make_slide(tmp_path / "a", content="mono8")
    two = make_slide(tmp_path / "b", content="rgb")
    for _ in range(2):
        with DICOMwebServer(one.folder, two.folder) as first, DICOMwebServer(one.folder) as second:
            for instance in second.instances:
                instance.frames = [bytes(len(frame)) for frame in instance.frames]
            for server, truth, factor in ((first, one, 1), (first, two, 1), (second, one, 0)):
                with Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=options) as slide:
                    np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX) * factor)


def test_a_stored_file_holds_no_credentials(truth: SyntheticSlide, folder: Path, options: ReadOptions) -> None:
    with DICOMwebServer(truth.folder) as server:
        url = server.series_url(truth.study_uid, truth.series_uid).replace("http://", "http://user:hunter2@")
        with Slide.open(url, options=options, headers={"X-Key": "opensesame"}) as slide:
            assert_right(slide, truth)
            stored = b"".join(path.read_bytes() for path in folder.iterdir())
        assert {request.headers["x-key"] for request in server.requests} == {"opensesame"}
    for secret in (b"hunter2", b"opensesame", b"127.0.0.1", truth.series_uid.encode()):
        assert secret not in stored
    plain = url.replace("user:hunter2@", "")
    with Slide.open(plain, options=options) as slide:
        assert_right(slide, truth)
        assert slide.stats.requests == 0


@pytest.mark.parametrize("how", ["end missing", "damaged within", "another picture's size"])
def test_frames_that_do_not_decode_are_asked_for_again(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, options: ReadOptions, how: str
) -> None:
    """A server that sends bad frames at first: what is kept of them does not outlive its recovery."""

    def spoilt(number: int, data: bytes) -> bytes:
        if number != 2:
            return data
        if how == "end missing":
            return data[:-50]
        middle = data.index(b"\xff\xda") + 4
        return data[:middle] + b"\xff\xd9" if how == "damaged within" else resized(data)

    def resized(data: bytes) -> bytes:
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + b"\x00\x08\x00\x08" + data[place + 4 :]

    server.fault = lambda request: Fault(change_frame=spoilt) if request.kind == "frames" else None
    for _ in range(2):
        with Slide.open(url, options=options) as slide, pytest.raises(DecodeError, match="Frame 2 "):
            slide.read_region(0, 0, 0, 300, 10)
    server.fault = lambda _: None
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth, (0, 0, 300, 10))
        assert slide.stats.requests == 1
        assert slide.stats.retries == (how != "end missing")  # which is seen at once, and not kept
    server.forget()
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth, (0, 0, 300, 10))
    assert server.count() == 0


class Origin:
    """A source that serves good frames to who asks again."""

    remote = True
    credentials: dict[str, object] = {}  # noqa: RUF012 - as the protocol has it

    def fetch(self, batch: FrameBatch, cancellation: Cancellation, preview: object = None) -> Iterator[Frames]:
        for number in batch.frame_numbers:
            yield [EncodedFrame(number, b"good" if batch.fresh else b"bad", "image/jls", "1.2")]

    def close(self) -> None:
        pass


def test_a_fresh_frame_outlives_the_answer_that_had_it_bad(folder: Path) -> None:
    cache = DiskCache(str(folder), limit_bytes=8 << 20, max_age_seconds=1, service_url="http://host/root")
    source = DiskCachedSource(cast("Any", Origin()), cache, ("1", "2"))
    batch = FrameBatch(InstanceAddress("1", "2", "3"), (1, 2), None)
    long_answer = source.fetch(batch, Cancellation())
    assert next(long_answer)[0].data == b"bad"
    list(source.fetch(replace(batch, frame_numbers=(1,), fresh=True), Cancellation()))
    list(long_answer)
    (kept,) = source.fetch(batch, Cancellation())
    expected = [EncodedFrame(n, data, "image/jls", "1.2", from_disk=True) for n, data in ((1, b"good"), (2, b"bad"))]
    assert sorted(kept, key=lambda frame: frame.frame_number) == expected
    source.close()


def test_a_damaged_value_is_fetched_anew(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, folder: Path, options: ReadOptions
) -> None:
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    uid = truth.levels[0].instance_uids[0]
    instance = next(instance for instance in server.instances if instance.uid("SOPInstanceUID") == uid)
    number = min(number for _, number in server.frames_asked())
    frame = instance.frames[number - 1]
    start = content.index(frame[-100:-40])
    content[start + 5] ^= 0x10
    path.write_bytes(content)
    server.forget()
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
    assert server.frames_asked() == {(uid, number): 1}
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
        assert slide.stats.requests == 0


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "unwritable"])
def test_a_cache_that_fails_breaks_no_read(
    server: DICOMwebServer,
    url: str,
    truth: SyntheticSlide,
    folder: Path,
    options: ReadOptions,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
    (path,) = folder.iterdir()
    size = path.stat().st_size
    if damage == "unwritable":
        path.unlink()
        folder.rmdir()
        folder.write_bytes(b"a file")
    else:
        path.write_bytes({"garbage": b"x" * size, "cut": path.read_bytes()[: size // 2], "empty": b""}[damage])
    for _ in range(2):
        with Slide.open(url, options=options) as slide:
            assert_right(slide, truth)
            assert_right(slide, truth, (0, 0, 500, 500))
    assert len(caplog.records) == (2 if damage == "unwritable" else 1)  # one for each slide that meets it
    assert (slide.stats.requests == 0) == (damage != "unwritable")


# Age and absence of the metadata ------------------------------------------------------------------


def kinds(server: DICOMwebServer) -> list[str]:
    found: list[str] = [request.kind for request in server.requests]
    server.forget()
    return found


def test_old_metadata_are_asked_for_again(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = ReadOptions(disk_cache=folder, disk_cache_seconds=0, max_attempts=1)
    for _ in range(2):
        with Slide.open(url, options=impatient) as slide:
            assert_right(slide, truth, (0, 0, 10, 10))
    assert kinds(server) == ["metadata", "frames", "metadata"]
    assert caplog.messages == []
    for number, fault in enumerate((Fault(status=503), quota_page(), Fault(reset_after_bytes=0))):
        server.fault = every(fault, "metadata")
        with Slide.open(url, options=impatient) as slide:
            assert_right(slide, truth, (0, 0, 10, 10))
        assert len(caplog.messages) == number + 1
    for status, error in ((401, AuthenticationError), (403, AuthenticationError), (404, SlideNotFoundError)):
        server.fault = every(Fault(status=status), "metadata")
        with pytest.raises(error):
            Slide.open(url, options=impatient)


def test_new_metadata_take_the_place_of_old_ones(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, folder: Path
) -> None:
    whole = server.instances
    server.instances = [
        instance for instance in whole if instance.uid("SOPInstanceUID") in truth.levels[0].instance_uids
    ]
    impatient = ReadOptions(disk_cache=folder, disk_cache_seconds=0)
    patient = ReadOptions(disk_cache=folder)
    found = []
    for options, instances in ((patient, server.instances), (patient, whole), (impatient, whole), (patient, [])):
        server.instances = instances
        with Slide.open(url, options=options) as slide:
            found.append(len(slide.levels))
    assert found == [1, 1, len(truth.levels), len(truth.levels)]


def test_a_series_that_is_no_slide_yet_is_not_kept(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, options: ReadOptions
) -> None:
    kept = [instance.metadata["00080008"] for instance in server.instances]
    for instance in server.instances:
        instance.metadata["00080008"] = {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}
    with pytest.raises(SlideNotFoundError):
        Slide.open(url, options=options)
    for instance, image_type in zip(server.instances, kept, strict=True):
        instance.metadata["00080008"] = image_type
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)


def test_a_server_that_is_down_at_first_is_an_error(server: DICOMwebServer, url: str, options: ReadOptions) -> None:
    server.fault = lambda _: Fault(status=503)
    with pytest.raises(SourceError):
        Slide.open(url, options=ReadOptions(disk_cache=options.disk_cache, max_attempts=1))


# Threads and processes ----------------------------------------------------------------------------


def test_threads_and_slides_share_it(url: str, truth: SyntheticSlide, folder: Path) -> None:
    options = ReadOptions(disk_cache=folder, tile_cache_bytes=0, frame_cache_bytes=0, disk_cache_bytes=1 << 20)
    problems: list[BaseException] = []
    boxes = [(x, y, 150, 120) for x, y in itertools.product((0, 130, 300, 500), (0, 90, 300))]

    def work(slide: Slide) -> None:
        try:
            for box in boxes:
                np.testing.assert_array_equal(slide.read_region(0, *box), truth.truth(0, *box))
        except BaseException as error:  # noqa: BLE001 - asserted below
            problems.append(error)

    with Slide.open(url, options=options) as first, Slide.open(url, options=options) as second:
        threads = [threading.Thread(target=work, args=(slide,)) for slide in (first, second) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert first.stats.disk_hits + second.stats.disk_hits > 0


def test_a_pickled_slide_uses_it_too(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, options: ReadOptions
) -> None:
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
        server.fault = down
        with pickle.loads(pickle.dumps(slide)) as clone:
            assert_right(clone, truth)
            assert (clone.stats.requests, clone.stats.disk_hits) == (0, slide.stats.frames)
        assert len(pickle.dumps(slide)) < 20_000


def read_in_child(place: str | Slide, options: ReadOptions, answers: Queue[Any]) -> None:
    """Send back what the child read and what it cost, or the error that it met."""
    try:
        with Slide.open(place, options=options) if isinstance(place, str) else place as slide:
            regions = [slide.read_region(0, x, y, 200, 150) for x, y in ((0, 0), (130, 20), (400, 300))]
            answers.put((regions, slide.stats.as_dict()))
    except BaseException as error:  # noqa: BLE001 - the parent judges
        answers.put((repr(error), {}))


def read_elsewhere(method: str, count: int, place: str | Slide, options: ReadOptions) -> list[tuple[Any, Any]]:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    children = [context.Process(target=read_in_child, args=(place, options, answers)) for _ in range(count)]
    for child in children:
        child.start()
    try:
        found = [answers.get(timeout=60) for _ in children]
        for child in children:
            child.join(20)
            assert child.exitcode == 0
        return found
    finally:
        for child in children:
            child.kill()
            child.join()
            child.close()
        answers.close()
        answers.join_thread()


def assert_all_right(found: list[tuple[Any, Any]], truth: SyntheticSlide) -> None:
    for regions, _ in found:
        assert not isinstance(regions, str), regions
        for region, (x, y) in zip(regions, ((0, 0), (130, 20), (400, 300)), strict=True):
            np.testing.assert_array_equal(region, truth.truth(0, x, y, 200, 150))


def test_two_processes_at_once_and_one_later(url: str, truth: SyntheticSlide, options: ReadOptions) -> None:
    assert_all_right(read_elsewhere("spawn", 2, url, options), truth)
    later = read_elsewhere("spawn", 1, url, options)
    assert_all_right(later, truth)
    assert later[0][1]["requests"] == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_a_process_that_reads(
    server: DICOMwebServer, url: str, truth: SyntheticSlide, options: ReadOptions, method: str
) -> None:
    options = ReadOptions(disk_cache=options.disk_cache, tile_cache_bytes=0, frame_cache_bytes=0)
    with Slide.open(url, options=options) as slide:
        slide.read_region(0, 0, 0, 700, 530)
    server.fault = down
    with Slide.open(url, options=options) as slide:
        stop = threading.Event()

        def keep_reading() -> None:
            while not stop.is_set():
                slide.read_region(0, 0, 0, 700, 530)

        reader = threading.Thread(target=keep_reading)
        reader.start()
        try:
            found = read_elsewhere(method, 2, slide, options)
        finally:
            stop.set()
            reader.join()
        assert_all_right(found, truth)
        assert [stats["requests"] for _, stats in found] == [0, 0]
        assert_right(slide, truth)


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1000, 300_000])
def test_budgets_too_small_break_nothing(url: str, truth: SyntheticSlide, folder: Path, limit: int) -> None:
    options = ReadOptions(disk_cache=folder, disk_cache_bytes=limit)
    for _ in range(2):
        with Slide.open(url, options=options) as slide:
            assert_right(slide, truth, (0, 0, 700, 530))
    assert not folder.exists()


def test_a_copy_that_is_closed_leaves_the_cache_to_others(
    url: str, truth: SyntheticSlide, options: ReadOptions, server: DICOMwebServer
) -> None:
    """As the copies are that a fork or a benchmark makes."""
    with Slide.open(url, options=options) as slide:
        copied = copy.copy(slide._reader.source)
        copied.close()
        assert_right(slide, truth)
    asked = server.count("frames")
    with Slide.open(url, options=options) as slide:
        assert_right(slide, truth)
    assert server.count("frames") == asked


@pytest.mark.parametrize(
    "wrong", [{"disk_cache": 3}, {"disk_cache": ""}, {"disk_cache_bytes": -1}, {"disk_cache_seconds": -1.0}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReadOptions(**wrong)


def test_the_home_folder_may_be_named(
    url: str, truth: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with Slide.open(url, options=ReadOptions(disk_cache="~/cache")) as slide:
        assert_right(slide, truth)
    assert list((tmp_path / "cache").iterdir())
