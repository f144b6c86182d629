"""The demo slide is a real one: other readers open it, and its levels, places and offsets say the truth."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_fragments, get_frame

from wsiweb.demo import file as demo_file
from wsiweb.demo import slide as demo_slide
from wsiweb.demo.header import Uids
from wsiweb.demo.pyramid import plan_levels, write_levels
from wsiweb.demo.slide import default_cache_folder, make_demo_slide, write_slide
from wsiweb.demo.texture import GLASS
from wsiweb.demo.tissue import Tissue
from wsiweb.errors import UnsupportedError, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

SIZE, TILE = (1500, 1100), 256
LEVEL_SIZES = [(1500, 1100), (750, 550), (375, 275), (187, 137)]
Array = npt.NDArray[Any]

TYPE_1 = [
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixOriginSequence",
    "ImageOrientationSlide",
    "ContentDate",
    "ContentTime",
    "InstanceNumber",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "DimensionOrganizationSequence",
    "ContainerIdentifier",
    "SpecimenDescriptionSequence",
    "ImageType",
    "AcquisitionDateTime",
    "VolumetricProperties",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "ImagedVolumeWidth",
    "ImagedVolumeHeight",
    "ImagedVolumeDepth",
    "SpecimenLabelInImage",
    "FocusMethod",
    "ExtendedDepthOfField",
    "OpticalPathSequence",
    "SOPClassUID",
]
"""Attributes that the mandatory modules of the IOD want with a value, whatever the instance shows (PS3.3 A.32.8)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("demo") / "slide", size=SIZE, tile=TILE)


@pytest.fixture(scope="module")
def datasets(folder: Path) -> dict[str, Dataset]:
    return read(folder)


@pytest.fixture(scope="module")
def levels(datasets: dict[str, Dataset]) -> list[Array]:
    return [stitch(datasets[f"level-{index}"]) for index in range(len(LEVEL_SIZES))]


def read(folder: Path) -> dict[str, Dataset]:
    return {path.stem.removeprefix("wsiweb-demo-"): dcmread(path) for path in folder.glob("*.dcm")}


def decode(dataset: Dataset, index: int) -> Array:
    data = get_frame(dataset.PixelData, index, number_of_frames=int(dataset.NumberOfFrames))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def stitch(dataset: Dataset) -> Array:
    """Put the frames of a TILED_FULL dataset side by side and cut off what hangs over."""
    w, h = int(dataset.TotalPixelMatrixColumns), int(dataset.TotalPixelMatrixRows)
    columns = -(-w // TILE)
    frames = [decode(dataset, index) for index in range(int(dataset.NumberOfFrames))]
    rows = [np.concatenate(frames[start : start + columns], axis=1) for start in range(0, len(frames), columns)]
    return np.concatenate(rows)[:h, :w]


def area_mean(image: Array, factor: int) -> Array:
    h, w = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: h * factor, : w * factor].astype(float).reshape(h, factor, w, factor, 3)
    return np.asarray(blocks.mean(axis=(1, 3)))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class Picture:
    """A painter of known pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)

    def paint(self, x: int, y: int, w: int, h: int) -> npt.NDArray[np.uint8]:
        assert x + w <= self.pixels.shape[1]
        assert y + h <= self.pixels.shape[0]
        return self.pixels[y : y + h, x : x + w]


# What other readers make of it


def test_wsidicom_reads_what_the_frames_hold(folder: Path, levels: list[Array]) -> None:
    wsidicom: Any = pytest.importorskip("wsidicom")
    with wsidicom.WsiDicom.open(folder) as slide:
        assert [(level.size.width, level.size.height) for level in slide.levels] == LEVEL_SIZES
        for index, (x, y, w, h) in enumerate([(200, 130, 900, 700), (400, 290, 350, 260), (0, 0, 375, 275)]):
            region = np.asarray(slide.read_region((x, y), index, (w, h)))
            np.testing.assert_array_equal(region, levels[index][y : y + h, x : x + w])
        edge = np.asarray(slide.read_region((1280, 1024), 0, (220, 76)))
        np.testing.assert_array_equal(edge, levels[0][1024:, 1280:])


def test_wsidicom_finds_scale_stain_and_associated_images(folder: Path) -> None:
    wsidicom: Any = pytest.importorskip("wsidicom")
    with wsidicom.WsiDicom.open(folder) as slide:
        assert (slide.mpp.width, slide.mpp.height) == (0.25, 0.25)
        assert len(slide.pyramids) == 1
        substances = [code.meaning for code in slide.metadata.slide.stainings[0].substances]
        assert substances == ["hematoxylin stain", "water soluble eosin stain"]
        assert slide.read_label().size == (560, 600)
        assert slide.read_overview().size == (3040, 1040)
        assert slide.read_thumbnail((768, 768)).size == (768, 563)


def test_icc_profile_is_srgb(datasets: dict[str, Dataset]) -> None:
    (path,) = datasets["level-0"].OpticalPathSequence
    profile = ImageCms.ImageCmsProfile(io.BytesIO(path.ICCProfile))
    to_srgb = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    changed = ImageCms.applyTransform(image, to_srgb)
    assert changed is not None
    assert np.abs(np.asarray(changed).astype(int) - np.asarray(image)).max() <= 1


# Levels and frames


def test_levels_are_area_means_of_level_0(levels: list[Array]) -> None:
    for index, level in enumerate(levels[1:], start=1):
        truth = area_mean(levels[0], 2**index)
        assert level.shape == truth.shape == (*LEVEL_SIZES[index][::-1], 3)
        stored = io.BytesIO()
        Image.fromarray(np.rint(truth).astype(np.uint8)).save(stored, "jpeg", quality=80, subsampling=1)
        unavoidable = np.abs(np.asarray(Image.open(stored)) - truth).mean()
        assert np.abs(level - truth).mean() < 1.1 * unavoidable  # a shift by a pixel more than doubles it
        assert np.abs((level - truth).mean(axis=(0, 1))).max() < 0.2
        assert np.abs(area_mean(level, 16) - area_mean(truth, 16)).max() < 3


@pytest.mark.parametrize(("size", "tile"), [((531, 417), 64), ((257, 512), 128), ((129, 65), 32), ((32, 40), 64)])
def test_levels_before_compression_are_exact(tmp_path: Path, size: tuple[int, int], tile: int) -> None:
    planned = plan_levels(size, tile, 0.25, (0.0, 0.0))
    picture = Picture(size)
    for keep, level in enumerate(planned):
        target = tmp_path / str(keep)
        target.mkdir()
        kept = write_levels(picture, planned, target, Uids(("test",)), quality=80, keep=keep, progress=None)
        truth = area_mean(picture.pixels, 2**keep)
        assert kept.shape == (level.size[1], level.size[0], 3)
        np.testing.assert_array_equal(kept.shape, truth.shape)
        assert np.abs(kept - truth).max() <= 0.5 * keep  # what rounding adds at each level
        assert abs((kept - truth).mean()) < 0.2


def test_every_frame_is_a_whole_jpeg_where_the_offset_table_says(datasets: dict[str, Dataset]) -> None:
    for name in ("level-0", "level-3", "thumbnail", "overview"):
        dataset = datasets[name]
        count = int(dataset.NumberOfFrames)
        table, *frames = generate_fragments(dataset.PixelData)
        offsets = np.frombuffer(table, "<u4")
        assert len(frames) == len(offsets) == count
        starts = np.cumsum([0, *(8 + len(frame) for frame in frames)])
        np.testing.assert_array_equal(offsets, starts[:-1])
        assert all(frame.startswith(b"\xff\xd8") and b"\xff\xd9" in frame[-3:] for frame in frames)
        image = Image.open(io.BytesIO(frames[-1]))
        assert image.size == (dataset.Columns, dataset.Rows)
        assert getattr(image, "layer", None) == [(1, 2, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # 4:2:2


def test_extended_offset_table_beyond_4_gib(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_file, "BASIC_TABLE_LIMIT_BYTES", 0)
    extended = read(write_slide(tmp_path / "slide", size=SIZE, tile=TILE))["level-0"]
    basic = dcmread(folder / "wsiweb-demo-level-0.dcm")
    tables = extended.ExtendedOffsetTable, extended.ExtendedOffsetTableLengths
    for index in (0, 17, 29):
        frame = get_frame(extended.PixelData, index, extended_offsets=tables)
        assert frame == get_frame(basic.PixelData, index, number_of_frames=30)


def test_edge_tiles_are_whole_and_hang_over_with_glass(datasets: dict[str, Dataset]) -> None:
    for index, (w, h) in enumerate(LEVEL_SIZES):
        dataset = datasets[f"level-{index}"]
        assert dataset.NumberOfFrames == -(-w // TILE) * -(-h // TILE)
        corner = decode(dataset, int(dataset.NumberOfFrames) - 1).astype(int)
        assert corner.shape == (TILE, TILE, 3)
        beyond = corner[-(-h % TILE) + 16 :, -(-w % TILE) + 16 :]  # JPEG's blocks straddle the edge
        assert beyond.size
        assert np.abs(beyond - GLASS).max() <= 2


# Attributes


def test_required_attributes_have_values(datasets: dict[str, Dataset]) -> None:
    assert len(datasets) == len(LEVEL_SIZES) + 3
    for name, dataset in datasets.items():
        missing = [keyword for keyword in TYPE_1 if keyword not in dataset or dataset[keyword].is_empty]
        assert not missing, name


def test_attributes_tell_the_instances_apart(datasets: dict[str, Dataset]) -> None:
    types = {name: "\\".join(dataset.ImageType) for name, dataset in datasets.items()}
    assert types == {
        "level-0": "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
        **{f"level-{index}": "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED" for index in (1, 2, 3)},
        "thumbnail": "DERIVED\\PRIMARY\\THUMBNAIL\\RESAMPLED",
        "label": "ORIGINAL\\PRIMARY\\LABEL\\NONE",
        "overview": "ORIGINAL\\PRIMARY\\OVERVIEW\\NONE",
    }
    assert len({dataset.SOPInstanceUID for dataset in datasets.values()}) == len(datasets)
    assert len({dataset.InstanceNumber for dataset in datasets.values()}) == len(datasets)
    for name, dataset in datasets.items():
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.get("DimensionOrganizationType") == ("TILED_FULL" if "level" in name else None)
        assert dataset.SpecimenLabelInImage == ("YES" if name in ("label", "overview") else "NO")
    assert {dataset.get("PyramidUID") for name, dataset in datasets.items() if "level" in name} == {
        datasets["thumbnail"].PyramidUID
    }


def test_compression_is_told(datasets: dict[str, Dataset], folder: Path) -> None:
    for name, dataset in datasets.items():
        if name == "label":
            assert (dataset.LossyImageCompression, dataset.PhotometricInterpretation) == ("00", "RGB")
            assert len(dataset.PixelData) == 560 * 600 * 3
            continue
        assert (dataset.LossyImageCompression, dataset.PhotometricInterpretation) == ("01", "YBR_FULL_422")
        raw = dataset.Rows * dataset.Columns * 3 * dataset.NumberOfFrames
        assert dataset.LossyImageCompressionRatio == pytest.approx(raw / len(dataset.PixelData), rel=0.02)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_pixel_spacing_and_volume_agree(datasets: dict[str, Dataset]) -> None:
    for name, dataset in datasets.items():
        spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        volume = dataset.ImagedVolumeHeight, dataset.ImagedVolumeWidth
        pixels = dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns
        for row_or_column in range(2):
            assert spacing[row_or_column] * pixels[row_or_column] == pytest.approx(volume[row_or_column]), name
    assert datasets["thumbnail"].ImagedVolumeWidth == pytest.approx(0.375)


def test_overview_shows_the_tissue_where_the_origin_says(datasets: dict[str, Dataset]) -> None:
    def origin(name: str) -> Array:
        (item,) = datasets[name].TotalPixelMatrixOriginSequence
        return np.array([float(item.YOffsetInSlideCoordinateSystem), float(item.XOffsetInSlideCoordinateSystem)])

    # Orientation 0\-1\0\-1\0\0: Y falls along a row of pixels, X down a column.
    left, top = (origin("overview") - origin("level-0")) * 1000 / 25
    overview = decode(datasets["overview"], 0).astype(int)
    rows, columns = np.nonzero(overview[..., 0] - overview[..., 1] > 40)  # pink
    assert len(rows) > 30
    assert abs((columns.min() + columns.max()) / 2 - (left + 1500 / 200)) < 3
    assert abs((rows.min() + rows.max()) / 2 - (top + 1100 / 200)) < 3


# The picture


def test_picture_looks_like_tissue(levels: list[Array]) -> None:
    image = levels[0].astype(int)
    glass = np.abs(image - GLASS).max(axis=-1) < 12
    nuclei = (image[..., 0] < 120) & (image[..., 2] > image[..., 1])
    assert 0.2 < glass.mean() < 0.8
    assert 0.005 < nuclei.mean() < 0.3
    assert image[~glass].std(axis=0).min() > 10


def test_picture_is_the_same_however_it_is_cut() -> None:
    tissue = Tissue(SIZE, seed=7)
    whole = np.concatenate([tissue.paint(0, y, 1000, min(400, 1100 - y)) for y in range(0, 1100, 400)])
    for x, y, w, h in [(8, 16, 256, 256), (600, 392, 123, 77), (992, 1096, 8, 4)]:
        np.testing.assert_array_equal(tissue.paint(x, y, w, h), whole[y : y + h, x : x + w])


# The folder


def test_same_arguments_same_bytes_and_another_seed_another_slide(folder: Path, tmp_path: Path) -> None:
    assert digests(write_slide(tmp_path / "again", size=SIZE, tile=TILE)) == digests(folder)
    other = read(write_slide(tmp_path / "other", size=SIZE, tile=TILE, seed=8))["level-0"]
    mine = dcmread(folder / "wsiweb-demo-level-0.dcm")
    assert other.SeriesInstanceUID != mine.SeriesInstanceUID
    assert other.PixelData != mine.PixelData


def test_another_process_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib; from wsiweb.demo.slide import write_slide as w; w(pathlib.Path(sys.argv[1]), size={})"
    subprocess.run([sys.executable, "-c", code.format(SIZE), str(tmp_path / "slide")], check=True)
    assert digests(tmp_path / "slide") == digests(folder)


def test_second_call_writes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}
    assert write_slide(folder, size=SIZE, tile=TILE, progress=lambda *_: pytest.fail("painted again")) == folder
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())} == before


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_slide(tmp_path / "slide", size=(300, 200), tile=64, progress=lambda *call: calls.append(call))
    assert calls == [(done, 29) for done in range(1, 30)]  # 5 x 4, 3 x 2, 2 x 1, 1 x 1
    assert len(calls) == sum(dataset.NumberOfFrames for n, dataset in read(tmp_path / "slide").items() if "level" in n)


def stop_at(frame: int) -> Callable[[int, int], None]:
    def progress(done: int, _total: int) -> None:
        if done == frame:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("frame", [1, 20, 38])
def test_interrupted_run_leaves_nothing(tmp_path: Path, frame: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_slide(tmp_path / "slide", size=SIZE, progress=stop_at(frame))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [100, 9_000])
def test_a_full_disk(tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]], size: int) -> None:
    """It is said where, and nothing is left."""
    with full_disk(size), pytest.raises(WsiWebError, match=r"\.dcm cannot be written: File too large\. Make room"):
        write_slide(tmp_path / "slide", size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_under_the_final_name_while_it_is_written(tmp_path: Path) -> None:
    seen = set()
    write_slide(tmp_path / "slide", size=(300, 200), progress=lambda *_: seen.add((tmp_path / "slide").exists()))
    assert seen == {False}
    assert [path.name for path in tmp_path.iterdir()] == ["slide"]


def test_older_version_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_slide(tmp_path / "slide", size=(300, 200))
    old = digests(target)
    monkeypatch.setattr(demo_slide, "VERSION", "next")
    with pytest.raises(KeyboardInterrupt):
        write_slide(target, size=(300, 200), progress=stop_at(2))
    assert digests(target) == old
    write_slide(target, size=(300, 200))
    assert digests(target).keys() == old.keys()
    assert not set(digests(target).values()) & set(old.values())
    assert [path.name for path in tmp_path.iterdir()] == ["slide"]


def test_incomplete_slide_is_made_anew(tmp_path: Path) -> None:
    target = write_slide(tmp_path / "slide", size=(300, 200))
    whole = digests(target)
    (target / "wsiweb-demo-level-1.dcm").unlink()
    assert digests(write_slide(target, size=(300, 200))) == whole


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UnsupportedError, match=r"thesis\.txt"):
        write_slide(tmp_path, size=(300, 200))
    with pytest.raises(UnsupportedError, match=r"thesis\.txt"):
        write_slide(tmp_path / "thesis.txt", size=(300, 200))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_empty_folder_and_missing_parents_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert write_slide(target, size=(64, 48)) == target
        assert len(list(target.iterdir())) == 4


@pytest.mark.parametrize("wrong", [{"size": (0, 50)}, {"tile": 250}, {"tile": 2048}, {"quality": 0}, {"tile": 0}])
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        write_slide(tmp_path / "slide", **{"size": (300, 200), **wrong})
    assert list(tmp_path.iterdir()) == []


def test_demo_slide_has_the_demo_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = demo_slide.DEMO_SIZE
    assert w % 256
    assert h % 256
    planned = plan_levels((w, h), 256, 0.25, (0.0, 0.0))
    assert len(planned) >= 4
    assert 2500 < sum(level.frames for level in planned) < 4000
    monkeypatch.setattr(demo_slide, "DEMO_SIZE", (300, 200))
    assert make_demo_slide(tmp_path / "demo") == tmp_path / "demo"
    assert read(tmp_path / "demo")["level-0"].TotalPixelMatrixColumns == 300


def test_cache_folder_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "wsiweb"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_cache_folder() == tmp_path / ".cache" / "wsiweb"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_cache_folder() == tmp_path / "Library" / "Caches" / "wsiweb"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_cache_folder() == tmp_path / "local" / "wsiweb"
    assert list(tmp_path.iterdir()) == []
