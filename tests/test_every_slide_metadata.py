"""Metadata as real servers send them: the forms of values, and values that are elsewhere or left out."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from kinds_writer import assert_reads
from pydicom.datadict import tag_for_keyword
from synthetic import SyntheticSlide, make_slide, srgb_profile

from wsiweb import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Json = dict[str, Any]

PROFILE = srgb_profile(swapped=True)
BINARY = {"US": "<H", "UL": "<I", "SS": "<h", "SL": "<i", "FD": "<d", "FL": "<f"}


def tag(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"


@pytest.fixture(scope="module", params=["full", "sparse", "raster"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(
        tmp_path_factory.mktemp("slide"),
        sizes=((150, 110), (75, 55)),
        tiling=request.param,
        associated=("label",),
        icc_profile=PROFILE,
    )


@pytest.fixture
def server(stored: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(stored.folder) as server:
        yield server


def opened_from(server: DICOMwebServer, slide: SyntheticSlide, **kwargs: Any) -> Slide:
    return Slide.open(server.series_url(slide.study_uid, slide.series_uid), **kwargs)


def each_element(dataset: Json) -> Iterator[tuple[str, Json]]:
    """Yield all elements with their tags, sequences after what is in them."""
    for name, element in dataset.items():
        if element["vr"] == "SQ":
            for item in element.get("Value", []):
                yield from each_element(item)
        yield name, element


def numbers_as_strings(name: str, element: Json) -> None:
    """dcm4chee sends IS and DS so, others everything."""
    if "Value" in element and element["vr"] not in ("SQ", "PN"):
        element["Value"] = [str(value) for value in element["Value"]]


def strings_as_numbers(name: str, element: Json) -> None:
    if element["vr"] in ("SH", "LO", "DS", "IS", "CS"):
        element["Value"] = [
            float(value) if isinstance(value, str) and value.replace(".", "", 1).isdigit() else value
            for value in element.get("Value", [])
        ]
        element["Value"] = [int(v) if isinstance(v, float) and v == int(v) else v for v in element["Value"]]


def padded_with_nul(name: str, element: Json) -> None:
    """Azure hands NUL padding through."""
    if "Value" in element and element["vr"] not in ("SQ", "PN"):
        element["Value"] = [value + "\0" if isinstance(value, str) else value for value in element["Value"]]


def padded_with_space(name: str, element: Json) -> None:
    if "Value" in element and element["vr"] in ("CS", "SH", "LO", "DS", "IS"):
        element["Value"] = [f" {value} " for value in element["Value"]]


def one_string(name: str, element: Json) -> None:
    """Several values with backslashes between them."""
    if len(element.get("Value", [])) > 1 and element["vr"] != "SQ":
        element["Value"] = ["\\".join(str(value) for value in element["Value"])]


def bare_values(name: str, element: Json) -> None:
    """A value where a list of one belongs; and of several, one bare string."""
    if element["vr"] == "SQ":
        if len(element.get("Value", [])) == 1:
            element["Value"] = element["Value"][0]
    elif len(element.get("Value", [])) == 1:
        element["Value"] = element["Value"][0]
    elif element.get("Value"):
        element["Value"] = "\\".join(str(value) for value in element["Value"])


def inline_binary(name: str, element: Json) -> None:
    """Numbers as base64 of their bytes, as static-wado writes them."""
    code = BINARY.get(element["vr"])
    if code is not None and element.get("Value"):
        data = b"".join(struct.pack(code, value) for value in element.pop("Value"))
        element["InlineBinary"] = base64.b64encode(data).decode()


def nothing_as_null(name: str, element: Json) -> None:
    """Values that are empty are null, or a list of null."""
    if not element.get("Value") and "BulkDataURI" not in element:
        element["Value"] = [None]


def unknown_vr(name: str, element: Json) -> None:
    """Private or missing value representations."""
    if element["vr"] in ("CS", "LO", "SH", "IS"):
        element["vr"] = "UN"


def no_vr(name: str, element: Json) -> None:
    if element["vr"] != "SQ":
        del element["vr"]


FORMS: list[Callable[[str, Json], None]] = [
    numbers_as_strings,
    strings_as_numbers,
    padded_with_nul,
    padded_with_space,
    one_string,
    bare_values,
    inline_binary,
    nothing_as_null,
    unknown_vr,
    no_vr,
]


@pytest.mark.parametrize("form", FORMS)
def test_form_of_values(server: DICOMwebServer, stored: SyntheticSlide, form: Callable[[str, Json], None]) -> None:
    with opened_from(server, stored) as usual:
        expected = usual.properties
    for instance in server.instances:
        for name, element in list(each_element(instance.metadata)):
            form(name, element)
    with opened_from(server, stored) as opened:
        assert_reads(opened, stored)
        assert (opened.study_uid, opened.series_uid) == (stored.study_uid, stored.series_uid)
        assert opened.properties == expected
        assert opened.mpp == pytest.approx((0.5, 0.5))
        assert opened.icc_profile == PROFILE
        np.testing.assert_array_equal(opened.associated_images["label"], stored.associated["label"])
        with pytest.raises(KeyError, match=r"macro: .*label"):
            opened.associated_images["macro"]


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("FrameIncrementPointer", "AT", "00209222"),
        ("DimensionIndexPointer", "AT", "(0048,021E)"),
        ("AcquisitionDuration", "FD", "NaN"),
        ("PatientName", "PN", [{"Alphabetic": "A^B\0"}]),
        ("PatientID", "LO", None),
        ("SoftwareVersions", "LO", [None, "2.0", {}]),
        ("FileMetaInformationGroupLength", "UL", [200]),
        ("StudyDescription", "LO", ["a\\b", "c"]),
        ("LossyImageCompressionRatio", "DS", ["1.2e400", "x"]),
        ("SpecimenDescriptionSequence", "SQ", None),
        ("SpecimenDescriptionSequence", "SQ", [None, 3, {}]),
        ("ContainerIdentifier", "LO", {"a": 1}),
    ],
)
def test_values_that_do_not_matter_may_be_anything(
    server: DICOMwebServer, stored: SyntheticSlide, keyword: str, vr: str, value: object
) -> None:
    for instance in server.instances:
        instance.metadata[tag(keyword)] = {"vr": vr, "Value": value}
    with opened_from(server, stored) as opened:
        assert_reads(opened, stored)
        assert isinstance(opened.properties, dict)


@pytest.mark.parametrize("number_of_frames", ["missing", None, [], [None], "1", 1, ["1 "], [1.0]])
def test_number_of_frames_of_one(tmp_path: Path, number_of_frames: object) -> None:
    slide = make_slide(tmp_path, sizes=((50, 40),))
    with DICOMwebServer(slide.folder) as server:
        metadata = server.instances[0].metadata
        if number_of_frames == "missing":
            del metadata["00280008"]
        else:
            metadata["00280008"] = {"vr": "IS", "Value": number_of_frames}
        with opened_from(server, slide) as opened:
            assert_reads(opened, slide)
