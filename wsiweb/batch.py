"""Group frames into requests. Pure; over how many, and how long, is the caller's to say."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsiweb.frames import FrameKey

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
    """Group frames by instance, spread over some requests; what is wanted first comes with the first of them.

    Parameters
    ----------
    keys
        Frames to ask for, each once, in the order in which they are wanted.
    requests
        Over how many to spread them, where they are not too few for that, or too many.
    max_frames
        Of one request.
    """
    wanted: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    count = 0
    for count, (instance_index, frame_index) in enumerate(keys, 1):
        wanted[instance_index].append((count, frame_index))
    spread = SMALL_READ_FRAMES if count <= SMALL_READ_FRAMES else -(-count // requests)
    size = min(spread, max_frames)
    batches = []
    for instance_index, group in wanted.items():
        indices = [frame_index for _, frame_index in group]
        start = 0
        while start < len(indices):
            stop = _stop(indices, start, min(start + size, len(indices)))
            batches.append((group[start][0], Batch(instance_index, tuple(sorted(indices[start:stop])))))
            start = stop
    return [batch for _, batch in sorted(batches)]


def _stop(indices: list[int], start: int, stop: int) -> int:
    """Bring ``stop`` forward until the list of frame numbers fits into a URL."""
    characters = 0
    for position in range(start, stop):
        characters += len(str(indices[position] + 1)) + 1
        if characters > MAX_LIST_CHARACTERS:
            return max(position, start + 1)
    return stop
