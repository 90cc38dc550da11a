"""What a connection says of itself: the attributes in NFQA_CT and NFQA_EXP.

Numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h. Layouts: the ``nla_put_*`` calls of
net/netfilter/nf_conntrack_netlink.c, which writes big-endian integers, with two exceptions: the
labels are copied from memory (``ctnetlink_dump_labels``), so their words are in native order, and
so are the two integers of CTA_FILTER (``ctnetlink_parse_filter``), which no nfqueue message holds.
A verdict may set timeout, status, help, mark and labels (``ctnetlink_glue_parse_ct``), nothing
else.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from construct import Int8ub, Int16ub, Int32sb, Int32ub, Int64ub

from ._constructs import Coded, Fields, Native32, Raw
from ._lists import attribute_list
from ._records import Attribute, AttributeSet, Direction

if TYPE_CHECKING:
    from ._constructs import Node

_FROM, _TO, _BOTH = Direction.FROM_KERNEL, Direction.TO_KERNEL, Direction.BOTH


_HEADER = "include/uapi/linux/netfilter/nfnetlink_conntrack.h"


class ConntrackDirection(enum.IntEnum):
    """A direction of a connection (enum ip_conntrack_dir, IP_CT_DIR_*)."""

    ORIGINAL = 0
    REPLY = 1


class ConntrackInfo(enum.IntEnum):
    """A packet's relation to its connection (enum ip_conntrack_info, IP_CT_*).

    The ``_REPLY`` ones are IP_CT_IS_REPLY more than the others. NEW_REPLY and UNTRACKED are the
    header's; the kernel gives neither to user space, for it tracks no answer as new and sends
    nothing of an untracked packet.
    """

    ESTABLISHED = 0
    RELATED = 1
    NEW = 2
    ESTABLISHED_REPLY = 3
    RELATED_REPLY = 4
    NEW_REPLY = 5
    UNTRACKED = 7

    @property
    def direction(self) -> ConntrackDirection | None:
        """Which way the packet goes (CTINFO2DIR), None where it is untracked."""
        if self is ConntrackInfo.UNTRACKED:
            return None
        return ConntrackDirection(self >= _IS_REPLY)

    @property
    def is_reply(self) -> bool:
        """Whether it goes against the direction of the connection's first packet."""
        return self.direction is ConntrackDirection.REPLY

    @property
    def state(self) -> ConntrackInfo:
        """The relation whatever the direction: ESTABLISHED, RELATED, NEW or UNTRACKED."""
        return ConntrackInfo(self - _IS_REPLY) if self.is_reply else self


# IP_CT_IS_REPLY, include/uapi/linux/netfilter/nf_conntrack_common.h.
_IS_REPLY = ConntrackInfo.ESTABLISHED_REPLY


class Status(enum.IntFlag):
    """State of a connection (enum ip_conntrack_status, IPS_*)."""

    EXPECTED = 1 << 0
    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    SEQ_ADJUST = 1 << 6
    SRC_NAT_DONE = 1 << 7
    DST_NAT_DONE = 1 << 8
    DYING = 1 << 9
    FIXED_TIMEOUT = 1 << 10
    TEMPLATE = 1 << 11
    NAT_CLASH = 1 << 12
    HELPER = 1 << 13
    OFFLOAD = 1 << 14
    HW_OFFLOAD = 1 << 15


class TcpState(enum.IntEnum):
    """State of a TCP connection (enum tcp_conntrack, TCP_CONNTRACK_*)."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


class SctpState(enum.IntEnum):
    """State of an SCTP association (enum sctp_conntrack, SCTP_CONNTRACK_*)."""

    NONE = 0
    CLOSED = 1
    COOKIE_WAIT = 2
    COOKIE_ECHOED = 3
    ESTABLISHED = 4
    SHUTDOWN_SENT = 5
    SHUTDOWN_RECD = 6
    SHUTDOWN_ACK_SENT = 7
    HEARTBEAT_SENT = 8
    HEARTBEAT_ACKED = 9


class DccpState(enum.IntEnum):
    """State of a DCCP connection (enum ct_dccp_states, CT_DCCP_*)."""

    NONE = 0
    REQUEST = 1
    RESPOND = 2
    PARTOPEN = 3
    OPEN = 4
    CLOSEREQ = 5
    CLOSING = 6
    TIMEWAIT = 7
    IGNORE = 8
    INVALID = 9


class DccpRole(enum.IntEnum):
    """Who sends in the original direction (enum ct_dccp_roles, CT_DCCP_ROLE_*)."""

    CLIENT = 0
    SERVER = 1


class TcpFlags(enum.IntFlag):
    """Flags of one direction of a TCP connection (IP_CT_TCP_FLAG_*)."""

    WINDOW_SCALE = 0x01
    SACK_PERM = 0x02
    CLOSE_INIT = 0x04
    BE_LIBERAL = 0x08
    DATA_UNACKNOWLEDGED = 0x10
    MAXACK_SET = 0x20


class ExpectFlags(enum.IntFlag):
    """Flags of an expectation (NF_CT_EXPECT_*)."""

    PERMANENT = 1
    INACTIVE = 2
    USERSPACE = 4


def _set(name: str, prefix: str, *attributes: Attribute) -> AttributeSet:
    return AttributeSet(name, prefix, attributes, _HEADER)


def _one(
    number: int,
    name: str,
    declaration: Node,
    doc: str,
    *,
    source: str = "",
    unit: str = "",
    since: str = "",
    direction: Direction = _FROM,
) -> Attribute:
    where = f"{source} (nf_conntrack_netlink.c)" if source and "(" not in source else source
    return Attribute(number, name, declaration, direction, since, unit, doc, where)


_IPV4 = Raw(4, 4)
_IPV6 = Raw(16, 16)
_TEXT = Raw(text=True)

CTA_IP = _set(
    "conntrack-ip",
    "CTA_IP_",
    _one(1, "v4_src", _IPV4, "source address", source="ipv4_tuple_to_nlattr"),
    _one(2, "v4_dst", _IPV4, "destination address", source="ipv4_tuple_to_nlattr"),
    _one(3, "v6_src", _IPV6, "source address", source="ipv6_tuple_to_nlattr"),
    _one(4, "v6_dst", _IPV6, "destination address", source="ipv6_tuple_to_nlattr"),
)

_PORTS = "nf_ct_port_tuple_to_nlattr (nf_conntrack_core.c)"
_ICMP = "icmp_tuple_to_nlattr (nf_conntrack_proto_icmp.c)"
_ICMPV6 = "icmpv6_tuple_to_nlattr (nf_conntrack_proto_icmpv6.c)"
CTA_PROTO = _set(
    "conntrack-proto",
    "CTA_PROTO_",
    _one(1, "num", Int8ub, "IP protocol number", source="ctnetlink_dump_tuples_proto"),
    _one(2, "src_port", Int16ub, "source port", source=_PORTS),
    _one(3, "dst_port", Int16ub, "destination port", source=_PORTS),
    _one(4, "icmp_id", Int16ub, "ICMP identifier", source=_ICMP),
    _one(5, "icmp_type", Int8ub, "ICMP type", source=_ICMP),
    _one(6, "icmp_code", Int8ub, "ICMP code", source=_ICMP),
    _one(7, "icmpv6_id", Int16ub, "ICMPv6 identifier", source=_ICMPV6),
    _one(8, "icmpv6_type", Int8ub, "ICMPv6 type", source=_ICMPV6),
    _one(9, "icmpv6_code", Int8ub, "ICMPv6 code", source=_ICMPV6),
)

CTA_TUPLE = _set(
    "conntrack-tuple",
    "CTA_TUPLE_",
    _one(1, "ip", attribute_list(CTA_IP), "addresses", source="ctnetlink_dump_tuples_ip"),
    _one(
        2,
        "proto",
        attribute_list(CTA_PROTO),
        "protocol and ports",
        source="ctnetlink_dump_tuples_proto",
    ),
    _one(
        3,
        "zone",
        Int16ub,
        "zone of this direction only",
        since="4.3",
        source="ctnetlink_dump_zone_id",
    ),
)

_TCP_FLAGS = Fields(
    "flags" / Coded(Int8ub, TcpFlags) * "values",
    "mask" / Coded(Int8ub, TcpFlags) * "which of them are meant",
)
_TCP = "tcp_to_nlattr (nf_conntrack_proto_tcp.c)"
CTA_PROTOINFO_TCP = _set(
    "conntrack-tcp",
    "CTA_PROTOINFO_TCP_",
    _one(1, "state", Coded(Int8ub, TcpState), "state of the connection", source=_TCP),
    _one(2, "wscale_original", Int8ub, "window scale, original direction", source=_TCP),
    _one(3, "wscale_reply", Int8ub, "window scale, reply direction", source=_TCP),
    _one(4, "flags_original", _TCP_FLAGS, "flags, original direction", source=_TCP),
    _one(5, "flags_reply", _TCP_FLAGS, "flags, reply direction", source=_TCP),
)

_DCCP = "dccp_to_nlattr (nf_conntrack_proto_dccp.c, up to 6.15)"
CTA_PROTOINFO_DCCP = _set(
    "conntrack-dccp",
    "CTA_PROTOINFO_DCCP_",
    _one(1, "state", Coded(Int8ub, DccpState), "state of the connection", source=_DCCP),
    _one(2, "role", Coded(Int8ub, DccpRole), "of the original direction's sender", source=_DCCP),
    _one(3, "handshake_seq", Int64ub, "sequence number of the handshake", source=_DCCP),
    _one(4, "pad", Raw(), "alignment, empty"),
)

_SCTP = "sctp_to_nlattr (nf_conntrack_proto_sctp.c)"
CTA_PROTOINFO_SCTP = _set(
    "conntrack-sctp",
    "CTA_PROTOINFO_SCTP_",
    _one(1, "state", Coded(Int8ub, SctpState), "state of the association", source=_SCTP),
    _one(2, "vtag_original", Int32ub, "verification tag, original direction", source=_SCTP),
    _one(3, "vtag_reply", Int32ub, "verification tag, reply direction", source=_SCTP),
)

CTA_PROTOINFO = _set(
    "conntrack-protoinfo",
    "CTA_PROTOINFO_",
    _one(1, "tcp", attribute_list(CTA_PROTOINFO_TCP), "TCP state", source=_TCP),
    _one(2, "dccp", attribute_list(CTA_PROTOINFO_DCCP), "DCCP state", source=_DCCP),
    _one(3, "sctp", attribute_list(CTA_PROTOINFO_SCTP), "SCTP state", source=_SCTP),
)

CTA_COUNTERS = _set(
    "conntrack-counters",
    "CTA_COUNTERS_",
    _one(1, "packets", Int64ub, "packets seen", unit="packets", source="dump_counters"),
    _one(2, "bytes", Int64ub, "bytes seen", unit="bytes", source="dump_counters"),
    _one(3, "packets32", Int32ub, "unused, CTA_COUNTERS32_PACKETS", unit="packets"),
    _one(4, "bytes32", Int32ub, "unused, CTA_COUNTERS32_BYTES", unit="bytes"),
    _one(5, "pad", Raw(), "alignment, empty"),
)

CTA_TIMESTAMP = _set(
    "conntrack-timestamp",
    "CTA_TIMESTAMP_",
    _one(
        1,
        "start",
        Int64ub,
        "when the connection began, since the epoch",
        unit="ns",
        source="ctnetlink_dump_timestamp",
    ),
    _one(
        2,
        "stop",
        Int64ub,
        "when it ended, since the epoch",
        unit="ns",
        source="ctnetlink_dump_timestamp",
    ),
    _one(3, "pad", Raw(), "alignment, empty"),
)

CTA_PROTONAT = _set(
    "conntrack-protonat",
    "CTA_PROTONAT_",
    _one(1, "port_min", Int16ub, "lowest port", direction=_TO),
    _one(2, "port_max", Int16ub, "highest port", direction=_TO),
)
CTA_NAT = _set(
    "conntrack-nat",
    "CTA_NAT_",
    _one(1, "v4_minip", _IPV4, "lowest address", direction=_TO),
    _one(2, "v4_maxip", _IPV4, "highest address", direction=_TO),
    _one(3, "proto", attribute_list(CTA_PROTONAT), "ports", direction=_TO),
    _one(4, "v6_minip", _IPV6, "lowest address", direction=_TO),
    _one(5, "v6_maxip", _IPV6, "highest address", direction=_TO),
)

_SEQADJ = "dump_ct_seq_adj"
CTA_SEQADJ = _set(
    "conntrack-seqadj",
    "CTA_SEQADJ_",
    _one(1, "correction_pos", Int32ub, "sequence number of the last change", source=_SEQADJ),
    _one(2, "offset_before", Int32sb, "shift before it", unit="bytes", source=_SEQADJ),
    _one(3, "offset_after", Int32sb, "shift after it", unit="bytes", source=_SEQADJ),
)

_SYNPROXY = "ctnetlink_dump_ct_synproxy"
CTA_SYNPROXY = _set(
    "conntrack-synproxy",
    "CTA_SYNPROXY_",
    _one(1, "isn", Int32ub, "initial sequence number", source=_SYNPROXY),
    _one(2, "its", Int32ub, "initial timestamp", source=_SYNPROXY),
    _one(3, "tsoff", Int32ub, "timestamp offset", source=_SYNPROXY),
)

CTA_HELP = _set(
    "conntrack-help",
    "CTA_HELP_",
    _one(
        1,
        "name",
        _TEXT,
        "name of the helper, NUL-terminated",
        source="ctnetlink_dump_helpinfo",
        direction=_BOTH,
    ),
    _one(2, "info", Raw(), "the helper's own data", direction=_BOTH),
)

CTA_SECCTX = _set(
    "conntrack-secctx",
    "CTA_SECCTX_",
    _one(1, "name", _TEXT, "security context", source="ctnetlink_dump_secctx"),
)

CTA_FILTER = _set(
    "conntrack-filter",
    "CTA_FILTER_",
    _one(1, "orig_flags", Native32, "which original fields to compare", direction=_TO),
    _one(2, "reply_flags", Native32, "which reply fields to compare", direction=_TO),
)

_TUPLE = attribute_list(CTA_TUPLE)
_LABELS = Raw(4, 16, step=4)
_DUMP = "ctnetlink_dump_{}"
CTA = _set(
    "conntrack",
    "CTA_",
    _one(1, "tuple_orig", _TUPLE, "original direction", source="__ctnetlink_glue_build"),
    _one(2, "tuple_reply", _TUPLE, "reply direction", source="__ctnetlink_glue_build"),
    _one(
        3,
        "status",
        Coded(Int32ub, Status),
        "state of the connection",
        unit="bit set",
        source=_DUMP.format("status"),
        direction=_BOTH,
    ),
    _one(
        4,
        "protoinfo",
        attribute_list(CTA_PROTOINFO),
        "the protocol's own state",
        source=_DUMP.format("protoinfo"),
    ),
    _one(
        5,
        "help",
        attribute_list(CTA_HELP),
        "the helper that watches it",
        source=_DUMP.format("helpinfo"),
        direction=_BOTH,
    ),
    _one(6, "nat_src", attribute_list(CTA_NAT), "source NAT to set up", direction=_TO),
    _one(
        7,
        "timeout",
        Int32ub,
        "how long it still lives",
        unit="s",
        source=_DUMP.format("timeout"),
        direction=_BOTH,
    ),
    _one(
        8,
        "mark",
        Int32ub,
        "ct->mark",
        unit="bit set",
        source=_DUMP.format("mark"),
        direction=_BOTH,
    ),
    _one(
        9,
        "counters_orig",
        attribute_list(CTA_COUNTERS),
        "traffic, original direction",
        source=_DUMP.format("acct"),
    ),
    _one(
        10,
        "counters_reply",
        attribute_list(CTA_COUNTERS),
        "traffic, reply direction",
        source=_DUMP.format("acct"),
    ),
    _one(11, "use", Int32ub, "reference count", source=_DUMP.format("use")),
    _one(12, "id", Int32ub, "identifies the connection", source=_DUMP.format("id")),
    _one(13, "nat_dst", attribute_list(CTA_NAT), "destination NAT to set up", direction=_TO),
    _one(
        14,
        "tuple_master",
        _TUPLE,
        "the connection that this one belongs to",
        source=_DUMP.format("master"),
    ),
    _one(
        15,
        "seq_adj_orig",
        attribute_list(CTA_SEQADJ),
        "sequence adjustment, original direction",
        source=_DUMP.format("ct_seq_adj"),
    ),
    _one(
        16,
        "seq_adj_reply",
        attribute_list(CTA_SEQADJ),
        "sequence adjustment, reply direction",
        source=_DUMP.format("ct_seq_adj"),
    ),
    _one(17, "secmark", Int32ub, "obsolete"),
    _one(
        18,
        "zone",
        Int16ub,
        "zone of both directions",
        since="2.6.34",
        source=_DUMP.format("zone_id"),
    ),
    _one(
        19,
        "secctx",
        attribute_list(CTA_SECCTX),
        "security context",
        since="2.6.37",
        source=_DUMP.format("secctx"),
    ),
    _one(
        20,
        "timestamp",
        attribute_list(CTA_TIMESTAMP),
        "when it began and ended",
        since="2.6.38",
        source=_DUMP.format("timestamp"),
    ),
    _one(
        21,
        "mark_mask",
        Int32ub,
        "which bits of mark to set",
        unit="bit set",
        since="3.4",
        source="ctnetlink_change_mark",
        direction=_TO,
    ),
    _one(
        22,
        "labels",
        _LABELS,
        "connection labels, words in native order",
        unit="bit set",
        since="3.9",
        source=_DUMP.format("labels"),
        direction=_BOTH,
    ),
    _one(
        23,
        "labels_mask",
        _LABELS,
        "which labels to set, words in native order",
        unit="bit set",
        since="3.9",
        source="ctnetlink_attach_labels",
        direction=_TO,
    ),
    _one(
        24,
        "synproxy",
        attribute_list(CTA_SYNPROXY),
        "SYN proxy state",
        since="4.18",
        source=_SYNPROXY,
    ),
    _one(25, "filter", attribute_list(CTA_FILTER), "of dump requests", since="5.8", direction=_TO),
    _one(
        26,
        "status_mask",
        Coded(Int32ub, Status),
        "of dump requests",
        unit="bit set",
        since="5.15",
        direction=_TO,
    ),
    _one(
        27,
        "timestamp_event",
        Int64ub,
        "when the event was seen, since the epoch",
        unit="ns",
        since="6.14",
        source=_DUMP.format("event_timestamp"),
    ),
)

CTA_EXPECT_NAT = _set(
    "expect-nat",
    "CTA_EXPECT_NAT_",
    _one(1, "dir", Int32ub, "direction, 0 original", direction=_BOTH),
    _one(2, "tuple", _TUPLE, "what to translate to", direction=_BOTH),
)

_EXPECT = "ctnetlink_alloc_expect"


def _expect(number: int, name: str, declaration: Node, doc: str, unit: str = "") -> Attribute:
    return _one(number, name, declaration, doc, unit=unit, source=_EXPECT, direction=_TO)


CTA_EXPECT = _set(
    "expect",
    "CTA_EXPECT_",
    _expect(1, "master", _TUPLE, "the connection that expects; nfqueue takes the packet's"),
    _expect(2, "tuple", _TUPLE, "what is expected"),
    _expect(3, "mask", _TUPLE, "which parts of the tuple count"),
    _expect(4, "timeout", Int32ub, "how long to expect it", "s"),
    _expect(5, "id", Int32ub, "identifies the expectation"),
    _expect(6, "help_name", _TEXT, "name of the helper, NUL-terminated"),
    _expect(7, "zone", Int16ub, "zone"),
    _expect(8, "flags", Coded(Int32ub, ExpectFlags), "kind of expectation", "bit set"),
    _expect(9, "class", Int32ub, "the helper's class of expectations"),
    _expect(10, "nat", attribute_list(CTA_EXPECT_NAT), "translation of what is expected"),
    _expect(11, "fn", _TEXT, "function to call on arrival, NUL-terminated"),
)
