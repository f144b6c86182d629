"""What the HTTP libraries raise, in errors of ours that say what failed and what to do."""

from __future__ import annotations

import contextlib
import http.client
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import urllib3

from wsiweb.errors import ProtocolError, SourceTimeoutError, WsiWebError
from wsiweb.sources.quoting import without_secrets
from wsiweb.sources.retry import PROXY_WANTS_CREDENTIALS, HopelessError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PROXY_SCHEMES = frozenset({"http", "https", "socks4", "socks4a", "socks5", "socks5h"})
_TLS_ADVICE = (
    ("WRONG_VERSION_NUMBER", "Does the port speak plain http? Then the URL begins with http://"),
    ("has expired|not yet valid", "Have the certificate renewed, unless it is this machine's clock that is wrong"),
    ("(Hostname|address) mismatch", "The certificate is for another name: is the address right?"),
    ("CERTIFICATE_VERIFY_FAILED", "If the service has an authority of its own, pass verify= with its certificate"),
    ("is encrypted", "Write the key of cert= without a password (openssl pkey -in FILE -out FILE)"),
    ("PEM|ASN1|KEY_VALUES|NO_START_LINE", "Are the files of verify= and cert= PEM files, that of cert= with its key?"),
    ("ALERT", "The service refuses: perhaps it wants a certificate (cert=), or another version of TLS"),
    ("", "Does the service speak TLS there?"),
)
"""What to do about a failure, by what OpenSSL calls it; the first that fits."""
_TLS_ALERT = "\x15\x03"
"""How a service that speaks TLS answers who does not."""


@contextlib.contextmanager
def translated(url: str, proxy_of: Callable[[str], str | None]) -> Iterator[None]:
    """Turn every exception of the HTTP libraries into one of ours. Theirs may show secrets, and are left behind.

    ``proxy_of`` returns the proxy by which a URL is asked.
    """
    where = without_secrets(url)
    try:
        yield
    except WsiWebError:
        raise
    except (requests.exceptions.ConnectTimeout, requests.exceptions.ConnectionError) as error:
        if isinstance(error, requests.exceptions.ReadTimeout):
            raise SourceTimeoutError(f"{where} was silent for too long.", url=where) from None
        reason = _no_connection(error, proxy_of(url))
        if reason is None:
            raise ProtocolError(f"{where} broke off the connection.", url=where) from None
        raise UnreachableError(f"No connection to {where}: {reason}", url=where) from None
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        raise SourceTimeoutError(f"{where} was silent for longer than the timeout.", url=where) from None
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        urllib3.exceptions.LocationValueError,
    ) as error:
        reason = _proxy_is_none(error, proxy_of(url))
        problem = f"was not asked: {reason}" if reason else "is no URL that can be asked"
        raise HopelessError(f"{where} {problem}.", url=where) from None
    except requests.exceptions.InvalidHeader as error:
        if error.args and isinstance(error.args[0], urllib3.exceptions.InvalidHeader):  # of the answer
            raise ProtocolError(f"The answer of {where} contradicts itself: {_root(error)}", url=where) from None
        raise not_asked(where, error) from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise ProtocolError(f"The answer of {where} broke off: {_root(error)}", url=where) from None


def not_asked(where: str, error: Exception) -> HopelessError:
    """Say why a request could not be made; the value is not shown, nor the error that shows it: it may be a token."""
    return HopelessError(
        f"{where} was not asked: a header or a credential is no text, or has characters that HTTP does not allow "
        f"({type(error).__name__}).",
        url=where,
    )


def _no_connection(error: Exception, proxy: str | None) -> str | None:
    """Say why there is no connection, and what to do; None where there was one, which broke off."""
    root = _root(error)
    if isinstance(error, requests.exceptions.SSLError):
        advice = next(advice for sign, advice in _TLS_ADVICE if re.search(sign, root))
        return f"TLS failed: {root}. {advice}"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy {_named(proxy)} failed: {root}. {_proxy_advice(root)}"
    reason: Any = error.args[0] if error.args else None
    if not isinstance(reason, urllib3.exceptions.ProtocolError):
        return f"{root}. Is the address right, and the service running?"
    answer = reason.args[-1]
    if isinstance(answer, http.client.BadStatusLine) and str(answer).startswith(_TLS_ALERT):
        return "the port speaks TLS. Does the URL begin with https://?"
    return None


def _proxy_advice(root: str) -> str:
    wants = " 407 " in root
    return PROXY_WANTS_CREDENTIALS if wants else "Is its address right (HTTPS_PROXY, or that of session=)?"


def _proxy_is_none(error: Exception, proxy: str | None) -> str | None:
    """Say why a proxy cannot be used; None where it is not to blame."""
    if proxy is None:
        return None
    if "SOCKS" in str(error):
        return f"the proxy {_named(proxy)} needs PySocks. Get it by pip install 'requests[socks]'"
    try:
        parts = urlsplit(_with_scheme(proxy))
        usable = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if usable and not isinstance(error, requests.exceptions.InvalidProxyURL):
        return None
    return f"its proxy, {_named(proxy)}, has to be written as http://host:port (in HTTPS_PROXY, or that of session=)"


def _named(proxy: str | None) -> str:
    return "" if proxy is None else without_secrets(_with_scheme(proxy))


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy}"


def _root(error: BaseException) -> str:
    """Say the innermost reason, without the libraries' wrapping."""
    reason: BaseException = error
    while True:
        inner = getattr(reason, "reason", None) or getattr(reason, "original_error", None)
        inner = inner or (reason.args[0] if reason.args else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = str(reason)
    return re.sub(r"^<[^>]*>: |^\w+\(.*?\): ", "", text)[:300]
