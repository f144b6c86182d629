"""What a service says of a failure, URLs and numbers, for messages: readable, short, without what is confidential."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

    import requests

_MAX_ERROR_TEXT_BYTES = 16_384
_PLAIN_HEADERS = frozenset({"accept", "accept-encoding", "connection", "host", "user-agent"})
_NUMBERS = re.compile(r"[\d.]*")
"""And UIDs, which a message has to show."""
_SHORTEST_SECRET = 6
"""Shorter ones are in every text."""


def quoted(request: requests.PreparedRequest, body: bytes) -> str:
    """Return what the body of an error says, without what was sent in confidence."""
    return readable_error(body, _secrets_of(request))


def _secrets_of(request: requests.PreparedRequest) -> list[str]:
    """Return what of a request is nobody else's business: what its headers and its query say; the longest first."""
    found = {value for _, value in parse_qsl(urlsplit(request.url or "").query) if not _NUMBERS.fullmatch(value)}
    headers: Any = request.headers  # of which requests takes bytes, too
    for name, value in headers.items():
        if name.lower() not in _PLAIN_HEADERS:
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            found.add(text)
            if name.lower() in ("authorization", "cookie"):
                found.update(re.split(r"[\s;,=]+", text))
            if text.startswith("Basic "):
                with contextlib.suppress(ValueError):
                    found.update(base64.b64decode(text[6:]).decode("latin-1").split(":", 1))
    found = {text for text in found if len(text) >= _SHORTEST_SECRET and text != "Bearer"}
    for text in list(found):
        in_json = json.dumps(text)[1:-1]
        found |= {quote(text), quote(text, safe=""), in_json, in_json.replace("/", "\\/")}
    return sorted(found, key=len, reverse=True)


def readable_error(body: bytes, secrets: Iterable[str] = ()) -> str:
    """Return what a server's error body says without ``secrets``, at most 500 characters, for JSON, HTML and text."""
    from wsiweb.jsontext import loads  # noqa: PLC0415

    body = body[:_MAX_ERROR_TEXT_BYTES]
    text = body.decode("utf-8", "replace").strip()
    if text[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            found = loads(body)
            if isinstance(found, list) and found:
                found = found[0]
            if isinstance(found, dict):
                inner = found.get("error")
                found = inner if isinstance(inner, dict) else found
                parts = [found.get(key) for key in ("message", "Message", "errorMessage", "Details", "error")]
                text = " ".join(part for part in parts if isinstance(part, str) and part) or text
    text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|\Z)|<[^<>]*>", " ", text)
    text = html.unescape(text)
    for secret in secrets:
        text = text.replace(secret, "***")
    return " ".join(printable(text, " ").split())[:500]


def printable(text: str, instead: str = "?") -> str:
    """Return text of which a terminal obeys nothing: no control characters, and no line breaks."""
    return "".join(letter if letter.isprintable() else instead for letter in text)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: one frame, several frames."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def without_secrets(url: str) -> str:
    """Return a URL without user, password and query, for messages and logs."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        netloc = f"{host}:{parts.port}" if parts.port else host
    except ValueError:
        return "an unreadable URL"
    text = urlunsplit((parts.scheme, netloc, parts.path, "", ""))
    return text if len(text) <= 400 else f"{text[:300]}...{text[-80:]}"
