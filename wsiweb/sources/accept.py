"""Which ``Accept`` a service answers with frames as they are stored (PS3.18 8.7.3.5). No I/O.

Services differ: most send what is stored for octet-stream with any transfer syntax; dcm4chee decompresses then, and
sends it for the frames' own media type. What was seen is remembered, so that each failure is paid for once.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsiweb import transfer_syntaxes

if TYPE_CHECKING:
    from collections.abc import Collection

NATIVE = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
ANYTHING = 'multipart/related; type="*/*"; transfer-syntax=*'
DECOMPRESSED = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'
SINGLE_PART = "application/octet-stream; transfer-syntax=*"


@dataclass(slots=True)
class _Experience:
    """With the frames of one stored transfer syntax."""

    native: str | None = None
    """Brought them as they are stored."""
    decompressing: list[str] = field(default_factory=list)
    """Brought them, but decompressed."""
    refused: dict[str, float] = field(default_factory=dict)
    """And until when that is believed, of ``time.monotonic``."""

    def for_good(self) -> _Experience:
        """Return a copy without what is believed for a time only: moments mean nothing elsewhere."""
        refused = {one: until for one, until in self.refused.copy().items() if until == math.inf}
        return _Experience(self.native, list(self.decompressing), refused)


class AcceptMemory:
    """What a service made of each ``Accept``, by stored transfer syntax. Safe to share between threads; pickles."""

    def __init__(self) -> None:
        self._experiences: dict[str | None, _Experience] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Without the lock: in a forked child, a thread that is not there may have it for ever.
        return {"_experiences": {syntax: known.for_good() for syntax, known in self._experiences.copy().items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self._experiences = state["_experiences"]

    def choose(self, syntax: str | None, count: int, refused: Collection[str]) -> str | None:
        """Return what to ask for ``count`` frames with; None where everything was refused.

        What brought stored frames comes first, then what was not tried yet, then what brings them decompressed.
        Never a JPEG type for what is not stored as JPEG: services then compress lossily without a word.

        Parameters
        ----------
        syntax
            Stored transfer syntax, or None where it is not known.
        count
            Frames of the request; a single one may come without multipart.
        refused
            What this very request was refused with.
        """
        with self._lock:
            known = self._experiences.get(syntax, _Experience())
            untried = [one for one in variants(syntax, count) if one not in (known.native, *known.decompressing)]
            now = time.monotonic()
            fresh = [one for one in untried if known.refused.get(one, -math.inf) < now]
            wanted = [known.native, *fresh, *known.decompressing, *untried]
        singly = {SINGLE_PART} if count > 1 else set()
        return next((one for one in wanted if one is not None and one not in singly and one not in refused), None)

    def brought(self, syntax: str | None, accept: str, *, native: bool) -> None:
        """Remember an answer with frames, as they are stored or decompressed."""
        with self._lock:
            known = self._experiences.setdefault(syntax, _Experience())
            known.refused.pop(accept, None)
            if native:
                known.native = accept
            elif known.native != accept and accept not in known.decompressing:
                known.decompressing.append(accept)

    def refuse(self, syntax: str | None, accept: str, *, seconds: float = math.inf) -> None:
        """Remember a refusal, for so long: it may have been about something else."""
        with self._lock:
            known = self._experiences.setdefault(syntax, _Experience())
            if accept != known.native and accept not in known.decompressing:
                known.refused[accept] = time.monotonic() + seconds

    def proven(self, syntax: str | None) -> tuple[str, ...]:
        """Return what has brought frames."""
        with self._lock:
            known = self._experiences.get(syntax, _Experience())
            return (*([known.native] if known.native else []), *known.decompressing)


def variants(syntax: str | None, count: int) -> list[str]:
    """Return every form in which ``count`` frames of a stored transfer syntax may be asked for, the best first."""
    forms = [NATIVE, ANYTHING, DECOMPRESSED]
    if syntax is not None and (media_type := transfer_syntaxes.media_type(syntax)):
        forms.insert(1, f'multipart/related; type="{media_type}"; transfer-syntax={syntax}')
    if count == 1:
        forms.append(SINGLE_PART)
    return forms
