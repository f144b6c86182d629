"""The checks of a service as a whole: the way there, authentication, search, quota."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from wsiweb.dicomjson import Attributes
from wsiweb.doctor.report import Check
from wsiweb.doctor.wire import must_succeed
from wsiweb.errors import AuthenticationError, WsiWebError
from wsiweb.jsontext import loads
from wsiweb.sources.retry import RefusedError, UnreachableError
from wsiweb.sources.services import recognise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.doctor.report import Status
    from wsiweb.doctor.wire import Exchange, WatchedService
    from wsiweb.sources.base import JsonDataset

DICOM_JSON = "application/dicom+json"
_MAX_JSON_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Way:
    """How a host was reached without HTTP."""

    lookup_seconds: float | None = None
    """None where the name was not found."""
    connect_seconds: float | None = None
    """Of TCP: about one round trip."""
    tls_seconds: float | None = None
    tls_version: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A search and what it brought."""

    status: int | None
    seconds: float
    items: tuple[JsonDataset, ...] = ()
    problem: str = ""
    """Why there are no items."""


# The way there --------------------------------------------------------------------------------------------------------


def try_the_way(url: str, *, timeout_seconds: float) -> Way:
    """Look up the name, connect, and shake hands, each timed; sends nothing."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    address = parts.hostname or "", parts.port or (443 if secure else 80)
    started = time.perf_counter()
    try:
        socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Way(problem=f"the name {address[0]} is not found ({error})")
    looked_up = time.perf_counter() - started
    started = time.perf_counter()
    try:
        with socket.create_connection(address, timeout_seconds) as connection:
            connected = time.perf_counter() - started
            if not secure:
                return Way(looked_up, connected)
            started = time.perf_counter()
            with ssl.create_default_context().wrap_socket(connection, server_hostname=address[0]) as tls:
                return Way(looked_up, connected, time.perf_counter() - started, tls.version())
    except ssl.SSLError as error:  # its certificate may be one for verify=, which the first request will tell
        return Way(looked_up, connected, problem=f"TLS failed: {error.reason or error}")
    except OSError as error:
        return Way(looked_up, problem=f"port {address[1]} cannot be reached ({error})")


def check_reach(url: str, way: Way, first: Exchange | None, *, redirected: bool) -> Check:
    """Say whether the service answers, and how far away it is.

    ``redirected`` tells whether it sent the first request elsewhere: then it is there, whatever became of that.
    """
    host = urlsplit(url).netloc
    figures = {
        "lookup_ms": _milliseconds(way.lookup_seconds),
        "connect_ms": _milliseconds(way.connect_seconds),
        "tls_ms": _milliseconds(way.tls_seconds),
        "tls_version": way.tls_version,
    }
    legs = [("DNS", way.lookup_seconds), ("TCP", way.connect_seconds), (way.tls_version or "TLS", way.tls_seconds)]
    times = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in legs if seconds is not None)
    if first is not None and first.status is not None:
        if way.problem:
            return Check("reach", "ok", f"{host} answers, though not directly: {way.problem}", figures=figures)
        return Check("reach", "ok", f"{host} answers: {times}", figures=figures)
    said = str(first.error) if first and first.error else "nothing was asked"
    if first is not None and isinstance(first.error, UnreachableError) and not redirected:
        advice = "Check host, port and scheme (http or https), VPN and proxies."
        return Check("reach", "failed", said, advice, figures)
    return Check("reach", "warning", f"Connected ({times}), but no answer to the first request: {said}", "", figures)


# Authentication -------------------------------------------------------------------------------------------------------


def check_authentication(exchanges: Sequence[Exchange], sent: Sequence[str], advice: str) -> Check:
    """Say whether the service wants to know who asks.

    Parameters
    ----------
    sent
        Which credentials went along, by kind.
    advice
        What is known of such services, for who is refused.
    """
    answered = [exchange for exchange in exchanges if exchange.status is not None]
    refused = [exchange for exchange in answered if exchange.status in (401, 403)]
    credentials = " and ".join(sent)
    figures = {"credentials": credentials or None, "answers": len(answered), "refused": len(refused)}
    unsent = [exchange.error for exchange in exchanges if isinstance(exchange.error, AuthenticationError)]
    if not answered and unsent:
        return Check("authentication", "failed", str(unsent[0]), "Nothing was sent.", figures)
    if not answered:
        return Check("authentication", "skipped", "Nothing was answered.", figures=figures)
    if not refused and not any(200 <= (exchange.status or 0) < 300 for exchange in answered):
        return Check("authentication", "skipped", "Nothing was found that could be refused.", figures=figures)
    if not refused:
        finding = f"{credentials} went along, and nothing was refused" if sent else "Not needed: none was sent"
        return Check("authentication", "ok", finding, figures=figures)
    status = refused[0].status
    what = ", ".join(dict.fromkeys(exchange.what for exchange in refused))
    scheme = next((f" It asks for {exchange.challenge}." for exchange in refused if exchange.challenge), "")
    finding = f"{status} for {what}, with {credentials or 'no credentials'}.{scheme}"
    if status == 403:
        hint = "The service knows who asks, and does not allow it: ask its operator for access." if sent else (
            "Access is forbidden without credentials, or for this address."
        )  # fmt: skip
    elif sent:
        hint = "The credentials are wrong or have expired: renew them."
    else:
        hint = "Pass --token, --user or --header (token=, auth=, headers= of Slide.open)."
    severity: Status = "failed" if len(refused) == len(answered) else "warning"
    return Check("authentication", severity, finding, f"{hint} {advice}".strip(), figures)


# Search ---------------------------------------------------------------------------------------------------------------


def search(service: WatchedService, url: str, parameters: dict[str, str]) -> Found:
    """Make one QIDO-RS request; whatever goes wrong is in the result."""
    try:
        with service.get(url, DICOM_JSON, parameters=parameters) as answer:
            status = answer.status
            if status != 204:
                must_succeed(answer)
            body, quote = answer.read(_MAX_JSON_BYTES), answer.quote
    except RefusedError as error:
        said = f" ({error.said:.200})" if error.said else ""
        return Found(error.status, service.exchanges[-1].seconds, problem=f"{error.status}{said}")
    except WsiWebError as error:
        return Found(None, 0.0, problem=str(error))
    seconds = service.exchanges[-1].seconds
    if not body.strip():
        return Found(status, seconds)
    try:
        items = loads(body)
    except ValueError:
        return Found(status, seconds, problem=f"no DICOM JSON, but {quote(body)!r:.120}")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return Found(status, seconds, problem="no list of datasets")
    return Found(status, seconds, tuple(items))


def check_search(first: Found, second: Found | None) -> Check:
    """Judge a search for slides with limit=2, and one with limit=1 and offset=1.

    ``second`` is None where the first found nothing to page through.
    """
    if first.problem:
        advice = "Name the slide yourself: a URL that ends in /studies/.../series/... needs no search."
        return Check("search", "warning", f"GET /series?Modality=SM: {first.problem}", advice, {"status": first.status})
    found = [Attributes(item) for item in first.items]
    filtered = all(item.string("Modality") in ("SM", None) for item in found)
    limited = None if len(found) < 2 else len(found) == 2
    paged = None if second is None or second.problem else _offset_heeded(first, second)
    figures = {
        "status": first.status, "milliseconds": _milliseconds(first.seconds), "filter": filtered, "limit": limited,
        "offset": paged,
    }  # fmt: skip
    if not found:
        return Check("search", "ok", f"No slides (Modality SM) found, {first.seconds * 1000:.0f} ms", figures=figures)
    tried = {"Modality=": filtered, "limit=": limited, "offset=": paged}
    heeded, ignored = ([name for name, right in tried.items() if right is verdict] for verdict in (True, False))
    if second is not None and second.problem:
        ignored.append(f"offset= (it brings {second.problem})")
    finding = f"GET /series?Modality=SM&limit=2: {len(found)} found, {first.seconds * 1000:.0f} ms"
    finding += f"; heeded: {', '.join(heeded)}" if heeded else ""
    if ignored:
        advice = "Searching here may bring too much, or end early."
        return Check("search", "warning", f"{finding}; not heeded: {', '.join(ignored)}", advice, figures)
    return Check("search", "ok", finding, figures=figures)


def _offset_heeded(first: Found, second: Found) -> bool | None:
    """Whether the second search went on where it should; None where that cannot be told."""
    uids = [Attributes(item).string("SeriesInstanceUID") for item in first.items]
    after = [Attributes(item).string("SeriesInstanceUID") for item in second.items]
    if not after:
        return len(uids) == 1
    return after[0] != uids[0] if None not in (uids[0], after[0]) else None


# Quota ----------------------------------------------------------------------------------------------------------------


def check_quota(service: WatchedService) -> Check:
    """Say whether the service has held back, and what is left where it tells."""
    kind = recognise(service.base_url)
    throttled = [exchange for exchange in service.exchanges if exchange.status in (429, 503)]
    usage = _quota_usage(service, kind.quota_path) if kind.quota_path else {}
    told = ", ".join(f"{name} {value}" for name, value in usage.items())
    figures = {"throttled": len(throttled), **usage}
    if throttled:
        last = throttled[-1]
        used_up = any(exchange.quota for exchange in throttled)
        wait = f", Retry-After {last.retry_after_seconds:.0f} s" if last.retry_after_seconds is not None else ""
        begin = "It is used up: " if used_up else ""
        finding = f"{begin}{len(throttled)} answers of {last.status}{wait}{f'; {told}' if told else ''}"
        advice = f"Ask later, or with fewer connections (ReadOptions.max_connections). {kind.advice}".strip()
        return Check("quota", "failed" if used_up else "warning", finding, advice, figures)
    nothing = f"{len(service.exchanges)} requests, none held back (429, 503)"
    return Check("quota", "ok", f"{told}; {nothing}" if told else nothing, figures=figures)


def _quota_usage(service: WatchedService, path: str) -> dict[str, float | str]:
    """Ask what is used of a quota; empty where it does not say."""
    parts = urlsplit(service.base_url)
    try:
        with service.get(urlunsplit((parts.scheme, parts.netloc, path, "", "")), "application/json") as answer:
            found = loads(answer.read(_MAX_JSON_BYTES)) if answer.status == 200 else {}
    except (WsiWebError, ValueError):
        return {}
    names = ("bytes_used", "fraction_used", "date")
    values = {name: found.get(name) for name in names} if isinstance(found, dict) else {}
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str))}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
