"""Every attribute that any kernel sends, seen with its true value.

The rest are where a kernel must have more than most:

* ``vlan`` and ``l2hdr`` in test_bridge.py: they belong to the bridge family, whose packets only
  nftables queues (CONFIG_NFT_QUEUE).
* ``ct``, ``ct_info`` and ``secctx`` in test_conntrack.py: they need conntrack in netlink
  (CONFIG_NETFILTER_NETLINK_GLUE_CT), and a security module that labels packets.
* ``verdict_hdr`` and ``exp`` go to the kernel only.

`Hook.INGRESS` cannot occur, nor can the families arp and netdev: see test_bridge.py.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from trionfq import CopyMode, Hook, LocalProtocolError, Packet, QueueFlags, SkbInfo, open_queue
from trionfq.schema.nfqueue import NFQA

from ._live import PORT, Udp, data_of, raw_udp, take
from .harness import (
    Bridged,
    Forwarding,
    Namespace,
    Pair,
    atcp_transfer,
    hardware_address,
    in_user_namespace,
    queue_rule,
)

pytestmark = pytest.mark.usefixtures("one_cpu")

UDP = f"-p udp --dport {PORT}"
IPV4, IPV6 = 0x0800, 0x86DD


def names_of(packet: Packet) -> set[str]:
    """Names of the attributes that the kernel sent."""
    return {NFQA.by_number[attribute.number].name for attribute in packet.attributes}


async def one_packet(ns: Namespace, udp: Udp, data: bytes = b"x", **options: Any) -> Packet:
    """A packet of a queue that is closed again; its attributes stay readable."""
    async with open_queue(0, namespace=ns.name, **options) as queue:
        udp.send(data)
        [packet] = await take(queue, 1)
        packet.accept()
        assert await udp.receive(1) == [data]
    return packet


# --- hooks and devices ----------------------------------------------------------------------------

CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


@pytest.mark.parametrize("family", [4, 6])
async def test_each_hook_tells_itself_its_devices_and_who_sent(
    forwarding: Forwarding, family: int
) -> None:
    """A packet through the router, one to it and one from it meet every hook."""
    net = forwarding
    for number, chain in enumerate(CHAINS):
        queue_rule(net.router, chain, UDP, number, table="mangle", family=family)  # type: ignore[arg-type]
    a, b, router_a = (
        (net.a4, net.b4, net.router_a4) if family == 4 else (net.a6, net.b6, net.router_a6)
    )
    through = Udp(net.a, net.b, b)
    to = Udp(net.a, net.router, router_a)
    out = Udp(net.router, net.a, a)
    seen: dict[bytes, list[tuple[Any, ...]]] = {}

    async def watch(number: int, task_status: trio.TaskStatus[None]) -> None:
        async with open_queue(number, namespace=net.router.name) as queue:
            task_status.started()
            async for packet in queue:
                seen.setdefault(data_of(packet), []).append(
                    (
                        CHAINS[number],
                        packet.hook,
                        packet.hw_protocol,
                        packet.indev_name,
                        packet.outdev_name,
                        packet.hwaddr,
                    )
                )
                assert packet.family == (socket.AF_INET if family == 4 else socket.AF_INET6)
                packet.accept()

    async with trio.open_nursery() as nursery:
        for number in range(len(CHAINS)):
            await nursery.start(watch, number)
        for udp, data in ((through, b"through"), (to, b"to"), (out, b"out")):
            udp.send(data)
            assert await udp.receive(1) == [data]
        nursery.cancel_scope.cancel()

    proto = IPV4 if family == 4 else IPV6
    ra, rb = net.router_a, net.router_b
    mac = bytes.fromhex(hardware_address(net.a, net.a_device).replace(":", ""))
    assert seen == {
        b"through": [
            ("PREROUTING", Hook.PRE_ROUTING, proto, ra, None, mac),
            ("FORWARD", Hook.FORWARD, proto, ra, rb, mac),
            ("POSTROUTING", Hook.POST_ROUTING, proto, ra, rb, mac),
        ],
        b"to": [
            ("PREROUTING", Hook.PRE_ROUTING, proto, ra, None, mac),
            ("INPUT", Hook.LOCAL_IN, proto, ra, None, mac),
        ],
        b"out": [
            ("OUTPUT", Hook.LOCAL_OUT, proto, None, ra, None),
            ("POSTROUTING", Hook.POST_ROUTING, proto, None, ra, None),
        ],
    }


async def test_device_indices_are_the_namespaces(forwarding: Forwarding) -> None:
    net = forwarding
    queue_rule(net.router, "FORWARD", UDP)
    packet = await one_packet(net.router, Udp(net.a, net.b, net.b4))
    assert packet.ifindex_indev == net.router.interface_index(net.router_a)
    assert packet.ifindex_outdev == net.router.interface_index(net.router_b)
    assert packet.ifindex_physindev is None
    assert packet.ifindex_physoutdev is None
    assert packet.physindev_name is None
    assert packet.physoutdev_name is None


async def test_a_bridged_packet_tells_bridge_and_ports(bridged: Bridged) -> None:
    net = bridged
    queue_rule(net.switch, "FORWARD", UDP)
    udp = Udp(net.a, net.b, net.b4)
    async with open_queue(0, namespace=net.switch.name) as queue:
        udp.send(b"x")
        [packet] = await take(queue, 1)
        index = net.switch.interface_index
        assert (packet.ifindex_indev, packet.indev_name) == (index(net.bridge), net.bridge)
        assert (packet.ifindex_outdev, packet.outdev_name) == (index(net.bridge), net.bridge)
        assert (packet.ifindex_physindev, packet.physindev_name) == (index(net.port_a), net.port_a)
        assert (packet.ifindex_physoutdev, packet.physoutdev_name) == (
            index(net.port_b),
            net.port_b,
        )
        assert packet.hwaddr is not None
        assert packet.hwaddr.hex(":") == hardware_address(net.a, net.a_device)
        assert packet.hook is Hook.FORWARD
        assert packet.family == socket.AF_INET
        assert (packet.vlan, packet.l2hdr) == (None, None)
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def test_ids_count_from_one(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    for _ in range(2):  # and again after the next bind
        async with open_queue(0, namespace=ns.name) as queue:
            udp.send(*[b"x"] * 5)
            packets = await take(queue, 5)
            assert [packet.id for packet in packets] == [1, 2, 3, 4, 5]
            for packet in packets:
                packet.drop()


# --- mark, priority, class ------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [1, 0x01020304, 0xFFFFFFFF])
async def test_mark_is_the_sockets(ns: Namespace, mark: int) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    assert (await one_packet(ns, udp)).mark == 0
    udp.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
    packet = await one_packet(ns, udp)
    assert packet.mark == mark
    assert "mark" in names_of(packet)


@pytest.mark.parametrize("priority", [1, 6, 0x00010203])
async def test_priority_is_the_sockets(ns: Namespace, priority: int) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    assert (await one_packet(ns, udp)).priority == 0
    udp.sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
    assert (await one_packet(ns, udp)).priority == priority


async def test_priority_follows_the_type_of_service(ns: Namespace) -> None:
    """IPTOS_LOWDELAY is TC_PRIO_INTERACTIVE (rt_tos2priority)."""
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    udp.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
    packet = await one_packet(ns, udp)
    assert packet.priority == 6
    assert packet.payload[1] == 0x10


MOUNT = 'mount --make-rprivate / && mount -t cgroup -o net_cls none "$1"'
IN_CLASS = """
mkdir "$1/t" && echo 0x00100abc >"$1/t/net_cls.classid" && echo $$ >"$1/t/cgroup.procs"
"$2" -I -S -c "
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'classed', ('127.0.0.1', $3))
"
echo $$ >"$1/cgroup.procs" && rmdir "$1/t" && umount "$1"
"""


def mounted(folder: Path, script: str) -> list[str]:
    """A command that runs a script with the groups of net_cls in a folder, seen by itself only."""
    arguments = [str(folder), sys.executable, str(PORT)]
    return ["unshare", "-m", "sh", "-e", "-c", f"{MOUNT}\n{script}", "sh", *arguments]


@pytest.fixture
def net_cls(ns: Namespace, tmp_path: Path) -> Path:
    """A folder that the groups of net_cls can be mounted to."""
    done = ns.run(mounted(tmp_path, 'umount "$1"'), check=False)
    if done.returncode:
        pytest.skip(f"groups of net_cls cannot be made here: {done.stderr.splitlines()[0]}")
    return tmp_path


@pytest.mark.not_in_guest("NFQA_CGROUP_CLASSID is since 6.4")
async def test_cgroup_classid_is_the_senders(ns: Namespace, net_cls: Path) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    assert (await one_packet(ns, udp)).cgroup_classid is None
    async with open_queue(0, namespace=ns.name) as queue:
        await ns.arun(mounted(net_cls, IN_CLASS))
        [packet] = await take(queue, 1)
        assert data_of(packet) == b"classed"
        assert packet.cgroup_classid == 0x00100ABC
        packet.drop()


# --- who sent it ----------------------------------------------------------------------------------


def outer_id(kind: str) -> int:
    """This process's root as the initial user namespace knows it."""
    return int(Path(f"/proc/self/{kind}_map").read_text().split()[1])


async def test_uid_and_gid_are_the_initial_user_namespaces(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    packet = await one_packet(ns, udp)
    assert (packet.uid, packet.gid) == (None, None)
    packet = await one_packet(ns, udp, flags=QueueFlags.UID_GID)
    assert (packet.uid, packet.gid) == (outer_id("uid"), outer_id("gid"))


@pytest.mark.skipif(in_user_namespace(), reason="this user namespace has one user only")
async def test_uid_and_gid_are_the_senders(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    send = f"socket.socket(2, 2).sendto(b'theirs', ('127.0.0.1', {PORT}))"
    become = (
        "import os, socket; os.setgroups([]); os.setresgid(*[4321] * 3); os.setresuid(*[1234] * 3)"
    )
    async with open_queue(0, namespace=ns.name, flags=QueueFlags.UID_GID) as queue:
        await ns.arun([sys.executable, "-I", "-S", "-c", f"{become}; {send}"])
        [packet] = await take(queue, 1)
        assert (packet.uid, packet.gid) == (1234, 4321)
        packet.drop()


async def test_a_packet_from_elsewhere_has_no_owner(pair: Pair) -> None:
    queue_rule(pair.b, "INPUT", UDP)
    packet = await one_packet(pair.b, Udp(pair.a, pair.b, pair.b4), flags=QueueFlags.UID_GID)
    assert (packet.uid, packet.gid) == (None, None)


async def test_hwaddr_on_loopback_is_six_zeros_on_input_and_absent_on_output(
    ns: Namespace,
) -> None:
    queue_rule(ns, "OUTPUT", UDP, 1)
    queue_rule(ns, "INPUT", UDP, 0)
    udp = Udp(ns)
    async with open_queue(0, namespace=ns.name) as inward, open_queue(1, namespace=ns.name) as out:
        udp.send(b"x")
        [packet] = await take(out, 1)
        assert packet.hwaddr is None
        assert packet.outdev_name == "lo"
        packet.accept()
        [packet] = await take(inward, 1)
        assert packet.hwaddr == bytes(6)
        assert packet.indev_name == "lo"
        packet.accept()
        assert await udp.receive(1) == [b"x"]


# --- when -----------------------------------------------------------------------------------------


async def test_timestamp_is_when_the_device_received_it(pair: Pair) -> None:
    queue_rule(pair.b, "INPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)
    # The kernel stamps packets only while somebody wants that.
    udp.receiver.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    async with open_queue(0, namespace=pair.b.name) as queue:
        # Not at once: net_enable_timestamp leaves that to a worker.
        for _ in range(1000):
            before = time.time_ns()
            udp.send(b"x")
            [packet] = await take(queue, 1)
            after = time.time_ns()
            if packet.timestamp_ns is not None:
                break
            packet.drop()
        assert packet.timestamp_ns is not None
        assert before // 1000 * 1000 <= packet.timestamp_ns <= after
        assert packet.timestamp is not None
        assert packet.timestamp.timestamp() == pytest.approx(packet.timestamp_ns / 1e9, abs=1e-5)
        packet.accept()
        assert await udp.receive(1) == [b"x"]


async def test_a_packet_that_leaves_has_no_timestamp(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    packet = await one_packet(ns, Udp(ns))
    assert (packet.timestamp_ns, packet.timestamp) == (None, None)


# --- payload --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"odd", bytes(range(256)) * 4])
async def test_payload_is_the_packet_byte_for_byte(pair: Pair, data: bytes) -> None:
    queue_rule(pair.b, "INPUT", UDP)
    raw = pair.a.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sent = raw_udp(pair.a4, pair.b4, data)
    receiver = pair.b.udp(pair.b4, PORT)
    async with open_queue(0, namespace=pair.b.name) as queue:
        raw.sendto(sent, (pair.b4, 0))
        [packet] = await take(queue, 1)
        assert packet.payload == sent
        assert packet.original_length == len(sent)
        assert packet.cap_len is None
        assert not packet.truncated
        packet.accept()
        await trio.lowlevel.wait_readable(receiver)
        assert receiver.recv(2000) == data


async def test_a_small_range_cuts_and_says_how_long_it_was(ns: Namespace) -> None:
    queue_rule(ns, "OUTPUT", UDP)
    udp = Udp(ns)
    whole = (await one_packet(ns, udp, b"abcdefgh" * 10)).payload
    packet = await one_packet(ns, udp, b"abcdefgh" * 10, copy_range=40)
    assert len(packet.payload) == 40
    assert packet.payload[12:24] == whole[12:24]
    assert packet.payload[28:] == b"abcdefghabcd"
    assert packet.cap_len == packet.original_length == 108
    assert packet.truncated
    exact = await one_packet(ns, udp, b"abcdefgh" * 10, copy_range=108)
    assert (exact.cap_len, exact.truncated, len(exact.payload)) == (None, False, 108)


async def test_without_a_copy_there_is_no_payload_but_the_rest(pair: Pair) -> None:
    queue_rule(pair.b, "INPUT", UDP)
    packet = await one_packet(pair.b, Udp(pair.a, pair.b, pair.b4), copy_mode=CopyMode.META)
    with pytest.raises(LocalProtocolError, match=r"copy_mode=CopyMode\.PACKET"):
        packet.payload  # noqa: B018
    assert packet.hw_protocol == IPV4
    assert packet.ifindex_indev == pair.b.interface_index(pair.b_device)
    assert "payload" not in names_of(packet)


async def test_nothing_is_sent_that_was_not_seen_here(ns: Namespace) -> None:
    """The attributes of a plain packet, on output and on input of loopback."""
    queue_rule(ns, "OUTPUT", UDP, 0)
    queue_rule(ns, "INPUT", UDP, 1)
    udp = Udp(ns)
    flags = QueueFlags.UID_GID | QueueFlags.SECCTX | QueueFlags.GSO
    async with (
        open_queue(0, namespace=ns.name, flags=flags) as out,
        open_queue(1, namespace=ns.name, flags=flags) as inward,
    ):
        udp.send(b"x")
        [packet] = await take(out, 1)
        assert names_of(packet) == {
            "packet_hdr",
            "ifindex_outdev",
            "uid",
            "gid",
            "skb_info",
            "payload",
        }
        packet.accept()
        [packet] = await take(inward, 1)
        assert "hwaddr" in names_of(packet)
        assert (packet.ct, packet.ct_info, packet.secctx) == (None, None, None)
        assert (packet.vlan, packet.l2hdr) == (None, None)
        packet.accept()
        assert await udp.receive(1) == [b"x"]


# --- state of the buffer --------------------------------------------------------------------------


async def test_a_checksum_left_to_the_card_is_flagged_and_a_copy_completes_it(
    pair: Pair,
) -> None:
    queue_rule(pair.a, "OUTPUT", UDP)
    udp = Udp(pair.a, pair.b, pair.b4)
    meta = await one_packet(pair.a, udp, copy_mode=CopyMode.META)
    assert meta.skb_info is SkbInfo.CSUMNOTREADY
    copied = await one_packet(pair.a, udp)
    assert copied.skb_info == SkbInfo(0)


async def test_a_checksum_that_nobody_verified_is_flagged(pair: Pair) -> None:
    queue_rule(pair.b, "INPUT", UDP)
    raw = pair.a.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    async with open_queue(0, namespace=pair.b.name) as queue:
        raw.sendto(raw_udp(pair.a4, pair.b4, b"x"), (pair.b4, 0))
        [packet] = await take(queue, 1)
        assert packet.skb_info is SkbInfo.CSUM_NOTVERIFIED
        packet.drop()


@pytest.mark.parametrize("flags", [QueueFlags(0), QueueFlags.GSO])
async def test_segmentation_is_left_to_the_card_with_the_gso_flag_only(
    pair: Pair, flags: QueueFlags
) -> None:
    queue_rule(pair.a, "OUTPUT", "-p tcp")
    flagged: list[int] = []
    plain: list[int] = []

    def look(packet: Packet) -> None:
        kind = flagged if packet.skb_info & SkbInfo.GSO else plain
        kind.append(packet.original_length)
        packet.accept()

    data = bytes(range(256)) * 2048
    async with (
        open_queue(0, namespace=pair.a.name, flags=flags, copy_range=100) as queue,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(lambda task_status: queue.serve(look, task_status=task_status))
        assert await atcp_transfer(pair.a, pair.b, pair.b4, data) == data
        nursery.cancel_scope.cancel()
    assert max(plain) <= 1500
    if flags & QueueFlags.GSO:
        assert min(flagged) > 1500
        assert sum(flagged) > len(data) // 2
    else:
        assert flagged == []


async def test_attributes_by_name_and_as_a_whole_agree(pair: Pair) -> None:
    queue_rule(pair.b, "INPUT", UDP)
    packet = await one_packet(pair.b, Udp(pair.a, pair.b, pair.b4))
    for attribute in packet.attributes:
        assert packet.attribute(NFQA.by_number[attribute.number].name) == attribute.value
    with pytest.raises(KeyError):
        packet.attribute("no such thing")
