"""Other network namespaces: named by what people have at hand, entered by a thread of their own.

setns(2) moves the calling thread only. A thread of a pool that came back moved would run somebody
else's work in the wrong namespace, and the caller's own thread is trio's, so each entry takes a
fresh thread which ends with the work. A socket, and a file of the namespace's /proc/net, belong to
the namespace in which they were opened, from whichever thread they are used later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trionfq._errors import PrivilegeError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_NAMED = Path("/run/netns")  # where `ip netns add` mounts them (ip-netns(8))
_CLONE_NEWNET = 0x40000000  # linux/sched.h


@dataclass(frozen=True)
class Namespace:
    """A network namespace to open a socket in; made by one of the ``from_`` functions.

    Attributes:
      label: how messages call it.
      source: path of its file, or an open descriptor of it.
    """

    label: str
    source: str | int

    @classmethod
    def from_name(cls, name: str) -> Namespace:
        """The namespace that ``ip netns add NAME`` made.

        Raises:
          ValueError: if it is no plain name.
        """
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise ValueError(f"network namespace: expected a name of `ip netns`, got {name!r}")
        return cls(f"network namespace {name!r}", str(_NAMED / name))

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Namespace:
        """The namespace that a file stands for, such as ``/proc/1/ns/net``."""
        return cls(f"network namespace at {os.fspath(path)}", os.fspath(path))

    @classmethod
    def from_pid(cls, pid: int) -> Namespace:
        """The namespace that the process `pid` is in.

        Raises:
          ValueError: if `pid` is not positive.
        """
        if pid < 1:
            raise ValueError(f"network namespace: expected a process id above 0, got {pid}")
        return cls(f"network namespace of process {pid}", f"/proc/{pid}/ns/net")

    @classmethod
    def from_fd(cls, fd: int) -> Namespace:
        """The namespace that an open descriptor stands for; it stays the caller's.

        Raises:
          ValueError: if `fd` is negative.
        """
        if fd < 0:
            raise ValueError(f"network namespace: expected a file descriptor, got {fd}")
        return cls(f"network namespace of descriptor {fd}", fd)

    @classmethod
    def of(cls, what: str | os.PathLike[str] | Namespace) -> Namespace:
        """What a user gave: a name (no slash), a path, or a `Namespace`."""
        if isinstance(what, Namespace):
            return what
        if isinstance(what, str) and "/" not in what:
            return cls.from_name(what)
        if isinstance(what, (str, os.PathLike)):
            return cls.from_path(what)
        raise TypeError(
            f"network namespace: expected a name, a path or a Namespace, got {what!r}; "
            "for a process id or a descriptor: Namespace.from_pid, Namespace.from_fd"
        )

    def open(self) -> int:
        """A new descriptor of it.

        Raises:
          FileNotFoundError: there is no such namespace.
          PrivilegeError: this process may not look at it.
        """
        if isinstance(self.source, int):
            return os.dup(self.source)
        try:
            return os.open(self.source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR):
                text = f"{self.label}: there is none (`ip netns list` shows those with a name)"
                raise FileNotFoundError(errno.ENOENT, text, self.source) from error
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PrivilegeError(
                    error.errno,
                    f"open {self.label}",
                    advice="another user's process needs CAP_SYS_PTRACE, a file its owner",
                ) from error
            raise


def in_namespace(namespace: Namespace | None, work: Callable[[], T]) -> T:
    """Do `work` inside `namespace` and give its result; the caller's thread stays where it is.

    Args:
      namespace: where, None for where the caller is (then in the caller's thread).
      work: what; its exception is passed on.

    Raises:
      FileNotFoundError: there is no such namespace.
      PrivilegeError: this process may not enter it.
      ValueError: the file or descriptor is no network namespace.
    """
    if namespace is None:
        return work()
    fd = namespace.open()
    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            _set_network_namespace(fd, namespace.label)
            results.append(work())
        except BaseException as error:  # noqa: BLE001, RUF100 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=enter, name=f"trionfq: {namespace.label}")
    try:
        thread.start()
        try:
            thread.join()
        finally:
            thread.join()  # a Ctrl-C may have cut the first one short; it never lasts long
    finally:
        os.close(fd)
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()  # or the traceback would hold this frame in a cycle
    return results[0]


def enter_for_good(namespace: Namespace) -> None:
    """Move the calling thread into `namespace`; for a process that is about to end.

    Raises:
      As `in_namespace`.
    """
    fd = namespace.open()
    try:
        _set_network_namespace(fd, namespace.label)
    finally:
        os.close(fd)


def _set_network_namespace(fd: int, label: str) -> None:
    """setns(2), which Python has from 3.12 on only."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise PrivilegeError(
            code,
            f"enter {label}",
            advice="CAP_SYS_ADMIN is needed here and in the user namespace that owns it; "
            "run as root, or start the program inside it (`ip netns exec`, `nsenter`)",
        )
    if code == errno.EINVAL:
        raise ValueError(f"{label}: not a network namespace")
    raise OSError(code, f"enter {label}: {os.strerror(code)}")
