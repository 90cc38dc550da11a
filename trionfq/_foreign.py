"""Packets of scapy and dpkt: taken as payloads, and made of payloads.

Neither is a dependency. An object of theirs can only be given by a program that has imported them,
so it is recognised by what ``sys.modules`` has, and nothing is imported to find out.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final, SupportsBytes, TypeAlias

from trionfq._errors import LocalProtocolError
from trionfq._ip_headers import locate

Payload: TypeAlias = bytes | bytearray | memoryview | SupportsBytes
"""What can be given as a payload: bytes of any kind, or a packet of scapy or dpkt."""

# Where each package has the class from which all of its packets descend.
_BASES: Final = {"scapy": ("scapy.packet", "Packet"), "dpkt": ("dpkt.dpkt", "Packet")}
# Those that begin at the link layer, in front of what a payload begins with.
_LINK_LAYERS: Final = frozenset(
    # scapy's: scapy/layers/l2.py; dpkt's: ethernet.py, sll.py, sll2.py, loopback.py.
    {"Ether", "Dot3", "Dot1Q", "Dot1AD", "CookedLinux", "CookedLinuxV2", "Loopback"}
    | {"Ethernet", "SLL", "SLL2"}
)

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
_SCAPY: Final = {
    ETHERTYPE_IPV4: ("scapy.layers.inet", "IP"),
    ETHERTYPE_IPV6: ("scapy.layers.inet6", "IPv6"),
    ETHERTYPE_ARP: ("scapy.layers.l2", "ARP"),
}
_DPKT: Final = {
    ETHERTYPE_IPV4: ("dpkt.ip", "IP"),
    ETHERTYPE_IPV6: ("dpkt.ip6", "IP6"),
    ETHERTYPE_ARP: ("dpkt.arp", "ARP"),
}


def packet_bytes(name: str, value: object) -> bytes:
    """Bytes, or those of a scapy or dpkt packet.

    Raises:
      TypeError: it is none of these, or a packet that begins at the link layer.
      LocalProtocolError: scapy or dpkt cannot make bytes of it.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    for package, (module, base) in _BASES.items():
        kind = getattr(sys.modules.get(module), base, None)
        if isinstance(kind, type) and isinstance(value, kind):
            return _built(name, value, package)
    raise TypeError(
        f"{name}: expected bytes, got {type(value).__name__}; else only packets of scapy and dpkt "
        "are taken"
    )


def _built(name: str, value: Any, package: str) -> bytes:
    described = f"{package}'s {type(value).__name__}"
    if any(base.__name__ in _LINK_LAYERS for base in type(value).__mro__):
        inner = "packet[IP] or packet.payload" if package == "scapy" else "frame.data"
        raise TypeError(
            f"{name}: expected a packet from its network header on, got {described}, which begins "
            f"at the link layer; give {inner}"
        )
    try:
        return bytes(value)
    except Exception as error:
        raise LocalProtocolError(f"{name}: {described} makes no bytes: {error}") from error


def to_scapy(payload: bytes, ethertype: int) -> Any:
    """The payload as scapy's packet: its ``Raw`` for what is neither IP nor ARP.

    Raises:
      ImportError: scapy is not installed.
    """
    module, kind = _SCAPY.get(ethertype, ("scapy.packet", "Raw"))
    return getattr(_imported("scapy", module), kind)(payload)


def to_dpkt(payload: bytes, ethertype: int) -> Any:
    """The payload as dpkt's packet.

    Raises:
      ImportError: dpkt is not installed.
      LocalProtocolError: dpkt does not know the protocol or cannot read the packet, or its object
        would not give the same bytes again.
    """
    if ethertype not in _DPKT:
        raise LocalProtocolError(f"to_dpkt: neither IP nor ARP, but EtherType {ethertype:#06x}")
    module, kind = _DPKT[ethertype]
    packet = getattr(_imported("dpkt", module), kind)
    try:
        # Another object, for dpkt fills in fields of the one that it makes bytes of.
        again = bytes(packet(payload))
        made = packet(payload)
    except Exception as error:
        raise LocalProtocolError(f"to_dpkt: dpkt cannot read this packet: {error}") from error
    located = locate(payload)
    # Padding behind the packet is nothing that it loses.
    if again != payload and not (located and again == payload[: located[1]]):
        raise LocalProtocolError(
            f"to_dpkt: dpkt gives {len(again)} other bytes for these {len(payload)}, so sending "
            "its object back would change more than you do; edit the bytes, or use to_scapy"
        )
    return made


def _imported(package: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"to_{package} needs the package {package}: pip install {package}", name=package
        ) from error
