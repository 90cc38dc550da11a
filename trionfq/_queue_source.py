"""One program's queue out of a capture of nfqueue traffic, such as tcpdump makes on nlmon."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trionfq._capture_bindings import Binding, Tracker, heads
from trionfq._capture_columns import ColumnReader, Columns
from trionfq._capture_stream import Tally
from trionfq._errors import CaptureError
from trionfq._record_source import RecordSource, opened
from trionfq.schema.nfnetlink import Subsystem

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Mapping


class Survey(NamedTuple):
    """What is in a capture of nfqueue traffic.

    Attributes:
      bindings: programs' times on queues, in the order in which they began.
      skipped: what is no nfqueue traffic, by kind.
    """

    bindings: tuple[Binding, ...]
    skipped: Mapping[str, int]


def survey(path: str | os.PathLike[str]) -> Survey:
    """Which programs were bound to which queues in a capture, and what else is in it.

    A file of ordinary packets has no bindings; what it has is in `Survey.skipped`.

    Raises:
      CaptureError: it is no capture, or malformed from some place on.
      OSError: it cannot be read.
    """
    tally = Tally()
    tracker = Tracker()
    with opened(path) as stream:
        for chunk in ColumnReader(stream, tally):
            for time_ns, direction, datagram, _notes in zip(*chunk, strict=True):
                if datagram and not tracker.take(direction, datagram, time_ns):
                    _count(tally, datagram)
    return Survey(tuple(binding for _, binding in tracker.bindings()), tally.counts())


class QueueSource(RecordSource):
    """What passed between one program and one queue, out of a capture of several.

    It is a source for `ReplayBackend`, and records for `transcript`. Where a queue was bound
    several times by the same program, all of that is in it. What is about other queues and
    programs, or no nfqueue message, is left out and counted in `skipped`.

    Args:
      path: the capture; it is read twice.
      queue: queue number, where there are several.
      port_id: netlink port id of the program's socket, where there are several programs; 0 for
        one that the capture does not tell.

    Raises:
      CaptureError: it is no capture; or the program and queue are not clear, or not in it: all that
        are in it are listed.
      OSError: it cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        queue: int | None = None,
        port_id: int | None = None,
    ) -> None:
        super().__init__()
        self._path = path
        tracker = Tracker()
        try:
            with opened(path) as stream:
                for chunk in ColumnReader(stream):
                    for time_ns, direction, datagram, _notes in zip(*chunk, strict=True):
                        tracker.take(direction, datagram, time_ns)
        except CaptureError:
            if not tracker.bindings():
                raise
            # The replay comes to it in its own time.
        every = tracker.bindings()
        chosen = [
            (place, binding)
            for place, binding in every
            if queue in (None, binding.queue) and port_id in (None, binding.port_id or 0)
        ]
        self.queue = _only(chosen, every)
        self._places = {place for place, binding in chosen if binding.queue == self.queue}

    def queues(self) -> set[int]:
        """The queue that was chosen."""
        return {self.queue}

    def columns(self) -> Generator[Columns, None, None]:
        """The records in columns; a pass of its own."""
        self._tally = Tally()
        tracker = Tracker()
        with opened(self._path) as stream:
            reader = ColumnReader(stream, self._tally)
            for chunk in reader:
                kept = []
                for record in zip(*chunk, strict=True):
                    time_ns, direction, datagram, notes = record
                    found = tracker.take(direction, datagram, time_ns)
                    if found & self._places:
                        kept.append(record)
                        continue
                    if datagram:
                        _count(self._tally, datagram)
                    if notes:
                        kept.append((time_ns, None, b"", notes))
                if kept:
                    yield Columns(*zip(*kept, strict=True))


def _count(tally: Tally, datagram: bytes) -> None:
    """Count what a datagram that is left out is."""
    head = next(heads(datagram), None)
    if head is None:
        tally.add("malformed netlink message")
    elif head.queue is None:
        tally.add("answer to another program")
    elif head.is_of_queues:
        tally.add("message of another queue or program")
    else:
        number = head.type >> 8
        names = {int(each): each.name for each in Subsystem}
        name = f" ({names[number]})" if number in names else ""
        tally.add(f"netfilter message of subsystem {number}{name}")


def _only(chosen: list[tuple[int, Binding]], every: list[tuple[int, Binding]]) -> int:
    """The queue that was chosen.

    Raises:
      CaptureError: none, or several.
    """
    if not every:
        raise CaptureError("no nfqueue traffic in it")
    if not chosen:
        raise CaptureError(f"not in it; there is {_listed(every)}")
    # A program that was given no packet leaves nothing open, unless there is no other.
    chosen = [each for each in chosen if each[1].packets] or chosen
    queues = {binding.queue for _, binding in chosen}
    if len(queues) > 1:
        raise CaptureError(f"several queues: name one by queue=; there is {_listed(chosen)}")
    if len({binding.port_id for _, binding in chosen}) > 1:
        raise CaptureError(f"several programs: name one by port_id=; there is {_listed(chosen)}")
    return queues.pop()


def _listed(bindings: Iterable[tuple[int, Binding]]) -> str:
    packets: dict[tuple[int, int | None], int] = {}
    for _, binding in bindings:
        key = binding.queue, binding.port_id
        packets[key] = packets.get(key, 0) + binding.packets
    return "; ".join(
        f"queue {queue} of {'an unnamed program' if port is None else f'port id {port}'} "
        f"({count} packets)"
        for (queue, port), count in packets.items()
    )
