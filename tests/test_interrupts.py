"""A Ctrl-C at any moment: it comes through at once, and what is read afterwards is there.

A timer interrupts the main thread where it happens to be; the moments are drawn at random, and many.
"""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import wsiweb
from wsiweb import ReadOptions, Slide
from wsiweb.memory import ArrayPool
from wsiweb.sources.base import Cancellation
from wsiweb.sources.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import SlideMaker
    from synthetic import SyntheticSlide

    from wsiweb.patches import PatchPlan

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer that interrupts"),
    # An interrupt within a finalizer is discarded by Python, which pytest would report.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Interrupts:
    """Interrupts the main thread once after each ``arm``."""

    def __init__(self) -> None:
        self.armed = self.stuck = False

    def arm(self, seconds: float) -> None:
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def come(self, *_: object) -> None:
        if self.stuck:
            raise TimeoutError("The main thread waits for ever.")
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def give_up(self) -> None:
        self.stuck = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    found = Interrupts()
    before = signal.signal(signal.SIGALRM, found.come)
    watchdog = threading.Timer(120, found.give_up)
    watchdog.start()
    yield found
    watchdog.cancel()
    found.armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("rgb")


def test_what_was_interrupted_can_be_read_again(truth: SyntheticSlide, interrupts: Interrupts) -> None:
    """Tiles that were claimed, and that nobody would produce, were waited for until the deadline."""
    expected = truth.truth(0, 0, 0, 700, 530)
    with Slide.open(truth.folder, options=ReadOptions(deadline_seconds=20)) as opened:
        for moment in np.random.default_rng(1).uniform(0.0001, 0.004, 80).tolist():
            with contextlib.closing(copy.copy(opened)) as slide:
                with contextlib.suppress(KeyboardInterrupt):
                    interrupts.arm(moment)
                    slide.read_region(0, 0, 0, 700, 530)
                interrupts.armed = False
                np.testing.assert_array_equal(slide.read_region(0, 0, 0, 700, 530), expected)


def test_an_interrupt_comes_through_at_once(truth: SyntheticSlide, interrupts: Interrupts) -> None:
    """Also where tiles of a patch whose turn is far ahead are painted, because they are there already."""
    with Slide.open(truth.folder) as slide:
        plan = slide.patches(64, stride=16)
        for _ in plan:
            pass
        late = [lateness(plan, interrupts, moment) for moment in np.random.default_rng(2).uniform(0.0005, 0.01, 100)]
    known = [patches for patches in late if patches is not None]
    assert max(known) <= 1
    assert len(known) > 50


def lateness(plan: PatchPlan, interrupts: Interrupts, moment: float) -> int | None:
    """Return how many patches came behind an interrupt; None where Python discards it, within a finalizer."""
    behind = 0
    try:
        interrupts.arm(moment)
        for _ in plan:
            behind += not interrupts.armed
    except KeyboardInterrupt:
        return behind
    return None


def drop_arrays(pool: ArrayPool) -> None:
    arrays = [pool.empty((128, 128, 3), np.uint8) for _ in range(3)]
    arrays.clear()


def wait_for_nothing(cancellation: Cancellation) -> None:
    forget = cancellation.on_cancel(threading.Event().set)
    forget()


def go_on(interrupts: Interrupts, work: Callable[[], None]) -> None:
    """Work until the interrupt. What comes while a loop jumps back passes by a ``with`` around it (Python 3.13)."""
    while interrupts.armed:
        work()


POOL, PACE, CANCELLATION = ArrayPool(), Pace(8), Cancellation()


@pytest.mark.parametrize(
    "work",
    [lambda: drop_arrays(POOL), lambda: PACE.advise(20), lambda: wait_for_nothing(CANCELLATION)],
    ids=["memory", "pace", "cancellation"],
)
def test_no_lock_stays_held(interrupts: Interrupts, work: Callable[[], None]) -> None:
    rng = random.Random(3)
    for _ in range(1500):
        with contextlib.suppress(KeyboardInterrupt):
            interrupts.arm(rng.uniform(0.00002, 0.0002))
            go_on(interrupts, work)
    other = threading.Thread(target=work, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()


AT_THE_END = """
import sys
from wsiweb import Slide, WsiWebError

class Holder:
    def __init__(self, folder):
        self.slide = Slide.open(folder)

    def __del__(self):
        try:
            self.slide.read_region(0, 0, 0, 300, 300)
        except WsiWebError as error:
            print(error)

holder = Holder(sys.argv[1])
"""


def test_reading_while_the_interpreter_ends(truth: SyntheticSlide) -> None:
    """There are no threads any more: it is an error, and not a wait without end."""
    ended = subprocess.run(
        [sys.executable, "-c", AT_THE_END, str(truth.folder)],
        cwd=Path(wsiweb.__file__).parents[1], check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "No thread can be started" in ended.stdout
