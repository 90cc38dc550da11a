"""Writing captures."""

from __future__ import annotations

import os
import platform
import stat
from typing import IO, TYPE_CHECKING, Final

from trionfq._capture_record import FLAGS, Record, cooked_header
from trionfq._notes import note_text
from trionfq._pcapng_writer import PcapngWriter
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.pcapng import LinkType

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from trionfq.schema import Order

_BUFFER_BYTES: Final = 1 << 16
_MODE: Final = 0o600


class CaptureWriter:
    """Writes records as pcapng. Made by `create_capture`, or around a stream of one's own.

    Records are buffered: `flush` or `close` brings the rest into the file. After an OSError
    nothing more is written; the same error is raised again.

    Args:
      stream: where the file goes; a binary stream.
      order: byte order of the file, the host's by default.
      system: operating system and kernel release that were recorded (shb_os).
      application: the recording program (shb_userappl).

    Raises:
      OSError: the stream cannot be written.
    """

    def __init__(
        self,
        stream: IO[bytes],
        *,
        order: Order = HOST_ORDER,
        system: str | None = None,
        application: str = "trionfq",
    ) -> None:
        facts = {
            "shb_hardware": platform.machine(),
            "shb_os": f"{platform.system()} {platform.release()}" if system is None else system,
            "shb_userappl": application,
        }
        self._stream = stream
        self._blocks = PcapngWriter(
            order=order, link_type=LinkType.NETLINK, name="nfqueue", facts=facts
        )
        self._cooked = {direction: cooked_header(direction) for direction in FLAGS}
        self._pending = [self._blocks.opening]
        self._pending_bytes = 0
        self._flushed_bytes = 0
        self._failure: OSError | None = None
        self.flush()

    @property
    def size_bytes(self) -> int:
        """Bytes written so far, those that are still buffered included."""
        return self._flushed_bytes + self._pending_bytes

    def write(self, record: Record) -> None:
        """Write a record; one without a datagram must have notes.

        Raises:
          CaptureError: the record cannot be written: a time before 1970 or after 2554, a note of
            more than 65535 bytes.
          ValueError: neither datagram nor notes, or a note that does not become a text.
          OSError: the stream cannot be written.
        """
        if self._failure is not None:
            raise self._failure
        time_ns, direction, datagram, notes = record
        comments = [note_text(note) for note in notes] if notes else ()
        if datagram or direction is not None:
            data = self._cooked[direction] + datagram
            block = self._blocks.packet(time_ns, data, FLAGS[direction], comments)
        elif comments:
            block = self._blocks.remark(time_ns, comments)
        else:
            raise ValueError("a record needs a datagram or notes")
        self._pending.append(block)
        self._pending_bytes += len(block)
        if self._pending_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Give what is buffered to the stream.

        Raises:
          OSError: the stream cannot be written.
        """
        if self._failure is not None:
            raise self._failure
        if self._pending:
            blocks = b"".join(self._pending)
            self._flushed_bytes += len(blocks)
            self._pending.clear()
            self._pending_bytes = 0
            view = memoryview(blocks)
            try:
                while view:
                    # An unbuffered file may take a part only.
                    view = view[self._stream.write(view) :]
                self._stream.flush()
            except OSError as error:
                # Where the file broke off, no block may follow: it would be read as a part of it.
                self._failure = error
                raise

    def close(self) -> None:
        """Flush, and close the stream even where that fails; harmless when repeated.

        Raises:
          OSError: the stream cannot be written.
        """
        try:
            if not self._stream.closed:
                self.flush()
        finally:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def create_capture(path: str | os.PathLike[str], *, overwrite: bool = False) -> CaptureWriter:
    """Create a capture file that only its owner may read (mode 0600): it holds packets' contents.

    Args:
      path: where.
      overwrite: empty a file that is there, and take it away from other readers (mode 0600, too).

    Raises:
      FileExistsError: the file is there, and `overwrite` is not given.
      OSError: it cannot be created or written.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), _MODE)
    stream = os.fdopen(descriptor, "wb", buffering=0)
    try:
        if overwrite and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.chmod(path, _MODE)
        return CaptureWriter(stream)
    except BaseException:
        stream.close()
        raise
