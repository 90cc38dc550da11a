"""Transcripts pair packets with verdicts as the kernel does."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionfq import schema
from trionfq._errors import RemoteProtocolError
from trionfq.captures import Outcome, Record, transcript
from trionfq.schema import Attr, Direction, ErrorMessage
from trionfq.schema.nfqueue import NFQA, ConfigCommand, MessageType, VerdictCode
from trionfq.testing import (
    Cause,
    KernelModel,
    PacketIn,
    make_bind,
    make_config,
    make_packet,
    make_verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
ACCEPT, DROP = VerdictCode.ACCEPT, VerdictCode.DROP


def records(*passed: tuple[Direction, bytes]) -> list[Record]:
    return [Record(time, way, datagram) for time, (way, datagram) in enumerate(passed)]


def packets(*ids: int, queue: int = 0) -> list[tuple[Direction, bytes]]:
    return [(FROM, make_packet(packet_id, queue=queue)) for packet_id in ids]


def refusal(number: int, kind: int, seq: int) -> tuple[Direction, bytes]:
    answer = ErrorMessage(0x100, seq, 9, -number, (32, kind, 1, seq, 0), b"", ())
    return FROM, schema.build([answer])


def verdicts(found: Sequence[Outcome]) -> list[tuple[int, int | None]]:
    return [(outcome.packet_id, outcome.verdict) for outcome in found]


def test_a_packet_has_the_verdict_and_the_changes_that_were_sent() -> None:
    found = transcript(
        records(
            *packets(1, 2, 3),
            (TO, make_verdict(2, DROP)),
            (TO, make_verdict(1, 5 << 16 | 3, payload=b"new", mark=0, priority=6)),
        )
    )
    priority = Attr(NFQA.by_name["priority"].number, 6)
    assert found == [
        Outcome(0, 1, 5 << 16 | 3, 0, b"new", (priority,)),
        Outcome(0, 2, DROP),
        Outcome(0, 3, None),
    ]
    assert [(o.arrived_ns, o.decided_ns) for o in found] == [(0, 4), (1, 3), (2, None)]


def test_times_do_not_make_two_runs_differ() -> None:
    run = [*packets(1), (TO, make_verdict(1))]
    later = [record._replace(time_ns=record.time_ns + 99) for record in records(*run)]
    assert transcript(later) == transcript(records(*run))


def test_a_batch_decides_every_undecided_id_at_or_below() -> None:
    found = transcript(
        records(
            *packets(0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 2),
            (TO, make_verdict(0xFFFFFFFF, DROP)),
            (TO, make_verdict(1, batch=True, mark=4)),
        )
    )
    assert verdicts(found) == [
        (0xFFFFFFFE, ACCEPT),
        (0xFFFFFFFF, DROP),
        (0, ACCEPT),
        (1, ACCEPT),
        (2, None),
    ]
    assert [o.mark for o in found] == [4, None, 4, 4, None]


@pytest.mark.parametrize(
    ("number", "seen"),
    [
        (errno.EINVAL, [(1, None), (2, None), (3, None)]),
        (errno.EPERM, [(1, None), (2, None), (3, None)]),
        # The kernel had flushed it: what the program decided stands.
        (errno.ENOENT, [(1, None), (2, ACCEPT), (3, None)]),
        (0, [(1, None), (2, ACCEPT), (3, None)]),
    ],
)
def test_a_refused_verdict_decides_nothing(number: int, seen: list[tuple[int, int | None]]) -> None:
    passed = [
        *packets(1, 2, 3),
        (TO, make_verdict(2)),
        refusal(number, MessageType.VERDICT, 2),
    ]
    assert verdicts(transcript(records(*passed))) == seen
    # It waits at its old place, so a later batch finds it.
    swept = [*passed, (TO, make_verdict(2, DROP, batch=True))]
    drops = [(1, DROP), (2, seen[1][1] if seen[1][1] is not None else DROP), (3, None)]
    assert verdicts(transcript(records(*swept))) == drops


def test_a_bad_bridge_change_drops_the_packet() -> None:
    found = transcript(
        records(
            *packets(1, 2),
            (TO, make_verdict(1, l2hdr=b"x")),
            refusal(errno.EINVAL, MessageType.VERDICT, 1),
            (TO, make_verdict(2, VerdictCode.STOLEN, l2hdr=b"x")),
            refusal(errno.EINVAL, MessageType.VERDICT, 2),
        )
    )
    assert verdicts(found) == [(1, DROP), (2, None)]


def test_an_answer_after_unbind_reaches_no_later_packet() -> None:
    found = transcript(
        records(
            *packets(1, 2),
            (TO, make_verdict(1)),
            (TO, make_config(command=ConfigCommand.UNBIND)),
            (TO, make_bind()),
            refusal(errno.EINVAL, MessageType.VERDICT, 1),
            *packets(1),
            (TO, make_verdict(9, batch=True)),
        )
    )
    assert verdicts(found) == [(1, None), (2, None), (1, ACCEPT)]


def test_ids_that_start_again_are_another_binding() -> None:
    found = transcript(records(*packets(7, 8, 1, 2), (TO, make_verdict(2, batch=True))))
    assert verdicts(found) == [(7, None), (8, None), (1, ACCEPT), (2, ACCEPT)]


def test_queues_are_kept_apart() -> None:
    run = records(
        *packets(1, 2, queue=5),
        *packets(1, queue=6),
        (TO, make_verdict(1, DROP, queue=6)),
        (TO, make_verdict(1, queue=5)),
    )
    assert [(o.queue, o.packet_id, o.verdict) for o in transcript(run)] == [
        (5, 1, ACCEPT),
        (5, 2, None),
        (6, 1, DROP),
    ]
    assert verdicts(transcript(run, queue=6)) == [(1, DROP)]


def test_recordings_of_a_host_of_the_other_byte_order_are_read() -> None:
    for order in ("little", "big"):
        verdict = schema.parse(make_verdict(1, DROP))
        run = records(
            (FROM, make_packet(1, order=order)),
            (TO, schema.build(verdict, order=order)),
        )
        assert verdicts(transcript(run)) == [(1, DROP)]


def test_a_packet_that_cannot_be_decoded_counts_if_its_id_can_be_read() -> None:
    odd = make_packet(2, mark=5)
    odd = odd[:32] + b"\x02" + odd[33:]  # the length of its second attribute
    run = [*packets(1), (FROM, odd), (TO, make_verdict(2, batch=True))]
    assert verdicts(transcript(records(*run))) == [(1, ACCEPT), (2, ACCEPT)]
    with pytest.raises(RemoteProtocolError):
        transcript(records((FROM, odd)))  # of an unknown queue
    with pytest.raises(RemoteProtocolError):
        transcript(records(*packets(1), (TO, odd)))
    with pytest.raises(RemoteProtocolError):
        transcript(records(*packets(1), (FROM, b"junk")))


@settings(max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("arrive"), st.integers(1, 3), st.just(0)),
            st.tuples(st.just("verdict"), st.integers(1, 25), st.sampled_from([0, 1, 2, 4, 6])),
            st.tuples(st.just("batch"), st.integers(0, 25), st.sampled_from([0, 1, 2])),
            st.tuples(st.just("bind"), st.just(0), st.just(0)),
            st.tuples(st.just("unbind"), st.just(0), st.just(0)),
        ),
        max_size=25,
    )
)
def test_pairing_equals_what_the_kernel_model_decided(steps: list[tuple[str, int, int]]) -> None:
    kernel = KernelModel(requeue_repeats=False, follow_queue=False)
    sock = kernel.open_socket()
    run: list[tuple[Direction, bytes]] = []
    seqs = itertools.count(1)

    def say(datagram: bytes) -> None:
        run.append((TO, datagram))
        sock.send(datagram)
        hear()

    def hear() -> None:
        while (message := sock.receive()) is not None:
            run.append((FROM, schema.build([message])))

    say(make_bind())
    for step, number, verdict in steps:
        if step == "arrive":
            for _ in range(number):
                kernel.enqueue(0, PacketIn(b"\x45" + bytes(27)))
            hear()
        elif step == "verdict":
            say(make_verdict(number, verdict, seq=next(seqs), mark=number))
        elif step == "batch":
            say(make_verdict(number, verdict, batch=True, seq=next(seqs)))
        elif step == "bind":
            say(make_bind(seq=next(seqs)))
        else:
            say(make_config(command=ConfigCommand.UNBIND, seq=next(seqs)))
    decided = [
        (each.packet_id, each.verdict)
        for each in kernel.take_decisions()
        if each.cause in (Cause.VERDICT, Cause.BATCH)
    ]
    found = transcript(records(*run))
    assert sorted(verdicts([o for o in found if o.verdict is not None])) == sorted(decided)
