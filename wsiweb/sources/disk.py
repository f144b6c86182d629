"""``DiskCachedSource``: a remote source whose answers are kept on disk, for the processes that come later.

A source around a source, so that neither the reader nor the sources know of it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import time
import zlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from wsiweb.codestream import complete
from wsiweb.dicomjson import Attributes
from wsiweb.errors import AuthenticationError, SourceError
from wsiweb.jsontext import dumps, loads
from wsiweb.metadata import is_level
from wsiweb.sources.base import EncodedFrame
from wsiweb.sources.http import origin
from wsiweb.sources.store import DiskStore, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from wsiweb.sources.base import Advice, Cancellation, FrameBatch, Frames, FrameSource, JsonDataset, Preview
    from wsiweb.stats import ReadStats

logger = logging.getLogger("wsiweb")

Answer = TypeVar("Answer")

_FRAMES_AT_ONCE = 16
"""Frames looked up together: the first of them are decoded while the next are read."""


class DiskCache:
    """What is kept on disk of the answers of one service. Safe to share between threads; pickles.

    Parameters
    ----------
    folder, limit_bytes
        As for ``DiskStore``.
    max_age_seconds
        How long metadata are taken from disk without asking the service.
    service_url
        Root of the service. Answers are found by it and by UIDs, never by credentials.
    """

    def __init__(self, folder: str, *, limit_bytes: int, max_age_seconds: float, service_url: str) -> None:
        self.store = DiskStore(folder, limit_bytes)
        self._max_age_seconds = max_age_seconds
        self._service = (*origin(service_url), urlsplit(service_url).path.rstrip("/"))

    def key(self, *names: str | int) -> bytes:
        """Return the key of an answer: what it is, and the UIDs. It tells nobody what it stands for."""
        return hashlib.blake2b(json.dumps((self._service, names)).encode(), digest_size=16).digest()

    def recall(
        self,
        names: tuple[str, ...],
        ask: Callable[[], Answer],
        *,
        pack: Callable[[Answer], bytes],
        unpack: Callable[[bytes], Answer],
        keep: Callable[[Answer], object] = bool,
    ) -> Answer:
        """Return an answer from disk, or from ``ask`` where it is not there or too old.

        Where the service then cannot be asked, or a quota is used up, the old answer stands. Where it refuses the
        credentials, or says that there is no such thing, it does not.

        Parameters
        ----------
        names
            What is asked for.
        ask
            Asks the service.
        pack, unpack
            To bytes, and back.
        keep
            Whether an answer is worth keeping; one that holds nothing is not.
        """
        key = self.key(*names)
        kept = self.store.get((key,)).get(key)
        if kept is not None and 0 <= time.time() - kept.stored_seconds < self._max_age_seconds:
            return unpack(kept.data)
        try:
            answer = ask()
        except SourceError as error:
            if kept is None or isinstance(error, AuthenticationError):
                raise
            stored = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.stored_seconds))
            logger.warning("Metadata of %s, kept on disk, are used although the service fails: %s", stored, error)
            return unpack(kept.data)
        if keep(answer):
            with contextlib.suppress(TypeError, ValueError, RecursionError):  # a foreign client may return anything
                self.store.put({key: Entry(pack(answer))})
        return answer

    def lookup(self, what: str, uid: str, ask: Callable[[], list[str]]) -> list[str]:
        """Return the UIDs that a search has found, from disk or from ``ask``; one UID is an answer to keep."""
        return self.recall((what, uid), ask, pack=_packed, unpack=_unpacked, keep=lambda found: len(found) == 1)

    def around(self, source: FrameSource, study_uid: str, series_uids: Sequence[str]) -> DiskCachedSource:
        """Return a source whose answers are kept here."""
        return DiskCachedSource(source, self, (study_uid, *series_uids))


class DiskCachedSource:
    """A remote source in front of which frames, metadata and bulk data are kept on disk.

    Parameters
    ----------
    source
        Is asked for what is not on disk.
    cache
        Of the service that the source asks.
    uids
        Of the study and the series.
    """

    def __init__(self, source: FrameSource, cache: DiskCache, uids: tuple[str, ...]) -> None:
        self._source = source
        self._cache = cache
        self._uids = uids

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy is closed by itself, and may live in another process.
        self.__dict__.update(state, _source=copy.copy(state["_source"]), _cache=copy.deepcopy(state["_cache"]))

    @property
    def remote(self) -> bool:
        """That of the source behind."""
        return self._source.remote

    @property
    def stats(self) -> ReadStats:
        """That of the source behind: what comes from disk costs no request."""
        return self._source.stats

    @property
    def credentials(self) -> Mapping[str, object]:
        """That of the source behind."""
        return self._source.credentials

    def advise(self, frames: int, reads: int) -> Advice:
        """Return how the source behind is best asked."""
        return self._source.advise(frames, reads)

    def metadata(self) -> list[JsonDataset]:
        """Return the metadata, kept on disk once they hold a slide."""
        return self._cache.recall(
            ("metadata", *self._uids), self._source.metadata, pack=_packed, unpack=_unpacked, keep=_holds_a_slide
        )

    def fetch_bulk(self, uri: str, whole: Callable[[bytes], bool] = bool) -> bytes:
        """Return the value behind a BulkDataURI."""
        ask = partial(self._source.fetch_bulk, uri, whole)
        return self._cache.recall(("bulk", *self._uids, uri), ask, pack=bytes, unpack=bytes, keep=whole)

    def fetch(self, batch: FrameBatch, cancellation: Cancellation, preview: Preview | None = None) -> Iterator[Frames]:
        """Yield what is on disk, then what is not; whole frames among that are kept when all have been handed out."""
        missing = batch.frame_numbers
        if not batch.fresh:
            missing = ()
            for start in range(0, len(batch.frame_numbers), _FRAMES_AT_ONCE):
                numbers = batch.frame_numbers[start : start + _FRAMES_AT_ONCE]
                found = self._kept(batch, numbers)
                missing += tuple(number for number in numbers if number not in found)
                if found:
                    yield list(found.values())
        if not missing:
            return
        arrived: dict[bytes, Entry] = {}
        try:
            for frames in self._source.fetch(replace(batch, frame_numbers=missing), cancellation, preview):
                for frame in frames:
                    if complete(frame.data):
                        label = json.dumps((frame.media_type, frame.transfer_syntax_uid))
                        arrived[self._key(batch, frame.frame_number)] = Entry(frame.data, label)
                yield frames
        finally:
            # A bad frame of a long answer must not take the place of the fresh one that was asked for meanwhile.
            self._cache.store.put(arrived, overwrite=batch.fresh)

    def _kept(self, batch: FrameBatch, numbers: tuple[int, ...]) -> dict[int, EncodedFrame]:
        keys = {self._key(batch, number): number for number in numbers}
        found = {}
        for key, entry in self._cache.store.get(keys).items():
            number = keys[key]
            media_type, syntax = json.loads(entry.label)
            found[number] = EncodedFrame(number, entry.data, media_type, syntax, from_disk=True)
        return found

    def _key(self, batch: FrameBatch, frame_number: int) -> bytes:
        address = batch.address
        return self._cache.key("frame", address.study_uid, address.series_uid, address.instance_uid, frame_number)

    def close(self) -> None:
        """Close the source behind, and the store."""
        self._source.close()
        self._cache.store.close()


def _packed(answer: Any) -> bytes:
    return zlib.compress(dumps(answer), 1)


def _unpacked(data: bytes) -> Any:
    return loads(zlib.decompress(data))


def _holds_a_slide(datasets: list[JsonDataset]) -> bool:
    """Whether there is an image to read: a series whose upload has only begun is asked for again."""
    return any(is_level(item) and item.string("Rows") for item in map(Attributes, datasets))
