"""What waits in the kernel behind a faulty backend, and what becomes of it there by faults.

What the kernel would have dropped is dropped by a verdict made here. Such a request carries a port
id of its own, which the kernel does not look at and an error echoes, so that its answer reaches
nobody.
"""

from __future__ import annotations

import errno
import sys
from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from trionfq._codec import decode, encode
from trionfq._errors import RemoteProtocolError
from trionfq._ids import id_after
from trionfq.schema import Attr, ErrorMessage, Message, attr, by_name
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA, NFQA_CFG, ConfigCommand, MessageType, VerdictCode

if TYPE_CHECKING:
    from trionfq.backends._abc import Backend, QueueRow
    from trionfq.testing._faults import Refuse

_OURS: Final = 0xFA017
_BRIDGE: Final = frozenset(NFQA.by_name[name].number for name in ("vlan", "l2hdr"))


class FaultyKernel:
    """The packets that wait in an inner backend's kernel, as far as they were told of.

    Args:
      inner: the backend.

    Attributes:
      refusals: the refusals to come, by queue and packet id.
      drops: packets that found no room in the receive buffer.
    """

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        # In order of arrival.
        self._waiting: dict[int, dict[int, None]] = {}
        self._user_dropped: Counter[int] = Counter()
        self.refusals: dict[tuple[int, int], Refuse] = {}
        self.drops = 0

    def arrived(self, queue: int, packet_id: int) -> None:
        """A packet waits."""
        self._waiting.setdefault(queue, {})[packet_id] = None

    def rows(self) -> list[QueueRow]:
        """The inner backend's queues, with what was lost here."""
        return [
            row._replace(user_dropped=row.user_dropped + self._user_dropped[row.queue])
            if row.portid == self._inner.port_id
            else row
            for row in self._inner.queues()
        ]

    # -- what the kernel drops -----------------------------------------------------------------

    def flush(self) -> None:
        """Everything that waits goes (nfqnl_nf_hook_drop)."""
        for queue, ids in self._waiting.items():
            for packet_id in list(ids):
                self._drop(queue, packet_id)

    def lose(self, queue: int, packet_id: int) -> None:
        """A packet found no room in the receive buffer (__nfqnl_enqueue_packet)."""
        self._drop(queue, packet_id)
        self._user_dropped[queue] += 1
        self.drops += 1

    def _drop(self, queue: int, packet_id: int) -> None:
        header = attr(NFQA, "verdict_hdr", {"verdict": VerdictCode.DROP, "id": packet_id})
        flags, kind = int(MessageFlags.REQUEST), int(MessageType.VERDICT)
        message = Message(kind, flags, packet_id, _OURS, 0, 0, queue, (header,))
        self._inner.send_nowait(encode([message]))
        self._waiting[queue].pop(packet_id, None)

    # -- what the program sends ----------------------------------------------------------------

    def _targets(self, message: Message) -> list[int]:
        """The packets that a verdict would decide."""
        waiting = self._waiting.get(message.res_id, {})
        header = by_name(NFQA, message.attributes).get("verdict_hdr")
        if not waiting or not isinstance(header, dict):
            return []
        last: int = header["id"]
        if message.type == MessageType.VERDICT_BATCH:
            return list(takewhile(lambda each: not id_after(each, last), waiting))
        return [last] if message.type == MessageType.VERDICT and last in waiting else []

    def refused(self, message: Message) -> int | None:
        """The error that a message is answered with; None where it goes on."""
        if not self.refusals:
            return None
        queue = message.res_id
        for packet_id in self._targets(message):
            refuse = self.refusals.pop((queue, packet_id), None)
            if refuse is None:
                continue
            if refuse.error != errno.ENOENT:
                bridge = not _BRIDGE.isdisjoint(each.number for each in message.attributes)
                if bridge and refuse.error == errno.EINVAL:
                    self._drop(queue, packet_id)
                return refuse.error
            self._drop(queue, packet_id)
        return None

    def refusal(self, message: Message, piece: bytes, error: int) -> bytes:
        """The kernel's answer to a message, whose bytes are given (netlink_ack)."""
        length = int.from_bytes(piece[:4], sys.byteorder)
        request = length, message.type, message.flags, message.seq, message.portid
        flags = int(MessageFlags.CAPPED)
        answer = ErrorMessage(flags, message.seq, self._inner.port_id, -error, request, b"", ())
        return encode([answer])

    def follow(self, message: Message) -> None:
        """The inner backend has taken a message."""
        queue = message.res_id
        if message.type == MessageType.CONFIG:
            command = by_name(NFQA_CFG, message.attributes).get("cmd")
            if isinstance(command, dict) and command["command"] == ConfigCommand.UNBIND:
                self._waiting.pop(queue, None)
                self._user_dropped.pop(queue, None)
        else:
            for packet_id in self._targets(message):
                del self._waiting[queue][packet_id]
                self.refusals.pop((queue, packet_id), None)


def answers_ours(datagram: bytes) -> bool:
    """Whether a datagram answers a request that was made here."""
    try:
        messages = decode(datagram)
    except RemoteProtocolError:
        return False
    return any(isinstance(each, ErrorMessage) and each.request[4] == _OURS for each in messages)


def cut(message: Message, copy_range: int) -> bytes:
    """A packet with a part of its payload, as nfqnl_build_packet_message writes it."""
    values = by_name(NFQA, message.attributes)
    payload = values.get("payload", b"")
    if not isinstance(payload, bytes) or len(payload) <= copy_range:
        return encode([message])
    told = NFQA.by_name["payload"].number, NFQA.by_name["cap_len"].number
    kept = [each for each in message.attributes if each.number not in told]
    length = values.get("cap_len", len(payload))
    kept.append(attr(NFQA, "cap_len", length))
    if copy_range:
        kept.append(Attr(told[0], payload[:copy_range]))
    return encode([message._replace(attributes=tuple(kept))])
