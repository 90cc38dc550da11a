"""What the tests of live queues share: sockets around a rule, packets taken, programs of their own.

A namespace's queue is opened by ``open_queue(n, namespace=ns.name)`` from the test's own thread.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import trio

from trionfq import NetlinkBackend, Packet, Queue, schema

from ._patience import patient
from .harness import Namespace, drain, in_user_namespace, receive

PORT = 5000
LOSE_PRIVILEGE = """
def lose_privilege(how):
    import ctypes, os, struct
    if how == "setresuid":
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    sets = list(struct.unpack("=6I", data.raw))
    sets[:3] = [low & ~(1 << 12) for low in sets[:3]]  # CAP_NET_ADMIN
    assert libc.capset(header, struct.pack("=6I", *sets)) == 0
"""
"""For the text of a program: gives CAP_NET_ADMIN away, alone or with its user."""

RUN_UNTIL_INTERRUPTED = """
import time, trio
try:
    trio.run(main, restrict_keyboard_interrupt_to_checkpoints=RESTRICT)
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)  # one clock for all processes
    raise
"""
"""For the end of a program's text: says when an interrupt had ended the run.

The interpreter takes its time to go after that, the longer the busier the machine.
"""

LIMIT_S = 20.0
"""How long what must come is waited for, on a machine of usual speed: for functions of the harness,
which know how slow this one is."""

PATIENCE_S = patient(LIMIT_S)
"""The same on this machine."""


def data_of(packet: Packet) -> bytes:
    """What the packet's UDP datagram carries."""
    payload = packet.payload
    offset = packet.ip.transport_offset
    assert offset is not None
    return payload[offset + 8 :]


def with_data(packet: Packet, data: bytes) -> bytes:
    """The packet's payload with another datagram in it, its headers as they are."""
    return packet.payload.removesuffix(data_of(packet)) + data


async def take(queue: Queue, count: int) -> list[Packet]:
    """The next packets, undecided."""
    with trio.fail_after(PATIENCE_S):
        return [await queue.receive() for _ in range(count)]


class Udp:
    """A sender and a receiver of datagrams.

    Args:
      sender: namespace to send from.
      receiver: namespace to receive in; the same if None.
      address: of the receiver.
      port: likewise.
    """

    def __init__(
        self,
        sender: Namespace,
        receiver: Namespace | None = None,
        address: str = "127.0.0.1",
        port: int = PORT,
    ) -> None:
        self.destination = (address, port)
        self.receiver = (receiver or sender).udp(address, port)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sender = sender.socket(family, socket.SOCK_DGRAM)
        self.sender.settimeout(PATIENCE_S)
        # Twice the machine's limit is room for 550 small packets, in the receiver and on the way:
        # what a queue holds stays charged to the sender.
        self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def send(self, *datagrams: bytes) -> None:
        """Send datagrams, in order."""
        for datagram in datagrams:
            self.sender.sendto(datagram, self.destination)

    async def receive(self, count: int) -> list[bytes]:
        """The next datagrams that arrive."""
        return [await receive(self.receiver, timeout_s=LIMIT_S) for _ in range(count)]

    def waiting(self) -> list[bytes]:
        """The datagrams that have arrived and were not received."""
        return drain(self.receiver)


class Behind:
    """A netlink socket behind something that does as it does, but for what a subclass changes."""

    def __init__(self, inner: NetlinkBackend) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Listening(Behind):
    """Notes what is sent.

    Attributes:
      sent: every datagram.
    """

    def __init__(self, inner: NetlinkBackend) -> None:
        super().__init__(inner)
        self.sent: list[bytes] = []

    def send_nowait(self, datagram: bytes) -> None:
        self.sent.append(datagram)
        self.inner.send_nowait(datagram)

    def messages(self) -> list[list[schema.Message]]:
        """The messages of each datagram."""
        return [
            [message for message in schema.parse(datagram) if isinstance(message, schema.Message)]
            for datagram in self.sent
        ]


def raw_udp(
    source: str, destination: str, data: bytes, *, port: int = PORT, identification: int = 0x1234
) -> bytes:
    """A whole IPv4 packet with a UDP datagram, all checksums right.

    Made without the project's own code, which tests compare it with.
    """
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    length = 8 + len(data)
    header = struct.pack("!HHHH", 40_000, port, length, 0)
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    checksum = _checksum(pseudo + header + data) or 0xFFFF
    header = header[:6] + checksum.to_bytes(2, "big")
    start = struct.pack(
        "!BBHHHBBH", 0x45, 0, 20 + length, identification, 0, 64, socket.IPPROTO_UDP, 0
    )
    checksum = _checksum(start + addresses)
    return start[:10] + checksum.to_bytes(2, "big") + addresses + header + data


def _checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


@contextmanager
def program(ns: Namespace, text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that runs in the namespace beside the test; killed at the end.

    It imports what the test imports, reads nothing but its arguments unless the test writes to
    its standard input, and what it prints is the test's to read.
    """
    here = os.sched_getaffinity(0)
    use_all_processors()
    process = ns.popen(
        [sys.executable, "-W", "error", "-c", text, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])])},
    )
    os.sched_setaffinity(0, here)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def say(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to a program's standard input."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def use_all_processors() -> None:
    """Undo the fixture ``one_cpu`` for what this test starts from here on."""
    count = os.cpu_count()
    assert count is not None
    os.sched_setaffinity(0, range(count))


@contextmanager
def preferred(*processes: int) -> Iterator[None]:
    """Let processes run before those of others on this machine, where this one may ask for that."""
    if in_user_namespace():
        yield
        return
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    for process in processes:
        os.setpriority(os.PRIO_PROCESS, process, -15)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def open_descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a program prints, without its end.

    Raises:
      AssertionError: it ended instead; the text has what it wrote to standard error.
    """
    output: IO[Any] | None = process.stdout
    assert output is not None
    with trio.fail_after(PATIENCE_S):
        line: str = await trio.to_thread.run_sync(output.readline, abandon_on_cancel=True)
    if not line:
        assert process.stderr is not None
        raise AssertionError(f"the program ended: {process.stderr.read()}")
    return line.rstrip("\n")


async def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and the rest of what a program prints to both outputs, when it ends."""
    with trio.fail_after(PATIENCE_S):
        output, errors = await trio.to_thread.run_sync(process.communicate, abandon_on_cancel=True)
    return process.returncode, output, errors
