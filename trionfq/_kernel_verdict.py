"""What a verdict changes in a packet (nfqnl_recv_verdict, net/netfilter/nfnetlink_queue.c)."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from . import _kernel_reader as reader
from ._kernel_reader import RefusedError
from ._kernel_records import Changes, unverified
from .schema import Attr
from .schema.conntrack import CTA
from .schema.nfnetlink import Family
from .schema.nfqueue import NFQA, NFQA_VLAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._kernel_records import PacketIn

_N = {a.name: a.number for a in NFQA.attributes}
_V = {a.name: a.number for a in NFQA_VLAN.attributes}
_CT = {a.name: a.number for a in CTA.attributes}
_VLAN_RULES = dict.fromkeys(_V.values(), reader.U16_RULE)
# ct_nla_policy and help_nla_policy (nf_conntrack_netlink.c); the most bytes of labels apart.
_CT_RULES = {
    **{
        _CT[name]: reader.U32_RULE
        for name in ("status", "timeout", "mark", "id", "mark_mask", "status_mask")
    },
    **{
        _CT[name]: reader.NEST_RULE
        for name in ("tuple_orig", "tuple_reply", "protoinfo", "help", "nat_src", "nat_dst")
    },
    _CT["zone"]: reader.U16_RULE,
}
_GLUE = frozenset(
    _CT[name] for name in ("timeout", "status", "help", "labels", "mark", "mark_mask")
)
_LABEL_BYTES = 16
_HELP_NAME = 1


def read_changes(
    found: dict[int, bytes], packet: PacketIn, conntrack: Mapping[int, bytes] | None
) -> Changes:
    """The changes of one verdict.

    Raises:
      RefusedError: the link-layer part of a bridged packet's verdict is wrong. The packet is lost
        (nfqa_parse_bridge).
    """
    vlan = l2hdr = None
    if packet.family == Family.BRIDGE:
        vlan = _vlan(found.get(_N["vlan"]))
        l2hdr = found.get(_N["l2hdr"])
        old = packet.values.get(_N["l2hdr"], b"")
        if l2hdr is not None and isinstance(old, bytes) and len(l2hdr) != len(old):
            raise RefusedError(EINVAL)
    return read_batch_changes(found)._replace(
        payload=found.get(_N["payload"]), conntrack=conntrack, vlan=vlan, l2hdr=l2hdr
    )


def read_batch_changes(found: dict[int, bytes]) -> Changes:
    """The changes of a batch, whose other attributes the kernel never looks at."""
    return Changes(_integer(found.get(_N["mark"])), _integer(found.get(_N["priority"])))


def apply(changes: Changes, packet: PacketIn) -> tuple[PacketIn, bool]:
    """The packet with its changes, and whether it lives.

    It does not where the new payload is shorter than the old one and ends before the transport
    header (nfqnl_mangle); the request succeeds all the same.
    """
    kept = True
    if changes.payload is not None:
        length = len(changes.payload)
        kept = length >= packet.length or length >= packet.least_payload
        if kept:
            packet = _rewritten(packet, changes.payload)
    vlan = None
    if changes.vlan is not None:
        protocol, tci = changes.vlan
        vlan = (Attr(_V["tci"], tci), Attr(_V["proto"], protocol))
    new = {
        "mark": changes.mark,
        "priority": changes.priority,
        "vlan": vlan,
        "l2hdr": changes.l2hdr,
    }
    if packet.segments:
        packet = packet._replace(segments=tuple(s.changed(**new) for s in packet.segments))
    return packet.changed(**new), kept


def _rewritten(packet: PacketIn, payload: bytes) -> PacketIn:
    """The kernel corrects nothing, and from here on takes no checksum for granted."""
    return unverified(packet._replace(payload=payload, original_length=None, segments=()))


def conntrack_changes(found: dict[int, bytes], packet: PacketIn) -> Mapping[int, bytes] | None:
    """What a verdict's NFQA_CT changes of the packet's connection, None where nothing.

    ctnetlink_glue_parse takes timeout, status, help, labels and mark; a nest that it refuses
    changes nothing, and nobody is told. A helper can only be named again or, by an empty name,
    taken away. Labels are taken for possible, though a connection without room for them would have
    the whole nest refused.
    """
    nest = found.get(_N["ct"])
    connection = packet.values.get(_N["ct"])
    if nest is None or not isinstance(connection, tuple):
        return None
    try:
        inside = reader.attributes(nest, max(CTA.by_number), _CT_RULES, nested=True).found
        if _CT["help"] in inside and not _may_help(inside[_CT["help"]], connection):
            return None
    except RefusedError:
        return None
    labels = inside.get(_CT["labels"], b"")
    if len(labels) > _LABEL_BYTES or len(labels) % 4:
        return None
    return {number: inside[number] for number in inside if number in _GLUE}


def _may_help(nest: bytes, connection: tuple[Attr, ...]) -> bool:
    """Whether ctnetlink_change_helper takes a helper's name."""
    name = reader.attributes(nest, _HELP_NAME, {}, nested=True).found.get(_HELP_NAME)
    if name is None:
        return False
    name = name.rstrip(b"\0")
    named = [
        inside.value.rstrip(b"\0")
        for attribute in connection
        if attribute.number == _CT["help"] and isinstance(attribute.value, tuple)
        for inside in attribute.value
        if inside.number == _HELP_NAME and isinstance(inside.value, bytes)
    ]
    return not name or name in named


def _vlan(nest: bytes | None) -> tuple[int, int] | None:
    if nest is None:
        return None
    inside = reader.attributes(nest, max(_V.values()), _VLAN_RULES, nested=True).found
    if inside.keys() < set(_V.values()):
        raise RefusedError(EINVAL)
    return reader.u16(inside[_V["proto"]]), reader.u16(inside[_V["tci"]])


def _integer(contents: bytes | None) -> int | None:
    return None if contents is None else reader.u32(contents)
