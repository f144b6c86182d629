"""What the resources of the server take and give. Knows no sockets."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from wsiweb.server.accept import parse_accept

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from wsiweb.server.accept import MediaRange

BASE = f"base-{uuid.uuid4().hex}:"
"""Stands for the service's URL in what is kept between requests: the URL depends on each request's Host."""


class HttpError(Exception):
    """A request that cannot be served. Becomes an answer; never leaves the server."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One GET request."""

    path: str
    """Decoded, below the service's URL."""
    query: list[tuple[str, str]]
    """Decoded parameters, in order."""
    accept: str
    """The header; empty where absent."""
    base_url: str
    """The service's URL as the client addressed it."""

    @property
    def media_ranges(self) -> list[MediaRange]:
        """What the client takes, most wanted first; ``accept=`` in the query goes before the header (PS3.18 8.3.3)."""
        return parse_accept(next((value for name, value in self.query if name == "accept"), self.accept))


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    body: bytes | Generator[bytes, None, None]
    """Whole, or made piece by piece while it is sent."""
    content_type: str | None = None
    status: HTTPStatus = HTTPStatus.OK
    length_bytes: int | None = None
    """Of a body that is made piece by piece, where it is known beforehand."""
    compressible: bool = False
    """Whether gzip is worth its time."""


def json_answer(text: bytes, request: Request, content_type: str) -> Answer:
    """Return an answer of JSON, with the service's URL filled in."""
    base_url = json.dumps(request.base_url)[1:-1].encode()
    return Answer(text.replace(BASE.encode(), base_url), content_type, compressible=True)


def dump(value: Any) -> bytes:
    """Return JSON; numbers that JSON does not have become text."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"))
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart body."""

    content_type: str
    location: str
    """URL of what it holds."""
    length_bytes: int
    data: Iterable[bytes]


def multipart_answer(media_type: str, parts: Iterable[Part], length_bytes: int | None = None) -> Answer:
    """Return ``multipart/related`` (PS3.18 8.6.1.2.1), part after part as they are taken.

    ``length_bytes`` is that of the parts' data in all, where it is known; it needs ``parts`` to be a list.
    """
    boundary = uuid.uuid4().hex
    length = None
    if length_bytes is not None:
        frame = sum(len(_part_head(boundary, part)) + 2 for part in parts)
        length = frame + length_bytes + len(boundary) + 6
    content_type = f'multipart/related; type="{media_type}"; boundary={boundary}'
    return Answer(_multipart(boundary, parts), content_type, length_bytes=length)


def _multipart(boundary: str, parts: Iterable[Part]) -> Generator[bytes, None, None]:
    for part in parts:
        yield _part_head(boundary, part)
        yield from part.data
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _part_head(boundary: str, part: Part) -> bytes:
    return (
        f"--{boundary}\r\nContent-Type: {part.content_type}\r\nContent-Location: {part.location}\r\n"
        f"Content-Length: {part.length_bytes}\r\n\r\n"
    ).encode()
