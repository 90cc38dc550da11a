"""Numbers of runs made into a table, ratios and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"
ABOUT = RESULTS / "latest.txt"  # when, where and how, in a line

# Whose median others are divided by, and the heading of that column.
BASELINES = {
    "NetfilterQueue": "/NFQ",
    "NetfilterQueue from trio": "/NFQ trio",
    "C recv, send": "/C recv",
    "C VERDICT_BATCH 64": "/C 64",
    "C VERDICT_BATCH 256": "/C 256",
    "C VERDICT_BATCH": "/C batch",
    "no queue": "/no queue",
    "NetfilterQueue, 1 held": "/NFQ, 1",
    "trionfq async for, 1 held": "/async for, 1",
    "trionfq batches(), 1 held": "/batches(), 1",
}
COST, RATE = "us/packet", "packets/s"


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


def read_json(path: Path) -> list[Result]:
    """What `write_json` wrote."""
    return [
        Result(*(entry[key] for key in Result._fields)) for entry in json.loads(path.read_text())
    ]


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
    """All results as Markdown, a table for each row and unit.

    Packets a second go into one table with the microseconds that they are the other side of.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row, result.load, result.unit), []).append(result)
    parts = []
    for (row, load, unit), group in groups.items():
        costs = groups.get((row, load, COST))
        if unit == RATE and costs:
            continue
        rates = groups.get((row, load, RATE), []) if unit == COST else []
        title = f"**{row}**, {unit}" if load == "none" else f"**{row}**, {load}, {unit}"
        parts.append(f"{title}\n\n{_lines(group, rates)}")
    return "\n\n".join(parts)


def _lines(group: list[Result], rates: list[Result]) -> str:
    """One table; ``rates`` give its last column."""
    divided = {} if group[0].unit.startswith("packets") or len(group) == 1 else ratios(group)
    headings = list(dict.fromkeys(h for columns in divided.values() for h in columns))
    a_second = {result.subject: _number(result.median) for result in rates}
    last = [RATE] if rates else []
    lines = [
        "| " + " | ".join(["subject", "median", "min to max", *headings, *last]) + " |",
        "|---|" + "---:|" * (2 + len(headings) + len(last)),
    ]
    for result in group:
        cells = [
            result.subject,
            _number(result.median),
            f"{_number(min(result.runs))} to {_number(max(result.runs))}",
            *(f"{divided[result.subject][h]:.2f}" for h in headings),
            *([a_second.get(result.subject, "")] if rates else []),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def host() -> str:
    """The machine, in a line."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    allowed = len(os.sched_getaffinity(0))
    return (
        f"{cpu}, {allowed} {'core' if allowed == 1 else 'cores'}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, trio {version('trio')}"
    )


def load_average() -> float:
    """Programs that ran or wanted to, over the last minute."""
    return float(Path("/proc/loadavg").read_text().split()[0])
