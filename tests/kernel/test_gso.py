"""Packets that the kernel has not segmented yet, looked at and rewritten whole."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from trionfq import LocalProtocolError, Packet, QueueFlags, open_queue
from trionfq.schema.nfqueue import SkbInfo

from ._live import LIMIT_S, PORT, Udp, data_of, take, with_data
from .harness import Forwarding, Namespace, Pair, atcp_transfer, queue_rule

UDP_SEGMENT = 103  # linux/udp.h
MTU = 1500
TCP = "-p tcp"
UDP = f"-p udp --dport {PORT}"
SENT = b"a" * 1_000_000
SLOW_TCP = pytest.mark.not_in_guest("TCP that is so slow makes short packets of few segments")


def segment_of(packet: Packet) -> tuple[bytes, bytes]:
    """A TCP packet's headers, and its data."""
    payload = packet.payload
    offset = packet.ip.transport_offset
    assert offset is not None
    end = offset + (payload[offset + 12] >> 4) * 4
    return payload[:end], payload[end:]


def is_gso(packet: Packet) -> bool:
    return bool(packet.skb_info & SkbInfo.GSO)


async def transfer(
    place: Namespace,
    ends: tuple[Namespace, Namespace, str],
    handle: Callable[[Packet], object],
) -> bytes:
    """What arrives of a transfer whose packets a handler decides."""
    async with (
        open_queue(0, namespace=place.name, flags=QueueFlags.GSO) as queue,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(queue.serve, handle)
        received = await atcp_transfer(*ends, SENT, timeout_s=LIMIT_S)
        nursery.cancel_scope.cancel()
    return received


# --- TCP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["OUTPUT", "INPUT"])
@SLOW_TCP
async def test_a_tcp_packet_longer_than_the_mtu_is_rewritten_whole(pair: Pair, hook: str) -> None:
    place = pair.a if hook == "OUTPUT" else pair.b
    queue_rule(place, hook, TCP)
    lengths: list[int] = []

    def rewrite(packet: Packet) -> None:
        headers, data = segment_of(packet)
        if data:
            if is_gso(packet):
                lengths.append(packet.original_length)
            assert packet.set_payload(headers + data.replace(b"a", b"b")) == ()
        packet.accept()

    received = await transfer(place, (pair.a, pair.b, pair.b4), rewrite)
    assert received == SENT.replace(b"a", b"b")
    assert max(lengths) > 10 * MTU
    assert pair.b.counters()["TcpInCsumErrors"] == 0


@SLOW_TCP
async def test_a_forwarded_one_is_rewritten_whole(forwarding: Forwarding) -> None:
    queue_rule(forwarding.router, "FORWARD", TCP)
    lengths: list[int] = []

    def rewrite(packet: Packet) -> None:
        headers, data = segment_of(packet)
        if data:
            if is_gso(packet):
                lengths.append(packet.original_length)
            packet.payload = headers + data.replace(b"a", b"b")
        packet.accept()

    ends = (forwarding.a, forwarding.b, forwarding.b4)
    assert await transfer(forwarding.router, ends, rewrite) == SENT.replace(b"a", b"b")
    assert max(lengths) > 10 * MTU
    assert forwarding.b.counters()["TcpInCsumErrors"] == 0


async def test_a_tcp_packet_that_was_shortened_is_segmented_as_it_is_now(pair: Pair) -> None:
    """What was cut off, TCP sends again: nothing of the rest is lost or damaged."""
    queue_rule(pair.a, "OUTPUT", TCP)
    cut: list[int] = []

    def shorten(packet: Packet) -> None:
        headers, data = segment_of(packet)
        if is_gso(packet) and len(cut) < 5:
            cut.append(len(data))
            packet.payload = headers + data[: -MTU // 2]
        packet.accept()

    assert await transfer(pair.a, (pair.a, pair.b, pair.b4), shorten) == SENT
    assert len(cut) == 5
    assert pair.b.counters()["TcpInCsumErrors"] == 0


@SLOW_TCP
async def test_one_that_cannot_be_copied_whole_is_not_rewritten(ns: Namespace) -> None:
    """Packets of the loopback device are longer than the 65,531 bytes that a message holds."""
    queue_rule(ns, "OUTPUT", TCP)
    refused: list[int] = []

    def rewrite(packet: Packet) -> None:
        if packet.truncated:
            with pytest.raises(LocalProtocolError, match="copied only in part"):
                packet.payload = packet.payload
            assert not packet.decided
            refused.append(packet.original_length)
        packet.accept()

    assert await transfer(ns, (ns, ns, "127.0.0.1"), rewrite) == SENT
    assert max(refused) > 65_531


# --- UDP ------------------------------------------------------------------------------------------


@contextmanager
def segmenting(pair: Pair, octets: int) -> Iterator[Udp]:
    """A sender whose datagrams the kernel cuts into many, of this length each."""
    udp = Udp(pair.a, pair.b, pair.b4)
    try:
        udp.sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, octets)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        pytest.skip("this kernel has no UDP_SEGMENT (Linux 4.18)")
    yield udp


@pytest.mark.parametrize("change", [0, 500, -1000])
async def test_a_udp_packet_of_many_is_not_rewritten(pair: Pair, change: int) -> None:
    """The kernel makes its segments' checksums from what the field holds, not from the data."""
    queue_rule(pair.a, "OUTPUT", UDP)
    with segmenting(pair, 1000) as udp:
        async with open_queue(0, namespace=pair.a.name, flags=QueueFlags.GSO) as queue:
            udp.send(bytes(5000))
            [packet] = await take(queue, 1)
            assert is_gso(packet)
            assert data_of(packet) == bytes(5000)
            with pytest.raises(LocalProtocolError, match=r"without QueueFlags\.GSO"):
                packet.accept(payload=with_data(packet, b"x" * (5000 + change)))
            assert not packet.decided
            packet.accept()
            assert await udp.receive(5) == [bytes(1000)] * 5
    assert pair.b.counters()["UdpInCsumErrors"] == 0


@pytest.mark.parametrize("change", [0, 500, -1000])
@pytest.mark.not_in_guest("6.1 brings it to the receiver whole, who cannot cut it: UdpInErrors")
async def test_what_a_program_repairs_itself_is_segmented_as_it_says(
    pair: Pair, change: int
) -> None:
    queue_rule(pair.a, "OUTPUT", UDP)
    new = os.urandom(5000 + change)
    with segmenting(pair, 1000) as udp:
        async with open_queue(0, namespace=pair.a.name, flags=QueueFlags.GSO) as queue:
            udp.send(bytes(5000))
            [packet] = await take(queue, 1)
            packet.accept(payload=with_pseudo_sum(with_data(packet, new)), repair=False)
            pieces = [new[start : start + 1000] for start in range(0, len(new), 1000)]
            assert await udp.receive(len(pieces)) == pieces


def with_pseudo_sum(payload: bytes) -> bytes:
    """IPv4 and UDP with right lengths, and the pseudo header's sum as UDP's checksum."""
    packet = bytearray(payload)
    length = len(packet) - 20
    packet[24:26] = length.to_bytes(2, "big")
    packet[26:28] = checksum_of(packet[12:20] + struct.pack("!HH", socket.IPPROTO_UDP, length))
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = (0xFFFF - int.from_bytes(checksum_of(packet[:20]))).to_bytes(2, "big")
    return bytes(packet)


def checksum_of(data: bytes) -> bytes:
    """The ones' complement sum, not complemented."""
    return (sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF).to_bytes(2, "big")


async def test_without_the_flag_each_segment_is_a_packet(pair: Pair) -> None:
    queue_rule(pair.a, "OUTPUT", UDP)
    with segmenting(pair, 1000) as udp:
        async with open_queue(0, namespace=pair.a.name) as queue:
            udp.send(bytes(5000))
            packets = await take(queue, 5)
            for number, packet in enumerate(packets):
                assert not is_gso(packet)
                packet.accept(payload=with_data(packet, bytes([number]) * (10 * number + 1)))
            wanted = [bytes([number]) * (10 * number + 1) for number in range(5)]
            assert await udp.receive(5) == wanted
