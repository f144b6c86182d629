"""From a whole answer to the datasets in it. No requests are made here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wsiweb.errors import ProtocolError
from wsiweb.jsontext import loads
from wsiweb.sources.http import without_secrets
from wsiweb.sources.retry import ForeignError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.sources.base import JsonDataset


class Whole(NamedTuple):
    """A whole answer."""

    url: str
    """That was asked for."""
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
    where = without_secrets(answer.url)
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
