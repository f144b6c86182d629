"""``wsiweb bench``: what it reads, what it counts, and that it keeps to its budget. No times are asserted."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault
from synthetic import make_slide

from wsiweb import ReadOptions, RegionError
from wsiweb.bench import BenchReport, run_bench
from wsiweb.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults import Request
    from synthetic import SyntheticSlide

TILE = 32
SIZE = (330, 290)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("bench"), sizes=(SIZE, (165, 145)), tile_size=(TILE, TILE))


@pytest.fixture
def server(synthetic: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(synthetic.folder) as running:
        yield running


def bench(server: DICOMwebServer, synthetic: SyntheticSlide, **settings: Any) -> BenchReport:
    return run_bench(server.series_url(synthetic.study_uid, synthetic.series_uid), patch_size=TILE, **settings)


def test_steps_and_what_they_cost(server: DICOMwebServer, synthetic: SyntheticSlide) -> None:
    report = bench(server, synthetic)
    steps = {step.name: step for step in report.steps}
    assert list(steps) == [
        "first open", "open", "first pixel", "330 x 290", "330 x 290 again", "200 at random", "90 of a grid",
    ]  # fmt: skip
    assert report.stopped is None
    assert (steps["open"].requests, steps["open"].frames) == (1, 0)
    assert (steps["first pixel"].requests, steps["first pixel"].frames) == (1, 1)
    assert steps["330 x 290"].frames == 11 * 10  # every frame of the level once
    assert steps["330 x 290 again"].frames == steps["330 x 290 again"].requests == 0
    assert steps["330 x 290 again"].decode_seconds is None
    assert steps["200 at random"].patches == 200
    assert steps["90 of a grid"].frames == steps["90 of a grid"].patches == 10 * 9  # whole patches only
    assert sum(step.requests for step in report.steps) == server.count()
    assert all(step.decode_seconds for step in report.steps if step.frames)


def test_the_budget_makes_steps_smaller(server: DICOMwebServer, synthetic: SyntheticSlide) -> None:
    """Frames are 32 x 32 x 3 bytes raw: about 150 kB are fifty of them, and what the answers' heads take."""
    report = bench(server, synthetic, megabytes=0.15)
    received = sum(step.bytes for step in report.steps)
    assert 50_000 < received < 200_000
    assert sum(step.frames for step in report.steps) < 60


def test_the_same_seed_reads_the_same(server: DICOMwebServer, synthetic: SyntheticSlide) -> None:
    def frames_asked_for(seed: int) -> list[str]:
        before = len(server.requests)
        bench(server, synthetic, seed=seed, megabytes=0.2, options=ReadOptions(max_connections=1))
        return [request.path for request in server.requests[before:]]

    assert frames_asked_for(1) == frames_asked_for(1)
    assert frames_asked_for(1) != frames_asked_for(2)


def test_out_of_time_is_said(server: DICOMwebServer, synthetic: SyntheticSlide) -> None:
    """What was measured before is reported all the same."""

    def slow(request: Request) -> Fault | None:
        return Fault(latency_seconds=1.5) if request.kind == "frames" and len(request.frame_numbers) > 1 else None

    server.fault = slow
    report = bench(server, synthetic, seconds=0.5)
    assert [step.name for step in report.steps] == ["first open", "open", "first pixel"]
    assert report.stopped


def test_a_level_that_is_not_there(server: DICOMwebServer, synthetic: SyntheticSlide) -> None:
    with pytest.raises(RegionError, match="no level 7"):
        bench(server, synthetic, level=7)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["wsiweb", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("option", ["--seconds", "--megabytes"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e9", "0"])
def test_a_budget_has_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert command(monkeypatch, "nothing-is-opened", option, value) == 2
    assert option in capsys.readouterr().err


def test_the_command_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], synthetic: SyntheticSlide
) -> None:
    """A local slide: no requests, and nobody's quota."""
    assert not command(monkeypatch, synthetic.folder, "--patch-size", TILE, "--level", 1, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["slide"]["level_size"] == [165, 145]
    assert found["steps"][-1]["name"] == "20 of a grid"
    assert found["steps"][-1]["requests_per_patch"] == 0
    assert found["steps"][-1]["patches_per_second"] > 0


def test_the_command_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], synthetic: SyntheticSlide
) -> None:
    assert not command(monkeypatch, synthetic.folder, "--patch-size", TILE)
    printed = capsys.readouterr().out
    assert "patches/s" in printed
    assert "200 at random" in printed
