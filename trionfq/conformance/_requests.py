"""Requests that an answer may still come for, and what an answer says of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trionfq.schema.nfqueue import MessageType

if TYPE_CHECKING:
    from trionfq.conformance._context import Context, Place
    from trionfq.conformance._queues import QueueState, Waiting

_KEPT = 4096
_HEAD_BYTES = 48
BOUND_ANEW = "undecided when the queue was bound anew"


@dataclass(slots=True, eq=False)
class Request:
    """One request.

    Attributes:
      place: its message.
      offset: where it starts in its datagram.
      type: nlmsg_type.
      seq: nlmsg_seq.
      head: its first bytes, by which an echo is told from others of the same number.
      wants_answer: whether NLM_F_ACK is set.
      explained: whether a rule has said already why the kernel refuses it.
      settings_only: a CONFIG that needs a queue and does not make one.
      state: the queue.
      packet_id: the packet, None for a CONFIG.
      decided: packets that it decided.
      before: for a BIND the queue that was there.
      link_layer: whether a verdict changes the link-layer header or the VLAN tag.
      unbinds: whether a later message of its datagram unbinds its queue.
      answered: whether its answer has come.
    """

    place: Place
    offset: int
    type: int
    seq: int
    head: bytes
    wants_answer: bool
    explained: bool = False
    settings_only: bool = False
    state: QueueState | None = None
    packet_id: int | None = None
    decided: list[Waiting] = field(default_factory=list)
    before: QueueState | None = None
    link_layer: bool = False
    unbinds: bool = False
    answered: bool = False

    def unanswered(self, context: Context) -> None:
        """No answer came: report that if one was asked for, and what a BIND took away."""
        if self.before is not None and not self.answered:
            self.before.end(context, BOUND_ANEW)
        if self.wants_answer and not self.answered:
            queue = None if self.state is None else self.state.number
            text = f"sequence number {self.seq}"
            context.fault_at(
                self.place,
                "NFQ602",
                self.offset,
                "nlmsghdr.flags",
                text,
                queue,
                self.packet_id,
            )


class Requests:
    """The latest requests; the memory is bounded, whatever a capture holds."""

    def __init__(self) -> None:
        self._order: deque[Request] = deque()
        self._by_number: dict[tuple[int, int], deque[Request]] = {}
        self.forgotten = False

    def add(self, context: Context, request: Request, datagram: bytes) -> None:
        """A request went to the kernel."""
        request.head = datagram[request.offset : request.offset + _HEAD_BYTES]
        self._judge_number(context, request)
        self._order.append(request)
        self._by_number.setdefault((request.type, request.seq), deque()).append(request)
        while len(self._order) > _KEPT:
            oldest = self._order.popleft()
            if not oldest.answered:
                oldest.unanswered(context)
                self._forget(oldest)
                self.forgotten = True

    def _judge_number(self, context: Context, request: Request) -> None:
        """Whether the number is that of another packet's verdict, which may still be answered."""
        state = request.state
        if request.type != MessageType.VERDICT or state is None or state.numbers_told:
            return
        same = self._by_number.get((request.type, request.seq), ())
        if any(each.packet_id != request.packet_id for each in same if each.state is state):
            state.numbers_told = True
            text = f"sequence number {request.seq} again, packet {request.packet_id}"
            context.fault("NFQ603", request.offset + 8, "nlmsghdr.seq", text)

    def _forget(self, request: Request) -> None:
        key = (request.type, request.seq)
        same = self._by_number[key]
        same.remove(request)
        if not same:
            del self._by_number[key]

    def answered(self, type_: int, seq: int, echo: bytes, *, refused: bool) -> Request | None:
        """The request that an answer belongs to, which is then done with.

        Args:
          type_: type of the request, as the answer echoes it.
          seq: sequence number, likewise.
          echo: the request from its header on, as far as it was echoed.
          refused: whether the answer is an error; of several alike it is for one that was to be.
        """
        same = self._by_number.get((type_, seq))
        if not same:
            return None
        length = min(len(echo), _HEAD_BYTES)
        alike = [each for each in same if each.head[:length] == echo[:length]] or same
        found = next((each for each in alike if each.explained == refused), alike[0])
        found.answered = True
        self._forget(found)
        return found

    def end(self, context: Context) -> None:
        """The capture ends: report what was never answered."""
        for request in self._order:
            request.unanswered(context)
        self._order.clear()
        self._by_number.clear()
