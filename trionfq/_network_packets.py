"""What of a captured packet the kernel would hand to a queue: from its network header on.

At an IP hook that is one IP packet, without what the link layer added behind it: ip_rcv and
ip6_rcv_core cut it to the length that its header says. A bridge's hook sees whatever the frame
holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from trionfq._frame import IPV4, IPV6, protocol_name, untagged
from trionfq.schema.nfnetlink import Family

if TYPE_CHECKING:
    from trionfq._frame import Frame

_IPV4_BYTES: Final = 20
_IPV6_BYTES: Final = 40
_HOP_BY_HOP: Final = 0
_TCP: Final = 6


class NetworkPacket(NamedTuple):
    """A packet as a hook sees it.

    Attributes:
      family: of the hook: IPV4, IPV6 or BRIDGE.
      frame: what the link layer told, as far as the hook's family takes it off.
      payload: the captured bytes from the network header on.
      length: how long all of that was, in bytes.
    """

    family: int
    frame: Frame
    payload: bytes
    length: int


def at_ip_hook(frame: Frame, data: bytes, original: int) -> NetworkPacket | str:
    """A packet as an IP hook sees it, or the kind of what is no IP packet, to be counted.

    Args:
      frame: its link layer.
      data: the captured bytes.
      original: how long the packet was, in bytes.
    """
    frame = untagged(frame, data)
    start, end = frame.start, frame.end
    payload = data[start:end]
    # What the kernel itself had cut, for NFLOG, is not in the file's length.
    most = original - start if frame.whole else None
    if frame.protocol == IPV4:
        length = _ipv4_length(payload, most)
        family = Family.IPV4
    elif frame.protocol == IPV6:
        length = _ipv6_length(payload, most)
        family = Family.IPV6
    else:
        return protocol_name(frame.protocol)
    if isinstance(length, str):
        return length
    return NetworkPacket(int(family), frame, payload[:length], length)


def at_bridge_hook(frame: Frame, data: bytes, original: int) -> NetworkPacket:
    """A packet as a bridge's hook sees it: only the outer VLAN tag is taken off (skb_vlan_untag).

    Args:
      frame: as for `at_ip_hook`.
      data: likewise.
      original: likewise.
    """
    frame = untagged(frame, data, most=1)
    payload = data[frame.start : frame.end]
    length = original - frame.start if frame.whole else len(payload)
    return NetworkPacket(int(Family.BRIDGE), frame, payload, max(length, len(payload)))


def _ipv4_length(payload: bytes, most: int | None) -> int | str:
    have = len(payload)
    if have < _IPV4_BYTES:
        return "IPv4 packet without a whole header"
    header = (payload[0] & 15) * 4
    length = int.from_bytes(payload[2:4], "big")
    if payload[0] >> 4 != 4 or header < _IPV4_BYTES:
        return "IPv4 packet with a malformed header"
    if length == 0:
        # Left to the device, which sends several (TSO), or longer than the field can say.
        return max(have, most or 0)
    return _checked("IPv4", length, header, most)


def _ipv6_length(payload: bytes, most: int | None) -> int | str:
    have = len(payload)
    if have < _IPV6_BYTES:
        return "IPv6 packet without a whole header"
    length = int.from_bytes(payload[4:6], "big")
    if payload[0] >> 4 != 6:
        return "IPv6 packet with a malformed header"
    if length == 0 and payload[6] in (_HOP_BY_HOP, _TCP):
        # A jumbogram says its length in an option; TCP without a header cannot be.
        return max(have, most or 0)
    return _checked("IPv6", _IPV6_BYTES + length, _IPV6_BYTES, most)


def _checked(name: str, length: int, least: int, most: int | None) -> int | str:
    if length < least:
        return f"{name} packet with a malformed header"
    if most is not None and length > most:
        # ip_rcv and ip6_rcv_core drop it (InTruncatedPkts) before any hook.
        return f"{name} packet shorter than its header says"
    return length
