"""Enhanced packet blocks that stand in a row, read many at a time.

A capture of one binding holds few kinds of packet blocks: what stands in them besides time and data
is the same again and again. A kind is judged once, by the way that reads any block; of the blocks
behind it only the fixed fields are unpacked, and what surrounds the data is looked up. Many of one
kind are compared all at once, for a block is a whole number of words: each word that belongs to the
kind is a column with a fixed stride. The first block that is odd in any way, or that is not in the
buffer whole, ends the run.
"""

from __future__ import annotations

import sys
from array import array
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
# Blocks of one kind in a row from which on it is worth to look for more of it at once, and at most.
_WORTH_COLUMNS: Final = 8
_MOST_AT_ONCE: Final = 256
_WORD: Final = "I"
_WORD_BYTES: Final = array(_WORD).itemsize


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
      front: how many bytes of each packet's data are the same in all packets of a kind; a
        multiple of four.
    """

    def __init__(self, source: ForwardReader, front: int) -> None:
        assert front % _WORD_BYTES == 0
        self._source = source
        self._front = front
        self._kinds: dict[tuple[int, int, bytes, bytes], Any] = {}
        self._unpack: Callable[[bytes, int], tuple[Any, ...]] | None = None
        self._swapped = False
        self._high = self._low = 0

    def use(self, layouts: Layouts) -> None:
        """A section begins: kinds are those of its interfaces and its byte order."""
        self._kinds.clear()
        self._unpack = layouts.packet_head_and(self._front).unpack_from
        self._swapped = layouts.order != sys.byteorder
        offsets = layouts.packet_head.offsets
        self._high = offsets["timestamp_high"] // _WORD_BYTES
        self._low = offsets["timestamp_low"] // _WORD_BYTES

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
        kind_before, alike = None, 0
        ticks: list[int] = []
        contents: list[bytes] = []
        said: list[Any] = []
        while at <= last:
            kind, length, index, high, low, captured, original, ahead = unpack(buffer, at)
            end = at + length
            data_end = at + HEAD_BYTES + captured
            key = index, length, ahead, buffer[data_end + -captured % 4 : end]
            told = known(key)
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
            alike = alike + 1 if key == kind_before else 1
            kind_before = key
            if alike == _WORTH_COLUMNS:
                times, starts = self._more(at, length, captured)
                ticks += times
                size_of_data = captured - front
                contents += [buffer[start : start + size_of_data] for start in starts]
                said += [told] * len(times)
                end += length * len(times)
                alike = 0
            at = end
        if not ticks:
            return None
        source.at = at
        return QuickRun(interface, ticks, contents, said)

    def _more(self, at: int, length: int, captured: int) -> tuple[list[int], range]:
        """Times of the blocks that are like the one at `at` and follow it, and where data begin."""
        buffer = self._source.buffer
        count = min((len(buffer) - at) // length, _MOST_AT_ONCE)
        words = array(_WORD, buffer[at : at + count * length])
        stride = length // _WORD_BYTES
        data = (HEAD_BYTES + self._front) // _WORD_BYTES
        rest = (HEAD_BYTES + captured + -captured % 4) // _WORD_BYTES
        for place in (*range(data), *range(rest, stride)):
            if place not in (self._high, self._low):
                column = words[place::stride]
                if column != column[:1] * count:
                    count = next(i for i, word in enumerate(column) if word != column[0])
                    del words[count * stride :]
        highs, lows = words[self._high :: stride], words[self._low :: stride]
        if self._swapped:
            highs.byteswap()
            lows.byteswap()
        times = [high << 32 | low for high, low in zip(highs, lows, strict=True)]
        start = at + HEAD_BYTES + self._front
        return times[1:], range(start + length, start + count * length, length)


def nanoseconds(ticks: list[int], interface: Interface) -> list[int]:
    """Times in an interface's unit as nanoseconds since the epoch."""
    multiplier, divisor, offset_ns = interface.multiplier, interface.divisor, interface.offset_ns
    if (multiplier, divisor, offset_ns) == (1, 1, 0):
        return ticks
    return [each * multiplier // divisor + offset_ns for each in ticks]
