"""Where the frames of a Part 10 file lie (PS3.5 A.4, PS3.3 C.7.6.3.1.8), found without decoding anything.

Offsets are 64-bit throughout and reads are positional, so any number of threads may share a file of any size.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import threading
import weakref
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsiweb.codestream import ended as stream_ended
from wsiweb.errors import MetadataError, SourceError
from wsiweb.locks import module_lock
from wsiweb.sources.elements import UNDEFINED_LENGTH

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Offsets = npt.NDArray[np.int64]

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_STREAM_HEADS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\x00\x00\x00\x0c")
_TAIL_BYTES = 64
"""Of a fragment, in which its end marker is looked for: some writers pad generously."""
_MARKED_HEADS = (b"\xff\xd8", b"\xff\x4f")
_PLAUSIBLE_BYTES = 16 << 20
"""Are read without asking first whether the file has them."""
_seek_lock = threading.Lock()
finding = module_lock()
"""Held by the thread that looks for the frames of a file; others that read it wait for what it finds."""


_REMEDIES = {
    errno.EMFILE: "Close slides that are not read any more, or raise the limit of open files (ulimit -n).",
    errno.ENFILE: "Close slides and programs that are not needed, or raise the system's limit of open files.",
    errno.ENOMEM: "Read less at a time, or close what else takes memory.",
    errno.EIO: "Check the disk, or the connection to it, and open the slide again.",
}
"""What to do about failures of the process, or of what is below it."""


class SystemFailureError(SourceError):
    """The file may be sound: who does without it loses a part of the slide."""


def unreadable(path: object, what: str, error: OSError) -> SourceError:
    """Return an error of ours that says what cannot be done to a file, and whether that is the file's fault."""
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return SourceError(f"{path} cannot be {what}: {error.strerror}.")
    return SystemFailureError(f"{path} cannot be {what}: {error.strerror}. {remedy}")


class _Descriptor:
    """An open file, closed when the last thread that reads it has let go: its number never means another file."""

    def __init__(self, path: Path) -> None:
        try:
            self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unreadable(path, "opened", error) from error
        weakref.finalize(self, os.close, self.number).atexit = False  # what is registered to run then may still read


class RandomAccessFile:
    """A file for positional reads; pickles as its path and opens again where it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: _Descriptor | None = _Descriptor(path)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._descriptor = None

    def _opened(self) -> _Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = _Descriptor(self.path)
        return descriptor

    def read(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``; fewer only at the end of the file.

        Raises
        ------
        SourceError
            The file cannot be read.
        """
        descriptor = self._opened()
        if size > _PLAUSIBLE_BYTES:  # or memory would be had for whatever a damaged table says
            size = max(min(size, self.size - offset), 0)
        try:
            if not hasattr(os, "pread"):  # Windows
                with _seek_lock:
                    os.lseek(descriptor.number, offset, os.SEEK_SET)
                    return os.read(descriptor.number, size)
            data = os.pread(descriptor.number, size, offset)
            while len(data) < size and (more := os.pread(descriptor.number, size - len(data), offset + len(data))):
                data += more  # one call returns 2 GiB at most
        except OverflowError:  # an offset that no file has
            return b""
        except OSError as error:
            raise unreadable(self.path, "read", error) from error
        return data

    @property
    def size(self) -> int:
        """Length in bytes."""
        descriptor = self._opened()
        return os.fstat(descriptor.number).st_size

    def close(self) -> None:
        """Close the file, once nobody reads it any more; a later read opens it again."""
        self._descriptor = None


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """The same over bytes: a deflated dataset, inflated."""

    path: Path
    data: bytes

    def read(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``."""
        return self.data[offset : offset + size]

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class NativeFrames:
    """Uncompressed frames, one after the other."""

    start: int
    """Of the first, in bytes from the start of the file."""
    frame_bytes: int
    length: int
    """Of all, as the data element says."""
    swapped: bool = False
    """Whether the bytes of each word are: two samples of 8 bits, in words that are big endian (PS3.5 D.3)."""

    def read(self, file: RandomAccessFile | MemoryFile, frame_index: int) -> bytes:
        """Return a frame as stored, its samples in order; short where the file or the element is cut."""
        within = frame_index * self.frame_bytes
        before = within % 2 if self.swapped else 0  # a word may be of two frames
        size = before + self.frame_bytes
        size += size % 2 if self.swapped else 0
        data = file.read(max(min(size, self.length - within + before), 0), self.start + within - before)
        if self.swapped:
            data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()
        return data[before : before + self.frame_bytes]

    def whole(self, data: bytes) -> bool:
        """Whether a frame is all there."""
        return len(data) == self.frame_bytes


def native_size(path: Path, length: int, frames: int, sizes: tuple[int, ...]) -> int:
    """Return which of the sizes that a frame may have makes ``length`` bytes of all; the first where they are cut.

    Raises
    ------
    MetadataError
        None does.
    """
    for size in sizes:
        if 0 <= length - frames * size <= 1:  # padded to an even length
            return size
    if len(sizes) > 1 and length > frames * sizes[0]:  # behind frames of the only size stands padding
        expected = " or ".join(str(frames * size) for size in sizes)
        raise MetadataError(f"{path} has {length} bytes of pixel data, where its {frames} frames take {expected}.")
    return sizes[0]


class EncapsulatedFrames:
    """Compressed frames in fragments (PS3.5 A.4), found by an offset table or by walking over all fragments.

    Parameters
    ----------
    file
        That holds them.
    start
        Of the value of PixelData: the Basic Offset Table's item.
    number_of_frames
        As declared.
    extended_offsets
        The Extended Offset Table, where there is one.
    """

    def __init__(
        self, file: RandomAccessFile | MemoryFile, start: int, number_of_frames: int, extended_offsets: Offsets | None
    ) -> None:
        self._number_of_frames = number_of_frames
        header = file.read(8, start)
        if len(header) < 8 or header[:4] != _ITEM:
            raise MetadataError(f"{file.path}: the encapsulated pixel data have no Basic Offset Table item.")
        (table_bytes,) = struct.unpack("<I", header[4:])
        self._first = start + 8 + table_bytes
        sane = table_bytes == 4 * number_of_frames  # else the fragments are found by walking
        table = file.read(table_bytes, start + 8) if sane else b""
        basic = np.frombuffer(table[: len(table) // 4 * 4], "<u4").astype(np.int64)
        if file.size - self._first > 1 << 32 and len(basic) > 1:  # 32 bits overflow, while frames stand in order
            basic += np.concatenate([[0], np.cumsum(np.diff(basic) < 0)]) << 32
        offsets = basic if extended_offsets is None else extended_offsets
        usable = len(offsets) == number_of_frames
        in_order = not offsets[:1].any() and (offsets[1:] > offsets[:-1]).all()
        self._offsets: Offsets | None = offsets if usable and in_order else None
        # Frames may stand in any order, or share a code stream: then their fragments are looked up in the walk.
        self._unordered: Offsets | None = offsets if usable and not in_order else None
        self._fragments: _Fragments | None = None

    def read(self, file: RandomAccessFile | MemoryFile, frame_index: int) -> bytes:
        """Return the code stream of a frame, fragments joined; short or empty where the file is cut."""
        if self._offsets is not None:
            data = self._read_by_offset(file, self._offsets, frame_index)
            if data is not None:
                return data
            self._offsets = None  # the table lies
        if self._fragments is None:
            with finding:
                if self._fragments is None:
                    self._fragments = self._group(file, *self._walk(file))
        return self._fragments.read(file, frame_index)

    def whole(self, data: bytes) -> bool:
        """Whether a frame is all there, as far as its container tells."""
        return bool(data)

    def _read_by_offset(self, file: RandomAccessFile | MemoryFile, offsets: Offsets, frame_index: int) -> bytes | None:
        """Read the items of a frame at once; None where the table does not point at items."""
        position = self._first + int(offsets[frame_index])
        if frame_index + 1 < len(offsets):
            size = int(offsets[frame_index + 1] - offsets[frame_index])
            items = file.read(size, position)
            return b"" if len(items) < size else _join(items)
        fragments: list[bytes] = []
        while True:  # the last frame ends where the sequence does
            header = file.read(8, position)
            if header[:4] != _ITEM or len(header) < 8:
                return b"".join(fragments) if fragments or len(header) < 8 else None
            (length,) = struct.unpack("<I", header[4:])
            fragments.append(file.read(length, position + 8))
            if len(fragments[-1]) < length:
                return b""
            position += 8 + length

    def _walk(self, file: RandomAccessFile | MemoryFile) -> tuple[Offsets, Offsets]:
        """Return offsets and lengths of all fragments."""
        offsets, lengths = array("q"), array("q")
        position, end = self._first, file.size
        while position + 8 <= end:
            header = file.read(8, position)
            if header[:4] != _ITEM:
                break
            length = int.from_bytes(header[4:], "little")
            if length == UNDEFINED_LENGTH or position + 8 + length > end:
                break
            offsets.append(position + 8)
            lengths.append(length)
            position += 8 + length
        return np.array(offsets, np.int64), np.array(lengths, np.int64)

    def _group(self, file: RandomAccessFile | MemoryFile, offsets: Offsets, lengths: Offsets) -> _Fragments:
        """Assign fragments to frames."""
        ranges = self._tabled(file, offsets)
        if ranges is None:
            firsts = self._firsts(file, offsets, lengths)
            ranges = firsts[:-1], firsts[1:]
        return _Fragments(*ranges, offsets, lengths)

    def _tabled(self, file: RandomAccessFile | MemoryFile, offsets: Offsets) -> tuple[Offsets, Offsets] | None:
        """Return the first fragment of each frame and the one behind its last, by a table whose frames are in no order.

        None where it does not point at fragments, or leaves some that could be a frame's.
        """
        table, count, places = self._unordered, len(offsets), offsets - 8 - self._first
        if table is None or not count:
            return None
        there = np.unique(table[table <= places[-1]])  # others are cut off
        if not np.isin(there, places).all() or 0 not in there:
            return None
        if len(there) < len(table) and any(
            file.read(4, offset).startswith(_STREAM_HEADS) for offset in offsets[~np.isin(places, there)].tolist()
        ):
            return None
        bounds = np.append(np.searchsorted(places, there), count)
        frames = np.searchsorted(there, table)
        return bounds[frames], bounds[np.minimum(frames + 1, len(there))]

    def _firsts(self, file: RandomAccessFile | MemoryFile, offsets: Offsets, lengths: Offsets) -> Offsets:
        """Return the first fragment of each frame, in order, and the one behind the last frame's."""
        count = len(offsets)
        if self._number_of_frames == 1:
            return np.array([0, count][: 1 + bool(count)], np.int64)
        if count <= self._number_of_frames:
            return np.arange(count + 1)
        firsts: list[int] = []
        ended = True
        for number, (offset, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
            if not firsts or (ended and file.read(4, offset).startswith(_STREAM_HEADS)):
                firsts.append(number)
            size = min(length, _TAIL_BYTES)
            tail = file.read(size, offset + length - size)
            # JPEG and JPEG 2000 end with FFD9, whatever fragments within them begin with; others have no such mark.
            marked = file.read(2, int(offsets[firsts[-1]])).startswith(_MARKED_HEADS)
            ended = stream_ended(tail) or not marked
        if len(firsts) != self._number_of_frames:
            raise MetadataError(
                f"{file.path}: {count} fragments without an offset table cannot be told apart into "
                f"{self._number_of_frames} frames; {len(firsts)} of them begin a code stream."
            )
        return np.array([*firsts, count], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Fragments:
    """Where the fragments of all frames lie; some 24 bytes for each, of which there may be millions."""

    firsts: Offsets
    """Number of the first fragment of each frame."""
    stops: Offsets
    """Of the one behind its last."""
    offsets: Offsets
    lengths: Offsets

    def read(self, file: RandomAccessFile | MemoryFile, frame_index: int) -> bytes:
        """Return the fragments of a frame, joined; nothing where there is no such frame."""
        if frame_index >= len(self.firsts):
            return b""
        mine = slice(int(self.firsts[frame_index]), int(self.stops[frame_index]))
        places = zip(self.lengths[mine].tolist(), self.offsets[mine].tolist(), strict=True)
        return b"".join(itertools.starmap(file.read, places))


def _join(items: bytes) -> bytes | None:
    """Take the values out of items; None where they do not fill the bytes exactly."""
    position = 0
    fragments: list[bytes] = []
    while position + 8 <= len(items) and items[position : position + 4] != _SEQUENCE_END:
        length = int.from_bytes(items[position + 4 : position + 8], "little")
        if items[position : position + 4] != _ITEM or position + 8 + length > len(items):
            return None
        fragments.append(items[position + 8 : position + 8 + length])
        position += 8 + length
    if not fragments or (position != len(items) and items[position : position + 4] != _SEQUENCE_END):
        return None
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)
