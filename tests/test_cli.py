"""The command line: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from synthetic import make_slide, srgb_profile

import wsiweb
from wsiweb.cli import main
from wsiweb.server import DicomWebServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom import Dataset
    from synthetic import SyntheticSlide

    from wsiweb import FoundSlide

    Run = Callable[..., tuple[int, str, str]]

SIZES = ((300, 200), (150, 100))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wsiweb", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), printed.out, printed.err

    return run


@pytest.fixture
def slide(tmp_path: Path) -> SyntheticSlide:
    return make_slide(tmp_path / "slide", sizes=SIZES, mpp=0.5)


def test_brackets_are_no_markup(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    code, _, err = run("info", "no\\[/such]place")
    assert (code, "no\\[/such]place" in err.replace("\n", "")) == (1, True)
    picture = tmp_path / "x[" / "b].png"
    picture.parent.mkdir()
    code, _, err = run("thumbnail", slide.folder, "-o", picture)
    assert (code, "x[/b].png" in err.replace("\n", "")) == (0, True)


def test_colons_are_no_emoji(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    picture = tmp_path / "case:x:1.png"
    code, _, err = run("thumbnail", slide.folder, "-o", picture)
    assert (code, "case:x:1.png:" in err.replace("\n", "")) == (0, True)
    assert run("info", "studies:100:x")[2].startswith("error: studies:100:x does not exist")


def test_the_tour_shows_no_password(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    with DicomWebServer(slide.folder) as server:
        (url,) = server.series_urls()
        place = url.replace("http://", "http://me:hush@")
        code, out, err = run("demo", place, "-o", tmp_path / "a.png")
    assert (code, err) == (0, "")
    assert url in out
    assert "hush" not in out


@pytest.mark.parametrize("verb", ["demo", "thumbnail", "region"])
def test_what_is_there_is_not_overwritten(run: Run, slide: SyntheticSlide, tmp_path: Path, verb: str) -> None:
    picture = tmp_path / "mine.png"
    picture.write_bytes(b"mine")
    place = (slide.folder, 0, 0, 9, 9) if verb == "region" else (slide.folder,)
    code, _, err = run(verb, *place, "-o", picture)
    assert code == 2
    assert "--force" in err
    assert picture.read_bytes() == b"mine"
    assert run(verb, *place, "-o", picture, "--force")[0] == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("verb", ["demo", "thumbnail", "region"])
def test_a_hyphen_is_no_file(
    run: Run, slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = (slide.folder, 0, 0, 9, 9) if verb == "region" else (slide.folder,)
    code, _, err = run(verb, *place, "-o", "-")
    assert code == 2
    assert "stdout" in err
    assert not (tmp_path / "-").exists()


def test_info_as_json(run: Run, slide: SyntheticSlide) -> None:
    code, out, err = run("info", slide.folder, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["size"] == [300, 200]
    assert [level["size"] for level in found["levels"]] == [[300, 200], [150, 100]]
    assert found["levels"][1]["mpp"] == pytest.approx([1.0, 1.0])


def test_info_for_people(run: Run, slide: SyntheticSlide) -> None:
    code, out, _ = run("info", slide.folder)
    assert code == 0
    assert "300 x 200" in out
    assert slide.series_uid in out


def test_region_with_negative_corner(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    picture = tmp_path / "region.png"
    code, _, _ = run("region", slide.folder, -10, 5, 100, 80, "--output", picture)
    assert code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), slide.truth(0, -10, 5, 100, 80))


def test_region_of_a_level(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    picture = tmp_path / "region.png"
    assert run("region", slide.folder, 20, 10, 100, 80, "--level", 1, "-o", picture)[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), slide.truth(1, 20, 10, 100, 80))


def test_a_region_beyond_its_level_is_noted(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    """Sizes of level 0 with another level, say; the pixels are those of the contract all the same."""
    picture = tmp_path / "region.png"
    code, _, err = run("region", slide.folder, 100, 10, 100, 80, "--level", 1, "-o", picture)
    assert code == 0
    assert "150 x 100" in err
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), slide.truth(1, 100, 10, 100, 80))
    assert "150 x 100" not in run("region", slide.folder, 50, 20, 100, 80, "--level", 1, "-o", picture, "--force")[2]


@pytest.mark.parametrize("verb", [("region", 0, 0, 9, 9), ("thumbnail",)])
@pytest.mark.parametrize("name", ["a.jpg", "a.TIFF"])
def test_a_png_is_not_called_otherwise(
    run: Run, slide: SyntheticSlide, tmp_path: Path, verb: tuple[object, ...], name: str
) -> None:
    code, _, err = run(verb[0], slide.folder, *verb[1:], "-o", tmp_path / name)
    assert code == 2
    assert "PNG" in err
    assert not (tmp_path / name).exists()


def test_region_at_mpp(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    picture = tmp_path / "region.png"
    assert run("region", slide.folder, 0, 0, 50, 40, "--mpp", 1.0, "-o", picture)[0] == 0
    with Image.open(picture) as image:
        assert image.info["dpi"] == pytest.approx((25_400, 25_400), rel=1e-3)
        np.testing.assert_array_equal(np.asarray(image), slide.truth(1, 0, 0, 50, 40))


@pytest.mark.parametrize("srgb", [False, True])
def test_region_at_mpp_has_the_profile(run: Run, tmp_path: Path, srgb: bool) -> None:
    """That of the slide; of what is converted, sRGB's."""
    stored = srgb_profile(swapped=True)
    folder = make_slide(tmp_path / "slide", sizes=SIZES, mpp=0.5, icc_profile=stored).folder
    command = ("region", folder, 0, 0, 50, 40, "--mpp", 0.8, "-o", tmp_path / "region.png", *["--srgb"] * srgb)
    assert run(*command)[0] == 0
    with Image.open(tmp_path / "region.png") as image:
        assert (image.info["icc_profile"].rstrip(b"\0") == stored.rstrip(b"\0")) is not srgb


@pytest.mark.parametrize("resolution", [(), ("--mpp", 0.8)])
def test_a_png_shows_one_optical_path(run: Run, tmp_path: Path, resolution: tuple[object, ...]) -> None:
    """Three stacked channels look like RGB, and are none; a single one is a picture."""
    picture = tmp_path / "region.png"
    command = ("region", 0, 0, 50, 40, "--optical-path", "all", "-o", picture, *resolution)
    for paths in (("A", "B", "C"), ("A",)):
        truth = make_slide(tmp_path / f"of {len(paths)}", content="mono8", sizes=SIZES, mpp=0.5, optical_paths=paths)
        code, _, err = run("region", truth.folder, *command[1:])
        if len(paths) > 1:
            assert code == 1
            assert "A PNG shows one optical path" in err
            assert not picture.exists()
        else:
            assert code == 0
            with Image.open(picture) as image:
                assert (image.mode, image.size) == ("L", (50, 40))


def test_info_shows_what_is_told_as_text(run: Run, tmp_path: Path) -> None:
    """A bracket is no markup, and a control character nothing that the terminal obeys."""

    def change(ds: Dataset) -> None:
        ds.SeriesDescription = "[/x] liver [left] \x1b[31mred"

    code, out, _ = run("info", make_slide(tmp_path / "slide", sizes=SIZES, change=change).folder)
    assert code == 0
    assert "[/x] liver [left] ?[31mred" in out


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_terminal_obeys_nothing_of_what_a_slide_says(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Nor of a name that was typed: CSI is one character, too (C1)."""

    def change(ds: Dataset) -> None:
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SeriesDescription = "\x9b2J liver"

    code, out, _ = run("info", make_slide(tmp_path / "slide", sizes=SIZES, change=change).folder, *arguments)
    assert code == 0
    assert {letter for letter in out if not letter.isprintable()} == {"\n"}
    if arguments:
        assert json.loads(out)["properties"]["series_description"] == "\x9b2J liver"
    code, _, err = run("info", "no\x1b[2J\x9b2J place")
    assert (code, err) == (1, "error: no?[2J?2J place does not exist.\n")


def test_one_is_no_plural(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    with DicomWebServer(slide.folder) as server:
        (url,) = server.series_urls()
        err = run("region", url, 0, 0, 5, 5, "-o", tmp_path / "a.png")[2]
        assert " 1 frame in 2 requests" in " ".join(err.split())  # the metadata are one of them
        assert "  1 request, " in run("demo", url, "-o", tmp_path / "b.png")[1]
    assert "  0 requests, " in run("demo", slide.folder, "-o", tmp_path / "c.png")[1]
    out = run("patches", slide.folder, "--size", 200, "--mask", "none", "--dry-run", "-o", "p")[1]
    assert out.startswith("1 patch would be in p: ")


def test_thumbnail(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    picture = tmp_path / "thumbnail.png"
    assert run("thumbnail", slide.folder, "--max-size", 100, "-o", picture)[0] == 0
    with Image.open(picture) as image:
        assert max(image.size) == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "/no/such/place"), "/no/such/place"),
        (("info", "http://127.0.0.1:1/dicom-web/studies/1/series/2"), "127.0.0.1:1"),
        (("info", "http://127.0.0.1:1/dicom-web"), "--series"),
        (("info", "127.0.0.1:1/dicom-web/studies/1/series/2"), "http://"),
        (("info", ""), "empty path"),
        (("info", __file__), "no DICM prefix"),
    ],
)
def test_failures_are_one_line_and_code_1(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def test_a_region_off_the_slide_fails(run: Run, slide: SyntheticSlide, tmp_path: Path) -> None:
    picture = tmp_path / "region.png"
    code, _, err = run("region", slide.folder, 5000, 0, 10, 10, "-o", picture)
    assert code == 1
    assert "300 x 200" in err
    assert not picture.exists()


@pytest.mark.parametrize("arguments", [("info",), ("no-such-verb",), ("region", "slide", "a", "b", "c", "d")])
def test_wrong_usage_is_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize("arguments", [
    ("region", 0, 0, 40, 30, "--mpp", 0.25), ("patches", "--mpp", 0.25, "--mask", "none", "--size", 40),
    ("patches", "--magnification", 80, "--mask", "none", "--size", 40),
])  # fmt: skip
def test_advice_to_enlarge_can_be_followed(
    run: Run, slide: SyntheticSlide, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    command = (arguments[0], slide.folder, *arguments[1:], "-o", tmp_path / "enlarged.png")
    code, _, err = run(*command)
    assert code == 1
    assert "finer" in err
    assert "--upsample" in err
    assert ("magnification of 80" in err) is ("--magnification" in arguments)
    assert run(*command, "--upsample")[0] == 0


def test_advice_to_name_a_series_can_be_followed(run: Run, slide: SyntheticSlide) -> None:
    with DicomWebServer(slide.folder) as server:
        assert "--series" in run("info", server.url, "--study", "9.9")[2]


@pytest.mark.parametrize(("given", "told", "sent"), [
    (("--user", "me:hush"), {"WSIWEB_TOKEN": "t"}, {"auth": ("me", "hush")}),
    (("--token", "t"), {"WSIWEB_USER": "me:hush"}, {"token": "t"}),
    ((), {"WSIWEB_TOKEN": "t"}, {"token": "t"}),
    (("--token", "t", "--user", "me:hush"), {}, {"token": "t", "auth": ("me", "hush")}),  # which the library refuses
])  # fmt: skip
def test_what_is_typed_goes_before_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], told: dict[str, str], sent: dict[str, object]
) -> None:
    seen: list[dict[str, object]] = []

    def search(_place: str, *, limit: int | None, **connection: object) -> list[FoundSlide]:
        seen.append(connection)
        return []

    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wsiweb, "search", search)
    assert run("search", "https://host/dicom-web", *given)[0] == 0
    assert seen == [sent]


def test_an_interrupt_while_the_command_is_imported(tmp_path: Path) -> None:
    """Most of what a short command takes is imports, so a Ctrl-C often comes then."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(Path(wsiweb.__file__).parents[1])])
    command = [sys.executable, "-m", "wsiweb", "info", "nothing"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"wsiweb": "wsiweb.__main__:main"}  # as -m does


def test_a_terminal_without_a_width(slide: SyntheticSlide) -> None:
    """COLUMNS=0 tells of none, and is what some environments say."""
    command = [sys.executable, "-m", "wsiweb", "info", str(slide.folder)]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "0"}, capture_output=True, text=True, check=False)
    assert (done.returncode, "300 x 200" in done.stdout) == (0, True)


@pytest.mark.skipif(os.name != "posix", reason="there is no shell to close stdout")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_closed_stdout(slide: SyntheticSlide, arguments: tuple[str, ...]) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "wsiweb", "info", str(slide.folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_seed_below_0_is_wrong_usage(run: Run, slide: SyntheticSlide) -> None:
    code, _, err = run("bench", slide.folder, "--seed", -1)
    assert (code, "--seed" in err) == (2, True)


@pytest.mark.parametrize("verb", ["demo", "info", "thumbnail", "region"])
def test_help(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert verb in out


def test_credentials_reach_the_service(run: Run, slide: SyntheticSlide) -> None:
    code, _, err = run("info", slide.folder, "--user", "nobody")
    assert code == 2
    assert "USER:PASSWORD" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [("info",), ("info", "--json")])
def test_a_terminal_that_cannot_show_a_letter_gets_it_escaped(
    tmp_path: Path, arguments: tuple[str, ...], encoding: str
) -> None:
    def name(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SeriesDescription = "\u03a9 \u00b5"

    folder = make_slide(tmp_path / "slide", sizes=SIZES, mpp=0.5, change=name).folder
    command = [sys.executable, "-m", "wsiweb", arguments[0], str(folder), *arguments[1:]]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="latin-1", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if "--json" in arguments:
        assert json.loads(done.stdout)["properties"]["series_description"] == "\u03a9 \u00b5"
    else:
        assert r"\u03a9" in done.stdout


@pytest.mark.parametrize("arguments", [
    ("--mpp", "0.5", "--level", "1"), ("--magnification", "20", "--level", "1"), ("--mpp", "1", "--magnification", "9"),
    ("-o", "x.tar"), ("-o", "x-%d-%d.tar"), ("-o", "x-%d-%d.tar", "--dry-run"),
])  # fmt: skip
def test_wrong_usage_of_patches(run: Run, slide: SyntheticSlide, arguments: tuple[str, ...]) -> None:
    code, _, err = run("patches", slide.folder / "nothing-is-opened", *arguments)
    assert code == 2
    assert "Usage" in err
