"""Requests read as the kernel reads them: leniently.

The schema refuses what contradicts it; the kernel does not. `nla_parse_deprecated` (lib/nlattr.c)
knows least lengths only, keeps the last of several attributes of one number, skips numbers that
it does not know, ignores the two flag bits of a type, and stops without an error at the first
attribute that does not fit, with a warning in the acknowledgement. `netlink_rcv_skb`
(net/netlink/af_netlink.c) ends at the first message that does not fit, and says nothing at all. A
model that read any other way would accept what the kernel refuses, or the reverse.

This module reads bytes by itself: the strict parser and the codec must not be what judges them.
"""

from __future__ import annotations

import struct
import sys
from errno import EINVAL, ERANGE
from typing import TYPE_CHECKING, NamedTuple

from .schema import NLA_F_NESTED, NLA_TYPE_MASK, Attr
from .schema.netlink import NL_POLICY_TYPE_ATTR, NLMSGERR_ATTR, PolicyType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NATIVE = "<" if sys.byteorder == "little" else ">"
_HEADER = struct.Struct(f"{_NATIVE}IHHII")
_ATTRIBUTE = struct.Struct(f"{_NATIVE}HH")
_GENMSG = struct.Struct(">BBH")
HEADER_BYTES = _HEADER.size
GENMSG_END = HEADER_BYTES + _GENMSG.size
"""Where the attributes of a netfilter message start."""

_ALIGN = 4
_POLICY = {a.name: a.number for a in NL_POLICY_TYPE_ATTR.attributes}
_EXTACK = {a.name: a.number for a in NLMSGERR_ATTR.attributes}
# The spelling of __nla_validate_parse, validate_nla and nla_validate_mask (lib/nlattr.c).
_LEFTOVER = b"bytes leftover after parsing attributes\0"
_FAILED = b"Attribute failed policy validation\0"
_RESERVED = b"reserved bit set\0"


class Header(NamedTuple):
    """A request's nlmsghdr, and where in its datagram it starts."""

    at: int
    length: int
    type: int
    flags: int
    seq: int
    portid: int

    @property
    def wire(self) -> tuple[int, int, int, int, int]:
        """The five fields as an answer echoes them."""
        return (self.length, self.type, self.flags, self.seq, self.portid)


class Rule(NamedTuple):
    """What the kernel asks of one attribute (struct nla_policy).

    Attributes:
      least: fewest bytes of its contents.
      type: the type that an extended acknowledgement names, INVALID for none.
      mask: bits that a u32 may have, None for all.
    """

    least: int
    type: PolicyType = PolicyType.INVALID
    mask: int | None = None

    def described(self) -> tuple[Attr, ...]:
        """NLMSGERR_ATTR_POLICY, as `__netlink_policy_dump_write_attr` writes it."""
        if self.type == PolicyType.INVALID:
            return ()
        listed = [Attr(_POLICY["type"], self.type)]
        if self.type == PolicyType.U32:
            listed[:0] = [
                Attr(_POLICY["min_value_u"], 0),
                Attr(_POLICY["max_value_u"], 0xFFFFFFFF),
            ]
        return (Attr(_EXTACK["policy"], tuple(listed), NLA_F_NESTED),)


U16_RULE = Rule(2, PolicyType.U16)
U32_RULE = Rule(4, PolicyType.U32)
NEST_RULE = Rule(0, PolicyType.NESTED)


class RefusedError(Exception):
    """A request that the kernel answers with an error.

    Attributes:
      number: positive errno, or the kernel's internal 524.
      extack: attributes for a socket with NETLINK_EXT_ACK.
    """

    def __init__(self, number: int, extack: tuple[Attr, ...] = ()):
        super().__init__(number)
        self.number = number
        self.extack = extack


class Attributes(NamedTuple):
    """What `nla_parse_deprecated` found.

    Attributes:
      found: contents by number, of several the last.
      extack: the warning that a successful acknowledgement carries, or nothing.
    """

    found: dict[int, bytes]
    extack: tuple[Attr, ...] = ()


def headers(datagram: bytes) -> Iterator[Header]:
    """The messages of a datagram up to the first that does not fit (netlink_rcv_skb)."""
    at, end = 0, len(datagram)
    while end - at >= HEADER_BYTES:
        header = Header(at, *_HEADER.unpack_from(datagram, at))
        if header.length < HEADER_BYTES or header.length > end - at:
            return
        yield header
        at += header.length + -header.length % _ALIGN


def generic(datagram: bytes, header: Header) -> tuple[int, int] | None:
    """Family and res_id of a message's nfgenmsg, None where it is too short for one."""
    if header.length < GENMSG_END:
        return None
    family, _version, res_id = _GENMSG.unpack_from(datagram, header.at + HEADER_BYTES)
    return family, res_id


def attributes(
    contents: bytes, most: int, rules: Mapping[int, Rule], *, start: int = 0, nested: bool = False
) -> Attributes:
    """The attributes of a list, read as `nla_parse_deprecated` does.

    Args:
      contents: bytes that begin at the message's header and end where the list ends.
      most: greatest number that is known; others are skipped unread.
      rules: what each number must fulfil.
      start: where in `contents` the list starts.
      nested: a nest, which the kernel reads without extended acknowledgement.

    Raises:
      RefusedError: an attribute is too short (ERANGE), or has a bit that its rule forbids (EINVAL).
    """
    found: dict[int, bytes] = {}
    at, end = start, len(contents)
    while end - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(contents, at)
        if length < _ATTRIBUTE.size or length > end - at:
            break
        number = kind & NLA_TYPE_MASK
        if 0 < number <= most:
            value = contents[at + _ATTRIBUTE.size : at + length]
            rule = rules.get(number)
            if rule is not None:
                _check(value, rule, () if nested else (at,))
            found[number] = value
        at += length + -length % _ALIGN
    if at < end and not nested:
        return Attributes(found, (Attr(_EXTACK["msg"], _LEFTOVER),))
    return Attributes(found)


def _check(value: bytes, rule: Rule, offset: tuple[int, ...]) -> None:
    """`validate_nla`; `offset` is empty where no acknowledgement would tell it."""
    if rule.type == PolicyType.NESTED:
        short = 0 < len(value) < _ATTRIBUTE.size
    else:
        short = len(value) < rule.least
    if short:
        where = tuple(
            extack
            for at in offset
            for extack in (
                Attr(_EXTACK["msg"], _FAILED),
                Attr(_EXTACK["offs"], at),
                *rule.described(),
            )
        )
        raise RefusedError(ERANGE, where)
    if rule.mask is not None and u32(value) & ~rule.mask:
        where = tuple(
            extack
            for at in offset
            for extack in (Attr(_EXTACK["msg"], _RESERVED), Attr(_EXTACK["offs"], at))
        )
        raise RefusedError(EINVAL, where)


def u32(value: bytes, at: int = 0) -> int:
    """A big-endian u32 of an attribute's contents; what follows it is not looked at."""
    return int.from_bytes(value[at : at + 4], "big")


def u16(value: bytes) -> int:
    """A big-endian u16 of an attribute's contents."""
    return int.from_bytes(value[:2], "big")
