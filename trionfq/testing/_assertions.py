"""What a test says of two runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionfq._compare import compare

if TYPE_CHECKING:
    from collections.abc import Collection

    from trionfq._compare import Packets, Run


def assert_same_verdicts(
    a: Run,
    b: Run,
    *,
    packets: Packets | None = None,
    names: tuple[str, str] = ("a", "b"),
    ignore: Collection[str] = (),
) -> None:
    """Assert that two runs decided every packet alike.

    The message of the AssertionError shows where they part, packet by packet, rewritten payloads
    by header field and in hexadecimal::

        assert_same_verdicts(replay.transcript, "recorded.pcapng", names=("policy", "recorded"))

    Args:
      a: as of `trionfq.captures.compare`, like the rest.
      b: likewise.
      packets: likewise.
      names: likewise.
      ignore: likewise.

    Raises:
      AssertionError: they part.
      CaptureError, RemoteProtocolError, OSError, ValueError: as `trionfq.captures.compare`.
    """
    __tracebackhide__ = True
    found = compare(a, b, packets=packets, names=names, ignore=ignore)
    if not found.same:
        raise AssertionError(str(found))
