"""Refusals: for each status the right pixels or the named error, after exactly so many requests."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, every, fail_first, quota_page
from orthanc import free_port
from personalities import GOOGLE, IDC, ORTHANC_17
from serving import open_slide, within

from wsiweb import (
    AuthenticationError,
    QuotaExceededError,
    ReadOptions,
    Slide,
    SlideNotFoundError,
    SourceError,
    SourceTimeoutError,
    ThrottledError,
)
from wsiweb.sources import pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import SlideMaker
    from faults import Kind, Request
    from personalities import Personality
    from synthetic import SyntheticSlide

pytestmark = pytest.mark.usefixtures("hurried")
BOX = (0, 0, 256, 144)
NUMBERS = tuple(row * 11 + column + 1 for row in range(3) for column in range(4))
SECOND_BOX = (256, 0, 256, 144)
TILE = (0, 0, 64, 48)
ONE_AT_A_TIME = ReadOptions(max_connections=1, frames_per_request=12, max_attempts=3, timeout_seconds=5)
SECRET = "s3cr3t-t0ken"


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def read(slide: Slide, truth: SyntheticSlide, box: tuple[int, int, int, int] = BOX) -> None:
    np.testing.assert_array_equal(slide.read_region(0, *box), truth.truth(0, *box))


def asked(server: DICOMwebServer) -> list[tuple[int, ...]]:
    with server.lock:
        return [request.frame_numbers for request in server.requests if request.kind == "frames"]


def failure(action: Callable[[], object]) -> str:
    """Return what the error says that must come."""
    with pytest.raises(SourceError) as caught:
        action()
    return str(caught.value)


# Worth another try ------------------------------------------------------------------------------------------

TRY_AGAIN = (408, 424, 425, 429, 500, 502, 503, 504, 507)


@pytest.mark.parametrize("status", TRY_AGAIN)
@pytest.mark.parametrize("kind", ["frames", "metadata"])
def test_passing(server: DICOMwebServer, truth: SyntheticSlide, status: int, kind: Kind) -> None:
    server.fault = fail_first(2, Fault(status=status, body=b"busy"), kind=kind)
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth)
        assert slide.stats.requests == server.count() == 4
        assert slide.stats.retries == 2


@pytest.mark.parametrize("status", TRY_AGAIN)
def test_lasting(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    """Of one frame: so many attempts, then the server's own words."""
    server.fault = every(Fault(status=status, body=b"The store is busy"))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(ThrottledError if status == 429 else SourceError) as caught:
            slide.read_region(0, *TILE)
        assert (caught.value.status, caught.value.frame_numbers) == (status, (1,))
        for text in (str(status), "The store is busy", truth.levels[0].instance_uids[0], "Frame 1 "):
            assert text in str(caught.value)
        if status != 500:  # where another form of the request may be tried
            assert server.count("frames") == 3
            assert "3 attempts" in str(caught.value)
            assert "max_attempts" in str(caught.value)
        server.fault = lambda request: None
        read(slide, truth)


def test_lasting_500_tries_one_other_form(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Orthanc says 500 where it cannot transcode."""
    server.fault = every(Fault(status=500, body=b"Cannot transcode image"))
    with open_slide(server, truth, options=ReadOptions(max_attempts=5)) as slide:
        assert "Cannot transcode image" in failure(lambda: slide.read_region(0, *TILE))
    accepts = [request.headers["accept"] for request in server.requests if request.kind == "frames"]
    assert len(set(accepts)) >= 2
    assert len(accepts) <= 10


def test_a_500_of_a_list_is_halved(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """A store that cannot answer as many at once (IDC's proxy has a limit of 32 MB)."""

    def five_at_most(request: Request) -> Fault | None:
        return Fault(status=500) if len(request.frame_numbers) > 5 else None

    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth, (640, 480, 60, 50))  # what works is known
        server.forget()
        server.fault = five_at_most
        read(slide, truth)
    sizes = [len(numbers) for numbers in asked(server)]
    assert max(sizes.count(12), sizes.count(6)) <= 6
    assert sum(size for size in sizes if size <= 5) == 12


# Limits of lists and URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 414, 431])
def test_a_limit_is_found(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    def five_at_most(request: Request) -> Fault | None:
        return Fault(status=status) if len(request.frame_numbers) > 5 else None

    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth, (640, 480, 60, 50))
        server.forget()
        server.fault = five_at_most
        read(slide, truth)
        assert slide.stats.requests == 2 + len(asked(server))
    sizes = [len(numbers) for numbers in asked(server)]
    assert sizes[:3] == [12, 6, 3]
    assert sum(size for size in sizes if size <= 5) == 12
    assert len(sizes) <= 7


@pytest.mark.parametrize("status", [413, 414, 431])
def test_a_limit_is_remembered(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    def five_at_most(request: Request) -> Fault | None:
        return Fault(status=status) if len(request.frame_numbers) > 5 else None

    server.fault = five_at_most
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth)
        server.forget()
        read(slide, truth, SECOND_BOX)
        assert max(len(numbers) for numbers in asked(server)) <= 5
        assert len(asked(server)) <= 4
        server.forget()
        slide.thumbnail(100)  # another instance, the same service
        assert max(len(numbers) for numbers in asked(server)) <= 5


@pytest.mark.parametrize(("personality", "status"), [(GOOGLE, 414), (ORTHANC_17, 400)])
def test_urls_too_long(truth: SyntheticSlide, personality: Personality, status: int) -> None:
    """A proxy that takes 500 characters."""
    with DICOMwebServer(truth.folder, personality=personality) as server:

        def short_urls_only(request: Request) -> Fault | None:
            return Fault(status=status) if request.kind == "frames" and len(request.path) > 330 else None

        with open_slide(server, truth, options=ReadOptions(max_connections=1)) as slide:
            read(slide, truth, TILE)
            server.fault = short_urls_only
            read(slide, truth, (0, 0, 700, 530))
    assert max(len(numbers) for numbers in asked(server)) > 30


@pytest.mark.parametrize("status", [413, 414, 431])
def test_one_frame_that_is_too_much(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    server.fault = every(Fault(status=status, body=b"Too large"))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(SourceError, match=f"{status}.*Too large") as caught:
            slide.read_region(0, *BOX)
        assert caught.value.frame_numbers == (1,)
        assert [len(numbers) for numbers in asked(server)] == [12, 6, 3, 1]


def test_413_with_retry_after_is_waited_for(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = fail_first(1, Fault(status=413, headers={"Retry-After": "0"}))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth, TILE)
    assert server.count("frames") == 2


# Refused for good -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [406, 415, 501])
def test_no_form_is_accepted(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    server.fault = every(Fault(status=status, body=b"Unsupported"))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(SourceError, match=f"{status}.*Unsupported.*tried") as caught:
            slide.read_region(0, *TILE)
        assert (caught.value.status, caught.value.frame_numbers) == (status, (1,))
    accepts = [request.headers["accept"] for request in server.requests if request.kind == "frames"]
    assert len(accepts) == len(set(accepts))  # each once
    assert accepts[0] == 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    assert 3 <= len(accepts) <= 5
    assert all(accept in str(caught.value) for accept in accepts)


@pytest.mark.parametrize("status", [402, 405, 409, 412, 418, 451, 505, 300, 304, 599])
def test_statuses_of_no_use(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    server.fault = every(Fault(status=status, body=b"" if status == 304 else b"Never"))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(SourceError, match=str(status)) as caught:
            slide.read_region(0, *BOX)
        assert caught.value.status == status
        assert server.count("frames") == 1


@pytest.mark.parametrize("status", [404, 410])
def test_frames_that_are_gone(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    """The bad one is named, and the rest of its list is not lost."""

    def without_14(request: Request) -> Fault | None:
        return Fault(status=status, body=b"No longer accessible.") if 14 in request.frame_numbers else None

    server.fault = without_14
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(SourceError, match=f"Frame 14 of .*{status}.*No longer accessible") as caught:
            slide.read_region(0, *BOX)
        assert not isinstance(caught.value, SlideNotFoundError)
        assert (caught.value.status, caught.value.frame_numbers) == (status, (14,))
        # 12 -> (1-4, 12, 13) and (14, 15, 23-26) -> (14, 15, 23) -> 14
        assert [len(numbers) for numbers in asked(server)] == [12, 6, 6, 3, 1]
        read(slide, truth, (0, 0, 256, 48))
        assert len(asked(server)) == 5


@pytest.mark.parametrize("status", [400, 404, 410, 418])
def test_a_series_that_is_not_there(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    server.fault = every(Fault(status=status, body=b"No such series"), "metadata")
    gone = status in (404, 410)
    with pytest.raises(SlideNotFoundError if gone else SourceError, match="No such series") as caught:
        open_slide(server, truth)
    assert truth.series_uid in str(caught.value)
    assert server.count() == 1


# Throttling -------------------------------------------------------------------------------------------------


def google_429() -> Fault:
    error = {
        "error": {"code": 429, "message": "Quota exceeded for requests per minute", "status": "RESOURCE_EXHAUSTED"}
    }
    return Fault(status=429, body=json.dumps(error).encode(), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("kind", ["frames", "metadata"])
def test_a_daily_quota_is_final(truth: SyntheticSlide, kind: Kind) -> None:
    with DICOMwebServer(truth.folder, personality=IDC) as server:
        server.fault = every(quota_page(), kind)
        with (
            pytest.raises(QuotaExceededError, match=r"40 GB.*midnight UTC") as caught,
            open_slide(server, truth) as slide,
        ):
            slide.read_region(0, *BOX)
        assert caught.value.status == 429
        assert server.count(kind) == (1 if kind == "metadata" else server.count() - 1)
        assert server.count("frames") <= 8  # in flight at the same time
        assert "local files" in str(caught.value)


def test_a_quota_by_the_minute_is_waited_for(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = fail_first(2, google_429())
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth)
        assert server.count("frames") == 3


def in_seconds(seconds: int) -> str:
    return email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503, 500, 408])
@pytest.mark.parametrize("value", ["0", "-1", "soon", "", "date", "past date", "9999999999999999999 GMT"])
def test_retry_after(server: DICOMwebServer, truth: SyntheticSlide, status: int, value: str) -> None:
    value = {"date": in_seconds(0), "past date": in_seconds(-1000)}.get(value, value)
    server.fault = fail_first(1, Fault(status=status, headers={"Retry-After": value}))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth)
    assert server.count("frames") == 2


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    server.fault = fail_first(1, Fault(status=status, headers={"Retry-After": "1"}))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        read(slide, truth)
    first, second = (request.arrived for request in server.requests if request.kind == "frames")
    assert second - first >= 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("value", ["86400", "9" * 30, "date"])
def test_a_huge_retry_after_is_final(server: DICOMwebServer, truth: SyntheticSlide, status: int, value: str) -> None:
    value = in_seconds(86_400) if value == "date" else value
    server.fault = every(Fault(status=status, headers={"Retry-After": value}))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(ThrottledError, match="asks to wait") as caught:
            slide.read_region(0, *BOX)
        assert (caught.value.status, server.count("frames")) == (status, 1)
        server.fault = lambda request: None
        read(slide, truth)  # the gate is not shut for so long


def test_a_storm_meets_one_gate(server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 single frames over 8 connections only those in flight are refused, not each in turn."""
    monkeypatch.setattr(pace, "NEAR_CONNECTIONS", 8)  # however near the service seems, all are used
    first_eight = fail_first(8, Fault(status=503, headers={"Retry-After": "1"}))
    all_in_flight = threading.Barrier(8, timeout=30)

    def storm(request: Request) -> Fault | None:
        fault = first_eight(request)
        if fault:
            all_in_flight.wait()
        return fault

    server.fault = storm
    options = ReadOptions(max_connections=8, frames_per_request=1, max_attempts=3)
    with open_slide(server, truth, options=options) as slide:
        boxes = [(x * 64, y * 48, 64, 48) for y in range(8) for x in range(8)]

        def read_one(box: tuple[int, int, int, int]) -> None:
            read(slide, truth, box)

        with ThreadPoolExecutor(8) as pool:
            reads = [pool.submit(read_one, box) for box in boxes]
            for done in reads:
                done.result(timeout=60)
    assert server.count("frames") == 64 + 8
    first = sorted(request.arrived for request in server.requests if request.kind == "frames")
    assert first[8] - first[7] >= 1


def test_all_slides_of_a_service_meet_the_same_gate(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = fail_first(1, Fault(status=503, headers={"Retry-After": "1"}))
    with open_slide(server, truth) as first, open_slide(server, truth) as second, ThreadPoolExecutor(1) as pool:
        done = pool.submit(read, first, truth, TILE)
        gate = cast("Any", first)._reader.source._gate
        while not gate._opens_at:
            time.sleep(0.001)
        read(second, truth, TILE)
        done.result(timeout=60)
    refused, *others = sorted(request.arrived for request in server.requests if request.kind == "frames")
    assert len(others) == 2
    assert others[0] - refused >= 1


# Credentials ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["frames", "metadata"])
@pytest.mark.parametrize("how", ["nothing", "token", "auth", "headers", "callable"])
def test_refused_credentials(server: DICOMwebServer, truth: SyntheticSlide, status: int, kind: Kind, how: str) -> None:
    """One request, two where a new token can be had; and the credentials stay out of sight."""
    calls: list[int] = []

    def renewed() -> str:
        calls.append(1)
        return SECRET

    ways: dict[str, dict[str, Any]] = {
        "nothing": {},
        "token": {"token": SECRET},
        "auth": {"auth": ("user", SECRET)},
        "headers": {"headers": {"Authorization": f"Bearer {SECRET}"}},
        "callable": {"token": renewed},
    }

    def use() -> None:
        with open_slide(server, truth, options=ONE_AT_A_TIME, **ways[how]) as slide:
            assert SECRET not in repr(slide)
            slide.read_region(0, *BOX)

    server.fault = every(Fault(status=status, body=b"No entry"), kind)
    with pytest.raises(AuthenticationError, match=f"{status}.*No entry") as caught:
        use()
    assert caught.value.status == status
    assert server.count(kind) == (2 if how == "callable" and status == 401 else 1)
    assert len(calls) == (0 if how != "callable" else 1 if status == 403 else 2)
    for error in chain(caught.value):
        assert SECRET not in f"{error!s} {error!r} {vars(error)}"


def chain(error: BaseException | None) -> list[BaseException]:
    """Return an error with its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def test_no_error_is_its_own_cause(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Who walks the causes would never come back."""
    server.fault = every(Fault(status=401), "metadata")
    with pytest.raises(AuthenticationError) as caught:
        open_slide(server, truth)
    assert all(error.__cause__ is not error for error in chain(caught.value))


@pytest.mark.parametrize("first", ["metadata", "frames"])
def test_a_token_is_renewed_once_for_all_threads(server: DICOMwebServer, truth: SyntheticSlide, first: str) -> None:
    lock = threading.Lock()
    tokens = ["one"]

    def token() -> str:
        with lock:
            issued.append(tokens[-1])
            return tokens[-1]

    issued: list[str] = []

    def expired(request: Request) -> Fault | None:
        with lock:
            current = tokens[-1]
        if request.headers["authorization"] != f"Bearer {current}":
            return Fault(status=401, latency_seconds=0.05)
        return None

    server.fault = expired
    with open_slide(server, truth, token=token, options=ReadOptions(max_connections=8, frames_per_request=1)) as slide:
        read(slide, truth, TILE)
        with lock:
            tokens.append("two")
        before = server.count("frames")
        read(slide, truth, (0, 48, 512, 96))  # 16 frames over 8 connections
        assert issued == ["one", "two"]
        assert server.count("frames") - before <= 16 + 8
        assert slide.stats.requests == server.count()


def test_a_token_that_cannot_be_had(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    def token() -> str:
        raise RuntimeError(f"the vault is shut ({SECRET})")

    with pytest.raises(AuthenticationError, match="token"):
        open_slide(server, truth, token=token)
    assert server.count() == 0


@pytest.mark.parametrize("token", [42, b"s3cr3t", "", "s3cr3t\n", "Bearer s3cr3t", "s3cr\u20act"])
@pytest.mark.parametrize("supplied", [False, True])
def test_what_is_no_token(server: DICOMwebServer, truth: SyntheticSlide, token: Any, supplied: bool) -> None:
    """It is named, and not shown; nothing is sent."""
    with pytest.raises(AuthenticationError, match=r"token= is") as caught:
        open_slide(server, truth, token=(lambda: token) if supplied else token)
    assert "s3cr" not in str(caught.value)
    if not isinstance(token, str):
        assert type(token).__name__ in str(caught.value)
    assert server.count() == 0


# At first contact -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["refused", "no such host", "no TLS", "bad port"])
def test_who_was_never_reached(server: DICOMwebServer, truth: SyntheticSlide, place: str) -> None:
    """At once, not after attempts with backoff; the message says what to check."""
    url, hint = {
        "refused": (f"http://127.0.0.1:{free_port()}/dicom-web", "address"),
        "no such host": ("http://no-such-host.invalid/dicom-web", "address"),
        "no TLS": (server.url.replace("http://", "https://"), "TLS"),
        "bad port": ("http://127.0.0.1:99999/dicom-web", "(?i)port"),
    }[place]
    with pytest.raises(SlideNotFoundError if place == "bad port" else SourceError, match=hint):
        within(30, lambda: Slide.open(url, study_uid=truth.study_uid, series_uid=truth.series_uid, token=SECRET))
    assert server.count() == 0


def test_a_server_that_goes_away_is_waited_for(truth: SyntheticSlide) -> None:
    """Once reached, a refused connection may be a restart."""
    with DICOMwebServer(truth.folder) as server:
        slide = open_slide(server, truth, options=ONE_AT_A_TIME)
    with slide, pytest.raises(SourceError, match=r"3 attempts.*No connection"):
        slide.read_region(0, *TILE)


@pytest.mark.parametrize("seconds", [0.2, 0.5])
def test_silence_has_an_end(server: DICOMwebServer, truth: SyntheticSlide, seconds: float) -> None:
    server.fault = every(Fault(latency_seconds=30))
    options = ReadOptions(timeout_seconds=seconds, max_attempts=2)
    with open_slide(server, truth, options=options) as slide:
        with pytest.raises(SourceTimeoutError, match=r"2 attempts.*silent"):
            slide.read_region(0, *TILE)
        assert server.count("frames") == 2


@pytest.mark.parametrize("fault", [Fault(latency_seconds=30), Fault(drip=(1, 0.05)), Fault(status=503)])
def test_a_deadline_holds_for_metadata(server: DICOMwebServer, truth: SyntheticSlide, fault: Fault) -> None:
    server.fault = every(fault, "metadata")
    options = ReadOptions(deadline_seconds=0.5, timeout_seconds=0.4, max_attempts=100)
    with pytest.raises(SourceError):
        within(25, lambda: open_slide(server, truth, options=options))
