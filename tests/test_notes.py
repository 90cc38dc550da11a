"""Notes are text in a comment, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionfq._notes import KINDS, Note, note_text, read_note

WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
# Interface names are bytes; Python gives those that are no UTF-8 as lone surrogates.
STRINGS = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=15).map(lambda name: name.decode("utf-8", "surrogateescape")),
    st.integers().map(str),
)
NOTES = st.builds(
    Note,
    WORDS.filter(lambda kind: kind != "comment"),
    st.dictionaries(WORDS, st.one_of(st.integers(-(10**30), 10**30), STRINGS), max_size=5),
)


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (Note("overrun", {"count": 2}), "trionfq: overrun count=2"),
        (
            Note("interface", {"index": 3, "name": "veth-a.7"}),
            "trionfq: interface index=3 name=veth-a.7",
        ),
        (Note("interface", {"index": 4, "name": "7"}), "trionfq: interface index=4 name=%37"),
        (Note("interface", {"name": "a b=c%"}), "trionfq: interface name=a%20b%3Dc%25"),
        (Note("interface", {"name": "\udcff"}), "trionfq: interface name=%FF"),
        (Note("recording", {"release": ""}), "trionfq: recording release="),
        (Note("comment", {"text": "seen on\na Monday"}), "seen on\na Monday"),
    ],
)
def test_text_of_a_note_is_fixed(note: Note, text: str) -> None:
    assert note_text(note) == text
    assert read_note(text) == note


@given(NOTES)
def test_a_note_reads_back_with_its_types(note: Note) -> None:
    again = read_note(note_text(note))
    assert again == note
    assert list(again.values) == list(note.values)
    assert [type(v) for v in again.values.values()] == [type(v) for v in note.values.values()]


@given(st.one_of(st.text(), st.text().map(lambda rest: "trionfq: " + rest)))
def test_any_comment_is_a_note(text: str) -> None:
    note = read_note(text)
    if note.kind == "comment":
        assert note_text(note) == text
    else:
        assert read_note(note_text(note)) == note


@pytest.mark.parametrize(
    "text",
    [
        "trionfq:",
        "trionfq: ",
        "trionfq: Overrun count=1",
        "trionfq: overrun count",
        "trionfq: overrun count=1 count=2",
        "trionfq: overrun  count=1",
        "trionfq: comment text=1",
        "trionfq overrun count=1",
    ],
)
def test_what_only_resembles_a_note_is_a_comment(text: str) -> None:
    assert read_note(text) == Note("comment", {"text": text})


@pytest.mark.parametrize(
    "note",
    [
        Note("Overrun", {}),
        Note("over run", {}),
        Note("", {}),
        Note("overrun", {"a b": 1}),
        Note("overrun", {"count": 10**40}),
        Note("comment", {}),
        Note("comment", {"text": 1}),
        Note("comment", {"text": "a", "more": "b"}),
    ],
)
def test_a_note_that_would_not_read_back_is_refused(note: Note) -> None:
    with pytest.raises(ValueError, match="note"):
        note_text(note)


def test_every_kind_of_note_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "captures.md").read_text()
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert set(KINDS) - {"comment"} <= set(rows)
