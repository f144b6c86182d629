"""The checks of what frames cost: latency and throughput."""

from __future__ import annotations

import itertools
import time
from statistics import median
from typing import TYPE_CHECKING

from wsiweb.doctor.report import Check
from wsiweb.doctor.subject import affordable, too_dear
from wsiweb.errors import WsiWebError
from wsiweb.sources.base import MODERATE_CONNECTIONS, Cancellation
from wsiweb.sources.conclusions import NOTICEABLE_SECONDS

if TYPE_CHECKING:
    from wsiweb.doctor.report import Figure
    from wsiweb.doctor.subject import Subject
    from wsiweb.doctor.wire import WatchedService
    from wsiweb.reader import Reader
    from wsiweb.sources.base import EncodedFrame, FrameBatch

BATCH_FRAMES = 12
"""At most, in the measurement of throughput."""
AT_ONCE = MODERATE_CONNECTIONS
"""From fewer the pace would conclude that the service can do no more."""
LATENCY_REQUESTS = 3
PARALLEL_PAYS_FROM = 1.3
DEAR_SECONDS = 1.0


def check_latency(reader: Reader, service: WatchedService, subject: Subject, round_trip_seconds: float | None) -> Check:
    """Fetch a few frames, one after the other."""
    before, times = len(service.exchanges), affordable(service, LATENCY_REQUESTS)
    if times < 1:
        return too_dear("latency")
    try:
        for _ in range(times):
            list(reader.source.fetch(subject.batch(1), Cancellation()))
    except WsiWebError as error:
        return Check("latency", "failed", str(error))
    exchanges = service.exchanges[before:]
    waits = [exchange.first_byte_seconds for exchange in exchanges]
    typical = median(waits)
    figures: dict[str, Figure] = {
        "median_ms": round(typical * 1000, 3), "least_ms": round(min(waits) * 1000, 3),
        "most_ms": round(max(waits) * 1000, 3), "requests": len(waits),
    }  # fmt: skip
    finding = (
        f"{typical * 1000:.1f} ms until a single frame begins to come "
        f"({min(waits) * 1000:.1f} to {max(waits) * 1000:.1f}, {len(waits)} requests)"
    )
    if round_trip_seconds is not None:
        finding += f", of which the network takes about {min(round_trip_seconds, typical) * 1000:.1f}"
    advice = "Each request is dear here: read large regions, or many together (read_regions, patches)."
    return Check("latency", *(("warning", finding, advice) if typical > DEAR_SECONDS else ("ok", finding, "")), figures)


def check_throughput(reader: Reader, service: WatchedService, subject: Subject, *, lists: bool) -> Check:
    """Fetch one batch, then several at once, within what is left of the budget."""
    name = "throughput"
    room = affordable(service, BATCH_FRAMES * (AT_ONCE + 1))
    if room < 3:
        return too_dear(name)
    at_once = min(AT_ONCE, room - 1, reader.options.max_connections)
    size = min(room // (at_once + 1), BATCH_FRAMES if lists else 1, subject.instance.number_of_frames)
    alone, together = subject.batch(size), [subject.batch(size) for _ in range(at_once)]

    def fetched(batch: FrameBatch) -> list[EncodedFrame]:
        return list(itertools.chain.from_iterable(reader.source.fetch(batch, Cancellation())))

    try:
        started = time.perf_counter()
        one_bytes = sum(len(frame.data) for frame in fetched(alone))
        one_seconds = time.perf_counter() - started
        started = time.perf_counter()
        many = list(reader.map_ordered(fetched, together))
        many_seconds = time.perf_counter() - started
    except WsiWebError as error:
        return Check(name, "failed", str(error))
    frames, traits = sum(map(len, many)), reader.stats.service
    in_flight = min(at_once, traits.connections) if traits else at_once
    gain = (frames / many_seconds) / (len(alone.frame_numbers) / one_seconds)
    rate = sum(len(frame.data) for came in many for frame in came) / many_seconds
    figures: dict[str, Figure] = {
        "frames_per_request": size, "frames_per_second": round(size / one_seconds, 3),
        "megabytes_per_second": round(one_bytes / one_seconds / 1e6, 3), "requests_at_once": in_flight,
        "frames_per_second_at_once": round(frames / many_seconds, 3),
        "megabytes_per_second_at_once": round(rate / 1e6, 3), "gain": round(gain, 3),
    }  # fmt: skip
    each = f"{size} frame{'s' if size > 1 else ''} a request"
    pays = f"{gain:.1f} times as fast"
    if one_seconds < NOTICEABLE_SECONDS:
        pays = "too quick to compare"
    elif gain < PARALLEL_PAYS_FROM:
        pays += ", so no gain"
    finding = (
        f"{each}: {size / one_seconds:.0f} frames/s, {one_bytes / one_seconds / 1e6:.1f} MB/s; "
        f"{at_once} such, {in_flight} at once: {frames / many_seconds:.0f} frames/s, {rate / 1e6:.1f} MB/s ({pays})"
    )
    return Check(name, "ok", finding, figures=figures)
