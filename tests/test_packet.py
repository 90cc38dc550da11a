"""Every attribute of a packet: its value, its absence, and what a rewrite does to the payload."""

from __future__ import annotations

import errno
import sys
from datetime import UTC, datetime

import pytest

from trionfq import schema
from trionfq._config import QueueConfig
from trionfq._conntrack import Conntrack
from trionfq._errors import LocalProtocolError
from trionfq._ip_repair import Unfixed
from trionfq._packet_attributes import PacketAttributes, VlanTag
from trionfq._protocol import QueueProtocol
from trionfq._verdict import Verdict
from trionfq.schema import Attr, attr, by_name
from trionfq.schema.conntrack import CTA, ConntrackInfo
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import (
    NFQA,
    NFQA_VLAN,
    ArpHook,
    CopyMode,
    Hook,
    MessageType,
    NetdevHook,
    SkbInfo,
)
from trionfq.testing import make_packet, udp_packet

MOST = 65536
BRIDGE, ARP = 7, 3
NAMES = {3: "eth3", 4: "eth4", 5: "port5", 6: "port6"}


def machine(**options):
    config = QueueConfig(0, **options.pop("config", {}))
    return QueueProtocol(config, interface_name=NAMES.get, **options)


def packet_of(protocol=None, /, **options):
    """A packet as a queue gives it, of a datagram as the kernel sends it."""
    (packet,) = (protocol or machine()).receive([make_packet(**options)])
    return packet


def sent(packet):
    """The verdict message that leaves for the packet: its attributes."""
    (datagram,) = packet._owner.flush(MOST)
    (message,) = schema.parse(datagram)
    return by_name(NFQA, message.attributes)


# -- what the kernel says --------------------------------------------------------------------------

CONNECTION = (attr(CTA, "mark", 9), attr(CTA, "id", 77))
L2HDR = bytes.fromhex("0200000000020200000000010800")

# How a packet is made, and what its attribute then says.
PRESENT = [
    ("mark", {"mark": 0xDEADBEEF}, 0xDEADBEEF),
    ("priority", {"priority": 0x10003}, 0x10003),
    ("timestamp_ns", {"timestamp_ns": 1_700_000_000_123_456_000}, 1_700_000_000_123_456_000),
    (
        "timestamp",
        {"timestamp_ns": 1_700_000_000_123_456_000},
        datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC),
    ),
    ("hwaddr", {"hw_address": bytes.fromhex("020000000001")}, bytes.fromhex("020000000001")),
    ("cap_len", {"cap_len": 9000}, 9000),
    ("skb_info", {"skb_info": 3}, SkbInfo.CSUMNOTREADY | SkbInfo.GSO),
    ("uid", {"uid": 1000}, 1000),
    ("uid", {"uid": 0}, 0),
    ("gid", {"gid": 100}, 100),
    ("secctx", {"secctx": b"system_u:object_r:unlabeled_t\0"}, b"system_u:object_r:unlabeled_t"),
    ("secctx", {"secctx": b"no terminator"}, b"no terminator"),
    ("vlan", {"vlan": (0x88A8, 0x2005), "family": BRIDGE}, VlanTag(0x88A8, 0x2005)),
    ("l2hdr", {"l2hdr": L2HDR, "family": BRIDGE}, L2HDR),
    ("cgroup_classid", {"cgroup_classid": 0x100001}, 0x100001),
    ("ct_info", {"ct_info": 2}, ConntrackInfo.NEW),
    ("conntrack", {"ct": CONNECTION}, Conntrack(CONNECTION)),
    ("ct", {"ct": CONNECTION}, CONNECTION),
    ("ifindex_indev", {"ifindex_indev": 3}, 3),
    ("ifindex_outdev", {"ifindex_outdev": 4}, 4),
    ("ifindex_physindev", {"ifindex_physindev": 5}, 5),
    ("ifindex_physoutdev", {"ifindex_physoutdev": 6}, 6),
    ("indev_name", {"ifindex_indev": 3}, "eth3"),
    ("outdev_name", {"ifindex_outdev": 4}, "eth4"),
    ("physindev_name", {"ifindex_physindev": 5}, "port5"),
    ("physoutdev_name", {"ifindex_physoutdev": 6}, "port6"),
]
# What the kernel leaves out when it is 0, and so says by silence.
ZERO_IF_ABSENT = {"mark": 0, "priority": 0, "skb_info": SkbInfo(0)}


@pytest.mark.parametrize(("name", "options", "value"), PRESENT)
def test_an_attribute_has_the_value_that_the_kernel_sent(name, options, value):
    packet = packet_of(**options)
    assert getattr(packet, name) == value
    assert type(getattr(packet, name)) is type(value)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in PRESENT}))
def test_an_attribute_that_the_kernel_did_not_send_is_absent(name):
    assert getattr(packet_of(), name) == ZERO_IF_ABSENT.get(name)


def test_every_attribute_is_seen_here():
    seen = {name for name, _, _ in PRESENT}
    always = {"datagram", "attributes", "family", "hw_protocol", "hook"}
    public = {name for name, kind in vars(PacketAttributes).items() if isinstance(kind, property)}
    assert seen | always == public


def test_all_attributes_at_once_keep_apart():
    options = {}
    for _, each, _ in PRESENT:
        options |= each
    options = {**options, "uid": 7, "secctx": b"x", "family": BRIDGE}
    packet = packet_of(**options)
    for name, each, value in PRESENT:
        if all(options[key] == each[key] for key in each):
            assert getattr(packet, name) == value


@pytest.mark.parametrize(
    ("family", "hw_protocol", "hook"),
    [
        (Family.IPV4, 0x0800, Hook.PRE_ROUTING),
        (Family.IPV6, 0x86DD, Hook.LOCAL_OUT),
        (Family.ARP, 0x0806, ArpHook.OUT),
        (Family.BRIDGE, 0x8100, Hook.POST_ROUTING),
        (Family.NETDEV, 0x0800, NetdevHook.EGRESS),
    ],
)
def test_the_hook_is_told_in_its_familys_words(family, hw_protocol, hook):
    packet = packet_of(family=family, hw_protocol=hw_protocol, hook=int(hook))
    assert (packet.family, packet.hw_protocol) == (family, hw_protocol)
    assert packet.hook is hook


def test_a_vlan_tag_tells_its_parts():
    tag = packet_of(vlan=(0x8100, 0xB00A), family=BRIDGE).vlan
    assert (tag.vlan_id, tag.priority, tag.drop_eligible) == (10, 5, True)


def test_a_hook_of_the_future_is_told_by_its_number():
    packet = packet_of(hook=9)
    with pytest.raises(ValueError, match="9"):
        _ = packet.hook
    assert packet.attribute("packet_hdr")["hook"] == 9
    packet.accept()


@pytest.mark.parametrize("length", range(9))
def test_a_hardware_address_has_its_true_length(length):
    """The kernel always sends eight bytes, and says how many count."""
    address = bytes(range(1, length + 1))
    assert packet_of(hw_address=address).hwaddr == address


def test_loopback_has_an_address_of_zeros_and_output_has_none():
    assert packet_of(hook=Hook.LOCAL_IN, hw_address=bytes(6)).hwaddr == bytes(6)
    assert packet_of(hook=Hook.LOCAL_OUT).hwaddr is None
    for payload in (udp_packet(), udp_packet(source="2001:db8::1", destination="2001:db8::2")):
        assert packet_of(payload=payload).payload[0] >> 4 in (4, 6)


def test_an_address_longer_than_its_field_is_what_there_is_of_it():
    packet = packet_of(hwaddr={"hw_addrlen": 20, "pad": 0, "hw_addr": b"8 bytes!"})
    assert packet.hwaddr == b"8 bytes!"


def test_a_timestamp_is_exact_to_the_microsecond():
    packet = packet_of(timestamp_ns=1_999_999_999_999_999_999)
    assert packet.timestamp_ns == 1_999_999_999_999_999_000
    assert packet.timestamp == datetime(2033, 5, 18, 3, 33, 19, 999999, tzinfo=UTC)
    assert packet_of(timestamp_ns=0).timestamp == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_timestamp_beyond_all_dates_still_has_nanoseconds():
    packet = packet_of(timestamp={"sec": 2**63, "usec": 1})
    assert packet.timestamp_ns == 2**63 * 10**9 + 1000
    with pytest.raises(OverflowError):
        _ = packet.timestamp


@pytest.mark.parametrize(
    "members", [(), (attr(NFQA_VLAN, "tci", 3),), (attr(NFQA_VLAN, "proto", 0x8100),)]
)
def test_half_a_vlan_tag_is_none(members):
    packet = packet_of(family=BRIDGE, extra=[attr(NFQA, "vlan", members)])
    assert packet.vlan is None
    assert packet.attribute("vlan") == members


def test_a_bridged_packet_has_tag_and_header_at_once():
    packet = packet_of(family=BRIDGE, vlan=(0x8100, 42), l2hdr=L2HDR, hw_protocol=0x0800)
    assert packet.vlan == (0x8100, 42)
    assert packet.l2hdr == L2HDR
    packet.accept(vlan=(0x8100, 43), l2hdr=L2HDR[::-1])
    changes = sent(packet)
    assert by_name(NFQA_VLAN, changes["vlan"]) == {"proto": 0x8100, "tci": 43}
    assert changes["l2hdr"] == L2HDR[::-1]


@pytest.mark.parametrize("change", [{"vlan": (0x8100, 1)}, {"l2hdr": L2HDR}])
@pytest.mark.parametrize("family", [2, 10, ARP])
def test_only_bridged_packets_have_a_link_layer_to_change(change, family):
    packet = packet_of(family=family)
    with pytest.raises(LocalProtocolError, match="bridge family"):
        packet.accept(**change)
    packet.accept()
    assert sent(packet).keys() == {"verdict_hdr"}


@pytest.mark.parametrize("length", [0, 13, 15])
def test_a_header_of_another_length_is_refused(length):
    packet = packet_of(family=BRIDGE, l2hdr=L2HDR)
    with pytest.raises(LocalProtocolError, match="expected 14 bytes as received"):
        packet.accept(l2hdr=bytes(length))


def test_an_unknown_attribute_stays_visible_and_harms_nothing():
    packet = packet_of(extra=[Attr(99, b"from the future"), Attr(77, b"")], payload=b"E" * 27)
    assert packet.attributes[-2:] == (Attr(99, b"from the future", 0), Attr(77, b"", 0))
    assert packet.payload == b"E" * 27
    assert not packet.truncated
    assert packet.original_length == 27
    assert packet.mark == 0
    with pytest.raises(KeyError):
        packet.attribute("future")


def test_of_duplicates_the_last_counts_as_for_the_kernel():
    packet = packet_of(mark=1, extra=[attr(NFQA, "mark", 2)])
    assert packet.mark == packet.attribute("mark") == 2
    assert [a.value for a in packet.attributes if a.number == 3] == [1, 2]


def test_an_attribute_can_be_asked_for_by_its_name():
    packet = packet_of(mark=5, uid=6)
    values = {name: packet.attribute(name) for name in NFQA.by_name}
    assert {name for name, value in values.items() if value is not None} == {
        "packet_hdr",
        "mark",
        "uid",
        "payload",
    }


def test_the_datagram_is_what_came():
    datagram = make_packet(7, mark=3)
    (packet,) = machine().receive([datagram])
    assert packet.datagram == datagram
    (message,) = schema.parse(datagram)
    assert packet.attributes == message.attributes
    assert packet.id == 7


# -- length and payload ----------------------------------------------------------------------------


def test_an_unsegmented_udp_packet_is_rewritten_only_by_who_repairs_it_himself():
    old = udp_packet(b"old")
    packet = packet_of(payload=old, skb_info=SkbInfo.GSO | SkbInfo.CSUMNOTREADY)
    with pytest.raises(LocalProtocolError, match=r"without QueueFlags\.GSO to rewrite"):
        packet.payload = old + b"er"
    assert packet.payload == old
    packet.accept(payload=old + b"er", repair=False)
    assert sent(packet)["payload"] == old + b"er"


def test_an_unsegmented_tcp_packet_is_rewritten():
    # IPv4 and TCP headers alone, protocol 6 at byte 9; lengths and checksums are repaired.
    old = bytes.fromhex("45000028000040004006000a0a0000010a000002") + bytes(12) + b"\x50" + bytes(7)
    packet = packet_of(payload=old, skb_info=SkbInfo.GSO | SkbInfo.CSUMNOTREADY)
    packet.payload = old + b"data"
    assert packet.payload[40:] == b"data"
    assert packet.payload[2:4] == (44).to_bytes(2, "big")


def test_a_packet_that_was_cut_says_so():
    packet = packet_of(payload=bytes(100), cap_len=1500)
    assert packet.truncated
    assert packet.original_length == 1500
    assert len(packet.payload) == 100
    with pytest.raises(LocalProtocolError, match=r"copied only in part \(100 of 1500 bytes\)"):
        packet.payload = packet.payload


@pytest.mark.parametrize(
    ("length", "info", "way"),
    [
        (1500, 0, "raise copy_range to rewrite packets"),
        (65_531, 2, "raise copy_range to rewrite packets"),
        (
            65_535,
            0,
            r"no copy is longer than 65531 bytes .* lower the device's MTU \(loopback: ip ",
        ),
        (131_018, 2, r"open the queue without QueueFlags.GSO \(loopback: ip link set lo mtu 65531"),
    ],
)
def test_what_to_do_about_a_packet_that_was_cut_is_said(length, info, way):
    packet = packet_of(payload=bytes(100), cap_len=length, **({"skb_info": info} if info else {}))
    with pytest.raises(LocalProtocolError, match=way):
        packet.payload = packet.payload
    with pytest.raises(LocalProtocolError, match=way):
        packet.accept(payload=packet.payload)


def test_a_whole_packet_is_not_truncated():
    packet = packet_of(payload=bytes(100))
    assert not packet.truncated
    assert packet.original_length == 100
    # The kernel says the length only of what was cut, but a capture may say it always.
    assert not packet_of(payload=bytes(100), cap_len=100).truncated


def test_a_range_of_which_nothing_was_left_is_truncated():
    packet = packet_of(payload=None, cap_len=60)
    assert packet.truncated
    assert packet.payload == b""
    assert packet.original_length == 60


def test_in_metadata_mode_everything_but_the_payload_works():
    protocol = machine(config={"copy_mode": CopyMode.META})
    packet = packet_of(protocol, payload=None, mark=5, hw_address=bytes(6), ifindex_indev=3)
    for look in (
        lambda: packet.payload,
        lambda: packet.ip,
        lambda: packet.original_length,
        lambda: packet.set_payload(bytes(28)),
        lambda: packet.accept(payload=bytes(28)),
    ):
        with pytest.raises(LocalProtocolError, match=r"copy_mode=CopyMode\.PACKET"):
            look()
    assert not packet.truncated
    assert (packet.mark, packet.hwaddr, packet.indev_name) == (5, bytes(6), "eth3")
    assert not packet.decided
    packet.accept(mark=6)
    assert sent(packet)["mark"] == 6


def test_the_ip_view_answers_what_a_simple_policy_asks():
    ip = packet_of(payload=udp_packet(b"query", source_port=5353, destination_port=53)).ip
    assert (ip.ip_version, ip.source, ip.destination) == (4, "192.0.2.1", "198.51.100.2")
    assert (ip.protocol, ip.source_port, ip.destination_port) == (17, 5353, 53)
    assert ip.data == b"query"
    ip = packet_of(payload=udp_packet(source="2001:db8::1", destination="2001:db8::2")).ip
    assert (ip.ip_version, ip.source, ip.protocol) == (6, "2001:db8::1", 17)


@pytest.mark.parametrize("payload", [b"", b"\x45", b"\xff" * 40, bytes(60), b"\x60" + bytes(10)])
def test_the_ip_view_of_odd_bytes_has_none_and_raises_nothing(payload):
    ip = packet_of(payload=payload).ip
    assert ip.source is ip.destination is ip.source_port is ip.data is None
    assert ip.ip_version in (None, 4, 6)


@pytest.mark.parametrize("length", [29, 30, 31, 32])
def test_a_rewritten_payload_leaves_with_its_exact_length(length):
    packet = packet_of()
    new = udp_packet(b"x" * (length - 28))
    packet.payload = new
    assert packet.payload == new
    assert packet.ip.data == b"x" * (length - 28)
    packet.accept()
    (datagram,) = packet._owner.flush(MOST)
    (message,) = schema.parse(datagram)
    assert by_name(NFQA, message.attributes)["payload"] == new
    at = datagram.index(new)
    assert int.from_bytes(datagram[at - 4 : at - 2], sys.byteorder) == 4 + length


@pytest.mark.parametrize(("old", "new"), [(b"short", b"much longer"), (b"much longer", b"short")])
@pytest.mark.parametrize("how", ["set", "verdict"])
@pytest.mark.parametrize("ends", [{}, {"source": "2001:db8::1", "destination": "2001:db8::2"}])
def test_a_rewrite_is_repaired(old, new, how, ends):
    right = udp_packet(new, **ends)
    headers = len(right) - len(new)
    packet = packet_of(payload=udp_packet(old, **ends))
    edited = packet.payload[:headers] + new
    assert edited != right
    if how == "set":
        packet.payload = edited
        packet.accept()
    else:
        packet.accept(payload=edited)
    assert packet.payload == right
    assert packet.unfixed == ()
    assert sent(packet)["payload"] == right


@pytest.mark.parametrize("how", ["set", "verdict"])
def test_a_rewrite_without_repair_leaves_as_it_is(how):
    packet = packet_of(payload=udp_packet(b"old"))
    edited = packet.payload + b"appended"
    if how == "set":
        assert packet.set_payload(edited, repair=False) == ()
        packet.accept()
    else:
        packet.accept(payload=edited, repair=False)
    assert sent(packet)["payload"] == edited == packet.payload


def fragment():
    whole = bytearray(udp_packet(b"a fragment's data"))
    whole[6] |= 0x20
    whole[10:12] = bytes(2)
    return bytes(whole)


@pytest.mark.parametrize("how", ["set", "verdict", "set and verdict"])
def test_what_cannot_be_repaired_is_said_before_and_after_the_verdict(how):
    packet = packet_of(payload=fragment())
    assert packet.unfixed == ()
    edited = fragment()[:-1] + b"!"
    if how == "verdict":
        packet.accept(payload=edited)
    else:
        assert packet.set_payload(edited) == (Unfixed.FRAGMENT,)
        assert packet.unfixed == (Unfixed.FRAGMENT,)
        if how != "set":
            packet.accept(mark=1)
    assert packet.unfixed == (Unfixed.FRAGMENT,)
    assert packet.payload[20:] == edited[20:]


def test_a_new_rewrite_forgets_what_the_last_one_could_not_do():
    packet = packet_of(payload=fragment())
    packet.payload = fragment()[:-1] + b"!"
    packet.payload = udp_packet()
    assert packet.unfixed == ()
    packet.payload = fragment()[:-1] + b"!"
    packet.drop()
    assert packet.unfixed == ()
    assert packet.payload == fragment()


def test_a_rewrite_that_is_refused_changes_nothing():
    packet = packet_of(payload=fragment())
    packet.payload = fragment()[:-1] + b"!"
    draft = packet.payload
    for payload, error, text in [
        ("text", TypeError, "payload: expected bytes, got str"),
        (None, TypeError, "payload: expected bytes, got NoneType"),
        ([1, 2], TypeError, "payload: expected bytes, got list"),
        (bytes(65_532), LocalProtocolError, "payload: expected at most 65531 bytes, got 65532"),
        (bytes(19), LocalProtocolError, "payload: expected at least 20 bytes for the headers"),
    ]:
        with pytest.raises(error, match=text):
            packet.payload = payload
        if payload is not None:
            with pytest.raises(error, match=text):
                packet.accept(payload=payload)
    with pytest.raises(LocalProtocolError, match="mark"):
        packet.accept(payload=udp_packet(), mark=-1)
    assert packet.payload == draft
    assert packet.unfixed == (Unfixed.FRAGMENT,)
    assert not packet.decided
    packet.accept()
    assert sent(packet)["payload"] == draft


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_payload_may_be_any_bytes_and_is_kept_immutable(kind):
    packet = packet_of()
    new = udp_packet(b"new")
    packet.payload = kind(new)
    assert packet.payload == new
    assert type(packet.payload) is bytes


def test_the_longest_payload_leaves():
    packet = packet_of()
    packet.accept(payload=udp_packet(bytes(65_531 - 28)))
    assert len(sent(packet)["payload"]) == 65_531


def test_an_arp_packet_is_left_alone():
    packet = packet_of(family=ARP, payload=bytes(28))
    assert packet.set_payload(b"\x45" + bytes(27)) == ()
    assert packet.payload == b"\x45" + bytes(27)


# -- state -----------------------------------------------------------------------------------------


def test_a_packet_tells_what_became_of_it():
    packet = packet_of()
    assert (packet.decided, packet.verdict, packet.held, packet.usable) == (
        False,
        None,
        False,
        True,
    )
    assert repr(packet) == "<Packet 1 of queue 0, undecided>"
    packet.hold()
    assert (packet.held, packet.decided) == (True, False)
    packet.requeue(9)
    assert (packet.held, packet.decided, packet.verdict) == (False, True, Verdict.QUEUE)
    assert repr(packet) == "<Packet 1 of queue 0, queue>"
    packet._owner.release()
    assert not packet.usable
    assert packet.decided


@pytest.mark.parametrize(
    ("decide", "verdict"),
    [
        (lambda packet: packet.accept(), Verdict.ACCEPT),
        (lambda packet: packet.accept(mark=1), Verdict.ACCEPT),
        (lambda packet: packet.drop(), Verdict.DROP),
        (lambda packet: packet.stop(), Verdict.STOP),
        (lambda packet: packet.repeat(mark=1), Verdict.REPEAT),
        (lambda packet: packet.requeue(3, bypass=True), Verdict.QUEUE),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_each_verb_gives_its_verdict(decide, verdict, held):
    packet = packet_of()
    if held:
        packet.hold()
    decide(packet)
    assert packet.verdict is verdict
    assert sent(packet)["verdict_hdr"]["verdict"] & 0xFF == verdict


def test_a_packet_knows_its_age():
    now = 5_000_000_000
    packet = packet_of(machine(clock_ns=lambda: now))
    assert packet.age_s == 0
    now += 1_500_000_000
    assert packet.age_s == 1.5


def test_attributes_can_be_read_after_the_binding_has_ended():
    packet = packet_of(mark=3, uid=4, ifindex_indev=3)
    packet._owner.release()
    assert (packet.mark, packet.uid, packet.indev_name, packet.queue_number) == (3, 4, "eth3", 0)
    assert packet.ip.protocol == 17


def test_a_refused_verdict_gives_back_what_was_edited():
    protocol = machine()
    bridged = {"family": BRIDGE, "hw_protocol": 0x0800, "l2hdr": L2HDR}
    packet = packet_of(protocol, payload=fragment(), **bridged)
    edited = fragment()[:-1] + b"!"
    packet.accept(payload=edited, vlan=(0x8100, 5))
    rewritten = packet.payload
    protocol.flush(MOST)
    request = (32, MessageType.VERDICT, 1, 1, 0)
    refusal = schema.ErrorMessage(0x100, 1, 9, -errno.ERANGE, request, b"", ())
    protocol.receive([schema.build([refusal])])
    assert not packet.decided
    assert packet.payload == rewritten
    assert packet.unfixed == (Unfixed.FRAGMENT,)
    packet.accept()
    assert sent(packet)["payload"] == rewritten


def test_the_payload_of_a_tagged_bridged_packet_may_grow_but_not_shrink():
    """The kernel would drop it: its transport header's mark lies before the packet."""
    packet = packet_of(payload=b"payload", family=BRIDGE, vlan=(0x8100, 5))
    with pytest.raises(LocalProtocolError, match="at least 7 bytes"):
        packet.accept(payload=b"short", repair=False)
    packet.accept(payload=b"longer payload", repair=False)
    packet = packet_of(payload=b"payload", family=BRIDGE)
    packet.accept(payload=b"short", repair=False)
