"""What a simple policy asks of a packet's payload: addresses, protocol, ports.

A payload begins at the IP header. Nothing here raises, whatever the bytes are: what is not there,
truncated or contradictory is None.
"""

from __future__ import annotations

import ipaddress
from struct import Struct

from trionfq._ip_headers import (
    DCCP,
    ICMP,
    ICMPV6,
    IPV4_FRAGMENT_MASK,
    IPV4_HEADER_BYTES,
    SCTP,
    TCP,
    UDP,
    UDP_LITE,
    Headers,
    locate,
)

# Version and header length, total length, fragment field, protocol, addresses (RFC 791), then
# what lies behind a header without options: the ports.
_IPV4_AND_PORTS = Struct("!BxHxxHxB2x4s4sHH")
_IPV4_AND_PORTS_BYTES = _IPV4_AND_PORTS.size
_read_ipv4_and_ports = _IPV4_AND_PORTS.unpack_from
_IPV4_WITHOUT_OPTIONS = 0x45
_WITHOUT_OPTIONS = Headers(None, IPV4_HEADER_BYTES, 0, False, ())
_NO_HEADERS = Headers(None, None, 0, False, ())
_PORTS = Struct("!HH")
# Each of these opens with source port and destination port: RFC 9293, 768, 4340, 9260, 3828.
_WITH_PORTS = frozenset({TCP, UDP, DCCP, SCTP, UDP_LITE})
# Header sizes of the transports that have no field for it.
_FIXED_HEADER_BYTES = {UDP: 8, UDP_LITE: 8, SCTP: 12, ICMP: 8, ICMPV6: 8}
# Which byte of the header holds its own length, in words, in the upper four bits (TCP) or whole.
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
# Addresses come again and again: to look one up costs 50 ns, to write IPv6 text 3 us (measured).
# Bounded, since a flood of spoofed sources is one of the things that a policy meets.
_TEXTS_KEPT = 4096
_texts: dict[bytes | None, str] = {}
_known_text = _texts.get


class IPView:
    """The headers of one IP packet, read once.

    Making one reads what is a plain attribute, by one ``struct`` call for IPv4 without options;
    everything else is found when asked for.

    Attributes:
      payload: the bytes looked at, from the IP header on.
      ip_version: 4 or 6; None where the first byte says neither, or there is none.
      source_bytes: source address, 4 or 16 bytes; None where the fixed header is not all there
          or an IPv4 header length is below 5.
      destination_bytes: destination address, likewise. It is the header's: under a source route
          or a routing header this is the next stop, not the last.
      protocol: number of the transport protocol, after IPv6 extension headers and, in both
          families, authentication headers: 6 is TCP. Encrypted payload is 50 (ESP), an IPv6
          packet without any is 59. A later fragment has what its header says; in IPv6 that may
          be an extension header of the first fragment. None where the headers do not lead to it.
      source_port: of TCP, UDP, UDP-Lite, SCTP or DCCP; None for anything else, for a fragment
          but the first, and where the ports are cut off or behind the IP length.
      destination_port: likewise.
    """

    __slots__ = (
        "_end",
        "_headers",
        "destination_bytes",
        "destination_port",
        "ip_version",
        "payload",
        "protocol",
        "source_bytes",
        "source_port",
    )

    payload: bytes
    ip_version: int | None
    source_bytes: bytes | None
    destination_bytes: bytes | None
    protocol: int | None
    source_port: int | None
    destination_port: int | None
    _end: int  # where the packet ends by its own length, never behind the payload
    _headers: Headers

    def __init__(self, payload: bytes):
        self.payload = payload
        size = len(payload)
        if size >= _IPV4_AND_PORTS_BYTES:
            # Stored before they are known to be right: the walk below overwrites them all.
            (
                first,
                self._end,
                fragment,
                self.protocol,
                self.source_bytes,
                self.destination_bytes,
                self.source_port,
                self.destination_port,
            ) = _read_ipv4_and_ports(payload)
            if (
                first == _IPV4_WITHOUT_OPTIONS
                and not fragment & IPV4_FRAGMENT_MASK
                and self.protocol in _WITH_PORTS
                and _IPV4_AND_PORTS_BYTES <= self._end <= size
            ):
                self.ip_version = 4
                self._headers = _WITHOUT_OPTIONS
                return
        self._walk(size)

    def _walk(self, size: int) -> None:
        """Fill in the attributes of a packet that is anything but the common one."""
        payload = self.payload
        version = payload[0] >> 4 if payload else None
        self.ip_version = version if version in (4, 6) else None
        self.source_port = self.destination_port = None
        located = locate(payload)
        if located is None:
            self.source_bytes = self.destination_bytes = self.protocol = None
            self._headers, self._end = _NO_HEADERS, size
            return
        self._headers, self._end = headers, end = located
        if version == 4:
            self.source_bytes, self.destination_bytes = payload[12:16], payload[16:20]
        else:
            self.source_bytes, self.destination_bytes = payload[8:24], payload[24:40]
        self.protocol = headers.protocol
        offset = headers.transport_offset
        if (
            headers.protocol in _WITH_PORTS
            and not headers.fragment_offset
            and offset is not None
            and offset + _PORTS.size <= end
        ):
            self.source_port, self.destination_port = _PORTS.unpack_from(payload, offset)

    @property
    def transport_offset(self) -> int | None:
        """Where the transport's header begins (in a later fragment: its data), in bytes.

        None where the headers do not lead there.
        """
        return self._headers.transport_offset

    @property
    def fragment_offset(self) -> int | None:
        """Where this fragment's data belong, in bytes.

        0 for a first fragment and for a packet that is none; None where ``source_bytes`` is.
        """
        return None if self.source_bytes is None else self._headers.fragment_offset

    @property
    def more_fragments(self) -> bool:
        """Whether this is a fragment that others follow."""
        return self._headers.more_fragments

    @property
    def is_fragment(self) -> bool:
        """Whether the packet is a part of a larger one; an IPv6 atomic fragment is whole."""
        return self._headers.more_fragments or bool(self._headers.fragment_offset)

    @property
    def source(self) -> str | None:
        """The source address as text, such as ``10.7.0.1`` or ``2001:db8::1`` (RFC 5952)."""
        return _known_text(self.source_bytes) or _text(self.source_bytes)

    @property
    def destination(self) -> str | None:
        """The destination address as text, likewise."""
        return _known_text(self.destination_bytes) or _text(self.destination_bytes)

    @property
    def tcp_flags(self) -> int | None:
        """TCP's eight flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128.

        None where the packet has no TCP header, or it ends before the flags.
        """
        transport = self._transport()
        return transport[13] if self.protocol == TCP and len(transport) > 13 else None

    @property
    def icmp_type(self) -> int | None:
        """The message type of ICMP or ICMPv6; None for anything else."""
        transport = self._transport()
        return transport[0] if self.protocol in (ICMP, ICMPV6) and transport else None

    @property
    def data(self) -> bytes | None:
        """What the transport carries, up to the IP packet's end, or UDP's, if that is earlier.

        Known for TCP and DCCP (behind their options), UDP, UDP-Lite, SCTP (the chunks), ICMP and
        ICMPv6 (behind the first 8 bytes). None for anything else, for a fragment but the first,
        and where the transport's header is not all there. A truncated packet gives what was
        copied.
        """
        place = self._data_place()
        return None if place is None else self.payload[place]

    def with_data(self, data: bytes) -> bytes:
        """The packet with something else in the place of `data`, all other bytes as they are.

        Lengths and checksums are still those of before. Set it as a packet's payload, which
        repairs them, or give it to `trionfq.repair` with the old payload as ``original``. TCP's
        sequence numbers are nobody's to repair: they fit only data of the same size.

        Args:
          data: what the transport shall carry.

        Raises:
          ValueError: the packet has no such place: `data` is None.
        """
        place = self._data_place()
        if place is None:
            raise ValueError(
                f"with_data: expected TCP, UDP, UDP-Lite, SCTP, DCCP or ICMP with its whole "
                f"header, and no later fragment, got {self!r}"
            )
        return b"".join((self.payload[: place.start], data, self.payload[place.stop :]))

    def _data_place(self) -> slice | None:
        """Where in the payload the transport's data are."""
        offset = self._headers.transport_offset
        if offset is None or self._headers.fragment_offset:
            return None
        payload, end = self.payload, self._end
        size = end - offset
        if self.protocol == TCP:
            header = payload[offset + 12] >> 4 << 2 if size >= 20 else 0
            least = 20
        elif self.protocol == DCCP:
            header = payload[offset + 4] << 2 if size >= 12 else 0
            least = 12
        else:
            header = least = _FIXED_HEADER_BYTES.get(self.protocol or 0, 0)
        if not header or header < least or header > size:
            return None
        if self.protocol == UDP:
            length = payload[offset + 4] << 8 | payload[offset + 5]
            if header <= length < size:
                end = offset + length
        return slice(offset + header, end)

    def _transport(self) -> bytes:
        """Give header and data of the transport, ``b""`` where there are none."""
        offset = self._headers.transport_offset
        if offset is None or self._headers.fragment_offset:
            return b""
        return self.payload[offset : self._end]

    def __repr__(self) -> str:
        ports = "" if self.source_port is None else f" {self.source_port}>{self.destination_port}"
        return (
            f"<IPView v{self.ip_version} {self.source} > {self.destination}"
            f" protocol {self.protocol}{ports} {len(self.payload)} bytes>"
        )


def _text(packed: bytes | None) -> str | None:
    """Give the text of an address, and remember it."""
    if packed is None:
        return None
    if len(_texts) >= _TEXTS_KEPT:
        _texts.clear()
    text = _texts[packed] = format_address(packed)
    return text


def format_address(packed: bytes) -> str:
    """Give the text of a packed address, 4 or 16 bytes, the same on every Python.

    IPv4-mapped IPv6 addresses are written as RFC 5952 section 5 recommends: ``::ffff:10.0.0.1``.

    Raises:
      ValueError: ``packed`` has another size.
    """
    if len(packed) == 4:
        return ".".join(map(str, packed))
    if len(packed) != 16:
        raise ValueError(f"expected an address of 4 or 16 bytes, got {len(packed)}")
    if packed.startswith(_MAPPED_PREFIX):
        return "::ffff:" + format_address(packed[12:])
    return str(ipaddress.IPv6Address(packed))
