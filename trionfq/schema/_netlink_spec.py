"""The schema as a netlink specification in the kernel's YAML form (protocol ``netlink-raw``).

The form is that of Documentation/netlink/netlink-raw.yaml: definitions (structs, enums, flags),
attribute sets, operations. nfqueue has none of its own in the kernel tree. Names are the schema's
with hyphens, as specifications have them. What the form cannot say stands in ``doc``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from construct import Default, FormatField, Renamed

from ._constructs import Coded, Fields, Native, Raw
from ._lists import TagList
from ._records import Attribute, AttributeSet, Direction
from ._schema import SCHEMA, Schema
from .nfnetlink import NFGENMSG, Subsystem, message_type

if TYPE_CHECKING:
    from collections.abc import Iterable

_NETLINK_NETFILTER = 12
_GENMSG = "nfgenmsg"
_Map = dict[str, Any]


def netlink_spec(schema: Schema = SCHEMA) -> str:
    """The specification as YAML."""
    return "".join(
        [
            "# SPDX-License-Identifier: MIT\n",
            "# Generated from the declarations in trionfq.schema.\n",
            "---\n",
            *_lines(specification(schema), 0),
        ]
    )


def specification(schema: Schema = SCHEMA) -> _Map:
    """The specification as plain values."""
    writer = _Writer()
    for operation in schema.operations:
        writer.add_set(operation.attributes)
    writer.add_struct(_GENMSG, NFGENMSG, "header of every netfilter message")
    return {
        "name": "nfqueue",
        "protocol": "netlink-raw",
        "protonum": _NETLINK_NETFILTER,
        "uapi-header": "linux/netfilter/nfnetlink_queue.h",
        "doc": "Packets that wait for a verdict from user space, over nfnetlink.",
        "definitions": [*writer.enums.values(), *writer.structs.values()],
        "attribute-sets": list(writer.sets.values()),
        "operations": {
            "enum-model": "directional",
            "list": list(map(_operation, schema.operations)),
        },
    }


def _hyphens(name: str) -> str:
    return name.lower().replace("_", "-")


def _operation(operation: Any) -> _Map:
    known = operation.attributes
    names = operation.required | operation.optional
    listed = [_hyphens(each.name) for each in known.attributes if each.name in names]
    found: _Map = {
        "name": _hyphens(operation.name),
        "doc": operation.doc,
        "attribute-set": known.name,
        "fixed-header": _GENMSG,
    }
    value = message_type(Subsystem.QUEUE, operation.number)
    if operation.direction is Direction.FROM_KERNEL:
        # Nobody asked for it: what the form calls an event.
        return {**found, "value": value, "event": {"attributes": listed}}
    return {**found, "do": {"request": {"value": value, "attributes": listed}}}


class _Writer:
    """Collects what declarations refer to, each once, inner ones first."""

    def __init__(self) -> None:
        self.sets: dict[str, _Map] = {}
        self.structs: dict[str, _Map] = {}
        self.enums: dict[str, _Map] = {}

    def add_set(self, attributes: AttributeSet) -> None:
        """An attribute set and everything in it."""
        if attributes.name in self.sets:
            return
        self.sets[attributes.name] = {}  # its place, should it refer to itself
        listed = [self._attribute(each) for each in attributes.attributes]
        self.sets[attributes.name] = {
            "name": attributes.name,
            "name-prefix": _hyphens(attributes.prefix),
            "attributes": listed,
        }

    def add_struct(self, name: str, fields: Fields, doc: str) -> None:
        """A struct."""
        members = []
        for each in fields.subcons:
            member = {"name": _hyphens(str(each.name)), **self._type(each, str(each.name))}
            if "checks" in member:
                member["len"] = member.pop("checks")["exact-len"]
            if each.docs:
                member["doc"] = each.docs
            members.append(member)
        self.structs[name] = {"name": name, "type": "struct", "doc": doc, "members": members}

    def _attribute(self, known: Attribute) -> _Map:
        found = {"name": _hyphens(known.name), "value": known.number}
        found.update(self._type(known.declaration, known.name))
        facts = [known.doc]
        if known.unit:
            facts.append(f"unit: {known.unit}")
        if known.since:
            facts.append(f"since {known.since}")
        found["doc"] = "; ".join(facts)
        return found

    def _type(self, node: Any, name: str) -> _Map:
        """The keys that say what a declaration is."""
        codes: type[enum.Enum] | None = None
        while isinstance(node, Renamed | Default | Coded):
            if isinstance(node, Coded):
                codes = node.enumeration
            node = node.subcon
        if isinstance(node, Native):
            return self._coded(_integer(node.by_order["little"], native=True), codes)
        if isinstance(node, FormatField):
            return self._coded(_integer(node, native=False), codes)
        if isinstance(node, Raw):
            return _raw(node, name)
        if isinstance(node, TagList):
            self.add_set(node.attributes)
            return {"type": "nest", "nested-attributes": node.attributes.name}
        if isinstance(node, Fields):
            struct = _hyphens(name)
            # Two attributes with the same fields share one struct.
            struct = struct.removesuffix("-original").removesuffix("-reply")
            self.add_struct(struct, node, f"contents of {struct}")
            return {"type": "binary", "struct": struct}
        raise TypeError(f"no netlink specification of {type(node).__name__}")

    def _coded(self, found: _Map, codes: type[enum.Enum] | None) -> _Map:
        if codes is None:
            return found
        name = _hyphens("".join(f"-{c}" if c.isupper() else c for c in codes.__name__).lstrip("-"))
        flags = issubclass(codes, enum.IntFlag)
        self.enums[name] = {
            "name": name,
            "type": "flags" if flags else "enum",
            "doc": " ".join((codes.__doc__ or "").split()),
            "entries": [
                {
                    "name": _hyphens(member.name),
                    # An entry of flags is given by the number of its bit.
                    "value": member.value.bit_length() - 1 if flags else member.value,
                }
                for member in codes
            ],
        }
        return {**found, "enum": name, **({"enum-as-flags": True} if flags else {})}


def _integer(field: Any, *, native: bool) -> _Map:
    letter = field.fmtstr[1]
    kind = f"{'s' if letter.islower() else 'u'}{8 * field.length}"
    if native or field.length == 1:
        return {"type": kind}
    return {"type": kind, "byte-order": "big-endian"}


def _raw(node: Raw, name: str) -> _Map:
    if node.text:
        return {"type": "string", "checks": {"unterminated-ok": True}}
    if name == "pad":
        return {"type": "pad"}
    found: _Map = {"type": "binary"}
    if node.least == node.most:
        found["checks"] = {"exact-len": node.least}
    elif node.most is not None:
        found["checks"] = {"min-len": node.least, "max-len": node.most}
    for prefix, hint in (("v4_", "ipv4"), ("v6_", "ipv6")):
        if name.startswith(prefix):
            found["display-hint"] = hint
    return found


def _lines(value: _Map, depth: int) -> Iterable[str]:
    """A map as YAML in block style."""
    space = "  " * depth
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{space}{key}:\n"
            yield from _lines(inner, depth + 1)
        elif isinstance(inner, list):
            yield f"{space}{key}:\n"
            for each in inner:
                if isinstance(each, dict):
                    yield f"{space}  -\n"
                    yield from _lines(each, depth + 2)
                else:
                    yield f"{space}  - {each}\n"
        else:
            yield f"{space}{key}: {_scalar(key, inner)}\n"


def _scalar(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if key == "doc":  # any text: double quotes and JSON's escapes are YAML's, too
        escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


__all__ = ["netlink_spec", "specification"]
