"""Which kernel tests the guest is spared, and why: it is slow, and has some five minutes.

A test may say so itself, with the marker ``not_in_guest``; here stand whole files and functions.
"""

from __future__ import annotations

CHILDREN = "each starts Python programs, which takes the guest 5 s a program"
LOAD = "it is about a load that the guest cannot make"

LEFT_OUT: dict[str, str] = {
    "test_demo.py": CHILDREN,
    "test_workers.py": CHILDREN,
    "test_harness.py": "the harness is tested once; here other tests use it",
    "test_live_equals_replay.py": "a replay is the same on every kernel, and this takes a minute",
    "test_recording_fixtures.py": "the fixtures are recorded on the machine's own kernel",
    "test_requests_against_kernel.py": "its answers are those of the kernel they were recorded on",
    "test_receive_buffer.py": LOAD,
    "test_coalescing.py": LOAD,
}
"""Reasons by the name of a file in tests/kernel, or ``file::function``."""
