"""Network namespaces that a test makes, works in and removes.

A namespace is entered in a fresh thread that ends afterwards, so the thread of the test never moves
and no worker of trio's is left in a foreign namespace. What is opened there (a socket, a file of
/proc) keeps belonging to the namespace, whichever thread uses it later. Child processes inherit
the namespace of the thread that started them, hence commands need no ``ip netns exec``.

Names stand in /run/netns as those of ``ip netns`` do. They carry the process id, so that runs
beside each other do not meet and a leftover can be told from somebody else's namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import trio
from pyroute2 import IPRoute, netns

from trionfq.backends._abc import QueueRow

from ._patience import patient

T = TypeVar("T")
Socket = socket.socket  # below, the method of that name would stand in its way

CLONE_NEWNET = 0x40000000
RUN_DIRECTORY = Path("/run/netns")
QUEUES = "net/netfilter/nfnetlink_queue"

# Debian keeps these off an ordinary user's PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def _prefix() -> str:
    return f"trionfq-{os.getpid()}-"


def leftovers() -> set[str]:
    """Names of this process's namespaces that still exist."""
    return {name for name in netns.listnetns(str(RUN_DIRECTORY)) if name.startswith(_prefix())}


def tool(name: str) -> str:
    """Path of a program, also where it stands in an administrator's folder."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed (make test installs it when root)")
    return found


def in_fresh_thread(function: Callable[[], T]) -> T:
    """What `function` gives, or raises, when a thread of its own runs it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="namespace visit")
    thread.start()
    thread.join()
    if failure:
        try:
            raise failure[0]
        finally:
            failure.clear()  # or the traceback and this frame keep each other alive
    return result[0]


def _check(returned: int, what: str) -> None:
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Namespace:
    """A network namespace with a name of its own, loopback up; removed by `close`.

    Args:
      label: what it is in the test's topology, such as ``"router"``.

    Attributes:
      name: as in /run/netns; unique on this machine.
      path: of the file in /run/netns.
    """

    def __init__(self, label: str = "ns") -> None:
        self.name = f"{_prefix()}{next(_numbers)}-{label}"
        self.path = RUN_DIRECTORY / self.name
        self._closed = False
        self._owned = contextlib.ExitStack()
        self._proc: dict[str, int] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove)
            self._fd = in_fresh_thread(self._create)
            undo.callback(os.close, self._fd)
            # No duplicate address detection, no link-local address and so no router solicitation:
            # packets that nobody sent would be seen by rules.
            for where in ("all", "default"):
                self.sysctl(f"net.ipv6.conf.{where}.accept_dad", 0)
                self.sysctl(f"net.ipv6.conf.{where}.addr_gen_mode", 1)
            self.netlink(lambda route: route.link("set", index=1, state="up"))
            self._undo = undo.pop_all()

    def _create(self) -> int:
        _check(_libc.unshare(CLONE_NEWNET), "unshare a network namespace")
        netns.attach(self.name, threading.get_native_id())
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _remove(self) -> None:
        if self.path.exists():
            netns.remove(self.name)

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"

    def fileno(self) -> int:
        """A descriptor of the namespace, open until `close`."""
        return self._fd

    # --- working inside -----------------------------------------------------------------------

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `function(*args, **kwargs)` gives when a thread inside the namespace calls it."""

        def inside() -> T:
            _check(_libc.setns(self._fd, CLONE_NEWNET), f"enter {self.name}")
            return function(*args, **kwargs)

        return in_fresh_thread(inside)

    def netlink(self, function: Callable[[IPRoute], T]) -> T:
        """What `function` gives for a pyroute2 ``IPRoute`` of the namespace."""

        def inside() -> T:
            with IPRoute() as route:
                return function(route)

        return self.call(inside)

    def socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        """A socket of the namespace; any thread may use it, `close` closes it."""
        made = self.call(socket.socket, family, kind, protocol)
        return self._owned.enter_context(made)

    def udp(self, address: str, port: int = 0, *, timeout_s: float = 5.0) -> Socket:
        """A bound UDP socket of the namespace whose blocking calls end after `timeout_s`."""
        made = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(patient(timeout_s))
        made.bind((address, port))
        return made

    def _command(self, command: Sequence[str | os.PathLike[str]]) -> list[str]:
        program, *rest = (os.fspath(part) for part in command)
        return [tool(program), *rest]

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout_s: float = 20.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace and give what it printed.

        Raises:
          AssertionError: it ended with another code than 0 and `check` is set; the text has what
            it printed.
          subprocess.TimeoutExpired: it was killed since it did not end in time.
        """
        done: subprocess.CompletedProcess[str] = self.call(
            subprocess.run,
            self._command(command),
            capture_output=True,
            text=True,
            timeout=patient(timeout_s),
            env=_environment(),
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(map(str, command))} in {self.name} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    async def arun(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout_s: float = 20.0,
    ) -> subprocess.CompletedProcess[str]:
        """As `run`, while the other tasks of the test go on."""
        return await trio.to_thread.run_sync(
            functools.partial(self.run, command, check=check, timeout_s=timeout_s)
        )

    def popen(
        self, command: Sequence[str | os.PathLike[str]], **options: Any
    ) -> subprocess.Popen[str]:
        """Start a program in the namespace; `close` kills it if it still runs."""
        options = {"text": True, "env": _environment(), "stdin": subprocess.DEVNULL} | options
        process: subprocess.Popen[str] = self.call(
            subprocess.Popen, self._command(command), **options
        )
        self._owned.callback(end_process, process)
        return process

    # --- looking and setting ------------------------------------------------------------------

    def read_proc(self, name: str) -> str:
        """A file of the namespace under /proc/PID, such as ``"net/snmp"``, read anew each time.

        It is opened inside once: the descriptor then shows that namespace from any thread.
        """
        if name not in self._proc:
            # /proc/net is the main thread's: only thread-self is the visitor's.
            fd = self.call(os.open, f"/proc/thread-self/{name}", os.O_RDONLY | os.O_CLOEXEC)
            self._proc[name] = fd
            self._undo.callback(os.close, fd)
        pieces: list[bytes] = []
        while piece := os.pread(self._proc[name], 65536, sum(map(len, pieces))):
            pieces.append(piece)
        return b"".join(pieces).decode()

    def sysctl(self, name: str, value: int | str | None = None) -> str:
        """Read a setting, such as ``net.ipv4.ip_forward``, or set it first."""
        path = Path("/proc/sys", *name.split("."))

        def inside() -> str:
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()

        return self.call(inside)

    def queue_rows(self) -> list[QueueRow]:
        """The queues of the namespace: rows of /proc/net/netfilter/nfnetlink_queue."""
        lines = self.read_proc(QUEUES).splitlines()
        return [QueueRow(*map(int, line.split()[: len(QueueRow._fields)])) for line in lines]

    def queue_row(self, number: int) -> QueueRow | None:
        """The row of one queue, None where nobody has bound it."""
        return next((row for row in self.queue_rows() if row.queue == number), None)

    def counters(self) -> dict[str, int]:
        """The kernel's counters by nstat's names: ``UdpInCsumErrors``, ``Ip6InReceives``, ..."""
        found: dict[str, int] = {}
        for name in ("net/snmp", "net/netstat"):
            lines = self.read_proc(name).splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                group, *columns = names.split()
                for column, value in zip(columns, values.split()[1:], strict=True):
                    found[group.rstrip(":") + column] = int(value)
        for line in self.read_proc("net/snmp6").splitlines():
            column, value = line.split()
            found[column] = int(value)
        return found

    def interface_index(self, name: str) -> int:
        """Index of an interface of the namespace."""
        return self.call(socket.if_nametoindex, name)

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End programs, close sockets and remove the namespace; harmless when repeated.

        Raises:
          AssertionError: a queue is still bound, so the test has left a netlink socket open; the
            namespace is removed all the same.
        """
        if self._closed:
            return
        self._closed = True
        with self._undo:
            self._owned.close()
            bound = self.queue_rows()
        if bound:
            raise AssertionError(f"{self.name}: a queue is still bound at the end: {bound}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except AssertionError:
            if error is None:
                raise


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}


def end_process(process: subprocess.Popen[str], *, timeout_s: float = 5.0) -> None:
    """Kill a program if it runs, reap it, and close its pipes."""
    if process.poll() is None:
        process.kill()
        process.wait(patient(timeout_s))
    for pipe in (process.stdin, process.stdout, process.stderr):
        _close_quietly(pipe)


def _close_quietly(pipe: IO[Any] | None) -> None:
    if pipe is not None:
        # Closing flushes, and the other end is gone.
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


@contextlib.contextmanager
def namespaces(*labels: str) -> Iterator[list[Namespace]]:
    """Several namespaces, all removed at the end whatever happens."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Namespace(label)) for label in labels]


@contextlib.contextmanager
def none_left_over() -> Iterator[None]:
    """Removes the namespaces that the block leaves behind.

    Raises:
      AssertionError: there were some.
    """
    before = leftovers()
    yield
    left = leftovers() - before
    for name in left:
        netns.remove(name)
    assert not left, f"network namespaces left behind: {sorted(left)}"


def in_user_namespace() -> bool:
    """Whether this process's root is an ordinary user outside."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
