"""A picture of every bar and what was measured. The same results give the same bytes."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from .bars import Judged

# A card with its own ground, so that it can be read on a light and on a dark page.
_GROUND, _INK, _FAINT = "#fbfbf9", "#22272e", "#c9cdd2"
_MET, _MISSED = "#2b8a7e", "#d9663b"
_WIDEST = 1.8
_LINE_INCHES, _WIDTH_INCHES = 0.27, 9.6
_ROOM_LEFT = 0.42  # of the width, for names


class Line(NamedTuple):
    """A line of the picture: a heading, or a bar.

    Attributes:
      text: at its left.
      value: how long the bar is; None for a heading.
      limit: where the line of the bar stands.
      shown: what stands behind the bar.
      met: whether it was met.
    """

    text: str
    value: float | None = None
    limit: float = 0.0
    shown: str = ""
    met: bool = True


def ratio_lines(judged: Sequence[Judged]) -> list[Line]:
    """Costs by a reference's cost, grouped by what they are about."""
    found = [
        each
        for each in judged
        if each.measured is not None and each.bar.reference and not each.bar.least
    ]
    lines = []
    for group, members in groupby(found, lambda each: each.bar.group):
        lines.append(Line(group))
        for each in members:
            bar, measured = each.bar, each.measured or 0.0
            assert bar.reference
            lines.append(
                Line(
                    f"{bar.subject.name}  /  {bar.reference.name}",
                    measured,
                    bar.bar,
                    f"{measured:.2f}, bar {bar.bar:.2f}" + ("" if each.met else ": missed"),
                    bool(each.met),
                )
            )
    return lines


def share_lines(judged: Sequence[Judged]) -> list[Line]:
    """All other bars, as shares of what they ask for."""
    lines = []
    for each in judged:
        bar, measured = each.bar, each.measured
        if measured is None or (bar.reference and not bar.least):
            continue
        number = f"{measured:,.0f}" if measured >= 1000 else f"{measured:.2f}"
        missed = "" if each.met else ": missed"
        shown = f"{number}, bar {bar.limit}{missed}"
        share = max(0.0, measured / bar.bar)
        lines.append(Line(bar.group, share, 1.0, shown, bool(each.met)))
    return lines


def draw(judged: Sequence[Judged], path: Path) -> None:
    """Draw it; needs matplotlib, which nothing else here does."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "trionfq",
            "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
            "font.size": 9,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
        }
    )
    from matplotlib.figure import Figure

    panels = [
        (ratio_lines(judged), "CPU time or round trip, divided by the other's: less is better"),
        (share_lines(judged), "share of what the bar asks for"),
    ]
    panels = [(lines, title) for lines, title in panels if lines]
    heights = [len(lines) + 3.0 for lines, _ in panels]
    total, above = sum(heights) + 1, 1.0  # lines, and those above; the title is one
    figure = Figure(figsize=(_WIDTH_INCHES, _LINE_INCHES * total), facecolor=_GROUND)
    for (lines, title), height in zip(panels, heights, strict=True):
        bottom = 1 - (above + 0.5 + len(lines)) / total
        axes = figure.add_axes((_ROOM_LEFT, bottom, 0.97 - _ROOM_LEFT, len(lines) / total))
        _panel(axes, lines, title)
        above += height
    figure.text(
        0.02,
        1 - 0.5 / total,
        "What trionfq costs beside others: medians of one run. Black lines are the bars to be met.",
        va="top",
        weight="bold",
    )
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _panel(axes: Any, lines: list[Line], title: str) -> None:
    axes.set_facecolor(_GROUND)
    widest = max(_WIDEST, max(line.limit for line in lines) + 0.15)
    for at, line in enumerate(lines):
        if line.value is None:
            axes.text(
                -0.012, at, line.text, ha="right", va="center", weight="bold",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            continue
        axes.barh(
            at, min(line.value, widest), height=0.66, color=_MET if line.met else _MISSED,
            hatch=None if line.met else "////", edgecolor=_GROUND, linewidth=0,
        )  # fmt: skip
        axes.plot([line.limit, line.limit], [at - 0.45, at + 0.45], color="black", linewidth=2)
        axes.text(
            -0.012, at, line.text, ha="right", va="center",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        behind = min(max(line.value, line.limit), widest) + 0.02
        axes.text(behind, at, line.shown, va="center", ha="left", clip_on=False)
    axes.set_xlim(0, widest + 0.5)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xlabel(title)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
