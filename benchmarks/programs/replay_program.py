"""A policy on a replay: as many packets as it can, by one core, and no kernel.

Usage: replay_program.py CHECK COUNT

Prints packets per second of CPU time, from the first packet to the last.
"""

from __future__ import annotations

import sys
import time

import trio

from trionfq import ReplayBackend, open_queue
from trionfq.testing import make_packet, udp_packet

ID = 0x0A0B0C0D


async def main(check: str, count: int) -> None:
    # Made once, for making costs more than replaying: they differ by their ids.
    before, after = make_packet(ID, udp_packet(bytes(32))).split(ID.to_bytes(4, "big"))
    recorded = [before + number.to_bytes(4, "big") + after for number in range(1, count + 1)]
    backend = ReplayBackend(recorded, check=check)  # type: ignore[arg-type]
    async with open_queue(0, backend=backend) as queue:
        started = time.process_time()
        async for packet in queue:
            ip = packet.ip
            if ip.source and ip.destination and ip.destination_port != 53 and ip.source_port:
                packet.accept()
            else:
                packet.drop()
        spent = time.process_time() - started
    assert len(backend.transcript) == count
    print(count / spent)


trio.run(main, sys.argv[1], int(sys.argv[2]))
