"""``Pace``: how many requests at once, and how long, by what a service has shown. Makes no requests.

The model: a request of n frames takes ``a + b * n`` seconds, and a service works on ``p`` such ``a`` at once; each
request costs ``c`` seconds of work here. Where latency is all there is to ``a``, p is large, and frames are spread over
the connections; where ``a`` is work, as on servers that parse the whole instance for each request, p is the number of
their cores, and few large requests win. N frames in m requests take about ``a * max(1, m / p) + c * m + b * N / m``,
which is least at ``m = sqrt(b * N / (a / p + c))``.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsiweb.sources.base import MODERATE_CONNECTIONS, SPREAD, Advice
from wsiweb.sources.conclusions import Conclusions, Sample, conclude
from wsiweb.sources.services import UNKNOWN, ServiceKind
from wsiweb.stats import ServiceTraits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsiweb.sources.base import Cancellation

FRAMES_WHERE_REQUESTS_ARE_DEAR = 400
MOST_FRAMES = 192
"""Where they are not: more would only come later."""
BYTES = 8 << 20
BYTES_WHERE_REQUESTS_ARE_DEAR = 16 << 20
"""Half of what the smallest known limit of an answer is (App Engine, 32 MB)."""
SINGLES_PAY_FROM = 2.0
"""By how much requests for single frames must be predicted to be faster: a wrong guess costs many requests."""
SECONDS_OF_OUR_OWN = 0.001
"""That a request costs here, in requests, urllib3 and http.client."""
TYPICAL_SECONDS_PER_FRAME = 0.0015
"""Until it is measured: 18 kB at 12 MB/s, on a line whose answers take ``TYPICAL_WAIT_SECONDS`` to begin."""
TYPICAL_WAIT_SECONDS = 0.03
SECONDS_OF_A_FRAME_HERE = 0.0001
"""That a process needs for a frame at the least: to take its bytes, to have it decoded, to put it in its place."""
NEAR_CONNECTIONS = 4
"""That are never too many."""
MOST_TIMES_TYPICAL = 3.0
"""That a frame is guessed to take, on lines whose answers begin late."""
TYPICAL_BYTES_PER_SECOND = 12_000_000
"""Of one connection of such a line. What a moderate number of them carries is as much as two cores decode."""
MORE_FROM = 1.5
"""Times the moderate number of connections; so few more would bring nothing."""
DISTANT_SECONDS = 0.3
"""No answer takes longer to begin for the distance alone: then it was work."""
TOGETHER_SECONDS = 1.0
_SAMPLES = 64
_ANSWERS_FOR_A_CONNECTION = 32
"""After a service has throttled: so many answers win one connection back."""
_ANSWERS_FOR_LONGER = 32
"""After a list was refused: so many answers win a longer one; each further refusal doubles their number."""


@dataclass(slots=True)
class Lap:
    """The clock of one request."""

    started: float
    busy_before: float
    """Requests in flight, summed over time, until then."""
    first_byte: float | None = None

    def answered(self) -> None:
        """Stop the first part of the time: the first byte is there."""
        self.first_byte = time.monotonic()


class Pace:
    """What one service has shown of its costs and limits. Safe to share between threads.

    Parameters
    ----------
    max_connections
        Requests in flight at once, at most.
    kind
        What is known of such services.
    wait_seconds
        How long the metadata took to begin, where that is known: a service that is near sends frames sooner, too, and
        one that is far later.
    """

    def __init__(
        self, max_connections: int, kind: ServiceKind = UNKNOWN, *, wait_seconds: float = TYPICAL_WAIT_SECONDS
    ) -> None:
        self.kind = kind
        times_typical = min(wait_seconds / TYPICAL_WAIT_SECONDS, MOST_TIMES_TYPICAL)
        self._more_guess = times_typical if wait_seconds <= DISTANT_SECONDS else 1.0
        self._frame_guess = TYPICAL_SECONDS_PER_FRAME * times_typical
        self._least_guess = self._frame_guess + wait_seconds / SPREAD.max_frames
        self._lock = threading.RLock()  # entered by itself, as in ``Cancellation``
        self._changed = threading.Condition(self._lock)
        self._max_connections = min(max_connections, kind.max_connections or max_connections)
        self._connections = self._max_connections
        self._answers_since_throttled = 0
        self._throttled_at = -math.inf
        self._throttled = False
        self._reads = 1  # under way, as who asks for advice has said last
        self._in_flight = 0
        self._busy = 0.0
        self._ticked = time.monotonic()
        self._max_frames: int | None = None
        self._answers_at_limit = 0
        self._answers_for_longer = _ANSWERS_FOR_LONGER
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._conclusions = conclude((), kind.parallel_requests)

    # What is seen ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def request(self, cancellation: Cancellation) -> Iterator[None]:
        """Wait until there is a connection to use, and have it for the time of the ``with``."""
        forget = cancellation.on_cancel(self._wake)
        with self._lock:
            while self._in_flight >= self._allowed and not cancellation.cancelled:
                self._changed.wait()
            self._tick()
            self._in_flight += 1
        forget()
        try:
            yield
        finally:
            with self._lock:
                self._tick()
                self._in_flight -= 1
                self._changed.notify()

    def lap(self) -> Lap:
        """Return a clock that begins now."""
        with self._lock:
            self._tick()
            return Lap(self._ticked, self._busy)

    def _tick(self) -> None:
        """Sum up the requests in flight; to be called under the lock, before their number changes."""
        now = time.monotonic()
        self._busy += self._in_flight * (now - self._ticked)
        self._ticked = now

    @property
    def _allowed(self) -> int:
        """Requests that may be in flight."""
        parallel = self._conclusions.parallel_requests
        if parallel is None or not self._conclusions.dear:
            return self._usable
        return min(max(math.ceil(parallel), 2), self._connections)

    @property
    def _usable(self) -> int:
        """Connections that requests are spread over."""
        return min(self._useful, self._connections)

    @property
    def _useful(self) -> int:
        """Connections that would be used of a service that bears any number.

        Where waiting is all there is to a request, no more than bring frames twice as fast as they can be used: the
        threads of others would only be in the way. More than a moderate number only where each carries so little that
        the decoders would wait, and for as long as more of them carry more; or where as many reads are under way, each
        of which would wait for the others.
        """
        seen = self._conclusions
        if seen.dear:
            return MODERATE_CONNECTIONS
        each = seen.least_seconds_per_frame or self._least_guess
        used = max(math.ceil(2 * each / SECONDS_OF_A_FRAME_HERE), NEAR_CONNECTIONS)
        more = self._more_guess
        if seen.bytes_per_second is not None:
            more = 1.0 if seen.shared else TYPICAL_BYTES_PER_SECOND / seen.bytes_per_second
        elif seen.bytes_per_second_of_many is not None:  # where little, they may be too many: no reason for more
            more = min(more, TYPICAL_BYTES_PER_SECOND / seen.bytes_per_second_of_many)
        if not seen.shared:
            more = max(more, self._reads / MODERATE_CONNECTIONS)
        return min(used, round(MODERATE_CONNECTIONS * (more if more >= MORE_FROM else 1.0)))

    def record(self, lap: Lap, instance_uid: str, frames: int, n_bytes: int) -> None:
        """Remember an answer that came whole; to be called while its connection is still held."""
        if lap.first_byte is None:
            return
        with self._lock:
            self._tick()
            waited, took = lap.first_byte - lap.started, self._ticked - lap.started
            in_flight = (self._busy - lap.busy_before) / max(took, 1e-9)
            self._samples.append(Sample(instance_uid, frames, n_bytes, waited, took, in_flight))
            carried = self._conclusions.bytes_per_second
            self._conclusions = conclude(self._samples, self.kind.parallel_requests, carried)
            self._answers_since_throttled += 1
            self._try_longer(frames)
            if self._connections < self._max_connections:
                won, self._answers_since_throttled = divmod(self._answers_since_throttled, _ANSWERS_FOR_A_CONNECTION)
                self._connections = min(self._connections + won, self._max_connections)
                self._throttled = self._throttled and self._usable < min(self._useful, self._max_connections)
            self._changed.notify_all()

    def throttled(self) -> None:
        """Halve the connections: the service asked for patience. Refusals that come together count once."""
        with self._lock:
            now = time.monotonic()
            if now - self._throttled_at < TOGETHER_SECONDS:
                return
            self._throttled_at = now
            self._throttled = True
            self._connections = max(self._usable // 2, 1)
            self._answers_since_throttled = 0

    def failed(self) -> None:
        """Have no more than a moderate number of connections, if there were: that may be why a request brought nothing.

        For good: who drops what is too much lets each trial cost a timeout.
        """
        with self._lock:
            if self._in_flight >= MODERATE_CONNECTIONS:  # beside the one that failed
                self._max_connections = min(self._max_connections, MODERATE_CONNECTIONS)
                self._connections = min(self._connections, self._max_connections)

    def too_large(self, frames: int) -> None:
        """Remember that a request of so many frames was refused for its size, or seemed to be: strays look the same."""
        limit = max(frames // 2, 1)
        with self._lock:
            if self._max_frames is None or limit < self._max_frames:
                if self._max_frames is not None:
                    self._answers_for_longer *= 2
                self._max_frames, self._answers_at_limit = limit, 0

    def _try_longer(self, frames: int) -> None:
        """Let lists grow again after many answers to such as the limit allows; to be called under the lock."""
        if self._max_frames is not None and 2 * frames > self._max_frames:
            self._answers_at_limit += 1
            if self._answers_at_limit >= self._answers_for_longer:
                self._max_frames, self._answers_at_limit = 2 * self._max_frames, 0

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    # What follows ---------------------------------------------------------------------------------

    def advise(self, frames: int, reads: int = 1) -> Advice:
        """Return over how many requests to spread so many frames, and how many each may have at most.

        They are of one of so many reads, which share the connections: while the requests of others wait for one, to
        spread it over several only has more of them wait.
        """
        with self._lock:
            self._reads = reads
            return self._advice(frames)

    def _advice(self, frames: int) -> Advice:
        seen, connections, limit = self._conclusions, self._usable, self._max_frames
        requests = _best_requests(seen, frames, max(connections // self._reads, 1), self._frame_guess)
        most, budget = _worth_their_wait(seen), BYTES
        if seen.dear:
            most, budget = FRAMES_WHERE_REQUESTS_ARE_DEAR, BYTES_WHERE_REQUESTS_ARE_DEAR
            if _singles_pay(seen, frames, requests):
                requests, most = frames, 1
        if seen.bytes_per_frame:
            most = min(most, max(int(budget / seen.bytes_per_frame), 1))
        return Advice(requests, min(most, limit or most), self._allowed)

    def traits(self) -> ServiceTraits:
        """Return what was learnt, for people."""
        with self._lock:
            advice = self._advice(FRAMES_WHERE_REQUESTS_ARE_DEAR)
            seen, throttled = self._conclusions, self._throttled
        return ServiceTraits(
            kind=self.kind.name,
            connections=advice.connections,
            requests_at_once=min(advice.requests, advice.connections),
            frames_per_request=advice.max_frames,
            seconds_per_request=seen.seconds_per_request,
            seconds_per_frame=seen.seconds_per_frame,
            parallel_requests=seen.parallel_requests,
            throttled=throttled,
        )


def _best_requests(seen: Conclusions, frames: int, connections: int, frame_guess: float) -> int:
    """Return the m that is quickest by the model above."""
    each, work = seen.seconds_per_frame, SECONDS_OF_OUR_OWN
    if seen.dear and seen.parallel_requests is not None:
        if seen.seconds_per_request is None:
            return 1
        work += seen.seconds_per_request / seen.parallel_requests
    best = math.sqrt((frame_guess if each is None else each) * frames / work)
    return min(max(round(best), 1), connections)


def _worth_their_wait(seen: Conclusions) -> int:
    """Return for how many frames of one request the wait for the first is no more than a fifth of the time.

    A connection carries nothing while it waits.
    """
    if not seen.seconds_per_request or not seen.seconds_per_frame:
        return SPREAD.max_frames
    frames = int(4 * seen.seconds_per_request / seen.seconds_per_frame)
    return min(max(frames, SPREAD.max_frames), MOST_FRAMES)


def _singles_pay(seen: Conclusions, frames: int, requests: int) -> bool:
    """Whether single frames come so much faster than lists that many requests win (Orthanc from 1.18 on)."""
    if seen.seconds_per_request is None or seen.seconds_per_frame is None or seen.seconds_per_single is None:
        return False
    together = seen.seconds_per_request * requests + seen.seconds_per_frame * frames / requests
    return seen.seconds_per_single * frames * SINGLES_PAY_FROM < together
