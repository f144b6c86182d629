"""A DICOMweb server for tests: serves synthetic slides, remembers every request, misbehaves on demand.

It shares no code with the library. By default it behaves like a good server that sends frames as they are
stored; ``server.fault`` is a hook that may answer a request in the ways that real servers were seen to.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pydicom
from faults import Fault, Kind, Request
from frame_answers import EXPLICIT_LITTLE_ENDIAN, MEDIA_TYPES, Reply, answer_frames
from personalities import GOOD, Personality
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

BIG_ENDIAN = "1.2.840.10008.1.2.2"
UIDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}
NOT_MATCHED = ("limit", "offset", "includefield", "fuzzymatching")
ROUTE = re.compile(
    r"(?:/studies/(?P<study>[\d.]+))?(?:/series/(?P<series>[\d.]+))?(?:/instances/(?P<instance>[\d.]+))?"
    r"(?:/(?P<what>studies|series|instances|metadata|frames|bulkdata)(?:/(?P<detail>[^/]+))?)?"
)


@dataclass(slots=True)
class StoredInstance:
    """What the server knows of one instance."""

    metadata: dict[str, Any]
    frames: list[bytes]
    transfer_syntax: str
    shape: tuple[int, ...]
    """Of a frame, as an array."""
    bulk: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, base_url: str) -> Self:
        """Read a Part 10 file whole; ICC profiles become bulk data."""
        dataset = pydicom.dcmread(path)
        count = int(dataset.get("NumberOfFrames", 1))
        bulk: dict[str, bytes] = {}
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        frames: list[bytes] = []  # of a report, say
        if syntax in MEDIA_TYPES:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
        elif "PixelData" in dataset:
            pixels = dataset.get("Rows", 0) * dataset.get("Columns", 0)
            size = pixels * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
            if dataset.PhotometricInterpretation == "YBR_FULL_422":
                size = size // 3 * 2
            frames = [dataset.PixelData[i * size : (i + 1) * size] for i in range(count)]
        if syntax == BIG_ENDIAN:  # nothing of that goes over the web (PS3.18 8.7.3.2)
            syntax = EXPLICIT_LITTLE_ENDIAN
            if dataset.BitsAllocated == 16:
                frames = [np.frombuffer(frame, ">u2").astype("<u2").tobytes() for frame in frames]
        for keyword in ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            dataset.pop(keyword, None)
        place = (
            f"{base_url}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
            f"/instances/{dataset.SOPInstanceUID}/bulkdata/"
        )

        def to_bulk(element: pydicom.DataElement) -> str:
            name = f"{element.tag:08X}-{len(bulk)}"
            bulk[name] = bytes(element.value)
            return place + name

        metadata = dataset.to_json_dict(bulk_data_threshold=256, bulk_data_element_handler=to_bulk)
        shape = dataset.get("Rows", 0), dataset.get("Columns", 0), dataset.get("SamplesPerPixel", 1)
        return cls(metadata, frames, syntax, shape[: 2 + (shape[2] > 1)], bulk)

    def uid(self, keyword: str) -> str:
        return self.values(f"{tag_for_keyword(keyword):08X}")[0]

    def values(self, tag: str) -> list[str]:
        """Return the values of an attribute, in whatever form a test has put them."""
        element = self.metadata.get(tag)
        value = element.get("Value", []) if isinstance(element, dict) else []
        return [str(item).strip(" \0") for item in (value if isinstance(value, list) else [value])]


class DICOMwebServer:
    """Serves the slides of some folders on a free port of the loopback interface, while used as a context."""

    def __init__(
        self,
        *folders: Path,
        personality: Personality = GOOD,
        gzip_answers: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.personality = replace(personality, gzip="accepted") if gzip_answers else personality
        self.closing = threading.Event()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.active = 0
        self.sockets: set[socket.socket] = set()
        self._http = _HTTPServer(self)
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.host = f"http{'s' * (tls is not None)}://127.0.0.1:{self._http.server_address[1]}"
        self.url = self.host + self.personality.root
        self.instances = [
            StoredInstance.read(file, self.url) for folder in folders for file in sorted(folder.glob("*.dcm"))
        ]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in self.sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def series_url(self, study_uid: str, series_uid: str) -> str:
        return f"{self.url}/studies/{study_uid}/series/{series_uid}"

    def forget(self) -> None:
        """Forget the requests so far."""
        with self.lock:
            self.requests.clear()

    def count(self, kind: Kind | None = None) -> int:
        with self.lock:
            return sum(kind in (None, request.kind) for request in self.requests)

    def frames_asked(self) -> Counter[tuple[str | None, int]]:
        """Return how often each (instance UID, frame number) was asked for."""
        with self.lock:
            return Counter((r.instance_uid, number) for r in self.requests for number in r.frame_numbers)

    def find(self, match: dict[str, str]) -> list[StoredInstance]:
        """Return the instances whose top-level attributes (keyword or tag) match, wildcards allowed."""
        wanted = {f"{tag_for_keyword(key) or int(key, 16):08X}": value for key, value in match.items()}
        return [
            instance
            for instance in self.instances
            if all(
                any(fnmatchcase(value, pattern) for value in instance.values(tag)) for tag, pattern in wanted.items()
            )
        ]


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, owner: DICOMwebServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HTTPServer

    def setup(self) -> None:
        super().setup()
        with self.server.owner.lock:
            self.server.owner.sockets.add(self.connection)

    def finish(self) -> None:
        with self.server.owner.lock:
            self.server.owner.sockets.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        url = urllib.parse.urlsplit(self.path)
        path = url.path.removeprefix(owner.personality.root)
        for prefix in filter(None, (owner.personality.wado_prefix, owner.personality.qido_prefix)):
            path = path.removeprefix(f"/{prefix}")
        route = ROUTE.fullmatch(path)
        parts = route.groupdict() if route else {}
        with owner.lock:
            owner.active += 1
            request = self._record(parts, owner)
            owner.requests.append(request)
        try:
            fault = owner.fault(request) or Fault()
            if fault.interim:
                self.wfile.write(fault.interim)
            owner.closing.wait(fault.latency_seconds)
            if fault.raw is not None:
                self.close_connection = True
                for data in fault.raw():
                    self.wfile.write(data)
            elif fault.status is not None:
                self._send(Reply(fault.status, {}, fault.body), fault)
            else:
                query = dict(urllib.parse.parse_qsl(url.query))
                self._send(self._answer(request, parts, query, fault), fault)
        finally:
            with owner.lock:
                owner.active -= 1

    def _record(self, parts: dict[str, str | None], owner: DICOMwebServer) -> Request:
        what, instance = parts.get("what"), parts.get("instance")
        kinds: dict[str | None, Kind] = {"metadata": "metadata", "frames": "frames", "bulkdata": "bulk"}
        search = what in ("studies", "series", "instances")
        numbers = re.findall(r"\d+", urllib.parse.unquote(parts.get("detail") or "")) if what == "frames" else []
        return Request(
            kind="search" if search else kinds.get(what, "other"),
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            arrived=time.monotonic(),
            concurrent=owner.active,
            client_port=self.client_address[1],
            attempt=1 + sum(earlier.path == self.path for earlier in owner.requests),
            certificate=isinstance(self.connection, ssl.SSLSocket) and bool(self.connection.getpeercert()),
            instance_uid=instance,
            frame_numbers=tuple(map(int, numbers)),
        )

    def _answer(self, request: Request, parts: dict[str, Any], query: dict[str, str], fault: Fault) -> Reply:
        owner, personality = self.server.owner, self.server.owner.personality
        match = {keyword: parts[name] for name, keyword in UIDS.items() if parts.get(name)}
        if len(self.path) > personality.max_url_characters:
            return self._refusal(personality.too_long_status, "The URL is too long")
        if request.kind == "search":
            return self._found(match, parts["what"], query)
        found = owner.find(match)
        if not found or request.kind == "other":
            return self._refusal(404, "Unknown resource")
        if request.kind == "metadata":
            changed = (parts["instance"] and personality.instance_metadata) or personality.metadata
            return _json([changed(instance.metadata) for instance in found])
        if request.kind == "bulk":
            return self._bulk(request, found[0].bulk.get(parts["detail"]))
        return answer_frames(personality, fault, request, found[0])

    def _found(self, match: dict[str, str], what: str, query: dict[str, str]) -> Reply:
        owner, personality = self.server.owner, self.server.owner.personality
        if refused := set(query) & set(personality.search_refuses):
            return self._refusal(400, f"invalid parameter {sorted(refused)}")
        match.update((key, value) for key, value in query.items() if key not in NOT_MATCHED)
        items = _search(owner.find(match), what, query, personality)
        return Reply(204) if not items and personality.empty_search == 204 else _json(items)

    def _refusal(self, status: int, message: str) -> Reply:
        content_type, body = self.server.owner.personality.error(status, message)
        return Reply(status, {"Content-Type": content_type}, body)

    def _bulk(self, request: Request, value: bytes | None) -> Reply:
        personality = self.server.owner.personality
        if value is None:
            return self._refusal(404, "Unknown bulk data")
        if not re.fullmatch(personality.bulk_accept, request.headers.get("accept", "")):
            return self._refusal(400, "Unsupported media type")
        if not personality.bulk_multipart:
            return Reply(200, {"Content-Type": "application/octet-stream"}, value)
        head = b"--b-u-l-k\r\nContent-Type: application/octet-stream\r\n\r\n"
        kind = 'multipart/related; type="application/octet-stream"; boundary=b-u-l-k'
        return Reply(200, {"Content-Type": kind}, head + value + b"\r\n--b-u-l-k--")

    def _send(self, reply: Reply, fault: Fault) -> None:
        personality = self.server.owner.personality
        headers, body = {**reply.headers, **fault.headers}, reply.body
        body = body[: len(body) - fault.cut_body_bytes]
        asked_gzip = "gzip" in self.headers.get("Accept-Encoding", "")
        framing = fault.framing or personality.framing
        if personality.gzip == "always" or (personality.gzip == "accepted" and asked_gzip):
            headers, body = {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 1)
            framing = fault.framing or "length"
        self.send_response(fault.label or reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif framing == "close":
            self.send_header("Connection", "close")
            self.close_connection = True
        elif reply.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send_body(body, framing, fault)

    def _send_body(self, body: bytes, framing: str, fault: Fault) -> None:
        ends = (fault.reset_after_bytes, fault.hang_up_after_bytes, fault.stall_after_bytes)
        end = next((end for end in ends if end is not None), None)
        step, pause = fault.drip or (1 << 20, 0.0)
        for chunk in _chunks(body[:end], step):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if framing == "chunked" else chunk)
            self.server.owner.closing.wait(pause)
        if end is None:
            self.wfile.write(b"0\r\n\r\n" if framing == "chunked" else b"")
            return
        self.close_connection = True
        if fault.stall_after_bytes is not None:
            self.server.owner.closing.wait(60)
        if fault.reset_after_bytes is not None:
            linger = b"\1\0\0\0\0\0\0\0"  # on, 0 seconds: closing sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.shutdown(socket.SHUT_RDWR)


def _json(value: list[Any]) -> Reply:
    return Reply(200, {"Content-Type": "application/dicom+json"}, json.dumps(value).encode())


def _chunks(data: bytes, step: int) -> Iterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


def _search(
    found: Iterable[StoredInstance], what: str, query: dict[str, str], personality: Personality
) -> list[dict[str, Any]]:
    """Answer QIDO-RS: one item for each study, series or instance, paged."""
    keyword = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}.get(what, "SOPInstanceUID")
    items: dict[str, dict[str, Any]] = {}
    for instance in found:
        plain = {tag: value for tag, value in instance.metadata.items() if value["vr"] not in ("SQ", "OB")}
        items.setdefault(instance.uid(keyword), plain)
    start = int(query.get("offset", 0)) if personality.search_offset else 0
    return list(items.values())[start:][: min(int(query.get("limit", 1000)), personality.search_limit)]
