"""The last test in the guest: what the others did has not hurt its kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernel.harness import tool

pytestmark = pytest.mark.needs_kernel("guest")


def test_no_test_has_tainted_the_kernel() -> None:
    """``/proc/sys/kernel/tainted`` is 0: no warning, no oops, no lock-up, no foreign module."""
    tainted = int(Path("/proc/sys/kernel/tainted").read_text())
    messages = subprocess.run([tool("dmesg")], capture_output=True, text=True, check=True).stdout
    tail = "\n".join(messages.splitlines()[-100:])
    assert tainted == 0, f"kernel.tainted is {tainted}; the kernel said at last:\n{tail}"
    bad = [line for line in messages.splitlines() if "WARNING:" in line or "BUG:" in line]
    assert not bad, f"the kernel said {bad}; at last:\n{tail}"
