"""What the kernel's error answers mean for whoever asked."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trionfq._errors import KernelError, PrivilegeError
from trionfq.schema import by_name
from trionfq.schema.netlink import NLMSGERR_ATTR

if TYPE_CHECKING:
    from trionfq.schema import ErrorMessage


def explanation(answer: ErrorMessage) -> str | None:
    """What the extended acknowledgement adds to an error number."""
    text = by_name(NLMSGERR_ATTR, answer.attributes).get("msg")
    if not isinstance(text, bytes):
        return None
    return text.rstrip(b"\0").decode("ascii", "replace")


def binding_lost(code: int, operation: str, answer: ErrorMessage) -> KernelError:
    """The error of a queue that is not ours any more."""
    if code == errno.EPERM:
        return PrivilegeError(
            code,
            operation,
            advice="every verdict needs CAP_NET_ADMIN and the socket that owns the queue: keep the "
            "capability after dropping privileges, or answer from the process that kept it",
            extack=explanation(answer),
        )
    return KernelError(
        code,
        operation,
        advice="the queue is not bound any more; open it again",
        extack=explanation(answer),
    )
