"""Frames that do not say which they are: decoded while the rest is on its way, shown only when all is certain."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, every, fail_first

from wsiweb import ReadOptions, Slide, WsiWebError, codecs, stitch
from wsiweb.guesses import Allowance, Guesses
from wsiweb.sources.answers import frames_in
from wsiweb.sources.base import EncodedFrame
from wsiweb.sources.http import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import SlideMaker

    from wsiweb.sources.base import Frames

FRAME_BYTES = 64 * 48 * 3
SLOWLY = FRAME_BYTES, 0.02
PATIENCE_SECONDS = 30
"""Only a deadlock takes so long."""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts the frames that were given to the decoder."""
    count = threading.Semaphore(0)
    decode: Callable[..., Any] = codecs.FrameDecoder.decode

    def counted(*args: Any, **keywords: Any) -> Any:
        try:
            return decode(*args, **keywords)
        finally:
            count.release()

    monkeypatch.setattr(codecs.FrameDecoder, "decode", counted)
    return count


def test_decoding_begins_before_the_answer_is_whole(synthetic: SlideMaker, decoded: threading.Semaphore) -> None:
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder) as server:
        server.fault = every(Fault(locations=False, drip=SLOWLY, stall_after_bytes=10 * FRAME_BYTES))
        options = ReadOptions(max_connections=1)
        slide = Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=options)
        ended: Future[BaseException | None] = Future()

        def read() -> None:
            try:
                slide.read_region(0, 0, 0, 300, 200)
            except WsiWebError as error:
                ended.set_result(error)
            else:
                ended.set_result(None)

        thread = threading.Thread(target=read)
        thread.start()
        assert decoded.acquire(timeout=PATIENCE_SECONDS)
        assert not ended.done()
        assert slide.stats.decoded == 0  # it is not certain yet
        slide.close()
        assert ended.result(PATIENCE_SECONDS) is not None
        thread.join()


def test_a_wrong_guess_is_not_shown(synthetic: SlideMaker, decoded: threading.Semaphore) -> None:
    """The first answer lacks a part, nobody knows which: all that came with it is asked for, and decoded, again."""
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder) as server:
        server.fault = fail_first(1, Fault(locations=False, drop_parts=1, drip=SLOWLY))
        options = ReadOptions(max_connections=1)
        with Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=options) as slide:
            region = slide.read_region(0, 70, 50, 300, 200)
            np.testing.assert_array_equal(region, truth.truth(0, 70, 50, 300, 200))
            frames = slide.stats.decoded
            assert slide.stats.frames == frames
    attempts = 0
    while decoded.acquire(blocking=False):
        attempts += 1
    assert attempts > frames


def test_unnamed_frames_are_read(synthetic: SlideMaker, decoded: threading.Semaphore) -> None:
    """Each is decoded once."""
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder) as server:
        server.fault = every(Fault(locations=False))
        with Slide.open(server.series_url(truth.study_uid, truth.series_uid)) as slide:
            region = slide.read_region(0, 70, 50, 300, 200)
            np.testing.assert_array_equal(region, truth.truth(0, 70, 50, 300, 200))
            frames = slide.stats.decoded
    attempts = 0
    while decoded.acquire(blocking=False):
        attempts += 1
    assert attempts == frames


def test_who_receives_does_not_paint(synthetic: SlideMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decoded early is put into place by others: the next request would wait for it."""
    truth = synthetic("rgb")
    painters: set[str] = set()
    paste: Callable[..., None] = stitch.paste

    def noted(*args: Any) -> None:
        painters.add(threading.current_thread().name.rsplit("_", 1)[0])
        paste(*args)

    monkeypatch.setattr(stitch, "paste", noted)
    with DICOMwebServer(truth.folder) as server:
        server.fault = every(Fault(locations=False, drip=SLOWLY))
        with Slide.open(server.series_url(truth.study_uid, truth.series_uid)) as slide:
            slide.read_region(0, 70, 50, 300, 200)
    assert painters == {"wsiweb-decode"}


def frame(number: int, data: bytes) -> EncodedFrame:
    return EncodedFrame(number, data)


def guesses_of(allowance: Allowance, jobs: list[Callable[[], None]]) -> Guesses[int]:
    guesses = Guesses(lambda seen: sum(seen.data), jobs.append, allowance, 10, patience_seconds=0)
    guesses.preview([])
    return guesses


def unexpected(*_: object) -> None:
    pytest.fail("No work was under way.")


def test_only_the_very_frame_counts() -> None:
    jobs: list[Callable[[], None]] = []
    guesses = guesses_of(Allowance(100), jobs)
    first, second = frame(1, bytes([1, 2, 3])), frame(2, bytes([4, 5, 6]))
    for seen in ([first, second], [frame(1, bytes([7, 8, 9]))]):
        guesses.preview(seen)
    assert len(jobs) == 2
    for job in jobs:
        job()
    certain = [("a", frame(2, second.data)), ("b", frame(3, b"")), ("c", first)]
    assert guesses.confirm(certain, unexpected) == ([("c", first, 6)], certain[:2])


def test_what_is_certain_before_it_is_begun_is_left_to_others() -> None:
    jobs: list[Callable[[], None]] = []
    guesses = guesses_of(Allowance(100), jobs)
    seen = frame(1, bytes([1]))
    guesses.preview([seen])
    assert guesses.confirm([("a", seen)], unexpected) == ([], [("a", seen)])
    jobs[0]()
    assert guesses.confirm([("a", seen)], unexpected) == ([], [("a", seen)])


def test_a_result_that_comes_after_it_is_certain_is_passed_on() -> None:
    taken: list[Any] = []
    confirmed: list[Any] = []

    def work(seen: EncodedFrame) -> int:
        confirmed.append(guesses.confirm([("a", seen)], lambda *result: taken.append(result)))
        return 5

    guesses = Guesses(work, lambda job: job(), Allowance(100), 10, patience_seconds=0)
    guesses.preview([])
    seen = frame(1, b"a")
    guesses.preview([seen])
    assert (confirmed, taken) == ([([], [])], [("a", seen, 5)])


def test_the_clock_runs_from_the_head_of_an_answer() -> None:
    jobs: list[Callable[[], None]] = []
    seen: list[int] = []

    def chunks() -> Iterator[bytes]:
        seen.append(len(previews))
        yield b"--b\r\n\r\nxx\r\n--b"
        yield b"\r\n\r\nyy\r\n--b--"

    guesses: Guesses[int] = Guesses(lambda _: 0, jobs.append, Allowance(100), 10, patience_seconds=1e-9)
    previews: list[int] = []

    def preview(frames: Frames) -> None:
        previews.append(len(frames))
        guesses.preview(frames)

    answer = Answer(200, "multipart/related; boundary=b", {}, "", chunks())
    assert sum(map(len, frames_in(answer, [1, 2], preview=preview))) == 2
    assert seen == [1]  # the head's, before anything of the body
    assert previews == [0, 1, 1]
    assert len(jobs) == 2  # the first, too


def test_a_quick_answer_is_awaited() -> None:
    jobs: list[Callable[[], None]] = []
    guesses: Guesses[int] = Guesses(lambda _: 0, jobs.append, Allowance(100), 10, patience_seconds=3600)
    for number in range(5):
        guesses.preview([frame(number, b"x")])
    assert jobs == []


def test_results_that_wait_are_bounded() -> None:
    allowance = Allowance(25)
    jobs: list[Callable[[], None]] = []
    one, other = guesses_of(allowance, jobs), guesses_of(allowance, jobs)
    for guesses in (one, other):
        for number in range(3):
            guesses.preview([frame(number, b"x")])
    assert len(jobs) == 2
    one.close()
    for number in range(3, 6):
        other.preview([frame(number, b"x")])
    assert len(jobs) == 4
