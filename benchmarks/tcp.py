"""TCP by iperf3 through a veth pair: what a queue leaves of its throughput."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .measuring import Run, answering
from .network import FAR, far_end
from .processes import MeasuringError, cores, running

if TYPE_CHECKING:
    from .processes import Child
    from .rows import Row, Subject

_PATIENCE_S = 20.0
_LISTENS = ":1451 00000000000000000000000000000000:0000 0A"  # port 5201, from anywhere


def missing() -> str:
    """Why TCP cannot be measured here; empty if it can."""
    return "" if shutil.which("iperf3") else "iperf3 is not installed (Debian package iperf3)"


def measure_tcp(row: Row, subject: Subject, seconds: float) -> Run:
    """Throughput of one connection whose packets pass the program on their way out.

    Raises:
      MeasuringError: iperf3 or the program did not do what it should.
    """
    sender_core = cores()[1]
    whole = max(1, round(seconds))
    program = answering(row, subject) if subject.program else nullcontext()
    with far_end(0) as inside, program as child:
        server = [*inside, "iperf3", "--server", "--one-off", "--forceflush"]
        with running(server, sender_core) as listening:
            _wait_for_listener(listening)
            client = ["iperf3", "--client", FAR, "--time", str(whole), "--json"]
            before = child.cpu_ns() if child else 0
            with running(client, sender_core) as sending:
                answer = json.loads(sending.output(_PATIENCE_S + whole))
            used_ns = child.cpu_ns() - before if child else 0
    received = answer["end"]["sum_received"]
    values = {"Gbit/s": received["bits_per_second"] / 1e9}
    if child:
        values["CPU us/MiB"] = used_ns / 1e3 / (received["bytes"] / 2**20)
    return Run(values)


def _wait_for_listener(server: Child) -> None:
    """Until the far end's table of sockets has one that listens (state 0A) on iperf3's port."""
    deadline = time.monotonic() + _PATIENCE_S
    table = Path(f"/proc/{server.pid}/net/tcp6")
    while not any(_LISTENS in line for line in table.read_text().splitlines()):
        if server.ended:
            raise MeasuringError(f"iperf3 ended: {server.errors()}")
        if time.monotonic() > deadline:
            raise MeasuringError(f"iperf3 did not listen: {server.errors()}")
        time.sleep(0.005)
