"""Senders and receivers: floods of numbered datagrams, pings, a TCP transfer, single datagrams."""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from . import _flood
from ._namespace import Namespace, end_process
from ._patience import patient
from ._waiting import eventually

BUFFER_OCTETS = 64 << 20


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Flood:
    """A flood process and the counters that it shares."""

    def __init__(self, namespace: Namespace, options: dict[str, Any]) -> None:
        self._namespace = namespace
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._report: dict[str, Any] = {}

    def __enter__(self) -> Self:
        counters = os.memfd_create("trionfq-flood")
        try:
            os.ftruncate(counters, 4096)
            self._shared = mmap.mmap(counters, 4096)
            options = json.dumps({**self._options, "counters": counters})
            self._process = self._namespace.popen(
                [sys.executable, "-I", "-S", Path(_flood.__file__), options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[counters],
            )
        finally:
            os.close(counters)
        assert self._process.stdout is not None
        line = b""
        # No further than the line: what a buffered stream reads ahead, communicate() does not get.
        while not line.endswith(b"\n") and (byte := os.read(self._process.stdout.fileno(), 1)):
            line += byte
        if line != b"ready\n":
            raise AssertionError(f"the flood process did not start: {line!r}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            if self._process is not None:
                end_process(self._process)

    def _counter(self, place: int) -> int:
        return int.from_bytes(self._shared[8 * place : 8 * place + 8], sys.byteorder)

    def _finish(self) -> None:
        """Let the process end in order, and take its report; harmless when repeated."""
        assert self._process is not None
        if self._process.returncode is not None:
            return
        output, _ = self._process.communicate(timeout=patient(10))
        if self._process.returncode != 0:
            raise AssertionError("the flood process failed; its standard error says why")
        self._report = json.loads(output)


class UdpSender(_Flood):
    """Sends numbered datagrams from entering the block until `stop` or the block's end.

    A payload is a 64-bit big-endian number, counted from 0, and zeros.

    Args:
      namespace: where it sends.
      destination: address and port.
      rate: datagrams a second, as a mean that is caught up with; None: as fast as possible.
      limit: how many in all; None: until stopped.
      payload_octets: length of each, at least 8.
      source: address and port to send from; None: the kernel chooses.
      buffer_octets: send buffer. Packets that a queue holds stay charged to it, and the machine's
        limit is passed over only by real root.
    """

    def __init__(
        self,
        namespace: Namespace,
        destination: tuple[str, int],
        *,
        rate: float | None = None,
        limit: int | None = None,
        payload_octets: int = 32,
        source: tuple[str, int] | None = None,
        buffer_octets: int = BUFFER_OCTETS,
    ) -> None:
        if payload_octets < _flood.NUMBER.size:
            raise ValueError(f"a number needs {_flood.NUMBER.size} bytes, got {payload_octets}")
        super().__init__(
            namespace,
            {
                "do": "send",
                "family": _family(destination[0]),
                "destination": destination,
                "rate": rate,
                "limit": limit,
                "payload_octets": payload_octets,
                "source": source,
                "buffer_octets": buffer_octets,
            },
        )

    @property
    def sent(self) -> int:
        """Datagrams that the kernel took; the numbers below this."""
        return self._counter(_flood.SENT)

    @property
    def refused(self) -> int:
        """Times that the kernel took a datagram not, such as a rule's EPERM; it is tried again."""
        return self._counter(_flood.REFUSED)

    @property
    def mean_rate(self) -> float:
        """Datagrams a second so far."""
        return self.sent * 1e9 / max(1, self._counter(_flood.ELAPSED_NS))

    async def wait_sent(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Wait until at least `count` datagrams are sent."""
        await eventually(f"{count} sent", lambda: self.sent >= count, timeout_s=timeout_s)

    def stop(self) -> int:
        """Stop sending and give how many datagrams were sent."""
        self._finish()
        return self.sent


@dataclass(frozen=True)
class Received:
    """What a `UdpReceiver` saw.

    Attributes:
      received: numbers, each counted once.
      duplicates: datagrams whose number had come before.
      reordered: numbers that came after a higher one.
      short: datagrams with no room for a number.
      socket_drops: datagrams that the receiver's own socket had no room for: not a loss on the way.
      highest: number, -1 where none came.
      gaps: the first 20 ranges missing below that, both ends included.
    """

    received: int
    duplicates: int
    reordered: int
    short: int
    socket_drops: int
    highest: int
    gaps: list[tuple[int, int]]


class UdpReceiver(_Flood):
    """Counts the numbered datagrams that reach an address, from entering the block until `stop`.

    Args:
      namespace: where it receives.
      address: address and port, the port not 0.
      buffer_octets: receive buffer; the machine's limit is passed over only by real root.
    """

    def __init__(
        self,
        namespace: Namespace,
        address: tuple[str, int],
        *,
        buffer_octets: int = BUFFER_OCTETS,
    ) -> None:
        super().__init__(
            namespace,
            {
                "do": "receive",
                "family": _family(address[0]),
                "source": address,
                "buffer_octets": buffer_octets,
            },
        )

    @property
    def received(self) -> int:
        """Numbers seen so far, each counted once."""
        return self._counter(_flood.RECEIVED)

    async def wait_received(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Wait until at least `count` numbers have come."""
        await eventually(f"{count} received", lambda: self.received >= count, timeout_s=timeout_s)

    def stop(self) -> Received:
        """Take what waits in the socket, stop, and report."""
        self._finish()
        return Received(
            received=self.received,
            duplicates=self._counter(_flood.DUPLICATES),
            reordered=self._counter(_flood.REORDERED),
            short=self._counter(_flood.SHORT),
            socket_drops=self._report["socket_drops"],
            highest=self._report["highest"],
            gaps=[(first, last) for first, last in self._report["gaps"]],
        )


@dataclass(frozen=True)
class Ping:
    """What ping saw: `rtt_ms` has the time of each answered sequence number."""

    sent: int
    received: int
    rtt_ms: dict[int, float]


def ping(
    namespace: Namespace,
    address: str,
    *,
    count: int = 1,
    interval_s: float = 0.002,
    timeout_s: float = 1.0,
    payload_octets: int = 56,
    options: tuple[str, ...] = (),
) -> Ping:
    """Send echo requests and wait for their answers.

    Args:
      namespace: where to ping from.
      address: IPv4 or IPv6.
      count: how many requests.
      interval_s: between them.
      timeout_s: how long to wait for the last answer; the whole takes no longer than that and
        the sending.
      payload_octets: of each request.
      options: more of ping's own, such as ``("-M", "do")``.
    """
    command = ["ping", "-n", "-c", str(count), "-i", str(interval_s), "-W", str(timeout_s)]
    command += ["-s", str(payload_octets), *options, address]
    text = namespace.run(command, check=False).stdout
    total = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    if total is None:
        raise AssertionError(f"ping {address} in {namespace.name} printed:\n{text}")
    times = re.findall(r"icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms", text)
    return Ping(int(total[1]), int(total[2]), {int(seq): float(ms) for seq, ms in times})


async def aping(namespace: Namespace, address: str, **options: Any) -> Ping:
    """As `ping`, while the other tasks of the test go on."""
    return await trio.to_thread.run_sync(functools.partial(ping, namespace, address, **options))


def tcp_transfer(
    source: Namespace,
    destination: Namespace,
    address: str,
    data: bytes,
    *,
    timeout_s: float = 10.0,
) -> bytes:
    """Send `data` by TCP from one namespace to an address of another; give what arrived.

    From a trio test, ``await atcp_transfer(...)``.
    """
    timeout_s = patient(timeout_s)
    received = bytearray()
    failure: list[BaseException] = []
    family = _family(address)
    with destination.call(socket.socket, family, socket.SOCK_STREAM) as listener:
        listener.settimeout(timeout_s)
        listener.bind((address, 0))
        listener.listen(1)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(timeout_s)
                    while piece := connection.recv(1 << 18):
                        received.extend(piece)
            except OSError as error:
                failure.append(error)

        server = threading.Thread(target=serve, name="tcp_transfer")
        server.start()
        try:
            with source.call(socket.socket, family, socket.SOCK_STREAM) as client:
                client.settimeout(timeout_s)
                client.connect(listener.getsockname()[:2])
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                client.recv(1)  # until the other side has read everything and closed
        finally:
            server.join()
    if failure:
        raise failure[0]
    return bytes(received)


async def atcp_transfer(*args: Any, **options: Any) -> bytes:
    """As `tcp_transfer`, while the other tasks of the test go on."""
    return await trio.to_thread.run_sync(functools.partial(tcp_transfer, *args, **options))


def _take(sock: socket.socket) -> bytes | None:
    """The next datagram if one waits."""
    before = sock.gettimeout()
    sock.settimeout(0)  # MSG_DONTWAIT would not do: a Python socket with a timeout tries again
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return None
    finally:
        sock.settimeout(before)


async def receive(sock: socket.socket, *, timeout_s: float = 5.0) -> bytes:
    """The next datagram of a socket, other tasks going on.

    Raises:
      AssertionError: none came in time.
    """
    timeout_s = patient(timeout_s)
    with trio.move_on_after(timeout_s):
        while (datagram := _take(sock)) is None:
            await trio.lowlevel.wait_readable(sock)
        return datagram
    raise AssertionError(f"no datagram within {timeout_s} s")


def drain(sock: socket.socket) -> list[bytes]:
    """The datagrams that wait in a socket now.

    To show that a datagram was dropped, send another behind it that is not, receive that one, and
    see that it came alone: no time has to pass. That the second is behind the first is sure where
    both are sent, or given their verdicts, by one processor (the fixture ``one_cpu``).
    """
    datagrams: list[bytes] = []
    while (datagram := _take(sock)) is not None:
        datagrams.append(datagram)
    return datagrams
