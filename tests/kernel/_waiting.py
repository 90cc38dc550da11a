"""Ready means that a condition holds, never that time has passed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from trionfq.backends._abc import QueueRow

from ._namespace import Namespace
from ._patience import patient

T = TypeVar("T")

POLL_S = 0.002


async def eventually(what: str, condition: Callable[[], T | None], *, timeout_s: float = 5.0) -> T:
    """Wait for a true value of `condition`, looking every 2 ms, and give it.

    The limit is real time, also under an autojump clock.

    Raises:
      AssertionError: it was not there within `timeout_s`; the text says `what`.
    """
    timeout_s = patient(timeout_s)
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await trio.sleep(POLL_S)
    return value


def eventually_sync(what: str, condition: Callable[[], T | None], *, timeout_s: float = 5.0) -> T:
    """As `eventually`, for a test without trio."""
    timeout_s = patient(timeout_s)
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(POLL_S)
    return value


async def wait_for_queue_row(
    namespace: Namespace, number: int, *, portid: int | None = None, timeout_s: float = 5.0
) -> QueueRow:
    """Wait until a program has bound a queue, of that port id if one is given."""

    def row() -> QueueRow | None:
        found = namespace.queue_row(number)
        return found if found and portid in (None, found.portid) else None

    what = f"a row for queue {number} in {namespace.name}"
    return await eventually(what, row, timeout_s=timeout_s)


async def wait_for_no_queue_row(
    namespace: Namespace, number: int, *, timeout_s: float = 5.0
) -> None:
    """Wait until nobody has bound a queue any more."""
    what = f"no row for queue {number} in {namespace.name}"
    await eventually(what, lambda: namespace.queue_row(number) is None, timeout_s=timeout_s)


async def wait_for_queued(
    namespace: Namespace, number: int, packets: int, *, timeout_s: float = 5.0
) -> QueueRow:
    """Wait until a queue holds at least so many packets without a verdict."""

    def row() -> QueueRow | None:
        found = namespace.queue_row(number)
        return found if found and found.queue_total >= packets else None

    what = f"{packets} packets in queue {number} of {namespace.name}"
    return await eventually(what, row, timeout_s=timeout_s)
