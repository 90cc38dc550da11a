"""The records of a capture, in columns: many at a time where they stand in a row.

A record is a few values, but making one object for each costs more than finding them in the file.
So packets of known kinds leave in columns as long as nothing is odd; others one by one.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Final, NamedTuple

from trionfq._capture_compression import plain
from trionfq._capture_record import (
    COOKED_BYTES,
    Cooked,
    Record,
    byte_order,
    direction_of,
    read_cooked_header,
)
from trionfq._capture_stream import ForwardReader, Interface, Remark, Tally
from trionfq._errors import CaptureError
from trionfq._link_types import link_type_text
from trionfq._notes import Note, read_note
from trionfq._pcap import PcapReader, file_order
from trionfq._pcapng import PcapngReader, Section
from trionfq.schema.pcapng import BlockType, LinkType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trionfq._capture_stream import CapturedPacket
    from trionfq.schema import Direction, Order

OTHER_LINK_TYPE: Final = "packet of link type "
"""What the kinds of packets begin with that are passed over for their link type."""

_MAGIC_BYTES: Final = 4
_PCAPNG_MAGIC: Final = BlockType.SECTION_HEADER.to_bytes(_MAGIC_BYTES, "big")
_COOKED_KEPT: Final = 64
_MAX_NAMES: Final = 1 << 16


class Columns(NamedTuple):
    """Records in a row; see `Record` for what each member holds."""

    times: Sequence[int]
    directions: Sequence[Direction | None]
    datagrams: Sequence[bytes]
    notes: Sequence[tuple[Note, ...]]


def file_reader(source: ForwardReader, tally: Tally, front: int = 0) -> PcapngReader | PcapReader:
    """The reader of a pcapng or classic pcap stream, be it compressed or not.

    Args:
      source: the file.
      tally: counts what is skipped.
      front: as for `PcapngReader`.

    Raises:
      CaptureError: it is neither.
    """
    source = plain(source)
    have = source.available(_MAGIC_BYTES)
    magic = source.buffer[:_MAGIC_BYTES]
    if have < _MAGIC_BYTES and source.broken:
        raise source.cut(_MAGIC_BYTES, have, "file")
    if magic == _PCAPNG_MAGIC:
        return PcapngReader(source, tally, front)
    order = file_order(magic)
    if order is not None:
        return PcapReader(source, order)
    raise CaptureError(
        f"expected a pcapng or pcap file, got {magic.hex(' ') or 'an empty file'}", offset=0
    )


class ColumnReader:
    """An iterator of a capture's records in columns, in constant memory.

    What its attributes tell is never ahead of the records that were given.

    Args:
      stream: the file.
      tally: what counts what is passed over, a new one if None.

    Attributes:
      tally: counts what was passed over.
      order: see `Capture.order`.
      names: interface names by index.

    Raises:
      CaptureError: the stream is no capture; or, while iterating, it is malformed.
    """

    def __init__(self, stream: IO[bytes], tally: Tally | None = None) -> None:
        self.tally = Tally() if tally is None else tally
        self.order: Order | None = None
        self.names: dict[int, str] = {}
        self._file = file_reader(ForwardReader(stream), self.tally, COOKED_BYTES)
        self._section: Section | None = None
        self._cooked: dict[bytes, Cooked] = {}
        self._columns = self._read()

    def __iter__(self) -> Iterator[Columns]:
        return self._columns

    @property
    def section(self) -> Section | None:
        """The present section, None in a classic pcap, or before the first."""
        return self._file.section if isinstance(self._file, PcapngReader) else None

    def _read(self) -> Iterator[Columns]:
        many = self._file if isinstance(self._file, PcapngReader) else None
        where: Interface | None = None
        is_netlink = False
        packets = iter(self._file)
        while True:
            run = many.run() if many is not None else None
            if run is not None:
                yield Columns(*run, [()] * len(run[0]))
            packet = next(packets, None)
            if packet is None:
                return
            if isinstance(packet, Remark):
                yield _alone(Record(packet.time_ns, None, b"", self._notes(packet.comments)))
                continue
            if packet.interface is not where:
                where = packet.interface
                is_netlink = where.link_type == LinkType.NETLINK
                self._look_for_section()
            if not is_netlink:
                self.tally.add(f"packet of {link_type_text(packet.interface.link_type)}")
                continue
            record = self._record(packet)
            if record is not None:
                yield _alone(record)

    def _record(self, packet: CapturedPacket) -> Record | None:
        """The record of a netlink packet, None where it is none of ours."""
        time_ns, _interface, data, original, flags, comments = packet
        if original > len(data):
            self.tally.add("datagram cut by the snap length")
            return None
        header = data[:COOKED_BYTES]
        cooked = self._cooked.get(header) or self._cooked_header(header)
        if cooked.problem is not None:
            self.tally.add(cooked.problem)
            return None
        datagram = data[COOKED_BYTES:]
        if self.order is None:
            self.order = byte_order(datagram)
        direction = direction_of(flags, cooked, b"", None)
        if direction is None:
            direction = direction_of(flags, cooked, datagram, self.order)
        elif not comments and self.order is not None and isinstance(self._file, PcapngReader):
            # From here on others of its kind need no look.
            self._file.learn(direction)
        return Record(time_ns, direction, datagram, self._notes(comments) if comments else ())

    def _look_for_section(self) -> None:
        if self.section is not self._section:
            self._section = self.section
            self.order = None

    def _cooked_header(self, header: bytes) -> Cooked:
        cooked = read_cooked_header(header)
        if len(self._cooked) < _COOKED_KEPT:
            self._cooked[header] = cooked
        return cooked

    def _notes(self, comments: Iterable[str]) -> tuple[Note, ...]:
        notes = tuple(read_note(comment) for comment in comments)
        for note in notes:
            if note.kind == "interface" and len(self.names) < _MAX_NAMES:
                index, name = note.values.get("index"), note.values.get("name")
                if isinstance(index, int) and isinstance(name, str):
                    self.names[index] = name
        return notes


def _alone(record: Record) -> Columns:
    time_ns, direction, datagram, notes = record
    return Columns((time_ns,), (direction,), (datagram,), (notes,))
