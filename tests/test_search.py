"""Searches end, find every slide once, and never return what does not match."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

import pytest
from typer.testing import CliRunner

import wsiweb
from wsiweb import AuthenticationError, ReadOptions, RegionError, SlideNotFoundError, WsiWebError, idc
from wsiweb.cli import app
from wsiweb.matching import Filter
from wsiweb.server import DicomWebServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker

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
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def answer(self, path: str, query: dict[str, str], authorization: str | None) -> tuple[int, Any]:
        self.requests.append((path, query))
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401, {}
        match = re.fullmatch(r"(?:/studies/([\d.]+))?/(series|studies)", path)
        if match is None or (match[1] is None and match[2] == "series" and not self.root):
            return 404, {"message": "no such resource"}
        if any(name in query for name in self.refuses):
            return 400, {"message": "unknown parameter"}
        key = "StudyInstanceUID" if match[2] == "studies" else "SeriesInstanceUID"
        found = list({one[key]: one for one in ALL if match[1] in (None, one["StudyInstanceUID"])}.values())
        for name, value in query.items():
            if name in VRS and name not in self.ignores:
                found = [one for one in found if fnmatchcase(one[name], value)]
        start = int(query.get("offset", 0)) if self.offset else 0
        found = found[start : start + min(int(query.get("limit", 100)), self.page)]
        if not found:
            return self.empty, []
        return 200, [self.dataset(one, match[2]) for one in found]

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
    (Archive(refuses=("Modality", "limit", "offset")), 4),
], ids=["good", "pages", "a page", "no offset", "no offset, pages", "204", "padded", "ignores", "refuses",
        "stubborn"])  # fmt: skip
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
    Archive(padding=" "), Archive(refuses=("Modality",)),
], ids=["good", "pages", "ignores", "refuses", "no fields", "no root", "no root, refuses", "padded",
        "no modality"])  # fmt: skip
def test_filters_hold_on_every_server(archive: Archive) -> None:
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, PatientID="C3L-00*")) == expected(PatientID="C3L-00*")
        assert uids(wsiweb.search(served.url, PatientID="nobody")) == []


def test_what_cannot_be_told_is_asked_or_refused() -> None:
    silent = tuple(name for name in VRS if name != "PatientID")
    with Served(Archive(returns=silent)) as served:
        assert uids(wsiweb.search(served.url, PatientID="C3L-001")) == expected(PatientID="C3L-001")
    with (
        Served(Archive(returns=silent, ignores=("PatientID",))) as served,
        pytest.raises(WsiWebError, match="PatientID"),
    ):
        uids(wsiweb.search(served.url, PatientID="C3L-001"))


def test_limits() -> None:
    archive = Archive(page=4)
    with Served(archive) as served:
        assert uids(wsiweb.search(served.url, limit=5)) == expected()[:5]
        assert len(archive.requests) == 2
        assert archive.requests[0][1]["limit"] == "5"
        found = wsiweb.search(served.url)
        next(found)
        assert len(archive.requests) == 3  # pages are asked for when they are needed
        with pytest.raises(RegionError):
            wsiweb.search(served.url, limit=0)


def test_bad_input() -> None:
    with pytest.raises(WsiWebError, match="PatientID"):
        wsiweb.search("http://127.0.0.1:9/rs", PatientIdd="x")
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
    ("StudyInstanceUID", ["1.2", "1.3"], "1.3", True),
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
    assert uids(wsiweb.search(embedded, SeriesInstanceUID=truth.series_uid)) == [truth.series_uid]


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
    assert runner.invoke(app, ["search", embedded, "nonsense"]).exit_code == 2


# IDC --------------------------------------------------------------------------------------------------------


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
    assert next(idc.find(table=table)).place == idc.PROXY
    with pytest.raises(WsiWebError, match="organ"):
        idc.find(table=table, organs="lung")
