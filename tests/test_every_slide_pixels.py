"""Pixels: every transfer syntax and depth, inverted, signed, wide and indexed, from files and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pydicom.uid as syntaxes
import pytest
from kinds_pixels import (
    KINDS,
    RGB,
    PixelKind,
    as_it_was,
    by_pillow,
    gray,
    jpeg,
    jpeg_2000,
    jpeg_ls,
    raw,
    raw_big_endian,
    rle,
    write_kind,
)
from kinds_writer import SIZE, TILE, assert_reads, blank, new_slide, store
from pydicom.data import get_palette_files
from pydicom.pixels.processing import apply_color_lut
from synthetic import _tiles

from wsiweb import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Opener
    from synthetic import Array

NATIVE = syntaxes.ExplicitVRLittleEndian


@pytest.mark.parametrize("name", KINDS)
def test_transfer_syntax(tmp_path: Path, open_slide: Opener, name: str) -> None:
    kind = KINDS[name]
    slide = write_kind(tmp_path, kind)
    opened = open_slide(slide)
    assert opened.levels[0].dtype == slide.levels[0].pixels["1", 0.0].dtype
    assert_reads(opened, slide, kind.tolerance)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(NATIVE, raw), (syntaxes.JPEG2000Lossless, None), (syntaxes.JPEGLSLossless, jpeg_ls), (syntaxes.RLELossless, rle)],
    ids=["native", "JPEG 2000", "JPEG-LS", "RLE"],
)
def test_monochrome1_is_inverted(
    tmp_path: Path, open_slide: Opener, bits: int, syntax: syntaxes.UID, encode: Callable[[Array], bytes] | None
) -> None:
    """Larger is brighter: the largest stored value becomes 0."""

    def in_so_many_bits(tile: Array) -> bytes:
        return jpeg_2000(tile if bits > 8 else tile.astype(np.uint8), bitspersample=bits)

    def shown(tile: Array, data: bytes) -> Array:
        return np.asarray((1 << bits) - 1 - tile.astype(int), tile.dtype)

    attributes = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits}
    kind = PixelKind(syntax, gray(bits), encode or in_so_many_bits, shown, attributes)
    # The padding of synthetic tiles lies above the largest value of no depth here.
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide), slide)


def test_monochrome1_in_a_lossy_jpeg(tmp_path: Path, open_slide: Opener) -> None:
    def shown(tile: Array, data: bytes) -> Array:
        return 255 - by_pillow(tile, data)

    attributes = {"PhotometricInterpretation": "MONOCHROME1"}
    slide = write_kind(tmp_path, PixelKind(syntaxes.JPEGBaseline8Bit, gray(8), jpeg, shown, attributes))
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *(("native", 8), ("native", 12), ("native", 16), ("masked", 12), ("big", 16)),
        *(("RLE", 8), ("RLE", 16), ("JPEG-LS", 16)),
        *(("JPEG 2000", 8), ("JPEG 2000", 12), ("JPEG 2000", 16)),
    ],
)
def test_signed(tmp_path: Path, open_slide: Opener, name: str, bits: int, inverted: bool) -> None:
    """Shifted up by half of the range, so that their order stays and the lowest value that can be is 0."""
    size = 1 if bits <= 8 else 2

    def masked(tile: Array) -> bytes:  # the bits above BitsStored need not repeat the sign
        return raw(np.asarray(tile.astype(np.int32) & (1 << bits) - 1, "u2"))

    def unsigned(tile: Array) -> Array:
        return tile.view(f"u{size}")

    encoders: dict[str, tuple[syntaxes.UID, Callable[[Array], bytes]]] = {
        "native": (NATIVE, raw),
        "masked": (NATIVE, masked),
        "big": (syntaxes.ExplicitVRBigEndian, raw_big_endian),
        "RLE": (syntaxes.RLELossless, lambda tile: rle(unsigned(tile))),
        "JPEG 2000": (syntaxes.JPEG2000Lossless, lambda tile: jpeg_2000(tile, bitspersample=bits)),
        "JPEG-LS": (syntaxes.JPEGLSLossless, lambda tile: jpeg_ls(unsigned(tile))),
    }

    def shown(tile: Array, data: bytes) -> Array:
        shifted = tile.astype(int) + (1 << bits - 1)
        return np.asarray((1 << bits) - 1 - shifted if inverted else shifted, f"u{size}")

    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    attributes = {"PixelRepresentation": 1, "BitsStored": bits, "PhotometricInterpretation": photometric}
    syntax, encode = encoders[name]
    slide = write_kind(tmp_path, PixelKind(syntax, gray(bits, signed=True), encode, shown, attributes))
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(NATIVE, raw), (syntaxes.JPEG2000Lossless, None), (syntaxes.RLELossless, rle), (syntaxes.JPEGLSLossless, jpeg_ls)],
    ids=["native", "JPEG 2000", "RLE", "JPEG-LS"],
)
def test_wide_colour_is_scaled_to_8_bits(
    tmp_path: Path, open_slide: Opener, bits: int, syntax: syntaxes.UID, encode: Callable[[Array], bytes] | None
) -> None:
    """Colour is uint8 in the contract: the highest 8 of the stored bits."""
    image = np.stack([gray(bits), gray(bits)[::-1], gray(bits)[:, ::-1]], axis=-1).astype(np.uint16)

    def in_so_many_bits(tile: Array) -> bytes:
        return jpeg_2000(tile if bits > 8 else tile.astype(np.uint8), bitspersample=bits)

    def shown(tile: Array, data: bytes) -> Array:
        return np.asarray(tile >> (bits - 8), np.uint8)

    kind = PixelKind(syntax, image, encode or in_so_many_bits, shown, {"BitsStored": bits})
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize(
    ("syntax", "encode", "high_bit", "read"),
    [
        (NATIVE, raw, 15, False),
        (syntaxes.RLELossless, rle, 13, False),
        (syntaxes.JPEGLSLossless, jpeg_ls, 15, True),
        (NATIVE, raw, 7, True),
        (NATIVE, raw, 99, True),
    ],
)
def test_samples_that_are_not_the_lowest_bits(
    tmp_path: Path,
    open_slide: Opener,
    syntax: syntaxes.UID,
    encode: Callable[[Array], bytes],
    high_bit: int,
    read: bool,
) -> None:
    """They are refused (PS3.5 8.1.1); a code stream knows its depth, and what cannot be is not believed."""
    slide, image = new_slide(tmp_path), gray(12)
    ds = blank(slide, content="mono16")
    ds.BitsStored, ds.HighBit = 12, high_bit
    shift = 0 if read else high_bit - 11
    store(slide, ds, [encode(tile << shift) for _, _, tile in _tiles(image, TILE)], syntax=syntax)
    opened = open_slide(slide)
    if read:
        np.testing.assert_array_equal(opened.read_region(0, 0, 0, *SIZE), image)
    else:
        with pytest.raises(UnsupportedError, match=f"HighBit is {high_bit}"):
            opened.read_region(0, 0, 0, *SIZE)


def palette(entries: int, first: int, bits: int) -> tuple[dict[str, Any], Array]:
    """Return the attributes of a palette without order, and its colours as 8-bit RGB."""
    position = np.arange(entries)
    tables = np.stack([position * 37, position * 11 + 90, 255 - position * 5], axis=1) % 256
    words = tables * 257 if bits == 16 else tables
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for column, colour in enumerate(("Red", "Green", "Blue")):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [entries % 65536, first, bits]
        data = words[:, column].astype("<u2" if bits == 16 else "u1").tobytes()
        attributes[f"{colour}PaletteColorLookupTableData"] = data
    return attributes, tables.astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "entries", "first", "bits"),
    [
        (gray(8), 256, 0, 16),
        (gray(8), 256, 0, 8),
        (gray(8), 100, 0, 16),
        (gray(8), 60, 77, 16),
        (gray(8), 60, 77, 8),
        (gray(12), 4096, 0, 16),
        (gray(16), 65536, 0, 16),
    ],
)
@pytest.mark.parametrize("syntax", [NATIVE, syntaxes.RLELossless, syntaxes.JPEG2000Lossless])
def test_palette(
    tmp_path: Path, open_slide: Opener, image: Array, entries: int, first: int, bits: int, syntax: syntaxes.UID
) -> None:
    """Below the first index stands its colour, above the last index the last one's (PS3.3 C.7.6.3.1.5)."""
    attributes, table = palette(entries, first, bits)
    if image.dtype == np.uint16:
        attributes["BitsStored"] = 12 if entries == 4096 else 16

    def shown(tile: Array, data: bytes) -> Array:
        return np.asarray(table[np.clip(tile.astype(int) - first, 0, entries - 1)])

    encode = {NATIVE: raw, syntaxes.RLELossless: rle}.get(syntax, jpeg_2000)
    slide = write_kind(tmp_path, PixelKind(syntax, image, encode, shown, attributes))
    assert_reads(open_slide(slide), slide)


def test_segmented_palette(tmp_path: Path, open_slide: Opener) -> None:
    """Discrete values, a ramp, and both again by reference (PS3.3 C.7.9.2)."""
    discrete = [0, 2, 10, 65535]
    ramp = [1, 100, 1535]  # from 65535 in 100 steps of -640
    again = [2, 2, 0, 0]
    words = [*discrete, *ramp, *again, 1, 52, 65535]
    table = [10, 65535, *(65535 - 640 * step for step in range(1, 101))]
    table = [*table, *table]
    table += [round(1535 + 64000 * step / 52) for step in range(1, 53)]
    assert len(table) == 256
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        attributes[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(words, "<u2").tobytes()

    def shown(tile: Array, data: bytes) -> Array:
        return np.repeat((np.array(table)[tile] >> 8).astype(np.uint8)[..., None], 3, axis=2)

    slide = write_kind(tmp_path, PixelKind(NATIVE, gray(8), raw, shown, attributes))
    assert_reads(open_slide(slide), slide, tolerance=1)


@pytest.mark.parametrize("name", ["spring", "summer", "fall", "winter"])
def test_well_known_palettes(tmp_path: Path, open_slide: Opener, name: str) -> None:
    """Their segments are of bytes, for entries of 8 bits (PS3.6 B.1)."""
    (path,) = (path for path in get_palette_files("*.dcm") if Path(path).stem == name)
    known = pydicom.dcmread(path)
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for keyword in known.dir("PaletteColorLookupTableD"):
        attributes[keyword] = known[keyword].value

    def shown(tile: Array, data: bytes) -> Array:
        return np.asarray(apply_color_lut(tile, palette=known.SOPInstanceUID)[..., :3])

    slide = write_kind(tmp_path, PixelKind(NATIVE, gray(8), raw, shown, attributes))
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize(("dtype", "offset"), [("u1", [3, 0, 0, 0]), ("<u2", [6, 0])])
def test_segmented_palette_of_8_bits(tmp_path: Path, open_slide: Opener, dtype: str, offset: list[int]) -> None:
    """Segments of bytes, or of words for all that: what they expand to tells. Offsets have 32 bits, and count bytes."""
    segments = [0, 1, 9, *[1, 100, 109], *[0, 2, 4, 250], *[2, 1, *offset], 0, 53, *range(53)]
    ramp = list(range(10, 110))
    again = [round(250 + (109 - 250) * step / 100) for step in range(1, 101)]
    table = np.array([9, *ramp, 4, 250, *again, *range(53)], np.uint8)
    assert len(table) == 256
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    data = np.array(segments, dtype).tobytes()
    for colour in ("Red", "Green", "Blue"):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        attributes[f"Segmented{colour}PaletteColorLookupTableData"] = data + b"\0" * (len(data) % 2)

    def shown(tile: Array, data: bytes) -> Array:
        return np.repeat(table[tile][..., None], 3, axis=2)

    slide = write_kind(tmp_path, PixelKind(NATIVE, gray(8), raw, shown, attributes))
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("syntax", [NATIVE, syntaxes.ExplicitVRBigEndian, syntaxes.RLELossless])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planar_configuration_1(tmp_path: Path, open_slide: Opener, syntax: syntaxes.UID, dtype: Any) -> None:
    """One plane after the other in each frame. Of RLE it says nothing: that is always so."""
    wide = dtype == np.uint16

    def encode(tile: Array) -> bytes:
        if syntax == syntaxes.RLELossless:
            return rle(tile)
        planes = np.ascontiguousarray(tile.transpose(2, 0, 1))
        return raw_big_endian(planes) if syntax == syntaxes.ExplicitVRBigEndian else raw(planes)

    def shown(tile: Array, data: bytes) -> Array:
        return np.asarray(tile >> 8, np.uint8) if wide else as_it_was(tile, data)

    image = RGB.astype(np.uint16) * 251 if wide else RGB
    slide = write_kind(tmp_path, PixelKind(syntax, image, encode, shown, {"PlanarConfiguration": 1}))
    assert_reads(open_slide(slide), slide)
