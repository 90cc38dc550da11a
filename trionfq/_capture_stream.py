"""What reading any capture file needs: a forward stream with offsets, and counts of skipped things.

Invariants: memory stays constant however long the file is and whatever its length fields claim,
and nothing is skipped without being counted.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Final, NamedTuple

from trionfq._errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CHUNK_BYTES: Final = 1 << 16
MAX_RECORD_BYTES: Final = 1 << 24
"""Longest block or record that is read into memory; netlink datagrams are far shorter.

A longer packet is an error, a longer unknown block is skipped piece by piece.
"""
_KINDS_COUNTED: Final = 256
_OTHER_KINDS: Final = "other kinds"


class Interface(NamedTuple):
    """Where packets of a capture come from.

    A timestamp becomes nanoseconds as ``timestamp * multiplier // divisor + offset_ns``, in
    integers: exact for every unit down to a nanosecond, rounded down for finer ones.

    Attributes:
      link_type: LINKTYPE_* number.
      snap_length: most bytes captured of a packet, 0 for no limit.
      name: its name, ``""`` where the file has none.
      multiplier: nanoseconds in a unit of time, 1 for units shorter than that.
      divisor: units of time in a nanosecond, 1 for longer ones.
      offset_ns: what is added to times, in nanoseconds.
      number: its number in the section, from 0.
    """

    link_type: int
    snap_length: int
    name: str = ""
    multiplier: int = 1
    divisor: int = 1
    offset_ns: int = 0
    number: int = 0


class CapturedPacket(NamedTuple):
    """One packet as it stands in a capture file, of any link type.

    Attributes:
      time_ns: nanoseconds since the epoch. A simple packet block has no time of its own: it gets
        that of the packet before it, 0 where it is the first.
      interface: where it was captured.
      data: the captured bytes, link-layer header included.
      original_length: length of the whole packet in bytes; more than captured where it was cut.
      flags: epb_flags, 0 where the file has none; its two low bits are the direction.
      comments: opt_comment options.
    """

    time_ns: int
    interface: Interface
    data: bytes
    original_length: int
    flags: int = 0
    comments: tuple[str, ...] = ()


class Remark(NamedTuple):
    """Comments with a time and no packet: those of an interface statistics block."""

    time_ns: int
    comments: tuple[str, ...]


class Tally:
    """Counts what a reader skips, by kind; a crafted file cannot make it grow without bound."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, kind: str, count: int = 1) -> None:
        """Count one, or several."""
        counts = self._counts
        if kind not in counts and len(counts) >= _KINDS_COUNTED:
            kind = _OTHER_KINDS
        counts[kind] = counts.get(kind, 0) + count

    def counts(self) -> Mapping[str, int]:
        """How many of each kind, in order of first sight."""
        return dict(self._counts)


class ForwardReader:
    """Reads a binary stream forward in chunks.

    ``buffer`` and ``at`` are for callers that parse in place: `at` is where the unread bytes
    begin. They change with every call. Where reading the stream fails, what came before is read
    first.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        # What comes through a pipe is taken as it comes.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._base = 0
        self._failure: CaptureError | OSError | None = None
        self.buffer = b""
        self.at = 0

    @property
    def offset(self) -> int:
        """Offset in the stream of the next unread byte."""
        return self._base + self.at

    @property
    def broken(self) -> bool:
        """Whether reading the stream has failed; what came before may still be there."""
        return self._failure is not None

    def available(self, size: int) -> int:
        """Have `size` bytes in the buffer; returns how many there are, fewer only at the end.

        Raises:
          CaptureError: nothing is left, and the stream did not end there but is broken.
          OSError: likewise; it cannot be read.
        """
        have = len(self.buffer) - self.at
        if have >= size:
            return have
        pieces = [self.buffer[self.at :]]
        while have < size and self._failure is None:
            # Never more than a chunk at a time: a length is only believed as far as bytes come.
            try:
                piece = self._read(CHUNK_BYTES)
            except (CaptureError, OSError) as error:
                self._failure = error
                break
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        self._base += self.at
        self.at = 0
        self.buffer = b"".join(pieces)
        if have == 0 and self._failure is not None:
            raise self._broken()
        return have

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes.

        Raises:
          CaptureError: the stream ends before.
          OSError: it cannot be read.
        """
        have = self.available(size)
        if have < size:
            raise self.cut(size, have, what)
        start = self.at
        self.at += size
        return self.buffer[start : self.at]

    def cut(self, size: int, have: int, what: str) -> CaptureError | OSError:
        """What to raise where the stream ends too early.

        Args:
          size: bytes that were expected.
          have: bytes that are there.
          what: of what.
        """
        if self._failure is not None:
            return self._broken()
        return CaptureError(
            f"{what}: expected {size} bytes, the file ends after {have}", offset=self.offset
        )

    def skip(self, size: int, what: str) -> None:
        """Pass over `size` bytes without keeping them.

        Raises:
          CaptureError: the stream ends before.
          OSError: it cannot be read.
        """
        while size > 0:
            step = min(size, CHUNK_BYTES)
            self.take(step, what)
            size -= step

    def _broken(self) -> CaptureError | OSError:
        failure = self._failure
        assert failure is not None
        if isinstance(failure, CaptureError) and failure.offset is None:
            end = self._base + len(self.buffer)
            return CaptureError(str(failure), offset=end)
        return failure
