"""An independent reader: tshark sees in every recording what the schema sees, and nothing wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fixtures.policies import POLICIES
from trionfq import CopyMode, QueueFlags, RecordingBackend, ReplayBackend, open_queue, schema
from trionfq.backends import Backend
from trionfq.captures import Record, create_capture, open_capture
from trionfq.schema import Direction, ErrorMessage, Message, RawMessage, by_name
from trionfq.schema.nfqueue import NFQA, MessageType
from trionfq.testing import ScriptedBackend, make_packet

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.pcapng"))
NFQ = "netlink-netfilter.queue"
FIELDS = {
    "frame.protocols": "protocols",
    "netlink.hdr_type": "types",
    "netlink.hdr_seq": "seqs",
    "netlink.error": "errors",
    f"{NFQ}.packet.id": "packet ids",
    f"{NFQ}.packet.hook": "hooks",
    f"{NFQ}.verdict.id": "verdict ids",
    f"{NFQ}.verdict.verdict": "verdicts",
    f"{NFQ}.nfmark": "marks",
    f"{NFQ}.uid": "uids",
    f"{NFQ}.caplen": "whole lengths",
    f"{NFQ}.ifindex_indev": "indevs",
    f"{NFQ}.ifindex_physindev": "physindevs",
    f"{NFQ}.config.command.command": "commands",
    f"{NFQ}.config.params.copy_mode": "copy modes",
    "data.len": "payload lengths",
    "frame.time_epoch": "time",
    "frame.packet_flags_direction": "direction",
    # Everything that tshark finds wrong, and the severity of each remark on the frame.
    "_ws.malformed": "malformed",
    "_ws.expert.severity": "severities",
}
COMMENT = 0x0010_0000  # a remark of the file itself: our notes


def tshark(path: Path) -> list[dict[str, str]]:
    """What tshark reads of each frame.

    It is kept from looking into the payload, which is a user's packet: cut by a copy range it is
    malformed, and a text of four bytes looks like a protocol to a heuristic.
    """
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("tshark is not installed: Debian package tshark (apt-get install tshark)")
    columns = [word for field in FIELDS for word in ("-e", field)]
    done = subprocess.run(
        [
            *(program, "-r", path, "-T", "fields", "-E", "separator=|", "-E", "aggregator=;"),
            *("--disable-protocol", "ip", "--disable-protocol", "ipv6"),
            *columns,
        ],
        # No settings of the user's.
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(path.parent), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    names = FIELDS.values()
    return [dict(zip(names, line.split("|"), strict=True)) for line in done.stdout.splitlines()]


def expected(record: Record) -> dict[str, list[int]]:
    """What the schema reads, in tshark's columns."""
    found: dict[str, list[int]] = {name: [] for name in FIELDS.values() if name.endswith("s")}
    for message in schema.parse(record.datagram):
        if isinstance(message, ErrorMessage):
            _length, type_, _flags, seq, _portid = message.request
            found["types"] += [2, type_]
            found["seqs"] += [message.seq, seq]
            found["errors"].append(message.error)
            continue
        assert isinstance(message, Message)
        found["types"].append(message.type)
        found["seqs"].append(message.seq)
        if message.type == MessageType.CONFIG:
            _config(found, by_name(schema.nfqueue.NFQA_CFG, message.attributes))
        elif message.type != MessageType.VERDICT_BATCH:  # whose attributes it shows as bytes
            _traffic(found, by_name(NFQA, message.attributes))
    return found


def _config(found: dict[str, list[int]], values: dict[str, Any]) -> None:
    if "cmd" in values:
        found["commands"].append(values["cmd"]["command"])
    if "params" in values:
        found["copy modes"].append(values["params"]["copy_mode"])


def _traffic(found: dict[str, list[int]], values: dict[str, Any]) -> None:
    if "packet_hdr" in values:
        found["packet ids"].append(values["packet_hdr"]["packet_id"])
        found["hooks"].append(values["packet_hdr"]["hook"])
    if "verdict_hdr" in values:
        found["verdict ids"].append(values["verdict_hdr"]["id"])
        found["verdicts"].append(values["verdict_hdr"]["verdict"])
    for name, column in (
        ("mark", "marks"),
        ("uid", "uids"),
        ("cap_len", "whole lengths"),
        ("ifindex_indev", "indevs"),
        ("ifindex_physindev", "physindevs"),
    ):
        if name in values:
            found[column].append(values[name])
    if values.get("payload"):
        found["payload lengths"].append(len(values["payload"]))


def datagrams(path: Path) -> list[Record]:
    """The records of a capture that tshark shows as frames."""
    with open_capture(path) as capture:
        return [record for record in capture if record.datagram]


def check(rows: list[dict[str, str]], records: list[Record]) -> None:
    """Hold tshark's reading of a recording against the schema's."""
    assert len(rows) == len(records) > 0
    for row, record in zip(rows, records, strict=True):
        assert row["malformed"] == ""
        assert all(int(each, 0) <= COMMENT for each in _list(row["severities"]))
        numbers = expected(record)
        for column, values in numbers.items():
            if column not in ("protocols", "severities"):
                assert [int(each, 0) for each in _list(row[column])] == values, column
        protocols = row["protocols"].split(":")
        assert protocols[0] == "netlink"
        messages = [each for each in schema.parse(record.datagram) if isinstance(each, Message)]
        # An answer is netlink's own; everything else is seen to be nfqueue's.
        assert protocols.count("netlink-netfilter") == len(messages)
        assert set(protocols) <= {"netlink", "netlink-netfilter", "data"}
        seconds, _, rest = row["time"].partition(".")
        assert int(seconds) * 10**9 + int(rest) == record.time_ns
        assert int(row["direction"], 0) == {
            Direction.FROM_KERNEL: 1,
            Direction.TO_KERNEL: 2,
        }.get(record.direction)  # type: ignore[arg-type]


def _list(column: str) -> list[str]:
    return column.split(";") if column else []


@pytest.fixture(scope="module")
def dissected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """What tshark reads of each fixture: of all at once, one file being a section of another."""
    path = tmp_path_factory.mktemp("tshark") / "all.pcapng"
    path.write_bytes(b"".join((FOLDER / f"{name}.pcapng").read_bytes() for name in NAMES))
    rows = tshark(path)
    found = {}
    for name in NAMES:
        count = len(datagrams(FOLDER / f"{name}.pcapng"))
        found[name], rows = rows[:count], rows[count:]
    assert rows == []
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tshark_reads_each_fixture_as_the_schema_does(
    name: str, dissected: dict[str, list[dict[str, str]]]
) -> None:
    check(dissected[name], datagrams(FOLDER / f"{name}.pcapng"))


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
    [row] = tshark(path)
    assert row["malformed"]


def test_other_messages_of_netlink_are_netlinks(tmp_path: Path) -> None:
    """NLMSG_NOOP, DONE and OVERRUN, which a recording may hold, too."""
    path = tmp_path / "other.pcapng"
    with create_capture(path) as writer:
        for type_ in (1, 3, 4):
            datagram = schema.build([RawMessage(type_, 0, 0, 0, bytes(4))])
            writer.write(Record(1, Direction.FROM_KERNEL, datagram))
    for row in tshark(path):
        assert row["protocols"].split(":")[0] == "netlink"
        assert row["malformed"] == ""
