"""The checks of a slide's metadata, and of what they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsiweb import transfer_syntaxes
from wsiweb.content import load_content
from wsiweb.dicomjson import Attributes
from wsiweb.doctor.report import Check
from wsiweb.errors import WsiWebError
from wsiweb.sources.web import WebSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.content import SlideContent
    from wsiweb.doctor.report import Figure
    from wsiweb.doctor.wire import WatchedService
    from wsiweb.sources.base import JsonDataset

_MANY_MEGABYTES = 32


class ToldSource(WebSource):
    """A source that asks for its metadata once, however often it is asked for them."""

    _told: list[JsonDataset] | None = None

    def metadata(self) -> list[JsonDataset]:
        """Return the metadata of the series."""
        if self._told is None:
            self._told = super().metadata()
        return self._told


def check_metadata(source: ToldSource, service: WatchedService) -> Check:
    """Ask for the metadata of the series, and look at what they leave out."""
    before = len(service.exchanges)
    try:
        datasets = source.metadata()
    except WsiWebError as error:
        return Check("metadata", "failed", str(error), "Without metadata no slide can be opened.")
    whole, *extra = service.exchanges[before:]
    named = [Attributes(dataset) for dataset in datasets]
    no_matrix = sum("00480006" not in dataset for dataset in datasets)
    told = sum(any(one.string(k) for k in ("AvailableTransferSyntaxUID", "TransferSyntaxUID")) for one in named)
    elsewhere = sum(_refers(dataset) for dataset in datasets)
    figures: dict[str, Figure] = {
        "status": whole.status, "milliseconds": round(whole.seconds * 1000, 3), "bytes": whole.body_bytes,
        "compressed": whole.compressed, "instances": len(datasets), "further_requests": len(extra),
        "bulk_data_references": elsewhere, "without_matrix_size": no_matrix, "with_transfer_syntax": told,
    }  # fmt: skip
    size = f"{whole.body_bytes / 1e3:,.0f} kB"
    if whole.compressed:
        size += f" ({whole.wire_bytes / 1e3:,.0f} kB compressed)" if whole.wire_bytes else " (compressed)"
    finding = f"{len(datasets)} instance{'s' if len(datasets) != 1 else ''}, {size}, {whole.seconds * 1000:.0f} ms"
    finding += f"; transfer syntax {'told' if told == len(datasets) else 'not told'}"
    if elsewhere:
        finding += f"; {elsewhere} value{'s' if elsewhere > 1 else ''} by BulkDataURI"
    problems = []
    if extra:
        problems.append(f"they are an extract, so that {len(extra)} instances were asked for one by one")
    if no_matrix:
        problems.append(f"{no_matrix} have no TotalPixelMatrixColumns")
    if not whole.compressed and whole.body_bytes > _MANY_MEGABYTES * 1e6:
        problems.append("they are large, and not compressed (gzip)")
    if not problems:
        return Check("metadata", "ok", finding, figures=figures)
    advice = "Let the service return full metadata for series (Orthanc: DicomWeb.SeriesMetadata = Full), with gzip."
    return Check("metadata", "warning", f"{finding}; {', '.join(problems)}", advice, figures)


def _refers(dataset: JsonDataset) -> int:
    """Count the BulkDataURIs where slides have them: at the top, and in optical paths."""
    places = [dataset, *Attributes(dataset).raw_items("OpticalPathSequence")]
    return sum(isinstance(element, dict) and "BulkDataURI" in element for place in places for element in place.values())


def check_slide(source: ToldSource) -> tuple[Check, SlideContent | None]:
    """Open the slide by its metadata."""
    problems: list[str] = []  # that cost only a part of it
    try:
        content = load_content(source, mpp=None, photometric=None, report=problems.append)
    except WsiWebError as error:
        return Check("slide", "failed", str(error), "The slide does not open: its metadata are at fault."), None
    pyramid = content.pyramids[0]
    base = pyramid.levels[0]
    frames = sum(instance.number_of_frames for instance in content.instances)
    uids = dict.fromkeys(instance.transfer_syntax_uid for instance in content.instances if instance.flavor == "VOLUME")
    syntax = _syntaxes([uid for uid in uids if uid is not None])
    figures: dict[str, Figure] = {
        "levels": len(pyramid.levels), "width": base.width, "height": base.height, "frames": frames,
        "tile_width": base.tile_size[0], "tile_height": base.tile_size[1], "transfer_syntax": syntax,
        "mpp": base.mpp[0] if base.mpp else None, "pyramids": len(content.pyramids),
    }  # fmt: skip
    resolution = f", {base.mpp[0]:.4g} µm/px" if base.mpp else ", resolution not told"
    finding = (
        f"{base.width:,} x {base.height:,} px{resolution}, {len(pyramid.levels)} levels, tiles of "
        f"{base.tile_size[0]} x {base.tile_size[1]}, {frames:,} frames, {syntax or 'syntax not told'}"
    )
    if problems:
        return Check("slide", "warning", f"{finding}; {' '.join(problems)}", "A part is left out.", figures), content
    return Check("slide", "ok", finding, figures=figures), content


def _syntaxes(uids: Sequence[str]) -> str | None:
    return ", ".join(transfer_syntaxes.name(uid) for uid in uids) or None
