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
of the datagram, exact, for the hot path; and one of `Family`, a layout that leaves open the two
lengths which grow with a payload that ends the datagram. A datagram of a new length is compared
with the families before it is walked.

A drain under load mostly brings packets of one layout. Then the bytes that decide are compared for
all of them at once (`_codec_columns`).
"""

from __future__ import annotations

import sys
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ._codec_columns import Columns, Heads
from ._codec_layouts import Family, Walk, merged, offsets_of, struct_of
from ._codec_lists import make_attr
from ._codec_messages import OperationPart, derived
from ._codec_parts import MismatchError, RunPart
from .schema import SCHEMA, Attr, Message, Value
from .schema._constructs import HOST_ORDER
from .schema.nfnetlink import Subsystem, message_type
from .schema.nfqueue import PACKET

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .schema import Order, Schema

    _Entry: TypeAlias = tuple["_Layout", Callable[[bytes], Any], Any, "Shape", "_Entry | None"]

# Lengths remembered, layouts remembered for each, and families; a table that is full starts anew.
_LENGTHS = 4096
_PER_LENGTH = 8
_FAMILIES = 64
# Datagrams from which on columns cost less than a look at each.
_WORTH_COLUMNS = 24


def _absent(_datagram: bytes) -> None:
    """The reader of an attribute that a layout does not have."""


def _only_member(unpack: Callable[[bytes], tuple[int]]) -> Callable[[bytes], int]:
    def read(datagram: bytes) -> int:
        return unpack(datagram)[0]

    return read


class _Layout(NamedTuple):
    """What decides that a datagram is laid out in a certain way.

    Attributes:
      unpack: reads it.
      offsets: the bytes that it reads.
    """

    unpack: Callable[[bytes], Any]
    offsets: list[int]


class Shape:
    """One layout of PACKET datagrams; all its readers want a datagram that has it.

    Attributes:
      names: schema names of the attributes that are there; unknown ones have none.
      family: protocol family of the hook (nfgen_family).
      res_id: queue number.
      id_at: where the packet's id stands.
      packet_id: reads it.
      unpack_id: likewise, as the only member of a tuple; for many at a time.
      payload_start: where NFQA_PAYLOAD begins, None where there is none.
      payload_slice: what part of the datagram it is, None where there is none; without an end
        where the payload ends the datagram, as the kernel's does.
    """

    __slots__ = (
        "_all",
        "_header",
        "_readers",
        "family",
        "id_at",
        "names",
        "packet_id",
        "payload_slice",
        "payload_start",
        "res_id",
        "unpack_id",
    )

    packet_id: Callable[[bytes], int]
    unpack_id: Callable[[bytes], tuple[int]]

    def __init__(
        self,
        names: frozenset[str],
        header: Callable[[bytes], tuple[Any, ...]],
        fixed: Mapping[str, int],
        readers: Mapping[str, Callable[[bytes], Any]],
        everything: tuple[tuple[int, Callable[[bytes], Any], int], ...],
        id_at: int,
        unpack_id: Callable[[bytes], tuple[int]],
        payload: slice | None,
    ):
        self.names = names
        self.family = fixed["family"]
        self.res_id = fixed["res_id"]
        self.id_at = id_at
        self.packet_id = _only_member(unpack_id)
        self.unpack_id = unpack_id
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


class PacketReader:
    """Reads PACKET datagrams by remembered layouts.

    Args:
      order: byte order of the host that they come from.
      schema: whose PACKET operation.

    Attributes:
      shape: takes a datagram; gives the layout of one that is exactly one valid PACKET message,
        None for another; raises `RemoteProtocolError` where it contradicts the schema.

    Raises:
      TypeError: a PACKET attribute is such that lengths alone do not decide if it fits.
    """

    shape: Callable[[bytes], Shape | None]

    def __init__(self, *, order: Order = HOST_ORDER, schema: Schema = SCHEMA):
        self._datagram = derived(schema, order)
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
        self._id_leaf = hdr.leaf("packet_id")
        self._order = next(leaf.order for leaf in self.header.leaves if leaf.order)
        self._known: dict[int, _Entry] = {}
        self._families: list[tuple[Family, _Layout, Shape]] = []
        self._columns: dict[int, tuple[_Entry, Columns]] = {}
        self._heads: dict[Shape, Heads] = {}
        self._own_order = order == HOST_ORDER
        self._swapped = (self._id_leaf.order == "<") != (sys.byteorder == "little")
        self.shape = self._hot_path()

    def _hot_path(self) -> Callable[[bytes], Shape | None]:
        # A function without self: two attribute look-ups fewer for every packet.
        known, learn = self._known.get, self._learn

        def shape(datagram: bytes) -> Shape | None:
            entry = known(len(datagram))
            while entry is not None:
                _, unpack, headers, found, entry = entry
                if unpack(datagram) == headers:
                    return found
            return learn(datagram)

        return shape

    def uniform(self, datagrams: Sequence[bytes]) -> tuple[Shape, list[int]] | None:
        """The one shape of some datagrams and their packet ids, None where they differ.

        A drain under load mostly brings packets of one layout; proving them all at once, in C,
        costs half of proving each.

        Args:
          datagrams: at least one.
        """
        length = len(datagrams[0])
        entry = self._known.get(length)
        if entry is None:
            return None
        layout, unpack, headers, shape, _ = entry
        if unpack(datagrams[0]) != headers:
            return None
        count = len(datagrams)
        ids: list[int] | None
        if [*map(len, datagrams)].count(length) != count:
            heads = self._heads.get(shape)
            ids = None if heads is None or count < _WORTH_COLUMNS else heads.ids(datagrams)
        elif count >= _WORTH_COLUMNS:
            known = self._columns.get(length)
            if known is None or known[0] is not entry:
                if len(self._columns) >= _LENGTHS:
                    self._columns.clear()
                swapped = self._swapped
                columns = Columns(datagrams[0], layout.offsets, shape.id_at, id_swapped=swapped)
                known = self._columns[length] = entry, columns
            ids = known[1].ids(datagrams)
        elif [*map(unpack, datagrams)].count(headers) == count:
            ids = [packet_id for (packet_id,) in map(shape.unpack_id, datagrams)]
        else:
            ids = None
        return None if ids is None else (shape, ids)

    def _learn(self, datagram: bytes) -> Shape | None:
        for family, layout, shape in self._families:
            if family.matches(datagram):
                self._remember(datagram, layout, shape)
                return shape
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
            walk = Walk(self.header, self.body, datagram[:end])
        except MismatchError:
            self._datagram.decode(datagram)
            raise AssertionError("the codec refused what the schema reads") from None
        attributes = self.body.attributes
        pieces = merged(walk.pieces, attributes.header.size)
        layout = _Layout(struct_of(pieces, self._order).unpack_from, offsets_of(pieces))
        shape = self._shape_of(walk, datagram)
        _, number, _, _, stop, _ = walk.elements[-1]
        if number == self._payload and stop == len(datagram):
            if len(self._families) >= _FAMILIES:
                self._families.clear()
                self._heads.clear()
            family = Family(self.header, attributes, walk, self._order, datagram)
            self._families.append((family, layout, shape))
            self._add_heads(datagram, layout, shape)
        self._remember(datagram, layout, shape)
        return shape

    def _add_heads(self, datagram: bytes, layout: _Layout, shape: Shape) -> None:
        """Let datagrams of this family be looked at together, whatever their lengths."""
        if self._own_order:
            total = self.header.offsets["len"]
            self._heads[shape] = Heads(
                datagram, layout.offsets, shape, total, id_swapped=self._swapped
            )

    def _remember(self, datagram: bytes, layout: _Layout, shape: Shape) -> None:
        if len(self._known) >= _LENGTHS:
            self._known.clear()
        entries: list[tuple[_Layout, Any, Shape]] = [(layout, layout.unpack(datagram), shape)]
        entry = self._known.get(len(datagram))
        while entry is not None and len(entries) < _PER_LENGTH:
            known_layout, _, headers, known, entry = entry
            entries.append((known_layout, headers, known))
        entry = None
        # A chain, newest first: (layout, how to read the headers, what they must be, the shape, the
        # next).
        for known_layout, headers, known in reversed(entries):
            entry = (known_layout, known_layout.unpack, headers, known, entry)
        if entry is not None:
            self._known[len(datagram)] = entry

    def _shape_of(self, walk: Walk, datagram: bytes) -> Shape:
        """The shape that a walk found."""
        readers = dict(self._absent)
        everything = []
        payload = None
        packet_hdr = 0
        for _, number, flags, start, stop, part in walk.elements:
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
            packet_hdr + self._id_offset,
            self._id_unpacker(packet_hdr + self._id_offset),
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

    def _id_unpacker(self, at: int) -> Callable[[bytes], tuple[int]]:
        unpack: Callable[[bytes], Any] = Struct(
            f"{self._id_leaf.order}{at}x{self._id_leaf.code}"
        ).unpack_from
        return unpack

    def salvage_id(self, datagram: bytes, queue_number: int) -> int | None:
        """The packet id in a PACKET message of a queue that is malformed further on.

        The kernel writes NFQA_PACKET_HDR first; if that is whole, the packet can be answered.

        Args:
          datagram: what could not be decoded.
          queue_number: the queue.

        Returns:
          The id, None where it cannot be trusted.
        """
        fixed = self.body.header
        start = self.header.size + fixed.size
        if len(datagram) < start:
            return None
        header = self.header.read(datagram, 0, self.header.size)
        queue = fixed.read(datagram, self.header.size, start)["res_id"]
        first = self.body.attributes.first(datagram, start, len(datagram))
        if header["type"] != self._type or queue != queue_number or first is None:
            return None
        _, number, _, at, stop, part = first
        if number != self._packet_hdr or part is None or not part.fits(stop - at):
            return None
        return self._id_unpacker(at + self._id_offset)(datagram)[0]
