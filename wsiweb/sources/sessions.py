"""``requests`` sessions of our own: made after the user's, with its credentials and its ways."""

from __future__ import annotations

import copy
import netrc  # noqa: F401  (requests would import it while a slide is being opened)
import os
import re
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from requests.structures import CaseInsensitiveDict

from wsiweb.errors import AuthenticationError
from wsiweb.sources.adapters import own_adapters

if TYPE_CHECKING:
    from collections.abc import Callable

_MERGE = requests.Session.merge_environment_settings
_TOKEN = re.compile(r"[\x21-\x7e]+")
_CERTIFICATES = frozenset({"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"})


class TokenAuth(AuthBase):
    """Sends a bearer token; asks for a new one, once for all threads, when the service says 401."""

    def __init__(self, token: str | Callable[[], str]) -> None:
        self.supplier = token
        self._token: str | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"supplier": self.supplier}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["supplier"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return "TokenAuth(...)"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token into a request."""
        request.headers["Authorization"] = f"Bearer {self._current()}"
        return request

    def _current(self) -> str:
        with self._lock:
            if self._token is None:
                self._token = self._had()
            return self._token

    def _had(self) -> str:
        token: Any = self.supplier
        if callable(token):
            try:
                token = token()
            except Exception as error:
                raise AuthenticationError(f"token= raised {type(error).__name__} when it was called.") from error
        if not isinstance(token, str):
            kind = type(token).__name__
            raise AuthenticationError(f"token= is a string, or a callable that returns one; this is {kind}.")
        if not _TOKEN.fullmatch(token):
            raise AuthenticationError(
                "token= is empty, or has spaces, line breaks or other characters that no bearer token has (RFC 6750). "
                "Pass it without the word Bearer, and strip what was read from a file."
            )
        return token

    def renew(self, refused: str | None) -> bool:
        """Drop the token that was refused; False where there is no way to get another."""
        if not callable(self.supplier):
            return False
        with self._lock:
            if refused is None or refused == f"Bearer {self._token}":
                self._token = None
        return True


class NoCredentials(AuthBase):
    """Keeps requests from looking for credentials of its own (.netrc)."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Leave a request as it is."""
        return request


def own_session(session: requests.Session, url: str, connections: int) -> requests.Session:
    """Copy a session, subclass and all, with adapters of our own (see ``adapters``).

    The copy leaves the user's session as it is. What the environment says of proxies, certificates and credentials is
    looked up here, and not for each request.
    """
    own = leave_redirects(object.__new__(type(session)))
    own.__dict__.update(session.__dict__ | own.__dict__)
    own.cookies = requests.cookies.RequestsCookieJar(getattr(session.cookies, "_policy", None))
    own.cookies.update(session.cookies)  # in a jar with a lock of its own
    if isinstance(own.auth, TokenAuth):
        own.auth = copy.copy(own.auth)  # with a lock of its own
    own.headers = CaseInsensitiveDict(session.headers)
    own.proxies = dict(session.proxies)
    if isinstance(own.cert, (str, os.PathLike)):
        # Of a file that is named for the key urllib3 sees whether it is encrypted; OpenSSL would ask the terminal.
        own.cert = os.fspath(own.cert), os.fspath(own.cert)
    if session.trust_env:
        if _environment_says(url) or getattr(session.merge_environment_settings, "__func__", None) is not _MERGE:
            found = session.merge_environment_settings(url, {}, None, None, None)
            own.proxies = found["proxies"]
            if session.verify is True:  # requests itself lets the environment overrule what the user says
                own.verify = found["verify"]
        if own.auth is None and "Authorization" not in own.headers:
            own.auth = requests.utils.get_netrc_auth(url)
        own.trust_env = False
    own.adapters = own_adapters(own, connections, _login_of(session))
    if str(own.headers.get("User-Agent", "")).startswith("python-requests/"):
        from wsiweb import __version__  # noqa: PLC0415

        own.headers["User-Agent"] = f"wsiweb/{__version__}"
    return own


def leave_redirects(session: requests.Session) -> requests.Session:
    """Have a session ignore redirects: even where it shall not follow them, it reads their bodies, however long."""
    vars(session)["get_redirect_target"] = lambda _response: None
    return session


def _environment_says(url: str) -> bool:
    """Whether there may be proxies or certificates to find: to ask requests takes longer than to parse the metadata."""
    if urllib.request.getproxies is not urllib.request.getproxies_environment:
        return True  # the system has settings of its own (macOS, Windows)
    if not url.lower().startswith("http:") and not _CERTIFICATES.isdisjoint(os.environ):
        return True
    return any(name.lower().endswith("_proxy") for name in os.environ)


def _login_of(session: requests.Session) -> object:
    """Return what may log in connections, and not requests; None where nothing does."""
    if type(session).send is not requests.Session.send:
        return session
    return None if isinstance(session.auth, _STATELESS) else session.auth


_STATELESS = (type(None), tuple, TokenAuth, HTTPBasicAuth)
"""Logins that each request carries."""
