"""What a kernel can do, asked of the kernel: a test says what it needs, and runs where that is."""

from __future__ import annotations

import functools
import os
import platform
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from .left_out import LEFT_OUT

_NETLINK_NETFILTER = 12
_NLMSGHDR_BYTES = 16

IN_GUEST = "TRIONFQ_IN_GUEST" in os.environ
"""Whether this is the run inside a guest."""

# What tests in the guest need; iptables and ip load nothing that is not on this list. It is loaded
# after the tests of a missing module (tests/guest/test_modules.py).
MODULES = (
    *("nfnetlink_queue", "nft_queue", "nf_conntrack_netlink", "nft_ct", "nft_nat", "nft_chain_nat"),
    *("nft_meta_bridge", "nft_compat", "xt_conntrack", "xt_connmark", "xt_NFQUEUE", "xt_mark"),
    *("xt_comment", "nlmon", "macvlan", "dummy", "cls_cgroup", "nft_numgen"),
    *("nf_tables", "ip_tables", "ip6_tables", "iptable_filter", "iptable_mangle", "veth", "bridge"),
    *("br_netfilter", "8021q", "vrf", "sctp", "sch_netem"),
    *("xt_conntrack", "xt_CT", "xt_connlabel", "xt_nat", "xt_SECMARK", "xt_CONNSECMARK"),
    *(
        "xt_multiport",
        "ipt_SYNPROXY",
        "nf_conntrack_ftp",
        "nf_nat_ftp",
        "nf_conntrack_irc",
        "nf_conntrack_sip",
        "iptable_raw",
        "iptable_nat",
        "nfnetlink_cthelper",
    ),
)


def _runs(*commands: str) -> bool:
    """Whether all of these work, one after the other, in one new namespace."""
    from tests.kernel.harness import Namespace

    with Namespace("feature") as namespace:
        return all(
            namespace.run(command.split(), check=False).returncode == 0 for command in commands
        )


# CONFIG of queue 0: BIND, copy mode, and NFQA_CFG_F_CONNTRACK as flag and mask.
_BIND_WITH_CONNTRACK = bytes.fromhex(
    "38000000 0203 0500 01000000 00000000 00 00 0000 0800 0100 01 00 0000"
    "0900 0200 0000ffff 02 000000 0800 0400 00000002 0800 0500 00000002"
)


def _conntrack_glue() -> bool:
    from tests.kernel.harness import Namespace

    with Namespace("feature") as namespace:
        asking = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        asking.send(_BIND_WITH_CONNTRACK)
        (error,) = struct.unpack_from("=i", asking.recv(4096), _NLMSGHDR_BYTES)
        return bool(error == 0)


def _sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


FEATURES: dict[str, Callable[[], bool]] = {
    "conntrack": lambda: _runs("iptables -A OUTPUT -m conntrack --ctstate NEW"),
    "conntrack-glue": _conntrack_glue,
    "conntrack-glue-module": lambda: IN_GUEST,
    "user-helper": lambda: IN_GUEST,
    "secmark": lambda: _runs("iptables -t mangle -A OUTPUT -j SECMARK --selctx unconfined"),
    "nft-queue": lambda: _runs(
        "nft add table inet t",
        "nft add chain inet t c",
        "nft add rule inet t c queue num 0",
    ),
    "iptables-legacy": lambda: _runs("iptables-legacy -A OUTPUT -j NFQUEUE --queue-num 0"),
    "nlmon": lambda: _runs("ip link add nlmon0 type nlmon"),
    "netem": lambda: _runs("tc qdisc add dev lo root netem delay 1ms"),
    "vrf": lambda: _runs("ip link add red type vrf table 10"),
    "sctp": _sctp,
    "bridge": lambda: _runs("ip link add br type bridge"),
    "vlan": lambda: _runs("ip link add link lo name lo.7 type vlan id 7"),
    "guest": lambda: IN_GUEST,
    "queue-module": lambda: Path(
        "/lib/modules", platform.release(), "kernel/net/netfilter/nfnetlink_queue.ko"
    ).exists(),
}
"""By the name that ``needs_kernel`` is given: whether this kernel has it. Each asks the kernel, but
for ``queue-module``: nfnetlink_queue is a module, so it can be missing."""


@functools.cache
def has(feature: str) -> bool:
    """Whether this kernel has a feature."""
    return FEATURES[feature]()


def lacking(item: pytest.Item) -> list[str]:
    """The features that a test needs and this kernel has not."""
    wanted = [str(name) for mark in item.iter_markers("needs_kernel") for name in mark.args]
    for name in wanted:
        if name not in FEATURES:
            raise pytest.UsageError(f"{item.nodeid}: no such kernel feature: {name}")
    return [name for name in wanted if not has(name)]


def why_not_in_guest(item: pytest.Item) -> str | None:
    """The reason for which a test is kept out of the guest, None where it runs there."""
    mark = item.get_closest_marker("not_in_guest")
    if mark is not None:
        (reason,) = mark.args
        return str(reason)
    file = item.path.name
    function = getattr(item, "originalname", item.name)
    return LEFT_OUT.get(f"{file}::{function}") or LEFT_OUT.get(file)
