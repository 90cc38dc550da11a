"""Connections: what the kernel tells, read back; what a verdict asks, built or refused.

What a real kernel does with each is seen in tests/kernel/test_conntrack.py.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionfq import (
    ConntrackDirection,
    ConntrackInfo,
    ConntrackTuple,
    DccpRole,
    DccpState,
    Expectation,
    ExpectationNat,
    LocalProtocolError,
    SctpState,
    TcpFlags,
    TcpState,
    Verdict,
    schema,
)
from trionfq import ConntrackStatus as Status
from trionfq._config import QueueConfig
from trionfq._conntrack import Conntrack, labels_of, labels_to_bytes
from trionfq._protocol import QueueProtocol
from trionfq._verdict import decision
from trionfq._verdict_conntrack import (
    CONNTRACK_CHANGES,
    check_connection,
    check_unseen,
    conntrack_attributes,
)
from trionfq.schema import attr, by_name
from trionfq.schema.conntrack import (
    CTA,
    CTA_COUNTERS,
    CTA_EXPECT,
    CTA_EXPECT_NAT,
    CTA_HELP,
    CTA_IP,
    CTA_PROTO,
    CTA_PROTOINFO,
    CTA_PROTOINFO_DCCP,
    CTA_PROTOINFO_SCTP,
    CTA_PROTOINFO_TCP,
    CTA_SECCTX,
    CTA_SEQADJ,
    CTA_SYNPROXY,
    CTA_TIMESTAMP,
    CTA_TUPLE,
)
from trionfq.schema.nfqueue import NFQA, QueueFlags
from trionfq.testing import make_packet, udp_packet

# The first packet of a UDP conversation over loopback, as Debian's 6.1.0-56 sent it to a queue with
# CONNTRACK, SECCTX and UID_GID. Rules: nfqueue at OUTPUT, SECMARK --selctx unconfined before it.
RECORDED = bytes.fromhex(
    "fd0000000003000000000000000000000200" "00000b00010000000001080003000800060000000001"
    "080010000000000008001100000000000e001200756e636f6e66696e656400008c000b8034000180"
    "14000180080001007f000001080002007f0000011c00028005000100110000000600020096ae0000"
    "06000300270f0000340002801400018008000100" "7f000001080002007f0000011c000280050001001100"
    "000006000200270f00000600030096ae000008000c005e5486690800030000000000080007000000"
    "001e080008000000000008000c000000000221000a004500001d2186400040111b487f0000017f00"
    "000196ae270f0009cc1b78"
)  # fmt: skip
LOCAL = ip_address("127.0.0.1")
A, B = ip_address("10.0.0.1"), ip_address("10.0.0.2")
A6, B6 = ip_address("fd00::1"), ip_address("fd00::2")
REPLIED = Status.CONFIRMED | Status.SEEN_REPLY


def tuple_of(source=A, destination=B, zone=None, **proto):
    family = f"v{source.version}"
    members = [
        attr(
            CTA_TUPLE,
            "ip",
            (
                attr(CTA_IP, f"{family}_src", source.packed),
                attr(CTA_IP, f"{family}_dst", destination.packed),
            ),
        ),
        attr(CTA_TUPLE, "proto", tuple(attr(CTA_PROTO, k, v) for k, v in proto.items())),
    ]
    if zone is not None:
        members.append(attr(CTA_TUPLE, "zone", zone))
    return tuple(members)


def members_of(members_set, **values):
    return tuple(attr(members_set, name, value) for name, value in values.items())


TCP = {"num": 6, "src_port": 1, "dst_port": 2}
ORIGINAL = {"tuple_orig": tuple_of(**TCP), "tuple_reply": tuple_of(B, A, **TCP)}


def conntrack(status=Status.CONFIRMED, **values):
    return Conntrack(members_of(CTA, **ORIGINAL | {"status": int(status)} | values))


def helper(name=b"ftp\0"):
    return {"help": (attr(CTA_HELP, "name", name),)}


NEW_DATA = {"ct_helper": "ftp", "ct_helper_info": b"new"}


def in_user_space(info):
    return {"help": (*helper()["help"], attr(CTA_HELP, "info", info))}


# -- reading ---------------------------------------------------------------------------------------


def test_a_recorded_connection_is_told():
    protocol = QueueProtocol(QueueConfig(0, flags=QueueFlags.CONNTRACK))
    (packet,) = protocol.receive([RECORDED])
    assert packet.ct_info is ConntrackInfo.NEW
    assert packet.secctx == b"unconfined"
    told = packet.conntrack
    assert told.original == ConntrackTuple(17, LOCAL, LOCAL, 38574, 9999)
    assert told.reply == ConntrackTuple(17, LOCAL, LOCAL, 9999, 38574)
    assert (told.id, told.status, told.timeout_s, told.mark) == (0x5E548669, Status(0), 30, 0)
    assert told.attributes == packet.ct


READ = [
    ("original", {}, ConntrackTuple(6, A, B, 1, 2)),
    ("reply", {}, ConntrackTuple(6, B, A, 1, 2)),
    (
        "original",
        {"tuple_orig": tuple_of(A6, B6, 9, num=58, icmpv6_id=3, icmpv6_type=128, icmpv6_code=0)},
        ConntrackTuple(58, A6, B6, None, None, 128, 0, 3, 9),
    ),
    (
        "master",
        {"tuple_master": tuple_of(num=1, icmp_id=3, icmp_type=8, icmp_code=1)},
        ConntrackTuple(1, A, B, None, None, 8, 1, 3),
    ),
    ("master", {}, None),
    ("zone", {"zone": 7}, 7),
    ("zone", {}, 0),
    ("id", {"id": 0xFFFFFFFF}, 0xFFFFFFFF),
    ("status", {"status": 14}, Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED),
    ("status", {"status": 1 << 20}, Status(1 << 20)),
    ("timeout_s", {"timeout": 30}, 30),
    ("timeout_s", {}, None),
    ("mark", {"mark": 0xFFFFFFFF}, 0xFFFFFFFF),
    ("mark", {}, 0),
    ("labels", {"labels": struct.pack("@2Q", 5, 1 << 63)}, 1 << 127 | 5),
    ("labels", {"labels": struct.pack("@Q", 5)}, 5),
    ("labels", {}, 0),
    ("helper", helper(), "ftp"),
    ("helper", helper(b"sip"), "sip"),
    ("helper", helper(b"\xff"), "\\xff"),
    ("helper", {"help": ()}, None),
    ("helper", {}, None),
    ("helper_info", {"help": (attr(CTA_HELP, "info", b"own"),)}, b"own"),
    ("helper_info", {}, None),
    ("protocol_info", {}, None),
    ("protocol_info", {"protoinfo": ()}, None),
    (
        "protocol_info",
        {
            "protoinfo": members_of(
                CTA_PROTOINFO,
                tcp=members_of(
                    CTA_PROTOINFO_TCP,
                    state=3,
                    wscale_original=7,
                    wscale_reply=8,
                    flags_original={"flags": 3, "mask": 0},
                    flags_reply={"flags": 0, "mask": 0},
                ),
            )
        },
        (TcpState.ESTABLISHED, 7, 8, TcpFlags.WINDOW_SCALE | TcpFlags.SACK_PERM, TcpFlags(0)),
    ),
    (
        "protocol_info",
        {
            "protoinfo": members_of(
                CTA_PROTOINFO,
                sctp=members_of(CTA_PROTOINFO_SCTP, state=4, vtag_original=5, vtag_reply=6),
            )
        },
        (SctpState.ESTABLISHED, 5, 6),
    ),
    (
        "protocol_info",
        {
            "protoinfo": members_of(
                CTA_PROTOINFO,
                dccp=members_of(CTA_PROTOINFO_DCCP, state=1, role=1, handshake_seq=2**63),
            )
        },
        (DccpState.REQUEST, DccpRole.SERVER, 2**63),
    ),
    ("counters_original", {"counters_orig": members_of(CTA_COUNTERS, packets=1, bytes=9)}, (1, 9)),
    ("counters_reply", {"counters_reply": members_of(CTA_COUNTERS, packets=2, bytes=8)}, (2, 8)),
    ("counters_original", {}, None),
    ("counters_reply", {}, None),
    ("start_ns", {"timestamp": members_of(CTA_TIMESTAMP, start=1_234_567)}, 1_234_567),
    (
        "start",
        {"timestamp": members_of(CTA_TIMESTAMP, start=1_234_567)},
        datetime(1970, 1, 1, 0, 0, 0, 1234, tzinfo=UTC),
    ),
    ("start", {"timestamp": members_of(CTA_TIMESTAMP, start=0)}, None),
    ("start", {}, None),
    ("stop_ns", {"timestamp": members_of(CTA_TIMESTAMP, start=1, stop=2)}, 2),
    ("stop_ns", {"timestamp": members_of(CTA_TIMESTAMP, start=1)}, None),
    ("secctx", {"secctx": members_of(CTA_SECCTX, name=b"label\0")}, b"label"),
    ("secctx", {}, None),
    (
        "seq_adjustment_original",
        {
            "seq_adj_orig": members_of(
                CTA_SEQADJ, correction_pos=2**32 - 1, offset_before=-3, offset_after=4
            )
        },
        (2**32 - 1, -3, 4),
    ),
    ("seq_adjustment_reply", {}, None),
    ("synproxy", {"synproxy": members_of(CTA_SYNPROXY, isn=1, its=2, tsoff=3)}, (1, 2, 3)),
    ("synproxy", {}, None),
]


@pytest.mark.parametrize(("name", "values", "expected"), READ)
def test_a_field_is_what_the_kernel_sent(name, values, expected):
    told = conntrack(**values)
    assert getattr(told, name) == expected


def test_every_field_is_seen_here():
    fields = {name for name, kind in vars(Conntrack).items() if isinstance(kind, property)}
    assert fields == {name for name, _, _ in READ} | {"attributes"}


def test_a_nest_goes_through_the_wire_and_comes_back():
    protocol = QueueProtocol(QueueConfig(0, flags=QueueFlags.CONNTRACK))
    for _, values, _ in READ:
        told = conntrack(**values)
        (packet,) = protocol.receive([make_packet(ct=told.attributes)])
        assert packet.conntrack == told
        assert hash(packet.conntrack) == hash(told)
        packet.drop()
        protocol.flush(65536)


@pytest.mark.parametrize(
    ("nest", "text"),
    [
        ((), "CTA_TUPLE_ORIG"),
        ((attr(CTA, "tuple_orig", ()),), "both addresses of one family"),
        (
            (
                attr(
                    CTA, "tuple_orig", (attr(CTA_TUPLE, "ip", (attr(CTA_IP, "v4_src", bytes(4)),)),)
                ),
            ),
            "both addresses",
        ),
    ],
)
def test_a_connection_without_addresses_says_so(nest, text):
    with pytest.raises(ValueError, match=text):
        _ = Conntrack(nest).original


def test_unknown_members_stay_in_the_raw_nest():
    nest = (*conntrack().attributes, schema.Attr(99, b"new"))
    assert Conntrack(nest).attributes == nest
    assert Conntrack(nest).original == conntrack().original


@pytest.mark.parametrize(
    ("number", "state", "direction"),
    [
        (0, "ESTABLISHED", ConntrackDirection.ORIGINAL),
        (1, "RELATED", ConntrackDirection.ORIGINAL),
        (2, "NEW", ConntrackDirection.ORIGINAL),
        (3, "ESTABLISHED", ConntrackDirection.REPLY),
        (4, "RELATED", ConntrackDirection.REPLY),
        (5, "NEW", ConntrackDirection.REPLY),
        (7, "UNTRACKED", None),
    ],
)
def test_the_relation_has_a_state_and_a_direction(number, state, direction):
    info = ConntrackInfo(number)
    assert (info.state.name, info.direction) == (state, direction)
    assert info.is_reply is (direction is ConntrackDirection.REPLY)


@given(st.integers(0, 2**128 - 1))
def test_labels_go_to_memory_and_back(labels):
    assert labels_of(labels_to_bytes(labels)) == labels


# -- what a verdict may ask ------------------------------------------------------------------------

EXPECT = Expectation(protocol=6, destination=B, destination_port=20)
ASKED = [
    ({"connmark": 5}, {"mark": 5}),
    ({"connmark": 5, "connmark_mask": 7}, {"mark": 5, "mark_mask": 7}),
    ({"ct_labels": 1 << 64}, {"labels": struct.pack("@2Q", 0, 1)}),
    ({"ct_labels": bytes(range(16))}, {"labels": bytes(range(16))}),
    (
        {"ct_labels": 1, "ct_labels_mask": 3},
        {"labels": struct.pack("@2Q", 1, 0), "labels_mask": struct.pack("@2Q", 3, 0)},
    ),
    ({"ct_status": REPLIED}, {"status": 10}),
    ({"ct_timeout_s": 0}, {"timeout": 0}),
    ({"ct_timeout_s": 2_147_483}, {"timeout": 2_147_483}),
    ({"ct_helper": ""}, {"help": (attr(CTA_HELP, "name", b"\0"),)}),
    ({"ct_helper": "ftp"}, {"help": (attr(CTA_HELP, "name", b"ftp\0"),)}),
    (
        {"ct_helper": "mine", "ct_helper_info": b"new"},
        {"help": (attr(CTA_HELP, "name", b"mine\0"), attr(CTA_HELP, "info", b"new"))},
    ),
    ({"seq_adjust": True}, {}),
    ({"expect": EXPECT}, {}),
]


@pytest.mark.parametrize(("changes", "members"), ASKED)
def test_a_change_stands_in_the_nest(changes, members):
    told = decision(Verdict.ACCEPT, changes)
    found = by_name(NFQA, told.attributes)
    assert by_name(CTA, found["ct"]) == members
    assert ("exp" in found) is ("expect" in changes)
    assert not told.plain


def test_nothing_asked_is_nothing_sent():
    assert conntrack_attributes({}) == ()
    assert conntrack_attributes({"seq_adjust": False, "connmark": None, "mark": 3}) == ()
    assert decision(Verdict.ACCEPT, {"seq_adjust": False, "payload": b"x"}).attributes == ()


def test_every_change_is_asked_here():
    assert set().union(*(changes for changes, _ in ASKED)) == CONNTRACK_CHANGES


addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.none() | st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.none() | st.ip_addresses(v=6)),
)
ports = st.integers(0, 65535)


@given(addresses, st.sampled_from([6, 17, 132, 136]), ports, st.none() | ports, st.booleans())
def test_an_expectation_always_has_a_whole_tuple_and_a_whole_mask(
    between, protocol, port, source_port, permanent
):
    """Without one of them the kernel follows a null pointer."""
    destination, source = between
    expect = Expectation(
        protocol=protocol,
        destination=destination,
        destination_port=port,
        source=source,
        source_port=source_port,
        permanent=permanent,
    )
    _, nest = conntrack_attributes({"expect": expect})
    members = by_name(CTA_EXPECT, nest.value)
    assert members.get("flags", 0) == int(permanent)
    wanted, mask = (
        Conntrack((attr(CTA, "tuple_orig", members[name]),)).original for name in ("tuple", "mask")
    )
    every = 2**32 - 1 if destination.version == 4 else 2**128 - 1
    assert wanted.destination == destination
    assert int(wanted.source) == (0 if source is None else int(source))
    assert (wanted.source_port, wanted.destination_port) == (source_port or 0, port)
    assert wanted.protocol == mask.protocol == protocol
    assert (int(mask.destination), mask.destination_port) == (every, 0xFFFF)
    assert int(mask.source) == (0 if source is None else every)
    assert mask.source_port == (0 if source_port is None else 0xFFFF)


@given(
    addresses, ports.filter(bool), st.sampled_from(ConntrackDirection), st.integers(0, 2**32 - 1)
)
def test_an_expectation_says_what_becomes_of_its_connection(between, port, direction, number):
    destination, address = between
    expect = Expectation(
        protocol=17,
        destination=destination,
        destination_port=1,
        expect_class=number,
        helper="tftp",
        function="nat-follow-master",
        nat=ExpectationNat(direction=direction, port=port, address=address),
    )
    _, nest = conntrack_attributes({"expect": expect})
    members = by_name(CTA_EXPECT, nest.value)
    assert members.get("class", 0) == number
    assert (members["help_name"], members["fn"]) == (b"tftp\0", b"nat-follow-master\0")
    nat = by_name(CTA_EXPECT_NAT, members["nat"])
    assert nat["dir"] == direction
    to = Conntrack((attr(CTA, "tuple_orig", nat["tuple"]),)).original
    assert int(to.source) == (0 if address is None else int(address))
    assert (to.protocol, to.source_port, to.destination_port) == (17, port, 0)
    assert to.destination.version == destination.version


def test_an_expectation_says_nothing_of_what_was_not_asked():
    _, nest = conntrack_attributes({"expect": EXPECT})
    assert [*by_name(CTA_EXPECT, nest.value)] == ["tuple", "mask"]


TO = ExpectationNat(direction=ConntrackDirection.REPLY, port=5353)
FOLLOW = {"function": "nat-follow-master", "nat": TO}


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"expect_class": -1}, LocalProtocolError, "expect_class: expected 0 to"),
        ({"expect_class": 1 << 32}, LocalProtocolError, "expect_class: expected 0 to"),
        ({"expect_class": "audio"}, TypeError, "expect_class: expected an integer, got str"),
        ({"helper": ""}, LocalProtocolError, "helper: expected a name, or None"),
        ({"helper": "a" * 16}, LocalProtocolError, "expect: helper: expected at most 15 ASCII"),
        ({"helper": b"ftp"}, TypeError, "expect: helper: expected a string, got bytes"),
        ({"nat": TO}, LocalProtocolError, "nat: expected function with it"),
        ({"function": "sip"}, LocalProtocolError, "function: expected nat with it: sip"),
        (FOLLOW | {"function": "follow"}, LocalProtocolError, "expected one of nat-follow-master"),
        (FOLLOW | {"function": b"sip"}, TypeError, "function: expected a string, got bytes"),
        (FOLLOW | {"nat": {}}, TypeError, "nat: expected an ExpectationNat, got dict"),
        (FOLLOW | {"nat": replace(TO, port=0)}, LocalProtocolError, "expected 1 to 0xffff"),
        (FOLLOW | {"nat": replace(TO, port=1 << 16)}, LocalProtocolError, "port: expected 0 to"),
        (FOLLOW | {"nat": replace(TO, port=None)}, TypeError, "port: expected an integer"),
        (FOLLOW | {"nat": replace(TO, direction=2)}, LocalProtocolError, "direction: expected 0"),
        (FOLLOW | {"nat": replace(TO, address=A6)}, LocalProtocolError, "nat: address: .*family"),
        (FOLLOW | {"nat": replace(TO, address="::")}, TypeError, "address: expected an address"),
    ],
)
def test_a_member_of_an_expectation_that_the_kernel_would_drop_is_refused(values, error, text):
    with pytest.raises(error, match=text):
        conntrack_attributes({"expect": replace(EXPECT, **values)})


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"connmark": -1}, LocalProtocolError, "connmark: expected 0 to 0xffffffff"),
        ({"connmark": "1"}, TypeError, "connmark: expected an integer, got str"),
        ({"connmark_mask": 1}, LocalProtocolError, "connmark_mask: expected connmark with it"),
        ({"connmark": 8, "connmark_mask": 7}, LocalProtocolError, "would flip"),
        ({"ct_labels": 1 << 128}, LocalProtocolError, "ct_labels: expected 0 to"),
        ({"ct_labels": bytes(15)}, LocalProtocolError, "expected 16 bytes, got 15"),
        ({"ct_labels": 4, "ct_labels_mask": 3}, LocalProtocolError, "would flip"),
        ({"ct_labels_mask": 3}, LocalProtocolError, "expected ct_labels with it"),
        ({"ct_status": 1 << 16}, LocalProtocolError, "ct_status: expected 0 to 0xffff"),
        ({"ct_timeout_s": 2_147_484}, LocalProtocolError, "ct_timeout_s: expected 0 to"),
        ({"ct_timeout_s": 1.5}, TypeError, "got float"),
        ({"ct_helper": "a" * 16}, LocalProtocolError, "at most 15 ASCII"),
        ({"ct_helper": "a\0b"}, LocalProtocolError, "at most 15 ASCII"),
        ({"ct_helper": b"ftp"}, TypeError, "expected a string"),
        ({"ct_helper_info": b"new"}, LocalProtocolError, "which helper"),
        ({"ct_helper": "ftp", "ct_helper_info": "new"}, TypeError, "expected bytes"),
        ({"expect": {}}, TypeError, "expected an Expectation"),
        (
            {"expect": Expectation(protocol=1, destination=B, destination_port=1)},
            LocalProtocolError,
            "expected one of",
        ),
        (
            {"expect": Expectation(protocol=6, destination=B, destination_port=1, source=A6)},
            LocalProtocolError,
            "one family",
        ),
        (
            {"expect": Expectation(protocol=6, destination="10.0.0.1", destination_port=1)},
            TypeError,
            "destination: expected an address, got str",
        ),
        (
            {"expect": Expectation(protocol=6, destination=B, destination_port=65536)},
            LocalProtocolError,
            "destination_port: expected 0 to 0xffff",
        ),
    ],
)
def test_a_value_that_the_kernel_would_misread_is_refused(changes, error, text):
    with pytest.raises(error, match=text):
        conntrack_attributes(changes)


NAT = REPLIED | Status.SRC_NAT | Status.SRC_NAT_DONE
UDP = {"tuple_orig": tuple_of(num=17, src_port=1, dst_port=2)}
OVER_IPV6 = {"tuple_orig": tuple_of(A6, B6, **TCP), "tuple_reply": tuple_of(B6, A6, **TCP)}


@pytest.mark.parametrize(
    ("changes", "told", "new_length", "text"),
    [
        ({"connmark": 1}, None, None, "belongs to no connection"),
        ({"ct_timeout_s": 1}, conntrack(Status.FIXED_TIMEOUT), None, "FIXED_TIMEOUT"),
        ({"ct_timeout_s": 1}, conntrack(Status.DYING), None, "about to be removed"),
        ({"ct_status": Status.CONFIRMED}, conntrack(REPLIED), None, "SEEN_REPLY can be set but"),
        (
            {"ct_status": Status.CONFIRMED},
            conntrack(REPLIED | Status.ASSURED),
            None,
            "ASSURED",
        ),
        ({"ct_status": Status(0)}, conntrack(), None, "leave CONFIRMED as it is"),
        ({"ct_status": Status.CONFIRMED | Status.DYING}, conntrack(), None, "leave DYING"),
        ({"ct_helper": "ftp"}, conntrack(), None, "no helper 'ftp'"),
        ({"ct_helper": "sip"}, conntrack(**helper()), None, "no helper 'sip'"),
        ({"ct_helper": ""}, conntrack(Status.EXPECTED, **helper()), None, "keeps its helper"),
        (NEW_DATA, conntrack(**helper()), None, "'ftp' has no data of its own"),
        (NEW_DATA, conntrack(**in_user_space(b"12")), None, "at most the 2 bytes"),
        (
            NEW_DATA,
            conntrack(Status.EXPECTED, **in_user_space(b"123")),
            None,
            "changes nothing",
        ),
        ({"expect": EXPECT}, conntrack(), None, "the connection has no helper"),
        ({"expect": EXPECT, "ct_helper": ""}, conntrack(**helper()), None, "takes the helper away"),
        ({"expect": EXPECT}, conntrack(**OVER_IPV6, **helper()), None, "addresses of IPv6"),
        (
            {"expect": replace(EXPECT, helper="sip")},
            conntrack(**UDP, **helper()),
            None,
            "the connection's protocol 17 with it, got 6",
        ),
        (
            {"expect": replace(EXPECT, helper="sip", expect_class=1)},
            conntrack(**helper()),
            None,
            "no helper with it but 'ftp'",
        ),
        ({"seq_adjust": True}, conntrack(**helper()), 41, "without NAT, with helper ftp"),
        ({"seq_adjust": True}, conntrack(NAT), 41, "with NAT, with no helper"),
        ({"seq_adjust": True}, conntrack(NAT, **UDP, **helper()), 41, "of protocol 17"),
        ({"seq_adjust": True}, conntrack(NAT, **OVER_IPV6, **helper()), 41, "over IPv6"),
        ({"connmark": 1}, conntrack(NAT), 41, "connmark: not together with a payload of another"),
    ],
)
def test_what_the_kernel_would_ignore_is_refused_with_the_reason(changes, told, new_length, text):
    assert conntrack_attributes(changes)
    with pytest.raises(LocalProtocolError, match=text):
        check_connection(changes, told, length=40, new_length=new_length)


@pytest.mark.parametrize(
    ("changes", "told", "new_length"),
    [
        ({"mark": 1}, None, 41),
        ({"connmark": 1}, conntrack(), 41),
        ({"connmark": 1}, conntrack(NAT), 40),
        ({"connmark": 1}, conntrack(NAT), None),
        ({"connmark": 1}, conntrack(NAT, **UDP), 41),
        ({"ct_status": REPLIED | Status.ASSURED}, conntrack(), None),
        ({"ct_status": REPLIED}, conntrack(REPLIED | Status.FIXED_TIMEOUT), None),
        ({"ct_timeout_s": 1, "ct_status": REPLIED | Status.FIXED_TIMEOUT}, conntrack(), None),
        ({"ct_helper": "ftp"}, conntrack(**helper()), None),
        ({"ct_helper": ""}, conntrack(**helper()), None),
        ({"ct_helper": ""}, conntrack(Status.EXPECTED), None),
        ({"expect": EXPECT}, conntrack(**helper()), None),
        ({"expect": replace(EXPECT, helper="sip")}, conntrack(**helper()), None),
        ({"expect": replace(EXPECT, helper="ftp", expect_class=1)}, conntrack(**helper()), None),
        ({"expect": replace(EXPECT, expect_class=1)}, conntrack(**UDP, **helper()), None),
        ({"expect": replace(EXPECT, **FOLLOW)}, conntrack(**helper()), None),
        ({"seq_adjust": True}, conntrack(NAT, **helper()), 41),
        ({"seq_adjust": True}, conntrack(), 40),
    ],
)
def test_what_the_kernel_takes_passes(changes, told, new_length):
    check_connection(changes, told, length=40, new_length=new_length)


def test_without_the_packet_only_mark_and_labels_can_be_set():
    check_unseen({"connmark": 1, "connmark_mask": 1, "ct_labels": 1, "mark": 2, "payload": b""})
    for name in CONNTRACK_CHANGES - {"connmark", "connmark_mask", "ct_labels", "ct_labels_mask"}:
        with pytest.raises(LocalProtocolError, match=f"{name}: .* has not seen the packet"):
            check_unseen({name: True})


def test_a_packet_holds_changes_against_its_own_connection():
    protocol = QueueProtocol(QueueConfig(0, flags=QueueFlags.CONNTRACK))
    payload = udp_packet(b"data")
    ct = conntrack(NAT).attributes
    plain, nat = protocol.receive([make_packet(1, payload), make_packet(2, payload, ct=ct)])
    with pytest.raises(LocalProtocolError, match="belongs to no connection"):
        plain.accept(connmark=1)
    with pytest.raises(LocalProtocolError, match="another length"):
        nat.accept(connmark=1, payload=udp_packet(b"longer data"))
    nat.payload = udp_packet(b"longer data")
    with pytest.raises(LocalProtocolError, match="another length"):
        nat.accept(connmark=1)
    nat.payload = udp_packet(b"DATA")
    nat.accept(connmark=1)
    plain.accept()


def test_a_conntrack_change_demands_the_flag():
    protocol = QueueProtocol(QueueConfig(0))
    (packet,) = protocol.receive([make_packet(ct=())])
    for changes, _ in ASKED:
        with pytest.raises(LocalProtocolError, match=r"flags=QueueFlags\.CONNTRACK"):
            packet.accept(**changes)
    packet.accept(seq_adjust=False)
