"""The measured program with NetfilterQueue (PyPI): a callback loop, or trio around it.

Usage: netfilterqueue_program.py HOW WORK HELD 0 QUEUE MAX_LEN RCVBUF
"""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from typing import Any

import by_hand
import trio
from netfilterqueue import NetfilterQueue  # type: ignore[import-not-found]

numbers = itertools.count()


def do_accept(packet: Any) -> None:
    packet.accept()


def do_read(packet: Any) -> None:
    if packet.get_payload():
        packet.accept()


def do_ports(packet: Any) -> None:
    source, destination, source_port, destination_port = by_hand.addresses_and_ports(
        packet.get_payload()
    )
    if source and destination and destination_port != 53 and source_port:
        packet.accept()


def do_mix(packet: Any) -> None:
    if next(numbers) & 1:
        packet.accept()
    else:
        packet.drop()


def do_mark(packet: Any) -> None:
    packet.set_mark(7)
    packet.accept()


def do_rewrite(packet: Any) -> None:
    # NetfilterQueue repairs nothing: lengths and checksums are the caller's own work.
    packet.set_payload(by_hand.rewritten(packet.get_payload()))
    packet.accept()


async def do_await_accept(packet: Any) -> None:
    await trio.lowlevel.checkpoint()
    packet.accept()


def holding(do: Any, held: int) -> Any:
    """Keep the first packets; then the callback is the plain one."""
    keep: list[Any] = []

    def callback(packet: Any) -> None:
        if len(keep) < held:
            keep.append(packet)
        else:
            do(packet)

    return callback


def by_callback(bind: Any, do: Any) -> None:
    nfqueue = bind(do)
    nfqueue.run()


def by_trio_callback(bind: Any, do: Any) -> None:
    async def main() -> None:
        nfqueue = bind(do)
        while True:
            await trio.lowlevel.wait_readable(nfqueue.get_fd())
            nfqueue.run(block=False)

    trio.run(main)


def by_trio(bind: Any, do: Any) -> None:
    """As NetfilterQueue's own tests use it: packets go to a task through a memory channel."""

    async def main() -> None:
        send, receive = trio.open_memory_channel[Any](math.inf)

        def callback(packet: Any) -> None:
            packet.retain()
            send.send_nowait(packet)

        nfqueue = bind(callback)

        async def listen() -> None:
            while True:
                await trio.lowlevel.wait_readable(nfqueue.get_fd())
                nfqueue.run(block=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            if inspect.iscoroutinefunction(do):
                async for packet in receive:
                    await do(packet)
            async for packet in receive:
                do(packet)

    trio.run(main)


def main(how: str, work: str, options: list[int]) -> None:
    held, _, queue_number, max_len, receive_buffer_bytes = options

    def bind(callback: Any) -> Any:
        nfqueue = NetfilterQueue()
        nfqueue.bind(
            queue_number,
            holding(callback, held) if held else callback,
            max_len=max_len,
            sock_len=receive_buffer_bytes,
        )
        return nfqueue

    globals()[f"by_{how}"](bind, globals()[f"do_{work}"])


main(sys.argv[1], sys.argv[2], [int(text) for text in sys.argv[3:]])
