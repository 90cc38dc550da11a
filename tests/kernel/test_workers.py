"""Worker processes on the kernel's queues: balanced, killed under traffic, ended in every way."""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from typing import NamedTuple

import pytest
import trio

import trionfq
from trionfq import QueueBusyError, Verdict, WorkerDiedError, open_queue

from . import worker_targets as targets
from ._live import PORT, Udp, end_of, line_of, program
from .harness import (
    Namespace,
    drain,
    eventually,
    queue_rule,
    wait_for_no_queue_row,
    wait_for_queued,
)

PATIENCE_S = 300.0
"""How long what must come is waited for; to start a process takes seconds on a busy machine."""

open_workers = functools.partial(trionfq.open_workers, grace_s=PATIENCE_S)

UDP = f"-p udp --dport {PORT}"
# The balance is by addresses. So many leave no queue of four without one, whatever the kernel's
# seed is: 4 * (3/4)**96 is less than 1 in 10**11. For two queues a third of them will do.
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 97)]


class Arrived(NamedTuple):
    """A datagram that came through a queue."""

    queue: int
    pid: int
    address: str
    data: bytes


class Spread:
    """Senders with many addresses, and one receiver."""

    def __init__(self, ns: Namespace, addresses: list[str]) -> None:
        self.addresses = addresses
        self.receiver = ns.udp("127.0.0.1", PORT)
        self.senders = {address: ns.udp(address) for address in addresses}

    def send(self, data: bytes) -> None:
        """One datagram from each address."""
        for sender in self.senders.values():
            sender.sendto(data, ("127.0.0.1", PORT))

    async def receive(self) -> Arrived:
        """The next datagram, whoever sent it."""
        before = self.receiver.gettimeout()
        while True:
            self.receiver.settimeout(0)
            try:
                found, (address, _port) = self.receiver.recvfrom(65536)
                break
            except BlockingIOError:
                with trio.fail_after(PATIENCE_S):
                    await trio.lowlevel.wait_readable(self.receiver)
            finally:
                self.receiver.settimeout(before)
        queue, pid, data = found.split(b" ", 2)
        return Arrived(int(queue), int(pid), address, data)

    async def receive_round(self, data: bytes) -> dict[str, Arrived]:
        """What comes of one `send`, by address; all of it comes, once."""
        found = [await self.receive() for _ in self.addresses]
        assert {one.data for one in found} == {data}
        by_address = {one.address: one for one in found}
        assert sorted(by_address) == sorted(self.addresses)
        return by_address


class Deaths:
    """An error handler that keeps what it is told."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[WorkerDiedError](1000)

    def __call__(self, error: Exception, packet: trionfq.Packet | None) -> None:
        assert isinstance(error, WorkerDiedError)
        self._send.send_nowait(error)

    async def next(self) -> WorkerDiedError:
        with trio.fail_after(PATIENCE_S):
            return await self._receive.receive()


async def test_four_workers_answer_every_packet_once_each_its_own_addresses(ns: Namespace) -> None:
    queue_rule(ns, "INPUT", UDP, queue=(0, 3))
    spread = Spread(ns, ADDRESSES)
    rounds = 5
    async with open_workers(targets.tag, queues=range(4), namespace=ns.name) as workers:
        pids = workers.pids
        spread.send(b"first")
        whose = await spread.receive_round(b"first")
        for number in range(1, rounds):
            spread.send(b"%d" % number)
            now = await spread.receive_round(b"%d" % number)
            assert {a: one.queue for a, one in now.items()} == {
                a: one.queue for a, one in whose.items()
            }, "an address stays with its queue"
        seen = await workers.statistics()
    assert drain(spread.receiver) == [], "nothing came twice"
    assert {one.queue: one.pid for one in whose.values()} == pids, "each worker had its share"
    share = Counter(one.queue for one in whose.values())
    assert {number: one.packets_received for number, one in seen.queues.items()} == {
        number: rounds * count for number, count in share.items()
    }
    total = seen.total
    assert total.packets_received == total.verdicts[Verdict.ACCEPT] == rounds * len(ADDRESSES)
    assert (total.packets_lost, total.undecided, total.verdicts_gone) == (0, 0, 0)
    assert ns.queue_rows() == []


async def test_a_worker_killed_under_traffic_is_replaced_and_no_packet_of_others_is_lost(
    ns: Namespace,
) -> None:
    queue_rule(ns, "INPUT", UDP, queue=(0, 1))
    # Rounds go on while the victim is behind. What it may then send at once must find room in the
    # receiver (277 small datagrams by default), or it would push out what the other one lets pass.
    spread = Spread(ns, ADDRESSES[:32])
    most = len(spread.addresses)
    deaths = Deaths()
    victim, other = 1, 0
    async with open_workers(
        targets.tag, queues=(0, 1), namespace=ns.name, max_len=most, error_handler=deaths
    ) as workers:
        pids = workers.pids
        row = ns.queue_row(victim)
        assert row is not None
        spread.send(b"0")
        whose = {a: one.queue for a, one in (await spread.receive_round(b"0")).items()}
        others = {address for address, queue in whose.items() if queue == other}
        missing = Counter[bytes]()
        came = Counter[tuple[str, bytes]]()
        number = 0
        new = None
        while new is None:
            number += 1
            data = b"%d" % number
            spread.send(data)
            if number == 2:
                os.kill(pids[victim], signal.SIGKILL)
            # Every packet of the other queue comes; of the victim's, some.
            missing[data] = len(others)
            while missing[data]:
                one = await spread.receive()
                assert whose[one.address] == one.queue
                came[one.address, one.data] += 1
                if one.queue == other:
                    assert one.pid == pids[other]
                    missing[one.data] -= 1
                elif one.pid != pids[victim]:
                    new = one.pid
        error = await deaths.next()
        assert (error.queue_number, error.pid) == (victim, pids[victim])
        assert error.exit_code == -signal.SIGKILL
        assert workers.pids == {other: pids[other], victim: new}
        assert set(came.values()) == {1}, "none came twice"
        seen = await workers.statistics()
        assert seen.queues[other].packets_received == (number + 1) * len(others)
        assert seen.queues[other].packets_lost == 0
        assert seen.deaths == {other: 0, victim: 1}


async def test_what_a_dead_worker_held_is_dropped_and_what_a_stopped_one_held_gets_on_close(
    ns: Namespace,
) -> None:
    queue_rule(ns, "INPUT", UDP)
    udp = Udp(ns)
    deaths = Deaths()
    async with open_workers(
        targets.hold,
        queues=[0],
        namespace=ns.name,
        on_close=Verdict.ACCEPT,
        error_handler=deaths,
    ) as workers:
        udp.send(b"1", b"2", b"3")
        row = await wait_for_queued(ns, 0, 3)
        os.kill(workers.pids[0], signal.SIGKILL)
        await deaths.next()
        after = await eventually(
            "another socket owns the queue",
            lambda: (now := ns.queue_row(0)) and now.portid != row.portid and now,
            timeout_s=PATIENCE_S,
        )
        assert after.queue_total == 0, "the kernel has dropped them"
        udp.send(b"4", b"5")
        await wait_for_queued(ns, 0, 2)
    assert await udp.receive(2) == [b"4", b"5"]
    assert udp.waiting() == []


async def test_a_packet_that_kills_its_worker_is_gone_and_the_next_is_decided(
    ns: Namespace,
) -> None:
    queue_rule(ns, "INPUT", UDP)
    udp = Udp(ns)
    deaths = Deaths()
    async with open_workers(
        targets.choke, queues=[0], namespace=ns.name, error_handler=deaths
    ) as workers:
        before = workers.pids[0]
        row = ns.queue_row(0)
        assert row is not None
        udp.send(b"poison")
        error = await deaths.next()
        assert isinstance(error.__cause__, LookupError)
        await eventually(
            "another socket owns the queue",
            lambda: (now := ns.queue_row(0)) and now.portid != row.portid,
            timeout_s=PATIENCE_S,
        )
        assert workers.pids[0] != before
        udp.send(b"wholesome")
        assert await udp.receive(1) == [b"wholesome"]
    assert udp.waiting() == []


async def test_a_queue_that_another_program_owns_fails_the_opening_and_binds_nothing(
    ns: Namespace,
) -> None:
    async with open_queue(1, namespace=ns.name) as queue:
        with pytest.raises(QueueBusyError) as caught:
            async with open_workers(targets.tag, queues=(0, 1, 2), namespace=ns.name):
                raise AssertionError("entered")
        assert caught.value.owner_portid == queue.backend.port_id
        assert [row.queue for row in ns.queue_rows()] == [1]
    assert ns.queue_rows() == []


async def test_a_namespace_that_is_not_there_is_said_before_anything_is_started() -> None:
    manager = open_workers(targets.tag, queues=[0], namespace="trionfq-none-such")
    with pytest.raises(FileNotFoundError, match="trionfq-none-such"):
        await manager.__aenter__()


PROGRAM = """
import ctypes, trio, trionfq
from tests.kernel import worker_targets as targets

async def main():
    async with trionfq.open_workers(
        targets.hold, queues=(0, 1), on_close=trionfq.Verdict.ACCEPT, grace_s=300
    ) as workers:
        print("open", flush=True)
        await workers.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_program_that_is_ended_leaves_no_queue_and_loses_no_packet(
    ns: Namespace, number: signal.Signals
) -> None:
    queue_rule(ns, "INPUT", UDP, queue=1)
    udp = Udp(ns)
    with program(ns, PROGRAM + "\ntrio.run(main)") as process:
        assert await line_of(process) == "open"
        assert {row.queue for row in ns.queue_rows()} == {0, 1}
        udp.send(b"1", b"2", b"3")
        await wait_for_queued(ns, 1, 3)
        process.send_signal(number)
        assert await udp.receive(3) == [b"1", b"2", b"3"], "on_close is kept"
        for queue in (0, 1):
            await wait_for_no_queue_row(ns, queue, timeout_s=PATIENCE_S)
        code, _output, errors = await end_of(process)
    assert code == -number
    assert "worker" not in errors


async def test_a_missing_privilege_fails_the_opening_as_itself(ns: Namespace) -> None:
    text = """
# So that a program that this one starts does not have it, whoever's it is.
PR_CAPBSET_DROP, CAP_NET_ADMIN = 24, 12
assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) == 0
try:
    trio.run(main)
except trionfq.PrivilegeError as error:
    print(error)
"""
    with program(ns, PROGRAM + text) as process:
        assert "CAP_NET_ADMIN is missing" in await line_of(process)
        code, _output, errors = await end_of(process)
    assert (code, errors) == (0, "")
    assert ns.queue_rows() == []
