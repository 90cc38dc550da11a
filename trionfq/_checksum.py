"""The two checksums of the Internet's transports: RFC 1071's sum and SCTP's CRC32c.

Both are pure Python, so both lean on what the interpreter does in C: long integers for the sum,
``bytes.translate`` and long integers for the CRC. Where numbers stand below they were measured on
CPython 3.11.
"""

from __future__ import annotations

import functools

# 0x1EDC6F41 of RFC 9260 appendix A, bit-reversed, since the register shifts right.
_POLYNOMIAL = 0x82F63B78
# Bytes summed as one long integer; even, so that 16-bit words stay aligned. Reading bytes into
# an integer costs 0.8 ns a byte, the remainder another 1.4, so larger data are read in pieces,
# the pieces added, and one remainder taken: 65,000 bytes 77 us against 146 in one piece. Pieces
# of 384 to 4,096 bytes differ by less than a third; sum(array("H")) took 680 us.
_PIECE = 768
# Below 2**_SHORT + 3 bytes one look-up a byte is cheaper than another fold.
_SHORT = 4


def ones_complement_sum(data: bytes | bytearray) -> int:
    """Give the 16-bit ones' complement sum of big-endian words (RFC 1071), not complemented.

    An odd last byte counts as the high half of a word. The two zeros of ones' complement stay
    apart: the sum is 0 only if every byte is, otherwise a multiple of 65,535 gives 0xffff.
    """
    size = len(data)
    read = int.from_bytes
    if size <= _PIECE:
        total = read(data, "big") << 8 * (size & 1)
    else:
        whole = size - size % _PIECE
        total = read(data[whole:], "big") << 8 * (size & 1)
        for start in range(0, whole, _PIECE):
            total += read(data[start : start + _PIECE], "big")
    # 2**16 is 1 modulo 65,535, so the remainder is the sum of the words with end-around carry.
    return total % 0xFFFF or (0xFFFF if total else 0)


def internet_checksum(data: bytes | bytearray) -> int:
    """Give the RFC 1071 checksum: the complement of the sum, for a zeroed checksum field."""
    return ones_complement_sum(data) ^ 0xFFFF


def crc32c(data: bytes | bytearray) -> int:
    """Give the CRC32c (Castagnoli) of RFC 9260 appendix A and RFC 3720 B.4.

    SCTP transmits it least significant byte first.

    The message is folded in half until little is left. A byte that enters the register and is
    followed by D - 1 zero bytes leaves four bytes in it, and a register is the same as those four
    bytes standing D later in the message: so a half can be removed by adding (xor) the images of
    its bytes to the other half. Four ``bytes.translate`` calls find the images of a whole half.
    1,400 bytes: 26 us against 159 with one table look-up a byte, 101 with four tables; 65,000
    bytes: 0.7 ms against 7.4.
    """
    size = len(data)
    register = 0xFFFFFFFF
    if size > 3 + (1 << _SHORT):
        read = int.from_bytes
        # The register's first value is the same as four more bits-inverted message bytes.
        data = (read(data, "little") ^ register).to_bytes(size, "little")
        register = 0
        for power in range((size - 4).bit_length() - 1, _SHORT - 1, -1):
            distance = 1 << power
            half = size - distance - 3  # so that the last image ends where the message does
            if half <= 0:
                continue
            removed, rest = data[:half], read(data[half:], "little")
            first, second, third, fourth = _images(power)
            image = (
                read(removed.translate(first), "little")
                ^ read(removed.translate(second), "little") << 8
                ^ read(removed.translate(third), "little") << 16
                ^ read(removed.translate(fourth), "little") << 24
            )
            size = distance + 3
            data = (rest ^ image << 8 * (distance - half)).to_bytes(size, "little")
    table = _table()
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def _advance(register: int, step: tuple[int, ...]) -> int:
    """Apply a linear map of registers, given as the images of the 32 single bits."""
    image = 0
    for bit in step:
        if register & 1:
            image ^= bit
        register >>= 1
    return image


@functools.cache
def _step(power: int) -> tuple[int, ...]:
    """Give the images of the 32 single-bit registers after 2**power zero bytes."""
    if power:
        half = _step(power - 1)
        return tuple(_advance(bit, half) for bit in half)
    images = []
    for bit in range(32):
        register = 1 << bit
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        images.append(register)
    return tuple(images)


@functools.cache
def _table() -> tuple[int, ...]:
    """Give what each byte value leaves in the register."""
    return tuple(_advance(byte, _step(0)) for byte in range(256))


@functools.cache
def _images(power: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Give four translation tables: the bytes that one byte leaves 2**power bytes later."""
    registers = [_advance(byte, _step(power)) for byte in range(256)]
    first, second, third, fourth = (
        bytes(register >> shift & 0xFF for register in registers) for shift in (0, 8, 16, 24)
    )
    return first, second, third, fourth
