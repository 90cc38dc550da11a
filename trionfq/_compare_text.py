"""Outcomes and rewritten packets as text that shows a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trionfq._ip import IPView
from trionfq._ip_fields import packet_fields
from trionfq._ip_headers import DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE
from trionfq._transcript_file import verdict_name
from trionfq.schema.nfqueue import NFQA, QUEUE_BYPASS, QUEUE_NUMBER_SHIFT, VERDICT_MASK, VerdictCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq._transcript import Outcome

_PROTOCOLS: Final = {
    TCP: "TCP",
    UDP: "UDP",
    UDP_LITE: "UDP-Lite",
    SCTP: "SCTP",
    DCCP: "DCCP",
    ICMP: "ICMP",
    ICMPV6: "ICMPv6",
}
_ROW: Final = 16
_ROWS: Final = 24
_TEXT: Final = 48


def values(name: str, outcome: Outcome) -> list[str]:
    """One field of an outcome, in lines."""
    if name == "verdict":
        return [verdict_text(outcome.verdict)]
    if name == "mark":
        return ["not set" if outcome.mark is None else f"{outcome.mark:#x}"]
    if name == "payload":
        return [
            "left alone" if outcome.payload is None else f"rewritten, {len(outcome.payload)} bytes"
        ]
    named = [f"{_name(each.number)} {_value(each.value)}" for each in outcome.changes]
    return named or ["none"]


def verdict_text(code: int | None) -> str:
    """A verdict's 32 bits in words."""
    name = verdict_name(code)
    if code is None or name is None:
        return "undecided"
    upper = code >> QUEUE_NUMBER_SHIFT
    if code & VERDICT_MASK == VerdictCode.QUEUE:
        bypass = ", bypass" if code & QUEUE_BYPASS else ""
        return f"queue {upper}{bypass}"
    return f"{name} with upper bits {upper:#x}" if upper else name


def describe(packet: bytes) -> str:
    """What a packet is, in a few words."""
    view = IPView(packet)
    if view.source is None:
        return f"{len(packet)} bytes, no IP" if packet else "without payload"
    protocol = _PROTOCOLS.get(view.protocol or 0, f"protocol {view.protocol}")
    ends = [(view.source, view.source_port), (view.destination, view.destination_port)]
    source, destination = (
        address
        if port is None
        else f"[{address}]:{port}"
        if ":" in address
        else f"{address}:{port}"
        for address, port in ends
        if address is not None
    )
    return f"{protocol} {source} > {destination}, {len(packet)} bytes"


def rewrite(old: bytes, new: bytes, names: tuple[str, str]) -> list[str]:
    """How two payloads differ: by field, then the rows of bytes that do."""
    width = max(map(len, names))
    lines: list[str] = []
    before = {each.name: each.text for each in packet_fields(old)}
    after = {each.name: each.text for each in packet_fields(new)}
    for name in before | after:
        texts = before.get(name), after.get(name)
        if texts[0] != texts[1]:
            lines.append(f"    {name}")
            for label, text in zip(names, texts, strict=True):
                lines.append(f"      {label:{width}}  {_short(text)}")
    rows = list(_rows(old, new))
    lines += rows[:_ROWS]
    if len(rows) > _ROWS:
        lines.append(f"    and {len(rows) - _ROWS} more rows")
    return lines


def _rows(old: bytes, new: bytes) -> Iterator[str]:
    """Rows of 16 bytes that differ, - of the first and + of the second."""
    for at in range(0, max(len(old), len(new)), _ROW):
        before, after = old[at : at + _ROW], new[at : at + _ROW]
        if before != after:
            for sign, row in (("-", before), ("+", after)):
                if row:
                    text = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
                    yield f"    {sign} {at:04x}  {row.hex(' '):{3 * _ROW - 1}}  {text}"


def _short(text: str | None) -> str:
    if text is None:
        return "absent"
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}... ({len(text)} characters)"


def _name(number: int) -> str:
    known = NFQA.by_number.get(number)
    return known.name if known else NFQA.constant(number)


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{each.number}: {_value(each.value)}" for each in value) + ")"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name}: {_value(each)}" for name, each in value.items()) + ")"
    return str(value)
