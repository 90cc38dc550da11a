"""What the kernel says of a packet: every attribute, decoded when it is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from trionfq._conntrack import Conntrack
from trionfq.schema import by_name
from trionfq.schema.conntrack import ConntrackInfo
from trionfq.schema.nfqueue import HOOKS, NFQA_VLAN, AnyHook, Hook, SkbInfo

if TYPE_CHECKING:
    from trionfq._codec import Shape
    from trionfq._protocol import QueueProtocol
    from trionfq.schema import Attr

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class VlanTag(NamedTuple):
    """A VLAN tag (IEEE 802.1Q).

    Attributes:
      protocol: EtherType of the tag: 0x8100, or 0x88A8 for the outer one of two.
      tci: priority, DEI and VLAN id in 16 bits.
    """

    protocol: int
    tci: int

    @property
    def vlan_id(self) -> int:
        """Number of the VLAN, 12 bits."""
        return self.tci & 0xFFF

    @property
    def priority(self) -> int:
        """Priority code point, 0 to 7."""
        return self.tci >> 13

    @property
    def drop_eligible(self) -> bool:
        """Drop eligible indicator."""
        return bool(self.tci & 0x1000)


class PacketAttributes:
    """The lazy attributes of a `Packet`; one that the kernel did not send is None.

    Where the kernel leaves out an attribute whose value is 0, it is 0.
    """

    __slots__ = ()

    _datagram: bytes
    _shape: Shape
    _owner: QueueProtocol

    @property
    def datagram(self) -> bytes:
        """The netlink datagram that brought the packet."""
        return self._datagram

    @property
    def attributes(self) -> tuple[Attr, ...]:
        """All attributes in the order of the wire, unknown ones as raw bytes."""
        return self._shape.attributes(self._datagram)

    def attribute(self, name: str) -> Any:
        """The value of one attribute by its schema name, None where the kernel did not send it.

        Args:
          name: the kernel's name in lower case without its prefix, such as ``"mark"``.

        Raises:
          KeyError: the schema has no attribute of that name.
        """
        return self._shape.read(name, self._datagram)

    @property
    def family(self) -> int:
        """Protocol family of the hook, a number of `Family`: 2 IPv4, 7 bridge, 10 IPv6.

        An ``inet`` table's packets are IPv4 or IPv6. Family 3 (arp) and 5 (netdev) are not met:
        no kernel since 6.1 takes a queue rule there (nft_queue_validate, nft_queue.c), and older
        ones drop such a packet whatever the verdict (nf_reinject, nf_queue.c).
        """
        return self._shape.family

    @property
    def hw_protocol(self) -> int:
        """Ethernet protocol number, such as 0x0800 (NFQA_PACKET_HDR)."""
        number: int = self.attribute("packet_hdr")["hw_protocol"]
        return number

    @property
    def hook(self) -> AnyHook:
        """The netfilter hook that queued it (NFQA_PACKET_HDR).

        A `Hook` for IPv4, IPv6 and bridge; the families arp and netdev number theirs otherwise.

        Raises:
          ValueError: a hook that this library does not know, which no kernel has so far;
            ``attribute("packet_hdr")`` has its number.
        """
        return HOOKS.get(self._shape.family, Hook)(self.attribute("packet_hdr")["hook"])

    @property
    def mark(self) -> int:
        """skb->mark; the kernel leaves out 0 (NFQA_MARK)."""
        mark: int | None = self.attribute("mark")
        return mark or 0

    @property
    def priority(self) -> int:
        """skb->priority; the kernel leaves out 0 (NFQA_PRIORITY, since 5.18)."""
        priority: int | None = self.attribute("priority")
        return priority or 0

    @property
    def timestamp_ns(self) -> int | None:
        """Receive time in nanoseconds since the epoch, microsecond resolution (NFQA_TIMESTAMP).

        None where the packet has none: generated on this host, or never stamped.
        """
        stamp = self.attribute("timestamp")
        if stamp is None:
            return None
        return int(stamp["sec"]) * 1_000_000_000 + int(stamp["usec"]) * 1_000

    @property
    def timestamp(self) -> datetime | None:
        """Receive time as an aware datetime in UTC, None as `timestamp_ns`.

        Raises:
          OverflowError: after the year 9999.
        """
        nanoseconds = self.timestamp_ns
        if nanoseconds is None:
            return None
        return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)

    @property
    def hwaddr(self) -> bytes | None:
        """The sender's hardware address at its true length (NFQA_HWADDR).

        None where the packet has no link-layer header: on output, and on devices without one.
        Packets over loopback have six zero bytes.
        """
        address = self.attribute("hwaddr")
        if address is None:
            return None
        raw: bytes = address["hw_addr"]
        return raw[: address["hw_addrlen"]]

    @property
    def cap_len(self) -> int | None:
        """Length before copying, where less was copied (NFQA_CAP_LEN, since 3.7)."""
        length: int | None = self.attribute("cap_len")
        return length

    @property
    def skb_info(self) -> SkbInfo:
        """Checksum not ready, GSO, checksum not verified (NFQA_SKB_INFO, since 3.10)."""
        return SkbInfo(self.attribute("skb_info") or 0)

    @property
    def uid(self) -> int | None:
        """User id of the sending socket, with QueueFlags.UID_GID (NFQA_UID, since 3.14)."""
        uid: int | None = self.attribute("uid")
        return uid

    @property
    def gid(self) -> int | None:
        """Group id of the sending socket, with QueueFlags.UID_GID (NFQA_GID, since 3.14)."""
        gid: int | None = self.attribute("gid")
        return gid

    @property
    def secctx(self) -> bytes | None:
        """Security context, with QueueFlags.SECCTX, trailing NUL removed (NFQA_SECCTX)."""
        label: bytes | None = self.attribute("secctx")
        return None if label is None else label.rstrip(b"\0")

    @property
    def vlan(self) -> VlanTag | None:
        """VLAN tag, bridge family only (NFQA_VLAN, since 4.7)."""
        members = self.attribute("vlan")
        if members is None:
            return None
        tag: dict[str, Any] = by_name(NFQA_VLAN, members)
        if not tag.keys() >= {"proto", "tci"}:
            return None  # no kernel sends the half of one
        return VlanTag(tag["proto"], tag["tci"])

    @property
    def l2hdr(self) -> bytes | None:
        """MAC header, bridge family only (NFQA_L2HDR, since 4.7)."""
        header: bytes | None = self.attribute("l2hdr")
        return header

    @property
    def cgroup_classid(self) -> int | None:
        """net_cls class of the sender, where not 0 (NFQA_CGROUP_CLASSID, since 6.4)."""
        classid: int | None = self.attribute("cgroup_classid")
        return classid

    @property
    def ct_info(self) -> ConntrackInfo | None:
        """Its relation to its connection, with QueueFlags.CONNTRACK (NFQA_CT_INFO, since 3.6).

        None where it belongs to none, as `conntrack`.

        Raises:
          ValueError: one that this library does not know, which no kernel has sent so far;
            ``attribute("ct_info")`` has its number.
        """
        info: int | None = self.attribute("ct_info")
        return None if info is None else ConntrackInfo(info)

    @property
    def conntrack(self) -> Conntrack | None:
        """Its connection, with QueueFlags.CONNTRACK, as it was when the packet was queued.

        None where it belongs to none: it is not tracked (``notrack``), invalid, or was queued
        before conntrack saw it. The nest is read anew each time, so keep it in a variable.
        """
        members = self.ct
        return None if members is None else Conntrack(members)

    @property
    def ct(self) -> tuple[Attr, ...] | None:
        """The raw nest of `conntrack`: CTA_* attributes (NFQA_CT, since 3.6)."""
        members: tuple[Attr, ...] | None = self.attribute("ct")
        return members

    @property
    def ifindex_indev(self) -> int | None:
        """Index of the device it came in by (NFQA_IFINDEX_INDEV)."""
        index: int | None = self.attribute("ifindex_indev")
        return index

    @property
    def ifindex_outdev(self) -> int | None:
        """Index of the device it will leave by (NFQA_IFINDEX_OUTDEV)."""
        index: int | None = self.attribute("ifindex_outdev")
        return index

    @property
    def ifindex_physindev(self) -> int | None:
        """Index of the bridge port it came in by (NFQA_IFINDEX_PHYSINDEV)."""
        index: int | None = self.attribute("ifindex_physindev")
        return index

    @property
    def ifindex_physoutdev(self) -> int | None:
        """Index of the bridge port it will leave by (NFQA_IFINDEX_PHYSOUTDEV)."""
        index: int | None = self.attribute("ifindex_physoutdev")
        return index

    @property
    def indev_name(self) -> str | None:
        """Name of the device it came in by, in the queue's namespace, as of now."""
        return self._owner.interface_name(self.ifindex_indev)

    @property
    def outdev_name(self) -> str | None:
        """Name of the device it will leave by, in the queue's namespace, as of now."""
        return self._owner.interface_name(self.ifindex_outdev)

    @property
    def physindev_name(self) -> str | None:
        """Name of the bridge port it came in by, in the queue's namespace, as of now."""
        return self._owner.interface_name(self.ifindex_physindev)

    @property
    def physoutdev_name(self) -> str | None:
        """Name of the bridge port it will leave by, in the queue's namespace, as of now."""
        return self._owner.interface_name(self.ifindex_physoutdev)
