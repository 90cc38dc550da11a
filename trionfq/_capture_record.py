"""One record of a capture, and how its direction stands in the file twice.

The packet's flags (epb_flags) tell it, and the cooked header in front of the datagram, in the way
of the kernel's own netlink taps (``__netlink_deliver_tap_skb``, af_netlink.c).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trionfq._codec import derive
from trionfq._codec_derive import run_of
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.netlink import COOKED_HEADER, HEADER, Type
from trionfq.schema.nfqueue import OPERATIONS, MessageType
from trionfq.schema.pcapng import PacketFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionfq._notes import Note
    from trionfq.schema import Order

ORDERS: Final[tuple[Order, ...]] = ("little", "big")
_ARPHRD_NETLINK: Final = 824
_NETLINK_NETFILTER: Final = 12

_DIRECTION_BITS: Final = int(PacketFlags.INBOUND | PacketFlags.OUTBOUND)
FLAGS: Final[Mapping[Direction | None, int]] = {
    Direction.FROM_KERNEL: int(PacketFlags.INBOUND),
    Direction.TO_KERNEL: int(PacketFlags.OUTBOUND),
    None: 0,
}
"""epb_flags of each direction."""
# include/uapi/linux/if_packet.h. Other values say nothing of the direction: what a packet socket
# sees of an nlmon device is PACKET_OUTGOING, 4, either way.
_PACKET_OUTGOING: Final = 4
_PACKET_TYPES: Final[Mapping[Direction | None, int]] = {
    Direction.FROM_KERNEL: 6,
    Direction.TO_KERNEL: 7,
    None: _PACKET_OUTGOING,
}
_BY_FLAGS: Final = {flags: direction for direction, flags in FLAGS.items() if direction}
_BY_PACKET_TYPE: Final = {number: way for way, number in _PACKET_TYPES.items() if way}
_BY_MESSAGE_TYPE: Final[Mapping[int, Direction]] = {
    Type.ERROR: Direction.FROM_KERNEL,
    Type.DONE: Direction.FROM_KERNEL,
    **{MessageType[each.name.upper()]: each.direction for each in OPERATIONS},
}

_COOKED: Final = derive(COOKED_HEADER)
COOKED_BYTES: Final = _COOKED.size or 0
"""Length of the cooked header."""
_HEADERS: Final = {order: run_of(HEADER, order, "nlmsghdr") for order in ORDERS}
_HEADER_BYTES: Final = _HEADERS["little"].size
_LENGTH: Final = HEADER.names.index("len")
_TYPE: Final = HEADER.names.index("type")
# This host's first: most captures are of one like it.
_UNPACK_HEADER: Final = {
    order: _HEADERS[order].unpack_from for order in sorted(ORDERS, key=HOST_ORDER.__ne__)
}


class Record(NamedTuple):
    """One datagram of a capture, with what was noted when it passed.

    Attributes:
      time_ns: nanoseconds since the epoch.
      direction: who sent it; None where the file does not tell and the message leaves it open.
      datagram: the bytes; empty in a record that holds nothing but notes.
      notes: what else was noted at that time.
    """

    time_ns: int
    direction: Direction | None
    datagram: bytes
    notes: tuple[Note, ...] = ()


# As Record(...), without the generated __new__.
make_record: Callable[[tuple[Any, ...]], Record] = partial(tuple.__new__, Record)


def byte_order(datagram: bytes) -> Order | None:
    """The byte order of the host whose netlink message this is, None where it fits neither.

    The length of the first message (nlmsg_len) tells: read the wrong way round it is longer than
    any datagram.
    """
    size = len(datagram)
    if size >= _HEADER_BYTES:
        for order, unpack in _UNPACK_HEADER.items():
            if _HEADER_BYTES <= unpack(datagram)[_LENGTH] <= size:
                return order
    return None


def cooked_header(direction: Direction | None) -> bytes:
    """The cooked header of a datagram."""
    return _COOKED.write(
        {
            "packet_type": _PACKET_TYPES[direction],
            "arphrd_type": _ARPHRD_NETLINK,
            "address_length": 0,
            "address": bytes(8),
            "family": _NETLINK_NETFILTER,
        }
    )


class Cooked(NamedTuple):
    """What a cooked header says.

    Attributes:
      problem: why the packet is none of ours, None where it is.
      direction: who sent it, None where that is open.
    """

    problem: str | None
    direction: Direction | None = None


def read_cooked_header(header: bytes) -> Cooked:
    """What a cooked header says; any bytes say something."""
    if len(header) < COOKED_BYTES:
        return Cooked("packet without a whole cooked header")
    fields = _COOKED.read(header)
    if fields["arphrd_type"] != _ARPHRD_NETLINK:
        return Cooked(f"cooked header of hardware type {fields['arphrd_type']}")
    if fields["family"] != _NETLINK_NETFILTER:
        return Cooked(f"datagram of netlink family {fields['family']}")
    return Cooked(None, _BY_PACKET_TYPE.get(fields["packet_type"]))


def direction_of(
    flags: int, cooked: Cooked, datagram: bytes, order: Order | None
) -> Direction | None:
    """Who sent a datagram: as the flags say, else the cooked header, else its first message."""
    direction = _BY_FLAGS.get(flags & _DIRECTION_BITS, cooked.direction)
    if direction is None and len(datagram) >= _HEADER_BYTES:
        unpack = _UNPACK_HEADER[order or HOST_ORDER]
        direction = _BY_MESSAGE_TYPE.get(unpack(datagram)[_TYPE])
    return direction
