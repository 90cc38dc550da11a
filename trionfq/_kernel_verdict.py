"""What a verdict changes in a packet (nfqnl_recv_verdict, net/netfilter/nfnetlink_queue.c)."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from . import _kernel_reader as reader
from ._kernel_reader import RefusedError
from ._kernel_records import Changes, unverified
from .schema import Attr
from .schema.nfnetlink import Family
from .schema.nfqueue import NFQA, NFQA_VLAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._kernel_records import PacketIn

_N = {a.name: a.number for a in NFQA.attributes}
_V = {a.name: a.number for a in NFQA_VLAN.attributes}
_VLAN_RULES = dict.fromkeys(_V.values(), reader.U16_RULE)


def read_changes(
    found: dict[int, bytes],
    packet: PacketIn,
    conntrack: Mapping[int, bytes] | None,
    expect: bytes | None,
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
        payload=found.get(_N["payload"]),
        conntrack=conntrack,
        expect=expect,
        vlan=vlan,
        l2hdr=l2hdr,
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


def _vlan(nest: bytes | None) -> tuple[int, int] | None:
    if nest is None:
        return None
    inside = reader.attributes(nest, max(_V.values()), _VLAN_RULES, nested=True).found
    if inside.keys() < set(_V.values()):
        raise RefusedError(EINVAL)
    return reader.u16(inside[_V["proto"]]), reader.u16(inside[_V["tci"]])


def _integer(contents: bytes | None) -> int | None:
    return None if contents is None else reader.u32(contents)
