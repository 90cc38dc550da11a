"""A capture that a command reads as bytes, with progress by the place in the file."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, cast

import click

from trionfq.cli._console import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPTURE = click.Path(exists=True, dir_okay=False, allow_dash=True)
"""A capture file, or ``-`` for standard input."""


class _Told:
    """A stream that tells how far it was read."""

    def __init__(self, stream: IO[bytes], tell: Callable[[int], None]) -> None:
        # Of a pipe, what is there, and not only as much as was asked for.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._tell = tell
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """As of any stream."""
        data = self._read(size)
        self._at += len(data)
        self._tell(self._at)
        return data


@contextmanager
def reading(name: str, *, shown: bool = True) -> Iterator[IO[bytes]]:
    """A capture by its name, as a stream; `shown` is whether there may be progress."""
    total = None if name == "-" else os.path.getsize(name)
    display = progress(name, total=total, every=1) if shown else nullcontext(lambda _number: None)
    with click.open_file(name, "rb") as stream, display as tell:
        yield cast("IO[bytes]", _Told(cast("IO[bytes]", stream), tell))
