"""The checks of what comes: frames singly, in lists and in every form, and bulk data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsiweb import transfer_syntaxes
from wsiweb.codecs import decode
from wsiweb.codestream import Coding, inspect
from wsiweb.doctor.report import Check
from wsiweb.doctor.subject import affordable, in_words, too_dear
from wsiweb.doctor.wire import BudgetError, must_succeed
from wsiweb.errors import DecodeError, UnsupportedError, WsiWebError
from wsiweb.sources import accept as forms
from wsiweb.sources.answers import frames_in
from wsiweb.sources.base import Cancellation
from wsiweb.sources.multipart import MultipartParser, parse_content_type
from wsiweb.sources.retry import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.doctor.report import Figure
    from wsiweb.doctor.subject import Subject
    from wsiweb.doctor.wire import Exchange, WatchedService
    from wsiweb.metadata import Instance
    from wsiweb.reader import Reader
    from wsiweb.sources.base import EncodedFrame
    from wsiweb.sources.multipart import Part

LIST_FRAMES = 4
_MEDIA_TYPES = {
    Coding.JPEG: ("image/jpeg",),
    Coding.JPEG_LOSSLESS: ("image/jpeg",),
    Coding.JPEG_LS: ("image/jls",),
    Coding.JPEG_2000: ("image/jp2", "image/jphc"),
    Coding.JPEG_XL: ("image/jxl",),
}
_RLE = "image/dicom-rle"


@dataclass(frozen=True, slots=True)
class Single:
    """A frame that came by itself."""

    check: Check
    readable: bool = False
    """Whether it came and could be decoded."""
    transfer_syntax_uid: str | None = None
    """As stored, as far as that is known now."""
    accept: str | None = None
    """What brought it."""


def nature_of(frame: EncodedFrame, instance: Instance, stored: str | None) -> str:
    """Say whether a frame came as it is stored: "as stored", "decompressed" or "transcoded"."""
    stream = inspect(frame.data)
    media_type = transfer_syntaxes.media_type(stored) if stored else None
    if stream is None:
        rle = _RLE in (frame.media_type, media_type)
        whole = instance.stored_compressed and len(frame.data) >= instance.frame_bytes
        return "decompressed" if whole and not rle else "as stored"
    if stored and (media_type not in _MEDIA_TYPES[stream.coding] or frame.transfer_syntax_uid not in (stored, None)):
        return "transcoded"
    if stored is None and instance.pixels.lossy and stream.coding is Coding.JPEG_LOSSLESS:
        return "transcoded"
    return "as stored"


def check_single(reader: Reader, service: WatchedService, subject: Subject) -> Single:
    """Fetch one frame as reading does, and decode it."""
    instance, before = subject.instance, len(service.exchanges)
    try:
        ((frame,),) = reader.source.fetch(subject.batch(1), Cancellation())
    except WsiWebError as error:
        return Single(Check("single frames", "failed", str(error)))
    attempts = service.exchanges[before:]
    stream = inspect(frame.data)
    stored = instance.transfer_syntax_uid or (frame.transfer_syntax_uid if stream else None)
    nature = nature_of(frame, instance, instance.transfer_syntax_uid)
    coding = stream.coding.value if stream else "raw pixels"
    figures: dict[str, Figure] = {
        "nature": nature, "coding": coding, "bytes": len(frame.data), "requests": len(attempts),
        "milliseconds": round(attempts[-1].seconds * 1000, 3), "accept": attempts[-1].accept,
    }  # fmt: skip
    finding = f"{nature} ({coding}), {in_words(len(frame.data))}, {attempts[-1].seconds * 1000:.0f} ms"
    if len(attempts) > 1:
        finding += f", at the {_ordinal(len(attempts))} attempt ({_refusals(attempts[:-1])})"
    try:
        pixels = decode(frame, instance.pixels, transfer_syntax_uid=instance.transfer_syntax_uid, visible=(1, 1))
    except (DecodeError, UnsupportedError) as error:
        return Single(Check("single frames", "failed", f"{finding}; not decoded: {error}", "", figures))
    finding += f"; decoded to {pixels.shape[1]} x {pixels.shape[0]} px"
    advice = "" if nature == "as stored" else (
        "The service changes frames before it sends them: larger answers, slower, and perhaps not what was scanned."
    )  # fmt: skip
    check = Check("single frames", "warning" if advice else "ok", finding, advice, figures)
    return Single(check, readable=True, transfer_syntax_uid=stored, accept=attempts[-1].accept)


def check_list(service: WatchedService, subject: Subject, accept: str) -> Check:
    """Ask for a few frames by one request, and look at how they come."""
    name, advice = "frame lists", "Frames go one by one here; ReadOptions(frames_per_request=1) saves the attempt."
    if subject.instance.number_of_frames < 2:
        return Check(name, "skipped", "The slide has a single frame.")
    numbers = subject.take(affordable(service, LIST_FRAMES))
    if len(numbers) < 2:
        return too_dear(name)
    figures: dict[str, Figure] = {}
    try:
        parts, closed = _parts_of(service, subject.url(service, numbers), accept)
    except RefusedError as error:
        problem = f"refused: {error.status}{f' ({error.said:.120})' if error.said else ''}"
        figures["status"] = error.status
    except WsiWebError as error:
        problem = str(error)
    else:
        if parts is not None:
            return _list_as_it_came(service.exchanges[-1].seconds, len(numbers), parts, closed=closed)
        problem = f"{len(numbers)} asked for, one came, without multipart"
    return Check(name, "warning", problem, advice, figures)


def _list_as_it_came(seconds: float, asked: int, parts: Sequence[Part], *, closed: bool) -> Check:
    name = "frame lists"
    named = sum("content-location" in part.headers for part in parts)
    figures: dict[str, Figure] = {
        "asked": asked, "came": len(parts), "named": named, "closed": closed, "milliseconds": round(seconds * 1000, 3),
    }  # fmt: skip
    naming = "named by Content-Location" if named == len(parts) else "not named, taken in order"
    closing = "closed by a delimiter" if closed else "without a closing delimiter"
    finding = f"{len(parts)} of {asked} came, {naming}, {closing}, {seconds * 1000:.0f} ms"
    if len(parts) == asked and closed:
        return Check(name, "ok", finding, figures=figures)
    return Check(name, "warning", finding, "What is missing is asked for again, which costs requests.", figures)


def _parts_of(service: WatchedService, url: str, accept: str) -> tuple[list[Part] | None, bool]:
    """Return the parts of an answer and whether it was closed; None where it is no multipart."""
    with service.get(url, accept) as answer:
        must_succeed(answer)
        media_type, parameters = parse_content_type(answer.content_type)
        if not media_type.startswith("multipart/"):
            return None, True
        parser = MultipartParser(parameters.get("boundary"))
        parts = [part for chunk in answer.chunks for part in parser.feed(chunk)]
        parts += parser.close()
        return parts, parser.finished


def check_media_types(service: WatchedService, subject: Subject, stored: str | None) -> Check:
    """Ask for one frame in every form that reading knows."""
    instance = subject.instance
    figures: dict[str, Figure] = {}
    said = []
    for form in forms.variants(stored, 1):
        number = subject.take(1)
        try:
            with service.get(subject.url(service, number), form) as answer:
                must_succeed(answer)
                ((frame,),) = frames_in(answer, number)
            result = nature_of(frame, instance, stored)
        except RefusedError as error:
            result = str(error.status)
        except BudgetError:
            result = "not tried"
        except WsiWebError as error:
            result = f"failed ({type(error).__name__})"
        figures[form] = result
        said.append(f"{_label(form)}: {result}")
    results = set(figures.values())
    finding = "; ".join(said)
    if "as stored" in results:
        return Check("media types", "ok", finding, figures=figures)
    if results & {"decompressed", "transcoded"}:
        advice = "No form brings frames as they are stored: reading works, but costs more bytes and time."
        return Check("media types", "warning", finding, advice, figures)
    if results == {"not tried"}:
        return too_dear("media types")
    return Check("media types", "failed", finding, "No form of the request brings a frame.", figures)


def check_bulk_data(reader: Reader, service: WatchedService, instances: Sequence[Instance]) -> Check:
    """Fetch what the metadata refer to, if anything: the ICC profile."""
    name = "bulk data"
    values = (path.icc_profile for instance in instances for path in instance.optical_paths)
    value = next((value for value in values if value is not None), None)
    if value is None:
        return Check(name, "skipped", "No ICC profile: the slide has none, or the service leaves it out.")
    if value.inline is not None:
        finding = f"ICC profile of {in_words(len(value.inline))} within the metadata"
        return Check(name, "ok", finding, figures={"bytes": len(value.inline)})
    try:
        data = reader.source.fetch_bulk(value.uri or "")
    except BudgetError:
        return Check(
            name, "skipped", "The ICC profile is too large for what is left of the limit.", "Raise --megabytes."
        )
    except WsiWebError as error:
        return Check(name, "warning", f"ICC profile: {error}", 'Colours cannot be converted (icc="srgb").')
    seconds = service.exchanges[-1].seconds
    figures: dict[str, Figure] = {"bytes": len(data), "milliseconds": round(seconds * 1000, 3)}
    return Check(name, "ok", f"ICC profile of {in_words(len(data))}, {seconds * 1000:.0f} ms", figures=figures)


def _label(form: str) -> str:
    if form == forms.SINGLE_PART:
        return "single part"
    if form == forms.DECOMPRESSED:
        return "explicit little endian"
    _, parameters = parse_content_type(form)
    return {"*/*": "any type", "application/octet-stream": "octet-stream"}.get(parameters["type"], parameters["type"])


def _refusals(attempts: Sequence[Exchange]) -> str:
    return ", ".join(dict.fromkeys(str(attempt.status or "no answer") for attempt in attempts))


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third", 4: "fourth", 5: "fifth"}.get(number, f"{number}th")
