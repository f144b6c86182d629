"""Files of one row a patch, written batch by batch: ``.npy`` and zarr. Which rows are there, ``mapping`` knows."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wsiweb.errors import RegionError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_HEADER_BYTES = 128
"""Of a .npy file: one that is no longer has no rows, and cannot be mapped."""


class RowFormat(Protocol):
    """How rows are kept. What ``create`` and ``reopen`` return has a shape and a dtype, and rows are put into it.

    Rows that were put outlive the process.
    """

    def create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch_size: int) -> Any:
        """Make an array, whatever is there."""
        ...

    def reopen(self, path: Path) -> Any:
        """Return an array that a killed run has left."""
        ...

    def publish(self, part: Path, path: Path) -> None:
        """Give the finished file its name, in place of what has that now."""
        ...

    def read(self, path: Path) -> Any:
        """Return the rows, read-only, without reading them all."""
        ...


class Npy:
    """A numpy file."""

    def create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], batch_size: int) -> Any:  # noqa: ARG002
        """Make a file with its header, to which rows are added."""
        with path.open("wb") as stream:
            head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, head)
            return _NpyRows(path, stream.tell(), shape, dtype)

    def reopen(self, path: Path) -> Any:
        """Read the header."""
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            return _NpyRows(path, stream.tell(), shape, dtype)

    def publish(self, part: Path, path: Path) -> None:
        """Replace the file at once."""
        part.replace(path)

    def read(self, path: Path) -> Any:
        """Map the file for reading."""
        rows = np.load(path) if path.stat().st_size <= _HEADER_BYTES else np.load(path, mmap_mode="r")
        rows.flags.writeable = False
        return rows


@dataclass(frozen=True, slots=True)
class _NpyRows:
    """Rows of a file that is being written.

    By ordinary writes: on a full disk they raise, where a file mapped into memory would end the process (SIGBUS).
    """

    path: Path
    start: int
    """Bytes of the header."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __setitem__(self, rows: slice, values: npt.NDArray[Any]) -> None:
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.path.open("r+b") as stream:
            stream.seek(self.start + rows.start * row_bytes)
            stream.write(values.tobytes())
            stream.flush()
            os.fsync(stream.fileno())


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
