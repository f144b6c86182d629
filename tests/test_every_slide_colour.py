"""Colour: the code stream decides, then the part's media type, then the metadata; from files and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom.uid as syntaxes
import pytest
from dicomweb_server import DICOMwebServer
from kinds_jpeg import silent, with_adobe, with_ids
from kinds_pixels import (
    RGB,
    SMOOTH,
    PixelKind,
    as_it_was,
    by_pillow,
    htj2k,
    jpeg,
    jpeg_2000,
    jpeg_ls,
    raw,
    rle,
    write_kind,
)
from kinds_writer import KEY, assert_reads
from PIL import Image

from wsiweb import Slide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array

BASELINE, NATIVE = syntaxes.JPEGBaseline8Bit, syntaxes.ExplicitVRLittleEndian
LOSSLESS_2000 = syntaxes.JPEG2000Lossless


def true_rgb(tile: Array) -> bytes:
    """RGB components, with APP14 that says so, and named R, G, B."""
    return jpeg(tile, colorspace="RGB", outcolorspace="RGB")


def ycbcr(tile: Array) -> bytes:
    """YCbCr components of full size, with JFIF."""
    return jpeg(tile, subsampling="444")


def subsampled(tile: Array) -> bytes:
    return jpeg(tile, subsampling="422")


def to_ycbcr(tile: Array) -> Array:
    return np.asarray(Image.fromarray(np.ascontiguousarray(tile)).convert("YCbCr"))


def and_back(tile: Array) -> Array:
    bands = [Image.fromarray(np.ascontiguousarray(tile[..., n])) for n in range(3)]
    return np.asarray(Image.merge("YCbCr", bands).convert("RGB"))


def unedited(data: bytes) -> bytes:
    return data


JPEGS: dict[str, tuple[Callable[[Array], bytes], Callable[[bytes], bytes], str]] = {
    # what is encoded and rightly marked; how the marks are changed; what the metadata declare
    "YCbCr declared RGB": (ycbcr, unedited, "RGB"),
    "YCbCr 4:2:2 declared RGB": (subsampled, unedited, "RGB"),
    "RGB declared YBR_FULL_422": (true_rgb, unedited, "YBR_FULL_422"),
    "RGB declared RGB": (true_rgb, unedited, "RGB"),
    "APP14 after SOF: RGB": (
        true_rgb,
        lambda data: with_ids(with_adobe(data, 0, late=True), b"\1\2\3"),
        "YBR_FULL_422",
    ),
    "APP14 after SOF: YCbCr": (ycbcr, lambda data: with_adobe(silent(data), 1, late=True), "RGB"),
    "APP14 says RGB, JFIF is there": (true_rgb, lambda data: with_ids(jfif_too(data), b"\1\2\3"), "YBR_FULL_422"),
    "RGB by the names of components": (true_rgb, silent, "YBR_FULL_422"),
    "RGB unmarked, ids 1 2 3": (true_rgb, lambda data: with_ids(silent(data), b"\1\2\3"), "RGB"),
    "RGB unmarked, ids 0 1 2": (true_rgb, lambda data: with_ids(silent(data), b"\0\1\2"), "RGB"),
    "YCbCr unmarked, declared so": (ycbcr, silent, "YBR_FULL"),
    "YCbCr unmarked, declared YBR_FULL_422": (ycbcr, lambda data: with_ids(silent(data), b"\0\1\2"), "YBR_FULL_422"),
    "YCbCr unmarked but for its subsampling": (subsampled, silent, "RGB"),
    "YCbCr with JFIF and ids 0 1 2": (ycbcr, lambda data: with_ids(data, b"\0\1\2"), "RGB"),
}


def jfif_too(data: bytes) -> bytes:
    """Put JFIF in front of APP14, as some encoders do for RGB."""
    return data[:2] + b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + data[2:]


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg(tmp_path: Path, open_slide: Opener, name: str) -> None:
    marked, edit, declared = JPEGS[name]

    def encode(tile: Array) -> bytes:
        return edit(marked(tile))

    def shown(tile: Array, data: bytes) -> Array:
        return by_pillow(tile, marked(tile))

    kind = PixelKind(BASELINE, SMOOTH, encode, shown, {"PhotometricInterpretation": declared})
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide), slide, tolerance=2)


@pytest.mark.parametrize("stored", [true_rgb, ycbcr])
def test_photometric_overrules_code_stream_and_metadata(
    tmp_path: Path, open_slide: Opener, stored: Callable[[Array], bytes]
) -> None:
    """The way out of streams whose own marks lie: APP14 says the opposite of what is there."""

    def encode(tile: Array) -> bytes:
        return with_adobe(with_ids(silent(stored(tile)), b"\1\2\3"), 1 if stored is true_rgb else 0)

    def shown(tile: Array, data: bytes) -> Array:
        return by_pillow(tile, stored(tile))

    declared, truth = ("YBR_FULL_422", "RGB") if stored is true_rgb else ("RGB", "YBR_FULL_422")
    kind = PixelKind(BASELINE, SMOOTH, encode, shown, {"PhotometricInterpretation": declared})
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide, photometric=truth), slide, tolerance=2)
    wrong = open_slide(slide).read_region(0, 0, 0, 60, 40)
    assert np.abs(wrong.astype(int) - slide.truth(0, 0, 0, 60, 40)).max() > 50


@pytest.mark.parametrize(
    ("mct", "declared", "as_stored"),
    [
        (True, "YBR_RCT", True),
        (True, "YBR_ICT", True),
        (True, "RGB", True),
        (True, "YBR_FULL_422", True),
        (True, "YBR_FULL", True),
        (False, "RGB", True),
        (False, "YBR_RCT", True),
        (False, "YBR_FULL", False),
        (False, "YBR_FULL_422", False),
    ],
)
def test_jpeg_2000(tmp_path: Path, open_slide: Opener, mct: bool, declared: str, as_stored: bool) -> None:
    """With the multiple component transform the decoder returns RGB, whatever is declared; without, components."""

    def encode(tile: Array) -> bytes:
        return jpeg_2000(tile if as_stored else to_ycbcr(tile), mct=mct)

    def shown(tile: Array, data: bytes) -> Array:
        return tile if as_stored else and_back(to_ycbcr(tile))

    kind = PixelKind(LOSSLESS_2000, RGB, encode, shown, {"PhotometricInterpretation": declared})
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide), slide, tolerance=0 if as_stored else 1)


def test_jpeg_2000_overruled(tmp_path: Path, open_slide: Opener) -> None:
    """YCbCr components declared YBR_ICT without the transform: the slides of openslide #772."""

    def shown(tile: Array, data: bytes) -> Array:
        return and_back(to_ycbcr(tile))

    kind = PixelKind(
        LOSSLESS_2000,
        RGB,
        lambda tile: jpeg_2000(to_ycbcr(tile), mct=False),
        shown,
        {"PhotometricInterpretation": "YBR_ICT"},
    )
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide, photometric="YBR_FULL"), slide, tolerance=1)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(NATIVE, raw), (syntaxes.RLELossless, rle), (syntaxes.JPEGLSLossless, jpeg_ls)],
    ids=["native", "RLE", "JPEG-LS"],
)
@pytest.mark.parametrize("planar", [0, 1])
def test_ybr_full(
    tmp_path: Path, open_slide: Opener, syntax: syntaxes.UID, encode: Callable[[Array], bytes], planar: int
) -> None:
    def in_ycbcr(tile: Array) -> bytes:
        components = to_ycbcr(tile)
        return raw(components.transpose(2, 0, 1)) if planar and syntax == NATIVE else encode(components)

    def shown(tile: Array, data: bytes) -> Array:
        return and_back(to_ycbcr(tile))

    attributes = {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": planar}
    slide = write_kind(tmp_path, PixelKind(syntax, RGB, in_ycbcr, shown, attributes))
    assert_reads(open_slide(slide), slide, tolerance=1)


@pytest.mark.parametrize("syntax", [NATIVE, syntaxes.ImplicitVRLittleEndian, syntaxes.DeflatedExplicitVRLittleEndian])
def test_native_ybr_full_422(tmp_path: Path, open_slide: Opener, syntax: syntaxes.UID) -> None:
    """Y Y Cb Cr for two pixels (PS3.3 C.7.6.3.1.2)."""

    def halved(tile: Array) -> Array:
        components = to_ycbcr(tile).copy()
        components[:, 1::2, 1:] = components[:, ::2, 1:]
        return components

    def encode(tile: Array) -> bytes:
        components = halved(tile)
        quads = [components[:, ::2, 0], components[:, 1::2, 0], components[:, ::2, 1], components[:, ::2, 2]]
        return raw(np.stack(quads, axis=-1))

    def shown(tile: Array, data: bytes) -> Array:
        return and_back(halved(tile))

    kind = PixelKind(syntax, SMOOTH, encode, shown, {"PhotometricInterpretation": "YBR_FULL_422"})
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide), slide, tolerance=1)


@pytest.mark.parametrize(
    ("syntax", "encode", "declared"),
    [
        (BASELINE, jpeg, "YBR_FULL_422"),
        (BASELINE, jpeg, "RGB"),
        (LOSSLESS_2000, jpeg_2000, "YBR_RCT"),
        (LOSSLESS_2000, jpeg_2000, "YBR_FULL_422"),
        (syntaxes.HTJ2KLossless, htj2k, "RGB"),
        (syntaxes.JPEGLSLossless, jpeg_ls, "RGB"),
    ],
)
def test_gray_frames_in_a_colour_level(
    tmp_path: Path, open_slide: Opener, syntax: syntaxes.UID, encode: Callable[[Array], bytes], declared: str
) -> None:
    """Every other tile is gray; its three samples are the same."""
    count, is_gray = iter(range(100)), {}

    def mixed(tile: Array) -> bytes:
        gray = next(count) % 2 == 1
        data = encode(tile[..., 0] if gray else tile)
        is_gray[data] = gray
        return data

    def shown(tile: Array, data: bytes) -> Array:
        if syntax == BASELINE:
            return by_pillow(tile, data)
        return np.repeat(tile[..., :1], 3, axis=2) if is_gray[data] else tile

    kind = PixelKind(syntax, SMOOTH, mixed, shown, {"PhotometricInterpretation": declared})
    slide = write_kind(tmp_path, kind)
    assert_reads(open_slide(slide), slide, tolerance=2)


def test_raw_pixels_that_begin_like_a_code_stream(tmp_path: Path, open_slide: Opener) -> None:
    image = RGB.copy()
    image[:, ::64] = image[::48] = (0xFF, 0xD8, 0xFF)
    slide = write_kind(tmp_path, PixelKind(NATIVE, image, raw, as_it_was))
    assert_reads(open_slide(slide), slide)


# Servers that send something else than what is stored -------------------------------------------------


def sent_otherwise(folder: Path, kind: PixelKind, sent: PixelKind, *, stated: bool) -> tuple[DICOMwebServer, Any]:
    """Return a server that has one kind, says so in its metadata where ``stated``, and sends another."""
    slide, other = write_kind(folder / "stored", kind), write_kind(folder / "sent", sent)
    server, reencoded = DICOMwebServer(slide.folder), DICOMwebServer(other.folder)
    instance = server.instances[0]
    instance.frames = reencoded.instances[0].frames
    instance.transfer_syntax = reencoded.instances[0].transfer_syntax
    if stated:
        instance.metadata["00083002"] = {"vr": "UI", "Value": [str(kind.syntax)]}
    instance.metadata["00282110"] = {"vr": "CS", "Value": ["01"]}
    slide.levels[0].pixels[KEY] = other.levels[0].pixels[KEY]
    reencoded._http.server_close()
    return server, slide


@pytest.mark.parametrize(
    ("declared", "stated"), [("YBR_FULL_422", True), ("YBR_FULL_422", False), ("RGB", True), ("YBR_FULL", True)]
)
@pytest.mark.parametrize(
    "sent",
    [
        PixelKind(NATIVE, SMOOTH, raw),
        PixelKind(syntaxes.RLELossless, SMOOTH, rle),
        PixelKind(LOSSLESS_2000, SMOOTH, jpeg_2000),
        PixelKind(BASELINE, SMOOTH, true_rgb, by_pillow),
        PixelKind(syntaxes.JPEGLSLossless, SMOOTH, jpeg_ls),
    ],
    ids=["raw", "RLE", "JPEG 2000", "JPEG", "JPEG-LS"],
)
def test_a_server_that_transcodes(tmp_path: Path, sent: PixelKind, stated: bool, declared: str) -> None:
    """Stored JPEG in YCbCr; what is sent is RGB, and says so in its code stream or by its media type."""
    encode = ycbcr if declared == "YBR_FULL" else subsampled
    stored = PixelKind(BASELINE, SMOOTH, encode, by_pillow, {"PhotometricInterpretation": declared})
    server, slide = sent_otherwise(tmp_path, stored, sent, stated=stated)
    with server, Slide.open(server.series_url(slide.study_uid, slide.series_uid)) as opened:
        assert_reads(opened, slide, tolerance=2)
