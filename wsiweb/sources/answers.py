"""From an answer to the frames in it, verified. No requests are made here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wsiweb.errors import ProtocolError, SourceError
from wsiweb.sources.base import EncodedFrame
from wsiweb.sources.multipart import MultipartParser, parse_content_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wsiweb.sources.base import Frames, Preview
    from wsiweb.sources.http import Answer
    from wsiweb.sources.multipart import Part

MAX_FRAME_BYTES = 1 << 30


class ShortAnswerError(ProtocolError):
    """A whole answer has fewer frames than were asked for, and does not say which."""


class SinglePartError(ProtocolError):
    """One frame came where several were asked for; nobody knows which."""


SPARE_PARTS = 64
"""So many more parts than frames may an answer have, beside each frame twice."""
_FRAME_IN_LOCATION = re.compile(r"/frames/([0-9]{1,10})/?$")
_ERROR_TYPES = (
    "text/",
    "application/json",
    "application/xml",
    "application/problem+json",
    "application/dicom+json",
)


def frames_in(
    answer: Answer, numbers: Sequence[int], *, max_bytes: int = MAX_FRAME_BYTES, preview: Preview | None = None
) -> Iterator[Frames]:
    """Yield the frames of an answer, each of ``numbers`` at most once, as they arrive.

    A part says by its Content-Location which frame it is; it is then handed out at once, with those that came with
    it. Parts that do not say are held until the answer is whole and as many have come as were asked for: one left out
    in the middle would otherwise pass its neighbours off as each other. ``preview`` is told of them meanwhile.

    A frame of more than ``max_bytes`` is refused.

    Raises
    ------
    ProtocolError
        The answer is no frames, or broken. What was yielded until then is good.
    """
    media_type, parameters = parse_content_type(answer.content_type)
    if not media_type.startswith("multipart/"):
        yield [_single(answer, media_type, parameters, numbers, max_bytes)]
    else:
        parser = MultipartParser(parameters.get("boundary"), max_part_bytes=max_bytes)
        if preview is not None:
            preview([])
        yield from _frames_of(parser, answer, numbers, preview)


def _frames_of(
    parser: MultipartParser, answer: Answer, numbers: Sequence[int], preview: Preview | None
) -> Iterator[Frames]:
    missing = set(numbers)
    unnamed: Frames = []
    count = 0
    for parts in _parts(parser, answer):
        named: Frames = []
        seen = len(unnamed)
        for part in parts:
            number = _number(part)
            if number is None:
                unnamed.append(_frame(part, numbers[min(len(unnamed), len(numbers) - 1)]))
            elif number in missing and part.data:
                missing.discard(number)
                named.append(_frame(part, number))
        if preview is not None and len(unnamed) > seen:
            preview([frame for frame in unnamed[seen : len(numbers)] if frame.data])
        if named:
            yield named
        count += len(parts)
        if count > 2 * len(numbers) + SPARE_PARTS:
            if missing:
                raise _incomplete(answer, missing, f"far more parts than the {len(numbers)} frames that were asked for")
            return
        if parser.finished and unnamed and len(unnamed) == len(missing) == len(numbers):
            whole = [frame for frame in unnamed if frame.data]
            missing.difference_update(frame.frame_number for frame in whole)
            if whole:
                yield whole
    if missing:
        state = "is complete" if parser.finished else "ends without a closing boundary"
        came = len(numbers) - len(missing) + len(unnamed)
        kind = ShortAnswerError if parser.finished else ProtocolError
        raise _incomplete(answer, missing, f"{came} of {len(numbers)} frames, and the answer {state}", kind)


def _incomplete(
    answer: Answer, missing: set[int], with_what: str, kind: type[ProtocolError] = ProtocolError
) -> ProtocolError:
    return kind(
        f"{answer.url} answered with {with_what}",
        url=answer.url, status=answer.status, frame_numbers=tuple(sorted(missing)),
    )  # fmt: skip


def _parts(parser: MultipartParser, answer: Answer) -> Iterator[list[Part]]:
    """Yield the parts of an answer, those that came together in one list; what is whole when it breaks off, too.

    How it goes on behind the closing delimiter does not matter.
    """
    error: SourceError | None = None
    chunk: bytes | None = b""
    while chunk is not None and error is None:
        parts: list[Part] = []
        try:
            chunk = next(answer.chunks, None)
            parts.extend(parser.close() if chunk is None else parser.feed(chunk))
        except SourceError as caught:
            error = caught
            if error.url is not None or not isinstance(error, ProtocolError):  # not the parser's
                parts.extend(parser.close())
        if parts or parser.finished:
            yield parts
    if parser.finished:
        return
    if isinstance(error, ProtocolError) and error.url is None:
        raise type(error)(f"{answer.url}: {error}", url=answer.url, status=answer.status) from error
    if error is not None:
        raise error


def _number(part: Part) -> int | None:
    location = part.headers.get("content-location")
    match = _FRAME_IN_LOCATION.search(location) if location else None
    return int(match[1]) if match else None


def _frame(part: Part, number: int) -> EncodedFrame:
    media_type, parameters = parse_content_type(part.headers.get("content-type", ""))
    return EncodedFrame(number, part.data, media_type or None, parameters.get("transfer-syntax"))


def _single(
    answer: Answer, media_type: str, parameters: Mapping[str, str], numbers: Sequence[int], max_bytes: int
) -> EncodedFrame:
    """Take an answer that is no multipart: one frame, where one was asked for, or a server's error page."""
    if media_type.startswith(_ERROR_TYPES):
        raise _no_frames(answer, numbers, f"with {answer.error_text()!r:.300}")
    data = answer.read(max_bytes)
    if not data:
        raise _no_frames(answer, numbers, "with nothing")
    if data.startswith(b"--") and (part := _part_within(data, max_bytes)) is not None and len(numbers) == 1:
        return _frame(part, numbers[0])
    if not media_type and data.lstrip()[:1] in (b"<", b"{"):
        raise _no_frames(answer, numbers, f"with {answer.quote(data)!r:.300}")
    if len(numbers) != 1:
        raise SinglePartError(
            f"{answer.url} answered with one {media_type or 'body'} where {len(numbers)} frames were asked for",
            url=answer.url, status=answer.status, frame_numbers=tuple(numbers),
        )  # fmt: skip
    return EncodedFrame(numbers[0], data, media_type or None, parameters.get("transfer-syntax"))


def _part_within(data: bytes, max_bytes: int) -> Part | None:
    """Return the only part of a multipart body that does not say that it is one: static files come so."""
    parser = MultipartParser(None, max_part_bytes=max_bytes)
    try:
        parts = [*parser.feed(data), *parser.close()]
    except ProtocolError:
        return None
    return parts[0] if len(parts) == 1 else None  # its delimiter shows that it is whole


def _no_frames(answer: Answer, numbers: Sequence[int], what: str) -> ProtocolError:
    return ProtocolError(
        f"{answer.url} answered {answer.status} {what} where {len(numbers)} frames were asked for",
        url=answer.url, status=answer.status, frame_numbers=tuple(numbers),
    )  # fmt: skip
