"""Verdicts as messages: a kind of verdict that comes again is filled into a template.

Plain ones are of few forms: with a mark or without, with a priority or without. Templates of other
kinds, and of batches, have their attributes filled in; making one costs as much as encoding a dozen
messages, so a kind that is seen for the first time is encoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionfq._codec import Template, encode
from trionfq.schema import Message, attr
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA, MessageType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionfq._verdict import Decision
    from trionfq.schema import Attr

# A table that is full starts anew.
_TEMPLATES_KEPT = 256
_SEEN_KEPT = 4096


class VerdictWriter:
    """Writes the verdicts of one queue.

    A message's sequence number is its packet id, so that an error names its packet.

    Args:
      queue_number: the queue.
    """

    def __init__(self, queue_number: int) -> None:
        self._queue_number = queue_number
        self._templates: dict[tuple[int, int, tuple[Attr, ...]], Template] = {}
        self._seen: set[tuple[int, int, tuple[Attr, ...]]] = set()
        self._forms: dict[tuple[str, ...], Template] = {}

    def batch(self, packet_id: int, told: Decision) -> bytes:
        """One verdict for everything up to an id."""
        template = self._template(MessageType.VERDICT_BATCH, told)
        if template is None:
            return encode([self._message(MessageType.VERDICT_BATCH, packet_id, told)])
        return template.pack(packet_id, packet_id)

    def single(self, packet_id: int, told: Decision) -> bytes:
        """One verdict for one packet."""
        template = self._templates.get((MessageType.VERDICT, told.code, told.attributes))
        if template is None:
            template = self._template(MessageType.VERDICT, told)
        if template is None:
            if told.plain:
                return self.singles([packet_id], [told], 0)[0]
            return encode([self._message(MessageType.VERDICT, packet_id, told)])
        if told.payload is None:
            return template.pack(packet_id, packet_id)
        return template.pack_payload(packet_id, packet_id, told.payload)

    def singles(self, ids: Sequence[int], told: Sequence[Decision], most_bytes: int) -> list[bytes]:
        """A verdict for each packet, in one pass.

        Args:
          ids: packet ids, at least one.
          told: a plain decision for each, all of one form.
          most_bytes: longest piece wanted.
        """
        form = told[0].form
        template = self._forms.get(form)
        if template is None:
            template = self._forms[form] = Template(self._message(MessageType.VERDICT, 0, told[0]))
        columns = _columns(told)
        step = max(1, most_bytes // template.size)
        pieces = []
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            codes, *values = [column[part] for column in columns]
            pieces.append(
                template.pack_many(ids[part], codes, dict(zip(form, values, strict=True)))
            )
        return pieces

    def _template(self, operation: MessageType, told: Decision) -> Template | None:
        """The template of this kind of verdict, None where it was not seen before."""
        key = operation, told.code, told.attributes
        template = self._templates.get(key)
        if template is None:
            if key not in self._seen:
                if len(self._seen) >= _SEEN_KEPT:
                    self._seen.clear()
                self._seen.add(key)
                return None
            if len(self._templates) >= _TEMPLATES_KEPT:
                self._templates.clear()
            template = self._templates[key] = Template(
                self._message(operation, 0, told._replace(payload=None))
            )
        return template

    def _message(self, operation: MessageType, packet_id: int, told: Decision) -> Message:
        header = attr(NFQA, "verdict_hdr", {"verdict": told.code, "id": packet_id})
        attributes = (header, *told.attributes)
        if told.payload is not None:
            attributes += (attr(NFQA, "payload", told.payload),)
        number = self._queue_number
        return Message(operation, MessageFlags.REQUEST, packet_id, 0, 0, 0, number, attributes)


def _columns(told: Sequence[Decision]) -> list[list[int]]:
    """The codes of plain decisions of one form, and the values of each of their attributes."""
    first, count = told[0], len(told)
    if told.count(first) == count:
        return [[value] * count for value in (first.code, *first.values)]
    return [
        [decision.code for decision in told],
        *([decision.values[place] for decision in told] for place in range(len(first.form))),
    ]
