"""The real kernel as a `Bench`, in a network namespace of its own.

The namespace belongs to one thread, pinned to one processor: loopback then keeps the order of
packets, so that one more packet, sent last, tells when all others have arrived. Packets are whole
IP packets from a raw socket, so their bytes are known. Nothing sleeps.
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
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from trionfq import schema
from trionfq._kernel_model import QueueRow
from trionfq.schema import AnyMessage

from ._bench import LOST, PORT, Delivered, Traits, ip_packet
from ._scenario import EXCLUDED_MARK, SOL_NETLINK, By, datagram

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
NETLINK_NETFILTER = 12
NETLINK_NO_ENOBUFS = 5
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
SO_MEMINFO = 55
SO_RCVMARK = 75
SO_RCVPRIORITY = 82
FENCE = b"fence"
libc = ctypes.CDLL(None, use_errno=True)


class InNamespace:
    """A thread in a new network namespace, which runs what it is given."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        try:
            self.run(_enter_namespace)
        except BaseException:
            self.close()
            raise

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
        """End the thread, and with it the namespace."""
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
    set_loopback(up=True)


def set_loopback(*, up: bool) -> None:
    """Switch this namespace's loopback device."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP if up else 0))


def iptables(rule: str) -> None:
    """Change this namespace's rules.

    Raises:
      FileNotFoundError: there is no iptables.
      PermissionError: the kernel does not take the rule.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which("iptables", path=path)
    if program is None:
        raise FileNotFoundError("iptables")
    done = subprocess.run([program, "-w", *rule.split()], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(errno.EPERM, done.stderr.strip())


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


class RealNamespace:
    """Rule, sender and receiver; all methods run in the namespace's thread."""

    def __init__(self) -> None:
        condition = f"-p udp --dport {PORT} -m mark ! --mark {EXCLUDED_MARK}"
        iptables(f"-A OUTPUT {condition} -j NFQUEUE --queue-num 0")
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
        """Close what stays open between tests."""
        self.receiver.close()
        self.sender.close()

    def traits(self) -> Traits:
        """What this kernel is like, found by asking for flags of a queue that nobody has."""

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

    def send(self, packets: Iterable[bytes], mark: int) -> None:
        """Send whole IP packets."""
        self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        for packet in packets:
            self.sender.sendto(packet, ("127.0.0.1", 0))

    def delivered(self) -> Iterator[Delivered]:
        """What arrived, up to a packet that the rule leaves alone."""
        self.send([ip_packet(FENCE)], EXCLUDED_MARK)
        while True:
            text, ancillary, _flags, _address = self.receiver.recvmsg(1 << 16, 256)
            if text == FENCE:
                return
            told = {kind: struct.unpack("I", value)[0] for _level, kind, value in ancillary}
            priority = told.get(socket.SO_PRIORITY, 0) if self.priorities else None
            yield Delivered(text, told.get(socket.SO_MARK, 0), priority)


class RealBench:
    """See `Bench`; lives in the namespace's thread, for one test."""

    def __init__(
        self, namespace: RealNamespace, owner: socket.socket, stranger: socket.socket
    ) -> None:
        self._namespace = namespace
        self._owner = owner
        self._stranger = stranger

    @property
    def portids(self) -> tuple[int, int]:
        return self._owner.getsockname()[0], self._stranger.getsockname()[0]

    def send(self, by: By, request: bytes) -> int:
        sock = self._stranger if by is By.STRANGER else self._owner
        privilege = without_net_admin if by is By.UNPRIVILEGED else contextlib.nullcontext
        try:
            with privilege():
                sock.send(request)
        except OSError as error:
            return error.errno or -1
        return 0

    def arrive(self, packets: Iterable[bytes], *, mark: int = 0) -> None:
        self._namespace.send(packets, mark)

    def receive(self, limit: int | None = None) -> list[AnyMessage | str]:
        return [r for sock in (self._owner, self._stranger) for r in _received(sock, limit)]

    def rows(self) -> tuple[QueueRow, ...]:
        text = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
        return tuple(QueueRow(*map(int, line.split()[:8])) for line in text.splitlines())

    def delivered(self) -> tuple[Delivered, ...]:
        return tuple(self._namespace.delivered())

    def drops(self) -> int:
        return self._memory()[8]

    def occupied(self) -> int:
        """Bytes that the owner's receive buffer holds."""
        return self._memory()[0]

    def set_receive_buffer(self, size: int) -> int:
        """Bytes that the kernel then allows."""
        self._owner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        return self._owner.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def set_no_enobufs(self) -> None:
        self._owner.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)

    def loopback_down_and_up(self) -> None:
        set_loopback(up=False)
        set_loopback(up=True)

    def hook_comes_and_goes(self) -> None:
        """A table of another family: its hook has nothing to do with the packets."""
        register, unregister = _hook_requests()
        with _netlink(()) as sock:
            for request in (register, unregister):
                sock.send(request)
                for answer in _received(sock, None):
                    assert isinstance(answer, schema.ErrorMessage)
                    assert answer.error == 0

    def _memory(self) -> tuple[int, ...]:
        return struct.unpack("9I", self._owner.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))


@contextlib.contextmanager
def real_bench(namespace: RealNamespace, options: tuple[int, ...]) -> Generator[RealBench]:
    """A bench with new sockets."""
    with _netlink(options) as owner, _netlink(options) as stranger:
        yield RealBench(namespace, owner, stranger)


@contextlib.contextmanager
def _netlink(options: tuple[int, ...]) -> Generator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        for option in options:
            sock.setsockopt(SOL_NETLINK, option, 1)
        yield sock


def _received(sock: socket.socket, limit: int | None) -> Iterator[AnyMessage | str]:
    while limit is None or limit > 0:
        try:
            received = sock.recv(1 << 17, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield LOST
            continue
        yield from schema.parse(received)
        limit = None if limit is None else limit - 1


def _hook_requests() -> tuple[bytes, bytes]:
    """Datagrams for nf_tables: make an IPv6 table with an output chain; delete the table."""
    begin = "14000000 1000 0100 01000000 00000000 | 00 00 000a | "
    end = " | 14000000 1100 0100 05000000 00000000 | 00 00 000a"
    table = " | 0a00 0100 6f7468657200 0000"  # name "other"
    new_table = f"20000000 000a 0504 02000000 00000000 | 0a 00 0000{table} | "
    new_chain = (
        f"48000000 030a 0504 03000000 00000000 | 0a 00 0000{table} | "
        "0600 0300 6300 0000 | "  # name "c"
        "1400 0480 | 0800 0100 00000003 | 0800 0200 00000000 | "  # output, priority 0
        "0b00 0700 66696c74657200 00"  # type "filter"
    )
    delete_table = f"20000000 020a 0500 02000000 00000000 | 0a 00 0000{table}"
    return datagram(begin + new_table + new_chain + end), datagram(begin + delete_table + end)


def outer_ids() -> tuple[int, int]:
    """This process's user and group id as the initial user namespace knows them."""

    def outer(path: str, own: int) -> int:
        for line in Path(path).read_text().splitlines():
            inside, outside, count = map(int, line.split())
            if inside <= own < inside + count:
                return outside + own - inside
        return 65534

    return outer("/proc/self/uid_map", os.geteuid()), outer("/proc/self/gid_map", os.getegid())
