"""tshark's names for what the judge sees: which field of the one is which of the other.

tshark 4.0 leaves some things undissected: skb_info, VLAN, layer-2 header, expectations and what
came after 4.7, of which it shows number and length; and parts of a connection, which are compared
as bytes (``netlink.attr_data``). Of a batch of verdicts it shows the header only. Two of its
readings are wrong and compared as such: settings of a queue it reads in the host's byte order, and
microseconds as nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from trionfq.conformance import Field, fields

PREFIX = "netlink-netfilter."
QUEUE = f"{PREFIX}queue."
BATCH, QUEUE_SUBSYSTEM = 0x303, 3
TYPE_MASK = 0x3FFF

# Fields of a header, by the header's name and their own.
HEADERS = {
    ("nlmsghdr", "len"): "netlink.hdr_len",
    ("nlmsghdr", "type"): "netlink.hdr_type",
    ("nlmsghdr", "flags"): "netlink.hdr_flags",
    ("nlmsghdr", "seq"): "netlink.hdr_seq",
    ("nlmsghdr", "portid"): "netlink.hdr_pid",
    ("nlmsgerr", "error"): "netlink.error",
    ("nfgenmsg", "family"): f"{PREFIX}family",
    ("nfgenmsg", "version"): f"{PREFIX}version",
    ("nfgenmsg", "res_id"): f"{PREFIX}res_id",
}
MESSAGE_FLAGS = {
    "netlink.hdr_flags.request": 0x01,
    "netlink.hdr_flags.multi": 0x02,
    "netlink.hdr_flags.ack": 0x04,
    "netlink.hdr_flags.echo": 0x08,
    "netlink.hdr_flags.dump_intr": 0x10,
    "netlink.hdr_flags.dump_filtered": 0x20,
}
TYPE_FLAGS = {"netlink.attr_type.nested": 0x8000, "netlink.attr_type.net_byteorder": 0x4000}
# Fields with a number in them, by the end of their path.
NUMBERS = {
    ("NFQA_PACKET_HDR", "packet_id"): f"{QUEUE}packet.id",
    ("NFQA_PACKET_HDR", "hw_protocol"): f"{QUEUE}packet.protocol",
    ("NFQA_PACKET_HDR", "hook"): f"{QUEUE}packet.hook",
    ("NFQA_VERDICT_HDR", "verdict"): f"{QUEUE}verdict.verdict",
    ("NFQA_VERDICT_HDR", "id"): f"{QUEUE}verdict.id",
    ("NFQA_MARK",): f"{QUEUE}nfmark",
    ("NFQA_IFINDEX_INDEV",): f"{QUEUE}ifindex_indev",
    ("NFQA_IFINDEX_OUTDEV",): f"{QUEUE}ifindex_outdev",
    ("NFQA_IFINDEX_PHYSINDEV",): f"{QUEUE}ifindex_physindev",
    ("NFQA_IFINDEX_PHYSOUTDEV",): f"{QUEUE}ifindex_physoutdev",
    ("NFQA_HWADDR", "hw_addrlen"): f"{QUEUE}hwaddr.len",
    ("NFQA_CT_INFO",): f"{QUEUE}ct_info",
    ("NFQA_CAP_LEN",): f"{QUEUE}caplen",
    ("NFQA_UID",): f"{QUEUE}uid",
    ("NFQA_GID",): f"{QUEUE}gid",
    ("NFQA_CFG_CMD", "command"): f"{QUEUE}config.command.command",
    ("NFQA_CFG_CMD", "pf"): f"{QUEUE}config.command.pf",
    ("NFQA_CFG_PARAMS", "copy_range"): f"{QUEUE}config.params.copy_range",
    ("NFQA_CFG_PARAMS", "copy_mode"): f"{QUEUE}config.params.copy_mode",
    ("CTA_PROTO_NUM",): f"{PREFIX}nfct_tuple.proto.num",
    ("CTA_PROTO_SRC_PORT",): f"{PREFIX}nfct_tuple.proto.src_port",
    ("CTA_PROTO_DST_PORT",): f"{PREFIX}nfct_tuple.proto.dst_port",
    ("CTA_TUPLE_ZONE",): f"{PREFIX}nfct_tuple.zone",
    ("CTA_TIMEOUT",): f"{PREFIX}ct_attr.timeout",
    ("CTA_ID",): f"{PREFIX}ct_attr.id",
    ("CTA_STATUS",): f"{PREFIX}ct_attr.status",
    ("CTA_SEQADJ_CORRECTION_POS",): f"{PREFIX}ct_seqadj_correction_pos",
    ("CTA_SEQADJ_OFFSET_BEFORE",): f"{PREFIX}ct_seqadj_offset_before",
    ("CTA_SEQADJ_OFFSET_AFTER",): f"{PREFIX}ct_seqadj_offset_after",
}
# Read by tshark in the order of the host, though they are big-endian.
SWAPPED = {
    ("NFQA_CFG_QUEUE_MAXLEN",): f"{QUEUE}config.queue_maxlen",
    ("NFQA_CFG_MASK",): f"{QUEUE}config.mask",
    ("NFQA_CFG_FLAGS",): f"{QUEUE}config.flags",
}
BYTES = {
    ("CTA_IP_V4_SRC",): f"{PREFIX}nfct_tuple.ip.ip_addr",
    ("CTA_IP_V4_DST",): f"{PREFIX}nfct_tuple.ip.ip_addr",
    ("CTA_IP_V6_SRC",): f"{PREFIX}nfct_tuple.ip.ip6_addr",
    ("CTA_IP_V6_DST",): f"{PREFIX}nfct_tuple.ip.ip6_addr",
    ("CTA_HELP_NAME",): f"{PREFIX}ct_help_attr.help_name",
}
STATUS_FLAGS = {
    f"{PREFIX}ct_attr.status.{name}": 1 << bit
    for bit, name in enumerate(
        ("expected", "seen_reply", "assured", "confirmed", "src_nat", "dst_nat", "seq_adjust",
         "src_nat_done", "dst_nat_done", "dying", "fixed_timeout", "template", "untracked",
         "helper", "offload")
    )
}  # fmt: skip
_TUPLES = ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY", "CTA_TUPLE_MASTER")
_ADJUSTMENTS = ("CTA_SEQ_ADJ_ORIG", "CTA_SEQ_ADJ_REPLY")
# What the numbers within a nest are called, by the path of the nest.
NUMBERED = {
    ("NFQA_CT",): f"{PREFIX}ct.attr",
    **{("NFQA_CT", each): f"{PREFIX}nfct_tuple" for each in _TUPLES},
    **{("NFQA_CT", each, "CTA_TUPLE_IP"): f"{PREFIX}nfct_tuple.ip" for each in _TUPLES},
    **{("NFQA_CT", each, "CTA_TUPLE_PROTO"): f"{PREFIX}nfct_tuple.proto" for each in _TUPLES},
    ("NFQA_CT", "CTA_HELP"): f"{PREFIX}ct_help_attr",
    **{("NFQA_CT", each): f"{PREFIX}ct_seqadj_attr" for each in _ADJUSTMENTS},
}
# Nothing of these is shown but the numbers above.
EMPTY = {("NFQA_PAYLOAD",), ("NFQA_TIMESTAMP",), ("NFQA_HWADDR",)}

_KNOWN = {key[0] for key in (*NUMBERS, *SWAPPED, *BYTES)}

MAPPED: dict[str, str] = {
    **dict.fromkeys(
        (
            *HEADERS.values(),
            *MESSAGE_FLAGS,
            *TYPE_FLAGS,
            *NUMBERS.values(),
            *SWAPPED.values(),
            *STATUS_FLAGS,
            *NUMBERED.values(),
            *("netlink.attr_len", "netlink.attr_type", f"{PREFIX}subsys", f"{PREFIX}queue_type"),
            *(f"{QUEUE}attr", f"{QUEUE}config_attr"),
        ),
        "number",
    ),
    **dict.fromkeys(
        (*BYTES.values(), "netlink.attr_data", f"{QUEUE}hwaddr.addr", "data.data"), "bytes"
    ),
    f"{QUEUE}timestamp": "text",
}
"""Every field of tshark's that is compared, and how."""

NOT_OURS = (
    *(f"{PREFIX}{name}" for name in ("ulog", "exp_type", "exp.", "nfexp", "ipset", "nftables")),
    # Flags of requests that the queue subsystem has none of, and the capture's own header.
    *(f"netlink.hdr_flags.{name}" for name in ("root", "match", "atomic", "replace", "excl")),
    *("netlink.hdr_flags.create", "netlink.hdr_flags.append", "netlink.attr_index"),
    *("netlink.hatype", "netlink.family"),
)
"""What tshark has for other subsystems, by the beginnings of its names."""
_CAPTURES_OWN = ("netlink.hatype", "netlink.family")


class Seen(NamedTuple):
    """One field as tshark shows it, its place counted from the start of the datagram."""

    name: str
    offset: int
    size: int
    value: int | str


def is_ours(name: str) -> bool:
    """Whether a field of tshark's is of netlink or netfilter, or the payload."""
    return (
        name.startswith(("netlink.", PREFIX)) and name not in _CAPTURES_OWN
    ) or name == "data.data"


def is_queues(datagram: bytes) -> bool:
    """Whether a datagram of a little-endian host begins with a queue's message or answer."""
    type_ = struct.unpack_from("<H", datagram, 4)[0]
    if type_ == 2 and len(datagram) >= 36:
        type_ = struct.unpack_from("<H", datagram, 24)[0]
    return bool(type_ >> 8 == QUEUE_SUBSYSTEM)


def expected(datagram: bytes, timestamp: Callable[[int, int], str]) -> Iterator[Seen]:
    """What tshark should show of a datagram, from what the judge sees of it.

    Args:
      datagram: of a little-endian host.
      timestamp: how tshark writes seconds and the rest.
    """
    listed = list(fields(datagram))
    types = {each.message: each.value for each in listed if each.path == ("nlmsghdr", "type")}
    values = {(each.message, each.path): each for each in listed}
    opaque: tuple[str, ...] | None = None
    for each in listed:
        path, type_ = each.path, types[each.message]
        if path[-2:] in HEADERS:
            yield from _header(each, echoed=path[0] == "nlmsgerr")
        elif type_ in (2, BATCH) or path[0] in ("nlmsgerr", "body"):
            continue  # an answer's extended acknowledgement, and a batch, are not dissected
        elif path[-1] == "nla_len":
            if opaque is not None and path[: len(opaque)] == opaque:
                continue
            opaque = None
            yield Seen("netlink.attr_len", each.offset, 2, each.value)  # type: ignore[arg-type]
            if not _is_dissected(path[:-1]):
                opaque = path[:-1]
                start, size = each.offset + 4, int(each.value) - 4
                if size and len(path) > 2:  # of a queue's own attributes it shows nothing
                    contents = datagram[start : start + size].hex()
                    yield Seen("netlink.attr_data", start, size, contents)
        elif path[-1] == "nla_type":
            if opaque is None or path[: len(opaque)] != opaque or path[:-1] == opaque:
                yield from _type(each, _numbered(path[:-1]))
        elif opaque is None or path[: len(opaque)] != opaque:
            yield from _contents(each, datagram, values, timestamp)


def _header(each: Field, *, echoed: bool) -> Iterator[Seen]:
    assert isinstance(each.value, int)
    yield Seen(HEADERS[each.path[-2:]], each.offset, each.size, each.value)  # type: ignore[index]
    if each.path[-1] == "flags":
        for name, bit in MESSAGE_FLAGS.items():
            yield Seen(name, each.offset, each.size, int(bool(each.value & bit)))
    if each.path == ("nlmsghdr", "type") and each.value >> 8 == QUEUE_SUBSYSTEM and not echoed:
        yield Seen(f"{PREFIX}subsys", each.offset, each.size, each.value >> 8)
        yield Seen(f"{PREFIX}queue_type", each.offset, each.size, each.value & 0xFF)


def _is_dissected(path: tuple[str, ...]) -> bool:
    """Whether tshark looks into an attribute."""
    if path in NUMBERED or path in EMPTY:
        return True
    return path[-1] in _KNOWN and (len(path) == 1 or path[:-1] in NUMBERED)


def _numbered(path: tuple[str, ...]) -> str:
    if len(path) > 1:
        return NUMBERED[path[:-1]]
    return f"{QUEUE}config_attr" if path[0].startswith("NFQA_CFG_") else f"{QUEUE}attr"


def _type(each: Field, name: str) -> Iterator[Seen]:
    assert isinstance(each.value, int)
    yield Seen("netlink.attr_type", each.offset, 2, each.value)
    for flag, bit in TYPE_FLAGS.items():
        yield Seen(flag, each.offset, 2, int(bool(each.value & bit)))
    yield Seen(name, each.offset, 2, each.value & TYPE_MASK)


def _contents(
    each: Field,
    datagram: bytes,
    values: dict[tuple[int, tuple[str, ...]], Field],
    timestamp: Callable[[int, int], str],
) -> Iterator[Seen]:
    path, place = each.path, (each.offset, each.size)
    raw = datagram[each.offset : each.offset + each.size]
    ends = (path[-1:], path[-2:])
    for end in ends:
        if end in NUMBERS:
            assert isinstance(each.value, int)
            yield Seen(NUMBERS[end], *place, each.value)  # type: ignore[index]
            if end == ("CTA_STATUS",):
                for name, bit in STATUS_FLAGS.items():
                    yield Seen(name, *place, int(bool(each.value & bit)))
            return
        if end in SWAPPED:
            yield Seen(SWAPPED[end], *place, int.from_bytes(raw, "little"))  # type: ignore[index]
            return
        if end in BYTES:
            yield Seen(BYTES[end], *place, raw.hex())  # type: ignore[index]
            return
    if path == ("NFQA_PAYLOAD",) and each.size:
        yield Seen("data.data", *place, raw.hex())
    elif path == ("NFQA_TIMESTAMP", "sec"):
        rest = values[each.message, ("NFQA_TIMESTAMP", "usec")]
        text = timestamp(int(each.value), int(rest.value))
        yield Seen(f"{QUEUE}timestamp", each.offset, 16, text)
    elif path == ("NFQA_HWADDR", "hw_addr"):
        length = int(values[each.message, ("NFQA_HWADDR", "hw_addrlen")].value)
        yield Seen(f"{QUEUE}hwaddr.addr", each.offset, length, raw[:length].hex())
