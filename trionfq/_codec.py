"""The codec: the schema's meaning at full speed, derived from its declarations.

Nothing about the wire stands here: no offset, no format, no attribute number. `derive` walks a
closed set of construct nodes and refuses any other; `decode` and `encode` equal
`trionfq.schema.parse` and `build`; `PacketReader` remembers layouts; `Template` repeats a message.
Malformed input is given to the schema, which says what is wrong and where.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ._codec_derive import Layout, derive
from ._codec_messages import DatagramPart, derived
from ._codec_parts import MismatchError
from ._codec_shapes import PacketReader, Shape
from ._codec_template import Template
from .schema import SCHEMA, Schema
from .schema._constructs import HOST_ORDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .schema import AnyMessage, Order


class Codec:
    """Reader and writer of the datagrams of a schema, for both byte orders.

    Raises:
      TypeError: the schema holds a node outside the closed set.
    """

    def __init__(self, schema: Schema = SCHEMA):
        self._by_order: Mapping[str, DatagramPart] = {
            "little": derived(schema, "little"),
            "big": derived(schema, "big"),
        }

    def decode(self, datagram: bytes, *, order: Order = HOST_ORDER) -> list[AnyMessage]:
        """The messages of a datagram.

        Raises:
          RemoteProtocolError: the bytes contradict the schema; nothing else is ever raised.
        """
        return self._by_order[order].decode(datagram)

    def encode(self, messages: Iterable[AnyMessage], *, order: Order = HOST_ORDER) -> bytes:
        """The datagram of some messages.

        Raises:
          LocalProtocolError: a message does not fit the schema.
        """
        return self._by_order[order].encode(messages)

    def split(self, datagram: bytes, *, order: Order = HOST_ORDER) -> list[bytes]:
        """A datagram cut between its messages; joined, the pieces are the datagram again.

        Raises:
          RemoteProtocolError: the bytes contradict the schema.
        """
        part = self._by_order[order]
        try:
            starts = [start for start, _, _ in part.extents(datagram)]
        except MismatchError:
            part.decode(datagram)
            raise AssertionError("the codec refused what the schema reads") from None
        return [datagram[a:b] for a, b in pairwise([*starts, len(datagram)])]


_CODEC = Codec()
decode = _CODEC.decode
encode = _CODEC.encode
split = _CODEC.split

__all__ = [
    "Codec",
    "Layout",
    "PacketReader",
    "Shape",
    "Template",
    "decode",
    "derive",
    "encode",
    "split",
]
