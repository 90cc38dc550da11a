"""The harness itself: rules act, links carry, counters count, and nothing is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

from .harness import (
    Bridged,
    End,
    Forwarding,
    Namespace,
    Pair,
    UdpReceiver,
    UdpSender,
    aping,
    atcp_transfer,
    drain,
    eventually,
    hardware_address,
    join,
    leftovers,
    make_forwarding,
    make_pair,
    namespaces,
    none_left_over,
    ping,
    queue_rule,
    receive,
    rule,
    tcp_transfer,
    wait_for_no_queue_row,
    wait_for_queue_row,
    wait_for_queued,
)

NETLINK_NETFILTER = 12

# NLM_F_REQUEST | NLM_F_ACK; CONFIG with a command to bind queue 3 and parameters PACKET, 65535.
# Bytes, since the harness must not share code with what it is there to test. Little-endian hosts.
BIND_3 = bytes.fromhex(
    "28000000"
    "0203"
    "0500"
    "01000000"
    "00000000"  # nlmsghdr: 40 bytes, type 0x302
    "00"
    "00"
    "0003"  # nfgenmsg: family, version, queue
    "0800"
    "0100"
    "01"
    "00"
    "0000"  # NFQA_CFG_CMD: BIND
    "0900"
    "0200"
    "0000ffff"
    "02"
    "000000"  # NFQA_CFG_PARAMS
)
little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="bytes of a little-endian host"
)


def bind_queue_3(namespace: Namespace) -> socket.socket:
    sock = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.sendto(BIND_3, (0, 0))
    answer = sock.recv(4096)
    assert answer[4:6] == b"\x02\x00", "NLMSG_ERROR"
    assert int.from_bytes(answer[16:20], sys.byteorder, signed=True) == 0, "no error"
    return sock


# --- namespaces -------------------------------------------------------------------------------


def test_namespace_has_a_name_of_its_own_and_is_removed() -> None:
    with namespaces("x", "x") as (one, two):
        assert one.name != two.name
        assert {one.name, two.name} <= leftovers()
        assert one.path.exists()
    assert not leftovers() & {one.name, two.name}


def test_namespace_is_removed_when_the_test_fails() -> None:
    made = Namespace()
    with pytest.raises(ZeroDivisionError), made:
        1 / 0  # noqa: B018
    assert made.name not in leftovers()


def test_namespace_is_removed_when_its_set_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise OSError("no such setting")

    monkeypatch.setattr(Namespace, "sysctl", broken)
    before = leftovers()
    with pytest.raises(OSError, match="no such setting"):
        Namespace()
    assert leftovers() == before


def test_namespace_left_behind_is_told_and_removed() -> None:
    with pytest.raises(AssertionError, match="left behind"), none_left_over():
        forgotten = Namespace()
    assert forgotten.name not in leftovers()
    forgotten.close()


def test_closing_kills_programs_and_closes_sockets() -> None:
    with Namespace() as namespace:
        program = namespace.popen(["sleep", "60"])
        sock = namespace.udp("127.0.0.1")
    assert program.returncode == -9
    assert sock.fileno() == -1


def test_callers_thread_stays_where_it_is(ns: Namespace) -> None:
    here = os.stat("/proc/thread-self/ns/net").st_ino
    threads = threading.active_count()
    inside = ns.call(lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert inside == os.fstat(ns.fileno()).st_ino != here
    assert os.stat("/proc/thread-self/ns/net").st_ino == here
    assert threading.active_count() == threads


def test_errors_inside_reach_the_caller(ns: Namespace) -> None:
    with pytest.raises(FileNotFoundError):
        ns.call(os.stat, "/nowhere")


def test_loopback_is_up_for_both_families(ns: Namespace) -> None:
    assert ping(ns, "127.0.0.1").received == 1
    assert ping(ns, "::1").received == 1


def test_command_that_fails_says_what_it_printed(ns: Namespace) -> None:
    with pytest.raises(AssertionError, match="ended with 2:\nheard\n"):
        ns.run(["sh", "-c", "echo heard; exit 2"])
    with pytest.raises(subprocess.TimeoutExpired):
        ns.run(["sleep", "60"], timeout_s=0.01)


def test_settings_belong_to_the_namespace(pair: Pair) -> None:
    assert pair.a.sysctl("net.ipv4.ip_forward", 1) == "1"
    assert pair.b.sysctl("net.ipv4.ip_forward") == "0"


async def test_command_runs_while_other_tasks_go_on(ns: Namespace) -> None:
    running = trio.Event()

    async def command() -> None:
        running.set()
        await ns.arun(["sh", "-c", f"read -r line < {fifo}"])

    fifo = Path(ns.run(["mktemp", "-u"]).stdout.strip())
    os.mkfifo(fifo)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command)
            await running.wait()
            # Blocks until the command has opened the other end, which it does only if it runs.
            await trio.to_thread.run_sync(fifo.write_text, "go on\n")
    finally:
        os.unlink(fifo)


# --- links ------------------------------------------------------------------------------------


def test_pair_carries_both_families(pair: Pair) -> None:
    assert ping(pair.a, pair.b4, count=3).received == 3
    assert ping(pair.b, pair.a6, count=3).received == 3


def test_links_are_silent(pair: Pair) -> None:
    """One ping is two packets at each end, with no ARP and no neighbour discovery around it."""
    seen = {
        (end, family, chain): rule(end, chain, "", family=family)
        for end in (pair.a, pair.b)
        for family in (4, 6)
        for chain in ("INPUT", "OUTPUT")
    }
    assert ping(pair.a, pair.b4).received == 1
    assert ping(pair.a, pair.b6).received == 1
    assert {key: counter.packets for key, counter in seen.items()} == dict.fromkeys(seen, 1)


def test_mtu_is_set() -> None:
    with make_pair(mtu=1300) as pair:
        fits = ping(pair.a, pair.b4, payload_octets=1272, options=("-M", "do"))
        assert fits.received == 1
        larger = ping(pair.a, pair.b4, payload_octets=1273, options=("-M", "do"), timeout_s=0.05)
        assert larger.received == 0


def test_router_forwards_both_families(forwarding: Forwarding) -> None:
    net = forwarding
    counter = rule(net.router, "FORWARD", f"-i {net.router_a} -o {net.router_b}")
    assert ping(net.a, net.b4, count=2).received == 2
    assert ping(net.b, net.a6, count=2).received == 2
    assert counter.packets == 2


def test_router_says_when_a_packet_does_not_fit() -> None:
    with make_forwarding(mtu_b=1280) as net:
        options = ("-M", "do")
        assert (
            ping(net.a, net.b4, payload_octets=1400, options=options, timeout_s=0.05).received == 0
        )
        assert net.router.counters()["IpFragFails"] == 1
        assert net.a.counters()["IcmpInDestUnreachs"] == 1


def test_bridge_shows_its_packets_to_iptables(bridged: Bridged) -> None:
    match = f"-m physdev --physdev-in {bridged.port_a} --physdev-out {bridged.port_b}"
    counters = [rule(bridged.switch, "FORWARD", match, family=family) for family in (4, 6)]
    assert ping(bridged.a, bridged.b4).received == 1
    assert ping(bridged.a, bridged.b6).received == 1
    assert [counter.packets for counter in counters] == [1, 1]


def test_namespaces_can_be_joined_otherwise() -> None:
    with namespaces("left", "right") as (left, right):
        join(End(left, "x0", ("192.0.2.1/30",)), End(right, "x1", ("192.0.2.2/30",)))
        assert ping(left, "192.0.2.2").received == 1
        assert hardware_address(left, "x0").startswith("02:07:00:")
        assert left.interface_index("x0") > 1


# --- rules, queues, counters ------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_queue_without_a_program_drops(pair: Pair, family: int) -> None:
    address = pair.b4 if family == 4 else pair.b6
    held = queue_rule(pair.b, "INPUT", queue=600, family=family)  # type: ignore[arg-type]
    assert ping(pair.a, address, timeout_s=0.05).received == 0
    assert held.counters() == (1, 84 if family == 4 else 104)


@pytest.mark.parametrize("family", [4, 6])
def test_queue_without_a_program_passes_with_bypass(pair: Pair, family: int) -> None:
    address = pair.b4 if family == 4 else pair.b6
    passed = queue_rule(pair.b, "INPUT", queue=600, bypass=True, family=family)  # type: ignore[arg-type]
    assert ping(pair.a, address, count=2).received == 2
    assert passed.packets == 2


def test_rules_stand_in_the_order_asked_for_and_can_be_removed(ns: Namespace) -> None:
    drop = rule(ns, "OUTPUT", "-j DROP")
    first = rule(ns, "OUTPUT", "-j ACCEPT", first=True)
    assert ping(ns, "127.0.0.1").received == 1
    first.remove()
    # A refusal in OUTPUT is told to the sender, so ping cannot send at all.
    ping(ns, "127.0.0.1", timeout_s=0.05)
    assert drop.packets == 1
    with pytest.raises(LookupError, match="is not there"):
        first.counters()


def test_tables_and_balanced_queues_are_taken(ns: Namespace) -> None:
    queue_rule(ns, "PREROUTING", "-p tcp", queue=(2, 5), table="mangle", family=6)
    assert "--queue-balance 2:5" in ns.run(["ip6tables-save", "-t", "mangle"]).stdout


def test_rule_that_iptables_refuses_is_an_error(ns: Namespace) -> None:
    with pytest.raises(AssertionError, match="iptables"):
        rule(ns, "NOWHERE", "-j ACCEPT")


@little_endian
async def test_bound_queue_has_a_row_until_it_is_closed(pair: Pair) -> None:
    assert pair.b.queue_rows() == []
    sock = bind_queue_3(pair.b)
    row = await wait_for_queue_row(pair.b, 3)
    assert (row.queue, row.copy_mode) == (3, 2)
    assert row.portid == sock.getsockname()[0]
    assert pair.a.queue_rows() == []
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: a row for queue 3"):
        await wait_for_queue_row(pair.b, 3, portid=row.portid + 1, timeout_s=0.01)
    sock.close()
    await wait_for_no_queue_row(pair.b, 3)


@little_endian
async def test_queue_with_a_program_holds_packets_until_it_closes(pair: Pair) -> None:
    bind_queue_3(pair.b)
    queue_rule(pair.b, "INPUT", "-p udp", queue=3, bypass=True)
    receiver = pair.b.udp(pair.b4, 5000)
    pair.a.udp(pair.a4).sendto(b"held", (pair.b4, 5000))
    row = await wait_for_queued(pair.b, 3, 1)
    assert row.id_sequence == 1
    assert drain(receiver) == []


@little_endian
def test_queue_left_bound_fails_the_test_that_left_it() -> None:
    namespace = Namespace()
    sock = bind_queue_3(namespace)
    held = socket.socket(fileno=os.dup(sock.fileno()))
    try:
        with pytest.raises(AssertionError, match="a queue is still bound"):
            namespace.close()
    finally:
        held.close()
    assert namespace.name not in leftovers()


def test_counters_are_the_namespaces(pair: Pair) -> None:
    before = pair.b.counters()["UdpNoPorts"]
    pair.a.udp(pair.a4).sendto(b"nobody", (pair.b4, 9))
    assert pair.b.counters()["UdpNoPorts"] == before + 1
    assert pair.b.counters()["Ip6InReceives"] == 0
    assert "TcpExtTCPTimeouts" in pair.b.counters()


# --- traffic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
async def test_flood_arrives_whole_at_its_rate(pair: Pair, family: int) -> None:
    address = (pair.b4 if family == 4 else pair.b6, 5000)
    with (
        UdpReceiver(pair.b, address) as receiver,
        UdpSender(pair.a, address, rate=20_000) as sender,
    ):
        await sender.wait_sent(2_000)
        sent = sender.stop()
        assert 5_000 < sender.mean_rate < 21_000
        await receiver.wait_received(sent)
        report = receiver.stop()
    assert report.received + report.socket_drops == sent == report.highest + 1
    assert (report.duplicates, report.reordered, report.short, report.gaps) == (0, 0, 0, [])


async def test_flood_stops_at_its_limit_and_losses_are_named(pair: Pair) -> None:
    address = (pair.b4, 5000)
    rule(pair.b, "INPUT", "-p udp -m statistic --mode nth --every 10 --packet 3 -j DROP")
    with UdpReceiver(pair.b, address) as receiver, UdpSender(pair.a, address, limit=100) as sender:
        await sender.wait_sent(100)
        assert sender.stop() == 100
        report = receiver.stop()
    assert report.received == 90
    assert report.gaps == [(number, number) for number in range(3, 100, 10)]


def test_flood_that_ends_before_anybody_looks_reports_all_the_same(ns: Namespace) -> None:
    for _ in range(10):
        with UdpSender(ns, ("127.0.0.1", 9), limit=0) as sender:
            assert sender.stop() == 0


async def test_flood_counts_what_a_rule_refuses(ns: Namespace) -> None:
    rule(ns, "OUTPUT", "-p udp -j DROP")
    with UdpSender(ns, ("127.0.0.1", 9), rate=1_000) as sender:
        await eventually("a refusal", lambda: sender.refused)
    assert sender.sent == 0


@little_endian
async def test_flood_that_a_full_queue_blocks_can_be_stopped(ns: Namespace) -> None:
    bind_queue_3(ns)
    queue_rule(ns, "OUTPUT", "-p udp", queue=3)
    with UdpSender(ns, ("127.0.0.1", 9), buffer_octets=4096) as sender:
        await wait_for_queued(ns, 3, 1)
        await eventually("a pause", lambda: sender.sent)
        start = time.monotonic()
        sender.stop()
    assert time.monotonic() - start < 2


def test_dropped_datagram_is_shown_by_one_behind_it(pair: Pair) -> None:
    rule(pair.b, "INPUT", "-p udp --dport 5000 -m length --length 32 -j DROP")
    receiver = pair.b.udp(pair.b4, 5000)
    sender = pair.a.udp(pair.a4)
    sender.sendto(b"drop", (pair.b4, 5000))
    sender.sendto(b"behind", (pair.b4, 5000))
    assert receiver.recv(100) == b"behind"
    assert drain(receiver) == []


async def test_datagram_is_awaited(pair: Pair) -> None:
    receiver = pair.b.udp(pair.b6, 5000)
    with pytest.raises(AssertionError, match="no datagram within"):
        await receive(receiver, timeout_s=0.001)
    pair.a.udp(pair.a6).sendto(b"hello", (pair.b6, 5000))
    assert await receive(receiver) == b"hello"


async def test_ping_gives_times_by_sequence(pair: Pair) -> None:
    result = await aping(pair.a, pair.b4, count=3)
    assert (result.sent, result.received, sorted(result.rtt_ms)) == (3, 3, [1, 2, 3])
    assert all(0 < ms < 1000 for ms in result.rtt_ms.values())


@pytest.mark.parametrize("family", [4, 6])
async def test_tcp_carries_a_megabyte(pair: Pair, family: int) -> None:
    data = os.urandom(1 << 20)
    address = pair.b4 if family == 4 else pair.b6
    assert await atcp_transfer(pair.a, pair.b, address, data) == data


def test_tcp_that_a_rule_swallows_ends_in_time(pair: Pair) -> None:
    rule(pair.b, "INPUT", "-p tcp -j DROP")
    with pytest.raises(TimeoutError):
        tcp_transfer(pair.a, pair.b, pair.b4, b"x", timeout_s=0.05)
