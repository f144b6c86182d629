"""Retrieving (WADO-RS, PS3.18 10.4): metadata, bulk data, frames as stored or decoded, whole instances."""

from __future__ import annotations

import base64
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from wsiweb.errors import SourceError
from wsiweb.server.accept import MULTIPART, OCTET_STREAM, choose
from wsiweb.server.answer import Answer, HttpError, Part, json_answer, multipart_answer
from wsiweb.server.decoded import decoded_frame, little_endian
from wsiweb.server.qido import JSON_TYPES
from wsiweb.transfer_syntaxes import EXPLICIT_LITTLE_ENDIAN, NATIVE, media_type, name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from wsiweb.server.answer import Request
    from wsiweb.server.index import Index, StoredInstance

DICOM = "application/dicom"
_PIECE_BYTES = 1 << 18
_BULK_PATH = re.compile("([0-9A-F]{8}/[1-9][0-9]{0,8}/)*[0-9A-F]{8}")


def metadata(index: Index, request: Request, instances: Sequence[StoredInstance]) -> Answer:
    """Return the headers of instances in the DICOM JSON model."""
    content_type = choose(request.media_ranges, JSON_TYPES)
    if content_type is None:
        raise HttpError(HTTPStatus.NOT_ACCEPTABLE, f"Metadata are served as {JSON_TYPES[0]} only.")
    texts = [index.cached(("metadata", stored.instance_uid), stored.metadata) for stored in instances]
    return json_answer(b"[" + b",".join(texts) + b"]", request, content_type)


def bulk_data(request: Request, stored: StoredInstance, path: str) -> Answer:
    """Return a binary value: ``tag``, or ``tag/item/tag`` with items counted from 1."""
    single = None
    for wanted in request.media_ranges:
        if wanted.takes(OCTET_STREAM):
            single = True
        elif wanted.part is not None and wanted.part.takes(OCTET_STREAM):
            single = False
        if single is not None:
            break
    if single is None:
        raise HttpError(HTTPStatus.NOT_ACCEPTABLE, f"Bulk data are served as {OCTET_STREAM} only.")
    value = _binary_value(stored.dataset(), path)
    if single:
        return Answer(value, OCTET_STREAM)
    part = Part(OCTET_STREAM, request.base_url + request.path, len(value), [value])
    return multipart_answer(OCTET_STREAM, [part], len(value))


def _binary_value(dataset: Any, path: str) -> bytes:
    missing = HttpError(HTTPStatus.NOT_FOUND, f"There is no binary value at {path:.200}.")
    if not _BULK_PATH.fullmatch(path):
        raise missing
    *steps, last = path.split("/")
    try:
        for tag, item in zip(steps[::2], steps[1::2], strict=True):
            dataset = dataset[tag]["Value"][int(item) - 1]
        return base64.b64decode(dataset[last]["InlineBinary"])
    except (KeyError, IndexError, TypeError):
        raise missing from None


def frames(request: Request, stored: StoredInstance, numbers: Sequence[int]) -> Answer:
    """Return frames (1-based), one part each, read one by one while they are sent."""
    part_type, transfer_syntax, convert = _frame_form(request, stored)
    content_type = f"{part_type}; transfer-syntax={transfer_syntax}"
    place = f"{request.base_url}{stored.location}/frames/"

    def parts() -> Iterator[Part]:
        with stored.reading() as file:
            for number in numbers:
                data = convert(file.read_frame(number - 1))
                yield Part(content_type, f"{place}{number}", len(data), [data])

    return multipart_answer(part_type, parts())


def _frame_form(request: Request, stored: StoredInstance) -> tuple[str, str, Callable[[bytes], bytes]]:
    """Choose media type, transfer syntax and what makes them of a stored frame (PS3.18 8.7.3)."""
    syntax = stored.transfer_syntax_uid
    native_type = media_type(syntax) or OCTET_STREAM
    # Raw frames are little endian on the web, and neither implicit nor deflated (PS3.18 8.7.3.5.2).
    sent_syntax = EXPLICIT_LITTLE_ENDIAN if syntax in NATIVE else syntax

    def as_stored(data: bytes) -> bytes:
        return little_endian(data, stored)

    def decoded(data: bytes) -> bytes:
        return decoded_frame(data, stored)

    for wanted in request.media_ranges:
        part = wanted.part
        if part is None:
            continue
        asked = part.transfer_syntax
        if part.media_type == OCTET_STREAM:
            if asked in ("*", sent_syntax):
                return OCTET_STREAM, sent_syntax, as_stored
            if asked in (None, EXPLICIT_LITTLE_ENDIAN):
                return OCTET_STREAM, EXPLICIT_LITTLE_ENDIAN, decoded
        elif part.takes(native_type) and asked in (None, "*", sent_syntax):
            return native_type, sent_syntax, as_stored
    raise HttpError(
        HTTPStatus.NOT_ACCEPTABLE,
        f"Frames of {stored.instance_uid} are stored as {native_type} in {name(syntax)}. Ask for "
        f'{MULTIPART}; type="{native_type}"; transfer-syntax={sent_syntax}, or transfer-syntax=* to take them as they '
        f'are, or {MULTIPART}; type="{OCTET_STREAM}" to have them decoded.',
    )


def whole_instances(request: Request, instances: Sequence[StoredInstance]) -> Answer:
    """Return Part 10 files as they are: in parts, or one alone where only ``application/dicom`` is taken."""
    for wanted in request.media_ranges:
        single = wanted.media_type == DICOM and len(instances) == 1
        part = wanted if single else wanted.part
        if part is None or not part.takes(DICOM):
            continue
        if all(part.transfer_syntax in (None, "*", stored.transfer_syntax_uid) for stored in instances):
            break
    else:
        raise HttpError(
            HTTPStatus.NOT_ACCEPTABLE,
            f"Instances are served as {DICOM} in the transfer syntax that they are stored in: transfer-syntax=*.",
        )
    parts = []
    for stored in instances:
        size = stored.path.stat().st_size
        content_type = f"{DICOM}; transfer-syntax={stored.transfer_syntax_uid}"
        parts.append(Part(content_type, request.base_url + stored.location, size, _file_pieces(stored, size)))
    if single:
        return Answer(_file_pieces(instances[0], size), DICOM, length_bytes=size)
    return multipart_answer(DICOM, parts, sum(part.length_bytes for part in parts))


def _file_pieces(stored: StoredInstance, size: int) -> Generator[bytes, None, None]:
    with stored.path.open("rb") as file:
        while size:
            piece = file.read(min(_PIECE_BYTES, size))
            if not piece:
                raise SourceError(f"{stored.path} has become shorter while it was read.")
            size -= len(piece)
            yield piece
