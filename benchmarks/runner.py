"""Run workloads: a server, a fresh process for each measurement, readers in turn, and what all of it cost."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.environments import ROOT, python_of, versions
from benchmarks.painting import make_slide
from benchmarks.readers import VARIANTS
from benchmarks.workloads import SLIDES, THUMBNAIL_SIDE, WORKLOADS, level_index, network_floor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.slides import StoredSlide
    from benchmarks.workloads import Workload

    Json = dict[str, Any]

TOLERANCE = 2
"""Of any sample, against another decoder's pixels; a thumbnail's cells of a sixteenth may differ by ``MEAN_TOLERANCE``."""
MEAN_TOLERANCE = 6
SLOW_SECONDS = 20.0
"""A reader that takes longer in the first round is measured once more, not more often."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A reader, where its environment is, and, for wsiweb, which checkout of it."""

    label: str
    reader: str
    python: Path
    root: Path = ROOT


@dataclass(slots=True)
class Plan:
    """What a run measures."""

    contenders: list[Contender]
    workloads: list[str]
    profiles: list[str]
    repeats: int
    seed: int
    cache: Path
    limit_seconds: float
    """After which a measurement is given up."""
    report: Callable[[str], None]
    results: list[Json] = field(default_factory=list)


class Server:
    """The server's process, while used as a context."""

    def __init__(self, slides: list[StoredSlide]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", *(str(slide.folder) for slide in slides)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(),
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def taken(self) -> Json:
        """Return what was served since the last call."""
        with urllib.request.urlopen(f"{self.url}/control", timeout=20) as answer:
            found: Json = json.load(answer)
        return found


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def measure(contender: Contender, settings: Json, job: Json, taken: Callable[[], Json], limit_seconds: float) -> Json:
    """Run one job in a process of its own; return what it reports, and what the server counted."""
    process = subprocess.Popen(
        [str(contender.python), "-m", "benchmarks.worker", contender.reader, json.dumps(settings), str(contender.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=lambda err: said.extend(err), args=(process.stderr,), daemon=True)
    listener.start()
    timer = threading.Timer(limit_seconds, process.kill)
    counts: Json = {}
    try:
        timer.start()
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            message: Json = json.loads(line)
            state = message.pop("state")
            if state in ("result", "failed"):
                return {**message, **counts}
            counts = taken()  # resets at "ready", counts at "done"
            process.stdin.write("go\n")
            process.stdin.flush()
        if not timer.is_alive():
            return {"error": f"took longer than {limit_seconds:g} s"}
        listener.join(5)
        return {"error": f"ended without a result: {''.join(said)[-400:]}"}
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


def run(plan: Plan) -> Iterator[Json]:
    """Measure everything, workload by workload; yields the results as they come."""
    names = {"tiny", *(WORKLOADS[name].slide for name in plan.workloads)}
    plan.report(f"Slides: {', '.join(sorted(names))}")
    slides = {name: make_slide(SLIDES[name], plan.cache / "slides") for name in sorted(names)}
    with Server(list(slides.values())) as server, tempfile.TemporaryDirectory(dir=plan.cache) as scratch:
        for name in plan.workloads:
            workload = WORKLOADS[name]
            for profile in workload.profiles:
                if profile in plan.profiles:
                    yield from _run_one(plan, workload, profile, slides, server, scratch)


def _run_one(
    plan: Plan, workload: Workload, profile: str, slides: dict[str, StoredSlide], server: Server, scratch: str
) -> Iterator[Json]:
    slide = slides[workload.slide]
    job = make_job(workload, slide, slides["tiny"], f"{server.url}/{profile}", f"{server.url}/lan", plan.seed)
    job["scratch"] = scratch
    regions = [tuple(region) for region in job["regions"]]
    floor = network_floor(workload, slide, regions, profile)
    turns: list[tuple[Contender, Json, int]] = []
    for contender in plan.contenders:
        settings, rounds = {}, plan.repeats
        if contender.reader != "floor":
            found = _first_round(plan, contender, workload, profile, job, server)
            yield from found
            good = [one for one in found if "error" not in one]
            if not good:
                continue
            best = min(good, key=lambda one: one["seconds"])
            settings = best["settings"]
            rounds = min(plan.repeats, 1 if best["seconds"] > SLOW_SECONDS else plan.repeats)
        turns.append((contender, settings, rounds))
    for number in range(plan.repeats):
        for contender, settings, rounds in turns:
            if number < rounds:
                result = measure(contender, settings, {**job, "check": False}, server.taken, plan.limit_seconds)
                if contender.reader == "floor" and "error" not in result:
                    result = _with_network(result, floor)
                yield _labelled(result, workload, profile, contender, settings, number + 1)
    plan.report(_line(workload, profile, plan.results))


def make_job(workload: Workload, slide: StoredSlide, tiny: StoredSlide, url: str, near_url: str, seed: int) -> Json:
    """Return what the workers are told."""
    index = level_index(workload, slide.spec)
    regions = workload.regions(slide.spec, seed)
    if workload.kind == "thumbnail":
        regions = [(0, 0, *slide.spec.levels()[index].size)]
    return {
        "kind": workload.kind,
        "folder": str(slide.folder),
        "place": [url, slide.spec.study_uid, slide.spec.series_uid],
        "warm_up": [near_url, tiny.spec.study_uid, tiny.spec.series_uid],
        "level_index": index,
        "factor": slide.spec.factors[index],
        "regions": regions,
        "max_size": THUMBNAIL_SIDE,
        "check": True,
        "scratch": None,
    }


def _first_round(
    plan: Plan, contender: Contender, workload: Workload, profile: str, job: Json, server: Server
) -> list[Json]:
    """Try all settings of a reader, and compare the pixels; wrong ones are a failure."""
    found = []
    for settings in VARIANTS[contender.reader].get(workload.kind, ({},)):
        result = measure(contender, settings, job, server.taken, plan.limit_seconds)
        tolerance = MEAN_TOLERANCE if workload.kind == "thumbnail" else TOLERANCE
        difference = result.get("difference")
        if "error" not in result and difference is None and workload.kind != "open":
            result["error"] = "no pixels were compared"
        elif difference is not None and difference > tolerance:
            result["error"] = f"wrong pixels: they differ by {difference}"
        if "error" in result:
            plan.report(f"{workload.name} {profile} {contender.label} {settings}: {result['error']}")
        found.append(_labelled(result, workload, profile, contender, settings, 0))
    return found


def _with_network(result: Json, floor: Json) -> Json:
    """Return the larger of the work and the network."""
    work = result["seconds"]
    return {**result, **floor, "work_seconds": work, "seconds": max(work, floor["network_seconds"])}


def _labelled(
    result: Json, workload: Workload, profile: str, contender: Contender, settings: Json, number: int
) -> Json:
    """Say of what a result is; round 0 chose the settings and compared the pixels."""
    return {
        "workload": workload.name,
        "profile": profile,
        "reader": contender.label,
        "settings": settings,
        "round": number,
        **result,
    }


def _line(workload: Workload, profile: str, results: list[Json]) -> str:
    times: dict[str, list[float]] = {}
    for one in results:
        if (one["workload"], one["profile"]) == (workload.name, profile) and one["round"] and "seconds" in one:
            times.setdefault(one["reader"], []).append(one["seconds"])
    medians = "  ".join(f"{name} {statistics.median(seconds):.3f}" for name, seconds in times.items())
    return f"{workload.name:24} {profile:4} {medians}"


def machine(contenders: list[Contender]) -> Json:
    """Return what the figures depend on."""
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    interesting = ("wsiweb", "wsidicom", "ez-wsi-dicomweb", "dicomweb-client", "imagecodecs", "numpy", "pydicom")
    interesting += ("requests", "urllib3", "opencv-python-headless", "pillow")
    installed = {contender.label: versions(contender.python) for contender in contenders}
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {
            label: {name: version for name, version in sorted(found.items()) if name.lower() in interesting}
            for label, found in installed.items()
        },
        "checkouts": {contender.label: _commit(contender.root) for contender in contenders if contender.reader == "wsiweb"},
    }


def _commit(root: Path) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    )
    return answer.stdout.strip() or "unknown"


def contenders(names: list[str], pythons: dict[str, Path], checkouts: dict[str, Path], cache: Path) -> list[Contender]:
    """Return who is measured: readers by name, further checkouts of wsiweb by label, and the floor."""
    environments = cache / "environments"

    def python(reader: str) -> Path:
        return pythons.get(reader) or python_of(reader, environments)

    found = [Contender(name, name, python(name)) for name in names]
    found += [Contender(label, "wsiweb", python("wsiweb"), root.resolve()) for label, root in checkouts.items()]
    return [*found, Contender("floor", "floor", python("wsiweb"))]
