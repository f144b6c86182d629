"""Patches as image files: what is written is what was read, once."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGBaseline8Bit
from typer.testing import CliRunner

from wsiweb import Slide, WsiWebError
from wsiweb.cli import app
from wsiweb.patches.writing import write_folder, write_shards

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import SlideMaker

RUNNER = CliRunner()


@pytest.mark.parametrize("arguments", [["--size", "50"], ["--size", "40", "--mpp", "0.8"]])
def test_a_folder(synthetic: SlideMaker, tmp_path: Path, arguments: list[str]) -> None:
    folder = synthetic("rgb").folder
    command = ["patches", str(folder), "-o", str(tmp_path / "out"), "--mask", "none", "--format", "png", *arguments]
    dry = json.loads(RUNNER.invoke(app, [*command, "--dry-run", "--json"]).stdout)
    assert not (tmp_path / "out").exists()
    done = json.loads(RUNNER.invoke(app, [*command, "--json"]).stdout)
    assert done["written"] == dry["patches"] == len(list((tmp_path / "out").iterdir()))
    with Slide.open(folder) as slide:
        plan = slide.patches(int(arguments[1]), mpp=0.8 if "--mpp" in arguments else None)
        for patch in plan:
            image = np.asarray(Image.open(tmp_path / "out" / f"{patch.x_base}_{patch.y_base}.png"))
            np.testing.assert_array_equal(image, patch.image)
    assert json.loads(RUNNER.invoke(app, [*command, "--json"]).stdout)["written"] == 0
    next((tmp_path / "out").iterdir()).unlink()
    assert json.loads(RUNNER.invoke(app, [*command, "--json"]).stdout)["written"] == 1


def test_shards_keep_the_bytes_of_frames(synthetic: SlideMaker, tmp_path: Path) -> None:
    truth = synthetic("jpeg", sizes=((256, 192),), tile_size=(64, 64))
    dataset = pydicom.dcmread(next(iter(truth.folder.glob("*.dcm"))))
    frames = {bytes(frame).rstrip(b"\0") for frame in generate_frames(dataset.PixelData, number_of_frames=12)}
    pattern = str(tmp_path / "shards-%03d.tar")
    command = ["patches", str(truth.folder), "-o", pattern, "--size", "64", "--mask", "none", "--shard-size", "5"]
    assert RUNNER.invoke(app, command).exit_code == 0
    shards = sorted(tmp_path.iterdir())
    assert [path.name for path in shards] == ["shards-000.tar", "shards-001.tar", "shards-002.tar"]
    seen = set()
    for shard in shards:
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            for name in names[::2]:
                assert name.replace(".jpg", ".json") in names
                member, facts = tar.extractfile(name), tar.extractfile(name.replace(".jpg", ".json"))
                assert member is not None
                assert facts is not None
                data, where = member.read(), json.loads(facts.read())
                assert data.rstrip(b"\0") in frames
                seen.add((where["x_base"], where["y_base"]))
                assert Image.open(io.BytesIO(data)).size == (64, 64)
    assert len(seen) == 12
    before = shards[1].stat().st_mtime_ns
    shards[0].unlink()
    done = RUNNER.invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["written"] == 1
    assert shards[1].stat().st_mtime_ns == before


def test_images_that_nothing_tells_of_are_not_added_to(synthetic: SlideMaker, tmp_path: Path) -> None:
    """They may be of another slide: the folder was moved, or copied."""
    command = ["patches", str(synthetic("rgb").folder), "--size", "50", "--mask", "none", "--format", "png", "-o"]
    assert RUNNER.invoke(app, [*command, str(tmp_path / "a")]).exit_code == 0
    (tmp_path / "a").rename(tmp_path / "b")
    refused = RUNNER.invoke(app, [*command, str(tmp_path / "b")])
    assert isinstance(refused.exception, WsiWebError)
    assert "nothing tells" in str(refused.exception)


@pytest.mark.parametrize("stride", ["64", "32"])
def test_inverted_frames_are_written_as_they_are_read(synthetic: SlideMaker, tmp_path: Path, stride: str) -> None:
    """Their bytes show dark what reads bright."""

    def inverted(ds: pydicom.Dataset) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    truth = synthetic("jpeg", content="mono8", sizes=((128, 64),), tile_size=(64, 64), change=inverted)
    command = ["patches", str(truth.folder), "-o", str(tmp_path / "out"), "--size", "64", "--mask", "none",
               "--format", "jpeg", "--quality", "100", "--stride", stride]  # fmt: skip
    assert RUNNER.invoke(app, command).exit_code == 0
    with Slide.open(truth.folder) as slide:
        for patch in slide.patches(64, stride=int(stride)):
            image = np.asarray(Image.open(tmp_path / "out" / f"{patch.x_base}_{patch.y_base}.jpeg"))
            assert np.abs(image.astype(int) - patch.image).max() < 20


def test_frames_whose_colours_are_stated_are_written_as_they_are_read(synthetic: SlideMaker, tmp_path: Path) -> None:
    """Their bytes say that they are YCbCr, and other programs go by that."""
    truth = synthetic("rgb", syntax=JPEGBaseline8Bit, sizes=((128, 64),), tile_size=(64, 64))
    with Slide.open(truth.folder, photometric="RGB") as slide:
        plan = slide.patches(64)
        write_folder(plan, tmp_path / "out", form="jpeg", quality=100, report=lambda done, of: None)
        for patch in plan:
            image = np.asarray(Image.open(tmp_path / "out" / f"{patch.x_base}_{patch.y_base}.jpeg"))
            assert np.abs(image.astype(int) - patch.image).mean() < 10


@pytest.mark.parametrize("other", [
    ["--size", "64"], ["--size", "50", "--level", "1"], ["--size", "50", "--mpp", "0.7"],
    ["--size", "50", "--level", "0", "--shard-size", "7"],
])  # fmt: skip
@pytest.mark.parametrize("output", ["out", "shards-%03d.tar"])
def test_what_another_command_has_written_is_not_taken_for_ours(
    synthetic: SlideMaker, tmp_path: Path, output: str, other: list[str]
) -> None:
    """Names are alike: both have a patch at (0, 0), and a first shard."""
    command = ["patches", str(synthetic("rgb").folder), "-o", str(tmp_path / output), "--mask", "none"]
    command += ["--format", "png"]
    assert RUNNER.invoke(app, [*command, "--size", "50"]).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    answer = RUNNER.invoke(app, [*command, *other])
    if output == "out" and "--shard-size" in other:  # which does not matter there
        assert answer.exit_code == 0
    else:
        assert answer.exit_code == 1
        assert "Delete" in str(answer.exception)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_folder_that_was_emptied_may_be_filled_with_others(synthetic: SlideMaker, tmp_path: Path) -> None:
    command = ["patches", str(synthetic("rgb").folder), "-o", str(tmp_path / "out"), "--mask", "none"]
    assert RUNNER.invoke(app, [*command, "--size", "50"]).exit_code == 0
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert RUNNER.invoke(app, [*command, "--size", "64"]).exit_code == 0
    with Image.open(tmp_path / "out" / "0_0.jpeg") as image:
        assert image.size == (64, 64)


def test_parts(synthetic: SlideMaker, tmp_path: Path) -> None:
    command = ["patches", str(synthetic("rgb").folder), "-o", str(tmp_path / "out"), "--size", "50", "--mask", "none"]
    counts = [
        json.loads(RUNNER.invoke(app, [*command, "--shard", f"{n}/3", "--dry-run", "--json"]).stdout) for n in range(3)
    ]
    assert sum(part["patches"] for part in counts) == 140
    for bad in (["--shard", "3"], ["--shard", "3/3"], ["--mask", "some"], ["--format", "gif"], ["--edge", "cut"]):
        assert RUNNER.invoke(app, [*command, *bad, "--dry-run"]).exit_code == 2
    assert RUNNER.invoke(app, [*command, "-o", "shards.tar"]).exit_code == 2


def test_no_patches_are_said_to_be_none(synthetic: SlideMaker, tmp_path: Path) -> None:
    command = ["patches", str(synthetic("rgb").folder), "-o", str(tmp_path / "out"), "--mask", "none"]
    for size in ("5000", "100000"):
        done = RUNNER.invoke(app, [*command, "--size", size])
        assert (done.exit_code, f"no patch of {size} px" in done.stderr) == (0, True)
    assert "no patch" not in RUNNER.invoke(app, [*command, "--size", "50"]).stderr


def test_parts_write_tar_files_of_their_own(synthetic: SlideMaker, tmp_path: Path) -> None:
    """All jobs of a cluster are given the same pattern."""
    command = ["patches", str(synthetic("rgb").folder), "-o", str(tmp_path / "s-%03d.tar"), "--mask", "none"]
    command += ["--size", "50", "--shard-size", "20", "--json"]
    for _ in range(2):  # each may be run again, whatever the others have written
        for number in range(3):
            answer = RUNNER.invoke(app, [*command, "--shard", f"{number}/3"])
            assert answer.exit_code == 0, answer.output
    places = set()
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            facts = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")]
            found = [json.load(file) for file in facts if file is not None]
        places |= {(fact["x_base"], fact["y_base"]) for fact in found}
    assert len(places) == 140


@pytest.mark.parametrize("other", [["--format", "png"], ["--quality", "50"], ["--level", "1"]])
def test_parts_of_another_kind_do_not_go_into_the_same_folder(
    synthetic: SlideMaker, tmp_path: Path, other: list[str]
) -> None:
    """Even if no name is the same."""
    folder = tmp_path / "out"
    command = ["patches", str(synthetic("rgb").folder), "-o", str(folder), "--mask", "none", "--size", "50"]
    assert RUNNER.invoke(app, [*command, "--shard", "0/3"]).exit_code == 0
    before = sorted(folder.iterdir())
    answer = RUNNER.invoke(app, [*command, "--shard", "2/3", *other])
    assert answer.exit_code == 1
    assert "write to another folder" in str(answer.exception)
    assert sorted(folder.iterdir()) == before
    assert RUNNER.invoke(app, [*command, "--shard", "2/3"]).exit_code == 0


@pytest.mark.parametrize("place", ["folder", "shards-%03d.tar"])
def test_a_full_disk(
    synthetic: SlideMaker, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]], place: str
) -> None:
    with Slide.open(synthetic("rgb").folder) as slide:
        plan = slide.patches(200)

        def told(done: int, total: int) -> None:
            if done:
                raise BrokenPipeError("mine")

        def write(report: Callable[[int, int], None]) -> None:
            if place == "folder":
                write_folder(plan, tmp_path / place, form="png", quality=90, report=report)
            else:
                write_shards(plan, str(tmp_path / place), form="png", quality=90, shard_size=9, report=report)

        with full_disk(500), pytest.raises(WsiWebError) as caught:
            write(lambda _done, _total: None)
        file = tmp_path / ("folder/0_0.png" if place == "folder" else place % 0)
        assert str(caught.value) == f"{file} cannot be written: File too large. Make room, or write to another place."
        assert not list((tmp_path / place).glob("*") if place == "folder" else tmp_path.iterdir())
        with pytest.raises(BrokenPipeError, match="mine"):
            write(told)


def test_a_file_is_no_folder(synthetic: SlideMaker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below", "file/shards-%d.tar"):
        done = RUNNER.invoke(app, ["patches", str(synthetic("rgb").folder), "-o", str(tmp_path / place)])
        assert isinstance(done.exception, WsiWebError)
        assert str(tmp_path / "file") in str(done.exception)
