"""Several queues, each in a process of its own: opened together, and ended together."""

from __future__ import annotations

import inspect
import math
import os
import pickle
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict, TypeVarTuple

import trio

from trionfq import _worker_messages as messages
from trionfq._open import open_queue
from trionfq._supervisor import Plan, Workers
from trionfq._worker_messages import Work
from trionfq.backends.netlink import Namespace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType
    from typing import NoReturn, Unpack

    from trionfq._link import ErrorHandler
    from trionfq._queue import Queue
    from trionfq._verdict import Verdict
    from trionfq.backends import Backend
    from trionfq.backends.netlink import NetlinkOptions
    from trionfq.schema.nfqueue import CopyMode, QueueFlags

# Options of a queue that belong to a netlink socket.
_SOCKET_OPTIONS = ("namespace", "receive_buffer_bytes", "netlink_options")

Ts = TypeVarTuple("Ts")


class QueueOptions(TypedDict, total=False):
    """What `open_workers` passes to each `open_queue`."""

    copy_mode: CopyMode
    copy_range: int
    max_len: int
    flags: QueueFlags
    on_close: Verdict
    checkpoint_every: int | None
    namespace: str | os.PathLike[str] | Namespace | None
    receive_buffer_bytes: int | None
    netlink_options: NetlinkOptions | None


def open_workers(
    target: Callable[[Queue, *Ts], Awaitable[object]],
    *args: *Ts,
    queues: Iterable[int],
    cpus: Iterable[int] | None = None,
    grace_s: float = 10.0,
    max_restarts: int | None = None,
    restart_period_s: float = 60.0,
    error_handler: ErrorHandler | None = None,
    backend: Callable[[int], Backend] | None = None,
    **options: Unpack[QueueOptions],
) -> WorkersManager:
    """Open several queues, each in a worker process, for rules with ``--queue-balance``.

    Use it as ``async with open_workers(policy, queues=range(4)) as workers``. Each worker is a
    fresh interpreter that opens one queue and runs ``await target(queue, *args)`` in ``trio.run``.
    The block begins when all queues are bound.

    A worker that dies is logged and reported, and its queue is opened again by a new process; no
    other worker is disturbed. The kernel drops what the dead worker had not decided, and counts it
    nowhere (nfqnl_rcv_nl_event, instance_destroy, nfqnl_flush); until the queue is open again, the
    rule drops the packets of its share, or lets them pass with ``--queue-bypass``. The first
    reopening of a period comes at once, later ones after a delay that doubles from 0.1 s to 10 s.
    A worker whose target returns has finished: its queue closes, and stays closed.

    Leaving the block ends all workers, also under cancellation: each target is cancelled and its
    queue closed, where undecided packets get ``on_close``. That takes at most ``grace_s``, then
    what is left is killed. A second Ctrl-C meanwhile kills at once. If this process dies, its
    workers end in the same way.

    Args:
      target: an async function of a queue, and of ``args``, that another process can import: not a
        lambda, nor defined inside a function. If it stands in the program's main module, the
        module's own run must stand behind ``if __name__ == "__main__":``.
      *args: further arguments for it, which must be picklable.
      queues: queue numbers, as in the rule, one for each worker.
      cpus: processors, one for each worker in the order of ``queues``; fewer are used again from
        the first. None does not pin.
      grace_s: seconds that a worker may take to stop before it is killed.
      max_restarts: how often one worker may be replaced within ``restart_period_s``. If it dies
        once more, the block is cancelled and its `WorkerDiedError` raised. None has no limit.
      restart_period_s: seconds that a death counts, for ``max_restarts`` and the delay.
      error_handler: called with (`WorkerDiedError`, None) for each death; may raise, which
        cancels the block and leaves as it was raised. Beside that, deaths are logged.
      backend: called with the queue's number in each worker, gives what its packets come from; a
        function that can be imported. None for a new `NetlinkBackend`.
      **options: for each `open_queue`: copy_mode, copy_range, max_len, flags, on_close,
        checkpoint_every, namespace, receive_buffer_bytes, netlink_options.

    Raises:
      QueueBusyError, PrivilegeError, ModuleMissingError, KernelError: on entering, as `open_queue`;
        no worker is left.
      WorkerDiedError: on entering, if a worker ended before its queue was bound, with another
        exception than could be carried over; on leaving, see ``max_restarts``. Any other exception
        of a worker before its queue is bound leaves entering as itself.
      FileNotFoundError: on entering; there is no such namespace.
      ValueError, TypeError: an argument is wrong, or cannot be passed to another process.
      RuntimeError: called while a worker imports the main module.
    """
    if messages.importing_main:
        raise RuntimeError(
            "open_workers() was called while a worker imports the program's main module: put the "
            'call, or the trio.run around it, behind `if __name__ == "__main__":`'
        )
    numbers = tuple(queues)
    if not numbers:
        raise ValueError("queues: expected at least one queue number")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"queues: each number once, got {numbers}")
    if unknown := options.keys() - QueueOptions.__annotations__.keys():
        raise TypeError(
            f"open_workers() got an unexpected keyword argument {min(unknown)!r}; a queue's "
            f"options are {', '.join(QueueOptions.__annotations__)}"
        )
    for number in numbers:
        open_queue(number, **options)  # checks; nothing is opened before it is entered
    socket_options = [name for name in _SOCKET_OPTIONS if options.get(name) is not None]
    if backend is not None and socket_options:
        raise ValueError(
            f"{', '.join(socket_options)}: belongs to a netlink socket; give it to the backend "
            "instead"
        )
    pinned = tuple(cpus or ())
    if not all(isinstance(cpu, int) and cpu >= 0 for cpu in pinned):
        raise ValueError(f"cpus: expected numbers of processors, got {pinned}")
    if not (grace_s >= 0 and math.isfinite(grace_s)):
        raise ValueError(f"grace_s: expected 0 or more seconds, got {grace_s}")
    if max_restarts is not None and max_restarts < 0:
        raise ValueError(f"max_restarts: expected 0 or more, got {max_restarts}")
    if not restart_period_s > 0:
        raise ValueError(f"restart_period_s: expected more than 0 seconds, got {restart_period_s}")
    passed: dict[str, Any] = dict(options)
    namespace = passed.pop("namespace", None)
    payload, main = _payload(Work(target, args, backend, passed))
    plan = Plan(
        payload=payload,
        main=main,
        arguments=list(sys.argv),
        cpus=pinned,
        grace_s=grace_s,
        max_restarts=max_restarts,
        restart_period_s=restart_period_s,
        error_handler=error_handler,
    )
    within = None if namespace is None else Namespace.of(namespace)
    return WorkersManager(Workers(numbers, plan), within)


class WorkersManager:
    """What `open_workers` returns: an async context manager, for one use.

    Protected from KeyboardInterrupt, as `QueueManager` is, for the same reasons.
    """

    def __init__(self, workers: Workers, namespace: Namespace | None) -> None:
        self._workers = workers
        self._namespace = namespace
        self._namespace_fd: int | None = None
        self._entered = False
        self._nursery_manager = trio.open_nursery()
        self._block = trio.CancelScope()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Workers:
        if self._entered:
            raise RuntimeError("this open_workers() was entered before; call it again")
        self._entered = True
        # Before anything is started, so that a cancellation has nothing to undo.
        await trio.lowlevel.checkpoint()
        workers, within = self._workers, self._namespace
        if within is not None:
            # Its descriptor, so that each worker, the last one too, enters the same namespace.
            self._namespace_fd = within.open()
            within = Namespace(within.label, self._namespace_fd)
        nursery = await self._nursery_manager.__aenter__()
        workers.start(nursery, within)
        try:
            await workers.opened()
        except BaseException:  # a cancellation, or Ctrl-C
            await self._end()
            raise
        if workers.failure is not None:
            await self._end()
            _raise_as_it_is(workers.failure)
        self._block.__enter__()
        workers.when_failed(self._block.cancel)
        return workers

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # The block is cancelled by nothing but a failure.
        cancelled = False
        interrupt: KeyboardInterrupt | None = None
        try:
            cancelled = self._block.__exit__(exc_type, exc, traceback)
        finally:
            interrupt = await self._end()
            if interrupt is not None:
                _raise_as_it_is(interrupt)
        failure = self._workers.failure
        if failure is not None and (exc is None or cancelled):
            _raise_as_it_is(failure)
        return False

    async def _end(self) -> KeyboardInterrupt | None:
        interrupt = await self._workers.end()
        if self._namespace_fd is not None:
            os.close(self._namespace_fd)
        # From outside; the next checkpoint raises it again.
        with suppress(trio.Cancelled):
            await self._nursery_manager.__aexit__(None, None, None)
        return interrupt


def _raise_as_it_is(error: BaseException) -> NoReturn:
    """Raise without a new context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context


def _payload(work: Work) -> tuple[bytes, messages.MainModule | None]:
    """The work as bytes for another process, and the main module if that needs it."""
    target = work.target
    if not (
        inspect.iscoroutinefunction(target)
        or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004
        or hasattr(target, "__wrapped__")
    ):
        raise TypeError(
            f"target: expected an async function of a queue, got {target!r}; for a handler, one "
            "that awaits queue.serve(handler)"
        )
    try:
        payload = pickle.dumps(work)
    except Exception as error:
        raise TypeError(
            "target, args, backend and options go to another process: functions must stand in a "
            f"module, not inside a function, and values must be picklable ({error})"
        ) from error
    if b"__main__" not in payload:
        return payload, None
    main = messages.main_module()
    if main is None:
        raise TypeError(
            "target, args, backend or options name the main module, which has no file here, so no "
            "other process can import it: put them in a module of their own"
        )
    return payload, main
