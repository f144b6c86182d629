"""An incremental parser for ``multipart/related`` answers (RFC 2046 5.1, PS3.18 8.6.1.2). No I/O.

Each part is handed out as soon as it is whole, so that decoding begins while the rest is on its way. What real
servers send is taken: headers that end in LF, padding after a boundary, a Content-Length that lies, no boundary
parameter.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsiweb.errors import ProtocolError
from wsiweb.sources.retry import OversizeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_HEADER_BYTES = 16_384
MAX_PREAMBLE_BYTES = 65_536
MAX_PART_BYTES = 1 << 30
_PARAMETER = re.compile(r';\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_CARRIAGE_RETURN = 13
_HEADER_END = re.compile(rb"\r?\n\r?\n")


@dataclass(slots=True)
class Part:
    """One body part."""

    headers: Mapping[str, str]
    """By lower-case name."""
    data: bytes


@functools.lru_cache(maxsize=64)  # the parts of an answer mostly say the same
def parse_content_type(value: str) -> tuple[str, Mapping[str, str]]:
    """Split a Content-Type into the lower-case media type and its parameters, quotes taken off.

    A ``;`` within quotes separates nothing: Orthanc writes ``type="image/jpeg; transfer-syntax=..."``.
    """
    media_type, _, rest = value.partition(";")
    parameters = {}
    for name, text in _PARAMETER.findall(";" + rest):
        plain = text.strip()
        parameters[name.lower()] = re.sub(r"\\(.)", r"\1", plain[1:-1]) if plain.startswith('"') else plain
    return media_type.strip().lower(), parameters


class MultipartParser:
    """Feed it bytes, take parts; ``finished`` tells whether the closing delimiter was seen.

    Parameters
    ----------
    boundary
        The parameter of Content-Type; None takes the first line that begins with two hyphens.
    max_part_bytes
        A larger part is refused.

    Raises
    ------
    ProtocolError
        From ``feed``: the bytes are no multipart body, or a part exceeds the bounds.
    """

    def __init__(self, boundary: str | None, *, max_part_bytes: int = MAX_PART_BYTES) -> None:
        self._delimiter = None if boundary is None else b"--" + boundary.encode("latin-1", "replace")
        self._buffer = bytearray(b"\r\n")  # so that every delimiter follows a line break
        self._at = 0  # in the buffer; what is before is done with
        self._begun = False
        self._in_body = False
        self._headers: Mapping[str, str] = {}
        self._max_part_bytes = max_part_bytes
        self._length: int | None = None
        self._lengths_lie = False
        self._scanned = 0
        self.finished = False

    def feed(self, data: bytes) -> Iterator[Part]:
        """Take the next bytes of the body and yield the parts that they complete."""
        if not self.finished:  # an epilogue means nothing
            del self._buffer[: self._at]
            self._scanned = max(self._scanned - self._at, 0)
            self._at = 0
            self._buffer += data
            while (part := self._next()) is not None:
                yield part

    def close(self) -> Iterator[Part]:
        """Yield what the end of the body shows to be parts.

        One that said it was longer than it is, and one that is as long as it said where the delimiter is missing.
        """
        if self.finished:
            return
        length, self._length, self._lengths_lie = self._length, None, True
        headers, in_body, start = self._headers, self._in_body, self._at + 1
        found = list(iter(self._next, None))
        yield from found
        if found or not in_body or length is None or len(self._buffer) < start + length:
            return
        if self._begins_delimiter(self._buffer[start + length :]):
            yield Part(headers, bytes(self._buffer[start : start + length]))

    def _begins_delimiter(self, rest: bytearray) -> bool:
        """Whether what follows a part is nothing, or the beginning of its delimiter."""
        delimiter = self._delimiter or b""
        return any((ending + delimiter).startswith(rest) for ending in (b"\r\n", b"\n"))

    # Each of these goes on in the buffer as far as it can, and says whether it came to its end.

    def _next(self) -> Part | None:
        """Return the next part, if it is whole."""
        if not self._begun and not self._skip_preamble():
            return None
        if not self._in_body and not self._read_headers():
            return None
        return self._read_body()

    def _skip_preamble(self) -> bool:
        if self._delimiter is None:
            match = re.search(rb"\n(--[^\r\n]+)[ \t]*\r?\n", self._buffer)
            if match is not None:
                self._delimiter = match[1].rstrip()
        start = -1 if self._delimiter is None else self._buffer.find(b"\n" + self._delimiter)
        if start < 0 or self._delimiter is None:
            if len(self._buffer) > MAX_PREAMBLE_BYTES:
                raise ProtocolError("The answer claims to be multipart, but no boundary is in it.")
            return False
        self._at = start + 1 + len(self._delimiter)
        self._begun = True
        return True

    def _read_headers(self) -> bool:
        """Go on behind a delimiter: two hyphens close the body; otherwise the rest of the line is padding."""
        buffer, at = self._buffer, self._at
        if buffer.startswith(b"--", at):
            self.finished = True
            return False
        end = buffer.find(b"\n", at)
        if end < 0:
            if len(buffer) - at > MAX_HEADER_BYTES:
                raise ProtocolError("A boundary line of the answer does not end.")
            return False
        # The line break stays: it may be the blank line's half, where a part has no headers.
        start = end - 1 if end > at and buffer[end - 1] == _CARRIAGE_RETURN else end
        match = _HEADER_END.search(buffer, start, start + MAX_HEADER_BYTES)
        if match is None:
            if len(buffer) - start > MAX_HEADER_BYTES:
                raise ProtocolError("The headers of a part of the answer do not end.")
            return False
        self._headers = _parse_headers(bytes(buffer[start : match.start()]))
        self._at = self._scanned = match.end() - 1  # the line break stays: a delimiter may follow at once
        self._length = None if self._lengths_lie else _length(self._headers.get("content-length", ""))
        if self._length is not None and self._length > self._max_part_bytes:
            self._length = None
        self._in_body = True
        return True

    def _read_body(self) -> Part | None:
        """Find the delimiter that ends the part: behind as many bytes as it says it has, else wherever it is.

        Some servers get the length wrong.
        """
        assert self._delimiter is not None  # noqa: S101  (the preamble set it)
        marker = b"\n" + self._delimiter
        buffer, start = self._buffer, self._at + 1
        if self._length is not None:
            end = start + self._length
            if len(buffer) < end + 1 + len(marker):
                return None
            found = end + 1 if buffer[end] == _CARRIAGE_RETURN else end
            if buffer.startswith(marker, found):
                return self._take(start, end, found + len(marker))
            self._length, self._lengths_lie = None, True
        found = buffer.find(marker, max(self._scanned - len(marker), self._at))
        if found < 0:
            self._scanned = len(buffer)
            if self._scanned - self._at > self._max_part_bytes:
                raise OversizeError(f"A part of the answer is larger than {self._max_part_bytes:,} bytes.")
            return None
        cut = found > self._at and buffer[found - 1] == _CARRIAGE_RETURN
        return self._take(start, found - 1 if cut else found, found + len(marker))

    def _take(self, start: int, end: int, behind: int) -> Part:
        self._at = behind
        self._in_body = False
        return Part(self._headers, bytes(memoryview(self._buffer)[start:end]))


@functools.lru_cache(maxsize=64)
def _parse_headers(block: bytes) -> Mapping[str, str]:
    headers = {}
    for line in block.decode("latin-1").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers


def _length(value: str) -> int | None:
    """Read a Content-Length; None where it cannot be one."""
    return int(value) if value.isdecimal() and len(value) < len(str(MAX_PART_BYTES)) else None
