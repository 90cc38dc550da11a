"""Reading pcapng: blocks to packets, by the layouts of `trionfq.schema.pcapng` alone.

What must be kept apart: byte order belongs to a section, link type and unit of time to an
interface of that section.

Three ways lead from a packet's block to its packet. The long one reads any block, and says what is
wrong with it. The short one, for enhanced packet blocks, reads the fixed fields in place and looks
up the option list among those that it has met: a file's packets have few different ones. Many
packets of one kind are read in one go (`PcapngReader.run`). Whatever is odd about a block sends it
the longer way.

Source: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trionfq._capture_stream import (
    MAX_RECORD_BYTES,
    CapturedPacket,
    ForwardReader,
    Interface,
    Remark,
    Tally,
)
from trionfq._errors import CaptureError, RemoteProtocolError
from trionfq._pcapng_layouts import (
    COMMENT,
    HEAD_BYTES,
    HEADER_BYTES,
    LAYOUTS,
    LEAST_BYTES,
    TRAILER_BYTES,
    USED,
    Layouts,
)
from trionfq._pcapng_quick import QuickReader, nanoseconds
from trionfq.schema.pcapng import BLOCKS, IDB_OPTIONS, BlockType, section_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trionfq.schema import Order

_MAJOR_VERSION: Final = 1
# Bounds the memory that a crafted section can take; an interface takes 20 bytes of file.
_MAX_INTERFACES: Final = 1 << 12
_NS: Final = 10**9
_NS_DIGITS: Final = 9
# if_tsresol: microseconds where the option is absent, bit 7 for a power of 2.
_DEFAULT_RESOLUTION: Final = 6
_BINARY: Final = 0x80
_MAGIC_BYTES: Final = 4
# Option lists that are remembered, and their length at most, in bytes.
_LISTS_KEPT: Final = 256
_LIST_BYTES: Final = 256
# What the commonest of the blocks that are passed over is called; others go by their number.
_BLOCK_NAMES: Final[Mapping[int, str]] = {
    4: "name resolution block",
    9: "systemd journal block",
    10: "decryption secrets block",
    0xBAD: "custom block",
    0x40000BAD: "custom block",
}


_ENHANCED_PACKET: Final = int(BlockType.ENHANCED_PACKET)
# As CapturedPacket(...), without the generated __new__.
_make_packet: Callable[[tuple[Any, ...]], CapturedPacket] = partial(tuple.__new__, CapturedPacket)


class Section(NamedTuple):
    """What a section header says.

    Attributes:
      order: byte order of the section, which is that of the machine that wrote it.
      hardware: shb_hardware, ``""`` where absent.
      system: shb_os: operating system and kernel release, ``""`` where absent.
      application: shb_userappl: the program that wrote it, ``""`` where absent.
      comments: opt_comment options.
    """

    order: Order
    hardware: str = ""
    system: str = ""
    application: str = ""
    comments: tuple[str, ...] = ()


class _Block(NamedTuple):
    """A block that was read whole."""

    type: int
    offset: int
    raw: bytes
    fields: dict[str, Any]


class PcapngReader:
    """The packets and remarks of a pcapng stream, in order.

    Attributes:
      section: the section that is being read, None before the first.

    Args:
      source: the file.
      tally: counts what is skipped.
      front: how many bytes of data belong to a packet's kind, see `run`.
    """

    def __init__(self, source: ForwardReader, tally: Tally, front: int = 0) -> None:
        self.section: Section | None = None
        self._source = source
        self._tally = tally
        self._many = QuickReader(source, front)
        # Length of the block that was read last, 0 where that was not by the short way.
        self._block_bytes = 0
        self._use(LAYOUTS["little"])
        self._interfaces: list[Interface] = []
        self._last_ns = 0
        # Why the blocks of the present section cannot be understood, None where they can.
        self._foreign: str | None = None
        self._lists: dict[bytes, tuple[int, tuple[str, ...]]] = {}
        self._readers: Mapping[int, Callable[[_Block], CapturedPacket | Remark | None]]
        self._readers = {
            BlockType.SECTION_HEADER: self._section_header,
            BlockType.INTERFACE_DESCRIPTION: self._interface_description,
            BlockType.ENHANCED_PACKET: self._enhanced_packet,
            BlockType.OBSOLETE_PACKET: self._obsolete_packet,
            BlockType.SIMPLE_PACKET: self._simple_packet,
            BlockType.INTERFACE_STATISTICS: self._statistics,
        }

    def _use(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._unpack_head = layouts.packet_head.unpack_from

    def __iter__(self) -> Iterator[CapturedPacket | Remark]:
        """Read on.

        Raises:
          CaptureError: the stream ends within a block, or a block is malformed.
        """
        source = self._source
        while True:
            packet = self._quick()
            if packet is not None:
                yield packet
                continue
            if not source.available(1):
                return
            offset = source.offset
            block_type, length = self._block_header(offset)
            reader = self._readers.get(block_type)
            if reader is None or (self._foreign and block_type != BlockType.SECTION_HEADER):
                self._skip(block_type, length)
                continue
            name = BLOCKS[block_type].name
            if length > MAX_RECORD_BYTES:
                raise CaptureError(
                    f"{name}: expected at most {MAX_RECORD_BYTES} bytes, got {length}",
                    offset=offset,
                )
            block = source.take(length, name)
            self._block_bytes = 0
            self._check_trailer(block[-TRAILER_BYTES:], length, source.offset)
            try:
                fields = self._layouts.bodies[block_type].read(
                    block, HEADER_BYTES, length - TRAILER_BYTES
                )
            except RemoteProtocolError as error:
                raise CaptureError(f"{name}: {error}", offset=offset + error.offset) from None
            found = reader(_Block(block_type, offset, block, fields))
            if found is not None:
                yield found

    def _quick(self) -> CapturedPacket | None:
        """The packet of an ordinary enhanced packet block, None where the long way must decide."""
        source = self._source
        have = source.available(HEAD_BYTES)
        if have < HEAD_BYTES:
            return None
        at = source.at
        kind, length, index, high, low, captured, original = self._unpack_head(source.buffer, at)
        if kind != _ENHANCED_PACKET or not HEAD_BYTES + captured < length <= MAX_RECORD_BYTES:
            return None
        if have < length:
            if source.available(length) < length:
                return None
            at = source.at
        buffer = source.buffer
        end = at + length
        trailer_at = end - TRAILER_BYTES
        data_at = at + HEAD_BYTES
        data_end = data_at + captured
        options_at = data_end + -captured % 4
        options = self._lists.get(buffer[options_at:trailer_at])
        if (
            options is None
            or options_at > trailer_at
            or index >= len(self._interfaces)
            or int.from_bytes(buffer[trailer_at:end], self._layouts.order) != length
        ):
            return None
        source.at = end
        self._block_bytes = length
        interface = self._interfaces[index]
        time_ns = (high << 32 | low) * interface.multiplier
        if interface.divisor != 1:
            time_ns //= interface.divisor
        time_ns += interface.offset_ns
        self._last_ns = time_ns
        return _make_packet((time_ns, interface, buffer[data_at:data_end], original, *options))

    @property
    def order(self) -> Order:
        """Byte order of the present section."""
        return self._layouts.order

    def learn(self, told: Any) -> None:
        """Let `run` give packets of the same kind as the one that was read last.

        Not where that was read the long way: there may be options in it that are to be counted.
        A packet that is cut, or whose comments matter, must not be learnt.

        Args:
          told: what `run` is to say of each, not None.
        """
        if self._block_bytes:
            self._many.learn(self._source.at - self._block_bytes, told)

    def run(self) -> tuple[list[int], list[Any], list[bytes]] | None:
        """Pass over packets of known kinds that wait in the buffer, None where there are none.

        Returns:
          Their times in nanoseconds, what was told of their kinds, and their data without the
          first bytes, of which `PcapngReader` was told how many.
        """
        found = self._many.run()
        if found is None:
            return None
        times = nanoseconds(found.ticks, self._interfaces[found.interface])
        self._last_ns = times[-1]
        return times, found.told, found.contents

    # -- blocks --------------------------------------------------------------------------------

    def _block_header(self, offset: int) -> tuple[int, int]:
        """Type and length of the block that comes next; a section header sets the byte order."""
        source = self._source
        have = source.available(HEADER_BYTES)
        if have < HEADER_BYTES:
            raise source.cut(HEADER_BYTES, have, "block header")
        header = self._layouts.header.read(source.buffer, source.at, source.at + HEADER_BYTES)
        if header["block_type"] == BlockType.SECTION_HEADER:
            # The number reads the same in both orders; the magic number behind the length tells.
            order = self._next_order(offset)
            if order != self._layouts.order:
                self._use(LAYOUTS[order])
                header = self._layouts.header.read(
                    source.buffer, source.at, source.at + HEADER_BYTES
                )
        elif self.section is None:
            raise CaptureError("expected a section header block", offset=offset)
        length: int = header["block_total_length"]
        if length < LEAST_BYTES or length % 4:
            raise CaptureError(
                f"block length: expected at least {LEAST_BYTES} and a multiple of 4, got {length}",
                offset=offset,
            )
        return header["block_type"], length

    def _next_order(self, offset: int) -> Order:
        source = self._source
        size = HEADER_BYTES + _MAGIC_BYTES
        have = source.available(size)
        if have < size:
            raise source.cut(size, have, "section header")
        start = source.at + HEADER_BYTES
        magic = source.buffer[start : start + _MAGIC_BYTES]
        order = section_order(magic)
        if order is None:
            raise CaptureError(
                f"section header: expected the byte-order magic, got {magic.hex()}",
                offset=offset + HEADER_BYTES,
            )
        return order

    def _check_trailer(self, trailer: bytes, length: int, end: int) -> None:
        repeated = self._layouts.trailer.read(trailer)["block_total_length"]
        if repeated != length:
            raise CaptureError(
                f"block trailer: expected the length {length} again, got {repeated}",
                offset=end - TRAILER_BYTES,
            )

    def _skip(self, block_type: int, length: int) -> None:
        name = _BLOCK_NAMES.get(block_type, f"block of type {block_type:#x}")
        self._source.skip(length - TRAILER_BYTES, name)
        trailer = self._source.take(TRAILER_BYTES, name)
        self._check_trailer(trailer, length, self._source.offset)
        self._tally.add(f"block of a {self._foreign}" if self._foreign else name)

    def _section_header(self, block: _Block) -> None:
        fields = block.fields
        version = fields["major_version"]
        self._foreign = f"section of version {version}" if version != _MAJOR_VERSION else None
        if self._foreign is not None:
            self._tally.add(self._foreign)
        known, comments = self._options(block)
        self.section = Section(
            self._layouts.order,
            _text(known.get("shb_hardware", b"")),
            _text(known.get("shb_os", b"")),
            _text(known.get("shb_userappl", b"")),
            comments,
        )
        self._interfaces.clear()
        self._lists.clear()
        self._many.use(self._layouts)
        self._last_ns = 0

    def _interface_description(self, block: _Block) -> None:
        if len(self._interfaces) >= _MAX_INTERFACES:
            raise CaptureError(
                f"interface description: expected at most {_MAX_INTERFACES} in a section",
                offset=block.offset,
            )
        fields = block.fields
        known, comments = self._options(block)
        for _comment in comments:
            self._tally.add(f"option {COMMENT} of {IDB_OPTIONS.name}")
        multiplier, divisor = _unit(known.get("if_tsresol", _DEFAULT_RESOLUTION))
        self._interfaces.append(
            Interface(
                fields["linktype"],
                fields["snaplen"],
                _text(known.get("if_name", b"")),
                multiplier,
                divisor,
                known.get("if_tsoffset", 0) * _NS,
                len(self._interfaces),
            )
        )

    def _enhanced_packet(self, block: _Block) -> CapturedPacket:
        fields = block.fields
        interface = self._interface(fields["interface_id"], block.offset)
        known, comments = self._options(block)
        flags = known.get("epb_flags", 0)
        if len(known) + len(comments) == len(fields["options"]) and len(self._lists) < _LISTS_KEPT:
            # Nothing in it has to be counted each time.
            length = fields["captured_len"]
            raw = block.raw[HEAD_BYTES + length + -length % 4 : -TRAILER_BYTES]
            if len(raw) <= _LIST_BYTES:
                self._lists[raw] = flags, comments
        return self._packet(fields, interface, flags, comments)

    def _obsolete_packet(self, block: _Block) -> CapturedPacket:
        fields = block.fields
        interface = self._interface(fields["interface_id"], block.offset)
        known, comments = self._options(block)
        return self._packet(fields, interface, known.get("pack_flags", 0), comments)

    def _packet(
        self,
        fields: dict[str, Any],
        interface: Interface,
        flags: int,
        comments: tuple[str, ...],
    ) -> CapturedPacket:
        time_ns = self._last_ns = _time_ns(fields, interface)
        return CapturedPacket(
            time_ns, interface, fields["data"], fields["original_len"], flags, comments
        )

    def _simple_packet(self, block: _Block) -> CapturedPacket:
        interface = self._interface(0, block.offset)
        original, data = block.fields["original_len"], block.fields["data"]
        length = min(original, interface.snap_length or original)
        if not length <= len(data) < length + 4:
            raise CaptureError(
                f"simple packet block: expected {length} bytes of data and their padding, "
                f"got {len(data)}",
                offset=block.offset,
            )
        return CapturedPacket(self._last_ns, interface, data[:length], original)

    def _statistics(self, block: _Block) -> Remark | None:
        fields = block.fields
        interface = self._interface(fields["interface_id"], block.offset)
        _, comments = self._options(block)
        if not comments:
            self._tally.add("interface statistics block")
            return None
        return Remark(_time_ns(fields, interface), comments)

    # -- parts of blocks -----------------------------------------------------------------------

    def _interface(self, index: int, offset: int) -> Interface:
        interfaces = self._interfaces
        if index >= len(interfaces):
            raise CaptureError(
                f"expected one of the section's {len(interfaces)} interfaces, got {index}",
                offset=offset,
            )
        return interfaces[index]

    def _options(self, block: _Block) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The used options of a block by name, of duplicates the first, and its comments."""
        declared, used = USED[block.type]
        values: dict[str, Any] = {}
        comments: list[str] = []
        for number, value, _flags in block.fields["options"]:
            option = declared.by_number.get(number)
            name = option.name if option is not None else None
            if name == COMMENT:
                comments.append(_text(value))
            elif name in used and name not in values:
                values[name] = value
            else:
                self._tally.add(f"option {name or number} of {declared.name}")
        return values, tuple(comments)


def _text(value: Any) -> str:
    """A UTF-8 option; bytes that are none are shown as escapes."""
    return bytes(value).decode("utf-8", "backslashreplace")


def _unit(resolution: int) -> tuple[int, int]:
    """Multiplier and divisor of an if_tsresol, see `Interface`."""
    if resolution & _BINARY:
        return _NS, 1 << (resolution & ~_BINARY)
    if resolution <= _NS_DIGITS:
        return 10 ** (_NS_DIGITS - resolution), 1
    return 1, 10 ** (resolution - _NS_DIGITS)


def _time_ns(fields: dict[str, Any], interface: Interface) -> int:
    ticks: int = fields["timestamp_high"] << 32 | fields["timestamp_low"]
    return ticks * interface.multiplier // interface.divisor + interface.offset_ns
