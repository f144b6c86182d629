"""Run workloads: a fresh process for each measurement, readers in turn, and what all of it cost."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environments import ROOT, python_of
from benchmarks.machine import busy_seconds, disturbed, wait_for_quiet
from benchmarks.painting import make_slide
from benchmarks.readers import VARIANTS
from benchmarks.servers import Orthanc, OwnServer, environment, orthanc_program
from benchmarks.workloads import SLIDES, THUMBNAIL_SIDE, WORKLOADS, level_index, network_floor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.slides import StoredSlide
    from benchmarks.workloads import Workload

    Json = dict[str, Any]

TOLERANCE = 2
"""Of any sample, against another decoder's pixels."""
MEAN_TOLERANCE = 6
"""Of the means of 16 x 16 parts of what everybody resamples in their own way."""
RESAMPLED = ("thumbnail", "reduced")
NEAR = 1.5
"""Settings that took so many times as long as the fastest, or less, are tried twice before one is chosen."""
SLOW_SECONDS = 20.0
"""What takes longer in the first round is measured once more, not more often."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A reader, where its environment is, and, for wsiweb, which checkout of it."""

    label: str
    reader: str
    python: Path
    root: Path = ROOT


@dataclass(slots=True)
class Plan:
    """What a run measures, and how."""

    contenders: list[Contender]
    workloads: list[str]
    profiles: list[str]
    repeats: int
    seed: int
    cache: Path
    limit_seconds: float
    """After which a measurement is given up."""
    quiet_seconds: float
    """For how long to wait, before each measurement, for others to leave the machine alone."""
    attempts: int
    """How often a measurement is made while others disturb it; the least disturbed counts."""
    nice: int
    """Priority of the readers and the server; below zero only root may."""
    report: Callable[[str], None]
    results: list[Json] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Round:
    """One workload over one network, and where it is read from."""

    plan: Plan
    workload: Workload
    profile: str
    slide: StoredSlide
    server: OwnServer | Orthanc
    job: Json

    def label(self, result: Json, contender: Contender, settings: Json, number: int) -> Json:
        """Say of what a result is; number 0 chose the settings and compared the pixels."""
        which = {"workload": self.workload.name, "profile": self.profile, "reader": contender.label}
        return {**which, "settings": settings, "round": number, **result}


def measure(contender: Contender, settings: Json, job: Json, one: Round) -> Json:
    """Run one job in a process of its own; return what it reports, and what the server counted."""
    process = subprocess.Popen(
        [str(contender.python), "-m", "benchmarks.worker", contender.reader, json.dumps(settings), str(contender.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(one.server.trusted),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    listener.start()
    timer = threading.Timer(one.plan.limit_seconds, process.kill)
    timer.start()
    try:
        if one.plan.nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, one.plan.nice)
        result = _converse(process.stdin.write, process.stdin.flush, process.stdout, job, one)
        if result is not None:
            return result
        if not timer.is_alive():
            return {"error": f"took longer than {one.plan.limit_seconds:g} s"}
        listener.join(5)
        return {"error": f"ended without a result: {''.join(said)[-400:]}"}
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


def _converse(
    write: Callable[[str], object], flush: Callable[[], None], replies: Iterator[str], job: Json, one: Round
) -> Json | None:
    """Hand the job over, give the word, and read the counters before and after; None where the worker is silent."""

    def say(text: str) -> None:
        write(text + "\n")
        flush()

    counts: Json = {}
    busy_before = busy = None
    say(json.dumps(job))
    for line in replies:
        message: Json = json.loads(line)
        state = message.pop("state")
        if state == "ready":
            wait_for_quiet(one.plan.quiet_seconds)
            one.server.taken()
            busy_before = busy_seconds()
        elif state == "done":
            busy = busy_seconds()
            counts = one.server.taken()
        else:
            if busy_before is not None and busy is not None and counts and "cpu_seconds" in message:
                others = busy - busy_before - message["cpu_seconds"] - counts["server_cpu_seconds"]
                counts["others_cpu_seconds"] = max(others, 0.0)
            return {**message, **counts}
        say("go")
    return None


def run(plan: Plan) -> Iterator[Json]:
    """Measure everything, workload by workload; yields the results as they come."""
    chosen = [
        (WORKLOADS[name], profile)
        for name in plan.workloads
        for profile in WORKLOADS[name].profiles
        if profile in plan.profiles
    ]
    names = sorted({"tiny", *(workload.slide for workload, _ in chosen)})
    plan.report(f"Slides: {', '.join(names)}")
    slides = {name: make_slide(SLIDES[name], plan.cache / "slides") for name in names}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=plan.cache))
        servers: dict[str, OwnServer | Orthanc] = {}
        own = stack.enter_context(OwnServer(list(slides.values()), plan.nice, Path(scratch)))
        for workload, profile in chosen:
            server = servers.get(profile, own)
            if profile == "orthanc" and server is own:
                program = orthanc_program()
                if program is None:
                    plan.report(f"{workload.name}: Orthanc is not installed.")
                    continue
                held = {slides[other.slide].spec.name for other, where in chosen if where == profile} | {"tiny"}
                server = Orthanc(program, Path(scratch) / "orthanc", [slides[name] for name in sorted(held)])
                servers[profile] = stack.enter_context(server)
            elif server is own and not own.plays(profile):
                plan.report(f"{workload.name}: openssl is not installed.")
                continue
            slide = slides[workload.slide]
            near = server.url("lan")
            job = make_job(workload, slide, slides["tiny"], server.url(profile), near, plan.seed)
            one = Round(plan, workload, profile, slide, server, {**job, "scratch": scratch})
            yield from _measure_all(one)
            plan.report(_line(one))


def _measure_all(one: Round) -> Iterator[Json]:
    plan, workload = one.plan, one.workload
    floor = network_floor(workload, one.slide, [tuple(region) for region in one.job["regions"]], one.profile)
    turns: list[tuple[Contender, Json, int]] = []
    for contender in plan.contenders:
        settings, rounds = dict(workload.options), plan.repeats
        if contender.reader != "floor":
            if workload.options and contender.reader != "wsiweb":
                continue
            found = _first_round(one, contender)
            yield from found
            good = [result for result in found if "error" not in result]
            if not good:
                continue
            best = _best(one, contender, good)
            settings = best["settings"]
            rounds = 1 if best["seconds"] > SLOW_SECONDS else plan.repeats
        turns.append((contender, settings, rounds))
    for number in range(1, plan.repeats + 1):
        for contender, settings, rounds in turns:
            if number <= rounds:
                result = _least_disturbed(one, contender, settings)
                if contender.reader == "floor" and "error" not in result:
                    work = result["seconds"]
                    result |= {**floor, "work_seconds": work, "seconds": max(work, floor["network_seconds"])}
                yield one.label(result, contender, settings, number)


def _best(one: Round, contender: Contender, found: list[Json]) -> Json:
    """Return the fastest of the settings; those that come near to it have another chance first."""
    fastest = min(float(result["seconds"]) for result in found)
    near = [result for result in found if result["seconds"] < NEAR * fastest]
    if len(near) > 1 and fastest < SLOW_SECONDS / 4:
        for result in near:
            again = measure(contender, result["settings"], {**one.job, "check": False}, one)
            result["seconds"] = min(result["seconds"], again.get("seconds", result["seconds"]))
    return min(near, key=lambda result: float(result["seconds"]))


def _least_disturbed(one: Round, contender: Contender, settings: Json) -> Json:
    """Measure until nobody disturbs, or often enough."""
    found: list[Json] = []
    for _ in range(one.plan.attempts):
        result = measure(contender, settings, {**one.job, "check": False}, one)
        if "error" in result or not disturbed(result):
            return result
        found.append(result)
    return min(found, key=lambda result: float(result["others_cpu_seconds"] / result["seconds"]))


def _first_round(one: Round, contender: Contender) -> list[Json]:
    """Try all settings of a reader, and compare the pixels; wrong ones are a failure."""
    found = []
    workload = one.workload
    variants = (dict(workload.options),) if workload.options else VARIANTS[contender.reader].get(workload.kind, ({},))
    for settings in variants:
        result = measure(contender, settings, one.job, one)
        tolerance = MEAN_TOLERANCE if workload.kind in RESAMPLED else TOLERANCE
        difference = result.get("difference")
        if "error" not in result and difference is None and workload.kind != "open":
            result["error"] = "no pixels were compared"
        elif difference is not None and difference > tolerance:
            result["error"] = f"wrong pixels: they differ by {difference}"
        if "error" in result:
            one.plan.report(f"{workload.name} {one.profile} {contender.label} {settings}: {result['error']}")
        found.append(one.label(result, contender, settings, 0))
    return found


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
        "warm_up": None if workload.kind == "start" else [near_url, tiny.spec.study_uid, tiny.spec.series_uid],
        "level_index": index,
        "factor": slide.spec.factors[index],
        "regions": regions,
        "reduced_by": workload.reduced_by,
        "max_size": THUMBNAIL_SIDE,
        "check": True,
        "scratch": None,
    }


def _line(one: Round) -> str:
    times: dict[str, list[float]] = {}
    for result in one.plan.results:
        same = (result["workload"], result["profile"]) == (one.workload.name, one.profile)
        if same and result["round"] and "seconds" in result:
            times.setdefault(result["reader"], []).append(result["seconds"])
    medians = "  ".join(f"{name} {statistics.median(seconds):.4f}" for name, seconds in times.items())
    return f"{one.workload.name:26} {one.profile:8} {medians}"


def contenders(names: list[str], pythons: dict[str, Path], checkouts: dict[str, Path], cache: Path) -> list[Contender]:
    """Return who is measured: readers by name, further checkouts of wsiweb by label, and the floor."""
    environments = cache / "environments"

    def python(reader: str) -> Path:
        return pythons.get(reader) or python_of(reader, environments)

    found = [Contender(name, name, python(name)) for name in names]
    found += [Contender(label, "wsiweb", python("wsiweb"), root.resolve()) for label, root in checkouts.items()]
    return [*found, Contender("floor", "floor", python("floor"))]
