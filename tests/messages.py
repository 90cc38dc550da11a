"""Messages as records and as bytes, and hypothesis strategies for any message.

The bytes of `MESSAGES` are written by hand from struct definitions (little-endian host), those of
`RECORDED` come from a 6.18 kernel. Nothing here uses the schema's builder.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from construct import Default, FormatField, Renamed
from hypothesis import strategies as st

from trionfq.schema import (
    NLA_F_NESTED,
    SCHEMA,
    AnyMessage,
    Attr,
    ErrorMessage,
    Message,
    Operation,
    RawMessage,
)
from trionfq.schema._constructs import Coded, Counted, Fields, Native, Raw
from trionfq.schema._lists import TagList


class Example(NamedTuple):
    """One message, as record and as bytes."""

    name: str
    record: AnyMessage
    datagram: bytes


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


def _packet(*attributes: Attr, family: int = 2, queue: int = 7) -> Message:
    return Message(0x300, 0, 0, 0, family, 0, queue, attributes)


def _verdict(*attributes: Attr, seq: int = 1) -> Message:
    return Message(0x301, 1, seq, 0, 0, 0, 7, attributes)


def _config(*attributes: Attr) -> Message:
    return Message(0x302, 5, 9, 0, 0, 0, 7, attributes)


_HDR = Attr(1, {"packet_id": 5, "hw_protocol": 0x0800, "hook": 3})
_HDR_HEX = "0b00 0100 00000005 0800 03 00"
_ACCEPT = Attr(2, {"verdict": 1, "id": 5})
_ACCEPT_HEX = "0c00 0200 00000001 00000005"

MESSAGES: list[Example] = [
    Example(
        "packet_without_payload",
        _packet(_HDR),
        _hex("20000000 0003 0000 00000000 00000000 02 00 0007" + _HDR_HEX),
    ),
    Example(
        "packet_with_odd_payload",
        _packet(_HDR, Attr(6, 1), Attr(10, b"\x45\x00\x07")),
        _hex(
            "2f000000 0003 0000 00000000 00000000 02 00 0007"
            + _HDR_HEX
            + "0800 0600 00000001  0700 0a00 450007"
        ),
    ),
    Example(
        "packet_with_empty_payload",
        _packet(_HDR, Attr(10, b"")),
        _hex("24000000 0003 0000 00000000 00000000 02 00 0007" + _HDR_HEX + "0400 0a00"),
    ),
    Example(
        "packet_with_every_scalar",
        _packet(
            _HDR,
            Attr(5, 2),
            Attr(7, 3),
            Attr(6, 4),
            Attr(8, 5),
            Attr(3, 0x42),
            Attr(21, 6),
            Attr(9, {"hw_addrlen": 6, "pad": 0, "hw_addr": b"\x02\x00\x00\x00\x00\x09\xaa\xbb"}),
            Attr(4, {"sec": 1_700_000_000, "usec": 999_999}),
            Attr(16, 1000),
            Attr(17, 100),
            Attr(22, 0x10001),
            Attr(12, 2),
            Attr(13, 1500),
            Attr(14, 3),
        ),
        _hex(
            "a4000000 0003 0000 00000000 00000000 02 00 0007"
            + _HDR_HEX
            + "0800 0500 00000002  0800 0700 00000003  0800 0600 00000004  0800 0800 00000005"
            + "0800 0300 00000042  0800 1500 00000006"
            + "1000 0900 0006 0000 020000000009aabb"
            + "1400 0400 000000006553f100 00000000000f423f"
            + "0800 1000 000003e8  0800 1100 00000064  0800 1600 00010001"
            + "0800 0c00 00000002  0800 0d00 000005dc  0800 0e00 00000003"
        ),
    ),
    Example(
        "packet_from_a_bridge",
        _packet(
            _HDR,
            Attr(19, (Attr(1, 0x8100), Attr(2, 0x2005)), NLA_F_NESTED),
            Attr(20, bytes(range(14))),
            family=7,
        ),
        _hex(
            "48000000 0003 0000 00000000 00000000 07 00 0007"
            + _HDR_HEX
            + "1400 1380 0600 0100 8100 0000 0600 0200 2005 0000"
            + "1200 1400 000102030405060708090a0b0c0d 0000"
        ),
    ),
    Example(
        "packet_with_security_context_last",
        _packet(_HDR, Attr(18, b"user_u:role_r:t\0x")),
        _hex(
            "38000000 0003 0000 00000000 00000000 02 00 0007"
            + _HDR_HEX
            + "1500 1200 757365725f753a726f6c655f723a740078 000000"
        ),
    ),
    Example(
        "packet_with_connection",
        _packet(
            _HDR,
            Attr(
                11,
                (
                    Attr(
                        1,
                        (
                            Attr(
                                1,
                                (Attr(1, b"\x0a\x00\x00\x01"), Attr(2, b"\x0a\x00\x00\x02")),
                                NLA_F_NESTED,
                            ),
                            Attr(2, (Attr(1, 17), Attr(2, 5353), Attr(3, 53)), NLA_F_NESTED),
                        ),
                        NLA_F_NESTED,
                    ),
                    Attr(18, 3),
                    Attr(3, 0x18E),
                    Attr(7, 30),
                    Attr(
                        4,
                        (
                            Attr(
                                1,
                                (Attr(1, 3), Attr(4, {"flags": 0x0B, "mask": 0xFF})),
                                NLA_F_NESTED,
                            ),
                        ),
                        NLA_F_NESTED,
                    ),
                    Attr(5, (Attr(1, b"ftp\0"),), NLA_F_NESTED),
                    Attr(15, (Attr(1, 1), Attr(2, -4), Attr(3, 4)), NLA_F_NESTED),
                    Attr(8, 0x99),
                    Attr(12, 0xDEADBEEF),
                    Attr(22, b"\x01" + bytes(15)),
                ),
                NLA_F_NESTED,
            ),
            Attr(12, 0),
        ),
        _hex(
            "dc000000 0003 0000 00000000 00000000 02 00 0007"
            + _HDR_HEX
            + "b400 0b80"
            + "3400 0180"
            + "1400 0180 0800 0100 0a000001 0800 0200 0a000002"
            + "1c00 0280 0500 0100 11 000000 0600 0200 14e9 0000 0600 0300 0035 0000"
            + "0600 1200 0003 0000"
            + "0800 0300 0000018e"
            + "0800 0700 0000001e"
            + "1800 0480 1400 0180 0500 0100 03 000000 0600 0400 0b ff 0000"
            + "0c00 0580 0800 0100 66747000"
            + "1c00 0f80 0800 0100 00000001 0800 0200 fffffffc 0800 0300 00000004"
            + "0800 0800 00000099"
            + "0800 0c00 deadbeef"
            + "1400 1600 01000000 00000000 00000000 00000000"
            + "0800 0c00 00000000"
        ),
    ),
    Example(
        "packet_with_ipv6_connection",
        _packet(
            _HDR,
            Attr(
                11,
                (
                    Attr(
                        2,
                        (
                            Attr(1, (Attr(3, bytes(15) + b"\x01"), Attr(4, bytes(15) + b"\x02"))),
                            Attr(2, (Attr(1, 58), Attr(7, 1), Attr(8, 128), Attr(9, 0))),
                        ),
                    ),
                    Attr(4, (Attr(3, (Attr(1, 4), Attr(2, 7), Attr(3, 8))),)),
                    Attr(4, (Attr(2, (Attr(1, 1), Attr(2, 0), Attr(3, 1 << 40))),)),
                ),
            ),
            family=10,
        ),
        _hex(
            "bc000000 0003 0000 00000000 00000000 0a 00 0007"
            + _HDR_HEX
            + "9c00 0b00"
            + "5400 0200"
            + "2c00 0100 1400 0300 00000000000000000000000000000001"
            + "1400 0400 00000000000000000000000000000002"
            + "2400 0200"
            + "0500 0100 3a 000000 0600 0700 0001 0000 0500 0800 80 000000 0500 0900 00 000000"
            + "2000 0400 1c00 0300 0500 0100 04 000000 0800 0200 00000007 0800 0300 00000008"
            + "2400 0400 2000 0200 0500 0100 01 000000 0500 0200 00 000000"
            + "0c00 0300 0000010000000000"
        ),
    ),
    Example(
        "packet_with_attributes_of_the_future",
        _packet(_HDR, Attr(99, b"\x01\x02\x03"), Attr(0, b""), Attr(0x3FFF, b"four", 0x4000)),
        _hex(
            "34000000 0003 0000 00000000 00000000 02 00 0007"
            + _HDR_HEX
            + "0700 6300 010203 00  0400 0000  0800 ff7f 666f7572"
        ),
    ),
    Example(
        "packet_with_duplicates_out_of_order",
        _packet(Attr(3, 1), Attr(10, b"x"), _HDR, Attr(3, 2, 0x8000)),
        _hex(
            "38000000 0003 0000 00000000 00000000 02 00 0007"
            + "0800 0300 00000001  0500 0a00 78 000000"
            + _HDR_HEX
            + "0800 0380 00000002"
        ),
    ),
    Example(
        "verdict_accept",
        _verdict(_ACCEPT),
        _hex("20000000 0103 0100 01000000 00000000 00 00 0007" + _ACCEPT_HEX),
    ),
    Example(
        "verdict_requeue_with_bypass",
        _verdict(Attr(2, {"verdict": 9 << 16 | 0x8003, "id": 0xFFFFFFFF})),
        _hex("20000000 0103 0100 01000000 00000000 00 00 0007 0c00 0200 00098003 ffffffff"),
    ),
    Example(
        "verdict_with_mark_and_odd_payload",
        _verdict(_ACCEPT, Attr(3, 7), Attr(21, 9), Attr(10, b"hello")),
        _hex(
            "3c000000 0103 0100 01000000 00000000 00 00 0007"
            + _ACCEPT_HEX
            + "0800 0300 00000007  0800 1500 00000009  0900 0a00 68656c6c6f 000000"
        ),
    ),
    Example(
        "verdict_with_connection_and_expectation",
        _verdict(
            _ACCEPT,
            Attr(11, (Attr(8, 5), Attr(21, 0xF), Attr(22, b"\x02\0\0\0"), Attr(23, b"\xff" * 4))),
            Attr(
                15,
                (
                    Attr(2, (Attr(2, (Attr(1, 6),)),)),
                    Attr(3, ()),
                    Attr(4, 300),
                    Attr(6, b"sip\0"),
                    Attr(8, 1),
                    Attr(10, (Attr(1, 0),)),
                    Attr(11, b"nat"),
                ),
            ),
        ),
        _hex(
            "88000000 0103 0100 01000000 00000000 00 00 0007"
            + _ACCEPT_HEX
            + "2400 0b00 0800 0800 00000005 0800 1500 0000000f"
            + "0800 1600 02000000 0800 1700 ffffffff"
            + "4400 0f00 1000 0200 0c00 0200 0500 0100 06 000000 0400 0300"
            + "0800 0400 0000012c 0800 0600 73697000 0800 0800 00000001"
            + "0c00 0a00 0800 0100 00000000 0700 0b00 6e6174 00"
        ),
    ),
    Example(
        "verdict_batch",
        Message(0x303, 1, 8, 0, 0, 0, 7, (Attr(2, {"verdict": 0, "id": 8}), Attr(3, 1))),
        _hex(
            "28000000 0303 0100 08000000 00000000 00 00 0007"
            "0c00 0200 00000000 00000008 0800 0300 00000001"
        ),
    ),
    Example(
        "config_in_one_message",
        _config(
            Attr(1, {"command": 1, "pad": 0, "pf": 0}),
            Attr(2, {"copy_range": 0xFFFF, "copy_mode": 2}),
            Attr(3, 4096),
            Attr(4, 31),
            Attr(5, 0x80000009),
        ),
        _hex(
            "40000000 0203 0500 09000000 00000000 00 00 0007"
            "0800 0100 01 00 0000  0900 0200 0000ffff 02 000000"
            "0800 0300 00001000  0800 0400 0000001f  0800 0500 80000009"
        ),
    ),
    Example(
        "config_of_nothing",
        _config(),
        _hex("14000000 0203 0500 09000000 00000000 00 00 0007"),
    ),
    Example(
        "config_unbind_of_a_family",
        _config(Attr(1, {"command": 4, "pad": 7, "pf": 10})),
        _hex("1c000000 0203 0500 09000000 00000000 00 00 0007 0800 0100 04 07 000a"),
    ),
    Example(
        "success",
        ErrorMessage(0x100, 9, 77, 0, (0x40, 0x302, 5, 9, 0), b"", ()),
        _hex("24000000 0200 0001 09000000 4d000000 00000000 40000000 0203 0500 09000000 00000000"),
    ),
    Example(
        "success_of_an_old_kernel",
        ErrorMessage(0, 9, 77, 0, (0x40, 0x302, 5, 9, 0), b"", ()),
        _hex("24000000 0200 0000 09000000 4d000000 00000000 40000000 0203 0500 09000000 00000000"),
    ),
    Example(
        "refusal_with_an_odd_request",
        ErrorMessage(0, 9, 77, -22, (0x15, 0x302, 5, 9, 0), b"\x00\x00\x00\x07\xee", ()),
        _hex(
            "2c000000 0200 0000 09000000 4d000000 eaffffff"
            "15000000 0203 0500 09000000 00000000 00000007 ee 000000"
        ),
    ),
    Example(
        "refusal_with_an_odd_request_and_attributes",
        ErrorMessage(
            0x200,
            9,
            77,
            -34,
            (0x15, 0x302, 5, 9, 0),
            b"\x00\x00\x00\x07\xee",
            (
                Attr(1, b"short\0"),
                Attr(2, 20),
                Attr(3, b"c"),
                Attr(4, (Attr(1, 4), Attr(5, 0xFFFF)), NLA_F_NESTED),
                Attr(5, 2),
                Attr(6, 16),
            ),
        ),
        _hex(
            "70000000 0200 0002 09000000 4d000000 deffffff"
            "15000000 0203 0500 09000000 00000000 00000007 ee 000000"
            "0a00 0100 73686f727400 0000  0800 0200 14000000  0500 0300 63 000000"
            "1800 0480 0800 0100 04000000 0c00 0500 ffff000000000000"
            "0800 0500 02000000  0800 0600 10000000"
        ),
    ),
    Example(
        "refusal_capped_with_text",
        ErrorMessage(0x300, 3, 1, -95, (0x20, 0x301, 1, 3, 0), b"", (Attr(1, b"no\0"),)),
        _hex(
            "2c000000 0200 0003 03000000 01000000 a1ffffff"
            "20000000 0103 0100 03000000 00000000 0700 0100 6e6f00 00"
        ),
    ),
    Example(
        "noop",
        RawMessage(1, 0, 0, 0, b""),
        _hex("10000000 0100 0000 00000000 00000000"),
    ),
    Example(
        "done",
        RawMessage(3, 2, 4, 5, b"\x00\x00\x00\x00"),
        _hex("14000000 0300 0200 04000000 05000000 00000000"),
    ),
    Example(
        "overrun",
        RawMessage(4, 0, 0, 0, b"\xff"),
        _hex("11000000 0400 0000 00000000 00000000 ff"),
    ),
    Example(
        "foreign_subsystem",
        RawMessage(0x100, 0, 0, 0, b"\x02\x00\x00\x00"),
        _hex("14000000 0001 0000 00000000 00000000 02000000"),
    ),
    Example(
        "nfqueue_message_of_the_future",
        RawMessage(0x304, 0, 0, 0, b"\x02\x00\x00\x00"),
        _hex("14000000 0403 0000 00000000 00000000 02000000"),
    ),
]

# The same message from a big-endian host: headers swapped, contents not.
BIG_ENDIAN: list[Example] = [
    Example(
        "packet",
        _packet(
            _HDR, Attr(19, (Attr(1, 0x8100),), NLA_F_NESTED), Attr(99, b"\x01"), Attr(10, b"ab")
        ),
        _hex(
            "0000003a 0300 0000 00000000 00000000 02 00 0007"
            "000b 0001 00000005 0800 03 00  000c 8013 0006 0001 8100 0000"
            "0005 0063 01 000000  0006 000a 6162"
        ),
    ),
    Example(
        "refusal",
        ErrorMessage(
            0x300, 9, 77, -22, (0x40, 0x302, 5, 9, 0), b"", (Attr(2, 20), Attr(4, (Attr(6, 4),)))
        ),
        _hex(
            "00000038 0002 0300 00000009 0000004d ffffffea 00000040 0302 0005 00000009 00000000"
            "0008 0002 00000014  000c 0004 0008 0006 00000004"
        ),
    ),
]

# What a 6.18 kernel sent: iptables OUTPUT and INPUT on lo, UDP, mark 0x42, F_UID_GID, and answers.
RECORDED: list[tuple[str, bytes]] = [
    (
        "output_udp_with_mark_and_uid",
        _hex(
            "63000000000300000000000000000000020000070b000100000000010800030008000600000000010800"
            "0300000000420800100000000000080011000000000023000a004500001f88a440004011b4277f000001"
            "7f000001b8fe270f000b5d65616263"
        ),
    ),
    (
        "input_udp_with_hardware_address",
        _hex(
            "6b000000000300000000000000000000020000070b000100000000020800010008000500000000010800"
            "0300000000421000090000060000000000000000000008000e000000000423000a004500001f88a44000"
            "4011b4277f0000017f000001b8fe270f000b5d65616263"
        ),
    ),
    (
        "success",
        _hex("2400000002000001010000008e3800000000000038000000020305000100000000000000"),
    ),
    (
        "unknown_id",
        _hex(
            "3400000002000000090000008e380000feffffff20000000010301000900000000000000000000070c00"
            "02000000000100000063"
        ),
    ),
    (
        "warning_of_leftover_bytes",
        _hex(
            "50000000020000030a0000008e380000feffffff28000000010301000a000000000000002c0001006279"
            "746573206c6566746f7665722061667465722070617273696e67206174747269627574657300"
        ),
    ),
]

_WIDTHS = {"b": 8, "h": 16, "l": 32, "q": 64}


def values(node: Any) -> st.SearchStrategy[Any]:
    """Values that a declaration can hold."""
    if isinstance(node, Native):
        return values(node.by_order["big"])
    if isinstance(node, Renamed | Coded | Default):
        return values(node.subcon)
    if isinstance(node, FormatField):
        letter = node.fmtstr[1]
        bits = _WIDTHS[letter.lower()]
        if letter.islower():
            return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        return st.integers(0, (1 << bits) - 1)
    if isinstance(node, Raw):
        most = node.least + 12 if node.most is None else node.most
        return st.integers(node.least // node.step, most // node.step).flatmap(
            lambda n: st.binary(min_size=n * node.step, max_size=n * node.step)
        )
    if isinstance(node, Fields):
        return _fields(node)
    if isinstance(node, TagList):
        return st.lists(elements(node), max_size=3).map(tuple)
    raise TypeError(node)


def _fields(node: Fields) -> st.SearchStrategy[dict[str, Any]]:
    def counted(fields: dict[str, Any]) -> dict[str, Any]:
        for subcon in node.subcons:
            inner: Any = subcon
            if isinstance(inner.subcon, Counted):
                fields[inner.subcon.length_field] = len(fields[inner.name])
        return fields

    return st.fixed_dictionaries(
        {
            str(subcon.name): st.binary(max_size=9)
            if isinstance(subcon.subcon, Counted)  # type: ignore[attr-defined]
            else values(subcon)
            for subcon in node.subcons
        }
    ).map(counted)


def elements(node: TagList) -> st.SearchStrategy[Attr]:
    """Elements of a list, known and unknown."""
    mask = node.framing.number_mask
    known = [
        st.builds(Attr, st.just(each.number), values(each.declaration), flags(mask))
        for each in node.attributes.attributes
    ]
    numbers = st.integers(0, mask).filter(
        lambda n: n not in node.attributes.by_number and n != node.framing.end
    )
    unknown = st.builds(Attr, numbers, st.binary(max_size=9), flags(mask))
    return st.one_of(*known, unknown)


def flags(mask: int) -> st.SearchStrategy[int]:
    """Flag bits outside a mask."""
    if mask == 0xFFFF:
        return st.just(0)
    return st.sampled_from([0, NLA_F_NESTED, 0x4000, 0xC000])


U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
_KINDS: Any = SCHEMA.messages.kinds


@functools.cache
def _attributes(number: int) -> st.SearchStrategy[tuple[Attr, ...]]:
    """Attributes of one operation, the required ones somewhere among them."""
    operation: Operation = _KINDS[number].body.operation
    node = _KINDS[number].body.attributes
    needed = [
        st.builds(
            Attr,
            st.just(operation.attributes.by_name[name].number),
            values(operation.attributes.by_name[name].declaration),
            flags(node.framing.number_mask),
        )
        for name in sorted(operation.required)
    ]
    return st.tuples(st.tuples(*needed), st.lists(elements(node), max_size=6)).flatmap(
        lambda parts: st.permutations([*parts[0], *parts[1]]).map(tuple)
    )


# Composite strategies below, since the others' reprs are as long as the schema.
@st.composite
def operation_messages(draw: st.DrawFn, number: int) -> Message:
    """Messages of one operation, by its nlmsg_type."""
    # Every other one with flags, sequence number and port id 0, as a PACKET's are.
    free = (U16, U32, U32) if draw(st.booleans()) else (st.just(0),) * 3
    fixed = [draw(each) for each in (*free, U8, U8, U16)]
    return Message._make([number, *fixed, draw(_attributes(number))])


@st.composite
def error_messages(draw: st.DrawFn) -> ErrorMessage:
    """Answers: capped or not, with attributes or without."""
    capped, tlvs = draw(st.booleans()), draw(st.booleans())
    bits = draw(U16) & ~0x300 | 0x100 * capped | 0x200 * tlvs
    body = b"" if capped else draw(st.binary(max_size=21))
    length = draw(U32) if capped else 16 + len(body)
    if not capped and not tlvs and draw(st.booleans()):
        body = b""
    request = (length, draw(U16), draw(U16), draw(U32), draw(U32))
    node = _KINDS[2].body.attributes
    attributes = draw(values(node)) if tlvs else ()
    error = draw(st.integers(-(1 << 31), (1 << 31) - 1))
    return ErrorMessage(bits, draw(U32), draw(U32), error, request, body, attributes)


RAW_MESSAGES = st.builds(
    RawMessage, U16.filter(lambda n: n not in _KINDS), U16, U32, U32, st.binary(max_size=21)
)
PACKETS = operation_messages(0x300)
ANY_MESSAGE: st.SearchStrategy[AnyMessage] = st.one_of(
    *map(operation_messages, (0x300, 0x301, 0x302, 0x303)), error_messages(), RAW_MESSAGES
)
ANY_MESSAGES = st.lists(ANY_MESSAGE, max_size=3)
ORDERS: st.SearchStrategy[Any] = st.sampled_from(["little", "big"])


@st.composite
def damaged(draw: st.DrawFn, datagrams: st.SearchStrategy[bytes]) -> bytes:
    """Datagrams that were valid before a few bytes of them were changed, cut or doubled."""
    datagram = bytearray(draw(datagrams))
    for _ in range(draw(st.integers(1, 3))):
        if not datagram:
            break
        at = draw(st.integers(0, len(datagram) - 1))
        what = draw(st.integers(0, 4))
        if what == 0:
            del datagram[at:]
        elif what == 1:
            datagram[at] = draw(U8)
        elif what == 2:
            datagram[at] = (datagram[at] + draw(st.sampled_from([1, 4, 0xFC, 0xFF]))) & 0xFF
        elif what == 3:
            datagram[at:at] = draw(st.binary(max_size=5))
        else:
            del datagram[at : at + draw(st.integers(1, 5))]
    return bytes(datagram)
