"""One boot of the guest for a whole test run: started early, read while other tests run."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .image import Kernel
from .machine import Guest, pytest_command, pytest_environment

SILENCE_S = 240.0
"""A guest that has said nothing for so long is ended. Before that, pytest inside shows where a test
stands when it takes `SLOW_TEST_S`, and ends it after `TEST_LIMIT_S`."""

BOOT_S = 600.0
"""As long for the boot and the imports before the first test: half a minute on a machine that does
nothing else."""

SLOW_TEST_S = 90.0
TAIL_LINES = 80


@dataclass(frozen=True)
class Result:
    """What became of one test in the guest.

    Attributes:
      outcome: ``"passed"``, ``"failed"``, ``"skipped"`` or ``"xfailed"``.
      text: the traceback, or the reason.
      seconds: that it took, in the guest's time.
      sections: what it printed, by title.
      seen: what it exchanged with the kernel (kernels.py), None where it was not watched.
    """

    outcome: str
    text: str = ""
    seconds: float = 0.0
    sections: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Any] | None = None


class GuestRun:
    """Runs tests in one guest, from `start` on, in threads of its own.

    Args:
      kernel: to boot.
      tests: their node ids, without the guest's part.
      log: gets the guest's console as it comes.

    Attributes:
      summary: what the run said of itself at its end: ``release``, ``tainted``, ``seen``.
      boot_s: from the start to the first test.
      whole_s: from the start to the end.
    """

    def __init__(self, kernel: Kernel, tests: Sequence[str], log: Path) -> None:
        self.kernel = kernel
        self.log = log
        self.summary: dict[str, Any] = {}
        self.boot_s = self.whole_s = 0.0
        self._tests = tests
        self._results: dict[str, Result] = {}
        self._running: str | None = None
        self._end: str | None = None
        self._told_end = False
        self._errors: list[str] = []
        self._console: deque[str] = deque(maxlen=TAIL_LINES)
        self._changed = threading.Condition()
        self._started = self._heard = time.monotonic()
        self._guest: Guest | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; returns at once."""
        thread = threading.Thread(target=self._work, name="guest", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End the guest if it still runs, and wait for that."""
        if self._guest is not None:
            self._guest.kill()
        for thread in self._threads:
            thread.join(30)

    # --- the threads ----------------------------------------------------------------------------

    def _work(self) -> None:
        read, write = os.pipe()
        console = threading.Thread(target=self._listen, args=[read], name="guest console")
        console.daemon = True
        console.start()
        files = sorted({test.partition("::")[0] for test in self._tests})
        slow = f"faulthandler_timeout={SLOW_TEST_S}"
        why = "the guest ended before its test run did"
        try:
            guest = Guest(
                self.kernel,
                pytest_command(["-q", "-o", slow, "--no-summary", *files]),
                pytest_environment(),
                console=write,
                files={"tests": "\n".join(self._tests)},
            )
            with guest:
                self._guest = guest
                for line in guest.results:
                    self._hear(line)
                why += f", with exit code {guest.wait()}"
        except Exception as error:  # told by every test that waits for a result
            why = f"the guest could not be run: {error!r}"
        finally:
            os.close(write)
            console.join(10)
            with self._changed:
                self.whole_s = time.monotonic() - self._started
                self._end = self._end or why
                self._changed.notify_all()

    def _listen(self, pipe: int) -> None:
        with open(pipe, errors="replace") as lines, self.log.open("w") as log:
            for line in lines:
                log.write(line)
                log.flush()
                self._console.append(line)

    def _hear(self, line: str) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            said = {"do": "error", "text": f"not a result: {line!r}"}
        with self._changed:
            self._heard = time.monotonic()
            match said["do"]:
                case "start":
                    self.boot_s = self.boot_s or self._heard - self._started
                    self._running = said["test"]
                case "end":
                    self._running = None
                    self._results[said["test"]] = Result(
                        said["outcome"],
                        said["text"],
                        said["seconds"],
                        said["sections"],
                        said["seen"],
                    )
                case "error":
                    self._errors.append(said["text"])
                case "run":
                    self.summary = said
            self._changed.notify_all()

    # --- for the tests --------------------------------------------------------------------------

    def result(self, test: str) -> Result:
        """What became of a test, as soon as that is known."""
        with self._changed:
            while test not in self._results and self._end is None:
                silent = time.monotonic() - self._heard
                limit = SILENCE_S if self.boot_s else BOOT_S
                if silent > limit:
                    self._end = f"the guest said nothing for {silent:.0f} s and was ended"
                    if self._guest is not None:
                        self._guest.kill()
                else:
                    self._changed.wait(limit - silent + 1)
            if test in self._results:
                return self._results[test]
            when = "during this test" if self._running == test else "without a result of this test"
            at = f" (it was at {self._running})" if self._running not in (None, test) else ""
            text = f"{when}{at}: {self._end}\n"
            if self._told_end:
                text += "The first test without a result has what its console said.\n"
            else:
                tail = "".join(self._console)
                errors = "\n".join(self._errors)
                text += f"{errors}\nIts console ({self.log}) at last:\n{tail}"
            self._told_end = True
            return Result("failed", text)

    def slowest(self, count: int) -> list[tuple[float, str]]:
        """The tests that took the most, in seconds of the guest's clock."""
        found = sorted(((r.seconds, test) for test, r in self._results.items()), reverse=True)
        return found[:count]

    def wait(self) -> None:
        """Until the guest has ended by itself, for some seconds at the most."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, timeout=60)
