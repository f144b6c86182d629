"""``WatchedService``: a service that writes down each exchange, and stops where a budget ends."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from wsiweb.errors import SourceError, SourceTimeoutError
from wsiweb.sources.http import Service
from wsiweb.sources.quoting import without_secrets
from wsiweb.sources.retry import Action, HopelessError, RefusedError, action_for, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsiweb.sources.base import Cancellation
    from wsiweb.sources.http import Answer

_SCHEME = re.compile(r"(?i)(basic|bearer|digest|negotiate|ntlm|aws4-hmac-sha256)\b")


class BudgetError(HopelessError):
    """The examination may cost no more."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What an examination may cost."""

    requests: int
    bytes: int
    """Of all bodies but those of metadata, without which no slide opens."""
    seconds: float
    """Until the last request begins."""
    seconds_per_request: float
    """Until its last byte; checked as bytes arrive."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what came of it."""

    url: str
    """Without secrets."""
    accept: str
    what: str
    """The kind of resource: search, metadata, frames or bulk data."""
    frames: int
    """How many were asked for."""
    status: int | None = None
    """None where there was no answer."""
    first_byte_seconds: float = 0.0
    """Until the head of the answer was there."""
    seconds: float = 0.0
    """Until its end, or that of our patience."""
    body_bytes: int = 0
    """Received, content encoding undone."""
    wire_bytes: int | None = None
    """What the answer says of its length, content encoding not undone."""
    compressed: bool = False
    """Whether it came with a content encoding, such as gzip."""
    retry_after_seconds: float | None = None
    challenge: str | None = None
    """The scheme, and only that, of WWW-Authenticate."""
    quota: bool = False
    """Whether it says that a quota is used up."""
    error: SourceError | None = None

    @classmethod
    def begun(cls, url: str, accept: str) -> Self:
        """Return what is known of a request before it is made."""
        _, found, numbers = urlsplit(url).path.partition("/frames/")
        kinds = {"/frames/": "frames", "/metadata": "metadata", "/bulk": "bulk data"}
        what = next((kind for part, kind in kinds.items() if part in url), "search")
        return cls(without_secrets(url), accept, what, numbers.count(",") + 1 if found else 0)


class WatchedService(Service):
    """A service as another one is, with a log and a budget. Neither copies nor pickles as such."""

    def __init__(self, service: Service, budget: Budget) -> None:
        self.__dict__.update(service.__dict__)
        self.exchanges: list[Exchange] = []
        self._budget = budget
        self._ends = time.monotonic() + budget.seconds
        self._bytes_left = budget.bytes
        self._lock = threading.Lock()

    @property
    def bytes_left(self) -> int:
        """Of the budget."""
        return max(self._bytes_left, 0)

    @contextlib.contextmanager
    def get(
        self,
        url: str,
        accept: str,
        *,
        parameters: dict[str, str] | None = None,
        cancellation: Cancellation | None = None,
        deadline: float | None = None,
    ) -> Iterator[Answer]:
        """Make one GET request and write it down; see ``Service.get``.

        Raises
        ------
        BudgetError
            The budget is used up.
        """
        where = without_secrets(url)
        if self.stats.requests >= self._budget.requests:
            raise BudgetError(f"{where} was not asked: {self._budget.requests} requests are the limit.", url=where)
        if time.monotonic() > self._ends:
            raise BudgetError(f"{where} was not asked: {self._budget.seconds:.0f} s have passed.", url=where)
        if self._bytes_left < 0:
            raise BudgetError(f"{where} was not asked: {self._budget.bytes / 1e6:g} MB have come.", url=where)
        exchange = Exchange.begun(url, accept)
        started = time.monotonic()
        received = [0]
        try:
            with super().get(
                url, accept, parameters=parameters, cancellation=cancellation, deadline=deadline
            ) as answer:
                exchange = _answered(exchange, answer, time.monotonic() - started)
                yield replace(answer, chunks=self._counted(answer, exchange, started, received))
        except RefusedError as error:
            exchange = replace(exchange, quota=error.quota)
            raise
        except SourceError as error:
            exchange = replace(exchange, error=error)
            raise
        finally:
            exchange = replace(exchange, seconds=time.monotonic() - started, body_bytes=received[0])
            self.exchanges.append(exchange)

    def _counted(self, answer: Answer, exchange: Exchange, started: float, received: list[int]) -> Iterator[bytes]:
        where, free = exchange.url, exchange.what == "metadata"
        for chunk in answer.chunks:
            received[0] += len(chunk)
            if not free:
                with self._lock:
                    self._bytes_left -= len(chunk)
                if self._bytes_left < 0:
                    megabytes = self._budget.bytes / 1e6
                    raise BudgetError(f"{where} was not read to its end: {megabytes:g} MB are the limit.", url=where)
            if time.monotonic() - started > self._budget.seconds_per_request:
                raise SourceTimeoutError(
                    f"{where} did not come to an end in {self._budget.seconds_per_request:g} s.", url=where
                )
            yield chunk


def must_succeed(answer: Answer) -> None:
    """Let a success pass.

    Raises
    ------
    RefusedError
        It is none.
    """
    if action_for(answer.status) is not Action.ACCEPT:
        raise RefusedError(answer)


def _answered(exchange: Exchange, answer: Answer, seconds: float) -> Exchange:
    """Note what the head of an answer says; of its headers' values, nothing that may be a secret."""
    headers = answer.headers
    length = headers.get("content-length", "")
    challenge = _SCHEME.match(headers.get("www-authenticate", ""))
    return replace(
        exchange,
        status=answer.status,
        first_byte_seconds=seconds,
        wire_bytes=int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None,
        compressed=headers.get("content-encoding", "identity").lower() not in ("", "identity"),
        retry_after_seconds=retry_after_seconds(headers.get("retry-after")),
        challenge=challenge[0] if challenge else None,
    )
