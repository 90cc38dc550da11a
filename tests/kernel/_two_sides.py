"""Plays a scenario on a real kernel and on the kernel model, and tells what either did.

The real side is a thread in a network namespace of its own, pinned to one processor: loopback then
keeps the order of packets, so that one more packet, sent last, tells when all others have arrived.
Packets are whole IP packets from a raw socket, so their bytes are known. Nothing sleeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from trionfq import schema
from trionfq._kernel_model import (
    Decision,
    Effect,
    KernelModel,
    KernelSocket,
    PacketIn,
    QueueRow,
)
from trionfq.schema import AnyMessage
from trionfq.schema.nfqueue import NFQA

from ._scenario import CAP_ACK, EXCLUDED_MARK, EXT_ACK, SOL_NETLINK, By, Scenario, datagram

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
NETLINK_NETFILTER = 12
SO_RCVMARK = 75
SO_RCVPRIORITY = 82
PORT = 9999
LOOPBACK_INDEX = 1
FENCE = b"fence"
RECEIVED = NFQA.by_name
libc = ctypes.CDLL(None, use_errno=True)


class Delivered(NamedTuple):
    """A packet that arrived at the receiver."""

    text: bytes
    mark: int
    priority: int | None


class Step(NamedTuple):
    """What one datagram, or the packets after the datagrams, brought about."""

    send_errno: int
    records: tuple[AnyMessage, ...]
    rows: tuple[QueueRow, ...]


class Outcome(NamedTuple):
    """All that can be seen of a scenario from outside the kernel."""

    steps: tuple[Step, ...]
    delivered: tuple[Delivered, ...]


class Traits(NamedTuple):
    """What differs between kernels, found by asking for flags of a queue that nobody has."""

    flags_policy: bool
    conntrack_glue: bool
    secctx: bool


def ip_packet(text: bytes, number: int = 0) -> bytes:
    """A whole UDP/IPv4 packet on loopback, with no UDP checksum."""
    udp = struct.pack(">HHHH", 1000, PORT, 8 + len(text), 0) + text
    address = bytes([127, 0, 0, 1])
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(udp),
        0x1000 + number,
        0x4000,
        64,
        17,
        0,
        address,
        address,
    )
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + udp


def checksum(header: bytes) -> int:
    """The Internet checksum of an IPv4 header."""
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def text_of(packet: bytes) -> bytes | None:
    """What an IPv4 host gives to the receiver of a packet; None where it throws it away."""
    if len(packet) < 28 or checksum(packet[:20]):
        return None
    total, udp_length = (
        struct.unpack_from(">H", packet, 2)[0],
        struct.unpack_from(">H", packet, 24)[0],
    )
    if total > len(packet) or udp_length > total - 20:
        return None
    return packet[28 : 20 + udp_length]


def packets_of(scenario: Scenario, first: int, count: int) -> Iterator[bytes]:
    """The packets that a scenario sends."""
    for number in range(first, first + count):
        yield ip_packet(b"packet %d" % number, number)


def play(
    scenario: Scenario,
    send: Callable[[By, bytes], Step],
    arrive: Callable[[Iterator[bytes]], Step],
) -> Iterator[Step]:
    """The steps of a scenario on one side."""
    for request in scenario.set_up:
        yield send(By.OWNER, request)
    if scenario.packets:
        yield arrive(packets_of(scenario, 1, scenario.packets))
    for request in scenario.requests:
        yield send(scenario.by, request)
    if scenario.late:
        yield arrive(packets_of(scenario, scenario.packets + 1, scenario.late))


class ModelSide:
    """The kernel model in the place of the kernel."""

    def __init__(self, traits: Traits, ids: tuple[int, int]):
        self.traits = traits
        self.uid, self.gid = ids

    def play(self, scenario: Scenario, portids: tuple[int, int], *, priorities: bool) -> Outcome:
        """Plays a scenario with sockets of the same port ids as the real ones."""
        delivered: list[Delivered] = []

        def deliver(packet: PacketIn) -> None:
            text = text_of(packet.payload)
            if text is not None:
                mark = _integer(packet, "mark")
                delivered.append(
                    Delivered(text, mark, _integer(packet, "priority") if priorities else None)
                )

        def decided(decision: Decision) -> None:
            if decision.effect in (Effect.ACCEPTED, Effect.STOPPED) or (
                decision.effect is Effect.REPEATED and decision.arrival is None
            ):
                deliver(decision.packet)

        model = KernelModel(
            **self.traits._asdict(),
            requeue_repeats=lambda packet: _integer(packet, "mark") != EXCLUDED_MARK,
            on_decision=decided,
        )
        owner, stranger = (model.open_socket(portid) for portid in portids)
        for sock in (owner, stranger):
            sock.ext_ack = EXT_ACK in scenario.options
            sock.cap_ack = CAP_ACK in scenario.options

        def step(send_errno: int = 0) -> Step:
            records = tuple(record for sock in (owner, stranger) for record in _drained(sock))
            return Step(send_errno, records, tuple(model.rows()))

        def send(by: By, request: bytes) -> Step:
            sock = stranger if by is By.STRANGER else owner
            sock.privileged = by is not By.UNPRIVILEGED
            try:
                sock.send(request)
            except OSError as error:
                return step(error.errno or 0)
            return step()

        def arrive(packets: Iterator[bytes]) -> Step:
            for payload in packets:
                values = {
                    RECEIVED["ifindex_outdev"].number: LOOPBACK_INDEX,
                    RECEIVED["mark"].number: scenario.mark,
                    RECEIVED["uid"].number: self.uid,
                    RECEIVED["gid"].number: self.gid,
                }
                packet = PacketIn(payload, values=values)
                if model.enqueue(0, packet).fate.passes:
                    deliver(packet)
            return step()

        steps = tuple(play(scenario, send, arrive))
        return Outcome(steps, tuple(delivered))


def _integer(packet: PacketIn, name: str) -> int:
    value = packet.values.get(RECEIVED[name].number, 0)
    assert isinstance(value, int)
    return value


def _drained(sock: KernelSocket) -> Iterator[AnyMessage]:
    while (record := sock.receive()) is not None:
        yield record


class InNamespace:
    """A thread in a new network namespace, which runs what it is given."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.run(_enter_namespace)

    def run(self, function: Callable[[], T]) -> T:
        """What `function` gives when called in the namespace."""
        answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

        def call() -> None:
            try:
                answers.put((True, function()))
            except BaseException as error:
                answers.put((False, error))

        self._work.put(call)
        worked, answer = answers.get()
        if not worked:
            raise answer
        return answer  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the thread, and with it the namespace."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (call := self._work.get()) is not None:
            call()


def _enter_namespace() -> None:
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    up, running = 0x1, 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", up | running)
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


@contextlib.contextmanager
def without_net_admin() -> Generator[None]:
    """This thread, for a while without CAP_NET_ADMIN among its effective capabilities."""
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before = ctypes.create_string_buffer(24)
    if libc.capget(header, before):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("6I", before.raw))
    words[0] &= ~(1 << 12)
    if libc.capset(header, struct.pack("6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        if libc.capset(header, before.raw):
            raise OSError(ctypes.get_errno(), "capset")


class RealSide:
    """The kernel; every method runs in the namespace's thread."""

    def __init__(self) -> None:
        iptables = shutil.which("iptables", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if iptables is None:
            raise FileNotFoundError("iptables")
        rule = f"-w -A OUTPUT -p udp --dport {PORT} -m mark ! --mark {EXCLUDED_MARK} -j NFQUEUE"
        done = subprocess.run(
            [iptables, *rule.split(), "--queue-num", "0"], capture_output=True, text=True
        )
        if done.returncode:
            raise PermissionError(errno.EPERM, done.stderr.strip())
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", PORT))
        self.receiver.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        self.receiver.settimeout(10)
        try:
            self.receiver.setsockopt(socket.SOL_SOCKET, SO_RCVPRIORITY, 1)
            self.priorities = True
        except OSError:
            self.priorities = False  # older than 6.14
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def close(self) -> None:
        """Closes what stays open between scenarios."""
        self.receiver.close()
        self.sender.close()

    def traits(self) -> Traits:
        """What this kernel is like."""

        def answer(flag: int) -> int:
            request = datagram(
                "24000000 0203 0500 01000000 00000000 | 00 00 0000 | "
                f"0800 0400 {flag:08x} | 0800 0500 {flag:08x}"
            )
            with _netlink(()) as sock:
                sock.send(request)
                return -int(struct.unpack_from("=i", sock.recv(1 << 16), 16)[0])

        return Traits(
            flags_policy=answer(0x20) == errno.EINVAL,
            conntrack_glue=answer(0x02) == errno.ENODEV,
            secctx=answer(0x10) == errno.ENODEV,
        )

    def play(self, scenario: Scenario) -> tuple[Outcome, tuple[int, int]]:
        """Plays a scenario; also gives the port ids of owner and stranger."""
        with _netlink(scenario.options) as owner, _netlink(scenario.options) as stranger:

            def step(send_errno: int = 0) -> Step:
                records = tuple(r for sock in (owner, stranger) for r in _received(sock))
                return Step(send_errno, records, rows())

            def send(by: By, request: bytes) -> Step:
                sock = stranger if by is By.STRANGER else owner
                privilege = without_net_admin if by is By.UNPRIVILEGED else contextlib.nullcontext
                try:
                    with privilege():
                        sock.send(request)
                except OSError as error:
                    return step(error.errno or 0)
                return step()

            def arrive(packets: Iterator[bytes]) -> Step:
                self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, scenario.mark)
                for packet in packets:
                    self.sender.sendto(packet, ("127.0.0.1", 0))
                return step()

            steps = tuple(play(scenario, send, arrive))
            delivered = tuple(self._delivered())
            portids = (owner.getsockname()[0], stranger.getsockname()[0])
        return Outcome(steps, delivered), portids

    def _delivered(self) -> Iterator[Delivered]:
        self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, EXCLUDED_MARK)
        self.sender.sendto(ip_packet(FENCE), ("127.0.0.1", 0))
        while True:
            text, ancillary, _flags, _address = self.receiver.recvmsg(1 << 16, 256)
            if text == FENCE:
                return
            told = {kind: struct.unpack("I", value)[0] for _level, kind, value in ancillary}
            yield Delivered(text, told.get(socket.SO_MARK, 0), self._priority(told))

    def _priority(self, told: dict[int, int]) -> int | None:
        return told.get(socket.SO_PRIORITY, 0) if self.priorities else None


@contextlib.contextmanager
def _netlink(options: tuple[int, ...]) -> Generator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        for option in options:
            sock.setsockopt(SOL_NETLINK, option, 1)
        yield sock


def _received(sock: socket.socket) -> Iterator[AnyMessage]:
    while True:
        try:
            received = sock.recv(1 << 17, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        yield from schema.parse(received)


def rows() -> tuple[QueueRow, ...]:
    """The namespace's queues, as /proc lists them for this thread."""
    text = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    return tuple(QueueRow(*map(int, line.split()[:8])) for line in text.splitlines())


def outer_ids() -> tuple[int, int]:
    """This process's user and group id as the initial user namespace knows them."""

    def outer(path: str, own: int) -> int:
        for line in Path(path).read_text().splitlines():
            inside, outside, count = map(int, line.split())
            if inside <= own < inside + count:
                return outside + own - inside
        return 65534

    return outer("/proc/self/uid_map", os.geteuid()), outer("/proc/self/gid_map", os.getegid())
