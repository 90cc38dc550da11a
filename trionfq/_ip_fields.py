"""The header fields of an IP packet and its transport, by name, for people to read.

Names are those of the RFCs: IPv4 791, IPv6 8200, TCP 9293, UDP 768, UDP-Lite 3828, ICMP 792 and
4443, SCTP 9260. The walk is that of `_ip_headers`, which believes no length field, so any bytes
give something; what is not understood stands under ``data``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trionfq._ip import format_address
from trionfq._ip_headers import (
    ICMP,
    ICMPV6,
    IPV6_HEADER_BYTES,
    SCTP,
    TCP,
    UDP,
    UDP_LITE,
    locate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


class Field(NamedTuple):
    """One field.

    Attributes:
      name: layer and field, such as ``ipv4.total_length``.
      text: its value as text.
    """

    name: str
    text: str


def _number(value: bytes) -> str:
    return str(int.from_bytes(value, "big"))


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _tcp_flags(value: bytes) -> str:
    set_ = [name for bit, name in enumerate(_TCP_FLAGS) if value[0] >> bit & 1]
    return ",".join(set_) or "none"


_Part = tuple[str, int, int, "Callable[[bytes], str]"]
_IPV4: tuple[_Part, ...] = (
    ("header_length", 0, 1, lambda value: str((value[0] & 15) * 4)),
    ("tos", 1, 2, _hex),
    ("total_length", 2, 4, _number),
    ("identification", 4, 6, _hex),
    ("flags", 6, 7, lambda value: _ipv4_flags(value[0])),
    ("fragment_offset", 6, 8, lambda value: str((int.from_bytes(value, "big") & 0x1FFF) * 8)),
    ("ttl", 8, 9, _number),
    ("protocol", 9, 10, _number),
    ("checksum", 10, 12, _hex),
    ("source", 12, 16, format_address),
    ("destination", 16, 20, format_address),
)
_IPV6: tuple[_Part, ...] = (
    ("traffic_class", 0, 2, lambda value: hex(int.from_bytes(value, "big") >> 4 & 0xFF)),
    ("flow_label", 0, 4, lambda value: hex(int.from_bytes(value, "big") & 0xFFFFF)),
    ("payload_length", 4, 6, _number),
    ("next_header", 6, 7, _number),
    ("hop_limit", 7, 8, _number),
    ("source", 8, 24, format_address),
    ("destination", 24, 40, format_address),
)
_PORTS: tuple[_Part, ...] = (("source_port", 0, 2, _number), ("destination_port", 2, 4, _number))
_ICMP: tuple[_Part, ...] = (
    ("type", 0, 1, _number),
    ("code", 1, 2, _number),
    ("checksum", 2, 4, _hex),
    ("rest_of_header", 4, 8, _hex),
)
_TRANSPORTS: dict[int, tuple[str, int, tuple[_Part, ...]]] = {
    TCP: (
        "tcp",
        20,
        (
            *_PORTS,
            ("sequence", 4, 8, _number),
            ("acknowledgement", 8, 12, _number),
            ("header_length", 12, 13, lambda value: str((value[0] >> 4) * 4)),
            ("flags", 13, 14, _tcp_flags),
            ("window", 14, 16, _number),
            ("checksum", 16, 18, _hex),
            ("urgent_pointer", 18, 20, _number),
        ),
    ),
    UDP: ("udp", 8, (*_PORTS, ("length", 4, 6, _number), ("checksum", 6, 8, _hex))),
    UDP_LITE: ("udplite", 8, (*_PORTS, ("coverage", 4, 6, _number), ("checksum", 6, 8, _hex))),
    SCTP: ("sctp", 12, (*_PORTS, ("verification_tag", 4, 8, _hex), ("checksum", 8, 12, _hex))),
    ICMP: ("icmp", 8, _ICMP),
    ICMPV6: ("icmpv6", 8, _ICMP),
}


def _ipv4_flags(first: int) -> str:
    names = [name for bit, name in ((0x40, "DF"), (0x20, "MF"), (0x80, "reserved")) if first & bit]
    return ",".join(names) or "none"


def packet_fields(packet: bytes) -> list[Field]:
    """The fields of a packet from its IP header on, in order; ``data`` is what is left.

    Values are text; what has no name of its own (options, extension headers, data) is hexadecimal.
    """
    return list(_fields(packet))


def _fields(packet: bytes) -> Iterator[Field]:
    located = locate(packet)
    if located is None:
        yield from _rest("data", packet)
        return
    headers, end = located
    if packet[0] >> 4 == 4:
        yield from _read("ipv4", packet, 0, _IPV4)
        yield from _rest("ipv4.options", packet[20 : min((packet[0] & 15) * 4, end)])
    else:
        yield from _read("ipv6", packet, 0, _IPV6)
    at = IPV6_HEADER_BYTES if packet[0] >> 4 == 6 else (packet[0] & 15) * 4
    for number, (protocol, start, size) in enumerate(headers.extensions, 1):
        yield from _rest(f"extension_{number}_of_type_{protocol}", packet[start : start + size])
        at = start + size
    offset = headers.transport_offset
    known = _TRANSPORTS.get(headers.protocol or 0)
    if offset is not None and known is not None and not headers.fragment_offset:
        name, size, parts = known
        if offset + size <= end:
            yield from _read(name, packet, offset, parts)
            at = offset + size
            if name == "tcp":
                after = max(at, min(offset + (packet[offset + 12] >> 4) * 4, end))
                yield from _rest("tcp.options", packet[at:after])
                at = after
    yield from _rest("data", packet[at:end])
    yield from _rest("padding", packet[end:])


def _read(layer: str, packet: bytes, offset: int, parts: tuple[_Part, ...]) -> Iterator[Field]:
    for name, start, stop, text in parts:
        yield Field(f"{layer}.{name}", text(packet[offset + start : offset + stop]))


def _rest(name: str, value: bytes) -> Iterator[Field]:
    if value:
        yield Field(name, value.hex())
