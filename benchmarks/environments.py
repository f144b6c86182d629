"""An environment for each reader, made by pip where there is none: wsidicom and ez-wsi cannot share one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

from benchmarks.readers import NO_PEERS

ROOT = Path(__file__).resolve().parent.parent
PEERS = {
    "wsidicom": ("wsidicom[imagecodecs]==0.36.1", "dicomweb-client>=0.61.2"),
    # ez-wsi leaves dataclasses-json open, and a resolver then picks a release that cannot be imported.
    "ez-wsi": ("ez-wsi-dicomweb==6.1.6", "dataclasses-json==0.6.7"),
}
"""What each peer's environment holds."""
FLOOR = ("imagecodecs>=2026.3.6", "isal>=1.8", "numpy>=2.4")
"""The fastest decoders, and the fastest deflate."""


def requirements(reader: str) -> tuple[str, ...]:
    """Return what to install; of wsiweb its dependencies only, since the checkout itself is measured."""
    if reader in NO_PEERS:
        return FLOOR
    if reader in PEERS:
        return PEERS[reader]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])


def python_of(reader: str, cache: Path) -> Path:
    """Return the interpreter of a reader's environment; makes the environment if need be."""
    wanted = requirements(reader)
    identity = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()[:10]
    folder = cache / f"{reader}-{identity}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        print(f"Making an environment for {reader} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """Return what is installed, by name."""
    code = "import importlib.metadata as m; print(*(f\"{d.metadata['Name']}={d.version}\" for d in m.distributions()))"
    answer = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    pairs = (word.partition("=") for word in answer.split())
    return {name.lower().replace("_", "-"): version for name, _, version in pairs}
