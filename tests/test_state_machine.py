"""Our side of the protocol against the kernel's, step by step, without a loop or a socket.

The machine keeps a third book: what it told each packet. Whatever the kernel model then does to a
packet because of us must be exactly that. At the end five faults are planted, one at a time, and
each must be noticed.
"""

from __future__ import annotations

import errno

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

import trionfq._protocol
from trionfq import schema
from trionfq._config import QueueConfig
from trionfq._errors import AlreadyDecidedError, LocalProtocolError
from trionfq._kernel_model import Cause, Effect, Fate, KernelModel, PacketIn
from trionfq._ledger import Ledger
from trionfq._protocol import QueueProtocol
from trionfq._verdict import Verdict, decision, queue_code
from trionfq.schema.nfqueue import NFQA, CopyMode, QueueFlags

NUMBER = 5
NO_FLAGS = QueueFlags(0)
OTHER = 6
BY_US = {Cause.VERDICT, Cause.BATCH}
EFFECTS = {
    Verdict.DROP: Effect.DROPPED,
    Verdict.ACCEPT: Effect.ACCEPTED,
    Verdict.STOP: Effect.STOPPED,
    Verdict.REPEAT: Effect.REPEATED,
}
PAYLOAD = bytes.fromhex("4500001c00010000401166ce0a0000010a0000020035003500080000")
INDEV = NFQA.by_name["ifindex_indev"].number


class Wire(RuleBasedStateMachine):
    protocol_class = QueueProtocol

    @initialize(
        first_id=st.sampled_from([1, 2**32 - 7]),
        room=st.sampled_from([4, 12, 10_000]),
        no_enobufs=st.booleans(),
        most=st.sampled_from([64, 200, 65536]),
    )
    def start(self, first_id, room, no_enobufs, most):
        self.kernel = KernelModel(first_id=first_id, requeue_repeats=False, follow_queue=False)
        self.room = room
        self.no_enobufs = no_enobufs
        self.most = most
        self.stale = []
        self.bound = False
        self.open()

    # -- the third book ------------------------------------------------------------------------

    def open(self, max_len=1024, flags=NO_FLAGS):
        self.sock = self.kernel.open_socket(receive_buffer_messages=self.room)
        self.sock.no_enobufs = self.no_enobufs
        self.sock.cap_ack = self.sock.ext_ack = True
        config = QueueConfig(NUMBER, max_len=max_len, flags=flags)
        self.protocol = self.protocol_class(config)
        self.packets = {}  # id -> Packet, all that were handed to us in this binding
        self.told = {}  # id -> verdict code
        self.done = {}  # id -> what the kernel did to a packet because of us
        self.flushed = set()  # ids that the kernel threw away by itself
        self.ids_lost = 0
        assert self.request(self.protocol.bind_request()) == 0
        self.bound = True

    def request(self, asked):
        """The errno of a request's answer; the answer can be lost only if the kernel says so."""
        sequence, datagram = asked
        drops = self.sock.drops
        self.sock.send(datagram)
        self.read_all()
        answer = self.protocol.answers.pop(sequence, None)
        if answer is None:
            assert self.sock.drops > drops, "an acknowledgement was lost on our side"
            return None
        return -answer.error

    def read(self, limit):
        datagrams = []
        for _ in range(limit):
            try:
                message = self.sock.receive()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            if message is None:
                break
            datagrams.append(schema.build([message]))
        for packet in self.protocol.receive(datagrams):
            assert packet.id not in self.packets or packet.id in self.told
            self.packets[packet.id] = packet
            self.told.pop(packet.id, None)
            self.done.pop(packet.id, None)
        if not self.sock.readable:
            self.protocol.settled()

    def read_all(self):
        while self.sock.readable:
            self.read(50)

    def send(self):
        for datagram in self.protocol.flush(self.most):
            messages = schema.parse(datagram)
            assert len(datagram) <= self.most or len(messages) == 1
            self.sock.send(datagram)
        self.check_decisions()

    def check_decisions(self):
        for made in self.kernel.take_decisions():
            if made.queue != NUMBER:
                continue
            if made.cause not in BY_US:
                self.flushed.add(made.packet_id)
                continue
            code = self.told.get(made.packet_id)
            assert code is not None, f"packet {made.packet_id} was swept"
            assert made.verdict == code
            assert made.packet_id not in self.done
            self.done[made.packet_id] = made
            if code & 0xFF != Verdict.QUEUE:
                assert made.effect is EFFECTS[Verdict(code)]

    def undecided(self):
        return [p for i, p in self.packets.items() if i not in self.told]

    def pick(self, index):
        undecided = self.undecided()
        return undecided[index % len(undecided)] if undecided else None

    # -- what the world does -------------------------------------------------------------------

    @precondition(lambda self: self.bound)
    @rule(count=st.integers(1, 12), device=st.sampled_from([1, 2]))
    def packets_arrive(self, count, device):
        for _ in range(count):
            before = self.kernel.rows()[0]
            arrival = self.kernel.enqueue(NUMBER, PacketIn(PAYLOAD, values={INDEV: device}))
            if arrival.fate is Fate.FULL:
                assert before.queue_total >= self.protocol.config.max_len
            if arrival.fate is Fate.FAILED_OPEN:
                assert self.protocol.config.flags & QueueFlags.FAIL_OPEN
            if arrival.fate is not Fate.QUEUED:
                # A delivery that failed has used up an id, fail-open or not.
                after = self.kernel.rows()[0]
                self.ids_lost += after.id_sequence != before.id_sequence

    @precondition(lambda self: self.bound)
    @rule(device=st.sampled_from([1, 2]))
    def device_goes_down(self, device):
        self.kernel.device_down(device)
        self.check_decisions()

    @precondition(lambda self: self.bound)
    @rule()
    def hooked_table_is_deleted(self):
        self.kernel.hook_unregistered()
        self.check_decisions()

    # -- what we do ----------------------------------------------------------------------------

    @precondition(lambda self: self.bound)
    @rule(limit=st.integers(1, 20))
    def we_read(self, limit):
        self.read(limit)

    @precondition(lambda self: self.bound)
    @rule(
        indices=st.lists(st.integers(0, 63), min_size=1, max_size=8),
        verb=st.sampled_from(["accept", "drop", "stop", "repeat", "requeue", "mark", "payload"]),
    )
    def we_decide(self, indices, verb):
        for index in indices:
            packet = self.pick(index)
            if packet is None:
                return
            code = {
                "drop": Verdict.DROP,
                "stop": Verdict.STOP,
                "repeat": Verdict.REPEAT,
                "requeue": queue_code(OTHER, bypass=True),
            }.get(verb, Verdict.ACCEPT)
            self.told[packet.id] = code
            if verb == "mark":
                packet.accept(mark=index)
            elif verb == "payload":
                packet.accept(payload=PAYLOAD)
            elif verb == "repeat":
                packet.repeat(mark=1)
            elif verb == "requeue":
                packet.requeue(OTHER, bypass=True)
            else:
                getattr(packet, verb)()

    @precondition(lambda self: self.bound)
    @rule()
    def we_accept_all(self):
        for packet in self.undecided():
            if not packet.held:
                self.told[packet.id] = Verdict.ACCEPT
                packet.accept()

    @precondition(lambda self: self.bound)
    @rule(count=st.integers(2, 8), index=st.integers(0, 63), device=st.sampled_from([1, 2]))
    def one_waits_while_others_pass(self, count, index, device):
        self.packets_arrive(count, device)
        self.read_all()
        self.we_hold(index)
        self.we_accept_all()
        self.send()

    @precondition(lambda self: self.bound)
    @rule(index=st.integers(0, 63))
    def we_hold(self, index):
        packet = self.pick(index)
        if packet is not None:
            packet.hold()

    @precondition(lambda self: self.bound)
    @rule(index=st.integers(0, 63), kind=st.sampled_from([Verdict.ACCEPT, Verdict.DROP]))
    def we_answer_up_to_an_id(self, index, kind):
        packet = self.pick(index)
        if packet is None:
            return
        position = list(self.packets).index(packet.id)
        for packet_id in list(self.packets)[: position + 1]:
            self.told.setdefault(packet_id, kind)
        self.protocol.decide_up_to(packet.id, decision(kind, {}))

    @precondition(lambda self: self.bound)
    @rule(index=st.integers(0, 63))
    def a_second_verdict_is_refused(self, index):
        decided = [self.packets[i] for i in self.told if i in self.packets]
        if decided:
            packet = decided[index % len(decided)]
            with pytest.raises(AlreadyDecidedError):
                packet.drop()
            if packet.id != self.protocol.last_id:
                with pytest.raises((AlreadyDecidedError, LocalProtocolError)):
                    self.by_id(packet)

    def by_id(self, packet):
        known = self.protocol.undecided_packet(packet.id)
        if known is not None:
            known.drop()
        else:
            self.protocol.decide_id(packet.id, decision(Verdict.DROP, {}))

    @precondition(lambda self: self.bound)
    @rule()
    def verdicts_leave(self):
        self.send()

    @precondition(lambda self: self.bound)
    @rule(
        max_len=st.sampled_from([0, 3, 10, 1024]),
        flags=st.sampled_from([QueueFlags(0), QueueFlags.FAIL_OPEN]),
        mode=st.sampled_from([CopyMode.PACKET, CopyMode.META]),
    )
    def we_reconfigure(self, max_len, flags, mode):
        config = self.protocol.config._replace(max_len=max_len, flags=flags)
        assert self.request(self.protocol.reconfigure(config)) in (0, None)
        row = self.kernel.queue(NUMBER)
        assert row is not None
        assert row.max_len == max_len
        assert row.flags == flags

    @precondition(lambda self: self.bound)
    @rule()
    def a_setting_that_the_kernel_refuses_is_answered(self):
        config = self.protocol.config
        asked = self.protocol.reconfigure(config._replace(flags=QueueFlags.CONNTRACK))
        assert self.request(asked) in (errno.EOPNOTSUPP, errno.EINVAL, None)
        self.protocol.config = config

    @precondition(lambda self: self.bound)
    @rule(policy=st.sampled_from([Verdict.ACCEPT, Verdict.DROP]))
    def we_close(self, policy):
        self.bound = False
        self.send()
        self.check_loss()
        waiting = self.kernel.rows()[0].queue_total
        for datagram in self.protocol.end(policy, self.most):
            self.sock.send(datagram)
        assert not self.kernel.rows()
        ended = [d for d in self.kernel.take_decisions() if d.queue == NUMBER]
        assert len(ended) == waiting
        wanted = Effect.ACCEPTED if policy is Verdict.ACCEPT else Effect.DROPPED
        assert {made.effect for made in ended} <= {wanted}
        self.sock.close()
        self.stale = [p for i, p in self.packets.items() if i not in self.told] or self.stale

    @precondition(lambda self: not self.bound)
    @rule(max_len=st.sampled_from([2, 1024]), flags=st.sampled_from([0, 1]))
    def we_open_again(self, max_len, flags):
        self.open(max_len, QueueFlags(flags))

    @precondition(lambda self: self.stale)
    @rule(index=st.integers(0, 63))
    def a_packet_of_an_earlier_binding_cannot_be_decided(self, index):
        packet = self.stale[index % len(self.stale)]
        with pytest.raises(LocalProtocolError, match="has ended"):
            packet.accept()

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def nothing_is_held_against_us(self):
        if not self.bound:
            return
        assert self.protocol.failure is None
        assert not self.protocol.refusals
        assert not self.protocol.undecodable
        # A verdict finds no packet only if the kernel had thrown it away.
        assert self.protocol.counts.verdicts_gone <= len(self.flushed)

    @invariant()
    def every_packet_read_and_not_told_waits_in_the_kernel(self):
        if self.bound:
            waiting = set(self.kernel.queue(NUMBER).held)
            for packet in self.undecided():
                assert packet.id in waiting or packet.id in self.flushed

    def check_loss(self):
        """After the next packet is read, the gaps in the ids are what the kernel lost."""
        self.read_all()
        row = self.kernel.rows()[0]
        if self.kernel.queue(NUMBER).max_len <= row.queue_total:
            return
        self.kernel.enqueue(NUMBER, PacketIn(PAYLOAD))
        self.read_all()
        assert self.protocol.packets_lost == self.ids_lost >= row.user_dropped

    def teardown(self):
        if getattr(self, "bound", False):
            self.we_close(Verdict.ACCEPT)


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestWire = Wire.TestCase
TestWire.settings = SETTINGS


# -- six faults, planted one at a time ----------------------------------------------------------


class SweepsHeld(QueueProtocol):
    def _sweepable(self, pending, start, end, lowest_open):
        return end


class ForgetsOlder(Ledger):
    only_fresh = True


class SweepsOlder(QueueProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._ledger = ForgetsOlder()


class LosesAnswers(QueueProtocol):
    def _take_answer(self, answer):
        if answer.seq % 3:
            super()._take_answer(answer)


class AnswersTwice(QueueProtocol):
    def flush(self, most_bytes):
        return [d for d in super().flush(most_bytes) for _ in range(2)]


class OutlivesItsBinding(QueueProtocol):
    def release(self):
        thread = self.thread
        super().release()
        self.thread = thread


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        (SweepsHeld, "was swept"),
        (SweepsOlder, "was swept"),
        (LosesAnswers, "an acknowledgement was lost"),
        (AnswersTwice, "verdicts_gone"),
        (OutlivesItsBinding, "DID NOT RAISE"),
        ("ids_compared_with_less", None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_noticed(fault, noticed, monkeypatch):
    faulty = Wire
    if fault == "ids_compared_with_less":
        for module in (trionfq._protocol, trionfq._ledger):
            monkeypatch.setattr(module, "id_after", lambda a, b: a > b)
    else:
        faulty = type("Faulty", (Wire,), {"protocol_class": fault})
    once = settings(
        SETTINGS,
        max_examples=200,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises(BaseException, match=noticed) as caught:
        run_state_machine_as_test(faulty, settings=once)
    assert isinstance(caught.value, AssertionError | pytest.fail.Exception)
