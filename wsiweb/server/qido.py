"""Searching (QIDO-RS, PS3.18 10.6): studies, series and instances by their attributes."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from wsiweb.server.accept import choose
from wsiweb.server.answer import BASE, Answer, HttpError, dump, json_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsiweb.server.answer import Request
    from wsiweb.server.index import Index, StoredInstance
    from wsiweb.sources.base import JsonDataset

Level = Literal["study", "series", "instance"]
JSON_TYPES = ("application/dicom+json", "application/json")
_LEVELS: tuple[Level, ...] = ("study", "series", "instance")
_UID_TAGS = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
_ATTRIBUTES: dict[Level, tuple[str, ...]] = {  # PS3.18 Tables 10.6.3-3, 10.6.3-4, 10.6.3-5
    "study": ("00080005", "00080020", "00080030", "00080050", "00080056", "00080061", "00080090", "00080201",
              "00081030", "00100010", "00100020", "00100030", "00100040", "00200010", "00201206", "00201208"),
    "series": ("00080005", "00080060", "00080201", "0008103E", "00200011", "00201209", "00400244", "00400245",
               "00400275"),
    "instance": ("00080005", "00080008", "00080016", "00080056", "00080201", "00083002", "00200013", "00280008",
                 "00280010", "00280011", "00280100"),
}  # fmt: skip
_RANGES = frozenset({"DA", "TM"})


@dataclass(slots=True)
class _Query:
    """The parameters of a search."""

    matches: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    """Tags from the top level down through sequences, and what the attribute must match."""
    included: list[str] = field(default_factory=list)
    """Tags to return beside the usual ones."""
    everything: bool = False
    """``includefield=all``"""
    offset: int = 0
    limit: int | None = None

    @classmethod
    def parse(cls, parameters: Sequence[tuple[str, str]]) -> _Query:
        query = cls()
        for name, value in parameters:
            match name:
                case "limit" | "offset":
                    if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
                        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name}={value} is no number of results.")
                    setattr(query, name, int(value))
                case "includefield":
                    query.everything |= "all" in value.split(",")
                    query.included += [_tags(key)[0] for key in value.split(",") if key != "all"]
                case "fuzzymatching" | "accept":
                    pass
                case _:
                    query.matches.append((_tags(name), value))
        return query


def search(index: Index, request: Request, level: Level, study_uid: str | None, series_uid: str | None) -> Answer:
    """Answer a search for studies, series or instances, of one study or series or of all."""
    content_type = choose(request.media_ranges, JSON_TYPES)
    if content_type is None:
        raise HttpError(HTTPStatus.NOT_ACCEPTABLE, f"Searches are answered in {JSON_TYPES[0]} only.")
    query = _Query.parse(request.query)
    groups: dict[str, list[StoredInstance]] = {}
    for stored in index.select(study_uid, series_uid):
        groups.setdefault(_location(stored, level), []).append(stored)
    given = {"study": study_uid is not None, "series": series_uid is not None, "instance": False}
    shown = [which for which in _LEVELS[: _LEVELS.index(level) + 1] if which == level or not given[which]]
    results = []
    for members in groups.values():
        matching = (
            whole
            for whole in (_whole(index, stored, level) for stored in members)
            if all(_matches(whole, tags, pattern) for tags, pattern in query.matches)
        )
        whole = next(matching, None)
        if whole is not None:
            results.append(_result(whole, shown, level, query))
    stop = None if query.limit is None else query.offset + query.limit
    results = results[query.offset : stop]
    if not results:
        return Answer(b"", status=HTTPStatus.NO_CONTENT)
    return json_answer(dump(results), request, content_type)


def _whole(index: Index, stored: StoredInstance, level: Level) -> JsonDataset:
    """Return all that is known of an instance and of what it belongs to."""
    return {
        **stored.summary,
        **index.related[stored.study_uid, ""],
        **index.related[stored.study_uid, stored.series_uid],
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00081190": {"vr": "UR", "Value": [BASE + _location(stored, level)]},
        "00083002": {"vr": "UI", "Value": [stored.transfer_syntax_uid]},
    }


def _location(stored: StoredInstance, level: Level) -> str:
    below = {"study": "/series/", "series": "/instances/", "instance": "/frames/"}[level]
    return stored.location.partition(below)[0]


def _result(whole: JsonDataset, shown: Sequence[Level], level: Level, query: _Query) -> JsonDataset:
    tags = {tag for which in shown for tag in _ATTRIBUTES[which]} | {"00081190", *query.included}
    tags |= {_UID_TAGS[which] for which in _LEVELS[: _LEVELS.index(level) + 1]}
    return {tag: whole[tag] for tag in sorted(whole) if query.everything or tag in tags}


def _tags(name: str) -> tuple[str, ...]:
    """Return the tags of an attribute, given by keyword or in hexadecimal, down through sequences after dots."""
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415  (``import wsiweb.server`` stays light)

    tags = []
    for part in name.split("."):
        tag = int(part, 16) if re.fullmatch("[0-9A-Fa-f]{8}", part) else tag_for_keyword(part)
        if tag is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{name} is no attribute: neither keyword nor tag.")
        tags.append(f"{tag:08X}")
    return tuple(tags)


def _matches(dataset: JsonDataset, tags: tuple[str, ...], pattern: str) -> bool:
    """Whether a value of the attribute matches (PS3.4 C.2.2.2); nothing to match matches everything."""
    if pattern in ("", "*"):
        return True
    return any(_value_matches(vr, value, pattern) for vr, value in _values(dataset, tags))


def _values(dataset: JsonDataset, tags: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    element = dataset.get(tags[0], {})
    for value in element.get("Value", ()):
        if len(tags) > 1:
            if isinstance(value, dict):
                yield from _values(value, tags[1:])
        elif element["vr"] == "PN" and isinstance(value, dict):
            yield from (("PN", component) for component in value.values())
        else:
            yield element["vr"], value


def _value_matches(vr: str, value: Any, pattern: str) -> bool:
    if isinstance(value, int | float):
        try:
            return float(pattern) == value
        except ValueError:
            return False
    if vr == "UI":
        return str(value) in re.split(r"[,\\]", pattern)
    if vr in _RANGES and "-" in pattern:
        low, _, high = pattern.partition("-")
        return low <= str(value) and (not high or str(value)[: len(high)] <= high)
    # Unlike ".*" for each star, this does not try every way to share out the text between the stars.
    expression = fnmatch.translate(pattern.replace("[", "[[]"))
    return re.match(expression, str(value), re.IGNORECASE if vr == "PN" else 0) is not None
