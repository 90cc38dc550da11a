"""The ledger: every packet that was read and has no verdict *sent*.

Whether it was handed out, read ahead or held makes no difference. It is in the order of arrival,
which is the order of ids: the kernel's queue lock spans numbering, delivery and listing
(``__nfqnl_enqueue_packet``), so a packet that was not yet read has a higher id than every packet
that was. Ids wrap at 2**32 and are compared by `id_after` only.

It has two parts. Packets of the last reads stand in a plain list, `Ledger.fresh`: most are answered
in the order in which they came, before anybody asks for one by its id, and leave as they came. Only
when that does not hold are they filed in a dict.

A verdict that the kernel may refuse keeps its packet in the kernel's queue, so until its answer
must have come it is *unsettled*, and counts as undecided where verdicts are joined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trionfq._ids import ID_MASK, id_after

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq._packet import Packet
    from trionfq._verdict import Decision


class Unsettled(NamedTuple):
    """A verdict whose refusal may still come."""

    packet: Packet | None
    told: Decision


class Ledger:
    """Packets of one binding without a verdict sent.

    Attributes:
      fresh: the newest packets, in the order of their ids; they are not filed yet.
      last_id: the highest id that was read, None before the first.
      lost: ids that were skipped: packets that the kernel could not deliver.
      unsettled: verdicts sent whose refusal may still come, by packet id.
    """

    def __init__(self, inherited: Iterable[int] = (), *, counts_gaps: bool = True) -> None:
        self.fresh: list[Packet] = []
        self.lost = 0
        self.unsettled: dict[int, Unsettled] = {}
        self._settling: tuple[int, dict[int, Unsettled]] | None = None
        self._filed: dict[int, Packet | None] = dict.fromkeys(inherited)
        self._in_order = not self._filed
        # A packet is always delivered into an empty receive buffer, so nothing is lost before the
        # first one that is read, and its id is where counting starts.
        self.last_id: int | None = None
        self._counts_gaps = counts_gaps
        for packet_id in self._filed:
            if self.last_id is None or id_after(packet_id, self.last_id):
                self.last_id = packet_id

    def __len__(self) -> int:
        return len(self.fresh) + len(self._filed)

    # -- what comes in -------------------------------------------------------------------------

    def admit(self, ids: list[int], packets: list[Packet]) -> bool:
        """Enter packets whose ids follow the last one without a gap; False where they do not."""
        first = ids[0] if self.last_id is None else (self.last_id + 1) & ID_MASK
        if ids != list(range(first, first + len(ids))):
            return False
        # After 2**32 packets an id comes again, and its first bearer may still be held.
        if self._filed and not self._filed.keys().isdisjoint(ids):
            return False
        self.fresh += packets
        self.last_id = ids[-1]
        self._counts_gaps = True
        return True

    def admit_next(self, packet: Packet) -> bool:
        """As `admit`, for one packet; False also where something older may have its id."""
        last = self.last_id
        if last is None or packet.id != last + 1 or self._filed:
            return False
        self.fresh.append(packet)
        self.last_id = packet.id
        self._counts_gaps = True
        return True

    def admit_one(self, packet: Packet) -> bool:
        """Enter a packet whose id is not simply the next; False where its id is undecided."""
        filed = self.filed()
        if packet.id in filed:
            return False
        self.advance(packet.id)
        filed[packet.id] = packet
        return True

    def advance(self, packet_id: int) -> None:
        """Count the gap before an id: a failed delivery consumes one (nfqnl_enqueue_packet)."""
        last = self.last_id
        if last is None or id_after(packet_id, last):
            if last is not None and self._counts_gaps:
                self.lost += (packet_id - last - 1) & ID_MASK
            self._counts_gaps = True
            self.last_id = packet_id
        else:
            self._in_order = False

    def put_back(self, packet_id: int, packet: Packet | None) -> None:
        """Enter what the kernel kept, since it refused the verdict.

        Where no refusal was expected only the id is known, but it must be here all the same, or a
        closing accept counts from a later id and answers nothing.
        """
        self.filed()[packet_id] = packet
        self._in_order = False

    # -- what is in it -------------------------------------------------------------------------

    def filed(self) -> dict[int, Packet | None]:
        """All of it by id, None for an inherited id."""
        if self.fresh:
            self._filed.update([(packet.id, packet) for packet in self.fresh])
            self.fresh.clear()
        return self._filed

    def in_order(self) -> dict[int, Packet | None]:
        """All of it, the oldest first."""
        filed = self.filed()
        if not self._in_order:
            after = ((self.last_id or 0) + 1) & ID_MASK
            entries = sorted(filed.items(), key=lambda entry: (entry[0] - after) & ID_MASK)
            filed.clear()
            filed.update(entries)
            self._in_order = True
        return filed

    @property
    def only_fresh(self) -> bool:
        """Whether nothing older than the fresh packets is undecided or unsettled."""
        return not self._filed and not self.unsettled

    def lowest_open(self) -> int | None:
        """The lowest id that has no verdict, or one whose answer may still come."""
        lowest = next(iter(self.in_order()), None)
        for packet_id in self.unsettled:
            if lowest is None or id_after(lowest, packet_id):
                lowest = packet_id
        return lowest

    # -- what goes out -------------------------------------------------------------------------

    def leave_fresh(self, count: int) -> None:
        """The first fresh packets have a verdict."""
        del self.fresh[:count]

    def clear(self) -> None:
        """Forget everything."""
        self.fresh.clear()
        self._filed.clear()
        self.settled()

    # -- refusals that may still come ----------------------------------------------------------

    @property
    def settling(self) -> bool:
        """Whether `settle_after` waits for its packet."""
        return self._settling is not None

    def settled(self) -> None:
        """Say that the socket was found empty: every answer to what was sent has been read."""
        self.unsettled.clear()
        self._settling = None

    def settle_after(self, packet_id: int) -> None:
        """Say that the kernel had numbered packets up to this one when everything had been sent.

        Answers stand in the socket when sending returns, and packets are delivered in the order of
        their ids, so whoever has read a later packet has read those answers.
        """
        self._settling = packet_id, dict(self.unsettled)

    def settle_before(self, packet_id: int) -> None:
        """A packet was read, and with it everything that stood before it."""
        if self._settling is not None and id_after(packet_id, self._settling[0]):
            for number, entry in self._settling[1].items():
                if self.unsettled.get(number) is entry:
                    del self.unsettled[number]
            self._settling = None
