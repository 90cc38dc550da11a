"""The end of a queue: everything undecided gets the closing policy, and nothing else is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from trionfq import NetlinkBackend, Queue, QueueBusyError, QueueFlags, Verdict, open_queue

from ._live import (
    PORT,
    RUN_UNTIL_INTERRUPTED,
    Udp,
    data_of,
    end_of,
    line_of,
    open_descriptors,
    preferred,
    program,
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
    in_user_namespace,
    queue_rule,
    rule,
    wait_for_no_queue_row,
    wait_for_queued,
)

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"


# --- under load -----------------------------------------------------------------------------------

ROUNDS = 60
LEAST_RATE = 20_000
RATE = 30_000
# Nothing may be lost at any rate; but if other work here took the flow's time, it shows too little.
ATTEMPTS = 3


@contextmanager
def flow(pair: Pair) -> Iterator[tuple[UdpSender, UdpReceiver]]:
    """Numbered datagrams from a to b, at a rate that other work here does not take away."""
    use_all_processors()
    where = (pair.b4, PORT)
    with UdpReceiver(pair.b, where) as receiver, UdpSender(pair.a, where, rate=RATE) as sender:
        assert sender._process is not None
        assert receiver._process is not None
        with preferred(sender._process.pid, receiver._process.pid):
            yield sender, receiver


async def nothing_lost(sender: UdpSender, receiver: UdpReceiver) -> int:
    """Stop the flow, see that every number has come, once, and say how many that were."""
    sent = sender.stop()
    await eventually("all received, or a gap", lambda: receiver.received >= sent, timeout_s=10)
    report = receiver.stop()
    assert (report.received, report.gaps, report.duplicates) == (sent, [], 0)
    assert sender.refused == 0
    return sent


async def decide_all(queue: Queue) -> None:
    async for packet in queue:
        packet.accept()
        if packet.id >= 500:
            break


async def hold_all(queue: Queue) -> None:
    async for packet in queue:
        packet.hold()
        if packet.id >= 500:
            break


async def hold_every_third(queue: Queue) -> None:
    async for packet in queue:
        if packet.id % 3:
            packet.accept()
        else:
            packet.hold()
        if packet.id >= 500:
            break


async def read_nothing(queue: Queue) -> None:
    def some() -> bool:
        row = queue.statistics().kernel
        return row is not None and row.id_sequence >= 500

    await eventually("five hundred packets queued", some)


@pytest.mark.not_in_guest("emulation does not reach the rate of packets that this is about")
async def test_opening_and_closing_sixty_times_under_load_loses_nothing(pair: Pair) -> None:
    """At least 20,000 packets/s through a bypass rule; policy accept; received == sent.

    What the program does with its packets changes from round to round. Every other round fails
    open when its queue or its buffer is full; the others have room for what comes meanwhile, where
    this process may ask for that.
    """
    queue_rule(pair.b, "INPUT", UDP, bypass=True)
    for _ in range(ATTEMPTS):
        if await open_and_close_under_load(pair) >= LEAST_RATE:
            return
    raise AssertionError(f"this machine carries less than {LEAST_RATE} packets/s")


async def open_and_close_under_load(pair: Pair) -> float:
    """Give the mean rate of what flowed."""
    programs = (decide_all, hold_all, hold_every_third, read_nothing)
    queued = 0
    with flow(pair) as (sender, receiver):
        for number in range(ROUNDS):
            await sender.wait_sent(sender.sent + 500)
            fail_open = number % 2 or in_user_namespace()
            async with open_queue(
                0,
                namespace=pair.b.name,
                on_close=Verdict.ACCEPT,
                flags=QueueFlags.FAIL_OPEN if fail_open else QueueFlags(0),
                max_len=1024 if fail_open else 1 << 17,
                receive_buffer_bytes=None if fail_open else 64 << 20,
            ) as queue:
                await programs[number // 2 % len(programs)](queue)
                row = queue.statistics().kernel
            assert pair.b.queue_row(0) is None
            assert row is not None
            queued += row.id_sequence
        rate = sender.mean_rate
        sent = await nothing_lost(sender, receiver)
    assert ROUNDS * 500 <= queued < sent
    return rate


async def test_closing_an_inherited_queue_without_its_ledger_loses_nothing(pair: Pair) -> None:
    """Two batches answer all that is queued, where the lowest id is not known."""
    queue_rule(pair.b, "INPUT", UDP, bypass=True)
    with flow(pair) as (sender, receiver):
        for number in range(6):
            await sender.wait_sent(sender.sent + 500)
            binder = NetlinkBackend(namespace=pair.b.name)
            fd = os.dup(binder._socket.fileno())
            manager = open_queue(0, backend=binder, flags=QueueFlags.FAIL_OPEN)
            await manager.__aenter__()
            async with open_queue(
                0, fd=fd, inherited=True, on_close=Verdict.ACCEPT, flags=QueueFlags.FAIL_OPEN
            ) as heir:
                await (read_nothing if number % 2 else hold_every_third)(heir)
            assert pair.b.queue_row(0) is None
            await manager.__aexit__(None, None, None)
        await nothing_lost(sender, receiver)


# --- every way to the end -------------------------------------------------------------------------


class BoomError(Exception):
    pass


@pytest.mark.parametrize("policy", [Verdict.ACCEPT, Verdict.DROP])
@pytest.mark.parametrize("way", ["the end", "aclose", "exception", "cancelled", "interrupt"])
async def test_what_is_undecided_gets_the_policy_however_the_block_ends(
    ns: Namespace, policy: Verdict, way: str
) -> None:
    """Held, handed out, read ahead and unread packets alike; what was decided stays decided."""
    queue_rule(ns, "OUTPUT", UDP, bypass=True)
    udp = Udp(ns)
    names = [b"%d" % n for n in range(40)]
    raised: BaseException | None = None
    failure = {"exception": BoomError("mine"), "interrupt": KeyboardInterrupt()}.get(way)
    with trio.CancelScope() as scope:
        try:
            async with open_queue(0, namespace=ns.name, on_close=policy) as queue:
                udp.send(*names[:30])
                packets = await take(queue, 10)
                packets[0].hold()
                packets[1].drop()
                packets[2].accept(payload=with_data(packets[2], b"two"))
                # Not read by anybody: no checkpoint comes between.
                udp.send(*names[30:])
                if way == "aclose":
                    await queue.aclose()
                elif way == "cancelled":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                elif failure is not None:
                    raise failure
        except BaseException as error:
            raised = error
            if isinstance(error, trio.Cancelled):
                raise
    assert scope.cancelled_caught == (way == "cancelled")
    if failure is not None:
        assert raised is failure
        assert raised.__context__ is None
        assert raised.__cause__ is None
    assert ns.queue_row(0) is None
    udp.send(b"behind")
    arrived = await everything_before(udp, b"behind")
    undecided = [name for name in names if name not in (b"1", b"2")]
    expected = [b"two", *undecided] if policy is Verdict.ACCEPT else [b"two"]
    assert sorted(arrived) == sorted(expected)
    if policy is Verdict.ACCEPT:
        assert [data for data in arrived if data != b"two"] == undecided


async def everything_before(udp: Udp, last: bytes) -> list[bytes]:
    arrived = []
    while (data := (await udp.receive(1))[0]) != last:
        arrived.append(data)
    return arrived


async def test_verdicts_given_last_leave_before_the_end(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    marked = rule(ns, "OUTPUT", f"{UDP} -m mark --mark 7")
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"a", b"b", b"c")
        a, b, c = await take(queue, 3)
        b.accept(mark=7)
        c.accept(mark=7)
        a.drop()
    assert await udp.receive(2) == [b"b", b"c"]
    assert marked.packets == 2


async def test_an_exceptions_own_context_leaves_as_it_was(ns: Namespace) -> None:
    context = BoomError("first")
    error = BoomError("second")
    error.__context__ = context
    with pytest.raises(BoomError) as caught:
        async with open_queue(0, namespace=ns.name):
            raise error
    assert caught.value is error
    assert error.__context__ is context


async def test_a_group_from_the_block_leaves_as_it_was(ns: Namespace) -> None:
    group = BaseExceptionGroup("mine", [BoomError("a"), KeyboardInterrupt()])
    try:
        async with open_queue(0, namespace=ns.name):
            raise group
    except BaseExceptionGroup as error:
        assert error is group
    else:
        raise AssertionError("it was swallowed")


async def test_closing_wakes_every_waiter(ns: Namespace) -> None:
    woken = 0

    async def wait(queue: Queue) -> None:
        nonlocal woken
        with pytest.raises(trio.ClosedResourceError):
            await queue.receive()
        woken += 1

    async with trio.open_nursery() as nursery, open_queue(0, namespace=ns.name) as queue:
        for _ in range(3):
            nursery.start_soon(wait, queue)
        await trio.testing.wait_all_tasks_blocked()
        await queue.aclose()
    assert woken == 3


async def test_a_forgotten_packet_is_warned_of_and_a_held_one_is_not(
    ns: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"held", b"decided")
        held, decided = await take(queue, 2)
        held.hold()
        decided.drop()
    assert caplog.records == []
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"forgotten", b"decided", b"forgotten too", b"unread")
        _, decided, _ = await take(queue, 3)
        decided.drop()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "2 packets undecided (first id 1): they get DROP" in record.getMessage()
    caplog.clear()
    with pytest.raises(BoomError):
        await fail_while_handling(ns, udp)
    assert caplog.records == []


async def fail_while_handling(ns: Namespace, udp: Udp) -> None:
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"x")
        await take(queue, 1)
        raise BoomError


# --- many times -----------------------------------------------------------------------------------


async def test_a_hundred_openings_and_closings_leave_nothing_open(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    ns.queue_rows()

    async def once(number: int) -> None:
        async with open_queue(0, namespace=ns.name, on_close=Verdict.ACCEPT) as queue:
            udp.send(b"x")
            [packet] = await take(queue, 1)
            if number % 3 == 0:
                packet.accept()
            elif number % 3 == 1:
                with pytest.raises(QueueBusyError):
                    async with open_queue(0, namespace=ns.name):
                        raise AssertionError("opened twice")
                packet.hold()
            else:
                raise BoomError

    await once(0)
    before = open_descriptors()
    for number in range(100):
        try:
            await once(number)
        except BoomError:
            assert number % 3 == 2
        assert open_descriptors() == before
        assert ns.queue_rows() == []
    assert await udp.receive(101) == [b"x"] * 101


async def test_a_number_is_free_as_soon_as_the_block_has_ended(ns: Namespace) -> None:
    backend = NetlinkBackend(namespace=ns.name)  # keeps its port id, so that the next one differs
    for _ in range(20):
        async with open_queue(0, namespace=ns.name) as queue:
            row = ns.queue_row(0)
            assert row is not None
            assert row.portid == queue.backend.port_id != backend.port_id
        assert ns.queue_row(0) is None
    backend.close()


# --- programs that are told to stop ---------------------------------------------------------------

LISTEN = """
import trio
from trionfq import QueueFlags, Verdict, open_queue

async def main():
    async with open_queue(0, on_close=Verdict.ACCEPT, flags=QueueFlags.FAIL_OPEN) as queue:
        print("ready", flush=True)
        async for packet in queue:
            packet.accept()

RESTRICT = False
"""


async def test_a_program_that_is_interrupted_anywhere_loses_nothing(ns: Namespace) -> None:
    """The interrupt strikes in any line of Python, library and program alike."""
    queue_rule(ns, "OUTPUT", UDP, bypass=True)
    use_all_processors()
    where = ("127.0.0.1", PORT)
    with (
        UdpReceiver(ns, where) as receiver,
        program(ns, LISTEN + RUN_UNTIL_INTERRUPTED) as child,
        UdpSender(ns, where, rate=10_000) as sender,
    ):
        assert await line_of(child) == "ready"
        await receiver.wait_received(receiver.received + 2_000)
        child.send_signal(signal.SIGINT)
        code, _, errors = await end_of(child)
        assert code == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert "Exception ignored" not in errors
        assert ns.queue_row(0) is None
        async with open_queue(
            0, namespace=ns.name, on_close=Verdict.ACCEPT, flags=QueueFlags.FAIL_OPEN
        ) as queue:
            for packet in await take(queue, 100):
                packet.accept()
        sent = sender.stop()
        await eventually("all received", lambda: receiver.received >= sent)
        assert receiver.stop().received == sent


async def test_a_killed_programs_queue_is_free_and_its_packets_are_dropped(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    hold = LISTEN.replace("packet.accept()", "packet.hold(); print('held', flush=True)")
    udp = Udp(ns)
    with program(ns, hold + RUN_UNTIL_INTERRUPTED) as child:
        assert await line_of(child) == "ready"
        udp.send(b"held")
        assert await line_of(child) == "held"
        child.kill()
        await end_of(child)
    await wait_for_no_queue_row(ns, 0)
    async with open_queue(0, namespace=ns.name) as queue:
        udp.send(b"next")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"next"]


# --- several queues -------------------------------------------------------------------------------


async def test_queues_of_one_program_end_each_by_itself(ns: Namespace) -> None:
    for number in range(4):
        queue_rule(ns, "OUTPUT", f"-p udp --dport {PORT + number}", number)
    udps = [Udp(ns, port=PORT + number) for number in range(4)]
    policies = [Verdict.ACCEPT, Verdict.DROP] * 2

    async def hold(number: int, task_status: trio.TaskStatus[trio.Event]) -> None:
        leave = trio.Event()
        async with open_queue(number, namespace=ns.name, on_close=policies[number]) as queue:
            task_status.started(leave)
            udps[number].send(b"%d" % number)
            [packet] = await take(queue, 1)
            packet.hold()
            assert data_of(packet) == b"%d" % number
            await leave.wait()

    async with trio.open_nursery() as nursery:
        leave = [await nursery.start(hold, number) for number in range(4)]
        for number in range(4):
            await wait_for_queued(ns, number, 1)
        for number in (2, 1, 3, 0):
            leave[number].set()
            await wait_for_no_queue_row(ns, number)
            if policies[number] is Verdict.ACCEPT:
                assert await udps[number].receive(1) == [b"%d" % number]
    assert [udp.waiting() for udp in udps] == [[]] * 4


async def test_a_namespace_may_go_while_its_queue_is_bound() -> None:
    """The socket keeps the namespace alive, as the kernel does for every socket."""
    with Namespace("gone") as ns:
        backend = NetlinkBackend(namespace=ns.name)
    async with open_queue(0, backend=backend) as queue:
        row = queue.statistics().kernel
        assert row is not None
        assert row.portid == backend.port_id
