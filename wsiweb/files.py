"""Files that appear under their name when they are whole, or never."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from wsiweb.errors import WsiWebError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SHOWN = 40
"""Letters of a file's name in that of the temporary one, which may not be longer than a system allows."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, which becomes the final one when all went well.

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
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Speak of the file that was asked for, where one beside it cannot be made."""
    try:
        yield
    except FileNotFoundError as error:
        raise WsiWebError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.") from error
    except OSError as error:
        raise WsiWebError(f"{path} cannot be written: {error.strerror or error}.") from error
