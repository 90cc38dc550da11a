"""Rewritten packets reach a socket at the other end, which takes none with a wrong sum or length.

Each is rewritten without repair, too, where the other end then has to refuse it: so the repair is
what lets it through.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest
import trio

from trionfq import Packet, QueueFlags, SkbInfo, Unfixed, open_queue

from ._live import LIMIT_S, PATIENCE_S, PORT, take
from .harness import Forwarding, Namespace, Pair, drain, queue_rule, receive

OLD = b"old text"
NEW = b"a new text, and a longer one"
SAME_SIZE = b"new text"
NO_FLAGS = QueueFlags(0)

UDP_LITE = socket.IPPROTO_UDPLITE
SCTP = socket.IPPROTO_SCTP
UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV = 10, 11  # linux/udp.h
UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX = 101, 102  # linux/udp.h
SO_NO_CHECK = 11  # asm-generic/socket.h

each_family = pytest.mark.parametrize("family", [4, 6])


def made(namespace: Namespace, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of a namespace, or a skip where its kernel has no such protocol."""
    try:
        found = namespace.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], kind, protocol)
    except OSError as error:
        pytest.skip(f"this kernel has no protocol {protocol}: {error}")
    found.settimeout(PATIENCE_S)
    return found


class Datagrams:
    """A sender in one namespace, a receiver in another."""

    def __init__(
        self, sender: Namespace, receiver: Namespace, address: str, protocol: int = 0
    ) -> None:
        family = 6 if ":" in address else 4
        self.sender = made(sender, family, socket.SOCK_DGRAM, protocol)
        self.receiver = made(receiver, family, socket.SOCK_DGRAM, protocol)
        self.destination = (address, PORT)
        self.receiver.bind(self.destination)

    def send(self, data: bytes = b"to be rewritten: " + OLD) -> None:
        self.sender.sendto(data, self.destination)


def replaced(packet: Packet, new: bytes = NEW) -> bytes:
    assert OLD in packet.payload
    return packet.payload.replace(OLD, new)


async def rewritten_once(
    place: Namespace,
    send: Callable[[], object],
    arrived: socket.socket,
    *,
    flags: QueueFlags = NO_FLAGS,
    new: bytes = NEW,
    unfixed: tuple[Unfixed, ...] = (),
    refused: bool = True,
) -> Packet:
    """Rewrite a packet without repair, which must not arrive, and then one that must."""
    async with open_queue(0, namespace=place.name, flags=flags) as queue:
        if refused:
            send()
            [packet] = await take(queue, 1)
            packet.accept(payload=replaced(packet, new), repair=False)
        send()
        [packet] = await take(queue, 1)
        assert packet.set_payload(replaced(packet, new)) == unfixed
        packet.accept()
        data = await receive(arrived, timeout_s=LIMIT_S)
        assert new in data
        assert OLD not in data
        assert drain(arrived) == []
    return packet


def address(net: Pair | Forwarding, family: int) -> str:
    return net.b4 if family == 4 else net.b6


# --- transports -----------------------------------------------------------------------------------


@each_family
async def test_udp(pair: Pair, family: int) -> None:
    queue_rule(pair.a, "OUTPUT", "-p udp", family=family)
    udp = Datagrams(pair.a, pair.b, address(pair, family))
    await rewritten_once(pair.a, udp.send, udp.receiver)
    names = {4: "UdpInCsumErrors", 6: "Udp6InErrors"}
    assert pair.b.counters()[names[family]] == 1  # the one that was not repaired


@each_family
@pytest.mark.parametrize("data", [b"", b"odd", NEW])
async def test_data_are_replaced_in_their_transport(pair: Pair, family: int, data: bytes) -> None:
    queue_rule(pair.a, "OUTPUT", "-p udp", family=family)
    udp = Datagrams(pair.a, pair.b, address(pair, family))
    async with open_queue(0, namespace=pair.a.name) as queue:
        udp.send(OLD)
        [packet] = await take(queue, 1)
        assert packet.ip.data == OLD
        packet.payload = packet.ip.with_data(data)
        assert packet.ip.data == data
        assert packet.unfixed == ()
        packet.accept()
        assert await receive(udp.receiver, timeout_s=LIMIT_S) == data


async def test_udp_that_uses_no_checksum_goes_on_without(pair: Pair) -> None:
    queue_rule(pair.a, "OUTPUT", "-p udp")
    udp = Datagrams(pair.a, pair.b, pair.b4)
    udp.sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    packet = await rewritten_once(pair.a, udp.send, udp.receiver, refused=False)
    offset = packet.ip.transport_offset
    assert offset is not None
    assert packet.payload[offset + 6 : offset + 8] == bytes(2)


async def test_udp_over_ipv6_without_checksum_is_left_to_those_who_agreed(pair: Pair) -> None:
    """RFC 6936: only a socket that asks for it takes such datagrams."""
    queue_rule(pair.a, "OUTPUT", "-p udp", family=6)
    udp = Datagrams(pair.a, pair.b, pair.b6)
    udp.sender.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, 1)
    udp.receiver.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
    unfixed = (Unfixed.NO_CHECKSUM,)
    await rewritten_once(pair.a, udp.send, udp.receiver, unfixed=unfixed, refused=False)


@each_family
@pytest.mark.parametrize("coverage", [None, 8, 20])
async def test_udp_lite(pair: Pair, family: int, coverage: int | None) -> None:
    queue_rule(pair.a, "OUTPUT", f"-p {UDP_LITE}", family=family)
    lite = Datagrams(pair.a, pair.b, address(pair, family), UDP_LITE)
    if coverage is not None:
        lite.sender.setsockopt(UDP_LITE, UDPLITE_SEND_CSCOV, coverage)
        lite.receiver.setsockopt(UDP_LITE, UDPLITE_RECV_CSCOV, 8)
    # Where only a part is covered, what was not repaired arrives, cut at the old length.
    await rewritten_once(pair.a, lite.send, lite.receiver, refused=coverage is None)


@each_family
async def test_tcp(pair: Pair, family: int) -> None:
    """Data of the same size, so that sequence numbers stand."""
    listener = made(pair.b, family, socket.SOCK_STREAM)
    listener.bind((address(pair, family), 0))
    listener.listen(1)
    client = made(pair.a, family, socket.SOCK_STREAM)
    client.connect(listener.getsockname()[:2])
    served, _ = listener.accept()
    with served:
        queue_rule(pair.a, "OUTPUT", "-p tcp", family=family)
        async with open_queue(0, namespace=pair.a.name) as queue, trio.open_nursery() as nursery:
            unrepaired: list[Packet] = []

            def decide(packet: Packet) -> None:
                if OLD not in packet.payload:
                    packet.accept()
                elif not unrepaired:
                    unrepaired.append(packet)
                    packet.accept(payload=replaced(packet, SAME_SIZE), repair=False)
                else:  # sent again, since the other end has not taken the first
                    packet.accept(payload=replaced(packet, SAME_SIZE))
                    assert packet.unfixed == ()

            nursery.start_soon(lambda: queue.serve(decide))
            client.sendall(b"to be rewritten: " + OLD)
            assert await receive(served, timeout_s=LIMIT_S) == b"to be rewritten: " + SAME_SIZE
            assert len(unrepaired) == 1
            nursery.cancel_scope.cancel()
    assert pair.b.counters()["TcpInCsumErrors"] == 1


@each_family
async def test_an_echo_request_is_answered(pair: Pair, family: int) -> None:
    match = {4: "-p icmp --icmp-type 8", 6: "-p ipv6-icmp --icmpv6-type 128"}[family]
    queue_rule(pair.a, "OUTPUT", match, family=family)
    protocol = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}[family]
    raw = made(pair.a, family, socket.SOCK_RAW, protocol)
    raw.connect((address(pair, family), 0))

    def send() -> None:
        content = bytes([{4: 8, 6: 128}[family], 0, 0, 0, 0, 9, 0, 1]) + OLD
        if family == 4:
            total = sum(struct.unpack("!8H", content))
            checksum = 0xFFFF - (total % 0xFFFF)
            content = content[:2] + checksum.to_bytes(2, "big") + content[4:]
        raw.send(content)  # for IPv6 the kernel does the checksum

    await rewritten_once(pair.a, send, raw)


async def test_an_icmp_error_changes_and_what_it_quotes_does_not(pair: Pair) -> None:
    queue_rule(pair.b, "OUTPUT", "-p icmp --icmp-type 3/3")
    udp = made(pair.a, 4, socket.SOCK_DGRAM)
    udp.connect((pair.b4, PORT))  # nobody is there
    async with open_queue(0, namespace=pair.b.name) as queue:
        udp.send(OLD)
        [packet] = await take(queue, 1)
        quoted = packet.payload[28:]
        # "Port unreachable" becomes "host unreachable".
        assert packet.set_payload(packet.payload[:21] + b"\1" + packet.payload[22:]) == ()
        assert packet.payload[28:] == quoted
        packet.accept()
        udp.setblocking(False)
        udp.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: soft errors are told, too
        udp.send(OLD)
        [packet] = await take(queue, 1)
        packet.payload = packet.payload[:21] + b"\1" + packet.payload[22:]
        packet.accept()
        with pytest.raises(OSError, match="No route to host"):
            await receive(udp, timeout_s=LIMIT_S)
    assert "IcmpInCsumErrors" in pair.a.counters()
    assert pair.a.counters()["IcmpInCsumErrors"] == 0


@pytest.mark.needs_kernel("sctp")
async def test_sctp(pair: Pair) -> None:
    """Where the kernel has it: a chunk whose CRC32c is wrong is sent again, like a lost one."""
    listener = made(pair.b, 4, socket.SOCK_STREAM, SCTP)
    listener.bind((pair.b4, 0))
    listener.listen(1)
    client = made(pair.a, 4, socket.SOCK_STREAM, SCTP)
    client.connect(listener.getsockname())
    served, _ = listener.accept()
    with served:
        queue_rule(pair.a, "OUTPUT", "-p sctp")
        async with open_queue(0, namespace=pair.a.name) as queue, trio.open_nursery() as nursery:

            def decide(packet: Packet) -> None:
                if OLD in packet.payload:
                    packet.payload = replaced(packet, SAME_SIZE)
                    assert packet.unfixed == ()
                packet.accept()

            nursery.start_soon(lambda: queue.serve(decide))
            client.sendall(b"to be rewritten: " + OLD)
            assert await receive(served, timeout_s=LIMIT_S) == b"to be rewritten: " + SAME_SIZE
            nursery.cancel_scope.cancel()


# --- IPv4 options and IPv6 extension headers ------------------------------------------------------


@pytest.fixture
def routed(forwarding: Forwarding) -> Forwarding:
    """A router and a host that follow source routes and segments."""
    for namespace in (forwarding.router, forwarding.b):
        devices = {forwarding.router: ["ra", "rb"], forwarding.b: ["vb"]}[namespace]
        for where in ("all", *devices):
            namespace.sysctl(f"net.ipv4.conf.{where}.accept_source_route", 1)
            namespace.sysctl(f"net.ipv6.conf.{where}.seg6_enabled", 1)
    return forwarding


@pytest.mark.parametrize("chain", ["OUTPUT", "FORWARD", "INPUT"])
@pytest.mark.parametrize("kind", [131, 137], ids=["loose", "strict"])
async def test_a_source_route_names_the_end_wherever_it_is(
    routed: Forwarding, chain: str, kind: int
) -> None:
    place = {"OUTPUT": routed.a, "FORWARD": routed.router, "INPUT": routed.b}[chain]
    queue_rule(place, chain, "-p udp")
    udp = Datagrams(routed.a, routed.b, routed.b4)
    route = bytes([1, kind, 7, 4]) + socket.inet_aton(routed.router_a4)
    udp.sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
    packet = await rewritten_once(place, udp.send, udp.receiver)
    assert packet.payload[0] & 0x0F > 5
    # A router writes the next stop behind its FORWARD hook (ip_forward_options).
    assert packet.ip.destination == {"INPUT": routed.b4}.get(chain, routed.router_a4)


async def test_other_ipv4_options(pair: Pair) -> None:
    queue_rule(pair.a, "OUTPUT", "-p udp")
    udp = Datagrams(pair.a, pair.b, pair.b4)
    record_route = bytes([7, 11, 4]) + bytes(8) + b"\0"
    udp.sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, record_route)
    packet = await rewritten_once(pair.a, udp.send, udp.receiver)
    assert packet.payload[0] & 0x0F == 8


PADDING = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # the kernel fills in the next header


@pytest.mark.parametrize("chain", ["OUTPUT", "FORWARD", "INPUT"])
async def test_a_chain_of_ipv6_options(routed: Forwarding, chain: str) -> None:
    place = {"OUTPUT": routed.a, "FORWARD": routed.router, "INPUT": routed.b}[chain]
    queue_rule(place, chain, "-d fd00:7:2::1", family=6)
    udp = Datagrams(routed.a, routed.b, routed.b6)
    udp.sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, PADDING)
    udp.sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, PADDING)
    packet = await rewritten_once(place, udp.send, udp.receiver)
    assert packet.ip.transport_offset == 40 + 8 + 8


@pytest.mark.parametrize("chain", ["OUTPUT", "INPUT"])
async def test_a_segment_routing_header_names_the_end(routed: Forwarding, chain: str) -> None:
    place = {"OUTPUT": routed.a, "INPUT": routed.b}[chain]
    queue_rule(place, chain, family=6)
    udp = Datagrams(routed.a, routed.b, routed.b6)
    stops = [routed.b6, routed.router_a6]  # the last one first
    listed = b"".join(socket.inet_pton(socket.AF_INET6, stop) for stop in stops)
    header = bytes([0, 2 * len(stops), 4, 1, 1, 0, 0, 0]) + listed
    udp.sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
    packet = await rewritten_once(place, udp.send, udp.receiver)
    assert packet.ip.destination == {"OUTPUT": routed.router_a6, "INPUT": routed.b6}[chain]
    assert packet.ip.transport_offset == 40 + 8 + 32


# --- fragments ------------------------------------------------------------------------------------


@each_family
async def test_a_fragment_keeps_its_part_of_the_checksum(
    forwarding: Forwarding, family: int
) -> None:
    """Two words that change places leave the sum of the whole as it was."""
    net = forwarding
    queue_rule(net.router, "FORWARD", family=family)
    udp = Datagrams(net.a, net.b, address(net, family))
    data = bytes(range(1, 101)) * 20
    async with open_queue(0, namespace=net.router.name) as queue:
        udp.send(data)
        first, second = sorted(await take(queue, 2), key=lambda p: p.ip.fragment_offset or 0)
        assert first.ip.more_fragments
        for packet in (first, second):
            edited = packet.payload[:-4] + packet.payload[-2:] + packet.payload[-4:-2]
            if family == 4:
                edited = edited[:8] + b"\x20" + edited[9:]  # so that the header has to be repaired
            assert packet.set_payload(edited) == (Unfixed.FRAGMENT,)
            packet.accept()
        received = await receive(udp.receiver, timeout_s=LIMIT_S)
    assert received != data
    assert received[-4:] == data[-2:] + data[-4:-2]
    assert sorted(received) == sorted(data)


# --- checksums that the card was to fill in -------------------------------------------------------


@each_family
@pytest.mark.parametrize("device", ["veth", "lo"])
async def test_a_checksum_that_is_not_ready_is_made(pair: Pair, device: str, family: int) -> None:
    there = pair.b if device == "veth" else pair.a
    where = address(pair, family) if device == "veth" else {4: "127.0.0.1", 6: "::1"}[family]
    queue_rule(pair.a, "OUTPUT", "-p udp", family=family)
    udp = Datagrams(pair.a, there, where)
    packet = await rewritten_once(pair.a, udp.send, udp.receiver, flags=QueueFlags.GSO)
    assert packet.skb_info & SkbInfo.CSUMNOTREADY


@each_family
async def test_a_checksum_that_is_not_ready_is_made_though_nothing_else_changes(
    pair: Pair, family: int
) -> None:
    """The kernel takes what comes back for complete (nfqnl_mangle), and asks no card."""
    queue_rule(pair.a, "OUTPUT", "-p udp", family=family)
    udp = Datagrams(pair.a, pair.b, address(pair, family))
    async with open_queue(0, namespace=pair.a.name, flags=QueueFlags.GSO) as queue:
        udp.send(b"lost")
        udp.send(b"kept")
        lost, kept = await take(queue, 2)
        assert kept.skb_info & SkbInfo.CSUMNOTREADY
        lost.accept(payload=lost.payload, repair=False)
        kept.accept(payload=kept.payload)
        assert await receive(udp.receiver, timeout_s=LIMIT_S) == b"kept"
        assert drain(udp.receiver) == []


async def test_a_checksum_that_is_not_ready_inside_a_tunnel_is_told(pair: Pair) -> None:
    """VXLAN: without QueueFlags.GSO the kernel completes the inner checksum before it queues."""
    for here, peer, device, inside in (
        (pair.a, pair.b4, pair.a_device, "10.8.0.1/24"),
        (pair.b, pair.a4, pair.b_device, "10.8.0.2/24"),
    ):
        options = f"type vxlan id 7 remote {peer} dstport 4789 dev {device}"
        try:
            here.run(["ip", "link", "add", "vx", *options.split()])
        except AssertionError as error:
            pytest.skip(f"this kernel has no VXLAN: {error}")
        here.run(["ip", "link", "set", "vx", "up"])
        here.run(["ip", "address", "add", inside, "dev", "vx"])
    queue_rule(pair.a, "OUTPUT", "-p udp --dport 4789 -m string --algo bm --string lookhere")
    listener = made(pair.b, 4, socket.SOCK_STREAM)
    listener.bind(("10.8.0.2", 0))
    listener.listen(1)
    client = made(pair.a, 4, socket.SOCK_STREAM)
    await trio.to_thread.run_sync(client.connect, listener.getsockname())
    served, _ = listener.accept()
    with served:
        async with open_queue(0, namespace=pair.a.name, flags=QueueFlags.GSO) as queue:
            client.sendall(b"lookhere")
            [packet] = await take(queue, 1)
            assert packet.skb_info & SkbInfo.CSUMNOTREADY
            assert Unfixed.INNER_CHECKSUM in packet.set_payload(packet.payload)
            packet.drop()
        async with open_queue(0, namespace=pair.a.name) as queue:
            [packet] = await take(queue, 1)  # TCP sends it again
            assert not packet.skb_info & SkbInfo.CSUMNOTREADY
            assert packet.set_payload(packet.payload) == ()
            packet.accept()
            assert await receive(served, timeout_s=LIMIT_S) == b"lookhere"


# --- objects --------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("package", ["scapy", "dpkt"])
async def test_an_edited_object_arrives(pair: Pair, family: int, package: str) -> None:
    from scapy.layers.inet import UDP
    from scapy.packet import Raw

    queue_rule(pair.a, "OUTPUT", "-p udp", family=family)
    udp = Datagrams(pair.a, pair.b, address(pair, family))
    async with open_queue(0, namespace=pair.a.name) as queue:
        udp.send(OLD)
        [packet] = await take(queue, 1)
        if package == "scapy":
            edited = packet.to_scapy()
            edited[UDP].payload = Raw(NEW)
        else:
            edited = packet.to_dpkt()
            edited.data.data = NEW
        packet.accept(payload=edited)
        assert packet.unfixed == ()
        assert await receive(udp.receiver, timeout_s=LIMIT_S) == NEW
