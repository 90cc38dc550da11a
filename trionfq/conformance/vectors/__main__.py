"""``python -m trionfq.conformance.vectors``: give the vectors to a program, or make them anew."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trionfq.conformance.vectors import FILE, load, run

_EXIT_CODES = "exit code: 0 agreement, 1 disagreement, 2 the program cannot be started"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trionfq.conformance.vectors", description=__doc__, epilog=_EXIT_CODES
    )
    commands = parser.add_subparsers(required=True, dest="command")
    runner = commands.add_parser("run", help="give every vector to a program", epilog=_EXIT_CODES)
    runner.add_argument("--json", action="store_true", help="report as JSON")
    runner.add_argument("--answer", type=float, default=5.0, help="seconds for one answer")
    runner.add_argument("--total", type=float, default=300.0, help="seconds for all")
    runner.add_argument("program", nargs="+", help="the program and its arguments, behind --")
    maker = commands.add_parser("make", help="make the file anew")
    maker.add_argument("fixtures", type=Path, help="folder of the recordings")
    chosen = parser.parse_args(arguments)
    if chosen.command == "make":
        return _make(chosen.fixtures)
    try:
        found = run(chosen.program, load(), answer_s=chosen.answer, total_s=chosen.total)
    except OSError as error:
        sys.stderr.write(f"{chosen.program[0]}: {error.strerror}\n")
        return 2
    if chosen.json:
        sys.stdout.write(json.dumps(found.as_json()) + "\n")
    else:
        for each in found.disagreements:
            sys.stdout.write(f"{each}\n")
        counts = ", ".join(f"{count} {kind}" for kind, count in found.agreed.items())
        left = f"{found.skipped} skipped, {len(found.disagreements)} disagreed"
        sys.stdout.write(f"agreed: {counts}; {left}\n")
    return 0 if found.passed else 1


def _make(fixtures: Path) -> int:
    # Only here: it needs the recordings, which the package does not bring.
    from trionfq.conformance.vectors._make import text_of, vectors

    path = Path(__file__).with_name(FILE)
    path.write_text(text_of(vectors(fixtures)))
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
