"""Which frames are asked for, and how many the budget has room for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from wsiweb.doctor.report import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.doctor.wire import WatchedService
    from wsiweb.metadata import Instance
    from wsiweb.sources.base import FrameBatch


class Subject:
    """An instance whose frames are asked for, and which of them.

    Frames are taken from the middle of the instance, where there is tissue, each once as long as there are any.
    """

    def __init__(self, instance: Instance) -> None:
        count = instance.number_of_frames
        outward = sorted(
            range(max(count // 2 - 500, 0), min(count // 2 + 500, count)), key=lambda n: abs(n - count // 2)
        )
        self.instance = instance
        self._numbers = itertools.cycle([frame_index + 1 for frame_index in outward])

    def take(self, count: int) -> tuple[int, ...]:
        """Return so many frame numbers, rising, or fewer where the instance has not as many."""
        return tuple(sorted({next(self._numbers) for _ in range(count)}))

    def batch(self, count: int) -> FrameBatch:
        """Return a request for so many frames, as reading makes it."""
        return self.instance.batch(self.take(count))

    def url(self, service: WatchedService, numbers: Sequence[int]) -> str:
        """Return the address of frames."""
        address = self.instance.address
        return (
            f"{service.wado_url}/studies/{address.study_uid}/series/{address.series_uid}"
            f"/instances/{address.instance_uid}/frames/{','.join(map(str, numbers))}"
        )


def affordable(service: WatchedService, wanted: int) -> int:
    """Return how many of the frames wanted the budget has room for."""
    largest = max((e.body_bytes // e.frames for e in service.exchanges if e.frames and e.status == 200), default=0)
    return min(wanted, int(service.bytes_left * 0.9 / max(largest, 1)))


def too_dear(name: str) -> Check:
    """Return a check that the budget has no room for."""
    return Check(name, "skipped", "The frames are too large for what is left of the limit.", "Raise --megabytes.")


def in_words(n_bytes: int) -> str:
    """Write a size with its unit."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"
