"""The queue as a trio program sees it: who gets packets, who reads, and verdicts by id.

One task at a time waits on the socket. A consumer that finds the read-ahead empty reads the socket
itself, which is cheaper than being woken by another task. Only while no consumer is inside a
waiting call does the receive loop take its place, so that refusals, failures and packets are seen
by a program that is busy elsewhere, too. The flush instrument notices that, and calls the loop
through ``run_sync_soon``, since it may not reschedule a task itself.
"""

from __future__ import annotations

import errno
import logging
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from trionfq import _flush
from trionfq._answers import explanation
from trionfq._batch import Batch, Batches
from trionfq._config import check_config, kernel_settings
from trionfq._errors import KernelError, PrivilegeError
from trionfq._link import READ_AHEAD
from trionfq._serve import Server
from trionfq._shadow import Shadow
from trionfq._statistics import Statistics
from trionfq._verdict import MarkChanges, Verdict, decision, queue_code
from trionfq._verdict_conntrack import check_unseen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Self, TypeAlias, Unpack

    from trionfq._compare import Difference
    from trionfq._config import KernelSettings, QueueConfig
    from trionfq._errors import RemoteProtocolError
    from trionfq._link import ErrorHandler, Link
    from trionfq._packet import Packet
    from trionfq._verdict import Changes
    from trionfq.backends import Backend
    from trionfq.schema import ErrorMessage
    from trionfq.schema.nfqueue import CopyMode, QueueFlags

    Handler: TypeAlias = Callable[[Packet], object] | Callable[[Packet], Awaitable[object]]

_log = logging.getLogger("trionfq")

# A consumer that keeps the loop longer than this yields to other tasks.
_TURN_NS = 1_000_000
_QUICK_NS = _TURN_NS // 4
# Times that a request whose answer was lost is repeated.
_ATTEMPTS = 3


class Queue:
    """A bound nfqueue: its packets, and the verdicts by id. Made by `open_queue`.

    Iterate over it (``async for packet in queue``), or use `receive`, `batches` or `serve`. Several
    tasks may iterate; each packet goes to one. Iterating is a checkpoint once per batch read from
    the kernel, and at the latest after about a millisecond, not once per packet: after its own
    ``cancel()`` a task still gets what was read, and other tasks wait for the batch.
    """

    def __init__(
        self,
        link: Link,
        *,
        on_close: Verdict,
        checkpoint_every: int | None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._link = link
        self._protocol = link.protocol
        self._ahead = link.ahead
        self._on_close = on_close
        self._checkpoint_every = checkpoint_every
        self._clock_ns = clock_ns
        self._turn_started: int | None = None
        # The receive loop has read a batch, for which no consumer has yielded yet.
        self._unyielded = False
        self._consumers = 0
        self._exclusive: str | None = None
        self._loop_lot = trio.lowlevel.ParkingLot()
        self._loop_called = False
        self._token: trio.lowlevel.TrioToken | None = None

    def __repr__(self) -> str:
        link = self._link
        state = "closed" if link.closed else "broken" if link.failure else "open"
        return f"<Queue {self.number}, {state}>"

    # -- what it is ----------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The queue number."""
        return self._protocol.config.number

    @property
    def config(self) -> QueueConfig:
        """The settings that the kernel was last asked for, and has taken.

        Of an inherited queue, copy mode and range are what the kernel showed on opening.
        """
        return self._protocol.config

    def kernel_settings(self) -> KernelSettings | None:
        """The settings that the kernel shows, and which of them are not as `config` asked.

        Reads /proc, so not for every packet. None where that cannot be read, or the queue is not
        this socket's any more; after the end, as last seen.
        """
        row = self._link.row()
        return None if row is None else kernel_settings(row, self.config)

    @property
    def backend(self) -> Backend:
        """Where the packets come from."""
        return self._link.backend

    @property
    def undecodable(self) -> list[RemoteProtocolError]:
        """The last messages that contradicted the schema, for inspection."""
        return list(self._protocol.undecodable)

    @property
    def undecided_ids(self) -> list[int]:
        """Ids of packets that were read and have no verdict, the oldest first.

        A process that inherits the socket needs them (``open_queue(..., ledger=...)``).
        """
        return self._protocol.undecided_ids

    def statistics(self) -> Statistics:
        """A snapshot of what was seen, the kernel's own counters included.

        Reads /proc, so not for every packet.
        """
        link, counts = self._link, self._protocol.counts
        undecided = self._protocol.undecided_packets()
        row = link.row()
        return Statistics(
            packets_received=counts.packets_received,
            packets_lost=self._protocol.packets_lost,
            overruns=link.overruns,
            truncated_datagrams=link.truncated,
            foreign_datagrams=link.foreign,
            unexpected_messages=counts.unexpected,
            undecodable_messages=counts.undecodable,
            answers_lost=link.answers_lost,
            verdicts=counts.verdicts,
            batches_sent=counts.batches_sent,
            verdicts_gone=counts.verdicts_gone,
            verdicts_refused=counts.verdicts_refused,
            read_ahead=len(self._ahead),
            undecided=len(undecided),
            held=sum(packet.held for packet in undecided),
            oldest_undecided_s=undecided[0].age_s if undecided else None,
            kernel=row,
        )

    # -- consumers -----------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> Packet:
        for packet in self._ahead.chunk:
            return packet
        try:
            return await self._next("iterating")
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    @trio.lowlevel.enable_ki_protection
    async def _next(self, what: str) -> Packet:
        self._check_shared(what)
        while True:
            await self.advance()
            for packet in self._ahead.chunk:
                return packet

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Packet:
        """The next packet; always a checkpoint.

        Cancellation loses no packet.

        Raises:
          trio.EndOfChannel: a replay has come to its end.
          trio.BusyResourceError: `serve` or `batches` reads this queue.
          trio.ClosedResourceError: the queue is closed, or was closed meanwhile.
          trio.BrokenResourceError: the queue is unusable; the cause is chained.
        """
        self._check_shared("receive")
        if self._ahead:
            await trio.lowlevel.checkpoint()
        return await self._next("receive")

    def batches(self) -> Batches:
        """Iterate over what each read from the kernel brought, as lists of packets.

        The cheapest way to decide many packets. Every step is a checkpoint.

        Raises:
          trio.BusyResourceError: on iterating, if another task consumes this queue.
          trio.ClosedResourceError, trio.BrokenResourceError: on iterating, as `receive`.
        """
        return Batches(self)

    @trio.lowlevel.enable_ki_protection
    async def next_batch(self) -> Batch:
        """Everything that was read and not handed out, at least one packet; a checkpoint.

        Raises:
          trio.EndOfChannel, trio.BusyResourceError, trio.ClosedResourceError,
          trio.BrokenResourceError: as `receive`.
        """
        self._enter_exclusively("batches()")
        try:
            if self._ahead:
                await trio.lowlevel.checkpoint()
            else:
                await self.advance()
            self._link.raise_if_unusable()
            return self._ahead.take_all()
        finally:
            self._exclusive = None

    async def serve(
        self,
        handler: Handler,
        *,
        workers: int = 64,
        undecided: Verdict = Verdict.DROP,
        deadline_s: float | None = None,
        error_handler: ErrorHandler | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Give every packet to a handler, until cancelled or a replay has come to its end.

        A packet that its handler leaves undecided (without `Packet.hold`), or whose handler raises
        or is cancelled, gets the verdict ``undecided``.

        Args:
          handler: a function or an async function of one packet. A plain function is called for
            one packet after the other; an async one runs in standing tasks.
          workers: most packets that an async handler works on at a time.
          undecided: Verdict.DROP or Verdict.ACCEPT, for packets that their handler left.
          deadline_s: seconds that a packet may stay undecided from when its handler got it; then
            an async handler is cancelled and the packet, held ones included, gets ``undecided``.
          error_handler: called with (exception, packet or None) for what a handler raised, for
            refused verdicts and undecodable messages; may decide the packet; may raise to end.
            Without it, an exception of the handler ends `serve` and leaves as it was raised, and
            the rest goes to the queue's error handler.
          task_status: for ``nursery.start``.

        Raises:
          ValueError: ``undecided`` is another verdict, or a number is not positive.
          trio.BusyResourceError: another task consumes this queue.
          trio.ClosedResourceError, trio.BrokenResourceError: as `receive`.
          TypeError: the handler is a plain function that returns a coroutine or a generator.
          ExceptionGroup: several handlers raised at once.
        """
        link, protocol = self._link, self._protocol
        server = Server(
            self,
            handler,
            workers,
            undecided,
            deadline_s,
            error_handler,
            error_handler or link.error_handler or link.log,
        )
        self._enter_exclusively("serve()")
        # Undecodable messages get this policy, and packets of refused verdicts, while it serves.
        outer = link.error_handler, protocol.policy
        link.error_handler = server.refused
        protocol.policy = undecided
        try:
            task_status.started()
            await server.run()
        finally:
            link.error_handler, protocol.policy = outer
            self._exclusive = None

    def shadow(
        self,
        handler: Handler,
        *,
        on_difference: Callable[[Difference], object] | None = None,
        undecided: Verdict = Verdict.DROP,
        workers: int = 16,
        backlog: int = 1024,
        keep: int = 1000,
        finish_s: float = 5.0,
    ) -> Shadow:
        """Run a second policy beside whatever consumes this queue, without effect.

        Use it as ``async with queue.shadow(candidate) as shadow``. The second policy gets its own
        copy of each packet that is read inside of the block, when its verdict is compared with the
        first policy's, once both are given.

        Args:
          handler: a function or an async function of one packet, as of `serve`. A plain one shares
            trio's thread with the first policy, so it delays that by the time that it computes.
          on_difference: called with each `trionfq.captures.Difference`, in a task of the shadow.
          undecided: verdict that packets count as having which the second policy leaves undecided
            (without `Packet.hold`), or for which it raises.
          workers: most packets that an async handler works on at a time.
          backlog: most packets that wait for the second policy; further ones are skipped.
          keep: most differences, and most exceptions, that are kept.
          finish_s: seconds that the second policy has to finish when the block ends normally.

        Raises:
          ValueError: ``undecided`` is another verdict, or a number is not positive.
        """
        return Shadow(
            self._link,
            handler,
            on_difference=on_difference,
            undecided=undecided,
            workers=workers,
            backlog=backlog,
            keep=keep,
            finish_s=finish_s,
        )

    def _check_shared(self, what: str) -> None:
        if self._exclusive is not None:
            raise trio.BusyResourceError(
                f"{what}: {self._exclusive} of another task reads queue {self.number}"
            )

    def _enter_exclusively(self, what: str) -> None:
        self._check_shared(what)
        if self._consumers:
            raise trio.BusyResourceError(f"{what}: another task reads queue {self.number}")
        self._exclusive = what

    def handing_out(self) -> Iterator[Packet]:
        """The chunk that is being handed out; for `serve`, which loops over it."""
        return self._ahead.chunk

    @trio.lowlevel.enable_ki_protection
    async def advance(self) -> None:
        """Make the next chunk the one that is handed out; other consumers may be quicker.

        Raises:
          trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError: as `receive`.
        """
        ahead = self._ahead
        if not ahead or self._link.yielding:
            self._consumers += 1
            try:
                await self._link.wait_for_packets()
            finally:
                self._consumers -= 1
        else:
            if self._unyielded or (
                ahead.waiting and (self._checkpoint_every or self._turn_is_over())
            ):
                await trio.lowlevel.checkpoint()
                self._unyielded = False
            self._link.raise_if_unusable()
        ahead.next_chunk()
        if self._turn_started is None:
            self._turn_started = self._clock_ns()

    def _turn_is_over(self) -> bool:
        """Whether other tasks should run now; and how soon to look again.

        A turn lasts from when a consumer got its first packets in a tick to the end of the tick.
        """
        if self._turn_started is None:
            return False
        taken_ns = self._clock_ns() - self._turn_started
        if taken_ns > _TURN_NS:
            self._link.shorten_drains()
            self._ahead.shorten_chunks()
            return True
        if taken_ns < _QUICK_NS:
            self._ahead.lengthen_chunks()
        return False

    # -- the end of a tick, and the receive loop -----------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def attach(self, nursery: trio.Nursery) -> None:
        """Start the receive loop and flushing; for the opener."""
        self._token = trio.lowlevel.current_trio_token()
        self._link.attach(nursery)
        nursery.start_soon(self._receive_loop, name=f"trionfq queue {self.number}")
        _flush.register(self)

    @trio.lowlevel.enable_ki_protection
    def before_io_wait(self) -> None:
        """Flush at the end of a tick; for the flush instrument, so it never raises."""
        self._turn_started = None
        try:
            if self._link.unsent:
                self._link.flush()
            if not (self._consumers or self._loop_called or self._link.reading):
                self._call_loop_soon()
        except BaseException as error:
            self._link.fail(error)

    def _may_read(self) -> bool:
        link = self._link
        usable = not (link.closed or link.ended or link.failure)
        return usable and len(self._ahead) < READ_AHEAD

    def _call_loop_soon(self) -> None:
        if self._token is not None and (self._may_read() or self._protocol.refusals):
            self._loop_called = True
            self._token.run_sync_soon(self._loop_lot.unpark)

    @trio.lowlevel.enable_ki_protection
    async def _receive_loop(self) -> None:
        """Read while no consumer does; parks, without polling, while one does or room is out."""
        link = self._link
        while True:
            # Called before it ran for the first time, it finds the flag instead of the wake-up.
            while not self._loop_called:
                await self._loop_lot.park()
            if not self._consumers and not link.reading:
                try:
                    # A request may have brought something to tell.
                    link.report()
                    if self._may_read():
                        await link.wait_readable()
                        link.drain()
                        self._unyielded = bool(self._ahead)
                        link.report()
                except Exception as error:
                    link.fail(error)
                link.pass_on()
            self._loop_called = False

    # -- settings and verdicts by id -----------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def configure(
        self,
        *,
        copy_mode: CopyMode | None = None,
        copy_range: int | None = None,
        max_len: int | None = None,
        flags: QueueFlags | None = None,
    ) -> None:
        """Change settings of the bound queue; does not block. None leaves one as it is.

        The new settings apply to packets that are queued from here on: what waits in the kernel
        already was copied by the old ones, and a smaller ``max_len`` drops none of it.

        Args:
          copy_mode: as in `open_queue`.
          copy_range: most payload bytes copied, in bytes.
          max_len: most packets that the kernel holds, in packets.
          flags: all flags that shall be on; others are switched off.

        Raises:
          KernelError: the kernel refused it, and changed nothing: it checks all of a request first
            (nfqnl_recv_config). With ENOBUFS, memory or room for answers was short, and settings
            may stand or not.
          PrivilegeError: CAP_NET_ADMIN was given away, or another socket has bound the queue now.
          ValueError: an argument is out of range; nothing was sent.
          RuntimeError: called from another thread than trio's.
          trio.ClosedResourceError, trio.BrokenResourceError: the queue is unusable.
        """
        self._link.raise_if_unusable()
        if self._protocol.thread != get_ident():
            raise RuntimeError(
                "settings belong to the thread that runs trio: from another thread call "
                "trio.from_thread.run_sync(queue.configure)"
            )
        before = self._protocol.config
        wanted: dict[str, Any] = {
            "copy_mode": copy_mode,
            "copy_range": copy_range,
            "max_len": max_len,
            "flags": flags,
        }
        names = [name for name, value in wanted.items() if value is not None]
        after = check_config(before.changed(wanted))
        operation = f"change settings of queue {self.number}"
        for _attempt in range(_ATTEMPTS):
            try:
                answer = self._link.request(*self._protocol.reconfigure(after, names))
            except Exception as error:
                self._protocol.config = before
                self._link.fail(error)
                self._link.raise_if_unusable()
                raise
            if answer is None:
                continue
            if not answer.error:
                return
            self._protocol.config = before
            raise _setting_error(answer, operation)
        self._protocol.config = before
        raise KernelError(
            errno.ENOBUFS,
            operation,
            advice="the kernel's answer found no room; raise receive_buffer_bytes",
        )

    @trio.lowlevel.enable_ki_protection
    def set_verdict(
        self,
        packet_id: int,
        verdict: Verdict,
        *,
        queue: int | None = None,
        bypass: bool = False,
        **changes: Unpack[Changes],
    ) -> None:
        """Give a verdict by packet id; does not block. A packet still unread is not handed out.

        Args:
          packet_id: the packet's id.
          verdict: any verdict; Verdict.QUEUE needs ``queue``.
          queue: target of Verdict.QUEUE, 0 to 65535.
          bypass: as in `Packet.requeue`.
          **changes: see `Changes`.

        Raises:
          AlreadyDecidedError: the packet has a verdict; nothing is sent.
          LocalProtocolError: an id that never came, or a change that cannot be made.
          TypeError, ValueError, RuntimeError, trio.ClosedResourceError: as `Packet.accept`.
        """
        protocol = self._protocol
        protocol.check_usable()
        code = _code(verdict, queue, bypass=bypass)
        packet = protocol.undecided_packet(packet_id)
        if packet is not None:
            packet.decide(code, changes)
            self._ahead.discard_decided(packet_id)
            return
        protocol.check_conntrack(changes)
        check_unseen(changes)
        protocol.decide_id(packet_id, decision(code, changes))

    @trio.lowlevel.enable_ki_protection
    def set_verdict_batch(
        self,
        packet_id: int,
        verdict: Verdict,
        *,
        queue: int | None = None,
        bypass: bool = False,
        **changes: Unpack[MarkChanges],
    ) -> int:
        """Give every undecided packet up to an id a verdict, held and unread ones included.

        Unread ones are not handed out any more.

        Args:
          packet_id: the highest id to be answered; it must have been read.
          verdict: any verdict; Verdict.QUEUE needs ``queue``.
          queue: target of Verdict.QUEUE.
          bypass: as in `Packet.requeue`.
          **changes: mark and priority; a batch can carry no others.

        Returns:
          How many packets that were; 0 on a socket inherited without its ledger.

        Raises:
          LocalProtocolError: the id was not read yet, so packets nobody saw would be answered.
          TypeError, ValueError, RuntimeError, trio.ClosedResourceError: as `Packet.accept`.
        """
        self._protocol.check_usable()
        told = decision(_code(verdict, queue, bypass=bypass), changes)
        if not told.plain:
            raise TypeError("a batch of verdicts can carry mark and priority only")
        count = self._protocol.decide_up_to(packet_id, told)
        if count:
            self._ahead.discard_decided(packet_id)
        return count

    # -- the end -------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close now: everything undecided gets the closing policy. Harmless when repeated.

        A checkpoint, but the closing itself is done whether or not that is cancelled.

        Raises:
          KernelError: the closing policy could not be sent; the queue is closed all the same.
        """
        failure = self.close()
        if failure is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise failure
        await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    def close(self, *, normally: bool = True) -> BaseException | None:
        """Close without waiting; returns what went wrong and nobody was told. For the opener.

        Args:
          normally: no exception ends the block, so an undecided packet was forgotten.
        """
        link = self._link
        if normally and not link.closed and link.failure is None:
            self._warn_of_forgotten()
        failure = link.close(self._on_close)
        if self._token is not None:
            _flush.unregister(self)
        return failure

    def _warn_of_forgotten(self) -> None:
        unread = {packet.id for packet in self._ahead.take_all()}
        forgotten = [
            packet.id
            for packet in self._protocol.undecided_packets()
            if packet.id not in unread and not packet.held
        ]
        if forgotten:
            _log.warning(
                "queue %d closes with %d packets undecided (first id %d): they get %s; "
                "decide each packet, or call packet.hold() where that is meant",
                self.number,
                len(forgotten),
                forgotten[0],
                self._on_close.name,
            )


def _setting_error(answer: ErrorMessage, operation: str) -> KernelError:
    code, said = -answer.error, explanation(answer)
    if code == errno.EPERM:
        advice = "CAP_NET_ADMIN is missing by now, or another socket has bound the queue"
        return PrivilegeError(code, operation, advice=advice, extack=said)
    advice = {
        errno.ENODEV: "the queue is bound no more",
        errno.EOPNOTSUPP: "this kernel does not know one of the flags; QueueFlags.CONNTRACK needs "
        "the module nf_conntrack_netlink, QueueFlags.SECCTX a security module",
    }.get(code, "")
    return KernelError(code, operation, advice=advice, extack=said)


def _code(verdict: Verdict, queue: int | None, *, bypass: bool) -> int:
    verdict = Verdict(verdict)
    if verdict is Verdict.QUEUE:
        if queue is None:
            raise ValueError("verdict QUEUE: which queue? give queue=0 to 65535")
        return queue_code(queue, bypass=bypass)
    if queue is not None or bypass:
        raise ValueError(f"verdict {verdict.name}: queue and bypass belong to QUEUE")
    return verdict
