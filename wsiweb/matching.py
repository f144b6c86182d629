"""Which answers of a search match its filters (PS3.4 C.2.2.2), for what services ignore or refuse. Pure."""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from wsiweb.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsiweb.sources.base import JsonDataset

SAFE_CHARACTERS = "*?,:/@"
"""May stand in a query as they are (RFC 3986 3.4), and must: Debian's Orthanc decodes no escape but that of a comma."""
_RANGES = frozenset({"DA", "TM", "DT"})
_NUMBERS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_TAG = re.compile(r"[0-9a-fA-F]{8}")
_DATE = re.compile(r"\d{8}|\d{8}-(\d{8})?|-\d{8}|\d*[*?][\d*?]*")
_UNSAFE = re.compile(rf"[^\w.~\-{re.escape(SAFE_CHARACTERS)}]", re.ASCII)
_OF_STUDIES = frozenset({
    "00080020", "00080030", "00080050", "00080061", "00080090", "00081030", "00081060", "0020000D", "00200010",
    "00201206", "00201208",
})  # fmt: skip
"""Attributes of studies, beside all of the patient's (group 0010)."""
_NOWHERE = {
    "UI": "1.2.3.4.5.6.7.8.9.0", "DA": "18500101", "TM": "235959.999999", "DT": "18500101",
    **dict.fromkeys(_NUMBERS, "31999"),
}  # fmt: skip


class Filter:
    r"""One attribute that what is found must have.

    Parameters
    ----------
    name
        DICOM keyword, or a tag of eight hexadecimal digits.
    value
        As for QIDO-RS: ``*`` and ``?`` stand for anything in text, ``20200101-20201231`` is a range of dates; a list,
        or text separated by commas or ``\``, means any of several UIDs. Dates may be ``datetime.date``.
    implied
        Not the user's own.
    hint
        It only narrows down what is then looked at; a service need not heed it.

    Raises
    ------
    SearchError
        DICOM has no such attribute, or the value is none for it.
    """

    def __init__(self, name: str, value: Any, *, implied: bool = False, hint: bool = False) -> None:
        from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword  # noqa: PLC0415

        tag = int(name, 16) if _TAG.fullmatch(name) else tag_for_keyword(name)
        if tag is None:
            raise SearchError(
                f"DICOM has no attribute {name!r}; filters are keywords such as PatientID."
                f"{_suggestion(name, keyword_dict)}"
            )
        self.name = name
        self.implied, self.hint = implied or hint, hint
        self.tag = f"{tag:08X}"
        try:
            self.vr = dictionary_VR(tag)
        except KeyError:
            self.vr = "UN"
        several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        values = [_text(one) for one in (value if several else [value])]
        if value is None or not values:
            raise SearchError(f"{name} is to be {value!r:.80}, which is nothing to look for.")
        if self.vr == "UI":
            values = [uid.strip() for text in values for uid in re.split(r"[,\\]", text)]
        elif len(values) != 1:
            raise SearchError(f"{name} takes one value: only UIDs are searched by lists (PS3.4 C.2.2.2.2).")
        if self.vr == "DA" and values[0] and not _DATE.fullmatch(values[0]):
            raise SearchError(
                f"{name} is a date such as 20201231, or a range such as 20200101-20201231, 20200101- or -20201231, "
                f"not {values[0]!r:.80}."
            )
        self.value = ",".join(values)  # which more services split than \ (PS3.18 8.3.4.1 allows both)
        self.universal = not self.value.strip("*")
        """Whether anything matches, even what does not have the attribute (PS3.4 C.2.2.2.3)."""
        self.of_studies = self.tag in _OF_STUDIES or self.tag.startswith("0010")
        """Whether it is an attribute of patients or studies, and so the same for all series of a study."""

    @property
    def plain(self) -> bool:
        """Whether any service that heeds it understands it: one value, without characters that need an escape."""
        value = self.value
        special = self._ranges or (self.vr == "UI" and "," in value) or "*" in value or "?" in value
        return not special and not _UNSAFE.search(value)

    @property
    def hard(self) -> bool:
        """Whether finding nothing may mean that the service did not understand."""
        return self.hint or not self.plain

    @property
    def nowhere(self) -> str:
        """A value of the kind that nothing has."""
        return _NOWHERE.get(self.vr, "NO_SUCH_VALUE")

    @property
    def _ranges(self) -> bool:
        return self.vr in _RANGES and "-" in self.value

    def like(self, dataset: JsonDataset) -> str | None:
        """Return a value as hard to understand as this one's, by which the dataset is found by who understands it."""
        found = (_texts(dataset.get(self.tag) or dataset.get(self.tag.lower())) or [""])[0]
        if not found or not set(_UNSAFE.findall(self.value)) <= set(found):
            return None
        if self._ranges:
            return f"{found}-{found}"
        if self.vr == "UI":
            return f"{found},{found}" if "," in self.value else found
        return (found[:-1] + "?" if "?" in self.value else found) + ("*" if "*" in self.value else "")

    def matches(self, dataset: JsonDataset) -> bool | None:
        """Whether a dataset matches; None where it does not have the attribute, and so cannot tell."""
        if self.universal:
            return True
        found = _texts(dataset.get(self.tag) or dataset.get(self.tag.lower()))
        if found is None:
            return None
        if self._ranges:
            start, _, end = self.value.partition("-")
            return any((not start or one >= start) and (not end or one[: len(end)] <= end) for one in found)
        if self.vr == "UI":
            return any(one in self.value.split(",") for one in found)
        wanted = self.value
        if self.vr in _NUMBERS:
            return any(_number(one) == _number(wanted) for one in found)
        if self.vr == "PN":  # names are compared without case and empty components
            wanted = wanted.casefold().rstrip("^")
            found = [one.casefold().rstrip("^") for one in found]
        return any(fnmatchcase(one, wanted.replace("[", "[[]")) for one in found)


def _suggestion(name: str, keywords: Mapping[str, Any]) -> str:
    """Say what may be meant: ``patient_id`` is PatientID, ``study_uid`` is StudyInstanceUID."""
    plain = {keyword.casefold(): keyword for keyword in keywords if keyword}
    asked = name.casefold().replace("_uid", "instanceuid").replace("_", "")
    near = [asked] if asked in plain else difflib.get_close_matches(asked, plain, 3)
    return f" Did you mean {', '.join(plain[one] for one in near)}?" if near else ""


def _text(value: Any) -> str:
    return value.strftime("%Y%m%d") if type(value) is dt.date else str(value).strip()


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


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
