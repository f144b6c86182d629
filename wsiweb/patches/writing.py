"""Write patches as image files: into a folder, or into tar shards as WebDataset reads them.

Every file, and every shard, appears under its name when it is whole; what is there already is not written again.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.codestream import Coding, complete, inspect
from wsiweb.errors import RegionError, WsiWebError
from wsiweb.files import whole, whole_stream, writable
from wsiweb.geometry import Rectangle

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.codestream import Codestream
    from wsiweb.metadata import PixelFormat
    from wsiweb.patches.plan import PatchPlan
    from wsiweb.patches.values import PatchBatch

FORMATS = ("png", "jpeg")
_SUFFIXES = frozenset({".png", ".jpeg"})
BATCH = 64


def write_folder(plan: PatchPlan, folder: Path, *, form: str, quality: int, report: Callable[[int, int], None]) -> int:
    """Write one file a patch, ``x_y.png`` by the level-0 position; return how many were new.

    Raises
    ------
    RegionError
        There is no such format.
    WsiWebError
        What is there are patches of another slide, resolution, size or quality.
    """
    _check(form)
    if folder.is_file():
        raise WsiWebError(f"{folder} is a file. Patches are written to a folder, or to tar files: shards-%06d.tar.")
    _make(folder)
    names = [f"{x}_{y}.{form}" for x, y in zip(plan.x_base.tolist(), plan.y_base.tolist(), strict=True)]
    images = {path.name for path in folder.iterdir() if path.suffix in _SUFFIXES}
    there = images.intersection(names)
    _note_kind(folder, {**_kind(plan), "format": form, "quality": quality}, anything=bool(images))
    places = np.array([place for place, name in enumerate(names) if name not in there], np.int64)
    done = len(names) - len(places)
    report(done, len(names))
    for number, batch in enumerate(plan.take(places).batches(BATCH)):
        originals = _originals(plan, batch) if form == "jpeg" else {}
        for row in range(len(batch)):
            name = names[int(places[number * BATCH + row])]
            _write(folder / name, originals.get(row) or _encoded(batch.images[row], form, quality))
        done += len(batch)
        report(done, len(names))
    return len(places)


def write_shards(
    plan: PatchPlan,
    pattern: str,
    *,
    form: str,
    quality: int,
    shard_size: int,
    report: Callable[[int, int], None],
    part: tuple[int, int] = (0, 1),
) -> int:
    """Write tar files of up to ``shard_size`` patches: an image and a JSON of its position each; return how many.

    ``pattern`` has one number in it: ``shards-%06d.tar``. Of ``part`` (i, n) these are i, i + n, i + 2n...: the parts
    of a plan never write the same file.

    Raises
    ------
    RegionError
        There is no such format, or the pattern has no number.
    WsiWebError
        A shard that is there holds other patches.
    """
    _check(form)
    if shard_size < 1:
        raise RegionError(f"A shard has at least one patch, not {shard_size}.")
    written = 0
    for number, start in enumerate(range(0, len(plan), shard_size)):
        shard = plan[start : start + shard_size]
        path = shard_path(pattern, part[0] + number * part[1])
        if path.exists():
            _check_shard(path, shard, form)
        else:
            _make(path.parent)
            with whole_stream(path) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
                for batch in shard.batches(BATCH):
                    originals = _originals(shard, batch) if form == "jpeg" else {}
                    for row in range(len(batch)):
                        data = originals.get(row) or _encoded(batch.images[row], form, quality)
                        image_name, facts_name = _members(int(batch.index[row]), form)
                        _add(tar, image_name, data)
                        _add(tar, facts_name, json.dumps(_facts(shard, batch, row)).encode())
            written += 1
        report(min(start + shard_size, len(plan)), len(plan))
    return written


def _make(folder: Path) -> None:
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _write(path: Path, data: bytes) -> None:
    with whole(path) as part, writable(path):
        part.write_bytes(data)


def shard_path(pattern: str, number: int) -> Path:
    """Return the name of a shard."""
    try:
        return Path(pattern % number)
    except (TypeError, ValueError) as error:
        raise RegionError(f"{pattern!r} has no place for a number, as shards-%06d.tar has.") from error


def _members(index: int, form: str) -> tuple[str, str]:
    """Return the names of the image and of the facts of a patch in a shard."""
    return f"{index:09d}.{'jpg' if form == 'jpeg' else form}", f"{index:09d}.json"


def _check_shard(path: Path, shard: PatchPlan, form: str) -> None:
    """Raise ``WsiWebError`` where a shard that is there was written by another command."""
    expected = [name for index in shard.index.tolist() for name in _members(index, form)]
    try:
        with tarfile.open(path) as tar:
            same = tar.getnames() == expected
            found = tar.extractfile(expected[1]) if same else None
            facts = None if found is None else json.load(found)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise WsiWebError(f"{path} is there, and no shard that can be read: {error}. Delete it, or move it.") from error
    if facts != json.loads(json.dumps(_facts(shard, shard._batch(slice(0, 1)), 0))):  # noqa: SLF001
        raise WsiWebError(f"{path} is there, and holds other patches. Delete it, or write to another place.")


def _kind(plan: PatchPlan) -> dict[str, Any]:
    """Return what patches of the same place have in common that show the same."""
    view, identity = plan.view, plan.slide._identity  # noqa: SLF001
    return {"slide": identity, "level": view.level.index, "mpp": view.mpp, "scale": view.scale, "size": plan.size}


def _note_kind(folder: Path, kind: dict[str, Any], *, anything: bool) -> None:
    """Note beside a folder what is in it; raise ``WsiWebError`` where that is something else."""
    folder = folder.resolve()
    journal = folder.parent / f".{folder.name}.journal"
    noted = json.dumps(kind)
    if anything and (not journal.exists() or journal.read_text() != noted):
        what = "patches of another slide, resolution, size, format or quality"
        known = what if journal.exists() else f"images, and nothing tells that they are not {what}"
        raise WsiWebError(f"{folder} holds {known} ({journal.name}). Delete them, or write to another folder.")
    _write(journal, noted.encode())


def _facts(plan: PatchPlan, batch: PatchBatch, row: int) -> dict[str, Any]:
    tissue = float(batch.tissue[row])
    return {
        "series_uid": plan.slide.series_uid, "size": plan.size,
        "index": int(batch.index[row]), "x_base": int(batch.x_base[row]), "y_base": int(batch.y_base[row]),
        "x": int(batch.x[row]), "y": int(batch.y[row]), "level": batch.level, "mpp": batch.mpp,
        "tissue": None if np.isnan(tissue) else tissue,
    }  # fmt: skip


def _originals(plan: PatchPlan, batch: PatchBatch) -> dict[int, bytes]:
    """Return the stored JPEG of each patch, by row, that is exactly one frame: nothing is lost by writing that.

    Not of JPEGs that other programs would show otherwise than they are read here: in other colours where they do not
    say that they are YCbCr, or it is stated that they are not; dark instead of bright where they are MONOCHROME1.
    """
    view, slide = plan.view, plan.slide
    if view.resampled or tuple(plan.size) != tuple(view.level.tile_size):
        return {}
    reader, content = slide._running(), slide._content  # noqa: SLF001
    planner = slide._planner(view.level, None, None)  # noqa: SLF001
    found: dict[int, bytes] = {}
    for row, (x, y) in enumerate(zip(batch.x.tolist(), batch.y.tolist(), strict=True)):
        read = planner.plan(Rectangle(x, y, *plan.size))
        if len(read.keys) != 1 or not read.covered or read.visible(0) != plan.size:
            continue
        instance_index, frame_index = read.keys[0]
        instance = content.instances[instance_index]
        data = reader.encoded((instance_index, frame_index), instance)
        stream = inspect(data)
        if stream is not None and stream.coding is Coding.JPEG and complete(data):
            whole = (stream.width, stream.height) == tuple(plan.size)
            if whole and _shown_as_read(instance.pixels, stream):
                found[row] = data
    return found


def _shown_as_read(pixels: PixelFormat, stream: Codestream) -> bool:
    if stream.colour_transformed:
        return not (pixels.photometric_forced and pixels.photometric == "RGB")
    grey = stream.components == 1 and stream.bits == 8
    return grey and pixels.photometric == "MONOCHROME2" and not pixels.signed


def _encoded(image: Any, form: str, quality: int) -> bytes:
    from PIL import Image  # noqa: PLC0415

    if image.dtype != np.uint8 and form == "jpeg":
        raise RegionError("JPEG has 8 bits; write patches of 16 bits as PNG.")
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": quality} if form == "jpeg" else {"compress_level": 1}
    Image.fromarray(image).save(buffer, form.upper(), **options)
    return buffer.getvalue()


def _check(form: str) -> None:
    if form not in FORMATS:
        raise RegionError(f"Patches are written as {' or '.join(FORMATS)}, not as {form!r}.")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
