"""The demo slide's label, overview and thumbnail: single frames beside the pyramid (PS3.3 C.8.12.4.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsiweb.demo.file import EncapsulatedFile, write_native
from wsiweb.demo.header import GLASS_MM, Picture
from wsiweb.demo.pyramid import encode_jpeg
from wsiweb.demo.texture import GLASS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from PIL.Image import Image

    from wsiweb.demo.header import Uids

THUMBNAIL_SIDE = 768
"""Longer side of the thumbnail in pixels, where the slide is not smaller."""
LABEL_SIZE, LABEL_MPP, LABEL_CORNER_MM = (560, 600), 40.0, (1.5, 1.0)
OVERVIEW_MPP = 25.0
PAPER, INK, TABLE = (250, 249, 244), (40, 40, 46), (222, 221, 224)
LABEL_LINES = ((110, "wsiweb"), (70, "demo slide"), (46, "Synthetic tissue"), (46, "H&E colours"), (46, "No patient"))
"""Height in pixels and text of each line of the label."""


def plan_associated(levels: list[Picture]) -> dict[str, Picture]:
    """Return the pictures that go with these levels, by name."""
    base = levels[0]
    scale = min(THUMBNAIL_SIDE / max(base.size), 1)
    # JPEG halves the chroma across, so that columns come in pairs.
    thumbnail_size = 2 * round(base.size[0] * scale / 2), round(base.size[1] * scale)
    thumbnail_mpp = tuple(
        pixels * mpp / small for pixels, mpp, small in zip(base.size, base.mpp, thumbnail_size, strict=True)
    )
    overview_size = round(GLASS_MM[0] * 1000 / OVERVIEW_MPP), round(GLASS_MM[1] * 1000 / OVERVIEW_MPP)
    number = len(levels)
    pictures = (
        Picture(
            name="thumbnail",
            number=number + 1,
            flavour="THUMBNAIL",
            size=thumbnail_size,
            tile_size=thumbnail_size,
            mpp=(thumbnail_mpp[0], thumbnail_mpp[1]),
            corner_mm=base.corner_mm,
            derived=True,
        ),
        Picture(
            name="label",
            number=number + 2,
            flavour="LABEL",
            size=LABEL_SIZE,
            tile_size=LABEL_SIZE,
            mpp=(LABEL_MPP, LABEL_MPP),
            corner_mm=LABEL_CORNER_MM,
            compressed=False,
        ),
        Picture(
            name="overview",
            number=number + 3,
            flavour="OVERVIEW",
            size=overview_size,
            tile_size=overview_size,
            mpp=(OVERVIEW_MPP, OVERVIEW_MPP),
            corner_mm=(0.0, 0.0),
        ),
    )
    return {picture.name: picture for picture in pictures}


def write_associated(
    folder: Path, pictures: dict[str, Picture], uids: Uids, kept: npt.NDArray[np.uint8], quality: int
) -> None:
    """Write the files of the pictures; ``kept`` shows the whole of the tissue."""
    from PIL import Image  # noqa: PLC0415  (only the demo needs it here)

    tissue = Image.fromarray(kept)
    label = _draw_label()
    thumbnail = tissue.resize(pictures["thumbnail"].size, Image.Resampling.BOX)
    overview = _draw_overview(pictures, label, tissue)
    write_native(folder / pictures["label"].file_name, pictures["label"], uids, label.tobytes())
    for name, image in (("thumbnail", thumbnail), ("overview", overview)):
        with EncapsulatedFile(folder / pictures[name].file_name, pictures[name], uids) as file:
            file.write(encode_jpeg(np.asarray(image), quality))


def _draw_label() -> Image:
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415  (only the demo needs it here)

    label = Image.new("RGB", LABEL_SIZE, PAPER)
    draw = ImageDraw.Draw(label)
    draw.rectangle((8, 8, LABEL_SIZE[0] - 9, LABEL_SIZE[1] - 9), outline=INK, width=3)
    y = 40
    for height, text in LABEL_LINES:
        draw.text((48, y), text, INK, ImageFont.load_default(height))
        y += round(1.5 * height)
    return label


def _draw_overview(pictures: dict[str, Picture], label: Image, tissue: Image) -> Image:
    """Return the whole glass with the label and the tissue where the other pictures say that they are."""
    from PIL import Image, ImageDraw  # noqa: PLC0415  (only the demo needs it here)

    overview = Image.new("RGB", pictures["overview"].size, GLASS)
    w, h = overview.size
    draw = ImageDraw.Draw(overview)
    draw.rectangle((0, 0, h, h), fill=TABLE)  # the frosted end, about as long as the glass is wide
    draw.rectangle((0, 0, w - 1, h - 1), outline=INK, width=2)
    for picture, image in ((pictures["label"], label), (pictures["thumbnail"], tissue)):
        size = [max(round(n * mpp / OVERVIEW_MPP), 1) for n, mpp in zip(picture.size, picture.mpp, strict=True)]
        corner = [round(mm * 1000 / OVERVIEW_MPP) for mm in picture.corner_mm]
        overview.paste(image.resize((size[0], size[1]), Image.Resampling.BOX), (corner[0], corner[1]))
    return overview
