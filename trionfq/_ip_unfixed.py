"""What a repair could not do: its vocabulary."""

from __future__ import annotations

import enum


class Unfixed(enum.Enum):
    """Something that a repair left alone; the value says what and why, for people."""

    NOT_IP = "neither IPv4 nor IPv6, by EtherType or first byte; nothing was changed"
    IP_HEADER = "the IP header is cut off, or its length field is below 20 bytes; nothing changed"
    TRUNCATED = "only a part of the packet was copied, so its length is unknown; nothing changed"
    LENGTH = "the packet is longer than its IP length field can say; nothing was changed"
    JUMBO = "a jumbo payload option beside an ordinary length; nothing was changed"
    TRAILING_BYTES = "bytes behind the length that a header states were kept as they are"
    HEADERS = "IPv4 options or IPv6 extension headers are malformed; the transport was left alone"
    ROUTE = "a routing header of unknown type has stops left; the transport was left alone"
    FRAGMENT = "a fragment's transport checksum covers the others, too; it was left alone"
    AUTHENTICATION = (
        "an authentication value (AH, ESP, TCP's MD5 and AO options, SCTP's AUTH chunk) needs the "
        "key; it was left alone"
    )
    TRANSPORT_HEADER = "the transport header is cut off; it was left alone"
    COVERAGE = "UDP-Lite's checksum coverage is from 1 to 7; the transport was left alone"
    PROTOCOL = "no checksum of this transport protocol is known; it was left alone"
    INNER_CHECKSUM = (
        "the network card was to fill in a checksum of a packet inside this one, and no longer "
        "will; open the queue without QueueFlags.GSO, so that the kernel does it first"
    )
    NO_CHECKSUM = "UDP over IPv6 without a checksum stayed so; only tunnels may (RFC 6936)"


class UnfixableError(Exception):
    """Raised inside a repair where a part cannot go on; never leaves `repair`."""

    def __init__(self, unfixed: Unfixed):
        super().__init__(unfixed.value)
        self.unfixed = unfixed
