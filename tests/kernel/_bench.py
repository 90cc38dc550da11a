"""The kernel and the kernel model in the same hands: what a test may do with either, and see.

A test that drives both through `Bench` and compares what it saw shows that the model does what
the kernel does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from trionfq._kernel_model import QueueRow
from trionfq.schema import AnyMessage

from ._scenario import By, Scenario

PORT = 9999
LOST = "ENOBUFS"


class Delivered(NamedTuple):
    """A packet that arrived at the receiver; priority None where this kernel does not tell."""

    text: bytes
    mark: int
    priority: int | None


class Step(NamedTuple):
    """What one datagram, or some packets, brought about."""

    send_errno: int
    records: tuple[AnyMessage, ...]
    rows: tuple[QueueRow, ...]


class Outcome(NamedTuple):
    """All that can be seen of a scenario from outside the kernel."""

    steps: tuple[Step, ...]
    delivered: tuple[Delivered, ...]


class Traits(NamedTuple):
    """What differs between kernels."""

    flags_policy: bool
    conntrack_glue: bool
    secctx: bool


class Bench(Protocol):
    """Two sockets of one namespace, a rule that gives UDP packets to queue 0, and a receiver."""

    @property
    def portids(self) -> tuple[int, int]:
        """Port ids of owner and stranger."""

    def send(self, by: By, request: bytes) -> int:
        """Send a datagram; the errno of send, 0 where it worked."""

    def arrive(self, packets: Iterable[bytes], *, mark: int = 0) -> None:
        """Packets meet the rule."""

    def receive(self, limit: int | None = None) -> list[AnyMessage | str]:
        """What waits for the owner, then for the stranger; `LOST` stands for ENOBUFS."""

    def rows(self) -> tuple[QueueRow, ...]:
        """The rows of /proc."""

    def delivered(self) -> tuple[Delivered, ...]:
        """What arrived at the receiver since the last call."""

    def drops(self) -> int:
        """Messages that the owner's receive buffer refused."""

    def set_no_enobufs(self) -> None:
        """Switch NETLINK_NO_ENOBUFS on for the owner."""

    def loopback_down_and_up(self) -> None:
        """The device of all packets goes down, then up again."""

    def hook_comes_and_goes(self) -> None:
        """Somebody registers and unregisters an unrelated netfilter hook."""


def ip_packet(text: bytes, number: int = 0) -> bytes:
    """A whole UDP/IPv4 packet on loopback, with no UDP checksum."""
    udp = struct.pack(">HHHH", 1000, PORT, 8 + len(text), 0) + text
    address = bytes([127, 0, 0, 1])
    identification, dont_fragment, ttl, protocol = 0x1000 + number, 0x4000, 64, 17
    fields = (0x45, 0, 20 + len(udp), identification, dont_fragment, ttl, protocol, 0)
    header = struct.pack(">BBHHHBBH4s4s", *fields, address, address)
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + udp


def checksum(header: bytes) -> int:
    """The Internet checksum of an IPv4 header."""
    total = int(sum(struct.unpack(f">{len(header) // 2}H", header)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def text_of(packet: bytes) -> bytes | None:
    """What an IPv4 host gives to the receiver of a packet; None where it throws it away."""
    if len(packet) < 28 or checksum(packet[:20]):
        return None
    total = int.from_bytes(packet[2:4], "big")
    udp_length = int.from_bytes(packet[24:26], "big")
    if total > len(packet) or udp_length > total - 20:
        return None
    return packet[28 : 20 + udp_length]


def packets(first: int, count: int) -> list[bytes]:
    """Numbered packets."""
    return [ip_packet(b"packet %d" % n, n) for n in range(first, first + count)]


def play(bench: Bench, scenario: Scenario) -> Outcome:
    """A scenario from beginning to end."""
    steps: list[Step] = []

    def seen(send_errno: int = 0) -> None:
        records = tuple(record for record in bench.receive() if not isinstance(record, str))
        steps.append(Step(send_errno, records, bench.rows()))

    for request in scenario.set_up:
        seen(bench.send(By.OWNER, request))
    bench.arrive(packets(1, scenario.packets), mark=scenario.mark)
    seen()
    for request in scenario.requests:
        seen(bench.send(scenario.by, request))
    bench.arrive(packets(scenario.packets + 1, scenario.late), mark=scenario.mark)
    seen()
    return Outcome(tuple(steps), bench.delivered())
