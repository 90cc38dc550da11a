"""The error tree: one class for each thing that a caller would do differently.

trio's ``ClosedResourceError``, ``BusyResourceError`` and ``BrokenResourceError`` stay trio's; they
are raised ``from`` one of these where there is a cause. Loss (an overrun, a truncated copy) is
counted, never raised.
"""

from __future__ import annotations

import os
from typing import Any


def _restored(cls: type[TrionfqError], args: tuple[object, ...], state: Any) -> TrionfqError:
    """An unpickled error; not by its own ``__init__``, whose keywords are not in ``args``."""
    error = cls.__new__(cls, *args)
    base = OSError if isinstance(error, OSError) else Exception
    base.__init__(error, *args)
    error.__setstate__(state)
    return error


class TrionfqError(Exception):
    """Base of every error that this library defines. All can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__ or None)


class ProtocolError(TrionfqError):
    """Somebody broke the protocol; only its subclasses are raised."""


class LocalProtocolError(ProtocolError, ValueError):
    """You asked for what the schema forbids; nothing was sent."""


class AlreadyDecidedError(LocalProtocolError):
    """A second verdict for a packet; nothing was sent, the first one stands."""


class RemoteProtocolError(ProtocolError):
    """Bytes that contradict the schema.

    Attributes:
      datagram: the whole datagram.
      offset: where in it the contradiction stands, in bytes.
      path: the field, from the outside in, such as ``("packet", "NFQA_MARK")``.
    """

    def __init__(self, message: str, *, datagram: bytes, offset: int, path: tuple[str, ...] = ()):
        where = " -> ".join(path) if path else "datagram"
        super().__init__(f"{where} at byte {offset}: {message}")
        self.datagram = datagram
        self.offset = offset
        self.path = path


class KernelError(TrionfqError, OSError):
    """The kernel said no.

    Attributes:
      errno: the kernel's error number, positive.
      operation: what was asked, such as ``"bind queue 3"``.
      extack: the kernel's extended-acknowledgement text, or None.
      attribute: name of the attribute that the kernel pointed at, or None.
    """

    def __init__(
        self,
        errno: int,
        operation: str,
        *,
        advice: str = "",
        extack: str | None = None,
        attribute: str | None = None,
    ):
        # 524 is the kernel's internal ENOTSUPP, which the C library has no text for.
        text = (
            "Operation is not supported (kernel ENOTSUPP)" if errno == 524 else os.strerror(errno)
        )
        said = f" (kernel: {extack})" if extack else ""
        at = f" at {attribute}" if attribute else ""
        message = f"{operation}: {text}{at}{said}"
        super().__init__(errno, f"{message}; {advice}" if advice else message)
        self.operation = operation
        self.extack = extack
        self.attribute = attribute


class QueueBusyError(KernelError):
    """Another socket owns the queue number.

    Attributes:
      owner_portid: netlink port id of the owner, or None where /proc did not tell.
    """

    def __init__(self, errno: int, operation: str, *, owner_portid: int | None, advice: str):
        super().__init__(errno, operation, advice=advice)
        self.owner_portid = owner_portid


class PrivilegeError(KernelError):
    """CAP_NET_ADMIN is missing in the user namespace that owns the network namespace."""


class ModuleMissingError(KernelError):
    """The kernel has no nfnetlink_queue, or cannot load it."""


class VerdictRefusedError(KernelError):
    """The kernel refused a verdict; error handlers get it, it is not raised.

    Attributes:
      packet_id: the packet's id.
      dropped: the kernel dropped the packet; otherwise it is undecided again.
    """

    def __init__(
        self,
        errno: int,
        operation: str,
        *,
        packet_id: int,
        dropped: bool,
        extack: str | None = None,
    ):
        advice = "the kernel dropped it" if dropped else "it is undecided again"
        super().__init__(errno, operation, advice=advice, extack=extack)
        self.packet_id = packet_id
        self.dropped = dropped


class WorkerDiedError(TrionfqError):
    """A worker process ended though nobody asked it to, or not when it was asked to.

    The exception that ended it, where it could be carried over, is the ``__cause__``.

    Attributes:
      queue_number: the queue that it had open; the kernel has dropped what was undecided there.
      pid: its process id, None where no process could be started.
      exit_code: of the process; negative for a signal's number, None without a process.
      traceback: text of the traceback of the exception that ended it, or None.
      restart_delay_s: seconds until the queue is opened again by another process, or None if it
        is not.
    """

    def __init__(
        self,
        reason: str,
        *,
        queue_number: int,
        pid: int | None,
        exit_code: int | None,
        traceback: str | None = None,
        restart_delay_s: float | None = None,
    ):
        process = "" if pid is None else f" (process {pid})"
        then = (
            "its queue is not opened again"
            if restart_delay_s is None
            else f"its queue is opened again in {restart_delay_s:g} s"
        )
        super().__init__(f"worker of queue {queue_number}{process}: {reason}; {then}")
        self.queue_number = queue_number
        self.pid = pid
        self.exit_code = exit_code
        self.traceback = traceback
        self.restart_delay_s = restart_delay_s


class CaptureError(TrionfqError):
    """A capture file that cannot be read or written.

    Attributes:
      offset: where in the (uncompressed) file, in bytes, or None.
    """

    def __init__(self, message: str, *, offset: int | None = None):
        super().__init__(message if offset is None else f"at byte {offset}: {message}")
        self.offset = offset


class ConformanceError(TrionfqError):
    """A backend, parser or capture breaks a rule of the protocol."""
