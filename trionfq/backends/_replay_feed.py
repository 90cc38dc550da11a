"""The kernel's side of a replay, without time: a recording, the kernel model, and a transcript.

Bytes go in and come out. What the program configures applies (the model sees to that), but no more
is given than was recorded: where that shows, it is counted in `shortfalls` and said once.

Recorded ids are kept. A recording may hold several bindings of its queue, each of which counted
from 1; for the replay, which is one, the later ones are shifted, so that ids go on rising.
"""

from __future__ import annotations

import errno
import logging
from array import array
from collections import Counter, deque
from itertools import islice
from operator import lt
from typing import TYPE_CHECKING, Final, NamedTuple

from trionfq._codec import decode, encode
from trionfq._errors import CaptureError
from trionfq._ids import ID_MASK, id_after
from trionfq._kernel_model import Fate, KernelModel, PacketIn
from trionfq._transcript import Transcript
from trionfq.backends._replay_forms import Forms
from trionfq.schema import Direction, Message
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.nfqueue import CopyMode, QueueFlags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionfq._arrivals import Arrival, Arrivals
    from trionfq._codec import Shape
    from trionfq._kernel_model import KernelQueue
    from trionfq.backends._replay_time import RecordedTime
    from trionfq.backends._sent_check import SentCheck
    from trionfq.backends._sent_runs import SentRun

_log = logging.getLogger("trionfq")

# The receive buffer is no part of a recording: what it lost is noted there, and played back.
_BUFFER_BYTES: Final = 1 << 40
# What a program may ask the kernel to tell, by what the recorded one must have asked.
# Plain integers: an IntFlag takes a microsecond for every `&`.
_TOLD: Final = {
    int(QueueFlags.UID_GID): "uid and gid",
    int(QueueFlags.SECCTX): "security contexts",
    int(QueueFlags.CONNTRACK): "conntrack",
}
_GSO: Final = int(QueueFlags.GSO)
_HALF_CIRCLE: Final = 1 << 31
# Longer datagrams are not worth it, and much longer ones the socket refuses.
_KNOWN_BYTES: Final = 65_536


class UnreadableError(CaptureError, OSError):
    """A capture that cannot be read further.

    An OSError as well (EIO): so the seam says that an endpoint has become unusable.
    """

    def __init__(self, error: CaptureError):
        super().__init__(str(error))
        self.offset = error.offset
        self.errno = errno.EIO


class _Arrived(NamedTuple):
    """Packets that arrived, for the transcript; `shift` is what their ids are off the recording."""

    queue: int
    ids: Sequence[int]
    times: Sequence[int]
    shift: int = 0


class _Passed(NamedTuple):
    """A datagram that passed, for the transcript."""

    datagram: bytes
    direction: Direction
    time_ns: int


def _compact(times: list[int]) -> Sequence[int]:
    try:
        return array("q", times)
    except OverflowError:
        return times  # a capture file may say so


class Feed:
    """What a replay knows, and what waits to be received.

    Attributes:
      arrivals: the recorded packets.
      model: the kernel.
      failure: why the capture cannot be read further, None while it can.
      shortfalls: packets that the program was told less of than it asked, by reason.
      overruns: overruns to be reported.
      truncated: truncated datagrams to be reported.
      decisions: packets whose wait has ended so far, by whatever cause.
    """

    def __init__(
        self, arrivals: Arrivals, check: SentCheck, *, keep_transcript: bool = True
    ) -> None:
        self.arrivals = arrivals
        self.model = KernelModel(
            conntrack_glue=True,
            secctx=True,
            # A packet's second arrival is in the recording as well.
            requeue_repeats=False,
            follow_queue=False,
            on_decision=self._decided,
        )
        self.socket = self.model.open_socket(
            receive_buffer_bytes=_BUFFER_BYTES, send_buffer_bytes=212_992
        )
        self.socket.ext_ack = self.socket.cap_ack = self.socket.no_enobufs = True
        self._transcript = Transcript()
        # What the transcript has not seen yet: packets that arrived, and datagrams either way.
        self._log: deque[_Arrived | _Passed] = deque(maxlen=None if keep_transcript else 0)
        self.failure: UnreadableError | None = None
        self.shortfalls: Counter[str] = Counter()
        self.overruns = 0
        self.truncated = 0
        self.decisions = 0
        self._check = check
        self._outgoing: deque[bytes] = deque()
        self._next: Arrival | None = None
        self._exhausted = False
        self._last_id: int | None = None
        self._shift = 0
        self._reader = arrivals.reader()
        self._forms = Forms(self._reader, self._is_unchanged)

    # -- what the program does -----------------------------------------------------------------

    def send(self, datagram: bytes, now_ns: int) -> None:
        """Take a datagram of the program's, and whatever it brings about.

        Raises:
          OSError: EMSGSIZE, ENODATA.
          WrongRequestError: it contradicts the schema; nothing of it was taken.
        """
        runs = self._check.runs(datagram) if len(datagram) <= _KNOWN_BYTES else None
        if runs is not None:
            for run in runs:
                if not self._settle(run):
                    self.socket.send(datagram[run.start : run.end])
            self._log.append(_Passed(datagram, Direction.TO_KERNEL, now_ns))
        elif self._check.messages(datagram):
            self.socket.send(datagram)
            self._log.append(_Passed(datagram, Direction.TO_KERNEL, now_ns))
        else:
            self.socket.send(datagram)
        self._collect(now_ns)

    def _settle(self, run: SentRun) -> bool:
        """Let verdicts end their packets' waits; False where the kernel may refuse one.

        They are as some that the kernel's reader has read, so only queue and ids are left to see
        to. What they change in packets that leave the replay nobody sees.
        """
        queue = self.model.queues.get(run.queue)
        if queue is None or queue.portid != self.socket.portid:
            return False
        if run.is_batch:
            count = queue.discard_up_to(run.ids[0])
        else:
            count = len(run.ids) if queue.discard(run.ids) else 0
        self.decisions += count
        return count > 0

    def take(self, limit: int) -> list[bytes]:
        """At most `limit` of the datagrams that wait."""
        outgoing = self._outgoing
        if len(outgoing) <= limit:
            taken = list(outgoing)
            outgoing.clear()
            return taken
        return [outgoing.popleft() for _ in range(min(limit, len(outgoing)))]

    @property
    def waiting(self) -> bool:
        """Whether a datagram waits to be taken."""
        return bool(self._outgoing)

    @property
    def transcript(self) -> Transcript:
        """What became of the packets so far; made when it is asked for."""
        while self._log:
            entry = self._log.popleft()
            if isinstance(entry, _Arrived):
                for packet_id, time_ns in zip(entry.ids, entry.times, strict=True):
                    recorded_id = (packet_id - entry.shift) & ID_MASK
                    self._transcript.arrived(entry.queue, packet_id, time_ns, recorded_id)
            else:
                for message in decode(entry.datagram):
                    self._transcript.seen(message, entry.direction, entry.time_ns)
        return self._transcript

    @property
    def queue(self) -> KernelQueue | None:
        """The queue that packets arrive at: the first that the program bound."""
        return next(iter(self.model.queues.values()), None)

    @property
    def held(self) -> int:
        """Packets without a verdict."""
        return sum(len(queue.held) for queue in self.model.queues.values())

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no further packet."""
        queue = self.queue
        return queue is not None and len(queue.held) >= queue.max_len

    # -- what the recording brings -------------------------------------------------------------

    def peek(self) -> Arrival | None:
        """The packet that comes next; None at the end, or where the capture fails."""
        if self._next is None and not self._exhausted:
            try:
                self._next = next(self.arrivals, None)
            except CaptureError as error:
                self.failure = UnreadableError(error)
            self._exhausted = self._next is None
        return self._next

    def deliver(self, now_ns: int) -> bool:
        """Let the next packet arrive; False where the queue did not take it.

        Raises:
          ValueError: there is none, or no queue is bound.
        """
        arrival, queue = self.peek(), self.queue
        if arrival is None or queue is None:
            raise ValueError("no packet that could arrive")
        self._next = None
        self.overruns += arrival.overruns
        self.truncated += arrival.truncated
        if self._deliver_unchanged(arrival, queue, now_ns):
            return True
        packet_id = self._replayed_id(arrival.packet_id)
        recorded = arrival.message
        if recorded is None:
            return self._deliver_malformed(arrival, queue, packet_id, now_ns)
        packet = PacketIn.from_message(recorded, keep_id=True)
        if packet_id != packet.packet_id:
            packet = packet._replace(packet_id=packet_id)
        if self.model.enqueue(queue.number, packet).fate is not Fate.QUEUED:
            return False
        message = self.socket.receive()
        assert isinstance(message, Message)
        if message == recorded and arrival.order == HOST_ORDER:
            self._outgoing.append(arrival.datagram)
        else:
            self._outgoing.append(encode([message]))
        if packet_id is not None:
            self._log.append(_Arrived(queue.number, (packet_id,), (now_ns,), self._shift))
        for reason in self._missing(packet, queue):
            self._fall_short(reason)
        return True

    def _deliver_unchanged(self, arrival: Arrival, queue: KernelQueue, now_ns: int) -> bool:
        """Let a packet arrive that is told exactly as it was recorded; False where that is open."""
        if self._shift or arrival.shape is None or arrival.order != HOST_ORDER:
            return False
        datagram = arrival.datagram
        ids = self._forms.unchanged((datagram,), queue.number, self._settings(queue))
        if not ids or not self._go_on(ids):
            return False
        if not queue.arrive_sealed({ids[0]: datagram}, self._open):
            return False
        self._last_id = ids[0]
        self._outgoing.append(datagram)
        self._log.append(_Arrived(queue.number, ids, (now_ns,)))
        return True

    def deliver_run(self, limit: int, time: RecordedTime) -> int:
        """Let packets arrive that are told exactly as they were recorded; returns how many.

        0 where the next one may not be such, or finds no room: `deliver` sees to it.

        Args:
          limit: most packets wanted.
          time: moves on with them.
        """
        queue, head = self.queue, self._next
        if queue is None or self._shift or self._exhausted:
            return 0
        limit = min(limit, queue.max_len - len(queue.held))
        if limit <= 0:
            return 0
        if head is not None and (
            head.overruns or head.truncated or head.order != HOST_ORDER or head.shape is None
        ):
            return 0
        times, datagrams = self.arrivals.run(limit if head is None else limit - 1)
        if head is not None:
            times, datagrams = (head.time_ns, *times), (head.datagram, *datagrams)
        number = self.arrivals.queue
        if not datagrams or number is None or number != queue.number:
            return 0
        ids = self._forms.unchanged(datagrams, number, self._settings(queue))
        if not ids or not self._go_on(ids):
            return 0
        count = len(ids)
        if count < len(times):
            times, datagrams = times[:count], datagrams[:count]
        if not queue.arrive_sealed(dict(zip(ids, datagrams, strict=True)), self._open):
            return 0
        self._next = None
        self.arrivals.skip(count - (head is not None))
        self._last_id = ids[-1]
        self._outgoing.extend(datagrams)
        self._log.append(_Arrived(number, array("I", ids), _compact(time.move_over(times))))
        return count

    def _go_on(self, ids: list[int]) -> bool:
        """Whether ids rise, from the last one on; across the wrap they are looked at singly."""
        rising = all(map(lt, ids, islice(ids, 1, None))) and ids[-1] - ids[0] < _HALF_CIRCLE
        return rising and (self._last_id is None or id_after(ids[0], self._last_id))

    def _settings(self, queue: KernelQueue) -> tuple[int | None, ...]:
        """All that decides, packets apart, what is told and what is missing."""
        recorded = self.arrivals.settings
        asked = queue.copy_mode, queue.copy_range, queue.flags
        return (queue.number, *asked, recorded.copy_mode, recorded.flags)

    def _is_unchanged(self, shape: Shape, datagram: bytes) -> bool:
        """Whether the kernel tells a packet as it was recorded, and all that was asked for."""
        queue = self.queue
        if queue is None:
            return False
        message = shape.message(datagram)
        packet = PacketIn.from_message(message, keep_id=True)
        told = queue.message(packet, shape.packet_id(datagram))
        return told == message and not self._missing(packet, queue)

    def _open(self, datagram: bytes) -> PacketIn:
        shape = self._reader.shape(datagram)
        assert shape is not None  # it was known when the packet arrived
        return PacketIn.from_message(shape.message(datagram), keep_id=True)

    def _deliver_malformed(
        self, arrival: Arrival, queue: KernelQueue, packet_id: int | None, now_ns: int
    ) -> bool:
        """Let a packet arrive whose message contradicts the schema, as it was recorded."""
        if queue.copy_mode == CopyMode.NONE:
            return False
        if packet_id is not None and packet_id == arrival.packet_id:
            packet = PacketIn(packet_id=packet_id)
            if self.model.enqueue(queue.number, packet).fate is not Fate.QUEUED:
                return False
            self.socket.receive()
            self._log.append(_Arrived(queue.number, (packet_id,), (now_ns,)))
        self._outgoing.append(arrival.datagram)
        return True

    def _replayed_id(self, recorded: int | None) -> int | None:
        """The id that a packet gets; ids that start anew are shifted."""
        if recorded is None:
            return None
        packet_id = (recorded + self._shift) & ID_MASK
        last = self._last_id
        if last is not None and not id_after(packet_id, last):
            self._shift = (last + 1 - recorded) & ID_MASK
            packet_id = (last + 1) & ID_MASK
            self._fall_short("packets whose ids start anew; the later ones are shifted")
        self._last_id = packet_id
        return packet_id

    def _decided(self, _decision: object) -> None:
        self.decisions += 1

    def _collect(self, now_ns: int) -> None:
        """Bring the kernel's answers to where the program takes them."""
        while (message := self.socket.receive()) is not None:
            datagram = encode([message])
            self._log.append(_Passed(datagram, Direction.FROM_KERNEL, now_ns))
            self._outgoing.append(datagram)

    # -- less than was asked for ---------------------------------------------------------------

    def _missing(self, packet: PacketIn, queue: KernelQueue) -> list[str]:
        """What the program asked for and the recording does not have."""
        found: list[str] = []
        asked = queue.copy_range if queue.copy_mode == CopyMode.PACKET else 0
        if len(packet.payload) < min(asked, packet.length):
            found.append("packets recorded with less payload than asked for")
        settings = self.arrivals.settings
        if asked and not packet.payload and settings.copy_mode == CopyMode.META:
            found.append("packets recorded without payload")
        if packet.is_gso and not queue.flags & _GSO:
            found.append("GSO packets that were not cut into segments")
        missing = queue.flags & ~settings.flags
        if missing and settings.copy_mode is not None:
            found += [f"packets recorded without {_TOLD[flag]}" for flag in _TOLD if missing & flag]
        return found

    def _fall_short(self, reason: str) -> None:
        if reason not in self.shortfalls:
            _log.warning("replay: there are %s", reason)
        self.shortfalls[reason] += 1
