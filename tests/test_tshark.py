"""An independent reader: tshark sees in every capture what the judge sees, and nothing wrong.

Compared are whole fields: name, place in the datagram, length and value of each, both ways.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from fixtures.policies import POLICIES
from tests.tshark_fields import (
    MAPPED,
    NOT_OURS,
    Seen,
    expected,
    is_ours,
    is_queues,
)
from trionfq import CopyMode, QueueFlags, RecordingBackend, ReplayBackend, open_queue, schema
from trionfq.backends import Backend
from trionfq.captures import Record, create_capture, open_capture
from trionfq.conformance.vectors import load
from trionfq.schema import Direction, RawMessage
from trionfq.testing import ScriptedBackend, make_packet

FOLDER = Path(__file__).parents[1] / "fixtures"
FIXTURES = sorted(FOLDER.rglob("*.pcap*"))
NAMES = [str(path.relative_to(FOLDER)) for path in FIXTURES]
COOKED_BYTES = 16
NETFILTER = 12
COMMENT = 0x0010_0000  # a remark of the file itself: our notes
# What would look into the payload, which is a user's packet: cut by a copy range it is malformed,
# and a text of four bytes looks like a protocol to a heuristic.
LEFT_OUT = ("ip", "ipv6", "arp")


class Frame(NamedTuple):
    """What tshark reads of one frame.

    Attributes:
      fields: those of netlink and netfilter, with places that count from the datagram.
      protocols: names, from the outside in.
      wrong: what it finds malformed, and remarks worse than a comment.
      time: as ``frame.time_epoch``.
      direction: as ``frame.packet_flags_direction``; 0 where the file does not tell.
    """

    fields: Counter[Seen]
    protocols: list[str]
    wrong: list[str]
    time: str
    direction: int


def program() -> str:
    found = shutil.which("tshark")
    if found is None:
        pytest.skip("tshark is not installed: Debian package tshark (apt-get install tshark)")
    return found


def ask(*options: object) -> str:
    # No settings of the user's.
    environment = {**os.environ, "WIRESHARK_CONFIG_DIR": "/nonexistent", "LC_ALL": "C.UTF-8"}
    command = [program(), *map(str, options)]
    return subprocess.run(
        command,
        env={**environment, "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    ).stdout


def tshark(path: Path) -> list[Frame]:
    """What tshark reads of each netfilter frame of a capture."""
    silent = [word for name in LEFT_OUT for word in ("--disable-protocol", name)]
    root = ElementTree.fromstring(ask("-r", path, "-T", "pdml", *silent))
    frames = [list(packet.iter("field")) for packet in root]
    return [frame(found) for found in frames if shown(found, "netlink.family") == [hex12()]]


def hex12() -> str:
    return f"{NETFILTER:#06x}"


def shown(found: list[ElementTree.Element], name: str) -> list[str]:
    return [each.attrib["show"] for each in found if each.attrib["name"] == name]


def frame(found: list[ElementTree.Element]) -> Frame:
    fields: Counter[Seen] = Counter()
    for each in found:
        name = each.attrib["name"]
        if is_ours(name):
            place = int(each.attrib["pos"]) - COOKED_BYTES
            fields[Seen(name, place, int(each.attrib["size"]), value(each))] += 1
    severities = [word for word in shown(found, "_ws.expert.severity") if int(word) > COMMENT]
    malformed = [each.attrib["name"] for each in found if "malformed" in each.attrib["name"]]
    [protocols] = shown(found, "frame.protocols")
    [time] = shown(found, "frame.time_epoch")
    direction = shown(found, "frame.packet_flags_direction") or ["0"]
    wrong = severities + malformed
    return Frame(fields, protocols.split(":"), wrong, time, int(direction[0], 0))


def value(each: ElementTree.Element) -> int | str:
    """A field's value: a number, or the bytes; of a time what tshark makes of them."""
    text = each.attrib["show"]
    if each.attrib["name"].endswith("queue.timestamp"):
        return text
    if each.attrib["name"] in BYTES:
        return each.attrib["value"]
    return int(text, 0)


BYTES = {name for name, kind in MAPPED.items() if kind == "bytes"}


def datagrams(path: Path) -> list[Record]:
    """The records of a capture that tshark shows as frames."""
    with open_capture(path) as capture:
        return [record for record in capture if record.datagram]


def timestamp(seconds: int, microseconds: int) -> str:
    """tshark takes the second half for nanoseconds, which are microseconds."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{when:%b} {when.day:2}, {when:%Y %H:%M:%S}.{microseconds:09} UTC"


def check(frames: list[Frame], records: list[Record]) -> Counter[str]:
    """Hold tshark's reading of a capture against the judge's; how often each field was seen."""
    assert len(frames) == len(records) > 0
    seen: Counter[str] = Counter()
    for found, record in zip(frames, records, strict=True):
        seconds, _, rest = found.time.partition(".")
        assert int(seconds) * 10**9 + int(rest) == record.time_ns
        ways = {Direction.FROM_KERNEL: 1, Direction.TO_KERNEL: 2}
        assert found.direction in (0, ways.get(record.direction, 0))  # type: ignore[arg-type]
        assert found.protocols[0] == "netlink"
        if not is_queues(record.datagram):
            continue
        assert found.wrong == []
        unmapped = {each.name for each in found.fields} - MAPPED.keys()
        assert unmapped == set(), "a field of tshark's that the judge is not compared by"
        assert set(found.protocols) <= {"netlink", "netlink-netfilter", "data"}
        wanted = Counter(expected(record.datagram, timestamp))
        assert found.fields == wanted
        seen.update(each.name for each in found.fields)
    return seen


@pytest.fixture(scope="module")
def dissected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Frame]]:
    """What tshark reads of each fixture: of all at once, one file being a section of another."""
    sections = [path for path in FIXTURES if path.suffix == ".pcapng"]
    path = tmp_path_factory.mktemp("tshark") / "all.pcapng"
    path.write_bytes(b"".join(each.read_bytes() for each in sections))
    rows = tshark(path)
    found = {}
    for each in sections:
        count = len(datagrams(each))
        found[str(each.relative_to(FOLDER))], rows = rows[:count], rows[count:]
    assert rows == []
    for each in FIXTURES:
        if each not in sections:
            found[str(each.relative_to(FOLDER))] = tshark(each)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tshark_reads_each_fixture_as_the_judge_does(
    name: str, dissected: dict[str, list[Frame]]
) -> None:
    check(dissected[name], datagrams(FOLDER / name))


def test_the_fixtures_show_forty_fields_and_more(dissected: dict[str, list[Frame]]) -> None:
    seen = {each.name for frames in dissected.values() for found in frames for each in found.fields}
    assert len(seen & MAPPED.keys()) >= 40


def test_tshark_reads_each_vector_as_the_judge_does(tmp_path: Path) -> None:
    """So every field that tshark knows of a queue is compared, whatever the fixtures hold."""
    path = tmp_path / "vectors.pcapng"
    ways = {"from-kernel": Direction.FROM_KERNEL, "to-kernel": Direction.TO_KERNEL}
    with create_capture(path) as writer:
        for at, each in enumerate(load()):
            if each["valid"] and each["order"] == "little":
                way = ways[each["direction"]]
                writer.write(Record(at, way, bytes.fromhex(each["bytes"])))
    seen = check(tshark(path), datagrams(path))
    assert set(seen) == MAPPED.keys()


def test_no_field_that_tshark_has_of_a_queue_is_left_out() -> None:
    rows = (line.split("\t") for line in ask("-G", "fields").splitlines())
    known = {row[2] for row in rows if row[0] == "F" and is_ours(row[2])}
    assert len(known) > 40
    left = known - MAPPED.keys()
    assert {name for name in left if not name.startswith(NOT_OURS)} == set()


def test_the_comparison_can_fail() -> None:
    """A value, a place, a missing and an additional field are each seen."""
    datagram = bytes.fromhex(
        next(e for e in load() if e["name"] == "verdict, mark, little")["bytes"]
    )
    right = Counter(expected(datagram, timestamp))
    other = bytearray(datagram)
    other[-1] ^= 1
    assert Counter(expected(bytes(other), timestamp)) != right
    longer = datagram[:36] + bytes(4) + datagram[36:]
    assert Counter(expected(longer, timestamp)) != right


async def record(backend: Backend, path: Path, policy: str, **options: Any) -> None:
    """Record a run of a policy that ends when the backend does."""
    decide = POLICIES[policy]()
    recording = RecordingBackend(backend, path)
    async with open_queue(0, backend=recording, **options) as queue:
        async for packet in queue:
            decide(queue, packet)
    assert recording.failed is None


@pytest.mark.parametrize(
    ("name", "policy"), [("every-verdict", "every_verdict"), ("demo", "examples/policy.py")]
)
async def test_tshark_reads_the_recording_of_a_replay(
    name: str, policy: str, tmp_path: Path
) -> None:
    path = tmp_path / "again.pcapng"
    await record(ReplayBackend(FOLDER / f"{name}.pcapng"), path, policy)
    check(tshark(path), datagrams(path))


async def test_tshark_reads_refusals_settings_and_the_closing_policy(tmp_path: Path) -> None:
    """Answers with the kernel's words, every setting, rewrites of every length, a batch, a gap."""
    path = tmp_path / "run.pcapng"
    scripted = ScriptedBackend()
    backend = RecordingBackend(scripted, path)
    async with open_queue(
        0,
        backend=backend,
        max_len=50,
        flags=QueueFlags.GSO | QueueFlags.UID_GID,
        error_handler=lambda error, packet: None,
    ) as queue:
        queue.configure(copy_mode=CopyMode.META, copy_range=100, max_len=60, flags=QueueFlags(0))
        queue.configure(copy_mode=CopyMode.PACKET, copy_range=0xFFFF)
        for size in range(9):
            scripted.arrive(make_packet(payload=bytes(range(20 + size))))
        for size in range(9):
            packet = await queue.receive()
            packet.accept(payload=bytes(20 + size), repair=False, mark=size)
        for _ in range(9):
            scripted.arrive(make_packet(payload=bytes(30)))
        for _ in range(6):
            (await queue.receive()).accept()
        (await queue.receive()).drop()
    check(tshark(path), datagrams(path))


def test_an_unpadded_message_before_another_is_seen_as_malformed(tmp_path: Path) -> None:
    """The check can fail: so was a rewrite of odd length once sent, and the kernel took it."""
    header = "0103 0100 05000000 00000000 00000000 0c000200 00000001 00000005"
    rewrite = bytes.fromhex(f"35000000 {header} 1500 0a00 450000110000000000110000") + bytes(5)
    datagram = rewrite + bytes(3) + bytes.fromhex(f"20000000 {header}")
    assert len(schema.parse(datagram)) == 2
    path = tmp_path / "odd.pcapng"
    with create_capture(path) as writer:
        writer.write(Record(1, Direction.TO_KERNEL, datagram))
    [found] = tshark(path)
    assert found.wrong


def test_other_messages_of_netlink_are_netlinks(tmp_path: Path) -> None:
    """NLMSG_NOOP, DONE and OVERRUN, which a recording may hold, too."""
    path = tmp_path / "other.pcapng"
    with create_capture(path) as writer:
        for type_ in (1, 3, 4):
            datagram = schema.build([RawMessage(type_, 0, 0, 0, bytes(4))])
            writer.write(Record(1, Direction.FROM_KERNEL, datagram))
    for found in tshark(path):
        assert found.protocols[0] == "netlink"
        assert found.wrong == []
