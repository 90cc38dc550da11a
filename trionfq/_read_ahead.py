"""Packets that were read and not handed out.

They live in the queue, not in an iterator, so that a ``break`` or a cancellation loses none, and
every consumer takes from the same place. What is handed out next is a chunk behind a plain list
iterator, since ``for packet in chunk: return packet`` is the cheapest way to hand out one of many.
"""

from __future__ import annotations

from copy import copy
from operator import length_hint
from typing import TYPE_CHECKING

import trio

from trionfq._batch import Batch
from trionfq._ids import id_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq._packet import Packet


# Packets handed out between two looks at the clock: at first, and most where the consumer is quick.
CHUNK = 16
_LONGEST_CHUNK = 128


class ReadAhead:
    """A buffer of packets, in the order of their arrival.

    Attributes:
      chunk: what is handed out now; consumers loop over it directly.

    Args:
      chunk_size: packets to a chunk; None lets `lengthen_chunks` change it.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        self.chunk: Iterator[Packet] = iter(())
        self._chunk_size = chunk_size or CHUNK
        self._fixed = chunk_size is not None
        self._batch: list[Packet] = []
        self._position = 0

    def __len__(self) -> int:
        return length_hint(self.chunk) + self.waiting

    def __bool__(self) -> bool:
        return self._position < len(self._batch) or length_hint(self.chunk) > 0

    @property
    def waiting(self) -> int:
        """How many packets stand behind the chunk."""
        return len(self._batch) - self._position

    def lengthen_chunks(self) -> None:
        """The consumer is quick, so the clock can be looked at less often."""
        if not self._fixed:
            self._chunk_size = min(_LONGEST_CHUNK, 2 * self._chunk_size)

    def shorten_chunks(self) -> None:
        """The consumer is slow."""
        if not self._fixed:
            self._chunk_size = CHUNK

    @trio.lowlevel.enable_ki_protection
    def next_chunk(self) -> None:
        """Hand out the next chunk, if the last one is used up."""
        if not length_hint(self.chunk) and self.waiting:
            end = min(self._position + self._chunk_size, len(self._batch))
            self.chunk = iter(self._batch[self._position : end])
            self._position = end
            if not self.waiting:
                self._batch, self._position = [], 0  # or it keeps them all until the next read

    @trio.lowlevel.enable_ki_protection
    def append(self, packets: list[Packet]) -> None:
        """Add packets behind all others."""
        if self.waiting:
            packets = self._batch[self._position :] + packets
        self._batch = packets
        self._position = 0

    def discard_decided(self, packet_id: int) -> None:
        """Remove what was decided unread, after a verdict by id.

        Args:
          packet_id: the highest id that was decided; packets that were handed out have lower ones.
        """
        first = next(copy(self.chunk), None)
        if first is None and self.waiting:
            first = self._batch[self._position]
        if first is not None and not id_after(first.id, packet_id):
            self._batch = [packet for packet in self.take_all() if not packet.decided]

    @trio.lowlevel.enable_ki_protection
    def take_all(self) -> Batch:
        """Remove and return everything."""
        everything = Batch(self.chunk)
        everything += self._batch[self._position :]
        self._batch = []
        self._position = 0
        return everything
