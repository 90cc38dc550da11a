"""Verdicts joined and sent to the kernel: each packet has exactly the fate that it was told.

The same as ``tests/test_state_machine.py``, with the kernel in the model's place. Every packet
carries a number, so that the witness (``_witness.py``) shows which of them passed, where, and with
which mark and payload; the book (``_fates.py``) compares that with what each was told, and the
kernel's counters with its own, after every flush. At the end faults are planted, one at a time, and
each must be noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trionfq import AlreadyDecidedError, LocalProtocolError, NetlinkBackend, Packet, Queue, Verdict
from trionfq._config import QueueConfig
from trionfq._errors import VerdictRefusedError
from trionfq._ledger import Ledger
from trionfq._link import Link
from trionfq._open import _bind
from trionfq._protocol import QueueProtocol
from trionfq._read_ahead import ReadAhead
from trionfq._verdict import decision
from trionfq.schema.nfqueue import QueueFlags

from ._fates import GONE, Book, Told
from ._live import with_data
from ._witness import (
    AGAIN,
    LATER,
    NOBODY,
    NUMBER,
    OUTPUT,
    REPEATED,
    WITNESS,
    Bench,
    Seen,
    Spoiling,
    data_of,
)
from .harness import Namespace

# A queue holds at most so many: they stay charged to the sender, which would have to wait.
MOST_WAITING = 200
WHOLE, SHORT = 0xFFFF, 34
"""What is copied of a packet: all, or not the end of the longer ones, but the number."""
ROOM, SMALL_ROOM = 212_992, 8192
POLICIES = st.sampled_from([Verdict.ACCEPT, Verdict.DROP])
FLAGS = st.sampled_from([QueueFlags(0), QueueFlags.FAIL_OPEN])
VERBS = [
    "accept",
    "drop",
    "mark",
    "priority",
    "payload",
    "edit",
    "stop",
    "repeat",
    "again",
    "requeue",
    "requeue_here",
    "requeue_nobody",
    "requeue_bypass",
    "refused",
]
PLAIN = ["accept", "drop", "mark", "stop", "requeue"]
open_only = precondition(lambda self: self.queue is not None)


class Wire(RuleBasedStateMachine):
    bench: Bench
    protocol_class = QueueProtocol
    queue: Queue | None = None

    @initialize(
        room=st.sampled_from([ROOM, ROOM, SMALL_ROOM]),
        most=st.sampled_from([64, 200, 8192]),
        policy=POLICIES,
    )
    def start(self, room, most, policy):
        self.bench.begin()
        self.room = room
        self.most = most
        self.open(1024, QueueFlags(0), policy)

    def open(self, max_len, flags, policy):
        inner = NetlinkBackend(namespace=self.bench.ns.name, receive_buffer_bytes=self.room)
        backend = Spoiling(inner, self.most)
        config = QueueConfig(NUMBER, max_len=max_len, flags=flags)
        self.protocol = self.protocol_class(config, policy=policy)
        self.link = Link(self.protocol, backend, ReadAhead(), self.hear)
        try:
            _bind(self.link)
        except BaseException:
            inner.close()
            raise
        self.policy = policy
        self.queue = Queue(self.link, on_close=policy, checkpoint_every=None)
        self.book = Book(self.bench)
        self.numbers = {}  # id -> number, of what was read in this binding
        self.handed = []  # packets that the program has

    def hear(self, error: Exception, packet: Packet | None) -> None:
        assert isinstance(error, VerdictRefusedError)
        assert packet is not None, "nobody knows any more which packet was refused"
        assert not packet.decided
        self.book.heard_refusal(packet.id)

    def read_ahead(self):
        """What the queue has read and not handed out, left as it is."""
        ahead = self.link.ahead
        return ahead._batch[ahead._position :]

    def enter(self):
        """Enter what was read into the book."""
        # Not by asking the ledger, which would be filed for that and leave its short way.
        for packet in self.read_ahead():
            if packet.id not in self.numbers:
                self.numbers[packet.id] = self.book.read(packet)

    def known(self):
        """All undecided packets, the oldest first."""
        packets = [p for p in self.handed + self.read_ahead() if not p.decided]
        return sorted(packets, key=lambda packet: packet.id)

    def undecided(self):
        return [packet for packet in self.handed if not packet.decided]

    def pick(self, index):
        undecided = self.undecided()
        return undecided[index % len(undecided)] if undecided else None

    # -- what the world does -------------------------------------------------------------------

    @open_only
    @rule(count=st.integers(1, 12))
    def packets_arrive(self, count):
        for _ in range(count):
            if self.book.row.queue_total < MOST_WAITING:
                self.book.arrive(self.protocol.config)

    @precondition(lambda self: self.queue is not None and len(self.book.waiting) > 2)
    @rule()
    def device_goes_down(self):
        self.bench.device_goes_down()
        self.book.device_went_down()

    # -- what we do ----------------------------------------------------------------------------

    @open_only
    @rule(drains=st.integers(1, 3))
    def we_read(self, drains):
        for _ in range(drains):
            self.link.drain()
        self.link.report()
        self.enter()

    @open_only
    @rule()
    def we_take_what_was_read(self):
        self.handed += self.link.ahead.take_all()

    @open_only
    @rule(
        indices=st.lists(st.integers(0, 63), min_size=1, max_size=8),
        verb=st.sampled_from(VERBS),
        value=st.integers(1, 2),
    )
    def we_decide(self, indices, verb, value):
        for index in indices:
            packet = self.pick(index)
            if packet is not None and not packet.held:
                self.decide(packet, verb, value)

    def decide(self, packet, verb, value):
        number = self.numbers[packet.id]
        data = data_of(number)
        seen = Seen(data=data)
        if verb in {"payload", "edit"}:
            if packet.truncated:
                with pytest.raises(LocalProtocolError, match="copied only in part"):
                    packet.accept(payload=packet.payload)
                return
            seen = Seen(data=data[:4] + b"new" * value)
            new = with_data(packet, seen.data)
            if verb == "edit":
                packet.payload = new
                packet.accept()
            else:
                packet.accept(payload=new, mark=value)
                seen = seen._replace(mark=LATER | value)
        elif verb == "accept":
            packet.accept()
        elif verb == "drop":
            packet.drop()
            seen = GONE
        elif verb == "mark":
            packet.accept(mark=value)
            seen = seen._replace(mark=LATER | value)
        elif verb == "priority":
            packet.accept(priority=value, mark=1)
            seen = seen._replace(mark=LATER | 1, priority=value)
        elif verb == "stop":
            packet.stop()
            seen = seen._replace(mark=0)
        elif verb == "repeat":
            packet.repeat(mark=AGAIN | value)
            seen = seen._replace(mark=LATER | REPEATED | AGAIN | value)
        elif verb == "again":
            packet.repeat(allow_loop=True)
            seen = Told.AGAIN
        elif verb == "requeue":
            packet.requeue(WITNESS, mark=value)
            seen = seen._replace(hook=OUTPUT, mark=value)
        elif verb == "requeue_here":
            packet.requeue(NUMBER)
            seen = Told.AGAIN
        elif verb == "requeue_nobody":
            packet.requeue(NOBODY)
            seen = GONE
        elif verb == "requeue_bypass":
            packet.requeue(NOBODY, bypass=True)
        elif self.room == ROOM:  # where the answer to a refused verdict finds room
            packet.settle(decision(Verdict.ACCEPT, {"vlan": (0x8100, 5)}))
            seen = Told.REFUSED
        else:
            return
        self.book.tell(number, seen)

    @open_only
    @rule()
    def we_accept_all(self):
        for packet in self.undecided():
            if not packet.held:
                self.decide(packet, "accept", 0)

    @open_only
    @rule(index=st.integers(0, 63))
    def we_hold(self, index):
        packet = self.pick(index)
        if packet is not None:
            packet.hold()

    @open_only
    @rule(
        count=st.integers(2, 8),
        index=st.integers(0, 63),
        verbs=st.lists(st.sampled_from(VERBS), min_size=1, max_size=3),
    )
    def one_waits_while_others_pass(self, count, index, verbs):
        self.packets_arrive(count)
        self.we_read(1)
        self.we_take_what_was_read()
        self.we_hold(index)
        self.decide_in_order(verbs)
        self.verdicts_leave()

    @open_only
    @rule(
        count=st.integers(2, 12),
        verbs=st.lists(st.sampled_from(PLAIN), min_size=1, max_size=2),
        backwards=st.booleans(),
    )
    def a_batch_passes(self, count, verbs, backwards):
        self.packets_arrive(count)
        self.we_read(3)
        self.we_take_what_was_read()
        self.decide_in_order(verbs, backwards=backwards)
        self.verdicts_leave()

    @precondition(lambda self: self.queue is not None and self.room == ROOM)
    @rule(count=st.integers(3, 6))
    def others_pass_a_refused_one(self, count):
        self.packets_arrive(count)
        self.we_read(1)
        self.we_take_what_was_read()
        for packet in self.undecided()[:1]:
            self.decide(packet, "refused", 1)
        self.verdicts_leave()
        self.decide_in_order(["accept"])
        self.verdicts_leave()

    def decide_in_order(self, verbs, *, backwards=False):
        """Each verb for as many packets in a row."""
        packets = [packet for packet in self.undecided() if not packet.held]
        packets.sort(key=lambda packet: packet.id, reverse=backwards)
        for place, packet in enumerate(packets):
            self.decide(packet, verbs[place * len(verbs) // len(packets)], 1)

    @open_only
    @rule(index=st.integers(0, 63), verdict=POLICIES, mark=st.sampled_from([None, 1]))
    def we_decide_by_id(self, index, verdict, mark):
        packets = self.known()
        if packets:
            packet = packets[index % len(packets)]
            mark = mark if verdict is Verdict.ACCEPT else None
            self.queue.set_verdict(packet.id, verdict, mark=mark)
            number = self.numbers[packet.id]
            self.book.tell(number, self.seen_by_id(number, verdict, mark))

    @open_only
    @rule(index=st.integers(0, 63), verdict=POLICIES, mark=st.sampled_from([None, 1]))
    def we_decide_up_to_an_id(self, index, verdict, mark):
        packets = self.known()
        if packets:
            last = packets[index % len(packets)].id
            mark = mark if verdict is Verdict.ACCEPT else None
            meant = [packet.id for packet in packets if packet.id <= last]
            assert self.queue.set_verdict_batch(last, verdict, mark=mark) == len(meant)
            for packet_id in meant:
                number = self.numbers[packet_id]
                self.book.tell(number, self.seen_by_id(number, verdict, mark))

    def seen_by_id(self, number, verdict, mark):
        if verdict is Verdict.DROP:
            return GONE
        return Seen(mark=LATER | (mark or 0), data=data_of(number))

    @open_only
    @rule(index=st.integers(0, 63))
    def a_second_verdict_is_refused(self, index):
        decided = [packet for packet in self.handed if packet.decided]
        if decided:
            packet = decided[index % len(decided)]
            with pytest.raises(AlreadyDecidedError):
                packet.drop()

    @open_only
    @rule()
    def verdicts_leave(self):
        self.link.flush()
        self.book.sent(self.protocol.config)

    @open_only
    @rule(
        max_len=st.sampled_from([0, 3, 10, 1024]),
        copy_range=st.sampled_from([WHOLE, SHORT]),
        flags=FLAGS,
    )
    def we_reconfigure(self, max_len, copy_range, flags):
        self.queue.configure(max_len=max_len, copy_range=copy_range, flags=flags)
        self.link.report()
        self.enter()
        assert self.bench.row().copy_range == min(copy_range, 65_531)

    @open_only
    @rule(count=st.integers(0, 6), drains=st.integers(0, 1), ready=st.booleans())
    def we_close(self, count, drains, ready):
        self.packets_arrive(count)
        if drains:
            self.we_read(drains)
        if not ready or self.book.brings_back:
            self.verdicts_leave()
            self.check_loss()
        config = self.protocol.config
        queue, self.queue = self.queue, None
        assert queue.close(normally=False) is None
        assert self.bench.ns.queue_row(NUMBER) is None
        self.book.closed(self.policy, config)
        for packet in self.undecided():
            with pytest.raises(Exception, match="has ended"):
                packet.accept()

    def check_loss(self):
        """Once a packet behind them was read, the gaps in the ids are what the kernel lost."""
        while self.protocol.counts.packets_received < self.book.row.id_sequence:
            before = self.protocol.counts.packets_received
            self.we_read(1)
            self.we_take_what_was_read()
            if self.protocol.counts.packets_received == before:
                break
        row = self.book.row
        if row.queue_total < min(self.protocol.config.max_len, MOST_WAITING):
            self.packets_arrive(1)
            self.we_read(1)
            seen = self.queue.statistics()
            assert seen.packets_received + seen.packets_lost == self.book.row.id_sequence
            assert seen.packets_lost >= self.book.row.user_dropped

    @precondition(lambda self: self.queue is None)
    @rule(max_len=st.sampled_from([2, 1024]), flags=FLAGS, policy=POLICIES)
    def we_open_again(self, max_len, flags, policy):
        self.open(max_len, flags, policy)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def nothing_is_held_against_us(self):
        if self.queue is None:
            return
        assert self.link.failure is None
        assert not self.protocol.undecodable
        # A verdict finds no packet only if the kernel had thrown it away.
        assert self.protocol.counts.verdicts_gone <= len(self.book.thrown)

    def teardown(self):
        if self.queue is not None:
            queue, self.queue = self.queue, None
            queue.close(normally=False)
            self.bench.look()


SETTINGS = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def bench(ns: Namespace, one_cpu: None) -> Iterator[Bench]:
    with closing(Bench(ns)) as made:
        yield made


def test_every_packet_has_the_fate_that_it_was_told(bench: Bench) -> None:
    machine = type("WireOfNamespace", (Wire,), {"bench": bench})
    run_state_machine_as_test(machine, settings=SETTINGS)


# --- faults, planted one at a time ----------------------------------------------------------------


class SweepsTheHeld(QueueProtocol):
    def _sweepable(self, pending, start, end, lowest_open):
        return end


class SendsInTheOrderOfTelling(QueueProtocol):
    def _take_pending(self):
        told = [packet.id for packet in self._given]
        entries = {entry[0]: entry for entry in super()._take_pending()}
        return [entries.pop(i) for i in told] + list(entries.values())

    def _flush_fresh(self, told, most_bytes):
        return []


class SettlesAtOnce(QueueProtocol):
    def flush(self, most_bytes):
        datagrams = super().flush(most_bytes)
        self.settled()
        return datagrams


class AnswersTwice(QueueProtocol):
    def flush(self, most_bytes):
        return [d for d in super().flush(most_bytes) for _ in range(2)]


class LosesTheSecondDatagram(QueueProtocol):
    def flush(self, most_bytes):
        datagrams = super().flush(most_bytes)
        return datagrams[:1] + datagrams[2:]


class ClosesCountingFromTheLast(QueueProtocol):
    def _everything(self):
        return [((self.last_id or 0) + 2**31 - 1) & 0xFFFFFFFF]


def highest_open(ledger: Ledger) -> int | None:
    return next(reversed(ledger.in_order()), None)


LEDGER_FAULTS = {
    "takes_the_highest_for_the_lowest": ("lowest_open", highest_open),
    "forgets_what_is_filed": ("only_fresh", property(lambda ledger: True)),
}
SWEPT = "was swept|the kernel holds"


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        pytest.param(SweepsTheHeld, SWEPT, id="sweeps the held"),
        pytest.param(
            SendsInTheOrderOfTelling, f"in the order|told Seen|{SWEPT}", id="does not sort"
        ),
        pytest.param(SettlesAtOnce, f"nobody knows|{SWEPT}", id="settles too early"),
        pytest.param(AnswersTwice, "verdicts_gone", id="answers twice"),
        pytest.param(LosesTheSecondDatagram, "were lost|the kernel holds", id="loses a datagram"),
        pytest.param(ClosesCountingFromTheLast, "were lost", id="closes from the last"),
        pytest.param(
            "takes_the_highest_for_the_lowest", f"were lost|{SWEPT}", id="wrong lowest undecided"
        ),
        pytest.param("forgets_what_is_filed", SWEPT, id="forgets what is filed"),
    ],
)
def test_a_planted_fault_is_noticed(
    bench: Bench,
    fault: type[QueueProtocol] | str,
    noticed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts: dict[str, object] = {"bench": bench}
    if isinstance(fault, str):
        monkeypatch.setattr(Ledger, *LEDGER_FAULTS[fault])
    else:
        parts["protocol_class"] = fault
    machine = type("Faulty", (Wire,), parts)
    once = settings(
        SETTINGS,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises(BaseException, match=noticed) as caught:
        run_state_machine_as_test(machine, settings=once)
    assert isinstance(caught.value, AssertionError)
