"""A queue under test, and a second one that sees what became of each of its packets.

Every datagram carries a number. It passes the queue in OUTPUT's mangle table; what leaves that is
marked by what it passes, and seen once more by the witness, a queue of its own:

* ``LATER`` is set in a chain behind the queue, which NF_STOP skips;
* ``REPEATED`` is set where the hook runs again for a packet that has the bit ``AGAIN``;
* the hook of the witness's packet tells a requeued one (OUTPUT) from one that arrived (INPUT).

The witness reads its messages by struct alone: it shares no code with what it is to judge.
"""

from __future__ import annotations

import fcntl
import itertools
import select
import socket
import struct
from typing import NamedTuple

from trionfq import NetlinkBackend
from trionfq.backends import QueueRow
from trionfq.testing import make_bind

from .harness import Namespace, queue_rule, rule

NUMBER = 5
"""The queue under test."""
WITNESS = 6
NOBODY = 7
"""A queue that nobody has bound."""
PORT = 5000
AGAIN = 0x20
LATER = 1 << 31
REPEATED = 1 << 30
OUTPUT, INPUT = 3, 1  # NF_INET_LOCAL_OUT, NF_INET_LOCAL_IN (linux/netfilter.h)

_FENCE_PORT = 5001
_PATIENCE_S = 10.0
_NUMBER = struct.Struct(">I")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_HEADERS_OCTETS = 28  # IPv4 without options, and UDP


class Seen(NamedTuple):
    """A packet as the witness saw it: where, and with what."""

    hook: int = INPUT
    mark: int = LATER
    priority: int = 0
    data: bytes = b""


def data_of(number: int) -> bytes:
    """What a datagram of this number carries; the lengths differ."""
    return _NUMBER.pack(number) + b"." * (number % 4)


def number_of(data: bytes) -> int:
    """The number that a datagram carries."""
    return int(_NUMBER.unpack_from(data)[0])


class Bench:
    """A namespace with its rules, a sender, and the witness.

    It belongs to a thread that stays on one processor, so that packets pass the loopback device in
    the order of their verdicts, and a fence sent last is behind all of them.
    """

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        udp = f"-p udp --dport {PORT} -m mark"
        again = f"--mark {AGAIN:#x}/{AGAIN:#x}"
        rule(ns, "OUTPUT", f"{udp} {again} -j MARK --or-mark {REPEATED:#x}", table="mangle")
        queue_rule(ns, "OUTPUT", f"{udp} ! {again}", queue=NUMBER, table="mangle")
        rule(ns, "OUTPUT", f"-p udp --dport {PORT} -j MARK --or-mark {LATER:#x}")
        queue_rule(ns, "INPUT", "-p udp", queue=WITNESS)
        self._sender = ns.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.settimeout(_PATIENCE_S)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._fence = ns.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._witness = NetlinkBackend(namespace=ns.name)
        self._witness.send_nowait(make_bind(WITNESS))
        answer = self._witness.receive_nowait(2).datagrams
        assert [error_of(datagram) for datagram in answer] == [0]
        self._fences = 0
        self._begun = itertools.count()
        self.begin()

    def begin(self) -> None:
        """Begin an example: its numbers are new, and their last digits those of any other."""
        self._numbers = itertools.count(next(self._begun) << 12)

    def new_number(self) -> int:
        """A number that no datagram had before."""
        return next(self._numbers)

    def close(self) -> None:
        self._witness.close()

    def row(self) -> QueueRow:
        """The row of the queue under test."""
        found = self.ns.queue_row(NUMBER)
        assert found is not None
        return found

    def send(self, data: bytes) -> None:
        self._sender.sendto(data, ("127.0.0.1", PORT))

    def look(self) -> list[Seen]:
        """What has passed since the last look, in its order."""
        self._fences += 1
        fence = b"fence %d" % self._fences
        self._fence.sendto(fence, ("127.0.0.1", _FENCE_PORT))
        seen: list[Seen] = []
        last = 0
        while not seen or seen[-1].data != fence:
            ready, _, _ = select.select([self._witness._socket], [], [], _PATIENCE_S)
            assert ready, "the fence did not arrive"
            for datagram in self._witness.receive_nowait(256).datagrams:
                last = _read_id(datagram)
                seen.append(_read_packet(datagram))
        assert self._witness.socket_drops() == 0, "the witness itself lost packets"
        self._witness.send_nowait(_drop_up_to(last))
        return seen[:-1]

    def device_goes_down(self) -> None:
        """Take the device of all packets down and up; the kernel throws away what is queued."""
        request = struct.Struct("16sh22x")
        flags = request.unpack(fcntl.ioctl(self._fence, _SIOCGIFFLAGS, request.pack(b"lo", 0)))[1]
        for wanted in (flags & ~_IFF_UP, flags | _IFF_UP):
            fcntl.ioctl(self._fence, _SIOCSIFFLAGS, request.pack(b"lo", wanted))


def error_of(datagram: bytes) -> int:
    """The errno of an answer (struct nlmsgerr)."""
    length, kind = struct.unpack_from("=IH", datagram)
    assert (length, kind) == (len(datagram), 2), "no NLMSG_ERROR"
    return -int(struct.unpack_from("=i", datagram, 16)[0])


def _attributes(datagram: bytes) -> dict[int, bytes]:
    found = {}
    offset = 20  # struct nlmsghdr and struct nfgenmsg
    while offset < len(datagram):
        length, kind = struct.unpack_from("=HH", datagram, offset)
        found[kind & 0x3FFF] = datagram[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def _read_id(datagram: bytes) -> int:
    return int(struct.unpack_from(">I", datagram, 24)[0])


def _read_packet(datagram: bytes) -> Seen:
    attributes = _attributes(datagram)
    hook = attributes[1][6]  # NFQA_PACKET_HDR
    mark = int.from_bytes(attributes.get(3, b""), "big")  # NFQA_MARK
    priority = int.from_bytes(attributes.get(21, b""), "big")  # NFQA_PRIORITY
    return Seen(hook, mark, priority, attributes[10][_HEADERS_OCTETS:])  # NFQA_PAYLOAD


def _drop_up_to(packet_id: int) -> bytes:
    """NFQNL_MSG_VERDICT_BATCH for the witness's own packets."""
    header = struct.pack("=IHHII", 32, 3 << 8 | 3, 1, packet_id, 0) + struct.pack(
        ">BBH", 0, 0, WITNESS
    )
    return header + attribute(12, 2) + struct.pack(">II", 0, packet_id)


def attribute(length: int, kind: int) -> bytes:
    """The header of an attribute."""
    return struct.pack("=HH", length, kind)


class Spoiling:
    """A netlink socket that cuts the VLAN tag of a verdict short, so that the kernel refuses it.

    Args:
      inner: the socket.
      max_send_bytes: what it says of itself.
    """

    def __init__(self, inner: NetlinkBackend, max_send_bytes: int) -> None:
        self._inner = inner
        self.max_send_bytes = max_send_bytes

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def send_nowait(self, datagram: bytes) -> None:
        # ERANGE by the policy of NFQA_VLAN (nfqa_verdict_policy), before the packet is looked up.
        whole = attribute(20, 0x8000 | 19) + attribute(6, 1)
        self._inner.send_nowait(datagram.replace(whole, attribute(6, 19) + attribute(6, 1)))
