"""The messages of nfnetlink_queue: 4 operations, 22 + 5 + 2 attributes, and their constants.

Numbers and layouts: include/uapi/linux/netfilter/nfnetlink_queue.h. All integers are big-endian.
What is emitted, and when: `nfqnl_build_packet_message` in net/netfilter/nfnetlink_queue.c.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeAlias

from construct import Default, Int8ub, Int16ub, Int32ub, Int64ub

from ._constructs import Coded, Fields, Raw
from ._lists import attribute_list
from ._records import Attribute, AttributeSet, Direction, Operation
from .conntrack import CTA, CTA_EXPECT, ConntrackInfo
from .nfnetlink import NFGENMSG, Family, Subsystem, message_type

if TYPE_CHECKING:
    from collections.abc import Mapping

_FROM, _TO, _BOTH = Direction.FROM_KERNEL, Direction.TO_KERNEL, Direction.BOTH
_HEADER = "include/uapi/linux/netfilter/nfnetlink_queue.h"
_BUILD = "nfqnl_build_packet_message (nfnetlink_queue.c)"
_VERDICT = "nfqnl_recv_verdict (nfnetlink_queue.c)"
_CONFIG = "nfqnl_recv_config (nfnetlink_queue.c)"


class Hook(enum.IntEnum):
    """Where a packet was (enum nf_inet_hooks); the bridge family's hooks are the first five.

    INGRESS is an ``inet`` table's hook on a device, which takes no queue rule.
    """

    PRE_ROUTING = 0
    LOCAL_IN = 1
    FORWARD = 2
    LOCAL_OUT = 3
    POST_ROUTING = 4
    INGRESS = 5


class ArpHook(enum.IntEnum):
    """Where an ARP packet was (NF_ARP_*, include/uapi/linux/netfilter_arp.h)."""

    IN = 0
    OUT = 1
    FORWARD = 2


class NetdevHook(enum.IntEnum):
    """Where a packet of the netdev family was (enum nf_dev_hooks)."""

    INGRESS = 0
    EGRESS = 1


AnyHook: TypeAlias = Hook | ArpHook | NetdevHook
HOOKS: Mapping[int, type[AnyHook]] = {
    Family.IPV4: Hook,
    Family.IPV6: Hook,
    Family.BRIDGE: Hook,
    Family.ARP: ArpHook,
    Family.NETDEV: NetdevHook,
}
"""Which hooks a family has."""


class VerdictCode(enum.IntEnum):
    """What becomes of a packet (NF_*, include/uapi/linux/netfilter.h); the low byte of a verdict.

    With QUEUE the upper 16 bits are the queue's number, and bit 15 (`QUEUE_BYPASS`) lets the packet
    pass where nobody listens there. STOLEN is refused from user space (EINVAL).
    """

    DROP = 0
    ACCEPT = 1
    STOLEN = 2
    QUEUE = 3
    REPEAT = 4
    STOP = 5


QUEUE_BYPASS = 0x8000
"""NF_VERDICT_FLAG_QUEUE_BYPASS."""
VERDICT_MASK = 0xFF
"""NF_VERDICT_MASK."""
QUEUE_NUMBER_SHIFT = 16
"""NF_VERDICT_QBITS."""


class CopyMode(enum.IntEnum):
    """How much of a packet is copied (NFQNL_COPY_*)."""

    NONE = 0
    META = 1
    PACKET = 2


class QueueFlags(enum.IntFlag):
    """Options of a queue (NFQA_CFG_F_*)."""

    FAIL_OPEN = 1
    CONNTRACK = 2
    GSO = 4
    UID_GID = 8
    SECCTX = 16


class SkbInfo(enum.IntFlag):
    """State of a packet's buffer (NFQA_SKB_*)."""

    CSUMNOTREADY = 1
    GSO = 2
    CSUM_NOTVERIFIED = 4


class ConfigCommand(enum.IntEnum):
    """Configuration commands (NFQNL_CFG_CMD_*); the PF ones do nothing since 3.8."""

    NONE = 0
    BIND = 1
    UNBIND = 2
    PF_BIND = 3
    PF_UNBIND = 4


class MessageType(enum.IntEnum):
    """Whole nlmsg_type of each operation (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_*)."""

    PACKET = message_type(Subsystem.QUEUE, 0)
    VERDICT = message_type(Subsystem.QUEUE, 1)
    CONFIG = message_type(Subsystem.QUEUE, 2)
    VERDICT_BATCH = message_type(Subsystem.QUEUE, 3)


MAX_COPY_RANGE = 0xFFFF - 4
"""Greatest copy range, in bytes: NFQNL_MAX_COPY_RANGE, what an nlattr's length can hold."""

_PACKET_HDR = Fields(
    "packet_id" / Int32ub * "unique in its queue since the last bind, from 1",
    "hw_protocol" / Int16ub * "EtherType, such as 0x0800",
    "hook" / Coded(Int8ub, Hook) * "where the packet was",
)
_VERDICT_HDR = Fields(
    "verdict" / Int32ub * "NF_* in the low byte, queue number and flags above",
    "id" / Int32ub * "packet_id; in a batch the highest one meant",
)
_TIMESTAMP = Fields(
    "sec" / Int64ub * "seconds since the epoch",
    "usec" / Int64ub * "microseconds of it",
)
_HWADDR = Fields(
    "hw_addrlen" / Int16ub * "how many bytes of hw_addr count",
    "pad" / Default(Int16ub, 0) * "unused (_pad)",
    "hw_addr" / Raw(8, 8) * "the sender's link-layer address, then junk",
)

NFQA_VLAN = AttributeSet(
    "vlan",
    "NFQA_VLAN_",
    (
        Attribute(1, "proto", Int16ub, _BOTH, "4.7", doc="skb->vlan_proto, such as 0x8100"),
        Attribute(2, "tci", Int16ub, _BOTH, "4.7", doc="skb->vlan_tci: priority, DEI and id"),
    ),
    _HEADER,
)

NFQA = AttributeSet(
    "nfqueue",
    "NFQA_",
    (
        Attribute(
            1,
            "packet_hdr",
            _PACKET_HDR,
            _FROM,
            "2.6.14",
            doc="id, protocol and hook; always the first attribute",
            source=_BUILD,
        ),
        Attribute(
            2,
            "verdict_hdr",
            _VERDICT_HDR,
            _TO,
            "2.6.14",
            doc="what becomes of which packet",
            source="verdicthdr_get (nfnetlink_queue.c)",
        ),
        Attribute(
            3,
            "mark",
            Int32ub,
            _BOTH,
            "2.6.14",
            "bit set",
            doc="skb->mark, sent where it is not 0; in a verdict it replaces the mark",
            source=_BUILD,
        ),
        Attribute(
            4,
            "timestamp",
            _TIMESTAMP,
            _FROM,
            "2.6.14",
            doc="when the device received the packet; hooks up to FORWARD only",
            source=_BUILD,
        ),
        Attribute(
            5,
            "ifindex_indev",
            Int32ub,
            _FROM,
            "2.6.14",
            "interface index",
            doc="input device, the bridge where a bridge port received it",
            source=_BUILD,
        ),
        Attribute(
            6,
            "ifindex_outdev",
            Int32ub,
            _FROM,
            "2.6.14",
            "interface index",
            doc="output device, the bridge where a bridge port sends it",
            source=_BUILD,
        ),
        Attribute(
            7,
            "ifindex_physindev",
            Int32ub,
            _FROM,
            "2.6.14",
            "interface index",
            doc="input bridge port",
            source=_BUILD,
        ),
        Attribute(
            8,
            "ifindex_physoutdev",
            Int32ub,
            _FROM,
            "2.6.14",
            "interface index",
            doc="output bridge port",
            source=_BUILD,
        ),
        Attribute(
            9,
            "hwaddr",
            _HWADDR,
            _FROM,
            "2.6.14",
            doc="link-layer source address; input only",
            source=_BUILD,
        ),
        Attribute(
            10,
            "payload",
            Raw(),
            _BOTH,
            "2.6.14",
            "bytes",
            doc="the packet from its network header on; in a verdict the new one",
            source=_BUILD,
            padded=False,
        ),
        Attribute(
            11,
            "ct",
            attribute_list(CTA),
            _BOTH,
            "3.6",
            doc="the packet's connection; with NFQA_CFG_F_CONNTRACK",
            source="ctnetlink_glue_build (nf_conntrack_netlink.c)",
        ),
        Attribute(
            12,
            "ct_info",
            Coded(Int32ub, ConntrackInfo),
            _FROM,
            "3.6",
            doc="the packet's relation to its connection",
            source="nfqnl_ct_put (nfnetlink_queue.c)",
        ),
        Attribute(
            13,
            "cap_len",
            Int32ub,
            _FROM,
            "3.7",
            "bytes",
            doc="length of the whole packet, where less was copied",
            source=_BUILD,
        ),
        Attribute(
            14,
            "skb_info",
            Coded(Int32ub, SkbInfo),
            _FROM,
            "3.10",
            "bit set",
            doc="checksum and segmentation state, where not 0",
            source="nfqnl_put_packet_info (nfnetlink_queue.c)",
        ),
        Attribute(
            15,
            "exp",
            attribute_list(CTA_EXPECT),
            _TO,
            "3.12",
            doc="an expectation to attach; needs ct",
            source="ctnetlink_glue_attach_expect (nf_conntrack_netlink.c)",
        ),
        Attribute(
            16,
            "uid",
            Int32ub,
            _FROM,
            "3.14",
            "user id",
            doc="owner of the local socket, in the initial user namespace",
            source="nfqnl_put_sk_uidgid (nfnetlink_queue.c)",
        ),
        Attribute(
            17,
            "gid",
            Int32ub,
            _FROM,
            "3.14",
            "group id",
            doc="group of the local socket, in the initial user namespace",
            source="nfqnl_put_sk_uidgid (nfnetlink_queue.c)",
        ),
        Attribute(
            18,
            "secctx",
            Raw(text=True),
            _FROM,
            "4.3",
            doc="security context, a final NUL not guaranteed",
            source="nfqnl_get_sk_secctx (nfnetlink_queue.c)",
        ),
        Attribute(
            19,
            "vlan",
            attribute_list(NFQA_VLAN),
            _BOTH,
            "4.7",
            doc="VLAN tag; bridge family only, both members in a verdict",
            source="nfqnl_put_bridge (nfnetlink_queue.c)",
        ),
        Attribute(
            20,
            "l2hdr",
            Raw(),
            _BOTH,
            "4.7",
            "bytes",
            doc="link-layer header; bridge family only, its exact length in a verdict",
            source="nfqnl_put_bridge (nfnetlink_queue.c)",
        ),
        Attribute(
            21,
            "priority",
            Int32ub,
            _BOTH,
            "5.18",
            doc="skb->priority, sent where it is not 0",
            source=_BUILD,
        ),
        Attribute(
            22,
            "cgroup_classid",
            Int32ub,
            _FROM,
            "6.4",
            doc="net_cls class of the local socket, where not 0",
            source="nfqnl_put_sk_classid (nfnetlink_queue.c)",
        ),
    ),
    _HEADER,
)

_CMD = Fields(
    "command" / Coded(Int8ub, ConfigCommand),
    "pad" / Default(Int8ub, 0) * "unused (_pad)",
    "pf" / Coded(Int16ub, Family) * "for the PF commands, else 0",
)
_PARAMS = Fields(
    "copy_range" / Int32ub * "most payload bytes copied; 0 or more than 65531 means 65531",
    "copy_mode" / Coded(Int8ub, CopyMode),
)

NFQA_CFG = AttributeSet(
    "config",
    "NFQA_CFG_",
    (
        Attribute(1, "cmd", _CMD, _TO, "2.6.14", doc="create or destroy the queue", source=_CONFIG),
        Attribute(2, "params", _PARAMS, _TO, "2.6.14", doc="how much to copy", source=_CONFIG),
        Attribute(
            3,
            "queue_maxlen",
            Int32ub,
            _TO,
            "2.6.20",
            "packets",
            doc="most packets that wait for a verdict; 1024 at first",
            source=_CONFIG,
        ),
        Attribute(
            4,
            "mask",
            Coded(Int32ub, QueueFlags),
            _TO,
            "3.6",
            "bit set",
            doc="which flags change",
            source=_CONFIG,
        ),
        Attribute(
            5,
            "flags",
            Coded(Int32ub, QueueFlags),
            _TO,
            "3.6",
            "bit set",
            doc="their new values; without mask EINVAL",
            source=_CONFIG,
        ),
    ),
    _HEADER,
)

PACKET = Operation(
    0,
    "packet",
    _FROM,
    NFGENMSG,
    NFQA,
    required=frozenset({"packet_hdr"}),
    optional=frozenset(NFQA.by_name) - {"packet_hdr", "verdict_hdr", "exp"},
    doc="a packet that waits for a verdict",
    source=_BUILD,
)
VERDICT = Operation(
    1,
    "verdict",
    _TO,
    NFGENMSG,
    NFQA,
    required=frozenset({"verdict_hdr"}),
    optional=frozenset({"mark", "payload", "ct", "exp", "vlan", "l2hdr", "priority"}),
    doc="what becomes of one packet",
    source=_VERDICT,
)
CONFIG = Operation(
    2,
    "config",
    _TO,
    NFGENMSG,
    NFQA_CFG,
    required=frozenset(),
    optional=frozenset(NFQA_CFG.by_name),
    doc="create, change or destroy a queue",
    source=_CONFIG,
)
VERDICT_BATCH = Operation(
    3,
    "verdict_batch",
    _TO,
    NFGENMSG,
    NFQA,
    required=frozenset({"verdict_hdr"}),
    optional=frozenset({"mark", "priority"}),
    doc="one verdict for every waiting packet up to an id; since 3.1",
    source="nfqnl_recv_verdict_batch (nfnetlink_queue.c)",
)
OPERATIONS = (PACKET, VERDICT, CONFIG, VERDICT_BATCH)
