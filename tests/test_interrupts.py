"""Ctrl-C at every place in turn: nothing is torn, lost or left open.

A trace function sends the process a real SIGINT at the n-th bytecode of an operation, for n = 1, 2,
3 and so on until the operation gets through, and trio's own handler decides: in a protected frame
it has the main task interrupted at its next checkpoint, elsewhere it raises at once. So both ends
of every step are tried, and the result is the same each time. Python itself looks for signals at
fewer places: at the start of a function, on jumping back and behind calls of C functions.

Each sweep is shown to notice something: without the protection of the functions that it is about,
it fails.
"""

from __future__ import annotations

import functools
import gc
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import trionfq
from trionfq._batch import Batch, Batches
from trionfq._kernel_model import Cause, Effect, PacketIn
from trionfq._ledger import Ledger
from trionfq._link import Link
from trionfq._open import QueueManager, open_queue
from trionfq._packet import Packet, decide_all
from trionfq._protocol import QueueProtocol
from trionfq._queue import Queue
from trionfq._read_ahead import ReadAhead
from trionfq._serve import Server
from trionfq._verdict import Verdict
from trionfq.testing import ScriptedBackend

_LIBRARY = str(Path(trionfq.__file__).parent)
_OTHER_SIDE = ("testing", "schema", "_kernel", "_codec", "_ip")
_EFFECTS = {
    Verdict.ACCEPT: Effect.ACCEPTED,
    Verdict.DROP: Effect.DROPPED,
    Verdict.STOP: Effect.STOPPED,
    Verdict.REPEAT: Effect.REPEATED,
    Verdict.QUEUE: Effect.REQUEUED,
}


class TornError(AssertionError):
    """An interrupt left something that contradicts itself."""


def check(whole, what):
    if not whole:
        raise TornError(what)


@functools.cache
def is_ours(filename):
    """Whether a file is of the library's own side."""
    if not filename.startswith(_LIBRARY):
        return False
    return not filename[len(_LIBRARY) + 1 :].startswith(_OTHER_SIDE)


class Interrupt:
    """Within it, SIGINT comes at the n-th place of the library's own code.

    Places are bytecodes ("opcode"), lines ("line") or the starts of functions ("call").

    Attributes:
      came: the place was reached.
      deferred: trio put it off, since the place is protected.
    """

    def __init__(self, place, events="opcode", also=()):
        self._left = place
        self._events = events
        self._also = also
        self._before = None
        self.came = self.deferred = False

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_exception):
        sys.settrace(self._before)

    def _trace(self, frame, event, _argument):
        code = frame.f_code
        if not is_ours(code.co_filename) and code not in self._also:
            return None
        if event == "call":
            frame.f_trace_lines = self._events == "line"
            frame.f_trace_opcodes = self._events == "opcode"
            if frame.f_lineno != code.co_firstlineno:
                return self._trace  # a coroutine goes on
        if event == self._events and not self.came:
            self._left -= 1
            if not self._left:
                self.came = True
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
                self.deferred = True
        return self._trace


@contextmanager
def unprotected(*functions):
    """Take trio's protection from some functions: it belongs to their code objects."""
    before = [function.__code__ for function in functions]
    for function in functions:
        function.__code__ = function.__code__.replace()
    try:
        yield
    finally:
        for function, code in zip(functions, before, strict=True):
            function.__code__ = code


async def collect_interrupt():
    """Let the main task have the interrupt that was put off, if any."""
    try:
        await trio.lowlevel.checkpoint()
    except KeyboardInterrupt:
        return True
    return False


def run(main):
    """Run with trio; an interrupt that got out is a failure, and so is waiting for nothing.

    The clock jumps when all tasks are blocked, so that takes no time.
    """

    async def limited():
        with trio.fail_after(1000):
            await main()

    try:
        trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))
    except trio.TooSlowError as error:
        raise TornError("an interrupt left somebody waiting for nothing") from error
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[0] is not None:
            raise TornError("an interrupt ended the queue") from group
        raise
    except KeyboardInterrupt as error:
        raise TornError("an interrupt ended the queue") from error


PAYLOAD = bytes.fromhex("4500001c00010000401166ce0a0000010a0000020035003500080000")


def arrive(backend, count):
    for _ in range(count):
        backend.kernel.enqueue(0, PacketIn(PAYLOAD))
    backend._wake()


def check_ledger(queue):
    """Each packet of the ledger waits to be answered once if it is decided, else not at all."""
    protocol = queue._protocol
    waiting = Counter(packet.id for packet in protocol._given)
    waiting.update(packet_id for packet_id, _told in protocol._by_id)
    for packet_id, packet in protocol._ledger.filed().items():
        check(
            waiting.pop(packet_id, 0) == packet.decided,
            f"packet {packet_id}: decided {packet.decided}, waits {waiting[packet_id]} times",
        )
    check(not waiting, f"verdicts of no packet: {waiting}")


async def decide_the_rest(backend, queue, packets):
    """Go on as a program would, and compare what the packets say with what the kernel did."""
    for packet in packets:
        if not packet.decided:
            packet.stop()
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    done = Counter(d.packet_id for d in backend.decisions)
    fates = {d.packet_id: d.effect for d in backend.decisions}
    for packet in packets:
        check(done[packet.id] == 1, f"packet {packet.id} was answered {done[packet.id]} times")
        check(
            fates[packet.id] is _EFFECTS[packet.verdict],
            f"packet {packet.id} has {packet.verdict!r}, and the kernel {fates[packet.id]}",
        )
    backend.decisions.clear()
    counted = queue.statistics()
    check(counted.verdicts_gone == counted.undecided == 0, str(counted))


# -- verdicts --------------------------------------------------------------------------------------


def verdict_sweep(operation, events="opcode"):
    """Interrupt an operation on three packets at each place; how many came at once and put off."""
    at_once = put_off = 0

    async def main():
        nonlocal at_once, put_off
        backend = ScriptedBackend()
        backend.kernel._requeue_repeats = backend.kernel._follow_queue = False
        async with open_queue(0, backend=backend) as queue:
            place = 0
            while True:
                place += 1
                arrive(backend, 3)
                packets = [await queue.receive() for _ in range(3)]
                interrupt = Interrupt(place, events)
                raised = False
                try:
                    with interrupt:
                        operation(queue, packets)
                except KeyboardInterrupt:
                    raised = True
                check(raised or interrupt.deferred or not interrupt.came, "an interrupt got lost")
                check_ledger(queue)
                check(await collect_interrupt() == interrupt.deferred, "an interrupt got lost")
                at_once += raised
                put_off += interrupt.deferred
                await decide_the_rest(backend, queue, packets)
                if not interrupt.came:
                    return

    run(main)
    return at_once, put_off


def rewrite(queue, packets):
    packets[1].payload = PAYLOAD + b"more"
    packets[1].accept()


VERDICTS = {
    "accept": (lambda q, p: p[1].accept(), "opcode", [Packet.accept]),
    "accept with a mark": (
        lambda q, p: p[1].accept(mark=3),
        "opcode",
        [Packet.accept, Packet.decide],
    ),
    "drop": (lambda q, p: p[1].drop(), "opcode", [Packet.drop]),
    "repeat": (lambda q, p: p[1].repeat(mark=1), "opcode", [Packet.decide]),
    "requeue": (lambda q, p: p[1].requeue(5), "opcode", [Packet.decide]),
    "rewrite": (rewrite, "line", [Packet.accept, Packet.decide, Packet.set_payload]),
    "batch accept": (lambda q, p: Batch(p).accept(), "opcode", [decide_all]),
    "batch drop": (lambda q, p: Batch(p).drop(), "line", [decide_all]),
    "set_verdict": (
        lambda q, p: q.set_verdict(p[1].id, Verdict.DROP),
        "opcode",
        [Queue.set_verdict, Packet.decide],
    ),
    "set_verdict_batch": (
        lambda q, p: q.set_verdict_batch(p[1].id, Verdict.DROP),
        "opcode",
        [Queue.set_verdict_batch, QueueProtocol.decide_up_to, Packet.settle],
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_an_interrupt_never_tears_a_verdict(name):
    operation, events, _protected = VERDICTS[name]
    _at_once, put_off = verdict_sweep(operation, events)
    assert put_off > 10


@pytest.mark.parametrize("name", VERDICTS)
def test_without_protection_verdicts_would_be_torn(name):
    operation, events, protected = VERDICTS[name]
    with unprotected(*protected), pytest.raises(TornError, match="packet"):
        verdict_sweep(operation, events)


# -- reading ---------------------------------------------------------------------------------------


def reading_sweep(read, first):
    """Interrupt a read at each place; every packet comes once and in order all the same.

    With `first`, one packet is read before, so that others are in the read-ahead.
    """
    put_off = 0

    async def main():
        nonlocal put_off
        backend = ScriptedBackend()
        async with open_queue(0, backend=backend) as queue:
            place = known = 0
            while True:
                place += 1
                arrive(backend, 3)
                got = [await queue.receive()] if first else []
                interrupt = Interrupt(place, "line")
                try:
                    with interrupt:
                        got += await read(queue)
                except KeyboardInterrupt:
                    pass
                else:
                    check(await collect_interrupt() == interrupt.came, "an interrupt got lost")
                put_off += interrupt.deferred
                while backend._socket.readable or queue.statistics().read_ahead:
                    got.append(await queue.receive())
                ids = [packet.id for packet in got]
                check(ids == [known + 1, known + 2, known + 3], f"packets {ids} after {known}")
                known += 3
                check(queue.undecided_ids == ids, f"packets {ids}, ledger {queue.undecided_ids}")
                check_ledger(queue)
                await decide_the_rest(backend, queue, got)
                if not interrupt.came:
                    return

    run(main)
    return put_off


async def read_one(queue):
    return [await queue.receive()]


async def iterate_one(queue):
    async for packet in queue:
        return [packet]
    raise AssertionError("no packet")


async def iterate_batch(queue):
    async for batch in queue.batches():
        return batch
    raise AssertionError("no batch")


READS = {
    "receive": (read_one, [Queue.receive, Queue._next, Queue.advance]),
    "iterate": (iterate_one, [Queue.__anext__, Queue._next, Queue.advance]),
    "batches": (iterate_batch, [Batches.__anext__, Queue.next_batch]),
}
BELOW = [
    Link.wait_for_packets,
    Link.drain,
    Link.take,
    QueueProtocol.receive,
    ReadAhead.append,
    ReadAhead.next_chunk,
    ReadAhead.take_all,
]


@pytest.mark.parametrize("first", [False, True], ids=["from the socket", "from the read-ahead"])
@pytest.mark.parametrize("name", READS)
def test_an_interrupt_never_loses_a_packet(name, first):
    put_off = reading_sweep(READS[name][0], first)
    assert put_off >= (2 if first else 50)


@pytest.mark.parametrize("name", READS)
def test_without_protection_packets_would_be_lost(name):
    read, protected = READS[name]
    # Or the place of the only consumer stays taken.
    noticed = pytest.raises((TornError, trio.BusyResourceError))
    with unprotected(*protected, *BELOW), noticed:
        reading_sweep(read, first=False)


def test_a_waiting_consumer_is_interrupted_at_once():
    """Protection does not make Ctrl-C wait for a packet."""
    backend = ScriptedBackend()

    async def main():
        async with open_queue(0, backend=backend) as queue:
            trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                await queue.receive()
            arrive(backend, 1)
            (await queue.receive()).accept()

    run(main)


@pytest.mark.parametrize("reader", ["consumer", "loop"])
def test_an_error_handler_can_be_interrupted(reader):
    """It is the program's own code, however deep it is called from protected code."""
    backend = ScriptedBackend()

    def handler(_error, _packet):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("put off")

    async def main():
        async with open_queue(0, backend=backend, error_handler=handler) as queue:
            backend.inject(b"\x10" + bytes(11))
            if reader == "consumer":
                await queue.receive()
            await trio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert backend.kernel.rows() == []


# -- flushing, settings and looking ----------------------------------------------------------------


def quiet_sweep(operation, after, *, prepare=lambda queue, packets: None, events="line", places=1):
    """Interrupt what moves no packet of its own at each place; `after` looks at the result."""
    put_off = 0

    async def main():
        nonlocal put_off
        backend = ScriptedBackend()
        backend.kernel._requeue_repeats = False
        async with open_queue(0, backend=backend) as queue:
            place = 0
            while True:
                place += places
                arrive(backend, 4)
                packets = [await queue.receive() for _ in range(4)]
                prepare(queue, packets)
                interrupt = Interrupt(place, events)
                try:
                    with interrupt:
                        await operation(queue)
                except KeyboardInterrupt:
                    pass
                else:
                    await collect_interrupt()
                put_off += interrupt.deferred
                after(backend, queue, packets)
                await decide_the_rest(backend, queue, packets)
                if not interrupt.came:
                    return

    run(main)
    return put_off


async def end_a_tick(_queue):
    await trio.lowlevel.checkpoint()


def decide_in_many_ways(_queue, packets):
    packets[0].accept(mark=1)
    packets[1].drop()
    packets[2].repeat(mark=2)
    packets[3].accept()


def test_an_interrupt_never_tears_a_flush():
    put_off = quiet_sweep(end_a_tick, lambda *_: None, prepare=decide_in_many_ways)
    assert put_off > 50

    # trio calls the instrument from protected code, so that one needs no protection of its own;
    # a consumer that flushes before it waits does.
    async def wait(queue):
        with trio.move_on_after(0):
            await queue.receive()

    assert quiet_sweep(wait, lambda *_: None, prepare=decide_in_many_ways) > 50
    bare = [Queue.receive, Queue._next, Queue.advance]
    bare += [Link.wait_for_packets, Link.flush, QueueProtocol.flush]
    with unprotected(*bare), pytest.raises(TornError, match="answered 0 times"):
        quiet_sweep(wait, lambda *_: None, prepare=decide_in_many_ways)


def test_an_interrupt_never_tears_the_settings():
    async def configure(queue):
        queue.configure(max_len=600 if queue.config.max_len == 500 else 500)

    def same(backend, queue, _packets):
        have = backend.kernel.queue(0).max_len
        check(queue.config.max_len == have, f"{queue.config.max_len}, the kernel {have}")

    assert quiet_sweep(configure, same) > 10
    with unprotected(Queue.configure, Link.request), pytest.raises(TornError, match="the kernel"):
        quiet_sweep(configure, same)


def test_an_interrupt_never_tears_the_ledger_when_it_is_put_in_order():
    def disorder(queue, packets):
        ledger = queue._protocol._ledger
        undecided = ledger.filed()
        undecided[packets[0].id] = undecided.pop(packets[0].id)
        ledger._in_order = False

    async def look(queue):
        queue.statistics()
        assert queue.undecided_ids

    def whole(_backend, queue, packets):
        ids = queue.undecided_ids
        check(ids == [packet.id for packet in packets], f"packets {ids}")

    assert quiet_sweep(look, whole, prepare=disorder, events="opcode", places=3) > 5
    with unprotected(Ledger.in_order), pytest.raises(TornError, match="packets"):
        quiet_sweep(look, whole, prepare=disorder, events="opcode")


# -- serving ---------------------------------------------------------------------------------------


def serve_sweep(handler, **options):
    """Interrupt serve where Python looks for signals on entering functions, ours and others.

    Whatever the handler was given has a verdict, and the next consumer gets the rest.
    """
    came = 0

    async def main():
        nonlocal came
        backend = ScriptedBackend()
        async with open_queue(0, backend=backend) as queue:
            place = 0
            while True:
                place += 1
                arrive(backend, 3)
                also = plain_handler.__code__, async_handler.__code__
                interrupt = Interrupt(place, "call", also)
                with trio.CancelScope() as scope:
                    try:
                        with interrupt:
                            await queue.serve(functools.partial(handler, scope), **options)
                    except BaseExceptionGroup as group:
                        other = group.split((KeyboardInterrupt, trio.Cancelled))[1]
                        if other is not None:
                            raise
                    except KeyboardInterrupt:
                        pass
                await collect_interrupt()
                while backend._socket.readable or queue.statistics().read_ahead:
                    (await queue.receive()).accept()
                await trio.lowlevel.checkpoint()
                left = queue.undecided_ids
                check(not left, f"packets {left} have no verdict")
                done = [d.packet_id for d in backend.decisions]
                check(len(set(done)) == len(done) == 3, f"packets {done} were answered")
                backend.decisions.clear()
                came += interrupt.came
                if not interrupt.came:
                    return

    run(main)
    return came


def plain_handler(scope, packet):
    if packet.id % 3 == 0:
        scope.cancel()
    elif packet.id % 3 == 1:
        packet.accept()


async def async_handler(scope, packet):
    await trio.lowlevel.checkpoint()
    plain_handler(scope, packet)


@pytest.mark.parametrize("handler", [plain_handler, async_handler])
@pytest.mark.parametrize("deadline_s", [None, 1])
def test_an_interrupted_handler_leaves_no_packet_without_a_verdict(handler, deadline_s):
    assert serve_sweep(handler, deadline_s=deadline_s, workers=2) > 50


def test_a_packet_that_an_interrupted_handler_left_would_be_noticed(monkeypatch):
    monkeypatch.setattr(Server, "_leave", lambda *_args, **_options: None)
    with pytest.raises(TornError, match="have no verdict"):
        serve_sweep(plain_handler)


# -- opening and closing ---------------------------------------------------------------------------


async def program(backend, interrupt, part):
    """Open, decide one of two packets, and close; interrupted in one part of that."""
    if part == "entering":
        interrupt.__enter__()
    try:
        async with open_queue(0, backend=backend, on_close=Verdict.ACCEPT) as queue:
            interrupt.__exit__()
            arrive(backend, 2)
            packet = await queue.receive()
            packet.drop()
            if part != "entering":
                interrupt.__enter__()
            if part == "closing":
                await queue.aclose()
                interrupt.__exit__()
    finally:
        interrupt.__exit__()
    await trio.lowlevel.checkpoint()


def closing_sweep(part):
    """Interrupt the program at each place; its queue is closed, and by the policy."""
    came = bound = place = 0
    while True:
        place += 1
        backend = ScriptedBackend()
        interrupt = Interrupt(place, "line")
        try:
            trio.run(program, backend, interrupt, part)
        except KeyboardInterrupt:
            check(interrupt.came, "an interrupt from nowhere")
        else:
            check(not interrupt.came, "an interrupt got lost")
        check(backend.kernel.rows() == [], f"still bound after {place} lines")
        fates = {(d.packet_id, d.cause, d.effect) for d in backend.decisions}
        wanted = {(2, Cause.BATCH, Effect.ACCEPTED)}
        if (1, Cause.VERDICT, Effect.DROPPED) in fates:
            wanted.add((1, Cause.VERDICT, Effect.DROPPED))
        elif part == "entering":
            wanted.add((1, Cause.BATCH, Effect.ACCEPTED))
        check(
            fates == wanted or (part == "entering" and not fates), f"after {place} lines: {fates}"
        )
        bound += bool(backend.sent)
        came += interrupt.came
        if not interrupt.came:
            return came, bound


@pytest.mark.parametrize("part", ["entering", "closing", "leaving"])
def test_an_interrupt_never_leaves_a_queue_bound(part):
    came, bound = closing_sweep(part)
    assert came > 50
    assert bound > 25


def test_without_protection_a_queue_would_stay_bound():
    bare = [QueueManager.__aenter__, Link.request]
    with unprotected(*bare), pytest.raises(TornError, match="still bound after"):
        closing_sweep("entering")


def test_without_protection_closing_would_be_torn():
    bare = [Queue.close, Link.close, QueueProtocol.end, QueueProtocol.flush]
    with unprotected(*bare), pytest.raises(TornError, match="lines:"):
        closing_sweep("closing")


# trio says of a nursery that nobody left what it must say.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_protection_a_nursery_would_be_left_open():
    torn = pytest.raises((trio.TrioInternalError, RuntimeError))
    with unprotected(QueueManager.__aexit__), torn:
        closing_sweep("leaving")
    gc.collect()


def test_an_interrupt_on_leaving_does_not_hide_the_blocks_exception():
    backend = ScriptedBackend()

    async def main():
        async with open_queue(0, backend=backend):
            backend.close_hook = functools.partial(signal.raise_signal, signal.SIGINT)
            raise KeyError("mine")

    with pytest.raises(KeyboardInterrupt) as caught:
        trio.run(main)
    context = caught.value.__context__
    assert isinstance(context, KeyError)
    assert not caught.value.__suppress_context__
    assert context.__context__ is None
    assert backend.kernel.rows() == []
