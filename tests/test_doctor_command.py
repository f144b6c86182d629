"""The verb ``wsiweb doctor``: what it prints, how it exits, and what it does not print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault
from typer.testing import CliRunner, Result

from wsiweb.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker


@pytest.fixture
def server(synthetic: SlideMaker) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(synthetic("jpeg").folder) as server:
        yield server


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_one_screen(server: DICOMwebServer) -> None:
    result = doctor(server.url)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert lines[0] == server.url
    for name in ("reach", "authentication", "search", "metadata", "single frames", "media types", "quota"):
        assert any(line.startswith(name) for line in lines)
    assert "Slides can be read here" in result.stdout


def test_as_json(server: DICOMwebServer) -> None:
    result = doctor(server.url, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["readable"], found["requests"]) == (True, server.count())
    assert [check["name"] for check in found["checks"]][:2] == ["reach", "authentication"]
    assert found["service"]["kind"] == "unknown"


def test_where_nothing_can_be_read(server: DICOMwebServer) -> None:
    server.fault = lambda request: Fault(status=401, body=json.dumps(request.headers).encode())
    result = doctor(server.url, "--token", "s3cr3t-token", "--header", "X-Api-Key: s3cr3t-key")
    assert result.exit_code == 1
    assert "a bearer token and headers (X-Api-Key)" in " ".join(result.stdout.split())
    assert "No slide could be read here" in result.stdout
    assert "s3cr3t" not in result.output
    assert "s3cr3t-token" in server.requests[0].headers["authorization"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("some/folder",),
        *(("http://127.0.0.1:1", "--megabytes", value) for value in ("0", "inf", "nan")),
        ("http://127.0.0.1:1", "--user", "nobody"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert doctor(*arguments).exit_code == 2


def test_little_may_be_received(server: DICOMwebServer) -> None:
    found = json.loads(doctor(server.url, "--json", "--megabytes", "0.1").stdout)
    assert found["readable"]
    assert found["bytes"] < 110_000


def test_markup_in_what_a_server_says_is_text(server: DICOMwebServer) -> None:
    server.fault = lambda request: (
        Fault(status=404, body=b"[bold]no[/bold] [/nonsense]") if "series?" in request.path else None
    )
    result = doctor(f"{server.url}/studies/1/series/2")
    assert result.exit_code == 1
    assert "[/nonsense]" in result.stdout


@pytest.mark.parametrize("verb", ["info", "search", "doctor"])
def test_a_terminal_obeys_nothing_of_what_a_server_says(server: DICOMwebServer, verb: str) -> None:
    """To write to the clipboard (OSC 52), to clear the screen (CSI, also as one character of C1)."""
    server.fault = lambda _: Fault(status=404, body="no \x1b]52;c;cHc=\x07 \x1b[2J \x9b2J such [/b] study".encode())
    url = server.series_url("1", "2") if verb == "info" else server.url
    result = CliRunner().invoke(app, [verb, url])
    said = " ".join(f"{result.output} {result.exception}".split())
    assert result.exit_code == 1
    assert {letter for letter in said if not letter.isprintable()} == set()
    assert "such [/b] study" in said
