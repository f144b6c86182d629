"""What a source of frames is. Knows neither HTTP nor files, and decodes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wsiweb.stats import ReadStats

JsonDataset = dict[str, dict[str, Any]]
"""One instance in the DICOM JSON model (PS3.18 F): tag in upper-case hex -> {"vr", "Value", ...}."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one request of a search found."""

    datasets: list[JsonDataset]
    more: bool = False
    """Whether the service says that there is more (PS3.18 8.3.4.4)."""


@dataclass(frozen=True, slots=True)
class InstanceAddress:
    """Where an instance lives."""

    study_uid: str
    series_uid: str
    instance_uid: str


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Frames of one instance that are asked for together."""

    address: InstanceAddress
    frame_numbers: tuple[int, ...]
    """1-based, ascending, no duplicates."""
    transfer_syntax_uid: str | None
    """Stored transfer syntax where the metadata tell it."""
    frame_bytes: int = 1 << 29
    """Size of a frame without compression."""
    compressed: bool = False
    """Whether frames are known, or seem, to be stored compressed."""
    lossless: bool = False
    """Whether frames are known to be stored, and to have always been, without loss."""
    fresh: bool = False
    """Whether they must come from the origin, because copies that were kept on the way have proved bad."""


@dataclass(frozen=True, slots=True)
class Advice:
    """How to ask for frames."""

    requests: int
    """Over how many requests to spread them."""
    max_frames: int
    """Of one request."""
    connections: int
    """Requests in flight at once, whoever makes them."""


MODERATE_CONNECTIONS = 8
"""That services bear; more need a reason."""
SPREAD = Advice(requests=MODERATE_CONNECTIONS, max_frames=64, connections=MODERATE_CONNECTIONS)
"""Over all that may be in flight; in pieces whose first frame comes soon, and which cost little where one fails."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """The code stream of one frame, as it came."""

    frame_number: int
    """1-based."""
    data: bytes
    media_type: str | None = None
    """What the answer's part said it is (``image/jpeg``), lower case, without parameters."""
    transfer_syntax_uid: str | None = None
    """What the answer, or the file, said it is encoded with."""
    from_disk: bool = False
    """Whether it is a copy that was kept on disk."""


class Cancellation:
    """Lets a caller stop the work that others do for it. Thread-safe, one-way."""

    def __init__(self) -> None:
        self._cancelled = False
        # Entered by itself: a Ctrl-C within the Python code of a Condition, or an Event, would leave it held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._callbacks: set[Callable[[], None]] = set()

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Stop: wakes every sleeper and runs the callbacks once."""
        with self._lock:
            self._cancelled = True
            self._changed.notify_all()
            callbacks, self._callbacks = self._callbacks, set()
        for callback in callbacks:
            callback()

    def sleep(self, seconds: float) -> bool:
        """Sleep, or return True at once when cancelled."""
        with self._lock:
            return self._changed.wait_for(lambda: self._cancelled, seconds)

    def on_cancel(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Run ``callback`` when cancelled (at once if that has happened); returns what takes it back."""
        with self._lock:
            if not self.cancelled:
                self._callbacks.add(callback)
                return lambda: self._discard(callback)
        callback()
        return lambda: None

    def _discard(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks.discard(callback)


Frames = list[EncodedFrame]
"""That came together."""
Preview = Callable[[Frames], None]


class FrameSource(Protocol):
    """Where the metadata and the frames of a slide come from. Safe to share between threads; pickles."""

    @property
    def remote(self) -> bool:
        """Whether frames are slow enough to be worth an encoded cache, and may be damaged on their way."""
        ...

    @property
    def stats(self) -> ReadStats:
        """Counts what was asked of the source; a copy (unpickled, or after a fork) begins anew."""
        ...

    @property
    def credentials(self) -> Mapping[str, object]:
        """What the user gave to be let in, by the name of the argument; must pickle for the slide to pickle."""
        ...

    def advise(self, frames: int, reads: int) -> Advice:
        """Return how so many frames of one of so many reads are best asked for, by what the source has shown so far."""
        ...

    def metadata(self) -> list[JsonDataset]:
        """Return one dataset for each instance of the series."""
        ...

    def fetch(self, batch: FrameBatch, cancellation: Cancellation, preview: Preview | None = None) -> Iterator[Frames]:
        """Yield each frame of the batch once, in any order, as they arrive; all of them, or raise.

        Where it is certain only in the end which frame is which, ``preview`` is told what they seem to be, and,
        with none, when their answer begins. Only what is yielded counts; it is then the same object.
        """
        ...

    def fetch_bulk(self, uri: str, whole: Callable[[bytes], bool] = bool) -> bytes:
        """Return the value behind a BulkDataURI.

        Where it is not ``whole``, it may be cut short: it is kept nowhere, and asked for again where that may help.
        """
        ...

    def close(self) -> None:
        """Release sockets and files. Reading afterwards is not supported."""
        ...
