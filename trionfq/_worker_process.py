"""The worker's process: opens its queue, runs the user's function, and stops when told to.

The pipe from the supervisor is read by a thread, so that its end is noticed even while the user's
code keeps trio from running; then the process ends itself after the grace time. (Linux's
PR_SET_PDEATHSIG would not do: it acts when the parent's *thread* ends.)
"""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import sys
import threading
import time
import types
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trionfq import _worker_messages as messages
from trionfq._open import open_queue
from trionfq._worker_messages import Failed, Finished, Ready, Report, Snapshot, Start, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionfq._queue import Queue

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """The whole life of the process; its argument is the descriptor of the reports' pipe."""
    reports_fd = int(sys.argv[1])
    os.set_inheritable(reports_fd, False)
    commands_fd = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    start = messages.read_start(commands_fd)
    if start is None:
        return  # stopped before it began
    worker = _Worker(start, commands_fd, reports_fd)
    try:
        worker.run()
    except SystemExit:
        raise
    except BaseException as error:
        report = Failed.by(error)
        if not worker.say(report):
            sys.stderr.write(report.text)  # nobody else will tell
        sys.exit(1)
    if worker.signal is not None:
        # Its default action, so that whoever looks sees what ended this process.
        signal.signal(worker.signal, signal.SIG_DFL)
        signal.raise_signal(worker.signal)


class _Worker:
    def __init__(self, start: Start, commands_fd: int, reports_fd: int) -> None:
        self._start = start
        self._commands_fd = commands_fd
        self._reports_fd = reports_fd
        self._scope = trio.CancelScope()
        self._queue: Queue | None = None
        self.signal: signal.Signals | None = None

    def say(self, report: Report) -> bool:
        """Tell the supervisor; whether it still listens."""
        data = memoryview(messages.frame(report))
        try:
            while data:
                data = data[os.write(self._reports_fd, data) :]
        except BrokenPipeError:
            return False
        return True

    def run(self) -> None:
        start = self._start
        sys.argv[:] = start.arguments
        if start.cpu is not None:
            _pin(start.cpu)
        if start.main is not None:
            _import_main(start.main)
        work: Work = pickle.loads(start.payload)  # noqa: S301 - the supervisor's
        trio.run(self._work, work)

    async def _work(self, work: Work) -> None:
        token = trio.lowlevel.current_trio_token()
        for which in _SIGNALS:
            signal.signal(which, lambda number, _frame: self._signalled(token, number))
        threading.Thread(
            target=self._listen, args=(token,), name="trionfq supervisor", daemon=True
        ).start()
        options = dict(work.options)
        number = self._start.queue_number
        if self._start.namespace is not None:
            options["namespace"] = self._start.namespace
        if work.backend is not None:
            options["backend"] = work.backend(number)
        finished = False
        with self._scope:
            async with open_queue(number, **options) as queue:
                self._queue = queue
                self.say(Ready())
                await work.target(queue, *work.arguments)
                finished = True
        if finished:
            self.say(Finished())

    # -- being told ----------------------------------------------------------------------------

    def _signalled(self, token: trio.lowlevel.TrioToken, number: int) -> None:
        self.signal = signal.Signals(number)
        _soon(token, self._scope.cancel)

    def _listen(self, token: trio.lowlevel.TrioToken) -> None:
        """The thread: one snapshot for each byte, and the end at the end."""
        while asked := os.read(self._commands_fd, 64):
            for _ in asked:
                _soon(token, self._tell)
        _soon(token, self._scope.cancel)
        time.sleep(self._start.grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def _tell(self) -> None:
        queue = self._queue
        # Never raises: it is called by trio's scheduler.
        try:
            statistics = None if queue is None else queue.statistics()
        except Exception:
            statistics = None
        self.say(Snapshot(statistics))


def _soon(token: trio.lowlevel.TrioToken, call: Callable[[], object]) -> None:
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(call)


def _pin(cpu: int) -> None:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        raise ValueError(f"cpus: this process may not run on processor {cpu}") from error


def _import_main(main: messages.MainModule) -> None:
    """Make the program's main module, under another name so that it does not run as a program."""
    messages.importing_main = True
    name = messages.WORKER_MAIN
    if main.name is not None:
        found = runpy.run_module(main.name, run_name=name, alter_sys=True)
    else:
        assert main.path is not None
        found = runpy.run_path(main.path, run_name=name)
    module = types.ModuleType(name)
    module.__dict__.update(found)
    sys.modules["__main__"] = sys.modules[name] = module
    messages.importing_main = False
