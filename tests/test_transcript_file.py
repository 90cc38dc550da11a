"""Transcripts as files read back as they were, and equal runs are equal files."""

from __future__ import annotations

import hashlib
import json
import random
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionfq import CaptureError, ReplayBackend
from trionfq.captures import (
    Outcome,
    Record,
    open_capture,
    read_transcript,
    transcript,
    transcript_digest,
    write_transcript,
)
from trionfq.schema import NLA_F_NESTED, Attr, Direction
from trionfq.schema.nfqueue import NFQA
from trionfq.testing import make_bind, make_packet, make_verdict

from .test_fixtures import EACH, FOLDER, records

SUFFIXES = pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
N = {each.name: each.number for each in NFQA.attributes}
RUN = [
    Outcome(3, 1, 1, arrived_ns=1_790_000_000_000_000_000, decided_ns=1_790_000_000_000_000_500),
    Outcome(3, 2, 5 << 16 | 0x8003, 7, b"\x45\xff", (Attr(N["priority"], 6),), 10, 12, 2),
    Outcome(3, 0xFFFFFFFF, None, arrived_ns=11, recorded_id=4),
    Outcome(
        3,
        9,
        0,
        0,
        b"",
        (
            Attr(N["vlan"], (Attr(1, 0x8100), Attr(2, 5, 0x4000)), NLA_F_NESTED),
            Attr(N["l2hdr"], b"\0\1"),
            Attr(N["ct"], (Attr(1, {"a": 1, "b": b"x"}), Attr(99, b"")), NLA_F_NESTED),
        ),
        12,
        12,
        9,
    ),
]


def timeless(outcome: Outcome) -> tuple[Any, ...]:
    return outcome, outcome.recorded_id


def timed(outcome: Outcome) -> tuple[Any, ...]:
    return outcome, outcome.recorded_id, outcome.arrived_ns, outcome.decided_ns


@SUFFIXES
def test_what_is_written_reads_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    write_transcript(path, iter(RUN), times=True)
    assert list(map(timed, read_transcript(path))) == list(map(timed, RUN))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_transcript(path, RUN)
    path.chmod(0o644)
    write_transcript(path, RUN, overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = read_transcript(path)
    assert list(map(timeless, again)) == list(map(timeless, RUN))
    assert [(each.arrived_ns, each.decided_ns) for each in again] == [(0, None)] * len(RUN)
    write_transcript(path, [], overwrite=True)
    assert read_transcript(path) == []


@SUFFIXES
@EACH
def test_the_transcript_of_every_fixture_reads_back(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    run = transcript(records(name))
    write_transcript(path, run, times=True)
    assert list(map(timed, read_transcript(path))) == list(map(timed, run))
    assert [each.recorded_id for each in run] == [each.packet_id for each in run]


def test_json_lines_say_what_the_documentation_says(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_transcript(path, RUN[:2])
    header, first, second = map(json.loads, path.read_text().splitlines())
    assert header == {"format": "trionfq-transcript", "version": 1, "times": False}
    assert first == {
        "queue": 3,
        "packet_id": 1,
        "recorded_id": None,
        "verdict": "accept",
        "code": 1,
        "mark": None,
        "payload": None,
        "changes": [],
    }
    assert second["verdict"] == "queue"
    assert second["code"] == 5 << 16 | 0x8003
    assert (second["mark"], second["payload"], second["recorded_id"]) == (7, "45ff", 2)
    assert second["changes"] == [{"number": N["priority"], "name": "priority", "value": 6}]
    write_transcript(path, RUN[:2], times=True, overwrite=True)
    header, first, second = map(json.loads, path.read_text().splitlines())
    assert header["times"] is True
    assert (first["arrived_ns"], first["time_to_decide_ns"]) == (RUN[0].arrived_ns, 500)
    assert (second["arrived_ns"], second["time_to_decide_ns"]) == (10, 2)


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "run.parquet"
    write_transcript(path, RUN, times=True)
    table = parquet.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "queue": "uint16",
        "packet_id": "uint32",
        "recorded_id": "uint32",
        "verdict": "string",
        "code": "uint32",
        "mark": "uint32",
        "payload": "binary",
        "changes": "string",
        "arrived_ns": "int64",
        "time_to_decide_ns": "int64",
    }
    assert table.column("verdict").to_pylist() == ["accept", "queue", None, "drop"]
    write_transcript(path, RUN, overwrite=True)
    assert "time_to_decide_ns" not in parquet.read_table(path).column_names


def test_equal_runs_are_equal_files_and_the_digest_is_the_file_s(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    later = [replace(each, arrived_ns=each.arrived_ns + 5, decided_ns=None) for each in RUN]
    write_transcript(path, RUN)
    write_transcript(other, later)
    assert path.read_bytes() == other.read_bytes()
    assert transcript_digest(RUN) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert transcript_digest(RUN, times=True) != transcript_digest(later, times=True)
    assert transcript_digest([*RUN, RUN[0]]) != transcript_digest(RUN)
    for changed in (
        replace(RUN[0], verdict=4),
        replace(RUN[0], mark=9),
        replace(RUN[0], payload=b"?"),
        replace(RUN[0], recorded_id=77),
    ):
        assert transcript_digest([changed]) != transcript_digest([RUN[0]])


attributes = st.recursive(
    st.one_of(
        st.integers(0, 2**64 - 1),
        st.binary(max_size=9),
        st.dictionaries(st.text(max_size=5), st.integers() | st.binary(max_size=4), max_size=3),
    ),
    lambda inner: st.lists(
        st.builds(Attr, st.integers(0, 99), inner, st.sampled_from([0, NLA_F_NESTED])), max_size=3
    ).map(tuple),
    max_leaves=6,
)
outcomes = st.builds(
    Outcome,
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.none() | st.integers(0, 0xFFFFFFFF),
    st.none() | st.integers(0, 0xFFFFFFFF),
    st.none() | st.binary(max_size=20),
    st.lists(st.builds(Attr, st.integers(0, 99), attributes), max_size=3).map(tuple),
    st.integers(0, 2**62),
    st.none() | st.integers(0, 2**62),
    st.none() | st.integers(0, 0xFFFFFFFF),
)


@given(st.lists(outcomes, max_size=3))
def test_any_transcript_reads_back(tmp_path_factory: pytest.TempPathFactory, run: Any) -> None:
    path = tmp_path_factory.mktemp("any") / "run.jsonl"
    write_transcript(path, run, times=True)
    assert list(map(timed, read_transcript(path))) == list(map(timed, run))


def test_a_replay_tells_recorded_and_replayed_ids(tmp_path: Path) -> None:
    ids = [7, 8, 1, 2]  # the recorded program bound its queue twice
    source = [Record(0, Direction.FROM_KERNEL, make_packet(each)) for each in ids]
    backend = ReplayBackend(source)
    backend.send_nowait(make_bind())
    while backend.receive_nowait(64).datagrams:
        pass
    backend.send_nowait(make_verdict(10, batch=True))
    path = tmp_path / "run.jsonl"
    write_transcript(path, backend.transcript)
    found = read_transcript(path)
    assert [(each.recorded_id, each.packet_id, each.verdict) for each in found] == [
        (7, 7, 1),
        (8, 8, 1),
        (1, 9, 1),
        (2, 10, 1),
    ]


# --- what is no transcript ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "names no format"),
        (b"\xff\xfe", "names no format"),
        (b"[]\n", "names no format"),
        (b'{"format":"other","version":1}\n', "names no format"),
        (b'{"format":"trionfq-transcript","version":2}\n', "of version 2; .* reads version 1"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=text):
        read_transcript(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"queue":3', b'"queue":"3"'),
        (b'"queue":3', b'"cue":3'),
        (b'"45ff"', b'"4"'),
        (b'"code":360451', b'"code":true,"x":327'),
        (b'"changes":[{', b'"changes":[{"number":1,"value":{"odd":1}},{'),
        (b"}\n", b"}"),
        (b'{"queue"', b'"queue"'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "run.jsonl"
    write_transcript(path, RUN[:2])
    whole = path.read_bytes()
    place = whole.rindex(old)
    path.write_bytes(whole[:place] + new + whole[place + len(old) :])
    with pytest.raises(CaptureError, match=r"run\.jsonl: line 3: "):
        read_transcript(path)


def test_a_parquet_file_of_others_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "run.parquet"
    parquet.write_table(arrow.table({"queue": [1]}), path)
    with pytest.raises(CaptureError, match="no transcript as Parquet"):
        read_transcript(path)
    path.write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(CaptureError, match="no transcript as Parquet"):
        read_transcript(path)


@SUFFIXES
@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_reads_or_is_refused(tmp_path: Path, suffix: str, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / f"run{suffix}"
    write_transcript(path, RUN, times=True)
    data = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(2)] = chance.randbytes(chance.randrange(2))
    path.write_bytes(data[: len(data) - chance.choice((0, 0, 1, 9))])
    try:
        assert len(read_transcript(path)) <= len(RUN) + 2
    except CaptureError as error:
        assert f"run{suffix}" in str(error)


def test_a_nest_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_transcript(path, RUN[1:2])
    whole = path.read_bytes()
    nest = b'{"attributes":[{"number":1,"value":' * 5000
    path.write_bytes(whole.replace(b'"value":6', b'"value":' + nest + b"6" + b"}]}" * 5000))
    with pytest.raises(CaptureError, match="line 2"):
        read_transcript(path)


def test_the_name_says_the_format(tmp_path: Path) -> None:
    for use in (read_transcript, lambda path: write_transcript(path, RUN)):
        with pytest.raises(ValueError, match=r"expected a name in \.jsonl or \.parquet"):
            use(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_parquet_is_refused_and_json_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "run.parquet"
    with pytest.raises(ImportError, match=r"pip install 'trionfq\[parquet\]', or write \.jsonl"):
        write_transcript(path, RUN)
    assert not path.exists()
    write_transcript(tmp_path / "run.jsonl", RUN)


def test_a_recording_of_a_file_is_its_recorded_verdicts() -> None:
    with open_capture(FOLDER / "demo.pcapng") as capture:
        run = transcript(capture)
    assert {each.time_to_decide_ns is None for each in run} == {False}
    assert all((each.time_to_decide_ns or 0) >= 0 for each in run)
