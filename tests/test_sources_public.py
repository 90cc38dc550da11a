"""Public captures, which nobody here made, as sources of packets."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import link_bytes as link
from tests import test_ip_repair_captures as independent
from trionfq import IPView, Packet, Queue, ReplayBackend, open_queue, schema
from trionfq._errors import CaptureError
from trionfq._ip_repair import Unfixed, repair
from trionfq.captures import CapturedPacket, FoundPacket, PacketSource, Tally, read_packets
from trionfq.schema import Message, by_name
from trionfq.schema.nfqueue import NFQA

PUBLIC = Path(__file__).parents[1].parent / "shared" / "captures"
pytestmark = pytest.mark.skipif(
    not PUBLIC.is_dir(), reason="the public captures are not beside the repository"
)
FILES = sorted(PUBLIC.glob("*.pcap*")) if PUBLIC.is_dir() else []
EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def payloads(name: str, **options: Any) -> tuple[list[bytes], dict[str, int]]:
    """The packets of a file, from their network headers on, and what is left out."""
    source = PacketSource(PUBLIC / name, **options)
    found = []
    try:
        for record in source:
            if record.datagram:
                (message,) = schema.parse(record.datagram)
                assert isinstance(message, Message)
                found.append(by_name(NFQA, message.attributes)["payload"])
    except CaptureError as error:
        assert found == []
        assert "no packet for a queue, but" in str(error)
    return found, dict(source.skipped)  # type: ignore[return-value]


def captured(path: Path) -> list[CapturedPacket]:
    with path.open("rb") as stream:
        found = read_packets(stream, Tally())
        return [each for each in found if isinstance(each, CapturedPacket)]


OTHER_KINDS = (
    "option ",
    "block of ",
    "custom block",
    "name resolution",
    "interface stat",
    "section",
)


@EACH
def test_every_packet_is_given_or_counted(path: Path) -> None:
    found, skipped = payloads(path.name)
    left_out = {k: n for k, n in skipped.items() if not k.startswith(OTHER_KINDS)}
    assert len(found) + sum(left_out.values()) == len(captured(path)), left_out


@EACH
def test_packets_are_those_that_another_reader_finds(path: Path) -> None:
    """scapy reads the file; what is behind the link layer is found by hand."""
    theirs = [each.packet for each in INDEPENDENT if each.file == path.name]
    ours, _skipped = payloads(path.name)
    left = list(ours)
    for packet in theirs:
        # At an IP hook what follows the packet has gone.
        left.remove(next(each for each in left if packet.startswith(each)))
    # scapy misses simple packet blocks, and what follows a section of another version; loopback
    # is not read by hand.
    if path.name not in SCAPY_MISSES:
        assert left == []


SCAPY_MISSES = {
    "PcapPlusPlus--many_interfaces-1.pcapng",
    *(f"gopacket--{order}-test901.pcapng" for order in ("be", "le")),
    *(
        f"pcapng-test-generator--{order}-test0{number}.pcapng"
        for order in ("be", "le")
        for number in ("06", "10", "11", "16", "18")
    ),
}
INDEPENDENT = list(independent.captured()) if PUBLIC.is_dir() else []


async def test_eleven_interfaces_of_three_link_types_give_all_packets() -> None:  # case D24
    name = "PcapPlusPlus--many_interfaces-1.pcapng"
    seen: list[FoundPacket] = []
    source = PacketSource(PUBLIC / name, choose=link.keeping(seen))
    backend = ReplayBackend(source, check="all")
    async with open_queue(0, backend=backend) as queue:
        names = Counter([packet.indev_name async for packet in _accepted(queue)])
    assert names == Counter(found.interface.name for found in seen)
    assert {found.interface.link_type for found in seen} == {0, 1}
    assert len(seen) == 64
    assert not [kind for kind in source.skipped if "packet of" in kind]


async def _accepted(queue: Queue) -> AsyncIterator[Packet]:
    async for packet in queue:
        packet.accept()
        yield packet


def test_linux_cooked_capture_of_version_2_is_read() -> None:  # case D25
    found, skipped = payloads("zeek--linux_dlt_sll2.pcap")
    assert Counter(IPView(each).protocol for each in found) == {1: 2, 58: 2}
    assert skipped == {"ARP packet": 1, "RARP packet": 1}
    assert all(independent.is_valid(each) for each in found)


def test_nflog_is_read() -> None:
    for name, count in (("tcpdump--nflog.pcap", 4), ("PcapPlusPlus--nflogPacket.pcap", 1)):
        found, skipped = payloads(name)
        assert (len(found), skipped) == (count, {})
        assert all(independent.is_valid(each) for each in found)
    (first, *_rest) = PacketSource(PUBLIC / "tcpdump--nflog.pcap")
    (message,) = schema.parse(first.datagram)
    assert isinstance(message, Message)
    names = ["packet_hdr", "ifindex_indev", "hwaddr", "timestamp", "payload"]
    assert list(by_name(NFQA, message.attributes)) == names


@pytest.mark.parametrize(
    ("name", "tags"), [("zeek--http-vlan-0.pcap", 1), ("zeek--http-qinq-0.pcap", 2)]
)
def test_vlan_tags_are_taken_off_and_told(name: str, tags: int) -> None:
    seen: list[FoundPacket] = []
    found, skipped = payloads(name, choose=link.keeping(seen))
    assert (len(found), skipped) == (14, {})
    assert {len(each.tags) for each in seen} == {tags}
    assert all(independent.is_valid(each) for each in found)


@pytest.mark.parametrize(("name", "count"), [("tcpdump--isup.pcap", 6), ("tcpdump--pptp.pcap", 23)])
def test_big_endian_files_are_read(name: str, count: int) -> None:
    found, _skipped = payloads(name)
    assert len(found) == count
    assert not any(independent.is_valid(each) is False for each in found)


def test_sctp_packets_keep_their_valid_checksums() -> None:
    found, _skipped = payloads("suricata-verify--input.pcap")
    assert len(found) == 19
    assert all(independent.is_valid(each) for each in found)


def test_four_bytes_behind_the_ip_length_are_left_out() -> None:
    (packet,), _skipped = payloads("zeek--icmp-destunreach-udp.pcap")
    assert len(packet) == int.from_bytes(packet[2:4], "big")
    assert repair(packet) == (packet, ())


def test_offloaded_packets_have_partial_checksums() -> None:
    for name in ("tcpdump--gso-ipv4.pcap", "tcpdump--gso-ipv6.pcap"):
        found, _skipped = payloads(name)
        assert found
        assert [each for each in found if independent.is_valid(each) is False]


def test_later_fragments_have_no_ports() -> None:
    later = 0
    for number in (1, 2, 3, 4):
        found, _skipped = payloads(f"zeek--fragmented-{number}.pcap")
        for packet in found:
            view = IPView(packet)
            if view.is_fragment:
                assert Unfixed.FRAGMENT in repair(packet).unfixed
            if view.fragment_offset:
                later += 1
                assert (view.source_port, view.destination_port) == (None, None)
    assert later >= 4


@pytest.mark.parametrize("kind", ["ip4-icmp", "ip4-tcp", "ip4-udp", "ip6-tcp", "ip6-udp"])
async def test_a_replayed_policy_repairs_the_bad_one_of_a_pair(kind: str) -> None:
    (good,), _skipped = payloads(f"zeek--{kind}-good-chksum.pcap")
    backend = ReplayBackend(PacketSource(PUBLIC / f"zeek--{kind}-bad-chksum.pcap"))
    async with open_queue(0, backend=backend) as queue:
        async for packet in queue:
            assert packet.payload != good
            packet.payload = bytes(packet.payload)
            packet.accept()
    (outcome,) = backend.transcript
    assert outcome.payload == good


@EACH
def test_a_compressed_copy_gives_the_same(path: Path) -> None:
    stream = io.BytesIO(gzip.compress(path.read_bytes()))
    assert list(read_packets(stream, Tally())) == list(_everything(path))


def _everything(path: Path) -> list[Any]:
    with path.open("rb") as stream:
        return list(read_packets(stream, Tally()))


ETHERNET = [path for path in FILES if {each.interface.link_type for each in captured(path)} == {1}]


@pytest.mark.parametrize("path", ETHERNET, ids=lambda path: path.name)
def test_at_a_bridge_every_frame_is_a_packet(path: Path) -> None:
    found, _skipped = payloads(path.name, bridge=True)
    assert len(found) == len(captured(path))
