"""What ``examine`` finds out about servers that behave in known ways, what it costs, and what it keeps to itself."""

from __future__ import annotations

import base64
import io
import json
import socket
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_server import DICOMwebServer
from faults import Fault, Kind, Request, quota_page
from PIL import Image
from synthetic import make_slide, srgb_profile

from wsiweb import ReadOptions, SlideNotFoundError
from wsiweb.doctor import examine
from wsiweb.sources import services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import SlideMaker
    from orthanc import Orthanc
    from synthetic import SyntheticSlide

    from wsiweb.doctor import Report

    Hook = Callable[[Request], Fault | None]

JSON = {"Content-Type": "application/dicom+json"}
CHECKS = [
    *("reach", "authentication", "search", "metadata", "slide", "single frames", "frame lists", "media types"),
    *("latency", "throughput", "bulk data", "quota"),
]
HURRIED = ReadOptions(timeout_seconds=0.5)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("jpeg"), syntax=pydicom.uid.JPEGBaseline8Bit, icc_profile=srgb_profile())


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


@pytest.fixture(scope="module")
def shared(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    """For tests that change nothing but the fault."""
    with DICOMwebServer(truth.folder) as server:
        yield server


@pytest.fixture
def series(server: DICOMwebServer, truth: SyntheticSlide) -> str:
    return server.series_url(truth.study_uid, truth.series_uid)


def only(kind: Kind, fault: Fault) -> Hook:
    """Return a hook for all requests of a kind."""
    return lambda request: fault if request.kind == kind else None


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def decompressed(_: int, data: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(data))).tobytes()


# Servers --------------------------------------------------------------------------------------------------------------


def test_a_good_server(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    report = examine(server.url)
    assert report.readable
    assert set(statuses(report).values()) == {"ok"}
    assert [check.name for check in report.checks] == CHECKS
    assert (report.url, report.study_uid, report.series_uid) == (server.url, truth.study_uid, truth.series_uid)
    assert report.check("single frames").figures["nature"] == "as stored"
    assert report.check("single frames").figures["coding"] == "JPEG"
    assert report.check("slide").figures["levels"] == len(truth.levels)
    assert report.check("frame lists").figures["named"] == 4
    assert report.check("bulk data").figures["bytes"] == len(truth.icc_profile or b"")
    natures = report.check("media types").figures
    assert sorted(map(str, natures.values())) == ["406", "as stored", "as stored", "as stored", "as stored"]
    assert natures['multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'] == "406"
    assert report.service is not None
    assert str(report.service.frames_per_request) in report.conclusion


def test_what_it_costs(server: DICOMwebServer, series: str) -> None:
    """Two searches, the metadata, 1 + 4 + 3 + 12 + 8 x 12 frames, five media types, the profile."""
    for place in (server.url, series):
        server.forget()
        report = examine(place)
        asked = [server.count(kind) for kind in ("search", "metadata", "frames", "bulk")]
        assert asked == [2, 1, 19, 1]
        assert report.requests == server.count() == 23
        assert sum(server.frames_asked().values()) == 1 + 4 + 3 + 12 + 8 * 12 + 5
        assert max(server.frames_asked().values()) == 1


def test_a_study_costs_a_search_more(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    assert examine(f"{server.url}/studies/{truth.study_uid}").readable
    assert server.count("search") == 3
    assert examine(server.url, series_uid=truth.series_uid).study_uid == truth.study_uid


def test_bytes_are_bounded(tmp_path: Path) -> None:
    slide = make_slide(tmp_path, tile_size=(128, 128), sizes=((1024, 1024),), icc_profile=srgb_profile())
    with DICOMwebServer(slide.folder) as server:
        report = examine(server.url, megabytes=1.2)
        metadata = report.check("metadata").figures["bytes"]
        assert isinstance(metadata, int)
        assert report.readable
        assert report.bytes - metadata < 1.2e6
        assert report.check("throughput").figures["frames_per_request"] == 1  # 14 are left for 9
        little = examine(server.url, megabytes=0.03)
    assert not little.readable
    assert "0.03 MB are the limit" in little.check("single frames").finding
    assert little.bytes - metadata < 0.03e6 + 65_536  # the chunk that it stops at


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/dicom-web"
    report = examine(url)
    assert not report.readable
    assert statuses(report) == {**dict.fromkeys(CHECKS, "skipped"), "reach": "failed"}
    assert "refused" in report.check("reach").finding
    assert report.requests == 1


def test_a_name_that_does_not_exist() -> None:
    report = examine("https://no-such-host.invalid/dicomWeb")
    assert report.check("reach").status == "failed"
    assert not report.readable


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_are_missing(server: DICOMwebServer, series: str, status: int) -> None:
    server.fault = lambda request: Fault(status=status, headers={"WWW-Authenticate": 'Basic realm="secret place"'})
    report = examine(series)
    check = report.check("authentication")
    assert (check.status, report.readable) == ("failed", False)
    assert f"{status} for search, metadata, with no credentials. It asks for Basic." == check.finding
    assert ("--token" in check.advice) == (status == 401)
    assert "secret place" not in json.dumps(report.as_dict())
    assert server.count() == 2


def test_who_finds_nothing_does_not_know_whether_credentials_are_needed(server: DICOMwebServer, series: str) -> None:
    server.fault = lambda request: Fault(status=404)
    check = examine(series).check("authentication")
    assert (check.status, check.finding) == ("skipped", "Nothing was found that could be refused.")


def test_credentials_are_wrong(server: DICOMwebServer, series: str) -> None:
    server.fault = lambda request: Fault(status=401)
    check = examine(series, token="abcdefgh").check("authentication")
    assert check.figures["credentials"] == "a bearer token"
    assert "expired" in check.advice


def test_credentials_are_needed_for_frames_only(server: DICOMwebServer, series: str) -> None:
    server.fault = only("frames", Fault(status=403))
    report = examine(series, auth=("user", "pa55word"))
    check = report.check("authentication")
    assert check.status == "warning"
    assert check.finding.startswith("403 for frames, with user and password")
    assert (report.check("slide").status, report.check("single frames").status) == ("ok", "failed")


def test_a_token_is_renewed(server: DICOMwebServer, series: str) -> None:
    tokens = iter(["first-token", "second-token"])
    right = "Bearer second-token"
    server.fault = lambda request: None if request.headers["authorization"] == right else Fault(status=401)
    report = examine(series, token=lambda: next(tokens))
    assert report.readable
    assert report.check("authentication").status == "ok"
    assert report.requests == 24


def test_no_search(server: DICOMwebServer, series: str) -> None:
    server.fault = only("search", Fault(status=404, body=b"no QIDO here", headers={"Content-Type": "text/plain"}))
    report = examine(series)
    assert report.readable
    assert report.check("search").status == "warning"
    assert "404 (no QIDO here)" in report.check("search").finding
    server.forget()
    rootless = examine(server.url)
    assert not rootless.readable
    assert "studies" in rootless.check("metadata").advice
    assert server.count() == 1


@pytest.mark.parametrize(
    ("modality", "count", "same", "ignored"),
    [("SM", 2, True, "offset="), ("CT", 2, False, "Modality="), ("SM", 3, False, "limit=")],
)
def test_searches_that_heed_nothing(
    server: DICOMwebServer, series: str, modality: str, count: int, same: bool, ignored: str
) -> None:
    def hook(request: Request) -> Fault | None:
        if request.kind != "search":
            return None
        first = 1 if "offset" in request.path and not same else 0
        items: list[dict[str, Any]] = [
            {"00080060": {"vr": "CS", "Value": [modality]}, "0020000E": {"vr": "UI", "Value": [f"1.{number}"]}}
            for number in range(first, first + count)
        ]
        return Fault(status=200, headers=JSON, body=json.dumps(items).encode())

    server.fault = hook
    check = examine(series).check("search")
    assert check.status == "warning"
    assert check.finding.endswith(f"not heeded: {ignored}")


def test_frames_come_decompressed(server: DICOMwebServer, series: str) -> None:
    server.fault = only("frames", Fault(change_frame=decompressed))
    report = examine(series)
    single, forms = report.check("single frames"), report.check("media types")
    assert report.readable
    assert (single.status, single.figures["nature"]) == ("warning", "decompressed")
    assert single.figures["coding"] == "raw pixels"
    assert forms.status == "warning"
    assert "decompressed" in report.conclusion


def test_lists_are_refused(server: DICOMwebServer, series: str) -> None:
    server.fault = lambda request: Fault(status=406) if len(request.frame_numbers) > 1 else None
    report = examine(series)
    assert report.readable
    assert report.check("frame lists").status == "warning"
    assert report.check("frame lists").figures["status"] == 406
    assert "frames_per_request=1" in report.check("frame lists").advice
    assert report.check("throughput").figures["frames_per_request"] == 1
    assert "frames_per_request=1" in report.conclusion
    assert server.count("frames") == 19


def test_frames_come_without_multipart(server: DICOMwebServer, series: str) -> None:
    server.fault = only("frames", Fault(single_part=True))
    report = examine(series)
    assert report.readable
    assert "one came, without multipart" in report.check("frame lists").finding
    assert report.check("single frames").status == "ok"


def test_lists_are_cut(server: DICOMwebServer, series: str) -> None:
    fault = Fault(drop_parts=1, omit_closing=True)
    server.fault = lambda request: fault if len(request.frame_numbers) == 4 else None
    check = examine(series).check("frame lists")
    assert check.status == "warning"
    # Nothing tells the end of the third part.
    assert (check.figures["came"], check.figures["asked"], check.figures["closed"]) == (2, 4, False)


def test_the_first_form_is_refused(server: DICOMwebServer, series: str) -> None:
    def hook(request: Request) -> Fault | None:
        return Fault(status=400) if "octet-stream" in request.headers["accept"] and request.kind == "frames" else None

    server.fault = hook
    report = examine(series)
    assert report.readable
    assert "second attempt (400)" in report.check("single frames").finding
    assert "*/*" in report.conclusion
    assert report.check("media types").status == "ok"


def test_a_slow_server(server: DICOMwebServer, series: str) -> None:
    server.fault = only("frames", Fault(latency_seconds=0.03))
    report = examine(series)
    for figure in ("least_ms", "median_ms", "most_ms"):
        value = report.check("latency").figures[figure]
        assert isinstance(value, float)
        assert value >= 30


def test_a_dead_slow_server_ends_in_a_finding(server: DICOMwebServer, series: str) -> None:
    server.fault = only("frames", Fault(latency_seconds=0.4))
    report = examine(series, options=ReadOptions(timeout_seconds=0.1))
    assert not report.readable
    assert "silent" in report.check("single frames").finding
    assert report.check("latency").status == "skipped"
    server.fault = only("frames", Fault(drip=(50, 0.05)))
    report = examine(series, options=ReadOptions(timeout_seconds=1, deadline_seconds=0.2))
    assert "did not come to an end" in report.check("single frames").finding


def test_metadata_are_an_extract(server: DICOMwebServer, series: str) -> None:
    whole = [instance.metadata for instance in server.instances]
    extract = [{tag: one[tag] for tag in ("00080016", "00080018", "0020000D", "0020000E")} for one in whole]

    def hook(request: Request) -> Fault | None:
        of_series = request.kind == "metadata" and request.instance_uid is None
        return Fault(status=200, headers=JSON, body=json.dumps(extract).encode()) if of_series else None

    server.fault = hook
    report = examine(series)
    assert report.readable
    assert report.check("metadata").status == "warning"
    assert report.check("metadata").figures["further_requests"] == len(whole)
    assert "extract" in report.check("metadata").finding
    assert server.count("metadata") == 1 + len(whole)


def test_metadata_come_compressed(truth: SyntheticSlide) -> None:
    with DICOMwebServer(truth.folder, gzip_answers=True) as server:
        check = examine(server.url).check("metadata")
    assert check.figures["compressed"] is True
    assert "kB compressed" in check.finding


def test_transfer_syntaxes_are_told(server: DICOMwebServer, series: str) -> None:
    for instance in server.instances:
        instance.metadata["00083002"] = {"vr": "UI", "Value": [instance.transfer_syntax]}
    report = examine(series)
    assert "JPEG Baseline" in report.check("slide").finding
    assert "transfer syntax told" in report.check("metadata").finding


def test_no_slide_among_the_instances(server: DICOMwebServer, series: str) -> None:
    for instance in server.instances:
        instance.metadata["00080016"] = {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]}
    report = examine(series)
    assert (report.check("slide").status, report.check("single frames").status) == ("failed", "skipped")
    assert "no whole-slide image" in report.conclusion


def test_a_malformed_instance_is_told_and_not_warned_of(server: DICOMwebServer, series: str) -> None:
    del server.instances[-1].metadata["00480006"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = examine(series)
    assert report.readable
    assert report.check("slide").status == "warning"
    assert "TotalPixelMatrixColumns" in report.check("slide").finding


def test_bulk_data_elsewhere(server: DICOMwebServer, series: str) -> None:
    for instance in server.instances:
        instance.metadata["00480105"]["Value"][0]["00282000"] = {"vr": "OB", "BulkDataURI": "http://other.invalid/icc"}
    check = examine(series).check("bulk data")
    assert check.status == "warning"
    assert "trusted_hosts" in check.finding


def test_bulk_data_by_the_second_form(server: DICOMwebServer, series: str) -> None:
    server.fault = lambda request: (
        Fault(status=406) if request.kind == "bulk" and "multipart" in request.headers["accept"] else None
    )
    assert examine(series).check("bulk data").status == "ok"
    assert server.count("bulk") == 2


# Quota ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = replace(services._BY_HOST["proxy.imaging.datacommons.cancer.gov"], max_connections=2)
    monkeypatch.setitem(services._BY_HOST, "127.0.0.1", kind)


@pytest.mark.usefixtures("with_quota")
def test_what_is_left_of_a_quota(server: DICOMwebServer, series: str) -> None:
    usage = {"ip": "192.0.2.1", "bytes_used": 1234567, "fraction_used": 0.25, "date": "2026-01-02"}
    body = json.dumps(usage).encode()
    server.fault = lambda request: Fault(status=200, body=body) if request.path == "/quota_usage" else None
    report = examine(series)
    check = report.check("quota")
    assert check.status == "ok"
    assert check.figures["fraction_used"] == 0.25
    assert "192.0.2.1" not in json.dumps(report.as_dict())
    assert server.count("other") == 1
    assert report.service is not None
    assert (report.service.kind, report.service.connections) == ("IDC proxy", 2)


@pytest.mark.usefixtures("with_quota")
def test_a_quota_is_used_up(server: DICOMwebServer, series: str) -> None:
    server.fault = lambda request: quota_page()
    report = examine(series)
    assert report.check("quota").status == "failed"
    assert "429" in report.check("quota").finding
    assert "daily quota" in report.check("quota").advice
    assert "midnight" in report.check("metadata").finding
    assert not report.readable
    assert server.count() == 3


def test_a_service_that_throttles(server: DICOMwebServer, series: str) -> None:
    fault = Fault(status=429, headers={"Retry-After": "7"})
    server.fault = lambda request: fault if len(request.frame_numbers) > 4 else None
    report = examine(series)
    assert report.readable
    assert report.check("quota").status == "warning"
    assert "Retry-After 7 s" in report.check("quota").finding


# It never raises, and never tells -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["search", "metadata", "frames", "bulk"])
@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (200, 204, 302, 400, 404, 413, 418, 429, 500)),
        Fault(status=200, body=b"<html>Please log in</html>", headers={"Content-Type": "text/html"}),
        Fault(status=200, body=b"[{}]", headers=JSON),
        Fault(status=200, body=b"[[[]]]", headers=JSON),
        Fault(status=200, body=b'{"a": 1}', headers=JSON),
        Fault(status=200, body=b"\xff\xfe[", headers=JSON),
        Fault(status=302, headers={"Location": "http://127.0.0.1:1/login"}),
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(reset_after_bytes=30),
        Fault(cut_body_bytes=25),
        Fault(drop_parts=1),
        Fault(omit_closing=True),
        Fault(change_frame=lambda number, data: b"garbage"),
        Fault(change_frame=lambda number, data: b""),
    ],
)
def test_it_never_raises(shared: DICOMwebServer, truth: SyntheticSlide, kind: Kind, fault: Fault) -> None:
    shared.fault = only(kind, fault)
    shared.forget()
    report = examine(shared.series_url(truth.study_uid, truth.series_uid), options=HURRIED)
    assert [check.name for check in report.checks] == CHECKS
    assert shared.count() <= report.requests <= 40
    assert json.loads(json.dumps(report.as_dict()))["readable"] == report.readable
    assert report.readable or kind in ("metadata", "frames")


def echo(request: Request) -> Fault:
    """Answer with what was asked, credentials and all."""
    headers = {name: request.headers.get(name) for name in ("x-api-key", "cookie", "authorization")}
    body = f"refused {json.dumps(headers)} {request.path} {json.dumps(headers)}".encode()
    return Fault(status=400, body=body, headers={"Content-Type": "text/plain", "Retry-After": "s3cr3t-retry"})


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ({"token": "s3cr3t-token"}, "s3cr3t-token"),
        ({"token": lambda: "s3cr3t-token"}, "s3cr3t-token"),
        ({"auth": ("user", "s3cr3t-password")}, base64.b64encode(b"user:s3cr3t-password").decode()),
        ({"auth": requests.auth.HTTPBasicAuth("user", "s3cr3t-password")}, "dXNlcjpzM2NyM3QtcGFzc3dvcmQ="),
        ({"headers": {"X-Api-Key": "s3cr3t-key"}}, "s3cr3t-key"),
        ({"headers": {"Authorization": "Api s3cr3t-key"}}, "s3cr3t-key"),
        ({"place": "http://user:s3cr3t-password@{host}?key=s3cr3t-query"}, "s3cr3t-query"),
    ],
)
@pytest.mark.parametrize("kind", ["search", "metadata", "frames", "bulk"])
def test_secrets_stay_out(
    shared: DICOMwebServer, truth: SyntheticSlide, kind: Kind, credentials: dict[str, Any], sent: str
) -> None:
    """Not even a server that sends back what it was sent gets them into the report."""
    series = shared.series_url(truth.study_uid, truth.series_uid)
    arrived: list[str] = []

    def hook(request: Request) -> Fault | None:
        arrived.append(request.path + json.dumps(request.headers))
        return echo(request) if request.kind == kind else None

    shared.fault = hook
    place = credentials.get("place", series).format(host=series.removeprefix("http://"))
    report = examine(place, **{name: value for name, value in credentials.items() if name != "place"})
    assert any(sent in one for one in arrived)
    told = json.dumps(report.as_dict()) + repr(report)
    assert "s3cr3t" not in told
    assert sent not in told
    assert report.url == shared.url


def test_a_session_and_its_secrets(server: DICOMwebServer, series: str) -> None:
    server.fault = lambda request: echo(request) if request.kind in ("search", "frames") else None
    with requests.Session() as session:
        session.headers["X-Api-Key"] = "s3cr3t-key"
        session.cookies.set("id", "s3cr3t-cookie")
        session.auth = ("user", "s3cr3t-password")
        report = examine(series, session=session)
    assert "s3cr3t" not in json.dumps(report.as_dict())
    assert "x-api-key" in report.check("search").finding  # it did come back


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        ({"token": "abcdefgh"}, "a bearer token"),
        ({"auth": ("user", "pa55word")}, "user and password"),
        ({"auth": requests.auth.HTTPDigestAuth("user", "pa55word")}, "an authentication object"),
        ({"headers": {"X-Api-Key": "abcdefgh"}}, "headers (X-Api-Key)"),
        ({}, None),
    ],
)
def test_what_went_along(shared: DICOMwebServer, credentials: dict[str, Any], said: str | None) -> None:
    shared.fault = lambda request: None
    found = examine(shared.url, **credentials).check("authentication").figures["credentials"]
    assert found == said


def test_what_is_no_url() -> None:
    with pytest.raises(SlideNotFoundError):
        examine("http://")
    for megabytes in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="megabytes"):
            examine("http://127.0.0.1:1", megabytes=megabytes)


# A real server --------------------------------------------------------------------------------------------------------


@pytest.mark.orthanc
def test_orthanc(orthanc: Orthanc, synthetic: SlideMaker) -> None:
    orthanc.store(synthetic("jpeg").files)
    try:
        report = examine(orthanc.url)
    finally:
        orthanc.empty()
    assert report.readable
    assert report.service is not None
    assert report.service.kind == "Orthanc"
    assert "Orthanc" in report.conclusion
    assert report.check("single frames").figures["nature"] == "as stored"
    assert report.check("frame lists").status == "ok"
    forms = list(report.check("media types").figures.values())
    assert forms == ["as stored", "as stored", "400", "decompressed", "400"]  # the third and last are not taken
    assert report.requests <= 25
