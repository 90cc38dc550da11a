"""A small shell that removes the rules when this process ends without having done so.

It waits at the end of a pipe whose other end only this process has. However the process ends, by
SIGKILL too, the kernel closes the pipe, and the shell removes the rules. It is in a session of its
own and ignores the signals that end a terminal's programs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from trionfq.rules._programs import SEARCH_PATH

if TYPE_CHECKING:
    from trionfq.rules._way import Way

_SCRIPT = """
trap '' HUP INT TERM QUIT
read -r word && [ "$word" = done ] && exit 0
{remove}
"""


class Guard:
    """The shell, started in the calling thread's network namespace.

    Args:
      way: what it is to remove.
    """

    def __init__(self, way: Way) -> None:
        script = _SCRIPT.format(remove=way.guard_script())
        self._shell = subprocess.Popen(  # noqa: S603 - every word in it is quoted
            ["/bin/sh", "-c", script, "trionfq-guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._shell.pid

    def dismiss(self, *, timeout_s: float) -> None:
        """The rules are gone: end it."""
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._shell.communicate(b"done\n", timeout=timeout_s)
        if self._shell.poll() is None:
            self._shell.kill()
            self._shell.wait()

    def act(self, *, timeout_s: float) -> None:
        """The rules could not be removed: let it try once more."""
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._shell.communicate(b"", timeout=timeout_s)
