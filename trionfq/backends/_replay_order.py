"""The order in which trio runs the tasks of one tick, drawn from a seed.

trio shuffles runnable tasks on purpose. For hypothesis it has a way to draw that from a generator
that others may seed (``_ALLOW_DETERMINISTIC_SCHEDULING`` and ``_r`` in trio/_core/_run.py, which
pytest-trio uses, too): tasks are then sorted by age and shuffled by the generator, which is asked
for nothing where only one can run. Neither name is public, so where one has gone this says so.
"""

from __future__ import annotations

import random
from importlib import import_module
from typing import Any, ClassVar


class TaskOrder:
    """Seeds the order of tasks for as long as a replay runs.

    The whole process has one order: of several replays at a time the first one's seed counts.

    Args:
      seed: of the order.

    Raises:
      RuntimeError: this release of trio cannot be seeded.
    """

    _running: ClassVar[set[TaskOrder]] = set()
    _before: ClassVar[tuple[bool, Any]]

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._run: Any = import_module("trio._core._run")
        allowed = getattr(self._run, "_ALLOW_DETERMINISTIC_SCHEDULING", None)
        generator = getattr(self._run, "_r", None)
        if not isinstance(allowed, bool) or not isinstance(generator, random.Random):
            raise RuntimeError(
                "this release of trio does not let the order of tasks be seeded: replay with "
                "seed=None, which leaves it to trio"
            )

    def start(self) -> None:
        """Draw the order from the seed from here on; harmless when repeated."""
        if not TaskOrder._running:
            run = self._run
            TaskOrder._before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()  # noqa: SLF001
            run._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
            run._r.seed(self._seed)  # noqa: SLF001
        TaskOrder._running.add(self)

    def stop(self) -> None:
        """Leave it to whoever had it before; harmless when repeated."""
        if self in TaskOrder._running:
            TaskOrder._running.remove(self)
            if not TaskOrder._running:
                allowed, state = TaskOrder._before
                self._run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # noqa: SLF001
                self._run._r.setstate(state)  # noqa: SLF001
