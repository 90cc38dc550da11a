"""The book of a queue's packets: what each was told, and that just this became of it."""

from __future__ import annotations

import enum
from typing import Final

from trionfq import Packet, QueueConfig, QueueFlags, Verdict

from ._witness import INPUT, Bench, Seen, data_of, number_of


class Told(enum.Enum):
    """A verdict after which the packet is in the queue again."""

    AGAIN = "the hook runs again, and the rule queues it under a new id"
    REFUSED = "the kernel refuses the verdict, and keeps the packet"


GONE: Final = None
"""A verdict after which the packet is nowhere."""


class Book:
    """One binding's packets, by the numbers that they carry.

    Attributes:
      waiting: number to packet id, of what the kernel must hold.
      refusing: packet ids whose verdict was refused, until that is heard.
      thrown: numbers that the kernel threw away by itself.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.waiting: dict[int, int] = {}
        self.refusing: set[int] = set()
        self.thrown: set[int] = set()
        self._ids: dict[int, int] = {}
        self._told: dict[int, Seen | Told | None] = {}
        self._returning: set[int] = set()
        self._returning_lost = 0
        self._expected: dict[int, Seen] = {}
        self.row = bench.row()

    # -- what happens --------------------------------------------------------------------------

    def arrive(self, config: QueueConfig) -> None:
        """Send a packet, and learn from the kernel's counters what became of it at the queue."""
        before = self.row
        number = self._bench.new_number()
        self._bench.send(data_of(number))
        after = self.row = self._bench.row()
        full = before.queue_total >= config.max_len
        if after.queue_total > before.queue_total:
            assert not full
            self.waiting[number] = after.id_sequence
        elif after.queue_dropped > before.queue_dropped:
            assert full
        elif after.user_dropped == before.user_dropped:
            assert config.flags & QueueFlags.FAIL_OPEN, f"packet {number} was lost uncounted"
            self._expected[number] = Seen(data=data_of(number))
            self._look(config)

    def read(self, packet: Packet) -> int:
        """A packet was read; gives its number."""
        number = number_of(packet.payload[28:])
        if number in self._returning:
            self._returning.remove(number)
            self.waiting[number] = packet.id
        elif number not in self.thrown:
            assert self.waiting.get(number) == packet.id, f"packet {number} was read twice"
        self._ids[number] = packet.id
        return number

    def tell(self, number: int, what: Seen | Told | None) -> None:
        """A packet was given a verdict that was not sent yet."""
        assert number not in self._told
        self._told[number] = what

    @property
    def brings_back(self) -> bool:
        """Whether a verdict that waits to be sent queues its packet again."""
        return Told.AGAIN in self._told.values()

    def sent(self, config: QueueConfig) -> None:
        """Everything that was told was sent: the kernel has done it, and nothing else."""
        ids, again = self._apply()
        before, self.row = self.row, self._bench.row()
        dropped = self.row.queue_dropped - before.queue_dropped
        dropped += self.row.user_dropped - before.user_dropped
        assert dropped <= again, "a verdict made the kernel drop something"
        self._returning_lost += dropped
        passed = self._look(config)
        order = [ids[number] for number in passed if number in ids]
        assert order == sorted(order), f"verdicts were sent in the order {order}"
        ledger = len(self.waiting) + len(self._returning) - self._returning_lost
        assert self.row.queue_total == ledger, (
            f"the kernel holds {self.row.queue_total} packets, {ledger} are undecided"
        )

    def heard_refusal(self, packet_id: int) -> None:
        """The kernel's refusal was read."""
        assert packet_id in self.refusing
        self.refusing.remove(packet_id)

    def device_went_down(self) -> None:
        """The kernel has thrown away what it held."""
        self.thrown.update(self.waiting, self._returning)
        self.waiting.clear()
        self._forget_returning()
        self.row = self._bench.row()
        assert self.row.queue_total == 0

    def closed(self, policy: Verdict, config: QueueConfig) -> None:
        """The binding ended: the policy was given to all that were undecided."""
        assert not self.brings_back
        self._apply()
        returning = len(self._returning) - self._returning_lost
        if policy is Verdict.ACCEPT:
            for number in self.waiting:
                self._expected[number] = Seen(data=data_of(number))
        before = len(self._returning)
        self._look(config._replace(flags=QueueFlags.FAIL_OPEN))
        passed = before - len(self._returning)
        assert passed == (returning if policy is Verdict.ACCEPT else 0)

    # -- what must follow ----------------------------------------------------------------------

    def _apply(self) -> tuple[dict[int, int], int]:
        """Carry out what was told; gives the ids of decided packets, and how many come again."""
        ids = {}
        again = 0
        for number, what in self._told.items():
            if what is Told.REFUSED:
                self.refusing.add(self._ids[number])
                continue
            if number not in self.waiting:
                assert number in self.thrown
                continue
            ids[number] = self.waiting.pop(number)
            if isinstance(what, Seen):
                self._expected[number] = what
            elif what is Told.AGAIN:
                again += 1
                self._returning.add(number)
        self._told.clear()
        return ids, again

    def _look(self, config: QueueConfig) -> list[int]:
        """See that what passed is what had to; gives the numbers that arrived, in order."""
        arrived = []
        for what in self._bench.look():
            number = number_of(what.data)
            if number in self._expected:
                wanted = self._expected.pop(number)
                assert what == wanted, f"packet {number}: told {wanted}, became {what}"
            elif number in self._returning:
                # It was queued again, found no room, and passed.
                assert config.flags & QueueFlags.FAIL_OPEN
                assert what == Seen(data=data_of(number))
                self._returning.remove(number)
                continue
            else:
                undecided = number in self.waiting
                raise AssertionError(
                    f"packet {number} was swept: {what}"
                    if undecided
                    else f"packet {number} passed though it was dropped, or twice: {what}"
                )
            if what.hook == INPUT:
                arrived.append(number)
        assert not self._expected, f"packets were lost: {self._expected}"
        return arrived

    def _forget_returning(self) -> None:
        self._returning.clear()
        self._returning_lost = 0
