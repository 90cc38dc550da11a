"""Opening a queue: arguments checked, one message sent, and the reason told where it fails."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from trionfq._answers import explanation
from trionfq._config import QueueConfig, check_config, kernel_settings
from trionfq._errors import (
    KernelError,
    ModuleMissingError,
    PrivilegeError,
    QueueBusyError,
)
from trionfq._link import Link
from trionfq._nursery import leave
from trionfq._protocol import QueueProtocol, check_id
from trionfq._queue import Queue
from trionfq._read_ahead import ReadAhead
from trionfq._verdict import Verdict, check_queue_number
from trionfq.backends.netlink import NetlinkBackend
from trionfq.schema.nfqueue import CopyMode, QueueFlags

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import TracebackType

    from trionfq._link import ErrorHandler
    from trionfq.backends import Backend
    from trionfq.backends.netlink import Namespace, NetlinkOptions
    from trionfq.schema import ErrorMessage

_ATTEMPTS = 3


def open_queue(
    number: int,
    *,
    copy_mode: CopyMode = CopyMode.PACKET,
    copy_range: int = 0xFFFF,
    max_len: int = 1024,
    flags: QueueFlags = QueueFlags(0),  # noqa: B008 - an immutable flag
    on_close: Verdict = Verdict.DROP,
    error_handler: ErrorHandler | None = None,
    checkpoint_every: int | None = None,
    namespace: str | os.PathLike[str] | Namespace | None = None,
    receive_buffer_bytes: int | None = None,
    netlink_options: NetlinkOptions | None = None,
    fd: int | None = None,
    inherited: bool = False,
    ledger: Iterable[int] | None = None,
    backend: Backend | None = None,
) -> QueueManager:
    """Bind an nfqueue and give its packets until the block ends.

    Use it as ``async with open_queue(0) as queue``. Entering is a checkpoint; packets that arrive
    meanwhile are kept. Leaving does not block: every undecided packet, read or not, gets
    ``on_close``, also under cancellation. An exception from the block leaves as it was raised.

    Args:
      number: queue number, 0 to 65535, as in the rule.
      copy_mode: what of each packet is copied: CopyMode.PACKET, META (no payload), or NONE (the
        kernel then drops every packet).
      copy_range: most payload bytes copied of a packet; 0 and more than 65,531 mean 65,531
        (nfqnl_set_mode). A packet that was cut cannot be rewritten.
      max_len: most packets that the kernel holds, in packets; beyond it drops
        (NFQA_CFG_QUEUE_MAXLEN), or accepts with QueueFlags.FAIL_OPEN.
      flags: NFQA_CFG_F_* flags.
      on_close: Verdict.DROP or Verdict.ACCEPT, for packets undecided at the end. With accept and a
        bypass rule nothing is lost when a program stops under traffic.
      error_handler: called with (exception, packet or None) for refused verdicts
        (`VerdictRefusedError`; the packet is undecided again) and undecodable messages
        (`RemoteProtocolError`); may raise to end the consumer. Without it they are logged.
      checkpoint_every: packets between checkpoints of ``async for``; 1 is trio's usual rule. None
        has one a batch, and at the latest after about a millisecond.
      namespace: network namespace: a name as ``ip netns`` shows it, a path, or a `Namespace`.
      receive_buffer_bytes: size of the socket's receive buffer, where packets wait until they are
        read, in bytes as for SO_RCVBUF. None for 16 MiB, which holds a burst of 14,500 packets of
        1,500 bytes; without the host's CAP_NET_ADMIN it is at most net.core.rmem_max. A
        ``max_len`` or packets beyond that need more, or packets are lost before ``max_len`` is
        reached (``user_dropped``).
      netlink_options: netlink socket options.
      fd: an open AF_NETLINK socket to use instead of a new one.
      inherited: the queue is already bound through ``fd``, by a process that this one was forked
        from; nothing is bound, and verdicts are not batched unless ``ledger`` is given. Copy mode
        and range are then what the kernel shows, where it can be read; say what ``max_len`` and
        ``flags`` the queue was given, which the kernel does not show.
      ledger: `Queue.undecided_ids` of the process that bound the queue.
      backend: where datagrams come from; a new `NetlinkBackend` if None.

    Raises:
      QueueBusyError: on entering; another socket owns the number; its port id is named. The kernel
        gives the same EPERM as for a missing privilege (nfqnl_recv_config), so
        /proc/net/netfilter/nfnetlink_queue decides.
      PrivilegeError: on entering; CAP_NET_ADMIN is missing in the namespace's owner.
      ModuleMissingError: on entering; the kernel has no nfnetlink_queue.
      KernelError: on entering; the kernel refused something else; errno and text are kept.
      ValueError, TypeError: an argument is wrong, or belongs to a socket and ``backend`` is given;
        nothing was sent.
    """
    config = check_config(
        QueueConfig(check_queue_number(number), copy_mode, copy_range, max_len, flags)
    )
    if on_close not in (Verdict.DROP, Verdict.ACCEPT):
        raise ValueError(f"on_close: expected DROP or ACCEPT, got {on_close!r}")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every: expected at least 1, got {checkpoint_every}")
    socket_options = {
        "namespace": namespace,
        "receive_buffer_bytes": receive_buffer_bytes,
        "options": netlink_options,
        "fd": fd,
    }
    given: dict[str, Any] = {
        name: value for name, value in socket_options.items() if value is not None
    }
    if backend is not None and given:
        raise ValueError(
            f"{', '.join(given)}: belongs to a netlink socket; give it to the backend instead"
        )
    if (inherited or ledger is not None) and backend is None and fd is None:
        raise ValueError("inherited, ledger: give the bound socket as fd= or backend=")
    if ledger is not None and not inherited:
        raise ValueError("ledger: belongs to inherited=True")
    if backend is not None and not callable(getattr(backend, "receive_nowait", None)):
        raise TypeError(f"backend: expected a Backend, got {type(backend).__name__}")
    return QueueManager(
        config,
        given,
        backend,
        on_close=on_close,
        error_handler=error_handler,
        checkpoint_every=checkpoint_every,
        inherited=inherited,
        ledger=None if ledger is None else [check_id(packet_id) for packet_id in ledger],
    )


class QueueManager:
    """What `open_queue` returns: an async context manager, for one use.

    A class, not a generator around a nursery: a nursery would wrap the block's exception in a
    group. The receive loop never raises into the nursery, so what the nursery raises on leaving
    can only be its own cancellation, or a KeyboardInterrupt.

    Protected from that, for an interrupt between binding and entering would leave a queue that
    nobody closes, and one on leaving a nursery that nobody leaves.
    """

    def __init__(
        self,
        config: QueueConfig,
        socket_options: dict[str, Any],
        backend: Backend | None,
        *,
        on_close: Verdict,
        error_handler: ErrorHandler | None,
        checkpoint_every: int | None,
        inherited: bool,
        ledger: list[int] | None,
    ) -> None:
        self._config = config
        self._socket_options = socket_options
        self._backend = backend
        self._on_close = on_close
        self._error_handler = error_handler
        self._checkpoint_every = checkpoint_every
        self._inherited = inherited
        self._ledger = ledger
        self._queue: Queue | None = None
        self._nursery_manager = trio.open_nursery()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Queue:
        if self._queue is not None:
            raise RuntimeError("this open_queue() was entered before; call it again")
        # Before anything is bound, so that a cancellation has nothing to undo.
        await trio.lowlevel.checkpoint()
        queue = self._queue = self._bound_queue()
        nursery = await self._nursery_manager.__aenter__()
        self._nursery_cancel = nursery.cancel_scope.cancel
        queue.attach(nursery)
        return queue

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        queue = self._queue
        assert queue is not None
        failure = queue.close(normally=exc is None)
        self._nursery_cancel()
        # A KeyboardInterrupt, of this task or of an error handler that the receive loop called.
        interrupt = await leave(self._nursery_manager)
        if interrupt is not None:
            raise interrupt
        if failure is not None and exc is None:
            raise failure

    def _bound_queue(self) -> Queue:
        backend = self._backend
        if backend is None:
            backend = NetlinkBackend(**self._socket_options)
        try:
            config = _as_shown(backend, self._config) if self._inherited else self._config
            protocol = QueueProtocol(
                config,
                policy=self._on_close,
                inherited=self._inherited,
                ledger=self._ledger,
                interface_name=lambda index: (
                    None if index is None else backend.interface_name(index)
                ),
            )
            link = Link(
                protocol,
                backend,
                ReadAhead(self._checkpoint_every),
                self._error_handler,
                inherited=self._inherited,
            )
            if not self._inherited:
                _bind(link)
        except BaseException:
            backend.close()
            raise
        return Queue(link, on_close=self._on_close, checkpoint_every=self._checkpoint_every)


def _bind(link: Link) -> None:
    """Bind, and read until the kernel's answer; a lost answer is looked up in /proc."""
    protocol, backend, number = link.protocol, link.backend, link.number
    for attempt in range(_ATTEMPTS):
        answer = link.request(*protocol.bind_request())
        if answer is not None:
            if attempt and answer.error == -errno.EBUSY:
                return  # this socket has it already: the lost answer was a success
            if answer.error:
                raise _bind_error(-answer.error, answer, number, backend)
            return
        if _owner(backend, number) == backend.port_id:
            return
    raise KernelError(
        errno.ENOBUFS,
        f"bind queue {number}",
        advice="the kernel's answer found no room; raise receive_buffer_bytes",
    )


def _as_shown(backend: Backend, config: QueueConfig) -> QueueConfig:
    """The settings of a queue that another process has set up, as far as the kernel shows them."""
    with suppress(OSError):
        for row in backend.queues():
            if row.queue == config.number and row.portid == backend.port_id:
                shown = kernel_settings(row, config)
                return config._replace(copy_mode=shown.copy_mode, copy_range=shown.copy_range)
    return config


def _owner(backend: Backend, number: int) -> int | None:
    """Port id of the socket that owns a queue; None where nobody does, or /proc does not tell."""
    try:
        rows = backend.queues()
    except OSError:
        return None  # the file is root's alone, and who lacks the privilege is often not root
    return next((row.portid for row in rows if row.queue == number), None)


def _described(owner: int | None) -> str:
    if owner is None:
        return "another netlink socket"
    return (
        f"the netlink socket with port id {owner} (usually its process id; trionfq.queues() names "
        "the process)"
    )


def _bind_error(code: int, answer: ErrorMessage, number: int, backend: Backend) -> KernelError:
    operation = f"bind queue {number}"
    said = explanation(answer)
    if code in (errno.EPERM, errno.EBUSY, errno.EEXIST):
        owner = _owner(backend, number)
        if owner is not None or code != errno.EPERM:
            return QueueBusyError(
                code,
                operation,
                owner_portid=owner,
                advice="this very socket has bound it already: open it with inherited=True"
                if code == errno.EBUSY
                else f"queue {number} belongs to {_described(owner)}: stop that program, or use "
                "another queue number in rule and program",
            )
        return PrivilegeError(
            code,
            operation,
            advice="CAP_NET_ADMIN is missing in the user namespace that owns the network "
            "namespace: run as root, or with setpriv/setcap cap_net_admin",
            extack=said,
        )
    if code in (errno.EINVAL, errno.EPROTONOSUPPORT):
        # nfnetlink_rcv_msg gives EINVAL where no subsystem is registered; our message is valid.
        return ModuleMissingError(
            code,
            operation,
            advice="the kernel has no nfnetlink_queue: modprobe nfnetlink_queue as root, or enable "
            "CONFIG_NETFILTER_NETLINK_QUEUE",
            extack=said,
        )
    advice = ""
    if code == errno.EOPNOTSUPP:
        advice = (
            "this kernel does not know one of the flags; QueueFlags.CONNTRACK needs the module "
            "nf_conntrack_netlink, QueueFlags.SECCTX a security module"
        )
    return KernelError(code, operation, advice=advice, extack=said)
