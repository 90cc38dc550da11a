"""One binding's way to the kernel: protocol machine, backend and read-ahead joined.

Everything here is synchronous but the one wait. Every method that changes ledger or buffers is
protected from Ctrl-C: an interrupt in the middle of one would tear it. What runs in the flush
instrument (`Link.flush` and all below it) never reschedules a task, since trio has fixed its
timeout by then and the task would sleep on; whoever must wake is woken through ``run_sync_soon``.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trionfq._codec import split
from trionfq._ledger import Ledger
from trionfq._packet import Packet, decide_all
from trionfq._protocol import QueueProtocol
from trionfq.backends import Received

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from trionfq._read_ahead import ReadAhead
    from trionfq._verdict import Verdict
    from trionfq.backends import Backend, QueueRow
    from trionfq.schema import ErrorMessage

    ErrorHandler: TypeAlias = Callable[[Exception, Packet | None], object]

_log = logging.getLogger("trionfq")

# Most packets read and not handed out; beyond that the kernel's own queue is the buffer.
READ_AHEAD = 256
# Drains start small, so that a slow consumer does not sit on many packets, and double while full.
_FIRST_DRAIN = 8
# What a look at an empty socket brings, which is every other one at low load.
_NOTHING = Received([])
# Pause before a send that found no memory is tried again.
_RETRY_S = 0.001
_U32 = 0xFFFFFFFF


class Link:
    """Reads, sends, and knows whether that still works.

    Attributes:
      protocol: our side of the queue.
      backend: the other side.
      ahead: packets read and not handed out.
      error_handler: told of refusals and undecodable messages, None to log them.
      failure: why the queue is unusable, None while it works.
      failure_seen: somebody was told.
      ended: a replay has come to its end.
      closed: the binding was ended by us.
      reading: a task waits for the socket.
      yielding: a task has read, and lets others run before it hands out what it got.
      answers_lost: see `Statistics`.
      overruns: see `Statistics`.
      truncated: likewise.
      foreign: likewise.
      watchers: called with the packets of each read.
    """

    def __init__(
        self,
        protocol: QueueProtocol,
        backend: Backend,
        ahead: ReadAhead,
        error_handler: ErrorHandler | None,
        *,
        inherited: bool = False,
    ) -> None:
        self.protocol = protocol
        self.backend = backend
        self.ahead = ahead
        self.error_handler = error_handler
        self.failure: BaseException | None = None
        self.failure_seen = False
        self.ended = False
        self.closed = False
        self.reading = False
        self.yielding = False
        self.answers_lost = 0
        self.overruns = 0
        self.truncated = 0
        self.foreign = 0
        self.watchers: tuple[Callable[[list[Packet]], object], ...] = ()
        self._drain_limit = _FIRST_DRAIN
        self._outbox: deque[bytes] = deque()
        self._retrying = False
        self._waiters = trio.lowlevel.ParkingLot()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._last_row: QueueRow | None = None
        protocol.ended_error = self._ended_error
        self._drops_before = self._socket_drops() or 0
        if inherited and (row := self.row()) is not None:
            # What the socket has lost so far, answers apart, is counted in the row.
            self._drops_before -= row.user_dropped
            self.answers_lost = 0

    def attach(self, nursery: trio.Nursery) -> None:
        """Know the trio run, and the nursery for what must be retried later."""
        self._token = trio.lowlevel.current_trio_token()
        self._nursery = nursery

    @property
    def number(self) -> int:
        """The queue number."""
        return self.protocol.config.number

    # -- reading -------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def wait_for_packets(self) -> None:
        """Have something in the read-ahead; always a checkpoint, and cancellable without loss.

        Verdicts leave first: what comes next may be their effect. Packets that wait already are
        read before the checkpoint; where none does, waiting for the socket is the checkpoint. One
        task reads; the others park until it passes on what it got, or the reading.

        Raises:
          trio.EndOfChannel: a replay has come to its end.
          trio.ClosedResourceError, trio.BrokenResourceError: the queue is unusable.
        """
        fresh = True
        try:
            while True:
                self.raise_if_unusable()
                if self.reading or self.yielding:
                    await self._waiters.park()
                    if self.ahead and not self.yielding:
                        break
                else:
                    if self.unsent:
                        self.flush()
                    if self._look():
                        if fresh:
                            await self._yield()
                        break
                    await self.wait_readable()
                fresh = False
            self.raise_if_unusable()
        finally:
            if self._waiters:
                self.pass_on()

    def _look(self) -> bool:
        """Read once; whether the read-ahead has something then.

        Raises:
          trio.EndOfChannel: a replay has come to its end.
          trio.ClosedResourceError, trio.BrokenResourceError: the queue is unusable.
        """
        self.drain()
        if self.protocol.refusals:
            self.report()
        if self.ahead:
            return True
        self.raise_if_unusable()
        if self.ended:
            raise trio.EndOfChannel
        return False

    async def _yield(self) -> None:
        """A checkpoint of the task that has read; whoever runs out of packets meanwhile parks.

        So of many workers that do in one tick, one reads and yields. The others wake with packets,
        and their verdicts leave at the end of the tick, together.
        """
        self.yielding = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.yielding = False

    async def wait_readable(self) -> None:
        """Wait for the backend, as the one task that does.

        Returns also where the queue became unusable: `raise_if_unusable` tells.

        Raises:
          trio.BusyResourceError: the program waits for the backend itself.
        """
        self.reading = True
        try:
            await self.backend.wait_readable()
        except trio.BusyResourceError:
            raise
        except Exception as error:
            # Nothing new where a failure, or our closing, has closed it to wake us.
            self.fail(error)
        finally:
            self.reading = False

    @trio.lowlevel.enable_ki_protection
    def pass_on(self) -> None:
        """Wake tasks for packets that are left, or one to do the reading.

        Two at a time, which wake two more each: if handlers wait, all tasks are at work in a few
        ticks, and if not, one task decides all packets and few wake in vain.
        """
        if self._waiters:
            self._waiters.unpark(count=2 if len(self.ahead) > 1 else 1)

    @trio.lowlevel.enable_ki_protection
    def drain(self) -> None:
        """Read once from the backend, at most as much as the read-ahead has room for."""
        limit = min(self._drain_limit, READ_AHEAD - len(self.ahead))
        if limit <= 0:
            return
        count = 0
        try:
            received = self.backend.receive_nowait(limit)
            if received != _NOTHING:
                count = self.take(received)
        except Exception as error:
            self.fail(error)
            return
        if count >= limit:
            self._drain_limit = min(READ_AHEAD, 2 * self._drain_limit)
        # An answer is there when its verdict was sent, so a verdict still to be sent has none.
        if self.protocol.unsettled and not self._outbox:
            self._settle(emptied=count < limit)

    def _settle(self, *, emptied: bool) -> None:
        """See to it that refusable verdicts do not count as undecided for longer than they must."""
        if emptied:
            self.protocol.settled()
        elif not self.protocol.settling and (row := self.row()) is not None:
            # Under load the socket may never be empty, but packets that the kernel numbers from
            # now on stand behind every answer.
            self.protocol.settle_after(row.id_sequence)

    def shorten_drains(self) -> None:
        """Read less at a time: the consumer is slow, and what it sits on nobody else gets."""
        self._drain_limit = max(_FIRST_DRAIN, self._drain_limit // 2)

    @trio.lowlevel.enable_ki_protection
    def take(self, received: Received) -> int:
        """Deal with what one read brought; returns how many datagrams that were."""
        packets = self.protocol.receive(received.datagrams)
        if packets:
            self.ahead.append(packets)
            for watch in self.watchers:
                watch(packets)
        self.overruns += received.overruns
        self.truncated += received.truncated
        if received.truncated:
            self.protocol.unseen = True
        self.foreign += received.foreign
        self.ended = received.ended
        if self.protocol.failure is not None:
            self.fail(self.protocol.failure)
        return len(received.datagrams) + received.truncated + received.foreign

    @trio.lowlevel.enable_ki_protection
    def report(self) -> None:
        """Tell the error handler what it has not been told; it may raise."""
        refusals = self.protocol.refusals
        while refusals:
            _call(self.error_handler or self.log, *refusals.popleft())

    def log(self, error: Exception, packet: Packet | None) -> None:  # noqa: ARG002
        """What is done with an error where there is no error handler."""
        _log.warning("queue %d: %s", self.number, error)

    @trio.lowlevel.enable_ki_protection
    def request(self, sequence: int, datagram: bytes) -> ErrorMessage | None:
        """Send a configuration request and read until its answer, keeping packets that come.

        Answers come in order and the kernel delivers at most max_len undecided packets, so this
        ends. Returns None where the socket ran empty first: the answer was lost; or where memory
        was short, so that nothing was sent.

        Raises:
          OSError, trio.ClosedResourceError: the backend is unusable.
        """
        try:
            self.backend.send_nowait(datagram)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return None
        answer = None
        count = 1
        while answer is None and count:
            count = self.take(self.backend.receive_nowait(READ_AHEAD))
            answer = self.protocol.answers.pop(sequence, None)
        if self.ahead or self.protocol.refusals:
            self._wake_readers()
        return answer

    def _wake_readers(self) -> None:
        """Have somebody look, since what was read here wakes nobody any more.

        A task that waits for the socket wakes only if there is something to be read, so the kernel
        is asked for an answer. (A cancel scope around each wait would cost more than the rest of
        it: 23 us, measured.)
        """
        if self.reading:
            self._outbox.append(self.protocol.nudge())
        self.pass_on()

    # -- sending -------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def flush(self) -> None:
        """Send the verdicts that wait; never raises, since what goes wrong breaks the queue."""
        try:
            if self.protocol.pending:
                self._outbox += self.protocol.flush(self.backend.max_send_bytes)
            if self._outbox and not self._retrying:
                self._send()
        except Exception as error:
            self.fail(error)

    @property
    def unsent(self) -> bool:
        """Whether anything waits to be sent."""
        return self.protocol.pending or bool(self._outbox)

    def _send(self) -> None:
        try:
            self._send_or_raise()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._retrying = True
            self._soon(self._start_retrying)

    def _send_or_raise(self) -> None:
        """Send all that waits; what is too long goes in pieces."""
        outbox = self._outbox
        while outbox:
            try:
                self.backend.send_nowait(outbox[0])
            except OSError as error:
                pieces = split(outbox[0]) if error.errno == errno.EMSGSIZE else []
                if len(pieces) < 2:
                    raise
                outbox.popleft()
                half = len(pieces) // 2
                outbox.extendleft(b"".join(part) for part in (pieces[half:], pieces[:half]))
            else:
                outbox.popleft()

    def _start_retrying(self) -> None:
        if self._nursery is not None and not self.closed:
            self._nursery.start_soon(self._retry)

    @trio.lowlevel.enable_ki_protection
    async def _retry(self) -> None:
        await trio.sleep(_RETRY_S)
        self._retrying = False
        self.flush()

    def _soon(self, call: Callable[[], object]) -> None:
        if self._token is not None:
            self._token.run_sync_soon(call)

    # -- the end -------------------------------------------------------------------------------

    def raise_if_unusable(self) -> None:
        """Raise why the queue cannot be used any more, if so.

        Raises:
          trio.BrokenResourceError: it failed; the cause is chained.
          trio.ClosedResourceError: it was closed.
        """
        if self.failure is not None:
            self.failure_seen = True
            raise trio.BrokenResourceError(f"queue {self.number}: {self.failure}") from self.failure
        if self.closed:
            raise trio.ClosedResourceError(f"queue {self.number} is closed")

    def _ended_error(self, text: str) -> Exception:
        if self.failure is None or self.closed:
            return trio.ClosedResourceError(text)
        self.failure_seen = True
        error = trio.BrokenResourceError(f"{text}: {self.failure}")
        error.__cause__ = self.failure
        return error

    @trio.lowlevel.enable_ki_protection
    def fail(self, error: BaseException) -> None:
        """Make the queue unusable, and have whoever waits told."""
        if self.failure is None and not self.closed:
            with suppress(Exception):
                self.row()
            self.failure = error
            self.protocol.release()
            self._outbox.clear()
            # No verdict of theirs would reach the kernel any more.
            self.ahead.take_all()
            self._soon(self._wake_all)

    def _wake_all(self) -> None:
        try:
            self.backend.close()
        except Exception:
            # In the scheduler, where an exception would end the whole run.
            _log.exception("queue %d: closing its backend failed", self.number)
        self._waiters.unpark_all()

    def row(self) -> QueueRow | None:
        """Our row of /proc; after the end, the last one seen. Counts lost answers besides."""
        if not self.closed and self.failure is None:
            # First, so that a packet lost meanwhile makes the difference less, not more.
            drops = self._socket_drops()
            # A namespace that is gone, or a backend that broke, has no rows; that is no error.
            with suppress(OSError, trio.ClosedResourceError):
                port_id = self.backend.port_id
                self._last_row = row = next(
                    (
                        row
                        for row in self.backend.queues()
                        if row.queue == self.number and row.portid == port_id
                    ),
                    None,
                )
                if row is not None and drops is not None:
                    # Both have 32 bits and start again at 0.
                    lost = (drops - self._drops_before - row.user_dropped) & _U32
                    if lost <= _U32 >> 1:
                        self.answers_lost = max(self.answers_lost, lost)
        return self._last_row

    def _socket_drops(self) -> int | None:
        """What the receive buffer refused; None where the kernel does not tell (before 4.12)."""
        with suppress(OSError, trio.ClosedResourceError):
            return self.backend.socket_drops()
        return None

    @trio.lowlevel.enable_ki_protection
    def close(self, policy: Verdict) -> BaseException | None:
        """End the binding, without waiting; returns what went wrong and nobody was told."""
        if self.closed:
            return None
        failure = None if self.failure_seen else self.failure
        if self.failure is None:
            try:
                self.row()
                self._outbox += self.protocol.end(policy, self.backend.max_send_bytes)
                self._send_or_raise()
                # One look, for the counters: answers that came, and packets that nobody read.
                self.take(self.backend.receive_nowait(READ_AHEAD))
                failure = self.protocol.failure
            except Exception as error:
                # Whatever a backend raises: the caller has a nursery to leave, and a socket open.
                failure = error
        self.closed = True
        self._outbox.clear()
        self.ahead.take_all()
        self.protocol.release()
        try:
            self.backend.close()
        except Exception as error:
            failure = failure or error
        self._waiters.unpark_all()
        return failure


@trio.lowlevel.disable_ki_protection
def _call(handler: ErrorHandler, error: Exception, packet: Packet | None) -> None:
    """Call what is the program's, which Ctrl-C may interrupt whoever calls it."""
    handler(error, packet)


for _method in (
    Packet.accept,
    Packet.drop,
    Packet.decide,
    Packet.settle,
    Packet.set_payload,
    Packet.hold,
    decide_all,
    QueueProtocol.receive,
    QueueProtocol.flush,
    QueueProtocol.end,
    QueueProtocol.release,
    QueueProtocol.decide_id,
    QueueProtocol.decide_up_to,
    QueueProtocol.settled,
    Ledger.admit,
    Ledger.admit_one,
    Ledger.put_back,
    Ledger.filed,
    Ledger.in_order,
    Ledger.settle_before,
):
    trio.lowlevel.enable_ki_protection(_method)
