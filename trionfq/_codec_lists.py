"""The codec's list of numbered values: netlink attributes, pcapng options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ._codec_parts import MismatchError, Part, RunPart, as_bytes
from .schema import Attr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .schema._lists import Framing

# As Attr(number, value, flags), without the generated __new__.
make_attr: Callable[[tuple[int, Any, int]], Attr] = partial(tuple.__new__, Attr)


class Element(NamedTuple):
    """Where one element of a list is.

    Attributes:
      at: offset of its header.
      number: its number.
      flags: what else its number field holds.
      start: where its contents begin.
      stop: where they end.
      part: what reads them, None where the number is not known.
    """

    at: int
    number: int
    flags: int
    start: int
    stop: int
    part: Part | None


class ListPart(Part):
    """A list of numbered values to the end of its range."""

    def __init__(
        self, framing: Framing, header: RunPart, parts: Mapping[int, Part], bare: set[int]
    ):
        self.framing = framing
        self.header = header
        self.parts = parts
        self.by_length = framing.end is None and all(part.by_length for part in parts.values())
        self._bare = bare
        self._number_first = header.names.index("number") < header.names.index("length")
        self._counted = header.size if framing.counts_header else 0

    def walk(self, buffer: bytes, start: int, end: int) -> Iterator[Element]:
        """The elements of a range, checked as to their lengths, not as to their contents.

        Raises:
          MismatchError: the range is no list.
        """
        framing, unpack, size = self.framing, self.header.unpack_from, self.header.size
        mask, align, last, part_of = framing.number_mask, framing.align, framing.end, self.parts.get
        at = start
        while at < end:
            contents = at + size
            if contents > end:
                raise MismatchError
            first, second = unpack(buffer, at)
            field, length = (first, second) if self._number_first else (second, first)
            length -= self._counted
            stop = contents + length
            if length < 0 or stop > end:
                raise MismatchError
            number = field & mask
            if number == last:
                if length or stop != end:
                    raise MismatchError
                return
            yield Element(at, number, field & ~mask, contents, stop, part_of(number))
            at = stop + -length % align
            if at > end and stop != end:
                raise MismatchError

    def read(self, buffer: bytes, start: int, end: int) -> tuple[Attr, ...]:
        return tuple(
            [
                make_attr((number, part.read(buffer, at, stop) if part else buffer[at:stop], flags))
                for _, number, flags, at, stop, part in self.walk(buffer, start, end)
            ]
        )

    def write(self, value: Any) -> bytes:
        if not isinstance(value, tuple | list):
            raise TypeError(value)
        framing, header = self.framing, self.header
        written: list[bytes] = []
        pad = b""
        for element in value:
            if not isinstance(element, Attr):
                raise TypeError(element)
            number, contents, flags = element
            part = self.parts.get(number)
            body = as_bytes(contents) if part is None else part.write(contents)
            if number & ~framing.number_mask or number == framing.end:
                raise ValueError(number)
            if flags & framing.number_mask or flags < 0:
                raise ValueError(flags)
            field, length = number | flags, len(body) + self._counted
            head = header.pack(field, length) if self._number_first else header.pack(length, field)
            written += (pad, head, body)
            pad = bytes(-length % framing.align)
        if not value:
            return b""
        if value[-1].number not in self._bare:
            written.append(pad)
        if framing.end is not None:
            written.append(header.write({"number": framing.end, "length": 0}))
        return b"".join(written)
