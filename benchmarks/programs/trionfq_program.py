"""The measured program, as a user of trionfq would write it.

Usage: trionfq_program.py HOW WORK HELD DRAIN QUEUE MAX_LEN RCVBUF

HOW is a function below whose name starts with ``by_``, WORK one whose name starts with ``do_``.
The first HELD packets are never decided. DRAIN, if not 0, is the most packets a read may bring.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from trionfq import _link, open_queue
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
    if ip.destination_port == 9 and ip.source:
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

        async def accept(packet: Packet) -> None:
            packet.accept()

        return accept

    do = globals()[f"do_{work.removeprefix('await_')}"]

    async def handle(packet: Packet) -> None:
        if work.startswith("await_"):
            await trio.lowlevel.checkpoint()
        do(packet)

    return handle


async def main(how: str, work: str, numbers: list[int]) -> None:
    held, drain, queue_number, max_len, receive_buffer_bytes = numbers
    if drain:
        # Not a setting: this row asks what the limit costs.
        for module in (_link, _queue_module):
            vars(module)["READ_AHEAD"] = drain
    async with open_queue(
        queue_number, max_len=max_len, receive_buffer_bytes=receive_buffer_bytes
    ) as queue:
        keep = []
        for _ in range(held):
            packet = await queue.receive()
            packet.hold()
            keep.append(packet)
        await globals()[f"by_{how}"](queue, work)


trio.run(main, sys.argv[1], sys.argv[2], [int(text) for text in sys.argv[3:]])
