"""The fixtures can be recorded anew, and what they hold does not depend on the day."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fixtures.record import record
from fixtures.session import FOLDER
from trionfq.captures import open_capture, transcript

# Those without TCP, whose acknowledgements come as they come.
STEADY = ("odd-lengths", "arrived", "marked", "fragments", "every-verdict")


def what_must_not_change(notes: Path) -> dict[str, Any]:
    about = tomllib.loads(notes.read_text())
    del about["kernel"], about["date"]
    # The kernel stamps packets while anything on the machine wants that.
    about["expected"]["attributes"].pop("timestamp", None)
    return about


@pytest.mark.parametrize("name", STEADY)
async def test_a_fixture_recorded_anew_holds_the_same(name: str, tmp_path: Path) -> None:
    session = await record(name, tmp_path)
    before, after = FOLDER / f"{name}.pcapng", session.capture
    assert what_must_not_change(session.notes) == what_must_not_change(before.with_suffix(".toml"))
    assert sorted(os.listdir(tmp_path)) == [f"{name}.pcapng", f"{name}.toml"]
    counts = []
    for path in (before, after):
        with open_capture(path) as capture:
            counts.append(len(transcript(capture)))
    assert counts[0] == counts[1] > 0
