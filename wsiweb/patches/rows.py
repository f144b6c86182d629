"""Files of one row a patch, written batch by batch: ``.npy`` and zarr. Which rows are there, ``mapping`` knows."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wsiweb.errors import RegionError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

_HEADER_BYTES = 128
"""Of a .npy file: one that is no longer has no rows, and cannot be mapped."""


class RowFormat(Protocol):
    """How rows are kept. What ``create`` and ``reopen`` return is an array that rows are put into."""

    def create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch_size: int) -> Any:
        """Make an array, whatever is there."""
        ...

    def reopen(self, path: Path) -> Any:
        """Return an array that a killed run has left."""
        ...

    def flush(self, rows: Any) -> None:
        """See to it that the rows put so far outlive this process."""
        ...

    def publish(self, part: Path, path: Path) -> None:
        """Give the finished file its name, in place of what has that now."""
        ...

    def read(self, path: Path) -> Any:
        """Return the rows, read-only, without reading them all."""
        ...


class Npy:
    """A numpy file, mapped into memory."""

    def create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch_size: int) -> Any:  # noqa: ARG002
        """Make a file with its header; the rows are zeros that take no room yet."""
        if 0 in shape:
            with path.open("wb") as stream:
                np.save(stream, np.zeros(shape, dtype))
            return np.zeros(shape, dtype)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def reopen(self, path: Path) -> Any:
        """Map the file for reading and writing."""
        return self._load(path, "r+")

    def flush(self, rows: Any) -> None:
        """Write to the file what was written to memory."""
        if isinstance(rows, np.memmap):
            rows.flush()

    def publish(self, part: Path, path: Path) -> None:
        """Replace the file at once."""
        part.replace(path)

    def read(self, path: Path) -> Any:
        """Map the file for reading."""
        rows = self._load(path, "r")
        rows.flags.writeable = False
        return rows

    def _load(self, path: Path, mode: Any) -> Any:
        return np.load(path) if path.stat().st_size <= _HEADER_BYTES else np.load(path, mmap_mode=mode)


class Zarr:
    """A folder in zarr's format 3, of one chunk a batch: a batch is written, or written again, without its neighbours.

    A kill may leave a chunk that the journal does not know of, and parts of files; both are written over or taken away.
    """

    def create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch_size: int) -> Any:
        """Make a folder with the description of the array; chunks come with their rows."""
        shutil.rmtree(path, ignore_errors=True)
        chunks = tuple(max(side, 1) for side in (min(batch_size, shape[0]), *shape[1:]))
        return _zarr().create_array(path, shape=shape, chunks=chunks, dtype=dtype)

    def reopen(self, path: Path) -> Any:
        """Open the folder for reading and writing."""
        return _zarr().open_array(path, mode="r+")

    def flush(self, rows: Any) -> None:
        """Do nothing: chunks are in their files when they were put."""

    def publish(self, part: Path, path: Path) -> None:
        """Exchange the folder, which takes two steps: in between there is neither, and a run that resumes goes on."""
        for stray in part.rglob("*.partial"):  # that zarr was writing when it was killed
            stray.unlink()
        old = _old(path)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.replace(old)
        part.replace(path)
        shutil.rmtree(old, ignore_errors=True)

    def read(self, path: Path) -> Any:
        """Open the folder for reading."""
        shutil.rmtree(_old(path), ignore_errors=True)
        return _zarr().open_array(path, mode="r")


def row_format(path: Path) -> RowFormat:
    """Return the format that a file's name asks for.

    Raises
    ------
    RegionError
        There is no such format.
    UnsupportedError
        zarr is asked for, and not installed.
    """
    if path.suffix == ".npy":
        return Npy()
    if path.suffix == ".zarr":
        _zarr()
        return Zarr()
    raise RegionError(f"The results go to a .npy file or a .zarr folder, not to {path.name!r}.")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _zarr() -> Any:
    """Import zarr, or say how to get it."""
    try:
        import zarr  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("This needs zarr: pip install 'wsiweb[zarr]'.") from error
    return zarr
