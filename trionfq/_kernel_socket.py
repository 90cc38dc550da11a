"""A netlink socket as its peer, the kernel, sees it: a bounded receive queue and some options.

Facts of net/netlink/af_netlink.c. Acknowledgements and packets share one receive queue and its
limit (`netlink_attachskb`): a message is taken where it is the only one or where the buffer holds
it as well; otherwise it is lost and counted (`netlink_overrun`). Without NETLINK_NO_ENOBUFS such a
loss marks the socket congested, and from then on everything is lost until the queue has been read
empty; ENOBUFS is reported once for it, in front of what still waits.

What a message occupies is not its length but the memory that holds it (skb->truesize): at least
832 bytes, then powers of two and 256 (seen with SO_MEMINFO on a 6.18 kernel, x86-64). Other
machines differ by some per cent, so a count of messages can be the limit instead.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from .schema import Attr, ErrorMessage, Message
from .schema.netlink import MessageFlags

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._kernel_reader import Header
    from .schema import AnyMessage

DEFAULT_BUFFER_BYTES = 212_992
"""net.core.rmem_default and wmem_default of most kernels."""
_SEND_OVERHEAD = 32
_GENERIC_BYTES = 20
_ERROR_BYTES = 36
_STRUCT_BYTES = {"packet_id": 8, "sec": 16, "hw_addr": 12}
_SKB_BYTES = 256
_SHARED_INFO_BYTES = 320
_SMALL_HEAD_BYTES = 576
_LINEAR_BYTES = 32_768
# nfqnl_build_packet_message reserves room for attributes that it then may not write.
_RESERVED_BYTES = 72


def memory_bytes(length: int, *, reserved: int = 0) -> int:
    """What a message of `length` bytes occupies in a receive buffer (skb->truesize).

    Args:
      length: bytes of the message.
      reserved: bytes that were asked for in vain.
    """
    head = -(-(length + reserved) // 64) * 64 + _SHARED_INFO_BYTES
    if head <= _SMALL_HEAD_BYTES:
        return _SMALL_HEAD_BYTES + _SKB_BYTES
    if head > _LINEAR_BYTES:
        return _SMALL_HEAD_BYTES + _SKB_BYTES + length
    return max(1024, 1 << (head - 1).bit_length()) + _SKB_BYTES


class KernelSocket:
    """One user socket of NETLINK_NETFILTER in the model's namespace; see `KernelModel.open_socket`.

    Attributes:
      portid: netlink port id.
      privileged: whether it has CAP_NET_ADMIN; without it every datagram gets EPERM.
      ext_ack: NETLINK_EXT_ACK, answers carry what was wrong.
      cap_ack: NETLINK_CAP_ACK, error answers do not echo the request.
      drops: messages that the receive buffer refused (SO_MEMINFO's drops).
    """

    def __init__(
        self,
        portid: int,
        *,
        deliver: Callable[[KernelSocket, bytes], None],
        release: Callable[[KernelSocket], None],
        receive_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        receive_buffer_messages: int | None = None,
        send_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        privileged: bool = True,
    ):
        self.portid = portid
        self.privileged = privileged
        self.ext_ack = False
        self.cap_ack = False
        self.drops = 0
        self._deliver = deliver
        self._release = release
        self._receive_buffer_bytes = receive_buffer_bytes
        self._receive_buffer_messages = receive_buffer_messages
        self._send_buffer_bytes = send_buffer_bytes
        self._waiting: deque[tuple[AnyMessage, int]] = deque()
        self._occupied = 0
        self._no_enobufs = False
        self._congested = False
        self._error = 0
        self._closed = False

    @property
    def no_enobufs(self) -> bool:
        """NETLINK_NO_ENOBUFS: a loss is counted only; switching it on ends a congestion."""
        return self._no_enobufs

    @no_enobufs.setter
    def no_enobufs(self, value: bool) -> None:
        self._no_enobufs = value
        if value:
            self._congested = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def readable(self) -> bool:
        """Whether `receive` would give a message or raise."""
        return bool(self._waiting or self._error)

    @property
    def occupied(self) -> int:
        """How full the receive buffer is, in bytes or messages as its limit."""
        return self._occupied

    @property
    def waiting(self) -> int:
        """How many messages wait to be received."""
        return len(self._waiting)

    def send(self, datagram: bytes) -> None:
        """Give a datagram to the kernel, which has dealt with it when this returns.

        Raises:
          OSError: EBADF after `close`, ENODATA for an empty datagram, EMSGSIZE for one that is
            longer than the send buffer less 32 bytes (netlink_sendmsg). The kernel took nothing.
        """
        self._check_open()
        if not datagram:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        if len(datagram) > self._send_buffer_bytes - _SEND_OVERHEAD:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self._deliver(self, datagram)

    def receive(self) -> AnyMessage | None:
        """The next datagram, which is always one message; None where none waits.

        Raises:
          OSError: ENOBUFS once for each congestion, before what waits; EBADF after `close`.
        """
        self._check_open()
        try:
            if self._error:
                number, self._error = self._error, 0
                raise OSError(number, os.strerror(number))
            if not self._waiting:
                return None
            message, size = self._waiting.popleft()
            self._occupied -= size
            return message
        finally:
            # netlink_rcv_wake runs at the end of every netlink_recvmsg, a failed one too.
            if not self._waiting:
                self._congested = False

    def close(self) -> None:
        """Close; the queues that it owns go, and what waits in them is dropped. Harmless twice."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            self._occupied = 0
            self._release(self)

    def put(self, message: AnyMessage, size: int) -> bool:
        """Take a message into the receive queue; False where it is lost (netlink_attachskb)."""
        limit = self._receive_buffer_bytes
        if self._receive_buffer_messages is not None:
            limit, size = self._receive_buffer_messages, 1
        fits = not self._occupied or self._occupied + size <= limit
        if fits and not self._congested and limit > 0:
            self._occupied += size
            self._waiting.append((message, size))
            return True
        self.drops += 1
        if not self._no_enobufs and not self._congested:
            self._congested = True
            self._error = errno.ENOBUFS
        return False

    def put_packet(self, message: Message) -> bool:
        """`put` with what a PACKET message occupies."""
        if self._receive_buffer_messages is not None:
            return self.put(message, 1)
        length = _GENERIC_BYTES + _list_bytes(message.attributes)
        return self.put(message, memory_bytes(length, reserved=_RESERVED_BYTES))

    def answer(self, header: Header, body: bytes, number: int, extack: tuple[Attr, ...]) -> None:
        """Acknowledge a request, with an error or, `number` being 0, success (netlink_ack)."""
        capped = not number or self.cap_ack
        told = extack if self.ext_ack else ()
        flags = MessageFlags.CAPPED * capped | MessageFlags.ACK_TLVS * bool(told)
        echoed = b"" if capped else body
        message = ErrorMessage(
            int(flags), header.seq, self.portid, -number, header.wire, echoed, told
        )
        self.put(message, memory_bytes(_ERROR_BYTES + len(echoed) + _list_bytes(told)))

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _list_bytes(attributes: tuple[Attr, ...]) -> int:
    """Bytes of an attribute list; integers of a connection are taken for four."""
    total = 0
    for _number, value, _flags in attributes:
        if isinstance(value, int):
            total += 8
        elif isinstance(value, bytes):
            total += 4 + len(value) + -len(value) % 4
        elif isinstance(value, tuple):
            total += 4 + _list_bytes(value)
        else:
            total += 4 + next((size for key, size in _STRUCT_BYTES.items() if key in value), 8)
    return total
