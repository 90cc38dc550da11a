"""What the judge knows of a queue: its settings, and the packets that wait for a verdict."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from trionfq._ids import ID_MASK, id_after
from trionfq.schema.nfqueue import MAX_COPY_RANGE, CopyMode

if TYPE_CHECKING:
    from trionfq.conformance._context import Context, Place

_GAPS_KEPT = 256


class Waiting(NamedTuple):
    """A packet without a verdict.

    Attributes:
      number: how many packets of the queue came before it.
      place: its message.
      offset: where its packet_hdr stands.
      packet_id: its id.
      family: NFPROTO_* of its hook.
      mark: its mark, 0 where it has none.
      copied: bytes of the payload that were copied, None in mode META.
      checksum: CRC-32 of these, which stand for them.
      whole: bytes of the whole packet, None where nothing tells.
      transport: bytes in front of the transport header, 0 where nothing tells.
      link: bytes of its link-layer header, None where it has none.
    """

    number: int
    place: Place
    offset: int
    packet_id: int
    family: int
    mark: int
    copied: int | None
    checksum: int
    whole: int | None
    transport: int
    link: int | None


class QueueState:
    """One binding of a queue, or what is seen of one that was bound before the capture began.

    Attributes:
      number: queue number.
      bound: None where the capture does not tell.
      seen_from_start: whether the capture has its BIND.
      waiting: packets without a verdict by id, in order of arrival.
      flags: QueueFlags now.
      ever_flags: QueueFlags that were set at any time.
      ever_range: greatest copy range so far, -1 before the first mode PACKET.
      marks_set: whether any verdict wrote a mark other than 0.
      numbers_told: whether it was told that verdicts share a sequence number.
      last: id of the last packet, None before the first.
    """

    def __init__(self, number: int, *, bound: bool | None = None) -> None:
        self.number = number
        self.bound = bound
        self.seen_from_start = bound is True
        self.waiting: dict[int, Waiting] = {}
        self.flags = 0
        self.ever_flags = 0
        self.ever_range = -1
        self.marks_set = False
        self.numbers_told = False
        self.last: int | None = None
        self._first = 0
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_GAPS_KEPT)
        self._arrived = 0
        self._answered = -1

    def set_mode(self, mode: int, copy_range: int) -> None:
        """nfqnl_set_mode."""
        if mode == CopyMode.PACKET:
            whole = copy_range == 0 or copy_range > MAX_COPY_RANGE
            self.ever_range = max(self.ever_range, MAX_COPY_RANGE if whole else copy_range)

    def set_flags(self, flags: int, mask: int) -> None:
        """NFQA_CFG_FLAGS and NFQA_CFG_MASK."""
        self.flags = (self.flags & ~mask) | (flags & mask)
        self.ever_flags |= self.flags

    def arrive(self, context: Context, packet: Waiting) -> None:
        """A packet is delivered."""
        packet_id = packet.packet_id
        if self.bound is None:
            self.bound = True
        if self.last is None:
            self._first = packet_id
        elif not id_after(packet_id, self.last):
            text = f"{packet_id} after {self.last}"
            context.fault("NFQ503", packet.offset, "NFQA_PACKET_HDR.packet_id", text)
            if packet_id in self.waiting:
                return
        elif missing := (packet_id - self.last - 1) & ID_MASK:
            self._gaps.append(((self.last + 1) & ID_MASK, missing))
            text = f"{missing} packets are missing after {self.last}"
            context.fault("NFQ504", packet.offset, "NFQA_PACKET_HDR.packet_id", text)
        if self.last is None or id_after(packet_id, self.last):
            self.last = packet_id
        self.waiting[packet_id] = packet._replace(number=self._arrived)
        self._arrived += 1

    def was_seen(self, packet_id: int) -> bool | None:
        """Whether a packet of this id was delivered, None where it may have been before."""
        if self.last is None or id_after(packet_id, self.last):
            return False if self.seen_from_start or self.last is not None else None
        if id_after(self._first, packet_id):
            return False if self.seen_from_start else None
        return not any((packet_id - start) & ID_MASK < count for start, count in self._gaps)

    def up_to(self, last: int) -> list[Waiting]:
        """The packets that a batch decides (nfq_id_after ends the walk)."""
        found: list[Waiting] = []
        for packet_id, packet in self.waiting.items():
            if id_after(packet_id, last):
                break
            found.append(packet)
        return found

    def decide(self, packets: list[Waiting]) -> None:
        """Packets have their verdict."""
        for packet in packets:
            del self.waiting[packet.packet_id]
            self._answered = max(self._answered, packet.number)

    def restore(self, packets: list[Waiting]) -> None:
        """A verdict was refused: they wait again, each in its place."""
        every = [*self.waiting.values(), *packets]
        self.waiting = {each.packet_id: each for each in sorted(every, key=lambda p: p.number)}

    def end(self, context: Context, why: str) -> None:
        """The queue goes, or the capture ends: what still waits is reported."""
        for packet in self.waiting.values():
            rule = "NFQ501" if packet.number < self._answered else "NFQ502"
            context.fault_at(
                packet.place,
                rule,
                packet.offset,
                "NFQA_PACKET_HDR.packet_id",
                why,
                self.number,
                packet.packet_id,
            )
        self.waiting.clear()
