"""The code streams of ``wsidicom-data``, made by other encoders than the tests' own; from files and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom.uid as syntaxes
import pytest
from kinds_writer import blank, new_slide, store
from PIL import Image

if TYPE_CHECKING:
    from conftest import Opener
    from synthetic import Array, Content

wsidicom_data: Any = pytest.importorskip("wsidicom_data")
FOLDER = Path(wsidicom_data.__file__).parent / "data"
SYNTAXES = {
    "Explicit_VR_Big_Endian": syntaxes.ExplicitVRBigEndian,
    "Explicit_VR_Little_Endian": syntaxes.ExplicitVRLittleEndian,
    "Implicit_VR_Little_Endian": syntaxes.ImplicitVRLittleEndian,
    "JPEG-LS_Lossless_Image_Compression": syntaxes.JPEGLSLossless,
    "JPEG-LS_Lossy_(Near-Lossless)_Image_Compression": syntaxes.JPEGLSNearLossless,
    "JPEG_2000_Image_Compression": syntaxes.JPEG2000,
    "JPEG_2000_Image_Compression_(Lossless_Only)": syntaxes.JPEG2000Lossless,
    "JPEG_Baseline_(Process_1)": syntaxes.JPEGBaseline8Bit,
    "JPEG_Extended_(Process_2_and_4)": syntaxes.JPEGExtended12Bit,
    "JPEG_Lossless,_Non-Hierarchical_(Process_14)": syntaxes.JPEGLossless,
    "RLE_Lossless": syntaxes.RLELossless,
}
LOSSY = (syntaxes.JPEGLSNearLossless, syntaxes.JPEG2000, syntaxes.JPEGBaseline8Bit, syntaxes.JPEGExtended12Bit)
FILES = sorted((FOLDER / "encoded").iterdir())


def expected_picture(channels: str, bits: int) -> Array:
    """Return the tile that all of them were made from, in so many bits."""
    picture = Image.open(FOLDER / "test_tile.png").convert("RGB")
    if channels in ("RGB", "YBR"):
        return np.asarray(picture)
    gray = np.asarray(picture.convert("L"))
    return gray if bits == 8 else gray.astype(np.uint16) << (bits - 8)


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_stream(tmp_path: Path, open_slide: Opener, file: Path) -> None:
    name, channels, bits_text = file.stem.rsplit("-", 2)
    bits, data = int(bits_text), file.read_bytes()
    expected = expected_picture(channels, bits)
    syntax = SYNTAXES[name]
    slide = new_slide(tmp_path)
    size = expected.shape[1], expected.shape[0]
    content: Content = "rgb" if expected.ndim == 3 else "mono8" if bits == 8 else "mono16"
    ds = blank(slide, size, tile_size=size, content=content)
    ds.BitsStored, ds.HighBit = bits, bits - 1
    if channels == "YBR":
        jpeg_2000 = {syntaxes.JPEG2000: "YBR_ICT", syntaxes.JPEG2000Lossless: "YBR_RCT"}
        ds.PhotometricInterpretation = jpeg_2000.get(syntax, "YBR_FULL_422")
    store(slide, ds, [data], syntax=syntax)
    image = open_slide(slide).read_region(0, 0, 0, *size)
    assert image.dtype == expected.dtype
    assert image.shape == expected.shape
    difference = np.abs(image.astype(int) - expected) / (1 << max(bits - 8, 0))
    exact = syntax not in LOSSY and channels != "YBR"
    assert difference.mean() <= (0 if exact else 4)
