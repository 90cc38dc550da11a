"""What a user of a library that knows nothing of IP does by hand, for the peers' programs."""

from __future__ import annotations

import struct

_PORTS = struct.Struct("!HH")
_ADDRESSES = struct.Struct("!II")


def addresses_and_ports(packet: bytes) -> tuple[int, int, int, int]:
    """Of an IPv4 packet: source, destination, source port, destination port."""
    return *_ADDRESSES.unpack_from(packet, 12), *_PORTS.unpack_from(packet, 4 * (packet[0] & 15))


def rewritten(packet: bytes) -> bytes:
    """An IPv4 UDP packet whose last four bytes are others, with its checksum; the same length."""
    header = 4 * (packet[0] & 15)
    datagram = packet[header:-4] + b"abcd"
    # The pseudo header (RFC 768): addresses, protocol, length; and the old checksum left out.
    covered = packet[12:20] + struct.pack("!HH", 17, len(datagram)) + datagram
    if len(covered) % 2:
        covered += b"\0"
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    total -= int.from_bytes(datagram[6:8], "big")
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF or 0xFFFF
    return packet[:header] + datagram[:6] + checksum.to_bytes(2, "big") + datagram[8:]
