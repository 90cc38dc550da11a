"""Fixtures of the kernel tests, and the rule that they never pass by silence.

Where the machine lets this process make network namespaces, the tests run; where not, all of them
skip for one printed reason. With TRIONFQ_REQUIRE_KERNEL=1 a skip here is a failure.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.guest.features import IN_GUEST, MODULES
from tests.guest.kernels import seen_by

from ._seen import Watch
from .harness import (
    Bridged,
    Forwarding,
    Namespace,
    NoBridgeError,
    Pair,
    make_bridged,
    make_forwarding,
    make_pair,
    none_left_over,
    queue_rule,
    tool,
)

HERE = Path(__file__).parent
REQUIRE = "TRIONFQ_REQUIRE_KERNEL"
PROGRAMS = ("iptables", "ip6tables", "ping")


def why_not() -> str | None:
    """Why this process cannot test with the kernel, None where it can."""
    for program in PROGRAMS:
        try:
            tool(program)
        except FileNotFoundError as error:
            return str(error)
    try:
        with Namespace("probe") as probe:
            queue_rule(probe, "OUTPUT", "-p udp", queue=0)
            probe.queue_rows()
    except PermissionError as error:
        return f"no privilege for network namespaces ({error}); run as root, or by make test"
    except FileNotFoundError as error:
        return f"this kernel lacks something: {error}"
    except AssertionError as error:
        return f"this kernel takes no NFQUEUE rule: {' '.join(str(error).split())}"
    return None


@pytest.fixture(scope="session", autouse=True)
def kernel() -> None:
    """Skips every test of this folder where the machine does not let it work."""
    if IN_GUEST:
        subprocess.run([tool("modprobe"), "--all", *MODULES], check=True)
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """Fails a test that leaves a namespace behind."""
    with none_left_over():
        yield


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """One namespace with loopback."""
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two namespaces joined by a veth pair: 10.7.0.1 and .2, fd00:7::1 and ::2."""
    with make_pair() as joined:
        yield joined


@pytest.fixture
def forwarding() -> Iterator[Forwarding]:
    """Two hosts and a router between them."""
    with make_forwarding() as net:
        yield net


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Keeps the test's thread, and what it starts, on one processor.

    A virtual device hands packets to the receiving side by a list of the sending processor, which
    may be worked off later. From one processor they arrive in the order in which they were sent,
    so that a datagram sent last is behind all others.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def bridged() -> Iterator[Bridged]:
    """Two hosts joined by a bridge that shows its packets to iptables."""
    try:
        with make_bridged() as net:
            yield net
    except NoBridgeError as error:
        pytest.skip(str(error))


# --- what is exchanged with the kernel is noted ---------------------------------------------------

WATCH = pytest.StashKey[Watch]()

UNWATCHED = {
    "test_coalescing.py",
    "test_receive_buffer.py",
    "test_opening_and_closing_sixty_times_under_load_loses_nothing",
}
"""Files and tests about a load, which a look at every packet would change."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Watch a test of this folder."""
    if isinstance(item, pytest.Function) and not UNWATCHED & {item.path.name, item.originalname}:
        item.stash[WATCH] = Watch()
        item.stash[WATCH].start()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Its report, the last one of the test, says what it saw."""
    try:
        return (yield)
    finally:
        watch = item.stash.get(WATCH, None)
        if watch is not None:
            item.user_properties.append(seen_by(watch.stop()))


# --- skips are counted, said aloud, and failures where the kernel is required ---------------------

_outcomes = {"ran": 0, "skipped": 0}
_reasons: set[str] = set()


def _judge_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Count a skip; turn it into a failure where the kernel is required."""
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    _outcomes["skipped"] += 1
    _reasons.add(reason.removeprefix("Skipped: "))
    if os.environ.get(REQUIRE) == "1":
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE}=1, so a kernel test must not skip. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge skips of this folder's tests; an xfail is no skip."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _judge_skip(report)
    elif report.when == "call":
        _outcomes["ran"] += 1
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge modules of this folder that skip as a whole."""
    report = yield
    if report.skipped and HERE in collector.path.parents:
        _judge_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud whether the kernel was really tested."""
    ran, skipped = _outcomes["ran"], _outcomes["skipped"]
    if ran or skipped:
        terminalreporter.section("kernel tests")
        if ran:
            terminalreporter.line(f"kernel tests: {ran} ran, {skipped} skipped")
        else:
            terminalreporter.line(
                f"WARNING: NOT ONE KERNEL TEST RAN: all {skipped} skipped: {'; '.join(_reasons)}"
            )
