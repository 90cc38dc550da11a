"""A backend that gives recorded packets again, deterministically and without privilege.

It is a shell around a recording and the kernel model: what the program sends goes to the model,
and the recorded packets arrive at the queue that the program binds. It adds one thing, when.

Waking. Nothing that `ReplayBackend.send_nowait` does reschedules a task, since it may run in trio's
``before_io_wait``, after trio has fixed how long to sleep. A waiter sleeps in a cancel scope of its
own, which ``run_sync_soon`` cancels.

The end. A capture ends, a program that holds packets need not. A waiter that could only be woken by
a verdict therefore looks whether one can still come, see `ReplayBackend`.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from trionfq._arrivals import Arrivals
from trionfq.backends._abc import QueueRow, Received
from trionfq.backends._replay_feed import Feed
from trionfq.backends._replay_order import TaskOrder
from trionfq.backends._replay_time import RecordedTime, mock_clock, wait_all_tasks_blocked
from trionfq.backends._sent_check import SentCheck

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio.testing import MockClock

    from trionfq._arrival_source import Source
    from trionfq._arrivals import Arrival
    from trionfq._transcript import Outcome
    from trionfq.backends._replay_time import Pace
    from trionfq.backends._sent_check import Check

_MAX_SEND_BYTES: Final = 8192
# Real seconds without any activity before a waiter believes that the run is idle. Not 0, so that a
# test that itself waits for idleness is told first.
_CUSHION_S: Final = 0.01
_SHORT_RUN: Final = 4


class ReplayBackend:
    """Gives the packets of one queue of a recording to whatever queue the program binds.

    Recorded requests, answers and verdicts are not played back: the program's own BIND starts the
    arrivals. Recorded packet ids and their gaps are kept, and overruns and truncations that were
    noted are reported where they stood. The program's copy mode, range and flags apply; where the
    recording has less than they ask for, a warning is logged and `shortfalls` counts.

    Pace ``"asked"``: packets come when `receive_nowait` asks, as many as the queue has room for.
    ``"timed"``: they come at their recorded distances, by trio's clock, the first at the BIND.
    ``"lockstep"``: the next one comes when all tasks are blocked, so that a program with
    concurrent tasks does the same each time: what trio leaves to chance, which of several tasks
    runs first, is drawn from `seed` until the backend closes, in the whole process. Under a
    `trio.testing.MockClock`, which then is moved to each packet's time (1 ns later where two are
    equal), timeouts and sleeps are part of that; threads are not.

    The replay is over when the recording is exhausted and no packet is undecided. Where packets are
    held it is over, too, once no verdict can come: all tasks are blocked, and there is no timeout,
    no I/O and no thread that could wake one; or there is, but for `patience_s` seconds of trio's
    clock no verdict came. With a full queue that holds for packets which still wait to be asked
    for: they then find no room, as in the kernel.

    Args:
      source: a capture file, or records, or PACKET datagrams; what is no list is read once.
      queue: the recorded queue to replay, where there are several.
      pace: when packets arrive.
      check: what of the program's requests the schema judges: each new layout and a sample of 1
        in 1,024 ("sample"), every message ("all"), or none ("off": the kernel model alone answers,
        as leniently as the kernel).
      seed: of the sample, and in lockstep of the order of tasks that could run at once. None leaves
        that order to trio.
      patience_s: see above, in seconds.
      keep_transcript: whether what becomes of each packet is kept for `transcript`. Without it a
        replay takes no more memory for a long recording than for a short one.

    Raises:
      CaptureError: the file is no capture; it has packets of several queues and none is named, or
        none of the one that is named; the text lists them.
      OSError: the file cannot be read.
      ValueError: an unknown pace or check.
      RuntimeError: in lockstep, if this release of trio does not let the order of tasks be seeded.
    """

    def __init__(
        self,
        source: Source,
        *,
        queue: int | None = None,
        pace: Pace = "asked",
        check: Check = "sample",
        seed: int | None = 0,
        patience_s: float = 2.0,
        keep_transcript: bool = True,
    ) -> None:
        self._time = RecordedTime(pace)
        self._check = SentCheck(check, seed or 0)
        self._order = TaskOrder(seed) if pace == "lockstep" and seed is not None else None
        self._feed = Feed(Arrivals(source, queue), self._check, keep_transcript=keep_transcript)
        self._keeps_transcript = keep_transcript
        self._patience_s = patience_s
        self._closed = False
        self._waiting = False
        self._sleep: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        # In lockstep: the next packet may come.
        self._granted = False
        # How many packets were decided when no verdict could come any more.
        self._gave_up_at: int | None = None
        # How many were decided, and trio's time, when a verdict was last seen to have come.
        self._progress = -1, 0.0

    # -- what it tells -------------------------------------------------------------------------

    @property
    def transcript(self) -> list[Outcome]:
        """What became of each packet that was given so far, in order of arrival.

        Raises:
          RuntimeError: it is not kept, see `keep_transcript`.
        """
        if not self._keeps_transcript:
            raise RuntimeError("this replay keeps no transcript (keep_transcript=False)")
        return self._feed.transcript.outcomes()

    @property
    def shortfalls(self) -> Mapping[str, int]:
        """How many packets the program was told less of than it asked for, by reason."""
        return dict(self._feed.shortfalls)

    @property
    def judged(self) -> int:
        """How many of the program's messages the schema has judged."""
        return self._check.judged

    @property
    def recorded_queue(self) -> int | None:
        """Number of the recorded queue, None before its first packet is known."""
        return self._feed.arrivals.queue

    # -- the seam ------------------------------------------------------------------------------

    @property
    def max_send_bytes(self) -> int:
        """Longest datagram worth sending, in bytes; EMSGSIZE above 212,960."""
        return _MAX_SEND_BYTES

    @property
    def port_id(self) -> int:
        """The netlink port id in the kernel model."""
        return self._feed.socket.portid

    def now_ns(self) -> int:
        """Nanoseconds since the epoch in the recording: its first packet's time to begin with.

        Pace "asked": that of the packet that came last. "timed": as trio's clock goes on from
        there. "lockstep": of the last packet; under a MockClock the clock goes on from there.
        """
        return self._time.now_ns(self._feed.peek())

    async def wait_readable(self) -> None:
        """Wait until `receive_nowait` would give something; a checkpoint.

        Raises:
          trio.BusyResourceError: another task waits.
          trio.ClosedResourceError: the backend is closed, or was closed meanwhile.
        """
        self._check_open()
        if self._waiting:
            raise trio.BusyResourceError("another task waits for this ReplayBackend")
        self._waiting = True
        self._token = trio.lowlevel.current_trio_token()
        try:
            if self._is_readable():
                await trio.lowlevel.checkpoint()
            while not self._is_readable():
                with trio.CancelScope() as self._sleep:
                    await self._pause()
                self._sleep = None
        finally:
            self._waiting = False
            self._sleep = None
        self._check_open()

    def receive_nowait(self, limit: int) -> Received:
        """Take at most `limit` datagrams: what waits, else packets that are due.

        Raises:
          CaptureError: the recording is malformed from here on; it is an OSError, too.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        feed = self._feed
        if self._time.pace == "timed":
            self._let_arrive(None)
        elif not feed.waiting:
            # An answer comes alone, so that whoever waits for one is not given packets with it.
            self._let_arrive(limit)
        datagrams = feed.take(limit)
        if not datagrams and self._has_failed():
            assert feed.failure is not None
            raise feed.failure
        overruns, feed.overruns = feed.overruns, 0
        truncated, feed.truncated = feed.truncated, 0
        return Received(datagrams, overruns, truncated, ended=self._is_over())

    def send_nowait(self, datagram: bytes) -> None:
        """Give a datagram to the kernel model, which has dealt with it when this returns.

        Raises:
          OSError: EMSGSIZE where it is too long, ENODATA where it is empty.
          ConformanceError: it contradicts the schema (see `check`), and nothing of it was taken;
            it is an OSError, too.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        feed = self._feed
        if self._time.pace == "timed":
            self._let_arrive(None)
        feed.send(datagram, self.now_ns())
        if not self._time.running and feed.queue is not None:
            self._time.start(feed.peek())
            if self._order is not None:
                self._order.start()
        self._wake()

    def queues(self) -> list[QueueRow]:
        """The kernel model's queues.

        Raises:
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return self._feed.model.rows()

    def socket_drops(self) -> int:
        """0: what a receive buffer lost was lost when it was recorded."""
        self._check_open()
        return self._feed.socket.drops

    def interface_name(self, index: int) -> str | None:
        """Name of a network interface, as the recording notes it; None where it does not.

        Raises:
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return self._feed.arrivals.interface_names.get(index)

    def close(self) -> None:
        """Close; harmless when repeated. A waiter gets trio.ClosedResourceError."""
        if not self._closed:
            self._closed = True
            if self._order is not None:
                self._order.stop()
            self._feed.socket.close()
            self._feed.arrivals.close()
            self._wake()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this ReplayBackend is closed")

    # -- arriving ------------------------------------------------------------------------------

    def _let_arrive(self, limit: int | None) -> None:
        """Let packets arrive that are due, at most `limit` of them."""
        feed = self._feed
        count = 0
        most = limit or 0
        while limit is None or count < limit:
            if limit is not None and self._time.pace == "asked":
                came = feed.deliver_run(min(most, limit - count), self._time)
                if came:
                    count += came
                    most *= 2
                    continue
                # Where runs are short, looking far ahead for each would cost more than it saves.
                most = _SHORT_RUN
            arrival = feed.peek()
            if arrival is None or feed.queue is None or not self._is_due(arrival):
                return
            self._granted = False
            feed.deliver(self._time.move_to(arrival))
            count += 1

    def _is_due(self, arrival: Arrival) -> bool:
        if self._time.pace == "asked":
            return not self._feed.is_full or self._gave_up
        if self._time.pace == "timed":
            return self._time.due_s(arrival) <= trio.current_time()
        return self._granted

    # -- waiting -------------------------------------------------------------------------------

    @property
    def _gave_up(self) -> bool:
        return self._gave_up_at == self._feed.decisions

    def _has_failed(self) -> bool:
        feed = self._feed
        return feed.queue is not None and feed.peek() is None and feed.failure is not None

    def _is_over(self) -> bool:
        feed = self._feed
        if not self._time.running or feed.waiting or feed.peek() is not None or feed.failure:
            return False
        return not feed.held or self._gave_up

    def _is_readable(self) -> bool:
        feed = self._feed
        if self._closed or feed.waiting or feed.overruns or feed.truncated:
            return True
        arrival = feed.peek() if feed.queue is not None else None
        if arrival is not None:
            return self._is_due(arrival)
        return self._has_failed() or self._is_over()

    def _wake(self) -> None:
        """Have a waiter look again, without rescheduling it here and now."""
        if self._waiting and self._token is not None and self._is_readable():
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._interrupt, idempotent=True)

    def _interrupt(self) -> None:
        if self._sleep is not None:
            self._sleep.cancel()

    async def _pause(self) -> None:
        """Sleep until it is worth to look again; `_interrupt` cuts it short."""
        feed = self._feed
        arrival = feed.peek() if feed.queue is not None else None
        if self._time.pace == "lockstep":
            await self._step(arrival)
        elif self._time.pace == "timed" and arrival is not None:
            await trio.sleep_until(self._time.due_s(arrival))
        elif feed.held:
            await self._watch()
        else:
            await trio.sleep_forever()

    async def _watch(self) -> None:
        """Wait until it is clear that no verdict will come."""
        decided = self._feed.decisions
        await wait_all_tasks_blocked(_CUSHION_S)
        if _something_may_wake_a_task():
            await trio.sleep(self._patience_s)
        if self._feed.decisions == decided:
            self._gave_up_at = decided

    async def _step(self, arrival: Arrival | None) -> None:
        """Once all tasks are blocked, let happen what comes next: a timeout or a packet."""
        feed = self._feed
        await wait_all_tasks_blocked()
        clock = mock_clock()
        if clock is None:
            if arrival is not None:
                self._granted = True
            elif feed.held:
                await self._watch()
            else:
                await trio.sleep_forever()
            return
        now = trio.current_time()
        timeout = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if arrival is not None:
            ahead = self._time.due_s(arrival) - now
            self._granted = ahead < timeout
            clock.jump(max(0.0, min(ahead, timeout)))
        elif feed.held:
            await self._step_without_packets(clock, now, timeout)
        elif timeout < inf:
            clock.jump(max(0.0, timeout))
        else:
            await trio.sleep_forever()

    async def _step_without_packets(self, clock: MockClock, now: float, timeout: float) -> None:
        """Move the clock on while packets are held, until patience ends."""
        feed = self._feed
        if self._progress[0] != feed.decisions:
            self._progress = feed.decisions, now
        patience = self._progress[1] + self._patience_s - now
        if timeout < patience:
            clock.jump(max(0.0, timeout))
            return
        if timeout < inf:
            clock.jump(max(0.0, patience))
        elif _something_may_wake_a_task():
            # A thread or I/O: its time is not the clock's.
            await wait_all_tasks_blocked(self._patience_s)
        else:
            await wait_all_tasks_blocked(_CUSHION_S)
        if self._progress[0] == feed.decisions:
            self._gave_up_at = feed.decisions


def _something_may_wake_a_task() -> bool:
    """Whether anything is under way that could end in a verdict, all tasks being blocked."""
    statistics = trio.lowlevel.current_statistics()
    if statistics.seconds_to_next_deadline < inf or statistics.run_sync_soon_queue_size:
        return True
    if trio.to_thread.current_default_thread_limiter().borrowed_tokens:
        return True
    waiting = statistics.io_statistics
    if not hasattr(waiting, "tasks_waiting_read"):
        return True  # not Linux: unknown
    # One is trio's own, for run_sync_soon.
    return waiting.tasks_waiting_read > 1 or waiting.tasks_waiting_write > 0
