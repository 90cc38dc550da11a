"""What the library seldom sends by itself or never: batches of each verdict, commands of old."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing

import pytest

from trionfq import NetlinkBackend, Queue, Verdict, open_queue, schema
from trionfq.schema.nfqueue import ConfigCommand, VerdictCode
from trionfq.testing import make_bind, make_config, make_verdict

from ._live import PORT, Udp, data_of, take
from .harness import Namespace, queue_rule, rule

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"


async def two(queue: Queue, udp: Udp, name: bytes) -> int:
    """Two packets, undecided; the last one's id."""
    udp.send(name + b"1", name + b"2")
    _, last = await take(queue, 2)
    return last.id


async def test_each_verdict_of_a_batch(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, table="mangle")
    chain = rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as queue,
        open_queue(9, namespace=ns.name) as other,
    ):
        last = await two(queue, udp, b"drop")
        assert queue.set_verdict_batch(last, Verdict.DROP) == 2
        last = await two(queue, udp, b"accept")
        assert queue.set_verdict_batch(last, Verdict.ACCEPT) == 2
        assert await udp.receive(2) == [b"accept1", b"accept2"]
        assert chain.packets == 2
        last = await two(queue, udp, b"stop")
        assert queue.set_verdict_batch(last, Verdict.STOP) == 2
        assert await udp.receive(2) == [b"stop1", b"stop2"]
        assert chain.packets == 2
        last = await two(queue, udp, b"queue")
        assert queue.set_verdict_batch(last, Verdict.QUEUE, queue=9) == 2
        moved = await take(other, 2)
        assert [data_of(packet) for packet in moved] == [b"queue1", b"queue2"]
        other.set_verdict_batch(moved[1].id, Verdict.ACCEPT)
        assert await udp.receive(2) == [b"queue1", b"queue2"]
        last = await two(queue, udp, b"repeat")
        assert queue.set_verdict_batch(last, Verdict.REPEAT, mark=1) == 2
        again = await take(queue, 2)
        assert [packet.mark for packet in again] == [1, 1]
        assert [data_of(packet) for packet in again] == [b"repeat1", b"repeat2"]
        queue.set_verdict_batch(again[1].id, Verdict.ACCEPT)
        assert await udp.receive(2) == [b"repeat1", b"repeat2"]
    assert udp.waiting() == []


async def test_mark_and_priority_of_a_batch_are_all_its_packets(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP, 0, table="mangle")
    queue_rule(ns, "POSTROUTING", UDP, 1, table="mangle")
    udp = Udp(ns)
    async with (
        open_queue(0, namespace=ns.name) as queue,
        open_queue(1, namespace=ns.name) as after,
    ):
        last = await two(queue, udp, b"x")
        assert queue.set_verdict_batch(last, Verdict.ACCEPT, mark=0x01020304, priority=6) == 2
        packets = await take(after, 2)
        assert [(packet.mark, packet.priority) for packet in packets] == [(0x01020304, 6)] * 2
        after.set_verdict_batch(packets[1].id, Verdict.ACCEPT)
        assert await udp.receive(2) == [b"x1", b"x2"]


@pytest.fixture
def backend(ns: Namespace) -> Iterator[NetlinkBackend]:
    with closing(NetlinkBackend(namespace=ns.name)) as opened:
        yield opened


def answer(backend: NetlinkBackend, request: bytes) -> int:
    """The error number with which the kernel answers, 0 for success."""
    backend.send_nowait(request)
    *_, last = backend.receive_nowait(64).datagrams
    [message] = schema.parse(last)
    assert isinstance(message, schema.ErrorMessage)
    return -message.error


def test_the_commands_of_old_do_nothing(ns: Namespace, backend: NetlinkBackend) -> None:
    """PF_BIND and PF_UNBIND are taken, with a queue and without (nfqnl_recv_config)."""
    old = [make_config(3, command=c) for c in (ConfigCommand.PF_BIND, ConfigCommand.PF_UNBIND)]
    assert [answer(backend, request) for request in old] == [0, 0]
    assert ns.queue_rows() == []
    assert answer(backend, make_bind(3, copy_range=77)) == 0
    before = ns.queue_rows()
    assert [answer(backend, request) for request in old] == [0, 0]
    assert ns.queue_rows() == before
    assert [row.copy_range for row in before] == [77]


def test_no_command_is_no_command(ns: Namespace, backend: NetlinkBackend) -> None:
    assert answer(backend, make_config(3, command=ConfigCommand.NONE)) == errno.EOPNOTSUPP
    assert ns.queue_rows() == []


@pytest.mark.parametrize("batch", [False, True])
def test_stolen_is_refused_and_the_packet_waits(
    ns: Namespace, backend: NetlinkBackend, batch: bool
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    assert answer(backend, make_bind(0)) == 0
    Udp(ns).send(b"x")
    stolen = make_verdict(1, VerdictCode.STOLEN, batch=batch, ack=True)
    assert answer(backend, stolen) == errno.EINVAL
    [row] = ns.queue_rows()
    assert row.queue_total == 1
    assert answer(backend, make_verdict(1, VerdictCode.DROP, batch=batch, ack=True)) == 0
