"""What to do when a service does not deliver: a table of statuses, backoff, and one gate for a service. No I/O."""

from __future__ import annotations

import datetime as dt
import email.utils
import enum
import math
import os
import random
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from wsiweb.errors import (
    AuthenticationError,
    ProtocolError,
    QuotaExceededError,
    SlideNotFoundError,
    SourceError,
    ThrottledError,
)
from wsiweb.locks import module_lock

if TYPE_CHECKING:
    from wsiweb.sources.base import Cancellation
    from wsiweb.sources.http import Answer

BACKOFF_BASE_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 60.0
"""A longer Retry-After is the caller's to decide on."""


class UnreachableError(SourceError):
    """No connection could be made: before the first success, asking again is useless."""


class HopelessError(SourceError):
    """The request could not even be made, and never can."""


class OversizeError(ProtocolError):
    """An answer is larger than it can be: nobody asks for it twice."""


class RedirectError(ProtocolError):
    """A redirect that is not followed."""


class ForeignError(ProtocolError):
    """What answers is no DICOMweb service."""


class Action(enum.Enum):
    """What a status asks for."""

    ACCEPT = enum.auto()
    """Read the body."""
    RETRY = enum.auto()
    """The same again, later."""
    NEGOTIATE = enum.auto()
    """The same with another Accept."""
    SPLIT = enum.auto()
    """Fewer frames at once; one alone is refused for good."""
    REFUSED = enum.auto()
    """Bad credentials."""
    ABSENT = enum.auto()
    """There is no such thing."""
    FAIL = enum.auto()
    """Asking again would change nothing."""


_ACTIONS = {
    **dict.fromkeys((200, 206), Action.ACCEPT),
    **dict.fromkeys((401, 403), Action.REFUSED),
    **dict.fromkeys((204, 404, 410), Action.ABSENT),
    **dict.fromkeys((406, 415, 501), Action.NEGOTIATE),
    **dict.fromkeys((408, 424, 425, 429, 500, 502, 503, 504, 507), Action.RETRY),
    **dict.fromkeys((400, 413, 414, 431), Action.SPLIT),
}
THROTTLING = frozenset({429, 503})
"""The service asks for patience."""
STRAINED = frozenset({500, 502, 504, 507})
"""There may have been too much at once."""
PROXY_WANTS_CREDENTIALS = (
    "The proxy wants credentials: http://user:password@proxy, in HTTP_PROXY and HTTPS_PROXY or the proxies of session="
)


def action_for(status: int) -> Action:
    """Look up what a status asks for (PS3.18 8.5, Table 10.4.3)."""
    return _ACTIONS.get(status, Action.FAIL)


def backoff_seconds(failures: int) -> float:
    """Return how long to wait after so many failures: exponential with full jitter."""
    return random.uniform(0, min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0**failures))  # noqa: S311


def retry_after_seconds(value: str | None, date: str | None = None) -> float | None:
    """Read a Retry-After header, seconds or an HTTP date (RFC 9110 10.2.3); None where absent or senseless.

    A date is by the clock of the service, which ``date``, the header of that name, tells.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isdecimal():
        return float(value)
    moment = _moment(value)
    if moment is None:
        return None
    return max((moment - (_moment(date) or dt.datetime.now(dt.UTC))).total_seconds(), 0.0)


def _moment(value: str | None) -> dt.datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(value or "")
    except (ValueError, OverflowError, TypeError):
        return None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


class Gate:
    """Holds back all threads of a service while it asks for patience, so that they do not each ask in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opens_at = 0.0

    def shut_for(self, seconds: float) -> None:
        """Let nobody pass for so long."""
        with self._lock:
            self._opens_at = max(self._opens_at, time.monotonic() + seconds)

    def wait(self, cancellation: Cancellation, deadline: float = math.inf) -> bool:
        """Wait until the gate is open; False when cancelled meanwhile, or where it opens after ``deadline`` only."""
        while not cancellation.cancelled:
            with self._lock:
                left = self._opens_at - time.monotonic()
            if left <= 0:
                return True
            if time.monotonic() + left > deadline:
                return False
            cancellation.sleep(left)
        return False


_gates: weakref.WeakValueDictionary[tuple[int, str], Gate] = weakref.WeakValueDictionary()
_meeting = module_lock()


def gate_of(service_url: str) -> Gate:
    """Return the gate of a service: the same for all slides of this process that are read from it at the time."""
    with _meeting:
        return _gates.setdefault((os.getpid(), service_url), Gate())


class RefusedError(Exception):
    """An answer whose status is no success; never leaves the sources."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.url = answer.url
        self.retry_after = retry_after_seconds(answer.headers.get("retry-after"), answer.headers.get("date"))
        self.html = answer.content_type.lower().startswith("text/html")
        self.said = answer.error_text()
        advice = f". {PROXY_WANTS_CREDENTIALS}" if self.status == 407 else ""
        super().__init__(f"{self.url} answered {self.status}{f' ({self.said})' if self.said else ''}{advice}")

    @property
    def action(self) -> Action:
        """What the status asks for."""
        return action_for(self.status)

    @property
    def quota(self) -> bool:
        """Whether a 429 means a quota that is used up, and not a moment's throttling (IDC's proxy says so in HTML)."""
        said = self.said.lower()
        return self.status == 429 and self.html and ("quota" in said or "midnight" in said)


@dataclass(slots=True)
class Patience:
    """How long to go on with one request that fails: waits between attempts, or raises what it was in the end."""

    what: str
    """What is being asked for, for messages."""
    max_attempts: int
    gate: Gate
    frame_numbers: tuple[int, ...] = ()
    failures: int = 0

    def seconds_after(self, error: SourceError | RefusedError) -> float:
        """Return how long to wait before the next attempt.

        Raises
        ------
        SourceError
            There shall be none: the last attempt failed, or waiting is useless.
        """
        self.failures += 1
        asked = error.retry_after if isinstance(error, RefusedError) else None
        if isinstance(error, RefusedError) and error.quota:
            raise QuotaExceededError(
                f"{error.url} says that a quota is used up: {error.said}. It resets at midnight UTC; until then read "
                f"from another service or local files.",
                url=error.url, status=error.status, frame_numbers=self.frame_numbers,
            ) from error  # fmt: skip
        if self.failures >= self.max_attempts or (asked is not None and asked > MAX_RETRY_AFTER_SECONDS):
            raise self.given_up(error) from error
        wait = asked or backoff_seconds(self.failures - 1)  # 0 is no promise: nor is a moment that has passed
        if error.status in THROTTLING:
            self.gate.shut_for(wait)
        return wait

    def given_up(self, error: SourceError | RefusedError) -> SourceError:
        """Return the error to raise where the last attempt has failed."""
        if isinstance(error, RefusedError):
            asked = error.retry_after
            kind = ThrottledError if error.status == 429 or asked is not None else SourceError
            patience = f" and asks to wait {asked:.0f} s" if asked is not None else ""
            message = f"{error}{patience}"
        else:
            kind, message = type(error), str(error).rstrip(".")
        attempts = f"{self.failures} attempt{'s' if self.failures > 1 else ''}"
        return kind(
            f"{self.what} could not be had in {attempts}: {message}. Try again later, or raise "
            f"ReadOptions.max_attempts.",
            url=error.url, status=error.status, frame_numbers=self.frame_numbers,
        )  # fmt: skip


def check_status(answer: Answer, what: str, frame_numbers: tuple[int, ...] = (), *, advice: str = "") -> None:
    """Let a success pass; raise for any other status.

    ``advice`` is for who is refused (see ``services.ServiceKind``).

    Raises
    ------
    AuthenticationError
        401 or 403.
    RefusedError
        Any other; what it asks for is in ``action``.
    """
    action = action_for(answer.status)
    if action is Action.ACCEPT:
        return
    refused = RefusedError(answer)
    if action is not Action.REFUSED:
        raise refused
    hint = (
        "Pass auth=, token= or headers= (--user, --token or --header), or renew what has expired."
        if answer.status == 401
        else "These credentials, or their lack, are not enough."
    )
    raise AuthenticationError(
        f"{what}: {refused}. {hint} {advice}".rstrip(),
        url=answer.url,
        status=answer.status,
        frame_numbers=frame_numbers,
    )


def worth_repeating(error: SourceError | RefusedError, *, reached: bool) -> bool:
    """Whether the same request may go later; ``reached`` tells whether the service has ever answered."""
    if isinstance(error, RefusedError):
        return error.action is Action.RETRY or (error.status == 413 and error.retry_after is not None)
    if isinstance(error, UnreachableError):
        return reached
    return not isinstance(error, (AuthenticationError, ForeignError, HopelessError, OversizeError, RedirectError))


def raise_named(error: SourceError | RefusedError, what: str, frame_numbers: tuple[int, ...] = ()) -> NoReturn:
    """Raise the public error for a failure that stands.

    Raises
    ------
    SourceError, SlideNotFoundError
        Says what of ``what``.
    """
    if isinstance(error, SourceError):
        error.frame_numbers = error.frame_numbers or frame_numbers
        raise error
    if error.action is Action.ABSENT and not frame_numbers:
        message = f"{what} is not there: {error}. Check the UIDs and the root of the service."
        raise SlideNotFoundError(message) from error
    raise SourceError(f"{what}: {error}.", url=error.url, status=error.status, frame_numbers=frame_numbers) from error
