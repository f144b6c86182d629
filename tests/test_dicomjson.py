"""The DICOM JSON model in every form in which servers send it."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from headers import json_values, tag
from hypothesis import given, settings
from pydicom.datadict import keyword_for_tag

from wsiweb.dicomjson import TAGS, Attributes, BinaryValue
from wsiweb.errors import MetadataError


def one(keyword: str, element: Any) -> Attributes:
    return Attributes({tag(keyword): element})


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_tags_are_those_of_the_dictionary() -> None:
    assert {keyword: keyword_for_tag(int(number, 16)) for keyword, number in TAGS.items()} == {k: k for k in TAGS}
    assert all(number == f"{int(number, 16):08X}" for number in TAGS.values())


@pytest.mark.parametrize(("element", "expected"), [
    ({"vr": "CS", "Value": ["DERIVED", "PRIMARY", "VOLUME"]}, ("DERIVED", "PRIMARY", "VOLUME")),
    ({"vr": "CS", "Value": ["DERIVED\\PRIMARY\\VOLUME"]}, ("DERIVED", "PRIMARY", "VOLUME")),  # static-wado
    ({"vr": "CS", "Value": "DERIVED\\PRIMARY"}, ("DERIVED", "PRIMARY")),
    ({"vr": "CS", "Value": ["VOLUME \0", " NONE\0"]}, ("VOLUME", "NONE")),  # Azure
    ({"vr": "CS", "Value": ["A", None, "B", ""]}, ("A", "B")),
    ({"vr": "CS", "Value": "VOLUME"}, ("VOLUME",)),
    ({"vr": "CS", "Value": [17, 2.5]}, ("17", "2.5")),
    ({"vr": "CS", "Value": []}, ()),
    ({"vr": "CS", "Value": None}, ()),
    ({"vr": "CS", "Value": [None]}, ()),
    ({"vr": "CS"}, ()),
    ({"Value": ["A\\B"]}, ("A", "B")),  # no VR
    ({"vr": "XX", "Value": ["A"]}, ("A",)),  # an unknown one
    ({"vr": "UT", "Value": ["a\\b"]}, ("a\\b",)),  # no separator there (PS3.5 6.2)
    ({"vr": "LT", "Value": "a\\b"}, ("a\\b",)),
    (None, ()),
    ("VOLUME", ()),
    ([], ()),
])  # fmt: skip
def test_strings(element: Any, expected: tuple[str, ...]) -> None:
    attributes = one("ImageType", element)
    assert attributes.strings("ImageType") == expected
    assert attributes.string("ImageType") == (expected[0] if expected else None)


def test_an_absent_attribute_is_empty() -> None:
    attributes = Attributes({})
    assert attributes.strings("ImageType") == ()
    assert attributes.numbers("Rows") == ()
    assert (attributes.string("ImageType"), attributes.number("Rows"), attributes.integer("Rows")) == (None, None, None)
    assert attributes.sequence("OpticalPathSequence") == []
    assert attributes.first_item("OpticalPathSequence").string("OpticalPathIdentifier") is None
    assert attributes.binary("ICCProfile") is None


@pytest.mark.parametrize(("value", "expected"), [
    ({"Alphabetic": "GenLast^Penelope"}, "GenLast^Penelope"),
    ({"Alphabetic": "", "Ideographic": "\u5c71"}, "\u5c71"),
    ({"Phonetic": "Yama"}, "Yama"),
    ("A^B", "A^B"),
    ({}, None),
])  # fmt: skip
def test_person_names_are_objects(value: Any, expected: str | None) -> None:
    assert one("PatientID", {"vr": "PN", "Value": [value]}).string("PatientID") == expected


@pytest.mark.parametrize(("element", "expected"), [
    ({"vr": "DS", "Value": [0.0005, 0.00025]}, (0.0005, 0.00025)),
    ({"vr": "DS", "Value": ["0.0005", " 2.5e-4\0"]}, (0.0005, 0.00025)),  # dcm4chee
    ({"vr": "DS", "Value": ["0.0005\\0.00025"]}, (0.0005, 0.00025)),
    ({"vr": "DS", "Value": "0.0005\\0.00025"}, (0.0005, 0.00025)),
    ({"vr": "DS", "Value": ["5.00000000000000E-04"]}, (0.0005,)),
    ({"vr": "DS", "Value": [" +7. "]}, (7.0,)),
    ({"vr": "IS", "Value": 12}, (12.0,)),
    ({"vr": "IS", "Value": ["12", "", None, " \0"]}, (12.0,)),
    ({"vr": "US", "InlineBinary": base64_of(struct.pack("<2H", 7, 65_535))}, (7, 65_535)),
    ({"vr": "SS", "InlineBinary": base64_of(struct.pack("<h", -3))}, (-3,)),
    ({"vr": "UL", "InlineBinary": base64_of(struct.pack("<I", 1 << 31))}, (1 << 31,)),  # static-wado
    ({"vr": "SL", "InlineBinary": base64_of(struct.pack("<i", -(1 << 31)))}, (-(1 << 31),)),
    ({"vr": "FL", "InlineBinary": base64_of(struct.pack("<f", 0.25))}, (0.25,)),
    ({"vr": "FD", "InlineBinary": base64_of(struct.pack("<2d", 0.1, -2e9))}, (0.1, -2e9)),
    ({"vr": "UV", "InlineBinary": base64_of(struct.pack("<Q", 1 << 40))}, (1 << 40,)),
    ({"vr": "UL", "InlineBinary": ""}, ()),
    ({"vr": "UL", "InlineBinary": base64_of(b"\x01\x00\x00\x00\x02")}, (1,)),  # an odd byte over
])  # fmt: skip
def test_numbers(element: Any, expected: tuple[float, ...]) -> None:
    assert one("PixelSpacing", element).numbers("PixelSpacing") == expected


@pytest.mark.parametrize("value", [
    "abc", "1,5", "0x10", "NaN", "nan", "inf", "-Infinity", float("nan"), float("inf"), 1e308, "1e400",
    [1], {}, {"a": 1}, 10**400, -(10**400),
], ids=lambda value: repr(value)[:12])  # fmt: skip
def test_what_is_no_number_is_named(value: Any) -> None:
    attributes = one("Rows", {"vr": "US", "Value": [value]})
    for read in (attributes.numbers, attributes.number, attributes.integer, attributes.required_integer):
        with pytest.raises(MetadataError, match=r"^Rows is "):
            read("Rows")


@pytest.mark.parametrize("vr", [[], {}, ["US"], 7, None])
def test_a_vr_that_is_none(vr: Any) -> None:
    assert one("Rows", {"vr": vr, "Value": ["7\\8"]}).numbers("Rows")[0] == 7
    assert one("Rows", {"vr": vr, "InlineBinary": "AAAA"}).numbers("Rows") == ()


def test_integers() -> None:
    def rows(value: Any) -> Attributes:
        return one("Rows", {"vr": "US", "Value": [value]})

    assert [rows(value).integer("Rows") for value in (7, "7", 7.0, "7.0", "7e2")] == [7, 7, 7, 7, 700]
    assert all(type(rows(value).integer("Rows")) is int for value in (7, "7", 7.0))
    with pytest.raises(MetadataError, match=r"Rows is 7\.5"):
        rows(7.5).integer("Rows")
    assert rows(5).required_integer("Rows", low=5, high=5) == 5
    for value in (4, 6):
        with pytest.raises(MetadataError, match=rf"Rows is {value}, outside of 5 to 5"):
            rows(value).required_integer("Rows", low=5, high=5)
    with pytest.raises(MetadataError, match="Rows is missing"):
        Attributes({}).required_integer("Rows")


@pytest.mark.parametrize(("value", "count"), [
    ([{}, {}], 2),
    ({}, 1),  # one item that is no list
    ([None, "x", 3], 3),  # items that are none, but count
    (None, 0),
    ([], 0),
    ("x", 0),
    (3, 0),
])  # fmt: skip
def test_sequences(value: Any, count: int) -> None:
    attributes = one("OpticalPathSequence", {"vr": "SQ", "Value": value})
    assert len(attributes.sequence("OpticalPathSequence")) == len(attributes.raw_items("OpticalPathSequence")) == count
    assert attributes.first_item("OpticalPathSequence").string("OpticalPathIdentifier") is None


def test_items_of_sequences() -> None:
    items = [{tag("OpticalPathIdentifier"): {"vr": "SH", "Value": [name]}} for name in ("a", "b")]
    attributes = one("OpticalPathSequence", {"vr": "SQ", "Value": items})
    found = [item.string("OpticalPathIdentifier") for item in attributes.sequence("OpticalPathSequence")]
    assert found == ["a", "b"]
    assert attributes.first_item("OpticalPathSequence").string("OpticalPathIdentifier") == "a"


@pytest.mark.parametrize(("element", "expected"), [
    ({"vr": "OB", "InlineBinary": "AAECAw=="}, BinaryValue(b"\0\1\2\3", None)),
    ({"vr": "OB", "InlineBinary": "AAEC\r\nAw=="}, BinaryValue(b"\0\1\2\3", None)),  # broken into lines
    ({"vr": "OB", "InlineBinary": ""}, BinaryValue(b"", None)),
    ({"vr": "OB", "BulkDataURI": "http://host/bulk/1"}, BinaryValue(None, "http://host/bulk/1")),
    ({"vr": "OB", "BulkDataURI": {"vr": "OB", "BulkDataURI": "http://host/1"}}, BinaryValue(None, "http://host/1")),
    ({"vr": "OB"}, None),
    ({"vr": "OB", "Value": []}, None),
    ({"vr": "OB", "BulkDataURI": ""}, None),
    ({"vr": "OB", "BulkDataURI": 7}, None),
    ("AAEC", None),
])  # fmt: skip
def test_binary_values(element: Any, expected: BinaryValue | None) -> None:
    assert one("ICCProfile", element).binary("ICCProfile") == expected


@pytest.mark.parametrize("value", ["A", "\u20ac", 7, None, ["AAEC"], {}])
def test_what_is_no_base64_is_named(value: Any) -> None:
    with pytest.raises(MetadataError, match="ICCProfile is no valid base64"):
        one("ICCProfile", {"vr": "OB", "InlineBinary": value}).binary("ICCProfile")


def test_keys_in_lower_case() -> None:
    attributes = Attributes({"0020000d": {"vr": "UI", "Value": ["1.2.3"]}})
    assert attributes.string("StudyInstanceUID") == "1.2.3"


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_any_element_is_read_or_named(element: Any) -> None:
    attributes = one("Rows", element)
    attributes.sequence("Rows")
    for read in (attributes.strings, attributes.numbers, attributes.integer, attributes.binary):
        try:
            read("Rows")
        except MetadataError as error:
            assert str(error).startswith("Rows ")  # noqa: PT017  (it may as well read)
