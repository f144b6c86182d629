"""What a URL names: a service, a study and series in it, or nothing that can be opened. Pure."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from wsiweb.errors import SlideNotFoundError
from wsiweb.sources.quoting import without_secrets

UID = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
"""Or what some take for one; nothing in it means something in a URL."""
_WITHIN = re.compile(
    rf"(.*)/studies/({UID.pattern})(?:/series/({UID.pattern})(?:/.*)?|/(?:metadata|instances).*|/series)?/*", re.ASCII
)
"""What a URL names below the root of a service, which may have a part called studies, too."""
_URL = re.compile(r"\s*[a-z][a-z\d+.-]+://", re.ASCII | re.IGNORECASE)
_VIEWER = frozenset({"studyinstanceuid", "studyinstanceuids", "seriesinstanceuid", "seriesinstanceuids"})
"""Names that viewers have in the query of their addresses."""


def web_url(place: Any) -> str | None:
    """Return a URL of the web without white space around it, as pasting brings it; None of anything else."""
    url = place.strip() if isinstance(place, str) else ""
    return url if url.lower().startswith(("http://", "https://")) else None


def check_path(path: str, *, listed: bool) -> None:
    """Raise ``SlideNotFoundError`` where a path is a URL, of which ``pathlib`` would make something else."""
    if not _URL.match(path) or path.startswith("file://"):
        return
    if web_url(path) is not None and listed:
        where = without_secrets(path.strip())
        raise SlideNotFoundError(f"{where} is a URL in a list, which holds files and folders. Pass the URL by itself.")
    raise no_service(path)


def no_service(place: Any) -> SlideNotFoundError:
    """Return the error for what is taken for the URL of a service, and is none."""
    shown = (isinstance(place, str) and without_secrets(place.strip())) or f"{place!r:.80}"
    return SlideNotFoundError(f"{shown} is no URL of a DICOMweb service: that begins with https:// or http://.")


def split_series_url(url: str) -> tuple[str, tuple[str, str] | None, str | None, tuple[str, ...]]:
    """Split a URL into the service's root, user and password, study UID and series UIDs.

    Raises
    ------
    SlideNotFoundError
        It cannot be read.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:  # which shows the port, or what is taken for it
        raise SlideNotFoundError(
            "This is no URL of a DICOMweb service: its host or port cannot be read. In a user's name or password, "
            "escape what is special in URLs (%2F for /), or pass auth=."
        ) from None
    if not parts.hostname:
        raise SlideNotFoundError("This is no URL of a DICOMweb service: it names no host.")
    user_password = None
    if parts.username is not None:
        user_password = unquote(parts.username), unquote(parts.password or "")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = f"{host}:{port}" if port else host
    named = _WITHIN.fullmatch(parts.path)
    root, study, series = named.groups() if named else (parts.path, None, None)
    base_url = urlunsplit((parts.scheme.lower(), netloc, root.rstrip("/"), "", ""))
    return base_url, user_password, study, () if series is None else (series,)


def nothing_named(url: str) -> SlideNotFoundError:
    """Return the error for a URL that names no slide, where nothing else does."""
    parts = urlsplit(url.strip())
    if parts.fragment or parts.path.endswith(".html") or _VIEWER & {name.lower() for name in parse_qs(parts.query)}:
        advice = (
            "It looks like the address of a viewer. Pass the root of its DICOMweb service (https://host/dicom-web, "
            "say) and series_uid= (--series on the command line)"
        )
    elif "/series/" in parts.path:
        advice = (
            "A series is named with its study; or pass the root of the service, and series_uid= (--series on the "
            "command line)"
        )
    else:
        advice = "If it is the root of a service, name the slide by series_uid= (--series on the command line)"
    return SlideNotFoundError(f"{without_secrets(url.strip())} has no /studies/.../series/... in it. {advice}.")
