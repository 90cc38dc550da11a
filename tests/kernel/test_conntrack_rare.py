"""What a kernel tells of a connection only after some preparation: an end, a helper's own data."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
import trio

from trionfq import ConntrackInfo, ConntrackStatus, Expectation, open_queue

from ._connections import Stream, Talk, asked, connection, proxied, queue_all, track, tracked_queue
from ._live import PORT, take
from .harness import Namespace, Pair, eventually_sync, queue_rule, rule
from .test_conntrack import opened, sent

pytestmark = [pytest.mark.usefixtures("one_cpu"), pytest.mark.needs_kernel("conntrack-glue")]

UDP = f"-p udp -m multiport --ports {PORT}"

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h and nfnetlink_cthelper.h
NETLINK_NETFILTER = 12
REQUEST, ACK, CREATE = 1, 4, 0x400
CONNTRACK_DELETE = 1 << 8 | 2
HELPER_NEW, HELPER_DELETE = 9 << 8 | 0, 9 << 8 | 2
HELPER_NAME, HELPER_TUPLE, HELPER_POLICY, HELPER_DATA_LENGTH = 1, 2, 4, 5
EBUSY = 16


def attribute(number: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, number) + value + bytes(-length % 4)


def asked_of_netfilter(ns: Namespace, kind: int, attributes: bytes = b"", flags: int = 0) -> int:
    """A request of another subsystem; the error number of its answer."""
    body = bytes(4) + attributes
    request = struct.pack("=IHHII", 16 + len(body), kind, REQUEST | ACK | flags, 1, 0) + body
    with ns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
        asking.send(request)
        (error,) = struct.unpack_from("=i", asking.recv(1 << 16), 16)
    return -int(error)


async def test_a_connection_that_ended_while_its_packet_waited_tells_when(ns: Namespace) -> None:
    track(ns)
    ns.sysctl("net.netfilter.nf_conntrack_timestamp", 1)
    queue_all(ns, UDP)
    talk = Talk(ns)
    async with tracked_queue(ns, 0) as queue, tracked_queue(ns, 1) as other:
        first = await asked(queue, talk)
        assert connection(first).stop_ns is None
        talk.ask()
        [packet] = await take(queue, 1)
        assert connection(packet).stop_ns is None
        before = time.time_ns()
        assert asked_of_netfilter(ns, CONNTRACK_DELETE) == 0  # all of the namespace
        after = time.time_ns()
        packet.requeue(1)
        [packet] = await take(other, 1)
        packet.drop()
    told = connection(packet)
    assert told.stop_ns is not None
    assert told.start_ns is not None
    assert told.start_ns < before <= told.stop_ns <= after
    assert ConntrackStatus.DYING in told.status


async def test_an_expected_connection_over_ipv6(pair: Pair) -> None:
    host = pair.a
    track(host, family=6)
    rule(host, "OUTPUT", "-p tcp --dport 21 -j CT --helper ftp", table="raw", family=6)
    queue_rule(host, "OUTPUT", "-p tcp --dport 21", family=6)
    queue_rule(host, "INPUT", "-p udp --dport 4242", family=6)
    stream = Stream.between(host, pair.b, pair.b6, 21)
    sender = pair.b.udp(pair.b6)
    expect = Expectation(protocol=17, destination=ip_address(pair.a6), destination_port=4242)
    async with tracked_queue(host) as queue:
        await opened(queue, stream)
        master = connection(await sent(queue, stream, b"x", expect=expect))
        sender.sendto(b"expected", (pair.a6, 4242))
        [packet] = await take(queue, 1)
        packet.drop()
        assert packet.ct_info is ConntrackInfo.RELATED
        assert connection(packet).master == master.original
    stream.close()


def timestamps(payload: bytes) -> tuple[int, int]:
    """TSval and TSecr of a TCP segment over IPv4 without options (RFC 7323, 3.2)."""
    options = payload[40 : 20 + (payload[32] >> 4) * 4]
    while options[0] != 8:
        options = options[1 if options[0] == 1 else options[1] :]
    value, echo = struct.unpack_from("!II", options, 2)
    return value, echo


async def test_a_proxied_connection_tells_its_timestamps(pair: Pair) -> None:
    """SYNPROXY remembers its own first one, and how far the server's are away from it."""
    host = pair.b
    to_server = proxied(host, pair.b_device)
    queue_rule(host, "INPUT", f"{to_server} -i lo --syn")
    queue_rule(host, "INPUT", f"{to_server} --tcp-flags PSH PSH")
    queue_rule(host, "OUTPUT", f"-p tcp --sport {PORT} --tcp-flags SYN,ACK SYN,ACK", queue=1)
    stream = Stream.between(pair.a, host, pair.b4, PORT)
    async with tracked_queue(host) as queue, open_queue(1, namespace=host.name) as answers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.open)
            for source in (answers, queue, answers):  # the proxy's own, its SYN, the server's
                [packet] = await take(source, 1)
                packet.accept()
                if source is queue:
                    first = packet
        await stream.client.send(b"x")
        [data] = await take(queue, 1)
        data.accept()
    stream.close()
    early, late = connection(first).synproxy, connection(data).synproxy
    assert early is not None
    assert late is not None
    assert early.its == late.its == timestamps(first.payload)[1] != 0
    servers, _ = timestamps(packet.payload)
    assert (early.tsoff, late.tsoff) == (0, (servers - late.its) % (1 << 32))


HELPER = b"trionfq-test\0"
DATA_BYTES = 16


@pytest.fixture
def helper_in_user_space(ns: Namespace) -> Iterator[Namespace]:
    """A namespace whose UDP conversations have a helper that belongs to a program.

    It is not enabled, so that the kernel queues nothing for it by itself.
    """
    family_and_protocol = attribute(1, struct.pack("!H", 2)) + attribute(2, bytes([17]))
    policy = attribute(1, b"any\0") + attribute(2, struct.pack("!I", 1))
    policy += attribute(3, struct.pack("!I", 30))
    name = attribute(HELPER_NAME, HELPER)
    wanted = name + attribute(HELPER_TUPLE, family_and_protocol)
    wanted += attribute(HELPER_POLICY, attribute(1, struct.pack("!I", 1)) + attribute(2, policy))
    wanted += attribute(HELPER_DATA_LENGTH, struct.pack("!I", DATA_BYTES))
    assert asked_of_netfilter(ns, HELPER_NEW, wanted, CREATE) == 0
    try:
        track(ns)
        name_in_rule = HELPER.rstrip(b"\0").decode()
        rule(ns, "OUTPUT", f"-p udp --dport {PORT} -j CT --helper {name_in_rule}", table="raw")
        queue_all(ns, UDP)
        yield ns
    finally:
        ns.run(["iptables", "-w", "-t", "raw", "-F"])
        # A rule that is gone lets go of its helper a little later.
        eventually_sync(
            "the helper is free",
            lambda: asked_of_netfilter(ns, HELPER_DELETE, name) != EBUSY,
        )


@pytest.mark.needs_kernel("user-helper")
async def test_a_helper_in_user_space_keeps_its_own_data(helper_in_user_space: Namespace) -> None:
    """A verdict may bring new data: so a helper that reads along by a queue keeps its state."""
    ns = helper_in_user_space
    talk = Talk(ns)
    data = bytes(range(1, DATA_BYTES + 1))
    async with tracked_queue(ns) as queue:
        talk.ask()
        [packet] = await take(queue, 1)
        told = connection(packet)
        assert told.helper == HELPER.rstrip(b"\0").decode()
        assert told.helper_info == bytes(DATA_BYTES)
        packet.accept(ct_helper=told.helper, ct_helper_info=data)
        await trio.lowlevel.checkpoint()
        assert connection(await asked(queue, talk)).helper_info == data
