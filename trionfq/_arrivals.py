"""Arrivals: the packets of one queue of a recording, in order, ready to be replayed.

What the recorded program sent, and what the kernel answered to it, is left out: a replay has a
program of its own. Of the recorded configuration only one thing is kept, how much it let the
kernel tell, since no replay can tell more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trionfq._arrival_source import ReadAhead, queues_of
from trionfq._capture_record import byte_order
from trionfq._codec import PacketReader, decode, encode
from trionfq._errors import CaptureError, RemoteProtocolError
from trionfq.schema import Direction, Message, by_name
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.nfqueue import NFQA, NFQA_CFG, MessageType

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from trionfq._arrival_source import Source
    from trionfq._capture_record import Record
    from trionfq._codec import Shape
    from trionfq._notes import Note
    from trionfq.schema import Order, Value


class Arrival(NamedTuple):
    """A packet that was recorded.

    Attributes:
      time_ns: when, in nanoseconds since the epoch; 0 where the source has datagrams only.
      datagram: as recorded.
      order: byte order of the recorded host.
      shape: how it is laid out, None where it contradicts the schema.
      packet_id: its recorded id, None where that cannot be read either.
      overruns: overruns that were noted since the packet before.
      truncated: truncated datagrams that were noted since the packet before.
    """

    time_ns: int
    datagram: bytes
    order: Order
    shape: Shape | None
    packet_id: int | None
    overruns: int = 0
    truncated: int = 0

    @property
    def message(self) -> Message | None:
        """What it says, None where it contradicts the schema; decoded each time."""
        return None if self.shape is None else self.shape.message(self.datagram)


@dataclass
class RecordedSettings:
    """What the recorded program had the kernel tell, as far as the recording shows it.

    Attributes:
      copy_mode: the last copy mode asked for, None where no request was recorded.
      copy_range: the last copy range asked for, in bytes.
      flags: QueueFlags asked for.
    """

    copy_mode: int | None = None
    copy_range: int = 0
    flags: int = 0

    def take(self, config: Mapping[str, Value]) -> None:
        """Take over what a request says."""
        params, flags, mask = (config.get(name) for name in ("params", "flags", "mask"))
        if isinstance(params, dict):
            self.copy_mode, self.copy_range = params["copy_mode"], params["copy_range"]
        if isinstance(flags, int) and isinstance(mask, int):
            self.flags = self.flags & ~mask | flags & mask


class Arrivals:
    """An iterator of the packets of one queue.

    Args:
      source: see `Source`.
      queue: the recorded queue number; None takes the only one.

    Attributes:
      queue: the chosen queue, None while no packet has told.
      interface_names: names of interfaces by index, as far as notes have told them.
      settings: what the recorded program asked for so far.

    Raises:
      CaptureError: several queues and none named, or not the one that is named; they are listed.
        While iterating: the capture is malformed from here on.
      OSError: the file cannot be read.
    """

    def __init__(self, source: Source, queue: int | None = None) -> None:
        self.queue = queue
        self.interface_names: dict[int, str] = {}
        self.settings = RecordedSettings()
        self._named = queue is not None
        self._readers: dict[Order, PacketReader] = {}
        self._overruns = 0
        self._truncated = 0
        if not isinstance(source, Iterator):
            self.queue = _chosen(queues_of(source), queue)
        self._records = ReadAhead(source)
        # A datagram of several messages is not through.
        self._within = False
        self._found = self._read()

    def __iter__(self) -> Iterator[Arrival]:
        return self

    def __next__(self) -> Arrival:
        return next(self._found)

    def close(self) -> None:
        """Let go of the file; harmless when repeated."""
        self._found.close()
        self._records.close()

    def run(self, limit: int) -> tuple[Sequence[int], Sequence[bytes]]:
        """Times and datagrams of packets that come next, unread; `skip` passes over them.

        They come from the kernel and nothing was noted with them. Whether each is one packet of the
        chosen queue, in this host's byte order, is open.

        Args:
          limit: most packets wanted.
        """
        if self._within or self._overruns or self._truncated:
            return (), ()
        return self._records.ahead(limit)

    def skip(self, count: int) -> None:
        """Pass over packets that `run` gave."""
        self._records.skip(count)

    def reader(self) -> PacketReader:
        """The reader of packets in this host's byte order."""
        return self._reader(HOST_ORDER)

    def _read(self) -> Generator[Arrival, None, None]:
        for record in self._records:
            for note in record.notes:
                self._take_note(note)
            if not record.datagram:
                continue
            if record.direction is Direction.TO_KERNEL:
                self._take_request(record.datagram)
            else:
                yield from self._arrivals(record)

    def _arrivals(self, record: Record) -> Iterator[Arrival]:
        datagram = record.datagram
        order = byte_order(datagram) or HOST_ORDER
        reader = self._reader(order)
        try:
            shape = reader.shape(datagram)
            if shape is not None:
                if self._is_ours(shape.res_id):
                    packet_id = shape.packet_id(datagram)
                    yield self._arrival(record.time_ns, datagram, order, shape, packet_id)
                return
            messages = decode(datagram, order=order)
        except RemoteProtocolError:
            if self.queue is not None:
                salvaged = reader.salvage_id(datagram, self.queue)
                yield self._arrival(record.time_ns, datagram, order, None, salvaged)
            return
        self._within = True
        for each in messages:
            if isinstance(each, Message) and each.type == MessageType.PACKET:
                header = by_name(NFQA, each.attributes)["packet_hdr"]
                if self._is_ours(each.res_id) and isinstance(header, dict):
                    own = encode([each], order=order)
                    shape = reader.shape(own)
                    yield self._arrival(record.time_ns, own, order, shape, header["packet_id"])
        self._within = False

    def _reader(self, order: Order) -> PacketReader:
        reader = self._readers.get(order)
        if reader is None:
            reader = self._readers[order] = PacketReader(order=order)
        return reader

    def _is_ours(self, queue: int) -> bool:
        if self.queue is None:
            self.queue = queue
        elif queue != self.queue and not self._named:
            _only([self.queue, queue])
        return queue == self.queue

    def _arrival(
        self,
        time_ns: int,
        datagram: bytes,
        order: Order,
        shape: Shape | None,
        packet_id: int | None,
    ) -> Arrival:
        overruns, self._overruns = self._overruns, 0
        truncated, self._truncated = self._truncated, 0
        return Arrival(time_ns, datagram, order, shape, packet_id, overruns, truncated)

    def _take_note(self, note: Note) -> None:
        values = note.values
        count = values.get("count")
        if note.kind == "interface":
            index, name = values.get("index"), values.get("name")
            if isinstance(index, int) and isinstance(name, str):
                self.interface_names[index] = name
        elif note.kind == "overrun" and isinstance(count, int):
            self._overruns += max(0, count)
        elif note.kind == "truncated" and isinstance(count, int):
            self._truncated += max(0, count)

    def _take_request(self, datagram: bytes) -> None:
        """Keep what a recorded CONFIG asked for; whether it was granted is not looked at."""
        order = byte_order(datagram) or HOST_ORDER
        if MessageType.CONFIG.to_bytes(2, order) not in datagram:
            return  # cheap: most requests are verdicts
        try:
            messages = decode(datagram, order=order)
        except RemoteProtocolError:
            return
        for message in messages:
            if (
                isinstance(message, Message)
                and message.type == MessageType.CONFIG
                and self.queue in (None, message.res_id)
            ):
                self.settings.take(by_name(NFQA_CFG, message.attributes))


def _only(queues: Iterable[int]) -> int | None:
    """The one queue, None where there is none.

    Raises:
      CaptureError: there are several.
    """
    found = sorted(set(queues))
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise CaptureError(f"packets of several queues ({listed}): name the one to replay")
    return found[0] if found else None


def _chosen(found: set[int], queue: int | None) -> int | None:
    if queue is None:
        return _only(found)
    if found and queue not in found:
        listed = ", ".join(map(str, sorted(found)))
        raise CaptureError(f"no packets of queue {queue}, but of queue {listed}")
    return queue
