"""The networks in which is measured: namespaces of the benchmarks' own, gone when they end."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .processes import MeasuringError, cores, running

if TYPE_CHECKING:
    from collections.abc import Iterator

UDP_PORT = 9
NEAR, FAR = "10.9.0.1", "10.9.0.2"
_CLONE_NEWNET = 0x40000000
_QUEUE_TABLE = Path("/proc/net/netfilter/nfnetlink_queue")
_COMMAND_S = 20.0


class QueueState(NamedTuple):
    """A line of /proc/net/netfilter/nfnetlink_queue."""

    number: int
    port_id: int
    waiting: int
    copy_mode: int
    copy_range: int
    dropped: int
    user_dropped: int
    sequence: int
    one: int

    @property
    def answered(self) -> int:
        """Packets that have their verdict."""
        return self.sequence - self.waiting - self.user_dropped


def queue_states() -> dict[int, QueueState]:
    """The queues that somebody has bound, by number."""
    with suppress(FileNotFoundError):
        lines = _QUEUE_TABLE.read_text().splitlines()
        states = [QueueState(*map(int, line.split())) for line in lines]
        return {state.number: state for state in states}
    return {}


def run(command: str) -> None:
    """Run a command that changes the network.

    Raises:
      MeasuringError: it failed; with what it said.
    """
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=_COMMAND_S)
    if done.returncode:
        raise MeasuringError(f"{command}: {done.stderr.strip() or done.returncode}")


def enter_own_namespace() -> socket.socket:
    """Move into a new network namespace whose traffic goes to queue 0; the socket is its sink.

    Raises:
      MeasuringError: it cannot be made, or the kernel has no NFQUEUE target.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise MeasuringError(f"a network namespace of its own: {os.strerror(code)}; run as root")
    run("ip link set lo up")
    run(f"iptables -A OUTPUT -d 127.0.0.1 -p udp --dport {UDP_PORT} -j NFQUEUE --queue-num 0")
    run("iptables -A OUTPUT -p icmp -j NFQUEUE --queue-num 0")
    # Bound, so that no ICMP errors come back; never read, so that it costs next to nothing.
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sink.bind(("", UDP_PORT))
    return sink


@contextmanager
def rule(text: str) -> Iterator[None]:
    """A rule of the OUTPUT chain while the block runs."""
    run(f"iptables -A OUTPUT {text}")
    try:
        yield
    finally:
        run(f"iptables -D OUTPUT {text}")


@contextmanager
def far_end(queue: int) -> Iterator[list[str]]:
    """A namespace behind a veth pair, and how a command is started in it.

    TCP that is sent there from here passes ``queue``, unless nobody has bound it.
    """
    program_core, _ = cores()
    own = os.readlink("/proc/self/ns/net")
    with running(["unshare", "--net", "sleep", "3600"], program_core, realtime=False) as holder:
        deadline = time.monotonic() + _COMMAND_S
        there = f"/proc/{holder.pid}/ns/net"
        while os.readlink(there) == own:
            if holder.ended or time.monotonic() > deadline:
                raise MeasuringError(f"a second network namespace: {holder.errors()}")
            time.sleep(0.002)
        inside = ["nsenter", f"--net={there}"]
        run(f"ip link add bench0 type veth peer name bench1 netns {holder.pid}")
        for prefix, address, device in (("", NEAR, "bench0"), (" ".join(inside), FAR, "bench1")):
            run(f"{prefix} ip address add {address}/24 dev {device}".strip())
            run(f"{prefix} ip link set {device} up".strip())
        with rule(f"-o bench0 -p tcp -j NFQUEUE --queue-num {queue} --queue-bypass"):
            yield inside
        run("ip link delete bench0")
