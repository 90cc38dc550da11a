"""Captures: datagrams with their times and directions, to and from files.

A capture is a pcapng file of link type NETLINK (253); classic pcap of that link type is read, too.
Neither privilege nor trio nor a socket is needed.

In the file a datagram stands behind a 16-byte cooked header that names the netlink family; only
NETLINK_NETFILTER (12) concerns us. The direction is in the packet's flags (epb_flags), inbound
meaning from the kernel to the program, and once more in the cooked header, where the kernel's own
netlink taps have it (PACKET_USER and PACKET_KERNEL, ``__netlink_deliver_tap_skb`` in
af_netlink.c), so that it survives a conversion to classic pcap. What is no datagram is a `Note`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from trionfq._capture_bindings import Binding
from trionfq._capture_reader import Capture, open_capture, read_packets
from trionfq._capture_record import Record, byte_order
from trionfq._capture_stream import CapturedPacket, Interface, Remark, Tally
from trionfq._capture_writer import CaptureWriter, create_capture
from trionfq._codec import PacketReader, decode
from trionfq._errors import RemoteProtocolError
from trionfq._notes import KINDS, Note
from trionfq._packet_source import FoundPacket, PacketSource
from trionfq._pcapng import Section
from trionfq._queue_source import QueueSource, Survey, survey
from trionfq._record_source import RecordSource
from trionfq._transcript import Outcome, Transcript
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER

if TYPE_CHECKING:
    from collections.abc import Iterable

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


__all__ = [
    "KINDS",
    "Binding",
    "Capture",
    "CaptureWriter",
    "CapturedPacket",
    "FoundPacket",
    "Interface",
    "Note",
    "Outcome",
    "PacketSource",
    "QueueSource",
    "Record",
    "RecordSource",
    "Remark",
    "Section",
    "Survey",
    "Tally",
    "byte_order",
    "create_capture",
    "open_capture",
    "read_packets",
    "survey",
    "transcript",
]
