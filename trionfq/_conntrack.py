"""A packet's connection as conntrack knows it: NFQA_CT, decoded field by field when it is read.

What is sent, and when: ``__ctnetlink_glue_build`` in net/netfilter/nf_conntrack_netlink.c. It is
the state of the moment in which the packet was queued, and later packets may have changed it.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

from trionfq.schema import by_name
from trionfq.schema.conntrack import (
    CTA,
    CTA_COUNTERS,
    CTA_HELP,
    CTA_IP,
    CTA_PROTO,
    CTA_PROTOINFO,
    CTA_PROTOINFO_DCCP,
    CTA_PROTOINFO_SCTP,
    CTA_PROTOINFO_TCP,
    CTA_SECCTX,
    CTA_SEQADJ,
    CTA_SYNPROXY,
    CTA_TIMESTAMP,
    CTA_TUPLE,
    DccpRole,
    DccpState,
    SctpState,
    Status,
    TcpFlags,
    TcpState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trionfq.schema import Attr, AttributeSet

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LABEL_BYTES = 16
"""Room for a connection's labels: NF_CT_LABELS_MAX_SIZE, nf_conntrack_labels.h."""
# The labels are an array of unsigned long, copied from memory (struct nf_conn_labels).
_LABEL_WORD_BITS = 8 * struct.calcsize("@L")
_LABEL_WORDS = struct.Struct(f"@{LABEL_BYTES * 8 // _LABEL_WORD_BITS}L")

Address = IPv4Address | IPv6Address


class ConntrackTuple(NamedTuple):
    """One direction of a connection: who sends to whom (struct nf_conntrack_tuple).

    Attributes:
      protocol: IP protocol number.
      source: source address.
      destination: destination address.
      source_port: source port; for GRE its key. None where the protocol has none.
      destination_port: destination port, likewise.
      icmp_type: type of the ICMP or ICMPv6 request, None for other protocols.
      icmp_code: its code.
      icmp_id: its identifier.
      zone: conntrack zone of this direction only; 0 where the kernel sent none.
    """

    protocol: int
    source: Address
    destination: Address
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    zone: int = 0


class TcpInfo(NamedTuple):
    """What conntrack knows of a TCP connection (``tcp_to_nlattr``).

    Attributes:
      state: state of the connection.
      window_scale_original: window scale of the original direction, a shift.
      window_scale_reply: window scale of the reply direction.
      flags_original: flags of the original direction.
      flags_reply: flags of the reply direction.
    """

    state: TcpState
    window_scale_original: int | None
    window_scale_reply: int | None
    flags_original: TcpFlags | None
    flags_reply: TcpFlags | None


class SctpInfo(NamedTuple):
    """What conntrack knows of an SCTP association (``sctp_to_nlattr``).

    Attributes:
      state: state of the association.
      vtag_original: verification tag of the original direction.
      vtag_reply: verification tag of the reply direction.
    """

    state: SctpState
    vtag_original: int | None
    vtag_reply: int | None


class DccpInfo(NamedTuple):
    """What conntrack knows of a DCCP connection (``dccp_to_nlattr``, up to 6.15).

    Attributes:
      state: state of the connection.
      role: whether the original direction's sender is client or server.
      handshake_seq: sequence number of the handshake.
    """

    state: DccpState
    role: DccpRole | None
    handshake_seq: int | None


class Counters(NamedTuple):
    """Traffic of one direction, where net.netfilter.nf_conntrack_acct is on.

    Attributes:
      packets: packets seen.
      bytes: bytes seen, IP headers included.
    """

    packets: int
    bytes: int


class SequenceAdjustment(NamedTuple):
    """How NAT shifts the sequence numbers of one direction (struct nf_ct_seqadj).

    Attributes:
      correction_pos: sequence number of the last change of length.
      offset_before: shift before it, in bytes.
      offset_after: shift after it, in bytes.
    """

    correction_pos: int
    offset_before: int
    offset_after: int


class Synproxy(NamedTuple):
    """State of a connection that the SYN proxy answered (struct nf_conn_synproxy).

    Attributes:
      isn: initial sequence number.
      its: initial timestamp.
      tsoff: timestamp offset.
    """

    isn: int
    its: int
    tsoff: int


class Conntrack:
    """A connection, read-only; each field is decoded when it is read.

    Two are equal if the kernel said the same of them.

    Args:
      attributes: the members of NFQA_CT (CTA_*).
    """

    __slots__ = ("_attributes", "_found")

    def __init__(self, attributes: Iterable[Attr]) -> None:
        self._attributes = tuple(attributes)
        self._found: dict[str, Any] = by_name(CTA, self._attributes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Conntrack):
            return NotImplemented
        return self._attributes == other._attributes

    def __hash__(self) -> int:
        return hash((self.id, self.status, len(self._attributes)))

    def __repr__(self) -> str:
        return f"<Conntrack {self.id:#x}, {self.original}, {self.status!r}>"

    @property
    def attributes(self) -> tuple[Attr, ...]:
        """The raw nest: all members in the order of the wire, unknown ones as bytes."""
        return self._attributes

    def _nest(self, name: str, members: AttributeSet) -> dict[str, Any] | None:
        nest = self._found.get(name)
        return None if nest is None else by_name(members, nest)

    def _tuple(self, name: str) -> ConntrackTuple | None:
        nest = self._found.get(name)
        return None if nest is None else _read_tuple(nest)

    # -- who talks to whom -----------------------------------------------------------------------

    @property
    def original(self) -> ConntrackTuple:
        """The direction of the first packet (CTA_TUPLE_ORIG).

        Raises:
          ValueError: it, or an address in it, is missing, which no kernel does.
        """
        return _there(self._tuple("tuple_orig"), "CTA_TUPLE_ORIG")

    @property
    def reply(self) -> ConntrackTuple:
        """The direction of the answers: `original` turned around, after NAT (CTA_TUPLE_REPLY).

        Raises:
          ValueError: as `original`.
        """
        return _there(self._tuple("tuple_reply"), "CTA_TUPLE_REPLY")

    @property
    def master(self) -> ConntrackTuple | None:
        """The connection that expected this one, its original direction (CTA_TUPLE_MASTER)."""
        return self._tuple("tuple_master")

    @property
    def zone(self) -> int:
        """Conntrack zone of both directions; the kernel leaves out 0 (CTA_ZONE)."""
        return int(self._found.get("zone", 0))

    @property
    def id(self) -> int:
        """Identifies the connection as long as it lives; 32 bits of a hash (CTA_ID)."""
        return int(self._found.get("id", 0))

    # -- its state -------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """State of the connection, CONFIRMED once its first packet has passed (CTA_STATUS)."""
        return Status(self._found.get("status", 0))

    @property
    def timeout_s(self) -> int | None:
        """Seconds it still lives without traffic (CTA_TIMEOUT)."""
        seconds: int | None = self._found.get("timeout")
        return seconds

    @property
    def mark(self) -> int:
        """ct->mark, 32 bits; some kernels leave out 0 (CTA_MARK)."""
        return int(self._found.get("mark", 0))

    @property
    def labels(self) -> int:
        """Labels as a bit set: bit n is label n, 0 to 127; the kernel leaves out 0 (CTA_LABELS)."""
        raw: bytes | None = self._found.get("labels")
        return 0 if raw is None else labels_of(raw)

    @property
    def helper(self) -> str | None:
        """Name of the helper that reads along, such as ``"ftp"`` (CTA_HELP_NAME)."""
        inside = self._nest("help", CTA_HELP)
        if inside is None or "name" not in inside:
            return None
        name: bytes = inside["name"]
        return name.rstrip(b"\0").decode("ascii", "backslashreplace")

    @property
    def helper_info(self) -> bytes | None:
        """The helper's own data; only helpers in user space have some (CTA_HELP_INFO)."""
        inside = self._nest("help", CTA_HELP)
        return None if inside is None else inside.get("info")

    @property
    def protocol_info(self) -> TcpInfo | SctpInfo | DccpInfo | None:
        """The protocol's own state: of TCP, SCTP and DCCP, else None (CTA_PROTOINFO).

        Raises:
          ValueError: a state that this library does not know, which no kernel has so far.
        """
        inside = self._nest("protoinfo", CTA_PROTOINFO)
        if inside is None:
            return None
        for name, read in _PROTOCOL_INFO.items():
            if name in inside:
                return read(inside[name])
        return None

    # -- what is counted -------------------------------------------------------------------------

    @property
    def counters_original(self) -> Counters | None:
        """Traffic of the original direction (CTA_COUNTERS_ORIG)."""
        return _counters(self._nest("counters_orig", CTA_COUNTERS))

    @property
    def counters_reply(self) -> Counters | None:
        """Traffic of the reply direction (CTA_COUNTERS_REPLY)."""
        return _counters(self._nest("counters_reply", CTA_COUNTERS))

    @property
    def start_ns(self) -> int | None:
        """When it was confirmed, in nanoseconds since the epoch (CTA_TIMESTAMP_START).

        None where net.netfilter.nf_conntrack_timestamp is off; 0 before it was confirmed.
        """
        inside = self._nest("timestamp", CTA_TIMESTAMP)
        return None if inside is None else inside.get("start")

    @property
    def start(self) -> datetime | None:
        """When it was confirmed, as an aware datetime in UTC, to the microsecond."""
        start = self.start_ns
        return _EPOCH + timedelta(microseconds=start // 1000) if start else None

    @property
    def stop_ns(self) -> int | None:
        """When it ended, in nanoseconds since the epoch, None while it lives."""
        inside = self._nest("timestamp", CTA_TIMESTAMP)
        return None if inside is None else inside.get("stop")

    # -- security, NAT, SYN proxy ----------------------------------------------------------------

    @property
    def secctx(self) -> bytes | None:
        """Security context of its mark (CONNSECMARK), trailing NUL removed (CTA_SECCTX)."""
        inside = self._nest("secctx", CTA_SECCTX)
        if inside is None or "name" not in inside:
            return None
        name: bytes = inside["name"]
        return name.rstrip(b"\0")

    @property
    def seq_adjustment_original(self) -> SequenceAdjustment | None:
        """How sequence numbers of the original direction are shifted (CTA_SEQ_ADJ_ORIG)."""
        return _adjustment(self._nest("seq_adj_orig", CTA_SEQADJ))

    @property
    def seq_adjustment_reply(self) -> SequenceAdjustment | None:
        """How sequence numbers of the reply direction are shifted (CTA_SEQ_ADJ_REPLY)."""
        return _adjustment(self._nest("seq_adj_reply", CTA_SEQADJ))

    @property
    def synproxy(self) -> Synproxy | None:
        """State of the SYN proxy (CTA_SYNPROXY, since 4.18)."""
        inside = self._nest("synproxy", CTA_SYNPROXY)
        if inside is None:
            return None
        return Synproxy(*(int(inside.get(name, 0)) for name in Synproxy._fields))


def labels_of(raw: bytes) -> int:
    """The bit set of labels as they stand in memory."""
    words = _LABEL_WORDS.unpack(raw.ljust(LABEL_BYTES, b"\0"))
    return sum(word << place * _LABEL_WORD_BITS for place, word in enumerate(words))


def labels_to_bytes(labels: int) -> bytes:
    """A bit set of labels as it stands in memory."""
    most = 2**_LABEL_WORD_BITS - 1
    places = range(LABEL_BYTES * 8 // _LABEL_WORD_BITS)
    return _LABEL_WORDS.pack(*(labels >> place * _LABEL_WORD_BITS & most for place in places))


def _there(value: ConntrackTuple | None, what: str) -> ConntrackTuple:
    if value is None:
        raise ValueError(f"{what}: expected in NFQA_CT, not there")
    return value


def _read_tuple(nest: tuple[Attr, ...]) -> ConntrackTuple:
    inside: dict[str, Any] = by_name(CTA_TUPLE, nest)
    ip: dict[str, Any] = by_name(CTA_IP, inside.get("ip", ()))
    proto: dict[str, Any] = by_name(CTA_PROTO, inside.get("proto", ()))
    source: Address
    destination: Address
    if ip.keys() >= {"v4_src", "v4_dst"}:
        source, destination = IPv4Address(ip["v4_src"]), IPv4Address(ip["v4_dst"])
    elif ip.keys() >= {"v6_src", "v6_dst"}:
        source, destination = IPv6Address(ip["v6_src"]), IPv6Address(ip["v6_dst"])
    else:
        raise ValueError("CTA_TUPLE_IP: expected both addresses of one family, not there")
    icmp = "icmpv6" if "icmpv6_type" in proto else "icmp"
    return ConntrackTuple(
        protocol=int(proto.get("num", 0)),
        source=source,
        destination=destination,
        source_port=proto.get("src_port"),
        destination_port=proto.get("dst_port"),
        icmp_type=proto.get(f"{icmp}_type"),
        icmp_code=proto.get(f"{icmp}_code"),
        icmp_id=proto.get(f"{icmp}_id"),
        zone=int(inside.get("zone", 0)),
    )


def _tcp(nest: tuple[Attr, ...]) -> TcpInfo:
    inside: dict[str, Any] = by_name(CTA_PROTOINFO_TCP, nest)

    def flags(name: str) -> TcpFlags | None:
        return TcpFlags(inside[name]["flags"]) if name in inside else None

    return TcpInfo(
        TcpState(inside.get("state", 0)),
        inside.get("wscale_original"),
        inside.get("wscale_reply"),
        flags("flags_original"),
        flags("flags_reply"),
    )


def _sctp(nest: tuple[Attr, ...]) -> SctpInfo:
    inside: dict[str, Any] = by_name(CTA_PROTOINFO_SCTP, nest)
    state = SctpState(inside.get("state", 0))
    return SctpInfo(state, inside.get("vtag_original"), inside.get("vtag_reply"))


def _dccp(nest: tuple[Attr, ...]) -> DccpInfo:
    inside: dict[str, Any] = by_name(CTA_PROTOINFO_DCCP, nest)
    role = DccpRole(inside["role"]) if "role" in inside else None
    return DccpInfo(DccpState(inside.get("state", 0)), role, inside.get("handshake_seq"))


_PROTOCOL_INFO: dict[str, Callable[[tuple[Attr, ...]], TcpInfo | SctpInfo | DccpInfo]] = {
    "tcp": _tcp,
    "sctp": _sctp,
    "dccp": _dccp,
}


def _counters(inside: dict[str, Any] | None) -> Counters | None:
    if inside is None:
        return None
    return Counters(int(inside.get("packets", 0)), int(inside.get("bytes", 0)))


def _adjustment(inside: dict[str, Any] | None) -> SequenceAdjustment | None:
    if inside is None:
        return None
    return SequenceAdjustment(*(int(inside.get(name, 0)) for name in SequenceAdjustment._fields))
