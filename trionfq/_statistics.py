"""What a queue has seen: a snapshot for people and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionfq._verdict import Verdict
    from trionfq.backends import QueueRow


@dataclass(frozen=True)
class Statistics:
    """A snapshot of one queue; every number counts from the queue's opening.

    Attributes:
      packets_received: packets read and decoded.
      packets_lost: packet ids that never came: each is a packet that the kernel could not deliver.
      overruns: times that the socket reported lost datagrams (ENOBUFS); always 0 while
        NETLINK_NO_ENOBUFS is set, as by default.
      truncated_datagrams: datagrams cut by the receive buffer, and so lost.
      foreign_datagrams: datagrams from another sender than the kernel, ignored.
      unexpected_messages: well-formed messages that are no answer and no packet of this queue.
      undecodable_messages: messages that contradict the schema (`Queue.undecodable`).
      answers_lost: answers of the kernel that found the receive buffer full
        (SO_MEMINFO's drops, less user_dropped).
      verdicts: verdicts sent, by kind, the closing policy's not included.
      batches_sent: NFQNL_MSG_VERDICT_BATCH messages among them.
      verdicts_gone: verdicts that found no packet (ENOENT): the kernel had flushed it, since a
        device went down or a hooked table was deleted. A batch hides members that were flushed as
        long as one was not, so this is the least number.
      verdicts_refused: verdicts that the kernel refused otherwise (`VerdictRefusedError`).
      read_ahead: packets read and not yet handed out.
      undecided: packets read that have no verdict, the ones read ahead included.
      held: undecided packets that are held on purpose (`Packet.hold`).
      oldest_undecided_s: age in seconds of the oldest undecided packet, None without one. While
        it grows, verdicts of later packets cannot be batched.
      kernel: the queue's row in /proc/net/netfilter/nfnetlink_queue, after the end as last seen,
        None where it cannot be read, or the queue is this socket's no more. Its queue_dropped and
        user_dropped are the kernel's own counts of loss, its queue_total less `undecided` is what
        waits unread (and what has a verdict that was not sent yet).
    """

    packets_received: int
    packets_lost: int
    overruns: int
    truncated_datagrams: int
    foreign_datagrams: int
    unexpected_messages: int
    undecodable_messages: int
    answers_lost: int
    verdicts: Mapping[Verdict, int]
    batches_sent: int
    verdicts_gone: int
    verdicts_refused: int
    read_ahead: int
    undecided: int
    held: int
    oldest_undecided_s: float | None
    kernel: QueueRow | None
