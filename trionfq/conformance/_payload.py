"""What can be wrong with the packet that a verdict gives back."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import NFQA

if TYPE_CHECKING:
    from trionfq.conformance._context import Context, Message
    from trionfq.conformance._queues import Waiting

_PAYLOAD = NFQA.by_name["payload"].number
_FIELD = "NFQA_PAYLOAD"
_IPV4_BYTES, _IPV6_BYTES = 20, 40
_NO_SHRINKING = 2**32 - 4


def transport_offset(family: int, payload: bytes, *, tagged: bool) -> int:
    """Bytes in front of the transport header, as nfqnl_mangle compares, 0 where nothing tells."""
    if family == Family.BRIDGE and tagged:
        # The tag was cut out behind the transport header's mark (skb_vlan_untag), so the offset is
        # -4, and the kernel compares it unsigned.
        return _NO_SHRINKING
    if family == Family.IPV4 and payload:
        return (payload[0] & 0x0F) * 4
    return _IPV6_BYTES if family == Family.IPV6 else 0


def judge_payload(context: Context, message: Message, packet: Waiting, checksum: int) -> None:
    """The payload of a verdict, against the packet's own.

    Args:
      context: where findings go.
      message: a verdict that has a payload.
      packet: what it is for.
      checksum: CRC-32 of the new payload.
    """
    contents = message.contents(_PAYLOAD) or b""
    at = message.offset(_PAYLOAD)
    size = len(contents)
    if packet.copied is not None and packet.whole is not None:
        if packet.whole > packet.copied and size == packet.copied:
            text = (
                f"{size} bytes for a packet of {packet.whole}, of which {packet.copied} were copied"
            )
            context.fault("NFQ413", at, _FIELD, text)
            return
        if (size, checksum) == (packet.copied, packet.checksum):
            context.fault("NFQ414", at, _FIELD, f"the same {size} bytes")
            return
        if size < packet.whole and size < packet.transport:
            text = f"{size} bytes; the transport header starts at {packet.transport}"
            context.fault("NFQ415", at, _FIELD, text)
            return
    _lengths(context, packet.family, contents, at)


def _lengths(context: Context, family: int, contents: bytes, at: int) -> None:
    """The length field of an IP header, and IPv4's checksum over it."""
    size = len(contents)
    if family == Family.IPV4 and size >= _IPV4_BYTES and contents[0] >> 4 == 4:
        told = int.from_bytes(contents[2:4], "big")
        header = contents[: (contents[0] & 0x0F) * 4]
        name, offset = "total length", 2
    elif family == Family.IPV6 and size >= _IPV6_BYTES and contents[0] >> 4 == 6:
        told = int.from_bytes(contents[4:6], "big")
        told += _IPV6_BYTES if told else 0
        header = b""
        name, offset = "payload length, with its header", 4
    else:
        return
    if not told:  # more than the field can hold: a GSO packet, or a jumbo payload
        return
    extra = size - told
    # From the attribute's header: 4 bytes.
    where = at + 4 + offset
    if 0 < extra < 4 and size % 4 == 0 and not contents[told:].strip(b"\0"):
        context.fault("NFQ210", at, _FIELD, f"{size} bytes, of which {extra} are padding")
    elif extra:
        context.fault("NFQ416", where, _FIELD, f"IP {name} {told}, got {size} bytes")
    elif header and len(header) >= _IPV4_BYTES and _sum(header) != 0xFFFF:
        context.fault("NFQ417", at + 4 + 10, _FIELD, "the header does not add up to its checksum")


def _sum(header: bytes) -> int:
    """The ones' complement sum over a header of whole 32-bit words (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
