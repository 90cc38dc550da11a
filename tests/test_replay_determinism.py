"""One recording and one program have one transcript, in whatever process and order of tasks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trionfq import CopyMode, ReplayBackend, open_queue
from trionfq.backends import _replay_order
from trionfq.captures import Record, open_capture, transcript_digest
from trionfq.schema import Direction
from trionfq.testing import make_packet

from . import replay_runs
from .replay_runs import shared_within_a_tick
from .test_fixtures import EACH, FOLDER, NAMES, messages, notes

PROCESSES = 30
# trio.testing imports pytest where it can, which is a sixth of all the time.
PROGRAM = """
import sys
sys.modules["_pytest"] = sys.modules["pytest"] = None
from tests.replay_runs import main
main()
"""
START = 1_790_000_000_000_000_000
MS = 1_000_000


def test_every_fixture_has_one_digest_in_thirty_fresh_processes() -> None:
    root = Path(__file__).parents[1]

    def run(number: int) -> str:
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": str(number)}
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            cwd=root,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        ).stdout

    with ThreadPoolExecutor(max_workers=2) as pool:
        printed = Counter(pool.map(run, range(PROCESSES)))
    assert len(printed) == 1, "\n".join(printed)
    [lines] = printed
    assert [line.split()[0] for line in lines.splitlines()] == [*NAMES, "order"]
    assert len({line.split()[1] for line in lines.splitlines()}) == len(NAMES) + 1


def test_the_digest_tells_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above holds together falls apart where packets come as they are asked for."""
    found = {replay_runs.digest("demo", random.Random(seed)) for seed in range(5)}
    assert len(found) == 1

    def asked(*arguments: Any, **options: Any) -> ReplayBackend:
        return ReplayBackend(*arguments, **{**options, "pace": "asked"})

    monkeypatch.setattr(replay_runs, "ReplayBackend", asked)
    found = {replay_runs.digest("every-verdict", random.Random(seed)) for seed in range(5)}
    assert len(found) > 1


# --- the order of tasks that could run at once ----------------------------------------------------


def test_a_seed_fixes_the_order_where_it_is_free() -> None:
    first = shared_within_a_tick(1)
    assert sorted(first, key=lambda mark: mark or 0) == list(range(24))
    assert all(shared_within_a_tick(1) == first for _ in range(5))
    assert len({tuple(shared_within_a_tick(seed)) for seed in range(6)}) == 6


def test_the_order_is_left_to_trio_again_when_the_replay_closes() -> None:
    run: Any = sys.modules["trio._core._run"]

    def state() -> tuple[Any, Any]:
        return run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()

    before = state()
    first, second = _replay_order.TaskOrder(1), _replay_order.TaskOrder(2)
    first.start()
    seeded = state()
    assert seeded[0] is True
    assert seeded != before
    second.start()
    first.start()
    assert state() == seeded, "one order in a process"
    first.stop()
    assert state() == seeded
    second.stop()
    second.stop()
    assert state() == before


def test_a_trio_that_cannot_be_seeded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["trio._core._run"], "_ALLOW_DETERMINISTIC_SCHEDULING")
    with pytest.raises(RuntimeError, match="seed=None"):
        ReplayBackend([], pace="lockstep")
    ReplayBackend([], pace="lockstep", seed=None).close()
    ReplayBackend([], pace="asked").close()


# --- recorded times -------------------------------------------------------------------------------


def recorded_times(name: str) -> list[int]:
    """When the packets of a fixture came, in nanoseconds since the first."""
    with open_capture(FOLDER / f"{name}.pcapng") as capture:
        times = [
            record.time_ns
            for record in capture
            if record.direction is Direction.FROM_KERNEL
            and record.datagram
            and record.datagram[4:6] == b"\0\3"
        ]
    return [max(times[: place + 1]) - times[0] for place in range(len(times))]


@EACH
def test_a_paced_replay_under_a_mock_clock_gives_the_recorded_times(name: str) -> None:
    settings = notes(name)["queue"]
    backend = ReplayBackend(FOLDER / f"{name}.pcapng", pace="timed")
    came: list[int] = []

    async def main() -> None:
        async with open_queue(
            0, backend=backend, copy_mode=CopyMode[settings["copy_mode"]]
        ) as queue:
            started = trio.current_time()
            async for packet in queue:
                came.append(round((trio.current_time() - started) * 1e9))
                packet.accept()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    expected = recorded_times(name)
    assert came == expected
    assert len(expected) == notes(name)["expected"]["packets"]
    first = backend.transcript[0].arrived_ns
    assert [outcome.arrived_ns - first for outcome in backend.transcript] == expected
    assert expected[-1] > 0 or len(messages(name)) < 3


def test_hours_of_recorded_time_pass_at_once() -> None:
    hour = 3_600_000 * MS
    source = [
        Record(START + place * hour, Direction.FROM_KERNEL, make_packet(place + 1))
        for place in range(100)
    ]
    backend = ReplayBackend(source, pace="timed")

    async def main() -> float:
        async with open_queue(0, backend=backend) as queue:
            async for packet in queue:
                packet.accept()
        return trio.current_time()

    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)) == 99 * 3600
    assert len(transcript_digest(backend.transcript, times=True)) == 64
