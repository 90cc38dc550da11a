"""What goes wrong, told apart: each cause its own exception, whose text says what to do.

A missing kernel module cannot be seen here, since nfnetlink_queue is built into this kernel.
"""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import Any

import pytest
import trio
import trio.testing

from trionfq import (
    CopyMode,
    KernelError,
    LocalProtocolError,
    NetlinkBackend,
    QueueBusyError,
    QueueFlags,
    Verdict,
    open_queue,
    schema,
)
from trionfq.backends import Received
from trionfq.schema.nfqueue import ConfigCommand
from trionfq.testing import make_bind, make_config

from ._live import (
    LIMIT_S,
    LOSE_PRIVILEGE,
    PORT,
    Behind,
    Udp,
    end_of,
    line_of,
    open_descriptors,
    program,
    say,
    take,
)
from .harness import Namespace, in_user_namespace, queue_rule, wait_for_queue_row

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"

OPEN = """
import sys, trio
from trionfq import open_queue

async def main():
    async with open_queue(int(sys.argv[1])) as queue:
        print(queue.backend.port_id, flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
"""

# In a user namespace there is no other user to become.
HOW = ["capset"] if in_user_namespace() else ["capset", "setresuid"]


# --- who owns the queue ---------------------------------------------------------------------------


async def test_a_queue_owned_by_another_socket_names_its_port_id(ns: Namespace) -> None:
    async with open_queue(5, namespace=ns.name) as owner:
        before = open_descriptors()
        with pytest.raises(QueueBusyError) as caught:
            async with open_queue(5, namespace=ns.name):
                raise AssertionError("bound twice")
        assert caught.value.owner_portid == owner.backend.port_id
        assert caught.value.errno == errno.EPERM
        text = str(caught.value)
        assert "bind queue 5" in text
        assert f"port id {owner.backend.port_id}" in text
        assert "stop that program, or use another queue number" in text
        assert open_descriptors() == before
    async with open_queue(5, namespace=ns.name):
        pass


async def test_a_queue_owned_by_another_process_names_it(ns: Namespace) -> None:
    with program(ns, OPEN + "trio.run(main)", "5") as owner:
        portid = int(await line_of(owner))
        assert portid == owner.pid
        with pytest.raises(QueueBusyError, match=f"port id {portid} ") as caught:
            async with open_queue(5, namespace=ns.name):
                raise AssertionError("bound twice")
        assert caught.value.owner_portid == portid
        async with open_queue(6, namespace=ns.name):
            pass
        say(owner, "")
        assert await end_of(owner) == (0, "", "")
    async with open_queue(5, namespace=ns.name):
        pass


async def test_a_socket_that_has_bound_the_queue_already_is_told_so(ns: Namespace) -> None:
    first = NetlinkBackend(namespace=ns.name)
    async with open_queue(5, backend=first):
        second = NetlinkBackend(fd=os.dup(first._socket.fileno()))
        with pytest.raises(QueueBusyError, match="inherited=True") as caught:
            async with open_queue(5, backend=second):
                raise AssertionError("bound twice")
        assert caught.value.owner_portid == first.port_id


class Deaf(Behind):
    """Loses its first answers, and has a table in /proc that may be barred."""

    def __init__(self, inner: NetlinkBackend, losses: int, barred: bool) -> None:
        super().__init__(inner)
        self._losses = losses
        self._barred = barred

    def receive_nowait(self, limit: int) -> Received:
        if self._losses:
            self._losses -= 1
            assert self.inner.receive_nowait(limit).datagrams
            return Received([])
        return self.inner.receive_nowait(limit)

    def queues(self) -> Any:
        if self._barred:
            raise PermissionError(errno.EACCES, "barred")
        return self.inner.queues()


@pytest.mark.parametrize("barred", [False, True])
async def test_a_bind_whose_answer_was_lost_is_recognised(ns: Namespace, barred: bool) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Deaf(NetlinkBackend(namespace=ns.name), losses=1, barred=barred)
    async with open_queue(0, backend=backend) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"x"]


# --- privilege ------------------------------------------------------------------------------------


OPEN_TWICE = """
import sys, trio
from trionfq import TrionfqError, open_queue

async def main():
    await refused(5)
    lose_privilege(sys.argv[1])
    await refused(6)

async def refused(number):
    try:
        async with open_queue(number):
            print("opened", number)
    except TrionfqError as error:
        print(type(error).__name__, error, sep=": ")
"""


@pytest.mark.parametrize("how", HOW)
async def test_a_missing_privilege_and_a_foreign_owner_are_told_apart(
    ns: Namespace, how: str
) -> None:
    async with open_queue(5, namespace=ns.name) as owner:
        with program(ns, LOSE_PRIVILEGE + OPEN_TWICE + "trio.run(main)", how) as child:
            code, output, errors = await end_of(child)
        assert (code, errors) == (0, "")
        busy, missing = output.splitlines()
        assert busy.startswith("QueueBusyError: [Errno 1] bind queue 5: Operation not permitted")
        assert f"port id {owner.backend.port_id}" in busy
        assert missing.startswith("PrivilegeError: [Errno 1] bind queue 6: Operation not permitted")
        assert "CAP_NET_ADMIN" in missing
        assert "run as root" in missing


HOLD_AND_DROP = """
import sys, trio
from trionfq import open_queue

async def main():
    async with open_queue(0) as queue:
        packet = await queue.receive()
        print("held", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        lose_privilege(sys.argv[1])
        with trio.fail_after(5):
            if sys.argv[2] == "iterating":
                packet.accept()
                try:
                    await queue.receive()
                except trio.BrokenResourceError as error:
                    told(error)
            else:
                packet.accept()
                while queue.statistics().kernel is None or "broken" not in repr(queue):
                    await trio.sleep(0)
                try:
                    queue.set_verdict(1, 1)
                except trio.BrokenResourceError as error:
                    told(error)

def told(error):
    print(type(error.__cause__).__name__, error.__cause__, sep=": ", flush=True)

"""


@pytest.mark.parametrize(("how", "consumer"), [(HOW[-1], "iterating"), (HOW[0], "busy elsewhere")])
async def test_a_privilege_dropped_while_holding_surfaces_at_once(
    ns: Namespace, how: str, consumer: str
) -> None:
    """D21: the kernel wants CAP_NET_ADMIN for every verdict."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    with program(ns, LOSE_PRIVILEGE + HOLD_AND_DROP + "trio.run(main)", how, consumer) as child:
        await wait_for_queue_row(ns, 0, portid=child.pid, timeout_s=LIMIT_S)
        udp.send(b"x")
        assert await line_of(child) == "held"
        say(child, "")
        code, output, errors = await end_of(child)
    assert (code, errors) == (0, "")
    assert output.startswith("PrivilegeError: [Errno 1] verdict for packet 1 of queue 0")
    assert "every verdict needs CAP_NET_ADMIN" in output
    assert udp.waiting() == []


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "options", "text"),
    [
        (-1, {}, "queue number: expected 0 to 0xffff"),
        (65_536, {}, "queue number: expected 0 to 0xffff"),
        (0, {"copy_mode": 3}, "copy_mode: expected a CopyMode"),
        (0, {"copy_range": -1}, "copy_range: expected 0 to"),
        (0, {"copy_range": 1 << 32}, "copy_range: expected 0 to"),
        (0, {"max_len": -1}, "max_len: expected 0 to"),
        (0, {"max_len": 1 << 32}, "max_len: expected 0 to"),
        (0, {"flags": 32}, "flags: expected QueueFlags"),
        (0, {"on_close": Verdict.REPEAT}, "on_close: expected DROP or ACCEPT"),
        (0, {"checkpoint_every": 0}, "checkpoint_every: expected at least 1"),
        (0, {"receive_buffer_bytes": 0}, "receive_buffer_bytes: expected 1 to"),
        (0, {"receive_buffer_bytes": 1 << 31}, "receive_buffer_bytes: expected 1 to"),
        (0, {"ledger": [1]}, "give the bound socket as fd= or backend="),
        (0, {"inherited": True}, "give the bound socket as fd= or backend="),
    ],
)
async def test_a_bad_argument_is_refused_before_anything_is_sent(
    ns: Namespace, number: int, options: dict[str, Any], text: str
) -> None:
    before = open_descriptors()
    with pytest.raises(ValueError, match=text):
        async with open_queue(number, namespace=ns.name, **options):
            raise AssertionError("opened")
    assert open_descriptors() == before
    assert ns.queue_rows() == []


@pytest.mark.parametrize("number", ["0", 1.0, None, True])
async def test_a_number_that_is_none_is_a_type_error(ns: Namespace, number: Any) -> None:
    with pytest.raises(TypeError, match="queue number: expected an integer"):
        open_queue(number, namespace=ns.name)


@pytest.mark.parametrize(
    "options",
    [
        {"namespace": "x"},
        {"receive_buffer_bytes": 1 << 20},
        {"fd": 3},
    ],
)
async def test_options_of_a_socket_do_not_go_with_a_backend(
    ns: Namespace, options: dict[str, Any]
) -> None:
    backend = NetlinkBackend(namespace=ns.name)
    with pytest.raises(ValueError, match=f"{next(iter(options))}: belongs to a netlink socket"):
        open_queue(0, backend=backend, **options)
    backend.close()


async def test_a_namespace_that_is_not_there_is_named(ns: Namespace) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match=r"'no-such-namespace'.*ip netns list"):
        async with open_queue(0, namespace="no-such-namespace"):
            raise AssertionError("opened")
    with pytest.raises(ValueError, match="give fd or namespace"):
        async with open_queue(0, namespace=ns.name, fd=0):
            raise AssertionError("opened")
    assert open_descriptors() == before


async def test_a_descriptor_that_is_no_netlink_socket_is_named(ns: Namespace) -> None:
    with ns.udp("127.0.0.1") as wrong, pytest.raises(ValueError, match="expected an AF_NETLINK"):
        async with open_queue(0, fd=wrong.fileno()):
            raise AssertionError("opened")


# --- what this kernel has not ---------------------------------------------------------------------


@pytest.fixture
def no_glue(ns: Namespace) -> None:
    """Skips where the kernel has CONFIG_NETFILTER_NETLINK_GLUE_CT, so that it takes every flag."""
    with closing(NetlinkBackend(namespace=ns.name)) as backend:
        backend.send_nowait(make_bind(0, flags=QueueFlags.CONNTRACK))
        [answer] = schema.parse(backend.receive_nowait(1).datagrams[0])
    assert isinstance(answer, schema.ErrorMessage)
    if answer.error == 0:
        pytest.skip("this kernel has every flag")


@pytest.mark.usefixtures("no_glue")
@pytest.mark.not_in_guest("that kernel has every flag")
async def test_a_flag_that_the_kernel_has_not_is_explained_and_leaves_no_queue(
    ns: Namespace,
) -> None:
    before = open_descriptors()
    with pytest.raises(KernelError, match="nf_conntrack_netlink") as caught:
        async with open_queue(0, namespace=ns.name, flags=QueueFlags.CONNTRACK):
            raise AssertionError("opened")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert type(caught.value) is KernelError
    assert open_descriptors() == before
    assert ns.queue_rows() == []


@pytest.mark.usefixtures("no_glue")
@pytest.mark.not_in_guest("that kernel has every flag")
async def test_a_refused_setting_leaves_the_queue_as_it_was(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, max_len=7) as queue:
        config = queue.config
        with pytest.raises(KernelError, match="change settings of queue 0") as caught:
            queue.configure(flags=QueueFlags.CONNTRACK)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert queue.config == config
        with pytest.raises(ValueError, match="max_len"):
            queue.configure(max_len=-1)
        udp.send(b"x")
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def test_settings_can_be_changed_while_bound(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, max_len=1) as queue:
        udp.send(b"first")
        [first] = await take(queue, 1)
        udp.send(b"no room")
        queue.configure(copy_range=32, max_len=2)
        row = ns.queue_row(0)
        assert row is not None
        assert (row.copy_range, row.queue_dropped) == (32, 1)
        udp.send(b"second, with room")
        [second] = await take(queue, 1)
        assert len(second.payload) == 32
        queue.configure(copy_mode=CopyMode.META, flags=QueueFlags.FAIL_OPEN)
        udp.send(b"fails open")
        assert await udp.receive(1) == [b"fails open"]
        queue.configure(flags=QueueFlags(0), max_len=3)
        udp.send(b"third")
        [third] = await take(queue, 1)
        with pytest.raises(LocalProtocolError):
            third.payload  # noqa: B018
        for packet in (first, second, third):
            packet.accept()
        assert await udp.receive(3) == [b"first", b"second, with room", b"third"]


# --- a socket that breaks -------------------------------------------------------------------------


class Breaking(Behind):
    """Takes no more datagrams once it is told so."""

    broken = False

    def send_nowait(self, datagram: bytes) -> None:
        if self.broken:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        self.inner.send_nowait(datagram)


async def test_a_socket_that_breaks_tells_every_waiter_and_no_one_twice(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Breaking(NetlinkBackend(namespace=ns.name))
    causes: list[BaseException | None] = []

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError, match="Connection refused") as caught:
            await queue.receive()
        causes.append(caught.value.__cause__)

    async with open_queue(0, backend=backend) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            backend.broken = True
            packet.accept()
    assert [type(cause) for cause in causes] == [ConnectionRefusedError] * 2
    # The socket is closed, so the packet is dropped.
    assert ns.queue_rows() == []
    assert udp.waiting() == []


@pytest.mark.parametrize("when", ["while waiting elsewhere", "on closing"])
async def test_a_failure_that_nobody_saw_is_raised_on_leaving(ns: Namespace, when: str) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = Breaking(NetlinkBackend(namespace=ns.name))

    async def use() -> None:
        async with open_queue(0, backend=backend) as queue:
            udp.send(b"x")
            [packet] = await take(queue, 1)
            backend.broken = True
            packet.accept()
            if when == "while waiting elsewhere":
                await trio.lowlevel.checkpoint()

    with pytest.raises(ConnectionRefusedError):
        await use()
    assert ns.queue_rows() == []


async def test_a_queue_that_was_unbound_behind_its_back_breaks(ns: Namespace) -> None:
    """ENODEV for a verdict: the queue is not ours any more."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = NetlinkBackend(namespace=ns.name)
    async with open_queue(0, backend=backend) as queue:
        udp.send(b"x", b"y")
        x, y = await take(queue, 2)
        backend.send_nowait(make_config(0, command=ConfigCommand.UNBIND))
        x.accept()
        with pytest.raises(trio.BrokenResourceError, match="open it again") as caught:
            await queue.receive()
        assert isinstance(caught.value.__cause__, KernelError)
        assert caught.value.__cause__.errno == errno.ENODEV
        with pytest.raises(trio.BrokenResourceError, match="open it again"):
            y.accept()
    assert ns.queue_rows() == []
