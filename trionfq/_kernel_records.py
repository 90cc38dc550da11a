"""What goes into the kernel model and what comes out, netlink aside.

A packet arrives as a `PacketIn`; what became of it at the queue's door is an `Arrival`, and what
became of it in the end a `Decision`. All are plain records.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from .schema.nfnetlink import Family
from .schema.nfqueue import NFQA, Hook, SkbInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .schema import Message, Value

_N = {a.name: a.number for a in NFQA.attributes}
_NO_VALUES: Mapping[int, Value] = MappingProxyType({})
_ETHERTYPES: dict[int, int] = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
_IPV6_HEADER_BYTES = 40
_NO_SHRINKING = 2**32 - 4
_SKB_INFO = _N["skb_info"]
_GSO = int(SkbInfo.GSO)


class QueueRow(NamedTuple):
    """One row of /proc/net/netfilter/nfnetlink_queue (seq_show, nfnetlink_queue.c).

    Counts begin with the binding and have 32 bits: behind 2**32 - 1 they go on from 0.

    Attributes:
      queue: queue number.
      portid: netlink port id of the owning socket; mostly a process id (`trionfq.queues`).
      queue_total: packets that wait for a verdict now, read by the program or not.
      copy_mode: 0 none, 1 meta, 2 packet.
      copy_range: most payload bytes copied, in bytes; 0 unless the mode is 2 (nfqnl_set_mode).
      queue_dropped: packets dropped since queue_maxlen was reached, which get no id, or since the
        table of ids of newer kernels was full. What fail-open let pass is not counted.
      user_dropped: packets dropped since the receive buffer was full: each is a gap in the ids.
      id_sequence: id of the last packet, a dropped one's included; 0 before the first.
    """

    queue: int
    portid: int
    queue_total: int
    copy_mode: int
    copy_range: int
    queue_dropped: int
    user_dropped: int
    id_sequence: int


class PacketIn(NamedTuple):
    """A packet that a rule hands to a queue, with all that the kernel knows of it.

    What user space gets to see of it follows from the queue's mode, range and flags.

    Attributes:
      payload: the packet from its network header on; a recorded one may be cut.
      family: NFPROTO_* of the hook.
      hook: where the packet is.
      hw_protocol: EtherType; None takes that of an IPv4 or IPv6 hook, 0 for another family.
      values: what else the kernel knows, by attribute number and in the schema's form: devices,
        mark, priority, hwaddr, vlan, l2hdr, timestamp, uid, gid, cgroup_classid, secctx, ct,
        ct_info and skb_info (as META mode would show it); an unknown number is passed on.
      original_length: bytes of the whole packet, where `payload` is cut.
      packet_id: the id that it must get (a replay keeps recorded ids and their gaps); None takes
        the queue's next.
      transport_offset: bytes in front of the transport header; a new payload that is shorter than
        the old one and than this drops the packet (nfqnl_mangle). None reads it from the network
        header.
      segments: what a GSO packet is cut into for a queue without NFQA_CFG_F_GSO. Without any, the
        model cannot cut and queues the packet whole.
      source: the caller's own; the model only hands it on.
    """

    payload: bytes = b""
    family: int = Family.IPV4
    hook: int = Hook.LOCAL_OUT
    hw_protocol: int | None = None
    values: Mapping[int, Value] = _NO_VALUES
    original_length: int | None = None
    packet_id: int | None = None
    transport_offset: int | None = None
    segments: tuple[PacketIn, ...] = ()
    source: object = None

    @classmethod
    def from_message(cls, message: Message, *, keep_id: bool, source: object = None) -> PacketIn:
        """The packet that a recorded PACKET message tells of.

        Args:
          message: the recorded message; it must have a packet_hdr.
          keep_id: whether it gets its recorded id again, or the queue's next.
          source: handed on.
        """
        values = {attribute.number: attribute.value for attribute in message.attributes}
        header = values.pop(_N["packet_hdr"])
        payload = values.pop(_N["payload"], b"")
        length = values.pop(_N["cap_len"], None)
        if not isinstance(header, dict) or not isinstance(payload, bytes):
            raise TypeError("expected a PACKET message as the schema gives it")
        return cls(
            payload,
            message.family,
            int(header["hook"]),
            int(header["hw_protocol"]),
            values,
            length if isinstance(length, int) else None,
            int(header["packet_id"]) if keep_id else None,
            source=source,
        )

    @property
    def length(self) -> int:
        """Bytes of the whole packet (skb->len)."""
        return len(self.payload) if self.original_length is None else self.original_length

    @property
    def ethertype(self) -> int:
        """What PACKET_HDR says; nfqnl_enqueue_packet sets it for the IP families."""
        return _ETHERTYPES.get(self.family, self.hw_protocol or 0)

    @property
    def least_payload(self) -> int:
        """Bytes that a shrunk payload must have (skb_transport_offset)."""
        if self.transport_offset is not None:
            return self.transport_offset
        if self.family == Family.IPV4 and self.payload:
            return (self.payload[0] & 0x0F) * 4
        if self.family == Family.BRIDGE and _N["vlan"] in self.values:
            # The tag was cut out behind the transport header's mark (skb_vlan_untag), so the
            # offset is -4, and the kernel compares it unsigned: no payload may shrink.
            return _NO_SHRINKING
        return _IPV6_HEADER_BYTES if self.family == Family.IPV6 else 0

    @property
    def is_gso(self) -> bool:
        """Whether it stands for several packets of the wire."""
        return bool(self.skb_info & _GSO)

    @property
    def skb_info(self) -> int:
        """State of its buffer, as SKB_INFO of a META copy would show it; 0 for none."""
        value = self.values.get(_SKB_INFO, 0)
        return value if isinstance(value, int) else 0

    def changed(self, **values: Value | None) -> PacketIn:
        """The same packet with other `values`, given by name; None leaves one as it is."""
        new = {_N[name]: value for name, value in values.items() if value is not None}
        return self._replace(values={**self.values, **new}) if new else self


def unverified(packet: PacketIn) -> PacketIn:
    """The packet with CHECKSUM_NONE: after a rewrite, or once its checksum was completed.

    Should it meet a queue again, SKB_INFO says so where the packet came in from outside
    (nfqnl_build_packet_message; also behind FORWARD, which the model cannot tell).
    """
    info = packet.skb_info & ~(SkbInfo.CSUMNOTREADY | SkbInfo.CSUM_NOTVERIFIED)
    if packet.hook <= Hook.FORWARD:
        info |= SkbInfo.CSUM_NOTVERIFIED
    return packet if info == packet.skb_info else packet.changed(skb_info=int(info))


class Fate(enum.Enum):
    """What became of a packet at a queue's door (nfqnl_enqueue_packet and nf_queue)."""

    QUEUED = "queued"
    FAILED_OPEN = "passed: full or not deliverable, NFQA_CFG_F_FAIL_OPEN"
    BYPASSED = "passed: no listener, the rule has queue-bypass"
    NO_LISTENER = "dropped: no listener"
    MODE_NONE = "dropped: copy mode NONE"
    FULL = "dropped: queue_maxlen reached (queue_dropped)"
    UNSENT = "dropped: the owner's socket did not take it (user_dropped)"

    @property
    def passes(self) -> bool:
        """Whether the packet goes its way without having been queued."""
        return self in (Fate.FAILED_OPEN, Fate.BYPASSED)


class Arrival(NamedTuple):
    """What `KernelModel.enqueue` did.

    Attributes:
      fate: what became of the packet; QUEUED if any segment of it was queued.
      ids: ids under which it, or its segments, wait.
      lost: segments that were dropped though an earlier one was queued.
      passed: segments that passed by fail-open though another one was queued.
    """

    fate: Fate
    ids: tuple[int, ...] = ()
    lost: int = 0
    passed: int = 0


class Effect(enum.Enum):
    """What became of a queued packet in the end."""

    ACCEPTED = "goes on to the next hook"
    DROPPED = "gone"
    REPEATED = "given to the same hook again"
    STOPPED = "sent on, the remaining hooks skipped"
    REQUEUED = "given to a queue"


class Cause(enum.Enum):
    """Who decided."""

    VERDICT = "NFQNL_MSG_VERDICT"
    BATCH = "NFQNL_MSG_VERDICT_BATCH"
    UNBIND = "the queue's owner unbound it"
    CLOSE = "the owner's socket was closed"
    DEVICE_DOWN = "one of the packet's devices went down"
    HOOK_GONE = "a netfilter hook of the namespace was unregistered"


class Changes(NamedTuple):
    """What a verdict asks to change in a packet, None where nothing.

    Attributes:
      mark: new skb->mark.
      priority: new skb->priority.
      payload: new payload as asked for; the effect tells whether it was long enough.
      conntrack: contents by CTA_* number, as far as the connection takes them; None where the
        packet has none, or the kernel no glue.
      expect: contents of NFQA_EXP, where the connection takes it.
      vlan: new VLAN tag as (protocol, tci); bridge family only.
      l2hdr: new link-layer header; bridge family only.
    """

    mark: int | None = None
    priority: int | None = None
    payload: bytes | None = None
    conntrack: Mapping[int, bytes] | None = None
    expect: bytes | None = None
    vlan: tuple[int, int] | None = None
    l2hdr: bytes | None = None


NO_CHANGES = Changes()


class Decision(NamedTuple):
    """The end of a packet's wait.

    Attributes:
      queue: queue number.
      packet_id: the id under which it waited.
      packet: the packet as it leaves, changes included.
      effect: what became of it.
      cause: who decided.
      verdict: all 32 bits as they took effect (DROP where a change failed), None where the kernel
        decided.
      changes: what the verdict asked to change.
      target: queue number of an NF_QUEUE verdict.
      bypass: whether that verdict lets the packet pass where nobody listens at the target.
      arrival: what happened at the queue that the packet was given to, None where to none.
    """

    queue: int
    packet_id: int
    packet: PacketIn
    effect: Effect
    cause: Cause
    verdict: int | None = None
    changes: Changes = NO_CHANGES
    target: int | None = None
    bypass: bool = False
    arrival: Arrival | None = None
