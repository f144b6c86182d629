"""``Slide.properties``: what people look for, out of the metadata of level 0. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsiweb.dicomjson import Attributes

if TYPE_CHECKING:
    from wsiweb.sources.base import JsonDataset

_SUBSTANCE_USED = frozenset({("G-C350", "SRT"), ("424361007", "SCT")})
"""Using substance, the stain of a preparation step (PS3.16 TID 8003)."""


def properties_of(dataset: JsonDataset) -> dict[str, str | float]:
    """Return the properties that the slide has; absent ones have no key."""
    attributes = Attributes(dataset)
    specimen = attributes.first_item("SpecimenDescriptionSequence")
    path = attributes.first_item("OpticalPathSequence")
    found: dict[str, str | float | None] = {
        "vendor": attributes.string("Manufacturer"),
        "model": attributes.string("ManufacturerModelName"),
        "software": ", ".join(attributes.strings("SoftwareVersions")) or None,
        "serial_number": attributes.string("DeviceSerialNumber"),
        "objective_power": path.optional_number("ObjectiveLensPower"),
        "stain": ", ".join(_stains(specimen)) or None,
        "patient_id": attributes.string("PatientID"),
        "specimen_id": specimen.string("SpecimenIdentifier"),
        "container_id": attributes.string("ContainerIdentifier"),
        "acquisition_datetime": attributes.string("AcquisitionDateTime"),
        "study_description": attributes.string("StudyDescription"),
        "series_description": attributes.string("SeriesDescription"),
        "anatomic_site": specimen.first_item("PrimaryAnatomicStructureSequence").string("CodeMeaning"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _stains(specimen: Attributes) -> list[str]:
    """Collect the substances of all preparation steps, each once, in order."""
    stains: dict[str, None] = {}
    for step in specimen.sequence("SpecimenPreparationSequence"):
        for item in step.sequence("SpecimenPreparationStepContentItemSequence"):
            name = item.first_item("ConceptNameCodeSequence")
            if (name.string("CodeValue"), name.string("CodingSchemeDesignator")) in _SUBSTANCE_USED:
                stain = item.first_item("ConceptCodeSequence").string("CodeMeaning") or item.string("TextValue")
                if stain:
                    stains[stain] = None
    return list(stains)
