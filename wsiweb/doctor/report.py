"""The result of an examination, as values."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wsiweb.opening import Connection
    from wsiweb.stats import ServiceTraits

Status = Literal["ok", "warning", "failed", "skipped"]
Figure = float | str | bool | None
_SHORTEST_SECRET = 4
"""Less would be found in every other word."""
_TELLING_PREFIX = 8
"""So much of a secret is one, too."""
_PUBLIC_HEADERS = frozenset({"user-agent", "accept", "accept-encoding", "connection"})


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    """With "warning" it works, but not as well as it could; "skipped" could not, or need not, be tried."""
    finding: str
    """What was seen, with figures."""
    advice: str = ""
    """What to do, where something is wrong."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """The same for programs; the unit is in the name."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an examination found."""

    url: str
    """Root of the service, without secrets."""
    study_uid: str | None
    series_uid: str | None
    """Of the slide that was tried; None where none was found."""
    readable: bool
    """Whether a frame of the slide came and could be decoded."""
    checks: tuple[Check, ...]
    conclusion: str
    """What wsiweb will do on this service, and why."""
    service: ServiceTraits | None
    """The same for programs; None where no slide was opened."""
    requests: int
    """That were made."""
    bytes: int
    """Received, content encoding undone."""
    seconds: float

    def check(self, name: str) -> Check:
        """Return a check by its name.

        Raises
        ------
        KeyError
            There is none of that name.
        """
        return {check.name: check for check in self.checks}[name]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return asdict(self)

    def without(self, secrets: Iterable[str]) -> Report:
        """Return the report with each of these texts blotted out: a server may have echoed what it was sent."""
        listed = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)

        def clean(text: str) -> str:
            for secret in listed:
                text = _blotted(text, secret)
            return text

        checks = tuple(
            replace(
                check,
                finding=clean(check.finding),
                advice=clean(check.advice),
                figures={clean(k): clean(v) if isinstance(v, str) else v for k, v in check.figures.items()},
            )
            for check in self.checks
        )
        return replace(self, checks=checks, conclusion=clean(self.conclusion))


def _blotted(text: str, secret: str) -> str:
    """Blot out a secret, and what is left of it where the text was cut."""
    head, position = secret[:_TELLING_PREFIX], 0
    while (position := text.find(head, position)) >= 0:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(text[position:], secret, strict=False))
        length = sum(1 for _ in same)
        text = f"{text[:position]}***{text[position + length :]}"
        position += 3
    return text


def secrets_of(connection: Connection, auth: object, query: Iterable[str]) -> set[str]:
    """Return the texts that nobody but the service may see; a token that is yet to be had is not among them.

    ``auth`` is what the session sends in the end, whoever it is from (the URL, .netrc).
    """
    session = connection.session
    auths: list[Any] = [auth, connection.auth, getattr(session, "auth", None)]
    found = set(query)
    for one in auths:
        pair = one if isinstance(one, tuple) else (getattr(one, "username", None), getattr(one, "password", None))
        if len(pair) == 2 and all(isinstance(text, str) for text in pair):
            found |= {pair[1], base64.b64encode(":".join(pair).encode()).decode()}
    if isinstance(connection.token, str):
        found.add(connection.token)
    headers = {**(connection.headers or {}), **getattr(session, "headers", {})}
    for name, value in headers.items():
        if name.lower() not in _PUBLIC_HEADERS:
            found |= {str(value), *str(value).split()[1:]}
    found |= {str(cookie.value) for cookie in getattr(session, "cookies", ())}
    return found
