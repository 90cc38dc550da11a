"""The pytest plugin of trionfq: fixtures for tests of policies and programs.

It stands outside of the package, so that a run whose tests use none of it imports neither trionfq
nor trio: pytest loads it in each run of each project of the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trionfq.testing import LivePair, Replays


@pytest.fixture
def nfqueue_replay() -> Replays:
    """Queues that are replayed.

    Opened by ``async with nfqueue_replay(packets) as queue``.
    """
    from trionfq.testing import Replays

    return Replays()


@pytest.fixture
def nfqueue_live(tmp_path: Path) -> Iterator[LivePair]:
    """Two hosts in network namespaces, and queues there.

    Opened by ``async with nfqueue_live(0, "INPUT") as queue``.

    The test is skipped, with the reason, where this process may not make them.
    """
    from trionfq.testing import LivePair, why_not_live

    if (reason := why_not_live()) is not None:
        pytest.skip(reason)
    with LivePair(tmp_path) as pair:
        yield pair


@pytest.fixture
def nfqueue_verdicts() -> Callable[..., None]:
    """Asserts what became of packets, as by ``nfqueue_verdicts(queue, ["accept", "drop"])``."""
    from trionfq.testing import assert_verdicts

    return assert_verdicts
