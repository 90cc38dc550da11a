"""Reading captures: the packets of any capture file, and the records of ours."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from trionfq._capture_columns import ColumnReader, file_reader
from trionfq._capture_record import make_record
from trionfq._capture_stream import CapturedPacket, ForwardReader, Remark, Tally
from trionfq.schema.pcapng import LinkType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from trionfq._capture_record import Record
    from trionfq._pcapng import Section
    from trionfq.schema import Order


def read_packets(stream: IO[bytes], tally: Tally) -> Iterator[CapturedPacket | Remark]:
    """The packets of a pcapng or classic pcap stream, of whatever link type.

    Raises:
      CaptureError: at once where it is neither; while iterating where it is malformed.
    """
    return iter(file_reader(ForwardReader(stream), tally))


def is_of_packets(path: str | os.PathLike[str]) -> bool:
    """Whether a capture's first packet is an ordinary one, and no netlink message.

    Raises:
      CaptureError, OSError: as `open_capture`.
    """
    with open(path, "rb", buffering=0) as stream:
        for found in read_packets(stream, Tally()):
            if isinstance(found, CapturedPacket):
                return found.interface.link_type != LinkType.NETLINK
    return False


class Capture:
    """An open capture: an iterator of its records, in constant memory. Made by `open_capture`.

    A file that is cut off gives all whole records, then a CaptureError.
    """

    def __init__(self, stream: IO[bytes], *, owned: bool) -> None:
        self._stream = stream
        self._owned = owned
        self._columns = ColumnReader(stream)
        self._records = self._read()

    @property
    def order(self) -> Order | None:
        """Byte order of the recorded host's netlink headers, None before the first datagram.

        Found anew in each section of the file.
        """
        return self._columns.order

    @property
    def section(self) -> Section | None:
        """What the present section says of itself; None in a classic pcap, or before the first."""
        return self._columns.section

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many of each kind were passed over so far: link types, blocks, options, cut ones."""
        return self._columns.tally.counts()

    @property
    def interface_names(self) -> Mapping[int, str]:
        """Names of network interfaces by index, as far as notes have told them."""
        return self._columns.names

    @property
    def columns(self) -> ColumnReader:
        """The same records in columns; instead of iterating, not besides."""
        return self._columns

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        return next(self._records)

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
        """Close the file, unless the stream was the caller's; harmless when repeated."""
        if self._owned:
            self._stream.close()

    def _read(self) -> Iterator[Record]:
        for columns in self._columns:
            yield from map(make_record, zip(*columns, strict=True))


def open_capture(source: str | os.PathLike[str] | IO[bytes]) -> Capture:
    """Open a capture file and read on demand.

    Args:
      source: a path, or a binary stream, which stays the caller's to close.

    Raises:
      CaptureError: it is neither pcapng nor pcap. What is wrong further on is raised while reading.
      OSError: the file cannot be opened.
    """
    if not isinstance(source, str | os.PathLike):
        return Capture(source, owned=False)
    stream = open(source, "rb", buffering=0)  # noqa: SIM115 - the capture closes it
    try:
        return Capture(stream, owned=True)
    except BaseException:
        stream.close()
        raise
