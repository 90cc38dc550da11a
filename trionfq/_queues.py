"""The queues of a network namespace, and which processes own them.

The kernel knows an owner by the port id of its netlink socket. That is usually the process id, but
a second socket of a process has another, and a socket may have been given on. So the socket is
looked up: /proc/net/netlink has its inode, and a process that has it open has a link to that inode
in /proc/PID/fd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trionfq._errors import PrivilegeError
from trionfq.backends._netns import Namespace, in_namespace
from trionfq.backends._proc import QueueTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq.backends import QueueRow

# thread-self: a namespace is entered by a thread, and /proc/net is the main thread's.
_SOCKETS = "/proc/thread-self/net/netlink"
_PROCESSES = "/proc"
_NETLINK_NETFILTER = 12  # linux/netlink.h


class QueueOwner(NamedTuple):
    """A process that has a queue's socket open.

    Attributes:
      pid: its process id, as this process sees it.
      command: its command line, quoted as for a shell; its name in brackets if it has none, and
        empty where it has just ended.
    """

    pid: int
    command: str


@dataclass(frozen=True)
class BoundQueue:
    """A queue that some socket has bound.

    Attributes:
      number: queue number.
      port_id: netlink port id of the socket.
      owners: processes that have the socket open, by process id: several after a fork. Empty where
        no process that can be seen has it, such as one of another pid namespace.
      unreadable: ids of processes whose descriptors could not be read, so that each may be an
        owner, too: to read them takes CAP_SYS_PTRACE, or the same user.
      kernel: the queue's row of /proc: packets that wait, copy mode and range, counts of loss.
    """

    number: int
    port_id: int
    owners: tuple[QueueOwner, ...]
    unreadable: tuple[int, ...]
    kernel: QueueRow


def queues(namespace: str | os.PathLike[str] | Namespace | None = None) -> list[BoundQueue]:
    """List the bound queues of a network namespace, and who owns them.

    Looks at every process's descriptors, so it takes milliseconds; does not block otherwise. What
    it reads is not read at one instant: of a queue that is bound or closed meanwhile, the owners
    may be missing.

    Args:
      namespace: a name as ``ip netns`` shows it, a path, or a `Namespace`; None for the calling
        thread's own.

    Returns:
      The queues by number; none where the kernel module is not loaded.

    Raises:
      PrivilegeError: the namespace may not be entered, or its list of queues is not readable:
        /proc/net/netfilter/nfnetlink_queue is readable for root of the user namespace that owns
        the network namespace (mode 0440; nfnl_queue_net_init, nfnetlink_queue.c).
      FileNotFoundError: there is no such namespace, or no /proc.
      ValueError, TypeError: ``namespace`` is no network namespace.
    """
    where = None if namespace is None else Namespace.of(namespace)
    sockets, rows = in_namespace(where, _read)
    inodes = _inodes(sockets)
    owners, unreadable = _owners({inodes[row.portid] for row in rows if row.portid in inodes})
    return [
        BoundQueue(
            row.queue,
            row.portid,
            tuple(owners.get(inodes.get(row.portid, 0), ())),
            unreadable,
            row,
        )
        for row in sorted(rows, key=lambda row: row.queue)
    ]


def _read() -> tuple[str, list[QueueRow]]:
    table = QueueTable()
    try:
        rows = table.rows()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        raise PrivilegeError(
            error.errno,
            "list queues",
            advice="/proc/net/netfilter/nfnetlink_queue is readable for root only, in the user "
            "namespace that owns the network namespace: run as root",
        ) from error
    finally:
        table.close()
    return Path(_SOCKETS).read_text(encoding="ascii"), rows


def _inodes(sockets: str) -> dict[int, int]:
    """Inodes of the netfilter sockets by port id (netlink_native_seq_show, af_netlink.c)."""
    heading, *lines = sockets.splitlines()
    names = heading.split()
    kind, port, inode = names.index("Eth"), names.index("Pid"), names.index("Inode")
    columns = [line.split() for line in lines]
    return {int(c[port]): int(c[inode]) for c in columns if int(c[kind]) == _NETLINK_NETFILTER}


def _owners(inodes: set[int]) -> tuple[dict[int, list[QueueOwner]], tuple[int, ...]]:
    """The processes that have sockets open, by inode; and those that cannot be looked at."""
    owners: dict[int, list[QueueOwner]] = {}
    unreadable = []
    for pid in _pids() if inodes else ():
        try:
            open_here = inodes & set(_open_sockets(pid))
        except PermissionError:
            unreadable.append(pid)
            continue
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        for inode in open_here:
            owners.setdefault(inode, []).append(QueueOwner(pid, _command(pid)))
    return owners, tuple(unreadable)


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir(_PROCESSES) if name.isdecimal())


def _open_sockets(pid: int) -> Iterator[int]:
    folder = f"{_PROCESSES}/{pid}/fd"
    for name in os.listdir(folder):
        # It may close one at any time; that it has ended shows at the next.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            target = os.readlink(f"{folder}/{name}")
            if target.startswith("socket:["):
                yield int(target[8:-1])


def _command(pid: int) -> str:
    folder = Path(_PROCESSES, str(pid))
    with contextlib.suppress(OSError):
        words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        if words != [b""]:
            return shlex.join(os.fsdecode(word) for word in words)
        return f"[{(folder / 'comm').read_text(errors='replace').strip()}]"
    return ""
