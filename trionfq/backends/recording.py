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
from trionfq.backends._rotation import QueueSettings, Rotation, part_path
from trionfq.captures import CaptureWriter, Note, Record, create_capture
from trionfq.schema import Direction, Message, by_name
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand, MessageType

if TYPE_CHECKING:
    from trionfq.backends._abc import Backend, QueueRow, Received
    from trionfq.schema import AnyMessage

__all__ = ["RecordingBackend", "Rotation"]

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

    A long recording can go on in another file (`rotate`). Each part replays on its own: the
    settings of the queues are repeated, and interfaces are named anew. No record is lost between
    two, and none is in both; only the verdict on a packet may stand in a later part than it.

    When the file cannot be written (a full disk), the recording ends there and the queue runs on:
    a warning is logged, and `failed` says why.

    Args:
      inner: the backend to record; closed with this one.
      path: the file, created so that only its owner may read it (mode 0600).
      overwrite: empty a file that is there.
      rotate: when to begin the next file. The files are then called after `path` with a number of
        five digits before the suffix, ``run.00000.pcapng``, ``run.00001.pcapng`` and so on.

    Attributes:
      inner: the recorded backend.
      path: the present file.
      failed: why the recording ended early, None while it is complete.

    Raises:
      FileExistsError: the file is there, and `overwrite` is not given; `inner` stays open.
      OSError: the file cannot be created or written; `inner` stays open.
    """

    def __init__(
        self,
        inner: Backend,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        rotate: Rotation | None = None,
    ) -> None:
        self.inner = inner
        self.path = os.fspath(path) if rotate is None else part_path(path, 0)
        self.failed: Exception | None = None
        self._whole = os.fspath(path)
        self._overwrite = overwrite
        self._rotation = rotate
        self._part = 0
        self._kept = [self.path]
        self._settings = QueueSettings()
        self._reader = PacketReader()
        self._interfaces: set[int] = set()
        self._writer: CaptureWriter | None = create_capture(self.path, overwrite=overwrite)
        self._begin()

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
        self._rotate_if_due(time_ns)
        messages: list[AnyMessage] = []
        if _CONFIG_TYPE in datagram:
            with suppress(RemoteProtocolError):
                messages = decode(datagram)
            self._note_unbinding(messages)
        try:
            self.inner.send_nowait(datagram)
        except OSError as error:
            self._note(Note("refused", {"errno": error.errno or 0, "bytes": len(datagram)}))
            raise
        self._write(Record(time_ns, _TO, datagram))
        if self._rotation is not None:
            self._settings.sent(messages)

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
                self._note_counters()
                self._end()
        finally:
            self.inner.close()

    # -- the recording -------------------------------------------------------------------------

    @property
    def paths(self) -> list[str]:
        """The files of this recording that are kept, in order; the last one is written."""
        return list(self._kept)

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

    def _begin(self) -> None:
        """The first records of a file."""
        about: dict[str, int | str] = {
            "backend": type(self.inner).__name__,
            "port_id": self.inner.port_id,
            "release": platform.release(),
        }
        if self._rotation is not None:
            about["part"] = self._part
        time_ns = self.inner.now_ns()
        self._started_ns = time_ns
        self._write(Record(time_ns, None, b"", (Note("recording", about),)))
        for request in self._settings.requests() if self._part else ():
            self._write(Record(time_ns, _TO, request, (Note("setup", {"part": self._part}),)))

    def _rotate_if_due(self, time_ns: int) -> None:
        """Go on in the next file where this one is full; what goes wrong ends the recording."""
        writer, rotation = self._writer, self._rotation
        if writer is None or rotation is None:
            return
        if rotation.is_due(writer.size_bytes, time_ns - self._started_ns):
            try:
                self._rotate()
            except Exception as error:
                self._fail(error)

    def _rotate(self) -> None:
        self._note_counters()
        self._end()
        if self.failed is not None:
            return
        following = part_path(self._whole, self._part + 1)
        self._writer = create_capture(following, overwrite=self._overwrite)
        self._part += 1
        self.path = following
        self._kept.append(following)
        self._interfaces.clear()
        self._begin()
        keep = None if self._rotation is None else self._rotation.keep
        while keep is not None and len(self._kept) > keep:
            oldest = self._kept.pop(0)
            try:
                os.unlink(oldest)
            except OSError as error:
                _log.warning("recording %s: an old part stays: %s", self._whole, error)

    def _note_counters(self) -> None:
        """Note what the kernel has counted, for the end of a file."""
        with suppress(OSError, trio.ClosedResourceError):
            self._note_rows(set())
            self._note(Note("socket", {"drops": self.inner.socket_drops()}))

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
            self._rotate_if_due(time_ns)
            self._write(Record(time_ns, None, b"", notes))
        rotates = self._rotation is not None
        for datagram in received.datagrams:
            if rotates:
                self._rotate_if_due(time_ns)
                if _CONFIG_TYPE in datagram:
                    with suppress(RemoteProtocolError):
                        self._settings.answered(decode(datagram))
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

    def _note_unbinding(self, messages: list[AnyMessage]) -> None:
        """Note the rows of queues that are about to be unbound: afterwards they are gone."""
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
