"""The queueing rules of a namespace, of whatever program, read from what the programs print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq.rules._saved import SavedRule

_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_TAKES = ("ACCEPT", "DROP", "REJECT", "RETURN", "NFQUEUE", "QUEUE")
_NFT_TAKES = ("accept", "drop", "reject", "return", "queue", "goto")
_NFT_SAYS_NOTHING = ("counter", "log", *_NFT_TAKES)


class RuleAhead(NamedTuple):
    """A rule earlier in the chain that can take the packets away.

    Attributes:
      text: as its program prints it, or its verdict.
      packets: that have matched it; None without a counter.
    """

    text: str
    packets: int | None


@dataclass(frozen=True, kw_only=True)
class FoundRule:
    """A rule that hands packets to a queue.

    Attributes:
      program: what shows it: ``"nft"``, ``"iptables-nft"``, ``"ip6tables-legacy"``, ...
      families: of packets that can match: ``"ip"``, ``"ip6"``; nft's ``"bridge"``, ``"arp"`` and
        ``"netdev"`` as they are.
      table: that it stands in.
      chain: likewise.
      place: its number in the chain, from 1.
      hooks: that lead to it, such as ``("OUTPUT",)``; empty where no rule jumps to its chain.
      queues: first and last queue number, None where an expression chooses (nft).
      bypass: packets pass while nobody has bound the queue.
      packets: that have matched, None where it does not count (nft).
      comment: its comment, or empty.
      text: as printed by iptables; for nft what it matches is left out.
      ahead: an earlier rule that may take its packets, or None.
    """

    program: str
    families: tuple[str, ...]
    table: str
    chain: str
    place: int
    hooks: tuple[str, ...]
    queues: tuple[int, int] | None
    bypass: bool
    packets: int | None
    comment: str
    text: str
    ahead: RuleAhead | None

    def points_at(self, number: int) -> bool:
        """Whether its packets may come to a queue."""
        return self.queues is None or self.queues[0] <= number <= self.queues[1]


# --- iptables -------------------------------------------------------------------------------------


def of_saved(program: str, family: str, rules: list[SavedRule]) -> list[FoundRule]:
    """The queueing ones of a back end's rules."""
    found = []
    for index, rule in enumerate(rules):
        queues = rule.queues
        if queues is None:
            continue
        same = [one for one in rules[:index] if (one.table, one.chain) == (rule.table, rule.chain)]
        jumps = [(one.chain, one.target) for one in rules if one.table == rule.table]
        found.append(
            FoundRule(
                program=program,
                families=(family,),
                table=rule.table,
                chain=rule.chain,
                place=len(same) + 1,
                hooks=_leading_to(rule.chain, jumps, {name: name for name in _BUILT_IN}),
                queues=queues,
                bypass="--queue-bypass" in rule.words,
                packets=rule.packets,
                comment=rule.comment,
                text=rule.text,
                ahead=_ahead(
                    (_is_unconditional(one), RuleAhead(one.text, one.packets))
                    for one in same
                    if one.target in _TAKES or "-g" in one.words
                ),
            )
        )
    return found


def _is_unconditional(rule: SavedRule) -> bool:
    words = rule.words
    if "--comment" in words:
        at = words.index("--comment")
        words = tuple(word for place, word in enumerate(words) if not at - 2 <= place <= at + 1)
    return words[:1] in (("-j",), ("-g",))


def _ahead(taking: Iterable[tuple[bool, RuleAhead]]) -> RuleAhead | None:
    """One that takes everything, or else the one that has taken most."""
    rules = list(taking)
    for everything, rule in rules:
        if everything:
            return rule
    busy = [rule for _, rule in rules if rule.packets]
    return max(busy, key=lambda rule: rule.packets or 0, default=None)


def _leading_to(chain: str, jumps: list[tuple[str, str]], hooks: dict[str, str]) -> tuple[str, ...]:
    """The hooks from which jumps lead to a chain."""
    reached, todo = {chain}, [chain]
    while todo:
        here = todo.pop()
        for start, target in jumps:
            if target == here and start not in reached:
                reached.add(start)
                todo.append(start)
    return tuple(dict.fromkeys(hook for name, hook in hooks.items() if name in reached))


# --- nft ------------------------------------------------------------------------------------------


def of_nft(ruleset: dict[str, Any]) -> list[FoundRule]:
    """The queueing ones of what ``nft -j list ruleset`` prints."""
    objects = ruleset.get("nftables", [])
    rules = [item["rule"] for item in objects if "rule" in item]
    chains = [item["chain"] for item in objects if "chain" in item]
    found = []
    for index, rule in enumerate(rules):
        queue = _statement(rule, "queue")
        if queue is None:
            continue
        where = (rule["family"], rule["table"])
        same = [
            one
            for one in rules[:index]
            if (one["family"], one["table"], one["chain"]) == (*where, rule["chain"])
        ]
        jumps = [
            (one["chain"], target)
            for one in rules
            if (one["family"], one["table"]) == where
            for target in _targets(one.get("expr", []))
        ]
        hooks = {
            one["name"]: one["hook"].upper()
            for one in chains
            if (one["family"], one["table"]) == where and "hook" in one
        }
        flags = queue.get("flags", [])
        found.append(
            FoundRule(
                program="nft",
                families=_nft_families(rule),
                table=f"{rule['family']} {rule['table']}",
                chain=rule["chain"],
                place=len(same) + 1,
                hooks=_leading_to(rule["chain"], jumps, hooks),
                queues=_nft_queues(queue.get("num", 0)),
                bypass="bypass" in ([flags] if isinstance(flags, str) else flags),
                packets=_nft_packets(rule),
                comment=rule.get("comment", ""),
                text=_nft_text(queue),
                ahead=_ahead(
                    (_nft_takes_all(one), RuleAhead(verdict, _nft_packets(one)))
                    for one in same
                    if (verdict := _nft_verdict(one)) is not None
                ),
            )
        )
    return found


def made_by_iptables(ruleset: dict[str, Any]) -> bool:
    """Whether there are rules that only iptables-nft can show."""
    return any(
        "xt" in statement
        for item in ruleset.get("nftables", [])
        if "rule" in item
        for statement in item["rule"].get("expr", [])
    )


def _statement(rule: dict[str, Any], name: str) -> dict[str, Any] | None:
    for statement in rule.get("expr", []):
        if name in statement:
            value = statement[name]
            return value if isinstance(value, dict) else {}
    return None


def _targets(expression: Any) -> list[str]:
    """Chains that a rule's expressions jump to, maps included."""
    if isinstance(expression, dict):
        found = []
        for key, value in expression.items():
            if key in ("jump", "goto") and isinstance(value, dict) and "target" in value:
                found.append(str(value["target"]))
            else:
                found += _targets(value)
        return found
    if isinstance(expression, list):
        return [target for item in expression for target in _targets(item)]
    return []


def _nft_queues(number: Any) -> tuple[int, int] | None:
    if isinstance(number, int):
        return number, number
    if isinstance(number, dict) and "range" in number:
        first, last = number["range"]
        return int(first), int(last)
    return None


def _nft_packets(rule: dict[str, Any]) -> int | None:
    packets = (_statement(rule, "counter") or {}).get("packets")
    return packets if isinstance(packets, int) else None


def _nft_verdict(rule: dict[str, Any]) -> str | None:
    for statement in rule.get("expr", []):
        for name in statement:
            if name in _NFT_TAKES:
                return str(name)
    return None


def _nft_takes_all(rule: dict[str, Any]) -> bool:
    return all(name in _NFT_SAYS_NOTHING for statement in rule["expr"] for name in statement)


def _nft_text(queue: dict[str, Any]) -> str:
    queues = _nft_queues(queue.get("num", 0))
    if queues is None:
        return "queue to a number that an expression chooses"
    return f"queue num {queues[0]}" if queues[0] == queues[1] else "queue num {}-{}".format(*queues)


def _nft_families(rule: dict[str, Any]) -> tuple[str, ...]:
    family = rule["family"]
    if family != "inet":
        return (family,)
    for statement in rule.get("expr", []):
        match = statement.get("match", {})
        left, right = match.get("left", {}), match.get("right")
        if match.get("op") not in ("==", "in") or not isinstance(left, dict):
            continue
        if left.get("meta", {}).get("key") == "nfproto" and right in ("ipv4", "ipv6"):
            return ("ip",) if right == "ipv4" else ("ip6",)
        # nft leaves nfproto out where another match implies it.
        protocol = left.get("payload", {}).get("protocol")
        if protocol in ("ip", "ip6"):
            return (protocol,)
        if left.get("meta", {}).get("key") == "l4proto" and right in ("icmp", "ipv6-icmp"):
            return ("ip",) if right == "icmp" else ("ip6",)
    return ("ip", "ip6")
