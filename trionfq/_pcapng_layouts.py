"""The layouts of pcapng as reader and writer use them, derived from the declarations."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from trionfq._codec import Layout, derive
from trionfq._codec_derive import run_of
from trionfq.schema import AttributeSet
from trionfq.schema._constructs import Fields
from trionfq.schema._lists import option_list
from trionfq.schema.pcapng import (
    BLOCK_HEADER,
    BLOCK_TRAILER,
    BLOCKS,
    ENHANCED_PACKET_HEAD,
    EPB_OPTIONS,
    IDB_OPTIONS,
    ISB_OPTIONS,
    OPB_OPTIONS,
    SHB_OPTIONS,
    BlockType,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq._codec_parts import RunPart
    from trionfq.schema import Order

COMMENT: Final = "opt_comment"
_HEAD_FIELDS: Final = (
    "block_type",
    "block_total_length",
    "interface_id",
    "timestamp_high",
    "timestamp_low",
    "captured_len",
    "original_len",
)

USED: Final[Mapping[int, tuple[AttributeSet, frozenset[str]]]] = {
    BlockType.SECTION_HEADER: (
        SHB_OPTIONS,
        frozenset({COMMENT, "shb_hardware", "shb_os", "shb_userappl"}),
    ),
    BlockType.INTERFACE_DESCRIPTION: (
        IDB_OPTIONS,
        frozenset({COMMENT, "if_name", "if_tsresol", "if_tsoffset"}),
    ),
    BlockType.ENHANCED_PACKET: (EPB_OPTIONS, frozenset({COMMENT, "epb_flags"})),
    BlockType.OBSOLETE_PACKET: (OPB_OPTIONS, frozenset({COMMENT, "pack_flags"})),
    BlockType.INTERFACE_STATISTICS: (ISB_OPTIONS, frozenset({COMMENT})),
}
"""The options that are read, by block; other ones are counted, and may hold anything."""


def _as_used(block_type: int) -> Fields:
    """The body of a block, all options but the used ones as plain bytes."""
    body = BLOCKS[block_type].body
    if block_type not in USED:
        return body
    options, used = USED[block_type]
    chosen = tuple(option for option in options.attributes if option.name in used)
    subset = AttributeSet(options.name, options.prefix, chosen)
    return Fields(*body.subcons[:-1], body.names[-1] / option_list(subset))


def packet_head(order: Order) -> RunPart:
    """What stands before an enhanced packet's data, to be read and written without names.

    Raises:
      TypeError: the declaration has other fields than the callers take it to have.
    """
    run = run_of(ENHANCED_PACKET_HEAD, order, "enhanced_packet")
    if run.names != _HEAD_FIELDS:
        raise TypeError(f"enhanced_packet: expected {_HEAD_FIELDS}, got {run.names}")
    return run


class Layouts:
    """The layouts of one byte order."""

    def __init__(self, order: Order) -> None:
        self.order: Order = order
        self.header: Layout = derive(BLOCK_HEADER, order=order)
        self.trailer: Layout = derive(BLOCK_TRAILER, order=order)
        self.packet_head = packet_head(order)
        self.bodies: Mapping[int, Layout] = {
            number: derive(_as_used(number), order=order) for number in BLOCKS
        }

    def packet_head_and(self, front: int) -> Struct:
        """What stands before an enhanced packet's data, and so many bytes of these."""
        return Struct(f"{self.packet_head.layout.format}{front}s")


LAYOUTS: Final[Mapping[Order, Layouts]] = {
    "little": Layouts("little"),
    "big": Layouts("big"),
}
HEADER_BYTES: Final = LAYOUTS["little"].header.size or 0
TRAILER_BYTES: Final = LAYOUTS["little"].trailer.size or 0
LEAST_BYTES: Final = HEADER_BYTES + TRAILER_BYTES
HEAD_BYTES: Final = LAYOUTS["little"].packet_head.size
