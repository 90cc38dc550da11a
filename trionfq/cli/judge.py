"""``trionfq judge``: what in captures breaks the protocol."""

from __future__ import annotations

import click

from trionfq.cli._commands import Code
from trionfq.cli._console import lines
from trionfq.cli._reading import CAPTURE, reading
from trionfq.conformance import RULES, Severity, judge

_SEVERITIES = [severity.value for severity in Severity]


@click.command()
@click.argument("captures", nargs=-1, type=CAPTURE)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: findings, then each file's sum.")
@click.option(
    "--least",
    type=click.Choice(_SEVERITIES),
    default=_SEVERITIES[-1],
    show_default=True,
    help="The least severity that is shown; all are counted.",
)
@click.option("--rules", is_flag=True, help="List the rules instead.")
@click.pass_context
def command(
    ctx: click.Context, captures: tuple[str, ...], as_json: bool, least: str, rules: bool
) -> None:
    """Say what in CAPTURES of any program's nfqueue traffic breaks the protocol.

    "-" is standard input. A capture fails by errors and warnings; notes alone let it pass.
    """
    with lines() as out:
        if rules:
            for rule in RULES.values():
                if as_json:
                    out.json({**rule._asdict(), "severity": rule.severity.value})
                else:
                    out.write(f"{rule.id}  {rule.severity.value:7}  {rule.title}")
            return
        if not captures:
            raise click.UsageError("name a capture at least, or give --rules")
        shown = _SEVERITIES[: _SEVERITIES.index(least) + 1]
        passed = True
        for name in captures:
            with reading(name) as stream:
                report = judge(stream)
                for finding in report:
                    if finding.rule.severity.value in shown:
                        if as_json:
                            out.json({"file": name, **finding.as_json()})
                        else:
                            out.write(f"{name}: {finding}")
            passed &= report.passed
            if as_json:
                out.json({"file": name, "totals": report.as_json()})
            else:
                counts = report.totals.severities()
                listed = ", ".join(f"{count} {each.value}s" for each, count in counts.items())
                out.write(
                    f"{name}: {'passed' if report.passed else 'FAILED'}: "
                    f"{report.totals.messages} messages, {report.totals.packets} packets; {listed}"
                )
    ctx.exit(Code.FINE if passed else Code.FOUND)
