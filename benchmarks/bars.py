"""What trionfq promises of its speed, each bar once, and whether a run kept it.

A bar is about medians within one run. Missing one is said and is no failure: hosts differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from . import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .reporting import Result
    from .rows import Load, Subject

P50, P99 = "us round trip p50", "us round trip p99"
GROWTH = "MiB more after 10 than after 1 million"


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
      group: what it is about, as the table and the picture show it.
      row: name of the row in the results.
      subject: whose median it is about.
      reference: by whose median that is divided; None where the number itself is promised.
      bar: the most, or the least, that it may be.
      load: the row's load.
      unit: the results' unit.
      least: whether more is better.
      aim: a better value that was aimed at.
    """

    group: str
    row: str
    subject: Subject
    reference: Subject | None
    bar: float
    load: Load = "closed loop"
    unit: str = "us/packet"
    least: bool = False
    aim: float | None = None

    @property
    def limit(self) -> str:
        """The bar in words."""
        number = f"{self.bar:,.0f}" if self.bar >= 1000 else f"{self.bar:.2f}"
        aim = f" (aim {self.aim:.2f})" if self.aim else ""
        return f"{'at least' if self.least else 'at most'} {number}{aim}"


class Judged(NamedTuple):
    """A bar, and what was measured.

    Attributes:
      bar: the promise.
      measured: the medians' ratio; None where a row or its reference was not measured.
      undisturbed: the same of each one's best run, which other programs disturbed least.
    """

    bar: Bar
    measured: float | None
    undisturbed: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar was met; None where nothing was measured."""
        if self.measured is None:
            return None
        if self.bar.least:
            return self.measured >= self.bar.bar
        return self.measured <= self.bar.bar


_ACCEPT = "accept, 32 bytes"
_AWAITS = "handler that lets other tasks run"
_HELD = "1 and 10,000 held"

BARS: tuple[Bar, ...] = (
    Bar("async for, accept", _ACCEPT, rows.LOOP, rows.NFQ, 0.62),
    Bar("async for, accept", _ACCEPT, rows.LOOP, rows.NFQ_TRIO, 0.21),
    Bar("async for, accept", _ACCEPT, rows.LOOP, rows.C_RECV, 0.75),
    Bar("batches() or a sync handler", _ACCEPT, rows.BATCHES, rows.NFQ, 0.55),
    Bar("batches() or a sync handler", _ACCEPT, rows.SERVE, rows.NFQ, 0.55),
    Bar("as many a read as C", _ACCEPT, rows.BATCHES, rows.C_BATCH_256, 1.6),
    Bar("as many a read as C", _ACCEPT, rows.SERVE, rows.C_BATCH_256, 1.6),
    Bar("as many a read as C", _ACCEPT, rows.BATCHES_64, rows.C_BATCH_64, 1.6),
    Bar("as many a read as C", _ACCEPT, rows.SERVE_64, rows.C_BATCH_64, 1.6),
    Bar("payload read, then accept", "payload read", rows.LOOP, rows.NFQ, 0.80),
    Bar("mixed verdicts", "every other dropped", rows.LOOP, rows.NFQ, 0.87),
    Bar("one held", "1 held", rows.LOOP, rows.NFQ, 0.87),
    Bar(
        "10,000 held, deep backlog",
        _HELD,
        rows.LOOP.holding(10_000),
        rows.LOOP.holding(1),
        1.10,
        load="deep backlog",
    ),
    Bar("serve(), async handler", _ACCEPT, rows.SERVE_ASYNC, rows.NFQ_TRIO, 0.33, aim=0.30),
    Bar("serve(), async handler", _ACCEPT, rows.SERVE_DEADLINE, rows.NFQ_TRIO, 0.33),
    Bar(
        "async for, deep backlog",
        _ACCEPT,
        rows.LOOP,
        rows.NFQ,
        0.90,
        load="deep backlog",
        aim=0.85,
    ),
    *(
        Bar(
            f"round trip of a ping, {unit.split()[-1]}",
            "round trip of a ping",
            rows.LOOP,
            rows.NFQ_TRIO,
            1.0,
            load="low",
            unit=unit,
            aim=0.85,
        )
        for unit in (P50, P99)
    ),
    *(
        Bar(
            f"two worker processes, packets/s, policy of {policy_us} us",
            f"worker processes, policy of {policy_us} us",
            rows.TWO_WORKERS,
            rows.ONE_WORKER,
            1.7,
            load="8 senders",
            unit="packets/s",
            least=True,
        )
        for policy_us in rows.POLICIES_US
    ),
    Bar(
        "replay, packets/s on one core",
        "replay, addresses and ports read",
        rows.REPLAY,
        None,
        300_000,
        load="none",
        unit="packets per second of CPU",
        least=True,
    ),
    Bar("memory, MiB more after 10 million", "memory", rows.LOOP, None, 1.0, unit=GROWTH),
)


def judged(
    results: Sequence[Result], bars: Sequence[Bar] = BARS, *, measured_only: bool = False
) -> list[Judged]:
    """What a run says of each bar, or only of those that it is about."""
    found = {(each.row, each.load, each.unit, each.subject): each for each in results}
    judgements = []
    for bar in bars:
        own = found.get((bar.row, bar.load, bar.unit, bar.subject.name))
        other = bar.reference and found.get((bar.row, bar.load, bar.unit, bar.reference.name))
        best = max if bar.least else min
        if own is None or (bar.reference and not other):
            judgement = Judged(bar, None)
        elif other:
            judgement = Judged(bar, own.median / other.median, best(own.runs) / best(other.runs))
        else:
            judgement = Judged(bar, own.median, best(own.runs))
        if judgement.measured is not None or not measured_only:
            judgements.append(judgement)
    return judgements


def bar_table(judgements: Sequence[Judged]) -> str:
    """Every bar as a line of Markdown, kept or missed; empty if there is none."""
    lines = [
        "| what | subject | divided by | bar | measured | best runs | |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for each in judgements:
        bar = each.bar
        verdict = {None: "not measured", True: "met", False: "**missed**"}[each.met]
        reference = bar.reference.name if bar.reference else ""
        numbers = [_shown(each.measured), _shown(each.undisturbed)]
        cells = [bar.group, bar.subject.name, reference, bar.limit, *numbers, verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if judgements else ""


def _shown(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3f}"
