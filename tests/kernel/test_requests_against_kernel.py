"""The kernel model answers every request as the kernel does, and brings about the same.

Same means: the same errno from send, the same messages in the same order and with the same
contents, the same rows in /proc after every step, and the same packets with the same marks and
priorities at the receiver.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import pytest

from ._bench import Bench, Traits, packets, play
from ._bench_model import ModelBench
from ._bench_real import InNamespace, RealBench, RealNamespace, outer_ids, real_bench
from ._scenario import EXT_ACK, OPEN, By, Scenario, datagram
from .requests import SCENARIOS

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the requests are written for a little-endian host"
)

T = TypeVar("T")
SMALL_BUFFER_BYTES = 8192


class Kernel(NamedTuple):
    """A namespace with all that its tests share."""

    thread: InNamespace
    namespace: RealNamespace
    traits: Traits

    def run(self, story: Callable[[RealBench], T], options: tuple[int, ...]) -> T:
        """A story told by the kernel, with new sockets."""

        def told() -> T:
            with real_bench(self.namespace, options) as bench:
                return story(bench)

        return self.thread.run(told)

    def model(self, portids: tuple[int, int], options: tuple[int, ...], **more: Any) -> ModelBench:
        """The model of this kernel."""
        return ModelBench(
            self.traits,
            portids,
            outer_ids(),
            options,
            priorities=self.namespace.priorities,
            **more,
        )


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    try:
        thread = InNamespace()
    except PermissionError as error:
        pytest.skip(f"no privilege for a network namespace: {error}")
    try:
        namespace = thread.run(RealNamespace)
        try:
            yield Kernel(thread, namespace, thread.run(namespace.traits))
        finally:
            thread.run(namespace.close)
    except FileNotFoundError as error:
        pytest.skip(f"this machine lacks {error}")
    except PermissionError as error:
        pytest.skip(f"the kernel takes no NFQUEUE rule: {error}")
    finally:
        thread.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.name for s in SCENARIOS])
def test_the_model_does_what_the_kernel_does(kernel: Kernel, scenario: Scenario) -> None:
    kernel_did, portids = kernel.run(
        lambda bench: (play(bench, scenario), bench.portids), scenario.options
    )
    model_did = play(kernel.model(portids, scenario.options), scenario)
    for kernel_step, model_step in zip(kernel_did.steps, model_did.steps, strict=True):
        assert model_step == kernel_step
    assert model_did.delivered == kernel_did.delivered


def test_there_are_at_least_60_scenarios_and_no_two_of_one_name() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 60


def accept(packet_id: int) -> bytes:
    return datagram(
        f"20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 {packet_id:08x}"
    )


FAIL_OPEN = datagram(
    "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000001 | 0800 0500 00000001"
)
NOBODYS = datagram("14000000 0103 0500 01000000 00000000 | 00 00 0005")


def both(
    kernel: Kernel, story: Callable[[Bench], Iterator[object]], *, small_buffer: bool = False
) -> list[tuple[object, object]]:
    """Each thing that the story told of the kernel, beside what it told of the model."""
    room: int | None = None

    def told(bench: RealBench) -> tuple[list[object], tuple[int, int]]:
        nonlocal room
        if small_buffer:
            # How many messages it holds depends on the machine, so the kernel is asked.
            size = bench.set_receive_buffer(SMALL_BUFFER_BYTES)
            assert bench.send(By.OWNER, NOBODYS) == 0
            room = size // bench.occupied()
            assert len(bench.receive()) == 1
        assert bench.send(By.OWNER, datagram(OPEN)) == 0
        assert len(bench.receive()) == 1
        return list(story(bench)), bench.portids

    of_kernel, portids = kernel.run(told, (EXT_ACK,))
    model = kernel.model(portids, (EXT_ACK,), buffer_messages=room)
    assert model.send(By.OWNER, datagram(OPEN)) == 0
    assert len(model.receive()) == 1
    return list(zip(of_kernel, story(model), strict=True))


def test_an_overflow_drops_until_the_buffer_was_read_empty(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        bench.arrive(packets(1, 40))
        yield bench.rows(), bench.drops()
        yield bench.receive(3)  # ENOBUFS first, and still congested
        bench.arrive(packets(41, 2))
        yield bench.rows(), bench.drops()
        yield bench.receive()
        bench.arrive(packets(43, 2))  # no longer
        yield bench.rows(), bench.drops(), bench.receive()

    for of_kernel, of_model in both(kernel, story, small_buffer=True):
        assert of_model == of_kernel


def test_without_enobufs_an_overflow_ends_when_there_is_room(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        bench.set_no_enobufs()
        bench.arrive(packets(1, 40))
        yield bench.rows(), bench.drops()
        yield bench.receive(3)
        bench.arrive(packets(41, 5))
        yield bench.rows(), bench.drops(), bench.receive()

    for of_kernel, of_model in both(kernel, story, small_buffer=True):
        assert of_model == of_kernel


def test_switching_enobufs_off_ends_a_congestion(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        bench.arrive(packets(1, 40))
        yield bench.receive(1)
        bench.set_no_enobufs()
        bench.arrive(packets(41, 2))
        yield bench.rows(), bench.drops(), bench.receive()

    for of_kernel, of_model in both(kernel, story, small_buffer=True):
        assert of_model == of_kernel


def test_an_overflow_that_fails_open_passes_packets_and_takes_ids(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        yield bench.send(By.OWNER, FAIL_OPEN), bench.receive()
        bench.arrive(packets(1, 40))
        yield bench.rows(), bench.drops(), bench.delivered(), bench.receive()

    for of_kernel, of_model in both(kernel, story, small_buffer=True):
        assert of_model == of_kernel


def test_a_full_buffer_loses_answers_too(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        bench.arrive(packets(1, 40))
        yield bench.send(By.OWNER, accept(1)), bench.drops(), bench.delivered()
        yield bench.receive()
        yield bench.send(By.OWNER, accept(1)), bench.receive()

    for of_kernel, of_model in both(kernel, story, small_buffer=True):
        assert of_model == of_kernel


def test_packets_of_a_device_that_goes_down_are_gone(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        bench.arrive(packets(1, 3))
        yield bench.receive(), bench.rows()
        bench.loopback_down_and_up()
        yield bench.receive(), bench.rows()
        yield bench.send(By.OWNER, accept(2)), bench.receive()
        bench.arrive(packets(4, 1))
        yield bench.receive(), bench.rows()
        yield bench.send(By.OWNER, accept(4)), bench.receive(), bench.delivered()

    for of_kernel, of_model in both(kernel, story):
        assert of_model == of_kernel


def test_when_any_hook_goes_all_packets_are_gone(kernel: Kernel) -> None:
    def story(bench: Bench) -> Iterator[object]:
        bench.arrive(packets(1, 3))
        yield bench.receive(), bench.rows()
        bench.hook_comes_and_goes()
        yield bench.receive(), bench.rows()
        yield bench.send(By.OWNER, accept(2)), bench.receive()
        bench.arrive(packets(4, 1))
        yield bench.receive(), bench.rows()
        yield bench.send(By.OWNER, accept(4)), bench.receive(), bench.delivered()

    for of_kernel, of_model in both(kernel, story):
        assert of_model == of_kernel
