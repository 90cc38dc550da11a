"""The pytest plugin: what a project gets whose tests use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trionfq import Packet, ReplayBackend, Verdict, open_queue
from trionfq.captures import Outcome, Record, create_capture
from trionfq.schema import Direction
from trionfq.testing import (
    Overrun,
    Replays,
    assert_verdicts,
    make_packet,
    make_verdict,
    udp_packet,
    why_not_live,
)

pytest_plugins = ["pytester"]

DEMO = Path(__file__).parents[1] / "fixtures" / "demo.pcapng"
RUN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
POLICY = """
import pytest
import trio
from trionfq.testing import Overrun, make_packet, udp_packet

def policy(packet):
    if packet.ip.destination_port == 23:
        packet.drop()
    else:
        packet.accept(mark=7)

TELNET = udp_packet(destination_port=23)
"""


def run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    """Run a project's test file in this process, where trionfq is imported already."""
    pytester.makepyfile(POLICY + text)
    return pytester.runpytest_inprocess(*RUN, *options)


def test_a_queue_is_replayed_from_packets_and_from_a_file(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        f"""
async def test_packets(nfqueue_replay, nfqueue_verdicts):
    async with nfqueue_replay([TELNET, udp_packet(), make_packet(9, TELNET)]) as queue:
        await queue.serve(policy)
    nfqueue_verdicts(queue, ["drop", {{"verdict": "accept", "mark": 7}}, "drop"])
    nfqueue_verdicts(queue, {{9: "drop"}})

async def test_file(nfqueue_replay, nfqueue_verdicts):
    async with nfqueue_replay({str(DEMO)!r}, replay={{"pace": "lockstep"}}) as queue:
        async for packet in queue:
            packet.accept()
    nfqueue_verdicts(queue, ["accept"] * 34)

async def test_faults_and_a_clock(nfqueue_replay, nfqueue_verdicts, autojump_clock):
    async with nfqueue_replay([TELNET] * 3, faults=[Overrun(at=1)]) as queue:
        async for packet in queue:
            await trio.sleep(3600)
            packet.accept()
        assert queue.statistics().overruns == 1
    assert trio.current_time() == 7200

def test_without_async(nfqueue_replay, nfqueue_verdicts):
    nfqueue_verdicts(nfqueue_replay.run(policy, [udp_packet(), TELNET]), ["accept", "drop"])
""",
        "-o",
        "trio_mode=true",
    )
    result.assert_outcomes(passed=4)


def test_a_wrong_verdict_fails_and_says_where(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_it(nfqueue_replay, nfqueue_verdicts):
    nfqueue_verdicts(nfqueue_replay.run(policy, [udp_packet(), TELNET]), ["accept", "accept"])
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E * AssertionError: packet 2: expected accept, got drop"])


def test_where_it_may_not_the_live_fixture_skips_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionfq.testing.why_not_live", lambda: "no privilege, and more")
    result = run(
        pytester,
        "\nasync def test_it(nfqueue_live):\n    raise AssertionError\n",
        *("-o", "trio_mode=true", "-rs"),
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*: no privilege, and more"])


LIVE = """
import socket
from trionfq.rules import Match

async def test_it(nfqueue_live, nfqueue_verdicts):
    a, b = nfqueue_live.a, nfqueue_live.b
    for ipv6, to in ((False, b.ipv4), (True, b.ipv6)):
        match = Match(protocol="udp", dports=[23, 53])
        async with nfqueue_live(3, "INPUT", match=match, copy_range=100) as queue:
            receiver, telnet = b.udp(53, ipv6=ipv6), b.udp(23, ipv6=ipv6)
            sender = a.udp(ipv6=ipv6)
            sender.sendto(b"not matched", (to, 99))
            for port, data in ((23, b"one"), (53, b"two")):
                sender.sendto(data, (to, port))
                with trio.fail_after(20):
                    policy(await queue.receive())
            assert await trio.to_thread.run_sync(receiver.recv, 100) == b"two"
            telnet.setblocking(False)
            with pytest.raises(BlockingIOError):
                telnet.recv(100)
        nfqueue_verdicts(queue, ["drop", {"verdict": "accept", "mark": 7, "payload": None}])
        assert "queue" not in b.run(["nft", "list", "ruleset"]).stdout
        for each in (receiver, telnet):
            each.close()
"""


def test_a_live_pair_has_a_rule_in_place(pytester: pytest.Pytester) -> None:
    if (reason := why_not_live()) is not None:
        pytest.skip(reason)
    result = run(pytester, LIVE, "-o", "trio_mode=true")
    result.assert_outcomes(passed=1)


def test_the_reason_is_the_one_of_this_process() -> None:
    """Without the privilege it is told, and nothing else is tried."""
    program = (
        "import os, sys\n"
        "from trionfq.testing import why_not_live\n"
        "if os.geteuid() == 0:\n"
        "    try: os.setgid(65534), os.setuid(65534)\n"
        "    except OSError: sys.exit('root of a user namespace, who cannot become another')\n"
        "print(why_not_live())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    if "user namespace" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "no privilege for network namespaces" in done.stdout or "iproute2" in done.stdout


def test_the_plugin_imports_neither_trionfq_nor_trio() -> None:
    program = (
        "import sys, _trionfq_pytest\n"
        "print([each for each in sys.modules if each.split('.')[0] in ('trio', 'trionfq')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_plugin_is_found_by_pytest(pytestconfig: pytest.Config) -> None:
    import _trionfq_pytest

    assert pytestconfig.pluginmanager.get_plugin("trionfq") is _trionfq_pytest


# --- what the fixtures give -----------------------------------------------------------------------


def outcomes(*verdicts: int | None) -> list[Outcome]:
    return [Outcome(0, place, verdict) for place, verdict in enumerate(verdicts, 1)]


def test_every_way_to_expect_a_verdict() -> None:
    run = [
        Outcome(0, 1, 1),
        Outcome(0, 2, 0, mark=5),
        Outcome(0, 3, None),
        Outcome(0, 4, 7 << 16 | 3),
        Outcome(0, 5, 1, payload=b"x"),
    ]
    assert_verdicts(run, ["accept", Verdict.DROP, None, "queue", 1])
    assert_verdicts(run, [1, {"mark": 5}, {"mark": None}, 7 << 16 | 3, {"payload": b"x"}])
    assert_verdicts(run, {5: "accept", 1: {"verdict": "accept", "payload": None}})
    assert_verdicts(run, run)
    assert_verdicts([], [])


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (["accept", "accept"], "packet 2: expected accept, got drop"),
        (["accept"], "expected 1 packets, got 2: accept, drop"),
        (["accept", "drop", "drop"], "expected 3 packets, got 2"),
        (["accept", None], "packet 2: expected undecided, got drop"),
        ({1: {"mark": 3}}, "packet 1: expected mark 3, got None"),
        ({9: "drop"}, "packet 9: did not come"),
        (["accept", 3 << 16], "packet 2: expected drop (0x30000), got drop"),
        (outcomes(1, 1), "run and expected differ in 1 of 2 packets"),
    ],
)
def test_what_is_not_so_is_said(expected: object, text: str) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_verdicts(outcomes(1, 0), expected)  # type: ignore[arg-type]
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (["acept"], ValueError),
        ([{"verdikt": 1}], ValueError),
        ([1.5], TypeError),
        ([Outcome(0, 1, 1), 1], TypeError),
    ],
)
def test_what_cannot_be_expected_is_an_error(expected: list[object], error: type) -> None:
    with pytest.raises(error):
        assert_verdicts(outcomes(1), expected)  # type: ignore[arg-type]


def test_a_file_is_a_run_and_an_expectation(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with create_capture(path) as writer:
        writer.write(Record(1, Direction.FROM_KERNEL, make_packet(1)))
        writer.write(Record(2, Direction.TO_KERNEL, make_verdict(1, 0)))
    assert_verdicts(path, ["drop"])
    assert_verdicts(outcomes(0), path)
    with pytest.raises(AssertionError, match="differ in 1 of 1"):
        assert_verdicts(outcomes(1), path)


async def test_a_queue_without_a_record_is_an_error() -> None:
    class Bare:
        """A backend that tells nothing of its inner one."""

        def __init__(self, backend: ReplayBackend) -> None:
            self._backend = backend

        def __getattr__(self, name: str) -> object:
            if name == "inner":
                raise AttributeError(name)
            return getattr(self._backend, name)

    bare = Bare(ReplayBackend([make_packet(1)]))
    async with open_queue(0, backend=bare) as queue:  # type: ignore[arg-type]
        (await queue.receive()).accept()
    with pytest.raises(TypeError, match="neither replayed nor recorded"):
        assert_verdicts(queue, ["accept"])


def test_packets_of_every_kind_are_taken() -> None:
    scapy = pytest.importorskip("scapy.all")
    six = udp_packet(b"y" * 100, source="2001:db8::1", destination="2001:db8::2")
    made = scapy.IP(src="192.0.2.1", dst="192.0.2.2") / scapy.UDP(sport=1, dport=2)
    source = [
        *[udp_packet(b"z" * size) for size in (1, 228, 484)],  # 256 and 512 bytes of packet, too
        six,
        made,
        make_packet(77, udp_packet()),
        Record(5, Direction.FROM_KERNEL, make_packet(78)),
    ]
    seen: list[bytes] = []

    def policy(packet: Packet) -> None:
        seen.append(packet.payload)
        packet.accept()

    run = Replays().run(policy, source)
    assert [each.packet_id for each in run] == [1, 2, 3, 4, 5, 77, 78]
    assert seen[3:5] == [six, bytes(made)]
    with pytest.raises(TypeError, match="packets of scapy and dpkt"):
        Replays().run(lambda packet: packet.accept(), ["text"])


def test_an_ordinary_capture_is_replayed_as_a_queue(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    content = udp_packet()
    size = len(content).to_bytes(4, "little")
    head = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000065000000")
    path.write_bytes(head + bytes(8) + size + size + content)
    assert_verdicts(Replays().run(lambda packet: packet.drop(), path), ["drop"])


def test_faults_are_of_the_seed() -> None:
    def lost(seed: int) -> list[int | None]:
        packets = [udp_packet()] * 40
        faults = [Overrun(rate=0.5)]
        run = Replays().run(lambda packet: packet.accept(), packets, faults=faults, seed=seed)
        return [each.verdict for each in run]

    assert lost(1) == lost(1)
    assert lost(1) != lost(2)
