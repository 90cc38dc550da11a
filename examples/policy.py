"""An example policy: what a small filter at the edge of a network might do.

It knows nothing of where packets come from, so the same function decides live packets and the
packets of a capture.
"""

from __future__ import annotations

from trionfq import Packet

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
TELNET = 23
SEEN = 0x10
"""The mark of packets that went through once; the rule that queues packets leaves it out."""


def decide(packet: Packet) -> None:
    """Drop telnet, rewrite one word in UDP text, run ICMP through the rules again, accept the rest.

    Four verdicts: drop, accept, accept with other bytes, and repeat with a mark.
    """
    ip = packet.ip
    if ip.protocol == TCP and ip.destination_port == TELNET:
        packet.drop()
    elif ip.protocol == UDP and b"blue" in (ip.data or b"") and not packet.truncated:
        paint(packet)
        packet.accept()
    elif ip.protocol in (ICMP, ICMPV6) and not packet.mark & SEEN:
        packet.repeat(mark=SEEN)
    else:
        packet.accept()


def paint(packet: Packet) -> None:
    """Put orange where the text says blue.

    The text grows; lengths and checksums are repaired when the payload is set.
    """
    text = packet.ip.data or b""
    headers = packet.payload.removesuffix(text)
    packet.payload = headers + text.replace(b"blue", b"orange")
