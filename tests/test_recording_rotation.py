"""A recording that rotates loses no record, and each of its files stands alone."""

from __future__ import annotations

import logging
import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from trionfq import (
    CopyMode,
    Packet,
    QueueFlags,
    RecordingBackend,
    ReplayBackend,
    Rotation,
    captures,
    open_queue,
)
from trionfq.backends import Backend
from trionfq.captures import Note, Record
from trionfq.conformance import judge
from trionfq.schema import Direction, Message, by_name, parse
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand
from trionfq.testing import (
    ScriptedBackend,
    make_bind,
    make_config,
    make_packet,
    make_verdict,
    udp_packet,
)

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
START = 1_790_000_000_000_000_000
MS = 1_000_000
COUNT = 300


def source(count: int = COUNT) -> list[Record]:
    note = Note("interface", {"index": 7, "name": "veth0"})
    return [
        Record(
            START + number * MS,
            FROM,
            make_packet(number + 1, udp_packet(b"%d" % number), ifindex_indev=7, uid=1000, gid=100),
            (note,) if not number else (),
        )
        for number in range(count)
    ]


def decide(packet: Packet) -> None:
    if packet.id % 3:
        packet.accept(mark=packet.id)
    else:
        packet.drop()


async def policy(backend: Backend) -> None:
    async with open_queue(0, backend=backend, flags=QueueFlags.UID_GID, max_len=64) as queue:
        async for packet in queue:
            decide(packet)


async def recorded(path: Path, rotation: Rotation, **options: Any) -> RecordingBackend:
    given = [Record(START, TO, make_bind(flags=QueueFlags.UID_GID)), *source()]
    recording = RecordingBackend(ReplayBackend(given), path, rotate=rotation, **options)
    await policy(recording)
    assert recording.failed is None
    return recording


def read(path: str | Path) -> list[Record]:
    with captures.open_capture(path) as capture:
        return list(capture)


def kinds(record: Record) -> list[str]:
    return [note.kind for note in record.notes]


async def test_parts_together_are_the_recording_of_one_file(tmp_path: Path) -> None:
    parts = (await recorded(tmp_path / "run.pcapng", Rotation(max_bytes=8192))).paths
    whole = RecordingBackend(ReplayBackend(source()), tmp_path / "whole.pcapng")
    await policy(whole)
    assert len(parts) > 5
    assert parts == [str(tmp_path / f"run.{n:05d}.pcapng") for n in range(len(parts))]
    passed = [
        (record.direction, record.datagram)
        for path in parts
        for record in read(path)
        if record.datagram and "setup" not in kinds(record)
    ]
    assert passed == [
        (record.direction, record.datagram)
        for record in read(tmp_path / "whole.pcapng")
        if record.datagram
    ]
    for path in parts:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    sizes = [os.stat(path).st_size for path in parts[:-1]]
    # The last record goes beyond, and then the final counters.
    assert all(8192 <= size < 8192 + 2048 for size in sizes)


async def test_each_part_replays_on_its_own(tmp_path: Path) -> None:
    parts = (await recorded(tmp_path / "run.pcapng", Rotation(max_bytes=8192))).paths
    ids: list[int] = []
    for number, path in enumerate(parts):
        replay = ReplayBackend(path, check="all")
        seen = 0
        async with open_queue(0, backend=replay, flags=QueueFlags.UID_GID) as queue:
            async for packet in queue:
                seen += 1
                assert packet.uid == 1000
                assert packet.indev_name == "veth0"
                decide(packet)
        assert replay.shortfalls == {}, "the part says what the recorded program had asked for"
        ids += [outcome.packet_id for outcome in replay.transcript]
        assert seen == len(replay.transcript)
        records = read(path)
        assert kinds(records[0]) == ["recording"]
        assert records[0].notes[0].values["part"] == number
        ends = [kind for record in records[-3:] for kind in kinds(record)]
        assert "queue" in ends or number == len(parts) - 1
        assert ends[-1] == "socket"
        # It begins in the middle of a binding, and breaks no rule.
        assert judge(path).finish().passed
        # The recorded verdicts are those of the policy, but for a packet whose verdict came later.
        found = captures.compare(path, replay.transcript)
        assert all(each.a and each.a.verdict is None for each in found.differences)
        assert len(found.differences) < 64
    assert ids == list(range(1, COUNT + 1))


async def test_parts_begin_by_recorded_time(tmp_path: Path) -> None:
    rotation = Rotation(max_seconds=0.1, max_bytes=1 << 30)
    parts = (await recorded(tmp_path / "run.pcapng", rotation)).paths
    assert len(parts) == 3
    first = [read(path)[0].time_ns - START for path in parts]
    assert first == sorted(first)
    assert all(100 * MS <= b - a < 200 * MS for a, b in pairwise(first))


async def test_only_the_newest_parts_are_kept(tmp_path: Path) -> None:
    recording = await recorded(tmp_path / "run.pcapng", Rotation(max_bytes=4096, keep=2))
    assert len(recording.paths) == 2
    assert sorted(os.listdir(tmp_path)) == [os.path.basename(path) for path in recording.paths]
    last = ReplayBackend(recording.paths[-1])
    await policy(last)


async def test_an_old_part_that_cannot_be_deleted_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = ReplayBackend(source())
    recording = RecordingBackend(
        given, tmp_path / "run.pcapng", rotate=Rotation(max_bytes=4096, keep=1)
    )
    os.unlink(recording.path)
    with caplog.at_level(logging.WARNING, logger="trionfq"):
        await policy(recording)
    assert recording.failed is None
    assert "an old part stays" in caplog.text


async def test_a_part_that_is_there_ends_the_recording_and_leaves_the_queue_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.00002.pcapng").write_bytes(b"somebody's")
    recording = RecordingBackend(
        ReplayBackend(source()), tmp_path / "run.pcapng", rotate=Rotation(max_bytes=4096)
    )
    with caplog.at_level(logging.WARNING, logger="trionfq"):
        await policy(recording)
    assert isinstance(recording.failed, FileExistsError)
    assert (tmp_path / "run.00002.pcapng").read_bytes() == b"somebody's"
    assert len(recording.paths) == 2
    assert isinstance(recording.inner, ReplayBackend)
    assert len(recording.inner.transcript) == COUNT
    with pytest.raises(FileExistsError):
        RecordingBackend(ScriptedBackend(), tmp_path / "run.pcapng", rotate=Rotation(max_bytes=1))
    await recorded(tmp_path / "run.pcapng", Rotation(max_bytes=4096), overwrite=True)


def settings_of(record: Record) -> dict[str, Any]:
    [message] = parse(record.datagram)
    assert isinstance(message, Message)
    return {"queue": message.res_id, **by_name(NFQA_CFG, message.attributes)}


def test_the_settings_repeated_are_those_that_the_kernel_has_taken(tmp_path: Path) -> None:
    scripted = ScriptedBackend()
    path = tmp_path / "run.pcapng"
    # Every datagram begins a part.
    recording = RecordingBackend(scripted, path, rotate=Rotation(max_bytes=1))

    def setup() -> list[dict[str, Any]]:
        recording.send_nowait(make_verdict(1, queue=3))
        recording.receive_nowait(64)
        recording.flush()
        records = read(recording.paths[-1])
        return [settings_of(each) for each in records if "setup" in kinds(each)]

    recording.send_nowait(make_bind(3, flags=1, max_len=100))
    assert recording.receive_nowait(64).datagrams
    params = {"copy_range": 0xFFFF, "copy_mode": CopyMode.PACKET}
    first = {
        "queue": 3,
        "params": params,
        "queue_maxlen": 100,
        "mask": 1,
        "flags": 1,
    }
    assert setup() == [first]
    recording.send_nowait(make_config(3, flags=8, mask=9, max_len=7, ack=False))
    assert setup() == [{**first, "queue_maxlen": 7, "mask": 9, "flags": 8}]
    # Refused: another queue's, and a flag that no kernel knows.
    recording.send_nowait(make_config(9, max_len=3, seq=50))
    recording.send_nowait(make_config(3, flags=0x80000000, seq=51, copy_mode=CopyMode.META))
    recording.receive_nowait(64)
    assert setup() == [{**first, "queue_maxlen": 7, "mask": 9, "flags": 8}]
    recording.send_nowait(make_bind(4, seq=52))
    recording.receive_nowait(64)
    assert [each["queue"] for each in setup()] == [3, 4]
    recording.send_nowait(make_config(3, command=ConfigCommand.UNBIND, seq=53))
    recording.receive_nowait(64)
    assert [each["queue"] for each in setup()] == [4]
    recording.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give max_bytes, max_seconds or both"),
        ({"keep": 3}, "give max_bytes, max_seconds or both"),
        ({"max_bytes": 0}, "max_bytes: expected more than 0, got 0"),
        ({"max_seconds": -1}, "max_seconds: expected more than 0"),
        ({"max_bytes": 5, "keep": 0}, "keep: expected more than 0"),
    ],
)
def test_a_rotation_that_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Rotation(**options)
