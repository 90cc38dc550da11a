"""Leaving a nursery that a class keeps open between ``__aenter__`` and ``__aexit__``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


async def leave(
    manager: AbstractAsyncContextManager[trio.Nursery, bool | None],
) -> BaseException | None:
    """Wait for the tasks of a nursery that was cancelled.

    Returns:
      What came out of it besides cancellations, such as a KeyboardInterrupt; alone if it is one. To
      be raised outside of any handler, so that its context is the block's exception, not a group.
    """
    try:
        await manager.__aexit__(None, None, None)
    except trio.Cancelled:
        pass  # from outside; the next checkpoint raises it again
    except BaseExceptionGroup as group:
        _cancelled, others = group.split(trio.Cancelled)
        if others is not None:
            return others.exceptions[0] if len(others.exceptions) == 1 else others
    return None
