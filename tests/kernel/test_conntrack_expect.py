"""What a kernel makes of each member of an expectation: as its own list tells, and as it acts."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from trionfq import (
    ConntrackDirection,
    ConntrackInfo,
    ConntrackStatus,
    Expectation,
    ExpectationNat,
    Verdict,
)
from trionfq._verdict import Decision, decision
from trionfq.schema import Attr, Value, attr
from trionfq.schema.conntrack import CTA_EXPECT, CTA_EXPECT_NAT

from ._connections import Stream, Talk, asked, connection, queue_all, track, tracked_queue
from ._live import PATIENCE_S, PORT, take
from .harness import Namespace, Pair, queue_rule, rule
from .test_conntrack import LOCAL, helped, in_the_model, opened, sent

__all__ = ["helped"]

pytestmark = [pytest.mark.usefixtures("one_cpu"), pytest.mark.needs_kernel("conntrack-glue")]

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
NETLINK_NETFILTER, NLMSG_DONE = 12, 3
REQUEST, DUMP = 1, 0x300
EXPECT_GET = 2 << 8 | 1
TUPLE, CLASS, NAT, FUNCTION = 2, 9, 10, 11
NAT_DIR, NAT_TUPLE = 1, 2
TUPLE_IP, TUPLE_PROTO = 1, 2
V4_SOURCE = 1
SOURCE_PORT, DESTINATION_PORT = 2, 3


def members(data: bytes) -> dict[int, bytes]:
    """Attributes by number."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, at)
        found[number & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and attributes of each message of a datagram."""
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        yield kind, data[at + 20 : at + length]
        at += (length + 3) & ~3


def expectations(ns: Namespace) -> list[dict[int, bytes]]:
    """What the kernel expects in a namespace, as conntrack's own subsystem lists it."""
    found: list[dict[int, bytes]] = []
    request = struct.pack("=IHHII4x", 20, EXPECT_GET, REQUEST | DUMP, 1, 0)
    with ns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
        asking.settimeout(PATIENCE_S)
        asking.send(request)
        while True:
            for kind, attributes in messages(asking.recv(1 << 16)):
                if kind == NLMSG_DONE:
                    return found
                found.append(members(attributes))


def destination_port(listed: dict[int, bytes]) -> int:
    """Where an expectation of the list goes to."""
    proto = members(members(listed[TUPLE])[TUPLE_PROTO])
    return int.from_bytes(proto[DESTINATION_PORT])


@pytest.fixture
def telephony(ns: Namespace) -> Namespace:
    """A namespace whose UDP conversations have the helper with four classes of expectations."""
    track(ns)
    rule(ns, "OUTPUT", f"-p udp --dport {PORT} -j CT --helper sip", table="raw")
    queue_all(ns, f"-p udp -m multiport --ports {PORT}")
    return ns


async def test_an_expectation_is_of_a_class_of_its_helper(telephony: Namespace) -> None:
    """Of four, from 0 to 3, each with its own limit; with a fifth the kernel expects nothing."""
    talk = Talk(telephony)
    async with tracked_queue(telephony) as queue:
        assert connection(await asked(queue, talk)).helper == "sip"
        # The limit of class 0 is one, so that the last takes the place of the one before it.
        for port, expect_class in ((4001, 3), (4002, 4), (4003, 0), (4004, 0)):
            expect = Expectation(
                protocol=17,
                destination=LOCAL,
                destination_port=port,
                expect_class=expect_class,
            )
            await asked(queue, talk, expect=expect)
        listed = {destination_port(each): each[CLASS] for each in expectations(telephony)}
    assert listed == {4001: struct.pack("!I", 3), 4004: struct.pack("!I", 0)}


async def test_an_expected_connection_has_the_helper_that_was_named(helped: Pair) -> None:
    """Or none; and is not expected with one that the kernel does not know."""
    queue_rule(helped.a, "INPUT", "-p tcp --syn --dport 4242:4244")
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    helpers, states = [], []
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        for port, helper in ((4242, "irc"), (4243, None), (4244, "unknown")):
            expect = Expectation(
                protocol=6,
                destination=ip_address(helped.a4),
                destination_port=port,
                helper=helper,
            )
            await sent(queue, stream, b"x", expect=expect)
            caller = helped.b.socket(socket.AF_INET, socket.SOCK_STREAM)
            caller.setblocking(False)
            caller.connect_ex((helped.a4, port))
            [packet] = await take(queue, 1)
            packet.drop()
            await trio.lowlevel.checkpoint()
            caller.close()
            helpers.append(connection(packet).helper)
            states.append(packet.ct_info)
    stream.close()
    assert helpers == ["irc", None, None]
    assert states == [ConntrackInfo.RELATED, ConntrackInfo.RELATED, ConntrackInfo.NEW]


async def test_an_expected_connection_is_translated_as_its_master(helped: Pair) -> None:
    """It is announced for port 4242, and comes out at port 5353 of the side that began."""
    rule(helped.a, "PREROUTING", "-p udp --dport 9", table="nat")
    queue_rule(helped.a, "INPUT", "-p udp -m multiport --dports 4242,5353")
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    receiver = helped.a.udp(helped.a4, 5353)
    receiver.settimeout(PATIENCE_S)
    sender = helped.b.udp(helped.b4)
    address = ip_address("192.0.2.7")
    expect = Expectation(
        protocol=17,
        destination=ip_address(helped.a4),
        destination_port=4242,
        function="nat-follow-master",
        nat=ExpectationNat(direction=ConntrackDirection.REPLY, port=5353, address=address),
    )
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        master = connection(await sent(queue, stream, b"x", expect=expect))
        [listed] = expectations(helped.a)
        sender.sendto(b"translated", (helped.a4, 4242))
        [packet] = await take(queue, 1)
        packet.accept()
        await trio.lowlevel.checkpoint()
        assert receiver.recv(100) == b"translated"
    stream.close()
    assert listed[FUNCTION] == b"nat-follow-master\0"
    nat = members(listed[NAT])
    assert nat[NAT_DIR] == struct.pack("!I", 1)
    to = members(nat[NAT_TUPLE])
    assert members(to[TUPLE_IP])[V4_SOURCE] == address.packed
    assert members(to[TUPLE_PROTO])[SOURCE_PORT] == struct.pack("!H", 5353)
    told = connection(packet)
    assert packet.ct_info is ConntrackInfo.RELATED
    assert told.master == master.original
    assert ConntrackStatus.DST_NAT in told.status
    assert (told.original.destination_port, told.reply.source_port) == (4242, 5353)


FOLLOWS = {
    "function": "nat-follow-master",
    "nat": ExpectationNat(direction=ConntrackDirection.REPLY, port=1),
}


def with_member(told: Decision, name: str, value: Value) -> Decision:
    """A verdict with another member in its expectation, past what is refused here."""
    connection, (_, expectation, flags) = told.attributes
    assert isinstance(expectation, tuple)
    new = attr(CTA_EXPECT, name, value)
    kept = tuple(each for each in expectation if each.number != new.number)
    changed = Attr(told.attributes[1].number, (*kept, new), flags)
    return told._replace(attributes=(connection, changed))


async def test_the_kernel_model_expects_what_the_kernel_does(helped: Pair) -> None:
    """With each member that the kernel dislikes it says success, and expects nothing."""
    nowhere = (attr(CTA_EXPECT_NAT, "dir", 1),)
    beyond = (attr(CTA_EXPECT_NAT, "dir", 2),)
    cases: list[tuple[dict[str, Any], str, Value]] = [
        ({}, "class", 0),
        ({}, "class", 1),
        ({}, "help_name", b"sip\0"),
        ({}, "help_name", b"irc\0"),
        ({}, "help_name", b"ftp\0"),
        ({}, "help_name", b"unknown\0"),
        (FOLLOWS, "class", 0),
        (FOLLOWS, "fn", b"unknown\0"),
        (FOLLOWS, "nat", nowhere),
        ({}, "nat", beyond),
    ]
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    in_kernel, in_model = [], []
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        for port, (values, name, value) in enumerate(cases, start=5000):
            expect = Expectation(
                protocol=17,
                destination=ip_address(helped.a4),
                destination_port=port,
                **values,
            )
            told = with_member(decision(Verdict.ACCEPT, {"expect": expect}), name, value)
            await stream.client.send(b"x")
            [packet] = await take(queue, 1)
            in_model.append(in_the_model(packet, told).expect is not None)
            packet.settle(told)
            await trio.lowlevel.checkpoint()
            # Each takes the place of the one before, for the limit is one.
            in_kernel.append([*map(destination_port, expectations(helped.a))] == [port])
    stream.close()
    assert in_kernel == in_model
    taken = [True, False, True, False, False, False, True, False, False, False]
    assert in_kernel == taken
