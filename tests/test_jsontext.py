"""JSON text: what is read of it is the same whoever reads it, and what is left unread is read when it is needed."""

from __future__ import annotations

import copy
import gc
import json
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from headers import Dataset, frame_group, json_values, places_in, sparse, tag, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb import jsontext
from wsiweb.errors import MetadataError
from wsiweb.jsontext import UnreadItems, dumps, loads
from wsiweb.metadata import Instance

if TYPE_CHECKING:
    from wsiweb.frame_positions import FramePositions

PADDING = b" " * jsontext._LONG_BYTES
GROUPS = tag("PerFrameFunctionalGroupsSequence")


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_loads_is_json(value: Any) -> None:
    text = json.dumps(value)
    if "0" * 400 not in text:
        assert repr(loads(text.encode())) == repr(json.loads(text))


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_long_json_is_json(value: Any) -> None:
    """Another parser's; only integers beyond 64 bits, which no DICOM value has, come as floats."""
    text = json.dumps([value, " " * jsontext._LONG_BYTES])
    if not re.search("[0-9]{19}", text):
        assert repr(loads(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("body", [b"[NaN, 1e999]", b"\xef\xbb\xbf[1]", b'["\\ud800"]', b"[1.5, -0.0, 1E2]"])
def test_long_json_is_taken_as_leniently(body: bytes) -> None:
    assert repr(loads(body + b" " * jsontext._LONG_BYTES)) == repr(json.loads(body))


@pytest.mark.parametrize("padding", [b"", b" " * (jsontext._LONG_BYTES + 1)])
def test_a_name_in_another_character_set(padding: bytes) -> None:
    """It costs its letters, and nothing else."""
    body = '[{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller"}]}}]'.encode("latin-1")
    assert loads(body + padding) == [{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "M\ufffdller"}]}}]


@pytest.mark.parametrize("padding", [b"", b" " * (jsontext._LONG_BYTES + 1)])
@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"\xff\xfe\xfd", b"[" * 200_000, b"1" * 10_000])
def test_what_is_no_json_is_a_value_error(body: bytes, padding: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (of whatever text)
        loads(body + padding)
    assert gc.isenabled()


def test_garbage_collection_stays_as_it_was() -> None:
    loads(b"[]")
    assert gc.isenabled()
    gc.disable()
    try:
        loads(b"[]")
        assert not gc.isenabled()
    finally:
        gc.enable()


# Groups of frames that stay text -----------------------------------------------------------------------------


def long(*headers: Dataset) -> Any:
    return loads(json.dumps(headers).encode() + PADDING)


def outcome(header: Any) -> dict[str, Any] | str | None:
    """Return all that an instance says, in a form that can be compared, or why there is none."""
    try:
        instance = Instance.from_json(header)
    except MetadataError as error:
        return str(error)
    if instance is None:
        return None
    return {field.name: shown(getattr(instance, field.name)) for field in fields(instance)}


def shown(value: Any) -> str:
    positions: FramePositions = value
    if hasattr(value, "path_code"):
        columns = (positions.x, positions.y, positions.z_um, positions.path_code)
        return repr([(column.dtype, column.tolist()) for column in columns] + [positions.path_identifiers])
    return repr(value)


def test_tags_in_lower_case_and_nothing_in_place_of_a_path() -> None:
    header = sparse([(0, 0), (64, 0)])
    plane = header[GROUPS]["Value"][1][tag("PlanePositionSlideSequence")]["Value"][0]
    plane.pop(tag("ZOffsetInSlideCoordinateSystem"), None)
    plane[tag("ZOffsetInSlideCoordinateSystem").lower()] = {"vr": "DS", "Value": [2.0]}
    assert outcome(long(header)[0]) == outcome(header)
    header = json.loads(json.dumps(USUAL))
    header[GROUPS]["Value"][1][tag("OpticalPathIdentificationSequence")] = None
    assert outcome(long(header)[0]) == outcome(header)


USUAL = sparse([(0, 0)] * 3)
USUAL[GROUPS]["Value"] = [
    frame_group(0, 7, path="A", z_um=1.5),
    frame_group(-5, 0, path="B", z_um=-2),
    frame_group(2**31, 3, path="A "),
]
(_shared,) = USUAL[tag("SharedFunctionalGroupsSequence")]["Value"]
_shared[tag("OpticalPathIdentificationSequence")] = {
    "vr": "SQ", "Value": [{tag("OpticalPathIdentifier"): {"vr": "SH", "Value": ["S"]}}],
}  # fmt: skip


def test_what_is_usual_is_read_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(USUAL)
    (dataset,) = long(USUAL)
    assert isinstance(dataset[GROUPS]["Value"], UnreadItems)
    monkeypatch.setattr(UnreadItems, "read", None)
    assert outcome(dataset) == expected
    full = volume(PerFrameFunctionalGroupsSequence=USUAL[GROUPS]["Value"])  # where the groups say nothing new
    assert outcome(long(full)[0]) == outcome(full)


def test_what_stays_text_is_written_as_it_came() -> None:
    text = dumps(long(USUAL, volume()))
    assert json.loads(text) == [USUAL, volume()]
    assert dumps([1.5, "\u00e9", None]) == b'[1.5,"\\u00e9",null]'
    with_nan = [*long(USUAL), *json.loads('[{"a": NaN, "b": "\\ud800"}]')]  # of another answer, which is short
    assert repr(json.loads(dumps(with_nan))) == repr([USUAL, with_nan[1]])
    for other in (object(), b"xx", {1, 2}):
        with pytest.raises(TypeError, match="is no JSON"):
            dumps([*long(USUAL), other])
    with pytest.raises(ValueError, match="mark"):
        dumps([*long(USUAL), jsontext._MARK])


def test_resolution_of_the_first_group() -> None:
    header = sparse([(0, 0), (64, 0)])
    del header[tag("SharedFunctionalGroupsSequence")]
    for spacing, group in zip((0.0005, 0.001), header[GROUPS]["Value"], strict=True):
        group[tag("PixelMeasuresSequence")] = {
            "vr": "SQ", "Value": [{tag("PixelSpacing"): {"vr": "DS", "Value": [spacing, spacing]}}],
        }  # fmt: skip
    for given_header in (header, long(header)[0]):
        instance = Instance.from_json(given_header)
        assert instance is not None
        assert instance.mpp == (0.5, 0.5)


@pytest.mark.parametrize("value", [[], {}, [{}], None, "x", 7, [None], [[]], {"a": 1}, [{}, {}]])
@pytest.mark.parametrize("frames", [1, 2])
def test_groups_that_are_none(value: Any, frames: int) -> None:
    header = {**sparse([(0, 0)] * frames), GROUPS: {"vr": "SQ", "Value": value}}
    assert outcome(long(header)[0]) == outcome(header)


@pytest.mark.parametrize("element", [None, [], "x", {}, {"vr": "SQ"}, {"vr": "SQ", "BulkDataURI": "http://a/b"}])
def test_an_element_that_is_no_sequence(element: Any) -> None:
    header = {**sparse([(0, 0), (1, 1)]), GROUPS: element}
    assert long(header) == [header]
    assert outcome(long(header)[0]) == outcome(header)


@pytest.mark.parametrize("value", [{GROUPS: {}}, [GROUPS], [[GROUPS]], [{GROUPS: GROUPS}], GROUPS, [None, {GROUPS: 1}]])
def test_what_is_no_list_of_datasets(value: Any) -> None:
    assert loads(json.dumps(value).encode() + PADDING) == value


def test_text_that_is_none() -> None:
    """A byte that is no UTF-8, where nobody looks and where somebody does."""
    header = sparse([(0, 0), (1, 1)])
    header[GROUPS]["Value"] = [frame_group(0, 0, path="A"), frame_group(1, 1, path="@")]
    header[GROUPS]["Value"][0][tag("TextValue")] = {"vr": "UT", "Value": ["#"]}
    body = json.dumps([header]).encode() + PADDING
    ignored = loads(body.replace(b"#", b"\xff"))
    assert outcome(ignored[0]) == outcome(header)
    assert outcome(loads(body.replace(b"@", b"\xff"))[0]) == outcome(loads(body.replace(b"@", "\ufffd".encode()))[0])


spoilt = st.one_of(
    json_values,
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        [5.0, "5", "A\\B", [1, 2], [5.0], [True], ["7 "], {"Value": []}, {"InlineBinary": "AQAAAA=="}, [[]]]
    ),
)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_spoilt_groups_are_read_as_if_all_were(data: st.DataObject) -> None:
    """Oracle: the walk over what json has read."""
    header = json.loads(json.dumps(USUAL))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(places_in(header[GROUPS]["Value"]))
        if not places:
            break
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        container[key] = copy.deepcopy(data.draw(spoilt))  # some are always the same object
    text = json.dumps([header]).encode()
    assert outcome(loads(text + PADDING)[0]) == outcome(json.loads(text)[0])
