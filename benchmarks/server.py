"""A DICOMweb service for measuring: prepared slides, from memory, over a network that it plays.

One process of its own, one thread a connection, raw sockets: what it costs is what every reader waits for, and is
counted. Every answer's first byte comes a latency after the request; a body is paced to the bandwidth of a connection.
Numbers of requests, frames and bytes are at ``/control``. Frames are served as they are stored, whatever is asked for.

``python -m benchmarks.server CERTIFICATE FOLDER...`` prints its ports, without TLS and with it, and ends with its
standard input. The certificate is a file with its key, or ``-``: then there is no second port.
"""

from __future__ import annotations

import functools
import itertools
import json
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.profiles import PROFILES, Profile
from benchmarks.slides import JPEG, StoredSlide

BOUNDARY = b"benchmark-boundary-7d1f0a"
SLICE_BYTES = 32_768
"""What is sent at once where the bandwidth is limited."""
MEDIA_TYPES = {JPEG: "image/jpeg"}
ALWAYS_FOUND = ("00080005", "00080016", "00080018", "00080060", "0020000D", "0020000E", "00200013", "00280008")
"""What a search for instances returns unasked, as most services do."""
KEYWORDS = {
    "AvailableTransferSyntaxUID": "00083002",
    "SOPClassUID": "00080016",
    "SOPInstanceUID": "00080018",
    "SeriesInstanceUID": "0020000E",
    "StudyInstanceUID": "0020000D",
    "Modality": "00080060",
}
FILTERS = frozenset(KEYWORDS.values()) - {"00083002"}
Json = dict[str, Any]


@dataclass(slots=True)
class Counters:
    """What was served since the last reset."""

    requests: int = 0
    frames: int = 0
    bytes: int = 0
    connections: int = 0
    cpu_seconds: float = field(default_factory=time.process_time)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, requests: int = 0, frames: int = 0, size: int = 0, connections: int = 0) -> None:
        with self.lock:
            self.requests += requests
            self.frames += frames
            self.bytes += size
            self.connections += connections

    def taken(self) -> Json:
        """Return the counts, and begin anew."""
        with self.lock:
            now = time.process_time()
            counts = {
                "requests": self.requests,
                "frames": self.frames,
                "bytes": self.bytes,
                "connections": self.connections,
                "server_cpu_seconds": now - self.cpu_seconds,
            }
            self.requests = self.frames = self.bytes = self.connections = 0
            self.cpu_seconds = now
        return counts


class ServedInstance:
    """One instance: its metadata, and each distinct frame as the part of an answer that it will be."""

    def __init__(self, metadata: Json, frames: list[bytes], order: list[int], syntax: str) -> None:
        self.metadata = metadata
        self.order = order
        self.syntax = syntax
        self.media_type = MEDIA_TYPES.get(syntax, "image/jp2")
        self._frames = frames

    @functools.cached_property
    def octet_parts(self) -> list[bytes]:
        return self._parts("application/octet-stream")

    @functools.cached_property
    def native_parts(self) -> list[bytes]:
        return self._parts(self.media_type)

    def _parts(self, media_type: str) -> list[bytes]:
        head = f"\r\nContent-Type: {media_type};transfer-syntax={self.syntax}\r\n\r\n".encode()
        return [b"--" + BOUNDARY + head + frame + b"\r\n" for frame in self._frames]

    def uid(self, tag: str) -> str:
        return str(self.metadata[tag]["Value"][0])


def serve_slide(slide: StoredSlide) -> list[ServedInstance]:
    """Return the instances of a slide."""
    spec = slide.spec
    served = []
    for index, (level, metadata) in enumerate(zip(spec.levels(), slide.metadata(), strict=False)):
        served.append(ServedInstance(metadata, slide.palette(index), level.palette_indices.tolist(), spec.syntax))
    for metadata in slide.metadata()[len(served) :]:
        flavour = metadata["00080008"]["Value"][2]
        served.append(ServedInstance(metadata, [(slide.folder / f"{flavour}.bin").read_bytes()], [0], spec.syntax))
    return served


class Service:
    """What is asked, and what is answered; knows no sockets."""

    def __init__(self, instances: list[ServedInstance]) -> None:
        self.instances = {instance.uid("00080018"): instance for instance in instances}
        self.counters = Counters()
        self._remembered_json = functools.cache(self._json)

    def answer(self, target: str, accept: str) -> tuple[str, str, bytes, int]:
        """Return status, content type, body and number of frames."""
        path, _, query = target.partition("?")
        parts = path.strip("/").split("/")
        if "frames" in parts:
            return self._frames(parts, accept)
        body = self._remembered_json(path, query)
        if body is None:
            return "404 Not Found", "application/json", b"[]", 0
        return "200 OK", "application/dicom+json", body, 0

    def _frames(self, parts: list[str], accept: str) -> tuple[str, str, bytes, int]:
        place = parts.index("frames")
        instance = self.instances.get(parts[place - 1])
        numbers = parts[place + 1].replace("%2C", ",").split(",")
        if instance is None or not all(1 <= int(number) <= len(instance.order) for number in numbers):
            return "404 Not Found", "application/json", b"[]", 0
        octets = "octet-stream" in accept
        pieces, order = instance.octet_parts if octets else instance.native_parts, instance.order
        body = b"".join([pieces[order[int(number) - 1]] for number in numbers] + [b"--", BOUNDARY, b"--\r\n"])
        media_type = "application/octet-stream" if octets else instance.media_type
        return "200 OK", f'multipart/related; type="{media_type}"; boundary={BOUNDARY.decode()}', body, len(numbers)

    def _json(self, path: str, query: str) -> bytes | None:
        """Return metadata, or what a search finds; each distinct question is worked on once."""
        parts = path.strip("/").split("/")
        given = dict(itertools.pairwise(parts))
        where = {"0020000D": given.get("studies"), "0020000E": given.get("series"), "00080018": given.get("instances")}
        found = [
            instance
            for instance in self.instances.values()
            if all(uid in (None, "metadata", "instances", instance.uid(tag)) for tag, uid in where.items())
        ]
        if parts[-1] == "metadata":
            return json.dumps([instance.metadata for instance in found]).encode() if found else None
        wanted = set(ALWAYS_FOUND)
        for name, value in urllib.parse.parse_qsl(query):
            tag = KEYWORDS.get(name, name)
            if name == "includefield":
                wanted |= {KEYWORDS.get(part, part) for part in value.split(",")}
            elif tag in FILTERS:
                found = [instance for instance in found if instance.uid(tag) in value.split(",")]
        return json.dumps([_extract(instance, wanted) for instance in found]).encode()


def _extract(instance: ServedInstance, wanted: set[str]) -> Json:
    own = {
        "00020010": {"vr": "UI", "Value": [instance.syntax]},
        "00083002": {"vr": "UI", "Value": [instance.syntax]},
    }
    return {tag: value for tag, value in sorted((instance.metadata | own).items()) if tag in wanted}


def handle(connection: socket.socket, service: Service) -> None:
    """Answer the requests of one connection, one after the other."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received, first = b"", 1
    with connection:
        while True:
            while b"\r\n\r\n" not in received:
                chunk = connection.recv(65_536)
                if not chunk:
                    return
                received += chunk
            head, _, received = received.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            target = lines[0].split(" ")[1]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if target.startswith("/control"):
                _send(connection, "200 OK", "application/json", json.dumps(service.counters.taken()).encode(), None)
                continue
            arrived = time.perf_counter()
            name, _, path = target.lstrip("/").partition("/")
            profile = PROFILES[name]
            status, content_type, body, frames = service.answer(path, headers.get("accept", ""))
            service.counters.add(requests=1, frames=frames, size=len(body), connections=first)
            first = 0
            _sleep_until(arrived + profile.latency_seconds)
            _send(connection, status, content_type, body, profile)
            if headers.get("connection", "").lower() == "close":
                return


def _send(connection: socket.socket, status: str, content_type: str, body: bytes, profile: Profile | None) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n".encode()
    if profile and profile.chunk_bytes:
        _send_all(connection, [head + b"Transfer-Encoding: chunked\r\n\r\n", _chunked(body, profile.chunk_bytes)])
        return
    head += f"Content-Length: {len(body)}\r\n\r\n".encode()
    rate = profile.bytes_per_second if profile else None
    if rate is None:
        _send_all(connection, [head, body])
        return
    started = time.perf_counter()
    connection.sendall(head)
    view = memoryview(body)
    for start in range(0, len(body), SLICE_BYTES):
        part = view[start : start + SLICE_BYTES]
        _sleep_until(started + (start + len(part)) / rate)  # it is there when its last byte is
        connection.sendall(part)


def _chunked(body: bytes, chunk_bytes: int) -> bytes:
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    for start in range(0, len(body), chunk_bytes):
        chunk = view[start : start + chunk_bytes]
        pieces += [b"%x\r\n" % len(chunk), chunk, b"\r\n"]
    return b"".join([*pieces, b"0\r\n\r\n"])


def _send_all(connection: socket.socket, pieces: list[bytes]) -> None:
    """Send without joining first."""
    sent = connection.sendmsg(pieces)
    for piece in pieces:
        if sent < len(piece):
            connection.sendall(memoryview(piece)[sent:])
        sent = max(sent - len(piece), 0)


def _sleep_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)


def _run(connection: socket.socket, service: Service, tls: ssl.SSLContext | None) -> None:
    try:
        handle(connection if tls is None else tls.wrap_socket(connection, server_side=True), service)
    except OSError:  # the reader went away
        connection.close()


def _listen(service: Service, tls: ssl.SSLContext | None) -> int:
    """Answer on a port of its own; return that."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_run, args=(connection, service, tls), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def main() -> None:
    certificate, *folders = sys.argv[1:]
    service = Service([instance for folder in folders for instance in serve_slide(StoredSlide(Path(folder)))])
    ports = [_listen(service, None)]
    if certificate != "-":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        ports.append(_listen(service, tls))
    print(*ports, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
