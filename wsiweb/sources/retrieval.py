"""``FrameRetrieval``: get the frames of one batch from a DICOMweb service, whatever it takes.

What arrived whole is kept and only what is missing is asked for again; which failure is answered by waiting, by
another Accept, by fewer frames at once or by an error is decided here, after the table in ``retry``.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from wsiweb.codestream import Coding, inspect
from wsiweb.errors import ProtocolError, SourceError, SourceTimeoutError
from wsiweb.sources.accept import NATIVE
from wsiweb.sources.answers import MAX_FRAME_BYTES, ShortAnswerError, SinglePartError, frames_in
from wsiweb.sources.retry import (
    STRAINED,
    THROTTLING,
    Action,
    Patience,
    RefusedError,
    UnreachableError,
    check_status,
    raise_named,
    worth_repeating,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsiweb.sources.accept import AcceptMemory
    from wsiweb.sources.base import Cancellation, EncodedFrame, FrameBatch, Frames, Preview
    from wsiweb.sources.http import Answer, Service
    from wsiweb.sources.pace import Pace
    from wsiweb.sources.retry import Gate

_SPARE_TIMES, _SPARE_BYTES = 2, 1 << 20
_FAILURES_OF_A_LIST = 2
"""Without a frame, after which it is divided: one of them may be what the service breaks off at."""
_DOUBT_SECONDS = 60.0
"""For which a 500 is taken for the refusal of a form, where another one has brought frames then."""
Numbers = tuple[int, ...]


class TranscodedError(ProtocolError):
    """Frames that are stored without loss came with it."""


class FrameRetrieval:
    """The retrieval of one batch.

    Parameters
    ----------
    service, gate, pace, accepts
        Whom to ask; what holds everybody back while it asks for patience; what it has shown of its costs and limits,
        and of the Accept headers it likes. Shared by all retrievals of a source.
    max_attempts
        Of one request that brings nothing.
    url
        Of the instance's frames, up to the list of numbers.
    batch, cancellation
        What to get, and when to stop.
    preview
        As for ``FrameSource.fetch``.
    """

    def __init__(
        self,
        service: Service,
        gate: Gate,
        pace: Pace,
        accepts: AcceptMemory,
        max_attempts: int,
        url: str,
        batch: FrameBatch,
        cancellation: Cancellation,
        preview: Preview | None,
    ) -> None:
        self._service = service
        self._gate = gate
        self._pace = pace
        self._accepts = accepts
        self._max_attempts = max_attempts
        self._url = url
        self._batch = batch
        self._cancellation = cancellation
        self._preview = preview
        self._queue = deque([batch.frame_numbers])
        self._refused: dict[str, float] = {}  # and for how long that is believed, in seconds
        self._doubted: int | None = None  # frames in the smallest list that was refused, for its length perhaps
        self._patience: Patience | None = None
        self._narrowed = False

    def run(self) -> Iterator[Frames]:
        """Yield each frame once, as they arrive; ends early only when cancelled."""
        while self._queue and not self._stopped():
            numbers = self._queue.popleft()
            missing = dict.fromkeys(numbers)
            accept = self._accept(len(numbers))
            try:
                for frames in self._ask(numbers, accept):
                    for frame in frames:
                        del missing[frame.frame_number]
                    if not missing and not self._queue and self._doubted is not None:
                        self._pace.too_large(self._doubted)  # all came in shorter lists: it was the length
                    yield frames
            except (RefusedError, SourceError) as error:
                if self._stopped():
                    return
                self._react(error, numbers, tuple(missing), accept)
            else:
                self._succeeded()

    def _succeeded(self) -> None:
        """Begin anew with patience; what is left of a list that broke off twice is divided at once if it does again."""
        if self._patience is not None and self._narrowed:
            self._patience.failures = _FAILURES_OF_A_LIST
        else:
            self._patience = None

    def _stopped(self) -> bool:
        return self._cancellation.cancelled

    def _ask(self, numbers: Numbers, accept: str) -> Iterator[Frames]:
        url = self._url + ",".join(map(str, numbers))
        with self._pace.request(self._cancellation):
            if not self._gate.wait(self._cancellation):
                return
            lap = self._pace.lap()
            with self._service.get(url, accept, cancellation=self._cancellation) as answer:
                lap.answered()
                check_status(answer, self._what(numbers), numbers, advice=self._pace.kind.advice)
                # All is remembered before the frame that tells it is handed out: the next read may begin at once.
                count = n_bytes = 0
                for frames in frames_in(answer, numbers, max_bytes=self._max_bytes(), preview=self._preview):
                    if count == 0:
                        self._judge(frames[0], accept, answer)
                    count += len(frames)
                    n_bytes += sum(len(frame.data) for frame in frames)
                    if count == len(numbers):
                        self._pace.record(lap, self._batch.address.instance_uid, count, n_bytes)
                    yield frames

    def _max_bytes(self) -> int:
        """Return what a frame can have at most: its pixels as they are, and room for what a bad encoder adds."""
        return min(_SPARE_TIMES * self._batch.frame_bytes + _SPARE_BYTES, MAX_FRAME_BYTES)

    def _judge(self, frame: EncodedFrame, accept: str, answer: Answer) -> None:
        """Remember what an Accept brought; refuse what lost something on the way."""
        stream = inspect(frame.data) if self._batch.lossless else None
        if stream is not None and stream.coding is Coding.JPEG:
            raise TranscodedError(
                f"{answer.url} sends as lossy JPEG what it stores without loss",
                url=answer.url, status=answer.status, frame_numbers=(frame.frame_number,),
            )  # fmt: skip
        syntax = self._batch.transfer_syntax_uid
        self._accepts.brought(syntax, accept, native=not self._decompressed(frame))
        for refused, seconds in self._refused.items():
            self._accepts.refuse(syntax, refused, seconds=seconds)

    def _decompressed(self, frame: EncodedFrame) -> bool:
        """Whether a frame that is stored compressed came without compression."""
        batch = self._batch
        return batch.compressed and len(frame.data) >= batch.frame_bytes and inspect(frame.data) is None

    def _react(self, error: RefusedError | SourceError, asked: Numbers, left: Numbers, accept: str) -> None:
        """Queue what is to be asked next, or raise what stands."""
        if not left:  # it broke off behind the last frame
            self._patience = None
            return
        if len(left) < len(asked):  # only attempts that bring nothing count
            self._patience = None
            self._again(left)
            return
        failures = self._patience.failures if self._patience else 0
        self._patience = Patience(self._what(left), self._max_attempts, self._gate, left, failures)
        if isinstance(error, RefusedError) and error.status in THROTTLING:
            self._pace.throttled()
        elif _is_strain(error):
            self._pace.failed()
        if self._renegotiates(error, accept, len(left), failures):
            self._refused[accept] = _DOUBT_SECONDS if error.status == 500 else math.inf
            if self._first_accept(len(left)) is not None:
                self._queue.appendleft(left)
                return
            if len(left) == 1 or (_is_about_form(error) and self._first_accept(1) is None):
                raise self._refused_for_good(error, left) from error
            if _is_about_form(error):
                self._doubted = 2  # what is left to try is for single frames
                self._queue.extendleft((number,) for number in reversed(left))
                self._patience = None
                return
        if len(left) > 1 and self._splits(error, len(left), failures):
            self._queue.extendleft(reversed(_halves(left)))
            self._refused.clear()
            self._patience = None
            return
        if not worth_repeating(error, reached=self._service.reached):
            raise_named(error, self._what(left), left)
        if not self._cancellation.sleep(self._patience.seconds_after(error)):
            # With the attempts that are left: which of them is it?
            narrow = len(left) > 1 and self._patience.failures >= _FAILURES_OF_A_LIST and _broke_off(error)
            self._narrowed = self._narrowed or narrow
            self._again(*_halves(left) if narrow else (left,))

    def _again(self, *lists: Numbers) -> None:
        self._service.stats.add(retries=1)
        self._queue.extendleft(reversed(lists))

    def _accept(self, count: int) -> str:
        return self._first_accept(count) or NATIVE

    def _first_accept(self, count: int) -> str | None:
        """Return what to ask with; None where every form was refused."""
        return self._accepts.choose(self._batch.transfer_syntax_uid, count, self._refused)

    def _renegotiates(self, error: RefusedError | SourceError, accept: str, count: int, failures: int) -> bool:
        """Whether another Accept may help.

        Services say 400 or 500 where they mean 406. A form that has worked is doubted for a single frame only, and
        once; any other at once.
        """
        if _is_about_form(error):
            return True
        if not isinstance(error, RefusedError):
            return False
        if error.status != 400 and not (error.status == 500 and failures >= self._pace.kind.repeats_of_500):
            return False
        proven = self._accepts.proven(self._batch.transfer_syntax_uid)
        if accept in proven:
            return count == 1 and not self._refused
        return not set(proven) & set(self._refused)

    def _splits(self, error: RefusedError | SourceError, count: int, failures: int) -> bool:
        """Whether fewer frames at once may go, or will show which of them does not."""
        if isinstance(error, RefusedError) and error.status == 500:
            return failures >= self._pace.kind.repeats_of_500
        short = isinstance(error, ShortAnswerError) and failures >= _FAILURES_OF_A_LIST - 1
        splits = (
            short
            or isinstance(error, SinglePartError)
            or (isinstance(error, RefusedError) and error.action in (Action.SPLIT, Action.ABSENT))
        )
        if splits:
            self._doubted = min(self._doubted or count, count)
        return splits

    def _refused_for_good(self, error: RefusedError | SourceError, left: Numbers) -> SourceError:
        tried = "; ".join(f"[{accept}]" for accept in self._refused)
        return SourceError(
            f"{self._what(left)}: {error}. No form of the request is accepted; tried {tried}.",
            url=error.url,
            status=error.status,
            frame_numbers=left,
        )

    def _what(self, numbers: Numbers) -> str:
        listed = ", ".join(map(str, numbers))
        if len(numbers) > 6:
            listed = f"{numbers[0]} ... {numbers[-1]} ({len(numbers)})"
        return f"Frame{'s' if len(numbers) > 1 else ''} {listed} of instance {self._batch.address.instance_uid}"


def _halves(numbers: Numbers) -> tuple[Numbers, Numbers]:
    middle = len(numbers) // 2
    return numbers[:middle], numbers[middle:]


def _is_strain(error: RefusedError | SourceError) -> bool:
    """Whether there may have been too much at once."""
    if isinstance(error, RefusedError):
        return error.status in STRAINED
    return isinstance(error, UnreachableError) or _broke_off(error)


def _broke_off(error: RefusedError | SourceError) -> bool:
    """Whether there was silence, or an end before the end."""
    return isinstance(error, SourceTimeoutError) or type(error) is ProtocolError


def _is_about_form(error: RefusedError | SourceError) -> bool:
    """Whether it is the Accept, and nothing else, that was wrong."""
    refused = isinstance(error, RefusedError) and error.action is Action.NEGOTIATE
    return refused or isinstance(error, TranscodedError)
