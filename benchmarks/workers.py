"""Packets a second of several worker processes, one queue each, behind ``--queue-balance``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from .measuring import LONGEST_S, TRAFFIC, Run, wait_until
from .network import QueueState, queue_states, rule
from .processes import MeasuringError, StarvedError, running
from .rows import HERE, LIMITS

if TYPE_CHECKING:
    from .rows import Row, Subject

SENDERS = 8
_WARM_UP_PACKETS = 2000
_LEAST_SHARE = 0.05


def measure_workers(row: Row, subject: Subject, seconds: float) -> Run:
    """Packets that all queues together answer.

    Workers and senders share two cores, or as many as there are workers.

    Raises:
      MeasuringError: a program did not do what it should, there is a core too few, or the kernel's
        hash of addresses left a queue with next to nothing.
    """
    count = int(subject.how)
    cpus = sorted(os.sched_getaffinity(0))[: max(2, count)]
    if len(cpus) < count:
        raise MeasuringError(f"{count} workers need as many cores; this process may use {cpus}")
    program = str(HERE / "programs" / "trionfq_workers_program.py")
    numbers = [count, int(row.job.work), *LIMITS[row.load], *cpus[:count]]
    queues = f"--queue-balance 0:{count - 1}" if count > 1 else "--queue-num 0"
    senders = [TRAFFIC, "pairs", str(SENDERS), str(row.job.size), str(LONGEST_S)]
    with rule(f"-s 127.1.0.0/16 -p udp -j NFQUEUE {queues}"):
        with running([sys.executable, program, *map(str, numbers)], *cpus) as workers:
            wait_until(lambda: len(queue_states()) == count, subject.name, workers)
            with running(senders, *cpus) as sending:
                wait_until(lambda: _all_answer(count), subject.name, workers, sending)
                before, started_ns = queue_states(), time.monotonic_ns()
                time.sleep(seconds)
                after, ended_ns = queue_states(), time.monotonic_ns()
                if workers.ended or sending.ended:
                    ended = workers if workers.ended else sending
                    raise MeasuringError(f"{subject.name} ended: {ended.errors()}")
        wait_until(lambda: not queue_states(), f"the end of {subject.name}")
    answered = _answered_between(before, after)
    if not sum(answered):
        raise StarvedError(f"{subject.name} answered nothing")
    if min(answered) < _LEAST_SHARE * sum(answered):
        raise MeasuringError(f"queues got {answered} packets: the addresses' hash is one-sided")
    lost = sum(state.dropped + state.user_dropped for state in after.values())
    return Run({"packets/s": sum(answered) / (ended_ns - started_ns) * 1e9}, lost)


def _all_answer(count: int) -> bool:
    states = queue_states().values()
    return sum(state.answered >= _WARM_UP_PACKETS for state in states) == count


def _answered_between(before: dict[int, QueueState], after: dict[int, QueueState]) -> list[int]:
    """Packets answered in each queue; a worker that died in between had its queue reopened."""
    if {n: s.port_id for n, s in before.items()} != {n: s.port_id for n, s in after.items()}:
        raise MeasuringError("a worker ended while it was measured, and another took its place")
    return [after[number].answered - state.answered for number, state in before.items()]
