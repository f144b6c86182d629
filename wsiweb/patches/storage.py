"""Write plans to files: npz and parquet of our own, and the coordinates of CLAM and TRIDENT (HDF5)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from wsiweb.errors import RegionError, UnsupportedError, WsiWebError
from wsiweb.files import whole, writable

if TYPE_CHECKING:
    import os

    from wsiweb.patches.plan import PatchPlan

FORMAT = 1
H5_GROUP = "wsiweb"
_SUFFIXES = (".npz", ".parquet", ".h5", ".hdf5")


def save(plan: PatchPlan, path: str | os.PathLike[str]) -> None:
    """Write a plan; the suffix says how. No credentials are in the file, and no pixels."""
    path = Path(path)
    suffix = suffix_of(path)
    with writable(path):
        if path.is_dir():
            raise WsiWebError(f"{path} is a folder, which is not replaced.")
    with whole(path) as part, writable(path):
        part.write_bytes(_encoded(plan, suffix))


def _encoded(plan: PatchPlan, suffix: str) -> bytes:
    """Return what the file holds, made in memory: what the libraries say of a full disk is no message for people."""
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(buffer, description=np.array(json.dumps(_description(plan))), **_columns(plan))
    elif suffix == ".parquet":
        frame = to_pandas(plan)
        frame.attrs["wsiweb"] = json.dumps(_description(plan))
        return bytes(frame.to_parquet(index=False))
    else:
        _save_h5(plan, buffer)
    return buffer.getvalue()


def to_pandas(plan: PatchPlan) -> Any:
    """Return a DataFrame of one row a patch."""
    return pandas().DataFrame(_columns(plan))


def _columns(plan: PatchPlan) -> dict[str, Any]:
    return {
        "index": plan.index, "x": plan.x, "y": plan.y, "x_base": plan.x_base, "y_base": plan.y_base,
        "tissue": plan.tissue,
    }  # fmt: skip


def _description(plan: PatchPlan) -> dict[str, Any]:
    level = plan.view.level
    study_uid, series_uid, lead_uid, *_ = plan.slide._identity  # noqa: SLF001
    return {
        "format": FORMAT, "study_uid": study_uid, "series_uid": series_uid, "lead_uid": lead_uid,
        "level": level.index, "level_size": level.size, "scale": plan.view.scale, "mpp": plan.mpp,
        "view_size": (plan.view.width, plan.view.height), "size": plan.size, "stride": plan.stride,
        "min_tissue": plan.min_tissue, "masked": plan.mask is not None or plan.mask_lost,
        "areas": [(area.x, area.y, area.w, area.h) for area in plan.areas],
    }  # fmt: skip


def _save_h5(plan: PatchPlan, stream: BinaryIO) -> None:
    """Write ``coords`` as CLAM does, with the attributes that TRIDENT reads; in a group of our own, what they lack.

    Both read a level of the slide: of a virtual one, the pixels that its patches are made of.
    """
    if plan.size[0] != plan.size[1]:
        raise RegionError(
            f"CLAM and TRIDENT keep square patches, not {plan.size[0]} x {plan.size[1]}; save this plan as .npz."
        )
    base_scale = plan.view.base_scale
    with h5py().File(stream, "w") as file:
        coords = file.create_dataset("coords", data=np.stack([plan.x_base, plan.y_base], axis=1))
        coords.attrs["patch_size"] = round(plan.size[0] * plan.view.scale[0])
        coords.attrs["patch_level"] = plan.level
        coords.attrs["patch_size_level0"] = round(plan.size[0] * base_scale[0])
        coords.attrs["downsample"] = np.array(base_scale)
        coords.attrs["level_dim"] = np.array(plan.view.level.size)
        coords.attrs["overlap"] = max(plan.size[0] - plan.stride[0], 0)
        coords.attrs["name"] = plan.slide.series_uid
        power = plan.slide.properties.get("objective_power")
        if isinstance(power, float):
            coords.attrs["level0_magnification"] = power
            coords.attrs["target_magnification"] = power / base_scale[0]
        coords.attrs["level0_width"], coords.attrs["level0_height"] = plan.slide.size
        group = file.create_group(H5_GROUP)
        group.attrs["description"] = json.dumps(_description(plan))
        for name, column in _columns(plan).items():
            group.create_dataset(name, data=column, compression="gzip")


def suffix_of(path: Path) -> str:
    """Return the suffix of a file that plans are kept in."""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise RegionError(f"A plan is kept as {', '.join(_SUFFIXES)}; {path.name!r} is none of them.")
    return suffix


def pandas() -> Any:
    """Import pandas, or say how to get it."""
    try:
        import pandas as pd  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("This needs pandas: pip install 'wsiweb[pandas]'.") from error
    return pd


def h5py() -> Any:
    """Import h5py, or say how to get it."""
    try:
        import h5py as found  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("This needs h5py: pip install 'wsiweb[h5]'.") from error
    return found
