"""Netlink messages: several to a datagram, each a header and a body that its type decides.

Here, too, nothing stops silently: a header that is cut, a length that is too short or reaches too
far, half a padding are all `MalformedError`. (The kernel, reading a request, ends at the first such
message without a word; netlink_rcv_skb.) The padding after the last message may be missing, since
the kernel ends a PACKET with its payload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from construct import Container

from . import netlink
from ._constructs import (
    STEP,
    Fields,
    MalformedError,
    Native32s,
    Node,
    RefusedError,
    Stream,
    Window,
    build_part,
    built,
    padding,
    parse_exactly,
    parse_part,
    skip_padding,
    take,
)
from ._lists import TagList, attribute_list
from ._records import AnyMessage, Direction, ErrorMessage, Message, Operation, RawMessage
from .nfnetlink import Subsystem, message_type

if TYPE_CHECKING:
    from collections.abc import Iterable


class OperationBody(Node):
    """Fixed header and attributes of one operation; the required ones must be there."""

    def __init__(self, operation: Operation, attributes: TagList):
        super().__init__()
        self.operation = operation
        self.header = operation.header
        self.attributes = attributes
        self.required = {operation.attributes.by_name[name].number for name in operation.required}

    def _parse(self, stream: Stream, context: Any, path: str) -> dict[str, Any]:
        at = stream.tell()
        contents = take(stream, self.header.sizeof(), path)
        fields: dict[str, Any] = parse_exactly(self.header, contents, at, context, path)
        attributes = parse_part(self.attributes, stream, context, path)
        lacking = self.lacking(attributes)
        if lacking:
            raise MalformedError(at + len(contents), path, f"expected {lacking}, got none")
        return {**fields, "attributes": attributes}

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        fields = dict(obj)
        attributes = fields.pop("attributes")
        build_part(self.header, fields, stream, context, path)
        build_part(self.attributes, attributes, stream, context, path)
        lacking = self.lacking(attributes)
        if lacking:
            raise RefusedError(path, f"expected {lacking}, got none")
        return obj

    def lacking(self, attributes: Iterable[Any]) -> str:
        """The constants of required attributes that are not there."""
        missing = self.required - {element.number for element in attributes}
        return ", ".join(self.operation.attributes.constant(number) for number in sorted(missing))


class ErrorBody(Node):
    """NLMSG_ERROR: an error number, the request that it answers, and what went wrong.

    The flags of the message say what follows the request's header (netlink_ack, af_netlink.c):
    without NLM_F_CAPPED the rest of the request, with NLM_F_ACK_TLVS attributes. A success of
    kernels before 4.2 has neither flag nor rest.
    """

    error = Fields("error" / Native32s * "0, or the negative error number")
    request = netlink.HEADER

    def __init__(self, attributes: TagList):
        super().__init__()
        self.attributes = attributes

    def _parse(self, stream: Stream, context: Any, path: str) -> dict[str, Any]:
        flags = context["flags"]
        at = stream.tell()
        error = parse_exactly(
            self.error, take(stream, self.error.sizeof(), path), at, context, path
        )["error"]
        at = stream.tell()
        inner = f"{path}{STEP}request"
        header = take(stream, self.request.sizeof(), inner)
        request = parse_exactly(self.request, header, at, context, inner)
        at = stream.tell()
        rest = Window(stream.read(), at)
        length = self.echoed(flags, request["len"], rest.getbuffer().nbytes)
        if length < 0:
            raise MalformedError(
                at - len(header),
                inner,
                f"expected a length of at least {len(header)}, got {request['len']}",
            )
        body = take(rest, length, inner)
        skip_padding(rest, padding(length, netlink.NLMSG_ALIGNTO), inner)
        attributes: tuple[Any, ...] = ()
        if flags & netlink.MessageFlags.ACK_TLVS:
            attributes = parse_part(self.attributes, rest, context, path)
        at = rest.tell()
        left = len(rest.read())
        if left:
            raise MalformedError(at, path, f"expected the end, got {left} more bytes")
        return {
            "error": error,
            "request": tuple(request.values()),
            "body": body,
            "attributes": attributes,
        }

    def echoed(self, flags: int, length: int, left: int) -> int:
        """How many bytes of the request follow its header.

        Args:
          flags: those of the answer.
          length: nlmsg_len of the request.
          left: how many bytes are left of the answer.

        Returns:
          The number, negative where the request's own length is impossible.
        """
        if flags & netlink.MessageFlags.CAPPED:
            return 0
        if not left and not flags & netlink.MessageFlags.ACK_TLVS:
            return 0
        return length - self.request.sizeof()

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        flags = context["flags"]
        fault = self.fault(flags, obj["request"], obj["body"], obj["attributes"])
        if fault:
            raise RefusedError(path, fault)
        build_part(self.error, {"error": obj["error"]}, stream, context, path)
        request = dict(zip(self.request.names, obj["request"], strict=True))
        build_part(self.request, request, stream, context, f"{path}{STEP}request")
        stream.write(obj["body"] + bytes(padding(len(obj["body"]), netlink.NLMSG_ALIGNTO)))
        if flags & netlink.MessageFlags.ACK_TLVS:
            build_part(self.attributes, obj["attributes"], stream, context, path)
        return obj

    def fault(self, flags: int, request: Any, body: Any, attributes: Any) -> str:
        """Why such an answer cannot be, empty where it can."""
        names = self.request.names
        if not isinstance(request, tuple) or len(request) != len(names):
            return f"expected a request of {len(names)} integers, got {request!r}"
        if not isinstance(body, bytes):
            return f"expected a body of bytes, got {type(body).__name__}"
        tlvs = flags & netlink.MessageFlags.ACK_TLVS
        if attributes and not tlvs:
            return "expected no attributes without NLM_F_ACK_TLVS"
        if flags & netlink.MessageFlags.CAPPED:
            return f"expected no body with NLM_F_CAPPED, got {len(body)} bytes" if body else ""
        length = self.echoed(flags, request[names.index("len")], len(body))
        if length != len(body):
            return f"expected a body of {length} bytes, as the request's length says"
        return ""


class RawBody(Node):
    """Anything: the rest of the message."""

    def _parse(self, stream: Stream, context: Any, path: str) -> dict[str, Any]:  # noqa: ARG002
        return {"body": stream.read()}

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:  # noqa: ARG002
        if not isinstance(obj["body"], bytes | bytearray | memoryview):
            raise RefusedError(path, f"expected bytes, got {type(obj['body']).__name__}")
        stream.write(obj["body"])
        return obj


class Kind(NamedTuple):
    """What a message type means.

    Attributes:
      name: for paths, such as ``verdict``.
      record: the record that such a message becomes.
      body: what follows the header; its fields are the record's after those of the header.
    """

    name: str
    record: type[Any]
    body: Node


class MessageList(Node):
    """The messages of one datagram; a list of records.

    Attributes:
      header: struct nlmsghdr.
      kinds: by nlmsg_type, those whose body is known.
      other: what every other type is.
    """

    header = netlink.HEADER

    def __init__(self, operations: Iterable[Operation]):
        super().__init__()
        self.kinds: dict[int, Kind] = {
            netlink.Type.ERROR: Kind(
                "error", ErrorMessage, ErrorBody(attribute_list(netlink.NLMSGERR_ATTR))
            )
        }
        for operation in operations:
            ours = operation.direction is Direction.TO_KERNEL
            body = OperationBody(operation, attribute_list(operation.attributes, padded=ours))
            number = message_type(Subsystem.QUEUE, operation.number)
            self.kinds[number] = Kind(operation.name, Message, body)
        self.other = Kind("message", RawMessage, RawBody())

    def kind_of(self, number: int) -> Kind:
        """The kind of a message type."""
        return self.kinds.get(number, self.other)

    def _parse(self, stream: Stream, context: Any, path: str) -> list[AnyMessage]:
        found: list[AnyMessage] = []
        base = stream.tell()
        contents = stream.read()
        window = Window(contents, base)
        end = base + len(contents)
        while window.tell() < end:
            found.append(self._one(window, end, context, path))
        return found

    def _one(self, window: Window, end: int, context: Any, path: str) -> AnyMessage:
        at = window.tell()
        size = self.header.sizeof()
        inner = f"{path}{STEP}nlmsghdr"
        header = parse_exactly(self.header, take(window, size, inner), at, context, inner)
        length = header.pop("len")
        kind = self.kind_of(header["type"])
        inner = f"{path}{STEP}{kind.name}"
        if not size <= length <= end - at:
            raise MalformedError(
                at, inner, f"expected a length of {size} to {end - at}, got {length}"
            )
        body = window.read(length - size)
        scope = Container(_params=context["_params"], flags=header["flags"])
        fields = parse_exactly(kind.body, body, at + size, scope, inner)
        skip_padding(window, padding(length, netlink.NLMSG_ALIGNTO), inner)
        record: AnyMessage = kind.record(**_known(header, kind), **fields)
        return record

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        pad = 0
        for message in obj:
            stream.write(bytes(pad))
            if not isinstance(message, Message | ErrorMessage | RawMessage):
                raise RefusedError(path, f"expected a message, got {type(message).__name__}")
            number = message.type if not isinstance(message, ErrorMessage) else netlink.Type.ERROR
            kind = self.kind_of(number)
            inner = f"{path}{STEP}{kind.name}"
            if not isinstance(message, kind.record):
                raise RefusedError(
                    inner, f"type {number} is {kind.record.__name__}, not {type(message).__name__}"
                )
            fields: dict[str, Any] = {"type": number, **message._asdict()}
            header = {name: fields.pop(name) for name in self.header.names if name != "len"}
            scope = Container(_params=context["_params"], flags=header["flags"])
            body = built(kind.body, fields, scope, inner)
            header["len"] = self.header.sizeof() + len(body)
            build_part(self.header, header, stream, context, inner)
            stream.write(body)
            pad = padding(header["len"], netlink.NLMSG_ALIGNTO)
        return obj


def _known(header: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The fields of a header that the record keeps: an ErrorMessage's type is always the same."""
    return {name: value for name, value in header.items() if name in kind.record._fields}
