"""From a captured packet to its network header, by link type.

A reader takes the captured bytes and gives a `Frame`, or, where they are no such frame, the kind of
thing that they are, to be counted. Any bytes give one or the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from trionfq._codec_derive import run_of
from trionfq._frame import IPV4, IPV6, Frame, ethertype
from trionfq._frames_nflog import read_nflog
from trionfq._link_types import link_type_text
from trionfq.schema.links import BSD_LOOPBACK, COOKED, COOKED_V2, ETHERNET
from trionfq.schema.pcapng import LinkType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionfq.schema import Order

_OUTGOING: Final = 4
# Hardware types whose "protocol" is no EtherType, linux/if_arp.h: netlink; frame relay;
# IEEE 802.11 in its three forms.
_OTHER_PROTOCOLS: Final = frozenset({824, 770, 801, 802, 803})
# Address families of the systems that write them: BSDs, Darwin, Linux and Windows.
_AF_INET: Final = frozenset({2})
_AF_INET6: Final = frozenset({10, 23, 24, 28, 30})

_ethernet = run_of(ETHERNET, "big", "ethernet")
_cooked = run_of(COOKED, "big", "cooked")
_cooked_v2 = run_of(COOKED_V2, "big", "cooked_v2")
_loopback = {order: run_of(BSD_LOOPBACK, order, "loopback") for order in ("little", "big")}

Reader: TypeAlias = "Callable[[bytes, Order], Frame | str]"


def _read_ethernet(data: bytes, _order: Order) -> Frame | str:
    size = _ethernet.size
    if len(data) < size:
        return "frame without a whole Ethernet header"
    _destination, source, protocol = _ethernet.unpack_from(data, 0)
    return Frame(ethertype(protocol, data, size), size, source, data[:size])


def _read_cooked(data: bytes, _order: Order) -> Frame | str:
    if len(data) < _cooked.size:
        return "packet without a whole cooked header"
    packet_type, hardware, length, address, protocol = _cooked.unpack_from(data, 0)
    return _of_cooked(_cooked.size, packet_type, hardware, address[:length], protocol)


def _read_cooked_v2(data: bytes, _order: Order) -> Frame | str:
    if len(data) < _cooked_v2.size:
        return "packet without a whole cooked header"
    fields = _cooked_v2.unpack_from(data, 0)
    protocol, _reserved, ifindex, hardware, packet_type, length, address = fields
    found = _of_cooked(_cooked_v2.size, packet_type, hardware, address[:length], protocol)
    return found if isinstance(found, str) else found._replace(ifindex=ifindex or None)


def _of_cooked(
    size: int, packet_type: int, hardware: int, address: bytes, protocol: int
) -> Frame | str:
    if hardware in _OTHER_PROTOCOLS:
        return f"cooked header of hardware type {hardware}"
    return Frame(protocol, size, address, outgoing=packet_type == _OUTGOING)


def _read_raw(data: bytes, _order: Order) -> Frame | str:
    version = data[0] >> 4 if data else None
    if version == 4:
        return Frame(IPV4, 0)
    if version == 6:
        return Frame(IPV6, 0)
    return "empty packet" if version is None else f"raw packet of IP version {version}"


def _read_null(data: bytes, order: Order) -> Frame | str:
    """BSD's loopback: the order is that of the host, which may not be the file's."""
    size = _loopback["big"].size
    if len(data) < size:
        return "packet without a whole loopback header"
    orders: tuple[Order, Order] = ("big", "little") if order == "big" else ("little", "big")
    families = [_loopback[each].unpack_from(data, 0)[0] for each in orders]
    for family in families:
        if family in _AF_INET:
            return Frame(IPV4, size)
        if family in _AF_INET6:
            return Frame(IPV6, size)
    # The right one is the one that is small.
    return f"packet of address family {min(families)}"


def _read_loop(data: bytes, _order: Order) -> Frame | str:
    return _read_null(data, "big")


def _read_ipv4(_data: bytes, _order: Order) -> Frame | str:
    return Frame(IPV4, 0)


def _read_ipv6(_data: bytes, _order: Order) -> Frame | str:
    return Frame(IPV6, 0)


READERS: Final[Mapping[int, Reader]] = {
    LinkType.NULL: _read_null,
    LinkType.ETHERNET: _read_ethernet,
    LinkType.DLT_RAW: _read_raw,
    LinkType.DLT_RAW_OPENBSD: _read_raw,
    LinkType.RAW: _read_raw,
    LinkType.LOOP: _read_loop,
    LinkType.LINUX_SLL: _read_cooked,
    LinkType.IPV4: _read_ipv4,
    LinkType.IPV6: _read_ipv6,
    LinkType.NFLOG: read_nflog,
    LinkType.LINUX_SLL2: _read_cooked_v2,
}
"""The link types that packets are read from."""


def read_frame(link_type: int, data: bytes, order: Order) -> Frame | str:
    """The frame of a captured packet, or the kind of what is none, to be counted.

    Args:
      link_type: LINKTYPE_* number.
      data: the captured bytes.
      order: byte order of the file or section, which mostly is that of the host.
    """
    reader = READERS.get(link_type)
    if reader is None:
        return f"packet of {link_type_text(link_type)}"
    return reader(data, order)
