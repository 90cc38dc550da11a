"""What captures, recording and replay cost: CPU microseconds for each record or packet.

Run it as ``python -m benchmarks.captures``. CPU time, so that a busy machine counts less; each
figure is the least of several runs. Records are 160 bytes as they stand in the file's packet data
(the cooked header included), times nanoseconds, directions in the flags.

``python -m benchmarks.captures --large`` instead writes files of 2 GB into a temporary folder,
reads and replays each in a process of its own, and prints how much memory that took. With a second
argument they have so many bytes.
"""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
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
ID_AT = make_packet(0x0A0B0C0D).index(b"\x0a\x0b\x0c\x0d")


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


# -- large files -----------------------------------------------------------------------------------

LARGE = 2_000_000_000
KIB = 1024


def write_recording(path: Path, size: int) -> None:
    """A recording of packets of 1,000 bytes."""
    sample = make_packet(1, udp_packet(bytes(972)))
    head, tail = sample[:ID_AT], sample[ID_AT + 4 :]
    with captures.create_capture(path) as writer:
        for number in range(1, size // (len(sample) + 64)):
            datagram = head + number.to_bytes(4, "big") + tail
            writer.write(Record(START + number, Direction.FROM_KERNEL, datagram))


def write_frames(path: Path, size: int) -> None:
    """A classic pcap of Ethernet frames of 1,014 bytes."""
    frame = bytes(12) + b"\x08\x00" + udp_packet(bytes(972))
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for number in range(size // (len(frame) + 16)):
            file.write(struct.pack("<IIII", 1_790_000_000 + number, 0, len(frame), len(frame)))
            file.write(frame)


def measure(what: str, path: str) -> None:
    """Read or replay a file, and print memory and time; in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    count = 0
    if what == "read":
        with open_capture(path) as capture:
            count = sum(len(columns.times) for columns in capture.columns)
    else:
        source = captures.PacketSource(path) if what == "frames" else path
        backend = trionfq.ReplayBackend(source, keep_transcript=False)

        async def accept_and_count() -> None:
            nonlocal count
            async with trionfq.open_queue(0, backend=backend) as queue:
                async for packet in queue:
                    count += 1
                    packet.accept()

        trio.run(accept_and_count)
    took = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{what:9} {Path(path).stat().st_size / 1e9:5.2f} GB {count:9,} packets "
        f"{took / count * 1e6:6.2f} us each, memory {before / KIB:4.0f} MiB before, "
        f"{peak / KIB:4.0f} MiB at most",
        flush=True,
    )


def large(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, make, whats in (
            ("recording.pcapng", write_recording, ("read", "replay")),
            ("frames.pcap", write_frames, ("frames",)),
        ):
            path = Path(folder) / name
            make(path, size)
            for what in whats:
                command = [sys.executable, "-m", "benchmarks.captures", f"--{what}", str(path)]
                subprocess.run(command, check=True)
            path.unlink()


def main() -> None:
    if len(sys.argv) > 1:
        option = sys.argv[1].removeprefix("--")
        if option == "large":
            large(int(sys.argv[2]) if len(sys.argv) > 2 else LARGE)
        else:
            measure(option, sys.argv[2])
        return
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
