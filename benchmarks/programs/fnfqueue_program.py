"""The measured program with fnfqueue (PyPI): its blocking loop, a thread of its own behind it.

Usage: fnfqueue_program.py loop WORK 0 0 QUEUE MAX_LEN RCVBUF
"""

from __future__ import annotations

import itertools
import socket
import sys
from typing import Any

import by_hand
import fnfqueue  # type: ignore[import-not-found]

SO_RCVBUFFORCE = 33
numbers = itertools.count()


def do_accept(packet: Any) -> None:
    packet.accept()


def do_read(packet: Any) -> None:
    if packet.payload:
        packet.accept()


def do_ports(packet: Any) -> None:
    source, destination, source_port, destination_port = by_hand.addresses_and_ports(packet.payload)
    if source and destination and destination_port != 53 and source_port:
        packet.accept()


def do_mark(packet: Any) -> None:
    packet.mark = 7
    packet.mangle()


def do_rewrite(packet: Any) -> None:
    # It repairs nothing: lengths and checksums are the caller's own work.
    packet.payload = by_hand.rewritten(packet.payload)
    packet.mangle()


def do_mix(packet: Any) -> None:
    if next(numbers) & 1:
        packet.accept()
    else:
        packet.drop()


def main(work: str, queue_number: int, max_len: int, receive_buffer_bytes: int) -> None:
    connection = fnfqueue.Connection()
    own = socket.socket(fileno=connection._conn.fd)  # noqa: SLF001 - it has no option for this
    try:
        own.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
    except PermissionError:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    own.detach()
    queue = connection.bind(queue_number)
    queue.set_maxlen(max_len)
    queue.set_mode(fnfqueue.MAX_PAYLOAD, fnfqueue.COPY_PACKET)
    do = globals()[f"do_{work}"]
    while True:
        try:
            if work == "accept":
                for packet in connection:
                    packet.accept()
            else:
                for packet in connection:
                    do(packet)
        except fnfqueue.BufferOverflowException:
            connection.reset()


main(sys.argv[2], *[int(text) for text in sys.argv[5:]])
