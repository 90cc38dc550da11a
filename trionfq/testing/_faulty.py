"""A backend that makes another one fail in chosen places, the same each time."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from trionfq._codec import PacketReader, decode, split
from trionfq._errors import RemoteProtocolError
from trionfq.backends._abc import Received
from trionfq.schema import Message
from trionfq.testing._faults import (
    CapLen,
    Choice,
    Die,
    Duplicate,
    Fault,
    Flush,
    Overrun,
    Refuse,
    Reorder,
    SendError,
    Stall,
    Truncate,
)
from trionfq.testing._faulty_kernel import FaultyKernel, answers_ours, cut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq._codec import Shape
    from trionfq.backends._abc import Backend, QueueRow
    from trionfq.schema import AnyMessage

_DUPLICATE_WITHIN_S: Final = 0.1


class Injected(NamedTuple):
    """One fault that happened.

    Attributes:
      fault: which.
      number: of the packet, or with `SendError` of the sent datagram, from 0.
      packet_id: the packet's id, None where it was no packet.
    """

    fault: Fault
    number: int
    packet_id: int | None


class _HeldBack(NamedTuple):
    """A datagram that comes later: behind the packet of a number, or at a time."""

    behind: int
    due: float
    datagram: bytes


class FaultyBackend:
    """Wraps a backend, live or replayed, and lets faults happen that are declared.

    The same faults, seed and packets give the same failures; of those that take time, or follow
    what is sent, that holds for a program that does the same each time, as in lockstep. What the
    kernel would have dropped (`Overrun`, `Flush`, `Refuse` by ENOENT) is dropped in the inner
    backend by a verdict::

        backend = FaultyBackend(ReplayBackend("traffic.pcapng"), [Overrun(at=7), Refuse(rate=0.1)])

    Args:
      inner: the backend to wrap; closed with this one.
      faults: what goes wrong, and when.
      seed: of those that are given by a rate.

    Attributes:
      inner: the wrapped backend.
      injected: the faults that happened so far, in order.
    """

    def __init__(self, inner: Backend, faults: Iterable[Fault], *, seed: int = 0) -> None:
        self.inner = inner
        self.injected: list[Injected] = []
        choices = [Choice(fault, f"{seed} {place}") for place, fault in enumerate(faults)]
        self._sending = [each for each in choices if isinstance(each.fault, SendError)]
        self._coming = [each for each in choices if not isinstance(each.fault, SendError)]
        self._reader = PacketReader()
        self._count = 0
        self._sent = 0
        self._ready: deque[bytes] = deque()
        self._late: deque[tuple[float, bytes]] = deque()
        self._held_back: list[_HeldBack] = []
        self._stalled_until = -inf
        self._losing = 0
        self._losing_answers = False
        self._overruns = self._truncated = self._foreign = 0
        self._inner_ended = False
        self._dead: int | None = None
        self._closed = False
        self._kernel = FaultyKernel(inner)
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    # -- the seam ------------------------------------------------------------------------------

    @property
    def max_send_bytes(self) -> int:
        """Longest datagram worth sending, in bytes: the inner backend's."""
        return self.inner.max_send_bytes

    @property
    def port_id(self) -> int:
        """The inner backend's netlink port id."""
        return self.inner.port_id

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, by the inner backend."""
        return self.inner.now_ns()

    async def wait_readable(self) -> None:
        """Wait until `receive_nowait` would give something; a checkpoint.

        Raises:
          trio.BusyResourceError: another task waits.
          trio.ClosedResourceError: the backend is closed, or was closed meanwhile.
        """
        self._check_open()
        if self._scope is not None:
            raise trio.BusyResourceError("another task waits for this FaultyBackend")
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope(deadline=self._next_due()) as self._scope:
            try:
                if self._is_readable():
                    await trio.lowlevel.checkpoint()
                elif self._inner_ended and (self._late or self._held_back):
                    await trio.sleep_forever()
                else:
                    await self.inner.wait_readable()
            finally:
                self._scope = None
        self._check_open()

    def receive_nowait(self, limit: int) -> Received:
        """Take at most `limit` datagrams, as far as no fault keeps them away.

        Raises:
          OSError: as the inner backend's, or a `Die`.
          trio.ClosedResourceError: the backend is closed.
        """
        ended = False
        if self._dead is None:
            ended = self._pull(limit)
        self._release()
        if self._dead is not None and not self._ready:
            raise OSError(self._dead, os.strerror(self._dead))
        datagrams = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        counts = self._overruns, self._truncated, self._foreign
        self._overruns = self._truncated = self._foreign = 0
        ended = ended and not (self._ready or self._late or self._held_back)
        return Received(datagrams, *counts, ended)

    def send_nowait(self, datagram: bytes) -> None:
        """Give a datagram to the inner backend, but for what the kernel shall refuse.

        Raises:
          OSError: as the inner backend's, a `SendError` or a `Die`.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        if self._dead is not None:
            raise OSError(self._dead, os.strerror(self._dead))
        self._fail_to_send()
        try:
            messages, pieces = decode(datagram), split(datagram)
        except RemoteProtocolError:
            self.inner.send_nowait(datagram)
            return
        answers: list[bytes] = []
        passed: list[tuple[bytes, AnyMessage]] = []
        kernel, refusals = self._kernel, dict(self._kernel.refusals)
        for piece, message in zip(pieces, messages, strict=True):
            error = kernel.refused(message) if isinstance(message, Message) else None
            if error is None:
                passed.append((piece, message))
            else:
                assert isinstance(message, Message)
                answers.append(kernel.refusal(message, piece, error))
        try:
            if not answers:
                self.inner.send_nowait(datagram)
            elif passed:
                self.inner.send_nowait(b"".join(piece for piece, _ in passed))
        except OSError:
            kernel.refusals = refusals  # nothing was taken: it may be sent again
            raise
        for _, message in passed:
            if isinstance(message, Message):
                kernel.follow(message)
        if answers:
            self._ready.extend(answers)
            self._wake()

    def queues(self) -> list[QueueRow]:
        """The queues that the inner backend lists, with what was lost here."""
        return self._kernel.rows()

    def socket_drops(self) -> int:
        """Datagrams that the inner backend's receive buffer refused, with what was lost here."""
        return self.inner.socket_drops() + self._kernel.drops

    def interface_name(self, index: int) -> str | None:
        """Name of a network interface, as the inner backend knows it."""
        return self.inner.interface_name(index)

    def close(self) -> None:
        """Close; harmless when repeated. A waiter gets trio.ClosedResourceError."""
        self._closed = True
        self.inner.close()
        self._wake()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this FaultyBackend is closed")

    # -- what comes ----------------------------------------------------------------------------

    def _pull(self, limit: int) -> bool:
        """Take from the inner backend until there is enough; whether it has ended."""
        self._inner_ended = False
        while self._dead is None:
            wanted = limit - len(self._ready)
            received = self.inner.receive_nowait(max(0, wanted))
            self._overruns += received.overruns
            self._truncated += received.truncated
            self._foreign += received.foreign
            self._inner_ended = received.ended
            for datagram in received.datagrams:
                self._came(datagram)
            came = len(received.datagrams) + received.truncated + received.foreign
            if came < wanted or wanted <= 0:
                break
        return self._inner_ended

    def _came(self, datagram: bytes) -> None:
        shape = None
        with suppress(RemoteProtocolError):
            shape = self._reader.shape(datagram)
        if shape is not None:
            if self._dead is None:
                self._packet(datagram, shape)
        elif answers_ours(datagram):
            pass
        elif self._losing and self._losing_answers:
            self._kernel.drops += 1
        else:
            self._ready.append(datagram)

    def _packet(self, datagram: bytes, shape: Shape) -> None:
        number, packet_id, queue = self._count, shape.packet_id(datagram), shape.res_id
        self._count += 1
        fallen: dict[type[Fault], Fault] = {}
        for choice in self._coming:
            if choice.falls():
                fallen[type(choice.fault)] = choice.fault
                self.injected.append(Injected(choice.fault, number, packet_id))
        if Flush in fallen:
            self._kernel.flush()
        self._kernel.arrived(queue, packet_id)
        die, stall, overrun = fallen.get(Die), fallen.get(Stall), fallen.get(Overrun)
        if isinstance(die, Die):
            self._dead = die.error
            return
        if isinstance(stall, Stall):
            self._stalled_until = max(self._stalled_until, _in(stall.seconds))
        if isinstance(overrun, Overrun):
            self._losing = max(self._losing, overrun.count)
            self._losing_answers = overrun.answers
            self._overruns += 1
        if self._losing:
            self._losing -= 1
            self._kernel.lose(queue, packet_id)
        elif Truncate in fallen:
            self._truncated += 1
        else:
            self._hand_on(datagram, shape, number, fallen)
        self._release()

    def _hand_on(
        self, datagram: bytes, shape: Shape, number: int, fallen: dict[type[Fault], Fault]
    ) -> None:
        cap_len, refuse = fallen.get(CapLen), fallen.get(Refuse)
        reorder, duplicate = fallen.get(Reorder), fallen.get(Duplicate)
        if isinstance(cap_len, CapLen):
            datagram = cut(shape.message(datagram), cap_len.copy_range)
        if isinstance(refuse, Refuse):
            self._kernel.refusals[shape.res_id, shape.packet_id(datagram)] = refuse
        if isinstance(reorder, Reorder):
            due = _in(reorder.within_s)
            self._held_back.append(_HeldBack(number + reorder.by, due, datagram))
        else:
            self._deliver(datagram)
        if isinstance(duplicate, Duplicate):
            due = _in(_DUPLICATE_WITHIN_S)
            self._held_back.append(_HeldBack(number + duplicate.after, due, datagram))

    def _deliver(self, datagram: bytes) -> None:
        if self._late or self._stalled_until > _now():
            self._late.append((self._stalled_until, datagram))
        else:
            self._ready.append(datagram)

    def _release(self) -> None:
        """Let come what was kept back for long enough."""
        now = _now()
        kept = []
        for each in self._held_back:
            if each.behind < self._count or each.due <= now:
                self._deliver(each.datagram)
            else:
                kept.append(each)
        self._held_back = kept
        while self._late and self._late[0][0] <= now:
            self._ready.append(self._late.popleft()[1])

    def _next_due(self) -> float:
        moments = [each.due for each in self._held_back]
        if self._late:
            moments.append(self._late[0][0])
        return min(moments, default=inf)

    def _is_readable(self) -> bool:
        if self._ready or self._overruns or self._truncated or self._dead is not None:
            return True
        return self._next_due() <= _now()

    # -- what is sent --------------------------------------------------------------------------

    def _fail_to_send(self) -> None:
        number = self._sent
        self._sent += 1
        fallen = [choice.fault for choice in self._sending if choice.falls()]
        for fault in fallen:
            assert isinstance(fault, SendError)
            self.injected.append(Injected(fault, number, None))
            raise OSError(fault.error, os.strerror(fault.error))

    def _wake(self) -> None:
        """Have a waiter look again; not at once, for trio may have fixed how long to sleep."""
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._interrupt, idempotent=True)

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


def _now() -> float:
    return trio.current_time() if trio.lowlevel.in_trio_run() else -inf


def _in(seconds: float) -> float:
    return trio.current_time() + seconds if trio.lowlevel.in_trio_run() else inf
