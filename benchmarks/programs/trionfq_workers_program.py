"""The measured program for more than one core: worker processes, one queue each.

Usage: trionfq_workers_program.py WORKERS WORK_US MAX_LEN RCVBUF [CPU ...]

Queues 0 to WORKERS - 1 are opened. Each packet's policy reads its payload and takes WORK_US
microseconds of CPU in all; 0 only accepts. With CPUs, each worker is pinned to one of them. A line
"ready" says that every queue is bound; the program runs until it is killed or interrupted.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import trio

from trionfq import open_workers

if TYPE_CHECKING:
    from trionfq import Queue


def spin(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step
    return total


def steps_for(microseconds: float) -> int:
    """How many steps of `spin` take so long; the least of several tries, for others run, too."""
    steps = 20_000
    least = min(timed(steps) for _ in range(20))
    return round(steps * microseconds * 1e3 / least)


def timed(steps: int) -> int:
    start = time.perf_counter_ns()
    spin(steps)
    return time.perf_counter_ns() - start


async def policy(queue: Queue, steps: int) -> None:
    async for packet in queue:
        if steps and packet.payload:
            spin(steps)
        packet.accept()


async def main(workers: int, work_us: float, max_len: int, rcvbuf: int, cpus: list[int]) -> None:
    # Calculated once, so that each worker does the same.
    async with open_workers(
        policy,
        steps_for(work_us),
        queues=range(workers),
        cpus=cpus or None,
        max_len=max_len,
        receive_buffer_bytes=rcvbuf,
    ) as opened:
        print("ready", *opened.pids.values(), flush=True)
        await opened.wait()


if __name__ == "__main__":
    trio.run(
        main,
        int(sys.argv[1]),
        float(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        [int(text) for text in sys.argv[5:]],
    )
