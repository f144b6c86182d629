"""The command ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine, report, runner
from benchmarks.environments import PEERS
from benchmarks.profiles import PROFILES
from benchmarks.workloads import DEFAULT, QUICK, QUICK_PROFILES, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Container

CACHE = Path.home() / ".cache" / "wsiweb-benchmarks"


def main() -> None:
    """Run, or make a table of what was run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure wsiweb and its peers on this machine; see benchmarks/README.md.",
    )
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run", help="measure")
    run.set_defaults(do=_run)
    run.add_argument(
        "--workloads", type=_several(WORKLOADS), default=None, metavar="A,B", help="default: all; see list"
    )
    profiles = (*PROFILES, "orthanc")
    run.add_argument("--profiles", type=_several(profiles), default=None, metavar="A,B", help=", ".join(profiles))
    readers = ("wsiweb", *PEERS)
    known = (*readers, "bare")
    run.add_argument("--readers", type=_several(known), default=list(readers), metavar="A,B", help=", ".join(known))
    run.add_argument("--quick", action="store_true", help="few workloads, few repeats: two minutes")
    run.add_argument("--repeats", type=int, default=None, help="measurements of each; default 5, quick 3")
    run.add_argument("--seed", type=int, default=1, help="of the regions")
    run.add_argument("--cache", type=Path, default=CACHE, help=f"environments and slides; default {CACHE}")
    run.add_argument("--quiet", type=float, default=5.0, help="seconds to wait, each time, for others on the machine")
    run.add_argument("--attempts", type=int, default=3, help="measurements while others disturb; the quietest counts")
    run.add_argument("--nice", type=int, default=0, help="priority of readers and server, below 0 as root only")
    run.add_argument("--limit", type=float, default=120.0, help="seconds after which a measurement is given up")
    run.add_argument(
        "--python", type=_pair, action="append", default=[], metavar="READER=PATH", help="interpreter to use"
    )
    run.add_argument(
        "--checkout", type=_pair, action="append", default=[], metavar="LABEL=PATH",
        help="another checkout of wsiweb, measured in turn with this one",
    )  # fmt: skip
    run.add_argument("--output", type=Path, default=Path("benchmark.json"), help="results; default benchmark.json")
    show = verbs.add_parser("table", help="print results as a table, or put it into a file")
    show.set_defaults(do=_table)
    show.add_argument("results", type=Path, nargs="+", help="one or more runs on the same machine, shown as one")
    show.add_argument("--detail", action="store_true", help="all that is known: spread, CPU, connections, settings")
    show.add_argument("--into", type=Path, help="Markdown file with the markers; try README.md")
    verbs.add_parser("list", help="list the workloads").set_defaults(do=_list)
    arguments = parser.parse_args()
    arguments.do(arguments)


def _several(known: Container[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no such thing: {', '.join(unknown)}")
        return names

    return parse


def _pair(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("NAME=PATH is wanted")
    return name, Path(path)


def _run(arguments: argparse.Namespace) -> None:
    arguments.cache.mkdir(parents=True, exist_ok=True)
    contenders = runner.contenders(arguments.readers, dict(arguments.python), dict(arguments.checkout), arguments.cache)
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    plan = runner.Plan(
        contenders=contenders,
        workloads=arguments.workloads or list(QUICK if arguments.quick else DEFAULT),
        profiles=arguments.profiles or list(QUICK_PROFILES if arguments.quick else (*PROFILES, "orthanc")),
        repeats=repeats,
        seed=arguments.seed,
        cache=arguments.cache,
        limit_seconds=arguments.limit,
        quiet_seconds=arguments.quiet,
        attempts=arguments.attempts,
        nice=arguments.nice,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    found = {
        "machine": machine.describe(contenders),
        "repeats": repeats,
        "seed": arguments.seed,
        "results": plan.results,
    }
    for result in runner.run(plan):
        plan.results.append(result)
        arguments.output.write_text(json.dumps(found, indent=1))
    print(report.table(found))
    print(f"\n{report.summary(found)}")


def _table(arguments: argparse.Namespace) -> None:
    runs = [json.loads(path.read_text()) for path in arguments.results]
    found = {**runs[0], "results": [result for run in runs for result in run["results"]]}
    shown = report.detail(found) if arguments.detail else report.table(found)
    text = f"{shown}\n\n{report.summary(found)}"
    if arguments.into:
        report.insert(arguments.into, text)
    else:
        print(text)


def _list(_: argparse.Namespace) -> None:
    for workload in WORKLOADS.values():
        print(f"{workload.name:26} {workload.title} ({', '.join(workload.profiles)})")


if __name__ == "__main__":
    main()
