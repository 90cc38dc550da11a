"""The reference pages: every set and operation in Markdown, from the declarations alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from construct import Default, FormatField, Renamed

from . import netlink, nfnetlink, pcapng
from ._constructs import Coded, Counted, Fields, Native, Node, Raw
from ._lists import NLATTR, PCAPNG_OPTION, TagList, attribute_list
from ._records import Attribute, AttributeSet, Direction, Operation
from ._schema import SCHEMA, Schema

if TYPE_CHECKING:
    import enum
    from collections.abc import Iterable, Iterator

_DIRECTIONS = {
    Direction.FROM_KERNEL: "from the kernel",
    Direction.TO_KERNEL: "to the kernel",
    Direction.BOTH: "both",
}
_ORDERS = {">": "big-endian", "<": "little-endian", "=": "native"}
# The constants of a message type are not in an attribute set.
_OPERATION_PREFIX = "NFQNL_MSG_"


def reference(schema: Schema = SCHEMA) -> str:
    """A Markdown reference of every operation and attribute of a schema, and of capture files."""
    lists: dict[str, TagList] = {}
    for operation in schema.operations:
        _collect(attribute_list(operation.attributes), lists)
    _collect(attribute_list(netlink.NLMSGERR_ATTR), lists)
    blocks: dict[str, TagList] = {}
    for kind in pcapng.BLOCKS.values():
        _collect(kind.body, blocks)
    enumerations: dict[str, type[enum.Enum]] = {}
    for node in _nodes(schema):
        _enumerations(node, enumerations)
    parts: list[str] = [
        "# Wire reference\n",
        "Generated from the declarations in `trionfq.schema`. Integers are big-endian where "
        "nothing else is said; *native* means the byte order of the sending host. An attribute "
        "without a release is as old as its set.\n",
        "## Operations\n",
        _operations(schema.operations),
        "## Headers\n",
        _struct("nlmsghdr", netlink.HEADER),
        _struct("nlattr", NLATTR.header),
        _struct("nfgenmsg", nfnetlink.NFGENMSG),
        "## Attribute sets\n",
        *(_set(each.attributes) for each in lists.values()),
        "## Enumerations\n",
        *(_enumeration(name, kind) for name, kind in sorted(enumerations.items())),
        "## Capture files\n",
        _struct("LINKTYPE_NETLINK header", netlink.COOKED_HEADER),
        _struct("pcap file header", pcapng.PCAP_HEADER),
        _struct("pcap record", pcapng.PCAP_RECORD),
        _struct("pcapng block, before its body", pcapng.BLOCK_HEADER),
        *(
            _struct(f"pcapng block {number:#x}, {kind.name}", kind.body)
            for number, kind in pcapng.BLOCKS.items()
        ),
        _struct("pcapng option", PCAPNG_OPTION.header),
        *(_set(each.attributes) for each in blocks.values()),
    ]
    return "\n".join(parts)


def layout(node: Node) -> str:
    """A declaration in words."""
    inner: Any = node
    if isinstance(node, Native):
        return layout(node.by_order["big"]).replace(" big-endian", "") + " native"
    if isinstance(node, Coded):
        return f"{layout(inner.subcon)}, {_qualified(node.enumeration)}"
    if isinstance(node, Renamed | Default):
        return layout(inner.subcon)
    if isinstance(node, FormatField):
        sign = "s" if inner.fmtstr[1].islower() else "u"
        order = "" if inner.length == 1 else " " + _ORDERS[inner.fmtstr[0]]
        return f"{sign}{8 * inner.length}{order}"
    if isinstance(node, Raw):
        return _raw(node)
    if isinstance(node, Counted):
        padded = f", padded to {node.align}" if node.align > 1 else ""
        return f"`{node.length_field}` bytes{padded}"
    if isinstance(node, TagList):
        what = "nest" if node.framing is NLATTR else "options"
        return f"{what} of {node.attributes.name}"
    if isinstance(node, Fields):
        fields = (f"{subcon.name} {layout(subcon)}" for subcon in node.subcons)
        return "struct {" + "; ".join(fields) + "}"
    return type(node).__name__


def _raw(node: Raw) -> str:
    what = "text" if node.text else "bytes"
    step = f", a multiple of {node.step}" if node.step > 1 else ""
    if node.most is None:
        return what + (f", at least {node.least}" if node.least else "") + step
    if node.least == node.most:
        return f"{node.least} {what}"
    return f"{node.least} to {node.most} {what}{step}"


def _qualified(kind: type[enum.Enum]) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _below(node: Node) -> Iterable[Node]:
    """The declarations within one."""
    inner: Any = node
    if isinstance(node, TagList):
        return [known.declaration for known in node.attributes.attributes]
    if isinstance(node, Fields):
        return node.subcons
    if isinstance(node, Renamed | Default | Coded):
        return [inner.subcon]
    return []


def _collect(node: Node, found: dict[str, TagList]) -> None:
    """All lists in a declaration, each once, outer ones first."""
    if isinstance(node, TagList):
        if node.attributes.name in found:
            return
        found[node.attributes.name] = node
    for each in _below(node):
        _collect(each, found)


def _nodes(schema: Schema) -> Iterator[Node]:
    for operation in schema.operations:
        yield operation.header
        yield attribute_list(operation.attributes)
    yield attribute_list(netlink.NLMSGERR_ATTR)
    yield pcapng.PCAP_HEADER
    for kind in pcapng.BLOCKS.values():
        yield kind.body


def _enumerations(node: Node, found: dict[str, type[enum.Enum]]) -> None:
    if isinstance(node, Coded):
        found[_qualified(node.enumeration)] = node.enumeration
    for each in _below(node):
        _enumerations(each, found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(_cell, row)) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _operations(operations: Iterable[Operation]) -> str:
    def names(operation: Operation, chosen: frozenset[str]) -> str:
        known = operation.attributes
        numbers = sorted(known.by_name[name].number for name in chosen)
        return ", ".join(known.constant(number) for number in numbers)

    return _table(
        ("number", "constant", "direction", "required", "optional", "meaning", "source"),
        (
            (
                str(operation.number),
                _OPERATION_PREFIX + operation.name.upper(),
                _DIRECTIONS[operation.direction],
                names(operation, operation.required),
                names(operation, operation.optional),
                operation.doc,
                operation.source,
            )
            for operation in operations
        ),
    )


def _struct(title: str, fields: Fields) -> str:
    rows = ((str(each.name), layout(each), each.docs or "") for each in fields.subcons)
    return f"### {title}\n\n" + _table(("field", "layout", "meaning"), rows)


def _set(attributes: AttributeSet) -> str:
    head = ("number", "constant", "name", "layout", "unit", "direction", "since", "meaning")

    def row(known: Attribute) -> tuple[str, ...]:
        return (
            str(known.number),
            attributes.constant(known.number),
            known.name,
            layout(known.declaration),
            known.unit,
            _DIRECTIONS[known.direction],
            known.since,
            known.doc,
            known.source,
        )

    title = f"### Set {attributes.name}\n\n"
    source = f"Numbered in {attributes.source}.\n\n" if attributes.source else ""
    return title + source + _table((*head, "source"), map(row, attributes.attributes))


def _enumeration(name: str, kind: type[enum.Enum]) -> str:
    about = " ".join((kind.__doc__ or "").split())
    rows = ((member.name, str(member.value)) for member in kind)
    return f"### {name}\n\n{about}\n\n" + _table(("name", "value"), rows)
