"""A small file of every kind, to begin with."""

from __future__ import annotations

import gzip
import struct

from tests import capture_bytes as made
from tests import link_bytes as link
from trionfq.schema.nfqueue import ConfigCommand, CopyMode, MessageType
from trionfq.testing import make_config, make_packet

_PACKETS = {
    0: link.null(link.ipv4()),
    1: link.ethernet(link.ipv6(), link.IPV6, (link.QINQ, 7), (link.VLAN, 8)),
    101: link.ipv4(),
    108: link.null(link.ipv6(), 24, "big"),
    113: link.sll(link.ipv4()),
    239: link.nflog(
        link.ipv4(),
        link.tlv(1, struct.pack("!HBB", link.IPV4, 2, 0)),
        link.tlv(8, struct.pack("!HH8s", 6, 0, link.MAC_A)),
        link.tlv(20, link.tlv(1, b"\x81\x00") + link.tlv(2, b"\0\7")),
    ),
    276: link.sll2(link.ipv6(), link.IPV6),
}


def seeds() -> list[bytes]:
    """The files."""
    found = []
    for order in ("little", "big"):
        for magic in (0xA1B2C3D4, 0xA1B23C4D):
            for link_type, packet in _PACKETS.items():
                found.append(
                    made.pcap((1, 2, packet), magic=magic, link_type=link_type, order=order)
                )
        data = made.section(order, made.options((3, b"Linux"), order=order))
        for link_type in (253, *_PACKETS):
            unit = made.options((9, b"\x89"), (14, bytes(8)), (2, b"eth0"), order=order)
            data += made.interface(link_type, opts=unit, order=order)
        flags = made.options((2, struct.pack(made.SIGN[order] + "I", 1)), order=order)
        netlink = made.cooked(made.message(MessageType.PACKET, bytes(12), order=order))
        data += made.enhanced(netlink, 5, opts=flags, order=order) * 12
        for index, packet in enumerate(_PACKETS.values(), 1):
            data += made.enhanced(packet, 5, index=index, opts=flags, order=order)
        data += made.simple(netlink, len(netlink), order)
        data += made.obsolete(netlink, 5, order=order)
        data += made.statistics(5, made.options((1, b"note"), order=order), order)
        data += made.block(0x77, b"abcd", order)
        found += [data, gzip.compress(data, mtime=0)]
    bind = make_config(1, command=ConfigCommand.BIND, copy_mode=CopyMode.PACKET)
    found.append(made.pcap((1, 2, made.cooked(bind)), (1, 3, made.cooked(make_packet(1, queue=1)))))
    return found
