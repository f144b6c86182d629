"""Make the slides: paint, encode, and decode again for the truth. Runs once; the folders are kept.

The painter is the demo's, since tissue compresses, and costs a decoder, what tissue does. Frames are encoded and
decoded by Pillow, which none of the readers decodes with.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import headers
from benchmarks.slides import JPEG, SlideSpec, StoredSlide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

QUALITY = 80
JPEG_2000_RATIO = 12
VERSION = "1"
"""Of what is made; a new one makes all slides anew."""
_STEP = 512
"""Pixels that are painted at once."""


def make_slide(spec: SlideSpec, cache: Path) -> StoredSlide:
    """Return a slide from the cache, made if it is not there."""
    identity = json.dumps([VERSION, spec.to_json()]).encode()
    folder = cache / f"{spec.name}-{hashlib.sha256(identity).hexdigest()[:10]}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(spec, partial, cache)
        partial.rename(folder)
    return StoredSlide(folder)


def _write(spec: SlideSpec, folder: Path, cache: Path) -> None:
    picture = _picture(spec.period, spec.seed, cache)
    for index, level in enumerate(spec.levels()):
        reduced = _reduced(picture, level.factor)
        side = level.period * spec.tile
        repeats = -(-side // reduced.shape[0])
        _encode(np.tile(reduced, (repeats, repeats, 1))[:side, :side], spec, folder, str(index))
    if spec.associated:
        for kind, (w, h) in headers.ASSOCIATED.items():
            image = np.resize(picture[:256, :256], (h, w, 3))
            (folder / f"{kind}.bin").write_bytes(_encoded(image, spec.syntax))
    (folder / "metadata.json").write_text(json.dumps(headers.metadata(spec, _icc_profile())))
    (folder / "slide.json").write_text(json.dumps(spec.to_json()))


def _encode(image: Pixels, spec: SlideSpec, folder: Path, name: str) -> None:
    """Write the distinct frames of a level, and what they decode to."""
    decoded, frames = np.empty_like(image), []
    for rows, columns in _tiles(image.shape[0], spec.tile):
        frame = _encoded(image[rows, columns], spec.syntax)
        decoded[rows, columns] = _decoded(frame)
        frames.append(frame)
    (folder / f"frames-{name}.bin").write_bytes(b"".join(frames))
    (folder / f"frames-{name}.json").write_text(json.dumps(np.cumsum([len(frame) for frame in frames]).tolist()))
    np.save(folder / f"pixels-{name}.npy", decoded)


def _tiles(side: int, tile: int) -> Iterator[tuple[slice, slice]]:
    for y in range(0, side, tile):
        for x in range(0, side, tile):
            yield slice(y, y + tile), slice(x, x + tile)


def _picture(side: int, seed: int, cache: Path) -> Pixels:
    """Return a piece out of the middle of the tissue; painted once for all slides that show it."""
    from wsiweb.demo.tissue import ISLANDS, Tissue

    path = cache / f"picture-{VERSION}-{side}-{seed}.npy"
    if path.exists():
        found: Pixels = np.load(path, mmap_mode="r")
        return found
    # The half axes of the largest island hold a square of this side.
    centre_x, centre_y, half_x, half_y, _ = ISLANDS[0]
    whole_w, whole_h = round(side * 0.66 / half_x), round(side * 0.88 / half_y)
    tissue = Tissue((whole_w, whole_h), seed)
    left, top = (int(axis) // _STEP * _STEP for axis in (whole_w * centre_x - side / 2, whole_h * centre_y - side / 2))
    picture: Pixels = np.empty((side, side, 3), np.uint8)
    for y in range(0, side, _STEP):
        for x in range(0, side, _STEP):
            w, h = min(_STEP, side - x), min(_STEP, side - y)
            picture[y : y + h, x : x + w] = tissue.paint(left + x, top + y, w, h)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, picture)
    return picture


def _reduced(picture: Pixels, factor: int) -> Pixels:
    side = picture.shape[0] // factor
    reduced = np.empty((side, side, 3), np.uint8)
    for y, row in enumerate(picture.reshape(side, factor, side, factor, 3)):
        reduced[y] = np.rint(row.mean(axis=(0, 2)))
    return reduced


def _encoded(image: Pixels, syntax: str) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    if syntax == JPEG:
        Image.fromarray(image).save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    else:
        Image.fromarray(image).save(
            stream, "JPEG2000", no_jp2=True, irreversible=True, mct=1,
            quality_mode="rates", quality_layers=[JPEG_2000_RATIO],
        )  # fmt: skip
    return stream.getvalue()


def _decoded(frame: bytes) -> Pixels:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(frame)))


def _icc_profile() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return bytes(profile + bytes(len(profile) % 2))


def part10_files(slide: StoredSlide) -> list[Path]:
    """Return the slide as DICOM files, for servers that want such; made if they are not there."""
    import pydicom
    from pydicom.encaps import encapsulate

    folder = slide.folder / "part10"
    if not folder.exists():
        partial = slide.folder / "part10.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        levels = slide.spec.levels()
        for number, attributes in enumerate(slide.metadata()):
            dataset = pydicom.Dataset.from_json(attributes)
            if number < len(levels):
                palette = slide.palette(number)
                frames = [palette[index] for index in levels[number].palette_indices.tolist()]
            else:
                frames = [(slide.folder / f"{dataset.ImageType[2]}.bin").read_bytes()]
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(slide.spec.syntax)
            element = pydicom.DataElement("PixelData", "OB", encapsulate(frames))
            element.is_undefined_length = True
            dataset["PixelData"] = element
            dataset.save_as(partial / f"{number}.dcm", enforce_file_format=True)
        partial.rename(folder)
    return sorted(folder.iterdir())
