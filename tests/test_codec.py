"""The codec: equal to the schema on everything, and derived from it alone."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import construct
import pytest
from construct import (
    Adapter,
    Bytes,
    Computed,
    Const,
    Default,
    Float32b,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int24ub,
    Int32ub,
    Int32un,
    Padding,
    Pass,
    Prefixed,
    Rebuild,
    Struct,
    Switch,
    VarInt,
    this,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.messages import (
    ANY_MESSAGES,
    BIG_ENDIAN,
    MESSAGES,
    ORDERS,
    PACKETS,
    RECORDED,
    Example,
    damaged,
    values,
)
from tests.test_schema import MALFORMED, NAMED, REFUSED, with_attribute_99
from trionfq import _codec_shapes
from trionfq._codec import Codec, PacketReader, Shape, Template, decode, derive, encode, split
from trionfq._errors import LocalProtocolError, RemoteProtocolError
from trionfq.schema import (
    SCHEMA,
    AnyMessage,
    Attr,
    Attribute,
    AttributeSet,
    Message,
    Schema,
    attr,
    build,
    nfqueue,
    parse,
    pcapng,
)
from trionfq.schema._constructs import Counted, Fields, Native16, Native32, Raw
from trionfq.schema._lists import attribute_list, option_list
from trionfq.schema._schema import read, write
from trionfq.testing import make_packet

ACCEPT = Message(0x301, 1, 0, 0, 0, 0, 7, (Attr(2, {"verdict": 1, "id": 0}),))


def ids(examples: list[Example]) -> list[str]:
    return [example.name for example in examples]


def outcome(what: Any, *arguments: Any, **keywords: Any) -> Any:
    """What a call gives, or what it raises as far as it must agree."""
    try:
        return what(*arguments, **keywords)
    except RemoteProtocolError as error:
        return (error.offset, error.path, str(error))
    except LocalProtocolError as error:
        return str(error)


@pytest.mark.parametrize("example", MESSAGES, ids=ids(MESSAGES))
def test_bytes_become_records_and_records_bytes(example: Example) -> None:
    assert decode(example.datagram, order="little") == [example.record]
    assert encode([example.record], order="little").hex() == example.datagram.hex()


@pytest.mark.parametrize("example", BIG_ENDIAN, ids=ids(BIG_ENDIAN))
def test_a_big_endian_host_swaps_headers_but_not_contents(example: Example) -> None:
    assert decode(example.datagram, order="big") == [example.record]
    assert encode([example.record], order="big").hex() == example.datagram.hex()


@pytest.mark.parametrize(("name", "datagram"), RECORDED, ids=[name for name, _ in RECORDED])
def test_recorded_datagrams_are_decoded_as_the_schema_does(name: str, datagram: bytes) -> None:
    messages = decode(datagram, order="little")
    assert messages == parse(datagram, order="little")
    assert encode(messages, order="little") == datagram


@given(ANY_MESSAGES, ORDERS)
@settings(max_examples=100, deadline=None)
def test_the_codec_equals_the_schema_in_both_directions(
    messages: list[AnyMessage], order: Any
) -> None:
    datagram = build(messages, order=order)
    assert encode(messages, order=order) == datagram
    assert decode(datagram, order=order) == messages == parse(datagram, order=order)


@given(st.one_of(st.binary(max_size=80), damaged(ANY_MESSAGES.map(build))))
@settings(max_examples=200, deadline=None)
def test_codec_and_schema_agree_on_any_bytes(datagram: bytes) -> None:
    assert outcome(decode, datagram) == outcome(parse, datagram)


@pytest.mark.parametrize("datagram", [case[1] for case in MALFORMED], ids=lambda _: "")
def test_malformed_bytes_are_described_by_the_schema(datagram: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as ours:
        decode(datagram, order="little")
    with pytest.raises(RemoteProtocolError) as theirs:
        parse(datagram, order="little")
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("message", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_the_schema_forbids_is_not_encoded(message: Any, reason: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode([message], order="little")
    assert reason in str(caught.value)


WRONG: st.SearchStrategy[Any] = st.sampled_from(
    [None, -1, 1 << 16, 1 << 32, 1 << 64, 1.0, "x", b"", b"xyz", {}, {"pad": 1}, (), (1,), [], True]
)


@given(PACKETS, st.data())
@settings(max_examples=100, deadline=None)
def test_codec_and_schema_agree_on_any_value(message: Message, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(message) + len(message.attributes) - 1))
    wrong = data.draw(WRONG)
    if where < len(message):
        message = Message._make([wrong if i == where else v for i, v in enumerate(message)])
    else:
        attributes = list(message.attributes)
        at = where - len(message)
        attributes[at] = Attr(attributes[at].number, wrong, attributes[at].flags)
        message = message._replace(attributes=tuple(attributes))
    assert outcome(encode, [message]) == outcome(build, [message])


# -- remembered layouts ----------------------------------------------------------------------------


READERS: dict[Any, PacketReader] = {
    "little": PacketReader(order="little"),
    "big": PacketReader(order="big"),
}


def fresh(order: Any) -> PacketReader:
    """A reader that remembers nothing; deriving a new one each time would take long."""
    reader = READERS[order]
    reader._known.clear()
    reader._families.clear()
    return reader


def agree(reader: PacketReader, datagram: bytes, order: Any) -> None:
    """A reader's answer, known layout or not, is the schema's."""
    expected = outcome(parse, datagram, order=order)
    found = outcome(reader.shape, datagram)
    if not isinstance(found, Shape):
        if found is not None:
            assert found == expected
        else:
            assert not (len(expected) == 1 and is_packet(expected[0]))
        return
    (message,) = expected
    assert is_packet(message)
    assert found.message(datagram) == message
    assert found.attributes(datagram) == message.attributes
    assert (found.family, found.res_id) == (message.family, message.res_id)
    last = {}
    for number, value, _ in message.attributes:
        if number in nfqueue.NFQA.by_number:
            last[nfqueue.NFQA.by_number[number].name] = value
    assert found.names == set(last)
    for name in nfqueue.NFQA.by_name:
        assert found.read(name, datagram) == last.get(name)
    assert found.packet_id(datagram) == last["packet_hdr"]["packet_id"]
    if "payload" in last:
        assert found.payload_slice is not None
        assert datagram[found.payload_slice] == last["payload"]
        assert found.payload_start == found.payload_slice.start
    else:
        assert found.payload_slice is None
        assert found.payload_start is None


def is_packet(message: AnyMessage) -> bool:
    return isinstance(message, Message) and message.type == 0x300


@given(PACKETS, ORDERS, st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_a_remembered_layout_reads_what_the_schema_reads(
    message: Message, order: Any, more: int
) -> None:
    reader = fresh(order)
    for extra in (b"", b"", bytes(more), bytes(more), b""):
        kept = tuple(a for a in message.attributes if a.number != 10)
        longer = message._replace(attributes=(*kept, Attr(10, extra)))
        agree(reader, build([longer], order=order), order)
    agree(reader, build([message], order=order), order)
    agree(reader, build([message], order=order), order)


@given(PACKETS, ORDERS, st.data())
@settings(max_examples=150, deadline=None)
def test_a_remembered_layout_is_not_forgeable(
    message: Message, order: Any, data: st.DataObject
) -> None:
    datagram = build([message], order=order)
    reader = fresh(order)
    agree(reader, datagram, order)
    forged = bytearray(datagram)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(forged) - 1))
        step = data.draw(st.sampled_from([1, 4, 8, 0xF8, 0xFC, 0xFF, 0x80]))
        forged[at] = (forged[at] + step) & 0xFF
    agree(reader, bytes(forged), order)
    agree(reader, datagram, order)


@given(st.one_of(st.binary(max_size=80), damaged(ANY_MESSAGES.map(build))))
@settings(max_examples=100, deadline=None)
def test_a_reader_agrees_with_the_schema_on_any_bytes(datagram: bytes) -> None:
    assume(datagram)
    agree(fresh(sys.byteorder), datagram, sys.byteorder)


@pytest.mark.parametrize("example", MESSAGES, ids=ids(MESSAGES))
def test_only_a_single_packet_has_a_shape(example: Example) -> None:
    reader = PacketReader(order="little")
    for _ in range(2):
        agree(reader, example.datagram, "little")
    assert (
        reader.shape(example.datagram + bytes(-len(example.datagram) % 4) + example.datagram)
        is None
    )


def test_an_empty_datagram_has_no_shape() -> None:
    assert PacketReader().shape(b"") is None


def test_lengths_that_add_up_to_the_same_are_told_apart() -> None:
    reader = PacketReader(order="little")
    hdr = MESSAGES[0].record.attributes[0]  # type: ignore[union-attr]
    one = Message(0x300, 0, 0, 0, 2, 0, 7, (hdr, Attr(18, bytes(4)), Attr(10, bytes(8))))
    two = one._replace(attributes=(hdr, Attr(18, bytes(8)), Attr(10, bytes(4))))
    a, b = (build([m], order="little") for m in (one, two))
    assert len(a) == len(b)
    for datagram, message in ((a, one), (b, two), (a, one)):
        shape = reader.shape(datagram)
        assert shape is not None
        assert shape.message(datagram) == message


def test_reading_an_attribute_that_the_schema_does_not_have_is_a_key_error() -> None:
    datagram = MESSAGES[0].datagram
    shape = PacketReader(order="little").shape(datagram)
    assert shape is not None
    assert shape.read("mark", datagram) is None
    with pytest.raises(KeyError):
        shape.read("marc", datagram)


def packet_of(payload: int, *, mark: int | None = None, queue: int = 7) -> Message:
    hdr = Attr(1, {"packet_id": 5, "hw_protocol": 0x0800, "hook": 3})
    extra = () if mark is None else (Attr(3, mark),)
    return Message(0x300, 0, 0, 0, 2, 0, queue, (hdr, *extra, Attr(10, bytes(payload))))


def test_tables_are_bounded_and_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_codec_shapes, "_LENGTHS", 16)
    monkeypatch.setattr(_codec_shapes, "_FAMILIES", 4)
    reader = PacketReader(order="little")
    for _ in range(2):
        for queue in range(12):
            for payload in (*range(30), 3):
                message = packet_of(payload, queue=queue)
                datagram = encode([message], order="little")
                shape = reader.shape(datagram)
                assert shape is not None
                assert shape.message(datagram) == message
                assert len(reader._known) <= 16
                assert len(reader._families) <= 4


def test_layouts_of_one_length_are_bounded_and_stay_right() -> None:
    reader = PacketReader(order="little")
    for _ in range(2):
        for queue in range(20):
            datagram = encode([packet_of(30, queue=queue)], order="little")
            shape = reader.shape(datagram)
            assert shape is not None
            assert shape.res_id == queue
    depth = 0
    entry: Any = reader._known[len(datagram)]
    while entry is not None:
        depth, entry = depth + 1, entry[-1]
    assert 1 < depth <= _codec_shapes._PER_LENGTH


def test_a_new_payload_length_needs_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = PacketReader(order="little")
    first = reader.shape(encode([packet_of(20)], order="little"))
    monkeypatch.setattr(PacketReader, "_walk", None)
    assert reader.shape(encode([packet_of(1400)], order="little")) is first
    assert reader.shape(encode([packet_of(0)], order="little")) is first


def test_the_id_of_a_malformed_packet_is_salvaged() -> None:
    reader = PacketReader(order="little")
    example = NAMED["packet_with_odd_payload"]
    broken = bytearray(example.datagram)
    broken[32] = 3
    assert outcome(reader.shape, bytes(broken)) == outcome(parse, bytes(broken), order="little")
    assert reader.salvage_id(bytes(broken), 7) == 5
    assert reader.salvage_id(bytes(broken), 8) is None
    assert reader.salvage_id(example.datagram[:40], 7) == 5
    assert reader.salvage_id(NAMED["verdict_accept"].datagram, 7) is None
    assert reader.salvage_id(NAMED["packet_with_duplicates_out_of_order"].datagram, 7) is None
    for cut in range(31):
        assert reader.salvage_id(example.datagram[:cut], 7) is None


@given(damaged(PACKETS.map(lambda message: build([message]))), st.integers(0, 0xFFFF))
@settings(max_examples=80, deadline=None)
def test_salvaging_never_raises(datagram: bytes, queue: int) -> None:
    found = READERS[sys.byteorder].salvage_id(datagram, queue)
    assert found is None or 0 <= found <= 0xFFFFFFFF


# -- templates -------------------------------------------------------------------------------------

TEMPLATES = [
    ACCEPT,
    ACCEPT._replace(type=0x303),
    ACCEPT._replace(attributes=(*ACCEPT.attributes, Attr(3, 7), Attr(21, 9))),
    ACCEPT._replace(attributes=(Attr(99, b"abcde"), *ACCEPT.attributes, Attr(10, b"odd"))),
]


def told(sample: Message, seq: int, packet_id: int) -> Message:
    attributes = tuple(
        Attr(2, {**a.value, "id": packet_id}) if a.number == 2 else a  # type: ignore[dict-item]
        for a in sample.attributes
    )
    return sample._replace(seq=seq, attributes=attributes)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("sample", TEMPLATES)
@pytest.mark.parametrize("packet_ids", [[], [1], [1, 2, 0xFFFFFFFF], range(300)])
def test_many_messages_equal_as_many_encoded(sample: Message, packet_ids: Any, order: Any) -> None:
    template = Template(sample, order=order)
    expected = build([told(sample, i, i) for i in packet_ids], order=order)
    assert template.pack_many(packet_ids).hex() == expected.hex()


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("sample", TEMPLATES)
def test_one_message_equals_the_one_encoded(sample: Message, order: Any) -> None:
    template = Template(sample, order=order)
    assert template.pack(3, 0xDEADBEEF) == build([told(sample, 3, 0xDEADBEEF)], order=order)
    assert template.size == len(template.pack(0, 0)) + -len(template.pack(0, 0)) % 4


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("sample", TEMPLATES[:3])
@pytest.mark.parametrize("payload", [b"", b"x", b"four", bytes(65531)])
def test_a_message_with_a_payload_equals_the_one_encoded(
    sample: Message, payload: bytes, order: Any
) -> None:
    expected = told(sample, 3, 4)
    expected = expected._replace(attributes=(*expected.attributes, Attr(10, payload)))
    packed = Template(sample, order=order).pack_payload(3, 4, payload)
    assert packed == build([expected], order=order)


def test_a_payload_too_long_for_an_attribute_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="65532 bytes are too many"):
        Template(ACCEPT).pack_payload(0, 0, bytes(65532))


def test_a_packet_can_be_a_template_too() -> None:
    sample = packet_of(5)
    template = Template(sample, field=("packet_hdr", "packet_id"))
    (message,) = parse(template.pack(0, 77))
    assert isinstance(message, Message)
    assert message.attributes[0] == Attr(1, {"packet_id": 77, "hw_protocol": 0x0800, "hook": 3})


@pytest.mark.parametrize("wrong", [-1, 1 << 32])
def test_an_id_that_is_no_u32_is_refused(wrong: int) -> None:
    template = Template(ACCEPT)
    with pytest.raises(LocalProtocolError):
        template.pack(0, wrong)
    with pytest.raises(LocalProtocolError):
        template.pack(wrong, 0)
    with pytest.raises(LocalProtocolError):
        template.pack_payload(0, wrong, b"")
    with pytest.raises(LocalProtocolError):
        template.pack_many([1, wrong])


@pytest.mark.parametrize(
    "sample",
    [
        Message(0x302, 1, 0, 0, 0, 0, 7, ()),
        Message(0x301, 1, 0, 0, 0, 0, 7, ()),
        Message(0x304, 1, 0, 0, 0, 0, 7, ()),
    ],
)
def test_a_template_needs_an_id_to_vary(sample: Message) -> None:
    with pytest.raises(LocalProtocolError):
        Template(sample)


# -- cutting between messages ----------------------------------------------------------------------


@given(ANY_MESSAGES, ORDERS)
@settings(max_examples=40, deadline=None)
def test_a_datagram_is_split_into_its_messages(messages: list[AnyMessage], order: Any) -> None:
    datagram = build(messages, order=order)
    pieces = split(datagram, order=order)
    assert b"".join(pieces) == datagram
    assert [decode(piece, order=order) for piece in pieces] == [[each] for each in messages]


def test_a_malformed_datagram_is_not_split() -> None:
    with pytest.raises(RemoteProtocolError):
        split(MESSAGES[0].datagram[:-1], order="little")


# -- derivation ------------------------------------------------------------------------------------


class Doubled(Adapter):  # type: ignore[type-arg]
    def _decode(self, obj: Any, context: Any, path: Any) -> Any:
        return obj * 2

    def _encode(self, obj: Any, context: Any, path: Any) -> Any:
        return obj // 2


class Overridden(Fields):
    """A subclass may do anything."""


def hooked() -> Any:
    field = "x" / Int32ub
    field.parsed = lambda obj, context: None
    return Fields(field)


FOREIGN: list[tuple[str, Any, str]] = [
    ("struct", Struct("x" / Int8ub), "construct.core.Struct"),
    ("const", Fields("x" / Const(b"MZ")), "Fields -> x: a construct.core.Const"),
    ("padding", Fields("x" / Padding(2)), "Fields -> x: a construct.core.Padded"),
    ("switch", Fields("x" / Switch(this.y, {1: Int8ub})), "construct.core.Switch"),
    ("greedy_range", GreedyRange(Int8ub), "construct.core.GreedyRange"),
    ("prefixed", Prefixed(Int8ub, GreedyBytes), "construct.core.Prefixed"),
    ("greedy_bytes", GreedyBytes, "construct.core.GreedyBytes"),
    ("bytes", Fields("x" / Bytes(4)), "construct.core.Bytes"),
    ("computed", Fields("x" / Computed(4)), "construct.core.Computed"),
    ("rebuild", Fields("x" / Rebuild(Int8ub, this.y)), "construct.core.Rebuild"),
    ("pass", Pass, "construct.core.Pass"),
    ("varint", Fields("x" / VarInt), "construct.core.VarInt"),
    ("int24", Fields("x" / Int24ub), "construct.core.BytesInteger"),
    ("float", Fields("x" / Float32b), "a FormatField of '>f'"),
    ("this_hosts_order", Fields("x" / Int32un), "a FormatField of '=L'"),
    ("adapter", Fields("x" / Doubled(Int8ub)), "Fields -> x: a tests.test_codec.Doubled"),
    ("subclass", Overridden("x" / Int8ub), "tests.test_codec.Overridden"),
    ("field_without_name", Fields(Int8ub), "a field without a name"),
    ("computed_default", Fields("x" / Default(Int8ub, this.y)), "a computed default"),
    ("parsed_hook", hooked(), "a parsed hook"),
    ("nested", Fields("a" / Fields("b" / Const(b"x"))), "Fields -> a -> b: a construct"),
    (
        "in_a_list",
        attribute_list(AttributeSet("s", "S_", (Attribute(4, "four", GreedyBytes),))),
        "TagList -> S_FOUR: a construct.core.GreedyBytes",
    ),
]


@pytest.mark.parametrize(
    ("node", "reason"), [case[1:] for case in FOREIGN], ids=[case[0] for case in FOREIGN]
)
def test_a_foreign_node_is_refused_by_name_and_path(node: Any, reason: str) -> None:
    with pytest.raises(TypeError) as caught:
        derive(node)
    assert reason in str(caught.value)


def test_every_construct_class_but_the_set_is_foreign() -> None:
    """construct has some 70 classes; those that can be made of one argument are all refused."""
    refused = 0
    kinds: list[Any] = [
        kind
        for kind in vars(construct.core).values()
        if inspect.isclass(kind) and issubclass(kind, construct.Construct)
    ]
    for kind in kinds:
        if kind in (construct.Renamed, construct.FormatField, construct.Default):
            continue
        try:
            node = kind(Int8ub)
        except (TypeError, ImportError, construct.ConstructError):
            continue
        with pytest.raises(TypeError, match="cannot be derived"):
            derive(node)
        refused += 1
    assert refused > 15


def schema_with(attribute: Attribute) -> Schema:
    more = AttributeSet("nfqueue", "NFQA_", (*nfqueue.NFQA.attributes, attribute))
    return Schema(
        dataclasses.replace(o, attributes=more) if o.attributes is nfqueue.NFQA else o
        for o in SCHEMA.operations
    )


def test_a_schema_with_a_foreign_node_has_no_codec() -> None:
    with pytest.raises(TypeError, match=r"packet -> NFQA_NOVELTY: a construct\.core\.GreedyBytes"):
        Codec(schema_with(Attribute(99, "novelty", GreedyBytes)))


def test_a_layout_that_depends_on_contents_cannot_be_remembered() -> None:
    counted = Fields("n" / Int8ub, "data" / Counted("n", align=1))
    schema = schema_with(Attribute(99, "novelty", counted))
    message = MESSAGES[0].record._replace(  # type: ignore[call-arg]
        attributes=(
            MESSAGES[0].record.attributes[0],  # type: ignore[union-attr]
            Attr(99, {"n": 2, "data": b"ab"}),
        )
    )
    datagram = Codec(schema).encode([message])
    assert Codec(schema).decode(datagram) == [message] == schema.parse(datagram)
    with pytest.raises(TypeError, match="does not follow from lengths"):
        PacketReader(schema=schema)


def test_attribute_99_is_decoded_and_encoded_once_it_is_declared() -> None:
    schema = with_attribute_99()
    codec = Codec(schema)
    message = packet_of(3)
    message = message._replace(attributes=(*message.attributes[:1], Attr(99, 1234), Attr(10, b"x")))
    for order in ("little", "big"):
        o: Any = order
        datagram = codec.encode([message], order=o)
        assert datagram == schema.build([message], order=o)
        assert codec.decode(datagram, order=o) == [message]
        shape = PacketReader(order=o, schema=schema).shape(datagram)
        assert shape is not None
        assert shape.read("novelty", datagram) == 1234
        assert shape.message(datagram) == message
        # Without the declaration it is an unknown attribute.
        assert decode(datagram, order=o)[0].attributes[1] == Attr(99, b"\0\0\x04\xd2")  # type: ignore[union-attr]


def test_positions_numbers_and_formats_come_from_the_declarations() -> None:
    """Another protocol of the same kind: everything stands elsewhere, and the codec follows."""
    moved = AttributeSet(
        "moved",
        "NFQA_",
        (
            Attribute(
                200, "packet_hdr", Fields("hook" / Native16, "x" / Int8ub, "packet_id" / Native32)
            ),
            Attribute(
                201, "verdict_hdr", Fields("verdict" / Int8ub, "x" / Raw(7, 7), "id" / Int32ub)
            ),
            Attribute(7, "payload", Raw(), padded=False),
            Attribute(8, "mark", Int16ub),
        ),
    )
    schema = Schema(
        dataclasses.replace(
            o,
            attributes=moved,
            optional=frozenset(),
            header=Fields("res_id" / Native16, "family" / Native16, "version" / Native32),
        )
        for o in SCHEMA.operations
        if o.attributes is nfqueue.NFQA
    )
    packet = Message(
        0x300,
        1,
        2,
        3,
        4,
        5,
        6,
        (Attr(8, 9), Attr(200, {"hook": 1, "x": 2, "packet_id": 3}), Attr(7, b"p")),
    )
    fields = {"verdict": 1, "x": bytes(7), "id": 0}
    verdict = Message(0x301, 1, 0, 3, 4, 5, 6, (Attr(201, fields),))
    for order in ("little", "big"):
        o: Any = order
        codec = Codec(schema)
        datagram = codec.encode([packet], order=o)
        assert datagram == schema.build([packet], order=o)
        assert codec.decode(datagram, order=o) == [packet]
        reader = PacketReader(order=o, schema=schema)
        for _ in range(2):
            shape = reader.shape(datagram)
            assert shape is not None
            assert shape.message(datagram) == packet
            assert (shape.packet_id(datagram), shape.res_id, shape.family) == (3, 6, 4)
            assert shape.read("mark", datagram) == 9
        many = Template(verdict, order=o, schema=schema).pack_many([7, 8])
        assert many == schema.build(
            [
                verdict._replace(
                    seq=i, attributes=(Attr(201, {"verdict": 1, "x": bytes(7), "id": i}),)
                )
                for i in (7, 8)
            ],
            order=o,
        )


LAYOUTS = {
    "section_header": pcapng.SECTION_HEADER,
    "interface_description": pcapng.INTERFACE_DESCRIPTION,
    "enhanced_packet": pcapng.ENHANCED_PACKET,
    "interface_statistics": pcapng.INTERFACE_STATISTICS,
    "simple_packet": pcapng.SIMPLE_PACKET,
    "obsolete_packet": pcapng.OBSOLETE_PACKET,
    "pcap_header": pcapng.PCAP_HEADER,
    "pcap_record": pcapng.PCAP_RECORD,
    "options": option_list(pcapng.IDB_OPTIONS),
    "two_orders": Fields("a" / Int16ub, "b" / Native32, "c" / Raw(2, 2), "d" / Default(Int8ub, 7)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data(), order=ORDERS)
@settings(max_examples=12, deadline=None)
def test_a_derived_layout_equals_its_construct(name: str, data: st.DataObject, order: Any) -> None:
    node: Any = LAYOUTS[name]
    layout = derive(node, order=order)
    value = data.draw(values(node))
    contents = write(node, value, order=order)
    assert layout.write(value) == contents
    assert layout.read(contents) == read(node, contents, order=order) == value
    assert layout.read(b"??" + contents + b"!", 2, 2 + len(contents)) == value
    broken = data.draw(damaged(st.just(contents)))
    assert outcome(layout.read, broken) == outcome(read, node, broken, order=order)
    assert layout.size in (None, len(contents))


@given(data=st.data(), order=ORDERS)
@settings(max_examples=60, deadline=None)
def test_a_derived_block_equals_its_construct(data: st.DataObject, order: Any) -> None:
    number, kind = data.draw(st.sampled_from(sorted(pcapng.BLOCKS.items())))
    body = data.draw(values(kind.body))
    # Only whole words fit between the two lengths of a block.
    if "data" in body and "captured_len" not in body:
        body["data"] = body["data"][: len(body["data"]) // 4 * 4]
    block = {"block_type": int(number), "body": body}
    layout = derive(pcapng.BLOCK, order=order)
    contents = write(pcapng.BLOCK, block, order=order)
    assert layout.write(block) == contents
    assert layout.read(contents) == block
    broken = data.draw(damaged(st.just(contents)))
    assert outcome(layout.read, broken) == outcome(read, pcapng.BLOCK, broken, order=order)


def test_offsets_of_a_layout_count_from_the_start_of_the_buffer() -> None:
    layout = derive(pcapng.BLOCK_HEADER, order="little")
    assert layout.size == 8
    with pytest.raises(RemoteProtocolError) as caught:
        layout.read(bytes(10), 4)
    assert caught.value.offset == 4


def test_a_default_is_written_where_no_value_is_given() -> None:
    layout = derive(LAYOUTS["two_orders"], order="little")
    assert layout.write({"a": 1, "b": 2, "c": b"xy"}).hex() == "0001020000007879" + "07"
    assert layout.write({"a": 1, "b": 2, "c": b"xy", "d": None}).endswith(b"\x07")
    with pytest.raises(LocalProtocolError, match="expected 2 bytes, got 3"):
        layout.write({"a": 1, "b": 2, "c": b"xyz"})


def test_many_datagrams_of_one_layout_are_proved_at_once_and_only_those():
    reader = PacketReader()
    alike = [make_packet(packet_id, mark=packet_id) for packet_id in (7, 8, 2**32 - 1)]
    assert reader.uniform(alike) is None  # not seen before
    shape = reader.shape(alike[0])
    assert reader.uniform(alike) == (shape, [7, 8, 2**32 - 1])
    others = [
        make_packet(9),  # another layout
        make_packet(9, mark=1, queue=3),  # another header
        alike[0] + b"\0\0\0\0",  # another length, the same headers
        alike[0][:-1],
        alike[0].replace(b"\x08\x00\x03\x00", b"\x07\x00\x03\x00"),  # nla_len of the mark
    ]
    for other in others:
        assert other not in alike
        assert reader.uniform([alike[0], other]) is None


@pytest.mark.parametrize("step", [0, 1, 4])
def test_whole_drains_are_proved_as_each_datagram_is_by_itself(step: int) -> None:
    """Every bit of the part that decides is changed once, in one datagram of a drain."""
    drain = [make_packet(7 + i, bytes(100 + step * (i % 5)), mark=i) for i in range(30)]
    reader = PacketReader()
    shape = reader.shape(drain[0])
    assert shape is not None
    assert shape.payload_start is not None
    assert reader.uniform(drain) == (shape, [7 + i for i in range(30)])
    assert {reader.shape(datagram) for datagram in drain} == {shape}
    refused = 0
    for bit in range(8 * shape.payload_start):
        at = 3 + bit % 27
        changed = bytearray(drain[at])
        changed[bit // 8] ^= 1 << bit % 8
        datagrams = [*drain[:at], bytes(changed), *drain[at + 1 :]]
        fresh = PacketReader()
        try:
            alike = fresh.shape(bytes(changed)) is not None and fresh.uniform([bytes(changed)])
        except RemoteProtocolError:
            alike = None
        found = reader.uniform(datagrams)
        if found is None:
            refused += 1
            continue
        assert alike, f"bit {bit}"
        assert found == (shape, [shape.packet_id(datagram) for datagram in datagrams])
        assert alike[0].names == shape.names
        assert alike[0].attributes(bytes(changed)) == shape.attributes(bytes(changed))
    assert refused > 8 * 30


def test_a_length_that_would_count_as_an_attributes_number_is_none() -> None:
    drain = [make_packet(i, bytes(100 + i), mark=1) for i in range(30)]
    reader = PacketReader()
    shape = reader.shape(drain[0])
    assert shape is not None
    assert shape.payload_start is not None
    assert reader.uniform(drain) is not None
    most = make_packet(5, bytes(0xFFFF - 4), mark=1)
    assert reader.uniform([*drain[1:], most]) is None, "its first length was never seen"
    reader.shape(drain[1])
    assert reader.uniform([*drain[1:], most]) is not None
    # One byte more: its attribute would be one of length 0 with the next number.
    head = bytearray(most[: shape.payload_start])
    head[:4] = (len(most) + 1).to_bytes(4, sys.byteorder)
    length_at, number_at = shape.payload_start - 4, shape.payload_start - 2
    number = int.from_bytes(most[number_at : number_at + 2], sys.byteorder)
    head[length_at:number_at] = bytes(2)
    head[number_at:] = (number + 1).to_bytes(2, sys.byteorder)
    assert reader.uniform([*drain[1:], bytes(head) + bytes(0xFFFF - 3)]) is None


def test_a_template_can_vary_the_verdict_too():
    template = Template(verdict(0, 1))
    codes = [0, 1, 0x90003]
    assert decode(template.pack_many([5, 6, 7], codes)) == [
        verdict(i, code) for i, code in zip([5, 6, 7], codes, strict=True)
    ]
    with pytest.raises(LocalProtocolError, match="mark: expected one, got none"):
        template.pack_many([1], changes={"mark": [1]})
    with pytest.raises(LocalProtocolError):
        template.pack_many([1, 2], [1])
    with pytest.raises(LocalProtocolError):
        template.pack_many([1], [2**32])
    packet = Template(decode(make_packet())[0], field=("packet_hdr", "packet_id"))
    with pytest.raises(LocalProtocolError, match="expected one, got none"):
        packet.pack_many([1], [1])


def test_a_template_can_vary_attributes_of_one_integer_too():
    template = Template(verdict(0, 1, mark=0, priority=9))
    made = template.pack_many([5, 6], [1, 0], {"mark": [7, 2**32 - 1]})
    assert decode(made) == [
        verdict(5, 1, mark=7, priority=9),
        verdict(6, 0, mark=2**32 - 1, priority=9),
    ]
    for marks in ([1], [-1, 2], [1, 2**32]):
        with pytest.raises(LocalProtocolError):
            template.pack_many([5, 6], changes={"mark": marks})


def verdict(packet_id: int, code: int, **changes: int) -> Message:
    header = {"verdict": code, "id": packet_id}
    attributes = [attr(nfqueue.NFQA, "verdict_hdr", header)]
    attributes += [attr(nfqueue.NFQA, name, value) for name, value in changes.items()]
    return Message(0x301, 1, packet_id, 0, 0, 0, 3, tuple(attributes))
