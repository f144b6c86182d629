"""From a path to the resource that answers it (PS3.18 Tables 10.4.1-1 and 10.6.1-1)."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from wsiweb.server import qido, rendered, wado
from wsiweb.server.answer import HttpError

if TYPE_CHECKING:
    from wsiweb.server.answer import Answer, Request
    from wsiweb.server.index import Index, StoredInstance

_PLACE = re.compile(
    r"(?:/studies/(?P<study>[^/]+))?(?:/series/(?P<series>[^/]+))?(?:/instances/(?P<instance>[^/]+))?"
    r"(?P<rest>(?:/(?:studies|series|instances|metadata|rendered|thumbnail)|/frames/[^/]+(?:/rendered)?|/bulkdata/.+)?)"
)

# Path below (study, series, instance) and which of these are named -> what is searched for.
_SEARCHES: dict[tuple[str, bool, bool, bool], qido.Level] = {
    ("/studies", False, False, False): "study",
    ("/series", False, False, False): "series",
    ("/series", True, False, False): "series",
    ("/instances", False, False, False): "instance",
    ("/instances", True, False, False): "instance",
    ("/instances", True, True, False): "instance",
}


def answer(index: Index, request: Request) -> Answer:
    """Answer a request.

    Raises
    ------
    HttpError
        There is no such resource, or not in the form that is asked for.
    """
    found = _PLACE.fullmatch(request.path)
    if found is None:
        raise _unknown(request)
    study, series, instance, rest = found["study"], found["series"], found["instance"], found["rest"]
    level = _SEARCHES.get((rest, study is not None, series is not None, instance is not None))
    if level is not None:
        return qido.search(index, request, level, study, series)
    if not study or (instance and not series):
        raise _unknown(request)
    instances = index.select(study, series, instance)
    if not instances:
        raise HttpError(HTTPStatus.NOT_FOUND, f"There is nothing at {request.path:.200}.")
    if instance and rest not in ("/metadata", "/thumbnail", ""):
        return _of_instance(index, request, instances[0], rest)
    if rest == "/metadata":
        return wado.metadata(index, request, instances)
    if rest == "/thumbnail" and series:
        return rendered.thumbnail(index, request, instances)
    if rest:
        raise _unknown(request)
    return wado.whole_instances(request, instances)


def _of_instance(index: Index, request: Request, stored: StoredInstance, rest: str) -> Answer:
    """Answer what only instances have."""
    if rest == "/rendered":
        return rendered.instance(index, request, stored)
    _, kind, *details = rest.split("/")
    if kind == "bulkdata":
        return wado.bulk_data(request, stored, "/".join(details))
    if kind != "frames":
        raise _unknown(request)
    numbers = _frame_numbers(details[0], stored)
    if len(details) == 1:
        return wado.frames(request, stored, numbers)
    if len(numbers) > 1:
        raise HttpError(HTTPStatus.NOT_ACCEPTABLE, "Frames are rendered one at a time.")
    return rendered.frame(index, request, stored, numbers[0])


def _frame_numbers(text: str, stored: StoredInstance) -> list[int]:
    if not re.fullmatch(r"\d{1,10}(,\d{1,10})*", text, re.ASCII):
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{text:.80} is no list of frame numbers, such as 1,2,3.")
    numbers = [int(part) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise HttpError(HTTPStatus.BAD_REQUEST, "A frame number is named twice (PS3.18 10.4.1.1.6).")
    missing = [number for number in numbers if not 1 <= number <= stored.number_of_frames]
    if missing:
        raise HttpError(
            HTTPStatus.NOT_FOUND,
            f"{stored.instance_uid} has frames 1 to {stored.number_of_frames}, not {missing[0]}.",
        )
    return numbers


def _unknown(request: Request) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"{request.path:.200} is no resource of this service.")
