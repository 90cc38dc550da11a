"""Opening: what the kernel is asked, each way to fail, and sockets that another process bound."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

import trionfq._open
from trionfq import schema
from trionfq._errors import (
    KernelError,
    LocalProtocolError,
    ModuleMissingError,
    PrivilegeError,
    QueueBusyError,
)
from trionfq._kernel_model import Cause, Effect, KernelModel
from trionfq._open import open_queue
from trionfq._verdict import Verdict
from trionfq.backends.netlink import NetlinkOptions
from trionfq.schema.netlink import NLMSGERR_ATTR
from trionfq.schema.nfqueue import CopyMode, MessageType, QueueFlags
from trionfq.testing import ScriptedBackend, make_bind, make_packet, make_verdict


@pytest.fixture
def backend():
    return ScriptedBackend()


def arrive(backend, count=1, **options):
    for _ in range(count):
        backend.arrive(make_packet(**options), bypass=True)


def effects(backend):
    return {d.packet_id: d.effect for d in backend.decisions}


def kinds(backend):
    """What was sent, by message: (type, sequence number)."""
    return [(m.type, m.seq) for datagram in backend.sent for m in schema.parse(datagram)]


# -- what is asked of the kernel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({}, (CopyMode.PACKET, 65_531)),
        ({"copy_range": 0}, (CopyMode.PACKET, 65_531)),
        ({"copy_range": 128}, (CopyMode.PACKET, 128)),
        ({"copy_range": 2**32 - 1}, (CopyMode.PACKET, 65_531)),
        ({"copy_mode": CopyMode.META}, (CopyMode.META, 0)),
        ({"copy_mode": CopyMode.NONE}, (CopyMode.NONE, 0)),
        ({"copy_mode": 1}, (CopyMode.META, 0)),
    ],
)
async def test_copy_mode_and_range_are_the_queues(backend, options, row):
    async with open_queue(0, backend=backend, **options) as queue:
        bound = backend.kernel.rows()[0]
        assert (bound.copy_mode, bound.copy_range) == row
        assert queue.config.copy_mode is row[0]


@pytest.mark.parametrize("flags", [0, 1, 4, 8, 13, QueueFlags.FAIL_OPEN | QueueFlags.GSO])
@pytest.mark.parametrize("max_len", [0, 1, 2**32 - 1])
async def test_flags_and_length_are_the_queues(backend, flags, max_len):
    async with open_queue(7, backend=backend, flags=flags, max_len=max_len) as queue:
        bound = backend.kernel.queue(7)
        assert (bound.flags, bound.max_len) == (flags, max_len)
        assert (queue.number, queue.config.flags, queue.config.max_len) == (7, flags, max_len)
        assert isinstance(queue.config.flags, QueueFlags)


@pytest.mark.parametrize("number", [0, 1, 65_535])
async def test_every_queue_number_can_be_opened(number):
    backend = ScriptedBackend()
    async with open_queue(number, backend=backend) as queue:
        arrive(backend, queue=number)
        packet = await queue.receive()
        assert packet.queue_number == queue.number == number
        packet.accept()
    assert effects(backend) == {1: Effect.ACCEPTED}


async def test_several_queues_of_one_program_are_apart():
    kernel = KernelModel()
    backends = [ScriptedBackend(kernel) for _ in range(3)]
    async with (
        open_queue(0, backend=backends[0]) as one,
        open_queue(1, backend=backends[1], on_close=Verdict.ACCEPT) as two,
        open_queue(2, backend=backends[2]) as three,
    ):
        for number in range(3):
            arrive(backends[number], number + 1, queue=number)
        for queue, count in ((one, 1), (two, 2), (three, 3)):
            packets = [await queue.receive() for _ in range(count)]
            assert [p.id for p in packets] == list(range(1, count + 1))
            packets[0].accept()
            for packet in packets[1:]:
                packet.hold()
    made = [(d.queue, d.packet_id, d.effect) for d in backends[0].decisions]
    assert sorted(made, key=lambda entry: entry[:2]) == [
        (0, 1, Effect.ACCEPTED),
        (1, 1, Effect.ACCEPTED),
        (1, 2, Effect.ACCEPTED),
        (2, 1, Effect.ACCEPTED),
        (2, 2, Effect.DROPPED),
        (2, 3, Effect.DROPPED),
    ]


async def test_options_of_the_socket_reach_the_netlink_backend(monkeypatch):
    given = {}

    def make(**options):
        given.update(options)
        return ScriptedBackend()

    monkeypatch.setattr(trionfq._open, "NetlinkBackend", make)
    async with open_queue(
        0,
        namespace="blue",
        receive_buffer_bytes=4_000_000,
        netlink_options=NetlinkOptions(no_enobufs=False),
    ):
        pass
    assert given == {
        "namespace": "blue",
        "receive_buffer_bytes": 4_000_000,
        "options": NetlinkOptions(no_enobufs=False),
    }
    given.clear()
    async with open_queue(0, fd=0):
        pass
    assert given == {"fd": 0}
    given.clear()
    async with open_queue(0):
        pass
    assert given == {}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"number": "0"}, TypeError, "queue number: expected an integer, got str"),
        ({"number": True}, TypeError, "queue number: expected an integer, got bool"),
        ({"max_len": 1.5}, ValueError, "max_len: expected 0 to"),
        ({"copy_mode": None}, ValueError, "copy_mode: expected a CopyMode"),
        ({"backend": object()}, TypeError, "backend: expected a Backend, got object"),
        ({"backend": None, "inherited": True}, ValueError, "give the bound socket as fd="),
        ({"inherited": True, "ledger": [-1]}, LocalProtocolError, "packet id: expected 0 to"),
        ({"inherited": True, "ledger": [2**32]}, ValueError, "packet id: expected 0 to"),
        ({"inherited": True, "ledger": ["1"]}, TypeError, "packet id: expected an integer"),
    ],
)
def test_a_bad_argument_is_refused_at_the_call(backend, options, error, text):
    options = {"backend": backend, **options}
    with pytest.raises(error, match=text):
        open_queue(options.pop("number", 0), **options)
    assert backend.sent == []


# -- each way to fail ------------------------------------------------------------------------------


class RefusingBackend(ScriptedBackend):
    """Its kernel answers every request with an error."""

    def __init__(self, code, text=None):
        super().__init__()
        self.code = code
        self.extack = () if text is None else (schema.attr(NLMSGERR_ATTR, "msg", text),)

    def send_nowait(self, datagram):
        for message in schema.parse(datagram):
            request = (len(datagram), message.type, message.flags, message.seq, 0)
            flags = 0x100 | (0x200 if self.extack else 0)
            self.inject(
                schema.build(
                    [
                        schema.ErrorMessage(
                            flags, message.seq, self.port_id, -self.code, request, b"", self.extack
                        )
                    ]
                )
            )


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (errno.EPERM, PrivilegeError, "CAP_NET_ADMIN is missing"),
        (errno.EBUSY, QueueBusyError, "inherited=True"),
        (errno.EEXIST, QueueBusyError, "belongs to another netlink socket: stop that program"),
        (errno.EINVAL, ModuleMissingError, "modprobe nfnetlink_queue"),
        (errno.EPROTONOSUPPORT, ModuleMissingError, "modprobe nfnetlink_queue"),
        (errno.EOPNOTSUPP, KernelError, "does not know one of the flags"),
        (errno.ENOMEM, KernelError, "bind queue 3: Cannot allocate memory"),
        (524, KernelError, "kernel ENOTSUPP"),
    ],
)
async def test_each_error_of_the_kernel_has_its_exception_and_cure(code, error, text):
    backend = RefusingBackend(code)
    with pytest.raises(error, match=text) as caught:
        async with open_queue(3, backend=backend):
            raise AssertionError("entered")
    assert type(caught.value) is error
    assert caught.value.errno == code
    assert "bind queue 3" in str(caught.value)
    assert caught.value.__context__ is None
    with pytest.raises(trio.ClosedResourceError):
        backend.queues()


async def test_the_kernels_own_words_are_told():
    backend = RefusingBackend(errno.EINVAL, b"unsupported flag\0")
    with pytest.raises(ModuleMissingError, match=r"\(kernel: unsupported flag\)") as caught:
        async with open_queue(0, backend=backend):
            pass
    assert caught.value.extack == "unsupported flag"


async def test_an_owner_that_may_not_be_seen_is_not_guessed():
    """/proc's file is root's alone: EPERM then means that the privilege is missing, too."""
    kernel = KernelModel()
    other = ScriptedBackend(kernel)

    def forbidden():
        raise PermissionError(errno.EACCES, "Permission denied")

    async with open_queue(0, backend=ScriptedBackend(kernel)):
        other.queues = forbidden
        with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
            async with open_queue(0, backend=other):
                pass


async def test_a_queue_works_without_a_look_at_proc(backend):
    def forbidden():
        raise PermissionError(errno.EACCES, "Permission denied")

    backend.queues = forbidden
    async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
        arrive(backend, 3)
        packet = await queue.receive()
        packet.drop()
        await trio.lowlevel.checkpoint()
        counted = queue.statistics()
        assert counted.kernel is None
        assert counted.answers_lost == 0
        assert counted.packets_received == 3
    assert effects(backend) == {1: Effect.DROPPED, 2: Effect.ACCEPTED, 3: Effect.ACCEPTED}


def losing(backend, count):
    """A backend whose first answers are lost."""
    real = backend.receive_nowait
    lost = []

    def receive(limit):
        received = real(limit)
        if received.datagrams and len(lost) < count:
            lost.extend(received.datagrams)
            return received._replace(datagrams=[])
        return received

    backend.receive_nowait = receive
    return lost


@pytest.mark.parametrize("count", [1, 2])
async def test_a_lost_answer_to_bind_is_found_out_without_proc(backend, count):
    """The second BIND is answered by EBUSY: this socket has the queue."""

    def forbidden():
        raise PermissionError(errno.EACCES, "Permission denied")

    backend.queues = forbidden
    lost = losing(backend, count)
    async with open_queue(0, backend=backend) as queue:
        assert len(lost) == count
        assert len(backend.sent) == count + 1
        arrive(backend)
        (await queue.receive()).accept()


async def test_when_every_answer_is_lost_opening_says_so_and_leaves_nothing(backend):
    def forbidden():
        raise PermissionError(errno.EACCES, "Permission denied")

    backend.queues = forbidden
    losing(backend, 99)
    with pytest.raises(KernelError, match="receive_buffer_bytes") as caught:
        async with open_queue(0, backend=backend):
            raise AssertionError("entered")
    assert caught.value.errno == errno.ENOBUFS
    assert backend.kernel.rows() == []


@pytest.mark.parametrize("error", [OSError(errno.ECONNREFUSED, "refused"), ZeroDivisionError()])
@pytest.mark.parametrize("part", ["send_hook", "receive_hook"])
async def test_a_backend_that_fails_at_opening_is_closed(backend, error, part):
    def fail(_argument):
        raise error

    setattr(backend, part, fail)
    with pytest.raises(type(error)) as caught:
        async with open_queue(0, backend=backend):
            raise AssertionError("entered")
    assert caught.value is error
    assert backend.kernel.rows() == []
    with pytest.raises(trio.ClosedResourceError):
        backend.queues()


async def test_after_a_failure_the_number_is_free_for_another_try():
    kernel = KernelModel()
    first = ScriptedBackend(kernel)
    async with open_queue(0, backend=first):
        with pytest.raises(QueueBusyError):
            async with open_queue(0, backend=ScriptedBackend(kernel)):
                pass
    async with open_queue(0, backend=ScriptedBackend(kernel)):
        assert len(kernel.rows()) == 1


async def test_packets_that_came_before_the_answer_are_the_first(backend):
    """The kernel may deliver before it acknowledges the BIND."""
    real = backend.receive_nowait

    def packets_first(limit):
        backend.receive_nowait = real
        arrive(backend, 2)
        received = real(limit)
        return received._replace(datagrams=received.datagrams[1:] + received.datagrams[:1])

    backend.receive_nowait = packets_first
    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        assert [(await queue.receive()).id for _ in range(3)] == [1, 2, 3]
        await queue.aclose()


# -- a socket that another process bound -----------------------------------------------------------


@pytest.fixture
def handed_over(backend):
    """A bound socket from which another process has read 6 packets, and answered 2, 5 and 6."""
    backend.send_nowait(make_bind(0))
    arrive(backend, 6)
    assert len(backend.receive_nowait(99).datagrams) == 7
    for packet_id in (2, 5, 6):
        backend.send_nowait(make_verdict(packet_id))
    assert backend.receive_nowait(99).datagrams == []
    backend.sent.clear()
    return backend


async def test_an_heir_binds_nothing_and_reads_on(handed_over):
    async with open_queue(0, backend=handed_over, inherited=True) as queue:
        assert handed_over.sent == []
        arrive(handed_over, 2)
        packets = [await queue.receive() for _ in range(2)]
        assert [packet.id for packet in packets] == [7, 8]
        assert queue.statistics().packets_lost == 0
        for packet in packets:
            packet.accept()
        await trio.lowlevel.checkpoint()
        # Not as a batch: it would answer 1, 3 and 4, of which nobody here knows.
        assert kinds(handed_over) == [(MessageType.VERDICT, 7), (MessageType.VERDICT, 8)]


async def test_an_heir_with_the_ledger_batches_once_the_ledger_is_settled(handed_over):
    async with open_queue(0, backend=handed_over, inherited=True, ledger=[1, 3, 4]) as queue:
        assert queue.undecided_ids == [1, 3, 4]
        arrive(handed_over, 2)
        for packet in [await queue.receive() for _ in range(2)]:
            packet.accept()
        await trio.lowlevel.checkpoint()
        assert kinds(handed_over) == [(MessageType.VERDICT, 7), (MessageType.VERDICT, 8)]
        assert queue.statistics().packets_lost == 0
        queue.set_verdict(3, Verdict.DROP)
        assert queue.set_verdict_batch(8, Verdict.STOP) == 2
        await trio.lowlevel.checkpoint()
        assert queue.undecided_ids == []
        handed_over.sent.clear()
        arrive(handed_over, 2)
        for packet in [await queue.receive() for _ in range(2)]:
            packet.accept()
        await trio.lowlevel.checkpoint()
        assert kinds(handed_over) == [(MessageType.VERDICT_BATCH, 10)]
        assert queue.statistics().verdicts_gone == 0
    assert effects(handed_over) == {
        1: Effect.STOPPED,
        2: Effect.ACCEPTED,
        3: Effect.DROPPED,
        4: Effect.STOPPED,
        **dict.fromkeys(range(5, 11), Effect.ACCEPTED),
    }


async def test_an_inherited_packet_gets_one_verdict_too(handed_over):
    async with open_queue(0, backend=handed_over, inherited=True, ledger=[1, 3, 4]) as queue:
        queue.set_verdict(1, Verdict.ACCEPT, mark=3)
        for wrong, text in ((1, "already has a verdict"), (2, "already has"), (9, "no packet 9")):
            with pytest.raises(LocalProtocolError, match=text):
                queue.set_verdict(wrong, Verdict.DROP)
        await trio.lowlevel.checkpoint()
        assert kinds(handed_over) == [(MessageType.VERDICT, 1)]


async def test_without_a_ledger_the_kernel_decides_what_is_undecided(handed_over):
    async with open_queue(0, backend=handed_over, inherited=True) as queue:
        assert queue.undecided_ids == []
        queue.set_verdict(3, Verdict.STOP)
        assert queue.set_verdict_batch(4, Verdict.DROP) == 0
        queue.set_verdict(2, Verdict.STOP)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.statistics().verdicts_gone == 1
        assert effects(handed_over) | {5: 0, 6: 0, 2: 0} == {
            1: Effect.DROPPED,
            2: 0,
            3: Effect.STOPPED,
            4: Effect.DROPPED,
            5: 0,
            6: 0,
        }
        for wrong in (-1, 2**32):
            with pytest.raises(LocalProtocolError, match="packet id"):
                queue.set_verdict(wrong, Verdict.ACCEPT)
        arrive(handed_over)
        (await queue.receive()).accept()


@pytest.mark.parametrize("ledger", [None, [1, 3, 4], [4, 1, 3], {1, 3, 4}])
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(
    ("policy", "cause", "effect"),
    [
        (Verdict.ACCEPT, Cause.BATCH, Effect.ACCEPTED),
        (Verdict.DROP, Cause.UNBIND, Effect.DROPPED),
    ],
)
async def test_an_heirs_closing_decides_what_is_left(
    handed_over, ledger, read, policy, cause, effect
):
    async with open_queue(
        0, backend=handed_over, inherited=True, ledger=ledger, on_close=policy
    ) as queue:
        arrive(handed_over, 2)
        if read:
            (await queue.receive()).drop()
    made = {d.packet_id: (d.cause, d.effect) for d in handed_over.decisions}
    wanted = dict.fromkeys([1, 3, 4, 7, 8], (cause, effect))
    if read:
        wanted[7] = (Cause.VERDICT, Effect.DROPPED)
    assert {n: made[n] for n in wanted} == wanted
    assert handed_over.kernel.rows() == []
    assert queue.statistics().verdicts_gone == 0


async def test_the_ledger_of_a_queue_is_what_its_heir_needs(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 5)
        packets = [await queue.receive() for _ in range(4)]
        packets[1].accept()
        packets[3].drop()
        packets[2].hold()
        # Undecided: given out or held or read ahead; not those whose verdicts have yet to leave.
        assert queue.undecided_ids == [1, 3, 5]
        await trio.lowlevel.checkpoint()
        assert queue.undecided_ids == [1, 3, 5]
        packets[0].accept()
        packets[2].accept()


async def test_an_inherited_socket_that_is_not_bound_breaks_at_its_first_verdict(backend):
    async with open_queue(5, backend=backend, inherited=True) as queue:
        queue.set_verdict(1, Verdict.ACCEPT)
        with pytest.raises(trio.BrokenResourceError, match="not bound any more") as caught:
            await queue.receive()
        assert caught.value.__cause__.errno == errno.ENODEV
