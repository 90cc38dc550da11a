"""Faults happen where they are declared, the same each time, and the library keeps its rules.

The rules: every packet that the program gets is decided once in the kernel, by the program's
verdict or by the kernel's own doing; and what was lost is counted or told.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trionfq
from trionfq import RecordingBackend, ReplayBackend, Statistics, Verdict, open_queue
from trionfq.backends import Backend
from trionfq.backends._replay_time import Pace
from trionfq.captures import Outcome, Record
from trionfq.schema import Direction
from trionfq.schema.nfqueue import NFQA, CopyMode
from trionfq.testing import (
    BackendUnderTest,
    CapLen,
    Cause,
    Die,
    Duplicate,
    Effect,
    Fault,
    FaultyBackend,
    Flush,
    KernelModel,
    Overrun,
    Refuse,
    Reorder,
    ScriptedBackend,
    SendError,
    Stall,
    Truncate,
    assert_same_verdicts,
    check_backend,
    make_packet,
    udp_packet,
)

COUNT = 40
START = 1_790_000_000_000_000_000
MS = 1_000_000


def source(count: int = COUNT) -> list[Record]:
    return [
        Record(
            START + number * MS,
            Direction.FROM_KERNEL,
            make_packet(number + 1, udp_packet(b"%d" % number)),
        )
        for number in range(count)
    ]


class Run:
    """One run under faults.

    Attributes:
      seen: ids of the packets that the program got.
      told: what the error handler was told.
      outcomes: what became of the packets in the kernel.
      statistics: as of the end.
      faulty: the backend.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.told: list[Exception] = []
        self.outcomes: list[Outcome] = []
        self.statistics: Statistics
        self.faulty: FaultyBackend

    @property
    def undecided(self) -> list[int]:
        return [each.packet_id for each in self.outcomes if each.verdict is None]


async def run(
    *faults: Fault,
    seed: int = 0,
    count: int = COUNT,
    decide: Callable[[trionfq.Packet], object] = lambda packet: packet.accept(mark=packet.id),
    **options: Any,
) -> Run:
    """Decide the packets under faults, and check what holds under any."""
    result = Run()
    replay = ReplayBackend(source(count), check="all", patience_s=0.05)
    result.faulty = FaultyBackend(replay, faults, seed=seed)
    async with open_queue(
        0,
        backend=result.faulty,
        error_handler=lambda error, packet: result.told.append(error),
        **options,
    ) as queue:
        try:
            async for packet in queue:
                result.seen.append(packet.id)
                decide(packet)
        finally:
            result.statistics = queue.statistics()
    result.outcomes = replay.transcript
    assert [each.packet_id for each in result.outcomes] == list(range(1, len(result.outcomes) + 1))
    return result


def unseen(result: Run) -> list[int]:
    return [number for number in range(1, COUNT + 1) if number not in result.seen]


# --- each fault -----------------------------------------------------------------------------------


async def test_without_faults_nothing_is_changed() -> None:
    result = await run()
    assert result.seen == list(range(1, COUNT + 1))
    assert result.faulty.injected == []
    assert result.statistics.packets_lost == 0
    assert {each.mark for each in result.outcomes} == set(range(1, COUNT + 1))


async def test_an_overrun_is_reported_and_the_kernel_has_dropped_its_packets() -> None:
    result = await run(Overrun(at=5, count=3), Overrun(at=20))
    assert unseen(result) == [6, 7, 8, 21]
    statistics = result.statistics
    assert (statistics.overruns, statistics.packets_lost) == (2, 4)
    assert statistics.kernel is not None
    assert statistics.kernel.user_dropped == 4
    assert statistics.answers_lost == 0
    assert result.faulty.inner.port_id == result.faulty.port_id
    lost = [each.verdict for each in result.outcomes if each.packet_id in unseen(result)]
    assert lost == [Verdict.DROP] * 4
    kept = [each for each in result.outcomes if each.packet_id in result.seen]
    assert all(each.verdict == Verdict.ACCEPT for each in kept)
    assert result.undecided == []


@pytest.mark.parametrize("answers", [False, True])
async def test_an_overrun_can_lose_answers_as_well(answers: bool) -> None:
    scripted = ScriptedBackend()
    faulty = FaultyBackend(scripted, [Overrun(at=1, count=2, answers=answers)])
    async with open_queue(3, backend=faulty) as queue:
        for _ in range(2):
            scripted.arrive(make_packet(queue=3))
        (await queue.receive()).accept()
        assert queue.statistics().overruns == 1
        if answers:
            with pytest.raises(trionfq.KernelError, match="the kernel's answer found no room"):
                queue.configure(max_len=77)
        else:
            queue.configure(max_len=77)
        assert queue.statistics().answers_lost == (3 if answers else 0)
        for _ in range(2):
            scripted.arrive(make_packet(queue=3))
        last = await queue.receive()
        assert last.id == 4
        last.accept()
        queue.configure(max_len=78)
        statistics = queue.statistics()
        assert (statistics.overruns, statistics.packets_lost) == (1, 2)


async def test_a_truncated_datagram_is_counted_and_its_packet_waits_for_the_end() -> None:
    result = await run(Truncate(at=(3, COUNT - 1)))
    assert unseen(result) == [4, COUNT]
    assert result.statistics.truncated_datagrams == 2
    assert result.statistics.packets_lost == 1, "the last one leaves no gap"
    assert result.statistics.kernel is not None
    assert result.statistics.kernel.queue_total == 2
    # Nobody could decide them, so the closing did.
    assert result.undecided == [4, COUNT]


async def test_a_closing_accept_takes_what_was_truncated() -> None:
    result = await run(Truncate(at=(3, COUNT - 1)), on_close=Verdict.ACCEPT)
    assert unseen(result) == [4, COUNT]
    assert {each.verdict for each in result.outcomes} == {Verdict.ACCEPT}
    only = await run(Truncate(at=0), count=1, on_close=Verdict.ACCEPT)
    assert [each.verdict for each in only.outcomes] == [Verdict.ACCEPT]


async def test_a_packet_that_was_copied_in_part_says_so_and_cannot_be_rewritten() -> None:
    cut: list[tuple[int, int, int]] = []

    def decide(packet: trionfq.Packet) -> None:
        if packet.truncated:
            cut.append((packet.id, len(packet.payload), packet.original_length))
            with pytest.raises(trionfq.LocalProtocolError, match="copied only in part"):
                packet.payload = packet.payload
        packet.accept()

    result = await run(CapLen(at=2, copy_range=24), CapLen(at=9), decide=decide)
    assert cut == [(3, 24, 29), (10, 0, 29)]
    assert result.undecided == []
    assert len(result.seen) == COUNT


async def test_reordered_packets_are_each_decided_once() -> None:
    result = await run(Reorder(at=4, by=3), Reorder(at=COUNT - 1, within_s=0.01))
    assert result.seen[4:8] == [6, 7, 8, 5]
    assert sorted(result.seen) == list(range(1, COUNT + 1))
    assert result.seen[-1] == COUNT, "nothing comes behind it, so it comes by itself"
    # A batch may have answered it in the kernel before it was seen; that is told, not silent.
    gone = result.statistics.verdicts_gone
    assert {each.verdict for each in result.outcomes} == {Verdict.ACCEPT}
    assert gone == 0, "marks differ, so nothing was batched"
    assert [each.mark for each in result.outcomes] == list(range(1, COUNT + 1))


async def test_a_batch_that_sweeps_a_reordered_packet_is_told() -> None:
    result = await run(
        Reorder(at=4, by=30),
        decide=lambda packet: packet.drop() if packet.id == 5 else packet.accept(),
    )
    assert result.seen.index(5) == 34
    assert result.statistics.verdicts_gone == 1
    assert {each.verdict for each in result.outcomes} == {Verdict.ACCEPT}


async def test_a_duplicated_id_is_handed_out_once_while_it_is_undecided() -> None:
    result = await run(Duplicate(at=6))
    assert Counter(result.seen) == Counter(range(1, COUNT + 1))
    [error] = result.told
    assert "packet id 7 came again while it was undecided" in str(error)
    assert result.statistics.undecodable_messages == 1
    assert [each.mark for each in result.outcomes] == list(range(1, COUNT + 1))


async def test_a_duplicate_of_a_decided_packet_cannot_be_decided_again() -> None:
    def decide(packet: trionfq.Packet) -> None:
        packet.accept(mark=seen[packet.id])
        seen[packet.id] += 1

    seen: Counter[int] = Counter()
    result = await run(Duplicate(at=6, after=32), decide=decide)
    assert Counter(result.seen)[7] == 2
    assert result.statistics.verdicts_gone == 1
    assert [each.mark for each in result.outcomes] == [0] * COUNT, "the first verdict stands"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM])
async def test_a_refused_verdict_is_told_and_its_packet_undecided_again(number: int) -> None:
    told: list[trionfq.VerdictRefusedError] = []
    replay = ReplayBackend(source(), check="all")
    faulty = FaultyBackend(replay, [Refuse(at=9, error=number)])

    def handle(error: Exception, _packet: trionfq.Packet | None) -> None:
        assert isinstance(error, trionfq.VerdictRefusedError)
        told.append(error)
        assert error.packet_id in queue.undecided_ids
        queue.set_verdict(error.packet_id, Verdict.DROP)

    async with open_queue(0, backend=faulty, error_handler=handle) as queue:
        async for packet in queue:
            packet.accept(mark=packet.id)
        assert queue.statistics().verdicts_refused == 1
    assert [(error.errno, error.packet_id, error.dropped) for error in told] == [
        (number, 10, False)
    ]
    verdicts = [each.verdict for each in replay.transcript]
    assert verdicts == [Verdict.DROP if place == 9 else Verdict.ACCEPT for place in range(COUNT)]


async def test_a_verdict_for_a_flushed_packet_is_counted() -> None:
    result = await run(Refuse(at=(9, 11)))
    assert result.statistics.verdicts_gone == 2
    assert [result.outcomes[place].verdict for place in (9, 11)] == [Verdict.DROP] * 2
    assert sum(each.verdict == Verdict.ACCEPT for each in result.outcomes) == COUNT - 2
    batched = await run(Refuse(at=9), decide=lambda packet: packet.accept())
    assert batched.outcomes[9].verdict == Verdict.DROP
    assert sum(each.verdict == Verdict.ACCEPT for each in batched.outcomes) == COUNT - 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENODEV])
async def test_a_lost_binding_ends_the_queue_with_its_cause(number: int) -> None:
    result = Run()
    replay = ReplayBackend(source(), check="all")
    faulty = FaultyBackend(replay, [Refuse(at=20, error=number)])
    with pytest.raises(trio.BrokenResourceError) as caught:
        async with open_queue(0, backend=faulty) as queue:
            async for packet in queue:
                result.seen.append(packet.id)
                packet.accept(mark=packet.id)
    cause = caught.value.__cause__
    assert isinstance(cause, trionfq.KernelError)
    assert cause.errno == number
    assert 21 in result.seen


async def test_a_flush_drops_what_waits_and_its_verdicts_are_counted_as_gone() -> None:
    held: list[trionfq.Packet] = []

    def decide(packet: trionfq.Packet) -> None:
        if packet.id <= 5:
            packet.hold()
            held.append(packet)
        elif packet.id == COUNT:
            for each in held:
                each.accept(mark=100 + each.id)
            packet.accept()
        else:
            packet.accept(mark=packet.id)

    result = await run(Flush(at=30), decide=decide)
    dropped = [each.packet_id for each in result.outcomes if each.verdict == Verdict.DROP]
    assert dropped[:5] == [1, 2, 3, 4, 5]
    # What had been read with the flushed ones and was not decided yet has gone, too.
    assert all(each <= 30 for each in dropped)
    assert result.statistics.verdicts_gone == len(dropped)
    assert result.undecided == []


async def test_a_slow_kernel_delays_packets_and_loses_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    times: list[float] = []
    replay = ReplayBackend(source(), check="all")
    faulty = FaultyBackend(replay, [Stall(at=10, seconds=5), Stall(at=20, seconds=7)])
    async with open_queue(0, backend=faulty) as queue:
        async for packet in queue:
            times.append(trio.current_time())
            packet.accept()
    assert len(times) == COUNT
    assert set(times[:10]) == {0.0}
    assert set(times[10:]) in ({5.0, 12.0}, {5.0, 7.0}, {7.0})
    assert [each.verdict for each in replay.transcript] == [1] * COUNT


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EBADF])
async def test_a_dying_kernel_breaks_the_queue_with_the_error_as_cause(number: int) -> None:
    seen = []
    faulty = FaultyBackend(ReplayBackend(source()), [Die(at=15, error=number)])
    with pytest.raises(trio.BrokenResourceError) as caught:
        async with open_queue(0, backend=faulty) as queue:
            async for packet in queue:
                seen.append(packet.id)
                packet.accept()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) <= 15


async def test_a_datagram_without_memory_is_sent_again() -> None:
    result = await run(SendError(at=(1, 2)))
    assert [each.number for each in result.faulty.injected] == [1, 2]
    assert [each.mark for each in result.outcomes] == list(range(1, COUNT + 1))
    assert result.statistics.verdicts_gone == 0, "nothing was sent twice"


async def test_a_datagram_that_is_too_long_goes_in_pieces() -> None:
    result = await run(SendError(at=1, error=errno.EMSGSIZE))
    assert [each.mark for each in result.outcomes] == list(range(1, COUNT + 1))


# --- all at once ----------------------------------------------------------------------------------

STORM: list[Fault] = [
    Overrun(rate=0.04, count=2),
    Truncate(rate=0.03),
    CapLen(rate=0.1, copy_range=20),
    Reorder(rate=0.1, by=4, within_s=0.001),
    Duplicate(rate=0.05, after=2),
    Refuse(rate=0.05),
    Refuse(rate=0.03, error=errno.ENOMEM),
    Flush(rate=0.01),
    SendError(at=(1, 3, 4, 7)),
]


async def storm(seed: int, pace: Pace = "asked") -> tuple[Run, list[tuple[int, int | None]]]:
    count = 300
    decided: Counter[int] = Counter()

    def decide(packet: trionfq.Packet) -> None:
        decided[packet.id] += 1
        packet.accept(mark=packet.id)

    result = Run()
    replay = ReplayBackend(source(count), pace=pace, check="all", patience_s=0.05)
    result.faulty = FaultyBackend(replay, STORM, seed=seed)

    def handle(error: Exception, _packet: trionfq.Packet | None) -> None:
        result.told.append(error)
        if isinstance(error, trionfq.VerdictRefusedError):
            queue.set_verdict(error.packet_id, Verdict.ACCEPT, mark=error.packet_id)

    async with open_queue(
        0, backend=result.faulty, error_handler=handle, on_close=Verdict.DROP
    ) as queue:
        async for packet in queue:
            result.seen.append(packet.id)
            decide(packet)
        result.statistics = queue.statistics()
    result.outcomes = replay.transcript
    return result, [(each.packet_id, each.verdict) for each in result.outcomes]


@pytest.mark.parametrize("seed", range(6))
async def test_under_all_of_them_nothing_is_lost_in_silence_or_answered_twice(seed: int) -> None:
    result, _ = await storm(seed)
    fallen = Counter(type(each.fault).__name__ for each in result.faulty.injected)
    assert len(fallen) >= 7
    # Each packet of the recording came to the kernel's queue, and left it by one verdict.
    assert [each.packet_id for each in result.outcomes] == list(range(1, 301))
    statistics = result.statistics
    absent = set(range(1, 301)) - set(result.seen)
    assert statistics.kernel is not None
    lost = statistics.kernel.user_dropped + statistics.truncated_datagrams
    assert len(absent) == lost, "what the program did not get was counted"
    assert statistics.overruns == fallen["Overrun"]
    # Accepted is only what the program accepted, with the mark that it gave.
    for outcome in result.outcomes:
        if outcome.verdict == Verdict.ACCEPT:
            assert outcome.packet_id in result.seen
            assert outcome.mark == outcome.packet_id
        elif outcome.verdict is None:
            assert outcome.packet_id in absent, "left to the closing"
    told = Counter(type(error) for error in result.told)
    assert told[trionfq.VerdictRefusedError] == statistics.verdicts_refused


def test_the_same_seed_makes_the_same_storm() -> None:
    (first, outcomes), (again, same), (other, _) = [
        trio.run(storm, seed, "lockstep", clock=trio.testing.MockClock(autojump_threshold=0))
        for seed in (1, 1, 2)
    ]
    assert first.faulty.injected == again.faulty.injected
    assert outcomes == same
    assert first.seen == again.seen
    assert first.faulty.injected != other.faulty.injected


async def test_a_recording_of_a_faulty_run_replays_its_losses(tmp_path: Path) -> None:
    async def lossy(backend: Backend) -> tuple[list[int], int, int, int]:
        seen = []
        async with open_queue(0, backend=backend) as queue:
            async for packet in queue:
                seen.append(packet.id)
                packet.accept(mark=packet.id)
            now = queue.statistics()
        return seen, now.overruns, now.truncated_datagrams, now.packets_lost

    path = tmp_path / "run.pcapng"
    faulty = FaultyBackend(ReplayBackend(source()), [Overrun(at=5, count=2), Truncate(at=20)])
    first = await lossy(RecordingBackend(faulty, path))
    assert first[1:] == (1, 1, 3)
    replay = ReplayBackend(path, check="all")
    assert await lossy(replay) == first
    assert_same_verdicts(path, replay.transcript)


# --- the seam, and declarations -------------------------------------------------------------------


async def test_it_keeps_the_promises_of_the_seam() -> None:
    kernel = KernelModel()

    def make() -> BackendUnderTest:
        scripted = ScriptedBackend(kernel)
        backend = FaultyBackend(scripted, [Stall(at=1000), Reorder(at=2, within_s=0.01)])
        return BackendUnderTest(backend, 7, lambda: scripted.arrive(make_packet(queue=7)))

    await check_backend(make)


async def test_it_works_round_any_backend_and_leaves_other_queues_of_a_kernel_alone() -> None:
    kernel = KernelModel()
    scripted, other = ScriptedBackend(kernel), ScriptedBackend(kernel)
    faulty = FaultyBackend(scripted, [Overrun(at=1), Flush(at=3)])
    async with open_queue(4, backend=other) as beside, open_queue(3, backend=faulty) as queue:
        other.arrive(make_packet(queue=4))
        for _ in range(4):
            scripted.arrive(make_packet(queue=3))
        (await queue.receive()).hold()
        last = await queue.receive()
        while last.id != 4:
            last.hold()
            last = await queue.receive()
        last.accept()
        await trio.lowlevel.checkpoint()
        effects = [(each.packet_id, each.effect, each.cause) for each in scripted.decisions]
        assert effects == [
            (2, Effect.DROPPED, Cause.VERDICT),
            (1, Effect.DROPPED, Cause.VERDICT),
            (3, Effect.DROPPED, Cause.VERDICT),
            (4, Effect.ACCEPTED, Cause.VERDICT),
        ]
        rows = {row.queue: row for row in faulty.queues()}
        assert (rows[3].user_dropped, rows[4].user_dropped) == (1, 0)
        assert faulty.socket_drops() == 1
        (await beside.receive()).accept()


async def test_a_refusal_outlives_a_datagram_that_was_not_taken() -> None:
    scripted = ScriptedBackend()
    faulty = FaultyBackend(scripted, [Refuse(at=0, error=errno.ENOMEM)])
    full = iter([False, True])

    def fill(_datagram: bytes) -> None:
        if next(full, False):
            raise OSError(errno.ENOBUFS, "no memory")

    scripted.send_hook = fill
    told: list[Exception] = []
    async with open_queue(
        3, backend=faulty, error_handler=lambda error, _packet: told.append(error)
    ) as queue:
        for _ in range(2):
            scripted.arrive(make_packet(queue=3))
            (await queue.receive()).hold()
        # Both in one datagram, of which the second goes on, and not at the first attempt.
        queue.set_verdict(1, Verdict.ACCEPT, mark=1)
        queue.set_verdict(2, Verdict.DROP)
        while not scripted.decisions:
            await trio.lowlevel.checkpoint()
        assert [(each.packet_id, each.effect) for each in scripted.decisions] == [
            (2, Effect.DROPPED)
        ]
        assert queue.undecided_ids == []
        scripted.arrive(make_packet(queue=3))
        (await queue.receive()).accept()
        assert queue.undecided_ids == [1]
    assert [type(error) for error in told] == [trionfq.VerdictRefusedError]


async def test_the_program_gets_no_answer_to_what_it_has_not_asked() -> None:
    scripted = ScriptedBackend()
    faulty = FaultyBackend(scripted, [Flush(at=1)])
    async with open_queue(3, backend=faulty) as queue:
        scripted.arrive(make_packet(queue=3))
        first = await queue.receive()
        first.hold()
        scripted.kernel.hook_unregistered()
        scripted.arrive(make_packet(queue=3))
        (await queue.receive()).accept()
        assert queue.statistics().verdicts_gone == 0, "the fault's own verdict found nothing"
        first.accept(mark=1)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.statistics().verdicts_gone == 1


async def test_a_described_packet_has_no_payload_to_cut() -> None:
    backend = FaultyBackend(
        ReplayBackend([make_packet(1, None, mark=3)]), [CapLen(at=0, copy_range=2)]
    )
    async with open_queue(0, backend=backend, copy_mode=CopyMode.META) as queue:
        packet = await queue.receive()
        assert packet.mark == 3
        assert {each.number for each in packet.attributes} <= set(NFQA.by_number)
        packet.accept()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Truncate(), "Truncate: give at or rate"),
        (lambda: Truncate(at=1, rate=0.5), "Truncate: give at or rate"),
        (lambda: Flush(at=-1), "at: expected 0 or more, got -1"),
        (lambda: Flush(at=[3, -2]), "at: expected 0 or more, got -2"),
        (lambda: Die(rate=1.5), "rate: expected 0 to 1, got 1.5"),
        (lambda: Overrun(at=1, count=0), "count: expected 1 or more, got 0"),
        (lambda: Reorder(at=1, by=0), "by: expected 1 or more"),
        (lambda: Stall(at=1, seconds=-1), "seconds: expected 0 or more"),
        (lambda: Refuse(at=1, error=0), "error: expected 1 or more"),
        (lambda: CapLen(at=1, copy_range=-1), "copy_range: expected 0 or more"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(make: Callable[[], Fault], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
