"""One worker as its supervisor sees it: a queue, and one process after the other that has it open.

The process stands in a process group of its own, so that a terminal's Ctrl-C reaches the program
only, which then stops its workers in order.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from typing import TYPE_CHECKING

import trio

from trionfq import _worker_messages as messages
from trionfq._worker_messages import ASK, Failed, Finished, Ready, Report, Snapshot, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionfq._statistics import Statistics

_READ_BYTES = 65536


class Answer:
    """What a worker answers to a question.

    Attributes:
      come: it is there, or never will be.
      statistics: its queue's; None if that is closed, or the worker has ended.
    """

    def __init__(self) -> None:
        self.come = trio.Event()
        self.statistics: Statistics | None = None


class Life:
    """One process, from its start to its end; made by `begin`.

    Attributes:
      ready: its queue was bound.
      finished: the user's function has returned.
      failed: what it said of the exception that ended it.
      killed: `kill` was called.
    """

    def __init__(self, process: trio.Process, reports_fd: int) -> None:
        self._process = process
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        self._commands = process.stdin
        self._reports_fd = reports_fd
        self._buffer = bytearray()
        self._asking: deque[Answer] = deque()
        self._ask_lock = trio.Lock()
        self.ready = False
        self.finished = False
        self.failed: Failed | None = None
        self.killed = False

    @classmethod
    async def begin(cls, queue_number: int, inherited_fds: Sequence[int]) -> Life:
        """Start a process.

        Raises:
          OSError: it could not be started.
        """
        reports_fd, theirs = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                messages.command(theirs, queue_number),
                stdin=subprocess.PIPE,
                pass_fds=[theirs, *inherited_fds],
                process_group=0,
            )
        except BaseException:
            os.close(reports_fd)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(reports_fd, False)
        return cls(process, reports_fd)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def live(self, start: Start, on_ready: Callable[[], object]) -> int:
        """Give the process its work, and hear what it says; its exit code when it has ended."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, on_ready)
                nursery.start_soon(self._tell, messages.search_path() + messages.frame(start))
                code = await self._process.wait()
                nursery.cancel_scope.cancel()
            # What it said last, before it ended. No further than that: a process that it has
            # started itself may keep the pipe open.
            self._read_all()
            self._take(on_ready)
        finally:
            self.stop()
            os.close(self._reports_fd)
            for answer in self._asking:
                answer.come.set()
        return code

    def stop(self) -> None:
        """Tell it to stop; harmless when repeated."""
        self._commands.close()

    def kill(self) -> None:
        """End it at once; harmless when it has ended."""
        self.killed = True
        self._process.kill()

    async def ask(self) -> Answer | None:
        """Ask for its queue's statistics; None where there will be no answer."""
        async with self._ask_lock:
            if not (self.ready and await self._tell(ASK)):
                return None
            answer = Answer()
            self._asking.append(answer)
        return answer

    async def _tell(self, data: bytes) -> bool:
        """Write to the process; whether it has neither ended nor been told to stop."""
        try:
            await self._commands.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def _hear(self, on_ready: Callable[[], object]) -> None:
        more = True
        while more:
            await trio.lowlevel.wait_readable(self._reports_fd)
            more = self._read_all()
            self._take(on_ready)

    def _read_all(self) -> bool:
        """Read what waits in the pipe; whether more can come."""
        try:
            while data := os.read(self._reports_fd, _READ_BYTES):
                self._buffer += data
        except BlockingIOError:
            return True
        return False

    def _take(self, on_ready: Callable[[], object]) -> None:
        for report in messages.take_frames(self._buffer):
            self._heard(report, on_ready)

    def _heard(self, report: Report, on_ready: Callable[[], object]) -> None:
        match report:
            case Ready():
                self.ready = True
                on_ready()
            case Snapshot(statistics):
                answer = self._asking.popleft()
                answer.statistics = statistics
                answer.come.set()
            case Finished():
                self.finished = True
            case Failed():
                self.failed = report
