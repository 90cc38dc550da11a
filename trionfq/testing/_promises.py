"""A list of promises, each with the check that a broken one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionfq.testing._subject import Subject

Check: TypeAlias = "Callable[[Subject], Awaitable[None]]"


class Promises(list[tuple[str, Check]]):
    """Promises in their own words and their checks, in order."""

    def promise(self, text: str) -> Callable[[Check], Check]:
        """Add the check that is decorated; `text` completes the sentence "the backend: ..."."""

        def add(check: Check) -> Check:
            self.append((text, check))
            return check

        return add
