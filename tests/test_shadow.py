"""A shadow sees what the first policy sees, reports where it differs, and has no effect."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

import trionfq
from trionfq import Packet, ReplayBackend, Verdict, open_queue
from trionfq.captures import Difference, Outcome, Record, transcript_digest
from trionfq.schema import Direction
from trionfq.testing import FaultyBackend, Refuse, ScriptedBackend, make_packet, udp_packet

COUNT = 50


def source(count: int = COUNT) -> list[bytes]:
    return [make_packet(number, udp_packet(b"%d" % number)) for number in range(1, count + 1)]


def policy(packet: Packet) -> None:
    if packet.id % 2:
        packet.accept(mark=packet.id)
    else:
        packet.drop()


async def consume(queue: trionfq.Queue) -> None:
    async for packet in queue:
        policy(packet)


async def serve(queue: trionfq.Queue) -> None:
    await queue.serve(policy)


async def serve_async(queue: trionfq.Queue) -> None:
    async def handler(packet: Packet) -> None:
        await trio.lowlevel.checkpoint()
        policy(packet)

    await queue.serve(handler)


async def batches(queue: trionfq.Queue) -> None:
    async for batch in queue.batches():
        for packet in batch:
            policy(packet)


async def alone() -> list[Outcome]:
    backend = ReplayBackend(source())
    async with open_queue(0, backend=backend) as queue:
        await consume(queue)
    return backend.transcript


def otherwise(packet: Packet) -> None:
    """Decides every fifth packet in another way, each in its own."""
    way = packet.id // 5 % 6 if packet.id % 5 == 0 else -1
    if way < 0:
        policy(packet)
    elif way == 0:
        packet.payload += b"!"
        packet.accept(mark=packet.id)
    elif way == 1:
        packet.accept(mark=0xBEEF)
    elif way == 2:
        packet.repeat(mark=1)
    elif way == 3:
        packet.requeue(9, bypass=True)
    elif way == 4:
        packet.accept(priority=3)
    else:
        packet.stop()


async def otherwise_later(packet: Packet) -> None:
    await trio.sleep(0.001 * (packet.id % 7))
    otherwise(packet)


@pytest.mark.parametrize("handler", [otherwise, otherwise_later])
@pytest.mark.parametrize("consumer", [consume, serve, serve_async, batches])
async def test_it_reports_what_it_would_have_decided_otherwise_and_changes_nothing(
    consumer: Callable[[trionfq.Queue], Any], handler: Any, autojump_clock: trio.testing.MockClock
) -> None:
    backend = ReplayBackend(source(), check="all")
    reported: list[Difference] = []
    async with (
        open_queue(0, backend=backend) as queue,
        queue.shadow(handler, on_difference=reported.append) as shadow,
    ):
        await consumer(queue)
    assert backend.transcript == await alone()
    assert (shadow.compared, shadow.different) == (COUNT, COUNT // 5)
    assert (shadow.skipped, shadow.failed, shadow.pending) == (0, 0, 0)
    assert reported == list(shadow.differences)
    assert {each.recorded_id for each in reported} == set(range(5, COUNT + 1, 5))
    by_id = {each.recorded_id: each for each in reported}
    assert by_id[5].fields == ("mark",)
    assert by_id[10].fields == ("verdict", "mark")
    assert by_id[15].fields == ("verdict", "mark")
    assert by_id[20].fields == ("verdict", "changes")
    assert by_id[25].fields == ("verdict", "mark")
    assert by_id[30].fields == ("verdict", "mark", "payload")
    assert by_id[5].packet == udp_packet(b"5")
    text = shadow.report()
    assert "decided 10 of 50 packets otherwise; 0 skipped, 0 failed, 0 not decided" in text
    assert "packet 5 of queue 0: UDP 192.0.2.1:40000" in text
    assert "mark     shadow  0xbeef" in text


def test_a_lockstep_replay_has_the_same_times_with_it() -> None:
    recorded = [
        Record(number * 5_000_000, Direction.FROM_KERNEL, datagram)
        for number, datagram in enumerate(source())
    ]

    async def run(*, shadowed: bool) -> list[Outcome]:
        async def handler(packet: Packet) -> None:
            await trio.sleep(0.001 * (packet.id % 4))
            policy(packet)

        backend = ReplayBackend(recorded, pace="lockstep")
        async with open_queue(0, backend=backend) as queue:
            if shadowed:
                async with queue.shadow(otherwise_later) as shadow:
                    await queue.serve(handler)
                assert shadow.compared == COUNT
            else:
                await queue.serve(handler)
        return backend.transcript

    def digest(*, shadowed: bool) -> str:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return transcript_digest(trio.run(partial(run, shadowed=shadowed), clock=clock), times=True)

    assert digest(shadowed=True) == digest(shadowed=False)


async def test_its_tricks_do_not_reach_the_kernel_or_the_first_policy() -> None:
    def trick(packet: Packet) -> None:
        packet.set_payload(b"\x45" + bytes(40), repair=False)
        packet.hold()
        with pytest.raises(trionfq.LocalProtocolError):
            packet.accept(vlan=(1, 2))
        packet.drop()
        with pytest.raises(trionfq.AlreadyDecidedError):
            packet.accept()
        if packet.id == 3:
            raise RuntimeError("a fault of the candidate")

    scripted = ScriptedBackend()
    async with open_queue(3, backend=scripted) as queue, queue.shadow(trick) as shadow:
        for number in range(5):
            scripted.arrive(make_packet(queue=3, payload=udp_packet(b"%d" % number)))
        for number in range(5):
            packet = await queue.receive()
            assert packet.payload == udp_packet(b"%d" % number)
            await trio.testing.wait_all_tasks_blocked()
            assert not packet.decided
            packet.accept()
    assert [each.effect.name for each in scripted.decisions] == ["ACCEPTED"] * 5
    assert (shadow.compared, shadow.different, shadow.failed) == (5, 5, 1)
    [failure] = shadow.failures
    assert failure.packet_id == 3
    assert "raised RuntimeError('a fault of the candidate')" in shadow.report()


async def test_the_first_policy_does_not_wait_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(packet: Packet) -> None:
        await trio.sleep(100)
        packet.accept()

    scripted = ScriptedBackend()
    async with (
        open_queue(3, backend=scripted) as queue,
        queue.shadow(slow, workers=2, backlog=3) as shadow,
    ):
        for _ in range(10):
            scripted.arrive(make_packet(queue=3))
            (await queue.receive()).accept()
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == 0
        assert len(scripted.decisions) == 10
        assert shadow.compared == 0
        assert shadow.skipped == 10 - shadow.pending
        assert shadow.pending == 5, "two in work, three behind them"
        left = trio.current_time()
    assert trio.current_time() == left + 5, "and the block waits no longer than it is told"
    assert shadow.pending == 5


@pytest.mark.parametrize("undecided", [Verdict.DROP, Verdict.ACCEPT])
async def test_what_it_leaves_counts_as_served(undecided: Verdict) -> None:
    backend = ReplayBackend(source(4))
    held: list[Packet] = []

    def candidate(packet: Packet) -> None:
        if packet.id == 2:
            packet.hold()
            held.append(packet)
        if packet.id == 4:
            held[0].accept(mark=9)

    async with (
        open_queue(0, backend=backend) as queue,
        queue.shadow(candidate, undecided=undecided) as shadow,
    ):
        async for packet in queue:
            packet.accept()
    verdicts = {each.recorded_id: each.b.verdict for each in shadow.differences if each.b}
    assert verdicts == ({1: 0, 2: 1, 3: 0, 4: 0} if undecided is Verdict.DROP else {2: 1})


async def test_packets_that_the_first_policy_holds_are_compared_when_it_decides() -> None:
    backend = ReplayBackend(source(3))
    held: list[Packet] = []
    async with (
        open_queue(0, backend=backend) as queue,
        queue.shadow(lambda packet: packet.drop()) as shadow,
    ):
        for _ in range(3):
            packet = await queue.receive()
            packet.hold()
            held.append(packet)
        await trio.testing.wait_all_tasks_blocked()
        assert (shadow.compared, shadow.pending) == (0, 3)
        held[0].drop()
        assert (shadow.compared, shadow.different, shadow.pending) == (1, 0, 2)
        queue.set_verdict_batch(2, Verdict.ACCEPT)
        assert (shadow.compared, shadow.different, shadow.pending) == (2, 1, 1)
    assert shadow.pending == 1, "left to the closing"


async def test_shadows_stand_behind_one_another_and_leave_in_any_order() -> None:
    scripted = ScriptedBackend()
    leave = trio.Event()

    async def enter(shadow: trionfq.Shadow, *, task_status: trio.TaskStatus[None]) -> None:
        async with shadow:
            task_status.started()
            await leave.wait()

    async with open_queue(3, backend=scripted) as queue, trio.open_nursery() as nursery:
        first = queue.shadow(lambda packet: packet.drop())
        second = queue.shadow(lambda packet: packet.accept())

        async def pass_one() -> tuple[int, int]:
            scripted.arrive(make_packet(queue=3))
            (await queue.receive()).accept()
            await trio.testing.wait_all_tasks_blocked()
            return first.compared, second.compared

        await nursery.start(enter, first)
        async with second:
            assert await pass_one() == (1, 1)
            assert (first.different, second.different) == (1, 0)
            leave.set()
            await trio.testing.wait_all_tasks_blocked()
            assert await pass_one() == (1, 2)
        assert await pass_one() == (1, 2)
        assert len(scripted.decisions) == 3


async def test_an_exception_leaves_the_block_as_it_was_raised_and_at_once() -> None:
    async def forever(_packet: Packet) -> None:
        await trio.sleep_forever()

    backend = ReplayBackend(source(3))
    with pytest.raises(KeyError, match="of the block"):
        async with open_queue(0, backend=backend) as queue, queue.shadow(forever):
            (await queue.receive()).accept()
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError("of the block")
    with trio.move_on_after(0.05) as scope:
        async with (
            open_queue(0, backend=ScriptedBackend()) as queue,
            queue.shadow(forever),
        ):
            await queue.receive()
    assert scope.cancelled_caught


async def test_what_its_report_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def report(_difference: Difference) -> None:
        raise ValueError("the report's own")

    backend = ReplayBackend(source(2))
    async with (
        open_queue(0, backend=backend) as queue,
        queue.shadow(lambda packet: packet.drop(), on_difference=report) as shadow,
    ):
        async for packet in queue:
            packet.accept()
    assert shadow.different == 2
    assert caplog.text.count("on_difference raised") == 2
    assert [each.verdict for each in backend.transcript] == [1, 1]


async def test_a_packet_whose_verdict_was_refused_is_compared_once() -> None:
    backend = FaultyBackend(ReplayBackend(source(3)), [Refuse(at=1, error=errno.ENOMEM)])

    def again(error: Exception, _packet: Packet | None) -> None:
        assert isinstance(error, trionfq.VerdictRefusedError)
        queue.set_verdict(error.packet_id, Verdict.ACCEPT)

    async with (
        open_queue(0, backend=backend, error_handler=again) as queue,
        queue.shadow(lambda packet: packet.drop()) as shadow,
    ):
        async for packet in queue:
            packet.drop()
        assert queue.statistics().verdicts_refused == 1
    assert (shadow.compared, shadow.different, shadow.pending) == (3, 0, 0)


async def test_settings_and_names_are_those_of_the_queue() -> None:
    names: list[tuple[str | None, int]] = []

    def look(packet: Packet) -> None:
        names.append((packet.indev_name, packet.queue_number))
        packet.accept()

    scripted = ScriptedBackend(interfaces={7: "veth7"})
    async with open_queue(3, backend=scripted) as queue, queue.shadow(look) as shadow:
        scripted.arrive(make_packet(queue=3, ifindex_indev=7))
        (await queue.receive()).accept()
        await trio.testing.wait_all_tasks_blocked()
    assert names == [("veth7", 3)]
    assert repr(shadow) == "<Shadow: 0 of 1 packets decided otherwise>"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"undecided": Verdict.STOP}, "undecided: expected DROP or ACCEPT"),
        ({"workers": 0}, "workers: expected at least 1"),
        ({"backlog": 0}, "backlog: expected at least 1"),
        ({"keep": 0}, "keep: expected at least 1"),
    ],
)
async def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    async with open_queue(0, backend=ReplayBackend([])) as queue:
        with pytest.raises(ValueError, match=text):
            queue.shadow(policy, **options)
