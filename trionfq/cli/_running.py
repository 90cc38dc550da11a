"""Running a policy over a queue in trio, as ``record`` and ``replay`` do."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from trionfq import Verdict
from trionfq.cli._commands import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionfq import Packet

VERDICTS = {"drop": Verdict.DROP, "accept": Verdict.ACCEPT}
"""What an undecided packet may get."""


def told_apart(
    policy: Callable[[Packet], Any], before: Callable[[], object]
) -> Callable[[Packet], Any]:
    """The policy, with what it raises told apart from what the library does.

    Args:
      policy: plain or async.
      before: called before each packet.
    """
    if inspect.iscoroutinefunction(policy) or inspect.iscoroutinefunction(
        getattr(policy, "__call__", None)  # noqa: B004
    ):

        async def decide_async(packet: Packet) -> None:
            before()
            try:
                await policy(packet)
            except Exception as error:
                raise PolicyError from error

        return decide_async

    def decide(packet: Packet) -> Any:
        before()
        try:
            return policy(packet)
        except Exception as error:
            raise PolicyError from error

    return decide
