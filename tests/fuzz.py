"""Run the properties of ``test_fuzz.py`` for as long as wanted: ``python tests/fuzz.py --minutes 30 [NAME ...]``.

hypothesis draws the cases, a new seed each round. With ``--engine atheris`` (``pip install atheris``) libFuzzer
draws them instead and is led by the branches that they reach: one process for each property, one after the other.
Failing cases are printed; the exit code is 1 where there was any.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

ROUND = 2000
"""Cases of one property before it is the next one's turn."""
MAX_FAILURES = 3
"""A property that fails so often has said what it has to say."""

settings.register_profile("long", max_examples=ROUND, database=None)
settings.load_profile("long")


def properties() -> dict[str, Callable[..., Any]]:
    """Return the properties by name."""
    import test_fuzz  # noqa: PLC0415  (its cases are counted by the profile above)

    return {name: test for name, test in vars(test_fuzz).items() if hasattr(test, "hypothesis")}


def run_hypothesis(names: list[str], minutes: float) -> bool:
    """Run all properties in turn; return whether all hold."""
    deadline = time.monotonic() + minutes * 60
    tests = properties()
    cases, failures = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    while time.monotonic() < deadline:
        for name in names:
            try:
                tests[name]()
                cases[name] += ROUND
            except Exception:  # noqa: BLE001  (these are what is looked for)
                failures[name] += 1
                traceback.print_exc()
        names = [name for name in names if failures[name] < MAX_FAILURES]
    for name, count in cases.items():
        sys.stdout.write(f"{name}: {count:,} cases without failure, {failures[name]} rounds with\n")
    return not any(failures.values())


def run_atheris(names: list[str], minutes: float) -> bool:
    """Run each property in a process of its own; return whether all hold."""
    seconds = int(minutes * 60 / len(names))
    commands = [[sys.executable, __file__, "--child", name, "--seconds", str(seconds)] for name in names]
    codes = [subprocess.run(command, check=False).returncode for command in commands]
    return not any(codes)


def atheris_child(name: str, seconds: int) -> None:
    """Give one property to libFuzzer, which ends the process."""
    import atheris  # type: ignore[import-untyped]  # noqa: PLC0415  (only this engine needs it)

    with atheris.instrument_imports(include=["wsiweb"]):
        test = properties()[name]
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-max_len=2000", "-verbosity=0", "-print_final_stats=1"],
        test.hypothesis.fuzz_one_input,  # type: ignore[attr-defined]
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="properties to run; all by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        atheris_child(arguments.child, arguments.seconds)
        return
    run = run_atheris if arguments.engine == "atheris" else run_hypothesis
    sys.exit(not run(arguments.names or list(properties()), arguments.minutes))


if __name__ == "__main__":
    main()
