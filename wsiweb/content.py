"""What the metadata of a slide told: everything that does not change and that pickles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsiweb import opening
from wsiweb.properties import properties_of
from wsiweb.pyramid import build_pyramids

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.metadata import Instance
    from wsiweb.pyramid import Pyramid
    from wsiweb.sources.base import FrameSource


@dataclass(frozen=True, slots=True, eq=False)
class SlideContent:
    """The content of a series, or of several that are one slide."""

    study_uid: str
    series_uid: str
    """Of the first series."""
    instances: tuple[Instance, ...]
    """Frame keys refer to them by position."""
    pyramids: tuple[Pyramid, ...]
    """The default one first."""
    properties: tuple[dict[str, str | float], ...]
    """One for each pyramid."""


def load_content(
    source: FrameSource,
    *,
    mpp: tuple[float, float] | None,
    photometric: str | None,
    report: Callable[[str], None] = opening.report,
) -> SlideContent:
    """Ask the source for its metadata and make sense of them; what costs only a part of the slide is reported.

    Raises
    ------
    SlideNotFoundError, MetadataError, SourceError
        There is no slide, it cannot be read, or the source failed.
    """
    instances, datasets = opening.instances_of(source, photometric=photometric, report=report)
    pyramids = build_pyramids(instances, mpp=mpp, report=report)
    by_uid = {instance.address.instance_uid: dataset for instance, dataset in zip(instances, datasets, strict=True)}
    lead = next(instance for instance in instances if instance.flavor == "VOLUME").address
    return SlideContent(
        study_uid=lead.study_uid,
        series_uid=lead.series_uid,
        instances=tuple(instances),
        pyramids=pyramids,
        properties=tuple(properties_of(by_uid[pyramid.lead_uid]) for pyramid in pyramids),
    )
