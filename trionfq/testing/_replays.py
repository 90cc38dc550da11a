"""Queues that are replayed, for tests: from a file, or from a list of packets."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from trionfq._capture_reader import is_of_packets
from trionfq._capture_record import Record, byte_order
from trionfq._foreign import packet_bytes
from trionfq._open import open_queue
from trionfq.backends.replay import ReplayBackend
from trionfq.captures import PacketSource
from trionfq.schema.nfqueue import MessageType
from trionfq.testing._faulty import FaultyBackend
from trionfq.testing._messages import make_packet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from trionfq._arrival_source import Source
    from trionfq._queue import Handler, Queue
    from trionfq._record_source import RecordSource
    from trionfq._transcript import Outcome
    from trionfq.testing._faults import Fault

_TYPE = slice(4, 6)  # of nlmsghdr


class Replays:
    """What the fixture ``nfqueue_replay`` gives: opens queues, and runs policies."""

    @asynccontextmanager
    async def __call__(
        self,
        source: str | os.PathLike[str] | RecordSource | Iterable[Any],
        *,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        replay: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Queue]:
        """Open a queue that gives the packets of a source.

        Args:
          source: a file of nfqueue traffic or of ordinary packets; or packets, each as bytes from
            its IP header on, as scapy or dpkt have it, as a datagram (`make_packet`), or a
            `Record`. Packets without an id count from 1.
          faults: what goes wrong, as of `FaultyBackend`.
          seed: of faults, and of the order of tasks in lockstep.
          replay: other arguments of `ReplayBackend`, such as ``{"pace": "lockstep"}``.
          options: arguments of `open_queue`.

        Raises:
          As `ReplayBackend` and `open_queue`.
        """
        # A test wants every message judged, unless it says otherwise.
        arguments = {"check": "all", "seed": seed, **(replay or {})}
        backend = ReplayBackend(_source(source), **arguments)
        outer = FaultyBackend(backend, faults, seed=seed) if faults else backend
        number = backend.recorded_queue or 0
        async with open_queue(number, backend=outer, **options) as queue:
            yield queue

    def run(
        self,
        policy: Handler,
        source: str | os.PathLike[str] | RecordSource | Iterable[Any],
        *,
        clock: trio.abc.Clock | None = None,
        serve: dict[str, Any] | None = None,
        **options: Any,
    ) -> list[Outcome]:
        """Give the packets of a source to a policy, in a trio run of its own, for plain tests.

        Args:
          policy: a function or an async function of one packet, as of `Queue.serve`.
          source: as of calling this.
          clock: of the run, such as a `trio.testing.MockClock`.
          serve: other arguments of `Queue.serve`.
          options: as of calling this.

        Returns:
          What became of each packet.
        """
        from trionfq.testing._verdicts import outcomes_of

        async def main() -> list[Outcome]:
            async with self(source, **options) as queue:
                await queue.serve(policy, **(serve or {}))
            return outcomes_of(queue)

        return trio.run(main, clock=clock)


def _source(source: Any) -> Source | RecordSource:
    """What a `ReplayBackend` takes."""
    if isinstance(source, str | os.PathLike):
        return PacketSource(source) if is_of_packets(source) else source
    if isinstance(source, list | tuple):
        return [_datagram(each, place) for place, each in enumerate(source, 1)]
    return source  # type: ignore[no-any-return]


def _datagram(packet: Any, packet_id: int) -> bytes | Record:
    if isinstance(packet, Record):
        return packet
    content = packet_bytes("packet", packet)
    return content if _is_message(content) else make_packet(packet_id, content)


def _is_message(data: bytes) -> bool:
    """Whether bytes are a PACKET message. No IP packet can be taken for one.

    Its first four bytes would have to be a length that it does not exceed: those of IPv4 are
    greater than any packet, and IPv6's next two, its own length, say less than it then must have.
    """
    order = byte_order(data)
    return order is not None and int.from_bytes(data[_TYPE], order) == MessageType.PACKET
