"""Messages as JSON, the same for every language.

An integer is a number, but one of 8 bytes is a decimal string (not every language holds it in a
number); bytes and texts are hexadecimal strings; a struct is an object of its fields; a nest is a
list of attributes. An unknown attribute's value is its bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from construct import Default, FormatField, Renamed

from trionfq.schema import (
    AnyMessage,
    Attr,
    AttributeSet,
    ErrorMessage,
    Message,
    RawMessage,
    nfqueue,
)
from trionfq.schema._constructs import Coded, Fields, Native
from trionfq.schema._lists import TagList
from trionfq.schema.netlink import HEADER, NLMSGERR_ATTR
from trionfq.schema.nfnetlink import Subsystem, message_type

if TYPE_CHECKING:
    from collections.abc import Iterable

_OPERATIONS = {message_type(Subsystem.QUEUE, each.number): each for each in nfqueue.OPERATIONS}
_TYPES = {each.name: number for number, each in _OPERATIONS.items()}
_WIDE = 8


def message_to_json(message: AnyMessage) -> dict[str, Any]:
    """A message of the schema as JSON's types."""
    if isinstance(message, Message):
        operation = _OPERATIONS[message.type]
        return {
            "kind": operation.name,
            "flags": message.flags,
            "seq": message.seq,
            "portid": message.portid,
            "family": message.family,
            "version": message.version,
            "queue": message.res_id,
            "attributes": _attributes_to_json(operation.attributes, message.attributes),
        }
    if isinstance(message, ErrorMessage):
        return {
            "kind": "answer",
            "flags": message.flags,
            "seq": message.seq,
            "portid": message.portid,
            "error": message.error,
            "request": dict(zip(HEADER.names, message.request, strict=True)),
            "body": message.body.hex(),
            "attributes": _attributes_to_json(NLMSGERR_ATTR, message.attributes),
        }
    return {
        "kind": "other",
        "type": message.type,
        "flags": message.flags,
        "seq": message.seq,
        "portid": message.portid,
        "body": message.body.hex(),
    }


def message_from_json(found: dict[str, Any]) -> AnyMessage:
    """The message of the schema that some JSON describes; the inverse of `message_to_json`.

    Raises:
      KeyError, TypeError or ValueError: it describes none.
    """
    head = (found["flags"], found["seq"], found["portid"])
    if found["kind"] == "answer":
        return ErrorMessage(
            *head,
            found["error"],
            tuple(found["request"][name] for name in HEADER.names),
            bytes.fromhex(found["body"]),
            _attributes_from_json(NLMSGERR_ATTR, found["attributes"]),
        )
    if found["kind"] == "other":
        return RawMessage(found["type"], *head, bytes.fromhex(found["body"]))
    number = _TYPES[found["kind"]]
    return Message(
        number,
        *head,
        found["family"],
        found["version"],
        found["queue"],
        _attributes_from_json(_OPERATIONS[number].attributes, found["attributes"]),
    )


def _attributes_to_json(known: AttributeSet, listed: Iterable[Attr]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, value, flags in listed:
        entry = known.by_number.get(number)
        found.append(
            {
                "number": number,
                "name": None if entry is None else entry.name,
                "flags": flags,
                "value": value.hex()
                if isinstance(value, bytes)
                else _value_to_json(entry.declaration if entry else None, value),
            }
        )
    return found


def _attributes_from_json(known: AttributeSet, listed: list[dict[str, Any]]) -> tuple[Attr, ...]:
    found: list[Attr] = []
    for each in listed:
        entry = known.by_number.get(each["number"])
        value = (
            bytes.fromhex(each["value"])
            if entry is None
            else _value_from_json(entry.declaration, each["value"])
        )
        found.append(Attr(each["number"], value, each["flags"]))
    return tuple(found)


def _inner(node: Any) -> Any:
    while isinstance(node, Renamed | Default | Coded):
        node = node.subcon
    return node


def _value_to_json(node: Any, value: Any) -> Any:
    node = _inner(node)
    if isinstance(node, TagList):
        return _attributes_to_json(node.attributes, value)
    if isinstance(node, Fields):
        return {
            str(each.name): _value_to_json(each, value[str(each.name)]) for each in node.subcons
        }
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if _is_wide(node) else int(value)


def _value_from_json(node: Any, value: Any) -> Any:
    node = _inner(node)
    if isinstance(node, TagList):
        return _attributes_from_json(node.attributes, value)
    if isinstance(node, Fields):
        return {
            str(each.name): _value_from_json(each, value[str(each.name)]) for each in node.subcons
        }
    if isinstance(node, FormatField | Native):
        return int(value)
    return bytes.fromhex(value)


def _is_wide(node: Any) -> bool:
    field: Any = node.by_order["little"] if isinstance(node, Native) else node
    return bool(field.length == _WIDE)
