"""Capture files made by hand, with no help from the code under test."""

from __future__ import annotations

import struct

SIGN = {"little": "<", "big": ">"}
NETLINK = 253


def option(number: int, value: bytes, order: str = "little") -> bytes:
    head = struct.pack(SIGN[order] + "HH", number, len(value))
    return head + value + bytes(-len(value) % 4)


def options(*pairs: tuple[int, bytes], order: str = "little") -> bytes:
    if not pairs:
        return b""
    return b"".join(option(n, v, order) for n, v in pairs) + option(0, b"", order)


def block(kind: int, body: bytes, order: str = "little") -> bytes:
    length = struct.pack(SIGN[order] + "I", len(body) + 12)
    return struct.pack(SIGN[order] + "I", kind) + length + body + length


def section(order: str = "little", opts: bytes = b"", version: int = 1) -> bytes:
    body = struct.pack(SIGN[order] + "IHHq", 0x1A2B3C4D, version, 0, -1)
    return block(0x0A0D0D0A, body + opts, order)


def interface(
    link_type: int = NETLINK, snap: int = 0, opts: bytes = b"", order: str = "little"
) -> bytes:
    return block(1, struct.pack(SIGN[order] + "HHI", link_type, 0, snap) + opts, order)


def enhanced(
    data: bytes,
    ticks: int = 0,
    *,
    index: int = 0,
    opts: bytes = b"",
    order: str = "little",
    original: int | None = None,
) -> bytes:
    size = len(data) if original is None else original
    head = struct.pack(
        SIGN[order] + "IIIII", index, ticks >> 32, ticks & 0xFFFFFFFF, len(data), size
    )
    return block(6, head + data + bytes(-len(data) % 4) + opts, order)


def obsolete(
    data: bytes, ticks: int = 0, *, index: int = 0, opts: bytes = b"", order: str = "little"
) -> bytes:
    head = struct.pack(
        SIGN[order] + "HHIIII", index, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data)
    )
    return block(2, head + data + bytes(-len(data) % 4) + opts, order)


def simple(data: bytes, original: int, order: str = "little") -> bytes:
    return block(3, struct.pack(SIGN[order] + "I", original) + data + bytes(-len(data) % 4), order)


def statistics(ticks: int = 0, opts: bytes = b"", order: str = "little") -> bytes:
    return block(
        5, struct.pack(SIGN[order] + "III", 0, ticks >> 32, ticks & 0xFFFFFFFF) + opts, order
    )


def cooked(datagram: bytes, packet_type: int = 4, family: int = 12, hardware: int = 824) -> bytes:
    return struct.pack(">HHH8xH", packet_type, hardware, 0, family) + datagram


def message(kind: int, body: bytes = b"\0\0\0\7", *, order: str = "little", seq: int = 0) -> bytes:
    """A netlink message; the body is an nfgenmsg of queue 7 by default."""
    return struct.pack(SIGN[order] + "IHHII", 16 + len(body), kind, 0, seq, 0) + body


def pcap(
    *packets: tuple[int, int, bytes],
    magic: int = 0xA1B2C3D4,
    link_type: int = NETLINK,
    order: str = "little",
    snap: int = 65535,
    version: int = 2,
) -> bytes:
    sign = SIGN[order]
    head = struct.pack(sign + "IHHiIII", magic, version, 4, 0, 0, snap, link_type)
    return head + b"".join(
        struct.pack(sign + "IIII", sec, part, len(data), len(data)) + data
        for sec, part, data in packets
    )
