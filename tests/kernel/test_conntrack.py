"""What a kernel with conntrack in netlink tells of a connection, and what it lets a verdict change.

Every value that is told is one that the test made. What takes more preparation is in
test_conntrack_rare.py; which of CTA_* no kernel sends, and why, is in docs/kernels.md.
"""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio

from trionfq import (
    Conntrack,
    ConntrackDirection,
    ConntrackInfo,
    ConntrackStatus,
    ConntrackTuple,
    DccpRole,
    DccpState,
    Expectation,
    KernelError,
    LocalProtocolError,
    Packet,
    Queue,
    QueueFlags,
    SctpInfo,
    SctpState,
    TcpFlags,
    TcpInfo,
    TcpState,
    Verdict,
    open_queue,
    schema,
)
from trionfq._kernel_model import KernelModel, PacketIn
from trionfq._kernel_records import Changes as ModelChanges
from trionfq._verdict import Decision, decision
from trionfq._verdict_writer import VerdictWriter
from trionfq.schema.conntrack import CTA
from trionfq.testing import make_bind

from ._connections import (
    Stream,
    Talk,
    answered,
    asked,
    connection,
    proxied,
    queue_all,
    track,
    tracked_queue,
)
from ._live import PATIENCE_S, PORT, take
from .harness import Namespace, Pair, queue_rule, rule, tool

pytestmark = [pytest.mark.usefixtures("one_cpu"), pytest.mark.needs_kernel("conntrack-glue")]

UDP = f"-p udp -m multiport --ports {PORT},{PORT + 1}"
LOCAL = ip_address("127.0.0.1")
IPPROTO_SCTP, IPPROTO_DCCP = 132, 33
Status = ConntrackStatus


@pytest.fixture
def lo(ns: Namespace) -> Namespace:
    """A namespace with conntrack whose UDP conversations meet queue 0."""
    track(ns)
    queue_all(ns, UDP)
    return ns


# --- what is told ---------------------------------------------------------------------------------


async def test_a_new_connection_and_its_answer(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        first = await asked(queue, talk)
        reply = await answered(queue, talk)
        second = await asked(queue, talk)
    assert [packet.ct_info for packet in (first, reply, second)] == [
        ConntrackInfo.NEW,
        ConntrackInfo.ESTABLISHED_REPLY,
        ConntrackInfo.ESTABLISHED,
    ]
    info = reply.ct_info
    assert info is not None
    assert (info.direction, info.is_reply) == (ConntrackDirection.REPLY, True)
    new = connection(first)
    there = ConntrackTuple(17, LOCAL, LOCAL, talk.client_port, PORT)
    back = ConntrackTuple(17, LOCAL, LOCAL, PORT, talk.client_port)
    assert (new.original, new.reply, new.master) == (there, back, None)
    assert (new.status, new.timeout_s) == (Status(0), 30)
    assert (new.zone, new.mark, new.labels, new.helper) == (0, 0, 0, None)
    assert (new.protocol_info, new.counters_original, new.start_ns, new.secctx) == (None,) * 4
    assert (new.seq_adjustment_original, new.synproxy) == (None, None)
    assert new.attributes == first.ct
    later = [connection(reply), connection(second)]
    assert {new.id, *(each.id for each in later)} == {new.id}
    assert later[0].status == Status.CONFIRMED | Status.SEEN_REPLY | _no_nat(later[0])
    assert all(each.original == there and each.reply == back for each in later)
    assert all(0 < (each.timeout_s or 0) <= 120 for each in later)


def _no_nat(found: Conntrack) -> ConntrackStatus:
    """NAT that was looked for and not done, where the module is loaded."""
    return found.status & (Status.SRC_NAT_DONE | Status.DST_NAT_DONE)


async def test_ipv6_addresses(ns: Namespace) -> None:
    track(ns, family=6)
    queue_all(ns, UDP, family=6)
    talk = Talk(ns, "::1")
    async with tracked_queue(ns) as queue:
        packet = await asked(queue, talk)
    here = ip_address("::1")
    assert connection(packet).original == ConntrackTuple(17, here, here, talk.client_port, PORT)


@pytest.mark.parametrize(("family", "address"), [(4, "127.0.0.1"), (6, "::1")])
async def test_a_ping_tells_type_code_and_identifier(
    ns: Namespace, family: int, address: str
) -> None:
    track(ns, family=family)
    icmp = "icmp" if family == 4 else "icmpv6"
    echo = "--icmp-type echo-request" if family == 4 else "--icmpv6-type echo-request"
    queue_all(ns, f"-p {icmp} {echo}", family=family)
    request, protocol = (8, 1) if family == 4 else (128, 58)
    raw = ns.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_RAW, protocol)
    echo_request = struct.pack("!BBHHH", request, 0, 0, 0x1234, 1)
    if family == 4:
        echo_request = struct.pack("!BBHHH", request, 0, 0xFFFF - 0x0800 - 0x1234 - 1, 0x1234, 1)
    async with tracked_queue(ns) as queue:
        raw.sendto(echo_request, (address, 0))
        [packet] = await take(queue, 1)
        packet.accept()
    told = connection(packet)
    here = ip_address(address)
    expected = ConntrackTuple(protocol, here, here, None, None, request, 0, 0x1234)
    assert told.original == expected
    assert told.reply == expected._replace(icmp_type=0 if family == 4 else 129)


async def test_zones(ns: Namespace) -> None:
    """One for both directions, one for the original only, one for the reply only."""
    track(ns)
    for port, option in ((7001, "--zone 7"), (7002, "--zone-orig 8"), (7003, "--zone-reply 9")):
        rule(ns, "OUTPUT", f"-p udp --dport {port} -j CT {option}", table="raw")
    queue_all(ns, "-p udp --dport 7001:7003")
    seen = []
    async with tracked_queue(ns) as queue:
        for port in (7001, 7002, 7003):
            packet = await asked(queue, Talk(ns, port=port))
            told = connection(packet)
            seen.append((told.zone, told.original.zone, told.reply.zone))
    assert seen == [(7, 0, 0), (0, 8, 0), (0, 0, 9)]


async def test_counters_and_the_time_of_its_beginning(lo: Namespace) -> None:
    lo.sysctl("net.netfilter.nf_conntrack_acct", 1)
    lo.sysctl("net.netfilter.nf_conntrack_timestamp", 1)
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        before = time.time_ns()
        first = await asked(queue, talk)
        assert connection(first).start_ns == 0  # not confirmed
        assert connection(first).start is None
        await answered(queue, talk)
        after = time.time_ns()
        await asked(queue, talk)
        last = connection(await answered(queue, talk))
    # Headers of 28 bytes, and what the packet itself carries is counted before it is queued.
    assert last.counters_original == (2, 2 * (28 + len(b"ask")))
    assert last.counters_reply == (2, 2 * (28 + len(b"answer")))
    assert last.start_ns is not None
    assert before <= last.start_ns <= after
    assert last.start is not None
    assert last.start.timestamp() == pytest.approx(last.start_ns / 1e9, abs=1e-5)
    assert last.stop_ns is None


async def test_nat_shows_in_the_reply_direction(lo: Namespace) -> None:
    rule(lo, "OUTPUT", f"-p udp --dport {PORT} -j DNAT --to 127.0.0.1:{PORT + 1}", table="nat")
    server = lo.udp("127.0.0.1", PORT + 1)
    client = lo.udp("127.0.0.1")
    port = client.getsockname()[1]
    async with tracked_queue(lo) as queue:
        client.sendto(b"x", ("127.0.0.1", PORT))
        [packet] = await take(queue, 1)
        packet.accept()
        await trio.lowlevel.checkpoint()
        server.settimeout(PATIENCE_S)
        assert server.recv(10) == b"x"
    told = connection(packet)
    assert told.original == ConntrackTuple(17, LOCAL, LOCAL, port, PORT)
    assert told.reply == ConntrackTuple(17, LOCAL, LOCAL, PORT + 1, port)
    assert Status.DST_NAT in told.status
    assert Status.DST_NAT_DONE in told.status


async def test_an_icmp_error_is_related_and_goes_back(lo: Namespace) -> None:
    queue_all(lo, "-p icmp")
    client = lo.udp("127.0.0.1")
    async with tracked_queue(lo) as queue:
        client.sendto(b"x", ("127.0.0.1", PORT))  # where nobody listens
        [packet] = await take(queue, 1)
        packet.accept()
        [error] = await take(queue, 1)
        error.accept()
    assert packet.ct_info is ConntrackInfo.NEW
    assert error.ct_info is ConntrackInfo.RELATED_REPLY
    assert error.ct_info.state is ConntrackInfo.RELATED
    assert connection(error).id == connection(packet).id


@asynccontextmanager
async def all_accepted(queue: Queue, into: list[Packet]) -> AsyncIterator[None]:
    """Accept and keep what comes, in the background."""

    async def run() -> None:
        async for packet in queue:
            into.append(packet)
            packet.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield
        nursery.cancel_scope.cancel()


async def test_tcp_tells_its_state(ns: Namespace) -> None:
    track(ns)
    queue_all(ns, f"-p tcp -m multiport --ports {PORT}")
    stream = Stream.between(ns, ns, "127.0.0.1", PORT)
    packets: list[Packet] = []
    async with tracked_queue(ns) as queue, all_accepted(queue, packets):
        await stream.open()
        await stream.client.send(b"x")
        assert stream.accepted is not None
        assert await stream.accepted.recv(1) == b"x"
    stream.close()
    states = [connection(packet).protocol_info for packet in packets[:4]]
    assert [state and state.state for state in states] == [
        TcpState.SYN_SENT,
        TcpState.SYN_RECV,
        TcpState.ESTABLISHED,
        TcpState.ESTABLISHED,
    ]
    last = states[3]
    assert isinstance(last, TcpInfo)
    assert last.window_scale_original
    assert last.window_scale_original == last.window_scale_reply
    assert last.flags_original == (
        TcpFlags.WINDOW_SCALE
        | TcpFlags.SACK_PERM
        | TcpFlags.DATA_UNACKNOWLEDGED
        | TcpFlags.MAXACK_SET
    )
    assert last.flags_reply == last.flags_original & ~TcpFlags.DATA_UNACKNOWLEDGED
    told = connection(packets[3])
    assert Status.ASSURED in told.status
    # Not the five days of an idle connection: data waits for its acknowledgement.
    assert 200 < (told.timeout_s or 0) <= 300


async def test_sctp_tells_its_state_and_tags(ns: Namespace) -> None:
    track(ns)
    queue_all(ns, "-p sctp")
    listening = ns.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP)
    listening.bind(("127.0.0.1", PORT))
    listening.listen()
    client = ns.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP)
    client.setblocking(False)
    packets: list[Packet] = []
    async with tracked_queue(ns) as queue:
        client.connect_ex(("127.0.0.1", PORT))
        for _ in range(4):  # INIT, INIT ACK, COOKIE ECHO, COOKIE ACK
            packets += await take(queue, 1)
            packets[-1].accept()
            await trio.lowlevel.checkpoint()
    told = [connection(packet).protocol_info for packet in packets[:4]]
    assert [each and each.state for each in told] == [
        SctpState.CLOSED,
        SctpState.COOKIE_WAIT,
        SctpState.COOKIE_ECHOED,
        SctpState.ESTABLISHED,
    ]
    # The header's tag is the receiver's own; what it answers with INIT ACK is for the client.
    tags = [struct.unpack_from("!I", packet.payload, 24)[0] for packet in packets[:4]]
    last = told[3]
    assert isinstance(last, SctpInfo)
    assert (last.vtag_original, last.vtag_reply) == (tags[2], tags[3])
    assert connection(packets[0]).original.destination_port == PORT


async def test_dccp_tells_its_state(ns: Namespace) -> None:
    """A DCCP request (RFC 4340, 5.1), sent as raw IP: the protocol itself is not needed."""
    track(ns)
    queue_all(ns, "-p dccp")
    raw = ns.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_DCCP)
    request = struct.pack("!HHBBHBBH", 1111, 2222, 5, 0, 0, 1, 0, 0) + struct.pack("!II", 77, 0)
    # Data offset 5 words, packet type request with 48-bit sequence numbers, checksum of all.
    total = sum(struct.unpack("!10H", request)) + 2 * (0x7F00 + 1) + IPPROTO_DCCP + len(request)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    request = request[:6] + struct.pack("!H", 0xFFFF - total) + request[8:]
    async with tracked_queue(ns) as queue:
        raw.sendto(request, ("127.0.0.1", 0))
        [packet] = await take(queue, 1)
        packet.drop()
    told = connection(packet)
    assert (told.original.source_port, told.original.destination_port) == (1111, 2222)
    assert told.protocol_info == (DccpState.REQUEST, DccpRole.CLIENT, 0)


@pytest.mark.needs_kernel("secmark")
async def test_secctx_is_the_packets_and_the_connections(lo: Namespace) -> None:
    """AppArmor, which Debian starts, knows the label of everything that it does not confine."""
    rule(lo, "OUTPUT", "-j SECMARK --selctx unconfined", table="mangle")
    rule(lo, "OUTPUT", "-j CONNSECMARK --save", table="mangle")
    talk = Talk(lo)
    async with tracked_queue(lo, flags=QueueFlags.SECCTX) as queue:
        packet = await asked(queue, talk)
    assert packet.secctx == b"unconfined"
    assert connection(packet).secctx == b"unconfined"


async def test_a_packet_without_connection_says_so_and_takes_no_change(lo: Namespace) -> None:
    rule(lo, "OUTPUT", f"-p udp --dport {PORT} -j CT --notrack", table="raw")
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        talk.ask()
        [packet] = await take(queue, 1)
        assert (packet.ct_info, packet.conntrack, packet.ct) == (None, None, None)
        with pytest.raises(LocalProtocolError, match="belongs to no connection"):
            packet.accept(connmark=1)
        packet.accept()


async def test_nothing_is_told_without_the_flag(lo: Namespace) -> None:
    talk = Talk(lo)
    async with open_queue(0, namespace=lo.name) as queue:
        packet = await asked(queue, talk)
        assert (packet.ct_info, packet.conntrack) == (None, None)
        talk.ask()
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match=r"flags=QueueFlags\.CONNTRACK"):
            packet.accept(connmark=1)
        packet.accept()


# --- what a verdict changes -----------------------------------------------------------------------


async def test_connmark_and_its_mask(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, connmark=0xFFFF0000)
        first = await answered(queue, talk, connmark=0x12, connmark_mask=0xFF)
        second = await asked(queue, talk, connmark=0, connmark_mask=0xFF000000)
        third = await asked(queue, talk)
    marks = [connection(packet).mark for packet in (first, second, third)]
    assert marks == [0xFFFF0000, 0xFFFF0012, 0x00FF0012]


async def test_connmark_by_packet_id(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        talk.ask()
        [packet] = await take(queue, 1)
        queue.set_verdict(packet.id, Verdict.ACCEPT, connmark=7)
        await trio.lowlevel.checkpoint()
        assert connection(await asked(queue, talk)).mark == 7


async def test_labels_and_their_mask(lo: Namespace) -> None:
    rule(lo, "INPUT", "-m connlabel --label 40")  # from here on connections have room for labels
    talk = Talk(lo)
    top = 1 << 127
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, ct_labels=top | 0b11)
        first = await asked(queue, talk, ct_labels=1 << 64, ct_labels_mask=1 << 64 | 0b1)
        second = await asked(queue, talk, ct_labels=bytes(16))
        third = await asked(queue, talk)
    labels = [connection(packet).labels for packet in (first, second, third)]
    assert labels == [top | 0b11, top | 1 << 64 | 0b10, 0]


async def test_a_label_has_the_number_of_the_rule(lo: Namespace) -> None:
    rule(lo, "OUTPUT", "-m connlabel --label 70 --set", table="mangle")
    async with tracked_queue(lo) as queue:
        packet = await asked(queue, Talk(lo))
    assert connection(packet).labels == 1 << 70


async def test_timeout_until_the_next_packet(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, ct_timeout_s=5_000)
        packet = await answered(queue, talk)
    # The answer has set the usual time anew before it was queued.
    assert (connection(packet).timeout_s or 999) <= 120


async def test_timeout_for_good(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, ct_timeout_s=5_000, ct_status=Status.FIXED_TIMEOUT)
        told = connection(await answered(queue, talk))
    assert Status.FIXED_TIMEOUT in told.status
    assert 4_000 < (told.timeout_s or 0) <= 5_000


async def test_status(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk)
        first = connection(await answered(queue, talk))
        assert Status.ASSURED not in first.status
        # The first answer is not enough for it; the verdict is.
        packet = await asked(queue, talk, ct_status=first.status | Status.ASSURED)
        assert Status.ASSURED not in connection(packet).status
        told = connection(await asked(queue, talk))
        assert Status.ASSURED in told.status


async def test_what_the_kernel_would_ignore_is_refused_and_it_would(lo: Namespace) -> None:
    """Sent past the checks, each of these leaves everything as it was, the mark included."""
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, connmark=1)
        told = connection(await answered(queue, talk))
        for changes in (
            {"ct_status": told.status & ~Status.SEEN_REPLY},
            {"ct_helper": "ftp"},
        ):
            talk.ask()
            [packet] = await take(queue, 1)
            with pytest.raises(LocalProtocolError):
                packet.accept(connmark=2, **changes)
            packet.settle(decision(Verdict.ACCEPT, {"connmark": 2, **changes}))
            await trio.lowlevel.checkpoint()
            assert connection(await asked(queue, talk)).mark == 1
        for bit in (Status.EXPECTED, Status.SRC_NAT, Status.TEMPLATE, Status.OFFLOAD):
            talk.ask()
            [packet] = await take(queue, 1)
            status = connection(packet).status
            with pytest.raises(LocalProtocolError, match=r"IPS_UNCHANGEABLE_MASK"):
                packet.accept(ct_status=status | bit)
            packet.settle(decision(Verdict.ACCEPT, {"ct_status": status | bit}))
            await trio.lowlevel.checkpoint()
            assert bit not in connection(await asked(queue, talk)).status


def in_the_model(packet: Packet, told: Decision) -> ModelChanges:
    """What the kernel model changes by a verdict on a real packet."""
    model = KernelModel(conntrack_glue=True)
    sock = model.open_socket()
    sock.send(make_bind(0, flags=QueueFlags.CONNTRACK))
    [message] = schema.parse(packet.datagram)
    assert isinstance(message, schema.Message)
    [packet_id] = model.enqueue(0, PacketIn.from_message(message, keep_id=True)).ids
    sock.send(VerdictWriter(0).single(packet_id, told))
    [decided] = model.take_decisions()
    return decided.changes


async def test_the_kernel_model_takes_and_ignores_what_the_kernel_does(lo: Namespace) -> None:
    """The mark is the last that is applied, so it tells whether anything before was disliked."""
    mark = CTA.by_name["mark"].number
    talk = Talk(lo)
    taken = []
    async with tracked_queue(lo) as queue:
        await asked(queue, talk)
        status = connection(await answered(queue, talk)).status
        assured = status | Status.ASSURED
        fixed = assured | Status.FIXED_TIMEOUT
        for number, changes in enumerate(
            [
                {},
                {"ct_status": status & ~Status.SEEN_REPLY},
                {"ct_helper": ""},
                {"ct_helper": "ftp"},
                {"ct_status": status | Status.TEMPLATE},
                {"ct_status": assured, "ct_helper": "ftp"},  # the status is taken
                {"ct_status": assured & ~Status.ASSURED},
                {"ct_timeout_s": 900},
                {"ct_status": fixed},
                {"ct_timeout_s": 900},
                {"ct_timeout_s": 900, "ct_status": assured},  # refused at once
                {"ct_status": assured},
                {"ct_timeout_s": 900},
            ],
            start=1,
        ):
            talk.ask()
            [packet] = await take(queue, 1)
            told = decision(Verdict.ACCEPT, {"connmark": number, **changes})
            in_model = in_the_model(packet, told).conntrack or {}
            packet.settle(told)
            await trio.lowlevel.checkpoint()
            after = connection(await asked(queue, talk))
            assert (after.mark == number) is (mark in in_model), changes
            if CTA.by_name["status"].number in in_model:
                new = changes["ct_status"] & ~Status.TEMPLATE
                assert after.status == new
            else:
                assert after.status == connection(packet).status
            taken.append(after.mark == number)
    assert taken == [n not in (2, 4, 6, 7, 10, 11) for n in range(1, 14)]


async def test_a_fixed_timeout_keeps_the_rest_from_changing(lo: Namespace) -> None:
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, ct_status=Status.FIXED_TIMEOUT)
        talk.ask()
        [packet] = await take(queue, 1)
        changes: dict[str, Any] = {"ct_timeout_s": 9, "connmark": 3}
        with pytest.raises(LocalProtocolError, match="FIXED_TIMEOUT"):
            packet.accept(**changes)
        packet.settle(decision(Verdict.ACCEPT, changes))
        await trio.lowlevel.checkpoint()
        told = connection(await asked(queue, talk))
        assert told.mark == 0
        await asked(queue, talk, ct_status=told.status & ~Status.FIXED_TIMEOUT)
        assert Status.FIXED_TIMEOUT not in connection(await asked(queue, talk)).status


# --- helpers, expectations, sequence adjustment ---------------------------------------------------


@pytest.fixture
def helped(pair: Pair) -> Pair:
    """A pair whose host a gives its FTP connections the helper, and queues them."""
    track(pair.a)
    rule(pair.a, "OUTPUT", "-p tcp --dport 21 -j CT --helper ftp", table="raw")
    queue_rule(pair.a, "OUTPUT", "-p tcp --dport 21")
    return pair


async def opened(queue: Queue, stream: Stream) -> None:
    """Connect while its packets are accepted."""
    async with all_accepted(queue, []):
        await stream.open()


async def sent(queue: Queue, stream: Stream, data: bytes, **changes: Any) -> Packet:
    """The packet that carries some bytes, accepted with these changes, and its arrival."""
    await stream.client.send(data)
    while True:
        [packet] = await take(queue, 1)
        if packet.payload.endswith(data):
            break
        packet.accept()
    packet.accept(**changes)
    await trio.lowlevel.checkpoint()
    assert stream.accepted is not None
    with trio.fail_after(PATIENCE_S):
        assert await stream.accepted.recv(100)
    return packet


async def test_a_helper_is_told_and_taken_away(helped: Pair) -> None:
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        first = await sent(queue, stream, b"one", ct_helper="ftp", connmark=1)
        assert connection(first).helper == "ftp"
        assert connection(first).helper_info is None
        second = await sent(queue, stream, b"two", ct_helper="")
        assert (connection(second).helper, connection(second).mark) == ("ftp", 1)
        third = await sent(queue, stream, b"three")
        assert connection(third).helper is None
        await stream.client.send(b"four")
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match="gives an existing connection no helper"):
            packet.accept(ct_helper="ftp")
        packet.accept()
    stream.close()


async def test_an_expected_connection_is_related_to_its_master(helped: Pair) -> None:
    """The helper reads nothing of it: the verdict alone announced it."""
    queue_rule(helped.a, "INPUT", "-p udp --dport 4242")
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    receiver = helped.a.udp(helped.a4, 4242)
    sender = helped.b.udp(helped.b4)
    expect = Expectation(protocol=17, destination=ip_address(helped.a4), destination_port=4242)
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        master = connection(await sent(queue, stream, b"x", expect=expect))
        sender.sendto(b"expected", (helped.a4, 4242))
        [packet] = await take(queue, 1)
        packet.accept()
        assert packet.ct_info is ConntrackInfo.RELATED
        told = connection(packet)
        assert told.master == master.original
        assert Status.EXPECTED in told.status
        assert told.original.source_port == sender.getsockname()[1]
        # It stood for one connection.
        helped.b.udp(helped.b4).sendto(b"another", (helped.a4, 4242))
        [packet] = await take(queue, 1)
        packet.drop()
        assert packet.ct_info is ConntrackInfo.NEW
        with pytest.raises(LocalProtocolError, match="has no helper"):
            await trio.lowlevel.checkpoint()
            helped.b.udp(helped.b4).sendto(b"third", (helped.a4, 4242))
            [packet] = await take(queue, 1)
            packet.accept(expect=expect)
        packet.drop()
    receiver.close()
    stream.close()


async def test_an_expectation_names_whence_and_how_often(helped: Pair) -> None:
    queue_rule(helped.a, "INPUT", "-p udp --dport 4242")
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    right, wrong = helped.b.udp(helped.b4), helped.b.udp(helped.b4)
    expect = Expectation(
        protocol=17,
        source=ip_address(helped.b4),
        source_port=right.getsockname()[1],
        destination=ip_address(helped.a4),
        destination_port=4242,
        permanent=True,
    )
    seen = []
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        await sent(queue, stream, b"x", expect=expect)
        for sender in (wrong, right, right):
            sender.sendto(b"x", (helped.a4, 4242))
            [packet] = await take(queue, 1)
            seen.append(packet.ct_info)
            packet.drop()  # so it is not confirmed, and the next is new again
    stream.close()
    assert seen == [ConntrackInfo.NEW, ConntrackInfo.RELATED, ConntrackInfo.RELATED]


async def test_sequence_numbers_follow_a_payload_that_grew(helped: Pair) -> None:
    """With NAT and a helper the kernel shifts what both sides say from then on."""
    rule(helped.a, "OUTPUT", f"-p tcp --dport 21 -j DNAT --to {helped.b4}:2121", table="nat")
    helped.a.run(["iptables", "-w", "-R", "OUTPUT", "1", "-p", "tcp", "--dport", "2121",
                  "-j", "NFQUEUE", "--queue-num", "0"])  # fmt: skip
    stream = Stream.between(helped.a, helped.b, helped.b4, 21, listen=(helped.b4, 2121))
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        await stream.client.send(b"abc")
        packet = await with_bytes(queue, b"abc")
        longer = packet.payload.replace(b"abc", b"abcdef")
        packet.accept(payload=longer, seq_adjust=True)
        await trio.lowlevel.checkpoint()
        assert stream.accepted is not None
        with trio.fail_after(PATIENCE_S):
            assert await stream.accepted.recv(100) == b"abcdef"
            await stream.client.send(b"ghi")
            packet = await with_bytes(queue, b"ghi")
            packet.accept()
            await trio.lowlevel.checkpoint()
            assert await stream.accepted.recv(100) == b"ghi"
    told = connection(packet)
    assert Status.SEQ_ADJUST in told.status
    adjustment = told.seq_adjustment_original
    assert adjustment is not None
    assert (adjustment.offset_before, adjustment.offset_after) == (0, 3)
    assert adjustment.correction_pos == struct.unpack_from("!I", longer, 24)[0]
    assert told.seq_adjustment_reply == (0, 0, 0)
    stream.close()


async def with_bytes(queue: Queue, data: bytes) -> Packet:
    """The next packet that carries these bytes; others pass."""
    while True:
        [packet] = await take(queue, 1)
        if packet.payload.endswith(data):
            return packet
        packet.accept()
        await trio.lowlevel.checkpoint()


async def test_an_adjustment_without_nat_is_refused(helped: Pair) -> None:
    stream = Stream.between(helped.a, helped.b, helped.b4, 21)
    async with tracked_queue(helped.a) as queue:
        await opened(queue, stream)
        await stream.client.send(b"abc")
        packet = await with_bytes(queue, b"abc")
        with pytest.raises(LocalProtocolError, match="without NAT, with helper ftp"):
            packet.accept(payload=packet.payload + b"d", seq_adjust=True)
        packet.accept(payload=packet.payload, seq_adjust=True)  # as long as before
    stream.close()


async def test_a_proxied_connection_tells_its_numbers(pair: Pair) -> None:
    """SYNPROXY answers the client itself, and then calls the server with what it remembered."""
    host = pair.b
    queue_rule(host, "INPUT", f"{proxied(host, pair.b_device)} -i lo --syn")
    stream = Stream.between(pair.a, host, pair.b4, PORT)
    async with tracked_queue(host) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(stream.open)
        [packet] = await take(queue, 1)
        packet.accept()
        told = connection(packet).synproxy
        assert told is not None
        # It carries the number of its own answer where an acknowledgement would stand.
        assert told.isn == struct.unpack_from("!I", packet.payload, 28)[0] != 0
    stream.close()


# --- a kernel whose conntrack is not in netlink ---------------------------------------------------

GLUE = "nf_conntrack_netlink"


def modprobe(*arguments: str) -> None:
    """Load a module, or with ``-r`` take it away."""
    subprocess.run([tool("modprobe"), *arguments], check=True)


@pytest.fixture
def unloaded() -> Iterator[Callable[[], None]]:
    """A way to take the module away, so that the kernel cannot load it again either."""
    loader = Path("/proc/sys/kernel/modprobe")
    before = loader.read_text()

    def unload() -> None:
        loader.write_text("/bin/false")
        modprobe("-r", GLUE)

    yield unload
    loader.write_text(before)
    modprobe(GLUE)


@pytest.mark.needs_kernel("conntrack-glue-module")
async def test_without_the_module_a_queue_with_the_flag_cannot_be_opened(
    lo: Namespace, unloaded: Callable[[], None]
) -> None:
    """Nothing is left behind; without the flag the queue opens, and takes no connmark."""
    unloaded()
    with pytest.raises(KernelError, match=GLUE) as refused:
        async with tracked_queue(lo):
            pass
    assert refused.value.errno == errno.EOPNOTSUPP
    assert lo.queue_rows() == []
    talk = Talk(lo)
    async with open_queue(0, namespace=lo.name) as queue:
        talk.ask()
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match=GLUE):
            packet.accept(connmark=1)
        packet.accept()


@pytest.mark.needs_kernel("conntrack-glue-module")
async def test_a_module_that_goes_away_is_noticed_by_its_packets(
    lo: Namespace, unloaded: Callable[[], None]
) -> None:
    """The kernel would take the connmark, say success and do nothing."""
    talk = Talk(lo)
    async with tracked_queue(lo) as queue:
        await asked(queue, talk, connmark=1)
        unloaded()
        talk.ask()
        [packet] = await take(queue, 1)
        assert packet.conntrack is None
        with pytest.raises(LocalProtocolError, match=f"module {GLUE} was unloaded"):
            packet.accept(connmark=2)
        packet.settle(decision(Verdict.ACCEPT, {"connmark": 2}))
        await trio.lowlevel.checkpoint()
        modprobe(GLUE)
        assert connection(await asked(queue, talk)).mark == 1


@pytest.mark.needs_kernel("conntrack-glue-module")
async def test_the_flag_has_the_kernel_load_the_module(lo: Namespace) -> None:
    modprobe("-r", GLUE)
    async with tracked_queue(lo) as queue:
        assert connection(await asked(queue, Talk(lo))).timeout_s == 30
