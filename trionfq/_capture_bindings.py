"""Who was bound to which queue when, in a capture of several programs' traffic.

A PACKET message names its queue and nothing else: neither sender nor receiver stands in a capture.
That a binding begins shows by the request (BIND), its end by UNBIND or by the next BIND that was
not refused. Whose it is shows by the answer, which carries the port id of the socket that asked; a
program that asks for no answer may write its port id into the request, and else stays unnamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from trionfq._capture_record import ORDERS, byte_order
from trionfq._codec import decode
from trionfq._codec_derive import run_of
from trionfq._errors import RemoteProtocolError
from trionfq.schema import Direction, Message, by_name
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.netlink import HEADER, NLMSG_ALIGNTO, Type
from trionfq.schema.nfnetlink import NFGENMSG, Subsystem
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterator

_headers = {order: run_of(HEADER, order, "nlmsghdr") for order in ORDERS}
_generic = run_of(NFGENMSG, "big", "nfgenmsg")
_HEADER_BYTES: Final = _headers[HOST_ORDER].size
_ERROR_BYTES: Final = 4
_QUEUE: Final = int(Subsystem.QUEUE)
_MOST_ASKED: Final = 256
_MOST_BINDINGS: Final = 1 << 16
_OURS: Final = frozenset({int(Type.ERROR), int(Type.DONE)})


class Binding(NamedTuple):
    """A program's time on a queue.

    Attributes:
      queue: queue number.
      port_id: netlink port id of the program's socket, None where the capture does not tell.
      packets: how many the program was given.
      first_ns: time of the first packet, in nanoseconds since the epoch; None without packets.
      last_ns: of the last one.
    """

    queue: int
    port_id: int | None
    packets: int = 0
    first_ns: int | None = None
    last_ns: int | None = None


@dataclass
class _Bound:
    """A binding in the making; `place` is its number in the capture."""

    place: int
    queue: int
    port_id: int | None = None
    packets: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    refused: bool = False

    def told(self) -> Binding:
        return Binding(self.queue, self.port_id, self.packets, self.first_ns, self.last_ns)


class _Asked(NamedTuple):
    """A request that waits for its answer, which echoes its header."""

    header: bytes
    bound: _Bound
    begins: bool
    before: _Bound | None


class Head(NamedTuple):
    """The headers of one message.

    Attributes:
      type: nlmsg_type.
      flags: nlmsg_flags.
      seq: nlmsg_seq.
      port_id: nlmsg_pid.
      queue: the nfgenmsg's res_id; None in a message that has none.
      start: where it begins in the datagram.
      end: where it ends.
    """

    type: int
    flags: int
    seq: int
    port_id: int
    queue: int | None
    start: int
    end: int

    @property
    def is_of_queues(self) -> bool:
        """Whether it is a message of nfnetlink_queue."""
        return self.type >> 8 == _QUEUE


def heads(datagram: bytes) -> Iterator[Head]:
    """The messages of a datagram by their headers, as far as these are in order."""
    unpack = _headers[byte_order(datagram) or HOST_ORDER].unpack_from
    at, size = 0, len(datagram)
    while at + _HEADER_BYTES <= size:
        length, kind, flags, seq, port_id = unpack(datagram, at)
        end = at + length
        if length < _HEADER_BYTES or end > size:
            return
        queue = None
        if kind not in _OURS and length >= _HEADER_BYTES + _generic.size:
            _family, _version, queue = _generic.unpack_from(datagram, at + _HEADER_BYTES)
        yield Head(kind, flags, seq, port_id, queue, at, end)
        at = end + -length % NLMSG_ALIGNTO


class Tracker:
    """Follows the bindings of a capture, datagram by datagram.

    A crafted capture cannot make it grow without bound: bindings that are too many are one.
    """

    def __init__(self) -> None:
        self._all: list[_Bound] = []
        self._now: dict[int, _Bound] = {}
        self._asked: list[_Asked] = []

    def bindings(self) -> list[tuple[int, Binding]]:
        """All that were not refused, with their numbers in the capture."""
        return [(each.place, each.told()) for each in self._all if not each.refused]

    def take(self, direction: Direction | None, datagram: bytes, time_ns: int) -> set[int]:
        """The numbers of the bindings that a datagram is about, none where it is about no queue.

        The answer to a request is about what that was about, any other about all bindings of the
        socket that it went to. Requests that bind no queue have the number -1.
        """
        found: set[int] = set()
        for head in heads(datagram):
            if head.type == Type.ERROR:
                found |= self._answered(head, datagram)
            elif head.queue is None or not head.is_of_queues:
                continue
            elif head.type == MessageType.PACKET and direction is not Direction.TO_KERNEL:
                bound = self._bound(head.queue)
                bound.packets += 1
                bound.first_ns = time_ns if bound.first_ns is None else bound.first_ns
                bound.last_ns = time_ns
                found.add(bound.place)
            elif head.type == MessageType.CONFIG:
                found.add(self._configured(head, datagram).place)
            else:
                bound = self._bound(head.queue)
                if bound.port_id is None:
                    bound.port_id = head.port_id or None
                found.add(bound.place)
        return found

    def _bound(self, queue: int) -> _Bound:
        """The present binding of a queue; one that began before the capture is made here."""
        return self._now.get(queue) or self._begin(queue)

    def _begin(self, queue: int) -> _Bound:
        bound = _Bound(len(self._all), queue)
        if len(self._all) < _MOST_BINDINGS:
            self._all.append(bound)
        else:
            bound = self._now.get(queue, self._all[-1])
        self._now[queue] = bound
        return bound

    def _configured(self, head: Head, datagram: bytes) -> _Bound:
        assert head.queue is not None
        command = _command(datagram[head.start : head.end])
        before = self._now.get(head.queue)
        begins = command == ConfigCommand.BIND
        if begins:
            bound = self._begin(head.queue)
            bound.port_id = head.port_id or None
        elif command in (ConfigCommand.PF_BIND, ConfigCommand.PF_UNBIND):
            # About no queue, whatever number stands there.
            bound = _Bound(-1, head.queue)
        else:
            bound = self._bound(head.queue)
            if command == ConfigCommand.UNBIND:
                del self._now[head.queue]
        if len(self._asked) == _MOST_ASKED:
            del self._asked[0]
        header = datagram[head.start : head.start + _HEADER_BYTES]
        self._asked.append(_Asked(header, bound, begins, before))
        return bound

    def _answered(self, head: Head, datagram: bytes) -> set[int]:
        """The answer to a request to bind tells whose it was, and whether it was granted."""
        error_at = head.start + _HEADER_BYTES
        error = datagram[error_at : error_at + _ERROR_BYTES]
        header = datagram[error_at + _ERROR_BYTES :][:_HEADER_BYTES]
        # The kernel answers at once, so of equal requests it is the last one.
        asked = next((each for each in reversed(self._asked) if each.header == header), None)
        if asked is None:
            return {
                each.place for each in self._now.values() if each.port_id in (None, head.port_id)
            }
        self._asked.remove(asked)
        bound = asked.bound
        if not asked.begins:
            return {bound.place}
        if not any(error):
            bound.port_id = head.port_id
            return {bound.place}
        bound.refused = True
        if self._now.get(bound.queue) is bound:
            if asked.before is None:
                del self._now[bound.queue]
            else:
                self._now[bound.queue] = asked.before
        return {bound.place}


def _command(message: bytes) -> int | None:
    """The command in a CONFIG message, None where there is none or it cannot be read."""
    try:
        (config,) = decode(message, order=byte_order(message) or HOST_ORDER)
    except (RemoteProtocolError, ValueError):
        return None
    if not isinstance(config, Message):
        return None
    cmd = by_name(NFQA_CFG, config.attributes).get("cmd")
    return cmd["command"] if isinstance(cmd, dict) else None
