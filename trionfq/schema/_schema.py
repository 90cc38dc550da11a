"""A whole protocol: operations in, datagrams out, and back.

The one place where everything that construct may raise (not all of it a ConstructError: a missing
key, a wrong type, an integer out of range) becomes one of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from construct import Container

from .._errors import LocalProtocolError, RemoteProtocolError
from . import nfqueue
from ._constructs import HOST_ORDER, STEP, MalformedError, Node, Order, parse_exactly
from ._messages import MessageList

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._records import AnyMessage, Operation

ROOT = "(parsing)"


def path_of(text: str | None) -> tuple[str, ...]:
    """A path of construct as a tuple, its root left out."""
    return tuple((text or ROOT).split(STEP)[1:])


def read(
    declaration: Node, datagram: bytes, *, order: Order, start: int = 0, end: int | None = None
) -> Any:
    """Parse the part of `datagram` from `start` to `end`, all of it, by a declaration.

    Raises:
      RemoteProtocolError: it contradicts it; the offset counts from the start of `datagram`.
    """
    context: Container[Any] = Container(order=order)
    context["_params"] = context
    try:
        return parse_exactly(declaration, datagram[start:end], start, context, ROOT)
    except MalformedError as error:
        raise RemoteProtocolError(
            error.reason, datagram=datagram, offset=error.offset, path=path_of(error.path)
        ) from None


def write(declaration: Node, value: Any, *, order: Order) -> bytes:
    """Build a value by a declaration.

    Raises:
      LocalProtocolError: the value does not fit it.
    """
    try:
        return declaration.build(value, order=order)
    except Exception as error:
        refuse(error)


def refuse(error: Exception) -> NoReturn:
    """Raise what building raised as a LocalProtocolError.

    construct raises KeyError, TypeError, struct.error and others where a value is not of the
    declared form, so nothing is let through.
    """
    path = path_of(getattr(error, "path", None))
    reason = getattr(error, "reason", None)
    if reason is None:
        # construct repeats the path on a line of its own before what it has to say
        reason = f"{type(error).__name__}: {str(error).rsplit(chr(10), 1)[-1]}"
    where = " -> ".join(path) or "message"
    raise LocalProtocolError(f"{where}: {reason}") from error


class Schema:
    """The messages of a set of operations.

    Attributes:
      operations: what was declared.
      messages: the declaration of a datagram.
    """

    def __init__(self, operations: Iterable[Operation]):
        self.operations = tuple(operations)
        self.messages = MessageList(self.operations)

    def parse(self, datagram: bytes, *, order: Order = HOST_ORDER) -> list[AnyMessage]:
        """The messages of a datagram, read strictly.

        Args:
          datagram: the bytes of one recv.
          order: byte order of the host that it came from.

        Raises:
          RemoteProtocolError: the bytes contradict the schema; nothing else is ever raised.
        """
        messages: list[AnyMessage] = read(self.messages, datagram, order=order)
        return messages

    def build(self, messages: Iterable[AnyMessage], *, order: Order = HOST_ORDER) -> bytes:
        """The datagram of some messages; `parse` gives them back.

        Raises:
          LocalProtocolError: a message does not fit the schema.
        """
        return write(self.messages, messages, order=order)


SCHEMA = Schema(nfqueue.OPERATIONS)
