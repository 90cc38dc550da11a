"""Captures of several programs' nfqueue traffic: who was bound to which queue, and one of them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import capture_bytes as made
from trionfq import Packet, Queue, ReplayBackend, _capture_bindings, open_queue
from trionfq._errors import CaptureError
from trionfq.captures import Binding, QueueSource, open_capture, survey, transcript
from trionfq.schema import Direction
from trionfq.schema.nfqueue import ConfigCommand, CopyMode
from trionfq.testing import make_config, make_packet, make_verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

SECOND = 10**9


def sent(datagram: bytes, port_id: int = 0) -> bytes:
    """A request with the port id that its sender wrote into it."""
    return datagram[:12] + struct.pack("=I", port_id) + datagram[16:]


def answer(request: bytes, port_id: int, error: int = 0) -> bytes:
    """The kernel's answer to a socket."""
    seq = int.from_bytes(request[8:12], "little")
    body = struct.pack("=i", -error) + request[:16]
    return struct.pack("=IHHII", 16 + len(body), 2, 0x100, seq, port_id) + body


def bind(queue: int, seq: int) -> bytes:
    return make_config(queue, seq=seq, command=ConfigCommand.BIND, copy_mode=CopyMode.PACKET)


def unbind(queue: int, seq: int) -> bytes:
    return make_config(queue, seq=seq, command=ConfigCommand.UNBIND)


def file(tmp_path: Path, datagrams: Iterable[bytes]) -> Path:
    """As tcpdump writes it: one second after the other, and no direction but the message's."""
    path = tmp_path / "nlmon.pcap"
    packets = [(n, 0, made.cooked(each)) for n, each in enumerate(datagrams, 1)]
    path.write_bytes(made.pcap(*packets))
    return path


def two_programs() -> list[bytes]:
    """Programs 101 on queues 1 and 2, and 202 on queue 3 and, later, on 1."""
    first, second, third, last = bind(1, 7), bind(2, 8), bind(3, 7), bind(1, 9)
    return [
        *(first, answer(first, 101), third, answer(third, 202), second, answer(second, 101)),
        *(make_packet(1, queue=1), make_packet(1, queue=3), make_packet(1, queue=2)),
        *(make_verdict(1, queue=3), make_verdict(1, queue=1), make_packet(2, queue=3)),
        *(unbind(1, 11), last, answer(last, 202)),
        *(make_packet(1, queue=1), make_verdict(1, 0, queue=1)),
    ]


def test_bindings_are_told_with_their_programs_and_packets(tmp_path: Path) -> None:
    found = survey(file(tmp_path, two_programs()))
    assert found.bindings == (
        Binding(1, 101, 1, 7 * SECOND, 7 * SECOND),
        Binding(3, 202, 2, 8 * SECOND, 12 * SECOND),
        Binding(2, 101, 1, 9 * SECOND, 9 * SECOND),
        Binding(1, 202, 1, 16 * SECOND, 16 * SECOND),
    )
    assert found.skipped == {}


def test_a_request_that_was_refused_is_no_binding(tmp_path: Path) -> None:
    mine, theirs = bind(1, 5), bind(1, 5)
    datagrams = [mine, answer(mine, 101), theirs, answer(theirs, 202, error=1)]
    found = survey(file(tmp_path, [*datagrams, make_packet(1, queue=1)]))
    assert found.bindings == (Binding(1, 101, 1, 5 * SECOND, 5 * SECOND),)


def test_a_program_that_asks_for_no_answer_is_known_by_what_it_writes(tmp_path: Path) -> None:
    quiet = make_config(1, ack=False, command=ConfigCommand.BIND)
    datagrams = [sent(quiet, 303), make_packet(1, queue=1)]
    assert survey(file(tmp_path, datagrams)).bindings[0].port_id == 303
    assert survey(file(tmp_path, [quiet, make_packet(1, queue=1)])).bindings[0].port_id is None


def test_a_capture_that_begins_late_has_its_bindings_all_the_same(tmp_path: Path) -> None:
    datagrams = [make_packet(9, queue=4), sent(make_verdict(9, queue=4), 404)]
    assert survey(file(tmp_path, datagrams)).bindings == (Binding(4, 404, 1, SECOND, SECOND),)


def test_what_is_not_clear_is_listed(tmp_path: Path) -> None:
    path = file(tmp_path, two_programs())
    with pytest.raises(CaptureError) as caught:
        QueueSource(path)
    assert str(caught.value) == (
        "several queues: name one by queue=; there is queue 1 of port id 101 (1 packets); "
        "queue 3 of port id 202 (2 packets); queue 2 of port id 101 (1 packets); "
        "queue 1 of port id 202 (1 packets)"
    )
    with pytest.raises(CaptureError, match="several programs: name one by port_id="):
        QueueSource(path, queue=1)
    with pytest.raises(CaptureError, match="several queues"):
        QueueSource(path, port_id=101)
    with pytest.raises(CaptureError, match="not in it; there is queue 1 of port id 101"):
        QueueSource(path, queue=9)
    with pytest.raises(CaptureError, match="no nfqueue traffic"):
        QueueSource(file(tmp_path, []))
    assert QueueSource(file(tmp_path, two_programs()), queue=3).queue == 3


def test_one_program_s_queue_has_what_passed_between_them(tmp_path: Path) -> None:
    path = file(tmp_path, two_programs())
    source = QueueSource(path, queue=1, port_id=202)
    kept = [record.datagram for record in source]
    assert [record.datagram for record in source] == kept, "each pass is a whole one"
    everything = two_programs()
    assert kept == everything[13:]
    assert source.skipped == {
        "message of another queue or program": 10,
        "answer to another program": 3,
    }
    (outcome,) = transcript(source)
    assert (outcome.queue, outcome.verdict) == (1, 0)


async def test_it_is_a_source_of_a_replay(tmp_path: Path) -> None:
    source = QueueSource(file(tmp_path, two_programs()), queue=3)
    backend = ReplayBackend(source)
    assert backend.recorded_queue == 3
    async with open_queue(3, backend=backend) as queue:
        assert [packet.id async for packet in _accepted(queue)] == [1, 2]


async def _accepted(queue: Queue) -> AsyncIterator[Packet]:
    async for packet in queue:
        packet.accept()
        yield packet


def test_what_is_no_nfqueue_message_is_counted_by_kind(tmp_path: Path) -> None:
    foreign = made.message(0x0A05)  # nftables
    path = tmp_path / "mixed.pcapng"
    path.write_bytes(
        made.section()
        + made.interface()
        + made.interface(1)
        + made.enhanced(made.cooked(make_packet(1, queue=6)))
        + made.enhanced(made.cooked(foreign)) * 2
        + made.enhanced(made.cooked(made.message(0x6305)))
        + made.enhanced(made.cooked(b"short"))
        + made.enhanced(made.cooked(foreign, family=0))
        + made.enhanced(b"ether", index=1)
    )
    wanted = {
        "netfilter message of subsystem 10 (NFTABLES)": 2,
        "netfilter message of subsystem 99": 1,
        "malformed netlink message": 1,
        "datagram of netlink family 0": 1,
        "packet of link type 1 (ETHERNET)": 1,
    }
    assert survey(path).skipped == wanted
    source = QueueSource(path)
    assert len(list(source)) == 1
    assert source.skipped == wanted


def test_a_cut_capture_gives_what_is_whole_then_one_error(tmp_path: Path) -> None:
    path = file(tmp_path, two_programs())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CaptureError, match="the file ends after"):
        survey(path)
    records = iter(QueueSource(path, queue=3))
    assert [next(records).direction for _ in range(3)] == [
        Direction.TO_KERNEL,
        Direction.FROM_KERNEL,
        Direction.FROM_KERNEL,
    ]
    with pytest.raises(CaptureError, match="the file ends after"):
        list(records)


def test_many_bindings_of_a_crafted_capture_take_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_capture_bindings, "_MOST_BINDINGS", 500)
    tracker = _capture_bindings.Tracker()
    for number in range(600):
        tracker.take(Direction.TO_KERNEL, bind(number, number), number)
    assert len(tracker.bindings()) == 500
    assert len(tracker._asked) == 256


def test_the_order_of_bytes_is_the_recorded_host_s() -> None:
    message = made.message(0x0301, order="big", seq=5)
    (head,) = _capture_bindings.heads(message)
    assert (head.type, head.flags, head.seq, head.queue) == (0x0301, 0, 5, 7)
    assert list(_capture_bindings.heads(message + message[:19])) == [head]
    with open_capture(io.BytesIO(made.pcap((1, 2, made.cooked(message))))) as capture:
        assert len(list(capture)) == 1
