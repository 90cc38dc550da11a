"""The real thing: an AF_NETLINK socket of the kernel's netfilter subsystem.

Imports everywhere; where there is no AF_NETLINK, opening one says so.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import trio

from trionfq._errors import ModuleMissingError, PrivilegeError
from trionfq.backends import _sockopt
from trionfq.backends._netns import Namespace, in_namespace
from trionfq.backends._proc import QueueTable
from trionfq.backends._recvmmsg import BatchReceiver, SingleReceiver, find_recvmmsg
from trionfq.backends._sockopt import NetlinkOption, NetlinkOptions, ReceiveBufferWarning

if TYPE_CHECKING:
    from trionfq.backends._abc import QueueRow, Received
    from trionfq.backends._recvmmsg import Receiver

__all__ = [
    "Namespace",
    "NetlinkBackend",
    "NetlinkOption",
    "NetlinkOptions",
    "ReceiveBufferWarning",
]

_NETLINK_NETFILTER = 12  # linux/netlink.h
_SIOCGIFNAME = 0x8910  # linux/sockios.h
_SIOCGSKNS = 0x894C
_IFREQ = struct.Struct("16si20x")  # struct ifreq, with ifr_ifindex
_OPEN = "open an AF_NETLINK socket for NETLINK_NETFILTER"

_LARGEST_DATAGRAM = 8192
"""Longest datagram worth sending, in bytes.

It holds 256 plain verdicts, and 256 error answers are what the default receive buffer takes, so
that a datagram whose verdicts all fail loses no answer (measured at 212,992 bytes). A longer one
gains little: 31.0 ns a message at 8 KiB, 20.7 at 64 KiB, where the verdict itself costs 1,000.
"""


class NetlinkBackend:
    """A netlink socket that speaks nfqueue with the kernel.

    Opening blocks no longer than a few system calls. All methods but `wait_readable` are
    synchronous; `close` belongs to trio's thread once a task has waited.

    Args:
      namespace: network namespace to open the socket in: a name (``ip netns``), a path, or
        `Namespace.from_pid` or `Namespace.from_fd`; None for the caller's. The caller's thread
        does not move.
      fd: an open netlink socket, such as one inherited from another process. It is adopted, not
        duplicated: closing the backend closes it, and it becomes non-blocking. On an error it
        stays the caller's. It is in a namespace already, so `namespace` must be None.
      receive_buffer_bytes: receive buffer, in bytes as for SO_RCVBUF (the kernel doubles it for
        its bookkeeping); None for 16 MiB, or net.core.rmem_max without the host's CAP_NET_ADMIN;
        a socket that was given as `fd` keeps its own.
      send_buffer_bytes: send buffer, likewise; it only bounds the length of one datagram.
      options: netlink's own options.

    Raises:
      ModuleMissingError: there is no AF_NETLINK on this platform, or no nfnetlink in this kernel.
      FileNotFoundError: there is no such namespace.
      PrivilegeError: the namespace may not be entered, or an option may not be set.
      ValueError: `fd` is no such socket, `namespace` is no namespace, or a size is out of range.

    Warns:
      ReceiveBufferWarning: the kernel gave a smaller receive buffer than was asked for.
    """

    def __init__(
        self,
        *,
        namespace: str | os.PathLike[str] | Namespace | None = None,
        fd: int | None = None,
        receive_buffer_bytes: int | None = None,
        send_buffer_bytes: int | None = None,
        options: NetlinkOptions | None = None,
    ):
        if fd is not None and namespace is not None:
            raise ValueError("give fd or namespace: an open socket is in a namespace already")
        _sockopt.check_buffer_bytes("receive_buffer_bytes", receive_buffer_bytes)
        _sockopt.check_buffer_bytes("send_buffer_bytes", send_buffer_bytes)
        if not hasattr(socket, "AF_NETLINK"):
            raise ModuleMissingError(
                errno.EAFNOSUPPORT,
                _OPEN,
                advice="nfqueue is Linux's own; a ReplayBackend runs on this platform",
            )
        within = None if namespace is None else Namespace.of(namespace)
        if fd is None:
            self._socket, self._table = in_namespace(within, _open_here)
        else:
            self._socket, self._table = _adopt(fd)
        try:
            _sockopt.apply_options(self._socket, options or NetlinkOptions())
            if send_buffer_bytes is not None:
                _sockopt.set_send_buffer(self._socket, send_buffer_bytes)
            self._socket.setblocking(False)
            if self._socket.getsockname()[0] == 0:
                self._socket.bind((0, 0))
            self._port_id: int = self._socket.getsockname()[0]
            if receive_buffer_bytes is not None:
                _sockopt.set_receive_buffer(self._socket, receive_buffer_bytes)
            elif fd is None:
                _sockopt.raise_receive_buffer(self._socket)
        except BaseException:
            self._table.close()
            if fd is None:
                self._socket.close()
            else:
                self._socket.detach()
            raise
        self._max_send_bytes = min(_LARGEST_DATAGRAM, _sockopt.longest_send_bytes(self._socket))
        recvmmsg = find_recvmmsg()
        self._receiver: Receiver = (
            SingleReceiver(self._socket)
            if recvmmsg is None
            else BatchReceiver(self._socket.fileno(), recvmmsg)
        )
        self._closed = False

    @property
    def max_send_bytes(self) -> int:
        """Longest datagram worth sending, in bytes.

        A longer one is taken up to the send buffer (sk_sndbuf less 32 bytes, netlink_sendmsg),
        EMSGSIZE beyond it.
        """
        return self._max_send_bytes

    @property
    def port_id(self) -> int:
        """The socket's netlink port id, as the owner's column of /proc shows it."""
        return self._port_id

    def fileno(self) -> int:
        """The socket's descriptor: for options that have no name here, or for a process to inherit.

        It stays the backend's, which reads from it and closes it.

        Raises:
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return self._socket.fileno()

    @property
    def receive_buffer_bytes(self) -> int:
        """The receive buffer there is, in bytes as for SO_RCVBUF (half of what getsockopt tells).

        Raises:
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return _sockopt.receive_buffer_bytes(self._socket)

    def set_option(self, option: NetlinkOption, enabled: bool) -> None:
        """Switch one of netlink's options on or off.

        Raises:
          PrivilegeError: LISTEN_ALL_NSID without CAP_NET_BROADCAST.
          KernelError: this kernel does not know the option.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        _sockopt.set_option(self._socket, option, enabled)

    def get_option(self, option: NetlinkOption) -> bool:
        """Whether one of netlink's options is on, as the kernel tells.

        Raises:
          OSError: ENOPROTOOPT where this kernel does not know the option.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return _sockopt.get_option(self._socket, option)

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, by the wall's clock."""
        return time.time_ns()

    async def wait_readable(self) -> None:
        """Wait until a datagram or an overrun waits; a checkpoint.

        Raises:
          trio.BusyResourceError: another task waits.
          trio.ClosedResourceError: the backend is closed, or was closed meanwhile.
        """
        self._check_open()
        await trio.lowlevel.wait_readable(self._socket)

    def receive_nowait(self, limit: int) -> Received:
        """Take at most `limit` datagrams by as few system calls as possible.

        Only datagrams from the kernel are believed: any process with CAP_NET_ADMIN may send to
        this port id. ENOBUFS is counted, and reading goes on.

        Raises:
          OSError: the socket is unusable.
          trio.ClosedResourceError: the backend is closed.
        """
        if self._closed:
            self._check_open()
        return self._receiver.receive(limit)

    def send_nowait(self, datagram: bytes) -> None:
        """Give a datagram to the kernel, which has dealt with it when this returns.

        Raises:
          OSError: EMSGSIZE where it is too long, ENOBUFS where memory was short; anything else
            means that the socket is unusable. The kernel took nothing of it.
          trio.ClosedResourceError: the backend is closed.
        """
        if self._closed:
            self._check_open()
        self._socket.send(datagram)

    def queues(self) -> list[QueueRow]:
        """The queues of the socket's network namespace; none where the module is not loaded.

        Raises:
          PermissionError: the file is root's alone, and was when the backend was opened.
          PrivilegeError: an adopted socket is in a namespace that this process may not enter.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return self._table.rows()

    def socket_drops(self) -> int:
        """Datagrams that the receive buffer refused since the socket was opened, modulo 2**32.

        Packets and answers alike (SO_MEMINFO, Linux 4.12).

        Raises:
          OSError: ENOPROTOOPT where the kernel is older.
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        return _sockopt.socket_drops(self._socket)

    def interface_name(self, index: int) -> str | None:
        """Name of a network interface of the socket's namespace, None where unknown.

        Raises:
          trio.ClosedResourceError: the backend is closed.
        """
        self._check_open()
        if not 0 < index <= 0x7FFFFFFF:
            return None
        import fcntl  # not on every platform

        try:
            # Netlink has no ioctl of its own, so the device layer answers, for the namespace of
            # the socket (sock_do_ioctl).
            answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, _IFREQ.pack(b"", index))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return os.fsdecode(answer[:16].split(b"\0", 1)[0])

    def close(self) -> None:
        """Close; harmless when repeated. A waiter gets trio.ClosedResourceError.

        The kernel drops what is queued and undecided, and frees the queues' numbers.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if trio.lowlevel.in_trio_run():
                # Before the descriptor is gone, or a waiter sleeps for ever.
                trio.lowlevel.notify_closing(self._socket)
        finally:
            self._socket.close()
            self._table.close()
            del self._receiver

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this NetlinkBackend is closed")


def _open_here() -> tuple[socket.socket, QueueTable]:
    """The socket and the table of queues of the calling thread's namespace."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise ModuleMissingError(
                error.errno,
                _OPEN,
                advice="the kernel has no nfnetlink, or cannot load it: modprobe nfnetlink_queue "
                "(on the host, if this is a container)",
            ) from error
        raise
    return sock, QueueTable()


def _adopt(fd: int) -> tuple[socket.socket, QueueTable]:
    """A socket made elsewhere, after a look at what it is, and the table of its namespace."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            raise ValueError(f"fd {fd}: not an open socket ({error.strerror})") from error
        raise
    try:
        if (sock.family, sock.proto) != (socket.AF_NETLINK, _NETLINK_NETFILTER):
            raise ValueError(
                f"fd {fd}: expected an AF_NETLINK socket of protocol NETLINK_NETFILTER "
                f"({_NETLINK_NETFILTER}), got {sock.family!r}, protocol {sock.proto}"
            )
        peer = sock.getpeername()
        if peer != (0, 0):
            raise ValueError(f"fd {fd}: connected to {peer}, not to the kernel (0, 0)")
        table = _table_of(sock)
    except BaseException:
        sock.detach()
        raise
    return sock, table


def _table_of(sock: socket.socket) -> QueueTable:
    """The table of the namespace that an adopted socket is in."""
    import fcntl

    try:
        fd = fcntl.ioctl(sock, _SIOCGSKNS)
    except PermissionError:
        return QueueTable()  # it takes CAP_NET_ADMIN to learn; most likely the caller's own
    try:
        theirs, ours = os.fstat(fd), os.stat("/proc/thread-self/ns/net")
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            return QueueTable()
        return in_namespace(Namespace.from_fd(fd), QueueTable)
    except PrivilegeError as error:
        return QueueTable(error)
    finally:
        os.close(fd)
