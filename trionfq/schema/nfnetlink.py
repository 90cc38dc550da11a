"""The nfnetlink layer: subsystem numbers and the fixed header of every netfilter message.

Source: include/uapi/linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import enum

from construct import Int8ub, Int16ub

from ._constructs import Coded, Fields


class Subsystem(enum.IntEnum):
    """High byte of nlmsg_type (NFNL_SUBSYS_*)."""

    NONE = 0
    CTNETLINK = 1
    CTNETLINK_EXP = 2
    QUEUE = 3
    ULOG = 4
    OSF = 5
    IPSET = 6
    ACCT = 7
    CTNETLINK_TIMEOUT = 8
    CTHELPER = 9
    NFTABLES = 10
    NFT_COMPAT = 11
    HOOK = 12


class Family(enum.IntEnum):
    """Protocol family of a hook (NFPROTO_*, include/uapi/linux/netfilter.h)."""

    UNSPEC = 0
    INET = 1
    IPV4 = 2
    ARP = 3
    NETDEV = 5
    BRIDGE = 7
    IPV6 = 10


NFNETLINK_V0 = 0

NFGENMSG = Fields(
    "family" / Coded(Int8ub, Family) * "protocol family (nfgen_family)",
    "version" / Int8ub * "NFNETLINK_V0",
    "res_id" / Int16ub * "queue number, big-endian",
)
"""struct nfgenmsg."""


def message_type(subsystem: int, number: int) -> int:
    """The nlmsg_type of a subsystem's message."""
    return subsystem << 8 | number
