"""`Queue.serve`: a handler for every packet, and a verdict for every packet that it leaves.

An async handler runs in standing workers, which all pull from the queue's read-ahead: a task a
packet costs four times as much. With a deadline each worker keeps one cancel scope and moves its
deadline, for the same reason.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import trio

from trionfq._verdict import Verdict, plain_decision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionfq._link import ErrorHandler
    from trionfq._packet import Packet
    from trionfq._queue import Handler, Queue


class Server:
    """One call of `Queue.serve`."""

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        workers: int,
        undecided: Verdict,
        deadline_s: float | None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        if undecided not in (Verdict.DROP, Verdict.ACCEPT):
            raise ValueError(f"undecided: expected DROP or ACCEPT, got {undecided!r}")
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s: expected more than 0 seconds, got {deadline_s}")
        self._queue = queue
        self._handler = handler
        self._workers = workers
        self._policy = plain_decision(undecided)
        self._deadline_s = deadline_s
        self._on_error: ErrorHandler | None = None
        self._raised: list[Exception] = []
        # Held packets in the order of their deadlines; only where there is a deadline.
        self._held: deque[tuple[float, Packet]] = deque()
        self._something_held = trio.Event()

    async def run(self, on_error: ErrorHandler | None) -> None:
        """Serve until cancelled or the packets end; see `Queue.serve`."""
        self._on_error = on_error
        async with trio.open_nursery() as nursery:
            if self._deadline_s is not None:
                nursery.start_soon(self._answer_overdue)
            await self._run_workers()
            nursery.cancel_scope.cancel()
        if len(self._raised) == 1:
            raise self._raised[0]
        if self._raised:
            raise ExceptionGroup("several handlers raised", self._raised)

    async def _run_workers(self) -> None:
        if not _is_async(self._handler):
            await self._until_end(self._serve_sync)
            return
        async with trio.open_nursery() as nursery:
            for number in range(self._workers):
                name = f"trionfq queue {self._queue.number} worker {number}"
                nursery.start_soon(self._until_end, self._work, nursery.cancel_scope, name=name)

    async def _until_end(
        self, work: Callable[[], Awaitable[None]], scope: trio.CancelScope | None = None
    ) -> None:
        """Run until the packets end or a handler raises; that exception is kept, not wrapped."""
        try:
            await work()
        except trio.EndOfChannel:
            return
        except Exception as error:
            self._raised.append(error)
            if scope is not None:
                scope.cancel()

    async def _serve_sync(self) -> None:
        handler = self._handler
        queue = self._queue
        while True:
            for packet in queue.handing_out():
                try:
                    result = handler(packet)
                    if result is not None and inspect.isawaitable(result):
                        _close_coroutine(result)
                except Exception as error:
                    self._failed(packet, error)
                except BaseException:
                    self._leave(packet)
                    raise
                if not packet.decided:
                    self._leave(packet)
            await queue.advance()

    async def _work(self) -> None:
        """One worker: packet after packet, in one cancel scope until its deadline passes."""
        handler = cast("Callable[[Packet], Awaitable[object]]", self._handler)
        queue = self._queue
        deadline_s = self._deadline_s
        while True:
            with trio.CancelScope() as scope:
                while True:
                    for packet in queue.handing_out():
                        if deadline_s is not None:
                            scope.deadline = trio.current_time() + deadline_s
                        try:
                            await handler(packet)
                        except Exception as error:
                            self._failed(packet, error)
                        except BaseException:
                            self._leave(packet, overdue=scope.cancel_called)
                            raise
                        if deadline_s is not None:
                            scope.deadline = math.inf
                        if not packet.decided:
                            self._leave(packet)
                    await queue.advance()

    def _failed(self, packet: Packet, error: Exception) -> None:
        try:
            if self._on_error is None:
                raise error
            self._on_error(error, packet)
        finally:
            if not packet.decided:
                self._leave(packet)

    def _leave(self, packet: Packet, *, overdue: bool = False) -> None:
        """Decide what the handler did not, unless it holds the packet."""
        if packet.decided or not packet.usable:
            return
        if not packet.held or overdue:
            packet.settle(self._policy)
        elif self._deadline_s is not None:
            self._held.append((trio.current_time() + self._deadline_s, packet))
            self._something_held.set()

    async def _answer_overdue(self) -> None:
        """Answer held packets whose deadline passes."""
        while True:
            await self._something_held.wait()
            while self._held:
                deadline, packet = self._held[0]
                await trio.sleep_until(deadline)
                self._held.popleft()
                if not packet.decided and packet.usable:
                    packet.settle(self._policy)
            self._something_held = trio.Event()


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


def _close_coroutine(result: object) -> None:
    if inspect.iscoroutine(result):
        result.close()
    raise TypeError(
        "serve: the handler is a plain function but returned an awaitable; pass an async function"
    )
