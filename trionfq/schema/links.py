"""What stands before the network header in captures of ordinary packets, by link type.

Integers are big-endian where nothing else is said. Sources: the link-type pages of tcpdump.org
(LINKTYPE_*), include/uapi/linux/if_ether.h, include/uapi/linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import enum

from construct import Int8ub, Int16ub, Int32ub, Int64ub

from ._constructs import Coded, Fields, Native16, Native32, Raw
from ._records import Attribute, AttributeSet, Direction
from .nfqueue import Hook

ETHERNET = Fields(
    "destination" / Raw(6, 6) * "receiver's address",
    "source" / Raw(6, 6) * "sender's address",
    "protocol" / Int16ub * "EtherType; below 0x600 the length of an IEEE 802.3 frame",
)
"""An Ethernet header (struct ethhdr)."""

VLAN_TAG = Fields(
    "tci" / Int16ub * "priority, DEI and VLAN id",
    "protocol" / Int16ub * "EtherType of what follows",
)
"""What follows a VLAN's EtherType (struct vlan_hdr)."""

COOKED = Fields(
    "packet_type" / Int16ub * "PACKET_* of if_packet.h; 4 is outgoing",
    "arphrd_type" / Int16ub * "ARPHRD_* of if_arp.h: the hardware type",
    "address_length" / Int16ub * "length of the sender's address; 8 bytes of it are kept",
    "address" / Raw(8, 8) * "the sender's address, then zeros",
    "protocol" / Int16ub * "EtherType; the hardware type may give it another meaning",
)
"""Linux cooked capture, version 1 (LINKTYPE_LINUX_SLL)."""

COOKED_V2 = Fields(
    "protocol" / Int16ub * "as in version 1",
    "reserved" / Int16ub * "0",
    "ifindex" / Int32ub * "index of the interface",
    "arphrd_type" / Int16ub * "as in version 1",
    "packet_type" / Int8ub * "as in version 1",
    "address_length" / Int8ub * "as in version 1",
    "address" / Raw(8, 8) * "as in version 1",
)
"""Linux cooked capture, version 2 (LINKTYPE_LINUX_SLL2)."""

BSD_LOOPBACK = Fields(
    "family" / Native32 * "address family; in network byte order where the link type is LOOP",
)
"""BSD's loopback (LINKTYPE_NULL, LINKTYPE_LOOP)."""

NFLOG_HEADER = Fields(
    "family" / Int8ub * "protocol family of the hook",
    "version" / Int8ub * "0",
    "group" / Int16ub * "number of the log group",
)
"""What an NFLOG packet begins with; attributes follow (LINKTYPE_NFLOG)."""

NFLOG_ATTRIBUTE = Fields(
    "length" / Native16 * "of the attribute in bytes, this header included and padding not",
    "type" / Native16 * "NFULA_*",
)
"""Header of an NFLOG attribute, in the byte order of the host that captured."""


class LogAttribute(enum.IntEnum):
    """Attributes of an NFLOG packet that say what a queue's packet says, too (NFULA_*)."""

    PACKET_HDR = 1
    MARK = 2
    TIMESTAMP = 3
    IFINDEX_INDEV = 4
    IFINDEX_OUTDEV = 5
    IFINDEX_PHYSINDEV = 6
    IFINDEX_PHYSOUTDEV = 7
    HWADDR = 8
    PAYLOAD = 9
    PREFIX = 10
    UID = 11
    SEQ = 12
    SEQ_GLOBAL = 13
    GID = 14
    HWTYPE = 15
    HWHEADER = 16
    HWLEN = 17
    CT = 18
    CT_INFO = 19
    VLAN = 20
    L2HDR = 21


def _told(kind: LogAttribute, declaration: object, doc: str) -> Attribute:
    return Attribute(
        int(kind),
        kind.name.lower(),
        declaration,  # type: ignore[arg-type]
        Direction.FROM_KERNEL,
        doc=doc,
        source="__build_packet_message (nfnetlink_log.c)",
    )


NFULA = AttributeSet(
    "nflog",
    "NFULA_",
    (
        _told(
            LogAttribute.PACKET_HDR,
            Fields(
                "hw_protocol" / Int16ub * "EtherType",
                "hook" / Coded(Int8ub, Hook) * "where the packet was",
                "pad" / Int8ub * "unused (_pad)",
            ),
            "protocol and hook",
        ),
        _told(LogAttribute.MARK, Int32ub, "skb->mark, where it is not 0"),
        _told(
            LogAttribute.TIMESTAMP,
            Fields("sec" / Int64ub * "seconds", "usec" / Int64ub * "microseconds of it"),
            "when the device received the packet",
        ),
        _told(LogAttribute.IFINDEX_INDEV, Int32ub, "input device, or the bridge"),
        _told(LogAttribute.IFINDEX_OUTDEV, Int32ub, "output device, or the bridge"),
        _told(LogAttribute.IFINDEX_PHYSINDEV, Int32ub, "input bridge port"),
        _told(LogAttribute.IFINDEX_PHYSOUTDEV, Int32ub, "output bridge port"),
        _told(
            LogAttribute.HWADDR,
            Fields(
                "hw_addrlen" / Int16ub * "how many bytes of hw_addr count",
                "pad" / Int16ub * "unused (_pad)",
                "hw_addr" / Raw(8, 8) * "the sender's link-layer address",
            ),
            "sender's address",
        ),
        _told(LogAttribute.PAYLOAD, Raw(), "the packet from its network header on"),
        _told(LogAttribute.UID, Int32ub, "owner of the local socket"),
        _told(LogAttribute.GID, Int32ub, "group of the local socket"),
        _told(LogAttribute.L2HDR, Raw(), "link-layer header; bridge family only"),
    ),
    "include/uapi/linux/netfilter/nfnetlink_log.h",
)
"""Those of them that are read; their integers are big-endian."""
