"""What decides a layout: the headers in a datagram, and where they are.

See `_codec_shapes` for what is made of it.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from ._codec_lists import ListPart
from ._codec_parts import MismatchError, RunPart

if TYPE_CHECKING:
    from ._codec_lists import Element
    from ._codec_messages import OperationPart


class Piece(NamedTuple):
    """Bytes that a layout pins."""

    at: int
    order: str
    code: str

    @property
    def size(self) -> int:
        """How many."""
        return Struct(f"<{self.code}").size


def struct_of(pieces: list[Piece], order: str) -> Struct:
    """One format for all pieces: pad bytes between them, those of the other order as raw bytes."""
    codes, at = [order], 0
    for piece in sorted(pieces):
        size = piece.size
        codes.append(f"{piece.at - at}x" if piece.at > at else "")
        codes.append(piece.code if piece.order in ("", order) else f"{size}s")
        at = piece.at + size
    return Struct("".join(codes))


def merged(pieces: list[Piece], header_size: int) -> list[Piece]:
    """Neighbours joined to raw bytes, which compare faster than many integers.

    An attribute header on its own stays two integers: small ones, as lengths and numbers mostly
    are, cost less than a bytes object.
    """
    groups: list[list[Piece]] = []
    for piece in sorted(pieces):
        if groups and groups[-1][-1].at + groups[-1][-1].size == piece.at:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    merged: list[Piece] = []
    for group in groups:
        size = sum(piece.size for piece in group)
        merged += group if size == header_size else [Piece(group[0].at, "", f"{size}s")]
    return merged


def offsets_of(pieces: list[Piece]) -> list[int]:
    """The place of every byte that the pieces cover."""
    return [at for piece in sorted(pieces) for at in range(piece.at, piece.at + piece.size)]


class Walk:
    """What a walk over the one message of a datagram found.

    Attributes:
      pieces: what decides that another datagram of this length is laid out likewise.
      elements: its attributes.

    Raises:
      MismatchError: the message is not valid.
    """

    def __init__(self, header: RunPart, body: OperationPart, datagram: bytes):
        start = header.size + body.header.size
        if start > len(datagram):
            raise MismatchError
        # The kernel leaves the rest of a PACKET's header 0; pinned, it joins the pieces about it
        # to one, which compares faster. Where it is not 0 it may be different each time.
        fields = header.read(datagram, 0, header.size)
        pinned: tuple[str, ...] = ("len", "type")
        if not any(value for name, value in fields.items() if name not in pinned):
            pinned = header.names
        self.pieces: list[Piece] = [
            *_pin(header, 0, pinned),
            *_pin(body.header, header.size, body.header.names),
        ]
        self.elements = self._list(body.attributes, datagram, start, len(datagram))
        if not body.required.issubset([element[1] for element in self.elements]):
            raise MismatchError

    def _list(self, part: ListPart, datagram: bytes, start: int, end: int) -> list[Element]:
        header = part.header
        elements = part.walk(datagram, start, end)
        for at, _, _, begin, stop, inner in elements:
            self.pieces += _pin(header, at, header.names)
            if isinstance(inner, ListPart):
                self._list(inner, datagram, begin, stop)
            elif inner is not None and not inner.fits(stop - begin):
                raise MismatchError
        return elements


def _pin(run: RunPart, at: int, names: tuple[str, ...]) -> list[Piece]:
    return [Piece(at + run.offsets[name], *run.leaf(name)) for name in names]


class Family:
    """Layouts that differ in the length of the last attribute, which is not padded, alone."""

    def __init__(
        self,
        header: RunPart,
        attributes: ListPart,
        walk: Walk,
        order: str,
        datagram: bytes,
    ):
        nla = attributes.header
        last_at = walk.elements[-1][0]
        self._unpack = struct_of(walk.pieces, order).unpack_from
        self._size = last_at + nla.size
        ordered = sorted(walk.pieces)
        total = header.offsets["len"]
        inner = last_at + nla.offsets["length"]
        free = [i for i, piece in enumerate(ordered) if piece.at in (total, inner)]
        kept = [i for i in range(len(ordered)) if i not in free]
        self._kept = itemgetter(*kept)
        self._free = itemgetter(*free)
        self._pinned = self._kept(self._unpack(datagram))
        # Where the payload's own length starts counting: at its header, or after it.
        self._base = last_at if attributes.framing.counts_header else self._size

    def matches(self, datagram: bytes) -> bool:
        """Whether a datagram is of this family."""
        length = len(datagram)
        if length < self._size:
            return False
        headers = self._unpack(datagram)
        if self._kept(headers) != self._pinned:
            return False
        lengths: tuple[int, int] = self._free(headers)
        return lengths == (length, length - self._base)
