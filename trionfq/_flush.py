"""One instrument a trio run: it sends what waits, before trio sleeps and in every busy tick.

``before_io_wait`` runs at the end of every tick, so verdicts of all tasks leave together, at the
latest at the end of the tick in which they were given. It runs after trio has fixed its timeout:
nothing that it calls may reschedule a task (the task would sleep on), and it must never raise,
since trio would then remove it and all flushing would stop.
"""

from __future__ import annotations

from typing import Protocol

import trio


class Flushable(Protocol):
    """What registers with the instrument."""

    def before_io_wait(self) -> None:
        """Send what waits; never raises, never reschedules a task."""


class _FlushInstrument(trio.abc.Instrument):
    def __init__(self) -> None:
        self.members: dict[Flushable, None] = {}

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        for member in self.members:
            member.before_io_wait()


# Left installed: adding and removing costs more than an empty pass a tick.
_instrument: trio.lowlevel.RunVar[_FlushInstrument] = trio.lowlevel.RunVar("trionfq-flush")


def register(member: Flushable) -> None:
    """Have a member flushed at the end of every tick of this run."""
    try:
        instrument = _instrument.get()
    except LookupError:
        instrument = _FlushInstrument()
        trio.lowlevel.add_instrument(instrument)
        _instrument.set(instrument)
    # A new dict, since a member may register while the old one is walked.
    instrument.members = {**instrument.members, member: None}


def unregister(member: Flushable) -> None:
    """Undo `register`; harmless when repeated."""
    instrument = _instrument.get()
    instrument.members = {m: None for m in instrument.members if m is not member}
