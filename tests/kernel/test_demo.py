"""The live part of examples/demo.py: as root, as an ordinary user, and where it may not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import Namespace

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", str(ROOT / "examples" / "demo.py")]
NOT_ROOT = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
NO_NETWORKS = ["unshare", "--user", "--map-root-user", "sh", "-c"]


def demo(*prefix: str, command: list[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )


def allows(*prefix: str) -> bool:
    return subprocess.run([*prefix, "true"], capture_output=True).returncode == 0


def check_live(done: subprocess.CompletedProcess[str]) -> None:
    """It showed a receiver that saw what the policy says."""
    assert (done.returncode, done.stderr) == (0, "")
    recorded, _, live = done.stdout.partition("The same policy live,")
    assert "These are the totals noted in" in recorded
    for version in (4, 6):
        seen = re.findall(rf"^  IPv{version} (\w+) +(.*)$", live, re.MULTILINE)
        assert seen == [
            ("UDP", "'the sky is orange', rewritten, sent as 'the sky is blue'"),
            ("UDP", "'grass is green', as sent"),
            (
                "UDP",
                "'orange, red and orange again', rewritten, sent as 'blue, red and blue again'",
            ),
            ("TCP", "'a letter, sent by TCP and left alone', as sent"),
            ("telnet", "nothing: dropped"),
            ("ping", "2 of 2 answered; 4 packets came to the rules once more, with mark 0x10"),
        ]
    assert len(re.findall(r"ICMP\w* +\d+  repeat with mark 0x10$", live, re.MULTILINE)) == 8
    assert len(re.findall(r":23 .*  drop$", live, re.MULTILINE)) == 2
    assert "8 REPEAT; 4 rewritten\n" in live
    assert "Its recording, replayed, gives the same verdicts." in live


def test_the_demo_decides_live_packets_and_touches_nothing_else(ns: Namespace) -> None:
    """Run inside a namespace of the test, which shows afterwards what it showed before."""
    before = [ns.run(["iptables-save"]).stdout, ns.run(["ip6tables-save"]).stdout]
    done = ns.run(COMMAND, timeout_s=50)
    check_live(done)
    assert [ns.run(["iptables-save"]).stdout, ns.run(["ip6tables-save"]).stdout] == before
    assert ns.queue_rows() == []


@pytest.mark.skipif(not allows(*NOT_ROOT), reason="only root can give up a capability")
def test_the_demo_decides_live_packets_for_who_is_not_root() -> None:
    check_live(demo(*NOT_ROOT))


def test_the_demo_says_where_it_may_make_no_network() -> None:
    script = f"echo 0 >/proc/sys/user/max_net_namespaces; exec {' '.join(COMMAND)}"
    done = demo(*NO_NETWORKS, command=[script])
    assert (done.returncode, done.stderr) == (0, "")
    line = done.stdout.splitlines()[-1]
    assert line.startswith("No live part: this process may not make a network namespace (unshare")


def test_the_demo_fails_where_the_policy_does_otherwise_than_it_says(tmp_path: Path) -> None:
    """The recorded part fails by the notes (tests/test_demo.py), the live one by what arrives."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    policy = tmp_path / "examples" / "policy.py"
    policy.write_text(policy.read_text().replace("packet.drop()", "packet.accept()"))
    inside = 'mount -t tmpfs tmpfs /run && exec "$@"'
    done = demo(
        *("unshare", "--net", "--mount", "sh", "-c", inside, "sh"),
        command=[sys.executable, str(tmp_path / "examples" / "demo_live.py")],
    )
    assert done.returncode == 1
    assert "IPv4 telnet  a connection" in done.stdout
    assert done.stderr == "demo: the live part went otherwise than the policy says\n"
