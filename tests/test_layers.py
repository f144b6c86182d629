"""Imports go one way, threads are made in few places, and each foreign library has its own corner."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import wsiweb

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(wsiweb.__file__).parent
LAYERS = {
    "app": (
        ("__main__",),
        ("cli",),
        ("cli.measuring", "cli.patching", "cli.reading", "cli.searching"),
        ("cli.common",),
    ),
    "bench": (("bench",),),
    "demo": (
        ("demo.tour",),
        ("demo.slide",),
        ("demo.associated",),
        ("demo.pyramid",),
        ("demo.file",),
        ("demo.header", "demo.tissue"),
        ("demo.texture",),
        ("demo",),
    ),
    "doctor": (
        ("doctor",),
        ("doctor.examination", "doctor.screen"),
        ("doctor.costs", "doctor.frames", "doctor.service", "doctor.slide"),
        ("doctor.subject",),
        ("doctor.wire",),
        ("doctor.report",),
    ),
    "server": (
        ("server",),
        ("server.http",),
        ("server.routes",),
        ("server.wado", "server.rendered"),
        ("server.qido", "server.decoded"),
        ("server.index",),
        ("server.answer",),
        ("server.accept",),
    ),
    "search": (("idc",), ("finding",), ("listing",)),
    "face": (("slide",), ("level",)),
    "use": (
        ("torch",),
        ("patches",),
        ("patches.loading",),
        ("patches.plan",),
        ("patches.mapping", "patches.plot", "patches.points", "patches.storage", "patches.writing"),
        ("export", "patches.batches", "patches.cost", "patches.order", "patches.rows"),
        ("patches.layout", "patches.tissue", "patches.values"),
        ("files", "patches.packing", "patches.polygons"),
    ),
    "run": (("content",), ("opening", "reader", "regions"), ("addresses", "guesses", "stream", "workers"), ("board",)),
    "I/O": (
        ("bulk", "cache", "sources.client", "sources.disk", "sources.local", "sources.web"),
        ("sources.part10", "sources.retrieval", "sources.store"),
        ("sources.pace",),
        ("sources.accept", "sources.conclusions", "sources.services"),
        ("sources.answers", "sources.bodies"),
        ("sources.database", "sources.http", "sources.pixeldata"),
        ("sources.elements", "sources.sessions"),
        ("sources.adapters", "sources.failures"),
        ("sources.multipart", "sources.quoting", "sources.wire"),
        ("sources.chunked", "sources.retry", "sources.trust"),
    ),
    "pure": (
        ("batch", "codecs", "icc", "matching", "plan", "png", "properties", "resolution", "stitch"),
        ("codestream", "decoders", "resample"),
        ("blockmean",),
    ),
    "model": (
        ("pyramid",),
        ("grouping",),
        ("images", "metadata"),
        ("colour", "frame_positions", "frames", "palette"),
        ("frame_groups",),
        ("dicomjson",),
        ("jsontext",),
    ),
    "base": (
        ("wsiweb",),
        ("errors", "geometry", "locks", "memory", "options", "sources", "sources.base", "stats", "transfer_syntaxes"),
    ),
}
"""Rows from the top down: a module imports only from rows below its own."""

ROW = {name: row for row, names in enumerate(row for rows in LAYERS.values() for row in rows) for name in names}
LAYER = {module: name for name, rows in LAYERS.items() for row in rows for module in row}

THREAD_MAKERS = frozenset(
    {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "ThreadPool", "Pool", "Process"}
    | {"ThreadingHTTPServer", "ThreadingMixIn", "ThreadingTCPServer", "start_new_thread", "run_in_executor"}
)
FOREIGN = {
    "sqlite3": ("sources.database",),
    "requests": (
        "opening",
        "sources.adapters",
        "sources.client",
        "sources.failures",
        "sources.http",
        "sources.sessions",
    ),
    "urllib3": (
        "sources.adapters",
        "sources.client",
        "sources.failures",
        "sources.http",
        "sources.trust",
        "sources.wire",
    ),
    "dicomweb_client": ("opening",),
    "imagecodecs": ("decoders", "demo.pyramid"),
    "pydicom": ("demo.file", "demo.header", "matching", "server.qido", "sources.part10"),
    "cachetools": ("cache", "server.index"),
    "PIL": (
        "demo.associated",
        "demo.header",
        "demo.texture",
        "icc",
        "patches.tissue",
        "patches.writing",
        "server.rendered",
    ),
    "isal": ("png",),
    "msgspec": ("frame_groups", "jsontext"),
    "typer": ("cli", "cli.common", "cli.measuring", "cli.patching", "cli.reading", "cli.searching"),
    "idc_index": ("idc",),
    "dask": ("level",),
    "torch": ("torch",),
    "zarr": ("patches.rows",),
    "h5py": ("patches.storage",),
    "matplotlib": ("patches.plot",),
    "pandas": ("patches.storage",),
    "rich": ("cli.common", "cli.measuring", "cli.reading", "cli.searching", "demo.tour", "doctor.screen", "export"),
}
"""Which modules import a library when they run; nobody else may."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import of one module by another."""

    importer: str
    imported: str
    """Dotted name; relative to the package for its own modules."""
    typing_only: bool
    line: int
    own: bool
    """Whether it is a module of the package, and not a library of the same name."""


def source_files() -> dict[str, Path]:
    """Return every module by its name within the package."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        files[".".join(parts) or "wsiweb"] = path
    return files


FILES = source_files()
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def imports_of(module: str) -> Iterator[Import]:
    tree = TREES[module]
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: a relative import"
            # What is imported from a package may be one of its modules, or a name in it.
            names = [
                inner if inner.removeprefix("wsiweb.") in FILES else str(node.module)
                for inner in (f"{node.module}.{alias.name}" for alias in node.names)
            ]
        else:
            continue
        for name in dict.fromkeys(names):
            own = name.split(".")[0] == "wsiweb"
            yield Import(module, name.removeprefix("wsiweb."), id(node) in guarded, node.lineno, own)


IMPORTS = [found for module in FILES for found in imports_of(module)]


def test_every_module_has_its_row() -> None:
    assert sorted(FILES) == sorted(ROW)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_down(module: str) -> None:
    """What is imported for type checking alone may lie above: it is not there when the code runs."""
    upward = [
        f"line {found.line}: {module} ({LAYER[module]}) imports {found.imported} ({LAYER[found.imported]})"
        for found in imports_of(module)
        if found.own and found.imported in ROW and not found.typing_only and ROW[found.imported] <= ROW[module]
    ]
    assert not upward


def test_the_test_sees_imports() -> None:
    """A few that must be there: were they not found, nothing would be."""
    found = {(one.importer, one.imported, one.typing_only) for one in IMPORTS}
    assert ("slide", "opening", False) in found  # from wsiweb import opening
    assert ("slide", "export", False) in found  # within a function
    assert ("patches.plan", "slide", True) in found  # for type checking
    assert ("decoders", "imagecodecs", False) in found


@pytest.mark.parametrize("library", sorted(FOREIGN))
def test_foreign_libraries_stay_in_their_corner(library: str) -> None:
    foreign = [one for one in IMPORTS if not one.own and not one.typing_only]
    users = {one.importer for one in foreign if one.imported.split(".")[0] == library}
    assert users == set(FOREIGN[library])


def names_called(node: ast.AST) -> Iterator[str]:
    """Yield what is called, and what is subclassed, by its last name."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            makers = [inner.func]
        elif isinstance(inner, ast.ClassDef):
            makers = inner.bases
        else:
            continue
        for maker in makers:
            if isinstance(maker, (ast.Name, ast.Attribute)):
                yield maker.id if isinstance(maker, ast.Name) else maker.attr


def test_threads_are_made_in_few_places() -> None:
    makers = {module for module, tree in TREES.items() if THREAD_MAKERS & set(names_called(tree))}
    assert makers - {module for module in FILES if module.startswith(("server", "demo"))} == {"workers"}
