"""Measure, print, and keep the results: ``python -m benchmarks``; usually by ``make bench``.

Environment: QUICK=1 measures the main rows in three minutes; ROWS=TEXT only rows whose name
contains it (nothing is kept then); RUNS=N and SECONDS=X, how often and how long each is measured.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from .measuring import MeasuringError, enter_own_namespace, measure
from .reporting import RESULTS, Result, host, table, write_json
from .rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .rows import Row

RUNS, SECONDS = 5, 1.2
QUICK_RUNS, QUICK_SECONDS = 3, 0.5


def chosen(rows: Iterable[Row], *, quick: bool, wanted: str) -> list[Row]:
    """The rows to measure: those whose names contain a text, with fewer subjects if quick."""
    found = [row for row in rows if wanted in row.name]
    if quick:
        return [replace(row, subjects=row.quick) for row in found if row.quick]
    return found


def measure_row(row: Row, runs: int, seconds: float) -> list[Result]:
    """All runs of a row's subjects, who alternate."""
    values: dict[tuple[str, str], list[float]] = {}
    for _ in range(1 if row.kind == "memory" else runs):
        for subject in row.subjects:
            try:
                run = measure(row, subject, seconds)
            except MeasuringError as error:
                print(f"  not measured: {error}", file=sys.stderr)
                continue
            if run.lost:
                print(f"  {subject.name}: {run.lost} packets found no room", file=sys.stderr)
            for unit, value in run.values.items():
                values.setdefault((unit, subject.name), []).append(value)
    return [
        Result(row.name, subject, row.load, unit, numbers)
        for (unit, subject), numbers in values.items()
    ]


def main() -> None:
    """Measure what the environment asks for."""
    quick = os.environ.get("QUICK", "") not in ("", "0")
    wanted = os.environ.get("ROWS", "")
    runs = int(os.environ.get("RUNS", QUICK_RUNS if quick else RUNS))
    seconds = float(os.environ.get("SECONDS", QUICK_SECONDS if quick else SECONDS))
    started = time.monotonic()
    print(f"{host()}; {runs} alternating runs of {seconds} s\n", flush=True)
    sink = enter_own_namespace()
    results: list[Result] = []
    for row in chosen(ROWS, quick=quick, wanted=wanted):
        of_row = measure_row(row, runs, seconds)
        print(table(of_row) + "\n", flush=True)
        results += of_row
    sink.close()
    if not wanted:
        write_json(results, RESULTS / "latest.json")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
