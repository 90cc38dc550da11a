"""From declarations to parts: the walk over a closed set of construct nodes.

Whatever is not in the set is refused when it is derived, which for the schemas is when the module
is imported: a node that the walk passed over in silence would be a second, wrong truth about the
wire. The set is by exact class, so that a subclass with behaviour of its own is refused, too, and
so is anything that calls back (``parsed`` hooks, computed defaults).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from construct import Default, FormatField, Renamed

from ._codec_lists import ListPart
from ._codec_parts import (
    CountedPart,
    Field,
    FieldsPart,
    FreePart,
    IntPart,
    Leaf,
    MismatchError,
    Part,
    RawPart,
    RunPart,
)
from .schema._constructs import HOST_ORDER, Coded, Counted, Fields, Native, Raw
from .schema._lists import TagList
from .schema._schema import read, write
from .schema.pcapng import Block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .schema import Order
    from .schema._constructs import Node

# struct's letters for integers; the size of each is fixed where the order is given.
_INTEGERS = frozenset("BbHhLlQq")


def part_of(node: Node, order: Order, path: str) -> Part:
    """The part of a declaration.

    Raises:
      TypeError: a node is outside the closed set; it and its path are named.
    """
    if getattr(node, "parsed", None) is not None:
        raise TypeError(f"{path}: {type(node).__name__} with a parsed hook cannot be derived")
    kind: Any = type(node)
    inner: Any = node
    if kind is Renamed or kind is Coded:
        return part_of(inner.subcon, order, path)
    if kind is Native:
        return part_of(inner.by_order[order], order, path)
    if kind is FormatField:
        return IntPart(_leaf(inner, path))
    if kind is Raw and inner.unlimited:
        return FreePart()
    if kind is Raw:
        return RawPart(inner.fault, inner.least if inner.least == inner.most else None)
    if kind is Counted:
        return CountedPart(inner.length_field, inner.align)
    if kind is Fields:
        return _fields(inner, order, path)
    if kind is TagList:
        return list_part(inner, order, path)
    if kind is Block:
        return BlockPart(inner, order, path)
    raise TypeError(f"{path}: a {kind.__module__}.{kind.__qualname__} cannot be derived")


def _leaf(node: Any, path: str) -> Leaf:
    order, code = node.fmtstr[0], node.fmtstr[1:]
    if order not in "<>" or code not in _INTEGERS:
        raise TypeError(f"{path}: a FormatField of {node.fmtstr!r} cannot be derived")
    return Leaf("" if node.length == 1 else order, code)


def _fields(node: Fields, order: Order, path: str) -> Part:
    """A struct: its fields joined to runs as far as their byte orders agree."""
    pieces: list[RunPart | Field] = []
    fields: list[Field] = []
    leaves: list[Leaf] = []

    def close() -> None:
        if fields:
            pieces.append(RunPart(fields, leaves))
            fields.clear()
            leaves.clear()

    for subcon in node.subcons:
        field = _field(subcon, order, path)
        if isinstance(field.part, IntPart):
            leaf = field.part.leaf
        elif isinstance(field.part, RawPart) and field.part.size is not None:
            leaf = Leaf("", f"{field.part.size}s")
        else:
            close()
            pieces.append(field)
            continue
        if {leaf.order, *(each.order for each in leaves)} >= {"<", ">"}:
            close()
        fields.append(field)
        leaves.append(leaf)
    close()
    if len(pieces) == 1 and isinstance(pieces[0], RunPart):
        return pieces[0]
    return FieldsPart(pieces)


def _field(subcon: Any, order: Order, path: str) -> Field:
    if type(subcon) is not Renamed or not subcon.name:
        raise TypeError(f"{path}: a field without a name cannot be derived")
    inner = f"{path} -> {subcon.name}"
    if subcon.parsed is not None:
        raise TypeError(f"{inner}: a parsed hook cannot be derived")
    below, default = subcon.subcon, None
    if type(below) is Default:
        default, below = below.value, below.subcon
        if default is None or callable(default):
            raise TypeError(f"{inner}: a computed default cannot be derived")
    return Field(subcon.name, part_of(below, order, inner), default)


def run_of(node: Node, order: Order, path: str) -> RunPart:
    """The part of a struct of fixed size and one byte order.

    Raises:
      TypeError: it is none.
    """
    part = part_of(node, order, path)
    if not isinstance(part, RunPart):
        raise TypeError(f"{path}: expected a struct of fixed size and one byte order")
    return part


def list_part(node: TagList, order: Order, path: str) -> ListPart:
    """The part of a list."""
    attributes = node.attributes
    parts = {
        known.number: part_of(
            known.declaration, order, f"{path} -> {attributes.constant(known.number)}"
        )
        for known in attributes.attributes
    }
    header = run_of(node.framing.header, order, f"{path} -> header")
    return ListPart(node.framing, header, parts, node.bare)


class BlockPart(Part):
    """A whole pcapng block."""

    by_length = False

    def __init__(self, node: Block, order: Order, path: str):
        self._header = run_of(node.header, order, f"{path} -> header")
        self._trailer = run_of(node.trailer, order, f"{path} -> trailer")
        self._other = part_of(node.other, order, path)
        self._bodies: Mapping[int, Part] = {
            number: part_of(kind.body, order, f"{path} -> {kind.name}")
            for number, kind in node.kinds.items()
        }

    def read(self, buffer: bytes, start: int, end: int) -> dict[str, Any]:
        header, trailer = self._header, self._trailer
        body, stop = start + header.size, end - trailer.size
        if stop < body:
            raise MismatchError
        block = header.read(buffer, start, body)
        length = block.pop("block_total_length")
        repeated = trailer.read(buffer, stop, end)["block_total_length"]
        if length != end - start or repeated != length:
            raise MismatchError
        part = self._bodies.get(block["block_type"], self._other)
        block["body"] = part.read(buffer, body, stop)
        return block

    def write(self, value: Any) -> bytes:
        if not isinstance(value, dict) or value.keys() != {"block_type", "body"}:
            raise TypeError(value)
        part = self._bodies.get(value["block_type"], self._other)
        body = part.write(value["body"])
        length = self._header.size + len(body) + self._trailer.size
        head = {"block_type": value["block_type"], "block_total_length": length}
        return self._header.write(head) + body + self._trailer.write({"block_total_length": length})


class Layout:
    """A derived reader and writer of one declaration.

    Attributes:
      size: in bytes, None where it varies.
    """

    def __init__(self, construct: Node, order: Order):
        self._construct = construct
        self._order = order
        self._part = part_of(construct, order, type(construct).__name__)
        self.size = self._part.size

    def read(self, buffer: bytes, offset: int = 0, end: int | None = None) -> Any:
        """The value that fills `buffer` from `offset` to `end`, by default its end.

        Raises:
          RemoteProtocolError: it does not; the offset counts from the start of `buffer`.
        """
        end = len(buffer) if end is None else end
        try:
            return self._part.read(buffer, offset, end)
        except MismatchError:
            read(self._construct, buffer, order=self._order, start=offset, end=end)
        raise AssertionError("the codec refused what the schema reads")

    def write(self, value: Any) -> bytes:
        """The bytes of a value.

        Raises:
          LocalProtocolError: it does not fit the declaration.
        """
        try:
            return self._part.write(value)
        except Exception:
            write(self._construct, value, order=self._order)
        raise AssertionError("the codec refused what the schema writes")


def derive(construct: Node, *, order: Order = HOST_ORDER) -> Layout:
    """A fast reader and writer of a declaration.

    Args:
      construct: the declaration.
      order: byte order of its native fields.

    Raises:
      TypeError: it holds a node outside the closed set.
    """
    return Layout(construct, order)
