"""/proc/net/netfilter/nfnetlink_queue of one network namespace, readable from anywhere later."""

from __future__ import annotations

import io
import os

from trionfq.backends._abc import QueueRow

# thread-self, since a namespace is entered by a thread: /proc/net is that of the main thread.
_FOLDER = "/proc/thread-self/net/netfilter"
_FILE = "nfnetlink_queue"
_READ_BYTES = 65536


class QueueTable:
    """Opens the file for the namespace of the calling thread and keeps it.

    The folder is kept instead while the file is missing: nfnetlink_queue is loaded by the first
    request that needs it (nfnetlink_rcv_msg), and a folder below /proc/thread-self/net, once
    opened, belongs to the namespace and outlives the thread.

    Args:
      failure: why the namespace could not be entered, for `rows` to raise; nothing is opened then.
    """

    def __init__(self, failure: OSError | None = None) -> None:
        self._file: io.FileIO | None = None
        self._folder: int | None = None
        self._failure = failure
        if failure is not None:
            return
        try:
            self._folder = os.open(_FOLDER, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._open()
        except FileNotFoundError:
            pass
        except OSError as error:
            self._failure = error  # the file is root's alone; said when somebody asks

    def rows(self) -> list[QueueRow]:
        """All rows; none where the kernel module is not loaded."""
        if self._failure is not None:
            raise self._failure
        if self._file is None:
            try:
                self._open()
            except FileNotFoundError:
                return []
        assert self._file is not None
        fd = self._file.fileno()
        text = b""
        while chunk := os.pread(fd, _READ_BYTES, len(text)):
            text += chunk
        return parse_queue_rows(text.decode("ascii"))

    def _open(self) -> None:
        if self._folder is None:
            raise FileNotFoundError(_FOLDER)
        fd = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        self._file = io.FileIO(fd)
        os.close(self._folder)
        self._folder = None

    def close(self) -> None:
        """Close; harmless when repeated."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def parse_queue_rows(text: str) -> list[QueueRow]:
    """Rows of the file; the ninth column is always 1 (seq_show, nfnetlink_queue.c)."""
    return [QueueRow(*map(int, line.split()[:8])) for line in text.splitlines()]
