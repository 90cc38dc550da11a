"""What goes wrong between a queue and its backend: who is woken, told, and what is still sent."""

from __future__ import annotations

import errno
import functools

import pytest
import trio
import trio.testing

import trionfq._link
from trionfq import schema
from trionfq._errors import KernelError, PrivilegeError, RemoteProtocolError, VerdictRefusedError
from trionfq._kernel_model import Effect
from trionfq._link import READ_AHEAD
from trionfq._open import open_queue
from trionfq._verdict import Verdict
from trionfq.schema.nfqueue import MessageType
from trionfq.testing import ScriptedBackend, make_bind, make_packet, make_verdict


@pytest.fixture
def backend():
    return ScriptedBackend()


def arrive(backend, count=1, **options):
    """Packets of a connection that nothing is said of, where the queue asks for that."""
    for _ in range(count):
        backend.arrive(make_packet(**{"ct": (), **options}), bypass=True)


# What a bridge forwards, and a change of it that the kernel might refuse.
BRIDGED = {"family": 7, "hook": 2, "l2hdr": bytes(14)}
TAG = (0x8100, 5)


def effects(backend):
    return {d.packet_id: d.effect for d in backend.decisions}


def refusal(packet_id, code=errno.ERANGE):
    """An error that the kernel gives to a verdict, whose packet it keeps."""
    request = (32, MessageType.VERDICT, 1, packet_id, 5)
    return schema.build([schema.ErrorMessage(0x100, packet_id, 5, -code, request, b"", ())])


class BackendBugError(Exception):
    """Something that no backend is meant to raise."""


def raise_bug(*_arguments):
    raise BackendBugError


# -- a request reads what others wait for ----------------------------------------------------------


async def receive_one(queue):
    (await queue.receive()).accept()


async def iterate_one(queue):
    async for packet in queue:
        packet.accept()
        break


async def take_one_batch(queue):
    (await queue.next_batch()).accept()


async def serve_some(queue):
    await queue.serve(lambda packet: packet.accept())


@pytest.mark.parametrize("consume", [receive_one, iterate_one, take_one_batch, serve_some])
async def test_packets_that_a_request_brings_reach_who_waits_for_the_socket(backend, consume):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(consume, queue)
        await trio.testing.wait_all_tasks_blocked()
        backend.send_hook = lambda _datagram: (setattr(backend, "send_hook", None), arrive(backend))
        queue.configure(max_len=77)
        await trio.testing.wait_all_tasks_blocked()
        assert effects(backend) == {1: Effect.ACCEPTED}
        assert backend.kernel.queue(0).max_len == 77
        nursery.cancel_scope.cancel()


async def test_packets_that_a_request_brings_reach_every_waiter(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive_one, queue)
        await trio.testing.wait_all_tasks_blocked()
        backend.send_hook = lambda _datagram: (
            setattr(backend, "send_hook", None),
            arrive(backend, 3),
        )
        queue.configure(max_len=77)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(effects(backend)) == [1, 2, 3]


async def test_waking_the_reader_undoes_no_later_setting(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(serve_some, queue)
        await trio.testing.wait_all_tasks_blocked()
        backend.send_hook = lambda _datagram: (setattr(backend, "send_hook", None), arrive(backend))
        queue.configure(max_len=77)
        queue.configure(max_len=78)
        await trio.testing.wait_all_tasks_blocked()
        assert backend.kernel.queue(0).max_len == 78
        assert queue.config.max_len == 78
        assert queue.statistics().unexpected_messages == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("reader", ["nobody", "receive", "serve", "busy"])
async def test_a_refusal_that_a_request_brings_is_told(backend, reader):
    told = []
    async with (
        open_queue(0, backend=backend, error_handler=lambda error, _: told.append(error)) as queue,
        trio.open_nursery() as nursery,
    ):
        arrive(backend)
        packet = await queue.receive()
        if reader == "busy":
            arrive(backend, 2 * READ_AHEAD, payload=b"E" * 28)
            await trio.testing.wait_all_tasks_blocked()
        elif reader == "receive":
            nursery.start_soon(queue.receive)
        elif reader == "serve":
            nursery.start_soon(functools.partial(queue.serve, lambda packet: None))
        packet.accept()
        await trio.testing.wait_all_tasks_blocked()
        backend.send_hook = lambda _datagram: (
            setattr(backend, "send_hook", None),
            backend.inject(refusal(1)),
        )
        queue.configure(max_len=77)
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error) for error in told] == [VerdictRefusedError]
        nursery.cancel_scope.cancel()
        await queue.aclose()


async def test_a_request_that_finds_no_memory_is_repeated(backend):
    failures = [errno.ENOBUFS] * 2

    def refuse(_datagram):
        if failures:
            raise OSError(failures.pop(), "no memory")

    backend.send_hook = refuse
    async with open_queue(0, backend=backend) as queue:
        assert not failures
        failures += [errno.ENOBUFS] * 2
        queue.configure(max_len=7)
        assert backend.kernel.queue(0).max_len == 7
        failures += [errno.ENOBUFS] * 9
        with pytest.raises(KernelError) as caught:
            queue.configure(max_len=8)
        assert caught.value.errno == errno.ENOBUFS
        assert queue.config.max_len == 7
        failures.clear()


async def test_a_request_that_cannot_be_sent_breaks_the_queue(backend):
    async with open_queue(0, backend=backend) as queue:
        backend.send_hook = raise_bug
        with pytest.raises(trio.BrokenResourceError) as caught:
            queue.configure(max_len=8)
        assert isinstance(caught.value.__cause__, BackendBugError)
        assert queue.config.max_len == 1024


# -- a backend that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["waiting", "end of tick"])
async def test_whatever_sending_raises_breaks_the_queue(backend, how):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        (await queue.receive()).accept()
        backend.send_hook = raise_bug
        if how == "end of tick":
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await queue.receive()
        assert isinstance(caught.value.__cause__, BackendBugError)


async def test_whatever_sending_again_raises_breaks_the_queue(backend, autojump_clock):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        (await queue.receive()).accept()

        def no_memory(_datagram):
            backend.send_hook = raise_bug
            raise OSError(errno.ENOBUFS, "no memory")

        backend.send_hook = no_memory
        await trio.sleep(1)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await queue.receive()
        assert isinstance(caught.value.__cause__, BackendBugError)


async def test_a_failure_that_only_the_receive_loop_was_woken_by_is_raised_on_leaving(backend):
    with pytest.raises(BackendBugError):
        async with open_queue(0, backend=backend) as queue:
            arrive(backend)
            packet = await queue.receive()
            await trio.testing.wait_all_tasks_blocked()  # the receive loop waits
            backend.send_hook = raise_bug
            packet.accept()
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("error", [BackendBugError(), OSError(errno.EIO, "broken")])
@pytest.mark.parametrize("who", ["consumer", "loop"])
async def test_whatever_reading_raises_breaks_the_queue(backend, error, who):
    def fail(_limit):
        raise error

    async with open_queue(0, backend=backend) as queue:
        backend.receive_hook = fail
        arrive(backend)
        if who == "loop":
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await queue.receive()
            assert caught.value.__cause__ is error


async def test_whatever_waiting_raises_breaks_the_queue(backend):
    error = BackendBugError()

    async def fail():
        raise error

    async with open_queue(0, backend=backend) as queue:
        backend.wait_readable_hook = fail
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await queue.receive()
            assert caught.value.__cause__ is error


async def test_somebody_elses_waiting_for_the_backend_breaks_nothing(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()  # the receive loop waits
        with pytest.raises(trio.BusyResourceError):
            await backend.wait_readable()
        nursery.start_soon(receive_one, queue)
        await trio.testing.wait_all_tasks_blocked()
        arrive(backend)
    assert effects(backend) == {1: Effect.ACCEPTED}


async def test_whatever_waiting_raises_breaks_the_queue_where_nobody_reads(backend):
    async def fail():
        raise BackendBugError

    with pytest.raises(BackendBugError):
        async with open_queue(0, backend=backend) as queue:
            backend.wait_readable_hook = fail
            await trio.testing.wait_all_tasks_blocked()
            assert "broken" in repr(queue)


async def test_a_backend_that_cannot_even_list_its_queues_stops_nobody_elses_flushing(backend):
    other = ScriptedBackend()
    async with open_queue(0, backend=backend) as broken, open_queue(0, backend=other) as queue:
        arrive(backend)
        arrive(other)
        one, two = await broken.receive(), await queue.receive()
        backend.send_hook = raise_bug
        backend.queues = raise_bug
        one.accept()
        await trio.testing.wait_all_tasks_blocked()
        two.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert effects(other) == {1: Effect.ACCEPTED}
        with pytest.raises(trio.BrokenResourceError):
            await broken.receive()


@pytest.mark.parametrize("part", ["send_hook", "receive_hook", "queues", "close_hook"])
@pytest.mark.parametrize("how", ["end", "raise"])
async def test_whatever_a_backend_raises_the_queue_is_closed(backend, part, how):
    """And trio's nurseries are left as they were entered."""
    nurseries = len(trio.lowlevel.current_task().child_nurseries)
    with pytest.raises(KeyError if how == "raise" else BackendBugError):
        async with open_queue(0, backend=backend) as queue:
            setattr(backend, part, raise_bug)
            if how == "raise":
                raise KeyError
    if part == "close_hook":
        backend.close_hook = None
        backend.close()
    assert backend.kernel.rows() == []
    async with trio.open_nursery() as nursery:
        assert nursery.parent_task.child_nurseries[-1] is nursery
    assert len(nursery.parent_task.child_nurseries) == nurseries
    with pytest.raises(trio.ClosedResourceError):
        await queue.receive()


async def test_a_backend_that_cannot_close_does_not_end_the_run(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        packet = await queue.receive()
        backend.close_hook = raise_bug
        backend.send_hook = raise_bug
        packet.accept()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await queue.receive()
        backend.close_hook = None


async def test_a_broken_queue_hands_out_nothing_more(backend):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 40)
        packet = await queue.receive()
        assert queue.statistics().read_ahead
        backend.kernel.queues.clear()
        packet.accept()
        await trio.testing.wait_all_tasks_blocked()
        for consume in (queue.__anext__, queue.receive, queue.next_batch):
            with pytest.raises(trio.BrokenResourceError):
                await consume()
        assert queue.statistics().read_ahead == 0


# -- error handlers --------------------------------------------------------------------------------


async def test_what_an_error_handler_raises_while_nobody_reads_is_raised_on_leaving(backend):
    """Even if it is what the queue itself would raise at its end."""
    error = trio.ClosedResourceError("the handler's own stream")

    def handler(_error, _packet):
        raise error

    with pytest.raises(trio.ClosedResourceError) as caught:
        async with open_queue(0, backend=backend, error_handler=handler):
            backend.inject(b"\x10" + bytes(11))
            await trio.testing.wait_all_tasks_blocked()
    assert caught.value is error


async def test_what_an_error_handler_raises_ends_the_consumer_and_loses_no_packet(backend):
    async def consume(queue, got):
        async for packet in queue:
            packet.accept()
            got.append(packet.id)
            if packet.id == 3:
                break

    def handler(error, _packet):
        raise error

    got = []
    async with open_queue(0, backend=backend, error_handler=handler) as queue:
        backend.inject(b"\x10" + bytes(11))
        arrive(backend, 3)
        with pytest.raises(RemoteProtocolError):
            await consume(queue, got)
        await consume(queue, got)
    assert got == [1, 2, 3]


# -- refusals under load ---------------------------------------------------------------------------


@pytest.fixture
def never_empty(monkeypatch):
    """A backend whose socket always holds more than a read takes, and how much that is."""
    monkeypatch.setattr(trionfq._link, "READ_AHEAD", 16)
    backend = ScriptedBackend(receive_buffer_bytes=1_000_000)
    return backend, 40


async def test_a_socket_that_is_never_empty_keeps_no_verdict_unsettled_for_ever(never_empty):
    """Else every refusable verdict would be remembered, and nothing batched any more."""
    backend, waiting = never_empty
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, waiting, **BRIDGED)
        count = most = 0
        async for packet in queue:
            packet.accept(vlan=TAG)
            count += 1
            arrive(backend, **BRIDGED)
            most = max(most, len(queue._protocol._ledger.unsettled))
            if count == 400:
                break
        # What stands in the socket when a verdict is sent, and a read before and behind it.
        assert waiting <= most <= waiting + 3 * 16
        before = queue.statistics().batches_sent
        async for packet in queue:
            packet.accept()
            count += 1
            arrive(backend, **BRIDGED)
            if count == 600:
                break
        await trio.lowlevel.checkpoint()
        assert queue.statistics().batches_sent > before
        await queue.aclose()
    assert len(effects(backend)) == 600 + waiting


async def test_a_refusal_that_comes_late_still_finds_its_packet(never_empty):
    """Verdicts are settled by packets that stand behind their answers, by no other."""
    backend, waiting = never_empty
    told = []
    real = backend.send_nowait

    def send(datagram):
        for message in schema.parse(datagram):
            if message.type == MessageType.VERDICT and message.seq in refused:
                backend.inject(refusal(message.seq))  # behind all that wait
            else:
                real(schema.build([message]))

    refused = {1, 50, 150}
    backend.send_nowait = send
    async with open_queue(
        0,
        backend=backend,
        error_handler=lambda error, packet: told.append(packet.id),
    ) as queue:
        arrive(backend, waiting, **BRIDGED)
        async for packet in queue:
            packet.accept(vlan=TAG)
            arrive(backend, **BRIDGED)
            if packet.id == 300:
                break
        assert told == sorted(refused)
        assert queue.undecided_ids[:3] == sorted(refused)
        backend.send_nowait = real
        await queue.aclose()


async def test_a_verdict_that_was_not_sent_yet_is_not_settled_by_an_empty_socket(
    backend, autojump_clock
):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 3, **BRIDGED)
        packets = [await queue.receive() for _ in range(3)]

        def no_memory(_datagram):
            raise OSError(errno.ENOBUFS, "no memory")

        backend.send_hook = no_memory
        packets[0].accept(vlan=TAG)
        await trio.lowlevel.checkpoint()
        arrive(backend, **BRIDGED)
        await trio.sleep(0.01)
        assert queue.statistics().read_ahead == 1
        packets[1].accept()
        packets[2].accept()
        await trio.lowlevel.checkpoint()
        backend.send_hook = None
        await trio.sleep(1)
        # No batch may sweep what the kernel might refuse and keep.
        kinds = [m.type for d in backend.sent[1:] for m in schema.parse(d)]
        assert kinds == [MessageType.VERDICT] * 3


# -- closing ---------------------------------------------------------------------------------------


async def test_what_is_too_long_is_split_at_closing_too(backend):
    def limit(datagram):
        if len(datagram) > 100:
            raise OSError(errno.EMSGSIZE, "too long")

    async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
        arrive(backend, 20)
        packets = [await queue.receive() for _ in range(10)]
        packets[0].hold()
        for packet in packets[1:]:
            packet.drop()
        backend.send_hook = limit
    assert effects(backend) == {
        n: Effect.DROPPED if 2 <= n <= 10 else Effect.ACCEPTED for n in range(1, 21)
    }


async def test_verdicts_that_wait_to_be_sent_again_leave_at_closing(backend):
    def no_memory(_datagram):
        raise OSError(errno.ENOBUFS, "no memory")

    async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
        arrive(backend, 3)
        packets = [await queue.receive() for _ in range(3)]
        backend.send_hook = no_memory
        packets[1].drop()
        await trio.lowlevel.checkpoint()
        packets[0].stop()
        backend.send_hook = None
    assert effects(backend) == {1: Effect.STOPPED, 2: Effect.DROPPED, 3: Effect.ACCEPTED}


async def test_a_closing_accept_that_the_kernel_refuses_is_raised():
    backend = ScriptedBackend()
    with pytest.raises(PrivilegeError, match="close queue 0"):
        async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT):
            arrive(backend)
            backend._socket.privileged = False
    assert effects(backend) == {1: Effect.DROPPED}


async def test_a_closing_drop_that_the_kernel_refuses_is_done_by_closing_the_socket():
    backend = ScriptedBackend()
    async with open_queue(0, backend=backend):
        arrive(backend)
        backend._socket.privileged = False
    assert effects(backend) == {1: Effect.DROPPED}


async def test_a_failed_closing_is_told_though_the_task_is_cancelled(backend):
    with pytest.raises(BackendBugError), trio.CancelScope() as scope:
        async with open_queue(0, backend=backend) as queue:
            backend.send_hook = raise_bug
            scope.cancel()
            await queue.aclose()


@pytest.mark.parametrize("policy", [Verdict.ACCEPT, Verdict.DROP])
@pytest.mark.parametrize("inherited", [False, True])
async def test_closing_changes_no_count(backend, policy, inherited):
    """The closing accept finds nothing where nothing waits, which is no verdict that was lost."""
    if inherited:
        backend.send_nowait(make_bind())
        backend.receive_nowait(9)
    async with open_queue(0, backend=backend, on_close=policy, inherited=inherited) as queue:
        arrive(backend, 2)
        for packet in [await queue.receive() for _ in range(2)]:
            packet.accept()
        await trio.lowlevel.checkpoint()
        before = queue.statistics()
    after = queue.statistics()
    assert after == before


async def test_after_closing_the_losses_are_still_known():
    backend = ScriptedBackend(receive_buffer_bytes=8000)
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 20)
        for _ in range(20):
            backend.send_nowait(make_verdict(99))  # each answered by an error that finds no room
        before = queue.statistics()
        assert before.answers_lost > 0
        assert before.kernel.user_dropped > 0
        while queue.statistics().read_ahead or not queue.statistics().packets_received:
            (await queue.receive()).accept()
    after = queue.statistics()
    assert after.answers_lost == before.answers_lost
    assert after.kernel.user_dropped == before.kernel.user_dropped


async def test_a_kernel_that_does_not_count_drops_has_statistics_all_the_same(backend):
    def no_option():
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    async with open_queue(0, backend=backend) as queue:
        backend.socket_drops = no_option
        assert queue.statistics().answers_lost == 0


async def test_lost_answers_are_counted_where_the_kernels_counters_begin_anew(backend):
    """They have 32 bits; and what a socket lost before it was the queue's is not counted."""
    drops = 2**32 - 3
    backend.socket_drops = lambda: drops
    async with open_queue(0, backend=backend) as queue:
        row = backend.kernel.queues[0]
        for drops, row.user_dropped, lost in [  # noqa: B007 - socket_drops reads it
            (2**32 - 3, 0, 0),
            (2**32 - 1, 0, 2),
            (1, 0, 4),
            (6, 5, 4),
            (6, 8, 4),  # packets that were lost between the two looks
            (9, 5, 7),
        ]:
            assert queue.statistics().answers_lost == lost


async def test_an_heir_counts_the_answers_that_are_lost_from_then_on(backend):
    backend.send_nowait(make_bind())
    backend.receive_nowait(9)
    row = backend.kernel.queues[0]
    drops, row.user_dropped = 7, 2**32 - 1
    backend.socket_drops = lambda: drops
    async with open_queue(0, backend=backend, inherited=True) as queue:
        assert queue.statistics().answers_lost == 0
        drops, row.user_dropped = 10, 1
        assert queue.statistics().answers_lost == 1
