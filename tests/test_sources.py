"""Ordinary captures become a queue's packets: every link layer, and whatever its user chooses."""

from __future__ import annotations

import gc
import io
import itertools
import shutil
import struct
import subprocess
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from tests import capture_bytes as made
from tests import link_bytes as link
from tests.link_bytes import ARP, IPV4, IPV6, MAC_A, QINQ, VLAN, ethernet, ipv4, ipv6, null, tlv
from trionfq import CopyMode, ReplayBackend, open_queue, schema
from trionfq._errors import CaptureError, LocalProtocolError
from trionfq.captures import FoundPacket, Note, PacketSource
from trionfq.schema import Message, by_name
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import NFQA, NFQA_VLAN, Hook, SkbInfo

if TYPE_CHECKING:
    from pathlib import Path

NS = 10**9
NOW = 1_790_000_000
ORDERS = ("little", "big")
ADDRESS = {"hw_addrlen": 6, "pad": 0, "hw_addr": MAC_A + b"\0\0"}


def capture(link_type: int, *packets: bytes, order: str = "little") -> bytes:
    """A classic file with one packet a second."""
    stamped = [(NOW + n, 5, packet) for n, packet in enumerate(packets)]
    return made.pcap(*stamped, link_type=link_type, order=order)


def told(data: bytes, **options: Any) -> list[tuple[Message, dict[str, Any]]]:
    """The messages that a capture becomes, with their attributes by name."""
    found = []
    for record in PacketSource(io.BytesIO(data), **options):
        (message,) = schema.parse(record.datagram)
        assert isinstance(message, Message)
        found.append((message, by_name(NFQA, message.attributes)))
    return found


def one(data: bytes, **options: Any) -> dict[str, Any]:
    ((_message, values),) = told(data, **options)
    return values


def skipped(data: bytes, **options: Any) -> dict[str, int]:
    """What is left out of a capture that has a packet besides."""
    source = PacketSource(io.BytesIO(data), **options)
    assert len(list(source)) == 1
    return dict(source.skipped)


# -- link layers -----------------------------------------------------------------------------------

PACKETS = [(IPV4, ipv4()), (IPV6, ipv6())]


@pytest.mark.parametrize(("protocol", "packet"), PACKETS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "name", ["ethernet", "vlan", "qinq", "sll", "sll2", "sll-vlan", "null", "loop", "raw"]
)
def test_every_link_layer_gives_the_packet_from_its_network_header_on(
    name: str, order: str, protocol: int, packet: bytes
) -> None:
    address: Any = ADDRESS
    index = 1
    if name == "ethernet":
        data = capture(1, ethernet(packet, protocol), order=order)
    elif name == "vlan":
        data = capture(1, ethernet(packet, protocol, (VLAN, 0x6005)), order=order)
    elif name == "qinq":
        data = capture(1, ethernet(packet, protocol, (QINQ, 7), (VLAN, 8)), order=order)
    elif name == "sll":
        data = capture(link.SLL, link.sll(packet, protocol), order=order)
    elif name == "sll-vlan":
        tag = struct.pack("!HH", 5, protocol)
        data = capture(link.SLL, link.sll(tag + packet, VLAN), order=order)
    elif name == "sll2":
        data, index = capture(link.SLL2, link.sll2(packet, protocol), order=order), 9
    elif name == "loop":
        family = 2 if protocol == IPV4 else 24
        data, address = capture(link.LOOP, null(packet, family, "big"), order=order), None
    elif name == "null":
        family = 2 if protocol == IPV4 else 30
        data, address = capture(link.NULL, null(packet, family, order), order=order), None
    else:
        data, address = capture(link.RAW, packet, order=order), None
    ((message, values),) = told(data)
    assert message.family == (Family.IPV4 if protocol == IPV4 else Family.IPV6)
    assert message.res_id == 0
    assert values == {
        "packet_hdr": {"packet_id": 1, "hw_protocol": protocol, "hook": Hook.PRE_ROUTING},
        "ifindex_indev": index,
        **({"hwaddr": address} if address else {}),
        "timestamp": {"sec": NOW, "usec": 5},
        "payload": packet,
    }


@pytest.mark.parametrize("number", [12, 14, 101])
def test_raw_ip_has_three_numbers_and_both_versions(number: int) -> None:
    found = told(capture(number, ipv4(), ipv6()))
    assert [values["payload"] for _, values in found] == [ipv4(), ipv6()]
    assert one(capture(228, ipv4()))["payload"] == ipv4()
    assert one(capture(229, ipv6()))["payload"] == ipv6()


@pytest.mark.parametrize("family", [2, 10, 23, 24, 28, 30])
def test_a_loopback_header_is_read_in_either_byte_order(family: int) -> None:
    packet = ipv4() if family == 2 else ipv6()
    for file_order in ORDERS:
        for header_order in ORDERS:
            data = capture(link.NULL, null(packet, family, header_order), order=file_order)
            assert one(data)["payload"] == packet


def test_what_follows_the_ip_packet_is_left_out_as_the_kernel_leaves_it_out() -> None:
    for packet in (ipv4(b"x"), ipv6(b"x"), ipv6(b"")):
        protocol = IPV4 if packet[0] >> 4 == 4 else IPV6
        padded = ethernet(packet, protocol) + bytes(30)
        values = one(capture(1, padded))
        assert values["payload"] == packet
        assert "cap_len" not in values


def test_a_packet_of_which_only_a_part_was_captured_tells_its_length() -> None:
    whole = ethernet(ipv4(bytes(1000)))
    head = struct.pack("<IIII", NOW, 0, 100, len(whole))
    values = one(made.pcap(link_type=1) + head + whole[:100])
    assert (len(values["payload"]), values["cap_len"]) == (86, 1020)


def test_a_packet_whose_length_its_header_cannot_say_is_taken_whole() -> None:
    # Segmentation left to the device; and longer than 65,535 bytes.
    for packet in (
        ipv4(bytes(3000), total=0),
        ipv6(bytes(3000), protocol=6, length=0),
        ipv6(bytes(3000), protocol=0, length=0),
    ):
        protocol = IPV4 if packet[0] >> 4 == 4 else IPV6
        assert one(capture(1, ethernet(packet, protocol)))["payload"] == packet


def test_a_packet_too_long_for_an_attribute_is_cut_to_what_a_queue_copies() -> None:
    packet = ipv4(bytes(65535 - 20))
    values = one(capture(1, ethernet(packet)))
    assert values["payload"] == packet[:65531]
    assert values["cap_len"] == 65535


@pytest.mark.parametrize(
    ("link_type", "packet", "kind"),
    [
        (1, ethernet(b"", ARP), "ARP packet"),
        (1, ethernet(b"", 0x8035), "RARP packet"),
        (1, ethernet(b"", 0x88CC), "LLDP frame"),
        (1, ethernet(b"", 0x1234), "packet of EtherType 0x1234"),
        (1, ethernet(b"", ARP, (VLAN, 5)), "ARP packet"),
        (1, ethernet(b"\x42\x42\x03", 38), "IEEE 802.2 LLC frame"),
        (1, ethernet(b"\xff\xff", 38), "IEEE 802.3 frame"),
        (1, ethernet(b"", VLAN), "packet of EtherType 0x8100"),
        (1, ethernet(b"", IPV4, *[(VLAN, 1)] * 9), "packet of EtherType 0x8100"),
        (1, ethernet(b"")[:13], "frame without a whole Ethernet header"),
        (1, ethernet(ipv4()[:19]), "IPv4 packet without a whole header"),
        (1, ethernet(ipv6()[:39], IPV6), "IPv6 packet without a whole header"),
        (1, ethernet(ipv6(), IPV4), "IPv4 packet with a malformed header"),
        (1, ethernet(b"\x44" + ipv4()[1:]), "IPv4 packet with a malformed header"),
        (1, ethernet(ipv4(), IPV6) + bytes(40), "IPv6 packet with a malformed header"),
        (1, ethernet(ipv4(total=19)), "IPv4 packet with a malformed header"),
        (1, ethernet(ipv4(total=25)), "IPv4 packet shorter than its header says"),
        (1, ethernet(ipv6(length=5), IPV6), "IPv6 packet shorter than its header says"),
        (link.SLL, link.sll(b"", ARP), "ARP packet"),
        (link.SLL, link.sll(b"", 4), "IEEE 802.2 LLC frame"),
        (link.SLL, link.sll(b"", hardware=824), "cooked header of hardware type 824"),
        (link.SLL, bytes(15), "packet without a whole cooked header"),
        (link.SLL2, link.sll2(b"", 0x8035), "RARP packet"),
        (link.SLL2, link.sll2(b"", hardware=803), "cooked header of hardware type 803"),
        (link.SLL2, bytes(19), "packet without a whole cooked header"),
        (link.NULL, null(b"", 17), "packet of address family 17"),
        (link.LOOP, b"abc", "packet without a whole loopback header"),
        (link.RAW, b"", "empty packet"),
        (link.RAW, b"\x50", "raw packet of IP version 5"),
        (link.NFLOG, b"abc", "packet without a whole NFLOG header"),
        (link.NFLOG, b"\2\1\0\0", "NFLOG packet of version 1"),
        (link.NFLOG, b"\2\0\0\0\3\0\1\0", "malformed NFLOG packet"),
        (link.NFLOG, link.nflog(ipv4(), tlv(2, b"abc")), "malformed NFLOG packet"),
        (link.NFLOG, link.nflog(None, tlv(2, bytes(4))), "NFLOG packet without a payload"),
        (105, b"", "packet of link type 105 (IEEE802_11)"),
        (147, b"", "packet of link type 147 (USER0)"),
        (253, b"", "packet of link type 253 (NETLINK)"),
        (9999, b"", "packet of link type 9999"),
    ],
)
def test_what_is_no_ip_packet_is_counted_by_kind(link_type: int, packet: bytes, kind: str) -> None:
    data = (
        made.section()
        + made.interface(link_type)
        + made.interface(link.RAW)
        + made.enhanced(packet)
        + made.enhanced(ipv4(), index=1)
        + made.enhanced(packet)
    )
    assert skipped(data) == {kind: 2}
    with pytest.raises(CaptureError) as caught:
        told(capture(link_type, packet))
    assert f"no packet for a queue, but {kind}: 1" in str(caught.value)
    assert ("replay the file itself" in str(caught.value)) == (link_type == 253)


def test_an_empty_capture_has_no_packets_and_nothing_wrong() -> None:
    assert told(capture(1)) == []


# -- NFLOG -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_order", ORDERS)
@pytest.mark.parametrize("order", ORDERS)
def test_nflog_tells_all_that_it_was_told(order: str, file_order: str) -> None:
    attributes = (
        tlv(1, struct.pack("!HBB", IPV4, Hook.FORWARD, 0), order),
        tlv(2, struct.pack("!I", 0x01020304), order),
        tlv(3, struct.pack("!QQ", 5, 6), order),
        *(tlv(number, struct.pack("!I", 100 + number), order) for number in (4, 5, 6, 7)),
        tlv(8, struct.pack("!HH8s", 6, 0, MAC_A + b"\0\0"), order),
        tlv(10, b"a prefix\0", order),
        tlv(11, struct.pack("!I", 1000), order),
        tlv(12, struct.pack("!I", 77), order),
        tlv(14, struct.pack("!I", 1001), order),
    )
    data = capture(link.NFLOG, link.nflog(ipv4(), *attributes, order=order), order=file_order)
    assert one(data) == {
        "packet_hdr": {"packet_id": 1, "hw_protocol": IPV4, "hook": Hook.FORWARD},
        "ifindex_indev": 104,
        "ifindex_physindev": 106,
        "ifindex_outdev": 105,
        "ifindex_physoutdev": 107,
        "mark": 0x01020304,
        "hwaddr": ADDRESS,
        "timestamp": {"sec": 5, "usec": 6},
        "uid": 1000,
        "gid": 1001,
        "payload": ipv4(),
    }
    chosen = one(data, hook=Hook.LOCAL_OUT, indev=0, physindev=0, physoutdev=0, mark=0, outdev=3)
    assert chosen == {
        "packet_hdr": {"packet_id": 1, "hw_protocol": IPV4, "hook": Hook.LOCAL_OUT},
        "ifindex_outdev": 3,
        "uid": 1000,
        "gid": 1001,
        "payload": ipv4(),
    }


def test_nflog_that_copied_a_part_of_a_packet_tells_its_length() -> None:
    values = one(capture(link.NFLOG, link.nflog(ipv4(bytes(100))[:40])))
    assert (len(values["payload"]), values["cap_len"]) == (40, 120)


# -- the user's choices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "names"),
    [
        (Hook.PRE_ROUTING, ["ifindex_indev", "hwaddr", "timestamp"]),
        (Hook.LOCAL_IN, ["ifindex_indev", "hwaddr", "timestamp"]),
        (Hook.FORWARD, ["ifindex_indev", "hwaddr", "timestamp"]),
        (Hook.LOCAL_OUT, ["ifindex_outdev"]),
        (Hook.POST_ROUTING, ["ifindex_outdev"]),
    ],
)
def test_what_a_hook_does_not_know_is_not_told(hook: Hook, names: list[str]) -> None:
    values = one(capture(1, ethernet(ipv4())), hook=hook)
    assert list(values) == ["packet_hdr", *names, "payload"]
    assert values["packet_hdr"]["hook"] == hook


def test_hook_devices_mark_and_other_attributes_are_the_user_s() -> None:
    ((message, values),) = told(
        capture(1, ethernet(ipv4())),
        queue=40_000,
        hook=Hook.FORWARD,
        indev=3,
        outdev=4,
        physindev=5,
        physoutdev=6,
        mark=0xFFFFFFFF,
        timestamps=False,
        attributes={"priority": 6, "skb_info": SkbInfo.CSUMNOTREADY, "uid": 0, "hwaddr": b"\1\2"},
    )
    assert message.res_id == 40_000
    assert values == {
        "packet_hdr": {"packet_id": 1, "hw_protocol": IPV4, "hook": Hook.FORWARD},
        "ifindex_indev": 3,
        "ifindex_physindev": 5,
        "ifindex_outdev": 4,
        "ifindex_physoutdev": 6,
        "mark": 0xFFFFFFFF,
        "priority": 6,
        "hwaddr": {"hw_addrlen": 2, "pad": 0, "hw_addr": b"\1\2" + bytes(6)},
        "uid": 0,
        "skb_info": SkbInfo.CSUMNOTREADY,
        "payload": ipv4(),
    }


def test_a_bridge_s_hook_sees_the_whole_frame_and_its_outer_tag() -> None:
    frames = (
        ethernet(ipv4()) + bytes(30),
        ethernet(ipv4(), IPV4, (VLAN, 0x6005)),
        ethernet(ipv4(), IPV4, (QINQ, 7), (VLAN, 8)),
        ethernet(b"arp", ARP),
    )
    found = told(capture(1, *frames), bridge=True, hook=Hook.FORWARD, physindev=2)
    assert {message.family for message, _ in found} == {Family.BRIDGE}
    shown = []
    for message, values in found:
        vlan = by_name(NFQA_VLAN, values["vlan"]) if "vlan" in values else None
        shown.append(
            (values["packet_hdr"]["hw_protocol"], values["l2hdr"], vlan, values["payload"])
        )
        # The port before the bridge, the other way round than elsewhere.
        numbers = [attribute.number for attribute in message.attributes]
        assert numbers[1:3] == [7, 5]
    head = ethernet(b"", 0)[:12]
    inner = struct.pack("!HH", 8, IPV4) + ipv4()
    assert shown == [
        (IPV4, head + b"\x08\x00", None, ipv4() + bytes(30)),
        (IPV4, head + b"\x08\x00", {"tci": 0x6005, "proto": VLAN}, ipv4()),
        (VLAN, head + b"\x81\x00", {"tci": 7, "proto": QINQ}, inner),
        (ARP, head + b"\x08\x06", None, b"arp"),
    ]


def test_devices_have_names_where_the_user_or_the_file_tells_them() -> None:
    data = made.section() + b"".join(
        made.interface(link.RAW, opts=made.options((2, name))) for name in (b"eth0", b"lan1")
    )
    data += made.interface(link.RAW)
    data += b"".join(made.enhanced(ipv4(), 5, index=index) for index in (1, 0, 1, 2))
    records = list(PacketSource(io.BytesIO(data)))
    found = [by_name(NFQA, schema.parse(r.datagram)[0].attributes) for r in records]  # type: ignore[union-attr]
    assert [values["ifindex_indev"] for values in found] == [1, 2, 1, 3]
    assert [[note.values for note in record.notes] for record in records] == [
        [{"index": 1, "name": "lan1"}],
        [{"index": 2, "name": "eth0"}],
        [],
        [],
    ]
    named = list(PacketSource(io.BytesIO(data), indev="wan0", outdev="wan1", hook=Hook.FORWARD))
    assert {note.values["name"] for note in named[0].notes} == {"wan0", "wan1"}
    assert all(not record.notes for record in named[1:])
    mixed = list(PacketSource(io.BytesIO(data), outdev=5, physoutdev="port", hook=Hook.FORWARD))
    assert mixed[0].notes == (
        Note("interface", {"index": 6, "name": "port"}),
        Note("interface", {"index": 7, "name": "lan1"}),
    )


def test_each_packet_can_be_looked_at_and_given_what_it_is_to_have() -> None:
    def choose(found: FoundPacket) -> dict[str, Any] | None:
        seen.append(found)
        if found.protocol == IPV6:
            return None
        if found.tags:
            return {"mark": found.tags[0][1], "hook": Hook.LOCAL_OUT, "timestamp": None}
        return {}

    seen: list[FoundPacket] = []
    data = capture(
        1, ethernet(ipv4()), ethernet(ipv6(), IPV6), ethernet(ipv4(), IPV4, (QINQ, 7), (VLAN, 8))
    )
    source = PacketSource(io.BytesIO(data), choose=choose, mark=3)
    messages = [schema.parse(record.datagram)[0] for record in source]
    values = [by_name(NFQA, message.attributes) for message in messages]  # type: ignore[union-attr]
    assert [each["mark"] for each in values] == [3, 7]
    assert [each["packet_hdr"]["packet_id"] for each in values] == [1, 2]  # type: ignore[index,call-overload]
    assert [each["packet_hdr"]["hook"] for each in values] == [0, Hook.LOCAL_OUT]  # type: ignore[index,call-overload]
    assert source.skipped == {"packet left out by choose": 1}
    third = seen[2]
    assert (third.tags, third.payload, third.hw_address) == (((QINQ, 7), (VLAN, 8)), ipv4(), MAC_A)
    assert third.time_ns == (NOW + 2) * NS + 5000
    assert third.outgoing is None


@pytest.mark.parametrize(("kind", "outgoing"), [(0, False), (3, False), (4, True)])
def test_a_cooked_header_tells_which_way_a_packet_went(kind: int, outgoing: bool) -> None:
    seen: list[FoundPacket] = []
    for data in (
        capture(link.SLL, link.sll(ipv4(), kind=kind)),
        capture(link.SLL2, link.sll2(ipv4(), kind=kind)),
        made.section()
        + made.interface(link.RAW)
        + made.enhanced(ipv4(), opts=made.options((2, struct.pack("<I", 1 + outgoing)))),
    ):
        told(data, choose=link.keeping(seen))
    assert [found.outgoing for found in seen] == [outgoing] * 3


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"queue": 65536}, ValueError, "queue"),
        ({"hook": 9}, ValueError, "9"),
        ({"mark": 1 << 32}, ValueError, "mark"),
        ({"indev": -1}, ValueError, "ifindex_indev"),
        ({"attributes": {"payload": b""}}, TypeError, "'payload'"),
        ({"choose": lambda _found: {"colour": 3}}, TypeError, "'colour'"),
        ({"attributes": {"priority": "high"}}, LocalProtocolError, "NFQA_PRIORITY"),
    ],
)
def test_a_wrong_choice_is_named(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        told(capture(1, ethernet(ipv4())), **options)


# -- replays ---------------------------------------------------------------------------------------


async def test_a_source_is_replayed_as_a_recording_is(tmp_path: Path) -> None:
    path = tmp_path / "some.pcap"
    path.write_bytes(capture(1, *[ethernet(ipv4(b"%d" % n)) for n in range(600)]))
    source = PacketSource(path, queue=5, hook=Hook.FORWARD, mark=7, indev="eth0")
    for _again in range(2):
        backend = ReplayBackend(source, check="all")
        assert backend.recorded_queue == 5
        async with open_queue(5, backend=backend) as queue:
            seen = []
            async for packet in queue:
                assert packet.mark == 7
                assert packet.hook is Hook.FORWARD
                assert packet.indev_name == "eth0"
                seen.append((packet.id, packet.payload[20:], packet.timestamp_ns))
                packet.drop()
        assert seen == [(n + 1, b"%d" % n, (NOW + n) * NS + 5000) for n in range(600)]
        assert backend.shortfalls == {}
        assert len(backend.transcript) == 600


async def test_a_replay_gives_a_source_s_messages_as_they_are() -> None:
    """Nothing of them is what a kernel would have told in another way."""
    frames = [ethernet(ipv4()), ethernet(ipv6(), IPV6, (VLAN, 3))]
    for options in ({"hook": Hook.FORWARD, "outdev": 4, "mark": 1}, {"bridge": True}, {}):
        data = capture(1, *frames)
        wanted = [record.datagram for record in PacketSource(io.BytesIO(data), **options)]
        backend = ReplayBackend(PacketSource(io.BytesIO(data), **options))
        given: list[bytes] = []
        own = backend.receive_nowait

        def receive_nowait(limit: int, own: Any = own, given: Any = given) -> Any:
            received = own(limit)
            given.extend(received.datagrams)
            return received

        backend.receive_nowait = receive_nowait  # type: ignore[method-assign]
        async with open_queue(0, backend=backend, copy_mode=CopyMode.PACKET) as queue:
            async for packet in queue:
                packet.accept()
        assert [each for each in given if each in wanted] == wanted


def test_a_replay_of_an_ordinary_capture_says_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "some.pcap"
    path.write_bytes(capture(1, ethernet(ipv4())))
    with pytest.raises(CaptureError, match=r"link type 1 \(ETHERNET\): 1.*PacketSource"):
        ReplayBackend(path)
    with pytest.raises(CaptureError, match="no packets of queue 4, but of queue 0"):
        ReplayBackend(PacketSource(path), queue=4)


def test_what_came_before_an_error_comes_first() -> None:
    data = capture(1, *[ethernet(ipv4())] * 3)
    for length in range(24, len(data)):
        source = iter(PacketSource(io.BytesIO(data[:length])))
        whole = (length - 24) // (16 + 38)
        for _ in range(whole):
            next(source)
        if (length - 24) % (16 + 38):
            with pytest.raises(CaptureError, match="the file ends after"):
                next(source)
        assert list(source) == []


def test_packets_in_a_row_are_written_as_each_by_itself_would_be() -> None:
    frames = [
        ethernet(packet, protocol, *tags)
        for size in (1, 2, 3, 500, 1)
        for protocol, packet in ((IPV4, ipv4(bytes(size))), (IPV6, ipv6(bytes(size))))
        for tags in ((), ((VLAN, size),))
    ]
    frames += [bytes([n]) * 12 + frame[12:] for n, frame in enumerate(frames[:8], 1)]
    for options in (
        {},
        {"bridge": True, "mark": 1},
        {"hook": Hook.LOCAL_OUT},
        {"timestamps": False},
    ):
        together = [values for _, values in told(capture(1, *frames), **options)]
        for number, frame in enumerate(frames):
            alone = made.pcap((NOW + number, 5, frame), link_type=1)
            values = one(alone, **options)
            values["packet_hdr"]["packet_id"] = number + 1
            assert together[number] == values


def test_a_time_that_no_message_can_tell_is_left_out() -> None:
    data = made.section()
    for seconds in (0, 1 << 62, -(1 << 62)):
        opts = made.options((9, b"\0"), (14, struct.pack("<q", seconds)))
        data += made.interface(link.RAW, opts=opts)
    for index in range(3):
        data += made.enhanced(ipv4(), (1 << 64) - 1 if index < 2 else 5, index=index)
    found = [values.get("timestamp") for _, values in told(data)]
    assert found == [{"sec": (1 << 64) - 1, "usec": 0}, None, None]
    absurd = tlv(3, struct.pack("!QQ", 1, 1 << 63))
    assert one(capture(link.NFLOG, link.nflog(ipv4(), absurd)))["timestamp"]["sec"] == NOW


def test_a_long_capture_is_read_in_constant_memory() -> None:
    frame = ethernet(ipv4(bytes(1000)))
    part = made.pcap(*[(NOW, n, frame) for n in range(50)], link_type=1)
    pieces = itertools.chain([part], itertools.repeat(part[24:], 39))

    class Long(io.RawIOBase):
        """A file that is nowhere as a whole."""

        rest = b""

        def read(self, size: int = -1) -> bytes:
            if not self.rest:
                self.rest = next(pieces, b"")
            found, self.rest = self.rest[:size], self.rest[size:]
            return found

    tracemalloc.start()
    try:
        stream: Any = Long()
        count = sum(len(chunk.times) for chunk in PacketSource(stream).columns())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2000
    assert peak < 1_000_000, "the file has 2 million bytes"


@pytest.mark.parametrize("kept", [False, True])
async def test_a_long_replay_without_a_transcript_takes_constant_memory(
    kept: bool, tmp_path: Path
) -> None:
    """With one it does not, so this can be seen to fail."""
    taken = []
    path = tmp_path / "long.pcap"
    for count in (1_000, 1_000, 4_000):  # the first fills the caches
        path.write_bytes(capture(1, *[ethernet(ipv4(bytes(600)))] * count))
        backend = ReplayBackend(PacketSource(path), keep_transcript=kept)
        tracemalloc.start()
        try:
            async with open_queue(0, backend=backend) as queue:
                seen = 0
                async for packet in queue:
                    seen += 1
                    packet.accept()
            gc.collect()
            taken.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert seen == count
        if not kept:
            with pytest.raises(RuntimeError, match="keeps no transcript"):
                _ = backend.transcript
    # The longer file has 2 million bytes more.
    assert (taken[2] < taken[1] + 20_000) is not kept, taken


@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "modpcap", "pcapng"])
def test_what_wireshark_s_editcap_writes_is_read(form: str, tmp_path: Path) -> None:
    program = shutil.which("editcap")
    if program is None:
        pytest.skip("editcap is missing: apt-get install tshark")
    frames = [ethernet(ipv4(bytes(n))) for n in range(5)]
    path, converted = tmp_path / "ours.pcap", tmp_path / "theirs"
    path.write_bytes(capture(1, *frames))
    command = [program, "-F", form, str(path), str(converted)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert converted.read_bytes()[:4] != path.read_bytes()[:4] or form == "pcap"
    assert told(converted.read_bytes()) == told(path.read_bytes())
