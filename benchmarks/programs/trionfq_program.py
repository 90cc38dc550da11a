"""The measured program, as a user of trionfq would write it.

Usage: trionfq_program.py HOW WORK HELD DRAIN QUEUE MAX_LEN RCVBUF [gso]

HOW is a function below whose name starts with ``by_``, WORK one whose name starts with ``do_``.
The first HELD packets are never decided. DRAIN, if not 0, is the most packets a read may bring.
With gso, packets come as large as the sender's stack made them (NFQA_CFG_F_GSO).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from trionfq import QueueFlags, _link, open_queue
from trionfq import _queue as _queue_module

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionfq._packet import Packet
    from trionfq._queue import Queue


def do_accept(packet: Packet) -> None:
    packet.accept()


def do_read(packet: Packet) -> None:
    if packet.payload:
        packet.accept()


def do_ports(packet: Packet) -> None:
    ip = packet.ip
    if ip.source and ip.destination and ip.destination_port != 53 and ip.source_port:
        packet.accept()


def do_mix(packet: Packet) -> None:
    if packet.id & 1:
        packet.accept()
    else:
        packet.drop()


def do_mark(packet: Packet) -> None:
    packet.accept(mark=7)


def do_rewrite(packet: Packet) -> None:
    packet.payload = packet.payload[:-4] + b"abcd"
    packet.accept()


async def by_loop(queue: Queue, work: str) -> None:
    # Written out for the rows that issue bars: a call of a function is no part of a loop.
    if work == "accept":
        async for packet in queue:
            packet.accept()
    elif work == "read":
        async for packet in queue:
            if packet.payload:
                packet.accept()
    elif work == "mix":
        async for packet in queue:
            if packet.id & 1:
                packet.accept()
            else:
                packet.drop()
    else:
        do = globals()[f"do_{work}"]
        async for packet in queue:
            do(packet)


async def by_batches(queue: Queue, work: str) -> None:
    if work == "accept":
        async for batch in queue.batches():
            for packet in batch:
                packet.accept()
    elif work == "accept_all":
        async for batch in queue.batches():
            batch.accept()
    else:
        do = globals()[f"do_{work}"]
        async for batch in queue.batches():
            for packet in batch:
                do(packet)


async def by_serve(queue: Queue, work: str) -> None:
    await queue.serve(globals()[f"do_{work}"])


async def by_serve_async(queue: Queue, work: str) -> None:
    await queue.serve(_handler(work))


async def by_serve_deadline(queue: Queue, work: str) -> None:
    await queue.serve(_handler(work), deadline_s=1)


def _handler(work: str) -> Callable[[Packet], Awaitable[object]]:
    if work == "accept":

        async def answer(packet: Packet) -> None:
            packet.accept()

        async def accept(packet: Packet) -> None:
            await answer(packet)  # as one that finds what it asks for in memory

        return accept

    do = globals()[f"do_{work.removeprefix('await_')}"]

    async def handle(packet: Packet) -> None:
        if work.startswith("await_"):
            await trio.lowlevel.checkpoint()
        do(packet)

    return handle


def read_at_most(packets: int) -> None:
    """Not a setting of the library: some rows ask what the limit costs."""
    for module in (_link, _queue_module):
        if "READ_AHEAD" not in vars(module):
            raise SystemExit(f"{module.__name__} has no READ_AHEAD: say here what bounds a read")
        vars(module)["READ_AHEAD"] = packets


async def main(how: str, work: str, numbers: list[int], options: list[str]) -> None:
    held, drain, queue_number, max_len, receive_buffer_bytes = numbers
    if drain:
        read_at_most(drain)
    async with open_queue(
        queue_number,
        max_len=max_len,
        receive_buffer_bytes=receive_buffer_bytes,
        flags=QueueFlags.GSO if "gso" in options else QueueFlags(0),
    ) as queue:
        keep: list[Packet] = []
        if held:
            async for packet in queue:
                packet.hold()
                keep.append(packet)
                if len(keep) == held:
                    break
        await globals()[f"by_{how}"](queue, work)


trio.run(main, sys.argv[1], sys.argv[2], [int(text) for text in sys.argv[3:8]], sys.argv[8:])
