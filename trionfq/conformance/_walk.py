"""A walker of its own over the bytes of a datagram: messages, attributes, what is wrong with them.

It reads as strictly as the rules are written and as far as the kernel would: whatever stops the
kernel's parser stops this one, and the rule says so.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from trionfq.schema import NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_TYPE_MASK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trionfq.conformance._shapes import OperationShape, SetShape, Shape
    from trionfq.schema import Order

    Faults: TypeAlias = Callable[[str, int, str, str], None]
    """Gets rule id, offset in the datagram, field and text of each breach."""

HEADER_BYTES = 16
GENMSG_BYTES = 4
INSIDE = " -> "
"""Joins the names of nests in a field."""
_ATTRIBUTE_BYTES = 4
_HEADERS: dict[Order, struct.Struct] = {
    "little": struct.Struct("<IHHII"),
    "big": struct.Struct(">IHHII"),
}
_ATTRIBUTES: dict[Order, struct.Struct] = {
    "little": struct.Struct("<HH"),
    "big": struct.Struct(">HH"),
}
_OTHER: dict[Order, Order] = {"little": "big", "big": "little"}


class Header(NamedTuple):
    """A message's nlmsghdr; `at` is where it starts in the datagram."""

    at: int
    length: int
    type: int
    flags: int
    seq: int
    portid: int

    @property
    def end(self) -> int:
        """Where the message ends."""
        return self.at + self.length


class Attribute(NamedTuple):
    """One attribute: `at` its header, from `start` to `end` its contents."""

    number: int
    flags: int
    at: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the contents."""
        return self.end - self.start


def swapped(number: int, size: int) -> int:
    """An integer of so many bytes read in the other byte order."""
    return int.from_bytes(number.to_bytes(size, "big"), "little")


def order_of(datagram: bytes) -> Order | None:
    """The byte order in which the first nlmsg_len is possible, None if in neither."""
    if len(datagram) >= HEADER_BYTES:
        for order, layout in _HEADERS.items():
            if HEADER_BYTES <= layout.unpack_from(datagram)[0] <= len(datagram):
                return order
    return None


def headers(datagram: bytes, order: Order, faults: Faults) -> Iterator[Header]:
    """The messages of a datagram, up to the first that the kernel would stop at."""
    at, end = 0, len(datagram)
    while at < end:
        if end - at < HEADER_BYTES:
            faults("NFQ101", at, "nlmsghdr", f"expected 16 bytes, got {end - at}")
            return
        header = Header(at, *_HEADERS[order].unpack_from(datagram, at))
        if not HEADER_BYTES <= header.length <= end - at:
            other = _HEADERS[_OTHER[order]].unpack_from(datagram, at)[0]
            if HEADER_BYTES <= other <= end - at:
                text = f"nlmsg_len {header.length} is {other} in the other byte order"
                faults("NFQ103", at, "nlmsghdr.len", text)
            else:
                text = f"expected 16 to {end - at}, got {header.length}"
                faults("NFQ102", at, "nlmsghdr.len", text)
            return
        yield header
        pad = -header.length % 4
        if datagram[header.end : header.end + pad].strip(b"\0"):
            faults("NFQ211", header.end, "padding", "expected zeros behind the message")
        at = header.end + pad


def headers_in_silence(datagram: bytes, order: Order) -> list[Header]:
    """The same without a word."""
    return list(headers(datagram, order, lambda *_: None))


def attributes(
    datagram: bytes,
    start: int,
    end: int,
    known: SetShape,
    order: Order,
    faults: Faults,
    *,
    to_kernel: bool,
    path: str = "",
    operation: OperationShape | None = None,
) -> list[Attribute]:
    """The attributes of a list in the order of the wire, nests checked but not returned.

    Args:
      datagram: what it stands in.
      start: where it begins.
      end: where it ends.
      known: its set.
      order: byte order of the host.
      faults: gets what is wrong.
      to_kernel: whether the kernel reads it.
      path: the nests around it, each with `INSIDE` behind.
      operation: the message whose list it is, None for a nest.
    """
    found: list[Attribute] = []
    numbers: set[int] = set()
    at = start
    while at < end:
        left = end - at
        if left < _ATTRIBUTE_BYTES:
            faults("NFQ201", at, path or "attributes", f"{left} bytes left over")
            break
        length, kind = _ATTRIBUTES[order].unpack_from(datagram, at)
        number = kind & NLA_TYPE_MASK
        name = path + known.constant(number)
        if not _ATTRIBUTE_BYTES <= length <= left:
            _impossible(datagram, at, left, known, order, faults, path, length, name)
            break
        one = Attribute(number, kind & ~NLA_TYPE_MASK, at, at + _ATTRIBUTE_BYTES, at + length)
        if number in numbers:
            faults("NFQ209", at, name, "stands here a second time")
        numbers.add(number)
        found.append(one)
        entry = known.known.get(number)
        if entry is None:
            rule = "NFQ206" if to_kernel else "NFQ207"
            faults(rule, at, name, f"unknown, {one.size} bytes")
        elif operation is not None and number not in operation.carried:
            # Its contents do not matter: nobody looks at them.
            faults("NFQ208", at, name, f"in a {operation.name} message")
        else:
            _contents(datagram, one, entry.shape, order, faults, name, to_kernel=to_kernel)
        at = _padding(datagram, one.end, end, start, faults, name)
    return found


def _impossible(
    datagram: bytes,
    at: int,
    left: int,
    known: SetShape,
    order: Order,
    faults: Faults,
    path: str,
    length: int,
    name: str,
) -> None:
    other, kind = _ATTRIBUTES[_OTHER[order]].unpack_from(datagram, at)
    if _ATTRIBUTE_BYTES <= other <= left and kind & NLA_TYPE_MASK in known.known:
        constant = path + known.constant(kind & NLA_TYPE_MASK)
        faults("NFQ203", at, constant, f"nla_len {length} is {other} in the other byte order")
    else:
        faults("NFQ202", at, name, f"nla_len: expected 4 to {left}, got {length}")


def _padding(datagram: bytes, at: int, end: int, start: int, faults: Faults, name: str) -> int:
    """Look at the padding behind an attribute; where the next one starts."""
    pad = -(at - start) % 4
    there = datagram[at : min(at + pad, end)]
    if there and len(there) < pad:
        text = f"expected {pad} bytes of padding or none, got {len(there)}"
        faults("NFQ212", at, name, text)
    elif there.strip(b"\0"):
        faults("NFQ211", at, name, f"expected zeros as padding, got {there.hex()}")
    return at + pad


def _contents(
    datagram: bytes,
    one: Attribute,
    shape: Shape,
    order: Order,
    faults: Faults,
    name: str,
    *,
    to_kernel: bool,
) -> None:
    """Length and flag bits of an attribute, and of those within it."""
    nest = shape.inside is not None
    expected = NLA_F_NESTED if nest else 0
    if one.flags != expected:
        is_set = [
            word
            for bit, word in ((NLA_F_NESTED, "NESTED"), (NLA_F_NET_BYTEORDER, "NET_BYTEORDER"))
            if one.flags & bit
        ]
        wanted = "NESTED" if nest else "none"
        faults("NFQ213", one.at, name, f"expected {wanted}, got {'|'.join(is_set) or 'none'}")
    if shape.inside is not None:
        if 0 < one.size < _ATTRIBUTE_BYTES:
            faults("NFQ204", one.at, name, f"expected none or 4 bytes at least, got {one.size}")
            return
        attributes(
            datagram,
            one.start,
            one.end,
            shape.inside,
            order,
            faults,
            to_kernel=to_kernel,
            path=name + INSIDE,
        )
        return
    size, least, most = one.size, shape.least, shape.most
    if size < least or size % shape.step:
        step = f", a multiple of {shape.step}" if shape.step > 1 else ""
        faults("NFQ204", one.at, name, f"expected {_bytes(least, most)}{step}, got {size}")
    elif most is not None and size > most:
        extra = datagram[one.start + most : one.end]
        if len(extra) == -most % 4 and not extra.strip(b"\0"):
            text = f"{len(extra)} bytes of padding are counted: expected {most} bytes, got {size}"
            faults("NFQ210", one.at, name, text)
        else:
            faults("NFQ205", one.at, name, f"expected {_bytes(least, most)}, got {size}")


def _bytes(least: int, most: int | None) -> str:
    if most is None:
        return f"at least {least} bytes"
    return f"{least} bytes" if least == most else f"{least} to {most} bytes"
