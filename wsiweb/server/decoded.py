"""Frames decoded for clients that ask for raw pixels, and pictures of them."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.codecs import decode
from wsiweb.dicomjson import Attributes
from wsiweb.metadata import Instance
from wsiweb.server.answer import HttpError
from wsiweb.sources.base import EncodedFrame
from wsiweb.transfer_syntaxes import EXPLICIT_BIG_ENDIAN, NATIVE

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.server.index import StoredInstance


def little_endian(data: bytes, stored: StoredInstance) -> bytes:
    """Return a frame as the web wants it: big-endian samples swapped, all else as it is."""
    bits = Attributes(stored.summary).integer("BitsAllocated") or 8
    if stored.transfer_syntax_uid != EXPLICIT_BIG_ENDIAN or bits <= 8:
        return data
    return np.frombuffer(data, f">u{bits // 8}").astype(f"<u{bits // 8}").tobytes()


def decoded_frame(data: bytes, stored: StoredInstance) -> bytes:
    """Return raw little-endian pixels: colour as RGB, samples of monochrome and palette frames as stored."""
    if stored.transfer_syntax_uid in NATIVE:
        return little_endian(data, stored)
    pixels = _instance(stored).pixels
    if pixels.samples_per_pixel > 1:
        if pixels.bits_allocated > 8:
            raise HttpError(HTTPStatus.NOT_ACCEPTABLE, "Colour of more than 8 bits is not decoded here.")
    else:  # without these the decoder leaves the samples alone
        pixels = replace(pixels, photometric="MONOCHROME2", palette=None, signed=False)
    image = decode(
        EncodedFrame(1, data),
        pixels,
        transfer_syntax_uid=stored.transfer_syntax_uid,
        visible=(pixels.columns, pixels.rows),
    )
    return image.astype(image.dtype.newbyteorder("<")).tobytes()


def frame_pixels(data: bytes, stored: StoredInstance) -> npt.NDArray[Any]:
    """Return a frame as it is looked at: RGB, or monochrome where larger is brighter."""
    frame = EncodedFrame(1, data)
    return decode(frame, _instance(stored).pixels, transfer_syntax_uid=stored.transfer_syntax_uid, visible=(1, 1))


def flavor(stored: StoredInstance) -> str:
    """Return what a whole-slide image shows: VOLUME, LABEL, OVERVIEW or THUMBNAIL."""
    return _instance(stored).flavor


def _instance(stored: StoredInstance) -> Instance:
    instance = Instance.from_json(stored.summary)
    if instance is None:
        raise HttpError(
            HTTPStatus.NOT_ACCEPTABLE, f"{stored.instance_uid} is no whole-slide image; it is served as stored only."
        )
    return instance
