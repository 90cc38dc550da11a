"""Deadlines of `Queue.serve`: of the packets that handlers work on, and of those that they hold.

Moving the deadline of a cancel scope twice a packet costs trio 5 us. So a worker only writes down
when its packet is due, and one task looks at all of them when the soonest of those that it saw last
has passed: once a deadline, not once a packet.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq._packet import Packet
    from trionfq._verdict import Decision

# Held packets are looked through for decided ones when there are twice as many, and this many more.
_HELD_SLACK = 64


class Job:
    """What one worker works on.

    Attributes:
      scope: what to cancel.
      due: when, on trio's clock; infinite between packets.
      cancelled: it was.
    """

    __slots__ = ("cancelled", "due", "scope")

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.due = math.inf
        self.cancelled = False


class Overdue:
    """Cancels handlers and answers held packets when their time is over.

    Attributes:
      idle: nothing is due at any time, so who makes something due must `wake` it.
    """

    def __init__(self, policy: Decision) -> None:
        self.idle = False
        self._policy = policy
        self._jobs: set[Job] = set()
        self._held: list[tuple[float, int, Packet]] = []
        self._most_held = _HELD_SLACK
        self._count = count()
        self._woken = trio.Event()

    @contextmanager
    def minding(self, job: Job) -> Iterator[None]:
        """Look after a worker."""
        self._jobs.add(job)
        try:
            yield
        finally:
            self._jobs.discard(job)

    @trio.lowlevel.enable_ki_protection
    def hold(self, packet: Packet, due: float) -> None:
        """Answer a packet that is held when its time is over."""
        held = self._held
        if len(held) >= self._most_held:
            held[:] = [entry for entry in held if not entry[2].decided]
            heapify(held)
            self._most_held = 2 * len(held) + _HELD_SLACK
        heappush(held, (due, next(self._count), packet))
        if held[0][2] is packet:
            self.wake()

    def wake(self) -> None:
        """Something is due earlier than anything was."""
        self.idle = False
        self._woken.set()

    @trio.lowlevel.enable_ki_protection
    async def watch(self) -> None:
        """See to it, for ever."""
        while True:
            self._woken = trio.Event()
            soonest = self._soonest()
            self.idle = soonest == math.inf
            with trio.move_on_at(soonest):
                await self._woken.wait()
            now = trio.current_time()
            for job in self._jobs:
                if job.due <= now:
                    job.due = math.inf
                    job.cancelled = True
                    job.scope.cancel()
            self._answer_held(now)

    def _soonest(self) -> float:
        soonest = min([job.due for job in self._jobs], default=math.inf)
        return min(soonest, self._held[0][0]) if self._held else soonest

    def _answer_held(self, now: float) -> None:
        held = self._held
        while held and held[0][0] <= now:
            packet = heappop(held)[2]
            if not packet.decided and packet.usable:
                packet.settle(self._policy)
