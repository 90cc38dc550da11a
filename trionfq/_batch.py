"""Packets that one read from the kernel brought, and the iteration over such batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionfq._packet import Packet, decide_all
from trionfq._verdict import Verdict

if TYPE_CHECKING:
    from typing import Self, Unpack

    from trionfq._queue import Queue
    from trionfq._verdict import Changes


class Batch(list[Packet]):
    """Packets in the order of their ids, and verdicts for all of them that have none yet."""

    def accept(self, **changes: Unpack[Changes]) -> None:
        """Accept every packet that is undecided.

        Args:
          **changes: see `Changes`; each packet gets them.

        Raises:
          LocalProtocolError, TypeError, RuntimeError, trio.ClosedResourceError: as
            `Packet.accept`; packets before the failing one have their verdict.
        """
        decide_all(self, Verdict.ACCEPT, changes)

    def drop(self) -> None:
        """Drop every packet that is undecided.

        Raises:
          RuntimeError, trio.ClosedResourceError: as `Packet.accept`.
        """
        decide_all(self, Verdict.DROP, {})


class Batches:
    """Iterates over batches; made by `Queue.batches`."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __aiter__(self) -> Self:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> Batch:
        try:
            return await self._queue.next_batch()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
