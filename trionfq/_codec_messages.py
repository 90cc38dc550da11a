"""Whole datagrams, by parts derived from a `Schema`'s list of messages."""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from ._codec_derive import list_part, run_of
from ._codec_parts import MismatchError, as_bytes
from .schema import netlink
from .schema._messages import ErrorBody, Kind, MessageList, OperationBody, RawBody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .schema import AnyMessage, Order, Schema


class BodyPart:
    """What follows the header of one kind of message.

    Attributes:
      names: of the values that `read` gives, in order.
    """

    names: tuple[str, ...]

    def read(self, buffer: bytes, start: int, end: int, flags: int) -> tuple[Any, ...]:
        """The values in a range; raises `MismatchError` where it is not such a body."""
        raise NotImplementedError

    def write(self, message: Any) -> bytes:
        """The bytes of a record's body."""
        raise NotImplementedError


class OperationPart(BodyPart):
    """Fixed header and attributes of an operation."""

    def __init__(self, node: OperationBody, order: Order, path: str):
        self.operation = node.operation
        self.header = run_of(node.header, order, path)
        self.attributes = list_part(node.attributes, order, path)
        self.required = frozenset(node.required)
        self.names = (*self.header.names, "attributes")
        self._fixed = attrgetter(*self.header.names)

    def read(self, buffer: bytes, start: int, end: int, flags: int) -> tuple[Any, ...]:  # noqa: ARG002
        at = start + self.header.size
        if at > end:
            raise MismatchError
        attributes = self.attributes.read(buffer, at, end)
        if not self.required.issubset([element.number for element in attributes]):
            raise MismatchError
        return (*self.header.unpack_from(buffer, start), attributes)

    def write(self, message: Any) -> bytes:
        attributes = message.attributes
        if not self.required.issubset([element.number for element in attributes]):
            raise ValueError(attributes)
        fixed = self.header.pack(*self._fixed(message))
        return fixed + self.attributes.write(attributes)


class ErrorPart(BodyPart):
    """An answer: see `ErrorBody`, which decides how much of the request is echoed."""

    names = ("error", "request", "body", "attributes")

    def __init__(self, node: ErrorBody, order: Order, path: str):
        self._node = node
        self._error = run_of(node.error, order, path)
        self._request = run_of(node.request, order, f"{path} -> request")
        self._length = self._request.names.index("len")
        self._attributes = list_part(node.attributes, order, path)

    def read(self, buffer: bytes, start: int, end: int, flags: int) -> tuple[Any, ...]:
        header = start + self._error.size
        body = header + self._request.size
        if body > end:
            raise MismatchError
        (error,) = self._error.unpack_from(buffer, start)
        request = self._request.unpack_from(buffer, header)
        length = self._node.echoed(flags, request[self._length], end - body)
        stop = body + length
        if length < 0 or stop > end:
            raise MismatchError
        at = stop + -length % netlink.NLMSG_ALIGNTO
        if at > end:
            if stop != end:
                raise MismatchError
            at = end
        attributes: tuple[Any, ...] = ()
        if flags & netlink.MessageFlags.ACK_TLVS:
            attributes = self._attributes.read(buffer, at, end)
        elif at != end:
            raise MismatchError
        return error, request, buffer[body:stop], attributes

    def write(self, message: Any) -> bytes:
        flags, request, body, attributes = (
            message.flags,
            message.request,
            message.body,
            message.attributes,
        )
        if self._node.fault(flags, request, body, attributes):
            raise ValueError(message)
        return b"".join(
            (
                self._error.pack(message.error),
                self._request.pack(*request),
                body,
                bytes(-len(body) % netlink.NLMSG_ALIGNTO),
                self._attributes.write(attributes),
            )
        )


class RawPart(BodyPart):
    """Anything."""

    names = ("body",)

    def read(self, buffer: bytes, start: int, end: int, flags: int) -> tuple[Any, ...]:  # noqa: ARG002
        return (buffer[start:end],)

    def write(self, message: Any) -> bytes:
        return as_bytes(message.body)


def body_part(node: Any, order: Order, path: str) -> BodyPart:
    """The part of a body.

    Raises:
      TypeError: it is outside the closed set.
    """
    kind = type(node)
    if kind is OperationBody:
        return OperationPart(node, order, path)
    if kind is ErrorBody:
        return ErrorPart(node, order, path)
    if kind is RawBody:
        return RawPart()
    raise TypeError(f"{path}: a {kind.__module__}.{kind.__qualname__} cannot be derived")


class KindPart:
    """One kind of message.

    Attributes:
      record: the record that it becomes.
      body: what follows the header.
      fields: makes the record's fields of header and body values.
      header: makes the header's values but the length of the record and its type.
    """

    def __init__(self, kind: Kind, header_names: tuple[str, ...], order: Order):
        self.record = kind.record
        self.body = body_part(kind.body, order, kind.name)
        names = (*header_names, *self.body.names)
        self.fields: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(
            *[names.index(name) for name in kind.record._fields]
        )
        # The header's fields after its length; the record of one type only does not keep the type.
        kept: tuple[str, ...] = kind.record._fields
        if header_names[0] != "len" or any(n != "type" for n in {*header_names[1:]} - {*kept}):
            raise TypeError(f"{kind.name}: the record does not hold its header")
        places = [kept.index(n) if n in kept else len(kept) for n in header_names[1:]]
        self.header: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(*places)


class DatagramPart:
    """The messages of a datagram."""

    def __init__(self, schema: Schema, order: Order):
        self._schema = schema
        self._order = order
        node: MessageList = schema.messages
        self.header = run_of(node.header, order, "nlmsghdr")
        names = self.header.names
        self._length, self._type = names.index("len"), names.index("type")
        self._flags = names.index("flags")
        self.kinds = {number: KindPart(kind, names, order) for number, kind in node.kinds.items()}
        self.other = KindPart(node.other, names, order)

    def extents(self, datagram: bytes) -> list[tuple[int, int, tuple[int, ...]]]:
        """Start, end and header of each message, the lengths checked.

        Raises:
          MismatchError: a header is cut, or a length is wrong.
        """
        found = []
        unpack, size, end = self.header.unpack_from, self.header.size, len(datagram)
        at = 0
        while at < end:
            if at + size > end:
                raise MismatchError
            header = unpack(datagram, at)
            length = header[self._length]
            stop = at + length
            if length < size or stop > end:
                raise MismatchError
            found.append((at, stop, header))
            at = stop + -length % netlink.NLMSG_ALIGNTO
            if at > end and stop != end:
                raise MismatchError
        return found

    def decode(self, datagram: bytes) -> list[AnyMessage]:
        """The messages; see `trionfq.schema.parse`."""
        try:
            return self._decode(datagram)
        except MismatchError:
            self._schema.parse(datagram, order=self._order)
        raise AssertionError("the codec refused what the schema reads")

    def _decode(self, datagram: bytes) -> list[AnyMessage]:
        size, kinds, other = self.header.size, self.kinds, self.other
        messages = []
        for start, stop, header in self.extents(datagram):
            kind = kinds.get(header[self._type], other)
            body = kind.body.read(datagram, start + size, stop, header[self._flags])
            messages.append(kind.record._make(kind.fields((*header, *body))))
        return messages

    def encode(self, messages: Iterable[AnyMessage]) -> bytes:
        """The datagram; see `trionfq.schema.build`."""
        messages = list(messages)
        try:
            return self._encode(messages)
        except Exception:
            self._schema.build(messages, order=self._order)
        raise AssertionError("the codec refused what the schema writes")

    def _encode(self, messages: list[Any]) -> bytes:
        written: list[bytes] = []
        size, pack = self.header.size, self.header.pack
        pad = 0
        for message in messages:
            number = getattr(message, "type", netlink.Type.ERROR)
            kind = self.kinds.get(number, self.other)
            if not isinstance(message, kind.record):
                raise TypeError(message)
            body = kind.body.write(message)
            length = size + len(body)
            if pad:
                written.append(bytes(pad))
            written += (pack(length, *kind.header((*message, number))), body)
            pad = -length % netlink.NLMSG_ALIGNTO
        return b"".join(written)


@lru_cache(maxsize=16)
def derived(schema: Schema, order: Order) -> DatagramPart:
    """The part of a schema, derived once for each byte order.

    Raises:
      TypeError: the schema holds a node outside the closed set.
    """
    return DatagramPart(schema, order)
