"""The seam: what a source of nfqueue datagrams must do.

It passes bytes, never parsed messages, so that everything above it is exercised in full by a
replay. All but `Backend.wait_readable` are synchronous and never block. ``docs/backends.md`` shows
how to write one, and `trionfq.testing.check_backend` checks it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from trionfq._kernel_records import QueueRow

__all__ = ["Backend", "QueueRow", "Received"]


class Received(NamedTuple):
    """What one `Backend.receive_nowait` took from the socket.

    Attributes:
      datagrams: whole datagrams from the kernel, in order.
      overruns: times that the socket reported lost datagrams (ENOBUFS).
      truncated: datagrams cut by the receive buffer (MSG_TRUNC) and left out.
      foreign: datagrams from another sender than the kernel (port id not 0), left out.
      ended: nothing will ever come again: the capture is exhausted and nothing is undecided.
    """

    datagrams: list[bytes]
    overruns: int = 0
    truncated: int = 0
    foreign: int = 0
    ended: bool = False


@runtime_checkable
class Backend(Protocol):
    """A netlink datagram endpoint: the kernel's, or something that behaves like it."""

    @property
    def max_send_bytes(self) -> int:
        """Longest datagram worth sending, in bytes; a longer one may raise EMSGSIZE."""

    @property
    def port_id(self) -> int:
        """This endpoint's netlink port id, as the owner's column of /proc shows it."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch: the wall's time, or the capture's."""

    async def wait_readable(self) -> None:
        """Wait until `receive_nowait` would give something; a checkpoint.

        May wake without cause. One waiter at a time.

        Raises:
          trio.BusyResourceError: another task waits.
          trio.ClosedResourceError: the backend is closed, or was closed meanwhile.
        """

    def receive_nowait(self, limit: int) -> Received:
        """Take at most `limit` datagrams; an empty list where nothing waits.

        Fewer than that, truncated and foreign ones counted, say that nothing more waited: every
        answer to what was sent has then been taken.

        Raises:
          OSError: the endpoint is unusable.
          trio.ClosedResourceError: the backend is closed.
        """

    def send_nowait(self, datagram: bytes) -> None:
        """Give a datagram to the kernel, which has dealt with it when this returns.

        Must not reschedule a task: it runs after trio has fixed its timeout.

        Raises:
          OSError: EMSGSIZE where it is too long, ENOBUFS where memory was short; anything else
            means that the endpoint is unusable. The kernel took nothing of it.
          trio.ClosedResourceError: the backend is closed.
        """

    def queues(self) -> list[QueueRow]:
        """The queues of this endpoint's network namespace, as the kernel lists them.

        Raises:
          OSError: the list may not be read; the kernel's is root's alone.
          trio.ClosedResourceError: the backend is closed.
        """

    def socket_drops(self) -> int:
        """Datagrams that the receive buffer refused since it was opened (SO_MEMINFO's drops)."""

    def interface_name(self, index: int) -> str | None:
        """Name of a network interface of this endpoint's namespace, None where unknown."""

    def close(self) -> None:
        """Close; harmless when repeated. A waiter gets trio.ClosedResourceError."""
