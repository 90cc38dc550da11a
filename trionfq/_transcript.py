"""What became of each packet: the list by which two runs of one policy are compared.

A run is live, a replay, or a recording of either. Its transcript has one `Outcome` for each packet
in the order of arrival; datagram boundaries, batches and the order of answers leave no trace in it.

The rules are the kernel's (nfqnl_recv_verdict, nfqnl_recv_verdict_batch, nfnetlink_queue.c): a
verdict decides the one undecided packet of its id, a batch walks the undecided ones in order and
stops at the first id after its own. A refused verdict decides nothing, with two exceptions: for
ENOENT the kernel had flushed the packet, and what the program decided stands; and a bad VLAN tag or
link-layer header (EINVAL) is found when the packet has left the queue, which drops it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from trionfq._ids import id_after
from trionfq.schema._records import Direction, ErrorMessage, Message
from trionfq.schema.nfqueue import (
    NFQA,
    NFQA_CFG,
    VERDICT_MASK,
    ConfigCommand,
    MessageType,
    VerdictCode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trionfq.schema._records import AnyMessage, Attr, Value

_PACKET_HDR = NFQA.by_name["packet_hdr"].number
_VERDICT_HDR = NFQA.by_name["verdict_hdr"].number
_MARK = NFQA.by_name["mark"].number
_PAYLOAD = NFQA.by_name["payload"].number
_CMD = NFQA_CFG.by_name["cmd"].number
# nfqnl_recv_verdict_batch reads these two besides the header, and ignores the rest.
_IN_A_BATCH = frozenset(NFQA.by_name[name].number for name in ("mark", "priority"))
_FOR_BRIDGES = frozenset(NFQA.by_name[name].number for name in ("vlan", "l2hdr"))
_VALID_VERDICTS = frozenset(VerdictCode) - {VerdictCode.STOLEN}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one packet.

    Two outcomes are equal when all but their times and recorded ids are, so that runs at different
    times compare, and a replay with the recording of it.

    Attributes:
      queue: queue number.
      packet_id: as the kernel, or the replay, numbered it.
      verdict: the verdict as sent, with a queue number or flags in its upper bits; None where
        nobody decided.
      mark: the mark that the verdict set, None where it set none.
      payload: the bytes that replaced the packet, None where it was left alone.
      changes: what else the verdict carried (priority, conntrack, VLAN, layer-2 header), in the
        order of the attributes' numbers.
      arrived_ns: when the program got the packet, in nanoseconds since the epoch or, in a lockstep
        replay, since its start.
      decided_ns: when it was decided, None where nobody did.
      recorded_id: the id that it had in the recording that was replayed; in a run that is no replay
        the same as `packet_id`.
    """

    queue: int
    packet_id: int
    verdict: int | None
    mark: int | None = None
    payload: bytes | None = None
    changes: tuple[Attr, ...] = ()
    arrived_ns: int = field(default=0, compare=False)
    decided_ns: int | None = field(default=None, compare=False)
    recorded_id: int | None = field(default=None, compare=False)

    @property
    def time_to_decide_ns(self) -> int | None:
        """Nanoseconds from its arrival to its verdict, None where nobody decided."""
        return None if self.decided_ns is None else self.decided_ns - self.arrived_ns


class _Entry:
    """One packet, while its verdict may still come or be taken back."""

    __slots__ = (
        "arrived_ns",
        "attributes",
        "binding",
        "decided_ns",
        "packet_id",
        "place",
        "queue",
        "recorded_id",
        "verdict",
    )

    def __init__(
        self,
        place: int,
        binding: dict[int, _Entry],
        queue: int,
        packet_id: int,
        arrived_ns: int,
        recorded_id: int | None,
    ) -> None:
        self.place = place
        self.binding = binding
        self.queue = queue
        self.packet_id = packet_id
        self.arrived_ns = arrived_ns
        self.recorded_id = recorded_id
        self.verdict: int | None = None
        self.attributes: Mapping[int, Attr] = {}
        self.decided_ns: int | None = None

    def bridges(self) -> bool:
        """Whether its verdict is one that the kernel gives, with changes for a bridge only."""
        valid = self.verdict is not None and self.verdict & VERDICT_MASK in _VALID_VERDICTS
        return valid and not self.attributes.keys().isdisjoint(_FOR_BRIDGES)

    def outcome(self) -> Outcome:
        mark = self.attributes.get(_MARK)
        payload = self.attributes.get(_PAYLOAD)
        rest = sorted(self.attributes.keys() - {_VERDICT_HDR, _MARK, _PAYLOAD})
        return Outcome(
            self.queue,
            self.packet_id,
            self.verdict,
            mark.value if mark and isinstance(mark.value, int) else None,
            payload.value if payload and isinstance(payload.value, bytes) else None,
            tuple(self.attributes[number] for number in rest),
            self.arrived_ns,
            self.decided_ns,
            self.recorded_id,
        )


class Transcript:
    """Packets and their outcomes, built from the messages of one socket in order."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._queues: dict[int, None] = {}
        self._undecided: dict[int, dict[int, _Entry]] = {}
        self._last: dict[int, int] = {}
        self._sent: dict[tuple[int, int], list[_Entry]] = {}

    def outcomes(self) -> list[Outcome]:
        """One outcome for each packet so far, in order of arrival."""
        return [entry.outcome() for entry in self._entries]

    def queues(self) -> list[int]:
        """Numbers of the queues that packets came from."""
        return list(self._queues)

    def arrived(
        self, queue: int, packet_id: int, time_ns: int, recorded_id: int | None = None
    ) -> None:
        """A packet was given to the program.

        Args:
          queue: queue number.
          packet_id: its id there.
          time_ns: when.
          recorded_id: its id in the recording that is replayed; None for the same.
        """
        last = self._last.get(queue)
        if last is not None and not id_after(packet_id, last):
            self.ended(queue)  # ids start again at 1 on each bind, so this is another binding
        self._last[queue] = packet_id
        self._queues[queue] = None
        binding = self._undecided.setdefault(queue, {})
        recorded = packet_id if recorded_id is None else recorded_id
        entry = _Entry(len(self._entries), binding, queue, packet_id, time_ns, recorded)
        self._entries.append(entry)
        binding[packet_id] = entry

    def ended(self, queue: int) -> None:
        """The binding ended: what is undecided stays so."""
        self._undecided.pop(queue, None)
        self._last.pop(queue, None)

    def seen(self, message: AnyMessage, direction: Direction | None, time_ns: int) -> None:
        """A message passed; what says nothing of a packet's fate is ignored."""
        if isinstance(message, ErrorMessage):
            if direction is not Direction.TO_KERNEL:
                self._answered(message)
        elif isinstance(message, Message):
            if message.type == MessageType.PACKET:
                if direction is not Direction.TO_KERNEL:
                    header = _struct(message.attributes, _PACKET_HDR)
                    if header is not None:
                        self.arrived(message.res_id, header["packet_id"], time_ns)
            elif direction is Direction.FROM_KERNEL:
                pass
            elif message.type == MessageType.CONFIG:
                command = _struct(message.attributes, _CMD)
                if command is not None and command["command"] == ConfigCommand.UNBIND:
                    self.ended(message.res_id)
            elif message.type in (MessageType.VERDICT, MessageType.VERDICT_BATCH):
                self._verdict(message, time_ns)

    def _verdict(self, message: Message, time_ns: int) -> None:
        header = _struct(message.attributes, _VERDICT_HDR)
        undecided = self._undecided.get(message.res_id)
        if header is None or not undecided:
            return
        packet_id = header["id"]
        if message.type == MessageType.VERDICT_BATCH:
            attributes = {a.number: a for a in message.attributes if a.number in _IN_A_BATCH}
            ids = list(takewhile(lambda each: not id_after(each, packet_id), undecided))
        else:
            attributes = {a.number: a for a in message.attributes}  # of duplicates the last wins
            ids = [packet_id] if packet_id in undecided else []
        decided = [undecided.pop(each) for each in ids]
        for entry in decided:
            entry.verdict = header["verdict"]
            entry.attributes = attributes
            entry.decided_ns = time_ns
        if decided:
            self._sent[message.type, message.seq] = decided

    def _answered(self, answer: ErrorMessage) -> None:
        """A refused verdict leaves its packets queued, at their old places."""
        _length, type_, _flags, seq, _portid = answer.request
        code = -answer.error
        decided = self._sent.get((type_, seq))
        if decided is None or code in (0, errno.ENOENT):
            return
        del self._sent[type_, seq]
        if code == errno.EINVAL and decided[0].bridges():
            for entry in decided:
                entry.verdict, entry.attributes = VerdictCode.DROP, {}
            return
        for entry in decided:
            entry.verdict, entry.attributes, entry.decided_ns = None, {}, None
        binding = decided[0].binding
        entries = sorted((*binding.values(), *decided), key=lambda entry: entry.place)
        binding.clear()
        binding.update((entry.packet_id, entry) for entry in entries)


def _struct(attributes: Iterable[Attr], number: int) -> dict[str, int] | None:
    """The fields of an attribute; of duplicates the last wins, as in nla_parse."""
    found: Value | None = None
    for attribute in attributes:
        if attribute.number == number:
            found = attribute.value
    return found if isinstance(found, dict) else None
