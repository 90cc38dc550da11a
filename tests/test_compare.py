"""Two runs are compared packet by packet, and the text says where they part."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trionfq
from trionfq import ReplayBackend, open_queue
from trionfq._ip_fields import packet_fields
from trionfq.captures import (
    Outcome,
    Record,
    compare,
    create_capture,
    open_capture,
    transcript,
    write_transcript,
)
from trionfq.schema import Attr, Direction
from trionfq.schema.nfqueue import NFQA
from trionfq.testing import assert_same_verdicts, make_packet, make_verdict, udp_packet

from .test_fixtures import EACH, FOLDER

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
OLD, NEW = udp_packet(b"old words"), udp_packet(b"new words, and more of them")
PRIORITY = NFQA.by_name["priority"].number


def outcome(packet_id: int, verdict: int | None = 1, queue: int = 0, **more: Any) -> Outcome:
    return replace(Outcome(queue, packet_id, verdict), **more)


def test_equal_runs_agree() -> None:
    run = [outcome(1), outcome(2, 0, mark=5)]
    found = compare(run, [replace(each, arrived_ns=9, decided_ns=99) for each in run])
    assert found.same
    assert found.packets == 2
    assert str(found) == "a and b agree on all 2 packets"
    assert_same_verdicts(run, run)
    assert compare([], []).same


@pytest.mark.parametrize(
    ("changed", "field", "lines"),
    [
        ({"verdict": 0}, "verdict", ("accept", "drop")),
        ({"verdict": None}, "verdict", ("accept", "undecided")),
        ({"verdict": 9 << 16 | 0x8003}, "verdict", ("accept", "queue 9, bypass")),
        ({"verdict": 3 << 16 | 1}, "verdict", ("accept", "accept with upper bits 0x3")),
        ({"mark": 0}, "mark", ("not set", "0x0")),
        ({"payload": b"\x45"}, "payload", ("left alone", "rewritten, 1 bytes")),
        ({"changes": (Attr(PRIORITY, 6),)}, "changes", ("none", "priority 6")),
    ],
)
def test_each_field_is_compared_and_told(
    changed: dict[str, Any], field: str, lines: tuple[str, str]
) -> None:
    a, b = [outcome(7), outcome(8)], [outcome(7, **changed), outcome(8)]
    found = compare(a, b, names=("old", "policy"))
    [difference] = found.differences
    assert difference.fields == (field,)
    assert difference.recorded_id == 7
    text = str(found).splitlines()
    assert text[0] == "old and policy differ in 1 of 2 packets"
    assert text[1] == "packet 7 of queue 0"
    assert text[2].split() == [field, "old", *lines[0].split()]
    assert text[3].split() == [field, "policy", *lines[1].split()]
    assert compare(a, b, ignore=[field]).same
    with pytest.raises(AssertionError) as caught:
        assert_same_verdicts(a, b, names=("old", "policy"))
    assert str(caught.value) == str(found)
    assert_same_verdicts(a, b, ignore=[field])


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"verdict, mark, payload, changes, got \['time'\]"):
        compare([], [], ignore=["time"])


def test_packets_are_paired_by_recorded_ids_whatever_the_run_calls_them() -> None:
    recorded = [outcome(7), outcome(8, 0), outcome(7, 4), outcome(9)]
    replayed = [
        outcome(7, queue=5, recorded_id=7),
        outcome(8, 0, queue=5, recorded_id=8),
        outcome(9, 4, queue=5, recorded_id=7),
        outcome(11, 0, queue=5, recorded_id=9),
    ]
    found = compare(recorded, replayed)
    assert found.packets == 4
    [difference] = found.differences
    assert difference.recorded_id == 9
    assert "packet 9, 11 in b of queue 0" in str(found)


def test_queues_are_kept_apart_where_there_are_several() -> None:
    a = [outcome(1, 1, 3), outcome(1, 0, 4)]
    assert compare(a, [a[1], a[0]]).same
    assert len(compare(a, [outcome(1, 1, 3), outcome(1, 1, 4)]).differences) == 1


def test_what_came_in_one_run_only_is_told() -> None:
    found = compare([outcome(1), outcome(2)], [outcome(2), outcome(3)])
    assert found.packets == 1
    assert [(each.a is None, each.b is None) for each in found.differences] == [
        (False, True),
        (True, False),
    ]
    text = str(found)
    assert "differ in 0 of 1 packets" in text
    assert "1 packets came in a and not in b" in text
    assert "1 packets came in b and not in a" in text
    assert "did not come in b" in text
    assert not found.same


def test_a_long_report_counts_the_rest() -> None:
    a = [outcome(each) for each in range(1, 101)]
    b = [outcome(each, 0) for each in range(1, 101)]
    found = compare(a, b)
    assert found.report(3).count("of queue 0") == 3
    assert found.report(3).endswith("and 97 more")
    assert len(found.differences) == 100


def test_rewritten_payloads_are_shown_by_field_and_byte() -> None:
    packets = [make_packet(1, OLD), make_packet(2, OLD)]
    a = [outcome(1), outcome(2, payload=OLD)]
    b = [outcome(1, payload=NEW), outcome(2, payload=NEW)]
    found = compare(a, b, packets=packets)
    assert [each.packet for each in found.differences] == [OLD, OLD]
    text = str(found)
    assert "packet 1 of queue 0: UDP 192.0.2.1:40000 > 198.51.100.2:53, 37 bytes" in text
    lines = [line.strip() for line in text.splitlines()]
    at = lines.index("ipv4.total_length")
    assert lines[at + 1 : at + 3] == ["a  37", "b  55"]
    at = lines.index("udp.length")
    assert lines[at + 1 : at + 3] == ["a  17", "b  35"]
    assert {"ipv4.checksum", "udp.checksum", "data"} <= set(lines)
    assert "ipv4.source" not in lines
    minus = next(line for line in lines if line.startswith("- 0010"))
    assert minus == f"- 0010  {OLD[16:32].hex(' ')}  .3d..@.5..F.old"
    # Where nobody knows the packet, the text says what would help.
    assert "give packets=" in str(compare(a[:1], b[:1]))


def test_the_packets_are_those_of_the_capture_that_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    with create_capture(path) as writer:
        for number in (1, 2, 1):
            writer.write(Record(5, FROM, make_packet(number, udp_packet(b"%d" % number))))
        writer.write(Record(6, TO, make_verdict(1)))
        writer.write(Record(6, FROM, b"\xff" * 3 + make_packet(9)))
    with pytest.raises(trionfq.RemoteProtocolError):
        compare(path, [])
    run = [outcome(1), outcome(2, 0), outcome(1, 0)]
    other = [outcome(1), outcome(2, 0), outcome(1, 4)]
    [difference] = compare(run, other, packets=path).differences
    assert difference.packet == udp_packet(b"1")
    assert difference.recorded_id == 1


@EACH
def test_recorded_verdicts_agree_with_themselves_in_any_form(tmp_path: Path, name: str) -> None:
    path = FOLDER / f"{name}.pcapng"
    with open_capture(path) as capture:
        run = transcript(capture)
    lines = tmp_path / "run.jsonl"
    write_transcript(lines, run)
    assert_same_verdicts(path, run)
    assert_same_verdicts(str(lines), path)


async def test_a_policy_is_compared_with_the_recorded_verdicts() -> None:
    path = FOLDER / "demo.pcapng"

    async def run(payload: bytes) -> list[Outcome]:
        backend = ReplayBackend(path)
        async with open_queue(0, backend=backend) as queue:
            async for packet in queue:
                if packet.ip.protocol == 17:
                    packet.accept(payload=packet.payload + payload)
                else:
                    packet.drop()
        return backend.transcript

    found = compare(await run(b"!"), path, names=("policy", "recorded"))
    assert found.packets == len(found.differences) or found.packets > len(found.differences)
    assert all(each.packet for each in found.differences)
    text = found.report(most=1000)
    assert "udp.length" in text
    assert "verdict  policy    drop" in text
    assert_same_verdicts(await run(b"!"), await run(b"!"))
    with pytest.raises(AssertionError, match="left and right differ in"):
        assert_same_verdicts(await run(b"!"), await run(b"?"), names=("left", "right"))


# --- names of header fields -----------------------------------------------------------------------


def named(packet: bytes) -> dict[str, str]:
    fields = packet_fields(packet)
    assert len({each.name for each in fields}) == len(fields)
    return {each.name: each.text for each in fields}


def test_fields_have_the_values_of_their_bytes() -> None:
    found = named(OLD)
    assert found["ipv4.header_length"] == "20"
    assert found["ipv4.total_length"] == str(len(OLD))
    assert found["ipv4.ttl"] == "64"
    assert found["ipv4.flags"] == "none"
    assert (found["ipv4.source"], found["ipv4.destination"]) == ("192.0.2.1", "198.51.100.2")
    assert (found["udp.source_port"], found["udp.destination_port"]) == ("40000", "53")
    assert found["udp.checksum"] == "0x" + OLD[26:28].hex()
    assert found["data"] == b"old words".hex()
    v6 = named(udp_packet(b"x", source="2001:db8::1", destination="2001:db8::2"))
    assert v6["ipv6.source"] == "2001:db8::1"
    assert v6["ipv6.payload_length"] == "9"
    assert v6["ipv6.next_header"] == "17"
    assert v6["udp.length"] == "9"
    assert named(b"\x12\x34") == {"data": "1234"}
    assert named(b"") == {}
    assert named(OLD + b"\0\0")["padding"] == "0000"
    tcp = bytes.fromhex(
        "45000034000040004006000001020304050607081f9000501122334455667788801220000abc0000"
        "020405b4010303070101080a"
    )
    found = named(tcp)
    assert found["ipv4.flags"] == "DF"
    assert (found["tcp.sequence"], found["tcp.flags"]) == (str(0x11223344), "SYN,ACK")
    assert (found["tcp.header_length"], found["tcp.options"]) == ("32", tcp[40:].hex())


@pytest.mark.parametrize("seed", range(5))
def test_any_damage_to_a_packet_is_told(seed: int) -> None:
    chance = random.Random(seed)
    whole = [OLD, udp_packet(bytes(40), source="::1", destination="::2"), b"\x60" + bytes(80)]
    for _ in range(120):
        packet = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 8)):
            odd = (0, 6, 43, 44, 51, 60, 0x4F, 0x60, 255, chance.randrange(256))
            packet[chance.randrange(len(packet))] = chance.choice(odd)
        packet = packet[: chance.randrange(len(packet) + 1)]
        named(bytes(packet))
        same = bytes(packet) == OLD
        a, b = [outcome(1, payload=bytes(packet))], [outcome(1, payload=OLD)]
        text = str(compare(a, b, packets=[make_packet(1, OLD)]))
        assert ("+ 0000" in text or "+ 0010" in text or "+ 0020" in text) != same


@pytest.mark.parametrize("size", range(0, 60, 3))
def test_any_bytes_give_fields(size: int) -> None:
    for first in (0x45, 0x4F, 0x60, 0x00, 0xFF):
        for protocol in (1, 6, 17, 33, 44, 50, 51, 58, 59, 132, 136, 0):
            packet = bytes([first]) + bytes([protocol]) * size
            assert packet_fields(packet)
