"""From JSON text to datasets, and back. What nobody may need of long ones stays text."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import msgspec

_LONG_BYTES = 1 << 20
"""A body that pays for importing msgspec."""
_FRAME_GROUPS = "52009230"
"""PerFrameFunctionalGroupsSequence."""
_MARK = "\0unread"


class UnreadItems:
    """Items of a sequence that are still text: to make objects of all, one for each frame, takes most of the time."""

    __slots__ = ("text",)

    def __init__(self, text: msgspec.Raw) -> None:
        self.text = text
        """A JSON array."""

    def read(self) -> list[Any]:
        """Return all items."""
        items: list[Any] = _read(self.text)
        return items

    def first(self) -> Any:
        """Return the first item, None where there is none."""
        import msgspec  # noqa: PLC0415

        items = msgspec.json.decode(self.text, type=list[msgspec.Raw])
        return _read(items[0]) if items else None


def loads(body: bytes) -> Any:
    """Parse JSON with garbage collection paused: it would cost more than the parsing.

    What is long is parsed by msgspec, which is faster. If it is a list of datasets, the items of their
    PerFrameFunctionalGroupsSequence are left as ``UnreadItems``.

    Raises
    ------
    ValueError
        It is no JSON.
    """
    with collection_paused():
        if len(body) > _LONG_BYTES:
            # It is stricter: about NaN, a byte order mark, lone surrogates, and how deeply things are nested.
            with contextlib.suppress(ValueError, RecursionError):
                return _loads_long(body)
        return _loads_leniently(body)


def dumps(value: Any) -> bytes:
    """Return the JSON text of what ``loads`` returned; unread items go as they came.

    Raises
    ------
    TypeError, ValueError
        There is something else in it, or it cannot be told from unread items.
    """
    texts: list[bytes] = []

    def mark(item: Any) -> str:
        if not isinstance(item, UnreadItems):
            raise TypeError(f"{type(item).__name__} is no JSON")
        texts.append(bytes(item.text))
        return _MARK

    rest = json.dumps(value, separators=(",", ":"), default=mark).encode().split(json.dumps(_MARK).encode())
    if len(rest) != len(texts) + 1:
        raise ValueError("a value looks like the mark of unread items")
    return b"".join(itertools.chain.from_iterable(zip(rest, [*texts, b""], strict=True)))


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Make many objects without garbage collection."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # What was made counts as old, or the next object made by anybody would have all of it gone through.
        if was_enabled and not gc.get_freeze_count():  # what others have frozen must stay so
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def _loads_long(body: bytes) -> Any:
    import msgspec  # noqa: PLC0415

    if _FRAME_GROUPS.encode() in body:
        with contextlib.suppress(msgspec.ValidationError):  # it is something else than a list of datasets
            datasets = msgspec.json.decode(body, type=list[dict[str, msgspec.Raw]])
            return [{tag: _element(tag, text) for tag, text in dataset.items()} for dataset in datasets]
    return msgspec.json.decode(body)


def _element(tag: str, text: msgspec.Raw) -> Any:
    import msgspec  # noqa: PLC0415

    if tag != _FRAME_GROUPS:
        return msgspec.json.decode(text)
    parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return {name: _value(name, part) for name, part in parts.items()}


def _value(name: str, text: msgspec.Raw) -> Any:
    import msgspec  # noqa: PLC0415

    is_array = name == "Value" and bytes(memoryview(text)[:1]) == b"["
    return UnreadItems(text) if is_array else msgspec.json.decode(text)


def _read(text: msgspec.Raw) -> Any:
    import msgspec  # noqa: PLC0415

    with collection_paused():
        with contextlib.suppress(ValueError, RecursionError):  # of letters alone: the rest was looked at with the whole
            return msgspec.json.decode(text)
        return _loads_leniently(bytes(text))


def _loads_leniently(body: bytes) -> Any:
    try:
        try:
            return json.loads(body)
        except UnicodeDecodeError:  # a name, say, that the service wrote in another character set
            return json.loads(body.decode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
