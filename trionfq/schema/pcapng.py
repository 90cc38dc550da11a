"""Capture files: the pcapng blocks in use, two older ones that are read only, and classic pcap.

Source: draft-ietf-opsawg-pcapng; draft-ietf-opsawg-pcap for the classic file. Integers are in the
byte order of the section (its byte-order magic tells) or of the file (its magic tells).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

from construct import Int8ub

from ._constructs import (
    STEP,
    Coded,
    Counted,
    Fields,
    MalformedError,
    Native16,
    Native32,
    Native32s,
    Native64,
    Native64s,
    Node,
    Order,
    Raw,
    RefusedError,
    Stream,
    build_part,
    built,
    parse_exactly,
    take,
)
from ._lists import option_list
from ._records import Attribute, AttributeSet, Direction

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTE_ORDER_MAGIC = 0x1A2B3C4D


class BlockType(enum.IntEnum):
    """Numbers of the blocks in use."""

    SECTION_HEADER = 0x0A0D0D0A
    INTERFACE_DESCRIPTION = 1
    OBSOLETE_PACKET = 2
    SIMPLE_PACKET = 3
    INTERFACE_STATISTICS = 5
    ENHANCED_PACKET = 6


class LinkType(enum.IntEnum):
    """Link types that are read (LINKTYPE_*).

    What the older numbers 12 and 14 mean depends on the system; where they stand in a file, it is
    raw IP.
    """

    NULL = 0
    ETHERNET = 1
    DLT_RAW = 12
    DLT_RAW_OPENBSD = 14
    RAW = 101
    LOOP = 108
    LINUX_SLL = 113
    IPV4 = 228
    IPV6 = 229
    NFLOG = 239
    NETLINK = 253
    LINUX_SLL2 = 276


class PacketFlags(enum.IntFlag):
    """Low bits of epb_flags: the direction."""

    INBOUND = 1
    OUTBOUND = 2


_TEXT = Raw(text=True)
_STAMP = Fields(
    "high" / Native32 * "upper 32 bits of the timestamp, in units of if_tsresol",
    "low" / Native32 * "lower 32 bits",
)


def _option(number: int, name: str, declaration: Node, doc: str, unit: str = "") -> Attribute:
    return Attribute(number, name, declaration, Direction.BOTH, "", unit, doc)


def _options(name: str, *own: Attribute) -> AttributeSet:
    common = (
        _option(1, "opt_comment", _TEXT, "comment, UTF-8"),
        *own,
        _option(2988, "opt_custom", Raw(4), "enterprise number and text, may be copied"),
        _option(2989, "opt_custom_binary", Raw(4), "enterprise number and bytes, may be copied"),
        _option(19372, "opt_custom_local", Raw(4), "enterprise number and text, not to be copied"),
        _option(
            19373,
            "opt_custom_binary_local",
            Raw(4),
            "enterprise number and bytes, not to be copied",
        ),
    )
    return AttributeSet(name, "", common, "draft-ietf-opsawg-pcapng")


SHB_OPTIONS = _options(
    "section-header",
    _option(2, "shb_hardware", _TEXT, "hardware that captured"),
    _option(3, "shb_os", _TEXT, "operating system that captured"),
    _option(4, "shb_userappl", _TEXT, "program that wrote the section"),
)
IDB_OPTIONS = _options(
    "interface-description",
    _option(2, "if_name", _TEXT, "name of the interface"),
    _option(3, "if_description", _TEXT, "its description"),
    _option(4, "if_ipv4addr", Raw(8, 8), "IPv4 address and mask"),
    _option(5, "if_ipv6addr", Raw(17, 17), "IPv6 address and prefix length"),
    _option(6, "if_macaddr", Raw(6, 6), "hardware address"),
    _option(7, "if_euiaddr", Raw(8, 8), "EUI-64 address"),
    _option(8, "if_speed", Native64, "speed", "bit/s"),
    _option(9, "if_tsresol", Int8ub, "unit of timestamps: 10**-n s, or with bit 7 set 2**-n s"),
    _option(10, "if_tzone", Native32s, "time zone, obsolete"),
    _option(11, "if_filter", Raw(1), "kind of capture filter, and the filter"),
    _option(12, "if_os", _TEXT, "operating system of the interface"),
    _option(13, "if_fcslen", Int8ub, "length of the frame check sequence", "bits"),
    _option(14, "if_tsoffset", Native64s, "to be added to timestamps", "s"),
    _option(15, "if_hardware", _TEXT, "hardware of the interface"),
    _option(16, "if_txspeed", Native64, "sending speed", "bit/s"),
    _option(17, "if_rxspeed", Native64, "receiving speed", "bit/s"),
    _option(18, "if_iana_tzname", _TEXT, "time zone by name"),
)
EPB_OPTIONS = _options(
    "enhanced-packet",
    _option(2, "epb_flags", Coded(Native32, PacketFlags), "direction and link-layer facts"),
    _option(3, "epb_hash", Raw(1), "algorithm and hash of the packet"),
    _option(4, "epb_dropcount", Native64, "lost since the packet before", "packets"),
    _option(5, "epb_packetid", Native64, "identifies the packet"),
    _option(6, "epb_queue", Native32, "queue of the interface"),
    _option(7, "epb_verdict", Raw(1), "kind of verdict, and the verdict"),
)
OPB_OPTIONS = _options(
    "obsolete-packet",
    _option(2, "pack_flags", Coded(Native32, PacketFlags), "as epb_flags"),
    _option(3, "pack_hash", Raw(1), "as epb_hash"),
)
ISB_OPTIONS = _options(
    "interface-statistics",
    _option(2, "isb_starttime", _STAMP, "when the capture began"),
    _option(3, "isb_endtime", _STAMP, "when it ended"),
    _option(4, "isb_ifrecv", Native64, "received by the interface", "packets"),
    _option(5, "isb_ifdrop", Native64, "dropped by the interface", "packets"),
    _option(6, "isb_filteraccept", Native64, "accepted by the filter", "packets"),
    _option(7, "isb_osdrop", Native64, "dropped by the operating system", "packets"),
    _option(8, "isb_usrdeliv", Native64, "delivered to the program", "packets"),
)

SECTION_HEADER = Fields(
    "byte_order_magic" / Native32 * "BYTE_ORDER_MAGIC, read in the right order",
    "major_version" / Native16 * "1",
    "minor_version" / Native16 * "0",
    "section_length" / Native64s * "bytes of the section, -1 where not known",
    "options" / option_list(SHB_OPTIONS),
)
INTERFACE_DESCRIPTION = Fields(
    "linktype" / Coded(Native16, LinkType),
    "reserved" / Native16 * "0",
    "snaplen" / Native32 * "most bytes captured of a packet, 0 for no limit",
    "options" / option_list(IDB_OPTIONS),
)
ENHANCED_PACKET = Fields(
    "interface_id" / Native32 * "index of its interface description in the section",
    "timestamp_high" / Native32 * "upper 32 bits, in units of if_tsresol",
    "timestamp_low" / Native32 * "lower 32 bits",
    "captured_len" / Native32 * "length of the data in bytes",
    "original_len" / Native32 * "length of the whole packet in bytes",
    "data" / Counted("captured_len", align=4),
    "options" / option_list(EPB_OPTIONS),
)
OBSOLETE_PACKET = Fields(
    "interface_id" / Native16 * "index of its interface description in the section",
    "drops_count" / Native16 * "packets lost since the packet before",
    "timestamp_high" / Native32 * "upper 32 bits, in units of if_tsresol",
    "timestamp_low" / Native32 * "lower 32 bits",
    "captured_len" / Native32 * "length of the data in bytes",
    "original_len" / Native32 * "length of the whole packet in bytes",
    "data" / Counted("captured_len", align=4),
    "options" / option_list(OPB_OPTIONS),
)
SIMPLE_PACKET = Fields(
    "original_len" / Native32 * "length of the whole packet in bytes",
    "data" / Raw() * "as much as the snap length of interface 0 allows, then padding",
)
INTERFACE_STATISTICS = Fields(
    "interface_id" / Native32 * "index of its interface description in the section",
    "timestamp_high" / Native32 * "upper 32 bits, in units of if_tsresol",
    "timestamp_low" / Native32 * "lower 32 bits",
    "options" / option_list(ISB_OPTIONS),
)


class BlockKind(NamedTuple):
    """A block whose body is known.

    Attributes:
      name: for paths.
      body: what stands between the two lengths.
    """

    name: str
    body: Fields


BLOCKS: Mapping[int, BlockKind] = {
    BlockType.SECTION_HEADER: BlockKind("section_header", SECTION_HEADER),
    BlockType.INTERFACE_DESCRIPTION: BlockKind("interface_description", INTERFACE_DESCRIPTION),
    BlockType.OBSOLETE_PACKET: BlockKind("obsolete_packet", OBSOLETE_PACKET),
    BlockType.SIMPLE_PACKET: BlockKind("simple_packet", SIMPLE_PACKET),
    BlockType.ENHANCED_PACKET: BlockKind("enhanced_packet", ENHANCED_PACKET),
    BlockType.INTERFACE_STATISTICS: BlockKind("interface_statistics", INTERFACE_STATISTICS),
}

BLOCK_HEADER = Fields(
    "block_type" / Native32,
    "block_total_length" / Native32 * "of the whole block in bytes, a multiple of 4",
)
BLOCK_TRAILER = Fields(
    "block_total_length" / Native32 * "the same again",
)
ENHANCED_PACKET_HEAD = Fields(*BLOCK_HEADER.subcons, *ENHANCED_PACKET.subcons[:-2])
"""All of an enhanced packet block that stands before its data, to learn where that ends."""
ENHANCED_PACKET_OPTIONS = option_list(EPB_OPTIONS)
"""All of it that stands behind its data, up to the trailer."""


class Block(Node):
    """One whole block: ``{"block_type": int, "body": dict}``, bytes for a type not known."""

    header = BLOCK_HEADER
    trailer = BLOCK_TRAILER
    kinds = BLOCKS
    other = Raw(step=4)

    def least(self) -> int:
        """Length of an empty block, in bytes."""
        return self.header.sizeof() + self.trailer.sizeof()

    def _parse(self, stream: Stream, context: Any, path: str) -> dict[str, Any]:
        at = stream.tell()
        size = self.header.sizeof()
        head = parse_exactly(self.header, take(stream, size, path), at, context, path)
        kind = self.kinds.get(head["block_type"])
        inner = f"{path}{STEP}{kind.name if kind else 'block'}"
        rest = stream.read()
        length = head["block_total_length"]
        if length != size + len(rest) or length < self.least():
            least, there = self.least(), size + len(rest)
            raise MalformedError(
                at, inner, f"expected a length of {there}, at least {least}, got {length}"
            )
        body, end = rest[: -self.trailer.sizeof()], rest[-self.trailer.sizeof() :]
        end_at = at + size + len(body)
        repeated = parse_exactly(self.trailer, end, end_at, context, inner)["block_total_length"]
        if repeated != length:
            raise MalformedError(
                end_at, inner, f"expected the length {length} again, got {repeated}"
            )
        value = parse_exactly(kind.body if kind else self.other, body, at + size, context, inner)
        return {"block_type": head["block_type"], "body": value}

    def _build(self, obj: Any, stream: Stream, context: Any, path: str) -> Any:
        if not isinstance(obj, dict) or obj.keys() != {"block_type", "body"}:
            raise RefusedError(path, f"expected a block_type and a body, got {obj!r}")
        kind = self.kinds.get(obj["block_type"])
        inner = f"{path}{STEP}{kind.name if kind else 'block'}"
        body = built(kind.body if kind else self.other, obj["body"], context, inner)
        length = self.least() + len(body)
        head = {"block_type": obj["block_type"], "block_total_length": length}
        build_part(self.header, head, stream, context, inner)
        stream.write(body)
        build_part(self.trailer, {"block_total_length": length}, stream, context, inner)
        return obj


BLOCK = Block()


class Magic(enum.IntEnum):
    """Magic number of a classic file: its byte order, unit of time, and kind of record.

    PATCHED is that of Alexey Kuznetzov's patched libpcap, whose records say more.
    """

    MICROSECONDS = 0xA1B2C3D4
    NANOSECONDS = 0xA1B23C4D
    PATCHED = 0xA1B2CD34


PCAP_HEADER = Fields(
    "magic" / Coded(Native32, Magic) * "byte order and unit of time",
    "version_major" / Native16 * "2",
    "version_minor" / Native16 * "4",
    "thiszone" / Native32s * "0; what older programs have written is ignored",
    "sigfigs" / Native32 * "0; likewise",
    "snaplen" / Native32 * "most bytes captured of a packet",
    "linktype" / Native32 * "link type in the low 16 bits, frame check sequence above",
)
PCAP_RECORD = Fields(
    "ts_sec" / Native32 * "seconds since the epoch",
    "ts_frac" / Native32 * "microseconds or nanoseconds of it, as the magic says",
    "incl_len" / Native32 * "length of the data in bytes",
    "orig_len" / Native32 * "length of the whole packet in bytes",
    "data" / Counted("incl_len", align=1),
)
PCAP_RECORD_HEADER = Fields(*PCAP_RECORD.subcons[:-1])
"""A record without its data, to learn from a stream how much follows."""
PCAP_PATCHED_RECORD_HEADER = Fields(
    *PCAP_RECORD_HEADER.subcons,
    "ifindex" / Native32 * "index of the interface",
    "protocol" / Native16 * "EtherType",
    "packet_type" / Int8ub * "PACKET_* of if_packet.h",
    "pad" / Int8ub * "unused",
)
"""The same in a file of the magic PATCHED; times are in microseconds."""


def section_order(magic: bytes) -> Order | None:
    """The byte order of a section whose byte-order magic is these four bytes, None if neither."""
    orders: tuple[Order, ...] = ("little", "big")
    return next((o for o in orders if int.from_bytes(magic, o) == BYTE_ORDER_MAGIC), None)
