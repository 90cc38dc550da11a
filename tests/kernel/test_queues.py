"""Who has bound which queue: another process, another namespace, several processes, nobody seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import trionfq
from trionfq import BoundQueue, CopyMode, NetlinkBackend, open_queue, queues

from ._live import LOSE_PRIVILEGE, Udp, end_of, line_of, program, say, take
from .harness import Namespace, in_user_namespace, queue_rule

OWNER = """
import sys, trio, trionfq
async def main():
    async with trionfq.open_queue(7, copy_mode=trionfq.CopyMode.META):
        print("bound", flush=True)
        sys.stdin.readline()
trio.run(main)
"""
HEIR = """
import sys
print("here", flush=True)
sys.stdin.readline()
"""
NOT_DUMPABLE = """
import ctypes
assert ctypes.CDLL(None).prctl(4, 0) == 0  # PR_SET_DUMPABLE: no other process may look inside
"""
# Lists without CAP_SYS_PTRACE.
LISTER = """
import ctypes, struct, trionfq
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("=Ii", 0x20080522, 0)
data = ctypes.create_string_buffer(24)
assert libc.capget(header, data) == 0
sets = list(struct.unpack("=6I", data.raw))
sets[:3] = [low & ~(1 << 19) for low in sets[:3]]
assert libc.capset(header, struct.pack("=6I", *sets)) == 0
for queue in trionfq.queues():
    print(queue.number, [owner.pid for owner in queue.owners], *queue.unreadable)
"""


def the_only(ns: Namespace) -> BoundQueue:
    [queue] = queues(ns.name)
    return queue


async def test_the_queues_of_a_process_are_listed_with_what_the_kernel_says(ns: Namespace) -> None:
    assert queues(ns.name) == []
    queue_rule(ns, "OUTPUT", "-p udp", queue=3)
    udp = Udp(ns)
    async with (
        open_queue(9, namespace=ns.name) as nine,
        open_queue(3, namespace=ns.name, copy_range=100) as three,
    ):
        udp.send(b"x")
        [packet] = await take(three, 1)
        found = queues(ns.name)
        assert [queue.number for queue in found] == [3, 9]
        assert [queue.port_id for queue in found] == [q.backend.port_id for q in (three, nine)]
        # One of two sockets at most can have the process id for its port id.
        assert [queue.port_id for queue in found] != [os.getpid()] * 2
        for queue in found:
            [owner] = queue.owners
            assert owner.pid == os.getpid()
            assert "pytest" in owner.command
            assert queue.kernel == ns.queue_row(queue.number)
        first = found[0].kernel
        assert (first.copy_mode, first.copy_range) == (CopyMode.PACKET, 100)
        assert (first.queue_total, first.id_sequence) == (1, 1)
        packet.accept()
    assert queues(ns.name) == []


async def test_a_queue_of_another_process_in_another_namespace_is_found(ns: Namespace) -> None:
    with program(ns, OWNER, "an argument") as owner:
        assert await line_of(owner) == "bound"
        ways = [ns.name, ns.path, str(ns.path), trionfq.Namespace.from_pid(owner.pid)]
        for way in ways:
            [queue] = queues(way)
            assert (queue.number, queue.port_id) == (7, owner.pid)
            [process] = queue.owners
            assert process.pid == owner.pid
            assert process.command.startswith(sys.executable)
            assert process.command.endswith("'an argument'")
            assert queue.kernel.copy_mode == CopyMode.META
            assert owner.pid not in queue.unreadable
        with Namespace("another") as another:
            assert queues(another.name) == []
            # Nor does the calling thread's own have it, whose list a test may not be able to read.
            [inside] = ns.call(queues)
            assert inside == the_only(ns)
            assert another.call(queues) == []
        say(owner, "")
        assert await end_of(owner) == (0, "", "")
    assert queues(ns.name) == []


async def test_a_socket_that_two_processes_share_has_two_owners(ns: Namespace) -> None:
    backend = NetlinkBackend(namespace=ns.name)
    fd = os.dup(backend._socket.fileno())
    async with open_queue(7, backend=backend):
        assert [owner.pid for owner in the_only(ns).owners] == [os.getpid()]
        heir = ns.popen(
            [sys.executable, "-c", HEIR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[fd],
        )
        assert await line_of(heir) == "here"
        queue = the_only(ns)
        assert {owner.pid for owner in queue.owners} == {os.getpid(), heir.pid}
        assert [owner.pid for owner in queue.owners] == sorted(owner.pid for owner in queue.owners)
        # The socket leaves this process, without an UNBIND: now only the other one has it.
        os.close(fd)
        number = backend._socket.fileno()
        kept = os.open("/dev/null", os.O_RDONLY)
        os.dup2(kept, number)
        try:
            queue = the_only(ns)
            assert [owner.pid for owner in queue.owners] == [heir.pid]
            assert queue.port_id == backend.port_id != heir.pid
        finally:
            # Back from the other process, so that the queue can be closed in order.
            taken = _taken_from(heir.pid, fd)
            os.dup2(taken, number)
            os.close(taken)
            os.close(kept)
        say(heir, "")
        assert await end_of(heir) == (0, "", "")
        assert [owner.pid for owner in the_only(ns).owners] == [os.getpid()]


def _taken_from(pid: int, fd: int) -> int:
    """A descriptor of another process, as one of our own."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        taken = libc.syscall(438, process, fd, 0)  # pidfd_getfd, the same on every architecture
    finally:
        os.close(process)
    assert taken >= 0, os.strerror(ctypes.get_errno())
    return int(taken)


async def test_a_process_that_cannot_be_looked_into_is_named(ns: Namespace) -> None:
    with program(ns, NOT_DUMPABLE + OWNER) as owner:
        assert await line_of(owner) == "bound"
        with program(ns, LISTER) as lister:
            code, output, errors = await end_of(lister)
            assert (code, errors) == (0, "")
            number, owners, *unreadable = output.split()
            assert (number, owners) == ("7", "[]")
            assert str(owner.pid) in unreadable
        # Its port id is told all the same, and mostly is the process id.
        assert the_only(ns).port_id == owner.pid
        say(owner, "")
        assert await end_of(owner) == (0, "", "")


@pytest.mark.skipif(in_user_namespace(), reason="no other user to become in this user namespace")
async def test_an_ordinary_user_is_told_what_is_missing(ns: Namespace) -> None:
    text = f"""{LOSE_PRIVILEGE}
import sys, trionfq
lose_privilege("setresuid")
for namespace in (None, sys.argv[1]):
    try:
        trionfq.queues(namespace)
    except trionfq.PrivilegeError as error:
        print(error.errno, error.operation, "|", error)
"""
    async with open_queue(7, namespace=ns.name):
        with program(ns, text, ns.name) as user:
            code, output, errors = await end_of(user)
            assert (code, errors) == (0, "")
            listing, entering = output.splitlines()
    assert listing.startswith("13 list queues | ")
    assert "nfnetlink_queue is readable for root only" in listing
    assert entering.startswith(f"1 enter network namespace '{ns.name}' | ")


def test_what_is_no_namespace_is_refused(ns: Namespace) -> None:
    with pytest.raises(FileNotFoundError, match="there is none"):
        queues("trionfq-no-such-namespace")
    with pytest.raises(ValueError, match="not a network namespace"):
        queues("/proc/self/ns/uts")
    with pytest.raises(TypeError, match="expected a name, a path or a Namespace"):
        queues(7)  # type: ignore[arg-type]
