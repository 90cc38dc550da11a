"""Sources of a replay: whatever they are, the packets come in order, and so does what is wrong."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from trionfq._arrivals import Arrivals
from trionfq._errors import CaptureError
from trionfq.captures import Record
from trionfq.schema import Direction
from trionfq.testing import make_packet, make_verdict

if TYPE_CHECKING:
    from collections.abc import Iterator


class Breaking:
    """An iterable that is no iterator and breaks off."""

    def __init__(self, items: list[bytes]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[bytes]:
        yield from self._items
        raise CaptureError("broke off")


def in_runs(arrivals: Arrivals, limit: int) -> Iterator[bytes]:
    """Datagrams as runs give them, one by one where they give none."""
    while True:
        _times, datagrams = arrivals.run(limit)
        if datagrams:
            arrivals.skip(len(datagrams))
            yield from datagrams
        else:
            try:
                yield next(arrivals).datagram
            except StopIteration:
                return


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_what_came_before_an_error_comes_first(limit: int) -> None:
    packets = [make_packet(number) for number in range(1, 601)]
    found = in_runs(Arrivals(Breaking(packets)), limit)
    assert [next(found) for _ in packets] == packets
    with pytest.raises(CaptureError, match="broke off"):
        next(found)


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_records_and_datagrams_may_be_mixed(limit: int) -> None:
    packets = [make_packet(number) for number in range(1, 31)]
    verdict = Record(5, Direction.TO_KERNEL, make_verdict(1))
    source = [
        each if place % 3 else Record(place, Direction.FROM_KERNEL, each)
        for place, each in enumerate(packets)
    ]
    source.insert(11, verdict)
    for made in (source, tuple(source), dict.fromkeys(source), iter(source)):
        assert list(in_runs(Arrivals(made), limit)) == packets


def test_an_iterator_is_never_read_ahead() -> None:
    taken = []

    def live() -> Iterator[bytes]:
        for number in count(1):
            taken.append(number)
            yield make_packet(number)

    arrivals = Arrivals(live())
    assert arrivals.run(64) == ((), ())
    for number in (1, 2, 3):
        assert next(arrivals).packet_id == number
        arrivals.run(64)
        assert taken[-1] == number
    arrivals.close()
