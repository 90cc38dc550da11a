"""What program and kernel say to each other, as short as a test wants it; queue 7 throughout."""

from __future__ import annotations

import struct
from typing import TypeAlias

from trionfq.conformance.vectors._breaches import (
    attribute,
    genmsg,
    message,
    packet,
    packet_hdr,
    verdict,
)
from trionfq.schema import Direction

FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
Sent: TypeAlias = "tuple[Direction, bytes]"
ACK = 5


def params(mode: int = 2, copy_range: int = 0xFFFF) -> bytes:
    return attribute(2, struct.pack(">IB", copy_range, mode))


def command(number: int) -> bytes:
    return attribute(1, struct.pack(">BxH", number, 0))


def answer(request: bytes, error: int = 0, *, capped: bool = False) -> Sent:
    """The kernel's answer, which echoes a refused request unless it is capped."""
    echo = request if error and not capped else request[:16]
    flags = 0 if error and not capped else 0x100
    seq, portid = struct.unpack_from("<I", request, 8)[0], 4711
    body = struct.pack("<i", -error) + echo
    return FROM, message(2, body, flags=flags, seq=seq, portid=portid)


def arrives(number: int, *attributes: bytes, family: int = 2) -> Sent:
    return FROM, packet(*attributes, family=family, hdr=packet_hdr(number))


def decides(number: int, *attributes: bytes, code: int = 1) -> Sent:
    return TO, verdict(*attributes, code=code, packet_id=number, seq=number)


def batch(last: int, *attributes: bytes, code: int = 1) -> Sent:
    head = attribute(2, struct.pack(">II", code, last))
    return TO, message(0x303, genmsg() + head + b"".join(attributes), flags=1, seq=last)
