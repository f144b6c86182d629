"""Find slides in a DICOMweb service (QIDO-RS, PS3.18 10.6): ``wsiweb.search``."""

from __future__ import annotations

import logging
import numbers
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsiweb import opening
from wsiweb.addresses import split_series_url
from wsiweb.dicomjson import Attributes
from wsiweb.errors import SearchError, SlideNotFoundError, SourceError
from wsiweb.listing import Listing, UntoldError, refused
from wsiweb.matching import Filter
from wsiweb.options import ReadOptions, chosen
from wsiweb.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsiweb.sources.base import JsonDataset
    from wsiweb.sources.web import WebSource

logger = logging.getLogger("wsiweb")

_GONE = frozenset({404, 410})
_NOT_SERVED = frozenset({400, 404, 405, 410, 422, 501})
_MODALITY = ("Modality", "00080060")
_FIELDS = {
    "patient_id": "PatientID",
    "study_date": "StudyDate",
    "accession_number": "AccessionNumber",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "modality": "Modality",
}


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """A series of slide microscopy, as a search has found it.

    Attributes
    ----------
    study_uid, series_uid
        Study and Series Instance UID.
    patient_id, accession_number, study_description, series_description
        As the service has them; None where it does not tell.
    study_date
        YYYYMMDD, or None.
    modality
        SM, or what was asked for; None where the service does not tell.
    number_of_instances
        In the series, or None.
    place
        Where it was found.
    connection
        How that was reached: arguments of ``Slide.open``.
    """

    study_uid: str
    series_uid: str
    patient_id: str | None = None
    study_date: str | None = None
    accession_number: str | None = None
    study_description: str | None = None
    series_description: str | None = None
    modality: str | None = None
    number_of_instances: int | None = None
    place: Any = field(default=None, repr=False, compare=False)
    connection: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def open(self, **arguments: Any) -> Slide:
        """Open the slide, by the connection that it was found by; arguments as for ``Slide.open``."""
        known = {"study_uid": self.study_uid, "series_uid": self.series_uid, **self.connection}
        return Slide.open(self.place, **{**known, **arguments})


def search(
    place: Any,
    *,
    limit: int | None = None,
    options: ReadOptions | None = None,
    auth: Any = None,
    token: Any = None,
    headers: dict[str, str] | None = None,
    session: Any = None,
    verify: bool | str | None = None,
    cert: str | tuple[str, str] | None = None,
    qido_url_prefix: str | None = None,
    wado_url_prefix: str | None = None,
    **filters: Any,
) -> Iterator[FoundSlide]:
    """Search a service for slides.

    Parameters
    ----------
    place
        URL of the service, or of one study in it; or a ``DICOMwebClient``.
    limit
        Stop after so many slides.
    options, auth, token, headers, session, verify, cert, qido_url_prefix, wado_url_prefix
        As for ``Slide.open``; what is found opens by the same.
    filters
        By DICOM keyword, as QIDO-RS takes them: ``PatientID="C3L-*"``, ``StudyDate="20200101-20201231"``,
        ``SeriesInstanceUID=[...]``. They are applied here, too (PS3.4 C.2.2.2): some services ignore what they do not
        know, refuse it, or know no wildcards. Modality is SM unless one is given.

    Returns
    -------
    An iterator that asks for a page when it is needed; every series once.

    Raises
    ------
    SearchError
        At once (it is a ValueError): DICOM has no such attribute, or the value is none for it.
    ProtocolError
        A filter can be applied neither by the service nor here, since it does not tell the attribute.
    SourceError
        The service fails; ``AuthenticationError`` where it refuses the credentials.
    """
    most: Any = limit  # of a caller who heeds no types
    if most is not None and (not isinstance(most, numbers.Integral) or most < 1):
        raise SearchError(f"limit is an integer of at least 1, or None, not {limit!r}.")
    options = chosen(options, ReadOptions())
    given = {
        "auth": auth, "token": token, "headers": headers, "session": session, "verify": verify, "cert": cert,
        "qido_url_prefix": qido_url_prefix, "wado_url_prefix": wado_url_prefix,
    }  # fmt: skip
    used = {name: value for name, value in given.items() if value is not None}
    wanted = [Filter(name, value) for name, value in filters.items()]
    source = opening.searchable(place, opening.Connection(**given), options)
    study_uid = None
    if isinstance(place, str):
        _, _, study_uid, series_uids = split_series_url(place)
        wanted += [Filter("SeriesInstanceUID", series_uids)] if series_uids else []
    return _slides(source, wanted, study_uid, limit, place, {**used, "options": options})


def _slides(
    source: WebSource,
    filters: list[Filter],
    study_uid: str | None,
    limit: int | None,
    place: Any,
    connection: dict[str, Any],
) -> Iterator[FoundSlide]:
    if not any(one.name in _MODALITY for one in filters):
        filters = [*filters, Filter("Modality", "SM", implied=True)]
    try:
        seen: set[tuple[str, str]] = set()
        for dataset in _series(source, filters, study_uid, limit):
            attributes = Attributes(dataset)
            key = attributes.string("StudyInstanceUID") or study_uid or "", attributes.string("SeriesInstanceUID") or ""
            if not all(key) or key in seen:
                continue
            seen.add(key)
            told: dict[str, Any] = {name: attributes.string(keyword) for name, keyword in _FIELDS.items()}
            count = attributes.optional_number("NumberOfSeriesRelatedInstances")
            told["number_of_instances"] = None if count is None else int(count)
            yield FoundSlide(*key, **told, place=place, connection=connection)
            if len(seen) == limit:
                return
    finally:
        source.close()


def _series(
    source: WebSource, filters: list[Filter], study_uid: str | None, limit: int | None
) -> Iterator[JsonDataset]:
    """Yield the datasets of series that match."""
    path = "/series" if study_uid is None else f"/studies/{study_uid}/series"
    pages = Listing(source.find, source.service.qido_url, "SeriesInstanceUID", filters).pages(path, limit)
    try:
        first = next(pages, [])
    except (SourceError, SlideNotFoundError) as error:
        untold = isinstance(error, UntoldError) and all(one.of_studies for one in error.filters)
        if study_uid is not None or not (untold or refused(error, _NOT_SERVED)):
            raise
        logger.info("The search is by study, since there is none of all series that helps: %s", error)
        yield from _by_study(source, filters, limit)
        return
    yield from first
    for page in pages:
        yield from page


def _by_study(source: WebSource, filters: list[Filter], limit: int | None) -> Iterator[JsonDataset]:
    """Search for studies, then for the series of each: some services have no search across studies."""
    above = [one for one in filters if one.of_studies]
    below = [one for one in filters if not one.of_studies]
    hints = [Filter("ModalitiesInStudy", one.value, hint=True) for one in below if one.name in _MODALITY]
    root = source.service.qido_url
    studies = Listing(source.find, root, "StudyInstanceUID", [*above, *hints])
    series: Listing | None = None
    gone: SourceError | SlideNotFoundError | None = None
    listed = False
    for page in studies.pages("/studies", limit):
        # Services limit the pages of both alike: what is shorter than a page of studies is all series of a study.
        series = series or Listing(source.find, root, "SeriesInstanceUID", below, longest=studies.longest)
        for study in page:
            uid = Attributes(study).string("StudyInstanceUID")
            if uid is None:
                continue
            try:
                for found in series.pages(f"/studies/{uid}/series", None):
                    yield from ({**study, **_told(dataset)} for dataset in found)
                listed = True
            except (SourceError, SlideNotFoundError) as error:
                if not refused(error, _GONE):
                    raise
                gone = error
                logger.warning("The search leaves out a study that was found, and is not there: %s", error)
    if gone is not None and not listed:
        raise gone


def _told(dataset: JsonDataset) -> JsonDataset:
    """Return those elements of a dataset that have a value."""
    return {tag: element for tag, element in dataset.items() if isinstance(element, dict) and "Value" in element}
