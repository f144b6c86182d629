"""Which answers of a search match its filters (PS3.4 C.2.2.2), for what services ignore or refuse. Pure."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from wsiweb.dicomjson import Attributes
from wsiweb.errors import WsiWebError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsiweb.sources.base import JsonDataset

_DATES = frozenset({"DA", "TM", "DT"})
_TAG = re.compile(r"[0-9a-fA-F]{8}")


class Filter:
    r"""One attribute that what is found must have.

    Parameters
    ----------
    name
        DICOM keyword, or a tag of eight hexadecimal digits.
    value
        As for QIDO-RS: ``*`` and ``?`` stand for anything in text, ``20200101-20201231`` is a range of dates, a list
        or ``\``-separated text means any of several UIDs.

    Raises
    ------
    WsiWebError
        DICOM has no such attribute.
    """

    def __init__(self, name: str, value: Any) -> None:
        from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword  # noqa: PLC0415

        tag = int(name, 16) if _TAG.fullmatch(name) else tag_for_keyword(name)
        if tag is None:
            near = difflib.get_close_matches(name, list(keyword_dict), 3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise WsiWebError(f"DICOM has no attribute {name!r}; filters are keywords such as PatientID.{hint}")
        self.name = name
        self.tag = f"{tag:08X}"
        try:
            self.vr = dictionary_VR(tag)
        except KeyError:
            self.vr = "UN"
        values = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        self.value = "\\".join(str(one).strip() for one in values)

    def matches(self, dataset: JsonDataset) -> bool | None:
        """Whether a dataset matches; None where it does not have the attribute, and so cannot tell."""
        if not self.value.strip("*"):  # universal matching
            return True
        found = _texts(dataset.get(self.tag))
        if found is None:
            return None
        if self.vr in _DATES and "-" in self.value:
            start, _, end = self.value.partition("-")
            return any((not start or one >= start) and (not end or one[: len(end)] <= end) for one in found)
        wanted = self.value.split("\\")
        if self.vr == "PN":  # names are compared without case and empty components
            wanted = [one.casefold().rstrip("^") for one in wanted]
            found = [one.casefold().rstrip("^") for one in found]
        return any(fnmatchcase(one, pattern.replace("[", "[[]")) for one in found for pattern in wanted)


def _texts(element: Any) -> list[str] | None:
    """Return the values of an attribute as text; None where it is not there or empty."""
    if not isinstance(element, dict):
        return None
    values = element.get("Value")
    values = values if isinstance(values, list) else [] if values is None else [values]
    texts = []
    for value in values:
        text = value.get("Alphabetic", "") if isinstance(value, dict) else value
        texts += [part.strip(" \0") for part in str(text).split("\\")]
    return [text for text in texts if text] or None


def texts_of(dataset: JsonDataset, keywords: Mapping[str, str]) -> dict[str, str | None]:
    """Return text attributes by the names given to them."""
    attributes = Attributes(dataset)
    return {name: attributes.string(keyword) for name, keyword in keywords.items()}
