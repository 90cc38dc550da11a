"""What the kernel's own test of nfnetlink_queue checks, with docs/examples/nf_queue.py instead of
its helper program: pings, requeueing, verdicts out of order, and the end under load.

The checks are those of tools/testing/selftests/net/netfilter/nft_queue.sh, the transfers among them
in test_selftest_transfers.py. After each, the kernel is as untainted as before.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import signal
import socket
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.example_programs import FOLDER
from trionfq import NetlinkBackend, Statistics, Verdict

from ._live import PATIENCE_S, PORT, Udp
from ._patience import patient
from ._selftest import (
    HOOKS,
    LIMIT_S,
    all_pings,
    astream,
    base_chains,
    counted,
    load_rules,
    nf_queue,
    not_tainted,
    queue_pings,
    running,
)
from .harness import (
    Forwarding,
    Namespace,
    Pair,
    aping,
    eventually,
    hardware_address,
    ping,
    queue_rule,
    wait_for_no_queue_row,
    wait_for_queue_row,
    wait_for_queued,
)

UDP = f"-p udp --dport {PORT}"


@pytest.fixture(autouse=True)
def untainted() -> Iterator[None]:
    with not_tainted():
        yield


def named(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


# --- with and without a program -------------------------------------------------------------------


@pytest.mark.needs_kernel("nft-queue")
async def test_packets_bypass_queues_that_nobody_has_bound(forwarding: Forwarding) -> None:
    load_rules(forwarding.router, queue_pings("filter", 0))
    assert await all_pings(forwarding) == [1, 1, 1, 1]


@pytest.mark.needs_kernel("nft-queue")
@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_without_bypass_they_vanish(forwarding: Forwarding, family: str) -> None:
    net = forwarding
    chain = "type filter hook forward priority 0; counter queue num 600"
    load_rules(net.router, f"table {family} blackhole {{ chain forward {{ {chain}; }}; }}")
    address = net.b4 if family == "ip" else net.b6
    assert ping(net.a, address, timeout_s=0.5).received == 0
    assert counted(net.router, f"chain {family} blackhole forward") == [1]
    net.router.run(["nft", "delete", "table", family, "blackhole"])
    assert ping(net.a, address, timeout_s=patient(5)).received == 1


@pytest.mark.needs_kernel("nft-queue")
@pytest.mark.parametrize("tables", [1, 2])
async def test_two_queues_get_exactly_the_packets_of_their_rules(
    forwarding: Forwarding, tables: int
) -> None:
    """Ten of each family for each table: three hooks each way through the router, four to it.
    Chains between the tables see each packet once: it does not start anew after its verdict."""
    router = forwarding.router
    for priority, name in list(enumerate(["filter", "filter2"]))[:tables]:
        load_rules(router, queue_pings(name, 20 * priority))
    load_rules(router, f"table inet counts {{ {base_chains(10, 'counter')}; }}")
    async with running(router, "-c -q 0") as four, running(router, "-c -q 1") as six:
        assert await all_pings(forwarding) == [1, 1, 1, 1]
        for program in (four, six):
            await program.settled()
            assert program.counts.by_hook == [3 * tables, tables, 2 * tables, tables, 3 * tables]
            assert str(program.counts).splitlines()[-1] == f"{10 * tables} packets total"
    between = [counted(router, f"chain inet counts {hook}") for hook in HOOKS]
    assert between == [[6], [2], [4], [2], [6]]


@pytest.mark.needs_kernel("vrf")
async def test_a_ping_through_a_vrf_meets_the_queue_once_at_each_device(pair: Pair) -> None:
    net = pair
    neighbour = hardware_address(net.b, net.b_device)
    for command in (
        "ip link add tvrf type vrf table 9876",
        f"ip link set {net.a_device} master tvrf",
        "ip link set tvrf up",
        # Its move into the VRF has cost the device its neighbours.
        f"ip neigh replace {net.b4} lladdr {neighbour} dev {net.a_device} nud permanent",
    ):
        net.a.run(command.split())
    rules = [
        queue_rule(net.a, chain, f"-o {device} -p icmp --icmp-type 8", 1, table="mangle")
        for chain in ("OUTPUT", "POSTROUTING")
        for device in ("tvrf", net.a_device)
    ]
    async with running(net.a, "-c -q 1") as program:
        answer = await aping(net.a, net.b4, timeout_s=patient(5), options=("-I", "tvrf"))
        assert answer.received == 1
        await program.settled()
    assert [rule.packets for rule in rules] == [1, 1, 1, 1]
    assert program.counts.by_hook == [0, 0, 0, 2, 2]


# --- connections, and requeueing ------------------------------------------------------------------


def connect_and_close(ns: Namespace, port: int, times: int) -> None:
    """Connections that are closed as soon as they are there."""
    listener = ns.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.settimeout(PATIENCE_S)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    for _ in range(times):
        with ns.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", port))
        listener.accept()[0].close()


async def test_connections_that_close_at_once_are_let_go_on(ns: Namespace) -> None:
    """What the server sends is queued: to take the connection, to confirm its end, to end it."""
    queue_rule(ns, "OUTPUT", "-p tcp --sport 23456", 3)
    async with running(ns, "-c -q 3") as program:
        await trio.to_thread.run_sync(connect_and_close, ns, 23456, 20)
        await program.settled()
    assert program.counts.total >= 2 * 20
    assert program.counts.by_hook[3] == program.counts.total


def is_over(ns: Namespace) -> bool:
    """Whether no TCP connection is open or closing, on either side."""
    time_wait = "06"
    lines = ns.read_proc("net/tcp").splitlines()[1:]
    return all(line.split()[3] == time_wait for line in lines)


async def test_a_requeued_packet_meets_the_second_program_once_however_slow_the_first(
    ns: Namespace,
) -> None:
    """At OUTPUT and again at POSTROUTING; the first program has packets segmented."""
    ns.netlink(lambda route: route.link("set", index=1, mtu=1500))
    for chain in ("OUTPUT", "POSTROUTING"):
        queue_rule(ns, chain, "-p tcp --dport 12345", 0, table="mangle")
    start = time.monotonic()
    async with running(ns, "-c -q 1") as second, running(ns, "-G -d 150 -c -q 0 -Q 1") as first:
        sent, received = await astream(ns, ns, "127.0.0.1", os.urandom(3000))
        assert sent == received
        # Until then packets come: the last one confirms the end.
        await eventually("the connection's end", lambda: is_over(ns), timeout_s=20)
        for program in (first, second, first, second):
            await program.settled()
        assert time.monotonic() - start > 0.15 * first.counts.total
    assert first.counts == second.counts
    # The handshake's two packets, three of data, and the end.
    assert first.counts.by_hook[:3] == [0, 0, 0]
    assert min(first.counts.by_hook[3:]) >= 6


# --- verdicts out of order, and on packets that are not there -------------------------------------


@pytest.mark.usefixtures("one_cpu")
async def test_packets_arrive_in_the_order_of_their_verdicts(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with running(ns, "-O -b -q 0") as program:
        udp.send(*named(*range(32)))
        assert await udp.receive(32) == named(*range(15, -1, -1), *range(31, 15, -1))
        await program.settled()
        udp.send(b"the next fifteen are missing")
        await wait_for_queued(ns, 0, 1)
        assert udp.waiting() == []
        await eventually("an answer", lambda: program.queue.statistics().verdicts_gone == 33 * 50)
    statistics = program.queue.statistics()
    assert (statistics.verdicts_refused, statistics.packets_lost) == (0, 0)


def program_of_its_own(namespace: Namespace, line: str) -> tuple[int, Statistics]:
    """Run the program in this thread; give how many packets it saw, and what its queue counted."""

    async def main() -> tuple[int, Statistics]:
        counts = nf_queue.Counts()
        options = nf_queue.parse(line.split())
        backend = NetlinkBackend(namespace=namespace.name)
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                queue = await nursery.start(
                    functools.partial(nf_queue.run, options, counts, backend=backend)
                )
        return counts.total, queue.statistics()

    return trio.run(main)


async def test_eight_queues_with_verdicts_out_of_order_and_bogus_ones_lose_nothing(
    forwarding: Forwarding,
) -> None:
    net = forwarding
    pairs = [Udp(net.a, net.b, net.b4, PORT + number) for number in range(8)]
    for number in range(8):
        queue_rule(net.router, "FORWARD", f"-p udp --dport {PORT + number}", number)
    async with contextlib.AsyncExitStack() as stack:
        programs = [
            await stack.enter_async_context(running(net.router, f"-q {number} -O -b"))
            for number in range(8)
        ]
        for datagram in named(*range(16)):
            for udp in pairs:
                udp.send(datagram)
        for udp in pairs:
            assert sorted(await udp.receive(16), key=int) == named(*range(16))
            assert udp.waiting() == []
        for program in programs:
            await program.settled()
            statistics = program.queue.statistics
            await eventually("answers", lambda s=statistics: s().verdicts_gone == 16 * 50)  # type: ignore[misc]
            assert statistics().verdicts_refused == 0


@pytest.mark.not_in_guest("eight threads that take turns with one interpreter take minutes there")
async def test_eight_queues_are_answered_at_once_by_threads_and_lose_nothing(
    forwarding: Forwarding,
) -> None:
    """Each with a trio run of its own, and packets of both families.

    24 packets a queue: 16 backwards, and eight when no more have come for two seconds."""
    net = forwarding
    each, queues = 12, range(8)
    pairs = []
    for number in queues:
        port = PORT + number
        for family, address in ((4, net.b4), (6, net.b6)):
            match = f"-p udp --dport {port}"
            queue_rule(net.router, "FORWARD", match, number, bypass=True, family=family)  # type: ignore[arg-type]
            pairs.append(Udp(net.a, net.b, address, port))
    seen: dict[int, tuple[int, Statistics]] = {}

    async def decide(number: int) -> None:
        line = f"-q {number} -O -b -t 2"
        seen[number] = await trio.to_thread.run_sync(program_of_its_own, net.router, line)

    async with trio.open_nursery() as nursery:
        for number in queues:
            nursery.start_soon(decide, number)
        for number in queues:
            await wait_for_queue_row(net.router, number, timeout_s=20)
        for datagram in named(*range(each)):
            for udp in pairs:
                udp.send(datagram)
    for udp in pairs:
        assert sorted(await udp.receive(each), key=int) == named(*range(each))
        assert udp.waiting() == []
    for number in queues:
        count, statistics = seen[number]
        assert count == 2 * each
        assert statistics.verdicts_gone == 50 * count
        assert (statistics.verdicts_refused, statistics.packets_lost) == (0, 0)


# --- the end --------------------------------------------------------------------------------------


def start(ns: Namespace, line: str) -> int:
    """Start the program as a user does; gives its process id."""
    program = str(FOLDER / "nf_queue.py")
    command = [sys.executable, "-W", "error", program, *line.split()]
    path = str(Path(__file__).parents[2])
    return ns.popen(command, env={**os.environ, "PYTHONPATH": path}).pid


def fork(ns: Namespace, line: str) -> int:
    """Start it as a copy of this process, which takes no time; gives its process id.

    By a thread that has no trio run, so it may have one of its own."""

    def copy() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of copies of threads, since 3.12
            process = os.fork()
        if process == 0:
            try:
                signal.set_wakeup_fd(-1)  # the one of the run that goes on in the other process
                nf_queue.main(line.split())
            finally:
                os._exit(99)
        return process

    return ns.call(copy)


@pytest.mark.parametrize(
    "way",
    [fork, pytest.param(start, marks=pytest.mark.not_in_guest("Python takes a minute to start"))],
)
async def test_a_program_that_is_terminated_in_its_sleep_leaves_no_queue(
    ns: Namespace, way: Callable[[Namespace, str], int]
) -> None:
    """Ten packets wait, their verdicts would take five minutes. SIGTERM ends it at once, and what
    waited is dropped."""
    rule = queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    process = way(ns, "-q 0 -d 30000 -c")
    try:
        await wait_for_queue_row(ns, 0, timeout_s=20)
        udp.send(*named(*range(10)))
        await wait_for_queued(ns, 0, 10)
        os.kill(process, signal.SIGTERM)
        await wait_for_no_queue_row(ns, 0)
    finally:
        os.kill(process, signal.SIGKILL)  # harmless to one that has ended
        _, status = await trio.to_thread.run_sync(os.waitpid, process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    rule.remove()
    udp.send(b"behind")
    assert await udp.receive(1) == [b"behind"]


def unsent_octets(sock: socket.socket) -> int:
    """What a socket has sent and the kernel has not delivered or dropped yet (SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.needs_kernel("nft-queue")
async def test_rules_go_after_a_program_that_has_left_packets(ns: Namespace) -> None:
    """Its packets are dropped behind its end. A chain that goes before they are gone, being the
    last of its hook, costs Linux 6.1 a warning (nf_reinject), whoever had the queue."""
    chain = f"type filter hook output priority 0; udp dport {PORT} queue num 0"
    load_rules(ns, f"table ip filter {{ chain output {{ {chain}; }}; }}")
    udp = Udp(ns)
    async with running(ns, "-q 0 -d 30000"):
        udp.send(*named(*range(10)))
        await wait_for_queued(ns, 0, 10)
        assert unsent_octets(udp.sender) > 0
    assert ns.queue_row(0) is None
    await eventually("packets dropped", lambda: unsent_octets(udp.sender) == 0)
    ns.run(["nft", "flush", "ruleset"])
    udp.send(b"behind")
    assert await udp.receive(1) == [b"behind"]


async def test_a_queue_is_closed_under_load(ns: Namespace) -> None:
    """Three times opened and closed while datagrams come, and some are not answered yet."""
    queue_rule(ns, "OUTPUT", UDP, bypass=True)
    udp = Udp(ns)
    over = threading.Event()

    def send() -> None:
        deadline = time.monotonic() + LIMIT_S
        while not over.is_set() and time.monotonic() < deadline:
            udp.send(*named(*range(20)))
            time.sleep(0.001)  # or this thread keeps the interpreter for itself

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, send)
        try:
            for _ in range(3):
                async with running(ns, "-O -b") as program:
                    await eventually("packets", lambda p=program: p.counts.total >= 20)  # type: ignore[misc]
                assert program.queue.statistics().verdicts[Verdict.ACCEPT] >= 16
                assert ns.queue_row(0) is None
        finally:
            over.set()
    udp.waiting()
    udp.send(b"behind")
    assert await udp.receive(1) == [b"behind"]
