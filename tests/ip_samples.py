"""Valid IP packets of every kind that a repair knows, made without the code under test.

scapy builds the transports. Where scapy has no layer, or no idea of the pseudo header, a header is
spliced in instead: an upper-layer checksum depends on the two ends alone, so the transport of a
packet sent straight from end to end is the transport of any packet between them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import NamedTuple

from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_Router_Alert,
    IPOption_SSRR,
    IPOption_Timestamp,
)
from scapy.layers.inet6 import (
    HAO,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    RouterAlert,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from trionfq._ip_repair import Unfixed

SOURCE4, STOP4, LAST4 = "10.7.0.1", "10.7.0.2", "10.9.9.9"
SOURCE6, STOP6, LAST6, HOME6 = "2001:db8::1", "2001:db8::2:2", "2001:db8::9:9", "2001:db8::c0"
# Where each transport's checksum is, from its own start, and how many bytes it has.
CHECKSUM_AT = {
    1: (2, 2),
    2: (2, 2),
    6: (16, 2),
    17: (6, 2),
    58: (2, 2),
    132: (8, 4),
    136: (6, 2),
}


class Sample(NamedTuple):
    """A kind of packet.

    Attributes:
      name: what is special about it.
      make: gives the whole valid packet that carries some data, the data last.
      protocol: its transport.
      unfixed: what a repair has to say about it even though it is valid.
    """

    name: str
    make: Callable[[bytes], bytes]
    protocol: int
    unfixed: tuple[Unfixed, ...] = ()


def sum_by_words(data: bytes) -> int:
    """RFC 1071 as its text reads: add 16-bit words, carry around."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        if total > 0xFFFF:
            total = (total & 0xFFFF) + 1
    return total


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    """The pseudo header as RFC 9293 (IPv4) and RFC 8200 (IPv6) draw it."""
    addresses = b"".join(ipaddress.ip_address(a).packed for a in (source, destination))
    if len(addresses) == 8:
        return addresses + bytes([0, protocol]) + length.to_bytes(2, "big")
    return addresses + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


def summed(content: bytes, at: int, pseudo_header: bytes, covered: int | None = None) -> bytes:
    """Put an RFC 1071 checksum into a field of zeros."""
    checksum = sum_by_words(pseudo_header + content[:covered]) ^ 0xFFFF
    return content[:at] + checksum.to_bytes(2, "big") + content[at + 2 :]


def ipv4(protocol: int, content: bytes, *, options: bytes = b"", destination: str = STOP4) -> bytes:
    """An IPv4 packet around a transport that is ready."""
    header = IP(src=SOURCE4, dst=destination, proto=protocol, id=7)
    if options:
        plain = bytearray(bytes(header))
        plain[0] += len(options) // 4
        plain[2:4] = (20 + len(options) + len(content)).to_bytes(2, "big")
        plain[10:12] = bytes(2)
        return summed(bytes(plain) + options, 10, b"") + content
    return bytes(header / Raw(content))


def ipv6(protocol: int, content: bytes, *extensions: tuple[int, bytes], **ends: str) -> bytes:
    """An IPv6 packet of extension headers (number, all bytes but the first) and a transport."""
    first, *following = [number for number, _ in extensions] + [protocol]
    chain = b"".join(
        bytes([number]) + rest for number, (_, rest) in zip(following, extensions, strict=True)
    )
    header = IPv6(src=ends.get("source", SOURCE6), dst=ends.get("destination", STOP6), nh=first)
    return bytes(header / Raw(chain + content))


def between(packet: Packet, source: str, destination: str) -> bytes:
    """The bytes of a transport, with the checksum that it has between two hosts."""
    if ":" in source:
        return bytes(IPv6(src=source, dst=destination) / packet)[40:]
    return bytes(IP(src=source, dst=destination) / packet)[20:]


def udp(data: bytes) -> Packet:
    return UDP(sport=1000, dport=53) / Raw(data)


def tcp(data: bytes) -> Packet:
    return TCP(sport=1000, dport=80, seq=5, options=[("MSS", 1460)]) / Raw(data)


def udp_lite(data: bytes, coverage: int, source: str, destination: str) -> bytes:
    content = bytes.fromhex("03e80035") + coverage.to_bytes(2, "big") + bytes(2) + data
    header = pseudo(source, destination, 136, len(content))
    return summed(content, 6, header, coverage or None)


def packed(*addresses: str) -> bytes:
    return b"".join(ipaddress.ip_address(address).packed for address in addresses)


def _native(layers: Packet, transport: Callable[[bytes], Packet]) -> Callable[[bytes], bytes]:
    return lambda data: bytes(layers / transport(data))


def _spliced(
    *extensions: tuple[int, bytes], source: str = SOURCE6, last: str = STOP6
) -> Callable[[bytes], bytes]:
    return lambda data: ipv6(6, between(tcp(data), source, last), *extensions)


# A chunk that states more than there is, so that data of any length are all in it.
_CHUNK = b"\0\3\xff\xff"
_V4 = IP(src=SOURCE4, dst=STOP4, id=7)
_V6 = IPv6(src=SOURCE6, dst=STOP6)
# RFC 4302: 24 bytes, the first of them the next header.
_AH = bytes([4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]) + bytes(range(12))
_EMBEDDED4 = bytes(IP(src=STOP4, dst=SOURCE4, id=9) / UDP(sport=9, dport=9, chksum=0xBAD))
_EMBEDDED6 = bytes(IPv6(src=STOP6, dst=SOURCE6) / UDP(sport=9, dport=9, chksum=0xBAD))
# RFC 6554: CmprI 14, CmprE 12, so stops of 2 bytes and a last one of 4, then 2 bytes of padding.
_RPL = (43, bytes([1, 3, 2, 0xEC, 0x20, 0, 0]) + b"\0\5" + packed(LAST6)[12:] + bytes(2))
_HOME_ROUTE = (43, bytes([2, 2, 1, 0, 0, 0, 0]) + packed(LAST6))
_HOME_OPTION = (60, bytes([2, 1, 2, 0, 0, 0xC9, 16]) + packed(HOME6))
# A reduced list: the first of three stops is in the IPv6 header only.
_REDUCED = bytes([4, 4, 2, 1, 0, 0, 0]) + packed(LAST6, "2001:db8::5")

SAMPLES = [
    Sample("udp", _native(_V4, udp), 17),
    Sample("udp without checksum", lambda d: bytes(_V4 / UDP(chksum=0) / Raw(d)), 17),
    Sample("tcp", _native(_V4, tcp), 6),
    Sample("icmp", _native(_V4, lambda d: ICMP(type=8, id=1, seq=2) / Raw(d)), 1),
    Sample("icmp error", _native(_V4, lambda d: ICMP(type=3, code=3) / Raw(_EMBEDDED4 + d)), 1),
    Sample("igmp", lambda d: ipv4(2, summed(b"\x16\0\0\0\xe0\0\0\1" + d, 2, b"")), 2),
    Sample("sctp", _native(_V4, lambda d: SCTP(sport=1, dport=2, tag=3) / Raw(_CHUNK + d)), 132),
    Sample("udp-lite, all covered", lambda d: ipv4(136, udp_lite(d, 0, SOURCE4, STOP4)), 136),
    Sample(
        "udp-lite, covered by length",
        lambda d: ipv4(136, udp_lite(d, 8 + len(d), SOURCE4, STOP4)),
        136,
    ),
    Sample("udp-lite, header", lambda d: ipv4(136, udp_lite(d, 8, SOURCE4, STOP4)), 136),
    Sample(
        "loose source route",
        _native(
            IP(src=SOURCE4, dst=STOP4, options=[IPOption_LSRR(routers=["10.8.8.8", LAST4])]), udp
        ),
        17,
    ),
    Sample(
        "strict source route",
        _native(
            IP(
                src=SOURCE4,
                dst=STOP4,
                options=[IPOption_Router_Alert(), IPOption_SSRR(routers=[LAST4])],
            ),
            tcp,
        ),
        6,
    ),
    Sample(
        "source route at its end",
        lambda d: ipv4(
            17,
            between(udp(d), SOURCE4, LAST4),
            options=bytes([1, 131, 7, 8]) + packed(STOP4),
            destination=LAST4,
        ),
        17,
    ),
    Sample(
        "timestamp option",
        _native(IP(src=SOURCE4, dst=STOP4, options=[IPOption_Timestamp()]), tcp),
        6,
    ),
    Sample(
        "ipv4 authentication header",
        lambda d: ipv4(51, bytes([6]) + _AH + between(tcp(d), SOURCE4, STOP4)),
        6,
        (Unfixed.AUTHENTICATION,),
    ),
    Sample("udp over ipv6", _native(_V6, udp), 17),
    Sample(
        "udp over ipv6 without checksum",
        lambda d: ipv6(17, bytes(UDP(chksum=0, len=8 + len(d)) / Raw(d))),
        17,
        (Unfixed.NO_CHECKSUM,),
    ),
    Sample("tcp over ipv6", _native(_V6, tcp), 6),
    Sample("icmpv6", lambda d: bytes(_V6 / ICMPv6EchoRequest(id=1, seq=2, data=d)), 58),
    Sample("icmpv6 error", _native(_V6, lambda d: ICMPv6PacketTooBig() / Raw(_EMBEDDED6 + d)), 58),
    Sample("sctp over ipv6", _native(_V6, lambda d: SCTP(sport=1, dport=2) / Raw(_CHUNK + d)), 132),
    Sample("udp-lite over ipv6", lambda d: ipv6(136, udp_lite(d, 0, SOURCE6, STOP6)), 136),
    Sample(
        "hop-by-hop options", _native(_V6 / IPv6ExtHdrHopByHop(options=[RouterAlert()]), udp), 17
    ),
    Sample("destination options", _native(_V6 / IPv6ExtHdrDestOpt(), tcp), 6),
    Sample("atomic fragment", _native(_V6 / IPv6ExtHdrFragment(id=3), udp), 17),
    Sample("authentication header", _spliced((51, _AH)), 6, (Unfixed.AUTHENTICATION,)),
    Sample(
        "routing type 0",
        _native(_V6 / IPv6ExtHdrRouting(addresses=["2001:db8::5", LAST6], segleft=2), udp),
        17,
    ),
    Sample(
        "routing type 0 at its end",
        _native(_V6 / IPv6ExtHdrRouting(addresses=[LAST6], segleft=0), udp),
        17,
    ),
    Sample("routing type 2", _spliced(_HOME_ROUTE, last=LAST6), 6),
    Sample("routing type 3", _spliced(_RPL, last=LAST6), 6),
    Sample(
        "routing type 4",
        _native(
            _V6 / IPv6ExtHdrSegmentRouting(addresses=[LAST6, STOP6], segleft=1, lastentry=1),
            tcp,
        ),
        6,
    ),
    Sample("routing type 4, reduced", _spliced((43, _REDUCED), last=LAST6), 6),
    Sample("routing of unknown type at its end", _spliced((43, bytes([0, 200, 0, 0, 0, 0, 0]))), 6),
    Sample(
        "two routing headers",
        _spliced(
            (43, bytes([2, 0, 1, 0, 0, 0, 0]) + packed("2001:db8::77")), _HOME_ROUTE, last=LAST6
        ),
        6,
    ),
    Sample("home address", _native(_V6 / IPv6ExtHdrDestOpt(options=[HAO(hoa=HOME6)]), udp), 17),
    Sample(
        "home address and home route",
        _spliced(_HOME_OPTION, _HOME_ROUTE, source=HOME6, last=LAST6),
        6,
    ),
    Sample(
        "a long chain",
        _native(
            _V6
            / IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt(options=[HAO(hoa=HOME6)])
            / IPv6ExtHdrRouting(addresses=[LAST6], segleft=1)
            / IPv6ExtHdrFragment(id=3)
            / IPv6ExtHdrDestOpt(),
            udp,
        ),
        17,
    ),
]
