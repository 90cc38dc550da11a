"""A queueing rule as it was asked for, checked, and as the programs take it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from trionfq.rules._match import Match
from trionfq.schema.nfqueue import Hook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionfq.rules._match import Family

Table: TypeAlias = Literal["raw", "mangle", "filter", "security"]
Position: TypeAlias = Literal["top", "bottom"]

CHAINS = {
    Hook.PRE_ROUTING: "PREROUTING",
    Hook.LOCAL_IN: "INPUT",
    Hook.FORWARD: "FORWARD",
    Hook.LOCAL_OUT: "OUTPUT",
    Hook.POST_ROUTING: "POSTROUTING",
}
"""iptables' names of the hooks; nft has the same in lower case."""

_PRIORITIES = {
    "raw": -300,
    "mangle": -150,
    "filter": 0,
    "security": 50,
}  # enum nf_ip_hook_priorities
_TABLES = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": tuple(CHAINS.values()),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
_COMES_IN = ("PREROUTING", "INPUT", "FORWARD")
_GOES_OUT = ("FORWARD", "OUTPUT", "POSTROUTING")
_FULL_MASK = 0xFFFFFFFF
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,39}")


@dataclass(frozen=True)
class Spec:
    """A queueing rule.

    Attributes:
      first: queue number; with `last`, the first of the range that flows are spread over.
      last: the last queue number.
      chains: iptables' names.
      families: nft's names.
      matches: alternatives.
      table: iptables' table; nft's priority.
      position: in the chain.
      bypass: packets pass while nobody has bound the queue.
      fanout: the processor chooses the queue of the range, not a hash of the flow.
      exclude_mark: value and mask of packets that are left alone.
      counter: count in nft, too.
      key: names whose rule it is.
    """

    first: int
    last: int
    chains: tuple[str, ...]
    families: tuple[Family, ...]
    matches: tuple[Match, ...]
    table: Table
    position: Position
    bypass: bool
    fanout: bool
    exclude_mark: tuple[int, int] | None
    counter: bool
    key: str

    def programs(self) -> tuple[str, ...]:
        """The kinds of program that can install it, in order of preference."""
        return tuple(
            name
            for name in ("nft", "iptables")
            if all(name in match.programs for match in self.matches)
        )

    def for_families(self, family: Family) -> tuple[Match, ...]:
        """The alternatives that a family's packets can fit."""
        return tuple(match for match in self.matches if family in match.families)

    # --- iptables -----------------------------------------------------------------------------

    def iptables_rules(self, family: Family, comment: str) -> list[tuple[str, list[str]]]:
        """Chain and arguments of each rule of a family, in the order in which they are to stand."""
        head: list[str] = []
        if self.exclude_mark is not None:
            head = ["-m", "mark", "!", "--mark", "{:#x}/{:#x}".format(*self.exclude_mark)]
        target = ["-m", "comment", "--comment", comment, "-j", "NFQUEUE"]
        if self.first == self.last:
            target += ["--queue-num", str(self.first)]
        else:
            target += ["--queue-balance", f"{self.first}:{self.last}"]
        target += ["--queue-cpu-fanout"] * self.fanout + ["--queue-bypass"] * self.bypass
        return [
            (chain, [*arguments, *head, *target])
            for chain in self.chains
            for match in self.for_families(family)
            for arguments in match.iptables_arguments(family)
        ]

    # --- nft ----------------------------------------------------------------------------------

    @property
    def priority(self) -> int:
        """Of the base chains: beside iptables' table, on the side that `position` says."""
        return _PRIORITIES[self.table] + (-1 if self.position == "top" else 1)

    def nft_chain(self, chain: str) -> str:
        """Name of the base chain; the same name has the same hook and priority."""
        return f"{chain.lower()}_{self.priority:+d}".replace("+", "p").replace("-", "m")

    def nft_script(self, table: str, comment: str) -> str:
        """What makes the table hold this rule and nothing else, in one transaction."""
        lines = [f"add table inet {table}", f"flush table inet {table}"]
        lines += [
            f"add chain inet {table} {self.nft_chain(chain)} "
            f"{{ type filter hook {chain.lower()} priority {self.priority}; }}"
            for chain in self.chains
        ]
        lines += self._nft_rules(table, comment)
        return "\n".join(lines) + "\n"

    def nft_trial(self, table: str, comment: str) -> str:
        """What makes the same rules in chains without a hook and deletes them, in one go."""
        lines = [f"add table inet {table}"]
        lines += [f"add chain inet {table} {self.nft_chain(chain)}" for chain in self.chains]
        lines += self._nft_rules(table, comment)
        return "\n".join([*lines, f"delete table inet {table}"]) + "\n"

    def _nft_rules(self, table: str, comment: str) -> list[str]:
        return [
            f"add rule inet {table} {name} {self._nft_rule(match, family, comment)}"
            for name in map(self.nft_chain, self.chains)
            for family in self.families
            for match in self.for_families(family)
        ]

    def _nft_rule(self, match: Match, family: Family, comment: str) -> str:
        parts = [f"meta nfproto {'ipv4' if family == 'ip' else 'ipv6'}", match.nft_text(family)]
        if self.exclude_mark is not None:
            value, mask = self.exclude_mark
            masked = "" if mask == _FULL_MASK else f"and {mask:#x} "
            parts.append(f"meta mark {masked}!= {value:#x}")
        parts += ["counter"] * self.counter
        numbers = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        flags = ",".join(["bypass"] * self.bypass + ["fanout"] * self.fanout)
        parts.append(f"queue num {numbers} {flags}".rstrip())
        parts.append(f'comment "{comment}"')
        return " ".join(part for part in parts if part)


def make_spec(
    number: int | None,
    chain: str | Hook | Sequence[str | Hook],
    *,
    balance: tuple[int, int] | None,
    match: Match | Sequence[Match] | None,
    families: Sequence[Family],
    table: Table,
    position: Position,
    bypass: bool,
    fanout: bool,
    exclude_mark: int | tuple[int, int] | None,
    counter: bool,
    key: str | None,
) -> Spec:
    """Check what a user gave.

    Raises:
      ValueError: it is malformed or contradicts itself; the text says what to do.
      TypeError: a value is of the wrong type.
    """
    first, last = _queues(number, balance)
    if fanout and first == last:
        raise ValueError("fanout: spreads packets over a range; give balance=(first, last)")
    given = [chain] if isinstance(chain, (str, Hook)) else list(chain)
    chains = tuple(dict.fromkeys(map(chain_name, given)))
    if not chains:
        raise ValueError("chain: none given")
    _check_table(table, chains)
    if position not in ("top", "bottom"):
        raise ValueError(f"position: expected 'top' or 'bottom', got {position!r}")
    matches = _matches(match)
    for one in matches:
        _check_interfaces(one, chains)
    wanted = tuple(dict.fromkeys(families))
    if isinstance(families, str) or not wanted or not set(wanted) <= {"ip", "ip6"}:
        raise ValueError(f"families: expected some of 'ip' and 'ip6', got {families!r}")
    possible = tuple(name for name in wanted if any(name in one.families for one in matches))
    if not possible:
        raise ValueError(f"match: its networks are of none of the families {families!r}")
    if key is None:
        key = f"queue-{first}" if first == last else f"queue-{first}-{last}"
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"key: expected up to 40 letters, digits, dots and hyphens, a letter or digit first, "
            f"got {key!r}"
        )
    spec = Spec(
        first,
        last,
        chains,
        possible,
        matches,
        table,
        position,
        bypass,
        fanout,
        _mark(exclude_mark),
        counter,
        key,
    )
    if not spec.programs():
        raise ValueError("match: one has text for nft only, another for iptables only")
    return spec


def _matches(match: Match | Sequence[Match] | None) -> tuple[Match, ...]:
    if match is None:
        return (Match(),)
    found = (match,) if isinstance(match, Match) else tuple(match)
    for one in found:
        if not isinstance(one, Match):
            raise TypeError(f"match: expected a Match, got {type(one).__name__}")
    if not found:
        raise ValueError("match: no alternative given; None matches every packet")
    return found


def chain_name(chain: str | Hook) -> str:
    """The name by which iptables calls a chain or hook.

    Raises:
      ValueError: it is none of the five.
    """
    if isinstance(chain, Hook):
        name = CHAINS.get(chain, chain.name)
    else:
        name = chain.upper() if isinstance(chain, str) else repr(chain)
    if name not in CHAINS.values():
        raise ValueError(
            f"chain: expected {', '.join(CHAINS.values())} (any case, or a Hook), got {chain!r}"
        )
    return name


def _queues(number: int | None, balance: tuple[int, int] | None) -> tuple[int, int]:
    if (number is None) == (balance is None):
        raise ValueError("number, balance: give one of them: a queue number, or first and last")
    first, last = (number, number) if balance is None else balance
    for value in (first, last):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"queue number: expected an int, got {value!r}")
        if not 0 <= value <= 65535:
            raise ValueError(f"queue number: expected 0 to 65535, got {value}")
    assert first is not None
    assert last is not None
    if balance is not None and first >= last:
        raise ValueError(f"balance: expected the first queue number before the last, got {balance}")
    return first, last


def _check_table(table: str, chains: tuple[str, ...]) -> None:
    if table == "nat":
        raise ValueError("table: nat sees only a flow's first packet; use mangle")
    if table not in _TABLES:
        raise ValueError(f"table: expected {', '.join(_TABLES)}, got {table!r}")
    for chain in chains:
        if chain not in _TABLES[table]:
            raise ValueError(
                f"table: {table} has no chain {chain}, only {', '.join(_TABLES[table])}; "
                "mangle has all five"
            )


def _check_interfaces(match: Match, chains: tuple[str, ...]) -> None:
    for name, value, known in (
        ("in_interface", match.in_interface, _COMES_IN),
        ("out_interface", match.out_interface, _GOES_OUT),
    ):
        for chain in chains:
            if value is not None and chain not in known:
                raise ValueError(f"{name}: not known yet, or no more, in {chain}")


def _mark(mark: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if mark is None:
        return None
    value, mask = mark if isinstance(mark, tuple) else (mark, _FULL_MASK)
    if not (0 <= value <= _FULL_MASK and 0 < mask <= _FULL_MASK):
        raise ValueError(f"exclude_mark: expected 32-bit value and mask, got {mark!r}")
    if value & ~mask:
        raise ValueError(
            f"exclude_mark: {value:#x} has bits outside of its mask {mask:#x}, so no mark would fit"
        )
    return value, mask
