"""The settings of a queue: checked, and as attributes of a CONFIG message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trionfq.schema import attr
from trionfq.schema.nfqueue import MAX_COPY_RANGE, NFQA_CFG, CopyMode, QueueFlags

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trionfq._kernel_records import QueueRow
    from trionfq.schema import Attr

_U32 = 0xFFFFFFFF


class QueueConfig(NamedTuple):
    """How a queue is set up.

    Attributes:
      number: queue number.
      copy_mode: what of a packet is copied.
      copy_range: most payload bytes copied; 0 and more than 65,531 mean 65,531.
      max_len: most packets that the kernel holds, in packets.
      flags: NFQA_CFG_F_*.
    """

    number: int
    copy_mode: CopyMode = CopyMode.PACKET
    copy_range: int = 0xFFFF
    max_len: int = 1024
    flags: QueueFlags = QueueFlags(0)

    def changed(self, wanted: Mapping[str, Any]) -> QueueConfig:
        """The same with other settings; a value of None leaves one as it is."""
        return self._replace(**{name: v for name, v in wanted.items() if v is not None})


def check_config(config: QueueConfig) -> QueueConfig:
    """Check the settings that go to the kernel, and give them their types.

    Raises:
      ValueError: out of range, or an unknown mode or flag; says what is allowed.
    """
    for name in ("copy_range", "max_len"):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _U32:
            raise ValueError(f"{name}: expected 0 to {_U32}, got {value!r}")
    try:
        mode = CopyMode(config.copy_mode)
    except ValueError:
        # The kernel answers an invalid mode with success and ignores it (nfqnl_set_mode).
        raise ValueError(f"copy_mode: expected a CopyMode, got {config.copy_mode!r}") from None
    known = ~QueueFlags(0)
    if not isinstance(config.flags, int) or int(config.flags) & ~int(known):
        raise ValueError(f"flags: expected QueueFlags, got {config.flags!r}")
    return config._replace(copy_mode=mode, flags=QueueFlags(config.flags))


def settings(config: QueueConfig) -> list[Attr]:
    """Everything that a CONFIG message can set, besides its command."""
    return [_params(config), *queue_limits(config)]


def queue_limits(config: QueueConfig) -> list[Attr]:
    """What a CONFIG message sets besides command and copying; flags that are off stay as they are.

    So a kernel that knows fewer flags takes it.
    """
    limits = [_max_len(config)]
    if config.flags:
        limits += _flags(config, config.flags)
    return limits


def changed_settings(config: QueueConfig, names: Collection[str]) -> list[Attr]:
    """What a CONFIG message says to change these settings and no other.

    Copy mode and range are one attribute, so one takes the other along. Flags are all set or
    cleared.
    """
    changes = []
    if "copy_mode" in names or "copy_range" in names:
        changes.append(_params(config))
    if "max_len" in names:
        changes.append(_max_len(config))
    if "flags" in names:
        changes += _flags(config, ~QueueFlags(0))
    return changes


def _params(config: QueueConfig) -> Attr:
    params = {"copy_range": config.copy_range, "copy_mode": config.copy_mode}
    return attr(NFQA_CFG, "params", params)


def _max_len(config: QueueConfig) -> Attr:
    return attr(NFQA_CFG, "queue_maxlen", config.max_len)


def _flags(config: QueueConfig, mask: QueueFlags) -> list[Attr]:
    return [attr(NFQA_CFG, "flags", int(config.flags)), attr(NFQA_CFG, "mask", int(mask))]


class KernelSettings(NamedTuple):
    """What the kernel shows of a queue's settings; flags and max_len it does not show.

    Attributes:
      copy_mode: what of a packet is copied.
      copy_range: most payload bytes copied; 0 unless the mode is PACKET (nfqnl_set_mode).
      differing: names of the settings that are not as `Queue.config` asked: somebody else who has
        the socket has changed them.
    """

    copy_mode: CopyMode
    copy_range: int
    differing: tuple[str, ...]


def kernel_settings(row: QueueRow, config: QueueConfig) -> KernelSettings:
    """Read a row of /proc beside what was asked for."""
    asked_range = 0
    if config.copy_mode is CopyMode.PACKET:
        asked_range = min(config.copy_range or MAX_COPY_RANGE, MAX_COPY_RANGE)
    differing = []
    if row.copy_mode != config.copy_mode:
        differing.append("copy_mode")
    # Under another mode, the range says nothing of its own.
    elif row.copy_range != asked_range:
        differing.append("copy_range")
    return KernelSettings(CopyMode(row.copy_mode), row.copy_range, tuple(differing))
