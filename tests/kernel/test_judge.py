"""The judge and a kernel that runs: recordings of both kinds of program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conversation import ACK, batch, command, decides, params
from trionfq import NetlinkBackend, QueueFlags, RecordingBackend, Verdict, open_queue
from trionfq.conformance import judge
from trionfq.conformance.vectors._breaches import config, genmsg, message

from ._live import PORT, Udp, take
from .harness import Namespace, queue_rule

QUEUE = 7  # what the vectors' messages are for


async def test_a_live_program_that_does_everything_is_judged_well(
    ns: Namespace, tmp_path: Path
) -> None:
    queue_rule(ns, "OUTPUT", f"-p udp --dport {PORT}", queue=0)
    udp = Udp(ns)
    path = tmp_path / "live.pcapng"
    backend = RecordingBackend(NetlinkBackend(namespace=ns.name), path)
    flags = QueueFlags.UID_GID | QueueFlags.GSO
    async with open_queue(0, backend=backend, flags=flags, on_close=Verdict.ACCEPT) as queue:
        udp.send(*(b"packet %d" % number for number in range(40)))
        first, second, *packets = await take(queue, 40)
        second.accept(mark=7)
        for packet in packets[:30]:
            packet.accept()
        packets[30].payload += b", and more"
        packets[30].accept(priority=3)
        packets[31].drop()
        queue.configure(copy_range=100, max_len=50)
        first.accept()
        udp.send(b"later")
        (await queue.receive()).stop()
    report = judge(path).finish()
    # Left to the closing policy, which takes them by a batch and says so in the same datagram.
    assert report.totals.findings == {}
    assert report.totals.packets == 41


async def test_what_a_kernel_refuses_is_explained(ns: Namespace, tmp_path: Path) -> None:
    queue_rule(ns, "OUTPUT", f"-p udp --dport {PORT}", queue=QUEUE)
    udp = Udp(ns)
    path = tmp_path / "wrong.pcapng"
    backend = RecordingBackend(NetlinkBackend(namespace=ns.name), path)

    def ask(request: bytes) -> None:
        backend.send_nowait(request)
        backend.receive_nowait(100)

    wrong: list[tuple[str | None, Callable[[], bytes]]] = [
        ("NFQ302", lambda: config(params(), flags=ACK)),
        (None, lambda: config(command(1), params(), flags=ACK)),
        ("NFQ303", lambda: config(command(1), params(), flags=ACK)),
        ("NFQ307", lambda: config(FLAGS, flags=ACK)),
        ("NFQ311", lambda: config(command(9), flags=ACK)),
        ("NFQ106", lambda: message(0x304, genmsg(), flags=ACK)),
    ]
    for _rule, request in wrong:
        ask(request())
    udp.send(b"one", b"two", b"three")
    received = backend.receive_nowait(100).datagrams
    assert len(received) == 3
    verdicts = [
        (None, decides(1)),
        ("NFQ402", decides(1)),
        ("NFQ401", decides(9)),
        ("NFQ403", decides(1 << 25)),
        ("NFQ406", decides(2, code=2)),
        ("NFQ204", decides(2, b"\x06\0\x03\0\0\1\0\0")),
        (None, batch(3)),
        ("NFQ412", batch(3)),
    ]
    for _rule, (_way, request_bytes) in verdicts:
        ask(request_bytes)
    ask(config(command(2), flags=ACK))
    ask(decides(4)[1])
    backend.close()
    rules = [each.rule.id for each in judge(path)]
    told = [rule for rule, _ in wrong if rule] + [rule for rule, _ in verdicts if rule]
    assert rules == [*told, "NFQ409"]
    assert await udp.receive(3) == [b"one", b"two", b"three"]


FLAGS = b"\x08\0\x05\0\0\0\0\1"
