"""Rules that the API keeps (docs/design.md), as far as a kernel shows them."""

from __future__ import annotations

import errno
import logging
import socket
import subprocess
import sys
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from trionfq import (
    Namespace as QueueNamespace,
)
from trionfq import (
    NetlinkBackend,
    Packet,
    PrivilegeError,
    Queue,
    RemoteProtocolError,
    Verdict,
    VerdictRefusedError,
    open_queue,
)
from trionfq.backends import Received
from trionfq.schema.nfqueue import MessageType

from ._live import (
    LIMIT_S,
    PATIENCE_S,
    PORT,
    Behind,
    Listening,
    Udp,
    data_of,
    line_of,
    program,
    say,
    take,
    use_all_processors,
    with_data,
)
from .harness import (
    Namespace,
    Pair,
    UdpReceiver,
    UdpSender,
    eventually,
    queue_rule,
    rule,
)

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"


def queued(ns: Namespace) -> int:
    """How many packets the kernel holds in queue 0."""
    row = ns.queue_row(0)
    assert row is not None
    return row.queue_total


def named(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


# --- verdicts -------------------------------------------------------------------------------------


async def test_a_verdict_never_reaches_a_later_packet_of_the_same_id(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"old", b"given away")
        old, given_away = await take(queue, 2)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"new")
        [new] = await take(queue, 1)
        assert new.id == old.id
        for give in (old.accept, old.drop, old.hold, given_away.accept):
            with pytest.raises(trio.ClosedResourceError, match="binding of queue 0 has ended"):
                give()
        await trio.lowlevel.checkpoint()
        assert queued(ns) == 1
        assert old.payload != new.payload  # reading is still possible
        new.drop()
        udp.send(b"behind")
        [behind] = await take(queue, 1)
        behind.accept()
        assert await udp.receive(1) == [b"behind"]


async def test_a_verdict_belongs_to_the_thread_that_runs_trio(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"from a thread")
        [packet] = await take(queue, 1)

        def wrong() -> None:
            with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
                packet.accept()
            with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
                queue.set_verdict(packet.id, Verdict.ACCEPT)

        await trio.to_thread.run_sync(wrong)
        assert not packet.decided
        await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(packet.accept))
        assert await udp.receive(1) == [b"from a thread"]


async def test_verdicts_leave_at_the_end_of_the_tick_wherever_the_task_goes(
    ns: Namespace,
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*named(1, 2))
        one, two = await take(queue, 2)
        one.accept()
        assert queued(ns) == 2
        await trio.lowlevel.checkpoint()  # never near the queue
        assert queued(ns) == 1
        two.accept()
        await udp.receive(2)
        assert queued(ns) == 0


async def test_verdicts_of_all_tasks_leave_in_one_datagram(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Listening(NetlinkBackend(namespace=ns.name))
    async with open_queue(0, backend=backend) as queue:
        udp.send(*named(*range(6)))
        packets = await take(queue, 6)
        backend.sent.clear()

        async def decide(packet: Packet) -> None:
            if packet.id % 2:
                packet.accept()
            else:
                packet.drop()

        async with trio.open_nursery() as nursery:
            for packet in packets:
                nursery.start_soon(decide, packet)
        assert await udp.receive(3) == named(0, 2, 4)
        assert len(backend.sent) == 1


async def test_equal_verdicts_leave_as_one_message_when_all_below_are_decided(
    ns: Namespace,
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Listening(NetlinkBackend(namespace=ns.name))
    async with open_queue(0, backend=backend) as queue:
        udp.send(*named(*range(100)))
        packets = await take(queue, 100)
        backend.sent.clear()
        for packet in packets[:50]:
            packet.accept(mark=3)
        await trio.lowlevel.checkpoint()
        for packet in packets[50:]:
            packet.accept()
        await trio.lowlevel.checkpoint()
        [[marked], [plain]] = backend.messages()
        assert marked.type == plain.type == MessageType.VERDICT_BATCH
        assert queue.statistics().batches_sent == 2
        assert await udp.receive(100) == named(*range(100))


async def test_no_batch_sweeps_what_is_held_read_ahead_or_unread(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*named(*range(200)))
        packets = await take(queue, 30)
        assert queue.statistics().read_ahead == 170
        held = packets[10]
        held.hold()
        udp.send(*named(*range(200, 220)))  # in the socket when the verdicts leave
        for packet in packets:
            if packet is not held:
                packet.accept()
        assert await udp.receive(29) == named(*range(10), *range(11, 30))
        assert queued(ns) == 191
        assert queue.statistics().batches_sent == 1  # below the held one
        rest = await take(queue, 190)
        for packet in rest:
            packet.drop()
        await trio.lowlevel.checkpoint()
        assert queued(ns) == 1
        held.accept()
        assert await udp.receive(1) == named(10)


class Tampering(Behind):
    """Changes verdicts on their way to the kernel, or packets on their way from it."""

    def __init__(self, inner: NetlinkBackend) -> None:
        super().__init__(inner)
        self.outward: tuple[bytes, bytes] | None = None
        self.inward: tuple[bytes, bytes] | None = None

    def send_nowait(self, datagram: bytes) -> None:
        if self.outward is not None:
            assert self.outward[0] in datagram
            datagram = datagram.replace(*self.outward)
        self.inner.send_nowait(datagram)

    def receive_nowait(self, limit: int) -> Received:
        received = self.inner.receive_nowait(limit)
        if self.inward is None:
            return received
        return received._replace(datagrams=[d.replace(*self.inward) for d in received.datagrams])


# NFQA_VERDICT_HDR of packet 1: accepted, and with a verdict that may not be given.
ACCEPT_1 = bytes.fromhex("00000001 00000001")
STOLEN_1 = bytes.fromhex("00000002 00000001")


def attribute(length: int, number: int) -> bytes:
    """The header of a netlink attribute."""
    return length.to_bytes(2, sys.byteorder) + number.to_bytes(2, sys.byteorder)


async def test_a_refused_change_comes_back_with_its_packet_undecided_again(ns: Namespace) -> None:
    """A packet made to look like a bridge's, and its VLAN tag cut short: ERANGE."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Tampering(NetlinkBackend(namespace=ns.name))
    told: list[tuple[Exception, Packet | None]] = []
    async with open_queue(
        0, backend=backend, error_handler=lambda error, packet: told.append((error, packet))
    ) as queue:
        # nfgenmsg: family inet, version 0, queue 0; then the header of NFQA_PACKET_HDR.
        inet = bytes([socket.AF_INET, 0, 0, 0]) + attribute(11, 1)
        backend.inward = (inet, bytes([7]) + inet[1:])
        udp.send(b"x")
        [packet] = await take(queue, 1)
        backend.inward = None
        nested = attribute(20, 0x8000 | 19)
        backend.outward = (nested + attribute(6, 1), attribute(6, 19) + attribute(6, 1))
        packet.accept(vlan=(0x8100, 5))
        await trio.lowlevel.checkpoint()
        backend.outward = None
        udp.send(b"y")
        [behind] = await take(queue, 1)
        [(error, refused)] = told
        assert isinstance(error, VerdictRefusedError)
        assert (error.errno, error.packet_id, error.dropped) == (errno.ERANGE, 1, False)
        assert refused is packet
        assert not packet.decided
        assert queued(ns) == 2
        assert queue.statistics().verdicts_refused == 1
        behind.accept()
        packet.accept()
        assert await udp.receive(2) == [b"x", b"y"]


@pytest.mark.parametrize("end", ["by id", "closing"])
async def test_a_refusal_that_nobody_expected_leaves_the_packet_undecided(
    ns: Namespace, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """A verdict spoilt on its way: EINVAL. Nobody reads, and nobody handles errors: it is logged.

    Only the id is known. If it were not in the ledger, a closing accept would count from a later
    id and the kernel's walk would stop before its first packet.
    """
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Tampering(NetlinkBackend(namespace=ns.name))
    async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
        udp.send(b"x", b"y", b"z")
        x, y, z = await take(queue, 3)
        z.hold()
        backend.outward = (ACCEPT_1, STOLEN_1)
        x.accept()
        y.drop()
        await eventually("the refusal", lambda: queue.statistics().verdicts_refused)
        backend.outward = None
        assert queue.undecided_ids == [1, 3]
        if end == "by id":
            queue.set_verdict(1, Verdict.ACCEPT)
            assert await udp.receive(1) == [b"x"]
    assert await udp.receive(1 if end == "by id" else 2) == [b"x", b"z"][end == "by id" :]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "verdict for packet 1 of queue 0: Invalid argument" in record.getMessage()


class BuggyError(Exception):
    """What no backend should raise."""


async def test_a_backend_with_a_bug_of_its_own_does_not_keep_the_block_from_ending(
    ns: Namespace,
) -> None:
    bug = False

    class Buggy(Behind):
        def send_nowait(self, datagram: bytes) -> None:
            if bug:
                raise BuggyError
            self.inner.send_nowait(datagram)

    async def use() -> None:
        nonlocal bug
        async with open_queue(0, backend=Buggy(NetlinkBackend(namespace=ns.name))):
            bug = True

    with pytest.raises(BuggyError):
        await use()
    assert ns.queue_row(0) is None


@pytest.mark.parametrize("flush", ["device", "table"])
async def test_a_verdict_for_a_packet_that_the_kernel_flushed_is_counted(
    pair: Pair, flush: str
) -> None:
    """A device that goes down takes its packets along, a hooked table those of every queue."""
    queue_rule(pair.b, "INPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)

    def down_and_up(route: Any) -> None:
        index = route.link_lookup(ifname=pair.b_device)[0]
        route.link("set", index=index, state="down")
        route.link("set", index=index, state="up")

    async with open_queue(0, namespace=pair.b.name) as queue:
        udp.send(b"flushed", b"flushed too")
        flushed, too = await take(queue, 2)
        if flush == "device":
            pair.b.netlink(down_and_up)
        else:
            hooked = "{ type filter hook output priority 5; }"
            pair.b.run(["nft", f"add table ip zz; add chain ip zz c {hooked}"])
            pair.b.run(["nft", "delete table ip zz"])
        assert queued(pair.b) == 0
        flushed.accept()
        await trio.lowlevel.checkpoint()
        too.drop()
        udp.send(b"next")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"next"]
        statistics = queue.statistics()
    assert statistics.verdicts_gone == 2
    assert statistics.verdicts_refused == 0
    assert statistics.undecided == 0


@pytest.mark.parametrize("policy", [Verdict.DROP, Verdict.ACCEPT])
async def test_a_packet_that_cannot_be_decoded_gets_the_policy_and_is_kept(
    ns: Namespace, policy: Verdict
) -> None:
    """Something between the kernel and us spoils a message behind its packet id."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Tampering(NetlinkBackend(namespace=ns.name))
    told: list[Exception] = []
    order = sys.byteorder
    outdev = (8).to_bytes(2, order) + (6).to_bytes(2, order)
    short = (3).to_bytes(2, order) + (6).to_bytes(2, order)
    async with open_queue(
        0,
        backend=backend,
        on_close=policy,
        error_handler=lambda error, packet: told.append(error),
    ) as queue:
        backend.inward = (outdev, short)
        udp.send(b"spoilt")
        with trio.fail_after(PATIENCE_S):
            while not told:
                await trio.lowlevel.checkpoint()
        backend.inward = None
        udp.send(b"behind")
        [packet] = await take(queue, 1)
        assert data_of(packet) == b"behind"
        packet.accept()
        expected = [b"spoilt", b"behind"] if policy is Verdict.ACCEPT else [b"behind"]
        assert await udp.receive(len(expected)) == expected
        assert queue.statistics().undecodable_messages == 1
        [error] = queue.undecodable
    assert told == [error]
    assert isinstance(error, RemoteProtocolError)
    assert error.offset == 32


# --- holding --------------------------------------------------------------------------------------


async def test_what_is_held_and_for_how_long_is_shown(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        assert queue.statistics().oldest_undecided_s is None
        udp.send(*named(1, 2, 3))
        one, two, three = await take(queue, 3)
        two.hold()
        three.accept()
        await trio.lowlevel.checkpoint()
        statistics = queue.statistics()
        assert (statistics.undecided, statistics.held) == (2, 1)
        assert statistics.oldest_undecided_s is not None
        assert one.age_s >= statistics.oldest_undecided_s > 0
        assert queue.undecided_ids == [1, 2]
        assert statistics.kernel is not None
        assert statistics.kernel.queue_total == 2
        one.drop()
        two.drop()


@pytest.mark.parametrize("policy", [Verdict.DROP, Verdict.ACCEPT])
@pytest.mark.parametrize("way", ["left", "raised", "cancelled", "overdue"])
async def test_in_serve_a_packet_that_its_handler_leaves_gets_the_policy(
    ns: Namespace, policy: Verdict, way: str
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    started = trio.Event()

    async def handle(packet: Packet) -> None:
        if data_of(packet) == b"behind":
            packet.accept()
            return
        started.set()
        if way == "raised":
            raise ValueError("mine")
        if way in ("cancelled", "overdue"):
            await trio.sleep_forever()

    def ignore(error: Exception, packet: Packet | None) -> None:
        assert str(error) == "mine"

    async with open_queue(0, namespace=ns.name) as queue:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: queue.serve(
                    handle,
                    workers=2,
                    undecided=policy,
                    error_handler=ignore,
                    deadline_s=0.02 if way == "overdue" else None,
                )
            )
            udp.send(b"left")
            await started.wait()
            if way == "cancelled":
                nursery.cancel_scope.cancel()
            elif policy is Verdict.ACCEPT:
                assert await udp.receive(1) == [b"left"]
                nursery.cancel_scope.cancel()
            else:
                await eventually("an empty queue", lambda: not queued(ns))
                nursery.cancel_scope.cancel()
        if way == "cancelled" and policy is Verdict.ACCEPT:
            assert await udp.receive(1) == [b"left"]
        assert queued(ns) == 0
        udp.send(b"behind")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"behind"]


# --- reading --------------------------------------------------------------------------------------


async def test_break_loses_nothing(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    seen: list[int] = []
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*named(*range(100)))
        while len(seen) < 100:
            async for packet in queue:
                seen.append(packet.id)
                packet.accept()
                if packet.id % 7 == 0 or packet.id == 100:
                    break
        assert seen == list(range(1, 101))
        assert await udp.receive(100) == named(*range(100))


async def test_each_packet_goes_to_one_of_the_iterating_tasks(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    seen: list[list[int]] = [[], [], []]

    async def iterate(queue: Queue, mine: list[int]) -> None:
        async for packet in queue:
            mine.append(packet.id)
            packet.accept()
            await trio.lowlevel.checkpoint()

    async with open_queue(0, namespace=ns.name) as queue, trio.open_nursery() as nursery:
        for mine in seen:
            nursery.start_soon(iterate, queue, mine)
        await trio.testing.wait_all_tasks_blocked()
        for start in range(0, 300, 100):
            udp.send(*named(*range(start, start + 100)))
            await udp.receive(100)
        nursery.cancel_scope.cancel()
    assert sorted(number for mine in seen for number in mine) == list(range(1, 301))
    assert all(seen)


async def test_serve_and_batches_are_alone_with_the_queue(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: queue.serve(lambda packet: packet.accept()))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="serve"):
            await queue.receive()
        with pytest.raises(trio.BusyResourceError, match="serve"):
            await queue.batches().__anext__()
        udp.send(b"x")
        assert await udp.receive(1) == [b"x"]
        nursery.cancel_scope.cancel()


@pytest.mark.not_in_guest("fewer packets fit a sender's buffer there, so that it waits for ever")
async def test_read_ahead_ends_at_256_packets_and_the_kernels_queue_is_the_buffer(
    ns: Namespace,
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, max_len=400, receive_buffer_bytes=212_992) as queue:
        for start in range(0, 500, 50):
            udp.send(*named(*range(start, start + 50)))
            # Nobody consumes: the receive loop reads, until it has 256.
            await trio.testing.wait_all_tasks_blocked()
        statistics = queue.statistics()
        assert statistics.read_ahead == 256
        assert statistics.kernel is not None
        assert statistics.kernel.queue_total == 400
        assert statistics.kernel.queue_dropped == 100
        assert statistics.kernel.user_dropped == 0
        packets = await take(queue, 400)
        assert [packet.id for packet in packets] == list(range(1, 401))
        for packet in packets:
            packet.accept()
        assert await udp.receive(400) == named(*range(400))


async def test_a_batch_brings_what_a_read_brought(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    ids: list[int] = []
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*named(*range(100)))
        async for batch in queue.batches():
            ids += [packet.id for packet in batch]
            batch.accept()
            if len(ids) == 100:
                break
        assert await udp.receive(100) == named(*range(100))
        assert queue.statistics().batches_sent <= 5
    assert ids == list(range(1, 101))


async def test_a_receive_that_is_cancelled_anywhere_loses_no_packet(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    ids: list[int] = []
    cancelled = 0

    async def patient(queue: Queue) -> None:
        while True:
            packet = await queue.receive()
            ids.append(packet.id)
            packet.accept()

    async with open_queue(0, namespace=ns.name) as queue:
        for number in range(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(patient, queue)
                for _ in range(number % 7):
                    await trio.lowlevel.checkpoint()
                udp.send(b"%d" % number)
                for _ in range(number % 5):
                    await trio.lowlevel.checkpoint()
                cancelled += 1
                nursery.cancel_scope.cancel()
        while len(ids) < 300:
            [packet] = await take(queue, 1)
            ids.append(packet.id)
            packet.accept()
        assert await udp.receive(300) == named(*range(300))
    assert ids == list(range(1, 301))


# --- requests -------------------------------------------------------------------------------------


async def test_packets_that_come_before_an_answer_are_kept(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*named(*range(100)))
        queue.configure(max_len=2000)
        assert queue.statistics().read_ahead == 100
        udp.send(*named(*range(100, 150)))
        packets = await take(queue, 150)
        assert [packet.id for packet in packets] == list(range(1, 151))
        for packet in packets:
            packet.accept()
        assert await udp.receive(150) == named(*range(150))


async def test_an_answer_that_finds_no_room_is_counted_and_asked_for_again(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, receive_buffer_bytes=8192) as queue:
        udp.send(*named(*range(100)))
        queue.configure(max_len=3)
        statistics = queue.statistics()
        assert statistics.answers_lost == 1
        assert statistics.kernel is not None
        kept = statistics.kernel.queue_total
        assert statistics.read_ahead == kept == 100 - statistics.kernel.user_dropped
        queue.set_verdict_batch(kept, Verdict.ACCEPT)
        assert await udp.receive(kept) == named(*range(kept))
        udp.send(*named(*range(5)))
        packets = await take(queue, 3)
        assert len({packet.id for packet in packets}) == 3
        assert queue.statistics().kernel.queue_dropped == 2  # type: ignore[union-attr]


async def test_what_was_sent_has_arrived_or_is_counted_as_lost(ns: Namespace) -> None:
    """More than a small queue and a small buffer can take, as fast as it can be sent."""
    use_all_processors()
    queue_rule(ns, "OUTPUT", UDP)
    where = ("127.0.0.1", PORT)
    async with (
        open_queue(0, namespace=ns.name, max_len=64, receive_buffer_bytes=8192) as queue,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: queue.serve(lambda packet: packet.accept()))
        with UdpReceiver(ns, where) as receiver:
            with UdpSender(ns, where, limit=20_000) as sender:
                await sender.wait_sent(20_000, timeout_s=LIMIT_S)
                sender.stop()
            await eventually("an empty queue", lambda: not queued(ns))
            # One more, so that a gap behind the last packet shows, too.
            Udp(ns, port=PORT + 1).sender.sendto(bytes(8), where)
            last = queue.statistics().packets_received + 1
            await eventually("the last", lambda: queue.statistics().packets_received == last)
            await eventually("an empty queue", lambda: not queued(ns))
            statistics = queue.statistics()
            arrived = receiver.stop()
        nursery.cancel_scope.cancel()
    kernel = statistics.kernel
    assert kernel is not None
    assert statistics.packets_lost == kernel.user_dropped
    assert statistics.packets_received == 20_001 - kernel.queue_dropped - kernel.user_dropped
    # The last one has a number that came before.
    assert arrived.received + arrived.socket_drops == statistics.packets_received - 1
    assert (arrived.duplicates, arrived.short) == (1, 0)
    assert kernel.queue_dropped + kernel.user_dropped > 0


# --- several programs, several namespaces ---------------------------------------------------------

ACCEPT_ALL = """
import sys, trio
from trionfq import open_queue

async def main():
    async with open_queue(int(sys.argv[1])) as queue:
        print("bound", flush=True)
        async for packet in queue:
            packet.accept(mark=int(sys.argv[1]))

trio.run(main)
"""


async def test_programs_of_one_machine_hand_packets_to_each_other(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, 0, table="mangle")
    marked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark 7")
    udp = Udp(ns)
    with program(ns, ACCEPT_ALL, "7") as other:
        assert await line_of(other) == "bound"
        async with open_queue(0, namespace=ns.name) as queue:
            udp.send(*named(*range(10)))
            for packet in await take(queue, 10):
                packet.requeue(7)
            assert await udp.receive(10) == named(*range(10))
    assert marked.packets == 10


async def test_one_program_has_queues_of_several_namespaces(pair: Pair) -> None:
    """By name, path, process and descriptor; the same number in each."""
    queue_rule(pair.a, "OUTPUT", UDP)
    queue_rule(pair.b, "INPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)
    process = pair.b.popen(["cat"], stdin=subprocess.PIPE)
    ways: list[Any] = [
        (pair.a.name, pair.b.path),
        (str(pair.a.path), QueueNamespace.from_pid(process.pid)),
        (QueueNamespace.from_fd(pair.a.fileno()), pair.b.name),
    ]
    for first, second in ways:
        async with (
            open_queue(0, namespace=first) as out,
            open_queue(0, namespace=second) as inward,
        ):
            udp.send(b"passing both")
            [packet] = await take(out, 1)
            assert packet.outdev_name == pair.a_device
            packet.accept(payload=with_data(packet, b"on the way"))
            [packet] = await take(inward, 1)
            assert packet.indev_name == pair.b_device
            assert data_of(packet) == b"on the way"
            packet.accept(payload=with_data(packet, b"at the end"))
            assert await udp.receive(1) == [b"at the end"]


HEIR = """
import sys, trio
from trionfq import Verdict, open_queue

async def main():
    ledger = [int(number) for number in sys.argv[2:]]
    async with open_queue(
        0, fd=int(sys.argv[1]), inherited=True, ledger=ledger, on_close=Verdict.ACCEPT
    ) as queue:
        assert queue.undecided_ids == ledger
        queue.set_verdict(ledger[0], Verdict.ACCEPT, mark=5)
        print("answered", flush=True)
        packet = await queue.receive()
        packet.accept(mark=6)
        print(packet.id, flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)

trio.run(main)
"""


async def test_a_child_that_inherits_the_socket_answers_what_its_parent_read(
    ns: Namespace,
) -> None:
    """The parent keeps out of the way once it has told what is undecided."""
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    marked = {mark: rule(ns, "OUTPUT", f"{UDP} -m mark --mark {mark}") for mark in (0, 5, 6)}
    udp = Udp(ns)
    backend = NetlinkBackend(namespace=ns.name)
    manager = open_queue(0, backend=backend)
    queue = await manager.__aenter__()
    udp.send(*named(1, 2, 3))
    _, two, _ = await take(queue, 3)
    two.accept()
    await trio.lowlevel.checkpoint()
    assert queue.undecided_ids == [1, 3]
    fd = backend.fileno()
    child = ns.popen(
        [sys.executable, "-c", HEIR, str(fd), "1", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[fd],
    )
    # From here on nothing but the child reads: this task does not come back to trio.
    assert child.stdout is not None
    assert child.stdout.readline() == "answered\n"
    udp.send(b"4")
    assert child.stdout.readline() == "4\n"
    say(child, "")
    assert child.wait(PATIENCE_S) == 0
    assert sorted(udp.receiver.recv(100) for _ in range(4)) == named(1, 2, 3, 4)
    assert {mark: counter.packets for mark, counter in marked.items()} == {0: 2, 5: 1, 6: 1}
    assert ns.queue_row(0) is None
    await manager.__aexit__(None, None, None)


async def test_a_second_socket_may_not_answer(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    made = ns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 12)
    async with open_queue(0, namespace=ns.name) as owner:
        udp.send(b"x")
        [packet] = await take(owner, 1)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await answer_as_heir(made.detach(), packet.id)
        assert isinstance(caught.value.__cause__, PrivilegeError)
        assert "the socket that owns the queue" in str(caught.value)
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def answer_as_heir(fd: int, packet_id: int) -> None:
    async with open_queue(0, fd=fd, inherited=True) as queue:
        queue.set_verdict(packet_id, Verdict.DROP)
        await queue.receive()
