"""A shadow beside a policy on this kernel's packets: what arrives is the first policy's doing."""

from __future__ import annotations

from trionfq import Packet, open_queue
from trionfq.captures import Difference

from ._live import PORT, Udp, data_of, take, with_data
from .harness import Namespace, queue_rule


async def test_a_shadow_sees_live_packets_and_changes_none(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", f"-p udp --dport {PORT}")
    udp = Udp(ns)
    reported: list[Difference] = []

    def candidate(packet: Packet) -> None:
        data = data_of(packet)
        if data == b"3":
            packet.accept(payload=with_data(packet, b"rewritten"))
        elif data in (b"1", b"5"):
            packet.accept()
        else:
            packet.drop()

    async with (
        open_queue(0, namespace=ns.name) as queue,
        queue.shadow(candidate, on_difference=reported.append) as shadow,
    ):
        udp.send(*(b"%d" % number for number in range(6)))
        for packet in await take(queue, 6):
            if int(data_of(packet)) % 2:
                packet.accept()
            else:
                packet.drop()
        assert await udp.receive(3) == [b"1", b"3", b"5"]
    assert udp.waiting() == []
    assert (shadow.compared, shadow.different, shadow.pending) == (6, 1, 0)
    [difference] = reported
    assert difference.fields == ("payload",)
    assert difference.a is not None
    assert difference.a.payload is None
    text = str(difference)
    assert f"UDP 127.0.0.1:{udp.sender.getsockname()[1]} > 127.0.0.1:{PORT}, 29 bytes" in text
    assert "udp.length" in text
    assert "ipv4.total_length" in text
