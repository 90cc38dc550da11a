"""``trionfq record`` on real queues: what passes is in the file, and the end leaves nothing."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from trionfq import open_queue
from trionfq.captures import open_capture, transcript
from trionfq.cli._commands import commands
from trionfq.conformance import judge

from .harness import Namespace, Pair, eventually_sync

PORT = 5000
RULE = ("--rule", "output", "--match", "protocol=udp", "--match", f"dports={PORT}")
ON_THIS_KERNEL = pytest.mark.not_in_guest("what it shows does not differ between kernels")


def has_rule(namespace: Namespace) -> bool:
    """Whether anything is queued, whoever installed the rule."""
    commands = (["iptables-save"], ["ip6tables-save"], ["nft", "list", "ruleset"])
    texts = [namespace.run(command, check=False).stdout for command in commands]
    return "queue" in "".join(texts).lower()


def is_bound(namespace: Namespace, queue: int) -> bool:
    return namespace.queue_row(queue) is not None


@ON_THIS_KERNEL
def test_ctrl_c_ends_a_recording_that_let_everything_pass(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    receiver = pair.b.udp(pair.b4, PORT)
    sender = pair.a.udp(pair.a4)
    words = ["record", str(path), "--namespace", pair.a.name, "--queue", "7", *RULE, "--json"]
    process = pair.b.popen(
        [sys.executable, "-m", "trionfq.cli", *words], stdout=-1, stderr=-1, cwd=tmp_path
    )
    assert process.stderr is not None
    assert "recording queue 7" in process.stderr.readline(), "it says when it is ready"
    assert has_rule(pair.a)
    for number in range(3):
        sender.sendto(b"%d" % number, (pair.b4, PORT))
        assert receiver.recv(100) == b"%d" % number
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = json.loads(out)
    assert found["packets"] == 3
    assert found["interrupted"] is True
    assert found["files"] == [str(path)]
    assert not is_bound(pair.a, 7)
    assert not has_rule(pair.a)
    with open_capture(path) as capture:
        assert [each.verdict for each in transcript(capture)] == [1, 1, 1]
    assert judge(path).finish().passed


@ON_THIS_KERNEL
def test_a_recording_ends_after_a_count_and_a_policy_decides(pair: Pair, tmp_path: Path) -> None:
    policy = tmp_path / "marks.py"
    policy.write_text("def decide(packet):\n    packet.accept(mark=packet.id)\n")
    sender = pair.a.udp(pair.a4)

    def send() -> None:
        eventually_sync("the rule is there", lambda: has_rule(pair.a))
        for _number in range(4):
            sender.sendto(b"x" * 500, (pair.b4, PORT))

    thread = threading.Thread(target=send)
    thread.start()
    words = ["--namespace", pair.a.name, *RULE, "--count", "4", "--max-bytes", "1000", "--json"]
    result = CliRunner().invoke(
        commands, ["record", str(tmp_path / "run.pcapng"), "--policy", f"{policy}:decide", *words]
    )
    thread.join()
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["packets"], found["lost"], found["failed"]) == (4, 0, None)
    assert len(found["files"]) > 1
    marks = []
    for path in found["files"]:
        with open_capture(path) as capture:
            marks += [each.mark for each in transcript(capture)]
    assert len(marks) == 4
    assert not is_bound(pair.a, 0)


@ON_THIS_KERNEL
def test_a_queue_that_somebody_has_is_told_in_a_line(ns: Namespace, tmp_path: Path) -> None:
    words = ["record", str(tmp_path / "run.pcapng"), "--namespace", ns.name]

    async def main() -> tuple[int, str]:
        async with open_queue(0, namespace=ns.name):
            result = await trio.to_thread.run_sync(CliRunner().invoke, commands, words)
        return result.exit_code, result.stderr

    code, errors = trio.run(main)
    assert code == 1
    assert errors.startswith("trionfq: bind queue 0: ")
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir()), "no empty file is in the way of the next try"


@ON_THIS_KERNEL
def test_a_recording_ends_after_a_time(ns: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    words = ["record", str(path), "--namespace", ns.name, "--seconds", "0.05", "--json"]
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["packets"] == 0
    assert path.exists()
