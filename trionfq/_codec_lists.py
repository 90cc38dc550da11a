"""The codec's list of numbered values: netlink attributes, pcapng options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ._codec_parts import MismatchError, Part, RunPart, as_bytes
from .schema import Attr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .schema._lists import Framing

# As Attr(number, value, flags), without the generated __new__.
make_attr: Callable[[tuple[int, Any, int]], Attr] = partial(tuple.__new__, Attr)


if TYPE_CHECKING:
    Element: TypeAlias = tuple[int, int, int, int, int, Part | None]
"""Offset of an element's header, its number, its flags, start and end of its contents, and what
reads them, None where the number is not known."""


class ListPart(Part):
    """A list of numbered values to the end of its range."""

    def __init__(
        self, framing: Framing, header: RunPart, parts: Mapping[int, Part], bare: frozenset[int]
    ):
        self.framing = framing
        self.header = header
        self.parts = parts
        self.by_length = framing.end is None and all(part.by_length for part in parts.values())
        self._bare = bare
        self._number_first = header.names.index("number") < header.names.index("length")
        self._sizes = header.size, header.size if framing.counts_header else 0

    def walk(self, buffer: bytes, start: int, end: int) -> list[Element]:
        """The elements of a range, checked as to their lengths, not as to their contents.

        Raises:
          MismatchError: the range is no list.
        """
        framing, unpack, size, counted = self.framing, self.header.unpack_from, *self._sizes
        mask, align, last, part_of = framing.number_mask, framing.align, framing.end, self.parts.get
        number_first = self._number_first
        found: list[Element] = []
        at = start
        while at < end:
            contents = at + size
            if contents > end:
                raise MismatchError
            field, length = unpack(buffer, at)
            if not number_first:
                field, length = length, field
            length -= counted
            stop = contents + length
            if length < 0 or stop > end:
                raise MismatchError
            number = field & mask
            if number == last:
                if length or stop != end:
                    raise MismatchError
                break
            found.append((at, number, field & ~mask, contents, stop, part_of(number)))
            at = stop + -length % align
            if at > end and stop != end:
                raise MismatchError
        return found

    def first(self, buffer: bytes, start: int, end: int) -> Element | None:
        """The first element, whatever follows it, None where not even that is whole."""
        size, counted = self._sizes
        if start + size > end:
            return None
        values = self.header.unpack_from(buffer, start)
        stop = start + size - counted + values[1 if self._number_first else 0]
        if not start + size <= stop <= end:
            return None
        return next(iter(self.walk(buffer, start, stop)), None)

    def read(self, buffer: bytes, start: int, end: int) -> tuple[Attr, ...]:
        return tuple(
            [
                make_attr((number, part.read(buffer, at, stop) if part else buffer[at:stop], flags))
                for _, number, flags, at, stop, part in self.walk(buffer, start, end)
            ]
        )

    def head(self, number: int, size: int) -> bytes:
        """The header of an element without flags whose contents have this size."""
        length = size + self._sizes[1]
        fields = (number, length) if self._number_first else (length, number)
        return self.header.pack(*fields)

    def tail(self, number: int, size: int) -> bytes:
        """The padding behind such an element where it is the last."""
        length = size + self._sizes[1]
        return b"" if number in self._bare else bytes(-length % self.framing.align)

    def write(self, value: Any) -> bytes:
        if not isinstance(value, tuple | list):
            raise TypeError(value)
        parts, pack, counted = self.parts, self.header.pack, self._sizes[1]
        mask, align, end = self.framing.number_mask, self.framing.align, self.framing.end
        written: list[bytes] = []
        pad = 0
        for element in value:
            if not isinstance(element, Attr):
                raise TypeError(element)
            number, contents, flags = element
            part = parts.get(number)
            body = as_bytes(contents) if part is None else part.write(contents)
            if number & ~mask or number == end or flags & mask or flags < 0:
                raise ValueError(element)
            length = len(body) + counted
            if pad:
                written.append(bytes(pad))
            field = number | flags
            written.append(pack(field, length) if self._number_first else pack(length, field))
            written.append(body)
            pad = -length % align
        if not value:
            return b""
        if pad and value[-1].number not in self._bare:
            written.append(bytes(pad))
        if end is not None:
            written.append(self.header.write({"number": end, "length": 0}))
        return b"".join(written)
