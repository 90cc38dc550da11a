"""The few construct classes of our own: strict where construct is lenient.

construct alone drops unread bytes, stops silently at the first malformed element of a
``GreedyRange``, has no offset in its errors, loses unknown flag bits and fixes the byte order of a
native field when the schema is made. Hence these invariants, which every class here keeps:

- *What is read is read whole.* A part with a known size is compared with what is there before it
  is read; a part without one takes everything; anything left over is `MalformedError`.
- *Errors have a place.* `MalformedError` has the absolute offset, since every stream is a
  `Window`, whose ``tell()`` counts from the start of the datagram; the path is handed down as text.
- *Values are plain*: int, bytes, dict, tuple; no ``Container``, which would pin its stream.
- *Native byte order comes from outside*, as the keyword ``order`` of ``parse`` and ``build``, so
  that one declaration reads captures of either kind of host.
"""

from __future__ import annotations

import functools
import io
import sys
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from construct import (
    Construct,
    ConstructError,
    Container,
    FormatField,
    Int16ub,
    Int16ul,
    Int32sb,
    Int32sl,
    Int32ub,
    Int32ul,
    Int64sb,
    Int64sl,
    Int64ub,
    Int64ul,
    Renamed,
    SizeofError,
    Subconstruct,
)

if TYPE_CHECKING:
    import enum
    from collections.abc import Mapping

    Node = Construct[Any, Any]
    Wrapper = Subconstruct[Any, Any, Any, Any]
else:
    Node = Construct
    Wrapper = Subconstruct

Order: TypeAlias = Literal["little", "big"]
Stream: TypeAlias = IO[bytes]

HOST_ORDER: Order = "little" if sys.byteorder == "little" else "big"
STEP = " -> "
"""Joins the parts of a path, as construct itself joins them."""


class MalformedError(ConstructError):
    """Bytes that contradict a declaration.

    Attributes:
      offset: absolute, in bytes.
      reason: what was expected and what is there.
    """

    def __init__(self, offset: int, path: str, reason: str):
        super().__init__(reason, path=path)
        self.offset = offset
        self.reason = reason


class RefusedError(ConstructError):
    """A value that a declaration cannot write.

    Attributes:
      reason: what was expected and what was given.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(reason, path=path)
        self.reason = reason


class Window(io.BytesIO):
    """A stream over a part of a datagram whose ``tell()`` is absolute."""

    def __init__(self, contents: bytes, base: int = 0):
        super().__init__(contents)
        self._base = base

    def tell(self) -> int:
        """The position, counted from the start of the datagram."""
        return super().tell() + self._base


@functools.lru_cache(maxsize=1024)
def size_of(declaration: Node) -> int | None:
    """The size of what a declaration describes, in bytes, None where it varies."""
    try:
        return declaration.sizeof()
    except SizeofError:
        return None


def order_of(context: Any) -> Order:
    """The byte order of native fields: the ``order`` keyword, else this host's."""
    order = context["_params"].get("order", HOST_ORDER)
    if order not in ("little", "big"):
        raise ValueError(f"order: expected 'little' or 'big', got {order!r}")
    return order  # type: ignore[no-any-return]


def parse_part(declaration: Node, stream: Stream, context: Any, path: str) -> Any:
    """Read a part from a stream: construct's own protocol between its classes."""
    return declaration._parsereport(stream, context, path)  # noqa: SLF001


def build_part(declaration: Node, value: Any, stream: Stream, context: Any, path: str) -> None:
    """Write a part to a stream: construct's own protocol between its classes."""
    declaration._build(value, stream, context, path)  # noqa: SLF001


def parse_exactly(declaration: Node, contents: bytes, base: int, context: Any, path: str) -> Any:
    """Read a declaration that must fill `contents` exactly.

    Raises:
      MalformedError: it needs more or fewer bytes, or is malformed within.
    """
    size = size_of(declaration)
    if size is not None and size != len(contents):
        raise MalformedError(base, path, f"expected {size} bytes, got {len(contents)}")
    window = Window(contents, base)
    value = parse_part(declaration, window, context, path)
    at = window.tell()
    left = len(window.read())
    if left:
        raise MalformedError(at, path, f"expected the end, got {left} more bytes")
    return value


def take(stream: Stream, size: int, path: str) -> bytes:
    """Read exactly `size` bytes.

    Raises:
      MalformedError: fewer are left.
    """
    at = stream.tell()
    contents = stream.read(size)
    if len(contents) != size:
        raise MalformedError(at, path, f"expected {size} bytes, got {len(contents)}")
    return contents


def skip_padding(window: Window, expected: int, path: str) -> None:
    """Read padding, which may be missing at the very end.

    Raises:
      MalformedError: a part of it is there.
    """
    at = window.tell()
    got = len(window.read(expected))
    if got not in (0, expected):
        raise MalformedError(at, path, f"expected {expected} bytes of padding, got {got}")


def built(declaration: Node, value: Any, context: Any, path: str) -> bytes:
    """The bytes of a value."""
    stream = io.BytesIO()
    build_part(declaration, value, stream, context, path)
    return stream.getvalue()


def padding(length: int, align: int = 4) -> int:
    """How many bytes lead from `length` to the next multiple of `align`."""
    return -length % align


class Native(Node):
    """An integer in the sender's own byte order, such as every field of a netlink header."""

    def __init__(self, little: FormatField, big: FormatField):  # type: ignore[type-arg]
        super().__init__()
        self.by_order: Mapping[Order, Any] = {"little": little, "big": big}

    def _parse(self, stream: Stream, context: Any, path: str) -> Any:
        return parse_part(self.by_order[order_of(context)], stream, context, path)

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        build_part(self.by_order[order_of(context)], obj, stream, context, path)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:  # noqa: ARG002
        return self.by_order["little"].sizeof()  # type: ignore[no-any-return]


Native16 = Native(Int16ul, Int16ub)
Native32 = Native(Int32ul, Int32ub)
Native32s = Native(Int32sl, Int32sb)
Native64 = Native(Int64ul, Int64ub)
Native64s = Native(Int64sl, Int64sb)


class Coded(Wrapper):
    """An integer whose values have names; the value stays a plain int, so no bit is lost."""

    def __init__(self, subcon: Node, enumeration: type[enum.IntEnum] | type[enum.IntFlag]):
        super().__init__(subcon)
        self.enumeration = enumeration


class Raw(Node):
    """Bytes up to the end of what holds them, uninterpreted.

    Args:
      least: fewest bytes.
      most: most bytes, None for no limit of its own; equal to `least` for a fixed size.
      step: the length is a multiple of this.
      text: characters; a final NUL is kept where the sender writes one.
    """

    def __init__(
        self, least: int = 0, most: int | None = None, *, step: int = 1, text: bool = False
    ):
        super().__init__()
        self.least = least
        self.most = most
        self.step = step
        self.text = text

    @property
    def unlimited(self) -> bool:
        """Whether every length is right."""
        return self.least == 0 and self.most is None and self.step == 1

    def fault(self, length: int) -> str | None:
        """Why a length is wrong, None where it is right."""
        if self.most == self.least != length:
            return f"expected {self.least} bytes, got {length}"
        if length < self.least:
            return f"expected at least {self.least} bytes, got {length}"
        if self.most is not None and length > self.most:
            return f"expected at most {self.most} bytes, got {length}"
        if length % self.step:
            return f"expected a multiple of {self.step} bytes, got {length}"
        return None

    def _parse(self, stream: Stream, context: Any, path: str) -> bytes:  # noqa: ARG002
        at = stream.tell()
        contents = stream.read(-1 if self.most is None or self.most != self.least else self.most)
        fault = self.fault(len(contents))
        if fault:
            raise MalformedError(at, path, fault)
        return contents

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:  # noqa: ARG002
        if not isinstance(obj, bytes | bytearray | memoryview):
            raise RefusedError(path, f"expected bytes, got {type(obj).__name__}")
        contents = bytes(obj)
        fault = self.fault(len(contents))
        if fault:
            raise RefusedError(path, fault)
        stream.write(contents)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:  # noqa: ARG002
        if self.most is None or self.most != self.least:
            raise SizeofError("the length varies", path=path)
        return self.most


class Counted(Node):
    """Bytes whose length an earlier field of the same `Fields` gives, padded to `align` bytes."""

    def __init__(self, length_field: str, *, align: int):
        super().__init__()
        self.length_field = length_field
        self.align = align

    def _parse(self, stream: Stream, context: Any, path: str) -> bytes:
        length = context[self.length_field]
        contents = take(stream, length, path)
        take(stream, padding(length, self.align), f"{path}{STEP}padding")
        return contents

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        if not isinstance(obj, bytes | bytearray | memoryview):
            raise RefusedError(path, f"expected bytes, got {type(obj).__name__}")
        contents = bytes(obj)
        length = context[self.length_field]
        if len(contents) != length:
            raise RefusedError(
                path, f"expected {length} bytes ({self.length_field}), got {len(contents)}"
            )
        stream.write(contents + bytes(padding(length, self.align)))
        return obj


def _named_once(subcon: Node) -> Node:
    """A field without construct's second wrapper, which would stand twice in paths."""
    while isinstance(subcon, Renamed) and isinstance(subcon.subcon, Renamed):
        subcon = Renamed(subcon.subcon.subcon, newname=subcon.name, newdocs=subcon.docs)
    return subcon


class Fields(Node):
    """The fields of a struct, in order, as a plain dict.

    Unlike construct's ``Struct`` it refuses a value with a field too many, and names the field
    that is cut off.
    """

    def __init__(self, *subcons: Node):
        super().__init__()
        self.subcons = tuple(map(_named_once, subcons))
        self.names = tuple(str(subcon.name) for subcon in subcons)

    def _parse(self, stream: Stream, context: Any, path: str) -> dict[str, Any]:
        inner = Container(_=context, _params=context["_params"])
        fields: dict[str, Any] = {}
        for subcon, name in zip(self.subcons, self.names, strict=True):
            size = size_of(subcon)
            if size is None:
                value = parse_part(subcon, stream, inner, path)
            else:
                at = stream.tell()
                contents = take(stream, size, f"{path}{STEP}{name}")
                value = parse_part(subcon, Window(contents, at), inner, path)
            fields[name] = inner[name] = value
        return fields

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        if not isinstance(obj, dict):
            raise RefusedError(path, f"expected a dict of fields, got {type(obj).__name__}")
        unknown = obj.keys() - set(self.names)
        if unknown:
            raise RefusedError(path, f"no such field: {', '.join(sorted(map(str, unknown)))}")
        inner = Container(_=context, _params=context["_params"])
        inner.update(obj)
        for subcon, name in zip(self.subcons, self.names, strict=True):
            if name not in obj and not subcon.flagbuildnone:
                raise RefusedError(f"{path}{STEP}{name}", "expected a value, got none")
            build_part(subcon, obj.get(name), stream, inner, path)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:  # noqa: ARG002
        sizes = [size_of(subcon) for subcon in self.subcons]
        if None in sizes:
            raise SizeofError("the length varies", path=path)
        return sum(size for size in sizes if size is not None)
