"""What a verdict may change in its packet's connection, and every reason why not.

The kernel answers a verdict with success whatever becomes of its NFQA_CT: one member that it does
not like and the rest is ignored, in the order timeout, status, helper, labels, mark (``ctnetlink_
glue_parse_ct``, nf_conntrack_netlink.c), and NFQA_EXP with it (``nfqnl_ct_parse``,
nfnetlink_queue.c). So everything that can be known is checked here, before anything is sent:
`conntrack_attributes` checks the values, `check_connection` holds them against the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from trionfq._conntrack import LABEL_BYTES, labels_to_bytes
from trionfq._errors import LocalProtocolError
from trionfq._verdict_expect import (
    Expectation,
    check_expectation,
    expectation_attributes,
    helper_name,
)
from trionfq._verdict_expect import integer as _integer
from trionfq.schema import Attr, attr
from trionfq.schema.conntrack import CTA, CTA_HELP, Status
from trionfq.schema.nfqueue import NFQA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq._conntrack import Conntrack

_U32 = 0xFFFFFFFF
_LABELS = 2 ** (8 * LABEL_BYTES) - 1
_TCP = 6
# The kernel counts in ticks and cuts at INT_MAX of them (__nf_ct_set_timeout,
# nf_conntrack_core.h); at 1000 ticks a second, the most there are, that is this many seconds.
_MOST_TIMEOUT_S = (2**31 - 1) // 1000
# What IPS_UNCHANGEABLE_MASK (nf_conntrack_common.h) leaves.
_CHANGEABLE = Status.SEEN_REPLY | Status.ASSURED | Status.FIXED_TIMEOUT | Status.HELPER
_ONLY_SET = Status.SEEN_REPLY | Status.ASSURED
_NAT = Status.SRC_NAT | Status.DST_NAT


class ConntrackChanges(TypedDict, total=False):
    """Changes of the packet's connection; each needs QueueFlags.CONNTRACK.

    Keys:
      connmark: new conntrack mark, 32 bits (CTA_MARK).
      connmark_mask: which bits of it to set; all by default (CTA_MARK_MASK).
      ct_labels: new labels as a bit set, bit n for label n, or as the 16 bytes of the wire
        (CTA_LABELS). The connection must have room for labels: some rule of the namespace named
        one before it began. Where it has none the kernel ignores labels and connmark of the
        verdict, and that cannot be seen from here.
      ct_labels_mask: which labels to set; all by default (CTA_LABELS_MASK).
      ct_status: new status (CTA_STATUS). SEEN_REPLY and ASSURED can be set, FIXED_TIMEOUT and
        HELPER set and cleared; the rest must be as in ``packet.conntrack.status``.
      ct_timeout_s: how long it lives without traffic from now on, in seconds (CTA_TIMEOUT); the
        next packet gives it the usual time again, unless FIXED_TIMEOUT is set, too.
      ct_helper: an empty name takes the helper away, with all that it expects; the helper's own
        name changes nothing; the kernel takes no other here (CTA_HELP).
      ct_helper_info: new data of a helper in user space (CTA_HELP_INFO), at most as long as
        ``packet.conntrack.helper_info``; ``ct_helper`` names the helper.
      seq_adjust: True has the kernel shift sequence numbers by what the payload grew or shrank
        (ctnetlink_glue_seqadj): TCP over IPv4 with NAT and a helper only.
      expect: a connection to be expected (NFQA_EXP).

    None leaves the connection's own.
    """

    connmark: int | None
    connmark_mask: int | None
    ct_labels: int | bytes | None
    ct_labels_mask: int | bytes | None
    ct_status: Status | None
    ct_timeout_s: int | None
    ct_helper: str | None
    ct_helper_info: bytes | None
    seq_adjust: bool | None
    expect: Expectation | None


CONNTRACK_CHANGES = frozenset(ConntrackChanges.__annotations__)
# These never depend on the state of the connection.
_BLIND = frozenset({"connmark", "connmark_mask", "ct_labels", "ct_labels_mask"})


def asked_of_conntrack(changes: Mapping[str, Any]) -> list[str]:
    """Names of the changes that are of the connection."""
    return [
        name
        for name, value in changes.items()
        if name in CONNTRACK_CHANGES and value is not None and value is not False
    ]


def conntrack_attributes(changes: Mapping[str, Any]) -> tuple[Attr, ...]:
    """NFQA_CT, and NFQA_EXP where something is expected; nothing where nothing was asked.

    Raises:
      TypeError: a change of the wrong type.
      LocalProtocolError: a value that the kernel would refuse or take for another.
    """
    asked = asked_of_conntrack(changes)
    if not asked:
        return ()
    members: list[Attr] = []
    if "ct_timeout_s" in asked:
        seconds = _integer("ct_timeout_s", changes["ct_timeout_s"], _MOST_TIMEOUT_S)
        members.append(attr(CTA, "timeout", seconds))
    if "ct_status" in asked:
        status = _integer("ct_status", changes["ct_status"], 0xFFFF)
        members.append(attr(CTA, "status", status))
    if "ct_helper" in asked:
        help_members = [attr(CTA_HELP, "name", helper_name("ct_helper", changes["ct_helper"]))]
        if "ct_helper_info" in asked:
            info = _helper_info(changes["ct_helper_info"])
            help_members.append(attr(CTA_HELP, "info", info))
        members.append(attr(CTA, "help", tuple(help_members)))
    elif "ct_helper_info" in asked:
        raise LocalProtocolError(
            "ct_helper_info: which helper? give ct_helper=packet.conntrack.helper, too"
        )
    members += _masked(changes, "ct_labels", "labels", _labels)
    members += _masked(changes, "connmark", "mark", lambda name, value: _integer(name, value, _U32))
    nest = attr(NFQA, "ct", tuple(members))
    if "expect" not in asked:
        return (nest,)
    return nest, attr(NFQA, "exp", expectation_attributes(changes["expect"]))


def check_unseen(changes: Mapping[str, Any]) -> None:
    """Refuse what cannot be checked where only the packet's id is known.

    Raises:
      LocalProtocolError: a change that depends on the state of the connection.
    """
    for name in asked_of_conntrack(changes):
        if name not in _BLIND:
            raise LocalProtocolError(
                f"{name}: whether the kernel takes it depends on the connection, and this process "
                "has not seen the packet; give the verdict where the packet was read"
            )


def check_connection(
    changes: Mapping[str, Any], conntrack: Conntrack | None, *, length: int, new_length: int | None
) -> None:
    """Refuse changes that the kernel would ignore for this connection.

    Args:
      changes: what the verdict changes; `conntrack_attributes` has taken them.
      conntrack: the packet's connection, None where the kernel told of none.
      length: length of the packet as it came, in bytes.
      new_length: length of its new payload, None where that stays.

    Raises:
      LocalProtocolError: the kernel would ignore it, and with it all other changes.
    """
    asked = asked_of_conntrack(changes)
    if not asked:
        return
    if conntrack is None:
        raise LocalProtocolError(
            f"{asked[0]}: this packet belongs to no connection (no NFQA_CT came with it): it is "
            "not tracked, invalid, or the module nf_conntrack_netlink was unloaded; the kernel "
            "would ignore the change and say nothing"
        )
    status = conntrack.status
    if "ct_timeout_s" in asked and status & Status.FIXED_TIMEOUT:
        raise LocalProtocolError(
            "ct_timeout_s: the connection has ConntrackStatus.FIXED_TIMEOUT "
            "(__nf_ct_change_timeout); clear that with ct_status in a verdict before"
        )
    if "ct_timeout_s" in asked and status & Status.DYING:
        raise LocalProtocolError("ct_timeout_s: the connection is about to be removed")
    if "ct_status" in asked:
        _check_status(Status(changes["ct_status"]), status)
    if "ct_helper" in asked:
        _check_helper(changes["ct_helper"], conntrack)
    if "ct_helper_info" in asked:
        _check_helper_info(changes["ct_helper_info"], conntrack)
    if "expect" in asked:
        if changes.get("ct_helper") == "":
            raise LocalProtocolError(
                "expect: ct_helper='' of the same verdict takes the helper away"
            )
        check_expectation(changes["expect"], conntrack)
    if new_length is not None and new_length != length:
        _check_adjustment(asked, conntrack)


def _check_status(new: Status, old: Status) -> None:
    lost = old & ~new & _ONLY_SET
    if lost:
        raise LocalProtocolError(
            f"ct_status: {_names(lost)} can be set but not taken away (ctnetlink_update_status); "
            "start from packet.conntrack.status"
        )
    fixed = (old ^ new) & ~_CHANGEABLE
    if fixed:
        raise LocalProtocolError(
            f"ct_status: the kernel would leave {_names(fixed)} as it is "
            "(IPS_UNCHANGEABLE_MASK); start from packet.conntrack.status"
        )


def _names(status: Status) -> str:
    return "|".join(flag.name or hex(flag) for flag in status) or hex(status)


def _check_helper(name: str, conntrack: Conntrack) -> None:
    if name == (conntrack.helper or ""):
        return
    if name:
        raise LocalProtocolError(
            f"ct_helper: the kernel gives an existing connection no helper {name!r} "
            "(ctnetlink_change_helper), it only takes one away; give it in a rule: nft 'ct helper "
            "set', or iptables -t raw -j CT --helper"
        )
    if conntrack.status & Status.EXPECTED:
        raise LocalProtocolError(
            "ct_helper: a connection that was expected keeps its helper (ctnetlink_change_helper)"
        )


def _check_helper_info(info: bytes, conntrack: Conntrack) -> None:
    # nfnl_cthelper_from_nlattr copies it, for helpers that a program has registered only.
    known = conntrack.helper_info
    if known is None:
        raise LocalProtocolError(
            f"ct_helper_info: {conntrack.helper or 'no helper'!r} has no data of its own "
            "(packet.conntrack.helper_info is None); only helpers in user space have some"
        )
    if len(info) > len(known):
        raise LocalProtocolError(
            f"ct_helper_info: expected at most the {len(known)} bytes that helper "
            f"{conntrack.helper!r} has, got {len(info)}"
        )
    if conntrack.status & Status.EXPECTED:
        raise LocalProtocolError(
            "ct_helper_info: of a connection that was expected the kernel changes nothing "
            "(ctnetlink_change_helper)"
        )


def _check_adjustment(asked: list[str], conntrack: Conntrack) -> None:
    """A verdict with NFQA_CT whose payload changes the length may shift sequence numbers."""
    nat = bool(conntrack.status & _NAT)
    if not nat and "seq_adjust" not in asked:
        return
    original = conntrack.original
    if nat and original.protocol == _TCP and conntrack.helper and original.source.version == 4:
        return
    if "seq_adjust" in asked:
        raise LocalProtocolError(
            "seq_adjust: the kernel adjusts sequence numbers of TCP over IPv4 with NAT and a "
            f"helper only; this connection is of protocol {original.protocol} over "
            f"IPv{original.source.version}, {'with' if nat else 'without'} NAT, with "
            f"{'helper ' + conntrack.helper if conntrack.helper else 'no helper'}"
        )
    if original.protocol == _TCP:
        raise LocalProtocolError(
            f"{asked[0]}: not together with a payload of another length: the connection has NAT, "
            "so the kernel would adjust its sequence numbers, but it has no room for that without "
            "a helper (WARN_ONCE in nf_ct_seqadj_set), and with IPv6 reads the wrong bytes "
            "(nf_ct_tcp_seqadj_set); give the change with another packet's verdict"
        )


def _masked(changes: Mapping[str, Any], name: str, member: str, read: Any) -> list[Attr]:
    """A value and its mask. The kernel joins them by exclusive or, so they must fit."""
    value, mask = changes.get(name), changes.get(f"{name}_mask")
    if value is None:
        if mask is not None:
            raise LocalProtocolError(f"{name}_mask: expected {name} with it, got none")
        return []
    written = read(name, value)
    members = [attr(CTA, member, written)]
    if mask is not None:
        written_mask = read(f"{name}_mask", mask)
        if _number(written) & ~_number(written_mask):
            raise LocalProtocolError(
                f"{name}: expected no bits outside {name}_mask, which the kernel would flip "
                f"(ctnetlink_change_mark, replace_u32); got {_hex(written)} and mask "
                f"{_hex(written_mask)}"
            )
        members.append(attr(CTA, f"{member}_mask", written_mask))
    return members


def _number(written: int | bytes) -> int:
    return written if isinstance(written, int) else int.from_bytes(written, "big")


def _hex(written: int | bytes) -> str:
    return hex(written) if isinstance(written, int) else written.hex()


def _labels(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        # Of fewer bytes the kernel would clear the rest, mask or not (nf_connlabels_replace).
        if len(value) != LABEL_BYTES:
            raise LocalProtocolError(f"{name}: expected {LABEL_BYTES} bytes, got {len(value)}")
        return value
    return labels_to_bytes(_integer(name, value, _LABELS))


def _helper_info(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"ct_helper_info: expected bytes, got {type(value).__name__}")
    return value
