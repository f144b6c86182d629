"""``examine``: the order of the checks, what each needs of those before it, and the conclusion."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

from wsiweb import opening
from wsiweb.addresses import no_service, split_series_url, web_url
from wsiweb.dicomjson import Attributes
from wsiweb.doctor import costs, frames, service
from wsiweb.doctor.report import Check, Report, secrets_of
from wsiweb.doctor.slide import ToldSource, check_metadata, check_slide
from wsiweb.doctor.subject import Subject
from wsiweb.doctor.wire import Budget, WatchedService
from wsiweb.errors import WsiWebError
from wsiweb.options import ReadOptions, chosen
from wsiweb.reader import Reader
from wsiweb.sources.quoting import without_secrets
from wsiweb.sources.retry import UnreachableError
from wsiweb.sources.services import recognise

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests
    from requests.auth import AuthBase

    from wsiweb.content import SlideContent
    from wsiweb.stats import ServiceTraits

MEGABYTES = 10.0
MAX_REQUESTS = 40
"""About 25 are made; more where a service refuses some, or gives its metadata instance by instance."""
MAX_SECONDS = 180.0
SECONDS_PER_REQUEST = 60.0
TIMEOUT_SECONDS = 20.0
_OF_A_SLIDE = ("metadata", "slide", "single frames", "frame lists", "media types", "latency", "throughput", "bulk data")


def examine(
    place: str,
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    auth: AuthBase | tuple[str, str] | None = None,
    token: str | Callable[[], str] | None = None,
    headers: dict[str, str] | None = None,
    session: requests.Session | None = None,
    verify: bool | str | None = None,
    cert: str | tuple[str, str] | None = None,
    qido_url_prefix: str | None = None,
    wado_url_prefix: str | None = None,
    options: ReadOptions | None = None,
    megabytes: float = MEGABYTES,
) -> Report:
    """Find out what works on a DICOMweb service, and what it costs.

    Makes about 25 requests, never more than 40, each with a timeout. What goes wrong is in the report, and stops
    no other check, unless the service cannot be reached at all.

    Parameters
    ----------
    place
        URL of a series, of a study, or of the service's root: a slide is then searched for.
    study_uid, series_uid
        Which slide, where ``place`` does not say.
    auth, token, headers, session, verify, cert, qido_url_prefix, wado_url_prefix
        As for ``Slide.open``. None of them is in the report.
    options
        As for ``Slide.open``; but every request is made once. By default with a timeout of 20 s, and 60 s for a
        whole answer.
    megabytes
        Received at most, beside the metadata.

    Returns
    -------
    The findings; ``report.readable`` tells whether a slide can be read.

    Raises
    ------
    SlideNotFoundError
        ``place`` is no URL.
    AuthenticationError
        ``auth`` is nothing that can be sent.
    """
    if not 0 < megabytes < math.inf:
        raise ValueError(f"megabytes is a number above 0, not {megabytes!r}.")
    seen: list[str] = []
    token = _overheard(token, seen) if callable(token) else token
    connection = opening.Connection(
        auth=auth, token=token, headers=headers, session=session, verify=verify,
        cert=cert, qido_url_prefix=qido_url_prefix, wado_url_prefix=wado_url_prefix,
    )  # fmt: skip
    patience = ReadOptions(timeout_seconds=TIMEOUT_SECONDS, deadline_seconds=SECONDS_PER_REQUEST)
    options = chosen(options, patience)
    options = replace(options, max_attempts=1, decode_threads=costs.AT_ONCE)
    url = web_url(place)
    if url is None:
        raise no_service(place)
    _, _, study, series = split_series_url(url)
    budget = Budget(MAX_REQUESTS, int(megabytes * 1e6), MAX_SECONDS, min(options.deadline_seconds, SECONDS_PER_REQUEST))
    watched = WatchedService(opening.service_at(url, connection, options), budget)
    examination = _Examination(watched, options, _credentials(connection, watched.credentials.get("auth")))
    try:
        report = examination.run(study_uid or study, series_uid or next(iter(series), None))
    finally:
        watched.close()
    parts = urlsplit(url)
    given = [value for pair in parse_qsl(parts.query) for value in (pair[1], quote(pair[1]), quote_plus(pair[1]))]
    return report.without(
        {*secrets_of(connection, watched.credentials.get("auth"), [*given, parts.password or ""]), *seen}
    )


def _overheard(supplier: Callable[[], str], seen: list[str]) -> Callable[[], str]:
    """Return a supplier of tokens that adds each of them to ``seen``."""

    def supply() -> str:
        found = supplier()
        seen.append(str(found))
        return found

    return supply


def _credentials(connection: opening.Connection, auth: object) -> list[str]:
    """Name the kinds of credentials that go along; ``auth`` is the session's, where that is no token."""
    kinds = {
        "a bearer token": connection.token is not None,
        "user and password": isinstance(auth, tuple),
        "an authentication object": auth is not None and not isinstance(auth, tuple),
        f"headers ({', '.join(connection.headers or ())})": bool(connection.headers),
        "a client certificate": connection.cert is not None or getattr(connection.session, "cert", None) is not None,
    }
    return [kind for kind, given in kinds.items() if given]


class _Examination:
    """One run through all checks."""

    def __init__(self, watched: WatchedService, options: ReadOptions, credentials: list[str]) -> None:
        self._service = watched
        self._options = options
        self._credentials = credentials
        self._checks: dict[str, Check] = {}
        self._traits: ServiceTraits | None = None
        self._accept: str | None = None
        self._readable = False

    def run(self, study: str | None, series: str | None) -> Report:
        """Make all checks."""
        started, watched = time.monotonic(), self._service
        way = service.try_the_way(watched.base_url, timeout_seconds=self._options.timeout_seconds)
        first, second = self._search()
        exchanges = watched.exchanges
        redirected = watched.stats.requests > len(exchanges)
        self._add(service.check_reach(watched.base_url, way, exchanges[0], redirected=redirected))
        kind = recognise(watched.base_url)
        if isinstance(exchanges[0].error, UnreachableError) and not redirected:
            self._skip(("authentication", "search", *_OF_A_SLIDE, "quota"), "The service cannot be reached.")
        else:
            self._add(service.check_search(first, second))
            study, series, problem = self._slide_uids(study, series, first)
            if problem:
                self._add(
                    Check("metadata", "skipped", problem, "Name a slide: a URL that ends in /studies/.../series/...")
                )
            else:
                self._examine_slide(study or "", series or "", way.connect_seconds)
            self._skip(_OF_A_SLIDE, "This needs a slide that opens, and a frame that comes.")
            self._add(service.check_quota(watched))
            self._add(service.check_authentication(exchanges, self._credentials, kind.advice))
        names = ("reach", "authentication", "search", *_OF_A_SLIDE, "quota")
        return Report(
            url=without_secrets(watched.base_url),
            study_uid=study,
            series_uid=series,
            readable=self._readable,
            checks=tuple(self._checks[name] for name in names),
            conclusion=self._conclusion(),
            service=self._traits,
            requests=watched.stats.requests,
            bytes=watched.stats.bytes,
            seconds=round(time.monotonic() - started, 3),
        )

    def _add(self, check: Check) -> Check:
        self._checks[check.name] = check
        return check

    def _skip(self, names: tuple[str, ...], reason: str) -> None:
        for name in names:
            self._checks.setdefault(name, Check(name, "skipped", reason))

    # The slide ------------------------------------------------------------------------------------

    def _search(self) -> tuple[service.Found, service.Found | None]:
        url = f"{self._service.qido_url}/series"
        first = service.search(self._service, url, {"Modality": "SM", "limit": "2"})
        if not first.items:
            return first, None
        return first, service.search(self._service, url, {"Modality": "SM", "limit": "1", "offset": "1"})

    def _slide_uids(
        self, study: str | None, series: str | None, found: service.Found
    ) -> tuple[str | None, str | None, str]:
        """Return study, series, and what is missing if one of them is."""
        if study is not None and series is not None:
            return study, series, ""
        try:
            if study is not None:
                listed = ToldSource(self._service, study, (), self._options).slide_series()
                return study, next(iter(listed), None), "" if listed else f"Study {study} has no slides (Modality SM)."
            if series is not None:
                listed = ToldSource(self._service, "", (series,), self._options).studies_of(series)
                return next(iter(listed), None), series, "" if listed else f"The series {series} is in no study."
        except WsiWebError as error:
            return study, series, str(error)
        for item in map(Attributes, found.items):
            study, series = item.string("StudyInstanceUID"), item.string("SeriesInstanceUID")
            if study and series and item.string("Modality") in ("SM", None):
                return study, series, ""
        return None, None, "The search brought no slide to try."

    def _examine_slide(self, study: str, series: str, round_trip_seconds: float | None) -> None:
        source = ToldSource(self._service, study, (series,), self._options)
        if self._add(check_metadata(source, self._service)).status == "failed":
            return
        check, content = check_slide(source)
        self._add(check)
        if content is not None:
            reader = Reader(source, content.instances, self._options)
            try:
                self._examine_frames(reader, content, round_trip_seconds)
            finally:
                reader.close()
            self._traits = source.stats.service

    def _examine_frames(self, reader: Reader, content: SlideContent, round_trip_seconds: float | None) -> None:
        watched, lead = self._service, content.pyramids[0].lead_uid
        volumes = [instance for instance in content.instances if instance.flavor == "VOLUME"]
        base = Subject(next(instance for instance in volumes if instance.address.instance_uid == lead))
        # Some services transcode a whole instance for one frame: what may cost that is tried on the smallest.
        small = Subject(min(volumes, key=lambda instance: instance.number_of_frames))
        single = frames.check_single(reader, watched, base)
        self._add(single.check)
        self._readable, self._accept = single.readable, single.accept
        if single.accept is not None:
            listed = self._add(frames.check_list(watched, base, single.accept))
            self._add(costs.check_latency(reader, watched, base, round_trip_seconds))
            self._add(costs.check_throughput(reader, watched, base, lists=listed.status == "ok"))
        self._add(frames.check_media_types(watched, small, single.transfer_syntax_uid))
        self._add(frames.check_bulk_data(reader, watched, volumes))

    # The conclusion -------------------------------------------------------------------------------

    def _conclusion(self) -> str:
        failed = next((check for check in self._checks.values() if check.status == "failed"), None)
        if not self._readable:
            why = f"{failed.name}: {failed.finding}" if failed else "no slide was found to try."
            return f"No slide could be read here. {why}"
        traits, nature = self._traits, self._checks["single frames"].figures.get("nature")
        said = [f"Slides can be read here. Frames are asked for with [{self._accept}] and come {nature}."]
        if traits is not None:
            said.append(_plan_of(traits))
        if "came" not in self._checks["frame lists"].figures and self._checks["frame lists"].status == "warning":
            said.append("As lists of frames do not work here, pass ReadOptions(frames_per_request=1).")
        return " ".join(said)


def _plan_of(traits: ServiceTraits) -> str:
    """Say how a service will be asked for frames, and why."""
    known = "" if traits.kind == "unknown" else f"It is recognised as {traits.kind}. "
    spread = "few requests" if traits.requests_at_once == 1 else f"{traits.requests_at_once} requests at once"
    plan = f"{known}A large read will be spread over {spread}, of up to {traits.frames_per_request} frames each"
    reasons = []
    if traits.seconds_per_request is not None and traits.seconds_per_frame is not None:
        each = traits.seconds_per_frame * 1000
        reasons.append(f"a request costs {traits.seconds_per_request * 1000:.1f} ms, and each frame {each:.2f} ms more")
    if traits.parallel_requests is not None:
        reasons.append(f"the service works on about {traits.parallel_requests:.1f} requests at once")
    if traits.throttled:
        reasons.append("it has asked for patience")
    return f"{plan}{': ' if reasons else ''}{', and '.join(reasons)}."
