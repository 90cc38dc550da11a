"""Packets that nobody here wrote: repairing the valid ones changes nothing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.layers.sctp import crc32c
from scapy.utils import RawPcapReader

from tests.ip_samples import sum_by_words
from trionfq._ip_repair import Unfixed, repair

CAPTURES = Path(__file__).parents[2] / "shared" / "captures"
pytestmark = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="the public captures are not beside the repository"
)

# Link type: where its protocol number is, and where its payload begins.
ETHERNET, RAW, NFLOG, LINUX_SLL, LINUX_SLL2 = 1, 101, 239, 113, 276
LAYOUTS = {ETHERNET: (12, 14), LINUX_SLL: (14, 16), LINUX_SLL2: (0, 20)}
IP_TYPES = {0x0800, 0x86DD}
TAGS = {0x8100, 0x88A8}
NFULA_PAYLOAD = 9


class Captured(NamedTuple):
    """An IP packet of a capture."""

    file: str
    number: int
    packet: bytes
    whole: bool


def payload_of(link: int, record: bytes) -> bytes | None:
    """The IP packet in a captured frame; None where there is none."""
    if link == NFLOG:
        offset = 4
        while offset + 4 <= len(record):
            length, kind = struct.unpack_from("<HH", record, offset)
            if kind == NFULA_PAYLOAD:
                return record[offset + 4 : offset + length]
            offset += length + 3 & ~3
        return None
    if link in (RAW, 12):  # 12 is what some systems write for raw IP
        return record
    if link not in LAYOUTS or len(record) < LAYOUTS[link][1]:
        return None
    at, start = LAYOUTS[link]
    kind = int.from_bytes(record[at : at + 2], "big")
    while kind in TAGS:
        at, start = at + 4, start + 4
        kind = int.from_bytes(record[at : at + 2], "big")
    return record[start:] if kind in IP_TYPES else None


def captured() -> Iterator[Captured]:
    for file in sorted(CAPTURES.glob("*.pcap*")):
        with RawPcapReader(str(file)) as reader:
            for number, (record, meta) in enumerate(reader, 1):
                link = getattr(meta, "linktype", None) or getattr(reader, "linktype", None)
                packet = payload_of(link or 0, record)
                if packet is not None:
                    yield Captured(file.name, number, packet, meta.wirelen == len(record))


def is_valid(packet: bytes) -> bool | None:
    """What a receiver says of lengths and checksums; None for what it cannot check.

    For headers without IPv4 options and with no IPv6 extension header but a fragment's, as all of
    these have.
    """
    if packet[0] >> 4 == 4:
        if packet[0] != 0x45:
            return None
        end, protocol = int.from_bytes(packet[2:4], "big"), packet[9]
        if not 20 <= end <= len(packet) or sum_by_words(packet[:20]) != 0xFFFF:
            return False
        if int.from_bytes(packet[6:8], "big") & 0x3FFF:
            return True
        addresses, content = packet[12:20], packet[20:end]
    else:
        end, protocol = 40 + int.from_bytes(packet[4:6], "big"), packet[6]
        if end > len(packet):
            return False
        if protocol == 44:
            return True
        addresses, content = packet[8:40], packet[40:end]
    pseudo = addresses + len(content).to_bytes(4, "big") + bytes([0, 0, 0, protocol])
    if protocol == 17:
        if int.from_bytes(content[4:6], "big") != len(content):
            return False
        return content[6:8] == b"\0\0" or sum_by_words(pseudo + content) == 0xFFFF
    if protocol in (6, 58):
        return sum_by_words(pseudo + content) == 0xFFFF
    if protocol == 1:
        return sum_by_words(content) == 0xFFFF
    if protocol == 132:
        zeroed = content[:8] + bytes(4) + content[12:]
        castagnoli: int = crc32c(zeroed)  # type: ignore[no-untyped-call]
        sums = castagnoli.to_bytes(4, "big"), zlib.adler32(zeroed).to_bytes(4, "big")
        return content[8:12] in sums
    return None


# File: (valid packets, whole packets that no receiver would take), so that no check below can
# pass by having nothing to check.
COUNTS = {
    "PcapPlusPlus--many_interfaces-1.pcapng": (62, 0),
    "PcapPlusPlus--nflogPacket.pcap": (1, 0),
    "PcapPlusPlus--sll2.pcap": (3, 0),
    "PcapPlusPlus--too_many_interfaces.pcapng": (0, 1),
    "gopacket--be-test901.pcapng": (1, 0),
    "gopacket--be-test902.pcapng": (1, 0),
    "gopacket--le-test300.pcapng": (16, 16),
    "gopacket--le-test901.pcapng": (1, 0),
    "gopacket--le-test902.pcapng": (1, 0),
    "kube-network-policies--tcp-ipv4.pcap": (0, 8),
    "kube-network-policies--udp.pcap": (2, 1),
    "pcap-parser--test001-be.pcapng": (2, 2),
    "pcapng-test-generator--be-test001.pcapng": (2, 2),
    "pcapng-test-generator--be-test009.pcapng": (1, 1),
    "pcapng-test-generator--be-test011.pcapng": (0, 2),
    "pcapng-test-generator--be-test012.pcapng": (2, 0),
    "pcapng-test-generator--be-test016.pcapng": (0, 2),
    "pcapng-test-generator--be-test018.pcapng": (0, 2),
    "pcapng-test-generator--le-test001.pcapng": (2, 2),
    "pcapng-test-generator--le-test009.pcapng": (1, 1),
    "pcapng-test-generator--le-test011.pcapng": (0, 2),
    "pcapng-test-generator--le-test012.pcapng": (2, 0),
    "pcapng-test-generator--le-test016.pcapng": (0, 2),
    "pcapng-test-generator--le-test018.pcapng": (0, 2),
    "suricata-verify--input.pcap": (19, 0),
    "tcpdump--gso-ipv4.pcap": (0, 1),
    "tcpdump--gso-ipv6.pcap": (0, 1),
    "tcpdump--isup.pcap": (6, 0),
    "tcpdump--nflog.pcap": (4, 0),
    "tcpdump--pptp.pcap": (22, 0),
    "zeek--fragmented-1.pcap": (3, 0),
    "zeek--fragmented-2.pcap": (3, 0),
    "zeek--fragmented-3.pcap": (5, 0),
    "zeek--fragmented-4.pcap": (6, 0),
    "zeek--http-qinq-0.pcap": (14, 0),
    "zeek--http-vlan-0.pcap": (14, 0),
    "zeek--icmp-destunreach-udp.pcap": (1, 0),
    "zeek--icmp6-toobig.pcap": (1, 0),
    "zeek--ip4-bad-chksum.pcap": (0, 1),
    "zeek--ip4-icmp-bad-chksum.pcap": (0, 1),
    "zeek--ip4-icmp-good-chksum.pcap": (1, 0),
    "zeek--ip4-tcp-bad-chksum.pcap": (0, 1),
    "zeek--ip4-tcp-good-chksum.pcap": (1, 0),
    "zeek--ip4-udp-bad-chksum.pcap": (0, 1),
    "zeek--ip4-udp-good-chksum.pcap": (1, 0),
    "zeek--ip6-icmp6-bad-chksum.pcap": (0, 1),
    "zeek--ip6-icmp6-good-chksum.pcap": (1, 0),
    "zeek--ip6-tcp-bad-chksum.pcap": (0, 1),
    "zeek--ip6-tcp-good-chksum.pcap": (1, 0),
    "zeek--ip6-udp-bad-chksum.pcap": (0, 1),
    "zeek--ip6-udp-good-chksum.pcap": (1, 0),
    "zeek--linux_dlt_sll2.pcap": (4, 0),
    "zeek--pcapng-multi-interface.pcapng": (3, 3),
}


def test_valid_packets_are_not_changed() -> None:
    valid = dict.fromkeys(COUNTS, 0)
    for file, number, packet, _ in captured():
        verdict = is_valid(packet)
        if (
            verdict is not False
        ):  # a packet that cannot be checked (GRE) is not to be changed, either
            valid[file] = valid.get(file, 0) + bool(verdict)
            for result in (repair(packet), repair(packet, original=packet)):
                assert result.payload is packet, (file, number)
    assert {file: valid[file] for file in COUNTS} == {f: counts[0] for f, counts in COUNTS.items()}


def test_packets_that_no_receiver_would_take_are_repaired() -> None:
    repaired = dict.fromkeys(COUNTS, 0)
    for file, number, packet, whole in captured():
        if whole and is_valid(packet) is False:
            repaired[file] = repaired.get(file, 0) + 1
            for result in (repair(packet), repair(packet, original=packet)):
                assert is_valid(result.payload), (file, number)
                assert result.payload != packet
                assert result.unfixed == (), (file, number)
    assert {file: repaired[file] for file in COUNTS} == {f: c[1] for f, c in COUNTS.items()}


@pytest.mark.parametrize("kind", ["ip4-icmp", "ip4-tcp", "ip4-udp", "ip6-tcp", "ip6-udp"])
def test_bad_packet_of_a_pair_becomes_the_good_one(kind: str) -> None:
    bad, good = (
        [c.packet for c in captured() if c.file == f"zeek--{kind}-{which}-chksum.pcap"]
        for which in ("bad", "good")
    )
    assert len(bad) == len(good) == 1
    assert bad != good
    for packet, expected in zip(bad, good, strict=True):
        for original in (None, packet, expected):
            assert repair(packet, original=original) == (expected, ())
            assert repair(expected, original=original) == (expected, ())


def test_bad_icmpv6_checksum_is_repaired() -> None:
    # The two packets of this pair carry different data, so neither can become the other.
    (bad,) = (c.packet for c in captured() if c.file == "zeek--ip6-icmp6-bad-chksum.pcap")
    (good,) = (c.packet for c in captured() if c.file == "zeek--ip6-icmp6-good-chksum.pcap")
    assert bad[48:] != good[48:]
    repaired, unfixed = repair(bad)
    assert unfixed == ()
    assert repaired[:42] + repaired[44:] == bad[:42] + bad[44:]
    assert is_valid(repaired)
    # Given the other's data, it is the other.
    assert repair(bad[:48] + good[48:], original=bad) == (good, ())


def test_bad_header_checksum_becomes_that_of_its_header() -> None:
    (bad,) = (c.packet for c in captured() if c.file == "zeek--ip4-bad-chksum.pcap")
    (good,) = (c.packet for c in captured() if c.file == "zeek--ip4-udp-good-chksum.pcap")
    assert bad[:10] + bad[12:] == good[:10] + good[12:]
    assert repair(bad) == (good, ())


def test_four_bytes_behind_the_ip_length_stay() -> None:
    (packet,) = (c.packet for c in captured() if c.file == "zeek--icmp-destunreach-udp.pcap")
    assert len(packet) - int.from_bytes(packet[2:4], "big") == 4
    assert repair(packet) == (packet, (Unfixed.TRAILING_BYTES,))
    longer = packet[:-4] + b"appended" + packet[-4:]
    repaired = repair(longer, original=packet).payload
    assert int.from_bytes(repaired[2:4], "big") == len(repaired) - 4
    assert is_valid(repaired)


def test_fragments_are_left_alone() -> None:
    fragments = 0
    for file, number, packet, _ in captured():
        if file.startswith("zeek--fragmented-") or file == "kube-network-policies--udp.pcap":
            result = repair(packet)
            if Unfixed.FRAGMENT in result.unfixed:
                fragments += 1
                assert result.payload is packet, (file, number)
    # All of the first three files, four of the fourth; two of IPv6.
    assert fragments == 3 + 3 + 5 + 4 + 2


def test_partial_checksums_of_offloaded_packets_become_whole() -> None:
    offloaded = [c.packet for c in captured() if c.file.startswith("tcpdump--gso-ip")]
    assert len(offloaded) == 2
    for packet in offloaded:
        assert not is_valid(packet)
        result = repair(packet, original=packet, checksum_not_ready=True)
        assert is_valid(result.payload)
        assert sum(a != b for a, b in zip(packet, result.payload, strict=True)) <= 2
