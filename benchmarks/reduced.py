"""What decoding JPEGs at a half, a quarter and an eighth in the DCT domain would save, and what it would show instead.

``python -m benchmarks.reduced FOLDER...`` takes folders of DICOM files; the frames of all JPEG instances are sampled.
For each scale: the time of a frame beside that of a full decode, and how far its pixels are from area weighting of the
full decode (0 to 255). Pillow's draft mode reaches libjpeg's scaled decoding; simplejpeg, where it is installed,
libjpeg-turbo's with less around it.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Pixels = npt.NDArray[Any]

SAMPLE = 200
REPEATS = 3
SCALES = (2, 4, 8)
JPEG_SYNTAX = "1.2.840.10008.1.2.4.50"


def frames_of(folders: list[Path]) -> list[bytes]:
    """Return frames whose sides are multiples of 16, a few of each instance."""
    found: list[bytes] = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID == JPEG_SYNTAX and dataset.Rows % 16 == dataset.Columns % 16 == 0:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1))))
            found += frames[:: -(-len(frames) // SAMPLE)]
    return found


def drafted(frame: bytes, scale: int) -> Pixels:
    image: Any = Image.open(io.BytesIO(frame))
    image.draft(image.mode, (image.width // scale, image.height // scale))
    return np.asarray(image)


def simply(frame: bytes, scale: int) -> Pixels:
    import simplejpeg

    height, width, space, _ = simplejpeg.decode_jpeg_header(frame)
    space = "GRAY" if space == "Gray" else "RGB"
    pixels: Pixels = simplejpeg.decode_jpeg(
        frame, space, min_height=height // scale, min_width=width // scale, min_factor=1
    )
    return pixels


def area(pixels: Pixels, scale: int) -> Pixels:
    height, width = pixels.shape[:2]
    means: Pixels = pixels.reshape(height // scale, scale, width // scale, scale, -1).mean((1, 3))
    return means


def milliseconds(decode: Callable[[bytes], object], frames: list[bytes]) -> float:
    """Return the CPU time of a frame, the best of a few rounds."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.process_time()
        for frame in frames:
            decode(frame)
        best = min(best, time.process_time() - started)
    return best / len(frames) * 1000


def main() -> None:
    frames = frames_of([Path(name) for name in sys.argv[1:]])
    full = milliseconds(imagecodecs.jpeg8_decode, frames)
    print(f"{len(frames)} frames, {full:.3f} ms each in full (imagecodecs)")
    ways: dict[str, Callable[[bytes, int], Pixels]] = {"Pillow": drafted}
    try:
        simply(frames[0], 2)
        ways["simplejpeg"] = simply
    except ImportError:
        pass
    for name, decode in ways.items():
        for scale in SCALES:
            share = milliseconds(lambda frame: decode(frame, scale), frames) / full  # noqa: B023
            off = []
            for frame in frames:
                pixels = decode(frame, scale)
                off.append(
                    np.abs(pixels.reshape(*pixels.shape[:2], -1) - area(imagecodecs.jpeg8_decode(frame), scale)).ravel()
                )
            all_off = np.concatenate(off)
            print(
                f"{name} 1/{scale}: {share:.2f} of the time; off by {all_off.mean():.2f} on average, "
                f"{np.percentile(all_off, 99):.1f} at the 99th percentile, {all_off.max():.0f} at most"
            )


if __name__ == "__main__":
    main()
