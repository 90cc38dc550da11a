"""``trionfq replay``: a capture through a policy, without privilege."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio
import trio.testing

from trionfq import ReplayBackend, Verdict, open_queue
from trionfq.captures import PacketSource, transcript_digest, transcript_lines, write_transcript
from trionfq.cli._console import Lines, progress
from trionfq.cli._faults import FaultType
from trionfq.cli._policy import Policy
from trionfq.cli._running import VERDICTS, told_apart
from trionfq.cli._source import ordinary_options, source_of
from trionfq.testing import FaultyBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionfq import Packet
    from trionfq.captures import Outcome
    from trionfq.testing import Fault

_TRANSCRIPTS = (".jsonl", ".parquet")
_VERDICT_BITS = 0xFF


@click.command()
@click.argument("capture", type=click.Path(exists=True, dir_okay=False))
@click.argument("policy", type=Policy())
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    help='Write the transcript to a file, .jsonl or .parquet; "-" for JSON Lines on the output.',
)
@click.option("--times", is_flag=True, help="With the times of arrival, and times to decide.")
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@click.option("--json", "as_json", is_flag=True, help="The sum as one line of JSON.")
@click.option("--queue", type=click.IntRange(0, 0xFFFF), help="The recorded queue, of several.")
@click.option("--port-id", type=click.IntRange(0), help="The recorded program, of several.")
@click.option(
    "--pace",
    type=click.Choice(["asked", "timed", "lockstep"]),
    default="asked",
    show_default=True,
    help="When packets come: when asked for, at their times, or when all tasks are blocked.",
)
@click.option("--no-wait", is_flag=True, help="On a clock that jumps: hours pass in no time.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Most packets that an async policy works on at a time.",
)
@click.option("--deadline", type=float, help="Seconds that a packet may stay undecided.")
@click.option(
    "--undecided",
    type=click.Choice(list(VERDICTS)),
    default="drop",
    show_default=True,
    help="The verdict on packets that the policy leaves.",
)
@click.option(
    "--copy-range",
    type=click.IntRange(0, 0xFFFF),
    default=0xFFFF,
    show_default=True,
    help="Most bytes of a packet that the policy is shown.",
)
@click.option(
    "--check",
    type=click.Choice(["sample", "all", "off"]),
    default="sample",
    show_default=True,
    help="What of the messages sent is judged.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    type=FaultType(),
    help="What goes wrong, such as overrun:at=7 or refuse:rate=0.1,error=EPERM; repeatable.",
)
@ordinary_options
def command(
    capture: str,
    policy: Callable[[Packet], Any],
    output: str | None,
    times: bool,
    overwrite: bool,
    as_json: bool,
    queue: int | None,
    port_id: int | None,
    pace: Any,
    no_wait: bool,
    seed: int,
    workers: int,
    deadline: float | None,
    undecided: str,
    copy_range: int,
    check: Any,
    faults: tuple[Fault, ...],
    **ordinary: Any,
) -> None:
    """Give the packets of CAPTURE to POLICY, and tell what became of each.

    CAPTURE is of nfqueue traffic, or of ordinary packets (pcap, pcapng; gzip, zstd), which become
    a queue's. POLICY is module:function or file.py:function: a function or an async function of
    one packet. After Ctrl-C the transcript has the packets up to there.
    """
    _check_output(output, overwrite=overwrite)
    source = source_of(capture, queue=queue, port_id=port_id, chosen=ordinary)
    named = None if isinstance(source, PacketSource) or port_id is not None else queue
    replay = ReplayBackend(source, queue=named, pace=pace, check=check, seed=seed)
    faulty = FaultyBackend(replay, faults, seed=seed) if faults else None
    clock = trio.testing.MockClock(autojump_threshold=0) if no_wait else None
    with progress(f"replay of {capture}") as tell:
        count = 0

        def before() -> None:
            nonlocal count
            count += 1
            tell(count)

        run = partial(
            _run,
            faulty or replay,
            replay.recorded_queue or 0,
            told_apart(policy, before),
            copy_range=copy_range,
            workers=workers,
            undecided=VERDICTS[undecided],
            deadline_s=deadline,
        )
        ended = False
        try:
            trio.run(run, clock=clock, restrict_keyboard_interrupt_to_checkpoints=True)
            ended = True
        finally:
            # Also where it broke off: what was decided up to there is the most wanted.
            outcomes = replay.transcript
            if ended or outcomes:
                _write(output, outcomes, times=times, overwrite=overwrite)
                found = _sum(outcomes) | {
                    "complete": ended,
                    "shortfalls": dict(replay.shortfalls),
                    "left_out": dict(source.skipped) if not isinstance(source, str) else {},
                    "faults": dict(Counter(type(each.fault).__name__ for each in faulty.injected))
                    if faulty
                    else {},
                    "transcript": output,
                }
                _tell(found, as_json=as_json, to_errors=output == "-")


async def _run(
    backend: ReplayBackend | FaultyBackend,
    number: int,
    policy: Callable[[Packet], Any],
    *,
    copy_range: int,
    **options: Any,
) -> None:
    async with open_queue(number, backend=backend, copy_range=copy_range) as queue:
        await queue.serve(policy, **options)


# --- the transcript -------------------------------------------------------------------------------


def _check_output(output: str | None, *, overwrite: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if output in (None, "-"):
        return
    path = Path(output or "")
    if path.suffix not in _TRANSCRIPTS:
        raise click.BadParameter(
            f"expected a name in {' or '.join(_TRANSCRIPTS)}, got {path.name}", param_hint="-o"
        )
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise click.BadParameter(
            "Parquet needs pyarrow: pip install 'trionfq[parquet]', or write .jsonl",
            param_hint="-o",
        )
    if path.exists() and not overwrite:
        raise click.BadParameter(f"{path} is there already: see --overwrite", param_hint="-o")
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}", param_hint="-o")


def _write(output: str | None, outcomes: list[Outcome], *, times: bool, overwrite: bool) -> None:
    if output is None:
        return
    if output == "-":
        out = Lines()
        for line in transcript_lines(outcomes, times=times):
            out.write(line.decode().rstrip("\n"))
        return
    # Under another name until it is whole, so that nobody meets a part of one.
    path = Path(output)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write_transcript(part, outcomes, times=times, overwrite=overwrite)
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _sum(outcomes: list[Outcome]) -> dict[str, Any]:
    """The transcript in numbers."""
    verdicts = Counter(
        "undecided" if each.verdict is None else _name(each.verdict) for each in outcomes
    )
    return {
        "packets": len(outcomes),
        "verdicts": dict(sorted(verdicts.items())),
        "marked": sum(each.mark is not None for each in outcomes),
        "rewritten": sum(each.payload is not None for each in outcomes),
        "digest": transcript_digest(outcomes),
    }


def _name(verdict: int) -> str:
    try:
        return Verdict(verdict & _VERDICT_BITS).name.lower()
    except ValueError:
        return str(verdict & _VERDICT_BITS)


def _tell(found: Mapping[str, Any], *, as_json: bool, to_errors: bool) -> None:
    out = Lines(errors=to_errors)
    if as_json:
        out.json(found)
        return
    verdicts = ", ".join(f"{count} {name}" for name, count in found["verdicts"].items())
    out.write(
        f"{found['packets']} packets: {verdicts or 'none'}; "
        f"{found['marked']} marked, {found['rewritten']} rewritten"
    )
    for what, text in (
        ("left_out", "left out"),
        ("shortfalls", "less than asked for"),
        ("faults", "faults"),
    ):
        for kind, count in found[what].items():
            out.write(f"{text}: {kind}: {count}")
    if not found["complete"]:
        out.write("it broke off there")
