"""Worker processes over replays: opened together, replaced where they die, ended together."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionfq
from trionfq import Verdict, WorkerDiedError, WorkersStatistics
from trionfq import _supervisor as supervisor

from . import worker_targets as targets

if not hasattr(os, "pidfd_open"):
    pytest.skip("these tests watch processes through pidfd_open(2)", allow_module_level=True)

PATIENCE_S = 300.0
"""How long what must come is waited for; to start a process takes seconds on a busy machine."""

open_workers = functools.partial(trionfq.open_workers, grace_s=PATIENCE_S)
ROOT = Path(__file__).parents[1]


class Deaths:
    """An error handler that keeps what it is told."""

    def __init__(self) -> None:
        self.errors: list[WorkerDiedError] = []
        self._send, self._receive = trio.open_memory_channel[WorkerDiedError](1000)

    def __call__(self, error: Exception, packet: trionfq.Packet | None) -> None:
        assert isinstance(error, WorkerDiedError)
        assert packet is None
        self.errors.append(error)
        self._send.send_nowait(error)

    async def next(self) -> WorkerDiedError:
        return await self._receive.receive()


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def pid_after(workers: trionfq.Workers, number: int, before: int) -> int:
    """The process that has the queue open after that one."""
    while (await workers.statistics()).queues.keys() != set(workers.queues):  # noqa: ASYNC110
        await trio.sleep(0.01)
    pid = workers.pids[number]
    assert pid != before
    return pid


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def patient(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A test that fails where it would hang."""

    @functools.wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(PATIENCE_S):
            await test(*args, **kwargs)

    return limited


# --- together -------------------------------------------------------------------------------------


@patient
async def test_each_queue_has_a_process_that_runs_the_target(tmp_path: Path) -> None:
    async with open_workers(
        targets.accept_all, tmp_path, queues=(3, 8), backend=targets.demo, max_len=7
    ) as workers:
        assert workers.queues == (3, 8)
        await workers.wait()
        assert workers.pids == {}
    said = {name: text.split() for name, text in files(tmp_path).items()}
    assert sorted(said) == ["3", "8"]
    assert {count for count, _pid in said.values()} == {"34"}
    pids = {int(pid) for _count, pid in said.values()} | {os.getpid()}
    assert len(pids) == 3, "two processes beside this one"


@patient
async def test_statistics_come_from_every_worker_and_in_sum() -> None:
    async with open_workers(targets.hold_one, queues=(0, 1), backend=targets.demo) as workers:
        while True:
            seen = await workers.statistics()
            if seen.total.held == 2:
                break
    assert [seen.queues[number].held for number in (0, 1)] == [1, 1]
    first, second = seen.queues[0], seen.queues[1]
    assert first.packets_received > 0
    assert seen.total.packets_received == first.packets_received + second.packets_received
    assert first.oldest_undecided_s is not None
    assert second.oldest_undecided_s is not None
    assert seen.total.oldest_undecided_s == max(first.oldest_undecided_s, second.oldest_undecided_s)
    assert seen.total.kernel is None
    assert seen.deaths == {0: 0, 1: 0}
    after = await workers.statistics()
    assert after.queues == {}, "no queue is open any more"


@patient
async def test_a_worker_that_dies_before_it_answers_is_left_out() -> None:
    async with (
        open_workers(targets.stuck, queues=[0], grace_s=0, backend=targets.demo) as workers,
        trio.open_nursery() as nursery,
    ):
        pid = workers.pids[0]

        @nursery.start_soon
        async def ask() -> None:
            assert (await workers.statistics()).queues == {}
            assert 0 not in workers.pids or workers.pids[0] != pid

        await wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)


def test_the_sum_has_every_field() -> None:
    one = WorkersStatistics({}, {}).total
    numbers = {
        name: 3 + place
        for place, name in enumerate(vars(one))
        if name not in ("verdicts", "oldest_undecided_s", "kernel")
    }
    first = trionfq.Statistics(
        **numbers, verdicts={Verdict.DROP: 1}, oldest_undecided_s=None, kernel=None
    )
    second = trionfq.Statistics(
        **numbers,
        verdicts={Verdict.DROP: 2, Verdict.ACCEPT: 4},
        oldest_undecided_s=0.5,
        kernel=None,
    )
    total = WorkersStatistics({0: first, 1: second}, {}).total
    assert {name: getattr(total, name) for name in numbers} == {
        name: 2 * value for name, value in numbers.items()
    }
    assert total.verdicts == {Verdict.DROP: 3, Verdict.ACCEPT: 4}
    assert total.oldest_undecided_s == 0.5


@patient
async def test_workers_are_pinned_in_the_order_of_the_queues(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    async with open_workers(
        targets.tell_processors, tmp_path, queues=(5, 4, 6), cpus=cpus, backend=targets.demo
    ) as workers:
        await workers.wait()
    said = files(tmp_path)
    assert said == {"5": f"[{cpus[0]}]", "4": f"[{cpus[-1]}]", "6": f"[{cpus[0]}]"}


# --- opening fails --------------------------------------------------------------------------------


@patient
async def test_an_error_at_the_first_opening_leaves_as_itself_and_ends_the_others() -> None:
    manager = open_workers(targets.idle, queues=(0, 1), backend=targets.missing_for_one)
    with pytest.raises(FileNotFoundError) as caught:
        async with manager:
            raise AssertionError("entered")
    assert caught.value.errno == errno.ENOENT
    text = "".join(traceback.format_exception(caught.value))
    assert "in the worker of queue 1 (process " in text
    assert "worker_targets.py" in text, "where in the worker"
    assert manager._workers.pids == {}


@patient
async def test_an_error_that_cannot_be_carried_over_is_told_as_text() -> None:
    with pytest.raises(WorkerDiedError, match=r"worker of queue 0 .*UnpicklableError") as caught:
        async with open_workers(targets.idle, queues=[0], backend=targets.unpicklable):
            raise AssertionError("entered")
    assert caught.value.traceback is not None
    assert "of this number" in caught.value.traceback
    assert caught.value.exit_code == 1
    assert caught.value.restart_delay_s is None


@patient
async def test_a_worker_that_exits_before_it_is_ready_is_told_by_its_code() -> None:
    with pytest.raises(WorkerDiedError, match="exit code 7") as caught:
        async with open_workers(targets.idle, queues=[0], backend=targets.leaves):
            raise AssertionError("entered")
    assert (caught.value.exit_code, caught.value.queue_number) == (7, 0)


@patient
async def test_a_processor_that_is_not_there_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="may not run on processor 4000"):
        async with open_workers(targets.idle, queues=[0], cpus=[4000], backend=targets.demo):
            raise AssertionError("entered")


@patient
async def test_a_cancellation_while_opening_leaves_no_process() -> None:
    manager = open_workers(targets.idle, queues=(0, 1), backend=targets.demo)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cancel_when_there_are_processes() -> None:
                while len(manager._workers.pids) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.001)
                pids.extend(manager._workers.pids.values())
                scope.cancel()

            pids: list[int] = []
            async with manager:
                raise AssertionError("entered")
    assert scope.cancelled_caught
    assert len(pids) == 2
    assert not any(map(is_there, pids))


# --- death ----------------------------------------------------------------------------------------


@patient
async def test_a_killed_worker_is_reported_and_replaced_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deaths = Deaths()
    async with open_workers(
        targets.idle, queues=(0, 1), backend=targets.demo, error_handler=deaths
    ) as workers:
        before = workers.pids
        os.kill(before[1], signal.SIGKILL)
        error = await deaths.next()
        assert (error.queue_number, error.pid, error.exit_code) == (1, before[1], -signal.SIGKILL)
        assert (error.traceback, error.restart_delay_s) == (None, 0.0)
        assert "was killed by SIGKILL; its queue is opened again in 0 s" in str(error)
        await pid_after(workers, 1, before[1])
        assert workers.pids[0] == before[0]
        assert (await workers.statistics()).deaths == {0: 0, 1: 1}
    assert [record.message for record in caplog.records] == [str(error)]
    assert deaths.errors == [error]


@patient
async def test_a_worker_that_raises_is_reported_with_its_exception(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deaths = Deaths()
    async with open_workers(
        targets.fail_once, tmp_path, queues=(0, 1), backend=targets.demo, error_handler=deaths
    ) as workers:
        await workers.wait()
    [error] = deaths.errors
    assert isinstance(error.__cause__, LookupError)
    assert error.__cause__.args == ("once",)
    assert error.traceback is not None
    assert "in fail_once" in error.traceback
    assert "it raised LookupError: once" in str(error)
    assert error.traceback in caplog.text
    for name in ("0", "1"):
        assert (tmp_path / name).read_text().startswith("34 "), "both have finished"


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        (targets.fail_badly, 1, "it raised .*UnpicklableError: always"),
        (targets.exit_with_code, 3, "it ended with exit code 3"),
        (targets.stuck, -signal.SIGKILL, "it was killed by SIGKILL"),
    ],
)
@patient
async def test_a_death_says_how(target: Any, code: int, said: str) -> None:
    with pytest.raises(WorkerDiedError, match=said) as caught:
        async with open_workers(
            target, queues=[0], backend=targets.demo, max_restarts=0
        ) as workers:
            if target is targets.stuck:
                os.kill(workers.pids[0], signal.SIGKILL)
            await trio.sleep_forever()
    assert caught.value.exit_code == code
    assert caught.value.__cause__ is None


@patient
async def test_sigterm_stops_a_worker_in_order_and_is_a_death_all_the_same(tmp_path: Path) -> None:
    deaths = Deaths()
    async with open_workers(
        targets.tell_of_end, tmp_path, queues=[0], backend=targets.demo, error_handler=deaths
    ) as workers:
        pid = workers.pids[0]
        os.kill(pid, signal.SIGTERM)
        error = await deaths.next()
        assert (tmp_path / "0-ended").read_text() == str(pid), "its target was cancelled"
        assert (error.pid, error.exit_code) == (pid, -signal.SIGTERM)
        await pid_after(workers, 0, pid)


@patient
async def test_a_death_is_seen_though_a_child_keeps_the_pipe_open(tmp_path: Path) -> None:
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        async with open_workers(
            targets.leave_child, tmp_path, queues=[0], backend=targets.demo, max_restarts=0
        ):
            await trio.sleep_forever()
    os.kill(int((tmp_path / "child").read_text()), signal.SIGTERM)


@patient
async def test_a_worker_that_dies_too_often_ends_the_block() -> None:
    deaths = Deaths()
    with pytest.raises(WorkerDiedError) as caught:
        async with open_workers(
            targets.fail,
            "always",
            queues=(0,),
            backend=targets.demo,
            max_restarts=2,
            restart_period_s=float("inf"),
            error_handler=deaths,
        ):
            await trio.sleep_forever()
    assert [error.restart_delay_s for error in deaths.errors] == [0.0, 0.1, None]
    assert caught.value is deaths.errors[-1]
    assert "is not opened again" in str(caught.value)
    assert len({error.pid for error in deaths.errors}) == 3


def test_delays_double_and_are_bounded() -> None:
    delays = [supervisor._delay_s(deaths) for deaths in range(1, 11)]
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]


@patient
async def test_what_the_error_handler_raises_ends_the_block_and_leaves_as_it_was() -> None:
    thrown = ZeroDivisionError("of the handler")

    def handler(error: Exception, packet: trionfq.Packet | None) -> None:
        raise thrown

    with pytest.raises(ZeroDivisionError) as caught:
        async with open_workers(
            targets.fail, "first", queues=(0, 1), backend=targets.demo, error_handler=handler
        ):
            await trio.sleep_forever()
    assert caught.value is thrown
    assert thrown.__context__ is None


# --- the end --------------------------------------------------------------------------------------


@patient
async def test_leaving_cancels_every_target_and_waits_for_the_processes(tmp_path: Path) -> None:
    async with open_workers(
        targets.tell_of_end, tmp_path, queues=(0, 1), backend=targets.demo
    ) as workers:
        pids = workers.pids
    assert not any(map(is_there, pids.values()))
    for number in (0, 1):
        assert (tmp_path / f"{number}-ended").read_text() == str(pids[number])


@patient
async def test_a_cancelled_block_ends_its_workers_in_order(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_workers(
            targets.tell_of_end, tmp_path, queues=(0, 1), backend=targets.demo
        ) as workers:
            pids = workers.pids
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert not any(map(is_there, pids.values()))
    assert files(tmp_path).keys() == {"0-ended", "1-ended"}


@patient
async def test_an_exception_of_the_block_leaves_as_it_was_raised() -> None:
    thrown = ZeroDivisionError("of the block")
    with pytest.raises(ZeroDivisionError) as caught:
        async with open_workers(targets.idle, queues=[0], backend=targets.demo) as workers:
            pids = workers.pids
            raise thrown
    assert caught.value is thrown
    assert (thrown.__context__, thrown.__cause__) == (None, None)
    assert not any(map(is_there, pids.values()))


@patient
async def test_a_worker_that_does_not_stop_is_killed_and_reported() -> None:
    deaths = Deaths()
    async with open_workers(
        targets.stuck, queues=[0], backend=targets.demo, grace_s=0, error_handler=deaths
    ) as workers:
        pids = workers.pids
    [error] = deaths.errors
    assert "did not stop in time and was killed; its queue is not opened again" in str(error)
    assert not is_there(pids[0])


@patient
async def test_an_exception_while_stopping_is_reported() -> None:
    deaths = Deaths()
    async with open_workers(
        targets.fail_when_stopped, queues=[0], backend=targets.demo, error_handler=deaths
    ):
        pass
    [error] = deaths.errors
    assert "it raised LookupError: on the way out; its queue is not opened again" in str(error)


@patient
async def test_nothing_stays_open() -> None:
    def descriptors() -> set[str]:
        return {
            target
            for name in os.listdir("/proc/self/fd")
            if "pipe:" in (target := _link("/proc/self/fd/" + name)) or "pidfd" in target
        }

    before = descriptors()
    deaths = Deaths()
    async with open_workers(
        targets.idle,
        queues=[0],
        backend=targets.demo,
        error_handler=deaths,
    ) as workers:
        os.kill(pid := workers.pids[0], signal.SIGKILL)
        await deaths.next()
        await pid_after(workers, 0, pid)
        assert descriptors() > before
    assert descriptors() == before


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


# --- whole programs -------------------------------------------------------------------------------

PROGRAM = """
import sys, trio, trionfq
from tests import worker_targets as targets

async def policy(queue):
    try:
        if STUCK:
            await targets.stuck(queue)
        await trio.sleep_forever()
    finally:
        print("target ended", flush=True)

async def main():
    async with trionfq.open_workers(
        policy, queues=(0, 1), backend=targets.demo, grace_s=GRACE_S
    ) as workers:
        print(*workers.pids.values(), flush=True)
        await workers.wait()

if __name__ == "__main__":
    try:
        trio.run(main)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


SAYS_WHEN_IT_STOPS = """
from trionfq._supervisor import Workers
stop = Workers._stop
def stop_and_say(workers):
    stop(workers)
    print("leaving", flush=True)
Workers._stop = stop_and_say
"""


@contextmanager
def program(path: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own session, killed at the end; its outputs are pipes."""
    path.write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def pids_of(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return [int(word) for word in line.split()]


def wait_for_end(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        with os.fdopen(pidfd):
            ended, _, _ = select.select([pidfd], [], [], PATIENCE_S)
            assert ended, "a worker has not ended"


def test_ctrl_c_at_the_terminal_ends_everything_once(tmp_path: Path) -> None:
    text = PROGRAM.replace("STUCK", "False").replace("GRACE_S", "60")
    with program(tmp_path / "program.py", text) as process:
        pidfds = [os.pidfd_open(pid) for pid in pids_of(process)]
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
        wait_for_end(pidfds)
    assert sorted(output.splitlines()) == ["interrupted", "target ended", "target ended"]
    assert errors == ""
    assert process.returncode == 0


def test_a_second_ctrl_c_does_not_wait_for_the_grace_time(tmp_path: Path) -> None:
    text = PROGRAM.replace("STUCK", "True").replace("GRACE_S", "1e6")
    # Said from code that Ctrl-C does not interrupt, so the second one meets the wait behind it.
    text = text.replace("async def main():", f"{SAYS_WHEN_IT_STOPS}\nasync def main():")
    with program(tmp_path / "program.py", text) as process:
        pidfds = [os.pidfd_open(pid) for pid in pids_of(process)]
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "leaving\n"
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
        wait_for_end(pidfds)
    assert output == "interrupted\n"
    assert errors.count("did not stop in time and was killed") == 2


@pytest.mark.parametrize("stuck", [False, True])
def test_workers_of_a_killed_program_end(tmp_path: Path, stuck: bool) -> None:
    text = PROGRAM.replace("STUCK", str(stuck)).replace("GRACE_S", "0.1" if stuck else "1e6")
    with program(tmp_path / "program.py", text) as process:
        pidfds = [os.pidfd_open(pid) for pid in pids_of(process)]
        os.kill(process.pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=PATIENCE_S)
        wait_for_end(pidfds)
    assert output == ("" if stuck else 2 * "target ended\n")
    assert errors == ""


def test_a_main_module_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    text = PROGRAM.replace("STUCK", "False").replace("GRACE_S", "1")
    text = text.replace('if __name__ == "__main__":', "if True:")
    with program(tmp_path / "program.py", text) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "RuntimeError: open_workers() was called while a worker imports" in errors
    assert '`if __name__ == "__main__":`' in errors
    assert output == ""


def test_a_main_module_without_a_file_is_refused() -> None:
    text = """
import trio, trionfq
async def policy(queue): pass
async def main(): trionfq.open_workers(policy, queues=[0])
try:
    trio.run(main)
except TypeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE_S,
    )
    assert "put them in a module of their own" in done.stdout, done.stderr


# --- what is refused ------------------------------------------------------------------------------


async def nothing(queue: trionfq.Queue) -> None:
    pass


def no_coroutine(queue: trionfq.Queue) -> None:
    pass


@pytest.mark.parametrize(
    ("kind", "said", "target", "arguments"),
    [
        (ValueError, "at least one queue", nothing, {"queues": ()}),
        (ValueError, "each number once", nothing, {"queues": (1, 2, 1)}),
        (ValueError, "expected 0 to 0xffff", nothing, {"queues": (1, 65536)}),
        (ValueError, "max_len", nothing, {"max_len": -1}),
        (ValueError, "on_close", nothing, {"on_close": Verdict.REPEAT}),
        (ValueError, "cpus", nothing, {"cpus": [-1]}),
        (ValueError, "grace_s", nothing, {"grace_s": -1}),
        (ValueError, "grace_s", nothing, {"grace_s": float("inf")}),
        (ValueError, "max_restarts", nothing, {"max_restarts": -1}),
        (ValueError, "restart_period_s", nothing, {"restart_period_s": 0}),
        (
            ValueError,
            "namespace, receive_buffer_bytes: belongs to a netlink socket",
            nothing,
            {"backend": targets.demo, "namespace": "x", "receive_buffer_bytes": 1},
        ),
        (TypeError, "namespace", nothing, {"namespace": 5}),
        (TypeError, "unexpected keyword argument 'fd'", nothing, {"fd": 5}),
        (TypeError, "expected an async function", no_coroutine, {}),
        (TypeError, "expected an async function", 7, {}),
        (TypeError, "must stand in a module", functools.partial(nothing, lambda: 0), {}),
        (TypeError, "must stand in a module", nothing, {"backend": lambda number: None}),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_started(
    kind: type[Exception], said: str, target: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(kind, match=said):
        open_workers(target, **{"queues": [0], **arguments})


@patient
async def test_a_manager_is_entered_once() -> None:
    manager = open_workers(targets.idle, queues=[0], backend=targets.demo)
    async with manager:
        pass
    with pytest.raises(RuntimeError, match="entered before"):
        await manager.__aenter__()


@pytest.mark.parametrize(
    "error",
    [
        trionfq.QueueBusyError(1, "bind queue 3", owner_portid=77, advice="stop it"),
        trionfq.PrivilegeError(1, "bind queue 3", extack="no", attribute="NFQA_CFG_CMD"),
        trionfq.VerdictRefusedError(22, "verdict", packet_id=5, dropped=True),
        trionfq.RemoteProtocolError("short", datagram=b"1234", offset=2, path=("a", "b")),
        trionfq.CaptureError("no capture", offset=7),
        trionfq.AlreadyDecidedError("twice"),
        WorkerDiedError("it fell", queue_number=3, pid=None, exit_code=None),
    ],
)
def test_every_error_goes_through_a_pickle(error: trionfq.TrionfqError) -> None:
    error.add_note("noted")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    if isinstance(error, OSError):
        assert (again.errno, again.strerror) == (error.errno, error.strerror)
