"""Declared faults around this kernel's socket: its packets, and what became of them here."""

from __future__ import annotations

import errno

from trionfq import NetlinkBackend, Verdict, VerdictRefusedError, open_queue
from trionfq.testing import FaultyBackend, Flush, Overrun, Refuse, Truncate

from ._live import PORT, Udp, data_of
from .harness import Namespace, eventually, queue_rule


async def test_faults_befall_live_packets_and_the_kernel_s_own_answers_are_kept(
    ns: Namespace,
) -> None:
    queue_rule(ns, "OUTPUT", f"-p udp --dport {PORT}")
    udp = Udp(ns)
    faults = [Overrun(at=2), Truncate(at=4), Refuse(at=6), Refuse(at=7, error=errno.ENOMEM)]
    backend = FaultyBackend(NetlinkBackend(namespace=ns.name), [*faults, Flush(at=9)])
    told: list[Exception] = []
    seen: list[bytes] = []
    async with open_queue(
        0, backend=backend, error_handler=lambda error, _packet: told.append(error)
    ) as queue:
        udp.send(*(b"%d" % number for number in range(9)))
        while len(seen) < 7:
            packet = await queue.receive()
            seen.append(data_of(packet))
            packet.accept(mark=packet.id)
        assert seen == [b"0", b"1", b"3", b"5", b"6", b"7", b"8"]
        # The seventh (b"6") had gone when its verdict came; the eighth's was refused.
        assert await udp.receive(5) == [b"0", b"1", b"3", b"5", b"8"]
        row = ns.queue_row(0)
        assert row is not None
        assert row.queue_total == 2, "the truncated one, and the one whose verdict was refused"
        udp.send(b"9")
        last = await queue.receive()
        assert queue.undecided_ids == [8, last.id]
        last.accept()
        queue.set_verdict(8, Verdict.ACCEPT, mark=1)
        assert await udp.receive(1) == [b"9"]
        await eventually(
            "the kernel's answer was read", lambda: queue.statistics().verdicts_gone == 2
        )
        statistics = queue.statistics()
    assert statistics.overruns == 1
    assert statistics.truncated_datagrams == 1
    assert statistics.packets_lost == 2
    assert [type(error) for error in told] == [VerdictRefusedError]
    assert udp.waiting() == []
    assert [each.packet_id for each in backend.injected] == [3, 5, 7, 8, 10]
