"""One packet: lazy attributes, and exactly one verdict.

Every packet is in one of three states, told by ``_decision``: None (untouched), a `Draft` (an edit
or a hold, no verdict yet) or a `Decision` (a verdict was given). Only the untouched state takes
the short way through `Packet.accept`; everything else goes through `Packet.decide`, so the short
way needs two comparisons for all of the rules: not decided, not edited, binding alive, right
thread. The packet has no ``__del__``: holding one is legal, and only closing the queue decides.
"""

from __future__ import annotations

from itertools import repeat
from threading import get_ident
from typing import TYPE_CHECKING

from trionfq._errors import AlreadyDecidedError, LocalProtocolError
from trionfq._foreign import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, to_dpkt, to_scapy
from trionfq._ip import IPView
from trionfq._ip_headers import TCP
from trionfq._ip_repair import Unfixed, repair
from trionfq._packet_attributes import PacketAttributes
from trionfq._verdict import (
    Changes,
    Decision,
    Verdict,
    as_payload,
    decision,
    only_marks,
    plain_decision,
    queue_code,
)
from trionfq._verdict_conntrack import check_connection
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import MAX_COPY_RANGE, CopyMode, SkbInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Unpack

    from trionfq._codec import Shape
    from trionfq._foreign import Payload
    from trionfq._protocol import QueueProtocol

# What the hooks of a family are handed; other families see every EtherType (NFQA_PACKET_HDR).
_ETHERTYPES: dict[int, int] = {
    Family.IPV4: ETHERTYPE_IPV4,
    Family.IPV6: ETHERTYPE_IPV6,
    Family.ARP: ETHERTYPE_ARP,
}

_ACCEPTED = plain_decision(Verdict.ACCEPT)
_DROPPED = plain_decision(Verdict.DROP)


class Draft:
    """What was said of a packet before its verdict."""

    __slots__ = ("held", "payload", "unfixed")

    def __init__(self) -> None:
        self.held = False
        self.payload: bytes | None = None
        self.unfixed: tuple[Unfixed, ...] = ()


class Packet(PacketAttributes):
    """A packet that waits for its verdict.

    Its bytes are immutable and its own. Attributes are decoded when read; one that the kernel did
    not send is None (or 0 where the kernel leaves out zeros). Verdict methods are plain calls,
    never checkpoints, and belong to the thread that runs trio.

    Attributes:
      id: packet id, unique within a binding until 2**32 packets later (NFQA_PACKET_HDR).
    """

    __slots__ = ("_datagram", "_decision", "_owner", "_received_ns", "_shape", "id")

    def __init__(
        self, packet_id: int, datagram: bytes, shape: Shape, owner: QueueProtocol, received_ns: int
    ) -> None:
        self.id = packet_id
        self._datagram = datagram
        self._shape = shape
        self._owner = owner
        self._received_ns = received_ns
        self._decision: Draft | Decision | None = None

    def __repr__(self) -> str:
        told = self._decision
        state = told.verdict.name.lower() if isinstance(told, Decision) else "undecided"
        return f"<Packet {self.id} of queue {self.queue_number}, {state}>"

    # -- verdicts ------------------------------------------------------------------------------

    def accept(self, **changes: Unpack[Changes]) -> None:
        """Let the packet go on (NF_ACCEPT).

        It leaves the chain for the next hook: later rules of the same chain never see it.

        Args:
          **changes: see `Changes`.

        Raises:
          AlreadyDecidedError: it has a verdict; nothing is sent.
          LocalProtocolError: a change that cannot be made; the packet is still undecided.
          TypeError: a change of the wrong type.
          RuntimeError: called from another thread than trio's.
          trio.ClosedResourceError: the queue is closed.
        """
        owner = self._owner
        if self._decision is not None or owner.thread != get_ident():
            self.decide(Verdict.ACCEPT, changes)
        elif not changes:
            self._decision = _ACCEPTED
            owner.give(self)
        elif len(changes) == 1 and type(mark := changes.get("mark")) is int:
            self._decision = plain_decision(Verdict.ACCEPT, mark)
            owner.give(self)
        else:
            self.decide(Verdict.ACCEPT, changes)

    def drop(self) -> None:
        """Discard the packet (NF_DROP).

        Raises:
          AlreadyDecidedError, RuntimeError, trio.ClosedResourceError: as `accept`.
        """
        owner = self._owner
        if self._decision is not None or owner.thread != get_ident():
            self.decide(Verdict.DROP, {})
        else:
            self._decision = _DROPPED
            owner.give(self)

    def stop(self, **changes: Unpack[Changes]) -> None:
        """Accept, and skip the hook's remaining chains, too (NF_STOP).

        Args:
          **changes: see `Changes`.

        Raises:
          AlreadyDecidedError, LocalProtocolError, TypeError, RuntimeError,
          trio.ClosedResourceError: as `accept`.
        """
        self.decide(Verdict.STOP, changes)

    def repeat(self, *, allow_loop: bool = False, **changes: Unpack[Changes]) -> None:
        """Run the hook again; the packet comes back under a new id (NF_REPEAT).

        A rule that matches it again queues it again, for ever. So either set a mark that the
        rule excludes, or say ``allow_loop=True``.

        Args:
          allow_loop: no mark is needed; something else ends the loop.
          **changes: see `Changes`.

        Raises:
          LocalProtocolError: neither a mark nor ``allow_loop``, or as `accept`.
          AlreadyDecidedError, TypeError, RuntimeError, trio.ClosedResourceError: as `accept`.
        """
        if changes.get("mark") is None and not allow_loop:
            raise LocalProtocolError(
                f"repeat of packet {self.id}: without a new mark the same rule queues it again for "
                "ever; give mark=... and exclude that mark in the rule, or allow_loop=True"
            )
        self.decide(Verdict.REPEAT, changes)

    def requeue(self, number: int, *, bypass: bool = False, **changes: Unpack[Changes]) -> None:
        """Hand the packet to another queue (NF_QUEUE).

        Args:
          number: the other queue, 0 to 65535; may be this one.
          bypass: accept the packet where nobody has bound that queue; it is dropped otherwise.
            A full queue drops in any case.
          **changes: see `Changes`.

        Raises:
          ValueError: the number is out of range.
          AlreadyDecidedError, LocalProtocolError, TypeError, RuntimeError,
          trio.ClosedResourceError: as `accept`.
        """
        self.decide(queue_code(number, bypass=bypass), changes)

    def hold(self) -> None:
        """Say that the packet stays undecided on purpose.

        Neither `Queue.serve` nor the end of the block then takes it for forgotten. It counts
        against the kernel's max_len, and as long as the lowest undecided packet is held, verdicts
        cannot be batched.

        Raises:
          AlreadyDecidedError, RuntimeError, trio.ClosedResourceError: as `accept`.
        """
        self._draft().held = True

    def decide(self, code: int, changes: Changes) -> None:
        owner = self._owner
        draft = self._writable()
        notes: tuple[Unfixed, ...] = ()
        payload = changes.get("payload")
        if payload is not None:
            payload, notes = self._repaired(payload, fix=changes.get("repair", True))
        elif draft is not None and code != Verdict.DROP:
            payload, notes = draft.payload, draft.unfixed
        told = decision(code, {**changes, "payload": payload} if payload is not None else changes)
        if notes:
            told = told._replace(unfixed=notes)
        if not told.plain and (told.bridge or told.conntrack):
            self._check_changes(changes, told)
        self._decision = told
        owner.give(self)

    def _writable(self) -> Draft | None:
        """The draft, if a verdict may still be given.

        Raises:
          AlreadyDecidedError, RuntimeError, trio.ClosedResourceError: as `accept`.
        """
        self._owner.check_usable()
        told = self._decision
        if isinstance(told, Decision):
            raise AlreadyDecidedError(
                f"packet {self.id} of queue {self.queue_number} already has the verdict "
                f"{told.verdict.name}; nothing was sent"
            )
        return told

    def settle(self, told: Decision) -> None:
        """Give a verdict that was checked elsewhere; for the protocol machine and `Batch`."""
        self._decision = told
        self._owner.give(self)

    def reopen(self) -> None:
        """Make it undecided again, since the kernel refused its verdict and kept it."""
        told = self._decision
        self._decision = None
        if isinstance(told, Decision) and told.payload is not None:
            draft = self._draft()
            draft.payload, draft.unfixed = told.payload, told.unfixed

    def _draft(self) -> Draft:
        draft = self._writable()
        if draft is None:
            draft = self._decision = Draft()
        return draft

    def _check_changes(self, changes: Changes, told: Decision) -> None:
        """Refuse what the kernel would ignore, refuse or punish by dropping the packet.

        Source: nfqa_parse_bridge and nfqnl_recv_verdict, nfnetlink_queue.c.
        """
        for name in ("vlan", "l2hdr"):
            if changes.get(name) is not None and self.family != Family.BRIDGE:
                raise LocalProtocolError(
                    f"{name}: only packets of the bridge family have one to change, "
                    f"this one is of family {self.family}"
                )
        l2hdr = changes.get("l2hdr")
        if l2hdr is not None and len(l2hdr) != len(self.l2hdr or b""):
            raise LocalProtocolError(
                f"l2hdr: expected {len(self.l2hdr or b'')} bytes as received, got {len(l2hdr)}; "
                "the kernel would drop the packet"
            )
        if told.conntrack:
            self._owner.check_conntrack(changes)
            new = told.payload
            check_connection(
                changes,
                self.conntrack,
                length=0 if new is None else len(self._copied()),
                new_length=None if new is None else len(new),
            )

    # -- payload -------------------------------------------------------------------------------

    @property
    def payload(self) -> bytes:
        """The packet from its network header on; after setting it, the new bytes.

        Setting it, to bytes or to a packet of scapy or dpkt, repairs lengths and checksums
        (`repair`) and leaves with the verdict; `set_payload` can leave the bytes as given.

        Raises:
          LocalProtocolError: the queue's copy mode gives no payload; or, on setting, the packet
            was copied only in part, or the new payload has no room for its headers.
          TypeError: set to something else.
        """
        told = self._decision
        if told is not None and told.payload is not None:
            return told.payload
        where = self._shape.payload_slice
        if where is not None:
            return self._datagram[where]
        return self._no_payload()

    @payload.setter
    def payload(self, payload: Payload) -> None:
        self.set_payload(payload)

    def _no_payload(self) -> bytes:
        if self._owner.config.copy_mode is not CopyMode.PACKET:
            raise LocalProtocolError(
                f"packet {self.id}: queue {self.queue_number} copies no payload; open it with "
                "copy_mode=CopyMode.PACKET to read or change one"
            )
        return b""

    def set_payload(self, payload: Payload, *, repair: bool = True) -> tuple[Unfixed, ...]:
        """Replace the payload; it leaves with the verdict, unless that is a drop.

        Args:
          payload: the packet from its network header on, as bytes or as a packet of scapy or
            dpkt; at most 65,531 bytes (nla_len is 16 bits).
          repair: make lengths and checksums right (`repair`); the kernel fixes nothing.

        Returns:
          What could not be repaired; those bytes stand as given.

        Raises:
          TypeError: neither bytes nor a packet of scapy or dpkt.
          LocalProtocolError: the packet was copied only in part, or is an unsegmented one of
            another transport than TCP; or the new payload is too long, has no room for its
            headers, or cannot be made bytes of.
          AlreadyDecidedError, RuntimeError, trio.ClosedResourceError: as `accept`.
        """
        self._writable()
        new, notes = self._repaired(payload, fix=repair)
        draft = self._draft()
        draft.payload = new
        draft.unfixed = notes
        return notes

    def _repaired(self, payload: object, *, fix: bool) -> tuple[bytes, tuple[Unfixed, ...]]:
        new = as_payload(payload)
        if self.truncated:
            raise LocalProtocolError(
                f"packet {self.id} was copied only in part ({len(self._copied())} of "
                f"{self.original_length} bytes): sending that back would cut it; "
                + _way_to_copy(self.original_length, gso=bool(self.skb_info & SkbInfo.GSO))
            )
        old = self._copied()
        least = self._least_payload(old)
        if len(new) < least:
            raise LocalProtocolError(
                f"payload: expected at least {least} bytes for the headers, got {len(new)}; the "
                "kernel would drop the packet and say nothing"
            )
        if not fix:
            return new, ()
        if self.skb_info & SkbInfo.GSO and IPView(old).protocol != TCP:
            # Of rewritten packets (CHECKSUM_NONE) the kernel computes TCP's checksum anew when it
            # segments them (tcp4_gso_segment), but UDP's from the field (__udp_gso_segment), which
            # then has to hold the pseudo header's sum; and arriving ones it drops altogether.
            raise LocalProtocolError(
                f"packet {self.id} is not segmented yet (SkbInfo.GSO) and is no TCP: the kernel "
                "would make segments of a rewritten one that every receiver drops; open the queue "
                "without QueueFlags.GSO to rewrite such packets, each segment by itself"
            )
        # A bridge shows what is not IP, too, and that may begin as IP does (an MPLS label).
        ethertype = self._ethertype()
        if ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            return new, () if ethertype == ETHERTYPE_ARP else (Unfixed.NOT_IP,)
        not_ready = bool(self.skb_info & SkbInfo.CSUMNOTREADY)
        return repair(new, original=old, checksum_not_ready=not_ready)

    def _ethertype(self) -> int:
        return _ETHERTYPES.get(self.family) or self.hw_protocol

    def to_scapy(self) -> Any:
        """The payload as a packet of scapy, to look at or to edit and set as the new payload.

        Its first layer is scapy's ``IP``, ``IPv6`` or ``ARP``, and ``Raw`` for anything else.
        scapy is imported by the first call; it dissects only protocols that the program imports,
        all of them after ``import scapy.all``.

        Raises:
          ImportError: scapy is not installed.
          LocalProtocolError: the queue's copy mode gives no payload.
        """
        return to_scapy(self.payload, self._ethertype())

    def to_dpkt(self) -> Any:
        """The payload as a packet of dpkt: ``dpkt.ip.IP``, ``dpkt.ip6.IP6`` or ``dpkt.arp.ARP``.

        Padding behind the packet is left out. dpkt is imported by the first call.

        Raises:
          ImportError: dpkt is not installed.
          LocalProtocolError: the packet is none of these; dpkt cannot read it, or its object would
            not give the same bytes again (some IPv6 extension headers); or the queue's copy mode
            gives no payload.
        """
        return to_dpkt(self.payload, self._ethertype())

    def _copied(self) -> bytes:
        where = self._shape.payload_slice
        return self._no_payload() if where is None else self._datagram[where]

    def _least_payload(self, old: bytes) -> int:
        # nfqnl_mangle trims no further than the transport offset and drops what is shorter. The tag
        # of a bridged packet was cut out behind that mark (skb_vlan_untag), so it lies at -4, which
        # is compared unsigned: such a packet cannot shrink.
        if self.family == Family.BRIDGE and self.vlan is not None:
            return len(old)
        return IPView(old).transport_offset or 0

    @property
    def unfixed(self) -> tuple[Unfixed, ...]:
        """What the last change of the payload could not repair; those bytes stand as given."""
        told = self._decision
        return () if told is None else told.unfixed

    @property
    def original_length(self) -> int:
        """Length of the whole packet in bytes, however much of it was copied.

        Raises:
          LocalProtocolError: the queue's copy mode gives no payload; the kernel then does not tell
            the length either (nfqnl_build_packet_message).
        """
        cap_len = self.cap_len
        return len(self._copied()) if cap_len is None else cap_len

    @property
    def truncated(self) -> bool:
        """Whether only a part of the packet was copied (NFQA_CAP_LEN, since 3.7)."""
        cap_len = self.cap_len
        if cap_len is None:
            return False
        where = self._shape.payload_slice
        if where is None:
            return cap_len > 0
        return cap_len > len(range(*where.indices(len(self._datagram))))

    # -- state ---------------------------------------------------------------------------------

    @property
    def queue_number(self) -> int:
        """The queue that the packet came from."""
        return self._owner.config.number

    @property
    def decided(self) -> bool:
        """Whether a verdict was given."""
        return isinstance(self._decision, Decision)

    @property
    def usable(self) -> bool:
        """Whether its binding still exists, so that a verdict can reach the kernel."""
        return self._owner.thread != 0

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that was given, None while undecided."""
        told = self._decision
        return told.verdict if isinstance(told, Decision) else None

    @property
    def held(self) -> bool:
        """Whether it is undecided on purpose (`hold`)."""
        told = self._decision
        return isinstance(told, Draft) and told.held

    @property
    def age_s(self) -> float:
        """Seconds since the packet was read from the socket."""
        return (self._owner.clock_ns() - self._received_ns) / 1e9

    # -- what a simple policy asks of the payload ----------------------------------------------

    @property
    def ip(self) -> IPView:
        """The payload read as IP; its fields are None where there is none."""
        where = self._shape.payload_slice
        if self._decision is None and where is not None:
            return IPView(self._datagram[where])  # as `payload`, without a call
        return IPView(self.payload)


def _way_to_copy(length: int, *, gso: bool) -> str:
    """What to do so that packets of this length can be rewritten."""
    if length <= MAX_COPY_RANGE:
        return "raise copy_range to rewrite packets"
    way = "open the queue without QueueFlags.GSO" if gso else "lower the device's MTU"
    return (
        f"no copy is longer than {MAX_COPY_RANGE} bytes (nla_len is 16 bits): to rewrite such "
        f"packets, {way} (loopback: ip link set lo mtu {MAX_COPY_RANGE})"
    )


_new = object.__new__


def make_packets(
    ids: list[int], datagrams: Sequence[bytes], shape: Shape, owner: QueueProtocol, received_ns: int
) -> list[Packet]:
    """Many packets of one shape, a fifth cheaper than by calling the class for each."""
    packets = list(map(_new, repeat(Packet, len(ids))))
    for packet, packet_id, datagram in zip(packets, ids, datagrams, strict=True):
        packet.id = packet_id
        packet._datagram = datagram  # noqa: SLF001 - a constructor
        packet._shape = shape  # noqa: SLF001
        packet._owner = owner  # noqa: SLF001
        packet._received_ns = received_ns  # noqa: SLF001
        packet._decision = None  # noqa: SLF001
    return packets


def decide_all(packets: Iterable[Packet], code: int, changes: Changes) -> None:
    """Give one verdict to every packet that has none; for `Batch`.

    Raises:
      LocalProtocolError, TypeError, RuntimeError, trio.ClosedResourceError: as `Packet.accept`;
        packets before the failing one have their verdict.
    """
    told = decision(code, changes) if only_marks(changes) else None
    thread = get_ident()
    for packet in packets:
        owner = packet._owner  # noqa: SLF001 - as `Packet.accept`, without a call for each
        if told is not None and packet._decision is None and owner.thread == thread:  # noqa: SLF001
            packet._decision = told  # noqa: SLF001
            owner.give(packet)
        elif not packet.decided:
            packet.decide(code, changes)


def twin(packet: Packet, owner: QueueProtocol) -> Packet:
    """The packet as it came, for another owner: what is decided of it does not touch this one."""
    return Packet(packet.id, packet._datagram, packet._shape, owner, packet._received_ns)  # noqa: SLF001


def verdict_of(packet: Packet) -> Decision:
    """The verdict of a packet that has one."""
    return packet._decision  # type: ignore[return-value] # noqa: SLF001


def verdicts_of(packets: Iterable[Packet]) -> list[Decision]:
    """The verdicts of packets that have one; for the protocol machine, which writes them."""
    return [packet._decision for packet in packets]  # type: ignore[misc] # noqa: SLF001
