"""The settings of a queue: checked, and as attributes of a CONFIG message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trionfq.schema import attr
from trionfq.schema.nfqueue import NFQA_CFG, CopyMode, QueueFlags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq.schema import Attr

_U32 = 0xFFFFFFFF


class QueueConfig(NamedTuple):
    """How a queue is set up.

    Attributes:
      number: queue number.
      copy_mode: what of a packet is copied.
      copy_range: most payload bytes copied.
      max_len: most packets that the kernel holds.
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
        if not isinstance(value, int) or not 0 <= value <= _U32:
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


def settings(config: QueueConfig, *, every_flag: bool = False) -> list[Attr]:
    """Everything that a CONFIG message can set, besides its command."""
    params = {"copy_range": config.copy_range, "copy_mode": config.copy_mode}
    return [
        attr(NFQA_CFG, "params", params),
        *queue_limits(config, every_flag=every_flag),
    ]


def queue_limits(config: QueueConfig, *, every_flag: bool = False) -> list[Attr]:
    """What a CONFIG message sets besides command and copying; `every_flag` clears others."""
    mask = ~QueueFlags(0) if every_flag else config.flags
    limits = [attr(NFQA_CFG, "queue_maxlen", config.max_len)]
    if mask:
        limits.append(attr(NFQA_CFG, "flags", int(config.flags)))
        limits.append(attr(NFQA_CFG, "mask", int(mask)))
    return limits
