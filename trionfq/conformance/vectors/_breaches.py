"""Datagrams that break one rule each, written byte by byte: no builder of ours takes part."""

from __future__ import annotations

import struct
from typing import NamedTuple

from trionfq.schema import Direction

_FROM, _TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
_QUEUE, _ID = 7, 5
_PACKET, _VERDICT, _CONFIG, _BATCH, _ERROR = 0x300, 0x301, 0x302, 0x303, 2
_IPV4, _BRIDGE = 2, 7
_NESTED = 0x8000


class Breach(NamedTuple):
    """A datagram that breaks one rule.

    Attributes:
      rule: the rule's id.
      name: unique, in words.
      direction: who would send it.
      datagram: the bytes, of a little-endian host.
    """

    rule: str
    name: str
    direction: Direction
    datagram: bytes


def attribute(number: int, contents: bytes, *, length: int | None = None) -> bytes:
    """An attribute with its padding, the length as told."""
    told = 4 + len(contents) if length is None else length
    return struct.pack("<HH", told, number) + contents + bytes(-len(contents) % 4)


def message(
    type_: int,
    body: bytes,
    *,
    flags: int = 0,
    seq: int = 0,
    portid: int = 0,
    length: int | None = None,
) -> bytes:
    """A netlink message, the length as told."""
    told = 16 + len(body) if length is None else length
    return struct.pack("<IHHII", told, type_, flags, seq, portid) + body


def genmsg(family: int = 0, version: int = 0, queue: int = _QUEUE) -> bytes:
    """Struct nfgenmsg."""
    return struct.pack(">BBH", family, version, queue)


def ipv4(data: bytes = b"data", *, total: int | None = None, checksum: int | None = None) -> bytes:
    """An IPv4 packet of protocol 253, for experiments."""
    length = 20 + len(data) if total is None else total
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 1, 0, 64, 253, 0, b"\n\0\0\1", b"\n\0\0\2")
    if checksum is None:
        added = sum(struct.unpack(">10H", head))
        while added > 0xFFFF:
            added = (added & 0xFFFF) + (added >> 16)
        checksum = added ^ 0xFFFF
    return head[:10] + struct.pack(">H", checksum) + head[12:] + data


def packet_hdr(packet_id: int = _ID, protocol: int = 0x0800, hook: int = 3) -> bytes:
    """NFQA_PACKET_HDR."""
    return attribute(1, struct.pack(">IHB", packet_id, protocol, hook))


def packet(*attributes: bytes, family: int = _IPV4, hdr: bytes | None = None) -> bytes:
    """A PACKET message of the given attributes behind its header, or that as told."""
    head = packet_hdr() if hdr is None else hdr
    return message(_PACKET, genmsg(family) + head + b"".join(attributes))


def verdict(*attributes: bytes, code: int = 1, packet_id: int = _ID, seq: int = _ID) -> bytes:
    """A VERDICT message."""
    head = attribute(2, struct.pack(">II", code, packet_id))
    return message(_VERDICT, genmsg() + head + b"".join(attributes), flags=1, seq=seq)


def config(*attributes: bytes, flags: int = 1, seq: int = 1) -> bytes:
    """A CONFIG message."""
    return message(_CONFIG, genmsg() + b"".join(attributes), flags=flags, seq=seq)


def u32(number: int, value: int) -> bytes:
    """An attribute of one integer."""
    return attribute(number, struct.pack(">I", value))


_MARK = u32(3, 0x12345678)
_ACCEPT = attribute(2, struct.pack(">II", 1, _ID))
_PAYLOAD = attribute(10, ipv4())
_TUPLE_AND_MASK = attribute(2 | _NESTED, b"") + attribute(3 | _NESTED, b"")
_EXPECTATION = attribute(15 | _NESTED, _TUPLE_AND_MASK)


def _big(datagram: bytes) -> bytes:
    """The first header in the other byte order."""
    return struct.pack(">IHHII", *struct.unpack("<IHHII", datagram[:16])) + datagram[16:]


BREACHES: tuple[Breach, ...] = (
    Breach("NFQ101", "header cut", _TO, verdict() + bytes(15)),
    Breach("NFQ102", "length beyond the end", _TO, verdict() + message(_VERDICT, b"", length=99)),
    Breach("NFQ102", "length below the header", _TO, verdict() + message(_VERDICT, b"", length=15)),
    Breach("NFQ103", "header big-endian", _TO, verdict() + _big(verdict(packet_id=6))),
    Breach("NFQ104", "no nfgenmsg", _TO, message(_CONFIG, b"\0\0\0", flags=1)),
    Breach("NFQ105", "no NLM_F_REQUEST", _TO, message(_VERDICT, genmsg() + _ACCEPT)),
    Breach("NFQ106", "unknown type", _TO, message(0x304, genmsg(), flags=1)),
    Breach("NFQ107", "PACKET to the kernel", _TO, message(_PACKET, packet()[16:], flags=1)),
    Breach(
        "NFQ114", "answer to the kernel", _TO, message(_ERROR, bytes(4) + verdict()[:16], flags=1)
    ),
    Breach("NFQ107", "VERDICT from the kernel", _FROM, verdict()),
    Breach(
        "NFQ108",
        "odd request before another",
        _TO,
        message(_VERDICT, genmsg() + _ACCEPT + attribute(10, ipv4(b"o"))[:-3], flags=1)
        + bytes(3)
        + message(_CONFIG, genmsg(queue=9), flags=1),
    ),
    Breach("NFQ109", "PACKET with a number", _FROM, message(_PACKET, packet()[16:], seq=9)),
    Breach("NFQ109", "PACKET with flags", _FROM, message(_PACKET, packet()[16:], flags=2)),
    Breach("NFQ110", "version 1", _TO, message(_VERDICT, genmsg(version=1) + _ACCEPT, flags=1)),
    Breach("NFQ111", "family 99", _FROM, packet(family=99)),
    Breach("NFQ112", "answer cut", _FROM, message(_ERROR, bytes(4) + verdict()[:15])),
    Breach(
        "NFQ113",
        "positive error",
        _FROM,
        message(_ERROR, struct.pack("<i", 22) + verdict()[:16], flags=0x100),
    ),
    Breach("NFQ201", "bytes left over", _TO, message(_VERDICT, verdict()[16:] + b"\0\0", flags=1)),
    Breach("NFQ202", "nla_len beyond the end", _TO, verdict(attribute(3, bytes(4), length=9))),
    Breach("NFQ202", "nla_len below its header", _TO, verdict(attribute(3, bytes(4), length=3))),
    Breach("NFQ203", "nlattr big-endian", _TO, verdict(struct.pack(">HHI", 8, 3, 1))),
    Breach("NFQ204", "mark of two bytes", _TO, verdict(attribute(3, b"\0\1"))),
    Breach(
        "NFQ204",
        "labels of six bytes",
        _TO,
        verdict(attribute(11 | _NESTED, attribute(22, bytes(6)))),
    ),
    Breach("NFQ204", "packet header of six bytes", _FROM, packet(hdr=attribute(1, bytes(6)))),
    Breach(
        "NFQ205", "mark of eight bytes", _TO, verdict(attribute(3, bytes(3) + b"\1" + bytes(4)))
    ),
    Breach("NFQ206", "attribute 99 in a verdict", _TO, verdict(attribute(99, b"what"))),
    Breach("NFQ207", "attribute 99 in a packet", _FROM, packet(attribute(99, b"new"))),
    Breach("NFQ208", "uid in a verdict", _TO, verdict(u32(16, 1))),
    Breach(
        "NFQ208",
        "payload in a batch",
        _TO,
        message(_BATCH, genmsg() + _ACCEPT + _PAYLOAD, flags=1),
    ),
    Breach("NFQ208", "verdict header in a packet", _FROM, packet(_ACCEPT)),
    Breach("NFQ209", "two marks", _TO, verdict(_MARK, u32(3, 7))),
    Breach(
        "NFQ210",
        "copy mode with its padding",
        _TO,
        config(attribute(2, struct.pack(">IB3x", 0xFFFF, 2))),
    ),
    Breach(
        "NFQ210",
        "packet header with its padding",
        _FROM,
        packet(hdr=attribute(1, struct.pack(">IHBx", _ID, 0x0800, 3))),
    ),
    Breach(
        "NFQ211",
        "padding of ones",
        _FROM,
        packet(hdr=packet_hdr()[:-1] + b"\xff"),
    ),
    Breach(
        "NFQ211",
        "padding of a message",
        _TO,
        message(_VERDICT, genmsg() + _ACCEPT + attribute(10, ipv4(b"o"))[:-3], flags=1) + b"\1\1\1",
    ),
    Breach("NFQ212", "padding cut", _FROM, packet(attribute(10, ipv4(b"o"))[:-1])),
    Breach("NFQ213", "nest without its flag", _TO, verdict(attribute(11, u32(8, 1)))),
    Breach("NFQ213", "flag on a mark", _TO, verdict(u32(3 | _NESTED, 1))),
    Breach("NFQ214", "no packet header", _FROM, packet(_PAYLOAD, hdr=b"")),
    Breach("NFQ215", "no verdict header", _TO, message(_VERDICT, genmsg() + _MARK, flags=1)),
    Breach("NFQ215", "batch without a header", _TO, message(_BATCH, genmsg(), flags=1)),
    Breach("NFQ216", "mark before the header", _FROM, packet(packet_hdr(), hdr=_MARK)),
    Breach("NFQ217", "mark before the device", _FROM, packet(_MARK, u32(6, 2))),
    Breach("NFQ218", "hook 9", _FROM, packet(hdr=packet_hdr(hook=9))),
    Breach("NFQ219", "protocol little-endian", _FROM, packet(hdr=packet_hdr(protocol=0x0008))),
    Breach("NFQ220", "mark 0", _FROM, packet(u32(3, 0))),
    Breach("NFQ220", "priority 0", _FROM, packet(u32(21, 0))),
    Breach("NFQ221", "cap_len of what is there", _FROM, packet(u32(13, 24), _PAYLOAD)),
    Breach(
        "NFQ222",
        "VLAN tag of an IPv4 packet",
        _FROM,
        packet(attribute(19 | _NESTED, attribute(2, b"\0\5") + attribute(1, b"\x81\0")), _PAYLOAD),
    ),
    Breach("NFQ223", "uid alone", _FROM, packet(u32(16, 0))),
    Breach("NFQ223", "bridge port alone", _FROM, packet(u32(7, 3))),
    Breach(
        "NFQ224",
        "a million microseconds",
        _FROM,
        packet(attribute(4, struct.pack(">QQ", 1, 1_000_000))),
    ),
    Breach(
        "NFQ225",
        "address of 16 bytes",
        _FROM,
        packet(u32(5, 2), attribute(9, struct.pack(">HH8s", 16, 0, bytes(8)))),
    ),
    Breach("NFQ304", "PF_BIND", _TO, config(attribute(1, struct.pack(">BxH", 3, 2)))),
    Breach("NFQ306", "copy mode 3", _TO, config(attribute(2, struct.pack(">IB", 64, 3)))),
    Breach("NFQ307", "flags without mask", _TO, config(u32(5, 1))),
    Breach("NFQ308", "flag 32", _TO, config(u32(4, 32), u32(5, 32))),
    Breach("NFQ309", "mask alone", _TO, config(u32(4, 1))),
    Breach("NFQ310", "flags 3, mask 1", _TO, config(u32(4, 1), u32(5, 3))),
    Breach("NFQ311", "command 9", _TO, config(attribute(1, struct.pack(">BxH", 9, 0)))),
    Breach("NFQ312", "flags little-endian", _TO, config(u32(4, 1), u32(5, 0x01000000))),
    Breach("NFQ312", "range little-endian", _TO, config(attribute(2, struct.pack("<IB", 64, 2)))),
    Breach("NFQ312", "length little-endian", _TO, config(u32(3, 0x64000000))),
    Breach("NFQ312", "family little-endian", _TO, config(attribute(1, struct.pack("<BxH", 2, 10)))),
    Breach("NFQ314", "length 0", _TO, config(u32(3, 0))),
    Breach("NFQ316", "range 70000", _TO, config(attribute(2, struct.pack(">IB", 70000, 2)))),
    Breach("NFQ406", "STOLEN", _TO, verdict(code=2)),
    Breach("NFQ406", "verdict 6", _TO, verdict(code=6)),
    Breach("NFQ407", "ACCEPT with upper bits", _TO, verdict(code=0x00010001)),
    Breach("NFQ408", "ACCEPT little-endian", _TO, verdict(code=0x01000000)),
    Breach("NFQ422", "expectation alone", _TO, verdict(_EXPECTATION)),
    Breach(
        "NFQ423",
        "id of a connection",
        _TO,
        verdict(attribute(11 | _NESTED, u32(12, 1))),
    ),
    Breach(
        "NFQ426",
        "expectation of nothing",
        _TO,
        verdict(attribute(11 | _NESTED, u32(8, 1)) + attribute(15 | _NESTED, u32(8, 1))),
    ),
)
"""At least one datagram for each rule that one datagram alone can break."""
