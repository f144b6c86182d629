"""Files that appear under their name when they are whole, or never."""

from __future__ import annotations

import contextlib
import errno
import io
import secrets
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from wsiweb.errors import WsiWebError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SHOWN = 40
"""Letters of a file's name in that of the temporary one, which may not be longer than a system allows."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, which becomes the final one when all went well.

    What fails inside of the ``with`` fails as it does: ``writable`` belongs around what writes there.

    Raises
    ------
    WsiWebError
        No file can be made there.
    """
    temporary = path.with_name(f".{path.name[:_SHOWN]}.{secrets.token_hex(4)}.part")
    try:
        with writable(path):
            temporary.open("xb").close()
        yield temporary
        with writable(path):
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_stream(path: Path) -> Iterator[BinaryIO]:
    """Give a stream into such a file. That of it which fails is a ``WsiWebError``, whatever else is done meanwhile."""
    with whole(path) as temporary, io.BufferedWriter(Written(temporary, path)) as stream:
        yield cast("BinaryIO", stream)


class Written(io.FileIO):
    """A file that speaks of another where it cannot be written."""

    def __init__(self, temporary: Path, path: Path) -> None:
        super().__init__(temporary, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        """Write bytes."""
        with writable(self._path):
            return super().write(data)

    def close(self) -> None:
        """Close the file: what is left to write may fail then."""
        with writable(self._path):
            super().close()


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Speak of the file that was asked for, where it, or one beside it, cannot be written."""
    if "\0" in str(path):
        raise WsiWebError(f"{str(path)!r} cannot be written: no name of a file has a null character.")
    try:
        yield
    except WsiWebError:  # some are an OSError, too
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            advice = f"there is no folder {path.parent}. Make it first."
        elif error.errno in _FULL:
            advice = f"{error.strerror}. Make room, or write to another place."
        else:
            advice = f"{error.strerror or error}."
        raise WsiWebError(f"{path} cannot be written: {advice}") from error
