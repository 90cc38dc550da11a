"""Settings are changed one by one, and what the kernel shows of them is held beside the request."""

from __future__ import annotations

import pytest
import trio

from trionfq import KernelSettings, QueueConfig, open_queue, schema
from trionfq._config import check_config, kernel_settings
from trionfq._kernel_records import QueueRow
from trionfq.schema import by_name
from trionfq.schema.nfqueue import NFQA_CFG, CopyMode, MessageType, QueueFlags
from trionfq.testing import ScriptedBackend, make_bind

EVERY_FLAG = 31


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ({}, {}),
        ({"max_len": 5}, {"queue_maxlen": 5}),
        ({"max_len": 0}, {"queue_maxlen": 0}),
        ({"copy_range": 9}, {"params": {"copy_range": 9, "copy_mode": 2}}),
        ({"copy_mode": CopyMode.META}, {"params": {"copy_range": 100, "copy_mode": 1}}),
        ({"flags": QueueFlags(0)}, {"flags": 0, "mask": EVERY_FLAG}),
        ({"flags": QueueFlags.GSO}, {"flags": 4, "mask": EVERY_FLAG}),
        (
            {"copy_mode": CopyMode.PACKET, "max_len": 7, "flags": QueueFlags.FAIL_OPEN},
            {
                "params": {"copy_range": 100, "copy_mode": 2},
                "queue_maxlen": 7,
                "flags": 1,
                "mask": EVERY_FLAG,
            },
        ),
    ],
)
async def test_only_what_shall_change_is_asked_for(
    backend: ScriptedBackend, wanted: dict[str, int], sent: dict[str, object]
) -> None:
    async with open_queue(0, backend=backend, copy_range=100, flags=QueueFlags.UID_GID) as queue:
        backend.sent.clear()
        before = queue.config
        queue.configure(**wanted)
        [message] = schema.parse(backend.sent[0])
        assert isinstance(message, schema.Message)
        assert message.type == MessageType.CONFIG
        assert by_name(NFQA_CFG, message.attributes) == sent
        assert queue.config == before._replace(**wanted)
        assert queue.kernel_settings() == KernelSettings(
            queue.config.copy_mode,
            {CopyMode.PACKET: queue.config.copy_range, CopyMode.META: 0}[queue.config.copy_mode],
            (),
        )
        there = backend.kernel.queue(0)
        assert there.max_len == queue.config.max_len
        assert there.flags == queue.config.flags


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(ValueError, match="max_len: expected 0 to 4294967295, got True"):
        check_config(QueueConfig(0, max_len=True))


@pytest.mark.parametrize(
    ("asked", "shown", "differing"),
    [
        ((CopyMode.PACKET, 0), (2, 65_531), ()),
        ((CopyMode.PACKET, 65_531), (2, 65_531), ()),
        ((CopyMode.PACKET, 65_532), (2, 65_531), ()),
        ((CopyMode.PACKET, 2**32 - 1), (2, 65_531), ()),
        ((CopyMode.PACKET, 65_530), (2, 65_530), ()),
        ((CopyMode.META, 65_535), (1, 0), ()),
        ((CopyMode.NONE, 7), (0, 0), ()),
        ((CopyMode.PACKET, 100), (2, 65_531), ("copy_range",)),
        ((CopyMode.PACKET, 65_535), (2, 65_530), ("copy_range",)),
        ((CopyMode.PACKET, 100), (1, 0), ("copy_mode",)),
        ((CopyMode.META, 100), (2, 100), ("copy_mode",)),
    ],
)
def test_a_setting_that_the_kernel_shows_otherwise_is_named(
    asked: tuple[CopyMode, int], shown: tuple[int, int], differing: tuple[str, ...]
) -> None:
    row = QueueRow(0, 1, 0, *shown, 0, 0, 0)
    expected = KernelSettings(CopyMode(shown[0]), shown[1], differing)
    assert kernel_settings(row, QueueConfig(0, *asked)) == expected


async def test_what_somebody_else_has_changed_is_told(backend: ScriptedBackend) -> None:
    async with open_queue(0, backend=backend) as queue:
        assert queue.kernel_settings() == (CopyMode.PACKET, 65_531, ())
        backend.kernel.queue(0).set_mode(CopyMode.PACKET, 40)
        assert queue.kernel_settings() == (CopyMode.PACKET, 40, ("copy_range",))
        backend.kernel.queue(0).set_mode(CopyMode.NONE, 0)
        assert queue.kernel_settings() == (CopyMode.NONE, 0, ("copy_mode",))
        queue.configure(max_len=9)
        assert queue.kernel_settings() == (CopyMode.NONE, 0, ("copy_mode",))
        queue.configure(copy_mode=CopyMode.PACKET)
        assert queue.kernel_settings() == (CopyMode.PACKET, 65_531, ())
    assert queue.kernel_settings() == (CopyMode.PACKET, 65_531, ())


async def test_settings_that_cannot_be_read_are_none(backend: ScriptedBackend) -> None:
    def barred() -> list[QueueRow]:
        raise PermissionError(13, "Permission denied")

    backend.queues = barred  # type: ignore[method-assign]
    async with open_queue(0, backend=backend, copy_range=5) as queue:
        assert queue.kernel_settings() is None
        assert queue.config.copy_range == 5


async def test_an_heir_has_the_settings_that_the_kernel_shows(backend: ScriptedBackend) -> None:
    backend.send_nowait(make_bind(0, copy_range=77, max_len=3, flags=QueueFlags.FAIL_OPEN))
    backend.receive_nowait(9)
    async with open_queue(0, backend=backend, inherited=True, max_len=3) as queue:
        assert queue.config == QueueConfig(0, CopyMode.PACKET, 77, 3, QueueFlags(0))
        assert queue.kernel_settings() == (CopyMode.PACKET, 77, ())
        queue.configure(max_len=4)
        there = backend.kernel.queue(0)
        assert (there.copy_range, there.max_len, there.flags) == (77, 4, QueueFlags.FAIL_OPEN)
        queue.configure(flags=QueueFlags(0))
        assert (there.copy_range, there.max_len, there.flags) == (77, 4, 0)


async def test_settings_are_changed_from_the_trio_thread_only(backend: ScriptedBackend) -> None:
    async with open_queue(0, backend=backend) as queue:

        def change() -> None:
            with pytest.raises(RuntimeError, match=r"from_thread\.run_sync\(queue\.configure\)"):
                queue.configure(max_len=5)
            trio.from_thread.run_sync(lambda: queue.configure(max_len=6))

        backend.sent.clear()
        await trio.to_thread.run_sync(change)
        assert backend.kernel.queue(0).max_len == queue.config.max_len == 6
        assert len(backend.sent) == 1
    with pytest.raises(trio.ClosedResourceError):
        queue.configure(max_len=7)
