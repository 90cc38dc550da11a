"""Settings changed while packets come: what they apply to, and what the kernel shows of them."""

from __future__ import annotations

import errno
import os
from contextlib import closing

import pytest

from trionfq import (
    CopyMode,
    KernelError,
    LocalProtocolError,
    NetlinkBackend,
    PrivilegeError,
    QueueFlags,
    Verdict,
    open_queue,
    schema,
)
from trionfq.schema import attr
from trionfq.schema.nfqueue import NFQA_CFG, MessageType
from trionfq.testing import make_bind

from ._live import LOSE_PRIVILEGE, Udp, end_of, program, take
from .harness import Namespace, queue_rule

UDP = "-p udp"


async def test_what_the_kernel_shows_is_what_was_asked_for(ns: Namespace) -> None:
    async with open_queue(0, namespace=ns.name) as queue:
        assert queue.kernel_settings() == (CopyMode.PACKET, 65_531, ())
        for mode, asked, shown in [
            (CopyMode.PACKET, 100, 100),
            (CopyMode.META, 100, 0),
            (CopyMode.NONE, 2**32 - 1, 0),
            (CopyMode.PACKET, 2**32 - 1, 65_531),
            (CopyMode.PACKET, 65_532, 65_531),
            (CopyMode.PACKET, 65_530, 65_530),
            (CopyMode.PACKET, 0, 65_531),
        ]:
            queue.configure(copy_mode=mode, copy_range=asked)
            assert queue.kernel_settings() == (mode, shown, ())
            assert queue.config[1:3] == (mode, asked)
            row = ns.queue_row(0)
            assert row is not None
            assert (row.copy_mode, row.copy_range) == (mode, shown)
        queue.configure(copy_mode=CopyMode.META)
        queue.configure(copy_mode=CopyMode.PACKET, copy_range=64)
        queue.configure(max_len=7, flags=QueueFlags.GSO)
        assert queue.kernel_settings() == (CopyMode.PACKET, 64, ())


async def test_what_another_holder_of_the_socket_has_changed_is_told(ns: Namespace) -> None:
    backend = NetlinkBackend(namespace=ns.name)
    fd = os.dup(backend._socket.fileno())
    async with open_queue(0, backend=backend) as queue:
        with closing(NetlinkBackend(fd=fd)) as other:
            params = attr(NFQA_CFG, "params", {"copy_range": 40, "copy_mode": CopyMode.PACKET})
            message = schema.Message(MessageType.CONFIG, 1, 9, 0, 0, 0, 0, (params,))
            other.send_nowait(schema.build([message]))
            assert queue.kernel_settings() == (CopyMode.PACKET, 40, ("copy_range",))
            # A change of something else leaves the other's setting.
            queue.configure(max_len=5)
            assert queue.kernel_settings() == (CopyMode.PACKET, 40, ("copy_range",))
            queue.configure(copy_range=50)
            assert queue.kernel_settings() == (CopyMode.PACKET, 50, ())


async def test_an_heir_leaves_what_it_does_not_change(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    backend = NetlinkBackend(namespace=ns.name)
    backend.send_nowait(make_bind(0, copy_range=30, max_len=5, flags=QueueFlags.FAIL_OPEN))
    async with open_queue(0, backend=backend, inherited=True, on_close=Verdict.ACCEPT) as queue:
        assert queue.config[1:3] == (CopyMode.PACKET, 30)
        queue.configure(max_len=1)
        assert queue.kernel_settings() == (CopyMode.PACKET, 30, ())
        udp.send(b"queued", b"fails open")
        assert await udp.receive(1) == [b"fails open"]
        [packet] = await take(queue, 1)
        assert len(packet.payload) == 30
        queue.configure(flags=QueueFlags(0))
        udp.send(b"dropped")
        assert queue.kernel_settings() == (CopyMode.PACKET, 30, ())
        kernel = queue.statistics().kernel
        assert kernel is not None
        assert kernel.queue_dropped == 1
        packet.accept()
        assert await udp.receive(1) == [b"queued"]
    assert udp.waiting() == []


async def test_new_settings_apply_to_packets_that_are_queued_later(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, max_len=3) as queue:
        udp.send(b"one", b"two", b"three")
        queue.configure(max_len=1, copy_range=30)
        udp.send(b"no room any more")
        queue.configure(max_len=4)
        udp.send(b"and room again")
        packets = await take(queue, 4)
        assert [len(packet.payload) for packet in packets] == [31, 31, 33, 30]
        for packet in packets:
            packet.accept()
        assert await udp.receive(4) == [b"one", b"two", b"three", b"and room again"]
        queue.configure(copy_mode=CopyMode.META)
        udp.send(b"x")
        [packet] = await take(queue, 1)
        with pytest.raises(LocalProtocolError, match="copies no payload"):
            packet.payload  # noqa: B018
        packet.accept()


async def test_flags_are_switched_one_by_one(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)

    async def uid() -> int | None:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        packet.accept()
        return packet.uid

    both = QueueFlags.UID_GID | QueueFlags.GSO
    async with open_queue(0, namespace=ns.name, flags=both) as queue:
        assert await uid() is not None
        queue.configure(max_len=50)
        assert await uid() is not None
        queue.configure(flags=QueueFlags.GSO)
        assert queue.config.flags == QueueFlags.GSO
        assert await uid() is None
        queue.configure(flags=queue.config.flags | QueueFlags.UID_GID)
        assert await uid() is not None
        queue.configure(flags=QueueFlags(0))
        assert await uid() is None


@pytest.mark.not_in_guest("its kernel has every flag")
async def test_a_refused_request_changes_nothing_of_what_it_asked_for(ns: Namespace) -> None:
    """nfqnl_recv_config looks at flags before it sets anything."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name, max_len=1) as queue:
        config = queue.config
        for flag in (QueueFlags.SECCTX, QueueFlags.CONNTRACK):
            try:
                queue.configure(flags=flag)
            except KernelError:
                break
            queue.configure(flags=QueueFlags(0))
        else:
            pytest.skip("this kernel has every flag")
        with pytest.raises(KernelError, match="this kernel does not know one of the flags") as it:
            queue.configure(copy_mode=CopyMode.META, max_len=2, flags=flag | QueueFlags.FAIL_OPEN)
        assert it.value.errno == errno.EOPNOTSUPP
        assert queue.config == config
        assert queue.kernel_settings() == (CopyMode.PACKET, 65_531, ())
        udp.send(b"first", b"no room, and does not fail open")
        assert len(await take(queue, 1)) == 1
        kernel = queue.statistics().kernel
        assert kernel is not None
        assert (kernel.queue_total, kernel.queue_dropped) == (1, 1)
    assert udp.waiting() == []


async def test_without_privilege_a_setting_is_refused_by_name(ns: Namespace) -> None:
    text = f"""{LOSE_PRIVILEGE}
import trio, trionfq
async def main():
    async with trionfq.open_queue(0) as queue:
        lose_privilege("capset")
        try:
            queue.configure(max_len=5)
        except trionfq.PrivilegeError as error:
            print(error.errno, "|", error)
        print(queue.config.max_len)
trio.run(main)
"""
    with program(ns, text) as process:
        code, output, errors = await end_of(process)
    assert (code, errors) == (0, "")
    refusal, max_len = output.splitlines()
    assert refusal.startswith("1 | ")
    assert "change settings of queue 0: Operation not permitted" in refusal
    assert "CAP_NET_ADMIN is missing by now" in refusal
    assert max_len == "1024"
    assert PrivilegeError.__base__ is KernelError


async def test_a_queue_that_another_socket_has_bound_since_is_not_changed(ns: Namespace) -> None:
    backend = NetlinkBackend(namespace=ns.name)
    fd = os.dup(backend._socket.fileno())
    async with open_queue(0, backend=backend) as queue:
        with closing(NetlinkBackend(fd=fd)) as other:
            other.send_nowait(_unbind())
            with pytest.raises(KernelError, match="the queue is bound no more") as caught:
                queue.configure(max_len=5)
            assert caught.value.errno == errno.ENODEV
            assert queue.kernel_settings() is None
        async with open_queue(0, namespace=ns.name, copy_range=9):
            with pytest.raises(PrivilegeError, match="another socket has bound the queue"):
                queue.configure(max_len=5)
            assert queue.kernel_settings() is None
            assert queue.config.max_len == 1024


def _unbind() -> bytes:
    command = attr(NFQA_CFG, "cmd", {"command": 2, "pf": 0})
    return schema.build([schema.Message(MessageType.CONFIG, 1, 9, 0, 0, 0, 0, (command,))])
