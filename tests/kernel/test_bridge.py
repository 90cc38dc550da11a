"""The bridge family: its hooks, the link-layer header and the VLAN tag, in and out.

And the two families that have no queue, which nftables says at once: ``queue`` is refused in arp
and netdev tables, and at an inet table's ingress (nft_queue_validate, nft_queue.c); the NFQUEUE
target in arp_tables (xt_NFQUEUE.c). Before that was checked, such packets were queued, and dropped
whatever the verdict (nf_reinject, nf_queue.c).
"""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

import pytest
import trio

from trionfq import (
    Family,
    Hook,
    LocalProtocolError,
    Packet,
    Queue,
    VerdictRefusedError,
    VlanTag,
    open_queue,
)
from trionfq._verdict import decision
from trionfq.schema.nfqueue import VerdictCode

from ._live import PATIENCE_S, take
from .harness import Bridged, Namespace, hardware_address

pytestmark = [
    pytest.mark.usefixtures("one_cpu"),
    pytest.mark.needs_kernel("bridge", "nft-queue"),
]

# IEEE 802 Local Experimental Ethertype 1: no protocol of the kernel's answers it.
PROTOCOL = 0x88B5
PROTOCOL_BYTES = PROTOCOL.to_bytes(2, "big")
ETH_P_ALL = 3
SOL_PACKET, PACKET_AUXDATA = 263, 8
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 0x10, 0x40
HOOKS = {
    "prerouting": Hook.PRE_ROUTING,
    "input": Hook.LOCAL_IN,
    "forward": Hook.FORWARD,
    "output": Hook.LOCAL_OUT,
    "postrouting": Hook.POST_ROUTING,
}


def queue_bridged(ns: Namespace, *hooks: str) -> None:
    """Queue the frames of our protocol at some hooks, each to the queue of the hook's number."""
    lines = ["add table bridge t"]
    for hook in hooks:
        lines.append(f"add chain bridge t {hook} {{ type filter hook {hook} priority 0; }}")
        lines.append(f"add rule bridge t {hook} meta protocol {PROTOCOL} queue num {HOOKS[hook]}")
    ns.run(["nft", "\n".join(lines)])


class Frame(NamedTuple):
    """What arrived.

    Attributes:
      header: Ethernet header, without a tag.
      data: what follows.
      tag: protocol and TCI of the tag, None where it has none.
    """

    header: bytes
    data: bytes
    tag: tuple[int, int] | None = None


class Port:
    """A device seen from outside: frames as they are.

    Attributes:
      mac: hardware address of the device.
    """

    def __init__(self, ns: Namespace, device: str) -> None:
        self.mac = bytes.fromhex(hardware_address(ns, device).replace(":", ""))
        self._socket = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)

    def send(self, to: bytes, data: bytes, tag: tuple[int, int] | None = None) -> bytes:
        """Send a frame; gives its header. After a tag two bytes are needed (skb_vlan_untag)."""
        header = to + self.mac + struct.pack("!H", PROTOCOL)
        inner = struct.pack("!HH", *tag) if tag else b""
        self._socket.send(header[:12] + inner + header[12:] + data)
        return header

    async def receive(self) -> Frame:
        """The next frame of our protocol that came in."""
        with trio.fail_after(PATIENCE_S):
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                raw, ancillary, _flags, address = self._socket.recvmsg(1 << 16, 256)
                if address[2] == socket.PACKET_OUTGOING or raw[12:14] != PROTOCOL.to_bytes(
                    2, "big"
                ):
                    continue
                (aux,) = (value for _level, _kind, value in ancillary)
                status, _len, _snap, _mac, _net, tci, tpid = struct.unpack("=IIIHHHH", aux)
                tagged = status & TP_STATUS_VLAN_VALID and status & TP_STATUS_VLAN_TPID_VALID
                return Frame(raw[:14], raw[14:], (tpid, tci) if tagged else None)


class Wire:
    """The bridge's two hosts, and the bridge itself as a third."""

    def __init__(self, net: Bridged) -> None:
        self.net = net
        self.a = Port(net.a, net.a_device)
        self.b = Port(net.b, net.b_device)
        self.bridge = Port(net.switch, net.bridge)
        # So that nothing is flooded: where each host is.
        for port, host in ((net.port_a, self.a), (net.port_b, self.b)):
            mac = host.mac.hex(":")
            net.switch.run(["bridge", "fdb", "replace", mac, "dev", port, "master", "static"])


async def through(queue: Queue, wire: Wire, data: bytes, tag: Any = None) -> Packet:
    """A packet from a to b, undecided."""
    wire.a.send(wire.b.mac, data, tag)
    [packet] = await take(queue, 1)
    return packet


async def test_each_hook_tells_itself_and_is_answered(bridged: Bridged) -> None:
    """Accepted at every hook a frame arrives, dropped at any one of them it does not."""
    net = bridged
    wire = Wire(net)
    queue_bridged(net.switch, *HOOKS)
    index = net.switch.interface_index
    bridge, port_a, port_b = index(net.bridge), index(net.port_a), index(net.port_b)
    routes = {
        "through": (wire.a, wire.b, (Hook.PRE_ROUTING, Hook.FORWARD, Hook.POST_ROUTING)),
        "to": (wire.a, wire.bridge, (Hook.PRE_ROUTING, Hook.LOCAL_IN)),
        "out": (wire.bridge, wire.b, (Hook.LOCAL_OUT, Hook.POST_ROUTING)),
    }
    async with (
        open_queue(0, namespace=net.switch.name) as pre,
        open_queue(1, namespace=net.switch.name) as inward,
        open_queue(2, namespace=net.switch.name) as forward,
        open_queue(3, namespace=net.switch.name) as out,
        open_queue(4, namespace=net.switch.name) as post,
    ):
        queues = (pre, inward, forward, out, post)
        for name, (sender, receiver, hooks) in routes.items():
            for dropped_at in (*hooks, None):
                data = f"{name} {dropped_at}".encode()
                header = sender.send(receiver.mac, data)
                for hook in hooks:
                    [packet] = await take(queues[hook], 1)
                    assert packet.hook is hook
                    assert packet.family == Family.BRIDGE
                    assert packet.hw_protocol == PROTOCOL
                    assert (packet.payload, packet.l2hdr, packet.vlan) == (data, header, None)
                    # At the end nothing is said of where it came from (br_forward_finish).
                    came_in = sender is wire.a and hook is not Hook.POST_ROUTING
                    goes_out = hook in (Hook.FORWARD, Hook.LOCAL_OUT, Hook.POST_ROUTING)
                    assert packet.ifindex_indev == (bridge if came_in else None)
                    assert packet.ifindex_physindev == (port_a if came_in else None)
                    assert packet.ifindex_outdev == (bridge if goes_out else None)
                    assert packet.ifindex_physoutdev == (port_b if goes_out else None)
                    assert packet.hwaddr == (sender.mac if came_in else None)
                    if hook is dropped_at:
                        packet.drop()
                        break
                    packet.accept()
                    await trio.lowlevel.checkpoint()
            # Frames keep their order: what was dropped would have come first.
            assert (await receiver.receive()) == Frame(header, data)


@pytest.mark.parametrize("tag", [None, (0x8100, 0xB00A), (0x88A8, 0x0007)])
async def test_a_tag_is_told_and_replaced(bridged: Bridged, tag: tuple[int, int] | None) -> None:
    wire = Wire(bridged)
    queue_bridged(bridged.switch, "forward")
    async with open_queue(2, namespace=bridged.switch.name) as queue:
        packet = await through(queue, wire, b"as it is", tag)
        assert packet.vlan == tag
        assert packet.payload == b"as it is"
        assert packet.l2hdr is not None
        assert packet.l2hdr[12:] == PROTOCOL.to_bytes(2, "big")
        packet.accept()
        await trio.lowlevel.checkpoint()
        assert (await wire.b.receive())[1:] == (b"as it is", tag)
        for new in (VlanTag(0x8100, 0x2005), VlanTag(0x88A8, 9)):
            packet = await through(queue, wire, b"other", tag)
            packet.accept(vlan=new)
            await trio.lowlevel.checkpoint()
            assert (await wire.b.receive())[1:] == (b"other", new)


@pytest.mark.parametrize("tag", [None, (0x8100, 5)])
async def test_the_header_is_replaced(bridged: Bridged, tag: tuple[int, int] | None) -> None:
    wire = Wire(bridged)
    queue_bridged(bridged.switch, "forward")
    async with open_queue(2, namespace=bridged.switch.name) as queue:
        packet = await through(queue, wire, b"header", tag)
        assert packet.l2hdr is not None
        new = wire.b.mac + bytes.fromhex("02aabbccddee") + packet.l2hdr[12:]
        packet.accept(l2hdr=new)
        await trio.lowlevel.checkpoint()
        assert await wire.b.receive() == Frame(new, b"header", tag)
        packet = await through(queue, wire, b"both", tag)
        packet.accept(l2hdr=new, vlan=(0x8100, 77))
        await trio.lowlevel.checkpoint()
        assert await wire.b.receive() == Frame(new, b"both", (0x8100, 77))


async def test_a_header_of_another_length_is_refused_and_would_be_the_packets_end(
    bridged: Bridged,
) -> None:
    wire = Wire(bridged)
    queue_bridged(bridged.switch, "forward")
    errors: list[Exception] = []
    async with open_queue(
        2,
        namespace=bridged.switch.name,
        error_handler=lambda error, packet: errors.append(error),
    ) as queue:
        packet = await through(queue, wire, b"lost")
        assert packet.l2hdr is not None
        with pytest.raises(LocalProtocolError, match="expected 14 bytes as received, got 13"):
            packet.accept(l2hdr=packet.l2hdr[:-1])
        packet.settle(decision(VerdictCode.ACCEPT, {"l2hdr": packet.l2hdr[:-1]}))
        await trio.lowlevel.checkpoint()
        packet = await through(queue, wire, b"next")
        packet.accept()
        await trio.lowlevel.checkpoint()
        assert (await wire.b.receive()).data == b"next"
    (error,) = errors
    assert isinstance(error, VerdictRefusedError)
    assert error.dropped


async def test_a_payload_is_replaced_but_a_tagged_one_may_not_shrink(bridged: Bridged) -> None:
    wire = Wire(bridged)
    queue_bridged(bridged.switch, "forward")
    async with open_queue(2, namespace=bridged.switch.name) as queue:
        for tag, new in ((None, b"longer than"), (None, b"short"), ((0x8100, 5), b"longer than")):
            packet = await through(queue, wire, b"payload", tag)
            packet.accept(payload=new, repair=False)
            await trio.lowlevel.checkpoint()
            assert (await wire.b.receive())[1:] == (new, tag)
        packet = await through(queue, wire, b"payload", (0x8100, 5))
        with pytest.raises(LocalProtocolError, match="at least 7 bytes"):
            packet.accept(payload=b"short", repair=False)
        packet.settle(decision(VerdictCode.ACCEPT, {"payload": b"short"}))
        await trio.lowlevel.checkpoint()
        packet = await through(queue, wire, b"next")
        packet.accept()
        await trio.lowlevel.checkpoint()
        assert (await wire.b.receive()).data == b"next"


@pytest.mark.parametrize(
    "chain",
    [
        "arp t c { type filter hook input priority 0; }",
        "netdev t c { type filter hook ingress device lo priority 0; }",
        "netdev t c { type filter hook egress device lo priority 0; }",
        "inet t c { type filter hook ingress device lo priority 0; }",
    ],
)
def test_other_families_take_no_queue_rule(ns: Namespace, chain: str) -> None:
    family = chain.split()[0]
    ns.run(["nft", f"add table {family} t; add chain {chain}"])
    ns.run(["nft", f"add rule {family} t c accept"])
    done = ns.run(["nft", f"add rule {family} t c queue num 0"], check=False)
    assert done.returncode != 0
    assert "Operation not supported" in done.stderr


def test_the_arp_table_takes_no_queue_target(ns: Namespace) -> None:
    done = ns.run(["arptables", "-A", "INPUT", "-j", "NFQUEUE"], check=False)
    assert done.returncode != 0
    ns.run(["arptables", "-A", "INPUT", "-j", "ACCEPT"])
