"""What a queueing rule matches, said once for nft, iptables and ip6tables."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Family: TypeAlias = Literal["ip", "ip6"]
"""nft's names of the two families."""

Ports: TypeAlias = "int | tuple[int, int]"
Network: TypeAlias = "IPv4Network | IPv6Network"

_WITH_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp")  # xt_multiport's, and nft's headers
_MULTIPORT = 15  # XT_MULTI_PORTS, linux/netfilter/xt_multiport.h: a range takes two
_PROTOCOL = re.compile(r"[a-z][a-z0-9.+-]{0,31}")
_INTERFACE = re.compile(r"[^\s/\"'\\;{}*+:]{1,15}|[^\s/\"'\\;{}*+:]{1,14}[*+]")  # IFNAMSIZ is 16
_ICMP = {"ip": "icmp", "ip6": "ipv6-icmp"}
_ICMP_NAMES = ("icmp", "icmpv6", "ipv6-icmp")


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which packets: those that fit every member; without one, all.

    Args:
      protocol: a name such as ``"tcp"``, or a number; ``"icmp"`` means ICMPv6 in the IPv6 rule.
      dports: destination ports, and pairs of first and last; `protocol` must have ports.
      sports: source ports, likewise.
      in_interface: name of the interface that a packet came in by; a ``+`` or ``*`` at its end
        stands for any rest.
      out_interface: name of the interface that it leaves by, likewise.
      source: networks such as ``"10.7.0.0/24"``, any of them. Where all are of one family, the
        other family gets no rule.
      destination: networks, likewise.
      iptables: further matches as iptables takes them, such as ``"-m owner --uid-owner 1000"``.
      nft: further matches as nft takes them, such as ``"meta skuid 1000"``. Where only one of the
        two texts is given, only that program can install the rule.

    Raises:
      ValueError: a member is malformed, or two contradict each other.
    """

    protocol: str | int | None = None
    dports: int | Sequence[Ports] = ()
    sports: int | Sequence[Ports] = ()
    in_interface: str | None = None
    out_interface: str | None = None
    source: str | Network | Sequence[str | Network] = ()
    destination: str | Network | Sequence[str | Network] = ()
    iptables: str = ""
    nft: str = ""

    def __post_init__(self) -> None:
        _check_protocol(self.protocol)
        for name in ("dports", "sports"):
            if self._ports(name) and self.protocol not in _WITH_PORTS:
                raise ValueError(
                    f"{name}: give a protocol that has ports ({', '.join(_WITH_PORTS)}), "
                    f"got {self.protocol!r}"
                )
        for name in ("in_interface", "out_interface"):
            interface = getattr(self, name)
            if interface is not None and not _INTERFACE.fullmatch(interface):
                raise ValueError(f"{name}: expected an interface's name, got {interface!r}")
        if not self.families:
            raise ValueError("source, destination: no family has networks in both")
        _check_iptables_text(self.iptables)
        if re.search(r"[\n;#]", self.nft):
            raise ValueError(f"nft: expected matches of one rule, got {self.nft!r}")

    @property
    def families(self) -> tuple[Family, ...]:
        """The families whose packets can fit."""
        found: list[Family] = []
        for family, version in (("ip", 4), ("ip6", 6)):
            sides = [self._networks(name) for name in ("source", "destination")]
            if all(not side or any(net.version == version for net in side) for side in sides):
                found.append("ip" if family == "ip" else "ip6")
        return tuple(found)

    @property
    def programs(self) -> tuple[str, ...]:
        """The kinds of program that can say it."""
        texts = {"nft": self.nft, "iptables": self.iptables}
        if not any(texts.values()):
            return tuple(texts)
        return tuple(name for name, text in texts.items() if text)

    def iptables_arguments(self, family: Family) -> Iterator[list[str]]:
        """Arguments of the rules that match it together; a packet fits at most one of them.

        Unless networks overlap, but then the first one takes it.
        """
        start = [] if self.protocol is None else ["-p", _protocol(self.protocol, family)]
        if self.in_interface is not None:
            start += ["-i", _wildcard(self.in_interface, "+")]
        if self.out_interface is not None:
            start += ["-o", _wildcard(self.out_interface, "+")]
        for source, destination, sports, dports in itertools.product(
            self._of_family("source", family) or (None,),
            self._of_family("destination", family) or (None,),
            _multiports(self._ports("sports")),
            _multiports(self._ports("dports")),
        ):
            found = [*start]
            for option, network in (("-s", source), ("-d", destination)):
                found += [] if network is None else [option, str(network)]
            for option, ports in (("--sports", sports), ("--dports", dports)):
                found += [] if not ports else ["-m", "multiport", option, ports]
            yield [*found, *shlex.split(self.iptables)]

    def nft_text(self, family: Family) -> str:
        """It as matches of one nft rule, without the family itself."""
        found: list[str] = []
        if self.protocol is not None:
            found.append(f"meta l4proto {_protocol(self.protocol, family)}")
        for name, key in (("in_interface", "iifname"), ("out_interface", "oifname")):
            if (interface := getattr(self, name)) is not None:
                found.append(f'{key} "{_wildcard(interface, "*")}"')
        for name, key in (("source", "saddr"), ("destination", "daddr")):
            if networks := self._of_family(name, family):
                found.append(f"{family} {key} {_set(map(str, networks))}")
        for name, key in (("sports", "sport"), ("dports", "dport")):
            if ports := self._ports(name):
                values = (
                    f"{first}-{last}" if last > first else f"{first}" for first, last in ports
                )
                found.append(f"{self.protocol} {key} {_set(values)}")
        return " ".join([*found, self.nft.strip()]).strip()

    def _ports(self, name: str) -> list[tuple[int, int]]:
        """Ranges in order, joined where they overlap: an nft set takes no overlap."""
        given = getattr(self, name)
        pairs = [
            (item, item) if isinstance(item, int) else item
            for item in ([given] if isinstance(given, int) else given)
        ]
        for pair in pairs:
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 65535:
                raise ValueError(
                    f"{name}: expected ports 0 to 65535, first before last, got {pair}"
                )
        return _joined(pairs)

    def _networks(self, name: str) -> list[Network]:
        given = getattr(self, name)
        items = [given] if isinstance(given, (str, IPv4Network, IPv6Network)) else list(given)
        try:
            return [ip_network(item) for item in items]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _of_family(self, name: str, family: Family) -> list[Network]:
        """The member's networks of a family, none of them inside another."""
        version = {"ip": 4, "ip6": 6}[family]
        found: list[Network] = []
        for network in sorted(self._networks(name), key=lambda net: net.prefixlen):
            if network.version == version and not any(
                network.subnet_of(wider)  # type: ignore[arg-type]
                for wider in found
            ):
                found.append(network)
        return found


def _check_protocol(protocol: str | int | None) -> None:
    if isinstance(protocol, int) and not isinstance(protocol, bool):
        fits = 1 <= protocol <= 255
    else:
        fits = protocol is None or (
            isinstance(protocol, str) and _PROTOCOL.fullmatch(protocol) is not None
        )
    if not fits or protocol == "all":
        raise ValueError(f"protocol: expected a name, or a number 1 to 255, got {protocol!r}")


def _check_iptables_text(text: str) -> None:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"iptables: {error} in {text!r}") from None
    for word in words:
        if re.match(r"-[jgADIRtPNXFZwn]|--(jump|goto|table|comment|append|insert|wait)", word):
            raise ValueError(f"iptables: expected matches only, got {word!r} in {text!r}")


def _protocol(protocol: str | int, family: Family) -> str:
    return _ICMP[family] if protocol in _ICMP_NAMES else str(protocol)


def _wildcard(interface: str, sign: str) -> str:
    return interface[:-1] + sign if interface[-1] in "*+" else interface


def _set(values: Iterable[str]) -> str:
    return f"{{ {', '.join(values)} }}"


def _joined(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _multiports(ranges: list[tuple[int, int]]) -> list[str]:
    """The ranges as lists that one match each can take; one empty list for any port."""
    lists: list[list[str]] = [[]]
    room = _MULTIPORT
    for first, last in ranges:
        size = 1 if first == last else 2
        if size > room:
            lists.append([])
            room = _MULTIPORT
        room -= size
        lists[-1].append(f"{first}" if first == last else f"{first}:{last}")
    return [",".join(ports) for ports in lists]
