"""Every capture in fixtures/: schema and codec agree on it, and its replay with the live run."""

from __future__ import annotations

import tomllib
from collections import Counter
from typing import Any

import pytest

from fixtures.policies import POLICIES
from fixtures.recipes import RECIPES
from fixtures.totals import Totals
from trionfq import (
    CopyMode,
    LocalProtocolError,
    ReplayBackend,
    Verdict,
    open_queue,
    schema,
)
from trionfq._codec import PacketReader, decode, encode
from trionfq.captures import Outcome, Record, open_capture, transcript
from trionfq.schema import Message
from trionfq.schema.nfqueue import NFQA, VERDICT_MASK, MessageType

from .replay_runs import FOLDER, NAMES, open_as_recorded

EACH = pytest.mark.parametrize("name", NAMES)
LARGEST_BYTES = 100_000
# What this kernel never sends, see tests/kernel/test_attributes.py, or what only goes to it; and
# a class, for which a control group would have to be made where the recording is repeated.
NOT_RECORDED = {
    *("ct", "ct_info", "secctx", "vlan", "l2hdr"),
    *("verdict_hdr", "exp"),
    "cgroup_classid",
}


def notes(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())


def records(name: str) -> list[Record]:
    with open_capture(FOLDER / f"{name}.pcapng") as capture:
        return list(capture)


def read(record: Record) -> list[Message]:
    """The nfqueue messages of a record, answers left out."""
    found = decode(record.datagram) if record.datagram else []
    return [message for message in found if isinstance(message, Message)]


def messages(name: str) -> list[Message]:
    return [message for record in records(name) for message in read(record)]


async def replay(name: str) -> tuple[dict[str, Any], list[Outcome]]:
    """What a replay by the recorded program's policy and settings counts, and its transcript."""
    about = notes(name)
    decide, totals = POLICIES[about["policy"]](), Totals()
    backend = ReplayBackend(FOLDER / f"{name}.pcapng", check="all")
    async with open_as_recorded(backend, about["queue"]) as queue:
        async for packet in queue:
            totals.look(packet)
            decide(queue, packet)
        counted = totals.count(queue)
    assert backend.shortfalls == {}
    return counted, backend.transcript


# --- the files ------------------------------------------------------------------------------------


def test_each_fixture_has_a_recipe_a_capture_and_notes() -> None:
    assert set(NAMES) == {path.stem for path in FOLDER.glob("*.toml")}
    assert set(NAMES) == set(RECIPES)


@EACH
def test_notes_say_where_a_fixture_comes_from(name: str) -> None:
    about = notes(name)
    assert about["kernel"].startswith("Linux ")
    assert about["date"].year >= 2026
    assert about["command"].endswith(f" -m fixtures.record {name}")
    assert about["rules"]
    assert all("-j NFQUEUE" in rule for rule in about["rules"])
    text = " ".join((RECIPES[name].__doc__ or "").split())
    assert about["about"] == text
    assert (FOLDER / f"{name}.pcapng").stat().st_size <= LARGEST_BYTES


def test_fixtures_have_every_attribute_that_this_kernel_can_send() -> None:
    found = {attribute for name in NAMES for attribute in notes(name)["expected"]["attributes"]}
    assert found == {attribute.name for attribute in NFQA.attributes} - NOT_RECORDED


def test_fixtures_have_every_message_and_verdict() -> None:
    types: set[int] = set()
    verdicts: set[int] = set()
    for message in messages("every-verdict"):
        types.add(message.type)
    for outcome in transcript(records("every-verdict")):
        assert outcome.verdict is not None
        verdicts.add(outcome.verdict & VERDICT_MASK)
    assert types == set(MessageType)
    assert verdicts == set(Verdict)


def test_odd_lengths_are_not_padded() -> None:
    sizes = [
        len(record.datagram)
        for record in records("odd-lengths")
        if MessageType.PACKET in [each.type for each in read(record)]
    ]
    # An IPv6 header is 20 bytes longer.
    assert sizes == [72, 73, 74, 75, 76, 77, 92, 93, 94, 95, 96, 97]


def test_the_demo_has_what_it_is_to_show() -> None:
    expected = notes("demo")["expected"]
    assert expected["packets"] >= 30
    assert {each.split()[1] for each in expected["protocols"]} == {"UDP", "TCP", "ICMP", "ICMPv6"}
    assert len(expected["verdicts"]) >= 3
    assert expected["rewritten"] >= 1
    assert "undecided" not in expected["verdicts"]


# --- what is in them ------------------------------------------------------------------------------


@EACH
def test_schema_and_codec_read_and_write_every_datagram_alike(name: str) -> None:
    datagrams = [record.datagram for record in records(name) if record.datagram]
    assert datagrams
    reader = PacketReader()
    for datagram in datagrams:
        messages = schema.parse(datagram)
        assert decode(datagram) == messages
        assert schema.build(messages) == datagram
        assert encode(messages) == datagram
        shape = reader.shape(datagram)
        first = messages[0]
        assert (shape is not None) == (
            isinstance(first, Message) and first.type == MessageType.PACKET
        )
        if shape is not None:
            assert [shape.message(datagram)] == messages


async def test_a_packet_that_was_only_described_says_so_when_its_payload_is_asked_for() -> None:
    backend = ReplayBackend(FOLDER / "meta.pcapng")
    async with open_queue(0, backend=backend, copy_mode=CopyMode.META) as queue:
        async for packet in queue:
            for ask in ("payload", "ip", "original_length"):
                with pytest.raises(LocalProtocolError, match=r"copy_mode=CopyMode\.PACKET"):
                    getattr(packet, ask)
            with pytest.raises(LocalProtocolError, match=r"copy_mode=CopyMode\.PACKET"):
                packet.payload = bytes(40)
            assert not packet.truncated
            assert packet.outdev_name == "va"
            packet.accept()


async def test_more_than_was_recorded_is_not_given_but_counted() -> None:
    backend = ReplayBackend(FOLDER / "truncated.pcapng")
    async with open_queue(0, backend=backend) as queue:
        async for packet in queue:
            assert len(packet.payload) <= 64
            if packet.truncated:
                with pytest.raises(LocalProtocolError, match="copied only in part"):
                    packet.payload = packet.payload
            packet.accept()
    cut = notes("truncated")["expected"]["truncated"]
    assert list(backend.shortfalls.values()) == [cut]


@EACH
async def test_a_replay_sees_and_does_what_was_seen_and_done_live(name: str) -> None:
    """In numbers, by the .toml; and packet by packet, by the recorded verdicts."""
    expected = notes(name)["expected"]
    counted, outcomes = await replay(name)
    assert counted == expected
    live = transcript(records(name))
    assert outcomes == live
    recorded = Counter(
        "undecided" if each.verdict is None else Verdict(each.verdict & VERDICT_MASK).name
        for each in live
    )
    assert recorded == expected["verdicts"]
