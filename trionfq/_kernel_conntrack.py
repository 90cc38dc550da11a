"""What a verdict changes in its packet's connection.

Sources: ctnetlink_glue_parse_ct and ctnetlink_glue_attach_expect (nf_conntrack_netlink.c). The
members of NFQA_CT are applied one after the other up to the first that the kernel dislikes; the
verdict succeeds all the same. They are held against the connection as it was when the packet was
queued, which is all that the model knows of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _kernel_reader as reader
from ._kernel_reader import RefusedError
from .schema.conntrack import CTA, CTA_EXPECT, CTA_EXPECT_NAT, CTA_PROTO, CTA_TUPLE, Status
from .schema.nfqueue import NFQA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._kernel_records import PacketIn
    from .schema import Attr, Value

_N = {a.name: a.number for a in NFQA.attributes}
_CT = {a.name: a.number for a in CTA.attributes}
_E = {a.name: a.number for a in CTA_EXPECT.attributes}
# ct_nla_policy and help_nla_policy; the most bytes of labels apart.
_CT_RULES = {
    **{
        _CT[name]: reader.U32_RULE
        for name in ("status", "timeout", "mark", "id", "mark_mask", "status_mask")
    },
    **{
        _CT[name]: reader.NEST_RULE
        for name in ("tuple_orig", "tuple_reply", "protoinfo", "help", "nat_src", "nat_dst")
    },
    _CT["zone"]: reader.U16_RULE,
}
# exp_nla_policy.
_EXPECT_RULES = {
    **{_E[name]: reader.NEST_RULE for name in ("master", "tuple", "mask", "nat")},
    **{_E[name]: reader.U32_RULE for name in ("timeout", "id", "flags", "class")},
    _E["zone"]: reader.U16_RULE,
}
# exp_nat_nla_policy, tuple_nla_policy and the one member of proto_nla_policy that is read here.
_NAT = {a.name: a.number for a in CTA_EXPECT_NAT.attributes}
_NAT_RULES = {_NAT["dir"]: reader.U32_RULE, _NAT["tuple"]: reader.NEST_RULE}
_TUPLE_PROTO = CTA_TUPLE.by_name["proto"].number
_PROTO_NUM = CTA_PROTO.by_name["num"].number
_PROTO_MEMBERS = max(CTA_PROTO.by_number)
# By protocol, the helpers of the kernel's own modules; expect_class_max of those with more classes
# than one; and what they register with nf_ct_helper_expectfn_register. All are taken for loaded.
_HELPERS = {
    6: frozenset({b"ftp", b"irc", b"sip", b"sane", b"pptp", b"Q.931"}),
    17: frozenset({b"tftp", b"sip", b"amanda", b"netbios-ns", b"snmp", b"RAS"}),
}
_CLASS_MAX = {b"sip": 3}
_FUNCTIONS = frozenset({b"nat-follow-master", b"sip", b"Q.931", b"callforwarding"})
_LABEL_BYTES = 16
_HELP_NAME = 1
# Plain integers: an IntFlag takes a microsecond for every `&`.
_ONLY_SET = int(Status.SEEN_REPLY | Status.ASSURED)
_FIXED_TIMEOUT, _DYING = int(Status.FIXED_TIMEOUT), int(Status.DYING)
_EXPECTED = int(Status.EXPECTED)


class Connection:
    """A packet's connection, as its NFQA_CT told of it."""

    def __init__(self, nest: tuple[Attr, ...]) -> None:
        found = {attribute.number: attribute.value for attribute in nest}
        status = found.get(_CT["status"], 0)
        help_nest = found.get(_CT["help"], ())
        self.status = status if isinstance(status, int) else 0
        self.is_expected = bool(self.status & _EXPECTED) or _CT["tuple_master"] in found
        self.protocol = _protocol_of(found.get(_CT["tuple_orig"]))
        self.helper = next(
            (
                member.value.rstrip(b"\0")
                for member in (help_nest if isinstance(help_nest, tuple) else ())
                if member.number == _HELP_NAME and isinstance(member.value, bytes)
            ),
            b"",
        )


def _protocol_of(value: Value | None) -> int | None:
    """The protocol of a tuple that was told."""
    for number in (_TUPLE_PROTO, _PROTO_NUM):
        members = value if isinstance(value, tuple) else ()
        value = next((member.value for member in members if member.number == number), None)
    return value if isinstance(value, int) else None


def conntrack_changes(
    found: dict[int, bytes], packet: PacketIn
) -> tuple[Mapping[int, bytes] | None, bytes | None]:
    """What a verdict's NFQA_CT and NFQA_EXP change of the packet's connection, None where nothing.

    Labels are taken for possible: that a connection without room for them has the rest refused
    cannot be seen. Of an expectation, that it clashes with another.
    """
    nest, told = found.get(_N["ct"]), packet.values.get(_N["ct"])
    if nest is None or not isinstance(told, tuple):
        return None, None
    connection = Connection(told)
    try:
        inside = reader.attributes(nest, max(CTA.by_number), _CT_RULES, nested=True).found
    except RefusedError:
        return None, None
    if any(len(inside.get(_CT[name], b"")) > _LABEL_BYTES for name in ("labels", "labels_mask")):
        return None, None
    applied, whole = _applied(inside, connection)
    expected = found.get(_N["exp"]) if whole else None
    if expected is not None and not _is_expected(expected, inside, connection):
        expected = None
    return (applied if applied or whole else None), expected


def _applied(inside: dict[int, bytes], connection: Connection) -> tuple[dict[int, bytes], bool]:
    """The members that take effect, and whether none was refused."""
    applied: dict[int, bytes] = {}

    def take(*names: str) -> None:
        applied.update({_CT[name]: inside[_CT[name]] for name in names if _CT[name] in inside})

    status = connection.status
    if _CT["timeout"] in inside:
        if status & _FIXED_TIMEOUT:
            return applied, False  # __nf_ct_change_timeout: EPERM
        take("timeout")
        if status & _DYING:
            return applied, False  # ETIME, though it is set
    if _CT["status"] in inside:
        if status & ~reader.u32(inside[_CT["status"]]) & _ONLY_SET:
            return applied, False  # ctnetlink_update_status: EBUSY
        take("status")
    if _CT["help"] in inside:
        if not _may_help(inside[_CT["help"]], connection):
            return applied, False
        take("help")
    if _CT["labels"] in inside:
        labels, mask = inside[_CT["labels"]], inside.get(_CT["labels_mask"])
        if len(labels) % 4 or (mask is not None and (not mask or len(mask) != len(labels))):
            return applied, False  # ctnetlink_attach_labels: EINVAL
        take("labels", "labels_mask")
    if _CT["mark"] in inside:
        take("mark", "mark_mask")
    return applied, True


def _name_in(nest: bytes) -> bytes | None:
    """A helper's name without its NUL; None where there is none, or the nest is broken."""
    try:
        name = reader.attributes(nest, _HELP_NAME, {}, nested=True).found.get(_HELP_NAME)
    except RefusedError:
        return None
    return None if name is None else name.rstrip(b"\0")


def _may_help(nest: bytes, connection: Connection) -> bool:
    """Whether ctnetlink_change_helper takes a helper's name: its own, or none to take it away."""
    name = _name_in(nest)
    if name is None:
        return False
    if name == connection.helper:
        return bool(name) or not connection.is_expected
    return not name and not connection.is_expected


def _is_expected(nest: bytes, changed: dict[int, bytes], connection: Connection) -> bool:
    """Whether ctnetlink_glue_attach_expect takes it: by a helper, of one of its classes.

    Of the kernel's own helpers and functions it is known what there is. A helper in user space is
    taken to have one class.
    """
    if not connection.helper or _name_in(changed.get(_CT["help"], b"")) == b"":
        return False
    try:
        inside = reader.attributes(nest, max(CTA_EXPECT.by_number), _EXPECT_RULES, nested=True)
        found = inside.found
        if not found.keys() >= {_E["tuple"], _E["mask"]}:
            return False
        protocol = _protocol_in(found[_E["tuple"]])
        if _E["nat"] in found and not _is_translation(found[_E["nat"]]):
            return False
    except RefusedError:
        return False
    function = found.get(_E["fn"])
    if function is not None and function.rstrip(b"\0") not in _FUNCTIONS:
        return False
    if reader.u32(found.get(_E["class"], bytes(4))) > _CLASS_MAX.get(connection.helper, 0):
        return False
    named = found.get(_E["help_name"])
    return named is None or _is_helper(named.rstrip(b"\0"), protocol, connection)


def _protocol_in(nest: bytes) -> int | None:
    """The protocol of a tuple, None where it has none."""
    inside = reader.attributes(nest, max(CTA_TUPLE.by_number), {}, nested=True).found
    proto = reader.attributes(inside.get(_TUPLE_PROTO, b""), _PROTO_MEMBERS, {}, nested=True).found
    number = proto.get(_PROTO_NUM)
    return number[0] if number else None


def _is_translation(nest: bytes) -> bool:
    """Whether ctnetlink_parse_expect_nat takes it."""
    inside = reader.attributes(nest, max(CTA_EXPECT_NAT.by_number), _NAT_RULES, nested=True).found
    return inside.keys() >= _NAT_RULES.keys() and reader.u32(inside[_NAT["dir"]]) <= 1


def _is_helper(name: bytes, protocol: int | None, connection: Connection) -> bool:
    """Whether __nf_conntrack_helper_find finds it, by the protocol of what is expected."""
    if name == connection.helper and protocol in (None, connection.protocol):
        return True
    return protocol is not None and name in _HELPERS.get(protocol, ())
