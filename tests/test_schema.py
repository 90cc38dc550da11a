"""The schema: parse and build are inverse, and nothing malformed passes in silence."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from construct import Int32ub
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.messages import (
    ANY_MESSAGES,
    BIG_ENDIAN,
    MESSAGES,
    ORDERS,
    RECORDED,
    Example,
    damaged,
    values,
)
from trionfq._errors import LocalProtocolError, RemoteProtocolError
from trionfq.schema import (
    NLA_F_NESTED,
    SCHEMA,
    AnyMessage,
    Attr,
    Attribute,
    AttributeSet,
    Direction,
    ErrorMessage,
    Message,
    RawMessage,
    attr,
    build,
    by_name,
    conntrack,
    nfqueue,
    parse,
    pcapng,
    reference,
)
from trionfq.schema._constructs import Raw
from trionfq.schema._lists import TagList, attribute_list, option_list
from trionfq.schema._schema import Schema, read, write

NAMED = {example.name: example for example in MESSAGES}
UAPI = Path("/usr/include/linux/netfilter")


def ids(examples: list[Example]) -> list[str]:
    return [example.name for example in examples]


@pytest.mark.parametrize("example", MESSAGES, ids=ids(MESSAGES))
def test_bytes_become_records(example: Example) -> None:
    assert parse(example.datagram, order="little") == [example.record]


@pytest.mark.parametrize("example", MESSAGES, ids=ids(MESSAGES))
def test_records_become_bytes(example: Example) -> None:
    assert build([example.record], order="little").hex() == example.datagram.hex()


@pytest.mark.parametrize("example", BIG_ENDIAN, ids=ids(BIG_ENDIAN))
def test_a_big_endian_host_swaps_headers_but_not_contents(example: Example) -> None:
    assert parse(example.datagram, order="big") == [example.record]
    assert build([example.record], order="big").hex() == example.datagram.hex()


@pytest.mark.parametrize(("name", "datagram"), RECORDED, ids=[name for name, _ in RECORDED])
def test_what_a_kernel_sent_is_built_again_byte_for_byte(name: str, datagram: bytes) -> None:
    assert build(parse(datagram, order="little"), order="little") == datagram


def test_the_order_is_this_hosts_where_none_is_given() -> None:
    order: Any = sys.byteorder
    example = MESSAGES[0]
    assert build([example.record]) == build([example.record], order=order)
    assert parse(build([example.record])) == [example.record]


def test_several_messages_share_a_datagram() -> None:
    odd, success = NAMED["packet_with_odd_payload"], NAMED["success"]
    datagram = odd.datagram + b"\0" + success.datagram
    assert parse(datagram, order="little") == [odd.record, success.record]
    assert build([odd.record, success.record], order="little") == datagram


def test_an_empty_datagram_has_no_messages() -> None:
    assert parse(b"") == []
    assert build([]) == b""


def test_padding_at_the_end_may_be_there_or_not() -> None:
    odd = NAMED["packet_with_odd_payload"]
    assert parse(odd.datagram + b"\0", order="little") == [odd.record]
    longer = b"\x30" + odd.datagram[1:] + b"\0"
    assert parse(longer, order="little") == [odd.record]
    text = NAMED["packet_with_security_context_last"]
    shorter = b"\x35" + text.datagram[1:-3]
    assert parse(shorter, order="little") == [text.record]


def test_a_payload_is_padded_within_a_message_to_the_kernel_and_bare_in_one_from_it() -> None:
    """Else tshark, which does not align, misses the message that follows in the datagram."""
    verdict, packet = NAMED["verdict_with_mark_and_odd_payload"], NAMED["packet_with_odd_payload"]
    assert len(verdict.datagram) % 4 == 0
    assert verdict.datagram[0] == len(verdict.datagram)
    assert len(packet.datagram) % 4
    assert packet.datagram[0] == len(packet.datagram)
    pair = build([verdict.record, verdict.record], order="little")
    assert pair == verdict.datagram * 2
    # Programs that leave the padding out are read, too.
    bare = bytes([len(verdict.datagram) - 3]) + verdict.datagram[1:-3]
    assert parse(bare, order="little") == [verdict.record]
    assert parse(bare + b"\0\0\0" + verdict.datagram, order="little") == [verdict.record] * 2


def test_padding_need_not_be_zero() -> None:
    example = NAMED["packet_with_odd_payload"]
    datagram = bytearray(example.datagram)
    datagram[31] = 0xEE
    assert parse(bytes(datagram), order="little") == [example.record]


def damage(name: str, at: int, replacement: str, *, cut: int | None = None) -> bytes:
    datagram = bytearray(NAMED[name].datagram)
    new = bytes.fromhex(replacement)
    datagram[at : at + len(new)] = new
    return bytes(datagram[:cut])


MALFORMED = [
    ("header_cut", damage("success", 0, "", cut=15), 0, ("nlmsghdr",), "16 bytes, got 15"),
    ("length_too_short", damage("success", 0, "0f"), 0, ("error",), "got 15"),
    ("length_too_long", damage("success", 0, "25"), 0, ("error",), "got 37"),
    ("fixed_header_cut", damage("config_of_nothing", 0, "13", cut=19), 16, ("config",), "got 3"),
    (
        "attribute_header_cut",
        damage("verdict_accept", 0, "16", cut=22),
        20,
        ("verdict", "header"),
        "4 bytes, got 2",
    ),
    (
        "attribute_length_below_its_header",
        damage("verdict_accept", 20, "03"),
        20,
        ("verdict", "NFQA_VERDICT_HDR"),
        "got 3",
    ),
    (
        "attribute_longer_than_the_message",
        damage("verdict_accept", 20, "0d"),
        20,
        ("verdict", "NFQA_VERDICT_HDR"),
        "got 13",
    ),
    (
        "struct_of_the_wrong_length",
        damage("packet_without_payload", 20, "0a"),
        24,
        ("packet", "NFQA_PACKET_HDR"),
        "expected 7 bytes, got 6",
    ),
    (
        "scalar_of_the_wrong_length",
        damage("packet_with_odd_payload", 32, "06"),
        36,
        ("packet", "NFQA_IFINDEX_OUTDEV"),
        "expected 4 bytes, got 2",
    ),
    (
        "half_a_padding",
        damage("overrun", 0, "") + b"\0\0",
        17,
        ("message",),
        "3 bytes of padding, got 2",
    ),
    (
        "half_a_padding_of_an_attribute",
        damage("packet_with_security_context_last", 0, "37", cut=55),
        53,
        ("packet", "NFQA_SECCTX"),
        "3 bytes of padding, got 2",
    ),
    (
        "scalar_four_nests_deep",
        damage("packet_with_connection", 64, "0600"),
        68,
        ("packet", "NFQA_CT", "CTA_TUPLE_ORIG", "CTA_TUPLE_PROTO", "CTA_PROTO_NUM"),
        "expected 1 bytes, got 2",
    ),
    (
        "labels_of_odd_length",
        damage("verdict_with_connection_and_expectation", 52, "07"),
        56,
        ("verdict", "NFQA_CT", "CTA_LABELS"),
        "at least 4 bytes, got 3",
    ),
    (
        "required_attribute_missing",
        damage("verdict_accept", 22, "63"),
        20,
        ("verdict",),
        "expected NFQA_VERDICT_HDR",
    ),
    ("error_number_cut", damage("success", 0, "13", cut=19), 16, ("error",), "4 bytes, got 3"),
    (
        "echoed_header_cut",
        damage("success", 0, "22", cut=34),
        20,
        ("error", "request"),
        "16 bytes, got 14",
    ),
    (
        "echoed_request_cut",
        damage("refusal_with_an_odd_request", 20, "19"),
        36,
        ("error", "request"),
        "9 bytes, got 8",
    ),
    (
        "echoed_request_of_an_impossible_length",
        damage("refusal_with_an_odd_request", 20, "0f"),
        20,
        ("error", "request"),
        "at least 16, got 15",
    ),
    (
        "more_than_the_echoed_request",
        damage("refusal_with_an_odd_request", 20, "11"),
        40,
        ("error",),
        "expected the end, got 4 more bytes",
    ),
    (
        "attributes_without_their_flag",
        damage("refusal_capped_with_text", 7, "01"),
        36,
        ("error",),
        "expected the end, got 8 more bytes",
    ),
    (
        "extended_ack_integer_cut",
        damage("refusal_with_an_odd_request_and_attributes", 56, "07"),
        60,
        ("error", "NLMSGERR_ATTR_OFFS"),
        "expected 4 bytes, got 3",
    ),
]


@pytest.mark.parametrize(
    ("datagram", "offset", "path", "reason"),
    [case[1:] for case in MALFORMED],
    ids=[case[0] for case in MALFORMED],
)
def test_malformed_bytes_are_an_error_with_offset_and_path(
    datagram: bytes, offset: int, path: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse(datagram, order="little")
    assert caught.value.offset == offset
    assert caught.value.path == path
    assert reason in str(caught.value)
    assert caught.value.datagram == datagram


def test_offsets_count_from_the_start_of_the_datagram() -> None:
    before = NAMED["packet_without_payload"].datagram
    with pytest.raises(RemoteProtocolError) as caught:
        parse(before + damage("packet_with_connection", 64, "0600"), order="little")
    assert caught.value.offset == len(before) + 68


@pytest.mark.parametrize("example", MESSAGES, ids=ids(MESSAGES))
def test_no_truncation_is_silent(example: Example) -> None:
    for cut in range(1, len(example.datagram)):
        with pytest.raises(RemoteProtocolError):
            parse(example.datagram[:cut], order="little")


REFUSED: list[tuple[str, Any, str]] = [
    ("not_a_message", "packet", "expected a message, got str"),
    ("required_attribute", Message(0x301, 1, 1, 0, 0, 0, 7, ()), "expected NFQA_VERDICT_HDR"),
    (
        "missing_field",
        Message(0x301, 1, 1, 0, 0, 0, 7, (Attr(2, {"verdict": 1}),)),
        "verdict -> NFQA_VERDICT_HDR -> id: expected a value, got none",
    ),
    (
        "unknown_field",
        Message(0x301, 1, 1, 0, 0, 0, 7, (Attr(2, {"verdict": 1, "id": 1, "packet_id": 1}),)),
        "no such field: packet_id",
    ),
    (
        "integer_too_great",
        Message(0x301, 1, 1, 0, 0, 0, 7, (Attr(2, {"verdict": 1, "id": 1 << 32}),)),
        "verdict -> NFQA_VERDICT_HDR -> id",
    ),
    ("integer_negative", RawMessage(9, 0, -1, 0, b""), "seq"),
    ("integer_for_bytes", RawMessage(9, 0, 0, 0, 4), "expected bytes, got int"),  # type: ignore[arg-type]
    (
        "integer_for_an_unknown_attribute",
        Message(0x302, 1, 1, 0, 0, 0, 7, (Attr(99, 4),)),
        "NFQA_CFG_#99: expected bytes, got int",
    ),
    (
        "integer_for_a_payload",
        Message(0x302, 1, 1, 0, 0, 0, 7, (Attr(10, 4),)),
        "expected bytes, got int",
    ),
    (
        "text_for_an_integer",
        Message(0x302, 1, 1, 0, 0, 0, 7, (Attr(3, b"4"),)),
        "NFQA_CFG_QUEUE_MAXLEN",
    ),
    (
        "attribute_too_long",
        Message(0x302, 1, 1, 0, 0, 0, 7, (Attr(99, bytes(65532)),)),
        "at most 65535, got 65536",
    ),
    (
        "flags_in_the_number",
        Message(0x302, 1, 1, 0, 0, 0, 7, (Attr(0x8003, 4),)),
        "expected a number within 0x3fff",
    ),
    (
        "number_in_the_flags",
        Message(0x302, 1, 1, 0, 0, 0, 7, (Attr(3, 4, 1),)),
        "expected flags outside 0x3fff",
    ),
    ("known_type_as_raw", RawMessage(0x301, 0, 0, 0, b""), "type 769 is Message"),
    ("unknown_type_as_message", Message(0x304, 0, 0, 0, 0, 0, 0, ()), "type 772 is RawMessage"),
    (
        "capped_with_body",
        ErrorMessage(0x100, 0, 0, 0, (17, 0, 0, 0, 0), b"x", ()),
        "no body with NLM_F_CAPPED",
    ),
    (
        "attributes_without_flag",
        ErrorMessage(0x100, 0, 0, 0, (17, 0, 0, 0, 0), b"", (Attr(2, 1),)),
        "without NLM_F_ACK_TLVS",
    ),
    (
        "body_of_another_length",
        ErrorMessage(0, 0, 0, 0, (18, 0, 0, 0, 0), b"x", ()),
        "expected a body of 2 bytes",
    ),
    (
        "request_of_another_size",
        ErrorMessage(0x100, 0, 0, 0, (18, 0, 0), b"", ()),  # type: ignore[arg-type]
        "expected a request of 5 integers",
    ),
]


@pytest.mark.parametrize(
    ("message", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_the_schema_forbids_is_not_built(message: Any, reason: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        build([message], order="little")
    assert reason in str(caught.value)


@given(ANY_MESSAGES, ORDERS)
@settings(max_examples=60, deadline=None)
def test_parse_undoes_build(messages: list[AnyMessage], order: Any) -> None:
    assert parse(build(messages, order=order), order=order) == messages


@given(ANY_MESSAGES, ORDERS)
@settings(max_examples=30, deadline=None)
def test_build_undoes_parse(messages: list[AnyMessage], order: Any) -> None:
    datagram = build(messages, order=order)
    assert build(parse(datagram, order=order), order=order) == datagram


@given(st.one_of(st.binary(max_size=80), damaged(ANY_MESSAGES.map(build))))
@example(b"\x10\0\0\0\1\0\0\0" + bytes(8))
# A bare success whose request has an impossible length: read, and once not built again.
@example(bytes.fromhex("24000000 0200 0000") + bytes(12) + bytes.fromhex("09000000") + bytes(12))
@settings(max_examples=120, deadline=None)
def test_any_bytes_give_messages_or_an_error_and_nothing_else(datagram: bytes) -> None:
    try:
        messages = parse(datagram)
    except RemoteProtocolError as error:
        where = error.offset
    else:
        where = 0
        assert parse(build(messages)) == messages
    assert 0 <= where <= len(datagram)


def test_an_unknown_attribute_keeps_its_bytes_and_flags() -> None:
    (message,) = parse(NAMED["packet_with_attributes_of_the_future"].datagram, order="little")
    assert isinstance(message, Message)
    assert message.attributes[1:] == (
        Attr(99, b"\x01\x02\x03"),
        Attr(0, b""),
        Attr(0x3FFF, b"four", 0x4000),
    )


def test_an_attribute_by_name_has_its_number_and_a_nest_its_flag() -> None:
    assert attr(nfqueue.NFQA, "mark", 7) == Attr(3, 7, 0)
    assert attr(nfqueue.NFQA, "vlan", ()) == Attr(19, (), NLA_F_NESTED)
    with pytest.raises(KeyError):
        attr(nfqueue.NFQA, "marc", 7)


def test_by_name_takes_the_last_duplicate_and_leaves_unknown_ones_out() -> None:
    found = (Attr(3, 1), Attr(99, b""), Attr(3, 2))
    assert by_name(nfqueue.NFQA, found) == {"mark": 2}


def with_attribute_99() -> Schema:
    """The schema with one more attribute, and nothing else changed."""
    more = AttributeSet(
        "nfqueue",
        "NFQA_",
        (
            *nfqueue.NFQA.attributes,
            Attribute(
                99,
                "novelty",
                Int32ub,
                Direction.FROM_KERNEL,
                "9.9",
                "furlongs",
                "how new it is",
                "nfqnl_put_novelty (nfnetlink_queue.c)",
            ),
        ),
    )
    return Schema(
        dataclasses.replace(operation, attributes=more)
        if operation.attributes is nfqueue.NFQA
        else operation
        for operation in SCHEMA.operations
    )


def test_attribute_99_is_parsed_built_and_documented_once_it_is_declared() -> None:
    schema = with_attribute_99()
    record = Message(0x300, 0, 0, 0, 2, 0, 7, (MESSAGES[0].record.attributes[0], Attr(99, 1234)))  # type: ignore[union-attr]
    datagram = schema.build([record], order="little")
    assert datagram.endswith(bytes.fromhex("08006300000004d2"))
    assert schema.parse(datagram, order="little") == [record]
    line = next(line for line in reference(schema).splitlines() if "NFQA_NOVELTY" in line)
    assert line == (
        "| 99 | NFQA_NOVELTY | novelty | u32 big-endian | furlongs | from the kernel | 9.9 "
        "| how new it is | nfqnl_put_novelty (nfnetlink_queue.c) |"
    )
    assert "NFQA_NOVELTY" not in reference()
    assert parse(datagram, order="little")[0].attributes[1] == Attr(99, b"\0\0\x04\xd2")  # type: ignore[union-attr]


def all_sets(node: TagList, found: dict[str, AttributeSet]) -> dict[str, AttributeSet]:
    if node.attributes.name not in found:
        found[node.attributes.name] = node.attributes
        for known in node.attributes.attributes:
            if isinstance(known.declaration, TagList):
                all_sets(known.declaration, found)
    return found


def nfqueue_sets() -> list[AttributeSet]:
    found: dict[str, AttributeSet] = {}
    for operation in SCHEMA.operations:
        all_sets(attribute_list(operation.attributes), found)
    return list(found.values())


def test_the_reference_has_every_attribute_of_every_set() -> None:
    text = reference()
    for each in nfqueue_sets():
        assert f"### Set {each.name}\n" in text
        for known in each.attributes:
            assert f"| {known.number} | {each.constant(known.number)} | {known.name} |" in text
    for operation in SCHEMA.operations:
        assert f"| NFQNL_MSG_{operation.name.upper()} |" in text


def test_every_nfqueue_attribute_says_where_it_comes_from() -> None:
    for each in (nfqueue.NFQA, nfqueue.NFQA_CFG):
        for known in each.attributes:
            assert known.doc
            assert known.since
            assert known.source


def enum_numbers(header: str) -> dict[str, int]:
    """The constants of every enum of a kernel header, counted as a compiler counts them."""
    text = "\n".join(line.split("//")[0] for line in header.splitlines())
    while "/*" in text:
        before, _, rest = text.partition("/*")
        text = before + rest.partition("*/")[2]
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    numbers: dict[str, int] = {}
    for body in text.split("enum ")[1:]:
        value = -1
        for entry in body.partition("{")[2].partition("}")[0].split(","):
            name, _, given = (part.strip() for part in entry.partition("="))
            if name:
                value = (
                    numbers[given] if given in numbers else int(given, 0) if given else value + 1
                )
                numbers[name] = value
    return numbers


@pytest.mark.skipif(not UAPI.is_dir(), reason="the kernel's headers (linux-libc-dev) are missing")
def test_numbers_are_those_of_the_kernels_headers() -> None:
    queue = enum_numbers((UAPI / "nfnetlink_queue.h").read_text())
    numbers = queue | enum_numbers((UAPI / "nfnetlink_conntrack.h").read_text())
    # Spelled with the digits in front of the underscore in the header.
    other = {
        "CTA_COUNTERS_PACKETS32": "CTA_COUNTERS32_PACKETS",
        "CTA_COUNTERS_BYTES32": "CTA_COUNTERS32_BYTES",
    }
    newer = {"NFQA_CGROUP_CLASSID", "CTA_TIMESTAMP_EVENT"}
    compared = 0
    for each in nfqueue_sets():
        for known in each.attributes:
            constant = each.constant(known.number)
            constant = other.get(constant, constant)
            if constant not in numbers:
                assert constant in newer
                continue
            assert numbers[constant] == known.number, constant
            compared += 1
    assert compared > 100
    declared = {each.constant(known.number) for each in nfqueue_sets() for known in each.attributes}
    for constant in queue:
        if constant.startswith("NFQA_") and not constant.endswith(("_UNSPEC", "_MAX")):
            assert constant in declared


def test_a_set_refuses_a_number_or_name_that_stands_twice() -> None:
    one, two = Attribute(1, "a", Raw()), Attribute(1, "b", Raw())
    with pytest.raises(ValueError, match="stands twice"):
        AttributeSet("x", "X_", (one, two))


def test_verdict_may_hold_what_the_kernel_takes() -> None:
    assert nfqueue.VERDICT.required == {"verdict_hdr"}
    assert nfqueue.VERDICT_BATCH.optional == {"mark", "priority"}
    assert conntrack.CTA.by_name["labels"].direction is Direction.BOTH


# -- capture files ---------------------------------------------------------------------------------

BLOCKS: list[tuple[str, dict[str, Any], str]] = [
    (
        "section_header",
        {
            "block_type": 0x0A0D0D0A,
            "body": {
                "byte_order_magic": 0x1A2B3C4D,
                "major_version": 1,
                "minor_version": 0,
                "section_length": -1,
                "options": (Attr(4, b"tool"),),
            },
        },
        "0a0d0d0a 28000000 4d3c2b1a 0100 0000 ffffffffffffffff"
        "0400 0400 746f6f6c 0000 0000 28000000",
    ),
    (
        "interface_description",
        {
            "block_type": 1,
            "body": {
                "linktype": 253,
                "reserved": 0,
                "snaplen": 0,
                "options": (Attr(2, b"queue"), Attr(9, 9)),
            },
        },
        "01000000 2c000000 fd00 0000 00000000"
        "0200 0500 7175657565 000000 0900 0100 09 000000 0000 0000 2c000000",
    ),
    (
        "enhanced_packet",
        {
            "block_type": 6,
            "body": {
                "interface_id": 0,
                "timestamp_high": 1,
                "timestamp_low": 2,
                "captured_len": 5,
                "original_len": 9,
                "data": b"hello",
                "options": (Attr(1, b"ok"), Attr(2, 2), Attr(4, 7)),
            },
        },
        "06000000 48000000 00000000 01000000 02000000 05000000 09000000 68656c6c6f 000000"
        "0100 0200 6f6b 0000 0200 0400 02000000 0400 0800 0700000000000000 0000 0000 48000000",
    ),
    (
        "interface_statistics",
        {
            "block_type": 5,
            "body": {
                "interface_id": 0,
                "timestamp_high": 1,
                "timestamp_low": 2,
                "options": (Attr(3, {"high": 1, "low": 2}), Attr(5, 3)),
            },
        },
        "05000000 34000000 00000000 01000000 02000000"
        "0300 0800 01000000 02000000 0500 0800 0300000000000000 0000 0000 34000000",
    ),
    (
        "unknown_block",
        {"block_type": 0x0BAD, "body": b"abcd"},
        "ad0b0000 10000000 61626364 10000000",
    ),
]


@pytest.mark.parametrize(
    ("block", "text"), [case[1:] for case in BLOCKS], ids=[case[0] for case in BLOCKS]
)
def test_blocks_and_bytes_are_each_other(block: dict[str, Any], text: str) -> None:
    contents = bytes.fromhex(text)
    assert read(pcapng.BLOCK, contents, order="little") == block
    assert write(pcapng.BLOCK, block, order="little").hex() == contents.hex()
    assert read(pcapng.BLOCK, write(pcapng.BLOCK, block, order="big"), order="big") == block


def test_a_file_without_an_end_of_options_is_read() -> None:
    contents = bytes.fromhex(
        "01000000 20000000 fd00 0000 00000000 0900 0100 09 000000 0000 0000 20000000"
    )
    shorter = bytes.fromhex("01000000 1c000000 fd00 0000 00000000 0900 0100 09 000000 1c000000")
    assert read(pcapng.BLOCK, shorter, order="little") == read(
        pcapng.BLOCK, contents, order="little"
    )


@pytest.mark.parametrize(
    ("text", "offset", "reason"),
    [
        ("01000000 14000000 fd00 0000 00000000", 0, "got 20"),
        ("01000000 14000000 fd00 0000 00000000 10000000", 16, "the length 20 again, got 16"),
        ("01000000 0c000000", 0, "got 12"),
        ("01000000 10000000 fd00 0000 10000000", 12, "snaplen at byte 12: expected 4 bytes, got 0"),
        (
            "01000000 1c000000 fd00 0000 00000000 0900 0500 09 000000 1c000000",
            16,
            "IF_TSRESOL at byte 16: expected a length of 0 to 4, got 5",
        ),
        (
            "01000000 1c000000 fd00 0000 00000000 0000 0000 09 000000 1c000000",
            20,
            "expected the end, got 4 more bytes",
        ),
        (
            "06000000 20000000 00000000 00000000 00000000 04000000 04000000 20000000",
            28,
            "expected 4 bytes, got 0",
        ),
    ],
)
def test_malformed_blocks_are_an_error_with_offset(text: str, offset: int, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(pcapng.BLOCK, bytes.fromhex(text), order="little")
    assert caught.value.offset == offset
    assert reason in str(caught.value)


def test_data_must_have_the_length_that_is_stated() -> None:
    block = BLOCKS[2][1]
    wrong = {**block, "body": {**block["body"], "captured_len": 4}}
    with pytest.raises(LocalProtocolError, match="expected 4 bytes"):
        write(pcapng.BLOCK, wrong, order="little")


def test_a_classic_record_is_not_padded() -> None:
    record = {"ts_sec": 1, "ts_frac": 2, "incl_len": 3, "orig_len": 4, "data": b"abc"}
    contents = bytes.fromhex("01000000 02000000 03000000 04000000 616263")
    assert write(pcapng.PCAP_RECORD, record, order="little") == contents
    assert read(pcapng.PCAP_RECORD, contents, order="little") == record


def test_the_magic_tells_a_sections_order() -> None:
    assert pcapng.section_order(bytes.fromhex("4d3c2b1a")) == "little"
    assert pcapng.section_order(bytes.fromhex("1a2b3c4d")) == "big"
    assert pcapng.section_order(bytes(4)) is None


@given(values(option_list(pcapng.EPB_OPTIONS)), ORDERS)
@settings(max_examples=30, deadline=None)
def test_options_survive(options: tuple[Attr, ...], order: Any) -> None:
    node = option_list(pcapng.EPB_OPTIONS)
    assert read(node, write(node, options, order=order), order=order) == options
