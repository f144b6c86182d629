"""Redirects and references to other places: followed where that is safe, and never with what is secret."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import socket
import subprocess
import threading
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from dicomweb_server import DICOMwebServer
from faults import Fault, every, fail_first
from orthanc import free_port
from serving import open_slide, within
from synthetic import srgb_profile

from wsiweb import AuthenticationError, ProtocolError, ReadOptions, Slide, SourceError, WsiWebError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import SlideMaker
    from faults import Kind, Request
    from synthetic import SyntheticSlide

pytestmark = pytest.mark.usefixtures("hurried", "no_certificates_from_outside")
TILE = (0, 0, 64, 48)
OPTIONS = ReadOptions(max_attempts=3, timeout_seconds=5, max_connections=2)
SECRET = "pr0xyS3cr3t"
SECRETS = {"authorization": "Bearer s3cr3t", "x-api-key": "k3y", "cookie": "sid=c00kie"}
PROFILE = srgb_profile(swapped=True)


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("rgb", icc_profile=PROFILE)


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


@pytest.fixture
def other(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def opened(server: DICOMwebServer, truth: SyntheticSlide, **kwargs: Any) -> Slide:
    """Open with every kind of secret that a request can carry, certificates aside."""
    session = requests.Session()
    session.cookies.set("sid", "c00kie")
    kwargs = {"token": "s3cr3t", "headers": {"X-Api-Key": "k3y"}, "session": session, "options": OPTIONS, **kwargs}
    return open_slide(server, truth, **kwargs)


def read(slide: Slide, truth: SyntheticSlide) -> None:
    np.testing.assert_array_equal(slide.read_region(0, *TILE), truth.truth(0, *TILE))


def to(target: Callable[[Request], str], status: int = 307) -> Callable[[Request], Fault | None]:
    """Redirect once, by what the function says."""

    def hook(request: Request) -> Fault | None:
        return None if "hop" in request.path else Fault(status=status, headers={"Location": target(request)})

    return hook


def carried(server: DICOMwebServer) -> list[set[str]]:
    """Return which secrets came with each request."""
    return [
        {name for name, value in SECRETS.items() if request.headers.get(name) == value} for request in server.requests
    ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("form", ["absolute", "path", "relative"])
def test_within_the_origin(server: DICOMwebServer, truth: SyntheticSlide, status: int, form: str) -> None:
    def target(request: Request) -> str:
        path = f"{request.path}?hop=1"
        return {"absolute": server.host + path, "path": path, "relative": path.rpartition("/")[2]}[form]

    server.fault = to(target, status)
    with opened(server, truth) as slide:
        read(slide, truth)
        assert slide.stats.requests == server.count() == 4
    assert carried(server) == [set(SECRETS)] * 4


def test_to_another_origin(server: DICOMwebServer, other: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = to(lambda request: other.host + request.path)
    with opened(server, truth) as slide:
        read(slide, truth)
        assert slide.icc_profile == PROFILE
        assert slide.stats.requests == server.count() + other.count() == 6
    assert carried(server) == [set(SECRETS)] * 3
    assert carried(other) == [set()] * 3
    for request in other.requests:
        assert request.headers["host"] == other.host.removeprefix("http://")
        assert request.headers["accept"]
        assert "referer" not in request.headers


def test_to_another_name_of_the_same_host(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Another name is another origin."""
    server.fault = to(lambda request: server.host.replace("127.0.0.1", "localhost") + request.path + "?hop=1")
    with opened(server, truth) as slide:
        read(slide, truth)
    assert carried(server) == [set(SECRETS), set()] * 2


@pytest.mark.parametrize("form", [r"{other}\@{service}{path}", r"//{bare}\@{service}{path}", r"{other}\@{service}/"])
def test_a_target_that_can_be_read_in_two_ways(
    server: DICOMwebServer, other: DICOMwebServer, truth: SyntheticSlide, form: str
) -> None:
    """Its host is the one that is connected to, and not the one behind the sign."""
    bare, service = (each.host.removeprefix("http://") for each in (other, server))

    def target(request: Request) -> str:
        return form.format(other=other.host, bare=bare, service=service, path=request.path)

    with opened(server, truth) as slide:
        server.fault = to(target)
        with contextlib.suppress(WsiWebError):
            read(slide, truth)
        server.fault = lambda request: None
        refer_to(server, form.format(other=other.host, bare=bare, service=service, path="/x"))
    with opened(server, truth) as slide, contextlib.suppress(WsiWebError):
        _ = slide.icc_profile
    assert other.count() > 0
    assert not any(carried(other))


def test_what_the_url_asks_for_is_said_once(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """The service repeats the query of its URL where it redirects."""
    server.fault = to(lambda request: request.path.replace("&key=b", "") + "&hop=1")
    url = server.series_url(truth.study_uid, truth.series_uid)
    with Slide.open(f"{url}?tenant=a&key=b") as slide:
        read(slide, truth)
    assert {request.path.partition("?")[2] for request in server.requests} == {"tenant=a&key=b", "tenant=a&hop=1&key=b"}


def test_a_target_in_utf_8(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Headers are bytes, which http.client takes for Latin-1."""
    server.fault = to(lambda request: f"{request.path}?hop=é".encode().decode("latin-1"))
    with opened(server, truth) as slide:
        read(slide, truth)
    assert {request.path.partition("?")[2] for request in server.requests} == {"", "hop=%C3%A9"}


def test_credentials_in_the_target_are_not_shown(
    server: DICOMwebServer, other: DICOMwebServer, truth: SyntheticSlide
) -> None:
    other.fault = every(Fault(status=418))
    target = other.host.replace("http://", "http://user:pa55word@")
    with opened(server, truth) as slide:
        server.fault = to(lambda request: f"{target}{request.path}?signature=s1gned")
        with pytest.raises(SourceError, match="418") as caught:
            slide.read_region(0, *TILE)
        assert "pa55word" not in f"{caught.value} {caught.value.url}"
        assert "s1gned" not in f"{caught.value} {caught.value.url}"


def test_another_origin_that_wants_credentials(
    server: DICOMwebServer, other: DICOMwebServer, truth: SyntheticSlide
) -> None:
    """It gets none, and no token is renewed for it."""
    calls: list[int] = []

    def token() -> str:
        calls.append(1)
        return "s3cr3t"

    server.fault = to(lambda request: other.host + request.path)
    other.fault = lambda request: Fault(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
    with pytest.raises(AuthenticationError):
        opened(server, truth, token=token)
    assert len(calls) == 1
    assert (server.count(), other.count()) == (1, 1)
    assert carried(other) == [set()]


@pytest.mark.parametrize("name", ["itself", "in circles", "back and forth"])
def test_loops(server: DICOMwebServer, other: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    def hop(request: Request) -> Fault:
        path = request.path.partition("?")[0]
        place = other if name == "back and forth" and request.headers["host"] in server.host else server
        query = f"?{server.count()}" if name == "in circles" else ""
        return Fault(status=302, headers={"Location": f"{place.host}{path}{query}"})

    server.fault = other.fault = hop
    with pytest.raises(ProtocolError, match="redirects more than 5 times"):
        opened(server, truth)
    assert server.count() + other.count() == 6


NOWHERE = {
    "a scheme": "ftp://user:s3cr3t@127.0.0.1/x",
    "a file": "file:///etc/passwd",
    "a script": "javascript:alert(1)",
    "no URL": "http://[",
    "no port": "http://127.0.0.1:port/x",
    "a port beyond all": "http://127.0.0.1:99999/x",
    "no host": "http:///x",
    "nothing": "",
    "control characters": "http://127.0.0.1/\x01\x7f",
}


@pytest.mark.parametrize("name", NOWHERE)
@pytest.mark.parametrize("kind", ["metadata", "frames"])
def test_to_nowhere(server: DICOMwebServer, truth: SyntheticSlide, name: str, kind: Kind) -> None:
    server.fault = every(Fault(status=302, headers={"Location": NOWHERE[name]}), kind)

    def use() -> None:
        with opened(server, truth) as slide:
            slide.read_region(0, *TILE)

    with pytest.raises(WsiWebError) as caught:
        within(20, use)
    assert "s3cr3t" not in str(caught.value)
    if name in ("a scheme", "a file", "a script"):
        assert "not the web" in str(caught.value)
    if "URL" in name or "port" in name:
        assert "redirects to what is no URL" in str(caught.value)
    assert server.count(kind) <= 18


@pytest.mark.parametrize("kind", ["metadata", "frames"])
def test_a_redirect_to_a_name_that_no_host_can_have(server: DICOMwebServer, truth: SyntheticSlide, kind: Kind) -> None:
    """It is not taken for a fault of what was sent."""
    server.fault = every(Fault(status=302, headers={"Location": f"http://{'a' * 70}.invalid/"}), kind)
    with pytest.raises(ProtocolError, match="redirects to what is no URL"), opened(server, truth) as slide:
        read(slide, truth)
    with pytest.raises(SourceError, match="no URL that can be asked"):
        Slide.open(f"http://{'a' * 70}.invalid/", study_uid=truth.study_uid, series_uid=truth.series_uid)


def test_a_redirect_that_says_not_where(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = every(Fault(status=302), "metadata")
    with pytest.raises(SourceError, match="302"):
        opened(server, truth)
    assert server.count() == 1


# Bulk data --------------------------------------------------------------------------------------------------


def refer_to(server: DICOMwebServer, uri: str) -> None:
    for instance in server.instances:
        for path in instance.metadata["00480105"]["Value"]:
            path["00282000"] = {"vr": "OB", "BulkDataURI": uri}


@pytest.fixture
def store(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    """Serve the profile at any path."""
    with DICOMwebServer() as server:
        server.fault = lambda request: Fault(status=200, body=PROFILE)
        yield server


def test_a_stranger_is_not_asked(server: DICOMwebServer, store: DICOMwebServer, truth: SyntheticSlide) -> None:
    refer_to(server, f"{store.host}/bucket/profile.icc")
    with opened(server, truth) as slide:
        with pytest.raises(SourceError, match="not this service"):
            _ = slide.icc_profile
        read(slide, truth)
    assert store.count() == 0


def test_a_stranger_who_is_trusted(server: DICOMwebServer, store: DICOMwebServer, truth: SyntheticSlide) -> None:
    """It is asked, without credentials; one who is not named is not."""
    uri = f"{store.host}/bucket/profile.icc".replace("127.0.0.1", "localhost")
    refer_to(server, uri)
    with opened(server, truth, options=ReadOptions(trusted_hosts=("localhost",))) as slide:
        assert slide.icc_profile == PROFILE
    assert carried(store) == [set()]
    with (
        opened(server, truth, options=ReadOptions(trusted_hosts=("example.org", "ocalhost", "localhost:80"))) as slide,
        pytest.raises(SourceError, match="host without its port"),
    ):
        _ = slide.icc_profile
    assert store.count() == 1


def test_nobody_is_no_trusted_host(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Neither is what no host can be called."""
    refer_to(server, "file:///etc/passwd")
    trusting = {"options": ReadOptions(trusted_hosts=("host:8080", ""))}
    with opened(server, truth, **trusting) as slide, pytest.raises(SourceError, match="trusted_hosts"):
        _ = slide.icc_profile


def test_a_stranger_who_is_trusted_has_what_the_service_has_not(
    server: DICOMwebServer, store: DICOMwebServer, truth: SyntheticSlide
) -> None:
    """Under paths like the service's own; the same path on another host is the service itself, behind a proxy."""
    path = f"/studies/{truth.study_uid}/series/{truth.series_uid}/bulk/1"
    trusting = {"options": ReadOptions(trusted_hosts=("localhost",))}
    refer_to(server, f"{store.host}/cdn/v2{path}".replace("127.0.0.1", "localhost"))
    with opened(server, truth, **trusting) as slide:
        assert slide.icc_profile == PROFILE
    assert (store.count(), server.count("bulk")) == (1, 0)
    with opened(server, truth) as slide, pytest.raises(SourceError):
        _ = slide.icc_profile
    assert (store.count(), server.count("other") + server.count("bulk")) == (1, 1)


@pytest.mark.parametrize("content_type", ["text/html", "text/html; charset=utf-8", "application/json"])
def test_a_login_page_is_no_profile(server: DICOMwebServer, truth: SyntheticSlide, content_type: str) -> None:
    page = Fault(status=200, body=b"<html>Please log in</html>", headers={"Content-Type": content_type})
    server.fault = every(page, "bulk")
    with opened(server, truth) as slide, pytest.raises(ProtocolError, match="log in"):
        _ = slide.icc_profile


def test_the_way_out_is_named(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    refer_to(server, "http://storage.example/profile.icc")
    with opened(server, truth) as slide, pytest.raises(SourceError, match=r"storage\.example.*trusted_hosts"):
        _ = slide.icc_profile


@pytest.mark.parametrize("uri", ["http://[", "http://h:port/x", "http://[::1/studies/1/x", "//[/"])
def test_references_that_are_no_urls(server: DICOMwebServer, truth: SyntheticSlide, uri: str) -> None:
    refer_to(server, uri)
    with opened(server, truth) as slide:
        read(slide, truth)
        with pytest.raises(SourceError):
            _ = slide.icc_profile


def test_bulk_data_that_moved_to_a_stranger(
    server: DICOMwebServer, store: DICOMwebServer, truth: SyntheticSlide
) -> None:
    """The service itself sends us there: followed, as redirects are, without credentials."""
    with opened(server, truth) as slide:
        server.fault = lambda request: Fault(status=302, headers={"Location": f"{store.host}/bucket/1"})
        assert slide.icc_profile == PROFILE
    assert carried(store) == [set()]


@pytest.mark.parametrize("personality_multipart", [True, False])
@pytest.mark.parametrize("status", [503, 500])
def test_bulk_data_are_asked_for_again(
    server: DICOMwebServer, truth: SyntheticSlide, personality_multipart: bool, status: int
) -> None:
    with opened(server, truth) as slide:
        server.fault = lambda request: Fault(status=status) if request.attempt < 3 else None
        assert slide.icc_profile == PROFILE
        assert server.count("bulk") == 3


@pytest.mark.parametrize("fault", [
    Fault(status=204), Fault(status=200, body=b""),
    Fault(status=200, body=b"--x", headers={"Content-Type": "multipart/related; boundary=x"}),
])  # fmt: skip
def test_bulk_data_that_are_nothing(
    server: DICOMwebServer, truth: SyntheticSlide, tmp_path: Path, fault: Fault
) -> None:
    """An error, and not a slide without a profile: neither pixels nor files without its colours, nor for good."""
    with opened(server, truth) as slide:
        server.fault = every(fault, "bulk")
        for use in (
            lambda: slide.icc_profile,
            lambda: slide.read_region(0, *TILE, icc="srgb"),
            lambda: slide.export_png(tmp_path / "slide.png", 1, progress=False),
        ):
            with pytest.raises(SourceError) as caught:
                use()
            assert "s3cr3t" not in str(caught.value)
            assert fault.status in (caught.value.status, 200)
        assert not list(tmp_path.iterdir())
        read(slide, truth)
        server.fault = lambda request: None
        assert slide.icc_profile == PROFILE


PAGE = b"\r\n<html>Log in"
SHORT = {
    "nothing": (Fault(status=200), True),
    "an empty part": (
        Fault(status=200, body=b"--x\r\n\r\n\r\n--x--", headers={"Content-Type": "multipart/related; boundary=x"}),
        True,
    ),
    "cut short": (Fault(status=200, body=PROFILE[:300]), True),
    "cut within its size": (Fault(status=200, body=PROFILE[:3]), True),
    "a page without a type": (Fault(status=200, body=PAGE), False),
    "an object without a type": (Fault(status=200, body=b'{"error": "Log in"}'), False),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_profile_that_came_badly_once(
    server: DICOMwebServer, truth: SyntheticSlide, tmp_path: Path, name: str
) -> None:
    """It is asked for again, at the latest by who wants it next; no other process finds it on disk."""
    fault, again = SHORT[name]
    server.fault = fail_first(1, fault, "bulk")
    options = ReadOptions(disk_cache=tmp_path)
    with opened(server, truth, options=options) as slide:
        if not again:
            with pytest.raises(ProtocolError, match="Log in"):
                _ = slide.icc_profile
        assert slide.icc_profile == PROFILE
    with opened(server, truth, options=options) as slide:
        assert slide.icc_profile == PROFILE
    assert server.count("bulk") == 2


def test_a_profile_that_never_comes_whole(server: DICOMwebServer, truth: SyntheticSlide, tmp_path: Path) -> None:
    """It is an error where it is another each time, and kept by nobody where it may be what is stored."""
    bodies = itertools.cycle((PROFILE[:300], PROFILE[:400]))
    server.fault = lambda request: Fault(status=200, body=next(bodies)) if request.kind == "bulk" else None
    options = ReadOptions(disk_cache=tmp_path)
    with opened(server, truth, options=options) as slide:
        with pytest.raises(ProtocolError, match="incomplete"):
            _ = slide.icc_profile
        server.fault = every(Fault(status=200, body=PROFILE[:300]), "bulk")
        assert slide.icc_profile == PROFILE[:300]
        with pytest.raises(WsiWebError, match="profile"):
            slide.read_region(0, *TILE, icc="srgb")
    server.fault = lambda request: None
    with opened(server, truth, options=options) as slide:
        assert slide.icc_profile == PROFILE


def test_bulk_data_that_are_gone(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    with opened(server, truth) as slide:
        server.fault = every(Fault(status=404), "bulk")
        with pytest.raises(SourceError, match="404"):
            _ = slide.icc_profile


# TLS --------------------------------------------------------------------------------------------------------


def test_client_certificates_stay_home(truth: SyntheticSlide, secure: ssl.SSLContext, certificate: Path) -> None:
    with (
        DICOMwebServer(truth.folder, tls=secure) as server,
        DICOMwebServer(truth.folder, tls=secure) as other,
        opened(server, truth, verify=str(certificate), cert=str(certificate)) as slide,
    ):
        read(slide, truth)
        server.fault = to(lambda request: other.host + request.path)
        np.testing.assert_array_equal(slide.read_region(1, *TILE), truth.truth(1, *TILE))
    assert {request.certificate for request in server.requests} == {True}
    assert [request.certificate for request in other.requests] == [False]
    assert carried(other) == [set()]


def test_never_from_https_to_http(
    server: DICOMwebServer, truth: SyntheticSlide, secure: ssl.SSLContext, certificate: Path
) -> None:
    with DICOMwebServer(truth.folder, tls=secure) as encrypted:
        encrypted.fault = to(lambda request: server.host + request.path)
        with pytest.raises(ProtocolError, match="from https to http"):
            opened(encrypted, truth, verify=str(certificate))
        assert server.count() == 0
        assert encrypted.count() == 1


def test_never_from_https_to_http_by_reference(
    store: DICOMwebServer, truth: SyntheticSlide, secure: ssl.SSLContext, certificate: Path
) -> None:
    with DICOMwebServer(truth.folder, tls=secure) as encrypted:
        refer_to(encrypted, f"{store.host}/bucket/1")
        options = ReadOptions(trusted_hosts=("127.0.0.1",))
        with opened(encrypted, truth, verify=str(certificate), options=options) as slide, pytest.raises(SourceError):
            _ = slide.icc_profile
    assert store.count() == 0


def test_from_http_to_https(
    server: DICOMwebServer, truth: SyntheticSlide, secure: ssl.SSLContext, certificate: Path
) -> None:
    """Another origin, so without credentials."""
    with DICOMwebServer(truth.folder, tls=secure) as encrypted:
        server.fault = to(lambda request: encrypted.host + request.path)
        with opened(server, truth, verify=str(certificate)) as slide:
            read(slide, truth)
    assert carried(encrypted) == [set()] * 2


def test_a_certificate_that_nobody_knows(truth: SyntheticSlide, secure: ssl.SSLContext) -> None:
    """At once, and with what to do; nothing is sent to whoever that is."""
    with DICOMwebServer(truth.folder, tls=secure) as server:
        with pytest.raises(SourceError, match=r"TLS failed.*verify="):
            opened(server, truth)
        assert server.count() == 0


def test_credentials_in_headers_go_before_the_environment(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for headers, said in (({"authorization": "Bearer mine"}, "Bearer mine"), ({}, "Basic c29tZWJvZHk6ZWxzZQ==")):
        server.forget()
        with open_slide(server, truth, headers=headers):
            assert [request.headers["authorization"] for request in server.requests] == [said]


@pytest.mark.parametrize("how", ["path", "off", "session"])
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_what_the_user_says_goes_before_the_environment(
    truth: SyntheticSlide, secure: ssl.SSLContext, certificate: Path, how: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=other", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "others.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "others.pem"))
    session = requests.Session()
    session.verify = str(certificate)
    given: dict[str, Any] = {
        "path": {"verify": str(certificate)},
        "off": {"verify": False},
        "session": {"session": session},
    }
    with DICOMwebServer(truth.folder, tls=secure) as server, open_slide(server, truth, **given[how]) as slide:
        read(slide, truth)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_of_the_environment_are_heeded(
    truth: SyntheticSlide, secure: ssl.SSLContext, certificate: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DICOMwebServer(truth.folder, tls=secure) as server:
        with pytest.raises(SourceError, match="TLS"):
            open_slide(server, truth)
        monkeypatch.setenv(name, str(certificate))
        with open_slide(server, truth) as slide:
            read(slide, truth)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "All_Proxy"])
def test_a_proxy_of_the_environment_is_asked(
    server: DICOMwebServer, truth: SyntheticSlide, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.series_url(truth.study_uid, truth.series_uid)
    address = urlsplit(url).netloc
    monkeypatch.setenv(name, f"http://{address}")
    with Slide.open(url.replace(address, "slides.invalid"), options=OPTIONS) as slide:
        read(slide, truth)
    assert all(request.path.startswith("http://slides.invalid/") for request in server.requests)


@pytest.mark.usefixtures("no_proxies")
def test_hosts_that_the_environment_exempts_are_asked_directly(
    server: DICOMwebServer, other: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{urlsplit(other.series_url('1', '2')).netloc}")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with opened(server, truth) as slide:
        read(slide, truth)
    assert other.count() == 0


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("trust_env", [True, False])
def test_proxies_of_the_session_are_asked(server: DICOMwebServer, truth: SyntheticSlide, trust_env: bool) -> None:
    url = server.series_url(truth.study_uid, truth.series_uid)
    address = urlsplit(url).netloc
    session = requests.Session()
    session.trust_env = trust_env
    session.proxies["http"] = f"http://{address}"
    with Slide.open(url.replace(address, "slides.invalid"), session=session, options=OPTIONS) as slide:
        session.proxies.clear()  # is the owner's business
        read(slide, truth)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("whose", ["class", "object"])
def test_a_session_with_an_environment_of_its_own_is_asked_for_it(
    server: DICOMwebServer, truth: SyntheticSlide, whose: str
) -> None:
    url = server.series_url(truth.study_uid, truth.series_uid)
    address = urlsplit(url).netloc

    def settings(*_: Any) -> Any:
        return {"proxies": {"http": f"http://{address}"}, "stream": True, "verify": True, "cert": None}

    if whose == "class":
        session: requests.Session = type("Company", (requests.Session,), {"merge_environment_settings": settings})()
    else:
        session = requests.Session()
        session.merge_environment_settings = settings  # type: ignore[assignment,method-assign]
    with Slide.open(url.replace(address, "slides.invalid"), session=session, options=OPTIONS) as slide:
        read(slide, truth)


def answering(stack: ExitStack, answer: bytes) -> int:
    """Return a port on loopback where whatever is said is answered so."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    stack.callback(thread.join, 5)
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return int(listener.getsockname()[1])


WANTS = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("proxy", "said"), [
    ("http://bob:{}@127.0.0.1:{wants}", ["407", "http://user:password@proxy"]),
    ("http://bob:{}@127.0.0.1:{nobody}", ["the proxy http://127.0.0.1:{nobody} failed", "refused"]),
    ("bob:{}@wsiweb.invalid:80", ["its proxy, http://wsiweb.invalid:80, has to be written as http://"]),
    ("http://bob:{}@wsiweb.invalid:80", ["the proxy http://wsiweb.invalid:80 failed", "wsiweb.invalid'"]),
    ("socks5://bob:{}@127.0.0.1:9", ["the proxy socks5://127.0.0.1:9 needs PySocks", "requests[socks]"]),
    ("http://bob@127.0.0.1:{}", ["its proxy, an unreadable URL"]),
    ("ftp://bob:{}@127.0.0.1:9", ["its proxy, ftp://127.0.0.1:9"]),
    ("http://bob:{}@:80", ["its proxy, http://:80"]),
])  # fmt: skip
def test_a_proxy_that_fails_is_named(scheme: str, proxy: str, said: list[str]) -> None:
    if "socks" in proxy and importlib.util.find_spec("socks"):
        pytest.skip("PySocks is installed")
    with ExitStack() as stack:
        ports = {"wants": answering(stack, WANTS), "nobody": free_port()}
        session = stack.enter_context(requests.Session())
        session.proxies = dict.fromkeys(("http", "https"), proxy.format(SECRET, **ports))
        with pytest.raises(SourceError) as caught:
            Slide.open(f"{scheme}://wsiweb.invalid/dicom-web/studies/1/series/2", session=session)
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert all(part.format(**ports) in str(caught.value) for part in said), str(caught.value)
    assert "no URL" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "answer", "said"), [
    ("https", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "begins with http://"),
    ("http", b"\x15\x03\x01\x00\x02\x02\x46", "begin with https://"),  # an alert of TLS
])  # fmt: skip
def test_http_and_https_confused(scheme: str, answer: bytes, said: str) -> None:
    with ExitStack() as stack:
        place = f"{scheme}://127.0.0.1:{answering(stack, answer)}/dicom-web/studies/1/series/2"
        with pytest.raises(SourceError, match=said) as caught:
            Slide.open(place)
    assert "attempts" not in str(caught.value)
