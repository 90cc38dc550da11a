"""Packets of scapy and dpkt are payloads, are made of payloads, and are imported only then."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, CookedLinux, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from tests.ip_samples import SAMPLES, SOURCE4, SOURCE6, STOP4, STOP6, Sample, tcp, udp
from tests.test_packet import BRIDGE, packet_of, sent
from trionfq import LocalProtocolError, Unfixed, repair

V4 = IP(src=SOURCE4, dst=STOP4, id=7)
V6 = IPv6(src=SOURCE6, dst=STOP6)
each_family = pytest.mark.parametrize("network", [V4, V6], ids=["ipv4", "ipv6"])
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])


@each_family
@pytest.mark.parametrize("how", ["set", "set_payload", "verdict"])
def test_an_edited_scapy_packet_leaves_repaired(network: Any, how: str) -> None:
    packet = packet_of(payload=bytes(network / tcp(b"old")))
    edited = packet.to_scapy()
    edited[TCP].payload = Raw(b"new and longer")
    edited[TCP].window = 99
    expected = network / tcp(b"new and longer")
    expected[TCP].window = 99
    assert bytes(edited) != bytes(expected)  # scapy keeps the lengths and sums that it has read
    if how == "set":
        packet.payload = edited
        packet.accept()
    elif how == "set_payload":
        assert packet.set_payload(edited) == ()
        packet.accept()
    else:
        packet.accept(payload=edited)
    assert packet.payload == sent(packet)["payload"] == bytes(expected)


@each_family
@pytest.mark.parametrize("how", ["set", "verdict"])
def test_an_edited_dpkt_packet_leaves_repaired(network: Any, how: str) -> None:
    packet = packet_of(payload=bytes(network / udp(b"old")))
    edited = packet.to_dpkt()
    edited.data.data = b"new and longer"
    expected = bytes(network / udp(b"new and longer"))
    assert bytes(edited) != expected
    if how == "set":
        packet.payload = edited
        packet.accept()
    else:
        packet.accept(payload=edited)
    assert packet.payload == sent(packet)["payload"] == expected


def test_without_repair_an_object_leaves_as_it_makes_itself() -> None:
    packet = packet_of(payload=bytes(V4 / udp(b"old")))
    edited = packet.to_scapy()
    edited[UDP].payload = Raw(b"newer")
    packet.accept(payload=edited, repair=False)
    assert sent(packet)["payload"] == bytes(edited)


@each_sample
def test_what_scapy_reads_and_nobody_edits_stays_as_it_is(sample: Sample) -> None:
    for payload in (sample.make(b"data"), sample.make(b"data") + b"\0\0padding"):
        packet = packet_of(payload=payload)
        read = packet.to_scapy()
        assert type(read) is (IP if payload[0] >> 4 == 4 else IPv6)
        packet.accept(payload=read)
        assert packet.payload == payload


@each_sample
def test_what_dpkt_reads_and_nobody_edits_stays_or_is_refused_at_once(sample: Sample) -> None:
    payload = sample.make(b"data")
    packet = packet_of(payload=payload + b"\0\0padding")
    try:
        read = packet.to_dpkt()
    except LocalProtocolError as error:
        assert "dpkt gives" in str(error)
        assert bytes(dpkt_class(payload)(payload)) != payload
        return
    packet.accept(payload=read)
    assert packet.payload == payload


def dpkt_class(payload: bytes) -> Any:
    return dpkt.ip.IP if payload[0] >> 4 == 4 else dpkt.ip6.IP6


def test_dpkt_reads_most_of_the_samples() -> None:
    good = [s.name for s in SAMPLES if bytes(dpkt_class(p := s.make(b"data"))(p)) == p]
    assert len(good) > len(SAMPLES) * 3 // 4


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(SAMPLES), st.binary(max_size=60))
def test_repair_takes_objects_and_their_originals(sample: Sample, data: bytes) -> None:
    original = sample.make(b"old")
    rewritten = original[: len(original) - 3] + data
    kind = IP if original[0] >> 4 == 4 else IPv6
    expected = repair(rewritten, original=original)
    as_objects = repair(kind(rewritten), original=kind(original))  # type: ignore[no-untyped-call]
    assert as_objects == expected
    if bytes(dpkt_class(rewritten)(rewritten)) == rewritten:
        assert repair(dpkt_class(rewritten)(rewritten), original=original) == expected


def test_a_packet_built_anew_is_taken() -> None:
    built = IP(src=SOURCE4, dst=STOP4) / UDP(sport=1, dport=2) / b"built"
    packet = packet_of()
    packet.accept(payload=built)
    assert packet.payload == bytes(built)
    made = dpkt.ip.IP(src=bytes(4), dst=bytes(4), p=17, data=dpkt.udp.UDP(data=b"built", ulen=13))
    packet = packet_of()
    packet.payload = made
    assert packet.unfixed == ()
    assert packet.payload == bytes(made)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Ether() / V4 / UDP(), "scapy's Ether, which begins at the link layer"),
        (Dot1Q() / V4, "scapy's Dot1Q"),
        (CookedLinux() / V4, "scapy's CookedLinux"),
        (dpkt.ethernet.Ethernet(data=dpkt.ip.IP()), "dpkt's Ethernet, .* give frame.data"),
        (dpkt.sll.SLL(), "dpkt's SLL"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_frame_is_refused_with_what_to_give_instead(frame: object, text: str) -> None:
    packet = packet_of()
    with pytest.raises(TypeError, match=text):
        packet.payload = frame
    with pytest.raises(TypeError, match=text):
        packet.accept(payload=frame)
    assert not packet.decided
    with pytest.raises(TypeError, match=f"original: .*{text}"):
        repair(b"", original=frame)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["text", 7, [V4], (V4,), object(), IP, dpkt.ip.IP])
def test_anything_else_is_a_type_error_that_says_what_is_taken(value: object) -> None:
    with pytest.raises(TypeError, match=r"expected bytes, got .* packets of scapy and dpkt"):
        packet_of().accept(payload=value)


def test_an_object_that_makes_no_bytes_is_refused() -> None:
    packet = packet_of()
    with pytest.raises(LocalProtocolError, match="scapy's IP makes no bytes: "):
        packet.payload = IP(ttl=4000)
    with pytest.raises(LocalProtocolError, match="dpkt's IP makes no bytes: "):
        packet.payload = dpkt.ip.IP(ttl=4000)
    assert not packet.decided


def test_arp_is_arp_and_what_is_neither_is_raw() -> None:
    arp = bytes(ARP(psrc=SOURCE4, pdst=STOP4))
    for family in (3, BRIDGE):
        packet = packet_of(payload=arp, family=family, hw_protocol=0x0806)
        assert type(packet.to_scapy()) is ARP
        assert type(packet.to_dpkt()) is dpkt.arp.ARP
        edited = packet.to_scapy()
        edited.pdst = "10.9.9.9"
        packet.accept(payload=edited)
        assert packet.payload == bytes(ARP(psrc=SOURCE4, pdst="10.9.9.9"))
        assert packet.unfixed == ()
    lldp = packet_of(payload=b"\x02\x07", family=BRIDGE, hw_protocol=0x88CC)
    assert lldp.to_scapy() == Raw(b"\x02\x07")
    with pytest.raises(LocalProtocolError, match="neither IP nor ARP, but EtherType 0x88cc"):
        lldp.to_dpkt()


def test_what_is_not_ip_is_not_repaired_though_it_begins_as_ip_does() -> None:
    # Label 0x45000, the last one, with a time to live of 44; read as IPv4: 20 bytes of header, 300
    # in all.
    mpls = b"\x45\x00\x01\x2c" + bytes(V4 / udp(bytes(268)))
    packet = packet_of(payload=mpls, family=BRIDGE, hw_protocol=0x8847)
    edited = mpls[:-1] + b"!"
    assert repair(edited, original=mpls).payload != edited
    assert packet.set_payload(edited) == (Unfixed.NOT_IP,)
    assert packet.payload == edited
    ip = packet_of(payload=mpls[4:], family=BRIDGE, hw_protocol=0x0800)
    ip.payload = mpls[4:-1] + b"!"
    assert ip.payload == bytes(V4 / udp(bytes(267) + b"!"))


def test_bytes_that_dpkt_cannot_read_are_refused_by_name() -> None:
    with pytest.raises(LocalProtocolError, match="dpkt cannot read this packet"):
        packet_of(payload=b"\x45" + bytes(8)).to_dpkt()


@pytest.mark.parametrize("package", ["scapy", "dpkt"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packet = packet_of(payload=bytes(V6 / IPv6ExtHdrDestOpt() / SCTP()))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}") as caught:
        getattr(packet, f"to_{package}")()
    assert caught.value.name == package
    # And nothing else needs it.
    packet.accept(payload=packet.payload)
    with pytest.raises(TypeError, match="expected bytes"):
        packet_of().accept(payload="text")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    program = """
import sys, trionfq
from trionfq._protocol import QueueProtocol
from trionfq.testing import make_packet, udp_packet
protocol = QueueProtocol(trionfq.QueueConfig(0))
packet, = protocol.receive([make_packet(payload=udp_packet(b"old"))])
packet.payload = packet.payload[:-1] + b"!"
try:
    packet.payload = object()
except TypeError:
    pass
assert not {"scapy", "dpkt"} & sys.modules.keys(), sys.modules.keys()
packet.to_dpkt()
assert "dpkt" in sys.modules and "scapy" not in sys.modules
packet.to_scapy()
assert "scapy" in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
