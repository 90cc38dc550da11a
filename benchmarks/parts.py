"""Where the time of a packet goes in user mode: ``python -m benchmarks.parts``, on a quiet machine.

There is no kernel in it. The first table drives an open queue by a backend that always has a full
drain ready, and tells what each way of consuming costs; the second runs the steps of one drain by
themselves. Every figure is the least of many drains of 256 packets, some tenths of a millisecond
each, since longer stretches always meet other work on the core.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import trionfq
from trionfq import schema
from trionfq._codec import PacketReader
from trionfq._config import QueueConfig
from trionfq._packet import make_packets
from trionfq._protocol import QueueProtocol
from trionfq.backends import Received
from trionfq.backends._recvmmsg import BatchReceiver
from trionfq.testing import make_packet, udp_packet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionfq import Packet, Queue
    from trionfq.backends import QueueRow

DRAIN = 256
DRAINS = 400
SKIPPED = 100
"""Drains before the first that counts: they grow, and the interpreter learns the code."""

TEMPLATE = make_packet(1, udp_packet(bytes(32)), ifindex_outdev=1)
LONGER = make_packet(1, udp_packet(bytes(36)), ifindex_outdev=1)
ACKNOWLEDGED = 0x100


def drain_of(first: int, *, mixed: bool = False) -> list[bytes]:
    """Datagrams of consecutive ids; every other one longer if mixed."""
    made = []
    for packet_id in range(first, first + DRAIN):
        one = LONGER if mixed and packet_id % 2 else TEMPLATE
        made.append(one[:24] + packet_id.to_bytes(4, "big") + one[28:])
    return made


class Ready:
    """A backend that has a full drain at every look, and knows when it was asked for it."""

    max_send_bytes = 8192
    port_id = 1

    def __init__(self, *, mixed: bool = False) -> None:
        self.least_ns = 1 << 62
        self._mixed = mixed
        self._answers: list[bytes] = []
        self._asked = 0
        self._next = 1
        self._bound = False
        self._handed_out_ns = 0

    def now_ns(self) -> int:
        return 0

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()

    def receive_nowait(self, limit: int) -> Received:
        now = time.perf_counter_ns()
        if self._answers:
            return Received([self._answers.pop()])
        if limit < DRAIN:  # the first drains are short, until the queue knows that it is busy
            made = drain_of(self._next)[:limit]
        else:
            if self._asked > SKIPPED:
                self.least_ns = min(self.least_ns, now - self._handed_out_ns)
            self._asked += 1
            if self._asked > DRAINS:
                return Received([], ended=True)
            made = drain_of(self._next, mixed=self._mixed)
        self._next += len(made)
        self._handed_out_ns = time.perf_counter_ns()
        return Received(made)

    def send_nowait(self, datagram: bytes) -> None:
        if not self._bound:
            self._bound = True
            [asked] = schema.parse(datagram)
            assert isinstance(asked, schema.Message)
            request = (len(datagram), asked.type, asked.flags, asked.seq, 0)
            answer = schema.ErrorMessage(ACKNOWLEDGED, asked.seq, 1, 0, request, b"", ())
            self._answers = [schema.build([answer])]

    def queues(self) -> list[QueueRow]:
        return []

    def socket_drops(self) -> int:
        return 0

    def interface_name(self, index: int) -> str | None:  # noqa: ARG002
        return None

    def close(self) -> None:
        """Nothing to be closed."""


# --- ways to consume --------------------------------------------------------------------------


async def accept(queue: Queue) -> None:
    async for packet in queue:
        packet.accept()


async def read_payload(queue: Queue) -> None:
    async for packet in queue:
        packet.payload  # noqa: B018
        packet.accept()


async def drop_every_other(queue: Queue) -> None:
    dropped = False
    async for packet in queue:
        dropped = not dropped
        if dropped:
            packet.drop()
        else:
            packet.accept()


async def hold_one(queue: Queue) -> None:
    (await queue.receive()).hold()
    await accept(queue)


async def mark(queue: Queue) -> None:
    async for packet in queue:
        packet.accept(mark=7)


async def mark_each(queue: Queue) -> None:
    async for packet in queue:
        packet.accept(mark=packet.id)


async def batches(queue: Queue) -> None:
    async for batch in queue.batches():
        batch.accept()


async def batches_one_by_one(queue: Queue) -> None:
    async for batch in queue.batches():
        for packet in batch:
            packet.accept()


async def serve(queue: Queue) -> None:
    await queue.serve(lambda packet: packet.accept())


async def serve_async(queue: Queue, **options: Any) -> None:
    async def handler(packet: Packet) -> None:
        packet.accept()

    await queue.serve(handler, **options)


async def serve_yielding(queue: Queue) -> None:
    async def handler(packet: Packet) -> None:
        await trio.lowlevel.checkpoint()
        packet.accept()

    await queue.serve(handler)


WAYS: list[tuple[str, Callable[[Queue], Any]]] = [
    ("`batches()`, `batch.accept()`", batches),
    ("`batches()`, each accepted", batches_one_by_one),
    ("`async for`, each accepted", accept),
    ("`serve()`, sync", serve),
    ("`serve()`, async", serve_async),
    ("`serve()`, async, deadline", partial(serve_async, deadline_s=1)),
    ("`serve()`, async handler that lets other tasks run", serve_yielding),
    ("`async for`, payload read", read_payload),
    ("`async for`, every other dropped", drop_every_other),
    ("`async for`, one held", hold_one),
    ("`async for`, the same mark on each", mark),
    ("`async for`, another mark on each", mark_each),
]


def cost_of(way: Callable[[Queue], Any], *, mixed: bool = False) -> float:
    """Nanoseconds a packet, the backend's own work left out."""
    backend = Ready(mixed=mixed)

    async def run() -> None:
        async with trionfq.open_queue(0, backend=backend) as queue:
            await way(queue)

    trio.run(run)
    return backend.least_ns / DRAIN


# --- the steps of a drain -----------------------------------------------------------------------


class Steps:
    """One drain taken apart: each step by itself, on the same packets again and again."""

    def __init__(self) -> None:
        self.datagrams = drain_of(1)
        self.reader = PacketReader()
        for datagram in self.datagrams[:2]:
            self.reader.shape(datagram)
        alike = self.reader.uniform(self.datagrams)
        assert alike is not None
        self.shape, self.ids = alike
        self.receiver = self._full_receiver()

    def _full_receiver(self) -> BatchReceiver:
        """A receiver whose system call is done: the slots hold a drain."""
        receiver = BatchReceiver(-1, lambda *_arguments: DRAIN)
        for start, datagram in zip(receiver._starts, self.datagrams, strict=True):  # noqa: SLF001
            receiver._map[start : start + len(datagram)] = datagram  # noqa: SLF001
        for header in receiver._headers:  # noqa: SLF001
            header.len = len(self.datagrams[0])
        return receiver

    def fresh(self) -> tuple[QueueProtocol, list[Packet]]:
        """A machine that has read the drain."""
        protocol = QueueProtocol(QueueConfig(0))
        protocol._reader = self.reader  # noqa: SLF001
        return protocol, protocol.receive(self.datagrams)

    def receive(self) -> float:
        return timed(partial(self.receiver.receive, DRAIN))

    def layouts(self) -> float:
        return timed(partial(self.reader.uniform, self.datagrams))

    def packets(self) -> float:
        protocol, _ = self.fresh()
        return timed(partial(make_packets, self.ids, self.datagrams, self.shape, protocol, 0))

    def machine(self) -> float:
        protocol = QueueProtocol(QueueConfig(0))
        protocol._reader = self.reader  # noqa: SLF001
        return timed(partial(protocol.receive, self.datagrams))

    def accept(self) -> float:
        _, packets = self.fresh()

        def run() -> None:
            for packet in packets:
                packet.accept()

        return timed(run)

    def loop(self) -> float:
        _, packets = self.fresh()

        def run() -> None:
            for _packet in packets:
                pass

        return timed(run)

    def flush(self) -> float:
        protocol, packets = self.fresh()
        for packet in packets:
            packet.accept()
        return timed(partial(protocol.flush, 8192))

    def free(self) -> float:
        _, packets = self.fresh()
        return timed(packets.clear)


def timed(step: Callable[[], object]) -> float:
    """Nanoseconds of one call; what it made is freed after that."""
    started = time.perf_counter_ns()
    made = step()
    taken = time.perf_counter_ns() - started
    del made
    return float(taken)


STEPS: list[tuple[str, Callable[[Steps], float]]] = [
    ("receiver, the system call left out: lengths, senders, a copy of each", Steps.receive),
    ("machine: datagrams to packets in the ledger", Steps.machine),
    ("of that, layouts proved and ids read", Steps.layouts),
    ("of that, packet objects made", Steps.packets),
    ("`accept()`, in a plain loop", Steps.accept),
    ("of that, the loop", Steps.loop),
    ("flush: ledger looked through, one batch verdict made", Steps.flush),
    ("packets freed", Steps.free),
]


def table(title: str, lines: Sequence[tuple[str, float]]) -> None:
    print(f"| {title} | ns/packet |\n|---|---:|")
    for name, nanoseconds in lines:
        print(f"| {name} | {nanoseconds:,.0f} |")
    print()


def main() -> None:
    """Print both tables, as Markdown."""
    ways = [(name, cost_of(way)) for name, way in WAYS]
    ways.append(("`async for`, lengths mixed", cost_of(accept, mixed=True)))
    table("from a datagram in memory to its verdict", ways)
    steps = Steps()
    least = [min(step(steps) for _ in range(DRAINS)) / DRAIN for _, step in STEPS]
    table("step", list(zip((name for name, _ in STEPS), least, strict=True)))


if __name__ == "__main__":
    main()
