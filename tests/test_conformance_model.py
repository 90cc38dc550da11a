"""Judge and kernel model, which share no code, agree on which requests a kernel refuses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel._bench import Traits, packets
from tests.kernel._bench_model import ModelBench
from tests.kernel._scenario import By, Scenario
from tests.kernel.requests import SCENARIOS
from trionfq import schema
from trionfq._kernel_model import KernelModel, PacketIn
from trionfq.captures import Record
from trionfq.conformance import RULES, Finding, judge
from trionfq.conformance.vectors._breaches import attribute, genmsg, ipv4, message, u32
from trionfq.schema import Direction, ErrorMessage

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
ACK = 5
CAPTURE_ENDED = "undecided when the capture ended"
# The two that only repeat the kernel's answer are left out: the judge has to know why.
REFUSALS = {rule.id for rule in RULES.values() if rule.refused} - {"NFQ301", "NFQ405"}
QUEUES = st.sampled_from([7, 7, 7, 0x0700])
IDS = st.integers(0, 7) | st.just(1 << 24)
CODES = st.sampled_from([0, 1, 1, 1, 2, 5, 6, 0x00010001, 9 << 16 | 0x8003])


def config(queue: int, *attributes: bytes) -> bytes:
    return message(0x302, genmsg(queue=queue) + b"".join(attributes), flags=ACK)


def settings_of(flags: int | None, mask: int | None, mode: int, length: int) -> list[bytes]:
    found = [attribute(2, struct.pack(">IB", 100, mode)[:length])]
    found += [] if mask is None else [u32(4, mask)]
    return found + ([] if flags is None else [u32(5, flags)])


FLAGS = st.none() | st.sampled_from([0, 1, 4, 32])
SETTINGS = st.builds(settings_of, FLAGS, FLAGS, st.integers(1, 3), st.sampled_from([5, 5, 5, 4]))
COMMANDS = st.sampled_from([1, 1, 2, 3, 4, 0, 9])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request of a program that knows little."""
    queue = draw(QUEUES)
    kind = draw(st.integers(0, 9))
    if kind < 2:
        command = attribute(1, struct.pack(">BxH", draw(COMMANDS), 0))
        return config(queue, command, *draw(SETTINGS))
    if kind == 2:
        return config(queue, *draw(SETTINGS))
    if kind == 3:
        return message(0x304, genmsg(queue=queue), flags=1)
    head = attribute(2, struct.pack(">II", draw(CODES), draw(IDS)))
    body = head if draw(st.integers(0, 9)) else b""
    mark = attribute(3, bytes(draw(st.sampled_from([4, 4, 4, 2])))) if draw(st.booleans()) else b""
    type_ = 0x303 if kind > 7 else 0x301
    return message(type_, genmsg(queue=queue) + body + mark, flags=draw(st.sampled_from([1, ACK])))


PACKET = b"packet"
BIND = config(7, attribute(1, struct.pack(">BxH", 1, 0)), attribute(2, struct.pack(">IB", 0, 2)))
STEPS = st.lists(st.one_of(st.just(PACKET), st.just(PACKET), requests()), max_size=14)


def converse(steps: list[bytes]) -> tuple[list[Record], dict[int, int], set[int]]:
    """A conversation with the model: its records, each request's error, and what still waits."""
    model = KernelModel(requeue_repeats=False, follow_queue=False, flags_policy=False)
    sock = model.open_socket()
    records: list[Record] = []
    errors: dict[int, int] = {}
    for number, step in enumerate(steps):
        if step is PACKET:
            model.enqueue(7, PacketIn(ipv4()))
        else:
            # A number of its own tells each answer's request.
            request = step[:8] + struct.pack("<I", number) + step[12:]
            errors[len(records)] = 0
            place = len(records)
            records.append(Record(0, TO, request))
            sock.send(request)
        while (told := sock.receive()) is not None:
            if isinstance(told, ErrorMessage):
                errors[place] = -told.error
            records.append(Record(0, FROM, schema.build([told])))
    queue = model.queue(7)
    return records, errors, set() if queue is None else set(queue.held)


def refused(findings: list[Finding], records: list[Record]) -> set[int]:
    """Places of requests that the judge says are refused."""
    found = {(each.record, each.rule.id) for each in findings if each.rule.id in REFUSALS}
    # A batch whose id is in the wrong byte order sweeps whatever waits.
    batches = {place for place, record in enumerate(records) if record.datagram[4] == 3}
    return {place for place, rule in found if not (rule == "NFQ403" and place in batches)}


@settings(max_examples=100)
@given(STEPS)
def test_every_refusal_has_its_reason_and_every_reason_is_a_refusal(steps: list[bytes]) -> None:
    records, errors, waiting = converse([BIND, *steps])
    findings = list(judge(records))
    assert {each.rule.id for each in findings}.isdisjoint({"NFQ301", "NFQ405", "NFQ601"})
    assert refused(findings, records) == {place for place, error in errors.items() if error}
    left = {each.packet_id for each in findings if each.text == CAPTURE_ENDED}
    assert left == waiting


def is_bind(step: bytes) -> bool:
    return step[4:6] == b"\x02\x03" and step[20:25] == b"\x08\0\x01\0\x01"


@settings(max_examples=100)
@given(STEPS)
def test_the_judge_needs_no_answers_to_know_what_is_refused(steps: list[bytes]) -> None:
    """But for a second BIND, which is one of another program where the first has ended."""
    records, errors, _waiting = converse([BIND, *(each for each in steps if not is_bind(each))])
    silent = [
        record._replace(datagram=b"") if record.datagram[4:6] == b"\x02\0" else record
        for record in records
    ]
    wanted = {place for place, error in errors.items() if error}
    findings = list(judge(silent))
    # What the judge cannot know: queues that it never saw bound, and whether a packet that nobody
    # has read yet was there for a batch.
    unknown = {place for place in errors if records[place].datagram[18:20] == b"\x07\0"}
    unknown |= {each.record for each in findings if each.rule.id == "NFQ411"}
    assert refused(findings, records) - unknown == wanted - unknown


# --- the scenarios that the model is compared with real kernels by

# What the judge cannot see in a capture, or is no refusal of a request: another socket's requests.
OWNERS = [each for each in SCENARIOS if each.by is By.OWNER]


def played(scenario: Scenario) -> tuple[list[Record], dict[int, list[int]]]:
    """A scenario's records, and the errors of each datagram that the program sent, by its place."""
    traits = Traits(flags_policy=False, conntrack_glue=True, secctx=True)
    bench = ModelBench(traits, (77, 78), (0, 0), scenario.options)
    records: list[Record] = []
    errors: dict[int, list[int]] = {}

    def take(place: int | None) -> None:
        for told in bench.receive():
            assert not isinstance(told, str)
            records.append(Record(0, FROM, schema.build([told], order="little")))
            # Another subsystem's refusals are none of the judge's business.
            if isinstance(told, ErrorMessage) and told.error and told.request[1] >> 8 == 3:
                assert place is not None
                errors[place].append(-told.error)

    def send(request: bytes) -> None:
        errors[len(records)] = []
        records.append(Record(0, TO, request))
        bench.send(By.OWNER, request)
        take(len(records) - 1)

    for request in scenario.set_up:
        send(request)
    bench.arrive(packets(0, scenario.packets), mark=scenario.mark)
    take(None)
    for request in scenario.requests:
        send(request)
    bench.arrive(packets(scenario.packets, scenario.late), mark=scenario.mark)
    take(None)
    return records, errors


@pytest.mark.parametrize("scenario", OWNERS, ids=[each.name for each in OWNERS])
def test_the_judge_knows_why_a_kernel_refuses(scenario: Scenario) -> None:
    records, errors = played(scenario)
    findings = list(judge(records))
    # Of what is wrong with a connection, the kernel only makes that it passes over it.
    rules = {
        (each.record, each.rule.id)
        for each in findings
        if not each.field.startswith(("NFQA_CT", "NFQA_EXP"))
    }
    for place, numbers in errors.items():
        said = {rule for record, rule in rules if record == place and RULES[rule].refused}
        assert bool(said) == bool(numbers), (said, numbers, rules)
        assert said.isdisjoint({"NFQ301", "NFQ405"}), (said, numbers)
