"""When a recording goes on in another file, and what that file must say to stand alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trionfq._codec import encode
from trionfq.schema import ErrorMessage, Message, attr, by_name
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand, MessageType

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from trionfq.schema import AnyMessage

_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """When a `RecordingBackend` begins its next file; one limit at least.

    Attributes:
      max_bytes: once a file has so many bytes; the last record may go beyond.
      max_seconds: once the first record of a file is so old, in seconds of the backend's time.
      keep: most files kept, the present one included: the oldest is deleted. None keeps all.

    Raises:
      ValueError: no limit, or one that is not positive.
    """

    max_bytes: int | None = None
    max_seconds: float | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is None and self.max_seconds is None:
            raise ValueError("rotation: give max_bytes, max_seconds or both")
        for name in ("max_bytes", "max_seconds", "keep"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"rotation: {name}: expected more than 0, got {value}")

    def is_due(self, size_bytes: int, age_ns: int) -> bool:
        """Whether a file of this size and age is full."""
        if self.max_bytes is not None and size_bytes >= self.max_bytes:
            return True
        return self.max_seconds is not None and age_ns >= self.max_seconds * _NS


def part_path(path: str | os.PathLike[str], number: int) -> str:
    """The name of a part: ``run.pcapng`` becomes ``run.00000.pcapng``, ``run.00001.pcapng``, ..."""
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}.{number:05d}{whole.suffix}"))


class QueueSettings:
    """The settings of the queues that a program has bound, from what passed."""

    def __init__(self) -> None:
        self._bound: dict[int, dict[str, Any]] = {}
        self._asked: dict[int, Message] = {}

    def sent(self, messages: Iterable[AnyMessage]) -> None:
        """The program sent these; a request that asks for an answer counts once that says so."""
        for message in messages:
            if isinstance(message, Message) and message.type == MessageType.CONFIG:
                if message.flags & MessageFlags.ACK:
                    self._asked[message.seq] = message
                else:
                    self._take(message)

    def answered(self, messages: Iterable[AnyMessage]) -> None:
        """The kernel answered these."""
        for message in messages:
            if isinstance(message, ErrorMessage) and message.request[1] == MessageType.CONFIG:
                asked = self._asked.pop(message.seq, None)
                if asked is not None and not message.error:
                    self._take(asked)

    def _take(self, message: Message) -> None:
        values = by_name(NFQA_CFG, message.attributes)
        command = values.get("cmd")
        code = command["command"] if isinstance(command, dict) else None
        if code == ConfigCommand.UNBIND:
            self._bound.pop(message.res_id, None)
            return
        if code == ConfigCommand.BIND:
            self._bound[message.res_id] = {}
        settings = self._bound.get(message.res_id)
        if settings is None:
            return
        for name in ("params", "queue_maxlen"):
            if name in values:
                settings[name] = values[name]
        flags, mask = values.get("flags"), values.get("mask")
        if isinstance(flags, int) and isinstance(mask, int):
            settings["mask"] = settings.get("mask", 0) | mask
            settings["flags"] = settings.get("flags", 0) & ~mask | flags & mask

    def requests(self) -> list[bytes]:
        """One request for each bound queue that gives it the settings that it has.

        Without a BIND: the file begins in the middle of a binding, and packets from before it may
        still get their verdicts.
        """
        found = []
        for number, settings in self._bound.items():
            given = tuple(attr(NFQA_CFG, name, value) for name, value in settings.items())
            flags = int(MessageFlags.REQUEST)
            message = Message(MessageType.CONFIG, flags, 0, 0, 0, 0, number, given)
            found.append(encode([message]))
        return found
