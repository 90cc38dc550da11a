"""NetlinkBackend as far as no privilege is needed: anyone may open such a socket and be refused.

A request is answered in any case: with EPERM where CAP_NET_ADMIN is missing, with EINVAL where it
is not, since these ask for a message type that nobody knows.
"""

import ctypes
import errno
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from trionfq._errors import KernelError, ModuleMissingError, PrivilegeError, TrionfqError
from trionfq.backends._abc import Backend, QueueRow, Received
from trionfq.backends._netns import Namespace, in_namespace
from trionfq.backends._proc import parse_queue_rows
from trionfq.backends._recvmmsg import (
    SLOT_BYTES,
    BatchReceiver,
    SingleReceiver,
    find_recvmmsg,
)
from trionfq.backends.netlink import (
    NetlinkBackend,
    NetlinkOption,
    NetlinkOptions,
    ReceiveBufferWarning,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="AF_NETLINK is Linux's own")

T = TypeVar("T")
NETFILTER = 12
NETLINK_USERSOCK = 2
SETGROUPS = {"x86_64": 116, "aarch64": 159}


def request(seq: int, *, message_type: int = 0x03FE) -> bytes:
    """A request that the kernel refuses, whoever asks."""
    return struct.pack("=IHHIIBBH", 20, message_type, 1, seq, 0, 0, 0, 0)


def send_requests(backend: NetlinkBackend, count: int) -> None:
    """Each alone: what follows a request without the capability is not looked at."""
    for seq in range(1, count + 1):
        backend.send_nowait(request(seq))


def answered(datagram: bytes) -> int:
    """The sequence number that an error answer quotes."""
    message_type, _, seq = struct.unpack_from("=HHI", datagram, 4)
    assert message_type == 2
    assert struct.unpack_from("=i", datagram, 16)[0] in (-errno.EPERM, -errno.EINVAL)
    return int(seq)


def in_thread(work: Callable[[], T]) -> T:
    """Do it in a thread that ends with it, whose credentials may be spoilt."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def without_capabilities(work: Callable[[], T]) -> T:
    """Do it in a thread that has given up all capabilities, as any user's program has none."""
    libc = ctypes.CDLL(None, use_errno=True)

    def run() -> T:
        header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this thread
        if libc.capset(header, bytes(24)):
            raise OSError(ctypes.get_errno(), "capset")
        return work()

    return in_thread(run)


@pytest.fixture(params=["recvmmsg", "recvmsg"])
def backend(request: pytest.FixtureRequest) -> Iterator[NetlinkBackend]:
    made = NetlinkBackend()
    assert isinstance(made._receiver, BatchReceiver)
    if request.param == "recvmsg":
        made._receiver = SingleReceiver(made._socket)
    yield made
    made.close()


# Receiving


def test_it_is_a_backend(backend: NetlinkBackend) -> None:
    assert isinstance(backend, Backend)


def test_nothing_waits_at_first(backend: NetlinkBackend) -> None:
    assert backend.receive_nowait(64) == Received([])


def test_an_answer_waits_when_send_returns(backend: NetlinkBackend) -> None:
    backend.send_nowait(request(7))
    received = backend.receive_nowait(64)
    assert [answered(d) for d in received.datagrams] == [7]
    assert received[1:] == (0, 0, 0, False)


def test_limit_is_kept_and_the_rest_comes_in_order(backend: NetlinkBackend) -> None:
    send_requests(backend, 10)
    first = backend.receive_nowait(4).datagrams
    assert backend.receive_nowait(0) == Received([])
    rest = backend.receive_nowait(1000).datagrams
    assert [answered(d) for d in first] == [1, 2, 3, 4]
    assert [answered(d) for d in rest] == [5, 6, 7, 8, 9, 10]


def test_a_datagram_stays_as_it_was_when_the_next_one_comes(backend: NetlinkBackend) -> None:
    backend.send_nowait(request(1))
    [kept] = backend.receive_nowait(64).datagrams
    before = bytearray(kept)
    send_requests(backend, 9)
    backend.receive_nowait(64)
    assert type(kept) is bytes
    assert kept == before


def test_more_than_the_slots_hold_is_read_by_several_calls() -> None:
    backend = NetlinkBackend()
    recvmmsg = find_recvmmsg()
    assert recvmmsg is not None
    backend._receiver = BatchReceiver(backend._socket.fileno(), recvmmsg, slots=4)
    send_requests(backend, 20)
    assert [answered(d) for d in backend.receive_nowait(11).datagrams] == list(range(1, 12))
    assert [answered(d) for d in backend.receive_nowait(64).datagrams] == list(range(12, 21))
    assert backend.receive_nowait(64) == Received([])
    backend.close()


@pytest.mark.parametrize("receiver", ["recvmmsg", "recvmsg"])
def test_a_cut_datagram_is_left_out_and_counted(receiver: str) -> None:
    backend = NetlinkBackend()
    if receiver == "recvmmsg":
        recvmmsg = find_recvmmsg()
        assert recvmmsg is not None
        backend._receiver = BatchReceiver(backend._socket.fileno(), recvmmsg, slot_bytes=35)
    else:
        backend._receiver = SingleReceiver(backend._socket, slot_bytes=35)
    send_requests(backend, 3)  # answers have at least 36 bytes
    assert backend.receive_nowait(64) == Received([], truncated=3)
    backend.close()


def test_only_the_kernel_is_believed(backend: NetlinkBackend) -> None:
    # NETLINK_USERSOCK is the one protocol whose sockets anyone may write to.
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as theirs,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as ours,
    ):
        ours.bind((0, 0))
        ours.setblocking(False)
        recvmmsg = find_recvmmsg()
        assert recvmmsg is not None
        batch = isinstance(backend._receiver, BatchReceiver)
        receiver = BatchReceiver(ours.fileno(), recvmmsg) if batch else SingleReceiver(ours)
        for n in range(3):
            theirs.sendto(request(n), ours.getsockname())
        assert receiver.receive(2) == Received([], foreign=2)
        assert receiver.receive(2) == Received([], foreign=1)


def test_datagrams_of_any_length_come_whole() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    recvmmsg = find_recvmmsg()
    assert recvmmsg is not None
    ours.setblocking(False)
    receiver = BatchReceiver(ours.fileno(), recvmmsg, slots=3)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        for length in (0, 1, 4095, 4096, 4097, 65535, SLOT_BYTES):
            sent = [os.urandom(length), b"short", os.urandom(length // 2)]
            for datagram in sent:
                theirs.send(datagram)
            assert receiver.receive(64) == Received(sent)
        theirs.send(bytes(SLOT_BYTES + 1))
        assert receiver.receive(64) == Received([], truncated=1)


def resident_bytes(receiver: BatchReceiver) -> int:
    """How much of a receiver's slots is in memory (mincore)."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(receiver._map))
    pages = (ctypes.c_ubyte * (len(receiver._map) // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), len(receiver._map), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


@pytest.mark.parametrize("octets", [100, 1600])
def test_a_short_datagram_costs_one_page_of_its_slot(octets: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    recvmmsg = find_recvmmsg()
    assert recvmmsg is not None
    ours.setblocking(False)
    receiver = BatchReceiver(ours.fileno(), recvmmsg)
    with ours, theirs:
        for _ in range(20):
            for _ in range(10):
                theirs.send(bytes(octets))
            assert len(receiver.receive(64).datagrams) == 10
            assert resident_bytes(receiver) == 10 * mmap.PAGESIZE


def test_a_burst_of_long_datagrams_leaves_no_memory_behind() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    recvmmsg = find_recvmmsg()
    assert recvmmsg is not None
    ours.setblocking(False)
    receiver = BatchReceiver(ours.fileno(), recvmmsg)

    assert resident_bytes(receiver) == 0
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        seen = []
        for _ in range(8):
            for _ in range(5):
                theirs.send(bytes(60_000))
            assert len(receiver.receive(64).datagrams) == 5
            seen.append(resident_bytes(receiver))
        assert seen[0] >= 300_000
        assert 0 in seen


@pytest.mark.parametrize("receiver", ["recvmmsg", "recvmsg"])
def test_an_overrun_is_counted_and_reading_goes_on(receiver: str) -> None:
    backend = NetlinkBackend(options=NetlinkOptions(no_enobufs=False), receive_buffer_bytes=4096)
    if receiver == "recvmsg":
        backend._receiver = SingleReceiver(backend._socket)
    send_requests(backend, 100)
    received = backend.receive_nowait(200)
    assert received.overruns == 1
    assert 0 < len(received.datagrams) < 100
    assert backend.socket_drops() > 0
    backend.send_nowait(request(500))
    assert [answered(d) for d in backend.receive_nowait(64).datagrams] == [500]
    backend.close()


def test_without_enobufs_the_drop_counter_tells_the_loss() -> None:
    backend = NetlinkBackend(receive_buffer_bytes=4096)
    assert backend.socket_drops() == 0
    send_requests(backend, 100)
    received = backend.receive_nowait(200)
    assert received.overruns == 0
    assert 0 < len(received.datagrams) < 100
    assert backend.socket_drops() == 100 - len(received.datagrams)
    backend.close()


def test_an_empty_look_allocates_nothing_that_stays(backend: NetlinkBackend) -> None:
    for _ in range(10):
        backend.receive_nowait(64)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            backend.receive_nowait(64)
        assert tracemalloc.get_traced_memory()[0] - before < 4096
    finally:
        tracemalloc.stop()


# Sending


def test_a_datagram_of_max_send_bytes_is_taken(backend: NetlinkBackend) -> None:
    backend.send_nowait(request(1).ljust(backend.max_send_bytes, b"\0"))
    assert backend.receive_nowait(1).datagrams


def test_a_small_send_buffer_lowers_max_send_bytes() -> None:
    backend = NetlinkBackend(send_buffer_bytes=1)
    assert backend.max_send_bytes < 8192
    backend.send_nowait(bytes(backend.max_send_bytes))
    with pytest.raises(OSError, match="too long") as caught:
        backend.send_nowait(bytes(backend.max_send_bytes + 1))
    assert caught.value.errno == errno.EMSGSIZE
    backend.close()


# Waiting and closing


async def test_a_waiter_wakes_when_something_comes(backend: NetlinkBackend) -> None:
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            await backend.wait_readable()
            assert len(backend.receive_nowait(64).datagrams) == 1

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        backend.send_nowait(request(1))


async def test_waiting_is_a_checkpoint_even_when_something_waits(backend: NetlinkBackend) -> None:
    backend.send_nowait(request(1))
    with trio.testing.assert_checkpoints():
        await backend.wait_readable()


async def test_closing_wakes_the_waiter(backend: NetlinkBackend) -> None:
    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await backend.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        backend.close()


async def test_one_waiter_at_a_time(backend: NetlinkBackend) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.wait_readable)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await backend.wait_readable()
        nursery.cancel_scope.cancel()


async def test_after_closing_nothing_works(backend: NetlinkBackend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(trio.ClosedResourceError):
        await backend.wait_readable()
    calls: list[Callable[[], object]] = [
        lambda: backend.receive_nowait(1),
        lambda: backend.send_nowait(request(1)),
        backend.queues,
        backend.socket_drops,
        lambda: backend.interface_name(1),
        lambda: backend.receive_buffer_bytes,
        lambda: backend.set_option(NetlinkOption.NO_ENOBUFS, True),
        lambda: backend.get_option(NetlinkOption.NO_ENOBUFS),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            call()


def test_closing_outside_trio_works_and_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    backend = NetlinkBackend()
    assert set(os.listdir("/proc/self/fd")) > before
    backend.close()
    assert set(os.listdir("/proc/self/fd")) == before


# Ports, options and buffers


def test_its_descriptor_is_told_until_it_is_closed() -> None:
    backend = NetlinkBackend()
    with socket.socket(fileno=os.dup(backend.fileno())) as same:
        assert same.getsockname()[0] == backend.port_id
        assert same.getsockopt(270, NetlinkOption.EXT_ACK) == 1  # SOL_NETLINK
    backend.close()
    with pytest.raises(trio.ClosedResourceError):
        backend.fileno()


def test_two_sockets_have_two_ports() -> None:
    first, second = NetlinkBackend(), NetlinkBackend()
    assert 0 not in (first.port_id, second.port_id)
    assert first.port_id != second.port_id
    first.close()
    second.close()


def test_options_are_as_asked_and_can_be_changed() -> None:
    assert {o.name.lower() for o in NetlinkOption} == set(NetlinkOptions().__dict__)
    backend = NetlinkBackend()
    for option in NetlinkOption:
        assert backend.get_option(option) == NetlinkOptions().wanted(option)
    free = [o for o in NetlinkOption if o is not NetlinkOption.LISTEN_ALL_NSID]
    for enabled in (True, False, True):
        for option in free:
            backend.set_option(option, enabled)
            assert backend.get_option(option) == enabled
    assert not backend.get_option(NetlinkOption.LISTEN_ALL_NSID)
    backend.close()


def test_an_option_without_its_privilege_is_a_privilege_error() -> None:
    with pytest.raises(PrivilegeError, match="CAP_NET_BROADCAST"):
        without_capabilities(lambda: NetlinkBackend(options=NetlinkOptions(listen_all_nsid=True)))


def test_an_unknown_option_is_a_kernel_error() -> None:
    from trionfq.backends._sockopt import set_option

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as older_than_any_option,
        pytest.raises((KernelError, OSError)) as caught,
    ):
        set_option(older_than_any_option, NetlinkOption.EXT_ACK, True)
    assert caught.value.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP)


def test_receive_buffer_is_what_was_asked_not_the_kernels_double() -> None:
    backend = NetlinkBackend(receive_buffer_bytes=100_000)
    assert backend.receive_buffer_bytes == 100_000
    assert backend._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
    backend.close()


def test_a_buffer_that_nobody_asked_for_is_as_large_as_may_be_and_nothing_is_said() -> None:
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    backend = without_capabilities(NetlinkBackend)
    assert backend.receive_buffer_bytes == min(limit, 16 << 20)
    backend.close()


def test_less_buffer_than_asked_is_said_with_the_cure() -> None:
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    text = rf"{limit + 1} bytes, got {limit}.*rmem_max={limit + 1}.*CAP_NET_ADMIN"
    with pytest.warns(ReceiveBufferWarning, match=text) as caught:
        backend = without_capabilities(lambda: NetlinkBackend(receive_buffer_bytes=limit + 1))
    [warning] = caught.list
    assert isinstance(warning.message, ReceiveBufferWarning)
    assert (warning.message.asked_bytes, warning.message.given_bytes) == (limit + 1, limit)
    assert backend.receive_buffer_bytes == limit
    backend.close()


@pytest.mark.parametrize("size", [0, -1, 2**30])
@pytest.mark.parametrize("name", ["receive_buffer_bytes", "send_buffer_bytes"])
def test_a_size_out_of_range_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=name):
        NetlinkBackend(**{name: size})  # type: ignore[arg-type]


def test_the_clock_is_the_walls() -> None:
    import time

    backend = NetlinkBackend()
    before = time.time_ns()
    assert before <= backend.now_ns() <= time.time_ns()
    backend.close()


# What /proc and the interfaces say


def test_rows_are_read_by_the_kernels_columns() -> None:
    text = (
        "    0   4711     3 2 65531     0     7       10  1\n"
        "65535 4294963199     0 1     0    12     0 4294967295  1\n"
    )
    assert parse_queue_rows(text) == [
        QueueRow(0, 4711, 3, 2, 65531, 0, 7, 10),
        QueueRow(65535, 4294963199, 0, 1, 0, 12, 0, 4294967295),
    ]
    assert parse_queue_rows("") == []


def test_a_table_that_only_root_may_read_says_so_when_asked() -> None:
    def as_a_user() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() == 0:  # this thread only, hence the bare system call
            if libc.syscall(SETGROUPS[os.uname().machine], 0, None) < 0:
                return f"cannot play another user: {os.strerror(ctypes.get_errno())}"
            libc.setfsgid(65534)
            libc.setfsuid(65534)
        backend = NetlinkBackend()
        try:
            return str(backend.queues())
        except PermissionError as error:
            return str(error)
        finally:
            backend.close()

    if os.uname().machine not in SETGROUPS:
        pytest.skip("number of setgroups known for x86_64 and aarch64 only")
    said = in_thread(as_a_user)
    if "cannot play" in said:
        pytest.skip(said)
    assert "Permission denied: 'nfnetlink_queue'" in said


def test_loopback_has_its_name_and_nonsense_none() -> None:
    backend = NetlinkBackend()
    assert backend.interface_name(socket.if_nametoindex("lo")) == "lo"
    for index in (0, -1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert backend.interface_name(index) is None
    backend.close()


# Namespaces


def test_a_name_a_path_a_pid_and_a_descriptor_are_told_apart() -> None:
    assert Namespace.of("blue") == Namespace.from_name("blue")
    assert Namespace.of("blue").source == "/run/netns/blue"
    assert Namespace.of("/proc/1/ns/net") == Namespace.from_path("/proc/1/ns/net")
    assert Namespace.of("./blue").source == "./blue"
    assert Namespace.from_pid(12).source == "/proc/12/ns/net"
    assert Namespace.from_fd(12).source == 12
    assert Namespace.of(Namespace.from_fd(12)) == Namespace.from_fd(12)
    with pytest.raises(TypeError, match=r"Namespace\.from_pid"):
        Namespace.of(12)  # type: ignore[arg-type]
    wrong: list[Callable[[], object]] = [
        lambda: Namespace.from_name(""),
        lambda: Namespace.from_name(".."),
        lambda: Namespace.from_name("a/b"),
        lambda: Namespace.from_pid(0),
        lambda: Namespace.from_fd(-1),
    ]
    for make in wrong:
        with pytest.raises(ValueError, match="network namespace"):
            make()


def test_a_missing_namespace_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"'no-such-namespace': there is none.*ip netns"):
        NetlinkBackend(namespace="no-such-namespace")
    with pytest.raises(FileNotFoundError, match="process 999999999"):
        NetlinkBackend(namespace=Namespace.from_pid(999_999_999))


def test_what_is_no_namespace_is_refused() -> None:
    with pytest.raises(ValueError, match="/dev/null: not a network namespace"):
        NetlinkBackend(namespace="/dev/null")
    with open("/dev/null") as file, pytest.raises(ValueError, match="not a network namespace"):
        NetlinkBackend(namespace=Namespace.from_fd(file.fileno()))


def test_a_namespace_that_may_not_be_entered_is_a_privilege_error() -> None:
    with pytest.raises(PrivilegeError, match=r"enter network namespace at .*CAP_SYS_ADMIN"):
        without_capabilities(lambda: NetlinkBackend(namespace="/proc/self/ns/net"))


def test_an_exception_in_a_namespace_reaches_the_caller() -> None:
    try:
        assert in_namespace(Namespace.from_path("/proc/self/ns/net"), lambda: 7) == 7
    except PrivilegeError:
        pytest.skip("entering a namespace needs CAP_SYS_ADMIN")
    with pytest.raises(ZeroDivisionError):
        in_namespace(Namespace.from_path("/proc/self/ns/net"), lambda: 1 // 0)


# Open descriptors


def netfilter_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)


def test_an_open_socket_is_adopted() -> None:
    theirs = netfilter_socket()
    theirs.bind((0, 0))
    port = theirs.getsockname()[0]
    fd = theirs.detach()
    backend = NetlinkBackend(fd=fd)
    assert backend.port_id == port
    assert not os.get_blocking(fd)
    backend.send_nowait(request(3))
    assert [answered(d) for d in backend.receive_nowait(64).datagrams] == [3]
    assert isinstance(backend.get_option(NetlinkOption.CAP_ACK), bool)
    backend.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_unbound_socket_is_bound() -> None:
    backend = NetlinkBackend(fd=netfilter_socket().detach())
    assert backend.port_id != 0
    backend.close()


def test_another_kind_of_descriptor_is_refused_and_left_alone() -> None:
    with (
        open("/dev/null") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route,
        netfilter_socket() as good,
    ):
        for what, text in (
            (file, "not an open socket"),
            (udp, "expected an AF_NETLINK socket.*AF_INET"),
            (route, "protocol 0"),
        ):
            with pytest.raises(ValueError, match=f"fd {what.fileno()}: .*{text}"):
                NetlinkBackend(fd=what.fileno())
            os.fstat(what.fileno())
        with pytest.raises(ValueError, match="in a namespace already"):
            NetlinkBackend(fd=good.fileno(), namespace="blue")
        with pytest.raises(PrivilegeError):
            without_capabilities(
                lambda: NetlinkBackend(
                    fd=good.fileno(), options=NetlinkOptions(listen_all_nsid=True)
                )
            )
        os.fstat(good.fileno())
    with pytest.raises(ValueError, match="not an open socket"):
        NetlinkBackend(fd=999_999)


# Where there is no nfnetlink


def test_without_af_netlink_it_imports_and_says_so() -> None:
    program = (
        "import socket\n"
        "del socket.AF_NETLINK\n"
        "socket.__all__.remove('AF_NETLINK')\n"
        "from trionfq.backends.netlink import NetlinkBackend\n"
        "from trionfq._errors import ModuleMissingError\n"
        "try:\n"
        "    NetlinkBackend()\n"
        "except ModuleMissingError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert "ReplayBackend" in said.stdout


def test_without_nfnetlink_the_module_is_named() -> None:
    numbers = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
    if os.uname().machine not in numbers:
        pytest.skip("system call numbers known for x86_64 and aarch64 only")
    architecture, socket_call = numbers[os.uname().machine]
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 4),  # the architecture
            (0x15, 0, 4, architecture),
            (0x20, 0, 0, 0),  # the call
            (0x15, 0, 2, socket_call),
            (0x20, 0, 0, 32),  # low half of its third argument (little-endian)
            (0x15, 1, 0, NETFILTER),
            (0x06, 0, 0, 0x7FFF0000),  # allow
            (0x06, 0, 0, 0x00050000 | errno.EPROTONOSUPPORT),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)

    def refused() -> NetlinkBackend:
        """As a kernel without nfnetlink answers, for this thread: a seccomp filter says it."""
        code = ctypes.create_string_buffer(program, len(program))
        filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter_, 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp")
        return NetlinkBackend()

    with pytest.raises(ModuleMissingError, match="modprobe nfnetlink_queue") as caught:
        in_thread(refused)
    assert caught.value.errno == errno.EPROTONOSUPPORT
    assert isinstance(caught.value, TrionfqError)
