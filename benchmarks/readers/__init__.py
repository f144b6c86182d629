"""The readers that are measured, each as those would use it who know it well. One module each, with a ``Reader``.

A module imports its library when it is imported, since that is timed on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from benchmarks.slides import Region

    Pixels = npt.NDArray[np.uint8]


class NotSupportedError(Exception):
    """The reader cannot do this at all."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a slide is."""

    url: str
    """Root of the service."""
    study_uid: str
    series_uid: str


class Reader(Protocol):
    """What a reader is asked to do. ``level`` is a downsample, ``(x, y, w, h)`` are pixels of that level."""

    def __init__(self, settings: dict[str, Any]) -> None: ...

    def open(self, place: Place) -> tuple[int, int]:
        """Open a slide; return the size of level 0, to show that it is known."""

    def region(self, level: int, region: Region) -> Pixels: ...

    def regions(self, level: int, regions: Sequence[Region]) -> Iterator[Pixels]:
        """Yield many regions in the order asked for; memory must not grow with their number."""

    def reduced(self, level: int, regions: Sequence[Region], by: int) -> Iterator[Pixels]:
        """Yield many regions as a level would show them that had so many times fewer pixels in width and height."""

    def thumbnail(self, max_size: int) -> Pixels: ...

    def png(self, path: str, level: int, region: Region) -> None: ...

    def close(self) -> None: ...


VARIANTS: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "wsiweb": {},
    "wsidicom": {
        "region": ({"threads": None}, {"threads": 4}, {"threads": 8}),
        "warm": ({"threads": None}, {"threads": 4}),
        "thumbnail": ({"threads": None}, {"threads": 4}, {"threads": 8}),
        "regions": ({"pool": 4}, {"pool": 8}, {"pool": 16}, {"pool": 32}),
        "reduced": ({"pool": 4}, {"pool": 8}, {"pool": 16}, {"pool": 32}),
        "png": ({"threads": 4},),
    },
    "ez-wsi": {
        "region": ({"parts": 1}, {"parts": 4}),
        "thumbnail": ({"parts": 1}, {"parts": 4}),
        "regions": ({"parts": 1, "pool": 1}, {"parts": 1, "pool": 2}, {"parts": 4, "pool": 1}, {"parts": 4, "pool": 2}),
        "reduced": ({"parts": 1, "pool": 1}, {"parts": 1, "pool": 2}, {"parts": 4, "pool": 1}, {"parts": 4, "pool": 2}),
        "png": ({"parts": 4},),
    },
    "bare": {},
    "floor": {},
}
"""For each reader and kind of workload, the settings to try; the fastest in the first round is measured on."""

MODULES = {
    "wsiweb": "benchmarks.readers.with_wsiweb",
    "wsidicom": "benchmarks.readers.with_wsidicom",
    "ez-wsi": "benchmarks.readers.with_ez_wsi",
    "bare": "benchmarks.readers.bare",
}
NO_PEERS = ("bare", "floor")
"""What shows a limit."""
