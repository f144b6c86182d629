"""Connections that slides share, and those that they must not."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import time
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import requests
import urllib3
from dicomweb_server import DICOMwebServer
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from serving import self_signed

from wsiweb import ReadOptions, Slide, SourceError
from wsiweb.sources.wire import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import SlideMaker
    from synthetic import SyntheticSlide

pytestmark = pytest.mark.usefixtures("no_certificates_from_outside")

ONE = ReadOptions(max_connections=1)


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic()


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


@pytest.fixture
def opened(server: DICOMwebServer, truth: SyntheticSlide) -> Iterator[Callable[..., Slide]]:
    """Open the slide as often as wanted; all are closed in the end."""
    slides = []

    def open_another(**how: Any) -> Slide:
        where = server.series_url(truth.study_uid, truth.series_uid)
        slides.append(Slide.open(where, options=ONE, **how))
        return slides[-1]

    yield open_another
    for slide in slides:
        slide.close()


def ports(server: DICOMwebServer) -> set[int]:
    """Return what tells the connections apart over which the service was asked."""
    return {request.client_port for request in server.requests}


def test_slides_share_connections(server: DICOMwebServer, opened: Callable[..., Slide]) -> None:
    """However they log in, as long as each request says so."""
    with requests.Session() as session:
        ways: list[dict[str, Any]] = [
            {}, {"token": "a"}, {"token": lambda: "b"}, {"auth": ("user", "password")}, {"headers": {"X-Key": "c"}},
            {"session": session},
        ]  # fmt: skip
        for number in range(30):
            opened(**ways[number % len(ways)]).read_region(0, 0, 0, 100, 100)
    assert len(ports(server)) == 1
    sent = {(request.headers.get("authorization"), request.headers.get("x-key")) for request in server.requests}
    assert len(sent) == 5


def test_who_closes_leaves_connections_to_the_others(server: DICOMwebServer, opened: Callable[..., Slide]) -> None:
    first, second = opened(), opened()
    first.close()
    first.close()
    second.read_region(0, 0, 0, 100, 100)
    assert len(ports(server)) == 1
    second.close()
    opened()
    assert len(ports(server)) == 2  # the last one had closed it


def sockets_to(server: DICOMwebServer) -> int:
    """Count the open sockets of this process that lead to a server."""
    port, found = urlsplit(server.url).port, 0
    for thing in gc.get_objects():
        if isinstance(thing, socket.socket) and thing.family == socket.AF_INET and thing.fileno() >= 0:
            with contextlib.suppress(OSError):  # one that listens
                found += thing.getpeername()[1] == port
    return found


def test_slides_that_are_let_go_leave_no_sockets(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    def read() -> int:
        slides = [Slide.open(server.series_url(truth.study_uid, truth.series_uid)) for _ in range(3)]
        for slide in slides:
            slide.read_region(0, 0, 0, 300, 200)
        return sockets_to(server)

    assert read() > 0
    gc.collect()
    deadline = time.monotonic() + 20
    while sockets_to(server) and time.monotonic() < deadline:  # the last threads are about to let go
        time.sleep(0.001)
    assert sockets_to(server) == 0


class ConnectionLogin(AuthBase):
    """As NTLM: what it shows once, holds for the connection."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class OwnSend(requests.Session):
    """May log in its connections."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        return super().send(request, **kwargs)


class OwnAdapter(HTTPAdapter):
    """May do anything."""


def with_own_adapter() -> requests.Session:
    session = requests.Session()
    session.mount("http://", OwnAdapter())
    return session


def test_connections_that_may_be_logged_in_are_for_one_login(
    server: DICOMwebServer, opened: Callable[..., Slide]
) -> None:
    logins = [None, ConnectionLogin(), ConnectionLogin()]
    for login in logins * 2:
        opened(auth=login)
    assert len(ports(server)) == len(logins)


def test_sessions_that_send_in_a_way_of_their_own_share_nothing(
    server: DICOMwebServer, opened: Callable[..., Slide]
) -> None:
    for session in (None, OwnSend(), OwnSend()):
        opened(session=session)
    assert len(ports(server)) == 3


def test_adapters_of_the_users_own_share_nothing(server: DICOMwebServer, opened: Callable[..., Slide]) -> None:
    for number in range(3):
        opened(session=with_own_adapter())
        assert len(ports(server)) == number + 1


@pytest.mark.parametrize("careless", [False, None, 0, ""])
def test_who_verifies_nobody_opens_no_door_for_others(truth: SyntheticSlide, tmp_path: Path, careless: Any) -> None:
    """requests writes what a session verifies into the pool that it takes from."""
    file = self_signed(tmp_path, "DNS:localhost,IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    session = requests.Session()
    session.verify = careless
    with DICOMwebServer(truth.folder, tls=context) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        where = server.series_url(truth.study_uid, truth.series_uid)
        with Slide.open(where, session=session) as slide:
            slide.read_region(0, 0, 0, 100, 100)
            with pytest.raises(SourceError, match="certificate"):
                Slide.open(where)
            with Slide.open(where, verify=str(file)) as other:
                slide.read_region(0, 0, 0, 200, 200)
                other.read_region(0, 0, 0, 100, 100)
                with pytest.raises(SourceError, match="certificate"):
                    Slide.open(where)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_of_its_own(server: DICOMwebServer, opened: Callable[..., Slide]) -> None:
    first, second = opened(), opened()
    pid = os.fork()
    if pid == 0:
        try:
            first.read_region(0, 0, 0, 100, 100)
            first.close()
            second.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert len(ports(server)) == 2
    second.read_region(0, 0, 0, 100, 100)
    assert len(ports(server)) == 2


def test_more_connections_than_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """The oldest is closed, and nobody is warned: it is no mistake."""
    pool = bind(urllib3.PoolManager(maxsize=2)).connection_from_url("http://127.0.0.1")
    connections = [pool._get_conn() for _ in range(3)]
    closed: list[Any] = []
    for connection in connections:
        connection.close = lambda connection=connection: closed.append(connection)
        pool._put_conn(connection)
    assert closed == connections[:1]
    assert [pool._get_conn(), pool._get_conn()] == connections[:0:-1]
    assert not caplog.records
