"""What the metadata of a slide told: everything that does not change and that pickles."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsiweb import opening
from wsiweb.errors import MetadataError
from wsiweb.properties import properties_of
from wsiweb.pyramid import build_pyramids, single_image
from wsiweb.resolution import positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.images import Channel
    from wsiweb.metadata import Instance
    from wsiweb.pyramid import Level, Pyramid
    from wsiweb.sources.base import FrameSource


_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"
)  # fmt: skip
"""Defined terms of Photometric Interpretation (PS3.3 C.7.6.3.1.2) that are read."""


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
    photometric: str | None
    """As stated, to overrule what the slide declares."""

    def thumbnail(self, pyramid: Pyramid, width: int, height: int) -> tuple[Level, Channel]:
        """Return the smallest image of a whole pyramid that has at least so many pixels; a THUMBNAIL before a level."""
        base = pyramid.levels[0]
        for position, instance in enumerate(self.instances):
            if self._shows(instance, pyramid) and _alike(instance, pyramid):
                distortion = instance.matrix_width / instance.matrix_height * base.height / base.width
                large = instance.matrix_width >= width and instance.matrix_height >= height
                if large and abs(distortion - 1) < 0.01:
                    with contextlib.suppress(MetadataError):  # then a level will do
                        return single_image(instance, position)
        sufficient = [level for level in pyramid.levels if level.width >= width and level.height >= height]
        return sufficient[-1], pyramid.channel(sufficient[-1].index, None, None)

    def associated(self, pyramid: Pyramid) -> dict[str, int]:
        """Return the positions of the instances that show label, overview and thumbnail, by their names."""
        positions: dict[str, int] = {}
        for position, instance in enumerate(self.instances):
            if instance.flavor in ("LABEL", "OVERVIEW") or self._shows(instance, pyramid):
                positions.setdefault(instance.flavor.lower(), position)
        return positions

    def _shows(self, instance: Instance, pyramid: Pyramid) -> bool:
        """Whether an instance is a thumbnail of that pyramid; one that names none of them is of the default one."""
        if instance.flavor != "THUMBNAIL":
            return False
        named = [shown for shown in self.pyramids if shown.uid is not None and shown.uid == instance.pyramid_uid]
        return pyramid in (named or self.pyramids[:1])


def _alike(instance: Instance, pyramid: Pyramid) -> bool:
    """Whether a thumbnail has the kind of pixels that its pyramid has, and shows the default optical path."""
    base, (path, *others) = pyramid.levels[0], pyramid.optical_paths
    same_pixels = (instance.pixels.colour, instance.pixels.dtype) == (len(base.shape) == 3, base.dtype)
    return same_pixels and (not others or instance.optical_paths[0].identifier == path)


def load_content(
    source: FrameSource,
    *,
    mpp: float | tuple[float, float] | None,
    photometric: str | None,
    report: Callable[[str], None] = opening.report,
) -> SlideContent:
    """Ask the source for its metadata and make sense of them; what costs only a part of the slide is reported.

    Raises
    ------
    SlideNotFoundError, MetadataError, SourceError
        There is no slide, it cannot be read, what is stated of it cannot be, or the source failed.
    """
    mpp, photometric = _stated_mpp(mpp), _stated_photometric(photometric)
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
        photometric=photometric,
    )


def _stated_photometric(photometric: str | None) -> str | None:
    if photometric is not None and photometric not in _PHOTOMETRIC:
        raise MetadataError(f"photometric is one of {', '.join(_PHOTOMETRIC)}, not {photometric!r}.")
    return photometric


def _stated_mpp(mpp: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    pair = mpp if isinstance(mpp, (Sequence, np.ndarray)) and not isinstance(mpp, (str, bytes)) else (mpp, mpp)
    try:
        x, y = (positive(axis, "mpp") for axis in pair)
    except (TypeError, ValueError):
        raise MetadataError(f"mpp is a positive number or a pair of them, in µm a pixel, not {mpp!r:.80}.") from None
    return x, y
