"""What finding the lowest undecided packet costs, in the interpreter's steps and not in time."""

from __future__ import annotations

import sys

import pytest

from trionfq._config import QueueConfig
from trionfq._protocol import QueueProtocol
from trionfq.testing import make_packet

ROUND = 64
MOST = 8192


def steps_of(work):
    """How many bytecodes run while something is done, in whatever function."""
    count = 0

    def trace(frame, event, _argument):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def holding(count):
    """A queue of which so many packets are held, and the next packet id."""
    protocol = QueueProtocol(QueueConfig(0))
    datagram = bytearray(make_packet(1))
    for packet_id in range(1, count + 1):
        datagram[24:28] = packet_id.to_bytes(4, "big")  # NFQA_PACKET_HDR comes first
        [packet] = protocol.receive([bytes(datagram)])
        packet.hold()
    return protocol, count + 1


def pass_a_round(protocol, first, verb):
    """Read packets, decide all of them and send that; gives what was sent."""
    made = make_packet(1)
    datagrams = [
        made[:24] + packet_id.to_bytes(4, "big") + made[28:]
        for packet_id in range(first, first + ROUND)
    ]
    for place, packet in enumerate(protocol.receive(datagrams)):
        if verb == "mixed" and place % 2:
            packet.drop()
        else:
            packet.accept(mark=place if verb == "marks" else None)
    return protocol.flush(MOST)


@pytest.mark.parametrize("verb", ["accept", "mixed", "marks"])
def test_ten_thousand_held_packets_cost_a_flush_no_more_steps_than_one(verb):
    steps = {}
    for held in (1, 10_000):
        protocol, first = holding(held)
        # The first rounds file what is held, and make the templates of the verdicts.
        for number in range(3):
            pass_a_round(protocol, first + number * ROUND, verb)
        steps[held] = steps_of(lambda p=protocol, f=first: pass_a_round(p, f + 3 * ROUND, verb))
        assert len(protocol.undecided_ids) == held
    assert steps[10_000] <= 1.01 * steps[1]
