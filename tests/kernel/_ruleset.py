"""What the rules tests look at: every rule of a namespace, by the programs' own listings."""

from __future__ import annotations

import functools

from trionfq.rules._programs import find

from ._namespace import Namespace

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
    try:
        with Namespace("installers") as ns:
            if ns.run(["nft", "-f", "-"], stdin=_QUEUE_BY_NFT, check=False).returncode == 0:
                found.append("nft")
            for name in ("iptables-nft", "iptables-legacy"):
                rule = [name, "-w", "-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "9"]
                if ns.run(rule, check=False).returncode == 0:
                    found.append(name)
    except (OSError, PermissionError):
        pass  # the fixture `kernel` says why nothing here can run
    return tuple(found) or ("iptables",)


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
