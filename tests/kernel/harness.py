"""Real networks for tests: everything that a kernel test needs, in one import.

Made for programs under test that run in the test's own process and thread. Nothing here moves the
test's thread into a namespace, leaves a trio worker there, sleeps for a fixed time, or survives the
test. It works as root and in a user namespace of one's own (``unshare -Urnm`` with a tmpfs on
/run, which is what ``make test`` does for an ordinary user).

    def test_a_blackhole_drops(pair):
        queue_rule(pair.b, "INPUT", "-p icmp", queue=5)
        assert ping(pair.a, pair.b4, timeout_s=0.05).received == 0

Fixtures (conftest.py): ``ns``, ``pair``, ``forwarding``, ``bridged``. Queue numbers belong to a
namespace, so a test may use constants.
"""

from __future__ import annotations

from ._namespace import (
    Namespace,
    in_fresh_thread,
    in_user_namespace,
    leftovers,
    namespaces,
    none_left_over,
    tool,
)
from ._rules import Counters, Rule, queue_rule, rule
from ._topology import (
    Bridged,
    End,
    Forwarding,
    NoBridgeError,
    Pair,
    add_route,
    hardware_address,
    join,
    make_bridged,
    make_forwarding,
    make_pair,
    make_veth,
    new_mac,
)
from ._traffic import (
    Ping,
    Received,
    UdpReceiver,
    UdpSender,
    aping,
    atcp_transfer,
    drain,
    ping,
    receive,
    tcp_transfer,
)
from ._waiting import (
    eventually,
    eventually_sync,
    wait_for_no_queue_row,
    wait_for_queue_row,
    wait_for_queued,
)

__all__ = [
    "Bridged",
    "Counters",
    "End",
    "Forwarding",
    "Namespace",
    "NoBridgeError",
    "Pair",
    "Ping",
    "Received",
    "Rule",
    "UdpReceiver",
    "UdpSender",
    "add_route",
    "aping",
    "atcp_transfer",
    "drain",
    "eventually",
    "eventually_sync",
    "hardware_address",
    "in_fresh_thread",
    "in_user_namespace",
    "join",
    "leftovers",
    "make_bridged",
    "make_forwarding",
    "make_pair",
    "make_veth",
    "namespaces",
    "new_mac",
    "none_left_over",
    "ping",
    "queue_rule",
    "receive",
    "rule",
    "tcp_transfer",
    "tool",
    "wait_for_no_queue_row",
    "wait_for_queue_row",
    "wait_for_queued",
]
