"""`Queue.serve`: a handler for every packet, and a verdict for every packet that it leaves.

An async handler runs in standing workers, which all pull from the queue's read-ahead: a task a
packet costs four times as much. With a deadline each worker writes down when its packet is due, and
one task cancels what is overdue (`Overdue`).

What handlers raise is kept and raised by `Server.run` when all workers have left, since a nursery
would wrap it. It is kept apart from what the queue raises: a handler may have channels and streams
of its own, whose end is not the queue's.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import TYPE_CHECKING, Any, cast

import trio

from trionfq._overdue import Job, Overdue
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
        on_error: ErrorHandler | None,
        on_refusal: ErrorHandler,
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
        self._on_error = on_error
        self._on_refusal = on_refusal
        self._stop: Callable[[], object] = lambda: None
        self._raised: list[Exception] = []
        self._queue_failure: Exception | None = None
        self._overdue = Overdue(self._policy)

    async def run(self) -> None:
        """Serve until cancelled or the packets end; see `Queue.serve`."""
        async with trio.open_nursery() as nursery:
            self._stop = nursery.cancel_scope.cancel
            if self._deadline_s is not None:
                nursery.start_soon(self._overdue.watch)
            await self._run_workers()
            nursery.cancel_scope.cancel()
        errors = self._raised
        if self._queue_failure is not None:
            errors.append(self._queue_failure)
        if errors:
            error = (
                errors[0] if len(errors) == 1 else ExceptionGroup("several handlers raised", errors)
            )
            # Raised where the caller may be busy with another exception, which is not its context.
            context = error.__context__
            try:
                raise error
            finally:
                error.__context__ = context
                del error, errors  # or their tracebacks keep them, and all packets of this frame

    async def _run_workers(self) -> None:
        if not is_async(self._handler):
            await self._until_end(self._serve_sync)
            return
        async with trio.open_nursery() as nursery:
            for number in range(self._workers):
                name = f"trionfq queue {self._queue.number} worker {number}"
                nursery.start_soon(self._until_end, self._work, name=name)

    async def _until_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run until the packets end; what is raised here is the queue's, in each worker again."""
        try:
            await work()
        except trio.EndOfChannel:
            return
        except Exception as error:
            self._queue_failure = self._queue_failure or error
            self._stop()

    async def _serve_sync(self) -> None:
        handler = self._handler
        queue = self._queue
        deadline_s = self._deadline_s
        due = math.inf
        while not self._raised:
            for packet in queue.handing_out():
                try:
                    if deadline_s is not None:
                        due = trio.current_time() + deadline_s
                    result = handler(packet)
                    if result is not None:
                        refuse_unfinished(result)
                    # In here, lest Ctrl-C comes between the handler and this.
                    if not packet.decided:
                        self._leave(packet, due)
                except Exception as error:
                    self._failed(packet, due, error)
                except BaseException:
                    self._leave(packet, due)
                    raise
                if self._raised:
                    return
            await queue.advance()

    async def _work(self) -> None:
        """One worker, in one cancel scope after the other: a scope that was cancelled stays so."""
        while not self._raised:
            with trio.CancelScope() as scope:
                job = Job(scope)
                if self._deadline_s is None:
                    await self._work_on(job)
                else:
                    with self._overdue.minding(job):
                        await self._work_on(job)

    async def _work_on(self, job: Job) -> None:
        """Packet after packet, until a deadline passes."""
        handler = cast("Callable[[Packet], Awaitable[object]]", self._handler)
        queue = self._queue
        deadline_s = self._deadline_s
        overdue = self._overdue
        now = trio.lowlevel.current_clock().current_time  # `trio.current_time` looks that up
        due = math.inf
        while True:
            for packet in queue.handing_out():
                try:
                    if deadline_s is not None:
                        due = job.due = now() + deadline_s
                        if overdue.idle:
                            overdue.wake()
                    await handler(packet)
                    if not packet.decided:
                        self._leave(packet, due)
                except Exception as error:
                    self._failed(packet, due, error)
                except BaseException:
                    self._leave(packet, due, overdue=job.cancelled)
                    raise
                if self._raised:
                    return
                if deadline_s is not None:
                    job.due = math.inf
                    # Cancelled between the handler's last wake-up and its end.
                    if job.cancelled:
                        return
            await queue.advance()

    # -- what goes wrong -----------------------------------------------------------------------

    def _failed(self, packet: Packet, due: float, error: Exception) -> None:
        """Tell what a handler raised; without an error handler, that ends serving."""
        try:
            if self._on_error is None:
                self._end_by(error)
            else:
                self._on_error(error, packet)
        except Exception as another:
            self._end_by(another)
        finally:
            self._leave(packet, due)

    def refused(self, error: Exception, packet: Packet | None) -> None:
        """Tell of a refused verdict or an undecodable message; the queue's error handler meanwhile.

        The handler of a refused packet has left it, so what the error handler leaves undecided
        gets the policy.
        """
        try:
            self._on_refusal(error, packet)
        except Exception as another:
            self._end_by(another)
        finally:
            if packet is not None:
                due = math.inf
                if self._deadline_s is not None:
                    due = trio.current_time() + self._deadline_s
                self._leave(packet, due)

    def _end_by(self, error: Exception) -> None:
        self._raised.append(error)
        self._stop()

    # -- packets that are left -----------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def _leave(self, packet: Packet, due: float, *, overdue: bool = False) -> None:
        """Decide what the handler did not, unless it holds the packet."""
        if packet.decided or not packet.usable:
            return
        if not packet.held or overdue:
            packet.settle(self._policy)
        elif self._deadline_s is not None:
            self._overdue.hold(packet, due)


def is_async(handler: Any) -> bool:
    """Whether calling a handler gives what is to be awaited."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


def refuse_unfinished(result: object) -> None:
    """Refuse what a plain function returned if its work would only begin now.

    Raises:
      TypeError: it is an awaitable or a generator.
    """
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(
            "serve: the handler is a plain function but returned "
            f"{type(result).__name__!r}, which nobody would run; pass an async function"
        )
