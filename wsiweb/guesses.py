"""Work on frames before it is certain which they are.

Parts of an answer that do not name their frame are known for certain only when the answer is whole. They mostly are
what was asked for, in order: decoding need not wait for the end, only its result does.
"""

from __future__ import annotations

import enum
import functools
import math
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wsiweb.sources.base import EncodedFrame, Frames

PATIENCE_SECONDS = 0.002
Result = TypeVar("Result")
Token = TypeVar("Token")


class Allowance:
    """Bytes that may be taken up at once. Safe to share between threads."""

    def __init__(self, n_bytes: int) -> None:
        self._free_bytes = n_bytes
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> bool:
        """Take up so much; False, and nothing, where there is no more."""
        with self._lock:
            if n_bytes > self._free_bytes:
                return False
            self._free_bytes -= n_bytes
            return True

    def give_back(self, n_bytes: int) -> None:
        """Let go of what was taken."""
        with self._lock:
            self._free_bytes += n_bytes


class Progress(enum.Enum):
    """How far the work on a guess has come."""

    NOT_BEGUN = enum.auto()
    UNDER_WAY = enum.auto()
    DONE = enum.auto()


class Guess(Generic[Result]):
    """A frame on which work may begin early; called by a thread that has nothing better to do."""

    __slots__ = ("_dropped", "_lock", "_progress", "_take", "_work", "frame", "result")

    def __init__(self, frame: EncodedFrame, work: Callable[[EncodedFrame], Result]) -> None:
        self.frame = frame
        self.result: Result | None = None
        """Once it is done."""
        self._work = work
        self._lock = threading.Lock()
        self._progress = Progress.NOT_BEGUN
        self._dropped = False
        self._take: Callable[[Result], None] | None = None

    def __call__(self) -> None:
        """Do the work, unless it is not wanted any more."""
        with self._lock:
            if self._dropped:
                return
            self._progress = Progress.UNDER_WAY
        result = self._work(self.frame)
        with self._lock:
            self._progress, self.result, take = Progress.DONE, result, self._take
        if take is not None:
            take(result)

    def confirm(self, take: Callable[[Result], None]) -> Progress:
        """Say how far the work is; if it has not begun it never does, and under way ``take`` has the result later."""
        with self._lock:
            self._dropped = self._progress is Progress.NOT_BEGUN
            if self._progress is Progress.UNDER_WAY:
                self._take = take
            return self._progress

    def drop(self) -> None:
        """Let it not begin."""
        self._dropped = True


class Guesses(Generic[Result]):
    """The frames of one answer on which work may begin early.

    Parameters
    ----------
    work, add
        What is done with a frame, and what has it done by a thread when there is nothing better to do.
    allowance, result_bytes
        Where room for results comes from, and what each takes up until ``close``.
    patience_seconds
        From the head of the answer, or from some frames, to the next, before which nothing is begun: an answer that
        comes quickly is certain soon, and threads that compete with those that receive it would only delay that.
    """

    def __init__(
        self,
        work: Callable[[EncodedFrame], Result],
        add: Callable[[Callable[[], None]], None],
        allowance: Allowance,
        result_bytes: int,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._work = work
        self._add = add
        self._allowance = allowance
        self._result_bytes = result_bytes
        self._guesses: dict[int, Guess[Result]] = {}
        self._patience_seconds = patience_seconds
        self._came_seconds = math.inf
        self._slow = False
        self._waiting: list[EncodedFrame] = []
        self._taken_bytes = 0

    def preview(self, frames: Frames) -> None:
        """Have the work on what seem to be frames begun, where the answer takes its time and there is room.

        Without frames it says that an answer begins.
        """
        now = time.monotonic()
        self._slow = self._slow or now - self._came_seconds >= self._patience_seconds
        self._came_seconds = now
        self._waiting += frames
        if not self._slow:
            return
        for frame in self._waiting:
            if frame.frame_number not in self._guesses and self._allowance.take(self._result_bytes):
                self._taken_bytes += self._result_bytes
                guess = self._guesses[frame.frame_number] = Guess(frame, self._work)
                self._add(guess)
        self._waiting.clear()

    def confirm(
        self, arrived: Iterable[tuple[Token, EncodedFrame]], take: Callable[[Token, EncodedFrame, Result], None]
    ) -> tuple[list[tuple[Token, EncodedFrame, Result]], list[tuple[Token, EncodedFrame]]]:
        """Tell what has become of frames that are certain now: those with a result, and those to be worked on.

        Of others the work is under way, and ``take`` will be called with its result.
        """
        done, rest = [], []
        for token, frame in arrived:
            guess = self._guesses.get(frame.frame_number)
            progress = Progress.NOT_BEGUN
            if guess is not None and guess.frame is frame:
                progress = guess.confirm(functools.partial(take, token, frame))
            if guess is not None and progress is Progress.DONE:
                done.append((token, frame, cast("Result", guess.result)))
            elif progress is Progress.NOT_BEGUN:
                rest.append((token, frame))
        return done, rest

    def close(self) -> None:
        """Begin nothing more, and give the room back; to be called once."""
        for guess in self._guesses.values():
            guess.drop()
        self._allowance.give_back(self._taken_bytes)
