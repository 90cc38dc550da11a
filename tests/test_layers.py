"""The import rules of pyproject.toml: kept by the package, and each able to fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]


def lint(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """import-linter over the trionfq package that stands in `folder`, by the rules beside it."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", *options],
        cwd=folder,
        env={"COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_import_rule_is_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout
    analyzed = re.search(r"Analyzed (\d+) files", done.stdout)
    assert analyzed is not None
    assert int(analyzed[1]) >= len(list((ROOT / "trionfq").rglob("*.py"))), "it saw every module"


@pytest.mark.parametrize(
    ("broken", "module", "line"),
    [
        ("rows", "_errors.py", "from trionfq import schema"),
        ("rows", "_kernel_model.py", "from trionfq import _codec"),
        ("rows", "_kernel_reader.py", "from trionfq import _protocol"),
        ("rows", "captures.py", "from trionfq import backends"),
        ("rows", "_newcomer.py", ""),
        ("no-io", "_protocol.py", "import trio"),
        ("no-io", "captures.py", "from trio import sleep"),
        ("no-socket", "_ip.py", "import socket"),
        ("no-socket", "_newcomer.py", "import socket"),
        ("cli", "captures.py", "from click import echo"),
        ("cli", "conformance/_judge.py", "import rich"),
        ("bytes-only", "backends/replay.py", "import trionfq._packet"),
        ("judge", "conformance/_walk.py", "from trionfq import _codec"),
        ("judge", "conformance/vectors/_json.py", "from trionfq._protocol import Protocol"),
        # By way of another module, too.
        ("judge", "conformance/_judge.py", "from trionfq import captures"),
        ("bytes-only", "backends/netlink.py", "import trionfq._queue"),
    ],
)
def test_import_rule_fails_when_broken(tmp_path: Path, broken: str, module: str, line: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "trionfq", tmp_path / "trionfq", ignore=shutil.ignore_patterns("*.pyc"))
    with (tmp_path / "trionfq" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path, "--contract", broken)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Contracts: 0 kept, 1 broken." in done.stdout
    named = f"trionfq.{module.removesuffix('.py').replace('/', '.')}"
    assert named in done.stdout
