"""Verdicts as messages: each kind of verdict is encoded once, and then filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionfq._codec import Template
from trionfq.schema import Message, attr
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA, MessageType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionfq._verdict import Decision
    from trionfq.schema import Attr

# Marks may differ for every packet; a table that is full starts anew.
_TEMPLATES_KEPT = 256


class VerdictWriter:
    """Writes the verdicts of one queue.

    A message's sequence number is its packet id, so that an error names its packet.

    Args:
      queue_number: the queue.
    """

    def __init__(self, queue_number: int) -> None:
        self._queue_number = queue_number
        self._templates: dict[tuple[int, int, tuple[Attr, ...]], Template] = {}

    def batch(self, packet_id: int, told: Decision) -> bytes:
        """One verdict for everything up to an id."""
        return self._template(MessageType.VERDICT_BATCH, told).pack(packet_id, packet_id)

    def single(self, packet_id: int, told: Decision) -> bytes:
        """One verdict for one packet."""
        template = self._template(MessageType.VERDICT, told)
        if told.payload is None:
            return template.pack(packet_id, packet_id)
        return template.pack_payload(packet_id, packet_id, told.payload)

    def singles(
        self, ids: Sequence[int], codes: Sequence[int], like: Decision, most_bytes: int
    ) -> list[bytes]:
        """A verdict for each packet, in one pass.

        Args:
          ids: packet ids.
          codes: a verdict for each.
          like: a plain decision whose changes all of them share.
          most_bytes: longest piece wanted.
        """
        template = self._template(MessageType.VERDICT, like)
        step = max(1, most_bytes // template.size)
        return [
            template.pack_many(ids[start : start + step], codes[start : start + step])
            for start in range(0, len(ids), step)
        ]

    def _template(self, operation: MessageType, told: Decision) -> Template:
        key = operation, told.code, told.attributes
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _TEMPLATES_KEPT:
                self._templates.clear()
            header = attr(NFQA, "verdict_hdr", {"verdict": told.code, "id": 0})
            attributes = (header, *told.attributes)
            sample = Message(
                operation, MessageFlags.REQUEST, 0, 0, 0, 0, self._queue_number, attributes
            )
            template = self._templates[key] = Template(sample)
        return template
