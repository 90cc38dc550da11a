"""trionfq.testing: the conformance suite can fail, the scripted backend plays the kernel."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from trionfq import schema
from trionfq._errors import ConformanceError, LocalProtocolError, RemoteProtocolError
from trionfq._open import open_queue
from trionfq.backends._abc import Backend, QueueRow, Received
from trionfq.schema import Attr, ErrorMessage, Message
from trionfq.schema.nfqueue import NFQA, ConfigCommand, Hook, MessageType, QueueFlags, VerdictCode
from trionfq.testing import (
    BackendUnderTest,
    Cause,
    Effect,
    Fate,
    KernelModel,
    ScriptedBackend,
    check_backend,
    make_bind,
    make_config,
    make_packet,
    make_verdict,
    udp_packet,
)


def answers(backend: Backend) -> list[int]:
    """The errno of each answer that waits."""
    found = []
    for datagram in backend.receive_nowait(1000).datagrams:
        [message] = schema.parse(datagram)
        assert isinstance(message, ErrorMessage)
        found.append(-message.error)
    return found


def packets(backend: Backend, limit: int = 1000) -> list[dict[str, Any]]:
    """The attributes by name of each packet that waits."""
    found: list[dict[str, Any]] = []
    for datagram in backend.receive_nowait(limit).datagrams:
        [message] = schema.parse(datagram)
        assert isinstance(message, Message)
        found.append(schema.by_name(NFQA, message.attributes))
    return found


def bound(queue: int = 0, **options: Any) -> ScriptedBackend:
    backend = ScriptedBackend(**options)
    backend.send_nowait(make_bind(queue))
    assert answers(backend) == [0]
    return backend


# The suite passes what is right ...


async def test_the_scripted_backend_keeps_every_promise() -> None:
    def make() -> BackendUnderTest:
        backend = ScriptedBackend()
        return BackendUnderTest(
            backend, queue=5, arrive=lambda: backend.arrive(make_packet(queue=5))
        )

    await check_backend(make)


async def test_backends_that_share_a_kernel_keep_every_promise() -> None:
    kernel = KernelModel()

    def make() -> BackendUnderTest:
        backend = ScriptedBackend(kernel, max_send_bytes=65_536)
        return BackendUnderTest(
            backend, queue=9, arrive=lambda: backend.arrive(make_packet(queue=9))
        )

    await check_backend(make)
    assert kernel.rows() == []


async def test_a_backend_alone_is_enough() -> None:
    await check_backend(ScriptedBackend)


# ... and refuses what is not. Each fault breaks one promise, whose words the error has.


class NoQueues:
    """Everything but `queues`."""

    def __init__(self) -> None:
        inner = ScriptedBackend()
        for name in dir(inner):
            if not name.startswith("_") and name not in ("queues", "decisions"):
                setattr(self, name, getattr(inner, name))


class NewPort(ScriptedBackend):
    calls = 0

    @property
    def port_id(self) -> int:
        self.calls += 1
        return self.calls


class NoPort(ScriptedBackend):
    @property
    def port_id(self) -> int:
        return 0


class BackwardClock(ScriptedBackend):
    time = 1000

    def now_ns(self) -> int:
        self.time -= 1
        return self.time


class ComplainsOfInterfaces(ScriptedBackend):
    def interface_name(self, index: int) -> str | None:
        return {1: "lo"}[index]


class InventsInterfaces(ScriptedBackend):
    def interface_name(self, index: int) -> str | None:
        return f"if{index}"


class NothingIsNone(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        return super().receive_nowait(limit) if self._socket.readable else None  # type: ignore[return-value]


class PlainTuple(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        return tuple(super().receive_nowait(limit))  # type: ignore[return-value]


class MutableDatagrams(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        return received._replace(datagrams=[bytearray(d) for d in received.datagrams])  # type: ignore[misc]


class NoLimit(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        return super().receive_nowait(1000)


class NoCheckpoint(ScriptedBackend):
    async def wait_readable(self) -> None:
        if not self._socket.readable:
            await super().wait_readable()


class NoCancellation(ScriptedBackend):
    async def wait_readable(self) -> None:
        with trio.CancelScope(shield=self._socket.readable):
            await super().wait_readable()


class NoSchedule(ScriptedBackend):
    async def wait_readable(self) -> None:
        if self._socket.readable:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await super().wait_readable()


class EatsWhatItWaitedFor(ScriptedBackend):
    async def wait_readable(self) -> None:
        await super().wait_readable()
        self._socket.receive()


class StaysBusy(ScriptedBackend):
    busy = False

    async def wait_readable(self) -> None:
        if self.busy:
            raise trio.BusyResourceError
        self.busy = True
        await super().wait_readable()
        self.busy = False


class ManyWaiters(ScriptedBackend):
    async def wait_readable(self) -> None:
        self._check_open()
        while not self._readable:  # noqa: ASYNC110 - a fault on purpose
            await trio.sleep(0.01)
        await trio.lowlevel.checkpoint()


class SleepsOn(ScriptedBackend):
    def _wake(self) -> None:
        if self._socket.closed:
            super()._wake()


class WakesAtOnce(ScriptedBackend):
    def _wake(self) -> None:
        if self._waiting is not None and self._readable:
            self._waiting.set()


class SleepsOnWhenClosed(ScriptedBackend):
    def _wake(self) -> None:
        if not self._socket.closed:
            super()._wake()


class ClosesQuietly(ScriptedBackend):
    async def wait_readable(self) -> None:
        waiting = self._waiting is None
        try:
            await super().wait_readable()
        except trio.ClosedResourceError:
            if waiting:
                await trio.sleep_forever()
            raise


class ClosesOnce(ScriptedBackend):
    def close(self) -> None:
        self._check_open()
        super().close()


class SendsWhenClosed(ScriptedBackend):
    def send_nowait(self, datagram: bytes) -> None:
        if not self._socket.closed:
            super().send_nowait(datagram)


class ReceivesWhenClosed(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        return Received([]) if self._socket.closed else super().receive_nowait(limit)


class WaitsWhenClosed(ScriptedBackend):
    async def wait_readable(self) -> None:
        if self._socket.closed:
            await trio.sleep_forever()
        await super().wait_readable()


class AnswersLater(ScriptedBackend):
    looks = 0

    def receive_nowait(self, limit: int) -> Received:
        self.looks += 1
        return Received([]) if self.looks % 2 else super().receive_nowait(limit)


class AnswersTwice(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        return received._replace(datagrams=2 * received.datagrams)


class ForgetsTheSequence(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        return received._replace(
            datagrams=[d[:8] + bytes(4) + d[12:] if d[4] == 2 else d for d in received.datagrams]
        )


class AlwaysSuccess(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        return received._replace(
            datagrams=[d[:16] + bytes(4) + d[20:] if d[4] == 2 else d for d in received.datagrams]
        )


class Garbage(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        return received._replace(datagrams=[d[:-1] for d in received.datagrams])


class FirstMessageOnly(ScriptedBackend):
    def send_nowait(self, datagram: bytes) -> None:
        super().send_nowait(datagram[: struct.unpack_from("=I", datagram)[0]])


class NoRows(ScriptedBackend):
    def queues(self) -> list[QueueRow]:
        super().queues()
        return []


class OtherOwner(ScriptedBackend):
    def queues(self) -> list[QueueRow]:
        return [row._replace(portid=1) for row in super().queues()]


class RowsOfItsOwnKind(ScriptedBackend):
    def queues(self) -> list[QueueRow]:
        return [SimpleNamespace(**row._asdict()) for row in super().queues()]  # type: ignore[misc]


class RowsOutliveIt(ScriptedBackend):
    """Whoever was open when another closed goes on seeing its rows."""

    shared = KernelModel()
    family: ClassVar[list[RowsOutliveIt]] = []

    def __init__(self) -> None:
        super().__init__(self.shared)
        self.ghosts: list[QueueRow] = []
        self.family.append(self)

    def queues(self) -> list[QueueRow]:
        return super().queues() + self.ghosts

    def close(self) -> None:
        if not self._socket.closed:
            self.family.remove(self)
            for other in self.family:
                other.ghosts += self.queues()
        super().close()


class SmallBuffer(ScriptedBackend):
    def send_nowait(self, datagram: bytes) -> None:
        if len(datagram) > 1000:
            raise OSError(errno.EMSGSIZE, "too long")
        super().send_nowait(datagram)


class TakesPartOfIt(ScriptedBackend):
    def send_nowait(self, datagram: bytes) -> None:
        super().send_nowait(datagram[:100_000])
        if len(datagram) > 100_000:
            raise OSError(errno.EMSGSIZE, "too long")


class RefusesOddly(ScriptedBackend):
    def send_nowait(self, datagram: bytes) -> None:
        if len(datagram) > 100_000:
            raise OSError(errno.EINVAL, "whatever")
        super().send_nowait(datagram)


class Reorders(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        turned = received.datagrams[::-1]
        return received._replace(datagrams=turned) if turned and turned[0][4] == 0 else received


class OtherQueue(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        return received._replace(
            datagrams=[d[:19] + b"\x63" + d[20:] if d[4] == 0 else d for d in received.datagrams]
        )


class TwoInOne(ScriptedBackend):
    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        datagrams = [d + b"\0" * (-len(d) % 4) + d if d[4] == 0 else d for d in received.datagrams]
        return received._replace(datagrams=datagrams)


class LosesPackets(ScriptedBackend):
    def arrive(self, datagram: bytes, *, keep_id: bool = False, bypass: bool = False) -> Any:
        return None


class AcceptsEveryVerdict(ScriptedBackend):
    """Answers a verdict before it is sent on, as something that does not look would."""

    def receive_nowait(self, limit: int) -> Received:
        received = super().receive_nowait(limit)
        enoent = (-errno.ENOENT).to_bytes(4, "little", signed=True)
        return received._replace(
            datagrams=[
                d[:16] + bytes(4) + d[20:] if d[4] == 2 and d[16:20] == enoent else d
                for d in received.datagrams
            ]
        )


FAULTS: list[tuple[Callable[[], Any], str]] = [
    (NoQueues, "it has the methods of Backend: NoQueues lacks queues$"),
    (NewPort, "answer at any time: port_id changed"),
    (NoPort, "answer at any time: port_id 0 is no u32"),
    (BackwardClock, "answer at any time: now_ns went back"),
    (ComplainsOfInterfaces, r"answer at any time: raised KeyError"),
    (InventsInterfaces, "answer at any time: interface 0 cannot exist"),
    (NothingIsNone, "expected a Received, got None"),
    (PlainTuple, "expected a Received"),
    (MutableDatagrams, "expected bytes, got bytearray"),
    (NoLimit, "no more than were asked for: 3 datagrams, though at most 1"),
    (NoCheckpoint, "is a checkpoint.*it returned though it was cancelled"),
    (NoCancellation, "is a checkpoint.*it returned though it was cancelled"),
    (NoSchedule, "is a checkpoint.*without letting other tasks run"),
    (EatsWhatItWaitedFor, "is a checkpoint.*the answer was lost"),
    (StaysBusy, "is a checkpoint.*raised BusyResourceError"),
    (ManyWaiters, "a second waiter gets trio.BusyResourceError: two tasks could wait"),
    (SleepsOn, "a waiter wakes when a datagram comes: waking did not happen"),
    (WakesAtOnce, "send_nowait reschedules no task by itself: it woke"),
    (SleepsOnWhenClosed, "closing wakes a waiter.*the waiter's end did not happen"),
    (ClosesQuietly, "closing wakes a waiter.*the waiter's end did not happen"),
    (ClosesOnce, "after close everything raises.*and close is harmless: raised Closed"),
    (SendsWhenClosed, "after close everything raises.*send_nowait worked"),
    (ReceivesWhenClosed, "after close everything raises.*receive_nowait worked"),
    (WaitsWhenClosed, "after close everything raises.*wait_readable did not happen"),
    (AnswersLater, "expected one answer when send_nowait returns, got none"),
    (AnswersTwice, "expected one answer"),
    (ForgetsTheSequence, "must echo sequence number"),
    (AlwaysSuccess, "a verdict without a queue: expected errno 19, got errno 0"),
    (Garbage, "a datagram that the schema refuses"),
    (FirstMessageOnly, "of three messages in a datagram each is answered"),
    (NoRows, "queues lists what is bound.*has no row"),
    (OtherOwner, "queues lists what is bound.*is .1,"),
    (RowsOfItsOwnKind, "or not a QueueRow"),
    (RowsOutliveIt, "queues lists what is bound.*the row outlives its backend"),
    (SmallBuffer, "max_send_bytes can be sent.*raised OSError"),
    (TakesPartOfIt, "max_send_bytes can be sent.*an answer to what was refused"),
    (RefusesOddly, "max_send_bytes can be sent.*expected EMSGSIZE"),
    (lambda: ScriptedBackend(max_send_bytes=100), "max_send_bytes is 100, less than"),
    (Reorders, "in the order of their ids.*ids are"),
    (OtherQueue, "packets come whole.*expected queue 5"),
    (TwoInOne, "packets come whole.*expected one packet a datagram"),
    (LosesPackets, "packets come whole.*the arrival of 1 packets did not happen in 0.5 s"),
    (AcceptsEveryVerdict, "a verdict on no packet: expected errno 2, got errno 0"),
]


@pytest.mark.parametrize(
    ("faulty", "text"), FAULTS, ids=[getattr(f, "__name__", "?") for f, _ in FAULTS]
)
async def test_a_broken_promise_is_named(
    faulty: Callable[[], Any], text: str, autojump_clock: trio.testing.MockClock
) -> None:
    made: list[Any] = []

    def make() -> BackendUnderTest:
        backend = faulty()
        made.append(backend)
        return BackendUnderTest(
            backend,
            queue=5,
            arrive=lambda: backend.arrive(make_packet(queue=5)),
            patience_s=0.5,
        )

    with pytest.raises(ConformanceError, match=text) as caught:
        await check_backend(make)
    assert str(caught.value).startswith("backend: ")
    if isinstance(made[-1], ScriptedBackend):
        assert made[-1]._socket.closed


async def test_what_a_backend_raised_is_the_cause() -> None:
    with pytest.raises(ConformanceError) as caught:
        await check_backend(ComplainsOfInterfaces)
    assert isinstance(caught.value.__cause__, KeyError)


# The examples of docs/backends.md


def documented() -> dict[str, Any]:
    """What the pages' code defines, the example of a real socket left out."""
    page = (Path(__file__).parents[1] / "docs" / "backends.md").read_text()
    _, *blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    for block in blocks:
        exec(block, found)
    return found


async def test_the_documented_backend_passes_the_documented_check() -> None:
    await documented()["test_generated_backend"]()


async def test_a_queue_reads_the_documented_backend_to_its_end() -> None:
    payloads = [udp_packet(b"%d" % n) for n in range(300)]
    backend = documented()["GeneratedBackend"](payloads)
    seen = []
    async with open_queue(0, backend=backend) as queue:
        async for packet in queue:
            seen.append(packet.payload)
            packet.accept()
    assert seen == payloads


async def test_the_documented_wrapper_keeps_every_promise() -> None:
    counting = documented()["CountingBackend"]

    def make() -> BackendUnderTest:
        inner = ScriptedBackend()
        return BackendUnderTest(
            counting(inner), queue=5, arrive=lambda: inner.arrive(make_packet(queue=5))
        )

    await check_backend(make)
    backend = counting(bound())
    backend.send_nowait(make_bind())
    assert backend.sent_bytes == len(make_bind())
    [answer] = backend.receive_nowait(9).datagrams
    assert backend.received_bytes == len(answer)


# Datagrams


def test_a_packet_has_what_it_was_given_in_the_kernels_order() -> None:
    datagram = make_packet(
        0xFFFFFFFF,
        b"\x60 and so on",
        queue=65_535,
        hook=Hook.FORWARD,
        timestamp_ns=1_700_000_000_123_456_789,
        hw_address=b"\2\0\0\0\0\1",
        vlan=(0x8100, 5),
        uid=1000,
        mark=7,
        ifindex_outdev=3,
        ifindex_indev=2,
        extra=[Attr(99, b"new")],
    )
    [message] = schema.parse(datagram)
    assert isinstance(message, Message)
    assert (message.type, message.family, message.res_id) == (MessageType.PACKET, 10, 65_535)
    names = [NFQA.constant(attribute.number) for attribute in message.attributes]
    assert names == [
        "NFQA_PACKET_HDR",
        "NFQA_IFINDEX_INDEV",
        "NFQA_IFINDEX_OUTDEV",
        "NFQA_MARK",
        "NFQA_HWADDR",
        "NFQA_VLAN",
        "NFQA_TIMESTAMP",
        "NFQA_UID",
        "NFQA_PAYLOAD",
        "NFQA_#99",
    ]
    values = schema.by_name(NFQA, message.attributes)
    assert values["packet_hdr"] == {"packet_id": 0xFFFFFFFF, "hw_protocol": 0x86DD, "hook": 2}
    assert values["timestamp"] == {"sec": 1_700_000_000, "usec": 123_456}
    assert values["hwaddr"] == {"hw_addrlen": 6, "pad": 0, "hw_addr": b"\2\0\0\0\0\1\0\0"}
    assert values["vlan"] == (Attr(1, 0x8100), Attr(2, 5))


def test_a_packet_has_the_layout_that_the_kernel_model_gives() -> None:
    everything: dict[str, Any] = {
        "mark": 1,
        "priority": 2,
        "ifindex_indev": 3,
        "ifindex_physindev": 4,
        "timestamp_ns": 5_000,
        "hw_address": b"abcdef",
        "skb_info": 4,
        "uid": 6,
        "gid": 7,
        "cgroup_classid": 8,
    }
    backend = bound()
    backend.send_nowait(make_config(flags=QueueFlags.UID_GID, ack=False))
    sent = make_packet(1, udp_packet(b"odd"), **everything)
    backend.arrive(sent)
    assert backend.receive_nowait(2).datagrams == [sent]


def test_a_packet_without_payload_is_one_of_copy_mode_meta() -> None:
    [message] = schema.parse(make_packet(3, None))
    assert isinstance(message, Message)
    assert [attribute.number for attribute in message.attributes] == [1]


def test_a_packet_of_a_big_endian_host_differs_in_its_headers_only() -> None:
    for order in ("little", "big"):
        datagram = make_packet(5, mark=9, order=order)
        assert schema.parse(datagram, order=order) == schema.parse(make_packet(5, mark=9))


@pytest.mark.parametrize("name", ["nonsense", "verdict_hdr", "exp"])
def test_an_attribute_that_no_packet_has_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"no attribute '{name}'"):
        make_packet(1, None, **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError):
        make_packet(1, mark=-1)


@pytest.mark.parametrize("data", [b"", b"x", b"odd", bytes(1400)])
@pytest.mark.parametrize(
    ("source", "destination"), [("192.0.2.1", "10.7.0.255"), ("2001:db8::1", "fd00::2")]
)
def test_udp_packets_are_right_for_another_implementation(
    data: bytes, source: str, destination: str
) -> None:
    packet = udp_packet(data, source=source, destination=destination, ttl=3)
    layer = IPv6 if ":" in source else IP
    again = layer(packet)
    assert (again.src, again.dst, bytes(again[UDP].payload)) == (source, destination, data)
    for inner, fields in ((layer, ("chksum", "len", "plen")), (UDP, ("chksum", "len"))):
        for name in fields:
            if name in again[inner].fields:
                del again[inner].fields[name]
    assert bytes(again) == packet


def test_a_udp_sum_of_zero_is_sent_as_its_other_spelling() -> None:
    filler = udp_packet(b"\0\0")[26:28]  # brings the sum to all ones, its complement to 0
    assert udp_packet(filler)[26:28] == b"\xff\xff"


def test_requests_are_what_the_schema_reads() -> None:
    [bind] = schema.parse(make_bind(7, seq=3, max_len=5, flags=QueueFlags.FAIL_OPEN))
    assert isinstance(bind, Message)
    assert (bind.type, bind.flags, bind.seq, bind.res_id) == (MessageType.CONFIG, 5, 3, 7)
    assert schema.by_name(schema.nfqueue.NFQA_CFG, bind.attributes) == {
        "cmd": {"command": ConfigCommand.BIND, "pad": 0, "pf": 0},
        "params": {"copy_range": 0xFFFF, "copy_mode": 2},
        "queue_maxlen": 5,
        "mask": 1,
        "flags": 1,
    }
    [verdict] = schema.parse(make_verdict(9, VerdictCode.DROP, queue=7, mark=1, batch=True))
    assert isinstance(verdict, Message)
    assert (verdict.type, verdict.flags, verdict.seq) == (MessageType.VERDICT_BATCH, 1, 9)
    assert schema.by_name(NFQA, verdict.attributes) == {
        "verdict_hdr": {"verdict": 0, "id": 9},
        "mark": 1,
    }


# The scripted backend


def test_a_packet_waits_for_its_verdict() -> None:
    backend = bound(4)
    arrival = backend.arrive(make_packet(77, udp_packet(b"hello"), queue=4))
    assert (arrival.fate, arrival.ids) == (Fate.QUEUED, (1,))
    [packet] = packets(backend)
    assert packet["packet_hdr"]["packet_id"] == 1
    assert backend.decisions == []
    backend.send_nowait(make_verdict(1, queue=4, mark=6, payload=udp_packet(b"bye")))
    [decision] = backend.decisions
    assert (decision.queue, decision.packet_id, decision.effect) == (4, 1, Effect.ACCEPTED)
    assert decision.packet.payload == udp_packet(b"bye")
    assert decision.changes.mark == 6
    assert backend.sent[-1] == make_verdict(1, queue=4, mark=6, payload=udp_packet(b"bye"))


def test_a_packet_may_keep_its_id() -> None:
    backend = bound()
    for packet_id in (0xFFFFFFFE, 3):
        assert backend.arrive(make_packet(packet_id), keep_id=True).ids == (packet_id,)
    with pytest.raises(ValueError, match="does not come after"):
        backend.arrive(make_packet(2), keep_id=True)


def test_a_packet_finds_its_queues_door_closed() -> None:
    backend = ScriptedBackend()
    assert backend.arrive(make_packet()).fate is Fate.NO_LISTENER
    assert backend.arrive(make_packet(), bypass=True).fate is Fate.BYPASSED


def test_only_a_packet_can_arrive() -> None:
    backend = ScriptedBackend()
    with pytest.raises(ValueError, match="one packet"):
        backend.arrive(make_bind())
    with pytest.raises(ValueError, match="one packet"):
        backend.arrive(make_packet(1, None) + make_packet(2, None))
    with pytest.raises(RemoteProtocolError):
        backend.arrive(make_packet()[:30])


def test_any_bytes_can_be_injected_and_come_in_order() -> None:
    backend = bound()
    backend.arrive(make_packet())
    backend.inject(b"\1\2\3")
    backend.arrive(make_packet())
    first, odd, last = backend.receive_nowait(9).datagrams
    assert odd == b"\1\2\3"
    assert first[24:28] + last[24:28] == struct.pack("!II", 1, 2)


def test_reported_losses_are_seen_once() -> None:
    backend = bound()
    backend.report(overruns=1)
    backend.report(overruns=1, truncated=3, foreign=4)
    assert backend.receive_nowait(5) == Received([], 2, 3, 4)
    assert backend.receive_nowait(5) == Received([])


@pytest.mark.parametrize("no_enobufs", [True, False])
def test_a_full_receive_buffer_loses_packets(no_enobufs: bool) -> None:
    backend = bound(receive_buffer_bytes=4096, no_enobufs=no_enobufs)
    fates = [backend.arrive(make_packet()).fate for _ in range(10)]
    received = backend.receive_nowait(100)
    lost = fates.count(Fate.UNSENT)
    assert len(received.datagrams) == 10 - lost > 0
    assert received.overruns == (0 if no_enobufs else 1)
    assert backend.socket_drops() == lost == backend.queues()[0].user_dropped > 0


def test_the_end_is_told_when_all_is_read_and_decided() -> None:
    backend = bound()
    backend.arrive(make_packet())
    backend.end()
    assert not backend.receive_nowait(0).ended
    assert not backend.receive_nowait(9).ended
    backend.send_nowait(make_verdict(1))
    assert backend.receive_nowait(9).ended


async def test_the_end_wakes_a_waiter_only_when_it_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = bound()
    backend.arrive(make_packet())
    packets(backend)
    backend.end()
    with trio.move_on_after(1) as scope:
        await backend.wait_readable()
    assert scope.cancelled_caught
    backend.send_nowait(make_verdict(1))
    with trio.fail_after(1):
        await backend.wait_readable()


async def test_an_arrival_wakes_a_waiter() -> None:
    backend = bound()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.wait_readable)
        await trio.testing.wait_all_tasks_blocked()
        backend.arrive(make_packet())


def test_without_privilege_everything_is_refused() -> None:
    backend = ScriptedBackend(privileged=False)
    backend.send_nowait(make_bind())
    assert answers(backend) == [errno.EPERM]
    assert backend.queues() == []


def test_two_backends_of_one_kernel_are_rivals() -> None:
    kernel = KernelModel()
    first, second = ScriptedBackend(kernel), ScriptedBackend(kernel)
    first.send_nowait(make_bind())
    second.send_nowait(make_bind())
    assert (answers(first), answers(second)) == ([0], [errno.EPERM])
    assert [row.portid for row in second.queues()] == [first.port_id]
    first.arrive(make_packet())
    first.close()
    assert [(d.effect, d.cause) for d in second.decisions] == [(Effect.DROPPED, Cause.CLOSE)]


async def test_hooks_are_called_first() -> None:
    backend = bound()
    calls: list[object] = []

    def refuse(datagram: bytes) -> None:
        calls.append(datagram)
        raise OSError(errno.ENOBUFS, "no memory")

    async def before_waiting() -> None:
        calls.append("wait")
        backend.arrive(make_packet())

    sent = len(backend.sent)
    backend.send_hook = refuse
    backend.receive_hook = calls.append
    backend.wait_readable_hook = before_waiting
    backend.close_hook = lambda: calls.append("close")
    with pytest.raises(OSError, match="no memory"):
        backend.send_nowait(make_verdict(1))
    assert len(backend.sent) == sent
    await backend.wait_readable()
    assert len(packets(backend, 7)) == 1
    backend.close()
    backend.close()
    assert calls == [make_verdict(1), "wait", 7, "close"]


def test_names_and_time_are_the_tests_to_say() -> None:
    backend = ScriptedBackend(interfaces={2: "wan"}, clock=lambda: 5)
    assert (backend.interface_name(1), backend.interface_name(2)) == (None, "wan")
    backend.interfaces[1] = "lan"
    assert backend.interface_name(1) == "lan"
    assert backend.now_ns() == 5
