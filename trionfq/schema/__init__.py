"""Every layout once: declarations in construct, records for what construct alone cannot say.

`parse` and `build` are inverse on every valid message: ``parse(build(messages)) == messages``,
and ``build(parse(datagram)) == datagram`` for what the kernel or `build` wrote. Two liberties of a
sender are read but not kept: padding that is not zero, and padding left out at (or added to) the
end of a message. `build` writes what the kernel writes: zeros, and none after a last NFQA_PAYLOAD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import conntrack, netlink, nfnetlink, nfqueue, pcapng
from ._constructs import HOST_ORDER, Order
from ._lists import attr, by_name
from ._records import (
    NLA_F_NESTED,
    NLA_F_NET_BYTEORDER,
    NLA_TYPE_MASK,
    AnyMessage,
    Attr,
    Attribute,
    AttributeSet,
    Direction,
    ErrorMessage,
    Message,
    Operation,
    RawMessage,
    Value,
)
from ._reference import reference
from ._schema import SCHEMA, Schema

if TYPE_CHECKING:
    from collections.abc import Iterable


def parse(datagram: bytes, *, order: Order = HOST_ORDER) -> list[AnyMessage]:
    """The messages of a datagram, read strictly.

    Args:
      datagram: the bytes of one recv.
      order: byte order of the host that it came from.

    Raises:
      RemoteProtocolError: the bytes contradict the schema; nothing else is ever raised.
    """
    return SCHEMA.parse(datagram, order=order)


def build(messages: Iterable[AnyMessage], *, order: Order = HOST_ORDER) -> bytes:
    """The datagram of some messages; `parse` gives them back.

    Raises:
      LocalProtocolError: a message does not fit the schema.
    """
    return SCHEMA.build(messages, order=order)


__all__ = [
    "NLA_F_NESTED",
    "NLA_F_NET_BYTEORDER",
    "NLA_TYPE_MASK",
    "SCHEMA",
    "AnyMessage",
    "Attr",
    "Attribute",
    "AttributeSet",
    "Direction",
    "ErrorMessage",
    "Message",
    "Operation",
    "Order",
    "RawMessage",
    "Schema",
    "Value",
    "attr",
    "build",
    "by_name",
    "conntrack",
    "netlink",
    "nfnetlink",
    "nfqueue",
    "parse",
    "pcapng",
    "reference",
]
