"""What `Queue.serve` promises of handlers, policies, deadlines, errors and its end."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from operator import itemgetter

import pytest
import trio
import trio.testing

import trionfq._serve
from trionfq import schema
from trionfq._errors import RemoteProtocolError, VerdictRefusedError
from trionfq._kernel_model import Effect
from trionfq._open import open_queue
from trionfq._packet import Packet
from trionfq._verdict import Verdict
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import NFQA, MessageType
from trionfq.testing import ScriptedBackend, make_packet

POLICIES = pytest.mark.parametrize(
    ("policy", "effect"),
    [(Verdict.DROP, Effect.DROPPED), (Verdict.ACCEPT, Effect.ACCEPTED)],
    ids=["drop", "accept"],
)


@pytest.fixture
def backend():
    return ScriptedBackend()


def arrive(backend, count=1, **options):
    """Packets, one after the other."""
    for _ in range(count):
        backend.arrive(make_packet(**options), bypass=True)


def arrive_bridged(backend):
    """A packet whose VLAN tag a verdict may change: what a kernel may refuse."""
    arrive(backend, family=Family.BRIDGE, vlan=(0x8100, 1))


def retag(packet):
    packet.accept(vlan=(0x8100, 13))


def effects(backend):
    return {d.packet_id: d.effect for d in backend.decisions}


def accept(packet):
    packet.accept()


async def accept_later(packet):
    await trio.lowlevel.checkpoint()
    packet.accept()


@pytest.fixture(params=["sync", "async"])
def handler_of(request):
    """Makes a handler of a function, as a plain or as an async one."""

    def make(function):
        if request.param == "sync":
            return function

        async def handler(packet):
            await trio.lowlevel.checkpoint()
            function(packet)

        return handler

    return make


# -- handlers --------------------------------------------------------------------------------------


async def test_a_plain_function_gets_one_packet_after_the_other(backend):
    seen = []

    def handler(packet):
        seen.append(packet.id)
        packet.accept()

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 40)
        backend.end()
        await queue.serve(handler)
    assert seen == list(range(1, 41))
    assert set(effects(backend).values()) == {Effect.ACCEPTED}


async def test_an_async_handler_runs_in_standing_workers(backend):
    """Never a task a packet, and never more packets at once than there are workers."""
    tasks_seen = set()
    counts = set()
    inside = most = 0

    async def handler(packet):
        nonlocal inside, most
        tasks_seen.add(trio.lowlevel.current_task())
        counts.add(trio.lowlevel.current_statistics().tasks_living)
        inside += 1
        most = max(most, inside)
        await trio.lowlevel.checkpoint()
        inside -= 1
        packet.accept()

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 200)
        backend.end()
        await queue.serve(handler, workers=5)
    assert len(effects(backend)) == 200
    assert most == 5
    assert len(tasks_seen) == 5
    # While handlers work no task comes or goes; only at the end workers have left.
    assert max(counts) - min(counts) <= 5
    assert len(counts) <= 6


async def test_the_count_of_tasks_is_constant_while_packets_flow(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(functools.partial(queue.serve, accept_later, workers=7))
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            arrive(backend, 9)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == before
        assert len(effects(backend)) == 180
        nursery.cancel_scope.cancel()


async def test_a_blocked_handler_does_not_hold_up_the_others(backend):
    gate = trio.Event()

    async def handler(packet):
        if packet.id == 1:
            await gate.wait()
        packet.accept()

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(functools.partial(queue.serve, handler, workers=2))
        arrive(backend, 30)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(effects(backend)) == list(range(2, 31))
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(effects(backend)) == list(range(1, 31))
        nursery.cancel_scope.cancel()


class AsyncCallable:
    async def __call__(self, packet):
        await trio.lowlevel.checkpoint()
        packet.accept()

    async def method(self, packet):
        await self(packet)


class PlainCallable:
    def __call__(self, packet):
        packet.accept()


async def with_option(packet, *, mark):
    await trio.lowlevel.checkpoint()
    packet.accept(mark=mark)


@pytest.mark.parametrize(
    "handler",
    [
        AsyncCallable(),
        AsyncCallable().method,
        PlainCallable(),
        functools.partial(with_option, mark=3),
        functools.partial(AsyncCallable()),
        functools.partial(functools.partial(AsyncCallable().method)),
        functools.partial(PlainCallable()),
        lambda packet: packet.accept(),
    ],
    ids=[
        "async object",
        "async method",
        "object",
        "partial of async function",
        "partial of async object",
        "partial of partial of async method",
        "partial of object",
        "lambda",
    ],
)
async def test_a_handler_may_be_anything_that_is_called(backend, handler):
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 20)
        backend.end()
        await queue.serve(handler, workers=3)
    assert list(effects(backend).values()) == [Effect.ACCEPTED] * 20


async def never_awaited(packet):
    raise AssertionError("a coroutine that nobody awaits")


def generator(packet):
    packet.accept()
    yield


async def async_generator(packet):
    packet.accept()
    yield


@pytest.mark.parametrize(
    "handler",
    [lambda packet: never_awaited(packet), generator, async_generator],
    ids=["function returning a coroutine", "generator", "async generator"],
)
async def test_a_handler_whose_work_nobody_would_run_is_a_type_error(backend, handler):
    """With warnings as errors it is seen, too, that the coroutine is closed, not forgotten."""
    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 2)
        with pytest.raises(TypeError, match="pass an async function"):
            await queue.serve(handler, undecided=Verdict.ACCEPT)
        await trio.lowlevel.checkpoint()
        assert effects(backend) == {1: Effect.ACCEPTED}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"undecided": Verdict.STOP}, "undecided: expected DROP or ACCEPT"),
        ({"deadline_s": 0}, "deadline_s: expected more than 0 seconds"),
        ({"deadline_s": float("nan")}, "deadline_s"),
    ],
)
async def test_a_bad_argument_leaves_the_queue_free(backend, options, text):
    async with open_queue(0, backend=backend) as queue:
        with pytest.raises(ValueError, match=text):
            await queue.serve(accept, **options)
        arrive(backend)
        (await queue.receive()).accept()


async def test_serving_is_announced_and_is_a_checkpoint(backend):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        assert await nursery.start(queue.serve, accept) is None
        # From here on the queue is taken.
        with pytest.raises(trio.BusyResourceError, match=r"serve\(\)"):
            await queue.receive()
        nursery.cancel_scope.cancel()
    async with open_queue(0, backend=ScriptedBackend()) as queue:
        with trio.CancelScope() as scope:
            scope.cancel()
            await queue.serve(accept)
        assert scope.cancelled_caught


# -- packets that a handler leaves -----------------------------------------------------------------


@POLICIES
async def test_a_packet_that_its_handler_leaves_gets_the_policy(
    backend, handler_of, policy, effect
):
    def leave_every_second(packet):
        if packet.id % 2:
            packet.stop()

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 6)
        backend.end()
        await queue.serve(handler_of(leave_every_second), undecided=policy)
    assert effects(backend) == {n: Effect.STOPPED if n % 2 else effect for n in range(1, 7)}


@POLICIES
async def test_a_packet_whose_handler_raises_gets_the_policy(backend, handler_of, policy, effect):
    def fail(packet):
        raise ValueError("mine")

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 1)
        with pytest.raises(ValueError, match="mine"):
            await queue.serve(handler_of(fail), undecided=policy)
        await trio.lowlevel.checkpoint()
        assert effects(backend) == {1: effect}


async def test_a_verdict_given_before_the_handler_raises_stands(backend, handler_of):
    def fail(packet):
        packet.stop()
        raise ValueError("mine")

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 1)
        with pytest.raises(ValueError, match="mine"):
            await queue.serve(handler_of(fail))
    assert effects(backend) == {1: Effect.STOPPED}


@POLICIES
async def test_packets_whose_handlers_are_cancelled_get_the_policy(backend, policy, effect):
    other = Verdict.DROP if policy is Verdict.ACCEPT else Verdict.ACCEPT
    async with open_queue(0, backend=backend, on_close=other) as queue:
        arrive(backend, 4)
        with trio.CancelScope() as scope:

            async def handler(packet):
                if packet.id == 4:
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                await trio.sleep_forever()

            await queue.serve(handler, undecided=policy)
        await trio.lowlevel.checkpoint()
        assert effects(backend) == dict.fromkeys(range(1, 5), effect)


@POLICIES
async def test_a_packet_whose_handler_passes_its_deadline_gets_the_policy(
    backend, autojump_clock, policy, effect
):
    finished = []

    async def handler(packet):
        if packet.id % 2:
            await trio.sleep(10)
        packet.stop()
        finished.append(packet.id)

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 9)
        backend.end()
        await queue.serve(handler, undecided=policy, deadline_s=2, workers=3)
        assert trio.current_time() <= 4
    assert finished == [2, 4, 6, 8]
    assert effects(backend) == {n: effect if n % 2 else Effect.STOPPED for n in range(1, 10)}


async def test_each_packet_has_its_own_deadline(backend, autojump_clock):
    """Though the first one's passes when its handler was woken already, and has yet to run."""
    gate = trio.Event()

    async def handler(packet):
        if packet.id == 1:
            await gate.wait()
        else:
            await trio.sleep(1)
        packet.accept()

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(functools.partial(queue.serve, handler, deadline_s=2, workers=1))
        arrive(backend, 3)
        await trio.sleep(1)
        gate.set()
        autojump_clock.jump(2)
        await trio.sleep(10)
        assert effects(backend) == dict.fromkeys((1, 2, 3), Effect.ACCEPTED)
        nursery.cancel_scope.cancel()


async def test_one_cancel_scope_a_worker_serves_many_deadlines(
    backend, autojump_clock, monkeypatch
):
    made = []

    class CountingTrio:
        def __getattr__(self, name):
            return getattr(trio, name)

        def CancelScope(self, **options):  # noqa: N802
            made.append(trio.CancelScope(**options))
            return made[-1]

    monkeypatch.setattr(trionfq._serve, "trio", CountingTrio())

    async def handler(packet):
        await trio.sleep(1)
        packet.accept()

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 60)
        backend.end()
        await queue.serve(handler, deadline_s=1.5, workers=4)
    assert len(made) == 4
    assert len(effects(backend)) == 60


# -- holding ---------------------------------------------------------------------------------------


async def test_a_held_packet_is_left_alone(backend, handler_of):
    held = []

    def hold(packet):
        if packet.id == 2:
            packet.hold()
            held.append(packet)
        else:
            packet.accept()

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(queue.serve, handler_of(hold))
        arrive(backend, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(effects(backend)) == [1, 3, 4, 5]
        held[0].stop()
        await trio.testing.wait_all_tasks_blocked()
        assert effects(backend)[2] is Effect.STOPPED
        nursery.cancel_scope.cancel()


@POLICIES
async def test_a_held_packet_gets_the_policy_once_its_deadline_has_passed(
    backend, handler_of, autojump_clock, policy, effect
):
    held = []

    def hold(packet):
        packet.hold()
        held.append(packet)

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        serve = functools.partial(queue.serve, undecided=policy, deadline_s=5)
        await nursery.start(serve, handler_of(hold))
        arrive(backend, 3)
        await trio.sleep(4.9)
        assert effects(backend) == {}
        next(packet for packet in held if packet.id == 2).stop()
        await trio.sleep(0.2)
        assert effects(backend) == {1: effect, 2: Effect.STOPPED, 3: effect}
        arrive(backend)
        await trio.sleep(4.9)
        assert 4 not in effects(backend)
        await trio.sleep(0.2)
        assert effects(backend)[4] is effect
        nursery.cancel_scope.cancel()


async def test_the_deadline_counts_from_when_the_handler_got_the_packet(backend, autojump_clock):
    """Whatever the order in which handlers leave their packets."""

    async def handler(packet):
        # 1: got at 0, left at 3, due at 5. 2: got at 1, left at 1, due at 6.
        packet.hold()
        if packet.id == 1:
            await trio.sleep(3)

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(functools.partial(queue.serve, handler, deadline_s=5))
        arrive(backend)
        await trio.sleep(1)
        arrive(backend)
        await trio.sleep(3.9)
        assert sorted(effects(backend)) == []
        await trio.sleep(0.2)
        assert sorted(effects(backend)) == [1]
        await trio.sleep(0.8)
        assert sorted(effects(backend)) == [1]
        await trio.sleep(0.2)
        assert sorted(effects(backend)) == [1, 2]
        nursery.cancel_scope.cancel()


async def test_packets_that_were_held_and_decided_are_not_kept_until_their_deadline(
    backend, autojump_clock
):
    def hold_and_decide_the_one_before(packet):
        packet.hold()
        waiting.append(packet)
        if len(waiting) > 1:
            waiting.pop(0).accept()

    waiting = []
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(queue.serve, hold_and_decide_the_one_before, deadline_s=1_000_000)
        )
        for _ in range(50):
            arrive(backend, 40)
            await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        alive = sum(isinstance(thing, Packet) for thing in gc.get_objects())
        assert alive < 300
        nursery.cancel_scope.cancel()
    assert len(effects(backend)) == 2000


# -- errors ----------------------------------------------------------------------------------------


async def test_the_error_handler_gets_the_error_and_its_packet_and_serving_goes_on(
    backend, handler_of
):
    raised, told = [], []

    def fail_at_first(packet):
        if packet.id <= 2:
            raised.append(ValueError(packet.id))
            raise raised[-1]
        packet.accept()

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 5)
        backend.end()
        await queue.serve(
            handler_of(fail_at_first),
            error_handler=lambda error, packet: told.append((error, packet.id)),
        )
    assert sorted(told, key=itemgetter(1)) == sorted(
        ((error, error.args[0]) for error in raised), key=itemgetter(1)
    )
    assert [packet_id for _, packet_id in sorted(told, key=itemgetter(1))] == [1, 2]
    assert effects(backend) == {
        1: Effect.DROPPED,
        2: Effect.DROPPED,
        3: Effect.ACCEPTED,
        4: Effect.ACCEPTED,
        5: Effect.ACCEPTED,
    }


async def test_the_error_handler_may_decide_the_packet_or_hold_it(backend, handler_of):
    def fail(packet):
        raise ValueError("mine")

    def decide(error, packet):
        if packet.id == 1:
            packet.stop()
        elif packet.id == 2:
            packet.hold()

    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        await nursery.start(functools.partial(queue.serve, error_handler=decide), handler_of(fail))
        arrive(backend, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert effects(backend) == {1: Effect.STOPPED, 3: Effect.DROPPED}
        nursery.cancel_scope.cancel()


async def test_the_error_handler_may_raise_to_end_serving(backend, handler_of):
    def fail(packet):
        raise ValueError("mine")

    def end(error, packet):
        raise KeyError("enough") from error

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 2)
        with pytest.raises(KeyError, match="enough") as caught:
            await queue.serve(handler_of(fail), workers=1, error_handler=end)
        assert isinstance(caught.value.__cause__, ValueError)
        await trio.lowlevel.checkpoint()
        assert effects(backend) == {1: Effect.DROPPED}
        (await queue.receive()).accept()


async def test_the_exception_of_a_handler_leaves_as_it_was_raised(backend, handler_of):
    outer, inner = ValueError("outer"), KeyError("inner")

    def fail(packet):
        try:
            raise outer
        except ValueError:
            raise inner  # noqa: B904

    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        try:
            raise LookupError("what the caller is busy with")
        except LookupError:
            with pytest.raises(KeyError) as caught:
                await queue.serve(handler_of(fail))
        assert caught.value is inner
        assert inner.__context__ is outer
        assert inner.__cause__ is None


async def test_an_exception_without_context_gets_none(backend, handler_of):
    error = KeyError("plain")

    def fail(packet):
        raise error

    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        with pytest.raises(KeyError) as caught:
            await queue.serve(handler_of(fail))
        assert caught.value is error
        assert error.__context__ is None


@pytest.mark.parametrize("error", [trio.EndOfChannel(), trio.ClosedResourceError("my stream")])
async def test_a_handlers_own_trouble_with_a_channel_is_not_taken_for_the_queues(
    backend, handler_of, error
):
    def fail(packet):
        raise error

    async with open_queue(0, backend=backend) as queue:
        arrive(backend)
        with pytest.raises(type(error)) as caught:
            await queue.serve(handler_of(fail))
        assert caught.value is error


async def test_several_exceptions_leave_as_a_group(backend):
    errors = {1: ValueError("one"), 2: KeyError("two")}

    async def handler(packet):
        if packet.id == 1:
            await trio.testing.wait_all_tasks_blocked()
            raise errors[1]
        try:
            await trio.sleep_forever()
        finally:
            raise errors[2]

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 2)
        with pytest.raises(ExceptionGroup, match="several handlers raised") as caught:
            await queue.serve(handler)
        assert set(caught.value.exceptions) == set(errors.values())
        await trio.lowlevel.checkpoint()
        assert effects(backend) == {1: Effect.DROPPED, 2: Effect.DROPPED}


async def test_the_remaining_packets_stay_for_the_next_consumer(backend, handler_of):
    def fail_at_the_third(packet):
        if packet.id == 3:
            raise ValueError("mine")
        packet.accept()

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 20)
        with pytest.raises(ValueError, match="mine"):
            await queue.serve(handler_of(fail_at_the_third), workers=1)
        ids = []
        async for packet in queue:
            packet.accept()
            ids.append(packet.id)
            if packet.id == 20:
                break
        assert ids == list(range(4, 21))


async def test_one_handlers_exception_cancels_the_others(backend):
    cancelled = []

    async def handler(packet):
        if packet.id == 3:
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError("mine")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(packet.id)
            raise

    async with open_queue(0, backend=backend) as queue:
        arrive(backend, 3)
        with pytest.raises(ValueError, match="mine"):
            await queue.serve(handler, undecided=Verdict.ACCEPT)
        assert sorted(cancelled) == [1, 2]
        await trio.lowlevel.checkpoint()
        assert effects(backend) == dict.fromkeys((1, 2, 3), Effect.ACCEPTED)


async def test_without_its_own_error_handler_an_exception_ends_serving(backend, handler_of):
    """The queue's error handler is for refusals and bad messages, not for a handler's mistakes."""
    told = []

    def fail(packet):
        raise ValueError("mine")

    async with open_queue(
        0, backend=backend, error_handler=lambda error, packet: told.append(error)
    ) as queue:
        arrive(backend)
        with pytest.raises(ValueError, match="mine"):
            await queue.serve(handler_of(fail))
    assert told == []


# -- refusals and undecodable messages -------------------------------------------------------------


def refusal(packet_id, code=34):
    """An ERANGE, which the kernel gives and keeps the packet."""
    request = (32, MessageType.VERDICT, 1, packet_id, 5)
    return schema.build([schema.ErrorMessage(0x100, packet_id, 5, -code, request, b"", ())])


@pytest.fixture
def refusing():
    backend = ScriptedBackend()
    real = backend.send_nowait

    def send(datagram):
        # The kernel takes no verdict with a VLAN tag, and keeps the packet.
        refused = [
            m.seq
            for m in schema.parse(datagram)
            if m.type == MessageType.VERDICT and "vlan" in schema.by_name(NFQA, m.attributes)
        ]
        if refused:
            for packet_id in refused:
                backend.inject(refusal(packet_id))
        else:
            real(datagram)

    backend.send_nowait = send
    return backend


async def test_a_refused_verdict_is_told_and_its_packet_gets_the_policy(refusing, handler_of):
    """Nobody else would decide it: its handler has left."""
    told = []
    async with (
        open_queue(0, backend=refusing) as queue,
        trio.open_nursery() as nursery,
    ):
        serve = functools.partial(
            queue.serve,
            undecided=Verdict.ACCEPT,
            error_handler=lambda error, packet: told.append((error, packet)),
        )
        await nursery.start(serve, handler_of(retag))
        arrive_bridged(refusing)
        await trio.testing.wait_all_tasks_blocked()
        ((error, packet),) = told
        assert isinstance(error, VerdictRefusedError)
        assert packet.id == error.packet_id == 1
        assert effects(refusing) == {1: Effect.ACCEPTED}
        nursery.cancel_scope.cancel()


async def test_the_error_handler_may_decide_a_refused_packet(refusing, handler_of):
    async with (
        open_queue(0, backend=refusing) as queue,
        trio.open_nursery() as nursery,
    ):
        serve = functools.partial(
            queue.serve, error_handler=lambda error, packet: packet.stop(mark=2)
        )
        await nursery.start(serve, handler_of(retag))
        arrive_bridged(refusing)
        await trio.testing.wait_all_tasks_blocked()
        assert effects(refusing) == {1: Effect.STOPPED}
        nursery.cancel_scope.cancel()


async def test_a_refusal_is_logged_where_nobody_wants_to_know(refusing, handler_of, caplog):
    async with (
        open_queue(0, backend=refusing) as queue,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(queue.serve, handler_of(retag))
        arrive_bridged(refusing)
        await trio.testing.wait_all_tasks_blocked()
        assert effects(refusing) == {1: Effect.DROPPED}
        nursery.cancel_scope.cancel()
    (record,) = [r for r in caplog.records if r.name == "trionfq"]
    assert record.levelno == logging.WARNING
    assert "verdict for packet 1" in record.getMessage()


async def test_a_refusal_is_told_while_every_worker_is_busy(refusing):
    told = trio.Event()

    async def handler(packet):
        retag(packet)
        await told.wait()

    async with (
        open_queue(0, backend=refusing) as queue,
        trio.open_nursery() as nursery,
    ):
        serve = functools.partial(queue.serve, workers=1, error_handler=lambda *_: told.set())
        await nursery.start(serve, handler)
        arrive_bridged(refusing)
        await trio.testing.wait_all_tasks_blocked()
        assert told.is_set()
        nursery.cancel_scope.cancel()


@POLICIES
async def test_an_undecodable_message_gets_serves_policy(backend, handler_of, policy, effect):
    told = []
    real = backend.receive_nowait

    def garble(limit):
        received = real(limit)
        for at, datagram in enumerate(received.datagrams):
            if datagram[24:28] == b"\0\0\0\2":
                received.datagrams[at] = datagram[:32] + b"\x03\0" + datagram[34:]
        return received

    other = Verdict.DROP if policy is Verdict.ACCEPT else Verdict.ACCEPT
    async with open_queue(0, backend=backend, on_close=other) as queue:
        arrive(backend, 3)
        backend.end()
        backend.receive_nowait = garble
        await queue.serve(
            handler_of(lambda packet: packet.stop()),
            undecided=policy,
            error_handler=lambda error, packet: told.append((error, packet)),
        )
        assert effects(backend) == {1: Effect.STOPPED, 2: effect, 3: Effect.STOPPED}
    ((error, packet),) = told
    assert isinstance(error, RemoteProtocolError)
    assert packet is None


@pytest.mark.parametrize("how", ["cancel", "raise", "end"])
async def test_after_serving_the_queue_has_its_own_error_handler_and_policy_again(backend, how):
    served, own = [], []
    other = ScriptedBackend(backend.kernel)

    def handler(packet):
        packet.accept()
        if how == "raise":
            raise ValueError("mine")
        if how == "cancel":
            scope.cancel()

    def end(error, packet):
        served.append(error)
        raise error

    async with (
        open_queue(
            0, backend=backend, error_handler=lambda error, packet: own.append(error)
        ) as queue,
        open_queue(1, backend=other),
    ):
        arrive(backend)
        if how == "end":
            backend.end()
        with trio.CancelScope() as scope, contextlib.suppress(ValueError):
            await queue.serve(handler, undecided=Verdict.ACCEPT, error_handler=end)
        served.clear()
        # A message of which only the packet id can be read; its packet gets the policy.
        backend.inject(make_packet(7)[:32] + b"\x03\0" + make_packet(7)[34:])
        await trio.testing.wait_all_tasks_blocked()
        assert (len(served), len(own)) == ((0, 0) if how == "end" else (0, 1))
        if how != "end":
            (message,) = schema.parse(backend.sent[-1])
            assert schema.by_name(NFQA, message.attributes)["verdict_hdr"]["verdict"] == 0


# -- the end ---------------------------------------------------------------------------------------


async def test_serving_ends_with_the_capture(backend, handler_of):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(queue.serve, handler_of(accept))
        await trio.testing.wait_all_tasks_blocked()
        arrive(backend, 10)
        backend.end()
    # The nursery was left, so serve has returned.
    assert len(effects(backend)) == 10


@pytest.mark.parametrize("deadline_s", [None, 3])
async def test_closing_the_queue_ends_serving_with_one_exception(backend, handler_of, deadline_s):
    """Though each of many workers waits for the queue and is told."""
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def serve():
            with pytest.raises(trio.ClosedResourceError):
                await queue.serve(handler_of(accept), deadline_s=deadline_s)

        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        await queue.aclose()


async def test_a_broken_queue_ends_serving_with_one_exception_and_its_cause(backend, handler_of):
    async with open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:

        async def serve():
            with pytest.raises(trio.BrokenResourceError) as caught:
                await queue.serve(handler_of(accept))
            assert caught.value.__cause__.args == (5, "broken")

        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()

        def refuse(_datagram):
            raise OSError(5, "broken")

        backend.send_hook = refuse
        arrive(backend)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("deadline_s", [None, 1])
async def test_cancelling_at_every_await_loses_no_packet(workers, deadline_s):
    """Cancel serve at each tick in turn; whatever a handler has not got, the next consumer gets."""

    async def rounds(cancel_at):
        backend = ScriptedBackend()
        given = []

        async def handler(packet):
            given.append(packet.id)
            await trio.lowlevel.checkpoint()
            packet.accept()

        async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
            arrive(backend, 12)
            done = False
            with trio.CancelScope() as scope:

                async def serve():
                    nonlocal done
                    await queue.serve(
                        handler, workers=workers, undecided=Verdict.DROP, deadline_s=deadline_s
                    )
                    done = True

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve)
                    for _ in range(cancel_at):
                        await trio.lowlevel.checkpoint()
                    backend.end()
                    scope.cancel()
            rest = []
            async for packet in queue:
                packet.accept()
                rest.append(packet.id)
            assert sorted(given + rest) == list(range(1, 13))
            assert len(given) <= 12
            fates = effects(backend)
            assert sorted(fates) == list(range(1, 13))
            assert all(fates[n] is Effect.ACCEPTED for n in rest)
        return len(rest)

    left = [await rounds(cancel_at) for cancel_at in range(40)]
    assert left[0] == 12
    assert left[-1] == 0
    assert len(set(left)) > 3
