"""Every hook of IPv4 and IPv6 is answered: what is accepted everywhere arrives, what is dropped
anywhere does not. The bridge family's are in test_bridge.py, and why no other family has any."""

from __future__ import annotations

import contextlib

import pytest
import trio

from trionfq import Family, Hook, open_queue

from ._live import PORT, Udp, data_of, take
from .harness import Forwarding, queue_rule

pytestmark = pytest.mark.usefixtures("one_cpu")

CHAINS = {
    "PREROUTING": Hook.PRE_ROUTING,
    "INPUT": Hook.LOCAL_IN,
    "FORWARD": Hook.FORWARD,
    "OUTPUT": Hook.LOCAL_OUT,
    "POSTROUTING": Hook.POST_ROUTING,
}


@pytest.mark.parametrize("family", [4, 6])
async def test_each_hook_is_answered(forwarding: Forwarding, family: int) -> None:
    net = forwarding
    for chain, hook in CHAINS.items():
        queue_rule(net.router, chain, f"-p udp --dport {PORT}", int(hook), table="mangle",
                   family=family)  # type: ignore[arg-type]  # fmt: skip
    four = family == 4
    routes = {
        Udp(net.a, net.b, net.b4 if four else net.b6): (
            Hook.PRE_ROUTING,
            Hook.FORWARD,
            Hook.POST_ROUTING,
        ),
        Udp(net.a, net.router, net.router_a4 if four else net.router_a6): (
            Hook.PRE_ROUTING,
            Hook.LOCAL_IN,
        ),
        Udp(net.router, net.a, net.a4 if four else net.a6): (Hook.LOCAL_OUT, Hook.POST_ROUTING),
    }
    async with contextlib.AsyncExitStack() as stack:
        queues = [
            await stack.enter_async_context(open_queue(int(hook), namespace=net.router.name))
            for hook in CHAINS.values()
        ]
        for udp, hooks in routes.items():
            for dropped_at in (*hooks, None):
                data = str(dropped_at).encode()
                udp.send(data)
                for hook in hooks:
                    [packet] = await take(queues[hook], 1)
                    assert packet.hook is hook
                    assert packet.family == (Family.IPV4 if four else Family.IPV6)
                    assert data_of(packet) == data
                    if hook is dropped_at:
                        packet.drop()
                        break
                    packet.accept()
                    await trio.lowlevel.checkpoint()
            # Datagrams keep their order: what was dropped would have come first.
            assert await udp.receive(1) == [b"None"]
            assert udp.waiting() == []
