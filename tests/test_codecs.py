"""``decode``: every encoding against another decoder or the picture itself; damaged bytes never become an array."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pydicom.uid as syntaxes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds_jpeg import APP14, SOF0, join, silent, split, with_adobe, with_ids, with_size
from kinds_pixels import HTJ2K, gray, htj2k, jpeg, jpeg_2000, jpeg_ls, jpeg_xl, raw, raw_big_endian, rle
from kinds_writer import YOUNG
from PIL import Image
from pydicom.pixels.processing import convert_color_space
from synthetic import pattern

from wsiweb import decoders
from wsiweb.codecs import FrameDecoder, TruncatedFrameError, decode
from wsiweb.codestream import Coding, complete, inspect
from wsiweb.errors import DecodeError, UnsupportedError
from wsiweb.metadata import PixelFormat
from wsiweb.palette import Palette
from wsiweb.sources.base import EncodedFrame

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthetic import Array

    Encoder = Callable[[Array], bytes]

wsidicom_data: Any = pytest.importorskip("wsidicom_data")
STREAMS = sorted((Path(wsidicom_data.__file__).parent / "data" / "encoded").iterdir())
SYNTAX_OF = {
    "Explicit VR Big Endian": syntaxes.ExplicitVRBigEndian,
    "Explicit VR Little Endian": syntaxes.ExplicitVRLittleEndian,
    "Implicit VR Little Endian": syntaxes.ImplicitVRLittleEndian,
    "JPEG Baseline (Process 1)": syntaxes.JPEGBaseline8Bit,
    "JPEG Extended (Process 2 and 4)": syntaxes.JPEGExtended12Bit,
    "JPEG Lossless, Non-Hierarchical (Process 14)": syntaxes.JPEGLossless,
    "JPEG-LS Lossless Image Compression": syntaxes.JPEGLSLossless,
    "JPEG-LS Lossy (Near-Lossless) Image Compression": syntaxes.JPEGLSNearLossless,
    "JPEG 2000 Image Compression": syntaxes.JPEG2000,
    "JPEG 2000 Image Compression (Lossless Only)": syntaxes.JPEG2000Lossless,
    "RLE Lossless": syntaxes.RLELossless,
}
WIDTH, HEIGHT = 37, 29
RGB = pattern("rgb", WIDTH, HEIGHT, salt=3)
GRAY8, GRAY16 = (np.ascontiguousarray(gray(bits)[:HEIGHT, :WIDTH]) for bits in (8, 16))
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.asarray(np.stack([_X * 6, _Y * 8, 255 - _X * 3 - _Y * 4], axis=-1), np.uint8)
"""Red and blue differ: taken for YCbCr, or the reverse, it looks like another picture."""
SMOOTH_SIDES = HEIGHT.to_bytes(2, "big") + WIDTH.to_bytes(2, "big")
"""As a JPEG states them."""


def jpeg_lossless(tile: Array) -> bytes:
    return jpeg(tile, lossless=True)


def jpeg_2000_boxed(tile: Array) -> bytes:
    return jpeg_2000(tile, codecformat="jp2")


def jpeg_xl_boxed(tile: Array) -> bytes:
    return jpeg_xl(tile, container=True)


LOSSLESS: dict[str, tuple[syntaxes.UID, Encoder]] = {
    "native": (syntaxes.ExplicitVRLittleEndian, raw),
    "big endian": (syntaxes.ExplicitVRBigEndian, raw_big_endian),
    "RLE": (syntaxes.RLELossless, rle),
    "JPEG lossless": (syntaxes.JPEGLosslessSV1, jpeg_lossless),
    "JPEG-LS": (syntaxes.JPEGLSLossless, jpeg_ls),
    "JPEG 2000": (syntaxes.JPEG2000Lossless, jpeg_2000),
    "JPEG 2000 with boxes": (syntaxes.JPEG2000Lossless, jpeg_2000_boxed),
    "HTJ2K": (HTJ2K[0], htj2k),
    "JPEG XL": (YOUNG[0], jpeg_xl),
    "JPEG XL with boxes": (YOUNG[2], jpeg_xl_boxed),
}
ENCODINGS: dict[str, tuple[syntaxes.UID, Encoder]] = {"JPEG": (syntaxes.JPEGBaseline8Bit, jpeg), **LOSSLESS}
WITH_SIZE = ["JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "JPEG 2000 with boxes", "HTJ2K"]
"""Encodings that state their size where it can be read before decoding."""


def described(image: Array, **changes: Any) -> PixelFormat:
    """Return what the metadata of an image say."""
    bits = 8 * image.dtype.itemsize
    colour = image.ndim == 3
    return PixelFormat(**{
        "rows": image.shape[0], "columns": image.shape[1], "samples_per_pixel": 3 if colour else 1,
        "bits_allocated": bits, "bits_stored": bits, "signed": False,
        "photometric": "RGB" if colour else "MONOCHROME2", "planar_configuration": 0, "lossy": False, **changes,
    })  # fmt: skip


def decoded(
    data: bytes,
    pixels: PixelFormat,
    syntax: str | None,
    *,
    visible: tuple[int, int] | None = None,
    sent_as: str | None = None,
    media_type: str | None = None,
) -> Array:
    """Decode, and check what every array has to be."""
    frame = EncodedFrame(1, data, media_type, sent_as)
    whole = pixels.columns, pixels.rows
    image = decode(frame, pixels, transfer_syntax_uid=syntax, visible=visible or whole)
    decoder = FrameDecoder(pixels, syntax)
    for _ in range(2):  # the second time by what it remembers of the first
        np.testing.assert_array_equal(decoder.decode(frame, visible or whole), image)
    assert image.dtype == pixels.dtype
    assert image.ndim == (3 if pixels.colour else 2)
    assert image.ndim == 2 or image.shape[2] == 3
    return image


def by_pillow(data: bytes, mode: str = "RGB") -> Array:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def off_by(image: Array, truth: Array) -> float:
    """Return the mean difference; 20 and more is another picture."""
    return float(np.abs(image.astype(int) - truth.astype(int)).mean())


# Every stream of wsidicom-data: one tile in 34 encodings ----------------------------------------------------


def the_tile(bits: int, channels: str) -> Array:
    picture = Image.open(STREAMS[0].parents[1] / "test_tile.png").convert("RGB")
    if channels != "GRAYSCALE":
        return np.asarray(picture)
    values = np.asarray(picture.convert("L"))
    return values if bits == 8 else values.astype(np.uint16) << (bits - 8)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_the_tile_in_every_encoding(path: Path) -> None:
    name, channels, bits = path.stem.rsplit("-", 2)
    syntax, data, truth = SYNTAX_OF[name.replace("_", " ")], path.read_bytes(), the_tile(int(bits), channels)
    multiple_component = {syntaxes.JPEG2000: "YBR_ICT", syntaxes.JPEG2000Lossless: "YBR_RCT"}
    photometric = {
        "RGB": "RGB", "GRAYSCALE": "MONOCHROME2", "YBR": multiple_component.get(syntax, "YBR_FULL"),
    }[channels]  # fmt: skip
    pixels = described(truth, bits_stored=int(bits), photometric=photometric)
    image = decoded(data, pixels, syntax, sent_as=syntax)
    assert image.shape == truth.shape
    if syntax in (syntaxes.JPEGBaseline8Bit, syntaxes.JPEG2000):
        if int(bits) == 8:
            assert np.abs(image.astype(int) - by_pillow(data, "RGB" if truth.ndim == 3 else "L")).max() <= 1
        assert off_by(image, truth) < (2 if int(bits) == 8 else 256)
    elif syntax == syntaxes.JPEGExtended12Bit:
        assert off_by(image, truth) < 16
    elif syntax == syntaxes.JPEGLSNearLossless or photometric == "YBR_FULL":
        assert np.abs(image.astype(int) - truth).max() <= (1 if channels != "YBR" else 3)
    else:
        np.testing.assert_array_equal(image, truth)


# What the tests encode themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("truth", [GRAY8, GRAY16, RGB], ids=["gray8", "gray16", "rgb"])
@pytest.mark.parametrize("padding", [b"", b"\0"], ids=["", "padded"])
def test_lossless_is_exact(name: str, truth: Array, padding: bytes) -> None:
    syntax, encode = LOSSLESS[name]
    if "boxes" in name and "XL" in name and padding:
        padding = b""  # a box of one byte is no box
    image = decoded(encode(truth) + padding, described(truth), syntax, sent_as=syntax)
    np.testing.assert_array_equal(image, truth)


def test_what_is_stored_as_big_endian_comes_as_little_endian() -> None:
    """Over the web, unless the frame says otherwise: it is what every server decodes to."""
    image = decoded(GRAY16.astype("<u2").tobytes(), described(GRAY16), syntaxes.ExplicitVRBigEndian)
    np.testing.assert_array_equal(image, GRAY16)


@pytest.mark.parametrize("name", ["JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K", "JPEG XL", "RLE"])
@pytest.mark.parametrize("claimed", [syntaxes.JPEGBaseline8Bit, None])
def test_the_bytes_decide(name: str, claimed: str | None) -> None:
    """Whatever the metadata say it is encoded with; RLE alone has no mark of its own, and is told by its type."""
    _, encode = LOSSLESS[name]
    media_type = "image/dicom-rle" if name == "RLE" else None
    np.testing.assert_array_equal(decoded(encode(RGB), described(RGB), claimed, media_type=media_type), RGB)


def test_what_came_with_the_frame_goes_before_the_metadata() -> None:
    big = raw_big_endian(GRAY16)
    image = decoded(big, described(GRAY16), syntaxes.ExplicitVRLittleEndian, sent_as=syntaxes.ExplicitVRBigEndian)
    np.testing.assert_array_equal(image, GRAY16)


def test_raw_pixels_may_look_like_a_code_stream() -> None:
    for magic in (b"\xff\xd8\xff\xe0", b"\xff\x4f\xff\x51", b"\xff\x0a"):
        truth = GRAY8.copy()
        truth.reshape(-1)[: len(magic)] = list(magic)
        np.testing.assert_array_equal(decoded(raw(truth), described(truth), syntaxes.ExplicitVRLittleEndian), truth)


def test_tiles_belong_to_the_caller_alone() -> None:
    data = bytearray(raw(GRAY8))
    image = decoded(bytes(data), described(GRAY8), syntaxes.ExplicitVRLittleEndian)
    np.testing.assert_array_equal(image, GRAY8)


@pytest.mark.parametrize("syntax", [syntaxes.ExplicitVRLittleEndian, None])
def test_planar_configuration(syntax: str | None) -> None:
    planar = np.ascontiguousarray(RGB.transpose(2, 0, 1)).tobytes()
    np.testing.assert_array_equal(decoded(planar, described(RGB, planar_configuration=1), syntax), RGB)


def test_native_ybr_is_converted_unless_a_server_decompressed_it() -> None:
    """Raw pixels of what is stored lossy are RGB already, whatever is declared."""
    ybr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    pixels = described(RGB, photometric="YBR_FULL")
    truth = convert_color_space(ybr, "YBR_FULL", "RGB")
    assert np.abs(decoded(raw(ybr), pixels, syntaxes.ExplicitVRLittleEndian).astype(int) - truth).max() <= 1
    for stored in (syntaxes.JPEGBaseline8Bit, None):
        sent = decoded(raw(RGB), described(RGB, photometric="YBR_FULL", lossy=True), stored)
        np.testing.assert_array_equal(sent, RGB)


# Colour: the code stream tells the truth --------------------------------------------------------------------

YCBCR, YCBCR_422, TRUE_RGB = (
    jpeg(SMOOTH, subsampling="444"),
    jpeg(SMOOTH, subsampling="422"),
    jpeg(SMOOTH, colorspace="RGB", outcolorspace="RGB", subsampling="444"),
)
NUMBERED = bytes([0, 1, 2])
JPEGS: dict[str, tuple[bytes, list[str]]] = {
    "RGB, APP14": (TRUE_RGB, ["RGB", "YBR_FULL_422"]),
    "RGB, APP14 after SOF0": (with_adobe(TRUE_RGB, 0, late=True), ["RGB", "YBR_FULL_422"]),
    "RGB, APP14 after SOF0, ids 0 1 2": (with_ids(with_adobe(TRUE_RGB, 0, late=True), NUMBERED), ["RGB", "YBR_FULL"]),
    "RGB, no APP14, ids R G B": (silent(TRUE_RGB), ["RGB", "YBR_FULL_422"]),
    "RGB, no APP14, ids 0 1 2": (with_ids(silent(TRUE_RGB), NUMBERED), ["RGB"]),  # Aperio
    "RGB, no APP14, ids 1 2 3": (with_ids(silent(TRUE_RGB), bytes([1, 2, 3])), ["RGB"]),
    "YCbCr, JFIF": (YCBCR, ["YBR_FULL_422", "RGB"]),
    "YCbCr, JFIF, ids 0 1 2": (with_ids(YCBCR, NUMBERED), ["YBR_FULL_422", "RGB"]),  # Hamamatsu
    "YCbCr, JFIF, ids R G B": (with_ids(YCBCR, b"RGB"), ["YBR_FULL_422", "RGB"]),
    "YCbCr, APP14": (with_adobe(silent(YCBCR), 1), ["YBR_FULL_422", "RGB"]),
    "YCbCr, subsampled, no mark": (silent(YCBCR_422), ["YBR_FULL_422", "RGB"]),  # wsi2dcm
    "YCbCr, no mark": (silent(YCBCR), ["YBR_FULL_422", "YBR_FULL"]),
}


@pytest.mark.parametrize(("name", "declared"), [(name, word) for name, (_, words) in JPEGS.items() for word in words])
def test_jpeg_colours(name: str, declared: str) -> None:
    image = decoded(JPEGS[name][0], described(SMOOTH, photometric=declared), syntaxes.JPEGBaseline8Bit)
    assert off_by(image, SMOOTH) < 5


def test_the_wrong_colours_would_show() -> None:
    data = with_ids(silent(TRUE_RGB), NUMBERED)
    image = decoded(data, described(SMOOTH, photometric="YBR_FULL_422"), syntaxes.JPEGBaseline8Bit)
    assert off_by(image, SMOOTH) > 20


@pytest.mark.parametrize(("data", "declared"), [(with_adobe(YCBCR, 0), "YBR_FULL"), (with_adobe(TRUE_RGB, 1), "RGB")])
def test_the_user_has_the_last_word(data: bytes, declared: str) -> None:
    """APP14 says the opposite of what is there."""
    believed = decoded(data, described(SMOOTH, photometric=declared), syntaxes.JPEGBaseline8Bit)
    forced = described(SMOOTH, photometric=declared, photometric_forced=True)
    assert off_by(believed, SMOOTH) > 20
    assert off_by(decoded(data, forced, syntaxes.JPEGBaseline8Bit), SMOOTH) < 5


@pytest.mark.parametrize(("mct", "declared", "stored"), [
    (True, "YBR_RCT", "RGB"),
    (True, "YBR_FULL_422", "RGB"),  # the decoder has undone it
    (True, "RGB", "RGB"),
    (False, "RGB", "RGB"),
    (False, "YBR_RCT", "RGB"),
    (False, "YBR_FULL", "YBR"),
    (False, "YBR_FULL_422", "YBR"),
])  # fmt: skip
def test_jpeg_2000_colours(mct: bool, declared: str, stored: str) -> None:
    components = SMOOTH if stored == "RGB" else np.asarray(Image.fromarray(SMOOTH).convert("YCbCr"))
    data = jpeg_2000(components, mct=mct)
    stream = inspect(data)
    assert stream is not None
    assert stream.colour_transformed == mct
    image = decoded(data, described(SMOOTH, photometric=declared), syntaxes.JPEG2000Lossless)
    assert np.abs(image.astype(int) - SMOOTH).max() <= (0 if stored == "RGB" else 3)


@pytest.mark.parametrize("name", ["native", "RLE", "JPEG-LS", "JPEG 2000"])
def test_ybr_of_more_than_8_bits(name: str) -> None:
    """It becomes 8 bits like all colour, and RGB."""
    ybr = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr"))
    syntax, encode = LOSSLESS[name]
    wide = ybr.astype(np.uint16) << 8 | 7
    data = jpeg_2000(wide, mct=False) if name == "JPEG 2000" else encode(wide)
    image = decoded(data, described(wide, photometric="YBR_FULL"), syntax)
    assert np.abs(image.astype(int) - convert_color_space(ybr, "YBR_FULL", "RGB")).max() <= 1


@pytest.mark.parametrize("name", [name for name in LOSSLESS if "JPEG XL" not in name])
def test_what_was_lossy_and_comes_without_loss_is_rgb(name: str) -> None:
    """The metadata do not tell what is stored, and declare what it was."""
    syntax, encode = LOSSLESS[name]
    pixels = described(SMOOTH, photometric="YBR_FULL_422", lossy=True)
    # Of the family of JPEG 2000, one that does not say so itself.
    data = jpeg_2000(SMOOTH, mct=False) if name in ("JPEG 2000", "HTJ2K") else encode(SMOOTH)
    np.testing.assert_array_equal(decoded(data, pixels, None, sent_as=syntax), SMOOTH)


def test_native_422_of_an_odd_number_of_columns() -> None:
    """There is no such thing (PS3.3 C.7.6.3.1.2)."""
    pixels = described(np.zeros((4, 5, 3), np.uint8), photometric="YBR_FULL_422")
    with pytest.raises(DecodeError, match="60 bytes"):
        decoded(bytes(40), pixels, syntaxes.ExplicitVRLittleEndian)


def test_gray_within_colour() -> None:
    pixels = described(RGB)
    for name in ("JPEG lossless", "JPEG 2000", "JPEG-LS", "JPEG XL"):
        syntax, encode = LOSSLESS[name]
        np.testing.assert_array_equal(decoded(encode(GRAY8), pixels, syntax), np.repeat(GRAY8[..., None], 3, axis=2))


# Depth, sign, inversion, palettes ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_monochrome_1_is_inverted(bits: int) -> None:
    truth = np.ascontiguousarray(gray(bits)[:HEIGHT, :WIDTH])
    pixels = described(truth, bits_stored=bits, photometric="MONOCHROME1")
    image = decoded(raw(truth), pixels, syntaxes.ExplicitVRLittleEndian)
    np.testing.assert_array_equal(image, (1 << bits) - 1 - truth.astype(int))


@pytest.mark.parametrize("name", ["native", "RLE"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_bits_above_those_stored_are_none_of_the_sample(name: str, photometric: str) -> None:
    """Overlays were kept there once (PS3.5 8.1.1)."""
    truth = np.ascontiguousarray(gray(12)[:HEIGHT, :WIDTH])
    syntax, encode = LOSSLESS[name]
    image = decoded(encode(truth | 0xA000), described(truth, bits_stored=12, photometric=photometric), syntax)
    np.testing.assert_array_equal(image, truth if photometric == "MONOCHROME2" else 4095 - truth)


def test_what_is_inverted_stays_in_range() -> None:
    """A code stream may hold more bits than the metadata say."""
    truth = np.ascontiguousarray(gray(16)[:HEIGHT, :WIDTH])
    pixels = described(truth, bits_stored=12, photometric="MONOCHROME1")
    image = decoded(jpeg_2000(truth), pixels, syntaxes.JPEG2000Lossless)
    np.testing.assert_array_equal(image, np.clip(4095 - truth.astype(int), 0, None))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_pixels_are_shifted_up(bits: int) -> None:
    low = 1 << (bits - 1)
    values = np.array([[-low, -1, 0, 1, low - 1]], "i1" if bits == 8 else "<i2")
    pixels = described(values, bits_stored=bits, signed=True)
    image = decoded(values.tobytes(), pixels, syntaxes.ExplicitVRLittleEndian)
    assert image.tolist() == [[0, low - 1, low, low + 1, 2 * low - 1]]


def test_wide_colour_becomes_8_bits() -> None:
    wide = RGB.astype(np.uint16) << 4 | 9
    pixels = described(wide, bits_stored=12)
    np.testing.assert_array_equal(decoded(raw(wide), pixels, syntaxes.ExplicitVRLittleEndian), RGB)


def test_palettes() -> None:
    """Indices below the first take the first colour, those above the last the last (PS3.3 C.7.6.3.1.5)."""
    palette = Palette(10, np.array([[1, 2, 3], [4, 5, 6], [250, 251, 252]], np.uint8))
    indices = np.array([[0, 10, 11, 12, 255]], np.uint8)
    pixels = described(indices, photometric="PALETTE COLOR", palette=palette)
    image = decoded(raw(indices), pixels, syntaxes.ExplicitVRLittleEndian)
    assert image[0, :, 0].tolist() == [1, 1, 4, 250, 250]
    assert image[0, 2].tolist() == [4, 5, 6]


# Sizes ------------------------------------------------------------------------------------------------------


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a decoder saw the bytes")

    monkeypatch.setattr(decoders, "_decoders", {})
    for name in ("jpeg8", "jpegls", "jpeg2k", "htj2k", "jpegxl", "dicomrle"):
        monkeypatch.setattr(imagecodecs, f"{name}_decode", called)


@pytest.mark.parametrize("name", WITH_SIZE)
@pytest.mark.parametrize("change", [{"rows": HEIGHT + 1}, {"columns": WIDTH + 1}, {"rows": HEIGHT - 1}, {"columns": 9}])
def test_another_size_is_refused_before_decoding(
    name: str, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    syntax, encode = ENCODINGS[name]
    data = encode(RGB)
    forbid_decoding(monkeypatch)
    with pytest.raises(DecodeError, match=rf"{WIDTH} x {HEIGHT} pixels, where the metadata say"):
        decoded(data, described(RGB, **change), syntax)


@pytest.mark.parametrize("name", ENCODINGS)
def test_another_size_is_refused(name: str) -> None:
    syntax, encode = ENCODINGS[name]
    for change in ({"rows": HEIGHT + 2}, {"columns": WIDTH - 1}):
        with pytest.raises(DecodeError):
            decoded(encode(RGB), described(RGB, **change), syntax)


@pytest.mark.parametrize("size", [(1, 1), (65_535, 65_535)])
def test_a_header_that_lies_about_its_size(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_decoding(monkeypatch)
    for data in (jpeg(RGB), jpeg_lossless(RGB), jpeg_ls(RGB)):
        with pytest.raises(DecodeError, match=f"{size[0]} x {size[1]} pixels"):
            decoded(with_size(data, *size), described(RGB), None)


BETWEEN_SEGMENTS = {"a stray byte": b"\0", "several": b"stray", "a stuffed FF": b"\xff\0", "fill bytes": b"\xff\xff"}


@pytest.mark.parametrize("between", BETWEEN_SEGMENTS.values(), ids=BETWEEN_SEGMENTS)
def test_bytes_between_the_segments_of_a_jpeg_hide_nothing(between: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """libjpeg skips them, and goes by the size and the colours that follow."""
    plain = with_ids(jpeg(SMOOTH, outcolorspace="RGB"), b"RGB")
    data = plain.replace(b"\xff\xc0", between + b"\xff\xc0", 1)
    assert inspect(data) == inspect(plain)
    np.testing.assert_array_equal(
        decoded(data, described(SMOOTH, photometric="YBR_FULL_422"), None), np.asarray(Image.open(io.BytesIO(data)))
    )
    forbid_decoding(monkeypatch)
    with pytest.raises(DecodeError, match="20000 x 20000 pixels"):
        decoded(data.replace(SMOOTH_SIDES, (20_000).to_bytes(2, "big") * 2), described(RGB), None)


@pytest.mark.parametrize("data", [
    jpeg(RGB).replace(b"\xff\xc0", b"\xff\xc8", 1), jpeg(RGB)[:2] + jpeg(RGB)[-2:], jpeg_xl(RGB)[:2] + b"\0" * 8,
], ids=["JPEG without a frame header", "JPEG of nothing", "JPEG XL cut short"])  # fmt: skip
def test_no_decoder_sees_what_does_not_tell_its_size(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_decoding(monkeypatch)
    with pytest.raises(TruncatedFrameError, match="size"):
        decoded(data, described(RGB), None)


@pytest.mark.parametrize("name", [*WITH_SIZE, "JPEG XL"])
def test_edge_tiles_may_be_cropped_to_what_shows(name: str) -> None:
    syntax, encode = ENCODINGS[name]
    data, whole = encode(RGB), described(RGB, rows=48, columns=64)
    assert decoded(data, whole, syntax, visible=(WIDTH, HEIGHT)).shape == (HEIGHT, WIDTH, 3)
    assert decoded(data, whole, syntax, visible=(WIDTH - 5, 1)).shape == (HEIGHT, WIDTH, 3)
    for visible in ((WIDTH + 1, HEIGHT), (WIDTH, HEIGHT + 1)):
        with pytest.raises(DecodeError):
            decoded(data, whole, syntax, visible=visible)


def test_colour_in_a_monochrome_level_is_refused() -> None:
    for name in ("JPEG", "JPEG 2000", "JPEG-LS", "JPEG XL"):
        syntax, encode = ENCODINGS[name]
        with pytest.raises(DecodeError, match="3 components, where the metadata say it is monochrome"):
            decoded(encode(RGB), described(GRAY8), syntax)


def test_more_bits_than_promised_are_refused() -> None:
    with pytest.raises(DecodeError, match="uint16, where the metadata say uint8"):
        decoded(jpeg_2000(GRAY16), described(GRAY8), syntaxes.JPEG2000Lossless)


@pytest.mark.parametrize("encode", [jpeg_2000, jpeg_ls])
@pytest.mark.parametrize("bits", [8, 12])
def test_more_bits_of_colour_than_promised_are_refused(encode: Encoder, bits: int) -> None:
    """Beyond them there is no brightest; taken modulo 256, bright would be dark."""
    for brightest in ((1 << bits) - 1, 1 << bits):
        deep = RGB.astype(np.uint16)
        deep[0, 0, 1] = brightest
        pixels = described(deep, bits_allocated=bits + 7 & ~7, bits_stored=bits)
        if brightest >> bits:
            with pytest.raises(DecodeError, match=f"more than the {bits} bits"):
                decoded(encode(deep), pixels, None)
        else:
            assert decoded(encode(deep), pixels, None)[0, 0, 1] == 255


# What is not read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"bits_allocated": 32}, {"bits_allocated": 1}, {"samples_per_pixel": 4}, {"samples_per_pixel": 2},
    {"photometric": "YBR_PARTIAL_422"}, {"photometric": "YBR_PARTIAL_420"},
], ids=repr)  # fmt: skip
def test_unsupported_pixels(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        decode(EncodedFrame(1, raw(RGB)), described(RGB, **change), transfer_syntax_uid=None, visible=(WIDTH, HEIGHT))


@pytest.mark.parametrize("error", [MemoryError("no room"), ImportError("no such codec")])
@pytest.mark.parametrize("name", [name for name in ENCODINGS if name not in ("native", "big endian")])
def test_what_is_not_the_frames_fault_is_not_said_to_be(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    syntax, encode = ENCODINGS[name]
    frame, pixels = EncodedFrame(1, encode(RGB), None, None), described(RGB)
    decoder = FrameDecoder(pixels, syntax)
    for known in (False, True):
        with monkeypatch.context() as patched:
            for codec in ("jpeg8", "jpegls", "jpeg2k", "jpegxl", "packbits"):
                patched.setitem(decoders._decoders, f"{codec}_decode", fail)
            with pytest.raises(type(error), match=str(error)):
                decoder.decode(frame, (WIDTH, HEIGHT))
        if not known:
            decoder.decode(frame, (WIDTH, HEIGHT))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3"])
def test_unsupported_syntaxes_are_named(syntax: str) -> None:
    with pytest.raises(UnsupportedError, match=syntax):
        decoded(b"\0\0\1\xb3 video", described(RGB), syntax)


def test_four_components() -> None:
    cmyk = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(cmyk, "CMYK").save(out, "JPEG")
    with pytest.raises(UnsupportedError, match="4 components"):
        decoded(out.getvalue(), described(RGB), syntaxes.JPEGBaseline8Bit)


# Damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("truth", [GRAY8, SMOOTH], ids=["gray", "rgb"])
def test_truncated_bytes_are_never_an_array(name: str, truth: Array) -> None:
    """Cut short, or filled up with zeros: native pixels and RLE alone can be zeros."""
    syntax, encode = ENCODINGS[name]
    data, pixels = encode(truth), described(truth)
    if name == "RLE":
        data = data.removesuffix(b"\0")  # a pad byte more or less is no matter
    ends = {0, 1, 2, 3, 4, *range(5, len(data), max(len(data) // 40, 1)), *range(max(len(data) - 12, 0), len(data))}
    for end in sorted(ends):
        with pytest.raises(TruncatedFrameError):
            decoded(data[:end], pixels, syntax)
        if name not in ("native", "big endian", "RLE"):
            with pytest.raises((DecodeError, UnsupportedError)):
                decoded(data[:end] + bytes(len(data) - end), pixels, syntax)


SILENT = silent(with_ids(jpeg(SMOOTH, outcolorspace="RGB"), bytes([1, 2, 3])))
VARIANTS: dict[str, EncodedFrame] = {
    "a JPEG": EncodedFrame(1, jpeg(SMOOTH)),
    "another with this head": EncodedFrame(2, jpeg(RGB)),
    "with a pad byte": EncodedFrame(3, jpeg(RGB) + b"\0"),
    "of another quality": EncodedFrame(4, jpeg(RGB, level=60)),
    "that says it is RGB": EncodedFrame(5, with_ids(jpeg(SMOOTH, outcolorspace="RGB"), b"RGB")),
    "cut short": EncodedFrame(6, jpeg(SMOOTH)[:-40]),
    "cut short and filled up": EncodedFrame(7, jpeg(SMOOTH)[:-40] + bytes(40)),
    "without a scan": EncodedFrame(8, jpeg(SMOOTH)[: jpeg(SMOOTH).index(b"\xff\xda")] + b"\xff\xd9"),
    "of another size": EncodedFrame(9, jpeg(SMOOTH[:-1])),
    "gray": EncodedFrame(10, jpeg(GRAY8)),
    "silent about its colours": EncodedFrame(11, SILENT),
    "silent, from who decompressed it": EncodedFrame(12, SILENT, None, syntaxes.ExplicitVRLittleEndian),
    "JPEG 2000": EncodedFrame(13, jpeg_2000(SMOOTH), "image/jp2", syntaxes.JPEG2000Lossless),
    "raw": EncodedFrame(14, raw(SMOOTH), None, syntaxes.ExplicitVRLittleEndian),
}


def outcome(decoding: Callable[[], Array]) -> Array | str:
    try:
        return decoding()
    except (DecodeError, UnsupportedError) as error:
        return repr(error)


@given(st.lists(st.sampled_from(sorted(VARIANTS)), min_size=2, max_size=12), st.sampled_from(["YBR_FULL_422", "RGB"]))
@settings(max_examples=150, deadline=None)
def test_what_is_known_of_other_frames_changes_nothing(names: list[str], photometric: str) -> None:
    pixels = described(SMOOTH, photometric=photometric, lossy=True)
    decoder, visible = FrameDecoder(pixels, syntaxes.JPEGBaseline8Bit), (WIDTH, HEIGHT)
    for frame in map(VARIANTS.__getitem__, names):
        found = outcome(lambda: decoder.decode(frame, visible))  # noqa: B023
        alone = outcome(
            lambda: decode(frame, pixels, transfer_syntax_uid=syntaxes.JPEGBaseline8Bit, visible=visible)  # noqa: B023
        )
        np.testing.assert_array_equal(found, alone)


def test_a_complete_stream_ends() -> None:
    for data in (jpeg(RGB), jpeg_ls(RGB), jpeg_2000(RGB), htj2k(RGB)):
        assert complete(data)
        assert complete(data + b"\0")
        assert complete(data + bytes(7))
        assert complete(data + b"\xff")
        assert complete(data + b" ")
        assert not complete(data[:-1] + b" ")
        assert not complete(data[:-1])
        assert not complete(data[:-2] + bytes(2))


@pytest.mark.parametrize("name", ENCODINGS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_mutated_bytes_are_an_image_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    """Sizes that change are refused before decoding, so that no test needs gigabytes."""
    syntax, encode = ENCODINGS[name]
    stream = bytearray(encode(RGB))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are where it hurts.
        position = data.draw(st.integers(0, min(80, len(stream) - 1)) | st.integers(0, len(stream) - 1))
        action = data.draw(st.sampled_from(["set", "cut", "insert", "double"]))
        if action == "set":
            stream[position] = data.draw(st.integers(0, 255) | st.sampled_from([0, 255]))
        elif action == "cut":
            del stream[position : position + data.draw(st.integers(1, 20))]
        elif action == "insert":
            stream[position:position] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            stream[position:position] = stream[position : position + data.draw(st.integers(1, 40))]
        if not stream:
            break
    try:
        image = decoded(bytes(stream), described(RGB), syntax)
    except (DecodeError, UnsupportedError):
        return
    assert image.shape == RGB.shape


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a"]), st.booleans()
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_bytes_are_an_error_of_ours(data: bytes, magic: bytes, rle_declared: bool) -> None:
    with pytest.raises((DecodeError, UnsupportedError)):
        decoded(magic + data, described(RGB), syntaxes.RLELossless if rle_declared else None)


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_header_can_be_inspected(data: bytes) -> None:
    for magic in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n\xff\x4f\xff\x51", b""):
        stream = inspect(magic + data)
        assert stream is not None or not magic


def test_what_code_streams_say_of_themselves() -> None:
    said = {
        name: (stream.coding, stream.width, stream.height, stream.components)
        for name in WITH_SIZE
        if (stream := inspect(ENCODINGS[name][1](RGB))) is not None
    }
    coding = {
        "JPEG": Coding.JPEG, "JPEG lossless": Coding.JPEG_LOSSLESS, "JPEG-LS": Coding.JPEG_LS,
        "JPEG 2000": Coding.JPEG_2000, "JPEG 2000 with boxes": Coding.JPEG_2000, "HTJ2K": Coding.JPEG_2000,
    }  # fmt: skip
    assert said == {name: (coding[name], WIDTH, HEIGHT, 3) for name in WITH_SIZE}
    assert {inspect(encode(RGB)) is None for encode in (raw, rle)} == {True}


def test_a_long_comment_in_a_jpeg_2000_is_not_its_size() -> None:
    """ITU-T T.800 A.9.2; as long as SIZ, which it follows."""
    plain = ENCODINGS["JPEG 2000"][1](RGB)
    behind = 4 + int.from_bytes(plain[4:6], "big")
    data = plain[:behind] + b"\xff\x64" + struct.pack(">HH", 64, 1) + bytes(60) + plain[behind:]
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(data), RGB)
    assert inspect(data) == inspect(plain)


SHAPES = [
    (60, 60),
    (72, 60),
    (80, 60),
    (90, 60),
    (160, 90),
    (75, 60),
    (120, 60),
    (61, 60),
    (300, 64),
    (64, 64),
    (3, 9000),
]
"""Those that a JPEG XL states by a ratio to the height, and others."""


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_the_size_of_a_jpeg_xl(width: int, height: int) -> None:
    """ISO/IEC 18181-1 D.2."""
    stream = inspect(jpeg_xl(np.zeros((height, width, 3), np.uint8)))
    assert stream is not None
    assert (stream.width, stream.height) == (width, height)


@pytest.mark.parametrize("cut", [0, 1, 2, 6, 13, 20])
def test_the_head_of_a_jpeg_xl_may_be_in_parts(cut: int) -> None:
    """ISO/IEC 18181-2 allows parts of any length."""
    whole = jpeg_xl(RGB)
    parts = struct.pack(">I", 0) + whole[:cut], struct.pack(">I", 1 | 1 << 31) + whole[cut:]
    boxes = b"".join(struct.pack(">I", 8 + len(part)) + b"jxlp" + part for part in parts)
    data = bytes.fromhex("0000000c4a584c200d0a870a 0000001466747970 6a786c20 00000000 6a786c20") + boxes
    np.testing.assert_array_equal(imagecodecs.jpegxl_decode(data), RGB)
    assert inspect(data) == inspect(whole)


def test_markers_of_the_test_are_where_they_should_be() -> None:
    """APP14 after SOF0, as wsidicomizer writes it."""
    markers = [marker for marker, _ in split(with_adobe(TRUE_RGB, 0, late=True))[0]]
    assert markers.index(APP14) > markers.index(SOF0)
    assert join(*split(TRUE_RGB)) == TRUE_RGB
