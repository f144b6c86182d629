"""From an answer to the frames in it, verified. No requests are made here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wsiweb.errors import ProtocolError
from wsiweb.sources.base import EncodedFrame
from wsiweb.sources.multipart import MultipartParser, parse_content_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsiweb.sources.http import Answer
    from wsiweb.sources.multipart import Part

MAX_FRAME_BYTES = 1 << 30
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


def frames_in(answer: Answer, numbers: Sequence[int]) -> Iterator[EncodedFrame]:
    """Yield the frames of an answer, each of ``numbers`` at most once, as they arrive.

    A part says by its Content-Location which frame it is; it is then handed out at once. Parts that do not say are
    held until the answer is whole and as many have come as were asked for: one left out in the middle would
    otherwise pass its neighbours off as each other.

    Raises
    ------
    ProtocolError
        The answer is no frames, or broken. What was yielded until then is good.
    """
    media_type, parameters = parse_content_type(answer.content_type)
    if not media_type.startswith("multipart/"):
        yield _single(answer, media_type, parameters, numbers)
        return
    parser = MultipartParser(parameters.get("boundary"))
    missing = set(numbers)
    unnamed: list[Part] = []
    most = 2 * len(numbers) + SPARE_PARTS
    for chunk in answer.chunks:
        for part in parser.feed(chunk):
            most -= 1
            number = _number(part)
            if number is None:
                unnamed.append(part)
            elif number in missing and part.data:
                missing.discard(number)
                yield _frame(part, number)
        if most < 0 and not missing:
            return
        if most < 0:
            raise ProtocolError(
                f"{answer.url} answered with far more parts than the {len(numbers)} frames that were asked for",
                url=answer.url, status=answer.status, frame_numbers=tuple(sorted(missing)),
            )  # fmt: skip
    if unnamed and parser.finished and len(unnamed) == len(missing) == len(numbers):
        for number, part in zip(numbers, unnamed, strict=True):
            if part.data:
                missing.discard(number)
                yield _frame(part, number)
    if missing:
        state = "is complete" if parser.finished else "ends without a closing boundary"
        came = len(numbers) - len(missing) + len(unnamed)
        raise ProtocolError(
            f"{answer.url} answered with {came} of {len(numbers)} frames, and the answer {state}",
            url=answer.url, status=answer.status, frame_numbers=tuple(sorted(missing)),
        )  # fmt: skip


def _number(part: Part) -> int | None:
    match = _FRAME_IN_LOCATION.search(part.headers.get("content-location", ""))
    return int(match[1]) if match else None


def _frame(part: Part, number: int) -> EncodedFrame:
    media_type, parameters = parse_content_type(part.headers.get("content-type", ""))
    return EncodedFrame(number, part.data, media_type or None, parameters.get("transfer-syntax"))


def _single(answer: Answer, media_type: str, parameters: dict[str, str], numbers: Sequence[int]) -> EncodedFrame:
    """Take an answer that is no multipart: one frame, where one was asked for, or a server's error page."""
    if media_type.startswith(_ERROR_TYPES) or len(numbers) != 1:
        said = answer.error_text() if media_type.startswith(_ERROR_TYPES) else f"one {media_type}"
        raise ProtocolError(
            f"{answer.url} answered {answer.status} with {said!r:.300} where {len(numbers)} frames were asked for",
            url=answer.url, status=answer.status, frame_numbers=tuple(numbers),
        )  # fmt: skip
    data = answer.read(MAX_FRAME_BYTES)
    if not data:
        raise ProtocolError(
            f"{answer.url} answered with nothing",
            url=answer.url,
            status=answer.status,
            frame_numbers=tuple(numbers),
        )
    return EncodedFrame(numbers[0], data, media_type or None, parameters.get("transfer-syntax"))
