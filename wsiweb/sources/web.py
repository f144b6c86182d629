"""A series in a DICOMweb service: metadata, frames and bulk data over WADO-RS (PS3.18 10.4).

What arrived whole is kept, and only what is missing is asked for again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from wsiweb import transfer_syntaxes
from wsiweb.dicomjson import loads
from wsiweb.errors import AuthenticationError, ProtocolError, SlideNotFoundError, SourceError
from wsiweb.sources.answers import frames_in
from wsiweb.sources.base import Cancellation
from wsiweb.sources.http import Answer, UnreachableError, readable_error, same_origin, without_secrets
from wsiweb.sources.multipart import MultipartParser, parse_content_type
from wsiweb.sources.retry import Action, Gate, Patience, RefusedError, action_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsiweb.options import ReadOptions
    from wsiweb.sources.base import EncodedFrame, FrameBatch, JsonDataset
    from wsiweb.sources.http import Service
    from wsiweb.stats import ReadStats

MAX_METADATA_BYTES = 1 << 30
MAX_BULK_BYTES = 64 << 20
_DICOM_JSON = "application/dicom+json"
_NATIVE = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
_ANYTHING = 'multipart/related; type="*/*"; transfer-syntax=*'
_DECOMPRESSED = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'
_SINGLE_PART = "application/octet-stream; transfer-syntax=*"
_REPEATS_OF_500 = 2
"""A 500 may be weather (IDC's proxy hides Google's throttling in it); more of them mean the request itself."""


class WebSource:
    """One or more series of a study in a DICOMweb service. Safe to share between threads; pickles."""

    remote = True

    def __init__(
        self, service: Service, study_uid: str, series_uids: Sequence[str], options: ReadOptions
    ) -> None:
        self.service = service
        self._study_uid = study_uid
        self._series_uids = tuple(series_uids)
        self._options = options
        self._accepts: dict[str | None, str] = {}  # what has worked, by stored transfer syntax
        self._gate = Gate()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_gate"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._gate = Gate()

    @property
    def stats(self) -> ReadStats:
        """Counts requests, bytes and retries."""
        return self.service.stats

    def close(self) -> None:
        """Close the connections."""
        self.service.close()

    # Metadata and bulk data -----------------------------------------------------------------------

    def metadata(self) -> list[JsonDataset]:
        """Ask for the metadata of the series: one request a series, where the service serves it whole."""
        datasets: list[JsonDataset] = []
        for series_uid in self._series_uids:
            url = f"{self.service.wado_url}/studies/{self._study_uid}/series/{series_uid}"
            found = self._json(f"{url}/metadata", what=f"The series {series_uid} of study {self._study_uid}")
            if not found:
                raise SlideNotFoundError(f"{without_secrets(url)} has no instances.")
            datasets += [self._whole(dataset, url) for dataset in found]
        return datasets

    def _whole(self, dataset: JsonDataset, series_url: str) -> JsonDataset:
        """Ask for an instance by itself where the series' metadata are an extract (Orthanc's MainDicomTags)."""
        uid = _value(dataset, "00080018")
        if "00280010" in dataset or uid is None:
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
        matching = [item for item in found if _value(item, "0020000E") in (series_uid, None)]
        return sorted({study for item in matching if (study := _value(item, "0020000D"))})

    def slide_series(self) -> list[str]:
        """Return the slide microscopy series of the study, by one QIDO-RS request."""
        found = self._json(
            f"{self.service.qido_url}/studies/{self._study_uid}/series",
            what=f"Study {self._study_uid}",
            parameters={"Modality": "SM"},
        )
        matching = [item for item in found if _value(item, "00080060") in ("SM", None)]
        return sorted({series for item in matching if (series := _value(item, "0020000E"))})

    def fetch_bulk(self, uri: str) -> bytes:
        """Return the value behind a BulkDataURI of this service."""
        url = self._bulk_url(uri)
        content_type, body = self._get(
            url, "application/octet-stream", what="A bulk data value", limit_bytes=MAX_BULK_BYTES
        )
        media_type, parameters = parse_content_type(content_type)
        if not media_type.startswith("multipart/"):
            return body
        part = next(MultipartParser(parameters.get("boundary")).feed(body), None)
        if part is None:
            where = without_secrets(url)
            raise ProtocolError(f"{where} sent a multipart answer without a whole part.", url=where)
        return part.data

    def _bulk_url(self, uri: str) -> str:
        """Resolve a BulkDataURI; mend the host where a proxy, or a lost port, made the server write another."""
        root = self.service.wado_url
        url = urljoin(f"{root}/studies/{self._study_uid}/", uri)
        if same_origin(url, root):
            return url
        _, within, rest = urlsplit(url).path.partition(f"/studies/{self._study_uid}/")
        if within:
            return f"{root}{within}{rest}"
        where = without_secrets(url)
        raise SourceError(
            f"The metadata refer to bulk data at {where}, which is not this service; it is not fetched.", url=where
        )

    def _json(self, url: str, *, what: str, parameters: dict[str, str] | None = None) -> list[JsonDataset]:
        _, body = self._get(url, _DICOM_JSON, what=what, limit_bytes=MAX_METADATA_BYTES, parameters=parameters)
        where = without_secrets(url)
        if not body.strip():
            return []
        try:
            found = loads(body)
        except ValueError as error:
            said = readable_error(body[:4096])
            raise ProtocolError(
                f"{where} did not answer with DICOM JSON ({error}) but with {said!r:.200}. Is it the root of a "
                f"DICOMweb service?",
                url=where,
            ) from error
        found = [found] if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise ProtocolError(f"{where} did not answer with a list of datasets.", url=where)
        return found

    def _get(
        self, url: str, accept: str, *, what: str, limit_bytes: int, parameters: dict[str, str] | None = None
    ) -> tuple[str, bytes]:
        """Return content type and whole body, however many attempts it takes."""
        patience = Patience(what, self._options.max_attempts, self._gate)
        deadline = time.monotonic() + self._options.deadline_seconds
        idle = Cancellation()
        while True:
            self._gate.wait(idle)
            error: SourceError | RefusedError
            try:
                with self.service.get(url, accept, parameters=parameters) as answer:
                    if answer.status == 204:
                        return "", b""
                    self._check(answer, what)
                    return answer.content_type, answer.read(limit_bytes, deadline=deadline)
            except (RefusedError, SourceError) as caught:
                if not _worth_repeating(caught, reached=self.service.reached):
                    raise _named(caught, what) from caught
                error = caught
            wait = patience.seconds_after(error)
            if time.monotonic() + wait > deadline:
                raise _named(error, what) from error
            idle.sleep(wait)
            self.stats.add(retries=1)

    def _check(self, answer: Answer, what: str, frame_numbers: tuple[int, ...] = ()) -> None:
        """Let a success pass; raise for any other status."""
        action = action_for(answer.status)
        if action is Action.ACCEPT:
            return
        refused = RefusedError(answer)
        if action is Action.REFUSED:
            hint = (
                "Pass auth=, token= or headers= to Slide.open, or renew what has expired."
                if answer.status == 401
                else "These credentials, or their lack, are not enough."
            )
            raise AuthenticationError(
                f"{what}: {refused}. {hint}", url=answer.url, status=answer.status, frame_numbers=frame_numbers
            )
        raise refused

    # Frames ---------------------------------------------------------------------------------------

    def fetch(self, batch: FrameBatch, cancellation: Cancellation) -> Iterator[EncodedFrame]:
        """Yield each frame of the batch once, as it arrives; asks again for what does not."""
        queue = deque([batch.frame_numbers])
        instance_uid = batch.address.instance_uid
        patience: Patience | None = None
        refused: list[str] = []
        while queue:
            numbers = queue.popleft()
            what = f"Frames {_listed(numbers)} of instance {instance_uid}"
            patience = patience or Patience(what, self._options.max_attempts, self._gate, numbers)
            accept = self._accept(batch, refused, len(numbers))
            if accept is None or not self._gate.wait(cancellation):
                break
            missing = dict.fromkeys(numbers)
            error: SourceError | RefusedError
            try:
                for frame in self._frames(batch, numbers, accept, cancellation, what):
                    del missing[frame.frame_number]
                    yield frame
            except (RefusedError, SourceError) as caught:
                error = caught
            else:
                self._accepts[batch.transfer_syntax_uid] = accept
                patience = None
                continue
            if cancellation.cancelled:
                return
            left = tuple(missing)
            progressed = len(left) < len(numbers)
            if progressed:  # only attempts that bring nothing count
                patience = None
                queue.appendleft(left)
                self.stats.add(retries=1)
                continue
            if isinstance(error, RefusedError) and self._renegotiates(error, batch, len(left), patience.failures):
                refused.append(accept)
                if self._accept(batch, refused, len(left)) is None:
                    raise _refused_for_good(error, what, refused, left) from error
                queue.appendleft(left)
                continue
            if _splits(error, patience.failures) and len(left) > 1:
                middle = len(left) // 2
                queue.extendleft((left[middle:], left[:middle]))
                patience = None
                continue
            if not _worth_repeating(error, reached=self.service.reached):
                raise _named(error, what, left) from error
            wait = patience.seconds_after(error)
            if cancellation.sleep(wait):
                return
            self.stats.add(retries=1)
            queue.appendleft(left)

    def _frames(
        self, batch: FrameBatch, numbers: tuple[int, ...], accept: str, cancellation: Cancellation, what: str
    ) -> Iterator[EncodedFrame]:
        address = batch.address
        url = (
            f"{self.service.wado_url}/studies/{address.study_uid or self._study_uid}/series/{address.series_uid}"
            f"/instances/{address.instance_uid}/frames/{','.join(map(str, numbers))}"
        )
        with self.service.get(url, accept, cancellation=cancellation) as answer:
            self._check(answer, what, numbers)
            yield from frames_in(answer, numbers)

    def _accept(self, batch: FrameBatch, refused: list[str], count: int) -> str | None:
        """Return what has worked, else the first variant that was not refused; None where all were.

        Never a JPEG type for what is not stored as JPEG: servers then compress lossily without a word.
        """
        syntax = batch.transfer_syntax_uid
        variants = [_NATIVE, _ANYTHING, _DECOMPRESSED]
        if syntax is not None and (media_type := transfer_syntaxes.media_type(syntax)):
            variants.insert(1, f'multipart/related; type="{media_type}"; transfer-syntax={syntax}')
        if count == 1:
            variants.append(_SINGLE_PART)
        if syntax in self._accepts:
            variants.insert(0, self._accepts[syntax])
        return next((variant for variant in variants if variant not in refused), None)

    def _renegotiates(self, error: RefusedError, batch: FrameBatch, count: int, failures: int) -> bool:
        """Whether another Accept may help.

        Services say 400 or 500 where they mean 406; before anything has worked, and for a single frame, that is it.
        """
        if error.action is Action.NEGOTIATE:
            return True
        known = batch.transfer_syntax_uid in self._accepts
        return (error.status == 400 or (error.status == 500 and failures >= _REPEATS_OF_500)) and (
            not known or count == 1
        )


def _splits(error: SourceError | RefusedError, failures: int) -> bool:
    """Whether fewer frames at once may go, or will show which of them does not."""
    if not isinstance(error, RefusedError):
        return False
    if error.status == 500:
        return failures >= _REPEATS_OF_500
    return error.action in (Action.SPLIT, Action.ABSENT)


def _worth_repeating(error: SourceError | RefusedError, *, reached: bool) -> bool:
    if isinstance(error, RefusedError):
        return error.action is Action.RETRY
    if isinstance(error, UnreachableError):
        return reached
    return not isinstance(error, AuthenticationError)


def _named(error: SourceError | RefusedError, what: str, frame_numbers: tuple[int, ...] = ()) -> Exception:
    """Return the public error for a refusal that stands."""
    if isinstance(error, SourceError):
        error.frame_numbers = error.frame_numbers or frame_numbers
        return error
    if error.action is Action.ABSENT and not frame_numbers:
        return SlideNotFoundError(f"{what} is not there: {error}. Check the UIDs and the root of the service.")
    return SourceError(f"{what}: {error}.", url=error.url, status=error.status, frame_numbers=frame_numbers)


def _refused_for_good(
    error: RefusedError, what: str, tried: list[str], frame_numbers: tuple[int, ...]
) -> SourceError:
    return SourceError(
        f"{what}: {error}. No form of the request is accepted; tried {'; '.join(f'[{accept}]' for accept in tried)}.",
        url=error.url, status=error.status, frame_numbers=frame_numbers,
    )  # fmt: skip


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 6 else f"{numbers[0]} ... {numbers[-1]} ({len(numbers)})"


def _value(dataset: JsonDataset, tag: str) -> str | None:
    values = dataset.get(tag, {}).get("Value") or [None]
    return values[0] if isinstance(values, list) and isinstance(values[0], str) else None
