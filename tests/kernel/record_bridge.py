"""Writes down what a kernel does with verdicts on bridged packets and on connections.

``python -m tests.kernel.record_bridge`` with privilege, on a kernel with nft_queue and the
conntrack glue (Debian's stock kernels have both, many others have neither).
tests/test_kernel_model.py holds the model to what it wrote.
"""

from __future__ import annotations

import json
import platform
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from trionfq import schema
from trionfq.schema import ErrorMessage, Message
from trionfq.schema.nfqueue import NFQA

from ._bench_real import InNamespace, _netlink, iptables
from ._scenario import datagram

RECORD = Path(__file__).with_name("bridge-6.12.json")
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_AUXDATA = 8
VLAN_VALID = 0x10
VLAN_TPID_VALID = 0x40
PACKET_OUTGOING = 4
PORT = 9999
CT = NFQA.by_name["ct"].number
CTA_MARK = 8
CONFIGURE = (
    "38000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
    "0900 0200 0000ffff 02 000000 | 0800 0400 00000002 | 0800 0500 00000002"
)


class Case(NamedTuple):
    """The attributes of a verdict behind its header, in hexadecimal."""

    name: str
    attributes: str


VLANS = (
    Case("nothing", ""),
    Case("tag", "1400 1380 | 0600 0100 8100 0000 | 0600 0200 0007 0000"),
    Case("tag without NLA_F_NESTED", "1400 1300 | 0600 0100 88a8 0000 | 0600 0200 0007 0000"),
    Case("tag, tci first", "1400 1380 | 0600 0200 0007 0000 | 0600 0100 8100 0000"),
    Case("tag without protocol", "0c00 1380 | 0600 0200 0007 0000"),
    Case("tag without tci", "0c00 1380 | 0600 0100 8100 0000"),
    Case("tag with a tci of one byte", "1400 1380 | 0600 0100 8100 0000 | 0500 0200 07 000000"),
    Case("tag with a tci of four bytes", "1400 1380 | 0600 0100 8100 0000 | 0800 0200 0007ffff"),
    Case("tag with a member that runs past the end", "0c00 1380 | 0600 0100 8100 0000 | 0900 0200"),
    Case("tag without contents", "0400 1300"),
    Case("header", "1200 1400 ffffffffffff02000000000288b5 0000"),
    Case("header one byte too short", "1100 1400 ffffffffffff02000000000288 000000"),
    Case("header one byte too long", "1300 1400 ffffffffffff02000000000288b500 00"),
    Case("header without contents", "0400 1400"),
    Case("tag and header", "1400 1380 | 0600 0100 8100 0000 | 0600 0200 0007 0000 | "
         "1200 1400 ffffffffffff02000000000288b5 0000"),
    Case("payload of 0 bytes", "0400 0a00"),
    Case("payload of 1 byte", "0500 0a00 78 000000"),
    Case("payload one byte shorter", "3700 0a00 " + "79" * 51 + " 00"),
    Case("payload of the same length", "3800 0a00 " + "79" * 52),
    Case("payload one byte longer", "3900 0a00 " + "79" * 53 + " 000000"),
)  # fmt: skip
CONNECTIONS = (
    Case("nothing", ""),
    Case("mark", "0c00 0b80 | 0800 0800 00000005"),
    Case("mark without NLA_F_NESTED", "0c00 0b00 | 0800 0800 00000005"),
    Case("mark of two bytes", "0c00 0b80 | 0600 0800 0005 0000"),
    Case("mark and mask", "1400 0b80 | 0800 0800 00000005 | 0800 1500 0000000f"),
    Case("mark and a mask of two bytes", "1400 0b80 | 0800 0800 00000005 | 0600 1500 000f 0000"),
    Case("mark and a short status", "1400 0b80 | 0800 0800 00000005 | 0600 0300 0000 0000"),
    Case("mark and an unknown attribute", "1400 0b80 | 0800 0800 00000005 | 0800 6300 00000000"),
    Case("mark and a zone of one byte", "1400 0b80 | 0800 0800 00000005 | 0500 1200 01 000000"),
    Case("mark and labels of 17 bytes", "2400 0b80 | 0800 0800 00000005 | 1500 1600 "
         + "00" * 20),
    Case("mark and labels of 6 bytes", "1800 0b80 | 0800 0800 00000005 | 0a00 1600 "
         + "00" * 8),
    Case("mark and a helper that does not exist", "1800 0b80 | 0800 0800 00000005 | 0c00 0580 | "
         "0600 0100 7800 0000"),
    Case("mark and a helper without a name", "1000 0b80 | 0800 0800 00000005 | 0400 0580"),
    Case("mark and a timeout", "1400 0b80 | 0800 0800 00000005 | 0800 0700 00000064"),
    Case("junk", "0700 0b80 010203 00"),
)  # fmt: skip


def verdict(packet_id: int, case: Case) -> bytes:
    """An answered ACCEPT."""
    rest = datagram(case.attributes)
    head = datagram(f"0103 0500 01000000 00000000 00000000 0c00 0200 00000001 {packet_id:08x}")
    return struct.pack("=I", 4 + len(head) + len(rest)) + head + rest


def frame(*, tagged: bool) -> bytes:
    """A broadcast frame of an experimental protocol, 52 bytes of payload."""
    tag = bytes.fromhex("81002005") if tagged else b""
    return b"\xff" * 6 + bytes.fromhex("020000000001") + tag + b"\x88\xb5" + bytes(range(52))


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def _wait_until_forwarding() -> None:
    while True:
        shown = subprocess.run(
            ["ip", "-d", "link", "show", "master", "br0"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        if shown.count("state UP") == shown.count("state forwarding") == 2:
            return
        time.sleep(0.05)


def _queue_bridged(netlink: socket.socket) -> None:
    """An nftables chain at the bridge's prerouting hook that queues everything to 0."""
    head = "01000000 00000000 | 07 00 0000 | 0600 0100 7400 0000"  # table "t"
    begin = "14000000 1000 0100 01000000 00000000 | 00 00 000a"
    end = "14000000 1100 0100 01000000 00000000 | 00 00 000a"
    table = f"1c000000 000a 0504 {head}"
    chain = (
        f"44000000 030a 0504 {head} | 0600 0300 6300 0000 | 1400 0480 | 0800 0100 00000000 | "
        "0800 0200 00000000 | 0b00 0700 66696c74657200 00"
    )
    rule = (
        f"44000000 060a 050c {head} | 0600 0200 6300 0000 | 2000 0480 | 1c00 0180 | "
        "0a00 0100 717565756500 0000 | 0c00 0280 | 0600 0100 0000 0000"
    )
    netlink.send(b"".join(datagram(part) for part in (begin, table, chain, rule, end)))
    for _ in range(3):
        (answer,) = schema.parse(netlink.recv(1 << 16))
        assert isinstance(answer, ErrorMessage), answer
        if answer.error:
            raise OSError(-answer.error, "this kernel's nftables cannot queue bridged packets")


def main() -> None:
    """Ask this machine's kernel."""
    told = InNamespace().run(_bridge) | {"connections": InNamespace().run(_connections)}
    head = {"kernel": platform.release()}
    parts = [json.dumps(head)[1:-1]]
    for name, scenarios in told.items():
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in scenarios.items())
        parts.append(f'"{name}": {{\n{lines}\n }}')
    RECORD.write_text("{\n " + ",\n ".join(parts) + "\n}\n")


def _bridge() -> dict[str, Any]:
    _ip("link add name br0 type bridge mcast_snooping 0")
    for n in (0, 1):
        _ip(f"link add p{n} type veth peer name h{n}")
        _ip(f"link set p{n} master br0")
    for name in ("br0", "p0", "p1", "h0", "h1"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        _ip(f"link set {name} up")
    _wait_until_forwarding()
    packets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in range(2)]
    for n, sock in enumerate(packets):
        sock.bind((f"h{n}", ETH_P_ALL))
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sender, receiver = packets
    with _netlink(()) as queue, _netlink(()) as rules:
        queue.settimeout(60)
        _queue_bridged(rules)
        queue.send(datagram(CONFIGURE))
        (bound,) = schema.parse(queue.recv(1 << 16))
        assert isinstance(bound, ErrorMessage)
        assert bound.error == 0
        return {
            kind: {
                case.name: _one_bridged(queue, sender, receiver, case, tagged=kind == "tagged")
                for case in VLANS
            }
            for kind in ("plain", "tagged")
        }


def _one_bridged(
    queue: socket.socket,
    sender: socket.socket,
    receiver: socket.socket,
    case: Case,
    *,
    tagged: bool,
) -> dict[str, Any]:
    sender.send(frame(tagged=tagged))
    packet = queue.recv(1 << 16)
    packet_id = int.from_bytes(packet[24:28], "big")
    queue.send(verdict(packet_id, case))
    error = _error(queue)
    # One more frame, let through unchanged, arrives behind the one in question.
    sender.send(frame(tagged=False)[:14] + b"fence")
    queue.send(verdict(int.from_bytes(queue.recv(1 << 16)[24:28], "big"), VLANS[0]))
    assert _error(queue) == 0
    arrived: list[str | None] = [None, None]
    while True:
        contents, ancillary, _flags, address = receiver.recvmsg(1 << 16, 256)
        if address[2] == PACKET_OUTGOING:
            continue
        if contents.endswith(b"fence"):
            return {"packet": packet.hex(), "error": error, "frame": arrived[0], "tag": arrived[1]}
        (auxdata,) = (value for _level, _kind, value in ancillary)
        status, _len, _snap, _mac, _net, tci, protocol = struct.unpack("=IIIHHHH", auxdata)
        valid = status & (VLAN_VALID | VLAN_TPID_VALID)
        arrived = [contents.hex(), f"{protocol:04x}{tci:04x}" if valid else None]


def _error(queue: socket.socket) -> int:
    (answer,) = schema.parse(queue.recv(1 << 16))
    assert isinstance(answer, ErrorMessage)
    return answer.error


def _connections() -> dict[str, Any]:
    """Each case on a connection of its own: what its next packet says of the mark."""
    iptables(f"-A OUTPUT -p udp --dport {PORT} -j NFQUEUE --queue-num 0")
    iptables("-A INPUT -m conntrack --ctstate INVALID -j DROP")  # switches conntrack on
    found: dict[str, Any] = {}
    with _netlink(()) as queue:
        queue.settimeout(60)
        queue.send(datagram(CONFIGURE))
        assert _error(queue) == 0
        for case in CONNECTIONS:
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            ):
                receiver.bind(("127.0.0.1", PORT))
                sender.connect(("127.0.0.1", PORT))
                sender.send(b"first")
                first = queue.recv(1 << 16)
                queue.send(verdict(int.from_bytes(first[24:28], "big"), case))
                error = _error(queue)
                sender.send(b"second")
                (second,) = schema.parse(queue.recv(1 << 16))
            assert isinstance(second, Message)
            connection = {a.number: a.value for a in second.attributes}[CT]
            assert isinstance(connection, tuple)
            mark = {a.number: a.value for a in connection}.get(CTA_MARK, 0)
            found[case.name] = {"packet": first.hex(), "error": error, "mark": mark}
    return found


if __name__ == "__main__":
    main()
