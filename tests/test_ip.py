"""What a policy reads of a payload, whatever the bytes are."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.sctp import SCTP, SCTPChunkCookieAck
from scapy.packet import Packet

from trionfq._ip import IPView, format_address

IPV4 = IP(src="10.7.0.1", dst="10.7.0.2")
IPV6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
ATTRIBUTES = (
    "ip_version",
    "source_bytes",
    "destination_bytes",
    "source",
    "destination",
    "protocol",
    "transport_offset",
    "source_port",
    "destination_port",
    "fragment_offset",
    "more_fragments",
    "is_fragment",
    "tcp_flags",
    "icmp_type",
    "data",
)
# Any bytes, and bytes that look like IP far enough to reach every branch.
PAYLOADS = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda first, rest: bytes([first]) + rest,
        st.sampled_from([0x45, 0x46, 0x4F, 0x44, 0x60, 0x6F]),
        st.binary(max_size=120),
    ),
    st.builds(  # IPv6 whose next headers are extension headers
        lambda length, start, rest: (
            b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes([start]) + rest
        ),
        st.integers(0, 120),
        st.sampled_from([0, 6, 17, 43, 44, 51, 58, 59, 60, 135]),
        st.lists(st.sampled_from([0, 1, 2, 6, 17, 43, 44, 51, 60]), max_size=120).map(bytes),
    ),
)


def read(payload: bytes) -> dict[str, object]:
    view = IPView(payload)
    return {name: getattr(view, name) for name in ATTRIBUTES}


@given(PAYLOADS)
@example(b"")
def test_any_bytes_are_read_without_an_exception(payload: bytes) -> None:
    seen = read(payload)
    assert repr(IPView(payload))
    assert seen["ip_version"] == {4: 4, 6: 6}.get(payload[0] >> 4 if payload else 0)
    if seen["source_bytes"] is None:
        assert set(seen.values()) <= {None, False, seen["ip_version"]}
    offset = seen["transport_offset"]
    assert offset is None or 20 <= int(str(offset)) <= len(payload)
    assert isinstance(seen["data"], bytes | None)
    assert (seen["source_port"] is None) == (seen["destination_port"] is None)


@given(PAYLOADS)
def test_quick_reading_equals_the_walk(payload: bytes) -> None:
    quick, walked = IPView(payload), IPView(payload)
    walked._walk(len(payload))
    for name in (*ATTRIBUTES, "_end"):
        assert getattr(quick, name) == getattr(walked, name), name


PACKETS: list[tuple[str, Packet, int, tuple[int, int] | None, bytes | None]] = [
    ("udp", IPV4 / UDP(sport=1000, dport=53) / b"query", 17, (1000, 53), b"query"),
    ("udp without data", IPV4 / UDP(sport=1000, dport=53), 17, (1000, 53), b""),
    ("udp, length below ip's", IPV4 / UDP(sport=1, dport=2, len=10) / b"abcd", 17, (1, 2), b"ab"),
    (
        "tcp with options",
        IPV4 / TCP(sport=80, dport=81, options=[("MSS", 1460)]) / b"GET",
        6,
        (80, 81),
        b"GET",
    ),
    (
        "source route",
        IP(src="10.7.0.1", dst="10.7.0.2", options=[IPOption_LSRR(routers=["1.1.1.1"])])
        / UDP(sport=3, dport=4)
        / b"x",
        17,
        (3, 4),
        b"x",
    ),
    ("icmp", IPV4 / ICMP(type=8) / b"ping", 1, None, b"ping"),
    (
        "sctp",
        IPV4 / SCTP(sport=5, dport=6) / SCTPChunkCookieAck(),
        132,
        (5, 6),
        b"\x0b\x00\x00\x04",
    ),
    ("gre", IP(src="10.7.0.1", dst="10.7.0.2", proto=47) / b"\0\0\x08\0data", 47, None, None),
    ("udp over ipv6", IPV6 / UDP(sport=7, dport=8) / b"six", 17, (7, 8), b"six"),
    ("icmpv6", IPV6 / ICMPv6EchoRequest(data=b"ping"), 58, None, b"ping"),
    (
        "extension headers",
        IPV6
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrRouting(addresses=["2001:db8::9"])
        / IPv6ExtHdrFragment(id=1)
        / IPv6ExtHdrDestOpt()
        / TCP(sport=9, dport=10)
        / b"deep",
        6,
        (9, 10),
        b"deep",
    ),
    ("no next header", IPv6(src="::1", dst="::2", nh=59), 59, None, None),
]


@pytest.mark.parametrize(
    ("packet", "protocol", "ports", "data"),
    [case[1:] for case in PACKETS],
    ids=[case[0] for case in PACKETS],
)
def test_addresses_protocol_ports_and_data_are_what_scapy_built(
    packet: Packet, protocol: int, ports: tuple[int, int] | None, data: bytes | None
) -> None:
    payload = bytes(packet)
    view = IPView(payload)
    assert view.ip_version == packet.version
    assert (view.source, view.destination) == (packet.src, packet.dst)
    assert view.source_bytes == ipaddress.ip_address(packet.src).packed
    assert view.destination_bytes == ipaddress.ip_address(packet.dst).packed
    assert view.protocol == protocol
    assert (view.source_port, view.destination_port) == (ports or (None, None))
    assert view.data == data
    assert view.fragment_offset == 0
    assert not view.is_fragment
    assert not view.more_fragments
    if protocol not in (47, 59):
        layers = [packet.getlayer(layer) for layer in (UDP, TCP, ICMP, SCTP, ICMPv6EchoRequest)]
        (transport,) = (layer for layer in layers if layer is not None)
        assert view.transport_offset == len(payload) - len(transport)


@pytest.mark.parametrize("new", [b"", b"odd", b"data that are longer than the old"])
@pytest.mark.parametrize(
    ("packet", "data"), [(c[1], c[4]) for c in PACKETS], ids=[c[0] for c in PACKETS]
)
def test_data_are_replaced_and_nothing_else(packet: Packet, data: bytes | None, new: bytes) -> None:
    for trailer in (b"", b"behind the packet"):
        payload = bytes(packet) + trailer
        if data is None:
            with pytest.raises(ValueError, match="with_data: expected TCP, UDP"):
                IPView(payload).with_data(new)
            continue
        behind = bytes(packet)[-2:] + trailer if data == b"ab" else trailer  # UDP ends before IP
        start = len(payload) - len(behind) - len(data)
        assert payload[start:] == data + behind
        assert IPView(payload).with_data(new) == payload[:start] + new + behind


def test_a_view_is_told_in_one_line() -> None:
    packet = IPV4 / UDP(sport=1000, dport=53) / b"query"
    told = "<IPView v4 10.7.0.1 > 10.7.0.2 protocol 17 1000>53 33 bytes>"
    assert repr(IPView(bytes(packet))) == told
    assert repr(IPView(b"")) == "<IPView vNone None > None protocol None 0 bytes>"


@pytest.mark.parametrize("packet", [c[1] for c in PACKETS], ids=[c[0] for c in PACKETS])
def test_every_truncation_gives_what_is_still_there(packet: Packet) -> None:
    payload = bytes(packet)
    whole = read(payload)
    fixed = 20 if packet.version == 4 else 40
    for size in range(len(payload)):
        cut = read(payload[:size])
        quick, walked = IPView(payload[:size]), IPView(payload[:size])
        walked._walk(size)
        assert quick._end == walked._end <= size
        for name in ("source", "destination", "source_bytes", "destination_bytes"):
            assert cut[name] == (whole[name] if size >= fixed else None), (size, name)
        for name in ("protocol", "source_port", "destination_port", "transport_offset"):
            assert cut[name] in (whole[name], None), (size, name)
        offset = whole["transport_offset"]
        if whole["source_port"] is not None and isinstance(offset, int):
            assert (cut["source_port"] is not None) == (size >= offset + 4)
        if cut["data"] is not None:
            assert str(whole["data"])[:-1].startswith(str(cut["data"])[:-1])


def test_later_fragment_has_a_protocol_but_no_ports_and_no_data() -> None:
    first = bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=17, flags="MF") / (b"\0\1\0\2" * 4))
    later = bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=17, frag=185) / (b"\0\1\0\2" * 4))
    view = IPView(first)
    assert (view.source_port, view.destination_port, view.is_fragment) == (1, 2, True)
    assert (view.fragment_offset, view.more_fragments) == (0, True)
    view = IPView(later)
    assert (view.protocol, view.source_port, view.destination_port) == (17, None, None)
    assert (view.fragment_offset, view.more_fragments, view.is_fragment) == (1480, False, True)
    assert view.data is None
    assert view.transport_offset == 20


def test_later_ipv6_fragment_has_no_ports_and_an_atomic_one_is_whole() -> None:
    udp = UDP(sport=1, dport=2) / b"data"
    later = IPView(bytes(IPV6 / IPv6ExtHdrFragment(offset=181, m=1, nh=17) / bytes(udp)))
    assert (later.protocol, later.source_port, later.data) == (17, None, None)
    assert (later.fragment_offset, later.more_fragments, later.is_fragment) == (1448, True, True)
    first = IPView(bytes(IPV6 / IPv6ExtHdrFragment(m=1, nh=17) / bytes(udp)))
    assert (first.source_port, first.destination_port, first.is_fragment) == (1, 2, True)
    atomic = IPView(bytes(IPV6 / IPv6ExtHdrFragment(nh=17) / bytes(udp)))
    assert (atomic.source_port, atomic.is_fragment, atomic.data) == (1, False, b"data")


def test_authentication_header_is_walked_in_both_families() -> None:
    tcp = bytes(TCP(sport=1, dport=2) / b"data")
    header = bytes([6, 4]) + bytes(22)  # RFC 4302: (4 + 2) words
    ipv4 = IP(src="10.7.0.1", dst="10.7.0.2", proto=51)
    for packet in (ipv4 / header / tcp, IPv6(src="::1", dst="::2", nh=51) / header / tcp):
        view = IPView(bytes(packet))
        assert (view.protocol, view.source_port, view.data) == (6, 1, b"data")
    cut = IPView(bytes(ipv4 / header[:12]))
    assert (cut.protocol, cut.transport_offset, cut.source) == (None, None, "10.7.0.1")


def test_encrypted_payload_is_esp_and_has_no_ports() -> None:
    view = IPView(bytes(IPv6(src="::1", dst="::2", nh=50) / bytes(40)))
    assert (view.protocol, view.source_port, view.data) == (50, None, None)


def test_bytes_behind_the_ip_length_are_no_data() -> None:
    payload = bytes(IPV4 / UDP(sport=1, dport=2) / b"data")
    assert IPView(payload + b"trailer").data == b"data"
    assert IPView(bytes(IPV6 / TCP() / b"data") + b"trailer").data == b"data"
    only_header = bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=17))
    assert IPView(only_header + b"\0\1\0\2").source_port is None


def test_length_of_zero_means_all_bytes() -> None:
    payload = bytearray(bytes(IPV4 / TCP(sport=1, dport=2) / b"data"))
    payload[2:4] = bytes(2)
    view = IPView(bytes(payload))
    assert (view.source_port, view.data) == (1, b"data")


def test_impossible_ipv4_header_length_leaves_only_the_version() -> None:
    payload = b"\x44" + bytes(IPV4 / UDP())[1:]
    view = IPView(payload)
    assert (view.ip_version, view.source, view.protocol, view.data) == (4, None, None, None)


def test_tcp_flags_and_icmp_type() -> None:
    assert IPView(bytes(IPV4 / TCP(flags="SA"))).tcp_flags == 0x12
    assert IPView(bytes(IPV6 / TCP(flags="FC"))).tcp_flags == 0x81
    assert IPView(bytes(IPV4 / UDP() / bytes(20))).tcp_flags is None
    assert IPView(bytes(IPV4 / ICMP(type=11))).icmp_type == 11
    assert IPView(bytes(IPV6 / ICMPv6EchoRequest())).icmp_type == 128
    assert IPView(bytes(IPV4 / TCP())).icmp_type is None


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))
@example(bytes(10) + b"\xff\xff\x0a\x00\x00\x01")
def test_text_of_an_address_reads_back_as_that_address(packed: bytes) -> None:
    text = format_address(packed)
    assert ipaddress.ip_address(text).packed == packed


def test_text_of_an_address_is_canonical() -> None:
    assert format_address(bytes([10, 0, 0, 1])) == "10.0.0.1"
    assert format_address(bytes(15) + b"\1") == "::1"
    assert format_address(bytes.fromhex("20010db8000000000001000000000001")) == "2001:db8::1:0:0:1"
    assert format_address(bytes(10) + b"\xff\xff\x0a\x00\x00\x01") == "::ffff:10.0.0.1"
    with pytest.raises(ValueError, match="4 or 16 bytes, got 6"):
        format_address(bytes(6))
