"""What `diagnose` says of real namespaces (D06: no packets arrive)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from trionfq import CopyMode, open_queue
from trionfq.rules import Cause, Match, diagnose, queueing

from ._live import PORT, Udp
from ._patience import FACTOR
from ._ruleset import FOREIGN_NFT, INSTALLERS, installers, leave_behind, rules_of
from .harness import (
    Bridged,
    Forwarding,
    Namespace,
    Pair,
    aping,
    queue_rule,
    rule,
    wait_for_queued,
)

by_each = pytest.mark.parametrize("by", INSTALLERS)
QUEUED = "-A OUTPUT -p icmp -j NFQUEUE --queue-num 5"


async def test_no_rule_and_nobody_there(ns: Namespace) -> None:
    """D06: without a rule it says so within 3 s, and changes nothing."""
    before = rules_of(ns), ns.run(["nft", "list", "ruleset"], check=False).stdout
    started = trio.current_time()
    seen = await diagnose(0, namespace=ns.name)
    took_s = trio.current_time() - started
    assert seen.causes == {Cause.NOT_BOUND, Cause.NO_RULE}
    assert seen.families == ("ip", "ip6")
    assert f"no rule of network namespace {ns.name!r} points at queue 0" in str(seen)
    assert took_s < 3 * FACTOR
    assert (rules_of(ns), ns.run(["nft", "list", "ruleset"], check=False).stdout) == before


@by_each
async def test_a_queue_that_works_has_no_findings(ns: Namespace, by: str) -> None:
    match = Match(protocol="icmp")
    async with (
        open_queue(5, namespace=ns.name) as queue,
        queueing(5, "OUTPUT", match=match, program=by, namespace=ns.name),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: queue.serve(lambda packet: packet.accept()))
            for address in ("127.0.0.1", "::1"):
                assert (await aping(ns, address)).received == 1
            nursery.cancel_scope.cancel()
        seen = await diagnose(5, namespace=ns.name)
    assert seen.findings == ()
    assert seen.queue is not None
    assert seen.queue.portid == queue.statistics().kernel.portid  # type: ignore[union-attr]
    assert os.getpid() in [owner.pid for owner in seen.owners]
    assert seen.packets == 4
    families = [family for one in seen.rules for family in one.families]
    assert sorted(families) == ["ip", "ip6"]
    assert {one.program for one in seen.rules} == (
        {"nft"} if by == "nft" else {by, by.replace("ip", "ip6", 1)}
    )


async def test_a_rule_of_one_family_behind_an_accept(ns: Namespace) -> None:
    rule(ns, "OUTPUT", "-j ACCEPT")
    queue_rule(ns, "OUTPUT", "-p icmp", 5)
    assert (await aping(ns, "127.0.0.1")).received == 1
    async with open_queue(5, namespace=ns.name):
        seen = await diagnose(5, namespace=ns.name)
    assert seen.causes == {Cause.TAKEN_BEFORE, Cause.NOT_MATCHED, Cause.ONE_FAMILY}
    [found] = seen.rules
    assert (found.table, found.chain, found.place, found.packets) == ("filter", "OUTPUT", 2, 0)
    assert found.ahead is not None
    assert found.ahead.packets == 2
    assert "insert it at the top" in str(seen)
    assert "for IPv6: those packets do not come" in str(seen)


FIREWALLS = [
    pytest.param(
        ["-N before", "-A before -j ACCEPT", "-A OUTPUT -j before", QUEUED],
        ("-j ACCEPT", 2, "filter before"),
        id="in a chain that is called before",
    ),
    pytest.param(
        [
            "-N mine",
            "-A OUTPUT -p icmp -m comment --comment all -j RETURN",
            "-A OUTPUT -j mine",
            QUEUED.replace("OUTPUT", "mine"),
        ],
        ("-p icmp -m comment --comment all -j RETURN", 2, "filter OUTPUT"),
        id="in front of the jump",
    ),
    pytest.param(
        ["-t raw -A OUTPUT -p icmp -j DROP", QUEUED],
        ("-p icmp -j DROP", 1, "raw OUTPUT"),
        id="in a table before",
    ),
    pytest.param(
        ["-t mangle -A PREROUTING -p icmp -j DROP", QUEUED.replace("OUTPUT", "INPUT")],
        ("-p icmp -j DROP", 1, "mangle PREROUTING"),
        id="at a hook before",
    ),
]


@pytest.mark.parametrize(("commands", "ahead"), FIREWALLS)
async def test_what_takes_packets_before_their_rule_is_named(
    ns: Namespace, commands: list[str], ahead: tuple[str, int, str]
) -> None:
    """D06: the ACCEPT of a firewall seldom stands in the very chain of the rule."""
    for command in commands:
        ns.run(["iptables", "-w", *command.split()])
    await aping(ns, "127.0.0.1", timeout_s=0.05)
    seen = await diagnose(5, namespace=ns.name)
    [found] = seen.rules
    assert found.ahead == ahead
    assert {Cause.TAKEN_BEFORE, Cause.NOT_MATCHED} <= seen.causes
    assert f"takes packets first: {ahead[0]} in {ahead[2]} ({ahead[1]} packet" in str(seen)


@pytest.mark.needs_kernel("nft-queue")
async def test_what_takes_packets_before_a_rule_of_nft_is_named(ns: Namespace) -> None:
    """D06: a base chain of a lower priority drops for all that come after it."""
    ns.run(
        ["nft", "-f", "-"],
        stdin="add table inet early\n"
        "add chain inet early out { type filter hook output priority -10; }\n"
        "add chain inet early more\n"
        "add rule inet early out ip protocol icmp jump more\n"
        "add rule inet early more counter drop\n"
        "add table ip late\n"
        "add chain ip late out { type filter hook output priority 0; policy drop; }\n"
        "add rule ip late out counter queue num 5\n",
    )
    await aping(ns, "127.0.0.1", timeout_s=0.05)
    seen = await diagnose(5, namespace=ns.name)
    [found] = seen.rules
    assert found.ahead == ("drop", 1, "inet early more")


async def test_the_wrong_chain(pair: Pair, forwarding: Forwarding) -> None:
    """FORWARD sees nothing of what a machine sends, and nothing at all without forwarding."""
    queue_rule(pair.a, "FORWARD", "-p icmp", 5)
    queue_rule(forwarding.router, "OUTPUT", "-p icmp", 5)
    assert (await aping(pair.a, pair.b4)).received == 1
    assert (await aping(forwarding.a, forwarding.b4)).received == 1
    async with (
        open_queue(5, namespace=pair.a.name),
        open_queue(5, namespace=forwarding.router.name),
    ):
        host = await diagnose(5, namespace=pair.a.name)
        router = await diagnose(5, namespace=forwarding.router.name)
    assert host.causes == {Cause.NOT_MATCHED, Cause.NO_FORWARDING, Cause.ONE_FAMILY}
    assert "net.ipv4.ip_forward" in str(host)
    assert router.causes == {Cause.NOT_MATCHED, Cause.ONE_FAMILY}
    assert router.forwarding == ("ip", "ip6")
    assert "OUTPUT sees packets that this machine sends itself" in str(router)


async def test_a_chain_that_no_rule_jumps_to(ns: Namespace) -> None:
    for name in ("asked", "lost"):
        ns.run(["iptables", "-w", "-N", name])
        queue_rule(ns, name, "-p udp", 5, bypass=True)
    rule(ns, "INPUT", "-j asked")
    Udp(ns).send(b"x")
    seen = await diagnose(5, namespace=ns.name)
    assert Cause.CHAIN_NOT_REACHED in seen.causes
    assert {one.chain: (one.hooks, one.packets) for one in seen.rules} == {
        "asked": (("INPUT",), 1),
        "lost": ((), 0),
    }


async def test_the_wrong_number_and_the_wrong_namespace(pair: Pair) -> None:
    queue_rule(pair.a, "OUTPUT", "-p icmp", (6, 8))
    async with open_queue(7, namespace=pair.a.name), open_queue(5, namespace=pair.b.name):
        seen = await diagnose(5, namespace=pair.a.name)
        assert seen.causes == {Cause.NOT_BOUND, Cause.BOUND_ELSEWHERE, Cause.OTHER_NUMBER}
        assert seen.elsewhere == (f"network namespace {pair.b.name!r}",)
        assert "point at 6-8 (not bound)" in str(seen)
        assert seen.bound == (7,)
        inside = await diagnose(7, namespace=pair.a.name)
        assert [one.queues for one in inside.rules] == [(6, 8)]


async def test_rules_of_every_back_end_are_seen(ns: Namespace) -> None:
    for by in installers():
        if by == "nft":
            ns.run(
                ["nft", "-f", "-"],
                stdin="add table inet foreign\n"
                "add chain inet foreign in { type filter hook input priority 0; }\n"
                "add rule inet foreign in udp dport 53 counter queue num 4-6 bypass,fanout\n",
            )
        else:
            for name in (by, by.replace("ip", "ip6", 1)):
                command = f"{name} -w -A INPUT -j NFQUEUE --queue-num 5 --queue-bypass"
                ns.run(command.split())
    seen = await diagnose(5, namespace=ns.name)
    expected: dict[str, set[Any]] = {
        "nft": {("nft", ("ip", "ip6"), (4, 6))},
        "iptables-nft": {("iptables-nft", ("ip",), (5, 5)), ("ip6tables-nft", ("ip6",), (5, 5))},
        "iptables-legacy": {
            ("iptables-legacy", ("ip",), (5, 5)),
            ("ip6tables-legacy", ("ip6",), (5, 5)),
        },
    }
    assert {(one.program, one.families, one.queues) for one in seen.rules} == {
        line for by in installers() for line in expected[by]
    }
    assert all(one.bypass and one.hooks == ("INPUT",) for one in seen.rules)
    assert "what matches is let through meanwhile" in str(seen)
    assert seen.unread == ()


@pytest.mark.not_in_guest("rules of iptables are shown on this machine's own kernel")
@pytest.mark.parametrize(("text", "shown"), list(zip(FOREIGN_NFT, (0, 1), strict=True)))
async def test_what_nft_hides_from_iptables_is_said(ns: Namespace, text: str, shown: int) -> None:
    ns.run(["iptables-nft", "-w", "-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "5"])
    ns.run(["nft", "add", "rule", "ip", "filter", "OUTPUT", *text.split()])
    seen = await diagnose(5, namespace=ns.name)
    assert len(seen.rules) == shown
    assert Cause.NOT_READ in seen.causes
    assert "table filter of iptables-nft has" in str(seen)


async def test_bridged_packets_that_do_not_come_to_iptables(bridged: Bridged) -> None:
    switch = bridged.switch
    switch.sysctl("net.bridge.bridge-nf-call-ip6tables", 0)
    for family in (4, 6):
        queue_rule(switch, "FORWARD", "-p tcp", 5, family=family)
    seen = await diagnose(5, namespace=switch.name)
    assert seen.bridges == (bridged.bridge,)
    assert seen.bridged_families == ("ip",)
    assert Cause.BRIDGED in seen.causes
    assert "only cross the bridge br do not come to rules for IPv6" in str(seen)


async def test_packets_that_fail_the_reverse_path_filter(pair: Pair) -> None:
    queue_rule(pair.b, "INPUT", "-p udp", 5)
    queue_rule(pair.b, "INPUT", "-p udp", 5, family=6)
    for name in ("all", pair.b_device):
        pair.b.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
    pair.a.run(["ip", "address", "add", "10.99.0.1/32", "dev", pair.a_device])
    sender = pair.a.udp("10.99.0.1")
    sender.sendto(b"x", (pair.b4, PORT))
    async with open_queue(5, namespace=pair.b.name):
        seen = await diagnose(5, namespace=pair.b.name)
    assert seen.reverse_path_drops == 1
    assert seen.causes == {Cause.NOT_MATCHED, Cause.REVERSE_PATH}


async def test_what_the_queue_itself_tells(ns: Namespace) -> None:
    for family in (4, 6):
        queue_rule(ns, "OUTPUT", f"-p udp --dport {PORT}", 5, family=family)
    for sender in (Udp(ns), Udp(ns, address="::1")):
        async with open_queue(5, namespace=ns.name, max_len=1):
            sender.send(b"1", b"2", b"3")
            await wait_for_queued(ns, 5, 1)
            seen = await diagnose(5, namespace=ns.name)
        assert {Cause.WAITING, Cause.QUEUE_FULL} <= seen.causes
        assert "1 packet in queue 5 without a verdict" in str(seen)
        assert "was full for 2 packets" in str(seen)
    async with open_queue(5, namespace=ns.name, copy_mode=CopyMode.NONE):
        seen = await diagnose(5, namespace=ns.name)
    assert seen.causes == {Cause.MODE_NONE}


@by_each
async def test_a_rule_that_was_left_behind(ns: Namespace, by: str) -> None:
    async with queueing(5, "INPUT", program=by, namespace=ns.name):
        assert Cause.LEFT_BEHIND not in (await diagnose(5, namespace=ns.name)).causes
        comment = leave_behind(ns, by, 5)
        seen = await diagnose(5, namespace=ns.name)
    assert seen.left_behind == (comment,)
    assert "starting with the same key replaces it" in str(seen)


@pytest.mark.not_in_guest("what it shows does not differ between kernels")
async def test_a_wrong_number_or_namespace_is_an_error() -> None:
    with pytest.raises(ValueError, match="0x10000"):
        await diagnose(65536)
    with pytest.raises(FileNotFoundError, match="there is none"):
        await diagnose(0, namespace="no-such-namespace")
