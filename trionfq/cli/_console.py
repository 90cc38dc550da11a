"""What commands write: results in whole lines, and progress where somebody looks at it."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


class Lines:
    """Writes lines so that Ctrl-C comes between two of them, never in one.

    Args:
      errors: write to standard error instead.
    """

    def __init__(self, *, errors: bool = False) -> None:
        self._errors = errors
        self._writing = False
        self._interrupted = False

    def write(self, text: str) -> None:
        """One line, or several that belong together; the newline is added.

        Raises:
          KeyboardInterrupt: it came meanwhile, and the line is written.
          BrokenPipeError: nobody reads any more.
        """
        self._writing = True
        try:
            with _display_away(errors=self._errors):
                click.echo(text, err=self._errors)
        finally:
            self._writing = False
        if self._interrupted:
            raise KeyboardInterrupt

    def json(self, value: Any) -> None:
        """A value as one line of JSON."""
        self.write(json.dumps(value))

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-C: now, or when the line is written."""
        if self._writing:
            self._interrupted = True
        else:
            raise KeyboardInterrupt


@contextmanager
def lines() -> Iterator[Lines]:
    """`Lines` for a command that does not run trio, which has a handler of its own for Ctrl-C."""
    found = Lines()
    try:
        before = signal.signal(signal.SIGINT, found.interrupt)
    except ValueError:  # not the main thread, to which alone Ctrl-C comes
        yield found
        return
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


_displays: list[Progress] = []


def is_terminal() -> bool:
    """Whether results are shown where progress is."""
    return sys.stdout.isatty()


@contextmanager
def _known(display: Progress) -> Iterator[None]:
    _displays.append(display)
    try:
        yield
    finally:
        _displays.pop()


@contextmanager
def _display_away(*, errors: bool) -> Iterator[None]:
    """Take the display off the terminal while something else is written to it."""
    if not _displays or not (errors or is_terminal()):
        yield
        return
    _displays[-1].stop()
    try:
        yield
    finally:
        _displays[-1].start()


@contextmanager
def progress(
    what: str, *, total: int | None = None, unit: str = "packets", every: int = 256
) -> Iterator[Callable[[int], None]]:
    """A display on standard error, where that is a terminal; gives what tells it the state.

    Args:
      what: what is done.
      total: the number that it ends with, None where nobody knows.
      unit: what is counted, without a total.
      every: calls between two changes of the display, each of which costs something.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _number: None
        return
    ending = (BarColumn(),) if total else (TextColumn("{task.completed} " + unit),)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *ending, TimeElapsedColumn())
    # Without redirecting, which would have results go where the display is.
    shown = Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    )
    with shown as display, _known(display):
        task = display.add_task(what, total=total)
        calls = 0

        def tell(number: int) -> None:
            nonlocal calls
            calls += 1
            if calls % every == 0:
                display.update(task, completed=number)

        yield tell
