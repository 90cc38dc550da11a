"""``trionfq record``: a queue's live traffic into a capture, and through."""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import trio

from trionfq import (
    NetlinkBackend,
    QueueFlags,
    RecordingBackend,
    Rotation,
    Verdict,
    open_queue,
)
from trionfq.cli._commands import FoundError
from trionfq.cli._console import Lines, progress
from trionfq.cli._match import MatchPart, match_of
from trionfq.cli._policy import Policy
from trionfq.cli._running import VERDICTS, told_apart
from trionfq.rules import queueing

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionfq import Packet
    from trionfq.rules import Match

_FLAGS = {flag.name.lower().replace("_", "-"): flag for flag in QueueFlags if flag.name}
_CHAINS = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--queue",
    "number",
    type=click.IntRange(0, 0xFFFF),
    default=0,
    show_default=True,
    help="The queue's number.",
)
@click.option("--policy", type=Policy(), help="What decides; without it all is accepted.")
@click.option(
    "--rule",
    "chains",
    multiple=True,
    type=click.Choice(_CHAINS, case_sensitive=False),
    help="Queue what passes this chain while it records; repeatable.",
)
@click.option(
    "--match",
    "parts",
    multiple=True,
    type=MatchPart(),
    help="What --rule queues, such as protocol=udp or dports=53,8000-8010; repeatable.",
)
@click.option("--namespace", help="Network namespace: a name of `ip netns`, or a path.")
@click.option("--count", type=click.IntRange(1), help="End after so many packets.")
@click.option("--seconds", type=float, help="End after so long.")
@click.option("--max-bytes", type=click.IntRange(1), help="Begin the next file at this size.")
@click.option("--max-seconds", type=float, help="Begin the next file at this age.")
@click.option("--keep", type=click.IntRange(1), help="Keep so many files, the newest ones.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="The sum as one line of JSON.")
@click.option(
    "--undecided",
    type=click.Choice(list(VERDICTS)),
    default="accept",
    show_default=True,
    help="The verdict on packets that the policy leaves, and at the end.",
)
@click.option(
    "--copy-range",
    type=click.IntRange(0, 0xFFFF),
    default=0xFFFF,
    show_default=True,
    help="Most bytes of a packet that are recorded.",
)
@click.option(
    "--max-len",
    type=click.IntRange(1, 0xFFFFFFFF),
    default=1024,
    show_default=True,
    help="Most packets that wait in the kernel.",
)
@click.option(
    "--flag", "flags", multiple=True, type=click.Choice(list(_FLAGS)), help="Of the queue."
)
def command(
    file: str,
    number: int,
    policy: Callable[[Packet], Any] | None,
    chains: tuple[str, ...],
    parts: tuple[tuple[str, Any], ...],
    namespace: str | None,
    count: int | None,
    seconds: float | None,
    max_bytes: int | None,
    max_seconds: float | None,
    keep: int | None,
    overwrite: bool,
    as_json: bool,
    undecided: str,
    copy_range: int,
    max_len: int,
    flags: tuple[str, ...],
) -> None:
    """Record a queue's traffic into FILE, a pcapng, and let it pass.

    Packets reach the queue by a rule of yours, or by --rule, which goes with the command; packets
    pass where nobody listens. It ends by Ctrl-C (130), --count or --seconds; the file is whole.
    Root, or CAP_NET_ADMIN, is needed.
    """
    if parts and not chains:
        raise click.UsageError("--match: belongs to --rule")
    match = match_of(parts)
    rotate = None
    if max_bytes is not None or max_seconds is not None:
        rotate = Rotation(max_bytes=max_bytes, max_seconds=max_seconds, keep=keep)
    elif keep is not None:
        raise click.UsageError("--keep: give --max-bytes or --max-seconds")
    inner = NetlinkBackend(namespace=namespace)
    try:
        recording = RecordingBackend(inner, file, overwrite=overwrite, rotate=rotate)
    except BaseException:
        inner.close()
        raise
    bits = QueueFlags(0)
    for name in flags:
        bits |= _FLAGS[name]
    with progress(f"recording queue {number} to {file}", every=1) as tell:
        session = _Session(recording, count, tell)
        started = time.monotonic()
        ended = False
        try:
            trio.run(
                partial(
                    session.run,
                    number,
                    policy or _accept,
                    rules=(chains, match, namespace),
                    seconds=seconds,
                    undecided=VERDICTS[undecided],
                    copy_range=copy_range,
                    max_len=max_len,
                    flags=bits,
                ),
                restrict_keyboard_interrupt_to_checkpoints=True,
            )
            ended = True
        finally:
            if session.bound:
                found = {
                    "packets": session.packets,
                    "seconds": round(time.monotonic() - started, 3),
                    "lost": session.lost,
                    "files": recording.paths,
                    "failed": None if recording.failed is None else str(recording.failed),
                    "interrupted": not ended,
                }
                _tell(found, as_json=as_json)
            else:
                recording.close()
                for path in recording.paths:
                    os.unlink(path)  # with nothing in it, and in the way of the next try
    if recording.failed is not None:
        raise FoundError(f"the recording ended early: {recording.failed}")


def _accept(packet: Packet) -> None:
    packet.accept()


class _Session:
    """One recording, while it runs.

    Attributes:
      packets: that were decided.
      lost: packets that the kernel had no room for, as their ids tell.
      bound: whether the queue was ever there.
    """

    def __init__(
        self, recording: RecordingBackend, count: int | None, tell: Callable[[int], None]
    ) -> None:
        self.packets = 0
        self.lost = 0
        self.bound = False
        self._recording = recording
        self._count = count
        self._tell = tell
        self._scope = trio.CancelScope()

    async def run(
        self,
        number: int,
        policy: Callable[[Packet], Any],
        *,
        rules: tuple[tuple[str, ...], Match | None, str | None],
        seconds: float | None,
        undecided: Verdict,
        **options: Any,
    ) -> None:
        """Record until there is a reason to end."""
        chains, match, namespace = rules
        async with AsyncExitStack() as stack:
            queue = await stack.enter_async_context(
                open_queue(number, backend=self._recording, on_close=undecided, **options)
            )
            self.bound = True
            if chains:
                rule = queueing(number, chains, match=match, bypass=True, namespace=namespace)
                await stack.enter_async_context(rule)
            Lines(errors=True).write(f"recording queue {number} to {self._recording.path}")
            if seconds is not None:
                self._scope.deadline = trio.current_time() + seconds
            try:
                with self._scope:
                    await queue.serve(told_apart(policy, self._before), undecided=undecided)
            finally:
                self.lost = queue.statistics().packets_lost

    def _before(self) -> None:
        """Count a packet; those that were read with the last one pass, too, and are in the file."""
        self.packets += 1
        self._tell(self.packets)
        full = self._count is not None and self.packets >= self._count
        if full or self._recording.failed is not None:
            self._scope.cancel()


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    out = Lines()
    if as_json:
        out.json(found)
        return
    lost = f", {found['lost']} lost" if found["lost"] else ""
    out.write(
        f"{found['packets']} packets{lost} in {found['seconds']} s: {', '.join(found['files'])}"
    )
