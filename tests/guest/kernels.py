"""What the kernel tests of a run saw, by kernel, and docs/kernels.* as it was seen before.

A run in which every kernel test ran compares the two, as its last test (test_kernels.py). With
``--kernels-table`` that test writes docs/kernels.json and, made of it, docs/kernels.md. The page
alone is made anew by ``python -m tests.guest.kernels``.
"""

from __future__ import annotations

import json
import platform
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.kernel._rows import MESSAGES, ROWS
from tests.kernel._shown import NOT_SEEN, SHOWN

from .image import SERIES

DOCS = Path(__file__).parents[2] / "docs"
JSON, PAGE = DOCS / "kernels.json", DOCS / "kernels.md"
KERNEL_TESTS = Path(__file__).parents[1] / "kernel"

PROPERTY = "kernel_rows"
"""Of a test's report: what it saw, as `seen_by` gives it."""

WRITE, TELL = "--kernels-table", "--kernels-report"
STASH = pytest.StashKey["Seen"]()

Table: TypeAlias = dict[str, Any]
"""docs/kernels.json: ``kernels``, the whole release by its `family`, and ``rows``, by row and
family the tests that saw it."""

Sightings: TypeAlias = Mapping[str, Mapping[str, set[str]]]
"""By family and row: tests."""


def family(release: str) -> str:
    """The series of a kernel: 6.1 for 6.1.0-56-amd64."""
    return ".".join(release.split("-")[0].split(".")[:2])


def seen_by(rows: list[str]) -> tuple[str, dict[str, Any]]:
    """The property of a test that saw these rows on the running kernel."""
    return PROPERTY, {"release": platform.release(), "rows": rows}


# --- the table ------------------------------------------------------------------------------------


def read() -> Table:
    """docs/kernels.json, empty where there is none."""
    if not JSON.exists():
        return {"kernels": {}, "rows": {}}
    table: Table = json.loads(JSON.read_text())
    return table


def table_of(seen: Sightings, releases: Mapping[str, str]) -> Table:
    """The table of a run: for each row the test that shows it, or else one that saw it."""
    rows: dict[str, dict[str, list[str]]] = {}
    for row in ROWS:
        for kernel in sorted(seen, key=_version):
            tests = seen[kernel].get(row, set())
            if tests:
                shown = SHOWN.get(row)
                rows.setdefault(row, {})[kernel] = [shown if shown in tests else min(tests)]
    return {"kernels": {k: releases[k] for k in sorted(releases, key=_version)}, "rows": rows}


def write(table: Table) -> None:
    """Write docs/kernels.json and the page."""
    rows = ",\n".join(f"  {json.dumps(row)}: {json.dumps(w)}" for row, w in table["rows"].items())
    kernels = json.dumps(table["kernels"])
    JSON.write_text(f'{{\n "kernels": {kernels},\n "rows": {{\n{rows}\n }}\n}}\n')
    PAGE.write_text(page(table))


def differences(
    table: Table, seen: Sightings, unsure: Mapping[str, Iterable[str]] = {}
) -> list[str]:
    """What a run saw otherwise than the table says.

    Args:
      table: docs/kernels.json.
      seen: what the run saw; a kernel that the table does not have is not compared.
      unsure: by family, tests that failed or were skipped. Where there are any, a row may be
        missing.
    """
    found = []
    for kernel, rows in seen.items():
        if kernel not in table["kernels"]:
            continue
        for row in rows.keys() - set(ROWS):
            found.append(
                f"{kernel}: {row} came ({min(rows[row])}), which trionfq.schema does not declare"
            )
        for row in ROWS:
            told = table["rows"].get(row, {}).get(kernel, [])
            tests = rows.get(row, set())
            if tests and not told:
                found.append(f"{kernel}: {row} is new, seen by {min(tests)}: run make kernels")
            elif any(unsure.get(kernel, ())):
                continue
            elif told and not tests:
                found.append(f"{kernel}: {row} is no longer seen, by {told[0]} or any other test")
            elif told == [SHOWN.get(row)] and told[0] not in tests:
                found.append(
                    f"{kernel}: {row} is no longer seen by {told[0]}, which is to show its value"
                )
    return found


def faults(table: Table) -> list[str]:
    """Where the table and the reasons of tests/kernel/_shown.py do not fit."""
    found = [
        f"{row} is no row: it is not declared in trionfq.schema"
        for row in {*table["rows"], *SHOWN, *NOT_SEEN} - set(ROWS)
    ]
    for row in ROWS:
        kernels = table["rows"].get(row, {})
        tests = {test for tests in kernels.values() for test in tests}
        if kernels and row in NOT_SEEN:
            found.append(f"{row} is seen ({min(tests)}), yet NOT_SEEN says: {NOT_SEEN[row]}")
        elif not kernels and row not in NOT_SEEN:
            found.append(f"{row} is seen on no kernel, and NOT_SEEN has no reason for it")
        elif kernels and row not in SHOWN:
            found.append(f"{row} is seen ({min(tests)}), and SHOWN names no test of its value")
        elif kernels and SHOWN[row] not in tests:
            found.append(f"{row} is not seen by the test that SHOWN names, {SHOWN[row]}")
    return found


# --- the page -------------------------------------------------------------------------------------

_HEAD = """\
# What was seen on which kernel

Made by `make kernels` from what the tests of `tests/kernel` exchanged with two kernels: the
machine's own, {own}, and Debian's {guest}, booted in a guest. Every datagram of these tests is
looked at, so this is what passed, not what a test says of itself. `make test` runs the same tests
on both and fails where they see something else than stands here;
`make test ARGS=--kernels-report` tells at its end what each test saw.

*Seen* in a packet means that the kernel sent it. *Seen* in a verdict or a configuration means that
the kernel took it: it was not refused, and what the kernel might ignore without a word counts only
on a kernel that heeds it (conntrack in netlink for NFQA_CT and NFQA_EXP, a packet of the bridge
family for NFQA_VLAN and NFQA_L2HDR). The last column names the test that compares the value with
what it has made, or the reason for which neither kernel sends or takes it. The layouts are in the
[wire reference](wire.md).

The machine's own kernel is built without conntrack in netlink
(CONFIG_NETFILTER_NETLINK_GLUE_CT), without nftables' `queue` statement, which alone queues packets
of the bridge family, and without a security module that labels packets; Debian's is older than
NFQA_CGROUP_CLASSID (6.4).
"""


def page(table: Table) -> str:
    """docs/kernels.md."""
    kernels = sorted(table["kernels"], key=_version)
    names = {k: f"{k} (Debian)" if "-amd64" in table["kernels"][k] else k for k in kernels}
    own = ", ".join(k for k in kernels if names[k] == k)
    guest = ", ".join(k for k in kernels if names[k] != k)
    parts = [_HEAD.format(own=own, guest=guest)]
    for message, title in MESSAGES.items():
        columns = ["", *(names[kernel] for kernel in kernels), "test, or why not"]
        lines = [columns, ["---"] * len(columns)]
        for row in ROWS:
            word, constant = row.split(" ", 1)
            if word == message:
                where = table["rows"].get(row, {})
                seen = ["seen" if kernel in where else "" for kernel in kernels]
                shown = f"`{SHOWN[row]}`" if where and row in SHOWN else ""
                why = shown if where else f"not seen: {NOT_SEEN.get(row, '')}"
                lines.append([f"`{constant}`", *seen, why])
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"## {title}\n\n{text}")
    return "\n".join(parts)


def _version(kernel: str) -> tuple[int, ...]:
    return tuple(int(part) for part in kernel.split("."))


# --- a run ----------------------------------------------------------------------------------------


def whole(config: pytest.Config) -> bool:
    """Whether no kernel test was deselected by the command."""
    option = config.option
    chosen = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise")
    if any(getattr(option, name, None) for name in chosen) or option.collectonly:
        return False
    start = config.invocation_params.dir
    return any(KERNEL_TESTS.is_relative_to(Path(start, name).resolve()) for name in config.args)


class Seen:
    """Collects what the kernel tests of a run saw.

    Args:
      kernel_of: the family of the kernel that an item runs on, None where it is no kernel test.

    Attributes:
      sightings: by family and row, the tests, as ``file::function``.
      releases: by family, the whole release.
      unsure: by family, tests that failed or were skipped.
    """

    def __init__(self, kernel_of: Callable[[pytest.Item], str | None]) -> None:
        self.sightings: dict[str, dict[str, set[str]]] = {}
        self.releases: dict[str, str] = {}
        self.unsure: dict[str, set[str]] = {}
        self._kernel_of = kernel_of
        self._kernels: dict[str, str] = {}
        self._reports: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            kernel = self._kernel_of(item)
            if kernel is not None:
                self._kernels[item.nodeid] = kernel

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kernel = self._kernels.get(report.nodeid)
        if kernel is None:
            return
        if not report.passed and not hasattr(report, "wasxfail"):
            self.unsure.setdefault(kernel, set()).add(report.nodeid)
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == PROPERTY and isinstance(value, dict):
                    self.add(report.nodeid, value)

    def add(self, nodeid: str, value: Mapping[str, Any]) -> None:
        """Take in what one test saw."""
        kernel = family(value["release"])
        self.releases[kernel] = value["release"]
        rows = self.sightings.setdefault(kernel, {})
        test = nodeid.partition("[")[0].removeprefix("tests/kernel/")
        for row in value["rows"]:
            rows.setdefault(row, set()).add(test)
        if value["rows"]:
            self._reports.append(f"{kernel} {nodeid}: {'; '.join(_by_message(value['rows']))}")

    def judge(self) -> list[str]:
        """What is wrong with docs/kernels.json, after this run."""
        table = read()
        return differences(table, self._comparable(table), self.unsure)

    def _comparable(self, table: Table) -> Sightings:
        """Of the guest's series any build, of another kernel only the build of the table."""
        return {
            kernel: rows
            for kernel, rows in self.sightings.items()
            if kernel == SERIES or self.releases[kernel] == table["kernels"].get(kernel)
        }

    def write(self) -> list[str]:
        """Write docs/kernels.*; what keeps from that, or is wrong with it then."""
        bad = sorted(test for tests in self.unsure.values() for test in tests)
        if bad:
            return [f"nothing was written: failed or skipped: {', '.join(bad)}"]
        if len(self.sightings) < 2:
            return [f"nothing was written: tests ran only on {', '.join(self.sightings) or 'none'}"]
        table = table_of(self.sightings, self.releases)
        write(table)
        return faults(table) + differences(table, self.sightings)

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        """Say what was seen on which kernel, and on request by which test."""
        if not self.sightings:
            return
        terminalreporter.section("seen on kernels")
        for line in self.summary():
            terminalreporter.line(line)
        if config.getoption(TELL):
            for line in self._reports:
                terminalreporter.line(line)

    def summary(self) -> list[str]:
        """Rows by the kernels that they were seen on."""
        kernels = sorted(self.sightings, key=_version)
        by_kernels: dict[tuple[str, ...], list[str]] = {}
        for row in dict.fromkeys([*ROWS, *(r for k in kernels for r in self.sightings[k])]):
            where = tuple(k for k in kernels if row in self.sightings[k])
            by_kernels.setdefault(where, []).append(row)
        lines = []
        for where, rows in sorted(by_kernels.items(), reverse=True):
            at = " and ".join(where) if where else "no kernel"
            lines.append(f"on {at}: {len(rows)} of {len(ROWS)}")
            if where:
                lines += [line for text in _by_message(rows) for line in _wrapped(text)]
        table = read()
        compared = self._comparable(table)
        for kernel in kernels:
            if kernel not in compared:
                lines.append(
                    f"{self.releases[kernel]} is not compared with docs/kernels.json, "
                    f"which is of {' and '.join(table['kernels'].values()) or 'no kernel'}"
                )
        return lines


def _by_message(rows: Iterable[str]) -> list[str]:
    """Rows as a line a message."""
    found: dict[str, list[str]] = {}
    for row in rows:
        message, name = row.split(" ", 1)
        found.setdefault(message, []).append(name)
    return [f"{message}: {' '.join(names)}" for message, names in found.items()]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, 98, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )


def add_options(parser: pytest.Parser) -> None:
    """Declare the command's options."""
    group = parser.getgroup("kernels")
    group.addoption(WRITE, action="store_true", help="write what was seen to docs/kernels.*")
    group.addoption(TELL, action="store_true", help="say at the end what each kernel test saw")


if __name__ == "__main__":
    PAGE.write_text(page(read()))
