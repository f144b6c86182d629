"""What a failing service is answered with: the table of statuses, waits within bounds, one gate for all."""

from __future__ import annotations

import datetime as dt
import email.utils
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.errors import (
    AuthenticationError,
    ProtocolError,
    QuotaExceededError,
    SlideNotFoundError,
    SourceError,
    SourceTimeoutError,
    ThrottledError,
)
from wsiweb.sources.base import Cancellation
from wsiweb.sources.http import Answer
from wsiweb.sources.retry import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Action,
    Gate,
    Patience,
    RefusedError,
    UnreachableError,
    action_for,
    backoff_seconds,
    check_status,
    raise_named,
    retry_after_seconds,
    worth_repeating,
)

NOW = dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
URL = "https://host/dicomWeb/studies/1/series/2"


def answer(status: int, *, body: bytes = b"", content_type: str = "text/plain", **headers: str) -> Answer:
    return Answer(status, content_type, {k.replace("_", "-"): v for k, v in headers.items()}, URL, iter([body]))


def refused(status: int, **changes: Any) -> RefusedError:
    return RefusedError(answer(status, **changes))


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now


class Sleeper(Cancellation):
    """Sleeps on a ``Clock``; is cancelled after so many sleeps, where that is given."""

    def __init__(self, clock: Clock, cancel_after: int | None = None) -> None:
        super().__init__()
        self._clock = clock
        self._cancel_after = cancel_after

    def sleep(self, seconds: float) -> bool:
        self._clock.slept.append(seconds)
        self._clock.now += seconds
        if len(self._clock.slept) == self._cancel_after:
            self.cancel()
        return self.cancelled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("wsiweb.sources.retry.time", clock)
    return clock


# The table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "statuses"), [
    (Action.ACCEPT, (200, 206)),
    (Action.ABSENT, (204, 404, 410)),
    (Action.SPLIT, (400, 413, 414, 431)),
    (Action.REFUSED, (401, 403)),
    (Action.NEGOTIATE, (406, 415, 501)),
    (Action.RETRY, (408, 424, 425, 429, 500, 502, 503, 504, 507)),
    (Action.FAIL, (201, 300, 304, 402, 405, 407, 409, 411, 412, 418, 422, 451, 505, 511, 599)),
])  # fmt: skip
def test_what_a_status_asks_for(action: Action, statuses: tuple[int, ...]) -> None:
    assert {status: action_for(status) for status in statuses} == dict.fromkeys(statuses, action)


@pytest.mark.parametrize("status", [200, 206])
def test_success_passes(status: int) -> None:
    check_status(answer(status), "The metadata")


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(status: int) -> None:
    with pytest.raises(AuthenticationError, match=rf"^Frame 3: {URL} answered {status} \(no entry\)") as caught:
        check_status(answer(status, body=b"no entry"), "Frame 3", (3,))
    assert (caught.value.status, caught.value.url, caught.value.frame_numbers) == (status, URL, (3,))
    assert ("token=" in str(caught.value)) == (status == 401)


@pytest.mark.parametrize("status", [204, 400, 404, 406, 413, 429, 500, 503, 599])
def test_other_statuses_are_refusals(status: int) -> None:
    with pytest.raises(RefusedError, match=f"answered {status}") as caught:
        check_status(answer(status), "The metadata")
    assert (caught.value.status, caught.value.action) == (status, action_for(status))


def test_what_is_worth_repeating() -> None:
    repeated = {status for status in range(200, 600) if worth_repeating(refused(status), reached=True)}
    assert repeated == {408, 424, 425, 429, 500, 502, 503, 504, 507}
    for error in (ProtocolError("cut"), SourceTimeoutError("silence"), SourceError("reset")):
        assert worth_repeating(error, reached=False)
    assert not worth_repeating(AuthenticationError("no"), reached=True)


def test_who_was_never_reached_is_not_asked_again() -> None:
    assert not worth_repeating(UnreachableError("no such host"), reached=False)
    assert worth_repeating(UnreachableError("no such host"), reached=True)


# Waiting ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_backoff_is_exponential_with_full_jitter(failures: int, seed: int) -> None:
    random.seed(seed)
    bound = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2 ** min(failures, 50))
    assert 0 <= backoff_seconds(failures) <= bound


def test_backoff_uses_its_whole_range() -> None:
    random.seed(1)
    for failures, bound in ((0, 0.5), (1, 1.0), (3, 4.0), (9, 30.0)):
        waits = [backoff_seconds(failures) for _ in range(300)]
        assert min(waits) < 0.1 * bound
        assert 0.9 * bound < max(waits) <= bound


@pytest.mark.parametrize(("value", "seconds"), [
    (None, None),
    ("0", 0.0),
    ("120", 120.0),
    (" 7 ", 7.0),
    ("", None),
    ("soon", None),
    ("-5", None),
    ("1.5", None),
    ("\u00b2", None),
    ("Mon, 06 May 2024 07:09:09 GMT", 60.0),
    ("Mon, 06 May 2024 09:09:09 +0200", 60.0),
    ("Monday, 06-May-24 07:09:09 GMT", 60.0),  # RFC 850
    ("Mon May  6 07:09:09 2024", 60.0),  # asctime
    ("Mon, 06 May 2024 07:09:09 -0000", 60.0),
    ("Mon, 06 May 2024 07:00:00 GMT", 0.0),  # past
    ("Fri, 31 Dec 9999 23:59:59 GMT", pytest.approx(2.5e11, rel=0.1)),
    ("Mon, 06 May 99999 07:09:09 GMT", None),
    ("Mon, 06 May 99999999999999999999 07:09:09 GMT", None),
    ("Mon, 06 May 2024 99:09:09 GMT", None),
    ("Mon, 06 May 2024 07:09:09 +99999999999999999999", None),
])  # fmt: skip
def test_retry_after(value: str | None, seconds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds, or a date in any of three forms (RFC 9110 10.2.3, 5.6.7); nonsense is as good as nothing."""

    class Frozen(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Frozen:
            return cls.fromtimestamp(NOW.timestamp(), tz)

    monkeypatch.setattr("wsiweb.sources.retry.dt", SimpleNamespace(datetime=Frozen, UTC=dt.UTC))
    assert retry_after_seconds(value) == seconds


@given(st.text(alphabet="0123456789 ,:+-MonayGTJ", max_size=40) | st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_retry_after_is_read(value: str) -> None:
    seconds = retry_after_seconds(value)
    assert seconds is None or seconds >= 0


@given(st.integers(-(10**6), 10**6))
@settings(max_examples=50, deadline=None)
def test_dates_of_any_time(offset_seconds: int) -> None:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=offset_seconds)
    seconds = retry_after_seconds(email.utils.format_datetime(moment, usegmt=True))
    assert seconds is not None
    assert max(offset_seconds - 60, 0) <= seconds <= max(offset_seconds, 0)


# Patience ---------------------------------------------------------------------------------------------------


def patience(max_attempts: int = 3, gate: Gate | None = None) -> Patience:
    return Patience("Frames 3, 4 of instance 1.2", max_attempts, gate or Gate(), (3, 4))


def test_so_many_attempts_and_no_more() -> None:
    tried = patience(3)
    assert 0 <= tried.seconds_after(refused(500)) <= 0.5
    assert 0 <= tried.seconds_after(refused(500)) <= 1.0
    with pytest.raises(SourceError, match=r"^Frames 3, 4 of instance 1\.2 could not be had in 3 attempts") as caught:
        tried.seconds_after(refused(500, body=b"out of order"))
    assert (caught.value.status, caught.value.url, caught.value.frame_numbers) == (500, URL, (3, 4))
    assert "out of order" in str(caught.value)
    assert "max_attempts" in str(caught.value)
    assert not isinstance(caught.value, ThrottledError)


def test_a_single_attempt() -> None:
    with pytest.raises(SourceError, match="in 1 attempt:"):
        patience(1).seconds_after(refused(503))


@pytest.mark.parametrize(
    "error", [ProtocolError("The answer was cut.", url=URL, status=200), SourceTimeoutError("Late.")]
)
def test_the_last_failure_keeps_its_kind(error: SourceError) -> None:
    with pytest.raises(type(error), match=r"in 1 attempt: (The answer was cut|Late)\. Try again") as caught:
        patience(1).seconds_after(error)
    assert (caught.value.url, caught.value.status, caught.value.frame_numbers) == (error.url, error.status, (3, 4))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("status", [429, 503, 413])
def test_retry_after_goes_before_backoff(status: int) -> None:
    assert patience().seconds_after(refused(status, retry_after="7")) == 7


@pytest.mark.parametrize("value", ["0", "Mon, 06 May 2024 07:08:09 GMT"])
def test_a_retry_after_of_nothing_is_no_promise(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all attempts would be gone at once."""
    monkeypatch.setattr("wsiweb.sources.retry.backoff_seconds", lambda failures: 0.25)
    assert patience().seconds_after(refused(503, retry_after=value)) == 0.25


def test_a_date_is_by_the_clock_of_the_service() -> None:
    date, later = "Mon, 06 May 2024 07:08:09 GMT", "Mon, 06 May 2024 07:08:16 GMT"
    assert patience().seconds_after(refused(503, retry_after=later, date=date)) == 7
    assert retry_after_seconds("7", date) == 7
    assert retry_after_seconds(later, "soon") == 0


def test_a_long_retry_after_is_the_callers_to_decide_on() -> None:
    assert patience().seconds_after(refused(503, retry_after=f"{MAX_RETRY_AFTER_SECONDS:.0f}")) == 60
    for seconds in ("61", "86400", "9" * 400):
        with pytest.raises(ThrottledError, match=r"in 1 attempt: .* and asks to wait"):
            patience().seconds_after(refused(503, retry_after=seconds))


def test_throttling_is_named() -> None:
    with pytest.raises(ThrottledError) as caught:
        patience(1).seconds_after(refused(429, body=b'{"error": {"message": "Quota of requests a minute"}}'))
    assert caught.value.status == 429


@pytest.mark.parametrize(("body", "content_type", "quota"), [
    (b"<html>You have used your 40 GB for today.  It resets at midnight UTC.</html>", "text/html", True),
    (b"<html>Quota exceeded</html>", "text/html; charset=utf-8", True),
    (b"<html>Too many requests</html>", "text/html", False),
    (b"", "text/html", False),
    (b'{"error": "quota"}', "application/json", False),  # Google's is by the minute
])  # fmt: skip
def test_a_used_up_quota_is_no_throttling(body: bytes, content_type: str, quota: bool) -> None:
    error = refused(429, body=body, content_type=content_type)
    assert error.quota == quota
    if quota:
        with pytest.raises(QuotaExceededError, match="midnight UTC") as caught:
            patience().seconds_after(error)
        assert (caught.value.status, caught.value.frame_numbers) == (429, (3, 4))
    else:
        patience().seconds_after(error)


def test_what_stands_becomes_a_public_error() -> None:
    with pytest.raises(SlideNotFoundError, match="The series"):
        raise_named(refused(404), "The series")
    with pytest.raises(SourceError, match="Frame 3") as frame:
        raise_named(refused(404), "Frame 3", (3,))
    assert (frame.value.status, frame.value.url, frame.value.frame_numbers) == (404, URL, (3,))
    own = ProtocolError("cut", url=URL)
    with pytest.raises(ProtocolError) as caught:
        raise_named(own, "Frame 3", (3,))
    assert caught.value is own
    assert own.frame_numbers == (3,)


# The gate ---------------------------------------------------------------------------------------------------


def test_an_open_gate_lets_pass(clock: Clock) -> None:
    assert Gate().wait(Sleeper(clock))
    assert clock.slept == []


def test_a_shut_gate_holds_back_until_it_opens(clock: Clock) -> None:
    gate = Gate()
    gate.shut_for(5)
    gate.shut_for(2)  # who asks for less does not open it sooner
    clock.now += 1
    assert gate.wait(Sleeper(clock))
    assert clock.slept == [4]
    assert gate.wait(Sleeper(clock))
    assert clock.slept == [4]


def test_a_gate_that_is_shut_again_meanwhile(clock: Clock) -> None:
    gate = Gate()
    gate.shut_for(5)

    class Shutter(Sleeper):
        def sleep(self, seconds: float) -> bool:
            stopped = super().sleep(seconds)
            if len(clock.slept) == 1:
                gate.shut_for(3)
            return stopped

    assert gate.wait(Shutter(clock))
    assert clock.slept == [5, 3]


def test_nobody_waits_for_a_gate_that_opens_too_late(clock: Clock) -> None:
    gate = Gate()
    gate.shut_for(5)
    assert not gate.wait(Sleeper(clock), clock.now + 4)
    assert clock.slept == []
    assert gate.wait(Sleeper(clock), clock.now + 6)


def test_who_is_cancelled_does_not_pass(clock: Clock) -> None:
    gate = Gate()
    gate.shut_for(5)
    assert not gate.wait(Sleeper(clock, cancel_after=1))
    cancelled = Sleeper(clock)
    cancelled.cancel()
    assert not Gate().wait(cancelled)


@pytest.mark.parametrize(("status", "shut"), [(429, True), (503, True), (500, False), (408, False)])
def test_throttling_shuts_the_gate_for_all(status: int, shut: bool, clock: Clock) -> None:
    gate = Gate()
    patience(gate=gate).seconds_after(refused(status, retry_after="9"))
    assert gate.wait(Sleeper(clock))
    assert clock.slept == ([9] if shut else [])
