"""Messages that differ in a few integers only: verdicts.

A verdict message is encoded once; each further one is a copy with another sequence number and
another packet id. Many of them are one repeated buffer, into which strided slices are assigned, so
that no Python runs per message. Where the integers are is taken from the derivation.
"""

from __future__ import annotations

import sys
from array import array
from struct import Struct, error
from typing import TYPE_CHECKING, Final

from ._codec_messages import OperationPart, derived
from ._codec_parts import IntPart, Leaf, RunPart
from ._errors import LocalProtocolError
from .schema import SCHEMA
from .schema._constructs import HOST_ORDER, padding
from .schema.netlink import NLMSG_ALIGNTO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .schema import Message, Order, Schema

# A u32 as array and memoryview know it.
_WORD: Final = "I"
_WORD_BYTES = array(_WORD).itemsize
_PACKET_ID: Final = ("verdict_hdr", "id")
_VERDICT: Final = ("verdict_hdr", "verdict")
_NONE: Final[Mapping[str, Sequence[int]]] = {}


class Template:
    """A message all of whose bytes but its sequence number and its packet id are fixed.

    Args:
      message: a sample; its sequence number and packet id do not matter.
      order: byte order of the host that it goes to.
      schema: whose message.
      field: attribute and field of it that hold the packet id.

    Attributes:
      size: length of one message in bytes, the padding before the next one included.

    Raises:
      LocalProtocolError: the sample does not fit the schema, or has no such field.
    """

    def __init__(
        self,
        message: Message,
        *,
        order: Order = HOST_ORDER,
        schema: Schema = SCHEMA,
        field: tuple[str, str] = _PACKET_ID,
    ):
        datagram = derived(schema, order)
        sample = datagram.encode([message])
        kind = datagram.kinds.get(message.type)
        if kind is None or not isinstance(kind.body, OperationPart):
            raise LocalProtocolError(f"type {message.type}: expected an operation of the schema")
        header, self._body = datagram.header, kind.body
        self._len, self._seq = (_Slot(header.offsets[n], header.leaf(n)) for n in ("len", "seq"))
        start = header.size + kind.body.header.size
        self._id = _field_slot(kind.body, start, sample, field)
        self._put_seq, self._put_id = self._seq.pack_into, self._id.pack_into
        self._start = start
        # Found when first needed: not every template is a verdict.
        self._slots: dict[tuple[str, str | None], _Slot] = {}
        self._sample = sample
        self._tail = padding(len(sample), NLMSG_ALIGNTO)
        self._padded = sample + bytes(self._tail)
        self.size = len(self._padded)

    def pack(self, seq: int, packet_id: int) -> bytes:
        """The message with this sequence number and packet id.

        Raises:
          LocalProtocolError: one of them is no u32.
        """
        message = bytearray(self._sample)
        try:
            self._put_seq(message, self._seq.at, seq)
            self._put_id(message, self._id.at, packet_id)
        except error as problem:
            raise LocalProtocolError(f"sequence number or packet id: {problem}") from None
        return bytes(message)

    def pack_payload(self, seq: int, packet_id: int, payload: bytes) -> bytes:
        """The message with NFQA_PAYLOAD besides, as its last attribute.

        Raises:
          LocalProtocolError: one of the numbers is no u32, or the payload is too long for an
            attribute.
        """
        attributes = self._body.attributes
        number = self._body.operation.attributes.by_name["payload"].number
        message = self.pack(seq, packet_id) + bytes(self._tail)
        try:
            header = attributes.head(number, len(payload))
        except error:
            raise LocalProtocolError(f"payload: {len(payload)} bytes are too many") from None
        whole = bytearray().join((message, header, payload, attributes.tail(number, len(payload))))
        self._len.pack_into(whole, self._len.at, len(whole))
        return bytes(whole)

    def pack_many(
        self,
        ids: Sequence[int],
        codes: Sequence[int] | None = None,
        changes: Mapping[str, Sequence[int]] = _NONE,
    ) -> bytes:
        """One message for each id, whose sequence number is the id as well, in one datagram.

        Args:
          ids: packet ids.
          codes: a verdict for each, None where all have the sample's.
          changes: by name, values of attributes that are one u32; others are as in the sample.

        Raises:
          LocalProtocolError: a number is no u32, there is not one for each id, or the sample has no
            such attribute.
        """
        datagram = bytearray(self._padded * len(ids))
        columns = [(self._seq, ids), (self._id, ids)]
        if codes is not None:
            columns.append((self._slot(*_VERDICT), codes))
        for name, values in changes.items():
            columns.append((self._slot(name, None), values))
        stride = self.size // _WORD_BYTES
        with memoryview(datagram) as octets, octets.cast(_WORD) as words:
            try:
                for slot, values in columns:
                    column = array(_WORD, values)
                    if slot.swapped:
                        column.byteswap()
                    words[slot.word :: stride] = column
            except (OverflowError, TypeError, ValueError) as problem:
                raise LocalProtocolError(f"packet id, verdict or change: {problem}") from None
        if self._tail:
            del datagram[-self._tail :]
        return bytes(datagram)

    def _slot(self, name: str, field: str | None) -> _Slot:
        slot = self._slots.get((name, field))
        if slot is None:
            slot = _field_slot(self._body, self._start, self._sample, (name, field))
            self._slots[name, field] = slot
        return slot


class _Slot:
    """Where an integer stands in a message."""

    def __init__(self, at: int, leaf: Leaf):
        layout = Struct(leaf.order + leaf.code)
        if layout.size != _WORD_BYTES or at % _WORD_BYTES:
            raise LocalProtocolError(f"byte {at}: expected an aligned u32 to vary")
        self.at = at
        self.word = at // _WORD_BYTES
        self.pack_into = layout.pack_into
        self.swapped = (leaf.order == "<") != (sys.byteorder == "little")


def _field_slot(
    body: OperationPart, start: int, sample: bytes, field: tuple[str, str | None]
) -> _Slot:
    """Where an attribute or a field of it stands in an encoded message; of duplicates the last."""
    found = None
    name, member = field
    wanted = body.operation.attributes.by_name.get(name)
    for _, number, _, at, _, part in body.attributes.walk(sample, start, len(sample)):
        if wanted is None or number != wanted.number:
            continue
        if member is None and isinstance(part, IntPart):
            found = _Slot(at, part.leaf)
        elif member is not None and isinstance(part, RunPart):
            found = _Slot(at + part.offsets[member], part.leaf(member))
    if found is None:
        raise LocalProtocolError(f"{' -> '.join(filter(None, field))}: expected one, got none")
    return found
