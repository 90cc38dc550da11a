"""Ordinary captures as what a queue would have told: packets of Ethernet, IP, NFLOG and others.

Each IP packet becomes one whole NFQNL_MSG_PACKET datagram with the attributes in the kernel's
order, so whatever reads them sees nothing new. What the file does not know (the hook, devices, a
mark) its user chooses; what it knows is taken over as the kernel would have told it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from trionfq._capture_columns import Columns, file_reader
from trionfq._capture_stream import ForwardReader, Interface, Remark, Tally
from trionfq._errors import CaptureError
from trionfq._frames import read_frame
from trionfq._ids import ID_MASK
from trionfq._link_types import link_type_text
from trionfq._network_packets import at_bridge_hook, at_ip_hook
from trionfq._notes import Note, read_note
from trionfq._packet_messages import MAX_TIME_NS, NAMES, PacketWriter
from trionfq._record_source import File, RecordSource, opened
from trionfq.schema import Direction, Value
from trionfq.schema.nfqueue import Hook
from trionfq.schema.pcapng import LinkType, PacketFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from trionfq._capture_stream import CapturedPacket
    from trionfq._pcap import PcapReader
    from trionfq._pcapng import PcapngReader
    from trionfq.schema import Order

_CHUNK: Final = 256
_MAX_NUMBER: Final = 0xFFFF
_MAX_U32: Final = 0xFFFFFFFF
_MAX_DEVICES: Final = 1 << 12
_IN_HOOKS: Final = frozenset({Hook.PRE_ROUTING, Hook.LOCAL_IN, Hook.FORWARD, Hook.INGRESS})
_NO_ATTRIBUTES: Final[Mapping[str, Any]] = {}
_DEVICES: Final = ("ifindex_indev", "ifindex_outdev", "ifindex_physindev", "ifindex_physoutdev")
_DIRECTION: Final = int(PacketFlags.INBOUND | PacketFlags.OUTBOUND)

Choice: TypeAlias = "Mapping[str, Value | None]"
"""Attributes of a packet by the schema's names, and ``hook``; None for one that is left out."""


class FoundPacket(NamedTuple):
    """A packet of a capture, before it is given to a queue.

    Attributes:
      time_ns: nanoseconds since the epoch.
      interface: where it was captured.
      family: protocol family of the hook: IPV4, IPV6 or BRIDGE.
      protocol: EtherType of the payload.
      payload: from the network header on, as far as it was captured.
      length: bytes of all of that.
      link_header: the Ethernet header, without tags; empty where there is none.
      hw_address: the sender's link-layer address, empty where there is none.
      tags: its VLAN tags as (EtherType, TCI), the outer one first.
      ifindex: index of the interface, where the packet itself tells one.
      outgoing: whether it was seen leaving the host, None where that is not told.
      told: what an NFLOG packet tells besides, by a queue's names, and ``hook``.
    """

    time_ns: int
    interface: Interface
    family: int
    protocol: int
    payload: bytes
    length: int
    link_header: bytes
    hw_address: bytes
    tags: tuple[tuple[int, int], ...]
    ifindex: int | None
    outgoing: bool | None
    told: Mapping[str, Value]


Choose: TypeAlias = "Callable[[FoundPacket], Choice | None]"


class PacketSource(RecordSource):
    """The packets of an ordinary capture file, as a queue would have told them.

    It is a source for `ReplayBackend`. Read are pcapng and pcap files, compressed ones too, of the
    link types Ethernet, raw IP, Linux cooked (both versions), BSD loopback and NFLOG. What is no IP
    packet, and what is of another link type, is left out and counted in `skipped`; where nothing
    else is in the file, that is an error.

    A packet is what the kernel's hook would see: at an IP hook without VLAN tags and without what
    follows the IP packet, at a bridge's with both, but for the outer tag, which is told apart.
    A packet that the file has in part, or that is too long for a netlink attribute, tells its
    length (``cap_len``).

    Args:
      source: a capture file; a binary stream is read once, and stays the caller's to close.
      queue: number of the queue that they are to be of.
      hook: where they are to be; None as NFLOG tells, else PRE_ROUTING.
      bridge: whether that is a hook of a bridge. Then any frame is a packet, with its link-layer
        header and VLAN tag where there are such.
      indev: input device, by index or name. None takes what the capture tells: NFLOG's, else the
        interface of the capture where the hook has an input device. 0 for none.
      outdev: output device, likewise, for hooks without an input device.
      physindev: input bridge port; None as NFLOG tells.
      physoutdev: output bridge port; None as NFLOG tells.
      mark: their mark; None as NFLOG tells, else 0.
      timestamps: whether packets at hooks up to FORWARD have the time of their capture.
      attributes: any others for all packets, by the schema's names, such as ``priority`` or
        ``skb_info``; None for one that is to be left out.
      choose: called with each `FoundPacket`; what it returns goes above all else, None leaves the
        packet out.

    Raises:
      ValueError: a number is out of range.
      TypeError: an unknown attribute.
    """

    def __init__(
        self,
        source: File,
        *,
        queue: int = 0,
        hook: int | None = None,
        bridge: bool = False,
        indev: int | str | None = None,
        outdev: int | str | None = None,
        physindev: int | str | None = None,
        physoutdev: int | str | None = None,
        mark: int | None = None,
        timestamps: bool = True,
        attributes: Choice = _NO_ATTRIBUTES,
        choose: Choose | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= queue <= _MAX_NUMBER:
            raise ValueError(f"queue: expected 0 to {_MAX_NUMBER}, got {queue}")
        self.queue = queue
        self._source = source
        self._bridge = bridge
        self._timestamps = timestamps
        self._choose = choose
        devices = (indev, outdev, physindev, physoutdev)
        # Indexes that are made up for names begin behind those that are given.
        self._last_index = max((each for each in devices if isinstance(each, int)), default=0)
        self._given_names: dict[int, str] = {}
        chosen: dict[str, Value | None] = {}
        if hook is not None:
            chosen["hook"] = int(Hook(hook))
        for name, device in zip(_DEVICES, devices, strict=True):
            if device is not None:
                chosen[name] = self._index(name, device) or None
        if mark is not None:
            chosen["mark"] = _u32("mark", mark) or None
        self._chosen: dict[str, Value | None] = {**chosen, **_checked(attributes)}

    def _index(self, what: str, device: int | str) -> int:
        if isinstance(device, int):
            return _u32(what, device)
        for index, name in self._given_names.items():
            if name == device:
                return index
        self._last_index += 1
        self._given_names[self._last_index] = device
        return self._last_index

    def queues(self) -> set[int]:
        """The queue that was chosen."""
        return {self.queue}

    def columns(self) -> Generator[Columns, None, None]:
        """The records in columns; a pass of its own."""
        self._tally = Tally()
        size = _CHUNK if isinstance(self._source, str | os.PathLike) else 1
        with opened(self._source) as stream:
            records = self._records(file_reader(ForwardReader(stream), self._tally))
            while True:
                chunk: list[tuple[Any, ...]] = []
                try:
                    for record in records:
                        chunk.append(record)
                        if len(chunk) == size:
                            break
                except Exception:
                    # What came before it comes first.
                    if chunk:
                        yield Columns(*zip(*chunk, strict=True))
                    raise
                if not chunk:
                    return
                yield Columns(*zip(*chunk, strict=True))

    def _records(self, reader: PcapngReader | PcapReader) -> Iterator[tuple[Any, ...]]:
        packet_id = 0
        left_out = Tally()
        devices = _Devices(self._given_names, self._last_index)
        writer = PacketWriter(self.queue)
        for packet in reader:
            if isinstance(packet, Remark):
                notes = tuple(map(read_note, packet.comments))
                yield packet.time_ns, None, b"", notes
                continue
            found = self._found(packet, reader.order)
            if isinstance(found, str):
                self._tally.add(found)
                left_out.add(found)
                continue
            choice = self._choose(found) if self._choose is not None else _NO_ATTRIBUTES
            if choice is None:
                self._tally.add("packet left out by choose")
                continue
            packet_id = (packet_id + 1) & ID_MASK
            notes = tuple(map(read_note, packet.comments)) if packet.comments else ()
            values = self._values(found, _checked(choice), devices)
            core = found.family, found.protocol, found.payload, found.length
            datagram = writer.write(core, packet_id, values)
            yield packet.time_ns, Direction.FROM_KERNEL, datagram, devices.named(values, notes)
        if packet_id == 0 and left_out.counts():
            raise CaptureError(_nothing(left_out.counts()))

    def _found(self, packet: CapturedPacket, order: Order) -> FoundPacket | str:
        """A packet as the hook sees it, or what it is instead."""
        time_ns, interface, data, original, flags, _comments = packet
        frame = read_frame(interface.link_type, data, order)
        if isinstance(frame, str):
            return frame
        see = at_bridge_hook if self._bridge else at_ip_hook
        seen = see(frame, data, max(original, len(data)))
        if isinstance(seen, str):
            return seen
        family, frame, payload, length = seen
        outgoing = frame.outgoing
        if outgoing is None and flags & _DIRECTION:
            outgoing = flags & _DIRECTION == PacketFlags.OUTBOUND
        return FoundPacket(
            time_ns,
            interface,
            family,
            frame.protocol,
            payload,
            length,
            frame.header,
            frame.address,
            frame.tags,
            frame.ifindex,
            outgoing,
            frame.told,
        )

    def _values(self, found: FoundPacket, choice: Choice, devices: _Devices) -> dict[str, Any]:
        """What is to be said of a packet: what the file tells, and above that what was chosen."""
        chosen = {**self._chosen, **choice}
        values: dict[str, Any] = {"hook": Hook.PRE_ROUTING, **found.told}
        hook = chosen.get("hook", values["hook"])
        if "ifindex_indev" not in values and "ifindex_outdev" not in values:
            name = "ifindex_indev" if hook in _IN_HOOKS else "ifindex_outdev"
            if name not in chosen:
                values[name] = found.ifindex or devices.index(found.interface)
        values.setdefault("hwaddr", found.hw_address or None)
        if self._bridge:
            values |= {"vlan": found.tags[0] if found.tags else None, "l2hdr": found.link_header}
        if not self._timestamps:
            values["timestamp"] = None
        elif 0 < found.time_ns <= MAX_TIME_NS:
            values.setdefault("timestamp", found.time_ns)
        return {**values, **chosen}


class _Devices:
    """Indexes for interfaces that have none, and whose names have been told.

    Args:
      names: names that were given, by index.
      last: the greatest index that was given.
    """

    def __init__(self, names: Mapping[int, str], last: int) -> None:
        self._untold = dict(names)
        self._last = last
        self._indexes: dict[str | int, int] = {}

    def index(self, interface: Interface) -> int:
        """The index of an interface of the capture; 0 where there are too many."""
        key = interface.name or interface.number
        index = self._indexes.get(key)
        if index is None:
            if len(self._indexes) == _MAX_DEVICES:
                return 0
            self._last += 1
            index = self._indexes[key] = self._last
            if interface.name:
                self._untold[index] = interface.name
        return index

    def named(self, values: Mapping[str, Any], notes: tuple[Note, ...]) -> tuple[Note, ...]:
        """Notes of a packet, with the names of its devices where it is the first to have them."""
        for name in _DEVICES:
            told = self._untold.pop(values.get(name) or 0, None) if self._untold else None
            if told is not None:
                notes = (Note("interface", {"index": values[name], "name": told}), *notes)
        return notes


def _u32(what: str, number: int) -> int:
    if not 0 <= number <= _MAX_U32:
        raise ValueError(f"{what}: expected 0 to {_MAX_U32}, got {number}")
    return number


def _checked(choice: Choice) -> Choice:
    for name in choice:
        if name not in NAMES:
            raise TypeError(
                f"a packet has no {name!r} to choose; there are {', '.join(sorted(NAMES))}"
            )
    return choice


def _nothing(left_out: Mapping[str, int]) -> str:
    """What is wrong with a capture that has no packet for a queue."""
    listed = ", ".join(f"{kind}: {count}" for kind, count in left_out.items())
    text = f"no packet for a queue, but {listed}"
    if f"packet of {link_type_text(LinkType.NETLINK)}" in left_out:
        text += " (which is what queues told: replay the file itself)"
    return text
