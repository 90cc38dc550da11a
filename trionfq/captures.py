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

import os
import platform
import stat
from functools import cache, partial
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from trionfq._capture_stream import CapturedPacket, ForwardReader, Interface, Remark, Tally
from trionfq._codec import PacketReader, decode, derive
from trionfq._codec_derive import run_of
from trionfq._errors import CaptureError, RemoteProtocolError
from trionfq._notes import KINDS, Note, note_text, read_note
from trionfq._pcap import PcapReader, file_order
from trionfq._pcapng import PcapngReader, Section
from trionfq._pcapng_writer import PcapngWriter
from trionfq._transcript import Outcome, Transcript
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.netlink import COOKED_HEADER, HEADER, Type
from trionfq.schema.nfqueue import OPERATIONS, MessageType
from trionfq.schema.pcapng import BlockType, LinkType, PacketFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from trionfq.schema import Order

ARPHRD_NETLINK: Final = 824
NETLINK_NETFILTER: Final = 12
_MAGIC_BYTES: Final = 4
_PCAPNG_MAGIC: Final = BlockType.SECTION_HEADER.to_bytes(_MAGIC_BYTES, "big")
_GZIP_MAGIC: Final = b"\x1f\x8b"

_DIRECTION_BITS: Final = int(PacketFlags.INBOUND | PacketFlags.OUTBOUND)
_FLAGS: Final[Mapping[Direction | None, int]] = {
    Direction.FROM_KERNEL: int(PacketFlags.INBOUND),
    Direction.TO_KERNEL: int(PacketFlags.OUTBOUND),
    None: 0,
}
_BY_FLAGS: Final = {flags: direction for direction, flags in _FLAGS.items() if direction}
# include/uapi/linux/if_packet.h. Other values say nothing of the direction: what a packet socket
# sees of an nlmon device is PACKET_OUTGOING, 4, either way.
_PACKET_OUTGOING: Final = 4
_PACKET_TYPES: Final[Mapping[Direction | None, int]] = {
    Direction.FROM_KERNEL: 6,
    Direction.TO_KERNEL: 7,
    None: _PACKET_OUTGOING,
}
_BY_PACKET_TYPE: Final = {number: way for way, number in _PACKET_TYPES.items() if way}
_BY_MESSAGE_TYPE: Final[Mapping[int, Direction]] = {
    Type.ERROR: Direction.FROM_KERNEL,
    Type.DONE: Direction.FROM_KERNEL,
    **{MessageType[each.name.upper()]: each.direction for each in OPERATIONS},
}

_ORDERS: Final[tuple[Order, ...]] = ("little", "big")
_COOKED: Final = derive(COOKED_HEADER)
_COOKED_BYTES: Final = _COOKED.size or 0
_COOKED_KEPT: Final = 64
_HEADERS: Final = {order: run_of(HEADER, order, "nlmsghdr") for order in _ORDERS}
_HEADER_BYTES: Final = _HEADERS["little"].size
_LENGTH: Final = HEADER.names.index("len")
_TYPE: Final = HEADER.names.index("type")
# This host's first: most captures are of one like it.
_UNPACK_HEADER: Final = {
    order: _HEADERS[order].unpack_from for order in sorted(_ORDERS, key=HOST_ORDER.__ne__)
}
_MAX_NAMES: Final = 1 << 16
_BUFFER_BYTES: Final = 1 << 16
_MODE: Final = 0o600


class Record(NamedTuple):
    """One datagram of a capture, with what was noted when it passed.

    Attributes:
      time_ns: nanoseconds since the epoch.
      direction: who sent it; None where the file does not tell and the message leaves it open.
      datagram: the bytes; empty in a record that holds nothing but notes.
      notes: what else was noted at that time.
    """

    time_ns: int
    direction: Direction | None
    datagram: bytes
    notes: tuple[Note, ...] = ()


# As Record(...), without the generated __new__.
_make_record: Callable[[tuple[Any, ...]], Record] = partial(tuple.__new__, Record)


def byte_order(datagram: bytes) -> Order | None:
    """The byte order of the host whose netlink message this is, None where it fits neither.

    The length of the first message (nlmsg_len) tells: read the wrong way round it is longer than
    any datagram.
    """
    size = len(datagram)
    if size >= _HEADER_BYTES:
        for order, unpack in _UNPACK_HEADER.items():
            if _HEADER_BYTES <= unpack(datagram)[_LENGTH] <= size:
                return order
    return None


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
        self._cooked: dict[bytes, tuple[Direction | None]] = {}
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
            header = data[:_COOKED_BYTES]
            known = self._cooked.get(header) or self._cooked_header(header)
            if known is None:
                continue
            datagram = data[_COOKED_BYTES:]
            if self._order is None:
                self._order = byte_order(datagram)
            direction = _BY_FLAGS.get(flags & _DIRECTION_BITS, known[0])
            if direction is None:
                direction = self._inferred(datagram)
            notes = self._notes(comments) if comments else ()
            yield _make_record((time_ns, direction, datagram, notes))

    def _look_for_section(self) -> None:
        if self.section is not self._section:
            self._section = self.section
            self._order = None

    def _cooked_header(self, header: bytes) -> tuple[Direction | None] | None:
        """The direction that a cooked header tells; None where the packet is not for us."""
        if len(header) < _COOKED_BYTES:
            self._tally.add("packet without a whole cooked header")
            return None
        fields = _COOKED.read(header)
        if fields["arphrd_type"] != ARPHRD_NETLINK:
            self._tally.add(f"cooked header of hardware type {fields['arphrd_type']}")
            return None
        if fields["family"] != NETLINK_NETFILTER:
            self._tally.add(f"datagram of netlink family {fields['family']}")
            return None
        known = (_BY_PACKET_TYPE.get(fields["packet_type"]),)
        if len(self._cooked) < _COOKED_KEPT:
            self._cooked[header] = known
        return known

    def _inferred(self, datagram: bytes) -> Direction | None:
        """Who sends messages like the first of a datagram."""
        if len(datagram) < _HEADER_BYTES:
            return None
        unpack = _UNPACK_HEADER[self._order or HOST_ORDER]
        return _BY_MESSAGE_TYPE.get(unpack(datagram)[_TYPE])

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


class CaptureWriter:
    """Writes records as pcapng. Made by `create_capture`, or around a stream of one's own.

    Records are buffered: `flush` or `close` brings the rest into the file. After an OSError
    nothing more is written; the same error is raised again.

    Args:
      stream: where the file goes; a binary stream.
      order: byte order of the file, the host's by default.
      system: operating system and kernel release that were recorded (shb_os).
      application: the recording program (shb_userappl).

    Raises:
      OSError: the stream cannot be written.
    """

    def __init__(
        self,
        stream: IO[bytes],
        *,
        order: Order = HOST_ORDER,
        system: str | None = None,
        application: str = "trionfq",
    ) -> None:
        facts = {
            "shb_hardware": platform.machine(),
            "shb_os": f"{platform.system()} {platform.release()}" if system is None else system,
            "shb_userappl": application,
        }
        self._stream = stream
        self._blocks = PcapngWriter(
            order=order, link_type=LinkType.NETLINK, name="nfqueue", facts=facts
        )
        self._cooked = {direction: _cooked_header(direction) for direction in _PACKET_TYPES}
        self._pending = [self._blocks.opening]
        self._pending_bytes = 0
        self._failure: OSError | None = None
        self.flush()

    def write(self, record: Record) -> None:
        """Write a record; one without a datagram must have notes.

        Raises:
          CaptureError: the record cannot be written: a time before 1970 or after 2554, a note of
            more than 65535 bytes.
          ValueError: neither datagram nor notes, or a note that does not become a text.
          OSError: the stream cannot be written.
        """
        if self._failure is not None:
            raise self._failure
        time_ns, direction, datagram, notes = record
        comments = [note_text(note) for note in notes] if notes else ()
        if datagram or direction is not None:
            data = self._cooked[direction] + datagram
            block = self._blocks.packet(time_ns, data, _FLAGS[direction], comments)
        elif comments:
            block = self._blocks.remark(time_ns, comments)
        else:
            raise ValueError("a record needs a datagram or notes")
        self._pending.append(block)
        self._pending_bytes += len(block)
        if self._pending_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Give what is buffered to the stream.

        Raises:
          OSError: the stream cannot be written.
        """
        if self._failure is not None:
            raise self._failure
        if self._pending:
            blocks = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            view = memoryview(blocks)
            try:
                while view:
                    # An unbuffered file may take a part only.
                    view = view[self._stream.write(view) :]
                self._stream.flush()
            except OSError as error:
                # Where the file broke off, no block may follow: it would be read as a part of it.
                self._failure = error
                raise

    def close(self) -> None:
        """Flush, and close the stream even where that fails; harmless when repeated.

        Raises:
          OSError: the stream cannot be written.
        """
        try:
            if not self._stream.closed:
                self.flush()
        finally:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _cooked_header(direction: Direction | None) -> bytes:
    return _COOKED.write(
        {
            "packet_type": _PACKET_TYPES[direction],
            "arphrd_type": ARPHRD_NETLINK,
            "address_length": 0,
            "address": bytes(8),
            "family": NETLINK_NETFILTER,
        }
    )


def create_capture(path: str | os.PathLike[str], *, overwrite: bool = False) -> CaptureWriter:
    """Create a capture file that only its owner may read (mode 0600): it holds packets' contents.

    Args:
      path: where.
      overwrite: empty a file that is there, and take it away from other readers (mode 0600, too).

    Raises:
      FileExistsError: the file is there, and `overwrite` is not given.
      OSError: it cannot be created or written.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), _MODE)
    stream = os.fdopen(descriptor, "wb", buffering=0)
    try:
        if overwrite and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.chmod(path, _MODE)
        return CaptureWriter(stream)
    except BaseException:
        stream.close()
        raise


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
    "Capture",
    "CaptureWriter",
    "CapturedPacket",
    "Interface",
    "Note",
    "Outcome",
    "Record",
    "Remark",
    "Section",
    "Tally",
    "byte_order",
    "create_capture",
    "open_capture",
    "read_packets",
    "transcript",
]
