"""The judge: each rule is caught where it is broken, and nothing else is said."""

from __future__ import annotations

import errno
import io
import json
import struct
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conversation import (
    ACK,
    FROM,
    TO,
    Sent,
    answer,
    arrives,
    batch,
    command,
    decides,
    params,
)
from tests.messages import damaged
from trionfq import schema
from trionfq._errors import CaptureError
from trionfq.captures import CaptureWriter, Record
from trionfq.conformance import RULES, Finding, Judge, Severity, _requests, judge
from trionfq.conformance.vectors import load
from trionfq.conformance.vectors._breaches import (
    BREACHES,
    attribute,
    config,
    genmsg,
    ipv4,
    message,
    packet,
    packet_hdr,
    u32,
    verdict,
)
from trionfq.schema import Direction

NESTED = 0x8000
BRIDGE = 7


def asks(request: bytes, error: int = 0) -> list[Sent]:
    return [(TO, request), answer(request, error)]


def payload(contents: bytes) -> bytes:
    return attribute(10, contents)


def mark(value: int) -> bytes:
    return u32(3, value)


def vlan(*numbers: int) -> bytes:
    return attribute(19 | NESTED, b"".join(attribute(n, b"\x81\0") for n in numbers))


BIND = config(command(1), params(), flags=ACK)
UNBIND = config(command(2), flags=ACK, seq=2)
OTHER_UNBIND = genmsg(queue=8) + command(2)
START = asks(BIND)
STOP = asks(UNBIND)
TAGGED = (vlan(2, 1), attribute(20, bytes(14)), payload(ipv4()))

SWEEP = message(0x303, genmsg() + attribute(2, struct.pack(">II", 1, 0x8000000A)), flags=1)
"""Accepts whatever waits when a queue is closed, which may be nothing."""

WELL_BEHAVED: list[Sent] = [
    *asks(config(command(1), params(), u32(3, 4096), u32(4, 31), u32(5, 12), flags=ACK)),
    arrives(1, u32(6, 2), mark(5), u32(16, 1000), u32(17, 1000), payload(ipv4())),
    arrives(2, u32(6, 2), u32(13, 1500), payload(ipv4())),
    decides(2),
    decides(1, mark(6), payload(ipv4(b"longer than before"))),
    *(arrives(number, u32(6, 2)) for number in range(3, 9)),
    decides(5, code=0),
    batch(8),
    *asks(config(params(1, 0), flags=ACK, seq=3)),
    arrives(9),
    decides(9, mark(0x10), code=4),
    arrives(10, mark(0x10)),
    decides(10, code=9 << 16 | 0x8003),
    (TO, config(u32(4, 1), u32(5, 1), u32(3, 0)) + SWEEP + config(command(2))),
    answer(SWEEP, errno.ENOENT),
]
"""What a good program and a kernel say to each other: set-up, verdicts of all kinds, closing."""


def breach(rule: str, *conversations: list[Sent]) -> list[tuple[str, list[Sent]]]:
    return [(rule, conversation) for conversation in conversations]


CONVERSATIONS: list[tuple[str, list[Sent]]] = [
    *breach("NFQ301", asks(BIND, errno.EPERM), [*START, *asks(config(params(), seq=9), 1), *STOP]),
    *breach(
        "NFQ302",
        asks(config(params(), seq=9), errno.ENODEV),
        [*START, *STOP, *asks(config(params(), seq=9), errno.ENODEV)],
        asks(UNBIND, errno.ENODEV),
    ),
    *breach(
        "NFQ303",
        [
            *START,
            arrives(1),
            *asks(config(command(1), params(), flags=ACK, seq=3), 16),
            decides(1),
            *STOP,
        ],
    ),
    *breach(
        "NFQ305",
        [*asks(config(command(1), flags=ACK)), *asks(config(params(), seq=3))],
        asks(config(command(1), params(0, 0), flags=ACK)),
    ),
    *breach("NFQ313", [(TO, config(command(1), params()))]),
    *breach("NFQ314", [*START, (TO, config(u32(3, 0)))]),
    *breach(
        "NFQ315",
        [*asks(config(command(1), params(1), flags=ACK)), arrives(1, payload(ipv4())), decides(1)],
        [
            *asks(config(command(1), params(2, 20), flags=ACK)),
            arrives(1, u32(13, 1500), payload(ipv4())),
            decides(1),
        ],
        [*START, arrives(1, u32(14, 2)), decides(1)],
    ),
    *breach(
        "NFQ401",
        [*START, decides(9)],
        [*START, arrives(1), decides(2), decides(1)],
        [decides(3), answer(decides(3)[1], errno.ENOENT)],
    ),
    *breach(
        "NFQ402",
        [*START, arrives(1), decides(1), decides(1, code=0)],
        # Which of two requests that are alike the kernel refused.
        [*START, arrives(1), decides(1), decides(1), answer(decides(1)[1], errno.ENOENT)],
        [*START, arrives(1), arrives(2), batch(2), decides(2), answer(decides(2)[1], errno.ENOENT)],
    ),
    *breach(
        "NFQ403",
        [*START, arrives(1), decides(1 << 24), decides(1)],
        [*START, arrives(1), batch(1 << 24)],
    ),
    *breach("NFQ404", [*START, arrives(1), decides(1), answer(decides(1)[1], errno.ENOENT)]),
    *breach(
        "NFQ405",
        [*START, arrives(1), decides(1), answer(decides(1)[1], errno.EINVAL), decides(1, code=0)],
        [
            *START,
            arrives(1),
            arrives(2),
            batch(2),
            answer(batch(2)[1], errno.EPERM, capped=True),
            decides(1),
            decides(2),
        ],
    ),
    *breach(
        "NFQ409",
        [*START, arrives(1), decides(1), *STOP, decides(1)],
        [decides(3), answer(decides(3)[1], errno.ENODEV)],
    ),
    *breach(
        "NFQ410",
        [
            *START,
            arrives(1),
            (TO, message(0x301, genmsg(queue=0x0700) + decides(1)[1][20:], flags=1)),
            decides(1),
        ],
    ),
    *breach(
        "NFQ411",
        [*START, arrives(1), batch(5)],
        [*START, batch(1)],
        [*START, arrives(1), (TO, batch(5)[1] + message(0x302, OTHER_UNBIND, flags=1))],
    ),
    *breach("NFQ412", [*START, arrives(1), decides(1), batch(1)]),
    *breach(
        "NFQ413",
        [*START, arrives(1, u32(13, 1500), payload(ipv4())), decides(1, payload(ipv4()))],
    ),
    *breach("NFQ414", [*START, arrives(1, payload(ipv4())), decides(1, payload(ipv4()))]),
    *breach(
        "NFQ415",
        [*START, arrives(1, payload(ipv4())), decides(1, payload(b""))],
        [*START, arrives(1, payload(ipv4())), decides(1, payload(ipv4()[:19]))],
        [*START, arrives(1, *TAGGED, family=BRIDGE), decides(1, payload(ipv4(b"dat")))],
    ),
    *breach(
        "NFQ416",
        [*START, arrives(1, payload(ipv4())), decides(1, payload(ipv4(b"other", total=28)))],
    ),
    *breach(
        "NFQ417",
        [*START, arrives(1, payload(ipv4())), decides(1, payload(ipv4(b"other", checksum=1)))],
    ),
    *breach("NFQ418", [*START, arrives(1, mark(5)), decides(1, mark(0))]),
    *breach(
        "NFQ419",
        [*START, arrives(1, mark(5)), decides(1, mark(5))],
        [*START, arrives(1), batch(1, mark(0))],
    ),
    *breach("NFQ420", [*START, arrives(1, mark(0x01020304)), decides(1, mark(0x04030201))]),
    *breach("NFQ421", [*START, arrives(1, mark(5)), decides(1, code=4)]),
    *breach(
        "NFQ424",
        [
            *START,
            arrives(1, *TAGGED, family=BRIDGE),
            decides(1, vlan(2)),
            answer(decides(1, vlan(2))[1], errno.EINVAL),
        ],
    ),
    *breach(
        "NFQ425",
        [*START, arrives(1, *TAGGED, family=BRIDGE), decides(1, attribute(20, bytes(12)))],
    ),
    *breach(
        "NFQ501",
        [*START, arrives(1), arrives(2), decides(2), *STOP],
        [arrives(1), arrives(2), decides(2)],
    ),
    *breach(
        "NFQ502",
        [*START, arrives(1), *STOP],
        [*START, arrives(1)],
        [*START, arrives(1), *START, arrives(1), decides(1)],
    ),
    *breach(
        "NFQ503",
        [*START, arrives(2), arrives(1), decides(1), decides(2)],
        [*START, arrives(1), arrives(1), decides(1)],
    ),
    *breach("NFQ504", [*START, arrives(1), arrives(4), decides(4), decides(1)]),
    *breach("NFQ601", [*START, answer(config(params(), seq=99))]),
    *breach("NFQ602", [(TO, BIND)]),
    *breach(
        "NFQ603",
        [
            *START,
            *(arrives(number) for number in (1, 2, 3)),
            *((TO, verdict(packet_id=number, seq=0)) for number in (1, 2, 3)),
        ],
    ),
    # Rules of single messages, seen in a conversation.
    *breach(
        "NFQ210",
        [*START, arrives(1, payload(ipv4())), decides(1, payload(ipv4(b"rewritten") + bytes(3)))],
    ),
    *breach("NFQ222", [*START, arrives(1, payload(ipv4())), decides(1, vlan(2, 1))]),
]
PLANTED = [
    *(
        (each.rule, f"{each.rule} {each.name}", [(each.direction, each.datagram)])
        for each in BREACHES
    ),
    *(
        (rule, f"{rule} conversation {number}", sent)
        for number, (rule, sent) in enumerate(CONVERSATIONS)
    ),
]


def records(conversation: list[Sent]) -> list[Record]:
    return [Record(10 + at, way, datagram) for at, (way, datagram) in enumerate(conversation)]


def found(conversation: list[Sent]) -> list[Finding]:
    return list(judge(records(conversation)))


def completed(sent: list[Sent]) -> list[Sent]:
    """A lone PACKET with the verdict that it waits for."""
    if len(sent) == 1 and sent[0][0] is FROM and sent[0][1][4:6] == b"\x00\x03":
        return [*sent, decides(5)]
    return sent


@pytest.mark.parametrize(
    ("rule", "sent"), [(r, s) for r, _, s in PLANTED], ids=[n for _, n, _ in PLANTED]
)
def test_a_planted_breach_is_caught_by_its_rule_and_by_no_other(
    rule: str, sent: list[Sent]
) -> None:
    assert {each.rule.id for each in found(completed(sent))} == {rule}


def test_every_rule_has_a_planted_breach() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_nothing_is_said_of_a_well_behaved_program() -> None:
    assert found(WELL_BEHAVED) == []


def test_a_finding_names_record_message_byte_field_queue_and_packet() -> None:
    conversation = [*START, arrives(1), arrives(2, mark(5))]
    wrong = decides(1)[1] + verdict(mark(5), u32(16, 0), packet_id=2)
    [same, uid] = sorted(found([*conversation, (TO, wrong)]), key=lambda each: each.rule.id)[::-1]
    assert (same.rule.id, uid.rule.id) == ("NFQ419", "NFQ208")
    assert (uid.record, uid.message, uid.time_ns, uid.direction) == (4, 1, 14, TO)
    assert (uid.offset, uid.field) == (32 + 32 + 8, "NFQA_UID")
    assert (same.queue, same.packet_id, same.offset) == (7, 2, 32 + 32)
    assert "NFQ419 note" in str(same)
    assert "record 4, message 1, byte 64, queue 7, packet 2" in str(same)
    assert same.as_json()["rule"] == "NFQ419"


def test_the_place_in_a_nest_is_told() -> None:
    nest = attribute(11 | NESTED, u32(8, 1) + attribute(7, b"\0\1"))
    [short] = found([(TO, verdict(nest))])
    assert (short.rule.id, short.field, short.offset) == (
        "NFQ204",
        "NFQA_CT -> CTA_TIMEOUT",
        32 + 4 + 8,
    )


def test_a_refused_verdict_leaves_the_packet_undecided() -> None:
    refused = decides(1)
    conversation = [*START, arrives(1), arrives(2), refused, answer(refused[1], errno.EINVAL)]
    assert [each.rule.id for each in found([*conversation, decides(2), *STOP])] == [
        "NFQ405",
        "NFQ501",
    ]


def test_a_refused_bind_leaves_the_queue_as_it_was() -> None:
    second = config(command(1), params(1), flags=ACK, seq=3)
    conversation = [*START, arrives(1), *asks(second, errno.EBUSY), arrives(2, payload(ipv4()))]
    rules = [each.rule.id for each in found([*conversation, decides(1), decides(2)])]
    assert rules == ["NFQ303"]


def test_what_came_before_the_capture_is_given_the_benefit_of_the_doubt() -> None:
    assert found([decides(3), decides(4), arrives(9), decides(5), decides(9), batch(5)]) == []
    assert {each.rule.id for each in found([arrives(9), decides(9), decides(9)])} == {"NFQ402"}


def test_an_answer_is_matched_by_its_echo_where_numbers_are_all_the_same() -> None:
    """As libnetfilter_queue numbers its verdicts."""
    first, second = (verdict(packet_id=number, seq=0) for number in (1, 2))
    shared, late = found(
        [*START, arrives(1), arrives(2), (TO, first), (TO, second), answer(second, errno.ENOENT)]
    )
    assert (shared.rule.id, shared.record) == ("NFQ603", 5)
    assert (late.rule.id, late.packet_id, late.record) == ("NFQ404", 2, 5)


def test_ids_wrap() -> None:
    top = 0xFFFFFFFF
    conversation = [arrives(top - 1), arrives(top), arrives(0), arrives(1), batch(0), decides(1)]
    assert found(conversation) == []


def test_other_subsystems_are_passed_over_and_counted() -> None:
    nftables = message(0xA00, genmsg() + b"\xff\xff", flags=1)
    begin = message(0x10, genmsg(), flags=1)
    done = message(3, bytes(4), flags=2)
    foreign = [(TO, begin + nftables), (FROM, done), (TO, nftables[:-1]), answer(nftables, 22)]
    report = judge(records([*foreign[:2], foreign[3]])).finish()
    assert report.totals.findings == {}
    assert (report.totals.foreign, report.totals.messages) == (4, 0)


def test_a_record_whose_direction_is_not_told_is_judged_by_its_type() -> None:
    untold = [Record(1, None, each[1]) for each in [*START, arrives(1), decides(1), *STOP]]
    assert list(judge(untold)) == []


def test_a_big_endian_host_is_judged_likewise() -> None:
    from trionfq.schema import Message

    packets = [
        Message(0x300, 0, 0, 0, 2, 0, 7, (schema.attr(schema.nfqueue.NFQA, "packet_hdr", each),))
        for each in ({"packet_id": n, "hw_protocol": 0x0800, "hook": 3} for n in (1, 2))
    ]
    head = {"verdict": 1, "id": 1}
    verdicts = [
        Message(0x301, 1, 1, 0, 0, 0, 7, (schema.attr(schema.nfqueue.NFQA, "verdict_hdr", head),))
    ]
    conversation = [
        (FROM, schema.build(packets[:1], order="big")),
        (FROM, schema.build(packets[1:], order="big")),
        (TO, schema.build(verdicts, order="big")),
        (TO, schema.build(verdicts, order="big")),
        (TO, decides(2)[1]),
    ]
    rules = [each.rule.id for each in found(conversation)]
    assert rules == ["NFQ402", "NFQ103", "NFQ502"]


def test_a_packet_that_is_longer_than_its_length_field_may_say_0() -> None:
    """BIG TCP: the kernel writes 0 where a GSO packet has more than 65535 bytes."""
    jumbo = bytes.fromhex("60000000 0000 06 40") + bytes(32) + b"data"
    for family, contents in ((2, ipv4(b"any", total=0)), (10, jumbo)):
        hdr = packet_hdr(1, protocol=0x0800 if family == 2 else 0x86DD)
        conversation = [
            *START,
            (FROM, packet(family=family, hdr=hdr)),
            decides(1, payload(contents)),
        ]
        assert found(conversation) == []


def test_a_datagram_of_many_messages_takes_no_time() -> None:
    """What one message says of another is looked up, not searched for."""
    many = config(command(2)) * 8000 + batch(5)[1] * 8000
    started = time.process_time()
    found([(TO, many)])
    assert time.process_time() - started < 4


# --- the report


def test_a_report_gives_each_finding_when_it_is_certain() -> None:
    taken = 0

    def source() -> Iterator[Record]:
        nonlocal taken
        for record in records([decides(1, mark(0), mark(0)), decides(2), decides(3)]):
            taken += 1
            yield record

    report = judge(source())
    assert next(report).rule.id == "NFQ209"
    assert taken == 1


def test_the_totals_of_a_report() -> None:
    report = judge(records([*START, arrives(1), decides(1, mark(0)), decides(1)]))
    lines = [json.loads(line) for line in report.json_lines()]
    assert [line.get("rule") for line in lines] == ["NFQ419", "NFQ402", None]
    totals = lines[-1]["totals"]
    assert totals == {
        "passed": False,
        "records": 5,
        "messages": 5,
        "packets": 1,
        "foreign": 0,
        "severities": {"error": 1, "warning": 0, "note": 1},
        "rules": {"NFQ402": 1, "NFQ419": 1},
    }


def test_notes_let_a_program_pass_and_warnings_do_not() -> None:
    assert judge(records([*START, arrives(1)])).finish().passed
    assert not judge(records([*START, arrives(1), batch(9)])).finish().passed
    assert RULES["NFQ411"].severity is Severity.WARNING


def test_files_and_streams_are_judged(tmp_path: object) -> None:
    stream = io.BytesIO()
    writer = CaptureWriter(stream)
    for record in records([*START, arrives(1), decides(1), decides(1)]):
        writer.write(record)
    writer.flush()
    stream.seek(0)
    assert [each.rule.id for each in judge(stream)] == ["NFQ402"]
    with pytest.raises(CaptureError):
        judge(io.BytesIO(b"no capture at all"))


def test_memory_does_not_grow_with_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requests, "_KEPT", 64)  # as many as are kept, sooner
    judge = Judge()
    for at, sent in enumerate(START):
        judge.feed(at, Record(at, *sent))

    def traffic(first: int, last: int) -> int:
        for number in range(first, last):
            judge.feed(number, Record(number, *arrives(number, payload(ipv4()))))
            judge.feed(number, Record(number, *decides(number)))
        return tracemalloc.get_traced_memory()[0]

    traffic(1, 2500)  # until the interpreter's own lists of free objects are full
    tracemalloc.start()
    before = traffic(2500, 2800)
    assert traffic(2800, 3400) < before * 1.1
    tracemalloc.stop()
    assert judge.totals.packets == 3399


# --- any bytes


@given(st.lists(st.tuples(st.sampled_from([FROM, TO, None]), st.binary(max_size=120)), max_size=4))
def test_any_bytes_are_judged(conversation: list[tuple[Direction | None, bytes]]) -> None:
    for each in judge([Record(0, way, datagram) for way, datagram in conversation]):
        assert 0 <= each.offset <= len(conversation[each.record][1])


VALID = [bytes.fromhex(each["bytes"]) for each in load()]


@given(
    st.lists(
        st.tuples(st.sampled_from([FROM, TO]), damaged(st.sampled_from(VALID))),
        min_size=1,
        max_size=4,
    )
)
def test_damaged_messages_are_judged(conversation: list[Sent]) -> None:
    for each in judge([Record(0, way, datagram) for way, datagram in conversation]):
        assert each.rule.id in RULES
        assert str(each)
