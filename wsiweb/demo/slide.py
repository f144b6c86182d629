"""Make the demo slide: a small but honest DICOM whole-slide image, painted here, offline.

``tissue`` paints it, ``pyramid`` makes its levels, ``associated`` its label, overview and thumbnail,
``header`` says what DICOM wants to know and ``file`` writes it. This module sees to the folder.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from wsiweb.demo.associated import THUMBNAIL_SIDE, plan_associated, write_associated
from wsiweb.demo.header import FILE_PREFIX, TISSUE_CENTRE_MM, VERSION, Uids
from wsiweb.demo.pyramid import plan_levels, write_levels
from wsiweb.demo.texture import TEXTURE
from wsiweb.demo.tissue import Tissue
from wsiweb.errors import UnsupportedError
from wsiweb.files import writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsiweb.demo.header import Picture

DEMO_SIZE = (14_000, 11_000)
"""Width and height of level 0; no multiple of the tile, so that there are edge tiles."""
BASE_MPP = 0.25


def default_cache_folder() -> Path:
    r"""Return where this user's caches of wsiweb belong; nothing is created.

    ``$XDG_CACHE_HOME/wsiweb``, else ``~/.cache/wsiweb``; on macOS ``~/Library/Caches/wsiweb``, on Windows
    ``%LOCALAPPDATA%\wsiweb``.
    """
    if stated := os.environ.get("XDG_CACHE_HOME"):
        root = Path(stated)
        if root.is_absolute():  # the XDG specification has relative paths ignored
            return root / "wsiweb"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "wsiweb"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "wsiweb"
    return Path.home() / ".cache" / "wsiweb"


def make_demo_slide(folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the demo slide into a folder, or do nothing where it is there already.

    About 3,200 JPEG frames of 256 x 256 in 7 levels at 0.25 um a pixel and coarser, with label, overview and thumbnail.

    Parameters
    ----------
    folder
        Where its files go. It appears when the slide is complete; an older version of the slide is replaced.
    progress
        Called with (frames written, frames in all), from this thread.

    Returns
    -------
    ``folder``.

    Raises
    ------
    UnsupportedError
        The folder holds other files.
    WsiWebError
        No files can be written there.
    """
    return write_slide(folder, size=DEMO_SIZE, progress=progress)


def write_slide(
    folder: Path,
    *,
    size: tuple[int, int],
    tile: int = 256,
    seed: int = 7,
    quality: int = 80,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a slide like the demo slide, of any size; the same arguments give the same bytes.

    Parameters
    ----------
    folder, progress
        As for ``make_demo_slide``.
    size
        Width and height of level 0 in pixels, at least 32 each.
    tile
        Width and height of a tile in pixels, a multiple of 16 (the blocks of JPEG with 4:2:2 chroma) up to 1024.
    seed
        Chooses among pictures.
    quality
        Of JPEG, 1 to 100.

    Returns
    -------
    ``folder``.

    Raises
    ------
    UnsupportedError
        The folder holds other files.
    WsiWebError
        No files can be written there.
    ValueError
        An argument is out of range.
    """
    if min(size) < 32 or tile % 16 or not 16 <= tile <= TEXTURE or not 1 <= quality <= 100:
        message = f"No slide of size={size}, tile={tile}, quality={quality}: sizes start at 32 pixels, tiles are "
        raise ValueError(message + "multiples of 16 up to 1024, and quality is 1 to 100.")
    uids = Uids((VERSION, *(str(number) for number in (*size, tile, seed, quality))))
    left, top = (middle - pixels * BASE_MPP / 2000 for middle, pixels in zip(TISSUE_CENTRE_MM, size, strict=True))
    levels = plan_levels(size, tile, BASE_MPP, (left, top))
    associated = plan_associated(levels)
    pictures = [*levels, *associated.values()]
    target = folder.resolve()
    if _is_complete(target, pictures, uids):
        return folder
    _check_replaceable(target)
    partial = target.with_name(f".{target.name}-{uuid4().hex[:8]}.part")
    with writable(target):
        partial.mkdir(parents=True)
    try:
        keep = max((i for i, level in enumerate(levels) if max(level.size) >= THUMBNAIL_SIDE), default=0)
        kept = write_levels(Tissue(size, seed), levels, partial, uids, quality=quality, keep=keep, progress=progress)
        write_associated(partial, associated, uids, kept, quality)
        if not _is_complete(target, pictures, uids):  # unless another process was faster
            _replace(target, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_complete(folder: Path, pictures: list[Picture], uids: Uids) -> bool:
    """Return whether every file is there, and of this very slide: its UID stands in the file meta information."""
    for picture in pictures:
        try:
            with (folder / picture.file_name).open("rb") as file:
                beginning = file.read(1024)
        except OSError:
            return False
        if uids[picture.name].encode() not in beginning:
            return False
    return True


def _check_replaceable(folder: Path) -> None:
    """Raise unless a folder is missing, empty, or holds a demo slide and nothing else."""
    if not folder.exists():
        return
    foreign = (
        [folder]
        if not folder.is_dir()
        else [entry for entry in folder.iterdir() if not entry.name.startswith(FILE_PREFIX)]
    )
    if foreign:
        message = f"The demo slide was not written to {folder}: {foreign[0].name} is there and would be lost."
        raise UnsupportedError(message + " Name a folder that is new or empty.")


def _replace(folder: Path, by: Path) -> None:
    """Give a finished folder its name; what had the name, an older slide or an empty folder, goes."""
    former = by.with_suffix(".old")
    if folder.exists():
        folder.rename(former)
    by.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
