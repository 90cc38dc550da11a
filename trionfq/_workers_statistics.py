"""What several workers' queues have seen, each and in sum."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trionfq._statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq._verdict import Verdict

_SUMMED = (
    "packets_received",
    "packets_lost",
    "overruns",
    "truncated_datagrams",
    "foreign_datagrams",
    "unexpected_messages",
    "undecodable_messages",
    "answers_lost",
    "batches_sent",
    "verdicts_gone",
    "verdicts_refused",
    "read_ahead",
    "undecided",
    "held",
)


@dataclass(frozen=True)
class WorkersStatistics:
    """A snapshot of the workers of `open_workers`.

    Attributes:
      queues: each open queue's statistics by its number; they count from the opening by the
        present process, so what a dead one had seen is not in them.
      deaths: how often a worker died, by queue number.
    """

    queues: Mapping[int, Statistics]
    deaths: Mapping[int, int]

    @property
    def total(self) -> Statistics:
        """All queues in sum: the greatest ``oldest_undecided_s``, and no ``kernel``."""
        every = self.queues.values()
        verdicts: Counter[Verdict] = Counter()
        for one in every:
            verdicts.update(one.verdicts)
        ages = [one.oldest_undecided_s for one in every if one.oldest_undecided_s is not None]
        return Statistics(
            **{name: sum(getattr(one, name) for one in every) for name in _SUMMED},
            verdicts=dict(verdicts),
            oldest_undecided_s=max(ages, default=None),
            kernel=None,
        )
