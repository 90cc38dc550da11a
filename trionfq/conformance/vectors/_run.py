"""Giving the vectors to somebody's parser or builder, a process that speaks JSON lines.

One task a line, one answer a line, in lockstep; README.md beside this module describes both. The
time for each answer is bounded, and so is the length of a line: a process that hangs, dies or
floods is stopped, and what it had not answered counts as disagreement.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_MOST_BYTES = 1 << 20
_CHUNK = 1 << 16


class Disagreement(NamedTuple):
    """A task that a program did otherwise.

    Attributes:
      vector: name of the vector.
      task: ``parse`` or ``build``.
      expected: what the vector says, in words or as JSON's types.
      got: the program's answer, or what became of it.
    """

    vector: str
    task: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.task} {self.vector}: expected {self.expected}, got {self.got}"


class Agreement(NamedTuple):
    """What a program did with the vectors.

    Attributes:
      agreed: tasks done as the vectors say, by kind: ``parse``, ``refuse`` (a parse that must
        fail) and ``build``.
      skipped: tasks that the program said it does not do.
      disagreements: the others.
    """

    agreed: dict[str, int]
    skipped: int
    disagreements: list[Disagreement]

    @property
    def passed(self) -> bool:
        """Whether nothing was done otherwise, and something was done at all."""
        return not self.disagreements and any(self.agreed.values())

    def as_json(self) -> dict[str, Any]:
        """As JSON's types."""
        return {
            "passed": self.passed,
            "agreed": self.agreed,
            "skipped": self.skipped,
            "disagreements": [each._asdict() for each in self.disagreements],
        }


class _StoppedError(Exception):
    """The program gives no more answers; the text says why."""


def tasks(vectors: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each task for a program, with its vector."""
    for vector in vectors:
        head = {"direction": vector["direction"], "order": vector["order"]}
        yield {"do": "parse", **head, "bytes": vector["bytes"]}, vector
        if vector["build"]:
            yield {"do": "build", **head, "messages": vector["messages"]}, vector


def run(
    command: Sequence[str],
    vectors: Iterable[dict[str, Any]],
    *,
    answer_s: float = 5.0,
    start_s: float = 30.0,
    total_s: float = 300.0,
) -> Agreement:
    """Give every vector to a program.

    Args:
      command: the program and its arguments; its standard error is the caller's.
      vectors: as `load` gives them.
      answer_s: seconds for one answer.
      start_s: seconds for the first one, for a program may be slow to start.
      total_s: seconds for all.

    Raises:
      OSError: the program cannot be started.
    """
    agreed = {"parse": 0, "refuse": 0, "build": 0}
    skipped = 0
    wrong: list[Disagreement] = []
    why: str | None = None
    with _Program(command, total_s) as program:
        for number, (task, vector) in enumerate(tasks(vectors)):
            kind, expected = _expected(task, vector)
            if why is None:
                try:
                    answer = program.ask({"id": number, **task}, answer_s if number else start_s)
                except _StoppedError as error:
                    why = str(error)
            if why is not None:
                wrong.append(Disagreement(vector["name"], task["do"], expected, why))
            elif "skip" in answer:
                skipped += 1
            elif _agrees(kind, expected, answer):
                agreed[kind] += 1
            else:
                wrong.append(Disagreement(vector["name"], task["do"], expected, answer))
    return Agreement(agreed, skipped, wrong)


def _expected(task: dict[str, Any], vector: dict[str, Any]) -> tuple[str, Any]:
    if task["do"] == "build":
        return "build", {"bytes": vector["bytes"]}
    if vector["messages"] is None:
        return "refuse", "an error"
    return "parse", {"messages": vector["messages"]}


def _agrees(kind: str, expected: Any, answer: dict[str, Any]) -> bool:
    if kind == "refuse":
        return "error" in answer
    return "error" not in answer and all(answer.get(key) == expected[key] for key in expected)


class _Program:
    """A process of its own group, which is gone when the block is left."""

    def __init__(self, command: Sequence[str], total_s: float) -> None:
        self._end = time.monotonic() + total_s
        self._process = subprocess.Popen(  # noqa: S603 - running it is what was asked for
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None  # as asked for
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._buffer = b""

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def ask(self, task: dict[str, Any], answer_s: float) -> dict[str, Any]:
        """Give one task and wait for its answer.

        Raises:
          _StoppedError: none came that can be read.
        """
        until = min(time.monotonic() + answer_s, self._end)
        self._write(json.dumps(task).encode() + b"\n", until)
        line = self._read_line(until)
        try:
            answer = json.loads(line)
        except ValueError:
            raise _StoppedError(f"an answer that is no JSON: {line[:80]!r}") from None
        if not isinstance(answer, dict) or answer.get("id") != task["id"]:
            raise _StoppedError(f"an answer to something else: {line[:80]!r}")
        return answer

    def _wait(self, descriptor: int, until: float, *, writing: bool) -> None:
        left = until - time.monotonic()
        reads, writes = ([], [descriptor]) if writing else ([descriptor], [])
        if left <= 0 or not any(select.select(reads, writes, [], left)):
            raise _StoppedError("no answer in time")

    def _write(self, line: bytes, until: float) -> None:
        while line:
            self._wait(self._in, until, writing=True)
            try:
                line = line[os.write(self._in, line) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _StoppedError("the program has ended") from None

    def _read_line(self, until: float) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MOST_BYTES:
                raise _StoppedError(f"an answer of more than {_MOST_BYTES} bytes")
            self._wait(self._out, until, writing=False)
            chunk = os.read(self._out, _CHUNK)
            if not chunk:
                raise _StoppedError("the program has ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
