"""Cases that users of other libraries reported, each as the promise that solves its kind.

The numbers D01 to D25 are those of docs/cases.md, which names the tests that stand elsewhere, too:
of rules, of captures, of installing.
"""

from __future__ import annotations

import platform
import signal
import socket
import time

import pytest
import trio

from trionfq import (
    AlreadyDecidedError,
    CopyMode,
    LocalProtocolError,
    NetlinkBackend,
    NetlinkOptions,
    Packet,
    Queue,
    QueueBusyError,
    QueueFlags,
    Unfixed,
    Verdict,
    open_queue,
    schema,
)
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand

from ._live import (
    LOSE_PRIVILEGE,
    PORT,
    RUN_UNTIL_INTERRUPTED,
    Listening,
    Udp,
    data_of,
    end_of,
    line_of,
    preferred,
    program,
    take,
    use_all_processors,
    with_data,
)
from .harness import (
    Namespace,
    Pair,
    UdpSender,
    aping,
    atcp_transfer,
    queue_rule,
    rule,
    wait_for_no_queue_row,
)

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"
# linux/in.h
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0


def handed_to(queue: Queue, nursery: trio.Nursery, handler: object, **options: object) -> None:
    """Serve in the background."""
    nursery.start_soon(lambda: queue.serve(handler, **options))  # type: ignore[arg-type]


# --- D01 ------------------------------------------------------------------------------------------

OPEN = """
import sys, trio
from trionfq import TrionfqError, open_queue

async def main():
    try:
        async with open_queue(0):
            print("bound", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
    except TrionfqError as error:
        print(type(error).__name__, error, sep=": ")

"""


async def test_a_refused_bind_tells_its_cause_and_cure(ns: Namespace) -> None:
    """D01: busy and unprivileged are both EPERM; PF_BIND and PF_UNBIND are never sent."""
    with program(ns, OPEN + "trio.run(main)") as owner:
        assert await line_of(owner) == "bound"
        with pytest.raises(QueueBusyError) as caught:
            async with open_queue(0, namespace=ns.name):
                raise AssertionError("bound twice")
        assert caught.value.owner_portid == owner.pid
        assert "queue 0" in str(caught.value)
        assert str(owner.pid) in str(caught.value)
    await wait_for_no_queue_row(ns, 0)
    with program(ns, LOSE_PRIVILEGE + OPEN + "lose_privilege('capset'); trio.run(main)") as child:
        code, output, errors = await end_of(child)
    assert (code, errors) == (0, "")
    assert output.startswith("PrivilegeError: [Errno 1] bind queue 0:")
    assert output.count("\n") == 1


async def test_no_obsolete_command_is_sent(ns: Namespace) -> None:
    """D01: older libraries died in PF_UNBIND."""
    backend = Listening(NetlinkBackend(namespace=ns.name))
    async with open_queue(0, backend=backend) as queue:
        queue.configure(max_len=5)
    commands = [
        schema.by_name(NFQA_CFG, message.attributes).get("cmd") for [message] in backend.messages()
    ]
    assert commands == [
        {"command": ConfigCommand.BIND, "pad": 0, "pf": 0},
        None,
        {"command": ConfigCommand.UNBIND, "pad": 0, "pf": 0},
    ]


# --- D03 ------------------------------------------------------------------------------------------


async def test_a_rewritten_packet_does_not_vanish(pair: Pair) -> None:
    """D03: the kernel fixes no length and no checksum, and acknowledges success."""
    queue_rule(pair.a, "OUTPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)
    async with open_queue(0, namespace=pair.a.name) as queue:
        udp.send(b"a text", b"a text")
        longer, shorter = await take(queue, 2)
        longer.payload = with_data(longer, b"a text that is longer")
        assert data_of(longer) == b"a text that is longer"
        shorter.set_payload(with_data(shorter, b"txt"))
        assert data_of(shorter) == b"txt"
        with pytest.raises(TypeError, match="payload: expected bytes, got str"):
            longer.payload = "text"  # type: ignore[assignment]
        with pytest.raises(TypeError, match="payload: expected bytes, got str"):
            shorter.accept(payload="text")  # type: ignore[arg-type]
        longer.accept()
        shorter.accept()
        assert await udp.receive(2) == [b"a text that is longer", b"txt"]


async def test_without_repair_a_wrong_checksum_is_the_receivers_to_find(pair: Pair) -> None:
    """D03: the switch; UdpInCsumErrors + 1, not delivered."""
    queue_rule(pair.a, "OUTPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)
    before = pair.b.counters()["UdpInCsumErrors"]
    async with open_queue(0, namespace=pair.a.name) as queue:
        udp.send(b"flipped", b"flipped", b"behind")
        by_verdict, by_setter, behind = await take(queue, 3)
        by_verdict.accept(payload=with_data(by_verdict, b"Flipped"), repair=False)
        by_setter.set_payload(with_data(by_setter, b"flippeD"), repair=False)
        by_setter.accept()
        behind.accept()
        assert await udp.receive(1) == [b"behind"]
    assert pair.b.counters()["UdpInCsumErrors"] == before + 2


# --- D04 ------------------------------------------------------------------------------------------


async def test_a_hardware_address_is_there_on_input_only(ns: Namespace) -> None:
    """D04: None on output, six zero bytes on loopback's input; the payload starts at IP."""
    queue_rule(ns, "OUTPUT", UDP, 0)
    queue_rule(ns, "OUTPUT", UDP, 0, family=6)
    queue_rule(ns, "INPUT", UDP, 0)
    queue_rule(ns, "INPUT", UDP, 0, family=6)
    async with open_queue(0, namespace=ns.name) as queue:
        for address, version in (("127.0.0.1", 4), ("::1", 6)):
            udp = Udp(ns, address=address)
            udp.send(b"x")
            for expected in (None, bytes(6)):
                [packet] = await take(queue, 1)
                assert packet.hwaddr == expected
                assert packet.payload[0] >> 4 == version
                packet.accept()
            assert await udp.receive(1) == [b"x"]


# --- D05 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("no_enobufs", [True, False])
async def test_an_overrun_is_counted_and_iteration_goes_on(ns: Namespace, no_enobufs: bool) -> None:
    """D05: a receive buffer of 8192 bytes, 2,000 datagrams before the first read: 19 are read.

    Without NETLINK_NO_ENOBUFS the socket reports the overrun once; that ends nothing either.
    """
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(
        0,
        namespace=ns.name,
        receive_buffer_bytes=8192,
        netlink_options=NetlinkOptions(no_enobufs=no_enobufs),
    ) as queue:
        udp.send(*[b"x"] * 2000)
        row = ns.queue_row(0)
        assert row is not None
        read = [packet.id for packet in await take(queue, row.queue_total)]
        assert read == list(range(1, row.queue_total + 1))
        lost = 2000 - len(read)
        assert row.user_dropped == lost
        if platform.release().startswith("6.18."):  # where that was measured
            assert (len(read), lost) == (19, 1981)
        udp.send(*[b"y"] * 10)
        more = await take(queue, 10)
        assert [packet.id for packet in more] == list(range(2001, 2011))
        statistics = queue.statistics()
        assert statistics.packets_lost == lost
        assert statistics.kernel is not None
        assert statistics.kernel.user_dropped == lost
        assert statistics.overruns == (0 if no_enobufs else 1)
        assert statistics.answers_lost == 0
        queue.set_verdict_batch(2010, Verdict.ACCEPT)
        assert await udp.receive(len(read) + 10) == [b"x"] * len(read) + [b"y"] * 10


# --- D07 ------------------------------------------------------------------------------------------


async def iterate_until_cancelled(queue: Queue) -> int:
    seen = 0
    with trio.move_on_after(0.2):
        async for packet in queue:
            packet.accept()
            seen += 1
    return seen


async def test_an_idle_loop_is_cancelled_at_once(ns: Namespace) -> None:
    """D07: ``move_on_after(0.2)`` without traffic ends within 0.5 s; the row is gone."""
    for _ in range(2):  # rebinding works
        start = time.monotonic()
        async with open_queue(0, namespace=ns.name) as queue:
            assert await iterate_until_cancelled(queue) == 0
        assert time.monotonic() - start < 0.5
        assert ns.queue_row(0) is None


async def test_a_busy_loop_is_cancelled_at_once(ns: Namespace) -> None:
    """D07: likewise under a flood."""
    use_all_processors()
    queue_rule(ns, "OUTPUT", UDP, bypass=True)
    with UdpSender(ns, ("127.0.0.1", PORT), rate=20_000) as sender, preferred():
        await sender.wait_sent(100)
        for _ in range(2):
            async with open_queue(
                0, namespace=ns.name, flags=QueueFlags.FAIL_OPEN, on_close=Verdict.ACCEPT
            ) as queue:
                # The clock starts when the flood is here, however busy the machine is.
                (await queue.receive()).accept()
                start = time.monotonic()
                assert await iterate_until_cancelled(queue) > 0
            assert time.monotonic() - start < 0.5
            assert ns.queue_row(0) is None


ITERATE = """
import trio
from trionfq import QueueFlags, open_queue

async def main():
    async with open_queue(0, flags=QueueFlags.FAIL_OPEN) as queue:
        print("bound", flush=True)
        async for packet in queue:
            packet.accept()

RESTRICT = True
"""


@pytest.mark.parametrize("load", ["idle", "flood"])
async def test_a_program_that_is_interrupted_exits_within_a_second(
    ns: Namespace, load: str
) -> None:
    """D07: SIGINT, idle and under a flood; the row is gone and rebinding works."""
    use_all_processors()
    queue_rule(ns, "OUTPUT", UDP, bypass=True)
    limit = 0 if load == "idle" else None
    with (
        program(ns, ITERATE + RUN_UNTIL_INTERRUPTED) as child,
        preferred(child.pid),
        UdpSender(ns, ("127.0.0.1", PORT), rate=20_000, limit=limit) as sender,
    ):
        assert await line_of(child) == "bound"
        if load == "flood":
            await sender.wait_sent(sender.sent + 2_000)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert float(await line_of(child)) - start < 1.0
        assert ns.queue_row(0) is None
        code, _, errors = await end_of(child)
        assert code == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")
    async with open_queue(0, namespace=ns.name):
        pass


# --- D09 ------------------------------------------------------------------------------------------


async def test_a_slow_packet_blocks_no_other(ns: Namespace) -> None:
    """D09: the first ping is held until nine others, 50 ms apart, have been answered."""
    queue_rule(ns, "OUTPUT", "-p icmp --icmp-type echo-request")
    async with open_queue(0, namespace=ns.name) as queue, trio.open_nursery() as nursery:
        others = 0
        answered = trio.Event()

        async def decide(packet: Packet) -> None:
            nonlocal others
            if packet.id == 1:
                await answered.wait()
            packet.accept()
            others += 1
            if others == 9:
                answered.set()

        handed_to(queue, nursery, decide)
        result = await aping(ns, "127.0.0.1", count=11, interval_s=0.05)
        nursery.cancel_scope.cancel()
    assert result.received == 11
    slow = result.rtt_ms.pop(1)
    assert max(result.rtt_ms.values()) < 50
    assert slow > 8 * 50


# --- D10 ------------------------------------------------------------------------------------------


async def test_marks_and_ids_keep_their_byte_order(ns: Namespace) -> None:
    """D10: a rule behind the queueing one sees nothing, one of the next table sees the mark.

    Mark, and the last of 260 ids, are others when their bytes are swapped.
    """
    mark = 0x01020304
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    behind = rule(ns, "OUTPUT", f"{UDP} -m mark --mark {mark:#x}", table="mangle")
    later = rule(ns, "OUTPUT", f"{UDP} -m mark --mark {mark:#x}")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        for _ in range(13):
            udp.send(*[b"x"] * 20)
            for packet in await take(queue, 20):
                packet.accept(mark=mark)
        assert await udp.receive(260) == [b"x"] * 260
        row = ns.queue_row(0)
        assert row is not None
        assert (row.id_sequence, row.queue_total) == (260, 0)
        assert queue.statistics().verdicts_gone == 0
    assert (behind.packets, later.packets) == (0, 260)


# --- D11 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_open", [False, True])
async def test_a_full_queue_drops_what_it_counts_or_fails_open(
    ns: Namespace, fail_open: bool
) -> None:
    """D11: max_len 8, 50 datagrams unread: 42 dropped and 8 delivered, or 42 at once."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    names = [b"%d" % n for n in range(50)]
    flags = QueueFlags.FAIL_OPEN if fail_open else QueueFlags(0)
    async with open_queue(0, namespace=ns.name, max_len=8, flags=flags) as queue:
        udp.send(*names)
        if fail_open:
            assert await udp.receive(42) == names[8:]
        kernel = queue.statistics().kernel
        assert kernel is not None
        assert kernel.queue_dropped == (0 if fail_open else 42)
        assert (kernel.queue_total, kernel.user_dropped) == (8, 0)
        for packet in await take(queue, 8):
            packet.accept()
        assert await udp.receive(8) == names[:8]
        # A packet that found no room has no id, so that is no gap.
        assert queue.statistics().packets_lost == 0
        udp.send(b"room again")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"room again"]


# --- D12 ------------------------------------------------------------------------------------------


class PolicyError(Exception):
    """What a user's handler raises."""


@pytest.mark.parametrize("policy", [Verdict.DROP, Verdict.ACCEPT])
async def test_an_exception_is_not_swallowed_and_its_packets_get_the_default(
    ns: Namespace, policy: Verdict
) -> None:
    """D12: raise on the third of five pings."""
    queue_rule(ns, "OUTPUT", "-p icmp --icmp-type echo-request", bypass=True)
    got: list[int] = []
    error = PolicyError("on the third")

    async def program_of_a_user(task_status: trio.TaskStatus[None]) -> None:
        async with open_queue(0, namespace=ns.name, on_close=policy) as queue:
            task_status.started()
            async for packet in queue:
                if packet.id == 3:
                    raise error
                packet.accept()

    async def pings() -> None:
        result = await aping(ns, "127.0.0.1", count=5, interval_s=0.05, timeout_s=0.1)
        got.extend(result.rtt_ms)

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(program_of_a_user)
            with trio.CancelScope(shield=True):
                await pings()
            await trio.sleep_forever()
    assert caught.value.exceptions == (error,)
    assert error.__context__ is None
    assert ns.queue_row(0) is None
    # The fourth and the fifth pass by themselves, since the rule says bypass.
    assert got == ([1, 2, 3, 4, 5] if policy is Verdict.ACCEPT else [1, 2, 4, 5])


# --- D13 ------------------------------------------------------------------------------------------


async def test_odd_lengths_parse(ns: Namespace) -> None:
    """D13: nlmsg_len is 73 to 77 for datagrams of 1 to 5 bytes, not a multiple of 4."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        for length in range(1, 6):
            udp.send(b"abcde"[:length])
            [packet] = await take(queue, 1)
            assert len(packet.datagram) == 72 + length
            assert data_of(packet) == b"abcde"[:length]
            packet.accept()
            assert await udp.receive(1) == [b"abcde"[:length]]


# --- D14 ------------------------------------------------------------------------------------------


async def test_repeat_demands_a_mark_or_a_word(ns: Namespace) -> None:
    """D14: without either it is refused; with the word it may come 2,000 times, ids 1 to 2,001."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match="allow_loop=True"):
            packet.repeat()
        assert not packet.decided
        ids = []
        for _ in range(2000):
            ids.append(packet.id)
            packet.repeat(allow_loop=True)
            packet = await queue.receive()
        assert ids == list(range(1, 2001))
        assert packet.id == 2001
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def test_a_rule_that_excludes_the_mark_sees_a_repeated_packet_once(ns: Namespace) -> None:
    """D14: ``-m mark ! --mark 0x10/0x10``, repeat with mark 0x10."""
    queued = queue_rule(ns, "OUTPUT", f"{UDP} -m mark ! --mark 0x10/0x10")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        packet.repeat(mark=0x10)
        assert await udp.receive(1) == [b"x"]
    assert queued.packets == 1


# --- D16 ------------------------------------------------------------------------------------------


async def test_two_queues_of_one_program_do_not_mix(ns: Namespace) -> None:
    """D16: queues 1 and 2 for two ports, each sets its own mark, verdicts while reading."""
    marked = {}
    udps = {}
    for number in (1, 2):
        match = f"-p udp --dport {PORT + number}"
        queue_rule(ns, "OUTPUT", match, number, table="mangle")
        udps[number] = Udp(ns, port=PORT + number)
        for mark in (1, 2):
            marked[number, mark] = rule(ns, "OUTPUT", f"{match} -m mark --mark {mark}")

    async def set_mark(number: int, task_status: trio.TaskStatus[None]) -> None:
        async with open_queue(number, namespace=ns.name) as queue:
            task_status.started()
            async for packet in queue:
                assert packet.queue_number == number
                packet.accept(mark=number)

    async with trio.open_nursery() as nursery:
        for number in (1, 2):
            await nursery.start(set_mark, number)
        for number in range(50):
            for udp in udps.values():
                udp.send(b"%d" % number)
        for udp in udps.values():
            assert await udp.receive(50) == [b"%d" % number for number in range(50)]
        nursery.cancel_scope.cancel()
    counts = {key: counter.packets for key, counter in marked.items()}
    assert counts == {(1, 1): 50, (1, 2): 0, (2, 1): 0, (2, 2): 50}


# --- D17 ------------------------------------------------------------------------------------------


async def test_a_packet_that_was_cut_is_flagged_and_cannot_be_rewritten(ns: Namespace) -> None:
    """D17: 16 MiB of TCP over loopback, whose packets are longer than a copy can be."""
    use_all_processors()
    queue_rule(ns, "OUTPUT", "-p tcp")
    cut = whole = 0

    def accept(packet: Packet) -> None:
        nonlocal cut, whole
        if packet.truncated:
            cut += 1
            assert packet.cap_len is not None
            assert packet.original_length == packet.cap_len > len(packet.payload) == 65_531
            with pytest.raises(LocalProtocolError, match="copied only in part"):
                packet.payload = packet.payload
            with pytest.raises(LocalProtocolError, match="copied only in part"):
                packet.accept(payload=packet.payload)
            assert not packet.decided
        else:
            whole += 1
        packet.accept()

    data = bytes(range(256)) * (16 << 12)
    assert len(data) == 16 << 20
    async with (
        open_queue(0, namespace=ns.name, flags=QueueFlags.GSO, max_len=4096) as queue,
        trio.open_nursery() as nursery,
    ):
        handed_to(queue, nursery, accept)
        received = await atcp_transfer(ns, ns, "127.0.0.1", data, timeout_s=20)
        nursery.cancel_scope.cancel()
    assert received == data
    assert cut * 65_535 > len(data) // 2


@pytest.mark.not_in_guest("TCP that is so slow makes short packets of few segments")
async def test_what_is_advised_for_packets_that_no_copy_holds_helps(ns: Namespace) -> None:
    """D17: segmented, and with an MTU of what a copy can hold, each is rewritten whole."""
    use_all_processors()
    ns.run(["ip", "link", "set", "lo", "mtu", "65531"])
    queue_rule(ns, "OUTPUT", "-p tcp")
    longest = 0

    def rewrite(packet: Packet) -> None:
        nonlocal longest
        assert not packet.truncated
        longest = max(longest, len(packet.payload))
        packet.payload = packet.payload.replace(b"a" * 8, b"b" * 8)
        packet.accept()

    async with open_queue(0, namespace=ns.name) as queue, trio.open_nursery() as nursery:
        handed_to(queue, nursery, rewrite)
        received = await atcp_transfer(ns, ns, "127.0.0.1", b"a" * (1 << 20), timeout_s=20)
        nursery.cancel_scope.cancel()
    assert len(received) == 1 << 20
    assert received.count(b"b") > (1 << 20) * 0.99
    assert longest > 60_000


# --- D18 ------------------------------------------------------------------------------------------


async def test_fragments_have_no_transport_to_read_or_repair(pair: Pair) -> None:
    """D18: 4,000 bytes are three packets in raw PREROUTING, and one of 4,028 on INPUT."""
    queue_rule(pair.b, "PREROUTING", "-p udp", 1, table="raw")
    queue_rule(pair.b, "INPUT", UDP, 2)
    udp = Udp(pair.a, pair.b, pair.b4)
    udp.sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    data = bytes(range(250)) * 16
    async with (
        open_queue(1, namespace=pair.b.name) as parts,
        open_queue(2, namespace=pair.b.name) as whole,
    ):
        udp.send(data)
        fragments = await take(parts, 3)
        assert [(len(p.payload), p.payload[6:8].hex()) for p in fragments] == [
            (1500, "2000"),
            (1500, "20b9"),
            (1068, "0172"),
        ]
        for packet in fragments:
            first = packet.ip.fragment_offset == 0
            assert packet.ip.is_fragment
            assert packet.ip.protocol == socket.IPPROTO_UDP
            assert packet.ip.destination_port == (PORT if first else None)
            assert (packet.ip.data is None) is not first
            # Another time to live: the header's checksum is made anew, and nothing else changes.
            edited = packet.payload[:8] + b"\x20" + packet.payload[9:]
            assert packet.set_payload(edited) == (Unfixed.FRAGMENT,)
            assert packet.payload[:10] + packet.payload[12:] == edited[:10] + edited[12:]
            packet.accept()
        [packet] = await take(whole, 1)
        assert (len(packet.payload), packet.ip.is_fragment) == (4028, False)
        assert data_of(packet) == data
        packet.accept()
        assert await udp.receive(1) == [data]


# --- D19 ------------------------------------------------------------------------------------------

HOOKED = "add table ip zz\nadd chain ip zz c { type filter hook output priority 5; }\n"
FLUSHES = {
    "deleted": (["nft", "-f", "-"], HOOKED + "delete table ip zz\n", 0),
    "failed": (["nft", "-f", "-"], HOOKED + 'add rule ip zz c counter name "nosuch"\n', 1),
    "only checked": (["nft", "-c", "-f", "-"], HOOKED, 0),
}


@pytest.mark.parametrize("how", FLUSHES)
async def test_whatever_a_hook_takes_with_it_is_counted_and_the_loop_lives_on(
    ns: Namespace, how: str
) -> None:
    """D19: also a transaction that fails, or is only tried, unregisters what it had registered."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    command, script, code = FLUSHES[how]
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"flushed")
        [packet] = await take(queue, 1)
        assert ns.run(command, stdin=script, check=False).returncode == code
        packet.accept()
        udp.send(b"next")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"next"]
        assert queue.statistics().verdicts_gone == 1


# --- D20 ------------------------------------------------------------------------------------------


async def test_a_second_verdict_raises_and_sends_nothing(ns: Namespace) -> None:
    """D20: drop, then accept; the packet stays dropped."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"dropped", b"behind")
        dropped, behind = await take(queue, 2)
        dropped.drop()
        for _ in range(2):  # before the first is sent, and after
            for again in (dropped.accept, dropped.drop, dropped.stop, dropped.hold):
                with pytest.raises(AlreadyDecidedError, match="has the verdict DROP"):
                    again()
            await trio.lowlevel.checkpoint()
        behind.accept()
        assert await udp.receive(1) == [b"behind"]
        statistics = queue.statistics()
    assert statistics.verdicts == {Verdict.DROP: 1, Verdict.ACCEPT: 1}
    assert statistics.verdicts_gone == 0


# --- D22 ------------------------------------------------------------------------------------------


async def test_a_rewritten_packet_does_not_grow_by_its_padding(ns: Namespace) -> None:
    """D22: rewritten to 29, 30, 31 and 32 bytes in all; they arrive with 1, 2, 3 and 4."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(*[b"something"] * 4)
        for length, packet in enumerate(await take(queue, 4), start=1):
            packet.payload = with_data(packet, b"abcd"[:length])
            assert len(packet.payload) == 28 + length
            packet.accept()
        assert await udp.receive(4) == [b"a", b"ab", b"abc", b"abcd"]


# --- D23 ------------------------------------------------------------------------------------------


async def test_without_payload_everything_else_works(ns: Namespace) -> None:
    """D23: META copy mode, ping, accept."""
    queue_rule(ns, "OUTPUT", "-p icmp")
    seen = 0

    def accept(packet: Packet) -> None:
        nonlocal seen
        seen += 1
        for access in (lambda: packet.payload, lambda: packet.ip, lambda: packet.set_payload(b"")):
            with pytest.raises(LocalProtocolError, match=r"copy_mode=CopyMode\.PACKET"):
                access()
        assert packet.hw_protocol == 0x0800
        assert packet.outdev_name == "lo"
        packet.accept(mark=seen)

    async with (
        open_queue(0, namespace=ns.name, copy_mode=CopyMode.META) as queue,
        trio.open_nursery() as nursery,
    ):
        handed_to(queue, nursery, accept)
        assert (await aping(ns, "127.0.0.1", count=3)).received == 3
        nursery.cancel_scope.cancel()
    assert seen == 6
