"""The rows of docs/kernels.md: all that the schema declares for a queue's socket, by message.

A row's name is the message and the kernel's constant, such as ``packet NFQA_MARK``. A set that is
part of several lists, as CTA_TUPLE_* is of three, has its rows once a message.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trionfq.schema import AttributeSet, Direction, Operation
from trionfq.schema._lists import TagList
from trionfq.schema.nfqueue import (
    CONFIG,
    PACKET,
    VERDICT,
    VERDICT_BATCH,
    ConfigCommand,
    CopyMode,
    MessageType,
    QueueFlags,
    SkbInfo,
    VerdictCode,
)


class Entry(NamedTuple):
    """An attribute of one message, and what of its contents has rows of its own.

    Attributes:
      row: its row.
      below: the attributes in it.
      bits: rows of the bits of a word.
      codes: rows of the values of one byte.
      code_at: where that byte stands.
    """

    row: str
    below: Tree
    bits: tuple[tuple[int, str], ...] = ()
    codes: Mapping[int, str] = {}
    code_at: int = 0


Tree = Mapping[int, Entry]
"""Attributes by number."""


def _constants(message: str, prefix: str, kind: type[enum.IntEnum]) -> dict[int, str]:
    return {member.value: f"{message} {prefix}{member.name}" for member in kind}


def _bits(message: str, prefix: str, kind: type[enum.IntFlag]) -> tuple[tuple[int, str], ...]:
    return tuple((member.value, f"{message} {prefix}{member.name}") for member in kind)


def _contents(message: str, constant: str) -> dict[str, Any]:
    """What has rows of its own, besides attributes."""
    match constant:
        case "NFQA_SKB_INFO":
            return {"bits": _bits(message, "NFQA_SKB_", SkbInfo)}
        case "NFQA_VERDICT_HDR":  # the low byte of the first word
            return {"codes": _constants(message, "NF_", VerdictCode), "code_at": 3}
        case "NFQA_CFG_CMD":
            return {"codes": _constants(message, "NFQNL_CFG_CMD_", ConfigCommand)}
        case "NFQA_CFG_PARAMS":  # copy_mode, behind copy_range
            return {"codes": _constants(message, "NFQNL_COPY_", CopyMode), "code_at": 4}
        case "NFQA_CFG_FLAGS":
            return {"bits": _bits(message, "NFQA_CFG_F_", QueueFlags)}
    return {}


def _tree(message: str, attributes: AttributeSet, way: Direction, names: Any = None) -> Tree:
    """The attributes that go one way, or those that are named."""
    found = {}
    for known in attributes.attributes:
        if known.name not in names if names is not None else not known.direction & way:
            continue
        constant = attributes.constant(known.number)
        below: Tree = {}
        if isinstance(known.declaration, TagList):
            # The tuples in an expectation are those that the kernel sends of a connection.
            deeper = Direction.BOTH if constant == "NFQA_EXP" else way
            below = _tree(message, known.declaration.attributes, deeper)
        found[known.number] = Entry(f"{message} {constant}", below, **_contents(message, constant))
    return found


def _message(message: str, operation: Operation) -> Tree:
    names = operation.required | operation.optional
    return _tree(message, operation.attributes, operation.direction, names)


MESSAGES = {
    "packet": "Packets, from the kernel",
    "verdict": "Verdicts of one packet, to the kernel",
    "batch": "Verdicts of all packets up to one, to the kernel",
    "config": "Configuration, to the kernel",
}
"""What the first word of a row means."""

TREES: dict[int, Tree] = {
    MessageType.PACKET: _message("packet", PACKET),
    MessageType.VERDICT: _message("verdict", VERDICT),
    MessageType.VERDICT_BATCH: _message("batch", VERDICT_BATCH),
    MessageType.CONFIG: _message("config", CONFIG),
}
"""By nlmsg_type."""


def _rows(tree: Tree) -> Iterator[str]:
    for entry in tree.values():
        yield entry.row
        yield from (row for _bit, row in entry.bits)
        yield from entry.codes.values()
        yield from _rows(entry.below)


ROWS: tuple[str, ...] = tuple(dict.fromkeys(row for tree in TREES.values() for row in _rows(tree)))
"""Every row, in the order of the page."""
