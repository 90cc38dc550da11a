"""The pytest plugin of the run inside a guest: each result as a line, at once.

Lines are JSON objects, written to a descriptor of their own, so nothing that a test prints gets
between them. ``do`` says what it is: ``start`` a test begins, ``end`` one is over, ``run`` the
whole run is over.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from .features import IN_GUEST, why_not_in_guest
from .kernels import PROPERTY
from .machine import RESULTS_FD, TEST_LIMIT_S

INTERRUPT_AGAIN_S = 10.0

sys.modules["hypothesis"] = None  # type: ignore[assignment]  # pytest-trio would import it


class Limit:
    """Ends a test that takes too long, as Ctrl-C would: one test that hangs is not all tests.

    Nothing is raised where the signal comes: in trio's own loop that would break every later test.

    Attributes:
      passed: the time is over.
    """

    def __init__(self) -> None:
        self.passed = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._end)
        # Again and again, since one interrupt may fall where it does not count.
        signal.setitimer(signal.ITIMER_REAL, TEST_LIMIT_S, INTERRUPT_AGAIN_S)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.passed = True
        signal.raise_signal(signal.SIGINT)


class Reporter:
    """Writes what happens.

    Args:
      results: descriptor to write to.
    """

    def __init__(self, results: int) -> None:
        # A descriptor that no program of a test inherits.
        self._results = os.dup(results)
        os.close(results)

    def _say(self, **what: Any) -> None:
        line = json.dumps(what).encode() + b"\n"
        while line:
            line = line[os.write(self._results, line) :]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._phases: list[pytest.TestReport] = []
        self._say(do="start", test=nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self) -> Iterator[None]:
        limit = Limit()
        try:
            with limit:
                return (yield)
        except BaseException as error:
            if limit.passed:
                # An interrupt would be the end of the whole run.
                pytest.fail(f"ended after {TEST_LIMIT_S:.0f} s: {error!r}")
            raise

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcome, texts = "passed", []
        for report in self._phases:
            if report.failed:
                outcome = "failed"
            elif report.skipped and outcome != "failed":
                outcome = "xfailed" if hasattr(report, "wasxfail") else "skipped"
            if report.skipped and isinstance(report.longrepr, tuple):
                texts.append(report.longrepr[2].removeprefix("Skipped: "))
            elif report.longrepr is not None:
                texts.append(report.longreprtext)
        sections = dict(self._phases[-1].sections) if outcome == "failed" else {}
        self._say(
            do="end",
            test=nodeid,
            outcome=outcome,
            text="\n".join(texts),
            sections=sections,
            seconds=round(sum(report.duration for report in self._phases), 2),
            seen=dict(self._phases[-1].user_properties).get(PROPERTY),
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say(do="error", text=f"{report.nodeid}:\n{report.longreprtext}")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._say(
            do="run",
            exit=int(exitstatus),
            release=platform.release(),
            tainted=int(Path("/proc/sys/kernel/tainted").read_text()),
        )


def pytest_configure(config: pytest.Config) -> None:
    """Report, where this is the run inside a guest."""
    if IN_GUEST:
        config.pluginmanager.register(Reporter(RESULTS_FD), "trionfq-guest-reporter")


FIRST = "tests/guest/test_modules.py"
"""What these tests show is over when another has loaded the modules."""

LAST = "tests/guest/test_taint.py"
TESTS = Path("/run/tests")
"""Node ids of the tests to run, one a line; all that are collected where it is not there."""


def _place(item: pytest.Item) -> int:
    return item.nodeid.startswith(LAST) - item.nodeid.startswith(FIRST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is kept out of the guest, and what was not asked for."""
    if not IN_GUEST:
        return
    asked = set(TESTS.read_text().splitlines()) if TESTS.exists() else None
    wanted = {i for i in items if not why_not_in_guest(i) and (asked is None or i.nodeid in asked)}
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = sorted((item for item in items if item in wanted), key=_place)
