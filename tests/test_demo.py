"""examples/demo.py on its capture: what it prints is what stands in the capture's notes.

Its live part is in tests/kernel/test_demo.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "fixtures" / "demo.toml"
ROW = re.compile(
    r"^ +(?P<id>\d+)  (?P<source>\S+) +(?P<destination>\S+) +(?P<what>IPv[46] \w+) +"
    r"(?P<bytes>\d+)  (?P<verdict>\w+)(?: with mark (?P<mark>0x[0-9a-f]+))?"
    r'(?:: "(?P<old>.*)" became "(?P<new>.*)")?$',
    re.MULTILINE,
)


def demo(root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo where no program is found, hence without its live part."""
    return subprocess.run(
        [sys.executable, "-W", "error", root / "examples" / "demo.py"],
        env={**os.environ, "PATH": "/nonexistent", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )


def expected() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(NOTES.read_text())["expected"]
    return table


@pytest.fixture(scope="module")
def printed() -> str:
    done = demo()
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_packet_is_printed_with_its_verdict(printed: str) -> None:
    rows = list(ROW.finditer(printed))
    noted = expected()
    assert len(rows) == noted["packets"]
    assert [int(row["id"]) for row in rows] == list(range(1, len(rows) + 1))
    assert Counter(row["verdict"].upper() for row in rows) == noted["verdicts"]
    assert Counter(row["what"] for row in rows) == noted["protocols"]
    assert sum(int(row["bytes"]) for row in rows) == noted["octets"]
    for row in rows:
        addresses = row["source"], row["destination"]
        kind = "fd00:7:" if row["what"].startswith("IPv6") else "10.7."
        assert all(kind in address for address in addresses)
        assert ("ICMP" in row["what"]) == (row["verdict"] == "repeat")
        assert row["mark"] == ("0x10" if row["verdict"] == "repeat" else None)
        assert (row["verdict"] == "drop") == row["destination"].endswith(":23")


def test_rewritten_text_is_printed(printed: str) -> None:
    rewritten = [(row["old"], row["new"]) for row in ROW.finditer(printed) if row["old"]]
    assert len(rewritten) == expected()["rewritten"]
    assert set(rewritten) == {
        ("the sky is blue", "the sky is orange"),
        ("blue, red and blue again", "orange, red and orange again"),
    }


def test_totals_are_printed_as_noted(printed: str) -> None:
    noted = expected()
    protocols, verdicts = (
        ", ".join(f"{count} {name}" for name, count in noted[table].items())
        for table in ("protocols", "verdicts")
    )
    lines = [
        f"  {noted['packets']} packets: {protocols}",
        f"  verdicts: {verdicts}; {noted['rewritten']} rewritten",
        "  These are the totals noted in fixtures/demo.toml.",
    ]
    assert "\n".join(["", *lines, ""]) in printed


def test_one_line_says_why_there_is_no_live_part(printed: str) -> None:
    last = printed.splitlines()[-1]
    assert last.startswith("No live part: ")
    assert "util-linux" in last or "iptables" in last


@pytest.mark.parametrize(
    ("table", "name", "wrong"),
    [("expected", "packets", 35), ("expected.verdicts", "DROP", 3), ("expected", "rewritten", 0)],
)
def test_other_totals_than_noted_fail(tmp_path: Path, table: str, name: str, wrong: int) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "fixtures").mkdir()
    for file in (NOTES, NOTES.with_suffix(".pcapng")):
        shutil.copy(file, tmp_path / "fixtures")
    notes = tmp_path / "fixtures" / NOTES.name
    notes.write_text(re.sub(rf"^{name} = \d+$", f"{name} = {wrong}", NOTES.read_text(), flags=re.M))
    done = demo(tmp_path)
    assert done.returncode == 1
    what = table.partition(".")[2] or name
    assert re.fullmatch(rf"demo: {what}: expected .*{wrong}.* got .*\n", done.stderr)
    assert "No live part" not in done.stdout


def test_missing_programs_are_named_by_their_debian_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import demo  # type: ignore[import-not-found]

    monkeypatch.setattr(demo, "PATH", "/nonexistent")
    assert demo.live_part()
    assert capsys.readouterr().out == (
        "\nNo live part: Debian packages missing: iproute2 iptables "
        "(as root: apt-get install iproute2 iptables)\n"
    )
