"""What the judge says of recordings of real kernels: nothing against a well-behaved program."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from fixtures.policies import POLICIES
from trionfq import RecordingBackend, ReplayBackend, open_queue
from trionfq.conformance import judge

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.pcapng"))
# Notes, and why: the policy repeats six packets without a mark, by intention, and writes mark 0
# into four packets that have none; a receive buffer was made too small.
NOTES = {
    "every-verdict": {"NFQ421": 6, "NFQ419": 4},
    "lossy": {"NFQ504": 1},
}


OTHERS = sorted(path.stem for path in (FOLDER / "others").glob("*.pcap*"))
FOREIGN = {"two-programs": 34}  # what iptables asked of nftables meanwhile
PAGE = (FOLDER.parent / "docs" / "conformance.md").read_text()
ROW = re.compile(r"^\| ([a-z_-]+) \| (NFQ\d{3}) \| (\d+) \|", re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_trionfqs_own_recordings_pass(name: str) -> None:
    report = judge(FOLDER / f"{name}.pcapng").finish()
    assert report.totals.findings == NOTES.get(name, {})
    assert report.passed
    assert report.totals.packets > 0
    assert report.totals.foreign == 0


@pytest.mark.parametrize(
    ("name", "policy"), [("every-verdict", "every_verdict"), ("marked", "count_on")]
)
async def test_the_recording_of_a_replay_passes(name: str, policy: str, tmp_path: Path) -> None:
    path = tmp_path / "again.pcapng"
    decide = POLICIES[policy]()
    backend = RecordingBackend(ReplayBackend(FOLDER / f"{name}.pcapng"), path)
    async with open_queue(0, backend=backend) as queue:
        async for packet in queue:
            decide(queue, packet)
    report = judge(path).finish()
    assert report.totals.findings == NOTES.get(name, {})
    assert report.passed


async def test_a_replay_that_cannot_cut_packets_is_told_from_a_kernel(tmp_path: Path) -> None:
    """A kernel sends no GSO packet to a queue that did not ask for it; a replay warns and does."""
    path = tmp_path / "whole.pcapng"
    backend = RecordingBackend(ReplayBackend(FOLDER / "gso.pcapng"), path)
    async with open_queue(0, backend=backend) as queue:
        async for packet in queue:
            packet.accept()
    assert set(judge(path).finish().totals.findings) == {"NFQ315"}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_found_in_other_programs_stands_in_the_documentation(name: str) -> None:
    listed = {rule: int(count) for capture, rule, count in ROW.findall(PAGE) if capture == name}
    [path] = (FOLDER / "others").glob(f"{name}.pcap*")
    report = judge(path).finish()
    assert report.totals.findings == Counter(listed)
    assert report.totals.foreign == FOREIGN.get(name, 0)
    assert report.totals.packets > 5


def test_the_documentation_lists_no_capture_that_is_not_there() -> None:
    assert {capture for capture, _, _ in ROW.findall(PAGE)} <= set(OTHERS)
    assert {"fnfqueue", "netfilterqueue"} <= set(OTHERS)
