"""DICOM JSON datasets of slides without pixels; tags and VRs are pydicom's word, not the library's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Dataset = dict[str, dict[str, Any]]

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT = "1.2.840.10008.1.2.1"


def tag(keyword: str) -> str:
    """Return the key of an attribute in the JSON model."""
    number = tag_for_keyword(keyword)
    assert number is not None, keyword
    return f"{number:08X}"


def dataset(**attributes: Any) -> Dataset:
    """Return a dataset of attributes by keyword: a value, a list of values, or None to leave it out."""
    return {
        tag(keyword): {
            "vr": dictionary_VR(keyword).split(" ")[0],
            "Value": value if isinstance(value, list) else [value],
        }
        for keyword, value in attributes.items()
        if value is not None
    }


def volume(**attributes: Any) -> Dataset:
    """Return a TILED_FULL volume of 4 x 3 tiles of 64 x 48, 16-bit monochrome; ``attributes`` replace its own."""
    defaults = {
        "SOPClassUID": WHOLE_SLIDE,
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.9",
        "Modality": "SM",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "AvailableTransferSyntaxUID": EXPLICIT,
        "Columns": 64,
        "Rows": 48,
        "TotalPixelMatrixColumns": 250,
        "TotalPixelMatrixRows": 140,
        "NumberOfFrames": 12,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "PixelRepresentation": 0,
        "DimensionOrganizationType": "TILED_FULL",
        "OpticalPathSequence": [dataset(OpticalPathIdentifier="1")],
        "TotalPixelMatrixFocalPlanes": 1,
        "SharedFunctionalGroupsSequence": [dataset(PixelMeasuresSequence=[dataset(PixelSpacing=[0.0005, 0.0005])])],
    }
    return dataset(**{**defaults, **attributes})


def frame_group(x: int, y: int, *, path: str | None = None, z_um: float | None = None) -> Dataset:
    """Return the functional groups of a frame whose top left corner is at 0-based (x, y)."""
    plane = dataset(
        ColumnPositionInTotalImagePixelMatrix=x + 1,  # 1-based (PS3.3 C.8.12.6.1)
        RowPositionInTotalImagePixelMatrix=y + 1,
        ZOffsetInSlideCoordinateSystem=z_um,
    )
    groups = dataset(PlanePositionSlideSequence=[plane])
    if path is not None:
        groups.update(dataset(OpticalPathIdentificationSequence=[dataset(OpticalPathIdentifier=path)]))
    return groups


def sparse(corners: Sequence[tuple[int, int]], **attributes: Any) -> Dataset:
    """Return a TILED_SPARSE volume with a frame at each corner."""
    groups = [frame_group(x, y) for x, y in corners]
    return volume(
        DimensionOrganizationType="TILED_SPARSE",
        NumberOfFrames=len(corners),
        PerFrameFunctionalGroupsSequence=groups,
        **attributes,
    )


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container and key within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places_in(inner)


scalars = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from([10**30, 10**400, "NaN", "1\\2", "\0"])
    | st.text(max_size=6)
)  # fmt: skip
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["vr", "Value", "InlineBinary", "BulkDataURI", "Alphabetic"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
"""Of elements, and of anything else."""
