"""``ChunkedDecoder``: a body from the chunks in which it was transferred (RFC 9112 7.1). No I/O.

Servers that stream send chunks of 4 to 32 kB. http.client hands out each by itself, after two or three reads from the
socket, and with a dozen threads each of these is a turn at the interpreter. Here what has come is taken at once.
"""

from __future__ import annotations

import re

# Nothing is tried in two ways (*+), however much of it has come.
_SIZE_LINE = re.compile(rb"\r\n(?=[0-9A-Fa-f])0*+([0-9A-Fa-f]{0,15}+)[ \t]*+(?:;[^\n]*+|\r?+)\n")
_TRAILER = re.compile(rb"(?:[^\r\n][^\n]*\n)*\r?\n")
_LONGEST_LINES_BYTES = 16_384
"""Before a chunk, or behind the last."""


class ChunkedDecoder:
    """Feed it what is received, to the end of the connection if need be, until ``finished``."""

    def __init__(self) -> None:
        self._left = 0  # bytes of the chunk that has begun
        self._lines = b"\r\n"  # that are not whole yet; this one, so that the size of every chunk follows a line break
        self._body_whole = False
        self.finished = False
        """Whether the body, and what comes behind it, is whole."""

    def feed(self, data: bytes) -> bytes:
        """Return what of the body has come with the next bytes; none are the end of the connection.

        Raises
        ------
        ValueError
            These are no chunks, or the body is not whole.
        """
        if not data:
            if not self._body_whole:
                raise ValueError("the last chunk is missing")
            self.finished = True  # nobody needs what may come behind it
        if len(data) <= self._left:
            self._left -= len(data)
            return data
        at, pieces = self._left, [data[: self._left]]
        if self._lines:
            data, at = self._lines + data, 0
        while not self._body_whole and (line := _SIZE_LINE.match(data, at)):
            start = line.end()
            at = start + int(line[1] or b"0", 16)
            pieces.append(data[start:at])
            self._body_whole = at == start
        self._left = max(at - len(data), 0)
        self._lines = data[at:]
        self._check_lines()
        return b"".join(pieces)

    def _check_lines(self) -> None:
        lines = self._lines
        if self._body_whole:
            self.finished = _TRAILER.match(lines) is not None
        elif not b"\r\n".startswith(lines[:2]) or b"\n" in lines[2:]:
            raise ValueError("the size of a chunk cannot be read")
        if len(lines) > _LONGEST_LINES_BYTES:
            raise ValueError("the lines before a chunk, or behind the last, do not end")
