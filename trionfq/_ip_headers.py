"""Where the parts of an IP packet lie: the walk that accessors and repair share.

The walk believes no field: every length is held against the bytes that are there, and what does
not fit ends it. IPv4 options, IPv6 extension headers and the authentication header (in both
families) lie between the fixed header and the transport.
"""

from __future__ import annotations

from typing import NamedTuple

IPV4_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40

# Protocol numbers, as assigned by IANA.
HOP_BY_HOP = 0
ICMP = 1
IGMP = 2
TCP = 6
UDP = 17
DCCP = 33
ROUTING = 43
FRAGMENT = 44
ESP = 50
AUTHENTICATION = 51
ICMPV6 = 58
NO_NEXT_HEADER = 59
DESTINATION_OPTIONS = 60
SCTP = 132
MOBILITY = 135
UDP_LITE = 136
HIP = 139

# The extension headers that another header follows. Mobility (RFC 6275) and HIP (RFC 7401) have
# that form, too, but they end the chain, carry their own checksum, and are transports here, as
# they are to the kernel's ipv6_skip_exthdr.
_CHAINED_IPV6 = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS})
_CHAINED_IPV4 = frozenset({AUTHENTICATION})

# IPv4: more-fragments and offset (RFC 791); IPv6: offset and M (RFC 8200 section 4.5).
IPV4_FRAGMENT_MASK = 0x3FFF
_IPV4_MORE = 0x2000
_IPV6_MORE = 0x0001


class Extension(NamedTuple):
    """A header between the fixed IP header and the transport.

    Attributes:
      protocol: its number, such as 43 for a routing header.
      offset: where it begins in the packet, in bytes.
      size: its length, in bytes.
    """

    protocol: int
    offset: int
    size: int


class Headers(NamedTuple):
    """What a walk found.

    Attributes:
      protocol: number of what follows the last header that could be walked; None where a header
          on the way is truncated or malformed.
      transport_offset: where that begins, in bytes from the start of the IP header; None like
          ``protocol``, or where the IPv4 header itself is not all there.
      fragment_offset: where in the original packet this fragment's data belong, in bytes.
      more_fragments: whether this is a fragment that others follow.
      extensions: the headers on the way, in order; a routing header appears even if a later one
          is malformed.
    """

    protocol: int | None
    transport_offset: int | None
    fragment_offset: int
    more_fragments: bool
    extensions: tuple[Extension, ...]


def walk_ipv4(packet: bytes | bytearray, end: int) -> Headers:
    """Walk an IPv4 packet of at least 20 bytes whose header length field is at least 5.

    Args:
      packet: from the IP header on.
      end: where the packet ends, in bytes; what lies behind is not looked at.
    """
    fragment = packet[6] << 8 | packet[7]
    more = bool(fragment & _IPV4_MORE)
    fragment_offset = (fragment & 0x1FFF) << 3
    offset = (packet[0] & 0x0F) << 2
    if offset > end:
        return Headers(packet[9], None, fragment_offset, more, ())
    if packet[9] == AUTHENTICATION and not fragment_offset:
        return _walk(packet, _CHAINED_IPV4, AUTHENTICATION, offset, end, more)
    return Headers(packet[9], offset, fragment_offset, more, ())


def walk_ipv6(packet: bytes | bytearray, end: int) -> Headers:
    """Walk an IPv6 packet of at least 40 bytes; ``end`` as for `walk_ipv4`."""
    return _walk(packet, _CHAINED_IPV6, packet[6], IPV6_HEADER_BYTES, end, False)


def _walk(
    packet: bytes | bytearray,
    chained: frozenset[int],
    protocol: int,
    offset: int,
    end: int,
    more: bool,
) -> Headers:
    """Follow next-header fields from ``protocol``, which begins at ``offset``."""
    fragment_offset = 0
    extensions: list[Extension] = []
    while protocol in chained:
        if offset + 8 > end:
            return Headers(None, None, fragment_offset, more, tuple(extensions))
        if protocol == FRAGMENT:
            size = 8
        elif protocol == AUTHENTICATION:
            size = (packet[offset + 1] + 2) << 2  # RFC 4302 section 2.2: in words, less 2
        else:
            size = (packet[offset + 1] + 1) << 3  # RFC 8200: in 8 bytes, without the first 8
        if offset + size > end:
            return Headers(None, None, fragment_offset, more, tuple(extensions))
        extensions.append(Extension(protocol, offset, size))
        following = packet[offset]
        if protocol == FRAGMENT:
            field = packet[offset + 2] << 8 | packet[offset + 3]
            more = more or bool(field & _IPV6_MORE)
            fragment_offset = field & 0xFFF8
            if fragment_offset:
                # The next header named here is in the first fragment only.
                return Headers(following, offset + 8, fragment_offset, more, tuple(extensions))
        protocol = following
        offset += size
    return Headers(protocol, offset, fragment_offset, more, tuple(extensions))


def locate(packet: bytes | bytearray) -> tuple[Headers, int] | None:
    """Walk a packet of either family up to the end that it states.

    Returns:
      What was found and where the packet ends, never behind its bytes; None where the bytes do
      not begin with a whole fixed IP header.
    """
    size = len(packet)
    version = packet[0] >> 4 if size else 0
    if version == 4 and size >= IPV4_HEADER_BYTES and packet[0] & 0x0F >= 5:
        # 0 is the kernel's length of a segmentation-offload packet above 65,535 bytes.
        end = min((packet[2] << 8 | packet[3]) or size, size)
        return walk_ipv4(packet, end), end
    if version == 6 and size >= IPV6_HEADER_BYTES:
        # 0 is a jumbogram (RFC 2675), offload as above, or nothing at all.
        length = packet[4] << 8 | packet[5]
        end = min(IPV6_HEADER_BYTES + length, size) if length else size
        return walk_ipv6(packet, end), end
    return None
