"""The rules that the API keeps, on a backend whose other side is the kernel model."""

from __future__ import annotations

import errno
import gc
import logging

import pytest
import trio
import trio.testing

from trionfq import schema
from trionfq._errors import (
    AlreadyDecidedError,
    KernelError,
    LocalProtocolError,
    ModuleMissingError,
    PrivilegeError,
    QueueBusyError,
)
from trionfq._kernel_model import Effect, KernelModel
from trionfq._link import READ_AHEAD, Link
from trionfq._open import open_queue
from trionfq._packet import Packet
from trionfq._verdict import Verdict
from trionfq.schema.nfqueue import CopyMode, MessageType, QueueFlags
from trionfq.testing import ScriptedBackend, make_config, make_packet


@pytest.fixture
def backend():
    return ScriptedBackend()


def arrive(backend, count=1, **options):
    for _ in range(count):
        backend.arrive(make_packet(**options), bypass=True)


def verdicts(backend):
    """The verdict datagrams that were sent: per datagram a list of (kind, id)."""
    kinds = {MessageType.VERDICT: "one", MessageType.VERDICT_BATCH: "batch"}
    found = []
    for datagram in backend.sent:
        messages = [(kinds.get(m.type), m.seq) for m in schema.parse(datagram)]
        if messages[0][0]:
            found.append(messages)
    return found


def effects(backend):
    return [(d.packet_id, d.effect) for d in backend.decisions]


# -- verdicts --------------------------------------------------------------------------------------


async def test_every_packet_gets_exactly_one_verdict(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 3)
        first, second, third = [await queue.receive() for _ in range(3)]
        first.drop()
        for call in (first.accept, first.drop, lambda: queue.set_verdict(1, Verdict.ACCEPT)):
            with pytest.raises(AlreadyDecidedError):
                call()
        queue.set_verdict(2, Verdict.ACCEPT, mark=4)
        with pytest.raises(AlreadyDecidedError):
            second.drop()
        third.accept()
        await trio.lowlevel.checkpoint()
        with pytest.raises(AlreadyDecidedError):
            queue.set_verdict(3, Verdict.DROP)
        with pytest.raises(LocalProtocolError, match="no packet 9"):
            queue.set_verdict(9, Verdict.DROP)
    assert effects(backend) == [
        (1, Effect.DROPPED),
        (2, Effect.ACCEPTED),
        (3, Effect.ACCEPTED),
    ]


async def test_a_packet_belongs_to_one_binding():
    kernel = KernelModel()
    first = ScriptedBackend(kernel)
    async with open_queue(0, backend=first) as queue:
        arrive(first)
        packet = await queue.receive()
        packet.hold()
    assert not packet.usable
    second = ScriptedBackend(kernel)
    async with open_queue(0, backend=second) as queue:
        arrive(second)
        same_id = await queue.receive()
        assert same_id.id == packet.id
        before = len(second.sent)
        for call in (packet.accept, packet.drop, packet.hold):
            with pytest.raises(trio.ClosedResourceError):
                call()
        await trio.lowlevel.checkpoint()
        assert len(second.sent) == before
        assert not same_id.decided
        same_id.accept()


async def test_a_verdict_is_never_a_checkpoint_and_belongs_to_the_trio_thread(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 2)
        packet, other = await queue.receive(), await queue.receive()
        with trio.testing.assert_no_checkpoints():
            packet.accept()
        with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
            await trio.to_thread.run_sync(other.accept)
        assert not other.decided
        await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(other.drop))
        assert other.verdict is Verdict.DROP


async def test_verdicts_of_all_tasks_leave_together_at_the_end_of_the_tick(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        arrive(backend, 4)
        packets = [await queue.receive() for _ in range(4)]

        async def decide(packet):
            packet.accept()
            assert verdicts(backend) == []

        for packet in packets:
            nursery.start_soon(decide, packet)
        await trio.testing.wait_all_tasks_blocked()
        assert verdicts(backend) == [[("batch", 4)]]


async def test_verdicts_leave_when_the_iterating_task_goes_to_wait(backend):
    seen = []
    async with open_queue(0, backend=backend) as queue:
        backend.receive_hook = lambda _limit: seen.append(verdicts(backend))
        arrive(backend, 2)
        async for packet in queue:
            packet.accept()
            if packet.id == 2:
                arrive(backend)
            if packet.id == 3:
                break
    # Sent before the socket was looked at again, not only at the end of the tick.
    assert [("batch", 2)] in seen[1]


async def test_verdicts_leave_while_a_busy_task_never_lets_trio_sleep(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        busy = True

        async def spin():
            while busy:
                await trio.lowlevel.checkpoint()

        nursery.start_soon(spin)
        arrive(backend)
        (await queue.receive()).accept()
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert verdicts(backend) == [[("one", 1)]]
        busy = False


def test_a_flush_does_not_let_a_waiting_task_sleep_on():
    """On the real clock: autojump would hide that trio had fixed its timeout before the flush."""
    backend = ScriptedBackend()

    async def main():
        async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
            # The verdict makes another packet arrive, inside of the flush.
            backend.send_hook = lambda _datagram: (
                setattr(backend, "send_hook", None),
                arrive(backend),
            )
            arrive(backend)
            (await queue.receive()).accept()

            async def consume(task_status):
                task_status.started()
                (await queue.receive()).accept()

            await nursery.start(consume)
            await trio.sleep(60)
            raise AssertionError("slept on")

    async def limited():
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(main)
            while len(verdicts(backend)) < 2:
                await trio.sleep(0.001)
                assert trio.current_time() - started < 30
            nursery.cancel_scope.cancel()

    trio.run(limited)


async def test_one_instrument_serves_all_queues_of_a_run_and_never_raises(backend, caplog):
    other = ScriptedBackend(backend.kernel)
    async with open_queue(0, backend=backend) as one, open_queue(1, backend=other) as two:
        arrive(backend)
        arrive(other, queue=1)
        broken, fine = await one.receive(), await two.receive()

        def refuse(_datagram):
            raise ZeroDivisionError("a backend with a bug")

        backend.send_hook = refuse
        broken.accept()
        fine.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert verdicts(other) == [[("one", 1)]]
        with pytest.raises(trio.BrokenResourceError) as caught:
            await one.receive()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        arrive(other, queue=1)
        (await two.receive()).accept()
        await trio.testing.wait_all_tasks_blocked()
        assert len(verdicts(other)) == 2
    assert "trio" not in {record.name for record in caplog.records}


async def test_too_long_a_datagram_is_split_and_nothing_is_answered_twice(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 64)
        packets = [await queue.receive() for _ in range(64)]

        def limit(datagram):
            if len(datagram) > 200:
                raise OSError(errno.EMSGSIZE, "too long")

        backend.send_hook = limit
        packets[0].hold()
        for packet in packets[1:]:
            packet.accept()
        await trio.lowlevel.checkpoint()
        assert sorted(i for d in verdicts(backend) for _, i in d) == list(range(2, 65))
        assert queue.statistics().verdicts_gone == 0
        backend.send_hook = None
    assert len(backend.decisions) == 64


async def test_a_send_without_memory_is_kept_and_tried_again(backend, autojump_clock):
    failures = [errno.ENOBUFS] * 3
    async with open_queue(0, backend=backend) as queue:

        def refuse(_datagram):
            if failures:
                raise OSError(failures.pop(), "no memory")

        arrive(backend, 2)
        packets = [await queue.receive() for _ in range(2)]
        backend.send_hook = refuse
        packets[0].accept()
        await trio.lowlevel.checkpoint()
        packets[1].drop()
        await trio.sleep(1)
        assert not failures
        assert verdicts(backend) == [[("one", 1)], [("one", 2)]]


async def test_any_other_send_error_breaks_the_queue_with_its_cause(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 2)
        packet, later = await queue.receive(), await queue.receive()

        def refuse(_datagram):
            raise OSError(errno.ECONNREFUSED, "refused")

        backend.send_hook = refuse
        packet.accept()
        with pytest.raises(trio.BrokenResourceError) as caught:
            async for _ in queue:
                pass
        assert caught.value.__cause__.errno == errno.ECONNREFUSED
        with pytest.raises(trio.BrokenResourceError):
            later.accept()


async def test_a_waiting_task_is_told_when_the_queue_breaks(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        told = []

        async def wait():
            with pytest.raises(trio.BrokenResourceError) as caught:
                await queue.receive()
            told.append(caught.value.__cause__)

        arrive(backend)
        packet = await queue.receive()
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        backend.kernel.queues.clear()  # somebody else's doing: the queue is not there any more
        packet.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert [error.errno for error in told] == [errno.ENODEV] * 3


async def test_losing_the_privilege_breaks_the_queue_at_once(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 2)
        packets = [await queue.receive() for _ in range(2)]
        backend._socket.privileged = False
        packets[0].accept()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await queue.receive()
        assert isinstance(caught.value.__cause__, PrivilegeError)
        assert "CAP_NET_ADMIN" in str(caught.value)


async def test_failure_that_nobody_saw_is_raised_on_leaving(backend):
    with pytest.raises(KernelError) as caught:
        async with open_queue(0, backend=backend) as queue:
            arrive(backend)
            packet = await queue.receive()
            backend._socket.privileged = False
            packet.accept()
            await trio.testing.wait_all_tasks_blocked()
    assert caught.value.errno == errno.EPERM


async def test_refused_verdict_goes_to_the_error_handler_with_its_packet(backend):
    backend.kernel.conntrack_glue = True
    told = []
    async with open_queue(
        0, backend=backend, error_handler=lambda error, packet: told.append((error, packet))
    ) as queue:
        arrive(backend, family=7, hook=2, l2hdr=bytes(14))
        packet = await queue.receive()
        packet.accept(vlan=(0x8100, 1))
        # The receive loop notices although no task reads the queue.
        backend.inject(
            schema.build(
                [schema.ErrorMessage(0x100, 1, 5, -errno.ERANGE, (32, 0x301, 1, 1, 5), b"", ())]
            )
        )
        await trio.testing.wait_all_tasks_blocked()
        ((error, same),) = told
        assert same is packet
        assert error.errno == errno.ERANGE
        assert not packet.decided
        assert queue.statistics().verdicts_refused == 1


async def test_a_verdict_for_a_flushed_packet_is_counted(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        packet = await queue.receive()
        backend.kernel.hook_unregistered()
        packet.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert queue.statistics().verdicts_gone == 1
        arrive(backend)
        (await queue.receive()).accept()


async def test_an_undecodable_packet_gets_the_closing_policy_and_is_kept(backend, caplog):
    async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
        arrive(backend, 2)
        real = backend.receive_nowait

        def garble(limit):
            received = real(limit)
            for at, datagram in enumerate(received.datagrams):
                if datagram[24:28] == b"\0\0\0\1":
                    received.datagrams[at] = datagram[:32] + b"\x03\0" + datagram[34:]
            return received

        backend.receive_nowait = garble
        packet = await queue.receive()
        assert packet.id == 2
        (error,) = queue.undecodable
        assert error.path
        await trio.lowlevel.checkpoint()
        assert effects(backend) == [(1, Effect.ACCEPTED)]
        packet.drop()
        assert queue.statistics().undecodable_messages == 1
    assert "trionfq" in {record.name for record in caplog.records}


# -- holding and closing ---------------------------------------------------------------------------


async def test_holding_is_legal_and_shown(backend, caplog):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 3)
        packets = [await queue.receive() for _ in range(3)]
        packets[0].hold()
        packets[1].accept()
        packets[2].accept()
        await trio.testing.wait_all_tasks_blocked()
        shown = queue.statistics()
        assert (shown.undecided, shown.held) == (1, 1)
        assert shown.oldest_undecided_s >= 0
        del packets
        gc.collect()
        assert backend.kernel.rows()[0].queue_total == 1
    assert not [r for r in caplog.records if r.name == "trionfq"]
    assert effects(backend)[-1] == (1, Effect.DROPPED)


async def test_forgotten_packets_are_warned_of_once(backend, caplog):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 4)
        for _ in range(3):
            await queue.receive()
    (record,) = [r for r in caplog.records if r.name == "trionfq"]
    assert record.levelno == logging.WARNING
    assert "3 packets undecided (first id 1)" in record.getMessage()


@pytest.mark.parametrize("policy", [Verdict.DROP, Verdict.ACCEPT])
@pytest.mark.parametrize("how", ["end", "raise", "cancel", "aclose"])
async def test_closing_decides_everything_whatever_the_way(backend, policy, how, caplog):
    with trio.CancelScope() as scope:
        try:
            async with open_queue(0, backend=backend, on_close=policy) as queue:
                arrive(backend, 20)
                packets = [await queue.receive() for _ in range(10)]
                packets[2].drop()
                packets[3].hold()
                if how == "raise":
                    raise KeyError("mine")
                if how == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
                if how == "aclose":
                    await queue.aclose()
                    with pytest.raises(trio.ClosedResourceError):
                        await queue.receive()
        except KeyError as error:
            assert error.args == ("mine",)
            assert error.__context__ is None
            assert error.__cause__ is None
    wanted = Effect.ACCEPTED if policy is Verdict.ACCEPT else Effect.DROPPED
    got = dict(effects(backend))
    assert got.pop(3) is Effect.DROPPED
    assert got == {i: wanted for i in range(1, 21) if i != 3}
    assert backend.kernel.rows() == []


async def test_context_of_an_exception_is_left_alone(backend):
    outer = ValueError("outer")
    inner = KeyError("inner")
    with pytest.raises(KeyError) as caught:
        async with open_queue(0, backend=backend):
            try:
                raise outer
            except ValueError:
                raise inner  # noqa: B904
    assert caught.value is inner
    assert caught.value.__context__ is outer
    assert outer.__context__ is None


async def test_a_failed_closing_send_still_closes_and_raises(backend):
    def refuse(_datagram):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        async with open_queue(0, backend=backend):
            backend.send_hook = refuse
    assert backend.kernel.rows() == []


async def test_a_failed_closing_send_does_not_hide_the_blocks_exception(backend):
    def refuse(_datagram):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(KeyError, match="mine"):
        async with open_queue(0, backend=backend):
            backend.send_hook = refuse
            raise KeyError("mine")


async def test_opening_is_one_message(backend):
    async with open_queue(
        0, backend=backend, copy_range=99, max_len=7, flags=QueueFlags.GSO | QueueFlags.UID_GID
    ):
        assert len(backend.sent) == 1
        assert len(schema.parse(backend.sent[0])) == 1
        bound = backend.kernel.queue(0)
        assert (bound.max_len, bound.flags) == (7, 12)
        assert bound.row().copy_range == 99


async def test_entering_is_a_checkpoint_and_cancelled_entering_binds_nothing(backend):
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_queue(0, backend=backend):
            raise AssertionError("entered")
    assert backend.sent == []


async def test_the_manager_is_for_one_use(backend):
    manager = open_queue(0, backend=backend)
    async with manager:
        pass
    with pytest.raises(RuntimeError, match="call it again"):
        async with manager:
            pass


# -- opening fails ---------------------------------------------------------------------------------


async def test_each_reason_for_a_failed_bind_has_its_own_exception():
    kernel = KernelModel()
    one = ScriptedBackend(kernel)
    async with open_queue(0, backend=one):
        with pytest.raises(QueueBusyError, match="another queue number") as caught:
            async with open_queue(0, backend=ScriptedBackend(kernel)):
                pass
        assert caught.value.owner_portid == one.port_id
        assert str(one.port_id) in str(caught.value)
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        async with open_queue(0, backend=ScriptedBackend(privileged=False)):
            pass
    with pytest.raises(KernelError, match="nf_conntrack_netlink") as refused:
        async with open_queue(0, backend=ScriptedBackend(), flags=QueueFlags.CONNTRACK):
            pass
    assert refused.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)
    assert kernel.rows() == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPROTONOSUPPORT])
async def test_a_missing_module_is_told_by_the_error_that_the_kernel_gives(backend, code):
    """nfnetlink_rcv_msg finds no subsystem: it answers a valid BIND with EINVAL."""

    def answer(datagram):
        (bind,) = schema.parse(datagram)
        request = (len(datagram), bind.type, bind.flags, bind.seq, bind.portid)
        refused = schema.ErrorMessage(0x100, bind.seq, 5, -code, request, b"", ())
        backend.inject(schema.build([refused]))

    backend.send_nowait = answer
    with pytest.raises(ModuleMissingError, match="modprobe nfnetlink_queue") as caught:
        async with open_queue(0, backend=backend):
            pass
    assert caught.value.errno == code


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"number": -1}, "queue number: expected 0 to 0xffff"),
        ({"number": 65536}, "queue number"),
        ({"max_len": -1}, "max_len: expected 0 to"),
        ({"copy_range": 2**32}, "copy_range"),
        ({"copy_mode": 7}, "copy_mode: expected a CopyMode, got 7"),
        ({"flags": 64}, "flags: expected QueueFlags"),
        ({"on_close": Verdict.STOP}, "on_close: expected DROP or ACCEPT"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"namespace": "x"}, "namespace: belongs to a netlink socket"),
        ({"receive_buffer_bytes": 1, "fd": 3}, "receive_buffer_bytes, fd: belongs to"),
        ({"ledger": [1]}, "inherited=True"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_sent(backend, options, text):
    with pytest.raises(ValueError, match=text):
        open_queue(options.pop("number", 0), backend=backend, **options)
    assert backend.sent == []


# -- reading ---------------------------------------------------------------------------------------


async def test_break_loses_nothing(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 6)
        seen = []
        for _ in range(3):
            async for packet in queue:
                packet.accept()
                seen.append(packet.id)
                if len(seen) % 2 == 0:
                    break
        assert seen == [1, 2, 3, 4, 5, 6]


async def test_several_tasks_iterate_and_each_packet_goes_to_one(backend):
    seen = []
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def consume():
            async for packet in queue:
                packet.accept()
                seen.append(packet.id)
                await trio.lowlevel.checkpoint()

        for _ in range(4):
            nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            arrive(backend, 7)
            await trio.testing.wait_all_tasks_blocked()
        backend.end()
    assert sorted(seen) == list(range(1, 71))


async def test_a_batch_wakes_all_waiters(backend):
    got = []
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def one(name):
            packet = await queue.receive()
            got.append(name)
            packet.accept()
            await trio.sleep_forever()

        for name in range(5):
            nursery.start_soon(one, name)
        await trio.testing.wait_all_tasks_blocked()
        arrive(backend, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(got) == [0, 1, 2, 3, 4]
        nursery.cancel_scope.cancel()


async def test_a_cancelled_reader_hands_the_reading_on(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        got = []
        scope = trio.CancelScope()

        async def first():
            with scope:
                await queue.receive()

        async def second():
            packet = await queue.receive()
            packet.accept()
            got.append(packet.id)

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        arrive(backend)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [1]


async def test_serve_and_batches_do_not_share(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(queue.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task"):
            await queue.serve(lambda packet: packet.accept())
        with pytest.raises(trio.BusyResourceError):
            await queue.next_batch()
        nursery.cancel_scope.cancel()
    other = ScriptedBackend()
    async with open_queue(0, backend=other) as queue, trio.open_nursery() as nursery:
        await nursery.start(queue.serve, lambda packet: packet.accept())
        await trio.testing.wait_all_tasks_blocked()
        for consume in (queue.receive, queue.next_batch, queue.__anext__):
            with pytest.raises(trio.BusyResourceError, match=r"serve\(\)"):
                await consume()
        nursery.cancel_scope.cancel()


async def test_read_ahead_is_bounded_and_parks_without_polling():
    backend = ScriptedBackend(receive_buffer_bytes=4_000_000)
    async with open_queue(0, backend=backend, max_len=5000) as queue:
        arrive(backend, 300)
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            arrive(backend, 20)
        assert queue.statistics().read_ahead == READ_AHEAD
        looks = []
        backend.receive_hook = looks.append
        await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert looks == []
        backend.receive_hook = None
        packets = [await queue.receive() for _ in range(700)]
        assert [p.id for p in packets] == list(range(1, 701))
        for packet in packets:
            packet.accept()


async def test_full_kernel_queue_applies_max_len(backend):
    async with open_queue(0, backend=backend, max_len=8) as queue:
        arrive(backend, 50)
        assert queue.statistics().kernel.queue_dropped == 42
        async for packet in queue:
            packet.accept()
            if packet.id == 8:
                break


async def test_iterating_is_a_checkpoint_once_a_batch(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 8)
        with trio.testing.assert_checkpoints():
            first = await queue.__anext__()
        with trio.testing.assert_no_checkpoints():
            rest = [await queue.__anext__() for _ in range(7)]
        with trio.CancelScope() as scope:
            scope.cancel()
            await queue.__anext__()
            raise AssertionError("not a checkpoint")
        for packet in (first, *rest):
            packet.accept()


async def test_after_its_own_cancel_a_task_still_gets_what_was_read(backend):
    got = []
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 8)
        with trio.CancelScope() as scope:
            async for packet in queue:
                scope.cancel()
                packet.accept()
                got.append(packet.id)
        assert scope.cancelled_caught
        assert got == list(range(1, 9))


async def test_a_slow_body_yields_after_a_millisecond(backend):
    now = 0
    async with open_queue(0, backend=backend) as queue:
        queue._clock_ns = lambda: now
        arrive(backend, 64)
        for _ in range(8 + 16):
            packet = await queue.__anext__()
            packet.accept()
        # The second drain brought 16; the third brings 32 in two chunks.
        packets = [await queue.__anext__() for _ in range(16)]
        now += 2_000_000
        with trio.testing.assert_checkpoints():
            packets.append(await queue.__anext__())
        for packet in packets:
            packet.accept()


async def test_a_body_that_yields_by_itself_is_not_slow(backend):
    """A turn begins with every tick, so what is left of a drain goes on without another yield."""
    now = 0
    async with open_queue(0, backend=backend) as queue:
        queue._clock_ns = lambda: now
        arrive(backend, 64)
        for _ in range(8 + 16):
            (await queue.__anext__()).accept()
        packets = [await queue.__anext__() for _ in range(16)]
        now += 2_000_000
        await trio.lowlevel.checkpoint()
        with trio.testing.assert_no_checkpoints():
            packets += [await queue.__anext__() for _ in range(16)]
        for packet in packets:
            packet.accept()


async def test_of_many_consumers_one_reads_and_each_packet_goes_to_one(backend):
    got = []
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def consume():
            async for packet in queue:
                got.append(packet.id)
                packet.accept()

        for _ in range(5):
            nursery.start_soon(consume)
        for round_ in range(1, 6):
            arrive(backend, 100)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(got) == list(range(1, 100 * round_ + 1))
        nursery.cancel_scope.cancel()


async def test_what_waits_is_read_before_the_checkpoint_and_given_out_after_it(
    backend, monkeypatch
):
    order = []
    checkpoint = Link._yield

    async def watched(link):
        assert (len(link.ahead), order) == (8, [])
        await checkpoint(link)
        # The other has come meanwhile, and waits.
        assert (len(link.ahead), order) == (8, [])

    monkeypatch.setattr(Link, "_yield", watched)
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def consume(name):
            (await queue.__anext__()).accept()
            order.append(name)

        arrive(backend, 8)
        nursery.start_soon(consume, "first")
        nursery.start_soon(consume, "second")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == ["first", "second"]
        assert len(queue._ahead) == 6


@pytest.mark.parametrize("reader", ["consumer", "loop"])
async def test_a_long_wait_is_not_taken_for_a_slow_body(backend, reader):
    now = 0
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        queue._clock_ns = lambda: now
        arrive(backend, 64)
        for _ in range(64):
            (await queue.__anext__()).accept()
        if reader == "loop":
            await trio.testing.wait_all_tasks_blocked()

        async def consume():
            packets = [await queue.__anext__()]
            with trio.testing.assert_no_checkpoints():
                packets += [await queue.__anext__() for _ in range(31)]
            for packet in packets:
                packet.accept()

        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        now += 2_000_000
        arrive(backend, 32)


async def test_receive_is_always_a_checkpoint(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 4)
        for _ in range(4):
            with trio.testing.assert_checkpoints():
                packet = await queue.receive()
            packet.accept()


async def test_checkpoint_every_packet_can_be_had(backend):
    async with open_queue(0, backend=backend, checkpoint_every=1) as queue:
        arrive(backend, 8)
        for _ in range(8):
            with trio.testing.assert_checkpoints():
                packet = await queue.__anext__()
            packet.accept()


async def test_cancelling_at_any_point_loses_no_packet(backend, autojump_clock):
    got = []
    async with open_queue(0, backend=backend, checkpoint_every=2) as queue:
        arrive(backend, 200)
        ways = [queue.receive, queue.__anext__, queue.next_batch]
        turn = 0
        while len(got) < 200:
            turn += 1
            assert turn < 5000
            with trio.CancelScope() as scope:
                if turn % 3 == 0:
                    scope.cancel()
                elif turn % 7 == 0:
                    scope.deadline = trio.current_time()
                result = await ways[turn % 3]() if len(got) < 190 else await queue.receive()
                new = result if isinstance(result, list) else [result]
                got += [packet.id for packet in new]
                for packet in new:
                    packet.accept()
        assert got == list(range(1, 201))


async def test_batches_give_what_a_read_brought(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 40)
        sizes = []
        async for batch in queue.batches():
            sizes.append(len(batch))
            batch[0].drop()
            batch.accept()
            if sum(sizes) == 40:
                break
    assert sizes == [8, 16, 16]
    assert [e for _, e in effects(backend)].count(Effect.DROPPED) == 3


async def test_a_packets_bytes_are_its_own(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, payload=b"E" + bytes(27))
        packet = await queue.receive()
        kept = packet.payload
        arrive(backend, 30)
        others = [await queue.receive() for _ in range(30)]
        assert packet.payload == kept
        assert isinstance(packet.payload, bytes)
        for each in (packet, *others):
            each.accept()


async def test_packets_that_come_before_the_answer_are_kept(backend):
    backend.send_hook = lambda _datagram: None
    real = backend.send_nowait

    def send(datagram):
        real(datagram)
        # The kernel may deliver packets while a request is answered.
        arrive(backend, 3)

    async with open_queue(0, backend=backend) as queue:
        backend.send_nowait = send
        queue.configure(max_len=77)
        backend.send_nowait = real
        assert backend.kernel.queue(0).max_len == 77
        assert queue.config.max_len == 77
        assert [(await queue.receive()).id for _ in range(3)] == [1, 2, 3]
        await queue.aclose()


async def test_a_lost_answer_is_noticed_and_what_is_idempotent_is_repeated(backend):
    async with open_queue(0, backend=backend) as queue:
        real = backend.receive_nowait
        lost = []

        def lose(limit):
            received = real(limit)
            if received.datagrams and len(lost) < 2:
                lost.append(received.datagrams.pop())
            return received

        backend.receive_nowait = lose
        queue.configure(max_len=5)
        assert backend.kernel.queue(0).max_len == 5
        assert len(lost) == 2
        lost.clear()

        backend.receive_nowait = lambda limit: real(limit)._replace(datagrams=[])
        with pytest.raises(KernelError, match="receive_buffer_bytes"):
            queue.configure(max_len=6)


async def test_after_a_lost_answer_to_bind_the_row_decides():
    backend = ScriptedBackend()
    real = backend.receive_nowait
    backend.receive_nowait = lambda limit: real(limit)._replace(datagrams=[])
    async with open_queue(0, backend=backend) as queue:
        assert len(backend.sent) == 1
        backend.receive_nowait = real
        arrive(backend)
        (await queue.receive()).accept()


async def test_a_refused_setting_leaves_the_configuration_as_it_was(backend):
    async with open_queue(0, backend=backend, max_len=9) as queue:
        with pytest.raises(KernelError):
            queue.configure(flags=QueueFlags.CONNTRACK)
        assert queue.config.flags == QueueFlags(0)
        with pytest.raises(ValueError, match="max_len"):
            queue.configure(max_len=-1)
        queue.configure(copy_mode=CopyMode.META, flags=QueueFlags.FAIL_OPEN)
        assert backend.kernel.rows()[0].copy_mode == CopyMode.META
        assert backend.kernel.queue(0).flags == QueueFlags.FAIL_OPEN
        queue.configure(flags=QueueFlags(0))
        assert backend.kernel.queue(0).flags == 0


async def test_loss_is_visible():
    backend = ScriptedBackend(receive_buffer_bytes=8000, no_enobufs=False)
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 50)
        backend.report(truncated=2, foreign=1)
        packets = [await queue.receive()]
        while (row := queue.statistics()).read_ahead:
            packets.append(await queue.receive())
        arrive(backend)
        packets.append(await queue.receive())
        row = queue.statistics()
        assert row.packets_received == len(packets)
        assert row.packets_lost == row.kernel.user_dropped == 51 - len(packets) > 0
        assert (row.overruns, row.truncated_datagrams, row.foreign_datagrams) == (1, 2, 1)
        for packet in packets:
            packet.accept()


async def test_messages_that_nobody_asked_for_are_counted(backend):
    async with open_queue(0, backend=backend) as queue:
        backend.inject(make_packet(1, queue=9))  # of another queue
        backend.inject(make_config(0))  # no answer, and no packet
        arrive(backend)
        (await queue.receive()).accept()
        assert queue.statistics().unexpected_messages == 2
        assert queue.statistics().undecodable_messages == 0
        assert queue.undecided_ids == []


async def test_verdict_batch_by_id_answers_everything_up_to_it(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 9)
        packets = [await queue.receive() for _ in range(4)]
        packets[1].drop()
        assert queue.set_verdict_batch(3, Verdict.ACCEPT, mark=8) == 2
        assert packets[2].verdict is Verdict.ACCEPT
        with pytest.raises(LocalProtocolError, match="answered unread"):
            queue.set_verdict_batch(30, Verdict.ACCEPT)
        with pytest.raises(TypeError, match="mark and priority only"):
            queue.set_verdict_batch(3, Verdict.ACCEPT, payload=b"x" * 28)
        packets[3].accept()
        await trio.lowlevel.checkpoint()
        marked = {d.packet_id: d.changes.mark for d in backend.decisions}
        assert marked == {1: 8, 2: None, 3: 8, 4: None}


async def test_a_packet_that_was_decided_unread_is_not_handed_out(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 40)
        packets = [await queue.receive() for _ in range(10)]
        # At least 24 have been read.
        queue.set_verdict(12, Verdict.DROP)
        queue.set_verdict(24, Verdict.DROP)
        assert (await queue.receive()).id == 11
        assert (await queue.receive()).id == 13
        before = queue.statistics().read_ahead
        assert queue.set_verdict_batch(20, Verdict.ACCEPT) == 10 + 2 + 7
        assert queue.statistics().read_ahead == before - 7
        packets = [await queue.receive() for _ in range(19)]
        assert [packet.id for packet in packets] == [21, 22, 23, *range(25, 41)]
        for packet in packets:
            packet.accept()
    assert len(effects(backend)) == 40
    assert [n for n, effect in effects(backend) if effect is Effect.DROPPED] == [12, 24]


async def test_packets_are_forgotten_when_they_are_decided(backend):
    """Those of the last read, too, while the next one is waited for."""
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def consume():
            async for packet in queue:
                packet.accept()
                del packet

        arrive(backend, 60)
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        mine = [
            p for p in gc.get_objects() if isinstance(p, Packet) and p._owner is queue._protocol
        ]
        assert mine == []
        nursery.cancel_scope.cancel()


async def test_verdict_queue_needs_its_target(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        packet = await queue.receive()
        with pytest.raises(ValueError, match="which queue"):
            queue.set_verdict(1, Verdict.QUEUE)
        with pytest.raises(ValueError, match="belong to QUEUE"):
            queue.set_verdict(1, Verdict.DROP, queue=4)
        queue.set_verdict(1, Verdict.QUEUE, queue=4, bypass=True)
        assert packet.verdict is Verdict.QUEUE


async def test_interface_names_come_from_the_backend(backend):
    backend.interfaces = {3: "eth3"}
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, ifindex_indev=3, ifindex_outdev=4)
        packet = await queue.receive()
        assert (packet.indev_name, packet.outdev_name) == ("eth3", None)
        assert packet.physindev_name is None
        packet.accept()
