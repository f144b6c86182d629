"""The wait for an answer: it has an end, and another thread can end it. What ``sessions`` makes connections of."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import math
import queue
import socket
import threading
import time
from typing import Any, Self

import urllib3

from wsiweb.sources.chunked import ChunkedDecoder
from wsiweb.sources.trust import share_context

MAX_INTERIM_ANSWERS = 16
IDLE_SECONDS = 60.0
"""After which a connection is not used again: routers forget those that are quiet, and what is sent gets lost."""
REST_SECONDS = 0.5
"""After which its end may have been on its way as it was used again: services wait for a second or more."""


def bind(manager: Any) -> Any:
    """Have all connections of a manager of pools bind the wait for an answer."""
    classes = getattr(manager, "pool_classes_by_scheme", {})
    manager.pool_classes_by_scheme = {scheme: _bounded(pool) for scheme, pool in classes.items()}
    return manager


class _UntilDeadline(io.RawIOBase):
    """The bytes of a socket until a moment, however slowly they drip, and whoever waits for them."""

    def __init__(self, raw: io.RawIOBase, socket_: Any, deadline: float) -> None:
        self._raw, self._socket, self._deadline = raw, socket_, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        self._socket.settimeout(min(left, self._socket.gettimeout() or left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Lines:
    """The lines of a head; ``last`` is empty where the connection ended before the blank one."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.last = b"\n"

    def readline(self, limit: int = -1) -> bytes:
        self.last = self.stream.readline(limit)
        return self.last

    def close(self) -> None:
        self.stream.close()


class _BoundedResponse(http.client.HTTPResponse):
    """Skips a few interim answers, of any kind (RFC 9110 15.2), and refuses what http.client misreads.

    http.client itself skips interim answers of 100 for ever, and takes any other for the answer: then the next request
    would get the answer of this one.
    """

    fp: Any
    _interim = 0

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._wire: Wire | None = getattr(_waiting, "wire", None)
        self.ended_seconds = math.inf
        if self._wire is not None and self._wire.deadline is not None:
            self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock, self._wire.deadline))

    def begin(self) -> None:
        """Read the head, and refuse one that breaks off: http.client takes the end of the connection for its end."""
        lines = _Lines(self.fp)
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:
                self.fp = lines.stream
        if not lines.last:
            raise http.client.BadStatusLine("the head of the answer is cut short")
        # What is not exactly chunked is read as it is, heads of chunks and all.
        codings = ",".join(self.headers.get_all("Transfer-Encoding", ())).lower().split(",")
        if {coding.strip() for coding in codings} - {"", "chunked" if self.chunked else "identity"}:
            raise http.client.BadStatusLine("a transfer coding that nobody asked for")

        self.chunked = self.chunked and self.length != 0  # which a 204 has, whatever it says of itself
        self._chunks = ChunkedDecoder()

    def read1(self, n: int = -1) -> bytes:
        """Read what has come, of however many chunks. As with http.client's, no other kind of read may follow."""
        if not self.chunked or self.fp is None:
            return super().read1(n)
        body = b""
        while not body and not self._chunks.finished:
            try:
                body = self._chunks.feed(self.fp.read1(n))
            except ValueError as error:
                raise http.client.HTTPException(str(error)) from error
        if self._chunks.finished:
            self.close()  # the answer, so that the connection is used again
        return body

    def _close_conn(self) -> None:
        """Leave the connection, whose next answer is another's."""
        self.ended_seconds = time.monotonic()
        if self._wire is not None:
            self._wire.hold(None)
        base: Any = super()
        base._close_conn()  # noqa: SLF001

    def _read_status(self) -> tuple[str, int, str]:
        self._interim += 1
        if self._interim > MAX_INTERIM_ANSWERS:
            raise http.client.BadStatusLine("there is no end of interim answers")
        base: Any = super()
        version, status, reason = base._read_status()  # noqa: SLF001  (as old as the module)
        if status == http.client.SWITCHING_PROTOCOLS:
            raise http.client.BadStatusLine("another protocol, which nobody asked for")
        return version, http.client.CONTINUE if 100 < status < 200 else status, reason


class Wire:
    """The connection on which a thread waits for an answer, until that has come: another thread can cut it.

    What is asked for in a ``with`` goes over it. ``deadline`` (of ``time.monotonic``) ends the whole answer.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.is_cut = False
        self.is_bound = False
        """Whether it has been told of a socket: it is not where the user's session has connections of its own kind."""
        self.made_at = -math.inf
        """When its connection was ready (of ``time.monotonic``), if that was made for it."""
        self.came_late = False
        """Whether the service has ended a connection that was at rest, before it saw what was asked for over it."""
        self._lock = threading.RLock()  # an answer may be collected, and leave its connection, anywhere
        self._socket: Any = None

    def __enter__(self) -> Self:
        _waiting.wire = self
        return self

    def __exit__(self, *exception: object) -> None:
        _waiting.wire = None

    def cut(self) -> None:
        """Wake the thread that waits, or will."""
        with self._lock:
            self.is_cut = True
            self._shut_down()

    def hold(self, socket_: Any) -> None:
        """Note on which socket it waits; None for none."""
        with self._lock:
            self._socket = getattr(socket_, "socket", socket_)  # below TLS within TLS, as to proxies
            self.is_bound = self.is_bound or socket_ is not None
            if self.is_cut:
                self._shut_down()

    def _shut_down(self) -> None:
        """End the connection below TLS: ``SSLSocket.shutdown`` takes that off, and who reads gets what is encrypted."""
        held = self._socket
        if isinstance(held, socket.socket):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(held, socket.SHUT_RDWR)


_waiting = threading.local()


class _StoppableConnection:
    """Tells the ``Wire`` of its thread on which socket it waits."""

    sock: Any
    ssl_context: Any
    ca_certs: str | None
    _tunnel_host: str | None
    _answer: Any = None

    def connect(self) -> None:
        base: Any = super()
        wire: Wire | None = getattr(_waiting, "wire", None)
        trusted = share_context(self)
        self._answer = None  # urllib3 connects anew what has ended
        try:
            base.connect()
        except TimeoutError as error:  # not of the connection, which urllib3 has translated, but of what comes next
            late = wire is not None and wire.deadline is not None and time.monotonic() >= wire.deadline
            if late or self._tunnel_host is not None:  # it may be the proxy that is silent
                raise
            raise urllib3.exceptions.ConnectTimeoutError("nobody answered the handshake in time") from error
        finally:
            if trusted is not None:  # who connects anew looks at the file anew
                self.ssl_context, self.ca_certs = None, trusted
        if wire is not None:
            wire.made_at = time.monotonic()

    @property
    def is_connected(self) -> bool:
        """Whether it can be used again; not where more has come than was asked for, if only as far as TLS."""
        base: Any = super()
        pending = getattr(self.sock, "pending", None)
        at_rest = self._idle_seconds < IDLE_SECONDS
        return bool(base.is_connected) and at_rest and not (pending is not None and pending())

    @property
    def _idle_seconds(self) -> float:
        """Since the last answer has ended; for ever, where there was none."""
        return time.monotonic() - getattr(self._answer, "ended_seconds", -math.inf)

    def getresponse(self) -> Any:
        wire: Wire | None = getattr(_waiting, "wire", None)
        if wire is not None:
            wire.hold(self.sock)
        was_at_rest = self._answer is not None and self._idle_seconds >= REST_SECONDS
        base: Any = super()
        try:
            response = base.getresponse()
        except BaseException as error:
            if wire is not None:
                wire.hold(None)
                wire.came_late = was_at_rest and isinstance(error, ConnectionError) and not wire.is_cut
            raise
        self._answer = getattr(response, "_original_response", None)
        return response


class _Connections(queue.LifoQueue[Any]):
    """Those of a pool that are not in use; a Ctrl-C leaves it to others, also one within the Python code of a lock."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002  (as it is called)
        if block:
            return super().get(block, timeout)
        with self.mutex:
            if not self.queue:
                raise queue.Empty
            return self.queue.pop()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        oldest = None
        with self.mutex:  # urllib3 waits for no room, and warns of each connection that finds none
            if 0 < self.maxsize <= len(self.queue):
                oldest = self.queue.pop(0)
            self.queue.append(item)
            self.not_empty.notify()
        if oldest is not None:
            oldest.close()


@functools.cache  # to make a class takes longer than to make a connection
def _bounded(pool: Any) -> Any:
    """Return a class of connection pools, as this one, whose connections bind the wait for an answer."""
    if issubclass(pool.ConnectionCls, _StoppableConnection):
        return pool
    bases = _StoppableConnection, pool.ConnectionCls
    connection = type(pool.ConnectionCls.__name__, bases, {"response_class": _BoundedResponse})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection, "QueueCls": _Connections})
