"""GET requests to one DICOMweb service through the session of a ``DICOMwebClient``.

What is here: URLs, redirects, credentials and their renewal, streaming, cancellation. What is not: what exceptions of
requests and urllib3 become (``failures``), which status deserves another try (``retry``), what to ask (``web``).
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import requests
import urllib3
from urllib3.util import parse_url

from wsiweb.errors import SourceTimeoutError, WsiWebError
from wsiweb.sources.adapters import close_adapters, own_adapters
from wsiweb.sources.failures import not_asked, translated
from wsiweb.sources.quoting import quoted, readable_error, without_secrets
from wsiweb.sources.retry import HopelessError, OversizeError, RedirectError
from wsiweb.sources.sessions import NoCredentials, TokenAuth, leave_redirects, own_session
from wsiweb.sources.wire import Wire
from wsiweb.stats import ReadStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wsiweb.sources.base import Cancellation

MAX_REDIRECTS = 5
CHUNK_BYTES = 262_144
"""Taken at once, at most: each time, threads take turns."""
_MAX_ERROR_BYTES = 65_536
_MAX_ERROR_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and what it takes to read the body."""

    status: int
    content_type: str
    headers: dict[str, str]
    """By lower-case name."""
    url: str
    """That answered, without secrets."""
    chunks: Iterator[bytes]
    """The body, content encoding undone, as it arrives."""
    quote: Callable[[bytes], str] = readable_error
    """Returns what an error's body says, without what was sent in confidence: some services repeat that."""
    connected_at: float = -math.inf
    """When its connection was ready (of ``time.monotonic``), if that was made for it."""

    def read(self, limit_bytes: int, *, deadline: float | None = None) -> bytes:
        """Return the whole body.

        Raises
        ------
        ProtocolError
            It is larger than ``limit_bytes``.
        SourceTimeoutError
            It is not there by ``deadline`` (of ``time.monotonic``).
        """
        body = bytearray()
        for chunk in self.chunks:
            body += chunk
            if deadline is not None and time.monotonic() > deadline:
                raise SourceTimeoutError(f"The answer of {self.url} took longer than the deadline.", url=self.url)
            if len(body) > limit_bytes:
                raise OversizeError(
                    f"The answer of {self.url} is larger than {limit_bytes:,} bytes.",
                    url=self.url, status=self.status,
                )  # fmt: skip
        return bytes(body)

    def error_text(self) -> str:
        """Return what the body of a refusal says, for a message; never raises."""
        text = bytearray()
        until = time.monotonic() + _MAX_ERROR_SECONDS
        with contextlib.suppress(WsiWebError, urllib3.exceptions.HTTPError, requests.RequestException, OSError):
            for chunk in self.chunks:
                text += chunk
                if len(text) > _MAX_ERROR_BYTES or time.monotonic() > until:
                    break
        return self.quote(bytes(text))


class Service:
    """One DICOMweb service: where it is and how to talk to it. Safe to share between threads; pickles.

    Parameters
    ----------
    base_url
        Its root.
    session
        Carries authentication, certificates, proxies and headers. It is not changed: an own copy does the work.
    qido_url_prefix, wado_url_prefix
        Path below the root for searching and retrieving, or None.
    connections
        Requests that may be in flight at once.
    timeout_seconds
        Longest silence on a socket.
    """

    def __init__(
        self,
        base_url: str,
        session: requests.Session,
        *,
        qido_url_prefix: str | None,
        wado_url_prefix: str | None,
        connections: int,
        timeout_seconds: float,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.qido_url = _below(self.base_url, qido_url_prefix)
        self.wado_url = _below(self.base_url, wado_url_prefix)
        self.stats = ReadStats()
        self.reached = False
        self._state = {
            "base_url": base_url, "session": session, "qido_url_prefix": qido_url_prefix,
            "wado_url_prefix": wado_url_prefix, "connections": connections, "timeout_seconds": timeout_seconds,
        }  # fmt: skip
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._way = session.verify, session.proxies, session.trust_env  # as it is now, whatever its owner does later
        self._session = own_session(session, self.base_url, connections)

    def __getstate__(self) -> dict[str, Any]:
        return self._state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def credentials(self) -> dict[str, object]:
        """Token or authentication object of the session, and the session, by the arguments that they came by."""
        auth, session = self._session.auth, {"session": self._state["session"]}
        if auth is None:
            return session
        return {"token": auth.supplier, **session} if isinstance(auth, TokenAuth) else {"auth": auth, **session}

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
        """Make one GET request; the body streams inside the ``with``.

        Credentials, the user's headers and cookies go to the service's own origin, and nowhere else. Nothing is
        waited for beyond ``deadline`` (of ``time.monotonic``).

        Raises
        ------
        SourceError
            There was no answer, or its body broke off; a subclass says which way.
        """
        wire = Wire(deadline)
        with translated(url, self._proxy_of), contextlib.ExitStack() as stack:
            if cancellation is not None:
                stack.callback(cancellation.on_cancel(wire.cut))
            with wire:
                response = self._send_in_time(wire, url, accept, parameters, deadline)
            stack.callback(response.close)
            if cancellation is not None and not wire.is_bound:
                stack.callback(cancellation.on_cancel(functools.partial(_shut_down, response, wire)))
            self.reached = True
            yield Answer(
                status=response.status_code,
                content_type=response.headers.get("Content-Type", ""),
                headers={name.lower(): value for name, value in response.headers.items()},
                url=without_secrets(response.url),
                chunks=self._chunks(response, wire),
                quote=functools.partial(quoted, response.request),
                connected_at=wire.made_at,
            )

    def _chunks(self, response: requests.Response, wire: Wire) -> Iterator[bytes]:
        encoded = "Content-Encoding" in response.headers  # urllib3 copies what it might have to decode
        while (chunk := response.raw.read1(CHUNK_BYTES, decode_content=encoded)) and not wire.is_cut:
            self.stats.add(bytes=len(chunk))
            yield chunk
        if wire.is_cut:  # else it would pass for the end of a body that has no length
            raise urllib3.exceptions.ProtocolError("the connection was cut here")

    def _send_in_time(
        self, wire: Wire, url: str, accept: str, parameters: dict[str, str] | None, deadline: float | None
    ) -> requests.Response:
        """Send again at once what a connection was too old for (RFC 9110 9.2.2): that is no failure of the service."""
        while True:
            try:
                return self._send(url, accept, parameters, deadline)
            except requests.exceptions.ConnectionError:
                if not wire.came_late:
                    raise
                wire.came_late = False

    def _send(
        self, url: str, accept: str, parameters: dict[str, str] | None, deadline: float | None
    ) -> requests.Response:
        """Follow redirects by hand: credentials stay with their origin, and nothing falls from https to http."""
        session = self._session_for(url)
        headers = {"Accept": accept}
        renewed = False
        for _ in range(MAX_REDIRECTS + 1):
            timeout_seconds = self._timeout_seconds
            if deadline is not None:
                timeout_seconds = min(timeout_seconds, deadline - time.monotonic())
            if timeout_seconds <= 0:
                where = without_secrets(url)
                raise SourceTimeoutError(f"{where} did not answer before the deadline.", url=where)
            response = self._get(session, url, parameters, headers, timeout_seconds)
            if response.status_code == 401 and not renewed and self._renew(session, response):
                response.close()
                renewed = True
                continue
            location = response.headers.get("Location")
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            response.close()
            if location is None:
                where = without_secrets(url)
                raise RedirectError(f"{where} answered {response.status_code}, a redirect, without a Location.",
                                    url=where, status=response.status_code)  # fmt: skip
            parameters = None
            with contextlib.suppress(UnicodeError):  # http.client takes what is UTF-8 for Latin-1
                location = location.encode("latin-1").decode()
            try:
                target = urljoin(response.url, location)
                session = self._session_for(target)
                if (host := urlsplit(target).hostname or "").isascii():
                    host.encode("idna")  # as urllib3 does later, when it can no longer be said whose URL it is
            except ValueError:
                where = without_secrets(url)
                raise RedirectError(f"{where} redirects to what is no URL.",
                                    url=where, status=response.status_code) from None  # fmt: skip
            if urlsplit(target).scheme not in ("http", "https"):
                raise RedirectError(
                    f"{without_secrets(url)} redirects to {without_secrets(target)}, which is not the web.",
                    url=without_secrets(url), status=response.status_code,
                )  # fmt: skip
            if urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
                raise RedirectError(
                    f"{without_secrets(url)} redirects from https to {without_secrets(target)}; that is not followed.",
                    url=without_secrets(url), status=response.status_code,
                )  # fmt: skip
            url = target
        raise RedirectError(
            f"{without_secrets(url)} redirects more than {MAX_REDIRECTS} times.", url=without_secrets(url)
        )

    def _session_for(self, url: str) -> requests.Session:
        return self._session if same_origin(self.base_url, url) else self._stranger

    def _proxy_of(self, url: str) -> str | None:
        with contextlib.suppress(ValueError):  # of what is no URL
            found = self._session_for(url).merge_environment_settings(url, {}, None, None, None)
            proxy: str | None = requests.utils.select_proxy(url, found["proxies"])
            return proxy
        return None

    @functools.cached_property
    def _stranger(self) -> requests.Session:
        """For other origins: it knows the way there, and nothing that is secret."""
        session = leave_redirects(requests.Session())
        session.auth = NoCredentials()
        session.headers["User-Agent"] = self._session.headers.get("User-Agent", "")
        session.verify, session.proxies, session.trust_env = self._way
        session.adapters = own_adapters(session, self._connections)
        return session

    def _get(
        self, session: requests.Session, url: str, parameters: dict[str, str] | None, headers: dict[str, str],
        timeout_seconds: float,
    ) -> requests.Response:  # fmt: skip
        self.stats.add(requests=1)
        # The session's own are not said again where a redirect, or a reference, has them: None leaves one out.
        there = dict.fromkeys(name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))
        try:
            return session.get(
                url, params={**there, **(parameters or {})}, headers=headers, stream=True, allow_redirects=False,
                timeout=timeout_seconds,
            )  # fmt: skip
        except WsiWebError:  # of the user's token: nothing was sent
            self.stats.add(requests=-1)
            raise
        except (requests.exceptions.RequestException, urllib3.exceptions.LocationValueError):
            raise
        except (ValueError, TypeError, AttributeError) as error:  # of http.client, on a line break in a header, say
            raise not_asked(without_secrets(url), error) from None
        except OSError as error:  # requests wraps those of sockets: this is about a certificate file
            raise HopelessError(f"{without_secrets(url)} was not asked: {error}", url=without_secrets(url)) from error

    def _renew(self, session: requests.Session, response: requests.Response) -> bool:
        auth = session.auth
        return isinstance(auth, TokenAuth) and auth.renew(response.request.headers.get("Authorization"))

    def close(self) -> None:
        """Close the connections, but for those that other slides use; the user's session is theirs."""
        for session in [self._session] + ([self._stranger] if "_stranger" in vars(self) else []):
            close_adapters(session)


def _below(root: str, prefix: str | None) -> str:
    return f"{root}/{prefix.strip('/')}" if prefix else root


def _shut_down(response: requests.Response, wire: Wire) -> None:
    """Wake a thread that waits for the body of a connection that is none of ours."""
    wire.cut()  # first: over TLS, what is read from now on is encrypted
    with contextlib.suppress(Exception):
        response.raw.shutdown()


def same_origin(first: str, second: str) -> bool:
    """Whether scheme, host and port are the same."""
    return origin(first) == origin(second)


def origin(url: str) -> tuple[str | None, str | None, int | None]:
    r"""Return scheme, host and port, as who connects reads them: ``http://a\@b/`` goes to a, and ``urlsplit`` says b.

    Raises
    ------
    ValueError
        It is no URL.
    """
    parts = parse_url(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme or "")


def host_of(name: str) -> str | None:
    """Return a host, named by who trusts it, as ``origin`` does; None where no host can have that name."""
    try:
        return origin(f"http://[{name}]/" if ":" in name else f"http://{name}/")[1]
    except ValueError:
        return None
