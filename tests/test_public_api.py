"""What ``wsiweb`` exports, what its errors are, and what importing it costs."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

import wsiweb
from wsiweb import errors, patches
from wsiweb.server import DicomWebServer

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import SlideMaker

ERRORS = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
}
HEAVY = ("numpy", "pydicom", "PIL", "requests", "urllib3", "imagecodecs", "typer", "rich", "cachetools", "torch")
NEEDLESS_FOR_LOCAL_SLIDES = (
    *("dicomweb_client", "PIL", "typer", "rich", "torch"),
    *("wsiweb.sources.client", "wsiweb.server", "wsiweb.cli"),
)


def loaded_by(code: str, candidates: tuple[str, ...]) -> set[str]:
    """Return which of the modules are there after the code has run in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(candidates) & set(done.stdout.splitlines()[-1].split())


def test_all_is_sorted_and_importable() -> None:
    assert wsiweb.__all__ == sorted(set(wsiweb.__all__))
    for name in wsiweb.__all__:
        assert getattr(wsiweb, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = wsiweb.no_such_name  # type: ignore[attr-defined]


def test_type_checkers_know_which_names_there_are(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(
        "import wsiweb\nfrom wsiweb import Slyde\nwsiweb.serch('x')\nwsiweb.patches.Otzu()\n"
        "wsiweb.Slide.open('x')\nwsiweb.search('x')\nwsiweb.patches.Otsu()\nwsiweb.doctor.examine('x')\n"
        "reveal_type(wsiweb.idc.find)\nreveal_type(wsiweb.server)\n"
    )
    options = ["--strict", "--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path / 'cache'}"]
    said = mypy.run([*options, "--no-error-summary", str(program)])[0]
    assert re.findall(r"program.py:(\d+): error", said) == ["2", "3", "4"], said
    assert "FoundSlide" in re.findall(r"program.py:9: note: (.*)", said)[0]


def test_dir_lists_what_there_is_and_imports_none_of_it() -> None:
    names = {*wsiweb.__all__, "__version__", "doctor", "idc", "patches", "server", "torch"}
    assert dir(wsiweb) == sorted(names)
    assert loaded_by("import wsiweb; dir(wsiweb)", HEAVY) == set()


@pytest.mark.parametrize("name", ["doctor", "idc", "patches", "server"])
def test_dir_of_a_part_lists_what_is_meant_to_be_used(name: str) -> None:
    part = getattr(wsiweb, name)
    assert dir(part) == part.__all__ == sorted(part.__all__)
    assert all(hasattr(part, one) for one in dir(part))


def test_parts_of_the_library_are_there_without_an_import_of_their_own() -> None:
    used = "wsiweb.server.DicomWebServer, wsiweb.doctor.examine, wsiweb.patches.load, wsiweb.idc.find"
    assert loaded_by(f"import wsiweb\n{used}", ("wsiweb.server", "wsiweb.doctor")) == {"wsiweb.server", "wsiweb.doctor"}


def test_a_part_whose_extra_is_not_there_keeps_nobody_from_looking() -> None:
    """``help``, ``getmembers`` and completion take an AttributeError for an answer; imports say what to install."""
    code = """
import sys
sys.modules["torch"] = None
import inspect, pydoc, wsiweb
print(hasattr(wsiweb, "torch"), "search" in dict(inspect.getmembers(wsiweb)), "FoundSlide" in pydoc.render_doc(wsiweb))
for attempt in ("wsiweb.torch", "import wsiweb.torch", "from wsiweb import torch"):
    try:
        exec(attempt)
    except (AttributeError, ImportError) as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    advice = "wsiweb.torch needs PyTorch: pip install 'wsiweb[torch]'."
    expected = ["False True True", f"AttributeError {advice}", f"ImportError {advice}", f"ImportError {advice}"]
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


def test_every_error_is_exported() -> None:
    assert set(ERRORS) <= set(wsiweb.__all__)


@pytest.mark.parametrize("name", sorted(set(ERRORS) - {"MetadataWarning"}))
def test_errors_are_wsiweb_errors(name: str) -> None:
    assert issubclass(ERRORS[name], wsiweb.WsiWebError)
    assert not issubclass(ERRORS[name], Warning)


def test_the_warning_is_no_error() -> None:
    assert issubclass(wsiweb.MetadataWarning, UserWarning)
    assert not issubclass(wsiweb.MetadataWarning, wsiweb.WsiWebError)


def test_errors_that_are_builtin_ones_too() -> None:
    assert issubclass(wsiweb.RegionError, ValueError)
    assert issubclass(wsiweb.SourceTimeoutError, TimeoutError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: dict[str, str | None] = {}
    parents: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^([ |'-]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE):
        while parents and parents[-1][0] >= len(indent):
            parents.pop()
        drawn[name] = parents[-1][1] if parents else None
        parents.append((len(indent), name))
    real = {name: value.__bases__[0].__name__ for name, value in ERRORS.items() if name != "MetadataWarning"}
    assert drawn == {**real, "WsiWebError": None}


@pytest.mark.parametrize(
    "kind", [kind for kind in ERRORS.values() if issubclass(kind, errors.SourceError)], ids=lambda kind: kind.__name__
)
def test_source_errors_pickle_whole(kind: type[errors.SourceError]) -> None:
    error = kind("It failed.", url="https://host/x", status=503, frame_numbers=(3, 4))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.url, copy.status, copy.frame_numbers) == ("It failed.", "https://host/x", 503, (3, 4))


@pytest.mark.parametrize("kind", [
    wsiweb.Level, wsiweb.FoundSlide, *(getattr(patches, name) for name in patches.__all__ if name[0].isupper()),
])  # fmt: skip
def test_help_tells_of_each_field(kind: type) -> None:
    """Of what users hold; ``help`` shows nothing of what stands below a field in the source."""
    told = inspect.getdoc(kind) or ""
    names = re.findall(r"^(\w.*)$", told.partition("Attributes\n----------\n")[2], re.MULTILINE)
    assert {name for line in names for name in line.split(", ")} == {field.name for field in fields(kind)}


def test_importing_the_package_is_light() -> None:
    assert loaded_by("import wsiweb", HEAVY) == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("import wsiweb; wsiweb.Level", HEAVY) == {"numpy"}


def test_what_a_slide_needs_is_there_before_it_is_opened() -> None:
    """Neither the first request nor the first JPEG waits for imports; pydicom and Pillow are not needed for them."""
    needed = {"numpy", "requests", "urllib3", "netrc", "cachetools", "wsiweb.sources.web", "imagecodecs._jpeg8"}
    assert loaded_by("from wsiweb import Slide", (*HEAVY, *needed, "dicomweb_client")) == {*needed, "imagecodecs"}


def test_opening_and_reading_import_nothing(synthetic: SlideMaker) -> None:
    code = (
        "import sys\nfrom wsiweb import Slide\nbefore = set(sys.modules)\nslide = Slide.open(sys.argv[1])\n"
        "slide.read_region(0, 0, 0, 9, 9)\nprint(*sorted(set(sys.modules) - before))"
    )
    with DicomWebServer(synthetic("jpeg").folder) as server:
        program = [sys.executable, "-c", code, *server.series_urls()]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_local_slide_needs_neither_server_nor_command_line(synthetic: SlideMaker) -> None:
    code = (
        "from wsiweb import Slide\n"
        f"with Slide.open({str(synthetic('rgb').folder)!r}) as slide:\n"
        "    assert slide.read_region(0, 0, 0, 9, 9).any()"
    )
    pydicoms_own = loaded_by("import pydicom.filereader", NEEDLESS_FOR_LOCAL_SLIDES)  # it imports Pillow
    assert loaded_by(code, NEEDLESS_FOR_LOCAL_SLIDES) - pydicoms_own == set()
