"""Readers too naive to be wrong: every frame of a level is decoded and pasted, whole, in file order."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Array = npt.NDArray[Any]


def decode_frames(dataset: pydicom.Dataset) -> Iterator[Array]:
    """Decode JPEG with Pillow, native frames with numpy, the rest as imagecodecs guesses from the bytes."""
    shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)[: 2 + (dataset.SamplesPerPixel > 1)]
    syntax, count = dataset.file_meta.TransferSyntaxUID, int(dataset.NumberOfFrames)
    if not syntax.is_encapsulated:
        size = int(np.prod(shape)) * count
        yield from np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}", size).reshape(-1, *shape)
        return
    for data in generate_frames(dataset.PixelData, number_of_frames=count):
        if data.startswith(b"\xff\xd8\xff") and not data.startswith(b"\xff\xd8\xff\xf7"):  # not JPEG-LS
            yield np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if len(shape) == 3 else "L"))
        else:
            yield np.asarray(imagecodecs.imread(data))


def positions(dataset: pydicom.Dataset) -> list[tuple[int, int]]:
    """Return the top left corner (x, y) of each frame in the total pixel matrix."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        places = [group.PlanePositionSlideSequence[0] for group in dataset.PerFrameFunctionalGroupsSequence]
        return [(p.ColumnPositionInTotalImagePixelMatrix - 1, p.RowPositionInTotalImagePixelMatrix - 1) for p in places]
    columns = range(0, dataset.TotalPixelMatrixColumns, dataset.Columns)
    return [(x, y) for y in range(0, dataset.TotalPixelMatrixRows, dataset.Rows) for x in columns]


def stitch(path: Path) -> Array:
    """Return the whole total pixel matrix of a file with one optical path and one focal plane."""
    dataset = pydicom.dcmread(path)
    width, height = dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows
    frames = list(decode_frames(dataset))
    corners = positions(dataset)
    assert len(frames) == len(corners)
    canvas_shape = (height + dataset.Rows, width + dataset.Columns, *frames[0].shape[2:])
    canvas: Array = np.full(canvas_shape, 255 if frames[0].ndim == 3 else 0, frames[0].dtype)
    for (x, y), frame in zip(corners, frames, strict=True):
        canvas[y : y + frame.shape[0], x : x + frame.shape[1]] = frame
    return canvas[:height, :width]


def stitch_levels(folder: Path) -> list[Array]:
    """Return every VOLUME image of a folder, largest first."""
    files = [
        path
        for path in sorted(folder.glob("*.dcm"))
        if "VOLUME" in pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ImageType"]).ImageType
    ]
    return sorted(map(stitch, files), key=lambda level: -level.size)


def reduce_by_area(image: Array, scale_x: float, scale_y: float, w: int, h: int) -> npt.NDArray[np.float64]:
    """Return ``w`` by ``h`` pixels, each the mean of the ``scale_x`` by ``scale_y`` pixels that it covers."""

    def weights(scale: float, outputs: int, inputs: int) -> npt.NDArray[np.float64]:
        first = np.arange(outputs)[:, None] * scale
        pixel = np.arange(inputs)[None, :]
        overlap = np.minimum(first + scale, pixel + 1) - np.maximum(first, pixel)
        return np.asarray(np.clip(overlap, 0, None) / scale)

    along_x = weights(scale_x, w, image.shape[1])
    along_y = weights(scale_y, h, image.shape[0])
    return np.asarray(np.einsum("ij,jk...,lk->il...", along_y, image.astype(np.float64), along_x, optimize=True))
