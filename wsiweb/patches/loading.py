"""Read plans from files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb import resolution
from wsiweb.errors import RegionError, WsiWebError
from wsiweb.geometry import Rectangle
from wsiweb.patches.layout import Points, pair
from wsiweb.patches.plan import PatchPlan
from wsiweb.patches.storage import FORMAT, H5_GROUP, h5py, pandas, suffix_of

if TYPE_CHECKING:
    import os

    from wsiweb.slide import Slide


def load(path: str | os.PathLike[str], slide: Slide) -> PatchPlan:
    """Read a plan for a slide.

    Parameters
    ----------
    path
        As ``PatchPlan.save`` wrote it; or an HDF5 file of CLAM or TRIDENT, with ``coords`` in level-0 pixels.
    slide
        The slide that it was made for.

    Raises
    ------
    WsiWebError
        The file is no plan, or one of another slide, or of another state of this one.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if not hasattr(slide, "read_region"):
        raise WsiWebError(f"A plan is loaded for a slide that has been opened, not {type(slide).__name__}.")
    try:
        if not path.is_file():
            raise WsiWebError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")  # noqa: TRY301
        if suffix == ".npz" and not zipfile.is_zipfile(path):  # numpy would advise to unpickle it
            raise WsiWebError(f"{path} is no plan of patches: it is no .npz file, whatever its name.")  # noqa: TRY301
        if suffix in (".h5", ".hdf5"):
            return _load_h5(path, slide)
        if suffix == ".npz":
            with path.open("rb") as stream, np.load(stream) as found:
                columns = {name: found[name] for name in found.files}
            description = json.loads(str(columns.pop("description")))
        else:
            frame = pandas().read_parquet(path)
            description = json.loads(frame.attrs["wsiweb"])
            columns = {name: frame[name].to_numpy() for name in frame.columns}
        return _restored(path, slide, description, columns)
    except WsiWebError:
        raise
    except Exception as error:  # the readers of damaged files raise about anything
        raise WsiWebError(f"{path} is no plan of patches that can be read: {error!r}") from error


def _restored(path: Path, slide: Slide, description: dict[str, Any], columns: dict[str, Any]) -> PatchPlan:
    if description.get("format") != FORMAT:
        raise WsiWebError(f"{path} is a plan of format {description.get('format')}, which this version does not read.")
    if description["series_uid"] != slide.series_uid:
        raise WsiWebError(
            f"{path} is a plan for series {description['series_uid']}, and this slide is {slide.series_uid}."
        )
    _, _, lead_uid, *_ = slide._identity  # noqa: SLF001
    if description.get("lead_uid", lead_uid) != lead_uid:  # which earlier versions did not write
        raise WsiWebError(
            f"{path} is a plan for another pyramid of this series, led by instance {description['lead_uid']}. Open "
            f"that: Slide.open(..., pyramid=)."
        )
    number = description["level"]
    if number >= len(slide.levels) or list(slide.levels[number].size) != description["level_size"]:
        raise WsiWebError(
            f"{path} is a plan for level {number} of another size: the slide, or its pyramid, has changed."
        )
    mpp = description["mpp"]
    width, height = description["view_size"]
    scale_x, scale_y = description["scale"]
    view = resolution.View(
        slide.levels[number], width, height, (scale_x, scale_y), None if mpp is None else (mpp[0], mpp[1])
    )
    index = columns["index"].astype(np.int64)
    count = int(index.max(initial=-1)) + 1
    x, y = np.zeros(count, np.int64), np.zeros(count, np.int64)
    x[index], y[index] = columns["x"], columns["y"]
    size, stride = tuple(description["size"]), tuple(description["stride"])
    return PatchPlan(
        slide, view, (size[0], size[1]), (stride[0], stride[1]), Points(x, y), index,
        columns["tissue"].astype(np.float64), min_tissue=description["min_tissue"],
        areas=tuple(Rectangle(*area) for area in description.get("areas", [])) or (view.bounds,),
        mask_lost=description.get("masked", False),
    )  # fmt: skip


def _load_h5(path: Path, slide: Slide) -> PatchPlan:
    """Read ``coords`` of level-0 pixels, and the size of the patches, as CLAM and TRIDENT write them.

    A file of our own says more, as long as nobody has changed its coordinates.
    """
    try:
        with h5py().File(path, "r") as file:
            coords, attributes = np.asarray(file["coords"]), dict(file["coords"].attrs)
            group = file.get(H5_GROUP, {})
            columns = {name: np.asarray(column) for name, column in group.items()}
            description = json.loads(group.attrs["description"]) if columns else None
    except (OSError, KeyError, ValueError) as error:
        raise WsiWebError(f"{path} holds no coordinates as CLAM or TRIDENT write them: {error}") from error
    if description and np.array_equal(coords, np.stack([columns["x_base"], columns["y_base"]], axis=1)):
        return _restored(path, slide, description, columns)
    try:
        size, _ = pair(int(attributes["patch_size"]), "patch_size")
        base_size = int(attributes.get("patch_size_level0", 0))
        number = int(attributes.get("patch_level", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise WsiWebError(f"{path} does not say how large its patches are (patch_size, patch_level).") from error
    if base_size:
        view = resolution.view_at_downsample(slide.levels, base_size / size, upsample=True)
    elif 0 <= number < len(slide.levels):
        view = resolution.view_of_level(slide.levels[number])
    else:
        raise RegionError(f"{path} is about level {number}, which this slide does not have.")
    none = np.zeros(0, np.int64)
    plan = PatchPlan(
        slide, view, (size, size), (size, size), Points(none, none), none, np.zeros(0), areas=(view.bounds,)
    )
    return plan.at(coords) if len(coords) else plan
