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
from .schema.conntrack import CTA, CTA_EXPECT, Status
from .schema.nfqueue import NFQA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._kernel_records import PacketIn
    from .schema import Attr

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
        self.helper = next(
            (
                member.value.rstrip(b"\0")
                for member in (help_nest if isinstance(help_nest, tuple) else ())
                if member.number == _HELP_NAME and isinstance(member.value, bytes)
            ),
            b"",
        )


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
    """Whether ctnetlink_glue_attach_expect takes it: by a helper, of its only class.

    Which functions and further classes a helper has is not known here; such a one is not taken.
    """
    if not connection.helper or _name_in(changed.get(_CT["help"], b"")) == b"":
        return False
    try:
        inside = reader.attributes(nest, max(CTA_EXPECT.by_number), _EXPECT_RULES, nested=True)
    except RefusedError:
        return False
    found = inside.found
    if not found.keys() >= {_E["tuple"], _E["mask"]} or _E["fn"] in found:
        return False
    if _E["class"] in found and reader.u32(found[_E["class"]]):
        return False
    return found.get(_E["help_name"], connection.helper).rstrip(b"\0") == connection.helper
