"""What `construct` alone cannot say of a layout, and the records that messages become.

Three vocabularies, as in the kernel's own netlink specifications: layouts (construct), attribute
sets (number, name, meaning), operations (direction, fixed header, attributes).

The records are what parser, builder, codec, kernel model and captures exchange. Attributes stay an
ordered sequence, not a mapping: duplicates, order and the flag bits must survive, or parse and
build are no inverse.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from construct import Construct

NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000
NLA_TYPE_MASK = 0x3FFF


class Direction(enum.Flag):
    """Who sends it."""

    FROM_KERNEL = 1
    TO_KERNEL = 2
    BOTH = 3


@dataclass(frozen=True, eq=False)
class Attribute:
    """One attribute of a set: its layout, and what the kernel says of it.

    Attributes:
      number: the value of its enum constant, such as 3 for NFQA_MARK.
      name: the kernel's name, lower case, prefix dropped: ``mark``.
      declaration: layout of the contents.
      direction: who sends it.
      since: first kernel release that has it, ``""`` where it is as old as its set.
      unit: unit of the value, ``""`` where it has none.
      doc: one line, what it means.
      source: the kernel header or function that says so.
      padded: whether the kernel pads it to four bytes where it is the last of its message; what
        goes to the kernel is always padded.
    """

    number: int
    name: str
    declaration: Construct[Any, Any]
    direction: Direction = Direction.BOTH
    since: str = ""
    unit: str = ""
    doc: str = ""
    source: str = ""
    padded: bool = True


@dataclass(frozen=True, eq=False)
class AttributeSet:
    """The attributes that one list may hold, by number and by name.

    Attributes:
      name: name of the set, such as ``nfqueue``.
      prefix: the kernel's prefix, such as ``NFQA_``.
      attributes: in the order of their numbers.
      source: the header or document that numbers them.
    """

    name: str
    prefix: str
    attributes: tuple[Attribute, ...]
    source: str = ""
    by_number: Mapping[int, Attribute] = field(init=False)
    by_name: Mapping[str, Attribute] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_number", {a.number: a for a in self.attributes})
        object.__setattr__(self, "by_name", {a.name: a for a in self.attributes})
        if not len(self.by_number) == len(self.by_name) == len(self.attributes):
            raise ValueError(f"attribute set {self.name}: a number or name stands twice")

    def constant(self, number: int) -> str:
        """The C spelling of an attribute's number, ``NFQA_#99`` where unknown."""
        known = self.by_number.get(number)
        return self.prefix + (known.name.upper() if known else f"#{number}")


@dataclass(frozen=True, eq=False)
class Operation:
    """One kind of message.

    Attributes:
      number: low byte of nlmsg_type, such as 0 for NFQNL_MSG_PACKET.
      name: lower case, such as ``verdict``.
      direction: who sends it.
      header: the fixed header between nlmsghdr and the attributes.
      attributes: the set that its attributes are of.
      required: names that every valid message has.
      optional: names that it may have besides.
      doc: one line.
      source: kernel function that handles or makes it.
    """

    number: int
    name: str
    direction: Direction
    header: Construct[Any, Any]
    attributes: AttributeSet
    required: frozenset[str]
    optional: frozenset[str]
    doc: str
    source: str


Value: TypeAlias = "int | bytes | dict[str, Any] | tuple[Attr, ...]"
"""A decoded value: an integer, raw bytes, the fields of a struct, or a nested list."""


class Attr(NamedTuple):
    """One attribute as it stands on the wire.

    ``flags`` are the two high bits of nla_type (NLA_F_NESTED, NLA_F_NET_BYTEORDER). A number that
    the set does not know has its raw bytes as value.
    """

    number: int
    value: Value
    flags: int = 0


class Message(NamedTuple):
    """One nfqueue message (NFNL_SUBSYS_QUEUE): nlmsghdr, nfgenmsg and attributes.

    ``type`` is the whole nlmsg_type; ``res_id`` is the queue number. nlmsg_len is not kept: it
    follows from the contents.
    """

    type: int
    flags: int
    seq: int
    portid: int
    family: int
    version: int
    res_id: int
    attributes: tuple[Attr, ...]


class ErrorMessage(NamedTuple):
    """NLMSG_ERROR: an answer, errno 0 meaning success.

    ``error`` is as on the wire, 0 or negative. ``request`` is the nlmsghdr of the request that it
    answers: (length, type, flags, seq, portid). ``body`` is what the kernel echoed of the request
    after that header, empty with NLM_F_CAPPED. ``attributes`` are the extended-ack attributes.
    """

    flags: int
    seq: int
    portid: int
    error: int
    request: tuple[int, int, int, int, int]
    body: bytes
    attributes: tuple[Attr, ...]


class RawMessage(NamedTuple):
    """Any other netlink message: NLMSG_NOOP, NLMSG_DONE, NLMSG_OVERRUN or a foreign subsystem."""

    type: int
    flags: int
    seq: int
    portid: int
    body: bytes


AnyMessage: TypeAlias = Message | ErrorMessage | RawMessage
