"""The kernel's side of nfqueue, as a synchronous object without I/O.

One `KernelModel` is one network namespace: queues by number, sockets by port id. It takes request
datagrams as bytes and reads them as leniently as the kernel does; it gives records. It shares no
code with what it judges: no codec, no protocol machine. What it does was read in the newest
net/netfilter/nfnetlink_queue.c and nfnetlink.c and is compared with a real kernel, request by
request, in tests/kernel.

Use::

    model = KernelModel()
    sock = model.open_socket()              # portid, buffers, privilege
    sock.ext_ack = True                     # NETLINK_EXT_ACK; cap_ack and no_enobufs likewise
    sock.send(datagram)                     # all its messages are dealt with; EMSGSIZE, ENODATA
    model.enqueue(0, PacketIn(payload))     # -> Arrival(fate, ids)
    sock.receive()                          # Message | ErrorMessage | None; raises ENOBUFS
    model.take_decisions()                  # -> [Decision(queue, packet_id, packet, effect, ...)]
    model.rows()                            # -> [QueueRow], as /proc lists them
    model.device_down(2)                    # flush by device; hook_unregistered() flushes all
    sock.close()

Not modelled: two references to one unconfirmed connection (dropped at the queue's door), failing
allocations, other netfilter subsystems (EINVAL, as where their module is missing), connections
that outlive a packet, and what later hooks do with a packet that goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._ids import ID_MASK
from ._kernel_queue import HASH_LIMIT, KernelQueue
from ._kernel_records import (
    Arrival,
    Cause,
    Changes,
    Decision,
    Effect,
    Fate,
    PacketIn,
    QueueRow,
)
from ._kernel_requests import ENOTSUPP, Requests
from ._kernel_socket import DEFAULT_BUFFER_BYTES, KernelSocket
from .schema.nfqueue import QUEUE_BYPASS, QUEUE_NUMBER_SHIFT, VERDICT_MASK, VerdictCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BUCKETS = 16


class KernelModel:
    """nfnetlink_queue in one network namespace.

    Args:
      conntrack_glue: whether NFQA_CFG_F_CONNTRACK works (CONFIG_NETFILTER_NETLINK_GLUE_CT).
      secctx: whether NFQA_CFG_F_SECCTX works (CONFIG_NETWORK_SECMARK).
      flags_policy: unknown queue flags are refused while attributes are read, with EINVAL and an
        extended acknowledgement (7.1, net-next of April 2026); older kernels refuse them
        afterwards, with EOPNOTSUPP.
      hash_limit: most packets in a queue whatever its queue_maxlen, since the kernel finds them by
        a hash (7.0, and by backport 6.18.44: of 70,000 packets 65,536 waited, 4,464 counted as
        queue_dropped, and all took an id); None as before.
      requeue_repeats: whether a repeated packet comes to its queue again, or a function that says
        so of each (such as the rule's condition on a mark); otherwise it passes its hook.
      follow_queue: whether a packet that a verdict gives to a queue arrives there, or a function
        that says so of each; otherwise a target that nobody listens at goes unnoticed.
      complete_checksum: gives a packet's payload with the checksum that was left to the device;
        None leaves both as they are.
      first_id: id of the first packet after each bind; 1 in the kernel.
      on_decision: gets each `Decision`; None keeps them for `take_decisions`.
    """

    def __init__(
        self,
        *,
        conntrack_glue: bool = False,
        secctx: bool = False,
        flags_policy: bool = True,
        hash_limit: int | None = HASH_LIMIT,
        requeue_repeats: bool | Callable[[PacketIn], bool] = True,
        follow_queue: bool | Callable[[PacketIn], bool] = True,
        complete_checksum: Callable[[PacketIn], bytes] | None = None,
        first_id: int = 1,
        on_decision: Callable[[Decision], None] | None = None,
    ):
        self.conntrack_glue = conntrack_glue
        self.secctx = secctx
        self._hash_limit = hash_limit
        self._requeue_repeats = requeue_repeats
        self._follow_queue = follow_queue
        self._complete_checksum = complete_checksum
        self._first_sequence = (first_id - 1) & ID_MASK
        self._decisions: list[Decision] = []
        self._on_decision = on_decision or self._decisions.append
        self.queues: dict[int, KernelQueue] = {}
        self._sockets: dict[int, KernelSocket] = {}
        self._next_portid = 1000
        self._requests = Requests(self, flags_policy=flags_policy)

    # --- sockets

    def open_socket(
        self,
        portid: int | None = None,
        *,
        receive_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        receive_buffer_messages: int | None = None,
        send_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        privileged: bool = True,
    ) -> KernelSocket:
        """Open a socket in this namespace.

        Args:
          portid: its netlink port id; None takes the next free one, from 1000.
          receive_buffer_bytes: as SO_RCVBUF reads back, which is twice what was set.
          receive_buffer_messages: limit the receive queue by messages instead.
          send_buffer_bytes: as SO_SNDBUF reads back.
          privileged: whether it has CAP_NET_ADMIN in this namespace.

        Raises:
          ValueError: the port id is taken (the kernel: EADDRINUSE).
        """
        if portid is None:
            while self._next_portid in self._sockets:
                self._next_portid += 1
            portid = self._next_portid
        if portid in self._sockets:
            raise ValueError(f"port id {portid} is taken")
        sock = KernelSocket(
            portid,
            deliver=self._requests.receive,
            release=self._released,
            receive_buffer_bytes=receive_buffer_bytes,
            receive_buffer_messages=receive_buffer_messages,
            send_buffer_bytes=send_buffer_bytes,
            privileged=privileged,
        )
        self._sockets[portid] = sock
        return sock

    def _released(self, sock: KernelSocket) -> None:
        """nfqnl_rcv_nl_event: the queues of a closed socket go."""
        del self._sockets[sock.portid]
        for queue in [q for q in self.queues.values() if q.portid == sock.portid]:
            self.destroy(queue, Cause.CLOSE)

    # --- what the namespace does

    def enqueue(self, number: int, packet: PacketIn, *, bypass: bool = False) -> Arrival:
        """A rule gives a packet to a queue.

        Args:
          number: the rule's queue.
          packet: the packet.
          bypass: whether the rule lets it pass where nobody listens (--queue-bypass).

        Raises:
          ValueError: the packet's fixed id does not come after the queue's last fixed one.
        """
        queue = self.queues.get(number)
        if queue is None:
            return Arrival(Fate.BYPASSED if bypass else Fate.NO_LISTENER)
        return queue.arrive(packet)

    def queue(self, number: int) -> KernelQueue | None:
        """A bound queue, to look at."""
        return self.queues.get(number)

    def rows(self) -> list[QueueRow]:
        """/proc/net/netfilter/nfnetlink_queue, in its order: by hash bucket, newest first."""
        newest_first = reversed(self.queues.values())
        bucket = {q.number: ((q.number >> 8) ^ q.number) % _BUCKETS for q in self.queues.values()}
        return [q.row() for q in sorted(newest_first, key=lambda q: bucket[q.number])]

    def take_decisions(self) -> list[Decision]:
        """Decisions since the last call, where nobody else gets them (`on_decision`)."""
        taken = self._decisions[:]
        self._decisions.clear()
        return taken

    def device_down(self, ifindex: int) -> None:
        """A device went down: packets that came or go by it are dropped (nfqnl_dev_drop)."""
        for queue in list(self.queues.values()):
            self._flush(queue, queue.take_of_device(ifindex), Cause.DEVICE_DOWN)

    def hook_unregistered(self) -> None:
        """A netfilter hook went: every queue's packets are dropped (nfqnl_nf_hook_drop)."""
        for queue in list(self.queues.values()):
            self._flush(queue, queue.take_all(), Cause.HOOK_GONE)

    def bind(self, number: int, sock: KernelSocket) -> KernelQueue:
        """Create a queue (instance_create)."""
        queue = self.queues[number] = KernelQueue(
            number,
            sock.portid,
            sock.put_packet,
            id_sequence=self._first_sequence,
            hash_limit=self._hash_limit,
            complete_checksum=self._complete_checksum,
        )
        return queue

    def _flush(
        self, queue: KernelQueue, taken: Iterable[tuple[int, PacketIn]], cause: Cause
    ) -> None:
        for packet_id, packet in taken:
            self._on_decision(Decision(queue.number, packet_id, packet, Effect.DROPPED, cause))

    def destroy(self, queue: KernelQueue, cause: Cause) -> None:
        """Remove a queue at once; what waits in it is dropped (instance_destroy)."""
        del self.queues[queue.number]
        self._flush(queue, queue.take_all(), cause)

    # --- what verdicts come to

    def reinject(
        self,
        queue: KernelQueue,
        packet_id: int,
        packet: PacketIn,
        verdict: int,
        cause: Cause,
        changes: Changes,
    ) -> None:
        """nf_reinject: what a verdict's 32 bits come to.

        Only ACCEPT and REPEAT of exactly that value do what they say. With upper bits set, ACCEPT
        skips the remaining hooks as STOP does, and REPEAT drops.
        """
        code = verdict & VERDICT_MASK
        target: int | None = None
        bypass = False
        arrival: Arrival | None = None
        if verdict == VerdictCode.ACCEPT:
            effect = Effect.ACCEPTED
        elif verdict == VerdictCode.REPEAT:
            effect = Effect.REPEATED
            if _wanted(self._requeue_repeats, packet):
                effect, arrival = self._again(queue.number, packet, effect)
        elif code in (VerdictCode.ACCEPT, VerdictCode.STOP):
            effect = Effect.STOPPED
        elif code == VerdictCode.QUEUE:
            target, bypass = verdict >> QUEUE_NUMBER_SHIFT, bool(verdict & QUEUE_BYPASS)
            effect = Effect.REQUEUED
            if _wanted(self._follow_queue, packet):
                effect, arrival = self._again(target, packet, effect, bypass=bypass)
        else:
            effect = Effect.DROPPED
        self._on_decision(
            Decision(
                queue.number,
                packet_id,
                packet,
                effect,
                cause,
                verdict,
                changes,
                target,
                bypass,
                arrival,
            )
        )

    def _again(
        self, number: int, packet: PacketIn, effect: Effect, *, bypass: bool = False
    ) -> tuple[Effect, Arrival]:
        """A second arrival; the effect is what the packet's fate makes of it."""
        arrival = self.enqueue(number, packet._replace(packet_id=None), bypass=bypass)
        if arrival.fate == Fate.QUEUED:
            return effect, arrival
        return (Effect.ACCEPTED if arrival.fate.passes else Effect.DROPPED), arrival


def _wanted(choice: bool | Callable[[PacketIn], bool], packet: PacketIn) -> bool:
    return choice(packet) if callable(choice) else choice


__all__ = [
    "ENOTSUPP",
    "Arrival",
    "Cause",
    "Changes",
    "Decision",
    "Effect",
    "Fate",
    "KernelModel",
    "KernelQueue",
    "KernelSocket",
    "PacketIn",
    "QueueRow",
]
