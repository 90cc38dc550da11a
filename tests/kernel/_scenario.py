"""What a request to the kernel is tried with, and how its bytes are written down.

A datagram is written in hexadecimal, a bar before each part: nlmsghdr (length, type, flags,
sequence, port id), nfgenmsg (family, version, res_id), then each attribute (length, type,
contents, padding). Headers are those of a little-endian host, contents are big-endian.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

SOL_NETLINK = 270
CAP_ACK = 10
EXT_ACK = 11

EXCLUDED_MARK = 7
"""The rule that queues packets leaves this mark alone."""


def datagram(text: str) -> bytes:
    """The bytes of one datagram, as this module writes them down."""
    return bytes.fromhex(text.replace("|", " "))


OPEN = (
    "28000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
    "0900 0200 0000ffff 02 000000"
)
"""Bind queue 0 and copy whole packets."""
OPEN_1 = (
    "28000000 0203 0500 01000000 00000000 | 00 00 0001 | 0800 0100 01 00 0000 | "
    "0900 0200 0000ffff 02 000000"
)
"""The same for queue 1."""


class By(enum.Enum):
    """Who sends a scenario's requests."""

    OWNER = "the socket that sent the set-up"
    STRANGER = "another socket"
    UNPRIVILEGED = "the owner, without CAP_NET_ADMIN"


class Scenario(NamedTuple):
    """Requests, and the state that they meet.

    Attributes:
      name: what it shows.
      requests: datagrams, each sent by itself.
      set_up: datagrams that the owner sends before.
      packets: how many packets meet the rule between set-up and requests.
      late: how many meet it after the requests.
      mark: skb->mark of all packets.
      by: who sends the requests.
      options: netlink options of the sockets.
    """

    name: str
    requests: tuple[bytes, ...]
    set_up: tuple[bytes, ...]
    packets: int
    late: int
    mark: int
    by: By
    options: tuple[int, ...]


def scenario(
    name: str,
    *requests: str,
    set_up: tuple[str, ...] = (OPEN,),
    packets: int = 3,
    late: int = 0,
    mark: int = 0,
    by: By = By.OWNER,
    options: tuple[int, ...] = (EXT_ACK,),
) -> Scenario:
    """A scenario whose datagrams are still text."""
    return Scenario(
        name,
        tuple(datagram(text) for text in requests),
        tuple(datagram(text) for text in set_up),
        packets,
        late,
        mark,
        by,
        options,
    )
