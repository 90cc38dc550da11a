"""What a test says of the verdicts of one run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trionfq._compare import compare
from trionfq._queue import Queue
from trionfq._transcript import Outcome
from trionfq._transcript_file import SUFFIXES, read_transcript
from trionfq._transcript_read import transcript
from trionfq._verdict import Verdict
from trionfq.backends.recording import RecordingBackend
from trionfq.backends.replay import ReplayBackend
from trionfq.captures import open_capture
from trionfq.schema.nfqueue import VERDICT_MASK

if TYPE_CHECKING:
    from collections.abc import Iterable

Expected: TypeAlias = "str | int | Mapping[str, Any] | None"
"""A verdict by name or number, None for undecided, or a mapping with what else shall be so."""

_MEMBERS: Final = ("verdict", "mark", "payload")


def outcomes_of(run: Queue | str | os.PathLike[str] | Iterable[Outcome]) -> list[Outcome]:
    """What became of the packets of a run.

    Args:
      run: a queue that was replayed or is recorded, a transcript, a file of one, or a capture.

    Raises:
      TypeError: a live queue that is not recorded.
      CaptureError, RemoteProtocolError, OSError: a file cannot be read.
    """
    if isinstance(run, Queue):
        return _of_queue(run)
    if not isinstance(run, str | os.PathLike):
        return list(run)
    if os.path.splitext(run)[1] in SUFFIXES:
        return read_transcript(run)
    with open_capture(run) as capture:
        return transcript(capture)


def _of_queue(queue: Queue) -> list[Outcome]:
    backend: Any = queue.backend
    recorded: list[Outcome] | None = None
    while backend is not None:
        if isinstance(backend, ReplayBackend):
            return backend.transcript
        if isinstance(backend, RecordingBackend) and recorded is None:
            backend.flush()
            recorded = []
            for path in backend.paths:
                with open_capture(path) as capture:
                    recorded += transcript(capture, queue=queue.number)
        backend = getattr(backend, "inner", None)
    if recorded is None:
        raise TypeError(
            f"queue {queue.number} is neither replayed nor recorded: open it with a "
            "RecordingBackend"
        )
    return recorded


def assert_verdicts(
    run: Queue | str | os.PathLike[str] | Iterable[Outcome],
    expected: Iterable[Expected | Outcome] | Mapping[int, Expected] | str | os.PathLike[str],
) -> None:
    """Assert what became of the packets of a run, all of them in order of arrival.

    ::

        assert_verdicts(queue, ["accept", "drop", {"verdict": "repeat", "mark": 16}])
        assert_verdicts(queue, {3: "drop"})
        assert_verdicts(queue, "recorded.pcapng")

    Args:
      run: a queue that was replayed or is recorded, a transcript, a file of one, or a capture.
      expected: for each packet a verdict by name or number (only the low byte of what was given
        is looked at, unless the number is greater), None for undecided, or a mapping with
        ``verdict``, ``mark`` (None for unset) and ``payload`` (None for left alone), of which only
        what is named counts. A mapping by packet ids says something of these only. A transcript,
        or a file of one or a capture, says all of each, as `assert_same_verdicts`.

    Raises:
      AssertionError: it is not so; the text has every packet that differs.
      TypeError, ValueError: something is expected that there is not.
      CaptureError, RemoteProtocolError, OSError: a file cannot be read.
    """
    __tracebackhide__ = True
    found = outcomes_of(run)
    if isinstance(expected, str | os.PathLike):
        _same(found, expected)
        return
    if isinstance(expected, Mapping):
        by_id = {each.packet_id: each for each in found}
        wanted: list[tuple[int, Outcome | None, Expected]] = [
            (packet_id, by_id.get(packet_id), each) for packet_id, each in expected.items()
        ]
        wrong = [text for each in wanted if (text := _difference(*each))]
    else:
        listed = list(expected)
        outcomes = [each for each in listed if isinstance(each, Outcome)]
        if outcomes:
            if len(outcomes) < len(listed):
                raise TypeError("expected: outcomes of a transcript and others together")
            _same(found, outcomes)
            return
        wrong = [
            text
            for outcome, each in zip(found, listed, strict=False)
            if (text := _difference(outcome.packet_id, outcome, each))  # type: ignore[arg-type]
        ]
        if len(found) != len(listed):
            told = ", ".join(_name(each.verdict) for each in found)
            wrong.append(f"expected {len(listed)} packets, got {len(found)}: {told}")
    if wrong:
        raise AssertionError("\n".join(wrong))


def _same(found: list[Outcome], expected: str | os.PathLike[str] | list[Outcome]) -> None:
    __tracebackhide__ = True
    comparison = compare(found, expected, names=("run", "expected"))
    if not comparison.same:
        raise AssertionError(str(comparison))


def _difference(packet_id: int, outcome: Outcome | None, expected: Expected) -> str | None:
    """What is not as expected of a packet."""
    members = expected if isinstance(expected, Mapping) else {"verdict": expected}
    if unknown := set(members) - set(_MEMBERS):
        raise ValueError(f"expected: {', '.join(_MEMBERS)} of a packet, got {sorted(unknown)}")
    if outcome is None:
        return f"packet {packet_id}: did not come"
    wrong = []
    for name, value in members.items():
        got = getattr(outcome, name)
        if name == "verdict":
            code = None if value is None else _code(value)
            low = code is not None and got is not None and code <= VERDICT_MASK
            if (got & VERDICT_MASK if low else got) != code:
                wrong.append(f"expected {_name(code)}, got {_name(got)}")
        elif got != value:
            wrong.append(f"expected {name} {value!r}, got {got!r}")
    return f"packet {packet_id}: {'; '.join(wrong)}" if wrong else None


def _code(verdict: object) -> int:
    if isinstance(verdict, str):
        if verdict.upper() not in Verdict.__members__:
            names = ", ".join(name.lower() for name in Verdict.__members__)
            raise ValueError(f"expected: a verdict of {names}, got {verdict!r}")
        return int(Verdict[verdict.upper()])
    if isinstance(verdict, int):
        return int(verdict)
    raise TypeError(f"expected: a verdict by name or number, or a mapping, got {verdict!r}")


def _name(code: int | None) -> str:
    if code is None:
        return "undecided"
    try:
        name = Verdict(code & VERDICT_MASK).name.lower()
    except ValueError:
        return f"{code:#x}"
    return name if code <= VERDICT_MASK else f"{name} ({code:#x})"
