"""What the judge says: findings one by one, and the sum of them."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from trionfq.schema import Direction
from trionfq.schema.protocol_rules import RULES, Rule, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

DIRECTION_WORDS = {
    Direction.FROM_KERNEL: "from-kernel",
    Direction.TO_KERNEL: "to-kernel",
}


class Finding(NamedTuple):
    """One breach of a rule.

    Attributes:
      rule: which one.
      record: index of the record in the capture, from 0.
      time_ns: when it passed, in nanoseconds since the epoch.
      direction: who sent it.
      message: index of the message in its datagram, from 0.
      offset: where in the datagram, in bytes.
      field: the field, from the outside in, such as ``NFQA_CT -> CTA_MARK``.
      text: what was expected and what is there.
      queue: queue number, None where the message does not tell.
      packet_id: the packet, None where it is not about one.
    """

    rule: Rule
    record: int
    time_ns: int
    direction: Direction
    message: int
    offset: int
    field: str
    text: str
    queue: int | None = None
    packet_id: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON's types."""
        found = self._asdict()
        rule = found.pop("rule")
        return {
            "rule": rule.id,
            "severity": rule.severity.value,
            "title": rule.title,
            **found,
            "direction": DIRECTION_WORDS[self.direction],
        }

    def __str__(self) -> str:
        place = f"record {self.record}, message {self.message}, byte {self.offset}"
        whose = "" if self.queue is None else f", queue {self.queue}"
        packet = "" if self.packet_id is None else f", packet {self.packet_id}"
        return (
            f"{self.rule.id} {self.rule.severity.value}: {self.rule.title}: "
            f"{self.field}: {self.text} ({place}{whose}{packet})"
        )


class Totals:
    """What was judged.

    Attributes:
      records: datagrams read, records without one left out.
      messages: messages of the queue subsystem, and answers to such.
      packets: PACKET messages.
      foreign: messages of other subsystems, which are passed over.
      findings: breaches by rule id.
    """

    def __init__(self) -> None:
        self.records = 0
        self.messages = 0
        self.packets = 0
        self.foreign = 0
        self.findings: Counter[str] = Counter()

    def severities(self) -> dict[Severity, int]:
        """Breaches by severity, the worst first."""
        counts = dict.fromkeys(Severity, 0)
        for rule, count in self.findings.items():
            counts[RULES[rule].severity] += count
        return counts


class Report:
    """The findings of a capture, in order, while they are found: an iterator.

    Nothing is kept: memory grows with the packets that wait for a verdict, not with the capture.

    Attributes:
      totals: what was judged so far; complete when the iteration has ended.
    """

    def __init__(self, findings: Iterator[Finding], totals: Totals) -> None:
        self._findings = findings
        self.totals = totals

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Finding:
        return next(self._findings)

    def finish(self) -> Self:
        """Judge the rest of the capture and forget its findings; the totals have them."""
        for _finding in self:
            pass
        return self

    @property
    def passed(self) -> bool:
        """Whether nothing worse than a note was found so far."""
        counts = self.totals.severities()
        return not counts[Severity.ERROR] and not counts[Severity.WARNING]

    def as_json(self) -> dict[str, Any]:
        """The totals as JSON's types; for the whole capture call `finish` first."""
        totals = self.totals
        return {
            "passed": self.passed,
            "records": totals.records,
            "messages": totals.messages,
            "packets": totals.packets,
            "foreign": totals.foreign,
            "severities": {word.value: count for word, count in totals.severities().items()},
            "rules": dict(sorted(totals.findings.items())),
        }

    def json_lines(self) -> Iterator[str]:
        """Each finding as a line of JSON, then the totals in one with the key ``totals``."""
        for finding in self:
            yield json.dumps(finding.as_json())
        yield json.dumps({"totals": self.as_json()})
