"""``Workers``: threads. The only module that makes any."""

from __future__ import annotations

import atexit
import contextlib
import functools
import heapq
import itertools
import queue
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

_LINGER_SECONDS = 0.05
"""That a thread waits for its next job, before it ends. An interpreter that exits meanwhile waits as long."""

_FINISH_SECONDS = 2.0
"""That the end of the program waits for jobs."""


class Workers:
    """Threads that take jobs off one list.

    A thread pool would wake a thread, and lock a future, for each job; a frame is too little for that. Threads are
    started on demand, and one that has run out of jobs ends after a moment.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._name, self._numbers = name, itertools.count()
        self._threads = self._allowed = threads
        self._lock: Any = threading.RLock()  # a signal handler may close what its own thread is in
        self._jobs: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._spare: deque[Callable[[], None]] = deque()
        self._running: set[threading.Thread] = set()  # those that wait included
        self._waiting: list[queue.SimpleQueue[None]] = []  # the bells of threads that wait for a job
        self._closed = False
        _ALL.add(self)

    def add(self, job: Callable[[], None], rank: int = 0) -> None:
        """Have a job done, before those of a higher rank. It may raise nothing.

        Raises
        ------
        RuntimeError
            After ``close``, or where there is no thread and none can be started.
        """
        self.add_all((job,), rank)

    def add_all(self, jobs: Sequence[Callable[[], None]], rank: int = 0) -> None:
        """Have jobs done, in order; see ``add``."""
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            bells = self._call(len(jobs))
            for job in jobs:
                heapq.heappush(self._jobs, (rank, next(self._order), job))
        _ring(bells)

    def add_spare(self, job: Callable[[], None]) -> None:
        """Have a job done when there is no other, if at all."""
        with self._lock:
            if self._closed:
                return
            try:
                bells = self._call(1)
            except RuntimeError:
                return
            self._spare.append(job)
        _ring(bells)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Do what the builtin does, in these threads."""
        todo = [(Future[Result](), item) for item in items]
        for future, item in todo:
            self.add(functools.partial(_fulfil, future, functools.partial(function, item)))
        return (future.result() for future, _ in todo)

    def allow(self, threads: int) -> None:
        """Let no more than so many work from now on, nor more than there may be."""
        with self._lock:
            more = min(threads, self._threads) - self._allowed
            self._allowed += more
            bells: list[queue.SimpleQueue[None]] = []
            if more > 0 and not self._closed:
                with contextlib.suppress(RuntimeError):  # those that wait for a thread have been told, or will be
                    bells = self._call(min(len(self._jobs), more))
        _ring(bells)

    def close(self, seconds: float | None = None) -> None:
        """Let the jobs that are there be done, and wait for that; not longer than so many seconds."""
        with self._lock:
            self._closed = True
            running = self._running - {threading.current_thread()}
            bells, self._waiting = self._waiting, []
        _ring(bells)
        if self._lock._is_owned():  # noqa: SLF001  (this thread was interrupted: none can end until it goes on)
            return
        until = None if seconds is None else time.monotonic() + seconds
        for thread in running:
            thread.join(None if until is None else max(until - time.monotonic(), 0))

    def finish(self, until: float) -> None:
        """Let the jobs that are there be done, and wait for that; not beyond a moment of ``time.monotonic``."""
        for thread in tuple(self._running):  # without the lock: whoever held it when this process was forked keeps it
            thread.join(max(until - time.monotonic(), 0))

    def _call(self, jobs: int) -> list[queue.SimpleQueue[None]]:
        """Return the bells of those to wake for new jobs, and start more threads if need be. Under the lock.

        Raises
        ------
        RuntimeError
            There is no thread, and none can be started: the interpreter is ending, or the system allows no more.
        """
        bells = [self._waiting.pop() for _ in range(min(jobs, len(self._waiting)))]
        for _ in range(min(jobs - len(bells), self._allowed - len(self._running))):
            name = f"{self._name}_{next(self._numbers)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)  # awaited by ``_finish``
            try:
                _start(thread)
            except RuntimeError:
                if self._running:  # those that there are do the work
                    break
                raise
            self._running.add(thread)
        return bells

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job  # and what it holds, a slide that was let go, say: the next one may be long in coming

    def _next(self) -> Callable[[], None] | None:
        """Return a job, or None where a thread may go."""
        while True:
            with self._lock:
                if len(self._running) - len(self._waiting) > self._allowed:  # the others will take what there is to do
                    self._running.discard(threading.current_thread())
                    return None
                if self._jobs:
                    return heapq.heappop(self._jobs)[2]
                if self._spare and not self._closed:
                    return self._spare.popleft()
                if self._closed:
                    self._running.discard(threading.current_thread())
                    return None
                bell: queue.SimpleQueue[None] = queue.SimpleQueue()
                self._waiting.append(bell)
            try:
                bell.get(timeout=_LINGER_SECONDS)
            except queue.Empty:
                with self._lock:
                    if bell in self._waiting:  # else it is about to ring
                        self._waiting.remove(bell)
                        self._running.discard(threading.current_thread())
                        return None


_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """Wait for what is under way, for a moment.

    For threads that are no daemons Python would wait for as long as the program's own daemons have something done, and
    for ever for one whose start a Ctrl-C has cut short, within a lock of Python's own.
    """
    until = time.monotonic() + _FINISH_SECONDS
    for workers in alive(_ALL):
        workers.finish(until)


def alive(found: weakref.WeakSet[Item]) -> list[Item]:
    """Return what is in a set to which other threads may be adding."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(found)


def _start(thread: threading.Thread) -> None:
    if sys.is_finalizing():  # where Python 3.11 would wait for ever
        raise RuntimeError("the interpreter is ending")
    try:
        thread.start()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # it came between two steps of a lock of Python's
            raise error.__context__ from None
        raise


def _ring(bells: Iterable[queue.SimpleQueue[None]]) -> None:
    for bell in bells:
        bell.put(None)


def _fulfil(future: Future[Result], function: Callable[[], Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001  (it is for who asks for the result)
        future.set_exception(error)
