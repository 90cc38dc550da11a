"""Verdicts, and what a verdict may change in its packet.

Values are the kernel's (include/uapi/linux/netfilter.h). NF_STOLEN is not offered: the kernel
refuses it with EINVAL (verdicthdr_get, nfnetlink_queue.c).
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from trionfq._errors import LocalProtocolError
from trionfq._foreign import packet_bytes
from trionfq._verdict_conntrack import (
    CONNTRACK_CHANGES,
    ConntrackChanges,
    conntrack_attributes,
)
from trionfq.schema import Attr, attr
from trionfq.schema.nfqueue import (
    MAX_COPY_RANGE,
    NFQA,
    NFQA_VLAN,
    QUEUE_BYPASS,
    QUEUE_NUMBER_SHIFT,
    VERDICT_MASK,
    VerdictCode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionfq._foreign import Payload
    from trionfq._ip_unfixed import Unfixed

_U32 = 0xFFFFFFFF


class Verdict(enum.IntEnum):
    """What becomes of a packet (NF_* in linux/netfilter.h)."""

    DROP = VerdictCode.DROP
    ACCEPT = VerdictCode.ACCEPT
    QUEUE = VerdictCode.QUEUE
    REPEAT = VerdictCode.REPEAT
    STOP = VerdictCode.STOP


class MarkChanges(TypedDict, total=False):
    """Changes that a batch of verdicts can carry, too.

    Keys:
      mark: new packet mark, 32 bits (NFQA_MARK, skb->mark).
      priority: new packet priority, 32 bits (NFQA_PRIORITY, skb->priority; since 5.18).
    """

    mark: int | None
    priority: int | None


class Changes(MarkChanges, ConntrackChanges, total=False):
    """Changes that leave with a verdict: these, `MarkChanges` and `ConntrackChanges`.

    Keys:
      payload: the new packet from the network header on (NFQA_PAYLOAD): bytes, or a packet of
        scapy or dpkt.
      repair: False leaves lengths and checksums of ``payload`` as given; True by default.
      vlan: new VLAN tag as (protocol, tci), 16 bits each (NFQA_VLAN; bridge only).
      l2hdr: new MAC header of the same length (NFQA_L2HDR; bridge only).

    None leaves the packet's own.
    """

    payload: Payload | None
    repair: bool
    vlan: tuple[int, int] | None
    l2hdr: bytes | None


class Decision(NamedTuple):
    """A verdict that was given, ready to be encoded.

    Attributes:
      code: the 32-bit verdict: low 16 bits NF_*, the rest the target queue of NF_QUEUE.
      attributes: what changes besides the payload, as wire attributes.
      plain: carries nothing that a batch could not carry.
      form: names of a plain decision's attributes, each one u32.
      values: their values.
      conntrack: changes the packet's connection; the kernel ignores what it dislikes of that.
      bridge: changes a link-layer header: the one change that a kernel may refuse. Where it has
        looked at that header, the packet is lost; else it keeps the packet.
      payload: the new payload, None where unchanged.
      unfixed: what of the new payload could not be repaired.
    """

    code: int
    attributes: tuple[Attr, ...] = ()
    plain: bool = True
    form: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    conntrack: bool = False
    bridge: bool = False
    payload: bytes | None = None
    unfixed: tuple[Unfixed, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict without the target queue."""
        return Verdict(self.code & VERDICT_MASK)


def queue_code(number: int, *, bypass: bool = False) -> int:
    """The 32-bit code of a requeue to another queue.

    Source: NF_QUEUE_NR, linux/netfilter.h.

    Raises:
      ValueError: the number is not of 0 to 65535.
    """
    check_queue_number(number)
    return number << QUEUE_NUMBER_SHIFT | (QUEUE_BYPASS if bypass else 0) | Verdict.QUEUE


def check_queue_number(number: int) -> int:
    """Return the number if it is a queue's.

    Raises:
      TypeError: not an integer.
      ValueError: not of 0 to 65535 (nfgenmsg.res_id is 16 bits).
    """
    return _integer("queue number", number, 0xFFFF, ValueError)


def _integer(
    name: str, value: object, most: int, error: type[ValueError] = LocalProtocolError
) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not 0 <= value <= most:
        raise error(f"{name}: expected 0 to {most:#x}, got {value:#x}")
    return value


def as_bytes(name: str, value: object) -> bytes:
    """The value as immutable bytes.

    Raises:
      TypeError: it is not bytes, bytearray or memoryview.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"{name}: expected bytes, got {type(value).__name__}")


def as_payload(value: object) -> bytes:
    """The value as the bytes of a new payload.

    Raises:
      TypeError: it is neither bytes of any kind nor a packet of scapy or dpkt.
      LocalProtocolError: it does not fit an attribute, whose length has 16 bits; or scapy or dpkt
        cannot make bytes of it.
    """
    payload = packet_bytes("payload", value)
    if len(payload) > MAX_COPY_RANGE:
        raise LocalProtocolError(
            f"payload: expected at most {MAX_COPY_RANGE} bytes, got {len(payload)}"
        )
    return payload


def _u32(name: str, value: object) -> Attr:
    return attr(NFQA, name, _integer(name, value, _U32))


def _vlan(value: object) -> Attr:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"vlan: expected (protocol, tci), got {value!r}")
    members = (
        attr(NFQA_VLAN, "proto", _integer("vlan protocol", value[0], 0xFFFF)),
        attr(NFQA_VLAN, "tci", _integer("vlan tci", value[1], 0xFFFF)),
    )
    return attr(NFQA, "vlan", members)


_WRITERS: dict[str, Callable[[Any], Attr]] = {
    "mark": lambda value: _u32("mark", value),
    "priority": lambda value: _u32("priority", value),
    "vlan": _vlan,
    "l2hdr": lambda value: attr(NFQA, "l2hdr", as_bytes("l2hdr", value)),
}
_PLAIN = frozenset(MarkChanges.__annotations__)
_BRIDGE = frozenset({"vlan", "l2hdr"})


def only_marks(changes: Mapping[str, Any]) -> bool:
    """Whether there is nothing among the changes that a batch could not carry."""
    return not changes or changes.keys() <= _PLAIN


@lru_cache(maxsize=1024)
def plain_decision(code: int, mark: int | None = None, priority: int | None = None) -> Decision:
    """The one decision object of this code, mark and priority, so that runs compare by identity.

    Raises:
      TypeError: mark or priority is not an integer.
      LocalProtocolError: mark or priority does not fit 32 bits.
    """
    given = [(n, v) for n, v in (("mark", mark), ("priority", priority)) if v is not None]
    attributes = tuple([_u32(name, value) for name, value in given])
    form, values = zip(*given, strict=True) if given else ((), ())
    return Decision(code, attributes, plain=True, form=form, values=values)


def decision(code: int, changes: Mapping[str, Any]) -> Decision:
    """Turn a verdict and its changes into what will be encoded.

    Raises:
      TypeError: an unknown change, or one of the wrong type.
      LocalProtocolError: a value that does not fit its attribute.
    """
    mark = changes.get("mark")
    if len(changes) == 1 and type(mark) is int:
        return plain_decision(code, mark)
    changes = {name: value for name, value in changes.items() if value is not None}
    if only_marks(changes):
        # Checked here, not in the cached function: True == 1 would find the entry of 1.
        for name, value in changes.items():
            _u32(name, value)
        return plain_decision(code, changes.get("mark"), changes.get("priority"))
    unknown = changes.keys() - Changes.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown change: {', '.join(sorted(unknown))}")
    attributes = [write(changes[name]) for name, write in _WRITERS.items() if name in changes]
    connection = () if CONNTRACK_CHANGES.isdisjoint(changes) else conntrack_attributes(changes)
    attributes[:0] = connection
    payload = changes.get("payload")
    if payload is not None:
        payload = as_payload(payload)
    bridge = bool(changes.keys() & _BRIDGE)
    return Decision(
        code,
        tuple(attributes),
        plain=payload is None and not connection and not bridge,
        conntrack=bool(connection),
        bridge=bridge,
        payload=payload,
    )
