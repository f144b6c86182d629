"""No library: sockets, threads and a decoder. What reading in Python costs at the least, where all goes well.

It asks for frames in lists over eight connections, trusts every answer, decodes each frame once on all cores and pastes
it wherever it shows. There are no caches, checks, retries, limits or other tilings, and nothing bounds its memory. It
is no peer, but a limit: unlike the floor it makes requests and arrays. It is run when it is named.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import queue
import ssl
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import imagecodecs
import numpy as np

from benchmarks.readers import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from benchmarks.readers import Place
    from benchmarks.slides import Region

    Pixels = npt.NDArray[np.uint8]

CONNECTIONS, FRAMES_PER_REQUEST, CHUNK_BYTES = 8, 64, 1 << 18
ACCEPT = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
_JPEG = b"\xff\xd8\xff"


class Reader:
    def __init__(self, settings: dict[str, Any]) -> None:  # noqa: ARG002  (as all readers)
        self._connections: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        self._levels: dict[int, tuple[str, int, int, int]] = {}

    def open(self, place: Place) -> tuple[int, int]:
        """Note path, tile side and tiles in a row of each level, by its downsample."""
        parts = urlsplit(place.url)
        connect: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        if parts.scheme == "https":
            trust = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
            connect = functools.partial(http.client.HTTPSConnection, context=trust)
        for _ in range(CONNECTIONS):
            self._connections.put(connect(parts.hostname or "", parts.port))
        series = f"{parts.path}/studies/{place.study_uid}/series/{place.series_uid}"
        connection = self._connections.get()
        connection.request("GET", f"{series}/metadata", headers={"Accept": "application/dicom+json"})
        datasets = json.loads(connection.getresponse().read())
        self._connections.put(connection)
        volumes = [dataset for dataset in datasets if "VOLUME" in dataset["00080008"]["Value"]]
        base = max(_value(dataset, "00480006") for dataset in volumes)
        for dataset in volumes:
            width, tile = _value(dataset, "00480006"), _value(dataset, "00280011")
            path = f"{series}/instances/{dataset['00080018']['Value'][0]}/frames/"
            self._levels[round(base / width)] = path, tile, -(-width // tile), _value(dataset, "00480007")
        return base, self._levels[1][3]

    def region(self, level: int, region: Region) -> Pixels:
        return next(self._read(level, [region], lambda frames: -(-frames // CONNECTIONS)))

    def regions(self, level: int, regions: Sequence[Region]) -> Iterator[Pixels]:
        return self._read(level, regions, lambda _: FRAMES_PER_REQUEST)

    def _read(self, level: int, regions: Sequence[Region], size: Callable[[int], int]) -> Iterator[Pixels]:
        path, tile, across, _ = self._levels[level]
        picture = _Picture(regions, tile, across)
        frames, step = list(picture.places), max(size(len(picture.places)), 1)
        batches = iter([frames[first : first + step] for first in range(0, len(frames), step)])
        encoded: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()

        def fetch() -> None:
            for batch in batches:
                self._fetch(path, batch, encoded.put)

        def decode() -> None:
            while (item := encoded.get()) is not None:
                picture.paint(item[0], _decoded(item[1]))

        cores = os.cpu_count() or 1
        for work in [fetch] * CONNECTIONS + [decode] * cores:
            threading.Thread(target=work, daemon=True).start()
        yield from picture.in_order()
        for _ in range(cores):
            encoded.put(None)

    def _fetch(self, path: str, frames: list[int], take: Callable[[tuple[int, bytes]], None]) -> None:
        """Hand on the parts of an answer, taken for the frames that were asked for, as they arrive."""
        connection = self._connections.get()
        connection.request("GET", path + ",".join(map(str, frames)), headers={"Accept": ACCEPT})
        response = connection.getresponse()
        boundary = b"\r\n--" + (response.headers.get_boundary() or "").encode()
        buffer = b"\r\n"
        waiting = iter(frames)
        while chunk := response.read1(CHUNK_BYTES):
            *parts, buffer = (buffer + chunk).split(boundary)
            for part in parts:
                if part and part != b"\r\n":
                    take((next(waiting), part.partition(b"\r\n\r\n")[2]))
        response.read()  # before Python 3.13 it is not over otherwise
        self._connections.put(connection)

    def reduced(self, level: int, regions: Sequence[Region], by: int) -> Iterator[Pixels]:  # noqa: ARG002
        raise NotSupportedError

    def thumbnail(self, max_size: int) -> Pixels:  # noqa: ARG002
        raise NotSupportedError

    def png(self, path: str, level: int, region: Region) -> None:  # noqa: ARG002
        raise NotSupportedError

    def close(self) -> None:
        while not self._connections.empty():
            self._connections.get().close()


class _Picture:
    """Regions, and what of them is painted."""

    def __init__(self, regions: Sequence[Region], tile: int, across: int) -> None:
        self._regions, self._tile = regions, tile
        self.places: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        """Of each frame (1-based): the regions that show it, and its left and top edge."""
        self._unpainted = []
        for number, (x, y, w, h) in enumerate(regions):
            columns, rows = range(x // tile, (x + w - 1) // tile + 1), range(y // tile, (y + h - 1) // tile + 1)
            for row in rows:
                for column in columns:
                    self.places[row * across + column + 1].append((number, column * tile, row * tile))
            self._unpainted.append(len(columns) * len(rows))
        self._arrays: dict[int, Pixels] = {}
        self._whole: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def paint(self, frame: int, pixels: Pixels) -> None:
        tile = self._tile
        for number, left, top in self.places[frame]:
            x, y, w, h = self._regions[number]
            with self._lock:
                if number not in self._arrays:
                    self._arrays[number] = np.empty((h, w, 3), np.uint8)
                target = self._arrays[number]
            x0, y0, x1, y1 = max(left, x), max(top, y), min(left + tile, x + w), min(top + tile, y + h)
            target[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
            with self._lock:
                self._unpainted[number] -= 1
                if not self._unpainted[number]:
                    self._whole.put(number)

    def in_order(self) -> Iterator[Pixels]:
        done: set[int] = set()
        for number in range(len(self._regions)):
            while number not in done:
                done.add(self._whole.get())
            yield self._arrays.pop(number)


def _decoded(data: bytes) -> Pixels:
    pixels: Pixels
    if data.startswith(_JPEG):
        pixels = imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="RGB")
    else:
        pixels = imagecodecs.jpeg2k_decode(data)
    return pixels


def _value(dataset: dict[str, Any], tag: str) -> int:
    return int(dataset[tag]["Value"][0])
