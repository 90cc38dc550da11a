"""Measure, print, and keep the results: ``python -m benchmarks``; usually by ``make bench``.

Environment: QUICK=1 measures what bars are about in three minutes; ROWS=TEXT only rows whose name
contains it (nothing is kept then); RUNS=N and SECONDS=X, how often and how long each is measured;
RT=1 runs everything that is measured with a real-time policy, for a busy machine (root only).
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from .bars import bar_table, judged
from .measuring import measure_cpu, measure_memory, measure_ping, measure_replay
from .network import enter_own_namespace
from .processes import MeasuringError, StarvedError, be_realtime, cores, realtime_wanted
from .reporting import ABOUT, LATEST, Result, host, load_average, table, write_json
from .rows import ROWS
from .tables import write_docs
from .tcp import measure_tcp
from .tcp import missing as missing_for_tcp
from .workers import measure_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .measuring import Run
    from .rows import Kind, Row, Subject

RUNS, SECONDS = 5, 1.0
QUICK_RUNS, QUICK_SECONDS = 3, 0.4
_QUICK_S = 165.0  # where a busy machine makes a quick run long, it is cut short
_BUSY = 0.5
_FAILURES, _STARVED = 2, 2

MEASURES: dict[Kind, Callable[[Row, Subject, float], Run]] = {
    "cpu": measure_cpu,
    "ping": measure_ping,
    "replay": measure_replay,
    "memory": measure_memory,
    "tcp": measure_tcp,
    "workers": measure_workers,
}


def chosen(rows: Iterable[Row], *, quick: bool, wanted: str) -> list[Row]:
    """The rows to measure: those whose names contain a text, with fewer subjects if quick."""
    found = [row for row in rows if wanted in row.name]
    if quick:
        return [replace(row, subjects=row.quick) for row in found if row.quick]
    return found


def left_out(row: Row) -> str:
    """Why a row cannot be measured here; empty if it can."""
    if row.kind == "tcp":
        return missing_for_tcp()
    if row.load == "deep backlog" and os.environ.get("TRIONFQ_NAMESPACES") == "user":
        return "only root outside of user namespaces may force a send buffer (SO_SNDBUFFORCE)"
    return ""


def measure_row(row: Row, runs: int, seconds: float, until: float = math.inf) -> list[Result]:
    """All runs of a row's subjects, who alternate; none is begun after ``until`` (monotonic)."""
    values: dict[str, dict[str, list[float]]] = {}
    failures = dict.fromkeys(row.subjects, 0)  # before the first success; -1 after it
    for _ in range(1 if row.kind == "memory" else runs):
        for subject in row.subjects:
            if time.monotonic() > until:
                break
            if failures[subject] == _FAILURES:
                continue  # at the start of all runs: it cannot do this here
            try:
                run = _measure(row, subject, seconds)
            except (MeasuringError, OSError) as error:
                failures[subject] += failures[subject] >= 0
                print(f"  {row.name}, {subject.name}: not measured: {error}", file=sys.stderr)
                continue
            if run.lost:
                print(f"  {subject.name}: {run.lost} packets found no room", file=sys.stderr)
            failures[subject] = -1
            for unit, value in run.values.items():
                values.setdefault(unit, {}).setdefault(subject.name, []).append(value)
    return [
        Result(row.name, subject.name, row.load, unit, of_unit[subject.name])
        for unit, of_unit in values.items()
        for subject in row.subjects
        if subject.name in of_unit
    ]


def _measure(row: Row, subject: Subject, seconds: float) -> Run:
    """One run, done again where other programs did not let it happen."""
    for _ in range(_STARVED):
        with suppress(StarvedError):
            return MEASURES[row.kind](row, subject, seconds)
    return MEASURES[row.kind](row, subject, seconds)


def _prepared() -> str:
    """Make this process one that measures; says how the programs run."""
    program, sender = cores()
    said = f"programs on core {program}, senders on core {sender}"
    if program == sender:
        print("one core for both: only ratios to other such runs mean anything", file=sys.stderr)
    if realtime_wanted():
        try:
            be_realtime(above=1)
        except PermissionError:
            sys.exit("RT=1 needs root (CAP_SYS_NICE): leave it out")
        said += ", all with a real-time policy (RT=1)"
    elif load_average() > _BUSY:
        print(
            f"this machine is busy (load average {load_average()}): read ratios only, or as root"
            " try RT=1",
            file=sys.stderr,
        )
    return said


def main() -> None:
    """Measure what the environment asks for."""
    # So that what was started is ended; by default only this process would be.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    quick = os.environ.get("QUICK", "") not in ("", "0")
    wanted = os.environ.get("ROWS", "")
    runs = int(os.environ.get("RUNS", QUICK_RUNS if quick else RUNS))
    seconds = float(os.environ.get("SECONDS", QUICK_SECONDS if quick else SECONDS))
    started = time.monotonic()
    until = started + _QUICK_S if quick else math.inf
    date = time.strftime("%Y-%m-%d", time.gmtime())
    about = (
        f"{date}: {host()}; {runs} alternating runs of {seconds} s; {_prepared()}; "
        f"load average before: {load_average()}"
    )
    print(about + "\n", flush=True)
    results: list[Result] = []
    with enter_own_namespace():
        for row in chosen(ROWS, quick=quick, wanted=wanted):
            if why := left_out(row):
                print(f"  {row.name}, {row.load}: left out: {why}\n", file=sys.stderr, flush=True)
                continue
            of_row = measure_row(row, runs, seconds, until)
            if time.monotonic() > until:
                print(f"  {row.name}, {row.load}: cut short: time is over", file=sys.stderr)
            print(table(of_row) + "\n", flush=True)
            results += of_row
    print(bar_table(judged(results, measured_only=bool(wanted))) + "\n")
    if not wanted:
        write_json(results, LATEST)
        ABOUT.write_text(about + "\n")
        if quick:
            print("kept in benchmarks/results; docs/ shows a full run, so it stays as it is")
        else:
            write_docs()
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
