"""A backend under test, and how to speak with it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trionfq import schema
from trionfq._errors import ConformanceError, RemoteProtocolError
from trionfq.backends._abc import Received
from trionfq.schema import ErrorMessage, Message
from trionfq.schema.nfqueue import NFQA, MessageType
from trionfq.testing._messages import make_bind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionfq.backends._abc import Backend, QueueRow

COPY_RANGE = 1234
"""What `Subject.bind` asks for, in bytes."""


@dataclass(frozen=True)
class BackendUnderTest:
    """A new backend, and what the suite may do with its other side.

    Attributes:
      backend: it; nothing is bound by it.
      queue: number of a queue that it may bind and that nobody has; None: the suite chooses.
      arrive: makes one packet arrive at that queue, or does nothing where packets come by
        themselves; called three times once the queue is bound. None: nobody expects packets.
      patience_s: how long something may take that comes at once, in seconds of trio's clock.
    """

    backend: Backend
    queue: int | None = None
    arrive: Callable[[], object] | None = None
    patience_s: float = 5.0


class Subject:
    """A backend under test, with the words of the promise that is being checked."""

    def __init__(
        self,
        make: Callable[[], Backend | BackendUnderTest],
        promise: str,
        opened: list[Backend],
    ):
        made = make()
        self._make = make
        self._opened = opened
        under_test = made if isinstance(made, BackendUnderTest) else BackendUnderTest(made)
        self.promise = promise
        self.backend = under_test.backend
        opened.append(self.backend)
        self.arrive = under_test.arrive
        self.patience_s = under_test.patience_s
        self._queue = under_test.queue
        self._seq = 100
        self._early: list[int] = []

    @property
    def queue(self) -> int:
        """The number to bind; the greatest that has no row, where the maker named none."""
        if self._queue is None:
            taken = {row.queue for row in self.backend.queues()}
            self._queue = next(n for n in range(0xFFFF, -1, -1) if n not in taken)
        return self._queue

    def another(self) -> Subject:
        """One more backend by the same maker, closed with this one."""
        return Subject(self._make, self.promise, self._opened)

    def fail(self, detail: str) -> ConformanceError:
        return ConformanceError(f"backend: {self.promise}: {detail}")

    def ensure(self, condition: bool, detail: str) -> None:
        if not condition:
            raise self.fail(detail)

    def seq(self) -> int:
        self._seq += 1
        return self._seq

    def take(self, limit: int = 64) -> list[bytes]:
        """What `receive_nowait` gives, after a look at its kind."""
        received = self.backend.receive_nowait(limit)
        self.ensure(isinstance(received, Received), f"expected a Received, got {received!r}")
        for datagram in received.datagrams:
            self.ensure(type(datagram) is bytes, f"expected bytes, got {type(datagram).__name__}")
        count = len(received.datagrams)
        self.ensure(count <= limit, f"{count} datagrams, though at most {limit} were asked for")
        return received.datagrams

    def answers(self) -> list[ErrorMessage]:
        """The answers that wait; packets, which may come before them, are kept for later."""
        found = []
        while datagrams := self.take():
            for datagram in datagrams:
                for message in self.parse(datagram):
                    if isinstance(message, ErrorMessage):
                        found.append(message)
                    else:
                        self._early.append(self.packet_id(datagram))
        return found

    def parse(self, datagram: bytes) -> list[schema.AnyMessage]:
        try:
            return schema.parse(datagram)
        except RemoteProtocolError as error:
            raise self.fail(f"a datagram that the schema refuses: {error}") from error

    def ask(
        self, request: bytes, seq: int, error: int | None, what: str, *, before: bytes = b""
    ) -> None:
        """Send a request and look at its answer: `error`, or any error where None.

        `before` goes first in the same datagram and must need no answer.
        """
        self.backend.send_nowait(before + request)
        answers = self.answers()
        self.ensure(
            len(answers) == 1,
            f"{what}: expected one answer when send_nowait returns, got {answers or 'none'}",
        )
        [answer] = answers
        (kind,) = struct.unpack_from("=H", request, 4)
        got = (answer.seq, answer.request[1], answer.request[3])
        self.ensure(
            got == (seq, kind, seq),
            f"{what}: the answer must echo sequence number {seq} and type {kind:#x}, got {got}",
        )
        expected = "an error" if error is None else f"errno {error}"
        good = answer.error < 0 if error is None else answer.error == -error
        self.ensure(good, f"{what}: expected {expected}, got errno {-answer.error}")

    def bind(self) -> None:
        seq = self.seq()
        self.ask(make_bind(self.queue, seq=seq, copy_range=COPY_RANGE), seq, 0, "BIND")

    def row(self, backend: Backend | None = None) -> QueueRow | None:
        rows = (backend or self.backend).queues()
        return next((row for row in rows if row.queue == self.queue), None)

    def expect_closed(self, call: Callable[[], object], what: str) -> None:
        try:
            call()
        except trio.ClosedResourceError:
            return
        raise self.fail(f"{what} worked")

    async def wait_for_ever(self) -> None:
        """Wait again and again, since a wake without cause is allowed."""
        while True:
            await self.backend.wait_readable()

    async def in_time(self, what: str, wait: Callable[[], Awaitable[object]]) -> None:
        with trio.move_on_after(self.patience_s) as scope:
            await wait()
        self.ensure(not scope.cancelled_caught, f"{what} did not happen in {self.patience_s} s")

    async def packets(self, count: int, limit: int) -> list[int]:
        """Ids of `count` packets, read at most `limit` at a time."""
        ids, self._early = self._early[:count], self._early[count:]

        async def collect() -> None:
            while len(ids) < count:
                datagrams = self.take(min(limit, count - len(ids)))
                if not datagrams:
                    await self.backend.wait_readable()
                for datagram in datagrams:
                    ids.append(self.packet_id(datagram))

        await self.in_time(f"the arrival of {count} packets", collect)
        return ids

    def packet_id(self, datagram: bytes) -> int:
        messages = self.parse(datagram)
        self.ensure(len(messages) == 1, f"expected one packet a datagram, got {messages}")
        [message] = messages
        self.ensure(
            isinstance(message, Message) and message.type == MessageType.PACKET,
            f"expected a packet, got {message}",
        )
        assert isinstance(message, Message)
        self.ensure(
            message.res_id == self.queue, f"expected queue {self.queue}, got {message.res_id}"
        )
        header = schema.by_name(NFQA, message.attributes).get("packet_hdr")
        assert isinstance(header, dict)
        return int(header["packet_id"])
