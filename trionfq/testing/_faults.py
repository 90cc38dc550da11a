"""What can go wrong between a kernel and a program, as declarations for `FaultyBackend`."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, kw_only=True)
class Fault:
    """When something goes wrong; what, the subclasses say. Packets are counted from 0 as they come.

    Attributes:
      at: the number of a packet, or several numbers.
      rate: instead, the share of packets, 0 to 1, drawn from the backend's seed.

    Raises:
      ValueError: neither or both, a negative number, or a rate outside of 0 to 1.
    """

    at: int | Collection[int] = ()
    rate: float = 0.0

    def __post_init__(self) -> None:
        numbers = self.numbers
        if bool(numbers) == bool(self.rate):
            raise ValueError(f"{type(self).__name__}: give at or rate")
        if numbers and min(numbers) < 0:
            raise ValueError(f"{type(self).__name__}: at: expected 0 or more, got {min(numbers)}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"{type(self).__name__}: rate: expected 0 to 1, got {self.rate}")

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of `at`."""
        return frozenset((self.at,) if isinstance(self.at, int) else self.at)

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not value >= least:
            raise ValueError(
                f"{type(self).__name__}: {name}: expected {least} or more, got {value}"
            )


@dataclass(frozen=True, kw_only=True)
class Overrun(Fault):
    """The receive buffer is full: the kernel drops packets and reports ENOBUFS once.

    Each takes an id, and counts in ``user_dropped`` and the socket's drops (netlink_overrun, and
    __nfqnl_enqueue_packet).

    Attributes:
      count: how many packets are lost, from this one on.
      answers: whether answers are lost as well until the last of them, as they are on a socket
        without NETLINK_NO_ENOBUFS, which is congested until it has been read empty.
    """

    count: int = 1
    answers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("count", 1)


@dataclass(frozen=True, kw_only=True)
class Truncate(Fault):
    """The datagram is longer than the buffer that it is read into (MSG_TRUNC): it is left out.

    The packet stays in the kernel's queue, and its id is a gap.
    """


@dataclass(frozen=True, kw_only=True)
class CapLen(Fault):
    """The packet is copied in part only, and NFQA_CAP_LEN tells its length.

    Attributes:
      copy_range: bytes that are copied.
    """

    copy_range: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("copy_range", 0)


@dataclass(frozen=True, kw_only=True)
class Reorder(Fault):
    """The packet comes behind later ones, which no kernel does.

    Attributes:
      by: how many later packets come first.
      within_s: seconds of trio's clock after which it comes all the same.
    """

    by: int = 1
    within_s: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("by", 1)
        self._at_least("within_s", 0)


@dataclass(frozen=True, kw_only=True)
class Duplicate(Fault):
    """The packet comes twice under the same id, which no kernel does.

    Attributes:
      after: how many later packets come before the second one.
    """

    after: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("after", 0)


@dataclass(frozen=True, kw_only=True)
class Refuse(Fault):
    """The kernel refuses the first verdict that would decide the packet.

    With ENOENT the packet has been flushed, and a batch goes on to the others. With EPERM or
    ENODEV the binding is lost. Otherwise the packet, or all that the batch names, stay queued
    (nfqnl_recv_verdict), but for a changed VLAN tag or link-layer header: then it is dropped.

    Attributes:
      error: the error number.
    """

    error: int = errno.ENOENT

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("error", 1)


@dataclass(frozen=True, kw_only=True)
class Flush(Fault):
    """Just before the packet comes, the kernel drops all that waits in the socket's queues.

    As when a netfilter hook is unregistered (nfqnl_nf_hook_drop). What was sent to the program
    already can still be read; its verdicts find nothing (ENOENT).
    """


@dataclass(frozen=True, kw_only=True)
class Stall(Fault):
    """The kernel is slow: this packet, and those behind it, come later. Answers are in time.

    Attributes:
      seconds: for how long, of trio's clock.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("seconds", 0)


@dataclass(frozen=True, kw_only=True)
class SendError(Fault):
    """A datagram is not taken: ``at`` and ``rate`` are of what the program sends, set-up included.

    Attributes:
      error: ENOBUFS where memory was short, which a program may try again; EMSGSIZE where it is
        too long; anything else means that the socket is unusable.
    """

    error: int = errno.ENOBUFS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("error", 1)


@dataclass(frozen=True, kw_only=True)
class Die(Fault):
    """Instead of the packet comes an error, and so from then on with everything.

    Attributes:
      error: ECONNREFUSED where the kernel's side has gone (netlink_getsockbyportid).
    """

    error: int = errno.ECONNREFUSED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("error", 1)


class Choice:
    """Says of each packet in turn whether a fault befalls it.

    Args:
      fault: the fault.
      seed: of its rate.
    """

    def __init__(self, fault: Fault, seed: str) -> None:
        self.fault = fault
        self._numbers = fault.numbers
        self._random = random.Random(seed)  # noqa: S311 - a test's, not a secret
        self._next = 0

    def falls(self) -> bool:
        """Whether it befalls the next one."""
        number = self._next
        self._next += 1
        if self.fault.rate:
            return self._random.random() < self.fault.rate
        return number in self._numbers
