"""``ReadOptions``: every knob of reading, with its default and unit. Nothing below reads globals."""

from __future__ import annotations

import numbers
import os
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a slide is read.

    Parameters
    ----------
    max_connections
        Requests in flight at once, at most (1 to 256). How many there are follows what the service shows: up to 8 where
        that is enough, more only where each carries little, as over long distances (at first: where the metadata take
        45 to 300 ms to begin), and fewer where requests are work for it or it asks for patience. A local slide has up
        to 8 reading threads, and a client of another kind one.
    frames_per_request
        Hard cap on the frames of one request; None lets the library choose.
    decode_threads
        Threads that decode (1 to 256); None takes one for each core.
    tile_cache_bytes
        Budget for decoded tiles, 0 keeps none; and for regions that are begun long before their turn, as they show the
        same tiles: at least half is left to tiles that are used again. Of a region that does not fit, little is kept.
    frame_cache_bytes
        Budget for encoded frames of a DICOMweb service; 0 keeps none. Local files need none.
    readahead_bytes
        What ``read_regions``, patches and export hold beyond what the consumer has taken.
    timeout_seconds
        Longest silence on a socket, and longest wait for a connection.
    deadline_seconds
        Longest time that a caller waits for one region (or for the metadata), retries included.
    max_attempts
        How often a failing request is made in all (1 to 100).
    max_region_bytes
        Largest array that one read returns.
    disk_cache
        Folder in which frames and metadata of DICOMweb services are kept for later processes; None keeps none there.

        It holds what the service answered, patients' data included, readable for this user alone; whoever may read the
        folder needs no credentials. Local disks only, no network file systems. To empty it, delete it.
    disk_cache_bytes
        Budget of ``disk_cache`` on disk; what was not used for longest goes first.
    disk_cache_seconds
        Age at which metadata kept on disk are asked for again; 0 does so whenever a slide is opened.

        If the service then fails, they are used as they are. Frames do not age: an instance's UID stands for its
        pixels.
    trusted_hosts
        Names (without ports) of other hosts from which bulk data may be fetched, without credentials.

    Raises
    ------
    ValueError
        An option is out of its range.
    """

    max_connections: int = 16
    frames_per_request: int | None = None
    decode_threads: int | None = None
    tile_cache_bytes: int = 512 * MEBIBYTE
    frame_cache_bytes: int = 128 * MEBIBYTE
    readahead_bytes: int = 256 * MEBIBYTE
    timeout_seconds: float = 20.0
    deadline_seconds: float = 300.0
    max_attempts: int = 5
    max_region_bytes: int = 4 << 30
    disk_cache: str | os.PathLike[str] | None = None
    disk_cache_bytes: int = 10 << 30
    disk_cache_seconds: float = 86_400.0
    trusted_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "max_connections": (1, 256),
            "frames_per_request": (1, 400),
            "decode_threads": (1, 256),
            "tile_cache_bytes": (0, 1 << 50),
            "frame_cache_bytes": (0, 1 << 50),
            "readahead_bytes": (0, 1 << 50),
            "timeout_seconds": (1e-3, 86_400),
            "deadline_seconds": (1e-3, 7 * 86_400),
            "max_attempts": (1, 100),
            "max_region_bytes": (1, 1 << 60),
            "disk_cache_bytes": (0, 1 << 50),
            "disk_cache_seconds": (0, 1 << 40),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "trusted_hosts":
                several = isinstance(value, Collection) and not isinstance(value, str)
                if not several or not all(isinstance(host, str) for host in value):
                    raise ValueError(f"trusted_hosts is a tuple of host names, not {value!r}.")
                continue
            if field.name == "disk_cache":
                if value is not None and not (isinstance(value, (str, os.PathLike)) and os.fspath(value)):
                    raise ValueError(f"disk_cache is the path of a folder or None, not {value!r}.")
                continue
            if value is None and field.name in ("frames_per_request", "decode_threads"):
                continue
            low, high = ranges[field.name]
            whole = not field.name.endswith("_seconds")
            number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                kind = "an integer" if whole else "a number"
                raise ValueError(f"{field.name} must be {kind} from {low:g} to {high:g}, not {value!r}.")

    @property
    def decode_thread_count(self) -> int:
        """``decode_threads``, or the number of cores that this process may use."""
        if self.decode_threads is not None:
            return self.decode_threads
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1


def chosen(options: Any, default: ReadOptions) -> ReadOptions:
    """Return what a caller passed as ``options=``, or the default where that is None.

    Raises
    ------
    ValueError
        It is something else.
    """
    if options is None:
        return default
    if not isinstance(options, ReadOptions):
        raise ValueError(f"options is a ReadOptions, not {type(options).__name__}.")  # noqa: TRY004  (as for its fields)
    return options
