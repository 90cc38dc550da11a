"""The netlink layer: message header, reserved message types, extended acknowledgement.

Source, where no other is named: include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import enum

from construct import Int16ub

from ._constructs import Coded, Fields, Native16, Native32, Native64, Raw
from ._lists import attribute_list
from ._records import NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_TYPE_MASK, Attribute, AttributeSet
from ._records import Direction as _Direction

_HEADER = "include/uapi/linux/netlink.h"

HEADER = Fields(
    "len" / Native32 * "length of the message in bytes, header included (nlmsg_len)",
    "type" / Native16 * "subsystem << 8 | message type, or a reserved type (nlmsg_type)",
    "flags" / Native16 * "NLM_F_* (nlmsg_flags)",
    "seq" / Native32 * "sequence number, echoed by an answer (nlmsg_seq)",
    "portid" / Native32 * "netlink port id of the sender, 0 from the kernel (nlmsg_pid)",
)
"""struct nlmsghdr."""

NLMSG_ALIGNTO = 4


class Type(enum.IntEnum):
    """Reserved message types (NLMSG_*)."""

    NOOP = 1
    ERROR = 2
    DONE = 3
    OVERRUN = 4
    MIN_TYPE = 0x10


class MessageFlags(enum.IntFlag):
    """Flags of a message (NLM_F_*); CAPPED and ACK_TLVS are those of an NLMSG_ERROR."""

    REQUEST = 0x01
    MULTI = 0x02
    ACK = 0x04
    ECHO = 0x08
    DUMP_INTR = 0x10
    DUMP_FILTERED = 0x20
    CAPPED = 0x100
    ACK_TLVS = 0x200


class PolicyType(enum.IntEnum):
    """What the kernel expects of an attribute (NL_ATTR_TYPE_*)."""

    INVALID = 0
    FLAG = 1
    U8 = 2
    U16 = 3
    U32 = 4
    U64 = 5
    S8 = 6
    S16 = 7
    S32 = 8
    S64 = 9
    BINARY = 10
    STRING = 11
    NUL_STRING = 12
    NESTED = 13
    NESTED_ARRAY = 14
    BITFIELD32 = 15
    SINT = 16
    UINT = 17


_POLICY_SOURCE = "__netlink_policy_dump_write_attr (net/netlink/policy.c)"
_ACK_SOURCE = "netlink_ack_tlv_fill (net/netlink/af_netlink.c)"


def _policy(number: int, name: str, declaration: object, doc: str, since: str = "5.8") -> Attribute:
    return Attribute(
        number,
        name,
        declaration,  # type: ignore[arg-type]
        _Direction.FROM_KERNEL,
        since,
        doc=doc,
        source=_POLICY_SOURCE,
    )


NL_POLICY_TYPE_ATTR = AttributeSet(
    "policy",
    "NL_POLICY_TYPE_ATTR_",
    (
        _policy(1, "type", Coded(Native32, PolicyType), "type of the attribute's contents"),
        _policy(2, "min_value_s", Native64, "least value, signed"),
        _policy(3, "max_value_s", Native64, "greatest value, signed"),
        _policy(4, "min_value_u", Native64, "least value, unsigned"),
        _policy(5, "max_value_u", Native64, "greatest value, unsigned"),
        _policy(6, "min_length", Native32, "least length in bytes"),
        _policy(7, "max_length", Native32, "greatest length in bytes"),
        _policy(8, "policy_idx", Native32, "index of the policy of a nest"),
        _policy(9, "policy_maxtype", Native32, "greatest attribute number of a nest"),
        _policy(10, "bitfield32_mask", Native32, "valid bits of a bit field"),
        _policy(11, "pad", Raw(), "alignment, empty"),
        _policy(12, "mask", Native64, "valid bits of an unsigned integer", "5.10"),
    ),
    _HEADER,
)

NLMSGERR_ATTR = AttributeSet(
    "extack",
    "NLMSGERR_ATTR_",
    (
        Attribute(
            1,
            "msg",
            Raw(text=True),
            _Direction.FROM_KERNEL,
            "4.12",
            doc="what is wrong, in English, NUL-terminated",
            source=_ACK_SOURCE,
        ),
        Attribute(
            2,
            "offs",
            Native32,
            _Direction.FROM_KERNEL,
            "4.12",
            "bytes",
            doc="offset of the invalid attribute in the request, its nlmsghdr included",
            source=_ACK_SOURCE,
        ),
        Attribute(
            3,
            "cookie",
            Raw(),
            _Direction.FROM_KERNEL,
            "4.12",
            doc="subsystem's own bytes, at most 20 (NETLINK_MAX_COOKIE_LEN)",
            source=_ACK_SOURCE,
        ),
        Attribute(
            4,
            "policy",
            attribute_list(NL_POLICY_TYPE_ATTR),
            _Direction.FROM_KERNEL,
            "5.10",
            doc="what would have been valid",
            source=_ACK_SOURCE,
        ),
        Attribute(
            5,
            "miss_type",
            Native32,
            _Direction.FROM_KERNEL,
            "6.1",
            doc="number of a missing attribute",
            source=_ACK_SOURCE,
        ),
        Attribute(
            6,
            "miss_nest",
            Native32,
            _Direction.FROM_KERNEL,
            "6.1",
            "bytes",
            doc="offset of the nest that lacks it",
            source=_ACK_SOURCE,
        ),
    ),
    _HEADER,
)
"""Attributes of an extended acknowledgement (enum nlmsgerr_attrs); integers in native order."""

COOKED_HEADER = Fields(
    "packet_type" / Int16ub * "PACKET_* of if_packet.h: 6 to user space, 7 to the kernel",
    "arphrd_type" / Int16ub * "ARPHRD_NETLINK, 824",
    "address_length" / Int16ub * "0",
    "address" / Raw(8, 8) * "unused",
    "family" / Int16ub * "netlink family, NETLINK_NETFILTER is 12",
)
"""What precedes the messages in a capture of link type NETLINK (253), big-endian."""

__all__ = [
    "COOKED_HEADER",
    "HEADER",
    "NLA_F_NESTED",
    "NLA_F_NET_BYTEORDER",
    "NLA_TYPE_MASK",
    "NLMSGERR_ATTR",
    "NLMSG_ALIGNTO",
    "NL_POLICY_TYPE_ATTR",
    "MessageFlags",
    "PolicyType",
    "Type",
]
