"""Replays every fixture by concurrent handlers, and prints a digest: `python -m tests.replay_runs`.

Each handler yields to other tasks as often as chance has it, in other places each time; between
that it sleeps, holds packets, and decides by what all handlers together have done so far.
"""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import trio
import trio.testing

from trionfq import CopyMode, Packet, QueueFlags, ReplayBackend, open_queue
from trionfq.captures import Outcome, transcript_digest

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.pcapng"))


async def replay(name: str, chance: random.Random) -> list[Outcome]:
    """The transcript of one run."""
    settings = tomllib.loads((FOLDER / f"{name}.toml").read_text())["queue"]
    backend = ReplayBackend(FOLDER / f"{name}.pcapng", pace="lockstep", check="off")
    order: list[int] = []
    held: list[Packet] = []

    async def yield_at_random() -> None:
        for _ in range(chance.randrange(5)):
            await trio.lowlevel.checkpoint()

    async def handler(packet: Packet) -> None:
        await yield_at_random()
        # No two wake at once, so the recorded times and these decide who is next.
        await trio.sleep((packet.id * 7 % 5) * 0.003_001)
        order.append(packet.id)
        mine = len(order)
        await yield_at_random()
        if mine % 7 == 3:
            packet.hold()
            held.append(packet)
        elif mine % 5 == 2:
            packet.drop()
        else:
            packet.accept(mark=mine)
        await yield_at_random()
        if mine % 3 == 0 and held:
            held.pop(0).accept(mark=mine << 8)

    async with open_queue(
        0,
        backend=backend,
        copy_mode=CopyMode[settings["copy_mode"]],
        copy_range=settings["copy_range"],
        max_len=settings["max_len"],
        flags=QueueFlags(sum(QueueFlags[flag] for flag in settings["flags"])),
    ) as queue:
        await queue.serve(handler, workers=8)
    return backend.transcript


def digest(name: str, chance: random.Random) -> str:
    """The digest of a fixture's transcript, times included."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    outcomes: list[Outcome] = trio.run(replay, name, chance, clock=clock)
    assert outcomes
    return transcript_digest(outcomes, times=True)


def main() -> None:
    """Print a line for each fixture."""
    chance = random.Random()
    for name in NAMES:
        print(name, digest(name, chance))


if __name__ == "__main__":
    main()
