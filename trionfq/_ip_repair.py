"""Lengths and checksums of a rewritten packet.

The kernel takes the payload of a verdict as it is: it fixes no length and no checksum, sets
CHECKSUM_NONE (nfqnl_mangle), and acknowledges success although the next host will drop the
packet. `repair` does what is left to do.

It changes no more than it must. A checksum that verifies stays; a length stays unless it
contradicts the bytes. So a valid packet comes back as it is, bytes behind its IP length included.
What cannot be repaired is named and left alone.

How long is a rewritten packet? As long as its bytes, less what lay behind the IP length before
(link-layer padding, seen in bridge and ingress hooks): with the original beside it, the
difference in size goes to the length fields. Without the original, lengths that the checksum
under them confirms stand; otherwise the bytes count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trionfq._checksum import internet_checksum, ones_complement_sum
from trionfq._foreign import packet_bytes
from trionfq._ip_headers import (
    AUTHENTICATION,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    NO_NEXT_HEADER,
    Extension,
    Headers,
    locate,
    walk_ipv4,
    walk_ipv6,
)
from trionfq._ip_pseudo import ipv4_addresses, ipv6_addresses, jumbo_offset
from trionfq._ip_transport import (
    Segment,
    former_length,
    lacks_inside,
    length_to_state,
    repair_transport,
)
from trionfq._ip_unfixed import UnfixableError, Unfixed

if TYPE_CHECKING:
    from trionfq._foreign import Payload

__all__ = ["RepairResult", "Unfixed", "repair"]

_LARGEST = 0xFFFF
_IPV4_CHECKSUM = slice(10, 12)


class RepairResult(NamedTuple):
    """A repaired packet.

    Attributes:
      payload: its bytes, from the IP header on; the same object if nothing had to change.
      unfixed: what was left alone, each thing once, in the order of the headers; empty if lengths
          and checksums are all right now.
    """

    payload: bytes
    unfixed: tuple[Unfixed, ...]


def repair(
    payload: Payload,
    *,
    original: Payload | None = None,
    checksum_not_ready: bool = False,
) -> RepairResult:
    """Make lengths and checksums of a rewritten IP packet right.

    Repaired are IPv4's total length and header checksum, IPv6's payload length or jumbo payload
    option, UDP's length, and the checksums of TCP, UDP, UDP-Lite, ICMP, ICMPv6, IGMP, SCTP
    (CRC32c), mobility headers and HIP. The pseudo header follows IPv4 source routes, IPv6 routing
    headers and the home address option. Packets embedded in ICMP errors and tunnelled packets are
    data, not touched. A fragment gets its IP header repaired, no more. Repairing twice changes
    nothing the second time.

    A UDP checksum of 0 means "none", and stays, if the original had none, too, or is not given.

    Args:
      payload: the rewritten packet, from the IP header on: bytes, or a packet of scapy or dpkt.
      original: the packet before, likewise. Give it whenever there is one: it tells padding
          behind the packet from appended data, a truncated copy from a shortened packet, and a UDP
          checksum to be computed from none.
      checksum_not_ready: NFQA_SKB_INFO has CSUMNOTREADY: the transport checksum was left to the
          network card, so the field holds a partial sum, or for SCTP nothing. A rewritten packet
          needs the whole checksum, since the kernel no longer asks the card for it. In a tunnel
          it may be the checksum of the packet inside, which is told from ``original``.

    Returns:
      The bytes to send, and what was left alone.

    Raises:
      TypeError: ``payload`` or ``original`` is none of these.
      LocalProtocolError: scapy or dpkt cannot make bytes of it.
    """
    packet = packet_bytes("payload", payload)
    if original is not None:
        before = packet_bytes("original", original)
        result, _ = _repair(packet, before, checksum_not_ready)
        if checksum_not_ready and _lacks_inside(before):
            result = result._replace(unfixed=(*result.unfixed, Unfixed.INNER_CHECKSUM))
        if Unfixed.TRAILING_BYTES in result.unfixed and result.payload is not packet:
            # What looks like the padding of before may be data of a packet made anew.
            as_it_is, verified = _repair(packet, None, checksum_not_ready)
            if verified and as_it_is.payload is packet:
                return as_it_is
        return result
    # As if it were its own original, its lengths stand.
    result, verified = _repair(packet, packet, checksum_not_ready)
    if Unfixed.TRUNCATED not in result.unfixed and (
        Unfixed.TRAILING_BYTES not in result.unfixed
        or verified
        or (verified is None and result.payload == packet)
    ):
        return result
    result, _ = _repair(packet, None, checksum_not_ready)
    return result


def _repair(
    payload: bytes, original: bytes | None, checksum_not_ready: bool
) -> tuple[RepairResult, bool | None]:
    """Repair once; also tell whether the transport checksum was right, None if there is none."""
    packet = bytearray(payload)
    unfixed: list[Unfixed] = []
    verified = None
    try:
        version = packet[0] >> 4 if packet else 0
        if version == 4:
            headers, end = _repair_ipv4(packet, original, unfixed)
        elif version == 6:
            headers, end = _repair_ipv6(packet, original, unfixed)
        else:
            raise UnfixableError(Unfixed.NOT_IP)
        segment = _segment(packet, version, headers, end, unfixed)
        more, verified = repair_transport(
            packet, segment, original=original, checksum_not_ready=checksum_not_ready
        )
        unfixed += more
    except UnfixableError as error:
        unfixed.append(error.unfixed)
    repaired = payload if packet == payload else bytes(packet)
    return RepairResult(repaired, tuple(dict.fromkeys(unfixed))), verified


def _lacks_inside(packet: bytes) -> bool:
    """Whether a checksum that is not ready is that of a packet inside this one."""
    located = locate(packet)
    if located is None:
        return False
    try:
        segment = _segment(bytearray(packet), packet[0] >> 4, *located, [])
    except UnfixableError:
        return False
    return lacks_inside(packet, segment)


def _segment(
    packet: bytearray, version: int, headers: Headers, end: int, unfixed: list[Unfixed]
) -> Segment:
    """Find the transport and its pseudo header's addresses.

    Raises:
      UnfixableError: there is no transport whose checksum could be computed.
    """
    protocol, offset, fragment_offset, more_fragments, extensions = headers
    if fragment_offset or more_fragments:
        raise UnfixableError(Unfixed.FRAGMENT)
    if protocol is None or offset is None:
        raise UnfixableError(Unfixed.HEADERS)
    if any(extension.protocol == AUTHENTICATION for extension in extensions):
        unfixed.append(Unfixed.AUTHENTICATION)
    addresses = ipv4_addresses(packet) if version == 4 else ipv6_addresses(packet, extensions)
    return Segment(version, protocol, offset, end, addresses)


def _repair_ipv4(
    packet: bytearray, original: bytes | None, unfixed: list[Unfixed]
) -> tuple[Headers, int]:
    """Repair an IPv4 header (RFC 791) and give what follows it, and the packet's end."""
    size = len(packet)
    header = (packet[0] & 0x0F) << 2
    if not IPV4_HEADER_BYTES <= header <= size:
        raise UnfixableError(Unfixed.IP_HEADER)
    former = None
    if original is not None and len(original) >= IPV4_HEADER_BYTES and original[0] >> 4 == 4:
        former = former_length(original[2] << 8 | original[3], original)
    stated = packet[2] << 8 | packet[3]
    end = length_to_state(stated, packet, former, header)
    if end <= _LARGEST:
        packet[2:4] = end.to_bytes(2, "big")
    elif stated:
        raise UnfixableError(Unfixed.LENGTH)
    # Otherwise 0 stays: the kernel's length of segmentation-offload packets above 65,535 bytes
    # (iph_set_totlen).
    if end < size:
        unfixed.append(Unfixed.TRAILING_BYTES)
    if ones_complement_sum(packet[:header]) != _LARGEST:
        packet[_IPV4_CHECKSUM] = bytes(2)
        packet[_IPV4_CHECKSUM] = internet_checksum(packet[:header]).to_bytes(2, "big")
    return walk_ipv4(packet, end), end


def _repair_ipv6(
    packet: bytearray, original: bytes | None, unfixed: list[Unfixed]
) -> tuple[Headers, int]:
    """Repair an IPv6 header (RFC 8200) or jumbo payload option (RFC 2675), as for IPv4."""
    size = len(packet)
    if size < IPV6_HEADER_BYTES:
        raise UnfixableError(Unfixed.IP_HEADER)
    headers = walk_ipv6(packet, size)
    jumbo = jumbo_offset(packet, headers.extensions)
    length = packet[4] << 8 | packet[5]
    if jumbo is not None and length:
        raise UnfixableError(Unfixed.JUMBO)
    former = None
    if original is not None:
        located = locate(original) if original[:1] and original[0] >> 4 == 6 else None
        if located is not None:
            former = former_length(_ipv6_length(original, located[0].extensions), original)
    stated = _ipv6_length(packet, headers.extensions)
    end = length_to_state(stated, packet, former, IPV6_HEADER_BYTES)
    following = end - IPV6_HEADER_BYTES
    if jumbo is not None:
        if following <= _LARGEST:
            raise UnfixableError(Unfixed.JUMBO)
        packet[jumbo : jumbo + 4] = following.to_bytes(4, "big")
    elif following <= _LARGEST:
        packet[4:6] = following.to_bytes(2, "big")
    elif length:
        raise UnfixableError(Unfixed.LENGTH)
    # Otherwise 0 stays, as in IPv4 (ipv6_set_payload_len).
    if end < size:
        unfixed.append(Unfixed.TRAILING_BYTES)
        headers = walk_ipv6(packet, end)
    return headers, end


def _ipv6_length(packet: bytes | bytearray, extensions: tuple[Extension, ...]) -> int:
    """Give the length that an IPv6 packet states, its header included; 0 where it states none."""
    length = packet[4] << 8 | packet[5]
    if length:
        return IPV6_HEADER_BYTES + length
    try:
        jumbo = jumbo_offset(packet, extensions)
    except UnfixableError:
        return 0
    if jumbo is not None:
        return IPV6_HEADER_BYTES + int.from_bytes(packet[jumbo : jumbo + 4], "big")
    # Nothing follows: that is a length. Followed by something, it is one to be filled in.
    return IPV6_HEADER_BYTES if packet[6] == NO_NEXT_HEADER else 0
