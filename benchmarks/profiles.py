"""The networks that the server plays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """A way from the reader to the service and back."""

    latency_seconds: float
    """From a request to the first byte of its answer."""
    bytes_per_second: float | None
    """Of the body, on each connection; None is what loopback gives."""
    chunk_bytes: int | None = None
    """Of the chunks in which a body is transferred; None gives its length instead. Where there is no bandwidth."""
    tls: bool = False
    """Whether all is encrypted."""

    def transfer_seconds(self, size: int, connections: int) -> float:
        """Return how long bytes take that are spread over connections."""
        return 0.0 if self.bytes_per_second is None else size / self.bytes_per_second / connections


PROFILES = {
    "lan": Profile(0.0005, None),
    "wan": Profile(0.030, 12e6),
    "far": Profile(0.100, 4e6),
    "chunked": Profile(0.0005, None, chunk_bytes=8192),
    "https": Profile(0.030, 12e6, tls=True),
}
