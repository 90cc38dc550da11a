"""Starting programs on a core of their own, and ending every one of them by its id."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Above any program of the usual policy, and the measuring process above the measured.
_REALTIME_PRIORITY = 20
_END_S = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class MeasuringError(Exception):
    """A run that gave no number."""


class StarvedError(MeasuringError):
    """A run in which other programs kept the processors."""


def cores() -> tuple[int, int]:
    """The measured program's core and the sender's; the same one where no other is allowed."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[min(1, len(allowed) - 1)]


def realtime_wanted() -> bool:
    """Whether RT=1 asks for a real-time policy."""
    return os.environ.get("RT", "") not in ("", "0")


def be_realtime(above: int = 0) -> None:
    """Take this process before all others; SCHED_RR, so that equals on one core take turns.

    Raises:
      PermissionError: CAP_SYS_NICE in the first user namespace is missing.
    """
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_REALTIME_PRIORITY + above))


class Child:
    """A process that was started, and what it wrote."""

    def __init__(self, command: Sequence[str], allowed: set[int], *, realtime: bool) -> None:
        # A file takes whatever a program says; a pipe that nobody empties would stop it.
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop()
        self.name = Path(command[0]).name

        def prepare() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # or it would run on without us
            os.sched_setaffinity(0, allowed)
            if realtime:
                be_realtime()
                return
            # Ahead of whatever else runs on this machine, where that is allowed. With autogroups
            # a nice value counts within a session only, and sessions have one of their own.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, -20)
                Path("/proc/self/autogroup").write_text("-20")

        self._process = subprocess.Popen(
            command,
            preexec_fn=prepare,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def errors(self) -> str:
        """The end of what it wrote to standard error."""
        self._errors.seek(0)
        return self._errors.read()[-2000:].strip() or f"status {self._process.poll()}, no message"

    def output(self, timeout_s: float) -> str:
        """What it wrote until it ended.

        Raises:
          MeasuringError: it failed, or did not end in time.
        """
        try:
            out = self._process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            raise MeasuringError(f"{self.name} did not end in {timeout_s:.0f} s") from None
        if self._process.returncode:
            raise MeasuringError(f"{self.name} failed: {self.errors()}\n{out[-2000:]}".strip())
        return out

    def cpu_ns(self) -> int:
        """User and system time of all its threads, ended ones too."""
        # CPUCLOCK_SCHED of a process (MAKE_PROCESS_CPUCLOCK, include/linux/posix-timers_types.h).
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    def resident_kib(self) -> int:
        """Its resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def stop(self) -> None:
        """End it and what it started: its session has the process's id as group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_END_S)
        self._errors.close()


@contextmanager
def running(command: Sequence[str], *allowed: int, realtime: bool | None = None) -> Iterator[Child]:
    """A program on these cores, until the block ends."""
    realtime = realtime_wanted() if realtime is None else realtime
    child = Child(command, set(allowed), realtime=realtime)
    try:
        yield child
    finally:
        child.stop()
