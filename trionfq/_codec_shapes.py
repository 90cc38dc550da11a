"""The fast decoder: one remembered layout for each form that a queue's packets come in.

A PACKET message is decided by its headers alone: if nlmsg_len, nlmsg_type, the fixed header and the
header of every attribute, nested ones included, are those of a datagram of the same length that was
walked before and found valid, then this one is valid, and every value is where it was there. So one
``struct.Struct`` with pad bytes reads all those headers, one comparison with the remembered tuple
proves the layout, and values are read when they are asked for. Guessing the payload's offset
without the comparison would be forgeable.

This rests on an invariant, checked when the reader is made: whether an attribute's contents fit
depends on lengths alone (`Part.by_length`).

Payload lengths vary, layouts hardly do. So there are two tables, both bounded: one by the length
of the datagram, exact, for the hot path; and one of `_Family`, a layout that leaves open the two
lengths which grow with a payload that ends the datagram. A datagram of a new length is compared
with the families before it is walked.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from ._codec_lists import ListPart, make_attr
from ._codec_messages import DatagramPart, OperationPart
from ._codec_parts import MismatchError, RunPart
from .schema import SCHEMA, Attr, Message, Value
from .schema._constructs import HOST_ORDER
from .schema.nfnetlink import Subsystem, message_type
from .schema.nfqueue import PACKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._codec_parts import Part
    from .schema import Order, Schema

# Lengths remembered, layouts remembered for each, and families; a table that is full starts anew.
_LENGTHS = 4096
_PER_LENGTH = 8
_FAMILIES = 64


def _absent(_datagram: bytes) -> None:
    """The reader of an attribute that a layout does not have."""


class Shape:
    """One layout of PACKET datagrams; all its readers want a datagram that has it.

    Attributes:
      names: schema names of the attributes that are there; unknown ones have none.
      family: protocol family of the hook (nfgen_family).
      res_id: queue number.
      packet_id: reads the packet's id.
      payload_start: where NFQA_PAYLOAD begins, None where there is none.
      payload_slice: what part of the datagram it is, None where there is none; without an end
        where the payload ends the datagram, as the kernel's does.
    """

    __slots__ = (
        "_all",
        "_header",
        "_readers",
        "family",
        "names",
        "packet_id",
        "payload_slice",
        "payload_start",
        "res_id",
    )

    packet_id: Callable[[bytes], int]

    def __init__(
        self,
        names: frozenset[str],
        header: Callable[[bytes], tuple[Any, ...]],
        fixed: Mapping[str, int],
        readers: Mapping[str, Callable[[bytes], Any]],
        everything: tuple[tuple[int, Callable[[bytes], Any], int], ...],
        packet_id: Callable[[bytes], int],
        payload: slice | None,
    ):
        self.names = names
        self.family = fixed["family"]
        self.res_id = fixed["res_id"]
        self.packet_id = packet_id
        self.payload_slice = payload
        self.payload_start: int | None = None if payload is None else payload.start
        self._header = header
        self._readers = readers
        self._all = everything

    def read(self, name: str, datagram: bytes) -> Value | None:
        """The value of one attribute, None where it is not there; of duplicates the last.

        Raises:
          KeyError: the schema has no attribute of that name.
        """
        value: Value | None = self._readers[name](datagram)
        return value

    def attributes(self, datagram: bytes) -> tuple[Attr, ...]:
        """All attributes, as the schema gives them."""
        return tuple(
            [make_attr((number, read(datagram), flags)) for number, read, flags in self._all]
        )

    def message(self, datagram: bytes) -> Message:
        """The whole message, as the schema gives it."""
        return Message._make((*self._header(datagram), self.attributes(datagram)))


class _Piece(NamedTuple):
    """Bytes that a layout pins."""

    at: int
    order: str
    code: str


def _struct(pieces: list[_Piece], order: str) -> Struct:
    """One format for all pieces: pad bytes between them, those of the other order as raw bytes."""
    codes, at = [order], 0
    for piece in sorted(pieces):
        size = Struct(f"<{piece.code}").size
        codes.append(f"{piece.at - at}x" if piece.at > at else "")
        codes.append(piece.code if piece.order in ("", order) else f"{size}s")
        at = piece.at + size
    return Struct("".join(codes))


class _Walk:
    """What a walk over one datagram found."""

    def __init__(self, reader: PacketReader, datagram: bytes):
        self.pieces: list[_Piece] = [
            *_pin(reader.header, 0, ("len", "type")),
            *_pin(reader.body.header, reader.header.size, reader.body.header.names),
        ]
        self.elements: list[tuple[int, Part | None, int, int, int]] = []
        start = reader.header.size + reader.body.header.size
        if start > len(datagram):
            raise MismatchError
        numbers = set()
        self.last_at = start
        for element in self._list(reader.body.attributes, datagram, start, len(datagram)):
            at, number, flags, begin, stop, part = element
            self.elements.append((number, part, flags, begin, stop))
            numbers.add(number)
            self.last_at = at
        if not reader.body.required <= numbers:
            raise MismatchError

    def _list(self, part: ListPart, datagram: bytes, start: int, end: int) -> Iterator[Any]:
        header = part.header
        for element in part.walk(datagram, start, end):
            self.pieces += _pin(header, element.at, header.names)
            if isinstance(element.part, ListPart):
                for _ in self._list(element.part, datagram, element.start, element.stop):
                    pass
            elif element.part and not element.part.fits(element.stop - element.start):
                raise MismatchError
            yield element


def _pin(run: RunPart, at: int, names: tuple[str, ...]) -> list[_Piece]:
    return [_Piece(at + run.offsets[name], *run.leaf(name)) for name in names]


class _Family:
    """A layout whose payload, the last attribute and unpadded, may have any length."""

    def __init__(self, reader: PacketReader, walk: _Walk, layout: Struct, datagram: bytes):
        nla = reader.body.attributes.header
        self.unpack = layout.unpack_from
        self.size = walk.last_at + nla.size
        ordered = sorted(walk.pieces)
        total = reader.header.offsets["len"]
        inner = walk.last_at + nla.offsets["length"]
        free = [i for i, piece in enumerate(ordered) if piece.at in (total, inner)]
        kept = [i for i in range(len(ordered)) if i not in free]
        self._kept = itemgetter(*kept)
        self._free = itemgetter(*free)
        self._pinned = self._kept(self.unpack(datagram))
        # Where the payload's own length starts counting: at its header, or after it.
        self._base = walk.last_at if reader.body.attributes.framing.counts_header else self.size
        self.shape = reader.make_shape(walk, datagram)

    def matches(self, datagram: bytes) -> tuple[Any, ...] | None:
        """The headers of a datagram of this family, None of another."""
        length = len(datagram)
        if length < self.size:
            return None
        headers = self.unpack(datagram)
        if self._kept(headers) != self._pinned:
            return None
        return headers if self._free(headers) == (length, length - self._base) else None


class PacketReader:
    """Reads PACKET datagrams by remembered layouts.

    Args:
      order: byte order of the host that they come from.
      schema: whose PACKET operation.

    Raises:
      TypeError: a PACKET attribute is such that lengths alone do not decide if it fits.
    """

    def __init__(self, *, order: Order = HOST_ORDER, schema: Schema = SCHEMA):
        self._datagram = DatagramPart(schema, order)
        self._type = message_type(Subsystem.QUEUE, PACKET.number)
        self.header = self._datagram.header
        body = self._datagram.kinds[self._type].body
        if not isinstance(body, OperationPart) or not body.attributes.by_length:
            raise TypeError("PACKET: the layout does not follow from lengths alone")
        self.body = body
        self._set = body.operation.attributes
        self._absent: dict[str, Callable[[bytes], Any]] = dict.fromkeys(self._set.by_name, _absent)
        self._payload = self._set.by_name["payload"].number
        self._packet_hdr = self._set.by_name["packet_hdr"].number
        hdr = body.attributes.parts[self._packet_hdr]
        if not isinstance(hdr, RunPart):
            raise TypeError("NFQA_PACKET_HDR: expected a struct of one byte order")
        self._id_offset = hdr.offsets["packet_id"]
        leaf = hdr.leaf("packet_id")
        self._unpack_id = Struct(leaf.order + leaf.code).unpack_from
        self._order = next(leaf.order for leaf in self.header.leaves if leaf.order)
        self._known: dict[int, tuple[tuple[Any, tuple[Any, ...], Shape], ...]] = {}
        self._families: list[_Family] = []

    def shape(self, datagram: bytes) -> Shape | None:
        """The layout of a datagram that is exactly one valid PACKET message, None of another.

        Raises:
          RemoteProtocolError: it contradicts the schema.
        """
        for unpack, headers, shape in self._known.get(len(datagram), ()):
            if unpack(datagram) == headers:
                return shape
        return self._learn(datagram)

    def _learn(self, datagram: bytes) -> Shape | None:
        for family in self._families:
            headers = family.matches(datagram)
            if headers is not None:
                self._remember(len(datagram), family.unpack, headers, family.shape)
                return family.shape
        try:
            extents = self._datagram.extents(datagram)
        except MismatchError:
            extents = []
        if len(extents) != 1 or extents[0][2][self.header.names.index("type")] != self._type:
            # Another kind of datagram, or a malformed one: decoding tells.
            self._datagram.decode(datagram)
            return None
        return self._walk(datagram, extents[0][1])

    def _walk(self, datagram: bytes, end: int) -> Shape:
        try:
            walk = _Walk(self, datagram[:end])
        except MismatchError:
            self._datagram.decode(datagram)
            raise AssertionError("the codec refused what the schema reads") from None
        layout = _struct(walk.pieces, self._order)
        number, _, _, _, stop = walk.elements[-1]
        if number == self._payload and stop == len(datagram):
            if len(self._families) >= _FAMILIES:
                self._families.clear()
            family = _Family(self, walk, layout, datagram)
            self._families.append(family)
            shape = family.shape
        else:
            shape = self.make_shape(walk, datagram)
        self._remember(len(datagram), layout.unpack_from, layout.unpack_from(datagram), shape)
        return shape

    def _remember(self, length: int, unpack: Any, headers: tuple[Any, ...], shape: Shape) -> None:
        if len(self._known) >= _LENGTHS:
            self._known.clear()
        known = self._known.get(length, ())
        self._known[length] = ((unpack, headers, shape), *known[: _PER_LENGTH - 1])

    def make_shape(self, walk: _Walk, datagram: bytes) -> Shape:
        """The shape that a walk found."""
        readers = dict(self._absent)
        everything = []
        payload = None
        packet_hdr = 0
        for number, part, flags, start, stop in walk.elements:
            read: Callable[[bytes], Any]
            if number == self._payload and stop == len(datagram):
                read = itemgetter(slice(start, None))
            elif part is None:
                read = itemgetter(slice(start, stop))
            else:
                read = part.at(start, stop)
            everything.append((number, read, flags))
            if part is not None:
                readers[self._set.by_number[number].name] = read
            if number == self._payload:
                payload = slice(start, None if stop == len(datagram) else stop)
            elif number == self._packet_hdr:
                packet_hdr = start
        fixed = self.body.header
        return Shape(
            frozenset(name for name, read in readers.items() if read is not _absent),
            self._header_reader(),
            fixed.read(datagram, self.header.size, self.header.size + fixed.size),
            readers,
            tuple(everything),
            self._id_reader(packet_hdr + self._id_offset),
            payload,
        )

    def _header_reader(self) -> Callable[[bytes], tuple[Any, ...]]:
        """Reads every field of the record but the attributes, in the record's order."""
        names = (*self.header.names, *self.body.header.names)
        pick = itemgetter(*[names.index(n) for n in Message._fields if n != "attributes"])
        first, second, at = self.header.unpack_from, self.body.header.unpack_from, self.header.size

        def read(datagram: bytes) -> tuple[Any, ...]:
            fields: tuple[Any, ...] = pick((*first(datagram), *second(datagram, at)))
            return fields

        return read

    def _id_reader(self, at: int) -> Callable[[bytes], int]:
        unpack = self._unpack_id

        def read(datagram: bytes) -> int:
            packet_id: int = unpack(datagram, at)[0]
            return packet_id

        return read

    def salvage_id(self, datagram: bytes, number: int) -> int | None:
        """The packet id in a PACKET message of a queue that is malformed further on.

        The kernel writes NFQA_PACKET_HDR first; if that is whole, the packet can be answered.

        Args:
          datagram: what could not be decoded.
          number: the queue.

        Returns:
          The id, None where it cannot be trusted.
        """
        fixed = self.body.header
        start = self.header.size + fixed.size
        if len(datagram) < start:
            return None
        header = self.header.read(datagram, 0, self.header.size)
        queue = fixed.read(datagram, self.header.size, start)["res_id"]
        try:
            first = next(self.body.attributes.walk(datagram, start, len(datagram)), None)
        except MismatchError:
            return None
        if header["type"] != self._type or queue != number or first is None:
            return None
        if first.number != self._packet_hdr or first.part is None:
            return None
        if not first.part.fits(first.stop - first.start):
            return None
        return self._id_reader(first.start + self._id_offset)(datagram)
