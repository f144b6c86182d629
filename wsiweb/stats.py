"""Counters of what reading has cost, shared by a slide's source and reader."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class ServiceTraits:
    """What a DICOMweb service has shown so far, and how it is asked because of it."""

    kind: str
    """What it was recognised as, or "unknown"."""
    connections: int
    """Requests that may be in flight at once: fewer than the options allow where more bring nothing."""
    requests_at_once: int
    """Over which a large read is spread."""
    frames_per_request: int
    """At most."""
    seconds_per_request: float | None
    """Until the first byte, measured; None before anything was read."""
    seconds_per_frame: float | None
    """That each frame adds, measured."""
    parallel_requests: float | None
    """Requests that it was seen to work on at once; None where that is not known."""
    throttled: bool
    """Whether it has asked for patience lately."""


class ReadStats:
    """What a slide has cost since it was opened (or unpickled). Attributes are plain integers to read.

    Attributes
    ----------
    requests
        HTTP requests made, the metadata included.
    frames
        Encoded frames received; of a slide on disk, read.
    frame_bytes
        Bytes of them, and of those taken from the disk cache.
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
        "_lock", "_traits", "bytes", "decoded", "disk_hits", "frame_bytes", "frame_hits", "frames", "requests",
        "retries", "tile_hits", "tile_misses",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._traits: Callable[[], ServiceTraits] | None = None
        self.requests = 0
        self.frames = 0
        self.frame_bytes = 0
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
            return {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_")}

    @property
    def service(self) -> ServiceTraits | None:
        """What the DICOMweb service has shown so far; None for local files and clients that are not ours to drive."""
        return self._traits() if self._traits else None

    def tell_of_service(self, traits: Callable[[], ServiceTraits]) -> None:
        """Let ``service`` return what this callable does."""
        self._traits = traits

    def __getstate__(self) -> dict[str, int]:
        return self.as_dict()

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__()  # type: ignore[misc]
        self.add(**state)

    def __repr__(self) -> str:
        return f"ReadStats({', '.join(f'{name}={count}' for name, count in self.as_dict().items())})"
