"""What the link layer of a captured packet tells: a `Frame`.

It is what the kernel would know of the packet: who sent it, on which interface it was seen, its
VLAN tags.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from trionfq._codec_derive import run_of
from trionfq.schema.links import VLAN_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq.schema import Value

IPV4: Final = 0x0800
IPV6: Final = 0x86DD
VLAN_TYPES: Final = frozenset({0x8100, 0x88A8, 0x9100})
"""EtherTypes of VLAN tags: 802.1Q, 802.1ad, and what older equipment uses for the outer one."""
# linux/if_ether.h: below it the field is a length (eth_proto_is_802_3).
_LEAST_ETHERTYPE: Final = 0x600
_ETHERTYPES: Final[Mapping[int, str]] = {
    0x0001: "IEEE 802.3 frame",
    0x0004: "IEEE 802.2 LLC frame",
    0x0806: "ARP packet",
    0x8035: "RARP packet",
    0x8847: "MPLS packet",
    0x8848: "MPLS packet",
    0x8863: "PPPoE discovery",
    0x8864: "PPPoE session packet",
    0x888E: "EAPOL frame",
    0x88CC: "LLDP frame",
    0x88E5: "MACsec frame",
    0x88F7: "PTP frame",
    0x9000: "Ethernet loopback test",
}

# A crafted frame could have millions.
_MOST_TAGS: Final = 8

_vlan = run_of(VLAN_TAG, "big", "vlan")
_NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})


class Frame(NamedTuple):
    """What the link layer of a packet tells.

    Attributes:
      protocol: EtherType of what follows.
      start: where that begins in the captured bytes.
      address: the sender's link-layer address; empty where there is none.
      header: the Ethernet header without tags, empty where it is none.
      tags: VLAN tags as (EtherType, TCI), the outer one first.
      ifindex: index of the interface where it was seen, None where that is not told.
      outgoing: whether it was seen leaving, None where that is not told.
      told: what an NFLOG packet says besides, by the names of a queue's attributes, and ``hook``.
      whole: whether what the file says of the packet's length is about what follows; not so where
        the kernel had cut it before.
      end: where it ends in the captured bytes, None for their end.
    """

    protocol: int
    start: int
    address: bytes = b""
    header: bytes = b""
    tags: tuple[tuple[int, int], ...] = ()
    ifindex: int | None = None
    outgoing: bool | None = None
    told: Mapping[str, Value] = _NOTHING
    whole: bool = True
    end: int | None = None


def protocol_name(protocol: int) -> str:
    """What a packet of an EtherType is called when it is counted."""
    return _ETHERTYPES.get(protocol, f"packet of EtherType {protocol:#06x}")


def untagged(frame: Frame, data: bytes, most: int = _MOST_TAGS) -> Frame:
    """A frame with its VLAN tags taken off, at most `most` of them.

    What is left is as skb_vlan_untag leaves it: the addresses, and the type of what follows.
    """
    protocol, at, tags = frame.protocol, frame.start, frame.tags
    while protocol in VLAN_TYPES and len(data) >= at + _vlan.size and len(tags) < most:
        tci, inner = _vlan.unpack_from(data, at)
        tags = (*tags, (protocol, tci))
        at += _vlan.size
        protocol = ethertype(inner, data, at)
    if not tags or tags is frame.tags:
        return frame
    header = frame.header and frame.header[:-2] + data[at - 2 : at]
    return frame._replace(protocol=protocol, start=at, tags=tags, header=header)


def ethertype(protocol: int, data: bytes, at: int) -> int:
    """The protocol that the kernel takes a frame to have (eth_type_trans)."""
    if protocol >= _LEAST_ETHERTYPE:
        return protocol
    return 0x0001 if data[at : at + 2] == b"\xff\xff" else 0x0004
