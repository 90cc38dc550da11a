"""The supervisor of worker processes: one task for each queue, which replaces what dies.

The tasks are shielded and end only when they are told to, or have nothing left to do, so that a
cancellation, too, ends the processes in order.
"""

from __future__ import annotations

import logging
import signal
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import trio

from trionfq._errors import WorkerDiedError
from trionfq._worker import Life
from trionfq._worker_messages import Start
from trionfq._workers_statistics import WorkersStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionfq._link import ErrorHandler
    from trionfq._worker_messages import MainModule
    from trionfq.backends.netlink import Namespace

_log = logging.getLogger("trionfq")

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0
# More deaths than this need not be remembered for the delay.
_REMEMBERED = 16
# A worker whose supervisor is gone waits longer by this, so that one that is there is first.
_ORPHAN_S = 1.0
# What a worker that was told to stop may end by: a service manager may signal it besides.
_IN_ORDER = (0, -signal.SIGTERM, -signal.SIGINT)


class Plan(NamedTuple):
    """What all workers are to do, and what is done when one dies; see `trionfq.open_workers`."""

    payload: bytes
    main: MainModule | None
    arguments: list[str]
    cpus: tuple[int, ...]
    grace_s: float
    max_restarts: int | None
    restart_period_s: float
    error_handler: ErrorHandler | None


class _Death(NamedTuple):
    reason: str
    pid: int | None = None
    exit_code: int | None = None
    traceback: str | None = None
    exception: Exception | None = None


class _Worker:
    """A queue's place: the process that has it now, and what became of those before."""

    def __init__(self, number: int, cpu: int | None, remembered: int) -> None:
        self.number = number
        self.cpu = cpu
        self.life: Life | None = None
        self.opened = False
        self.deaths = 0
        self.recent: deque[float] = deque(maxlen=remembered)


class Workers:
    """The worker processes of an `open_workers` block."""

    def __init__(self, numbers: Sequence[int], plan: Plan) -> None:
        self._plan = plan
        cpus = plan.cpus or (None,)
        remembered = 1 + max(plan.max_restarts or 0, _REMEMBERED)
        self._workers = [
            _Worker(number, cpus[place % len(cpus)], remembered)
            for place, number in enumerate(numbers)
        ]
        self._namespace: Namespace | None = None
        self._inherited_fds: list[int] = []
        self._unopened = len(self._workers)
        self._running = len(self._workers)
        self._opened_or_failed = trio.Event()
        self._stopping = trio.Event()
        self._all_ended = trio.Event()
        self._on_failure: Callable[[], object] = lambda: None
        self.failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Workers of queues {', '.join(map(str, self.queues))}>"

    # -- for the user --------------------------------------------------------------------------

    @property
    def queues(self) -> tuple[int, ...]:
        """The queue numbers."""
        return tuple(worker.number for worker in self._workers)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by queue number; a queue that no process has now is left out."""
        return {worker.number: worker.life.pid for worker in self._workers if worker.life}

    async def wait(self) -> None:
        """Wait until every worker has finished, which is when its target has returned."""
        await self._all_ended.wait()

    async def statistics(self) -> WorkersStatistics:
        """A snapshot of every worker's queue; a checkpoint.

        Waits for each worker, so for one whose handler is busy, too. A queue that is not open, or
        whose worker dies meanwhile, is left out.
        """
        await trio.lowlevel.checkpoint()
        asked = [
            (worker.number, await worker.life.ask())
            for worker in self._workers
            if worker.life is not None
        ]
        found = {}
        for number, answer in asked:
            if answer is not None:
                await answer.come.wait()
                if answer.statistics is not None:
                    found[number] = answer.statistics
        return WorkersStatistics(found, {worker.number: worker.deaths for worker in self._workers})

    # -- for the manager -----------------------------------------------------------------------

    def start(self, nursery: trio.Nursery, namespace: Namespace | None) -> None:
        """Start supervising; a namespace comes with a descriptor of it."""
        if namespace is not None:
            assert isinstance(namespace.source, int)
            self._inherited_fds = [namespace.source]
        self._namespace = namespace
        for worker in self._workers:
            name = f"trionfq worker of queue {worker.number}"
            nursery.start_soon(self._supervise, worker, name=name)

    async def opened(self) -> None:
        """Wait until every queue was bound, or `failure` says why not."""
        await self._opened_or_failed.wait()

    def when_failed(self, call: Callable[[], object]) -> None:
        """Have something called at a failure from here on, at once if there is one."""
        self._on_failure = call
        if self.failure is not None:
            call()

    async def end(self) -> KeyboardInterrupt | None:
        """Stop all workers, kill those that do not, and give an interrupt that came meanwhile."""
        interrupt = None
        self._stop()
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._plan.grace_s):
                await self._all_ended.wait()
        except KeyboardInterrupt as error:
            interrupt = error
        for worker in self._workers:
            if worker.life is not None:
                worker.life.kill()
        while not self._all_ended.is_set():
            try:
                with trio.CancelScope(shield=True):
                    await self._all_ended.wait()
            except KeyboardInterrupt as error:
                interrupt = error
        return interrupt

    def _stop(self) -> None:
        self._stopping.set()
        for worker in self._workers:
            if worker.life is not None:
                worker.life.stop()

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self._opened_or_failed.set()
        self._stop()
        self._on_failure()

    # -- a worker ------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _supervise(self, worker: _Worker) -> None:
        with trio.CancelScope(shield=True):
            while not self._stopping.is_set():
                death = await self._one_life(worker)
                if death is None:
                    break
                if not worker.opened:
                    if not self._stopping.is_set():
                        self._fail(_opening_error(worker.number, death))
                    break
                await self._after(worker, death)
        self._running -= 1
        if not self._running:
            self._all_ended.set()

    async def _one_life(self, worker: _Worker) -> _Death | None:
        """A process from start to end; None if its target has returned, or it stopped when told."""
        plan = self._plan
        start = Start(
            queue_number=worker.number,
            payload=plan.payload,
            namespace=self._namespace,
            main=plan.main,
            arguments=plan.arguments,
            cpu=worker.cpu,
            grace_s=plan.grace_s + _ORPHAN_S,
        )
        try:
            life = await Life.begin(worker.number, self._inherited_fds)
        except OSError as error:
            return _Death(f"no process could be started ({error})", exception=error)
        worker.life = life
        if self._stopping.is_set():
            life.stop()
        try:
            code = await life.live(start, lambda: self._bound(worker))
        finally:
            worker.life = None
        failed = life.failed
        if failed is not None:
            reason = f"it raised {failed.summary}"
            return _Death(reason, life.pid, code, failed.text, failed.exception())
        if life.finished or (self._stopping.is_set() and code in _IN_ORDER):
            return None
        if life.killed:
            reason = "it did not stop in time and was killed"
        elif code < 0:
            reason = f"it was killed by {_signal_name(-code)}"
        else:
            reason = f"it ended with exit code {code}"
        return _Death(reason, life.pid, code)

    def _bound(self, worker: _Worker) -> None:
        if not worker.opened:
            worker.opened = True
            self._unopened -= 1
            if not self._unopened:
                self._opened_or_failed.set()

    async def _after(self, worker: _Worker, death: _Death) -> None:
        """Report a death, and wait until the queue shall be opened again."""
        plan = self._plan
        now = trio.current_time()
        recent = worker.recent
        worker.deaths += 1
        recent.append(now)
        while recent[0] < now - plan.restart_period_s:
            recent.popleft()
        too_often = plan.max_restarts is not None and len(recent) > plan.max_restarts
        ends = too_often or self._stopping.is_set()
        delay_s = None if ends else _delay_s(len(recent))
        error = _died(worker.number, death, delay_s)
        _log.error("%s%s", error, f"\n{death.traceback}" if death.traceback else "")
        if plan.error_handler is not None:
            try:
                _call(plan.error_handler, error)
            except BaseException as raised:
                self._fail(raised)
        if too_often:
            self._fail(error)
        if delay_s:
            with trio.move_on_after(delay_s):
                await self._stopping.wait()


@trio.lowlevel.disable_ki_protection
def _call(handler: ErrorHandler, error: Exception) -> None:
    """Call what is the program's, which Ctrl-C may interrupt."""
    handler(error, None)


def _delay_s(deaths: int) -> float:
    """Seconds to wait after so many deaths in a period."""
    return 0.0 if deaths == 1 else min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (deaths - 2))


def _died(number: int, death: _Death, restart_delay_s: float | None) -> WorkerDiedError:
    error = WorkerDiedError(
        death.reason,
        queue_number=number,
        pid=death.pid,
        exit_code=death.exit_code,
        traceback=death.traceback,
        restart_delay_s=restart_delay_s,
    )
    error.__cause__ = death.exception
    return error


def _opening_error(number: int, death: _Death) -> Exception:
    """What entering raises: the worker's own exception, if it could be carried over."""
    error = death.exception
    if error is None:
        error = _died(number, death, None)
    if death.traceback is not None:
        error.add_note(f"in the worker of queue {number} (process {death.pid}):")
        error.add_note(death.traceback.rstrip())
    return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
