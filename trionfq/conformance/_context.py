"""Where the judge stands: the record and message under its eyes, and what it has found there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trionfq.conformance._findings import Finding, Totals
from trionfq.schema.protocol_rules import RULES

if TYPE_CHECKING:
    from trionfq.conformance._walk import Attribute, Header
    from trionfq.schema import Direction


_PASSED_OVER = ("NFQA_CT", "NFQA_EXP")


class Place(NamedTuple):
    """A message of a capture."""

    record: int
    time_ns: int
    direction: Direction
    message: int


@dataclass(slots=True)
class Message:
    """A message of the queue subsystem, its attributes found but not read.

    Attributes:
      datagram: all of its datagram.
      header: its nlmsghdr.
      family: nfgen_family.
      queue: res_id.
      listed: attributes in the order of the wire.
      found: by number, of several the last, as the kernel takes it.
      unbinds: whether a later message of the datagram unbinds its queue.
    """

    datagram: bytes
    header: Header
    family: int
    queue: int
    listed: list[Attribute]
    found: dict[int, Attribute]
    unbinds: bool = False

    def has(self, number: int, size: int) -> bool:
        """Whether an attribute is there and has so many bytes at least."""
        one = self.found.get(number)
        return one is not None and one.size >= size

    def integer(self, number: int, at: int = 0, size: int = 4) -> int:
        """A big-endian integer in an attribute that is there."""
        start = self.found[number].start + at
        return int.from_bytes(self.datagram[start : start + size], "big")

    def contents(self, number: int) -> bytes | None:
        """The bytes of an attribute, None where it is not there."""
        one = self.found.get(number)
        return None if one is None else self.datagram[one.start : one.end]

    def offset(self, number: int) -> int:
        """Where an attribute starts, the message where it is not there."""
        one = self.found.get(number)
        return self.header.at if one is None else one.at


class Context:
    """Collects findings at the present place.

    Attributes:
      place: where.
      queue: queue number of the present message, None where it has none.
      packet_id: the packet that it is about, None where about none.
      refusals: how many findings so far say that the kernel refuses a request.
    """

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._findings: list[Finding] = []
        self.place: Place
        self.queue: int | None = None
        self.packet_id: int | None = None
        self.refusals = 0

    def at(self, place: Place) -> None:
        """Go to a message."""
        self.place = place
        self.queue = self.packet_id = None

    def fault(self, rule: str, offset: int, field: str, text: str) -> None:
        """A breach at the present place."""
        self.fault_at(self.place, rule, offset, field, text, self.queue, self.packet_id)

    def fault_at(
        self,
        place: Place,
        rule: str,
        offset: int,
        field: str,
        text: str,
        queue: int | None,
        packet_id: int | None,
    ) -> None:
        """A breach somewhere else, such as of a request that an answer tells of."""
        known = RULES[rule]
        self._totals.findings[rule] += 1
        # Of what is wrong in these, the kernel only makes that it passes over them.
        self.refusals += known.refused and not field.startswith(_PASSED_OVER)
        record, time_ns, direction, message = place
        self._findings.append(
            Finding(
                known, record, time_ns, direction, message, offset, field, text, queue, packet_id
            )
        )

    def take(self) -> list[Finding]:
        """The findings since the last call."""
        taken, self._findings = self._findings, []
        return taken
