"""What the tests of test_selftest*.py share: the example program at work, rules of nft, streams."""

from __future__ import annotations

import functools
import io
import re
import socket
import subprocess
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import trio

from tests.example_programs import load
from trionfq import NetlinkBackend, Queue

from ._live import PATIENCE_S
from ._patience import patient
from .harness import Forwarding, Namespace, aping, eventually, tool

STREAM_PORT = 12345
SCTP_MESSAGE_OCTETS = 8000
LIMIT_S = patient(40.0)

nf_queue = load("nf_queue")


# --- the program ----------------------------------------------------------------------------------


class Line(NamedTuple):
    """What the program has printed of a packet."""

    length: int
    gso: bool


@dataclass(frozen=True)
class Running:
    """The example program at work in this process.

    Attributes:
      namespace: where its queue is.
      queue: its queue.
      counts: packets that it saw.
      output: what it has printed.
    """

    namespace: Namespace
    queue: Queue
    counts: Any
    output: io.StringIO

    async def settled(self) -> None:
        """Wait until each packet that the kernel has numbered was seen, answered, and none lost."""

        def done() -> bool:
            row = self.namespace.queue_row(self.queue.number)
            assert row is not None
            assert (row.queue_dropped, row.user_dropped) == (0, 0)
            return row.queue_total == 0 and row.id_sequence == self.counts.total

        await eventually(f"all packets of queue {self.queue.number} answered", done)

    def lines(self) -> list[Line]:
        """What it has printed of packets, with ``-v``."""
        found = re.findall(r"^packet .* length=(\d+)(.*)$", self.output.getvalue(), re.MULTILINE)
        return [Line(int(length), "gso" in rest.split()) for length, rest in found]


@asynccontextmanager
async def running(namespace: Namespace, line: str = "") -> AsyncIterator[Running]:
    """The program with these arguments; its queue is bound when the block begins.

    Leaving the block ends it, and so does a block that takes too long.
    """
    counts = nf_queue.Counts()
    output = io.StringIO()
    program = functools.partial(
        nf_queue.run,
        nf_queue.parse(line.split()),
        counts,
        backend=NetlinkBackend(namespace=namespace.name),
        output=output,
    )
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            queue = await nursery.start(program)
            yield Running(namespace, queue, counts, output)
            nursery.cancel_scope.cancel()


@contextmanager
def not_tainted() -> Iterator[None]:
    """Fails where the kernel was hurt meanwhile: by a warning, an oops, a lock-up."""
    file = Path("/proc/sys/kernel/tainted")
    before = file.read_text()
    yield
    if file.read_text() != before:
        said = subprocess.run([tool("dmesg")], capture_output=True, text=True).stdout
        tail = "\n".join(said.splitlines()[-60:])
        raise AssertionError(f"kernel.tainted was {before}, the kernel said at last:\n{tail}")


# --- rules of nft ---------------------------------------------------------------------------------

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def load_rules(namespace: Namespace, text: str) -> None:
    """Add a ruleset to a namespace's."""
    namespace.run(["nft", "-f", "-"], stdin=text)


def base_chains(priority: int, statement: str) -> str:
    """A chain at each hook of the inet family, all with one statement."""
    return "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority {priority}; {statement}; }}"
        for hook in HOOKS
    )


def queue_pings(name: str, priority: int) -> str:
    """A table that queues pings at every hook: those of IPv4 to queue 0, those of IPv6 to 1."""
    return f"""
        table inet {name} {{
            chain pings {{
                ip protocol icmp queue num 0 bypass
                icmpv6 type {{ echo-request, echo-reply }} queue num 1 bypass
            }}
            {base_chains(priority, "jump pings")}
        }}
    """


def counted(namespace: Namespace, what: str) -> list[int]:
    """Packets by the counters of a chain or of a counter, such as ``"chain inet t c"``."""
    listed = namespace.run(["nft", "list", *what.split()]).stdout
    return [int(found) for found in re.findall(r"packets (\d+) bytes", listed)]


async def all_pings(net: Forwarding) -> list[int]:
    """How many are answered of one ping each through the router and to it, IPv4 and IPv6."""
    addresses = (net.b4, net.b6, net.router_b4, net.router_b6)
    return [(await aping(net.a, address, timeout_s=patient(5))).received for address in addresses]


# --- streams --------------------------------------------------------------------------------------


class Content(NamedTuple):
    """How much it was, and its checksum."""

    octets: int = 0
    crc: int = 0

    def then(self, data: bytes) -> Content:
        """With more behind it."""
        return Content(self.octets + len(data), zlib.crc32(data, self.crc))


def stream(
    source: Namespace,
    destination: Namespace,
    address: str,
    data: bytes,
    *,
    times: int = 1,
    protocol: int = socket.IPPROTO_TCP,
) -> tuple[Content, Content]:
    """Send data by TCP or SCTP, some times over; give what was sent and what arrived."""
    received = Content()
    failure: list[BaseException] = []

    def serve() -> None:
        nonlocal received
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                while piece := connection.recv(1 << 18):
                    received = received.then(piece)
        except OSError as error:
            failure.append(error)

    sent = Content()
    step = SCTP_MESSAGE_OCTETS if protocol == socket.IPPROTO_SCTP else len(data)
    kind = (socket.AF_INET, socket.SOCK_STREAM, protocol)
    with destination.call(socket.socket, *kind) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind((address, STREAM_PORT))
        listener.listen(1)
        server = threading.Thread(target=serve, name="stream")
        server.start()
        try:
            with source.call(socket.socket, *kind) as client:
                client.settimeout(PATIENCE_S)
                client.connect((address, STREAM_PORT))
                for _ in range(times):
                    for start in range(0, len(data), step):
                        client.sendall(data[start : start + step])
                    sent = sent.then(data)
        finally:
            server.join()
    if failure:
        raise failure[0]
    return sent, received


async def astream(*args: Any, **options: Any) -> tuple[Content, Content]:
    """As `stream`, while the other tasks of the test go on."""
    return await trio.to_thread.run_sync(functools.partial(stream, *args, **options))
