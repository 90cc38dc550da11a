"""Reading captures: the packets of any capture file, and the records of ours."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Final

from trionfq._capture_record import (
    COOKED_BYTES,
    Cooked,
    Record,
    byte_order,
    direction_of,
    make_record,
    read_cooked_header,
)
from trionfq._capture_stream import CapturedPacket, ForwardReader, Interface, Remark, Tally
from trionfq._errors import CaptureError
from trionfq._notes import Note, read_note
from trionfq._pcap import PcapReader, file_order
from trionfq._pcapng import PcapngReader, Section
from trionfq.schema.pcapng import BlockType, LinkType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from trionfq.schema import Order

_MAGIC_BYTES: Final = 4
_PCAPNG_MAGIC: Final = BlockType.SECTION_HEADER.to_bytes(_MAGIC_BYTES, "big")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_COOKED_KEPT: Final = 64
_MAX_NAMES: Final = 1 << 16


def read_packets(stream: IO[bytes], tally: Tally) -> Iterator[CapturedPacket | Remark]:
    """The packets of a pcapng or classic pcap stream, of whatever link type.

    Raises:
      CaptureError: at once where it is neither; while iterating where it is malformed.
    """
    return iter(_file_reader(ForwardReader(stream), tally))


def _file_reader(source: ForwardReader, tally: Tally) -> PcapngReader | PcapReader:
    source.available(_MAGIC_BYTES)
    magic = source.buffer[:_MAGIC_BYTES]
    if magic == _PCAPNG_MAGIC:
        return PcapngReader(source, tally)
    order = file_order(magic)
    if order is not None:
        return PcapReader(source, order)
    if magic.startswith(_GZIP_MAGIC):
        raise CaptureError("a gzip file: give gzip.open(path, 'rb') instead of the path", offset=0)
    raise CaptureError(
        f"expected a pcapng or pcap file, got {magic.hex(' ') or 'an empty file'}", offset=0
    )


class Capture:
    """An open capture: an iterator of its records, in constant memory. Made by `open_capture`.

    A file that is cut off gives all whole records, then a CaptureError.
    """

    def __init__(self, stream: IO[bytes], *, owned: bool) -> None:
        self._stream = stream
        self._owned = owned
        self._tally = Tally()
        self._file = _file_reader(ForwardReader(stream), self._tally)
        self._section: Section | None = None
        self._order: Order | None = None
        self._names: dict[int, str] = {}
        self._cooked: dict[bytes, Cooked] = {}
        self._records = self._read()

    @property
    def order(self) -> Order | None:
        """Byte order of the recorded host's netlink headers, None before the first datagram.

        Found anew in each section of the file.
        """
        return self._order

    @property
    def section(self) -> Section | None:
        """What the present section says of itself; None in a classic pcap, or before the first."""
        return self._file.section if isinstance(self._file, PcapngReader) else None

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many of each kind were passed over so far: link types, blocks, options, cut ones."""
        return self._tally.counts()

    @property
    def interface_names(self) -> Mapping[int, str]:
        """Names of network interfaces by index, as far as notes have told them."""
        return self._names

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        return next(self._records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, unless the stream was the caller's; harmless when repeated."""
        if self._owned:
            self._stream.close()

    def _read(self) -> Iterator[Record]:
        where: Interface | None = None
        is_netlink = False
        for packet in self._file:
            if isinstance(packet, Remark):
                yield Record(packet.time_ns, None, b"", self._notes(packet.comments))
                continue
            time_ns, interface, data, original, flags, comments = packet
            if interface is not where:
                where = interface
                is_netlink = interface.link_type == LinkType.NETLINK
                self._look_for_section()
            if not is_netlink:
                self._tally.add(_link_type_name(interface.link_type))
                continue
            if original > len(data):
                self._tally.add("datagram cut by the snap length")
                continue
            header = data[:COOKED_BYTES]
            cooked = self._cooked.get(header) or self._cooked_header(header)
            if cooked.problem is not None:
                self._tally.add(cooked.problem)
                continue
            datagram = data[COOKED_BYTES:]
            if self._order is None:
                self._order = byte_order(datagram)
            direction = direction_of(flags, cooked, datagram, self._order)
            notes = self._notes(comments) if comments else ()
            yield make_record((time_ns, direction, datagram, notes))

    def _look_for_section(self) -> None:
        if self.section is not self._section:
            self._section = self.section
            self._order = None

    def _cooked_header(self, header: bytes) -> Cooked:
        cooked = read_cooked_header(header)
        if len(self._cooked) < _COOKED_KEPT:
            self._cooked[header] = cooked
        return cooked

    def _notes(self, comments: Iterable[str]) -> tuple[Note, ...]:
        notes = tuple(read_note(comment) for comment in comments)
        for note in notes:
            if note.kind == "interface" and len(self._names) < _MAX_NAMES:
                index, name = note.values.get("index"), note.values.get("name")
                if isinstance(index, int) and isinstance(name, str):
                    self._names[index] = name
        return notes


def _link_type_name(number: int) -> str:
    known = {int(each): each.name for each in LinkType}
    return f"packet of link type {number}" + (f" ({known[number]})" if number in known else "")


def open_capture(source: str | os.PathLike[str] | IO[bytes]) -> Capture:
    """Open a capture file and read on demand.

    Args:
      source: a path, or a binary stream, which stays the caller's to close.

    Raises:
      CaptureError: it is neither pcapng nor pcap. What is wrong further on is raised while reading.
      OSError: the file cannot be opened.
    """
    if not isinstance(source, str | os.PathLike):
        return Capture(source, owned=False)
    stream = open(source, "rb", buffering=0)  # noqa: SIM115 - the capture closes it
    try:
        return Capture(stream, owned=True)
    except BaseException:
        stream.close()
        raise
