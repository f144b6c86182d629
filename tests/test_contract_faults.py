"""What servers and files do wrong: healed where asking again helps, else a named error, never blank."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, Request, fail_first, quota_page
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit
from synthetic import make_slide

from wsiweb import (
    AuthenticationError,
    DecodeError,
    ProtocolError,
    QuotaExceededError,
    ReadOptions,
    Slide,
    SlideNotFoundError,
    SourceError,
    SourceTimeoutError,
    ThrottledError,
    WsiWebError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Opener, SlideMaker
    from synthetic import SyntheticSlide

BOX = (30, 20, 300, 200)
HTML = Fault(status=200, body=b"<html>Service is being updated</html>", headers={"Content-Type": "text/html"})
PASSING = {
    "503": Fault(status=503),
    "503 with Retry-After": Fault(status=503, headers={"Retry-After": "0"}),
    "429 with Retry-After": Fault(status=429, headers={"Retry-After": "0"}),
    "500": Fault(status=500),
    "502 with HTML": Fault(status=502, body=b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"}),
    "fewer parts": Fault(drop_parts=3),
    "no parts": Fault(drop_parts=1000),
    "last part cut": Fault(cut_last_part_bytes=100),
    "last part cut, no closing boundary": Fault(cut_last_part_bytes=100, omit_closing=True),
    "body cut": Fault(cut_body_bytes=1000),
    "reset at once": Fault(reset_after_bytes=0),
    "reset in mid body": Fault(reset_after_bytes=5000),
    "HTML with 200": HTML,
    "204": Fault(status=204),
    "frames cut": Fault(change_frame=lambda number, data: data[: len(data) // 2]),
}
LASTING: dict[str, tuple[Fault, type[Exception]]] = {
    "401": (Fault(status=401), AuthenticationError),
    "403": (Fault(status=403, body=b"denied"), AuthenticationError),
    "404": (Fault(status=404), SourceError),
    "429": (Fault(status=429, headers={"Retry-After": "0"}), ThrottledError),
    "quota": (quota_page(), QuotaExceededError),
    "503": (Fault(status=503, headers={"Retry-After": "0"}), SourceError),
    "500": (Fault(status=500), SourceError),
    "fewer parts": (Fault(drop_parts=1), ProtocolError),
    "HTML with 200": (HTML, ProtocolError),
    "HTML as a part": (Fault(change_frame=lambda number, data: b"<html>Sorry</html>"), Exception),
    "204": (Fault(status=204), SourceError),
    "reset": (Fault(reset_after_bytes=100), SourceError),
    "silence": (Fault(latency_seconds=3), SourceTimeoutError),
    "frames cut": (Fault(change_frame=lambda number, data: data[: len(data) // 2]), DecodeError),
    "garbage": (Fault(change_frame=lambda number, data: bytes(len(data))), DecodeError),
}


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def read(server: DICOMwebServer, truth: SyntheticSlide, options: ReadOptions) -> None:
    with Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=options) as slide:
        np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))


@pytest.mark.parametrize("name", PASSING)
def test_passing_trouble_is_healed(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    server.fault = fail_first(1, PASSING[name])
    read(server, truth, ReadOptions(max_attempts=3, max_connections=2))


@pytest.mark.parametrize("name", ["503", "429 with Retry-After", "reset at once"])
def test_passing_trouble_with_metadata_is_healed(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    server.fault = fail_first(1, PASSING[name], kind="metadata")
    read(server, truth, ReadOptions(max_attempts=3))


@pytest.mark.parametrize("name", LASTING)
def test_lasting_trouble_is_a_named_error(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    fault, error = LASTING[name]
    server.fault = lambda request: fault if request.kind == "frames" else None
    url = server.series_url(truth.study_uid, truth.series_uid)
    options = ReadOptions(max_attempts=2, max_connections=2, timeout_seconds=0.5)
    with Slide.open(url, options=options) as slide:
        with pytest.raises((DecodeError, ProtocolError) if error is Exception else error) as caught:
            slide.read_region(0, *BOX)
        assert not isinstance(caught.value, SlideNotFoundError)
        assert truth.levels[0].instance_uids[0] in str(caught.value)
        if isinstance(caught.value, SourceError):
            assert fault.status in (None, 200, 204, caught.value.status)
        server.fault = lambda request: None
        np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))  # nothing latches


def test_good_parts_are_kept(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Of an answer that lacks its last parts, only those are asked for again."""
    server.fault = fail_first(1, Fault(drop_parts=2))
    read(server, truth, ReadOptions(max_connections=1))
    assert sorted(server.frames_asked().values())[-3:] == [1, 2, 2]


def test_a_single_part_is_a_frame(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = lambda request: Fault(single_part=True) if request.kind == "frames" else None
    with Slide.open(server.series_url(truth.study_uid, truth.series_uid)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 5, 5, 20, 20), truth.truth(0, 5, 5, 20, 20))
    assert server.count("frames") == 1


def test_a_slow_drip_is_no_trouble(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = lambda request: Fault(drip=(2000, 0.01)) if request.kind == "frames" else None
    read(server, truth, ReadOptions())


def test_a_drip_without_end_meets_the_deadline(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = lambda request: Fault(drip=(1, 0.1)) if request.kind == "frames" else None
    with pytest.raises(SourceTimeoutError, match=truth.levels[0].instance_uids[0]) as caught:
        read(server, truth, ReadOptions(deadline_seconds=1.0, max_attempts=2))
    assert caught.value.frame_numbers


def test_gzipped_answers(truth: SyntheticSlide) -> None:
    with DICOMwebServer(truth.folder, gzip_answers=True) as server:
        read(server, truth, ReadOptions())


def test_retries_are_counted(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = fail_first(2, Fault(status=503, headers={"Retry-After": "0"}))
    with Slide.open(server.series_url(truth.study_uid, truth.series_uid)) as slide:
        slide.read_region(0, 0, 0, 64, 48)
        assert slide.stats.retries == 2
        assert slide.stats.requests == server.count() == 4


def test_errors_carry_no_secrets(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    def fail(request: Request) -> Fault | None:
        return Fault(status=500, body=b"boom") if request.kind == "frames" else None

    server.fault = fail
    url = server.series_url(truth.study_uid, truth.series_uid).replace("http://", "http://user:pa55word@")
    with Slide.open(url, options=ReadOptions(max_attempts=1)) as slide:
        with pytest.raises(SourceError) as caught:
            slide.read_region(0, 0, 0, 64, 48)
        assert caught.value.status == 500
        assert caught.value.frame_numbers == (1,)
        assert "pa55word" not in f"{caught.value} {caught.value.url}"


def _small_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(buffer, "JPEG")
    return buffer.getvalue()


CORRUPT = {
    "empty": (JPEGBaseline8Bit, b"\xff\xd8\xff\xd9"),
    "garbage": (JPEGBaseline8Bit, b"garbage!" * 20),
    "wrong size": (JPEGBaseline8Bit, _small_jpeg()),
    "garbage in JPEG 2000": (JPEG2000Lossless, b"\xff\x4f\xff\x51" + b"garbage!" * 20),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_frames_raise(open_slide: Opener, tmp_path: Path, name: str) -> None:
    syntax, data = CORRUPT[name]
    truth = make_slide(tmp_path, sizes=((300, 200),), syntax=syntax, corrupt={(0, 7): data})
    slide = open_slide(truth, options=ReadOptions(max_attempts=2))
    with pytest.raises(DecodeError, match=r"\b7\b") as caught:
        slide.read_region(0, 0, 0, 300, 200)
    assert truth.levels[0].instance_uids[0] in str(caught.value)
    np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 48), truth.truth(0, 0, 0, 300, 48))


def test_a_truncated_code_stream_is_asked_for_once_more(open_slide: Opener, tmp_path: Path) -> None:
    whole = make_slide(tmp_path / "whole", sizes=((300, 200),), syntax=JPEGBaseline8Bit)
    with DICOMwebServer(whole.folder) as server:
        frame = server.instances[0].frames[6]
    cut = {(0, 7): frame[: len(frame) // 2]}
    truth = make_slide(tmp_path / "cut", sizes=((300, 200),), syntax=JPEGBaseline8Bit, corrupt=cut)
    slide = open_slide(truth)
    with pytest.raises(DecodeError, match=r"\b7\b"):
        slide.read_region(0, 64, 48, 64, 48)
    for server in open_slide.servers:
        assert set(server.frames_asked().values()) == {2}


def test_closing_does_not_wait_for_a_silent_server(synthetic: SlideMaker) -> None:
    """Neither ``close`` nor a reader in another thread waits for an answer that does not come."""
    truth = synthetic("jpeg")
    asked, released = threading.Event(), threading.Event()

    def silent(request: Request) -> None:
        if request.kind == "frames":
            asked.set()
            released.wait(30)

    with DICOMwebServer(truth.folder) as server:
        slide = Slide.open(server.series_url(truth.study_uid, truth.series_uid))
        server.fault = silent
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(slide.read_region, 0, 0, 0, 64, 48)
            assert asked.wait(20)
            slide.close()
            with pytest.raises(WsiWebError, match="closed"):
                reading.result(timeout=10)
            assert not released.is_set()
        released.set()


def test_files_that_hold_a_multipart_body(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """A static tree served by any file server: one file a frame, whose type nobody tells."""

    def static(request: Request) -> Fault | None:
        if request.kind != "frames":
            return None
        if len(request.frame_numbers) > 1:
            return Fault(status=404)
        stored = next(one for one in server.instances if one.uid("SOPInstanceUID") == request.instance_uid)
        body = b"--BOUNDARY_x\r\nContent-Type: application/octet-stream\r\n\r\n"
        body += stored.frames[request.frame_numbers[0] - 1] + b"\r\n--BOUNDARY_x"  # not even closed
        return Fault(status=200, body=body, headers={"Content-Type": "application/octet-stream"})

    server.fault = static
    with Slide.open(server.series_url(truth.study_uid, truth.series_uid)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 30, 20, 200, 150), truth.truth(0, 30, 20, 200, 150))
