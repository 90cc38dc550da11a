"""NetlinkBackend with real queues and real packets."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trionfq import schema
from trionfq._errors import PrivilegeError
from trionfq.backends._abc import Received
from trionfq.backends._recvmmsg import SingleReceiver
from trionfq.backends.netlink import (
    Namespace,
    NetlinkBackend,
    NetlinkOptions,
    ReceiveBufferWarning,
)
from trionfq.schema import ErrorMessage, Message
from trionfq.schema.nfqueue import NFQA, ConfigCommand, QueueFlags
from trionfq.testing import (
    BackendUnderTest,
    check_backend,
    make_bind,
    make_config,
    make_verdict,
)

from . import harness
from .harness import drain, in_user_namespace, queue_rule

NETFILTER = 12
HERE = "/proc/thread-self/ns/net"


@contextmanager
def opened(ns: harness.Namespace, **options: object) -> Iterator[NetlinkBackend]:
    with closing(NetlinkBackend(namespace=ns.name, **options)) as backend:  # type: ignore[arg-type]
        yield backend


def errors(backend: NetlinkBackend) -> list[int]:
    """The errno of each answer that waits."""
    answers = []
    for datagram in backend.receive_nowait(1000).datagrams:
        [message] = schema.parse(datagram)
        assert isinstance(message, ErrorMessage)
        answers.append(-message.error)
    return answers


def payloads(datagrams: list[bytes]) -> list[bytes]:
    """What the packets' UDP datagrams carry (IPv4 without options)."""
    found = []
    for datagram in datagrams:
        [message] = schema.parse(datagram)
        assert isinstance(message, Message)
        found.append(bytes(schema.by_name(NFQA, message.attributes)["payload"])[28:])  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("receiver", ["recvmmsg", "recvmsg"])
async def test_it_keeps_every_promise_of_the_seam(ns: harness.Namespace, receiver: str) -> None:
    queue_rule(ns, "OUTPUT", "-p udp --dport 9", queue=3)
    sender = ns.udp("127.0.0.1")

    def make() -> BackendUnderTest:
        backend = NetlinkBackend(namespace=ns.name)
        if receiver == "recvmsg":
            backend._receiver = SingleReceiver(backend._socket)
        return BackendUnderTest(
            backend, queue=3, arrive=lambda: sender.sendto(b"odd", ("127.0.0.1", 9))
        )

    await check_backend(make)


# Packets


@pytest.mark.parametrize("receiver", ["recvmmsg", "recvmsg"])
async def test_packets_of_any_length_come_whole_and_in_order(
    ns: harness.Namespace, receiver: str
) -> None:
    queue_rule(ns, "OUTPUT", "-p udp --dport 9", queue=3)
    sender = ns.udp("127.0.0.1")
    with opened(ns, receive_buffer_bytes=400_000) as backend:
        if receiver == "recvmsg":
            backend._receiver = SingleReceiver(backend._socket)
        backend.send_nowait(make_bind(3))
        assert errors(backend) == [0]
        sent = [os.urandom(length) for length in (0, 1, 2, 3, 4, 5, 1472, 4000, 40_000, 65_000)]
        for data in sent:
            sender.sendto(data, ("127.0.0.1", 9))
        with trio.fail_after(5):
            await backend.wait_readable()
        first = backend.receive_nowait(4).datagrams
        rest = backend.receive_nowait(64).datagrams
        assert len(first) == 4
        assert payloads(first + rest) == sent
        assert backend.receive_nowait(64) == Received([])
        assert all(len(d) == int.from_bytes(d[:4], sys.byteorder) for d in first + rest)


async def test_a_queue_stands_in_proc_while_it_is_bound(ns: harness.Namespace) -> None:
    with opened(ns) as backend, opened(ns) as other:
        backend.send_nowait(make_bind(65_535, copy_range=77))
        assert errors(backend) == [0]
        [row] = backend.queues()
        assert row == ns.queue_row(65_535)
        assert (row.queue, row.portid, row.copy_mode, row.copy_range) == (
            65_535,
            backend.port_id,
            2,
            77,
        )
        assert other.queues() == [row]
        backend.send_nowait(make_config(65_535, command=ConfigCommand.UNBIND))
        assert errors(backend) == [0]
        assert backend.queues() == []
        backend.send_nowait(make_bind(1) + make_bind(2))
        assert [row.queue for row in other.queues()] == [1, 2]
        backend.close()
        assert other.queues() == []


def test_a_packet_that_a_socket_filter_hides_waits_on(ns: harness.Namespace) -> None:
    """Why there is no method for filters: netlink_unicast takes what they drop for delivered."""
    queue_rule(ns, "OUTPUT", "-p udp --dport 5000")
    nothing = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K
    program = struct.pack("@HP", 1, ctypes.addressof(nothing))
    with opened(ns) as backend:
        backend.send_nowait(make_bind(0))
        assert errors(backend) == [0]
        with socket.socket(fileno=os.dup(backend.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
        ns.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 5000))
        assert backend.receive_nowait(10).datagrams == []
        [row] = backend.queues()
        assert (row.queue_total, row.queue_dropped, row.user_dropped) == (1, 0, 0)


def test_a_table_longer_than_a_page_is_read_whole(ns: harness.Namespace) -> None:
    with opened(ns) as backend:
        for first in range(0, 200, 100):
            backend.send_nowait(b"".join(make_bind(n) for n in range(first, first + 100)))
        assert errors(backend) == [0] * 200
        assert sorted(row.queue for row in backend.queues()) == list(range(200))


@pytest.mark.parametrize("no_enobufs", [True, False])
async def test_every_lost_packet_is_counted(ns: harness.Namespace, no_enobufs: bool) -> None:
    queue_rule(ns, "OUTPUT", "-p udp --dport 9", queue=0)
    sender = ns.udp("127.0.0.1")
    options = NetlinkOptions(no_enobufs=no_enobufs)
    with opened(ns, receive_buffer_bytes=8192, options=options) as backend:
        backend.send_nowait(make_bind(0))
        assert errors(backend) == [0]
        for n in range(300):
            sender.sendto(n.to_bytes(4, "big"), ("127.0.0.1", 9))
        received = backend.receive_nowait(1000)
        assert received.overruns == (0 if no_enobufs else 1)
        lost = 300 - len(received.datagrams)
        assert lost > 0
        assert backend.socket_drops() == lost
        assert backend.queues()[0].user_dropped == lost
        for n in range(5):  # there is room again
            sender.sendto(n.to_bytes(4, "big"), ("127.0.0.1", 9))
        assert len(backend.receive_nowait(1000).datagrams) == 5


def test_256_refused_verdicts_of_one_datagram_lose_no_answer(ns: harness.Namespace) -> None:
    with opened(ns) as backend:
        verdicts = b"".join(make_verdict(n) for n in range(1, 257))
        assert len(verdicts) == backend.max_send_bytes
        backend.send_nowait(verdicts)
        assert errors(backend) == [errno.ENODEV] * 256
        assert backend.socket_drops() == 0


def test_a_message_longer_than_max_send_bytes_goes_alone(ns: harness.Namespace) -> None:
    queue_rule(ns, "OUTPUT", "-p udp --dport 9", queue=0)
    receiver = ns.udp("127.0.0.1", 9)
    with opened(ns) as backend:
        backend.send_nowait(make_bind(0))
        assert errors(backend) == [0]
        ns.udp("127.0.0.1").sendto(bytes(60_000), ("127.0.0.1", 9))
        [datagram] = backend.receive_nowait(1).datagrams
        [packet] = schema.parse(datagram)
        assert isinstance(packet, Message)
        payload = schema.by_name(NFQA, packet.attributes)["payload"]
        verdict = make_verdict(1, ack=True, payload=payload)
        assert len(verdict) > backend.max_send_bytes
        backend.send_nowait(verdict)
        assert errors(backend) == [0]
        assert receiver.recv(65_536) == bytes(60_000)


def test_a_datagram_too_long_is_not_taken_at_all(ns: harness.Namespace) -> None:
    with opened(ns) as backend:
        with pytest.raises(OSError, match="too long") as caught:
            backend.send_nowait(make_bind(0).ljust(1 << 20, b"\0"))
        assert caught.value.errno == errno.EMSGSIZE
        assert backend.queues() == []
        assert errors(backend) == []


def test_only_the_kernel_is_believed(ns: harness.Namespace) -> None:
    with opened(ns) as backend:
        liar = ns.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
        liar.sendto(make_verdict(1), (backend.port_id, 0))
        backend.send_nowait(make_bind(0))
        liar.sendto(make_verdict(1), (backend.port_id, 0))
        received = backend.receive_nowait(64)
        assert received.foreign == 2
        assert [type(m) for d in received.datagrams for m in schema.parse(d)] == [ErrorMessage]


async def test_a_waiter_wakes_when_a_packet_comes(ns: harness.Namespace) -> None:
    queue_rule(ns, "OUTPUT", "-p udp --dport 9", queue=0)
    sender = ns.udp("127.0.0.1")
    with opened(ns) as backend:
        backend.send_nowait(make_bind(0))
        assert errors(backend) == [0]
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with trio.fail_after(5):
                    await backend.wait_readable()
                assert payloads(backend.receive_nowait(64).datagrams) == [b"x"]

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            sender.sendto(b"x", ("127.0.0.1", 9))


def test_gso_packets_come_whole(pair: harness.Pair) -> None:
    queue_rule(pair.a, "OUTPUT", "-p tcp --dport 9", queue=0)
    got: list[bytes] = []
    with opened(pair.a, receive_buffer_bytes=4 << 20) as backend:
        backend.send_nowait(make_bind(0, flags=QueueFlags.GSO))
        assert errors(backend) == [0]
        done = threading.Event()

        def accept_all() -> None:
            while not done.is_set():
                datagrams = backend.receive_nowait(64).datagrams
                got.extend(datagrams)
                for datagram in datagrams:
                    backend.send_nowait(make_verdict(int.from_bytes(datagram[24:28], "big")))

        program = threading.Thread(target=accept_all)
        program.start()
        try:
            with (
                pair.b.call(socket.create_server, (pair.b4, 9)) as listener,
                pair.a.call(socket.create_connection, (pair.b4, 9), 5) as client,
            ):
                server, _ = listener.accept()
                with server:
                    server.settimeout(5)
                    writer = threading.Thread(target=client.sendall, args=(bytes(1_000_000),))
                    writer.start()
                    left = 1_000_000
                    while left:
                        left -= len(server.recv(min(left, 65_536)))
                    writer.join()
        finally:
            done.set()
            program.join()
    assert max(map(len, got)) > 10_000
    assert all(len(d) == int.from_bytes(d[:4], sys.byteorder) for d in got)


# Namespaces


def test_a_namespace_is_found_by_name_path_pid_and_descriptor(ns: harness.Namespace) -> None:
    here = os.readlink(HERE)
    process = ns.popen(["cat"], stdin=-1)
    ways: list[str | os.PathLike[str] | Namespace] = [
        ns.name,
        str(ns.path),
        Path(ns.path),
        Namespace.from_pid(process.pid),
        Namespace.from_fd(ns.fileno()),
    ]
    for number, way in enumerate(ways):
        with closing(NetlinkBackend(namespace=way)) as backend:
            backend.send_nowait(make_bind(number))
            assert errors(backend) == [0]
            assert [row.queue for row in ns.queue_rows()] == [number]
            assert backend.queues() == ns.queue_rows()
    assert os.readlink(HERE) == here
    os.fstat(ns.fileno())


def test_two_namespaces_have_their_own_queues_and_interfaces(pair: harness.Pair) -> None:
    with opened(pair.a) as a, opened(pair.b) as b:
        a.send_nowait(make_bind(4))
        b.send_nowait(make_bind(4))
        assert errors(a) == errors(b) == [0]
        assert [row.portid for row in a.queues()] == [a.port_id]
        assert [row.portid for row in b.queues()] == [b.port_id]
        for backend, end in ((a, pair.a), (b, pair.b)):
            names = dict(end.call(socket.if_nameindex))
            assert len(names) > 1
            found = {index: backend.interface_name(index) for index in range(1, 100)}
            assert {index: name for index, name in found.items() if name} == names


def test_what_was_opened_works_from_any_thread(ns: harness.Namespace) -> None:
    with opened(ns) as backend:
        backend.send_nowait(make_bind(0))
        seen: list[object] = []

        def look() -> None:
            seen.extend([backend.interface_name(1), len(backend.queues()), errors(backend)])

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == ["lo", 1, [0]]


def test_the_namespace_may_lose_its_name() -> None:
    with harness.Namespace("gone") as ns:
        backend = NetlinkBackend(namespace=ns.name)
    backend.send_nowait(make_bind(0))
    assert errors(backend) == [0]
    assert [row.queue for row in backend.queues()] == [0]
    assert backend.interface_name(1) == "lo"
    backend.close()


# Adopted sockets


def test_an_adopted_socket_keeps_its_queues_and_shows_its_namespace(ns: harness.Namespace) -> None:
    made = ns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    made.bind((0, 0))
    made.send(make_bind(6))
    backend = NetlinkBackend(fd=made.detach())
    assert errors(backend) == [0]
    assert [(row.queue, row.portid) for row in backend.queues()] == [(6, backend.port_id)]
    assert backend.interface_name(1) == "lo"
    backend.close()
    assert ns.queue_rows() == []


def test_an_adopted_socket_must_speak_to_the_kernel(ns: harness.Namespace) -> None:
    made = ns.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    made.connect((4711, 0))
    with pytest.raises(ValueError, match=r"connected to \(4711, 0\)"):
        NetlinkBackend(fd=made.fileno())
    os.fstat(made.fileno())


def test_an_adopted_socket_of_a_barred_namespace_works_without_its_table(
    ns: harness.Namespace, without_admin: Callable[[Callable[[], object]], object]
) -> None:
    made = ns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    backend = without_admin(lambda: NetlinkBackend(fd=made.detach()))
    assert isinstance(backend, NetlinkBackend)
    backend.send_nowait(make_bind(6))
    assert errors(backend) == [0]
    with pytest.raises(PrivilegeError, match="CAP_SYS_ADMIN"):
        backend.queues()
    backend.close()


@pytest.fixture
def without_admin() -> Callable[[Callable[[], object]], object]:
    """Does something in a thread with all capabilities but CAP_SYS_ADMIN."""
    import ctypes
    import struct

    def run(work: Callable[[], object]) -> object:
        def inside() -> object:
            low = 0xFFFFFFFF & ~(1 << 21)
            header = struct.pack("=Ii", 0x20080522, 0)
            libc = ctypes.CDLL(None, use_errno=True)
            current = ctypes.create_string_buffer(24)
            assert libc.capget(header, current) == 0
            effective, permitted, inherited, *high = struct.unpack("=6I", current.raw)
            less = struct.pack("=6I", effective & low, permitted & low, inherited & low, *high)
            assert libc.capset(header, less) == 0
            return work()

        return harness.in_fresh_thread(inside)

    return run


# Buffers


def test_the_limit_on_buffers_is_passed_by_the_hosts_root_only(ns: harness.Namespace) -> None:
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with opened(ns, receive_buffer_bytes=2 * limit) as backend:
            given = backend.receive_buffer_bytes
    if in_user_namespace():
        assert given == limit
        assert [type(w.message) for w in caught] == [ReceiveBufferWarning]
    else:
        assert given == 2 * limit
        assert caught == []


def test_unread_datagrams_of_a_closed_socket_go_with_it(ns: harness.Namespace) -> None:
    queue_rule(ns, "OUTPUT", "-p udp --dport 9", queue=0)
    receiver = ns.udp("127.0.0.1", 9)
    with opened(ns) as backend:
        backend.send_nowait(make_bind(0))
        ns.udp("127.0.0.1").sendto(b"queued", ("127.0.0.1", 9))
        assert backend.queues()[0].queue_total == 1
    with opened(ns) as backend:
        assert backend.receive_nowait(64) == Received([])
        assert backend.queues() == []
    assert drain(receiver) == []
