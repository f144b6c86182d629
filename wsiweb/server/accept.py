"""Content negotiation (RFC 9110 12.5.1, PS3.18 8.7)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from wsiweb.sources.multipart import parse_content_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MULTIPART = "multipart/related"
OCTET_STREAM = "application/octet-stream"
_RANGE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One range of an Accept header."""

    media_type: str
    """Lower case; may hold wildcards."""
    parameters: dict[str, str]
    quality: float

    @property
    def part(self) -> MediaRange | None:
        """The range that the parts of a multipart answer must lie in; None where no multipart is taken."""
        if self.media_type == "*/*":
            return self
        if self.media_type != MULTIPART:
            return None
        media_type, inner = parse_content_type(self.parameters.get("type", "*/*"))
        return MediaRange(media_type, {**self.parameters, **inner}, self.quality)

    @property
    def transfer_syntax(self) -> str | None:
        """The transfer-syntax parameter (PS3.18 8.7.3.5.2); ``*`` is any."""
        return self.parameters.get("transfer-syntax")

    def takes(self, media_type: str) -> bool:
        """Whether a media type lies in the range."""
        return fnmatchcase(media_type, self.media_type)


def parse_accept(text: str) -> list[MediaRange]:
    """Return the ranges of an Accept header, most wanted first; no header takes everything."""
    ranges = []
    for part in _RANGE.findall(text):
        media_type, found = parse_content_type(part)
        parameters = dict(found)
        weight = quality(parameters.pop("q", "1"))
        if media_type and weight > 0:
            ranges.append(MediaRange(media_type, parameters, weight))
    if not text.strip():
        ranges.append(MediaRange("*/*", {}, 1.0))
    return sorted(ranges, key=lambda wanted: -wanted.quality)


def choose(ranges: Iterable[MediaRange], offers: Sequence[str]) -> str | None:
    """Return the first offer in the most wanted range, or None."""
    return next((offer for wanted in ranges for offer in offers if wanted.takes(offer)), None)


def quality(text: str) -> float:
    """Return a ``q=`` weight; 0, which takes nothing, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return 0.0
