"""DICOM JSON of a slide's instances, as a service that holds a scanner's export would give it. Plain dicts."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.slides import LevelSpec, SlideSpec

    Json = dict[str, Any]

WSI_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
MPP = 0.25
"""Of level 0, in both axes."""
ASSOCIATED = {"LABEL": (600, 600), "OVERVIEW": (1600, 600)}


def metadata(spec: SlideSpec, icc_profile: bytes) -> list[Json]:
    """Return the metadata of every instance: levels, then label and overview."""
    found = [_level(spec, level, number, icc_profile) for number, level in enumerate(spec.levels(), start=1)]
    if spec.associated:
        for kind, size in ASSOCIATED.items():
            found.append(_image(spec, len(found) + 1, kind, size, size, 1, icc_profile))
    return found


def _level(spec: SlideSpec, level: LevelSpec, number: int, icc_profile: bytes) -> Json:
    places = level.places
    tile = (spec.tile, spec.tile)
    dataset = _image(spec, number, "VOLUME", level.size, tile, len(places), icc_profile, factor=level.factor)
    sparse = spec.sparse_frames is not None and level.factor == 1
    dataset["00209311"] = _value("CS", "TILED_SPARSE" if sparse else "TILED_FULL")
    if sparse:
        groups = [_place(x * spec.tile, y * spec.tile) for x, y in places.tolist()]
        dataset["52009230"] = {"vr": "SQ", "Value": groups}
    return dataset


def _place(x: int, y: int) -> Json:
    """Return a frame's functional groups as scanners write them (PS3.3 C.8.12.6.1)."""
    position = {
        "0048021E": _value("SL", x + 1),
        "0048021F": _value("SL", y + 1),
        "0040072A": _value("DS", round(20 - y * MPP / 1000, 6)),
        "0040073A": _value("DS", round(40 - x * MPP / 1000, 6)),
        "0040074A": _value("DS", 0.0),
    }
    content = {"00209157": _value("UL", x // 256 + 1, y // 256 + 1)}
    return {"00209111": _value("SQ", content), "0048021A": _value("SQ", position)}


def _image(
    spec: SlideSpec,
    number: int,
    flavour: str,
    size: tuple[int, int],
    tile: tuple[int, int],
    frames: int,
    icc_profile: bytes,
    *,
    factor: int = 1,
) -> Json:
    image_type = ["DERIVED" if factor > 1 else "ORIGINAL", "PRIMARY", flavour, "RESAMPLED" if factor > 1 else "NONE"]
    spacing_mm = MPP * factor / 1000
    measures = {"00180050": _value("DS", 0.001), "00280030": _value("DS", spacing_mm, spacing_mm)}
    shared = {"00289110": _value("SQ", measures), "00400710": _value("SQ", {"00089007": _value("CS", *image_type)})}
    stain = {"0040A040": _value("CS", "CODE"), "0040A168": _value("SQ", _code("12710003", "SCT", "hematoxylin stain"))}
    path = {
        "00220016": _value("SQ", _code("111744", "DCM", "Brightfield illumination")),
        "00480106": _value("SH", "1"),
        "00480108": _value("SQ", _code("414298005", "SCT", "Full Spectrum")),
        "00480112": _value("DS", 20.0),
        "00282000": {"vr": "OB", "InlineBinary": base64.b64encode(icc_profile).decode()},
    }
    specimen = {
        "00400551": _value("LO", "S-1"),
        "00400554": _value("UI", f"{spec.uid}.9"),
        "00400610": _value("SQ", {"00400612": _value("SQ", stain)}),
    }
    origin = {
        "0040072A": _value("DS", 20.0),
        "0040073A": _value("DS", 40.0),
        "0040074A": _value("DS", 0.0),
    }
    compressed_from = "ISO_10918_1" if spec.syntax.endswith(".50") else "ISO_15444_1"
    dataset = {
        "00080005": _value("CS", "ISO_IR 192"),
        "00080008": _value("CS", *image_type),
        "00080016": _value("UI", WSI_SOP_CLASS),
        "00080018": _value("UI", f"{spec.uid}.3.{number}"),
        "00080020": _value("DA", "20240102"),
        "00080023": _value("DA", "20240102"),
        "0008002A": _value("DT", "20240102030405"),
        "00080030": _value("TM", "030405"),
        "00080033": _value("TM", "030405"),
        "00080050": _value("SH", "A-1"),
        "00080060": _value("CS", "SM"),
        "00080070": _value("LO", "Bench"),
        "00080090": {"vr": "PN"},
        "00081090": _value("LO", "Bench 1"),
        "00100010": _value("PN", {"Alphabetic": "Bench^Slide"}),
        "00100020": _value("LO", f"BENCH-{spec.name}"),
        "00100030": {"vr": "DA"},
        "00100040": {"vr": "CS"},
        "00181000": _value("LO", "42"),
        "00181020": _value("LO", "1.0"),
        "0020000D": _value("UI", spec.study_uid),
        "0020000E": _value("UI", spec.series_uid),
        "00200010": _value("SH", "1"),
        "00200011": _value("IS", 1),
        "00200013": _value("IS", number),
        "00200052": _value("UI", f"{spec.uid}.4"),
        "00201040": _value("LO", "SLIDE_CORNER"),
        "00209221": _value("SQ", {"00209164": _value("UI", f"{spec.uid}.5")}),
        "00280002": _value("US", 3),
        "00280004": _value("CS", "YBR_FULL_422" if spec.syntax.endswith(".50") else "YBR_ICT"),
        "00280006": _value("US", 0),
        "00280008": _value("IS", frames),
        "00280010": _value("US", tile[1]),
        "00280011": _value("US", tile[0]),
        "00280100": _value("US", 8),
        "00280101": _value("US", 8),
        "00280102": _value("US", 7),
        "00280103": _value("US", 0),
        "00280301": _value("CS", "NO"),
        "00282110": _value("CS", "01"),
        "00282112": _value("DS", 14.0),
        "00282114": _value("CS", compressed_from),
        "00400512": _value("LO", "C-1"),
        "00400513": {"vr": "SQ"},
        "00400518": _value("SQ", _code("433466003", "SCT", "Microscope slide")),
        "00400555": {"vr": "SQ"},
        "00400560": _value("SQ", specimen),
        "00480001": _value("FL", size[0] * spacing_mm),
        "00480002": _value("FL", size[1] * spacing_mm),
        "00480003": _value("FL", 1.0),
        "00480006": _value("UL", size[0]),
        "00480007": _value("UL", size[1]),
        "00480008": _value("SQ", origin),
        "00480010": _value("CS", "YES" if flavour != "VOLUME" else "NO"),
        "00480011": _value("CS", "AUTO"),
        "00480012": _value("CS", "NO"),
        "00480102": _value("DS", 0.0, -1.0, 0.0, -1.0, 0.0, 0.0),
        "00480105": _value("SQ", path),
        "00480302": _value("UL", 1),
        "00480303": _value("UL", 1),
        "52009229": _value("SQ", shared),
    }
    if flavour == "LABEL":
        dataset |= {"22000002": _value("UT", "bench"), "22000005": _value("LT", "1")}
    return dataset


def _value(vr: str, *values: Any) -> Json:
    return {"vr": vr, "Value": list(values)}


def _code(value: str, scheme: str, meaning: str) -> Json:
    return {"00080100": _value("SH", value), "00080102": _value("SH", scheme), "00080104": _value("LO", meaning)}
