"""What is concluded from answers, and how a service is asked because of it."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, Request

from wsiweb import ReadOptions, Slide
from wsiweb.sources.base import MODERATE_CONNECTIONS, Cancellation
from wsiweb.sources.conclusions import Conclusions, Sample, conclude
from wsiweb.sources.pace import (
    BYTES,
    FRAMES_WHERE_REQUESTS_ARE_DEAR,
    MOST_FRAMES,
    NEAR_CONNECTIONS,
    Pace,
)
from wsiweb.sources.services import UNKNOWN, ServiceKind, recognise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker
    from synthetic import SyntheticSlide


def samples(
    fixed: float, each: float, cores: float, *, in_flight: float, frames: int = 32, times: int = 4, uid: str = "1"
) -> list[Sample]:
    """Answers of a server that works on ``cores`` requests at once, each ``fixed`` seconds of work."""
    wait = fixed * max(1.0, in_flight / cores)
    return [Sample(uid, frames, frames * 20_000, wait, wait + each * frames, in_flight)] * times


@pytest.mark.parametrize("cores", [1, 2, 3.5])
def test_work_and_latency_are_told_apart(cores: float) -> None:
    seen = conclude(samples(0.5, 0.001, cores, in_flight=1) + samples(0.5, 0.001, cores, in_flight=8), None)
    assert seen.parallel_requests == pytest.approx(cores)
    assert seen.dear
    assert seen.seconds_per_request == pytest.approx(0.5)
    assert seen.seconds_per_frame == pytest.approx(0.001)
    assert seen.bytes_per_frame == 20_000
    latency = conclude(samples(0.5, 0.001, 1000, in_flight=1) + samples(0.5, 0.001, 1000, in_flight=8), None)
    assert latency.parallel_requests == pytest.approx(8)
    assert not latency.dear


@pytest.mark.parametrize("connections", [3, 4, 8, 16])
def test_few_connections_are_no_sign_of_work(connections: int) -> None:
    """A service can work on no more requests than are made of it."""
    latency = samples(0.1, 0.001, 1000, in_flight=1) + samples(0.13, 0.001, 1000, in_flight=connections)
    assert not conclude(latency, None).dear


def test_nothing_is_concluded_from_one_kind_of_answers() -> None:
    assert conclude(samples(0.5, 0.001, 1, in_flight=8), None).parallel_requests is None
    assert conclude(samples(0.5, 0.001, 1, in_flight=1), None).parallel_requests is None
    assert conclude(samples(0.5, 0.001, 1, in_flight=1), 1.0).parallel_requests == 1.0
    assert conclude([], None) == Conclusions()
    assert conclude([], 1.0).dear


def test_instances_are_not_compared_with_each_other() -> None:
    small = samples(0.01, 0.001, 8, in_flight=1, uid="small")
    large = samples(1.0, 0.001, 8, in_flight=8, uid="large")
    assert conclude(small + large, None).parallel_requests is None


def test_waits_that_nobody_notices_change_nothing() -> None:
    seen = conclude(samples(0.001, 0.001, 1, in_flight=1) + samples(0.001, 0.001, 1, in_flight=8), None)
    assert seen.parallel_requests is None


def paced(found: list[Sample], connections: int = 8, kind: ServiceKind = UNKNOWN, wait_seconds: float = 0.03) -> Pace:
    """Return a pace that has seen these."""
    pace = Pace(connections, kind, wait_seconds=wait_seconds)
    pace._samples.extend(found)
    pace._conclusions = conclude(found, kind.parallel_requests)
    return pace


def test_where_requests_are_work_few_are_made() -> None:
    seen = samples(1.0, 0.0005, 2, in_flight=1) + samples(1.0, 0.0005, 2, in_flight=8)
    advice = paced(seen).advise(300)
    assert advice.requests == 1
    assert advice.max_frames == FRAMES_WHERE_REQUESTS_ARE_DEAR


def test_the_number_of_requests_is_the_best_of_the_model() -> None:
    """Against trying them all."""
    fixed, each, cores, frames = 0.2, 0.02, 2, 300
    seen = samples(fixed, each, cores, in_flight=1) + samples(fixed, each, cores, in_flight=8)
    seconds = {m: fixed * max(1, m / cores) + each * frames / m for m in range(1, 33)}
    best = min(seconds, key=lambda m: seconds[m])
    assert paced(seen, connections=32).advise(frames).requests == pytest.approx(best, abs=1)
    assert paced(seen, connections=3).advise(frames).requests == 3


def test_where_latency_rules_all_connections_are_used() -> None:
    seen = samples(0.1, 0.001, 100, in_flight=1) + samples(0.1, 0.001, 100, in_flight=8)
    assert paced(seen).advise(300).requests == 8


@pytest.mark.parametrize(("wait", "each", "expected"), [
    (0.001, 0.0003, 64),  # near
    (0.03, 0.0012, 100),
    (0.1, 0.004, 100),
    (0.1, 0.001, MOST_FRAMES),
    (0.03, 0.02, 64),  # large frames
])  # fmt: skip
def test_the_wait_for_a_request_is_a_small_part_of_it(wait: float, each: float, expected: int) -> None:
    """A connection carries nothing until the first frame comes."""
    seen = samples(wait, each, 100, in_flight=1) + samples(wait, each, 100, in_flight=8)
    assert paced(seen).advise(5000).max_frames == expected


@pytest.mark.parametrize(("wait", "each", "expected"), [
    (0.001, 0.00005, NEAR_CONNECTIONS),  # near
    (0.001, 0.0003, 7),
    (0.03, 0.0012, 8),
])  # fmt: skip
def test_no_more_connections_are_used_than_frames_can_be(wait: float, each: float, expected: int) -> None:
    seen = samples(wait, each, 100, in_flight=1, frames=64) + samples(wait, each, 100, in_flight=8, frames=64)
    pace = paced(seen, connections=16)
    assert pace.traits().connections == expected
    assert pace.advise(100_000).requests == expected


@pytest.mark.parametrize(("reads", "requests"), [(1, 8), (2, 4), (3, 2), (8, 1), (100, 1)])
def test_reads_share_the_connections(reads: int, requests: int) -> None:
    """Of eight regions that eight threads ask for, none comes sooner for being asked for in eight parts."""
    seen = samples(0.1, 0.001, 100, in_flight=1) + samples(0.1, 0.001, 100, in_flight=8)
    assert paced(seen).advise(300, reads).requests == requests


def carried(each: float, in_flight: float, *, frames: int = 50, times: int = 8) -> list[Sample]:
    """Answers after 100 ms, of connections that carry so many bytes a second each."""
    size = frames * 20_000
    return [Sample("1", frames, size, 0.1, 0.1 + size / each, in_flight)] * times


@pytest.mark.parametrize(("found", "connections", "expected"), [
    (carried(12e6, 8), 64, 8),
    (carried(9e6, 8), 64, 8),  # 11 would bring nothing
    (carried(100e6, 8), 64, 8),
    (carried(4e6, 8), 16, 16),
    (carried(4e6, 8), 64, 24),
    (carried(4e6, 8), 6, 6),
    (carried(4e6, 8) + carried(4e6, 16), 64, 24),
    (carried(4e6, 8) + carried(2.1e6, 16), 64, 8),  # the same in all
    (carried(4e6, 8) + carried(3e6, 16), 64, 24),
    (carried(1e6, 2) + carried(1e6, 16), 64, 64),
    (carried(0.5e6, 8, frames=1, times=4), 64, 8),  # too little to tell
])  # fmt: skip
def test_more_than_a_moderate_number_of_connections_need_a_reason(
    found: list[Sample], connections: int, expected: int
) -> None:
    pace = paced(found, connections=connections)
    assert pace.traits().connections == pace.advise(100_000).connections == expected
    assert pace.advise(100_000).requests == expected


@pytest.mark.parametrize(("found", "reads", "expected"), [
    (carried(12e6, 8, frames=9), 1, 8),
    (carried(12e6, 8, frames=9), 9, 8),  # so few more would bring nothing
    (carried(12e6, 8, frames=9), 14, 14),
    (carried(12e6, 8, frames=9), 100, 16),
    (carried(4e6, 8), 14, 16),
    (carried(12e6, 8) + carried(6e6, 16), 100, 8),  # the same in all
    (samples(0.001, 0.00005, 100, in_flight=8, frames=64), 100, NEAR_CONNECTIONS),
])  # fmt: skip
def test_many_reads_have_more_connections(found: list[Sample], reads: int, expected: int) -> None:
    """Small ones spend their time in waiting."""
    pace = paced(found, connections=16)
    assert pace.advise(9, reads).connections == expected
    pace.throttled()
    assert pace.advise(9, reads).connections == expected // 2


@pytest.mark.parametrize(("wait", "expected"), [
    (0.03, 8),
    (0.035, 8),
    (0.05, 13),
    (0.1, 24),
    (0.25, 24),
    (0.5, 8),  # nobody is as far as that: it was the metadata that took so long
])  # fmt: skip
def test_a_service_whose_answers_begin_late_is_taken_for_distant(wait: float, expected: int) -> None:
    assert Pace(64, wait_seconds=wait).advise(100_000).connections == expected
    assert Pace(64, ServiceKind("x", max_connections=4), wait_seconds=wait).advise(100_000).connections == 4


def test_where_requests_are_work_no_more_than_a_moderate_number_is_made() -> None:
    seen = samples(0.5, 0.001, 14, in_flight=1) + samples(0.5, 0.001, 14, in_flight=40)
    assert conclude(seen, None).dear
    assert paced(seen, connections=64).advise(100_000).requests <= 8


def test_a_failure_among_many_ends_what_was_more_than_moderate() -> None:
    pace = Pace(16, wait_seconds=0.1)
    pace.failed()  # alone: that was not the reason
    assert pace.advise(1000).connections == 16
    with contextlib.ExitStack() as others:
        for _ in range(MODERATE_CONNECTIONS):
            others.enter_context(pace.request(Cancellation()))
        pace.failed()
    assert pace.advise(1000).connections == 8
    assert not pace.traits().throttled
    pace.throttled()
    assert pace.advise(1000).connections == 4
    assert pace.traits().throttled
    for _ in range(300):
        with pace.request(Cancellation()):
            lap = pace.lap()
            lap.answered()
            pace.record(lap, "1", 1, 1000)
    assert pace.advise(1000).connections == 8  # and not 16: who drops what is too much has shown it
    assert not pace.traits().throttled


def test_many_connections_are_no_reason_for_more() -> None:
    """On a line that all share, each carries the less the more there are."""
    seen = conclude(carried(1e6, 16), None)
    assert (seen.bytes_per_second, seen.shared) == (None, False)
    assert conclude(carried(1e6, 16), None, 12e6).shared  # as was seen of few, before
    assert not conclude(carried(8e6, 16), None, 12e6).shared
    assert paced(carried(1e6, 16), connections=64).advise(100_000).connections == 8  # the guess stands
    assert paced(carried(1e6, 16), connections=64, wait_seconds=0.1).advise(100_000).connections == 24
    assert paced(carried(9e6, 16), connections=64, wait_seconds=0.1).advise(100_000).connections == 8


def test_throttling_halves_what_was_in_use_and_not_what_might_have_been() -> None:
    pace = Pace(64, wait_seconds=0.03)
    pace.throttled()
    assert pace.advise(1000).connections == 4


def test_a_service_that_answered_at_once_is_taken_for_near() -> None:
    assert Pace(8, wait_seconds=0.002).traits().connections == NEAR_CONNECTIONS
    assert Pace(8, wait_seconds=0.03).traits().connections == 8
    assert Pace(2, wait_seconds=0.002).traits().connections == 2


def test_requests_stay_below_a_size() -> None:
    large = [Sample("1", 4, 4 << 20, 0.1, 0.2, 1.0)]
    assert paced(large).advise(1000).max_frames == BYTES // (1 << 20)


def test_single_frames_are_asked_for_where_lists_are_slower_than_their_sum() -> None:
    """Orthanc from 1.18 on reads a single frame directly, and the whole instance for a list."""
    kind = ServiceKind("Orthanc", parallel_requests=1.0)
    lists = samples(2.0, 0.001, 1, in_flight=1)
    singles = samples(0.004, 0.001, 1, in_flight=1, frames=1)
    advice = paced(lists + singles, kind=kind).advise(100)
    assert (advice.requests, advice.max_frames) == (100, 1)
    slow = samples(1.9, 0.001, 1, in_flight=1, frames=1)
    assert paced(lists + slow, kind=kind).advise(100).requests == 1


def test_throttling_halves_the_connections_and_answers_win_them_back() -> None:
    pace = Pace(8)
    pace.throttled()
    pace.throttled()  # together with the first
    assert pace.advise(100).requests == 4
    pace._throttled_at -= 60
    pace.throttled()
    assert pace.advise(100).requests == 2
    assert pace.traits().throttled
    for _ in range(32):
        with pace.request(Cancellation()):
            lap = pace.lap()
            lap.answered()
            pace.record(lap, "1", 1, 1000)
    assert pace.advise(100).requests == 3
    for _ in range(5 * 32):
        with pace.request(Cancellation()):
            lap = pace.lap()
            lap.answered()
            pace.record(lap, "1", 1, 1000)
    assert pace.advise(100).requests == 8
    assert not pace.traits().throttled


def test_a_limit_is_remembered() -> None:
    pace = Pace(8)
    pace.too_large(64)
    pace.too_large(50)
    assert pace.advise(1000).max_frames == 25
    pace.too_large(1)
    assert pace.advise(1000).max_frames == 1


def test_a_limit_is_doubted_after_many_answers_and_ever_less_often() -> None:
    """One that was a stray refusal is gone soon; one that stands costs a request now and then."""
    pace = Pace(8)
    pace.too_large(64)
    answers = []
    for _ in range(4):
        count = 0
        while pace.advise(1000).max_frames < 64:
            lap = pace.lap()
            lap.answered()
            pace.record(lap, "1.2", 32, 32)
            count += 1
        answers.append(count)
        pace.too_large(64)
        pace.too_large(64)  # that was in flight beside it
    assert answers == [32, 64, 128, 256]


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    pace = Pace(2)
    inside, most = 0, 0
    lock = threading.Lock()

    def ask() -> None:
        nonlocal inside, most
        for _ in range(50):
            with pace.request(Cancellation()):
                with lock:
                    inside += 1
                    most = max(most, inside)
                threading.Event().wait(0.001)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_who_waits_for_a_connection_can_be_cancelled() -> None:
    pace, cancellation = Pace(1), Cancellation()
    entered = threading.Event()

    def wait() -> None:
        with pace.request(cancellation):
            entered.set()

    with pace.request(Cancellation()):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.05)
        cancellation.cancel()
        assert entered.wait(5)
        thread.join()


# What services are known by ----------------------------------------------------------------------

ORTHANC_BULK = b'{"BulkDataURI":"http://a/dicom-web/studies/1.2/series/1.3/instances/1.4/bulk/00480105/1/00282000"}'


def test_services_that_must_be_known() -> None:
    assert recognise("https://proxy.imaging.datacommons.cancer.gov/current/x/dicomWeb").max_connections == 4
    assert recognise("https://healthcare.googleapis.com/v1/projects/p/dicomWeb").name.startswith("Google")
    assert recognise("https://pacs.example/rs", {"date": "x"}, ORTHANC_BULK).name == "Orthanc"
    assert recognise("https://pacs.example/rs", {"keep-alive": "timeout=1"}, b"[]").name == "Orthanc"
    assert recognise("https://pacs.example/rs", {"keep-alive": "timeout=1", "server": "nginx"}, b"[]") is UNKNOWN
    assert recognise("https://pacs.example/rs", {"date": "x"}, b'"/instances/1.4/bulkdata/x"') is UNKNOWN


# Against a server with costs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg-mono8", sizes=((4200, 4150), (1050, 1037)), tile_size=(256, 256))


@pytest.fixture
def server(big: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(big.folder) as server:
        yield server


def test_a_server_that_works_on_one_request_at_a_time_is_asked_for_much_at_once(
    server: DICOMwebServer, big: SyntheticSlide
) -> None:
    """Each request takes 150 ms of the only worker: eight requests take more than a second, one takes 150 ms."""
    turns = threading.Lock()
    served = 0

    def work(request: Request) -> Fault | None:
        nonlocal served
        if request.kind == "frames":
            with turns:
                served += 1
                threading.Event().wait(0.15)
            return None
        return Fault(latency_seconds=0.05)  # at such a distance a first read is spread over many requests

    server.fault = work
    options = ReadOptions(tile_cache_bytes=0, frame_cache_bytes=0)
    with Slide.open(server.series_url(big.study_uid, big.series_uid), options=options) as slide:
        for row in range(3):
            slide.read_region(0, 0, 256 * row, 200, 200)  # alone
        requests: list[int] = []
        while requests[-1:] not in ([1], [2]) and len(requests) < 10:  # how soon depends on how busy this machine is
            server.forget()
            region = slide.read_region(0, 2400, 0, 1800, 4100)  # together
            requests.append(server.count("frames"))
        assert requests[0] > requests[-1]
        assert requests[-1] <= 2
        np.testing.assert_array_equal(region, big.truth(0, 2400, 0, 1800, 4100))
        traits = slide.stats.service
        assert traits is not None
        assert traits.parallel_requests is not None
        assert traits.parallel_requests < 2.5
        assert traits.frames_per_request > 200
        assert traits.requests_at_once <= 2


def test_a_server_with_latency_is_asked_on_several_connections(server: DICOMwebServer, big: SyntheticSlide) -> None:
    server.fault = lambda request: Fault(latency_seconds=0.06)
    with Slide.open(server.series_url(big.study_uid, big.series_uid)) as slide:
        slide.read_region(0, 0, 0, 200, 200)
        slide.read_region(0, 256, 0, 2048, 2048)
        server.forget()
        slide.read_region(0, 2400, 0, 1800, 4100)
        assert server.count("frames") > 1


def far(request: Request) -> Fault | None:
    """Answer after 100 ms, over connections that carry 2 MB/s."""
    if request.kind != "frames":
        return Fault(latency_seconds=0.1)
    return Fault(latency_seconds=0.1, drip=(20_000, 0.01))


def test_a_distant_server_is_asked_on_more_connections(server: DICOMwebServer, big: SyntheticSlide) -> None:
    server.fault = far
    with Slide.open(server.series_url(big.study_uid, big.series_uid)) as slide:
        region = slide.read_region(0, 0, 0, 4200, 4150)
        np.testing.assert_array_equal(region, big.truth(0, 0, 0, 4200, 4150))
    most = max(request.concurrent for request in server.requests)
    assert MODERATE_CONNECTIONS < most <= ReadOptions().max_connections


def test_regions_of_many_threads_share_the_connections(server: DICOMwebServer, big: SyntheticSlide) -> None:
    """Alone, a region of eight frames is asked for in eight parts, of which most would wait for a connection."""
    boxes = [(1024 * column, 512 * row, 1024, 512) for row in range(8) for column in range(4)]
    all_wait = threading.Event()

    def answer(request: Request) -> Fault | None:
        if request.kind == "frames":
            all_wait.wait(20)
        return far(request)

    server.fault = answer
    with (
        Slide.open(server.series_url(big.study_uid, big.series_uid)) as slide,
        ThreadPoolExecutor(len(boxes)) as threads,
    ):
        reads = [threads.submit(slide.read_region, 0, *box) for box in boxes]
        while len(slide._reader._active) < len(boxes) and not any(read.done() for read in reads):
            threading.Event().wait(0.01)
        all_wait.set()
        for box, read in zip(boxes, reads, strict=True):
            np.testing.assert_array_equal(read.result(), big.truth(0, *box))
    most = ReadOptions().max_connections
    assert MODERATE_CONNECTIONS < max(request.concurrent for request in server.requests) <= most
    # The first to come does not know of the others, the second of the first alone...
    shares = [max(most // (1 + others), 1) for others in range(len(boxes))]
    assert len(boxes) <= server.count("frames") <= sum(min(share, 8) for share in shares) < 2 * len(boxes)


@pytest.mark.parametrize("refusal", [Fault(status=503), Fault(reset_after_bytes=0)])
def test_a_distant_server_that_takes_no_more_connections_is_asked_on_fewer(
    server: DICOMwebServer, big: SyntheticSlide, refusal: Fault
) -> None:
    """As nginx does with limit_conn, and firewalls do."""
    server.fault = lambda request: refusal if request.concurrent > MODERATE_CONNECTIONS else far(request)
    options = ReadOptions(tile_cache_bytes=0, frame_cache_bytes=0)
    with Slide.open(server.series_url(big.study_uid, big.series_uid), options=options) as slide:
        region = slide.read_region(0, 0, 0, 4200, 4150)
        np.testing.assert_array_equal(region, big.truth(0, 0, 0, 4200, 4150))
        assert max(request.concurrent for request in server.requests) > MODERATE_CONNECTIONS
        server.forget()
        slide.read_region(0, 0, 0, 4200, 4150)
        assert max(request.concurrent for request in server.requests) <= MODERATE_CONNECTIONS
