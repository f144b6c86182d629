"""Fill in what a dataset refers to by BulkDataURI and opening cannot do without (PS3.18 8.7.3.3, F.2.2).

Stores move large values out of the metadata: Google's per-frame functional groups over 1 MB, Orthanc's palettes.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING

from wsiweb.dicomjson import TAGS, Attributes
from wsiweb.errors import MetadataError, WsiWebError
from wsiweb.metadata import is_level
from wsiweb.sources.elements import read_items

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.sources.base import FrameSource, JsonDataset

_GROUPS = "PerFrameFunctionalGroupsSequence"
_TABLES = tuple(
    f"{kind}{colour}PaletteColorLookupTableData" for kind in ("", "Segmented") for colour in ("Red", "Green", "Blue")
)


def fill_in(dataset: JsonDataset, source: FrameSource, report: Callable[[str], None]) -> JsonDataset:
    """Return the dataset with what it refers to and reading needs; what cannot be had is reported."""
    attributes = Attributes(dataset)
    needed = list(_TABLES) if attributes.string("PhotometricInterpretation") == "PALETTE COLOR" else []
    if attributes.string("DimensionOrganizationType") != "TILED_FULL" and is_level(attributes):
        needed.append(_GROUPS)
    filled = dataset
    for keyword in needed:
        value = attributes.binary(keyword)
        if value is None or value.uri is None:
            continue
        try:
            data = source.fetch_bulk(value.uri)
            element = _sequence(data) if keyword == _GROUPS else _binary(data)
        except WsiWebError as error:
            report(f"Instance {attributes.string('SOPInstanceUID')}: {keyword} could not be had: {error}")
            continue
        filled = {**filled, TAGS[keyword]: element}
    return filled


def _binary(data: bytes) -> dict[str, object]:
    return {"vr": "OW", "InlineBinary": base64.b64encode(data).decode()}


def _sequence(data: bytes) -> dict[str, object]:
    """Parse the items of a sequence; how they are encoded is nowhere written, so that both ways are tried."""
    for implicit in (False, True):
        try:
            items = read_items(data, implicit=implicit)
        except (MetadataError, struct.error, IndexError):
            continue
        # Read the wrong way, sequences come out empty.
        if any(items) and all(macro["Value"] and all(macro["Value"]) for item in items for macro in item.values()):
            return {"vr": "SQ", "Value": items}
    raise MetadataError("its bulk data are no sequence that can be read.")
