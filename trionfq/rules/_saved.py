"""Reading what iptables-save -c prints: rules with their counters, in order."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

_LINE = re.compile(r"\[(\d+):(\d+)\] -A (\S+) ?(.*)")


@dataclass(frozen=True)
class SavedRule:
    """One line.

    Attributes:
      table: iptables' table.
      chain: iptables' chain.
      text: its matches and target as printed; iptables-restore takes them back.
      words: those, unquoted.
      packets: that have matched.
      octets: likewise.
    """

    table: str
    chain: str
    text: str
    words: tuple[str, ...]
    packets: int
    octets: int

    def option(self, name: str) -> str | None:
        """What follows an option."""
        if name not in self.words[:-1]:
            return None
        return self.words[self.words.index(name) + 1]

    @property
    def comment(self) -> str:
        """Its comment, empty without one."""
        return self.option("--comment") or ""

    @property
    def target(self) -> str:
        """Where a match goes: a target's name, or a chain's; empty where it only counts."""
        return self.option("-j") or self.option("-g") or ""

    @property
    def queues(self) -> tuple[int, int] | None:
        """First and last queue number of an NFQUEUE target, None for others."""
        if self.target == "QUEUE":
            return 0, 0  # xt_NFQUEUE's ancestor
        if self.target != "NFQUEUE":
            return None
        if (balance := self.option("--queue-balance")) is not None:
            first, _, last = balance.partition(":")
            return int(first), int(last)
        number = int(self.option("--queue-num") or 0)
        return number, number


def parse_saved(text: str) -> list[SavedRule]:
    """The rules of ``iptables-save -c``; what is no rule is left out."""
    table = ""
    rules: list[SavedRule] = []
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif found := _LINE.fullmatch(line.strip()):
            packets, octets, chain, rest = found.groups()
            try:
                words = tuple(shlex.split(rest))
            except ValueError:
                words = tuple(rest.split())
            rules.append(SavedRule(table, chain, rest, words, int(packets), int(octets)))
    return rules
