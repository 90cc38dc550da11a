"""An example policy: what a small filter at the edge of a network might do.

It knows nothing of where packets come from, so the same function decides live packets and the
packets of a capture.
"""

from __future__ import annotations

from trionfq import Packet

TCP, UDP = 6, 17
TELNET, DISCARD = 23, 9
SEEN = 0x10
"""The mark of packets that went through once; the rule that queues packets leaves it out."""


def decide(packet: Packet) -> None:
    """Drop telnet, rewrite one word in UDP text, run ICMP through the rules again, accept the rest.

    Four verdicts: drop, accept, accept with other bytes, and repeat with a mark.
    """
    ip = packet.ip
    if ip.protocol == TCP and ip.destination_port == TELNET:
        packet.drop()
    elif ip.protocol == UDP:
        payload = packet.payload
        if b"blue" in payload:
            # Longer than before: lengths and checksums are repaired on the way out.
            packet.payload = payload.replace(b"blue", b"orange")
        packet.accept()
    elif ip.protocol in (1, 58) and packet.mark != SEEN:
        packet.repeat(mark=SEEN)
    else:
        packet.accept()
