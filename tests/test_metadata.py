"""From a dataset to an ``Instance``: what servers send is understood, what cannot be is a MetadataError."""

from __future__ import annotations

import base64
import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from headers import EXPLICIT, Dataset, dataset, frame_group, places_in, sparse, tag, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.errors import MetadataError
from wsiweb.metadata import Instance
from wsiweb.properties import properties_of
from wsiweb.pyramid import build_pyramids

if TYPE_CHECKING:
    from pathlib import Path


JPEG = "1.2.840.10008.1.2.4.50"


def parse(header: Dataset) -> Instance:
    instance = Instance.from_json(header)
    assert instance is not None
    return instance


def changed(header: Dataset, keyword: str, element: Any) -> Dataset:
    """Return a dataset with an element as it is, whatever it is."""
    return {**header, tag(keyword): element}


# What belongs to a slide ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class", [
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation: tiled, with a total pixel matrix
    "1.2.840.10008.5.1.4.1.1.91.1",  # annotations
    None,
])  # fmt: skip
def test_other_objects_are_none(sop_class: str | None) -> None:
    assert Instance.from_json(volume(SOPClassUID=sop_class)) is None


@pytest.mark.parametrize(("image_type", "flavor"), [
    (["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"], "VOLUME"),
    (["ORIGINAL", "PRIMARY", "VOLUME"], "VOLUME"),
    (["DERIVED\\PRIMARY\\VOLUME\\NONE"], "VOLUME"),
    (["ORIGINAL", "PRIMARY", "LABEL", "NONE"], "LABEL"),
    (["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"], "OVERVIEW"),
    (["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"], "THUMBNAIL"),
    (["DERIVED", "PRIMARY", "REGIONLOCALIZER", "NONE"], None),
    (["ORIGINAL", "PRIMARY"], "VOLUME"),  # tiles tell
    (["ORIGINAL", "PRIMARY", "", "NONE"], None),
    (["", "PRIMARY", "VOLUME"], "VOLUME"),
    ([None, "PRIMARY", "LABEL"], "LABEL"),
    (["\\PRIMARY\\VOLUME"], "VOLUME"),
    (["original", "primary", "volume", "none"], "VOLUME"),
    (None, "VOLUME"),
])  # fmt: skip
def test_the_third_value_of_image_type_decides(image_type: list[str] | None, flavor: str | None) -> None:
    instance = Instance.from_json(volume(ImageType=image_type))
    assert (instance and instance.flavor) == flavor


def test_a_single_frame_without_image_type_may_be_anything() -> None:
    header = volume(ImageType=None, NumberOfFrames=1, TotalPixelMatrixColumns=64, TotalPixelMatrixRows=48)
    with pytest.raises(MetadataError, match="ImageType does not tell"):
        Instance.from_json(header)


@pytest.mark.parametrize(("declared", "side"), [((250, 140), (64, 48)), ((60, 40), (60, 40)), ((64, 48), (64, 48))])
def test_a_label_of_one_frame_is_no_larger_than_that(declared: tuple[int, int], side: tuple[int, int]) -> None:
    """Some carry the matrix of level 0."""
    label = parse(
        volume(
            ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"], NumberOfFrames=1,
            TotalPixelMatrixColumns=declared[0], TotalPixelMatrixRows=declared[1],
        )
    )  # fmt: skip
    assert (label.matrix_width, label.matrix_height) == side


@pytest.mark.parametrize(
    ("stored", "available", "known"),
    [
        (JPEG, None, JPEG),
        (None, JPEG, JPEG),
        (JPEG, EXPLICIT, JPEG),
        (JPEG, [EXPLICIT, JPEG], JPEG),
        (None, [EXPLICIT, JPEG], None),  # one of them, and nobody says which
        (None, None, None),
    ],
)
def test_what_is_stored_goes_before_what_is_available(
    stored: str | None, available: str | list[str] | None, known: str | None
) -> None:
    header = volume(TransferSyntaxUID=stored, AvailableTransferSyntaxUID=available)
    assert parse(header).transfer_syntax_uid == known


# Values in odd forms ----------------------------------------------------------------------------------------


def test_numbers_as_strings_and_strings_as_numbers() -> None:
    """dcm4chee sends IS and DS as strings; group 2 is there (Google) or not."""
    header = volume(NumberOfFrames="12", BitsAllocated="16 ", Rows=48.0, AvailableTransferSyntaxUID=None,
                    TransferSyntaxUID="1.2.840.10008.1.2.4.50\0")  # fmt: skip
    header[tag("OpticalPathSequence")]["Value"] = [dataset(OpticalPathIdentifier=3, ObjectiveLensPower="20")]
    assert properties_of(header)["objective_power"] == 20.0
    instance = parse(header)
    assert (instance.number_of_frames, instance.pixels.bits_allocated, instance.pixels.rows) == (12, 16, 48)
    assert instance.transfer_syntax_uid == "1.2.840.10008.1.2.4.50"
    assert [path.identifier for path in instance.optical_paths] == ["3"]


def test_defaults_of_what_may_be_absent() -> None:
    absent = ("OpticalPathSequence", "TotalPixelMatrixFocalPlanes", "SharedFunctionalGroupsSequence", "Modality",
              "AvailableTransferSyntaxUID", "BitsStored", "PixelRepresentation", "FrameOfReferenceUID")  # fmt: skip
    instance = parse(volume(**dict.fromkeys(absent)))
    assert [path.identifier for path in instance.optical_paths] == ["1"]
    assert (instance.number_of_focal_planes, instance.pixels.bits_stored, instance.pixels.signed) == (1, 16, False)
    assert (instance.mpp, instance.transfer_syntax_uid, instance.origin_mm) == (None, None, None)
    assert not instance.extended_depth_of_field


def test_what_a_slide_can_be_read_without_may_be_no_number() -> None:
    """It is taken for absent."""
    measures = dataset(PixelMeasuresSequence=[dataset(PixelSpacing=["0.5 um", "0.5 um"])])
    header = volume(RecommendedAbsentPixelCIELabValue=["white"], ImagedVolumeWidth="15 mm", ImagedVolumeHeight=15.0,
                    SharedFunctionalGroupsSequence=[measures])  # fmt: skip
    header[tag("OpticalPathSequence")]["Value"] = [dataset(OpticalPathIdentifier="1", ObjectiveLensPower="40X")]
    header[tag("TotalPixelMatrixOriginSequence")] = {
        "vr": "SQ", "Value": [dataset(XOffsetInSlideCoordinateSystem="left", YOffsetInSlideCoordinateSystem=1.0)]
    }  # fmt: skip
    instance = parse(header)
    assert (instance.absent_pixel_cielab, instance.mpp, instance.origin_mm) == (None, None, None)
    assert "objective_power" not in properties_of(header)


@pytest.mark.parametrize(("stored", "expected"), [(12, 12), (0, 16), (-3, 1), (40, 16), (10**9, 16)])
def test_bits_stored_are_some_of_those_allocated(stored: int, expected: int) -> None:
    assert parse(volume(BitsAllocated=16, BitsStored=stored)).pixels.bits_stored == expected


def test_number_of_frames_may_be_absent_for_one() -> None:
    assert parse(volume(NumberOfFrames=None)).number_of_frames == 1


@pytest.mark.parametrize(("spacing", "volume_mm", "expected"), [
    ([0.0005, 0.00025], None, (0.25, 0.5)),  # row spacing is y
    (["0.0005", "0.00025"], None, (0.25, 0.5)),
    (["0.0005\\0.00025"], None, (0.25, 0.5)),
    ([0.0005, 0.00025], (9.0, 9.0), (0.25, 0.5)),
    (None, (0.25, 0.07), (1.0, 0.5)),
    (["0", "0"], (0.25, 0.07), (1.0, 0.5)),
    ([-0.1, 0.1], None, None),
    ([0.0005], None, None),
    (None, (0, 0.07), None),
    (None, None, None),
    ([1e-14, 1e-14], None, None),  # below all resolution, and above 0
])  # fmt: skip
def test_mpp(spacing: list[Any] | None, volume_mm: tuple[float, float] | None, expected: Any) -> None:
    """Either both axes are positive, or there is none."""
    measures = dataset(PixelMeasuresSequence=[dataset(PixelSpacing=spacing)])
    header = volume(SharedFunctionalGroupsSequence=[measures], ImagedVolumeWidth=volume_mm and volume_mm[0],
                    ImagedVolumeHeight=volume_mm and volume_mm[1])  # fmt: skip
    mpp = parse(header).mpp
    assert mpp == (expected and pytest.approx(expected, rel=1e-12))


def test_planes_without_pixel_spacing_keep_their_distance() -> None:
    measures = dataset(PixelMeasuresSequence=[dataset(SpacingBetweenSlices=0.0015)])
    header = volume(SharedFunctionalGroupsSequence=[measures], TotalPixelMatrixFocalPlanes=3, NumberOfFrames=36)
    assert parse(header).plane_spacing_um == pytest.approx(1.5)


@pytest.mark.parametrize(("keyword", "element"), [
    ("ImagedVolumeWidth", {"vr": "FL", "Value": ["NaN"]}),
    ("ImagedVolumeWidth", {"vr": "FL", "Value": [float("nan")]}),
    ("ImagedVolumeHeight", {"vr": "FL", "Value": ["inf"]}),
])  # fmt: skip
def test_not_a_number_where_a_number_is_not_needed(keyword: str, element: dict[str, Any]) -> None:
    """Servers spell NaN of FL and FD as strings; the pixels read all the same."""
    assert parse(changed(volume(), keyword, element)).mpp == pytest.approx((0.5, 0.5))


FAR = 2**41


@pytest.mark.parametrize(("x", "y", "z_um", "what"), [
    (FAR, 0, 0, "slides"), (-FAR, 0, 0, "slides"), (0, FAR, 0, "slides"), (0, -FAR, 0, "slides"),
    (0, 0, FAR, "slides"), (0, 0, -FAR, "slides"), (10**30, 0, 0, "numbers"),
])  # fmt: skip
def test_positions_beyond_all_slides_are_refused(x: int, y: int, z_um: float, what: str) -> None:
    """Sums of them would not fit into 64 bits."""
    header = sparse([(0, 0), (0, 0)])
    header["52009230"]["Value"][1] = frame_group(x, y, z_um=z_um)
    with pytest.raises(MetadataError, match=f"the position of a frame is beyond all {what}"):
        Instance.from_json(header)


def test_keys_in_lower_case() -> None:
    header = {key.lower(): element for key, element in sparse([(0, 0), (64, 48)]).items()}
    assert parse(header).address.study_uid == "1.2"


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"])
@pytest.mark.parametrize(
    "value", [None, [], [None], ["x"], [0], [-1], [1.5], [2**40], ["NaN"], [10**400], [{}]], ids=lambda v: repr(v)[:9]
)
def test_what_is_needed_is_named(keyword: str, value: list[Any] | None) -> None:
    header = volume()
    del header[tag(keyword)]
    if value is not None:
        header[tag(keyword)] = {"vr": "US", "Value": value}
    with pytest.raises(MetadataError, match=rf"^Instance 1\.2\.3\.4: {keyword} is"):
        Instance.from_json(header)


def test_an_instance_has_a_uid() -> None:
    with pytest.raises(MetadataError, match=r"^Instance without SOPInstanceUID: SOPInstanceUID is missing"):
        Instance.from_json(volume(SOPInstanceUID=None))


@pytest.mark.parametrize("frames", [0, -3])
def test_there_is_a_frame(frames: int) -> None:
    with pytest.raises(MetadataError, match=rf"1\.2\.3\.4: NumberOfFrames is {frames}"):
        Instance.from_json(volume(NumberOfFrames=frames))


def test_background_value() -> None:
    assert parse(volume(RecommendedAbsentPixelCIELabValue=["65535\\32896\\32896"])).absent_pixel_cielab == (
        65_535, 32_896, 32_896,
    )  # fmt: skip
    assert parse(volume(RecommendedAbsentPixelCIELabValue=[1, 2])).absent_pixel_cielab is None


# Positions of frames ----------------------------------------------------------------------------------------


def corners_of(instance: Instance) -> list[tuple[int, int]]:
    assert instance.positions is not None
    return list(zip(instance.positions.x.tolist(), instance.positions.y.tolist(), strict=True))


corners = st.lists(st.tuples(st.integers(-(2**31), 2**31), st.integers(-(2**31), 2**31)), min_size=1, max_size=6)


@given(corners)
@settings(max_examples=50, deadline=None)
def test_positions_are_one_based_in_the_metadata(places: list[tuple[int, int]]) -> None:
    assert corners_of(parse(sparse(places))) == places


def test_positions_in_every_form() -> None:
    """As numbers, strings, floats, bare values and base64 (static-wado), mixed."""
    column, row = tag("ColumnPositionInTotalImagePixelMatrix"), tag("RowPositionInTotalImagePixelMatrix")
    planes: list[Dataset] = [
        {column: {"vr": "SL", "Value": [1]}, row: {"vr": "SL", "Value": [49]}},
        {column: {"vr": "SL", "Value": ["65"]}, row: {"vr": "SL", "Value": ["1 "]}},
        {column: {"vr": "SL", "Value": 65.0}, row: {"vr": "SL", "Value": [49.0]}},
        {column: {"vr": "UL", "InlineBinary": "gQAAAA=="}, row: {"vr": "UL", "InlineBinary": "AQAAAA=="}},
    ]
    header = sparse([(0, 0)] * 4)
    header[tag("PerFrameFunctionalGroupsSequence")]["Value"] = [
        {tag("PlanePositionSlideSequence"): {"vr": "SQ", "Value": [plane]}} for plane in planes
    ]
    assert corners_of(parse(header)) == [(0, 48), (64, 0), (64, 48), (128, 0)]


def test_paths_and_planes_of_frames() -> None:
    header = sparse([(0, 0)] * 4)
    header[tag("PerFrameFunctionalGroupsSequence")]["Value"] = [
        frame_group(0, 0, path="A", z_um=1.5),
        frame_group(0, 0, path="B", z_um=-2),
        frame_group(0, 0, path="A\0"),
        frame_group(0, 0),
    ]
    positions = parse(header).positions
    assert positions is not None
    assert [positions.path_identifiers[code] for code in positions.path_code] == ["A", "B", "A", None]
    np.testing.assert_array_equal(positions.z_um, [1.5, -2, np.nan, np.nan])


@pytest.mark.parametrize("names", [("1", "10"), ("CY3", "CY5"), (1, 10)])
def test_bare_identifiers_of_paths(names: tuple[Any, ...]) -> None:
    """Some servers send values that are no lists (static-wado)."""
    header = sparse([(0, 0)] * 2)
    groups = header[tag("PerFrameFunctionalGroupsSequence")]["Value"] = [frame_group(0, 0, path=name) for name in names]
    for group in groups:
        identifier = group[tag("OpticalPathIdentificationSequence")]["Value"][0][tag("OpticalPathIdentifier")]
        identifier["Value"] = identifier["Value"][0]
    positions = parse(header).positions
    assert positions is not None
    assert [positions.path_identifiers[code] for code in positions.path_code] == [str(name) for name in names]


def test_a_frame_without_position_is_named() -> None:
    header = sparse([(0, 0), (64, 0), (0, 48)])
    header[tag("PerFrameFunctionalGroupsSequence")]["Value"][1] = {}
    with pytest.raises(MetadataError, match=r"1\.2\.3\.4: frame 2 has no position"):
        Instance.from_json(header)


def test_as_many_groups_as_frames() -> None:
    header = changed(sparse([(0, 0), (64, 0)]), "NumberOfFrames", {"vr": "IS", "Value": [3]})
    with pytest.raises(MetadataError, match="2 per-frame groups for 3 frames"):
        Instance.from_json(header)


def test_groups_of_a_full_instance_are_not_read() -> None:
    header = volume(PerFrameFunctionalGroupsSequence=[frame_group(5, 5)] * 3)
    assert parse(header).positions is None


# Whatever it is, only a MetadataError -----------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.floats() | st.integers(-5, 5)
    | st.sampled_from([10**9, 2**31, 2**63, 10**18, 10**30, 10**400, -(10**30), 1e299, 1e-300])
    | st.sampled_from(["", "x", "NaN", "1\\2", "\0", "1e400", "\u20ac"])
)  # fmt: skip
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["vr", "Value", "InlineBinary", "BulkDataURI"]), inner, max_size=3)
    ),
    max_leaves=5,
)
PALETTE = {
    f"{colour}PaletteColorLookupTable{kind}": value
    for colour in ("Red", "Green", "Blue")
    for kind, value in (("Descriptor", [256, 0, 8]), ("Data", [0]))
}


def palette_header() -> Dataset:
    header = volume(PhotometricInterpretation="PALETTE COLOR", BitsAllocated=8, BitsStored=8, **PALETTE)
    for colour in ("Red", "Green", "Blue"):
        header[tag(f"{colour}PaletteColorLookupTableData")] = {"vr": "OW", "InlineBinary": "AAEC" * 90}
    return header


HEADERS = {
    "full": volume(
        ConcatenationUID="1.9",
        ConcatenationFrameOffsetNumber=0,
        RecommendedAbsentPixelCIELabValue=[1, 2, 3],
        ImagedVolumeWidth=1.0,
        ImagedVolumeHeight=2.0,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        BitsAllocated=8,
    ),
    "sparse": changed(
        sparse([(0, 0), (64, 48)]),
        "PerFrameFunctionalGroupsSequence",
        {"vr": "SQ", "Value": [frame_group(0, 0, path="1", z_um=0.5), frame_group(9, 9, path="2")]},
    ),
    "palette": palette_header(),
    "label": volume(ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"]),
}
"""Of every branch of the parser."""


def survives(header: Dataset) -> None:
    """Parse, and build a pyramid; either may refuse with MetadataError."""
    try:
        instance = Instance.from_json(header)
        if instance is None:
            return
        assert type(instance.mpp) in (type(None), tuple)
        if instance.number_of_focal_planes < 1000:  # hostile counts have a test of their own
            build_pyramids([instance], mpp=None, report=lambda problem: None)
    except MetadataError:
        return


@pytest.mark.parametrize("name", HEADERS)
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_spoilt_dataset_is_a_metadata_error_at_worst(name: str, data: st.DataObject) -> None:
    header = copy.deepcopy(HEADERS[name])
    for _ in range(data.draw(st.integers(1, 2))):
        places = list(places_in(header))
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        container[key] = data.draw(junk)
    survives(header)


@given(st.dictionaries(st.sampled_from(sorted(HEADERS["full"])), junk))
@settings(max_examples=100, deadline=None)
def test_any_dataset_is_a_metadata_error_at_worst(elements: dict[str, Any]) -> None:
    survives({**elements, tag("SOPClassUID"): HEADERS["full"][tag("SOPClassUID")]})


def first_group(header: Dataset) -> Any:
    return header[tag("PerFrameFunctionalGroupsSequence")]["Value"][0]


@pytest.mark.parametrize("keyword", ["ColumnPositionInTotalImagePixelMatrix", "ZOffsetInSlideCoordinateSystem"])
@pytest.mark.parametrize("value", [10**30, 10**400, float("inf"), -1e299, 1e307], ids=lambda value: repr(value)[:8])
def test_positions_beyond_all_numbers(keyword: str, value: float) -> None:
    header = copy.deepcopy(HEADERS["sparse"])
    first_group(header)[tag("PlanePositionSlideSequence")]["Value"][0][tag(keyword)] = {"vr": "SL", "Value": [value]}
    survives(header)


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 7, None])
def test_a_path_identifier_of_a_frame_that_is_no_text(value: Any) -> None:
    header = copy.deepcopy(HEADERS["sparse"])
    path = first_group(header)[tag("OpticalPathIdentificationSequence")]["Value"][0]
    path[tag("OpticalPathIdentifier")] = {"vr": "SH", "Value": [value]}
    survives(header)


@pytest.mark.parametrize("value", [[1e299, 0, 0], [-1e299, 1e299, 0], [10**400, 0, 0]], ids=lambda v: repr(v)[:9])
def test_a_background_beyond_all_colours(value: list[float]) -> None:
    survives(changed(HEADERS["full"], "RecommendedAbsentPixelCIELabValue", {"vr": "US", "Value": value}))


def test_palettes_of_different_lengths() -> None:
    descriptor = {"vr": "US", "Value": [255, 0, 8]}
    with pytest.raises(MetadataError, match=r"1\.2\.3\.4: .*PaletteColorLookupTable"):
        Instance.from_json(changed(HEADERS["palette"], "GreenPaletteColorLookupTableDescriptor", descriptor))


@pytest.mark.parametrize("segment", [(0, 0), (1, 0, 7), (2, 0, 0, 0)], ids=["discrete", "linear", "indirect"])
def test_palette_segments_without_length_are_refused(segment: tuple[int, ...]) -> None:
    """There are none (PS3.3 C.7.9.2): repeated by the thousand, they bring nothing and take hours."""
    header = palette_header()
    data = np.array([0, 1, 9, *segment, 0, 255, *range(255)], "<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        header[tag(f"{colour}PaletteColorLookupTableDescriptor")] = {"vr": "US", "Value": [256, 0, 16]}
        segments = header[tag(f"{colour}PaletteColorLookupTableData")]
        header[tag(f"Segmented{colour}PaletteColorLookupTableData")] = segments
        del header[tag(f"{colour}PaletteColorLookupTableData")]
        segments["InlineBinary"] = base64.b64encode(data).decode()
    with pytest.raises(MetadataError, match="without length"):
        Instance.from_json(header)


def test_a_hostile_count_of_paths_costs_nothing() -> None:
    """More optical paths than frames cannot be; nothing is made for each of them."""
    header = volume(NumberOfOpticalPaths=1_000_000, OpticalPathSequence=None)
    with pytest.raises(MetadataError, match=r"optical paths|OpticalPaths"):
        build_pyramids([parse(header)], mpp=None, report=pytest.fail)


# Metadata as real servers sent them -------------------------------------------------------------------------


def recorded(slides: Path, name: str) -> list[Instance]:
    content = json.loads((slides / "metadata" / f"{name}.json").read_text())
    datasets = [item["dicom_tags"] for item in content["test_data"]] if isinstance(content, dict) else content
    return [parse(header) for header in datasets]


def sizes(instances: list[Instance], flavor: str = "VOLUME") -> list[tuple[int, int]]:
    return [(one.matrix_width, one.matrix_height) for one in instances if one.flavor == flavor]


def levels(instances: list[Instance]) -> list[tuple[int, int]]:
    (pyramid,) = build_pyramids(instances, mpp=None, report=pytest.fail)
    return [level.size for level in pyramid.levels]


@pytest.mark.slides
@pytest.mark.parametrize(("name", "volumes", "tile", "mpp"), [
    ("idc-TCGA-LUAD_TCGA-05-4244-01Z-00-DX1.series-metadata",
     [(46_336, 44_288), (11_584, 11_072), (2_896, 2_768)], (256, 256), 0.2325),
    ("idc-C3N-01016-22.series-metadata", [(47_807, 47_007), (11_951, 11_751), (2_987, 2_937)], (240, 240), 0.4942),
])  # fmt: skip
def test_recorded_idc(
    slides: Path, name: str, volumes: list[tuple[int, int]], tile: tuple[int, int], mpp: float
) -> None:
    instances = recorded(slides, name)
    assert sizes(instances) != volumes  # as sent, in no order
    assert levels(instances) == volumes
    assert len(sizes(instances, "THUMBNAIL")) == 1
    for one in instances:
        assert (one.pixels.photometric, one.transfer_syntax_uid, one.organization) == ("RGB", None, "TILED_FULL")
        if one.flavor == "VOLUME":
            assert (one.pixels.columns, one.pixels.rows) == tile
            assert one.number_of_frames == -(-one.matrix_width // tile[0]) * -(-one.matrix_height // tile[1])
    base = next(one for one in instances if one.matrix_width == volumes[0][0])
    assert base.mpp == pytest.approx((mpp, mpp))
    (path,) = base.optical_paths
    assert path.icc_profile is not None
    assert path.icc_profile.uri is not None
    assert path.icc_profile.uri.startswith("http://localhost:8008/")


@pytest.mark.slides
def test_recorded_multiplex(slides: Path) -> None:
    """Three series, one a channel, shuffled."""
    instances = recorded(slides, "idc-HTA9_1_BA_L.series-metadata")
    assert len({one.address.series_uid for one in instances}) == 3
    assert levels(instances) == [(3_875, 2_313), (1_937, 1_156), (968, 578)]
    assert {(one.pixels.columns, one.pixels.rows, one.pixels.photometric) for one in instances} == {
        (1024, 1024, "MONOCHROME2"),
    }  # fmt: skip
    assert {one.number_of_frames for one in instances if one.matrix_width == 3_875} == {12}
    (pyramid,) = build_pyramids(instances, mpp=None, report=pytest.fail)
    assert len(pyramid.optical_paths) == 3


@pytest.mark.slides
def test_recorded_google(slides: Path) -> None:
    instances = recorded(slides, "google-orchestrator-53524x46765.series-metadata")
    assert len(instances) == 12
    assert levels(instances) == [(53_524 >> n, 46_765 >> n) for n in range(9)]
    tiles = {one.matrix_width: (one.pixels.columns, one.pixels.rows) for one in instances if one.flavor == "VOLUME"}
    assert [tiles[53_524 >> n] for n in range(9)] == [(256, 256)] * 8 + [(209, 182)]
    base = max(instances, key=lambda one: one.matrix_width)
    for flavor in ("THUMBNAIL", "OVERVIEW", "LABEL"):
        (one,) = (one for one in instances if one.flavor == flavor)
        assert one.mpp == base.mpp  # by copy, and wrong
        assert one.pixels.photometric == ("RGB" if flavor == "OVERVIEW" else "YBR_FULL_422")


@pytest.mark.slides
def test_recorded_concatenation(slides: Path) -> None:
    instances = recorded(slides, "ez-wsi-concatenation-instances")
    assert [one.concatenation_offset for one in instances] == [6, 0]
    assert len({one.concatenation_uid for one in instances}) == 1
    assert {(one.pixels.columns, one.pixels.rows, one.number_of_frames) for one in instances} == {(2, 2, 6)}
    assert levels(instances) == [(8, 6)]


@pytest.mark.slides
def test_recorded_parts_without_numbers(slides: Path) -> None:
    """One level in two parts; the two largest, which list their first 2,048 frames only, do not fit their size."""
    instances = recorded(slides, "ez-wsi-sample-instances")
    assert len(instances) == 11
    assert max(sizes(instances)) == (98_816, 199_168)
    parts = [one for one in instances if one.matrix_width == 24_704]
    assert [(one.concatenation_offset, one.number_of_frames) for one in parts] == [(0, 2048), (2048, 2048)]
    problems: list[str] = []
    (pyramid,) = build_pyramids(instances, mpp=None, report=problems.append)
    assert [level.width for level in pyramid.levels][-8:] == [24_704, 12_352, 6_176, 3_088, 1_544, 772, 386, 193]
    assert len(problems) == 10 - len(pyramid.levels)


@pytest.mark.slides
def test_recorded_parts_with_a_gap(slides: Path) -> None:
    instances = recorded(slides, "ez-wsi-two-transfer-syntaxes")
    assert [one.transfer_syntax_uid for one in instances] == ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2"]
    assert [one.concatenation_offset for one in instances] == [0, 2049]
    assert levels(instances) == [(98_816, 199_168)]
