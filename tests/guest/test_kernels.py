"""The last test of a whole run: docs/kernels.md says what this run saw."""

from __future__ import annotations

import pytest

from .kernels import STASH, WRITE


def test_the_page_of_the_kernels_says_what_was_seen(request: pytest.FixtureRequest) -> None:
    """It is left out where only some of the kernel tests run."""
    seen = request.config.stash[STASH]
    found = seen.write() if request.config.getoption(WRITE) else seen.judge()
    assert not found, "docs/kernels.json and this run do not agree:\n" + "\n".join(found)
