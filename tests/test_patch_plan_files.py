"""Plans of patches in files: ours, and those of CLAM and TRIDENT."""

from __future__ import annotations

import contextlib
import errno
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from wsiweb import RegionError, Slide, UnsupportedError, WsiWebError
from wsiweb.patches import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import Opener, SlideMaker

    from wsiweb.patches import PatchPlan


@pytest.fixture
def slide(open_slide: Opener, synthetic: SlideMaker) -> Slide:
    """700 x 530, 350 x 265 and 175 x 132 pixels."""
    return open_slide(synthetic("rgb"))


@pytest.mark.parametrize(("package", "use"), [
    ("pandas", lambda plan: plan.to_pandas()), ("h5py", lambda plan: plan.save("plan.h5")),
    ("matplotlib.pyplot", lambda plan: plan.plot()),
])  # fmt: skip
def test_an_extra_that_is_not_installed_is_named(
    slide: Slide, monkeypatch: pytest.MonkeyPatch, package: str, use: Callable[[PatchPlan], object]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=r"pip install 'wsiweb\["):
        use(slide.patches(32))


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("masked", [False, True])
def test_plans_are_kept(slide: Slide, tmp_path: Path, suffix: str, masked: bool) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    mask = np.ones((5, 5), bool) if masked else None
    plan = slide.patches(30, mpp=0.85, mask=mask).shuffle(2)[5:30]
    plan.save(tmp_path / f"plan{suffix}")
    found = load(tmp_path / f"plan{suffix}", slide)
    for name in ("index", "x", "y", "x_base", "y_base", "tissue"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plan, name))
    np.testing.assert_array_equal(found[4].image, plan[4].image)
    assert found.mpp == plan.mpp


def test_a_plan_for_another_slide_is_refused(
    slide: Slide, open_slide: Opener, synthetic: SlideMaker, tmp_path: Path
) -> None:
    slide.patches(60).save(tmp_path / "plan.npz")
    with pytest.raises(WsiWebError, match="series"):
        load(tmp_path / "plan.npz", open_slide(synthetic("jpeg-mono8")))
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(WsiWebError, match=r"bad\.npz"):
        load(tmp_path / "bad.npz", slide)
    with pytest.raises(RegionError, match="kept as"):
        slide.patches(60).save(tmp_path / "plan.txt")


@pytest.mark.parametrize("suffix", ["npz", "parquet", "h5"])
def test_numbers_of_numpy_are_numbers(slide: Slide, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip({"npz": "numpy", "parquet": "pandas", "h5": "h5py"}[suffix])
    mask = np.ones((4, 4), bool)
    plan = slide.patches(np.int64(32), mpp=np.float32(1.25), mask=mask, min_tissue=np.float32(0.25))  # type: ignore[arg-type]
    plain = slide.patches(32, mpp=1.25, mask=mask, min_tissue=0.25)
    plan.save(tmp_path / f"plan.{suffix}")
    assert plan.fingerprint() == plain.fingerprint() == load(tmp_path / f"plan.{suffix}", slide).fingerprint()


def test_what_is_wrong_is_said_to_be(slide: Slide, tmp_path: Path) -> None:
    """And not that the file is no plan."""
    path = tmp_path / "plan.npz"
    slide.patches(32).save(path)
    for wrong in ("https://host/dicomWeb/studies/1/series/2", None):
        with pytest.raises(WsiWebError, match=rf"opened.*not {type(wrong).__name__}\."):
            load(path, wrong)  # type: ignore[arg-type]
    for suffix in ("npz", "h5", "hdf5", "parquet"):
        with pytest.raises(WsiWebError, match=rf"missing\.{suffix} does not exist\."):
            load(tmp_path / f"missing.{suffix}", slide)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(WsiWebError, match=r"folder\.npz is no file\."):
        load(tmp_path / "folder.npz", slide)


def test_damaged_files_are_no_plans(slide: Slide, tmp_path: Path) -> None:
    slide.patches(32).save(tmp_path / "plan.npz")
    whole, path = (tmp_path / "plan.npz").read_bytes(), tmp_path / "damaged.npz"
    flipped = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(40, len(whole) - 40, 97)]
    for data in (b"", b"PK", b"PK\3\4" + bytes(50), whole[:100], whole[:-30], *flipped):
        path.write_bytes(data)
        with contextlib.suppress(WsiWebError):  # a byte that does not matter may be another
            assert load(path, slide).fingerprint() == slide.patches(32).fingerprint()
    for junk in (b"no plan at all" * 9, b"\x80\x04."):
        path.write_bytes(junk)
        with pytest.raises(WsiWebError, match=r"damaged\.npz") as caught:
            load(path, slide)
        assert "pickle" not in str(caught.value)
    for description in ("", "[1]", "{}", '{"format": 1}', '{"format": 1, "series_uid": 5}'):
        np.savez(path, description=np.array(description))
        with pytest.raises(WsiWebError, match=r"damaged\.npz"):
            load(path, slide)


@pytest.mark.parametrize("what", ['{"format": 1}', "[1]", None, "x_base"])
def test_damaged_hdf5_is_no_plan(slide: Slide, tmp_path: Path, what: str | None) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "damaged.h5"
    slide.patches(32).save(path)
    with h5py.File(path, "a") as file:
        if what == "x_base":
            del file["wsiweb"][what]
        elif what is None:
            del file["wsiweb"].attrs["description"]
        else:
            file["wsiweb"].attrs["description"] = what
    with pytest.raises(WsiWebError, match=r"damaged\.h5"):
        load(path, slide)


@pytest.mark.parametrize("attributes", [
    {}, {"patch_size": 0}, {"patch_size": -5}, {"patch_size": 0, "patch_size_level0": 10}, {"patch_size": "large"},
    {"patch_size": 10, "patch_level": 9}, {"patch_size": 10, "patch_level": -1}, {"patch_size": 10, "patch_level": "x"},
    {"patch_size": 10, "patch_size_level0": -10},
])  # fmt: skip
def test_coordinates_without_a_size(slide: Slide, tmp_path: Path, attributes: dict[str, Any]) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "plan.h5", "w") as file:
        file.create_dataset("coords", data=[[0, 0]]).attrs.update(attributes)
    with pytest.raises(WsiWebError):
        load(tmp_path / "plan.h5", slide)


def test_pyramids_of_a_series_are_told_apart(synthetic: SlideMaker, tmp_path: Path) -> None:
    """Of equal size, such as with and without extended depth of field (PS3.3 C.8.12.4)."""
    folder = synthetic("rgb", sizes=((300, 200),)).folder
    dataset = pydicom.dcmread(next(iter(folder.glob("*.dcm"))))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.ExtendedDepthOfField = "YES"
    dataset.PixelData = bytes(255 - value for value in dataset.PixelData)
    dataset.save_as(folder / "extended.dcm", enforce_file_format=True)
    with Slide.open(folder) as plain, Slide.open(folder, pyramid=1) as extended:
        one, other = plain.patches(64), extended.patches(64)
        assert one.x.tolist() == other.x.tolist()
        assert not np.array_equal(one[0].image, other[0].image)
        assert one.fingerprint() != other.fingerprint()
        one.map(lambda batch: batch.images.mean(axis=(1, 2, 3)), tmp_path / "out.npy")
        with pytest.raises(WsiWebError, match="another plan"):
            other.map(lambda batch: batch.images.mean(axis=(1, 2, 3)), tmp_path / "out.npy")
        with pytest.raises(RegionError, match="pyramid"):
            plain.patches(64, level=extended.levels[0])
        for suffix in (".npz", ".parquet", ".h5"):
            kept = tmp_path / f"plan{suffix}"
            other.save(kept)
            assert load(kept, extended).x.tolist() == other.x.tolist()
            with pytest.raises(WsiWebError, match="another pyramid"):
                load(kept, plain)
        tokenize = pytest.importorskip("dask.base").tokenize
        assert tokenize(plain.levels[0]) != tokenize(extended.levels[0])
        assert tokenize(plain.levels[0]) == tokenize(Slide.open(folder).levels[0])


def test_slides_whose_colours_are_stated_are_told_apart(synthetic: SlideMaker, tmp_path: Path) -> None:
    """What is kept of one shows other pixels than the other; a plan is places, and good for both."""
    folder = synthetic("rgb", syntax=JPEGBaseline8Bit).folder
    with Slide.open(folder) as plain, Slide.open(folder, photometric="RGB") as stated:
        one, other = plain.patches(64), stated.patches(64)
        assert not np.array_equal(one[0].image, other[0].image)
        assert one.fingerprint() != other.fingerprint()
        one.map(lambda batch: batch.images.mean(axis=(1, 2, 3)), tmp_path / "out.npy")
        with pytest.raises(WsiWebError, match="another plan"):
            other.map(lambda batch: batch.images.mean(axis=(1, 2, 3)), tmp_path / "out.npy")
        one.save(tmp_path / "plan.npz")
        assert load(tmp_path / "plan.npz", stated).fingerprint() == other.fingerprint()
        with pickle.loads(pickle.dumps(stated)) as copy:
            assert copy.patches(64).fingerprint() == other.fingerprint()
        tokenize = pytest.importorskip("dask.base").tokenize
        assert tokenize(plain.levels[0]) != tokenize(stated.levels[0])


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_a_name_that_no_file_can_have(slide: Slide, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(WsiWebError, match="name"):
        load(tmp_path / ("x" * 300 + suffix), slide)


def test_a_plan_of_an_earlier_version_names_no_pyramid(slide: Slide, tmp_path: Path) -> None:
    plan, kept = slide.patches(64), tmp_path / "plan.npz"
    plan.save(kept)
    with np.load(kept) as found:
        columns = dict(found)
    description = json.loads(str(columns["description"]))
    del description["lead_uid"]
    np.savez(kept, **{**columns, "description": np.array(json.dumps(description))})
    assert load(kept, slide).x.tolist() == plan.x.tolist()


def test_a_name_that_is_too_long(slide: Slide, tmp_path: Path) -> None:
    with pytest.raises(WsiWebError, match="too long"):
        slide.patches(64).save(tmp_path / f"{'x' * 300}.npz")


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_a_plan_that_cannot_be_written_leaves_the_old_one(slide: Slide, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    patches = slide.patches(50)
    patches.save(path)
    before = path.read_bytes()
    for columns in ("wsiweb.patches.storage._columns", "wsiweb.patches.storage._description"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(columns, fail_with_a_full_disk)
            with pytest.raises(WsiWebError, match="No space"):
                patches.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(WsiWebError):
            patches.save((place / "plan").with_suffix(suffix) if place != tmp_path else folder_at(tmp_path, suffix))


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_a_full_disk(
    slide: Slide, tmp_path: Path, suffix: str, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / f"plan{suffix}"
    with full_disk(1_000), pytest.raises(WsiWebError) as caught:
        slide.patches(9).save(path)
    assert str(caught.value) == f"{path} cannot be written: File too large. Make room, or write to another place."
    assert not list(tmp_path.iterdir())


def fail_with_a_full_disk(_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def folder_at(place: Path, suffix: str) -> Path:
    folder = place / f"folder{suffix}"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_areas_are_kept_and_a_lost_mask_is_said(slide: Slide, tmp_path: Path, suffix: str) -> None:
    """So that what is drawn at random is where the plan is."""
    roi = [(0, 0, 200, 150), (400, 300, 100, 120)]
    slide.patches(20, roi=roi).save(tmp_path / f"plan{suffix}")
    drawn = load(tmp_path / f"plan{suffix}", slide).random(200, seed=1)
    same = slide.patches(20, roi=roi).random(200, seed=1)
    np.testing.assert_array_equal(np.stack([drawn.x, drawn.y]), np.stack([same.x, same.y]))
    mask = np.zeros((53, 70), bool)
    mask[:20] = True
    slide.patches(20, mask=mask).save(tmp_path / f"masked{suffix}")
    loaded = load(tmp_path / f"masked{suffix}", slide)
    with pytest.raises(WsiWebError, match="mask"):
        loaded.random(5, seed=1)
    loaded.save(tmp_path / f"again{suffix}")
    with pytest.raises(WsiWebError, match="mask"):
        load(tmp_path / f"again{suffix}", slide).random(5, seed=1)


def test_hdf5_of_a_virtual_level_says_what_of_a_level_to_read(slide: Slide, tmp_path: Path) -> None:
    """As CLAM reads it: ``patch_size`` pixels of ``patch_level``."""
    h5py = pytest.importorskip("h5py")
    patches = slide.patches(40, mpp=1.3)
    patches.save(tmp_path / "plan.h5")
    with h5py.File(tmp_path / "plan.h5") as file:
        told = dict(file["coords"].attrs)
    assert (told["patch_level"], told["patch_size"], told["patch_size_level0"]) == (1, 52, 104)
    loaded = load(tmp_path / "plan.h5", slide)
    assert (loaded.size, loaded.mpp) == ((40, 40), patches.mpp)


def test_coordinates_of_clam(slide: Slide, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    plan = slide.patches(40, level=1)
    plan.save(tmp_path / "plan.h5")
    with h5py.File(tmp_path / "plan.h5") as file:
        np.testing.assert_array_equal(file["coords"][:, 0], plan.x_base)
        assert file["coords"].attrs["patch_size"] == 40
        assert file["coords"].attrs["patch_size_level0"] == 80
    found = load(tmp_path / "plan.h5", slide)
    np.testing.assert_array_equal(found.x_base, plan.x_base)
    np.testing.assert_array_equal(found[7].image, plan[7].image)
    with h5py.File(tmp_path / "clam.h5", "w") as file:  # as CLAM itself writes them
        coords = file.create_dataset("coords", data=np.array([[10, 20], [300, 200]]))
        coords.attrs["patch_size"], coords.attrs["patch_level"] = 64, 0
    clam = load(tmp_path / "clam.h5", slide)
    np.testing.assert_array_equal(clam[1].image, slide.read_region(0, 300, 200, 64, 64))


def test_hdf5_keeps_what_clam_has_no_words_for(slide: Slide, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    mask = np.zeros((53, 70), bool)
    mask[7:40, 13:50] = True
    plan = slide.patches(30, mpp=0.87, mask=mask, min_tissue=0.1).shuffle(2)[3:30]
    plan.save(tmp_path / "plan.h5")
    found = load(tmp_path / "plan.h5", slide)
    for name in ("index", "x", "y", "x_base", "y_base", "tissue"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plan, name))
    assert (found.mpp, found.fingerprint()) == (plan.mpp, plan.fingerprint())
    with h5py.File(tmp_path / "plan.h5", "r+") as file:  # another tool knows better
        kept, attributes = file["coords"][:4], dict(file["coords"].attrs)
        del file["coords"]
        file.create_dataset("coords", data=kept).attrs.update(attributes)
    changed = load(tmp_path / "plan.h5", slide)
    assert len(changed) == 4
    np.testing.assert_allclose(changed.x_base, plan.x_base[:4], atol=1)  # on the pixels of a view of 52 / 30
    with pytest.raises(RegionError, match="square"):
        slide.patches((30, 20)).save(tmp_path / "oblong.h5")
    assert not (tmp_path / "oblong.h5").exists()


def test_tables(slide: Slide) -> None:
    pytest.importorskip("pandas")
    frame = slide.patches(100).to_pandas()
    assert list(frame.columns) == ["index", "x", "y", "x_base", "y_base", "tissue"]
    assert len(frame) == 35


def test_a_picture_of_the_plan(slide: Slide) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    axes = slide.patches(100, mask=np.ones((3, 3), bool)).plot()
    assert len(axes.images) == 2
    assert len(axes.collections) == 1
    matplotlib.pyplot.close(axes.figure)
