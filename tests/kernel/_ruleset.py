"""What the rules tests look at: every rule of a namespace, by the programs' own listings."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from trionfq.rules import queueing
from trionfq.rules._claim import new_claim
from trionfq.rules._iptables import IptablesRules
from trionfq.rules._nft import NftRules
from trionfq.rules._place import Place
from trionfq.rules._programs import find
from trionfq.rules._way import Way

from ._namespace import Namespace

_HERE = pytest.mark.not_in_guest("rules of iptables are shown on this machine's own kernel")
BEST = (
    pytest.param("nft", marks=pytest.mark.needs_kernel("nft-queue")),
    pytest.param("iptables-nft", marks=_HERE),
)
INSTALLERS = (
    *BEST,
    pytest.param("iptables-legacy", marks=[_HERE, pytest.mark.needs_kernel("iptables-legacy")]),
)
"""Programs that install a queueing rule, each where the kernel lets it."""

FOREIGN_NFT = ("numgen random mod 2 0 accept", "meta skuid 0 accept")
"""Rules of nft in a table of iptables, which then shows nothing of it, or nothing from there on."""

SAVERS = tuple(f"{ip}tables-{kind}-save" for ip in ("ip", "ip6") for kind in ("nft", "legacy"))
_QUEUE_BY_NFT = """
add table inet probe
add chain inet probe one { type filter hook output priority 0; }
add rule inet probe one queue num 9 bypass
"""


@functools.cache
def installers() -> tuple[str, ...]:
    """The programs that can install a queueing rule on this kernel, found out in a namespace."""
    found = []
    with Namespace("installers") as ns:
        if ns.run(["nft", "-f", "-"], stdin=_QUEUE_BY_NFT, check=False).returncode == 0:
            found.append("nft")
        for name in ("iptables-nft", "iptables-legacy"):
            rule = [name, "-w", "-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "9"]
            if ns.run(rule, check=False).returncode == 0:
                found.append(name)
    return tuple(found)


def leave_behind(ns: Namespace, by: str, number: int = 0, **options: Any) -> str:
    """Install a rule of OUTPUT as a program that is killed then: nobody removes it.

    Gives its comment.
    """
    spec = queueing(number, "OUTPUT", **options)._spec
    place = Place(ns.name)
    try:
        claim = new_claim(place, spec.key)
        way: Way
        if by == "nft":
            way = NftRules(spec, claim, timeout_s=20)
        else:
            way = IptablesRules(spec, claim, by, timeout_s=20)
        place.call(way.install)
        # As the kernel does when the last process that has the socket ends.
        claim.release()
    finally:
        place.close()
    return claim.comment


def rules_of(ns: Namespace) -> list[str]:
    """Every rule, without counters: iptables' of both back ends and families, and nft's own."""
    found = []
    for saver in SAVERS:
        if find(saver) is not None:
            saved = ns.run([saver], check=False).stdout
            found += [f"{saver} {line}" for line in saved.splitlines() if line.startswith("-A")]
    for line in ns.run(["nft", "-s", "list", "ruleset"], check=False).stdout.splitlines():
        # Those that iptables-nft made are there already, with more detail.
        if " queue " in line and "trionfq:" in line:
            found.append(f"nft {line.strip()}")
    return found


def ours(ns: Namespace) -> list[str]:
    """The rules that `trionfq.rules` has installed."""
    return [line for line in rules_of(ns) if "trionfq:" in line]


def tables_of_ours(ns: Namespace) -> list[str]:
    """The nft tables that `trionfq.rules` has made."""
    lines = ns.run(["nft", "list", "tables"], check=False).stdout.splitlines()
    return [line.split()[-1] for line in lines if " trionfq_" in line]
