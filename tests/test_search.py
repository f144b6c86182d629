"""Searches end, find every slide once, and never return what does not match."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import requests
from dicomweb_server import DICOMwebServer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import wsiweb
from wsiweb import (
    AuthenticationError,
    ReadOptions,
    SearchError,
    SlideNotFoundError,
    SourceError,
    UnsupportedError,
    WsiWebError,
    idc,
)
from wsiweb.cli import app
from wsiweb.finding import _series
from wsiweb.matching import Filter
from wsiweb.server import DicomWebServer
from wsiweb.sources.base import Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker
    from orthanc import Orthanc
    from pydicom import Dataset

NAMES = {
    "00080020": "StudyDate", "00080060": "Modality", "00100010": "PatientName", "00100020": "PatientID",
    "0020000D": "StudyInstanceUID", "0020000E": "SeriesInstanceUID",
}  # fmt: skip
VRS = {"StudyDate": "DA", "Modality": "CS", "PatientName": "PN", "PatientID": "LO"}


def series(number: int, study: int, **more: str) -> dict[str, str]:
    return {
        "StudyInstanceUID": f"1.2.{study}", "SeriesInstanceUID": f"1.2.{study}.{number}", "Modality": "SM",
        "PatientID": f"C3L-{study:03}", "StudyDate": f"20200{study % 9 + 1}01", "PatientName": "Doe^Jane", **more,
    }  # fmt: skip


ALL = [series(n, n // 2) for n in range(25)] + [series(90, 90, Modality="CT"), series(91, 91, PatientID="X")]
SLIDES = [one for one in ALL if one["Modality"] == "SM"]


@dataclass(slots=True)
class Archive:
    """A QIDO-RS service with manners of its own."""

    page: int = 10_000
    """It sends no more at a time."""
    offset: bool = True
    """Whether it heeds ``offset``."""
    refuses: tuple[str, ...] = ()
    """Parameters that it answers with 400."""
    ignores: tuple[str, ...] = ()
    returns: tuple[str, ...] = tuple(VRS)
    """Attributes in its answers."""
    root: bool = True
    """Whether it searches series of all studies."""
    empty: int = 200
    """Status of an answer that found nothing."""
    padding: str = ""
    token: str | None = None
    exact: bool = False
    """Whether it takes wildcards literally (Google)."""
    past: int = 200
    """Status of an answer to an offset past the end."""
    most: int = 10_000
    """It answers a higher ``limit`` with 400."""
    unlimited: bool = False
    """Whether it sends all there is to who gives no ``limit``."""
    shrinks: bool = False
    """Whether each page is shorter than the one before."""
    tells: str = ""
    """How it says that there is more: by a "warning" or by "206"."""
    gone: tuple[str, ...] = ()
    """Studies that it lists, and whose series it does not find."""
    more: bool = False
    """Whether there is more than was answered last."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def answer(self, path: str, query: dict[str, str], authorization: str | None) -> tuple[int, Any]:
        self.requests.append((path, query))
        self.more = False
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401, {}
        match = re.fullmatch(r"(?:/studies/([\d.]+))?/(series|studies)", path)
        if match is None or match[1] in self.gone or (match[1] is None and match[2] == "series" and not self.root):
            return 404, {"message": "no such resource"}
        if any(name in query for name in self.refuses) or int(query.get("limit", 1)) > self.most:
            return 400, {"message": "unknown parameter, or too high a limit"}
        key = "StudyInstanceUID" if match[2] == "studies" else "SeriesInstanceUID"
        found = list({one[key]: one for one in ALL if match[1] in (None, one["StudyInstanceUID"])}.values())
        for name, value in query.items():
            if name in VRS and name not in self.ignores:
                found = [one for one in found if (one[name] == value if self.exact else fnmatchcase(one[name], value))]
        start = int(query.get("offset", 0)) if self.offset else 0
        if start and start >= len(found) and self.past != 200:
            return self.past, {"message": "there is no more"}
        stop = start + min(
            int(query.get("limit", 10_000 if self.unlimited else 100)), self.page - self.shrinks * len(self.requests)
        )
        self.more = bool(self.tells) and stop < len(found)
        found = found[start:stop]
        if not found:
            return self.empty, []
        return 206 if self.more and self.tells == "206" else 200, [self.dataset(one, match[2]) for one in found]

    def dataset(self, one: dict[str, str], kind: str) -> dict[str, Any]:
        found = {}
        for tag, name in NAMES.items():
            if name in self.returns or name.endswith("UID"):
                if kind == "studies" and name in ("SeriesInstanceUID", "Modality"):
                    continue
                value: Any = one[name] + self.padding
                found[tag] = {
                    "vr": VRS.get(name, "UI"),
                    "Value": [{"Alphabetic": value} if name == "PatientName" else value],
                }
        return found


class Served:
    """Serves an archive while used as a context."""

    def __init__(self, archive: Archive) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                path, query = parts.path.removeprefix("/rs"), dict(parse_qsl(parts.query))
                status, found = archive.answer(path, query, self.headers["Authorization"])
                body = b"" if status == 204 else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                if archive.more and archive.tells == "warning":
                    self.send_header("Warning", "299 rs: There are 9 additional results that can be requested")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/rs"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def uids(slides: Any) -> list[str]:
    return [slide.series_uid for slide in slides]


def expected(**conditions: str) -> list[str]:
    return [one["SeriesInstanceUID"] for one in SLIDES if all(fnmatchcase(one[k], v) for k, v in conditions.items())]


@pytest.mark.parametrize(("archive", "requests"), [
    (Archive(), 2),
    (Archive(page=3), 9),
    (Archive(page=25), 2),
    (Archive(offset=False), 2),
    (Archive(offset=False, page=7), 2),
    (Archive(empty=204), 2),
    (Archive(padding="\0"), 2),
    (Archive(ignores=("Modality",)), 2),
    (Archive(refuses=("Modality",)), 3),
    (Archive(refuses=("Modality", "limit", "offset")), 5),
    (Archive(most=200), 4),
    (Archive(most=200, refuses=("Modality",)), 5),
    (Archive(past=400), 2),
    (Archive(past=404), 2),
    (Archive(root=False), 18),  # one in vain, studies until there are no more, and the series of each of 16
    (Archive(root=False, refuses=("Modality", "ModalitiesInStudy")), 20),
], ids=["good", "pages", "a page", "no offset", "no offset, pages", "204", "padded", "ignores", "refuses",
        "stubborn", "small pages", "small pages, refuses", "refuses the end", "no end", "no root",
        "no root, refuses"])  # fmt: skip
def test_every_slide_once(archive: Archive, requests: int) -> None:
    with Served(archive) as served:
        found = uids(wsiweb.search(served.url))
    if not archive.offset and archive.page < len(ALL):
        assert found == expected()[: archive.page]  # no more can be had
    else:
        assert found == expected()
    assert len(archive.requests) == requests


@pytest.mark.parametrize("archive", [
    Archive(), Archive(page=4), Archive(ignores=("PatientID",)), Archive(refuses=("PatientID",)),
    Archive(refuses=("includefield",)), Archive(root=False), Archive(root=False, refuses=("PatientID",)),
    Archive(padding=" "), Archive(refuses=("Modality",)), Archive(exact=True), Archive(exact=True, page=4),
    Archive(exact=True, root=False), Archive(exact=True, returns=("StudyDate", "PatientID", "Modality")),
], ids=["good", "pages", "ignores", "refuses", "no fields", "no root", "no root, refuses", "padded",
        "no modality", "exact", "exact, pages", "exact, no root", "exact, few told"])  # fmt: skip
def test_filters_hold_on_every_server(archive: Archive) -> None:
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, PatientID="C3L-00*")) == expected(PatientID="C3L-00*")
        assert uids(wsiweb.search(served.url, PatientID="nobody")) == []


def test_more_slides_than_the_highest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ALL", [series(n, n) for n in range(250)])
    archive = Archive(most=200)
    with Served(archive) as served:
        assert len(set(uids(wsiweb.search(served.url)))) == 250
    assert [query["limit"] for _, query in archive.requests] == ["1000", "1000", "100", "100", "100"]


def test_small_pages_where_offset_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends all there is without a limit is asked for that."""
    monkeypatch.setattr(sys.modules[__name__], "ALL", [series(n, n) for n in range(450)])
    archive = Archive(most=200, offset=False, unlimited=True)
    with Served(archive) as served:
        assert len(set(uids(wsiweb.search(served.url)))) == 450
    assert [query.get("limit") for _, query in archive.requests] == ["1000", "1000", "100", "100", None]


@pytest.mark.parametrize("tells", ["warning", "206"])
def test_a_short_page_is_no_end_where_there_is_more(tells: str) -> None:
    """As those of services that limit their answers by bytes."""
    with Served(Archive(page=9, shrinks=True, tells=tells)) as served:
        assert uids(wsiweb.search(served.url)) == expected()


def test_a_study_that_is_gone_hides_no_other() -> None:
    with Served(Archive(root=False, gone=("1.2.3",))) as served:
        assert uids(wsiweb.search(served.url)) == [uid for uid in expected() if not uid.startswith("1.2.3.")]
    everything = tuple(one["StudyInstanceUID"] for one in ALL)
    with Served(Archive(root=False, gone=everything)) as served, pytest.raises(SlideNotFoundError, match=r"1\.2\."):
        uids(wsiweb.search(served.url))


def test_what_cannot_be_told_is_asked_or_refused() -> None:
    silent = tuple(name for name in VRS if name != "PatientID")
    with Served(Archive(returns=silent)) as served:
        assert uids(wsiweb.search(served.url, PatientID="C3L-001")) == expected(PatientID="C3L-001")
    with (
        Served(Archive(returns=silent, ignores=("PatientID",))) as served,
        pytest.raises(WsiWebError, match="PatientID"),
    ):
        uids(wsiweb.search(served.url, PatientID="C3L-001"))


@pytest.mark.parametrize(("archive", "last"), [
    (Archive(), {"PatientID": "C3L-000*", "limit": "1"}),
    (Archive(exact=True), {"Modality": "SM", "includefield": "PatientID", "limit": "1000", "offset": "26"}),
], ids=["patterns", "exact"])  # fmt: skip
def test_nothing_found_by_a_pattern_is_checked(archive: Archive, last: dict[str, str]) -> None:
    """Who finds by a pattern what is there is believed; else all are listed, and matched here."""
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, PatientID="nobody*")) == []
    sent = [query for _, query in archive.requests]
    assert [query.get("PatientID") for query in sent[:3]] == ["nobody*", None, "C3L-000*"]
    assert len(sent) == (3 if archive.exact is False else 4)
    assert sent[-1] == last


def test_selective_filters_survive_the_refusal_of_others() -> None:
    """Were PatientID dropped with Modality, a whole archive would be listed for one patient."""
    archive = Archive(refuses=("Modality",))
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, PatientID="C3L-001")) == expected(PatientID="C3L-001")
    assert [sorted({"PatientID", "Modality"} & set(query)) for _, query in archive.requests] == [
        ["Modality", "PatientID"], ["Modality", "PatientID"], ["PatientID"], ["PatientID"],
    ]  # fmt: skip


def test_more_slides_than_a_page_where_offset_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ALL", [series(n, n) for n in range(2500)])
    archive = Archive(offset=False)
    with Served(archive) as served:
        assert len(set(uids(wsiweb.search(served.url)))) == 2500
    assert [int(query["limit"]) for _, query in archive.requests] == [1000, 1000, 4000]


def test_a_limit_does_not_hide_what_comes_later() -> None:
    archive = Archive(offset=False, ignores=("Modality", "PatientID"))
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, limit=1, PatientID="X")) == expected(PatientID="X")
    assert len(archive.requests) == 2


def test_a_filter_without_values_on_some_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told of some is not there in the others."""
    some = [series(n, n, PatientID="C3L-1" if n < 3 else "") for n in range(12)]
    monkeypatch.setattr(sys.modules[__name__], "ALL", some)
    archive = Archive(page=3, ignores=("PatientID",))
    with Served(archive) as served:
        assert len(uids(wsiweb.search(served.url, PatientID="C3L-1"))) == 3
    assert len(archive.requests) == 5


def test_a_study_can_be_searched() -> None:
    archive = Archive()
    with Served(archive) as served:
        assert uids(wsiweb.search(f"{served.url}/studies/1.2.3")) == ["1.2.3.6", "1.2.3.7"]
        assert uids(wsiweb.search(f"{served.url}/studies/1.2.3/series/1.2.3.7")) == ["1.2.3.7"]
        assert {path for path, _ in archive.requests} == {"/studies/1.2.3/series"}


def test_any_modality_may_be_asked_for() -> None:
    with Served(Archive()) as served:
        assert uids(wsiweb.search(served.url, Modality="CT")) == ["1.2.90.90"]
        assert len(uids(wsiweb.search(served.url, Modality="*"))) == len(ALL)


def test_patterns_are_sent_as_they_are(synthetic: SlideMaker) -> None:
    """Debian's Orthanc decodes none of the escapes that these characters do not need (RFC 3986 3.4)."""
    with DICOMwebServer(synthetic("rgb").folder) as server:
        found = wsiweb.search(server.url, PatientID="P-?*", SeriesInstanceUID=["1.2", synthetic("rgb").series_uid])
        next(found, None)
        assert "PatientID=P-?*&" in server.requests[0].path
        assert f"SeriesInstanceUID=1.2,{synthetic('rgb').series_uid}&" in server.requests[0].path
        assert "includefield=PatientID,SeriesInstanceUID&" in server.requests[0].path


@settings(max_examples=40, deadline=None)
@example(page=15, root=False, exact=False, past=400, refuses=set(), ignores=set(), limit=15, patient="*", date=None)
@given(
    page=st.integers(1, 40), root=st.booleans(), exact=st.booleans(), past=st.sampled_from([200, 400, 404]),
    refuses=st.sets(st.sampled_from(["Modality", "PatientID", "StudyDate", "includefield", "ModalitiesInStudy"])),
    ignores=st.sets(st.sampled_from(list(VRS))), limit=st.none() | st.integers(1, 30),
    patient=st.sampled_from(["C3L-001", "C3L-*", "C3L-00?", "*", "X", "c3l-001"]),
    date=st.sampled_from([None, "20200101", "202002??"]),
)  # fmt: skip
def test_whatever_the_service_does_the_answer_is_right(
    page: int, root: bool, exact: bool, past: int, refuses: set[str], ignores: set[str], limit: int | None,
    patient: str, date: str | None,
) -> None:  # fmt: skip
    archive = Archive(page=page, root=root, exact=exact, past=past, refuses=tuple(refuses), ignores=tuple(ignores))
    wanted = {"PatientID": patient} | ({} if date is None else {"StudyDate": date})
    filters = [*(Filter(name, value) for name, value in wanted.items()), Filter("Modality", "SM", implied=True)]
    source: Any = Asked(archive)
    found = [one["0020000E"]["Value"][0] for one in _series(source, filters, None, limit)]
    assert sorted(found) == sorted(expected(**wanted))
    assert len(archive.requests) <= 2 * len(ALL) + 40


class Asked:
    """Asks an archive without a network."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.service = SimpleNamespace(qido_url="http://h")

    def find(self, path: str, parameters: dict[str, str]) -> Found:
        status, found = self.archive.answer(path, parameters, None)
        if status == 404:
            raise SlideNotFoundError("404")
        if status != 200:
            raise SourceError(str(status), status=status)
        return Found(list(found))


def test_limits() -> None:
    archive = Archive(page=4)
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, limit=5)) == expected()[:5]
        assert len(archive.requests) == 2
        assert archive.requests[0][1]["limit"] == "5"
        found = wsiweb.search(served.url)
        next(found)
        assert len(archive.requests) == 3  # pages are asked for when they are needed
        with pytest.raises(SearchError):
            wsiweb.search(served.url, limit=0)


def test_bad_input() -> None:
    wrong: dict[str, dict[str, Any]] = {
        "PatientID": {"PatientIdd": "x"}, "mean PatientID[?]": {"patient_id": "x"},
        "mean StudyInstanceUID[?]": {"study_uid": "1"}, "20200101-20201231": {"StudyDate": "2020-01-01"},
        "one value": {"PatientID": ["a", "b"]},
    }  # fmt: skip
    for said, filters in wrong.items():
        with pytest.raises(ValueError, match=said) as refused:
            wsiweb.search("http://127.0.0.1:9/rs", **filters)
        assert type(refused.value) is SearchError
    for place in ("/a/folder", 5):
        with pytest.raises(SlideNotFoundError):
            wsiweb.search(place)
    secret = "s3cr3t"
    with Served(Archive(token="other")) as served, pytest.raises(AuthenticationError) as caught:
        uids(wsiweb.search(served.url, token=secret))
    assert secret not in str(caught.value)


def test_credentials_go_along_and_stay_hidden() -> None:
    with Served(Archive(token="s3cr3t")) as served:
        found = next(wsiweb.search(served.url, token="s3cr3t", options=ReadOptions(max_attempts=1)))
        assert "s3cr3t" not in repr(found)
        assert found.connection["token"] == "s3cr3t"


@pytest.mark.parametrize(("name", "value", "found", "matches"), [
    ("PatientID", "C3L-*", "C3L-1", True),
    ("PatientID", "c3l-*", "C3L-1", False),
    ("PatientID", "C?L", "CXL", True),
    ("PatientID", "[ab]", "a", False),
    ("PatientID", "*", "anything", True),
    ("PatientName", "doe^j*", "Doe^Jane", True),
    ("StudyDate", "20200101-20201231", "20200615", True),
    ("StudyDate", "20200101-20201231", "20210101", False),
    ("StudyDate", "-20201231", "20190101", True),
    ("StudyDate", "20200101-", "20190101", False),
    ("StudyDate", "20200101-", "20200101", True),
    ("StudyDate", dt.date(2020, 1, 5), "20200105", True),
    ("StudyTime", "10-11", "115959.5", True),
    ("StudyTime", "10-11", "120000", False),
    ("NumberOfSeriesRelatedInstances", 3, "03", True),
    ("PatientName", "DOE^JANE^", "Doe^Jane", True),
    ("StudyInstanceUID", ["1.2", "1.3"], "1.3", True),
    ("StudyInstanceUID", "1.2,1.3", "1.3", True),
    ("StudyInstanceUID", "1.2\\1.3", "1.33", False),
    ("0020000D", "1.2", "1.2", True),
])  # fmt: skip
def test_matching(name: str, value: Any, found: str, matches: bool) -> None:
    one = Filter(name, value)
    shown: Any = {"Alphabetic": found} if name == "PatientName" else found
    assert one.matches({one.tag: {"vr": one.vr, "Value": [shown]}}) is matches
    assert one.matches({}) is (True if value == "*" else None)


@pytest.fixture
def embedded(synthetic: SlideMaker) -> Iterator[str]:
    with DicomWebServer([synthetic("rgb").folder, synthetic("jpeg-mono8").folder]) as server:
        yield server.url


def test_what_is_found_opens(embedded: str, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    found = {slide.series_uid: slide for slide in wsiweb.search(embedded)}
    assert set(found) == {truth.series_uid, synthetic("jpeg-mono8").series_uid}
    with found[truth.series_uid].open() as slide:
        assert slide.size == (700, 530)
    assert found[truth.series_uid].number_of_instances == len(truth.files)
    assert uids(wsiweb.search(embedded, SeriesInstanceUID=truth.series_uid)) == [truth.series_uid]


@pytest.mark.parametrize(("place", "shown"), [
    *((place, place) for place in ("127.0.0.1:8042/dicom-web", "localhost:8042", "/some/folder")),
    ("", "''"), (Path("folder"), repr(Path("folder"))),
])  # fmt: skip
def test_what_is_no_url_of_a_service_is_shown(place: Any, shown: str) -> None:
    for ask in (wsiweb.search, wsiweb.doctor.examine):
        with pytest.raises(SlideNotFoundError) as caught:
            ask(place)
        assert str(caught.value) == f"{shown} is no URL of a DICOMweb service: that begins with https:// or http://."


def test_what_is_found_opens_by_the_same_connection(synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder) as server:
        found = next(wsiweb.search(server.url, headers={"X-Api-Key": "k"}, token="t", auth=None))
        copy = pickle.loads(pickle.dumps(found))
        assert copy == found
        server.forget()
        with copy.open() as slide:
            assert slide.series_uid == truth.series_uid
        assert {(r.headers["x-api-key"], r.headers["authorization"]) for r in server.requests} == {("k", "Bearer t")}


ORTHANC_FILTERS: list[tuple[dict[str, Any], bool, int]] = [
    ({}, True, 2),
    ({"PatientID": "P-*"}, True, 2),
    ({"PatientID": "p-*"}, False, 2),  # it finds them, without regard to case
    ({"PatientName": "test^slide"}, True, 4),
    ({"PatientName": "TEST^S*"}, True, 4),
    ({"StudyDate": "20240101-20240131"}, True, 2),
    ({"StudyDate": "20240103-"}, False, 3),  # and whether it understands ranges
    ({"StudyDate": "2024*"}, True, 4),  # refused
    ({"ContainerIdentifier": "C-?"}, True, 2),
    ({"ContainerIdentifier": "C-2"}, False, 1),
    ({"StudyDescription": "left breast*"}, False, 4),
    ({"StudyDescription": "Left breast*"}, True, 4),
]


@pytest.mark.orthanc
def test_orthanc(orthanc: Orthanc, synthetic: SlideMaker) -> None:
    """Debian's decodes no escapes, so that it finds nothing by a name with ^ or a text with a space."""

    def describe(dataset: Dataset) -> None:
        dataset.StudyDescription = "Left breast, 2 blocks"

    slides = [synthetic("rgb", sizes=((100, 80),), change=describe) for _ in range(2)]
    for slide in slides:
        orthanc.store(slide.files)
    both = {slide.series_uid for slide in slides}
    try:
        for filters, matching, requests in ORTHANC_FILTERS:
            found = Counting(orthanc.url)
            assert set(uids(found.search(**filters))) == (both if matching else set()), filters
            assert found.requests == requests, filters
        several = wsiweb.search(orthanc.url, SeriesInstanceUID=["1.2", *sorted(both)])
        assert set(uids(several)) == both
        one = wsiweb.search(f"{orthanc.url}/studies/{slides[0].study_uid}", PatientID="P-1")
        assert uids(one) == [slides[0].series_uid]
        with next(wsiweb.search(orthanc.url, limit=1)).open() as opened:
            assert opened.size == (100, 80)
    finally:
        orthanc.empty()


class Counting:
    """Searches through a session that counts its requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = 0
        self.session = requests.Session()
        self.session.hooks["response"].append(self._count)

    def _count(self, response: requests.Response, *_: Any, **__: Any) -> None:
        self.requests += 1

    def search(self, **filters: Any) -> Iterator[wsiweb.FoundSlide]:
        return wsiweb.search(self.url, session=self.session, **filters)


def test_the_command(embedded: str, synthetic: SlideMaker) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["search", embedded, "--json"])
    assert listed.exit_code == 0
    assert {one["series_uid"] for one in json.loads(listed.stdout)} == {
        synthetic("rgb").series_uid, synthetic("jpeg-mono8").series_uid,
    }  # fmt: skip
    one = synthetic("rgb").series_uid
    table = runner.invoke(app, ["search", embedded, f"SeriesInstanceUID={one}", "--limit", "1"], env={"COLUMNS": "300"})
    assert table.exit_code == 0
    assert "patient" in table.stdout
    assert synthetic("rgb").series_uid in runner.invoke(app, ["search", embedded]).stdout  # whole, however narrow
    for wrong in ("nonsense", "=x", "PatientIdd=x", "limit=3", "StudyDate=2020-01-01"):
        refused = runner.invoke(app, ["search", embedded, wrong])
        assert (refused.exit_code, refused.stdout) == (2, "")
    nothing = runner.invoke(app, ["search", embedded, "PatientID=nobody"])
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert isinstance(runner.invoke(app, ["search", "http://127.0.0.1:1/rs"]).exception, SourceError)


def test_the_command_lists_what_services_say_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ALL", [series(n, n, PatientID="[/red]\x1b[2J") for n in range(150)])
    runner = CliRunner()
    with Served(Archive()) as served:
        table = runner.invoke(app, ["search", served.url])
        assert table.exit_code == 0
        assert table.stdout.count("[/red]?[2J") == 100
        assert "100 slides, and more" in table.stderr
        assert len(json.loads(runner.invoke(app, ["search", served.url, "--json"]).stdout)) == 150


# IDC --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, [], ()])
def test_nothing_to_look_for(value: Any) -> None:
    """It would find every slide, or none."""
    with pytest.raises(SearchError, match="nothing to look for"):
        wsiweb.search("http://127.0.0.1:1/rs", SeriesInstanceUID=value)


@pytest.mark.parametrize("limit", ["3", 1.5, 0, -1])
def test_a_limit_is_an_integer(limit: Any) -> None:
    with pytest.raises(SearchError, match="limit"):
        wsiweb.search("http://127.0.0.1:1/rs", limit=limit)


def test_lists_of_any_kind() -> None:
    uids_ = ["1.2", "1.3"]
    wanted = Filter("SeriesInstanceUID", uids_).value
    assert [Filter("SeriesInstanceUID", kind).value for kind in (iter(uids_), dict.fromkeys(uids_), tuple(uids_))] == [
        wanted
    ] * 3


def test_a_keyword_is_given_once() -> None:
    answered = CliRunner().invoke(app, ["search", "http://127.0.0.1:1/rs", "Modality=CT", "Modality=SM"])
    assert answered.exit_code == 2


def test_idc() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({
        "collection_id": ["tcga_luad", "cptac_brca", "tcga_luad"], "PatientID": ["A", "B", "C"],
        "StudyInstanceUID": ["1.1", "1.2", "1.3"], "SeriesInstanceUID": ["2.1", "2.2", "2.3"],
        "primaryAnatomicStructure_CodeMeaning": ["Lung", "Breast", "Lung"], "ObjectiveLensPower": [40.0, 20.0, 20.0],
        "staining_usingSubstance_CodeMeaning": [["hematoxylin stain", "eosin stain"]] * 3,
    })  # fmt: skip
    assert uids(idc.find(table=table, organ="lung", objective_power="20")) == ["2.3"]
    assert uids(idc.find(table=table, collection="TCGA_*")) == ["2.1", "2.3"]
    assert uids(idc.find(table=table, stain="*eosin*", limit=2)) == ["2.1", "2.2"]
    assert uids(idc.find(table=table.assign(note=["[1] a", "1", None]), note="[1]*")) == ["2.1"]
    for power in (20, 20.0, "20", table.ObjectiveLensPower[1]):
        assert uids(idc.find(table=table, objective_power=power)) == ["2.2", "2.3"]
    assert uids(idc.find(table=table, collection=["cptac_*", "none"])) == ["2.2"]
    nothings: list[Any] = [None, []]
    for nothing in nothings:
        with pytest.raises(SearchError, match="nothing to look for"):
            idc.find(table=table, organ=nothing)
    assert next(idc.find(table=table)).place == idc.PROXY
    with pytest.raises(SearchError, match="organ"):
        idc.find(table=table, organs="lung")
    with pytest.raises(SearchError):
        idc.find(table=table, limit=0)


def test_idc_cells_as_parquet_gives_them() -> None:
    """Lists come as arrays; what is missing matches nothing, not even ``*`` or its own name."""
    pandas = pytest.importorskip("pandas")
    stains = [np.array(["Hematoxylin stain", "water soluble eosin stain"], object), None, np.array([], object)]
    table = pandas.DataFrame({
        "Modality": ["SM", "SM", "CT"], "StudyInstanceUID": ["1.1", "1.2", "1.3"],
        "SeriesInstanceUID": ["2.1", "2.2", "2.3"], "PatientID": ["A", None, "C"],
        "staining_usingSubstance_CodeMeaning": stains, "ObjectiveLensPower": [40, None, 20],
        "StudyDate": ["1999-12-31", None, None], "instanceCount": pandas.array([7, None, 1], "Int64"),
    })  # fmt: skip
    assert uids(idc.find(table=table)) == ["2.1", "2.2"]
    assert uids(idc.find(table=table, stain="hematoxylin stain")) == ["2.1"]
    assert uids(idc.find(table=table, stain="*")) == ["2.1"]
    assert uids(idc.find(table=table, objective_power=40)) == ["2.1"]
    assert uids(idc.find(table=table, objective_power="nan")) == uids(idc.find(table=table, patient_id="none")) == []
    first, second = idc.find(table=table)
    assert (first.study_date, first.number_of_instances, first.patient_id) == ("19991231", 7, "A")
    assert (second.study_date, second.number_of_instances, second.patient_id) == (None, None, None)


@pytest.mark.parametrize(("filters", "fetched"), [({"collection": "c*"}, False), ({"organ": "lung"}, True)])
def test_idc_downloads_only_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], fetched: bool
) -> None:
    pandas = pytest.importorskip("pandas")
    uid = {"SeriesInstanceUID": ["2.1", "2.2"]}
    client = SimpleNamespace(
        index=pandas.DataFrame({**uid, "StudyInstanceUID": ["1", "1"], "Modality": "SM", "collection_id": "C"}),
        sm_index=None, asked=[],
    )  # fmt: skip
    tables: list[Any] = [pandas.DataFrame({**uid, "primaryAnatomicStructure_CodeMeaning": ["Lung", "Breast"]})]
    tables += [None, ..., OSError("?")]  # without an answer it is None; older clients have no attribute then

    def fetch(name: str) -> None:
        client.asked.append(name)
        table = tables.pop(0)
        if isinstance(table, OSError):
            raise table
        client.sm_index = table
        if table is ...:
            del client.sm_index

    client.fetch_index = fetch
    package = SimpleNamespace(IDCClient=SimpleNamespace(client=lambda: client))
    monkeypatch.setitem(sys.modules, "idc_index", package)
    assert uids(idc.find(**filters)) == (["2.1"] if fetched else ["2.1", "2.2"])
    assert client.asked == (["sm_index"] if fetched else [])
    for _ in tables[:] if fetched else []:  # it logs a failure, or requests raises
        with pytest.raises(SourceError, match="index"):
            idc.find(**filters)


def test_idc_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idc_index", None)
    with pytest.raises(UnsupportedError, match=r"wsiweb\[idc\]"):
        idc.find(collection="x")


def test_idc_is_there_without_an_import_of_its_own() -> None:
    code = "import wsiweb, sys; wsiweb.idc.find; assert 'idc_index' not in sys.modules; wsiweb.search"
    subprocess.run([sys.executable, "-c", code], check=True)
