"""Replays every fixture by concurrent handlers, and prints digests: `python -m tests.replay_runs`.

Each handler yields to other tasks as often as chance has it, in other places each time; between
that it sleeps, holds packets, and decides by what all handlers together have done so far.
"""

from __future__ import annotations

import itertools
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio
import trio.testing

from trionfq import CopyMode, Packet, QueueFlags, QueueManager, ReplayBackend, open_queue
from trionfq.backends import Backend
from trionfq.captures import Outcome, transcript_digest
from trionfq.testing import make_packet

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.pcapng"))


def open_as_recorded(backend: Backend, settings: Mapping[str, Any]) -> QueueManager:
    """A queue with the settings of a fixture's program."""
    return open_queue(
        0,
        backend=backend,
        copy_mode=CopyMode[settings["copy_mode"]],
        copy_range=settings["copy_range"],
        max_len=settings["max_len"],
        flags=QueueFlags(sum(QueueFlags[flag] for flag in settings["flags"])),
    )


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

    async with open_as_recorded(backend, settings) as queue:
        await queue.serve(handler, workers=8)
    return backend.transcript


def digest(name: str, chance: random.Random) -> str:
    """The digest of a fixture's transcript, times included."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    outcomes: list[Outcome] = trio.run(replay, name, chance, clock=clock)
    assert outcomes
    return transcript_digest(outcomes, times=True)


def shared_within_a_tick(seed: int | None) -> list[int | None]:
    """The order in which handlers that wake in the same tick come to their turn."""
    source = [make_packet(number) for number in range(1, 25)]
    backend = ReplayBackend(source, pace="lockstep", check="off", seed=seed)
    waiting = trio.Event()
    order = itertools.count()
    held: list[int] = []

    async def handler(packet: Packet) -> None:
        held.append(packet.id)
        if len(held) == len(source):
            waiting.set()
        await waiting.wait()
        packet.accept(mark=next(order))

    async def main() -> None:
        async with open_queue(0, backend=backend) as queue:
            await queue.serve(handler, workers=len(source))

    trio.run(main)
    return [outcome.mark for outcome in backend.transcript]


def main() -> None:
    """Print a line for each fixture, and one for the order of tasks that a seed gives."""
    chance = random.Random()
    for name in NAMES:
        print(name, digest(name, chance))
    print("order", *("-".join(map(str, shared_within_a_tick(seed))) for seed in (1, 2)))


if __name__ == "__main__":
    main()
