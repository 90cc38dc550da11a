"""Reading many packets of a capture at a time gives what reading each by itself gives."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests import capture_bytes as made
from trionfq._errors import CaptureError
from trionfq._pcapng_quick import QuickReader
from trionfq.captures import open_capture
from trionfq.schema.nfqueue import MessageType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq._pcapng_quick import QuickRun

NOW = 1_790_000_000_000_000_000


class Trickle(io.RawIOBase):
    """A file that comes in pieces of odd sizes."""

    def __init__(self, data: bytes, chance: random.Random) -> None:
        self._data = io.BytesIO(data)
        self._chance = chance

    def readable(self) -> bool:
        return True

    def read1(self, size: int) -> bytes:
        return self._data.read(min(size, self._chance.choice((1, 30, 200, 5000))))


def an_option_list(chance: random.Random, order: str) -> bytes:
    flags = (2, chance.choice((1, 1, 1, 2)).to_bytes(4, "little" if order == "little" else "big"))
    pick = chance.random()
    if pick < 0.85:
        return made.options(flags, order=order)
    if pick < 0.9:
        return made.options(flags, (1, b"a comment"), order=order)
    if pick < 0.95:
        return made.options(flags, (4, bytes(8)), order=order)  # counted, not read
    return made.options(order=order)


def a_packet(chance: random.Random, order: str, ticks: int) -> bytes:
    size = chance.choice((4, 4, 4, 5, 6, 7, 40))
    datagram = made.message(
        chance.choice((MessageType.PACKET, MessageType.VERDICT)),
        chance.randbytes(size),
        order=order,
    )
    family = 12 if chance.random() < 0.95 else 0
    packet_type = chance.choice((4, 4, 4, 6, 7))
    data = made.cooked(datagram, packet_type, family)
    if chance.random() < 0.03:
        data = data[: chance.randrange(24)]
    return made.enhanced(
        data,
        ticks,
        index=chance.choice((0, 0, 0, 0, 0, 1, 2)),
        opts=an_option_list(chance, order),
        order=order,
        original=None if chance.random() < 0.95 else len(data) + chance.choice((-1, 1)),
    )


def a_file(chance: random.Random) -> bytes:
    parts: list[bytes] = []
    for _ in range(3):
        order = chance.choice(("little", "big"))
        unit = made.options((9, bytes([chance.choice((9, 6, 3, 0x8A))])), order=order)
        parts += [
            made.section(order),
            made.interface(opts=unit, order=order),
            made.interface(opts=made.options((9, b"\x06"), order=order), order=order),
            made.interface(1, order=order),
        ]
        again = b""
        for _ in range(150):
            ticks = NOW + chance.randrange(1 << 40)
            pick = chance.random()
            if pick < 0.5 and again:
                parts.append(again)
            elif pick < 0.95:
                again = a_packet(chance, order, ticks)
                parts.append(again)
            elif pick < 0.97:
                parts.append(made.statistics(ticks, made.options((1, b"?"), order=order), order))
            elif pick < 0.98:
                parts.append(made.block(0x77, bytes(8), order))
            else:
                datagram = made.cooked(made.message(MessageType.VERDICT, order=order))
                parts.append(made.simple(datagram, len(datagram), order))
    return b"".join(parts)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Lengths, trailers and options that contradict each other, late in the file."""
    changed = bytearray(data)
    for _ in range(chance.randrange(3)):
        changed[chance.randrange(len(data) // 2, len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed[: len(data) - chance.choice((0, 0, 5))])


def told(data: bytes, pieces: int | None) -> Iterator[Any]:
    """All that can be seen of a capture, while it is read."""
    stream: Any = io.BytesIO(data) if pieces is None else Trickle(data, random.Random(pieces))
    try:
        with open_capture(stream) as capture:
            for record in capture:
                yield record, capture.order, capture.section, dict(capture.skipped)
            yield dict(capture.skipped)
    except CaptureError as error:
        yield str(error)


@pytest.mark.parametrize("seed", range(30))
def test_many_at_a_time_and_one_by_one_cannot_be_told_apart(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    data = damaged(a_file(chance), chance)
    longest = 0
    own = QuickReader.run

    def spied(reader: QuickReader) -> QuickRun | None:
        nonlocal longest
        found = own(reader)
        longest = max(longest, 0 if found is None else len(found.ticks))
        return found

    monkeypatch.setattr(QuickReader, "run", spied)
    quick = [list(told(data, None)), list(told(data, seed))]
    assert longest > 3
    monkeypatch.setattr(QuickReader, "run", lambda _reader: None)
    assert quick == [list(told(data, None))] * 2


def test_kinds_of_a_crafted_file_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = set()
    own = QuickReader.learn

    def spied(reader: QuickReader, at: int, direction: Any) -> None:
        readers.add(reader)
        own(reader, at, direction)

    monkeypatch.setattr(QuickReader, "learn", spied)
    parts = [made.section(), made.interface()]
    for number in range(3000):
        front = made.cooked(made.message(MessageType.PACKET), packet_type=6)
        address = number.to_bytes(8, "big")
        parts += [made.enhanced(front[:6] + address + front[14:], opts=made.options((2, b"1234")))]
        parts += parts[-1:]
    with open_capture(io.BytesIO(b"".join(parts))) as capture:
        assert sum(1 for _ in capture) == 6000
    (reader,) = readers
    assert 0 < len(reader._kinds) <= 1024


@pytest.mark.parametrize("case", ["cut before its length", "trailer of another length"])
def test_a_block_that_only_looks_like_a_known_kind_is_refused(case: str) -> None:
    opts = made.options((2, b"\1\0\0\0"))
    known = made.enhanced(made.cooked(made.message(MessageType.PACKET, bytes(12))), opts=opts)
    shorter = made.enhanced(made.cooked(made.message(MessageType.PACKET, bytes(8))), opts=opts)
    if case == "cut before its length":
        odd = shorter[:4] + known[4:8] + shorter[8:-4] + known[-4:]
    else:
        odd = shorter[:-4] + known[-4:]
    capture = open_capture(io.BytesIO(made.section() + made.interface() + known * 3 + odd))
    assert len([next(capture) for _ in range(3)]) == 3
    with pytest.raises(CaptureError, match=r"the file ends|expected the length"):
        next(capture)


@pytest.mark.parametrize("order", ["little", "big"])
def test_no_byte_of_a_block_in_a_long_row_is_passed_over(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (1).to_bytes(4, "little" if order == "little" else "big")
    datagram = made.message(MessageType.PACKET, bytes(7), order=order)
    head = made.section(order) + made.interface(order=order) + made.interface(1, order=order)
    row = [
        made.enhanced(
            made.cooked(datagram), NOW + n, opts=made.options((2, flags), order=order), order=order
        )
        for n in range(30)
    ]
    files = [head + b"".join(row)]
    for at in range(len(row[20])):
        changed = bytearray(row[20])
        changed[at] ^= 2
        files.append(head + b"".join((*row[:20], bytes(changed), *row[21:])))
    quick = [list(told(data, None)) for data in files]
    assert len({str(each) for each in quick}) > len(files) // 2, "most bytes matter"
    monkeypatch.setattr(QuickReader, "run", lambda _reader: None)
    assert quick == [list(told(data, None)) for data in files]
