"""What the answers of a service say of its costs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from wsiweb.sources.base import MODERATE_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Collection

DEAR_BELOW = 0.65
"""A request alone takes less than this share of what one among others takes: then requests are work. Where they are
done one after the other, three take 1, 2 and 3 times as long, and the share is a half."""
NOTICEABLE_SECONDS = 0.02
"""Waits shorter than that are not worth a conclusion."""
ALONE_BELOW = 1.5
TOGETHER_FROM = 1.7
"""Requests in flight, on average, that count as one alone and as many together."""
MANY_FROM = 1.25 * MODERATE_CONNECTIONS
"""And as more than a moderate number."""
MANY_PAY_FROM = 1.2
"""By how much more they must carry together than the moderate number would."""
TELLING_BYTES = 1 << 18
"""Fewer say nothing of how much a connection carries: they were there when they were asked after."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer that came whole."""

    instance_uid: str
    """Costs of a request differ with the instance, and are compared within one only."""
    frames: int
    bytes: int
    first_byte_seconds: float
    seconds: float
    in_flight: float
    """Requests in flight meanwhile, this one included."""


@dataclass(frozen=True, slots=True)
class Conclusions:
    """What samples say."""

    parallel_requests: float | None = None
    """How many requests the service really works on at once; None where that is not known."""
    dear: bool = False
    """Whether requests are work for the service, and few of them best."""
    seconds_per_request: float | None = None
    """Until the first byte; None where nothing was seen."""
    seconds_per_frame: float | None = None
    """That each frame adds."""
    least_seconds_per_frame: float | None = None
    """That was seen, of lists, the wait for the first byte included."""
    bytes_per_frame: float | None = None
    bytes_per_second: float | None = None
    """That one connection carries, once an answer has begun, while a moderate number of them is in use."""
    bytes_per_second_of_many: float | None = None
    """The same while there are more."""
    shared: bool = False
    """Whether more than a moderate number of connections carried no more than that number: it is their common way, or
    this process, that takes no more."""
    seconds_per_single: float | None = None
    """Of a request for one frame."""


def conclude(samples: Collection[Sample], parallel_guess: float | None, carried: float | None = None) -> Conclusions:
    """Say what samples show; the guess stands until requests alone and requests together were seen.

    ``carried`` is the last that was concluded of ``bytes_per_second``.
    """
    many = [sample for sample in samples if sample.frames > 1]
    alone = [sample for sample in many if sample.in_flight < ALONE_BELOW] or many
    single = [sample.seconds for sample in samples if sample.frames == 1 and sample.in_flight < ALONE_BELOW]
    parallel, share = _parallel_requests(samples)
    each, each_of_many, shared = _carried(samples, carried)
    if parallel is None and parallel_guess is not None:
        parallel, share = parallel_guess, 0.0
    return Conclusions(
        parallel_requests=parallel,
        dear=share < DEAR_BELOW,
        seconds_per_request=median(s.first_byte_seconds for s in alone) if alone else None,
        seconds_per_frame=median((s.seconds - s.first_byte_seconds) / s.frames for s in alone) if alone else None,
        least_seconds_per_frame=min((s.seconds / s.frames for s in many), default=None),
        bytes_per_frame=sum(s.bytes for s in samples) / sum(s.frames for s in samples) if samples else None,
        bytes_per_second=each,
        bytes_per_second_of_many=each_of_many,
        shared=shared,
        seconds_per_single=median(single) if single else None,
    )


def _parallel_requests(samples: Collection[Sample]) -> tuple[float | None, float]:
    """Compare requests alone with requests together: where n of them take n times as long, nothing was gained.

    Returns how many were worked on at once, or None, and how long one alone takes of the time of one among others.
    """
    found = []
    for uid in {sample.instance_uid for sample in samples}:
        mine = [sample for sample in samples if sample.instance_uid == uid]
        alone = [sample.first_byte_seconds for sample in mine if sample.in_flight < ALONE_BELOW]
        together = [sample for sample in mine if sample.in_flight >= TOGETHER_FROM]
        wait = median(sample.first_byte_seconds for sample in together) if together else 0.0
        if alone and wait >= NOTICEABLE_SECONDS:
            share = min(median(alone) / wait, 1.0)
            found.append((max(share * median(sample.in_flight for sample in together), 1.0), share))
    if not found:
        return None, 1.0
    return median(parallel for parallel, _ in found), median(share for _, share in found)


def _carried(samples: Collection[Sample], carried: float | None) -> tuple[float | None, float | None, bool]:
    """Compare a moderate number of requests with more of them.

    Returns how many bytes a second one connection carries among a moderate number, then among more, and whether more of
    them together carried no more.
    """
    few = [sample for sample in samples if sample.in_flight <= MODERATE_CONNECTIONS]
    many = [sample for sample in samples if sample.in_flight >= MANY_FROM]
    each, each_of_many = _bytes_per_second(few) or carried, _bytes_per_second(many)
    if each is None or each_of_many is None:
        return each, each_of_many, False
    together = each_of_many * median(sample.in_flight for sample in many)
    return each, each_of_many, together < MANY_PAY_FROM * each * MODERATE_CONNECTIONS


def _bytes_per_second(samples: Collection[Sample]) -> float | None:
    size = sum(sample.bytes for sample in samples)
    if size < TELLING_BYTES:
        return None
    return size / max(sum(sample.seconds - sample.first_byte_seconds for sample in samples), 1e-9)
