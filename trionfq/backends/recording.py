"""A backend that writes what passes through another one.

The recording is the witness of a run, so it never disturbs it: what the inner backend gives or
raises goes on unchanged, and whatever goes wrong with the file ends the recording alone.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from trionfq._codec import PacketReader, decode
from trionfq._errors import RemoteProtocolError
from trionfq.captures import CaptureWriter, Note, Record, create_capture
from trionfq.schema import Direction, Message, by_name
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand, MessageType

if TYPE_CHECKING:
    from trionfq.backends._abc import Backend, QueueRow, Received

_log = logging.getLogger("trionfq")

_FROM: Final = Direction.FROM_KERNEL
_TO: Final = Direction.TO_KERNEL
_DEVICES: Final = ("ifindex_indev", "ifindex_outdev", "ifindex_physindev", "ifindex_physoutdev")
# Cheap to search for; only what holds it is decoded.
_CONFIG_TYPE: Final = MessageType.CONFIG.to_bytes(2, sys.byteorder)
_INTERFACES_NOTED: Final = 1 << 16


class RecordingBackend:
    """Wraps a backend, and writes every datagram in both directions to a pcapng file.

    Beside the datagrams it notes overruns, truncated and foreign datagrams, sends that were
    refused, the name of each network interface at first sight, the kernel's row of each queue
    before it is unbound, and what the receive buffer refused (`trionfq.captures.KINDS`). What was
    written is in the file whenever the program waits, and after `close`.

    When the file cannot be written (a full disk), the recording ends there and the queue runs on:
    a warning is logged, and `failed` says why.

    Args:
      inner: the backend to record; closed with this one.
      path: the file, created so that only its owner may read it (mode 0600).
      overwrite: empty a file that is there.

    Attributes:
      inner: the recorded backend.
      path: the file.
      failed: why the recording ended early, None while it is complete.

    Raises:
      FileExistsError: the file is there, and `overwrite` is not given; `inner` stays open.
      OSError: the file cannot be created or written; `inner` stays open.
    """

    def __init__(
        self, inner: Backend, path: str | os.PathLike[str], *, overwrite: bool = False
    ) -> None:
        self.inner = inner
        self.path = os.fspath(path)
        self.failed: Exception | None = None
        self._reader = PacketReader()
        self._interfaces: set[int] = set()
        self._writer: CaptureWriter | None = create_capture(path, overwrite=overwrite)
        about: dict[str, int | str] = {
            "backend": type(inner).__name__,
            "port_id": inner.port_id,
            "release": platform.release(),
        }
        self._note(Note("recording", about))

    # -- the seam ------------------------------------------------------------------------------

    @property
    def max_send_bytes(self) -> int:
        """Longest datagram worth sending, in bytes: the inner backend's."""
        return self.inner.max_send_bytes

    @property
    def port_id(self) -> int:
        """The inner backend's netlink port id."""
        return self.inner.port_id

    def now_ns(self) -> int:
        """Nanoseconds since the epoch by the inner backend, which the recording's times are."""
        return self.inner.now_ns()

    async def wait_readable(self) -> None:
        """Bring what was recorded into the file, then wait as the inner backend does.

        Raises:
          trio.BusyResourceError, trio.ClosedResourceError: as the inner backend's.
        """
        self.flush()
        await self.inner.wait_readable()

    def receive_nowait(self, limit: int) -> Received:
        """Take at most `limit` datagrams from the inner backend, and record them.

        Raises:
          OSError, trio.ClosedResourceError: as the inner backend's.
        """
        received = self.inner.receive_nowait(limit)
        if self._writer is not None:
            try:
                self._received(received)
            except Exception as error:
                self._fail(error)
        return received

    def send_nowait(self, datagram: bytes) -> None:
        """Give a datagram to the inner backend, and record it if it was taken.

        Raises:
          OSError, trio.ClosedResourceError: as the inner backend's.
        """
        if self._writer is None:
            self.inner.send_nowait(datagram)
            return
        time_ns = self.inner.now_ns()
        if _CONFIG_TYPE in datagram:
            self._note_unbinding(datagram)
        try:
            self.inner.send_nowait(datagram)
        except OSError as error:
            self._note(Note("refused", {"errno": error.errno or 0, "bytes": len(datagram)}))
            raise
        self._write(Record(time_ns, _TO, datagram))

    def queues(self) -> list[QueueRow]:
        """The queues that the inner backend lists."""
        return self.inner.queues()

    def socket_drops(self) -> int:
        """Datagrams that the inner backend's receive buffer refused."""
        return self.inner.socket_drops()

    def interface_name(self, index: int) -> str | None:
        """Name of a network interface, as the inner backend knows it."""
        return self.inner.interface_name(index)

    def close(self) -> None:
        """Note the final counters, complete the file and close the inner backend.

        Harmless when repeated.
        """
        try:
            if self._writer is not None:
                with suppress(OSError, trio.ClosedResourceError):
                    self._note_rows(set())
                    self._note(Note("socket", {"drops": self.inner.socket_drops()}))
                self._end()
        finally:
            self.inner.close()

    # -- the recording -------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether it still records: neither closed nor failed."""
        return self._writer is not None

    def flush(self) -> None:
        """Bring what was recorded into the file; raises nothing, see `failed`."""
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._fail(error)

    def _received(self, received: Received) -> None:
        losses = (
            ("overrun", received.overruns),
            ("truncated", received.truncated),
            ("foreign", received.foreign),
        )
        notes = tuple(Note(kind, {"count": count}) for kind, count in losses if count)
        if not received.datagrams and not notes:
            return
        time_ns = self.inner.now_ns()
        if notes:
            self._write(Record(time_ns, None, b"", notes))
        for datagram in received.datagrams:
            self._write(Record(time_ns, _FROM, datagram, self._new_interfaces(datagram)))

    def _new_interfaces(self, datagram: bytes) -> tuple[Note, ...]:
        """Notes on interfaces that a packet names and none before did."""
        try:
            shape = self._reader.shape(datagram)
        except RemoteProtocolError:
            return ()
        if shape is None:
            return ()
        notes: tuple[Note, ...] = ()
        seen = self._interfaces
        for device in _DEVICES:
            if device in shape.names:
                index = shape.read(device, datagram)
                if index not in seen and isinstance(index, int) and len(seen) < _INTERFACES_NOTED:
                    seen.add(index)
                    name = self._name(index)
                    if name is not None:
                        notes += (Note("interface", {"index": index, "name": name}),)
        return notes

    def _name(self, index: int) -> str | None:
        try:
            return self.inner.interface_name(index)
        except OSError:
            return None  # gone, or not to be asked: the packet's recording goes on

    def _note_unbinding(self, datagram: bytes) -> None:
        """Note the rows of queues that a datagram is about to unbind: afterwards they are gone."""
        try:
            messages = decode(datagram)
        except RemoteProtocolError:
            return
        ending = set()
        for message in messages:
            if isinstance(message, Message) and message.type == MessageType.CONFIG:
                command = by_name(NFQA_CFG, message.attributes).get("cmd")
                if isinstance(command, dict) and command["command"] == ConfigCommand.UNBIND:
                    ending.add(message.res_id)
        if ending:
            with suppress(OSError, trio.ClosedResourceError):
                self._note_rows(ending)

    def _note_rows(self, queues: set[int]) -> None:
        """Note our rows of these queues, of all where none is named."""
        port_id = self.inner.port_id
        for row in self.inner.queues():
            if row.portid == port_id and (row.queue in queues or not queues):
                self._note(Note("queue", row._asdict()))

    def _note(self, note: Note) -> None:
        self._write(Record(self.inner.now_ns(), None, b"", (note,)))

    def _write(self, record: Record) -> None:
        if self._writer is not None:
            try:
                self._writer.write(record)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failed = error
        _log.warning("recording %s has ended early, the queue runs on: %s", self.path, error)
        self._end()

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                if self.failed is None:
                    self._fail(error)
