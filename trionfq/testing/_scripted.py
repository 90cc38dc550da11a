"""A backend in memory: a test says what arrives, and sees what was sent and what came of it."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import trio

from trionfq import schema
from trionfq._kernel_model import Decision, KernelModel, PacketIn
from trionfq._kernel_socket import DEFAULT_BUFFER_BYTES, memory_bytes
from trionfq.backends._abc import QueueRow, Received
from trionfq.schema import Message, RawMessage
from trionfq.schema.nfqueue import MessageType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from trionfq._kernel_model import Arrival

_VERBATIM = -1  # type of a RawMessage whose body is a whole datagram as the test wrote it


class ScriptedBackend:
    """A backend with the kernel model on its other side, and a test in charge of both.

    Packets are queued, answered and flushed as the kernel would, so a program under test gets
    the kernel's errors for its mistakes. Everything belongs to trio's thread::

        backend = ScriptedBackend()
        async with trionfq.open_queue(0, backend=backend) as queue:
            backend.arrive(make_packet(payload=b"..."))
            (await queue.receive()).drop()
        assert backend.decisions[0].effect is Effect.DROPPED

    Args:
      kernel: the model; by default a new one. Backends that are given the same one share its
        queues, as the sockets of one namespace do.
      max_send_bytes: longest datagram that a program should send.
      receive_buffer_bytes: receive buffer as SO_RCVBUF reads back; what does not fit is lost.
      no_enobufs: netlink's option; without it an overflow is reported as an overrun, and
        everything is lost until the buffer has been read empty.
      privileged: whether it has CAP_NET_ADMIN; without it every request gets EPERM.
      interfaces: names by index.
      clock: gives nanoseconds since the epoch.

    Attributes:
      kernel: the model.
      sent: the datagrams that were sent and taken, in order.
      interfaces: names by index; may be changed.
      send_hook: called with each datagram before it is taken; may raise OSError to refuse it, and
        may make packets arrive. Like all hooks None for nothing.
      receive_hook: called before each look, with its limit.
      wait_readable_hook: awaited before each waiting.
      close_hook: called when the backend closes.
    """

    def __init__(
        self,
        kernel: KernelModel | None = None,
        *,
        max_send_bytes: int = 8192,
        receive_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        no_enobufs: bool = True,
        privileged: bool = True,
        interfaces: Mapping[int, str] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ):
        self.kernel = KernelModel() if kernel is None else kernel
        self.sent: list[bytes] = []
        self.interfaces = dict({1: "lo"} if interfaces is None else interfaces)
        self.send_hook: Callable[[bytes], object] | None = None
        self.receive_hook: Callable[[int], object] | None = None
        self.wait_readable_hook: Callable[[], Awaitable[object]] | None = None
        self.close_hook: Callable[[], object] | None = None
        self._socket = self.kernel.open_socket(
            receive_buffer_bytes=receive_buffer_bytes, privileged=privileged
        )
        self._socket.no_enobufs = no_enobufs
        self._socket.ext_ack = self._socket.cap_ack = True
        self._max_send_bytes = max_send_bytes
        self._clock = clock
        self._decisions: list[Decision] = []
        self._report = Received([])
        self._ended = False
        self._waiting: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    # --- what the test does

    def arrive(self, datagram: bytes, *, keep_id: bool = False, bypass: bool = False) -> Arrival:
        """Let the packet of a PACKET datagram come to its queue, as a rule would.

        What the program gets to see of it follows from the queue's mode, range and flags.

        Args:
          datagram: as of `make_packet`.
          keep_id: give the packet the id that it has there, not the queue's next.
          bypass: the rule lets it pass where nobody listens.

        Returns:
          What became of it at the queue's door, and its id.

        Raises:
          RemoteProtocolError: it is no valid datagram; see `inject` for others.
          ValueError: it is not a single packet, or the id does not come after the last one kept.
        """
        messages = schema.parse(datagram)
        if [getattr(m, "type", None) for m in messages] != [MessageType.PACKET]:
            raise ValueError(f"arrive: expected a datagram with one packet, got {messages}")
        [message] = messages
        assert isinstance(message, Message)
        packet = PacketIn.from_message(message, keep_id=keep_id)
        arrival = self.kernel.enqueue(message.res_id, packet, bypass=bypass)
        self._wake()
        return arrival

    def inject(self, datagram: bytes) -> None:
        """Let a datagram come from the kernel as it is, whatever it says; no queue knows of it."""
        # Through the model's socket, so that order and receive buffer hold for it, too.
        message = RawMessage(_VERBATIM, 0, 0, 0, datagram)
        self._socket.put(message, memory_bytes(len(datagram)))
        self._wake()

    def report(self, *, overruns: int = 0, truncated: int = 0, foreign: int = 0) -> None:
        """Let the next look report losses: see `trionfq.backends.Received`."""
        self._report = self._report._replace(
            overruns=self._report.overruns + overruns,
            truncated=self._report.truncated + truncated,
            foreign=self._report.foreign + foreign,
        )
        self._wake()

    def end(self) -> None:
        """Let nothing come any more: once all is read and decided, a look says so."""
        self._ended = True
        self._wake()

    @property
    def decisions(self) -> list[Decision]:
        """What became of the packets, whoever decided, in order.

        Of a shared kernel model, what this backend was the first to ask for.
        """
        self._decisions += self.kernel.take_decisions()
        return self._decisions

    # --- what a program does: trionfq.backends.Backend

    @property
    def max_send_bytes(self) -> int:
        """Longest datagram worth sending, in bytes."""
        return self._max_send_bytes

    @property
    def port_id(self) -> int:
        """Its netlink port id."""
        return self._socket.portid

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, by the clock that it was given."""
        return self._clock()

    async def wait_readable(self) -> None:
        """Wait until something waits; a checkpoint.

        Raises:
          trio.BusyResourceError: another task waits.
          trio.ClosedResourceError: it is closed, or was closed meanwhile.
        """
        self._check_open()
        if self._waiting is not None:
            raise trio.BusyResourceError("another task waits for this backend")
        self._token = trio.lowlevel.current_trio_token()
        self._waiting = trio.Event()
        try:
            if self.wait_readable_hook is not None:
                await self.wait_readable_hook()
            if self._readable:
                self._waiting.set()
            await self._waiting.wait()
        finally:
            self._waiting = None
        self._check_open()

    def receive_nowait(self, limit: int) -> Received:
        """Take at most `limit` datagrams.

        Raises:
          trio.ClosedResourceError: it is closed.
        """
        self._check_open()
        if self.receive_hook is not None:
            self.receive_hook(limit)
        report, self._report = self._report, Received([])
        datagrams: list[bytes] = []
        overruns = report.overruns
        while len(datagrams) < limit:
            try:
                message = self._socket.receive()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overruns += 1
                continue
            if message is None:
                break
            verbatim = isinstance(message, RawMessage) and message.type == _VERBATIM
            datagrams.append(message.body if verbatim else schema.build([message]))  # type: ignore[union-attr]
        return report._replace(datagrams=datagrams, overruns=overruns, ended=self._is_over)

    def send_nowait(self, datagram: bytes) -> None:
        """Give a datagram to the kernel model, which has dealt with it when this returns.

        Raises:
          OSError: EMSGSIZE above 212,960 bytes, or what the hook raised.
          trio.ClosedResourceError: it is closed.
        """
        self._check_open()
        if self.send_hook is not None:
            self.send_hook(datagram)
        self._socket.send(datagram)
        self.sent.append(bytes(datagram))
        self._wake()

    def queues(self) -> list[QueueRow]:
        """The kernel model's queues.

        Raises:
          trio.ClosedResourceError: it is closed.
        """
        self._check_open()
        return self.kernel.rows()

    def socket_drops(self) -> int:
        """Datagrams that the receive buffer refused.

        Raises:
          trio.ClosedResourceError: it is closed.
        """
        self._check_open()
        return self._socket.drops

    def interface_name(self, index: int) -> str | None:
        """Name by `interfaces`.

        Raises:
          trio.ClosedResourceError: it is closed.
        """
        self._check_open()
        return self.interfaces.get(index)

    def close(self) -> None:
        """Close; harmless when repeated. A waiter gets trio.ClosedResourceError."""
        if self._socket.closed:
            return
        if self.close_hook is not None:
            self.close_hook()
        self._socket.close()
        self._wake()

    # --- within

    def _check_open(self) -> None:
        if self._socket.closed:
            raise trio.ClosedResourceError("this ScriptedBackend is closed")

    @property
    def _is_over(self) -> bool:
        undecided = any(row.queue_total for row in self.kernel.rows())
        return self._ended and not self._socket.readable and not undecided

    @property
    def _readable(self) -> bool:
        sock = self._socket
        return sock.closed or sock.readable or any(self._report) or self._is_over

    def _wake(self) -> None:
        if self._waiting is not None and self._readable:
            assert self._token is not None
            # Not at once: sending happens when trio has already fixed how long to sleep.
            self._token.run_sync_soon(self._wake_waiter)

    def _wake_waiter(self) -> None:
        # As a socket does: what somebody has read meanwhile wakes nobody.
        if self._waiting is not None and self._readable:
            self._waiting.set()
