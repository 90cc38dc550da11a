"""What `PacketSource` makes of captured frames is what the kernel tells a queue of the same frames.

Frames are sent and captured by packet sockets; beside that a queue is recorded. Ids and times of
arrival apart, the messages are equal to the byte.
"""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests import capture_bytes as made
from tests import link_bytes as link
from tests.link_bytes import IPV4, IPV6
from trionfq import Hook, NetlinkBackend, RecordingBackend, open_queue, schema
from trionfq.captures import PacketSource, open_capture
from trionfq.schema import Message
from trionfq.schema.nfqueue import NFQA, MessageType, SkbInfo

from ._live import take
from .harness import Bridged, Pair, hardware_address, rule
from .test_bridge import PROTOCOL, Wire, queue_bridged

ETHERNET = 1
PACKET = MessageType.PACKET.to_bytes(2, sys.byteorder)
# No card has looked at the checksums, which no capture tells.
UNVERIFIED = {"skb_info": SkbInfo.CSUM_NOTVERIFIED}
UNUSED_PROTOCOL = 253  # RFC 3692: for experiments
ID, TIME = NFQA.by_name["packet_hdr"].number, NFQA.by_name["timestamp"].number


def comparable(datagram: bytes) -> Message:
    """A packet's message without id and time."""
    (message,) = schema.parse(datagram)
    assert isinstance(message, Message)
    attributes = []
    for attribute in message.attributes:
        value = attribute.value
        if attribute.number == ID:
            assert isinstance(value, dict)
            attribute = attribute._replace(value={**value, "packet_id": 0})
        if attribute.number != TIME:
            attributes.append(attribute)
    return message._replace(attributes=tuple(attributes))


def told_by_kernel(recording: Path) -> list[Message]:
    with open_capture(recording) as capture:
        datagrams = [record.datagram for record in capture if record.datagram]
    return [comparable(each) for each in datagrams if each[4:6] == PACKET]


def told_by_source(frames: list[bytes], **options: Any) -> list[Message]:
    data = made.pcap(*[(1, 2, frame) for frame in frames], link_type=ETHERNET)
    return [comparable(r.datagram) for r in PacketSource(io.BytesIO(data), **options)]


@pytest.mark.parametrize(
    ("chain", "table", "hook"),
    [("PREROUTING", "raw", Hook.PRE_ROUTING), ("INPUT", "filter", Hook.LOCAL_IN)],
)
async def test_at_an_ip_hook(
    pair: Pair, tmp_path: Path, chain: str, table: str, hook: Hook
) -> None:
    """Whatever stands behind the IP packet in its frame."""
    macs = [
        bytes.fromhex(hardware_address(ns, device).replace(":", ""))
        for ns, device in ((pair.b, pair.b_device), (pair.a, pair.a_device))
    ]
    head = b"".join(macs)
    four, six = link.ipv4(b"four"), link.ipv6(b"six")
    addresses = [socket.inet_pton(socket.AF_INET, each) for each in (pair.a4, pair.b4)]
    four = four[:10] + b"\0\0" + b"".join(addresses) + four[20:]
    four = four[:10] + link.checksum(four[:20]).to_bytes(2, "big") + four[12:]
    addresses = [socket.inet_pton(socket.AF_INET6, each) for each in (pair.a6, pair.b6)]
    six = six[:8] + b"".join(addresses) + six[40:]
    frames = [
        head + protocol.to_bytes(2, "big") + packet + behind
        for protocol, packet in ((IPV4, four), (IPV6, six))
        for behind in (b"", b"padding", bytes(300))
    ]
    for family in (4, 6):
        rule(pair.b, chain, f"-p {UNUSED_PROTOCOL} -j NFQUEUE --queue-num 0", table=table,
             family=4 if family == 4 else 6)  # fmt: skip
    sender = pair.a.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind((pair.a_device, 0))
    recording = tmp_path / "kernel.pcapng"
    backend = RecordingBackend(NetlinkBackend(namespace=pair.b.name), recording)
    async with open_queue(0, backend=backend) as queue:
        for frame in frames:
            sender.send(frame)
            [packet] = await take(queue, 1)
            packet.drop()
        await trio.lowlevel.checkpoint()
    index = pair.b.interface_index(pair.b_device)
    wanted = told_by_kernel(recording)
    assert len(wanted) == len(frames)
    assert told_by_source(frames, hook=hook, indev=index, attributes=UNVERIFIED) == wanted


@pytest.mark.usefixtures("one_cpu")
@pytest.mark.needs_kernel("bridge", "nft-queue")
async def test_at_a_bridge(bridged: Bridged, tmp_path: Path) -> None:
    net = bridged
    wire = Wire(net)
    queue_bridged(net.switch, "forward")
    recording = tmp_path / "kernel.pcapng"
    backend = RecordingBackend(NetlinkBackend(namespace=net.switch.name), recording)
    frames = []
    async with open_queue(2, backend=backend) as queue:
        for tag in (None, (0x8100, 0xB00A), (0x88A8, 7)):
            header = wire.a.send(wire.b.mac, b"some data", tag)
            [packet] = await take(queue, 1)
            packet.drop()
            tags = [tag] if tag else []
            frames.append(header[:12] + link.ethernet(b"some data", PROTOCOL, *tags)[12:])
        await trio.lowlevel.checkpoint()
    index = net.switch.interface_index
    found = told_by_source(
        frames,
        queue=2,
        bridge=True,
        hook=Hook.FORWARD,
        indev=index(net.bridge),
        physindev=index(net.port_a),
        outdev=index(net.bridge),
        physoutdev=index(net.port_b),
        attributes=UNVERIFIED,
    )
    wanted = told_by_kernel(recording)
    assert len(wanted) == len(frames)
    assert found == wanted
