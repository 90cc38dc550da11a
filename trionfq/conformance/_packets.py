"""PACKET messages: what is wrong with one in itself, and against the settings of its queue."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from trionfq.conformance._payload import transport_offset
from trionfq.conformance._queues import QueueState, Waiting
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import HOOKS, NFQA, QueueFlags, SkbInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq.conformance._context import Context, Message

_N = {each.name: each.number for each in NFQA.attributes}
_HDR, _PAYLOAD, _CAP_LEN, _L2HDR = _N["packet_hdr"], _N["payload"], _N["cap_len"], _N["l2hdr"]
_HDR_BYTES = 7
_FAMILIES = frozenset(HOOKS) | {Family.INET}
_ETHERTYPES: Mapping[int, int] = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
_HOOKS = {family: frozenset(map(int, hooks)) for family, hooks in HOOKS.items()}
# Plain integers: an IntFlag takes a microsecond for every `&`.
_GSO_PACKET = int(SkbInfo.GSO)
_GSO = int(QueueFlags.GSO)
_NEVER_ZERO = tuple(_N[name] for name in ("mark", "priority", "skb_info", "cgroup_classid"))
_PAIRS = (("uid", "gid"), ("gid", "uid"), ("ct", "ct_info"), ("ct_info", "ct"),
          ("ifindex_physindev", "ifindex_indev"),
          ("ifindex_physoutdev", "ifindex_outdev"))  # fmt: skip
_BY_FLAG = {
    "uid": QueueFlags.UID_GID,
    "gid": QueueFlags.UID_GID,
    "secctx": QueueFlags.SECCTX,
    "ct": QueueFlags.CONNTRACK,
    "ct_info": QueueFlags.CONNTRACK,
}
_DEVICES = ("ifindex_indev", "ifindex_physindev", "ifindex_outdev", "ifindex_physoutdev")
_PORTS_FIRST = ("ifindex_physindev", "ifindex_indev", "ifindex_physoutdev", "ifindex_outdev")
_REST = ("mark", "priority", "hwaddr", "vlan", "l2hdr", "timestamp", "uid", "gid",
         "cgroup_classid", "secctx", "ct", "ct_info", "cap_len", "skb_info",
         "payload")  # fmt: skip
_MICROSECONDS = 1_000_000
_ADDRESS_BYTES = 8


def _ranks(devices: tuple[str, ...]) -> dict[int, int]:
    names = ("packet_hdr", *devices, *_REST)
    return {_N[name]: rank for rank, name in enumerate(names)}


_RANKS, _BRIDGE_RANKS = _ranks(_DEVICES), _ranks(_PORTS_FIRST)


def judge_packet(context: Context, message: Message, queues: dict[int, QueueState]) -> bool:
    """Judge one PACKET message and let its packet wait; whether it is one that can be answered."""
    header = message.header
    if header.flags or header.seq or header.portid:
        text = f"flags {header.flags:#x}, seq {header.seq}, portid {header.portid}"
        context.fault("NFQ109", header.at, "nlmsghdr", text)
    if message.family not in _FAMILIES:
        context.fault("NFQ111", header.at + 16, "nfgenmsg.family", f"family {message.family}")
    if _HDR not in message.found:
        context.fault("NFQ214", header.at, "NFQA_PACKET_HDR", "expected one, got none")
        return False
    if not message.has(_HDR, _HDR_BYTES):
        return False
    context.packet_id = message.integer(_HDR)
    if message.listed[0].number != _HDR:
        context.fault("NFQ216", message.offset(_HDR), "NFQA_PACKET_HDR", "is not the first")
    _judge_header(context, message)
    _judge_order(context, message)
    _judge_values(context, message)
    state = queues.setdefault(message.queue, QueueState(message.queue))
    if state.seen_from_start:
        _judge_settings(context, message, state)
    state.arrive(context, _waiting(context, message))
    return True


def _fault(context: Context, message: Message, rule: str, number: int, text: str) -> None:
    context.fault(rule, message.offset(number), NFQA.constant(number), text)


def _judge_header(context: Context, message: Message) -> None:
    protocol, hook = message.integer(_HDR, 4, 2), message.integer(_HDR, 6, 1)
    hooks = _HOOKS.get(message.family)
    if hooks is not None and hook not in hooks:
        _fault(context, message, "NFQ218", _HDR, f"hook {hook} of family {message.family}")
    expected = _ETHERTYPES.get(message.family, protocol)
    if protocol != expected:
        _fault(context, message, "NFQ219", _HDR, f"expected {expected:#06x}, got {protocol:#06x}")


def _judge_order(context: Context, message: Message) -> None:
    ranks = _BRIDGE_RANKS if message.family == Family.BRIDGE else _RANKS
    last = -1
    for one in message.listed:
        rank = ranks.get(one.number)
        if rank is None or one.number == _HDR:  # NFQ216 is about its place
            continue
        if rank < last:
            _fault(context, message, "NFQ217", one.number, "stands behind what it comes before")
            return
        last = rank


def _judge_values(context: Context, message: Message) -> None:
    for number in _NEVER_ZERO:
        if message.has(number, 4) and not message.integer(number):
            _fault(context, message, "NFQ220", number, "0")
    payload = message.found.get(_PAYLOAD)
    copied = 0 if payload is None else payload.size
    if message.has(_CAP_LEN, 4) and message.integer(_CAP_LEN) <= copied:
        text = f"{message.integer(_CAP_LEN)} bytes, of which {copied} were copied"
        _fault(context, message, "NFQ221", _CAP_LEN, text)
    if message.family != Family.BRIDGE:
        for name in ("vlan", "l2hdr"):
            if _N[name] in message.found:
                _fault(context, message, "NFQ222", _N[name], f"family {message.family}")
    for one, other in _PAIRS:
        if _N[one] in message.found and _N[other] not in message.found:
            _fault(context, message, "NFQ223", _N[one], f"without {NFQA.constant(_N[other])}")
    if message.has(_N["timestamp"], 16):
        microseconds = message.integer(_N["timestamp"], 8, 8)
        if microseconds >= _MICROSECONDS:
            _fault(context, message, "NFQ224", _N["timestamp"], f"{microseconds} us")
    if message.has(_N["hwaddr"], 12) and message.integer(_N["hwaddr"], size=2) > _ADDRESS_BYTES:
        length = message.integer(_N["hwaddr"], size=2)
        _fault(context, message, "NFQ225", _N["hwaddr"], f"{length} of 8 bytes")


def _judge_settings(context: Context, message: Message, state: QueueState) -> None:
    """Whether a queue with all its settings so far may send this."""
    payload = message.found.get(_PAYLOAD)
    if payload is not None and payload.size > state.ever_range:
        allowed = "no payload" if state.ever_range < 0 else f"at most {state.ever_range} bytes"
        _fault(context, message, "NFQ315", _PAYLOAD, f"{payload.size} bytes, set was {allowed}")
    for name, flag in _BY_FLAG.items():
        if _N[name] in message.found and not state.ever_flags & int(flag):
            _fault(context, message, "NFQ315", _N[name], f"{flag.name} is not set")
    info = _N["skb_info"]
    if message.has(info, 4) and message.integer(info) & _GSO_PACKET and not state.ever_flags & _GSO:
        _fault(context, message, "NFQ315", info, "a GSO packet, GSO is not set")


def _waiting(context: Context, message: Message) -> Waiting:
    contents = message.contents(_PAYLOAD)
    told = message.integer(_CAP_LEN) if message.has(_CAP_LEN, 4) else None
    link = message.found.get(_L2HDR)
    return Waiting(
        number=0,
        place=context.place,
        offset=message.offset(_HDR),
        packet_id=message.integer(_HDR),
        family=message.family,
        mark=message.integer(_N["mark"]) if message.has(_N["mark"], 4) else 0,
        copied=None if contents is None else len(contents),
        checksum=zlib.crc32(contents or b""),
        whole=told if told is not None or contents is None else len(contents),
        transport=transport_offset(
            message.family, contents or b"", tagged=_N["vlan"] in message.found
        ),
        link=None if link is None else link.size,
    )
