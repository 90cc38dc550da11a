"""Makes the pages of this folder from their tables: python docs/parity/tables.py.

Each table is a .toml file beside this one, its page the .md file of the same name. A row names what
a peer has (`theirs`), the calls that do it here (`calls`), the tests that show it (`tests`), and
what differs (`note`); or it says why there is nothing (`left_out`). tests/test_parity.py checks the
rows, and that the pages are what this writes.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = "../.."
NAMES = "names"


@dataclass(frozen=True)
class Row:
    """What a peer has, and what there is here for it."""

    theirs: tuple[str, ...]
    calls: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    note: str = ""
    left_out: str = ""

    @classmethod
    def read(cls, table: dict[str, Any]) -> Row:
        lists = {name: tuple(value) for name, value in table.items() if isinstance(value, list)}
        return cls(**{**table, **lists})


@dataclass(frozen=True)
class Section:
    """Rows under one heading."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """All rows of one peer."""

    name: str
    title: str
    about: str
    sections: tuple[Section, ...]

    @property
    def rows(self) -> list[Row]:
        return [row for section in self.sections for row in section.rows]


def read(path: Path) -> Page:
    """The page of one table."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    sections = tuple(
        Section(section["title"], tuple(Row.read(row) for row in section["row"]))
        for section in table["section"]
    )
    return Page(path.stem, table["title"], table["about"].strip(), sections)


def pages() -> list[Page]:
    """The page of every table."""
    return [read(path) for path in sorted(HERE.glob("*.toml")) if path.stem != NAMES]


def render(page: Page) -> str:
    """The text of a page."""
    source = f"<!-- Made from {page.name}.toml by tables.py; change that file. -->"
    blocks = [f"# {page.title}", source, page.about]
    for section in page.sections:
        lines = [f"| {page.title} | trionfq | shown by |", "| --- | --- | --- |"]
        lines += [_line(row) for row in section.rows]
        blocks += [f"## {section.title}", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def _line(row: Row) -> str:
    if row.left_out:
        ours = f"*left out:* {row.left_out}"
    else:
        ours = ", ".join(map(_code, row.calls)) + (f". {_sentence(row.note)}" if row.note else "")
    theirs = ", ".join(map(_code, row.theirs))
    return f"| {theirs} | {ours} | {', '.join(map(_link, row.tests))} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _sentence(note: str) -> str:
    return note if note[:1] == "`" else note[:1].upper() + note[1:]


def _link(test: str) -> str:
    path, name = test.split("::")
    return f"[{name}]({ROOT}/{path})"


def write() -> None:
    """Write every page."""
    for page in pages():
        (HERE / f"{page.name}.md").write_text(render(page), encoding="utf-8")


if __name__ == "__main__":
    write()
