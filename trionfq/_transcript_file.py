"""Transcripts as files: JSON Lines, and Parquet where pyarrow is installed.

Both hold one entry for each packet, in order of arrival, with the same fields. The first line of
JSON Lines, and the metadata of Parquet, name the format and its version. Nothing else is in a file
but what happened, so equal transcripts are equal files, byte for byte in JSON Lines.

A value that a verdict carried besides mark and payload stands in ``changes`` as the schema has it:
an integer as it is, bytes as ``{"bytes": HEX}``, the fields of a struct as ``{"fields": {...}}``,
and a nest as ``{"attributes": [...]}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import closing
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from trionfq._errors import CaptureError
from trionfq._transcript import Outcome
from trionfq.schema._records import Attr
from trionfq.schema.nfqueue import NFQA, VERDICT_MASK, VerdictCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FORMAT: Final = "trionfq-transcript"
VERSION: Final = 1
SUFFIXES: Final = (".jsonl", ".parquet")
_MODE: Final = 0o600
_GROUP: Final = 65_536
# What reading a damaged file comes to: values of another kind, and nests that have no end.
_DAMAGED: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_NAMES: Final = {int(code): code.name.lower() for code in VerdictCode}


def write_transcript(
    path: str | os.PathLike[str],
    outcomes: Iterable[Outcome],
    *,
    times: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a transcript to a file that only its owner may read (mode 0600): it holds payloads.

    Each packet has the fields ``queue``, ``packet_id``, ``recorded_id``, ``verdict`` (its name),
    ``code`` (all its 32 bits), ``mark``, ``payload`` (hexadecimal in JSON) and ``changes``.

    Args:
      path: the file; its name ends in ``.jsonl`` or, for which pyarrow is needed, ``.parquet``.
      outcomes: a transcript; read once, so it may be longer than memory.
      times: add ``arrived_ns`` and ``time_to_decide_ns``; without them, equal runs give equal
        files.
      overwrite: empty a file that is there.

    Raises:
      ValueError: another suffix.
      ImportError: pyarrow is not installed (``pip install trionfq[parquet]``).
      FileExistsError: the file is there, and `overwrite` is not given.
      OSError: it cannot be written.
    """
    parquet = _is_parquet(path)
    if parquet:
        _pyarrow()
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), _MODE)
    with os.fdopen(descriptor, "wb") as stream:
        if overwrite and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.chmod(path, _MODE)
        if parquet:
            _write_parquet(stream, outcomes, times=times)
        else:
            for line in transcript_lines(outcomes, times=times):
                stream.write(line)


def read_transcript(path: str | os.PathLike[str]) -> list[Outcome]:
    """The transcript that `write_transcript` wrote.

    Raises:
      CaptureError: it is no such file, of a later version, or damaged; the text says where.
      ValueError: another suffix than ``.jsonl`` and ``.parquet``.
      ImportError: pyarrow is not installed.
      OSError: it cannot be read.
    """
    if _is_parquet(path):
        return _read_parquet(path)
    with open(path, "rb") as stream:
        return list(_read_lines(stream, os.fspath(path)))


def transcript_lines(outcomes: Iterable[Outcome], *, times: bool = False) -> Iterator[bytes]:
    """The lines of a transcript as JSON Lines, the header first."""
    yield _line({"format": FORMAT, "version": VERSION, "times": times})
    for outcome in outcomes:
        fields = _fields(outcome, times=times)
        fields["payload"] = None if outcome.payload is None else outcome.payload.hex()
        yield _line(fields)


def transcript_digest(outcomes: Iterable[Outcome], *, times: bool = False) -> str:
    """SHA-256 of a transcript, hexadecimal: that of its file as JSON Lines.

    Args:
      outcomes: a transcript.
      times: whether times count, too.
    """
    digest = hashlib.sha256()
    for line in transcript_lines(outcomes, times=times):
        digest.update(line)
    return digest.hexdigest()


def verdict_name(code: int | None) -> str | None:
    """The name of a verdict's 32 bits: of its low byte."""
    return None if code is None else _NAMES.get(code & VERDICT_MASK, str(code & VERDICT_MASK))


def _is_parquet(path: str | os.PathLike[str]) -> bool:
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        name = os.fspath(path)
        raise ValueError(f"{name}: expected a name in .jsonl or .parquet, got {suffix!r}")
    return suffix == ".parquet"


# --- values ---------------------------------------------------------------------------------------


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _fields(outcome: Outcome, *, times: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "queue": outcome.queue,
        "packet_id": outcome.packet_id,
        "recorded_id": outcome.recorded_id,
        "verdict": verdict_name(outcome.verdict),
        "code": outcome.verdict,
        "mark": outcome.mark,
        "payload": outcome.payload,
        "changes": [_attribute(each, NFQA.by_number) for each in outcome.changes],
    }
    if times:
        fields["arrived_ns"] = outcome.arrived_ns
        fields["time_to_decide_ns"] = outcome.time_to_decide_ns
    return fields


def _attribute(attribute: Attr, names: Mapping[int, Any] | None = None) -> dict[str, Any]:
    number, value, flags = attribute
    known = names.get(number) if names else None
    fields: dict[str, Any] = {"number": number} | ({"name": known.name} if known else {})
    fields["value"] = _value(value)
    if flags:
        fields["flags"] = flags
    return fields


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"fields": {name: _value(each) for name, each in value.items()}}
    if isinstance(value, tuple):
        return {"attributes": [_attribute(each) for each in value]}
    return value


def _read_attribute(fields: Mapping[str, Any]) -> Attr:
    flags = _integer(fields.get("flags", 0))
    return Attr(_integer(fields["number"]), _read_value(fields["value"]), flags)


def _read_value(value: Any) -> Any:
    if not isinstance(value, dict):
        return _integer(value)
    [(kind, inner)] = value.items()
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "fields":
        return {name: _read_value(each) for name, each in inner.items()}
    if kind == "attributes":
        return tuple(_read_attribute(each) for each in inner)
    raise ValueError(f"a value of unknown kind {kind!r}")


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def _optional(value: Any) -> int | None:
    return None if value is None else _integer(value)


def _outcome(fields: Mapping[str, Any], payload: bytes | None, changes: Any) -> Outcome:
    arrived = _integer(fields.get("arrived_ns", 0))
    taken = _optional(fields.get("time_to_decide_ns"))
    return Outcome(
        _integer(fields["queue"]),
        _integer(fields["packet_id"]),
        _optional(fields["code"]),
        _optional(fields["mark"]),
        payload,
        tuple(_read_attribute(each) for each in changes),
        arrived,
        None if taken is None else arrived + taken,
        _optional(fields["recorded_id"]),
    )


# --- JSON Lines -----------------------------------------------------------------------------------


def _read_lines(stream: IO[bytes], path: str) -> Iterator[Outcome]:
    header = stream.readline(4096)
    try:
        about = json.loads(header)
        _check_version(about["format"], about["version"], path)
    except _DAMAGED as error:
        raise CaptureError(f"{path}: no transcript; its first line names no format") from error
    for number, line in enumerate(stream, 2):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line is cut off")
            fields = json.loads(line)
            payload = fields["payload"]
            content = None if payload is None else bytes.fromhex(payload)
            yield _outcome(fields, content, fields["changes"])
        except _DAMAGED as error:
            raise CaptureError(f"{path}: line {number}: {error!r}") from error


def _check_version(name: object, version: object, path: str) -> None:
    if name != FORMAT:
        raise ValueError(f"format {name!r}")
    if version != VERSION:
        raise CaptureError(
            f"{path}: a transcript of version {version}; this library reads version {VERSION}"
        )


# --- Parquet --------------------------------------------------------------------------------------


def _pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: pip install 'trionfq[parquet]', or write .jsonl"
        ) from error


def _schema(arrow: Any, *, times: bool) -> Any:
    number, moment = arrow.uint32(), arrow.int64()
    columns = [
        arrow.field("queue", arrow.uint16(), nullable=False),
        arrow.field("packet_id", number, nullable=False),
        arrow.field("recorded_id", number),
        arrow.field("verdict", arrow.string()),
        arrow.field("code", number),
        arrow.field("mark", number),
        arrow.field("payload", arrow.binary()),
        # As in JSON Lines: what a verdict can carry is a tree.
        arrow.field("changes", arrow.string(), nullable=False),
    ]
    if times:
        columns += [
            arrow.field("arrived_ns", moment, nullable=False),
            arrow.field("time_to_decide_ns", moment),
        ]
    return arrow.schema(columns, metadata={"format": FORMAT, "version": str(VERSION)})


def _write_parquet(stream: IO[bytes], outcomes: Iterable[Outcome], *, times: bool) -> None:
    arrow, parquet = _pyarrow()
    schema = _schema(arrow, times=times)
    rest = iter(outcomes)
    with parquet.ParquetWriter(stream, schema) as writer:
        while group := list(islice(rest, _GROUP)):
            rows = [_fields(outcome, times=times) for outcome in group]
            for row in rows:
                row["changes"] = json.dumps(row["changes"], separators=(",", ":"))
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))


def _read_parquet(path: str | os.PathLike[str]) -> list[Outcome]:
    arrow, parquet = _pyarrow()
    name = os.fspath(path)
    found: list[Outcome] = []
    with open(path, "rb") as stream:
        try:
            with closing(parquet.ParquetFile(stream)) as file:
                about = file.schema_arrow.metadata or {}
                _check_version(about[b"format"].decode(), int(about[b"version"]), name)
                for batch in file.iter_batches():
                    found += [
                        _outcome(row, row["payload"], json.loads(row["changes"]))
                        for row in batch.to_pylist()
                    ]
        except (arrow.ArrowException, *_DAMAGED) as error:
            raise CaptureError(f"{name}: no transcript as Parquet: {error!r}") from error
        except OSError as error:
            if error.errno is not None:
                raise  # the file cannot be read; without a number it is pyarrow's word for damage
            raise CaptureError(f"{name}: no transcript as Parquet: {error!r}") from error
    return found
