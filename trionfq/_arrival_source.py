"""Where arrivals come from: records of any source, in columns, and the queues among them.

A run of packets can be looked at before it is passed over, so that whoever takes it needs no object
for each record, and whoever does not takes record by record.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from trionfq._capture_columns import OTHER_LINK_TYPE, Columns
from trionfq._capture_reader import open_capture
from trionfq._capture_record import Record, byte_order, make_record
from trionfq._codec import PacketReader
from trionfq._errors import CaptureError, RemoteProtocolError
from trionfq._record_source import RecordSource
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from typing import Self

    from trionfq.schema import Order

Source: TypeAlias = "str | os.PathLike[str] | Iterable[Record | bytes]"
"""A capture file, a `RecordSource`, or records, or PACKET datagrams; an iterator is read once, and
so can only tell that it has several queues when it comes to the second."""

# Items taken at a time, where nobody can notice: a caller's iterator is read one by one.
_STEP: Final = 512
_NONE: Final = Columns((), (), (), ())


class ReadAhead:
    """Records, read some at a time; what is wrong further on is raised when it is come to."""

    def __init__(self, source: Source) -> None:
        self._may_look_ahead = not isinstance(source, Iterator)
        self._source = columns(source)
        self._chunk = _NONE
        self._at = 0
        self._error: Exception | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        if self._at == len(self._chunk.times):
            self._read_on()
        if not self._chunk.times:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration
        at = self._at
        self._at += 1
        times, directions, datagrams, notes = self._chunk
        return make_record((times[at], directions[at], datagrams[at], notes[at]))

    def _read_on(self) -> None:
        self._chunk, self._at = _NONE, 0
        if self._error is None:
            try:
                self._chunk = next(self._source, _NONE)
            except Exception as error:
                self._error = error

    def ahead(self, limit: int) -> tuple[Sequence[int], Sequence[bytes]]:
        """Times and datagrams of the next records, without passing over them.

        They come from the kernel, and nothing was noted with them.

        Args:
          limit: most records wanted.
        """
        if self._at == len(self._chunk.times) and self._may_look_ahead:
            self._read_on()
        start, end = self._at, self._at + limit
        times, datagrams = self._chunk.times[start:end], self._chunk.datagrams[start:end]
        directions, notes = self._chunk.directions[start:end], self._chunk.notes[start:end]
        count = len(times)
        if directions.count(Direction.FROM_KERNEL) != count or any(notes):
            odd = (
                place
                for place, direction in enumerate(directions)
                if direction is not Direction.FROM_KERNEL or notes[place]
            )
            first = next(odd)
            return times[:first], datagrams[:first]
        return times, datagrams

    def skip(self, count: int) -> None:
        """Pass over records."""
        self._at += count

    def close(self) -> None:
        """Forget what was read, and let go of the file; harmless when repeated."""
        self._chunk, self._at = _NONE, 0
        self._source.close()


def columns(source: Source) -> Generator[Columns, None, None]:
    """The records of a source, a file kept open as long as it is read."""
    if isinstance(source, str | os.PathLike):
        with open_capture(source) as capture:
            yield from capture.columns
    elif isinstance(source, RecordSource):
        yield from source.columns()
    elif isinstance(source, Iterator):
        for item in source:
            yield _columns_of([item])
    elif isinstance(source, list | tuple):
        for start in range(0, len(source), _STEP):
            yield _columns_of(source[start : start + _STEP])
    else:
        items = iter(source)
        while True:
            chunk: list[Record | bytes] = []
            try:
                chunk.extend(islice(items, _STEP))
            except Exception:
                # What came before it comes first.
                if chunk:
                    yield _columns_of(chunk)
                raise
            if not chunk:
                return
            yield _columns_of(chunk)


def _columns_of(items: Sequence[Record | bytes]) -> Columns:
    count = len(items)
    kinds = set(map(type, items))
    if kinds == {bytes}:
        datagrams: Sequence[bytes] = items  # type: ignore[assignment]
        return Columns((0,) * count, (Direction.FROM_KERNEL,) * count, datagrams, ((),) * count)
    if kinds != {Record}:
        items = [
            item if isinstance(item, Record) else Record(0, Direction.FROM_KERNEL, item)
            for item in items
        ]
    return Columns(*zip(*items, strict=True))


def queues_of(source: Source) -> set[int]:
    """The queues whose packets are in a recording, as far as it can be read.

    Raises:
      CaptureError: the source is a file, and no capture; or one of other packets only.
      OSError: the file cannot be opened.
    """
    if isinstance(source, str | os.PathLike):
        with open_capture(source) as capture:
            found = _queues(capture.columns)
            if not found and (others := _other_packets(capture.skipped)):
                raise CaptureError(
                    f"no nfqueue traffic, but {others}: give trionfq.captures.PacketSource(path) "
                    "instead of the path to have ordinary packets replayed"
                )
            return found
    if isinstance(source, RecordSource):
        return source.queues()
    with closing(columns(source)) as chunks:
        return _queues(chunks)


def _other_packets(skipped: Mapping[str, int]) -> str:
    """The packets of other link types that were left out, listed."""
    kinds = [kind for kind in skipped if kind.startswith(OTHER_LINK_TYPE)]
    return ", ".join(f"{kind}: {skipped[kind]}" for kind in kinds)


def _queues(chunks: Iterable[Columns]) -> set[int]:
    found: set[int] = set()
    readers = {HOST_ORDER: PacketReader()}
    try:
        for _, directions, datagrams, _ in chunks:
            if directions.count(Direction.FROM_KERNEL) == len(directions):
                given = datagrams
            else:
                given = [
                    datagram
                    for datagram, direction in zip(datagrams, directions, strict=True)
                    if datagram and direction is not Direction.TO_KERNEL
                ]
            found.update(_queues_of_datagrams(given, readers))
    except CaptureError:
        pass  # the replay comes to it in its own time
    return found


def _queues_of_datagrams(
    datagrams: Sequence[bytes], readers: dict[Order, PacketReader]
) -> set[int]:
    if not datagrams:
        return set()
    reader = readers[HOST_ORDER]
    uniform = reader.uniform(datagrams)
    if uniform is not None:
        return {uniform[0].res_id}
    try:
        return {shape.res_id for shape in set(map(reader.shape, datagrams)) if shape is not None}
    except RemoteProtocolError:
        return set(_one_by_one(datagrams, readers))


def _one_by_one(datagrams: Iterable[bytes], readers: dict[Order, PacketReader]) -> Iterator[int]:
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
