"""Which attributes, verdicts and flags a test has really exchanged with a kernel.

Every datagram that a `NetlinkBackend` of the test's process takes in or gives out is looked at, so
no test has to say what it saw. What came has been seen. What was sent counts as taken when the
kernel has acknowledged it, or has not refused it by the end of the test; and of what the kernel may
ignore without a word, only where the same test saw that it does not (see `_HEEDED_WITH`).

It is read by code of its own, for what is seen is to be the kernel's doing, not the codec's.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from trionfq import NetlinkBackend

from ._rows import TREES, Tree

_HEADER = struct.Struct("=IHHII")
_ERROR_NUMBER = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR = 2
_PACKET = 0x0300
_FIXED = 20  # nlmsghdr and nfgenmsg, before the attributes
_TYPE_MASK = 0x3FFF

_HEEDED_WITH = {
    "verdict NFQA_CT": "packet NFQA_CT",
    "verdict CTA_": "packet NFQA_CT",
    "verdict NFQA_EXP": "packet NFQA_CT",
    "verdict NFQA_VLAN": "packet NFQA_L2HDR",
    "verdict NFQA_L2HDR": "packet NFQA_L2HDR",
}
"""What starts so is heeded by a kernel that sends this.

Without conntrack in netlink NFQA_CT and NFQA_EXP are skipped (nfqnl_recv_verdict), NFQA_VLAN and
NFQA_L2HDR outside the bridge family (nfqa_parse_bridge).
"""


class Sighting:
    """What one test saw.

    Attributes:
      rows: rows of docs/kernels.md; an attribute of the kernel's that the schema does not know is
        ``packet NFQA_#23`` or, in a nest, ``packet NFQA_CT #28``.
    """

    def __init__(self) -> None:
        self.rows: set[str] = set()
        # Rows asked for by sequence number. A backend is neither kept alive by it nor, when its
        # number in memory is another's, mistaken for that.
        self._asked: weakref.WeakKeyDictionary[object, dict[int, set[str]]] = (
            weakref.WeakKeyDictionary()
        )
        self._unsettled: list[dict[int, set[str]]] = []

    def received(self, backend: object, datagrams: Iterable[bytes]) -> None:
        """Look at what came."""
        for datagram in datagrams:
            for kind, sequence, start, end in _messages(datagram):
                if kind == _PACKET:
                    _note(datagram, start + _FIXED, end, TREES[_PACKET], self.rows, "packet NFQA_")
                elif kind == _NLMSG_ERROR:
                    asked = self._asked.get(backend, {}).pop(sequence, None)
                    if asked and _ERROR_NUMBER.unpack_from(datagram, start + 16)[0] == 0:
                        self.rows |= asked

    def sent(self, backend: object, datagram: bytes) -> None:
        """Look at what was sent."""
        for kind, sequence, start, end in _messages(datagram):
            tree = TREES.get(kind)
            if tree is None:
                continue
            rows: set[str] = set()
            _note(datagram, start + _FIXED, end, tree, rows, None)
            if rows <= self.rows:
                continue
            asked = self._asked.get(backend)
            if asked is None:
                asked = self._asked[backend] = {}
                self._unsettled.append(asked)
            asked.setdefault(sequence, set()).update(rows)

    def settled(self) -> list[str]:
        """All rows, at the end: what is not refused by now was taken."""
        for asked in self._unsettled:
            self.rows.update(*asked.values())
            asked.clear()
        return sorted(row for row in self.rows if self._was_heeded(row))

    def _was_heeded(self, row: str) -> bool:
        return all(
            sign in self.rows for start, sign in _HEEDED_WITH.items() if row.startswith(start)
        )


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, sequence number, start and end of each."""
    at, size = 0, len(datagram)
    while at + 16 <= size:
        length, kind, _flags, sequence, _portid = _HEADER.unpack_from(datagram, at)
        if not 16 <= length <= size - at:
            return
        yield kind, sequence, at, at + length
        at += (length + 3) & ~3


def _note(data: bytes, at: int, end: int, tree: Tree, rows: set[str], unknown: str | None) -> None:
    """Add the rows of some attributes, and with a name for them those that nobody declared."""
    while at + 4 <= end:
        length, number = _ATTRIBUTE.unpack_from(data, at)
        if not 4 <= length <= end - at:
            return
        entry = tree.get(number & _TYPE_MASK)
        if entry is not None:
            rows.add(entry.row)
            if entry.below:
                deeper = None if unknown is None else f"{entry.row} "
                _note(data, at + 4, at + length, entry.below, rows, deeper)
            elif entry.bits:
                word = int.from_bytes(data[at + 4 : at + 8], "big")
                rows.update(row for bit, row in entry.bits if word & bit)
            elif entry.codes and 4 + entry.code_at < length:
                row = entry.codes.get(data[at + 4 + entry.code_at])
                if row is not None:
                    rows.add(row)
        elif unknown is not None:
            rows.add(f"{unknown}#{number & _TYPE_MASK}")
        at += (length + 3) & ~3


class Watch:
    """Looks at what passes every `NetlinkBackend`, from `start` to `stop`.

    Attributes:
      sighting: what it saw.
    """

    def __init__(self) -> None:
        self.sighting = Sighting()
        self._before: tuple[Any, Any] | None = None

    def start(self) -> None:
        """Begin."""
        sighting = self.sighting
        receive, send = self._before = (
            NetlinkBackend.receive_nowait,
            NetlinkBackend.send_nowait,
        )

        def receive_nowait(self: NetlinkBackend, limit: int) -> Any:
            found = receive(self, limit)
            if found.datagrams:
                sighting.received(self, found.datagrams)
            return found

        def send_nowait(self: NetlinkBackend, datagram: bytes) -> None:
            send(self, datagram)
            sighting.sent(self, datagram)

        NetlinkBackend.receive_nowait = receive_nowait  # type: ignore[method-assign]
        NetlinkBackend.send_nowait = send_nowait  # type: ignore[method-assign]

    def stop(self) -> list[str]:
        """End; what was seen."""
        if self._before is not None:
            receive, send = self._before
            NetlinkBackend.receive_nowait = receive  # type: ignore[method-assign]
            NetlinkBackend.send_nowait = send  # type: ignore[method-assign]
            self._before = None
        return self.sighting.settled()
