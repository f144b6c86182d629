"""``requests`` adapters of our own, and the connections that they share.

Who reads hundreds of slides from one service greets it once, and keeps few sockets open.

A connection is as good as any other where nothing but its requests says who asks. It is not where TLS knows who it is
(a client's certificate), or where the login may belong to the connection (NTLM, Negotiate).
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import urllib3
from requests.adapters import HTTPAdapter

from wsiweb.sources.trust import lock, version_of
from wsiweb.sources.wire import bind

if TYPE_CHECKING:
    import requests

_SERVICES = 32
"""Whose connections are kept, at most."""
_IDLE_CONNECTIONS = 64
"""That are kept of each, at most."""
_NO_RETRIES = urllib3.Retry(0, read=False)  # what to try again is decided where bodies can be seen


_Key = tuple[int, str | bool, tuple[int, int], int]


class _Managers(dict[str, Any]):
    """Managers of pools, by proxy, as an adapter keeps those that it makes; each binds the waits for an answer."""

    def __setitem__(self, proxy: str, manager: Any) -> None:
        super().__setitem__(proxy, bind(manager))


class _Pools:
    """The connections of all adapters that may use each other's."""

    def __init__(self, key: _Key, login: object) -> None:
        self.key = key
        self.direct: Any = bind(urllib3.PoolManager(_SERVICES, maxsize=_IDLE_CONNECTIONS))
        self.by_proxy = _Managers()
        self.login = login  # while it is held, no other has its id
        self.users: weakref.WeakSet[SharingAdapter] = weakref.WeakSet()


_shared: weakref.WeakValueDictionary[_Key, _Pools] = weakref.WeakValueDictionary()


class SharingAdapter(HTTPAdapter):
    """Sends over the connections of all adapters of this process that trust the same authorities.

    Parameters
    ----------
    adapter
        Whose settings it takes over, but for how many connections are kept.
    verify
        As ``requests.Session`` has it. requests writes it into pools, whoever else is using them.
    login
        What connections may be logged in with; None where they are not.
    """

    def __init__(self, adapter: HTTPAdapter, *, verify: str | bool, login: object) -> None:
        vars(self).update(vars(adapter))
        self._pool_connections, self._pool_maxsize, self._pool_block = _SERVICES, _IDLE_CONNECTIONS, False
        version = (0, 0)
        if isinstance(verify, str):
            with contextlib.suppress(OSError):  # of a file that is none: requests says so in its own way
                version = version_of(verify)
        key = os.getpid(), verify, version, id(login)  # no child shares a socket with its parent
        with lock:
            pools = _shared.get(key)
            if pools is None:
                pools = _shared[key] = _Pools(key, login)
            pools.users.add(self)
        self.max_retries = _NO_RETRIES
        self._pools, self.poolmanager, self.proxy_manager = pools, pools.direct, pools.by_proxy

    def close(self) -> None:
        """Leave the connections to the others; the last one closes them."""
        pools = self._pools
        with lock:  # one with that of contexts: a slide may be closed while one is made, as another thread forks
            pools.users.discard(self)
            if pools.users or pools.key[0] != os.getpid():
                return
            if _shared.get(pools.key) is pools:
                del _shared[pools.key]
        _close_connections(self)


def own_adapters(session: requests.Session, connections: int, login: object = None) -> OrderedDict[str, Any]:
    """Return adapters like those of a session, whose waits for an answer are bound, and which drop no connections.

    Parameters
    ----------
    session
        That will go by them.
    connections
        That it needs at once.
    login
        What connections may be logged in with, and not requests; None where they are not.
    """
    verify = session.verify

    def own(adapter: Any) -> Any:
        shares = not session.cert and type(adapter) is HTTPAdapter
        if shares and verify and isinstance(verify, (bool, str)):  # anything else verifies nobody
            return SharingAdapter(adapter, verify=verify, login=login)
        return _bound(adapter, connections) if isinstance(adapter, HTTPAdapter) else adapter

    return OrderedDict((prefix, own(adapter)) for prefix, adapter in session.adapters.items())


def _bound(adapter: HTTPAdapter, connections: int) -> HTTPAdapter:
    """Return an adapter like one that is made in a way of its own, with connections of its own."""
    own: Any = object.__new__(type(adapter))
    vars(own).update(vars(adapter))
    own.proxy_manager = _Managers()
    # init_poolmanager is what subclasses override to bring their own TLS context.
    own.init_poolmanager(connections, max(connections, vars(adapter).get("_pool_maxsize", 10)), block=False)
    own.max_retries = _NO_RETRIES
    bind(own.poolmanager)
    return own  # type: ignore[no-any-return]


def close_adapters(session: requests.Session) -> None:
    """Close the connections of an own session, but for those that others use."""
    for adapter in session.adapters.values():
        if isinstance(adapter, HTTPAdapter) and not isinstance(adapter, SharingAdapter):
            _close_connections(adapter)
    session.close()


def _close_connections(adapter: Any) -> None:
    """Close the connections of an adapter that are not in use: clearing alone leaves them to the garbage collector."""
    for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
        for key in manager.pools.keys():  # noqa: SIM118  (which is a copy)
            with contextlib.suppress(KeyError):
                manager.pools[key].close()
        manager.clear()
