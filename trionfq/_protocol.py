"""Our side of an nfqueue, as a synchronous object without I/O.

Verdicts that wait to be sent are joined into one NFQNL_MSG_VERDICT_BATCH only if every id at or
below the batch's is decided, since the kernel's batch answers all of them (``nfqnl_recv_verdict_
batch``); the `Ledger` tells. Most verdicts are given in the order of arrival and leave by a short
way; any others are sorted by id and cut into equal runs.

The sequence number of a verdict is its packet's id (a batch: its highest), and an error echoes the
request's type and sequence number, so a refused verdict names its packet. Verdicts ask for no
acknowledgement: the kernel reports errors always, success only when asked (netlink_rcv_skb).
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_left
from collections import Counter, deque
from operator import is_not, itemgetter
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple

from trionfq._answers import binding_lost, explanation
from trionfq._codec import PacketReader, decode, encode
from trionfq._config import QueueConfig, changed_settings, queue_limits, settings
from trionfq._errors import (
    AlreadyDecidedError,
    KernelError,
    LocalProtocolError,
    RemoteProtocolError,
    VerdictRefusedError,
)
from trionfq._ids import ID_MASK, id_after
from trionfq._ledger import Ledger, Unsettled
from trionfq._packet import Packet, make_packets, verdict_of, verdicts_of
from trionfq._verdict import Decision, Verdict, plain_decision
from trionfq._verdict_conntrack import asked_of_conntrack
from trionfq._verdict_writer import VerdictWriter
from trionfq.schema import Attr, ErrorMessage, Message, attr
from trionfq.schema.netlink import NLMSG_ALIGNTO, MessageFlags
from trionfq.schema.nfqueue import (
    NFQA_CFG,
    VERDICT_MASK,
    ConfigCommand,
    MessageType,
    QueueFlags,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from trionfq._verdict import Changes

# The farthest id that the kernel's (int)(id - max) > 0 still takes for "at or below".
_FARTHEST = 2**31 - 1
_U32 = 0xFFFFFFFF
_ENDS_BINDING = frozenset({errno.EPERM, errno.ENODEV})
_PLAIN_ACCEPT = plain_decision(Verdict.ACCEPT)
_VERDICT_TYPES = frozenset({MessageType.VERDICT, MessageType.VERDICT_BATCH})
_UNDECODABLE_KEPT = 16
# Runs of equal verdicts shorter than this on average leave as single verdicts, in one pass.
_RUN = 4
# Sequence number of requests whose answer nobody waits for; `QueueProtocol` counts from 1.
_UNASKED = 0


class Refusal(NamedTuple):
    """Something that an error handler should know: what went wrong, and the packet if known."""

    error: Exception
    packet: Packet | None


class Counts:
    """What the protocol machine counts; `Queue.statistics` documents each."""

    def __init__(self) -> None:
        self.packets_received = 0
        self.undecodable = 0
        self.unexpected = 0
        self.kinds: Counter[int] = Counter()
        self.batches_sent = 0
        self.verdicts_gone = 0
        self.verdicts_refused = 0

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """Verdicts sent, by kind."""
        return {Verdict(kind): count for kind, count in self.kinds.items()}


class QueueProtocol:
    """One binding of one queue: from its BIND to its UNBIND.

    Attributes:
      config: the set-up that the kernel was asked for.
      policy: verdict for messages that cannot be decoded.
      thread: identity of the thread that may decide, 0 once the binding ended.
      counts: what was seen.
      failure: why the queue is unusable, None while it works.
      refusals: what an error handler has yet to be told.
      undecodable: the last messages that contradicted the schema.
      answers: the answer to the last configuration request by its sequence number, until taken.
      give: takes a packet that just got its verdict; the caller has checked it.
      interface_name: looks up a device's name.
      ended_error: makes the exception for a verdict after the binding ended.
      unseen: packets may wait in the kernel whose ids could not be read.
    """

    def __init__(
        self,
        config: QueueConfig,
        *,
        policy: Verdict = Verdict.DROP,
        inherited: bool = False,
        ledger: Iterable[int] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        interface_name: Callable[[int | None], str | None] = lambda _index: None,
        ended_error: Callable[[str], Exception] = LocalProtocolError,
    ) -> None:
        self.config = config
        self.thread = get_ident()
        self.policy = policy
        self.counts = Counts()
        self.failure: KernelError | None = None
        self.refusals: deque[Refusal] = deque()
        self.undecodable: deque[RemoteProtocolError] = deque(maxlen=_UNDECODABLE_KEPT)
        self.answers: dict[int, ErrorMessage] = {}
        self.interface_name = interface_name
        self.ended_error = ended_error
        self.clock_ns = clock_ns
        self._reader = PacketReader()
        self._given: list[Packet] = []
        self.give = self._given.append
        self._by_id: list[tuple[int, Decision]] = []
        self._explicit: list[bytes] = []
        self._closing: frozenset[int] = frozenset()
        # What the other process has read behind its last undecided packet is not lost.
        self._ledger = Ledger(ledger or (), counts_gaps=not inherited)
        # Without the ledger of the process that bound the queue, ids of packets that it has read
        # and not answered are unknown here, so no batch may sweep.
        self._may_batch = not inherited or ledger is not None
        self.unseen = not self._may_batch
        self._sequence = 0
        self._writer = VerdictWriter(config.number)

    # -- set-up --------------------------------------------------------------------------------

    def bind_request(self) -> tuple[int, bytes]:
        """The whole set-up in one message, and its sequence number.

        One message, since after a BIND alone the copy mode is NONE, which drops uncounted; and
        if the kernel refuses any part it leaves no queue behind (nfqnl_recv_config).
        """
        config = self.config
        command = {"command": ConfigCommand.BIND, "pf": 0}
        return self._config_request(attr(NFQA_CFG, "cmd", command), *settings(config))

    def reconfigure(
        self, config: QueueConfig, names: Collection[str] = QueueConfig._fields
    ) -> tuple[int, bytes]:
        """A request that changes these settings of the bound queue, and its sequence number."""
        self.config = config
        return self._config_request(*changed_settings(config, names))

    def _config_request(self, *attributes: Attr) -> tuple[int, bytes]:
        self._sequence = (self._sequence + 1) & ID_MASK or 1
        self.answers.clear()
        message = self._config_message(
            MessageFlags.REQUEST | MessageFlags.ACK, self._sequence, *attributes
        )
        return self._sequence, encode([message])

    def nudge(self) -> bytes:
        """A request that changes nothing, for the sake of its answer: it wakes who waits for one.

        A CONFIG without attributes only has queue and owner checked (nfqnl_recv_config).
        """
        flags = MessageFlags.REQUEST | MessageFlags.ACK
        return encode([self._config_message(flags, _UNASKED)])

    def _config_message(self, flags: int, sequence: int, *attributes: Attr) -> Message:
        return Message(MessageType.CONFIG, flags, sequence, 0, 0, 0, self.config.number, attributes)

    # -- what comes ----------------------------------------------------------------------------

    def receive(self, datagrams: Sequence[bytes]) -> list[Packet]:
        """Take datagrams, and give the packets among them in order.

        Answers go to `answers`, `refusals`, `failure` and `counts`. Nothing is raised: a message
        that contradicts the schema is kept in `undecodable`, and if its packet id can be read its
        packet is undecided, so that closing answers it.
        """
        now = self.clock_ns()
        if len(datagrams) == 1:
            lone = self._receive_lone(datagrams[0], now)
            if lone is not None:
                return [lone]
        elif datagrams:
            alike = self._reader.uniform(datagrams)
            if alike is not None and alike[0].res_id == self.config.number:
                shape, ids = alike
                return self._admit(ids, make_packets(ids, datagrams, shape, self, now))
        packets = self._read_one_by_one(datagrams, now)
        return self._admit([packet.id for packet in packets], packets) if packets else packets

    def _receive_lone(self, datagram: bytes, now: int) -> Packet | None:
        """The shortest way, for low load: the next packet by itself; None where it is not so."""
        ledger = self._ledger
        if ledger.settling:
            return None
        try:
            shape = self._reader.shape(datagram)
        except RemoteProtocolError:
            return None  # told on the other way
        if shape is None or shape.res_id != self.config.number:
            return None
        packet_id = shape.unpack_id(datagram)[0]
        packet = Packet(packet_id, datagram, shape, self, now)
        if not ledger.admit_next(packet):
            return None
        self.counts.packets_received += 1
        return packet

    def _read_one_by_one(self, datagrams: Sequence[bytes], now: int) -> list[Packet]:
        shape_of = self._reader.shape
        number = self.config.number
        packets: list[Packet] = []
        for datagram in datagrams:
            try:
                shape = shape_of(datagram)
            except RemoteProtocolError as error:
                self._cannot_decode(datagram, error)
                continue
            if shape is None or shape.res_id != number:
                packets += self._take_apart(datagram, now)
            else:
                packets.append(Packet(shape.unpack_id(datagram)[0], datagram, shape, self, now))
        return packets

    def _admit(self, ids: list[int], packets: list[Packet]) -> list[Packet]:
        """Enter packets into the ledger, and give those that may be handed out."""
        ledger = self._ledger
        if ledger.settling:
            ledger.settle_before(ids[-1])
        if ledger.admit(ids, packets):
            self.counts.packets_received += len(ids)
            return packets
        return [packet for packet in packets if self._admit_one(packet)]

    def _admit_one(self, packet: Packet) -> bool:
        if not self._ledger.admit_one(packet):
            error = RemoteProtocolError(
                f"packet id {packet.id} came again while it was undecided",
                datagram=packet.datagram,
                offset=0,
                path=("packet", "packet_hdr", "packet_id"),
            )
            self._note_undecodable(error)
            return False
        self.counts.packets_received += 1
        return True

    def _take_apart(self, datagram: bytes, now: int) -> list[Packet]:
        """Deal with a datagram that is not just one packet of this queue."""
        packets = []
        try:
            messages = decode(datagram)
        except RemoteProtocolError as error:
            self._cannot_decode(datagram, error)
            return []
        for message in messages:
            if isinstance(message, ErrorMessage):
                self._take_answer(message)
            elif (
                isinstance(message, Message)
                and message.type == MessageType.PACKET
                and message.res_id == self.config.number
            ):
                own = encode([message])
                shape = self._reader.shape(own)
                if shape is not None:
                    packets.append(Packet(shape.packet_id(own), own, shape, self, now))
            else:
                self.counts.unexpected += 1
        return packets

    def _note_undecodable(self, error: RemoteProtocolError) -> None:
        # Kept for long, so without tracebacks: their frames hold all packets read with this one.
        link: BaseException | None = error
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        self.counts.undecodable += 1
        self.undecodable.append(error)
        self.refusals.append(Refusal(error, None))

    def _cannot_decode(self, datagram: bytes, error: RemoteProtocolError) -> None:
        """Answer a message that cannot be shown to anybody, lest it stick in the kernel."""
        self._note_undecodable(error)
        packet_id = self._reader.salvage_id(datagram, self.config.number)
        if packet_id is not None and packet_id not in self._ledger.filed():
            self._ledger.advance(packet_id)
            self._by_id.append((packet_id, plain_decision(self.policy)))
        elif packet_id is None:
            self.unseen = True

    def _take_answer(self, answer: ErrorMessage) -> None:
        kind = answer.request[1]
        if kind == MessageType.CONFIG:
            if answer.seq == self._sequence:
                self.answers[answer.seq] = answer
            elif answer.error and self._closing and self.failure is None:
                operation = f"close queue {self.config.number}"
                self.failure = binding_lost(-answer.error, operation, answer)
        elif kind not in _VERDICT_TYPES:
            self.counts.unexpected += 1
        elif answer.error:
            self._refused(answer)

    def _refused(self, answer: ErrorMessage) -> None:
        code = -answer.error
        if code == errno.ENOENT:
            # Flushed by the kernel: a device went down, or a hooked table was deleted.
            self.counts.verdicts_gone += answer.seq not in self._closing
            self._ledger.unsettled.pop(answer.seq, None)
            return
        operation = f"verdict for packet {answer.seq} of queue {self.config.number}"
        if code in _ENDS_BINDING:
            if self.failure is None:
                self.failure = binding_lost(code, operation, answer)
            return
        self.counts.verdicts_refused += 1
        packet, told = self._ledger.unsettled.pop(answer.seq, (None, None))
        # A bad VLAN or L2HDR is found after the packet left the list; it is dropped
        # (nfqnl_recv_verdict), as is nothing else that is refused.
        gone = code == errno.EINVAL and told is not None and told.bridge
        if not gone:
            if packet is not None:
                packet.reopen()
            self._ledger.put_back(answer.seq, packet)
        error = VerdictRefusedError(
            code,
            operation,
            packet_id=answer.seq,
            dropped=gone,
            extack=explanation(answer),
        )
        self.refusals.append(Refusal(error, packet))

    @property
    def unsettled(self) -> bool:
        """Whether verdicts were given whose refusal may still come."""
        return bool(self._ledger.unsettled)

    @property
    def settling(self) -> bool:
        """Whether `settle_after` waits for its packet."""
        return self._ledger.settling

    def settled(self) -> None:
        """As `Ledger.settled`."""
        self._ledger.settled()

    def settle_after(self, packet_id: int) -> None:
        """As `Ledger.settle_after`."""
        self._ledger.settle_after(packet_id)

    # -- verdicts ------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Refuse a verdict after the end of the binding, or from another thread.

        Raises:
          RuntimeError: another thread than the one that opened the queue.
          Exception: what `ended_error` makes, once the binding ended.
        """
        if self.thread == get_ident():
            return
        if self.thread == 0:
            raise self.ended_error(f"the binding of queue {self.config.number} has ended")
        raise RuntimeError(
            "verdicts belong to the thread that runs trio: from another thread call "
            "trio.from_thread.run_sync(packet.accept)"
        )

    def check_conntrack(self, changes: Changes) -> None:
        """Refuse a conntrack change where the kernel might ignore it without a word.

        Raises:
          LocalProtocolError: the queue was not opened with QueueFlags.CONNTRACK, which the kernel
            accepts only where it can apply conntrack changes.
        """
        asked = asked_of_conntrack(changes)
        if asked and not self.config.flags & QueueFlags.CONNTRACK:
            raise LocalProtocolError(
                f"{asked[0]}: open the queue with flags=QueueFlags.CONNTRACK; without conntrack "
                "in netlink (module nf_conntrack_netlink) the kernel ignores this silently"
            )

    def decide_id(self, packet_id: int, told: Decision) -> None:
        """Take a verdict by id, where there is no packet object to ask.

        Raises:
          AlreadyDecidedError: the id has its verdict.
          LocalProtocolError: the id was never seen here, or is none.
          TypeError: it is not an integer.
        """
        check_id(packet_id)
        filed = self._ledger.filed()
        if packet_id in filed:
            del filed[packet_id]
        elif self._may_batch:
            last = self._ledger.last_id
            if last is None or id_after(packet_id, last):
                raise LocalProtocolError(
                    f"verdict: no packet {packet_id} has come from queue {self.config.number}"
                )
            raise AlreadyDecidedError(
                f"packet {packet_id} of queue {self.config.number} already has a verdict, or was "
                "never delivered; nothing was sent"
            )
        self._by_id.append((packet_id, told))

    def undecided_packet(self, packet_id: int) -> Packet | None:
        """The packet object of an undecided id, None where there is none."""
        return self._ledger.filed().get(packet_id)

    def decide_up_to(self, packet_id: int, told: Decision) -> int:
        """Give every undecided id at or below this one a verdict; returns how many.

        On a socket inherited without its ledger the kernel decides which those are, and 0 is
        returned.

        Raises:
          LocalProtocolError: beyond the last packet read, so packets nobody has seen would be
            answered; or no id at all.
          TypeError: it is not an integer.
        """
        check_id(packet_id)
        if not self._may_batch:
            self._explicit.append(self._writer.batch(packet_id, told))
            return 0
        last = self._ledger.last_id
        if last is None or id_after(packet_id, last):
            raise LocalProtocolError(
                f"batch verdict up to {packet_id}: the last packet read from queue "
                f"{self.config.number} is {last}; the rest would be answered unread"
            )
        count = 0
        for undecided_id, packet in list(self._ledger.filed().items()):
            if id_after(undecided_id, packet_id) or (packet is not None and packet.decided):
                continue
            if packet is None:
                self.decide_id(undecided_id, told)
            else:
                packet.settle(told)
            count += 1
        return count

    @property
    def pending(self) -> bool:
        """Whether verdicts wait to be sent."""
        return bool(self._given or self._by_id or self._explicit)

    def flush(self, most_bytes: int) -> list[bytes]:
        """The datagrams that carry the waiting verdicts, to be sent in order.

        Args:
          most_bytes: longest datagram wanted; a single message may be longer.
        """
        given = self._given
        if given and not self._by_id and not self._explicit:
            count = len(given)
            if count == 1 and (piece := self._flush_lone(given[0])):
                return [piece]
            fresh = self._ledger.fresh
            if given == (fresh if count == len(fresh) else fresh[:count]):
                datagrams = self._flush_fresh(verdicts_of(given), most_bytes)
                if datagrams:
                    return datagrams
        return _join(self._write_pending(self._take_pending(), most_bytes), most_bytes)

    def _flush_lone(self, packet: Packet) -> bytes:
        """The shortest way, for low load: one plain verdict of the oldest fresh packet, or none."""
        fresh = self._ledger.fresh
        told = verdict_of(packet)
        if not (fresh and fresh[0] is packet and told.plain):
            return b""
        piece = self._writer.single(packet.id, told)
        self.counts.kinds[told.code & VERDICT_MASK] += 1
        del fresh[0]
        self._given.clear()
        return piece

    def _flush_fresh(self, told: list[Decision], most_bytes: int) -> list[bytes]:
        """The short way: the oldest fresh packets got their verdicts in order. Empty if too short.

        Plain decisions that are equal are the same object (`plain_decision`).
        """
        count, first = len(told), told[0]
        swept = self._may_batch and self._ledger.only_fresh
        if told.count(first) == count:
            if not first.plain:
                return []
            if swept and count > 1:
                datagrams = [self._writer.batch(self._given[-1].id, first)]
                self.counts.batches_sent += 1
            else:
                ids = [packet.id for packet in self._given]
                datagrams = self._writer.singles(ids, told, most_bytes)
            self.counts.kinds[first.code & VERDICT_MASK] += count
        else:
            kinds = dict(zip(map(id, told), told, strict=True)).values()
            if any(kind.form != first.form or not kind.plain for kind in kinds):
                return []
            # Long runs are for batches; that is the other way.
            if swept and _RUN * sum(map(is_not, told, told[1:])) < count:
                return []
            ids = [packet.id for packet in self._given]
            datagrams = self._writer.singles(ids, told, most_bytes)
            for code, times in Counter([decision.code for decision in told]).items():
                self.counts.kinds[code & VERDICT_MASK] += times
        self._ledger.leave_fresh(count)
        self._given.clear()
        return _join(datagrams, most_bytes) if len(datagrams) > 1 else datagrams

    def _take_pending(self) -> list[tuple[int, Decision]]:
        """The waiting verdicts in the order of ids; they leave the ledger."""
        ledger = self._ledger
        filed = ledger.filed()
        pending = self._by_id[:]
        for packet, told in zip(self._given, verdicts_of(self._given), strict=True):
            pending.append((packet.id, told))
            filed.pop(packet.id, None)
            if told.bridge:
                ledger.unsettled[packet.id] = Unsettled(packet, told)
        for packet_id, told in self._by_id:
            if told.bridge:
                ledger.unsettled[packet_id] = Unsettled(None, told)
        self._given.clear()
        self._by_id.clear()
        # All live ids are at or below the last one read, so this orders them across the wrap.
        last = ledger.last_id or 0
        if not pending or max(map(itemgetter(0), pending)) <= last:
            pending.sort(key=itemgetter(0))
        else:
            pending.sort(key=lambda entry: (entry[0] - last - 1) & ID_MASK)
        self.counts.kinds.update([told.code & VERDICT_MASK for _, told in pending])
        return pending

    def _write_pending(self, pending: list[tuple[int, Decision]], most_bytes: int) -> list[bytes]:
        """Verdicts as messages: equal ones in a row as a batch, others in as few passes as can be.

        Plain decisions that are equal are the same object (`plain_decision`).
        """
        writer = self._writer
        lowest_open = self._ledger.lowest_open()
        pieces: list[bytes] = []
        ids: list[int] = []
        plain: list[Decision] = []

        def write_singles() -> None:
            if ids:
                pieces.extend(writer.singles(ids, plain, most_bytes))
                ids.clear()
                plain.clear()

        end = 0
        while end < len(pending):
            start, told = end, pending[end][1]
            end += 1
            while end < len(pending) and pending[end][1] is told:
                end += 1
            if not told.plain:
                write_singles()
                pieces.append(writer.single(pending[start][0], told))
                continue
            if end - start > 1:
                swept = self._sweepable(pending, start, end, lowest_open)
                if swept > start + 1:
                    write_singles()
                    self.counts.batches_sent += 1
                    pieces.append(writer.batch(pending[swept - 1][0], told))
                    start = swept
            if plain and told.form != plain[-1].form:
                write_singles()
            ids += [entry[0] for entry in pending[start:end]]
            plain += [told] * (end - start)
        write_singles()
        pieces += self._explicit
        self._explicit.clear()
        return pieces

    def _sweepable(
        self,
        pending: list[tuple[int, Decision]],
        start: int,
        end: int,
        lowest_open: int | None,
    ) -> int:
        """Up to where a run of verdicts may leave as one batch."""
        if not self._may_batch:
            return start
        if lowest_open is None or id_after(lowest_open, pending[end - 1][0]):
            return end
        return bisect_left(
            pending, True, start, end, key=lambda entry: not id_after(lowest_open, entry[0])
        )

    # -- the end -------------------------------------------------------------------------------

    def end(self, policy: Verdict, most_bytes: int) -> list[bytes]:
        """End the binding: the datagrams that answer everything, to be sent in order.

        For accept, one datagram without a gap in it: from its first message on, new packets pass
        by themselves (fail-open with no room), its second answers all that are queued, read or
        not, its third unbinds. For drop, unbinding is enough (nfqnl_flush).

        Args:
          policy: Verdict.ACCEPT or Verdict.DROP, for what is undecided.
          most_bytes: as `flush`.
        """
        datagrams = self.flush(most_bytes)
        pieces = []
        if policy is Verdict.ACCEPT:
            open_up = self.config._replace(
                max_len=0, flags=self.config.flags | QueueFlags.FAIL_OPEN
            )
            pieces.append(
                encode(
                    [self._config_message(MessageFlags.REQUEST, _UNASKED, *queue_limits(open_up))]
                )
            )
            everything = self._everything()
            pieces += [self._writer.batch(most, _PLAIN_ACCEPT) for most in everything]
            self._closing = frozenset(everything)
        unbind = {"command": ConfigCommand.UNBIND, "pf": 0}
        pieces.append(
            encode(
                [
                    self._config_message(
                        MessageFlags.REQUEST, _UNASKED, attr(NFQA_CFG, "cmd", unbind)
                    )
                ]
            )
        )
        datagrams += _join(pieces, most_bytes)
        self.release()
        return datagrams

    def _everything(self) -> list[int]:
        """Batch ids that together take every packet that the kernel may still hold.

        The kernel's walk stops at the first id that is more than 2**31 - 1 ahead of the batch's,
        so the batch counts from the lowest, not from the last. One that was never seen may be
        lower; then a first batch takes what is at or below the last.
        """
        last = self._ledger.last_id or 0
        if self.unseen:
            return [last, (last + _FARTHEST - 1) & ID_MASK]
        lowest = self._ledger.lowest_open()
        if lowest is None:
            lowest = (last + 1) & ID_MASK
        return [(lowest + _FARTHEST) & ID_MASK]

    def release(self) -> None:
        """End the binding without a word to the kernel: no packet can be decided any more."""
        self.thread = 0
        self._given.clear()
        self._by_id.clear()
        self._explicit.clear()
        self._ledger.clear()

    # -- looking in ----------------------------------------------------------------------------

    @property
    def last_id(self) -> int | None:
        """The last packet id read, None before the first."""
        return self._ledger.last_id

    @property
    def packets_lost(self) -> int:
        """Packet ids that were skipped: the kernel could not deliver them."""
        return self._ledger.lost

    @property
    def undecided_ids(self) -> list[int]:
        """Ids without a verdict, the oldest first: the ledger that an heir needs."""
        given = {packet.id for packet in self._given}
        return [packet_id for packet_id in self._ledger.in_order() if packet_id not in given]

    def undecided_packets(self) -> list[Packet]:
        """Packets without a verdict, the oldest first."""
        packets = self._ledger.in_order().values()
        return [p for p in packets if p is not None and not p.decided]


def _join(pieces: Iterable[bytes], most_bytes: int) -> list[bytes]:
    """As few datagrams as fit; a message starts at a multiple of four bytes (NLMSG_ALIGN)."""
    datagrams: list[bytearray] = []
    for piece in pieces:
        if datagrams:
            room = datagrams[-1]
            padding = -len(room) % NLMSG_ALIGNTO
            if len(room) + padding + len(piece) <= most_bytes:
                room += bytes(padding)
                room += piece
                continue
        datagrams.append(bytearray(piece))
    return [bytes(datagram) for datagram in datagrams]


def check_id(packet_id: int) -> int:
    """Return the number if it is a packet id.

    Raises:
      TypeError: not an integer.
      LocalProtocolError: not of 32 bits.
    """
    if not isinstance(packet_id, int):
        raise TypeError(f"packet id: expected an integer, got {type(packet_id).__name__}")
    if not 0 <= packet_id <= ID_MASK:
        raise LocalProtocolError(f"packet id: expected 0 to {ID_MASK:#x}, got {packet_id:#x}")
    return packet_id
