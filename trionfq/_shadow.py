"""A second policy beside the first, without effect.

It gets twins: packets of the same bytes whose owner is no binding of the kernel's, so that their
verdicts go nowhere. It runs in tasks of its own, after the first policy got the packet, and what it
raises stays here. Two things tell of the first policy: the link hands over what was read, and the
protocol machine's `give` says when a packet got its verdict.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import trio

from trionfq._compare import Difference, differing
from trionfq._nursery import leave
from trionfq._packet import twin, verdict_of
from trionfq._protocol import QueueProtocol
from trionfq._serve import is_async, refuse_unfinished
from trionfq._transcript import Outcome
from trionfq._verdict import Verdict, plain_decision
from trionfq.schema.nfqueue import NFQA

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from trionfq._link import Link
    from trionfq._packet import Packet
    from trionfq._queue import Handler

_log = logging.getLogger("trionfq")

_MARK = NFQA.by_name["mark"].number
_NAMES = ("policy", "shadow")


class ShadowFailure(NamedTuple):
    """An exception that a shadow raised.

    Attributes:
      packet_id: the packet that it was called for.
      error: what it raised.
    """

    packet_id: int
    error: Exception


class _Pair:
    """A packet and its twin, until both are decided."""

    __slots__ = ("first", "packet", "second", "twin")

    def __init__(self, packet: Packet, other: Packet) -> None:
        self.packet = packet
        self.twin = other
        self.first: Outcome | None = None
        self.second: Outcome | None = None


class Shadow:
    """A second policy that runs beside the first one. Made by `Queue.shadow`.

    Use it as ``async with queue.shadow(candidate) as shadow`` around whatever consumes the queue:
    packets that are read inside of the block are shown to both. Where the block ends without an
    exception, the second policy may finish what it has (``finish_s``).

    Attributes:
      compared: packets that both policies have decided.
      different: how many of them otherwise.
      skipped: packets that were not shown to it, since it was behind by ``backlog``.
      failed: times that it raised; its packet then counts as left undecided.
      differences: the last ``keep`` of them.
      failures: the last ``keep`` exceptions.
    """

    def __init__(
        self,
        link: Link,
        handler: Handler,
        *,
        on_difference: Callable[[Difference], object] | None,
        undecided: Verdict,
        workers: int,
        backlog: int,
        keep: int,
        finish_s: float,
    ) -> None:
        if undecided not in (Verdict.DROP, Verdict.ACCEPT):
            raise ValueError(f"undecided: expected DROP or ACCEPT, got {undecided!r}")
        for name, value in (("workers", workers), ("backlog", backlog), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.compared = 0
        self.different = 0
        self.skipped = 0
        self.failed = 0
        self.differences: deque[Difference] = deque(maxlen=keep)
        self.failures: deque[ShadowFailure] = deque(maxlen=keep)
        self._link = link
        self._handler = handler
        self._on_difference = on_difference
        self._policy = plain_decision(undecided)
        self._workers = workers if is_async(handler) else 1
        self._finish_s = finish_s
        self._pairs: dict[int, _Pair] = {}
        self._owner = QueueProtocol(
            link.protocol.config, interface_name=link.protocol.interface_name
        )
        self._owner.give = self._second_decided
        self._pass_on = link.protocol.give
        self._attached = False
        self._shown, self._to_show = trio.open_memory_channel[_Pair](backlog)
        self._told, self._to_tell = trio.open_memory_channel[Difference](inf)
        self._running = 0
        self._finished = trio.Event()
        self._nursery_manager = trio.open_nursery()

    def __repr__(self) -> str:
        return f"<Shadow: {self.different} of {self.compared} packets decided otherwise>"

    @property
    def pending(self) -> int:
        """Packets that were shown to it, and that not both policies have decided."""
        return len(self._pairs)

    def report(self) -> str:
        """What was found, in words, the kept differences in full."""
        lines = [
            f"the shadow decided {self.different} of {self.compared} packets otherwise; "
            f"{self.skipped} skipped, {self.failed} failed, {self.pending} not decided by both"
        ]
        lines += map(str, self.differences)
        lines += [f"packet {each.packet_id}: raised {each.error!r}" for each in self.failures]
        return "\n".join(lines)

    # -- the block -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        nursery = await self._nursery_manager.__aenter__()
        self._cancel = nursery.cancel_scope.cancel
        self._running = self._workers
        for number in range(self._workers):
            nursery.start_soon(self._work, name=f"trionfq shadow {number}")
        nursery.start_soon(self._tell, name="trionfq shadow's report")
        protocol = self._link.protocol
        self._pass_on = protocol.give
        protocol.give = self._first_decided
        self._link.watchers += (self._watch,)
        self._attached = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._detach()
        self._shown.close()
        try:
            if exc is None:
                with trio.move_on_after(self._finish_s):
                    await self._finished.wait()
                self._told.close()
                # What the last differences bring is told without another wait.
                self._tell_rest()
        finally:
            self._owner.release()
            self._cancel()
            interrupt = await leave(self._nursery_manager)
        if interrupt is not None:
            raise interrupt

    def _detach(self) -> None:
        self._attached = False
        link = self._link
        link.watchers = tuple(each for each in link.watchers if each != self._watch)
        # Where another shadow stands in front of this one, packets go on passing by here.
        if link.protocol.give == self._first_decided:
            link.protocol.give = self._pass_on

    # -- the first policy ----------------------------------------------------------------------

    def _watch(self, packets: list[Packet]) -> None:
        """Packets were read."""
        self._owner.config = self._link.protocol.config
        for packet in packets:
            pair = _Pair(packet, twin(packet, self._owner))
            try:
                self._shown.send_nowait(pair)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self.skipped += 1
            else:
                self._pairs[packet.id] = pair

    def _first_decided(self, packet: Packet) -> None:
        self._pass_on(packet)
        pair = self._pairs.get(packet.id)
        if pair is not None and pair.packet is packet and self._attached:
            pair.first = _outcome(packet)
            self._compare(pair)

    # -- the second policy ---------------------------------------------------------------------

    def _second_decided(self, other: Packet) -> None:
        pair = self._pairs.get(other.id)
        if pair is not None and pair.twin is other:
            pair.second = _outcome(other)
            self._compare(pair)

    async def _work(self) -> None:
        try:
            async for pair in self._to_show:
                await self._show(pair.twin)
        finally:
            self._running -= 1
            if not self._running:
                self._finished.set()

    async def _show(self, other: Packet) -> None:
        try:
            if is_async(self._handler):
                await cast("Callable[[Packet], Awaitable[object]]", self._handler)(other)
            else:
                result: Any = self._handler(other)
                if result is not None:
                    refuse_unfinished(result)
        except Exception as error:
            self.failed += 1
            self.failures.append(ShadowFailure(other.id, error))
        if not (other.decided or other.held):
            other.settle(self._policy)

    # -- what is found -------------------------------------------------------------------------

    def _compare(self, pair: _Pair) -> None:
        first, second = pair.first, pair.second
        if first is None or second is None:
            return
        del self._pairs[pair.packet.id]
        self.compared += 1
        fields = differing(first, second)
        if fields:
            payload = pair.twin.attribute("payload") or b""
            difference = Difference(first, second, fields, payload, _NAMES)
            self.different += 1
            self.differences.append(difference)
            if self._on_difference is not None:
                # Closed once the block has ended: it is counted then, and among the differences.
                with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                    self._told.send_nowait(difference)

    async def _tell(self) -> None:
        async for difference in self._to_tell:
            self._tell_of(difference)

    def _tell_rest(self) -> None:
        try:
            while True:
                self._tell_of(self._to_tell.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass

    def _tell_of(self, difference: Difference) -> None:
        """Call what is the program's; the first policy shall not notice if that fails."""
        assert self._on_difference is not None
        try:
            self._on_difference(difference)
        except Exception:
            _log.exception("queue %d: on_difference raised", self._link.number)


def _outcome(packet: Packet) -> Outcome:
    """What a decided packet's verdict carries."""
    told = verdict_of(packet)
    marks = [each.value for each in told.attributes if each.number == _MARK]
    mark = marks[-1] if marks else None
    rest = [each for each in told.attributes if each.number != _MARK]
    rest.sort(key=attrgetter("number"))
    return Outcome(
        packet.queue_number,
        packet.id,
        told.code,
        mark if isinstance(mark, int) else None,
        told.payload,
        tuple(rest),
    )
