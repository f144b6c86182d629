"""Find slides of the NCI Imaging Data Commons by collection, organ and stain. Needs the extra ``wsiweb[idc]``."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from wsiweb.errors import UnsupportedError, WsiWebError
from wsiweb.finding import FoundSlide

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def find(*, limit: int | None = None, place: str = PROXY, table: Any = None, **filters: str) -> Iterator[FoundSlide]:
    """Find slides in the index of IDC, which is on this computer: no request is made to find them.

    Parameters
    ----------
    limit
        Stop after so many.
    place
        URL of the DICOMweb service that they open from.
    table
        A pandas DataFrame to search in place of IDC's index.
    filters
        ``collection``, ``patient_id``, ``organ``, ``stain``, ``objective_power``, ``study_uid``, ``series_uid``, or a
        column of the index; without regard to case, ``*`` and ``?`` stand for anything.

    Raises
    ------
    UnsupportedError
        The package idc-index is not installed.
    WsiWebError
        There is no such column.
    """
    frame = _index() if table is None else table
    for name, value in filters.items():
        column = _COLUMNS.get(name, name)
        if column not in frame.columns:
            near = difflib.get_close_matches(name, [*_COLUMNS, *frame.columns], 3)
            raise WsiWebError(f"IDC's index has no column {name!r}. Did you mean {', '.join(near) or 'another'}?")
        pattern = str(value).casefold()
        frame = frame[[fnmatchcase(_text(found), pattern) for found in frame[column]]]
    rows = frame.to_dict("records") if limit is None else frame.head(limit).to_dict("records")
    return (_slide(row, place) for row in rows)


def _slide(row: dict[str, Any], place: str) -> FoundSlide:
    return FoundSlide(
        str(row["StudyInstanceUID"]),
        str(row["SeriesInstanceUID"]),
        patient_id=str(row.get("PatientID") or "") or None,
        series_description=str(row.get("SeriesDescription") or "") or None,
        modality="SM",
        place=place,
    )


def _text(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values).casefold()


def _index() -> Any:
    """Return the slide microscopy of IDC's index, joined with what it tells of organs and stains."""
    try:
        from idc_index import IDCClient  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("This needs IDC's index: pip install 'wsiweb[idc]'.") from error
    client = IDCClient.client()
    series = client.index[client.index["Modality"] == "SM"]
    client.fetch_index("sm_index")  # downloaded once for each version of the index
    more = client.sm_index
    new = [column for column in more.columns if column not in series.columns or column == "SeriesInstanceUID"]
    return series.merge(more[new], on="SeriesInstanceUID", how="left")
