"""Many datagrams of one layout, proved at once.

Pieces of one length are joined to an array of words with a fixed stride: each column is a slice of
it, and must be the same word over and over. So the bytes that decide a layout are compared for a
whole drain in some dozen steps, all of them in C.
"""

from __future__ import annotations

import sys
from array import array
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_WORD: Final = "I"
_WORD_BYTES = array(_WORD).itemsize
_MOST_BYTES = 0xFFFF  # of an attribute, its header included: one more would count as its number


class Columns:
    """The words and bytes that decide, of pieces of one length.

    Args:
      piece: one that was proved.
      offsets: its bytes that decide.
      id_at: where its packet id stands.
      id_swapped: the id's byte order is not the host's.
    """

    def __init__(self, piece: bytes, offsets: Collection[int], id_at: int, *, id_swapped: bool):
        self._filler = bytes(-len(piece) % _WORD_BYTES)
        self._stride = len(piece) + len(self._filler)
        whole = array(_WORD, piece + self._filler)
        left = set(offsets)
        self._words = []
        for at in range(0, len(piece), _WORD_BYTES):
            covered = set(range(at, at + _WORD_BYTES))
            if covered <= left:
                left -= covered
                self._words.append((at // _WORD_BYTES, whole[at // _WORD_BYTES]))
        self._bytes = [(at, piece[at : at + 1]) for at in sorted(left)]
        self._id_word = id_at // _WORD_BYTES
        self._id_swapped = id_swapped
        self._count = 0
        self._wanted: list[tuple[int, array[int]]] = []

    def ids(self, pieces: Sequence[bytes]) -> list[int] | None:
        """The packet ids, None where one piece is laid out in another way.

        Args:
          pieces: all of the length of the first.
        """
        words = self.words(pieces)
        return None if words is None else self.ids_of(words)

    def words(self, pieces: Sequence[bytes]) -> array[int] | None:
        """All pieces as words, None where one is laid out in another way."""
        count = len(pieces)
        joined = self._filler.join(pieces) + self._filler
        words = array(_WORD, joined)
        stride = self._stride // _WORD_BYTES
        if count != self._count:
            self._count = count
            self._wanted = [(at, array(_WORD, [word]) * count) for at, word in self._words]
        for at, wanted in self._wanted:
            if words[at::stride] != wanted:
                return None
        for at, value in self._bytes:
            if joined[at :: self._stride] != value * count:
                return None
        return words

    def column(self, words: array[int], at: int) -> array[int]:
        """The word at this offset of every piece."""
        return words[at // _WORD_BYTES :: self._stride // _WORD_BYTES]

    def ids_of(self, words: array[int]) -> list[int]:
        """The packet ids."""
        ids = words[self._id_word :: self._stride // _WORD_BYTES]
        if self._id_swapped:
            ids.byteswap()
        return ids.tolist()


class _Shape(Protocol):
    id_at: int
    payload_start: int | None


class Heads:
    """Datagrams that differ in the length of the payload which ends them: all before it decides.

    Of the two lengths in there, each has to be what the datagram's own says. They are the host's,
    as is the order of the words.

    Args:
      datagram: one that was proved.
      offsets: its bytes that decide.
      shape: how it is laid out.
      total_at: where the message's length stands.
      id_swapped: the id's byte order is not the host's.
    """

    def __init__(
        self,
        datagram: bytes,
        offsets: Collection[int],
        shape: _Shape,
        total_at: int,
        *,
        id_swapped: bool,
    ):
        end = shape.payload_start
        assert end is not None
        self._end = end
        self._total_at = total_at
        # The word of the payload's attribute header: length and number, 16 bits each.
        self._header_at = end - _WORD_BYTES
        free = {*range(total_at, total_at + _WORD_BYTES), *range(self._header_at, end)}
        head = datagram[:end]
        decide = set(offsets) - free
        self._columns = Columns(head, decide, shape.id_at, id_swapped=id_swapped)
        [header] = array(_WORD, head[self._header_at :])
        self._step = 1 if sys.byteorder == "little" else 1 << 16
        self._header = header - len(datagram) * self._step
        self._cut = itemgetter(slice(end))

    def ids(self, datagrams: Sequence[bytes]) -> list[int] | None:
        """The packet ids, None where a datagram is laid out in another way."""
        lengths = array(_WORD, map(len, datagrams))
        if min(lengths) < self._end or max(lengths) > self._header_at + _MOST_BYTES:
            return None
        columns = self._columns
        words = columns.words([*map(self._cut, datagrams)])
        if words is None or columns.column(words, self._total_at) != lengths:
            return None
        base, step = self._header, self._step
        headers = array(_WORD, [base + length * step for length in lengths])
        if columns.column(words, self._header_at) != headers:
            return None
        return columns.ids_of(words)
