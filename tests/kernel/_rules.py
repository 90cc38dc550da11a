"""Rules by iptables and ip6tables, found again by a comment that each carries.

iptables because it is what the packages of nfqueue's users speak, and because nftables' own queue
statement needs a kernel part that many kernels are built without.
"""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ._namespace import Namespace

Family = Literal[4, 6]

_numbers = itertools.count(1)


class Counters(NamedTuple):
    """What has matched a rule."""

    packets: int
    octets: int


def _program(family: Family) -> str:
    return {4: "iptables", 6: "ip6tables"}[family]


@dataclass(frozen=True)
class Rule:
    """A rule in place; it goes with its namespace, or by `remove`."""

    namespace: Namespace
    family: Family
    table: str
    chain: str
    specification: tuple[str, ...]
    comment: str

    def counters(self) -> Counters:
        """Packets and octets that have matched, counted by the kernel without loss."""
        saved = self.namespace.run([f"{_program(self.family)}-save", "-c", "-t", self.table]).stdout
        pattern = rf'^\[(\d+):(\d+)\] -A .*--comment "?{re.escape(self.comment)}"?(?: |$)'
        found = re.search(pattern, saved, re.MULTILINE)
        if found is None:
            raise LookupError(f"the rule {self} is not there:\n{saved}")
        return Counters(int(found[1]), int(found[2]))

    @property
    def packets(self) -> int:
        """Packets that have matched."""
        return self.counters().packets

    def remove(self) -> None:
        """Take the rule out. Any hook that goes with it flushes the namespace's queues."""
        command = [_program(self.family), "-w", "-t", self.table, "-D", self.chain]
        self.namespace.run([*command, *self.specification])


def rule(
    namespace: Namespace,
    chain: str,
    text: str,
    *,
    family: Family = 4,
    table: str = "filter",
    first: bool = False,
) -> Rule:
    """Append a rule to a chain, or put it first.

    Args:
      namespace: where.
      chain: such as ``"OUTPUT"``; it must exist.
      text: matches and target as iptables takes them; without a target the rule only counts.
      family: 4 or 6.
      table: such as ``"mangle"``.
      first: insert it at the chain's top.
    """
    comment = f"trionfq-{next(_numbers)}"
    # Matches come first: --comment must not follow a target's options.
    specification = ("-m", "comment", "--comment", comment, *shlex.split(text))
    where = ["-I" if first else "-A", chain]
    namespace.run([_program(family), "-w", "-t", table, *where, *specification])
    return Rule(namespace, family, table, chain, specification, comment)


def queue_rule(
    namespace: Namespace,
    chain: str,
    match: str = "",
    queue: int | tuple[int, int] = 0,
    *,
    bypass: bool = False,
    family: Family = 4,
    table: str = "filter",
    first: bool = False,
) -> Rule:
    """Append a rule that hands what matches to a queue.

    Args:
      namespace: where.
      chain: such as ``"FORWARD"``.
      match: such as ``"-p udp --dport 53"``; empty for every packet.
      queue: its number; a pair of first and last spreads flows over that range.
      bypass: let packets pass where no program has bound the queue, instead of dropping them.
      family: 4 or 6.
      table: such as ``"mangle"``.
      first: insert it at the chain's top.
    """
    if isinstance(queue, tuple):
        target = f"-j NFQUEUE --queue-balance {queue[0]}:{queue[1]}"
    else:
        target = f"-j NFQUEUE --queue-num {queue}"
    text = f"{match} {target}{' --queue-bypass' if bypass else ''}"
    return rule(namespace, chain, text, family=family, table=table, first=first)
