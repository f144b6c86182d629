"""``Workers``: threads. The only module that makes any."""

from __future__ import annotations

import concurrent.futures
import functools
import heapq
import itertools
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Threads that take jobs off one list until there are none.

    A thread pool alone would wake a thread, and lock a future, for each job; a frame is too little for that.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)  # starts its threads on demand
        self._threads = threads
        self._lock = threading.Lock()
        self._jobs: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._spare: deque[Callable[[], None]] = deque()
        self._loops: set[Future[None]] = set()
        self._working = 0
        self._closed = False

    def add(self, job: Callable[[], None], rank: int = 0) -> None:
        """Have a job done, before those of a higher rank. It may raise nothing.

        Raises
        ------
        RuntimeError
            After ``close``.
        """
        self.add_all((job,), rank)

    def add_all(self, jobs: Sequence[Callable[[], None]], rank: int = 0) -> None:
        """Have jobs done, in order; see ``add``."""
        with self._lock:
            self._wake(len(jobs))
            for job in jobs:
                heapq.heappush(self._jobs, (rank, next(self._order), job))

    def add_spare(self, job: Callable[[], None]) -> None:
        """Have a job done when there is no other, if at all."""
        with self._lock:
            if not self._closed:
                self._wake(1)
                self._spare.append(job)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Do what the builtin does, in these threads."""
        todo = [(Future[Result](), item) for item in items]
        for future, item in todo:
            self.add(functools.partial(_fulfil, future, functools.partial(function, item)))
        return (future.result() for future, _ in todo)

    def close(self, seconds: float | None = None) -> None:
        """Let the jobs that are there be done, and wait for that; not longer than so many seconds."""
        with self._lock:
            self._closed = True
            loops = list(self._loops)
        self._pool.shutdown(wait=False)
        concurrent.futures.wait(loops, timeout=seconds)

    def _wake(self, jobs: int) -> None:
        """Start threads for new jobs, where not all are at work; to be called under the lock."""
        if self._closed:
            raise RuntimeError("closed")
        for _ in range(min(jobs, self._threads - self._working)):
            loop = self._pool.submit(self._work)
            self._loops.add(loop)
            loop.add_done_callback(self._loops.discard)
            self._working += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs and (self._closed or not self._spare):
                    self._working -= 1
                    return
                job = heapq.heappop(self._jobs)[2] if self._jobs else self._spare.popleft()
            job()


def _fulfil(future: Future[Result], function: Callable[[], Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001  (it is for who asks for the result)
        future.set_exception(error)
