"""Many datagrams by one system call: recvmmsg(2), or one by one where the C library lacks it.

Every slot of the batch is one page-aligned stretch of a private anonymous mapping, as long as the
longest datagram. Pages are the kernel's until something is written to them, so 256 slots cost
256 small pages while packets are small, and a 64 KiB packet needs neither a second buffer nor a
join. (A small slot with a second iovec for the rest was measured beside it: no difference at 100
to 1,500 bytes, and more to do at 64 KiB.) A slice of a mapping is already a new `bytes`, so one
copy makes the packet's own immutable bytes.

The function is called through `ctypes.PyDLL`, which keeps the interpreter lock: the call never
blocks, and a thread that computes meanwhile would otherwise keep the lock for up to 5 ms a call
(measured with one such thread: 2,486 us a call with the lock given away, 4.5 us without).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

from trionfq.backends._abc import Received

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

SLOT_BYTES = 68 * 1024
"""Room for one datagram: a payload is at most 65,531 bytes (nfqnl_recv_config), and the other
attributes, a security context and a conntrack entry among them, have the 4 KiB above that."""

SLOTS = 256
"""Most datagrams a call takes: a queue reads at most so many ahead."""

_RELEASE_EVERY_BYTES = 2 * 1024 * 1024  # received; a burst of long datagrams leaves no more behind

_WORTH_A_COLUMN = 6  # datagrams; fewer are looked at one by one (1: 1.5 us of Python against 2.7)

# Datagrams of one length that one struct takes, and structs kept, one a length.
_BLOCK = 16
_BLOCKS_KEPT = 256

_MSG_DONTWAIT = 0x40
_MSG_TRUNC = 0x20


class Receiver(Protocol):
    """Takes datagrams from a non-blocking netlink socket."""

    def receive(self, limit: int) -> Received:
        """Take at most `limit` datagrams that wait; raises OSError if the socket is unusable."""


class _IoVec(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_uint),
    )


class _MMsgHdr(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("hdr", _MsgHdr), ("len", ctypes.c_uint))


class _SockAddrNl(ctypes.Structure):  # struct sockaddr_nl
    _fields_ = (
        ("family", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("pid", ctypes.c_uint32),
        ("groups", ctypes.c_uint32),
    )


def _column(array: ctypes.Array[Any], offset: int) -> memoryview:
    """One u32 field of all structs of an array, as a strided view."""
    words = memoryview(array).cast("B").cast("I")
    return words[offset // 4 :: ctypes.sizeof(array._type_) // 4]


def find_recvmmsg() -> Callable[..., int] | None:
    """The C library's recvmmsg, or None where it has none (it is Linux's and some BSDs')."""
    try:
        function = ctypes.PyDLL(None, use_errno=True).recvmmsg
    except (AttributeError, OSError, TypeError):
        return None
    function.restype = ctypes.c_int
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_void_p,
    )
    return function


class BatchReceiver:
    """Receives up to `slots` datagrams by one call of recvmmsg.

    Args:
      fd: the socket's descriptor.
      recvmmsg: what `find_recvmmsg` gave.
      slots: most datagrams a call takes.
      slot_bytes: longest datagram that is not cut, in bytes.
    """

    def __init__(
        self,
        fd: int,
        recvmmsg: Callable[..., int],
        *,
        slots: int = SLOTS,
        slot_bytes: int = SLOT_BYTES,
    ):
        self._fd = fd
        self._recvmmsg = recvmmsg
        self._slots = slots
        page = mmap.PAGESIZE
        self._stride = stride = -(-slot_bytes // page) * page
        self._map = mmap.mmap(-1, slots * stride, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A huge page would make all slots resident at the first packet.
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._unreleased = 0
        self._blocks: dict[int, Struct] = {}

        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._iovecs = (_IoVec * slots)()
        self._headers = (_MMsgHdr * slots)()
        self._names = (_SockAddrNl * slots)()
        iovec = ctypes.addressof(self._iovecs)
        name = ctypes.addressof(self._names)
        for index in range(slots):
            self._iovecs[index] = _IoVec(base + index * stride, slot_bytes)
            self._headers[index].hdr = _MsgHdr(
                name + index * ctypes.sizeof(_SockAddrNl),
                ctypes.sizeof(_SockAddrNl),
                iovec + index * ctypes.sizeof(_IoVec),
                1,
                None,
                0,
                0,
            )
        self._first = ctypes.addressof(self._headers)
        self._starts = range(0, slots * stride, stride)
        self._lengths = _column(self._headers, _MMsgHdr.len.offset)
        self._flags = _column(self._headers, _MsgHdr.flags.offset)
        self._senders = _column(self._names, _SockAddrNl.pid.offset)

    def receive(self, limit: int) -> Received:
        """Take at most `limit` datagrams that wait."""
        datagrams: list[bytes] = []
        overruns = truncated = foreign = 0
        while limit > 0:
            asked = min(limit, self._slots)
            got = self._recvmmsg(self._fd, self._first, asked, _MSG_DONTWAIT, None)
            if got < 0:
                code = ctypes.get_errno()
                if code == errno.ENOBUFS:
                    # Said once a congestion, before the datagrams that did fit
                    # (netlink_overrun), so that asking again ends.
                    overruns += 1
                    continue
                if code == errno.EINTR:
                    continue
                if code in (errno.EAGAIN, errno.EWOULDBLOCK):
                    break
                raise OSError(code, os.strerror(code))
            data = self._map
            if (
                got >= _WORTH_A_COLUMN
                and not any(self._senders[:got].tolist())
                and not any(self._flags[:got].tolist())
            ):
                lengths = self._lengths[:got].tolist()
                self._unreleased += sum(lengths)
                datagrams += self._copied(lengths)
            else:
                for index in range(got):
                    length = self._lengths[index]
                    self._unreleased += length
                    if self._senders[index]:
                        foreign += 1
                    elif self._flags[index] & _MSG_TRUNC:
                        truncated += 1
                    else:
                        start = self._starts[index]
                        datagrams.append(data[start : start + length])
            if got < asked:
                # The socket is empty, or keeps an error for the next call.
                if self._unreleased > _RELEASE_EVERY_BYTES:
                    data.madvise(mmap.MADV_DONTNEED)
                    self._unreleased = 0
                break
            limit -= got
        return Received(datagrams, overruns, truncated, foreign)

    def _copied(self, lengths: list[int]) -> list[bytes]:
        """The datagrams of the first slots, of these lengths."""
        data, starts = self._map, self._starts
        length, done = lengths[0], 0
        datagrams: list[bytes] = []
        if lengths.count(length) == len(lengths):
            # A struct copies each for a quarter of what a slice costs (measured).
            block = self._blocks.get(length)
            if block is None:
                if len(self._blocks) >= _BLOCKS_KEPT:
                    self._blocks.clear()
                one = f"{length}s"
                block = Struct(f"{one}{self._stride - length}x" * (_BLOCK - 1) + one)
                self._blocks[length] = block
            while done + _BLOCK <= len(lengths):
                datagrams += block.unpack_from(data, starts[done])
                done += _BLOCK
        datagrams += [
            data[start : start + length]
            for start, length in zip(starts[done:], lengths[done:], strict=False)
        ]
        return datagrams


class SingleReceiver:
    """Receives one datagram a call, by recvmsg: where recvmmsg is missing.

    Args:
      sock: the non-blocking socket.
      slot_bytes: longest datagram that is not cut, in bytes.
    """

    def __init__(self, sock: socket.socket, *, slot_bytes: int = SLOT_BYTES):
        self._receive_into = sock.recvmsg_into
        self._buffers = (bytearray(slot_bytes),)
        self._view = memoryview(self._buffers[0])

    def receive(self, limit: int) -> Received:
        """Take at most `limit` datagrams that wait."""
        datagrams: list[bytes] = []
        overruns = truncated = foreign = 0
        while limit > 0:
            try:
                length, _, flags, address = self._receive_into(self._buffers)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overruns += 1
                continue
            limit -= 1
            if address[0]:
                foreign += 1
            elif flags & _MSG_TRUNC:
                truncated += 1
            else:
                datagrams.append(bytes(self._view[:length]))
        return Received(datagrams, overruns, truncated, foreign)
