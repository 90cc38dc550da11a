"""Datagrams for tests: packets as the kernel sends them, requests as a program does.

Built by the schema, not by the codec that the tests are to exercise.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from trionfq import schema
from trionfq._checksum import internet_checksum
from trionfq.schema import Message
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import (
    NFQA,
    NFQA_CFG,
    NFQA_VLAN,
    ConfigCommand,
    CopyMode,
    Hook,
    MessageType,
    VerdictCode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq.schema import Attr, Order, Value

_ETHERTYPES: dict[int, int] = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD, Family.ARP: 0x0806}
_UDP = 17

# The order in which nfqnl_build_packet_message writes; for a bridge each pair of devices is
# turned round, which no reader may depend on.
_KERNEL_ORDER = (
    "packet_hdr",
    "ifindex_indev",
    "ifindex_physindev",
    "ifindex_outdev",
    "ifindex_physoutdev",
    "mark",
    "priority",
    "hwaddr",
    "vlan",
    "l2hdr",
    "timestamp",
    "uid",
    "gid",
    "cgroup_classid",
    "secctx",
    "ct",
    "ct_info",
    "cap_len",
    "skb_info",
    "payload",
)
_NOT_OF_A_PACKET = ("verdict_hdr", "exp")


def udp_packet(
    data: bytes = b"trionfq",
    *,
    source: str = "192.0.2.1",
    destination: str = "198.51.100.2",
    source_port: int = 40_000,
    destination_port: int = 53,
    ttl: int = 64,
) -> bytes:
    """An IPv4 or IPv6 packet with a UDP datagram, all lengths and checksums right.

    Args:
      data: what the datagram carries.
      source: address; with a colon IPv6.
      destination: address of the same kind.
      source_port: UDP port.
      destination_port: UDP port.
      ttl: time to live, or hop limit.

    Raises:
      OSError: an address is none, or of the other kind.
    """
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    length = 8 + len(data)
    udp = struct.pack("!HHHH", source_port, destination_port, length, 0)
    pseudo = addresses + struct.pack("!II", length, _UDP)
    # A sum of 0 would mean that there is none, so it is sent as its other spelling (RFC 768).
    udp = udp[:6] + struct.pack("!H", internet_checksum(pseudo + udp + data) or 0xFFFF)
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 0x60000000, length, _UDP, ttl) + addresses + udp + data
    header = struct.pack("!BBHIBBH", 0x45, 0, 20 + length, 0, ttl, _UDP, 0) + addresses
    header = header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:]
    return header + udp + data


_SOME_PAYLOAD = udp_packet()


def make_packet(
    packet_id: int = 1,
    payload: bytes | None = _SOME_PAYLOAD,
    *,
    queue: int = 0,
    hook: int = Hook.LOCAL_IN,
    family: int | None = None,
    hw_protocol: int | None = None,
    timestamp_ns: int | None = None,
    hw_address: bytes | None = None,
    vlan: tuple[int, int] | None = None,
    extra: Iterable[Attr] = (),
    order: Order = HOST_ORDER,
    **attributes: Value,
) -> bytes:
    """A datagram with one packet, as the kernel would send it.

    Args:
      packet_id: the kernel's id, which a verdict names.
      payload: the packet from its network header on, by default a small `udp_packet`; None for
        none, as in copy mode META.
      queue: queue number.
      hook: where the packet was.
      family: protocol family of the hook; by default what the payload's first half-byte says.
      hw_protocol: EtherType; by default that of `family`.
      timestamp_ns: when it was received, in nanoseconds since the epoch; the wire has microseconds.
      hw_address: link-layer source address, at most 8 bytes.
      vlan: EtherType and TCI of a VLAN tag.
      extra: more attributes, for the end, which may be unknown ones or duplicates.
      order: byte order of the host that sends it.
      attributes: any other attribute by the schema's name and with the schema's value, such as
        ``mark=7``, ``ifindex_indev=2``, ``uid=1000``, ``cap_len=9000``.

    Raises:
      TypeError: a packet has no such attribute.
      LocalProtocolError: a value does not fit the schema.
    """
    if family is None:
        family = Family.IPV6 if payload is not None and payload[:1] >= b"\x60" else Family.IPV4
    if hw_protocol is None:
        hw_protocol = _ETHERTYPES.get(family, 0)
    header = {"packet_id": packet_id, "hw_protocol": hw_protocol, "hook": hook}
    values: dict[str, Value] = {"packet_hdr": header}
    if payload is not None:
        values["payload"] = payload
    if timestamp_ns is not None:
        sec, rest = divmod(timestamp_ns, 1_000_000_000)
        values["timestamp"] = {"sec": sec, "usec": rest // 1000}
    if hw_address is not None:
        padded = hw_address.ljust(8, b"\0")
        values["hwaddr"] = {"hw_addrlen": len(hw_address), "pad": 0, "hw_addr": padded}
    if vlan is not None:
        values["vlan"] = (
            schema.attr(NFQA_VLAN, "proto", vlan[0]),
            schema.attr(NFQA_VLAN, "tci", vlan[1]),
        )
    for name, value in attributes.items():
        if name not in NFQA.by_name or name in values or name in _NOT_OF_A_PACKET:
            raise TypeError(f"make_packet: a packet has no attribute {name!r} to give by name")
        values[name] = value
    message = Message(
        type=MessageType.PACKET,
        flags=0,
        seq=0,
        portid=0,
        family=family,
        version=0,
        res_id=queue,
        attributes=(
            *(schema.attr(NFQA, name, values[name]) for name in sorted(values, key=_place)),
            *extra,
        ),
    )
    return schema.build([message], order=order)


def _place(name: str) -> int:
    """Where the kernel writes an attribute; one that is unknown here stands before the payload."""
    try:
        return _KERNEL_ORDER.index(name)
    except ValueError:
        return len(_KERNEL_ORDER) - 1


def make_config(
    queue: int = 0,
    *,
    seq: int = 1,
    ack: bool = True,
    command: int | None = None,
    copy_mode: int | None = None,
    copy_range: int = 0xFFFF,
    max_len: int | None = None,
    flags: int | None = None,
    mask: int | None = None,
) -> bytes:
    """A datagram with one configuration request; only what is given stands in it.

    Args:
      queue: queue number.
      seq: sequence number, which the answer echoes.
      ack: ask for an answer also on success.
      command: a `ConfigCommand`, such as BIND.
      copy_mode: a `CopyMode`.
      copy_range: most payload bytes copied; sent with `copy_mode`.
      max_len: most packets that wait for a verdict.
      flags: new values of `QueueFlags`.
      mask: which flags change; by default those of `flags`.
    """
    values: dict[str, Any] = {}
    if command is not None:
        values["cmd"] = {"command": command, "pad": 0, "pf": 0}
    if copy_mode is not None:
        values["params"] = {"copy_range": copy_range, "copy_mode": copy_mode}
    if max_len is not None:
        values["queue_maxlen"] = max_len
    if flags is not None:
        values["mask"] = flags if mask is None else mask
        values["flags"] = flags
    attributes = tuple(schema.attr(NFQA_CFG, name, value) for name, value in values.items())
    return _request(MessageType.CONFIG, queue, seq, ack, attributes)


def make_bind(
    queue: int = 0,
    *,
    seq: int = 1,
    copy_range: int = 0xFFFF,
    max_len: int | None = None,
    flags: int | None = None,
) -> bytes:
    """A request that binds a queue and has whole packets copied; answered with an ack."""
    return make_config(
        queue,
        seq=seq,
        command=ConfigCommand.BIND,
        copy_mode=CopyMode.PACKET,
        copy_range=copy_range,
        max_len=max_len,
        flags=flags,
    )


def make_verdict(
    packet_id: int,
    verdict: int = VerdictCode.ACCEPT,
    *,
    queue: int = 0,
    seq: int | None = None,
    ack: bool = False,
    batch: bool = False,
    **attributes: Value,
) -> bytes:
    """A datagram with one verdict.

    Args:
      packet_id: the packet's id; in a batch the highest meant.
      verdict: the whole 32 bits.
      queue: queue number.
      seq: sequence number, by default the packet's id.
      ack: ask for an answer also on success.
      batch: for every waiting packet up to `packet_id`.
      attributes: by the schema's names, such as ``mark=7`` or ``payload=b"..."``.

    Raises:
      KeyError: there is no such attribute.
      LocalProtocolError: a value does not fit the schema.
    """
    header = schema.attr(NFQA, "verdict_hdr", {"verdict": verdict, "id": packet_id})
    given = (schema.attr(NFQA, name, value) for name, value in attributes.items())
    kind = MessageType.VERDICT_BATCH if batch else MessageType.VERDICT
    return _request(kind, queue, packet_id if seq is None else seq, ack, (header, *given))


def _request(kind: int, queue: int, seq: int, ack: bool, attributes: tuple[Attr, ...]) -> bytes:
    flags = MessageFlags.REQUEST | (MessageFlags.ACK if ack else 0)
    return schema.build(
        [
            Message(
                type=kind,
                flags=flags,
                seq=seq,
                portid=0,
                family=0,
                version=0,
                res_id=queue,
                attributes=attributes,
            )
        ]
    )
