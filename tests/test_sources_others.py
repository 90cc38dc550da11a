"""Captures of other programs, made by tcpdump on a real kernel: read, told apart, and replayed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fixtures.others.edit import MARK, REPEATED
from fixtures.others.inside import NAMES
from trionfq import IPView, ReplayBackend, Verdict, open_queue, schema
from trionfq._codec import decode, encode
from trionfq._errors import CaptureError
from trionfq.captures import Binding, QueueSource, open_capture, survey, transcript
from trionfq.schema import Message
from trionfq.schema.nfqueue import NFQA

FOLDER = Path(__file__).parents[1] / "fixtures" / "others"
EACH = pytest.mark.parametrize("name", NAMES)
LARGEST_BYTES = 100_000


def path(name: str) -> Path:
    return FOLDER / f"{name}.pcap"


def notes(name: str) -> dict[str, Any]:
    return tomllib.loads(path(name).with_suffix(".toml").read_text())


def words(name: str) -> list[bytes]:
    """What the datagrams said that were sent, in order."""
    return [text.split(" ", 1)[1].encode() for text in notes(name)["datagrams"]]


def test_each_capture_has_notes_and_is_small() -> None:
    found = {each.stem for each in FOLDER.glob("*.pcap")}
    assert found == {each.stem for each in FOLDER.glob("*.toml")} == set(NAMES)
    assert all(path(name).stat().st_size < LARGEST_BYTES for name in NAMES)


@EACH
def test_notes_say_what_made_a_capture_and_how(name: str) -> None:
    about = notes(name)
    assert about["kernel"].startswith("Linux 6.1.")
    assert about["command"].endswith(" -m fixtures.others.record")
    assert about["rules"]
    assert about["programs"]
    assert {each.split()[0] for each in about["versions"]} >= {"tcpdump", "NetfilterQueue"}


@EACH
def test_schema_and_codec_read_and_write_all_nfqueue_messages_alike(name: str) -> None:
    count = 0
    with open_capture(path(name)) as capture:
        for record in capture:
            messages = schema.parse(record.datagram)
            assert decode(record.datagram) == messages
            assert encode(messages) == schema.build(messages)
            assert record.direction is not None or not isinstance(messages[0], Message)
            count += isinstance(messages[0], Message)
    assert count >= 2 * len(words(name)), "a packet and a verdict each"


@EACH
def test_every_program_is_told_apart(name: str) -> None:
    found = survey(path(name))
    told = [(binding.queue, binding.packets) for binding in found.bindings]
    named = [binding.port_id is not None for binding in found.bindings]
    expected = {
        # It asks for no answer, so nothing tells its port id.
        "libnetfilter_queue": ([(0, 6)], [False]),
        "netfilterqueue": ([(1, 15)], [True]),
        "fnfqueue": ([(2, 15)], [True]),
        "two-programs": ([(1, 5), (2, 5), (1, 3)], [True, True, True]),
    }
    assert (told, named) == expected[name]
    others = [kind for kind in found.skipped if "NFTABLES" in kind or "family 0" in kind]
    assert len(others) == (2 if name == "two-programs" else 0)


@pytest.mark.parametrize("name", ["netfilterqueue", "fnfqueue"])
def test_transcripts_show_what_the_programs_did(name: str) -> None:
    outcomes = transcript(QueueSource(path(name)))
    sent = words(name)
    assert len(outcomes) == len(sent)
    payloads = packets(name)
    for text, outcome, payload in zip(sent, outcomes, payloads, strict=True):
        word = text.split()[0]
        verdict = {b"drop": Verdict.DROP, b"repeat": Verdict.REPEAT}.get(word, Verdict.ACCEPT)
        assert outcome.verdict == verdict
        assert outcome.mark == {b"mark": MARK, b"repeat": REPEATED}.get(word)
        if word == b"longer":
            assert outcome.payload is not None
            assert IPView(outcome.payload).data == text + b", and some more words"
        elif word == b"shorter":
            assert outcome.payload is not None
            assert IPView(outcome.payload).data == text[:-2]
        else:
            assert outcome.payload is None
        assert IPView(payload).data == text


def packets(name: str) -> list[bytes]:
    """Payloads of a capture, in order."""
    number = NFQA.by_name["payload"].number
    found = []
    for record in QueueSource(path(name)):
        for message in schema.parse(record.datagram):
            if isinstance(message, Message) and message.type == 0x300:
                found += [a.value for a in message.attributes if a.number == number]
    return found  # type: ignore[return-value]


def test_the_example_of_the_library_marks_each_connection() -> None:
    outcomes = transcript(QueueSource(path("libnetfilter_queue")))
    assert len(outcomes) == 6
    for outcome in outcomes:
        assert outcome.verdict == Verdict.ACCEPT
        (conntrack,) = outcome.changes
        assert conntrack.number == NFQA.by_name["ct"].number


@pytest.mark.parametrize("name", ["libnetfilter_queue", "netfilterqueue", "fnfqueue"])
async def test_another_program_s_packets_are_replayed_to_ours(name: str) -> None:
    for source in (path(name), QueueSource(path(name))):
        backend = ReplayBackend(source, check="all")
        async with open_queue(backend.recorded_queue or 0, backend=backend) as queue:
            seen = []
            async for packet in queue:
                seen.append(packet.ip.data)
                packet.accept()
        assert seen == words(name)


def test_which_program_is_meant_has_to_be_said() -> None:
    file = path("two-programs")
    first, second, third = survey(file).bindings
    assert first.port_id != third.port_id
    with pytest.raises(CaptureError, match=r"packets of several queues \(1, 2\)"):
        ReplayBackend(file)
    with pytest.raises(CaptureError, match=f"queue 1 of port id {first.port_id} "):
        QueueSource(file)
    with pytest.raises(CaptureError, match="several programs"):
        QueueSource(file, queue=1)
    for binding in (first, second, third):
        source = QueueSource(file, queue=binding.queue, port_id=binding.port_id)
        outcomes = transcript(source)
        assert len(outcomes) == binding.packets
        assert all(outcome.verdict == Verdict.ACCEPT for outcome in outcomes)
        assert isinstance(binding, Binding)
        assert binding.first_ns == outcomes[0].arrived_ns
    assert first.last_ns is not None
    assert first.last_ns % 1000, "times are in nanoseconds"
