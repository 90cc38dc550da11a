"""How one run of one subject is measured: from outside, so that no program measures itself.

The kernel's row in /proc tells how many packets a queue has answered (its id sequence less what it
holds), and a process's own CPU clock, read from here, what that cost: the user and system time of
all its threads that getrusage would give, and with them the softirqs that its verdicts cause.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .rows import BUILD, DEEP_SEND_BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .rows import Job, Load, Row, Subject

PROGRAM_CORE = 0
SENDER_CORE = 1
UDP_PORT = 9
_CLONE_NEWNET = 0x40000000
_QUEUE_TABLE = Path("/proc/net/netfilter/nfnetlink_queue")
_START_S = 20.0
_WARM_UP_S = 0.2
_LONGEST_FLOOD_S = 400
_PING_GAP_US = 1000
_REPLAYED_A_SECOND = 20_000  # packets in the recording for each second of measuring


class MeasuringError(Exception):
    """A run that gave no number."""


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


class Sample(NamedTuple):
    """What a program had done, and used, at one time."""

    state: QueueState
    cpu_ns: int
    at_ns: int

    @property
    def answered(self) -> int:
        """Packets that have their verdict."""
        return self.state.sequence - self.state.waiting - self.state.user_dropped


class Run(NamedTuple):
    """One run's numbers, by unit; and packets that found no room."""

    values: dict[str, float]
    lost: int


def enter_own_namespace() -> socket.socket:
    """Move into a new network namespace whose traffic goes to queue 0; the socket is its sink."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise MeasuringError(f"a network namespace of its own: {os.strerror(code)}; run as root")
    for command in (
        "ip link set lo up",
        f"iptables -A OUTPUT -p udp --dport {UDP_PORT} -j NFQUEUE --queue-num 0",
        "iptables -A OUTPUT -p icmp -j NFQUEUE --queue-num 0",
    ):
        subprocess.run(command.split(), check=True)
    # Bound, so that no ICMP errors come back; never read, so that it costs next to nothing.
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sink.bind(("127.0.0.1", UDP_PORT))
    return sink


def queue_state() -> QueueState | None:
    """The state of queue 0, None while nobody has bound it."""
    with suppress(FileNotFoundError):
        for line in _QUEUE_TABLE.read_text().splitlines():
            return QueueState(*map(int, line.split()))
    return None


def _child(command: list[str], core: int) -> subprocess.Popen[str]:
    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        # Ahead of whatever else runs on this machine, where that is allowed. With autogroups a
        # nice value counts within a session only, and sessions have one of their own.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
            Path("/proc/self/autogroup").write_text("-20")

    return subprocess.Popen(
        command,
        preexec_fn=prepare,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _stop(child: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGKILL)
    child.communicate()


@contextmanager
def _running(command: list[str], core: int) -> Iterator[subprocess.Popen[str]]:
    child = _child(command, core)
    try:
        yield child
    finally:
        _stop(child)


@contextmanager
def _subject(subject: Subject, job: Job, load: Load) -> Iterator[subprocess.Popen[str]]:
    """The program, once it has bound its queue and holds what it shall hold."""
    with _running(subject.command(job, load), PROGRAM_CORE) as child:
        _wait_until(lambda: queue_state() is not None, child, subject)
        if job.held:
            subprocess.run([str(BUILD / "traffic"), "prime", str(job.held)], check=True)
            _wait_until(lambda: _waiting() == job.held, child, subject)
        yield child
    _wait_until(lambda: queue_state() is None, None, subject)


def _waiting() -> int:
    state = queue_state()
    return -1 if state is None else state.waiting


def _wait_until(
    true: Callable[[], bool], child: subprocess.Popen[str] | None, subject: Subject
) -> None:
    deadline = time.monotonic() + _START_S
    while not true():
        if child is not None and child.poll() is not None:
            raise MeasuringError(f"{subject.name} ended: {child.communicate()[1][-2000:]}")
        if time.monotonic() > deadline:
            raise MeasuringError(f"{subject.name} was not ready within {_START_S} s")
        time.sleep(0.002)


def _sample(child: subprocess.Popen[str]) -> Sample:
    state = queue_state()
    if state is None:
        raise MeasuringError(f"the program ended: {child.communicate()[1][-2000:]}")
    # CPUCLOCK_SCHED of a process (MAKE_PROCESS_CPUCLOCK, include/linux/posix-timers_types.h).
    cpu_ns = time.clock_gettime_ns(~child.pid << 3 | 2)
    return Sample(state, cpu_ns, time.monotonic_ns())


def _flood(job: Job, load: Load) -> list[str]:
    sndbuf = DEEP_SEND_BUFFER if load == "deep backlog" else 0
    arguments = ["flood", str(job.size), str(sndbuf), str(_LONGEST_FLOOD_S)]
    return [str(BUILD / "traffic"), *arguments]


def measure(row: Row, subject: Subject, seconds: float) -> Run:
    """Measure one run.

    Raises:
      MeasuringError: the program did not do what it should.
    """
    if row.kind == "ping":
        return _measure_ping(row, subject, seconds)
    if row.kind == "replay":
        return _measure_replay(row, subject, seconds)
    with (
        _subject(subject, row.job, row.load) as child,
        _running(_flood(row.job, row.load), SENDER_CORE) as sender,
    ):
        if row.kind == "memory":
            return _measure_memory(child)
        time.sleep(_WARM_UP_S)
        if sender.poll() is not None:
            raise MeasuringError(f"the sender ended: {sender.communicate()[1]}")
        before = _sample(child)
        time.sleep(seconds)
        after = _sample(child)
    packets = after.answered - before.answered
    if packets < 1:
        raise MeasuringError(f"{subject.name} answered nothing")
    lost = after.state.dropped + after.state.user_dropped
    return Run(
        {
            "us/packet": (after.cpu_ns - before.cpu_ns) / packets / 1e3,
            "packets/s": packets / (after.at_ns - before.at_ns) * 1e9,
        },
        lost,
    )


def _measure_ping(row: Row, subject: Subject, seconds: float) -> Run:
    count = int(seconds * 1e6 / (_PING_GAP_US + 200))
    with _subject(subject, row.job, row.load):
        ping = [str(BUILD / "traffic"), "ping", str(count), str(_PING_GAP_US)]
        with _running(ping, SENDER_CORE) as child:
            out, err = child.communicate(timeout=_LONGEST_FLOOD_S)
            if child.returncode:
                raise MeasuringError(f"{subject.name}: {err}")
    times = sorted(int(line) / 1e3 for line in out.split())
    # The first ones find cold caches; sorting has mixed them in, and they are few.
    values = {
        f"us round trip p{percent}": times[min(len(times) - 1, len(times) * percent // 100)]
        for percent in (50, 99)
    }
    return Run(values, 0)


def _measure_replay(row: Row, subject: Subject, seconds: float) -> Run:
    """The one program that takes its own time: there is no kernel that could be asked."""
    command = [*subject.command(row.job, row.load), str(int(_REPLAYED_A_SECOND * seconds))]
    with _running(command, PROGRAM_CORE) as child:
        out, err = child.communicate(timeout=_LONGEST_FLOOD_S)
        if child.returncode:
            raise MeasuringError(f"{subject.name}: {err[-2000:]}")
    return Run({"packets per second of CPU": float(out)}, 0)


def _measure_memory(child: subprocess.Popen[str]) -> Run:
    """Resident memory after one and after ten million packets."""
    values = {}
    for millions in (1, 10):
        deadline = time.monotonic() + _LONGEST_FLOOD_S / 2
        while _sample(child).answered < millions * 1_000_000:
            if time.monotonic() > deadline:
                raise MeasuringError(f"{millions} million packets took too long")
            time.sleep(0.05)
        values[f"MiB after {millions} million"] = _resident_kib(child) / 1024
    return Run(values, 0)


def _resident_kib(child: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{child.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])
