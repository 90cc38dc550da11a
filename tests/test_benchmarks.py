"""The benchmarks' tables, ratios and rows. Nothing here depends on a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as running
from benchmarks.reporting import Result, ratios, table, write_json
from benchmarks.rows import C_BATCH_256, LOOP, NFQ, NFQ_TRIO, ROWS, Job

PROGRAMS = Path(running.__file__).parent / "programs"


def result(subject: str, *runs: float, unit: str = "us/packet") -> Result:
    return Result("accept", subject, "closed loop", unit, list(runs))


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


def test_packets_a_second_are_shown_without_a_ratio() -> None:
    text = table([result("NetfilterQueue", 250_000.0, unit="packets/s")])
    assert "| NetfilterQueue | 250,000 | 250,000 to 250,000 |" in text
    assert "/NFQ" not in text


@pytest.mark.parametrize("quick", [False, True])
def test_each_row_subject_and_load_is_measured_once(quick: bool) -> None:
    rows = running.chosen(ROWS, quick=quick, wanted="")
    entries = [(row.name, row.load, subject.name) for row in rows for subject in row.subjects]
    assert len(entries) == len(set(entries))


def test_quick_run_leaves_out_rows_and_subjects_but_adds_none() -> None:
    full = {
        (row.name, row.load, subject)
        for row in running.chosen(ROWS, quick=False, wanted="")
        for subject in row.subjects
    }
    quick = {
        (row.name, row.load, subject)
        for row in running.chosen(ROWS, quick=True, wanted="")
        for subject in row.subjects
    }
    assert quick < full


def test_rows_that_issue_bars_have_their_peers_in_the_same_row() -> None:
    first = ROWS[0]
    assert {NFQ, NFQ_TRIO, C_BATCH_256, LOOP} <= set(first.subjects)


def test_rows_are_chosen_by_a_part_of_their_name() -> None:
    names = {row.name for row in running.chosen(ROWS, quick=False, wanted="held")}
    assert names == {"1 held", "100 held", "10,000 held"}


def test_every_program_that_a_row_names_has_its_job_and_its_way() -> None:
    for row in ROWS:
        for subject in row.subjects:
            if subject.program == "floor":
                assert row.job == Job(size=row.job.size), row
                continue
            if row.kind == "replay":
                assert (PROGRAMS / f"{subject.program}_program.py").exists()
                continue
            source = (PROGRAMS / f"{subject.program}_program.py").read_text()
            assert f"def do_{row.job.work}(" in source, (row.name, subject.name)
            if subject.program != "fnfqueue":
                assert f"def by_{subject.how}(" in source, (row.name, subject.name)
