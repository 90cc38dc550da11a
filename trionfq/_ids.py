"""Packet ids and their order: the one place where two ids are compared.

An id is a u32 that the kernel counts up and wraps (``++queue->id_sequence``, nfnetlink_queue.c), so
``<`` is wrong once in four thousand million packets. The kernel's own batch walk compares by the
sign of the 32-bit difference (``nfqnl_recv_verdict_batch``), and so does
`id_after`; ids exactly half the circle apart are in no order.
"""

from __future__ import annotations

ID_BITS = 32
ID_MASK = (1 << ID_BITS) - 1
"""Keeps the bits of an id."""
HALF_CIRCLE = 1 << (ID_BITS - 1)
"""Distance at which before and after meet."""


def id_after(a: int, b: int) -> bool:
    """Whether id `a` comes after id `b`, modulo 2**32."""
    return 0 < (a - b) & ID_MASK < HALF_CIRCLE
