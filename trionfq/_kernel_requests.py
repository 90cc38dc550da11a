"""Requests to the kernel model: which message may do what, and the error of each refusal.

Errors are raised where nfnetlink_rcv_msg (nfnetlink.c) and the handlers of nfnetlink_queue.c raise
them, in their order: attribute lengths first, then queue and owner, then the verdict, then the
packet.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, NamedTuple, Protocol

from . import _kernel_reader as reader
from ._kernel_conntrack import conntrack_changes
from ._kernel_reader import RefusedError
from ._kernel_records import NO_CHANGES, Cause, Changes
from ._kernel_verdict import apply, read_batch_changes, read_changes
from .schema.netlink import MessageFlags, Type
from .schema.nfnetlink import Subsystem
from .schema.nfqueue import (
    NFQA,
    NFQA_CFG,
    VERDICT_MASK,
    ConfigCommand,
    MessageType,
    QueueFlags,
    VerdictCode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._kernel_queue import KernelQueue
    from ._kernel_records import PacketIn
    from ._kernel_socket import KernelSocket
    from .schema import Attr

ENOTSUPP = 524
"""The kernel's internal error number that a PACKET message sent to it gets (nfqnl_recv_unsupp)."""

# Plain integers: an IntFlag takes a microsecond for every `&`.
_REQUEST = int(MessageFlags.REQUEST)
_ACK = int(MessageFlags.ACK)
_MIN_TYPE = int(Type.MIN_TYPE)
_BATCH_BEGIN = 0x10
_SUBSYSTEM_COUNT = 13
_ALL_FLAGS = int(~QueueFlags(0))
_N = {a.name: a.number for a in NFQA.attributes}
_C = {a.name: a.number for a in NFQA_CFG.attributes}
_BATCH_RULES = {
    _N["verdict_hdr"]: reader.Rule(8),
    _N["mark"]: reader.U32_RULE,
    _N["priority"]: reader.U32_RULE,
}
_VERDICT_RULES = {**_BATCH_RULES, _N["vlan"]: reader.NEST_RULE}
_CONFIG_RULES = {
    _C["cmd"]: reader.Rule(4),
    _C["params"]: reader.Rule(5),
    _C["queue_maxlen"]: reader.U32_RULE,
    _C["mask"]: reader.U32_RULE,
    _C["flags"]: reader.U32_RULE,
}


class Namespace(Protocol):
    """What requests act upon."""

    queues: dict[int, KernelQueue]
    conntrack_glue: bool
    secctx: bool

    def bind(self, number: int, sock: KernelSocket) -> KernelQueue:
        """Create a queue."""

    def destroy(self, queue: KernelQueue, cause: Cause) -> None:
        """Remove a queue and drop what waits in it."""

    def reinject(
        self,
        queue: KernelQueue,
        packet_id: int,
        packet: PacketIn,
        verdict: int,
        cause: Cause,
        changes: Changes,
    ) -> None:
        """Send a packet on as a verdict says."""


class Request(NamedTuple):
    """One message as its handler gets it."""

    sock: KernelSocket
    number: int
    found: dict[int, bytes]


class Requests:
    """The nfnetlink side of a namespace."""

    def __init__(self, namespace: Namespace, *, flags_policy: bool):
        self._namespace = namespace
        config_rules = dict(_CONFIG_RULES)
        if flags_policy:
            config_rules[_C["flags"]] = reader.U32_RULE._replace(mask=_ALL_FLAGS)
        verdict_most, config_most = max(NFQA.by_number), max(NFQA_CFG.by_number)
        self._handlers: dict[int, tuple[int, dict[int, reader.Rule], Callable[[Request], None]]] = {
            MessageType.PACKET: (verdict_most, {}, _refuse_packet),
            MessageType.VERDICT: (verdict_most, _VERDICT_RULES, self._verdict),
            MessageType.CONFIG: (config_most, config_rules, self._config),
            MessageType.VERDICT_BATCH: (verdict_most, _BATCH_RULES, self._batch),
        }

    def receive(self, sock: KernelSocket, datagram: bytes) -> None:
        """nfnetlink_rcv and netlink_rcv_skb: every message that fits, in order."""
        for header in reader.headers(datagram):
            body = datagram[header.at + reader.HEADER_BYTES : header.at + header.length]
            if not sock.privileged:
                sock.answer(header, body, EPERM, ())
                return
            if header.at == 0 and header.type == _BATCH_BEGIN:
                self._transaction(sock, datagram, header, body)
                return
            number = 0
            extack: tuple[Attr, ...] = ()
            if header.flags & _REQUEST and header.type >= _MIN_TYPE:
                try:
                    extack = self._message(sock, datagram, header)
                except RefusedError as error:
                    number, extack = error.number, error.extack
            if number or header.flags & _ACK:
                sock.answer(header, body, number, extack)

    def _transaction(
        self, sock: KernelSocket, datagram: bytes, header: reader.Header, body: bytes
    ) -> None:
        """NFNL_MSG_BATCH_BEGIN, which no subsystem of this model takes (nfnetlink_rcv_batch)."""
        if len(datagram) >= reader.GENMSG_END:
            res_id = int.from_bytes(datagram[reader.GENMSG_END - 2 : reader.GENMSG_END], "big")
            sock.answer(header, body, EOPNOTSUPP if res_id < _SUBSYSTEM_COUNT else EINVAL, ())

    def _message(
        self, sock: KernelSocket, datagram: bytes, header: reader.Header
    ) -> tuple[Attr, ...]:
        """nfnetlink_rcv_msg; gives what a successful answer warns of."""
        generic = reader.generic(datagram, header)
        if generic is None:
            return ()
        if header.type >> 8 != Subsystem.QUEUE or header.type not in self._handlers:
            raise RefusedError(EINVAL)
        most, rules, handler = self._handlers[header.type]
        contents = datagram[header.at : header.at + header.length]
        found, extack = reader.attributes(contents, most, rules, start=reader.GENMSG_END)
        try:
            handler(Request(sock, generic[1], found))
        except RefusedError as error:
            raise RefusedError(error.number, error.extack or extack) from None
        return extack

    # --- CONFIG

    def _config(self, request: Request) -> None:
        """nfqnl_recv_config."""
        found = request.found
        command = found[_C["cmd"]][0] if _C["cmd"] in found else None
        if command in (ConfigCommand.PF_BIND, ConfigCommand.PF_UNBIND):
            return
        flags, mask = self._flags(found)
        queue = self._namespace.queues.get(request.number)
        if queue is not None and queue.portid != request.sock.portid:
            raise RefusedError(EPERM)
        if command == ConfigCommand.BIND:
            if queue is not None:
                raise RefusedError(EBUSY)
            queue = self._namespace.bind(request.number, request.sock)
        elif command not in (None, ConfigCommand.UNBIND):
            raise RefusedError(EOPNOTSUPP)
        if queue is None:
            raise RefusedError(ENODEV)
        if command == ConfigCommand.UNBIND:
            self._namespace.destroy(queue, Cause.UNBIND)
            return
        if params := found.get(_C["params"]):
            queue.set_mode(params[4], reader.u32(params))
        if max_len := found.get(_C["queue_maxlen"]):
            queue.max_len = reader.u32(max_len)
        queue.flags = (queue.flags & ~mask) | (flags & mask)

    def _flags(self, found: dict[int, bytes]) -> tuple[int, int]:
        """Flags and mask, checked before anything is changed; a mask alone changes nothing."""
        if _C["flags"] not in found:
            return 0, 0
        if _C["mask"] not in found:
            raise RefusedError(EINVAL)
        flags, mask = reader.u32(found[_C["flags"]]), reader.u32(found[_C["mask"]])
        if (
            flags & ~_ALL_FLAGS
            or (flags & mask & QueueFlags.SECCTX and not self._namespace.secctx)
            or (flags & mask & QueueFlags.CONNTRACK and not self._namespace.conntrack_glue)
        ):
            raise RefusedError(EOPNOTSUPP)
        return flags, mask

    # --- verdicts

    def _owned(self, request: Request) -> KernelQueue:
        """verdict_instance_lookup."""
        queue = self._namespace.queues.get(request.number)
        if queue is None:
            raise RefusedError(ENODEV)
        if queue.portid != request.sock.portid:
            raise RefusedError(EPERM)
        return queue

    def _verdict(self, request: Request) -> None:
        """nfqnl_recv_verdict: look up the packet, change it, send it on."""
        queue = self._owned(request)
        verdict, packet_id = _verdict_header(request.found)
        packet = queue.take(packet_id)
        if packet is None:
            raise RefusedError(ENOENT)
        glue = self._namespace.conntrack_glue
        conntrack, expect = conntrack_changes(request.found, packet) if glue else (None, None)
        try:
            changes = read_changes(request.found, packet, conntrack, expect)
        except RefusedError:
            self._namespace.reinject(
                queue, packet_id, packet, VerdictCode.DROP, Cause.VERDICT, NO_CHANGES
            )
            raise
        changed, kept = apply(changes, packet)
        self._namespace.reinject(
            queue, packet_id, changed, verdict if kept else VerdictCode.DROP, Cause.VERDICT, changes
        )

    def _batch(self, request: Request) -> None:
        """nfqnl_recv_verdict_batch: all up to an id; only mark and priority change."""
        queue = self._owned(request)
        verdict, last = _verdict_header(request.found)
        taken = queue.take_up_to(last)
        if not taken:
            raise RefusedError(ENOENT)
        changes = read_batch_changes(request.found)
        for packet_id, packet in taken:
            changed, _kept = apply(changes, packet)
            self._namespace.reinject(queue, packet_id, changed, verdict, Cause.BATCH, changes)


def _refuse_packet(_request: Request) -> None:
    raise RefusedError(ENOTSUPP)


def _verdict_header(found: dict[int, bytes]) -> tuple[int, int]:
    """verdicthdr_get: all 32 bits of the verdict, and the id."""
    header = found.get(_N["verdict_hdr"])
    if header is None:
        raise RefusedError(EINVAL)
    verdict = reader.u32(header)
    code = verdict & VERDICT_MASK
    if code > VerdictCode.STOP or code == VerdictCode.STOLEN:
        raise RefusedError(EINVAL)
    return verdict, reader.u32(header, 4)
