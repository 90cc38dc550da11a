"""Packets of many link layers made by hand, with no help from the code under test."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from tests import capture_bytes as made

MAC_A, MAC_B = bytes.fromhex("020000000a01"), bytes.fromhex("020000000b02")
IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
SLL, SLL2, NULL, LOOP, RAW, NFLOG = 113, 276, 0, 108, 101, 239


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def ipv4(data: bytes = b"data", *, protocol: int = 253, total: int | None = None) -> bytes:
    """An IPv4 packet; `total` is what its header says of its length."""
    length = 20 + len(data) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 7, 0, 64, protocol, 0)
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.2")
    summed = struct.pack("!H", checksum(head + addresses))
    return head[:10] + summed + addresses + data


def ipv6(data: bytes = b"data", *, protocol: int = 253, length: int | None = None) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2
    told = len(data) if length is None else length
    return struct.pack("!IHBB", 0x60000000, told, protocol, 64) + addresses + data


def ethernet(payload: bytes, protocol: int = IPV4, *tags: tuple[int, int]) -> bytes:
    """A frame; each tag is (EtherType, TCI), the outer one first."""
    head = MAC_B + MAC_A
    for ethertype, tci in tags:
        head += struct.pack("!HH", ethertype, tci)
    return head + struct.pack("!H", protocol) + payload


def sll(payload: bytes, protocol: int = IPV4, *, kind: int = 0, hardware: int = 1) -> bytes:
    return struct.pack("!HHH8sH", kind, hardware, 6, MAC_A + b"\xee\xee", protocol) + payload


def sll2(
    payload: bytes, protocol: int = IPV4, *, kind: int = 0, hardware: int = 1, index: int = 9
) -> bytes:
    head = struct.pack("!HHIHBB8s", protocol, 0, index, hardware, kind, 6, MAC_A + b"\xee\xee")
    return head + payload


def null(payload: bytes, family: int = 2, order: str = "little") -> bytes:
    return struct.pack(made.SIGN[order] + "I", family) + payload


def tlv(number: int, value: bytes, order: str = "little") -> bytes:
    head = struct.pack(made.SIGN[order] + "HH", 4 + len(value), number)
    return head + value + bytes(-len(value) % 4)


def nflog(payload: bytes | None, *attributes: bytes, order: str = "little") -> bytes:
    """An NFLOG packet of IPv4; attributes stand before the payload, the last of all."""
    data = b"" if payload is None else tlv(9, payload, order)
    return struct.pack("!BBH", 2, 0, 5) + b"".join(attributes) + data


def keeping(seen: list[Any]) -> Callable[[Any], dict[str, Any]]:
    """Chooses nothing for a packet, but keeps it."""

    def choose(found: Any) -> dict[str, Any]:
        seen.append(found)
        return {}

    return choose
