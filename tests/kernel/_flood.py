"""The program of a `UdpSender` or `UdpReceiver`: numbered datagrams, sent or counted.

A process of its own, for a thread would wait for the interpreter lock that the program under test
holds, up to 5 ms for each datagram. It runs without the project and without site-packages, so that
it starts in some 10 ms. It works until standard input ends.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from typing import Any

NUMBER = struct.Struct("!Q")

# Counters that both processes see: 64-bit, at these places.
SENT, REFUSED, ELAPSED_NS = 0, 1, 2
RECEIVED, DUPLICATES, REORDERED, SHORT = 0, 1, 2, 3

FORCE = {"SO_SNDBUF": 32, "SO_RCVBUF": 33}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
SO_MEMINFO = 55
SK_MEMINFO_DROPS = 8


def _socket(options: dict[str, Any], name: str) -> socket.socket:
    made = socket.socket(options["family"], socket.SOCK_DGRAM)
    made.setblocking(False)
    octets = options["buffer_octets"]
    try:  # beyond the machine's limit, where this process may
        made.setsockopt(socket.SOL_SOCKET, FORCE[name], octets)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, getattr(socket, name), octets)
    return made


def _ready() -> None:
    print("ready", flush=True)


def send(options: dict[str, Any], counters: memoryview) -> dict[str, Any]:
    """Send numbers from 0 on at a steady mean rate, or as fast as possible."""
    # A virtual device hands packets on by a list of the sending processor: a sender that moves to
    # another one would overtake itself.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sock = _socket(options, "SO_SNDBUF")
    if options["source"]:
        sock.bind(tuple(options["source"]))
    destination = tuple(options["destination"])
    padding = bytes(options["payload_octets"] - NUMBER.size)
    rate, limit = options["rate"], options["limit"]
    stop = select.poll()
    stop.register(sys.stdin, select.POLLIN | select.POLLHUP)
    both = select.poll()
    both.register(sys.stdin, select.POLLIN | select.POLLHUP)
    both.register(sock, select.POLLOUT)
    sent = refused = 0
    pack = NUMBER.pack
    _ready()
    start = time.monotonic_ns()
    while limit is None or sent < limit:
        if rate is None:
            due = 64
        else:
            due = min(64, int((time.monotonic_ns() - start) * rate / 1e9) + 1 - sent)
        if limit is not None:
            due = min(due, limit - sent)
        full = False
        for _ in range(due):
            try:
                sock.sendto(pack(sent) + padding, destination)
            except BlockingIOError:
                full = True
                break
            except OSError:  # a rule's refusal, or no memory: this number counts as not sent
                refused += 1
                continue
            sent += 1
        counters[SENT] = sent
        counters[REFUSED] = refused
        counters[ELAPSED_NS] = time.monotonic_ns() - start
        if full:
            ended = any(fd == sys.stdin.fileno() for fd, _ in both.poll())
        else:
            ended = bool(stop.poll(0 if due >= 64 or rate is None else 1))
        if ended:
            break
    return {}


def _gaps(seen: bytearray, most: int) -> list[tuple[int, int]]:
    gaps: list[tuple[int, int]] = []
    at = seen.find(0)
    while at >= 0 and len(gaps) < most:
        end = seen.find(1, at)
        end = len(seen) if end < 0 else end
        gaps.append((at, end - 1))
        at = seen.find(0, end)
    return gaps


def receive(options: dict[str, Any], counters: memoryview) -> dict[str, Any]:
    """Count numbers, each once, and what came twice or late."""
    sock = _socket(options, "SO_RCVBUF")
    sock.bind(tuple(options["source"]))
    both = select.poll()
    both.register(sys.stdin, select.POLLIN | select.POLLHUP)
    both.register(sock, select.POLLIN)
    seen = bytearray()
    received = duplicates = reordered = short = 0
    buffer = bytearray(65536)
    take = sock.recv_into
    _ready()
    ending = False
    while True:
        try:
            for _ in range(256):
                if take(buffer) < NUMBER.size:
                    short += 1
                    continue
                (number,) = NUMBER.unpack_from(buffer)
                if number >= len(seen):
                    seen.extend(bytes(number + 1 - len(seen)))
                elif seen[number]:
                    duplicates += 1
                    continue
                else:
                    reordered += 1
                seen[number] = 1
                received += 1
            empty = False
        except BlockingIOError:
            empty = True
        counters[RECEIVED] = received
        counters[DUPLICATES] = duplicates
        counters[REORDERED] = reordered
        counters[SHORT] = short
        if empty and ending:
            break
        if empty:
            ending = any(fd == sys.stdin.fileno() for fd, _ in both.poll())
    meminfo = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
    (drops,) = struct.unpack_from("=I", meminfo, 4 * SK_MEMINFO_DROPS)
    return {"socket_drops": drops, "highest": len(seen) - 1, "gaps": _gaps(seen, 20)}


def main() -> None:
    """Do what the JSON in the first argument says, then print a report as JSON."""
    options = json.loads(sys.argv[1])
    do = {"send": send, "receive": receive}[options["do"]]
    with mmap.mmap(options["counters"], 4096) as shared, memoryview(shared).cast("Q") as counters:
        report = do(options, counters)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
