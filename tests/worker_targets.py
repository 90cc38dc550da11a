"""What the workers of tests do: functions that another process can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import trio

from trionfq import Queue, ReplayBackend

DEMO = Path(__file__).parents[1] / "fixtures" / "demo.pcapng"


class UnpicklableError(Exception):
    """Cannot be made from its args alone, and has no way of its own."""

    def __init__(self, first: str, *, second: str) -> None:
        super().__init__(first)


def demo(number: int) -> ReplayBackend:
    return ReplayBackend(DEMO)


def missing(number: int) -> ReplayBackend:
    return ReplayBackend(DEMO.with_name("missing.pcapng"))


def missing_for_one(number: int) -> ReplayBackend:
    return missing(number) if number == 1 else demo(number)


def unpicklable(number: int) -> ReplayBackend:
    raise UnpicklableError("of this number", second=str(number))


def leaves(number: int) -> ReplayBackend:
    raise SystemExit(7)


async def accept_all(queue: Queue, folder: Path) -> None:
    """Accepts what comes, and writes a file of the queue's name that says how many."""
    count = 0
    async for packet in queue:
        packet.accept()
        count += 1
    (folder / str(queue.number)).write_text(f"{count} {os.getpid()}")


async def idle(queue: Queue) -> None:
    await trio.sleep_forever()


async def hold_one(queue: Queue) -> None:
    packet = await queue.receive()
    packet.hold()
    await trio.sleep_forever()


async def tell_of_end(queue: Queue, folder: Path) -> None:
    """Says that it was cancelled, and what of."""
    try:
        await trio.sleep_forever()
    finally:
        (folder / f"{queue.number}-ended").write_text(str(os.getpid()))


async def stuck(queue: Queue) -> None:
    """Keeps trio from running, once it has begun."""
    be_stuck()


def be_stuck() -> None:
    while True:
        time.sleep(0.01)


async def fail(queue: Queue, text: str) -> None:
    raise LookupError(text)


async def fail_badly(queue: Queue) -> None:
    raise UnpicklableError("always", second="never")


async def fail_once(queue: Queue, folder: Path) -> None:
    """Fails where no worker of this queue has failed before."""
    before = folder / f"{queue.number}-failed"
    if queue.number == 0 and not before.exists():
        before.write_text("")
        raise LookupError("once")
    await accept_all(queue, folder)


async def fail_when_stopped(queue: Queue) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise LookupError("on the way out")


async def exit_with_code(queue: Queue) -> None:
    raise SystemExit(3)


async def tell_processors(queue: Queue, folder: Path) -> None:
    (folder / str(queue.number)).write_text(str(sorted(os.sched_getaffinity(0))))


async def leave_child(queue: Queue, folder: Path) -> None:
    """Dies, and leaves a process that has all its descriptors open."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
    (folder / "child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
