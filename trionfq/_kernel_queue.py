"""One queue of the kernel model (struct nfqnl_instance, net/netfilter/nfnetlink_queue.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._ids import ID_MASK, id_after
from ._kernel_records import Arrival, Fate, PacketIn, QueueRow, unverified
from .schema import NLA_F_NESTED, Attr, Message
from .schema.nfnetlink import NFNETLINK_V0, Family
from .schema.nfqueue import MAX_COPY_RANGE, NFQA, CopyMode, Hook, MessageType, QueueFlags, SkbInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from .schema import Value

DEFAULT_MAX_LEN = 1024
"""NFQNL_QMAX_DEFAULT."""
HASH_LIMIT = 65_536
"""Twice NFQNL_HASH_MAX: most packets that a queue's table takes, whatever its queue_maxlen."""

_HALF_CIRCLE = 1 << 31
_N = {a.name: a.number for a in NFQA.attributes}
# Plain integers: an IntFlag takes a microsecond for every `&`.
_FAIL_OPEN = int(QueueFlags.FAIL_OPEN)
_GSO = int(QueueFlags.GSO)
_CSUMNOTREADY = int(SkbInfo.CSUMNOTREADY)
_INDEV = (_N["ifindex_indev"], _N["ifindex_physindev"])
_OUTDEV = (_N["ifindex_outdev"], _N["ifindex_physoutdev"])
_DEVICES = frozenset(_INDEV + _OUTDEV)
_MIDDLE = tuple(
    _N[name]
    for name in ("mark", "priority", "hwaddr", "vlan", "l2hdr", "timestamp", "uid", "gid",
                 "cgroup_classid", "secctx", "ct", "ct_info")
)  # fmt: skip
_ORDER = _INDEV + _OUTDEV + _MIDDLE
_BRIDGE_ORDER = _INDEV[::-1] + _OUTDEV[::-1] + _MIDDLE
_KNOWN = frozenset(_ORDER) | {_N[name] for name in ("packet_hdr", "cap_len", "skb_info", "payload")}
_NESTS = frozenset({_N["ct"], _N["vlan"]})
_WHERE_NOT_ZERO = frozenset({_N["mark"], _N["priority"], _N["cgroup_classid"]})
_BRIDGE_ONLY = frozenset({_N["vlan"], _N["l2hdr"]})
_OPTIONS = {
    _N["uid"]: int(QueueFlags.UID_GID),
    _N["gid"]: int(QueueFlags.UID_GID),
    _N["secctx"]: int(QueueFlags.SECCTX),
    _N["ct"]: int(QueueFlags.CONNTRACK),
    _N["ct_info"]: int(QueueFlags.CONNTRACK),
}
_CONDITIONAL = _WHERE_NOT_ZERO | _BRIDGE_ONLY | _OPTIONS.keys() | {_N["timestamp"], _N["hwaddr"]}


class KernelQueue:
    """A bound queue: its configuration, its counters and the packets that wait in it.

    Attributes:
      number: queue number.
      portid: port id of the owner.
      max_len: queue_maxlen, in packets.
      copy_mode: NONE at first, which drops everything uncounted.
      copy_range: most payload bytes copied.
      flags: QueueFlags.
      dropped: packets dropped as the queue was full.
      user_dropped: packets dropped as the owner's socket took none.
      id_sequence: id of the last packet; 0 before the first.
      held: the packets that wait, by id, in order of arrival; those of `arrive_sealed` unopened.
    """

    def __init__(
        self,
        number: int,
        portid: int,
        put: Callable[[Message], bool],
        *,
        id_sequence: int = 0,
        hash_limit: int | None = HASH_LIMIT,
        complete_checksum: Callable[[PacketIn], bytes] | None = None,
    ):
        self.number = number
        self.portid = portid
        self.max_len = DEFAULT_MAX_LEN
        self.copy_mode: int = CopyMode.NONE
        self.copy_range = MAX_COPY_RANGE
        self.flags = 0
        self.dropped = 0
        self.user_dropped = 0
        self.id_sequence = id_sequence
        self.held: dict[int, PacketIn | bytes] = {}
        self._put = put
        self._hash_limit = hash_limit
        self._complete_checksum = complete_checksum
        self._fixed: int | None = None
        self._open: Callable[[bytes], PacketIn] | None = None

    def row(self) -> QueueRow:
        """Its row of /proc."""
        return QueueRow(
            self.number,
            self.portid,
            len(self.held),
            self.copy_mode,
            self.copy_range,
            self.dropped,
            self.user_dropped,
            self.id_sequence,
        )

    def set_mode(self, mode: int, copy_range: int) -> None:
        """NFQA_CFG_PARAMS; an unknown mode changes nothing, and nobody is told (nfqnl_set_mode)."""
        if mode in (CopyMode.NONE, CopyMode.META):
            self.copy_mode, self.copy_range = mode, 0
        elif mode == CopyMode.PACKET:
            whole = copy_range == 0 or copy_range > MAX_COPY_RANGE
            self.copy_mode, self.copy_range = mode, MAX_COPY_RANGE if whole else copy_range

    def arrive(self, packet: PacketIn) -> Arrival:
        """Queue a packet, or each of its segments (nfqnl_enqueue_packet)."""
        if self.copy_mode == CopyMode.NONE:
            return Arrival(Fate.MODE_NONE)
        if not packet.segments or not packet.is_gso or self.flags & _GSO:
            fate, packet_id = self._arrive_one(packet)
            return Arrival(fate, () if packet_id is None else (packet_id,))
        ids: list[int] = []
        fates: list[Fate] = []
        for segment in packet.segments:
            fate, packet_id = self._arrive_one(segment)
            fates.append(fate)
            if packet_id is not None:
                ids.append(packet_id)
            elif not fate.passes:
                break  # the first segment that fails takes the rest with it
        if not ids:
            return Arrival(fates[0])
        passed = sum(fate.passes for fate in fates)
        lost = len(packet.segments) - len(ids) - passed
        return Arrival(Fate.QUEUED, tuple(ids), lost=lost, passed=passed)

    def _arrive_one(self, packet: PacketIn) -> tuple[Fate, int | None]:
        """__nfqnl_enqueue_packet: the id under which the packet waits, None where it does not."""
        shown = self._completed(packet)
        if len(self.held) >= self.max_len:
            return self._full(), None
        packet_id = self._next_id(packet)
        self.id_sequence = packet_id
        if self._hash_limit is not None and len(self.held) >= self._hash_limit:
            return self._full(), None
        self.held[packet_id] = packet if shown is packet else unverified(shown)
        if self._put(self.message(shown, packet_id)):
            return Fate.QUEUED, packet_id
        del self.held[packet_id]
        if self.flags & _FAIL_OPEN:
            return Fate.FAILED_OPEN, None
        self.user_dropped += 1
        return Fate.UNSENT, None

    def _full(self) -> Fate:
        if self.flags & _FAIL_OPEN:
            return Fate.FAILED_OPEN
        self.dropped += 1
        return Fate.FULL

    def _next_id(self, packet: PacketIn) -> int:
        packet_id = packet.packet_id
        if packet_id is None:
            return (self.id_sequence + 1) & ID_MASK
        if packet_id in self.held or (
            self._fixed is not None and not id_after(packet_id, self._fixed)
        ):
            raise ValueError(
                f"queue {self.number}: packet id {packet_id} does not come after {self.id_sequence}"
            )
        self._fixed = packet_id
        return packet_id

    def arrive_sealed(
        self, packets: Mapping[int, bytes], opened: Callable[[bytes], PacketIn]
    ) -> bool:
        """Queue packets that nobody needs to see yet, all of them or none.

        Nothing is put into the owner's socket: the caller has what `message` would give.

        Args:
          packets: at least one by id, ids rising, in any form that `opened` understands.
          opened: gives the packet, when it is looked at.

        Returns:
          False where not all find room, or an id does not come after those before.
        """
        ids = list(packets)
        first, last = ids[0], ids[-1]
        room = self.max_len if self._hash_limit is None else min(self.max_len, self._hash_limit)
        if (
            self.copy_mode == CopyMode.NONE
            or len(self.held) + len(packets) > room
            or (self._fixed is not None and not id_after(first, self._fixed))
            or not self.held.keys().isdisjoint(packets)
        ):
            return False
        self.held.update(packets)
        self.id_sequence = self._fixed = last
        self._open = opened
        return True

    def discard(self, ids: Collection[int]) -> bool:
        """Remove waiting packets unseen, all or none; False where one does not wait."""
        held = self.held
        if len(ids) == 1:
            return held.pop(next(iter(ids)), None) is not None
        distinct = set(ids)
        if len(distinct) < len(ids) or not held.keys() >= distinct:
            return False
        if len(ids) == len(held):
            held.clear()
        else:
            for packet_id in ids:
                del held[packet_id]
        return True

    def discard_up_to(self, last: int) -> int:
        """Remove what `take_up_to` would give, unseen; returns how many that were."""
        held = self.held
        if next(reversed(held), None) == last:
            every = list(held)
            # Ids that rise to the last one by less than half the circle are all before it.
            if last - every[0] < _HALF_CIRCLE and sorted(every) == every:
                held.clear()
                return len(every)
        gone: list[int] = []
        for packet_id in held:
            if 0 < (packet_id - last) & ID_MASK < _HALF_CIRCLE:  # id_after, without a call
                break
            gone.append(packet_id)
        if len(gone) == len(held):
            held.clear()
        else:
            for packet_id in gone:
                del held[packet_id]
        return len(gone)

    def take(self, packet_id: int) -> PacketIn | None:
        """Remove and give one waiting packet (find_dequeue_entry)."""
        packet = self.held.pop(packet_id, None)
        return None if packet is None else self._opened(packet)

    def _opened(self, packet: PacketIn | bytes) -> PacketIn:
        if isinstance(packet, PacketIn):
            return packet
        assert self._open is not None  # `arrive_sealed` brought both
        return self._open(packet)

    def take_up_to(self, last: int) -> list[tuple[int, PacketIn]]:
        """Remove and give packets, in order, up to the first that comes after `last`.

        The kernel compares by ``(int)(id - max) > 0`` (nfq_id_after), so a packet exactly half the
        circle away is taken too, which `id_after` says as well.
        """
        taken: list[tuple[int, PacketIn]] = []
        for packet_id, packet in self.held.items():
            if id_after(packet_id, last):
                break
            taken.append((packet_id, self._opened(packet)))
        return self._remove(taken)

    def take_of_device(self, ifindex: int) -> list[tuple[int, PacketIn]]:
        """Remove and give the packets that came or go by a device (dev_cmp)."""
        return self._remove(
            [
                (packet_id, packet)
                for packet_id, packet in self._all_opened()
                if any(packet.values.get(number) == ifindex for number in _DEVICES)
            ]
        )

    def take_all(self) -> list[tuple[int, PacketIn]]:
        """Remove and give all that waits (nfqnl_flush)."""
        return self._remove(self._all_opened())

    def _all_opened(self) -> list[tuple[int, PacketIn]]:
        return [(packet_id, self._opened(packet)) for packet_id, packet in self.held.items()]

    def _remove(self, taken: list[tuple[int, PacketIn]]) -> list[tuple[int, PacketIn]]:
        for packet_id, _packet in taken:
            del self.held[packet_id]
        return taken

    def message(self, packet: PacketIn, packet_id: int) -> Message:
        """The PACKET message of a packet, as nfqnl_build_packet_message writes it."""
        header: dict[str, int] = {
            "packet_id": packet_id,
            "hw_protocol": packet.ethertype,
            "hook": packet.hook,
        }
        listed = [Attr(_N["packet_hdr"], header), *self._described(packet)]
        payload = packet.payload if self.copy_mode == CopyMode.PACKET else b""
        if len(payload) > self.copy_range:
            payload = payload[: self.copy_range]
        if self.copy_mode == CopyMode.PACKET and packet.length > len(payload):
            listed.append(Attr(_N["cap_len"], packet.length))
        if info := packet.skb_info:
            listed.append(Attr(_N["skb_info"], info))
        listed += (Attr(*value) for value in packet.values.items() if value[0] not in _KNOWN)
        if payload:
            listed.append(Attr(_N["payload"], payload))
        return Message(
            MessageType.PACKET, 0, 0, 0, packet.family, NFNETLINK_V0, self.number, tuple(listed)
        )

    def _described(self, packet: PacketIn) -> Iterable[Attr]:
        values = packet.values
        for number in _BRIDGE_ORDER if packet.family == Family.BRIDGE else _ORDER:
            if number in values and (
                number not in _CONDITIONAL or self._shows(number, values[number], packet)
            ):
                yield Attr(number, values[number], NLA_F_NESTED if number in _NESTS else 0)

    def _shows(self, number: int, value: Value, packet: PacketIn) -> bool:
        if number in _WHERE_NOT_ZERO:
            return value != 0
        if number in _OPTIONS:
            return bool(self.flags & _OPTIONS[number])
        if number in _BRIDGE_ONLY:
            return packet.family == Family.BRIDGE
        if number == _N["timestamp"]:
            return packet.hook <= Hook.FORWARD
        return any(device in packet.values for device in _INDEV)  # hwaddr

    def _completed(self, packet: PacketIn) -> PacketIn:
        """Complete a checksum that was left to the device (nf_queue_checksum_help).

        Where nobody gave the model the means, the packet stays as it is, and SKB_INFO goes on
        saying so.
        """
        info = packet.skb_info
        if (
            self._complete_checksum is None
            or not info & _CSUMNOTREADY
            or self.copy_mode != CopyMode.PACKET
            or self.flags & _GSO
        ):
            return packet
        return packet._replace(payload=self._complete_checksum(packet)).changed(
            skb_info=info & ~_CSUMNOTREADY
        )
