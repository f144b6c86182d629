"""Threads: every job is done once, in its order, whenever it comes; and nothing waits for ever."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import wsiweb
from wsiweb import workers
from wsiweb.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_SECONDS = 30
"""Only a deadlock takes so long."""


def blocked(until: threading.Event, then: Callable[[], None] = lambda: None) -> None:
    until.wait(PATIENCE_SECONDS)
    then()


class Held:
    """Something that a job holds on to."""


def test_a_thread_that_waits_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LINGER_SECONDS", PATIENCE_SECONDS)
    threads = Workers(1, "test")
    held, done = Held(), threading.Event()
    left = weakref.ref(held)
    threads.add(partial(lambda _held: done.set(), held))
    del held
    assert done.wait(PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS / 2
    while left() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert left() is None
    threads.close()


def test_every_job_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs come just when threads have had enough of waiting."""
    monkeypatch.setattr(workers, "_LINGER_SECONDS", 0.0005)
    threads = Workers(3, "test")
    done: Counter[int] = Counter()
    lock = threading.Lock()

    def job(number: int) -> None:
        with lock:
            done[number] += 1

    def produce(start: int) -> None:
        chance = random.Random(start)
        for number in range(start, start + 400, 4):
            threads.add_all([partial(job, place) for place in range(number, number + 4)], chance.randrange(3))
            time.sleep(chance.choice([0, 0.0004, 0.0005, 0.0006, 0.001]))

    producers = [threading.Thread(target=produce, args=(start,)) for start in range(0, 2000, 400)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(PATIENCE_SECONDS)
    threads.close(PATIENCE_SECONDS)
    assert done == Counter(range(2000))


def test_a_job_after_a_pause_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LINGER_SECONDS", 0.001)
    threads = Workers(2, "test")
    for pause in (0, 0.0005, 0.001, 0.002, 0.05) * 20:
        done = threading.Event()
        threads.add(done.set)
        assert done.wait(PATIENCE_SECONDS)
        time.sleep(pause)
    threads.close()


def test_a_bell_that_does_not_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C may come just before: what was to be done is done a moment later."""
    threads = Workers(1, "test")
    monkeypatch.setattr(workers, "_ring", lambda bells: None)
    for _ in range(3):
        done = threading.Event()
        threads.add(done.set)
        assert done.wait(PATIENCE_SECONDS)
    monkeypatch.undo()
    threads.close()


def test_fewer_threads_than_allowed_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system allows no more, and where it allows none, who asks hears of it."""
    free, started = threading.Event(), threading.Thread.start
    threads = Workers(4, "test")
    threads.add(partial(blocked, free))

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("test"):
            raise RuntimeError("can't start new thread")
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    results = threads.map(str, range(9))
    threads.add_spare(free.set)
    free.set()
    assert list(results) == [str(n) for n in range(9)]
    with monkeypatch.context() as patch:  # and when the system allows more again, there are as many as before
        patch.setattr(threading.Thread, "start", started)
        together = threading.Barrier(4, timeout=PATIENCE_SECONDS)
        list(threads.map(lambda _: together.wait(), range(4)))
    threads.close()
    none = Workers(4, "test")
    none.add_spare(free.set)
    with pytest.raises(RuntimeError, match="start new thread"):
        none.add(free.set)
    none.close()


def test_an_interrupt_of_a_start_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python lets a lock go twice that a Ctrl-C kept it from taking, and that error comes in the interrupt's place."""

    def start(thread: threading.Thread) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()

    monkeypatch.setattr(threading.Thread, "start", start)
    threads = Workers(1, "test")
    with pytest.raises(KeyboardInterrupt):
        threads.add(lambda: None)
    threads.close()


def test_ranks() -> None:
    threads = Workers(1, "test")
    free = threading.Event()
    order: list[str] = []
    threads.add(partial(blocked, free))
    threads.add_spare(partial(order.append, "spare"))
    for name, rank in (("c", 3), ("a", 1), ("b", 2), ("a too", 1)):
        threads.add(partial(order.append, name), rank)
    free.set()
    assert list(threads.map(str, [1])) == ["1"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(order) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert order == ["a", "a too", "b", "c", "spare"]
    threads.close()


def test_map_returns_in_order_and_raises() -> None:
    threads = Workers(4, "test")
    assert list(threads.map(lambda n: n * n, range(100))) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(threads.map(lambda n: 1 // n, [1, 0]))
    threads.close()


def test_no_more_work_at_once_than_allowed() -> None:
    threads = Workers(6, "test")
    lock = threading.Lock()
    inside = 0
    most: list[int] = [0]

    def job() -> None:
        nonlocal inside
        with lock:
            inside += 1
            most[-1] = max(most[-1], inside)
        time.sleep(0.002)
        with lock:
            inside -= 1

    for allowed in (2, 5, 1, 100):
        threads.allow(allowed)
        list(threads.map(lambda _: job(), range(24)))  # which ends when all are done
        most.append(0)
    assert all(reached <= allowed for reached, allowed in zip(most, (2, 5, 1, 6, 0), strict=True))
    together = threading.Barrier(6)
    list(threads.map(lambda _: together.wait(20), range(6)))  # who comes too few waits in vain
    threads.close()


@pytest.mark.parametrize("fewer", [1, 2])
def test_a_change_of_what_is_allowed_loses_no_job(fewer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that wait are begun when more are allowed, and done by those who stay when fewer are."""
    monkeypatch.setattr(workers, "_LINGER_SECONDS", 0.001)
    threads = Workers(8, "test")
    free = threading.Event()
    begun = threading.Semaphore(0)

    done: list[int] = []

    def job(number: int) -> None:
        begun.release()
        blocked(free, partial(done.append, number))

    threads.allow(fewer)
    for number in range(30):
        threads.add(partial(job, number))
    for _ in range(fewer):
        assert begun.acquire(timeout=PATIENCE_SECONDS)
    assert not begun.acquire(timeout=0.02)
    threads.allow(8)  # no further job comes
    for _ in range(8 - fewer):
        assert begun.acquire(timeout=PATIENCE_SECONDS)
    threads.allow(fewer)
    free.set()
    threads.close(PATIENCE_SECONDS)
    assert sorted(done) == list(range(30))


def test_close_lets_jobs_be_done() -> None:
    threads = Workers(2, "test")
    free = threading.Event()
    done: list[int] = []
    for number in range(6):
        threads.add(partial(blocked, free, partial(done.append, number)))
    threads.add_spare(partial(done.append, -1))
    closing = threading.Thread(target=threads.close)
    closing.start()
    while not threads._closed:
        time.sleep(0.001)
    with pytest.raises(RuntimeError):
        threads.add(lambda: None)
    threads.add_spare(partial(done.append, -1))
    free.set()
    closing.join(PATIENCE_SECONDS)
    assert sorted(done) == list(range(6))


def test_threads_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LINGER_SECONDS", 0.01)
    threads = Workers(3, "test")
    list(threads.map(str, range(10)))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while threads._running and time.monotonic() < deadline:
        time.sleep(0.005)
    assert (threads._waiting, threads._running) == ([], set())


def run(code: str) -> tuple[str, str]:
    """Return what a program prints, and its errors."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=Path(wsiweb.__file__).parents[1],
    )  # fmt: skip
    return ended.stdout, ended.stderr


def test_an_interpreter_exits_whose_threads_wait() -> None:
    code = "from wsiweb.workers import Workers; w = Workers(2, 'x'); print(*w.map(str, range(5)))"
    assert run(code) == ("0 1 2 3 4\n", "")


def test_an_interpreter_that_exits_waits_for_what_is_under_way() -> None:
    assert run(UNDER_WAY) == ("main\n0\n1\n2\n", "")


UNDER_WAY = """
import time
from functools import partial
from wsiweb.workers import Workers

def job(number):
    time.sleep(0.1)
    print(number)

workers = Workers(1, "x")
workers.add_all([partial(job, number) for number in range(3)])
print("main")
"""


def test_an_interpreter_exits_that_was_interrupted_at_a_start() -> None:
    assert run(INTERRUPTED) == ("interrupted\n", "")


INTERRUPTED = """
import threading
import time
from wsiweb.workers import Workers

enter = threading.Condition.__enter__

def interrupted(condition):
    enter(condition)  # and nobody lets it go
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
    return True

workers = Workers(1, "x")
threading.Condition.__enter__ = interrupted
try:
    workers.add(print)
except KeyboardInterrupt:
    threading.Condition.__enter__ = enter
    time.sleep(0.2)  # the thread gets as far as the lock meanwhile
    print("interrupted")
"""
