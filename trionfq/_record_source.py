"""What a replay can take its packets from besides files and lists: a source that makes records."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, TypeAlias

from trionfq._capture_record import Record, make_record
from trionfq._capture_stream import Tally

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from trionfq._capture_columns import Columns

File: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
"""A path, or a binary stream, which stays the caller's to close and is read once."""


class RecordSource(ABC):
    """An iterable of records, in constant memory; each pass over a path opens it anew.

    Raises:
      CaptureError: while iterating: the file is no capture, or is malformed from here on.
      OSError: while iterating: it cannot be read.
    """

    def __init__(self) -> None:
        self._tally = Tally()

    @property
    def skipped(self) -> Mapping[str, int]:
        """What the last pass has left out so far, by kind."""
        return self._tally.counts()

    @abstractmethod
    def columns(self) -> Generator[Columns, None, None]:
        """The records in columns; a pass of its own."""

    @abstractmethod
    def queues(self) -> set[int]:
        """The queues that packets are of, as far as it can be read."""

    def __iter__(self) -> Iterator[Record]:
        for chunk in self.columns():
            yield from map(make_record, zip(*chunk, strict=True))


@contextmanager
def opened(file: File) -> Generator[IO[bytes], None, None]:
    """A file as a stream, closed at the end unless it is the caller's."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb", buffering=0) as stream:
            yield stream
    else:
        yield file
