"""Making the vectors: from the schema, from recordings of kernels, and from breaches."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from construct import Default, FormatField, Renamed

from trionfq._errors import RemoteProtocolError
from trionfq.conformance._files import records_of
from trionfq.conformance._findings import DIRECTION_WORDS
from trionfq.conformance._judge import judge_records
from trionfq.conformance.vectors._breaches import BREACHES
from trionfq.conformance.vectors._json import message_to_json
from trionfq.schema import (
    NLA_F_NESTED,
    AnyMessage,
    Attr,
    Direction,
    ErrorMessage,
    Message,
    Operation,
    RawMessage,
    Value,
    build,
    parse,
)
from trionfq.schema._constructs import Coded, Fields, Native, Raw
from trionfq.schema._lists import TagList
from trionfq.schema.conntrack import CTA
from trionfq.schema.netlink import NLMSGERR_ATTR, Type
from trionfq.schema.nfnetlink import Family, Subsystem, message_type
from trionfq.schema.nfqueue import NFQA, OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trionfq.schema import Order

VERSION = 1
"""Of the file's form; it changes when a reader of an older one could be misled."""

_ABOUT = (
    "nfqueue messages as bytes and as what they mean; see docs/conformance.md, Test vectors. "
    "Made by python -m trionfq.conformance.vectors make."
)
_ORDERS: tuple[Order, ...] = ("little", "big")
_MOST_BYTES = 400
OPEN_ENDS = frozenset({"NFQ502", "NFQ601", "NFQ602"})
"""What is only said because a vector is no whole conversation."""
_EACH_FIXTURE = 6
_SETTABLE = ("timeout", "status", "help", "labels", "labels_mask", "mark", "mark_mask")
_BRIDGE_ONLY = ("vlan", "l2hdr")
# What goes together, so that the judge finds nothing in a valid vector.
_TOGETHER = {
    "uid": ("uid", "gid"),
    "gid": ("uid", "gid"),
    "ct": ("ct", "ct_info"),
    "ct_info": ("ct", "ct_info"),
    "ifindex_physindev": ("ifindex_indev", "ifindex_physindev"),
    "ifindex_physoutdev": ("ifindex_outdev", "ifindex_physoutdev"),
    "exp": ("ct", "exp"),
    "mask": ("mask", "flags"),
    "flags": ("mask", "flags"),
}
_FIXED: dict[str, Any] = {
    "packet_hdr": {"packet_id": 0x01020304, "hw_protocol": 0x0800, "hook": 1},
    "verdict_hdr": {"verdict": 1, "id": 0x01020304},
    "timestamp": {"sec": 1_790_000_000, "usec": 123_456},
    "hwaddr": {"hw_addrlen": 6, "pad": 0, "hw_addr": bytes.fromhex("0200000001020000")},
    "cmd": {"command": 2, "pad": 0, "pf": 0},
    "params": {"copy_range": 0x1234, "copy_mode": 2},
    "mask": 31,
    "flags": 9,
    "cap_len": 1500,
    "skb_info": 3,
}


def vectors(fixtures: Path | None) -> dict[str, Any]:
    """All vectors as JSON's types.

    Args:
      fixtures: the folder of the recordings; None leaves theirs out.
    """
    found = [*_from_schema(), *_from_breaches()]
    if fixtures is not None:
        found += from_recordings(fixtures)
    return {"about": _ABOUT, "version": VERSION, "vectors": found}


def text_of(content: dict[str, Any]) -> str:
    """The file: one vector a line, so that a difference is readable."""
    head = {key: value for key, value in content.items() if key != "vectors"}
    lines = ",\n".join(json.dumps(each) for each in content["vectors"])
    return f'{json.dumps(head)[:-1]}, "vectors": [\n{lines}\n]}}\n'


def _vector(
    name: str,
    source: str,
    direction: Direction | None,
    datagram: bytes,
    order: Order,
    breach: str | None = None,
) -> dict[str, Any]:
    try:
        messages = parse(datagram, order=order)
    except RemoteProtocolError:
        messages = None
    return {
        "name": name,
        "source": source,
        "direction": DIRECTION_WORDS[direction or Direction.FROM_KERNEL],
        "order": order,
        "bytes": datagram.hex(),
        "valid": breach is None,
        "rule": breach,
        "messages": None if messages is None else [message_to_json(each) for each in messages],
        "build": messages is not None and build(messages, order=order) == datagram,
    }


# --- from the schema


def _from_schema() -> Iterator[dict[str, Any]]:
    for name, direction, message in _samples():
        for order in _ORDERS:
            datagram = build([message], order=order)
            # A note, if any: of an attribute that the schema does not know.
            breach = next(iter(rules_of(direction, datagram)), None)
            yield _vector(f"{name}, {order}", "schema", direction, datagram, order, breach)
    pair = [message for name, _way, message in _samples() if name.startswith("verdict, ")][:2]
    datagram = build(pair, order="little")
    yield _vector("two verdicts", "schema", Direction.TO_KERNEL, datagram, "little")


def _samples() -> Iterator[tuple[str, Direction, AnyMessage]]:
    for operation in OPERATIONS:
        yield f"{operation.name}, no more than it must have", *_sample(operation, ())
        for known in operation.attributes.attributes:
            if known.name in operation.optional:
                names = [
                    each
                    for each in _TOGETHER.get(known.name, (known.name,))
                    if each in operation.optional
                ]
                yield f"{operation.name}, {known.name}", *_sample(operation, names)
    yield "packet, odd payload", *_sample(OPERATIONS[0], ("payload",), odd=True)
    yield "verdict, odd payload", *_sample(OPERATIONS[1], ("payload",), odd=True)
    packet = _sample(OPERATIONS[0], ("payload",))[1]
    unknown = Attr(0x3FFE, b"\x01\x02\x03")
    listed = (packet.attributes[0], unknown, packet.attributes[1])
    yield "packet, unknown attribute", Direction.FROM_KERNEL, packet._replace(attributes=listed)
    request = (0x20, 0x301, 1, 9, 0)
    yield "answer, success", _FROM, ErrorMessage(0x100, 9, 77, 0, request, b"", ())
    body = bytes.fromhex("00000007") + bytes.fromhex("0c0002000000000100000005")
    yield "answer, refusal", _FROM, ErrorMessage(0, 9, 77, -2, request, body, ())
    told = tuple(
        Attr(each.number, _sampled(each.declaration, each.name), _nested(each.declaration))
        for each in NLMSGERR_ATTR.attributes
    )
    yield "answer, extended", _FROM, ErrorMessage(0x300, 9, 77, -34, request, b"", told)
    yield "other, done", _FROM, RawMessage(Type.DONE, 2, 4, 5, bytes(4))


_FROM = Direction.FROM_KERNEL


def _sample(
    operation: Operation, names: Iterable[str], *, odd: bool = False
) -> tuple[Direction, Message]:
    from_kernel = operation.direction is Direction.FROM_KERNEL
    bridge = not set(names).isdisjoint(_BRIDGE_ONLY)
    listed: list[Attr] = []
    for known in operation.attributes.attributes:
        if known.name in operation.required or known.name in names:
            value = _FIXED.get(known.name)
            if value is None:
                value = _payload(odd=odd) if known.name == "payload" else None
            if value is None:
                value = _sampled(known.declaration, known.name, to_kernel=not from_kernel)
            listed.append(Attr(known.number, value, _nested(known.declaration)))
    if from_kernel:
        listed.sort(key=lambda each: _RANKS[each.number])
    head = (0, 0, 0) if from_kernel else (5 if operation.name == "config" else 1, 0x01020304, 0)
    family = (Family.BRIDGE if bridge else Family.IPV4) if from_kernel else Family.UNSPEC
    number = message_type(Subsystem.QUEUE, operation.number)
    return operation.direction, Message(number, *head, family, 0, 0x0708, tuple(listed))


_ORDER = (
    *("packet_hdr", "ifindex_indev", "ifindex_physindev", "ifindex_outdev", "ifindex_physoutdev"),
    *("mark", "priority", "hwaddr", "vlan", "l2hdr", "timestamp", "uid", "gid", "cgroup_classid"),
    *("secctx", "ct", "ct_info", "cap_len", "skb_info", "payload"),
)
_RANKS = {NFQA.by_name[name].number: rank for rank, name in enumerate(_ORDER)}


def _payload(*, odd: bool) -> bytes:
    """An IPv4 packet of protocol 253 with no data, or five bytes of it."""
    if odd:
        return bytes.fromhex("450000190001000040fd65e50a0000010a000002") + b"hello"
    return bytes.fromhex("450000140001000040fd65ea0a0000010a000002")


def _nested(node: Any) -> int:
    return NLA_F_NESTED if isinstance(node, TagList) else 0


def _sampled(node: Any, name: str, *, to_kernel: bool = False) -> Value:
    """A value of a declaration whose bytes all differ, as far as there are so many."""
    codes: Any = None
    while isinstance(node, Renamed | Default | Coded):
        codes = node.enumeration if isinstance(node, Coded) else codes
        node = node.subcon
    if isinstance(node, TagList):
        return tuple(
            Attr(
                each.number,
                _sampled(each.declaration, each.name, to_kernel=to_kernel),
                _nested(each.declaration),
            )
            for each in node.attributes.attributes
            if not (to_kernel and node.attributes is CTA and each.name not in _SETTABLE)
        )
    if isinstance(node, Fields):
        return {
            str(each.name): _sampled(each, str(each.name), to_kernel=to_kernel)
            for each in node.subcons
        }
    if isinstance(node, Raw):
        length = node.least or (0 if name == "pad" else 4)
        return b"text\0" if node.text else bytes(range(1, 1 + length))
    if codes is not None:
        return int(list(codes)[-1])
    field: FormatField[Any, Any] = node.by_order["little"] if isinstance(node, Native) else node
    return int.from_bytes(bytes(range(1, 1 + field.length)), "big")


# --- from breaches and recordings


def _from_breaches() -> Iterator[dict[str, Any]]:
    for rule, name, direction, datagram in BREACHES:
        yield _vector(f"{rule}, {name}", "breach", direction, datagram, "little", rule)


def from_recordings(folder: Path) -> Iterator[dict[str, Any]]:
    """The first datagrams of each layout that a recording adds."""
    seen: set[Any] = set()
    for path in sorted(folder.rglob("*.pcap*")):
        kernel = tomllib.loads(path.with_suffix(".toml").read_text())["kernel"]
        taken = 0
        for index, record in enumerate(records_of(path)):
            datagram = record.datagram
            if not 0 < len(datagram) <= _MOST_BYTES or taken == _EACH_FIXTURE:
                continue
            messages = parse(datagram, order="little")
            layout = tuple(map(_layout, messages))
            if layout in seen or any(isinstance(each, RawMessage) for each in messages):
                continue
            seen.add(layout)
            taken += 1
            place = path.relative_to(folder)
            source = f"{kernel}, fixtures/{place}, record {index}"
            name = f"{place.with_suffix('')}, record {index}"
            rules = rules_of(record.direction, datagram)
            if len(rules) < 2:  # more than one make no clear vector
                breach = next(iter(rules), None)
                yield _vector(name, source, record.direction, datagram, "little", breach)


def rules_of(direction: Direction | None, datagram: bytes) -> set[str]:
    """The rules that one datagram breaks by itself, not as a part of a conversation."""
    return {each.rule.id for each in judge_records([(0, direction, datagram, ())])} - OPEN_ENDS


def _layout(message: AnyMessage) -> Any:
    """What kind of message this is, values left out."""
    if isinstance(message, Message):
        return message.type, tuple(
            (each.number, len(each.value) % 4 if isinstance(each.value, bytes) else 0)
            for each in message.attributes
        )
    if isinstance(message, ErrorMessage):
        return message.error, message.flags, tuple(each.number for each in message.attributes)
    return message.type
