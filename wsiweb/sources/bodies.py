"""From a whole answer to the datasets, or the bulk data value, in it. No requests are made here."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from wsiweb.errors import ProtocolError
from wsiweb.jsontext import loads
from wsiweb.sources.base import Found
from wsiweb.sources.multipart import MultipartParser, parse_content_type
from wsiweb.sources.retry import ForeignError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.sources.base import JsonDataset


class Whole(NamedTuple):
    """A whole answer."""

    url: str
    """That was asked for, without secrets."""
    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes
    quote: Callable[[bytes], str]
    """See ``http.Answer``."""


def datasets_in(answer: Whole) -> list[JsonDataset]:
    """Return the datasets of an answer in DICOM JSON; an empty one has none.

    Raises
    ------
    ProtocolError
        It cannot be read: a ``ForeignError`` where it does not even begin like JSON.
    """
    where = answer.url
    if not answer.body.strip():
        return []
    try:
        found = loads(answer.body)
    except ValueError as error:
        said = answer.quote(answer.body)
        kind = ProtocolError if answer.body.lstrip()[:1] in (b"[", b"{") else ForeignError
        raise kind(
            f"{where} did not answer with DICOM JSON ({error}) but with {said!r:.200}. Is it the root of a "
            f"DICOMweb service?",
            url=where,
        ) from error
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ForeignError(f"{where} did not answer with a list of datasets.", url=where)
    return found


def found_in(answer: Whole) -> Found:
    """Return what the answer to a search has; raises as ``datasets_in`` does."""
    more = answer.status == 206 or "additional results" in answer.headers.get("warning", "").lower()
    return Found(datasets_in(answer), more)


def value_in(answer: Whole) -> bytes:
    """Return the bulk data value that an answer is, or that its first part is.

    Raises
    ------
    ProtocolError
        There is none, or nothing in it: a ``ForeignError`` where it is a page.
    """
    where = answer.url
    media_type, parameters = parse_content_type(answer.headers.get("content-type", ""))
    untyped_page = not media_type and answer.body.lstrip()[:1] in (b"<", b"{")
    if media_type == "text/html" or media_type.endswith("json") or untyped_page:
        said = answer.quote(answer.body)
        raise ForeignError(f"{where} did not answer with a bulk data value but with {said!r:.200}.", url=where)
    value = answer.body
    if media_type.startswith("multipart/"):
        parser = MultipartParser(parameters.get("boundary"))
        part = next(itertools.chain(parser.feed(value), parser.close()), None)
        if part is None:
            raise ProtocolError(f"{where} sent a multipart answer without a whole part.", url=where)
        value = part.data
    if not value:
        raise ProtocolError(f"{where} answered with nothing where a bulk data value was asked for.", url=where)
    return value
