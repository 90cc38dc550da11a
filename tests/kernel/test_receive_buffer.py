"""What finds room before the first read, with the receive buffer that nobody asked for."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from trionfq import NetlinkBackend, open_queue

from ._live import PORT
from .harness import Namespace, in_user_namespace, queue_rule

NETFILTER = 12
DEFAULT_BYTES = 16 << 20
MAX_LEN = 1024
UDP = f"-p udp --dport {PORT}"


def given_by_default() -> int:
    if not in_user_namespace():
        return DEFAULT_BYTES
    return min(DEFAULT_BYTES, int(Path("/proc/sys/net/core/rmem_max").read_text()))


def send(ns: Namespace, count: int, octets: int) -> None:
    """As many datagrams as that: what a queue holds stays charged to its sender."""
    charged = 4 * (octets + 1024)  # more than the kernel takes
    left = count
    while left:
        sender = ns.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.settimeout(5)
        room = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // charged
        for _ in range(min(left, room)):
            sender.sendto(os.urandom(octets), ("127.0.0.1", PORT))
        left -= min(left, room)


@pytest.mark.parametrize("octets", [32, 1472, 8972])
async def test_a_burst_of_max_len_packets_before_the_first_read_loses_nothing(
    ns: Namespace, octets: int
) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    async with open_queue(0, namespace=ns.name) as queue:
        assert queue.config.max_len == MAX_LEN
        assert isinstance(queue.backend, NetlinkBackend)
        assert queue.backend.receive_buffer_bytes == given_by_default()
        send(ns, MAX_LEN + 1, octets)
        row = ns.queue_row(0)
        assert row is not None
        if given_by_default() == DEFAULT_BYTES:
            assert (row.queue_total, row.user_dropped, row.queue_dropped) == (MAX_LEN, 0, 1)
        else:
            assert row.queue_total + row.user_dropped + row.queue_dropped == MAX_LEN + 1
        received = 0
        while received < row.queue_total:
            batch = await queue.batches().__anext__()
            received += len(batch)
            batch.drop()
        assert queue.statistics().packets_received == row.queue_total


def test_an_adopted_socket_keeps_its_buffer(ns: Namespace) -> None:
    made = ns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
    with closing(NetlinkBackend(fd=made.detach())) as backend:
        assert backend.receive_buffer_bytes == 50_000


def test_a_smaller_buffer_can_be_asked_for(ns: Namespace) -> None:
    with closing(NetlinkBackend(namespace=ns.name, receive_buffer_bytes=50_000)) as backend:
        assert backend.receive_buffer_bytes == 50_000
