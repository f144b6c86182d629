"""Locks of modules, which belong to the process and not to one object."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def module_lock() -> AbstractContextManager[object]:
    """Return a lock that forks wait for: no child begins with it held by a thread that the child does not have."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
