"""Encodings of pixels, by name, each with what it has to look like: known before encoding, or by Pillow's decoder."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pydicom.uid as syntaxes
from kinds_writer import KEY, SIZE, TILE, YOUNG, blank, new_slide, note_level, paint, store
from PIL import Image
from pydicom.pixels.encoders.base import get_encoder
from synthetic import _tiles, pattern

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from synthetic import Array, SyntheticSlide

HTJ2K = [syntaxes.UID(f"1.2.840.10008.1.2.4.{number}") for number in (201, 202, 203)]


def as_it_was(tile: Array, data: bytes) -> Array:
    """Return what a lossless frame shows."""
    return tile


def by_pillow(tile: Array, data: bytes) -> Array:
    """Return what Pillow makes of a frame."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if tile.ndim == 3 else "L"))


@dataclass(frozen=True, slots=True)
class PixelKind:
    """How the frames of a slide are encoded, and what they show."""

    syntax: syntaxes.UID
    image: Array
    """What is encoded."""
    encode: Callable[[Array], bytes]
    shown: Callable[[Array, bytes], Array] = as_it_was
    """From a tile and its code stream to the pixels that a reader has to return."""
    attributes: dict[str, Any] = field(default_factory=dict)
    tolerance: int = 0


def write_kind(folder: Path, kind: PixelKind) -> SyntheticSlide:
    """Write a slide of one level, with its truth."""
    slide = new_slide(folder)
    height, width = kind.image.shape[:2]
    wide = kind.image.dtype.itemsize == 2
    ds = blank(slide, (width, height), content="rgb" if kind.image.ndim == 3 else "mono16" if wide else "mono8")
    ds.BitsAllocated = ds.BitsStored = 16 if wide else 8
    for keyword, value in kind.attributes.items():
        setattr(ds, keyword, value)
    ds.HighBit = ds.BitsStored - 1
    frames, canvas = [], None
    for x, y, tile in _tiles(kind.image, TILE):
        frames.append(kind.encode(tile))
        shown = kind.shown(tile, frames[-1])
        canvas = np.zeros((height, width, *shown.shape[2:]), shown.dtype) if canvas is None else canvas
        paint(canvas, (x, y), shown)
    assert canvas is not None
    note_level(slide, ds, {KEY: canvas}, [store(slide, ds, frames, syntax=kind.syntax)])
    return slide


def gray(bits: int, *, signed: bool = False) -> Array:
    """Return a smooth picture that uses all of its bits."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    values = np.rint((x + y) / 2 * ((1 << bits) - 1)).astype(np.int64) - ((1 << bits - 1) if signed else 0)
    size = 1 if bits <= 8 else 2
    return values.astype(f"{'i' if signed else 'u'}{size}")


def raw(tile: Array) -> bytes:
    return tile.astype(tile.dtype.newbyteorder("<")).tobytes()


def raw_big_endian(tile: Array) -> bytes:
    return tile.astype(tile.dtype.newbyteorder(">")).tobytes()


def jpeg(tile: Array, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), **{"level": 95, **options}))


def jpeg_2000(tile: Array, *, lossless: bool = True, **options: Any) -> bytes:
    options = {"level": 0 if lossless else 45, "reversible": lossless, "codecformat": "j2k", **options}
    return bytes(imagecodecs.jpeg2k_encode(tile, **options))


def rle(tile: Array) -> bytes:
    samples = 1 if tile.ndim == 2 else 3
    bits = 8 * tile.dtype.itemsize
    return bytes(
        get_encoder(syntaxes.RLELossless).encode(
            np.ascontiguousarray(tile),
            rows=tile.shape[0],
            columns=tile.shape[1],
            samples_per_pixel=samples,
            bits_allocated=bits,
            bits_stored=bits,
            pixel_representation=0,
            photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
            number_of_frames=1,
            planar_configuration=0,
        )
    )


def jpeg_ls(tile: Array, level: int = 0) -> bytes:
    return bytes(imagecodecs.jpegls_encode(tile, level=level))


def htj2k(tile: Array) -> bytes:
    return bytes(imagecodecs.htj2k_encode(tile))


def jpeg_xl(tile: Array, *, container: bool = False) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(tile, lossless=True, usecontainer=container))


def jpeg_xl_of_jpeg(tile: Array) -> bytes:
    return bytes(imagecodecs.jpegxl_encode_jpeg(jpeg(tile, subsampling="444")))


def jpeg_behind_jpeg_xl(tile: Array, data: bytes) -> Array:
    return by_pillow(tile, jpeg(tile, subsampling="444"))


RGB = pattern("rgb", *SIZE, salt=3)
SMOOTH = np.stack([gray(8), gray(8)[::-1], gray(8)[:, ::-1]], axis=-1)
"""Colour that survives lossy encoding and subsampling."""


def _kinds() -> dict[str, PixelKind]:
    kinds: dict[str, PixelKind] = {}
    native = (syntaxes.ImplicitVRLittleEndian, syntaxes.ExplicitVRLittleEndian, syntaxes.DeflatedExplicitVRLittleEndian)
    for syntax in native:
        for name, image in (("gray8", gray(8)), ("gray16", gray(16)), ("rgb", RGB)):
            kinds[f"{syntax.name}, {name}"] = PixelKind(syntax, image, raw)
    for name, image in (("gray8", gray(8)), ("gray16", gray(16)), ("rgb", RGB)):
        kinds[f"big endian, {name}"] = PixelKind(syntaxes.ExplicitVRBigEndian, image, raw_big_endian)
        kinds[f"RLE, {name}"] = PixelKind(syntaxes.RLELossless, image, rle)
        kinds[f"JPEG-LS, {name}"] = PixelKind(syntaxes.JPEGLSLossless, image, jpeg_ls)
        kinds[f"JPEG 2000, {name}"] = PixelKind(syntaxes.JPEG2000Lossless, image, jpeg_2000)
        for syntax in HTJ2K:
            kinds[f"{syntax}, {name}"] = PixelKind(syntax, image, htj2k)
        kinds[f"JPEG XL, {name}"] = PixelKind(YOUNG[0], image, jpeg_xl)
        kinds[f"JPEG lossless, {name}"] = PixelKind(
            syntaxes.JPEGLosslessSV1, image, lambda tile: jpeg(tile, lossless=True)
        )
    for bits in range(9, 17):
        stored = {"BitsStored": bits}
        kinds[f"{bits} bits, native"] = PixelKind(syntaxes.ExplicitVRLittleEndian, gray(bits), raw, attributes=stored)
        kinds[f"{bits} bits, JPEG-LS"] = PixelKind(syntaxes.JPEGLSLossless, gray(bits), jpeg_ls, attributes=stored)
        kinds[f"{bits} bits, RLE"] = PixelKind(syntaxes.RLELossless, gray(bits), rle, attributes=stored)
        kinds[f"{bits} bits, JPEG 2000"] = PixelKind(
            syntaxes.JPEG2000Lossless,
            gray(bits),
            partial(jpeg_2000, bitspersample=bits),
            attributes=stored,
        )
    ybr = {"PhotometricInterpretation": "YBR_FULL_422"}
    for sampling in ("444", "422", "420"):
        kinds[f"JPEG {sampling}"] = PixelKind(
            syntaxes.JPEGBaseline8Bit,
            SMOOTH,
            partial(jpeg, subsampling=sampling),
            by_pillow,
            ybr,
            tolerance=2,
        )
    kinds["JPEG, gray"] = PixelKind(syntaxes.JPEGBaseline8Bit, gray(8), jpeg, by_pillow)
    kinds["JPEG extended, 8 bits"] = PixelKind(syntaxes.JPEGExtended12Bit, gray(8), jpeg, by_pillow)
    kinds["JPEG extended, 12 bits"] = PixelKind(
        syntaxes.JPEGExtended12Bit,
        gray(12),
        lambda tile: jpeg(tile, level=99, bitspersample=12),
        attributes={"BitsStored": 12},
        tolerance=12,
    )
    kinds["JPEG lossless, any predictor"] = PixelKind(
        syntaxes.JPEGLossless, gray(8), lambda tile: jpeg(tile, lossless=True, predictor=6)
    )
    kinds["JPEG lossless, 12 bits"] = PixelKind(
        syntaxes.JPEGLosslessSV1,
        gray(12),
        lambda tile: bytes(imagecodecs.ljpeg_encode(tile, bitspersample=12)),
        attributes={"BitsStored": 12},
    )
    for name, image in (("gray16", gray(16)), ("rgb", RGB)):
        kinds[f"JPEG-LS near lossless, {name}"] = PixelKind(
            syntaxes.JPEGLSNearLossless, image, lambda tile: jpeg_ls(tile, 3), tolerance=3
        )
    for mct, photometric in ((True, "YBR_ICT"), (False, "RGB")):
        kinds[f"JPEG 2000 lossy, {photometric}"] = PixelKind(
            syntaxes.JPEG2000,
            SMOOTH,
            partial(jpeg_2000, lossless=False, mct=mct),
            by_pillow,
            {"PhotometricInterpretation": photometric},
            tolerance=1,
        )
    kinds["JPEG 2000 with boxes"] = PixelKind(
        syntaxes.JPEG2000Lossless, RGB, lambda tile: jpeg_2000(tile, codecformat="jp2")
    )
    kinds["JPEG XL in a container"] = PixelKind(YOUNG[2], RGB, lambda tile: jpeg_xl(tile, container=True))
    kinds["JPEG XL of JPEG"] = PixelKind(YOUNG[1], SMOOTH, jpeg_xl_of_jpeg, jpeg_behind_jpeg_xl, ybr, tolerance=12)
    return kinds


KINDS = _kinds()
