"""RecordingBackend: everything that passes is in the file, and nothing that passes is changed."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionfq import captures, schema
from trionfq._errors import CaptureError
from trionfq._open import open_queue
from trionfq.backends import Backend, QueueRow, Received
from trionfq.backends.recording import RecordingBackend
from trionfq.captures import Note, Record
from trionfq.schema import Direction, ErrorMessage, Message
from trionfq.schema.nfqueue import ConfigCommand, MessageType
from trionfq.testing import (
    BackendUnderTest,
    KernelModel,
    ScriptedBackend,
    check_backend,
    make_bind,
    make_config,
    make_packet,
    make_verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL


class Clock:
    """Nanoseconds that grow by one with each look."""

    def __init__(self) -> None:
        self.now = 1_790_000_000_000_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.pcapng"


@pytest.fixture
def inner() -> ScriptedBackend:
    return ScriptedBackend(interfaces={1: "lo", 7: "veth0", 8: "br \udcff0"}, clock=Clock())


@pytest.fixture
def recording(inner: ScriptedBackend, path: Path) -> Iterator[RecordingBackend]:
    backend = RecordingBackend(inner, path)
    yield backend
    backend.close()


def read(path: Path) -> list[Record]:
    with captures.open_capture(path) as capture:
        return list(capture)


def notes(path: Path) -> list[Note]:
    return [note for record in read(path) for note in record.notes]


async def test_it_keeps_the_promises_of_the_seam(tmp_path: Path) -> None:
    count = iter(range(1000))
    kernel = KernelModel()

    def make() -> BackendUnderTest:
        scripted = ScriptedBackend(kernel)
        backend = RecordingBackend(scripted, tmp_path / f"{next(count)}.pcapng")
        return BackendUnderTest(backend, 7, lambda: scripted.arrive(make_packet(queue=7)))

    await check_backend(make)
    for number in range(next(count)):
        read(tmp_path / f"{number}.pcapng")


def test_it_is_a_backend(recording: RecordingBackend, inner: ScriptedBackend) -> None:
    assert isinstance(recording, Backend)
    assert recording.port_id == inner.port_id
    assert recording.max_send_bytes == inner.max_send_bytes
    assert recording.interface_name(7) == "veth0"
    assert recording.socket_drops() == 0
    assert recording.queues() == []


def test_datagrams_of_both_directions_are_written_with_the_inner_times(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    bind = make_bind(3)
    recording.send_nowait(bind)
    inner.arrive(make_packet(queue=3, payload=b"\x45" + bytes(30)))
    inner.arrive(make_packet(queue=3, payload=b"\x45" + bytes(31)))
    received = recording.receive_nowait(64)
    assert len(received.datagrams) == 3
    verdict = make_verdict(1, queue=3)
    recording.send_nowait(verdict)
    recording.close()
    passed = [record for record in read(path) if record.datagram]
    assert [(r.direction, r.datagram) for r in passed] == [
        (TO, bind),
        *((FROM, datagram) for datagram in received.datagrams),
        (TO, verdict),
    ]
    times = [record.time_ns for record in passed]
    assert times == sorted(times)
    assert times[1] == times[2] == times[3], "what one look brought has one time"
    assert times[0] < times[1] < times[4]


def test_it_creates_a_file_for_its_owner_alone(path: Path, inner: ScriptedBackend) -> None:
    RecordingBackend(inner, path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = ScriptedBackend()
    with pytest.raises(FileExistsError):
        RecordingBackend(other, path)
    assert other.queues() == [], "the inner backend stays open"
    RecordingBackend(other, path, overwrite=True).close()


def test_it_tells_who_recorded(path: Path, inner: ScriptedBackend) -> None:
    RecordingBackend(inner, path).close()
    with captures.open_capture(path) as capture:
        first = next(capture)
        assert capture.section is not None
        assert capture.section.system == f"{os.uname().sysname} {os.uname().release}"
    assert first.notes == (
        Note(
            "recording",
            {
                "backend": "ScriptedBackend",
                "port_id": inner.port_id,
                "release": os.uname().release,
            },
        ),
    )


def test_losses_are_noted_before_what_came_with_them(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    recording.send_nowait(make_bind(3))
    inner.report(overruns=1, truncated=2, foreign=3)
    received = recording.receive_nowait(64)
    assert (received.overruns, received.truncated, received.foreign) == (1, 2, 3)
    assert recording.receive_nowait(64) == Received([])
    recording.close()
    kinds = [
        [note.kind for note in record.notes] or record.direction
        for record in read(path)
        if record.datagram or record.notes[0].kind in ("overrun", "truncated", "foreign")
    ]
    assert kinds == [TO, ["overrun", "truncated", "foreign"], FROM]
    counts = {note.kind: note.values.get("count") for note in notes(path)}
    assert (counts["overrun"], counts["truncated"], counts["foreign"]) == (1, 2, 3)


def test_an_interface_is_named_with_the_first_packet_that_names_it(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    recording.send_nowait(make_bind(3))
    inner.arrive(make_packet(queue=3, ifindex_outdev=7))
    inner.arrive(make_packet(queue=3, ifindex_indev=8, ifindex_outdev=7))
    inner.arrive(make_packet(queue=3, ifindex_indev=99))
    inner.arrive(make_packet(queue=3, ifindex_physindev=1, ifindex_indev=99))
    recording.receive_nowait(64)
    recording.close()
    _answer, *named = [r.notes for r in read(path) if r.direction is FROM]
    assert named == [
        (Note("interface", {"index": 7, "name": "veth0"}),),
        (Note("interface", {"index": 8, "name": "br \udcff0"}),),
        (),
        (Note("interface", {"index": 1, "name": "lo"}),),
    ]


def test_the_row_of_a_queue_is_noted_before_it_is_unbound(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    for queue in (3, 4):
        recording.send_nowait(make_bind(queue, max_len=1))
        for _ in range(3):
            inner.arrive(make_packet(queue=queue))
    recording.send_nowait(make_config(3, command=ConfigCommand.UNBIND))
    assert [row.queue for row in recording.queues()] == [4]
    recording.close()
    rows = [note.values for note in notes(path) if note.kind == "queue"]
    assert [(r["queue"], r["queue_total"], r["queue_dropped"]) for r in rows] == [
        (3, 1, 2),
        (4, 1, 2),
    ]
    assert list(rows[0]) == list(QueueRow._fields)
    kinds = [r.notes[0].kind if r.notes else r.direction for r in read(path)]
    assert kinds == ["recording", TO, TO, "queue", TO, "queue", "socket"]


def test_what_the_inner_backend_refuses_is_raised_and_noted(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    def refuse(_datagram: bytes) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    inner.send_hook = refuse
    with pytest.raises(OSError, match="No buffer space"):
        recording.send_nowait(make_bind(3))
    recording.close()
    assert not [r for r in read(path) if r.datagram]
    assert Note("refused", {"errno": errno.ENOBUFS, "bytes": len(make_bind(3))}) in notes(path)


def test_what_contradicts_the_schema_is_recorded_as_it_is(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    odd = [b"\xff" * 30, make_packet(queue=3)[:-1], b"\x02\x03"]
    for datagram in odd:
        inner.inject(datagram)
    assert recording.receive_nowait(64).datagrams == odd
    request = b"\x02\x03" * 20
    recording.send_nowait(request)
    recording.close()
    assert [r.datagram for r in read(path) if r.datagram] == [*odd, request]


# -- the file fails, the queue does not ------------------------------------------------------------


def fill_the_disk(recording: RecordingBackend) -> None:
    """From here on the kernel answers every write to the file with ENOSPC."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this platform")
    assert recording._writer is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, recording._writer._stream.fileno())
    os.close(full)


async def test_a_full_disk_ends_the_recording_and_leaves_the_queue_running(
    inner: ScriptedBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording = RecordingBackend(inner, path)
    seen = 0
    with caplog.at_level(logging.WARNING, logger="trionfq"):
        async with open_queue(3, backend=recording) as queue:
            inner.arrive(make_packet(queue=3))
            async for packet in queue:
                packet.accept()
                seen += 1
                if seen == 2:
                    recording.flush()
                    fill_the_disk(recording)
                if seen == 5:
                    break
                inner.arrive(make_packet(queue=3))
    assert seen == 5
    assert len(inner.decisions) == 5
    assert isinstance(recording.failed, OSError)
    assert recording.failed.errno == errno.ENOSPC
    assert not recording.active
    [warning] = [r for r in caplog.records if "recording" in r.getMessage()]
    assert str(path) in warning.getMessage()
    assert "No space left" in warning.getMessage()
    kept = [r for r in read(path) if r.datagram]
    assert len(kept) >= 4, "what was flushed before is whole"


def test_a_full_disk_at_the_very_end_is_told_as_well(
    inner: ScriptedBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording = RecordingBackend(inner, path)
    recording.send_nowait(make_bind(3))
    fill_the_disk(recording)
    recording.close()
    assert isinstance(recording.failed, OSError)
    assert "No space left" in caplog.text
    with pytest.raises(trio.ClosedResourceError):
        inner.queues()


def test_a_time_that_cannot_be_written_ends_the_recording_alone(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = ScriptedBackend(clock=iter([5, 6, -1, -1]).__next__)
    recording = RecordingBackend(inner, path)
    recording.send_nowait(make_bind(3))
    assert len(recording.receive_nowait(9).datagrams) == 1
    assert isinstance(recording.failed, CaptureError)
    assert "got -1" in caplog.text
    recording.send_nowait(make_verdict(1, queue=3))
    recording.close()
    assert [r.direction for r in read(path)] == [None, TO]


async def test_what_was_recorded_is_in_the_file_whenever_the_program_waits(
    recording: RecordingBackend, inner: ScriptedBackend, path: Path
) -> None:
    recording.send_nowait(make_bind(3))
    assert [r for r in read(path) if r.datagram] == []
    await recording.wait_readable()
    assert [r.datagram for r in read(path) if r.datagram] == [make_bind(3)]


async def test_a_run_that_is_recorded_is_the_same_run(path: Path) -> None:
    async def run(backend: Backend, scripted: ScriptedBackend) -> list[tuple[int, str]]:
        async with open_queue(3, backend=backend) as queue:
            for number in range(20):
                scripted.arrive(make_packet(queue=3, payload=b"\x45" + bytes([number]) * 30))
            for _ in range(20):
                packet = await queue.receive()
                if packet.id % 3:
                    packet.accept(mark=packet.id)
                else:
                    packet.drop()
        return [(each.packet_id, each.effect.name) for each in scripted.decisions]

    plain = ScriptedBackend()
    recorded = ScriptedBackend()
    assert await run(plain, plain) == await run(RecordingBackend(recorded, path), recorded)
    outcomes = captures.transcript(read(path))
    assert [(o.packet_id, o.verdict, o.mark) for o in outcomes] == [
        (n, 1, n) if n % 3 else (n, 0, None) for n in range(1, 21)
    ]
    kinds: Counter[str] = Counter()
    for record in read(path):
        for message in schema.parse(record.datagram) if record.datagram else ():
            if isinstance(message, ErrorMessage):
                kinds["answer"] += 1
            elif isinstance(message, Message):
                kinds[MessageType(message.type).name] += 1
    assert kinds["PACKET"] == 20
    assert kinds["CONFIG"] >= 2
