"""``PatchPlan.map``: what it writes is what one undisturbed run writes, whenever it is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from wsiweb import RegionError, Slide, SourceTimeoutError, UnsupportedError, WsiWebError
from wsiweb.patches import mapping

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import Opener, SlideMaker

    from wsiweb.patches import PatchBatch

    FullDisk = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def slide(open_slide: Opener, synthetic: SlideMaker) -> Slide:
    """700 x 530, 350 x 265 and 175 x 132 pixels."""
    return open_slide(synthetic("rgb"))


@pytest.fixture(params=["npy", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "zarr":
        pytest.importorskip("zarr")
    return str(request.param)


def means(batch: Any) -> np.ndarray[Any, Any]:
    return np.asarray(batch.images.mean(axis=(1, 2)), np.float32)


def stored(path: Path) -> np.ndarray[Any, Any]:
    """Return what a file holds, as its own library reads it."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    zarr = pytest.importorskip("zarr")
    return np.asarray(zarr.open_array(path, mode="r")[...])


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_map(slide: Slide, tmp_path: Path, kind: str) -> None:
    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    told, eight = [], cast("int", np.int64(8))
    found = patches.map(means, out, batch_size=eight, progress=lambda done, total: told.append((done, total)))
    truth = [slide.read_region(0, x, y, 100, 100).mean(axis=(0, 1)) for x, y in zip(patches.x, patches.y, strict=True)]
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    np.testing.assert_array_equal(stored(out), found)
    assert (found.shape, found.dtype) == ((35, 3), np.dtype(np.float32))
    assert told[-1] == (35, 35)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".out.{kind}.journal", f"out.{kind}"]
    with pytest.raises(ValueError, match="read"):
        found[0] = 0
    calls: list[int] = []
    again = patches.map(lambda batch: calls.append(1) or means(batch), out, batch_size=8)  # type: ignore[func-returns-value]
    np.testing.assert_array_equal(again, found)
    assert not calls
    with pytest.raises(RegionError, match=r"\.npy"):
        patches.map(means, tmp_path / "out.txt")
    with pytest.raises(WsiWebError, match="another plan"):
        patches[1:].map(means, out, batch_size=8)
    with pytest.raises(WsiWebError, match="another plan"):
        patches.map(means, out, batch_size=7)
    assert patches[:0].map(means, tmp_path / f"none.{kind}").shape == (0,)
    assert patches[:0].map(means, tmp_path / f"none.{kind}").shape == (0,)


@pytest.mark.parametrize("shape", [(), (1,), (2, 5), (0,)])
@pytest.mark.parametrize("batch_size", [1, 35, 100])
def test_rows_of_any_shape(slide: Slide, tmp_path: Path, kind: str, shape: tuple[int, ...], batch_size: int) -> None:
    def rows(batch: Any) -> np.ndarray[Any, Any]:
        return np.broadcast_to(batch.index.astype(np.int32).reshape(-1, *(1 for _ in shape)), (len(batch), *shape))

    patches = slide.patches(100).shuffle(2)
    found = patches.map(rows, tmp_path / f"out.{kind}", batch_size=batch_size)
    assert found.shape == (35, *shape)
    assert found.dtype == np.int32
    truth = np.broadcast_to(patches.index.reshape(-1, *(1 for _ in shape)), (35, *shape))
    np.testing.assert_array_equal(found[...], truth)


def test_it_goes_on_where_it_broke_off(slide: Slide, tmp_path: Path, kind: str) -> None:
    patches, whole, out = slide.patches(50), tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    patches.map(means, whole, batch_size=8)
    left = 5

    def breaks(batch: Any) -> np.ndarray[Any, Any]:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return means(batch)

    with pytest.raises(KeyboardInterrupt):
        patches.map(breaks, out, batch_size=8)
    assert not out.exists()
    with pytest.raises(WsiWebError, match="another plan"):
        patches[1:].map(means, out, batch_size=8)
    sizes = []
    patches.map(lambda batch: sizes.append(len(batch)) or means(batch), out, batch_size=8)  # type: ignore[func-returns-value]
    assert sum(sizes) == len(patches) - 4 * 8
    assert content(out) == content(whole)
    np.testing.assert_array_equal(stored(out), stored(whole))
    with pytest.raises(WsiWebError, match="returned"):
        patches.map(lambda _batch: np.zeros(3), tmp_path / f"bad.{kind}", batch_size=8)


class _Killed(BaseException):
    """Stands for a kill: nothing handles it."""


def killed_before_the_note_of(monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """Let the next run end when so many patches are written, and not noted yet."""
    note = mapping._note

    def once(journal: Path, state: dict[str, Any]) -> None:
        if state["done"] == done:
            monkeypatch.setattr(mapping, "_note", note)
            raise _Killed
        note(journal, state)

    monkeypatch.setattr(mapping, "_note", once)


def test_an_old_journal_does_not_speak_for_a_new_file(
    slide: Slide, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that begins anew, killed right after its first rows: the journal of the run before knew of more."""
    patches, whole, out = slide.patches(50), tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    patches.map(means, whole, batch_size=8)
    killed_before_the_note_of(monkeypatch, 32)
    with pytest.raises(_Killed):
        patches.map(means, out, batch_size=8)
    killed_before_the_note_of(monkeypatch, 8)
    with pytest.raises(_Killed):
        patches.map(means, out, batch_size=8, resume=False)
    patches.map(means, out, batch_size=8)
    assert content(out) == content(whole)
    out.rename(tmp_path / "elsewhere")  # the journal says that all is done
    killed_before_the_note_of(monkeypatch, 8)
    with pytest.raises(_Killed):
        patches.map(means, out, batch_size=8)
    patches.map(means, out, batch_size=8)
    assert content(out) == content(whole)


def test_what_is_not_known_to_be_of_the_plan_is_not_replaced(slide: Slide, tmp_path: Path, kind: str) -> None:
    """Unless that is asked for."""
    patches, out = slide.patches(100, level=1), tmp_path / f"out.{kind}"
    patches.map(means, tmp_path / f"mine.{kind}").shape  # noqa: B018
    (tmp_path / f"mine.{kind}").rename(out)
    if kind == "zarr":
        (out / "labels.csv").write_text("1")
    before = content(out)
    with pytest.raises(WsiWebError, match="resume=False"):
        patches.map(means, out)
    assert content(out) == before
    patches.map(means, out, resume=False)
    assert len(stored(out)) == len(patches)


def test_neither_a_folder_nor_a_file_takes_the_place_of_the_other(slide: Slide, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"out.{kind}"
    if kind == "npy":
        out.mkdir()
    else:
        out.write_text("mine")
    for resume in (True, False):
        with pytest.raises(WsiWebError, match="not replaced"):
            slide.patches(100, level=1).map(lambda _: pytest.fail("called"), out, resume=resume)
    assert out.exists()


def test_a_function_that_fails_at_once_leaves_nothing(slide: Slide, tmp_path: Path, kind: str) -> None:
    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    with pytest.raises(WsiWebError, match="returned"):
        patches.map(lambda _batch: np.zeros(()), out, batch_size=8)
    assert not list(tmp_path.iterdir())
    assert patches.map(means, out, batch_size=7).shape == (35, 3)


def test_a_file_is_replaced_by_a_whole_one(
    slide: Slide, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    patches.map(means, out, batch_size=8)
    first = content(out)
    killed_before_the_note_of(monkeypatch, 24)
    with pytest.raises(_Killed):
        patches[2:].map(means, out, batch_size=8, resume=False)
    assert content(out) == first
    found = patches[2:].map(means, out, batch_size=8)
    np.testing.assert_array_equal(found[...], np.stack([means(patches.read([n]))[0] for n in range(2, 35)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".out.{kind}.journal", f"out.{kind}"]


def test_what_a_kill_left_of_a_chunk_is_written_over(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zarr")
    patches, out = slide.patches(50), tmp_path / "out.zarr"  # 140, in batches of 9: the last chunk has 5
    patches.map(means, tmp_path / "whole.zarr", batch_size=9)
    killed_before_the_note_of(monkeypatch, 36)
    with pytest.raises(_Killed):
        patches.map(means, out, batch_size=9)
    for chunk in (3, 7, 15):
        torn = tmp_path / ".out.zarr.part" / "c" / str(chunk) / "0"
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.write_bytes(b"torn")
        torn.with_suffix(".0123.partial").write_bytes(b"torn")
    patches.map(means, out, batch_size=9)
    assert content(out) == content(tmp_path / "whole.zarr")


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_kills_while_a_file_is_replaced(
    slide: Slide, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before and after each renaming: of the old file, where that is a folder, and of the new one."""
    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    patches[:5].map(means, out, batch_size=8)
    replace, steps = type(out).replace, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal steps
        if out not in (self, target):
            return replace(self, target)
        if steps == step:
            raise _Killed
        found = replace(self, target)
        steps += 2
        if steps - 1 == step:
            raise _Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(type(out), "replace", killed)
        try:
            patches.map(means, out, batch_size=8, resume=False)
        except _Killed:
            pass
        else:
            assert (kind, step) in (("npy", 2), ("npy", 3))
    found = patches.map(means, out, batch_size=8)
    assert found.shape == (35, 3)
    patches.map(means, tmp_path / f"whole.{kind}", batch_size=8)
    assert content(out) == content(tmp_path / f"whole.{kind}")
    hidden = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert hidden == {f".out.{kind}.journal", f".whole.{kind}.journal"}


def test_runs_that_write_the_same_file_are_told(slide: Slide, tmp_path: Path, kind: str) -> None:
    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    patches.map(means, tmp_path / f"whole.{kind}", batch_size=8)

    def disturbed(batch: Any) -> np.ndarray[Any, Any]:
        for resume in (True, False):
            with pytest.raises(WsiWebError, match="another run"):
                patches.map(means, out, batch_size=8, resume=resume)
        return means(batch)

    patches.map(disturbed, out, batch_size=8)
    assert content(out) == content(tmp_path / f"whole.{kind}")
    assert sorted(path.name for path in tmp_path.glob(".out*")) == [f".out.{kind}.journal"]
    tmp_path.chmod(0o500)  # what is there can be had without writing
    try:
        assert patches.map(means, out, batch_size=8).shape == (35, 3)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_an_error_and_no_end(slide: Slide, tmp_path: Path, kind: str, full_disk: FullDisk) -> None:
    """Rows that no longer fit into the file raise; with room, the next run goes on."""
    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    pixels = [patches[n].image for n in range(len(patches))]
    with full_disk(100_000), pytest.raises(WsiWebError) as caught:
        patches.map(lambda batch: batch.images, out, batch_size=2 if kind == "npy" else 4)
    assert str(caught.value) == f"{out} cannot be written: File too large. Make room, or write to another place."
    if kind == "npy":
        assert json.loads((tmp_path / ".out.npy.journal").read_text())["done"] == 2
    seen: list[int] = []

    def noted(batch: PatchBatch) -> Any:
        seen.extend(batch.index.tolist())
        return batch.images

    patches.map(noted, out, batch_size=2 if kind == "npy" else 4)
    assert seen == list(range(2 if kind == "npy" else 0, 35))
    np.testing.assert_array_equal(stored(out), pixels)


def test_errors_of_the_users_own_stay_what_they_are(slide: Slide, tmp_path: Path, kind: str) -> None:
    """Of the function, and of what is told of the progress: they are not about the file."""

    def fail(*_: Any) -> Any:
        raise BrokenPipeError("mine")

    def late(batch: Any) -> Any:
        raise SourceTimeoutError("no answer")

    patches, out = slide.patches(100), tmp_path / f"out.{kind}"
    for function, progress in ((fail, None), (means, fail)):
        with pytest.raises(BrokenPipeError, match="mine"):
            patches.map(function, out, resume=False, progress=progress)
    with pytest.raises(SourceTimeoutError, match="no answer"):
        patches.map(late, out, resume=False)


def test_one_row_a_patch_is_wanted(slide: Slide, tmp_path: Path, kind: str) -> None:
    with pytest.raises(WsiWebError, match=r"\(3, 2\) for a batch of 10 .* one row a patch: \(10, \.\.\.\)"):
        slide.patches(100).map(lambda _batch: np.zeros((3, 2)), tmp_path / f"out.{kind}", batch_size=10)


def test_rows_are_of_one_length(slide: Slide, tmp_path: Path, kind: str) -> None:
    with pytest.raises(WsiWebError, match="length"):
        slide.patches(100).map(lambda batch: [[0] * n for n in range(len(batch))], tmp_path / f"out.{kind}")
    assert not list(tmp_path.iterdir())


def test_objects_are_no_rows(slide: Slide, tmp_path: Path, kind: str) -> None:
    with pytest.raises(WsiWebError, match="objects"):
        slide.patches(100).map(lambda batch: np.array([{}] * len(batch)), tmp_path / f"out.{kind}")
    assert not list(tmp_path.iterdir())


def test_zarr_is_an_extra(slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(UnsupportedError, match=r"wsiweb\[zarr\]"):
        slide.patches(100).map(means, tmp_path / "out.zarr")
    assert not list(tmp_path.iterdir())


def test_map_survives_kills(synthetic: SlideMaker, tmp_path: Path, kind: str) -> None:
    folder = synthetic("rgb").folder
    whole, out = tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    program = tmp_path / "run.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys, time
        import numpy as np
        from wsiweb import Slide
        def means(batch):
            time.sleep(0.02)
            return batch.images.mean(axis=(1, 2)).astype(np.float32)
        with Slide.open({str(folder)!r}) as slide:
            slide.patches(50).map(means, sys.argv[1], batch_size=4)
    """)
    )
    subprocess.run([sys.executable, program, whole], check=True)
    random = np.random.default_rng(1)
    kills = 0
    journal = tmp_path / f".out.{kind}.journal"
    for _ in range(6):  # 4 runs are killed
        if out.exists():
            break
        process = subprocess.Popen([sys.executable, program, out])
        deadline = time.monotonic() + 60
        before = journal.read_text() if journal.exists() else ""
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_text() != before:
                time.sleep(float(random.uniform(0, 0.4)))
                break
            time.sleep(0.005)
        killed = process.poll() is None and kills < 4
        if killed:
            process.kill()
            kills += 1
        code = process.wait(60)
        assert killed or code == 0
    assert kills
    assert content(out) == content(whole)
