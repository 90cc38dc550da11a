"""Lists of numbered values: netlink attributes and pcapng options.

Both are (number, length, contents, padding) again and again; a `Framing` says how they differ.
The list is strict: whatever is not an element, whole and padded, is malformed. Two things are
lenient, as on the wire:

- the padding of the last element may be missing altogether, since the kernel writes NFQA_PAYLOAD
  in place and ends the message there (nfqnl_build_packet_message); cut in half it is malformed.
  Written, it is missing where the kernel leaves it out, and there only: other programs' libraries
  count it into nlmsg_len, too (mnl_attr_put), and tshark looks for the next message of a datagram
  where that says;
- padding need not be zero: no receiver looks at it. It is not kept, and written as zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._constructs import (
    STEP,
    Fields,
    MalformedError,
    Native16,
    Node,
    RefusedError,
    Stream,
    Window,
    build_part,
    built,
    padding,
    parse_exactly,
    skip_padding,
    take,
)
from ._records import NLA_F_NESTED, NLA_TYPE_MASK, Attr, AttributeSet, Value

if TYPE_CHECKING:
    from collections.abc import Iterable


class Framing(NamedTuple):
    """How the elements of a list are framed.

    Attributes:
      header: two fields, ``number`` and ``length``, in the order of the wire.
      counts_header: the length includes the header.
      number_mask: bits of the number that are its own; the others are flags.
      align: elements start at multiples of this, in bytes.
      end: number of the element that ends the list, None where the space does.
    """

    header: Fields
    counts_header: bool
    number_mask: int
    align: int
    end: int | None


NLATTR = Framing(
    Fields(
        "length" / Native16 * "of header and contents in bytes, padding left out (nla_len)",
        "number" / Native16 * "number; the upper two bits are NLA_F_* (nla_type)",
    ),
    counts_header=True,
    number_mask=NLA_TYPE_MASK,
    align=4,
    end=None,
)
"""struct nlattr, include/uapi/linux/netlink.h; alignment NLA_ALIGNTO."""

PCAPNG_OPTION = Framing(
    Fields(
        "number" / Native16 * "option code",
        "length" / Native16 * "of the contents in bytes, padding left out",
    ),
    counts_header=False,
    number_mask=0xFFFF,
    align=4,
    end=0,
)
"""An option, draft-ietf-opsawg-pcapng, section 3.5; the end is opt_endofopt."""


class TagList(Node):
    """A list of numbered values, to the end of what holds it; a tuple of `Attr`.

    A number that the set does not know keeps its bytes. Order, duplicates and flag bits stay.
    """

    def __init__(self, attributes: AttributeSet, framing: Framing, *, padded: bool = False):
        """Declare a list.

        Args:
          attributes: what may be in it.
          framing: how its elements are framed.
          padded: whether even a last element that the kernel does not pad is written padded.
        """
        super().__init__()
        self.attributes = attributes
        self.framing = framing
        self.bare = frozenset(
            known.number for known in attributes.attributes if not (known.padded or padded)
        )

    def _parse(self, stream: Stream, context: Any, path: str) -> tuple[Attr, ...]:
        base = stream.tell()
        everything = stream.read()
        window = Window(everything, base)
        found: list[Attr] = []
        while True:
            at = window.tell()
            left = base + len(everything) - at
            if not left:
                return tuple(found)
            number, flags, length = self._header(window, context, path, left)
            inner = f"{path}{STEP}{self.attributes.constant(number)}"
            if number == self.framing.end:
                self._ended(window, at, length, inner)
                return tuple(found)
            contents_at = window.tell()
            contents = window.read(length)
            known = self.attributes.by_number.get(number)
            value: Value = contents
            if known is not None:
                value = parse_exactly(known.declaration, contents, contents_at, context, inner)
            found.append(Attr(number, value, flags))
            skip_padding(window, padding(length, self.framing.align), inner)

    def _header(self, window: Window, context: Any, path: str, left: int) -> tuple[int, int, int]:
        """Number, flags and length of the contents of the next element."""
        framing = self.framing
        at = window.tell()
        size = framing.header.sizeof()
        header = take(window, size, f"{path}{STEP}header")
        fields = parse_exactly(framing.header, header, at, context, path)
        flags = fields["number"] & ~framing.number_mask
        number = fields["number"] & framing.number_mask
        length = fields["length"] - (size if framing.counts_header else 0)
        if length < 0 or length > left - size:
            least, most = (size, left) if framing.counts_header else (0, left - size)
            raise MalformedError(
                at,
                f"{path}{STEP}{self.attributes.constant(number)}",
                f"expected a length of {least} to {most}, got {fields['length']}",
            )
        return number, flags, length

    def _ended(self, window: Window, at: int, length: int, path: str) -> None:
        if length:
            raise MalformedError(at, path, f"expected a length of 0, got {length}")
        rest = window.tell()
        left = len(window.read())
        if left:
            raise MalformedError(rest, path, f"expected the end, got {left} more bytes")

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        if not isinstance(obj, tuple | list):
            raise RefusedError(path, f"expected a tuple of Attr, got {type(obj).__name__}")
        framing = self.framing
        pad = 0
        for element in obj:
            if not isinstance(element, Attr):
                raise RefusedError(path, f"expected an Attr, got {type(element).__name__}")
            stream.write(bytes(pad))
            pad = self._build_element(element, stream, context, path)
        if obj and obj[-1].number not in self.bare:
            stream.write(bytes(pad))
        if obj and framing.end is not None:
            end = {"number": framing.end, "length": 0}
            build_part(framing.header, end, stream, context, path)
        return obj

    def _build_element(self, element: Attr, stream: Stream, context: Any, path: str) -> int:
        """Write one element; how much padding it still lacks."""
        framing = self.framing
        number, value, flags = element
        if not isinstance(number, int) or not isinstance(flags, int):
            raise RefusedError(path, f"expected integers as number and flags, got {element!r}")
        inner = f"{path}{STEP}{self.attributes.constant(number)}"
        if number & ~framing.number_mask or number == framing.end:
            raise RefusedError(inner, f"expected a number within {framing.number_mask:#x}")
        if flags & framing.number_mask or not 0 <= flags <= 0xFFFF:
            raise RefusedError(
                inner, f"expected flags outside {framing.number_mask:#x}, got {flags:#x}"
            )
        known = self.attributes.by_number.get(number)
        if known is not None:
            contents = built(known.declaration, value, context, inner)
        elif isinstance(value, bytes | bytearray | memoryview):
            contents = bytes(value)
        else:
            raise RefusedError(inner, f"expected bytes, got {type(value).__name__}")
        size = framing.header.sizeof()
        length = len(contents) + (size if framing.counts_header else 0)
        if length > 0xFFFF:
            raise RefusedError(inner, f"expected a length of at most 65535, got {length}")
        header = {"number": number | flags, "length": length}
        build_part(framing.header, header, stream, context, inner)
        stream.write(contents)
        return padding(length, framing.align)


def attribute_list(attributes: AttributeSet, *, padded: bool = False) -> TagList:
    """A list of netlink attributes."""
    return TagList(attributes, NLATTR, padded=padded)


def option_list(options: AttributeSet) -> TagList:
    """A list of pcapng options."""
    return TagList(options, PCAPNG_OPTION)


def attr(attributes: AttributeSet, name: str, value: Value) -> Attr:
    """An attribute by its name, a nest with NLA_F_NESTED as the kernel's own macros set it.

    Raises:
      KeyError: the set has no such name.
    """
    known = attributes.by_name[name]
    nested = isinstance(known.declaration, TagList) and known.declaration.framing is NLATTR
    return Attr(known.number, value, NLA_F_NESTED if nested else 0)


def by_name(attributes: AttributeSet, found: Iterable[Attr]) -> dict[str, Value]:
    """The known ones of some attributes by name; of duplicates the last, as nla_parse takes it."""
    return {
        attributes.by_number[element.number].name: element.value
        for element in found
        if element.number in attributes.by_number
    }
