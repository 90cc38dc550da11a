"""Collecting the facts of a diagnosis from nft, iptables and /proc."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trionfq._errors import TrionfqError
from trionfq._verdict import check_queue_number
from trionfq.backends._netns import Namespace, in_namespace
from trionfq.backends._proc import QueueTable
from trionfq.rules import _claim, _iptables
from trionfq.rules._diagnosis import Diagnosis, Owner
from trionfq.rules._listing import (
    FoundRule,
    flowtables_of_nft,
    made_by_iptables,
    of_nft,
    of_saved,
)
from trionfq.rules._place import Place
from trionfq.rules._programs import check, find, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trionfq.backends._abc import QueueRow
    from trionfq.rules._match import Family

_HERE = Path("/proc/thread-self/net")
_SYSCTL = Path("/proc/sys/net")
_NETLINK_NETFILTER = "12"
_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_GDRVINFO = 3  # linux/ethtool.h
_DRVINFO = struct.Struct("=I32s160x")  # struct ethtool_drvinfo, with its driver
_IFREQ = struct.Struct("@16sP16x")  # struct ifreq, with ifr_data
_NAMED = Path("/run/netns")
_MOST_NAMESPACES = 64
"""How many other namespaces are looked into, at most."""


async def diagnose(
    number: int,
    *,
    namespace: str | os.PathLike[str] | Namespace | None = None,
    timeout_s: float = 10.0,
) -> Diagnosis:
    """Say why no packets arrive at a queue.

    Print what it gives. It looks whether the queue is bound and by whom, which rules point at it
    (of nft, of both back ends of iptables, and of both families), what they have counted, and what
    stands before them. It changes nothing. What cannot be read is told in the result.

    Args:
      number: queue number.
      namespace: network namespace, as for `open_queue`.
      timeout_s: the longest that each of the programs may take, in seconds.

    Raises:
      ValueError: the number is not 0 to 65535.
      FileNotFoundError: there is no such namespace.
      PrivilegeError: this process may not enter it.
    """
    check_queue_number(number)
    await trio.lowlevel.checkpoint()
    place = Place(namespace)
    unread: list[str] = []
    flowtables: list[str] = []
    rules: list[FoundRule] = []
    try:
        rows = await place.complete(lambda: _rows(unread))
        for work in _sources(unread, flowtables, timeout_s=timeout_s):
            rules += await place.complete(work)
            await trio.lowlevel.checkpoint()
        return await place.complete(
            lambda: _put_together(number, place, rows, rules, flowtables, tuple(unread))
        )
    finally:
        place.close()


# --- all below is in a thread, inside the namespace -----------------------------------------------


def _put_together(
    number: int,
    place: Place,
    rows: list[QueueRow],
    rules: list[FoundRule],
    flowtables: list[str],
    unread: tuple[str, ...],
) -> Diagnosis:
    row = next((row for row in rows if row.queue == number), None)
    pointing = tuple(rule for rule in rules if rule.points_at(number))
    bridges = _bridges()
    families = tuple(
        family for family, file in (("ip", "arp"), ("ip6", "if_inet6")) if (_HERE / file).exists()
    )
    return Diagnosis(
        number=number,
        namespace=place.label,
        queue=row,
        owners=() if row is None else _owners(row.portid),
        rules=pointing,
        other_rules=tuple(rule for rule in rules if not rule.points_at(number)),
        bound=tuple(row.queue for row in rows),
        elsewhere=_bound_elsewhere(number) if row is None else (),
        families=families,
        flowtables=tuple(flowtables),
        forwarding=_switched_on({"ip": "ipv4/ip_forward", "ip6": "ipv6/conf/all/forwarding"}),
        bridges=bridges,
        bridged_families=_switched_on(
            {
                "ip": "bridge/bridge-nf-call-iptables",
                "ip6": "bridge/bridge-nf-call-ip6tables",
            }
        ),
        reverse_path_drops=_counter("TcpExt", "IPReversePathFilter"),
        left_behind=_left_behind(place, pointing),
        unread=unread,
    )


def _rows(unread: list[str]) -> list[QueueRow]:
    table = QueueTable()
    try:
        return table.rows()
    except OSError as error:
        unread.append(f"/proc/net/netfilter/nfnetlink_queue cannot be read ({error.strerror})")
        return []
    finally:
        table.close()


def _sources(
    unread: list[str], flowtables: list[str], *, timeout_s: float
) -> Iterator[Callable[[], list[FoundRule]]]:
    """What lists rules, each to be called by itself."""
    backends = _iptables.backends()
    families: tuple[Family, ...] = ("ip", "ip6")
    for program in backends:
        for family in families:
            yield partial(_of_iptables, program, family, unread, timeout_s=timeout_s)
    yield partial(
        _of_nft,
        unread,
        flowtables,
        iptables_shown=backends != ["iptables-legacy"] and bool(backends),
        timeout_s=timeout_s,
    )
    if not backends:
        unread.append("rules of iptables were not read: it is not installed")


def _of_iptables(
    program: str, family: Family, unread: list[str], *, timeout_s: float
) -> list[FoundRule]:
    name = _iptables.of_family(program, family)
    try:
        saved, missing = _iptables.readable_rules(program, family, timeout_s=timeout_s)
    except (TrionfqError, OSError) as error:
        unread.append(f"rules of {name} were not read: {error}")
        return []
    unread += missing
    return of_saved(name, family, saved)


def _of_nft(
    unread: list[str], flowtables: list[str], *, iptables_shown: bool, timeout_s: float
) -> list[FoundRule]:
    if find("nft") is None:
        unread.append("rules of nft were not read: it is not installed (Debian package nftables)")
        return []
    try:
        text = check(run(["nft", "-j", "list", "ruleset"], timeout_s=timeout_s), "list rules")
        ruleset = json.loads(text) if text.strip() else {}
    except (TrionfqError, OSError, ValueError) as error:
        unread.append(f"rules of nft were not read: {error}")
        return []
    if made_by_iptables(ruleset) and not iptables_shown:
        unread.append(
            "some rules were made by iptables-nft, and only it can show them (package iptables)"
        )
    flowtables += flowtables_of_nft(ruleset)
    return of_nft(ruleset)


def _bridges() -> tuple[str, ...]:
    """Interfaces whose driver says that it is a bridge.

    Not from /sys/class/net, which shows the namespace that it was mounted in.
    """
    names = [
        line.partition(":")[0].strip()
        for line in (_HERE / "dev").read_text().splitlines()[2:]  # two lines of headings
    ]
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in names:
            answer = ctypes.create_string_buffer(_DRVINFO.pack(_ETHTOOL_GDRVINFO, b""))
            request = _IFREQ.pack(name.encode(), ctypes.addressof(answer))
            try:
                fcntl.ioctl(asking, _SIOCETHTOOL, request)
            except OSError:
                continue  # a device that tells nothing of itself
            if _DRVINFO.unpack_from(answer.raw)[1].rstrip(b"\0") == b"bridge":
                found.append(name)
    return tuple(found)


def _switched_on(names: dict[str, str]) -> tuple[str, ...]:
    """Those whose sysctl is not 0; not those that the kernel does not have."""
    found = []
    for family, name in names.items():
        try:
            if (_SYSCTL / name).read_text().strip() != "0":
                found.append(family)
        except OSError:
            continue
    return tuple(found)


def _counter(group: str, name: str) -> int:
    """Of /proc/net/netstat; 0 where it is not there."""
    try:
        lines = [line.split() for line in (_HERE / "netstat").read_text().splitlines()]
    except OSError:
        return 0
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names[0] == f"{group}:" and name in names:
            return int(values[names.index(name)])
    return 0


def _owners(portid: int) -> tuple[Owner, ...]:
    """Processes that have the netlink socket of a port id open."""
    try:
        lines = (_HERE / "netlink").read_text().splitlines()[1:]
    except OSError:
        return ()
    inodes = {
        columns[9]
        for columns in map(str.split, lines)
        if len(columns) > 9 and columns[1] == _NETLINK_NETFILTER and columns[2] == str(portid)
    }
    if not inodes:
        return ()
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = []
    # Most often the port id is the process id.
    pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), key=portid.__ne__)
    for pid in pids:
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                has = any(_link(entry.path) in wanted for entry in entries)
            if has:
                found.append(Owner(pid, Path(f"/proc/{pid}/comm").read_text().strip()))
        except OSError:
            continue  # gone meanwhile, or not ours to look at
    return tuple(found)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _bound_elsewhere(number: int) -> tuple[str, ...]:
    """Other namespaces, by name or by one of their processes, that have the queue bound."""
    seen = {os.stat("/proc/thread-self/ns/net").st_ino}
    candidates = []
    if _NAMED.is_dir():
        candidates += [Namespace.from_name(name) for name in sorted(os.listdir(_NAMED))]
    candidates += [Namespace.from_pid(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()]
    found = []
    for namespace in candidates:
        try:
            inode = os.stat(str(namespace.source)).st_ino
            if inode in seen or len(seen) > _MOST_NAMESPACES:
                continue
            seen.add(inode)
            rows = in_namespace(namespace, lambda: _rows([]))
        except (OSError, ValueError, TrionfqError):
            continue  # gone meanwhile, or not ours to enter
        if any(row.queue == number for row in rows):
            found.append(namespace.label)
    return tuple(found)


def _left_behind(place: Place, rules: tuple[FoundRule, ...]) -> tuple[str, ...]:
    owners = {found: rule for rule in rules if (found := _claim.of_comment(rule.comment))}
    return tuple(
        rule.comment for found, rule in owners.items() if not _claim.is_alive(place, *found)
    )
