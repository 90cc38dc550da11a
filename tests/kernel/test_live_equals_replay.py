"""One policy, the same outcomes: live, on the recording of that, and on that replay's recording.

The policy uses payload, mark and order, gives every verdict by every way there is, holds packets,
rewrites them, and is told nothing of where they come from. The first run decides several hundred
packets of this kernel; each later run replays the recording of the run before it. What is compared
is what the policy noted, what each recording holds, and what the replay says became of each packet.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import trio

from trionfq import (
    IPView,
    NetlinkBackend,
    Packet,
    Queue,
    RecordingBackend,
    ReplayBackend,
    Verdict,
    open_queue,
)
from trionfq.backends import Backend
from trionfq.captures import Outcome, open_capture, transcript
from trionfq.schema import Direction, Message, by_name, parse
from trionfq.schema.nfqueue import NFQA, VERDICT_MASK, MessageType

from ._live import PORT, Udp
from .harness import Namespace, eventually, queue_rule

SENT = 659
SEEN = 0x10
UNBOUND = 777
MARKS = (0, 1, 0xABCD, 0x80000000)


class Noted(NamedTuple):
    """What the policy knows of a packet and of its own verdict.

    Attributes:
      packet_id: as it saw it.
      packet: the payload, as it came.
      mark: as it came.
      verdict: what it gave, in words.
      new_mark: what it set, None where it set none.
      new_payload: the bytes that it put in the packet's place, None where it left it alone.
      broken: whether those have a wrong checksum.
    """

    packet_id: int
    packet: bytes
    mark: int
    verdict: str
    new_mark: int | None = None
    new_payload: bytes | None = None
    broken: bool = False


class Policy:
    """Decides by payload, mark, and what came before; remembers what it did.

    Attributes:
      noted: one entry for each verdict, in the order in which they were given.
      held: packets that wait for a later one.
    """

    def __init__(self) -> None:
        self.noted: list[Noted] = []
        self.held: list[Packet] = []
        self._order = 0
        self._looped: set[bytes] = set()

    def __call__(self, queue: Queue, packet: Packet) -> None:
        """Decide a packet; maybe others that were held, too."""
        data = packet.ip.data or b""
        if data == b"end":
            self._release(queue, len(self.held))
            self._note(packet, "accept")
            packet.accept()
            return
        self._order += 1
        number = int(data.split(b" ")[0])
        # Payload, mark and order all have a say.
        choice = (number * 7 + packet.mark % 11 + self._order // 3) % len(self.CHOICES)
        self.CHOICES[choice](self, queue, packet, number)
        if len(self.held) > 6:
            self._release(queue, 4)

    def _note(
        self,
        packet: Packet,
        verdict: str,
        mark: int | None = None,
        payload: bytes | None = None,
        *,
        broken: bool = False,
    ) -> None:
        original = packet.attribute("payload")
        self.noted.append(Noted(packet.id, original, packet.mark, verdict, mark, payload, broken))

    def _accept(self, _queue: Queue, packet: Packet, _number: int) -> None:
        self._note(packet, "accept")
        packet.accept()

    def _drop(self, _queue: Queue, packet: Packet, _number: int) -> None:
        self._note(packet, "drop")
        packet.drop()

    def _mark(self, _queue: Queue, packet: Packet, number: int) -> None:
        mark = packet.mark ^ number
        self._note(packet, "accept", mark)
        packet.accept(mark=mark, priority=number % 7)

    def _stop(self, _queue: Queue, packet: Packet, number: int) -> None:
        self._note(packet, "stop", number)
        packet.stop(mark=number)

    def _repeat(self, _queue: Queue, packet: Packet, _number: int) -> None:
        """Out of the rule's sight: it comes once."""
        mark = packet.mark | SEEN
        self._note(packet, "repeat", mark)
        packet.repeat(mark=mark)

    def _loop(self, queue: Queue, packet: Packet, number: int) -> None:
        """It comes again, as it is, under a new id; and by then it is another's turn."""
        if packet.payload in self._looped:
            return self._drop(queue, packet, number)
        self._looped.add(packet.payload)
        self._note(packet, "repeat")
        return packet.repeat(allow_loop=True)

    def _grow(self, _queue: Queue, packet: Packet, number: int) -> None:
        packet.payload += b" and %d more words" % number
        self._note(packet, "accept", None, packet.payload)
        packet.accept()

    def _shrink(self, _queue: Queue, packet: Packet, number: int) -> None:
        cut = min(1 + number % 4, len(packet.ip.data or b""))
        packet.set_payload(packet.payload[:-cut])
        self._note(packet, "accept", number, packet.payload)
        packet.accept(mark=number)

    def _break(self, _queue: Queue, packet: Packet, _number: int) -> None:
        """With bytes as given: the checksum is wrong, and the receiver never sees it."""
        wrong = packet.payload[:-1] + b"\xff"
        self._note(packet, "accept", None, wrong, broken=True)
        packet.accept(payload=wrong, repair=False)

    def _vanish(self, _queue: Queue, packet: Packet, _number: int) -> None:
        self._note(packet, "queue")
        packet.requeue(UNBOUND)

    def _bypass(self, _queue: Queue, packet: Packet, number: int) -> None:
        self._note(packet, "queue", number)
        packet.requeue(UNBOUND, bypass=True, mark=number)

    def _hold(self, _queue: Queue, packet: Packet, _number: int) -> None:
        packet.hold()
        self.held.append(packet)

    def _by_id(self, queue: Queue, packet: Packet, number: int) -> None:
        verdict = Verdict.DROP if number % 2 else Verdict.ACCEPT
        self._note(packet, verdict.name.lower())
        queue.set_verdict(packet.id, verdict)

    def _sweep(self, queue: Queue, packet: Packet, number: int) -> None:
        """One verdict for this packet and all that are held."""
        for each in [*self.held, packet]:
            self._note(each, "accept", number)
        self.held.clear()
        queue.set_verdict_batch(packet.id, Verdict.ACCEPT, mark=number)

    def _release(self, queue: Queue, count: int) -> None:
        """Answer held packets, the latest first."""
        for _ in range(count):
            packet = self.held.pop()
            self._note(packet, "accept", 0xBEEF)
            if packet.id % 2:
                packet.accept(mark=0xBEEF)
            else:
                queue.set_verdict(packet.id, Verdict.ACCEPT, mark=0xBEEF)

    CHOICES: tuple[Callable[[Policy, Queue, Packet, int], None], ...] = (
        *(_accept, _accept, _accept, _drop, _mark, _stop, _repeat, _loop, _grow, _shrink),
        *(_break, _vanish, _bypass, _hold, _hold, _hold, _by_id, _sweep),
    )


# --- ways of reading ------------------------------------------------------------------------------


async def iterate(queue: Queue, policy: Policy) -> None:
    async for packet in queue:
        policy(queue, packet)


async def take_batches(queue: Queue, policy: Policy) -> None:
    async for batch in queue.batches():
        for packet in batch:
            policy(queue, packet)


async def serve(queue: Queue, policy: Policy) -> None:
    await queue.serve(lambda packet: policy(queue, packet))


Reading = Callable[[Queue, Policy], Awaitable[None]]
READINGS: tuple[Reading, ...] = (iterate, take_batches, serve)


# --- runs -----------------------------------------------------------------------------------------


async def live(ns: Namespace, path: Path, reading: Reading) -> tuple[Policy, Counter[bytes]]:
    """Decide this kernel's packets, SENT of them and those that come again.

    Returns:
      The policy, and what the receivers got.
    """
    policy = Policy()
    received: Counter[bytes] = Counter()
    udps = [Udp(ns, address=address) for address in ("127.0.0.1", "::1")]
    for family in (4, 6):
        match = f"-p udp --dport {PORT} -m mark ! --mark {SEEN:#x}/{SEEN:#x}"
        queue_rule(ns, "OUTPUT", match, family=family)
    backend = RecordingBackend(NetlinkBackend(namespace=ns.name), path)

    def send(number: int) -> None:
        udp = udps[number % 3 % 2]
        mark = struct.pack("=I", MARKS[number % 5 % len(MARKS)])
        udp.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        udp.send(b"%d %s" % (number, b"word " * (number % 6)))

    def idle() -> bool:
        row = ns.queue_row(0)
        return row is not None and row.queue_total == len(policy.held)

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(reading, queue, policy)
        for number in range(SENT):
            send(number)
            # So that reads bring one packet, and many; the last one waits, too.
            if number % 97 in (0, 3, 40, 76):
                await eventually("all but the held packets are decided", idle)
                for udp in udps:
                    received.update(udp.waiting())
        udps[0].sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", 0))
        udps[0].send(b"end")
        await eventually("all packets are decided", lambda: not policy.held and idle())
        nursery.cancel_scope.cancel()
    assert backend.failed is None
    for udp in udps:
        received.update(udp.waiting())
    return policy, received


async def again(recording: Path, path: Path, reading: Reading) -> tuple[Policy, list[Outcome]]:
    """Replay a recording, and record that."""
    policy = Policy()
    replay = ReplayBackend(recording, check="all")
    backend: Backend = RecordingBackend(replay, path)
    async with open_queue(0, backend=backend) as queue:
        await reading(queue, policy)
    assert replay.shortfalls == {}
    return policy, replay.transcript


def packets_of(path: Path) -> list[tuple[int, int, bytes]]:
    """Id, mark and payload of each packet of a recording, read by the schema."""
    found = []
    with open_capture(path) as capture:
        for record in capture:
            if record.datagram and record.direction is Direction.FROM_KERNEL:
                for message in parse(record.datagram):
                    if isinstance(message, Message) and message.type == MessageType.PACKET:
                        values = by_name(NFQA, message.attributes)
                        header, payload = values["packet_hdr"], values["payload"]
                        mark = values.get("mark", 0)
                        assert isinstance(header, dict)
                        assert isinstance(payload, bytes)
                        assert isinstance(mark, int)
                        found.append((header["packet_id"], mark, payload))
    return found


def delivered(noted: list[Noted]) -> Counter[bytes]:
    """What has to arrive, by what the policy noted."""
    found: Counter[bytes] = Counter()
    for each in noted:
        # A loop is a second packet; without a mark it was no bypass; unrepaired is a bad checksum.
        passes = each.verdict in ("accept", "stop") or each.new_mark is not None
        if passes and not each.broken:
            found[IPView(each.new_payload or each.packet).data or b""] += 1
    return found


def outcomes_of(path: Path) -> list[Outcome]:
    """What became of each packet of a recording, by the verdicts that are in it."""
    with open_capture(path) as capture:
        return transcript(capture)


def verdict_of(outcome: Outcome) -> Verdict:
    """The verdict without the queue of a requeue."""
    assert outcome.verdict is not None
    return Verdict(outcome.verdict & VERDICT_MASK)


def agree(
    noted: list[Noted], outcomes: list[Outcome], packets: list[tuple[int, int, bytes]]
) -> None:
    """What the policy noted of itself is what was sent, packet by packet."""
    by_id = {each.packet_id: each for each in noted}
    assert len(by_id) == len(noted) == len(outcomes) == len(packets)
    for outcome, (packet_id, mark, payload) in zip(outcomes, packets, strict=True):
        own = by_id[packet_id]
        sent = outcome.packet_id, outcome.mark, outcome.payload
        assert sent == (own.packet_id, own.new_mark, own.new_payload)
        assert verdict_of(outcome).name.lower() == own.verdict
        assert (mark, payload) == (own.mark, own.packet)


async def test_live_and_replay_and_its_replay_have_the_same_outcomes(
    ns: Namespace, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.pcapng" for number in range(len(READINGS) + 1)]
    policy, received = await live(ns, paths[0], iterate)
    packets, outcomes = packets_of(paths[0]), outcomes_of(paths[0])

    # The live run itself: enough packets, every verdict, every kind of change, and its effect.
    assert len(packets) > SENT > 500
    agree(policy.noted, outcomes, packets)
    assert {verdict_of(each) for each in outcomes} == set(Verdict)
    changes = Counter((bool(each.new_mark), bool(each.new_payload)) for each in policy.noted)
    assert len(changes) == 4
    assert min(changes.values()) >= 20
    assert len({each.packet for each in policy.noted}) < len(policy.noted), "some came twice"
    assert received == delivered(policy.noted)

    # Each way of reading replays the recording of the run before.
    for reading, (before, after) in zip(READINGS, itertools.pairwise(paths), strict=True):
        replayed, told = await again(before, after, reading)
        assert replayed.noted == policy.noted
        assert packets_of(after) == packets
        assert outcomes_of(after) == told == outcomes
