"""From what a user calls a slide (a URL, a client, a folder) to a source and its instances."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import requests
from requests.structures import CaseInsensitiveDict

from wsiweb.addresses import UID, check_path, no_service, nothing_named, split_series_url, web_url
from wsiweb.bulk import fill_in
from wsiweb.errors import AuthenticationError, MetadataError, MetadataWarning, SlideNotFoundError
from wsiweb.metadata import Instance
from wsiweb.sources.http import Service
from wsiweb.sources.sessions import TokenAuth
from wsiweb.sources.web import WebSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requests.auth import AuthBase

    from wsiweb.options import ReadOptions
    from wsiweb.sources.base import FrameSource, JsonDataset
    from wsiweb.sources.disk import DiskCache

logger = logging.getLogger("wsiweb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a service; every field as ``Slide.open`` takes it.

    Raises
    ------
    AuthenticationError
        One is of a kind that cannot be used. Values are not shown: they may be secrets.
    """

    auth: AuthBase | tuple[str, str] | None = None
    token: str | Callable[[], str] | None = None
    headers: dict[str, str] | None = None
    session: requests.Session | None = None
    verify: bool | str | None = None
    cert: str | tuple[str, str] | None = None
    qido_url_prefix: str | None = None
    wado_url_prefix: str | None = None

    def __post_init__(self) -> None:
        pair: Any = self.auth
        if pair is not None and not callable(pair) and not (isinstance(pair, tuple) and _are_two(pair, str, bytes)):
            what = "a tuple that is none" if isinstance(pair, tuple) else type(pair).__name__
            raise AuthenticationError(f"auth= is a requests.auth.AuthBase or a (user, password) pair, not {what}.")
        headers: Any = self.headers
        if headers and not isinstance(headers, Mapping):
            raise AuthenticationError(f"headers= is a mapping of names to values, not {type(headers).__name__}.")
        odd = next((name for name in headers or () if not isinstance(name, str)), None)
        if odd is not None:
            raise AuthenticationError(f"headers= has names that are text, not {type(odd).__name__}.")
        session: Any = self.session
        if session is not None and not isinstance(session, requests.Session):
            what = "the class: requests.Session()" if isinstance(session, type) else type(session).__name__
            raise AuthenticationError(f"session= is a requests.Session, not {what}.")
        paths = str, os.PathLike
        kinds: tuple[tuple[str, Any, bool, str], ...] = (
            ("verify", self.verify, isinstance(self.verify, (bool, *paths)), "True, False or a path"),
            ("cert", self.cert, isinstance(self.cert, paths) or _are_two(self.cert, *paths), "one path, or two"),
            ("qido_url_prefix", self.qido_url_prefix, isinstance(self.qido_url_prefix, str), "text"),
            ("wado_url_prefix", self.wado_url_prefix, isinstance(self.wado_url_prefix, str), "text"),
        )
        for name, value, fits, what in kinds:
            if value is not None and not fits:
                raise AuthenticationError(f"{name}= is {what}, not {type(value).__name__}.")
            if value == "" and name in ("verify", "cert"):  # requests would do without
                raise AuthenticationError(f"{name}= is {what}, not an empty one.")


def _are_two(value: Any, *kinds: type) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, kinds) for part in value)


def report(problem: str) -> None:
    """Warn of what costs a part of a slide, but not the slide."""
    logger.warning(problem)
    warnings.warn(problem, MetadataWarning, stacklevel=_outside_level())


def _outside_level() -> int:
    """Return the stack level of the user's own line."""
    import sys  # noqa: PLC0415

    level, frame = 2, sys._getframe(2)  # noqa: SLF001  (what warnings itself does)
    package = str(Path(__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
        level += 1
    return level


def open_source(
    place: Any,
    study_uid: str | None,
    series_uids: tuple[str, ...],
    connection: Connection,
    options: ReadOptions,
) -> FrameSource:
    """Return the source that ``place`` names; see ``Slide.open`` for its forms."""
    study: Any = study_uid
    if study is not None and not isinstance(study, str):
        raise SlideNotFoundError(f"study_uid is a UID as text, not {study!r:.80}.")
    url = web_url(place)
    if url is not None:
        return _web_source(url, study_uid, series_uids, connection, options)
    if isinstance(place, str):
        check_path(place, listed=False)
    if isinstance(place, (str, os.PathLike)):
        return _local_source([place], study_uid, series_uids)
    if isinstance(place, (list, tuple)):
        return _local_source(place, study_uid, series_uids)
    if getattr(place, "scheme", None) == "file" and isinstance(getattr(place, "base_url", None), str):
        # A DICOMfileClient is bound to its thread; the folder below it is not.
        return _local_source([place.base_url], study_uid, series_uids)
    return _client_source(place, study_uid, series_uids, connection, options)


def _local_source(
    paths: Sequence[str | os.PathLike[str]], study_uid: str | None, series_uids: tuple[str, ...]
) -> FrameSource:
    from wsiweb.sources.local import LocalSource  # noqa: PLC0415

    for path in paths:
        if isinstance(path, str):
            check_path(path, listed=True)
        elif not isinstance(path, os.PathLike):
            raise SlideNotFoundError(f"A list names files and folders, and no {type(path).__name__}.")
    paths = [
        unquote(urlsplit(path).path) if isinstance(path, str) and path.startswith("file://") else path for path in paths
    ]
    if not paths or not all(os.fspath(path) for path in paths):
        raise SlideNotFoundError("An empty list of files, or an empty path, names no slide.")
    return LocalSource(paths, study_uid=study_uid, series_uids=series_uids, report=report)


def _web_source(
    url: str,
    study_uid: str | None,
    series_uids: tuple[str, ...],
    connection: Connection,
    options: ReadOptions,
) -> FrameSource:
    _, _, study, series = split_series_url(url)
    service = service_at(url, connection, options)
    if not (study_uid or study or series_uids or series):
        raise nothing_named(url)
    return _service_source(service, study_uid or study, series_uids or series, options)


def service_at(url: str, connection: Connection, options: ReadOptions) -> Service:
    """Return the service that a URL (of its root, of a study or of a series) lies in; makes no request.

    Raises
    ------
    SlideNotFoundError
        It is no such URL.
    AuthenticationError
        There are ``auth`` and ``token``.
    """
    base_url, user_password, study, _ = split_series_url(url)
    if connection.wado_url_prefix and study is not None:
        base_url = base_url.removesuffix(f"/{connection.wado_url_prefix.strip('/')}")
    session = connection.session or requests.Session()
    if connection.session is not None:  # not ours to change
        session = object.__new__(type(connection.session))
        session.__dict__.update(connection.session.__dict__)
        session.headers = CaseInsensitiveDict(connection.session.headers)
    # AWS HealthImaging takes an imageSetId there, say.
    session.params = {**session.params, **dict(parse_qsl(urlsplit(url.strip()).query))}  # type: ignore[dict-item]
    if user_password is not None:
        session.auth = user_password
    if connection.auth is not None:
        session.auth = connection.auth
    if connection.token is not None:
        if connection.auth is not None:
            raise AuthenticationError("auth= and token= are two ways to log in; pass one of them.")
        session.auth = TokenAuth(connection.token)
    if connection.headers:
        session.headers.update(connection.headers)
    if connection.verify is not None:
        session.verify = connection.verify
    if connection.cert is not None:
        session.cert = connection.cert
    return Service(
        base_url,
        session,
        qido_url_prefix=connection.qido_url_prefix,
        wado_url_prefix=connection.wado_url_prefix,
        connections=options.max_connections,
        timeout_seconds=options.timeout_seconds,
    )


def searchable(place: Any, connection: Connection, options: ReadOptions) -> WebSource:
    """Return what asks a service, named by a URL or a client, for slides.

    Raises
    ------
    SlideNotFoundError
        It names no service.
    """
    if web_url(place) is not None:
        return WebSource(service_at(place, connection, options), "", (), options)
    if isinstance(place, (str, os.PathLike)):
        raise no_service(place)
    service = service_of(place, options)
    if service is None or connection != Connection():
        raise SlideNotFoundError(
            f"A search goes to the URL of a DICOMweb service, or to a DICOMwebClient with credentials of its own, not "
            f"to {type(place).__name__}."
        )
    return WebSource(service, "", (), options)


def service_of(client: Any, options: ReadOptions) -> Service | None:
    """Return the service of a ``DICOMwebClient``; None of an object that is none, or has ways of its own."""
    from dicomweb_client import DICOMwebClient  # noqa: PLC0415

    plain = (
        isinstance(client, DICOMwebClient)
        and type(client)._http_get is DICOMwebClient._http_get  # noqa: SLF001
        and isinstance(getattr(client, "_session", None), requests.Session)
    )
    if not plain:
        return None
    return Service(
        str(client.base_url),
        client._session,  # noqa: SLF001  (it has been there for years, and is all that the client would use)
        qido_url_prefix=client.qido_url_prefix,
        wado_url_prefix=client.wado_url_prefix,
        connections=options.max_connections,
        timeout_seconds=options.timeout_seconds,
    )


def _client_source(
    client: Any,
    study_uid: str | None,
    series_uids: tuple[str, ...],
    connection: Connection,
    options: ReadOptions,
) -> FrameSource:
    from wsiweb.sources.client import ClientSource  # noqa: PLC0415

    if not callable(getattr(client, "retrieve_instance_frames", None)):
        raise SlideNotFoundError(
            f"A slide is opened by a URL, a path, a list of paths or a DICOMweb client, not by {type(client).__name__}."
        )
    if connection != Connection():
        raise ValueError(
            "auth, token, headers, session, verify, cert and URL prefixes go with a URL. A client brings its own."
        )
    service = service_of(client, options)
    if service is not None:
        return _service_source(service, study_uid, series_uids, options)
    if study_uid is None or not series_uids:
        raise SlideNotFoundError("This client needs study_uid= and series_uid=.")
    source = ClientSource(client, study_uid, series_uids)
    if options.disk_cache is None:
        return source
    base_url, prefix = getattr(client, "base_url", None), getattr(client, "wado_url_prefix", None)
    if not isinstance(base_url, str):
        logger.warning("disk_cache is not used: this client has no base_url by which to keep what it answers.")
        return source
    url = f"{base_url}/{prefix.strip('/')}" if isinstance(prefix, str) else base_url
    return _disk_cache(url, options).around(source, study_uid, series_uids)


def _disk_cache(url: str, options: ReadOptions) -> DiskCache:
    """Return what is kept on disk of the service at ``url``."""
    from wsiweb.sources.disk import DiskCache  # noqa: PLC0415

    return DiskCache(
        str(Path(os.fspath(options.disk_cache or "")).expanduser().absolute()),
        limit_bytes=options.disk_cache_bytes,
        max_age_seconds=options.disk_cache_seconds,
        service_url=url,
    )


def _service_source(
    service: Service,
    study_uid: str | None,
    series_uids: tuple[str, ...],
    options: ReadOptions,
) -> FrameSource:
    for uid in (study_uid, *series_uids):
        if uid is not None and not UID.fullmatch(uid):
            raise SlideNotFoundError(f"{uid!r:.80} is no UID; it is asked for nowhere.")
    cache = _disk_cache(service.wado_url, options) if options.disk_cache is not None else None
    lookup = cache.lookup if cache is not None else _looked_up
    if study_uid is None and not series_uids:
        raise SlideNotFoundError(
            f"{service.base_url} is the root of a service. Name the slide: series_uid= (--series on the command line), "
            f"or a URL that ends in /studies/.../series/..."
        )
    if study_uid is None:
        searched = WebSource(service, "", series_uids, options)
        studies = lookup("studies of", series_uids[0], lambda: searched.studies_of(series_uids[0]))
        if len(studies) != 1:
            found = (
                "it is in no study" if not studies else f"it is in {len(studies)} studies; pass study_uid= (--study)"
            )
            raise SlideNotFoundError(f"The series {series_uids[0]} was searched for at {service.base_url}: {found}.")
        study_uid = studies[0]
    elif not series_uids:
        searched = WebSource(service, study_uid, (), options)
        found_series = lookup("slides of", study_uid, searched.slide_series)
        if len(found_series) != 1:
            listed = ", ".join(found_series) or "none"
            raise SlideNotFoundError(
                f"Study {study_uid} has {len(found_series)} series of slide microscopy (Modality SM): {listed}. "
                f"Name one with series_uid= (--series on the command line)."
            )
        series_uids = tuple(found_series)
    source = WebSource(service, study_uid, series_uids, options)
    return source if cache is None else cache.around(source, study_uid, series_uids)


def _looked_up(what: str, uid: str, ask: Callable[[], list[str]]) -> list[str]:  # noqa: ARG001  (as DiskCache.lookup)
    return ask()


def instances_of(
    source: FrameSource, *, photometric: str | None, report: Callable[[str], None]
) -> tuple[list[Instance], list[JsonDataset]]:
    """Ask for the metadata; return the whole-slide instances and their datasets.

    A malformed instance is reported and left out.

    Raises
    ------
    SlideNotFoundError
        There is no VOLUME image; says what there is.
    MetadataError
        The only VOLUME images are malformed.
    """
    instances: dict[str, tuple[Instance, JsonDataset]] = {}
    problems = []
    datasets = source.metadata()
    for given in datasets:
        try:
            dataset = fill_in(given, source, report) if source.remote else given
            instance = Instance.from_json(dataset)
        except MetadataError as error:
            problems.append(str(error))
            continue
        if instance is not None:
            if photometric is not None and instance.flavor == "VOLUME":
                pixels = replace(instance.pixels, photometric=photometric, photometric_forced=True)
                instance = replace(instance, pixels=pixels)
            instances.setdefault(instance.address.instance_uid, (instance, dataset))
    if not any(instance.flavor == "VOLUME" for instance, _ in instances.values()):
        if problems:
            raise MetadataError(f"No image of this slide can be read. {' '.join(problems)}")
        raise SlideNotFoundError(f"There is no whole-slide image among {_inventory(datasets)}.")
    for problem in problems:
        report(f"{problem} It is left out.")
    return [instance for instance, _ in instances.values()], [dataset for _, dataset in instances.values()]


def _inventory(datasets: Sequence[JsonDataset]) -> str:
    """Say what there is instead of a slide."""
    from wsiweb.dicomjson import Attributes  # noqa: PLC0415

    kinds: dict[str, int] = {}
    for dataset in datasets:
        attributes = Attributes(dataset)
        kind = " ".join(filter(None, (attributes.string("Modality"), "\\".join(attributes.strings("ImageType")))))
        kinds[kind or "unknown"] = kinds.get(kind or "unknown", 0) + 1
    return ", ".join(f"{count} instance{'s' if count > 1 else ''} of {kind}" for kind, count in kinds.items())
