"""RFC 1071's sum and CRC32c, against definitions written out bit by bit and published values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionfq._checksum import _PIECE, crc32c, internet_checksum, ones_complement_sum


def sum_by_words(data: bytes) -> int:
    """RFC 1071 as its text reads: add 16-bit words, carry around."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        if total > 0xFFFF:
            total = (total & 0xFFFF) + 1
    return total


def crc_by_bits(data: bytes) -> int:
    """The Castagnoli CRC as long division, a bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            out = (register ^ byte >> bit) & 1
            register >>= 1
            if out:
                register ^= 0x82F63B78
    return register ^ 0xFFFFFFFF


def test_sum_of_rfc_1071_example() -> None:
    assert ones_complement_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@given(st.binary(max_size=200))
def test_sum_is_that_of_words(data: bytes) -> None:
    assert ones_complement_sum(data) == sum_by_words(data)


@pytest.mark.parametrize("size", [_PIECE - 1, _PIECE, _PIECE + 1, 2 * _PIECE, 1501, 65_535])
def test_sum_of_large_data_is_that_of_words(size: int) -> None:
    data = bytes(index * 37 % 251 for index in range(size))
    assert ones_complement_sum(data) == sum_by_words(data)
    assert ones_complement_sum(bytearray(data)) == sum_by_words(data)


@pytest.mark.parametrize("size", [0, 1, 2, 20, 5000])
def test_two_zeros_stay_apart(size: int) -> None:
    assert ones_complement_sum(bytes(size)) == 0
    assert internet_checksum(bytes(size)) == 0xFFFF
    assert ones_complement_sum(b"\xff\xff" + bytes(size)) == 0xFFFF
    assert ones_complement_sum(b"\x7f\xff\x80\x00" + bytes(size)) == 0xFFFF


@pytest.mark.parametrize(
    ("data", "checksum"),
    [  # RFC 3720 appendix B.4, bytes as transmitted
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
        (
            bytes.fromhex(
                "01c00000000000000000000000000000140000000000040000000014000000182800000000000000"
                "0200000000000000"
            ),
            "563a96d9",
        ),
    ],
)
def test_crc32c_of_rfc_3720_examples(data: bytes, checksum: str) -> None:
    assert crc32c(data).to_bytes(4, "little").hex() == checksum


@given(st.binary(max_size=300))
def test_crc32c_is_long_division(data: bytes) -> None:
    assert crc32c(data) == crc_by_bits(data)
    assert crc32c(bytearray(data)) == crc_by_bits(data)


@pytest.mark.parametrize("power", range(4, 12))
def test_crc32c_is_right_around_each_fold(power: int) -> None:
    for size in range((1 << power) + 1, (1 << power) + 7):
        data = bytes(index * 73 % 255 for index in range(size))
        assert crc32c(data) == crc_by_bits(data)


def test_crc32c_of_the_largest_packet_is_long_division() -> None:
    data = bytes(index * 73 % 255 for index in range(65_515))
    assert crc32c(data) == crc_by_bits(data)
