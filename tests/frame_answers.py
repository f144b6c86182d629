"""How ``dicomweb_server`` answers a request for frames, by its personality and the fault of the moment."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt
    from dicomweb_server import StoredInstance
    from faults import Fault, Request
    from personalities import Form, Personality

_COMPRESSED = "1.2.840.10008.1.2.4."
MEDIA_TYPES = {
    **{f"{_COMPRESSED}{n}": "image/jpeg" for n in (50, 51, 57, 70)},
    **{f"{_COMPRESSED}{n}": "image/jls" for n in (80, 81)},
    **{f"{_COMPRESSED}{n}": "image/jp2" for n in (90, 91)},
    **{f"{_COMPRESSED}{n}": "image/jxl" for n in (110, 111, 112)},
    **{f"{_COMPRESSED}{n}": "image/jphc" for n in (201, 202, 203)},
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""PS3.18 Table 8.7.3-5."""
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent, before faults of the transport."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def answer_frames(personality: Personality, fault: Fault, request: Request, instance: StoredInstance) -> Reply:
    media_type = MEDIA_TYPES.get(instance.transfer_syntax, "application/octet-stream")
    form = personality.form(request.headers.get("accept", ""), media_type, instance.transfer_syntax)
    if isinstance(form, int):
        return _refused(personality, form, f"cannot send {instance.transfer_syntax} as {request.headers.get('accept')}")
    if refusal := _refused_list(personality, request.frame_numbers):
        return _refused(personality, *refusal)
    numbers = tuple(number for number in request.frame_numbers if 1 <= number <= len(instance.frames))
    status, closed = 200, not fault.omit_closing
    if len(numbers) < len(request.frame_numbers):
        if personality.beyond in ("404", "400") or not numbers:
            return _refused(personality, 400 if personality.beyond in ("400", "cut") else 404, "No such frame")
        if personality.beyond == "cut":
            asked = enumerate(request.frame_numbers)
            numbers = numbers[: next(place for place, number in asked if number not in numbers)]
            closed = False
        else:
            status = 206
    if personality.file_order:
        numbers = tuple(sorted(numbers))
    frames = [(number, _in_form(instance, number, form)) for number in numbers]
    if fault.change_frame:
        frames = [(number, fault.change_frame(number, data)) for number, data in frames]
    values = _values(personality, form, media_type, instance.transfer_syntax, request)
    if personality.single_part or fault.single_part:
        return Reply(200, {"Content-Type": "{type}; transfer-syntax={syntax}".format(**values)}, frames[0][1])
    body = _multipart(personality, fault, frames, values, closed=closed)
    return Reply(status, {"Content-Type": personality.header.format(**values)}, body)


def _refused_list(personality: Personality, numbers: tuple[int, ...]) -> tuple[int, str] | None:
    """Return with which status and words a list of frames is refused as such."""
    if len(numbers) > personality.max_frames:
        return 413, f"more than {personality.max_frames} frames"
    if not numbers or (len(numbers) > 1 and not personality.lists):
        return 404, "no such file"
    if len(set(numbers)) < len(numbers) and not personality.duplicates:
        return 400, "a frame twice"
    return None


def _refused(personality: Personality, status: int, message: str) -> Reply:
    content_type, body = personality.error(status, message)
    return Reply(status, {"Content-Type": content_type}, body)


def _values(
    personality: Personality, form: Form, media_type: str, syntax: str, request: Request
) -> dict[str, str]:  # fmt: skip
    """Return what stands in headers."""
    types = {"native": media_type, "raw": "application/octet-stream", "lossy": "image/jpeg"}
    syntaxes = {"native": syntax, "raw": EXPLICIT_LITTLE_ENDIAN, "lossy": JPEG_BASELINE}
    accept = request.headers.get("accept", "")
    return {
        "type": types[form],
        "syntax": syntaxes[form],
        "boundary": personality.boundary,
        "place": f"http://{request.headers['host']}{request.path.partition('?')[0].rpartition('/')[0]}",
        "asked": accept.partition('type="')[2].partition('"')[0] or types[form],
    }


def _multipart(
    personality: Personality, fault: Fault, frames: list[tuple[int, bytes]], values: dict[str, str], *, closed: bool
) -> bytes:
    last = frames[-1][0]
    frames = frames[: len(frames) - fault.drop_parts]
    frames += [(100_000 + n, b"nobody asked for this") for n in range(fault.extra_parts)]
    frames = [frame for frame in frames for _ in range(2 if fault.repeat_parts else 1)]
    if fault.reverse_parts:
        frames = frames[::-1]
    delimiter = b"--" + (fault.boundary or personality.boundary).encode()
    body = bytearray()
    for number, data in frames:
        kept = data[: len(data) - (fault.cut_last_part_bytes if number == last else 0)]
        body += delimiter + b"\r\n"
        for header in (*personality.part_headers, *fault.part_headers):
            if fault.locations or not header.startswith("Content-Location"):
                body += header.format(**values, number=number, length=len(data)).encode() + b"\r\n"
        body += b"\r\n" + kept + b"\r\n"
    return bytes(body) + (delimiter + b"--\r\n" if closed else b"")


def _in_form(instance: StoredInstance, number: int, form: Form) -> bytes:
    data = instance.frames[number - 1]
    if form == "native":
        return data
    pixels = _pixels(instance, data)
    if form == "raw":
        return pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=30)
    return buffer.getvalue()


def _pixels(instance: StoredInstance, data: bytes) -> npt.NDArray[Any]:
    """Decode a frame, colour to RGB."""
    media_type = MEDIA_TYPES.get(instance.transfer_syntax)
    if media_type is None:
        return np.frombuffer(data, np.uint8).reshape(instance.shape)
    if media_type == "image/jpeg":
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if len(instance.shape) == 3 else "L"))
    decoder = imagecodecs.htj2k_decode if media_type == "image/jphc" else imagecodecs.jpeg2k_decode
    return np.asarray(decoder(data))
