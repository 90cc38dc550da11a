"""What the seam promises of datagrams in both directions.

A check sends what the kernel would answer, so a backend is tested with its other side: the
kernel, or whatever it plays. Requests are built and answers read by the schema, or by hand where
they are wrong on purpose.
"""

from __future__ import annotations

import errno
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

from trionfq._ids import id_after
from trionfq.backends._abc import Backend, QueueRow
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import ConfigCommand, CopyMode, MessageType
from trionfq.testing._messages import make_bind, make_config, make_verdict
from trionfq.testing._promises import Promises
from trionfq.testing._subject import COPY_RANGE

if TYPE_CHECKING:
    from trionfq.testing._subject import Subject

TALKING = Promises()

_LONG_BYTES = 1 << 20  # longer than any send buffer by default
_LEAST_SEND_BYTES = 512


@TALKING.promise("it has the methods of Backend")
async def _methods(it: Subject) -> None:
    # Not isinstance: from Python 3.12 on it does not see what a wrapper passes on by __getattr__.
    members = [name for name in vars(Backend) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(it.backend, name)]
    it.ensure(not missing, f"{type(it.backend).__name__} lacks {', '.join(missing)}")


@TALKING.promise("port_id, now_ns, socket_drops and interface_name answer at any time")
async def _identity(it: Subject) -> None:
    backend = it.backend
    port_id = backend.port_id
    it.ensure(type(port_id) is int and 0 < port_id < 1 << 32, f"port_id {port_id!r} is no u32")
    first = backend.now_ns()
    it.ensure(type(first) is int and first >= 0, f"now_ns gave {first!r}")
    it.ensure(backend.now_ns() >= first, "now_ns went back")
    drops = backend.socket_drops()
    it.ensure(type(drops) is int and drops >= 0, f"socket_drops gave {drops!r}")
    for index in (0, 0x7FFFFFFF, 0xFFFFFFFF):
        name = backend.interface_name(index)
        it.ensure(name is None, f"interface {index} cannot exist, yet is called {name!r}")
    it.bind()
    it.ensure(backend.port_id == port_id, "port_id changed")


@TALKING.promise("receive_nowait gives an empty list where nothing waits")
async def _nothing_waits(it: Subject) -> None:
    for limit in (1, 16, 0):
        datagrams = it.take(limit)
        it.ensure(not datagrams, f"{len(datagrams)} datagrams before anything was asked")


@TALKING.promise("a request is answered when send_nowait returns, in the kernel's way")
async def _answers(it: Subject) -> None:
    queue = it.queue
    seq = it.seq()
    it.ask(make_verdict(1, queue=queue, seq=seq), seq, errno.ENODEV, "a verdict without a queue")
    it.bind()
    seq = it.seq()
    it.ask(make_bind(queue, seq=seq), seq, errno.EBUSY, "BIND of a queue that we have")
    seq = it.seq()
    # Id 0 comes once in four thousand million packets.
    it.ask(make_verdict(0, queue=queue, seq=seq), seq, errno.ENOENT, "a verdict on no packet")
    for what, kind, body in (
        ("a message type that nobody knows", 0x03FE, b""),
        ("a verdict without NFQA_VERDICT_HDR", MessageType.VERDICT, b""),
        ("a command of one byte", MessageType.CONFIG, struct.pack("=HHB3x", 5, 1, 1)),
    ):
        seq = it.seq()
        it.ask(_by_hand(kind, queue, seq, body), seq, None, what)
    it.backend.send_nowait(make_config(queue, ack=False, copy_mode=CopyMode.META))
    it.ensure(not it.answers(), "an answer to a success that asked for none")
    seqs = [it.seq() for _ in range(3)]
    it.backend.send_nowait(
        make_config(queue, seq=seqs[0], max_len=7)
        + _by_hand(0x03FE, queue, seqs[1], b"")
        + make_config(queue, seq=seqs[2], max_len=8)
    )
    got = [(answer.seq, answer.error < 0) for answer in it.answers()]
    it.ensure(
        got == [(seqs[0], False), (seqs[1], True), (seqs[2], False)],
        f"of three messages in a datagram each is answered, in order: (seq, error) was {got}",
    )


@TALKING.promise("queues lists what is bound, and only that")
async def _rows(it: Subject) -> None:
    it.ensure(it.row() is None, f"queue {it.queue} has a row before it is bound")
    it.bind()
    row = it.row()
    it.ensure(isinstance(row, QueueRow), f"queue {it.queue} has no row, or not a QueueRow: {row}")
    assert row is not None
    got = (row.portid, row.copy_mode, row.copy_range)
    expected = (it.backend.port_id, CopyMode.PACKET, COPY_RANGE)
    it.ensure(got == expected, f"(portid, copy_mode, copy_range) is {got}, not {expected}")
    seq = it.seq()
    unbind = make_config(it.queue, seq=seq, command=ConfigCommand.UNBIND)
    it.ask(unbind, seq, 0, "UNBIND")
    it.ensure(it.row() is None, "the row outlives UNBIND")
    it.bind()
    other = it.another()
    if it.row(other.backend) is None:
        return  # backends that share nothing cannot see each other
    it.ensure(other.backend.port_id != it.backend.port_id, "two backends have one port_id")
    it.backend.close()
    it.ensure(it.row(other.backend) is None, "the row outlives its backend")


@TALKING.promise("max_send_bytes can be sent; what is refused as too long is not taken at all")
async def _sizes(it: Subject) -> None:
    backend = it.backend
    longest = backend.max_send_bytes
    it.ensure(
        type(longest) is int and longest >= _LEAST_SEND_BYTES,
        f"max_send_bytes is {longest!r}, less than a few verdicts",
    )
    queue, seq = it.queue, it.seq()
    bind = make_bind(queue, seq=seq)
    try:
        backend.send_nowait(bind.ljust(max(_LONG_BYTES, longest + 1), b"\0"))
    except OSError as error:
        it.ensure(error.errno == errno.EMSGSIZE, f"expected EMSGSIZE, got {error!r}")
        it.ensure(not it.answers(), "an answer to what was refused")
        it.ensure(it.row() is None, "what was refused has bound a queue")
        it.ask(bind, seq, 0, "BIND")
    else:
        answers = it.answers()
        it.ensure([a.error for a in answers] == [0], f"expected one success, got {answers}")
    quiet = make_config(queue, ack=False, max_len=9)
    seq = it.seq()
    last = make_config(queue, seq=seq, max_len=10)
    before = quiet * ((longest - len(last)) // len(quiet))
    it.ask(last, seq, 0, f"{len(before + last)} bytes of requests", before=before)


@TALKING.promise("packets come whole, in the order of their ids, and no more than were asked for")
async def _delivery(it: Subject) -> None:
    if it.arrive is None:
        return
    it.bind()
    for _ in range(3):
        it.arrive()
    ids = await it.packets(1, 1)
    ids += await it.packets(2, 64)
    ordered = all(id_after(later, earlier) for earlier, later in pairwise(ids))
    it.ensure(ordered, f"ids are {ids}")


@TALKING.promise("each packet takes one verdict")
async def _verdicts(it: Subject) -> None:
    if it.arrive is None:
        return
    it.bind()
    for _ in range(3):
        it.arrive()
    ids = await it.packets(3, 64)
    row = it.row()
    it.ensure(row is not None and row.queue_total >= 3, f"three packets wait, the row is {row}")
    for error, what in ((0, "a verdict"), (errno.ENOENT, "a second verdict")):
        seq = it.seq()
        request = make_verdict(ids[1], queue=it.queue, seq=seq, ack=True)
        it.ask(request, seq, error, what)
    for error, what in ((0, "a batch"), (errno.ENOENT, "a second batch")):
        seq = it.seq()
        request = make_verdict(ids[2], queue=it.queue, seq=seq, ack=True, batch=True)
        it.ask(request, seq, error, what)
    seq = it.seq()
    unbind = make_config(it.queue, seq=seq, command=ConfigCommand.UNBIND)
    it.ask(unbind, seq, 0, "UNBIND")
    seq = it.seq()
    late = make_verdict(ids[0], queue=it.queue, seq=seq)
    it.ask(late, seq, errno.ENODEV, "a verdict after UNBIND")


def _by_hand(kind: int, queue: int, seq: int, body: bytes) -> bytes:
    """A request that the schema would not build."""
    header = struct.pack("=IHHII", 20 + len(body), kind, MessageFlags.REQUEST, seq, 0)
    return header + struct.pack("!BBH", 0, 0, queue) + body
