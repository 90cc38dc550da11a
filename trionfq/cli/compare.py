"""``trionfq compare``: where two runs part."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from trionfq.captures import compare, transcript_lines
from trionfq.cli._commands import Code
from trionfq.cli._console import lines, progress

if TYPE_CHECKING:
    from trionfq.captures import Outcome

_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: differences, then the sum.")
@click.option(
    "--packets", type=_FILE, help="A capture with the packets, for the text of differences."
)
@click.option(
    "--ignore",
    multiple=True,
    type=click.Choice(["verdict", "mark", "payload", "changes"]),
    help="What shall not count.",
)
@click.option(
    "--most", default=20, show_default=True, type=click.IntRange(0), help="Shown in full in text."
)
@click.pass_context
def command(
    ctx: click.Context,
    a: str,
    b: str,
    as_json: bool,
    packets: str | None,
    ignore: tuple[str, ...],
    most: int,
) -> None:
    """Say where runs A and B part, packet by packet.

    Each is a transcript (.jsonl, .parquet), or a capture, whose recorded verdicts are meant.
    """
    with lines() as out:
        with progress(f"{a} and {b}"):
            found = compare(a, b, packets=packets, names=(a, b), ignore=ignore)
        if not as_json:
            out.write(found.report(most))
        else:
            for each in found.differences:
                out.json(
                    {
                        "recorded_id": each.recorded_id,
                        "fields": each.fields,
                        "a": _fields(each.a),
                        "b": _fields(each.b),
                        "packet": None if each.packet is None else each.packet.hex(),
                    }
                )
            totals = {"packets": found.packets, "differences": len(found.differences)}
            out.json({"totals": {"same": found.same, **totals}})
    ctx.exit(Code.FINE if found.same else Code.FOUND)


def _fields(outcome: Outcome | None) -> Any:
    """An outcome as a transcript has it."""
    if outcome is None:
        return None
    _header, line = transcript_lines([outcome])
    return json.loads(line)
