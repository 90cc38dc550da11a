"""Where two runs part, packet by packet.

A run is a transcript: a replay's, a recording's own verdicts, or a file of either. Packets are
paired by the ids that they had in the recording, the second packet of an id (of a later binding)
with the second. Where each side has one queue, its number does not count, since a replay comes to
whatever queue its program binds.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from trionfq._capture_reader import open_capture
from trionfq._capture_record import Record, byte_order
from trionfq._codec import PacketReader
from trionfq._compare_text import describe, rewrite, values
from trionfq._errors import RemoteProtocolError
from trionfq._transcript_file import SUFFIXES, read_transcript
from trionfq._transcript_read import transcript
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from trionfq._transcript import Outcome
    from trionfq.schema import Order

Run: TypeAlias = "str | os.PathLike[str] | Iterable[Outcome]"
"""A transcript, or a file of one, or a capture, whose recorded verdicts are meant."""
Packets: TypeAlias = "str | os.PathLike[str] | Iterable[Record | bytes]"
"""A capture file, or records, or PACKET datagrams: where packets as they came are looked up."""

FIELDS: Final = ("verdict", "mark", "payload", "changes")
"""What two outcomes are compared by."""
_SHOWN: Final = 20


@dataclass(frozen=True)
class Difference:
    """One packet that became something else in two runs.

    Attributes:
      a: what became of it in the first, None where it did not come to it.
      b: likewise in the second.
      fields: what differs, of `FIELDS`; none where it came to one only.
      packet: the packet as it came, where it was looked up or known.
      names: what the runs are called in the text.
    """

    a: Outcome | None
    b: Outcome | None
    fields: tuple[str, ...]
    packet: bytes | None = None
    names: tuple[str, str] = ("a", "b")

    @property
    def recorded_id(self) -> int:
        """The packet's id in the recording, or in a run that is no replay."""
        found = self.a or self.b
        assert found is not None
        return found.packet_id if found.recorded_id is None else found.recorded_id

    def __str__(self) -> str:
        lines = [self._heading()]
        width = max(map(len, self.names))
        if self.a is None or self.b is None:
            absent = self.names[0] if self.a is None else self.names[1]
            lines.append(f"  did not come in {absent}")
        for name in self.fields:
            for label, outcome in zip(self.names, (self.a, self.b), strict=True):
                assert outcome is not None
                lines += [f"  {name:8} {label:{width}}  {each}" for each in values(name, outcome)]
            if name == "payload":
                lines += self._payloads()
        return "\n".join(lines)

    def _heading(self) -> str:
        found = self.a or self.b
        assert found is not None
        ids = f"packet {self.recorded_id}"
        for label, outcome in zip(self.names, (self.a, self.b), strict=True):
            if outcome is not None and outcome.packet_id != self.recorded_id:
                ids += f", {outcome.packet_id} in {label}"
        about = "" if self.packet is None else f": {describe(self.packet)}"
        return f"{ids} of queue {found.queue}{about}"

    def _payloads(self) -> list[str]:
        assert self.a is not None
        assert self.b is not None
        old = self.packet if self.a.payload is None else self.a.payload
        new = self.packet if self.b.payload is None else self.b.payload
        if old is None or new is None:
            return ["    (the packet itself is not known: give packets=)"]
        return rewrite(old, new, self.names)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; its text is a report.

    Attributes:
      packets: how many packets came in both runs.
      differences: those that differ, in order of arrival in the first run; what came to the second
        only stands at the end.
      names: what the runs are called.
    """

    packets: int
    differences: tuple[Difference, ...]
    names: tuple[str, str] = field(default=("a", "b"))

    @property
    def same(self) -> bool:
        """Whether the runs do not part."""
        return not self.differences

    def report(self, most: int = _SHOWN) -> str:
        """The differences as text.

        Args:
          most: how many are shown in full; the rest is counted.
        """
        a, b = self.names
        if self.same:
            return f"{a} and {b} agree on all {self.packets} packets"
        both = [each for each in self.differences if each.fields]
        lines = [f"{a} and {b} differ in {len(both)} of {self.packets} packets"]
        for label, absent in ((a, b), (b, a)):
            only = sum(self._only(each) == label for each in self.differences)
            if only:
                lines.append(f"{only} packets came in {label} and not in {absent}")
        lines += map(str, self.differences[:most])
        if len(self.differences) > most:
            lines.append(f"and {len(self.differences) - most} more")
        return "\n".join(lines)

    def _only(self, difference: Difference) -> str | None:
        if difference.a is None:
            return self.names[1]
        return self.names[0] if difference.b is None else None

    def __str__(self) -> str:
        return self.report()


class _Key(NamedTuple):
    """What a packet is found by: queue (where it counts), recorded id, and how often it came."""

    queue: int | None
    recorded_id: int
    occurrence: int


def compare(
    a: Run,
    b: Run,
    *,
    packets: Packets | None = None,
    names: tuple[str, str] = ("a", "b"),
    ignore: Collection[str] = (),
) -> Comparison:
    """Say where two policies, or a policy and the recorded verdicts, part.

    Args:
      a: a transcript (`ReplayBackend.transcript`, `transcript`), a file of one (`.jsonl`,
        `.parquet`), or a capture file, whose recorded verdicts are compared.
      b: likewise.
      packets: where to find the packets themselves, for the text; the capture among `a` and `b`
        if None.
      names: what to call the runs in the text.
      ignore: of ``verdict``, ``mark``, ``payload`` and ``changes``, what shall not count.

    Raises:
      CaptureError, RemoteProtocolError, OSError: a file cannot be read.
      ValueError: an unknown name in `ignore`.
    """
    unknown = set(ignore) - set(FIELDS)
    if unknown:
        raise ValueError(f"ignore: expected some of {', '.join(FIELDS)}, got {sorted(unknown)}")
    if packets is None:
        packets = next((run for run in (a, b) if _is_capture(run)), None)  # type: ignore[assignment]
    first, second = _outcomes(a), _outcomes(b)
    by_queue = max(len({each.queue for each in run}) for run in (first, second)) > 1
    ours, theirs = _keyed(first, by_queue=by_queue), _keyed(second, by_queue=by_queue)
    counted = [name for name in FIELDS if name not in ignore]
    found: dict[_Key, Difference] = {}
    for key, outcome in ours.items():
        other = theirs.get(key)
        fields = () if other is None else differing(outcome, other, counted)
        if other is None or fields:
            found[key] = Difference(outcome, other, fields, names=names)
    for key, outcome in theirs.items():
        if key not in ours:
            found[key] = Difference(None, outcome, (), names=names)
    if packets is not None and found:
        known = _look_up(packets, found, by_queue=by_queue)
        found = {key: replace(each, packet=known.get(key)) for key, each in found.items()}
    return Comparison(len(ours.keys() & theirs.keys()), tuple(found.values()), names)


def differing(a: Outcome, b: Outcome, fields: Collection[str] = FIELDS) -> tuple[str, ...]:
    """The names of what differs between two outcomes."""
    return tuple(name for name in fields if getattr(a, name) != getattr(b, name))


def _is_capture(run: Run) -> bool:
    return isinstance(run, str | os.PathLike) and Path(run).suffix not in SUFFIXES


def _outcomes(run: Run) -> list[Outcome]:
    if not isinstance(run, str | os.PathLike):
        return list(run)
    if not _is_capture(run):
        return read_transcript(run)
    with open_capture(run) as capture:
        return transcript(capture)


def _keyed(outcomes: Iterable[Outcome], *, by_queue: bool) -> dict[_Key, Outcome]:
    came: Counter[tuple[int | None, int]] = Counter()
    keyed = {}
    for outcome in outcomes:
        recorded = outcome.packet_id if outcome.recorded_id is None else outcome.recorded_id
        named = outcome.queue if by_queue else None, recorded
        keyed[_Key(*named, came[named])] = outcome
        came[named] += 1
    return keyed


def _look_up(
    source: Packets, wanted: Mapping[_Key, object], *, by_queue: bool
) -> dict[_Key, bytes]:
    """The packets themselves, as far as their source shows them."""
    ids = {key.recorded_id for key in wanted}
    came: Counter[tuple[int | None, int]] = Counter()
    found: dict[_Key, bytes] = {}
    for queue, packet_id, payload in _packets(source):
        if packet_id in ids:
            named = queue if by_queue else None, packet_id
            key = _Key(*named, came[named])
            came[named] += 1
            if key in wanted:
                found[key] = payload
    return found


def _packets(source: Packets) -> Iterator[tuple[int, int, bytes]]:
    """Queue, id and payload of each packet."""
    if isinstance(source, str | os.PathLike):
        with open_capture(source) as capture:
            yield from _packets(capture)
        return
    readers: dict[Order, PacketReader] = {}
    for item in source:
        datagram = item.datagram if isinstance(item, Record) else item
        if isinstance(item, Record) and item.direction is Direction.TO_KERNEL:
            continue
        order = byte_order(datagram) or HOST_ORDER
        if order not in readers:
            readers[order] = PacketReader(order=order)
        try:
            shape = readers[order].shape(datagram) if datagram else None
        except RemoteProtocolError:
            continue
        if shape is not None:
            payload = shape.read("payload", datagram)
            content = payload if isinstance(payload, bytes) else b""
            yield shape.res_id, shape.packet_id(datagram), content
