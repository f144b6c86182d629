"""The benchmark harness runs: wsiweb alone, on a tiny slide, every figure there. No times are asserted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
WORKLOADS = ("tiny-open", "tiny-region", "tiny-warm", "tiny-grid", "tiny-reduced", "tiny-threads", "tiny-thumbnail")


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def measure(cache: Path, output: Path, *workloads: str, profile: str = "lan") -> dict[str, Any]:
    readers = ("wsiweb", "bare", "floor")
    pythons = [argument for name in readers for argument in ("--python", f"{name}={sys.executable}")]
    ended = harness(
        "run", "--readers", "wsiweb,bare", *pythons, "--workloads", ",".join(workloads), "--profiles", profile,
        "--repeats", 1, "--quiet", 0, "--attempts", 1, "--cache", cache, "--output", output,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "| workload |" in ended.stdout
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(cache: Path) -> dict[str, Any]:
    return measure(cache, cache / "run.json", *WORKLOADS)


@pytest.mark.parametrize("workload", ["tiny-open", "tiny-region", "tiny-grid"])
def test_the_limit_is_measured(run: dict[str, Any], workload: str) -> None:
    first, timed = results(run, workload, "bare")
    assert "error" not in timed
    assert first["difference"] in ((None,) if workload == "tiny-open" else range(7))
    assert run["machine"]["versions"]["bare"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_are_verified(cache: Path, tmp_path: Path) -> None:
    run = measure(cache, tmp_path / "https.json", "tiny-region", profile="https")
    for reader in ("wsiweb", "bare"):
        first, timed = results(run, "tiny-region", reader)
        assert first["difference"] in range(7)
        assert timed["connections"] >= 1


def results(run: dict[str, Any], workload: str, reader: str = "wsiweb") -> list[dict[str, Any]]:
    return [one for one in run["results"] if (one["workload"], one["reader"]) == (workload, reader)]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_everything_is_measured(run: dict[str, Any], workload: str) -> None:
    first, timed = results(run, workload)
    assert "error" not in first
    assert "error" not in timed
    assert first["difference"] in ((None,) if workload == "tiny-open" else range(7))
    assert timed["peak_bytes"] >= timed["base_bytes"] > 0
    assert timed["cpu_seconds"] >= 0
    (floor,) = results(run, workload, "floor")
    assert floor["seconds"] >= floor["network_seconds"]


def test_what_the_server_counts(run: dict[str, Any]) -> None:
    """700 pixels, off the grid of 256, are four tiles wide at most and three at least; 12 tiles less a shift, 20."""
    region, grid, warm = (results(run, name)[1] for name in ("tiny-region", "tiny-grid", "tiny-warm"))
    assert region["frames"] in (9, 12, 16)
    assert region["bytes"] > region["frames"] * 1000
    assert grid["frames"] == 5 * 4
    assert warm["requests"] == warm["frames"] == 0
    assert results(run, "tiny-region", "floor")[0]["frames"] == region["frames"]
    assert run["machine"]["versions"]["wsiweb"]["numpy"] == np.__version__


def test_wrong_pixels_are_not_timed(cache: Path, run: dict[str, Any], tmp_path: Path) -> None:
    """The truth is changed here, which is as good as a reader that reads wrongly."""
    assert run["results"]
    (slide,) = (cache / "slides").glob("tiny-*")
    truth = slide / "pixels-0.npy"
    before = truth.read_bytes()
    try:
        np.save(truth, np.roll(np.load(truth), 1, axis=1))
        first, *timed = results(measure(cache, tmp_path / "wrong.json", "tiny-region"), "tiny-region")
    finally:
        truth.write_bytes(before)
    assert first["error"].startswith("wrong pixels")
    assert not timed


def test_the_table_goes_between_the_markers(cache: Path, run: dict[str, Any], tmp_path: Path) -> None:
    assert run["results"]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark table -->\nold\n<!-- end of benchmark table -->\nafter\n")
    ended = harness("table", cache / "run.json", "--into", page)
    assert ended.returncode == 0, ended.stderr
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert sum(line.startswith("| tiny: ") for line in lines) == len(WORKLOADS)
