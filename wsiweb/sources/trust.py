"""Whom connections over TLS trust, read once: it takes 15 ms, which urllib3 spends on each connection."""

from __future__ import annotations

import contextlib
import functools
import ssl
from pathlib import Path
from typing import Any

from urllib3.connection import HTTPSConnection
from urllib3.util import ssl_

from wsiweb.locks import module_lock

_PECULIAR = (
    *("ssl_context", "cert_file", "ca_cert_dir", "ca_cert_data", "assert_hostname", "assert_fingerprint"),
    *("ssl_version", "ssl_minimum_version", "ssl_maximum_version"),
)
"""What only some connections have; those keep a context of their own, as does one to a proxy over TLS."""
lock = module_lock()
"""Of what all connections share. Threads that connect at once wait for the first of them to read."""


def share_context(connection: Any) -> str | None:
    """Give a connection that is about to be made the context of all others that trust the same file; return that.

    None where it keeps its own.
    """
    if (
        not isinstance(connection, HTTPSConnection)
        or not connection.ca_certs
        or any(getattr(connection, name, None) is not None for name in _PECULIAR)
        or ssl_.resolve_cert_reqs(connection.cert_reqs) != ssl.CERT_REQUIRED
        or (connection.proxy is not None and connection.proxy.scheme == "https")
    ):
        return None
    path: str = connection.ca_certs
    with lock, contextlib.suppress(OSError):  # of a file that is none: urllib3 says so in its own way
        connection.ssl_context, connection.ca_certs = _context(path, *version_of(path)), None
        return path
    return None


def version_of(path: str) -> tuple[int, int]:
    """Return what changes with the contents of a file.

    Raises
    ------
    OSError
        It is none.
    """
    found = Path(path).stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=8)
def _context(path: str, *_version: int) -> ssl.SSLContext:
    """Return a context as urllib3 makes them."""
    context: ssl.SSLContext = ssl_.create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_verify_locations(path)
    context.set_alpn_protocols(ssl_.ALPN_PROTOCOLS)
    # urllib3 sets them for each connection, while OpenSSL may be copying them for another.
    vars(context)["set_alpn_protocols"] = lambda _protocols: None
    return context
