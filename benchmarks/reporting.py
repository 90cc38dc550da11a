"""Numbers of runs made into a table, ratios and JSON."""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"

# Whose median others are divided by, and the heading of that column.
BASELINES = {
    "NetfilterQueue": "/NFQ",
    "NetfilterQueue from trio": "/NFQ trio",
    "C recv, send": "/C recv",
    "C VERDICT_BATCH 64": "/C 64",
    "C VERDICT_BATCH 256": "/C 256",
    "C VERDICT_BATCH": "/C batch",
}


class Result(NamedTuple):
    """One subject's runs of one row, in one unit."""

    row: str
    subject: str
    load: str
    unit: str
    runs: list[float]

    @property
    def median(self) -> float:
        """The middle run's value."""
        return statistics.median(self.runs)

    def as_json(self) -> dict[str, Any]:
        """As ``results/latest.json`` has it."""
        return {
            "row": self.row,
            "subject": self.subject,
            "load": self.load,
            "median": round(self.median, 4),
            "min": round(min(self.runs), 4),
            "max": round(max(self.runs), 4),
            "unit": self.unit,
            "runs": [round(run, 4) for run in self.runs],
        }


def write_json(results: list[Result], path: Path) -> None:
    """Write all results; an interrupted run leaves the old file whole."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
    new.replace(path)


def ratios(results: list[Result]) -> dict[str, dict[str, float]]:
    """Of one row and unit: each subject's median by each baseline's, by column heading."""
    medians = {result.subject: result.median for result in results}
    return {
        subject: {
            heading: median / medians[baseline]
            for baseline, heading in BASELINES.items()
            if medians.get(baseline)
        }
        for subject, median in medians.items()
    }


def table(results: list[Result]) -> str:
    """All results as Markdown, a table for each row and unit."""
    parts = []
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row, result.load, result.unit), []).append(result)
    for (row, load, unit), group in groups.items():
        divided = ratios(group) if not unit.startswith("packets") else {}
        headings = list(dict.fromkeys(h for columns in divided.values() for h in columns))
        lines = [
            f"**{row}**, {load}, {unit}",
            "",
            "| " + " | ".join(["subject", "median", "min to max", *headings]) + " |",
            "|---|" + "---:|" * (2 + len(headings)),
        ]
        for result in group:
            cells = [
                result.subject,
                _number(result.median),
                f"{_number(min(result.runs))} to {_number(max(result.runs))}",
                *(f"{divided[result.subject][h]:.2f}" for h in headings),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def host() -> str:
    """The machine, in a line."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{cpu}, Linux {platform.release()}, Python {platform.python_version()}; "
        f"load average before: {load}"
    )
