"""Answers of the kernel: whose request it was, and what of it is to be taken back."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from trionfq.conformance._requests import BOUND_ANEW, Request, Requests
from trionfq.conformance._shapes import EXTACK_SHAPE
from trionfq.conformance._walk import HEADER_BYTES, Header, attributes
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import MessageType

if TYPE_CHECKING:
    from trionfq.conformance._context import Context
    from trionfq.conformance._queues import QueueState
    from trionfq.schema import Order

ERROR_BYTES = 4
"""The error number of an NLMSG_ERROR; the header of the request follows."""
_ERROR_NUMBERS = {"little": struct.Struct("<i"), "big": struct.Struct(">i")}
_REQUESTS = {"little": struct.Struct("<IHHII"), "big": struct.Struct(">IHHII")}
# Plain integers: an IntFlag takes a microsecond for every `&`.
_CAPPED, _TLVS = int(MessageFlags.CAPPED), int(MessageFlags.ACK_TLVS)
_ENOTSUPP = 524


class Answers:
    """Judges the answers of one capture.

    Attributes:
      context: where findings go.
      queues: what is known of each queue.
      requests: those that may still be answered.
    """

    def __init__(self, context: Context, queues: dict[int, QueueState], requests: Requests) -> None:
        self.context = context
        self.queues = queues
        self.requests = requests

    def judge(self, datagram: bytes, header: Header, order: Order) -> None:
        """NLMSG_ERROR: what became of a request."""
        context = self.context
        start = header.at + HEADER_BYTES
        echo = start + ERROR_BYTES
        if header.end < echo + HEADER_BYTES:
            text = f"expected 20 bytes, got {header.end - start}"
            context.fault("NFQ112", start, "nlmsgerr", text)
            return
        number = _ERROR_NUMBERS[order].unpack_from(datagram, start)[0]
        if number > 0:
            context.fault("NFQ113", start, "nlmsgerr.error", f"error {number}")
            return
        length, type_, _flags, seq, _portid = _REQUESTS[order].unpack_from(datagram, echo)
        end = min(header.end, echo + HEADER_BYTES)
        if not header.flags & _CAPPED:
            end = min(header.end, echo + length)
        if header.flags & _TLVS:
            self._extack(datagram, header, order, echo + (end - echo + 3) // 4 * 4)
        request = self.requests.answered(type_, seq, datagram[echo:end], refused=bool(number))
        if request is None:
            if not self.requests.forgotten:
                text = f"type {type_:#x}, sequence number {seq}"
                context.fault("NFQ601", echo, "nlmsgerr.msg", text)
            return
        if number:
            self._refused(request, -number)
        elif request.before is not None:
            request.before.end(context, BOUND_ANEW)

    def _extack(self, datagram: bytes, header: Header, order: Order, start: int) -> None:
        attributes(
            datagram,
            start,
            header.end,
            EXTACK_SHAPE,
            order,
            self.context.fault,
            to_kernel=False,
        )

    def _refused(self, request: Request, number: int) -> None:
        """The kernel refused a request: say so, and take its effects back."""
        state = request.state
        if request.type == MessageType.CONFIG:
            self._config_refused(request, number)
        elif state is not None:
            self._verdict_refused(request, state, number)
        elif not request.explained:
            self._fault(request, "NFQ405", _name(number))

    def _config_refused(self, request: Request, number: int) -> None:
        state = request.state
        if number == errno.EBUSY:
            rule = "NFQ303"
        elif number == errno.ENODEV and request.settings_only:
            rule = "NFQ302"
        else:
            rule = "NFQ301"
        if not request.explained:
            self._fault(request, rule, _name(number))
        if state is None:
            return
        if not request.settings_only:
            if request.before is not None:
                self.queues[state.number] = request.before
                request.before.restore(list(state.waiting.values()))
            else:
                del self.queues[state.number]
        elif number == errno.ENODEV:
            state.bound = False

    def _verdict_refused(self, request: Request, state: QueueState, number: int) -> None:
        decided = request.decided
        if number == errno.ENOENT:
            nothing = "NFQ412" if request.type == MessageType.VERDICT_BATCH else "NFQ401"
            rule = "NFQ404" if decided else nothing
        elif number == errno.ENODEV:
            rule = "NFQ409"
        else:
            rule = "NFQ405"
        # A closing batch answers whatever waits, which may be nothing.
        closing = rule == "NFQ412" and request.unbinds
        if not request.explained and not closing:
            self._fault(request, rule, _name(number))
        # A wrong VLAN tag or link-layer header is found when the packet has left the queue.
        lost = number == errno.ENOENT or (number == errno.EINVAL and request.link_layer)
        if not lost and self.queues.get(state.number) is state:
            state.restore(decided)

    def _fault(self, request: Request, rule: str, text: str) -> None:
        queue = None if request.state is None else request.state.number
        field = "config" if request.type == MessageType.CONFIG else "NFQA_VERDICT_HDR"
        self.context.fault_at(
            request.place, rule, request.offset, field, text, queue, request.packet_id
        )


def _name(number: int) -> str:
    if number == _ENOTSUPP:
        return "the kernel answered ENOTSUPP"
    return f"the kernel answered {errno.errorcode.get(number, number)}"
