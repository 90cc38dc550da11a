"""Recorded time of a replay, and trio's time, which it follows where the pace says so."""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio.testing import MockClock

    from trionfq._arrivals import Arrival

Pace: TypeAlias = Literal["asked", "timed", "lockstep"]
"""When recorded packets arrive: when they are asked for, at their times, or in lockstep."""

_PACES: Final = ("asked", "timed", "lockstep")
_NS: Final = 1_000_000_000


class RecordedTime:
    """What time it is in the recording. It never goes back, though recorded times may.

    Args:
      pace: see `Pace`.

    Attributes:
      pace: as given.
      running: whether a queue was bound, with which recorded time begins to run.

    Raises:
      ValueError: an unknown pace.
    """

    def __init__(self, pace: Pace) -> None:
        if pace not in _PACES:
            raise ValueError(f"pace: expected 'asked', 'timed' or 'lockstep', got {pace!r}")
        self.pace: Pace = pace
        self.running = False
        self._first_ns = 0
        self._last_ns: int | None = None
        # A point of recorded time, and trio's time at it: both run on from there.
        self._anchor_ns = 0
        self._anchor_s = 0.0
        self._started_s = 0.0

    def now_ns(self, upcoming: Arrival | None) -> int:
        """Nanoseconds since the epoch; before the first packet, that packet's time."""
        if self._follows_trio():
            return self._anchor_ns + round((trio.current_time() - self._anchor_s) * _NS)
        if self._last_ns is not None:
            return self._last_ns
        if not self.running and upcoming is not None:
            self._first_ns = upcoming.time_ns
        return self._first_ns

    def start(self, upcoming: Arrival | None) -> None:
        """The program has bound a queue."""
        self._anchor_ns = self.now_ns(upcoming)
        if trio.lowlevel.in_trio_run():
            self._started_s = self._anchor_s = trio.current_time()
        self.running = True

    def move_to(self, arrival: Arrival) -> int:
        """A packet arrives; returns what time it is then."""
        last = self._due_ns(arrival)
        if self.pace == "lockstep":
            last = max(last, self.now_ns(arrival))
            self._anchor_ns, self._anchor_s = last, trio.current_time()
        self._last_ns = last
        return self.now_ns(arrival)

    def move_over(self, recorded: Iterable[int]) -> list[int]:
        """Packets arrive at pace "asked"; returns what time it is at each."""
        last = self._last_ns
        times = [*recorded]
        if sorted(times) != times or (last is not None and times[0] < last):
            times = [*accumulate(times, max, initial=times[0] if last is None else last)][1:]
        self._last_ns = times[-1]
        return times

    def due_s(self, arrival: Arrival) -> float:
        """Trio's time at which a packet arrives."""
        return self._started_s + (self._due_ns(arrival) - self._first_ns) / _NS

    def _due_ns(self, arrival: Arrival) -> int:
        """Recorded time at which a packet arrives: in lockstep no two at once."""
        if self._last_ns is None:
            return arrival.time_ns
        return max(arrival.time_ns, self._last_ns + (self.pace == "lockstep"))

    def _follows_trio(self) -> bool:
        if not self.running or self.pace == "asked" or not trio.lowlevel.in_trio_run():
            return False
        return self.pace == "timed" or mock_clock() is not None


def mock_clock() -> MockClock | None:
    """The clock of this run, if it is one that can be moved."""
    # Whoever runs on one has imported it. Importing it here would bring pytest, where that is
    # installed, into every program.
    testing = sys.modules.get("trio.testing")
    clock = trio.lowlevel.current_clock()
    return clock if testing is not None and isinstance(clock, testing.MockClock) else None


async def wait_all_tasks_blocked(cushion_s: float = 0.0) -> None:
    """The function of trio.testing, imported by those who need it."""
    from trio.testing import wait_all_tasks_blocked as wait

    await wait(cushion_s)
