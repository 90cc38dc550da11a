"""Queueing rules by iptables and ip6tables, as one transaction each of their -restore programs.

Removing a rule unregisters no hook, with neither back end: iptables-nft leaves its base chains in
place and iptables-legacy its tables. So packets that wait in a queue stay there. What unregisters
hooks is a transaction of iptables-nft that fails after it has made a base chain (nf_tables_abort).
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
from typing import TYPE_CHECKING

from trionfq._errors import TrionfqError
from trionfq.rules import _claim
from trionfq.rules._nft import is_idle
from trionfq.rules._programs import LOCK_WAIT_S, RuleError, check, find, run
from trionfq.rules._saved import SavedRule, parse_saved
from trionfq.rules._way import RuleCounter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trionfq.rules._claim import Claim
    from trionfq.rules._match import Family
    from trionfq.rules._place import Place
    from trionfq.rules._spec import Spec

_log = logging.getLogger("trionfq.rules")

PROGRAMS = ("iptables", "iptables-nft", "iptables-legacy")
_ATTEMPTS = 3
_PLAIN = re.compile(r"[\w./:,!+@%=-]+")
# What iptables-nft says of tables into which nft has put what it does not know.
_INCOMPATIBLE = re.compile(r"^# Table `(\S+)' is incompatible, use 'nft' tool\.$", re.MULTILINE)
_UNPARSED = "Parsing nftables rule failed"
_NOT_THERE = "does a matching rule exist"


def of_family(program: str, family: Family) -> str:
    """The name of the program that does for IPv6 what `program` does for IPv4."""
    return program if family == "ip" else program.replace("iptables", "ip6tables")


def backends() -> list[str]:
    """The back ends that are installed; a kernel can have rules of both at once."""
    return [name for name in PROGRAMS[1:] if find(name)] or [
        name for name in PROGRAMS[:1] if find(name)
    ]


def saved_rules(program: str, family: Family, table: str, *, timeout_s: float) -> list[SavedRule]:
    """All rules of a table.

    Raises:
      RuleError: nft has put something there that iptables cannot show.
      Otherwise as `run` and `check`.
    """
    name = f"{of_family(program, family)}-save"
    text = check(run([name, "-c", "-t", table], timeout_s=timeout_s), "list rules")
    if _INCOMPATIBLE.search(text):
        raise RuleError(f"{name}: table {table} has rules of nft that it cannot show")
    return parse_saved(text)


def readable_rules(
    program: str, family: Family, *, timeout_s: float
) -> tuple[list[SavedRule], list[str]]:
    """The rules of a back end and family that it can show, and what it could not.

    Raises:
      As `run` and `check`, where it shows nothing.
    """
    name = of_family(program, family)
    done = run([f"{name}-save", "-c"], timeout_s=timeout_s)
    unread = [
        f"table {table} of {name} has rules of nft, and none of its rules can be shown"
        for table in _INCOMPATIBLE.findall(done.output)
    ]
    if done.code and _UNPARSED in done.errors and "*" in done.output:
        # It stops in the middle of a table, and has shown those before.
        *_, last = [line[1:] for line in done.output.splitlines() if line.startswith("*")]
        unread.append(
            f"table {last} of {name} has a rule of nft, behind which nothing can be shown"
        )
        return parse_saved(done.output), unread
    return parse_saved(check(done, "list rules")), unread


def _restore(
    program: str,
    family: Family,
    table_lines: Iterable[tuple[str, str]],
    *,
    timeout_s: float,
    what: str,
) -> None:
    """One transaction for each table."""
    by_table: dict[str, list[str]] = {}
    for table, line in table_lines:
        by_table.setdefault(table, []).append(line)
    script = "".join(f"*{table}\n{''.join(lines)}COMMIT\n" for table, lines in by_table.items())
    if script:
        command = [f"{of_family(program, family)}-restore", "--noflush", f"--wait={LOCK_WAIT_S}"]
        check(run(command, stdin=script, timeout_s=timeout_s), what)


def _delete(program: str, family: Family, rules: Sequence[SavedRule], *, timeout_s: float) -> None:
    lines = [(rule.table, f"-D {rule.chain} {rule.text}\n") for rule in rules]
    _restore(program, family, lines, timeout_s=timeout_s, what="remove a queueing rule")


def remove_left_behind(place: Place, key: str, *, timeout_s: float) -> None:
    """Remove the rules of a key whose owners are gone, of all back ends and families."""
    families: tuple[Family, ...] = ("ip", "ip6")
    for program in backends():
        for family in families:
            if find(f"{of_family(program, family)}-save") is None:
                continue
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    _remove_left_behind(place, key, program, family, timeout_s=timeout_s)
                    break
                except RuleError:
                    # Somebody may have removed one between listing and deleting.
                    if attempt == _ATTEMPTS:
                        raise


def _remove_left_behind(
    place: Place, key: str, program: str, family: Family, *, timeout_s: float
) -> None:
    try:
        rules, unread = readable_rules(program, family, timeout_s=timeout_s)
    except (RuleError, OSError):
        return  # a back end that cannot be listed has none of ours; installing says why
    for what in unread:
        _log.warning("a rule that was left behind may stay: %s", what)
    ours: dict[str, list[SavedRule]] = {}
    for rule in rules:
        found = _claim.of_comment(rule.comment)
        if found is not None and found[0] == key:
            ours.setdefault(found[1], []).append(rule)
    for token, left in ours.items():
        claim = _claim.try_claim(place, key, token)
        if claim is not None:
            try:
                _delete(program, family, left, timeout_s=timeout_s)
            finally:
                claim.release()


class IptablesRules:
    """Rules of one owner.

    Args:
      spec: what to install.
      claim: whose it is.
      program: one of `PROGRAMS`.
      timeout_s: for each run of a program.
    """

    def __init__(self, spec: Spec, claim: Claim, program: str, *, timeout_s: float) -> None:
        self.program = program
        self.claim = claim
        self._spec = spec
        self._timeout_s = timeout_s

    def install(self) -> None:
        """Install the rules of each family; none stays where one fails."""
        waiting = not is_idle()
        try:
            for family in self._spec.families:
                rules = self._spec.iptables_rules(family, self.claim.comment)
                if self._spec.position == "top":
                    verbs = [f"-I {chain} 1" for chain, _ in rules][::-1]
                    rules = rules[::-1]
                else:
                    verbs = [f"-A {chain}" for chain, _ in rules]
                lines: list[tuple[str, str]] = [
                    (self._spec.table, f"{verb} {' '.join(map(_quoted, arguments))}\n")
                    for verb, (_, arguments) in zip(verbs, rules, strict=True)
                ]
                if waiting:
                    # A rule that no kernel refuses makes the base chain, before those that it may.
                    self._install(family, self._marks("-A"))
                    lines += self._marks("-D")
                self._install(family, lines)
        except BaseException:
            with contextlib.suppress(RuleError, OSError):
                self.remove()
            raise

    def _marks(self, verb: str) -> list[tuple[str, str]]:
        comment = f"-m comment --comment {self.claim.comment}"
        return [(self._spec.table, f"{verb} {chain} {comment}\n") for chain in self._spec.chains]

    def _install(self, family: Family, lines: Iterable[tuple[str, str]]) -> None:
        what = "install a queueing rule"
        _restore(self.program, family, lines, timeout_s=self._timeout_s, what=what)

    def _ours(self, family: Family) -> list[SavedRule]:
        return [
            rule
            for rule in saved_rules(
                self.program, family, self._spec.table, timeout_s=self._timeout_s
            )
            if rule.comment == self.claim.comment
        ]

    def remove(self) -> None:
        """Remove them; one that somebody else has removed is no error."""
        failure: TrionfqError | OSError | None = None
        for family in self._spec.families:
            try:
                self._remove_family(family)
            except (TrionfqError, OSError) as error:
                failure = failure or error  # the other family's go all the same
        if failure is not None:
            raise failure

    def _remove_family(self, family: Family) -> None:
        for _ in range(_ATTEMPTS - 1):
            # Somebody may remove one between listing and deleting, or make the table unreadable.
            with contextlib.suppress(RuleError):
                _delete(self.program, family, self._ours(family), timeout_s=self._timeout_s)
                return
        self._remove_by_words(family)

    def _remove_by_words(self, family: Family) -> None:
        """Remove them by what they were made of, which needs no listing; gone ones are no error."""
        head = [of_family(self.program, family), "-w", str(LOCK_WAIT_S), "-t", self._spec.table]
        for chain, rule in self._spec.iptables_rules(family, self.claim.comment):
            done = run([*head, "-D", chain, *rule], timeout_s=self._timeout_s)
            if _NOT_THERE not in done.errors:
                check(done, "remove a queueing rule")

    def tidy(self) -> bool:
        """Chains and tables are iptables' own."""
        return True

    def counters(self) -> list[RuleCounter]:
        """In the order of families, chains and rules."""
        return [
            RuleCounter(family, rule.chain, rule.packets, rule.octets)
            for family in self._spec.families
            for rule in self._ours(family)
        ]

    def lines(self) -> list[str]:
        """As commands."""
        return [
            shlex.join([of_family(self.program, family), "-t", self._spec.table, verb, *arguments])
            for family in self._spec.families
            for chain, rule in self._spec.iptables_rules(family, self.claim.comment)
            for verb, arguments in [self._verb(chain, rule)]
        ]

    def _verb(self, chain: str, rule: list[str]) -> tuple[str, list[str]]:
        return ("-I" if self._spec.position == "top" else "-A"), [chain, *rule]

    def guard_script(self) -> str:
        """Each rule deleted by its own words."""
        lines = []
        for family in self._spec.families:
            head = [of_family(self.program, family), "-w", str(LOCK_WAIT_S), "-t", self._spec.table]
            for chain, rule in self._spec.iptables_rules(family, self.claim.comment):
                lines.append(shlex.join([*head, "-D", chain, *rule]))
        return "\n".join(lines)


def _quoted(argument: str) -> str:
    """As iptables-restore reads it."""
    if _PLAIN.fullmatch(argument):
        return argument
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
