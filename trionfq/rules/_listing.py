"""The queueing rules of a namespace, of whatever program, read from what the programs print."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trionfq.rules._ahead import RuleAhead, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq.rules._ahead import End
    from trionfq.rules._saved import SavedRule

_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
# In the order of their priorities; in nat nothing can be dropped.
_DROPPING_TABLES = ("raw", "mangle", "filter", "security")
_ENDS: dict[str, End] = {
    "ACCEPT": "accept",
    "NFQUEUE": "accept",
    "QUEUE": "accept",
    "DROP": "drop",
    "REJECT": "drop",
    "RETURN": "leave",
}
_NFT_ENDS: dict[str, End] = {
    "accept": "accept",
    "queue": "accept",
    "drop": "drop",
    "reject": "drop",
    "return": "leave",
    "goto": "leave",
}
_NFT_SAYS_NOTHING = ("counter", "log", "jump", *_NFT_ENDS)
# Hooks that come after another one for every packet.
_AFTER = {"INPUT": "PREROUTING", "FORWARD": "PREROUTING"}
_INET = ("ip", "ip6", "inet")


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
    steps = Steps(map(_step, rules))
    places: Counter[tuple[str, str]] = Counter()
    found = []
    for rule in rules:
        chain = rule.table, rule.chain
        place = places[chain]
        places[chain] += 1
        queues = rule.queues
        if queues is None:
            continue
        reached = steps.leading_to(chain)
        hooks = tuple(name for name in _BUILT_IN if (rule.table, name) in reached)
        found.append(
            FoundRule(
                program=program,
                families=(family,),
                table=rule.table,
                chain=rule.chain,
                place=place + 1,
                hooks=hooks,
                queues=queues,
                bypass="--queue-bypass" in rule.words,
                packets=rule.packets,
                comment=rule.comment,
                text=rule.text,
                ahead=steps.ahead_of(chain, place, _earlier(rule.table, hooks)),
            )
        )
    return found


def _step(rule: SavedRule) -> Step:
    end = "leave" if "-g" in rule.words else _ENDS.get(rule.target, "")
    return Step(
        (rule.table, rule.chain),
        RuleAhead(rule.text, rule.packets, f"{rule.table} {rule.chain}"),
        end,
        _is_unconditional(rule),
        () if rule.target in _ENDS else ((rule.table, rule.target),),
    )


def _earlier(table: str, hooks: tuple[str, ...]) -> list[tuple[str, str]]:
    """The chains that a packet passes before those of a table; none where it has several ways."""
    if len(hooks) != 1:
        return []
    [hook] = hooks
    before = [(name, _AFTER[hook]) for name in _DROPPING_TABLES if hook in _AFTER]
    if table in _DROPPING_TABLES:
        before += [(name, hook) for name in _DROPPING_TABLES[: _DROPPING_TABLES.index(table)]]
    return before


def _is_unconditional(rule: SavedRule) -> bool:
    words = rule.words
    if "--comment" in words:
        at = words.index("--comment")
        words = tuple(word for place, word in enumerate(words) if not at - 2 <= place <= at + 1)
    return words[:1] in (("-j",), ("-g",))


# --- nft ------------------------------------------------------------------------------------------


def of_nft(ruleset: dict[str, Any]) -> list[FoundRule]:
    """The queueing ones of what ``nft -j list ruleset`` prints."""
    objects = ruleset.get("nftables", [])
    rules = [item["rule"] for item in objects if "rule" in item]
    chains = [item["chain"] for item in objects if "chain" in item]
    base = {
        (one["family"], one["table"], one["name"]): (one["hook"].upper(), one.get("prio", 0))
        for one in chains
        if "hook" in one
    }
    steps = Steps([*map(_nft_step, rules), *_policies(chains)])
    places: Counter[tuple[str, str, str]] = Counter()
    found = []
    for rule in rules:
        chain = rule["family"], rule["table"], rule["chain"]
        place = places[chain]
        places[chain] += 1
        queue = _statement(rule, "queue")
        if queue is None:
            continue
        reached = steps.leading_to(chain)
        entries = [key for key in base if key in reached]
        flags = queue.get("flags", [])
        packets = _nft_packets(rule)
        found.append(
            FoundRule(
                program="nft",
                families=_nft_families(rule),
                table=f"{rule['family']} {rule['table']}",
                chain=rule["chain"],
                place=place + 1,
                hooks=tuple(dict.fromkeys(base[key][0] for key in entries)),
                queues=_nft_queues(queue.get("num", 0)),
                bypass="bypass" in ([flags] if isinstance(flags, str) else flags),
                packets=packets,
                comment=rule.get("comment", ""),
                text=_nft_text(queue),
                ahead=steps.ahead_of(
                    chain, place, _nft_earlier(entries, base), uncounted=packets == 0
                ),
            )
        )
    return found


def _nft_step(rule: dict[str, Any]) -> Step:
    family, table = rule["family"], rule["table"]
    verdict = _nft_verdict(rule)
    return Step(
        (family, table, rule["chain"]),
        RuleAhead(verdict or "", _nft_packets(rule), f"{family} {table} {rule['chain']}"),
        _NFT_ENDS.get(verdict or "", ""),
        all(name in _NFT_SAYS_NOTHING for statement in rule.get("expr", []) for name in statement),
        tuple((family, table, target) for target in _targets(rule.get("expr", []))),
    )


def _policies(chains: Iterable[dict[str, Any]]) -> Iterable[Step]:
    """What the end of a base chain drops; how much that was, nothing counts."""
    for chain in chains:
        if chain.get("policy") == "drop":
            where = chain["family"], chain["table"], chain["name"]
            yield Step(where, RuleAhead("policy drop", None, " ".join(where)), "drop", False)


def _nft_earlier(
    entries: list[tuple[str, str, str]], base: dict[tuple[str, str, str], tuple[str, int]]
) -> list[tuple[str, str, str]]:
    """The base chains that a packet passes before another one; none where it has several ways."""
    if len(entries) != 1:
        return []
    [(family, table, name)] = entries
    hook, priority = base[family, table, name]
    return [
        key
        for key, (other, its_priority) in base.items()
        if (key[0] == family or (key[0] == "inet" and family in _INET))
        and (other == _AFTER.get(hook) or (other == hook and its_priority < priority))
    ]


def flowtables_of_nft(ruleset: dict[str, Any]) -> list[str]:
    """Names of flowtables, as family, table and name."""
    tables = [item["flowtable"] for item in ruleset.get("nftables", []) if "flowtable" in item]
    return [f"{one['family']} {one['table']} {one['name']}" for one in tables]


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
            if name in _NFT_ENDS:
                return str(name)
    return None


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
