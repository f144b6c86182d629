"""All pages of one search resource, by as many filters as the service takes; what it does not take is applied here.

What is known of services, and handled: pages shorter than asked for, an ``offset`` that is ignored or refused past the
end, filters that are refused, ignored, taken literally (``C3L-*``) or not decoded, attributes that are not told.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wsiweb.dicomjson import Attributes
from wsiweb.errors import ProtocolError, SlideNotFoundError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wsiweb.matching import Filter
    from wsiweb.sources.base import Found, JsonDataset

    Find = Callable[[str, dict[str, str]], Found]
    """Makes one request: path and parameters to datasets."""

logger = logging.getLogger("wsiweb")

PAGE = 1000
"""Asked for at a time: what services give without being asked, and below most limits (Google: 5,000)."""
SMALL_PAGE = 100
"""Asked for where all else is refused (Azure takes no ``limit`` above 200)."""
MAX_PAGE = 64 * PAGE
"""Asked for at a time where a service ignores ``offset``, so that there is no other way to the rest."""
_REFUSED = frozenset({400, 414, 422})
_PAST_THE_END = frozenset({400, 404, 410, 416, 422})


class UntoldError(ProtocolError):
    """A service neither heeds a filter nor tells the attribute."""

    def __init__(self, message: str, *, url: str | None = None, filters: Sequence[Filter] = ()) -> None:
        super().__init__(message, url=url)
        self.filters = tuple(filters)


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to put a search."""

    filters: tuple[Filter, ...]
    """Those that are sent."""
    fields: tuple[str, ...]
    """Attributes to ask for beside what the service tells anyway."""
    page: int | None = MAX_PAGE
    """The highest ``limit`` that is sent; None sends neither that nor ``offset``."""

    def parameters(self, size: int, offset: int) -> dict[str, str]:
        """Return the query."""
        sent = {one.name: one.value for one in self.filters}
        if self.fields:
            sent["includefield"] = ",".join(self.fields)
        if self.page is not None:
            sent["limit"] = str(min(size, self.page))
            if offset:
                sent["offset"] = str(offset)
        return sent

    def without(self, filters: Sequence[Filter]) -> _Form:
        """Return the form with fewer filters."""
        return replace(self, filters=tuple(one for one in self.filters if one not in filters))


def _forms(filters: Sequence[Filter]) -> list[_Form]:
    """Return the ways to put a search, from the one that asks most of the service to the one that asks least."""
    chosen = [one for one in filters if not one.implied]
    implied = [one for one in filters if one.implied]
    plain = [one for one in chosen if one.plain]
    fields = tuple(one.name for one in chosen)
    fewer: tuple[list[Filter], ...] = ([*plain, *implied], chosen, plain, implied, [])
    forms = [_Form((*chosen, *implied), fields), _Form((*chosen, *implied), ())]
    forms += [_Form(tuple(some), fields) for some in fewer]
    forms = list(dict.fromkeys([*forms, _Form((), ())]))
    return [*forms, *(replace(form, page=SMALL_PAGE) for form in forms), _Form((), (), page=None)]


def refused(error: Exception, statuses: frozenset[int]) -> bool:
    """Whether an error is an answer with one of these statuses."""
    if isinstance(error, SlideNotFoundError):
        return not statuses.isdisjoint({404, 410})
    return isinstance(error, SourceError) and error.status in statuses


class Listing:
    """The datasets of a resource that match; learns on the way what the service takes.

    Parameters
    ----------
    find
        Makes one request.
    where
        Root of the search resources, for messages.
    uid
        Keyword of the UID that tells the datasets apart.
    filters
        What they must match.
    longest
        Length of the longest page that the service is known to send.
    """

    def __init__(self, find: Find, where: str, uid: str, filters: Sequence[Filter], *, longest: int = 0) -> None:
        self._find = find
        self._where = where
        self._uid = uid
        self._filters = [one for one in filters if not one.universal]
        self._forms = _forms(self._filters)
        self._understood: set[Filter] = set()
        self._told: set[Filter] = set()
        self._heeded: set[Filter] = set()
        self.longest = longest

    def pages(self, path: str, limit: int | None) -> Iterator[list[JsonDataset]]:
        """Yield what matches, page by page, each dataset once.

        The end is a page that is empty, or brings nothing new, or is shorter than another although the service was
        asked for more, and does not say that there is more: each has a limit of its own, which need not be the one that
        it was given.

        Raises
        ------
        UntoldError
            A filter can be applied neither there nor here.
        """
        size, offset, grown = min(limit or PAGE, PAGE), 0, False
        seen: set[str | None] = set()
        found = self._first(path, size)
        while page := found.datasets:
            new = {uid: item for item in page if (uid := Attributes(item).string(self._uid)) not in seen}
            seen.update(new)
            most = self._forms[0].page
            full, shorter = len(page) >= min(size, most or size), len(page) < self.longest
            self.longest = max(self.longest, len(page))
            if new:
                yield self._matching(path, page, list(new.values()))
            if most is None or not (full or found.more or not (shorter or grown or not new)):
                return
            offset += len(page)
            if not new:  # a full page again, so offset is ignored; all there is may fit into a larger one
                if size < most:
                    size, grown = size * 4, True
                elif most < MAX_PAGE:
                    del self._forms[:-1]  # and no larger one is taken
                else:
                    logger.warning("%s%s gives only %d results; narrow the search.", self._where, path, len(seen))
                    return
            size = max(size, PAGE)
            try:
                found = self._ask(path, size, offset)
            except (SourceError, SlideNotFoundError) as error:
                if not refused(error, _PAST_THE_END):
                    raise
                if (full or found.more) and not grown and not self._ends_with(path, size, offset, page[-1]):
                    raise
                return

    def _ends_with(self, path: str, size: int, offset: int, last: JsonDataset) -> bool:
        """Whether a service that refuses an offset takes the one before, and has nothing but the last result there."""
        try:
            page = self._ask(path, size, offset - 1)
        except (SourceError, SlideNotFoundError):
            return False
        return [Attributes(item).string(self._uid) for item in page.datasets] == [Attributes(last).string(self._uid)]

    def _ask(self, path: str, size: int, offset: int) -> Found:
        return self._find(path, self._forms[0].parameters(size, offset))

    def _first(self, path: str, size: int) -> Found:
        """Return the first page, by the first form of the search that the service takes."""
        try:
            found = self._ask(path, size, 0)
        except SourceError as error:
            if not refused(error, _REFUSED) or len(self._forms) == 1:
                raise
            del self._forms[0]  # for good
            return self._first(path, size)
        hard = [one for one in self._forms[0].filters if one.hard and one not in self._understood]
        if found.datasets or not hard:
            return found
        # A service that takes C3L-* literally, or does not decode what is sent, finds nothing and says nothing.
        forms = self._forms
        self._forms = list(dict.fromkeys(form.without(hard) for form in forms))
        others = self._first(path, size)
        if others.datasets and not all(self._understands(path, one, others.datasets) for one in hard):
            return others
        self._forms = forms
        if others.datasets:
            self._understood.update(hard)
        return found

    def _understands(self, path: str, one: Filter, page: list[JsonDataset]) -> bool:
        """Whether a service finds again, by a filter of this kind, what is there."""
        value = next((value for item in page if (value := one.like(item))), None)
        return value is not None and self._finds(path, one.name, value)

    def _finds(self, path: str, name: str, value: str) -> bool:
        try:
            return bool(self._find(path, {name: value, "limit": "1"}).datasets)
        except SourceError as error:
            if not refused(error, _REFUSED):
                raise
            return False

    def _matching(self, path: str, page: list[JsonDataset], new: list[JsonDataset]) -> list[JsonDataset]:
        """Apply the filters to what is new, as far as the answers tell; ask whether the service heeds the others."""
        for one in self._filters:
            if one in self._told:
                continue
            if any(one.matches(dataset) is not None for dataset in page):
                self._told.add(one)
            elif one not in self._heeded and not one.hint:
                self._check_heeded(path, one)
        return [dataset for dataset in new if all(one.matches(dataset) for one in self._filters if one in self._told)]

    def _check_heeded(self, path: str, one: Filter) -> None:
        """Let pass a filter by which the service finds nothing where nothing has the value."""
        sent = one in self._forms[0].filters
        try:
            if sent and not self._find(path, {one.name: one.nowhere, "limit": "1"}).datasets:
                self._heeded.add(one)
                return
        except SourceError as error:
            if not refused(error, _REFUSED):
                raise
        raise UntoldError(
            f"{self._where}{path} neither filters by {one.name} nor tells it of what it finds. Search without it, and "
            f"look at the slides' properties.",
            url=f"{self._where}{path}",
            filters=[one],
        )
