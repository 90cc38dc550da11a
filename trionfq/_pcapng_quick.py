"""Enhanced packet blocks that stand in a row, read many at a time.

A capture of one binding holds few kinds of packet blocks: what stands in them besides time and data
is the same again and again. A kind is judged once, by the way that reads any block; of the blocks
behind it only the fixed fields are unpacked, and what surrounds the data is looked up. The first
block that is odd in any way, or that is not in the buffer whole, ends the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trionfq._pcapng_layouts import HEAD_BYTES
from trionfq.schema.pcapng import BlockType

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionfq._capture_stream import ForwardReader, Interface
    from trionfq._pcapng_layouts import Layouts

_ENHANCED_PACKET: Final = int(BlockType.ENHANCED_PACKET)
# Kinds that are remembered, and how long what stands behind a packet's data may be, in bytes.
_KINDS_KEPT: Final = 1024
_REST_BYTES: Final = 64


class QuickRun(NamedTuple):
    """Packets that stood in a row.

    Attributes:
      interface: number of the interface of all of them.
      ticks: their times, in its unit.
      contents: their data, without what stood in front.
      told: what was said of their kinds.
    """

    interface: int
    ticks: list[int]
    contents: list[bytes]
    told: list[Any]


class QuickReader:
    """Finds runs of packets of known kinds.

    A kind is an interface, a length, what the data begin with, and the options. The trailer, which
    repeats the length, counts as one of these.

    Args:
      source: the file.
      front: how many bytes of each packet's data are the same in all packets of a kind.
    """

    def __init__(self, source: ForwardReader, front: int) -> None:
        self._source = source
        self._front = front
        self._kinds: dict[tuple[int, int, bytes, bytes], Any] = {}
        self._unpack: Callable[[bytes, int], tuple[Any, ...]] | None = None

    def use(self, layouts: Layouts) -> None:
        """A section begins: kinds are those of its interfaces and its byte order."""
        self._kinds.clear()
        self._unpack = layouts.packet_head_and(self._front).unpack_from

    def learn(self, at: int, told: Any) -> None:
        """Remember the kind of an enhanced packet block that was found to be in order.

        Args:
          at: where it begins in the buffer.
          told: what is to be said of such packets.
        """
        assert self._unpack is not None  # a section has begun
        buffer = self._source.buffer
        _kind, length, index, _high, _low, captured, _original, front = self._unpack(buffer, at)
        rest = buffer[at + HEAD_BYTES + captured + -captured % 4 : at + length]
        if len(rest) <= _REST_BYTES:
            if len(self._kinds) >= _KINDS_KEPT:
                self._kinds.clear()
            self._kinds[index, length, front, rest] = told

    def run(self) -> QuickRun | None:
        """Pass over the packets that come next, None where the first is of no known kind."""
        source, unpack, front, known = self._source, self._unpack, self._front, self._kinds.get
        buffer, at = source.buffer, source.at
        size = len(buffer)
        last = size - HEAD_BYTES - front
        if unpack is None or at > last or not self._kinds:
            return None
        data_offset = HEAD_BYTES + front
        interface = -1
        ticks: list[int] = []
        contents: list[bytes] = []
        said: list[Any] = []
        while at <= last:
            kind, length, index, high, low, captured, original, ahead = unpack(buffer, at)
            end = at + length
            data_end = at + HEAD_BYTES + captured
            told = known((index, length, ahead, buffer[data_end + -captured % 4 : end]))
            if (
                told is None
                or kind != _ENHANCED_PACKET
                or not front <= captured >= original
                or end > size
                or (index != interface and ticks)
            ):
                break
            interface = index
            ticks.append(high << 32 | low)
            contents.append(buffer[at + data_offset : data_end])
            said.append(told)
            at = end
        if not ticks:
            return None
        source.at = at
        return QuickRun(interface, ticks, contents, said)


def nanoseconds(ticks: list[int], interface: Interface) -> list[int]:
    """Times in an interface's unit as nanoseconds since the epoch."""
    multiplier, divisor, offset_ns = interface.multiplier, interface.divisor, interface.offset_ns
    if (multiplier, divisor, offset_ns) == (1, 1, 0):
        return ticks
    return [each * multiplier // divisor + offset_ns for each in ticks]
