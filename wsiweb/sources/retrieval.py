"""``FrameRetrieval``: get the frames of one batch from a DICOMweb service, whatever it takes.

What arrived whole is kept and only what is missing is asked for again; which failure is answered by waiting, by
another Accept, by fewer frames at once or by an error is decided here, after the table in ``retry``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from wsiweb import transfer_syntaxes
from wsiweb.errors import SourceError
from wsiweb.sources.answers import frames_in
from wsiweb.sources.retry import Action, Gate, Patience, RefusedError, check_status, named, worth_repeating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsiweb.sources.base import Cancellation, EncodedFrame, FrameBatch
    from wsiweb.sources.http import Service

_NATIVE = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
_ANYTHING = 'multipart/related; type="*/*"; transfer-syntax=*'
_DECOMPRESSED = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'
_SINGLE_PART = "application/octet-stream; transfer-syntax=*"
_REPEATS_OF_500 = 2
"""A 500 may be weather (IDC's proxy hides Google's throttling in it); more of them mean the request itself."""

Numbers = tuple[int, ...]


class FrameRetrieval:
    """The retrieval of one batch.

    Parameters
    ----------
    service, gate
        Whom to ask, and what holds everybody back while it asks for patience.
    accepts
        Accept headers that have worked, by stored transfer syntax; shared by all retrievals of a source.
    max_attempts
        Of one request that brings nothing.
    url
        Of the instance's frames, up to the list of numbers.
    batch, cancellation
        What to get, and when to stop.
    """

    def __init__(
        self,
        service: Service,
        gate: Gate,
        accepts: dict[str | None, str],
        max_attempts: int,
        url: str,
        batch: FrameBatch,
        cancellation: Cancellation,
    ) -> None:
        self._service = service
        self._gate = gate
        self._accepts = accepts
        self._max_attempts = max_attempts
        self._url = url
        self._batch = batch
        self._cancellation = cancellation
        self._queue = deque([batch.frame_numbers])
        self._refused: list[str] = []
        self._patience: Patience | None = None

    def run(self) -> Iterator[EncodedFrame]:
        """Yield each frame once, as it arrives; ends early only when cancelled."""
        while self._queue and self._gate.wait(self._cancellation):
            numbers = self._queue.popleft()
            missing = dict.fromkeys(numbers)
            accept = self._accept(len(numbers))
            try:
                for frame in self._ask(numbers, accept):
                    del missing[frame.frame_number]
                    yield frame
            except (RefusedError, SourceError) as error:
                if self._cancellation.cancelled:
                    return
                self._react(error, numbers, tuple(missing), accept)
            else:
                self._accepts[self._batch.transfer_syntax_uid] = accept
                self._patience = None

    def _ask(self, numbers: Numbers, accept: str) -> Iterator[EncodedFrame]:
        url = self._url + ",".join(map(str, numbers))
        with self._service.get(url, accept, cancellation=self._cancellation) as answer:
            check_status(answer, self._what(numbers), numbers)
            yield from frames_in(answer, numbers)

    def _react(self, error: RefusedError | SourceError, asked: Numbers, left: Numbers, accept: str) -> None:
        """Queue what is to be asked next, or raise what stands."""
        if len(left) < len(asked):  # only attempts that bring nothing count
            self._patience = None
            self._again(left)
            return
        self._patience = self._patience or Patience(self._what(left), self._max_attempts, self._gate, left)
        failures = self._patience.failures
        if isinstance(error, RefusedError):
            if self._renegotiates(error, len(left), failures):
                self._refused.append(accept)
                if self._first_accept(len(left)) is None:
                    raise self._refused_for_good(error, left) from error
                self._queue.appendleft(left)
                return
            if len(left) > 1 and _splits(error, failures):
                middle = len(left) // 2
                self._queue.extendleft((left[middle:], left[:middle]))
                self._patience = None
                return
        if not worth_repeating(error, reached=self._service.reached):
            raise named(error, self._what(left), left) from error
        if not self._cancellation.sleep(self._patience.seconds_after(error)):
            self._again(left)

    def _again(self, numbers: Numbers) -> None:
        self._service.stats.add(retries=1)
        self._queue.appendleft(numbers)

    def _accept(self, count: int) -> str:
        return self._first_accept(count) or _NATIVE

    def _first_accept(self, count: int) -> str | None:
        """Return what has worked, else the first variant that was not refused; None where all were.

        Never a JPEG type for what is not stored as JPEG: servers then compress lossily without a word.
        """
        syntax = self._batch.transfer_syntax_uid
        variants = [_NATIVE, _ANYTHING, _DECOMPRESSED]
        if syntax is not None and (media_type := transfer_syntaxes.media_type(syntax)):
            variants.insert(1, f'multipart/related; type="{media_type}"; transfer-syntax={syntax}')
        if count == 1:
            variants.append(_SINGLE_PART)
        if syntax in self._accepts:
            variants.insert(0, self._accepts[syntax])
        return next((variant for variant in variants if variant not in self._refused), None)

    def _renegotiates(self, error: RefusedError, count: int, failures: int) -> bool:
        """Whether another Accept may help.

        Services say 400 or 500 where they mean 406; before anything has worked, and for a single frame, that is it.
        """
        if error.action is Action.NEGOTIATE:
            return True
        known = self._batch.transfer_syntax_uid in self._accepts
        doubtful = error.status == 400 or (error.status == 500 and failures >= _REPEATS_OF_500)
        return doubtful and (count == 1 or not known)

    def _refused_for_good(self, error: RefusedError, left: Numbers) -> SourceError:
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


def _splits(error: RefusedError, failures: int) -> bool:
    """Whether fewer frames at once may go, or will show which of them does not."""
    if error.status == 500:
        return failures >= _REPEATS_OF_500
    return error.action in (Action.SPLIT, Action.ABSENT)
