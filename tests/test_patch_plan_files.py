"""Plans of patches in files: ours, and those of CLAM and TRIDENT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from wsiweb import RegionError, Slide, WsiWebError
from wsiweb.patches import load

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener, SlideMaker


@pytest.fixture
def slide(open_slide: Opener, synthetic: SlideMaker) -> Slide:
    """700 x 530, 350 x 265 and 175 x 132 pixels."""
    return open_slide(synthetic("rgb"))


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
