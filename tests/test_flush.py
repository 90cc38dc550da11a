"""The instrument that sends what waits at the end of a tick, while its members come and go."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trionfq import _flush
from trionfq._kernel_model import Effect
from trionfq._open import open_queue
from trionfq.testing import ScriptedBackend, make_packet


class Member:
    def __init__(self, act=lambda: None):
        self.calls = 0
        self.act = act

    def after_io_wait(self):
        self.begun = getattr(self, "begun", 0) + 1

    def before_io_wait(self):
        self.calls += 1
        self.act()


async def ticks(count=2):
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def test_a_member_is_called_in_every_tick_until_it_leaves():
    member = Member()
    _flush.register(member)
    await ticks(5)
    assert member.calls >= 5
    _flush.unregister(member)
    calls = member.calls
    await ticks(5)
    assert member.calls == calls
    _flush.unregister(member)


async def test_members_may_leave_and_come_while_they_are_called():
    late = Member()
    other = Member()

    def swap():
        _flush.unregister(one)
        _flush.unregister(other)
        _flush.register(late)

    one = Member(swap)
    _flush.register(one)
    _flush.register(other)
    await ticks()
    assert one.calls == 1
    assert other.calls <= 1
    assert late.calls >= 1
    _flush.unregister(late)


async def test_there_is_one_instrument_a_run():
    member, another = Member(), Member()
    _flush.register(member)
    _flush.unregister(member)
    first = _flush._instrument.get()
    _flush.register(another)
    assert _flush._instrument.get() is first
    _flush.unregister(another)


def test_each_run_has_its_own():
    seen = []

    async def main():
        with pytest.raises(LookupError):
            _flush._instrument.get()
        member = Member()
        _flush.register(member)
        seen.append(_flush._instrument.get())
        await ticks()
        assert member.calls
        _flush.unregister(member)

    trio.run(main)
    trio.run(main)
    assert seen[0] is not seen[1]


async def test_a_queue_that_another_ones_flush_closes_is_flushed_no_more():
    one, two = ScriptedBackend(), ScriptedBackend()
    async with open_queue(0, backend=one) as first, open_queue(0, backend=two) as second:
        for backend in (one, two):
            backend.arrive(make_packet())
        packets = [await first.receive(), await second.receive()]
        one.send_hook = lambda _datagram: second.close()
        for packet in packets:
            packet.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert [d.effect for d in one.decisions] == [Effect.ACCEPTED]
        # Its pending verdict left with the closing.
        assert [d.effect for d in two.decisions] == [Effect.ACCEPTED]
        one.send_hook = None
        one.arrive(make_packet())
        (await first.receive()).drop()
        await trio.testing.wait_all_tasks_blocked()
        assert [d.effect for d in one.decisions] == [Effect.ACCEPTED, Effect.DROPPED]
