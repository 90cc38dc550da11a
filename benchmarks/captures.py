"""What captures, recording and replay cost: CPU microseconds for each record or packet.

Run it as ``python -m benchmarks.captures``. CPU time, so that a busy machine counts less; each
figure is the least of several runs. Records are 160 bytes as they stand in the file's packet data
(the cooked header included), times nanoseconds, directions in the flags.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import trionfq
from trionfq import captures
from trionfq.captures import CaptureWriter, Record, open_capture
from trionfq.schema import Direction
from trionfq.testing import make_packet, udp_packet

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 5
RECORDS = 50_000
PACKETS = 10_000
START = 1_790_000_000_123_456_789
# 160 bytes with the cooked header's 16.
DATAGRAM = make_packet(1, udp_packet(bytes(64)), mark=7, queue=0)
RECORD = (DATAGRAM + bytes(144))[:144]


class Kept(io.BytesIO):
    """A file whose contents outlive it."""

    contents = b""

    def close(self) -> None:
        if not self.closed:
            self.contents = self.getvalue()
        super().close()


def least(run: Callable[[], object], count: int) -> float:
    """CPU microseconds for each of `count`, the least of several runs."""
    best = float("inf")
    for _ in range(RUNS):
        started = time.process_time()
        run()
        best = min(best, time.process_time() - started)
    return best / count * 1e6


def write() -> bytes:
    file = Kept()
    with CaptureWriter(file) as writer:
        for number in range(RECORDS):
            writer.write(Record(START + number, Direction.FROM_KERNEL, RECORD))
    return file.contents


def read(data: bytes) -> None:
    for _record in open_capture(io.BytesIO(data)):
        pass


def packets(data: bytes) -> None:
    for _packet in captures.read_packets(io.BytesIO(data), captures.Tally()):
        pass


async def accept_all(backend: trionfq.backends.Backend) -> None:
    async with trionfq.open_queue(0, backend=backend) as queue:
        async for packet in queue:
            packet.accept()


def main() -> None:
    data = write()
    print(f"write a record          {least(write, RECORDS):6.2f} us")
    print(f"read a record           {least(lambda: read(data), RECORDS):6.2f} us")
    print(f"read a captured packet  {least(lambda: packets(data), RECORDS):6.2f} us")
    source = [
        Record(
            START + number, Direction.FROM_KERNEL, make_packet(number + 1, udp_packet(bytes(64)))
        )
        for number in range(PACKETS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pcapng"
        with captures.create_capture(path) as writer:
            for record in source:
                writer.write(record)

        def replay() -> None:
            trio.run(accept_all, trionfq.ReplayBackend(source))

        def replay_file() -> None:
            trio.run(accept_all, trionfq.ReplayBackend(path))

        def lockstep() -> None:
            trio.run(accept_all, trionfq.ReplayBackend(source, pace="lockstep"))

        def recorded() -> None:
            inner = trionfq.ReplayBackend(source)
            recording = trionfq.RecordingBackend(inner, Path(folder) / "out", overwrite=True)
            trio.run(accept_all, recording)

        plain = least(replay, PACKETS)
        print(f"replay a packet         {plain:6.2f} us, the program's accept included")
        print(f"  from a file           {least(replay_file, PACKETS):6.2f} us")
        print(f"  in lockstep           {least(lockstep, PACKETS):6.2f} us")
        print(f"  recorded again        {least(recorded, PACKETS):6.2f} us")


if __name__ == "__main__":
    main()
