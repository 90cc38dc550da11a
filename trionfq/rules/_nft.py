"""Queueing rules by nft, in a table of their own.

Unregistering any hook drops the packets that wait in every queue of the namespace
(nf_queue_nf_hook_drop in __nf_unregister_net_hook, net/netfilter/core.c), and a base chain is a
hook. So removing takes two steps: the rules go at once, which unregisters nothing; table and
chains go when no packet waits in any queue. Where that does not come about, the empty table stays,
which costs a call per packet, and the next start of the same key takes it over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trionfq.backends._proc import QueueTable
from trionfq.rules import _claim
from trionfq.rules._programs import check, find, is_missing, run
from trionfq.rules._way import RuleCounter

if TYPE_CHECKING:
    from trionfq.rules._claim import Claim
    from trionfq.rules._match import Family
    from trionfq.rules._place import Place
    from trionfq.rules._spec import Spec

# No hook, and gone with the same transaction: nothing of it is ever seen.
_PROBE = """
add table inet trionfq_probe
add chain inet trionfq_probe probe
add rule inet trionfq_probe probe queue num 0
delete table inet trionfq_probe
"""

_TABLE_LINE = re.compile(r"table inet (\S+)")
_CHAIN_LINE = re.compile(r"\s*chain (\S+) \{")
_COUNTER = re.compile(r"\bcounter packets (\d+) bytes (\d+)\b")
_IP6 = re.compile(r"\bmeta nfproto ipv6\b|\bip6 [sd]addr\b|\bmeta l4proto ipv6-icmp\b")

_GUARD = """
nft flush table inet {table}
queues=/proc/self/net/netfilter/nfnetlink_queue
if [ -e $queues ] && ! [ -r $queues ]; then exit 0; fi
try=0
while [ $try -lt 50 ]; do
    waiting=0
    while read -r queue portid total rest; do
        [ "$total" -eq 0 ] || waiting=1
    done <$queues
    if [ $waiting -eq 0 ]; then
        nft delete table inet {table}
        break
    fi
    sleep 0.1
    try=$((try + 1))
done
"""


def _run(script: str, *, timeout_s: float, what: str) -> str:
    return check(run(["nft", "-f", "-"], stdin=script, timeout_s=timeout_s), what)


def why_not(*, timeout_s: float) -> str | None:
    """Why nft cannot install a queueing rule here, None where it can; found out by doing it.

    Raises:
      PrivilegeError: this process may not.
      RuleError: nft failed for another reason.
    """
    if find("nft") is None:
        return "nft is not installed (Debian package nftables)"
    done = run(["nft", "-f", "-"], stdin=_PROBE, timeout_s=timeout_s)
    if done.code and is_missing(done.errors):
        return "the kernel has no queue statement for nft (CONFIG_NFT_QUEUE, module nft_queue)"
    check(done, "try a queueing rule")
    return None


def _tables(*, timeout_s: float) -> list[str]:
    listed = check(run(["nft", "list", "tables"], timeout_s=timeout_s), "list tables")
    return [found[1] for line in listed.splitlines() if (found := _TABLE_LINE.fullmatch(line))]


def is_idle() -> bool:
    """Whether no packet waits in any queue of the calling thread's namespace.

    Not where /proc may not be read: who does not know must not flush.
    """
    try:
        table = QueueTable()
        try:
            return all(row.queue_total == 0 for row in table.rows())
        finally:
            table.close()
    except OSError:
        return False


def take_over(place: Place, key: str, *, timeout_s: float) -> Claim | None:
    """Empty what owners who are gone have left behind, and give one of their tables.

    Raises:
      As `check`.
    """
    kept: Claim | None = None
    for name in _tables(timeout_s=timeout_s):
        found = _claim.of_table(name)
        if found is None or found[0] != key:
            continue
        claim = _claim.try_claim(place, *found)
        if claim is None:
            continue
        if kept is None:
            kept = claim
        else:
            _dispose(claim, timeout_s=timeout_s)
    return kept


def remove_left_behind(place: Place, key: str, *, timeout_s: float) -> None:
    """Remove what owners who are gone have left behind."""
    claim = take_over(place, key, timeout_s=timeout_s)
    if claim is not None:
        _dispose(claim, timeout_s=timeout_s)


def _dispose(claim: Claim, *, timeout_s: float) -> None:
    try:
        _empty(claim.table, timeout_s=timeout_s)
        _delete_if_idle(claim.table, timeout_s=timeout_s)
    finally:
        claim.release()


def _empty(table: str, *, timeout_s: float) -> None:
    """Remove a table's rules, but no chain; no error where it is gone."""
    try:
        _run(f"flush table inet {table}\n", timeout_s=timeout_s, what="remove a queueing rule")
    except OSError:
        if table in _tables(timeout_s=timeout_s):
            raise


def _delete_if_idle(table: str, *, timeout_s: float) -> bool:
    # First what is cheap: this is asked again and again while packets wait.
    if not is_idle():
        return False
    if table in _tables(timeout_s=timeout_s):
        _run(f"delete table inet {table}\n", timeout_s=timeout_s, what="remove an empty table")
    return True


class NftRules:
    """Rules of one owner.

    Args:
      spec: what to install.
      claim: whose it is; names the table.
      timeout_s: for each run of the program.
    """

    program = "nft"

    def __init__(self, spec: Spec, claim: Claim, *, timeout_s: float) -> None:
        self.claim = claim
        self._spec = spec
        self._timeout_s = timeout_s

    def install(self) -> None:
        """Make the table hold these rules and no others, in one transaction.

        One that fails unregisters the hooks that it has registered so far (nf_tables_abort), so
        where packets wait the rules are tried without hooks first.
        """
        name, comment = self.claim.table, self.claim.comment
        scripts = [self._spec.nft_script(name, comment)]
        if not is_idle():
            scripts.insert(0, self._spec.nft_trial(f"{name}_trial", comment))
        for script in scripts:
            _run(script, timeout_s=self._timeout_s, what="install a queueing rule")

    def remove(self) -> None:
        """Remove the rules at once; table and chains stay."""
        _empty(self.claim.table, timeout_s=self._timeout_s)

    def tidy(self) -> bool:
        """Remove the table if no packet waits in any queue."""
        return _delete_if_idle(self.claim.table, timeout_s=self._timeout_s)

    def counters(self) -> list[RuleCounter]:
        """In the table's order; none without the counter statement."""
        command = ["nft", "list", "table", "inet", self.claim.table]
        text = check(run(command, timeout_s=self._timeout_s), "list a table")
        return parse_counters(text)

    def lines(self) -> list[str]:
        """As nft -f takes them."""
        return self._spec.nft_script(self.claim.table, self.claim.comment).splitlines()

    def guard_script(self) -> str:
        """In two steps, too; the queue of an owner that is gone is gone."""
        return _GUARD.format(table=self.claim.table)


def parse_counters(text: str) -> list[RuleCounter]:
    """Counters of a table of ours, as ``nft list table`` shows it."""
    counters: list[RuleCounter] = []
    chain = ""
    for line in text.splitlines():
        if found := _CHAIN_LINE.fullmatch(line):
            chain = found[1].partition("_")[0].upper()
        elif found := _COUNTER.search(line):
            # nft leaves out what another match of the rule implies.
            family: Family = "ip6" if _IP6.search(line) else "ip"
            counters.append(RuleCounter(family, chain, int(found[1]), int(found[2])))
    return counters
