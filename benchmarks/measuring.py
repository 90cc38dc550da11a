"""How one run of one subject is measured: from outside, so that no program measures itself.

The kernel's row in /proc tells how many packets a queue has answered (its id sequence less what it
holds), and a process's own CPU clock, read from here, what that cost: the user and system time of
all its threads that getrusage would give, and with them the softirqs that its verdicts cause.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .network import QueueState, queue_states
from .processes import MeasuringError, StarvedError, cores, running
from .rows import BUILD, DEEP_SEND_BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .processes import Child
    from .rows import Row, Subject

TRAFFIC = str(BUILD / "traffic")
LONGEST_S = 400
_START_S = 20.0
_WARM_UP_S, _WARM_UP_PACKETS = 0.1, 2000
_PING_GAP_US = 1000
_MEMORY_S = 200.0
# Packets in the recording for each second of measuring.
_REPLAYED_A_SECOND = {"sample": 150_000, "all": 30_000}


class Sample(NamedTuple):
    """What a program had done, and used, at one time."""

    state: QueueState
    cpu_ns: int
    at_ns: int


class Run(NamedTuple):
    """One run's numbers, by unit; and packets that found no room."""

    values: dict[str, float]
    lost: int = 0


def measure_cpu(row: Row, subject: Subject, seconds: float) -> Run:
    """CPU time a packet, and packets a second, under a flood.

    Raises:
      MeasuringError: the program or the sender did not do what it should; so for all that follow.
    """
    with answering(row, subject) as child, flooding(row) as sender:
        wait_until(lambda: _answered() >= _WARM_UP_PACKETS, subject.name, child, sender)
        time.sleep(_WARM_UP_S)
        before, sent_before_ns = _sample(child, sender), sender.cpu_ns()
        time.sleep(seconds)
        after, sent_after_ns = _sample(child, sender), sender.cpu_ns()
    packets = after.state.answered - before.state.answered
    if packets < 1:
        if sent_after_ns == sent_before_ns:
            raise StarvedError("the sender got no processor time")
        used_ms = (after.cpu_ns - before.cpu_ns) / 1e6
        raise MeasuringError(
            f"{subject.name} answered nothing, with {after.state.waiting} packets waiting and"
            f" {used_ms:.0f} ms of CPU used"
        )
    return Run(
        {
            "us/packet": (after.cpu_ns - before.cpu_ns) / packets / 1e3,
            "packets/s": packets / (after.at_ns - before.at_ns) * 1e9,
        },
        after.state.dropped + after.state.user_dropped,
    )


def measure_ping(row: Row, subject: Subject, seconds: float) -> Run:
    """Round trips of single packets, one after the other."""
    count = int(seconds * 1e6 / (_PING_GAP_US + 200))
    with (
        answering(row, subject),
        running([TRAFFIC, "ping", str(count), str(_PING_GAP_US)], cores()[1]) as child,
    ):
        out = child.output(_START_S + 10 * seconds)
    times = sorted(int(line) / 1e3 for line in out.split())
    # The first ones find cold caches; sorting has mixed them in, and they are few.
    values = {
        f"us round trip p{percent}": times[min(len(times) - 1, len(times) * percent // 100)]
        for percent in (50, 99)
    }
    return Run(values)


def measure_replay(row: Row, subject: Subject, seconds: float) -> Run:
    """The one program that takes its own time: there is no kernel that could be asked."""
    count = int(_REPLAYED_A_SECOND[subject.how] * seconds)
    with running([*subject.command(row.job, row.load), str(count)], cores()[0]) as child:
        return Run({"packets per second of CPU": float(child.output(_START_S + 30 * seconds))})


def measure_memory(row: Row, subject: Subject, seconds: float) -> Run:  # noqa: ARG001
    """Resident memory after one and after ten million packets."""
    resident = []
    with answering(row, subject) as child, flooding(row) as sender:
        for millions in (1, 10):
            deadline = time.monotonic() + _MEMORY_S
            while _sample(child, sender).state.answered < millions * 1_000_000:
                if time.monotonic() > deadline:
                    raise MeasuringError(f"{millions} million packets took too long")
                time.sleep(0.05)
            resident.append(child.resident_kib() / 1024)
    first, last = resident
    return Run(
        {"MiB more after 10 than after 1 million": last - first, "MiB after 10 million": last}
    )


@contextmanager
def answering(row: Row, subject: Subject) -> Iterator[Child]:
    """The program, once it has bound its queue and holds what it shall hold."""
    held = subject.holds(row.job)
    with running(subject.command(row.job, row.load), cores()[0]) as child:
        wait_until(lambda: 0 in queue_states(), subject.name, child)
        if held:
            subprocess.run([TRAFFIC, "prime", str(held)], check=True, timeout=_START_S)
            wait_until(lambda: _waiting() == held, subject.name, child)
        yield child
    wait_until(lambda: not queue_states(), f"the end of {subject.name}")


@contextmanager
def flooding(row: Row) -> Iterator[Child]:
    """The sender at work."""
    send_buffer = DEEP_SEND_BUFFER if row.load == "deep backlog" else 0  # 0: the default one
    arguments = ["flood", str(row.job.size), str(send_buffer), str(LONGEST_S)]
    with running([TRAFFIC, *arguments], cores()[1]) as sender:
        yield sender


def wait_until(true: Callable[[], bool], name: str, *children: Child) -> None:
    """Wait for a state of the queues, while these programs run.

    Raises:
      MeasuringError: one of them has ended, or it takes too long.
    """
    deadline = time.monotonic() + _START_S
    while not true():
        for child in children:
            if child.ended:
                raise MeasuringError(f"{name} ended: {child.errors()}")
        if time.monotonic() > deadline:
            errors = "".join(f": {child.errors()}" for child in children)
            raise MeasuringError(f"{name} did not come within {_START_S:.0f} s{errors}")
        time.sleep(0.002)


def _answered() -> int:
    state = queue_states().get(0)
    return 0 if state is None else state.answered


def _waiting() -> int:
    state = queue_states().get(0)
    return -1 if state is None else state.waiting


def _sample(child: Child, sender: Child) -> Sample:
    state = queue_states().get(0)
    if state is None or child.ended:
        raise MeasuringError(f"the program has no queue any more: {child.errors()}")
    if sender.ended:
        raise MeasuringError(f"the sender ended: {sender.errors()}")
    return Sample(state, child.cpu_ns(), time.monotonic_ns())
