"""What a request was, and the ways in which ``dicomweb_server`` can answer it badly."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Kind = Literal["search", "metadata", "frames", "bulk", "other"]
Framing = Literal["length", "chunked", "close"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    kind: Kind
    path: str
    """With the query."""
    headers: dict[str, str]
    """Names in lower case."""
    arrived: float
    concurrent: int
    """Requests being answered at that moment, this one included."""
    client_port: int
    """Tells connections apart."""
    attempt: int
    """How many requests for this path there have been, this one included."""
    certificate: bool = False
    """Whether the client showed one."""
    instance_uid: str | None = None
    frame_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """How an answer differs from the right one. Fields may be combined."""

    interim: bytes = b""
    """Send these bytes first, before the latency."""
    latency_seconds: float = 0.0
    status: int | None = None
    """Answer with this status, ``body`` and ``headers`` instead."""
    label: int | None = None
    """Send the right answer under this status."""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop_parts: int = 0
    """Leave out this many parts, counted from the last."""
    cut_last_part_bytes: int = 0
    """Cut this much off the last part, everything else being in order."""
    cut_body_bytes: int = 0
    """Cut this much off the body, under a valid length."""
    omit_closing: bool = False
    """Send no closing boundary."""
    single_part: bool = False
    """Send the first frame without multipart."""
    change_frame: Callable[[int, bytes], bytes] | None = None
    """Gets each frame's number and bytes, returns the bytes to send."""
    reset_after_bytes: int | None = None
    """Break the connection after this much of the body."""
    drip: tuple[int, float] | None = None
    """Send this many bytes at a time, with a pause in seconds after each."""
    hang_up_after_bytes: int | None = None
    """Close the connection in good order after this much of the body."""
    stall_after_bytes: int | None = None
    """Fall silent after this much of the body, until the server is closed."""
    framing: Framing | None = None
    """How the end of the body is told; None as the server does it."""
    extra_parts: int = 0
    """Send this many parts too many: of frames that nobody asked for."""
    repeat_parts: bool = False
    """Send every part twice."""
    reverse_parts: bool = False
    """Send the parts in descending order."""
    locations: bool = True
    """Whether parts say which frame they are."""
    part_headers: tuple[str, ...] = ()
    """Further headers of each part; ``{length}`` stands for the right length."""
    boundary: str | None = None
    """Another boundary than the header of the answer says."""
    raw: Callable[[], Iterable[bytes]] | None = None
    """Send these bytes instead of an answer of HTTP, then hang up."""


def quota_page() -> Fault:
    """Return IDC's answer to a used-up quota: 429 with HTML and no Retry-After."""
    page = b"<html><body>You have used your 40 GB for today. It resets at midnight UTC.</body></html>"
    return Fault(status=429, body=page, headers={"Content-Type": "text/html"})


def fail_first(times: int, fault: Fault, kind: Kind = "frames") -> Callable[[Request], Fault | None]:
    """Return a hook that lets the first ``times`` requests of a kind fail, whatever their path."""
    seen = iter(range(times))
    lock = threading.Lock()

    def hook(request: Request) -> Fault | None:
        if request.kind != kind:
            return None
        with lock:
            return fault if next(seen, None) is not None else None

    return hook


def every(fault: Fault, kind: Kind = "frames") -> Callable[[Request], Fault | None]:
    """Return a hook that lets all requests of a kind fail."""
    return lambda request: fault if request.kind == kind else None


def slowed(seconds: float) -> Callable[[Request], Fault | None]:
    """Return a hook that delays every answer."""
    fault = Fault(latency_seconds=seconds)
    return lambda request: fault
