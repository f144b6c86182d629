"""Find slides of the NCI Imaging Data Commons by collection, organ and stain. Needs the extra ``wsiweb[idc]``."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from wsiweb.errors import SearchError, SourceError, UnsupportedError
from wsiweb.finding import FoundSlide

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PROXY", "find"]

PROXY = (
    "https://proxy.imaging.datacommons.cancer.gov/current/"
    "viewer-only-no-downloads-see-tinyurl-dot-com-slash-3j3d9jyp/dicomWeb"
)
"""Needs no login, and has a daily quota of bytes for each address."""
_COLUMNS = {
    "collection": "collection_id",
    "patient_id": "PatientID",
    "organ": "primaryAnatomicStructure_CodeMeaning",
    "stain": "staining_usingSubstance_CodeMeaning",
    "objective_power": "ObjectiveLensPower",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
}


def find(*, limit: int | None = None, place: str = PROXY, table: Any = None, **filters: object) -> Iterator[FoundSlide]:
    """Find slides in the index of IDC, which is on this computer.

    Collections, patients and descriptions are in the index that comes with the package. What tells of organs, stains
    and objectives is downloaded when it is first asked for, once for each version of the package.

    Parameters
    ----------
    limit
        Stop after so many.
    place
        URL of the DICOMweb service that they open from.
    table
        A pandas DataFrame to search in place of IDC's index; of its rows, those of slide microscopy.
    filters
        ``collection``, ``patient_id``, ``organ``, ``stain``, ``objective_power``, ``study_uid``, ``series_uid``, or a
        column of the index; without regard to case, ``*`` and ``?`` stand for anything. Of several stains, or values
        that are asked for, one has to match.

    Raises
    ------
    SearchError
        There is no such column, or nothing to look for.
    UnsupportedError
        The package idc-index is not installed.
    SourceError
        What tells of organs and stains could not be downloaded.
    """
    if limit is not None and limit < 1:
        raise SearchError(f"limit is at least 1, or None, not {limit}.")
    columns = {name: _COLUMNS.get(name, name) for name in filters}
    frame = _index(columns) if table is None else table
    if "Modality" in frame.columns:
        frame = frame[frame["Modality"] == "SM"]
    for name, value in filters.items():
        if columns[name] not in frame.columns:
            near = difflib.get_close_matches(name, [*_COLUMNS, *frame.columns], 3)
            raise SearchError(f"IDC's index has no column {name!r}. Did you mean {', '.join(near) or 'another'}?")
        wanted = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        texts = [f"{one:g}" if isinstance(one, float) else str(one) for one in wanted if one is not None]
        patterns = [text.casefold().replace("[", "[[]") for text in texts]  # there are no ranges of letters
        if not patterns:
            raise SearchError(f"{name} is to be {value!r:.80}, which is nothing to look for.")
        frame = frame[[any(_matches(found, pattern) for pattern in patterns) for found in frame[columns[name]]]]
    rows = frame if limit is None else frame.head(limit)
    return (_slide(row, place) for row in rows.to_dict("records"))


def _slide(row: dict[str, Any], place: str) -> FoundSlide:
    def told(column: str) -> str | None:
        return next(iter(_texts(row.get(column))), None)

    count = told("instanceCount")
    return FoundSlide(
        str(row["StudyInstanceUID"]),
        str(row["SeriesInstanceUID"]),
        patient_id=told("PatientID"),
        study_date=(told("StudyDate") or "").replace("-", "") or None,
        study_description=told("StudyDescription"),
        series_description=told("SeriesDescription"),
        modality="SM",
        number_of_instances=None if count is None else int(float(count)),
        place=place,
    )


def _matches(value: Any, pattern: str) -> bool:
    texts = [text.casefold() for text in _texts(value)]
    return any(fnmatchcase(text, pattern) for text in [*texts, ", ".join(texts)] if text)


def _texts(value: Any) -> list[str]:
    """Return the values in a cell as text; lists come as arrays, and what is missing as None, NaN or <NA>."""
    value = value.tolist() if hasattr(value, "tolist") else value
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [f"{one:g}" if isinstance(one, float) else str(one) for one in values if one is not None]
    return [text for text in texts if text not in ("", "nan", "NaT", "<NA>")]


def _index(columns: dict[str, str]) -> Any:
    """Return IDC's index, joined with what it tells of slides where one of the columns is only there."""
    try:
        from idc_index import IDCClient  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("This needs IDC's index: pip install 'wsiweb[idc]'.") from error
    try:
        client = IDCClient.client()
        series = client.index
        if set(columns.values()) <= set(series.columns):
            return series
        client.fetch_index("sm_index")
        more = getattr(client, "sm_index", None)  # which older clients do not have where it did not come
    except OSError as error:  # requests' errors are OSErrors, too
        raise SourceError(f"IDC's index of slides could not be had: {error}") from error
    if more is None:
        raise SourceError("IDC's index of slides could not be downloaded. Search by collection or patient_id without.")
    new = [column for column in more.columns if column not in series.columns or column == "SeriesInstanceUID"]
    return series.merge(more[new], on="SeriesInstanceUID", how="inner")


def __dir__() -> list[str]:
    """Return what there is to use."""
    return list(__all__)
