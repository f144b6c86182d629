"""How a service is reached: what cannot be sent, what goes along, and who gets the credentials."""

from __future__ import annotations

import html
import json
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import requests
from dicomweb_server import DICOMwebServer
from faults import Fault, Request
from serving import open_slide
from synthetic import srgb_profile

from wsiweb import (
    AuthenticationError,
    ProtocolError,
    ReadOptions,
    Slide,
    SlideNotFoundError,
    SourceError,
    ThrottledError,
    WsiWebError,
)
from wsiweb.addresses import split_series_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import SlideMaker
    from synthetic import SyntheticSlide

SECRET = "s3cr3t"


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic()


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def failing() -> str:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize(("given", "error"), [
    ({"token": f"{SECRET}\r\nX-Other: 1"}, SourceError),
    ({"headers": {"X-Api-Key": f"{SECRET}\n"}}, SourceError),
    ({"headers": {"X-Api-Key": 5}}, SourceError),
    ({"auth": (SECRET, None, 5)}, AuthenticationError),
    ({"auth": SECRET}, AuthenticationError),
    ({"token": lambda: None}, AuthenticationError),
    ({"token": failing}, AuthenticationError),
    ({"token": 5}, AuthenticationError),
    ({"headers": [f"X-Api-Key: {SECRET}"]}, AuthenticationError),
    ({"headers": f"X-Api-Key: {SECRET}"}, AuthenticationError),
    ({"auth": ("user", SECRET), "token": SECRET}, AuthenticationError),
], ids=["line-break-in-token", "line-break-in-header", "number-header", "triple-auth", "text-auth", "no-token",
        "raising-token", "number-token", "listed-headers", "text-headers", "auth-and-token"])  # fmt: skip
def test_what_cannot_be_sent_fails_at_once(
    server: DICOMwebServer, truth: SyntheticSlide, given: dict[str, Any], error: type[SourceError]
) -> None:
    with pytest.raises(error) as caught:
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), **given)
    assert SECRET not in str(caught.value)
    assert server.count() == 0


@pytest.mark.parametrize("special", "/#?")
def test_a_password_with_what_is_special_in_urls_is_not_shown(special: str) -> None:
    """What follows is taken for a path, and what precedes for a port."""
    with pytest.raises(SlideNotFoundError, match="escape") as caught:
        Slide.open(f"https://user:{SECRET}{special}et@127.0.0.1/dicomWeb", series_uid="1.2")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(("path", "root", "study", "series"), [
    ("/dicomWeb/studies/1.2/series/3.4", "/dicomWeb", "1.2", ("3.4",)),
    ("/dicomWeb/studies/1.2/series/3.4/metadata", "/dicomWeb", "1.2", ("3.4",)),
    ("/dicomWeb/studies/1.2", "/dicomWeb", "1.2", ()),
    ("/dicomWeb/", "/dicomWeb", None, ()),
    ("/studies/1.2/series/3.4", "", "1.2", ("3.4",)),
    ("/dicomWeb/studies/abc/series/x1/", "/dicomWeb", "abc", ("x1",)),
    ("/dicomWeb/studies/1.2/series", "/dicomWeb", "1.2", ()),
    ("/dicomWeb/studies/1.2/instances/5", "/dicomWeb", "1.2", ()),
    ("/v1/datasets/studies/dicomStores/d/dicomWeb", "/v1/datasets/studies/dicomStores/d/dicomWeb", None, ()),
    ("/v1/datasets/studies/dicomStores/d/dicomWeb/studies/1.2/series/3.4",
     "/v1/datasets/studies/dicomStores/d/dicomWeb", "1.2", ("3.4",)),
])  # fmt: skip
def test_a_root_may_have_a_part_that_is_called_studies(
    path: str, root: str, study: str | None, series: tuple[str, ...]
) -> None:
    assert split_series_url(f"https://host{path}") == (f"https://host{root}", None, study, series)


@pytest.mark.parametrize(("study", "series"), [
    ("1/../../x", "3.4"), ("1.2", "3.4?x=y"), ("1.2", "3.4#"), ("1.2", "3.4 "), ("1.2", ""), (None, "3/4"),
    ("1" * 129, "3"), ("..", "3"),
])  # fmt: skip
def test_what_is_no_uid_is_not_asked_for(server: DICOMwebServer, study: str | None, series: str) -> None:
    with pytest.raises(SlideNotFoundError, match="no UID"):
        Slide.open(server.url, study_uid=study, series_uid=series, token=SECRET)
    assert server.count() == 0


ECHOES = {
    "text": "Cannot GET {path} with {headers}",
    "page": "<html><body><pre>Cannot GET {path}</pre><p>{headers}</p></body></html>",
    "JSON": '{{"error": {{"message": "Cannot GET {path} with {headers}"}}}}',
    "other JSON": '{{"odd": "Cannot GET {path} with {headers}"}}',
}


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize(("kind", "status"), [
    ("metadata", 404), ("metadata", 200), ("frames", 404), ("frames", 500), ("frames", 200), ("frames", 418),
])  # fmt: skip
def test_what_a_service_repeats_of_secrets_is_not_shown(
    server: DICOMwebServer, truth: SyntheticSlide, name: str, kind: str, status: int
) -> None:
    """Express says what it cannot GET, query and all; debug pages show headers."""

    def echo(request: Request) -> Fault | None:
        headers = "; ".join(f"{key}: {value}" for key, value in request.headers.items())
        body = ECHOES[name].format(path=request.path, headers=headers.replace('"', "'"))
        return Fault(status=status, body=body.encode()) if request.kind == kind else None

    session = requests.Session()
    session.cookies.set("sid", f"{SECRET}-cookie")
    url = f"{server.series_url(truth.study_uid, truth.series_uid)}?sig={SECRET}-sig"
    given: dict[str, Any] = {"token": f"{SECRET}-token", "headers": {"X-Api-Key": f"{SECRET}-key"}}
    server.fault = echo
    with pytest.raises(WsiWebError) as caught:
        Slide.open(url, **given, session=session, options=ReadOptions(max_attempts=1)).read_region(0, 0, 0, 50, 50)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_password_in_an_answer_is_not_shown(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Nor what pages make of special characters; UIDs, which tell what was asked for, are."""
    odd = f'{SECRET}/"&<key'
    body = f"alice with {SECRET}-word; {html.escape(odd)}; {json.dumps({'key': odd})}; {truth.series_uid}"
    server.fault = lambda request: Fault(status=404, body=body.encode())
    with pytest.raises(SlideNotFoundError) as caught:
        Slide.open(
            f"{server.url}?uid={truth.series_uid}", study_uid=truth.study_uid, series_uid=truth.series_uid,
            auth=("alice", f"{SECRET}-word"), headers={"X-Api-Key": odd},
        )  # fmt: skip
    assert SECRET not in str(caught.value)
    assert f"{truth.series_uid})" in str(caught.value)


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize(
    "fault", [Fault(reset_after_bytes=3), Fault(hang_up_after_bytes=3), Fault(stall_after_bytes=3)]
)
def test_a_refusal_that_breaks_off_is_one(
    server: DICOMwebServer, truth: SyntheticSlide, status: int, fault: Fault
) -> None:
    server.fault = lambda request: replace(fault, status=status, body=b"no such thing" * 9)
    with pytest.raises(AuthenticationError if status == 401 else SlideNotFoundError):
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=ReadOptions(timeout_seconds=0.3))
    assert server.count() == 1


@pytest.mark.parametrize("way", ["proxy", "redirect"])
def test_an_interim_answer_on_the_way(server: DICOMwebServer, truth: SyntheticSlide, way: str) -> None:
    """As directly: it is not the answer, nor is the answer that of the next request."""
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    options = ReadOptions(tile_cache_bytes=0, frame_cache_bytes=0, max_connections=1)
    with DICOMwebServer(truth.folder) as other:
        other.fault = lambda request: Fault(interim=interim, latency_seconds=0.02, locations=False)
        session = requests.Session()
        if way == "proxy":
            session.proxies = {"http": other.host}
        else:
            server.fault = lambda request: Fault(status=307, headers={"Location": other.host + request.path})
        with open_slide(server, truth, session=session, options=options) as slide:
            for column in range(4):
                place = (64 * column, 0, 64, 48)
                np.testing.assert_array_equal(slide.read_region(0, *place), truth.truth(0, *place))
        assert other.count("frames") == 4
    assert (server.count() == 0) == (way == "proxy")


def test_a_service_that_is_gone_shows_no_secret(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Nor do the errors of the libraries below."""
    url = f"{server.series_url(truth.study_uid, truth.series_uid)}?sig={SECRET}"
    with Slide.open(url, options=ReadOptions(max_attempts=1)) as slide:
        server.__exit__()
        with pytest.raises(SourceError) as caught:
            slide.read_region(0, 0, 0, 50, 50)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_service_that_asks_for_more_patience_than_there_is(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = lambda request: Fault(status=429, headers={"Retry-After": "30"})
    url = server.series_url(truth.study_uid, truth.series_uid)
    with pytest.raises(ThrottledError, match="30 s"):
        Slide.open(url, options=ReadOptions(deadline_seconds=1))
    assert server.count() == 1


def test_requests_that_a_token_prevents_are_none(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    tokens = iter([SECRET])
    with Slide.open(server.series_url(truth.study_uid, truth.series_uid), token=lambda: next(tokens)) as slide:
        server.fault = lambda request: Fault(status=401)
        with pytest.raises(AuthenticationError, match="token"):
            slide.read_region(0, 0, 0, 50, 50)
        assert slide.stats.requests == server.count()


def test_cookies_of_the_service_stay_with_the_slide(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """The service gets them back; the session that the user gave, whose own cookies go along, is not changed."""
    session = requests.Session()
    session.cookies.set("own", "1")
    server.fault = lambda request: Fault(headers={"Set-Cookie": "sid=2; Path=/"})
    with open_slide(server, truth, session=session) as slide:
        slide.read_region(0, 0, 0, 50, 50)
    assert dict(session.cookies) == {"own": "1"}
    assert [request.headers["cookie"] for request in server.requests] == ["own=1", "own=1; sid=2"]


def test_a_certificate_that_is_not_there(truth: SyntheticSlide) -> None:
    with pytest.raises(SourceError, match=r"no-such\.pem"):
        Slide.open(f"https://127.0.0.1:9/studies/{truth.study_uid}/series/{truth.series_uid}", cert="no-such.pem")


def test_a_query_in_the_url_goes_with_every_request(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """AWS HealthImaging names the image set there."""
    url = f"{server.series_url(truth.study_uid, truth.series_uid)}?imageSetId=abc&x=1"
    with Slide.open(url) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 50, 50), truth.truth(0, 0, 0, 50, 50))
    assert {request.kind for request in server.requests} == {"metadata", "frames"}
    assert all(parse_qs(urlsplit(r.path).query) == {"imageSetId": ["abc"], "x": ["1"]} for r in server.requests)


def test_a_redirect_without_location(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = lambda request: Fault(status=302)
    with pytest.raises(ProtocolError, match="without a Location"):
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=ReadOptions(max_attempts=1))


# Bulk data elsewhere ------------------------------------------------------------------------------


def redirected_profile(server: DICOMwebServer, uri: str) -> Callable[[Request], Fault | None]:
    """Let the metadata say that the ICC profile lies at ``uri``."""

    def hook(request: Request) -> Fault | None:
        if request.kind != "metadata":
            return None
        datasets = json.loads(json.dumps([instance.metadata for instance in server.instances]))
        for dataset in datasets:
            for path in dataset.get("00480105", {}).get("Value", []):
                path["00282000"] = {"vr": "OB", "BulkDataURI": uri}
        return Fault(status=200, body=json.dumps(datasets).encode(), headers={"Content-Type": "application/dicom+json"})

    return hook


def test_a_trusted_host_gets_no_credentials(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    with DICOMwebServer(truth.folder) as other:
        profile = srgb_profile()
        other.fault = lambda request: Fault(
            status=200, body=profile, headers={"Content-Type": "application/octet-stream"}
        )
        server.fault = redirected_profile(server, f"http://localhost:{urlsplit(other.url).port}/profiles/1")
        url = server.series_url(truth.study_uid, truth.series_uid)
        given: dict[str, Any] = {"token": SECRET, "headers": {"X-Api-Key": SECRET}}
        with Slide.open(url, **given) as slide, pytest.raises(SourceError, match="trusted_hosts"):
            _ = slide.icc_profile
        assert other.count() == 0
        with Slide.open(url, **given, options=ReadOptions(trusted_hosts=("localhost",))) as slide:
            assert slide.icc_profile == profile
        assert other.count() == 1
        assert not any(SECRET in value for request in other.requests for value in request.headers.values())
