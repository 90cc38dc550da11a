"""What must hold of any bytes that are taken for a capture file."""

from __future__ import annotations

import io
from typing import Any

from trionfq import schema
from trionfq._capture_bindings import Tracker
from trionfq._errors import CaptureError
from trionfq._pcapng_quick import QuickReader
from trionfq.captures import PacketSource, open_capture
from trionfq.schema import Message

_run = QuickReader.run


def _nothing(_reader: QuickReader) -> None:
    """No run: each packet is read by itself."""


def check(data: bytes) -> None:
    """Read a file in every way.

    Raises:
      AssertionError: the quick way and the slow one differ, or a packet is none.
      Exception: anything but CaptureError, which is how a reader says that it is no such file.
    """
    quick = _read(data)
    try:
        QuickReader.run = _nothing  # type: ignore[method-assign,assignment]
        assert _read(data) == quick
    finally:
        QuickReader.run = _run  # type: ignore[method-assign]
    for options in ({}, {"bridge": True, "hook": 3}):
        _packets(data, options)


def _read(data: bytes) -> tuple[list[Any], str]:
    records: list[Any] = []
    tracker = Tracker()
    try:
        capture = open_capture(io.BytesIO(data))
        for record in capture:
            records.append((record, capture.order))
            tracker.take(record.direction, record.datagram, record.time_ns)
        return records, str(dict(capture.skipped))
    except CaptureError as error:
        assert error.offset is not None
        return records, str(error)


def _packets(data: bytes, options: dict[str, Any]) -> None:
    try:
        for record in PacketSource(io.BytesIO(data), **options):
            if record.datagram:
                (message,) = schema.parse(record.datagram)
                assert isinstance(message, Message)
    except CaptureError:
        pass
