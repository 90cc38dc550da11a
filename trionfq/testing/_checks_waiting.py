"""What the seam promises of waiting and closing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from trionfq.testing._messages import make_bind
from trionfq.testing._promises import Promises

if TYPE_CHECKING:
    from trionfq.testing._subject import Subject

WAITING = Promises()


@WAITING.promise("wait_readable is a checkpoint, also where something waits")
async def _checkpoint(it: Subject) -> None:
    for waits in (False, True):
        if waits:
            it.backend.send_nowait(make_bind(it.queue))
        with trio.CancelScope() as scope:
            scope.cancel()
            await it.backend.wait_readable()
        it.ensure(scope.cancelled_caught, "it returned though it was cancelled")
    try:
        with trio.testing.assert_checkpoints():
            await it.in_time("waking with a datagram there", it.backend.wait_readable)
    except AssertionError as error:
        raise it.fail("it returned without letting other tasks run") from error
    it.ensure(len(it.answers()) == 1, "the answer was lost by waiting")


@WAITING.promise("wait_readable can be cancelled and then called again")
async def _cancellable(it: Subject) -> None:
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.wait_for_ever)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


@WAITING.promise("a second waiter gets trio.BusyResourceError")
async def _one_waiter(it: Subject) -> None:
    refused = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.wait_for_ever)
        await trio.testing.wait_all_tasks_blocked()
        try:
            with trio.move_on_after(min(it.patience_s, 0.1)):
                await it.backend.wait_readable()
        except trio.BusyResourceError:
            refused = True
        nursery.cancel_scope.cancel()
    it.ensure(refused, "two tasks could wait")


@WAITING.promise("a waiter wakes when a datagram comes")
async def _wakes(it: Subject) -> None:
    async def wait() -> None:
        while not it.take():
            await it.backend.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.in_time, "waking", wait)
        await trio.testing.wait_all_tasks_blocked()
        it.backend.send_nowait(make_bind(it.queue))


@WAITING.promise("send_nowait reschedules no task by itself")
async def _send_in_a_flush(it: Subject) -> None:
    woken_by_send: list[str] = []
    failures: list[Exception] = []

    class AtTheEndOfTheTick(trio.abc.Instrument):
        """Sends when trio has already fixed how long to sleep, as a queue's flush does."""

        sending = False
        unsent: bytes | None = make_bind(it.queue)

        def before_io_wait(self, _timeout: float) -> None:
            if self.unsent is not None:
                datagram, self.unsent = self.unsent, None
                self.sending = True
                try:
                    it.backend.send_nowait(datagram)
                except Exception as error:  # trio would only log it
                    failures.append(error)
                self.sending = False

        def task_scheduled(self, task: trio.lowlevel.Task) -> None:
            if self.sending:
                woken_by_send.append(task.name)

    instrument = AtTheEndOfTheTick()

    async def wait() -> None:
        while not it.take():
            await it.backend.wait_readable()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.in_time, "waking", wait)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(instrument)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    if failures:
        raise failures[0]
    it.ensure(
        not woken_by_send,
        f"it woke {woken_by_send}, which then sleeps on for as long as trio had fixed; "
        "use trio_token.run_sync_soon",
    )


@WAITING.promise("closing wakes a waiter with trio.ClosedResourceError")
async def _closing_wakes(it: Subject) -> None:
    told = False

    async def wait() -> None:
        nonlocal told
        try:
            await it.wait_for_ever()
        except trio.ClosedResourceError:
            told = True

    async def close() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            it.backend.close()

    await it.in_time("the waiter's end", close)
    it.ensure(told, "it was not told")


@WAITING.promise("after close everything raises trio.ClosedResourceError, and close is harmless")
async def _closed(it: Subject) -> None:
    queue, backend = it.queue, it.backend
    backend.close()
    backend.close()
    it.expect_closed(lambda: backend.send_nowait(make_bind(queue)), "send_nowait")
    it.expect_closed(lambda: backend.receive_nowait(1), "receive_nowait")
    try:
        await it.in_time("the end of wait_readable", backend.wait_readable)
    except trio.ClosedResourceError:
        return
    raise it.fail("wait_readable worked")
