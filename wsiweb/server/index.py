"""What the server serves: the instances in some files, found once."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from wsiweb.errors import MetadataError, SlideNotFoundError, SourceError
from wsiweb.server.answer import BASE, dump
from wsiweb.sources.part10 import NotDicomError, Part10File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from wsiweb.sources.base import JsonDataset

logger = logging.getLogger("wsiweb")

MAX_INLINE_BYTES = 1024
"""Larger binary values are bulk data."""
CACHE_BYTES = 64 << 20
_FUNCTIONAL_GROUPS = "52009230"
_CHARACTER_SET, _UTF_8 = "00080005", "ISO_IR 192"


class StoredInstance:
    """One instance. The header is read again when it is asked for: only what a search may want is kept."""

    def __init__(self, file: Part10File, dataset: JsonDataset) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._readers = 0
        self.study_uid = text(dataset, "0020000D")
        self.series_uid = text(dataset, "0020000E")
        self.instance_uid = file.instance_uid
        self.sop_class_uid = text(dataset, "00080016")
        self.path = file.path
        self.transfer_syntax_uid = file.transfer_syntax_uid
        self.number_of_frames = file.number_of_frames
        dataset.pop(_FUNCTIONAL_GROUPS, None)
        self.summary = self._public(dataset)
        """The dataset without bulk data and per-frame functional groups."""

    @property
    def location(self) -> str:
        """Path below the service's URL."""
        return f"/studies/{self.study_uid}/series/{self.series_uid}/instances/{self.instance_uid}"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Part10File]:
        """Lend the file; it is open as long as somebody reads."""
        with self._lock:
            self._readers += 1
        try:
            yield self._file
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    self._file.close()

    def dataset(self) -> JsonDataset:
        """Read the whole header, binary values included."""
        with self.reading() as file, self._lock:
            return file.json_dataset()

    def metadata(self) -> bytes:
        """Return the header as JSON, with bulk data by reference."""
        return dump(self._public(self.dataset()))

    def _public(self, dataset: JsonDataset) -> JsonDataset:
        if _CHARACTER_SET in dataset:  # JSON is UTF-8, whatever the file is (PS3.18 F.2.1)
            dataset[_CHARACTER_SET] = {"vr": "CS", "Value": [_UTF_8]}
        _refer_to_bulk_data(dataset, f"{BASE}{self.location}/bulkdata/")
        return dataset


class Index:
    """Instances by what they belong to.

    Parameters
    ----------
    paths
        Files, or folders that are searched with all folders below. What is no DICOM file is ignored, what cannot be
        read is left out with a warning in the log, and a copy of an instance counts once.

    Raises
    ------
    SlideNotFoundError
        A path does not exist.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.instances: list[StoredInstance] = []
        self._by_uid: dict[str, StoredInstance] = {}
        self._cache: LRUCache[object, bytes] = LRUCache(CACHE_BYTES, getsizeof=len)
        self._cache_lock = threading.Lock()
        for path in _files(paths):
            stored = _stored(path)
            if stored is not None and stored.instance_uid not in self._by_uid:
                self._by_uid[stored.instance_uid] = stored
                self.instances.append(stored)
        self.related = self._count()
        """What a search tells of a study (uid, "") or series (uid, uid) that none of its instances says."""

    def _count(self) -> dict[tuple[str, str], JsonDataset]:
        studies: defaultdict[str, dict[str, list[StoredInstance]]] = defaultdict(lambda: defaultdict(list))
        for stored in self.instances:
            studies[stored.study_uid][stored.series_uid].append(stored)
        related: dict[tuple[str, str], JsonDataset] = {}
        for study_uid, series in studies.items():
            members = [stored for group in series.values() for stored in group]
            modalities = sorted({text(stored.summary, "00080060") for stored in members} - {""})
            related[study_uid, ""] = {
                "00080061": {"vr": "CS", "Value": modalities},
                "00201206": {"vr": "IS", "Value": [len(series)]},
                "00201208": {"vr": "IS", "Value": [len(members)]},
            }
            for series_uid, group in series.items():
                related[study_uid, series_uid] = {"00201209": {"vr": "IS", "Value": [len(group)]}}
        return related

    def select(
        self, study_uid: str | None = None, series_uid: str | None = None, instance_uid: str | None = None
    ) -> list[StoredInstance]:
        """Return the instances that belong there; None is any."""
        found: Iterable[StoredInstance] = self.instances
        if instance_uid is not None:
            found = filter(None, [self._by_uid.get(instance_uid)])
        return [
            stored
            for stored in found
            if study_uid in (None, stored.study_uid) and series_uid in (None, stored.series_uid)
        ]

    def cached(self, key: object, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` made for this key, now or earlier."""
        with self._cache_lock:
            value = self._cache.get(key)
        if value is None:
            value = make()
            with self._cache_lock, contextlib.suppress(ValueError):  # larger than the whole cache
                self._cache[key] = value
        return value


def text(dataset: JsonDataset, tag: str) -> str:
    """Return the first value of an attribute as text; empty where absent."""
    values = dataset.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _stored(path: Path) -> StoredInstance | None:
    try:
        file = Part10File(path)
        try:
            stored = StoredInstance(file, file.json_dataset())
        finally:
            file.close()
    except NotDicomError:
        return None
    except (MetadataError, SourceError) as error:
        logger.warning("%s is not served: %s", path, error)
        return None
    if not (stored.study_uid and stored.series_uid and stored.instance_uid):
        logger.warning("%s is not served: it lacks the UID of its study, series or instance.", path)
        return None
    return stored


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            for folder, subfolders, names in os.walk(path):
                subfolders.sort()
                yield from (file for name in sorted(names) if (file := Path(folder, name)).is_file())
        elif path.is_file():
            yield path
        else:
            raise SlideNotFoundError(f"{path} does not exist; there is nothing to serve.")


def _refer_to_bulk_data(dataset: dict[str, Any], place: str) -> None:
    """Replace long binary values by references, in place; items count from 1."""
    for tag, element in dataset.items():
        if len(element.get("InlineBinary", "")) * 3 // 4 > MAX_INLINE_BYTES:
            del element["InlineBinary"]
            element["BulkDataURI"] = place + tag
        elif element["vr"] == "SQ" and tag != _FUNCTIONAL_GROUPS:
            for number, item in enumerate(element.get("Value", ()), start=1):
                _refer_to_bulk_data(item, f"{place}{tag}/{number}/")
