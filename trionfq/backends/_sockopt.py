"""Socket options of a netlink socket: netlink's own switches, buffer sizes, the drop counter."""

from __future__ import annotations

import enum
import errno
import os
import socket
import struct
import warnings
from dataclasses import dataclass

from trionfq._errors import KernelError, PrivilegeError

_SOL_NETLINK = 270
# include/uapi/asm-generic/socket.h; Python has no name for these.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8  # the ninth u32 (linux/sock_diag.h)

_LARGEST_BUFFER = 0x7FFFFFFF // 2  # sk_setsockopt cuts what is above it

DEFAULT_RECEIVE_BUFFER = 16 << 20
"""Receive buffer of a socket for which none was asked, in bytes as for SO_RCVBUF.

It is a limit, not memory that is taken: a queue fills no more of it than max_len packets, each
charged with its message, the kernel's bookkeeping, and rounding up to a power of two. Measured on
6.18 (SO_MEMINFO): 832 bytes for packets up to 128 bytes, 2,304 for 1,500, 16,640 for 9,000. The
kernel counts against the double of this size, so 40,000 small packets find room, 14,500 of 1,500
bytes, or 2,000 of 9,000. The kernel's default (net.core.rmem_default, 212,992 of such charges) has
room for 256 small packets or 92 of 1,500 bytes, though its default for max_len is 1,024.
"""


class NetlinkOption(enum.IntEnum):
    """Netlink's own socket options, by the kernel's names and numbers (linux/netlink.h)."""

    PKTINFO = 3
    BROADCAST_ERROR = 4
    NO_ENOBUFS = 5
    LISTEN_ALL_NSID = 8
    CAP_ACK = 10
    EXT_ACK = 11
    GET_STRICT_CHK = 12


@dataclass(frozen=True, kw_only=True)
class NetlinkOptions:
    """Which of netlink's options a socket has when it opens.

    The socket works best as it is here by default; `NetlinkBackend.set_option` changes one later.

    Attributes:
      pktinfo: send a control message beside each datagram; nothing here reads it.
      broadcast_error: report failed multicasts; nfqueue makes none.
      no_enobufs: after an overflow, go on delivering as soon as there is room. Without it every
        packet is dropped until the receive buffer has been read empty, and the overflow is
        counted as an overrun; with it, loss shows in `NetlinkBackend.socket_drops`, in the
        queue's ``user_dropped`` and as gaps between packet ids (netlink_overrun).
      listen_all_nsid: hear multicasts of other namespaces; needs CAP_NET_BROADCAST.
      cap_ack: an error answer quotes the request's header only, so that a rejected verdict does
        not come back with its payload.
      ext_ack: answers carry the kernel's words.
      get_strict_chk: check dump requests strictly; nfqueue has no dumps.
    """

    pktinfo: bool = False
    broadcast_error: bool = False
    no_enobufs: bool = True
    listen_all_nsid: bool = False
    cap_ack: bool = True
    ext_ack: bool = True
    get_strict_chk: bool = False

    def wanted(self, option: NetlinkOption) -> bool:
        """Whether `option` is to be on."""
        return bool(getattr(self, option.name.lower()))


class ReceiveBufferWarning(UserWarning):
    """The kernel gave a smaller receive buffer than was asked for.

    Attributes:
      asked_bytes: what was asked for.
      given_bytes: what there is now.
    """

    def __init__(self, asked_bytes: int, given_bytes: int):
        super().__init__(
            f"receive buffer: asked for {asked_bytes} bytes, got {given_bytes}, so a burst loses "
            f"packets earlier: raise the limit (sysctl net.core.rmem_max={asked_bytes}), or run "
            "with the host's CAP_NET_ADMIN, which may pass it"
        )
        self.asked_bytes = asked_bytes
        self.given_bytes = given_bytes


def get_option(sock: socket.socket, option: NetlinkOption) -> bool:
    """Whether a netlink option is on (netlink_getsockopt)."""
    return sock.getsockopt(_SOL_NETLINK, option) != 0


def set_option(sock: socket.socket, option: NetlinkOption, enabled: bool) -> None:
    """Switch a netlink option (netlink_setsockopt).

    Raises:
      PrivilegeError: LISTEN_ALL_NSID without CAP_NET_BROADCAST.
      KernelError: this kernel does not know the option.
    """
    operation = f"set netlink option {option.name}"
    try:
        sock.setsockopt(_SOL_NETLINK, option, int(enabled))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise PrivilegeError(
                error.errno, operation, advice="it needs CAP_NET_BROADCAST"
            ) from error
        if error.errno == errno.ENOPROTOOPT:
            raise KernelError(
                error.errno, operation, advice="this kernel is too old for it; open without it"
            ) from error
        raise


def apply_options(sock: socket.socket, options: NetlinkOptions) -> None:
    """Bring all options of a socket to what `options` says; only what differs is touched."""
    for option in NetlinkOption:
        wanted = options.wanted(option)
        try:
            current = get_option(sock, option)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            current = False  # older than the option
        if wanted != current:
            set_option(sock, option, wanted)


def check_buffer_bytes(name: str, size: int | None) -> None:
    """Refuse a buffer size that no socket can have."""
    if size is not None and not 0 < size <= _LARGEST_BUFFER:
        raise ValueError(f"{name}: expected 1 to {_LARGEST_BUFFER} bytes, got {size}")


def set_receive_buffer(sock: socket.socket, size: int) -> None:
    """Ask for a receive buffer of `size` bytes, and warn where the kernel gave less."""
    _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size)
    given = receive_buffer_bytes(sock)
    if given < size:
        warnings.warn(ReceiveBufferWarning(size, given), stacklevel=3)


def raise_receive_buffer(sock: socket.socket) -> None:
    """Give a socket the default receive buffer, or as much of it as its owner may have."""
    if receive_buffer_bytes(sock) < DEFAULT_RECEIVE_BUFFER:
        _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, DEFAULT_RECEIVE_BUFFER)


def set_send_buffer(sock: socket.socket, size: int) -> None:
    """Ask for a send buffer of `size` bytes; it only bounds the length of one datagram."""
    _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size)


def _set_buffer(sock: socket.socket, forced: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def receive_buffer_bytes(sock: socket.socket) -> int:
    """The receive buffer as one asks for it: the kernel keeps, and tells, the double.

    The other half is meant for its own bookkeeping of each datagram (socket(7)).
    """
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def longest_send_bytes(sock: socket.socket) -> int:
    """Longest datagram the kernel takes: the (doubled) send buffer less 32 (netlink_sendmsg)."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32


def socket_drops(sock: socket.socket) -> int:
    """Datagrams that did not fit into the receive buffer (sk_get_meminfo); counts modulo 2**32."""
    values = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_SK_MEMINFO_DROPS + 1))
    if len(values) <= 4 * _SK_MEMINFO_DROPS:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    return int(struct.unpack_from("=I", values, 4 * _SK_MEMINFO_DROPS)[0])
