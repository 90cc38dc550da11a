"""Arrivals: the packets of one queue of a recording, in order, ready to be replayed.

What the recorded program sent, and what the kernel answered to it, is left out: a replay has a
program of its own. Of the recorded configuration only one thing is kept, how much it let the
kernel tell, since no replay can tell more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from trionfq._codec import PacketReader, decode, encode
from trionfq._errors import CaptureError, RemoteProtocolError
from trionfq.captures import Note, Record, byte_order, open_capture
from trionfq.schema import Direction, Message, by_name
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.nfqueue import NFQA, NFQA_CFG, MessageType

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from typing import Self

    from trionfq.schema import Order, Value

# Records read at a time, where nobody can notice: a caller's iterator is read one by one.
_READ_AHEAD: Final = 256

Source: TypeAlias = "str | os.PathLike[str] | Iterable[Record | bytes]"
"""A capture file, or records, or PACKET datagrams; what is no list is read once, and so can only
tell that it has several queues when it comes to the second."""


class Arrival(NamedTuple):
    """A packet that was recorded.

    Attributes:
      time_ns: when, in nanoseconds since the epoch; 0 where the source has datagrams only.
      datagram: as recorded.
      order: byte order of the recorded host.
      message: what it says, None where it contradicts the schema.
      packet_id: its recorded id, None where that cannot be read either.
      overruns: overruns that were noted since the packet before.
      truncated: truncated datagrams that were noted since the packet before.
    """

    time_ns: int
    datagram: bytes
    order: Order
    message: Message | None
    packet_id: int | None
    overruns: int = 0
    truncated: int = 0


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
            self.queue = _chosen(_queues_of(source), queue)
        step = 1 if isinstance(source, Iterator) else _READ_AHEAD
        self._source = _records(source)
        self._records = _ReadAhead(self._source, step)
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
        self._source.close()

    def run(self, limit: int) -> tuple[list[int], list[bytes]]:
        """Times and datagrams of packets that come next, unread; `skip` passes over them.

        They come from the kernel and nothing was noted with them. Whether each is one packet of the
        chosen queue, in this host's byte order, is open.

        Args:
          limit: most packets wanted.
        """
        if self._within or self._overruns or self._truncated:
            return [], []
        records = self._records.ahead(limit)
        if not records:
            return [], []
        times, directions, datagrams, notes = zip(*records, strict=True)
        end = len(records)
        if directions.count(Direction.FROM_KERNEL) != end or any(notes):
            end = next(
                place
                for place, record in enumerate(records)
                if record.direction is not Direction.FROM_KERNEL or record.notes
            )
        return [*times[:end]], [*datagrams[:end]]

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
                    message = shape.message(datagram)
                    yield self._arrival(record.time_ns, datagram, order, message, packet_id)
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
                    yield self._arrival(record.time_ns, own, order, each, header["packet_id"])
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
        message: Message | None,
        packet_id: int | None,
    ) -> Arrival:
        overruns, self._overruns = self._overruns, 0
        truncated, self._truncated = self._truncated, 0
        return Arrival(time_ns, datagram, order, message, packet_id, overruns, truncated)

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


class _ReadAhead:
    """Records, read some at a time; what is wrong further on is raised when it is come to."""

    def __init__(self, source: Iterator[Record], step: int) -> None:
        self._source = source
        self._step = step
        self._read: list[Record] = []
        self._at = 0
        self._error: Exception | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        if self._at == len(self._read):
            self._read_on()
        if not self._read:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration
        self._at += 1
        return self._read[self._at - 1]

    def _read_on(self) -> None:
        self._read = []
        self._at = 0
        if self._error is None:
            try:
                # What comes before an error stays in the list.
                self._read.extend(islice(self._source, self._step))
            except Exception as error:
                self._error = error

    def ahead(self, limit: int) -> list[Record]:
        """At most `limit` of the next records, without passing over them."""
        if self._at == len(self._read) and self._step > 1:
            self._read_on()
        return self._read[self._at : self._at + limit]

    def skip(self, count: int) -> None:
        """Pass over records."""
        self._at += count

    def close(self) -> None:
        """Forget what was read."""
        self._read = []
        self._at = 0


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


def _queues_of(source: Source) -> set[int]:
    if isinstance(source, str | os.PathLike):
        with open_capture(source) as capture:
            return _queues(capture)
    with closing(_records(source)) as records:
        return _queues(records)


def _queues(records: Iterable[Record]) -> set[int]:
    """The queues whose packets are in a recording, as far as it can be read."""
    found: set[int] = set()
    readers = {HOST_ORDER: PacketReader()}
    ahead = _ReadAhead(iter(records), _READ_AHEAD)
    try:
        while chunk := ahead.ahead(_READ_AHEAD):
            ahead.skip(len(chunk))
            datagrams = [
                record.datagram
                for record in chunk
                if record.datagram and record.direction is not Direction.TO_KERNEL
            ]
            uniform = readers[HOST_ORDER].uniform(datagrams) if datagrams else None
            if uniform is not None:
                found.add(uniform[0].res_id)
            else:
                found.update(_queues_one_by_one(datagrams, readers))
        next(ahead, None)  # raises what ended it
    except CaptureError:
        pass  # the replay comes to it in its own time
    return found


def _queues_one_by_one(
    datagrams: Iterable[bytes], readers: dict[Order, PacketReader]
) -> Iterator[int]:
    for datagram in datagrams:
        order = byte_order(datagram) or HOST_ORDER
        if order not in readers:
            readers[order] = PacketReader(order=order)
        try:
            shape = readers[order].shape(datagram)
        except RemoteProtocolError:
            continue
        if shape is not None:
            yield shape.res_id


def _records(source: Source) -> Generator[Record, None, None]:
    """The records of a source, a file kept open as long as it is read."""
    if isinstance(source, str | os.PathLike):
        with open_capture(source) as capture:
            yield from capture
        return
    for item in source:
        yield item if isinstance(item, Record) else Record(0, Direction.FROM_KERNEL, item)
