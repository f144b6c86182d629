"""Find slides in a DICOMweb service (QIDO-RS, PS3.18 10.6): ``wsiweb.search``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsiweb import opening
from wsiweb.errors import RegionError, SlideNotFoundError, SourceError, WsiWebError
from wsiweb.matching import Filter, texts_of
from wsiweb.options import ReadOptions
from wsiweb.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wsiweb.sources.base import JsonDataset
    from wsiweb.sources.web import WebSource

logger = logging.getLogger("wsiweb")

PAGE = 1000
"""Asked for at a time: what services give without being asked, and below every known limit (Google: 5,000)."""
MAX_OFFSET = 1_000_000
_NOT_SERVED = frozenset({400, 404, 405, 501})
_FIELDS = {
    "patient_id": "PatientID",
    "study_date": "StudyDate",
    "accession_number": "AccessionNumber",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "modality": "Modality",
    "number_of_instances": "NumberOfSeriesRelatedInstances",
}


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """A series of slide microscopy, as a search has found it. Text is None where the service does not tell."""

    study_uid: str
    series_uid: str
    patient_id: str | None = None
    study_date: str | None = None
    accession_number: str | None = None
    study_description: str | None = None
    series_description: str | None = None
    modality: str | None = None
    number_of_instances: str | None = None
    place: Any = field(default=None, repr=False, compare=False)
    """Where it was found."""
    connection: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """How that was reached."""

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
        URL of the service, or a ``DICOMwebClient``.
    limit
        Stop after so many slides.
    options, auth, token, headers, session, verify, cert, qido_url_prefix, wado_url_prefix
        As for ``Slide.open``; what is found opens by the same.
    filters
        By DICOM keyword, as QIDO-RS takes them: ``PatientID="C3L-*"``, ``StudyDate="20200101-20201231"``. They are
        applied here, too: some services ignore what they do not know, or refuse it.

    Returns
    -------
    An iterator that asks for a page when it is needed; every series once.

    Raises
    ------
    WsiWebError
        At once, for a filter that DICOM does not know; later, where a filter is neither heeded nor can be applied.
    SourceError
        The service fails; ``AuthenticationError`` where it refuses the credentials.
    """
    if limit is not None and limit < 1:
        raise RegionError(f"limit is at least 1, or None, not {limit}.")
    options = options or ReadOptions()
    given = {
        "auth": auth, "token": token, "headers": headers, "session": session, "verify": verify, "cert": cert,
        "qido_url_prefix": qido_url_prefix, "wado_url_prefix": wado_url_prefix,
    }  # fmt: skip
    used = {name: value for name, value in given.items() if value is not None}
    source = opening.searchable(place, opening.Connection(**given), options)
    found = _Search(source, [Filter(name, value) for name, value in filters.items()])
    return _slides(found, limit, place, {**used, "options": options})


def _slides(found: _Search, limit: int | None, place: Any, connection: dict[str, Any]) -> Iterator[FoundSlide]:
    try:
        seen: set[tuple[str, str]] = set()
        for dataset in found.series(limit):
            uids = texts_of(dataset, {"study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID"})
            key = uids["study_uid"] or "", uids["series_uid"] or ""
            if not all(key) or key in seen:
                continue
            seen.add(key)
            told: dict[str, Any] = texts_of(dataset, _FIELDS)
            yield FoundSlide(*key, **told, place=place, connection=connection)
            if len(seen) == limit:
                return
    finally:
        found.source.close()


class _Search:
    """One search of one service, which learns on the way what the service takes."""

    def __init__(self, source: WebSource, filters: list[Filter]) -> None:
        self.source = source
        self._filters = filters
        self._url = source.service.qido_url
        self._modality = Filter("Modality", "SM")

    def series(self, limit: int | None) -> Iterator[JsonDataset]:
        """Yield the datasets of series that match."""
        try:
            pages = self._pages("/series", self._filters, limit)
            first = next(pages, None)
        except (SourceError, SlideNotFoundError) as error:
            if isinstance(error, SourceError) and error.status not in _NOT_SERVED:
                raise
            logger.info("%s does not search all series (%s); studies are searched one by one.", self._url, error)
            yield from self._by_study(limit)
            return
        if first is not None:
            yield from first
            for page in pages:
                yield from page

    def _by_study(self, limit: int | None) -> Iterator[JsonDataset]:
        """Search for studies, then for the series of each: some services have no search across studies."""
        above = [one for one in self._filters if not one.name.startswith(("Series", "Modality"))]
        below = [one for one in self._filters if one not in above]
        for studies in self._pages("/studies", above, None, series=False):
            for study in studies:
                uid = texts_of(study, {"uid": "StudyInstanceUID"})["uid"]
                if uid is None:
                    continue
                for page in self._pages(f"/studies/{uid}/series", below, limit):
                    for dataset in page:
                        yield {**study, **dataset}

    def _pages(
        self, path: str, filters: list[Filter], limit: int | None, *, series: bool = True
    ) -> Iterator[list[JsonDataset]]:
        """Yield what matches, page by page.

        A page may be shorter than was asked for, since services have limits of their own; and one that ignores
        ``offset`` sends the same again and again.
        """
        key = "SeriesInstanceUID" if series else "StudyInstanceUID"
        wanted = [*filters, self._modality] if series else filters
        ask = self._asker(path, wanted)
        seen: set[str | None] = set()
        offset = longest = 0
        while offset <= MAX_OFFSET:
            page = ask({"limit": str(min(limit or PAGE, PAGE)), "offset": str(offset)})
            new = [item for item in page if texts_of(item, {"uid": key})["uid"] not in seen]
            if not new:
                return
            seen.update(texts_of(item, {"uid": key})["uid"] for item in new)
            yield self._matching(path, new, wanted)
            offset += len(page)
            if len(page) < longest:
                return
            longest = max(longest, len(page))

    def _asker(self, path: str, filters: list[Filter]) -> Callable[[dict[str, str]], list[JsonDataset]]:
        """Return what asks for a page, with as many filters as the service takes."""
        sent = {one.name: one.value for one in filters}
        asked = [one.name for one in filters if one is not self._modality]
        few = {one.name: one.value for one in filters if one is self._modality or one.vr == "UI"}
        forms: list[tuple[dict[str, str], bool]] = []
        for form in ((sent | ({"includefield": ",".join(asked)} if asked else {}), True), (sent, True), (few, True),
                     ({}, True), ({}, False)):  # fmt: skip
            if form not in forms:
                forms.append(form)

        def ask(paging: dict[str, str]) -> list[JsonDataset]:
            while True:
                parameters, paged = forms[0]
                try:
                    return self.source.find(path, {**parameters, **paging} if paged else parameters)
                except SourceError as error:
                    if error.status != 400 or len(forms) == 1:
                        raise
                    forms.pop(0)  # and never again

        return ask

    def _matching(self, path: str, page: list[JsonDataset], filters: list[Filter]) -> list[JsonDataset]:
        """Apply the filters to a page, as far as the answers tell; ask whether the service heeds the others."""
        for one in filters:
            if any(one.matches(dataset) is not None for dataset in page):
                page = [dataset for dataset in page if one.matches(dataset)]
            elif one is not self._modality and page and self._ignores(path, one):
                raise WsiWebError(
                    f"{self._url} neither filters by {one.name} nor tells it of what it finds. Search without it, "
                    f"and look at the slides' properties."
                )
        return page

    def _ignores(self, path: str, one: Filter) -> bool:
        """Whether a service finds something by a value that nothing has."""
        impossible = {"UI": "1.2.3.4.5.6.7.8.9.0", "DA": "18500101", "TM": "235959.999999"}.get(
            one.vr, "~no such value~"
        )
        try:
            return bool(self.source.find(path, {one.name: impossible, "limit": "1"}))
        except SourceError as error:
            if error.status != 400:
                raise
            return True
