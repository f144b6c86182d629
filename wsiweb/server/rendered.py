"""Pictures for people (PS3.18 10.4.1.1.3): frames, instances and series as JPEG or PNG."""

from __future__ import annotations

import io
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import SlideNotFoundError
from wsiweb.server.accept import choose
from wsiweb.server.answer import Answer, HttpError
from wsiweb.server.decoded import flavor, frame_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from PIL.Image import Image

    from wsiweb.server.answer import Request
    from wsiweb.server.index import Index, StoredInstance

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}
JPEG_QUALITY = 90
THUMBNAIL_SIDE = 256
SLIDE_SIDE = 1024
MAX_SIDE = 8192


def frame(index: Index, request: Request, stored: StoredInstance, number: int) -> Answer:
    """Return a frame (1-based), fitted into the viewport where one is asked for."""
    return _picture(index, request, lambda viewport: _fit(_frame_image(stored, number), viewport))


def instance(index: Index, request: Request, stored: StoredInstance) -> Answer:
    """Return an image of one frame whole, a tiled label or overview put together, a level as a view of its slide."""
    if stored.number_of_frames == 1:
        return frame(index, request, stored, 1)
    series = index.select(stored.study_uid, stored.series_uid)
    return _overview(index, request, series, SLIDE_SIDE, stored)


def thumbnail(index: Index, request: Request, instances: Sequence[StoredInstance]) -> Answer:
    """Return a small picture of a series, or of the only instance given."""
    if len(instances) == 1 and instances[0].number_of_frames == 1:
        return _picture(
            index,
            request,
            lambda viewport: _fit(_frame_image(instances[0], 1), viewport or (THUMBNAIL_SIDE,) * 2, enlarge=False),
        )
    series = index.select(instances[0].study_uid, instances[0].series_uid)
    return _overview(index, request, series, THUMBNAIL_SIDE, instances[0] if len(instances) == 1 else None)


def _overview(
    index: Index, request: Request, series: Sequence[StoredInstance], side: int, shown: StoredInstance | None
) -> Answer:
    def make(viewport: tuple[int, int] | None) -> Image:
        viewport = viewport or (side, side)
        if shown is None or flavor(shown) == "VOLUME":
            image = _slide_image(series, max(viewport))
        else:
            image = _associated_image(series, shown)
        return _fit(image, viewport, enlarge=False)

    return _picture(index, request, make)


def _picture(index: Index, request: Request, make: Callable[[tuple[int, int] | None], Image]) -> Answer:
    """Choose the form, and make the picture for the viewport or take it from the cache."""
    content_type = choose(request.media_ranges, tuple(FORMATS))
    if content_type is None:
        raise HttpError(HTTPStatus.NOT_ACCEPTABLE, f"Pictures are served as {' or '.join(FORMATS)}.")
    viewport = _viewport(request)

    def encode() -> bytes:
        buffer = io.BytesIO()
        make(viewport).save(buffer, FORMATS[content_type], quality=JPEG_QUALITY)
        return buffer.getvalue()

    return Answer(index.cached((request.path, viewport, content_type), encode), content_type)


def _viewport(request: Request) -> tuple[int, int] | None:
    value = next((value for name, value in request.query if name == "viewport"), None)
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6}),(\d{1,6})", value, re.ASCII)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise HttpError(HTTPStatus.BAD_REQUEST, f"viewport={value} is not width,height of 1 to {MAX_SIDE} pixels each.")
    return width, height


def _frame_image(stored: StoredInstance, number: int) -> Image:
    with stored.reading() as file:
        data = file.read_frame(number - 1)
    return _image(frame_pixels(data, stored))


def _slide_image(series: Sequence[StoredInstance], side: int) -> Image:
    """Return the smallest sufficient view of a slide; of a series without one, its first image of one frame."""
    from wsiweb.slide import Slide  # noqa: PLC0415  (only pictures of slides need all of the library)

    try:
        with Slide.open([stored.path for stored in series]) as slide:
            return _image(slide.thumbnail(side))
    except SlideNotFoundError as error:
        single = next((stored for stored in series if stored.number_of_frames == 1), None)
        if single is None:
            raise HttpError(HTTPStatus.NOT_ACCEPTABLE, str(error)) from error
        return _frame_image(single, 1)


def _associated_image(series: Sequence[StoredInstance], shown: StoredInstance) -> Image:
    """Return a label, overview or thumbnail of several frames."""
    from wsiweb.slide import Slide  # noqa: PLC0415

    others = [stored.path for stored in series if stored is not shown]
    try:
        with Slide.open([shown.path, *others]) as slide:  # of several labels the first is the slide's
            return _image(slide.associated_images[flavor(shown).lower()])
    except SlideNotFoundError as error:
        raise HttpError(HTTPStatus.NOT_ACCEPTABLE, str(error)) from error


def _image(pixels: npt.NDArray[Any]) -> Image:
    """Return 8-bit pixels; deeper ones are spread over the range that they use."""
    from PIL import Image  # noqa: PLC0415

    if pixels.dtype != np.uint8:
        low, high = int(pixels.min()), int(pixels.max())
        pixels = ((pixels.astype(np.float32) - low) * (255 / max(high - low, 1))).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _fit(image: Image, viewport: tuple[int, int] | None, *, enlarge: bool = True) -> Image:
    """Scale into the viewport, aspect ratio kept (PS3.18 8.3.5.1.3)."""
    from PIL import ImageOps  # noqa: PLC0415

    if viewport is None or (not enlarge and image.width <= viewport[0] and image.height <= viewport[1]):
        return image
    return ImageOps.contain(image, viewport)
