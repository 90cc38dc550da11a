"""A connection that a verdict announces (NFQA_EXP), and why the kernel would not take it.

The kernel says success to all of it and drops what it does not like (``ctnetlink_glue_attach_
expect`` and ``ctnetlink_alloc_expect``, nf_conntrack_netlink.c). Two changes of 2026, which stable
kernels have, too, make kernels differ: *ignore explicit helper on new expectations* (917b61fa2042)
and *restore helper propagation via expectation* (dcb0f9aefdd6). "Between" below means with the
first and without the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from trionfq._errors import LocalProtocolError
from trionfq.schema import Attr, attr
from trionfq.schema.conntrack import (
    CTA_EXPECT,
    CTA_EXPECT_NAT,
    CTA_IP,
    CTA_PROTO,
    CTA_TUPLE,
    ConntrackDirection,
    ExpectFlags,
)

if TYPE_CHECKING:
    from trionfq._conntrack import Address, Conntrack

_U32 = 0xFFFFFFFF
# NF_CT_HELPER_NAME_LEN, which counts a NUL.
_MOST_HELPER_NAME = 15
# Whose tuples are two ports (nf_ct_port_nlattr_to_tuple): TCP, UDP, SCTP, UDP-Lite.
_WITH_PORTS = frozenset({6, 17, 132, 136})
_ANY: dict[int, Address] = {4: IPv4Address(0), 6: IPv6Address(0)}
_ALL: dict[int, Address] = {4: IPv4Address(2**32 - 1), 6: IPv6Address(2**128 - 1)}

EXPECT_FUNCTIONS = ("nat-follow-master", "sip", "Q.931", "callforwarding")
"""What the kernel's own modules register by ``nf_ct_helper_expectfn_register``: nf_nat, nf_nat_sip
and, the last two, nf_nat_h323. All of them translate addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectationNat:
    """Where an expected connection is led to, for the function that translates it.

    Attributes:
      direction: REPLY where it goes to the side that began the packet's connection, ORIGINAL where
        it goes to the other side. ``nat-follow-master`` takes both addresses from the packet's
        connection by it (``nf_nat_follow_master``, nf_nat_helper.c): that side's own becomes the
        destination, so that the expectation's ``destination`` may be one that only stands for it.
      port: the port that it goes to instead of ``destination_port``, 1 to 65535.
      address: likewise of the address, for the functions that read it (``sip``, ``Q.931``,
        ``callforwarding``); ``nat-follow-master`` does not. None is 0.0.0.0 or ::.

    The wire has port and address as the source of CTA_EXPECT_NAT_TUPLE, of which the kernel reads
    nothing else (``ctnetlink_parse_expect_nat``).
    """

    direction: ConntrackDirection
    port: int
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A connection that the packet's connection announces, so that it counts as related to it.

    The kernel takes it for a connection with a helper only; how long it is expected, and how many
    may be expected at a time, is that helper's policy. Source address and port may be left open,
    what it goes to may not (struct nf_conntrack_tuple_mask has no destination).

    Attributes:
      protocol: IP protocol number: TCP 6, UDP 17, SCTP 132 or UDP-Lite 136.
      destination: where it will go to.
      destination_port: likewise.
      source: where it will come from; None is anywhere.
      source_port: likewise.
      permanent: it stands for any number of connections, not for one only.
      inactive: it is listed, yet matches nothing.
      expect_class: which of the helper's policies holds for it, from 0 (CTA_EXPECT_CLASS); most
        helpers have one only, ``sip`` has 0 signalling, 1 audio, 2 video, 3 image. How many a
        helper has cannot be known from here: with a class beyond them the kernel expects nothing,
        and says nothing. Kernels from before 2026 take class 0 for every other one unless
        ``helper`` is given, too.
      helper: the expected connection's own helper (CTA_EXPECT_HELP_NAME); None is none. Its module
        must be loaded: the kernel does not load it here, and without it expects nothing and says
        nothing. Some kernels of 2026 pass it over, and give the expected connection the helper of
        the packet's one.
      function: what the kernel calls when the expected connection begins (CTA_EXPECT_FN):
        ``nat-follow-master`` of nf_nat translates its addresses as those of the packet's
        connection; ``sip`` is of nf_nat_sip, ``Q.931`` and ``callforwarding`` are of nf_nat_h323.
        Where that module is not loaded the kernel expects nothing, and says nothing. A chain of
        type nat must be in the namespace, or the packets are not changed.
      nat: what the function needs to know (CTA_EXPECT_NAT). The one is given with the other.
    """

    protocol: int
    destination: Address
    destination_port: int
    source: Address | None = None
    source_port: int | None = None
    permanent: bool = False
    inactive: bool = False
    expect_class: int = 0
    helper: str | None = None
    function: str | None = None
    nat: ExpectationNat | None = None


def check_expectation(expect: Expectation, conntrack: Conntrack) -> None:
    """Refuse what the kernel would ignore for this connection, or read out of bounds.

    Raises:
      LocalProtocolError: likewise.
    """
    if not conntrack.helper:
        raise LocalProtocolError(
            "expect: the connection has no helper, and without one the kernel expects nothing "
            "(ctnetlink_alloc_expect); give it one in a rule: nft 'ct helper set', or iptables -t "
            "raw -j CT --helper"
        )
    original = conntrack.original
    version = original.source.version
    if expect.destination.version != version:
        raise LocalProtocolError(
            f"expect: expected addresses of IPv{version} like the connection's, "
            f"got IPv{expect.destination.version}"
        )
    if expect.helper is None:
        return
    if expect.protocol != original.protocol:
        raise LocalProtocolError(
            f"expect: helper: expected the connection's protocol {original.protocol} with it, got "
            f"{expect.protocol}: some kernels would give the expected connection a helper of "
            "another protocol (ctnetlink_glue_attach_expect, before dcb0f9aefdd6)"
        )
    if expect.expect_class and expect.helper != conntrack.helper:
        raise LocalProtocolError(
            f"expect: expect_class: expected no helper with it but {conntrack.helper!r}, the "
            f"connection's, got {expect.helper!r}: some kernels would look for the class beyond "
            "the policies of the connection's helper (ctnetlink_alloc_expect, before 917b61fa2042)"
        )


def expectation_attributes(expect: object) -> tuple[Attr, ...]:
    """The members of NFQA_EXP. Tuple and mask stand in every one.

    Without either of them the kernel follows a null pointer (ctnetlink_glue_exp_parse hands it to
    nla_parse_nested; 6.12 was seen to crash).

    Raises:
      TypeError: a member of the wrong type.
      LocalProtocolError: a value that the kernel would not take, or take for another.
    """
    if not isinstance(expect, Expectation):
        raise TypeError(f"expect: expected an Expectation, got {type(expect).__name__}")
    if integer("expect: protocol", expect.protocol, 0xFF) not in _WITH_PORTS:
        raise LocalProtocolError(
            f"expect: protocol: expected one of {sorted(_WITH_PORTS)}, got {expect.protocol}"
        )
    _check_address("destination", expect.destination)
    destination, port = expect.destination, expect.destination_port
    version = destination.version
    source = _address("source", expect.source, version, destination)
    source_port = 0 if expect.source_port is None else expect.source_port
    mask_source = _ANY[version] if expect.source is None else _ALL[version]
    mask_port = 0 if expect.source_port is None else 0xFFFF
    wanted = _tuple(expect.protocol, source, source_port, destination, port)
    mask = _tuple(expect.protocol, mask_source, mask_port, _ALL[version], 0xFFFF)
    members = [attr(CTA_EXPECT, "tuple", wanted), attr(CTA_EXPECT, "mask", mask)]
    if expect.helper is not None:
        if expect.helper == "":
            raise LocalProtocolError("expect: helper: expected a name, or None for no helper")
        name = helper_name("expect: helper", expect.helper)
        members.append(attr(CTA_EXPECT, "help_name", name))
    flags = ExpectFlags(0)
    if expect.permanent:
        flags |= ExpectFlags.PERMANENT
    if expect.inactive:
        flags |= ExpectFlags.INACTIVE
    if flags:
        members.append(attr(CTA_EXPECT, "flags", int(flags)))
    if integer("expect: expect_class", expect.expect_class, _U32):
        members.append(attr(CTA_EXPECT, "class", int(expect.expect_class)))
    return (*members, *_translation(expect))


def _translation(expect: Expectation) -> tuple[Attr, ...]:
    """CTA_EXPECT_NAT and CTA_EXPECT_FN.

    The first without the second translates nothing. The second without the first leads to port 0
    or, before *zero expect NAT fields when CTA_EXPECT_NAT absent* (2026), to where chance has it.
    """
    nat, function = expect.nat, expect.function
    if nat is None and function is None:
        return ()
    if function is not None and not isinstance(function, str):
        raise TypeError(f"expect: function: expected a string, got {type(function).__name__}")
    if nat is not None and not isinstance(nat, ExpectationNat):
        raise TypeError(f"expect: nat: expected an ExpectationNat, got {type(nat).__name__}")
    if function is None:
        raise LocalProtocolError(
            "expect: nat: expected function with it, 'nat-follow-master' as a rule: without one "
            "nothing is translated"
        )
    if function not in EXPECT_FUNCTIONS:
        raise LocalProtocolError(
            f"expect: function: expected one of {', '.join(EXPECT_FUNCTIONS)}, got {function!r}; "
            "with any other the kernel expects nothing (nf_ct_helper_expectfn_find_by_name)"
        )
    if nat is None:
        raise LocalProtocolError(
            f"expect: function: expected nat with it: {function} would lead to port 0"
        )
    direction = integer("expect: nat: direction", nat.direction, max(ConntrackDirection))
    if not integer("expect: nat: port", nat.port, 0xFFFF):
        raise LocalProtocolError("expect: nat: port: expected 1 to 0xffff, got 0")
    version = expect.destination.version
    address = _address("nat: address", nat.address, version, expect.destination)
    # Destination and its port must be there to be read, and are not looked at.
    to = _tuple(expect.protocol, address, nat.port, _ANY[version], 0)
    members = (attr(CTA_EXPECT_NAT, "dir", direction), attr(CTA_EXPECT_NAT, "tuple", to))
    return (
        attr(CTA_EXPECT, "nat", members),
        attr(CTA_EXPECT, "fn", function.encode() + b"\0"),
    )


def _check_address(name: str, address: object) -> None:
    if not isinstance(address, IPv4Address | IPv6Address):
        raise TypeError(f"expect: {name}: expected an address, got {type(address).__name__}")


def _address(name: str, address: Address | None, version: int, other: Address) -> Address:
    """An address that may be left open, of the other's family."""
    if address is None:
        return _ANY[version]
    _check_address(name, address)
    if address.version != version:
        raise LocalProtocolError(
            f"expect: {name}: expected addresses of one family, got {address} and {other}"
        )
    return address


def _tuple(
    protocol: int, source: Address, source_port: int, destination: Address, destination_port: int
) -> tuple[Attr, ...]:
    family = f"v{source.version}"
    ip = (
        attr(CTA_IP, f"{family}_src", source.packed),
        attr(CTA_IP, f"{family}_dst", destination.packed),
    )
    proto = (
        attr(CTA_PROTO, "num", protocol),
        attr(CTA_PROTO, "src_port", integer("expect: source_port", source_port, 0xFFFF)),
        attr(CTA_PROTO, "dst_port", integer("expect: destination_port", destination_port, 0xFFFF)),
    )
    return attr(CTA_TUPLE, "ip", ip), attr(CTA_TUPLE, "proto", proto)


def helper_name(name: str, value: object) -> bytes:
    """A helper's name as the wire has it.

    Raises:
      TypeError: not a string.
      LocalProtocolError: too long a name, or of other characters.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
    if len(value) > _MOST_HELPER_NAME or not value.isascii() or "\0" in value:
        raise LocalProtocolError(
            f"{name}: expected at most {_MOST_HELPER_NAME} ASCII characters, got {value!r}"
        )
    return value.encode() + b"\0"


def integer(name: str, value: object, most: int) -> int:
    """A whole number from 0 to the most.

    Raises:
      TypeError: no integer.
      LocalProtocolError: out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not 0 <= value <= most:
        raise LocalProtocolError(f"{name}: expected 0 to {most:#x}, got {value:#x}")
    return int(value)
