"""What is measured: one declaration a row.

A row is a job, a kind of traffic and the subjects that do it. A subject is a program of
``programs/``. To add a row, add a declaration; to add a job, a ``do_`` function to the programs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
BUILD = HERE / "build"

Load = Literal["closed loop", "deep backlog", "low", "tcp", "8 senders", "none"]
Kind = Literal["cpu", "ping", "memory", "replay", "tcp", "workers"]

# A default send buffer has room for about 277 small packets: then send blocks.
DEEP_SEND_BUFFER = 8 * 1024 * 1024
_MIB = 1024 * 1024
# The most packets that may wait, and room for whatever the send buffer lets through, so that
# nothing is lost and all do the same work.
LIMITS: dict[Load, tuple[int, int]] = {
    "closed loop": (1024, 8 * _MIB),
    "deep backlog": (65536, 64 * _MIB),
    "low": (1024, 8 * _MIB),
    "tcp": (4096, 64 * _MIB),
    "8 senders": (8192, 16 * _MIB),
    "none": (0, 0),
}


@dataclass(frozen=True)
class Subject:
    """A program that answers packets.

    Attributes:
      name: as tables show it.
      program: a file of ``programs/``, or the C floor's name; empty for no program at all.
      how: how the program takes packets.
      drain: most packets a read may bring; 0 leaves the program's own limit.
      held: packets left undecided before the others are answered; None takes the job's number.
      gso: whether the queue takes packets as large as they come.
    """

    name: str
    program: str
    how: str
    drain: int = 0
    held: int | None = None
    gso: bool = False

    def holds(self, job: Job) -> int:
        """How many packets it leaves undecided."""
        return job.held if self.held is None else self.held

    def holding(self, count: int) -> Subject:
        """The same with packets left undecided, and named so."""
        return replace(self, name=f"{self.name}, {count:,} held", held=count)

    def reading(self, count: int) -> Subject:
        """The same with at most so many packets a read, and named so."""
        return replace(self, name=f"{self.name}, {count} a read", drain=count)

    def command(self, job: Job, load: Load) -> list[str]:
        """How to start it for queue 0."""
        limits = [str(number) for number in LIMITS[load]]
        if self.program == "floor":
            return [str(BUILD / "floor"), self.how, str(self.drain), "0", *limits]
        program = [sys.executable, str(HERE / "programs" / f"{self.program}_program.py"), self.how]
        if self.program == "replay":
            return program
        how = [job.work, str(self.holds(job)), str(self.drain)]
        return [*program, *how, "0", *limits, *(["gso"] if self.gso else [])]


@dataclass(frozen=True)
class Job:
    """What is done with every packet.

    Attributes:
      work: name of a ``do_`` function of the programs; of worker processes, microseconds.
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
    kind: Kind = "cpu"
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
BATCHES_64 = BATCHES.reading(64)
SERVE_64 = SERVE.reading(64)
REPLAY = Subject("trionfq replay", "replay", "sample")
REPLAY_ALL = Subject("trionfq replay, all judged", "replay", "all")
ONE_WORKER = Subject("trionfq, 1 worker process", "trionfq_workers", "1")
TWO_WORKERS = Subject("trionfq, 2 worker processes", "trionfq_workers", "2")
# What a packet's policy takes: one that does something, or senders would be what is measured.
POLICIES_US = (5, 20)
NO_QUEUE = Subject("no queue", "", "")
LOOP_GSO = replace(LOOP, name="trionfq async for, GSO", gso=True)

FLOORS = (C_RECV, C_SINGLES, C_BATCH_64, C_BATCH_256)
PEERS = (NFQ, NFQ_TRIO, FNFQUEUE)
OURS = (LOOP, BATCHES, SERVE, SERVE_ASYNC)
AT_64 = (BATCHES_64, SERVE_64)

EVERYBODY = (
    *FLOORS, NFQ, NFQ_TRIO, NFQ_TRIO_CALLBACK, FNFQUEUE, *OURS, SERVE_DEADLINE, *AT_64
)  # fmt: skip
HOLDING = tuple(subject.holding(count) for count in (1, 10_000) for subject in (NFQ, LOOP, BATCHES))

ROWS: tuple[Row, ...] = (
    Row(
        "accept, 32 bytes",
        EVERYBODY,
        quick=(C_RECV, C_BATCH_64, C_BATCH_256, NFQ, NFQ_TRIO, *OURS, SERVE_DEADLINE, *AT_64),
    ),
    Row(
        "accept, 32 bytes",
        (*FLOORS, NFQ, NFQ_TRIO, *OURS),
        load="deep backlog",
        quick=(C_BATCH_256, NFQ, LOOP),
    ),
    Row("accept, 1400 bytes", (C_RECV, C_BATCH_256, *PEERS, LOOP, BATCHES), Job(size=1400)),
    Row(
        "handler that lets other tasks run",
        (NFQ_TRIO, SERVE_ASYNC, SERVE_DEADLINE),
        Job("await_accept"),
    ),
    Row("payload read", (*PEERS, *OURS), Job("read"), quick=(NFQ, LOOP)),
    Row("payload read, 1400 bytes", (*PEERS, LOOP, BATCHES), Job("read", size=1400)),
    Row("addresses and ports read", (NFQ, FNFQUEUE, LOOP, BATCHES), Job("ports")),
    Row("every other dropped", (*PEERS, *OURS), Job("mix"), quick=(NFQ, LOOP)),
    Row("accepted with a mark", (NFQ, FNFQUEUE, LOOP, BATCHES), Job("mark")),
    Row("payload and checksum rewritten", (NFQ, FNFQUEUE, LOOP, BATCHES), Job("rewrite")),
    Row("1 held", (NFQ, LOOP, BATCHES), Job(held=1), quick=(NFQ, LOOP)),
    Row("100 held", (NFQ, LOOP, BATCHES), Job(held=100)),
    Row(
        "1 and 10,000 held",
        HOLDING,
        load="deep backlog",
        quick=(LOOP.holding(1), LOOP.holding(10_000)),
    ),
    *(
        Row(
            f"at most {drain} a read",
            (
                Subject("C VERDICT_BATCH", "floor", "batch", drain),
                replace(LOOP, drain=drain),
                replace(BATCHES, drain=drain),
                replace(SERVE, drain=drain),
            ),
        )
        for drain in (8, 16, 32, 64, 128, 256)
    ),
    Row(
        "round trip of a ping",
        (C_RECV, NFQ, NFQ_TRIO_CALLBACK, NFQ_TRIO, LOOP, SERVE_ASYNC),
        load="low",
        kind="ping",
        quick=(NFQ_TRIO, LOOP),
    ),
    Row(
        "TCP through a veth pair",
        (NO_QUEUE, NFQ, LOOP, LOOP_GSO),
        load="tcp",
        kind="tcp",
        quick=(NO_QUEUE, NFQ, LOOP_GSO),
    ),
    # The shorter the policy, the more of the two cores the senders need.
    *(
        Row(
            f"worker processes, policy of {policy_us} us",
            (ONE_WORKER, TWO_WORKERS),
            Job(f"{policy_us}"),
            load="8 senders",
            kind="workers",
            quick=(ONE_WORKER, TWO_WORKERS),
        )
        for policy_us in POLICIES_US
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
