"""Every field of a datagram with its place and value: what the judge sees, to be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trionfq.conformance._shapes import (
    EXTACK_SHAPE,
    GENMSG_SHAPE,
    HEADER_SHAPE,
    OPERATION_SHAPES,
    Shape,
)
from trionfq.conformance._walk import (
    GENMSG_BYTES,
    HEADER_BYTES,
    Header,
    attributes,
    headers,
    order_of,
)
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.netlink import MessageFlags, Type
from trionfq.schema.nfnetlink import Subsystem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq.conformance._shapes import SetShape
    from trionfq.schema import Order

_ERROR = Shape(4, 4, integer=True, signed=True, native=True)
_NLATTR = Shape(2, 2, integer=True, native=True)


class Field(NamedTuple):
    """One field.

    Attributes:
      message: index of its message, from 0.
      path: where it stands, such as ``("NFQA_PACKET_HDR", "packet_id")``; a header's fields have
        its name in front: ``("nlmsghdr", "seq")``, ``("NFQA_MARK", "nla_len")``.
      offset: where in the datagram, in bytes.
      size: in bytes.
      value: an integer, or the bytes.
    """

    message: int
    path: tuple[str, ...]
    offset: int
    size: int
    value: int | bytes


def fields(datagram: bytes, *, order: Order | None = None) -> Iterator[Field]:
    """The fields of a datagram in the order of the wire, as far as it can be read.

    Args:
      datagram: any bytes.
      order: byte order of its host; None takes the one that the first length fits.
    """
    order = order or order_of(datagram) or HOST_ORDER
    for number, header in enumerate(headers(datagram, order, lambda *_: None)):
        yield from _message(_Reader(datagram, order, number), header)


class _Reader:
    """Reads fields of one message."""

    def __init__(self, datagram: bytes, order: Order, message: int) -> None:
        self.datagram = datagram
        self.order = order
        self.message = message

    def read(self, path: tuple[str, ...], at: int, end: int, shape: Shape) -> Iterator[Field]:
        """What a shape says of some bytes; what does not fit it is bytes."""
        if shape.members and end - at >= shape.least:
            for name, inner in shape.members:
                yield from self.read((*path, name), at, at + inner.least, inner)
                at += inner.least
            return
        contents = self.datagram[at:end]
        value: int | bytes = contents
        if shape.integer and len(contents) >= shape.least:
            order = self.order if shape.native else "big"
            value = int.from_bytes(contents[: shape.least], order, signed=shape.signed)
        yield Field(self.message, path, at, end - at, value)

    def attributes(
        self, known: SetShape, at: int, end: int, path: tuple[str, ...] = ()
    ) -> Iterator[Field]:
        """A list of attributes, headers and contents."""
        found = attributes(
            self.datagram, at, end, known, self.order, lambda *_: None, to_kernel=False
        )
        for one in found:
            inner = (*path, known.constant(one.number))
            yield from self.read((*inner, "nla_len"), one.at, one.at + 2, _NLATTR)
            yield from self.read((*inner, "nla_type"), one.at + 2, one.at + 4, _NLATTR)
            entry = known.known.get(one.number)
            shape = Shape() if entry is None else entry.shape
            if shape.inside is not None:
                yield from self.attributes(shape.inside, one.start, one.end, inner)
            else:
                yield from self.read(inner, one.start, one.end, shape)


def _message(reader: _Reader, header: Header) -> Iterator[Field]:
    start = header.at + HEADER_BYTES
    yield from reader.read(("nlmsghdr",), header.at, start, HEADER_SHAPE)
    if header.type == Type.ERROR:
        yield from _answer(reader, header, start)
        return
    operation = OPERATION_SHAPES.get(header.type & 0xFF)
    if (
        header.type >> 8 != Subsystem.QUEUE
        or operation is None
        or header.length < start + 4 - header.at
    ):
        yield from reader.read(("body",), start, header.end, Shape())
        return
    yield from reader.read(("nfgenmsg",), start, start + GENMSG_BYTES, GENMSG_SHAPE)
    yield from reader.attributes(operation.attributes, start + GENMSG_BYTES, header.end)


def _answer(reader: _Reader, header: Header, start: int) -> Iterator[Field]:
    echo = start + _ERROR.least
    if header.end < echo + HEADER_BYTES:
        yield from reader.read(("body",), start, header.end, Shape())
        return
    yield from reader.read(("nlmsgerr", "error"), start, echo, _ERROR)
    body = echo + HEADER_BYTES
    yield from reader.read(("nlmsgerr", "nlmsghdr"), echo, body, HEADER_SHAPE)
    end = header.end
    if header.flags & MessageFlags.CAPPED:
        end = body
    elif header.flags & MessageFlags.ACK_TLVS:
        length = int.from_bytes(reader.datagram[echo : echo + 4], reader.order)
        end = min(max(body, echo + length), header.end)
    if end > body:
        yield from reader.read(("nlmsgerr", "body"), body, end, Shape())
    if header.flags & MessageFlags.ACK_TLVS:
        yield from reader.attributes(EXTACK_SHAPE, echo + (end - echo + 3) // 4 * 4, header.end)
