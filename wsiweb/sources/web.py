"""A series in a DICOMweb service: metadata, frames and bulk data over WADO-RS (PS3.18 10.4).

What arrived whole is kept, and only what is missing is asked for again.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

from wsiweb.dicomjson import Attributes
from wsiweb.errors import ProtocolError, SlideNotFoundError, SourceError, ThrottledError
from wsiweb.matching import SAFE_CHARACTERS
from wsiweb.metadata import VL_WHOLE_SLIDE_MICROSCOPY
from wsiweb.sources.accept import AcceptMemory
from wsiweb.sources.base import Cancellation
from wsiweb.sources.bodies import Whole, datasets_in, found_in, value_in
from wsiweb.sources.http import host_of, origin, same_origin
from wsiweb.sources.pace import TYPICAL_WAIT_SECONDS, Pace
from wsiweb.sources.quoting import without_secrets
from wsiweb.sources.retrieval import FrameRetrieval
from wsiweb.sources.retry import Patience, RefusedError, check_status, gate_of, raise_named, worth_repeating
from wsiweb.sources.services import UNKNOWN, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wsiweb.options import ReadOptions
    from wsiweb.sources.base import Advice, Found, FrameBatch, Frames, JsonDataset, Preview
    from wsiweb.sources.http import Service
    from wsiweb.sources.services import ServiceKind
    from wsiweb.stats import ReadStats

Read = TypeVar("Read")

MAX_METADATA_BYTES = 1 << 30
MAX_BULK_BYTES = 64 << 20
_DICOM_JSON = "application/dicom+json"
_BULK_MULTIPART = 'multipart/related; type="application/octet-stream"'  # all that Orthanc 1.7 gives
_BULK_SINGLE_PART = "application/octet-stream; transfer-syntax=*"  # all that Google gives


class WebSource:
    """One or more series of a study in a DICOMweb service. Safe to share between threads; pickles."""

    remote = True

    def __init__(self, service: Service, study_uid: str, series_uids: Sequence[str], options: ReadOptions) -> None:
        self.service = service
        self._study_uid = study_uid
        self._series_uids = tuple(series_uids)
        self._options = options
        self._kind: ServiceKind = recognise(service.base_url)
        self._wait_seconds = TYPICAL_WAIT_SECONDS
        self._accepts = AcceptMemory()
        self._start()

    def _start(self) -> None:
        self._gate = gate_of(self.service.base_url)
        self._closing = Cancellation()
        self._set_out(self._kind)

    def _set_out(self, kind: ServiceKind) -> None:
        """Begin with what is known of such a service."""
        self._kind = kind
        self._pace = Pace(self._options.max_connections, kind, wait_seconds=self._wait_seconds)
        self.stats.tell_of_service(self._pace.traits)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_gate", "_pace", "_closing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies are made for other processes: they share neither connections nor locks.
        self.__dict__.update(state, service=copy.copy(state["service"]), _accepts=copy.deepcopy(state["_accepts"]))
        self._start()

    @property
    def stats(self) -> ReadStats:
        """Counts requests, bytes and retries."""
        return self.service.stats

    @property
    def credentials(self) -> dict[str, object]:
        """Token or authentication object of the session."""
        return self.service.credentials

    def close(self) -> None:
        """Close the connections; who waits for an answer that is no frame is told."""
        self._closing.cancel()
        self.service.close()

    # Metadata and bulk data -----------------------------------------------------------------------

    def metadata(self) -> list[JsonDataset]:
        """Ask for the metadata of the series: one request a series, where the service serves it whole."""
        datasets: list[JsonDataset] = []
        for series_uid in self._series_uids:
            url = f"{self.service.wado_url}/studies/{self._study_uid}/series/{series_uid}"
            what = f"The series {series_uid} of study {self._study_uid}"
            found = self._get(f"{url}/metadata", _DICOM_JSON, self._met, what=what, limit_bytes=MAX_METADATA_BYTES)
            if not found:
                raise SlideNotFoundError(f"{without_secrets(url)} has no instances.")
            datasets += [self._whole(dataset, url) for dataset in found]
        return datasets

    def _met(self, answer: Whole) -> list[JsonDataset]:
        """Return the metadata in an answer, which shows what service it is; it says by 206 that some are missing."""
        if answer.status == 206:
            raise ProtocolError(f"{answer.url} answered with a part of the metadata only (206)", url=answer.url)
        kind = self._kind
        self._set_out(kind if kind is not UNKNOWN else recognise(self.service.base_url, answer.headers, answer.body))
        return datasets_in(answer)

    def _whole(self, dataset: JsonDataset, series_url: str) -> JsonDataset:
        """Ask for an instance by itself where the series' metadata are an extract (Orthanc's MainDicomTags)."""
        attributes = Attributes(dataset)
        uid, sop_class = attributes.string("SOPInstanceUID"), attributes.string("SOPClassUID")
        extract = "00280010" not in dataset or ("00480006" not in dataset and sop_class is not None)
        if not extract or uid is None or sop_class not in (None, VL_WHOLE_SLIDE_MICROSCOPY):
            return dataset
        whole = self._json(f"{series_url}/instances/{uid}/metadata", what=f"The metadata of instance {uid}")
        return whole[0] if whole else dataset

    def studies_of(self, series_uid: str) -> list[str]:
        """Return the studies that hold a series, by one QIDO-RS request."""
        found = self._json(
            f"{self.service.qido_url}/series",
            what=f"The series {series_uid}",
            parameters={"SeriesInstanceUID": series_uid, "limit": "2"},
        )
        # Not every service filters: take only what was asked for.
        items = [Attributes(item) for item in found]
        matching = [item for item in items if item.string("SeriesInstanceUID") in (series_uid, None)]
        return sorted({study for item in matching if (study := item.string("StudyInstanceUID"))})

    def find(self, path: str, parameters: dict[str, str]) -> Found:
        """Return what one QIDO-RS request finds; ``path`` is below the root of the search resources."""
        query = urlencode(parameters, safe=SAFE_CHARACTERS, quote_via=quote)
        url, what = f"{self.service.qido_url}{path}{query and '?'}{query}", f"A search for {path[1:]}"
        return self._get(url, _DICOM_JSON, found_in, what=what, limit_bytes=MAX_METADATA_BYTES)

    def slide_series(self) -> list[str]:
        """Return the slide microscopy series of the study, by one QIDO-RS request."""
        found = self._json(
            f"{self.service.qido_url}/studies/{self._study_uid}/series",
            what=f"Study {self._study_uid}",
            parameters={"Modality": "SM"},
        )
        items = [Attributes(item) for item in found]
        matching = [item for item in items if item.string("Modality") in ("SM", None)]
        return sorted({series for item in matching if (series := item.string("SeriesInstanceUID"))})

    def fetch_bulk(self, uri: str, whole: Callable[[bytes], bool] = bool) -> bytes:
        """Return the value behind a BulkDataURI of this service.

        One that is not ``whole`` is asked for again; what comes twice is what is stored.
        """
        *others, last = self._bulk_urls(uri)
        for url in others:
            try:
                return self._bulk(url, whole)
            except SourceError as error:
                if error.status not in (404, 410):
                    raise
        return self._bulk(last, whole)

    def _bulk(self, url: str, whole: Callable[[bytes], bool]) -> bytes:
        value = self._value(url)
        if whole(value):
            return value
        again = self._value(url)
        if again != value and not whole(again):
            where = without_secrets(url)
            came = f"{len(value):,} bytes and {len(again):,} bytes"
            raise ProtocolError(f"A bulk data value of {where} came incomplete twice: {came}.", url=where)
        return again

    def _value(self, url: str) -> bytes:
        what = "A bulk data value"
        try:
            return self._get(url, _BULK_MULTIPART, value_in, what=what, limit_bytes=MAX_BULK_BYTES)
        except SlideNotFoundError as error:
            status = getattr(error.__cause__, "status", None)
            raise SourceError(f"{what} is not there: {error}", url=without_secrets(url), status=status) from error
        except SourceError as error:
            if error.status not in (400, 406, 415):
                raise
            return self._get(url, _BULK_SINGLE_PART, value_in, what=what, limit_bytes=MAX_BULK_BYTES)

    def _bulk_urls(self, uri: str) -> list[str]:
        """Resolve a BulkDataURI: relative to the metadata (RFC 3986 5.1.3), or to the study, as some mean it."""
        study = f"{self.service.wado_url}/studies/{self._study_uid}/"
        bases = [f"{study}series/{series_uid}/" for series_uid in self._series_uids]
        bases.insert(0 if uri.startswith("series/") else len(bases), study)
        return list(dict.fromkeys(self._bulk_url(base, uri) for base in bases))

    def _bulk_url(self, base: str, uri: str) -> str:
        """Resolve a BulkDataURI; mend the host where a proxy, or a lost port, made the server write another."""
        root = self.service.wado_url
        try:
            url = urljoin(base, uri)
            _, host, _ = origin(url)
            if same_origin(url, root):
                return url
        except ValueError as error:
            raise ProtocolError(f"The metadata refer to bulk data by what is no URL: {error}.", url=root) from error
        parts, here = urlsplit(url), urlsplit(root)
        before, within, rest = parts.path.partition(f"/studies/{self._study_uid}/")
        trusted = host is not None and host in map(host_of, self._options.trusted_hosts)
        # A proxy before the service may change the scheme and the beginning of paths, too; a host that is trusted is
        # asked for what only it has.
        if within and (not trusted or (parts.scheme, before) == (here.scheme, here.path.rstrip("/"))):
            return f"{root}{within}{rest}{parts.query and '?'}{parts.query}"
        where = without_secrets(url)
        if here.scheme == "https" and parts.scheme != "https":
            reason = "which is not https, as this service is"
        elif trusted:
            return url
        else:
            reason = (
                "which is not this service. To trust it, name its host without its port in ReadOptions.trusted_hosts"
            )
        raise SourceError(f"The metadata refer to bulk data at {where}, {reason}; it is not fetched.", url=where)

    def _json(self, url: str, *, what: str, parameters: dict[str, str] | None = None) -> list[JsonDataset]:
        return self._get(
            url, _DICOM_JSON, datasets_in, what=what, limit_bytes=MAX_METADATA_BYTES, parameters=parameters
        )

    def _get(
        self,
        url: str,
        accept: str,
        read: Callable[[Whole], Read],
        *,
        what: str,
        limit_bytes: int,
        parameters: dict[str, str] | None = None,
    ) -> Read:
        """Return what ``read`` finds in a whole answer, however many attempts it takes."""
        patience = Patience(what, self._options.max_attempts, self._gate)
        deadline = time.monotonic() + self._options.deadline_seconds
        while True:
            if not self._gate.wait(self._closing, deadline):
                self._check_open(what)
                raise ThrottledError(
                    f"{what} was not asked for: the service asks to wait beyond deadline_seconds. Try again later.",
                    url=without_secrets(url),
                )
            error: SourceError | RefusedError
            try:
                asked = time.monotonic()
                with self.service.get(
                    url, accept, parameters=parameters, cancellation=self._closing, deadline=deadline
                ) as answer:
                    self._wait_seconds = time.monotonic() - max(asked, answer.connected_at)
                    body = b""
                    if answer.status != 204 or accept != _DICOM_JSON:  # 204 has no datasets
                        check_status(answer, what, advice=self._kind.advice)
                        body = answer.read(limit_bytes, deadline=deadline)
                    whole = Whole(without_secrets(url), answer.status, answer.headers, body, answer.quote)
                self._check_open(what)  # what came may be what had come by then
                return read(whole)
            except (RefusedError, SourceError) as caught:
                self._check_open(what)
                if not worth_repeating(caught, reached=self.service.reached):
                    raise_named(caught, what)
                error = caught
            wait = patience.seconds_after(error)
            if time.monotonic() + wait > deadline:
                raise patience.given_up(error) from error
            self._closing.sleep(wait)
            self.stats.add(retries=1)

    def _check_open(self, what: str) -> None:
        if self._closing.cancelled:
            raise SourceError(f"{what} was not asked for to the end: the slide was closed.")

    # Frames ---------------------------------------------------------------------------------------

    def fetch(self, batch: FrameBatch, cancellation: Cancellation, preview: Preview | None = None) -> Iterator[Frames]:
        """Yield each frame of the batch once, as they arrive; asks again for what does not."""
        address = batch.address
        url = (
            f"{self.service.wado_url}/studies/{address.study_uid or self._study_uid}/series/{address.series_uid}"
            f"/instances/{address.instance_uid}/frames/"
        )
        retrieval = FrameRetrieval(
            self.service,
            self._gate,
            self._pace,
            self._accepts,
            self._options.max_attempts,
            url,
            batch,
            cancellation,
            preview,
        )
        return retrieval.run()

    def advise(self, frames: int, reads: int) -> Advice:
        """Return how so many frames of one of so many reads are best asked for, by what the service has shown."""
        return self._pace.advise(frames, reads)
