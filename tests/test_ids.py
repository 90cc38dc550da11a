"""Ids compare modulo 2**32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionfq._ids import HALF_CIRCLE, ID_MASK, id_after

IDS = st.integers(0, ID_MASK)


@pytest.mark.parametrize(
    ("a", "b", "after"),
    [
        (2, 1, True),
        (1, 2, False),
        (1, 1, False),
        (0, ID_MASK, True),
        (ID_MASK, 0, False),
        (5, ID_MASK - 5, True),
        (HALF_CIRCLE - 1, 0, True),
        (HALF_CIRCLE, 0, False),
        (0, HALF_CIRCLE, False),
        (HALF_CIRCLE + 1, 0, False),
        (0, HALF_CIRCLE + 1, True),
    ],
)
def test_order_at_the_edges(a: int, b: int, after: bool) -> None:
    assert id_after(a, b) is after


@given(IDS, st.integers(1, HALF_CIRCLE - 1))
def test_an_id_is_after_all_of_the_half_circle_behind_it(start: int, step: int) -> None:
    later = (start + step) & ID_MASK
    assert id_after(later, start)
    assert not id_after(start, later)


@given(IDS, IDS)
def test_order_agrees_with_the_sign_of_the_kernels_difference(a: int, b: int) -> None:
    difference = (a - b) & ID_MASK
    signed = difference - (1 << 32) if difference >= HALF_CIRCLE else difference
    assert id_after(a, b) == (signed > 0)
