"""The pseudo header's addresses: whose sum a transport checksum includes.

They are those of the two ends, not always those of the IP header: under a source route or a
routing header the destination is the last stop (RFC 9293 section 3.1, RFC 8200 section 8.1), and a
mobile node's source is its home address (RFC 6275 section 11.3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionfq._ip_headers import (
    DESTINATION_OPTIONS,
    HOP_BY_HOP,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    ROUTING,
)
from trionfq._ip_unfixed import UnfixableError, Unfixed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq._ip_headers import Extension

# IPv4 options (RFC 791 section 3.1).
_END_OF_OPTIONS = 0
_NO_OPERATION = 1
_LOOSE_SOURCE_ROUTE = 131
_STRICT_SOURCE_ROUTE = 137
# IPv6 options (RFC 8200 section 4.2, RFC 2675 section 2, RFC 6275 section 6.3).
_PAD1 = 0x00
_JUMBO_PAYLOAD = 0xC2
_HOME_ADDRESS = 0xC9
# Routing types: RFC 2460 (deprecated by 5095), RFC 6275, RFC 6554, RFC 8754.
_SOURCE_ROUTE = 0
_HOME = 2
_RPL = 3
_SEGMENTS = 4


def ipv4_addresses(packet: bytearray) -> bytes:
    """Give source and final destination of an IPv4 packet whose header is all there.

    A source route names its last stop as long as its pointer is not behind it; then the header's
    destination is the last.

    Raises:
      UnfixableError: HEADERS if an option's length or pointer is impossible, or routes are two.
    """
    end = (packet[0] & 0x0F) << 2
    offset = IPV4_HEADER_BYTES
    destination = None
    routed = False
    while offset < end and packet[offset] != _END_OF_OPTIONS:
        kind = packet[offset]
        if kind == _NO_OPERATION:
            offset += 1
            continue
        size = packet[offset + 1] if offset + 1 < end else 0
        if size < 2 or offset + size > end:
            raise UnfixableError(Unfixed.HEADERS)
        if kind in (_LOOSE_SOURCE_ROUTE, _STRICT_SOURCE_ROUTE):
            # Type, length, pointer, then addresses; the pointer counts from 1, so 4 is the first.
            if routed or size < 3 or (size - 3) % 4 or packet[offset + 2] < 4:
                raise UnfixableError(Unfixed.HEADERS)
            routed = True
            if packet[offset + 2] <= size:
                if packet[offset + 2] % 4:
                    raise UnfixableError(Unfixed.HEADERS)
                destination = packet[offset + size - 4 : offset + size]
        offset += size
    return bytes(packet[12:20]) if destination is None else bytes(packet[12:16] + destination)


def ipv6_addresses(packet: bytearray, extensions: tuple[Extension, ...]) -> bytes:
    """Give home or source address and final destination of an IPv6 packet.

    Raises:
      UnfixableError: HEADERS if an option or a routing header contradicts its own length, ROUTE
          if the last stop is not in the packet.
    """
    source = bytes(packet[8:24])
    destination = bytes(packet[24:IPV6_HEADER_BYTES])
    for extension in extensions:
        if extension.protocol == ROUTING:
            destination = _last_stop(packet, extension, destination)
        elif extension.protocol == DESTINATION_OPTIONS:
            for kind, start, end in _options(packet, extension):
                if kind == _HOME_ADDRESS:
                    if end - start != 16:
                        raise UnfixableError(Unfixed.HEADERS)
                    source = bytes(packet[start:end])
    return source + destination


def jumbo_offset(packet: bytes | bytearray, extensions: tuple[Extension, ...]) -> int | None:
    """Give where the Jumbo Payload option's four length bytes are; None without one (RFC 2675).

    Raises:
      UnfixableError: HEADERS if an option contradicts its own length.
    """
    for extension in extensions:
        if extension.protocol == HOP_BY_HOP:
            for kind, start, end in _options(packet, extension):
                if kind == _JUMBO_PAYLOAD:
                    if end - start != 4:
                        raise UnfixableError(Unfixed.HEADERS)
                    return start
    return None


def _options(packet: bytes | bytearray, extension: Extension) -> Iterator[tuple[int, int, int]]:
    """Yield (type, start of its data, end) of each option in an options header."""
    offset = extension.offset + 2
    last = extension.offset + extension.size
    while offset < last:
        kind = packet[offset]
        if kind == _PAD1:
            offset += 1
            continue
        start = offset + 2
        end = start + packet[offset + 1] if start <= last else last + 1
        if end > last:
            raise UnfixableError(Unfixed.HEADERS)
        yield kind, start, end
        offset = end


def _last_stop(packet: bytearray, extension: Extension, destination: bytes) -> bytes:
    """Give the last destination of a routing header; ``destination`` if none is left."""
    _, offset, size = extension
    kind = packet[offset + 2]
    left = packet[offset + 3]
    if not left:
        return destination
    first = offset + 8
    end = offset + size
    if kind in (_SOURCE_ROUTE, _HOME):
        if size % 16 != 8 or left > size // 16:
            raise UnfixableError(Unfixed.HEADERS)
        return bytes(packet[end - 16 : end])
    if kind == _SEGMENTS:
        # The list is in reverse, Segment List[0] is the last; TLVs may follow it. A reduced list
        # lacks its first stop, which then is the header's destination: left may be one more than
        # the index of the last entry (RFC 8754 section 4.1.1).
        entries = packet[offset + 4] + 1
        if first + 16 * entries > end or left > entries:
            raise UnfixableError(Unfixed.HEADERS)
        return bytes(packet[first : first + 16])
    if kind == _RPL:
        # Addresses without the prefix that they share with the destination: the last one has a
        # compression of its own.
        elided, elided_last = packet[offset + 4] >> 4, packet[offset + 4] & 0x0F
        padding = packet[offset + 5] >> 4
        last_size = 16 - elided_last
        others = end - padding - last_size - first
        if others < 0 or others % (16 - elided) or left > others // (16 - elided) + 1:
            raise UnfixableError(Unfixed.HEADERS)
        last = first + others
        return destination[:elided_last] + bytes(packet[last : last + last_size])
    raise UnfixableError(Unfixed.ROUTE)
