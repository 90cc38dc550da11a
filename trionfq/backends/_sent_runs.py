"""Verdicts of known layouts, read many at a time.

Verdicts that change nothing but mark and priority differ from each other in sequence number, packet
id, verdict and these two. With all of them blanked, a message of a layout that was judged equals
the remembered one, byte by byte, and so do many in a row.
"""

from __future__ import annotations

from array import array
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from trionfq._codec import Template
from trionfq.schema import Message
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA, VERDICT_MASK, MessageType, VerdictCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionfq.schema import AnyMessage

_WORD: Final = "I"
_WORD_BYTES: Final = array(_WORD).itemsize
_ONES: Final = 0xFFFF_FFFF
_KEPT: Final = 64
_VERDICT_HDR: Final = NFQA.by_name["verdict_hdr"].number
_SIMPLE: Final = {NFQA.by_name[name].number for name in ("verdict_hdr", "mark", "priority")}
_VERDICTS: Final = frozenset(map(int, VerdictCode)) - {int(VerdictCode.STOLEN)}


class SentRun(NamedTuple):
    """Verdicts that stand in a row.

    Attributes:
      queue: queue number.
      is_batch: whether it is one VERDICT_BATCH; else there may be many VERDICTs.
      ids: the packet id of each.
      start: where in the datagram it begins.
      end: where it ends.
    """

    queue: int
    is_batch: bool
    ids: Sequence[int]
    start: int
    end: int


class _Columns(NamedTuple):
    """Which words of a message are free."""

    blank: tuple[int, ...]
    packet_id: int
    code: int
    swapped: bool


class Runs:
    """Remembers messages, and finds them again."""

    def __init__(self) -> None:
        self._columns: dict[int, _Columns] = {}
        self._known: dict[bytes, tuple[int, bool]] = {}

    def clear(self) -> None:
        """Forget them all."""
        self._known.clear()

    def learn(self, message: AnyMessage, piece: bytes) -> None:
        """Remember a message that was judged, if it is a simple verdict."""
        if (
            not isinstance(message, Message)
            or message.type not in (MessageType.VERDICT, MessageType.VERDICT_BATCH)
            or message.flags != MessageFlags.REQUEST
            or len(piece) % _WORD_BYTES
            or not _is_simple([each.number for each in message.attributes])
            or any(each.flags for each in message.attributes)
        ):
            return
        template = Template(_with_numbers(message, 0))
        if template.size != len(piece):
            return
        columns = self._columns.get(len(piece))
        if columns is None:
            columns = self._columns[len(piece)] = _columns_of(message)
        elif columns != _columns_of(message):
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        blanked = _blanked(array(_WORD, piece), columns, len(piece) // _WORD_BYTES)
        is_batch = message.type == MessageType.VERDICT_BATCH
        self._known[blanked] = message.res_id, is_batch

    def find(self, datagram: bytes) -> tuple[list[SentRun], int] | None:
        """The runs that a datagram is made of, and how long each message is.

        None where it is made of anything else, or of messages of several lengths.
        """
        size = len(datagram)
        if size < _WORD_BYTES or size % _WORD_BYTES:
            return None
        words = array(_WORD, datagram)
        length = words[0]
        columns = self._columns.get(length)
        if columns is None or size % length:
            return None
        stride = length // _WORD_BYTES
        ids = words[columns.packet_id :: stride]
        codes = words[columns.code :: stride]
        if columns.swapped:
            ids.byteswap()
            codes.byteswap()
        if not {code & VERDICT_MASK for code in set(codes)} <= _VERDICTS:
            return None
        count = size // length
        blanked = _blanked(words, columns, stride)
        first = blanked[:length]
        groups = [(first, count)]
        if count > 1 and blanked != first * count:
            pieces = [blanked[at : at + length] for at in range(0, size, length)]
            groups = [(piece, len(list(group))) for piece, group in groupby(pieces)]
        found: list[SentRun] = []
        listed = ids.tolist()
        at = 0
        for piece, many in groups:
            known = self._known.get(piece)
            if known is None:
                return None
            queue, is_batch = known
            step = 1 if is_batch else many
            for begin in range(at, at + many, step):
                end = begin + step
                run = SentRun(queue, is_batch, listed[begin:end], begin * length, end * length)
                found.append(run)
            at += many
        return found, length


def _is_simple(numbers: list[int]) -> bool:
    distinct = set(numbers)
    return len(distinct) == len(numbers) and _VERDICT_HDR in distinct and distinct <= _SIMPLE


def _with_numbers(message: Message, number: int) -> Message:
    """The message with all its mark and priority the same."""
    attributes = [
        each if isinstance(each.value, dict) else each._replace(value=number)
        for each in message.attributes
    ]
    return message._replace(attributes=tuple(attributes))


def _columns_of(message: Message) -> _Columns:
    """Found by looking what changes, since the template knows where."""
    template = Template(_with_numbers(message, 0))
    other = Template(_with_numbers(message, _ONES))
    blank = array(_WORD, template.pack_many([0], [0]))
    ids = array(_WORD, template.pack_many([1], [0]))
    codes = _different(blank, array(_WORD, template.pack_many([0], [_ONES])))
    sequence = _different(array(_WORD, template.pack(0, 0)), array(_WORD, template.pack(_ONES, 0)))
    both = _different(blank, ids)
    numbers = _different(blank, array(_WORD, other.pack_many([0], [0])))
    (packet_id,) = set(both) - set(sequence)
    return _Columns(
        tuple(sorted({*both, *codes, *numbers})), packet_id, codes[0], swapped=ids[packet_id] != 1
    )


def _different(one: array[int], other: array[int]) -> list[int]:
    return [place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]


def _blanked(words: array[int], columns: _Columns, stride: int) -> bytes:
    nothing = array(_WORD, bytes(len(words) // stride * _WORD_BYTES))
    for column in columns.blank:
        words[column::stride] = nothing
    return words.tobytes()
