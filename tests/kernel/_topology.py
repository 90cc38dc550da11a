"""Namespaces joined by links: a pair, a router between two, a bridge between two.

Every link is silent: each end knows the other for good and its device does neither ARP, neighbour
discovery nor multicast (whose membership reports are IPv6 packets that rules see, up to seconds
later). A rule without a match then sees what the test sent and nothing else. An address that was
not given to `join` has no neighbour entry, so nothing can be sent to it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ._namespace import Namespace, namespaces
from ._waiting import eventually_sync

IFA_F_NODAD = 0x02  # no duplicate address detection: the address can be used at once
NUD_PERMANENT = 0x80
IFF_NOARP = 0x80
IFF_MULTICAST = 0x1000

_mac_numbers = itertools.count(1)


@dataclass(frozen=True)
class End:
    """One end of a link.

    Attributes:
      namespace: where it is.
      device: the interface's name.
      addresses: with prefix length, IPv4 and IPv6, such as ``"10.7.0.1/24"``; empty for a
        bridge's port.
    """

    namespace: Namespace
    device: str
    addresses: tuple[str, ...] = ()


def new_mac() -> str:
    """A hardware address of our own (locally administered), different each time."""
    number = next(_mac_numbers)
    return "02:07:00:" + ":".join(f"{(number >> shift) & 0xFF:02x}" for shift in (16, 8, 0))


def hardware_address(namespace: Namespace, device: str) -> str:
    """Of an interface, such as ``"02:07:00:00:00:01"``."""
    index = namespace.interface_index(device)
    found: str = namespace.netlink(lambda r: r.get_links(index)[0].get_attr("IFLA_ADDRESS"))
    return found


def _set_up(end: End, neighbour: End | None, neighbour_mac: str | None, mtu: int) -> None:
    def talk(route: IPRoute) -> None:
        index = route.link_lookup(ifname=end.device)[0]
        route.link("set", index=index, mtu=mtu, mask=IFF_NOARP | IFF_MULTICAST, flags=IFF_NOARP)
        for text in end.addresses:
            address = ip_interface(text)
            flags = {"flags": IFA_F_NODAD} if address.version == 6 else {}
            route.addr(
                "add",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **flags,
            )
        route.link("set", index=index, state="up")
        for text in neighbour.addresses if neighbour else ():
            host = str(ip_interface(text).ip)
            route.neigh("add", dst=host, lladdr=neighbour_mac, ifindex=index, state=NUD_PERMANENT)

    end.namespace.netlink(talk)


def _is_up(end: End) -> bool:
    def look(route: IPRoute) -> bool:
        link: Any = route.get_links(route.link_lookup(ifname=end.device)[0])[0]
        # A queueing discipline other than noop: before that the device swallows what is sent.
        active = link.get_attr("IFLA_QDISC") != "noop"
        return bool(link.get_attr("IFLA_OPERSTATE") == "UP" and active)

    return end.namespace.netlink(look)


def make_veth(left: End, right: End) -> None:
    """Join two namespaces by a pair of devices, down and without addresses."""
    left.namespace.netlink(
        lambda route: route.link(
            "add",
            ifname=left.device,
            kind="veth",
            address=new_mac(),
            peer={
                "ifname": right.device,
                "address": new_mac(),
                "net_ns_fd": str(right.namespace.path),
            },
        )
    )


def join(left: End, right: End, *, mtu: int = 1500) -> None:
    """Join two namespaces by a veth pair, with addresses and each other as neighbour, up.

    Args:
      left: one end.
      right: the other.
      mtu: of both, in bytes.
    """
    make_veth(left, right)
    left_mac = hardware_address(left.namespace, left.device)
    right_mac = hardware_address(right.namespace, right.device)
    _set_up(left, right, right_mac, mtu)
    _set_up(right, left, left_mac, mtu)
    for end in (left, right):
        eventually_sync(f"{end.device} is up", lambda end=end: _is_up(end))  # type: ignore[misc]


def add_route(namespace: Namespace, destination: str, gateway: str) -> None:
    """A route such as ``("10.7.2.0/24", "10.7.1.254")``."""
    namespace.netlink(lambda route: route.route("add", dst=destination, gateway=gateway))


@dataclass(frozen=True)
class Pair:
    """Two hosts on one network.

    Attributes:
      a: one host.
      b: the other.
      a4: a's IPv4 address; `b4`, `a6` and `b6` likewise.
      a_device: a's interface; `b_device` likewise.
    """

    a: Namespace
    b: Namespace
    a4: str = "10.7.0.1"
    b4: str = "10.7.0.2"
    a6: str = "fd00:7::1"
    b6: str = "fd00:7::2"
    a_device: str = "va"
    b_device: str = "vb"


@dataclass(frozen=True)
class Forwarding:
    """Two hosts and a router between them that forwards IPv4 and IPv6.

    Attributes:
      a: one host.
      router: between the two; `router_a` is its interface towards a, `router_b` towards b.
      b: the other host.
    """

    a: Namespace
    router: Namespace
    b: Namespace
    a4: str = "10.7.1.1"
    b4: str = "10.7.2.1"
    a6: str = "fd00:7:1::1"
    b6: str = "fd00:7:2::1"
    router_a4: str = "10.7.1.254"
    router_b4: str = "10.7.2.254"
    router_a6: str = "fd00:7:1::fe"
    router_b6: str = "fd00:7:2::fe"
    a_device: str = "va"
    b_device: str = "vb"
    router_a: str = "ra"
    router_b: str = "rb"


@dataclass(frozen=True)
class Bridged(Pair):
    """Two hosts on one network, joined by a bridge in a third namespace.

    Attributes:
      switch: has the bridge.
      bridge: its name; `port_a` and `port_b` are its ports.
    """

    switch: Namespace = field(kw_only=True)
    bridge: str = "br"
    port_a: str = "pa"
    port_b: str = "pb"


@contextlib.contextmanager
def make_pair(*, mtu: int = 1500) -> Iterator[Pair]:
    """Two namespaces, 10.7.0.1 and fd00:7::1 joined to 10.7.0.2 and fd00:7::2."""
    with namespaces("a", "b") as (a, b):
        pair = Pair(a, b)
        join(
            End(a, pair.a_device, (f"{pair.a4}/24", f"{pair.a6}/64")),
            End(b, pair.b_device, (f"{pair.b4}/24", f"{pair.b6}/64")),
            mtu=mtu,
        )
        yield pair


@contextlib.contextmanager
def make_forwarding(*, mtu: int = 1500, mtu_b: int | None = None) -> Iterator[Forwarding]:
    """Host a, a router, host b: 10.7.1.0/24 and fd00:7:1::/64, then 10.7.2.0/24 and fd00:7:2::/64.

    Args:
      mtu: of both links, in bytes.
      mtu_b: of the link between router and b, where it is to differ.
    """
    with namespaces("a", "router", "b") as (a, router, b):
        net = Forwarding(a, router, b)
        join(
            End(a, net.a_device, (f"{net.a4}/24", f"{net.a6}/64")),
            End(router, net.router_a, (f"{net.router_a4}/24", f"{net.router_a6}/64")),
            mtu=mtu,
        )
        join(
            End(b, net.b_device, (f"{net.b4}/24", f"{net.b6}/64")),
            End(router, net.router_b, (f"{net.router_b4}/24", f"{net.router_b6}/64")),
            mtu=mtu if mtu_b is None else mtu_b,
        )
        router.sysctl("net.ipv4.ip_forward", 1)
        router.sysctl("net.ipv6.conf.all.forwarding", 1)
        for host, here4, here6 in (
            (a, net.router_a4, net.router_a6),
            (b, net.router_b4, net.router_b6),
        ):
            add_route(host, "0.0.0.0/0", here4)
            add_route(host, "::/0", here6)
        yield net


class NoBridgeError(Exception):
    """This kernel cannot make a bridge, or does not show bridged packets to iptables."""


@contextlib.contextmanager
def make_bridged(*, mtu: int = 1500) -> Iterator[Bridged]:
    """Two hosts of one network, a bridge between them that shows its packets to iptables.

    Raises:
      NoBridgeError: this kernel has no bridges, or no br_netfilter.
    """
    with namespaces("a", "switch", "b") as (a, switch, b):
        net = Bridged(a, b, switch=switch)
        try:
            switch.netlink(
                lambda route: route.link(
                    "add", ifname=net.bridge, kind="bridge", address=new_mac(), br_mcast_snooping=0
                )
            )
            for family in ("iptables", "ip6tables"):
                switch.sysctl(f"net.bridge.bridge-nf-call-{family}", 1)
        except NetlinkError as error:
            raise NoBridgeError(f"this kernel makes no bridge: {error}") from error
        except FileNotFoundError as error:
            raise NoBridgeError(f"this kernel has no br_netfilter: {error}") from error
        ends = (
            (End(a, net.a_device, (f"{net.a4}/24", f"{net.a6}/64")), End(switch, net.port_a)),
            (End(b, net.b_device, (f"{net.b4}/24", f"{net.b6}/64")), End(switch, net.port_b)),
        )
        for host, port in ends:
            make_veth(host, port)
        (host_a, port_a), (host_b, port_b) = ends
        mac_a = hardware_address(a, net.a_device)
        mac_b = hardware_address(b, net.b_device)
        _set_up(host_a, host_b, mac_b, mtu)
        _set_up(host_b, host_a, mac_a, mtu)

        def plug(route: IPRoute) -> None:
            bridge = route.link_lookup(ifname=net.bridge)[0]
            for port in (port_a, port_b):
                index = route.link_lookup(ifname=port.device)[0]
                route.link("set", index=index, master=bridge, mtu=mtu)
                route.link("set", index=index, state="up")
            route.link("set", index=bridge, state="up")

        switch.netlink(plug)
        for end in (host_a, host_b, port_a, port_b, End(switch, net.bridge)):
            eventually_sync(f"{end.device} is up", lambda end=end: _is_up(end))  # type: ignore[misc]
        yield net
