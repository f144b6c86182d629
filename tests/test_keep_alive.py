"""Connections at rest: services end them when they like, perhaps just as one is used again."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault
from serving import open_slide, within

from wsiweb import ProtocolError, ReadOptions, SourceError, WsiWebError
from wsiweb.sources import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker
    from faults import Request
    from synthetic import SyntheticSlide

pytestmark = pytest.mark.usefixtures("hurried")
BOX, OTHER = (0, 0, 64, 48), (320, 240, 64, 48)
ONCE = ReadOptions(max_attempts=1, max_connections=1, timeout_seconds=10)
END = Fault(raw=tuple)
"""The connection is closed without a word."""


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def end_all_there_are(server: DICOMwebServer) -> None:
    """End each connection as it is used again; those that are made from now on are served."""
    old = {request.client_port for request in server.requests}
    server.fault = lambda request: END if request.client_port in old else None


def test_what_a_connection_was_too_old_for_is_asked_for_at_once(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no attempt, and nothing to wait for."""
    monkeypatch.setattr(wire, "REST_SECONDS", 0.05)
    with open_slide(server, truth, options=ONCE) as slide:
        slide.read_region(0, *BOX)
        time.sleep(0.1)
        end_all_there_are(server)
        np.testing.assert_array_equal(slide.read_region(0, *OTHER), truth.truth(0, *OTHER))
        assert (slide.stats.requests, slide.stats.retries) == (4, 0)


def test_a_connection_that_was_used_just_now_has_failed(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REST_SECONDS", 60)
    with open_slide(server, truth, options=ONCE) as slide:
        slide.read_region(0, *BOX)
        end_all_there_are(server)
        with pytest.raises(ProtocolError, match="broke off"):
            slide.read_region(0, *OTHER)
        assert server.count("frames") == 2


def test_who_ends_new_connections_too_has_failed(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REST_SECONDS", 0)
    with open_slide(server, truth, options=ONCE) as slide:
        slide.read_region(0, *BOX)
        server.fault = lambda _request: END
        with pytest.raises(ProtocolError, match="broke off"):
            slide.read_region(0, *OTHER)
        assert server.count("frames") == 3


def test_a_connection_in_place_of_one_that_has_ended_is_new(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REST_SECONDS", 0)
    with open_slide(server, truth, options=ONCE) as slide:
        slide.read_region(0, *BOX)
        with server.lock:
            for connection in server.sockets:
                connection.shutdown(socket.SHUT_RDWR)
        server.fault = lambda _request: END
        with pytest.raises(ProtocolError, match="broke off"):
            slide.read_region(0, *OTHER)
        assert server.count("frames") == 2


def test_who_has_gone_meanwhile_has_failed(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REST_SECONDS", 0)

    def go(_request: Request) -> Fault:
        server._http.socket.shutdown(socket.SHUT_RDWR)
        return END

    with open_slide(server, truth, options=ONCE) as slide:
        slide.read_region(0, *BOX)
        server.fault = go
        with pytest.raises(SourceError, match="No connection"):
            within(30, lambda: slide.read_region(0, *OTHER))


def test_what_was_stopped_is_not_asked_for_again(
    server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REST_SECONDS", 0)

    def silence(_request: Request) -> Fault:
        return Fault(latency_seconds=30)

    with open_slide(server, truth, options=ONCE) as slide, ThreadPoolExecutor(1) as pool:
        slide.read_region(0, *BOX)
        server.fault = silence
        read = pool.submit(slide.read_region, 0, *OTHER)
        while server.count("frames") < 2:
            time.sleep(0.001)
        slide.close()
        with pytest.raises(WsiWebError):
            read.result(timeout=30)
        assert slide.stats.requests == 3
