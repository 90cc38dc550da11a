"""The judge: records in, findings out.

Three things are kept: the settings of each queue, the packets that wait, and the latest requests
that may still be answered. A request is followed as the kernel would do it, when it passes; an
answer that refuses it takes its effects back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from trionfq.conformance._answers import ERROR_BYTES, Answers
from trionfq.conformance._config import command_of, judge_config
from trionfq.conformance._context import Context, Message, Place
from trionfq.conformance._findings import Finding, Report, Totals
from trionfq.conformance._packets import judge_packet
from trionfq.conformance._requests import Request, Requests
from trionfq.conformance._shapes import OPERATION_SHAPES
from trionfq.conformance._verdicts import judge_verdict
from trionfq.conformance._walk import (
    GENMSG_BYTES,
    HEADER_BYTES,
    Attribute,
    Header,
    attributes,
    headers,
    order_of,
)
from trionfq.schema import Direction
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.netlink import MessageFlags, Type
from trionfq.schema.nfnetlink import NFNETLINK_V0, Subsystem
from trionfq.schema.nfqueue import NFQA, ConfigCommand, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trionfq.conformance._queues import QueueState
    from trionfq.conformance._shapes import OperationShape
    from trionfq.schema import Order

    AnyRecord: TypeAlias = tuple[int, Direction | None, bytes, Any]
    """Time in nanoseconds, direction, datagram, notes: as `trionfq.captures.Record`."""

# Plain integers: an IntFlag takes a microsecond for every `&`.
_REQUEST, _ACK = int(MessageFlags.REQUEST), int(MessageFlags.ACK)
_NESTS = tuple(NFQA.by_name[name].number for name in ("ct", "vlan", "exp"))
_FROM_KERNEL_TYPES = (Type.ERROR, Type.DONE, Type.OVERRUN, MessageType.PACKET)


class Judge:
    """Judges the records of one capture, in order.

    Attributes:
      totals: what was judged so far.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self._context = Context(self.totals)
        self._queues: dict[int, QueueState] = {}
        self._requests = Requests()
        self._answers = Answers(self._context, self._queues, self._requests)
        self._order: Order | None = None

    def feed(self, index: int, record: AnyRecord) -> list[Finding]:
        """Judge one record.

        Args:
          index: its place in the capture, from 0.
          record: the record; one without a datagram is passed over.
        """
        time_ns, direction, datagram, _notes = record
        if not datagram:
            return []
        self.totals.records += 1
        order = self._order_of(datagram, direction)
        faults: list[tuple[int, str, int, str, str]] = []
        found: list[Header] = []

        def framing(rule: str, offset: int, field: str, text: str) -> None:
            # Padding belongs to the message in front of it; the others are of the next one.
            number = len(found) - (rule == "NFQ211")
            faults.append((number, rule, offset, field, text))

        for header in headers(datagram, order, framing):
            found.append(header)
        foreign = [self._is_foreign(datagram, header, order) for header in found]
        self.totals.foreign += sum(foreign)
        if foreign and all(foreign):
            return []
        if direction is None:
            from_kernel = bool(found) and found[0].type in _FROM_KERNEL_TYPES
            direction = Direction.FROM_KERNEL if from_kernel else Direction.TO_KERNEL
        unbound = self._unbound(datagram, found, order)
        for number, header in enumerate(found):
            if not foreign[number]:
                self._context.at(Place(index, time_ns, direction, number))
                last = number == len(found) - 1
                self._message(datagram, header, order, unbound, last=last)
        for number, rule, offset, field, text in faults:
            self._context.at(Place(index, time_ns, direction, number))
            self._context.fault(rule, offset, field, text)
        return self._context.take()

    def finish(self) -> list[Finding]:
        """The capture is over: what is still open is reported."""
        for state in self._queues.values():
            state.end(self._context, "undecided when the capture ended")
        self._requests.end(self._context)
        return self._context.take()

    def _order_of(self, datagram: bytes, direction: Direction | None) -> Order:
        """The host's byte order: that of the first datagram, or of what the kernel sends since."""
        found = order_of(datagram)
        if found is not None and (self._order is None or direction is Direction.FROM_KERNEL):
            self._order = found
        return self._order or HOST_ORDER

    def _is_foreign(self, datagram: bytes, header: Header, order: Order) -> bool:
        """Whether a message is none of the queue subsystem, and no answer to one."""
        if header.type == Type.ERROR:
            request = header.at + HEADER_BYTES + ERROR_BYTES
            if request + HEADER_BYTES > header.end:
                return False
            type_ = int.from_bytes(datagram[request + 4 : request + 6], order)
            return type_ >> 8 != Subsystem.QUEUE
        return header.type >> 8 != Subsystem.QUEUE

    def _unbound(self, datagram: bytes, found: list[Header], order: Order) -> dict[int, int]:
        """Which message of a datagram of several is the last to unbind a queue, by its number."""
        if len(found) == 1:
            return {}
        last: dict[int, int] = {}
        for number, header in enumerate(found):
            if header.type == MessageType.CONFIG and header.length >= HEADER_BYTES + GENMSG_BYTES:
                message = self._read(datagram, header, order, silent=True)
                if command_of(message) == ConfigCommand.UNBIND:
                    last[message.queue] = number
        return last

    def _read(
        self, datagram: bytes, header: Header, order: Order, *, silent: bool = False
    ) -> Message:
        """A message that has room for its nfgenmsg."""
        operation = OPERATION_SHAPES[header.type & 0xFF]
        start = header.at + HEADER_BYTES + GENMSG_BYTES
        listed = attributes(
            datagram,
            start,
            header.end,
            operation.attributes,
            order,
            (lambda *_: None) if silent else self._context.fault,
            to_kernel=operation.direction is Direction.TO_KERNEL,
            operation=operation,
        )
        return Message(
            datagram,
            header,
            datagram[start - GENMSG_BYTES],
            int.from_bytes(datagram[start - 2 : start], "big"),
            listed,
            {one.number: one for one in listed},
        )

    def _message(
        self,
        datagram: bytes,
        header: Header,
        order: Order,
        unbound: dict[int, int],
        *,
        last: bool,
    ) -> None:
        context = self._context
        self.totals.messages += 1
        to_kernel = context.place.direction is Direction.TO_KERNEL
        if header.type == Type.ERROR and not to_kernel:
            self._answers.judge(datagram, header, order)
            return
        refusals = context.refusals
        request = Request(
            context.place,
            header.at,
            header.type,
            header.seq,
            b"",
            wants_answer=bool(header.flags & _ACK),
        )
        operation = self._operation(datagram, header, to_kernel=to_kernel)
        if operation is not None:
            if to_kernel and header.length % 4 and not last:
                context.fault("NFQ108", header.at, "nlmsghdr.len", f"{header.length} bytes")
            message = self._read(datagram, header, order)
            message.unbinds = unbound.get(message.queue, -1) > context.place.message
            request.unbinds = message.unbinds
            if to_kernel and context.refusals == refusals:  # else the kernel refuses it unread
                self._follow(message, operation, order, request)
            elif not to_kernel:
                self.totals.packets += judge_packet(context, message, self._queues)
        if to_kernel:
            request.explained = context.refusals > refusals
            self._requests.add(context, request, datagram)

    def _operation(
        self, datagram: bytes, header: Header, *, to_kernel: bool
    ) -> OperationShape | None:
        """What kind of message this is, None where the kernel would not look at what is in it."""
        context = self._context
        at, start = header.at + 4, header.at + HEADER_BYTES
        # In the kernel's order: netlink_rcv_skb, then nfnetlink_rcv_msg.
        if to_kernel and not header.flags & _REQUEST:
            context.fault("NFQ105", at + 2, "nlmsghdr.flags", f"{header.flags:#x}")
            return None
        if header.type == Type.ERROR:
            context.fault("NFQ114", at, "nlmsghdr.type", "NLMSG_ERROR")
            return None
        if header.length < HEADER_BYTES + GENMSG_BYTES:
            text = f"expected 4 bytes, got {header.end - start}"
            context.fault("NFQ104", start, "nfgenmsg", text)
            return None
        operation = OPERATION_SHAPES.get(header.type & 0xFF)
        if operation is None:
            context.fault("NFQ106", at, "nlmsghdr.type", f"type {header.type:#x}")
            return None
        if to_kernel != (operation.direction is Direction.TO_KERNEL):
            way = "to" if to_kernel else "from"
            context.fault("NFQ107", at, "nlmsghdr.type", f"{operation.name} {way} the kernel")
            return None
        context.queue = int.from_bytes(datagram[start + 2 : start + 4], "big")
        if (version := datagram[start + 1]) != NFNETLINK_V0:
            context.fault("NFQ110", start + 1, "nfgenmsg.version", f"version {version}")
        return operation

    def _follow(
        self, message: Message, operation: OperationShape, order: Order, request: Request
    ) -> None:
        if message.header.type == MessageType.CONFIG:
            judge_config(self._context, message, self._queues, request)
        else:
            judge_verdict(
                self._context,
                message,
                self._queues,
                request,
                batch=message.header.type == MessageType.VERDICT_BATCH,
                members=self._members(message, operation, order),
            )

    def _members(
        self, message: Message, operation: OperationShape, order: Order
    ) -> dict[int, list[Attribute]]:
        """What stands within the nests of a verdict, whose faults were told before."""
        found: dict[int, list[Attribute]] = {}
        for number in _NESTS:
            one = message.found.get(number)
            inside = operation.attributes.known[number].shape.inside
            if one is not None and inside is not None:
                found[number] = attributes(
                    message.datagram,
                    one.start,
                    one.end,
                    inside,
                    order,
                    lambda *_: None,
                    to_kernel=True,
                )
        return found


def judge_records(records: Iterable[AnyRecord]) -> Report:
    """Judge the records of one capture; see `trionfq.conformance.judge`."""
    judge = Judge()

    def findings() -> Iterator[Finding]:
        for index, record in enumerate(records):
            yield from judge.feed(index, record)
        yield from judge.finish()

    return Report(findings(), judge.totals)
