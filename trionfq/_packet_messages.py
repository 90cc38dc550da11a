"""A packet as the message that a queue would have told it by, see `nfqnl_build_packet_message`.

What the kernel tells only under a condition is told only then, so that a replay, which asks the
kernel model, gives the message as it is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trionfq._codec import derive, encode
from trionfq._codec_derive import run_of
from trionfq._codec_messages import OperationPart, derived
from trionfq._codec_template import Template
from trionfq.schema import NLA_F_NESTED, SCHEMA, Attr, Message
from trionfq.schema._constructs import HOST_ORDER
from trionfq.schema.nfnetlink import NFNETLINK_V0, Family
from trionfq.schema.nfqueue import MAX_COPY_RANGE, NFQA, NFQA_VLAN, Hook, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NS: Final = 10**9
_ADDRESS_BYTES: Final = 8
_TEMPLATES_KEPT: Final = 256
_NUMBERS: Final = {each.name: each.number for each in NFQA.attributes}
_NAMES: Final = {each.number: each.name for each in NFQA.attributes}
_IN, _OUT = ("ifindex_indev", "ifindex_physindev"), ("ifindex_outdev", "ifindex_physoutdev")
_MIDDLE: Final = (
    *("mark", "priority", "hwaddr", "vlan", "l2hdr", "timestamp", "uid", "gid"),
    *("cgroup_classid", "secctx", "ct", "ct_info"),
)
_ORDER: Final = (*_IN, *_OUT, *_MIDDLE)
_BRIDGE_ORDER: Final = (*_IN[::-1], *_OUT[::-1], *_MIDDLE)
_NOT_ZERO: Final = frozenset({*_IN, *_OUT, "mark", "priority", "cgroup_classid", "skb_info"})
_NESTS: Final = frozenset({"vlan", "ct"})

MAX_TIME_NS: Final = ((1 << 64) - 1) * _NS
"""The latest time that a message can tell, in nanoseconds since the epoch."""

NAMES: Final = frozenset({*_ORDER, "skb_info", "hook"})
"""What a caller may say of a packet: attributes by the schema's names, and the hook."""


class PacketWriter:
    """Writes the messages of one queue's packets.

    Packets that differ in id, time, payload and link-layer addresses only are written by one
    template.

    Args:
      queue: queue number.
    """

    def __init__(self, queue: int) -> None:
        self._queue = queue
        self._templates: dict[tuple[Any, ...], _Template] = {}

    def write(
        self, packet: tuple[int, int, bytes, int], packet_id: int, values: Mapping[str, Any]
    ) -> bytes:
        """The datagram of one packet.

        Args:
          packet: family of the hook, EtherType, payload, and bytes of the whole.
          packet_id: its id.
          values: by `NAMES`, in the schema's form or a shorter one: ``hwaddr`` as bytes,
            ``timestamp`` in nanoseconds since the epoch, ``vlan`` as (EtherType, TCI). None for
            what is not told.

        Raises:
          LocalProtocolError: a value does not fit the schema.
        """
        family, protocol, payload, length = packet
        if not payload or length > min(len(payload), MAX_COPY_RANGE):
            return encode([self._message(packet, packet_id, values)])
        alike = dict(values)
        for name, stand_in in _STAND_INS.items():
            if alike.get(name) is not None:
                alike[name] = stand_in(alike[name])
        try:
            key = family, protocol, *alike.items()
            template = self._templates.get(key)
        except TypeError:
            # A value of the user's that cannot be a key.
            return encode([self._message(packet, packet_id, values)])
        if template is None:
            if len(self._templates) >= _TEMPLATES_KEPT:
                self._templates.clear()
            sample = self._message((family, protocol, b"", 0), packet_id, alike)
            template = self._templates[key] = _Template(sample)
        return template.write(packet_id, payload, values)

    def _message(
        self, packet: tuple[int, int, bytes, int], packet_id: int, values: Mapping[str, Any]
    ) -> Message:
        family, protocol, payload, length = packet
        hook = int(values["hook"])
        header = {"packet_id": packet_id, "hw_protocol": protocol, "hook": hook}
        listed = [Attr(_NUMBERS["packet_hdr"], header)]
        for name in _BRIDGE_ORDER if family == Family.BRIDGE else _ORDER:
            value = values.get(name)
            if value is None or not _is_told(name, value, family, hook, values):
                continue
            full = _FULL[name](value) if name in _FULL else value
            listed.append(Attr(_NUMBERS[name], full, NLA_F_NESTED if name in _NESTS else 0))
        copied = payload[:MAX_COPY_RANGE]
        if length > len(copied):
            listed.append(Attr(_NUMBERS["cap_len"], length))
        if values.get("skb_info"):
            listed.append(Attr(_NUMBERS["skb_info"], int(values["skb_info"])))
        if copied:
            listed.append(Attr(_NUMBERS["payload"], copied))
        number = MessageType.PACKET
        return Message(number, 0, 0, 0, family, NFNETLINK_V0, self._queue, tuple(listed))


class _Template:
    """A message without its payload, whose id and what `_STAND_INS` names are to be replaced."""

    def __init__(self, message: Message) -> None:
        self._inner = Template(message, field=("packet_hdr", "packet_id"))
        datagram = derived(SCHEMA, HOST_ORDER)
        body = datagram.kinds[MessageType.PACKET].body
        assert isinstance(body, OperationPart)
        sample = encode([message])
        start = datagram.header.size + body.header.size
        self._slots = [
            (_NAMES[number], at, end)
            for _, number, _, at, end, _ in body.attributes.walk(sample, start, len(sample))
            if _NAMES[number] in _STAND_INS
        ]

    def write(self, packet_id: int, payload: bytes, values: Mapping[str, Any]) -> bytes:
        message = bytearray(self._inner.pack_payload(0, packet_id, payload))
        for name, at, end in self._slots:
            message[at:end] = _written(name, values[name])
        return bytes(message)


def _is_told(name: str, value: Any, family: int, hook: int, values: Mapping[str, Any]) -> bool:
    if name in _NOT_ZERO:
        return bool(value != 0)
    if name in ("vlan", "l2hdr"):
        return family == Family.BRIDGE and bool(value)
    if name == "timestamp":
        return hook <= Hook.FORWARD
    if name == "hwaddr":
        return any(values.get(device) for device in _IN)
    return True


def _hardware_address(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    kept = value[:_ADDRESS_BYTES]
    return {"hw_addrlen": len(kept), "pad": 0, "hw_addr": kept.ljust(_ADDRESS_BYTES, b"\0")}


def _timestamp(value: Any) -> Any:
    if not isinstance(value, int):
        return value
    sec, rest = divmod(value, _NS)
    return {"sec": sec, "usec": rest // 1000}


def _vlan(value: Any) -> Any:
    if not all(isinstance(each, int) for each in value):
        return value
    protocol, tci = value
    # In the order of nfqnl_put_bridge.
    return (
        Attr(NFQA_VLAN.by_name["tci"].number, tci),
        Attr(NFQA_VLAN.by_name["proto"].number, protocol),
    )


_FULL: Final = {"hwaddr": _hardware_address, "timestamp": _timestamp, "vlan": _vlan}

_LAYOUTS: Final = {name: derive(NFQA.by_name[name].declaration) for name in ("hwaddr", "timestamp")}
# What stands in for values that each packet may have others of, all of one length on the wire.
_STAND_INS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "hwaddr": lambda value: b"" if isinstance(value, bytes) else value,
    "l2hdr": lambda value: bytes(len(value)) if isinstance(value, bytes) else value,
    "timestamp": lambda _value: 0,
}


_time_layout = run_of(NFQA.by_name["timestamp"].declaration, "big", "timestamp").layout


def _written(name: str, value: Any) -> bytes:
    """The contents of an attribute of `_STAND_INS`."""
    if name == "timestamp" and isinstance(value, int) and 0 <= value <= MAX_TIME_NS:
        sec, rest = divmod(value, _NS)
        return _time_layout.pack(sec, rest // 1000)
    layout = _LAYOUTS.get(name)
    return value if layout is None else layout.write(_FULL[name](value))
