"""Where records come from: the only module of the judge that knows captures, and so the codec."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from trionfq.captures import open_capture

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from trionfq.captures import Record


def records_of(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[Record]:
    """The records of a capture file, which is closed when they end.

    Raises:
      CaptureError: at once where it is no capture, while iterating where it is malformed.
      OSError: at once where it cannot be opened.
    """
    capture = open_capture(source)

    def records() -> Iterator[Record]:
        with capture:
            yield from capture

    return records()
