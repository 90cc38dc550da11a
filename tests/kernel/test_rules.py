"""Queueing rules: there inside the block, gone outside in every exit, and nobody else's touched.

Each test runs once for every program that can install such a rule on this kernel.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trionfq import ModuleMissingError, Packet, Queue, Verdict, open_queue
from trionfq.rules import Match, ProgramMissingError, RuleError, _programs, queueing

from ._live import LOSE_PRIVILEGE, PORT, Udp, end_of, line_of, program, take
from ._ruleset import (
    BEST,
    FOREIGN_NFT,
    INSTALLERS,
    installers,
    leave_behind,
    ours,
    rules_of,
    tables_of_ours,
)
from .harness import (
    Namespace,
    Pair,
    aping,
    eventually,
    queue_rule,
    rule,
    wait_for_no_queue_row,
    wait_for_queued,
)

UDP = Match(protocol="udp", dports=PORT)
PING = Match(protocol="icmp")
SLOW_PROGRAM = pytest.mark.not_in_guest("it starts a Python program; others of its kind run there")


SAME_HERE = pytest.mark.not_in_guest("what it shows does not differ between kernels")
by_each = pytest.mark.parametrize("by", INSTALLERS)
by_best = pytest.mark.parametrize("by", BEST)
"""For what starts a program of its own, which takes its time."""


@asynccontextmanager
async def answered(queue: Queue, seen: list[Packet] | None = None) -> AsyncIterator[None]:
    """Accept everything meanwhile, and keep what came."""

    def accept(packet: Packet) -> None:
        if seen is not None:
            seen.append(packet)
        packet.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: queue.serve(accept))
        yield
        nursery.cancel_scope.cancel()


# --- what is installed ----------------------------------------------------------------------------


@by_each
async def test_both_families_are_queued_inside_the_block_and_neither_outside(
    ns: Namespace, by: str
) -> None:
    seen: list[Packet] = []
    async with open_queue(3, namespace=ns.name) as queue, answered(queue, seen):
        async with queueing(3, "OUTPUT", match=PING, program=by, namespace=ns.name) as rule:
            assert rule.program == by
            assert rule.families == ("ip", "ip6")
            assert (await aping(ns, "127.0.0.1")).received == 1
            assert (await aping(ns, "::1")).received == 1
            # Request and reply both pass OUTPUT of loopback.
            assert [packet.payload[0] >> 4 for packet in seen] == [4, 4, 6, 6]
            counters = await rule.counters()
            assert [(one.family, one.chain, one.packets) for one in counters] == [
                ("ip", "OUTPUT", 2),
                ("ip6", "OUTPUT", 2),
            ]
            assert await rule.packets() == 4
            assert len(ours(ns)) == 2
        assert ours(ns) == []
        assert (await aping(ns, "127.0.0.1")).received == 1
        assert len(seen) == 4
    assert tables_of_ours(ns) == []


async def test_nft_is_taken_where_the_kernel_has_its_queue_statement(ns: Namespace) -> None:
    async with queueing(0, "INPUT", namespace=ns.name) as rule:
        assert rule.program == ("nft" if "nft" in installers() else "iptables")
    if "nft" not in installers():
        with pytest.raises(ModuleMissingError, match="no queue statement"):
            await queueing(0, "INPUT", program="nft", namespace=ns.name).__aenter__()


@by_each
async def test_the_rule_stands_at_the_top(ns: Namespace, by: str) -> None:
    """D06: behind an ACCEPT a rule would see nothing."""
    others = "iptables" if by == "nft" else by
    for table in ("filter", "mangle"):
        ns.run([others, "-w", "-t", table, "-A", "OUTPUT", "-j", "ACCEPT"])
    for table in ("filter", "mangle"):
        seen: list[Packet] = []
        async with (
            open_queue(0, namespace=ns.name) as queue,
            answered(queue, seen),
            queueing(0, "OUTPUT", match=PING, table=table, program=by, namespace=ns.name),  # type: ignore[arg-type]
        ):
            assert (await aping(ns, "127.0.0.1")).received == 1
            assert len(seen) == 2


@by_each
async def test_at_the_bottom_an_earlier_accept_takes_the_packets(ns: Namespace, by: str) -> None:
    """But not from nft: acceptance in one of its chains is none in another."""
    async with (
        open_queue(0, namespace=ns.name) as queue,
        answered(queue),
        queueing(
            0, "OUTPUT", match=PING, position="bottom", program=by, namespace=ns.name
        ) as queueing_rule,
    ):
        assert (await aping(ns, "127.0.0.1")).received == 1
        assert await queueing_rule.packets() == 2
        target = ["-t", "mangle", "-I", "OUTPUT", "-j", "ACCEPT"]
        ns.run([by if by != "nft" else "iptables", "-w", *target])
        assert (await aping(ns, "127.0.0.1")).received == 1
        assert await queueing_rule.packets() == (4 if by == "nft" else 2)


@by_each
async def test_bypass_is_a_choice(ns: Namespace, by: str) -> None:
    for bypass in (False, True):
        async with queueing(
            0, "OUTPUT", match=PING, bypass=bypass, program=by, namespace=ns.name
        ) as queueing_rule:
            assert (await aping(ns, "127.0.0.1", timeout_s=0.05)).received == bypass
            assert await queueing_rule.packets() == 1 + bypass


@by_each
async def test_flows_are_balanced_over_a_range(ns: Namespace, by: str) -> None:
    """By their addresses (nfqueue_hash), so that all of two hosts' packets come to one queue."""
    destination = ns.udp("127.0.0.1", PORT)
    per_queue: dict[int, list[str]] = {}

    async def collect(queue: Queue) -> None:
        async for packet in queue:
            per_queue.setdefault(queue.number, []).append(str(packet.ip.source))
            packet.accept()

    async with (
        open_queue(0, namespace=ns.name) as zero,
        open_queue(1, namespace=ns.name) as one,
        open_queue(2, namespace=ns.name) as two,
        open_queue(3, namespace=ns.name) as three,
        queueing(
            balance=(0, 3), chain="OUTPUT", match=UDP, program=by, namespace=ns.name
        ) as queueing_rule,
        trio.open_nursery() as nursery,
    ):
        for queue in (zero, one, two, three):
            nursery.start_soon(collect, queue)
        for host in range(2, 66):
            with ns.udp(f"127.0.0.{host}") as sender:
                for _ in range(2):
                    sender.sendto(b"x", destination.getsockname())
        await eventually("all packets", lambda: sum(map(len, per_queue.values())) == 128)
        assert await queueing_rule.packets() == 128
        nursery.cancel_scope.cancel()
    # 64 pairs of hosts miss one of four queues once in 25 million times.
    assert sorted(per_queue) == [0, 1, 2, 3]
    assert sum(len(set(hosts)) for hosts in per_queue.values()) == 64


@by_each
async def test_with_fanout_the_processor_chooses_the_queue(
    ns: Namespace, by: str, one_cpu: None
) -> None:
    """From one processor all flows come to one queue."""
    destination = ns.udp("127.0.0.1", PORT)
    async with (
        queueing(
            balance=(0, 3),
            chain="OUTPUT",
            match=UDP,
            fanout=True,
            bypass=True,
            program=by,
            namespace=ns.name,
        ),
        open_queue(0, namespace=ns.name),
        open_queue(1, namespace=ns.name),
        open_queue(2, namespace=ns.name),
        open_queue(3, namespace=ns.name),
    ):
        for host in range(2, 18):
            with ns.udp(f"127.0.0.{host}") as sender:
                sender.sendto(b"x", destination.getsockname())
        assert sorted(row.queue_total for row in ns.queue_rows()) == [0, 0, 0, 16]


@by_each
async def test_an_excluded_mark_is_left_alone(ns: Namespace, by: str) -> None:
    """D14: a packet that is repeated with the mark is seen once."""
    seen: list[int] = []
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as queue,
        queueing(0, "OUTPUT", match=UDP, exclude_mark=(0x10, 0x10), program=by, namespace=ns.name),
    ):
        udp.send(b"once")
        [packet] = await take(queue, 1)
        seen.append(packet.id)
        packet.repeat(mark=0x31)
        assert await udp.receive(1) == [b"once"]
        assert queue.statistics().packets_received == 1


@by_each
async def test_a_match_says_which_packets(pair: Pair, by: str) -> None:
    """Ports, ranges, networks, interfaces, both ways; what fits no member is left alone."""
    match = Match(
        protocol="udp",
        dports=[*range(5000, 5040, 2), (6000, 6010)],  # more than one multiport match can take
        source=["10.7.0.0/30", "10.9.0.0/16", "fd00:7::/64"],
        destination=[pair.b4, "10.9.0.0/16", pair.b6],
        out_interface="v+",
    )
    async with queueing(
        0, "OUTPUT", match=match, bypass=True, program=by, namespace=pair.a.name
    ) as queueing_rule:
        senders = {
            pair.b4: pair.a.udp("0.0.0.0"),
            pair.b6: pair.a.udp("::"),
        }
        expected = 0
        for address, sender in senders.items():
            for port, fits in (
                (5000, True),
                (5001, False),
                (5038, True),
                (6000, True),
                (6010, True),
                (6011, False),
            ):
                sender.sendto(b"x", (address, port))
                expected += fits
        senders[pair.b4].sendto(b"x", ("127.0.0.1", 5000))
        assert await queueing_rule.packets() == expected == 8
    async with queueing(
        0,
        "INPUT",
        match=[
            Match(in_interface=pair.b_device, source="10.7.0.0/24"),
            Match(in_interface="nowhere"),
        ],
        bypass=True,
        program=by,
        namespace=pair.b.name,
    ) as queueing_rule:
        senders[pair.b4].sendto(b"x", (pair.b4, 9))
        senders[pair.b6].sendto(b"x", (pair.b6, 9))
        assert await queueing_rule.packets() == 1


@by_each
async def test_further_matches_stand_in_the_programs_own_words(ns: Namespace, by: str) -> None:
    match = Match(protocol="udp", iptables="-m udp --sport 7777", nft="udp sport 7777")
    udp = Udp(ns)
    with ns.udp("127.0.0.1", 7777) as other:
        async with queueing(
            0, "OUTPUT", match=match, bypass=True, program=by, namespace=ns.name
        ) as queueing_rule:
            udp.send(b"x")
            other.sendto(b"y", ("127.0.0.1", PORT))
            assert await queueing_rule.packets() == 1


@by_each
async def test_several_chains_are_one_rule_with_one_end(ns: Namespace, by: str) -> None:
    chains = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
    async with queueing(
        0, chains, match=PING, bypass=True, program=by, namespace=ns.name
    ) as queueing_rule:
        assert (await aping(ns, "127.0.0.1")).received == 1
        assert {(one.family, one.chain): one.packets for one in await queueing_rule.counters()} == {
            (family, chain): 2 * (family == "ip") for family in ("ip", "ip6") for chain in chains
        }
    assert ours(ns) == []


@by_each
async def test_a_mark_is_seen_behind_the_rule_as_the_documentation_says(
    ns: Namespace, by: str
) -> None:
    """D10: with iptables acceptance leaves the chain, so only a later table sees the packet."""
    same = rule(ns, "OUTPUT", "-p icmp -m mark --mark 7", table="mangle")
    later = rule(ns, "OUTPUT", "-p icmp -m mark --mark 7")
    async with (
        open_queue(0, namespace=ns.name) as queue,
        queueing(0, "OUTPUT", match=PING, program=by, namespace=ns.name),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: queue.serve(lambda packet: packet.accept(mark=7)))
        assert (await aping(ns, "127.0.0.1")).received == 1
        nursery.cancel_scope.cancel()
    assert later.packets == 2
    # The harness's rules are those of `iptables`, so only its own chain can be left.
    in_same_chain = by == "iptables-nft"
    assert same.packets == (0 if in_same_chain else 2)


# --- every exit -----------------------------------------------------------------------------------


@by_each
@pytest.mark.parametrize(
    "how",
    [
        "exception",
        "cancellation",
        pytest.param("end", marks=SAME_HERE),
        pytest.param("deadline", marks=SAME_HERE),
    ],
)
async def test_the_rule_is_gone_after_every_exit(ns: Namespace, by: str, how: str) -> None:
    foreign = [rule(ns, "OUTPUT", "-p tcp", table=table) for table in ("filter", "mangle")]
    before = rules_of(ns)

    async def run() -> None:
        with trio.CancelScope() as scope:
            async with queueing(0, "OUTPUT", bypass=True, program=by, namespace=ns.name):
                assert len(ours(ns)) == 2
                if how == "exception":
                    raise LookupError("from the block")
                if how == "cancellation":
                    scope.cancel()
                if how == "deadline":
                    scope.deadline = trio.current_time()
                if how != "end":
                    await trio.sleep_forever()
        assert scope.cancelled_caught == (how in ("cancellation", "deadline"))

    if how == "exception":
        with pytest.raises(LookupError, match="from the block"):
            await run()
    else:
        await run()
    assert rules_of(ns) == before
    assert len(foreign) == 2


@by_each
async def test_a_cancellation_at_any_time_leaves_no_rule(ns: Namespace, by: str) -> None:
    for step in range(6):
        with trio.move_on_after(0.015 * step):
            async with queueing(0, "OUTPUT", bypass=True, program=by, namespace=ns.name):
                await trio.sleep_forever()
        assert ours(ns) == []
    assert tables_of_ours(ns) == []


@by_each
async def test_a_rule_that_somebody_has_removed_is_no_error(ns: Namespace, by: str) -> None:
    async with queueing(0, "OUTPUT", bypass=True, program=by, namespace=ns.name):
        if by == "nft":
            [table] = tables_of_ours(ns)
            ns.run(["nft", "delete", "table", "inet", table])
        else:
            for name in (by, by.replace("ip", "ip6", 1)):
                ns.run([name, "-w", "-t", "mangle", "-F"])
    assert ours(ns) == []


@pytest.mark.parametrize("table", ["mangle", "filter"])
@pytest.mark.parametrize("text", FOREIGN_NFT)
@SAME_HERE
async def test_a_rule_is_removed_from_a_table_that_iptables_cannot_read_any_more(
    ns: Namespace, text: str, table: str
) -> None:
    """nft has put a rule into iptables' own tables: where ours is, and into another one."""
    ns.run(["iptables-nft", "-w", "-A", "OUTPUT", "-p", "udp", "-j", "ACCEPT"])
    async with queueing(
        0, "OUTPUT", match=UDP, bypass=True, program="iptables-nft", namespace=ns.name
    ):
        listed = ns.run(["nft", "-j", "list", "ruleset"]).stdout
        assert listed.count("NFQUEUE") == 2
        ns.run(["nft", "add", "rule", "ip", table, "OUTPUT", *text.split()])
    listed = ns.run(["nft", "-j", "list", "ruleset"]).stdout
    assert "NFQUEUE" not in listed
    assert text.split()[1] in listed


@by_each
async def test_rules_may_be_nested_and_each_end_removes_its_own(ns: Namespace, by: str) -> None:
    async with queueing(0, "OUTPUT", bypass=True, program=by, namespace=ns.name):
        async with queueing(0, "INPUT", bypass=True, program=by, namespace=ns.name):
            assert len(ours(ns)) == 4
        left = ours(ns)
        assert len(left) == 2
        assert all("OUTPUT" in line or by == "nft" for line in left)
    assert ours(ns) == []


PROGRAM = """
import signal, sys, trio
import trionfq
from trionfq.rules import Match, queueing

by, *options = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a shell may have had it ignored

async def main():
    try:
        async with (
            trionfq.open_queue(0, on_close=trionfq.Verdict.ACCEPT) as queue,
            queueing(0, "INPUT", match=Match(protocol="tcp"), program=by),
            queueing(
                0,
                "OUTPUT",
                match=Match(protocol="icmp"),
                program=by,
                bypass="bypass" in options,
                guard="guard" in options,
            ),
        ):
            print("ready", flush=True)
            if "leave" in options:
                raise SystemExit(0)
            async for packet in queue:
                packet.accept()
    finally:
        print("unwound", flush=True)

async def without_leaving():
    await queueing(0, "OUTPUT", program=by).__aenter__()
    print("ready", flush=True)

trio.run(without_leaving if "without-leaving" in options else main)
print("over", flush=True)
"""


@by_best
@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGHUP", marks=SLOW_PROGRAM),
        pytest.param("SIGINT", marks=SLOW_PROGRAM),
    ],
)
async def test_a_signal_that_ends_the_program_ends_the_rule(
    ns: Namespace, by: str, name: str
) -> None:
    """D08: in order, all rules, and the process ends by that very signal."""
    number = signal.Signals[name]
    with program(ns, PROGRAM, by) as child:
        assert await line_of(child) == "ready"
        assert len(ours(ns)) == 4
        assert (await aping(ns, "127.0.0.1")).received == 1
        child.send_signal(number)
        code, output, errors = await end_of(child)
    assert code == -number
    assert output == "unwound\n"
    assert ours(ns) == []
    assert errors == "" or name == "SIGINT"
    assert (await aping(ns, "127.0.0.1")).received == 1


@by_best
@SLOW_PROGRAM
async def test_a_program_with_a_handler_of_its_own_keeps_it(ns: Namespace, by: str) -> None:
    text = PROGRAM.replace(
        "async def main():",
        "signal.signal(signal.SIGTERM, lambda *_: print('handled', flush=True))\nasync def main():",
    )
    with program(ns, text, by) as child:
        assert await line_of(child) == "ready"
        child.send_signal(signal.SIGTERM)
        assert await line_of(child) == "handled"
        assert len(ours(ns)) == 4
        child.send_signal(signal.SIGINT)
        await end_of(child)
    assert ours(ns) == []


@by_best
@pytest.mark.parametrize("bypass", [True, pytest.param(False, marks=SLOW_PROGRAM)])
async def test_what_a_killed_program_left_is_not_doubled_by_the_next(
    ns: Namespace, by: str, bypass: bool
) -> None:
    """D08: kill -9, and ping works only with bypass; start, and there is one; stop, and none."""
    foreign = rule(ns, "OUTPUT", "-p tcp", table="mangle")
    before = rules_of(ns)
    options = ["bypass"] * bypass
    for _ in range(2):
        with program(ns, PROGRAM, by, *options) as child:
            assert await line_of(child) == "ready"
            assert len(ours(ns)) == 4
            child.kill()
            await end_of(child)
        await wait_for_no_queue_row(ns, 0)
        assert len(ours(ns)) == 4
        assert (await aping(ns, "127.0.0.1", timeout_s=0.05)).received == bypass
    with program(ns, PROGRAM, by, *options, "leave") as child:
        assert await line_of(child) == "ready"
        assert await line_of(child) == "unwound"
        code, output, errors = await end_of(child)
    assert (code, output, errors) == (0, "", "")
    assert rules_of(ns) == before
    assert tables_of_ours(ns) == []
    assert foreign.packets == 0


@by_each
async def test_another_key_leaves_alone_what_was_left_behind(ns: Namespace, by: str) -> None:
    leave_behind(ns, by)
    left = ours(ns)
    async with queueing(
        0, "OUTPUT", bypass=True, key="other", program=by, namespace=ns.name
    ) as queueing_rule:
        assert len(ours(ns)) == 4
        assert queueing_rule.comment.startswith("trionfq:other:")
    assert ours(ns) == left


async def test_what_another_program_left_behind_is_removed_by_whichever_comes_next(
    ns: Namespace,
) -> None:
    """Also where it had installed the rule by another program, and more than once."""
    for by in (*installers(), *installers()):
        leave_behind(ns, by)
    assert len({line.split()[0].replace("ip6", "ip") for line in ours(ns)}) == len(installers())
    assert len(ours(ns)) == 4 * len(installers())
    async with queueing(0, "OUTPUT", bypass=True, namespace=ns.name):
        assert len(ours(ns)) == 2
    assert ours(ns) == []
    assert tables_of_ours(ns) == []


@by_each
async def test_there_is_no_moment_without_a_rule_where_one_was_left_behind(
    ns: Namespace, by: str
) -> None:
    """What is to be dropped is dropped all the time, while one rule takes the other's place."""
    leave_behind(ns, by, match=UDP)
    udp = Udp(ns)
    seen: list[Packet] = []

    def drop(packet: Packet) -> None:
        seen.append(packet)
        packet.drop()

    async def send() -> None:
        while True:
            udp.send(b"x")
            await trio.sleep(0.001)

    async with open_queue(0, namespace=ns.name) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: queue.serve(drop))
        nursery.start_soon(send)
        await eventually("a packet by the rule that was left", lambda: bool(seen))
        async with queueing(0, "OUTPUT", match=UDP, program=by, namespace=ns.name) as queueing_rule:
            assert len({line.split("trionfq:")[1].split()[0] for line in ours(ns)}) == 1
            before = await queueing_rule.packets()
            await eventually("a packet by the new rule", lambda: len(seen) > before + 5)
            assert udp.waiting() == []
            nursery.cancel_scope.cancel()


@by_best
async def test_a_guard_removes_the_rule_of_a_killed_program(ns: Namespace, by: str) -> None:
    with program(ns, PROGRAM, by, "guard") as child:
        assert await line_of(child) == "ready"
        child.kill()
        await end_of(child)
    await eventually("only the rules without a guard", lambda: len(ours(ns)) == 2, timeout_s=20)
    assert all("icmp" not in line for line in ours(ns))
    assert (await aping(ns, "127.0.0.1")).received == 1


@by_each
@SAME_HERE
async def test_a_guard_is_dismissed_when_the_rule_is_gone(ns: Namespace, by: str) -> None:
    manager = queueing(0, "OUTPUT", bypass=True, guard=True, program=by, namespace=ns.name)
    async with manager:
        assert manager._guard is not None
        pid = manager._guard.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert ours(ns) == []


@by_best
@SLOW_PROGRAM
async def test_a_block_that_nobody_leaves_ends_with_the_interpreter(ns: Namespace, by: str) -> None:
    """As after a Ctrl-C between entering and the first line of the block."""
    with program(ns, PROGRAM, by, "without-leaving") as child:
        assert await line_of(child) == "ready"
        assert await line_of(child) == "over"
        code, output, errors = await end_of(child)
    assert (code, output, errors) == (0, "", "")
    assert ours(ns) == []


# --- packets that wait meanwhile ------------------------------------------------------------------


@by_each
async def test_packets_that_wait_elsewhere_survive_installing_and_removing(
    ns: Namespace, by: str
) -> None:
    """D19: with nft, an empty table stays until no packet waits, since its hook's end drops all."""
    queue_rule(ns, "INPUT", f"-p udp --dport {PORT}", 9)
    udp = Udp(ns)
    async with open_queue(9, namespace=ns.name) as other:
        async with queueing(0, "OUTPUT", match=PING, bypass=True, program=by, namespace=ns.name):
            udp.send(b"waits")
            await wait_for_queued(ns, 9, 1)
        assert ours(ns) == []
        assert len(tables_of_ours(ns)) == (by == "nft")
        # Another start takes the table over rather than adding one.
        async with queueing(0, "OUTPUT", match=PING, bypass=True, program=by, namespace=ns.name):
            assert len(ours(ns)) == 2
            assert len(tables_of_ours(ns)) <= 1 + (by == "nft")
        [packet] = await take(other, 1)
        packet.accept()
        assert await udp.receive(1) == [b"waits"]
        assert other.statistics().verdicts_gone == 0
        await eventually("no table of ours", lambda: not tables_of_ours(ns), timeout_s=10)


@by_each
async def test_packets_that_wait_elsewhere_survive_a_rule_that_cannot_be_installed(
    ns: Namespace, by: str
) -> None:
    """A transaction of nft that registers a hook and then fails unregisters it."""
    queue_rule(ns, "INPUT", f"-p udp --dport {PORT}", 9)
    udp = Udp(ns)
    # No kernel has such a counter, and none knows on OUTPUT how a packet came in.
    match = Match(nft='counter name "nosuch"', iptables="-m policy --dir in --pol none")
    async with open_queue(9, namespace=ns.name) as other:
        udp.send(b"waits")
        [packet] = await take(other, 1)
        with pytest.raises((RuleError, ModuleMissingError), match="install a queueing rule"):
            await queueing(
                0, "OUTPUT", match=match, program=by, namespace=ns.name, timeout_s=60
            ).__aenter__()
        packet.accept()
        # The mangle table of iptables-legacy is new, and stands before the rule: it comes again.
        async with answered(other):
            assert await udp.receive(1) == [b"waits"]
        udp.send(b"waits, too")
        [packet] = await take(other, 1)
        async with queueing(0, "OUTPUT", bypass=True, program=by, namespace=ns.name):
            assert len(ours(ns)) == 2
        packet.accept()
        assert await udp.receive(1) == [b"waits, too"]
        assert other.statistics().verdicts_gone == 0
    assert ours(ns) == []


@by_each
async def test_a_queue_outside_the_rule_answers_its_last_packets(ns: Namespace, by: str) -> None:
    """The recommended order: no bypass, and nothing is lost on starting and stopping."""
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, on_close=Verdict.ACCEPT):
        async with queueing(0, "OUTPUT", match=UDP, program=by, namespace=ns.name):
            udp.send(b"undecided")
            await wait_for_queued(ns, 0, 1)
        udp.send(b"not queued")
        assert await udp.receive(1) == [b"not queued"]
    assert await udp.receive(1) == [b"undecided"]


@by_each
async def test_what_a_rebuilt_table_of_somebody_drops_is_counted(ns: Namespace, by: str) -> None:
    """D19: deleting any hooked table flushes the queues; the loop lives on, without exception."""
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as queue,
        queueing(0, "OUTPUT", match=UDP, program=by, namespace=ns.name),
    ):
        udp.send(b"flushed")
        [packet] = await take(queue, 1)
        ns.run(["nft", "add", "table", "ip", "zz"])
        ns.run(["nft", "add", "chain", "ip", "zz", "c", "{ type filter hook input priority 5; }"])
        ns.run(["nft", "delete", "table", "ip", "zz"])
        packet.accept()
        udp.send(b"next")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"next"]
        assert queue.statistics().verdicts_gone == 1


# --- what goes wrong ------------------------------------------------------------------------------


@SAME_HERE
async def test_a_missing_program_is_named_with_its_package(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_programs, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(ProgramMissingError, match=r"iptables is not installed .*nftables"):
        await queueing(0, "OUTPUT", namespace=ns.name).__aenter__()
    with pytest.raises(ProgramMissingError, match="Debian package nftables"):
        await queueing(0, "OUTPUT", program="nft", namespace=ns.name).__aenter__()


UNPRIVILEGED = """
import trio
from trionfq import TrionfqError
from trionfq.rules import queueing

async def main():
    try:
        async with queueing(0, "OUTPUT"):
            print("installed")
    except TrionfqError as error:
        print(type(error).__name__, error, sep=": ")

lose_privilege("setresuid")
trio.run(main)
"""


@SLOW_PROGRAM
async def test_a_missing_privilege_is_said(ns: Namespace) -> None:
    with program(ns, LOSE_PRIVILEGE + UNPRIVILEGED) as child:
        code, output, errors = await end_of(child)
    assert (code, errors) == (0, "")
    assert output.startswith("PrivilegeError: [Errno 1]")
    assert "CAP_NET_ADMIN is missing" in output
    assert output.count("\n") == 1
    assert ours(ns) == []


@SAME_HERE
@pytest.mark.needs_kernel("iptables-legacy")
async def test_a_lock_that_stays_held_is_said(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """iptables-legacy waits for it; iptables-nft has none."""
    from trionfq.rules import _iptables

    monkeypatch.setattr(_iptables, "LOCK_WAIT_S", 1)
    lock = os.open("/run/xtables.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuleError, match="lock"):
            await queueing(0, "OUTPUT", program="iptables-legacy", namespace=ns.name).__aenter__()
    finally:
        os.close(lock)
    assert ours(ns) == []


@by_each
async def test_a_family_that_fails_takes_the_other_one_with_it(ns: Namespace, by: str) -> None:
    """A match that IPv6 does not have: nothing stays of IPv4's rule either."""
    match = Match(iptables="-m ttl --ttl-eq 5", nft="ip nosuchfield 5")
    with pytest.raises((RuleError, ModuleMissingError)):
        await queueing(0, "OUTPUT", match=match, program=by, namespace=ns.name).__aenter__()
    assert ours(ns) == []
    assert tables_of_ours(ns) == []


@SAME_HERE
async def test_it_cannot_be_entered_twice(ns: Namespace) -> None:
    manager = queueing(0, "OUTPUT", bypass=True, namespace=ns.name)
    async with manager:
        with pytest.raises(RuntimeError, match="entered before"):
            await manager.__aenter__()
    assert ours(ns) == []
