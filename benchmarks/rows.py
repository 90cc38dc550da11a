"""What is measured: one declaration a row.

A row is a job, a kind of traffic and the subjects that do it. A subject is a program of
``programs/``. To add a row, add a declaration; to add a job, a ``do_`` function to the programs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
BUILD = HERE / "build"

Load = Literal["closed loop", "deep backlog", "low", "none"]

# A default send buffer has room for about 277 small packets: then send blocks.
DEEP_SEND_BUFFER = 8 * 1024 * 1024
MAX_LEN = {"closed loop": 1024, "deep backlog": 65536, "low": 1024, "none": 0}
# Room for whatever the send buffer lets through, so that nothing is lost and all do the same work.
RECEIVE_BUFFER = {
    "closed loop": 8 * 1024 * 1024,
    "deep backlog": 64 * 1024 * 1024,
    "low": 8 * 1024 * 1024,
    "none": 0,
}


@dataclass(frozen=True)
class Subject:
    """A program that answers packets.

    Attributes:
      name: as tables show it.
      program: a file of ``programs/``, or the C floor's name.
      how: how the program takes packets.
      drain: most packets a read may bring; 0 leaves the program's own limit.
    """

    name: str
    program: str
    how: str
    drain: int = 0

    def command(self, job: Job, load: Load) -> list[str]:
        """How to start it for queue 0."""
        limits = [str(MAX_LEN[load]), str(RECEIVE_BUFFER[load])]
        if self.program == "replay":
            return [sys.executable, str(HERE / "programs" / "replay_program.py"), self.how]
        if self.program == "floor":
            return [str(BUILD / "floor"), self.how, str(self.drain), "0", *limits]
        program = str(HERE / "programs" / f"{self.program}_program.py")
        how = [self.how, job.work, str(job.held), str(self.drain)]
        return [sys.executable, program, *how, "0", *limits]


@dataclass(frozen=True)
class Job:
    """What is done with every packet.

    Attributes:
      work: name of a ``do_`` function of the programs.
      held: how many packets are left undecided before the others are answered.
      size: UDP payload bytes.
    """

    work: str = "accept"
    held: int = 0
    size: int = 32


@dataclass(frozen=True)
class Row:
    """One line of results for each subject.

    Attributes:
      name: as tables and the JSON show it.
      subjects: who does it, in the order in which they alternate.
      job: what they do.
      load: how packets come.
      kind: what is measured.
      quick: who does it in a quick run; nobody if empty.
    """

    name: str
    subjects: tuple[Subject, ...]
    job: Job = field(default=Job())
    load: Load = "closed loop"
    kind: Literal["cpu", "ping", "memory", "replay"] = "cpu"
    quick: tuple[Subject, ...] = ()


NFQ = Subject("NetfilterQueue", "netfilterqueue", "callback")
NFQ_TRIO = Subject("NetfilterQueue from trio", "netfilterqueue", "trio")
NFQ_TRIO_CALLBACK = Subject(
    "NetfilterQueue, callback under trio", "netfilterqueue", "trio_callback"
)
FNFQUEUE = Subject("fnfqueue", "fnfqueue", "loop")
C_RECV = Subject("C recv, send", "floor", "recv", 1)
C_SINGLES = Subject("C 64 verdicts a send", "floor", "singles", 64)
C_BATCH_64 = Subject("C VERDICT_BATCH 64", "floor", "batch", 64)
C_BATCH_256 = Subject("C VERDICT_BATCH 256", "floor", "batch", 256)
LOOP = Subject("trionfq async for", "trionfq", "loop")
BATCHES = Subject("trionfq batches()", "trionfq", "batches")
SERVE = Subject("trionfq serve(), sync", "trionfq", "serve")
SERVE_ASYNC = Subject("trionfq serve(), async", "trionfq", "serve_async")
SERVE_DEADLINE = Subject("trionfq serve(), async, deadline", "trionfq", "serve_deadline")
REPLAY = Subject("trionfq replay", "replay", "sample")
REPLAY_ALL = Subject("trionfq replay, all judged", "replay", "all")

FLOORS = (C_RECV, C_SINGLES, C_BATCH_64, C_BATCH_256)
PEERS = (NFQ, NFQ_TRIO, FNFQUEUE)
OURS = (LOOP, BATCHES, SERVE, SERVE_ASYNC)

EVERYBODY = (*FLOORS, NFQ, NFQ_TRIO, NFQ_TRIO_CALLBACK, FNFQUEUE, *OURS, SERVE_DEADLINE)

ROWS: tuple[Row, ...] = (
    Row("accept, 32 bytes", EVERYBODY, quick=EVERYBODY),
    Row(
        "accept, 32 bytes",
        (*FLOORS, NFQ, NFQ_TRIO, *OURS),
        load="deep backlog",
        quick=(C_BATCH_256, NFQ, LOOP),
    ),
    Row("accept, 1400 bytes", (C_RECV, C_BATCH_256, *PEERS, LOOP, BATCHES), Job(size=1400)),
    Row("payload read", (*PEERS, *OURS), Job("read"), quick=(NFQ, LOOP)),
    Row("payload read, 1400 bytes", (*PEERS, LOOP, BATCHES), Job("read", size=1400)),
    Row("addresses and ports read", (LOOP, BATCHES), Job("ports")),
    Row("every other dropped", (*PEERS, *OURS), Job("mix"), quick=(NFQ, LOOP)),
    Row("accepted with a mark", (NFQ, LOOP, BATCHES), Job("mark")),
    Row("payload rewritten", (NFQ, LOOP, BATCHES), Job("rewrite")),
    Row("1 held", (NFQ, LOOP, BATCHES), Job(held=1), quick=(NFQ, LOOP)),
    Row("100 held", (NFQ, LOOP, BATCHES), Job(held=100)),
    Row("1 held", (NFQ, LOOP, BATCHES), Job(held=1), load="deep backlog"),
    Row("10,000 held", (NFQ, LOOP, BATCHES), Job(held=10_000), load="deep backlog"),
    *(
        Row(
            f"at most {drain} a read",
            (
                Subject("C VERDICT_BATCH", "floor", "batch", drain),
                Subject("trionfq async for", "trionfq", "loop", drain),
                Subject("trionfq batches()", "trionfq", "batches", drain),
            ),
        )
        for drain in (8, 16, 32, 64, 128, 256)
    ),
    Row(
        "round trip of a ping",
        (C_RECV, NFQ, NFQ_TRIO_CALLBACK, NFQ_TRIO, LOOP, SERVE_ASYNC),
        load="low",
        kind="ping",
        quick=(NFQ, NFQ_TRIO, LOOP),
    ),
    Row(
        "replay, addresses and ports read",
        (REPLAY, REPLAY_ALL),
        load="none",
        kind="replay",
        quick=(REPLAY,),
    ),
    Row("memory", (LOOP,), kind="memory"),
)
