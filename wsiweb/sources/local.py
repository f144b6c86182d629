"""Slides in local DICOM Part 10 files, behind the same protocol as a service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiweb.dicomjson import Attributes
from wsiweb.errors import MetadataError, SlideNotFoundError, SourceError
from wsiweb.metadata import is_level
from wsiweb.sources.base import SPREAD, EncodedFrame
from wsiweb.sources.part10 import NotDicomError, Part10File
from wsiweb.sources.pixeldata import SystemFailureError, unreadable
from wsiweb.stats import ReadStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from wsiweb.sources.base import Advice, Cancellation, FrameBatch, Frames, JsonDataset, Preview


class LocalSource:
    """Frames from files. Reads are positional: any number of threads may share the source.

    Parameters
    ----------
    paths
        Files, or folders that are searched with all folders below.
    series_uids
        Series to read; empty takes the only one there is.
    study_uid
        Study to read, or None.
    report
        Called with each problem that costs a file but not the slide.

    Raises
    ------
    SlideNotFoundError
        No DICOM file is there, or none of one of the series.
    """

    remote = False

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        study_uid: str | None,
        series_uids: tuple[str, ...],
        report: Callable[[str], None],
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._study_uid = study_uid
        self._series_uids = series_uids
        self._report = report
        self._files: dict[str, Part10File] = {}
        self.stats = ReadStats()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_report", "stats")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, stats=ReadStats())

    @property
    def credentials(self) -> dict[str, object]:
        """None are needed."""
        return {}

    def advise(self, frames: int, reads: int) -> Advice:  # noqa: ARG002  (of the protocol)
        """Return how to ask for frames: spread over whatever may be in flight."""
        return SPREAD

    def metadata(self) -> list[JsonDataset]:
        """Return one dataset for each instance of the series; a copy of an instance counts once."""
        datasets: list[JsonDataset] = []
        problems: list[str] = []
        seen = 0
        for path, named in self._candidates():
            try:
                file = Part10File(path)
                dataset = file.json_dataset()
            except NotDicomError as error:
                if named:
                    raise SlideNotFoundError(str(error)) from error
                continue
            except (MetadataError, SourceError) as error:
                if named or isinstance(error, SystemFailureError):
                    raise
                problems.append(str(error))
                continue
            seen += 1
            if self._belongs(dataset) and file.instance_uid not in self._files:
                self._files[file.instance_uid] = file
                datasets.append(dataset)
        found = {Attributes(dataset).string("SeriesInstanceUID") for dataset in datasets}
        missing = [uid for uid in self._series_uids if uid not in found]
        if missing or not datasets:
            where = ", ".join(map(str, self._paths))
            wanted = f"series {', '.join(missing)}" if missing else f"study {self._study_uid}"
            what = f"no DICOM file of {wanted}, but {seen} of others" if seen else "no DICOM file"
            broken = f" {' '.join(problems)}" if problems else ""
            raise SlideNotFoundError(f"There is no slide in {where}: it holds {what}.{broken}")
        self._check_one_slide(datasets)
        for problem in problems:
            self._report(problem)
        order = {uid: position for position, uid in enumerate(self._series_uids)}
        datasets.sort(key=lambda dataset: order.get(Attributes(dataset).string("SeriesInstanceUID") or "", 0))
        return datasets

    def _check_one_slide(self, datasets: list[JsonDataset]) -> None:
        """Refuse to mix slides that happen to lie together; series are opened as one only when they are named."""
        levels = filter(is_level, map(Attributes, datasets))
        series = sorted({item.string("SeriesInstanceUID") or "" for item in levels})
        if len(series) > 1 and not self._series_uids:
            raise SlideNotFoundError(
                f"{', '.join(map(str, self._paths))} holds {len(series)} series of images: {', '.join(series)}. Name "
                f"one with series_uid= (--series on the command line)."
            )

    def _candidates(self) -> Iterator[tuple[Path, bool]]:
        """Yield files, and whether the user named each."""
        for path in self._paths:
            if path.is_dir():
                for folder, subfolders, names in os.walk(path, onerror=_pass_over):
                    subfolders.sort()
                    for file in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
                        if file.is_file() or not file.exists():  # no pipe, but a link to nowhere, which is reported
                            yield file, False
            elif path.is_file():
                yield path, True
            elif path.exists():
                raise SlideNotFoundError(f"{path} is neither a file nor a folder.")
            else:
                hint = " The URL of a service begins with https:// or http://." if ":" in str(path) else ""
                raise SlideNotFoundError(f"{path} does not exist.{hint}")

    def _belongs(self, dataset: JsonDataset) -> bool:
        attributes = Attributes(dataset)
        study, series = attributes.string("StudyInstanceUID"), attributes.string("SeriesInstanceUID")
        return (self._study_uid is None or study == self._study_uid) and (
            not self._series_uids or series in self._series_uids
        )

    def fetch(
        self,
        batch: FrameBatch,
        cancellation: Cancellation,
        preview: Preview | None = None,  # noqa: ARG002  (each frame is certain when it comes)
    ) -> Iterator[Frames]:
        """Read the frames of the batch, in order."""
        file = self._file(batch.address.instance_uid)
        for frame_number in batch.frame_numbers:
            if cancellation.cancelled:
                return
            data = file.read_frame(frame_number - 1)
            yield [EncodedFrame(frame_number, data, transfer_syntax_uid=file.transfer_syntax_uid)]

    def _file(self, instance_uid: str) -> Part10File:
        try:
            return self._files[instance_uid]
        except KeyError:
            raise SourceError(f"Instance {instance_uid} is in none of the files that were opened.") from None

    def fetch_bulk(self, uri: str, whole: Callable[[bytes], bool] = bool) -> bytes:  # noqa: ARG002
        """Local metadata carry their values inline."""
        raise SourceError(f"Bulk data of local files are not fetched from elsewhere ({uri:.200}).")

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _pass_over(error: OSError) -> None:
    """Do without a folder that this user may not list, and not without one for which the system has failed."""
    failure = unreadable(error.filename, "listed", error)
    if isinstance(failure, SystemFailureError):
        raise failure from error
