"""A policy decides a recorded capture, and then, where this machine allows it, live packets.

``make demo`` runs it. The first part needs no privilege and no Linux. The second makes a network
namespace of its own, which ends with it; nothing outside is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import trio
from policy import decide

import trionfq
from trionfq.captures import Outcome

ROOT = Path(__file__).parents[1]
CAPTURE = ROOT / "fixtures" / "demo.pcapng"
NOTES = CAPTURE.with_suffix(".toml")
LIVE = Path(__file__).with_name("demo_live.py")

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}
VERDICT_BITS = 0xFF  # above them stand the queue of a requeue, and flags

# Debian keeps iptables off an ordinary user's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PROGRAMS = {"iptables": "iptables", "ip6tables": "iptables", "ip": "iproute2"}
"""What the live part needs, and the Debian packages that have it."""


class Row(NamedTuple):
    """A packet as it came, and what became of it."""

    ip: trionfq.IPView
    outcome: Outcome

    @property
    def verdict(self) -> str:
        """Name of the verdict."""
        code = self.outcome.verdict
        return "undecided" if code is None else trionfq.Verdict(code & VERDICT_BITS).name

    @property
    def rewritten(self) -> bool:
        """Whether other bytes went on than had come."""
        return self.outcome.payload is not None

    @property
    def protocol(self) -> str:
        """Such as ``IPv4 UDP``."""
        name = PROTOCOLS.get(self.ip.protocol or 0, str(self.ip.protocol))
        return f"IPv{self.ip.ip_version} {name}"


async def run_policy(queue: trionfq.Queue, seen: list[trionfq.IPView]) -> None:
    """Decide every packet of a queue: the whole program, wherever packets come from."""
    async for packet in queue:
        seen.append(packet.ip)
        decide(packet)


async def replay(capture: str | os.PathLike[str]) -> list[Row]:
    """The packets of a capture, each with what the policy did to it."""
    backend = trionfq.ReplayBackend(capture)
    seen: list[trionfq.IPView] = []
    async with trionfq.open_queue(0, backend=backend) as queue:
        await run_policy(queue, seen)
    return [Row(*each) for each in zip(seen, backend.transcript, strict=True)]


# --- printing -------------------------------------------------------------------------------------


def show(rows: Iterable[Row]) -> None:
    """Print a line for each packet."""
    print(f"  {'id':>4}  {'from':<21}  {'to':<21}  {'what':<11}  bytes  verdict")
    for row in rows:
        ip, outcome = row.ip, row.outcome
        source = end(ip.source, ip.source_port)
        destination = end(ip.destination, ip.destination_port)
        told = row.verdict.lower()
        if outcome.mark is not None:
            told += f" with mark {outcome.mark:#x}"
        if outcome.payload is not None:
            told += f": {text(ip)} became {text(trionfq.IPView(outcome.payload))}"
        print(
            f"  {outcome.packet_id:>4}  {source:<21}  {destination:<21}  {row.protocol:<11}"
            f"  {len(ip.payload):>5}  {told}"
        )


def end(address: str | None, number: int | None) -> str:
    """An address, with its port where it has one."""
    if number is None:
        return str(address)
    return f"[{address}]:{number}" if ":" in str(address) else f"{address}:{number}"


def text(ip: trionfq.IPView) -> str:
    """What a datagram carries, in quotes."""
    return json.dumps((ip.data or b"").decode(errors="replace"))


def totals(rows: list[Row]) -> dict[str, Any]:
    """The numbers that stand beside the capture, too."""
    return {
        "packets": len(rows),
        "verdicts": dict(sorted(Counter(row.verdict for row in rows).items())),
        "rewritten": sum(row.rewritten for row in rows),
        "protocols": dict(sorted(Counter(row.protocol for row in rows).items())),
    }


def show_totals(found: dict[str, Any]) -> None:
    """Print totals in words."""
    protocols, verdicts = (
        ", ".join(f"{count} {name}" for name, count in found[table].items())
        for table in ("protocols", "verdicts")
    )
    print(f"\n  {found['packets']} packets: {protocols}")
    print(f"  verdicts: {verdicts}; {found['rewritten']} rewritten")


# --- the two parts --------------------------------------------------------------------------------


def recorded_part() -> bool:
    """Replay the bundled capture; tell whether the totals are what its notes say."""
    print(f"A recorded capture, {CAPTURE.relative_to(ROOT)}, decided by examples/policy.py:\n")
    rows = trio.run(replay, CAPTURE, restrict_keyboard_interrupt_to_checkpoints=True)
    show(rows)
    found = totals(rows)
    show_totals(found)
    noted = tomllib.loads(NOTES.read_text())["expected"]
    wrong = [name for name in found if found[name] != noted[name]]
    for name in wrong:
        print(
            f"demo: {name}: expected {noted[name]} as {NOTES.relative_to(ROOT)} says, "
            f"got {found[name]}",
            file=sys.stderr,
        )
    if not wrong:
        print(f"  These are the totals noted in {NOTES.relative_to(ROOT)}.")
    return not wrong


def live_part() -> bool:
    """Do the same live where this machine allows it; tell whether all was as it should be."""
    print()
    missing = {
        package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None
    }
    if missing:
        names = " ".join(sorted(missing))
        print(f"No live part: Debian packages missing: {names} (as root: apt-get install {names})")
        return True
    namespace, reason = own_namespace()
    if not namespace:
        print(f"No live part: this process may not make a network namespace ({reason})")
        return True
    sys.stdout.flush()
    environment = {**os.environ, "PATH": PATH}
    return subprocess.run([*namespace, sys.executable, LIVE], env=environment).returncode == 0


def own_namespace() -> tuple[list[str], str]:
    """The words that run a command in new namespaces; or none, and why not.

    Network and mounts are new, so neither rules nor iptables' lock file in /run are this machine's.
    Whoever is not root becomes root of a new user namespace.
    """
    inside = ["sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    reason = "the program unshare is missing: Debian package util-linux"
    if shutil.which("unshare", path=PATH) is None:
        return [], reason
    as_root_of_another = ["--user", "--map-root-user"]
    for who in [as_root_of_another] if os.geteuid() else [[], as_root_of_another]:
        command = ["unshare", *who, "--net", "--mount", *inside]
        tried = subprocess.run(
            [*command, sys.executable, "-I", "-S", "-c", ""], capture_output=True, text=True
        )
        if tried.returncode == 0:
            return command, ""
        reason = " ".join(tried.stderr.split())
    return [], reason


def main() -> None:
    """Both parts; the exit code is 1 where something was not as it should be."""
    try:
        right = recorded_part() and live_part()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(not right)


if __name__ == "__main__":
    main()
