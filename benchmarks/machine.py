"""What figures depend on: the machine, what is installed, and who else is computing."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environments import versions

if TYPE_CHECKING:
    from benchmarks.runner import Contender

    Json = dict[str, Any]

PACKAGES = frozenset(
    {
        "cachetools",
        "dicomweb-client",
        "ez-wsi-dicomweb",
        "imagecodecs",
        "isal",
        "numpy",
        "opencv-python-headless",
        "pillow",
    }
    | {"pydicom", "requests", "urllib3", "wsidicom"}
)
"""Whose versions are told."""
QUIET_SHARE = 0.1
"""Of the machine, that others may take of a measurement."""
CLOCK_SECONDS = 0.03
"""What the kernel's count of busy time cannot tell."""


def busy_seconds() -> float | None:
    """Return the CPU time that the whole machine has spent, or None where it does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, hard, soft, steal = (int(field) for field in fields)
    return (user + nice + system + hard + soft + steal) / os.sysconf("SC_CLK_TCK")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_for_quiet(limit_seconds: float) -> None:
    """Wait until others leave the machine alone for a tenth of a second, but no longer than told."""
    give_up = time.monotonic() + limit_seconds
    while time.monotonic() < give_up:
        before = busy_seconds()
        time.sleep(0.1)
        after = busy_seconds()
        if before is None or after is None or after - before < CLOCK_SECONDS:
            return


def disturbed(result: Json) -> bool:
    """Whether others took so much of the machine that a measurement says little."""
    others = result.get("others_cpu_seconds")
    return others is not None and others > CLOCK_SECONDS + QUIET_SHARE * cores() * result["seconds"]


def describe(contenders: list[Contender]) -> Json:
    """Return what goes with the results."""
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {
            one.label: {name: version for name, version in sorted(versions(one.python).items()) if name in PACKAGES}
            for one in contenders
        },
        "checkouts": {one.label: _commit(one.root) for one in contenders if one.reader == "wsiweb"},
    }


def _commit(root: Path) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    )
    return answer.stdout.strip() or "unknown"
