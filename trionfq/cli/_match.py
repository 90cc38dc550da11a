"""What a rule matches, as the command line has it: ``protocol=udp``, ``dports=53,8000-8010``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from trionfq.rules import Match

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAMES = tuple(field.name for field in dataclasses.fields(Match))
_LISTS = ("source", "destination")
_PORTS = ("sports", "dports")


class MatchPart(click.ParamType[tuple[str, Any]]):
    """Gives a member of `Match` and its value."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Read one pair."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        key = key.replace("-", "_")
        if not equals or key not in _NAMES:
            self.fail(
                f"expected KEY=VALUE with one of {', '.join(_NAMES)}, got {value}", param, ctx
            )
        if key in _LISTS:
            return key, text.split(",")
        if key in _PORTS:
            try:
                return key, [_port(each) for each in text.split(",")]
            except ValueError:
                self.fail(f"{key}: expected such as 53,8000-8010, got {text}", param, ctx)
        return key, int(text) if key == "protocol" and text.isdecimal() else text


def _port(text: str) -> int | tuple[int, int]:
    first, dash, last = text.partition("-")
    return (int(first), int(last)) if dash else int(first)


def match_of(parts: Iterable[tuple[str, Any]]) -> Match | None:
    """The whole match, None without a part.

    Raises:
      ValueError: parts contradict each other, or one is malformed.
    """
    given = dict(parts)
    return Match(**given) if given else None
