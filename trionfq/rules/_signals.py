"""SIGTERM and SIGHUP while a rule is in place: they end the run in order, and the process after it.

By their default action they kill at once, and the rule would stay. So as long as there are rules,
and nobody else has set a handler, such a signal cancels the blocks of all rules. When the last rule
is gone, SystemExit unwinds the rest of the run, and when the run is over the process sends the
signal to itself, so that whoever waits for it sees that it ended by that signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from types import FrameType

HANDLED = tuple(
    number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)


class _Ending(trio.abc.Instrument):
    """Ends the process once the run is over."""

    def __init__(self, number: int) -> None:
        self._number = number

    def after_run(self) -> None:
        """Called by trio when every task has ended."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        signal.signal(self._number, signal.SIG_DFL)
        os.kill(os.getpid(), self._number)


class _Watch:
    """The signals of one run, as long as there are rules."""

    def __init__(self) -> None:
        self._scopes: list[trio.CancelScope] = []
        self._taken: list[signal.Signals] = []
        self._token: trio.lowlevel.TrioToken | None = None
        self.received: int | None = None

    def enter(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when a signal comes; whoever has set a handler keeps it."""
        if threading.current_thread() is not threading.main_thread():
            return  # signal(2) handlers belong to the main thread
        if not self._scopes:
            self._token = trio.lowlevel.current_trio_token()
            self.received = None
            for number in HANDLED:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._handle)
                    self._taken.append(number)
        self._scopes.append(scope)

    def leave(self, scope: trio.CancelScope) -> int | None:
        """The rule is gone; the signal that came, if one did."""
        if scope not in self._scopes:
            return None
        self._scopes.remove(scope)
        received = self.received
        if not self._scopes:
            for number in self._taken:
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, signal.SIG_DFL)
            self._taken.clear()
            self._token = None
            if received is not None:
                trio.lowlevel.add_instrument(_Ending(received))
        return received

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = number
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._cancel, idempotent=True)

    def _cancel(self) -> None:
        for scope in self._scopes:
            scope.cancel()


watch = _Watch()
"""Of the main thread, which handlers belong to."""
