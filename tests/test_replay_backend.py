"""ReplayBackend: the recorded packets, by the kernel's rules, the same each time."""

from __future__ import annotations

import errno
import itertools
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionfq
from trionfq import captures, schema
from trionfq.backends import Backend
from trionfq.backends._sent_check import SentCheck
from trionfq.captures import Note, Outcome, Record
from trionfq.schema import Attr, Direction, ErrorMessage, Message
from trionfq.schema.nfqueue import (
    NFQA,
    ConfigCommand,
    CopyMode,
    MessageType,
    QueueFlags,
    SkbInfo,
    VerdictCode,
)
from trionfq.testing import (
    BackendUnderTest,
    KernelModel,
    ScriptedBackend,
    check_backend,
    make_bind,
    make_config,
    make_packet,
    make_verdict,
    udp_packet,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from trionfq.backends._replay_time import Pace
    from trionfq.backends._sent_check import Check

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
START = 1_790_000_000_000_000_000
MS = 1_000_000


# Everything that a program sends is judged, where a test does not say otherwise.
replayed: Callable[..., trionfq.ReplayBackend] = partial(trionfq.ReplayBackend, check="all")


def packets(*ids: int, gap_ns: int = MS, queue: int = 0, **more: Any) -> list[Record]:
    return [
        Record(START + place * gap_ns, FROM, make_packet(packet_id, queue=queue, **more))
        for place, packet_id in enumerate(ids)
    ]


def ids_of(datagrams: Iterable[bytes]) -> list[int]:
    found = []
    for datagram in datagrams:
        for message in schema.parse(datagram):
            if isinstance(message, Message) and message.type == MessageType.PACKET:
                header = schema.by_name(NFQA, message.attributes)["packet_hdr"]
                assert isinstance(header, dict)
                found.append(header["packet_id"])
    return found


def bound(source: Any, *, request: bytes | None = None, **options: Any) -> trionfq.ReplayBackend:
    """A replay whose program has bound queue 0, outside of trio."""
    backend = replayed(source, **options)
    backend.send_nowait(make_bind() if request is None else request)
    [answer] = backend.receive_nowait(64).datagrams
    [message] = schema.parse(answer)
    assert isinstance(message, ErrorMessage)
    assert message.error == 0
    return backend


def values(datagram: bytes) -> dict[str, Any]:
    [message] = schema.parse(datagram)
    assert isinstance(message, Message)
    return schema.by_name(NFQA, message.attributes)


def verdicts(found: Sequence[Outcome]) -> list[tuple[int, int | None]]:
    return [(outcome.packet_id, outcome.verdict) for outcome in found]


async def accept_all(
    backend: Backend, **options: Any
) -> tuple[list[trionfq.Packet], trionfq.Statistics]:
    seen = []
    async with trionfq.open_queue(0, backend=backend, **options) as queue:
        async for packet in queue:
            packet.accept()
            seen.append(packet)
        return seen, queue.statistics()


# -- the seam --------------------------------------------------------------------------------------


async def test_it_keeps_the_promises_of_the_seam_with_packets() -> None:
    def make() -> BackendUnderTest:
        # In lockstep packets come to a waiter alone, as the checks of answers need it.
        backend = replayed(packets(*range(1, 9)), pace="lockstep", check="off")
        return BackendUnderTest(backend, 7, lambda: None)

    await check_backend(make)


@pytest.mark.parametrize("pace", ["asked", "timed", "lockstep"])
async def test_it_keeps_the_promises_of_the_seam_without_packets(pace: Pace) -> None:
    await check_backend(lambda: replayed([], pace=pace, check="off"))


def test_it_needs_no_netlink() -> None:
    program = (
        "import socket, trio\n"
        "del socket.AF_NETLINK\n"
        "import trionfq\n"
        "from trionfq.testing import make_packet\n"
        "async def main():\n"
        "    backend = trionfq.ReplayBackend([make_packet(1), make_packet(2)])\n"
        "    async with trionfq.open_queue(0, backend=backend) as queue:\n"
        "        async for packet in queue:\n"
        "            packet.accept()\n"
        "    assert [o.verdict for o in backend.transcript] == [1, 1]\n"
        "trio.run(main)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"pace": "fast"}, "'lockstep', got 'fast'"), ({"check": "some"}, "'off', got 'some'")],
)
def test_an_unknown_option_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replayed([], **options)


# -- what arrives ----------------------------------------------------------------------------------


def test_arrivals_begin_with_the_program_s_own_bind() -> None:
    backend = replayed(packets(1, 2))
    assert backend.receive_nowait(64).datagrams == []
    backend.send_nowait(make_config(5, command=ConfigCommand.PF_BIND))
    backend.receive_nowait(64)
    assert backend.receive_nowait(64).datagrams == []
    backend.send_nowait(make_bind())
    assert ids_of(backend.receive_nowait(64).datagrams) == [], "the answer comes alone"
    assert ids_of(backend.receive_nowait(64).datagrams) == [1, 2]


def test_what_the_recorded_program_sent_and_was_answered_is_not_played_back() -> None:
    answer = schema.build([ErrorMessage(0x100, 1, 9, 0, (40, 0x302, 5, 1, 0), b"", ())])
    [first, second] = packets(7, 8)
    source = [
        Record(START, TO, make_bind(max_len=1)),
        Record(START, FROM, answer),
        first,
        Record(START, TO, make_verdict(7)),
        Record(START, None, b"", (Note("socket", {"drops": 3}),)),
        second,
        Record(START, TO, make_verdict(8)),
        Record(START, TO, make_config(command=ConfigCommand.UNBIND)),
    ]
    backend = bound(source)
    assert backend.receive_nowait(64).datagrams == [first.datagram, second.datagram]
    assert [row.queue_total for row in backend.queues()] == [2]


def test_recorded_ids_and_their_gaps_are_kept() -> None:
    ids = [0xFFFFFFFD, 0xFFFFFFFF, 0, 5, 6, 100]
    backend = bound(packets(*ids))
    assert ids_of(backend.receive_nowait(64).datagrams) == ids


async def test_a_gap_is_counted_as_loss() -> None:
    seen, statistics = await accept_all(replayed(packets(4, 5, 9, 10)))
    assert [packet.id for packet in seen] == [4, 5, 9, 10]
    assert statistics.packets_lost == 3


def test_a_later_binding_s_ids_are_shifted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    backend = bound(packets(1, 2, 3, 1, 3, 1))
    assert ids_of(backend.receive_nowait(64).datagrams) == [1, 2, 3, 4, 6, 7]
    assert backend.shortfalls == {"packets whose ids start anew; the later ones are shifted": 2}
    assert len(caplog.records) == 1, "said once"


def test_datagrams_alone_are_a_source_and_so_is_what_is_read_once() -> None:
    datagrams = [make_packet(3), make_packet(4)]
    for source in (datagrams, iter(datagrams), (record for record in packets(3, 4))):
        backend = bound(source)
        assert backend.receive_nowait(64).datagrams == datagrams


def test_a_recording_of_the_other_byte_order_is_replayed_in_ours() -> None:
    ours = [make_packet(n, mark=n, order=sys.byteorder) for n in (1, 2)]
    other: schema.Order = "big" if sys.byteorder == "little" else "little"
    theirs = [make_packet(n, mark=n, order=other) for n in (1, 2)]
    assert theirs != ours
    assert bound(theirs).receive_nowait(64).datagrams == ours


# -- one queue of the file -------------------------------------------------------------------------

TWO_QUEUES = [*packets(1, 2, queue=7), *packets(1, 2, 3, queue=5)]


def test_of_several_queues_one_must_be_named() -> None:
    with pytest.raises(trionfq.CaptureError, match=r"several queues \(5, 7\)"):
        replayed(TWO_QUEUES)
    with pytest.raises(trionfq.CaptureError, match="no packets of queue 6, but of queue 5, 7"):
        replayed(TWO_QUEUES, queue=6)
    for number, ids in ((7, [1, 2]), (5, [1, 2, 3])):
        backend = bound(TWO_QUEUES, queue=number, request=make_bind(number))
        assert ids_of(backend.receive_nowait(64).datagrams) == ids
        assert backend.recorded_queue == number
        once = bound(iter(TWO_QUEUES), queue=number, request=make_bind(number))
        assert ids_of(once.receive_nowait(64).datagrams) == ids


def test_what_is_read_once_tells_of_a_second_queue_when_it_comes() -> None:
    backend = bound(iter(TWO_QUEUES), request=make_bind(7))
    assert ids_of(backend.receive_nowait(64).datagrams) == [1, 2]
    with pytest.raises(trionfq.CaptureError, match=r"several queues \(5, 7\)"):
        backend.receive_nowait(64)


def test_the_packets_come_to_whatever_queue_the_program_binds() -> None:
    backend = bound(packets(1, 2, queue=7), request=make_bind(12))
    found = [schema.parse(each)[0] for each in backend.receive_nowait(64).datagrams]
    assert [each.res_id for each in found if isinstance(each, Message)] == [12, 12]
    assert [outcome.queue for outcome in backend.transcript] == [12, 12]
    assert backend.recorded_queue == 7


# -- the program's configuration -------------------------------------------------------------------

PAYLOAD = udp_packet(b"x" * 100)


def test_copy_mode_and_range_of_the_program_apply() -> None:
    source = packets(1, payload=PAYLOAD, mark=3)
    meta = make_config(command=ConfigCommand.BIND, copy_mode=CopyMode.META)
    [datagram] = bound(source, request=meta).receive_nowait(64).datagrams
    assert values(datagram).keys() == {"packet_hdr", "mark"}
    backend = bound(source, request=make_bind(copy_range=40))
    [datagram] = backend.receive_nowait(64).datagrams
    assert values(datagram)["payload"] == PAYLOAD[:40]
    assert values(datagram)["cap_len"] == len(PAYLOAD)
    assert backend.shortfalls == {}
    none = bound(source, request=make_config(command=ConfigCommand.BIND))
    received = none.receive_nowait(64)
    assert received.datagrams == []
    assert none.receive_nowait(64).ended


def test_flags_of_the_program_apply() -> None:
    source = packets(1, uid=1000, gid=100)
    [without] = bound(source).receive_nowait(64).datagrams
    assert "uid" not in values(without)
    [told] = bound(source, request=make_bind(flags=QueueFlags.UID_GID)).receive_nowait(9).datagrams
    assert (values(told)["uid"], values(told)["gid"]) == (1000, 100)
    assert told == source[0].datagram


def test_no_more_is_given_than_was_recorded_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cut = packets(1, 2, payload=PAYLOAD[:40], cap_len=len(PAYLOAD))
    backend = bound(cut)
    datagrams = backend.receive_nowait(64).datagrams
    assert [values(each)["payload"] for each in datagrams] == [PAYLOAD[:40]] * 2
    assert values(datagrams[0])["cap_len"] == len(PAYLOAD)
    assert backend.shortfalls == {"packets recorded with less payload than asked for": 2}
    assert [r.getMessage() for r in caplog.records] == [
        "replay: there are packets recorded with less payload than asked for"
    ]
    # What was asked for was there: nothing to say.
    assert bound(cut, request=make_bind(copy_range=40)).shortfalls == {}


@pytest.mark.parametrize(
    ("recorded", "asked", "packet", "reasons"),
    [
        (make_bind(), {"flags": 8}, {}, {"packets recorded without uid and gid": 1}),
        (make_bind(flags=8), {"flags": 8}, {}, {}),
        (make_bind(flags=8), {}, {}, {}),
        (
            make_config(command=ConfigCommand.BIND, copy_mode=CopyMode.META),
            {},
            {"payload": None},
            {"packets recorded without payload": 1},
        ),
        (
            make_bind(flags=4),
            {},
            {"skb_info": SkbInfo.GSO},
            {"GSO packets that were not cut into segments": 1},
        ),
        (make_bind(flags=4), {"flags": 4}, {"skb_info": SkbInfo.GSO}, {}),
    ],
)
def test_what_the_recorded_program_had_not_asked_for_is_said(
    recorded: bytes, asked: dict[str, Any], packet: dict[str, Any], reasons: dict[str, int]
) -> None:
    source = [Record(START, TO, recorded), *packets(1, **packet)]
    backend = bound(source, request=make_bind(**asked))
    assert len(backend.receive_nowait(64).datagrams) == 1
    assert backend.shortfalls == reasons


def test_max_len_applies_to_held_packets() -> None:
    backend = bound(packets(*range(1, 51)), request=make_bind(max_len=8))
    assert ids_of(backend.receive_nowait(64).datagrams) == [*range(1, 9)]
    assert backend.receive_nowait(64).datagrams == [], "the queue is full"
    backend.send_nowait(make_verdict(3, batch=True))
    assert ids_of(backend.receive_nowait(64).datagrams) == [9, 10, 11]
    [row] = backend.queues()
    assert (row.queue_total, row.queue_dropped, row.id_sequence) == (8, 0, 11)


@pytest.mark.parametrize(("flags", "dropped"), [(0, 42), (QueueFlags.FAIL_OPEN, 0)])
async def test_once_no_verdict_can_come_the_rest_finds_a_full_queue(
    flags: QueueFlags, dropped: int
) -> None:
    backend = replayed(packets(*range(1, 51)))
    seen = []
    async with trionfq.open_queue(0, backend=backend, max_len=8, flags=flags) as queue:
        async for packet in queue:
            packet.hold()
            seen.append(packet)
        [row] = backend.queues()
        assert (row.queue_total, row.queue_dropped) == (8, dropped)
    assert len(seen) == 8


def test_repeat_and_requeue_bring_no_second_arrival() -> None:
    backend = bound(packets(1, 2))
    backend.receive_nowait(64)
    backend.send_nowait(make_verdict(1, VerdictCode.REPEAT))
    backend.send_nowait(make_verdict(2, VerdictCode.QUEUE))
    assert backend.receive_nowait(64) == ([], 0, 0, 0, True)
    assert verdicts(backend.transcript) == [(1, 4), (2, 3)]


def test_the_kernel_s_errors_are_the_kernel_s() -> None:
    backend = bound(packets(1))
    backend.receive_nowait(64)
    backend.send_nowait(make_verdict(9))
    backend.send_nowait(make_verdict(1, VerdictCode.STOLEN))
    found = [schema.parse(each)[0] for each in backend.receive_nowait(64).datagrams]
    assert [-e.error for e in found if isinstance(e, ErrorMessage)] == [
        errno.ENOENT,
        errno.EINVAL,
    ]
    assert verdicts(backend.transcript) == [(1, None)]


# -- notes -----------------------------------------------------------------------------------------


def test_losses_that_were_noted_are_reported_where_they_stood() -> None:
    first, second, third = packets(1, 2, 3)
    lost = (Note("overrun", {"count": 2}), Note("truncated", {"count": 3}))
    odd = (Note("overrun", {"count": "many"}), Note("overrun", {"count": -1}))
    source = [first, Record(START, None, b"", lost), second, third._replace(notes=odd)]
    backend = bound(source)
    one = backend.receive_nowait(1)
    two = backend.receive_nowait(1)
    three = backend.receive_nowait(1)
    assert [(r.overruns, r.truncated) for r in (one, two, three)] == [(0, 0), (2, 3), (0, 0)]


async def test_interface_names_are_those_of_the_recording() -> None:
    record, *_ = packets(1, ifindex_outdev=7)
    backend = replayed([record._replace(notes=(Note("interface", {"index": 7, "name": "veth0"}),))])
    assert backend.interface_name(7) is None
    seen, _statistics = await accept_all(backend)
    async with trionfq.open_queue(0, backend=(again := replayed([record], pace="asked"))) as queue:
        packet = await queue.receive()
        packet.drop()
        assert again.interface_name(7) is None
    assert len(seen) == 1


# -- files -----------------------------------------------------------------------------------------


def write(path: Path, records: Iterable[Record]) -> Path:
    with captures.create_capture(path) as writer:
        for record in records:
            writer.write(record)
    return path


async def test_a_cut_off_file_gives_its_packets_then_the_error(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.pcapng", packets(1, 2, 3))
    cut = tmp_path / "cut.pcapng"
    cut.write_bytes(path.read_bytes()[:-10])
    backend = bound(cut)
    assert ids_of(backend.receive_nowait(64).datagrams) == [1, 2]
    for _ in range(2):
        with pytest.raises(trionfq.CaptureError, match="the file ends"):
            backend.receive_nowait(64)
    backend.close()
    seen = []
    with pytest.raises(trio.BrokenResourceError) as caught:
        async with trionfq.open_queue(0, backend=replayed(cut)) as queue:
            async for packet in queue:
                packet.accept()
                seen.append(packet.id)
    assert "the file ends" in str(caught.value)
    assert isinstance(caught.value.__cause__, trionfq.CaptureError)
    assert seen == [1, 2]


def test_a_file_is_opened_when_it_is_named_and_closed_with_the_backend(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replayed(tmp_path / "missing.pcapng")
    (tmp_path / "text").write_text("no capture")
    with pytest.raises(trionfq.CaptureError):
        replayed(tmp_path / "text")
    with pytest.raises(trionfq.CaptureError):
        replayed(tmp_path / "text", queue=3)
    path = write(tmp_path / "run.pcapng", packets(1, 2, 3))
    backend = bound(path)
    backend.receive_nowait(1)
    backend.close()  # an open file would warn, and warnings are errors


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_replays_as_far_as_it_can_be_read(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = write(tmp_path / "run.pcapng", packets(*range(1, 21), mark=5))
    data = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(200, len(data))] = chance.choice((0, 1, 3, 0x7F, 0xFF))
    path.write_bytes(data)
    try:
        backend = bound(path, queue=0)
        while datagrams := backend.receive_nowait(3).datagrams:
            for row in backend.queues():
                backend.send_nowait(make_verdict(row.id_sequence, batch=True))
            assert len(datagrams) <= 3
    except trionfq.CaptureError:
        pass


# -- malformed packets -----------------------------------------------------------------------------


async def test_a_packet_that_cannot_be_decoded_is_given_as_it_was_recorded() -> None:
    odd = make_packet(2, mark=5)
    odd = odd[:32] + b"\x02" + odd[33:]  # the length of its second attribute
    junk = b"\xff" * 20
    source = [make_packet(1), odd, junk, make_packet(3)]
    assert bound(source).receive_nowait(64).datagrams == source
    told: list[Exception] = []
    backend = replayed(source)
    seen, statistics = await accept_all(
        backend,
        on_close=trionfq.Verdict.DROP,
        error_handler=lambda error, _packet: told.append(error),
    )
    assert [packet.id for packet in seen] == [1, 3]
    assert [type(each) for each in told] == [trionfq.RemoteProtocolError] * 2
    assert statistics.undecodable_messages == 2
    assert verdicts(backend.transcript) == [(1, 1), (2, 0), (3, 1)]


# -- the end ---------------------------------------------------------------------------------------


async def test_it_ends_when_all_is_given_and_decided() -> None:
    backend = bound(packets(1, 2))
    assert not backend.receive_nowait(64).ended
    backend.send_nowait(make_verdict(1))
    assert not backend.receive_nowait(64).ended
    backend.send_nowait(make_verdict(2))
    assert backend.receive_nowait(64).ended
    await backend.wait_readable()  # the end is something to receive


async def test_an_empty_recording_ends_at_once() -> None:
    seen, _statistics = await accept_all(replayed([]))
    assert seen == []


@pytest.mark.parametrize("pace", ["asked", "timed", "lockstep"])
async def test_it_ends_when_packets_are_held_and_no_verdict_can_come(pace: Pace) -> None:
    backend = replayed(packets(1, 2, 3, gap_ns=MS), pace=pace)
    started = time.monotonic()
    async with trionfq.open_queue(0, backend=backend) as queue:
        async for packet in queue:
            if packet.id == 2:
                packet.hold()
            else:
                packet.accept()
    assert time.monotonic() - started < 1, "patience is for runs in which something may come"
    assert verdicts(backend.transcript) == [(1, 1), (2, None), (3, 1)]


@pytest.mark.parametrize("pace", ["asked", "timed", "lockstep"])
async def test_it_does_not_end_while_a_sleeping_task_will_decide(
    pace: Pace, autojump_clock: trio.testing.MockClock
) -> None:
    backend = replayed(packets(1, 2, 3), pace=pace, patience_s=5)

    async def later(packet: trionfq.Packet) -> None:
        await trio.sleep(4)
        packet.drop()

    async with trio.open_nursery() as nursery, trionfq.open_queue(0, backend=backend) as queue:
        async for packet in queue:
            nursery.start_soon(later, packet)
    assert verdicts(backend.transcript) == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("pace", ["asked", "timed", "lockstep"])
async def test_patience_ends_a_run_that_only_ticks(
    pace: Pace, autojump_clock: trio.testing.MockClock
) -> None:
    backend = replayed(packets(1, 2), pace=pace, patience_s=30)

    async def tick() -> None:
        for _ in itertools.count():
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with trionfq.open_queue(0, backend=backend) as queue:
            async for packet in queue:
                packet.hold()
            assert 30 <= trio.current_time() < 32
        nursery.cancel_scope.cancel()


async def test_it_does_not_end_while_a_thread_will_decide() -> None:
    backend = replayed(packets(1, 2))
    released = trio.Event()

    async def look_up(packet: trionfq.Packet) -> None:
        await trio.to_thread.run_sync(time.sleep, 0.05)
        packet.drop()
        released.set()

    async with trio.open_nursery() as nursery, trionfq.open_queue(0, backend=backend) as queue:
        async for packet in queue:
            nursery.start_soon(look_up, packet)
        assert released.is_set()
    assert verdicts(backend.transcript) == [(1, 0), (2, 0)]


async def test_a_task_that_waits_for_idleness_is_before_the_end() -> None:
    backend = replayed(packets(1))
    held: list[trionfq.Packet] = []

    async def consume(queue: trionfq.Queue) -> None:
        async for packet in queue:
            packet.hold()
            held.append(packet)

    async with trionfq.open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(consume, queue)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
        held[0].accept(mark=9)
    assert backend.transcript == [Outcome(0, 1, 1, mark=9)]


# -- time ------------------------------------------------------------------------------------------


async def test_asked_time_is_that_of_the_packet_that_came_last() -> None:
    backend = replayed(packets(1, 2, 3))
    assert backend.now_ns() == START
    backend.send_nowait(make_bind())
    backend.receive_nowait(1)
    for place in range(3):
        backend.receive_nowait(1)
        assert backend.now_ns() == START + place * MS
    assert [o.arrived_ns for o in backend.transcript] == [START, START + MS, START + 2 * MS]


def test_time_never_goes_back() -> None:
    back = [Record(START - n, FROM, make_packet(n + 1)) for n in range(3)]
    backend = bound(back)
    times = []
    for _ in back:
        backend.receive_nowait(1)
        times.append(backend.now_ns())
    assert times == [START] * 3


async def test_timed_packets_come_at_their_distances(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = [
        Record(START + at, FROM, make_packet(place + 1))
        for place, at in enumerate([0, 250 * MS, 250 * MS, 3_000 * MS])
    ]
    backend = replayed(source, pace="timed")
    await trio.sleep(10)
    came = []
    async with trionfq.open_queue(0, backend=backend) as queue:
        async for packet in queue:
            packet.accept()
            came.append((packet.id, trio.current_time()))
    assert came == [(1, 10.0), (2, 10.25), (3, 10.25), (4, 13.0)]
    assert [o.arrived_ns - START for o in backend.transcript] == [
        0,
        250 * MS,
        250 * MS,
        3_000 * MS,
    ]


async def test_timed_packets_overflow_a_slow_program_as_in_the_kernel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = replayed(packets(*range(1, 51)), pace="timed")
    backend.send_nowait(make_bind(max_len=8))
    backend.receive_nowait(1)
    await trio.sleep(1)
    assert ids_of(backend.receive_nowait(64).datagrams) == [*range(1, 9)]
    assert backend.queues()[0].queue_dropped == 42
    backend.send_nowait(make_verdict(8, batch=True))
    assert backend.receive_nowait(64).ended


async def test_timed_packets_come_by_the_real_clock_too() -> None:
    backend = replayed(packets(*range(1, 21), gap_ns=MS), pace="timed")
    started = time.monotonic()
    seen, _statistics = await accept_all(backend)
    assert len(seen) == 20
    assert time.monotonic() - started >= 0.019


async def test_a_verdict_of_another_task_wakes_the_reader_on_the_real_clock() -> None:
    # The verdict leaves in the flush, when trio has already fixed how long it sleeps.
    backend = replayed(packets(*range(1, 51)))
    waiting: list[trionfq.Packet] = []
    wanted = trio.Event()

    async def decide() -> None:
        decided = 0
        while decided < 50:
            await wanted.wait()
            for packet in waiting:
                packet.accept()
            decided += len(waiting)
            waiting.clear()
            await trio.lowlevel.checkpoint()

    started = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(decide)
        async with trionfq.open_queue(0, backend=backend, max_len=3) as queue:
            async for packet in queue:
                waiting.append(packet)
                wanted.set()
    assert [o.verdict for o in backend.transcript] == [1] * 50
    assert time.monotonic() - started < 2


# -- lockstep --------------------------------------------------------------------------------------


def concurrent_run(pace: Pace) -> list[tuple[Any, ...]]:
    """Handlers that sleep, share a counter across ticks, and decide by the order of things."""
    source = [
        Record(START + at * 10 * MS, FROM, make_packet(place + 1))
        for place, at in enumerate([0, 0, 0, 1, 1, 2, 2, 2, 2, 5, 5, 30])
    ]
    backend = replayed(source, pace=pace)
    order: list[int] = []

    async def handler(packet: trionfq.Packet) -> None:
        await trio.sleep(0.001 * (packet.id * 7 % 5))
        order.append(packet.id)
        packet.accept(mark=len(order))

    async def main() -> None:
        async with trionfq.open_queue(0, backend=backend) as queue:
            await queue.serve(handler, workers=8)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return [
        (o.packet_id, o.verdict, o.mark, o.arrived_ns, o.decided_ns) for o in backend.transcript
    ]


def test_a_concurrent_run_in_lockstep_has_one_result() -> None:
    runs = [concurrent_run("lockstep") for _ in range(10)]
    assert all(run == runs[0] for run in runs)
    # trio shuffles tasks, so it is lockstep that does it.
    marks = {tuple(row[2] for row in concurrent_run("asked")) for _ in range(10)}
    assert len(marks) > 1
    arrived = [row[3] - START for row in runs[0]]
    at = [0, 0, 0, 1, 1, 2, 2, 2, 2, 5, 5, 30]
    expected: list[int] = []
    for each in at:
        expected.append(max(each * 10 * MS, expected[-1] + 1) if expected else 0)
    assert arrived == expected, "1 ns later where two are equal"
    assert runs[0][0][4] == START + 2 * MS, "a handler's sleep is part of the recorded time"


def test_timeouts_between_packets_expire_in_lockstep() -> None:
    source = [Record(START + n * 1000 * MS, FROM, make_packet(n + 1)) for n in range(4)]
    backend = replayed(source, pace="lockstep")
    events: list[tuple[str, float]] = []

    async def main() -> None:
        async with trionfq.open_queue(0, backend=backend) as queue:
            while True:
                with trio.move_on_after(0.4) as scope:
                    packet = await queue.receive()
                    events.append(("packet", trio.current_time()))
                    packet.accept()
                    continue
                assert scope.cancelled_caught
                events.append(("timeout", trio.current_time()))

    with pytest.raises(trio.EndOfChannel):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    names = [name for name, _ in events]
    assert names == ["packet", *["timeout", "timeout", "packet"] * 3]
    assert [at for name, at in events if name == "packet"] == [0.0, 1.0, 2.0, 3.0]


async def test_lockstep_gives_one_packet_whenever_all_tasks_are_blocked() -> None:
    backend = replayed(packets(1, 2, 3), pace="lockstep")
    backend.send_nowait(make_bind())
    backend.receive_nowait(64)
    busy = True

    async def spin() -> None:
        while busy:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(spin)
        nursery.start_soon(backend.wait_readable)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
            assert backend.receive_nowait(64).datagrams == []
        busy = False
    assert ids_of(backend.receive_nowait(64).datagrams) == [1]
    assert backend.receive_nowait(64).datagrams == []
    await backend.wait_readable()
    assert ids_of(backend.receive_nowait(64).datagrams) == [2]
    backend.close()


# -- what the program sends ------------------------------------------------------------------------


def by_hand(kind: int, *attributes: Attr, flags: int = 1) -> bytes:
    return schema.build([Message(kind, flags, 1, 0, 0, 0, 0, attributes)])


HEADER = Attr(NFQA.by_name["verdict_hdr"].number, {"verdict": 1, "id": 1})
WRONG: list[tuple[bytes, str]] = [
    (b"\xff" * 20, "expected a length of 16 to 20, got 4294967295"),
    (make_verdict(1)[:-1], "sent datagram"),
    (struct.pack("=IHHIIBBH", 20, MessageType.VERDICT, 1, 1, 0, 0, 0, 0), "NFQA_VERDICT_HDR"),
    (by_hand(MessageType.VERDICT, HEADER, flags=4), "without NLM_F_REQUEST"),
    (by_hand(MessageType.VERDICT, HEADER, Attr(16, 5)), "does not take uid"),
    (by_hand(MessageType.VERDICT, HEADER, Attr(99, b"")), "does not take NFQA_#99"),
    (by_hand(MessageType.VERDICT_BATCH, HEADER, Attr(10, b"x")), "does not take payload"),
    (make_packet(1), "packet: only the kernel sends it"),
    (schema.build([schema.RawMessage(0x101, 1, 1, 0, bytes(4))]), "no operation of nfqueue"),
]


@pytest.mark.parametrize("check", ["sample", "all"])
@pytest.mark.parametrize(("datagram", "text"), WRONG)
def test_a_request_that_contradicts_the_schema_is_raised_and_not_taken(
    check: Check, datagram: bytes, text: str
) -> None:
    backend = bound(packets(1), check=check)
    backend.receive_nowait(64)
    for _ in range(2):
        with pytest.raises(trionfq.ConformanceError) as caught:
            backend.send_nowait(make_verdict(1) + datagram)
        assert text in str(caught.value)
    assert backend.receive_nowait(64).datagrams == []
    assert verdicts(backend.transcript) == [(1, None)]


@pytest.mark.parametrize(("datagram", "text"), WRONG)
def test_without_the_check_the_kernel_model_answers_alone(datagram: bytes, text: str) -> None:
    backend = bound(packets(1), check="off")
    backend.receive_nowait(64)
    backend.send_nowait(datagram)
    backend.receive_nowait(64)
    assert backend.judged == 0


async def test_the_program_sees_what_is_wrong_with_its_request() -> None:
    class Careless(trionfq.ReplayBackend):
        """Stands for a program whose verdicts lose their last byte."""

        def send_nowait(self, datagram: bytes) -> None:
            is_config = datagram[4:6] == MessageType.CONFIG.to_bytes(2, sys.byteorder)
            super().send_nowait(datagram if is_config else datagram[:-1])

    with pytest.raises(trio.BrokenResourceError) as caught:
        await accept_all(Careless(packets(1, 2)))
    assert "sent datagram" in str(caught.value)
    assert isinstance(caught.value.__cause__, trionfq.ConformanceError)


def test_each_new_layout_is_judged_and_of_the_rest_a_seeded_sample() -> None:
    plain, marked, rewritten = (
        make_verdict(1),
        make_verdict(2, mark=1),
        make_verdict(3, payload=b"abc"),
    )

    def run(seed: int) -> list[int]:
        check = SentCheck("sample", seed)
        judged = []
        for datagram in (plain, marked, rewritten, plain + marked + rewritten):
            check.messages(datagram)
            judged.append(check.judged)
        for _ in range(1000):
            check.messages(plain * 8)
            judged.append(check.judged)
        return judged

    first = run(1)
    assert first[:4] == [1, 2, 3, 3]
    assert 3 < first[-1] < 20, "about 1 in 1,024 of 8,000"
    assert run(1) == first
    assert run(2) != first


def test_codec_and_schema_must_agree_at_first_sight_and_in_the_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse, build = schema.parse, schema.build

    def parses_wrongly(datagram: bytes) -> list[Any]:
        return [each._replace(seq=each.seq + 1) for each in parse(datagram)]

    def builds_wrongly(messages: Sequence[Any]) -> bytes:
        return build(messages)[:-1] + b"?"

    verdict = make_verdict(7, mark=3)
    for name, faulty in (("parse", parses_wrongly), ("build", builds_wrongly)):
        with monkeypatch.context() as patch:
            patch.setattr(schema, name, faulty)
            with pytest.raises(trionfq.ConformanceError, match=r"the schema (reads|writes)"):
                SentCheck("sample", 0).messages(verdict)

        def noticed_at(seed: int, name: str = name, faulty: Any = faulty) -> int:
            check = SentCheck("sample", seed)
            check.messages(verdict)
            with monkeypatch.context() as patch:
                patch.setattr(schema, name, faulty)
                for count in range(2048):
                    try:
                        assert check.runs(verdict) is not None
                    except trionfq.ConformanceError:
                        return count
            raise AssertionError("no sample was taken")

        places = [noticed_at(seed) for seed in range(8)]
        assert len(set(places)) > 4
        assert [noticed_at(seed) for seed in range(8)] == places


def test_a_layout_is_judged_when_it_comes_first_in_the_middle_of_known_ones() -> None:
    backend = trionfq.ReplayBackend(packets(*range(1, 41)), check="sample")
    backend.send_nowait(make_bind())
    while backend.receive_nowait(64).datagrams:
        pass
    judged = []
    for datagram in (
        make_verdict(1),
        make_verdict(2) + make_verdict(3),
        make_verdict(4) + make_verdict(5, mark=1) + make_verdict(6),
        make_verdict(7, mark=2) + make_verdict(8),
        make_verdict(9, payload=bytes(30)),
        make_verdict(10, payload=bytes(31)),
        make_verdict(11, batch=True),
    ):
        backend.send_nowait(datagram)
        judged.append(backend.judged)
    assert judged == [2, 2, 3, 3, 4, 5, 6], "the BIND, and each layout once"
    assert len(verdicts(backend.transcript)) == 40


def test_check_all_judges_every_message() -> None:
    backend = bound(packets(*range(1, 11)), check="all")
    backend.receive_nowait(64)
    backend.send_nowait(b"".join(make_verdict(n) for n in range(1, 11)))
    assert backend.judged == 11


# -- a recorded run and its replay -----------------------------------------------------------------


def policy(packet: trionfq.Packet, seen: Counter[str]) -> None:
    """Every verb, decided by payload, mark and order."""
    seen["packets"] += 1
    kind = packet.payload[-1] % 8
    if kind == 0:
        packet.drop()
    elif kind == 1:
        packet.accept(mark=packet.mark + seen["packets"])
    elif kind == 2:
        packet.accept(payload=udp_packet(b"new" * (1 + seen["packets"] % 9)))
    elif kind == 3:
        packet.stop()
    elif kind == 4:
        packet.repeat(mark=7)
    elif kind == 5:
        packet.requeue(9, bypass=True)
    elif kind == 6:
        packet.accept(priority=5)
    else:
        packet.accept()


async def run_policy(backend: Backend) -> None:
    seen: Counter[str] = Counter()
    async with trionfq.open_queue(0, backend=backend, flags=QueueFlags.UID_GID) as queue:
        async for packet in queue:
            policy(packet, seen)


def some_traffic(count: int) -> list[Record]:
    chance = random.Random(7)
    source = []
    packet_id = 0
    for place in range(count):
        packet_id += 1 if place % 50 else 3
        more: dict[str, Any] = {}
        if chance.random() < 0.5:
            more["mark"] = chance.randrange(1, 9)
        if chance.random() < 0.3:
            more |= {"uid": 1000, "gid": 1000}
        data = chance.randbytes(chance.randrange(1, 40))
        datagram = make_packet(packet_id, udp_packet(data), ifindex_outdev=1, hook=3, **more)
        source.append(Record(START + place * MS, FROM, datagram))
    return source


@pytest.mark.parametrize("pace", ["asked", "lockstep"])
async def test_a_recording_of_a_replay_replays_to_the_same_transcript(
    tmp_path: Path, pace: Pace
) -> None:
    replay = replayed(some_traffic(300), pace=pace, check="all")
    first = tmp_path / "first.pcapng"
    await run_policy(trionfq.RecordingBackend(replay, first))
    decided = replay.transcript
    assert len(decided) == 300
    assert len({outcome.verdict for outcome in decided}) == 5
    assert None not in {outcome.verdict for outcome in decided}
    with captures.open_capture(first) as capture:
        assert captures.transcript(capture) == decided
    again = replayed(first, pace=pace, check="all")
    second = tmp_path / "second.pcapng"
    await run_policy(trionfq.RecordingBackend(again, second))
    assert again.transcript == decided
    assert again.shortfalls == {}
    with captures.open_capture(second) as capture:
        assert captures.transcript(capture, queue=0) == decided


async def test_a_scripted_run_and_its_replay_decide_alike(tmp_path: Path) -> None:
    kernel = KernelModel(requeue_repeats=False, follow_queue=False)
    scripted = ScriptedBackend(kernel, clock=itertools.count(START).__next__)
    path = tmp_path / "run.pcapng"
    recording = trionfq.RecordingBackend(scripted, path)
    seen: Counter[str] = Counter()
    async with trionfq.open_queue(0, backend=recording) as queue:
        for record in some_traffic(100):
            scripted.arrive(record.datagram, keep_id=True)
            policy(await queue.receive(), seen)
    replay = replayed(path, check="all")
    seen.clear()
    async with trionfq.open_queue(0, backend=replay) as queue:
        async for packet in queue:
            policy(packet, seen)
        assert replay.interface_name(1) == "lo"
    with captures.open_capture(path) as capture:
        assert captures.transcript(capture) == replay.transcript
