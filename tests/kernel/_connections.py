"""Connections on a namespace's loopback whose every packet meets a queue, both ways."""

from __future__ import annotations

import socket
from typing import Any, Self

import trio

from trionfq import Conntrack, Packet, Queue, QueueFlags, QueueManager, open_queue

from ._live import PATIENCE_S, PORT, take
from .harness import Namespace, queue_rule, rule


def track(ns: Namespace, *, family: Any = 4) -> None:
    """Have conntrack at work in a namespace: it is, as soon as one rule asks for it."""
    rule(ns, "INPUT", "-m conntrack --ctstate INVALID", family=family)


def tracked_queue(ns: Namespace, number: int = 0, **options: Any) -> QueueManager:
    """A queue that is told of connections."""
    flags = QueueFlags.CONNTRACK | options.pop("flags", QueueFlags(0))
    return open_queue(number, namespace=ns.name, flags=flags, **options)


def connection(packet: Packet) -> Conntrack:
    """A packet's connection, which it must have."""
    found = packet.conntrack
    assert found is not None
    return found


def proxied(host: Namespace, device: str) -> str:
    """Have SYNPROXY answer the connections that come to PORT; gives what matches them."""
    host.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    to_server = f"-p tcp --dport {PORT}"
    rule(host, "PREROUTING", f"{to_server} -i {device} --syn -j CT --notrack", table="raw")
    state = "-m conntrack --ctstate INVALID,UNTRACKED"
    options = "--sack-perm --timestamp --wscale 7 --mss 1460"
    rule(host, "INPUT", f"{to_server} {state} -j SYNPROXY {options}")
    return to_server


class Talk:
    """A UDP conversation between two sockets of a namespace.

    Attributes:
      client: asks; its port is ``client_port``.
      server: answers, at PORT.
    """

    def __init__(self, ns: Namespace, address: str = "127.0.0.1", port: int = PORT) -> None:
        self.server = ns.udp(address, port)
        self.client = ns.udp(address)
        self.client_port: int = self.client.getsockname()[1]
        self.client.connect((address, port))
        self.server_port = port
        self.address = address

    def ask(self, data: bytes = b"ask") -> None:
        """A packet of the original direction."""
        self.client.send(data)

    def answer(self, data: bytes = b"answer") -> None:
        """A packet of the reply direction."""
        self.server.sendto(data, (self.address, self.client_port))


async def asked(queue: Queue, talk: Talk, **changes: Any) -> Packet:
    """A packet of the original direction, accepted with these changes."""
    talk.ask()
    [packet] = await take(queue, 1)
    packet.accept(**changes)
    await trio.lowlevel.checkpoint()
    return packet


async def answered(queue: Queue, talk: Talk, **changes: Any) -> Packet:
    """A packet of the reply direction, accepted with these changes."""
    talk.answer()
    [packet] = await take(queue, 1)
    packet.accept(**changes)
    await trio.lowlevel.checkpoint()
    return packet


class Stream:
    """A TCP connection that is made while a queue has its packets.

    Attributes:
      packets: those that passed, in order.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = trio.socket.from_stdlib_socket(client)
        self.server = server
        self.accepted: trio.socket.SocketType | None = None

    @classmethod
    def between(
        cls, client: Namespace, server: Namespace, address: str, port: int, *, listen: Any = None
    ) -> Self:
        """A client, and a server that listens.

        Args:
          client: namespace of the client.
          server: namespace of the server.
          address: of the server.
          port: likewise.
          listen: where the server listens, (address, port), if elsewhere.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = server.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(listen or (address, port))
        listening.listen()
        caller = client.socket(family, socket.SOCK_STREAM)
        caller.setblocking(False)
        made = cls(caller, listening)
        made.destination = (address, port)
        return made

    destination: tuple[str, int]

    async def open(self) -> None:
        """Connect, and accept."""
        with trio.fail_after(PATIENCE_S):
            await self.client.connect(self.destination)
            self.server.setblocking(False)
            await trio.lowlevel.wait_readable(self.server)
            self.accepted = trio.socket.from_stdlib_socket(self.server.accept()[0])

    def close(self) -> None:
        """Close all, without a goodbye that a queue would have to let pass."""
        for end in (self.client, self.accepted):
            if end is not None:
                end.close()
        self.server.close()


def queue_all(ns: Namespace, match: str, *, family: Any = 4) -> None:
    """Queue what leaves, which on loopback is both directions."""
    queue_rule(ns, "OUTPUT", match, family=family)
