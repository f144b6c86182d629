"""Counters of what reading has cost, shared by a slide's source and reader."""

from __future__ import annotations

import threading


class ReadStats:
    """What a slide has cost since it was opened (or unpickled). Attributes are plain integers to read.

    Attributes
    ----------
    requests
        HTTP requests made, the metadata included.
    frames
        Encoded frames received; of a slide on disk, read.
    bytes
        Bytes of the bodies received.
    retries
        Requests made again after a failure.
    tile_hits, tile_misses
        Tiles found decoded, and not.
    frame_hits
        Tiles that had to be decoded, but not fetched.
    disk_hits
        Encoded frames taken from the disk cache.
    decoded
        Frames decoded.
    """

    __slots__ = (
        "_lock", "bytes", "decoded", "disk_hits", "frame_hits", "frames", "requests", "retries", "tile_hits",
        "tile_misses",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.frames = 0
        self.bytes = 0
        self.retries = 0
        self.tile_hits = 0
        self.tile_misses = 0
        self.frame_hits = 0
        self.disk_hits = 0
        self.decoded = 0

    def add(self, **counts: int) -> None:
        """Add to the named counters at once."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name."""
        with self._lock:
            return {name: getattr(self, name) for name in self.__slots__ if name != "_lock"}

    def __repr__(self) -> str:
        return f"ReadStats({', '.join(f'{name}={count}' for name, count in self.as_dict().items())})"
