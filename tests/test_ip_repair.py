"""A rewritten packet is what its sender would have sent; a valid one stays as it is."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import MIP6MH_BU, IPv6, IPv6ExtHdrFragment
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from tests.ip_samples import (
    CHECKSUM_AT,
    SAMPLES,
    SOURCE4,
    SOURCE6,
    STOP4,
    STOP6,
    Sample,
    between,
    ipv4,
    ipv6,
    packed,
    pseudo,
    sum_by_words,
    summed,
    tcp,
    udp,
    udp_lite,
)
from tests.test_ip import PAYLOADS
from trionfq._ip import IPView
from trionfq._ip_repair import RepairResult, Unfixed, repair

each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
OLD = b"some old text"
NEW = [b"", b"x", b"odd", b"four", b"a text that is longer than the old one", b"\xff\xfe" * 650]
# Without the original, nothing in these tells data from padding, or a whole coverage from a part.
AMBIGUOUS = {
    "udp without checksum",
    "udp over ipv6 without checksum",
    "udp-lite, header",
    "udp-lite, covered by length",
}


def checksum_fields(sample: Sample, packet: bytes) -> list[range]:
    """Where the packet has checksums."""
    start = IPView(packet).transport_offset
    assert start is not None
    at, size = CHECKSUM_AT[sample.protocol]
    fields = [range(start + at, start + at + size)]
    return [*fields, range(10, 12)] if packet[0] >> 4 == 4 else fields


def corrupted(packet: bytes, fields: list[range], mask: bytes) -> bytes:
    changed = bytearray(packet)
    for field in fields:
        for index, place in enumerate(field):
            changed[place] ^= mask[index % len(mask)]
    return bytes(changed)


@each_sample
def test_valid_packet_comes_back_as_the_same_object(sample: Sample) -> None:
    for data in (OLD, *NEW):
        packet = sample.make(data)
        for result in (
            repair(packet),
            repair(packet, original=packet),
            repair(packet, original=sample.make(b"another original")),
        ):
            assert result == RepairResult(packet, sample.unfixed)
            assert result.payload is packet


@each_sample
def test_rewritten_packet_is_what_its_sender_would_have_sent(sample: Sample) -> None:
    original = sample.make(OLD)
    for data in NEW:
        rewritten = original[: len(original) - len(OLD)] + data
        expected = sample.make(data)
        if sample.name == "udp-lite, header":  # its coverage does not depend on the size
            assert expected[24:26] == original[24:26]
        assert repair(rewritten, original=original) == RepairResult(expected, sample.unfixed)


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample.name not in AMBIGUOUS])
def test_rewritten_packet_is_repaired_without_its_original_as_well(sample: Sample) -> None:
    original = sample.make(OLD)
    for data in NEW:
        rewritten = original[: len(original) - len(OLD)] + data
        assert repair(rewritten) == RepairResult(sample.make(data), sample.unfixed)


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample.name in AMBIGUOUS])
def test_appended_data_that_no_checksum_covers_need_the_original(sample: Sample) -> None:
    original = sample.make(OLD)
    result = repair(original + b"more")
    if sample.name != "udp-lite, covered by length":
        assert result.payload == original + b"more"
    assert set(result.unfixed) == {Unfixed.TRAILING_BYTES, *sample.unfixed}
    expected = RepairResult(sample.make(OLD + b"more"), sample.unfixed)
    assert repair(original + b"more", original=original) == expected


@each_sample
def test_corrupted_checksums_are_restored(sample: Sample) -> None:
    packet = sample.make(OLD)
    fields = checksum_fields(sample, packet)
    if "without checksum" in sample.name:
        fields = fields[1:]
    broken = corrupted(packet, fields, b"\x55")
    assert (broken == packet) == (not fields)
    assert repair(broken) == RepairResult(packet, sample.unfixed)
    assert repair(broken, original=packet) == RepairResult(packet, sample.unfixed)


@settings(deadline=None)
@given(st.sampled_from(SAMPLES), st.binary(max_size=40), st.binary(min_size=1, max_size=4))
def test_any_corruption_of_checksums_is_restored(sample: Sample, data: bytes, mask: bytes) -> None:
    packet = sample.make(data)
    fields = checksum_fields(sample, packet)
    if "without checksum" in sample.name:
        fields = fields[1:]
    broken = corrupted(packet, fields, mask)
    # A UDP checksum of 0 is none, unless the original had one.
    assert repair(broken, original=packet) == RepairResult(packet, sample.unfixed)


@settings(deadline=None)
@given(st.sampled_from(SAMPLES), st.binary(min_size=1, max_size=40), st.binary(max_size=40))
def test_any_rewriting_is_repaired(sample: Sample, before: bytes, after: bytes) -> None:
    original = sample.make(before)
    rewritten = original[: len(original) - len(before)] + after
    result = repair(rewritten, original=original)
    assert result == RepairResult(sample.make(after), sample.unfixed)


@settings(max_examples=300)
@given(PAYLOADS, st.none() | PAYLOADS, st.booleans())
def test_any_bytes_are_repaired_once_and_for_all(
    payload: bytes, original: bytes | None, not_ready: bool
) -> None:
    first = repair(payload, original=original, checksum_not_ready=not_ready)
    assert len(first.payload) == len(payload)
    assert len(set(first.unfixed)) == len(first.unfixed)
    second = repair(first.payload, original=original, checksum_not_ready=not_ready)
    assert second.payload == first.payload
    # An IP length, a header checksum, a UDP length and a transport checksum; or a jumbo length.
    different = [a != b for a, b in zip(payload, first.payload, strict=True)]
    assert sum(different) <= 8


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.data(), st.booleans())
def test_any_damage_is_repaired_once_and_for_all(
    sample: Sample, data: st.DataObject, known: bool
) -> None:
    original = sample.make(b"0123456789")
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    payload = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    payload += data.draw(st.binary(max_size=9))
    first = repair(payload, original=original if known else None)
    second = repair(first.payload, original=original if known else None)
    assert second.payload == first.payload
    assert second.unfixed == first.unfixed


@pytest.mark.parametrize("size", [29, 30, 31, 32])
def test_lengths_are_exact_where_they_are_no_multiple_of_four(size: int) -> None:
    original = bytes(IP(src=SOURCE4, dst=STOP4) / udp(b"1234567"))
    result = repair(original[:28] + b"abcd"[: size - 28], original=original)
    assert len(result.payload) == size
    assert result.payload[2:4] == size.to_bytes(2, "big")
    assert result.payload[24:26] == (size - 20).to_bytes(2, "big")


class TestUdpChecksumOfZero:
    """RFC 768, RFC 8200 section 8.1, RFC 6936."""

    def test_none_stays_none(self) -> None:
        original = bytes(IP(src=SOURCE4, dst=STOP4) / UDP(chksum=0) / b"old")
        result = repair(original[:28] + b"newer", original=original)
        assert result.payload == bytes(IP(src=SOURCE4, dst=STOP4) / UDP(chksum=0) / b"newer")

    @pytest.mark.parametrize("layer", [IP(src=SOURCE4, dst=STOP4), IPv6(src=SOURCE6, dst=STOP6)])
    def test_zero_in_place_of_a_checksum_is_computed(self, layer: IP | IPv6) -> None:
        original = bytes(layer / udp(b"old"))
        rewritten = bytes(layer / UDP(sport=1000, dport=53, chksum=0) / b"new")
        assert repair(rewritten, original=original) == (bytes(layer / udp(b"new")), ())

    @pytest.mark.parametrize("layer", [IP(src=SOURCE4, dst=STOP4), IPv6(src=SOURCE6, dst=STOP6)])
    def test_zero_that_is_not_ready_is_computed(self, layer: IP | IPv6) -> None:
        rewritten = bytes(layer / UDP(sport=1000, dport=53, chksum=0) / b"new")
        expected = bytes(layer / udp(b"new"))
        assert repair(rewritten, checksum_not_ready=True).payload == expected
        assert repair(rewritten, original=rewritten, checksum_not_ready=True).payload == expected

    @pytest.mark.parametrize("source", [SOURCE4, SOURCE6])
    def test_computed_zero_becomes_all_ones(self, source: str) -> None:
        destination = STOP4 if source == SOURCE4 else STOP6
        # The datum that makes the rest sum to 0xffff, so that the complement is 0.
        plain = bytes.fromhex("03e80035000a0000")
        rest = sum_by_words(pseudo(source, destination, 17, 10) + plain)
        datagram = plain + (0xFFFF - rest).to_bytes(2, "big")
        assert sum_by_words(pseudo(source, destination, 17, 10) + datagram) == 0xFFFF
        make = ipv4 if source == SOURCE4 else ipv6
        expected = make(17, datagram[:6] + b"\xff\xff" + datagram[8:])
        broken = make(17, datagram[:6] + b"\x12\x34" + datagram[8:])
        assert repair(broken) == (expected, ())
        assert repair(expected).payload is expected
        # Zero would verify as a sum, yet says "none".
        none = make(17, datagram)
        assert repair(none, checksum_not_ready=True) == (expected, ())

    def test_tcp_keeps_a_computed_zero(self) -> None:
        plain = bytearray(between(TCP(sport=1, dport=2, chksum=0) / b"\0\0", SOURCE4, STOP4))
        rest = sum_by_words(pseudo(SOURCE4, STOP4, 6, len(plain)) + plain)
        plain[-2:] = (0xFFFF - rest).to_bytes(2, "big")
        expected = ipv4(6, bytes(plain))
        plain[16:18] = b"\x12\x34"
        assert repair(ipv4(6, bytes(plain))) == (expected, ())


def test_both_zeros_of_ones_complement_are_valid() -> None:
    zero = bytes.fromhex("0800000000000000f7ff")  # an echo request whose words sum to 0xffff
    for checksum in (b"\0\0", b"\xff\xff"):
        packet = ipv4(1, zero[:2] + checksum + zero[4:])
        assert repair(packet).payload is packet


def test_icmp_of_nothing_but_zeros_has_a_checksum_of_ones() -> None:
    assert repair(ipv4(1, bytes(8))) == (ipv4(1, b"\0\0\xff\xff" + bytes(4)), ())
    assert repair(ipv4(1, b"\0\0\x12\x34" + bytes(4))) == (ipv4(1, b"\0\0\xff\xff" + bytes(4)), ())


class TestTrailingBytes:
    """Bytes behind the IP length, such as Ethernet's padding."""

    @each_sample
    def test_trailer_of_a_valid_packet_stays(self, sample: Sample) -> None:
        packet = sample.make(OLD) + b"trailer"
        for result in (repair(packet), repair(packet, original=packet)):
            assert result.payload is packet
            assert set(result.unfixed) == {Unfixed.TRAILING_BYTES, *sample.unfixed}

    @each_sample
    def test_trailer_stays_behind_rewritten_data(self, sample: Sample) -> None:
        original = sample.make(OLD) + b"trailer"
        for data in NEW:
            rewritten = sample.make(OLD)[: -len(OLD)] + data + b"trailer"
            result = repair(rewritten, original=original)
            assert result.payload == sample.make(data) + b"trailer"
            assert Unfixed.TRAILING_BYTES in result.unfixed

    @each_sample
    @pytest.mark.parametrize("trailer", [b"trailer", bytes(2), b"x"])
    def test_trailer_stays_a_trailer_though_the_old_length_happens_to_be_the_size(
        self, sample: Sample, trailer: bytes
    ) -> None:
        original = sample.make(OLD) + trailer
        data = bytes(range(1, 1 + len(OLD) - len(trailer)))
        rewritten = sample.make(OLD)[: -len(OLD)] + data + trailer
        result = repair(rewritten, original=original)
        assert result.payload == sample.make(data) + trailer
        assert repair(result.payload, original=original).payload == result.payload

    @pytest.mark.parametrize(
        "sample", [s for s in SAMPLES if s.name not in AMBIGUOUS], ids=lambda s: s.name
    )
    def test_a_packet_made_anew_may_end_as_the_trailer_did(self, sample: Sample) -> None:
        original = sample.make(OLD) + bytes(2)
        anew = sample.make(b"another one" + bytes(2))
        assert repair(anew, original=original).payload is anew

    @each_sample
    def test_trailer_that_was_cut_off_is_not_looked_for(self, sample: Sample) -> None:
        original = sample.make(OLD) + b"trailer"
        for data in NEW:
            rewritten = sample.make(OLD)[: -len(OLD)] + data
            assert repair(rewritten, original=original).payload == sample.make(data)

    def test_corrupted_header_checksum_does_not_make_a_trailer_data(self) -> None:
        packet = SAMPLES[0].make(OLD)
        broken = corrupted(packet, [range(10, 12)], b"\x55")
        assert repair(broken + b"trailer").payload == packet + b"trailer"

    def test_appended_data_are_data_if_the_original_is_known(self) -> None:
        original = SAMPLES[0].make(OLD)
        assert repair(original + b"more", original=original).payload == SAMPLES[0].make(
            OLD + b"more"
        )

    def test_bytes_behind_the_udp_length_stay(self) -> None:
        datagram = between(udp(b"data"), SOURCE4, STOP4)
        packet = ipv4(17, datagram + b"surplus")
        for result in (repair(packet), repair(packet, original=packet)):
            assert result.payload is packet
            assert result.unfixed == (Unfixed.TRAILING_BYTES,)
        rewritten = packet[:28] + b"more data" + b"surplus"
        expected = ipv4(17, between(udp(b"more data"), SOURCE4, STOP4) + b"surplus")
        assert repair(rewritten, original=packet).payload == expected

    def test_extension_header_that_reaches_into_the_trailer_is_cut_off(self) -> None:
        whole = ipv6(17, between(udp(b"data"), SOURCE6, STOP6), (60, bytes([0, 1, 4, 0, 0, 0, 0])))
        packet = whole[:4] + b"\0\4" + whole[6:]
        assert repair(packet) == (packet, (Unfixed.TRAILING_BYTES, Unfixed.HEADERS))

    def test_a_length_of_nothing_that_is_followed_by_nothing_stays(self) -> None:
        packet = bytes(IPv6(src=SOURCE6, dst=STOP6, nh=59, plen=0)) + b"padding"
        assert repair(packet) == (packet, (Unfixed.TRAILING_BYTES,))


class TestFragments:
    """Layer 4 of a fragment is neither parsed nor repaired."""

    @pytest.mark.parametrize(("flags", "offset"), [("MF", 0), ("MF", 185), (0, 370)])
    def test_ipv4_fragment_gets_its_header_repaired_only(self, flags: object, offset: int) -> None:
        header = IP(src=SOURCE4, dst=STOP4, proto=17, flags=flags, frag=offset)
        datagram = UDP(sport=1, dport=2, len=4000, chksum=0x1234)
        original = bytes(header / datagram / b"old")
        assert repair(original) == (original, (Unfixed.FRAGMENT,))
        broken = bytearray(original[:28] + b"new and longer")
        expected = bytes(header / datagram / b"new and longer")
        assert repair(bytes(broken), original=original) == (expected, (Unfixed.FRAGMENT,))

    @pytest.mark.parametrize(("more", "offset"), [(1, 0), (1, 181), (0, 362)])
    def test_ipv6_fragment_gets_its_length_repaired_only(self, more: int, offset: int) -> None:
        layers = IPv6(src=SOURCE6, dst=STOP6) / IPv6ExtHdrFragment(m=more, offset=offset, nh=17)
        datagram = bytes(UDP(sport=1, dport=2, len=4000, chksum=0x1234))
        original = bytes(layers / Raw(datagram + b"old"))
        assert repair(original) == (original, (Unfixed.FRAGMENT,))
        expected = bytes(layers / Raw(datagram + b"new and longer"))
        rewritten = original[:-3] + b"new and longer"
        assert repair(rewritten, original=original) == (expected, (Unfixed.FRAGMENT,))


class TestLengths:
    """Lengths of 0, beyond 65,535, and of copies that are not whole."""

    @each_sample
    def test_length_of_zero_is_filled_in(self, sample: Sample) -> None:
        packet = sample.make(OLD)
        zeroed = bytearray(packet)
        field = slice(2, 4) if packet[0] >> 4 == 4 else slice(4, 6)
        zeroed[field] = bytes(2)
        assert repair(bytes(zeroed), original=bytes(zeroed)) == (packet, sample.unfixed)
        assert repair(bytes(zeroed)) == (packet, sample.unfixed)

    @pytest.mark.parametrize("version", [4, 6])
    def test_offload_packet_above_64_kib_keeps_its_length_of_zero(self, version: int) -> None:
        content = bytes(TCP(sport=1, dport=2, chksum=0) / bytes(70_000))
        if version == 4:
            plain = ipv4(6, b"")
            header = summed(plain[:2] + bytes(2) + plain[4:10] + bytes(2) + plain[12:], 10, b"")
            addresses = packed(SOURCE4, STOP4)
        else:
            header, addresses = ipv6(6, b""), packed(SOURCE6, STOP6)
        # The kernel's sum has a length of 32 bits in both families (csum_tcpudp_magic).
        start = addresses + len(content).to_bytes(4, "big") + b"\0\0\0\6"
        expected = header + summed(content, 16, start)
        assert repair(header + content) == (expected, ())
        at = 2 if version == 4 else 4
        stated = header[:at] + b"\1\0" + header[at + 2 :] + content
        assert repair(stated) == (stated, (Unfixed.LENGTH,))

    def test_jumbo_payload_option_has_the_length(self) -> None:
        def make(data: bytes) -> bytes:
            content = bytes(UDP(sport=1, dport=2, len=0, chksum=0) / data)
            length = 8 + len(content)
            checked = summed(content, 6, pseudo(SOURCE6, STOP6, 17, len(content)))
            option = b"\0\xc2\4" + length.to_bytes(4, "big")
            header = bytes(IPv6(src=SOURCE6, dst=STOP6, nh=0, plen=0))
            return header + bytes([17]) + option + checked

        original = make(bytes(70_000))
        assert repair(original).payload is original
        assert IPView(original).source_port == 1
        longer = original + b"more"
        assert repair(longer, original=original) == (make(bytes(70_000) + b"more"), ())
        assert repair(original[:-9], original=original) == (make(bytes(69_991)), ())
        short = original[:1000]
        assert repair(short, original=original) == (short, (Unfixed.JUMBO,))
        both = original[:4] + b"\1\0" + original[6:]
        assert repair(both) == (both, (Unfixed.JUMBO,))

    @each_sample
    def test_truncated_copy_is_left_alone(self, sample: Sample) -> None:
        packet = sample.make(bytes(100))
        copy = packet[:-50]
        assert repair(copy, original=copy) == (copy, (Unfixed.TRUNCATED,))
        changed = copy[:-1] + b"x"
        assert repair(changed, original=copy) == (changed, (Unfixed.TRUNCATED,))
        # A whole packet in its place is one, and without the original it is a shortened one.
        whole = sample.make(b"whole")
        assert repair(whole, original=copy).payload == whole

    def test_wrong_udp_length_is_repaired_though_the_original_had_it(self) -> None:
        wrong = bytes(IP(src=SOURCE4, dst=STOP4) / UDP(sport=1000, dport=53, len=99) / b"data")
        expected = bytes(IP(src=SOURCE4, dst=STOP4) / udp(b"data"))
        assert repair(wrong, original=wrong) == (expected, ())


class TestUdpLite:
    """RFC 3828."""

    def test_whole_coverage_stays_whole_if_the_original_is_known(self) -> None:
        original = ipv4(136, udp_lite(OLD, 8 + len(OLD), SOURCE4, STOP4))
        longer = original + b" and more"
        expected = ipv4(136, udp_lite(OLD + b" and more", 17 + len(OLD), SOURCE4, STOP4))
        assert repair(longer, original=original) == (expected, ())

    def test_partial_coverage_stays_and_data_behind_it_are_not_summed(self) -> None:
        original = ipv4(136, udp_lite(b"headtail", 12, SOURCE4, STOP4))
        changed = original[:-4] + b"TAIL"
        assert repair(changed, original=original).payload is changed

    def test_coverage_beyond_the_data_becomes_whole(self) -> None:
        original = ipv4(136, udp_lite(b"headtail", 14, SOURCE4, STOP4))
        expected = ipv4(136, udp_lite(b"he", 10, SOURCE4, STOP4))
        assert repair(original[:-6], original=original) == (expected, ())

    def test_checksum_of_zero_is_computed(self) -> None:
        packet = ipv4(136, udp_lite(b"data", 0, SOURCE4, STOP4))
        assert repair(packet[:26] + bytes(2) + packet[28:]) == (packet, ())


class TestSctp:
    """RFC 9260, and what came before it."""

    def test_adler32_of_rfc_2960_stays_and_is_given_again(self) -> None:
        def make(data: bytes) -> bytes:
            content = bytes(SCTP(sport=1, dport=2, tag=3, chksum=0) / Raw(data))
            return ipv4(132, content[:8] + zlib.adler32(content).to_bytes(4, "big") + content[12:])

        original = make(b"data")
        assert repair(original).payload is original
        assert repair(original[:32] + b"other data", original=original) == (make(b"other data"), ())


class TestMobilityAndHip:
    """Extension headers with a checksum of their own."""

    def test_mobility_header(self) -> None:
        packet = bytes(IPv6(src=SOURCE6, dst=STOP6) / MIP6MH_BU(seq=7))
        assert repair(packet) == (packet, ())
        broken = packet[:44] + b"\x12\x34" + packet[46:]
        assert repair(broken) == (packet, ())

    def test_host_identity_protocol(self) -> None:
        content = bytes([59, 4, 1, 0x21, 0, 0, 0, 0]) + bytes(range(32))
        for source, destination, make in ((SOURCE4, STOP4, ipv4), (SOURCE6, STOP6, ipv6)):
            packet = make(139, summed(content, 4, pseudo(source, destination, 139, len(content))))
            assert repair(packet) == (packet, ())
            assert repair(make(139, content)) == (packet, ())


class TestSignatures:
    """What needs a key is named; the checksum around it is repaired all the same."""

    @pytest.mark.parametrize(
        ("options", "signed"),
        [
            ([("MD5", bytes(16))], True),
            ([("NOP", None), ("NOP", None), (29, bytes(14))], True),
            ([("Timestamp", (1, 2)), ("MD5", bytes(16))], True),
            ([("MSS", 1460), ("NOP", None), ("WScale", 7)], False),
            ([("EOL", None), (19, bytes(16))], False),
            ([(200, b"")], False),
        ],
    )
    @pytest.mark.parametrize("layer", [IP(src=SOURCE4, dst=STOP4), IPv6(src=SOURCE6, dst=STOP6)])
    def test_tcp(self, layer: IP | IPv6, options: list[object], signed: bool) -> None:
        whole = bytes(layer / TCP(sport=1, dport=2, options=options) / b"new data")
        rewritten = whole[:-8] + b"old data"
        unfixed = (Unfixed.AUTHENTICATION,) if signed else ()
        assert repair(rewritten[:-8] + b"new data") == (whole, unfixed)
        result = repair(rewritten)
        assert result.unfixed == unfixed
        assert result.payload != whole

    def test_tcp_options_that_make_no_sense_end_the_search(self) -> None:
        for options in (b"\x08\0\x13\x12", b"\x08\1\x13\x12", b"\1\1\1\x13", b"\x08\xff\x13\0"):
            content = bytearray(bytes(TCP(sport=1, dport=2, dataofs=6)) + options + b"\x13\x12")
            assert repair(ipv4(6, bytes(content))).unfixed == ()

    def test_sctp(self) -> None:
        data = b"\0\3\0\x11" + bytes(13) + bytes(3)
        for chunks, signed in (
            (data, False),
            (b"\x0f\0\0\x08\0\0\0\1" + data, True),
            (data + b"\x0f\0\0\x08\0\0\0\1", True),
            (b"\0\0\0\0\x0f\0\0\x08\0\0\0\1", False),
        ):
            packet = bytes(IP(src=SOURCE4, dst=STOP4) / SCTP(sport=1, dport=2) / Raw(chunks))
            assert repair(packet).unfixed == ((Unfixed.AUTHENTICATION,) if signed else ())


class TestChecksumInside:
    """What lacks its checksum may be a packet in a tunnel: the outer one then is right or none."""

    INNER = bytes(IP(src=SOURCE4, dst=STOP4) / TCP(sport=1, dport=2, chksum=0x1234) / b"inner")
    OUTER = (
        bytes(IP(src=SOURCE4, dst=STOP4) / udp(INNER)),
        bytes(IP(src=SOURCE4, dst=STOP4) / UDP(dport=4789, chksum=0) / INNER),
        bytes(IPv6(src=SOURCE6, dst=STOP6) / udp(INNER)),
        bytes(IPv6(src=SOURCE6, dst=STOP6) / UDP(dport=4789, len=8 + len(INNER)) / INNER),
        bytes(IP(src=SOURCE4, dst=STOP4) / IP(INNER)),
        bytes(IP(src=SOURCE4, dst=STOP4, proto=47) / Raw(b"\0\0\x08\0" + INNER)),
        bytes(IP(src=SOURCE4, dst=STOP4) / udp(INNER)) + b"padding",
    )

    @pytest.mark.parametrize("original", OUTER)
    def test_it_is_said(self, original: bytes) -> None:
        rewritten = original.replace(b"inner", b"other")
        assert (
            Unfixed.INNER_CHECKSUM
            in repair(rewritten, original=original, checksum_not_ready=True).unfixed
        )
        assert Unfixed.INNER_CHECKSUM not in repair(rewritten, original=original).unfixed

    @each_sample
    def test_an_outer_checksum_that_is_not_ready_is_the_one(self, sample: Sample) -> None:
        packet = sample.make(OLD)
        if "without checksum" in sample.name:
            return
        partial = corrupted(packet, checksum_fields(sample, packet)[:1], b"\x55\x44")
        if sample.protocol == 17:
            # What the kernel leaves in the field: the pseudo header's sum, which the datagram's own
            # words, their checksum included, complete to 0xffff.
            at = checksum_fields(sample, packet)[0]
            words = packet[at.start - 6 :]
            sum_of_pseudo = 0xFFFF - sum_by_words(words) or 0xFFFF
            partial = packet[: at.start] + sum_of_pseudo.to_bytes(2, "big") + packet[at.stop :]
        result = repair(partial, original=partial, checksum_not_ready=True)
        assert result == RepairResult(packet, sample.unfixed)

    def test_what_cannot_be_judged_is_not(self) -> None:
        fragment = bytes(IP(src=SOURCE4, dst=STOP4, proto=17, flags="MF") / Raw(bytes(16)))
        for original in (fragment, b"", b"\x45", ipv4(50, bytes(40))):
            result = repair(fragment, original=original, checksum_not_ready=True)
            assert result == (fragment, (Unfixed.FRAGMENT,))


_OPTIONS_CUT = b"\x83\x0b\x04" + bytes(5)  # a source route of 11 bytes in 8
LEFT_ALONE: list[tuple[bytes, Unfixed]] = [
    (b"", Unfixed.NOT_IP),
    (b"\x50" + bytes(60), Unfixed.NOT_IP),
    (bytes(60), Unfixed.NOT_IP),
    (ipv4(17, b"")[:19], Unfixed.IP_HEADER),
    (ipv6(17, b"")[:39], Unfixed.IP_HEADER),
    (b"\x44" + ipv4(17, bytes(8))[1:], Unfixed.IP_HEADER),
    (b"\x4f" + ipv4(17, bytes(8))[1:], Unfixed.IP_HEADER),
    (ipv4(17, bytes(8), options=_OPTIONS_CUT), Unfixed.HEADERS),
    (ipv4(17, bytes(8), options=b"\x83\x07\x03" + bytes(5)), Unfixed.HEADERS),
    (ipv4(17, bytes(8), options=b"\x83\x07\x05" + bytes(5)), Unfixed.HEADERS),
    (ipv4(17, bytes(8), options=b"\x83\x06\x04" + bytes(5)), Unfixed.HEADERS),
    (
        ipv4(17, bytes(8), options=b"\x83\x07\x04\1\1\1\1\x89\x07\x04\1\1\1\1" + b"\0\0"),
        Unfixed.HEADERS,
    ),
    (ipv4(17, bytes(8), options=b"\x01\x01\x01\x44"), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (0, bytes([0, 5, 9]) + bytes(4))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (0, bytes([0, 0xC2, 3]) + bytes(4))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (60, bytes([0, 0xC9, 4]) + bytes(4))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (60, bytes([0, 0, 0, 0, 0, 0, 1]))), Unfixed.HEADERS),
    (ipv6(17, b"", (60, bytes([9]) + bytes(14))), Unfixed.HEADERS),
    (ipv6(43, b"\x11\0\0"), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([1, 0, 1]) + bytes(12))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([2, 0, 2]) + bytes(20))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([2, 4, 1, 1]) + bytes(19))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([2, 4, 3, 0]) + bytes(19))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([1, 3, 1, 0xF0]) + bytes(11))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([1, 3, 9, 0xFF]) + bytes(11))), Unfixed.HEADERS),
    (ipv6(17, bytes(8), (43, bytes([0, 5, 1]) + bytes(4))), Unfixed.ROUTE),
    (ipv6(17, bytes(8), (43, bytes([0, 200, 1]) + bytes(4))), Unfixed.ROUTE),
    (ipv4(17, bytes(7)), Unfixed.TRANSPORT_HEADER),
    (ipv4(6, bytes(19)), Unfixed.TRANSPORT_HEADER),
    (ipv4(1, bytes(3)), Unfixed.TRANSPORT_HEADER),
    (ipv6(58, bytes(3)), Unfixed.TRANSPORT_HEADER),
    (ipv4(132, bytes(11)), Unfixed.TRANSPORT_HEADER),
    (ipv4(136, bytes(7)), Unfixed.TRANSPORT_HEADER),
    (ipv6(135, bytes([59, 1]) + bytes(8)), Unfixed.TRANSPORT_HEADER),
    (ipv4(136, bytes.fromhex("0001000200070000")), Unfixed.COVERAGE),
    (ipv4(50, bytes(40)), Unfixed.AUTHENTICATION),
    (ipv4(47, b"\0\0\x08\0" + ipv4(17, bytes(8))), Unfixed.PROTOCOL),
    (ipv4(4, ipv4(17, bytes(8))), Unfixed.PROTOCOL),
    (ipv6(41, ipv6(17, bytes(8))), Unfixed.PROTOCOL),
    (ipv6(1, bytes(8)), Unfixed.PROTOCOL),
    (ipv4(58, bytes(8)), Unfixed.PROTOCOL),
]


@pytest.mark.parametrize(("packet", "unfixed"), LEFT_ALONE)
def test_what_cannot_be_repaired_is_named_and_left_alone(packet: bytes, unfixed: Unfixed) -> None:
    for result in (repair(packet), repair(packet, original=packet)):
        assert result == RepairResult(packet, (unfixed,))
        assert result.payload is packet


def test_ip_header_is_repaired_though_the_transport_is_not() -> None:
    packet = ipv4(17, bytes(8), options=_OPTIONS_CUT)
    broken = packet[:2] + b"\0\0" + packet[4:10] + b"\0\0" + packet[12:]
    assert repair(broken) == (packet, (Unfixed.HEADERS,))


def test_partial_checksum_becomes_a_whole_one() -> None:
    for layer in (IP(src=SOURCE4, dst=STOP4), IPv6(src=SOURCE6, dst=STOP6)):
        whole = bytes(layer / tcp(b"new"))
        at = IPView(whole).transport_offset
        assert at is not None
        ends = (SOURCE4, STOP4) if layer.version == 4 else (SOURCE6, STOP6)
        partial = sum_by_words(pseudo(*ends, 6, len(whole) - at)).to_bytes(2, "big")
        packet = whole[: at + 16] + partial + whole[at + 18 :]
        assert repair(packet, original=packet, checksum_not_ready=True) == (whole, ())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_taken_and_bytes_are_given(
    kind: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    packet = SAMPLES[0].make(OLD)
    broken = corrupted(packet, [range(10, 12)], b"\x55")
    result = repair(kind(broken), original=kind(packet))
    assert type(result.payload) is bytes
    assert result.payload == packet


@pytest.mark.parametrize("wrong", ["text", 20, None, [69, 0], object()])
def test_anything_but_bytes_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError, match="payload: expected bytes, got "):
        repair(wrong)  # type: ignore[arg-type]
    if wrong is not None:
        with pytest.raises(TypeError, match="original: expected bytes, got "):
            repair(b"", original=wrong)  # type: ignore[arg-type]


def test_every_reason_to_leave_something_alone_is_seen_in_a_test() -> None:
    seen = {unfixed for _, unfixed in LEFT_ALONE}
    seen |= {unfixed for sample in SAMPLES for unfixed in sample.unfixed}
    elsewhere = {  # TestLengths, TestTrailingBytes, TestFragments
        Unfixed.TRUNCATED,
        Unfixed.LENGTH,
        Unfixed.JUMBO,
        Unfixed.TRAILING_BYTES,
        Unfixed.FRAGMENT,
        Unfixed.INNER_CHECKSUM,  # TestChecksumInside
    }
    assert seen | elsewhere == set(Unfixed)
    assert not seen & elsewhere


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_finds_every_checksum_of_repaired_packets_good(tmp_path: Path) -> None:
    # IGMP: tshark sums the first 8 bytes, RFC 2236 section 2.3 the whole IP payload.
    samples = [s for s in SAMPLES if "without checksum" not in s.name and s.protocol != 2]
    broken, repaired = [], []
    for sample in samples:
        packet = sample.make(OLD)
        broken.append(packet[: len(packet) - len(OLD)] + b"a rewritten text")
        repaired.append(repair(broken[-1], original=packet).payload)
    for sample, verdicts in zip(samples, tshark_verdicts(tmp_path, repaired), strict=True):
        expected = {"ip": "1"} if sample.make(b"")[0] >> 4 == 4 else {}
        column = TSHARK_COLUMNS[sample.protocol]
        assert {name: verdicts[name] for name in (*expected, column)} == {**expected, column: "1"}
    bad = [
        verdicts[TSHARK_COLUMNS[sample.protocol]]
        for sample, verdicts in zip(samples, tshark_verdicts(tmp_path, broken), strict=True)
    ]
    assert bad.count("0") >= len(samples) // 2  # so the check above can fail


TSHARK_COLUMNS = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    58: "icmpv6",
    132: "sctp",
    136: "udp",
}


def tshark_verdicts(folder: Path, packets: list[bytes]) -> list[dict[str, str]]:
    """What tshark says of the outermost checksum of each kind: 0 bad, 1 good, 2 not checked."""
    file = folder / "packets.pcap"
    raw_ip = 101
    records = [struct.pack("=IIII", 0, 0, len(p), len(p)) + p for p in packets]
    header = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, raw_ip)
    file.write_bytes(header + b"".join(records))
    command = ["tshark", "-r", str(file), "-T", "fields", "-E", "occurrence=f"]
    for name in ("ip", "tcp", "udp", "udplite"):
        command += ["-o", f"{name}.check_checksum:TRUE"]
    command += ["-o", "sctp.checksum:CRC 32c"]
    names = ["ip", *dict.fromkeys(TSHARK_COLUMNS.values())]
    for name in names:
        command += ["-e", f"{name}.checksum.status"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [dict(zip(names, line.split("\t"), strict=True)) for line in output.splitlines()]
