"""Where there is no AF_NETLINK, no compiler and no Linux: everything works but the real socket."""

from __future__ import annotations

import re
import subprocess
import sys
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# trio.socket copies all that the socket module offers, so what goes must go from there, too.
NO_NETLINK = """
import socket
del socket.AF_NETLINK
socket.__all__.remove("AF_NETLINK")
"""
# As above, and what else of Linux's the standard library offers; trio has looked at its platform.
NO_LINUX = """
import trio
import os, socket, sys
sys.platform = "plan9"
for module, words in [
    (socket, ("AF_NETLINK", "AF_PACKET", "SO_MARK", "SO_PRIORITY", "MSG_ERRQUEUE", "CMSG_LEN")),
    (os, ("setns", "unshare", "eventfd", "memfd_create", "pidfd_open", "geteuid", "sched_yield")),
]:
    for word in words:
        if hasattr(module, word):
            delattr(module, word)
"""
PROGRAM = """
import sys
import trio
import trionfq
import trionfq.captures, trionfq.schema, trionfq.testing

async def main():
    backend = trionfq.ReplayBackend(sys.argv[1], check="all")
    recording = trionfq.RecordingBackend(backend, sys.argv[2])
    async with trionfq.open_queue(0, backend=recording) as queue:
        async for packet in queue:
            if packet.ip.protocol == 6:
                packet.drop()
            else:
                packet.accept(mark=7)
    assert recording.failed is None
    verdicts = [outcome.verdict for outcome in backend.transcript]
    print(len(verdicts), verdicts.count(0), verdicts.count(1))
    with trionfq.captures.open_capture(sys.argv[2]) as capture:
        assert trionfq.captures.transcript(capture) == backend.transcript
    try:
        trionfq.NetlinkBackend()
    except trionfq.ModuleMissingError as error:
        print(error)
    try:
        async with trionfq.open_queue(0):
            pass
    except trionfq.ModuleMissingError as error:
        print(error)

trio.run(main)
"""


def run(before: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The program in a fresh interpreter, after something was taken from it."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", before + "\n" + PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.parametrize("name", ["demo", "every-verdict"])
def test_a_replay_needs_no_netlink_and_a_live_queue_says_why_not(name: str, tmp_path: Path) -> None:
    done = run(NO_NETLINK, ROOT / "fixtures" / f"{name}.pcapng", tmp_path / "again.pcapng")
    assert (done.returncode, done.stderr) == (0, "")
    counts, *refusals = done.stdout.splitlines()
    total, dropped, accepted = map(int, counts.split())
    assert total == dropped + accepted
    assert total >= 30
    assert len(refusals) == 2
    for text in refusals:
        assert "AF_NETLINK" in text
        assert "ReplayBackend" in text


def test_nothing_of_linux_is_needed_to_replay(tmp_path: Path) -> None:
    done = run(NO_LINUX, ROOT / "fixtures" / "forwarded.pcapng", tmp_path / "again.pcapng")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3


def test_every_module_can_be_imported_without_netlink() -> None:
    code = """
import importlib, pkgutil, trionfq
names = [each.name for each in pkgutil.walk_packages(trionfq.__path__, "trionfq.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_NETLINK + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # All but trionfq itself.
    assert int(done.stdout) == len(list((ROOT / "trionfq").rglob("*.py"))) - 1


# --- nothing to compile ---------------------------------------------------------------------------


def test_the_build_backend_calls_the_package_pure_python() -> None:
    """It wrote so when it was installed here; make wheel tries the wheel itself elsewhere."""
    wheel = metadata.distribution("trionfq").read_text("WHEEL")
    assert wheel is not None
    facts = message_from_string(wheel)
    assert facts["Root-Is-Purelib"] == "true"
    assert facts.get_all("Tag") == ["py3-none-any"]
    files = [path for path in (ROOT / "trionfq").rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "__pycache__" not in path.parts} == {
        ".py",
        ".typed",
        ".json",  # test vectors
        ".md",
    }


def test_what_is_installed_beside_it_is_pure_python_too() -> None:
    """Every package that trionfq needs, and what those need, on this machine."""
    seen: set[str] = set()
    waiting = ["trionfq"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        package = metadata.distribution(name)
        compiled = [
            str(path) for path in package.files or [] if path.suffix in (".so", ".pyd", ".dll")
        ]
        assert compiled == [], name
        for text in package.requires or []:
            # A condition here names an extra, Windows, or an older Python.
            if ";" not in text:
                waiting.append(re.split(r"[^\w.-]", text, maxsplit=1)[0])
    assert {"trio", "construct", "attrs"} <= seen
