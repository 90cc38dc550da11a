"""Two hosts in network namespaces of a test's own, joined by a cable, with queues on request.

The namespaces have no names: only descriptors hold them, so they end with the test, however it
ends. The cable is silent: each host knows the other's hardware address, and neither sends anything
of its own (no neighbour discovery, no multicast reports), so a rule sees what the test sends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from trionfq._errors import ModuleMissingError
from trionfq._open import open_queue
from trionfq.backends._netns import Namespace, in_namespace
from trionfq.backends.netlink import NetlinkBackend
from trionfq.backends.recording import RecordingBackend
from trionfq.rules import ProgramMissingError, RuleError, queueing
from trionfq.rules._programs import SEARCH_PATH, find

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType
    from typing import Self, TypeVar

    from trionfq._queue import Queue
    from trionfq.rules import Match
    from trionfq.schema.nfqueue import Hook

    T = TypeVar("T")

Socket = socket.socket  # below, the method of that name would stand in its way

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_UP_WITHIN_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.01


class LiveHost:
    """One of the two hosts.

    Attributes:
      namespace: where it is, for `open_queue` and the like.
      device: its interface's name.
      ipv4: its address; `ipv6` likewise.
    """

    def __init__(self, descriptor: int, device: str, ipv4: str, ipv6: str, mac: str) -> None:
        self.namespace = Namespace.from_fd(descriptor)
        self.device = device
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self._mac = mac
        self._descriptor = descriptor
        self._sockets = ExitStack()

    def __repr__(self) -> str:
        return f"<LiveHost {self.ipv4}>"

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives that a thread inside of the namespace calls."""
        return in_namespace(self.namespace, function)

    def socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        """A socket of the host, for any thread; closed with the test."""
        made = self.call(partial(Socket, family, kind, protocol))
        return self._sockets.enter_context(made)

    def udp(self, port: int = 0, *, ipv6: bool = False) -> Socket:
        """A UDP socket bound to an address of the host, whose waiting ends after 5 seconds."""
        made = self.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5.0)
        made.bind((self.ipv6 if ipv6 else self.ipv4, port))
        return made

    def run(
        self, command: Sequence[str], *, timeout_s: float = 20.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host, and give what it printed.

        Raises:
          subprocess.CalledProcessError: it ended with another code than 0.
          subprocess.TimeoutExpired: it was killed since it did not end in time.
          FileNotFoundError: it is not installed.
        """
        environment = {**os.environ, "PATH": SEARCH_PATH}
        return self.call(
            partial(
                subprocess.run,
                [find(command[0]) or command[0], *command[1:]],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
                timeout=timeout_s,
                input=stdin,
            )
        )

    def close(self) -> None:
        """Close its sockets and let go of the namespace; what is open there still holds it."""
        self._sockets.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def set_up(self, other: LiveHost) -> None:
        """Address, neighbour, and up."""
        device = self.device
        self._ip(
            "link set lo up",
            f"link set {device} addrgenmode none arp off multicast off",
            f"addr add {self.ipv4}/24 dev {device}",
            f"addr add {self.ipv6}/64 dev {device} nodad",
            f"link set {device} up",
            f"neigh add {other.ipv4} lladdr {other._mac} dev {device} nud permanent",
            f"neigh add {other.ipv6} lladdr {other._mac} dev {device} nud permanent",
        )

    def plug_in(self, other: LiveHost) -> None:
        """Make the cable between two hosts."""
        there = f"/proc/{os.getpid()}/fd/{other._descriptor}"
        self._ip(
            f"link add {self.device} address {self._mac} type veth "
            f"peer name {other.device} address {other._mac} netns {there}"
        )

    def wait_until_up(self) -> None:
        """Wait until the device sends: before that it swallows what it is given.

        Raises:
          TimeoutError: it does not within 10 seconds.
        """
        latest = time.monotonic() + _UP_WITHIN_S
        while True:
            shown = self.run(["ip", "-o", "link", "show", "dev", self.device]).stdout
            if " state UP " in shown and " qdisc noop " not in shown:
                return
            if time.monotonic() > latest:
                raise TimeoutError(f"{self.device} is not up: {shown.strip()}")
            time.sleep(_LOOK_EVERY_S)

    def _ip(self, *lines: str) -> None:
        self.run(["ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


class LivePair:
    """Two hosts of one network; what the fixture ``nfqueue_live`` gives.

    Args:
      folder: where recordings of the queues are put.

    Attributes:
      a: one host, 10.71.0.1 and fd71::1.
      b: the other, 10.71.0.2 and fd71::2.

    Raises:
      OSError: this process may not make network namespaces, or `ip` (Debian: iproute2) is missing.
      subprocess.CalledProcessError: this kernel makes no veth devices.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._count = 0
        with ExitStack() as undo:
            hosts = []
            for number, device in enumerate(("va", "vb"), 1):
                mac = f"02:07:10:00:00:{number:02x}"
                host = LiveHost(
                    _new_namespace(), device, f"10.71.0.{number}", f"fd71::{number}", mac
                )
                undo.callback(host.close)
                hosts.append(host)
            self.a, self.b = hosts
            self.a.plug_in(self.b)
            self.a.set_up(self.b)
            self.b.set_up(self.a)
            for host in hosts:
                host.wait_until_up()
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of both hosts; harmless when repeated."""
        self._undo.close()

    @asynccontextmanager
    async def __call__(
        self,
        number: int = 0,
        chain: str | Hook | Sequence[str | Hook] = "INPUT",
        *,
        host: LiveHost | None = None,
        match: Match | Sequence[Match] | None = None,
        rule: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Queue]:
        """Open a queue on a host, with a rule in place for as long as the block runs.

        What passes is recorded, so that `assert_verdicts` can look at it.

        Args:
          number: queue number.
          chain: as of `trionfq.rules.queueing`.
          host: where; host b by default.
          match: as of `trionfq.rules.queueing`; all packets by default.
          rule: its other arguments, such as ``{"bypass": True}``.
          options: arguments of `open_queue`.

        Raises:
          As `open_queue` and `trionfq.rules.queueing`.
        """
        namespace = (host or self.b).namespace
        inner = NetlinkBackend(namespace=namespace)
        self._count += 1
        try:
            backend = RecordingBackend(inner, self._folder / f"live-{self._count}.pcapng")
        except BaseException:
            inner.close()
            raise
        async with (
            open_queue(number, backend=backend, **options) as queue,
            queueing(number, chain, match=match, namespace=namespace, **(rule or {})),
        ):
            yield queue


@cache
def why_not_live() -> str | None:
    """Why this process can have no `LivePair` with a queue in it, None where it can.

    It is tried once, in a namespace of its own.
    """
    if find("ip") is None:
        return "the program ip is missing: Debian package iproute2"
    result: list[str | None] = []
    # A thread of its own: the caller may be in a trio run.
    thread = threading.Thread(target=lambda: result.append(_try()))
    thread.start()
    thread.join()
    return result[0] if result else "trying it failed"


def _try() -> str | None:
    try:
        descriptor = _new_namespace()
    except OSError as error:
        return (
            f"no privilege for network namespaces ({error.strerror}): run as root, or inside of "
            "`unshare --user --map-root-user --net --mount`"
        )
    host = LiveHost(descriptor, "lo", "127.0.0.1", "::1", "")

    async def rule_and_queue() -> None:
        async with (
            open_queue(0, namespace=host.namespace),
            queueing(0, "INPUT", namespace=host.namespace),
        ):
            pass

    try:
        host.run(["ip", "link", "add", "va", "type", "veth", "peer", "name", "vb"])
        trio.run(rule_and_queue)
    except subprocess.CalledProcessError as error:
        return f"this kernel makes no veth devices: {error.stderr.strip()}"
    except (PermissionError, ModuleMissingError, ProgramMissingError, RuleError) as error:
        return f"no queueing rule here: {error}"
    finally:
        host.close()
    return None


def _new_namespace() -> int:
    """A descriptor of a new network namespace, which ends with it and what is opened there.

    Raises:
      OSError: it may not be made.
    """
    result: list[int | OSError] = []

    def leave() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            code = ctypes.get_errno()
            result.append(OSError(code, os.strerror(code)))
        else:
            # The thread's own, which ends with it: /proc/self is the main thread's.
            result.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    [found] = result
    if isinstance(found, OSError):
        raise found
    return found
