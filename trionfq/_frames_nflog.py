"""NFLOG packets: what iptables' NFLOG target told, which is much of what a queue's packet tells.

Lengths and types of the attributes are in the byte order of the host that captured, which mostly
is the file's; programs that rewrite files do not turn them round. Which one it is shows by where
the attributes end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trionfq._codec import derive
from trionfq._codec_derive import run_of
from trionfq._errors import RemoteProtocolError
from trionfq._frame import IPV4, IPV6, Frame
from trionfq.schema.links import NFLOG_ATTRIBUTE, NFLOG_HEADER, NFULA, LogAttribute
from trionfq.schema.nfnetlink import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq.schema import Order, Value

_header = run_of(NFLOG_HEADER, "big", "nflog")
_attribute = {order: run_of(NFLOG_ATTRIBUTE, order, "nflog") for order in ("little", "big")}
_ATTRIBUTE_BYTES: Final = _attribute["big"].size
_NS: Final = 10**9
_USEC: Final = 10**6
# The high bits of a type are flags (NLA_F_*).
_TYPE_MASK: Final = 0x3FFF
_LAYOUTS: Final = {each.number: derive(each.declaration) for each in NFULA.attributes}
_NAMES: Final = {each.number: each.name for each in NFULA.attributes}
_HEADER, _PAYLOAD = int(LogAttribute.PACKET_HDR), int(LogAttribute.PAYLOAD)
_ADDRESS, _TIMESTAMP = int(LogAttribute.HWADDR), int(LogAttribute.TIMESTAMP)
_LINK_HEADER, _VLAN = int(LogAttribute.L2HDR), int(LogAttribute.VLAN)
_ETHERTYPES: Final[Mapping[int, int]] = {Family.IPV4: IPV4, Family.IPV6: IPV6}
_VERSIONS: Final = {4: IPV4, 6: IPV6}


def read_nflog(data: bytes, order: Order) -> Frame | str:
    """The frame of an NFLOG packet, or the kind of what is none."""
    if len(data) < _header.size:
        return "packet without a whole NFLOG header"
    family, version, _group = _header.unpack_from(data, 0)
    if version != 0:
        return f"NFLOG packet of version {version}"
    found = _places(data, order) or _places(data, "big" if order == "little" else "little")
    if found is None:
        return "malformed NFLOG packet"
    if _PAYLOAD not in found:
        return "NFLOG packet without a payload"
    told: dict[str, Value] = {}
    header: dict[str, Any] = {}
    for number, (start, end) in found.items():
        layout = _LAYOUTS.get(number)
        if layout is None or number in (_PAYLOAD, _LINK_HEADER):
            continue
        try:
            value = layout.read(data, start, end)
        except RemoteProtocolError:
            return "malformed NFLOG packet"
        if number == _HEADER:
            header = value
            told["hook"] = header["hook"]
        elif number == _ADDRESS:
            told["hwaddr"] = value["hw_addr"][: value["hw_addrlen"]]
        elif number == _TIMESTAMP:
            if value["usec"] < _USEC:
                told["timestamp"] = value["sec"] * _NS + value["usec"] * 1000
        else:
            told[_NAMES[number]] = value
    start, end = found[_PAYLOAD]
    protocol = header.get("hw_protocol") or _ETHERTYPES.get(family, 0)
    if not protocol and end > start:
        protocol = _VERSIONS.get(data[start] >> 4, 0)
    link = found.get(_LINK_HEADER)
    return Frame(
        protocol,
        start,
        header=data[slice(*link)] if link else b"",
        tags=_tags(data, found, order),
        told=told,
        whole=False,
        end=end,
    )


def _places(data: bytes, order: Order, start: int | None = None, end: int | None = None) -> Any:
    """Where the contents of each attribute are, of duplicates the last; None in a wrong order."""
    at = _header.size if start is None else start
    end = len(data) if end is None else end
    unpack = _attribute[order].unpack_from
    found: dict[int, tuple[int, int]] = {}
    while at + _ATTRIBUTE_BYTES <= end:
        length, number = unpack(data, at)
        if length < _ATTRIBUTE_BYTES or at + length > end:
            return None
        found[number & _TYPE_MASK] = at + _ATTRIBUTE_BYTES, at + length
        at += length + -length % 4
    # What is left is too short for an attribute.
    return found if found else None


def _tags(data: bytes, found: Mapping[int, tuple[int, int]], order: Order) -> tuple[Any, ...]:
    """The VLAN tag, as NFULA_VLAN has it: NFULA_VLAN_PROTO, 1, and NFULA_VLAN_TCI, 2."""
    if _VLAN not in found:
        return ()
    members = _places(data, order, *found[_VLAN]) or {}
    values = [
        int.from_bytes(data[slice(*members[number])], "big")
        for number in (1, 2)
        if number in members
    ]
    valid = len(values) == 2 and max(values) <= 0xFFFF
    return (tuple(values),) if valid else ()
