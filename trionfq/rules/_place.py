"""The network namespace that rules are in, and work done there that nothing cuts short."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import trio

from trionfq.backends._netns import Namespace, enter_for_good, in_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Place:
    """A network namespace, held open: its name may go while its rules are still to be removed.

    Args:
      namespace: as for `open_queue`; None for the caller's.

    Raises:
      FileNotFoundError: there is no such namespace.
      PrivilegeError: this process may not look at it.
    """

    def __init__(self, namespace: str | os.PathLike[str] | Namespace | None = None) -> None:
        self._fd: int | None = None
        self.label = "this network namespace"
        if namespace is not None:
            within = Namespace.of(namespace)
            self.label = within.label
            self._fd = within.open()
        elif os.path.exists("/proc/thread-self/ns/net") and not os.path.samefile(
            "/proc/thread-self/ns/net", "/proc/self/ns/net"
        ):
            # Commands start from another thread, and only this one was moved.
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def _namespace(self) -> Namespace | None:
        return None if self._fd is None else Namespace(self.label, self._fd)

    def call(self, work: Callable[[], T]) -> T:
        """What `work` gives inside the namespace."""
        return in_namespace(self._namespace, work)

    def call_at_exit(self, work: Callable[[], T]) -> T:
        """As `call`, where no thread can be started any more: this one moves, for good."""
        if self._fd is not None:
            enter_for_good(Namespace(self.label, self._fd))
        return work()

    async def complete(self, work: Callable[[], T]) -> T:
        """What `work` gives inside the namespace, from a thread.

        Neither cancellation nor Ctrl-C cuts it short, so it must end by itself. A Ctrl-C that
        comes meanwhile is raised afterwards.
        """
        interrupt: KeyboardInterrupt | None = None
        with trio.CancelScope(shield=True):
            while True:
                try:
                    # A limiter of its own: other threads of the program may never end.
                    result = await trio.to_thread.run_sync(
                        self.call, work, limiter=trio.CapacityLimiter(1)
                    )
                    break
                except KeyboardInterrupt as error:
                    # Only the checkpoint before the thread's start raises it.
                    interrupt = error
        if interrupt is not None:
            raise interrupt
        return result

    def close(self) -> None:
        """Close; harmless when repeated."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
