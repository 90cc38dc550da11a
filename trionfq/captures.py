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

from trionfq._capture_bindings import Binding
from trionfq._capture_columns import ColumnReader, Columns
from trionfq._capture_reader import Capture, open_capture, read_packets
from trionfq._capture_record import Record, byte_order
from trionfq._capture_stream import CapturedPacket, Interface, Remark, Tally
from trionfq._capture_writer import CaptureWriter, create_capture
from trionfq._compare import Comparison, Difference, compare
from trionfq._notes import KINDS, Note
from trionfq._packet_source import FoundPacket, PacketSource
from trionfq._pcapng import Section
from trionfq._queue_source import QueueSource, Survey, survey
from trionfq._record_source import RecordSource
from trionfq._transcript import Outcome
from trionfq._transcript_file import (
    read_transcript,
    transcript_digest,
    transcript_lines,
    write_transcript,
)
from trionfq._transcript_read import transcript

__all__ = [
    "KINDS",
    "Binding",
    "Capture",
    "CaptureWriter",
    "CapturedPacket",
    "ColumnReader",
    "Columns",
    "Comparison",
    "Difference",
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
    "compare",
    "create_capture",
    "open_capture",
    "read_packets",
    "read_transcript",
    "survey",
    "transcript",
    "transcript_digest",
    "transcript_lines",
    "write_transcript",
]
