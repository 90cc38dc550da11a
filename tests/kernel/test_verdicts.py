"""Every verdict, and what it does to the packet, seen where the packet arrives.

Not shown, since this kernel queues no packet of the bridge family (it has no ``queue`` statement of
nftables, and its NFQUEUE target is refused for that family): new VLAN tags and link-layer headers.
Nor conntrack marks and labels: its nfnetlink_queue has no part of conntrack
(CONFIG_NETFILTER_NETLINK_GLUE_CT), so that the library has to refuse them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from trionfq import (
    AlreadyDecidedError,
    LocalProtocolError,
    Packet,
    Queue,
    QueueFlags,
    Verdict,
    open_queue,
)

from ._live import PORT, Udp, data_of, take, with_data
from .harness import (
    Bridged,
    Forwarding,
    Namespace,
    Pair,
    atcp_transfer,
    queue_rule,
    receive,
    rule,
)

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"


# --- accept and drop ------------------------------------------------------------------------------


async def test_accepted_packets_arrive_and_dropped_ones_do_not(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"a", b"b", b"c", b"d", b"e")
        for packet in await take(queue, 5):
            if data_of(packet) in b"bd":
                packet.drop()
            else:
                packet.accept()
        # The last one is behind all that were dropped.
        assert await udp.receive(3) == [b"a", b"c", b"e"]
    assert udp.waiting() == []


@pytest.mark.parametrize("chain", ["INPUT", "OUTPUT"])
async def test_a_verdict_reaches_packets_of_both_ip_versions(pair: Pair, chain: str) -> None:
    place = pair.a if chain == "OUTPUT" else pair.b
    for family in (4, 6):
        queue_rule(place, chain, UDP, family=family)
    udp4 = Udp(pair.a, pair.b, pair.b4)
    udp6 = Udp(pair.a, pair.b, pair.b6)
    async with open_queue(0, namespace=place.name) as queue:
        for udp in (udp4, udp6):
            udp.send(b"dropped", b"accepted")
            first, second = await take(queue, 2)
            first.drop()
            second.accept()
            assert await udp.receive(1) == [b"accepted"]


async def test_a_forwarded_packet_waits_for_its_verdict(forwarding: Forwarding) -> None:
    net = forwarding
    queue_rule(net.router, "FORWARD", UDP)
    udp = Udp(net.a, net.b, net.b4)
    async with open_queue(0, namespace=net.router.name) as queue:
        udp.send(b"routed")
        [packet] = await take(queue, 1)
        assert udp.waiting() == []
        packet.accept()
        assert await udp.receive(1) == [b"routed"]


# --- rewriting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("new", [b"", b"x", b"longer than it was, by some words", bytes(1000)])
async def test_a_rewritten_datagram_arrives_exactly(
    ns: Namespace, address: str, new: bytes
) -> None:
    for family in (4, 6):
        queue_rule(ns, "OUTPUT", UDP, family=family)
    udp = Udp(ns, address=address)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"as it was")
        [packet] = await take(queue, 1)
        packet.payload = with_data(packet, new)
        packet.accept()
        assert await udp.receive(1) == [new]


@pytest.mark.parametrize("address", ["a4", "a6"])
async def test_a_reply_is_rewritten_on_input(pair: Pair, address: str) -> None:
    for family in (4, 6):
        queue_rule(pair.a, "INPUT", UDP, family=family)
    udp = Udp(pair.b, pair.a, getattr(pair, address))
    async with open_queue(0, namespace=pair.a.name) as queue:
        udp.send(b"short", b"rather long")
        for packet, new in zip(await take(queue, 2), (b"rather long", b"short"), strict=True):
            packet.accept(payload=with_data(packet, new))
        assert await udp.receive(2) == [b"rather long", b"short"]


async def test_a_rewrite_beyond_the_devices_mtu_is_fragmented(pair: Pair) -> None:
    queue_rule(pair.a, "OUTPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)
    udp.sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: without the DF bit
    grown = bytes(range(250)) * 16
    async with open_queue(0, namespace=pair.a.name) as queue:
        udp.send(b"small")
        [packet] = await take(queue, 1)
        packet.accept(payload=with_data(packet, grown))
        assert await udp.receive(1) == [grown]


async def test_a_rewrite_longer_than_a_usual_datagram_of_verdicts_leaves_whole(
    ns: Namespace,
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    big = bytes(range(256)) * 234  # 59,904 bytes: seven times max_send_bytes
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*[b"%d" % n for n in range(3)])
        for packet in await take(queue, 3):
            packet.accept(payload=packet.payload + big)
        assert await udp.receive(3) == [b"%d" % n + big for n in range(3)]


@pytest.mark.parametrize("address", ["b4", "b6"])
async def test_a_tcp_stream_is_rewritten_in_passing(pair: Pair, address: str) -> None:
    for family in (4, 6):
        queue_rule(pair.b, "INPUT", "-p tcp", family=family)
    rewritten = 0

    def censor(packet: Packet) -> None:
        nonlocal rewritten
        payload = packet.payload
        if b"secret" in payload:
            rewritten += 1
            packet.payload = payload.replace(b"secret", b"public")
        packet.accept()

    data = b"a secret of %08d bytes. " * 100
    async with (
        open_queue(0, namespace=pair.b.name) as queue,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(lambda task_status: queue.serve(censor, task_status=task_status))
        got = await atcp_transfer(pair.a, pair.b, getattr(pair, address), data)
        nursery.cancel_scope.cancel()
    assert rewritten > 0
    assert got == data.replace(b"secret", b"public")


@pytest.mark.parametrize(
    ("address", "protocol", "request_type", "reply_type"),
    [("127.0.0.1", "icmp", 8, 0), ("::1", "ipv6-icmp", 128, 129)],
)
async def test_an_echo_request_is_answered_as_rewritten(
    ns: Namespace, address: str, protocol: str, request_type: int, reply_type: int
) -> None:
    """The host answers a request whose checksum is right, with what the request carries."""
    queue_rule(ns, "OUTPUT", f"-p {protocol}", family=4)
    queue_rule(ns, "OUTPUT", f"-p {protocol}", family=6)
    version = 6 if ":" in address else 4
    kinds = {4: (socket.AF_INET, 1), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}
    family, number = kinds[version]
    raw = ns.socket(family, socket.SOCK_RAW, number)
    request = bytes([request_type, 0, 0, 0, 0, 7, 0, 1]) + b"hello there!"
    if version == 4:  # for IPv6 the kernel computes it
        total = sum(int.from_bytes(request[at : at + 2], "big") for at in range(0, 20, 2))
        total = (total & 0xFFFF) + (total >> 16)
        request = request[:2] + (0xFFFF - total).to_bytes(2, "big") + request[4:]
    async with open_queue(0, namespace=ns.name) as queue:
        raw.sendto(request, (address, 0))
        [packet] = await take(queue, 1)
        packet.payload = packet.payload.replace(b"hello there!", b"goodbye!")
        packet.accept()
        [reply] = await take(queue, 1)
        reply.accept()
        start = 0 if version == 6 else 20
        replies = [
            datagram[start + 8 :]
            for datagram in [await receive(raw), await receive(raw)]
            if datagram[start] == reply_type
        ]
        assert replies == [b"goodbye!"]


# --- mark and priority ----------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [7, 0xDEADBEEF])
async def test_a_mark_is_matched_by_a_rule_of_a_later_hook(ns: Namespace, mark: int) -> None:
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    marked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark {mark:#x}")
    unmarked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark 0")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"plain", b"marked")
        first, second = await take(queue, 2)
        first.accept()
        second.accept(mark=mark)
        await udp.receive(2)
    assert (marked.packets, unmarked.packets) == (1, 1)


async def test_a_mark_of_zero_takes_a_mark_away(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    unmarked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark 0")
    udp = Udp(ns)
    udp.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 9)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"kept", b"taken away")
        first, second = await take(queue, 2)
        first.accept()
        second.accept(mark=0)
        await udp.receive(2)
    assert unmarked.packets == 1


async def test_a_priority_is_seen_by_the_queue_of_a_later_hook(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, 0, table="mangle")
    queue_rule(ns, "POSTROUTING", UDP, 1, table="mangle")
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as before,
        open_queue(1, namespace=ns.name) as after,
    ):
        udp.send(b"x")
        [packet] = await take(before, 1)
        assert packet.priority == 0
        packet.accept(priority=0x00010203)
        [packet] = await take(after, 1)
        assert packet.priority == 0x00010203
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def test_one_verdict_changes_payload_mark_and_priority(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, 0, table="mangle")
    queue_rule(ns, "POSTROUTING", UDP, 1, table="mangle")
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as before,
        open_queue(1, namespace=ns.name) as after,
    ):
        udp.send(b"old")
        [packet] = await take(before, 1)
        packet.accept(payload=with_data(packet, b"newer"), mark=5, priority=6)
        [packet] = await take(after, 1)
        assert (data_of(packet), packet.mark, packet.priority) == (b"newer", 5, 6)
        packet.accept()
        assert await udp.receive(1) == [b"newer"]


# --- repeat, requeue, stop ------------------------------------------------------------------------


async def test_a_repeated_packet_comes_once_more_with_its_mark(ns: Namespace) -> None:
    queued = queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"again")
        [first] = await take(queue, 1)
        first.repeat(mark=0x10)
        [second] = await take(queue, 1)
        assert (first.id, second.id) == (1, 2)
        assert (first.mark, second.mark) == (0, 0x10)
        assert second.payload == first.payload
        assert queued.packets == 2
        second.accept()
        assert await udp.receive(1) == [b"again"]


async def test_a_repeated_packet_brings_its_new_payload(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"again")
        [first] = await take(queue, 1)
        first.repeat(payload=with_data(first, b"and again"), allow_loop=True)
        [second] = await take(queue, 1)
        assert data_of(second) == b"and again"
        second.accept()
        assert await udp.receive(1) == [b"and again"]


async def test_a_repeated_packet_passes_a_rule_that_excludes_its_mark(ns: Namespace) -> None:
    queued = queue_rule(ns, "OUTPUT", f"{UDP} -m mark ! --mark 0x10/0x10")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"once")
        [packet] = await take(queue, 1)
        packet.repeat(mark=0x10)
        assert await udp.receive(1) == [b"once"]
        assert queue.statistics().packets_received == 1
    assert queued.packets == 1


async def test_a_requeued_packet_comes_to_the_other_queue(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, 1)
    udp = Udp(ns)
    async with (
        open_queue(1, namespace=ns.name) as first,
        open_queue(40_000, namespace=ns.name) as second,
    ):
        udp.send(b"x", b"y")
        [x, y] = await take(first, 2)
        x.requeue(40_000)
        y.requeue(40_000, mark=3, payload=with_data(y, b"why"))
        [x, y] = await take(second, 2)
        assert (x.queue_number, x.mark, data_of(x)) == (40_000, 0, b"x")
        assert (y.queue_number, y.mark, data_of(y)) == (40_000, 3, b"why")
        x.accept()
        y.accept()
        assert await udp.receive(2) == [b"x", b"why"]


async def test_a_packet_may_be_requeued_to_its_own_queue(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"round")
        for expected_id in range(1, 6):
            [packet] = await take(queue, 1)
            assert packet.id == expected_id
            packet.requeue(0)
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"round"]


@pytest.mark.parametrize("bypass", [False, True])
async def test_requeueing_to_nobody_drops_unless_bypass_is_said(
    ns: Namespace, bypass: bool
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"requeued", b"behind")
        first, second = await take(queue, 2)
        first.requeue(7, bypass=bypass)
        second.accept()
        expected = [b"requeued", b"behind"] if bypass else [b"behind"]
        assert await udp.receive(len(expected)) == expected
    assert udp.waiting() == []


async def test_stop_skips_the_hooks_other_chains_but_not_the_next_hook(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    same_hook = rule(ns, "OUTPUT", UDP)
    next_hook = rule(ns, "POSTROUTING", UDP, table="mangle")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"stopped")
        [packet] = await take(queue, 1)
        packet.stop(payload=with_data(packet, b"went on"))
        assert await udp.receive(1) == [b"went on"]
    assert (same_hook.packets, next_hook.packets) == (0, 1)


# --- order ----------------------------------------------------------------------------------------


async def test_packets_arrive_in_the_order_of_their_verdicts(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    order = [3, 0, 4, 1, 2]
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*[b"%d" % n for n in range(5)])
        packets = await take(queue, 5)
        for index in order:
            packets[index].accept()
            await trio.lowlevel.checkpoint()  # a tick's verdicts leave together, sorted by id
        assert await udp.receive(5) == [b"%d" % n for n in order]


async def test_a_held_packet_is_overtaken(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*[b"%d" % n for n in range(200)])
        held, *others = await take(queue, 200)
        held.hold()
        for packet in others:
            packet.accept()
        assert await udp.receive(199) == [b"%d" % n for n in range(1, 200)]
        held.accept()
        assert await udp.receive(1) == [b"0"]


# --- verdicts by id -------------------------------------------------------------------------------


async def test_verdicts_by_id_do_what_a_packets_own_do(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, 0, table="mangle")
    marked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark 7")
    chain = rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as queue,
        open_queue(9, namespace=ns.name) as other,
    ):
        names = [b"accept", b"drop", b"mark", b"rewrite", b"requeue", b"bypass", b"stop", b"repeat"]
        udp.send(*names)
        packets = {data_of(packet): packet for packet in await take(queue, len(names))}
        ids = {name: packet.id for name, packet in packets.items()}
        new = with_data(packets[b"rewrite"], b"by id")
        queue.set_verdict(ids[b"accept"], Verdict.ACCEPT)
        queue.set_verdict(ids[b"drop"], Verdict.DROP)
        queue.set_verdict(ids[b"mark"], Verdict.ACCEPT, mark=7)
        queue.set_verdict(ids[b"rewrite"], Verdict.ACCEPT, payload=new)
        queue.set_verdict(ids[b"requeue"], Verdict.QUEUE, queue=9)
        queue.set_verdict(ids[b"bypass"], Verdict.QUEUE, queue=8, bypass=True)
        queue.set_verdict(ids[b"stop"], Verdict.STOP)
        queue.set_verdict(ids[b"repeat"], Verdict.REPEAT, mark=1)
        assert all(packet.decided for packet in packets.values())
        [requeued] = await take(other, 1)
        [repeated] = await take(queue, 1)
        assert (data_of(requeued), data_of(repeated), repeated.mark) == (b"requeue", b"repeat", 1)
        assert await udp.receive(5) == [b"accept", b"mark", b"by id", b"bypass", b"stop"]
        other.set_verdict(requeued.id, Verdict.ACCEPT)
        assert await udp.receive(1) == [b"requeue"]
        queue.set_verdict(repeated.id, Verdict.ACCEPT)
        assert await udp.receive(1) == [b"repeat"]
    assert marked.packets == 1
    # Neither what was dropped nor what was stopped came to the hook's other chain.
    assert chain.packets == 6


async def test_a_batch_by_id_answers_everything_up_to_it(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    marked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark 7")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*[b"%d" % n for n in range(9)])
        packets = await take(queue, 9)
        packets[1].hold()
        packets[2].drop()
        assert queue.set_verdict_batch(packets[5].id, Verdict.ACCEPT, mark=7) == 5
        assert await udp.receive(5) == [b"0", b"1", b"3", b"4", b"5"]
        assert queue.set_verdict_batch(packets[7].id, Verdict.DROP) == 2
        assert queue.set_verdict_batch(packets[8].id, Verdict.ACCEPT) == 1
        assert await udp.receive(1) == [b"8"]
    assert marked.packets == 5


async def test_a_second_verdict_by_id_is_refused(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        queue.set_verdict(packet.id, Verdict.DROP)
        for _ in range(2):  # not sent yet, then sent
            with pytest.raises(AlreadyDecidedError, match="already has"):
                queue.set_verdict(packet.id, Verdict.ACCEPT)
            await trio.lowlevel.checkpoint()
        with pytest.raises(LocalProtocolError, match="no packet 2 has come"):
            queue.set_verdict(2, Verdict.ACCEPT)
        with pytest.raises(LocalProtocolError, match=r"the last packet read .* is 1"):
            queue.set_verdict_batch(2, Verdict.ACCEPT)
        udp.send(b"y")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"y"]


# --- what this kernel cannot do -------------------------------------------------------------------

ByPacketOrId = Callable[[Queue, Packet, dict[str, Any]], None]


@pytest.mark.parametrize("changes", [{"connmark": 1}, {"ct_labels": bytes(16)}])
@pytest.mark.parametrize(
    "give",
    [
        lambda queue, packet, changes: packet.accept(**changes),
        lambda queue, packet, changes: queue.set_verdict(packet.id, Verdict.ACCEPT, **changes),
    ],
    ids=["packet", "id"],
)
async def test_conntrack_changes_that_the_kernel_would_ignore_are_refused(
    ns: Namespace, changes: dict[str, Any], give: ByPacketOrId
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match=r"flags=QueueFlags\.CONNTRACK"):
            give(queue, packet, changes)
        assert not packet.decided
        packet.accept()
        assert await udp.receive(1) == [b"x"]


@pytest.mark.parametrize("changes", [{"vlan": (0x8100, 5)}, {"l2hdr": bytes(14)}])
async def test_link_layer_changes_are_refused_outside_the_bridge_family(
    bridged: Bridged, changes: dict[str, Any]
) -> None:
    """A bridged packet that br_netfilter shows to iptables is of the IP families."""
    queue_rule(bridged.switch, "FORWARD", UDP)
    udp = Udp(bridged.a, bridged.b, bridged.b4)
    async with open_queue(0, namespace=bridged.switch.name) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match="bridge family"):
            packet.accept(**changes)
        assert not packet.decided
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def test_a_bridged_packet_is_dropped_and_rewritten(bridged: Bridged) -> None:
    queue_rule(bridged.switch, "FORWARD", UDP)
    udp = Udp(bridged.a, bridged.b, bridged.b4)
    async with open_queue(0, namespace=bridged.switch.name) as queue:
        udp.send(b"dropped", b"rewritten")
        first, second = await take(queue, 2)
        first.drop()
        second.accept(payload=with_data(second, b"and longer too"))
        assert await udp.receive(1) == [b"and longer too"]


async def test_segments_of_a_large_send_are_decided_as_one_packet(pair: Pair) -> None:
    queue_rule(pair.a, "OUTPUT", "-p tcp")
    largest = 0

    def accept(packet: Packet) -> None:
        nonlocal largest
        largest = max(largest, packet.original_length)
        packet.accept()

    data = bytes(range(256)) * 4096
    async with (
        open_queue(0, namespace=pair.a.name, flags=QueueFlags.GSO, copy_range=64) as queue,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(lambda task_status: queue.serve(accept, task_status=task_status))
        assert await atcp_transfer(pair.a, pair.b, pair.b4, data) == data
        nursery.cancel_scope.cancel()
    assert largest > 1500
