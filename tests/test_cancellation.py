"""Whatever a read waits for, ``close`` and Ctrl-C end it at once, and leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import urllib3
from dicomweb_server import DICOMwebServer
from faults import Fault, every
from serving import open_slide, settled, within
from synthetic import srgb_profile

import wsiweb
from wsiweb import ReadOptions, Slide, SourceError, WsiWebError, regions, workers
from wsiweb.cache import SingleFlightCache
from wsiweb.reader import Reader
from wsiweb.sources.local import LocalSource
from wsiweb.sources.wire import bind
from wsiweb.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker
    from faults import Kind
    from synthetic import SyntheticSlide

WAITS = {
    "backoff": Fault(status=503, headers={"Retry-After": "50"}),
    "backoff of its own": Fault(status=502),
    "silence": Fault(latency_seconds=50),
    "silence in the middle": Fault(stall_after_bytes=3000),
    "silence in the middle of chunks": Fault(stall_after_bytes=3000, framing="chunked"),
    "a slow body": Fault(drip=(10, 0.05)),
    "a slow body in chunks": Fault(drip=(10, 0.05), framing="chunked"),
}
PATIENT = ReadOptions(
    timeout_seconds=60, deadline_seconds=100, max_attempts=100, max_connections=4, frames_per_request=4
)
PROMPTLY_SECONDS = 6
"""Against waits of 50 s and more; a machine may be slow."""


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


@pytest.mark.parametrize("name", WAITS)
def test_close_ends_reads_of_other_threads(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    slide = open_slide(server, truth, options=PATIENT)
    server.fault = every(WAITS[name])
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(slide.read_region, 0, place * 128, 0, 300, 200) for place in range(3)]
        while not server.count("frames"):
            time.sleep(0.01)
        time.sleep(0.1)
        within(PROMPTLY_SECONDS, slide.close)
        for read in reads:
            with pytest.raises(WsiWebError, match="closed"):
                read.result(timeout=PROMPTLY_SECONDS)
    made = slide.stats.requests
    with pytest.raises(WsiWebError, match="closed"):
        slide.read_region(0, 0, 0, 9, 9)
    settled()
    assert slide.stats.requests == made
    assert server.count() <= made  # a busy server notes what was sent before a little later


BULK_WAITS = {
    "backoff": WAITS["backoff"],
    "silence": WAITS["silence"],
    "silence in the middle": Fault(stall_after_bytes=300),
    "until the end of the connection": Fault(stall_after_bytes=300, framing="close"),
    "a slow body": Fault(drip=(1, 0.2)),
}


@pytest.mark.parametrize("name", BULK_WAITS)
def test_close_ends_what_other_threads_ask_for_beside_frames(synthetic: SlideMaker, name: str) -> None:
    """What had come of a value by then is none."""
    truth = synthetic("rgb", icc_profile=srgb_profile(), sizes=((100, 70),))
    with DICOMwebServer(truth.folder) as server:
        slide = open_slide(server, truth, options=PATIENT)
        server.fault = every(BULK_WAITS[name], "bulk")
        with ThreadPoolExecutor(1) as pool:
            profile = pool.submit(lambda: slide.icc_profile)
            while not server.count("bulk"):
                time.sleep(0.01)
            time.sleep(0.1)
            within(PROMPTLY_SECONDS, slide.close)
            with pytest.raises(WsiWebError, match="closed"):
                profile.result(timeout=PROMPTLY_SECONDS)
        assert server.count("bulk") == 1


@pytest.mark.parametrize("name", ["silence", "silence in the middle", "backoff"])
def test_a_read_that_was_stopped_is_not_waited_for(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    """The next one of the same frames asks anew, while the server still owes the first its answer."""
    with open_slide(server, truth, options=PATIENT) as slide:
        server.fault = every(WAITS[name])
        first = cast("Any", slide.read_regions(0, [(0, 0, 300, 200)]))
        stopped = ThreadPoolExecutor(1).submit(next, first)
        while not server.count("frames"):
            time.sleep(0.01)
        time.sleep(0.1)
        server.fault = lambda request: None
        second = ThreadPoolExecutor(1).submit(slide.read_region, 0, 0, 0, 300, 200)
        first.close()
        if name != "backoff":  # by which the whole service is held back
            np.testing.assert_array_equal(second.result(timeout=PROMPTLY_SECONDS), truth.truth(0, 0, 0, 300, 200))
        with pytest.raises(WsiWebError, match="closed"):
            stopped.result(timeout=PROMPTLY_SECONDS)


@pytest.mark.parametrize("where", ["_foresee", "_use_wait_for", "_wait_for"])
def test_close_may_come_from_another_thread_at_any_moment(
    truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    method, attempt = getattr(Stream, where), Reader._attempt
    closed = threading.Event()

    def attempt_later(reader: Any, *args: Any) -> Any:
        closed.wait(0 if where == "_wait_for" else PROMPTLY_SECONDS)
        return attempt(reader, *args)

    def close_behind(stream: Stream, *args: Any) -> Any:
        found = method(stream, *args)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(stream.close).result()
        closed.set()
        return found

    with Slide.open(truth.folder) as slide:
        arrays = slide.read_regions(0, [(x, 0, 64, 48) for x in range(0, 640, 64)])
        monkeypatch.setattr(Stream, where, close_behind)
        monkeypatch.setattr(Reader, "_attempt", attempt_later)
        with pytest.raises(WsiWebError, match="closed, in another thread"):
            next(arrays)


@pytest.mark.parametrize("abandoned_first", [False, True])
def test_a_read_that_was_stopped_may_bring_a_tile_all_the_same(
    truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch, abandoned_first: bool
) -> None:
    """Just when another has taken it over, and is about to have it produced."""
    attempt, claim, resolve = Reader._attempt, SingleFlightCache.claim, SingleFlightCache.resolve
    decoded, stopped, brought = threading.Event(), threading.Event(), threading.Event()

    def slow_attempt(reader: Any, *args: Any) -> Any:
        outcome = attempt(reader, *args)
        if not decoded.is_set():
            decoded.set()
            stopped.wait(PROMPTLY_SECONDS)
        return outcome

    def slow_claim(cache: Any, keys: Any, waiter: Any) -> Any:
        found = claim(cache, keys, waiter)
        if decoded.is_set() and found.ours:
            stopped.set()
            assert brought.wait(PROMPTLY_SECONDS)
        elif decoded.is_set():
            first.close()
        return found

    def noted_resolve(*args: Any) -> None:
        resolve(*args)
        brought.set()

    monkeypatch.setattr(Reader, "_attempt", slow_attempt)
    monkeypatch.setattr(SingleFlightCache, "claim", slow_claim)
    monkeypatch.setattr(SingleFlightCache, "resolve", noted_resolve)
    with Slide.open(truth.folder) as slide:
        first = cast("Any", slide.read_regions(0, [(0, 0, 9, 9)]))
        first._stream.start()
        assert decoded.wait(PROMPTLY_SECONDS)
        if not abandoned_first:
            first.close()
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 9, 9), truth.truth(0, 0, 0, 9, 9))


@pytest.mark.parametrize("stopped_in", ["fetch", "decode"])
def test_who_takes_over_from_a_read_that_was_stopped_asks_once(
    truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    """What the first still has to abandon, once it hears of its end, is the second's by then."""
    fetch, attempt = LocalSource.fetch, Reader._attempt
    gates = [threading.Event() for _ in range(3)]
    held, asked = itertools.count(), itertools.count()
    reached = threading.Semaphore(0)

    def hold(where: str) -> None:
        if where == stopped_in:
            gate = gates[next(held)]
            reached.release()
            gate.wait(PROMPTLY_SECONDS)

    def slow_fetch(source: Any, batch: Any, cancellation: Any, preview: Any = None) -> Iterator[Any]:
        next(asked)
        hold("fetch")
        yield from fetch(source, batch, cancellation, preview)

    def slow_attempt(reader: Any, *args: Any) -> Any:
        hold("decode")
        return attempt(reader, *args)

    monkeypatch.setattr(LocalSource, "fetch", slow_fetch)
    monkeypatch.setattr(Reader, "_attempt", slow_attempt)
    with Slide.open(truth.folder) as slide, ThreadPoolExecutor(2) as pool:
        first = cast("Any", slide.read_regions(0, [(0, 0, 9, 9)]))
        stopped = pool.submit(next, first)
        assert reached.acquire(timeout=PROMPTLY_SECONDS)
        second = pool.submit(slide.read_region, 0, 0, 0, 9, 9)
        first.close()
        assert reached.acquire(timeout=PROMPTLY_SECONDS)
        gates[0].set()
        assert not reached.acquire(timeout=0.3)  # as a third would soon
        gates[1].set()
        np.testing.assert_array_equal(second.result(timeout=PROMPTLY_SECONDS), truth.truth(0, 0, 0, 9, 9))
        with pytest.raises(WsiWebError, match="closed"):
            stopped.result(timeout=PROMPTLY_SECONDS)
    assert next(asked) == 2


@pytest.mark.parametrize("kind", ["fetch", "decode"])
def test_no_thread_can_be_started(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The system allows no more: the caller hears of it, and reads when there are some again."""
    started = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith(f"wsiweb-{kind}"):
            raise RuntimeError("can't start new thread")
        started(thread)

    with open_slide(server, truth) as slide:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(WsiWebError, match="thread"):
                within(PROMPTLY_SECONDS, lambda: slide.read_region(0, 0, 0, 100, 100))
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 100, 100), truth.truth(0, 0, 0, 100, 100))


def test_an_error_ends_the_rest(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Of a read of many requests, one fails for good: those in flight are dropped, no more are made."""
    server.fault = lambda request: (
        Fault(status=418) if 1 in request.frame_numbers else Fault(drip=(5, 0.05)) if request.kind == "frames" else None
    )
    options = ReadOptions(max_connections=4, frames_per_request=4, max_attempts=1)
    with open_slide(server, truth, options=options) as slide:
        with pytest.raises(WsiWebError, match="418"):
            within(PROMPTLY_SECONDS, lambda: slide.read_region(0, 0, 0, 700, 530))
        while server.active:
            time.sleep(0.01)
        assert server.count("frames") <= 8
        server.fault = lambda request: None
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 700, 530), truth.truth(0, 0, 0, 700, 530))


def test_a_band_that_fails_does_not_wait_for_the_others(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region that is resampled band by band; the frames of all but the first take for ever."""
    monkeypatch.setattr(regions, "_BAND_BYTES", 100_000)
    server.fault = lambda request: (
        Fault(status=418) if 1 in request.frame_numbers else Fault(drip=(5, 0.05)) if request.kind == "frames" else None
    )
    options = ReadOptions(max_connections=4, frames_per_request=4, max_attempts=1)
    with open_slide(server, truth, options=options) as slide:
        mpp = slide.mpp
        assert mpp is not None
        with pytest.raises(WsiWebError, match="418"):
            within(PROMPTLY_SECONDS, lambda: slide.read_region_mpp(mpp[0] * 1.1, 0, 0, 600, 450))


def test_one_readers_end_is_not_anothers(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Two iterations wait for the same frames; the first is given up."""
    server.fault = lambda request: Fault(latency_seconds=0.3) if request.kind == "frames" else None
    with open_slide(server, truth) as slide, ThreadPoolExecutor(1) as pool:
        first = iter(slide.read_regions(0, [(0, 0, 128, 96), (128, 0, 128, 96)]))
        next(first)
        second = pool.submit(slide.read_region, 0, 128, 0, 128, 96)
        del first
        np.testing.assert_array_equal(second.result(timeout=30), truth.truth(0, 128, 0, 128, 96))


SCRIPT = """
import signal, sys, threading, time
from wsiweb import ReadOptions, Slide

url, what = sys.argv[1:]
options = ReadOptions(timeout_seconds=60, deadline_seconds=100, max_attempts=100, max_connections=4)
print("opening", flush=True)
try:
    with Slide.open(url, options=options) as slide:
        print("reading", flush=True)
        if what == "patches":
            for patch in slide.patches(64):
                pass
        elif what == "regions":
            list(slide.read_regions(0, [(x, 0, 64, 48) for x in range(0, 640, 64)]))
        else:
            slide.read_region(0, 0, 0, 700, 530)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def interrupt(server: DICOMwebServer, truth: SyntheticSlide, what: str, kind: Kind) -> None:
    url = server.series_url(truth.study_uid, truth.series_uid)
    environment = {**os.environ, "PYTHONPATH": str(Path(wsiweb.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, url, what],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while server.count(kind) < 1:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=PROMPTLY_SECONDS)
        finally:
            process.kill()
    assert "interrupted" in out
    assert errors == ""
    assert process.returncode == 0


@pytest.mark.parametrize(("name", "what"), [
    ("backoff", "region"), ("silence in the middle", "region"), ("a slow body", "patches"), ("silence", "regions"),
])  # fmt: skip
def test_ctrl_c_while_reading(server: DICOMwebServer, truth: SyntheticSlide, name: str, what: str) -> None:
    server.fault = every(WAITS[name])
    interrupt(server, truth, what, "frames")


@pytest.mark.parametrize("name", ["backoff", "silence", "silence in the middle"])
def test_ctrl_c_while_opening(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    server.fault = every(WAITS[name], "metadata")
    interrupt(server, truth, "region", "metadata")


@pytest.mark.parametrize("name", ["silence", "silence in the middle", "backoff of its own"])
def test_opening_ends_with_the_deadline(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    """However long the timeout of a single silence is."""
    server.fault = every(WAITS[name], "metadata")
    options = ReadOptions(timeout_seconds=60, deadline_seconds=0.5, max_attempts=100)
    with pytest.raises(SourceError):
        within(PROMPTLY_SECONDS, lambda: open_slide(server, truth, options=options))


def test_a_signal_handler_may_close_what_its_thread_reads(
    truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs wherever its thread is, most likely where that waits for another to begin."""
    start = workers._start
    slide = Slide.open(truth.folder)

    def start_and_close(thread: threading.Thread) -> None:
        start(thread)
        slide.close()

    def read() -> None:
        monkeypatch.setattr(workers, "_start", start_and_close)
        with pytest.raises(WsiWebError, match="closed"):
            slide.read_region(0, 0, 0, 100, 100)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(PROMPTLY_SECONDS)
    assert not reading.is_alive()
    monkeypatch.undo()
    settled()


def test_ctrl_c_while_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come within the Python code of a lock: who lets go of the slide must not wait for that for ever."""
    enter = threading.Condition.__enter__

    def interrupted(condition: threading.Condition) -> bool:
        enter(condition)
        raise KeyboardInterrupt

    pool = bind(urllib3.PoolManager()).connection_from_url("http://127.0.0.1")
    idle = pool.pool
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(threading.Condition, "__enter__", interrupted)
        pool.close()

    def drain() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                idle.get(block=False)

    other = threading.Thread(target=drain, daemon=True)
    other.start()
    other.join(PROMPTLY_SECONDS)
    assert not other.is_alive()


def test_nothing_is_left_behind(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Threads and descriptors, of 20 slides that were read and closed, and one that was forgotten."""
    settled()
    threads_before, files_before = threading.active_count(), open_files()
    for _ in range(20):
        with open_slide(server, truth) as slide:
            slide.read_region(0, 0, 0, 300, 200)
    forgotten = open_slide(server, truth)
    forgotten.read_region(0, 0, 0, 300, 200)
    del forgotten, slide
    settled()
    deadline = time.monotonic() + 20
    # The server's side of the connections ends a little later, and its threads after their sockets.
    while (open_files() > files_before or threading.active_count() > threads_before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert open_files() <= files_before
    assert threading.active_count() <= threads_before + 1


def test_a_closed_slide_holds_no_pixels(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Whoever keeps it, for its metadata say."""
    slide = open_slide(server, truth)
    kept = slide.read_region(0, 0, 0, 300, 200)
    tiles = [weakref.ref(tile) for tile in slide._reader.tiles._values._kept.values()]
    assert tiles
    slide._reader.memory.empty((1000, 1000), np.uint8)
    assert slide._reader.memory._all_bytes
    assert slide._reader._frames._cache.currsize
    settled()
    slide.close()
    assert not any(tile() is not None for tile in tiles)
    assert not slide._reader._frames._cache.currsize
    assert slide._reader.memory._all_bytes == 0
    np.testing.assert_array_equal(kept, truth.truth(0, 0, 0, 300, 200))


def test_a_slide_that_is_let_go_leaves_nothing_to_the_garbage_collector(
    server: DICOMwebServer, truth: SyntheticSlide
) -> None:
    slide = open_slide(server, truth)
    for _ in slide.patches(64).batches(16):
        pass
    slide.close()
    source: Any = slide._reader.source
    parts = [slide, slide._reader, slide._reader.memory, source, *source.service._session.adapters.values()]
    gone = [weakref.ref(part) for part in parts]
    settled()
    gc.disable()
    try:
        del slide, source, parts
        assert [type(part()) for part in gone if part() is not None] == []
    finally:
        gc.enable()


def test_closing_closes_the_connections_of_who_keeps_an_error(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    with open_slide(server, truth, options=ReadOptions(max_attempts=1, timeout_seconds=5)) as slide:
        server.fault = every(Fault(raw=list))  # hang up at once
        with pytest.raises(WsiWebError) as caught:
            slide.read_region(0, 0, 0, 64, 48)
        server.fault = lambda request: None
        slide.read_region(0, 0, 0, 300, 200)
    deadline = time.monotonic() + 3
    while server.sockets and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.sockets
    assert caught.value


def open_files() -> int:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here")
    return len(list(folder.iterdir()))


UNFINISHED = """
import sys
from wsiweb import ReadOptions, Slide

slide = Slide.open(sys.argv[1], options=ReadOptions(frames_per_request=8))
patches = iter(slide.patches(64, level=0))
next(patches)
print("read")
"""
DAEMONS = """
import sys, threading
from wsiweb import ReadOptions, Slide, WsiWebError

slide = Slide.open(sys.argv[1], options=ReadOptions(tile_cache_bytes=0, frame_cache_bytes=0))
started = threading.Barrier(5)

def read():
    started.wait()
    while True:
        try:
            slide.read_region(0, 0, 0, 300, 300)
        except WsiWebError:
            pass

for _ in range(4):
    threading.Thread(target=read, daemon=True).start()
started.wait()
slide.read_region(0, 0, 0, 300, 300)
print("read")
"""


@pytest.mark.parametrize("code", [UNFINISHED, DAEMONS], ids=["unfinished", "daemons"])
def test_a_program_ends(code: str, server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Whatever is still being read then: nobody can take it any more."""
    patience = Fault(status=503, headers={"Retry-After": "50"})
    refused = range(30, 200) if code is UNFINISHED else range(0)
    server.fault = lambda request: patience if set(refused) & set(request.frame_numbers) else None
    ended = subprocess.run(
        [sys.executable, "-c", code, server.series_url(truth.study_uid, truth.series_uid)],
        cwd=Path(wsiweb.__file__).parents[1], check=True, capture_output=True, text=True, timeout=40,
    )  # fmt: skip
    assert ended.stdout == "read\n"
