"""A client object of the user's that is no plain ``DICOMwebClient``, driven by its public methods alone.

Such an object may be anything, so it is asked from one thread at a time.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import requests
import urllib3

from wsiweb.errors import AuthenticationError, ProtocolError, SlideNotFoundError, SourceError, WsiWebError
from wsiweb.sources.base import SPREAD, EncodedFrame
from wsiweb.sources.retry import Action, action_for
from wsiweb.stats import ReadStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wsiweb.sources.base import Advice, Cancellation, FrameBatch, Frames, JsonDataset, Preview

_NATIVE_FRAMES = (("application/octet-stream", "*"),)


class ClientSource:
    """Frames from a ``dicomweb_client.DICOMClient``-like object."""

    remote = True

    def __init__(self, client: Any, study_uid: str, series_uids: Sequence[str]) -> None:
        self._client = client
        self._study_uid = study_uid
        self._series_uids = tuple(series_uids)
        self._start()

    def _start(self) -> None:
        self.stats = ReadStats()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "stats")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def credentials(self) -> dict[str, object]:
        """The client has them."""
        return {"client": self._client}

    def advise(self, frames: int, reads: int) -> Advice:  # noqa: ARG002  (of the protocol)
        """Return how to ask for frames: spread over whatever may be in flight."""
        return SPREAD

    def metadata(self) -> list[JsonDataset]:
        """Return the metadata of the series, one call for each."""
        datasets: list[JsonDataset] = []
        for series_uid in self._series_uids:
            what = f"The series {series_uid} of study {self._study_uid}"
            with self._asking(what):
                found = list(self._client.retrieve_series_metadata(self._study_uid, series_uid))
            if not all(isinstance(dataset, dict) for dataset in found):
                raise ProtocolError(f"{what}: the client's datasets are no dicts of the DICOM JSON model (PS3.18 F).")
            datasets += found
        return datasets

    def fetch(
        self,
        batch: FrameBatch,
        cancellation: Cancellation,
        preview: Preview | None = None,  # noqa: ARG002  (each frame is certain when it comes)
    ) -> Iterator[Frames]:
        """Return the frames of the batch by one call."""
        if cancellation.cancelled:
            return
        address, numbers = batch.address, batch.frame_numbers
        what = f"Frames {numbers} of instance {address.instance_uid}"
        with self._asking(what, numbers):
            frames = self._client.retrieve_instance_frames(
                address.study_uid or self._study_uid,
                address.series_uid,
                address.instance_uid,
                list(numbers),
                media_types=_NATIVE_FRAMES,
            )
            found = [_bytes(data) for data in frames]
        if len(found) != len(numbers):
            raise ProtocolError(f"{what}: {len(found)} frames came.", frame_numbers=numbers)
        yield [EncodedFrame(number, data) for number, data in zip(numbers, found, strict=True)]

    def fetch_bulk(
        self,
        uri: str,
        whole: Callable[[bytes], bool] = bool,  # noqa: ARG002  (whether to ask again is the client's to decide)
    ) -> bytes:
        """Return the value behind a BulkDataURI."""
        with self._asking("A bulk data value"):
            found = [_bytes(data) for data in self._client.retrieve_bulkdata(uri)]
        if not found or not found[0]:
            raise ProtocolError("A bulk data value: nothing came.")
        return found[0]

    def close(self) -> None:
        """Do nothing: the client is the user's."""

    @contextlib.contextmanager
    def _asking(self, what: str, frame_numbers: tuple[int, ...] = ()) -> Iterator[None]:
        """Take turns, count, and translate whatever the client raises."""
        with self._lock:
            self.stats.add(requests=1)
            try:
                yield
            except WsiWebError:
                raise
            except Exception as error:
                raise _translated(error, what, frame_numbers) from error


def _bytes(data: Any) -> bytes:
    """Take what holds bytes; of a number, ``bytes`` would make so many zeros."""
    return data if isinstance(data, bytes) else bytes(memoryview(data))


def _translated(error: Exception, what: str, frame_numbers: tuple[int, ...]) -> WsiWebError:
    response = getattr(error, "response", None)
    attempt = getattr(error, "last_attempt", None)  # retrying.RetryError keeps the last response there
    if response is None and attempt is not None:
        response = getattr(attempt, "value", None)
    status = getattr(response, "status_code", None)
    message = f"{what}: the client failed with {type(error).__name__}" + (f" (status {status})" if status else "")
    if status is not None and action_for(status) is Action.REFUSED:
        return AuthenticationError(f"{message}. Check the credentials of the client.", status=status,
                                   frame_numbers=frame_numbers)  # fmt: skip
    if status is not None and action_for(status) is Action.ABSENT and not frame_numbers:
        return SlideNotFoundError(f"{message}. Check the UIDs.")
    network = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
    hint = "" if isinstance(error, network) else f": {error}"
    return SourceError(f"{message}{hint}.", status=status, frame_numbers=frame_numbers)
