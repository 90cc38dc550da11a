"""The pages of docs/ that show results, made anew from them: ``python -m benchmarks.tables``."""

from __future__ import annotations

from pathlib import Path

from .bars import bar_table, judged
from .picture import draw
from .reporting import ABOUT, LATEST, read_json, table

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance-tables.md"
PICTURE = DOCS / "performance-ratios.svg"

_HEAD = """\
<!-- Made by `make bench` from benchmarks/results; not to be edited. -->
# Benchmark results

All rows of one `make bench`; [Performance](performance.md) says how it measures, and what the
numbers mean.
"""

_BARS = """\
*Measured* is a ratio of medians, and what a bar is about; *best runs* is the same of each one's
best run, which other programs on the machine disturbed least."""


def write_docs() -> None:
    """Write the page and the picture of the latest results."""
    results = read_json(LATEST)
    about = ABOUT.read_text().strip()
    judgements = judged(results)
    PAGE.write_text(
        f"{_HEAD}\n{about}.\n\n## Bars\n\n{_BARS}\n\n{bar_table(judgements)}\n\n"
        f"## Rows\n\n{table(results)}\n"
    )
    draw(judgements, PICTURE)


if __name__ == "__main__":
    write_docs()
