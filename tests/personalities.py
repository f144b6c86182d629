"""Servers as they are in the field: what each answers to which request, as values that ``dicomweb_server`` acts out.

None shares code with the library. What is not stated is as in ``GOOD``: native frames, verified in tests elsewhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]
Form = Literal["native", "raw", "lossy"]
"""As stored; decompressed to Explicit VR Little Endian (RGB); re-encoded as JPEG, whatever is stored."""

BASELINE = r"1\.2\.840\.10008\.1\.2\.4\.50"
JPEG_2000 = r"1\.2\.840\.10008\.1\.2\.4\.9[01]"
UNCOMPRESSED = r"1\.2\.840\.10008\.1\.2(\.1|\.2)?"

OCTETS_OF_ANY = r'multipart/related; type="application/octet-stream"; transfer-syntax="?\*"?'
OCTETS_EXPLICIT = r'multipart/related; type="application/octet-stream"(; transfer-syntax=1\.2\.840\.10008\.1\.2\.1)?'
OWN_TYPE = r'multipart/related; type="{type}"(; transfer-syntax="?({syntax}|\*)"?)?'
AS_JPEG = r'multipart/related; type="image/jpeg"(; transfer-syntax=1\.2\.840\.10008\.1\.2\.4\.50)?'
AS_BASELINE = AS_JPEG.removesuffix("?")
SINGLE_PART = r"(application/octet-stream|{type}|\*/\*)(; transfer-syntax=(\*|{syntax}))?"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one way of asking for frames gives; the first rule that fits decides."""

    accept: str
    """Expression for the whole Accept header; ``{type}`` and ``{syntax}`` stand for what is stored."""
    gives: Form | int
    """How the frames come, or the status of the refusal."""
    stored: str = ""
    """Expression for the stored transfer syntax; empty for any."""

    def fits(self, accept: str, media_type: str, syntax: str) -> bool:
        wanted = self.accept.replace("{type}", re.escape(media_type)).replace("{syntax}", re.escape(syntax))
        return bool(re.fullmatch(wanted, accept)) and bool(re.fullmatch(self.stored or ".*", syntax))


def plain_error(status: int, message: str) -> tuple[str, bytes]:
    return "text/plain", message.encode()


def google_error(status: int, message: str) -> tuple[str, bytes]:
    name = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    error = {"code": status, "message": f"generic::{message}", "status": name.get(status, "INTERNAL")}
    return "application/json; charset=UTF-8", json.dumps([{"error": error}]).encode()


def orthanc_error(status: int, message: str) -> tuple[str, bytes]:
    error = {"Message": "Bad request", "Details": message, "HttpStatus": status, "OrthancStatus": 8}
    return "application/json", json.dumps(error).encode()


def html_error(status: int, message: str) -> tuple[str, bytes]:
    return "text/html", f"<html><head><title>{status}</title></head><body><h1>{message}</h1></body></html>".encode()


def no_body(status: int, message: str) -> tuple[str, bytes]:
    return "text/html; charset=utf-8", b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Personality:
    """One kind of server."""

    name: str
    rules: tuple[Rule, ...]
    """For frames; what fits none is refused with 406."""
    error: Callable[[int, str], tuple[str, bytes]] = plain_error
    """Content type and body of an error."""

    root: str = "/dicom-web"
    wado_prefix: str = ""
    qido_prefix: str = ""

    header: str = 'multipart/related; type="{type}; transfer-syntax={syntax}"; boundary={boundary}'
    """Content-Type of frames."""
    boundary: str = "wsiweb-test-boundary"
    part_headers: tuple[str, ...] = (
        "Content-Type: {type}; transfer-syntax={syntax}",
        "Content-Location: {place}/{number}",
    )
    single_part: bool = False
    """Frames come without multipart; a list of them is refused."""
    framing: Literal["length", "chunked", "close"] = "length"
    gzip: Literal["never", "accepted", "always"] = "never"

    file_order: bool = False
    """Parts come in ascending order, whatever was asked."""
    beyond: Literal["404", "400", "cut", "206"] = "404"
    """A frame that does not exist: refused; the answer ends before it, unclosed; left out."""
    lists: bool = True
    """Whether several frames may be asked for at once; else 404."""
    duplicates: bool = True
    max_url_characters: int = 100_000
    too_long_status: int = 414
    max_frames: int = 100_000

    metadata: Callable[[Json], Json] = lambda dataset: dataset
    """What becomes of the metadata of an instance."""
    instance_metadata: Callable[[Json], Json] | None = None
    """The same where an instance is asked for by itself, if that is otherwise."""
    bulk_accept: str = ".*"
    """What must be asked for to get a bulk data value."""
    bulk_multipart: bool = False
    search_limit: int = 1000
    search_refuses: tuple[str, ...] = ()
    """Parameters that are answered with 400."""
    search_offset: bool = True
    """Whether ``offset`` is heeded."""
    empty_search: int = 200

    def form(self, accept: str, media_type: str, syntax: str) -> Form | int:
        return next((rule.gives for rule in self.rules if rule.fits(accept, media_type, syntax)), 406)


# What is done to metadata -----------------------------------------------------------------------------------


def numbers_as_text(dataset: Json) -> Json:
    """IS and DS as dcm4chee writes them."""
    return {tag: _numbers_as_text(element) for tag, element in dataset.items()}


def _numbers_as_text(element: Json) -> Json:
    if element["vr"] == "SQ":
        return {**element, "Value": [numbers_as_text(item) for item in element.get("Value", [])]}
    if element["vr"] in ("IS", "DS") and "Value" in element:
        return {**element, "Value": [str(value) for value in element["Value"]]}
    return element


def without_binaries(dataset: Json) -> Json:
    """Azure: no OB, OW, UN and the like, in no form; text may be padded with NUL."""
    kept = {}
    for tag, element in dataset.items():
        if element["vr"] in ("OB", "OD", "OF", "OL", "OV", "OW", "UN"):
            continue
        values = element.get("Value", [])
        if element["vr"] == "SQ":
            element = {**element, "Value": [without_binaries(item) for item in values]}  # noqa: PLW2901
        elif element["vr"] in ("CS", "LO", "SH"):
            element = {**element, "Value": [f"{value}\0" if len(value) % 2 else value for value in values]}  # noqa: PLW2901
        kept[tag] = element
    return kept


def as_static_wado(dataset: Json) -> Json:
    """ImageType as one text with backslashes; AT as a bare text; UL as base64 of little endian."""
    dataset = dict(dataset)
    if "00080008" in dataset:
        dataset["00080008"] = {"vr": "CS", "Value": ["\\".join(dataset["00080008"]["Value"])]}
    return dataset


def main_tags(dataset: Json) -> Json:
    """Orthanc's MainDicomTags: an extract without the image's description."""
    return {tag: dataset[tag] for tag in ("00080018", "0020000D", "0020000E", "00080060", "00280008") if tag in dataset}


# The servers ------------------------------------------------------------------------------------------------

GOOD = Personality(
    name="good",
    rules=(
        Rule(r'.*transfer-syntax="?\*.*', "native"),
        Rule(r'.*transfer-syntax="?{syntax}.*', "native"),
        Rule(r"((?!transfer-syntax).)*", "native", UNCOMPRESSED),
    ),
)
"""Sends what is stored to whoever takes it, and transcodes nothing."""

GOOGLE = Personality(
    name="Google Healthcare v1",
    rules=(
        Rule(OCTETS_OF_ANY, "native"),
        Rule(OCTETS_EXPLICIT, "raw"),
        Rule(AS_JPEG, "native", BASELINE),
        Rule(AS_JPEG, "lossy"),
        Rule(".*", 400),
    ),
    error=google_error,
    beyond="400",
    max_url_characters=8000,
    max_frames=400,
    search_refuses=("SOPClassUID", "00080016", "includefield"),
    empty_search=204,
    gzip="accepted",
)  # fmt: skip

GOOGLE_BETA = replace(
    GOOGLE,
    name="Google Healthcare v1beta1",
    root="/v1beta1/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb",
    bulk_accept=r"application/octet-stream; transfer-syntax=\*",
)

IDC = replace(GOOGLE, name="IDC proxy", root="/current/viewer-only/dicomWeb", error=no_body)

IDC_HUGE = replace(
    IDC,
    name="IDC proxy, huge study",
    rules=(Rule(OCTETS_OF_ANY, "raw"), *(rule for rule in IDC.rules if rule.accept != OCTETS_OF_ANY)),
)
"""The proxy takes ``; transfer-syntax=*`` out of Accept."""

ORTHANC_17 = Personality(
    name="Orthanc 1.7",
    rules=(
        Rule(r".*,.*", 500, JPEG_2000),
        Rule(r".*,.*", "raw"),
        Rule(OCTETS_OF_ANY, "native"),
        Rule(AS_BASELINE, "native", BASELINE),
        Rule(AS_BASELINE, "lossy"),
        Rule(r'multipart/related; type="image/jp2".*', 500),
        Rule(rf"{OCTETS_EXPLICIT}|\*/\*|multipart/related|", 500, JPEG_2000),
        Rule(rf"{OCTETS_EXPLICIT}|\*/\*|multipart/related|", "raw"),
        Rule(".*", 400),
    ),
    error=orthanc_error,
    boundary="e8-44aa",
    part_headers=(
        "Content-Type: {type}; transfer-syntax={syntax}",
        "Content-Length: {length}",
        "Content-Location: {place}/{number}",
        "MIME-Version: 1.0",
    ),
    framing="close",
    gzip="accepted",
    beyond="cut",
    max_url_characters=20_000,
    too_long_status=400,
    bulk_accept=r'multipart/related; type="?application/octet-stream"?|application/octet-stream',
    bulk_multipart=True,
)  # fmt: skip

ORTHANC_118 = replace(ORTHANC_17, name="Orthanc 1.18", boundary="1d5f-77")
"""Where one frame is cheap and a list is not; see ``singles_are_cheap``."""

ORTHANC_OLD_CORE = replace(
    ORTHANC_17,
    name="Orthanc, old core",
    rules=(Rule(OCTETS_OF_ANY, 400, UNCOMPRESSED), *ORTHANC_17.rules),
    metadata=main_tags,
    instance_metadata=lambda dataset: dataset,
)
"""Refuses ``*`` for what is not compressed; its series metadata are an extract."""

DCM4CHEE = Personality(
    name="dcm4chee",
    rules=(
        Rule(r'multipart/related; type="application/octet-stream".*', "raw"),
        Rule(r"application/octet-stream.*", "raw"),
        Rule(r'multipart/related; type="{type}".*', "native"),
        Rule(r'multipart/related; type="\*/\*".*|\*/\*', "native"),
    ),
    error=html_error,
    root="/dcm4chee-arc/aets/DCM4CHEE/rs",
    header='multipart/related;start="<0f@resteasy-multipart>";transfer-syntax={syntax};type="{type}"; '
    "boundary={boundary}",
    boundary="4de5a6dc-4e5b",
    part_headers=(
        "Content-ID: <{number}@resteasy-multipart>",
        "Content-Type: {type};transfer-syntax={syntax}",
        "Content-Location: {place}/{number}",
    ),
    framing="chunked",
    file_order=True,
    beyond="206",
    metadata=numbers_as_text,
)

DICOMCLOUD = Personality(
    name="DICOMcloud",
    rules=(
        Rule(r"multipart/related((?!type=).)*", 500),
        Rule(r'multipart/related; type="application/octet-stream".*', "native"),
        Rule(r'multipart/related; type="{type}".*', "native"),
    ),
    root="/api",
    wado_prefix="wadors",
    qido_prefix="qidors",
    header='multipart/related; type="{asked}"; boundary="{boundary}"',
    boundary="DICOM DATA BOUNDARY",
    part_headers=("Content-Type: {asked}",),
)

AZURE = Personality(
    name="Azure",
    rules=(
        Rule(OCTETS_OF_ANY, "native"),
        Rule(OCTETS_EXPLICIT, "raw"),
        Rule(r'multipart/related; type="image/jp2".*', "native", JPEG_2000),
        Rule(r"application/octet-stream; transfer-syntax=\*", "native"),
    ),
    root="/v2",
    metadata=without_binaries,
    empty_search=204,
)

AWS = Personality(
    name="AWS HealthImaging",
    rules=(
        Rule(OCTETS_OF_ANY, "native"),
        Rule(OWN_TYPE, "native"),
        Rule(OCTETS_EXPLICIT, "raw"),
    ),
    root="/datastore/0f0f",
    duplicates=False,
    framing="chunked",
)

STATIC_WADO = Personality(
    name="static-wado",
    rules=(Rule(".*", "native"),),
    header="multipart/related; type={type}; boundary={boundary}",
    boundary="BOUNDARY_67FD-3A29",
    part_headers=("Content-Type: {type};transfer-syntax={syntax}",),
    error=html_error,
    gzip="always",
    lists=False,
    metadata=as_static_wado,
)
"""Files in folders: each frame is one, and a list of frames is none."""

SINGLE_FRAMES = Personality(
    name="dcmjs",
    rules=(Rule(".*", "native"),),
    single_part=True,
)
"""The first frame, without multipart, whatever was asked."""

STRICT_SINGLE_PART = Personality(
    name="single part only",
    rules=(Rule(SINGLE_PART, "native"),),
    single_part=True,
)
"""406 for multipart."""

ALWAYS_LOSSY = Personality(name="lossy transcoder", rules=(Rule(".*", "lossy"),))

PERSONALITIES = {
    personality.name: personality
    for personality in (
        GOOD, GOOGLE, GOOGLE_BETA, IDC, IDC_HUGE, ORTHANC_17, ORTHANC_118, ORTHANC_OLD_CORE, DCM4CHEE, DICOMCLOUD,
        AZURE, AWS, STATIC_WADO, SINGLE_FRAMES, STRICT_SINGLE_PART,
    )
}  # fmt: skip
