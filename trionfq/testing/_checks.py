"""Checks any backend against the promises of the seam."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trionfq._errors import ConformanceError
from trionfq.testing._checks_talking import TALKING
from trionfq.testing._checks_waiting import WAITING
from trionfq.testing._subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionfq.backends._abc import Backend
    from trionfq.testing._subject import BackendUnderTest


async def check_backend(make: Callable[[], Backend | BackendUnderTest]) -> None:
    """Check that a backend keeps the promises of `trionfq.backends.Backend`.

    Run it under trio's own clock where the backend waits for something real: an autojump clock
    would take the waiting for idleness.

    Args:
      make: makes a new backend, or a `BackendUnderTest`, which can say more; called for each
        promise, and twice for one. Backends made while others are open may share what they speak
        with, as two sockets share the kernel.

    Raises:
      ConformanceError: a promise is broken; the text names it and says how, and the cause is
        what the backend raised, if anything.
    """
    for promise, check in TALKING + WAITING:
        opened: list[Backend] = []
        it = Subject(make, promise, opened)
        failure: Exception | None = None
        try:
            await check(it)
        except Exception as error:
            failure = _first(error)
        finally:
            for backend in opened:
                with suppress(trio.ClosedResourceError):  # a check of its own finds that
                    backend.close()
        if isinstance(failure, ConformanceError):
            raise failure from failure.__cause__
        if failure is not None:
            raise it.fail(f"raised {failure!r}") from failure


def _first(error: Exception) -> Exception:
    """The error itself, or of a nursery's group the one that tells most."""
    if not isinstance(error, ExceptionGroup):
        return error
    broken = error.subgroup(ConformanceError)
    return _first((broken or error).exceptions[0])
