"""What the workers of kernel tests do: functions that another process can import."""

from __future__ import annotations

import os

from trionfq import Queue

HEADERS = 28
"""Bytes before the data of a UDP datagram over IPv4, without options."""


async def tag(queue: Queue) -> None:
    """Writes in front of the data which queue, and which process, had the packet."""
    sign = f"{queue.number} {os.getpid()} ".encode()
    async for packet in queue:
        payload = packet.payload
        packet.accept(payload=payload[:HEADERS] + sign + payload[HEADERS:])


async def hold(queue: Queue) -> None:
    async for packet in queue:
        packet.hold()


async def choke(queue: Queue) -> None:
    """As `tag`, but cannot take everything."""

    def look(data: bytes) -> None:
        if data == b"poison":
            raise LookupError("what is this?")

    async for packet in queue:
        look(packet.payload[HEADERS:])
        packet.accept()
