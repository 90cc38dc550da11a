"""Why no packets arrive: facts of one namespace, and what follows from them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from trionfq.schema.nfqueue import CopyMode

if TYPE_CHECKING:
    from trionfq.backends._abc import QueueRow
    from trionfq.rules._ahead import RuleAhead
    from trionfq.rules._listing import FoundRule

_FAMILY_NAMES = {"ip": "IPv4", "ip6": "IPv6", "arp": "ARP"}
_SEES = {
    "PREROUTING": "packets that come in",
    "INPUT": "packets that come in for this machine itself",
    "FORWARD": "packets that this machine forwards for others",
    "OUTPUT": "packets that this machine sends itself",
    "POSTROUTING": "packets that go out",
}

_FORWARDED = {"PREROUTING", "FORWARD", "POSTROUTING"}


class Cause(enum.Enum):
    """Why packets do not arrive, or not all of them."""

    NOT_BOUND = "nobody has bound the queue"
    BOUND_ELSEWHERE = "the queue is bound in another namespace"
    NO_RULE = "no rule points at the queue"
    OTHER_NUMBER = "rules point at other queues"
    ONE_FAMILY = "a family has no rule"
    NOT_MATCHED = "nothing has matched the rule"
    TAKEN_BEFORE = "an earlier rule takes the packets"
    CHAIN_NOT_REACHED = "no hook leads to the rule's chain"
    NO_FORWARDING = "forwarding is switched off"
    BRIDGED = "bridged packets do not come to iptables"
    REVERSE_PATH = "packets fail the reverse path filter"
    OFFLOADED = "connections in a flowtable pass the hooks by"
    MODE_NONE = "the queue's copy mode drops every packet"
    WAITING = "packets wait for their verdicts"
    QUEUE_FULL = "the queue was full"
    OVERRUN = "the receive buffer was full"
    LEFT_BEHIND = "a rule's owner is gone"
    NOT_READ = "something could not be read"


class Finding(NamedTuple):
    """One cause.

    Attributes:
      cause: which.
      text: what was seen, and what to do.
    """

    cause: Cause
    text: str


class Owner(NamedTuple):
    """A process that has the socket which owns a queue.

    Attributes:
      pid: its process id.
      name: its name, as the kernel keeps it.
    """

    pid: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `diagnose` found out; as text, in plain words.

    Attributes:
      number: queue number.
      namespace: how it is called.
      queue: row of /proc/net/netfilter/nfnetlink_queue; None where nobody has bound the queue.
      owners: processes that have the owner's socket, as far as they may be looked at.
      rules: those that point at the queue.
      other_rules: those that point at other queues.
      bound: numbers of all queues of the namespace that are bound.
      elsewhere: names of other namespaces in which the queue is bound; looked for only where it is
        not bound here.
      families: that the machine has, of ``"ip"`` and ``"ip6"``.
      flowtables: of nft; forwarded packets of connections in one come to no hook but ingress.
      forwarding: those of them that it forwards.
      bridges: names of its bridges.
      bridged_families: those whose bridged packets come to iptables (br_netfilter).
      reverse_path_drops: packets that failed the reverse path filter since the start.
      left_behind: comments of trionfq's rules whose owners are gone.
      unread: what could not be read, and why.
    """

    number: int
    namespace: str
    queue: QueueRow | None
    owners: tuple[Owner, ...] = ()
    rules: tuple[FoundRule, ...] = ()
    other_rules: tuple[FoundRule, ...] = ()
    bound: tuple[int, ...] = ()
    elsewhere: tuple[str, ...] = ()
    families: tuple[str, ...] = ("ip", "ip6")
    flowtables: tuple[str, ...] = ()
    forwarding: tuple[str, ...] = ("ip", "ip6")
    bridges: tuple[str, ...] = ()
    bridged_families: tuple[str, ...] = ()
    reverse_path_drops: int = 0
    left_behind: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(init=False)
    """What keeps packets away, most likely first; empty where nothing was found."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(_judge(self)))

    @property
    def is_bound(self) -> bool:
        """Whether a program has bound the queue here."""
        return self.queue is not None

    @property
    def causes(self) -> frozenset[Cause]:
        """The kinds of `findings`."""
        return frozenset(finding.cause for finding in self.findings)

    @property
    def packets(self) -> int:
        """Packets that have matched the rules which point at the queue, as far as they count."""
        return sum(rule.packets or 0 for rule in self.rules)

    def __str__(self) -> str:
        lines = [f"queue {self.number} in {self.namespace}", f"  bound: {self._binding()}"]
        lines.append(f"  rules that point at it: {len(self.rules) or 'none'}")
        lines += [f"    {described(rule)}" for rule in self.rules]
        if self.findings:
            lines.append("  what keeps packets away:")
            lines += [f"    - {finding.text}" for finding in self.findings]
        else:
            lines.append("  nothing was found that keeps packets away")
        return "\n".join(lines)

    def _binding(self) -> str:
        row = self.queue
        if row is None:
            return "no"
        by = ", ".join(f"{owner.name}, process {owner.pid}" for owner in self.owners)
        return (
            f"yes, by port id {row.portid} ({by or 'its process was not found'}); "
            f"{_packets(row.id_sequence)} so far, {row.queue_total} waiting for a verdict"
        )


def described(rule: FoundRule) -> str:
    """One line about a rule."""
    families = " and ".join(_FAMILY_NAMES.get(name, name) for name in rule.families)
    counted = "not counted" if rule.packets is None else _packets(rule.packets)
    where = f"{rule.table} {rule.chain}, rule {rule.place}"
    return f"{rule.program}, {families}, {where}: {counted}: {rule.text}"


def _packets(number: int) -> str:
    return f"{number} packet" if number == 1 else f"{number} packets"


def _judge(seen: Diagnosis) -> list[Finding]:
    found: list[Finding] = []
    found += _judge_binding(seen)
    if seen.rules:
        found += _judge_families(seen)
        for rule in seen.rules:
            found += _judge_rule(seen, rule)
        found += _judge_surroundings(seen)
    else:
        found += _judge_no_rule(seen)
    found += _judge_queue(seen)
    found += [
        Finding(
            Cause.LEFT_BEHIND,
            f"a rule with the comment {comment} was left behind by a program that is gone; "
            "starting with the same key replaces it",
        )
        for comment in seen.left_behind
    ]
    found += [Finding(Cause.NOT_READ, text) for text in seen.unread]
    return found


def _judge_binding(seen: Diagnosis) -> list[Finding]:
    if seen.queue is not None:
        return []
    meanwhile = ""
    if seen.rules:
        passes = all(rule.bypass for rule in seen.rules)
        meanwhile = f"; what matches is {'let through' if passes else 'dropped'} meanwhile"
    found = [Finding(Cause.NOT_BOUND, f"no program has bound queue {seen.number}{meanwhile}")]
    if seen.elsewhere:
        names = ", ".join(seen.elsewhere)
        text = (
            f"queue {seen.number} is bound in {names}: a queue gets the packets of its own "
            "namespace only; start the program here, or give it namespace="
        )
        found.append(Finding(Cause.BOUND_ELSEWHERE, text))
    return found


def _judge_no_rule(seen: Diagnosis) -> list[Finding]:
    if seen.other_rules:
        others = sorted({rule.queues for rule in seen.other_rules if rule.queues is not None})
        numbers = ", ".join(
            f"{first}{'' if first == last else f'-{last}'} "
            f"({'bound' if first in seen.bound else 'not bound'})"
            for first, last in others
        )
        text = f"no rule points at queue {seen.number}; the rules here point at {numbers}"
        return [Finding(Cause.OTHER_NUMBER, text)]
    sure = "" if not seen.unread else ", as far as rules could be read"
    text = (
        f"no rule of {seen.namespace} points at queue {seen.number}{sure}: install one, with "
        f"trionfq.rules.queueing({seen.number}, ...) or "
        f"`iptables -t mangle -I OUTPUT -j NFQUEUE --queue-num {seen.number}`"
    )
    return [Finding(Cause.NO_RULE, text)]


def _judge_families(seen: Diagnosis) -> list[Finding]:
    have = {family for rule in seen.rules for family in rule.families}
    missing = [family for family in seen.families if family not in have]
    if not missing or not have & set(seen.families):
        return []
    names = " and ".join(_FAMILY_NAMES[family] for family in missing)
    text = f"no rule points at queue {seen.number} for {names}: those packets do not come"
    return [Finding(Cause.ONE_FAMILY, text)]


def _judge_rule(seen: Diagnosis, rule: FoundRule) -> list[Finding]:
    what = f"the rule in {rule.table} {rule.chain} ({rule.program})"
    if not rule.hooks:
        text = f"{what} is never asked: no rule jumps to chain {rule.chain} from a hook"
        return [Finding(Cause.CHAIN_NOT_REACHED, text)]
    if rule.packets or _works(seen, rule):
        return []
    found: list[Finding] = []
    if rule.ahead is not None:
        found.append(Finding(Cause.TAKEN_BEFORE, _taken_before(what, rule.ahead)))
    if rule.packets == 0:
        hooks = ", ".join(
            f"{hook} sees {_SEES[hook]}" if hook in _SEES else hook for hook in rule.hooks
        )
        text = f"nothing has matched {what} yet; {hooks}"
        found.append(Finding(Cause.NOT_MATCHED, text))
    if "FORWARD" in rule.hooks:
        off = [name for name in rule.families if name in seen.families]
        off = [name for name in off if name not in seen.forwarding]
        found += [
            Finding(
                Cause.NO_FORWARDING,
                f"{what} sees forwarded packets, and this machine forwards no "
                f"{_FAMILY_NAMES[family]} ("
                + ("net.ipv4.ip_forward" if family == "ip" else "net.ipv6.conf.all.forwarding")
                + ")",
            )
            for family in off
        ]
    return found


def _works(seen: Diagnosis, rule: FoundRule) -> bool:
    """Whether packets came by a rule that does not count them, since there is no other."""
    return (
        rule.packets is None
        and len(seen.rules) == 1
        and seen.queue is not None
        and seen.queue.id_sequence > 0
    )


def _taken_before(what: str, ahead: RuleAhead) -> str:
    where = f" in {ahead.where}" if ahead.where else ""
    count = "" if ahead.packets is None else f" ({_packets(ahead.packets)})"
    cure = "let that one spare them, or stand before it" if ahead.where else "insert it at the top"
    return f"{what} stands behind one that takes packets first: {ahead.text}{where}{count}; {cure}"


def _judge_surroundings(seen: Diagnosis) -> list[Finding]:
    found: list[Finding] = []
    quiet = [rule for rule in seen.rules if not rule.packets]
    deaf = [
        family
        for family in ("ip", "ip6")
        if family not in seen.bridged_families and any(family in rule.families for rule in quiet)
    ]
    if seen.bridges and deaf:
        text = (
            f"packets that only cross the bridge {', '.join(seen.bridges)} do not come to rules "
            f"for {' and '.join(_FAMILY_NAMES[family] for family in deaf)}: load br_netfilter and "
            "set net.bridge.bridge-nf-call-iptables and -ip6tables, or use nft's bridge family"
        )
        found.append(Finding(Cause.BRIDGED, text))
    if seen.flowtables and any(_FORWARDED & set(rule.hooks) for rule in seen.rules):
        text = (
            f"forwarded packets of connections in the flowtable {', '.join(seen.flowtables)} come "
            "to no rule but ingress, so only the first ones arrive: let the rule that adds them "
            "(flow add) spare these"
        )
        found.append(Finding(Cause.OFFLOADED, text))
    late = ("INPUT", "FORWARD")
    if seen.reverse_path_drops and any(set(late) & set(rule.hooks) for rule in quiet):
        text = (
            f"{_packets(seen.reverse_path_drops)} came in by an interface that does not lead back "
            "to the sender and were dropped before INPUT and FORWARD (rp_filter)"
        )
        found.append(Finding(Cause.REVERSE_PATH, text))
    return found


def _judge_queue(seen: Diagnosis) -> list[Finding]:
    row = seen.queue
    if row is None:
        return []
    found: list[Finding] = []
    if row.copy_mode == CopyMode.NONE:
        text = f"queue {seen.number} has copy mode NONE, which drops every packet"
        found.append(Finding(Cause.MODE_NONE, text))
    if row.id_sequence == 0 and seen.rules and all(rule.packets is None for rule in seen.rules):
        text = (
            f"no packet has come to queue {seen.number} yet, and its rules do not count what they "
            "match: add `counter` to see which of them matches anything"
        )
        found.append(Finding(Cause.NOT_MATCHED, text))
    if row.queue_total:
        text = (
            f"{_packets(row.queue_total)} in queue {seen.number} without a verdict: the program "
            "does not read, or does not answer"
        )
        found.append(Finding(Cause.WAITING, text))
    if row.queue_dropped:
        text = (
            f"queue {seen.number} was full for {_packets(row.queue_dropped)}, which were dropped: "
            "answer faster, or raise max_len"
        )
        found.append(Finding(Cause.QUEUE_FULL, text))
    if row.user_dropped:
        text = (
            f"the program's receive buffer was full for {_packets(row.user_dropped)}, which were "
            "dropped: read faster, or raise receive_buffer_bytes"
        )
        found.append(Finding(Cause.OVERRUN, text))
    return found
