"""Repair of what follows the IP headers: UDP's length and every transport's checksum.

Each checksum is verified before it is computed: one that verifies stays as it is, since ones'
complement has two zeros (RFC 1624 section 3) and a valid packet shall not change.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import NamedTuple

from trionfq._checksum import crc32c, internet_checksum, ones_complement_sum
from trionfq._ip_headers import (
    ESP,
    HIP,
    ICMP,
    ICMPV6,
    IGMP,
    MOBILITY,
    NO_NEXT_HEADER,
    SCTP,
    TCP,
    UDP,
    UDP_LITE,
    locate,
)
from trionfq._ip_unfixed import UnfixableError, Unfixed

# The pseudo header behind the addresses: upper-layer length and protocol (RFC 8200 section 8.1).
# IPv4's has a 16-bit length and other places (RFC 9293 section 3.1); the sum is the same.
_PSEUDO = Struct("!II")
_U16 = Struct("!H")
_UDP_LENGTH_AT = 4
_UDP_CHECKSUM_AT = 6
_UDP_HEADER_BYTES = 8
_SCTP_CHECKSUM = slice(8, 12)
_LARGEST = 0xFFFF
_TUNNELS = frozenset({4, 41, 47})  # IPv4 and IPv6 in IP, GRE
_TCP_NO_OPERATION = 1
_TCP_SIGNATURES = frozenset({19, 29})
_SCTP_AUTH = 15


class Segment(NamedTuple):
    """A transport header and its data in a packet that is being repaired.

    Attributes:
      version: of the IP packet around it, 4 or 6.
      protocol: number of the transport.
      offset: where it begins, in bytes from the start of the packet.
      end: where it ends.
      addresses: source and destination of the pseudo header.
    """

    version: int
    protocol: int
    offset: int
    end: int
    addresses: bytes

    @property
    def size(self) -> int:
        """Length of header and data, in bytes."""
        return self.end - self.offset

    def pseudo_header(self, length: int) -> bytes:
        """Give the pseudo header for ``length`` bytes."""
        return self.addresses + _PSEUDO.pack(length, self.protocol)


class Former(NamedTuple):
    """What a length field of the original said.

    Attributes:
      length: the field, counted from where its header begins, in bytes; 0 if it said nothing.
      size: bytes that there were from there on.
      tail: bytes behind that length, which are no part of what it counts.
      distinct: whether what it counts did not end in such bytes, too.
    """

    length: int
    size: int
    tail: bytes
    distinct: bool


def former_length(length: int, content: bytes) -> Former:
    """Make a `Former` of a field and of the bytes from where its header begins."""
    tail = content[length:] if length else b""
    return Former(length, len(content), tail, bool(tail) and not content.endswith(tail, 0, length))


def length_to_state(
    stated: int, content: bytes | bytearray, former: Former | None, least: int
) -> int:
    """Decide on a length field: the number of bytes, less a tail that was behind it before.

    A field that already is the number of bytes is right, unless it only happens to be: left as it
    was above data that became shorter by as much as the tail is long.

    Args:
      stated: what the field says now, in bytes.
      content: the bytes that there are.
      former: what the field said in the original, if known.
      least: the smallest length that there can be.

    Raises:
      UnfixableError: TRUNCATED, if the original stated more than there was, and still does.
    """
    size = len(content)
    if former is None or not former.length:
        return size
    if stated == size and not (
        former.distinct and stated == former.length and content.endswith(former.tail)
    ):
        return size
    if former.length > former.size:
        if stated == former.length:
            raise UnfixableError(Unfixed.TRUNCATED)
        return size
    length = size - len(former.tail)
    # The tail must still be there: a program that puts new data behind the headers has cut it off.
    return length if length >= least and content.endswith(former.tail) else size


def repair_transport(
    packet: bytearray, segment: Segment, *, original: bytes | None, checksum_not_ready: bool
) -> tuple[list[Unfixed], bool | None]:
    """Repair the transport of ``packet`` in place.

    Args:
      packet: the packet, its IP header repaired.
      segment: where the transport is, and its pseudo header's addresses.
      original: the packet before it was rewritten, if known.
      checksum_not_ready: the checksum field holds no checksum, so UDP's 0 does not mean "none".

    Returns:
      What could not be repaired, and whether the checksum was right before: None where there is
      none to be right.

    Raises:
      UnfixableError: the transport was left alone.
    """
    version, protocol, start, end, _ = segment
    if protocol == TCP:
        _require(segment, 20)
        pseudo = segment.pseudo_header(segment.size)
        signed = [Unfixed.AUTHENTICATION] if _has_tcp_signature(packet, start, end) else []
        return signed, _repair_sum(packet, pseudo, start, end, start + 16)
    if protocol == UDP:
        _require(segment, _UDP_HEADER_BYTES)
        before = _original_transport(original, UDP)
        return _repair_udp(packet, segment, before, checksum_not_ready)
    if protocol == UDP_LITE:
        _require(segment, _UDP_HEADER_BYTES)
        return [], _repair_udp_lite(packet, segment, _original_transport(original, UDP_LITE))
    if protocol == ICMPV6 and version == 6:
        _require(segment, 4)
        pseudo = segment.pseudo_header(segment.size)
        return [], _repair_sum(packet, pseudo, start, end, start + 2)
    if protocol in (ICMP, IGMP) and version == 4:
        _require(segment, 4)
        return [], _repair_sum(packet, b"", start, end, start + 2)
    if protocol == SCTP:
        _require(segment, 12)
        signed = [Unfixed.AUTHENTICATION] if _has_sctp_signature(packet, start, end) else []
        return signed, _repair_sctp(packet, start, end, _original_transport(original, SCTP))
    if protocol == HIP or (protocol == MOBILITY and version == 6):
        # Both checksum their own length, not the packet's (RFC 7401 section 5.1.1, RFC 6275
        # section 6.1.1).
        _require(segment, 8)
        length = (packet[start + 1] + 1) << 3
        _require(segment, length)
        pseudo = segment.pseudo_header(length)
        return [], _repair_sum(packet, pseudo, start, start + length, start + 4)
    if protocol == NO_NEXT_HEADER and version == 6:
        return [], None
    raise UnfixableError(Unfixed.AUTHENTICATION if protocol == ESP else Unfixed.PROTOCOL)


def lacks_inside(packet: bytes, segment: Segment) -> bool:
    """Whether a checksum that is not ready is not this segment's, but one in what it carries.

    One that is left to the card is the sum of the pseudo header (udp4_hwcsum). Any other UDP
    checksum is none, or was made for when the card will have filled in the inner one (lco_csum).
    """
    if segment.protocol == UDP and segment.size >= _UDP_HEADER_BYTES:
        partial = ones_complement_sum(segment.pseudo_header(segment.size))
        return _read(packet, segment.offset + _UDP_CHECKSUM_AT) != partial
    return segment.protocol in _TUNNELS


def _has_tcp_signature(packet: bytearray, start: int, end: int) -> bool:
    """Whether an option signs the segment: MD5 (RFC 2385) or TCP-AO (RFC 5925)."""
    offset = start + 20
    last = min(start + (packet[start + 12] >> 4 << 2), end)
    while offset + 1 < last and packet[offset]:  # 0 ends the list (RFC 9293 section 3.1)
        if packet[offset] in _TCP_SIGNATURES:
            return True
        if packet[offset] == _TCP_NO_OPERATION:
            offset += 1
        elif packet[offset + 1] < 2:
            return False
        else:
            offset += packet[offset + 1]
    return False


def _has_sctp_signature(packet: bytearray, start: int, end: int) -> bool:
    """Whether a chunk signs those behind it (RFC 4895)."""
    offset = start + 12
    while offset + 4 <= end:
        if packet[offset] == _SCTP_AUTH:
            return True
        size = _read(packet, offset + 2)
        if size < 4:
            return False
        offset += size + 3 & ~3
    return False


def _require(segment: Segment, size: int) -> None:
    if segment.size < size:
        raise UnfixableError(Unfixed.TRANSPORT_HEADER)


def _original_transport(original: bytes | None, protocol: int) -> bytes | None:
    """Give the original's UDP, UDP-Lite or SCTP part up to the IP packet's end, if it had one."""
    located = None if original is None else locate(original)
    if original is None or located is None:
        return None
    headers, end = located
    offset = headers.transport_offset
    if headers.protocol != protocol or headers.fragment_offset or offset is None:
        return None
    return original[offset:end] if end - offset >= _UDP_HEADER_BYTES else None


def _repair_udp(
    packet: bytearray, segment: Segment, before: bytes | None, checksum_not_ready: bool
) -> tuple[list[Unfixed], bool | None]:
    """Repair UDP (RFC 768): its length, then its checksum unless the sender used none.

    0 is "no checksum" in IPv4. In IPv6 it is forbidden but for tunnels (RFC 8200 section 8.1,
    RFC 6935, RFC 6936), and nothing in the packet tells a tunnel: so it stays 0, which is said.
    In both, a 0 that stands where the original had a checksum is one to be computed.
    """
    start = segment.offset
    stated = _read(packet, start + _UDP_LENGTH_AT)
    former = None
    if before is not None:
        length = _read(before, _UDP_LENGTH_AT)
        # Longer than the IP packet is no truncation, but an error, which is not to be kept.
        if length <= len(before):
            former = former_length(length, before)
    length = length_to_state(stated, packet[start : segment.end], former, _UDP_HEADER_BYTES)
    unfixed = [Unfixed.TRAILING_BYTES] if length < segment.size else []
    # RFC 2675 section 4: a jumbogram's is 0.
    _write(packet, start + _UDP_LENGTH_AT, length if length <= _LARGEST else 0)
    without = not _read(packet, start + _UDP_CHECKSUM_AT) and not checksum_not_ready
    if without and (before is None or not _read(before, _UDP_CHECKSUM_AT)):
        if segment.version == 6:
            unfixed.append(Unfixed.NO_CHECKSUM)
        return unfixed, None
    verified = _repair_sum(
        packet,
        segment.pseudo_header(length),
        start,
        start + length,
        start + _UDP_CHECKSUM_AT,
        zero_is_none=True,
    )
    return unfixed, verified


def _repair_udp_lite(packet: bytearray, segment: Segment, before: bytes | None) -> bool | None:
    """Repair UDP-Lite (RFC 3828): coverage where it exceeds the data, then the checksum.

    A coverage of the whole original, be it by 0 or by its length, stays one of the whole packet;
    a smaller one stays what it is, and then a right checksum says nothing of where the packet
    ends. The pseudo header has the whole length in any case.
    """
    start, size = segment.offset, segment.size
    coverage = _read(packet, start + _UDP_LENGTH_AT)
    if 0 < coverage < _UDP_HEADER_BYTES:
        raise UnfixableError(Unfixed.COVERAGE)
    whole = before is not None and _read(before, _UDP_LENGTH_AT) == len(before) == coverage
    if coverage > size or whole:
        coverage = size if size <= _LARGEST else 0
        _write(packet, start + _UDP_LENGTH_AT, coverage)
    verified = _repair_sum(
        packet,
        segment.pseudo_header(size),
        start,
        start + (coverage or size),
        start + _UDP_CHECKSUM_AT,
        zero_is_none=True,
    )
    return verified if coverage in (0, size) or not verified else None


def _repair_sum(
    packet: bytearray, pseudo: bytes, start: int, end: int, at: int, *, zero_is_none: bool = False
) -> bool:
    """Verify the RFC 1071 checksum at ``at``, over ``start`` to ``end``; set it if it is wrong.

    Returns:
      Whether it was right.
    """
    # The field itself is part of this sum, so a right one makes it 0xffff.
    total = ones_complement_sum(pseudo + packet[start:end])
    field = _read(packet, at)
    if total == _LARGEST and (field or not zero_is_none):
        return True
    rest = (total - field) % _LARGEST
    if rest or pseudo:
        # Nothing but zeros sums to 0 (RFC 1071), and a pseudo header is not: 0 here is 0xffff.
        checksum = (rest or _LARGEST) ^ _LARGEST
    else:
        _write(packet, at, 0)
        checksum = internet_checksum(packet[start:end])
    _write(packet, at, _LARGEST if zero_is_none and not checksum else checksum)
    return False


def _repair_sctp(packet: bytearray, start: int, end: int, before: bytes | None) -> bool:
    """Verify SCTP's checksum; set it if it is wrong.

    That is the CRC32c of RFC 9260 section 6.8, least significant byte first. Until RFC 3309 it was
    an Adler-32, most significant byte first: one that is right stays, and a peer that used it in
    the original gets it again. A checksum of 0 (RFC 9653, for SCTP over DTLS) is replaced, since
    a receiver of those takes a right one as well.
    """
    content = packet[start:end]
    if _is_adler32(content):
        return True
    at = start + _SCTP_CHECKSUM.start
    field = packet[at : at + 4]
    content[_SCTP_CHECKSUM] = bytes(4)
    checksum = crc32c(content).to_bytes(4, "little")
    if field == checksum:
        return True
    if before is not None and _is_adler32(before):
        checksum = zlib.adler32(content).to_bytes(4, "big")
    packet[at : at + 4] = checksum
    return False


def _is_adler32(content: bytes | bytearray) -> bool:
    zeroed = content[: _SCTP_CHECKSUM.start] + bytes(4) + content[_SCTP_CHECKSUM.stop :]
    return zlib.adler32(zeroed).to_bytes(4, "big") == content[_SCTP_CHECKSUM]


def _read(packet: bytes | bytearray, at: int) -> int:
    return packet[at] << 8 | packet[at + 1]


def _write(packet: bytearray, at: int, value: int) -> None:
    _U16.pack_into(packet, at, value)
