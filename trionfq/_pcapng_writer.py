"""Writing pcapng: one section with one interface, times in nanoseconds."""

from __future__ import annotations

from functools import cache
from struct import error as StructError  # noqa: N812 - it is an exception class
from typing import TYPE_CHECKING, Final, NamedTuple

from trionfq._codec import derive
from trionfq._codec_derive import run_of
from trionfq._errors import CaptureError
from trionfq._pcapng_layouts import packet_head
from trionfq.schema import Attr
from trionfq.schema.pcapng import (
    BLOCK,
    BLOCK_TRAILER,
    BYTE_ORDER_MAGIC,
    ENHANCED_PACKET_OPTIONS,
    EPB_OPTIONS,
    IDB_OPTIONS,
    ISB_OPTIONS,
    SHB_OPTIONS,
    BlockType,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from trionfq._codec import Layout
    from trionfq._codec_parts import RunPart
    from trionfq.schema import AttributeSet, Order, Value

_ENHANCED_PACKET: Final = int(BlockType.ENHANCED_PACKET)
_NANOSECONDS: Final = 9
_U32: Final = 0xFFFFFFFF
_TIMES: Final = range(1 << 64)
_COMMENT_BYTES: Final = 0xFFFF


class _Layouts(NamedTuple):
    """What is written, in one byte order."""

    block: Layout
    head: RunPart
    options: Layout
    trailer: RunPart


@cache
def _layouts(order: Order) -> _Layouts:
    return _Layouts(
        derive(BLOCK, order=order),
        packet_head(order),
        derive(ENHANCED_PACKET_OPTIONS, order=order),
        run_of(BLOCK_TRAILER, order, "trailer"),
    )


class PcapngWriter:
    """Makes the blocks of a section; the caller writes them, `opening` first.

    Args:
      order: byte order of the section.
      link_type: LINKTYPE_* number of its one interface.
      name: name of the interface.
      facts: options of the section header by name, empty ones left out.
    """

    def __init__(
        self, *, order: Order, link_type: int, name: str, facts: Mapping[str, str]
    ) -> None:
        layouts = _layouts(order)
        self._block = layouts.block
        self._pack_head = layouts.head.pack
        self._packet_options = layouts.options
        self._pack_trailer = layouts.trailer.pack
        self._plain_options: dict[int, bytes] = {}
        self._least = layouts.head.size + layouts.trailer.size
        section = {
            "byte_order_magic": BYTE_ORDER_MAGIC,
            "major_version": 1,
            "minor_version": 0,
            "section_length": -1,
            "options": tuple(
                _option(SHB_OPTIONS, key, _encoded(fact)) for key, fact in facts.items() if fact
            ),
        }
        interface = {
            "linktype": link_type,
            "reserved": 0,
            "snaplen": 0,
            "options": (
                _option(IDB_OPTIONS, "if_name", _encoded(name)),
                _option(IDB_OPTIONS, "if_tsresol", _NANOSECONDS),
            ),
        }
        self.opening: bytes = self._built(BlockType.SECTION_HEADER, section) + self._built(
            BlockType.INTERFACE_DESCRIPTION, interface
        )

    def packet(self, time_ns: int, data: bytes, flags: int, comments: Sequence[str]) -> bytes:
        """An enhanced packet block.

        Raises:
          CaptureError: the time is before 1970 or after 2554, or a comment is too long.
        """
        options = self._options(flags, comments) if comments else self._plain_options.get(flags)
        if options is None:
            options = self._plain_options[flags] = self._options(flags, ())
        size = len(data)
        padding = -size % 4
        length = self._least + size + padding + len(options)
        try:
            head = self._pack_head(
                _ENHANCED_PACKET, length, 0, time_ns >> 32, time_ns & _U32, size, size
            )
        except StructError:
            _timestamp(time_ns)
            raise CaptureError(f"packet: expected at most {_U32} bytes, got {length}") from None
        return b"".join((head, data, bytes(padding), options, self._pack_trailer(length)))

    def remark(self, time_ns: int, comments: Iterable[str]) -> bytes:
        """An interface statistics block that holds comments and no counters.

        Raises:
          CaptureError: as `packet`.
        """
        body = {
            "interface_id": 0,
            **_timestamp(time_ns),
            "options": _comments(ISB_OPTIONS, comments),
        }
        return self._built(BlockType.INTERFACE_STATISTICS, body)

    def _options(self, flags: int, comments: Iterable[str]) -> bytes:
        return self._packet_options.write(
            (*_comments(EPB_OPTIONS, comments), _option(EPB_OPTIONS, "epb_flags", flags))
        )

    def _built(self, block_type: BlockType, body: dict[str, Any]) -> bytes:
        return self._block.write({"block_type": int(block_type), "body": body})


def _timestamp(time_ns: int) -> dict[str, int]:
    if time_ns not in _TIMES:
        raise CaptureError(f"time: expected 0 to 2**64 - 1 ns since the epoch, got {time_ns}")
    return {"timestamp_high": time_ns >> 32, "timestamp_low": time_ns & _U32}


def _comments(options: AttributeSet, comments: Iterable[str]) -> tuple[Attr, ...]:
    return tuple(_option(options, "opt_comment", _encoded(comment)) for comment in comments)


def _encoded(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise CaptureError(f"text: {error}") from None
    if len(encoded) > _COMMENT_BYTES:
        raise CaptureError(f"text: expected at most {_COMMENT_BYTES} bytes, got {len(encoded)}")
    return encoded


def _option(options: AttributeSet, name: str, value: Value) -> Attr:
    return Attr(options.by_name[name].number, value)
