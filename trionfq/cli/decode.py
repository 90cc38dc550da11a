"""``trionfq decode``: captures, or bytes, as messages."""

from __future__ import annotations

import datetime
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import click

from trionfq import RemoteProtocolError, schema
from trionfq._compare_text import describe
from trionfq.captures import Record, byte_order, open_capture
from trionfq.cli._commands import Code
from trionfq.cli._console import is_terminal, lines
from trionfq.cli._reading import CAPTURE, reading
from trionfq.conformance import Field, fields
from trionfq.schema import Direction
from trionfq.schema.netlink import Type
from trionfq.schema.nfqueue import MessageType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trionfq.cli._console import Lines

_WAYS: Final = {
    Direction.FROM_KERNEL: "from-kernel",
    Direction.TO_KERNEL: "to-kernel",
    None: None,
}
_KINDS: Final = {int(each): each.name.lower().replace("_", " ") for each in MessageType}
_HEADERS: Final = ("nlmsghdr", "nfgenmsg")
_ATTRIBUTE_HEADER: Final = ("nla_len", "nla_type")
_SHOWN_BYTES: Final = 32
_NS: Final = 1_000_000_000


@click.command()
@click.argument("captures", nargs=-1, type=CAPTURE)
@click.option("--hex", "texts", multiple=True, help="A datagram as hexadecimal digits, instead.")
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: one object for each record.")
@click.option("--first", type=click.IntRange(0), help="Only so many records of each capture.")
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    texts: tuple[str, ...],
    as_json: bool,
    first: int | None,
) -> None:
    """Show what CAPTURES of nfqueue traffic say, message by message.

    "-" is standard input. A datagram that contradicts the schema is shown as far as it can be
    read, with the reason, and ends the command with 1.
    """
    if bool(captures) == bool(texts):
        raise click.UsageError("name captures, or give --hex")
    well = True
    with lines() as out:
        if texts:
            given = [Record(0, None, _octets(text)) for text in texts]
            well &= _show(out, None, given, as_json=as_json)
        for name in captures:
            with reading(name, shown=not is_terminal()) as stream, open_capture(stream) as capture:
                records = capture if first is None else _first(first, capture)
                label = name if len(captures) > 1 else None
                well &= _show(out, label, records, as_json=as_json)
                for kind, count in capture.skipped.items():
                    click.echo(f"{name}: left out: {kind}: {count}", err=True)
    ctx.exit(Code.FINE if well else Code.FOUND)


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", " "))
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint="--hex") from error


def _first(number: int, records: Iterable[Record]) -> Iterator[Record]:
    """The first records; what follows is not read."""
    for place, record in enumerate(records, 1):
        if place > number:
            return
        yield record


def _show(out: Lines, name: str | None, records: Iterable[Record], *, as_json: bool) -> bool:
    """Show records; tell whether all of them could be read."""
    well = True
    for place, record in enumerate(records):
        problem = _problem(record.datagram)
        well &= problem is None
        if as_json:
            shown = {} if name is None else {"file": name}
            out.json({**shown, "record": place, **_as_json(record, problem)})
        else:
            shown_name = "" if name is None else f"{name}: "
            out.write("\n".join((f"{shown_name}record {place}{_when(record)}", *_text(record))))
            if problem is not None:
                out.write(f"  CONTRADICTS THE SCHEMA: {problem}")
    return well


def _problem(datagram: bytes) -> str | None:
    """Why a datagram is not valid, None where it is."""
    if not datagram:
        return None
    try:
        schema.parse(datagram, order=byte_order(datagram) or "little")
    except RemoteProtocolError as error:
        return str(error)
    return None


# --- JSON -----------------------------------------------------------------------------------------


def _as_json(record: Record, problem: str | None) -> dict[str, Any]:
    messages = [
        {"kind": _kind(found), "fields": [_field(each) for each in found]}
        for found in _messages(record.datagram)
    ]
    return {
        "time_ns": record.time_ns,
        "direction": _WAYS[record.direction],
        "bytes": len(record.datagram),
        "messages": messages,
        "notes": [{"kind": note.kind, **note.values} for note in record.notes],
        "problem": problem,
    }


def _field(field: Field) -> dict[str, Any]:
    value = field.value.hex() if isinstance(field.value, bytes) else field.value
    path = " -> ".join(field.path)
    return {"field": path, "offset": field.offset, "size": field.size, "value": value}


# --- text -----------------------------------------------------------------------------------------


def _when(record: Record) -> str:
    told = []
    if record.time_ns:
        seconds, rest = divmod(record.time_ns, _NS)
        moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)  # noqa: UP017
        told.append(f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09}Z")
    if record.direction is not None:
        told.append(str(_WAYS[record.direction]))
    if record.datagram:
        told.append(f"{len(record.datagram)} bytes")
    return f": {', '.join(told)}" if told else ""


def _text(record: Record) -> Iterator[str]:
    for note in record.notes:
        values = ", ".join(f"{key} {value}" for key, value in note.values.items())
        yield f"  note {note.kind}: {values}"
    for found in _messages(record.datagram):
        header = {each.path[-1]: each.value for each in found if each.path[0] == "nlmsghdr"}
        general = {each.path[-1]: each.value for each in found if each.path[0] == "nfgenmsg"}
        queue = f" of queue {general['res_id']!r}" if "res_id" in general else ""
        told = ", ".join(f"{name} {header[name]!r}" for name in ("seq", "flags") if name in header)
        yield f"  {_kind(found)}{queue}: {told}"
        rest = [
            each
            for each in found
            if each.path[0] not in _HEADERS and each.path[-1] not in _ATTRIBUTE_HEADER
        ]
        for path, each in groupby(rest, _whole):
            inner = list(each)
            if inner[0].path != path:
                told = ", ".join(f"{one.path[-1]} {_value(one)}" for one in inner)
            else:
                told = _value(inner[0])
            yield f"    {' -> '.join(path)}: {told}"


def _whole(field: Field) -> tuple[str, ...]:
    """What a field is shown in one line with: the members of a struct share their attribute's."""
    return field.path[:-1] if field.path[-1].islower() else field.path


def _value(field: Field) -> str:
    if isinstance(field.value, int):
        return str(field.value)
    text = field.value[:_SHOWN_BYTES].hex()
    if len(field.value) > _SHOWN_BYTES:
        text += "..."
    if field.path == ("NFQA_PAYLOAD",):
        return f"{describe(field.value)}: {text}"
    return f"{len(field.value)} bytes {text}".rstrip()


def _messages(datagram: bytes) -> Iterator[list[Field]]:
    for _number, found in groupby(fields(datagram), attrgetter("message")):
        yield list(found)


def _kind(found: list[Field]) -> str:
    """What a message is called."""
    type_ = next((each.value for each in found if each.path == ("nlmsghdr", "type")), None)
    if not isinstance(type_, int):
        return "message"
    if type_ == Type.ERROR:
        error = next((each.value for each in found if each.path == ("nlmsgerr", "error")), None)
        return "acknowledgement" if error == 0 else f"error {error!r}"
    if type_ in _KINDS:
        return _KINDS[type_]
    return f"message of type {type_:#x}"
