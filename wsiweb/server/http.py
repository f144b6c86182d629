"""Sockets, threads and HTTP/1.1 around the resources."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import logging
import os
import re
import socket
import threading
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Self

from wsiweb.errors import UnsupportedError, WsiWebError
from wsiweb.metadata import VL_WHOLE_SLIDE_MICROSCOPY
from wsiweb.server.accept import quality
from wsiweb.server.answer import Answer, HttpError, Request
from wsiweb.server.index import Index
from wsiweb.server.routes import answer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

logger = logging.getLogger("wsiweb")

PREFIX = "/dicom-web"
MIN_GZIP_BYTES = 1400
"""What fits into one packet gains nothing from being smaller."""
GATHERED_BYTES = 1 << 20
"""A body up to this length is put together before it is sent, so that its length is known and errors have a status."""
IDLE_SECONDS = 60
ALLOWED = "GET, HEAD, OPTIONS"
_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?", re.ASCII)


class DicomWebServer:
    """Serves local DICOM files over DICOMweb: QIDO-RS and WADO-RS, read only.

    It answers between ``start`` and ``close``, or inside a ``with``; its port, and so its URL, are its own from the
    beginning.

    Parameters
    ----------
    paths
        Files, or folders that are searched with all folders below.
    host
        Address to listen on.
    port
        Port to listen on; 0 takes a free one.

    Raises
    ------
    SlideNotFoundError
        A path does not exist.
    WsiWebError
        The address cannot be listened on.
    """

    def __init__(
        self,
        paths: Path | str | Iterable[Path | str],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        listed = [paths] if isinstance(paths, str | os.PathLike) else paths
        index = Index([Path(path) for path in listed])
        self._index = index
        self.requests: list[str] = []
        """Each request so far, in order: method, path and query."""
        try:
            self._http = _HttpServer(host, port, index, self.requests)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise WsiWebError(f"The server cannot listen on {host}, port {port}: {why}.") from error
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The service's URL."""
        return f"http://{self._http.address}{PREFIX}"

    def series_urls(self) -> list[str]:
        """Return the URLs of the series that hold whole-slide images."""
        images = (stored for stored in self._index.instances if stored.sop_class_uid == VL_WHOLE_SLIDE_MICROSCOPY)
        return list(dict.fromkeys(self.url + stored.location.partition("/instances/")[0] for stored in images))

    def start(self) -> Self:
        """Begin to answer, in threads of the server's own; returns the server."""
        if self._thread is None:
            self._http.server_activate()
            self._thread = threading.Thread(
                target=self._http.serve_forever, args=(0.05,), name="wsiweb-server", daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering and release the port; requests on their way are cut off."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()
        self._http.hang_up()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, index: Index, requests: list[str]) -> None:
        self.index = index
        self.requests = requests
        self.connections: dict[socket.socket, threading.Thread] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # A client of a server that listens and does not answer would wait until it loses patience.
        super().__init__((host, port), _Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Bind without the reverse look-up of the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"{host}:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread that is on record before it runs, so that ``hang_up`` misses none."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.connections[request] = thread
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what comes up to here is a client that has hung up."""

    def hang_up(self) -> None:
        """End the connections that clients keep alive, and wait for their threads."""
        for connection, thread in list(self.connections.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "wsiweb"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = IDLE_SECONDS
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it so)
        logger.debug(format, *args)

    def parse_request(self) -> bool:
        understood = super().parse_request()
        if understood:
            self.server.requests.append(f"{self.command} {self.path}")
        return understood

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads
        try:
            found = answer(self.server.index, self._request())
            head, rest = _gather(found.body)
        except HttpError as error:
            found, head, rest = *_failure(error.status, str(error)), None
        except UnsupportedError as error:
            found, head, rest = *_failure(HTTPStatus.NOT_ACCEPTABLE, str(error)), None
        except WsiWebError as error:
            found, head, rest = *_failure(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)), None
        except Exception:
            logger.exception("%s %s failed", self.command, self.path)
            message = "The server failed; its log has the reason."
            found, head, rest = *_failure(HTTPStatus.INTERNAL_SERVER_ERROR, message), None
        self._send(found, head, rest)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.close_connection = True
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, explain="This service is read only.")

    do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815  (the base class looks for these names)

    def do_OPTIONS(self) -> None:
        self._send(Answer(b"", status=HTTPStatus.NO_CONTENT), b"", None)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with JSON, as everywhere, what the base class answers with HTML."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(*_failure(status, explain or message or status.description), None)

    def _request(self) -> Request:
        try:
            url = urllib.parse.urlsplit(self.path)
        except ValueError as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{self.path:.200} is no URL: {error}.") from error
        path = urllib.parse.unquote(url.path)
        if not path.startswith(PREFIX + "/"):
            raise HttpError(HTTPStatus.NOT_FOUND, f"The service is at {PREFIX}/.")
        host = self.headers.get("Host", "")
        if host == self.server.server_name or not _HOST.fullmatch(host):
            host = self.server.address  # dicomweb-client forgets the port
        return Request(
            path.removeprefix(PREFIX),
            urllib.parse.parse_qsl(url.query, keep_blank_values=True),
            ", ".join(self.headers.get_all("Accept", [])),
            f"http://{host}{PREFIX}",
        )

    def _send(self, found: Answer, head: bytes, rest: Generator[bytes, None, None] | None) -> None:
        """Send the answer; ``rest`` is what follows ``head``, None where that is all."""
        request_headers = getattr(self, "headers", None) or {}  # none were read of a malformed request
        accepted = request_headers.get("Accept-Encoding", "")
        zipped = found.compressible and len(head) >= MIN_GZIP_BYTES and _takes_gzip(accepted)
        if zipped:
            head = gzip.compress(head, 3, mtime=0)
        length = len(head) if rest is None else found.length_bytes
        chunked = length is None and self.request_version != "HTTP/1.0"
        if length is None and not chunked:
            self.close_connection = True  # the end of the connection is the end of the body
        headers = {
            "Content-Type": found.content_type,
            "Vary": "Accept-Encoding" if found.compressible else None,
            "Content-Encoding": "gzip" if zipped else None,
            "Allow": ALLOWED if self.command == "OPTIONS" or found.status == HTTPStatus.METHOD_NOT_ALLOWED else None,
            "Transfer-Encoding": "chunked" if chunked else None,
            "Content-Length": None if length is None or found.status == HTTPStatus.NO_CONTENT else str(length),
            "Connection": "close" if self.close_connection else None,
        }
        self.send_response(found.status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        with contextlib.closing(rest) if rest is not None else contextlib.nullcontext():
            if self.command != "HEAD":
                self._stream(itertools.chain([head], rest or ()), chunked=chunked)

    def _stream(self, pieces: Iterable[bytes], *, chunked: bool) -> None:
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece)
        except ConnectionError:
            raise  # the client has hung up
        except (WsiWebError, OSError) as error:
            # The status is long gone: a body that visibly lacks its end is all that can be said.
            logger.warning("The answer to %s broke off: %s", self.path, error)
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")


def _gather(body: bytes | Generator[bytes, None, None]) -> tuple[bytes, Generator[bytes, None, None] | None]:
    """Return the beginning of a body, and the generator of the rest; None where that was all."""
    if isinstance(body, bytes):
        return body, None
    pieces, length = [], 0
    for piece in body:
        pieces.append(piece)
        length += len(piece)
        if length >= GATHERED_BYTES:
            return b"".join(pieces), body
    return b"".join(pieces), None


def _failure(status: HTTPStatus, message: str) -> tuple[Answer, bytes]:
    body = json.dumps({"status": status.value, "error": status.phrase, "message": message}).encode()
    return Answer(body, "application/json", status), body


def _takes_gzip(header: str) -> bool:
    found = re.search(r"(?:^|,)\s*gzip\s*(?:;\s*q=([\d.]+))?\s*(?:,|$)", header)
    return found is not None and quality(found[1] or "1") > 0
