"""What the codec makes of a declaration: parts that read and write at full speed.

A part reads exactly the range that it is given or raises `MismatchError`, which says nothing of
what is wrong or where: the schema, asked again with the same bytes, says that. A part writes a
value or raises anything at all: the schema, asked again with the same value, says what is wrong.

Two readers each: `Part.read` checks the range; `Part.at` gives a function of the buffer alone, for
a range whose fitness is already proved (a remembered layout), and checks nothing.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class MismatchError(Exception):
    """The bytes do not fit; ask the schema why."""


class Part:
    """Base of what is derived.

    Attributes:
      size: in bytes, None where it varies.
      by_length: whether the length of a range alone (and that of the elements within) decides if it
        fits, whatever the other bytes are; only such a part can be in a remembered layout.
    """

    size: int | None = None
    by_length = True

    def fits(self, length: int) -> bool:
        """Whether a range of this length can be one; for parts that hold no list."""
        return self.size is None or self.size == length

    def read(self, buffer: bytes, start: int, end: int) -> Any:
        """The value in a range.

        Raises:
          MismatchError: it does not fill the range exactly.
        """
        raise NotImplementedError

    def at(self, start: int, end: int) -> Callable[[bytes], Any]:
        """A reader of a range that is known to fit."""

        def read(buffer: bytes) -> Any:
            return self.read(buffer, start, end)

        return read

    def write(self, value: Any) -> bytes:
        """The bytes of a value."""
        raise NotImplementedError


class Leaf(NamedTuple):
    """A field of fixed size as `struct` knows it.

    Attributes:
      order: ``<`` or ``>``, empty where one byte or plain bytes have no order.
      code: such as ``L`` or ``8s``.
    """

    order: str
    code: str


class IntPart(Part):
    """One integer."""

    def __init__(self, leaf: Leaf):
        self.leaf = leaf
        layout = Struct(leaf.order + leaf.code)
        self.size: int = layout.size
        self._unpack = layout.unpack_from
        self._pack = layout.pack

    def read(self, buffer: bytes, start: int, end: int) -> Any:
        if end - start != self.size:
            raise MismatchError
        return self._unpack(buffer, start)[0]

    def at(self, start: int, end: int) -> Callable[[bytes], Any]:  # noqa: ARG002
        unpack = self._unpack

        def read(buffer: bytes) -> Any:
            return unpack(buffer, start)[0]

        return read

    def write(self, value: Any) -> bytes:
        return self._pack(value)


def as_bytes(value: Any) -> bytes:
    """A bytes-like value as bytes; an int is none, though ``bytes`` would take it."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(value)
    return bytes(value)


class RawPart(Part):
    """Bytes whose length has limits."""

    def __init__(self, fault: Callable[[int], str | None], size: int | None):
        self._fault = fault
        self.size = size

    def fits(self, length: int) -> bool:
        return self._fault(length) is None

    def read(self, buffer: bytes, start: int, end: int) -> bytes:
        if self._fault(end - start) is not None:
            raise MismatchError
        return buffer[start:end]

    def at(self, start: int, end: int) -> Callable[[bytes], bytes]:
        return itemgetter(slice(start, end))

    def write(self, value: Any) -> bytes:
        contents = as_bytes(value)
        if self._fault(len(contents)) is not None:
            raise ValueError(len(contents))
        return contents


class FreePart(Part):
    """Bytes of any length."""

    def fits(self, length: int) -> bool:  # noqa: ARG002
        return True

    def read(self, buffer: bytes, start: int, end: int) -> bytes:
        return buffer[start:end]

    def at(self, start: int, end: int) -> Callable[[bytes], bytes]:
        return itemgetter(slice(start, end))

    def write(self, value: Any) -> bytes:
        return as_bytes(value)


class CountedPart(Part):
    """Bytes whose length another field tells; read and written by `FieldsPart` alone."""

    by_length = False

    def __init__(self, length_field: str, align: int):
        self.length_field = length_field
        self.align = align


class Field(NamedTuple):
    """A field of a struct.

    Attributes:
      name: its name.
      part: what it is.
      default: its value where none is given, None where one must be.
    """

    name: str
    part: Part
    default: Any


class RunPart(Part):
    """A struct of fixed size whose fields agree in byte order: one `struct.Struct`.

    Names and values are zipped without ``strict``, which alone doubles the cost of a small dict:
    the format has one value for each name.
    """

    def __init__(self, fields: Sequence[Field], leaves: Sequence[Leaf]):
        self.fields = tuple(fields)
        self.names = tuple(field.name for field in fields)
        order = "".join({leaf.order for leaf in leaves}) or "<"
        self.layout = Struct(order + "".join(leaf.code for leaf in leaves))
        self.size: int = self.layout.size
        self.unpack_from = self.layout.unpack_from
        self.pack = self.layout.pack
        self.leaves = tuple(leaves)
        self.offsets: dict[str, int] = {}
        offset = 0
        for name, leaf in zip(self.names, leaves, strict=True):
            self.offsets[name] = offset
            offset += Struct(leaf.order + leaf.code).size
        self._known = frozenset(self.names)
        self._checked = any(isinstance(field.part, RawPart) for field in fields)
        plain = len(fields) > 1 and not self._checked and all(f.default is None for f in fields)
        self._plain = itemgetter(*self.names) if plain else None

    def leaf(self, name: str) -> Leaf:
        """How one field is laid out."""
        return self.leaves[self.names.index(name)]

    def read(self, buffer: bytes, start: int, end: int) -> dict[str, Any]:
        if end - start != self.size:
            raise MismatchError
        return dict(zip(self.names, self.unpack_from(buffer, start)))  # noqa: B905

    def at(self, start: int, end: int) -> Callable[[bytes], dict[str, Any]]:  # noqa: ARG002
        unpack, names = self.unpack_from, self.names

        def read(buffer: bytes) -> dict[str, Any]:
            return dict(zip(names, unpack(buffer, start)))  # noqa: B905

        return read

    def write(self, value: Any) -> bytes:
        if not isinstance(value, dict) or not value.keys() <= self._known:
            raise TypeError(value)
        if self._plain is not None and len(value) == len(self.names):
            return self.pack(*self._plain(value))
        return self.pack(*self.values(value))

    def values(self, value: dict[str, Any]) -> list[Any]:
        """The values of the fields in order, defaults filled in."""
        given = [
            value[name] if default is None else _or(value.get(name), default)
            for name, _, default in self.fields
        ]
        if self._checked:
            # struct would cut bytes or fill them up, and takes no memoryview.
            for i, (_, part, _) in enumerate(self.fields):
                if isinstance(part, RawPart):
                    given[i] = part.write(given[i])
        return given


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


class FieldsPart(Part):
    """A struct with more than one byte order, or with a part of varying length."""

    def __init__(self, pieces: Sequence[RunPart | Field]):
        self.pieces = tuple(pieces)
        self.by_length = all(
            p.by_length if isinstance(p, RunPart) else p.part.by_length for p in pieces
        )
        sizes = [p.size if isinstance(p, RunPart) else p.part.size for p in pieces]
        if all(size is not None for size in sizes):
            self.size = sum(size for size in sizes if size is not None)
        names: list[str] = []
        for piece in pieces:
            names += piece.names if isinstance(piece, RunPart) else (piece.name,)
        self.names = tuple(names)
        self._known = frozenset(names)

    def fits(self, length: int) -> bool:
        if self.size is None:
            # Such a struct only stands where `read` decides.
            raise NotImplementedError
        return self.size == length

    def read(self, buffer: bytes, start: int, end: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        at = start
        for piece in self.pieces:
            if isinstance(piece, RunPart):
                stop = at + piece.size
                if stop > end:
                    raise MismatchError
                fields.update(zip(piece.names, piece.unpack_from(buffer, at)))  # noqa: B905
                at = stop
                continue
            name, part, _ = piece
            if isinstance(part, CountedPart):
                length = fields[part.length_field]
                stop = at + length
                padded = stop + -length % part.align
                if padded > end:
                    raise MismatchError
                fields[name] = buffer[at:stop]
                at = padded
            else:
                stop = end if part.size is None else at + part.size
                if stop > end:
                    raise MismatchError
                fields[name] = part.read(buffer, at, stop)
                at = stop
        if at != end:
            raise MismatchError
        return fields

    def write(self, value: Any) -> bytes:
        if not isinstance(value, dict) or not value.keys() <= self._known:
            raise TypeError(value)
        written = []
        for piece in self.pieces:
            if isinstance(piece, RunPart):
                written.append(piece.pack(*piece.values(value)))
                continue
            name, part, default = piece
            given = value[name] if default is None else _or(value.get(name), default)
            if isinstance(part, CountedPart):
                contents = as_bytes(given)
                if len(contents) != value[part.length_field]:
                    raise ValueError(len(contents))
                written += (contents, bytes(-len(contents) % part.align))
            else:
                written.append(part.write(given))
        return b"".join(written)
