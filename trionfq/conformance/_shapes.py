"""The schema's declarations as plain numbers: what a walker over bytes has to know.

Names, numbers and sizes are the schema's; nothing here reads or writes a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from construct import Default, FormatField, Renamed

from trionfq.schema._constructs import Coded, Fields, Native, Raw
from trionfq.schema._lists import TagList
from trionfq.schema.netlink import HEADER, NLMSGERR_ATTR
from trionfq.schema.nfnetlink import NFGENMSG
from trionfq.schema.nfqueue import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq.schema import AttributeSet, Direction, Operation


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What the contents of an attribute or a field look like.

    Attributes:
      least: fewest bytes.
      most: most bytes, None for no limit.
      step: the length is a multiple of this.
      integer: whether it is one integer.
      signed: whether that has a sign.
      native: whether it is in the host's byte order; big-endian otherwise.
      text: whether it is a text.
      members: fields of a struct, in order.
      inside: the set of a nest.
    """

    least: int = 0
    most: int | None = None
    step: int = 1
    integer: bool = False
    signed: bool = False
    native: bool = False
    text: bool = False
    members: tuple[tuple[str, Shape], ...] = ()
    inside: SetShape | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """An attribute of a set."""

    name: str
    constant: str
    shape: Shape
    direction: Direction


@dataclass(frozen=True, slots=True, eq=False)
class SetShape:
    """An attribute set by number."""

    prefix: str
    known: Mapping[int, Known]

    def constant(self, number: int) -> str:
        """The C spelling of a number, ``NFQA_#99`` where unknown."""
        known = self.known.get(number)
        return f"{self.prefix}#{number}" if known is None else known.constant


@dataclass(frozen=True, slots=True, eq=False)
class OperationShape:
    """What one message type of the subsystem carries, by attribute number."""

    name: str
    direction: Direction
    attributes: SetShape
    carried: frozenset[int]


def shape_of(node: Any) -> Shape:
    """The shape of a declaration.

    Raises:
      TypeError: a kind of declaration that the judge does not know.
    """
    while isinstance(node, Renamed | Default | Coded):
        node = node.subcon
    if isinstance(node, Native | FormatField):
        field: Any = node.by_order["little"] if isinstance(node, Native) else node
        return Shape(
            field.length,
            field.length,
            integer=True,
            signed=field.fmtstr[1].islower(),
            native=isinstance(node, Native),
        )
    if isinstance(node, Raw):
        return Shape(node.least, node.most, node.step, text=node.text)
    if isinstance(node, TagList):
        return Shape(inside=set_shape(node.attributes))
    if isinstance(node, Fields):
        members = tuple((str(each.name), shape_of(each)) for each in node.subcons)
        size = sum(shape.least for _name, shape in members)
        return Shape(size, size, members=members)
    raise TypeError(f"no shape of {type(node).__name__}")


@cache
def set_shape(attributes: AttributeSet) -> SetShape:
    """The shape of an attribute set."""
    return SetShape(
        attributes.prefix,
        {
            each.number: Known(
                each.name,
                attributes.constant(each.number),
                shape_of(each.declaration),
                each.direction,
            )
            for each in attributes.attributes
        },
    )


def _operation(operation: Operation) -> OperationShape:
    names = operation.required | operation.optional
    return OperationShape(
        operation.name,
        operation.direction,
        set_shape(operation.attributes),
        frozenset(operation.attributes.by_name[name].number for name in names),
    )


OPERATION_SHAPES = {each.number: _operation(each) for each in OPERATIONS}
"""By the low byte of nlmsg_type."""
EXTACK_SHAPE = set_shape(NLMSGERR_ATTR)
HEADER_SHAPE = shape_of(HEADER)
GENMSG_SHAPE = shape_of(NFGENMSG)
