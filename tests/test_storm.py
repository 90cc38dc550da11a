"""Consumers, cancellations, settings, losses and failures to send at random, all at once.

Whatever happens: nobody waits while there is something to be had, every packet goes to one
consumer and gets one verdict, and that is the one it was given. trio's scheduler draws from
hypothesis's seed, so an example runs the same each time.
"""

from __future__ import annotations

import errno
import logging
import random
from collections import Counter

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trionfq._kernel_model import Cause, Effect, PacketIn
from trionfq._open import open_queue
from trionfq._verdict import Verdict
from trionfq.schema.nfqueue import QueueFlags
from trionfq.testing import ScriptedBackend

PAYLOAD = bytes.fromhex("4500001c00010000401166ce0a0000010a0000020035003500080000")
# NFQA_CT: the packet is tracked, nothing is said of its connection.
TRACKED = {11: ()}
# Of connections, and of a bridge, whose frames have a header of 14 bytes (20 is NFQA_L2HDR).
PACKETS = [
    PacketIn(PAYLOAD, values=TRACKED),
    PacketIn(PAYLOAD, family=7, hw_protocol=0x0800, values={20: bytes(14)}),
]
EFFECTS = {
    Verdict.ACCEPT: Effect.ACCEPTED,
    Verdict.DROP: Effect.DROPPED,
    Verdict.STOP: Effect.STOPPED,
}


class Storm:
    """A queue, a kernel that is not kind, and what each packet was told."""

    def __init__(self, dice):
        self.dice = dice
        # The smaller buffer overflows now and then.
        self.backend = ScriptedBackend(
            receive_buffer_bytes=dice.choice([30_000, 10_000_000]),
            max_send_bytes=dice.choice([100, 8192]),
        )
        self.backend.kernel.conntrack_glue = True
        self.given = Counter()
        self.told = {}
        self.held = []
        self.calm = False

    async def dawdle(self, longest_s):
        if not self.calm:
            await trio.sleep(self.dice.random() * longest_s)

    def some_sending_fails(self, datagram):
        chance = self.dice.random()
        if chance < 0.03:
            raise OSError(errno.ENOBUFS, "no memory")
        if chance < 0.06 and len(datagram) > 64:
            raise OSError(errno.EMSGSIZE, "too long")

    async def packets_arrive(self, queue):
        for turn in range(50):
            for _ in range(self.dice.choice([1, 1, 2, 5, 30])):
                self.backend.kernel.enqueue(0, self.dice.choice(PACKETS))
            self.backend._wake()
            if self.dice.random() < 0.2:
                queue.configure(max_len=60)  # which reads what has just arrived
            await trio.sleep(self.dice.choice([0, 0.0005, 0.01]))
            if turn % 5 == 0:
                self.calm = True
                await trio.sleep(0.03)  # longer than anybody dawdles
                assert queue.statistics().read_ahead == 0, "somebody sleeps while packets wait"
                assert not self.backend._socket.readable, "nobody reads"
                self.calm = False

    def decide(self, packet):
        self.given[packet.id] += 1
        chance = self.dice.random()
        if chance < 0.5:
            packet.accept()
        elif chance < 0.7:
            packet.drop()
        elif chance < 0.8:
            packet.stop(mark=self.dice.randrange(3))
        elif chance < 0.9:
            # A tag may be refused, and so keeps later verdicts from being joined for a while.
            packet.accept(**({"vlan": (0x8100, 3)} if packet.l2hdr else {"connmark": 3}))
        else:
            packet.hold()
            self.held.append(packet)
            return
        self.told[packet.id] = packet.verdict

    async def decide_later(self, packet):
        await self.dawdle(0.003)
        self.decide(packet)

    # -- tasks that never end by themselves ----------------------------------------------------

    async def consume(self, queue):
        while True:
            with trio.CancelScope() as scope:
                if self.dice.random() < 0.3:
                    scope.deadline = trio.current_time() + self.dice.random() * 0.01
                if self.dice.random() < 0.5:
                    self.decide(await queue.receive())
                else:
                    await self.iterate(queue)
            if self.dice.random() < 0.2:
                await self.dawdle(0.02)

    async def iterate(self, queue):
        async for packet in queue:
            self.decide(packet)
            if self.dice.random() < 0.3:
                return
            if self.dice.random() < 0.2:
                await self.dawdle(0.005)

    async def consume_alone(self, queue):
        while True:
            with trio.move_on_after(self.dice.random() * 0.02):
                match self.dice.randrange(3):
                    case 0:
                        await queue.serve(self.decide)
                    case 1:
                        workers = self.dice.choice([1, 3, 20])
                        await queue.serve(self.decide_later, workers=workers)
                    case _:
                        async for batch in queue.batches():
                            for packet in batch:
                                self.decide(packet)

    async def meddle(self, queue):
        while True:
            await trio.sleep(self.dice.random() * 0.01)
            if self.calm:
                continue
            chance = self.dice.random()
            if chance < 0.2:
                queue.configure(max_len=self.dice.choice([50, 1000]))
            elif chance < 0.7 and self.held:
                packet = self.held.pop(self.dice.randrange(len(self.held)))
                packet.accept()
                self.told[packet.id] = packet.verdict
            elif chance < 0.8:
                queue.statistics()
            elif chance < 0.83:
                self.backend.kernel.hook_unregistered()

    async def run(self):
        backend = self.backend
        async with (
            open_queue(
                0,
                backend=backend,
                max_len=50,
                flags=QueueFlags.CONNTRACK,
                checkpoint_every=self.dice.choice([None, 1, 3]),
            ) as queue,
            trio.open_nursery() as nursery,
        ):
            backend.send_hook = self.some_sending_fails
            if self.dice.random() < 0.5:
                for _ in range(self.dice.choice([1, 2, 8])):
                    nursery.start_soon(self.consume, queue)
            else:
                nursery.start_soon(self.consume_alone, queue)
            nursery.start_soon(self.meddle, queue)
            await self.packets_arrive(queue)
            backend.send_hook = None
            nursery.cancel_scope.cancel()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_nothing_gets_lost_or_stuck_in_a_storm(seed):
    logging.getLogger("trionfq").setLevel(logging.ERROR)
    storm = Storm(random.Random(seed))
    try:
        trio.run(storm.run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("trionfq").setLevel(logging.NOTSET)
    assert set(storm.given.values()) <= {1}
    decisions = storm.backend.decisions
    assert len({d.packet_id for d in decisions}) == len(decisions)
    for made in decisions:
        if made.cause in (Cause.VERDICT, Cause.BATCH) and made.packet_id in storm.told:
            assert made.effect is EFFECTS[storm.told[made.packet_id]]
    assert len(storm.given) > 50
