"""The transcript of a recording: its packets, paired with the verdicts that stand in it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from trionfq._capture_record import byte_order
from trionfq._codec import PacketReader, decode
from trionfq._errors import RemoteProtocolError
from trionfq._transcript import Transcript
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq._capture_record import Record
    from trionfq._transcript import Outcome
    from trionfq.schema import Order


@cache
def _reader(order: Order) -> PacketReader:
    """A reader for rare use: one takes 10 ms to derive."""
    return PacketReader(order=order)


def transcript(records: Iterable[Record], *, queue: int | None = None) -> list[Outcome]:
    """What became of each packet of a recording, in order of arrival.

    Packets are paired with the verdicts and batches of verdicts that the program sent, as the
    kernel pairs them. A packet whose message contradicts the schema counts if its id can be read
    and its queue is known.

    Args:
      records: a capture, or records of one's own.
      queue: only packets of this queue.

    Raises:
      RemoteProtocolError: any other datagram contradicts the schema.
      CaptureError: as reading the capture.
    """
    found = Transcript()
    for time_ns, direction, datagram, _notes in records:
        if not datagram:
            continue
        order = byte_order(datagram) or HOST_ORDER
        try:
            messages = decode(datagram, order=order)
        except RemoteProtocolError:
            # The program may have answered a packet whose message it could not read either.
            numbers = found.queues() if queue is None else [queue]
            salvage = _reader(order).salvage_id
            ids = {number: salvage(datagram, number) for number in numbers}
            known = [(number, each) for number, each in ids.items() if each is not None]
            if direction is Direction.TO_KERNEL or not known:
                raise
            found.arrived(*known[0], time_ns)
            continue
        for message in messages:
            found.seen(message, direction, time_ns)
    return [each for each in found.outcomes() if queue is None or each.queue == queue]
