"""Notes: what a recording says beside its datagrams, as text that reads back.

A note stands in a capture as one comment (pcapng option opt_comment, 1), so that every capture tool
shows it and no private enterprise number is needed. Its text is ::

    trionfq: KIND KEY=VALUE KEY=VALUE ...

with one space between the words. Kind and keys are lower-case ASCII words. A value is an integer
in plain decimal, or a string in percent-encoding; a string that would read as an integer has its
first character encoded too, so that types survive. Bytes that are no UTF-8 (interface names may
hold any) are encoded as bytes. A comment that does not read as such a text is somebody else's: a
note of kind ``comment`` with its ``text`` unchanged.

The kinds that trionfq itself writes are listed in `KINDS`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS: Final[Mapping[str, str]] = {
    "recording": "who recorded: backend, port_id, release (of the kernel); part, where it rotates",
    "setup": "a request that did not pass here: a bound queue's settings, for a later part: part",
    "interface": "a network interface's name at first sight: index, name",
    "overrun": "the socket lost datagrams (ENOBUFS): count, the times that it said so",
    "truncated": "datagrams longer than the receive buffer, left out: count",
    "foreign": "datagrams from another sender than the kernel, left out: count",
    "refused": "a datagram that could not be sent: errno, bytes",
    "queue": "the kernel's row of a queue at its end: the fields of QueueRow",
    "socket": "at the end: drops, datagrams that the receive buffer refused",
    "comment": "somebody else's comment: text",
}
"""What trionfq writes; a reader keeps kinds that it does not know."""

PREFIX: Final = "trionfq:"
_WORD: Final = re.compile(r"[a-z][a-z0-9_]*")
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,39}")  # bounded: int() of a crafted text is slow
_SAFE: Final = "!#$&'()*+,/:;<>?@[]^`{|}"  # printable, and neither space, "%" nor "="


class Note(NamedTuple):
    """One note.

    Attributes:
      kind: a word of `KINDS`, or any other lower-case word.
      values: integers and strings by lower-case key, in the order of the text.
    """

    kind: str
    values: Mapping[str, int | str]


def note_text(note: Note) -> str:
    """The comment that a note becomes.

    Raises:
      ValueError: kind or a key is no lower-case word, a number has more than 40 digits, or a
        comment has other values than ``text``.
    """
    if note.kind == "comment":
        text = note.values.get("text")
        if not isinstance(text, str) or len(note.values) != 1:
            raise ValueError(f"a note of kind comment has one string, text; got {note.values!r}")
        return text
    for word in (note.kind, *note.values):
        if not _WORD.fullmatch(word):
            raise ValueError(f"note {note.kind!r}: {word!r} is no lower-case word")
    pairs = (f"{key}={_encoded(value)}" for key, value in note.values.items())
    return " ".join((PREFIX, note.kind, *pairs))


def read_note(text: str) -> Note:
    """The note that a comment holds; any text gives one."""
    note = _own_note(text)
    return Note("comment", {"text": text}) if note is None else note


def _own_note(text: str) -> Note | None:
    prefix, *words = text.split(" ")
    if prefix != PREFIX or not words or not _WORD.fullmatch(words[0]):
        return None
    values: dict[str, int | str] = {}
    for word in words[1:]:
        key, separator, value = word.partition("=")
        if not separator or not _WORD.fullmatch(key) or key in values:
            return None
        values[key] = int(value) if _INTEGER.fullmatch(value) else _decoded(value)
    return Note(words[0], values) if words[0] != "comment" else None


def _encoded(value: int | str) -> str:
    if isinstance(value, int):
        number = str(int(value))
        if not _INTEGER.fullmatch(number):
            raise ValueError(f"a number in a note has at most 40 digits; got {len(number)}")
        return number
    text = quote(value, safe=_SAFE, errors="surrogateescape")
    if _INTEGER.fullmatch(text):
        return f"%{ord(text[0]):02X}{text[1:]}"
    return text


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape")
