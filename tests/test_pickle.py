"""Slides cross process borders, forked or fresh, without asking for the metadata again."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import requests
from pydicom.uid import JPEGBaseline8Bit

from wsiweb import ReadOptions, Slide, WsiWebError, decoders, icc

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.queues import Queue
    from pathlib import Path

    from conftest import Opener, SlideMaker

BOX = (30, 20, 300, 200)
START_METHODS = ("fork", "spawn", "forkserver")
# From Python 3.12 on, forking a process that has threads is deprecated. Users do it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def read_in_child(slide: Slide, box: tuple[int, int, int, int], answers: Queue[Any]) -> None:
    """Send back what the child read, or the error that it met."""
    try:
        answers.put((slide.read_region(0, *box), slide.stats.requests))
    except BaseException as error:  # noqa: BLE001 - the parent judges
        answers.put((repr(error), -1))


def read_elsewhere(context: BaseContext, slide: Slide, box: tuple[int, int, int, int]) -> tuple[Any, int]:
    answers: Queue[Any] = context.Queue()
    child = context.Process(target=read_in_child, args=(slide, box, answers))  # type: ignore[attr-defined]
    child.start()
    try:
        result, requests = answers.get(timeout=60)
        child.join(20)
        assert child.exitcode == 0
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        child.close()
        answers.close()
        answers.join_thread()
    return result, requests


@pytest.mark.parametrize("method", START_METHODS)
def test_a_child_reads_without_metadata(open_slide: Opener, synthetic: SlideMaker, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    truth = synthetic("jpeg")
    slide = open_slide(truth)
    slide.read_region(0, 0, 0, 64, 48)  # threads, sockets and caches exist when the child starts
    before = [{request.client_port for request in server.requests} for server in open_slide.servers]
    for server in open_slide.servers:
        server.forget()
    result, _ = read_elsewhere(multiprocessing.get_context(method), slide, BOX)
    assert isinstance(result, np.ndarray), result
    np.testing.assert_array_equal(result, truth.truth(0, *BOX))
    for server, ports in zip(open_slide.servers, before, strict=True):
        assert server.count("frames") > 0
        assert ports.isdisjoint(request.client_port for request in server.requests)  # no shared connection
        assert server.count("metadata") == server.count("search") == 0
    np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forking_amid_reads_disturbs_nobody(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("jpeg")
    slide = open_slide(truth, options=ReadOptions(tile_cache_bytes=0, frame_cache_bytes=0))
    stop = threading.Event()

    def keep_reading() -> None:
        while not stop.is_set():
            slide.read_region(0, 0, 0, 300, 300)

    reader = threading.Thread(target=keep_reading)
    reader.start()
    try:
        for _ in range(5):
            result, _ = read_elsewhere(multiprocessing.get_context("fork"), slide, BOX)
            assert isinstance(result, np.ndarray), result
            np.testing.assert_array_equal(result, truth.truth(0, *BOX))
    finally:
        stop.set()
        reader.join()
    assert slide.stats.retries == 0  # nobody took another's answer


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_child_reads_whatever_was_locked(open_web: Opener, synthetic: SlideMaker) -> None:
    """By threads of the parent, in the middle of something, that the child does not have."""
    truth = synthetic("jpeg")
    slide = open_web(truth)
    slide.read_region(0, *BOX)
    reader = slide._reader
    source = cast("Any", reader.source)
    owners: list[Any] = [
        reader, reader.tiles, reader._frames, reader._fetchers, reader._decoders, reader._early, reader.memory,
        slide.stats, source._accepts, source._gate, source._pace, source._closing,
    ]  # fmt: skip
    with ThreadPoolExecutor(1) as holder:
        for owner in owners:
            holder.submit(owner._lock.acquire).result()
        try:
            result, _ = read_elsewhere(multiprocessing.get_context("fork"), slide, BOX)
        finally:
            for owner in owners:
                holder.submit(owner._lock.release).result()
    assert isinstance(result, np.ndarray), result
    np.testing.assert_array_equal(result, truth.truth(0, *BOX))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_fork_waits_for_decoders_that_are_being_loaded(
    open_slide: Opener, synthetic: SlideMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child could not load them any more."""
    truth = synthetic("jpeg")
    slide = open_slide(truth)
    monkeypatch.setattr(decoders, "_decoders", {})
    loading, loaded = threading.Event(), threading.Event()

    def load() -> None:
        with decoders._loading:
            loading.set()
            loaded.wait(0.1)

    loader = threading.Thread(target=load)
    loader.start()
    loading.wait()
    result, _ = read_elsewhere(multiprocessing.get_context("fork"), slide, BOX)
    loader.join()
    assert isinstance(result, np.ndarray), result
    np.testing.assert_array_equal(result, truth.truth(0, *BOX))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_fork_waits_for_a_profile_that_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child could not read one any more."""
    profile, transform = icc.srgb_profile(), icc._transform
    reading, read = threading.Event(), threading.Event()

    def slow(data: bytes) -> Any:
        reading.set()
        read.wait(0.1)
        return transform(data)

    monkeypatch.setattr(icc, "_transform", slow)
    image = np.full((2, 2, 3), 7, np.uint8)
    reader = threading.Thread(target=icc.to_srgb, args=(image.copy(), profile))
    reader.start()
    reading.wait()
    child = multiprocessing.get_context("fork").Process(target=icc.to_srgb, args=(image, profile))
    child.start()
    child.join(20)
    child.kill()
    child.join()
    reader.join()
    assert child.exitcode == 0


def test_a_pickled_slide_reads(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("sparse-paths-and-planes")
    slide = open_slide(truth)
    for clone in (pickle.loads(pickle.dumps(slide)), copy.copy(slide)):
        with clone:
            before = open_slide.requests()
            assert clone.levels == slide.levels
            assert clone.properties == slide.properties
            assert clone.optical_paths == slide.optical_paths
            assert open_slide.requests() == before
            region = clone.read_region(0, *BOX, optical_path="B", focal_plane=2.0)
            np.testing.assert_array_equal(region, truth.truth(0, *BOX, ("B", 2.0)))
    np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))  # a clone's end is its own


def test_a_slide_of_a_relative_path_reads_from_anywhere(
    synthetic: SlideMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = synthetic("jpeg")
    (tmp_path / "slide").symlink_to(truth.folder)
    monkeypatch.chdir(tmp_path)
    with Slide.open("slide") as slide:
        pickled = pickle.dumps(slide)
    monkeypatch.chdir(truth.folder)
    with pickle.loads(pickled) as clone:
        np.testing.assert_array_equal(clone.read_region(0, *BOX), truth.truth(0, *BOX))


def test_pickles_are_small_and_hold_no_pixels(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb", sizes=((2000, 1500),), tile_size=(16, 16), syntax=JPEGBaseline8Bit)  # 11,750 frames
    slide = open_slide(truth)
    fresh = len(pickle.dumps(slide))
    slide.read_region(0, 0, 0, 500, 500)
    assert len(pickle.dumps(slide)) < fresh + 2000
    if open_slide.source == "web":  # local slides carry the offsets of their frames
        assert fresh < 20_000


def test_secrets_that_cannot_be_pickled_are_named(open_web: Opener, synthetic: SlideMaker) -> None:
    lock = threading.Lock()

    def supply() -> str:
        with lock:
            return "t"

    slide = open_web(synthetic("rgb"), token=supply)
    with pytest.raises((WsiWebError, pickle.PicklingError, TypeError), match="token"):
        pickle.dumps(slide)


def test_a_session_that_cannot_be_pickled_is_named(open_web: Opener, synthetic: SlideMaker) -> None:
    session = requests.Session()
    session.hooks["response"].append(lambda response, *_args, **_kwargs: response)
    slide = open_web(synthetic("rgb"), session=session)
    with pytest.raises(WsiWebError, match="session="):
        pickle.dumps(slide)


def test_options_and_credentials_travel(open_web: Opener, synthetic: SlideMaker) -> None:
    slide = open_web(synthetic("rgb"), token="abc", headers={"X-Own": "1"}, options=ReadOptions(max_connections=1))
    server = open_web.servers[0]
    server.forget()
    with pickle.loads(pickle.dumps(slide)) as clone:
        clone.read_region(0, 0, 0, 300, 300)
    assert {request.headers.get("authorization") for request in server.requests} == {"Bearer abc"}
    assert {request.headers.get("x-own") for request in server.requests} == {"1"}
    assert max(request.concurrent for request in server.requests) == 1
