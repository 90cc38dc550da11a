"""The first tests in the guest: nothing has loaded nfnetlink_queue yet.

The kernel loads modules by starting the program that ``kernel.modprobe`` names. Where that is
/bin/false, a module is as missing as on a machine that has none.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trionfq import ModuleMissingError, open_queue

pytestmark = pytest.mark.needs_kernel("guest")

NETLINK_NETFILTER = 12
HELPER = Path("/proc/sys/kernel/modprobe")


def _loaded(module: str) -> bool:
    return any(line.split()[0] == module for line in Path("/proc/modules").read_text().splitlines())


@contextmanager
def _no_module_can_be_loaded() -> Iterator[None]:
    before = HELPER.read_text()
    HELPER.write_text("/bin/false\n")
    try:
        yield
    finally:
        HELPER.write_text(before)


async def _open() -> None:
    async with open_queue(0):
        pass


async def test_without_nfnetlink_a_program_is_told_which_module_is_missing() -> None:
    """socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER) gives EPROTONOSUPPORT."""
    assert not _loaded("nfnetlink")
    with _no_module_can_be_loaded(), pytest.raises(ModuleMissingError) as caught:
        await _open()
    assert caught.value.errno == errno.EPROTONOSUPPORT
    assert "modprobe nfnetlink_queue" in str(caught.value)
    assert not _loaded("nfnetlink")


async def test_without_nfnetlink_queue_a_program_is_told_which_module_is_missing() -> None:
    """A request to a subsystem that nobody has registered gives EINVAL (nfnetlink_rcv_msg)."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
    assert _loaded("nfnetlink")
    assert not _loaded("nfnetlink_queue")
    with _no_module_can_be_loaded(), pytest.raises(ModuleMissingError) as caught:
        await _open()
    assert caught.value.errno == errno.EINVAL
    assert "modprobe nfnetlink_queue" in str(caught.value)
    assert not _loaded("nfnetlink_queue")


async def test_the_first_queue_loads_the_module_where_that_is_allowed() -> None:
    assert not _loaded("nfnetlink_queue")
    await _open()
    assert _loaded("nfnetlink_queue")
