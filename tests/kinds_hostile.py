"""Frames made to hurt a decoder, and a program that reads them: a crash shall not take the tests with it.

``python kinds_hostile.py PLACE COUNT ...`` reads the tiles of slides of one row, and prints what became of each.
"""

from __future__ import annotations

import functools
import random
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pydicom.uid as syntaxes
from kinds_jpeg import with_size
from kinds_pixels import RGB, htj2k, jpeg, jpeg_2000, jpeg_ls, jpeg_xl, rle
from kinds_writer import TILE, YOUNG

from wsiweb import ReadOptions, Slide, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthetic import Array

    Encoder = Callable[[Array], bytes]

JPEG = syntaxes.JPEGBaseline8Bit
CODECS: dict[str, tuple[syntaxes.UID, Encoder]] = {
    "JPEG": (JPEG, jpeg),
    "JPEG lossless": (syntaxes.JPEGLosslessSV1, lambda tile: jpeg(tile, lossless=True)),
    "JPEG-LS": (syntaxes.JPEGLSLossless, jpeg_ls),
    "JPEG 2000": (syntaxes.JPEG2000Lossless, jpeg_2000),
    "HTJ2K": (syntaxes.HTJ2KLossless, htj2k),
    "JPEG XL": (YOUNG[0], jpeg_xl),
    "RLE": (syntaxes.RLELossless, rle),
}


def picture(w: int, h: int) -> Array:
    return np.ascontiguousarray(RGB[:h, :w])


def giant_jpeg_2000(data: bytes, width: int, height: int, *, tile: int | None = None, components: int = 3) -> bytes:
    """State another size in SIZ (ITU-T T.800 A.5.1)."""
    changed = bytearray(data)
    siz = changed.index(b"\xff\x51")
    struct.pack_into(">II", changed, siz + 6, width, height)
    struct.pack_into(">II", changed, siz + 22, tile or width, tile or height)
    struct.pack_into(">H", changed, siz + 38, components)
    return bytes(changed)


def giant_jpeg_xl() -> bytes:
    """Signature, and a size header of 2**30 x 2**30 (ISO/IEC 18181-1 D.2), bits from the lowest."""
    bits: list[int] = []
    for value, count in ((0, 1), (3, 2), (2**30 - 1, 30), (0, 3), (3, 2), (2**30 - 1, 30), (1, 1), (1, 1)):
        bits.extend(value >> n & 1 for n in range(count))
    bits += [0] * (-len(bits) % 8)
    return b"\xff\x0a" + np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes() + bytes(200)


def rle_header(*words: int) -> bytes:
    return struct.pack("<16I", *words, *[0] * (16 - len(words)))


@functools.cache
def hostile(codec: str) -> list[bytes]:
    """Return frames that promise more than they hold, or more than anyone wants."""
    good = CODECS[codec][1](picture(*TILE))
    match codec:
        case "JPEG" | "JPEG lossless" | "JPEG-LS":
            return [with_size(good, *size) for size in ((65500, 65500), (65535, 65535), (0, 0), (64, 0), (65535, 1))]
        case "JPEG 2000" | "HTJ2K":
            boxed = jpeg_2000(picture(*TILE), codecformat="jp2")
            return [
                giant_jpeg_2000(good, 2**31 - 1, 2**31 - 1),
                giant_jpeg_2000(good, 2**32 - 1, 1),
                giant_jpeg_2000(good, 60000, 60000, tile=1),
                giant_jpeg_2000(good, *TILE, components=16384),
                giant_jpeg_2000(boxed, 2**31 - 1, 2**31 - 1),
                # the code stream far behind the front: its size is to be checked all the same
                boxed[:12]
                + struct.pack(">I4s", 8008, b"free")
                + bytes(8000)
                + giant_jpeg_2000(boxed, 60000, 60000)[12:],
            ]
        case "JPEG XL":
            picture_of_nothing = np.zeros((15000, 15000), np.uint8)
            return [giant_jpeg_xl(), bytes(imagecodecs.jpegxl_encode(picture_of_nothing, lossless=True, effort=1))]
        case _:
            segments = good[64:]
            far = (2**16, 2**24, 2**31, 2**32 - 1)
            return [
                *(rle_header(3, 64, offset, 3280) + segments for offset in far),
                *(rle_header(3, 64, 3184, offset) + segments for offset in far),
                *(rle_header(count, 64, 3184, 3280) + segments for count in (0, 1, 2, 2**32 - 1)),
                rle_header(3, 64, 64, 64) + b"\x7f",
            ]


def strange(codec: str) -> list[bytes]:
    """Return frames that may be read or refused, but do no harm."""
    good = CODECS[codec][1](picture(*TILE))
    match codec:
        case "JPEG 2000" | "HTJ2K":
            return [giant_jpeg_2000(good, *TILE, tile=0xFFFFFFFF), giant_jpeg_2000(good, *TILE, tile=1)]
        case "RLE":
            segments = good[64:]
            return [
                *(rle_header(count, 64, 3184, 3280) + segments for count in (4, 15, 16)),
                rle_header(3, 64, 200, 3280) + segments,
                rle_header(3, 3280, 3184, 64) + segments,
                rle_header(3, 0, 0, 0) + segments,
                rle_header(3, 64, 64, 64) + b"\x81\xff" * 2_000_000,
            ]
    return []


def changed_at_random(codec: str, count: int) -> list[bytes]:
    """Return frames of which some bytes are others, many of them in the header."""
    good = CODECS[codec][1](picture(*TILE))
    rng = random.Random(codec)
    frames = []
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data) if rng.random() < 0.5 else 64)] = rng.randrange(256)
        frames.append(bytes(data))
    return frames


def say(line: str) -> None:
    """Print at once: the next frame may be the last."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def peak_mib() -> int:
    """Return the most memory that this process has had; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def read_all(place: str, count: int) -> None:
    """Read tile by tile, and print a line for each and one for the memory that it took."""
    width, height = TILE
    with Slide.open(place, options=ReadOptions(decode_threads=1)) as slide:
        before = peak_mib()
        for column in range(count):
            try:
                image = slide.read_region(0, column * width, 0, width, height)
            except WsiWebError as error:
                say(f"{place} frame {column + 1}: {type(error).__name__}")
            else:
                assert image.shape == (height, width, 3)
                say(f"{place} frame {column + 1}: read")
        after = peak_mib()
    say(f"{place} took {after - before} MiB")


if __name__ == "__main__":
    for place, count in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        read_all(place, int(count))
