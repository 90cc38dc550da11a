"""Verdicts and batches: what is wrong with one in itself, and for the packets that it decides."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from trionfq._ids import id_after
from trionfq.conformance._payload import judge_payload
from trionfq.conformance._queues import QueueState
from trionfq.conformance._walk import swapped
from trionfq.schema.conntrack import CTA, CTA_EXPECT
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import NFQA, NFQA_VLAN, VERDICT_MASK, VerdictCode

if TYPE_CHECKING:
    from trionfq.conformance._context import Context, Message
    from trionfq.conformance._queues import Waiting
    from trionfq.conformance._requests import Request
    from trionfq.conformance._walk import Attribute

_N = {each.name: each.number for each in NFQA.attributes}
_HDR, _MARK, _PAYLOAD, _VLAN = _N["verdict_hdr"], _N["mark"], _N["payload"], _N["vlan"]
_EXP = _N["exp"]
_HDR_BYTES = 8
_EXPECTED = frozenset(CTA_EXPECT.by_name[name].number for name in ("tuple", "mask"))
_VLAN_NUMBERS = frozenset(NFQA_VLAN.by_number)
# ctnetlink_glue_parse_ct looks at these.
_SETTABLE = frozenset(
    CTA.by_name[name].number
    for name in ("timeout", "status", "help", "labels", "labels_mask", "mark", "mark_mask")
)


def judge_verdict(
    context: Context,
    message: Message,
    queues: dict[int, QueueState],
    request: Request,
    *,
    batch: bool,
    members: dict[int, list[Attribute]],
) -> None:
    """Judge one VERDICT or VERDICT_BATCH message and follow it.

    Args:
      context: where findings go.
      message: the verdict.
      queues: what is known of each queue.
      request: gets queue, packet and what was decided.
      batch: whether it is a batch.
      members: attributes within its nests, by number of the nest.
    """
    if _HDR not in message.found:
        context.fault("NFQ215", message.header.at, "NFQA_VERDICT_HDR", "expected one, got none")
        return
    if not message.has(_HDR, _HDR_BYTES):
        return
    verdict, packet_id = message.integer(_HDR), message.integer(_HDR, 4)
    context.packet_id = request.packet_id = packet_id
    request.link_layer = not message.found.keys().isdisjoint((_VLAN, _N["l2hdr"]))
    valid = _judge_code(context, message, verdict)
    _judge_nests(context, message, members)
    state = request.state = _queue_of(context, message, queues)
    if state is None or not valid:
        return
    if batch:
        packets = _batch(context, message, state, packet_id)
    else:
        packets = _one(context, message, state, packet_id)
    for packet in packets:
        _judge_mark(context, message, packet, state)
        if verdict == VerdictCode.REPEAT and _keeps_mark(message, packet):
            _fault(context, message, "NFQ421", _HDR, f"mark {packet.mark:#x} stays")
        if not batch:
            _judge_changes(context, message, packet, members)
    if message.has(_MARK, 4) and message.integer(_MARK):
        state.marks_set = True
    state.decide(packets)
    request.decided = packets


def _fault(context: Context, message: Message, rule: str, number: int, text: str) -> None:
    context.fault(rule, message.offset(number), NFQA.constant(number), text)


def _judge_code(context: Context, message: Message, verdict: int) -> bool:
    """The 32 bits of the verdict; whether the kernel takes them."""
    code, upper = verdict & VERDICT_MASK, verdict & ~VERDICT_MASK
    if code > VerdictCode.STOP or code == VerdictCode.STOLEN:
        _fault(context, message, "NFQ406", _HDR, f"verdict {code}")
        return False
    if code == VerdictCode.QUEUE or not upper:
        return True
    other = swapped(verdict, 4)
    if code == VerdictCode.DROP and other in tuple(VerdictCode):
        _fault(context, message, "NFQ408", _HDR, f"{verdict:#010x} drops, {other} may be meant")
    else:
        _fault(context, message, "NFQ407", _HDR, f"verdict {verdict:#010x}")
    return True


def _judge_nests(context: Context, message: Message, members: dict[int, list[Attribute]]) -> None:
    if _EXP in message.found:
        if _N["ct"] not in message.found:
            _fault(context, message, "NFQ422", _EXP, "stands without NFQA_CT")
        lacking = _EXPECTED - {one.number for one in members.get(_EXP, ())}
        if lacking:
            names = ", ".join(map(CTA_EXPECT.constant, sorted(lacking)))
            _fault(context, message, "NFQ426", _EXP, f"without {names}")
    for one in members.get(_N["ct"], ()):
        if one.number in CTA.by_number and one.number not in _SETTABLE:
            name = f"NFQA_CT -> {CTA.constant(one.number)}"
            context.fault("NFQ423", one.at, name, "is not looked at")


def _queue_of(
    context: Context, message: Message, queues: dict[int, QueueState]
) -> QueueState | None:
    """The queue that a verdict is for, None where it is for none."""
    state = queues.get(message.queue)
    if state is not None and state.bound is not False:
        return state
    other = queues.get(swapped(message.queue, 2))
    at = message.header.at + 18
    if other is not None and other.bound:
        text = f"{message.queue} is not bound, {other.number} is"
        context.fault("NFQ410", at, "nfgenmsg.res_id", text)
        return None
    if state is not None:
        context.fault("NFQ409", at, "nfgenmsg.res_id", f"queue {message.queue} was unbound")
        return None
    state = queues[message.queue] = QueueState(message.queue)
    return state


def _one(context: Context, message: Message, state: QueueState, packet_id: int) -> list[Waiting]:
    packet = state.waiting.get(packet_id)
    if packet is not None:
        return [packet]
    seen = state.was_seen(packet_id)
    if seen is None:
        return []
    other = swapped(packet_id, 4)
    if other in state.waiting:
        _fault(context, message, "NFQ403", _HDR, f"id {packet_id}, {other} waits")
    elif seen:
        _fault(context, message, "NFQ402", _HDR, f"id {packet_id}")
    else:
        text = f"id {packet_id}, the last packet was {state.last}"
        _fault(context, message, "NFQ401", _HDR, text)
    return []


def _batch(context: Context, message: Message, state: QueueState, last: int) -> list[Waiting]:
    packets = state.up_to(last)
    if message.unbinds:  # the queue goes, what is swept is swept on purpose
        return packets
    beyond = state.last is None or id_after(last, state.last)
    other = swapped(last, 4)
    if beyond and last not in state.waiting and other in state.waiting:
        _fault(context, message, "NFQ403", _HDR, f"up to {last}, {other} waits")
    elif beyond and (state.last is not None or state.seen_from_start):
        text = f"up to {last}, the last packet read was {state.last}"
        _fault(context, message, "NFQ411", _HDR, text)
    elif not packets and state.was_seen(last) is not None:
        _fault(context, message, "NFQ412", _HDR, f"up to {last}")
    return packets


def _keeps_mark(message: Message, packet: Waiting) -> bool:
    return not message.has(_MARK, 4) or message.integer(_MARK) == packet.mark


def _judge_mark(context: Context, message: Message, packet: Waiting, state: QueueState) -> None:
    if not message.has(_MARK, 4):
        return
    mark = message.integer(_MARK)
    if mark == packet.mark:
        _fault(context, message, "NFQ419", _MARK, f"{mark:#x}")
    elif mark == swapped(packet.mark, 4):
        text = f"{mark:#010x}, the packet has {packet.mark:#010x}"
        _fault(context, message, "NFQ420", _MARK, text)
    elif not mark and not state.marks_set:
        _fault(context, message, "NFQ418", _MARK, f"0 over {packet.mark:#x}")


def _judge_changes(
    context: Context, message: Message, packet: Waiting, members: dict[int, list[Attribute]]
) -> None:
    """What else a single verdict changes in its packet."""
    if packet.family == Family.BRIDGE:
        if _VLAN in message.found:
            lacking = _VLAN_NUMBERS - {one.number for one in members.get(_VLAN, ())}
            if lacking:
                names = ", ".join(map(NFQA_VLAN.constant, sorted(lacking)))
                _fault(context, message, "NFQ424", _VLAN, f"without {names}")
        header = message.found.get(_N["l2hdr"])
        if header is not None and packet.link is not None and header.size != packet.link:
            text = f"{header.size} bytes, the packet has {packet.link}"
            _fault(context, message, "NFQ425", _N["l2hdr"], text)
    else:
        for number in (_VLAN, _N["l2hdr"]):
            if number in message.found:
                _fault(context, message, "NFQ222", number, f"family {packet.family}")
    payload = message.contents(_PAYLOAD)
    if payload is not None:
        judge_payload(context, message, packet, zlib.crc32(payload))
