"""docs/examples/nf_queue.py without a kernel; with one it is in tests/kernel/test_selftest*.py."""

from __future__ import annotations

import errno
import functools
import io
import math
import re
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trionfq import Hook, KernelError, QueueFlags, ReplayBackend, schema
from trionfq.schema import ErrorMessage, Message
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import NFQA, NFQA_CFG, CopyMode, MessageType, SkbInfo
from trionfq.testing import Effect, KernelModel, ScriptedBackend, make_bind, make_packet, udp_packet

from .example_programs import load

FIXTURES = Path(__file__).parents[1] / "fixtures"

LIMIT_S = 20
AT_LAST = f"-t{LIMIT_S}"
"""Ends also a program that does not decide, for which a recording has no end."""

program = load("nf_queue")


def feeding(*datagrams: bytes, **options: Any) -> ScriptedBackend:
    """A backend to which these come when a program waits for packets, and nothing after them."""
    backend = ScriptedBackend(**options)

    async def feed() -> None:
        backend.wait_readable_hook = None
        for datagram in datagrams:
            backend.arrive(datagram)
        backend.end()

    backend.wait_readable_hook = feed
    return backend


def packets(count: int, **attributes: Any) -> list[bytes]:
    return [make_packet(payload=udp_packet(b"%d" % n), **attributes) for n in range(count)]


async def decide(backend: ScriptedBackend, *arguments: str, output: Any = None) -> Any:
    """Run the program until its backend has no more; gives its counts."""
    counts = program.Counts()
    with trio.fail_after(LIMIT_S):
        await program.run(program.parse(arguments), counts, backend=backend, output=output)
    return counts


def sent(backend: ScriptedBackend, *types: MessageType) -> list[Message]:
    """The messages of these types that the program sent, in order."""
    messages = [message for datagram in backend.sent for message in schema.parse(datagram)]
    return [m for m in messages if isinstance(m, Message) and m.type in types]


def ids(backend: ScriptedBackend) -> list[int]:
    """Ids of the single verdicts that were sent, in order."""
    headers: list[Any] = [
        schema.by_name(NFQA, message.attributes)["verdict_hdr"]
        for message in sent(backend, MessageType.VERDICT)
    ]
    return [header["id"] for header in headers]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {}),
        ("-q 7", {"queue": 7}),
        ("-q65535", {"queue": 65535}),
        ("-Q 9", {"target": 9}),
        ("-q 1 -Q 0", {"queue": 1, "target": 0}),
        ("-c", {"count": True}),
        ("-t 3", {"idle_s": 3}),
        ("-t 0", {"idle_s": math.inf}),
        ("-d 150", {"delay_s": 0.15}),
        ("-G", {"gso": False}),
        ("-o", {"fail_open": True}),
        ("-O", {"reverse": True}),
        ("-b", {"bogus": True}),
        ("-v", {"verbose": True}),
        ("-vv", {"verbose": True}),
        (
            "-q 2 -Q 3 -cGoObv -t 5 -d 1",
            {
                "queue": 2,
                "target": 3,
                "count": True,
                "idle_s": 5,
                "delay_s": 0.001,
                "gso": False,
                "fail_open": True,
                "reverse": True,
                "bogus": True,
                "verbose": True,
            },
        ),
    ],
)
def test_options_are_those_of_the_kernels_own_program(line: str, fields: dict[str, Any]) -> None:
    assert program.parse(line.split()) == program.Options(**fields)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-q 65536", "argument -q: give the number of a queue, of 0 to 65535, not '65536'"),
        ("-q -1", "argument -q: give the number of a queue"),
        ("-q x", "not 'x'"),
        ("-Q 65536", "argument -Q: give the number of a queue"),
        ("-q 5 -Q 5", "-q and -Q are both 5"),
        ("-Q 0", "-q and -Q are both 0"),
        ("-d 0", "argument -d: give milliseconds, of 1 to "),
        ("-t -2", "argument -t: give whole seconds"),
        ("-t", "argument -t: expected one argument"),
        ("-x", "unrecognized arguments: -x"),
        ("7", "unrecognized arguments: 7"),
    ],
)
def test_a_wrong_use_exits_with_1_and_says_why(
    line: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(line.split())
    assert caught.value.code == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert reason in errors
    assert errors.startswith("usage: nf_queue.py")


def test_help_tells_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(["-h"])
    assert caught.value.code == 0
    told = set(re.findall(r"^  (-\w)", capsys.readouterr().out, re.MULTILINE))
    assert told == {f"-{letter}" for letter in "hqQctdGoObv"}


# --- what the kernel is asked for -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("", QueueFlags.UID_GID | QueueFlags.GSO),
        ("-G", QueueFlags.UID_GID),
        ("-Go", QueueFlags.UID_GID | QueueFlags.FAIL_OPEN),
    ],
)
async def test_the_queue_is_set_up_as_asked(line: str, flags: QueueFlags) -> None:
    backend = feeding()
    await decide(backend, "-q", "7", *line.split())
    first = sent(backend, MessageType.CONFIG)[0]
    assert first.res_id == 7
    asked = schema.by_name(NFQA_CFG, first.attributes)
    assert asked["params"] == {"copy_range": 0xFFFF, "copy_mode": CopyMode.PACKET}
    assert (asked["flags"], asked["mask"]) == (flags, flags)


async def test_packets_are_accepted() -> None:
    backend = feeding(*packets(3))
    await decide(backend)
    assert [d.effect for d in backend.decisions] == [Effect.ACCEPTED] * 3


async def test_packets_are_handed_to_another_queue(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kernel = KernelModel()
    ScriptedBackend(kernel).send_nowait(make_bind(9))
    backend = feeding(*packets(3, queue=1), kernel=kernel)
    # They stay undecided in the other queue, so the backend has no end.
    await decide(backend, "-q", "1", "-Q", "9", "-t", "1")
    assert [(d.effect, d.target, d.bypass) for d in backend.decisions] == [
        (Effect.REQUEUED, 9, False)
    ] * 3


async def test_each_verdict_waits_for_the_one_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = feeding(*packets(3))
    times: list[float] = []

    def note(datagram: bytes) -> None:
        [message] = schema.parse(datagram)
        if isinstance(message, Message) and message.type == MessageType.VERDICT:
            times.append(trio.current_time() - start)

    backend.send_hook = note
    start = trio.current_time()
    await decide(backend, "-d", "400")
    assert times == pytest.approx([0.4, 0.8, 1.2])


async def test_it_ends_when_nothing_came_for_so_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = ScriptedBackend()
    counts = program.Counts()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(program.run, program.parse(["-t", "3"]), counts, backend=backend)
        )
        for _ in range(2):
            await trio.sleep(2)
            backend.arrive(make_packet())
    assert trio.current_time() - start == pytest.approx(2 + 2 + 3)
    assert counts.total == 2


async def test_without_an_end_it_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1e6) as waiting:
        await program.run(program.parse([]), program.Counts(), backend=ScriptedBackend())
    assert waiting.cancelled_caught


async def test_sixteen_packets_at_a_time_are_answered_backwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = feeding(*packets(40))
    await decide(backend, "-O", "-t", "1")
    wanted = [*range(16, 0, -1), *range(32, 16, -1), *range(40, 32, -1)]
    assert ids(backend) == wanted
    assert sent(backend, MessageType.VERDICT_BATCH) == []
    assert [d.packet_id for d in backend.decisions] == wanted
    assert {d.effect for d in backend.decisions} == {Effect.ACCEPTED}


async def test_fifty_bogus_verdicts_go_with_each_packet_and_change_nothing() -> None:
    """Half of all ids away, across the end of 32 bits; each is answered with ENOENT."""
    backend = ScriptedBackend()
    counts = program.Counts()
    async with trio.open_nursery() as nursery:
        queue = await nursery.start(
            functools.partial(program.run, program.parse(["-b", AT_LAST]), counts, backend=backend)
        )
        backend.arrive(make_packet(0x7FFFFFF0), keep_id=True)
        backend.arrive(make_packet(0x80000000), keep_id=True)
        backend.end()
    assert counts.total == 2
    bogus = [
        (packet_id + 0x7FFFFFFF + i) & 0xFFFFFFFF
        for packet_id in (0x7FFFFFF0, 0x80000000)
        for i in range(50)
    ]
    assert 0xFFFFFFFF in bogus
    assert 0 in bogus
    asked = [each for each in ids(backend) if each not in (0x7FFFFFF0, 0x80000000)]
    assert asked == bogus
    assert queue.statistics().verdicts_gone == 100
    assert [(d.packet_id, d.effect) for d in backend.decisions] == [
        (0x7FFFFFF0, Effect.ACCEPTED),
        (0x80000000, Effect.ACCEPTED),
    ]


# --- what it prints -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arrived", "forwarded", "local-output", "gso"])
def test_the_counts_of_a_recording_are_those_in_its_notes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = tomllib.loads((FIXTURES / f"{name}.toml").read_text())["expected"]
    assert program.main(["-c", AT_LAST], backend=ReplayBackend(FIXTURES / f"{name}.pcapng")) == 0
    by_hook = [noted["hooks"].get(Hook(number).name, 0) for number in range(5)]
    wanted = [f"hook {number} packets {count:08}" for number, count in enumerate(by_hook)]
    assert sum(by_hook) == noted["packets"] > 0
    output, errors = capsys.readouterr()
    assert output.splitlines() == [*wanted, f"{noted['packets']} packets total"]
    assert errors == ""


def test_without_an_option_for_it_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([AT_LAST], backend=feeding(*packets(2))) == 0
    assert capsys.readouterr() == ("", "")


async def test_a_line_tells_hook_protocol_length_and_state_of_the_buffer() -> None:
    both = SkbInfo.GSO | SkbInfo.CSUMNOTREADY
    backend = feeding(
        make_packet(payload=bytes(20), hook=Hook.LOCAL_OUT),
        make_packet(payload=b"\x60" + bytes(49), hook=Hook.FORWARD, skb_info=int(both)),
        make_packet(
            payload=bytes(30), cap_len=70_000, hook=1, skb_info=int(SkbInfo.CSUM_NOTVERIFIED)
        ),
    )
    output = io.StringIO()
    await decide(backend, "-v", output=output)
    assert output.getvalue().splitlines() == [
        "packet 1 hook=3 hwproto=0x0800 length=20",
        "packet 2 hook=2 hwproto=0x86dd length=50 csumnotready gso",
        "packet 3 hook=1 hwproto=0x0800 length=70000 csumnotverified",
    ]


def test_lines_of_a_recording_tell_of_its_unsegmented_packets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    noted = tomllib.loads((FIXTURES / "gso.toml").read_text())["expected"]
    assert program.main(["-v", AT_LAST], backend=ReplayBackend(FIXTURES / "gso.pcapng")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == noted["packets"]
    assert sum(" gso" in line for line in lines) == noted["gso"] > 0
    lengths = [int(found) for line in lines for found in re.findall(r"length=(\d+)", line)]
    assert sum(lengths) == noted["octets"]


# --- errors ---------------------------------------------------------------------------------------


def busy() -> ScriptedBackend:
    """Another socket has bound queue 0."""
    kernel = KernelModel()
    other = ScriptedBackend(kernel)
    other.send_nowait(make_bind())
    return ScriptedBackend(kernel)


def failing() -> ScriptedBackend:
    """The second packet's verdict cannot be sent."""
    backend = feeding(*packets(2))

    def refuse(datagram: bytes) -> None:
        if schema.parse(datagram)[0].type != MessageType.CONFIG:  # type: ignore[union-attr]
            raise OSError(errno.EIO, "the wire is cut")

    backend.send_hook = refuse
    return backend


def refusing(code: int) -> ScriptedBackend:
    """The kernel refuses the first verdict, and a packet comes after it."""
    backend = feeding(make_packet())

    def refuse(datagram: bytes) -> None:
        [message] = schema.parse(datagram)
        if isinstance(message, Message) and message.type == MessageType.VERDICT:
            request = (len(datagram), int(MessageType.VERDICT), 1, message.seq, 0)
            answer = ErrorMessage(0x100, message.seq, 0, -code, request, b"", ())
            backend.inject(schema.build([answer]))

    backend.send_hook = refuse
    return backend


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (lambda: ScriptedBackend(privileged=False), "CAP_NET_ADMIN is missing"),
        (busy, "queue 0 belongs to the netlink socket with port id"),
        (failing, "the wire is cut"),
        (lambda: refusing(errno.EINVAL), "verdict for packet 1 of queue 0: Invalid argument"),
        (lambda: refusing(errno.EPERM), "verdict for packet 1 of queue 0: Operation not permitted"),
        (
            lambda: feeding(make_packet(hook=5, family=Family.IPV4)),
            "packet 1 is from hook 5: expected 0 to 4",
        ),
    ],
    ids=["unprivileged", "busy", "failing", "refused", "lost", "unknown-hook"],
)
def test_an_error_exits_with_1_and_says_why(
    backend: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["-c", AT_LAST], backend=backend()) == 1
    output, errors = capsys.readouterr()
    assert errors.startswith("nf_queue.py: ")
    assert reason in errors
    assert errors.count("\n") == 1
    assert output.splitlines()[-1].endswith(" packets total")


async def test_a_verdict_on_a_packet_that_the_kernel_flushed_is_no_error() -> None:
    """ENOENT, as after the deletion of a hooked table."""
    assert (await decide(refusing(errno.ENOENT))).total == 1


async def test_other_programs_get_the_error_itself() -> None:
    with pytest.raises(KernelError, match="CAP_NET_ADMIN"):
        await decide(ScriptedBackend(privileged=False))


def test_an_interrupt_exits_as_shells_expect_and_still_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = ScriptedBackend()

    async def interrupt() -> None:
        if not backend.kernel.rows()[0].id_sequence:
            backend.arrive(make_packet(hook=Hook.FORWARD))
        else:
            signal.raise_signal(signal.SIGINT)

    backend.wait_readable_hook = interrupt
    assert program.main(["-c", AT_LAST], backend=backend) == 130
    output, errors = capsys.readouterr()
    assert output.splitlines()[2:] == [
        "hook 2 packets 00000001",
        "hook 3 packets 00000000",
        "hook 4 packets 00000000",
        "1 packets total",
    ]
    assert errors == ""
    assert backend.kernel.rows() == []
