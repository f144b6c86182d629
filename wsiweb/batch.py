"""Group frames into requests. Pure; over how many, and how long, is the caller's to say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsiweb.plan import FrameKey

MAX_LIST_CHARACTERS = 2000
"""Of a frame list in a URL: servers and proxies take 4 to 8 kB for the whole URL, a series' URL takes 300."""
SMALL_READ_FRAMES = 4
"""So few frames go in one request: a second one would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames of one instance for one request."""

    instance_index: int
    frame_indices: tuple[int, ...]
    """0-based, ascending."""


def batch_frames(keys: Iterable[FrameKey], *, requests: int, max_frames: int) -> list[Batch]:
    """Group frames by instance, ascending, spread over some requests.

    Parameters
    ----------
    keys
        Frames to ask for, each once, in any order.
    requests
        Over how many to spread them, where they are not too few for that, or too many.
    max_frames
        Of one request.
    """
    ordered = sorted(keys)
    spread = SMALL_READ_FRAMES if len(ordered) <= SMALL_READ_FRAMES else -(-len(ordered) // requests)
    size = min(spread, max_frames)
    batches = []
    for instance_index, group in groupby(ordered, key=itemgetter(0)):
        indices = [frame_index for _, frame_index in group]
        start = 0
        while start < len(indices):
            stop = _stop(indices, start, min(start + size, len(indices)))
            batches.append(Batch(instance_index, tuple(indices[start:stop])))
            start = stop
    return batches


def _stop(indices: list[int], start: int, stop: int) -> int:
    """Bring ``stop`` forward until the list of frame numbers fits into a URL."""
    characters = 0
    for position in range(start, stop):
        characters += len(str(indices[position] + 1)) + 1
        if characters > MAX_LIST_CHARACTERS:
            return max(position, start + 1)
    return stop
