"""A DICOMweb server for tests: serves synthetic slides, remembers every request, misbehaves on demand.

It shares no code with the library. By default it behaves like a good server that sends frames as they are
stored; ``server.fault`` is a hook that may answer a request in the ways that real servers were seen to.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pydicom
from faults import Fault, Kind, Request
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

BOUNDARY = "wsiweb-test-boundary"
_COMPRESSED = "1.2.840.10008.1.2.4."
MEDIA_TYPES = {
    **{f"{_COMPRESSED}{n}": "image/jpeg" for n in (50, 51, 57, 70)},
    **{f"{_COMPRESSED}{n}": "image/jls" for n in (80, 81)},
    **{f"{_COMPRESSED}{n}": "image/jp2" for n in (90, 91)},
    **{f"{_COMPRESSED}{n}": "image/jxl" for n in (110, 111, 112)},
    **{f"{_COMPRESSED}{n}": "image/jphc" for n in (201, 202, 203)},
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""PS3.18 Table 8.7.3-5."""
BIG_ENDIAN, LITTLE_ENDIAN = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1"
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
    bulk: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, base_url: str) -> Self:
        """Read a Part 10 file whole; ICC profiles become bulk data."""
        dataset = pydicom.dcmread(path)
        count = int(dataset.get("NumberOfFrames", 1))
        bulk: dict[str, bytes] = {}
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        if syntax in MEDIA_TYPES:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
        else:
            pixels = dataset.get("Rows", 0) * dataset.get("Columns", 0)
            size = pixels * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
            if dataset.PhotometricInterpretation == "YBR_FULL_422":
                size = size // 3 * 2
            frames = [dataset.PixelData[i * size : (i + 1) * size] for i in range(count)]
        if syntax == BIG_ENDIAN:  # nothing of that goes over the web (PS3.18 8.7.3.2)
            syntax = LITTLE_ENDIAN
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
        return cls(metadata, frames, syntax, bulk)

    def uid(self, keyword: str) -> str:
        return self.values(f"{tag_for_keyword(keyword):08X}")[0]

    def values(self, tag: str) -> list[str]:
        """Return the values of an attribute, in whatever form a test has put them."""
        element = self.metadata.get(tag)
        value = element.get("Value", []) if isinstance(element, dict) else []
        return [str(item).strip(" \0") for item in (value if isinstance(value, list) else [value])]


class DICOMwebServer:
    """Serves the slides of some folders on a free port of the loopback interface, while used as a context."""

    def __init__(self, *folders: Path, gzip_answers: bool = False) -> None:
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.gzip_answers = gzip_answers
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.active = 0
        self.sockets: set[socket.socket] = set()
        self._http = _HTTPServer(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/dicom-web"
        self.instances = [
            StoredInstance.read(file, self.url) for folder in folders for file in sorted(folder.glob("*.dcm"))
        ]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in self.sockets:
                connection.close()

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
        route = ROUTE.fullmatch(url.path.removeprefix("/dicom-web"))
        parts = route.groupdict() if route else {}
        with owner.lock:
            owner.active += 1
            request = self._record(parts, owner)
            owner.requests.append(request)
        try:
            fault = owner.fault(request) or Fault()
            time.sleep(fault.latency_seconds)
            if fault.status is not None:
                self._send(fault.status, fault.headers, fault.body, fault)
            else:
                self._answer(request, parts, dict(urllib.parse.parse_qsl(url.query)), fault)
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
            instance_uid=instance,
            frame_numbers=tuple(map(int, numbers)),
        )

    def _answer(self, request: Request, parts: dict[str, Any], query: dict[str, str], fault: Fault) -> None:
        match = {keyword: parts[name] for name, keyword in UIDS.items() if parts.get(name)}
        found = self.server.owner.find(match)
        if request.kind == "search":
            match.update((key, value) for key, value in query.items() if key not in NOT_MATCHED)
            self._send_json(_search(self.server.owner.find(match), parts["what"], query), fault)
        elif not found or request.kind == "other":
            self._send(404, {"Content-Type": "application/json"}, b'{"Message": "Unknown resource"}', fault)
        elif request.kind == "metadata":
            self._send_json([instance.metadata for instance in found], fault)
        elif request.kind == "bulk":
            self._send(200, {"Content-Type": "application/octet-stream"}, found[0].bulk[parts["detail"]], fault)
        elif not all(1 <= number <= len(found[0].frames) for number in request.frame_numbers):
            self._send(404, {"Content-Type": "application/json"}, b'{"Message": "No such frame"}', fault)
        elif not _acceptable(request.headers.get("accept", ""), found[0].transfer_syntax):
            self._send(406, {"Content-Type": "text/plain"}, b"Not acceptable", fault)
        else:
            self._send_frames(request, found[0], fault)

    def _send_frames(self, request: Request, instance: StoredInstance, fault: Fault) -> None:
        frames = [(number, instance.frames[number - 1]) for number in request.frame_numbers]
        if fault.change_frame:
            frames = [(number, fault.change_frame(number, data)) for number, data in frames]
        media_type = MEDIA_TYPES.get(instance.transfer_syntax, "application/octet-stream")
        full_type = f"{media_type}; transfer-syntax={instance.transfer_syntax}"
        if fault.single_part:
            self._send(200, {"Content-Type": full_type}, frames[0][1], fault)
            return
        body = bytearray()
        for number, data in frames[: len(frames) - fault.drop_parts]:
            kept = data[: len(data) - (fault.cut_last_part_bytes if number == frames[-1][0] else 0)]
            location = f"http://{request.headers['host']}{request.path.rpartition('/')[0]}/{number}"
            body += f"--{BOUNDARY}\r\nContent-Type: {full_type}\r\nContent-Location: {location}\r\n\r\n".encode()
            body += kept + b"\r\n"
        body += b"" if fault.omit_closing else f"--{BOUNDARY}--\r\n".encode()
        content_type = f'multipart/related; type="{full_type}"; boundary={BOUNDARY}'
        self._send(200, {"Content-Type": content_type}, bytes(body), fault)

    def _send_json(self, value: list[Any], fault: Fault) -> None:
        self._send(200, {"Content-Type": "application/dicom+json"}, json.dumps(value).encode(), fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        if self.server.owner.gzip_answers and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers, body = {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 1)
        self.send_response(status)
        for name, value in {**headers, **fault.headers}.items():
            self.send_header(name, value)
        body = body[: len(body) - fault.cut_body_bytes]
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        step, pause = fault.drip or (1 << 20, 0.0)
        for chunk in _chunks(body[: fault.reset_after_bytes], step):
            self.wfile.write(chunk)
            time.sleep(pause)
        if fault.reset_after_bytes is not None:
            linger = b"\1\0\0\0\0\0\0\0"  # on, 0 seconds: closing sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def _chunks(data: bytes, step: int) -> Iterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


def _acceptable(accept: str, transfer_syntax: str) -> bool:
    """Whether stored frames may be sent; this server transcodes nothing."""
    asked = re.search(r"transfer-syntax=\"?([\d.*]+)", accept)
    native = not transfer_syntax.startswith("1.2.840.10008.1.2.4.")
    return native if asked is None else asked[1] in ("*", transfer_syntax)


def _search(found: Iterable[StoredInstance], what: str, query: dict[str, str]) -> list[dict[str, Any]]:
    """Answer QIDO-RS: one item for each study, series or instance, paged."""
    keyword = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}.get(what, "SOPInstanceUID")
    items: dict[str, dict[str, Any]] = {}
    for instance in found:
        plain = {tag: value for tag, value in instance.metadata.items() if value["vr"] not in ("SQ", "OB")}
        items.setdefault(instance.uid(keyword), plain)
    start = int(query.get("offset", 0))
    return list(items.values())[start : start + int(query.get("limit", 1000))]
