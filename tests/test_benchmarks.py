"""The benchmarks' rows, bars, tables and picture, and how their programs are started and ended.

Nothing here depends on a time.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as running
from benchmarks.bars import BARS, Bar, Judged, bar_table, judged
from benchmarks.measuring import Run
from benchmarks.picture import Line, ratio_lines, share_lines
from benchmarks.processes import MeasuringError
from benchmarks.processes import running as started
from benchmarks.reporting import Result, ratios, read_json, table, write_json
from benchmarks.rows import (
    BATCHES_64,
    C_BATCH_64,
    C_BATCH_256,
    LOOP,
    NFQ,
    NFQ_TRIO,
    ROWS,
    Job,
    Row,
    Subject,
)
from trionfq._ip_repair import repair
from trionfq.testing import udp_packet

PROGRAMS = Path(running.__file__).parent / "programs"
ISSUE = "accept, 32 bytes"


def result(
    subject: str,
    *runs: float,
    unit: str = "us/packet",
    row: str = "accept",
    load: str = "closed loop",
) -> Result:
    return Result(row, subject, load, unit, list(runs))


# -- results ---------------------------------------------------------------------------------------


def test_median_and_spread_of_the_runs_are_kept_beside_them() -> None:
    assert result("trionfq async for", 3.0, 1.0, 2.0).as_json() == {
        "row": "accept",
        "subject": "trionfq async for",
        "load": "closed loop",
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "unit": "us/packet",
        "runs": [3.0, 1.0, 2.0],
    }


def test_json_is_a_list_of_results_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "results" / "latest.json"
    write_json([result("fnfqueue", 1.0)], path)
    write_json([result("NetfilterQueue", 2.0), result("fnfqueue", 1.0)], path)
    assert [entry["subject"] for entry in json.loads(path.read_text())] == [
        "NetfilterQueue",
        "fnfqueue",
    ]
    assert list(path.parent.iterdir()) == [path]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = [result("fnfqueue", 1.0, 3.0, 2.0), result("no queue", 9.5, unit="Gbit/s")]
    write_json(written, tmp_path / "latest.json")
    assert read_json(tmp_path / "latest.json") == written


def test_ratios_divide_by_the_median_of_each_peer_that_was_measured() -> None:
    group = [result("NetfilterQueue", 4.0, 5.0, 3.0), result("trionfq async for", 1.0, 2.0, 9.0)]
    assert ratios(group) == {
        "NetfilterQueue": {"/NFQ": 1.0},
        "trionfq async for": {"/NFQ": 0.5},
    }


def test_table_has_a_line_for_each_subject_with_its_ratio() -> None:
    text = table([result("NetfilterQueue", 4.0), result("trionfq async for", 3.0)])
    assert "| subject | median | min to max | /NFQ |" in text
    assert "| trionfq async for | 3.00 | 3.00 to 3.00 | 0.75 |" in text


def test_packets_a_second_stand_in_the_last_column_of_what_a_packet_costs() -> None:
    text = table(
        [
            result("NetfilterQueue", 4.0),
            result("trionfq async for", 3.0),
            result("trionfq async for", 333_333.0, unit="packets/s"),
        ]
    )
    assert "| subject | median | min to max | /NFQ | packets/s |" in text
    assert "| trionfq async for | 3.00 | 3.00 to 3.00 | 0.75 | 333,333 |" in text
    assert "| NetfilterQueue | 4.00 | 4.00 to 4.00 | 1.00 |  |" in text
    assert text.count("**accept**") == 1


def test_packets_a_second_alone_are_shown_without_a_ratio() -> None:
    text = table(
        [
            result("NetfilterQueue", 250_000.0, unit="packets/s"),
            result("fnfqueue", 125_000.0, unit="packets/s"),
        ]
    )
    assert "| NetfilterQueue | 250,000 | 250,000 to 250,000 |" in text
    assert "/NFQ" not in text


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_each_row_subject_and_load_is_measured_once(quick: bool) -> None:
    rows = running.chosen(ROWS, quick=quick, wanted="")
    entries = [(row.name, row.load, subject.name) for row in rows for subject in row.subjects]
    assert len(entries) == len(set(entries))


def test_quick_run_leaves_out_rows_and_subjects_but_adds_none() -> None:
    full, quick = (
        {
            (row.name, row.load, subject)
            for row in running.chosen(ROWS, quick=quick, wanted="")
            for subject in row.subjects
        }
        for quick in (False, True)
    )
    assert quick < full


def test_rows_are_chosen_by_a_part_of_their_name() -> None:
    names = {row.name for row in running.chosen(ROWS, quick=False, wanted="held")}
    assert names == {"1 held", "100 held", "1 and 10,000 held"}


def _functions(program: str) -> set[str]:
    tree = ast.parse((PROGRAMS / f"{program}_program.py").read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_every_program_that_a_row_names_has_its_job_and_its_way() -> None:
    for row in ROWS:
        assert row.kind in running.MEASURES
        for subject in row.subjects:
            if subject.program == "floor":
                assert row.job == Job(size=row.job.size), row
            elif row.kind in ("replay", "workers"):
                assert (PROGRAMS / f"{subject.program}_program.py").exists()
            elif subject.program:
                functions = _functions(subject.program)
                work = row.job.work
                if subject.program == "trionfq":
                    work = work.removeprefix("await_")
                assert f"do_{work}" in functions, (row.name, subject.name)
                if subject.program != "fnfqueue":
                    assert f"by_{subject.how}" in functions, (row.name, subject.name)


def test_a_subject_that_holds_or_reads_less_says_so_in_its_name_and_to_its_program() -> None:
    holding, reading = LOOP.holding(10_000), LOOP.reading(64)
    assert holding.name == "trionfq async for, 10,000 held"
    assert reading.name == "trionfq async for, 64 a read"
    tails = [each.command(Job(held=5), "low")[2:] for each in (LOOP, holding, reading)]
    limits = ["1024", str(8 * 1024 * 1024)]
    assert tails == [
        ["loop", "accept", held, drain, "0", *limits]
        for held, drain in (("5", "0"), ("10000", "0"), ("5", "64"))
    ]


def test_tcp_without_iperf3_and_deep_backlog_without_root_are_left_out_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRIONFQ_NAMESPACES", "user")
    reasons = {(row.name, row.load): running.left_out(row) for row in ROWS}
    assert "iperf3" in reasons[("TCP through a veth pair", "tcp")]
    assert "SO_SNDBUFFORCE" in reasons[(ISSUE, "deep backlog")]
    assert reasons[(ISSUE, "closed loop")] == ""


# -- runs ------------------------------------------------------------------------------------------


class Measuring:
    """Takes the place of a measurement; subjects fail the given numbers of times first."""

    def __init__(self, **failures: int) -> None:
        self.failures = failures
        self.order: list[str] = []

    def __call__(self, row: Row, subject: Subject, seconds: float) -> Run:
        self.order.append(subject.name)
        if self.failures.get(subject.name, 0):
            self.failures[subject.name] -= 1
            raise MeasuringError("no number")
        return Run({"us/packet": float(len(self.order))})


def alternating(monkeypatch: pytest.MonkeyPatch, measuring: Measuring, runs: int) -> list[Result]:
    monkeypatch.setitem(running.MEASURES, "cpu", measuring)
    row = Row("accept", tuple(Subject(name, "floor", "recv") for name in "ABC"))
    return running.measure_row(row, runs, 0.0)


def test_subjects_of_a_row_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = Measuring()
    results = alternating(monkeypatch, measuring, 3)
    assert "".join(measuring.order) == "ABCABCABC"
    assert [each.runs for each in results] == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]


def test_a_run_that_fails_is_told_and_the_others_are_kept_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = alternating(monkeypatch, Measuring(A=1), 3)
    assert [(each.subject, len(each.runs)) for each in results] == [("A", 2), ("B", 3), ("C", 3)]
    assert "accept, A: not measured: no number" in capsys.readouterr().err


def test_a_subject_that_never_works_costs_no_more_than_two_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measuring = Measuring(B=9)
    results = alternating(monkeypatch, measuring, 5)
    assert [each.subject for each in results] == ["A", "C"]
    assert measuring.order.count("B") == 2


def test_no_run_is_begun_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = Measuring()
    monkeypatch.setitem(running.MEASURES, "cpu", measuring)
    clock = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock, 9.0))
    row = Row("accept", (Subject("A", "floor", "recv"), Subject("B", "floor", "recv")))
    results = running.measure_row(row, 5, 0.0, until=3.0)
    assert "".join(measuring.order) == "ABA"
    assert [len(each.runs) for each in results] == [2, 1]


# -- programs --------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


CORE = min(os.sched_getaffinity(0))


def test_a_program_runs_on_its_core_and_its_output_is_kept() -> None:
    with started(python("import os; print(os.sched_getaffinity(0))"), CORE) as child:
        assert child.output(30) == f"{{{CORE}}}\n"


def test_a_program_that_fails_shows_what_it_said() -> None:
    with started(python("import sys; sys.exit('no such queue')"), CORE) as child:
        with pytest.raises(MeasuringError, match="no such queue"):
            child.output(30)
        assert child.ended


def test_a_program_that_says_much_does_not_stop_for_want_of_a_reader() -> None:
    code = "import sys; sys.stderr.write('x' * 1_000_000); print('done')"
    with started(python(code), CORE) as child:
        assert child.output(30) == "done\n"
        assert child.errors() == "x" * 2000


def test_a_program_that_does_not_end_in_time_is_told_and_ended_with_all_that_it_started() -> None:
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']);"
        "print(p.pid, file=sys.stderr, flush=True); time.sleep(600)"
    )
    with started(python(code), CORE) as child:
        while not (pid := child.errors()).isdigit():
            assert not child.ended
        with pytest.raises(MeasuringError, match="did not end in 0 s"):
            child.output(0)
    assert child.ended
    # Killed is not yet ended: the kernel takes it apart when its turn comes.
    end = time.monotonic() + 10
    while _runs(int(pid)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether a process is neither gone nor a zombie that nobody has looked after yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("payload", [b"1234", b"12345", bytes(32), b"\xff" * 7])
def test_the_peers_own_rewrite_gives_what_trionfq_gives(payload: bytes) -> None:
    packet = udp_packet(payload)
    expected = repair(packet[:-4] + b"abcd", original=packet).payload
    assert _by_hand().rewritten(packet) == expected


def _by_hand() -> Any:
    spec = importlib.util.spec_from_file_location("by_hand", PROGRAMS / "by_hand.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- bars ------------------------------------------------------------------------------------------


def test_every_bar_can_be_read_from_one_row_of_a_full_run() -> None:
    rows = {(row.name, row.load): row for row in ROWS}
    for bar in BARS:
        subjects = rows[(bar.row, bar.load)].subjects
        assert bar.subject in subjects, bar
        assert bar.reference is None or bar.reference in subjects, bar


def test_reads_as_large_as_cs_are_compared_in_one_row() -> None:
    row = ROWS[0]
    assert {NFQ, NFQ_TRIO, C_BATCH_64, C_BATCH_256, LOOP, BATCHES_64} <= set(row.subjects)
    assert BATCHES_64.drain == C_BATCH_64.drain == 64


def test_every_bar_is_about_a_unit_that_its_row_gives() -> None:
    # As the table of docs/performance-tables.md has it; nothing there may stay unmeasured.
    units = {
        "cpu": {"us/packet", "packets/s"},
        "ping": {"us round trip p50", "us round trip p99"},
        "replay": {"packets per second of CPU"},
        "memory": {"MiB more after 10 than after 1 million", "MiB after 10 million"},
        "workers": {"packets/s"},
    }
    kinds = {(row.name, row.load): row.kind for row in ROWS}
    for bar in BARS:
        assert bar.unit in units[kinds[(bar.row, bar.load)]], bar


RATIO = Bar("group", "accept", LOOP, NFQ, 0.6)
LEAST = Bar("rate", "accept", LOOP, None, 300.0, unit="packets/s", least=True)


@pytest.mark.parametrize(
    ("bar", "own", "met"),
    [(RATIO, 6.0, True), (RATIO, 6.1, False), (LEAST, 300.0, True), (LEAST, 299.0, False)],
)
def test_a_bar_is_met_at_its_very_value(bar: Bar, own: float, met: bool) -> None:
    results = [result(LOOP.name, own, unit=bar.unit), result(NFQ.name, 10.0)]
    assert [each.met for each in judged(results, [bar])] == [met]


def test_a_bar_is_judged_by_medians_and_shows_the_best_runs_too() -> None:
    results = [result(LOOP.name, 9.0, 3.0, 6.0), result(NFQ.name, 10.0, 20.0, 4.0)]
    assert judged(results, [RATIO]) == [Judged(RATIO, 0.6, 0.75)]


@pytest.mark.parametrize("missing", [LOOP.name, NFQ.name])
def test_a_bar_without_its_numbers_is_neither_met_nor_missed(missing: str) -> None:
    results = [result(name, 1.0) for name in (LOOP.name, NFQ.name) if name != missing]
    judgements = judged(results, [RATIO])
    assert judgements == [Judged(RATIO, None)]
    assert judgements[0].met is None
    assert "not measured |" in bar_table(judgements)
    assert bar_table(judged(results, [RATIO], measured_only=True)) == ""


def test_the_table_of_bars_says_what_was_missed() -> None:
    lines = bar_table([Judged(RATIO, 0.7, 0.65), Judged(LEAST, 400.0, 500.0)]).splitlines()
    name = "trionfq async for"
    assert lines[2:] == [
        f"| group | {name} | NetfilterQueue | at most 0.60 | 0.700 | 0.650 | **missed** |",
        f"| rate | {name} |  | at least 300.00 | 400.000 | 500.000 | met |",
    ]


# -- picture ---------------------------------------------------------------------------------------


def test_the_picture_has_a_heading_a_group_and_a_line_for_each_bar() -> None:
    judgements = [Judged(RATIO, 0.7), Judged(RATIO, 0.5), Judged(LEAST, 450.0), Judged(RATIO, None)]
    name = "trionfq async for  /  NetfilterQueue"
    assert ratio_lines(judgements) == [
        Line("group"),
        Line(name, 0.7, 0.6, "0.70, bar 0.60: missed", met=False),
        Line(name, 0.5, 0.6, "0.50, bar 0.60", met=True),
    ]
    assert share_lines(judgements) == [
        Line("rate", 1.5, 1.0, "450.00, bar at least 300.00", met=True)
    ]
